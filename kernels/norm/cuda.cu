// Normalisation on CUDA: of rows by a warp or a block each, statistics in f32 from registers; of channel
// groups by partial sums in f64, then a scale and a shift for every channel.
#include "kernels/core/cuda_row.cuh"
#include "kernels/norm/norm.hpp"

namespace attnbench {
namespace {

struct NormWork {
  const void *x, *gain, *offset;
  void* y;
  DeviceRows x_rows, y_rows;
  int64_t n;
  float eps;
  bool centred, l2;
};

template <class T, int N, int kGroup>
__global__ void __launch_bounds__(kRowThreads<kGroup>, kRowBlocks<kGroup>) norm_kernel(NormWork w) {
  const T* gain = static_cast<const T*>(w.gain);
  const T* offset = static_cast<const T*>(w.offset);
  const float n = static_cast<float>(w.n);
  for_rows<kGroup>(w.x_rows.count, w.n, [&](int64_t r, int64_t length) {
    CachedRow<T, N, kGroup> row(static_cast<const T*>(w.x) + w.x_rows.offset(r), length);
    float mean = 0.0f;
    if (w.centred) {
      float sum = 0.0f;
      row.pass([&](const float(&v)[N], int64_t) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum += v[i];
      });
      mean = group_reduce<kGroup>(sum, Add{}) / n;
    }
    // The second pass subtracts the mean first: a sum of squares minus n mean^2 would cancel.
    float squares = 0.0f;
    row.pass([&](const float(&v)[N], int64_t) {
#pragma unroll
      for (int i = 0; i < N; ++i) squares += (v[i] - mean) * (v[i] - mean);
    });
    const float total = group_reduce<kGroup>(squares, Add{});
    float inverse = 1.0f / sqrtf(total / n + w.eps);
    if (w.l2) {  // NaN passes
      const float norm = sqrtf(total);
      inverse = 1.0f / (norm < w.eps ? w.eps : norm);
    }
    T* y = static_cast<T*>(w.y) + w.y_rows.offset(r);
    row.pass([&](const float(&v)[N], int64_t c) {
      float out[N], factor[N];
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = (v[i] - mean) * inverse;
      if (gain) {
        load_wide(gain + c, factor);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] *= factor[i];
      }
      if (offset) {
        load_wide(offset + c, factor);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] += factor[i];
      }
      store_narrow(y + c, out);
    });
  });
}

}  // namespace

void CudaBackend::normalize(Context& ctx, const NormArgs& args) {
  NormWork w{};
  w.x = args.x.raw(), w.gain = args.gain.raw(), w.offset = args.offset.raw(), w.y = args.y.raw();
  w.x_rows = DeviceRows(args.x, 1), w.y_rows = DeviceRows(args.y, 1);
  w.n = args.x.dim(-1), w.eps = args.eps;
  w.centred = args.kind == NormArgs::Kind::layer_norm;
  w.l2 = args.kind == NormArgs::Kind::l2_norm;
  const bool packs = packable(args.x, 16) && packable(args.y, 16) &&
                     (!args.gain || packable(args.gain, 16)) && (!args.offset || packable(args.offset, 16));
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    choose_row_kernel<T>(w.n, packs, [&](auto pack, auto group) {
      constexpr int kGroup = decltype(group)::value, kBlock = kRowThreads<kGroup>;
      const unsigned grid = grid_for(ctx, w.x_rows.count, kBlock / kGroup);
      norm_kernel<T, decltype(pack)::value, kGroup><<<grid, kBlock, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
  });
}

namespace {

constexpr int kThreads = 256;

struct GroupWork {
  const void *x, *gain, *offset, *mean, *variance;
  void* y;
  double* parts;         // [batch * groups, chunks, 2]
  float *scale, *shift;  // [batch or 1, channels]
  int64_t batch, channels, positions, groups, per_group, chunks, chunk;
  float eps;
  bool last, given, wide_statistics;
};

template <class T>
__global__ void __launch_bounds__(kThreads) group_sums_kernel(GroupWork w, Divisor per_group) {
  const T* x = static_cast<const T*>(w.x);
  const int64_t run = w.per_group * w.positions;
  for (int64_t item = blockIdx.x; item < w.batch * w.groups * w.chunks; item += gridDim.x) {
    const int64_t region = divide(item, w.chunks), first = (item - region * w.chunks) * w.chunk;
    const int64_t end = min(run, first + w.chunk), b = divide(region, w.groups), g = region - b * w.groups;
    double sum = 0.0, squares = 0.0;
    for (int64_t e = first + threadIdx.x; e < end; e += kThreads) {
      int64_t at = region * run + e;  // channel-first: the group is one run
      if (w.last) {
        const int64_t p = per_group.of(e);
        at = (b * w.positions + p) * w.channels + g * w.per_group + (e - p * w.per_group);
      }
      const auto v = static_cast<double>(widen(x[at]));
      sum += v, squares += v * v;
    }
    sum = block_reduce<kThreads>(sum, Add{});
    squares = block_reduce<kThreads>(squares, Add{});
    if (threadIdx.x == 0) w.parts[2 * item] = sum, w.parts[2 * item + 1] = squares;
  }
}

template <class T>
__device__ double statistic(const void* p, int64_t i, bool wide) {
  return static_cast<double>(wide ? static_cast<const float*>(p)[i] : widen(static_cast<const T*>(p)[i]));
}

/// A thread per channel of every image.
template <class T>
__global__ void __launch_bounds__(kThreads) group_scale_kernel(GroupWork w) {
  const int64_t items = (w.given ? 1 : w.batch) * w.channels,
                step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t b = divide(i, w.channels), c = i - b * w.channels;
    double mean, variance;
    if (w.given) {
      mean = statistic<T>(w.mean, c, w.wide_statistics),
      variance = statistic<T>(w.variance, c, w.wide_statistics);
    } else {
      const double* parts = w.parts + 2 * (b * w.groups + divide(c, w.per_group)) * w.chunks;
      double sum = 0.0, squares = 0.0;
      for (int64_t k = 0; k < w.chunks; ++k) sum += parts[2 * k], squares += parts[2 * k + 1];
      const auto n = static_cast<double>(w.per_group * w.positions);
      mean = sum / n;
      variance = squares / n - mean * mean;
      if (variance < 0.0) variance = 0.0;  // NaN passes
    }
    const double gain = w.gain ? static_cast<double>(widen(static_cast<const T*>(w.gain)[c])) : 1.0;
    const double offset = w.offset ? static_cast<double>(widen(static_cast<const T*>(w.offset)[c])) : 0.0;
    const double scale = gain / sqrt(variance + static_cast<double>(w.eps));
    w.scale[i] = static_cast<float>(scale);
    w.shift[i] = static_cast<float>(offset - mean * scale);
  }
}

/// Rows of `packs` packs: pixels channel-last, planes channel-first.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) group_apply_kernel(GroupWork w, Divisor packs, Divisor rows) {
  const T* x = static_cast<const T*>(w.x);
  T* y = static_cast<T*>(w.y);
  const int64_t items = w.batch * rows.n * packs.n, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t row = packs.of(i), column = (i - row * packs.n) * N, image = rows.of(row);
    const int64_t base = (w.given ? 0 : image) * w.channels + (w.last ? column : row - image * rows.n);
    float v[N];
    load_wide(x + i * N, v);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int64_t c = base + (w.last ? j : 0);
      v[j] = v[j] * w.scale[c] + w.shift[c];
    }
    store_narrow(y + i * N, v);
  }
}

}  // namespace

void CudaBackend::group_norm(Context& ctx, const GroupNormArgs& args) {
  GroupWork w{};
  w.x = args.x.raw(), w.y = args.y.raw(), w.gain = args.gain.raw(), w.offset = args.offset.raw();
  w.mean = args.mean.raw(), w.variance = args.variance.raw();
  w.last = args.channels_last, w.given = static_cast<bool>(args.mean), w.eps = args.eps;
  w.wide_statistics = w.given && args.mean.dtype() == DType::f32;
  w.batch = args.x.dim(0), w.channels = args.x.dim(w.last ? -1 : 1);
  w.positions = args.x.numel() / (w.batch * w.channels);
  w.groups = w.given ? 1 : args.groups, w.per_group = w.channels / w.groups;
  // 64 Ki elements hide a block's start; the order of additions is fixed whatever the card.
  w.chunk = int64_t{1} << 16;
  w.chunks = (w.per_group * w.positions + w.chunk - 1) / w.chunk;
  const int64_t images = w.given ? 1 : w.batch;
  const Tensor scale = ctx.allocate(DType::f32, {images, w.channels});
  const Tensor shift = ctx.allocate(DType::f32, {images, w.channels});
  w.scale = scale.data<float>(), w.shift = shift.data<float>();
  Tensor parts;
  if (!w.given) {
    parts = ctx.allocate(DType::f64, {w.batch * w.groups, w.chunks, 2});
    w.parts = parts.data<double>();
  }
  const cudaStream_t stream = stream_of(ctx);
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (!w.given) {
      const unsigned grid = grid_for(ctx, w.batch * w.groups * w.chunks, 1);
      group_sums_kernel<T><<<grid, kThreads, 0, stream>>>(w, Divisor(w.per_group));
      CUDA_CHECK_LAUNCH();
    }
    group_scale_kernel<T><<<grid_for(ctx, images * w.channels, kThreads), kThreads, 0, stream>>>(w);
    CUDA_CHECK_LAUNCH();
    const int64_t n = w.last ? w.channels : w.positions, rows = w.last ? w.positions : w.channels;
    const auto launch = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      group_apply_kernel<T, N><<<grid_for(ctx, args.x.numel() / N, kThreads), kThreads, 0, stream>>>(
          w, Divisor(n / N), Divisor(rows));
      CUDA_CHECK_LAUNCH();
    };
    const auto based = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    if (n % kVector<T> == 0 && based(w.x) && based(w.y))
      launch(std::integral_constant<int, kVector<T>>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
}

}  // namespace attnbench
