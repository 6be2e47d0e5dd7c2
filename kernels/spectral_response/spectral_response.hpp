// Statistics of time-varying transfer functions (efr_spectral, arXiv 2507.05635), and the search for peaks
// and the histogram that reduce them. Not transforms: spectra come from stft.hpp.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// One excitation and Ch responses, cell by cell and over time, in one pass over the frames.
///   H_c = Y_c conj(X) / (|X|^2 + eps^2), 0 where that denominator is 0      R_c = mean_t |H_c|
///   Phi_c = mean_t (arg Y_c - arg X), not wrapped again (phase_ratio: mean_t arg H_c); bins whose transform
///   is real (0 and, for even n_fft, n_fft/2) have arg 0 or +pi CSD_cd = |sum_t G_c conj(G_d)|     Coef_cd =
///   CSD_cd / sqrt(sum_t |G_c|^2 sum_t |G_d|^2), 0 / 0 = 0 with G = H, or Y (from_response); pairs c < d in
///   lexicographic order.
/// x [B, T, F, 2], y [B, Ch, T, F, 2] f32, packed; r, phi [B, Ch, F], csd, coef [B, Pr, F] f32 packed; h [B,
/// Ch, F, T, 2] f32 packed or none. Sums over time in f64, or f32 (f32_sums), in order of time. Cost per cell
/// and channel: elementwise 22 (the card's count), special 1 (arg Y); per cell special 1 (arg X); per cell
/// and pair elementwise 8; per pair and bin special 2.
struct TransferStatisticsArgs {
  Tensor x, y, r, phi, csd, coef, h;
  int64_t n_fft = 0;
  float eps = 0.0f;
  bool phase_ratio = false, from_response = false, f32_sums = false;
};
void transfer_statistics(Context& ctx, const TransferStatisticsArgs& args);
/// What transfer_statistics charges for these arguments.
Cost transfer_statistics_cost(const TransferStatisticsArgs& args);

/// Peaks of curves: x [..., n] f32 packed rows -> index i32 [..., K], ascending, and width f32 [..., K]
/// (optional), both padded with -1. A peak is a strict local maximum, a flat top counts once at the floor of
/// its middle; end points are none. With `log10` the curve is log10 x (a zero is -infinity). Peaks of at
/// least the height `fraction` x maximum - with `by_deviation` fraction x maximum x mean / population
/// deviation - are kept; then, from the highest down (equal heights: the later first), every other one nearer
/// than `distance` is dropped. More than K: the first K of the row. The width is taken at peak - 0.9
/// prominence between linearly interpolated crossings; the prominence is the height above the higher of the
/// two lowest points found on each side before the curve exceeds the peak or ends. Arithmetic in f64. Cost
/// per point: elementwise 4; special 1 with log10.
struct FindPeaksArgs {
  Tensor x, index, width;
  bool log10 = false;
  double fraction = 0.5;
  bool by_deviation = false;
  int64_t distance = 1;
};
void find_peaks(Context& ctx, const FindPeaksArgs& args);

/// Histograms of pooled bin indices: index i32 [B, Ch, K] (negative entries are none), edges f32 [Ch, bins +
/// 1], counts i32 [Ch, bins]: equal bins between the smallest and the largest value index * scale of a
/// channel over B and K, the last one closed; one value alone spreads to +-0.5, no value gives edges 0 .. 1
/// and counts 0. Cost: elementwise 2 per index.
struct HistogramArgs {
  Tensor index, counts, edges;
  double scale = 1.0;
};
void histogram(Context& ctx, const HistogramArgs& args);

}  // namespace attnbench
