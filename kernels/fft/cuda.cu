// 2-D transforms: planes that fit in shared memory by a kernel of their own (cuda_plane.cu), others through
// cuFFT, plans cached by shape with their workspace from the context; and the spectral mask.
#include <compare>
#include <map>
#include <mutex>

#include "kernels/fft/cuda_plane.cuh"
#include "kernels/fft/cufft_plans.cuh"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

using Kind = Fft2Args::Kind;
constexpr int kThreads = 256;

void check_cufft(cufftResult status, const char* call) {
  if (status == CUFFT_SUCCESS) return;
  const std::string text =
      std::string("fft2: ") + call + " failed with cuFFT's status " + std::to_string(status);
  if (status == CUFFT_ALLOC_FAILED) throw OutOfMemory(text);
  if (status == CUFFT_NOT_SUPPORTED || status == CUFFT_INVALID_SIZE) throw Unsupported(text);
  throw Error(text);
}
#define CUFFT_CHECK(call) check_cufft((call), #call)

struct Plan {
  cufftHandle handle = 0;
  size_t work_bytes = 0;
};

/// The cache lives as long as the process, because captured graphs keep using the tables of the plans in it;
/// those of the usual sizes are a few KiB. Workspaces are not part of it.
const Plan& plan_of(const CufftKey& key, cudaStream_t stream) {
  static std::mutex mutex;
  static std::map<CufftKey, Plan> plans;
  std::lock_guard lock(mutex);
  if (const auto it = plans.find(key); it != plans.end()) return it->second;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &capture));
  if (capture != cudaStreamCaptureStatusNone)
    throw Error(
        "fft2: a plan of a new shape cannot be made while a CUDA graph is captured; run it once before");
  const bool real_x = key.kind == Kind::real_to_half, real_y = key.kind == Kind::half_to_real;
  const long long half = key.width / 2 + 1;
  long long n[2] = {key.height, key.width};
  long long x_embed[2] = {key.height, real_y ? half : key.width};
  long long y_embed[2] = {key.height, real_x ? half : key.width};
  const cufftType type = real_x ? CUFFT_R2C : real_y ? CUFFT_C2R : CUFFT_C2C;
  Plan plan;
  CUFFT_CHECK(cufftCreate(&plan.handle));
  try {
    CUFFT_CHECK(cufftSetAutoAllocation(plan.handle, 0));
    CUFFT_CHECK(cufftMakePlanMany64(plan.handle, 2, n, x_embed, 1, key.x_distance, y_embed, 1, key.y_distance,
                                    type, key.batch, &plan.work_bytes));
    CUFFT_CHECK(cufftSetStream(plan.handle, stream));
  } catch (...) {
    cufftDestroy(plan.handle);
    throw;
  }
  return plans.emplace(key, plan).first->second;
}

}  // namespace

void execute_cufft(Context& ctx, const CufftKey& key, float* x, float* y) {
  const Plan& plan = plan_of(key, stream_of(ctx));
  const Tensor work = ctx.allocate(DType::u8, {static_cast<int64_t>(plan.work_bytes)});
  if (plan.work_bytes > 0) CUFFT_CHECK(cufftSetWorkArea(plan.handle, work.raw()));
  auto* cx = reinterpret_cast<cufftComplex*>(x);
  auto* cy = reinterpret_cast<cufftComplex*>(y);
  switch (key.kind) {
    case Kind::real_to_half:
      return CUFFT_CHECK(cufftExecR2C(plan.handle, x, cy));
    case Kind::half_to_real:
      return CUFFT_CHECK(cufftExecC2R(plan.handle, cx, y));
    case Kind::complex_forward:
      return CUFFT_CHECK(cufftExecC2C(plan.handle, cx, cy, CUFFT_FORWARD));
    case Kind::complex_inverse:
      return CUFFT_CHECK(cufftExecC2C(plan.handle, cx, cy, CUFFT_INVERSE));
  }
}

namespace {

template <int N>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(float* y, DeviceRows images, int64_t packs, float scale) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = images.count * packs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += kBatch * step) {
    float v[kBatch][N];
    float* p[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * step >= items) break;
      const int64_t at = i + u * step, image = images.count == 1 ? 0 : divide(at, packs);
      p[u] = y + images.offset(image) + (at - image * packs) * N;
      load_pack(p[u], v[u]);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * step >= items) break;
#pragma unroll
      for (int j = 0; j < N; ++j) v[u][j] *= scale;
      store_pack(p[u], v[u]);
    }
  }
}

/// The images of t, `inner` axes each, as rows of one axis.
Tensor image_rows(const Tensor& t, int inner) {
  int64_t points = 1;
  int64_t extent[Shape::kMaxRank], stride[Shape::kMaxRank];
  const int outer = t.rank() - inner;
  for (int i = outer; i < t.rank(); ++i) points *= t.dim(i);
  for (int i = 0; i < outer; ++i) extent[i] = t.dim(i), stride[i] = t.stride(i);
  extent[outer] = points, stride[outer] = 1;
  const auto rank = static_cast<size_t>(outer) + 1;
  return t.strided(Shape(std::span<const int64_t>(extent, rank)),
                   Shape(std::span<const int64_t>(stride, rank)));
}

struct MaskWork {
  float* spectrum;
  const void* mask;
  int64_t rows, channels, height, width, half;
  int64_t sb, sc, mb, mh;  // strides
};

__device__ float2 load_complex(const float* p) { return *reinterpret_cast<const float2*>(p); }

/// A warp per row of the half spectrum; the mask's row stays in the caches for the other channels.
template <class M>
__global__ void __launch_bounds__(kThreads) mask_kernel(MaskWork w) {
  constexpr int kWarps = kThreads / 32;
  const int64_t top = w.height / 2, left = w.width / 2, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; r < w.rows; r += step) {
    const int64_t plane = divide(r, w.height), u = r - plane * w.height;
    const int64_t b = divide(plane, w.channels), c = plane - b * w.channels;
    // Frequency k is stored at (k + floor(n / 2)) mod n.
    const int64_t line = u + top < w.height ? u + top : u + top - w.height;
    const M* mask = static_cast<const M*>(w.mask) + b * w.mb + line * w.mh;
    float* row = w.spectrum + b * w.sb + c * w.sc + u * w.half * 2;
    // Eight bytes a time, so twice as many as packs of sixteen.
    constexpr int kEach = 2 * kBatch;
    for (int64_t v0 = threadIdx.x % 32; v0 < w.half; v0 += 32 * kEach) {
      float2 z[kEach];
      float keep[kEach];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t v = v0 + 32 * j;
        if (v >= w.half) break;
        z[j] = load_complex(row + 2 * v);
        keep[j] = static_cast<float>(mask[v + left < w.width ? v + left : v + left - w.width]);
      }
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t v = v0 + 32 * j;
        if (v >= w.half) break;
        *reinterpret_cast<float2*>(row + 2 * v) = make_float2(z[j].x * keep[j], z[j].y * keep[j]);
      }
    }
  }
}

}  // namespace

void CudaBackend::fft2(Context& ctx, const Fft2Args& args) {
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const int inner_x = real_x ? 2 : 3, inner_y = real_y ? 2 : 3;
  const int64_t points_x = args.height * (real_x   ? args.width
                                          : real_y ? (args.width / 2 + 1) * 2
                                                   : args.width * 2);
  const int64_t points_y = args.height * (real_y   ? args.width
                                          : real_x ? (args.width / 2 + 1) * 2
                                                   : args.width * 2);
  const Tensor x = image_rows(args.x, inner_x), y = image_rows(args.y, inner_y);
  if (fft2_planes(ctx, args, x, y)) return;
  // cuFFT wants one distance between images, complex numbers at multiples of their size, and images apart
  // from each other; what is laid out otherwise passes through packed copies.
  const auto usable = [](const Tensor& t, int64_t points, bool real) {
    const DeviceRows rows(t, 1);
    return reinterpret_cast<uintptr_t>(t.raw()) % sizeof(cufftComplex) == 0 && rows.rank <= 1 &&
           (rows.rank == 0 || (rows.stride[0] >= points && (real || rows.stride[0] % 2 == 0)));
  };
  const bool own_x = !usable(x, points_x, real_x), own_y = !usable(y, points_y, real_y);
  Tensor from = x, to = y;
  if (own_x) {
    from = ctx.allocate(DType::f32, x.shape());
    transpose_copy(ctx, {x, from});
  }
  if (own_y) to = ctx.allocate(DType::f32, y.shape());
  const auto distance = [](const Tensor& t, int64_t points) {
    const DeviceRows rows(t, 1);
    return rows.rank == 0 ? points : rows.stride[0];
  };
  // Distances are counted in elements of the side's own type.
  const CufftKey key{args.kind,
                     args.height,
                     args.width,
                     DeviceRows(from, 1).count,
                     distance(from, points_x) / (real_x ? 1 : 2),
                     distance(to, points_y) / (real_y ? 1 : 2)};
  execute_cufft(ctx, key, static_cast<float*>(from.raw()), static_cast<float*>(to.raw()));
  if (args.scale != 1.0f) {
    const Tensor rows = flattened(to);
    const DeviceRows images(rows, 1);
    const auto run = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      const int64_t packs = rows.dim(-1) / N;
      scale_kernel<N><<<grid_for(ctx, images.count * packs, kThreads), kThreads, 0, stream_of(ctx)>>>(
          static_cast<float*>(rows.raw()), images, packs, args.scale);
      CUDA_CHECK_LAUNCH();
    };
    if (packable(rows, 16))
      run(std::integral_constant<int, 4>{});
    else
      run(std::integral_constant<int, 1>{});
  }
  if (own_y) transpose_copy(ctx, {to, y});
}

void CudaBackend::spectral_mask(Context& ctx, const SpectralMaskArgs& args) {
  const Tensor &s = args.spectrum, &mask = args.mask;
  MaskWork w{};
  w.mask = mask.raw();
  w.channels = s.dim(1), w.height = s.dim(2), w.width = args.width, w.half = s.dim(3);
  w.rows = s.dim(0) * s.dim(1) * s.dim(2);
  w.mb = mask.stride(0), w.mh = mask.stride(1);
  const auto even = [&](int axis) { return s.dim(axis) == 1 || s.stride(axis) % 2 == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(s.raw()) % sizeof(float2) == 0 && even(0) && even(1);
  Tensor packed = s;
  if (!aligned) {
    packed = ctx.allocate(DType::f32, s.shape());
    transpose_copy(ctx, {s, packed});
  }
  w.spectrum = static_cast<float*>(packed.raw());
  w.sb = packed.stride(0), w.sc = packed.stride(1);
  const unsigned grid = grid_for(ctx, w.rows, kThreads / 32);
  if (mask.dtype() == DType::u8)
    mask_kernel<uint8_t><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  else
    mask_kernel<float><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
  if (!aligned) transpose_copy(ctx, {packed, s});
}

}  // namespace attnbench
