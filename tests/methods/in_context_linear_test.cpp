// In-context linear regression: the reference by hand and in the card's degenerate cases, the method against
// it, closed forms, the losses of the paper within their Monte Carlo error.
#include "methods/in_context_linear.hpp"

#include "analysis/analysis.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const char* const kMethod = "in_context_linear";

Problem prompts(int64_t batch, int64_t length, int64_t d = 5, int64_t heads = 2, int64_t ny = 1) {
  Problem p;
  p.batch = batch, p.length = length, p.channels = d + ny, p.heads = heads;
  return p;
}
Value numbers(std::vector<double> v) {
  Value::List l;
  for (double x : v) l.emplace_back(x);
  return l;
}
double scalar(const RefMap& m, const char* name, int64_t i = 0) { return m.at(name)[i]; }

/// Reference of pattern weights on generated prompts.
RefMap pattern(const Problem& p, ParamMap params) {
  params["dim_x"] = p.channels - 1;
  return make_trial(kMethod, p, params).reference();
}

AnalysisResult losses(Trial& t) {
  t.run();
  const Analysis& a = find_analysis("icl_losses");
  return a.compute(*t.ctx, *t.instance, t.problem,
                   resolve_params("icl_losses", a.info().params, {}, t.problem));
}

}  // namespace

TEST_CASE("scales and approximate loss of the card") {
  const auto at = [](double omega, double mu, int64_t heads = 2) {
    std::vector<double> w{omega, -omega}, m{mu, -mu};
    w.resize(static_cast<size_t>(heads)), m.resize(static_cast<size_t>(heads));
    return pattern(prompts(1, 40, 5, heads), {{"omega", numbers(w)}, {"mu", numbers(m)}});
  };
  CHECK(scalar(at(0.05, 1), "mu_star", 0) == Approx(8.7912).margin(5e-5));
  CHECK(scalar(at(0.05, 1), "mu_star", 1) == Approx(-8.7912).margin(5e-5));
  CHECK(scalar(at(0.13, 1), "mu_star", 0) == Approx(3.3807).margin(5e-5));
  CHECK(scalar(at(0.13, 3.45), "approx_loss") == Approx(0.22137).margin(5e-6));
  const auto best = [](double omega) {
    return pattern(prompts(1, 40), {{"omega", numbers({omega, -omega})}, {"auto_mu", true}});
  };
  CHECK(scalar(best(0.05), "approx_loss") == Approx(0.22088).margin(5e-6));
  CHECK(scalar(best(0.13), "approx_loss") == Approx(0.22101).margin(5e-6));
  // At the best mu the gradient with respect to mu vanishes.
  CHECK(scalar(best(0.13), "grad_mu", 0) == Approx(0).margin(1e-12));
  const double one = 1 / std::sqrt(5.0);
  const RefMap single = at(one, 1.6277, 1);
  CHECK(scalar(single, "mu_star") == Approx(1.6277).margin(5e-5));
  CHECK(scalar(pattern(prompts(1, 40, 5, 1), {{"omega", numbers({one})}, {"auto_mu", true}}),
               "approx_loss") == Approx(0.37207).margin(5e-6));
  // Gradients are those of half the loss.
  const double h = 1e-5;
  const double along =
      (scalar(at(0.13, 3.45 + h), "approx_loss") - scalar(at(0.13, 3.45 - h), "approx_loss")) / (2 * h);
  const RefMap g = at(0.13, 3.45);
  CHECK(scalar(g, "grad_mu", 0) - scalar(g, "grad_mu", 1) == Approx(along / 2).margin(1e-7));
  const double slope =
      (scalar(at(0.13 + h, 3.45), "approx_loss") - scalar(at(0.13 - h, 3.45), "approx_loss")) / (2 * h);
  CHECK(scalar(g, "grad_omega", 0) - scalar(g, "grad_omega", 1) == Approx(slope / 2).margin(1e-6));
}

TEST_CASE("heads of equal omega share mu*, and more of them add nothing") {
  const RefMap two = pattern(prompts(2, 30), {{"omega", numbers({0.2, -0.1})}, {"auto_mu", true}});
  const RefMap four =
      pattern(prompts(2, 30, 5, 4), {{"omega", numbers({0.2, -0.1, 0.2, 0.2})}, {"auto_mu", true}});
  for (int64_t h : {0, 2, 3}) CHECK(scalar(four, "mu_star", h) == Approx(scalar(two, "mu_star", 0) / 3));
  CHECK(scalar(four, "mu_star", 1) == Approx(scalar(two, "mu_star", 1)));
  for (int64_t b = 0; b < 2; ++b) CHECK(scalar(four, "y_softmax", b) == Approx(scalar(two, "y_softmax", b)));
}

TEST_CASE("degenerate prompts and heads") {
  SECTION("omega = 0: the mean label times the sum of mu") {
    Trial t = make_trial(kMethod, prompts(3, 12), {{"omega", numbers({0, 0})}, {"mu", numbers({2, 1})}});
    const RefMap r = t.reference();
    const RefTensor z = to_reference(t.instance->inputs().at("Z"));
    for (int64_t b = 0; b < 3; ++b) {
      double mean = 0;
      for (int64_t l = 0; l < 12; ++l) mean += z[(b * 12 + l) * 6 + 5] / 12;
      CHECK(scalar(r, "y_softmax", b) == Approx(3 * mean));
      CHECK(r.at("y_hat")[b] == Approx(3 * mean));
    }
    CHECK(pattern(prompts(1, 12), {{"omega", numbers({0, 0})}, {"mu", numbers({2, -2})}}).at("y_hat")[0] ==
          Approx(0).margin(1e-12));
  }
  SECTION("a pair of small omega is debiased gradient descent, to second order") {
    double errors[2];
    int i = 0;
    for (const double w : {0.02, 0.01}) {
      const RefMap r =
          pattern(prompts(1, 25), {{"omega", numbers({w, -w})}, {"mu", numbers({0.4 / w, -0.4 / w})}});
      errors[i++] = std::abs(scalar(r, "y_softmax") - scalar(r, "y_dgd"));
    }
    CHECK(errors[1] < 2e-3);
    CHECK(errors[0] / errors[1] == Approx(4).epsilon(0.05));
  }
  SECTION("one example: its label times the sum of mu, and weights of 1") {
    const RefMap r = pattern(prompts(2, 1), {{"mu", numbers({3, 1})}});
    Trial t = make_trial(kMethod, prompts(2, 1), {{"mu", numbers({3, 1})}});
    const RefTensor z = to_reference(t.instance->inputs().at("Z"));
    for (int64_t b = 0; b < 2; ++b) CHECK(scalar(r, "y_softmax", b) == Approx(4 * z[b * 6 + 5]));
    for (double a : r.at("attn").data) CHECK(a == 1);
  }
  SECTION("labels that sum to 0: gradient descent needs no debiasing") {
    Trial t = make_trial(kMethod, prompts(1, 8));
    RefTensor z = to_reference(t.instance->inputs().at("Z"));
    double mean = 0;
    for (int64_t l = 0; l < 8; ++l) mean += z[l * 6 + 5] / 8;
    for (int64_t l = 0; l < 8; ++l) z[l * 6 + 5] -= mean;
    RefMap inputs = to_reference(t.instance->inputs());
    inputs["Z"] = z;
    const RefMap r =
        find_reference(kMethod)(t.problem, t.params, inputs, to_reference(t.instance->weights()));
    CHECK(scalar(r, "y_dgd") == Approx(scalar(r, "y_gd")).margin(1e-12));
  }
  SECTION("pattern weights make the layer its estimator") {
    const RefMap r = pattern(prompts(4, 40), {});
    for (int64_t b = 0; b < 4; ++b)
      CHECK(r.at("y_hat")[b] == Approx(scalar(r, "y_softmax", b)).epsilon(1e-6));
    for (int64_t i = 0; i < 5; ++i) CHECK(r.at("KQ")[i * 7] == Approx(0.13));
    CHECK(r.at("KQ")[35] == 0);
    CHECK(r.at("OV")[5] == Approx(3.45));
    CHECK(r.at("OV")[0] == 0);
  }
  SECTION("ridge without noise finds the coefficients") {
    Trial t = make_trial(kMethod, prompts(3, 20), {{"noise_var", 0.0}});
    const RefMap r = t.reference();
    const auto& drawn = dynamic_cast<const InContextRegression&>(*t.instance);
    for (int64_t b = 0; b < 3; ++b)
      CHECK(scalar(r, "y_ridge", b) == Approx(drawn.drawn_target(b)).margin(1e-5));
  }
}

TEST_CASE("in_context_linear agrees with its reference, and its formula with the ledger") {
  SECTION("pattern weights, inputs read from Z") {
    Trial t =
        make_trial(kMethod, prompts(7, GENERATE(1, 33)), {{"noise_var", 0.2}, {"rho", GENERATE(0.0, 0.5)}});
    check_trial(t, 0);
  }
  SECTION("pattern weights, inputs of their own") {
    Trial t = make_trial(kMethod, prompts(3, 17, 4, 4),
                         {{"dim_x", 4}, {"auto_mu", true}, {"omega", numbers({0.2, -0.2, 0.1, -0.3})}});
    TensorMap more;
    for (const TensorSpec& s : t.instance->input_specs())
      if (s.optional) more[s.name] = make_tensor(*t.ctx, s, 0, MemoryClass::input);
    rebind(t, more);
    check_trial(t, 0);
  }
  SECTION("every other kind of weights") {
    const std::string weights = GENERATE("random", "small_id", "small_id_qk", "oppo_small_id", "user");
    Trial t = make_trial(kMethod, prompts(5, 21, 6, 4, 2),
                         {{"dim_x", 6}, {"num_outputs", 2}, {"weights", weights}});
    check_trial(t, 0);
  }
}

TEST_CASE("pattern metrics: heads that are nearly diagonal are selected, in order") {
  Trial t = make_trial(kMethod, prompts(1, 9, 3, 3), {{"dim_x", 3}, {"weights", "user"}});
  // KQ: 2 I, the all-ones matrix (ratio 1 / sqrt(3)), -I; OV: the label alone, everything, the label alone.
  std::vector<double> q(48), one(48), o(12);
  for (int64_t h = 0; h < 3; ++h)
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j) {
        const auto at = static_cast<size_t>((h * 4 + i) * 4 + j);
        one[at] = i == j;
        q[at] = h == 0 ? 4.0 * (i == j) : h == 1 ? 2.0 : -2.0 * (i == j);  // sqrt(E) = 2
      }
  for (int64_t h = 0; h < 3; ++h)
    for (int64_t r = 0; r < 4; ++r) o[static_cast<size_t>(h * 4 + r)] = h == 1 || r == 3 ? 1 : 0;
  rebind(t, {},
         {{"q_proj", host_tensor(*t.ctx, {12, 4}, q)},
          {"k_proj", host_tensor(*t.ctx, {12, 4}, one)},
          {"v_proj", host_tensor(*t.ctx, {12, 4}, one)},
          {"o_proj", host_tensor(*t.ctx, {1, 12}, o)}});
  check_trial(t, 0);
  CHECK(t.output("selected_heads").data == std::vector<double>{0, 2});
  CHECK(t.output("diag_norm_ratio")[1] == Approx(1 / std::sqrt(3.0)));
  CHECK(t.output("omega_h").data == std::vector<double>{2, 1, -1});
  CHECK(t.output("avg_last_entry_square_ratio")[0] == Approx(1));
  CHECK(t.output("avg_diag_variance")[0] == Approx(0).margin(1e-12));
}

TEST_CASE("in_context_linear counts what the card counts") {
  const Trial t = make_trial(kMethod, prompts(1, 40));
  CHECK(t.instance->cost().parameters == 228);
  CHECK(make_trial(kMethod, prompts(1, 40, 5, 4)).instance->cost().parameters == 456);
  // The layer alone: weights of another kind have no estimators.
  const Cost c = make_trial(kMethod, prompts(3, 40), {{"weights", "random"}}).instance->cost().cost;
  const int64_t h = 2, e = 6, l = 40;
  CHECK(c.matmul ==
        3 * (2 * h * e * e * (2 * l + 1) + 4 * h * l * e + 2 * h * e) + 2 * h * e * e * e + 2 * h * e * e);
}

TEST_CASE("losses of the paper within their Monte Carlo error, and gradient descent at its exact risk") {
  struct Row {
    int64_t length;
    double softmax, gd, dgd, onehead, ridge;
  };
  // The one-head column keeps its scale of L = 40.
  const Row row =
      GENERATE(Row{10, 0.6039, 0.6434, 0.6140, 0, 0.1938}, Row{40, 0.2430, 0.2407, 0.2431, 0.4048, 0.1146},
               Row{100, 0.1638, 0.1622, 0.1635, 0, 0.1041});
  Trial t = make_trial(kMethod, prompts(2, row.length), {{"mc_samples", 20000}});
  const AnalysisResult r = losses(t);
  const auto near = [&](const char* name, double published) {
    INFO("L " << row.length << ", " << name << ": " << r.scalars.at(name) << ", published " << published);
    // Two independent estimates: the published one of 50,000 draws, this one of 20,000; four standard
    // deviations.
    const double error =
        r.scalars.at(std::string(name) + "_standard_error") * std::sqrt(1 + 20000.0 / 50000.0);
    CHECK(std::abs(r.scalars.at(name) - published) < 4 * error);
    CHECK(error < 0.02 * published);
  };
  near("softmax", row.softmax), near("gd", row.gd), near("dgd", row.dgd), near("ridge", row.ridge);
  if (row.onehead > 0) near("onehead", row.onehead);
  for (const char* name : {"gd", "dgd"})
    CHECK(std::abs(r.scalars.at(name) - r.scalars.at(std::string(name) + "_exact")) <
          4 * r.scalars.at(std::string(name) + "_standard_error"));
  Trial other = make_trial(kMethod, prompts(2, 10), {{"weights", "random"}});
  CHECK_THROWS_AS(losses(other), Unsupported);
}

TEST_CASE("covariates of a prompt have the correlation that was asked for") {
  Trial t = make_trial(kMethod, prompts(400, 25, 4), {{"dim_x", 4}, {"rho", 0.5}});
  const RefTensor z = to_reference(t.instance->inputs().at("Z"));
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 4; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < 400 * 25; ++r) sum += z[r * 5 + i] * z[r * 5 + j] / 1e4;
      CHECK(sum == Approx(std::pow(0.5, std::abs(i - j))).margin(0.06));  // about 1 / 100, times 4
    }
}

TEST_CASE("in_context_linear says what it cannot do") {
  const auto make = [](Problem p, ParamMap params) { return make_trial(kMethod, p, params); };
  Problem p = prompts(1, 10);
  CHECK_THROWS_WITH(make(p, {{"dim_x", 4}}), ContainsSubstring("channels"));
  CHECK_THROWS_WITH(make(p, {{"omega", numbers({0.1})}}), ContainsSubstring("2 heads"));
  CHECK_THROWS_WITH(make(p, {{"rho", 1.0}}), ContainsSubstring("rho"));
  CHECK_THROWS_WITH(make(prompts(1, 10, 5, 3), {{"weights", "oppo_small_id"}}), ContainsSubstring("even"));
  CHECK_THROWS_AS(make(prompts(1, 10, 6, 2, 2), {{"dim_x", 6}, {"num_outputs", 2}}), Unsupported);
  CHECK_THROWS_WITH(make(prompts(1, 10, 3, 2, 2), {{"dim_x", 3}, {"num_outputs", 2}, {"weights", "random"}}),
                    ContainsSubstring("d1, d2"));
  CHECK_THROWS_AS(make(prompts(1, 4), {{"noise_var", 0.0}}), Unsupported);
  p.causal = true;
  CHECK_THROWS_AS(make(p, {}), Unsupported);
  p.causal = false, p.dtype = DType::bf16;
  CHECK_THROWS_AS(make(p, {}), Unsupported);
}
