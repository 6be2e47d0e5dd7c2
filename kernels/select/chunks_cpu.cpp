#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/select/chunks.hpp"

namespace attnbench {

namespace {

/// Columns whose sums a thread keeps together: keys of one strip, transposed, stay in the first-level cache.
constexpr int64_t kStrip = 64;

/// Column sums of A by distance of the row: exact for the distances at which a gap's range of rows may begin
/// or end, together for those between.
struct LagSums {
  std::vector<double> near, far;  ///< [B, N, 2 w]: distances 0 .. 2 w - 1, and reach .. reach + 2 w - 1
  std::vector<double> bulk;       ///< [B, N]: those from 2 w on (below reach)
};

void add_strip(const GapRatiosArgs& a, int64_t b, int64_t first, LagSums& sums, std::vector<float>& keys,
               std::vector<float>& row) {
  const int64_t heads = a.q.dim(1), n = a.q.dim(2), d = a.q.dim(3), group = heads / a.k.dim(1);
  const int64_t columns = std::min(kStrip, n - first), lags = 2 * a.w;
  const int64_t last = a.window < 0 ? n : std::min(n, first + columns + a.window);
  const auto size = static_cast<int64_t>(size_of(a.q.dtype()));
  const auto load = [&](const Tensor& t, int64_t h, int64_t token) {
    const int64_t at = b * t.stride(0) + h * t.stride(1) + token * t.stride(2);
    convert(static_cast<const char*>(t.raw()) + at * size, t.dtype(), row.data(), DType::f32, d);
  };
  keys.assign(static_cast<size_t>(d * kStrip), 0.0f), row.resize(static_cast<size_t>(d));
  for (int64_t h = 0; h < heads; ++h) {
    if (h % group == 0)
      for (int64_t j = 0; j < columns; ++j) {
        load(a.k, h / group, first + j);
        for (int64_t c = 0; c < d; ++c)
          keys[static_cast<size_t>(c * kStrip + j)] = row[static_cast<size_t>(c)];
      }
    for (int64_t r = first; r < last; ++r) {
      load(a.q, h, r);
      float s[kStrip] = {};
      for (int64_t c = 0; c < d; ++c) {
        const float q = row[static_cast<size_t>(c)];
        const float* k = keys.data() + c * kStrip;
        for (int64_t j = 0; j < kStrip; ++j) s[j] += q * k[j];
      }
      const float lse = a.lse.data<float>()[(b * heads + h) * n + r];
      const int64_t begin = a.window < 0 ? 0 : std::max<int64_t>(0, r - a.window - first);
      for (int64_t j = begin; j < std::min(columns, r - first + 1); ++j) {
        const auto p = static_cast<double>(std::exp(a.scale * s[j] - lse));
        const int64_t at = b * n + first + j, lag = r - first - j;
        if (lag < lags)
          sums.near[static_cast<size_t>(at * lags + lag)] += p;
        else if (a.reach == 0 || lag < a.reach)
          sums.bulk[static_cast<size_t>(at)] += p;
        else if (lag < a.reach + lags)
          sums.far[static_cast<size_t>(at * lags + lag - a.reach)] += p;
      }
    }
  }
}

}  // namespace

void CpuBackend::gap_ratios(Context& ctx, const GapRatiosArgs& args) {
  const int64_t batch = args.q.dim(0), heads = args.q.dim(1), n = args.q.dim(2), w = args.w, lags = 2 * w;
  LagSums sums;
  sums.near.assign(static_cast<size_t>(batch * n * lags), 0.0);
  sums.bulk.assign(static_cast<size_t>(batch * n), 0.0);
  if (args.reach > 0) sums.far.assign(sums.near.size(), 0.0);
  const int64_t strips = (n + kStrip - 1) / kStrip;
  std::vector<std::vector<float>> keys(static_cast<size_t>(ctx.threads())), rows(keys.size());
  // Early strips see the most rows; they go first.
  parallel_items(ctx.threads(), batch * strips, [&](int64_t item) {
    const auto thread = static_cast<size_t>(thread_index());
    add_strip(args, item % batch, item / batch * kStrip, sums, keys[thread], rows[thread]);
  });
  /// Sum of column j over the rows that count for a gap whose first row is `lag` below it.
  const auto column = [&](int64_t b, int64_t j, int64_t lag) {
    const int64_t at = b * n + j;
    double sum = sums.bulk[static_cast<size_t>(at)];
    for (int64_t e = lag; e < lags; ++e) sum += sums.near[static_cast<size_t>(at * lags + e)];
    if (args.reach > 0)
      for (int64_t e = 0; e < lag; ++e) sum += sums.far[static_cast<size_t>(at * lags + e)];
    return sum / static_cast<double>(heads);
  };
  parallel_range(ctx.threads(), batch * n, std::max<int64_t>(1, kParallelBytes / (16 * lags * lags)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t b = i / n, t = i % n;
                     double past = 0, future = 0, ratio = 0;
                     if (t >= lags - 1 && t < n - lags) {
                       for (int64_t c = 0; c < w; ++c) {
                         past += column(b, t - c, w + c);
                         future += column(b, t + 1 + c, w - 1 - c);
                       }
                       ratio = (std::max(past, future) + 1e-6) / (std::min(past, future) + 1e-6);
                     }
                     args.score.data<float>()[i] = static_cast<float>(ratio);
                   }
                 });
}

void CpuBackend::pick_spaced(Context& ctx, const PickSpacedArgs& args) {
  const RowOffsets scores(args.score, 1), orders(args.order, 1), flags(args.flag, 1);
  const int64_t m = args.score.dim(-1);
  parallel_items(ctx.threads(), scores.count(), [&](int64_t row) {
    const float* score = args.score.data<float>() + scores.offset(row);
    const int32_t* order = args.order.data<int32_t>() + orders.offset(row);
    uint8_t* flag = args.flag.data<uint8_t>() + flags.offset(row);
    std::fill(flag, flag + m, uint8_t{0});
    int64_t chosen = 0;
    if (args.forced >= 0) flag[args.forced] = 1, ++chosen;
    for (int64_t i = 0; i < m; ++i) {
      const int64_t t = order[i];
      if (score[t] <= args.threshold) break;
      if (!(score[t] > args.threshold) || t > args.last) continue;
      const int64_t low = std::max<int64_t>(0, t - args.spacing);
      const int64_t high = args.spacing >= m - t ? m : t + args.spacing + 1;
      if (std::find(flag + low, flag + high, uint8_t{1}) != flag + high) continue;
      flag[t] = 1;
      if (++chosen >= args.limit) break;
    }
  });
}

void CpuBackend::chunk_lists(Context& ctx, const ChunkListsArgs& args) {
  const int64_t nq = args.order.dim(1), chunks = args.order.dim(2), k = args.tokens.dim(2);
  std::vector<std::vector<int64_t>> takes(static_cast<size_t>(ctx.threads()));
  parallel_items(ctx.threads(), args.lists.count.numel(), [&](int64_t row) {
    const int64_t block = row % nq, start = args.first + block * args.block_q, end = start + args.block_q;
    const int64_t hi = std::min(args.n, end);
    const int64_t lo = args.window > 0 ? std::clamp<int64_t>(end - args.window, 0, hi) : 0;
    const int64_t recent = std::min({args.recent, k, hi - lo}), cut = hi - recent;
    const int32_t* bounds =
        args.bounds.data<int32_t>() + (args.bounds.dim(0) > 1 ? row / nq * (chunks + 1) : 0);
    const auto keys_begin = [&](int64_t c) { return std::max<int64_t>(bounds[c], lo); };
    const auto keys_of = [&](int64_t c) {
      return bounds[c + 1] < 0 ? 0
                               : std::max<int64_t>(0, std::min<int64_t>(bounds[c + 1], cut) - keys_begin(c));
    };
    std::vector<int64_t>& take = takes[static_cast<size_t>(thread_index())];
    take.assign(static_cast<size_t>(chunks), 0);
    const int32_t* order = args.order.data<int32_t>() + row * chunks;
    int64_t rest = k - recent;
    for (int64_t i = 0; i < chunks && rest > 0; ++i) {
      const int64_t n = std::min(rest, keys_of(order[i]));
      take[static_cast<size_t>(order[i])] = n;
      rest -= n;
    }
    int32_t* token = args.tokens.data<int32_t>() + row * k;
    int64_t used = 0;
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t i = 0; i < take[static_cast<size_t>(c)]; ++i)
        token[used++] = static_cast<int32_t>(keys_begin(c) + i);
    for (int64_t j = cut; j < hi; ++j) token[used++] = static_cast<int32_t>(j);
    std::fill(token + used, token + k, static_cast<int32_t>(args.n - 1));
    const int64_t leader = args.window > 0 ? std::max<int64_t>(0, start - args.window) : 0;
    for (int64_t i = 0; i < std::min(args.leading, k); ++i)
      token[i] = static_cast<int32_t>(std::min(leader + i, hi - 1));

    const int64_t seen = std::min(end, args.first + args.rows);
    int32_t* index = args.lists.index.data<int32_t>() + row * k;
    int64_t listed = 0;
    for (int64_t i = 0; i < k; ++i)
      if (token[i] < seen && (i == 0 || token[i] != token[i - 1])) index[listed++] = token[i];
    args.lists.begin.data<int32_t>()[row] = static_cast<int32_t>(row * k);
    args.lists.count.data<int32_t>()[row] = static_cast<int32_t>(listed);
  });
}

}  // namespace attnbench
