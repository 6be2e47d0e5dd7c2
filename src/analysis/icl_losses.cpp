// Squared errors of the estimators of in-context linear regression over many prompts, as their paper's
// curves.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"
#include "methods/in_context_linear.hpp"

namespace attnbench {

namespace {

// Prompts of one run of the method: keeps Z and its projections within some tens of MiB at the paper's sizes.
constexpr int64_t kPrompts = 4096;

class IclLosses final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "icl_losses";
      i.title = "Losses of in-context estimators";
      i.summary =
          "Mean squared error, target noise included, of the attention layer's estimator, of one and of "
          "debiased gradient "
          "descent, of one head and of ridge regression, over the method's mc_samples fresh prompts; with "
          "its standard "
          "error, and the exact risks where there is a formula.";
      i.formula =
          "loss = mean over draws of (y_estimator - y_q)^2;  standard error = std / sqrt(draws)\n"
          "isotropic, s = noise_var: gd_exact = 1 + s - 2 eta + eta^2 (1 + (d + 1 + s d) / L)\n"
          "dgd_exact = 1 + s - 2 eta (L - 1) / L + eta^2 ((L - 1) (L + d) + s d (L - 1)) / L^2";
      i.unit = "squared error";
      i.headline = {"softmax", "gd", "dgd", "onehead", "ridge"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&, const Params&) const override {
    const auto* model = dynamic_cast<const InContextRegression*>(&instance);
    if (!model || !model->has_estimators())
      throw Unsupported("icl_losses: the method has no estimators of a regression");
    const Method& method = find_method("in_context_linear");
    const int64_t draws = model->params().integer("mc_samples");
    const char* const names[] = {"y_softmax", "y_gd", "y_dgd", "y_onehead", "y_ridge"};
    double sum[5] = {}, squares[5] = {};
    Context host(cpu_backend(), 1);
    for (int64_t done = 0, part = 0; done < draws; ++part) {
      const int64_t count = std::min(kPrompts, draws - done);
      Problem problem = model->problem();
      problem.inputs = {};
      problem.batch = count;
      problem.seed += static_cast<uint64_t>(part) + 1;  // none of the case's own prompts
      std::map<std::string, Value> given = model->params().all();
      given.erase("batch"), given.erase("seed");
      const Params params = resolve_params(method.info().id, method.info().params, given, problem);
      const auto run = method.make(ctx, problem, params);
      fill_instance(ctx, *run, problem);
      run->prepare(ctx);
      run->run(ctx);
      const auto& drawn = dynamic_cast<const InContextRegression&>(*run);
      const TensorMap outputs = run->outputs();
      for (size_t e = 0; e < std::size(names); ++e) {
        const Tensor y = to_host(host, ctx, outputs.at(names[e]));
        for (int64_t b = 0; b < count; ++b) {
          const double error = static_cast<double>(y.data<float>()[b]) - drawn.drawn_target(b);
          sum[e] += error * error, squares[e] += error * error * error * error;
        }
      }
      done += count;
    }
    AnalysisResult r;
    r.analysis = info().id;
    const double n = static_cast<double>(draws);
    for (size_t e = 0; e < std::size(names); ++e) {
      const std::string key = std::string(names[e]).substr(2);
      r.scalars[key] = sum[e] / n;
      r.scalars[key + "_standard_error"] =
          std::sqrt(std::max(0.0, squares[e] / n - sum[e] / n * sum[e] / n) / n);
    }
    r.scalars["draws"] = n;
    const TensorMap own = instance.outputs();
    r.scalars["approximate"] =
        static_cast<double>(to_host(host, ctx, own.at("approx_loss")).data<float>()[0]);
    exact(*model, r);
    return r;
  }

 private:
  static void exact(const InContextRegression& model, AnalysisResult& r) {
    const Params& p = model.params();
    if (p.number("rho") != 0) {
      r.notes["exact"] = "the exact risks are those of independent covariates";
      return;
    }
    const double s = p.number("noise_var"), d = static_cast<double>(p.integer("dim_x"));
    const double l = static_cast<double>(p.integer("context_len")), eta = model.step();
    r.scalars["gd_exact"] = 1 + s - 2 * eta + eta * eta * (1 + (d + 1 + s * d) / l);
    r.scalars["dgd_exact"] =
        1 + s - 2 * eta * (l - 1) / l + eta * eta * ((l - 1) * (l + d) + s * d * (l - 1)) / (l * l);
  }
};
ATTNBENCH_ANALYSIS(IclLosses);

}  // namespace

}  // namespace attnbench
