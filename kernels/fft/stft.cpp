#include "kernels/fft/stft.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/fft/fft1.hpp"

namespace attnbench {
namespace {

struct Frames {
  int64_t signals = 1, n = 0, frames = 0;
};

/// What both directions check: shapes of signal [..., N] and frames [..., T, n_fft/2+1, 2].
Frames check_frames(const ArgumentCheck& check, NamedTensor signal, NamedTensor frames, const Tensor& window,
                    int64_t n_fft, int64_t hop, int64_t window_offset) {
  check.present({signal, frames, {"window", window}});
  for (const NamedTensor& t : {signal, frames, NamedTensor{"window", window}}) check.dtype(t, {DType::f32});
  if (n_fft < 1 || hop < 1)
    check.fail("n_fft is " + std::to_string(n_fft) + " and hop " + std::to_string(hop) +
               "; both must be 1 or more");
  check.rank(signal, 1, Shape::kMaxRank - 2);
  const int outer = signal.tensor.rank() - 1;
  check.rank(frames, outer + 3, outer + 3);
  check.rank({"window", window}, 1, 1);
  check.packed({"window", window});
  Frames f;
  f.n = signal.tensor.dim(-1), f.frames = frames.tensor.dim(outer);
  for (int i = 0; i < outer; ++i) {
    f.signals *= signal.tensor.dim(i);
    if (signal.tensor.dim(i) != frames.tensor.dim(i))
      check.fail("'" + std::string(signal.name) + "' " + signal.tensor.shape().str() + " and '" +
                 std::string(frames.name) + "' " + frames.tensor.shape().str() +
                 " differ in their batch axes");
  }
  if (frames.tensor.dim(-2) != n_fft / 2 + 1 || frames.tensor.dim(-1) != 2)
    check.fail("'" + std::string(frames.name) + "' " + frames.tensor.shape().str() + " must end in [" +
               std::to_string(n_fft / 2 + 1) + ", 2]");
  if (window_offset < 0 || window_offset + window.dim(0) > n_fft)
    check.fail("a window of " + std::to_string(window.dim(0)) + " points at " +
               std::to_string(window_offset) + " does not fit a frame of " + std::to_string(n_fft));
  check.packed(signal);
  check.packed(frames, 2);
  check.disjoint(signal, frames);
  check.disjoint({"window", window}, signal);
  check.disjoint({"window", window}, frames);
  return f;
}

}  // namespace

Cost stft_cost(int64_t signals, int64_t n, int64_t frames, int64_t n_fft, int64_t window) {
  Cost c;
  c.matmul = fft1_flops(Fft1Args::Kind::real_to_half, signals * frames, n_fft);
  c.elementwise = signals * frames * window;
  c.bytes_read = 4 * (signals * n + window);
  c.bytes_written = 8 * signals * frames * (n_fft / 2 + 1);
  return c;
}

void stft(Context& ctx, const StftArgs& args) {
  const ArgumentCheck check(ctx, "stft");
  const Frames f = check_frames(check, {"x", args.x}, {"y", args.y}, args.window, args.n_fft, args.hop,
                                args.window_offset);
  if (f.frames > 0 && args.window.dim(0) > 0) {
    // The window, not the frame, decides what is read.
    const int64_t before = args.offset - args.window_offset,
                  after = (f.frames - 1) * args.hop - before + args.window.dim(0) - f.n;
    const int64_t allowed = args.border == SignalBorder::reflect ? f.n - 1
                            : args.border == SignalBorder::zeros ? INT64_MAX
                                                                 : 0;
    if (before > allowed || after > allowed || f.n < 1)
      check.fail("frames reach " + std::to_string(before > 0 ? before : 0) + " points before and " +
                 std::to_string(after > 0 ? after : 0) + " behind a signal of " + std::to_string(f.n) +
                 ", and its border allows " + std::to_string(allowed));
  }
  ctx.cost().charge(stft_cost(f.signals, f.n, f.frames, args.n_fft, args.window.dim(0)));
  if (args.y.numel() > 0) ctx.backend().stft(ctx, args);
}

Cost istft_cost(int64_t signals, int64_t n, int64_t frames, int64_t n_fft, int64_t window) {
  Cost c;
  c.matmul = fft1_flops(Fft1Args::Kind::half_to_real, signals * frames, n_fft);
  c.elementwise = signals * (2 * frames * window + n);
  c.special = signals * n;
  c.bytes_read = 8 * signals * frames * (n_fft / 2 + 1) + 4 * window;
  c.bytes_written = 4 * signals * n;
  return c;
}

void istft(Context& ctx, const IstftArgs& args) {
  const ArgumentCheck check(ctx, "istft");
  const Frames f = check_frames(check, {"y", args.y}, {"x", args.x}, args.window, args.n_fft, args.hop,
                                args.window_offset);
  ctx.cost().charge(istft_cost(f.signals, f.n, f.frames, args.n_fft, args.window.dim(0)));
  if (args.y.numel() > 0) ctx.backend().istft(ctx, args);
}

}  // namespace attnbench
