// Selection on the CPU. A row's columns are ranked by one 64-bit number, order of the value above the column,
// so that ties need no second look and any sorting algorithm is stable.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/select/geometry.hpp"
#include "kernels/select/select.hpp"

namespace attnbench {

namespace {

/// Grows with the value; -0 and +0 are one, NaN is above everything.
uint32_t order_of(float x) {
  if (std::isnan(x)) return UINT32_MAX;
  const uint32_t u = std::bit_cast<uint32_t>(x == 0.0f ? 0.0f : x);
  return u >> 31 ? ~u : u | 0x80000000u;
}
uint32_t order_of(int32_t x) { return static_cast<uint32_t>(x) ^ 0x80000000u; }

uint64_t rank_of(uint32_t order, int64_t column) {
  return static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(column);
}
int32_t column_of(uint64_t rank) { return static_cast<int32_t>(rank & 0xffffffffu); }

/// Visible columns of each row: [0, end).
class VisibleEnds {
 public:
  VisibleEnds(const Tensor& x, const Visible& v)
      : causal_(v.causal), offset_(v.offset), m_(x.dim(-1)), rows_(v.causal ? x.dim(-2) : 1) {
    if (!v.limit) return;
    limit_ = v.limit.data<int32_t>();
    limits_ = RowOffsets(v.limit, 0);
  }
  int64_t end(int64_t row) const {
    int64_t end = m_;
    if (causal_) end = std::min(end, row % rows_ + offset_ + 1);
    if (limit_) end = std::min<int64_t>(end, limit_[limits_.offset(row)]);
    return std::max<int64_t>(end, 0);
  }

 private:
  bool causal_;
  int64_t offset_, m_, rows_;
  const int32_t* limit_ = nullptr;
  RowOffsets limits_;
};

/// One vector of `size` elements for each thread.
template <class T>
std::vector<std::vector<T>> workspaces(Context& ctx, int64_t size) {
  return std::vector<std::vector<T>>(static_cast<size_t>(ctx.threads()),
                                     std::vector<T>(static_cast<size_t>(size)));
}

/// Rows that make a second thread worth waking, when one of them has m columns.
int64_t row_grain(int64_t m) { return std::max<int64_t>(1, kParallelBytes / (8 * std::max<int64_t>(m, 1))); }

}  // namespace

void CpuBackend::top_k(Context& ctx, const TopKArgs& args) {
  const int64_t m = args.x.dim(-1), k = args.k;
  const RowOffsets xs(args.x, 1);
  const VisibleEnds visible(args.x, args.visible);
  const float* x = args.x.data<float>();
  int32_t* index = args.index ? args.index.data<int32_t>() : nullptr;
  float* value = args.value ? args.value.data<float>() : nullptr;
  uint8_t* flag = args.flag ? args.flag.data<uint8_t>() : nullptr;
  const int32_t* count = args.count ? args.count.data<int32_t>() : nullptr;
  const RowOffsets indices = args.index ? RowOffsets(args.index, 1) : RowOffsets();
  const RowOffsets values = args.value ? RowOffsets(args.value, 1) : RowOffsets();
  const RowOffsets flags = args.flag ? RowOffsets(args.flag, 1) : RowOffsets();
  const RowOffsets counts = args.count ? RowOffsets(args.count, 0) : RowOffsets();
  const float nothing =
      args.largest ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
  auto ranks = workspaces<uint64_t>(ctx, m);
  parallel_range(ctx.threads(), xs.count(), row_grain(m), [&](int64_t begin, int64_t end) {
    uint64_t* rank = ranks[static_cast<size_t>(thread_index())].data();
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + xs.offset(row);
      const int64_t seen = visible.end(row);
      int64_t want = k;
      if (count) want = std::clamp<int64_t>(count[counts.offset(row)], 0, k);
      want = std::min(want, seen);
      for (int64_t j = 0; j < seen; ++j) {
        const uint32_t order = order_of(from[j]);
        rank[j] = rank_of(args.largest ? ~order : order, j);
      }
      if (want > 0 && want < seen) std::nth_element(rank, rank + want - 1, rank + seen);
      if (args.order == TopKArgs::Order::index)
        std::sort(rank, rank + want, [](uint64_t a, uint64_t b) { return column_of(a) < column_of(b); });
      else if (index)
        std::sort(rank, rank + want);
      if (index) {
        int32_t* to = index + indices.offset(row);
        for (int64_t i = 0; i < want; ++i) to[i] = column_of(rank[i]);
        std::fill(to + want, to + k, -1);
      }
      if (value) {
        float* to = value + values.offset(row);
        for (int64_t i = 0; i < want; ++i) to[i] = from[column_of(rank[i])];
        std::fill(to + want, to + k, nothing);
      }
      if (flag) {
        uint8_t* to = flag + flags.offset(row);
        std::memset(to, 0, static_cast<size_t>(m));
        for (int64_t i = 0; i < want; ++i) to[column_of(rank[i])] = 1;
      }
    }
  });
}

namespace {

template <class T>
void argsort_as(Context& ctx, const ArgsortArgs& args) {
  const int64_t m = args.x.dim(-1);
  const RowOffsets xs(args.x, 1), indices(args.index, 1);
  const RowOffsets values = args.value ? RowOffsets(args.value, 1) : RowOffsets();
  const T* x = args.x.data<T>();
  int32_t* index = args.index.data<int32_t>();
  T* value = args.value ? args.value.data<T>() : nullptr;
  auto ranks = workspaces<uint64_t>(ctx, m);
  parallel_range(ctx.threads(), xs.count(), row_grain(8 * m), [&](int64_t begin, int64_t end) {
    uint64_t* rank = ranks[static_cast<size_t>(thread_index())].data();
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + xs.offset(row);
      for (int64_t j = 0; j < m; ++j) {
        const uint32_t order = order_of(from[j]);
        rank[j] = rank_of(args.descending ? ~order : order, j);
      }
      std::sort(rank, rank + m);
      int32_t* to = index + indices.offset(row);
      for (int64_t j = 0; j < m; ++j) to[j] = column_of(rank[j]);
      if (value)
        for (int64_t j = 0; j < m; ++j) value[values.offset(row) + j] = from[to[j]];
    }
  });
}

}  // namespace

void CpuBackend::argsort(Context& ctx, const ArgsortArgs& args) {
  if (args.x.dtype() == DType::f32)
    argsort_as<float>(ctx, args);
  else
    argsort_as<int32_t>(ctx, args);
}

void CpuBackend::top_p(Context& ctx, const TopPArgs& args) {
  const int64_t m = args.x.dim(-1), rows = args.x.rank() > 1 ? args.x.dim(-2) : 1;
  const RowOffsets xs(args.x, 1);
  const RowOffsets flags = args.flag ? RowOffsets(args.flag, 1) : RowOffsets();
  const VisibleEnds visible(args.x, args.visible);
  const float* x = args.x.data<float>();
  int32_t* count = args.count ? args.count.data<int32_t>() : nullptr;
  uint8_t* flag = args.flag ? args.flag.data<uint8_t>() : nullptr;
  auto ranks = workspaces<uint64_t>(ctx, m);
  parallel_range(ctx.threads(), xs.count(), row_grain(8 * m), [&](int64_t begin, int64_t end) {
    uint64_t* rank = ranks[static_cast<size_t>(thread_index())].data();
    for (int64_t row = begin; row < end; ++row) {
      const float* from = x + xs.offset(row);
      uint8_t* to = flag ? flag + flags.offset(row) : nullptr;
      if (to) std::memset(to, 0, static_cast<size_t>(m));
      const int64_t seen = visible.end(row);
      const int64_t diagonal = args.forced_diagonal ? row % rows + args.visible.offset : -1;
      double total = 0, sum = 0;
      int64_t forced = 0, others = 0;
      for (int64_t j = 0; j < seen; ++j) {
        total += static_cast<double>(from[j]);
        if (j < args.forced_first || j == diagonal) {
          sum += static_cast<double>(from[j]);
          ++forced;
          if (to) to[j] = 1;
        } else {
          rank[others++] = rank_of(~order_of(from[j]), j);
        }
      }
      std::sort(rank, rank + others);
      const double reach = args.share ? args.p * total : args.p;
      const auto goes_on = [&](double s) { return args.inclusive ? s <= reach : s < reach; };
      // before[0] = S_{r-1}, before[1] = S_{r-2} while the r-th is looked at.
      double before[2] = {sum, sum};
      int64_t kept = 0;
      for (int64_t r = 1; r <= others; ++r) {
        const int32_t column = column_of(rank[r - 1]);
        const double with = before[0] + static_cast<double>(from[column]);
        const double decisive = args.lag == 0 ? with : args.lag == 1 ? before[0] : before[1];
        if (!(r <= args.min_keep || r < args.lag || goes_on(decisive))) break;
        before[1] = before[0], before[0] = with;
        ++kept;
        if (to) to[column] = 1;
      }
      if (count) count[row] = static_cast<int32_t>(forced + kept);
    }
  });
}

void CpuBackend::prefix_sum(Context& ctx, const PrefixSumArgs& args) {
  const int64_t m = args.x.dim(-1);
  const RowOffsets xs(args.x, 1), ys(args.y, 1);
  parallel_range(ctx.threads(), xs.count(), row_grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto scan = [&](const auto* from, auto* to, auto sum) {
        for (int64_t j = 0; j < m; ++j) {
          const auto before = sum;
          sum += static_cast<decltype(sum)>(from[j]);
          to[j] = static_cast<std::remove_reference_t<decltype(*to)>>(args.exclusive ? before : sum);
        }
      };
      if (args.x.dtype() == DType::f32)
        scan(args.x.data<float>() + xs.offset(row), args.y.data<float>() + ys.offset(row), 0.0);
      else  // unsigned: overflow wraps instead of being undefined
        scan(args.x.data<int32_t>() + xs.offset(row), args.y.data<int32_t>() + ys.offset(row), uint32_t{0});
    }
  });
}

void CpuBackend::compact_flags(Context& ctx, const CompactArgs& args) {
  const int64_t m = args.flag.dim(-1), k = args.index.dim(-1);
  const RowOffsets flags(args.flag, 1), indices(args.index, 1);
  const uint8_t* flag = args.flag.data<uint8_t>();
  int32_t *index = args.index.data<int32_t>(), *count = args.count.data<int32_t>();
  parallel_range(ctx.threads(), flags.count(), row_grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* from = flag + flags.offset(row);
      int32_t* to = index + indices.offset(row);
      int64_t found = 0;
      for (int64_t j = 0; j < m; ++j) {
        if (!from[j]) continue;
        if (found < k) to[found] = static_cast<int32_t>(j);
        ++found;
      }
      std::fill(to + std::min(found, k), to + k, -1);
      count[row] = static_cast<int32_t>(found);
    }
  });
}

void CpuBackend::compare_flags(Context& ctx, const CompareArgs& args) {
  using Relation = CompareArgs::Relation;
  const int64_t c = args.x.rank() > 0 ? args.x.dim(-1) : 1;
  const int inner = args.x.rank() > 0 ? 1 : 0;
  const RowOffsets xs(args.x, inner), flags(args.flag, inner);
  const RowOffsets ys = args.y ? RowOffsets(args.y, inner) : RowOffsets();
  const RowOffsets zs = args.z ? RowOffsets(args.z, inner) : RowOffsets();
  const auto run = [&](auto* out, auto holds) {
    parallel_range(ctx.threads(), xs.count(), row_grain(c), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* x = args.x.data<float>() + xs.offset(row);
        const float* y = args.y ? args.y.data<float>() + ys.offset(row) : nullptr;
        const float* z = args.z ? args.z.data<float>() + zs.offset(row) : nullptr;
        auto* to = out + flags.offset(row);
        if (z)
          for (int64_t j = 0; j < c; ++j) to[j] = holds(std::fabs(x[j]), std::fabs(y[j]) + std::fabs(z[j]));
        else if (y)
          for (int64_t j = 0; j < c; ++j) to[j] = holds(x[j], y[j]);
        else
          for (int64_t j = 0; j < c; ++j) to[j] = holds(x[j], args.threshold);
      }
    });
  };
  const auto relate = [&](auto* out) {
    switch (args.relation) {
      case Relation::greater:
        return run(out, [](float a, float b) { return a > b; });
      case Relation::greater_equal:
        return run(out, [](float a, float b) { return a >= b; });
      case Relation::less:
        return run(out, [](float a, float b) { return a < b; });
      case Relation::less_equal:
        return run(out, [](float a, float b) { return a <= b; });
    }
  };
  if (args.flag.dtype() == DType::u8)
    relate(args.flag.data<uint8_t>());
  else
    relate(args.flag.data<int32_t>());
}

namespace {

/// Where the list of batch b and head h starts.
struct TokenIndex {
  const int32_t* data;
  int64_t batch_step, head_step, group;
  TokenIndex(const Tensor& t, int64_t heads)
      : data(t.data<int32_t>()),
        batch_step(t.dim(0) == 1 ? 0 : t.stride(0)),
        head_step(t.stride(1)),
        group(heads / t.dim(1)) {}
  const int32_t* at(int64_t b, int64_t h) const { return data + b * batch_step + h / group * head_step; }
};

}  // namespace

void CpuBackend::gather_tokens(Context& ctx, const GatherTokensArgs& args) {
  const int64_t batch = args.y.dim(0), heads = args.y.dim(1), entries = args.y.dim(2), n = args.x.dim(2);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int64_t bytes = args.y.dim(3) * size, share = heads / args.x.dim(1);
  const TokenIndex index(args.index, heads);
  for (int64_t b = 0; b < args.index.dim(0); ++b)
    for (int64_t g = 0; g < args.index.dim(1); ++g)
      for (int64_t i = 0; i < entries; ++i) {
        const int32_t v = index.at(b, g * index.group)[i];
        if (v < -1 || v >= n)
          throw UsageError("gather_tokens: index[" + std::to_string(b) + ", " + std::to_string(g) + ", " +
                           std::to_string(i) + "] is " + std::to_string(v) + ", outside [-1, " +
                           std::to_string(n) + ")");
      }
  if (bytes == 0) return;
  const char* x = static_cast<const char*>(args.x.raw());
  char* y = static_cast<char*>(args.y.raw());
  parallel_range(
      ctx.threads(), batch * heads * entries, std::max<int64_t>(kParallelBytes / (2 * bytes), 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t i = r % entries, h = r / entries % heads, b = r / entries / heads;
          const int32_t from = index.at(b, h)[i];
          char* to = y + (b * args.y.stride(0) + h * args.y.stride(1) + i * args.y.stride(2)) * size;
          if (from < 0)
            std::memset(to, 0, static_cast<size_t>(bytes));
          else
            std::memcpy(
                to,
                x + (b * args.x.stride(0) + h / share * args.x.stride(1) + from * args.x.stride(2)) * size,
                static_cast<size_t>(bytes));
        }
      });
}

void CpuBackend::scatter_tokens(Context& ctx, const ScatterTokensArgs& args) {
  const int64_t batch = args.y.dim(0), heads = args.y.dim(1), n = args.y.dim(2), d = args.y.dim(3);
  const int64_t m = args.x.dim(2);
  const DType type = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(type));
  const bool add = args.mode == ScatterTokensArgs::Mode::add;
  const TokenIndex index(args.index, heads);
  const char* x = static_cast<const char*>(args.x.raw());
  char* y = static_cast<char*>(args.y.raw());
  // Sources in order, by target: a counting sort gives every target its list, so that threads may take
  // targets.
  struct Lists {
    std::vector<int32_t> first, source;
    std::vector<float> sum, row;
  };
  std::vector<Lists> work(static_cast<size_t>(ctx.threads()));
  for (Lists& w : work) {
    w.first.resize(static_cast<size_t>(n) + 2);
    w.source.resize(static_cast<size_t>(m));
    w.sum.resize(static_cast<size_t>(d));
    w.row.resize(static_cast<size_t>(d));
  }
  parallel_items(ctx.threads(), batch * heads, [&](int64_t item) {
    Lists& w = work[static_cast<size_t>(thread_index())];
    const int64_t b = item / heads, h = item % heads;
    const int32_t* target = index.at(b, h);
    const auto valid = [&](int64_t i) { return target[i] >= 0 && target[i] < n; };
    std::fill(w.first.begin(), w.first.end(), 0);
    for (int64_t i = 0; i < m; ++i)
      if (valid(i)) ++w.first[static_cast<size_t>(target[i]) + 2];
    for (size_t t = 2; t < w.first.size(); ++t) w.first[t] += w.first[t - 1];
    for (int64_t i = 0; i < m; ++i)
      if (valid(i))
        w.source[static_cast<size_t>(w.first[static_cast<size_t>(target[i]) + 1]++)] =
            static_cast<int32_t>(i);
    for (int64_t t = 0; t < n; ++t) {
      const int32_t begin = w.first[static_cast<size_t>(t)], end = w.first[static_cast<size_t>(t) + 1];
      if (args.hits) args.hits.data<int32_t>()[item * n + t] = end - begin;
      if (d == 0 || (begin == end && args.keep)) continue;
      char* to = y + (b * args.y.stride(0) + h * args.y.stride(1) + t * args.y.stride(2)) * size;
      const auto from = [&](int32_t e) {
        return x + (b * args.x.stride(0) + h * args.x.stride(1) +
                    w.source[static_cast<size_t>(e)] * args.x.stride(2)) *
                       size;
      };
      if (begin == end) {
        std::memset(to, 0, static_cast<size_t>(d * size));
      } else if (!add) {
        std::memcpy(to, from(end - 1), static_cast<size_t>(d * size));
      } else {
        if (args.keep)
          convert(to, type, w.sum.data(), DType::f32, d);
        else
          std::fill(w.sum.begin(), w.sum.end(), 0.0f);
        for (int32_t e = begin; e < end; ++e) {
          convert(from(e), type, w.row.data(), DType::f32, d);
          const float factor =
              args.weight ? args.weight.data<float>()[b * args.weight.stride(0) + h * args.weight.stride(1) +
                                                      w.source[static_cast<size_t>(e)]]
                          : 1.0f;
          for (size_t c = 0; c < w.sum.size(); ++c) w.sum[c] += factor * w.row[c];
        }
        convert(w.sum.data(), DType::f32, to, type, d);
      }
    }
  });
}

void CpuBackend::pool_tokens(Context& ctx, const PoolTokensArgs& args) {
  using Kind = PoolTokensArgs::Kind;
  using Divisor = PoolTokensArgs::Divisor;
  const int64_t heads = args.y.dim(1), blocks = args.y.dim(2), d = args.y.dim(3), n = args.x.dim(2);
  const DType type = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(type));
  const auto out_size = static_cast<int64_t>(size_of(args.y.dtype()));
  const char* x = static_cast<const char*>(args.x.raw());
  char* y = static_cast<char*>(args.y.raw());
  auto rows = workspaces<float>(ctx, d), sums = workspaces<float>(ctx, d);
  const int64_t items = args.y.dim(0) * heads * blocks;
  const int64_t item_bytes = std::max<int64_t>(1, n / std::max<int64_t>(blocks, 1)) * d * size;
  parallel_range(
      ctx.threads(), items, std::max<int64_t>(1, kParallelBytes / std::max<int64_t>(item_bytes, 1)),
      [&](int64_t first, int64_t last) {
        float* row = rows[static_cast<size_t>(thread_index())].data();
        float* sum = sums[static_cast<size_t>(thread_index())].data();
        for (int64_t item = first; item < last; ++item) {
          const int64_t s = item % blocks, h = item / blocks % heads, b = item / blocks / heads;
          int64_t begin = s * args.block, end = std::min(n, begin + args.block);
          if (args.bounds) {
            const int32_t* bound =
                args.bounds.data<int32_t>() + (args.bounds.dim(0) == 1 ? 0 : b) * args.bounds.stride(0);
            begin = std::clamp<int64_t>(bound[s], 0, n);
            end = bound[s + 1] < 0 ? begin : std::clamp<int64_t>(bound[s + 1], begin, n);
          }
          const int64_t tokens = std::max<int64_t>(end - begin, 0);
          const float* center = args.center ? args.center.data<float>() + b * args.center.stride(0) +
                                                  h * args.center.stride(1) + s * args.center.stride(2)
                                            : nullptr;
          const float start = tokens == 0              ? 0.0f
                              : args.kind == Kind::max ? -std::numeric_limits<float>::infinity()
                              : args.kind == Kind::min ? std::numeric_limits<float>::infinity()
                                                       : 0.0f;
          std::fill(sum, sum + d, start);
          for (int64_t t = begin; t < end; ++t) {
            const char* at = x + (b * args.x.stride(0) + h * args.x.stride(1) + t * args.x.stride(2)) * size;
            const float* from = reinterpret_cast<const float*>(at);
            if (type != DType::f32) {
              convert(at, type, row, DType::f32, d);
              from = row;
            }
            switch (args.kind) {
              case Kind::sum:
              case Kind::mean:
                for (int64_t c = 0; c < d; ++c) sum[c] += from[c];
                break;
              case Kind::max:  // NaN wins
                for (int64_t c = 0; c < d; ++c)
                  sum[c] = sum[c] > from[c] || sum[c] != sum[c] ? sum[c] : from[c];
                break;
              case Kind::min:
                for (int64_t c = 0; c < d; ++c)
                  sum[c] = sum[c] < from[c] || sum[c] != sum[c] ? sum[c] : from[c];
                break;
              case Kind::absolute_deviation:
                for (int64_t c = 0; c < d; ++c) sum[c] += std::fabs(from[c] - center[c]);
                break;
            }
          }
          if (args.kind == Kind::absolute_deviation && args.divisor == Divisor::whole && tokens < args.block)
            for (int64_t c = 0; c < d; ++c)
              sum[c] += static_cast<float>(args.block - tokens) * std::fabs(center[c]);
          if ((args.kind == Kind::mean || args.kind == Kind::absolute_deviation) && tokens > 0) {
            const float by = args.divisor == Divisor::real    ? static_cast<float>(tokens)
                             : args.divisor == Divisor::whole ? static_cast<float>(args.block)
                                                              : std::sqrt(static_cast<float>(tokens));
            for (int64_t c = 0; c < d; ++c) sum[c] /= by;
          }
          convert(sum, DType::f32,
                  y + (b * args.y.stride(0) + h * args.y.stride(1) + s * args.y.stride(2)) * out_size,
                  args.y.dtype(), d);
        }
      });
}

void CpuBackend::build_block_lists(Context& ctx, const BlockListsArgs& args) {
  const BlockGeometry geometry(args.rule, args.n, args.m, args.block_q, args.block_k);
  const int64_t groups = args.full.count.dim(0) * args.full.count.dim(1), nq = args.full.count.dim(2);
  const int64_t nk = (args.m + args.block_k - 1) / args.block_k, rows = groups * nq;
  const int64_t full_capacity = args.full.index.dim(0) / rows;
  const int64_t partial_capacity = args.partial ? args.partial.index.dim(0) / rows : 0;
  const auto u8 = [](const Tensor& t) { return t ? t.data<uint8_t>() : nullptr; };
  const uint8_t *bitmap = u8(args.bitmap), *also = u8(args.also), *columns = u8(args.columns),
                *diagonals = u8(args.diagonals);
  std::vector<uint8_t> overflow(static_cast<size_t>(rows), 0);
  parallel_range(ctx.threads(), rows, row_grain(nk), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t group = row / nq, r = row % nq, diagonal = geometry.diagonal(r);
      int32_t* full = args.full.index.data<int32_t>() + row * full_capacity;
      int32_t* partial = args.partial ? args.partial.index.data<int32_t>() + row * partial_capacity : nullptr;
      int32_t* selected = args.selected ? args.selected.data<int32_t>() + row * nk : nullptr;
      int64_t fulls = 0, partials = 0;
      for (int64_t c = 0; c < nk; ++c) {
        bool chosen = c < args.first_columns || r >= nq - args.last_rows ||
                      (args.diagonal && c == diagonal) || (c <= diagonal && c > diagonal - args.window);
        chosen = chosen || (bitmap && bitmap[row * nk + c]) || (also && also[r * nk + c]) ||
                 (columns && columns[group * nk + c]) ||
                 (diagonals && c <= r && r - c < nk && diagonals[group * nk + r - c]);
        const auto kind = chosen ? geometry.classify(r, c) : BlockGeometry::none;
        if (selected) selected[c] = kind != BlockGeometry::none;
        if (kind == BlockGeometry::none) continue;
        const bool to_full = kind == BlockGeometry::full;
        int64_t& count = to_full ? fulls : partials;
        if (count < (to_full ? full_capacity : partial_capacity))
          (to_full ? full : partial)[count++] = static_cast<int32_t>(c);
        else
          overflow[static_cast<size_t>(row)] = 1;
      }
      args.full.begin.data<int32_t>()[row] = static_cast<int32_t>(row * full_capacity);
      args.full.count.data<int32_t>()[row] = static_cast<int32_t>(fulls);
      if (!args.partial) continue;
      args.partial.begin.data<int32_t>()[row] = static_cast<int32_t>(row * partial_capacity);
      args.partial.count.data<int32_t>()[row] = static_cast<int32_t>(partials);
    }
  });
  for (int64_t row = 0; row < rows; ++row)
    if (overflow[static_cast<size_t>(row)])
      throw UsageError("build_block_lists: row " + std::to_string(row % nq) + " of group " +
                       std::to_string(row / nq) + " needs more than its " + std::to_string(full_capacity) +
                       " full or " + std::to_string(partial_capacity) + " partial entries");
}

}  // namespace attnbench
