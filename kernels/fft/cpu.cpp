#include <fftw3.h>

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/fft/fft.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/fft/fft_body.hpp"

namespace attnbench {
namespace {

using Kind = Fft2Args::Kind;

// Plans are estimated, not measured. A measured plan depends on the noise of the moment, so the same program
// would round differently from run to run; and planning 224 x 224 by measurement takes longer than a case.
// FFTW's estimate never touches the arrays, so planning cannot destroy inputs.
constexpr unsigned kEffort = FFTW_ESTIMATE;

struct PlanKey {
  Kind kind;
  int64_t height, width;
  bool aligned, in_place;
  auto operator<=>(const PlanKey&) const = default;
};

/// Single-threaded plans of one image, applied to every image by the new-array functions, which are
/// thread-safe where the planner is not. The cache lives as long as the process: plans of the usual sizes are
/// a few KiB.
fftwf_plan plan_of(const PlanKey& key, float* x, float* y) {
  static std::mutex mutex;
  static std::map<PlanKey, fftwf_plan> plans;
  std::lock_guard lock(mutex);
  auto [it, fresh] = plans.try_emplace(key, nullptr);
  if (!fresh) return it->second;
  const int h = static_cast<int>(key.height), w = static_cast<int>(key.width);
  const unsigned flags = kEffort | (key.aligned ? 0u : FFTW_UNALIGNED);
  auto* cx = reinterpret_cast<fftwf_complex*>(x);
  auto* cy = reinterpret_cast<fftwf_complex*>(y);
  switch (key.kind) {
    case Kind::real_to_half:
      it->second = fftwf_plan_dft_r2c_2d(h, w, x, cy, flags | FFTW_PRESERVE_INPUT);
      break;
    case Kind::half_to_real:
      it->second = fftwf_plan_dft_c2r_2d(h, w, cx, y, flags | FFTW_DESTROY_INPUT);
      break;
    case Kind::complex_forward:
      it->second = fftwf_plan_dft_2d(h, w, cx, cy, FFTW_FORWARD, flags);
      break;
    case Kind::complex_inverse:
      it->second = fftwf_plan_dft_2d(h, w, cx, cy, FFTW_BACKWARD, flags);
      break;
  }
  if (!it->second) {
    plans.erase(it);
    throw Unsupported("fft2: FFTW has no plan for a grid of " + std::to_string(key.height) + " x " +
                      std::to_string(key.width));
  }
  return it->second;
}

void execute(Kind kind, fftwf_plan plan, float* x, float* y) {
  auto* cx = reinterpret_cast<fftwf_complex*>(x);
  auto* cy = reinterpret_cast<fftwf_complex*>(y);
  if (kind == Kind::real_to_half)
    fftwf_execute_dft_r2c(plan, x, cy);
  else if (kind == Kind::half_to_real)
    fftwf_execute_dft_c2r(plan, cx, y);
  else
    fftwf_execute_dft(plan, cx, cy);
}

}  // namespace

void CpuBackend::fft2(Context& ctx, const Fft2Args& args) {
  constexpr int64_t kLargest = (int64_t{1} << 31) - 1;
  if (args.height > kLargest || args.width > kLargest || args.height > kLargest / args.width)
    throw Unsupported("fft2: a grid of " + std::to_string(args.height) + " x " + std::to_string(args.width) +
                      " has more points than FFTW's 32-bit sizes count");
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const RowOffsets x_at(args.x, real_x ? 2 : 3), y_at(args.y, real_y ? 2 : 3);
  float* x = args.x.data<float>();
  float* y = args.y.data<float>();
  bool aligned = true;
  for (int64_t i = 0; i < x_at.count() && aligned; ++i)
    aligned = fftwf_alignment_of(x + x_at.offset(i)) == 0 && fftwf_alignment_of(y + y_at.offset(i)) == 0;
  const fftwf_plan plan = plan_of({args.kind, args.height, args.width, aligned, x == y}, x, y);
  const auto scale = ATTNBENCH_BEST(scale_run);
  const int64_t outputs = args.height * (real_y                            ? args.width
                                         : args.kind == Kind::real_to_half ? (args.width / 2 + 1) * 2
                                                                           : args.width * 2);
  parallel_range(ctx.threads(), x_at.count(), std::max<int64_t>(kParallelBytes / (outputs * 8), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     float* to = y + y_at.offset(i);
                     execute(args.kind, plan, x + x_at.offset(i), to);
                     if (args.scale != 1.0f) scale(to, outputs, args.scale);  // while it is in the cache
                   }
                 });
}

void CpuBackend::spectral_mask(Context& ctx, const SpectralMaskArgs& args) {
  const auto run = ATTNBENCH_BEST(mask_run);
  const Tensor &s = args.spectrum, &mask = args.mask;
  const int64_t batch = s.dim(0), channels = s.dim(1), height = s.dim(2), width = args.width;
  const int64_t half = width / 2 + 1, top = height / 2, left = width / 2;
  float* base = s.data<float>();
  const bool bytes = mask.dtype() == DType::u8;
  // One mask row serves the same row of all channels; un-shifting is index arithmetic on it: frequency k is
  // stored at (k + floor(n / 2)) mod n.
  parallel_range(ctx.threads(), batch * height, std::max<int64_t>(kParallelBytes / (16 * half * channels), 1),
                 [&](int64_t begin, int64_t end) {
                   std::vector<float> row(static_cast<size_t>(half));
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t b = i / height, u = i % height;
                     const int64_t at = b * mask.stride(0) + (u + top) % height * mask.stride(1);
                     for (int64_t v = 0; v < half; ++v) {
                       const int64_t j = at + (v + left) % width;
                       row[static_cast<size_t>(v)] =
                           bytes ? static_cast<float>(mask.data<uint8_t>()[j]) : mask.data<float>()[j];
                     }
                     for (int64_t c = 0; c < channels; ++c)
                       run(base + b * s.stride(0) + c * s.stride(1) + u * half * 2, row.data(), half);
                   }
                 });
}

}  // namespace attnbench
