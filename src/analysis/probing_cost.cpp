// What two probing passes before an answer cost, in passes of the model: early stop and cached general maps.
#include <cmath>

#include "analysis/analysis.hpp"

namespace attnbench {

namespace {

class ProbingCost final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "probing_cost";
      i.title = "Cost of two probing passes";
      i.summary =
          "CARVE's cost model: a question pass and a general pass stop at a layer, an answer pass runs all "
          "layers; the "
          "general map may serve several questions about an image. Beside it the bytes of the maps that are "
          "kept.";
      i.formula =
          "a = early_stop / layers_total, to `digits` digits where set\n"
          "saving = 2 (1 - a) / 3                 against three full passes\n"
          "speedup_cached = 3 / (1 + a + a / n)   n questions an image; n to infinity: 3 / (1 + a)\n"
          "speedup_hits = 3 / ((2 - rho) a + 1)   hit rate rho of the cached general map\n"
          "map_bytes = bytes of one pass's maps";
      i.unit = "share of three passes; factor; bytes";
      const auto integer = [](const char* name, int64_t value, double least, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.default_value = value;
        s.min = least;
        s.meaning = meaning;
        return s;
      };
      ParamSpec rho;
      rho.name = "hit_rate";
      rho.type = ParamSpec::Type::number;
      rho.default_value = 0.3;
      rho.min = 0;
      rho.max = 1;
      rho.meaning = "rho";
      i.params = {
          integer("layers_total", 28, 1, "layers of the model"),
          integer("early_stop", 25, 1, "layer at which a probing pass stops"),
          integer("questions", 0, 0, "n, questions an image; 0: without limit"), rho,
          integer("digits", 0, 0, "digits to which a is rounded first, as the paper does with 2; 0: exact")};
      i.headline = {"saving", "speedup_cached", "map_bytes"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context&, Instance& instance, const Problem&, const Params& p) const override {
    const TensorMap out = instance.outputs();
    const auto given = instance.inputs().find("AQ"), made = out.find("AQ");
    const Tensor* maps = given != instance.inputs().end() ? &given->second
                         : made != out.end()              ? &made->second
                                                          : nullptr;
    if (!maps) throw Unsupported("probing_cost: the method keeps no maps of probing passes");
    const int64_t total = p.integer("layers_total"), stop = p.integer("early_stop");
    if (stop > total)
      throw UsageError("probing_cost.early_stop: layer " + std::to_string(stop) + " is behind layers_total " +
                       std::to_string(total));
    double a = static_cast<double>(stop) / static_cast<double>(total);
    if (const int64_t digits = p.integer("digits"); digits > 0) {
      const double unit = std::pow(10.0, static_cast<double>(digits));
      a = std::round(a * unit) / unit;
    }
    const double n = static_cast<double>(p.integer("questions")), rho = p.number("hit_rate");
    AnalysisResult r;
    r.analysis = info().id;
    r.scalars["stop_share"] = a;
    r.scalars["saving"] = 2 * (1 - a) / 3;
    r.scalars["speedup_cached"] = 3 / (1 + a + (n > 0 ? a / n : 0.0));
    r.scalars["speedup_hits"] = 3 / ((2 - rho) * a + 1);
    r.scalars["map_bytes"] = static_cast<double>(maps->nbytes());
    return r;
  }
};
ATTNBENCH_ANALYSIS(ProbingCost);

}  // namespace

}  // namespace attnbench
