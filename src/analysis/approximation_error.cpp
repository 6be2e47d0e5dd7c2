// How the error of polynomial tensor attention falls with the degree, beside its bound: a convergence table
// on the inputs of the case. For methods whose inputs are q, k1, v1, k2, v2, ...
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

std::vector<double> values_of(Context& ctx, const Tensor& t) {
  Context host(cpu_backend(), 1);
  const Tensor here = to_host(host, ctx, t);
  std::vector<double> x(static_cast<size_t>(here.numel()));
  convert(here.raw(), here.dtype(), x.data(), DType::f64, here.numel());
  return x;
}
double largest(const std::vector<double>& x) {
  double most = 0;
  for (double v : x) most = std::max(most, std::abs(v));
  return most;
}

ParamSpec param(const char* name, ParamSpec::Type type, Value default_value, const char* meaning) {
  ParamSpec s;
  s.name = name;
  s.type = type;
  s.nullable = default_value.is_null();
  s.default_value = std::move(default_value);
  s.meaning = meaning;
  return s;
}

class ApproximationError final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "approximation_error";
      i.title = "Error of the polynomial against the degree";
      i.summary =
          "Runs tensor attention on the inputs of the case exactly and with Taylor's and Chebyshev's "
          "polynomials of "
          "each degree: the largest and the relative error of the output, and the bound that follows from "
          "the largest "
          "score.";
      i.formula =
          "S = largest entry^p * D * |scale|\n"
          "bound = 2 e^(2S) S^(g+1) / (g+1)! * max|v1| max|v2| ...\n"
          "share_of_bound_g = largest error of Taylor's polynomial of degree g / bound";
      i.unit = "of the output";
      i.headline = {"largest_score", "error_0", "error_2", "error_4"};
      ParamSpec degrees = param("degrees", ParamSpec::Type::list, Value::List{Value(0), Value(2), Value(4)},
                                "even degrees of the polynomials");
      degrees.min = 0;
      degrees.max = 32;
      i.params = {degrees, param("scale", ParamSpec::Type::number, Value(), "of the scores; null: 1 / D"),
                  param("causal", ParamSpec::Type::boolean, false, "of the method")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    const TensorMap& inputs = instance.inputs();
    int64_t order = 1;
    while (inputs.contains("k" + std::to_string(order)) && inputs.contains("v" + std::to_string(order)))
      ++order;
    if (!inputs.contains("q") || order < 2)
      throw Unsupported(
          "approximation_error: it compares polynomials for inputs q, k1, v1, k2, v2, ...; the method has "
          "others");
    Value::List lengths;
    double entry = largest(values_of(ctx, inputs.at("q"))), value = 1;
    for (int64_t r = 1; r < order; ++r) {
      entry = std::max(entry, largest(values_of(ctx, inputs.at("k" + std::to_string(r)))));
      value *= largest(values_of(ctx, inputs.at("v" + std::to_string(r))));
      lengths.emplace_back(inputs.at("k" + std::to_string(r)).dim(2));
    }
    const auto d = static_cast<double>(inputs.at("q").dim(3));
    const double scale = params.is_null("scale") ? 1 / d : params.number("scale");
    const double most = std::pow(entry, static_cast<double>(order)) * d * std::abs(scale);

    const Method& method = find_method("tensor_attention");
    Problem plain = problem;
    plain.inputs = {};
    const auto run = [&](std::map<std::string, Value> given) {
      given["order"] = order, given["scale"] = scale, given["causal"] = params.boolean("causal");
      given["kv_lengths"] = lengths;
      const auto one =
          method.make(ctx, plain, resolve_params(method.info().id, method.info().params, given, plain));
      one->bind(inputs, {});
      one->prepare(ctx);
      one->run(ctx);
      return values_of(ctx, one->outputs().at("o"));
    };
    const std::vector<double> exact = run({});
    double size = 0;
    for (double x : exact) size += x * x;
    AnalysisResult r;
    r.analysis = info().id;
    r.scalars["largest_score"] = most;
    r.scalars["largest_entry"] = entry;
    for (const Value& degree : params.value("degrees").as_list()) {
      if (!degree.is_int() || degree.as_int() % 2 != 0)
        throw UsageError("approximation_error.degrees: even numbers are wanted, not " + degree.str());
      const int64_t g = degree.as_int();
      double bound = 2 * std::exp(2 * most) * value;
      for (int64_t m = 1; m <= g + 1; ++m) bound *= most / static_cast<double>(m);
      r.series["degree"].push_back(static_cast<double>(g));
      r.series["bound"].push_back(bound);
      for (const std::string poly : {"taylor", "chebyshev"}) {
        const std::vector<double> o = run({{"mode", "poly"}, {"degree", g}, {"poly", poly}});
        double sup = 0, square = 0;
        for (size_t i = 0; i < o.size(); ++i) {
          const double off = o[i] - exact[i];
          sup = std::max(sup, std::abs(off)), square += off * off;
        }
        r.series[poly + "_error"].push_back(sup);
        r.series[poly + "_relative_l2"].push_back(size > 0 ? std::sqrt(square / size) : std::sqrt(square));
        if (poly != "taylor") continue;
        r.scalars[fmt::format("error_{}", g)] = sup;
        r.scalars[fmt::format("share_of_bound_{}", g)] = bound > 0 ? sup / bound : 0;
      }
    }
    r.notes["precision"] =
        "errors below about 1e-6 of the output are those of f32 arithmetic, not of the polynomial";
    return r;
  }
};
ATTNBENCH_ANALYSIS(ApproximationError);

}  // namespace

}  // namespace attnbench
