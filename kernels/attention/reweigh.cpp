#include "kernels/attention/reweigh.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/check.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"

namespace attnbench {

namespace {

void check_rows(const ArgumentCheck& check, NamedTensor t, const Shape& shape) {
  check.present({t});
  check.dtype(t, {DType::f32});
  check.shape(t, shape);
  check.packed(t, t.tensor.rank());
}

void check_shares(const ArgumentCheck& check, const Tensor& apply, const Tensor& share, const Tensor& after,
                  const Shape& rows) {
  if (apply) check_rows(check, {"apply", apply}, {rows[0], rows[1]});
  if (share) check_rows(check, {"share", share}, rows);
  if (after) check_rows(check, {"share_after", after}, rows);
}

}  // namespace

void reweigh_attention(Context& ctx, const ReweighAttentionArgs& args) {
  const ArgumentCheck check(ctx, "reweigh_attention");
  check.present({{"o", args.o}, {"lse", args.lse}, {"o_s", args.o_s}, {"lse_s", args.lse_s}});
  check.rank({"o", args.o}, 4, 4);
  check.dtype({"o", args.o}, {DType::f32, DType::bf16, DType::f16});
  check.packed({"o", args.o}), check.packed({"o_s", args.o_s});
  check.same_dtype({"o_s", args.o_s}, {"o", args.o}), check.same_shape({"o_s", args.o_s}, {"o", args.o});
  const Shape rows{args.o.dim(0), args.o.dim(1), args.o.dim(2)};
  check_rows(check, {"lse", args.lse}, rows), check_rows(check, {"lse_s", args.lse_s}, rows);
  check_shares(check, args.apply, args.share, args.share_after, rows);
  Cost cost;
  cost.special = 2 * rows.numel();
  cost.bytes_read = 8 * rows.numel() + (args.apply ? args.apply.nbytes() : 0);
  cost.bytes_written = (args.share ? 4 : 0) * rows.numel() + (args.share_after ? 4 : 0) * rows.numel();
  if (args.y) {
    check.present({{"y", args.y}});
    check.same_dtype({"y", args.y}, {"o", args.o}), check.same_shape({"y", args.y}, {"o", args.o});
    check.packed({"y", args.y});
    check.same_or_disjoint({"y", args.y}, {"o", args.o}), check.disjoint({"y", args.y}, {"o_s", args.o_s});
    cost.elementwise = 4 * args.y.numel();
    cost.bytes_read += args.o.nbytes() + args.o_s.nbytes(), cost.bytes_written += args.y.nbytes();
  }
  ctx.cost().charge(cost);
  if (rows.numel() > 0) ctx.backend().reweigh_attention(ctx, args);
}

void reweigh_map(Context& ctx, const ReweighMapArgs& args) {
  const ArgumentCheck check(ctx, "reweigh_map");
  check.present({{"p", args.p}, {"members", args.members}, {"y", args.y}});
  check.rank({"p", args.p}, 4, 4);
  check_rows(check, {"p", args.p}, args.p.shape()), check_rows(check, {"y", args.y}, args.p.shape());
  check.same_or_disjoint({"y", args.y}, {"p", args.p});
  check.dtype({"members", args.members}, {DType::i32});
  check.shape({"members", args.members}, {args.p.dim(0), args.p.dim(1), args.p.dim(3)});
  check.packed({"members", args.members}, 3);
  const Shape rows{args.p.dim(0), args.p.dim(1), args.p.dim(2)};
  check_shares(check, args.apply, args.share, args.share_after, rows);
  Cost cost;
  cost.special = rows.numel();
  cost.elementwise = 2 * args.p.numel();
  cost.bytes_read = args.p.nbytes() + args.members.nbytes() + (args.apply ? args.apply.nbytes() : 0);
  cost.bytes_written =
      args.y.nbytes() + (args.share ? 4 : 0) * rows.numel() + (args.share_after ? 4 : 0) * rows.numel();
  ctx.cost().charge(cost);
  if (rows.numel() > 0) ctx.backend().reweigh_map(ctx, args);
}

namespace {

/// What a row with the share s becomes.
struct Factors {
  float members, others, after;
};
Factors factors_of(float s, float beta, bool apply) {
  if (!apply || !(1.0f - s > 0.0f)) return {1.0f, 1.0f, s};
  return {beta, 1.0f + (1.0f - beta) * s / (1.0f - s), beta * s};
}
bool applies(const Tensor& apply, int64_t head) { return !apply || apply.data<float>()[head] != 0.0f; }
void put(const Tensor& t, int64_t row, float x) {
  if (t) t.data<float>()[row] = x;
}

template <class T>
void reweigh_rows(Context& ctx, const ReweighAttentionArgs& args) {
  const RowOffsets o(args.o, 1), o_s(args.o_s, 1);
  const RowOffsets y = args.y ? RowOffsets(args.y, 1) : RowOffsets();
  const int64_t e = args.o.dim(3), n = args.o.dim(2);
  parallel_range(
      ctx.threads(), o.count(),
      std::max<int64_t>(1, kParallelBytes / (3 * e * static_cast<int64_t>(sizeof(T)) + 16)),
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const float s = std::exp(args.lse_s.data<float>()[r] - args.lse.data<float>()[r]);
          const Factors f = factors_of(s, args.beta, applies(args.apply, r / n));
          put(args.share, r, s), put(args.share_after, r, f.after);
          if (!args.y) continue;
          const T *all = args.o.data<T>() + o.offset(r), *some = args.o_s.data<T>() + o_s.offset(r);
          T* to = args.y.data<T>() + y.offset(r);
          const float take = (f.others - f.members) * s;
          if (take == 0.0f)  // nothing moves: the row as it is, bit by bit
            std::copy(all, all + e, to);
          else
            for (int64_t i = 0; i < e; ++i)
              to[i] = T(f.others * static_cast<float>(all[i]) - take * static_cast<float>(some[i]));
        }
      });
}

}  // namespace

void CpuBackend::reweigh_attention(Context& ctx, const ReweighAttentionArgs& args) {
  if (args.o.dtype() == DType::f32) return reweigh_rows<float>(ctx, args);
  if (args.o.dtype() == DType::bf16) return reweigh_rows<bf16>(ctx, args);
  reweigh_rows<f16>(ctx, args);
}

void CpuBackend::reweigh_map(Context& ctx, const ReweighMapArgs& args) {
  const int64_t n = args.p.dim(2), m = args.p.dim(3), rows = args.p.dim(0) * args.p.dim(1) * n;
  parallel_range(ctx.threads(), rows, std::max<int64_t>(1, kParallelBytes / (8 * std::max<int64_t>(m, 1))),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const float* p = args.p.data<float>() + r * m;
                     const int32_t* member = args.members.data<int32_t>() + r / n * m;
                     float* y = args.y.data<float>() + r * m;
                     double sum = 0;
                     for (int64_t j = 0; j < m; ++j) sum += member[j] ? static_cast<double>(p[j]) : 0.0;
                     const float s = static_cast<float>(sum);
                     const Factors f = factors_of(s, args.beta, applies(args.apply, r / n));
                     put(args.share, r, s), put(args.share_after, r, f.after);
                     for (int64_t j = 0; j < m; ++j) y[j] = p[j] * (member[j] ? f.members : f.others);
                   }
                 });
}

}  // namespace attnbench
