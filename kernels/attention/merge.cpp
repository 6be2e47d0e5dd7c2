#include "kernels/attention/merge.hpp"

#include <cmath>
#include <limits>

#include "kernels/core/check.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"

namespace attnbench {

void merge_attention(Context& ctx, const MergeAttentionArgs& args) {
  const ArgumentCheck check(ctx, "merge_attention");
  check.present(
      {{"o_a", args.o_a}, {"lse_a", args.lse_a}, {"o_b", args.o_b}, {"lse_b", args.lse_b}, {"o", args.o}});
  check.rank({"o", args.o}, 4, 4);
  check.dtype({"o", args.o}, {DType::f32, DType::bf16, DType::f16});
  const Shape rows{args.o.dim(0), args.o.dim(1), args.o.dim(2)};
  for (const NamedTensor& t : {NamedTensor{"o_a", args.o_a}, NamedTensor{"o_b", args.o_b}}) {
    check.same_dtype(t, {"o", args.o});
    check.same_shape(t, {"o", args.o});
    check.packed(t);
    check.same_or_disjoint(t, {"o", args.o});
  }
  check.packed({"o", args.o});
  for (const NamedTensor& t : {NamedTensor{"lse_a", args.lse_a}, NamedTensor{"lse_b", args.lse_b}}) {
    check.dtype(t, {DType::f32});
    check.shape(t, rows);
  }
  if (args.lse) {
    check.present({{"lse", args.lse}});
    check.dtype({"lse", args.lse}, {DType::f32});
    check.shape({"lse", args.lse}, rows);
  }
  Cost cost;
  cost.special = 3 * rows.numel();
  cost.elementwise = 3 * args.o.numel();
  cost.bytes_read = args.o_a.nbytes() + args.o_b.nbytes() + args.lse_a.nbytes() + args.lse_b.nbytes();
  cost.bytes_written = args.o.nbytes() + (args.lse ? args.lse.nbytes() : 0);
  ctx.cost().charge(cost);
  if (rows.numel() > 0) ctx.backend().merge_attention(ctx, args);
}

namespace {

template <class T>
void merge_rows(Context& ctx, const MergeAttentionArgs& args) {
  const RowOffsets a(args.o_a, 1), b(args.o_b, 1), o(args.o, 1);
  const RowOffsets lse_a(args.lse_a, 0), lse_b(args.lse_b, 0);
  const RowOffsets lse = args.lse ? RowOffsets(args.lse, 0) : RowOffsets();
  const int64_t e = args.o.dim(3);
  const T *from_a = args.o_a.data<T>(), *from_b = args.o_b.data<T>();
  T* to = args.o.data<T>();
  const int64_t row_bytes = 3 * e * static_cast<int64_t>(sizeof(T)) + 8;
  parallel_range(ctx.threads(), o.count(), std::max<int64_t>(kParallelBytes / row_bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const float la = args.lse_a.data<float>()[lse_a.offset(r)];
                     const float lb = args.lse_b.data<float>()[lse_b.offset(r)];
                     const float top = la > lb || std::isnan(la) ? la : lb;
                     const bool none = top == -std::numeric_limits<float>::infinity();
                     const float ea = none ? 0.0f : std::exp(la - top), eb = none ? 0.0f : std::exp(lb - top);
                     const float inverse = none ? 0.0f : 1.0f / (ea + eb);
                     const float wa = ea * inverse, wb = eb * inverse;
                     const T *x = from_a + a.offset(r), *y = from_b + b.offset(r);
                     T* z = to + o.offset(r);
                     // What carries no weight may hold anything.
                     if (none)
                       for (int64_t i = 0; i < e; ++i) z[i] = T(0.0f);
                     else if (wa == 0.0f || wb == 0.0f)
                       for (int64_t i = 0; i < e; ++i) z[i] = wa == 0.0f ? y[i] : x[i];
                     else
                       for (int64_t i = 0; i < e; ++i)
                         z[i] = T(wa * static_cast<float>(x[i]) + wb * static_cast<float>(y[i]));
                     if (args.lse)
                       args.lse.data<float>()[lse.offset(r)] = none ? top : top + std::log(ea + eb);
                   }
                 });
}

}  // namespace

void CpuBackend::merge_attention(Context& ctx, const MergeAttentionArgs& args) {
  if (args.o.dtype() == DType::f32) return merge_rows<float>(ctx, args);
  if (args.o.dtype() == DType::bf16) return merge_rows<bf16>(ctx, args);
  merge_rows<f16>(ctx, args);
}

}  // namespace attnbench
