// top_p on CUDA without sorting where it can be: the column at which the running sum ends is found by the
// bits of its score, from the highest, with the sum of every range that is passed. Rows that a warp holds in
// registers, longer ones by many blocks with a digit a launch; what neither serves is sorted (cuda_sort.cu).
// Sums are f64 in orders that do not change from run to run.
#include <algorithm>

#include "kernels/select/rank.cuh"

namespace attnbench {
namespace select {
namespace {

struct TopPRule {
  double p;
  bool share, inclusive, diagonal;
  int64_t lag, min_keep, forced_first;

  __device__ bool forced(int64_t j, int64_t diagonal_column) const {
    return j < forced_first || (diagonal && j == diagonal_column);
  }
  __device__ bool goes_on(double s, double reach) const { return inclusive ? s <= reach : s < reach; }
  /// The r-th column is the first one dropped when r > min_keep, r >= lag and S_{r - lag} does not go on; the
  /// first S that may decide so.
  __device__ int64_t first_decisive() const {
    return max(lag == 0 ? int64_t{1} : int64_t{0}, min_keep + 1 - lag);
  }
};

/// The score whose key (~order_of) this is.
__device__ double score_of(uint32_t key) {
  const uint32_t order = ~key;
  return static_cast<double>(__uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order));
}

/// The first j in [1, copies] with which sum + j score does not go on; copies when rounding says none.
__device__ int64_t copies_until(const TopPRule& rule, double sum, double score, int64_t copies,
                                double reach) {
  int64_t low = 1, high = copies;
  while (low < high) {
    const int64_t j = (low + high) / 2;
    if (rule.goes_on(sum + static_cast<double>(j) * score, reach))
      low = j + 1;
    else
      high = j;
  }
  return low;
}

// ---- rows of a warp ---------------------------------------------------------------------------------------

/// The first q >= 1 whose S_q = sum + the q best scores does not go on, which some q <= `left` is known to
/// be. As long as scores are not negative the sums grow, so a range whose sum goes on can be passed whole;
/// behind the first negative one they only fall.
template <int kPer>
__device__ int first_failing(const uint32_t (&key)[kPer], const TopPRule& rule, double sum, double reach,
                             int left) {
  uint32_t prefix = 0;
  int below = 0;
  for (int bit = 31; bit >= 0 && left > 1; --bit) {
    const uint32_t begin = prefix >> bit;  // ends in 0: the keys that do not compete, all ones, never match
    int own = 0;
    double part = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      if (key[i] >> bit == begin) ++own, part += score_of(key[i]);
    const int matching = __reduce_add_sync(0xffffffffu, own);
    if (matching == left) continue;  // the one that fails is among them
    if (matching > 0) {
      part = warp_reduce(part, Add{});
      if (!rule.goes_on(sum + part, reach)) {
        left = matching;
        continue;
      }
      sum += part, below += matching, left -= matching;
    }
    prefix |= 1u << bit;
  }
  if (left <= 1) return below + 1;
  return below + static_cast<int>(copies_until(rule, sum, score_of(prefix), left, reach));
}

/// Sum of the scores that a cut takes.
template <int kPer>
__device__ double sum_of(const uint32_t (&key)[kPer], Cut cut, unsigned lower) {
  int met = 0;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i)
    if (cut.takes(key[i], key[i] != 0xffffffffu, lower, met)) sum += score_of(key[i]);
  return warp_reduce(sum, Add{});
}

template <int kPer>
__global__ void __launch_bounds__(kThreads, 2)
    top_p_warp_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopPRule rule, int64_t rows,
                      int32_t* count, uint8_t* flag, DeviceRows flags) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned lower = (1u << lane) - 1u;
  const int first = static_cast<int>(min(rule.first_decisive(), int64_t{1} << 30));
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; row < rows;
       row += step) {
    const float* from = x + xs.offset(row);
    const int64_t seen = visible.end(row), diagonal = visible.query(row) + visible.offset;
    uint32_t key[kPer];
    double forced_sum = 0, others_sum = 0, rising = 0;
    int forced = 0, negative = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = lane + 32 * i;
      key[i] = 0xffffffffu;
      if (j >= seen) continue;
      const float score = from[j];
      const double v = static_cast<double>(score);
      if (rule.forced(j, diagonal)) {
        forced_sum += v, ++forced;
        continue;
      }
      // No score maps to the last key: ~order of -inf is 0xff800000.
      key[i] = ~order_of(score);
      others_sum += v;
      if (v < 0)
        negative = 1;
      else
        rising += v;
    }
    forced_sum = warp_reduce(forced_sum, Add{});
    rising = warp_reduce(rising, Add{});
    forced = __reduce_add_sync(0xffffffffu, forced);
    const int others = static_cast<int>(seen) - forced;
    double reach = rule.p;
    if (rule.share) reach *= forced_sum + warp_reduce(others_sum, Add{});
    // q: of the first S_q, q >= first, that does not go on.
    int q = others + 1;
    if (!rule.goes_on(forced_sum, reach))
      q = 0;
    else if (others > 0 && !rule.goes_on(forced_sum + rising, reach))
      q = first_failing<kPer>(key, rule, forced_sum, reach, others);
    if (q < first) {
      q = first;
      // Negative scores may have brought the sum back below the reach; then it stays there.
      if (__any_sync(0xffffffffu, negative) && first <= others &&
          rule.goes_on(forced_sum + sum_of<kPer>(key, best_of<kPer>(key, first, others), lower), reach))
        q = others + 1;
    }
    const int kept = static_cast<int>(min(static_cast<int64_t>(others), q + rule.lag - 1));
    if (count && lane == 0) count[row] = forced + max(kept, 0);
    if (!flag) continue;
    uint8_t* to = flag + flags.offset(row);
    const Cut cut = best_of<kPer>(key, kept, others);
    int met = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = lane + 32 * i;
      const bool chosen = cut.takes(key[i], key[i] != 0xffffffffu, lower, met);
      if (j < visible.m) to[j] = chosen || (j < seen && rule.forced(j, diagonal));
    }
  }
}

// ---- long rows --------------------------------------------------------------------------------------------

/// A digit a launch: sums and counts of the sixteen next digits of every part of a row; the last block of a
/// row picks the digit under which the sum ends.
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits, kLevels = 32 / kDigitBits;
constexpr int kPart = 8192;

struct MassState {
  double sum;       ///< of the keys below the prefix
  int64_t below;    ///< how many they are
  uint32_t prefix;  ///< in the end the key at which the sum ends
  int32_t whole;    ///< everything visible is kept
  int64_t ties;     ///< in the end: keys equal to the prefix that are kept
};
struct MassParts {
  double* sums;  ///< [rows, parts, kDigits]
  int32_t* counts;
  unsigned* arrived;  ///< [kLevels, rows], zero before
  MassState* states;  ///< [rows]
  int64_t rows, parts;
};

/// Thread 0 of the last block: the digit under which the sum ends, from the sums of all digits.
__device__ void pick_digit(const TopPRule& rule, MassState& s, int level, const double* sums,
                           const int64_t* counts, int64_t seen, int32_t* count) {
  const int shift = 32 - kDigitBits * (level + 1);
  int digit = -1, last = 0;
  for (int d = 0; d < kDigits && digit < 0; ++d) {
    if (counts[d] == 0) continue;
    last = d;
    if (!rule.goes_on(s.sum + sums[d], rule.p)) {
      digit = d;
      continue;
    }
    s.sum += sums[d], s.below += counts[d];
  }
  if (digit < 0 && level == 0) {
    s.whole = 1;
    if (count) *count = static_cast<int32_t>(seen);
    return;
  }
  if (digit < 0) digit = last, s.sum -= sums[last], s.below -= counts[last];  // the last rounding's doing
  s.prefix |= static_cast<uint32_t>(digit) << shift;
  if (level + 1 < kLevels) return;
  const int64_t j = copies_until(rule, s.sum, score_of(s.prefix), counts[digit], rule.p);
  s.ties = j + rule.lag - 1;
  if (count) *count = static_cast<int32_t>(s.below + s.ties);
}

__global__ void __launch_bounds__(kThreads)
    mass_level_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopPRule rule, MassParts all,
                      Divisor parts, int level, int32_t* count) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double warp_sums[kWarps][kDigits];
  __shared__ int warp_counts[kWarps][kDigits];
  __shared__ double digit_sums[kThreads / kDigits][kDigits];
  __shared__ int64_t digit_counts[kThreads / kDigits][kDigits];
  __shared__ bool is_last;
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const int64_t row = parts.of(blockIdx.x), part = blockIdx.x - row * all.parts;
  const int64_t seen = visible.end(row), active = (seen + kPart - 1) / kPart;
  if (seen == 0 && part == 0 && level == 0 && t == 0 && count) count[row] = 0;
  if (part >= active) return;
  MassState state{};
  if (level > 0) state = all.states[row];
  if (state.whole) return;
  const float* from = x + xs.offset(row);
  const int shift = 32 - kDigitBits * (level + 1);
  double sum[kDigits] = {};
  int number[kDigits] = {};
  const int64_t end = min(seen, (part + 1) * kPart);
  for (int64_t j = part * kPart + t; j < end; j += kThreads) {
    const uint32_t key = ~order_of(from[j]);
    // Two shifts: one by 32 is not defined.
    if (((key ^ state.prefix) >> (shift + kDigitBits - 1)) >> 1 != 0) continue;
    const int digit = static_cast<int>(key >> shift) & (kDigits - 1);
    const double score = score_of(key);
#pragma unroll
    for (int d = 0; d < kDigits; ++d)
      if (digit == d) sum[d] += score, ++number[d];
  }
#pragma unroll
  for (int d = 0; d < kDigits; ++d) {
    const double s = warp_reduce(sum[d], Add{});
    const int n = __reduce_add_sync(0xffffffffu, number[d]);
    if (lane == 0) warp_sums[warp][d] = s, warp_counts[warp][d] = n;
  }
  __syncthreads();
  const int64_t at = (row * all.parts + part) * kDigits;
  if (t < kDigits) {
    double s = 0;
    int n = 0;
    for (int w = 0; w < kWarps; ++w) s += warp_sums[w][t], n += warp_counts[w][t];
    all.sums[at + t] = s, all.counts[at + t] = n;
    __threadfence();
  }
  __syncthreads();
  if (t == 0)
    is_last = atomicAdd(&all.arrived[level * all.rows + row], 1u) + 1 == static_cast<unsigned>(active);
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const int digit = t % kDigits, first = t / kDigits;
  double s = 0;
  int64_t n = 0;
  for (int64_t p = first; p < active; p += kThreads / kDigits) {
    const int64_t i = (row * all.parts + p) * kDigits + digit;
    s += __ldcg(all.sums + i), n += __ldcg(all.counts + i);
  }
  digit_sums[first][digit] = s, digit_counts[first][digit] = n;
  __syncthreads();
  if (t < kDigits) {
    for (int f = 1; f < kThreads / kDigits; ++f)
      digit_sums[0][t] += digit_sums[f][t], digit_counts[0][t] += digit_counts[f][t];
  }
  __syncthreads();
  if (t != 0) return;
  pick_digit(rule, state, level, digit_sums[0], digit_counts[0], seen, count ? count + row : nullptr);
  all.states[row] = state;
}

__global__ void __launch_bounds__(kThreads)
    mass_flags_kernel(const float* x, DeviceRows xs, DeviceVisible visible, MassParts all, Divisor parts,
                      uint8_t* flag, DeviceRows flags) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int t = static_cast<int>(threadIdx.x);
  const int64_t row = parts.of(blockIdx.x), part = blockIdx.x - row * all.parts;
  const int64_t seen = visible.end(row), begin = part * kPart, end = min(visible.m, begin + kPart);
  const float* from = x + xs.offset(row);
  uint8_t* to = flag + flags.offset(row);
  if (begin >= seen) {
    for (int64_t j = begin + t; j < end; j += kThreads) to[j] = 0;
    return;
  }
  const MassState state = all.states[row];
  if (state.whole) {
    for (int64_t j = begin + t; j < end; j += kThreads) to[j] = j < seen;
    return;
  }
  // The last launch counted, part by part, the keys that equal the prefix under its last digit.
  const int64_t last_digit = static_cast<int64_t>(state.prefix & (kDigits - 1));
  int64_t before = 0;
  for (int64_t p = 0; p < part; ++p) before += all.counts[(row * all.parts + p) * kDigits + last_digit];
  const int64_t own = all.counts[(row * all.parts + part) * kDigits + last_digit];
  const bool none = before >= state.ties, every = before + own <= state.ties;
  for (int64_t base = begin; base < end; base += kChunk) {
    int tie[kItems], rank[kItems], chunk = 0;
    bool less[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t j = base + t * kItems + i;
      const uint32_t key = j < seen && j < end ? ~order_of(from[j]) : 0xffffffffu;
      less[i] = key < state.prefix;
      tie[i] = key == state.prefix && j < seen && j < end;
      rank[i] = 0;
    }
    if (!none && !every) {
      __syncthreads();
      Scan(storage).ExclusiveSum(tie, rank, chunk);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t j = base + t * kItems + i;
      if (j < end) to[j] = less[i] || (tie[i] && !none && (every || before + rank[i] < state.ties));
    }
    before += chunk;
  }
}

/// Whether the launches above give what the rule asks for: nothing forced or relative to a sum, an empty set
/// that goes on, and a set that ends at the column where the sum does.
bool by_digits(const TopPArgs& a) {
  return !a.share && a.forced_first == 0 && !a.forced_diagonal && (a.inclusive ? a.p >= 0 : a.p > 0) &&
         a.lag <= 1 && a.min_keep <= a.lag;
}

void top_p_by_digits(Context& ctx, const TopPArgs& args, const TopPRule& rule) {
  const int64_t m = args.x.dim(-1);
  const DeviceRows xs(args.x, 1);
  const DeviceVisible visible(args.x, args.visible);
  MassParts all{};
  all.rows = xs.count, all.parts = (m + kPart - 1) / kPart;
  const int64_t blocks = all.rows * all.parts;
  const Tensor sums = ctx.allocate(DType::f64, {blocks * kDigits}),
               counts = ctx.allocate(DType::i32, {blocks * kDigits}),
               arrived = ctx.allocate(DType::i32, {kLevels * all.rows}),
               states = ctx.allocate(DType::u8, {all.rows * static_cast<int64_t>(sizeof(MassState))});
  all.sums = sums.data<double>(), all.counts = counts.data<int32_t>();
  all.arrived = static_cast<unsigned*>(arrived.raw());
  all.states = static_cast<MassState*>(states.raw());
  const cudaStream_t stream = stream_of(ctx);
  CUDA_CHECK(cudaMemsetAsync(arrived.raw(), 0, static_cast<size_t>(arrived.nbytes()), stream));
  const Divisor parts(all.parts);
  for (int level = 0; level < kLevels; ++level) {
    mass_level_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        args.x.data<float>(), xs, visible, rule, all, parts, level,
        args.count ? args.count.data<int32_t>() : nullptr);
    CUDA_CHECK_LAUNCH();
  }
  if (!args.flag) return;
  mass_flags_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      args.x.data<float>(), xs, visible, all, parts, args.flag.data<uint8_t>(), DeviceRows(args.flag, 1));
  CUDA_CHECK_LAUNCH();
}

// ---- sorted rows ------------------------------------------------------------------------------------------

/// Columns that compete, best first; forced and invisible ones last.
__global__ void __launch_bounds__(kThreads)
    top_p_keys_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopPRule rule, uint32_t* keys,
                      Divisor m, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = m.of(i), j = i - row * m.n;
    const bool competes = j < visible.end(row) && !rule.forced(j, visible.query(row) + visible.offset);
    // No score but the smallest-mode NaN maps to the last key: ~order of -inf is 0xff800000.
    keys[i] = competes ? ~order_of(x[xs.offset(row) + j]) : 0xffffffffu;
  }
}

__global__ void __launch_bounds__(kThreads)
    top_p_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopPRule rule, const int32_t* columns,
                 int64_t rows, int32_t* count, uint8_t* flag, DeviceRows flags) {
  using Scan = cub::BlockScan<double, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  __shared__ unsigned long long first_dropped;
  const int64_t m = visible.m;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float* from = x + xs.offset(row);
    const int32_t* order = columns + row * m;
    uint8_t* to = flag ? flag + flags.offset(row) : nullptr;
    const int64_t seen = visible.end(row), diagonal = visible.query(row) + visible.offset;
    double total = 0, sum = 0, forced = 0;
    for (int64_t j = threadIdx.x; j < m; j += kThreads) {
      const bool is_forced = j < seen && rule.forced(j, diagonal);
      if (to) to[j] = is_forced;
      if (j >= seen) continue;
      const double v = static_cast<double>(from[j]);
      total += v;
      if (is_forced) sum += v, forced += 1;
    }
    total = block_reduce<kThreads>(total, Add{});
    sum = block_reduce<kThreads>(sum, Add{});
    const int64_t forced_count = static_cast<int64_t>(block_reduce<kThreads>(forced, Add{}));
    const int64_t others = seen - forced_count;
    const double reach = rule.share ? rule.p * total : rule.p;
    const int64_t first = rule.first_decisive();
    if (threadIdx.x == 0)
      first_dropped = first == 0 && !rule.goes_on(sum, reach) ? static_cast<unsigned long long>(rule.lag)
                                                              : static_cast<unsigned long long>(others + 1);
    __syncthreads();
    // S_q of the q-th column of each chunk; the first that does not go on ends the row.
    for (int64_t base = 0; base < others && first_dropped > static_cast<unsigned long long>(base);
         base += kChunk) {
      double v[kItems], chunk;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t at = base + static_cast<int64_t>(threadIdx.x) * kItems + i;
        v[i] = at < others ? static_cast<double>(from[order[at]]) : 0.0;
      }
      Scan(storage).InclusiveSum(v, v, chunk);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t q = base + static_cast<int64_t>(threadIdx.x) * kItems + i + 1;
        if (q <= others && q >= first && !rule.goes_on(sum + v[i], reach))
          atomicMin(&first_dropped, static_cast<unsigned long long>(q + rule.lag));
      }
      sum += chunk;
      __syncthreads();
    }
    const int64_t kept = min(others, max(static_cast<int64_t>(first_dropped) - 1, int64_t{0}));
    if (to)
      for (int64_t p = threadIdx.x; p < kept; p += kThreads) to[order[p]] = 1;
    if (count && threadIdx.x == 0) count[row] = static_cast<int32_t>(forced_count + kept);
    __syncthreads();
  }
}

void top_p_sorted(Context& ctx, const TopPArgs& args, const TopPRule& rule) {
  const int64_t m = args.x.dim(-1), all = DeviceRows(args.x, 1).count;
  const Tensor keys = ctx.allocate(DType::i32, {all * m}), columns = ctx.allocate(DType::i32, {all * m});
  auto* key = static_cast<uint32_t*>(keys.raw());
  const DeviceRows xs(args.x, 1);
  const DeviceVisible visible(args.x, args.visible);
  if (m > 0) {
    top_p_keys_kernel<<<grid_for(ctx, all * m, kThreads), kThreads, 0, stream_of(ctx)>>>(
        args.x.data<float>(), xs, visible, rule, key, Divisor(m), all * m);
    CUDA_CHECK_LAUNCH();
    sort_rows(ctx, key, all, m, nullptr, columns.data<int32_t>());
  }
  top_p_kernel<<<grid_for(ctx, all * kThreads, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.x.data<float>(), xs, visible, rule, columns.data<int32_t>(), all,
      args.count ? args.count.data<int32_t>() : nullptr, args.flag ? args.flag.data<uint8_t>() : nullptr,
      args.flag ? DeviceRows(args.flag, 1) : DeviceRows());
  CUDA_CHECK_LAUNCH();
}

}  // namespace
}  // namespace select

using namespace select;

void CudaBackend::top_p(Context& ctx, const TopPArgs& args) {
  const int64_t m = args.x.dim(-1);
  const DeviceRows xs(args.x, 1);
  const TopPRule rule{args.p,   args.share,    args.inclusive,   args.forced_diagonal,
                      args.lag, args.min_keep, args.forced_first};
  if (m > 2048) return by_digits(args) ? top_p_by_digits(ctx, args, rule) : top_p_sorted(ctx, args, rule);
  const auto run = [&](auto kernel) {
    kernel<<<grid_for(ctx, xs.count * 32, kThreads), kThreads, 0, stream_of(ctx)>>>(
        args.x.data<float>(), xs, DeviceVisible(args.x, args.visible), rule, xs.count,
        args.count ? args.count.data<int32_t>() : nullptr, args.flag ? args.flag.data<uint8_t>() : nullptr,
        args.flag ? DeviceRows(args.flag, 1) : DeviceRows());
    CUDA_CHECK_LAUNCH();
  };
  if (m <= 256)
    run(top_p_warp_kernel<8>);
  else if (m <= 1024)
    run(top_p_warp_kernel<32>);
  else
    run(top_p_warp_kernel<64>);
}

}  // namespace attnbench
