#include "kernels/conv/conv.hpp"

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

}  // namespace attnbench
