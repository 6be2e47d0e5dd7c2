#include "kernels/pool/pool.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/pool/geometry.hpp"

namespace attnbench {
namespace {

/// Elements that all cells of one axis read; overlapping cells count twice.
int64_t reads(int64_t in, int64_t out, bool adaptive) {
  if (!adaptive) return in;
  int64_t n = 0;
  for (int64_t i = 0; i < out; ++i) n += ((i + 1) * in + out - 1) / out - i * in / out;
  return n;
}

}  // namespace

void avg_pool2d(Context& ctx, const AvgPool2dArgs& args) {
  const ArgumentCheck check(ctx, "avg_pool2d");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  const int64_t batch = args.x.dim(0), channels = args.x.dim(3);
  const int64_t in[2] = {args.x.dim(1), args.x.dim(2)}, out[2] = {args.y.dim(1), args.y.dim(2)};
  check.shape({"y", args.y}, {batch, out[0], out[1], channels});
  for (int axis = 0; axis < 2; ++axis) {
    if (in[axis] == 0 && out[axis] > 0)
      check.fail("the grid " + args.x.shape().str() + " has nothing to average into " + args.y.shape().str());
    if (!args.adaptive && (out[axis] == 0 ? in[axis] != 0 : in[axis] % out[axis] != 0))
      check.fail("the output extent " + std::to_string(out[axis]) + " does not divide the input extent " +
                 std::to_string(in[axis]) + "; set adaptive for uneven cells");
  }
  check.disjoint({"x", args.x}, {"y", args.y});
  Cost cost;
  cost.elementwise = batch * channels *
                         (out[0] == 0 || out[1] == 0
                              ? 0
                              : reads(in[0], out[0], args.adaptive) * reads(in[1], out[1], args.adaptive)) +
                     args.y.numel();
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().avg_pool2d(ctx, args);
}

void pool2d(Context& ctx, const Pool2dArgs& args) {
  const ArgumentCheck check(ctx, "pool2d");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  const int channel = args.channels_last ? 3 : 1;
  if (args.x.dim(0) != args.y.dim(0) || args.x.dim(channel) != args.y.dim(channel))
    check.fail("'x' " + args.x.shape().str() + " and 'y' " + args.y.shape().str() +
               " differ in batch or channels");
  int64_t read[2] = {0, 0};
  for (int a = 0; a < 2; ++a) {
    const PoolAxis axis(args, a);
    const std::string word = a == 0 ? "height" : "width";
    if (!args.adaptive) {
      if (axis.kernel < 1 || axis.stride < 1 || axis.before < 0 || axis.after < 0)
        check.fail("kernel, stride and padding along the " + word + " are " + std::to_string(axis.kernel) +
                   ", " + std::to_string(axis.stride) + ", " + std::to_string(axis.before) + " and " +
                   std::to_string(axis.after) + "; windows need positive extents");
      const int64_t room = axis.in + axis.before + axis.after - axis.kernel;
      const int64_t want = room < 0 ? 0 : room / axis.stride + 1;
      if (axis.out != want)
        check.fail("the " + word + " of 'y' is " + std::to_string(axis.out) + "; windows of " +
                   std::to_string(axis.kernel) + " give " + std::to_string(want));
    } else if (axis.in == 0 && axis.out > 0) {
      check.fail("the grid " + args.x.shape().str() + " has nothing to pool");
    }
    for (int64_t i = 0; i < axis.out; ++i) {
      if (axis.end(i) <= axis.begin(i))
        check.fail("window " + std::to_string(i) + " along the " + word + " lies in the padding");
      read[a] += axis.end(i) - axis.begin(i);
    }
  }
  check.disjoint({"x", args.x}, {"y", args.y});
  const bool average = args.kind == Pool2dArgs::Kind::average;
  Cost cost;
  cost.elementwise = args.x.dim(0) * args.x.dim(channel) * read[0] * read[1] + (average ? args.y.numel() : 0);
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().pool2d(ctx, args);
}

}  // namespace attnbench
