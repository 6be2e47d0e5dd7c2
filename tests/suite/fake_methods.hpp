// Tiny methods, an analysis and a generator for the tests of suites: parameters of every type, nothing to
// run.
#pragma once
#include <memory>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"
#include "methods/method.hpp"

namespace attnbench::fake {

inline ParamSpec param(const char* name, ParamSpec::Type type, Value otherwise,
                       std::optional<double> min = {}, std::optional<double> max = {}) {
  ParamSpec s;
  s.name = name;
  s.type = type;
  s.default_value = std::move(otherwise);
  s.meaning = "of a test";
  s.min = min;
  s.max = max;
  return s;
}

class Fake : public Method {
 public:
  Fake(const char* id, std::vector<ParamSpec> params) {
    info_.id = info_.card = id;
    info_.kinds = {ProblemKind::image, ProblemKind::sequence};
    info_.params = std::move(params);
  }
  const MethodInfo& info() const override { return info_; }
  std::unique_ptr<Instance> make(Context&, const Problem&, const Params&) const override {
    throw Unsupported("a fake has nothing to run");
  }

 private:
  MethodInfo info_;
};

class Spread : public Analysis {
 public:
  Spread() {
    info_.id = "fake_spread";
    info_.params = {param("depth", ParamSpec::Type::integer, 1, 1, 100)};
  }
  const AnalysisInfo& info() const override { return info_; }
  AnalysisResult compute(Context&, Instance&, const Problem&, const Params&) const override { return {}; }

 private:
  AnalysisInfo info_;
};

/// `fake_split` has parameters of every type and repeats the problem's channels; `fake_plain` has one
/// integer.
inline void register_all() {
  static const bool once = [] {
    ParamSpec scale = param("qk_scale", ParamSpec::Type::number, Value(), 1e-30);
    scale.nullable = true;
    ParamSpec mode = param("mode", ParamSpec::Type::choice, "fast");
    mode.choices = {"fast", "exact"};
    ParamSpec dim = param("dim", ParamSpec::Type::integer, 768, 1);
    dim.from_problem = "channels";
    register_method(std::make_unique<Fake>(
        "fake_split",
        std::vector<ParamSpec>{param("alpha", ParamSpec::Type::number, 0.5, 0, 1),
                               param("window_size", ParamSpec::Type::integer, 2, 1),
                               param("qkv_bias", ParamSpec::Type::boolean, true), scale, mode, dim}));
    register_method(std::make_unique<Fake>(
        "fake_plain", std::vector<ParamSpec>{param("sr_ratio", ParamSpec::Type::integer, 2, 1, 64)}));
    register_analysis(std::make_unique<Spread>());
    Generator g;
    g.id = "fake_decay";
    g.params = {param("scale", ParamSpec::Type::number, 1.0, 0)};
    g.fill = [](const Problem&, const Params&, const TensorSpec&, int64_t, int64_t, double*) {};
    register_generator(g);
    return true;
  }();
  (void)once;
}

}  // namespace attnbench::fake
