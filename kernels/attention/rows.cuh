// What one query row may see as ranges of key tokens, and the last step of a row's softmax: shared by the
// tensor-core kernels of every generation. No tiles, no shared memory.
#pragma once
#include "kernels/attention/cuda_params.cuh"
#include "kernels/attention/mma.cuh"

namespace attnbench::cuda_attention {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;

/// Keys of a row: [low, high) by the rule's ranges, the row's own range and the valid keys; [row_low,
/// row_high) by the last two alone; sinks are [row_low, sink_high). Empty ranges are [0, 0). Neighbourhoods:
/// the run of places on every axis (see axis_run), and on the outermost one also low and high.
struct RowLimits {
  int token = -1;  ///< -1: no such row
  int low = 0, high = 0, row_low = 0, row_high = 0, sink_high = 0;
  int place[3] = {}, length[3] = {};
};
template <bool Neighbourhoods = true>
__device__ inline RowLimits row_limits(const Params& p, int64_t b, int head, int64_t slot) {
  RowLimits x;
  const int i = slot < 0 ? -1 : query_token(p, slot);
  x.token = i;
  if (i < 0) return x;
  const int64_t keys = keys_of(p, b);
  int64_t low = 0, high = keys, row_low = 0, row_high = keys, sink = 0;
  if (p.row_begin.data) {
    row_low = max(row_low, static_cast<int64_t>(p.row_begin.at(b, head, i)));
    row_high = min(row_high, static_cast<int64_t>(p.row_end.at(b, head, i)));
  }
  const DeviceRule& rule = p.rule;
  const int64_t centre = i + rule_offset(p, b);
  if (rule.causal) high = min(high, centre + 1);
  if (rule.band && rule.left >= 0) low = max(low, centre - rule.left);
  if (rule.band && rule.right >= 0) high = min(high, centre + rule.right + 1);
  if (rule.band && rule.sinks > 0) {
    sink = min(rule.sinks, row_high);
    if (rule.causal) sink = max(int64_t{0}, min(sink, centre + 1));
  }
  if (Neighbourhoods && rule.rank > 0) {
    int at[3] = {}, inner = 1;
    coordinates(rule, i, rule.q_tile, rule.q_tiles, at);
#pragma unroll
    for (int a = 2; a >= 0; --a)
      if (a < rule.rank) {
        if (at[a] >= rule.grid[a]) {  // padding
          low = high = 0;
          continue;
        }
        const AxisRun run = axis_run(rule, a, at[a]);
        x.place[a] = run.low, x.length[a] = run.length;
        // Keys follow each other along the outermost axis.
        if (a == 0 && (rule.k_tile[0] == 0 || (rule.rank == 1 && rule.dilation[0] == 1))) {
          int first, end;
          axis_hull(rule, 0, at[0], first, end);
          low = max(low, static_cast<int64_t>(first) * inner),
          high = min(high, static_cast<int64_t>(end) * inner);
        }
        inner *= rule.grid[a];
      }
  }
  low = max(low, row_low), high = min(high, row_high);
  if (low >= high) low = high = 0;
  if (row_low >= row_high) row_low = row_high = sink = 0;
  x.low = static_cast<int>(low), x.high = static_cast<int>(high);
  x.row_low = static_cast<int>(row_low), x.row_high = static_cast<int>(row_high);
  x.sink_high = static_cast<int>(max(sink, row_low));
  return x;
}

/// The last step of a row: its weight 1 / sum, and the statistics. top is the maximum in log2 units, logs the
/// sum of p log2 p relative to it.
__device__ __forceinline__ float finish_row(const Params& p, int64_t b, int head, int token, float top,
                                            float sum, float logs, bool write) {
  // A row that attends to nothing, or to scores of -inf alone: a sink changes nothing about that.
  const bool empty = top == -INFINITY && sum == 0.0f;
  const float row_max = isnan(sum) && top != INFINITY ? sum : top * kLn2;
  float share = 1.0f;
  if (p.sink && !empty) {
    const float sink = p.sink[head * p.sink_step] * kLog2e;
    const float high = fmaxf(top, sink);
    share = exp2_fast(top - high);
    const float extra = exp2_fast(sink - high);
    logs =
        share * (logs + (share > 0 ? (top - high) * sum : 0.0f)) + (extra > 0 ? extra * (sink - high) : 0.0f);
    sum = sum * share + extra;
    top = high;
  }
  if (write && (p.lse.data || p.row_sums.data || p.row_max.data || p.row_entropy.data)) {
    const float lse = empty ? -INFINITY : (top + log2f(sum)) * kLn2;
    p.lse.put(b, head, token, lse);
    p.row_sums.put(b, head, token, lse);
    p.row_max.put(b, head, token, empty ? -INFINITY : row_max);
    p.row_entropy.put(b, head, token, empty ? 0.0f : (log2f(sum) - logs / sum) * kLn2);
  }
  return empty ? 0.0f : share / sum;
}

}  // namespace attnbench::cuda_attention
