// conv2d on the CPU: depthwise directly, general as gathered columns times the weight, transposed as products
// whose terms each output collects.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/conv/geometry.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/conv/conv_body.hpp"

namespace attnbench {
namespace {

/// Gathered columns are multiplied in blocks of about this many bytes, which bounds the workspace; see
/// patch_conv2d for the rows a product needs.
constexpr int64_t kBlockBytes = int64_t{32} << 20, kLeastRows = 512;

struct Sizes {
  int64_t batch, channels, features, group_channels, group_features, height, width, ho, wo, kh, kw, taps;
  int64_t xb, xc, xh, xw, yb, yc, yh, yw;  // strides
  explicit Sizes(const Conv2dArgs& a) {
    const GridAxes x(a.channels_last);
    batch = a.x.dim(0), channels = a.x.dim(x.channel), features = a.y.dim(x.channel);
    group_channels = channels / a.groups, group_features = features / a.groups;
    height = a.x.dim(x.height), width = a.x.dim(x.width), ho = a.y.dim(x.height), wo = a.y.dim(x.width);
    kh = a.weight.dim(2), kw = a.weight.dim(3), taps = kh * kw;
    xb = a.x.stride(0), xc = a.x.stride(x.channel), xh = a.x.stride(x.height), xw = a.x.stride(x.width);
    yb = a.y.stride(0), yc = a.y.stride(x.channel), yh = a.y.stride(x.height), yw = a.y.stride(x.width);
    if (a.channels_last) xc = yc = 1;
    if (!a.channels_last) xw = yw = 1;
  }
};

std::vector<float> as_floats(const Tensor& t) {
  std::vector<float> f(static_cast<size_t>(t.numel()));
  convert(t.raw(), t.dtype(), f.data(), DType::f32, t.numel());
  return f;
}

// ---- depthwise -------------------------------------------------------------------------------------------

void depthwise_last(Context& ctx, const Conv2dArgs& args, const Sizes& s) {
  const auto run = ATTNBENCH_BEST(depthwise_pixel);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const std::vector<float> given = as_floats(args.weight),
                           bias = args.bias ? as_floats(args.bias) : std::vector<float>();
  std::vector<float> weight(given.size());
  for (int64_t c = 0; c < s.channels; ++c)
    for (int64_t t = 0; t < s.taps; ++t)
      weight[static_cast<size_t>(t * s.channels + c)] = given[static_cast<size_t>(c * s.taps + t)];
  const auto* x = static_cast<const char*>(args.x.raw());
  auto* y = static_cast<char*>(args.y.raw());
  const int64_t line_bytes = s.wo * s.channels * size * std::min<int64_t>(s.taps, 8);
  parallel_range(
      ctx.threads(), s.batch * s.ho, std::max<int64_t>(kParallelBytes / std::max<int64_t>(line_bytes, 1), 1),
      [&](int64_t begin, int64_t end) {
        std::vector<const void*> taps(static_cast<size_t>(s.taps));
        for (int64_t line = begin; line < end; ++line) {
          const int64_t b = line / s.ho, oy = line % s.ho;
          for (int64_t ox = 0; ox < s.wo; ++ox) {
            for (int64_t p = 0; p < s.kh; ++p) {
              const int64_t iy = border_source(oy * args.stride[0] + p * args.dilation[0] - args.pad[0],
                                               s.height, args.border);
              for (int64_t q = 0; q < s.kw; ++q) {
                const int64_t ix = border_source(ox * args.stride[1] + q * args.dilation[1] - args.pad[2],
                                                 s.width, args.border);
                taps[static_cast<size_t>(p * s.kw + q)] =
                    iy < 0 || ix < 0 ? nullptr : x + (b * s.xb + iy * s.xh + ix * s.xw) * size;
              }
            }
            run(args.x.dtype(), taps.data(), s.taps, weight.data(), bias.empty() ? nullptr : bias.data(),
                y + (b * s.yb + oy * s.yh + ox * s.yw) * size, s.channels);
          }
        }
      });
}

void depthwise_first(Context& ctx, const Conv2dArgs& args, const Sizes& s) {
  const auto run = ATTNBENCH_BEST(depthwise_row);
  const DType t = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(t));
  const std::vector<float> weight = as_floats(args.weight),
                           bias = args.bias ? as_floats(args.bias) : std::vector<float>();
  // Every plane is widened with its border once, so that rows need no border code.
  const int64_t high = s.height + args.pad[0] + args.pad[1], wide = s.width + args.pad[2] + args.pad[3];
  const Tensor planes = ctx.allocate(DType::f32, {static_cast<int64_t>(ctx.threads()), high * wide});
  const auto* x = static_cast<const char*>(args.x.raw());
  auto* y = static_cast<char*>(args.y.raw());
  const int64_t plane_bytes = (s.height * s.width + s.ho * s.wo) * size;
  parallel_range(ctx.threads(), s.batch * s.channels,
                 std::max<int64_t>(kParallelBytes / std::max<int64_t>(plane_bytes, 1), 1),
                 [&](int64_t begin, int64_t end) {
                   float* plane = planes.data<float>() + thread_index() * high * wide;
                   std::vector<const float*> rows(static_cast<size_t>(s.kh));
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t b = item / s.channels, c = item % s.channels;
                     for (int64_t i = 0; i < high; ++i) {
                       const int64_t iy = border_source(i - args.pad[0], s.height, args.border);
                       float* row = plane + i * wide;
                       if (iy < 0) {
                         std::fill(row, row + wide, 0.0f);
                         continue;
                       }
                       float* inside = row + args.pad[2];
                       convert(x + (b * s.xb + c * s.xc + iy * s.xh) * size, t, inside, DType::f32, s.width);
                       for (int64_t j = -args.pad[2]; j < s.width + args.pad[3]; ++j) {
                         if (j == 0) j = s.width;  // the inside is there
                         if (j >= s.width + args.pad[3]) break;
                         const int64_t ix = border_source(j, s.width, args.border);
                         inside[j] = ix < 0 ? 0.0f : inside[ix];
                       }
                     }
                     for (int64_t oy = 0; oy < s.ho; ++oy) {
                       for (int64_t p = 0; p < s.kh; ++p)
                         rows[static_cast<size_t>(p)] =
                             plane + (oy * args.stride[0] + p * args.dilation[0]) * wide;
                       run(t, rows.data(), s.kh, s.kw, weight.data() + c * s.taps,
                           bias.empty() ? 0.0f : bias[static_cast<size_t>(c)], args.stride[1],
                           args.dilation[1], y + (b * s.yb + c * s.yc + oy * s.yh) * size, s.wo);
                     }
                   }
                 });
}

/// f64, for tests and references of other devices: no vectors.
void depthwise_f64(Context& ctx, const Conv2dArgs& args, const Sizes& s) {
  const auto* x = args.x.data<double>();
  const auto* w = args.weight.data<double>();
  auto* y = args.y.data<double>();
  parallel_range(ctx.threads(), s.batch * s.ho, 1, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const int64_t b = line / s.ho, oy = line % s.ho;
      for (int64_t ox = 0; ox < s.wo; ++ox)
        for (int64_t c = 0; c < s.channels; ++c) {
          double sum = args.bias ? args.bias.data<double>()[c] : 0.0;
          for (int64_t p = 0; p < s.kh; ++p)
            for (int64_t q = 0; q < s.kw; ++q) {
              const int64_t iy = border_source(oy * args.stride[0] + p * args.dilation[0] - args.pad[0],
                                               s.height, args.border);
              const int64_t ix = border_source(ox * args.stride[1] + q * args.dilation[1] - args.pad[2],
                                               s.width, args.border);
              if (iy >= 0 && ix >= 0)
                sum += x[b * s.xb + c * s.xc + iy * s.xh + ix * s.xw] * w[(c * s.kh + p) * s.kw + q];
            }
          y[b * s.yb + c * s.yc + oy * s.yh + ox * s.yw] = sum;
        }
    }
  });
}

// ---- general ---------------------------------------------------------------------------------------------

/// Columns of the pixels [first, first + count) of the whole batch: out[pixel][tap][channel of the group].
template <class T>
void gather_last(Context& ctx, const Conv2dArgs& args, const Sizes& s, int64_t group, int64_t first,
                 int64_t count, T* out) {
  const T* x = static_cast<const T*>(args.x.raw()) + group * s.group_channels;
  const int64_t k = s.taps * s.group_channels;
  const auto bytes = static_cast<size_t>(s.group_channels) * sizeof(T);
  parallel_range(
      ctx.threads(), count,
      std::max<int64_t>(kParallelBytes / std::max<int64_t>(2 * k * static_cast<int64_t>(sizeof(T)), 1), 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t at = first + i, b = at / (s.ho * s.wo), oy = at / s.wo % s.ho, ox = at % s.wo;
          T* to = out + i * k;
          for (int64_t p = 0; p < s.kh; ++p) {
            const int64_t iy = border_source(oy * args.stride[0] + p * args.dilation[0] - args.pad[0],
                                             s.height, args.border);
            for (int64_t q = 0; q < s.kw; ++q, to += s.group_channels) {
              const int64_t ix = border_source(ox * args.stride[1] + q * args.dilation[1] - args.pad[2],
                                               s.width, args.border);
              if (iy < 0 || ix < 0)
                std::memset(to, 0, bytes);
              else
                std::memcpy(to, x + b * s.xb + iy * s.xh + ix * s.xw, bytes);
            }
          }
        }
      });
}

/// Rows [first, first + lines) of image b's output: out[channel of the group][tap][pixel].
template <class T>
void gather_first(Context& ctx, const Conv2dArgs& args, const Sizes& s, int64_t group, int64_t b,
                  int64_t first, int64_t lines, T* out) {
  const T* x = static_cast<const T*>(args.x.raw()) + b * s.xb + group * s.group_channels * s.xc;
  const int64_t pixels = lines * s.wo;
  parallel_range(
      ctx.threads(), s.group_channels * s.taps,
      std::max<int64_t>(kParallelBytes / std::max<int64_t>(2 * pixels * static_cast<int64_t>(sizeof(T)), 1),
                        1),
      [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t c = k / s.taps, p = k % s.taps / s.kw, q = k % s.kw;
          // Outputs whose source lies inside: 0 <= ox stride + shift < width.
          const int64_t step = args.stride[1], shift = q * args.dilation[1] - args.pad[2];
          const int64_t low = std::clamp<int64_t>(shift >= 0 ? 0 : (-shift + step - 1) / step, 0, s.wo);
          const int64_t high =
              std::clamp<int64_t>(s.width - shift <= 0 ? 0 : (s.width - shift - 1) / step + 1, low, s.wo);
          for (int64_t line = 0; line < lines; ++line) {
            T* to = out + k * pixels + line * s.wo;
            const int64_t iy = border_source(
                (first + line) * args.stride[0] + p * args.dilation[0] - args.pad[0], s.height, args.border);
            if (iy < 0) {
              std::memset(static_cast<void*>(to), 0, static_cast<size_t>(s.wo) * sizeof(T));
              continue;
            }
            const T* from = x + c * s.xc + iy * s.xh;
            const auto outside = [&](int64_t ox) {
              const int64_t ix = border_source(ox * step + shift, s.width, args.border);
              to[ox] = ix < 0 ? T{} : from[ix];
            };
            for (int64_t ox = 0; ox < low; ++ox) outside(ox);
            if (step == 1)
              std::memcpy(to + low, from + low + shift, static_cast<size_t>(high - low) * sizeof(T));
            else
              for (int64_t ox = low; ox < high; ++ox) to[ox] = from[ox * step + shift];
            for (int64_t ox = high; ox < s.wo; ++ox) outside(ox);
          }
        }
      });
}

/// Calls f with a null pointer of the unsigned type that is as wide as the elements.
template <class F>
void by_width(DType t, const F& f) {
  if (size_of(t) == 8) return f(static_cast<uint64_t*>(nullptr));
  if (size_of(t) == 4) return f(static_cast<uint32_t*>(nullptr));
  f(static_cast<uint16_t*>(nullptr));
}

/// Channel-first outputs start as their bias, to which products add: a product's own bias runs along columns.
void fill_bias(Context& ctx, const Conv2dArgs& args, const Sizes& s) {
  by_width(args.y.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* bias = static_cast<const T*>(args.bias.raw());
    T* y = static_cast<T*>(args.y.raw());
    parallel_range(ctx.threads(), s.batch * s.features, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* plane = y + i / s.features * s.yb + i % s.features * s.yc;
        std::fill(plane, plane + s.ho * s.wo, bias[i % s.features]);
      }
    });
  });
}

bool pointwise_conv(const Conv2dArgs& args, const Sizes& s) {
  return s.taps == 1 && args.stride == std::array<int64_t, 2>{1, 1} &&
         args.pad == std::array<int64_t, 4>{0, 0, 0, 0};
}

void general_last(Context& ctx, CpuBackend& backend, const Conv2dArgs& args, const Sizes& s) {
  const int64_t k = s.taps * s.group_channels, pixels = s.batch * s.ho * s.wo;
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  Tensor weight = args.weight.reshape({s.features, k});
  if (s.taps > 1 && s.group_channels > 1) {
    const Tensor reordered = ctx.allocate(args.weight.dtype(), {s.features, s.taps, s.group_channels});
    backend.transpose_copy(
        ctx, {args.weight.reshape({s.features, s.group_channels, s.taps}).permute({0, 2, 1}), reordered});
    weight = reordered.reshape({s.features, k});
  }
  const Tensor y = args.y.strided({pixels, s.features}, {s.yw, 1});
  const bool direct = pointwise_conv(args, s) && args.x.stride(1) == s.width * s.xw &&
                      (s.batch == 1 || s.xb == s.height * s.width * s.xw);
  const int64_t most =
      direct ? pixels : std::max<int64_t>(kBlockBytes / std::max<int64_t>(k * size, 1), kLeastRows);
  const int64_t blocks = (pixels + most - 1) / most, block = (pixels + blocks - 1) / blocks;
  const Tensor gathered = direct ? Tensor() : ctx.allocate(args.x.dtype(), {block, k});
  for (int64_t g = 0; g < args.groups; ++g)
    for (int64_t first = 0; first < pixels; first += block) {
      const int64_t count = std::min(block, pixels - first);
      GemmArgs product;
      if (direct) {
        product.a = args.x.strided({pixels, k}, {s.xw, 1}, g * s.group_channels);
      } else {
        by_width(args.x.dtype(), [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          gather_last(ctx, args, s, g, first, count, static_cast<T*>(gathered.raw()));
        });
        product.a = gathered.slice(0, 0, count);
      }
      product.b = weight.slice(0, g * s.group_features, (g + 1) * s.group_features);
      product.b_transposed = true;
      if (args.bias) product.bias = args.bias.slice(0, g * s.group_features, (g + 1) * s.group_features);
      product.c = y.slice(0, first, first + count).slice(1, g * s.group_features, (g + 1) * s.group_features);
      backend.gemm(ctx, product);
    }
}

void general_first(Context& ctx, CpuBackend& backend, const Conv2dArgs& args, const Sizes& s) {
  const int64_t k = s.taps * s.group_channels;
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  if (args.bias) fill_bias(ctx, args, s);
  const bool direct = pointwise_conv(args, s) && (s.height == 1 || s.xh == s.width);
  const int64_t most =
      direct ? s.ho
             : std::max<int64_t>({kBlockBytes / std::max<int64_t>(k * s.wo * size, 1), kLeastRows / s.wo, 1});
  const int64_t blocks = (s.ho + most - 1) / most, block = (s.ho + blocks - 1) / blocks;
  const Tensor gathered = direct ? Tensor() : ctx.allocate(args.x.dtype(), {k * block * s.wo});
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t g = 0; g < args.groups; ++g)
      for (int64_t first = 0; first < s.ho; first += block) {
        const int64_t lines = std::min(block, s.ho - first), pixels = lines * s.wo;
        GemmArgs product;
        product.a =
            args.weight.reshape({s.features, k}).slice(0, g * s.group_features, (g + 1) * s.group_features);
        if (direct) {
          product.b = args.x.strided({k, pixels}, {s.xc, 1}, b * s.xb + g * s.group_channels * s.xc);
        } else {
          by_width(args.x.dtype(), [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            gather_first(ctx, args, s, g, b, first, lines, static_cast<T*>(gathered.raw()));
          });
          product.b = gathered.strided({k, pixels}, {pixels, 1});
        }
        product.c = args.y.strided({s.group_features, pixels}, {s.yc, 1},
                                   b * s.yb + g * s.group_features * s.yc + first * s.wo);
        product.accumulate = static_cast<bool>(args.bias);
        backend.gemm(ctx, product);
      }
}

// ---- transposed ------------------------------------------------------------------------------------------

/// A packed copy in `wide`, or t itself where it is one.
Tensor packed_in(Context& ctx, CpuBackend& backend, const Tensor& t, DType wide) {
  Tensor packed = t;
  if (!t.contiguous()) {
    packed = ctx.allocate(t.dtype(), t.shape());
    backend.transpose_copy(ctx, {t, packed});
  }
  if (t.dtype() == wide) return packed;
  const Tensor cast = ctx.allocate(wide, t.shape());
  backend.cast(ctx, {packed, cast});
  return cast;
}

/// W is float, or double for f64: terms are added before they are rounded to storage.
template <class W>
void transposed(Context& ctx, CpuBackend& backend, const Conv2dArgs& args, const Sizes& s) {
  const DType wide = dtype_of<W>::value;
  const Tensor weight = packed_in(ctx, backend, args.weight, wide);
  const Tensor bias = args.bias ? packed_in(ctx, backend, args.bias, wide) : Tensor();
  const int64_t pixels = s.height * s.width, k = s.group_features * s.taps;
  // Terms of one image and group: [pixel][feature, tap], or [feature, tap][pixel] channel-first.
  const Tensor terms = ctx.allocate(wide, {pixels * k});
  for (int64_t b = 0; b < s.batch; ++b) {
    const Tensor x = packed_in(ctx, backend, args.x.select(0, b), wide);
    for (int64_t g = 0; g < args.groups; ++g) {
      const Tensor w =
          weight.reshape({s.channels, k}).slice(0, g * s.group_channels, (g + 1) * s.group_channels);
      GemmArgs product;
      if (args.channels_last) {
        product.a = x.strided({pixels, s.group_channels}, {s.channels, 1}, g * s.group_channels);
        product.b = w;
        product.c = terms.reshape({pixels, k});
      } else {
        product.a = w;
        product.a_transposed = true;
        product.b = x.strided({s.group_channels, pixels}, {pixels, 1}, g * s.group_channels * pixels);
        product.c = terms.reshape({k, pixels});
      }
      if (pixels > 0) backend.gemm(ctx, product);
      const int64_t by_pixel = args.channels_last ? k : 1, by_term = args.channels_last ? 1 : pixels;
      const W* in = terms.data<W>();
      const auto collect = [&](int64_t o, int64_t oy, int64_t ox) {
        W sum = bias ? bias.data<W>()[g * s.group_features + o] : W{};
        for (int64_t p = 0; p < s.kh; ++p) {
          const int64_t y = oy + args.pad[0] - p * args.dilation[0];
          if (y < 0 || y % args.stride[0] != 0 || y / args.stride[0] >= s.height) continue;
          for (int64_t q = 0; q < s.kw; ++q) {
            const int64_t x_at = ox + args.pad[2] - q * args.dilation[1];
            if (x_at < 0 || x_at % args.stride[1] != 0 || x_at / args.stride[1] >= s.width) continue;
            sum += in[(y / args.stride[0] * s.width + x_at / args.stride[1]) * by_pixel +
                      (o * s.taps + p * s.kw + q) * by_term];
          }
        }
        return sum;
      };
      const DType t = args.y.dtype();
      auto* y = static_cast<char*>(args.y.raw());
      parallel_range(ctx.threads(), s.ho, 1, [&](int64_t begin, int64_t end) {
        // A run of y that is packed: the features of a pixel, or the pixels of a feature's row.
        const int64_t run = args.channels_last ? s.group_features : s.wo;
        std::vector<W> line(static_cast<size_t>(run));
        for (int64_t oy = begin; oy < end; ++oy)
          for (int64_t other = 0; other < (args.channels_last ? s.wo : s.group_features); ++other) {
            for (int64_t i = 0; i < run; ++i)
              line[static_cast<size_t>(i)] =
                  args.channels_last ? collect(i, oy, other) : collect(other, oy, i);
            const int64_t o = g * s.group_features;
            const int64_t at =
                b * s.yb + oy * s.yh + (args.channels_last ? other * s.yw + o : (o + other) * s.yc);
            convert(line.data(), wide, y + at * static_cast<int64_t>(size_of(t)), t, run);
          }
      });
    }
  }
}

}  // namespace

void CpuBackend::conv2d(Context& ctx, const Conv2dArgs& args) {
  const Sizes s(args);
  if (args.transposed)
    return args.x.dtype() == DType::f64 ? transposed<double>(ctx, *this, args, s)
                                        : transposed<float>(ctx, *this, args, s);
  if (args.groups == s.channels && s.channels == s.features) {
    if (args.x.dtype() == DType::f64) return depthwise_f64(ctx, args, s);
    return args.channels_last ? depthwise_last(ctx, args, s) : depthwise_first(ctx, args, s);
  }
  args.channels_last ? general_last(ctx, *this, args, s) : general_first(ctx, *this, args, s);
}

}  // namespace attnbench
