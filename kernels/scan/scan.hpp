// Recurrences along time: the selective scan of state space models, recursive (IIR) filters, and the filters
// made of transforms (FIR, analytic signal). No attention; linear attention with a matrix state is
// linear_attention.hpp.
#pragma once
#include <vector>

#include "kernels/core/context.hpp"

namespace attnbench {

/// Mamba's selective scan (arXiv 2312.00752, S6): per channel d and state s, h_0 = 0,
///   h_t = exp(delta_t[d] A[d, s]) h_{t-1} + delta_t[d] b_t[s] u_t[d]
///   y_t[d] = sum_s c_t[s] h_t[s] + skip[d] u_t[d]            (times silu(z_t[d]) when z is given)
/// With `softplus`, delta_t[d] stands for ln(1 + exp(delta_t[d] + bias[d])). u, delta, y [..., L, D], b, c
/// [..., L, S] (f32, bf16 or f16, equal; any strides with packed rows); a [D, S], skip, bias [D] f32 (both
/// optional); z as u, optional. `reverse` runs from the last token to the first. State and sums are f32 and
/// stay in registers or cache: nothing of size L D S is stored. y may be u, delta or z. Cost per token:
/// matmul 6 D S; special D S (exponentials); elementwise 2 D (delta u, skip); with z special D and
/// elementwise D; with softplus special 2 D and elementwise D.
struct SelectiveScanArgs {
  Tensor u, delta, a, b, c, skip, z, y;
  bool reverse = false;
  bool softplus = false;
  Tensor bias{};
};
void selective_scan(Context& ctx, const SelectiveScanArgs& args);
/// What selective_scan charges for these arguments.
Cost selective_scan_cost(const SelectiveScanArgs& args);

/// One second-order section, a0 = 1: y_t = b0 x_t + b1 x_{t-1} + b2 x_{t-2} - a1 y_{t-1} - a2 y_{t-2}. First
/// order: b2 = a2 = 0.
struct Biquad {
  double b0 = 1, b1 = 0, b2 = 0, a1 = 0, a2 = 0;
};
/// Sections one after the other along the last axis, state in f64 whatever the dtype: x, y [..., N], f32 or
/// f64, packed rows; y may be x. `steady`: the state starts as if the first value had been there for ever
/// (with a section of infinite gain at 0 Hz: zero). `reverse` runs from the end. Cost: matmul 10 per value
/// and section.
struct IirArgs {
  Tensor x, y;
  std::vector<Biquad> sections;
  bool steady = false;
  bool reverse = false;
};
void iir(Context& ctx, const IirArgs& args);

/// x [..., N] -> y [..., before + N + after], f32 or f64, packed rows. Cost: bytes; elementwise 2 per added
/// value where they are odd.
struct ExtendArgs {
  enum class Mode : uint8_t {
    zeros,
    reflect,  ///< x[-i] = x[i]
    odd,      ///< x[-i] = 2 x[0] - x[i]
    edge,     ///< x[-i] = x[0]
  };
  Mode mode = Mode::zeros;
  Tensor x, y;
  int64_t before = 0, after = 0;
};
void extend(Context& ctx, const ExtendArgs& args);

/// y = x filtered by `taps` [K] through transforms: y_t = sum_k taps[k] x_{t-k}, zeros before the signal;
/// `reverse`: y_t = sum_k taps[k] x_{t+k}, zeros behind it. x, y [..., N] f32; y may be x. A composition:
/// charges fft1 (the taps' too) and complex_pointwise.
struct FirArgs {
  Tensor x, taps, y;
  bool reverse = false;
};
void fir(Context& ctx, const FirArgs& args);
/// The transform length that fir uses: the next power of two from N + K - 1 on.
int64_t fir_length(int64_t n, int64_t taps);

/// The analytic signal y [..., N, 2] of x [..., N] (f32): real part x, imaginary part its Hilbert transform,
/// periodic. The positive half of the spectrum is doubled, the negative half dropped. A composition: charges
/// fft1 (one real, one complex transform) and pointwise (the doubling).
void analytic_signal(Context& ctx, const Tensor& x, const Tensor& y);
/// What analytic_signal charges for `signals` signals of n points.
Cost analytic_signal_cost(int64_t signals, int64_t n);

}  // namespace attnbench
