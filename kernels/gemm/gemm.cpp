#include "kernels/gemm/gemm.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/core/rows.hpp"

namespace attnbench {

void gemm(Context& ctx, const GemmArgs& args) {
  const ArgumentCheck check(ctx, "gemm");
  check.present({{"a", args.a}, {"b", args.b}, {"c", args.c}});
  check.dtype({"a", args.a}, {DType::f32, DType::bf16, DType::f16, DType::f64});
  check.same_dtype({"a", args.a}, {"b", args.b});
  const bool unrounded = args.c.dtype() == DType::f32 && args.a.dtype() != DType::f64;
  if (!unrounded) check.same_dtype({"a", args.a}, {"c", args.c});
  check.rank({"a", args.a}, 2, Shape::kMaxRank);
  check.rank({"b", args.b}, 2, Shape::kMaxRank);
  const int rank = args.a.rank();
  check.rank({"c", args.c}, rank, rank);
  if (args.b.rank() != 2 && args.b.rank() != rank)
    check.fail("'b' " + args.b.shape().str() + " has neither the batch axes of 'a' " + args.a.shape().str() +
               " nor none");
  int64_t batch = 1;
  for (int i = 0; i < rank - 2; ++i) {
    if (args.c.dim(i) != args.a.dim(i) || (args.b.rank() == rank && args.b.dim(i) != args.a.dim(i)))
      check.fail("the batch axes of 'a' " + args.a.shape().str() + ", 'b' " + args.b.shape().str() +
                 " and 'c' " + args.c.shape().str() + " differ");
    batch *= args.a.dim(i);
  }
  const int64_t m = args.a.dim(args.a_transposed ? -1 : -2), k = args.a.dim(args.a_transposed ? -2 : -1);
  const int64_t n = args.b.dim(args.b_transposed ? -2 : -1), kb = args.b.dim(args.b_transposed ? -1 : -2);
  if (k != kb)
    check.fail("the inner extents differ: " + std::to_string(k) + " of 'a' " + args.a.shape().str() +
               " and " + std::to_string(kb) + " of 'b' " + args.b.shape().str());
  if (args.c.dim(-2) != m || args.c.dim(-1) != n)
    check.fail("'c' has shape " + args.c.shape().str() + " but its matrices must be [" + std::to_string(m) +
               ", " + std::to_string(n) + "]");
  check.packed({"a", args.a});
  check.packed({"b", args.b});
  check.packed({"c", args.c});
  if (m > 1 && args.c.stride(-2) < n)
    check.fail("the rows of 'c' overlap: their stride is " + std::to_string(args.c.stride(-2)) + " for " +
               std::to_string(n) + " columns");
  if (args.bias) {
    check.present({{"bias", args.bias}});
    check.same_dtype({"a", args.a}, {"bias", args.bias});
    if (args.c.dtype() != args.a.dtype())
      check.fail("a product of " + std::string(name(args.a.dtype())) + " whose sums stay f32 has no bias");
    check.shape({"bias", args.bias}, {n});
    check.packed({"bias", args.bias});
    check.disjoint({"bias", args.bias}, {"c", args.c});
  }
  check.disjoint({"a", args.a}, {"c", args.c});
  check.disjoint({"b", args.b}, {"c", args.c});
  const int64_t outputs = batch * m * n;
  Cost cost;
  cost.matmul = 2 * outputs * k;
  cost.elementwise = args.bias ? outputs : 0;
  cost.special = args.activation != Activation::none ? outputs : 0;
  cost.bytes_read = args.a.nbytes() + args.b.nbytes() + (args.bias ? args.bias.nbytes() : 0) +
                    (args.accumulate ? args.c.nbytes() : 0);
  cost.bytes_written = args.c.nbytes();
  ctx.cost().charge(cost);
  if (outputs > 0) ctx.backend().gemm(ctx, args);
}

void linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
            Activation activation) {
  const ArgumentCheck check(ctx, "linear");
  check.present({{"x", x}, {"weight", weight}, {"y", y}});
  check.rank({"x", x}, 1, Shape::kMaxRank);
  check.rank({"weight", weight}, 2, 2);
  check.rank({"y", y}, x.rank(), x.rank());
  for (int i = 0; i < x.rank() - 1; ++i)
    if (x.dim(i) != y.dim(i))
      check.fail("the rows of 'x' " + x.shape().str() + " and 'y' " + y.shape().str() + " differ");
  GemmArgs args;
  args.b = weight;
  args.b_transposed = true;
  args.bias = bias;
  args.activation = activation;
  // All rows become one matrix where one stride leads through them; else the outer axes stay a batch.
  const RowOffsets x_rows(x, 1), y_rows(y, 1);
  if (x.rank() < 2 || (x_rows.uniform() && y_rows.uniform())) {
    const auto matrix = [](const Tensor& t, const RowOffsets& rows) {
      return t.strided({rows.count(), t.dim(-1)},
                       {rows.count() > 1 ? rows.stride() : t.dim(-1), t.stride(-1)});
    };
    args.a = matrix(x, x_rows);
    args.c = matrix(y, y_rows);
  } else {
    args.a = x;
    args.c = y;
  }
  gemm(ctx, args);
}

}  // namespace attnbench
