// Spans on the CPU. The search takes the queries that share a key head together, so that a key is read and
// widened once for all of them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/spans/spans.hpp"

namespace attnbench {

namespace {

struct Candidate {
  float score;
  int32_t key;
};

/// a before b: larger, NaN first, ties by key.
bool before(Candidate a, Candidate b) {
  const bool na = std::isnan(a.score), nb = std::isnan(b.score);
  if (na != nb) return na;
  if (!na && a.score != b.score) return a.score > b.score;
  return a.key < b.key;
}

/// The best so far, in order, of at most `room`.
void insert(std::vector<Candidate>& best, size_t room, Candidate c) {
  if (best.size() == room) {
    if (!before(c, best.back())) return;
    best.pop_back();
  }
  best.insert(std::upper_bound(best.begin(), best.end(), c, before), c);
}

/// Where (row, column) of a [B, H, N, D] tensor begins, and its elements as f32.
void load(const Tensor& t, int64_t b, int64_t h, int64_t row, float* to) {
  const int64_t at = b * t.stride(0) + h * t.stride(1) + row * t.stride(2);
  convert(static_cast<const char*>(t.raw()) + at * static_cast<int64_t>(size_of(t.dtype())), t.dtype(), to,
          DType::f32, t.dim(3));
}

}  // namespace

void CpuBackend::search_spans(Context& ctx, const SearchSpansArgs& args) {
  const int64_t n = args.q.dim(2), d = args.q.dim(3), heads = args.q.dim(1), kv_heads = args.k.dim(1),
                m = args.k.dim(2), group = heads / kv_heads, slots = args.anchor.dim(3);
  const int32_t *stripes = args.stripes.data<int32_t>(), *stripes_end = stripes + args.stripes.numel();
  // 64 queries an item: items of one head differ in work, as later queries have more candidates.
  constexpr int64_t kQueries = 64;
  const int64_t parts = (n + kQueries - 1) / kQueries;
  parallel_items(ctx.threads(), args.q.dim(0) * kv_heads * parts, [&](int64_t item) {
    const int64_t b = item / (kv_heads * parts), kv = item / parts % kv_heads;
    const uint8_t* valid = args.key_valid ? args.key_valid.data<uint8_t>() + b * m : nullptr;
    const int64_t first = args.first ? args.first.data<int32_t>()[b] : 0;
    std::vector<float> queries(static_cast<size_t>(group * d)), key(static_cast<size_t>(d));
    std::vector<std::vector<Candidate>> best(static_cast<size_t>(group));
    for (int64_t i = item % parts * kQueries; i < std::min(n, (item % parts + 1) * kQueries); ++i) {
      const int64_t t = args.position.data<int32_t>()[i];
      for (int64_t g = 0; g < group; ++g) {
        load(args.q, b, kv * group + g, i, queries.data() + g * d);
        best[static_cast<size_t>(g)].clear();
      }
      for (const int32_t* e = std::lower_bound(stripes, stripes_end, t + 2 - m);
           e != stripes_end && *e <= t + 1; ++e) {
        const int64_t c = t - *e + 1;
        if (valid && !valid[c]) continue;
        load(args.k, b, kv, c, key.data());
        for (int64_t g = 0; g < group; ++g) {
          const float *x = queries.data() + g * d, *y = key.data();
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t j = 0; j < d; ++j) sum += x[j] * y[j];
          insert(best[static_cast<size_t>(g)], static_cast<size_t>(slots),
                 {args.scale * sum, static_cast<int32_t>(c)});
        }
      }
      const int64_t length = std::clamp<int64_t>(t + 1 - first, 0, m);
      const int64_t back = args.before.data<int32_t>()[length], ahead = args.after.data<int32_t>()[length];
      int64_t last = std::min(t, m - 1);
      if (args.apart) last = std::min(last, std::max<int64_t>(t - args.window + 1, 0) - 1);
      for (int64_t g = 0; g < group; ++g) {
        const int64_t at = ((b * heads + kv * group + g) * n + i) * slots;
        const auto& found = best[static_cast<size_t>(g)];
        for (int64_t s = 0; s < slots; ++s) {
          const bool there = s < static_cast<int64_t>(found.size());
          const Candidate c = there ? found[static_cast<size_t>(s)] : Candidate{-1e9f, -1};
          args.anchor.data<int32_t>()[at + s] = c.key;
          args.score.data<float>()[at + s] = c.score;
          args.start.data<int32_t>()[at + s] =
              there ? static_cast<int32_t>(std::max(c.key - back, first)) : -1;
          args.end.data<int32_t>()[at + s] = there ? static_cast<int32_t>(std::min(c.key + ahead, last)) : -1;
        }
      }
    }
  });
}

void CpuBackend::pack_spans(Context& ctx, const PackSpansArgs& args) {
  const int64_t rows = args.order.dim(2), tiles = args.blocks.dim(2);
  parallel_items(ctx.threads(), args.order.dim(0) * args.order.dim(1) * tiles, [&](int64_t item) {
    const int64_t base = item / tiles * rows, tile = item % tiles;
    int64_t least = std::numeric_limits<int64_t>::max(), most = 0;
    for (int64_t r = tile * args.block_q; r < std::min(rows, (tile + 1) * args.block_q); ++r) {
      const int32_t span = args.order.data<int32_t>()[base + r];
      const int32_t start = args.start.data<int32_t>()[base + span];
      const bool there = start >= 0;
      const int32_t begin = there ? start : 0, end = there ? args.end.data<int32_t>()[base + span] + 1 : 0;
      args.query.data<int32_t>()[base + r] = span / static_cast<int32_t>(args.per_query);
      args.place.data<int32_t>()[base + span] = static_cast<int32_t>(r);
      args.row_begin.data<int32_t>()[base + r] = begin;
      args.row_end.data<int32_t>()[base + r] = end;
      if (begin < end) least = std::min<int64_t>(least, begin), most = std::max<int64_t>(most, end);
    }
    const int64_t from = most > 0 ? least / args.block_k : 0;
    args.first_block.data<int32_t>()[item] = static_cast<int32_t>(from);
    args.blocks.data<int32_t>()[item] =
        static_cast<int32_t>(most > 0 ? (most + args.block_k - 1) / args.block_k - from : 0);
  });
}

namespace {

template <class T>
void merge_rows(Context& ctx, const MergeSpansArgs& args) {
  const int64_t heads = args.o.dim(1), n = args.o.dim(2), e = args.o.dim(3), slots = args.score.dim(3);
  const int64_t row_bytes = (slots + 2) * e * static_cast<int64_t>(sizeof(T)) + 16 * slots;
  parallel_range(
      ctx.threads(), args.o.dim(0) * heads * n, std::max<int64_t>(kParallelBytes / row_bytes, 1),
      [&](int64_t begin, int64_t end) {
        std::vector<float> sum(static_cast<size_t>(e));
        for (int64_t r = begin; r < end; ++r) {
          const int64_t b = r / (heads * n), h = r / n % heads, i = r % n;
          const float* score = args.score.data<float>() + r * slots;
          float most = -std::numeric_limits<float>::infinity(), total = 0;
          for (int64_t s = 0; s < slots; ++s)
            if (score[s] > most || std::isnan(score[s])) most = score[s];
          for (int64_t s = 0; s < slots; ++s) total += std::exp(score[s] - most);
          std::fill(sum.begin(), sum.end(), 0.0f);
          const auto add = [&](float weight, const T* row) {
            if (weight == 0.0f) return;  // what carries no weight may hold anything
            for (int64_t x = 0; x < e; ++x)
              sum[static_cast<size_t>(x)] += weight * static_cast<float>(row[x]);
          };
          const float shared =
              args.shared ? args.shared_lse.data<float>()[r] : -std::numeric_limits<float>::infinity();
          float of_shared = 0;
          for (int64_t s = 0; s < slots; ++s) {
            const float gate = std::exp(score[s] - most) / total;
            const int64_t place = args.place.data<int32_t>()[r * slots + s];
            const float lse = args.lse.data<float>()[r / n * n * slots + place];
            const float top = lse > shared || std::isnan(lse) ? lse : shared;
            if (top == -std::numeric_limits<float>::infinity()) continue;
            const float own = std::exp(lse - top), other = std::exp(shared - top);
            add(gate * own / (own + other), args.spans.data<T>() + b * args.spans.stride(0) +
                                                h * args.spans.stride(1) + place * args.spans.stride(2));
            of_shared += gate * other / (own + other);
          }
          if (args.shared)
            add(of_shared, args.shared.data<T>() + b * args.shared.stride(0) + h * args.shared.stride(1) +
                               i * args.shared.stride(2));
          T* to = args.o.data<T>() + b * args.o.stride(0) + h * args.o.stride(1) + i * args.o.stride(2);
          for (int64_t x = 0; x < e; ++x) to[x] = T(sum[static_cast<size_t>(x)]);
        }
      });
}

}  // namespace

void CpuBackend::merge_spans(Context& ctx, const MergeSpansArgs& args) {
  if (args.o.dtype() == DType::f32) return merge_rows<float>(ctx, args);
  if (args.o.dtype() == DType::bf16) return merge_rows<bf16>(ctx, args);
  merge_rows<f16>(ctx, args);
}

}  // namespace attnbench
