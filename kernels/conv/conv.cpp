#include "kernels/conv/conv.hpp"

#include <algorithm>

#include "kernels/conv/geometry.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void patch_conv2d(Context& ctx, const PatchConv2dArgs& args) {
  const ArgumentCheck check(ctx, "patch_conv2d");
  check.present({{"x", args.x}, {"weight", args.weight}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16, DType::f64});
  check.same_dtype({"x", args.x}, {"weight", args.weight});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"weight", args.weight}, 4, 4);
  if (args.kernel < 1) check.fail("the kernel is " + std::to_string(args.kernel) + "; it must be 1 or more");
  const int64_t batch = args.x.dim(0), channels = args.x.dim(args.channels_last ? 3 : 1);
  const int64_t height = args.x.dim(args.channels_last ? 1 : 2) / args.kernel;
  const int64_t width = args.x.dim(args.channels_last ? 2 : 3) / args.kernel;
  const int64_t features = args.weight.dim(0);
  check.shape({"weight", args.weight}, {features, channels, args.kernel, args.kernel});
  check.shape({"y", args.y}, {batch, height, width, features});
  check.packed({"x", args.x});
  check.packed({"weight", args.weight}, 4);
  check.packed({"y", args.y}, 4);
  if (args.bias) {
    check.present({{"bias", args.bias}});
    check.same_dtype({"x", args.x}, {"bias", args.bias});
    check.shape({"bias", args.bias}, {features});
    check.packed({"bias", args.bias});
    check.disjoint({"bias", args.bias}, {"y", args.y});
  }
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"weight", args.weight}, {"y", args.y});
  const int64_t outputs = batch * height * width * features;
  Cost cost;
  cost.matmul = 2 * outputs * args.kernel * args.kernel * channels;
  cost.elementwise = args.bias ? outputs : 0;
  const int64_t used = batch * height * width * args.kernel * args.kernel * channels;
  cost.bytes_read = used * static_cast<int64_t>(size_of(args.x.dtype())) + args.weight.nbytes() +
                    (args.bias ? args.bias.nbytes() : 0);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (outputs > 0) ctx.backend().patch_conv2d(ctx, args);
}

int64_t conv_extent(int64_t n, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad_before,
                    int64_t pad_after, bool transposed) {
  const int64_t span = dilation * (kernel - 1) + 1;
  if (transposed) return n == 0 ? 0 : std::max<int64_t>((n - 1) * stride - pad_before - pad_after + span, 0);
  const int64_t room = n + pad_before + pad_after - span;
  return room < 0 ? 0 : room / stride + 1;
}

void conv2d(Context& ctx, const Conv2dArgs& args) {
  const ArgumentCheck check(ctx, "conv2d");
  check.present({{"x", args.x}, {"weight", args.weight}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16, DType::f64});
  check.same_dtype({"x", args.x}, {"weight", args.weight});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"weight", args.weight}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  const GridAxes axes(args.channels_last);
  const int64_t batch = args.x.dim(0), channels = args.x.dim(axes.channel),
                features = args.y.dim(axes.channel);
  if (args.groups < 1 || channels % args.groups != 0 || features % args.groups != 0)
    check.fail("groups is " + std::to_string(args.groups) + "; it must divide " + std::to_string(channels) +
               " input and " + std::to_string(features) + " output channels");
  const int64_t kernel[2] = {args.weight.dim(2), args.weight.dim(3)};
  check.shape({"weight", args.weight}, args.transposed
                                           ? Shape{channels, features / args.groups, kernel[0], kernel[1]}
                                           : Shape{features, channels / args.groups, kernel[0], kernel[1]});
  const char* word[2] = {"height", "width"};
  int64_t extent[2];
  for (size_t a = 0; a < 2; ++a) {
    const std::string axis = word[a];
    const int64_t n = args.x.dim(a == 0 ? axes.height : axes.width);
    const int64_t before = args.pad[2 * a], after = args.pad[2 * a + 1];
    if (kernel[a] < 1) check.fail("the kernel has no taps along the " + axis);
    if (args.stride[a] < 1 || args.dilation[a] < 1)
      check.fail("stride and dilation along the " + axis + " are " + std::to_string(args.stride[a]) +
                 " and " + std::to_string(args.dilation[a]) + "; they must be 1 or more");
    if (before < 0 || after < 0)
      check.fail("the padding along the " + axis + " is " + std::to_string(before) + " and " +
                 std::to_string(after) + "; it must be 0 or more");
    const int64_t most = std::max(before, after);
    if (args.border == Border::reflect && most >= n && most > 0)
      check.fail("a reflected padding of " + std::to_string(most) + " needs more than " + std::to_string(n) +
                 " positions along the " + axis);
    if (args.border == Border::circular && most > n)
      check.fail("a circular padding of " + std::to_string(most) +
                 " needs at least as many positions along the " + axis + ", not " + std::to_string(n));
    if (args.border == Border::replicate && n == 0 && most > 0)
      check.fail("there is no edge to replicate along the " + axis);
    extent[a] = conv_extent(n, kernel[a], args.stride[a], args.dilation[a], before, after, args.transposed);
    const int64_t have = args.y.dim(a == 0 ? axes.height : axes.width);
    if (args.transposed) {
      const int64_t extra = have - extent[a];
      if (extra < 0 || (extra > 0 && extra >= std::max(args.stride[a], args.dilation[a])))
        check.fail("the " + axis + " of y is " + std::to_string(have) + "; " + std::to_string(n) +
                   " positions give " + std::to_string(extent[a]) + " to " +
                   std::to_string(extent[a] + std::max(args.stride[a], args.dilation[a]) - 1));
      extent[a] = have;
    }
  }
  if (args.transposed && args.border != Border::zeros)
    check.fail("a transposed convolution has no border other than zeros");
  check.shape({"y", args.y}, args.channels_last ? Shape{batch, extent[0], extent[1], features}
                                                : Shape{batch, features, extent[0], extent[1]});
  check.packed({"x", args.x});
  check.packed({"weight", args.weight}, 4);
  if (args.channels_last) {
    check.packed({"y", args.y});
    const int64_t pixel = args.y.stride(2);
    if (args.y.numel() > 0 && ((extent[0] > 1 && args.y.stride(1) != extent[1] * pixel) ||
                               (batch > 1 && args.y.stride(0) != extent[0] * extent[1] * pixel)))
      check.fail("the pixels of 'y' " + args.y.shape().str() + " are not evenly spaced");
  } else {
    check.packed({"y", args.y}, 3);
  }
  if (args.bias) {
    check.present({{"bias", args.bias}});
    check.same_dtype({"x", args.x}, {"bias", args.bias});
    check.shape({"bias", args.bias}, {features});
    check.packed({"bias", args.bias});
    check.disjoint({"bias", args.bias}, {"y", args.y});
  }
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"weight", args.weight}, {"y", args.y});
  Cost cost;
  cost.matmul = args.transposed ? 2 * args.x.numel() * kernel[0] * kernel[1] * (features / args.groups)
                                : 2 * args.y.numel() * kernel[0] * kernel[1] * (channels / args.groups);
  cost.elementwise = args.bias ? args.y.numel() : 0;
  cost.bytes_read = args.x.nbytes() + args.weight.nbytes() + (args.bias ? args.bias.nbytes() : 0);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().conv2d(ctx, args);
}

void conv1d(Context& ctx, const Conv1dArgs& args) {
  const ArgumentCheck check(ctx, "conv1d");
  check.present({{"x", args.x}, {"weight", args.weight}, {"y", args.y}});
  check.rank({"x", args.x}, 3, 3);
  check.rank({"weight", args.weight}, 3, 3);
  check.rank({"y", args.y}, 3, 3);
  check.packed({"weight", args.weight}, 3);
  // One row: [B, L, C] -> [B, 1, L, C], [B, C, L] -> [B, C, 1, L].
  const auto row = [&](const Tensor& t) {
    return args.channels_last ? t.strided({t.dim(0), 1, t.dim(1), t.dim(2)},
                                          {t.stride(0), t.dim(1) * t.stride(1), t.stride(1), t.stride(2)})
                              : t.strided({t.dim(0), t.dim(1), 1, t.dim(2)},
                                          {t.stride(0), t.stride(1), t.stride(1), t.stride(2)});
  };
  Conv2dArgs grid;
  grid.x = row(args.x), grid.y = row(args.y), grid.bias = args.bias;
  grid.weight = args.weight.reshape({args.weight.dim(0), args.weight.dim(1), 1, args.weight.dim(2)});
  grid.channels_last = args.channels_last, grid.groups = args.groups;
  grid.stride = {1, args.stride}, grid.dilation = {1, args.dilation};
  grid.pad = {0, 0, args.pad[0], args.pad[1]};
  grid.border = args.border, grid.transposed = args.transposed;
  conv2d(ctx, grid);
}

}  // namespace attnbench
