#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <numbers>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fftw_plans.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/fft/fft_body.hpp"

namespace attnbench {
namespace {

using Kind = Fft2Args::Kind;

// ---- own transforms: sizes whose prime factors are at most 13
// ---------------------------------------------------

/// A line's factors, twiddles and butterflies; empty when a prime factor has no butterfly.
class LinePlan {
 public:
  explicit LinePlan(int64_t n) {
    std::vector<int> radices;
    int64_t rest = n;
    for (int r : {13, 11, 7, 5, 3})
      for (; rest % r == 0; rest /= r) radices.push_back(r);
    // Eights have the fewest loads per point; what is left of the power of two, 2 or 4, goes first.
    int twos = 0;
    for (; rest % 2 == 0; rest /= 2) ++twos;
    if (rest != 1) return;
    if (twos % 3 == 1 && twos >= 4) {
      radices.insert(radices.end(), {4, 4});
      twos -= 4;
    } else if (twos % 3 != 0) {
      radices.push_back(1 << twos % 3);
      twos -= twos % 3;
    }
    radices.insert(radices.end(), static_cast<size_t>(twos / 3), 8);
    if (radices.size() > static_cast<size_t>(FftLine::kMaxStages)) return;
    size_t floats = 0;
    int64_t left = n;
    for (int r : radices) {
      left /= r;
      floats += static_cast<size_t>(left * (r - 1) * 2 + 2 * r);
    }
    table_.reserve(floats);  // stages point into it
    left = n;
    int64_t done = 1;
    for (int r : radices) {
      left /= r;
      FftStage& t = line_.stage[line_.stages++];
      t.radix = r, t.m = left, t.s = done;
      t.twiddles = table_.data() + table_.size();
      for (int64_t p = 0; p < left; ++p)
        for (int64_t k = 1; k < r; ++k) push(-angle(p * k, left * r));
      t.butterfly = table_.data() + table_.size();
      for (int64_t j = 0; j < r; ++j) push(angle(j, r));
      done *= r;
    }
    line_.n = n;
  }
  const FftLine& line() const { return line_; }

 private:
  static double angle(int64_t part, int64_t n) {
    return 2 * std::numbers::pi * static_cast<double>(part % n) / static_cast<double>(n);
  }
  void push(double radians) {
    table_.push_back(static_cast<float>(std::cos(radians)));
    table_.push_back(static_cast<float>(std::sin(radians)));
  }
  FftLine line_;
  std::vector<float> table_;
};

/// The line of n points, made once per process; null where FFTW has to do it.
const FftLine* line_of(int64_t n) {
  static std::mutex mutex;
  static std::map<int64_t, std::unique_ptr<LinePlan>> plans;
  std::lock_guard lock(mutex);
  std::unique_ptr<LinePlan>& plan = plans[n];
  if (!plan) plan = std::make_unique<LinePlan>(n);
  return plan->line().n == n ? &plan->line() : nullptr;
}

/// Points from which a single image is worth cutting between threads: two fork-joins cost 10 us, in which a
/// core transforms about this many.
constexpr int64_t kSharedPoints = int64_t{1} << 15;
/// Threads that share an image pass every line on to another core's cache between rows and columns: two of
/// them took 60 us for 224 x 224 points, one alone 50 us. So they share only where less than one in this many
/// would have an image of its own.
constexpr int64_t kLoneThreads = 3;

/// All images, each by one thread, or by all threads when there are few and they are large. Lines are
/// computed the same way in both cases, so the result does not depend on the choice.
void transform_images(Context& ctx, const Fft2Args& args, const FftGrid& grid, const RowOffsets& x_at,
                      const RowOffsets& y_at) {
  const auto rows = ATTNBENCH_BEST(fft_rows);
  const auto columns = ATTNBENCH_BEST(fft_columns);
  const int64_t lanes = ATTNBENCH_BEST(fft_lanes)();
  const bool real = args.kind == Kind::real_to_half || args.kind == Kind::half_to_real;
  const bool rows_first = args.kind != Kind::half_to_real;
  const int64_t group = real ? 2 * lanes : lanes;
  const int64_t groups = (grid.height + group - 1) / group, blocks = (grid.columns + lanes - 1) / lanes;
  // An odd number of blocks per row keeps a column's elements out of the same few cache sets.
  const int64_t middle_row = (blocks | 1) * 2 * lanes, middle_floats = grid.height * middle_row;
  const int64_t longest = std::max(grid.height, grid.width);
  const int64_t scratch_floats = 3 * ((longest + lanes) / lanes * lanes + 1) * 2 * lanes;
  const float* x = args.x.data<float>();
  float* y = args.y.data<float>();
  const int64_t count = x_at.count();
  const bool shared = kLoneThreads * count <= ctx.threads() && grid.height * grid.width >= kSharedPoints;
  const int64_t teams = shared ? 1 : std::min<int64_t>(ctx.threads(), count);
  const Tensor middle = ctx.allocate(DType::f32, {teams, middle_floats});
  const Tensor scratch = ctx.allocate(DType::f32, {ctx.threads(), scratch_floats});
  const auto row_pass = [&](int64_t image, float* between, int64_t i) {
    rows(grid, args.kind, x + x_at.offset(image), y + y_at.offset(image), between, middle_row, i, args.scale,
         scratch.data<float>() + thread_index() * scratch_floats);
  };
  const auto column_pass = [&](int64_t image, float* between, int64_t i) {
    columns(grid, args.kind, x + x_at.offset(image), y + y_at.offset(image), between, middle_row, i,
            args.scale, scratch.data<float>() + thread_index() * scratch_floats);
  };
  if (shared) {
    float* between = middle.data<float>();
    for (int64_t image = 0; image < count; ++image) {
      const auto all_rows = [&] {
        parallel_items(ctx.threads(), groups, [&](int64_t i) { row_pass(image, between, i); });
      };
      if (rows_first) all_rows();
      parallel_items(ctx.threads(), blocks, [&](int64_t i) { column_pass(image, between, i); });
      if (!rows_first) all_rows();
    }
    return;
  }
  const int64_t grain = std::max<int64_t>(kSharedPoints / (2 * grid.height * grid.width), 1);
  parallel_range(static_cast<int>(teams), count, grain, [&](int64_t begin, int64_t end) {
    float* between = middle.data<float>() + thread_index() * middle_floats;
    for (int64_t image = begin; image < end; ++image) {
      if (rows_first)
        for (int64_t i = 0; i < groups; ++i) row_pass(image, between, i);
      for (int64_t i = 0; i < blocks; ++i) column_pass(image, between, i);
      if (!rows_first)
        for (int64_t i = 0; i < groups; ++i) row_pass(image, between, i);
    }
  });
}

// ---- FFTW: all other sizes, and processors without our vector bodies
// ----------------------------------------------

// Plans are estimated, not measured. A measured plan depends on the noise of the moment, so the same program
// would round differently from run to run, for 1.4x at 224 x 224 after 0.2 s of planning; the estimate never
// touches the arrays, so planning cannot destroy inputs.
constexpr unsigned kEffort = FFTW_ESTIMATE;

struct DestroyPlan {
  void operator()(fftwf_plan plan) const { fftwf_destroy_plan(plan); }
};

}  // namespace

// Plans are applied by the new-array functions, which are thread-safe where the planner is not. The cache
// lives as long as the process: plans of the usual sizes are a few KiB.
fftwf_plan fftw_plan(const FftwKey& key, float* x, float* y) {
  static std::mutex mutex;
  static std::map<FftwKey, std::unique_ptr<fftwf_plan_s, DestroyPlan>> plans;
  std::lock_guard lock(mutex);
  auto [it, fresh] = plans.try_emplace(key, nullptr);
  if (!fresh) return it->second.get();
  const int h = static_cast<int>(key.height), w = static_cast<int>(key.width);
  const unsigned flags = kEffort | (key.aligned ? 0u : FFTW_UNALIGNED);
  auto* cx = reinterpret_cast<fftwf_complex*>(x);
  auto* cy = reinterpret_cast<fftwf_complex*>(y);
  switch (key.kind) {
    case Kind::real_to_half:
      it->second.reset(fftwf_plan_dft_r2c_2d(h, w, x, cy, flags | FFTW_PRESERVE_INPUT));
      break;
    case Kind::half_to_real:
      it->second.reset(fftwf_plan_dft_c2r_2d(h, w, cx, y, flags | FFTW_DESTROY_INPUT));
      break;
    case Kind::complex_forward:
      it->second.reset(fftwf_plan_dft_2d(h, w, cx, cy, FFTW_FORWARD, flags));
      break;
    case Kind::complex_inverse:
      it->second.reset(fftwf_plan_dft_2d(h, w, cx, cy, FFTW_BACKWARD, flags));
      break;
  }
  if (!it->second) {
    plans.erase(it);
    throw Unsupported("fft2: FFTW has no plan for a grid of " + std::to_string(key.height) + " x " +
                      std::to_string(key.width));
  }
  return it->second.get();
}

void execute_fftw(Kind kind, fftwf_plan plan, float* x, float* y) {
  auto* cx = reinterpret_cast<fftwf_complex*>(x);
  auto* cy = reinterpret_cast<fftwf_complex*>(y);
  if (kind == Kind::real_to_half)
    fftwf_execute_dft_r2c(plan, x, cy);
  else if (kind == Kind::half_to_real)
    fftwf_execute_dft_c2r(plan, cx, y);
  else
    fftwf_execute_dft(plan, cx, cy);
}

void CpuBackend::fft2(Context& ctx, const Fft2Args& args) {
  constexpr int64_t kLargest = (int64_t{1} << 31) - 1;
  if (args.height > kLargest || args.width > kLargest || args.height > kLargest / args.width)
    throw Unsupported("fft2: a grid of " + std::to_string(args.height) + " x " + std::to_string(args.width) +
                      " has more points than FFTW's 32-bit sizes count");
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const RowOffsets x_at(args.x, real_x ? 2 : 3), y_at(args.y, real_y ? 2 : 3);
  if (best_isa() != Isa::base) {
    const FftLine *row = line_of(args.width), *column = line_of(args.height);
    if (row && column) {
      const int64_t columns = real_x || real_y ? args.width / 2 + 1 : args.width;
      return transform_images(ctx, args, {*row, *column, args.height, args.width, columns}, x_at, y_at);
    }
  }
  float* x = args.x.data<float>();
  float* y = args.y.data<float>();
  bool aligned = true;
  for (int64_t i = 0; i < x_at.count() && aligned; ++i)
    aligned = fftwf_alignment_of(x + x_at.offset(i)) == 0 && fftwf_alignment_of(y + y_at.offset(i)) == 0;
  const fftwf_plan plan = fftw_plan({args.kind, args.height, args.width, aligned, x == y}, x, y);
  const auto scale = ATTNBENCH_BEST(scale_run);
  const int64_t outputs = args.height * (real_y                            ? args.width
                                         : args.kind == Kind::real_to_half ? (args.width / 2 + 1) * 2
                                                                           : args.width * 2);
  parallel_range(ctx.threads(), x_at.count(), std::max<int64_t>(kParallelBytes / (outputs * 8), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     float* to = y + y_at.offset(i);
                     execute_fftw(args.kind, plan, x + x_at.offset(i), to);
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
  const uint8_t* bytes = mask.dtype() == DType::u8 ? mask.data<uint8_t>() : nullptr;
  const float* floats = bytes ? nullptr : mask.data<float>();
  // One mask row, un-shifted and doubled for (re, im), serves the same row of all channels. Frequency k is
  // stored at (k + floor(n / 2)) mod n.
  const Tensor rows = ctx.allocate(DType::f32, {ctx.threads(), 2 * half});
  parallel_range(ctx.threads(), batch * height, std::max<int64_t>(kParallelBytes / (16 * half * channels), 1),
                 [&](int64_t begin, int64_t end) {
                   float* row = rows.data<float>() + thread_index() * 2 * half;
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t b = i / height, u = i % height;
                     const int64_t at = b * mask.stride(0) + (u + top) % height * mask.stride(1);
                     for (int64_t v = 0; v < half; ++v) {
                       const int64_t j = v + left < width ? at + v + left : at + v + left - width;
                       row[2 * v] = row[2 * v + 1] = bytes ? static_cast<float>(bytes[j]) : floats[j];
                     }
                     for (int64_t c = 0; c < channels; ++c)
                       run(base + b * s.stride(0) + c * s.stride(1) + u * half * 2, row, 2 * half);
                   }
                 });
}

}  // namespace attnbench
