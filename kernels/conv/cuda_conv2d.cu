// conv2d on CUDA: depthwise by a thread per output, general as gathered columns times the weight, transposed
// as products whose terms each output collects.
#include <algorithm>

#include "kernels/conv/geometry.hpp"
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/elementwise/cast.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
/// Gathered columns are multiplied in blocks of about this many bytes, which bounds the workspace and leaves
/// thousands of rows for any usual size.
constexpr int64_t kBlockBytes = int64_t{256} << 20;

struct ConvWork {
  int64_t batch, channels, features, group_channels, group_features, height, width, ho, wo, kh, kw, taps;
  int64_t xb, xc, xh, xw, yb, yc, yh, yw;  // strides
  int64_t stride_h, stride_w, dilation_h, dilation_w, top, left;
  Border border;

  explicit ConvWork(const Conv2dArgs& a) {
    const GridAxes x(a.channels_last);
    batch = a.x.dim(0), channels = a.x.dim(x.channel), features = a.y.dim(x.channel);
    group_channels = channels / a.groups, group_features = features / a.groups;
    height = a.x.dim(x.height), width = a.x.dim(x.width), ho = a.y.dim(x.height), wo = a.y.dim(x.width);
    kh = a.weight.dim(2), kw = a.weight.dim(3), taps = kh * kw;
    xb = a.x.stride(0), xc = a.x.stride(x.channel), xh = a.x.stride(x.height), xw = a.x.stride(x.width);
    yb = a.y.stride(0), yc = a.y.stride(x.channel), yh = a.y.stride(x.height), yw = a.y.stride(x.width);
    if (a.channels_last)
      xc = yc = 1;
    else
      xw = yw = 1;
    stride_h = a.stride[0], stride_w = a.stride[1], dilation_h = a.dilation[0], dilation_w = a.dilation[1];
    top = a.pad[0], left = a.pad[2], border = a.border;
  }
  __device__ int64_t source_row(int64_t oy, int64_t p) const {
    return border_source(oy * stride_h + p * dilation_h - top, height, border);
  }
  __device__ int64_t source_column(int64_t ox, int64_t q) const {
    return border_source(ox * stride_w + q * dilation_w - left, width, border);
  }
};

/// Global index of this thread and the number of threads.
__device__ int64_t first_item() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// ---- depthwise --------------------------------------------------------------------------------------------

/// Channel-last; weight [taps, C]. A thread has N channels of one pixel.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    depthwise_last_kernel(ConvWork w, const T* x, const T* weight, const T* bias, T* y, Divisor packs,
                          Divisor wo, Divisor ho) {
  const int64_t items = w.batch * w.ho * w.wo * packs.n;
  for (int64_t i = first_item(); i < items; i += all_threads()) {
    const int64_t pixel = packs.of(i), c = (i - pixel * packs.n) * N;
    const int64_t line = wo.of(pixel), ox = pixel - line * w.wo, b = ho.of(line), oy = line - b * w.ho;
    float sum[N] = {};
    if (bias) load_wide(bias + c, sum);
    for (int64_t p = 0; p < w.kh; ++p) {
      const int64_t iy = w.source_row(oy, p);
      if (iy < 0) continue;
      for (int64_t q = 0; q < w.kw; ++q) {
        const int64_t ix = w.source_column(ox, q);
        if (ix < 0) continue;
        float in[N], factor[N];
        load_wide(x + b * w.xb + iy * w.xh + ix * w.xw + c, in);
        load_wide(weight + (p * w.kw + q) * w.channels + c, factor);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += in[j] * factor[j];
      }
    }
    store_narrow(y + b * w.yb + oy * w.yh + ox * w.yw + c, sum);
  }
}

/// Channel-first; a thread has one output, neighbours are along a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    depthwise_first_kernel(ConvWork w, const T* x, const T* weight, const T* bias, T* y, Divisor wo,
                           Divisor ho, Divisor channels) {
  const int64_t items = w.batch * w.channels * w.ho * w.wo;
  for (int64_t i = first_item(); i < items; i += all_threads()) {
    const int64_t line = wo.of(i), ox = i - line * w.wo, plane = ho.of(line), oy = line - plane * w.ho;
    const int64_t b = channels.of(plane), c = plane - b * w.channels;
    const T* from = x + b * w.xb + c * w.xc;
    float sum = bias ? widen(bias[c]) : 0.0f;
    for (int64_t p = 0; p < w.kh; ++p) {
      const int64_t iy = w.source_row(oy, p);
      if (iy < 0) continue;
      for (int64_t q = 0; q < w.kw; ++q) {
        const int64_t ix = w.source_column(ox, q);
        if (ix >= 0) sum += widen(from[iy * w.xh + ix]) * widen(weight[c * w.taps + p * w.kw + q]);
      }
    }
    y[b * w.yb + c * w.yc + oy * w.yh + ox] = narrow<T>(sum);
  }
}

template <class T>
void depthwise(Context& ctx, CudaBackend& backend, const Conv2dArgs& args, const ConvWork& w) {
  const auto* x = static_cast<const T*>(args.x.raw());
  const auto* bias = static_cast<const T*>(args.bias.raw());
  auto* y = static_cast<T*>(args.y.raw());
  const cudaStream_t stream = stream_of(ctx);
  if (!args.channels_last) {
    const int64_t items = w.batch * w.channels * w.ho * w.wo;
    depthwise_first_kernel<T><<<grid_for(ctx, items, kThreads), kThreads, 0, stream>>>(
        w, x, static_cast<const T*>(args.weight.raw()), bias, y, Divisor(w.wo), Divisor(w.ho),
        Divisor(w.channels));
    CUDA_CHECK_LAUNCH();
    return;
  }
  const Tensor weight = ctx.allocate(args.weight.dtype(), {w.taps, w.channels});
  backend.transpose_copy(ctx, {args.weight.reshape({w.channels, w.taps}).transpose(0, 1), weight});
  const auto launch = [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    const Divisor packs(w.channels / N);
    const unsigned grid = grid_for(ctx, w.batch * w.ho * w.wo * packs.n, kThreads);
    depthwise_last_kernel<T, N><<<grid, kThreads, 0, stream>>>(w, x, static_cast<const T*>(weight.raw()),
                                                               bias, y, packs, Divisor(w.wo), Divisor(w.ho));
    CUDA_CHECK_LAUNCH();
  };
  if (packable(args.x, 16) && packable(args.y, 16) && packable(weight, 16) &&
      (!args.bias || packable(args.bias, 16)))
    launch(std::integral_constant<int, kVector<T>>{});
  else
    launch(std::integral_constant<int, 1>{});
}

// ---- general ----------------------------------------------------------------------------------------------

/// out[pixel][tap][channel] for pixels [first, first + count) of the batch, N channels a thread.
template <class U, int N>
__global__ void __launch_bounds__(kThreads)
    gather_last_kernel(ConvWork w, const U* x, U* out, int64_t first, int64_t count, Divisor packs,
                       Divisor taps, Divisor kw, Divisor wo, Divisor ho) {
  const int64_t items = count * taps.n * packs.n;
  for (int64_t i = first_item(); i < items; i += all_threads()) {
    const int64_t column = packs.of(i), c = (i - column * packs.n) * N;
    const int64_t at = taps.of(column), tap = column - at * taps.n;
    const int64_t p = kw.of(tap), q = tap - p * w.kw;
    const int64_t pixel = first + at, line = wo.of(pixel), ox = pixel - line * w.wo;
    const int64_t b = ho.of(line), oy = line - b * w.ho;
    const int64_t iy = w.source_row(oy, p), ix = w.source_column(ox, q);
    U v[N] = {};
    if (iy >= 0 && ix >= 0) load_pack(x + b * w.xb + iy * w.xh + ix * w.xw + c, v);
    store_pack(out + column * w.group_channels + c, v);
  }
}

/// out[channel][tap][pixel] for rows [first, first + pixels / wo) of one image.
template <class U>
__global__ void __launch_bounds__(kThreads)
    gather_first_kernel(ConvWork w, const U* x, U* out, int64_t first, Divisor pixels, Divisor taps,
                        Divisor kw, Divisor wo) {
  const int64_t items = w.group_channels * taps.n * pixels.n;
  for (int64_t i = first_item(); i < items; i += all_threads()) {
    const int64_t k = pixels.of(i), pixel = i - k * pixels.n, c = taps.of(k), tap = k - c * taps.n;
    const int64_t p = kw.of(tap), q = tap - p * w.kw, line = wo.of(pixel), ox = pixel - line * w.wo;
    const int64_t iy = w.source_row(first + line, p), ix = w.source_column(ox, q);
    out[i] = iy >= 0 && ix >= 0 ? x[c * w.xc + iy * w.xh + ix] : U{};
  }
}

/// Channel-first outputs start as their bias, to which products add.
template <class U>
__global__ void __launch_bounds__(kThreads)
    fill_bias_kernel(ConvWork w, const U* bias, U* y, Divisor pixels, Divisor features) {
  const int64_t items = w.batch * features.n * pixels.n;
  for (int64_t i = first_item(); i < items; i += all_threads()) {
    const int64_t plane = pixels.of(i), pixel = i - plane * pixels.n, b = features.of(plane);
    const int64_t o = plane - b * features.n;
    y[b * w.yb + o * w.yc + pixel] = bias[o];
  }
}

/// Calls f with a null pointer of the unsigned type that is as wide as the elements.
template <class F>
void by_width(DType t, const F& f) {
  if (size_of(t) == 4) return f(static_cast<uint32_t*>(nullptr));
  f(static_cast<uint16_t*>(nullptr));
}

bool pointwise_conv(const Conv2dArgs& args, const ConvWork& w) {
  return w.taps == 1 && args.stride[0] == 1 && args.stride[1] == 1 && args.pad[0] == 0 && args.pad[1] == 0 &&
         args.pad[2] == 0 && args.pad[3] == 0;
}

void general_last(Context& ctx, CudaBackend& backend, const Conv2dArgs& args, const ConvWork& w) {
  const int64_t k = w.taps * w.group_channels, pixels = w.batch * w.ho * w.wo;
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  Tensor weight = args.weight.reshape({w.features, k});
  if (w.taps > 1 && w.group_channels > 1) {
    const Tensor reordered = ctx.allocate(args.weight.dtype(), {w.features, w.taps, w.group_channels});
    backend.transpose_copy(
        ctx, {args.weight.reshape({w.features, w.group_channels, w.taps}).permute({0, 2, 1}), reordered});
    weight = reordered.reshape({w.features, k});
  }
  const Tensor y = args.y.strided({pixels, w.features}, {w.yw, 1});
  const bool direct = pointwise_conv(args, w) && w.xh == w.width * w.xw &&
                      (w.batch == 1 || w.xb == w.height * w.width * w.xw);
  const int64_t most =
      direct ? pixels : std::max<int64_t>(kBlockBytes / std::max<int64_t>(k * size, 1), 1024);
  const int64_t block = std::min(most, pixels);
  const Tensor gathered = direct ? Tensor() : ctx.allocate(args.x.dtype(), {block, k});
  for (int64_t g = 0; g < args.groups; ++g)
    for (int64_t first = 0; first < pixels; first += block) {
      const int64_t count = std::min(block, pixels - first);
      GemmArgs product;
      if (direct) {
        product.a = args.x.strided({pixels, k}, {w.xw, 1}, g * w.group_channels);
      } else if (k > 0) {
        by_width(args.x.dtype(), [&](auto* type) {
          using U = std::remove_pointer_t<decltype(type)>;
          const auto launch = [&](auto pack) {
            constexpr int N = decltype(pack)::value;
            const Divisor packs(w.group_channels / N);
            const unsigned grid = grid_for(ctx, count * w.taps * packs.n, kThreads);
            gather_last_kernel<U, N><<<grid, kThreads, 0, stream_of(ctx)>>>(
                w, static_cast<const U*>(args.x.raw()) + g * w.group_channels,
                static_cast<U*>(gathered.raw()), first, count, packs, Divisor(w.taps), Divisor(w.kw),
                Divisor(w.wo), Divisor(w.ho));
            CUDA_CHECK_LAUNCH();
          };
          if (packable(args.x, 16) && w.group_channels * size % 16 == 0)
            launch(std::integral_constant<int, kVector<U>>{});
          else
            launch(std::integral_constant<int, 1>{});
        });
        product.a = gathered.slice(0, 0, count);
      } else {
        product.a = gathered.slice(0, 0, count);
      }
      product.b = weight.slice(0, g * w.group_features, (g + 1) * w.group_features);
      product.b_transposed = true;
      if (args.bias) product.bias = args.bias.slice(0, g * w.group_features, (g + 1) * w.group_features);
      product.c = y.slice(0, first, first + count).slice(1, g * w.group_features, (g + 1) * w.group_features);
      backend.gemm(ctx, product);
    }
}

void general_first(Context& ctx, CudaBackend& backend, const Conv2dArgs& args, const ConvWork& w) {
  const int64_t k = w.taps * w.group_channels;
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  if (args.bias)
    by_width(args.x.dtype(), [&](auto* type) {
      using U = std::remove_pointer_t<decltype(type)>;
      fill_bias_kernel<U><<<grid_for(ctx, args.y.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
          w, static_cast<const U*>(args.bias.raw()), static_cast<U*>(args.y.raw()), Divisor(w.ho * w.wo),
          Divisor(w.features));
      CUDA_CHECK_LAUNCH();
    });
  const bool direct = pointwise_conv(args, w) && (w.height == 1 || w.xh == w.width);
  const int64_t most =
      direct ? w.ho : std::max<int64_t>(kBlockBytes / std::max<int64_t>(k * w.wo * size, 1), 1);
  const int64_t block = std::min(most, w.ho);
  const Tensor gathered = direct ? Tensor() : ctx.allocate(args.x.dtype(), {k * block * w.wo});
  for (int64_t b = 0; b < w.batch; ++b)
    for (int64_t g = 0; g < args.groups; ++g)
      for (int64_t first = 0; first < w.ho; first += block) {
        const int64_t pixels = std::min(block, w.ho - first) * w.wo;
        const int64_t image = b * w.xb + g * w.group_channels * w.xc;
        GemmArgs product;
        product.a =
            args.weight.reshape({w.features, k}).slice(0, g * w.group_features, (g + 1) * w.group_features);
        if (direct) {
          product.b = args.x.strided({k, pixels}, {w.xc, 1}, image);
        } else {
          if (k > 0)
            by_width(args.x.dtype(), [&](auto* type) {
              using U = std::remove_pointer_t<decltype(type)>;
              gather_first_kernel<U><<<grid_for(ctx, k * pixels, kThreads), kThreads, 0, stream_of(ctx)>>>(
                  w, static_cast<const U*>(args.x.raw()) + image, static_cast<U*>(gathered.raw()), first,
                  Divisor(pixels), Divisor(w.taps), Divisor(w.kw), Divisor(w.wo));
              CUDA_CHECK_LAUNCH();
            });
          product.b = gathered.strided({k, pixels}, {pixels, 1});
        }
        product.c = args.y.strided({w.group_features, pixels}, {w.yc, 1},
                                   b * w.yb + g * w.group_features * w.yc + first * w.wo);
        product.accumulate = static_cast<bool>(args.bias);
        backend.gemm(ctx, product);
      }
}

// ---- transposed -------------------------------------------------------------------------------------------

/// A term is terms[pixel * by_pixel + feature * by_feature + tap * by_tap]. Items run along what y packs.
template <class T>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(ConvWork w, const float* terms, const T* bias, T* y, bool last, int64_t by_pixel,
                   int64_t by_feature, int64_t by_tap, Divisor inner, Divisor middle) {
  const int64_t items = w.group_features * w.ho * w.wo;
  for (int64_t i = first_item(); i < items; i += all_threads()) {
    // Channel-last (oy, ox, o), channel-first (o, oy, ox).
    const int64_t rest = inner.of(i), fast = i - rest * inner.n, slow = middle.of(rest);
    const int64_t mid = rest - slow * middle.n;
    const int64_t o = last ? fast : slow, oy = last ? slow : mid, ox = last ? mid : fast;
    float sum = bias ? widen(bias[o]) : 0.0f;
    for (int64_t p = 0; p < w.kh; ++p) {
      const int64_t row = oy + w.top - p * w.dilation_h;
      if (row < 0) continue;
      const int64_t iy = divide(row, w.stride_h);
      if (iy * w.stride_h != row || iy >= w.height) continue;
      for (int64_t q = 0; q < w.kw; ++q) {
        const int64_t column = ox + w.left - q * w.dilation_w;
        if (column < 0) continue;
        const int64_t ix = divide(column, w.stride_w);
        if (ix * w.stride_w != column || ix >= w.width) continue;
        sum += terms[(iy * w.width + ix) * by_pixel + o * by_feature + (p * w.kw + q) * by_tap];
      }
    }
    y[o * w.yc + oy * w.yh + ox * w.yw] = narrow<T>(sum);
  }
}

/// A packed copy in f32, or t itself where it is one.
Tensor packed_f32(Context& ctx, CudaBackend& backend, const Tensor& t) {
  Tensor packed = t;
  if (!t.contiguous()) {
    packed = ctx.allocate(t.dtype(), t.shape());
    backend.transpose_copy(ctx, {t, packed});
  }
  if (t.dtype() == DType::f32) return packed;
  const Tensor wide = ctx.allocate(DType::f32, t.shape());
  backend.cast(ctx, {packed, wide});
  return wide;
}

void transposed(Context& ctx, CudaBackend& backend, const Conv2dArgs& args, const ConvWork& w) {
  const int64_t pixels = w.height * w.width, k = w.group_features * w.taps;
  // Channel-last terms have their features together, so that neighbouring threads read neighbours.
  const Tensor weight = packed_f32(
      ctx, backend,
      args.channels_last ? args.weight.reshape({w.channels, w.group_features, w.taps}).permute({0, 2, 1})
                         : args.weight);
  const Tensor terms = ctx.allocate(DType::f32, {pixels * k});
  const int64_t by_pixel = args.channels_last ? k : 1;
  const int64_t by_feature = args.channels_last ? 1 : w.taps * pixels;
  const int64_t by_tap = args.channels_last ? w.group_features : pixels;
  for (int64_t b = 0; b < w.batch; ++b) {
    const Tensor x = packed_f32(ctx, backend, args.x.select(0, b));
    for (int64_t g = 0; g < args.groups; ++g) {
      const Tensor part =
          weight.reshape({w.channels, k}).slice(0, g * w.group_channels, (g + 1) * w.group_channels);
      GemmArgs product;
      if (args.channels_last) {
        product.a = x.strided({pixels, w.group_channels}, {w.channels, 1}, g * w.group_channels);
        product.b = part;
        product.c = terms.reshape({pixels, k});
      } else {
        product.a = part;
        product.a_transposed = true;
        product.b = x.strided({w.group_channels, pixels}, {pixels, 1}, g * w.group_channels * pixels);
        product.c = terms.reshape({k, pixels});
      }
      if (pixels > 0) backend.gemm(ctx, product);
      const int64_t o = g * w.group_features;
      by_float_type(args.y.dtype(), [&](auto type) {
        using T = typename decltype(type)::type;
        const auto* bias = static_cast<const T*>(args.bias.raw());
        const unsigned grid = grid_for(ctx, w.group_features * w.ho * w.wo, kThreads);
        collect_kernel<T><<<grid, kThreads, 0, stream_of(ctx)>>>(
            w, terms.data<float>(), bias ? bias + o : nullptr,
            static_cast<T*>(args.y.raw()) + b * w.yb + o * w.yc, args.channels_last, by_pixel, by_feature,
            by_tap, Divisor(args.channels_last ? w.group_features : w.wo),
            Divisor(args.channels_last ? w.wo : w.ho));
        CUDA_CHECK_LAUNCH();
      });
    }
  }
}

}  // namespace

void CudaBackend::conv2d(Context& ctx, const Conv2dArgs& args) {
  if (args.x.dtype() == DType::f64) throw Unsupported("conv2d: f64 convolutions run on the CPU only");
  const ConvWork w(args);
  if (args.transposed) return transposed(ctx, *this, args, w);
  if (args.groups == w.channels && w.channels == w.features)
    return by_float_type(args.x.dtype(),
                         [&](auto type) { depthwise<typename decltype(type)::type>(ctx, *this, args, w); });
  if (args.channels_last)
    general_last(ctx, *this, args, w);
  else
    general_first(ctx, *this, args, w);
}

}  // namespace attnbench
