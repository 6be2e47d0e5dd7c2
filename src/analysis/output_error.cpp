// How far a sparse method's output is from that of the dense attention it stands for.
#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/dense_side.hpp"
#include "analysis/summary.hpp"
#include "inputs/inputs.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {

namespace {

class OutputError final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "output_error";
      i.title = "Output against dense attention";
      i.summary =
          "The method's output beside that of dense softmax attention on the same rounded inputs, on the "
          "same device: "
          "what the selection, and not the arithmetic, costs. Over everything, by head, and by row.";
      i.formula =
          "relative_l2 = |o - o_dense| / |o_dense|      Frobenius norms over all heads and rows, and by "
          "head\n"
          "row error = |o_i - o_dense,i| / |o_dense,i|;  cosine = mean_i o_i . o_dense,i / (|o_i| "
          "|o_dense,i|)\n"
          "max_abs = max |o - o_dense|";
      i.unit = "relative";
      i.headline = {"relative_l2", "p95_row", "cosine", "max_abs"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&, const Params&) const override {
    DenseSide side(ctx, instance, info().id);
    const DenseEquivalent& d = side.dense();
    if (!d.output || !d.call.v)
      throw Unsupported("output_error: the method's heads are mixed before they are given out");
    AttentionArgs call = d.call;
    const Shape shape{call.q.dim(0), call.q.dim(1), call.q.dim(2), call.v.dim(3)};
    call.o = ctx.allocate(call.q.dtype(), shape);
    attention(ctx, call);
    const std::vector<double> want = values(ctx, call.o), got = values(ctx, d.output);
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t width = shape[3];
    double error = 0, norm = 0, worst = 0;
    std::vector<double> by_row, cosines;
    for (int64_t h = 0; h < shape[1]; ++h) {
      double head_error = 0, head_norm = 0;
      for (int64_t b = 0; b < shape[0]; ++b)
        for (int64_t i = 0; i < shape[2]; ++i) {
          const int64_t at = ((b * shape[1] + h) * shape[2] + i) * width;
          double e = 0, w = 0, g = 0, dot = 0;
          for (int64_t c = at; c < at + width; ++c) {
            const double x = got[static_cast<size_t>(c)], y = want[static_cast<size_t>(c)];
            e += (x - y) * (x - y), w += y * y, g += x * x, dot += x * y;
            worst = std::max(worst, std::abs(x - y));
          }
          head_error += e, head_norm += w;
          if (w > 0) by_row.push_back(std::sqrt(e / w));
          if (w > 0 && g > 0) cosines.push_back(dot / std::sqrt(w * g));
        }
      r.series["head_relative_l2"].push_back(head_norm > 0 ? std::sqrt(head_error / head_norm) : NAN);
      error += head_error, norm += head_norm;
    }
    r.scalars["relative_l2"] = norm > 0 ? std::sqrt(error / norm) : NAN;
    const Summary s = summarize(by_row);
    r.scalars["mean_row"] = s.mean, r.scalars["p50_row"] = s.p50, r.scalars["p95_row"] = s.p95;
    r.scalars["max_row"] = s.max;
    r.scalars["cosine"] = summarize(cosines).mean;
    r.scalars["max_abs"] = worst;
    return r;
  }

 private:
  static std::vector<double> values(Context& ctx, const Tensor& t) {
    Tensor packed = t;
    if (!t.contiguous()) {
      packed = ctx.allocate(t.dtype(), t.shape());
      transpose_copy(ctx, {t, packed});
    }
    Context host(cpu_backend(), 1);
    const Tensor here = to_host(host, ctx, packed);
    std::vector<double> v(static_cast<size_t>(here.numel()));
    convert(here.raw(), here.dtype(), v.data(), DType::f64, here.numel());
    return v;
  }
};
ATTNBENCH_ANALYSIS(OutputError);

}  // namespace

}  // namespace attnbench
