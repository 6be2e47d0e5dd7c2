// Short-time Fourier transform and its inverse: frames, window, borders, transform. Not a filter bank: a
// frame's spectrum is one real transform.
//
// Frame t covers the points t hop - offset .. t hop - offset + n_fft - 1 of the signal; its window lies at
// window_offset .. window_offset + W - 1 inside it, the rest is zero. So
//   torch.stft, centred:      offset = n_fft / 2, window_offset = (n_fft - W) / 2, border reflect
//   scipy.signal.stft:        offset = W / 2, window_offset = 0, border zeros (frames of W <= n_fft points)
//   neither border:           offset = 0, border none
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// What a frame reads outside of the signal.
enum class SignalBorder : uint8_t {
  none,     ///< nothing: such a frame is an error
  zeros,    ///< zeros
  reflect,  ///< x[-i] = x[i], x[N - 1 + i] = x[N - 1 - i]; at most N - 1 points on each side
};

/// x [..., N] (f32, packed rows), window [W] f32 -> y [..., T, n_fft/2+1, 2] f32, scaled by `scale`. Cost: T
/// real transforms of n_fft points per signal (fft1_flops) and elementwise W per frame (window). With `f64`
/// the products with the window and the transform are in f64, rounded once at the end: for quotients by small
/// bins.
struct StftArgs {
  Tensor x, window, y;
  int64_t n_fft = 0, hop = 0;
  int64_t offset = 0, window_offset = 0;
  SignalBorder border = SignalBorder::none;
  float scale = 1.0f;
  bool f64 = false;
};
void stft(Context& ctx, const StftArgs& args);
/// What stft charges for `signals` signals of n points with `frames` frames each.
Cost stft_cost(int64_t signals, int64_t n, int64_t frames, int64_t n_fft, int64_t window);

/// The least-squares inverse: y_j = sum_t w(j - start_t) frame_t / sum_t w(j - start_t)^2 with the frames'
/// inverse real transforms, x [..., T, n_fft/2+1, 2] -> y [..., N]. Where the sum of squares is below 1e-11,
/// y is the sum itself. Frames are added in order of time. Cost: T real transforms per signal, elementwise 2
/// W per frame and N per signal; special N per signal (division).
struct IstftArgs {
  Tensor x, window, y;
  int64_t n_fft = 0, hop = 0;
  int64_t offset = 0, window_offset = 0;
  float scale = 1.0f;
};
void istft(Context& ctx, const IstftArgs& args);
/// What istft charges.
Cost istft_cost(int64_t signals, int64_t n, int64_t frames, int64_t n_fft, int64_t window);

}  // namespace attnbench
