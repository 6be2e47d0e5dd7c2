#include "kernels/linear_attention/linear_attention.hpp"

#include <algorithm>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

Cost linear_attention_cost(const LinearAttentionArgs& args) {
  using Form = LinearAttentionArgs::Form;
  const int64_t heads = args.q.dim(0) * args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3),
                e = args.v.dim(3);
  const int64_t block = args.block_size;
  Cost head;
  if (args.form == Form::quadratic) {
    // Row blocks see all blocks before them, and themselves as full tiles; the last block may be short.
    int64_t pairs = n * n;
    if (args.causal) {
      const int64_t full = n / block, rest = n % block;
      pairs = block * block * (full * (full + 1) / 2) + rest * n;
    }
    head.matmul = 2 * pairs * (d + e);
    head.elementwise = args.causal ? pairs : 0;
  } else if (!args.causal || args.form == Form::recurrent) {
    head.matmul = 4 * n * d * e;
    head.elementwise = args.causal ? n * d * e : 0;
  } else {
    head.matmul = n * (2 * block * d + 2 * block * e + 4 * d * e);
    head.elementwise = n * block;
  }
  Cost cost = head * heads;
  cost.bytes_read = args.q.nbytes() + args.k.nbytes() + args.v.nbytes() + args.log_decay.nbytes() +
                    (args.state_in ? args.state_in.nbytes() : 0);
  cost.bytes_written = args.o.nbytes() + (args.state_out ? args.state_out.nbytes() : 0);
  return cost;
}

void linear_attention(Context& ctx, const LinearAttentionArgs& args) {
  const ArgumentCheck check(ctx, "linear_attention");
  check.present({{"q", args.q}, {"k", args.k}, {"v", args.v}, {"o", args.o}, {"log_decay", args.log_decay}});
  check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"q", args.q}, {"k", args.k});
  check.same_dtype({"q", args.q}, {"v", args.v});
  check.same_dtype({"q", args.q}, {"o", args.o});
  check.rank({"q", args.q}, 4, 4);
  check.rank({"v", args.v}, 4, 4);
  const int64_t b = args.q.dim(0), h = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3), e = args.v.dim(3);
  check.same_shape({"q", args.q}, {"k", args.k});
  check.shape({"v", args.v}, {b, h, n, e});
  check.shape({"o", args.o}, {b, h, n, e});
  for (const NamedTensor& t : {NamedTensor{"q", args.q}, NamedTensor{"k", args.k}, NamedTensor{"v", args.v},
                               NamedTensor{"o", args.o}})
    check.packed(t);
  check.dtype({"log_decay", args.log_decay}, {DType::f32});
  check.shape({"log_decay", args.log_decay}, {h});
  check.packed({"log_decay", args.log_decay});
  for (const NamedTensor& t : {NamedTensor{"q", args.q}, NamedTensor{"k", args.k}, NamedTensor{"v", args.v},
                               NamedTensor{"log_decay", args.log_decay}})
    check.disjoint(t, {"o", args.o});
  for (const NamedTensor& t :
       {NamedTensor{"state_in", args.state_in}, NamedTensor{"state_out", args.state_out}}) {
    if (!t.tensor) continue;
    check.present({t});
    check.dtype(t, {DType::f32});
    check.shape(t, {b, h, d, e});
    check.packed(t, 2);
    check.disjoint(t, {"o", args.o});
  }
  if (args.state_in && args.state_out)
    check.same_or_disjoint({"state_in", args.state_in}, {"state_out", args.state_out});
  if (args.block_size < 1)
    check.fail("the block size is " + std::to_string(args.block_size) + "; it must be 1 or more");
  if (ctx.device() == DeviceKind::cpu) {
    for (int64_t i = 0; i < h; ++i) {
      const float l = args.log_decay.data<float>()[i];
      if (!(l <= 0.0f))
        check.fail("log_decay[" + std::to_string(i) + "] is " + std::to_string(l) + "; it must be 0 or less");
      if (!args.causal && l != 0.0f)
        check.fail("log_decay[" + std::to_string(i) + "] is " + std::to_string(l) +
                   "; it must be 0 when causal is off");
    }
  }
  ctx.cost().charge(linear_attention_cost(args));
  ctx.backend().linear_attention(ctx, args);
}

}  // namespace attnbench
