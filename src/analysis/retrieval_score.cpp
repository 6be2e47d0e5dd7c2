// How retrieval scores are spread over the heads of a model.
#include <cmath>

#include "analysis/analysis.hpp"

namespace attnbench {

namespace {

std::vector<float> values_of(Context& ctx, const Tensor& t) {
  std::vector<float> v(static_cast<size_t>(t.numel()));
  copy(ctx, t, Tensor::borrow(DeviceKind::cpu, DType::f32, t.shape(), v.data()));
  ctx.backend().synchronize();
  return v;
}

class RetrievalScore final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "retrieval_score";
      i.title = "Distribution of retrieval scores over heads";
      i.summary =
          "Shares of heads by mean retrieval score, the number of retrieval heads and of heads that are "
          "active in every "
          "instance, by layer as well. Needs a method that scores heads.";
      i.formula =
          "share_zero: score = 0;  share_weak: (0, threshold);  share_middle: [threshold, strong);  "
          "share_strong: >= "
          "strong\n"
          "share_retrieval = heads with score >= threshold / all heads;  always_active: activation frequency "
          "= 1\n"
          "cache_bytes_per_token = bytes of keys and values / cached tokens";
      i.unit = "share of heads";
      const auto number = [](const char* name, double value, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.type = ParamSpec::Type::number;
        s.default_value = value;
        s.min = 0;
        s.meaning = meaning;
        return s;
      };
      i.params = {number("threshold", 0.1, "score from which a head is a retrieval head"),
                  number("strong", 0.5, "score from which it is a strong one")};
      i.headline = {"share_zero", "share_retrieval", "retrieval_heads", "always_active"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    const TensorMap out = instance.outputs();
    auto scores = out.find("mean_score");
    if (scores == out.end()) scores = out.find("score_reference");
    if (scores == out.end() || scores->second.rank() != 2 || scores->second.dtype() != DType::f32)
      throw Unsupported("retrieval_score: the method does not score heads");
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t layers = scores->second.dim(0), heads = scores->second.dim(1);
    const std::vector<float> v = values_of(ctx, scores->second);
    const double threshold = params.number("threshold"), strong = params.number("strong");
    const double all = static_cast<double>(v.size());
    double zero = 0, weak = 0, middle = 0, top = 0, best = -1;
    size_t best_at = 0;
    std::vector<double>& by_layer = r.series["layer_retrieval_heads"];
    by_layer.assign(static_cast<size_t>(layers), 0.0);
    for (size_t i = 0; i < v.size(); ++i) {
      const auto s = static_cast<double>(v[i]);
      (s == 0 ? zero : s < threshold ? weak : s < strong ? middle : top) += 1;
      if (s >= threshold) by_layer[i / static_cast<size_t>(heads)] += 1;
      if (s > best) best = s, best_at = i;
      r.series["head_score"].push_back(s);
    }
    r.scalars["share_zero"] = zero / all;
    r.scalars["share_weak"] = weak / all;
    r.scalars["share_middle"] = middle / all;
    r.scalars["share_strong"] = top / all;
    double retrieval = 0;
    for (double n : by_layer) retrieval += n;
    r.scalars["retrieval_heads"] = retrieval;
    r.scalars["share_retrieval"] = retrieval / all;
    r.scalars["best_score"] = best;
    r.notes["best"] = "head " + std::to_string(best_at / static_cast<size_t>(heads)) + "-" +
                      std::to_string(best_at % static_cast<size_t>(heads));
    if (const auto f = out.find("activation_frequency"); f != out.end()) {
      double always = 0;
      for (float x : values_of(ctx, f->second)) always += x == 1.0f;
      r.scalars["always_active"] = always;
    }
    const TensorMap& in = instance.inputs();
    if (const auto k = in.find("k"), values = in.find("v");
        k != in.end() && values != in.end() && k->second.rank() == 4 && k->second.dim(1) > 0)
      r.scalars["cache_bytes_per_token"] = static_cast<double>(k->second.nbytes() + values->second.nbytes()) /
                                           static_cast<double>(k->second.dim(1));
    return r;
  }
};
ATTNBENCH_ANALYSIS(RetrievalScore);

}  // namespace

}  // namespace attnbench
