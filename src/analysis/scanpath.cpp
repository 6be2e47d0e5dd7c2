// What a scanpath model attends to: entropies by layer, how far the next object is, the position code.
#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "methods/attention_rows.hpp"

namespace attnbench {

namespace {

std::vector<float> on_host_f32(Context& ctx, const Tensor& t) {
  const Tensor host = on_host(ctx, t);
  std::vector<float> v(static_cast<size_t>(t.numel()));
  convert(host.raw(), t.dtype(), v.data(), DType::f32, t.numel());
  return v;
}
/// -sum p ln p of n weights.
double entropy_of(const float* p, int64_t n) {
  double h = 0;
  for (int64_t j = 0; j < n; ++j)
    if (p[j] > 0) h -= static_cast<double>(p[j]) * std::log(static_cast<double>(p[j]));
  return h;
}

class Scanpath final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "scanpath";
      i.title = "Attention of a scanpath model";
      i.summary =
          "Entropy of the next object's distribution by step and of the encoder's, decoder's and "
          "cross-attention "
          "by layer; the mean grid distance from the last fixation to the next object; and how far the "
          "cosines "
          "of the position code are from the Gaussian they stand for.";
      i.formula =
          "entropy = -sum_i p_i ln p_i      of objects, END and padding: at most ln(P + 2)\n"
          "distance = sum_i p_i |cell_i - cell_last| over objects\n"
          "code error = max_ij |cos(Q_i, Q_j) - exp(-(i - j)^2 / (2 sigma^2))|";
      i.unit = "nats; cells";
      i.headline = {"object_entropy", "object_entropy_share", "distance", "code_error"};
      i.params = {spec::number("sigma", 2.0, 1e-6, "width of the Gaussian that the code is held against")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    const Tensor code = instance.extra_output(ctx, "position_code");
    if (!code) throw Unsupported("scanpath: the method has no position code and no object attention");
    AnalysisResult r;
    r.analysis = info().id;
    objects(ctx, instance, r);
    for (const char* name : {"encoder_attention", "self_attention", "cross_attention"}) {
      const Tensor maps = instance.extra_output(ctx, name);
      if (!maps) continue;
      const std::vector<float> p = on_host_f32(ctx, maps);
      const int64_t n = maps.dim(-1), rows = maps.numel() / maps.dim(0) / n;
      for (int64_t l = 0; l < maps.dim(0); ++l) {
        double sum = 0;
        for (int64_t i = 0; i < rows; ++i) sum += entropy_of(p.data() + (l * rows + i) * n, n);
        r.series[std::string(name) + "_entropy"].push_back(sum / static_cast<double>(rows));
      }
    }
    table(on_host_f32(ctx, code), code.dim(0), code.dim(1), params.number("sigma"), r);
    return r;
  }

 private:
  static void objects(Context& ctx, Instance& instance, AnalysisResult& r) {
    const PairSet pairs = *instance.pairs();
    const int64_t classes = instance.keys(0), objects = classes - 2, steps = pairs.queries;
    const auto cells = [&](const char* name) { return on_host(ctx, instance.inputs().at(name)); };
    const Tensor source = cells("pos_src"), target = cells("pos_tgt");
    std::vector<double> entropy(static_cast<size_t>(steps), 0), distance(entropy);
    const bool forced = target.dim(1) == steps;
    std::vector<float> p;
    for (int64_t b = 0; b < pairs.batch; ++b) {
      if (!instance.rows(ctx, b, 0, 0, steps, p))
        throw Unsupported("scanpath: the method has no attention rows");
      for (int64_t t = 0; t < steps; ++t) {
        const float* row = p.data() + t * classes;
        entropy[static_cast<size_t>(t)] += entropy_of(row, classes) / static_cast<double>(pairs.batch);
        if (!forced) continue;
        const int32_t* last = target.data<int32_t>() + (b * steps + t) * 3;
        for (int64_t i = 0; i < objects; ++i) {
          const int32_t* at = source.data<int32_t>() + (b * (objects + 1) + i) * 3;
          distance[static_cast<size_t>(t)] += static_cast<double>(row[i]) *
                                              std::hypot(at[0] - last[0], at[1] - last[1]) /
                                              static_cast<double>(pairs.batch);
        }
      }
    }
    const auto mean = [steps](const std::vector<double>& v) {
      double sum = 0;
      for (const double x : v) sum += x;
      return sum / static_cast<double>(steps);
    };
    r.series["object_entropy"] = entropy;
    r.scalars["object_entropy"] = mean(entropy);
    r.scalars["object_entropy_share"] = mean(entropy) / std::log(static_cast<double>(classes));
    if (!forced) {
      r.notes["distance"] = "only of given fixations (decode: teacher)";
      return;
    }
    r.series["distance"] = distance;
    r.scalars["distance"] = mean(distance);
  }
  static void table(const std::vector<float>& q, int64_t rows, int64_t width, double sigma,
                    AnalysisResult& r) {
    const auto dot = [&](int64_t i, int64_t j) {
      double sum = 0;
      for (int64_t c = 0; c < width; ++c)
        sum += static_cast<double>(q[static_cast<size_t>(i * width + c)]) *
               static_cast<double>(q[static_cast<size_t>(j * width + c)]);
      return sum;
    };
    double worst = 0, least = INFINITY, most = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double norm = std::sqrt(dot(i, i));
      least = std::min(least, norm), most = std::max(most, norm);
      for (int64_t j = 0; j < rows; ++j) {
        const auto apart = static_cast<double>(i - j);
        worst = std::max(worst, std::fabs(dot(i, j) / norm / std::sqrt(dot(j, j)) -
                                          std::exp(-apart * apart / (2 * sigma * sigma))));
      }
      if (i > 0) r.series["code_cosine"].push_back(dot(0, i) / std::sqrt(dot(0, 0)) / norm);
    }
    r.scalars["code_error"] = worst;
    r.scalars["code_norm_min"] = least;
    r.scalars["code_norm_max"] = most;
  }
};
ATTNBENCH_ANALYSIS(Scanpath);

}  // namespace

}  // namespace attnbench
