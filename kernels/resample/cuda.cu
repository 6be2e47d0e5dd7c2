// Bicubic resizing on CUDA: taps tabulated once per axis in double, then a warp per strip of output rows:
// each lane keeps the four rows of its columns that it has blended horizontally and moves them down.
#include <limits>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/resample/resample.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

/// Weights of the positions low - 1 ... low + 2, each clamped to the axis.
struct alignas(16) Taps {
  float weight[4];
  int32_t low;
};

/// Keys' cubic with a = -0.75 around source = (i + 0.5) * in / out - 0.5, positions clamped to the edge.
__device__ Taps taps_of(int64_t i, int64_t in, int64_t out) {
  constexpr double a = -0.75;
  const auto near = [](double t) { return ((a + 2) * t - (a + 3)) * t * t + 1; };       // |t| <= 1
  const auto far = [](double t) { return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a; };  // 1 < |t| < 2
  const double source =
      (static_cast<double>(i) + 0.5) * (static_cast<double>(in) / static_cast<double>(out)) - 0.5;
  const double low = floor(source), t = source - low;
  Taps tap;
  tap.low = static_cast<int32_t>(low);
  tap.weight[0] = static_cast<float>(far(t + 1));
  tap.weight[1] = static_cast<float>(near(t));
  tap.weight[2] = static_cast<float>(near(1 - t));
  tap.weight[3] = static_cast<float>(far(2 - t));
  return tap;
}

/// taps[0, ho) are those of rows, taps[ho, ho + wo) those of columns.
__global__ void __launch_bounds__(kThreads)
    taps_kernel(Taps* taps, int64_t height, int64_t ho, int64_t width, int64_t wo) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < ho + wo; i += step)
    taps[i] = i < ho ? taps_of(i, height, ho) : taps_of(i - ho, width, wo);
}

/// Columns `lane + 32 c` of a strip: the input rows low - 1 ... low + 2 blended horizontally.
template <class T, int kColumns>
class Window {
 public:
  __device__ Window(const T* image, const Taps* columns, int64_t first, int64_t width, int64_t height,
                    int64_t wo)
      : image_(image), width_(width), bottom_(static_cast<int32_t>(height) - 1) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const Taps t = columns[min(first + 32 * c, wo - 1)];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        weight_[c][j] = t.weight[j];
        at_[c][j] = static_cast<int32_t>(min(max(int64_t{t.low} - 1 + j, int64_t{0}), width - 1));
      }
    }
  }
  /// Moves down to `low`, which never decreases. The same for all lanes of a warp.
  __device__ void move(int32_t low) {
    const int32_t steps = empty_ ? 4 : low - low_;
    low_ = low, empty_ = false;
    if (steps == 0) return;
    if (steps == 1) return advance<1>(low);
    if (steps == 3) advance<1>(low - 2);
    if (steps > 3) advance<2>(low - 2);
    advance<2>(low);
  }
  __device__ float blend(int c, const Taps& v) const {
    float s = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; ++k) s += v.weight[k] * row_[c][k];
    return s;
  }

 private:
  /// kNew rows leave above; those that come are loaded all at once.
  template <int kNew>
  __device__ void advance(int32_t low) {
    T in[kNew][kColumns][4];
#pragma unroll
    for (int k = 0; k < kNew; ++k) {
      const T* line = image_ + min(max(low + 3 - kNew + k, 0), bottom_) * width_;
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int j = 0; j < 4; ++j) in[k][c][j] = line[at_[c][j]];
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int k = 0; k < 4 - kNew; ++k) row_[c][k] = row_[c][k + kNew];
#pragma unroll
      for (int k = 0; k < kNew; ++k) {
        float s = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) s += weight_[c][j] * widen(in[k][c][j]);
        row_[c][4 - kNew + k] = s;
      }
    }
  }

  const T* image_;
  int64_t width_;
  int32_t bottom_, low_ = 0;
  bool empty_ = true;
  int32_t at_[kColumns][4];
  float weight_[kColumns][4], row_[kColumns][4];
};

/// Strips of `height` rows by 32 kColumns columns of the output, numbered along rows, then down, then by
/// plane.
struct Strips {
  int64_t count, height;
  Divisor across, down;
};

constexpr int kBlocks = 3;  // of a multiprocessor, 80 registers a thread

template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, kBlocks)
    resize_kernel(const T* x, T* y, const Taps* taps, int64_t height, int64_t width, int64_t ho, int64_t wo,
                  const Strips strips, bool clamp01) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; i < strips.count;
       i += step) {
    const int64_t line = strips.across.of(i), plane = strips.down.of(line);
    const int64_t column = (i - line * strips.across.n) * 32 * kColumns + threadIdx.x % 32;
    const int64_t first = (line - plane * strips.down.n) * strips.height,
                  end = min(first + strips.height, ho);
    Window<T, kColumns> window(x + plane * height * width, taps + ho, column, width, height, wo);
    T* out = y + (plane * ho + first) * wo + column;
    for (int64_t row = first; row < end; ++row, out += wo) {
      const Taps v = taps[row];
      window.move(v.low);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float s = window.blend(c, v);
        if (clamp01) s = s < 0.0f ? 0.0f : (s > 1.0f ? 1.0f : s);  // NaN passes
        if (column + 32 * c < wo) out[32 * c] = narrow<T>(s);
      }
    }
  }
}

}  // namespace

void CudaBackend::resize_bicubic(Context& ctx, const ResizeArgs& args) {
  const int64_t height = args.x.dim(2), width = args.x.dim(3), ho = args.y.dim(2), wo = args.y.dim(3);
  // The window looks two positions beyond an axis.
  constexpr int64_t kLongest = std::numeric_limits<int32_t>::max() - 3;
  if (height > kLongest || width > kLongest)
    throw Unsupported("resize_bicubic: the image " + args.x.shape().str() +
                      " has an axis beyond 2^31 - 4 pixels");
  const int64_t planes = args.x.dim(0) * args.x.dim(1);
  const Tensor table = ctx.allocate(DType::u8, {(ho + wo) * static_cast<int64_t>(sizeof(Taps))});
  auto* taps = static_cast<Taps*>(table.raw());
  taps_kernel<<<grid_for(ctx, ho + wo, kThreads), kThreads, 0, stream_of(ctx)>>>(taps, height, ho, width, wo);
  CUDA_CHECK_LAUNCH();
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch = [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      const int64_t across = (wo + 32 * kColumns - 1) / (32 * kColumns);
      // A strip reads up to three rows more than its share: tall ones, while there are two for every warp
      // that the card holds.
      const int64_t wanted = int64_t{cuda_of(ctx).sm_count()} * kBlocks * (kThreads / 32) * 2;
      int64_t tall = 32;
      while (tall > 4 && planes * across * ((ho + tall - 1) / tall) < wanted) tall /= 2;
      const int64_t down = (ho + tall - 1) / tall;
      const Strips strips{planes * down * across, tall, Divisor(across), Divisor(down)};
      resize_kernel<T, kColumns>
          <<<grid_for(ctx, strips.count, kThreads / 32, 1024), kThreads, 0, stream_of(ctx)>>>(
              static_cast<const T*>(args.x.raw()), static_cast<T*>(args.y.raw()), taps, height, width, ho, wo,
              strips, args.clamp01);
      CUDA_CHECK_LAUNCH();
    };
    if (wo > 32)
      launch(std::integral_constant<int, 2>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
}

}  // namespace attnbench
