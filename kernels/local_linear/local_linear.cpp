#include "kernels/local_linear/local_linear.hpp"

#include <string>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

Cost local_linear_cost(const LocalLinearArgs& args) {
  const int64_t heads = args.q.dim(0) * args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3),
                m = args.k.dim(2), e = args.v.dim(3);
  const int64_t pairs = args.causal ? n * (m - n) + n * (n + 1) / 2 : n * m, jacobi = args.jacobi ? 1 : 0;
  const int64_t blocks = args.block > 0 ? d / args.block : 0, t = args.iterations;
  Cost head;
  head.matmul = 2 * pairs * (3 * d + e + jacobi * d + 2 * t * d);
  // Pairs: scale, subtract the maximum and sum; one product an iteration (blocks of channels have their own);
  // c - r.k and its product. Rows: vectors of D and what is divided.
  head.elementwise = pairs * (3 + t * blocks + 2) + n * d * (8 + 6 * jacobi + 16 * t);
  head.special = pairs + n * (d + 3 + jacobi * d + t * (2 + jacobi * d));
  Cost cost = head * heads;
  cost.bytes_read = args.q.nbytes() + args.k.nbytes() + args.v.nbytes();
  cost.bytes_written = args.o.nbytes() + args.omega.nbytes() + args.rho.nbytes() + args.coefficient.nbytes() +
                       args.delta.nbytes();
  return cost;
}

void local_linear(Context& ctx, const LocalLinearArgs& args) {
  const ArgumentCheck check(ctx, "local_linear");
  check.present({{"q", args.q}, {"k", args.k}, {"v", args.v}, {"o", args.o}});
  check.present(
      {{"omega", args.omega}, {"rho", args.rho}, {"coefficient", args.coefficient}, {"delta", args.delta}});
  check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
  for (const NamedTensor& t : {NamedTensor{"k", args.k}, NamedTensor{"v", args.v}, NamedTensor{"o", args.o}})
    check.same_dtype({"q", args.q}, t);
  check.rank({"q", args.q}, 4, 4);
  check.rank({"k", args.k}, 4, 4);
  check.rank({"v", args.v}, 4, 4);
  const int64_t b = args.q.dim(0), h = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3), m = args.k.dim(2),
                e = args.v.dim(3);
  check.shape({"k", args.k}, {b, h, m, d});
  check.shape({"v", args.v}, {b, h, m, e});
  check.shape({"o", args.o}, {b, h, n, e});
  check.shape({"rho", args.rho}, {b, h, n, d});
  for (const NamedTensor& t : {NamedTensor{"omega", args.omega}, NamedTensor{"coefficient", args.coefficient},
                               NamedTensor{"delta", args.delta}})
    check.shape(t, {b, h, n});
  const NamedTensor inputs[] = {{"q", args.q}, {"k", args.k}, {"v", args.v}};
  const NamedTensor outputs[] = {{"o", args.o},
                                 {"omega", args.omega},
                                 {"rho", args.rho},
                                 {"coefficient", args.coefficient},
                                 {"delta", args.delta}};
  for (const NamedTensor& t : inputs) check.packed(t);
  for (const NamedTensor& t : outputs) {
    check.packed(t);
    if (t.name != "o") check.dtype(t, {DType::f32});
    for (const NamedTensor& in : inputs) check.disjoint(in, t);
    for (const NamedTensor& other : outputs)
      if (other.name != t.name) check.disjoint(other, t);
  }
  if (m < 1 && n > 0) check.fail("there are no keys, and a regression needs one");
  if (args.causal && m < n)
    check.fail("the first of " + std::to_string(n) + " queries sees none of " + std::to_string(m) +
               " keys, and a regression needs one");
  if (!(args.lambda > 0)) check.fail("lambda is " + std::to_string(args.lambda) + "; it must be above 0");
  if (args.iterations < 0)
    check.fail(std::to_string(args.iterations) + " iterations were asked for; there must be 0 or more");
  if (d < 1 || e < 1) check.fail("D and E must be 1 or more");
  if (args.block < 1 || d % args.block != 0)
    check.fail("blocks of " + std::to_string(args.block) + " channels do not divide " + std::to_string(d));
  if (args.row_tile < 1)
    check.fail("row_tile is " + std::to_string(args.row_tile) + "; it must be 1 or more");
  ctx.cost().charge(local_linear_cost(args));
  if (args.o.numel() == 0) return;
  ctx.backend().local_linear(ctx, args);
}

}  // namespace attnbench
