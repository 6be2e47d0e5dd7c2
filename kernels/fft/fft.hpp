// Two-dimensional Fourier transforms and the pointwise work on spectra.
//
// Complex tensors are f32 with a trailing axis of 2 (re, im), interleaved. Arithmetic is f32 whatever the
// method's dtype (mfm card: FFTs in fp32). Plans are made once per shape and kept. Cost (matmul class, by the
// usual convention): 5 n log2 n per complex transform of n points, half for a real one, rounded to the
// nearest integer.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Batched 2-D transform over the two last spatial axes.
///   real_to_half:  x [..., H, W] (f32) -> y [..., H, W/2+1, 2]
///   half_to_real:  x [..., H, W/2+1, 2] -> y [..., H, W]; x may be overwritten
///   complex:       x, y [..., H, W, 2]; y may be x
/// Forward uses exp(-i...), nothing normalised; every output is multiplied by `scale`.
struct Fft2Args {
  enum class Kind : uint8_t { real_to_half, half_to_real, complex_forward, complex_inverse };
  Kind kind = Kind::real_to_half;
  Tensor x, y;
  int64_t height = 0, width = 0;  ///< H, W of the full grid
  float scale = 1.0f;
};
void fft2(Context& ctx, const Fft2Args& args);
/// The formula that fft2 charges for `batch` transforms.
int64_t fft2_flops(Fft2Args::Kind kind, int64_t batch, int64_t height, int64_t width);

/// In place: spectrum [B, C, H, W/2+1, 2] (f32) times mask [B, H, W] (f32 or u8, centred order: DC at
/// floor(N/2)), shared by the channels. Reads the mask un-shifted by index arithmetic; nothing is moved.
/// Cost: elementwise 2 per complex element of the half spectrum.
struct SpectralMaskArgs {
  Tensor spectrum, mask;
  int64_t width = 0;
};
void spectral_mask(Context& ctx, const SpectralMaskArgs& args);

}  // namespace attnbench
