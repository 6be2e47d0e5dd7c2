// In-context linear regression by one layer of multi-head softmax attention, and the estimators it is
// compared with.
#include "methods/in_context_linear.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/solve/solve.hpp"
#include "methods/method.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "in_context_linear";
  m.title = "One-layer softmax attention for in-context linear regression";
  m.paper =
      "In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of "
      "Multi-Head Softmax "
      "Attention, ICML 2025";
  m.arxiv = "2503.12734";
  m.family = "dense (single query) + analysis";
  m.summary =
      "A query attends to L labelled examples with heads as wide as the example; training finds heads whose "
      "query-key map "
      "is a multiple of the identity and whose output-value map reads the label. Such heads are kernel "
      "smoothers, and a "
      "pair of opposite sign is one step of debiased gradient descent. The layer, its maps, the estimators "
      "and the "
      "approximate loss with its gradients.";
  m.formula =
      "y_hat = sum_h Wo_h sum_l softmax_l(q_h . k_h[l] / sqrt(E)) v_h[l],  q = z_q Wq^T, k = Z Wk^T, v = Z "
      "Wv^T\n"
      "KQ_h = Wk_h^T Wq_h / sqrt(E),  OV_h = Wv_h^T Wo_h^T\n"
      "pattern: KQ_h = diag(omega_h, .., omega_h, 0), OV_h = (0, .., 0, mu_h)\n"
      "y_softmax = sum_h mu_h sum_l y_l softmax_l(omega_h x_l . x_q)\n"
      "y_gd = (eta / L) sum_l y_l x_l . x_q,  y_dgd = y_gd - (eta / L) (sum_l y_l) (mean x . x_q),  eta = 2 "
      "omega_1 mu_1\n"
      "y_onehead = mu1 sum_l y_l softmax_l(x_l . x_q / sqrt(d)),  mu1 = sqrt(d) / (1 + (1 + s) d e / L),  s "
      "= noise_var\n"
      "y_ridge = x_q . (X^T X + s d I)^-1 X^T y\n"
      "A = omega omega^T + ((1 + s) / L) exp(d omega omega^T);  mu* = A^+ omega\n"
      "approx_loss = 1 + s - 2 mu . omega + mu^T A mu;  grad_mu = A mu - omega\n"
      "grad_omega = -mu + (mu . omega) mu + (d (1 + s) / L) (exp(d omega omega^T) * (mu mu^T)) omega";
  m.cost =
      "A prompt: projections 2 H E^2 (2 L + 1), scores and weighted sum 2 H L E each, output 2 H E ny, maps "
      "of the weights "
      "2 H E^3 + 2 H E^2 ny once. Estimators: 2 L d for the scores, H softmaxes of L, ridge 2 L d^2 + 2 L d "
      "and a solve of "
      "d^3 / 3. Parameters 3 H E^2 + H E ny.";
  ParamSpec outputs = spec::integer("num_outputs", 1, 1, "ny, responses: 2 is the multi-task form");
  outputs.max = 2;
  m.params = {
      spec::integer("dim_x", 5, 1, "d, covariates; E = d + ny is the problem's channels"),
      outputs,
      spec::integer("num_heads", 2, 1, "H, each E wide", "heads"),
      spec::integer("context_len", 40, 1, "L, examples of a prompt", "length"),
      spec::number("noise_var", 0.1, 0, "s, variance of the noise of every label"),
      spec::choice("weights", {"pattern", "random", "small_id", "small_id_qk", "oppo_small_id", "user"},
                   "what training finds; or random (framework default), small identities, or a weights file"),
      spec::list("omega", Value(), "pattern, by head; null: 0.13 and -0.13 in turn"),
      spec::list("mu", Value(),
                 "pattern, by head; null: 3.45 and -3.45 in turn, shared by the heads of a sign"),
      spec::boolean("auto_mu", false, "mu = mu*(omega)"),
      spec::number("rho", 0.0, -1, 1, "correlation of neighbouring covariates: rho^|i - j|"),
      spec::integer("batch", 256, 1, "prompts a call", "batch"),
      spec::integer("mc_samples", 50000, 1, "prompts of the analysis icl_losses"),
      spec::integer("seed", 0, 0, "of the data and of random weights", "seed"),
      spec::integer("d1", 4, 1, "multi-task: covariates of task 1, the first ones"),
      spec::integer("d2", 4, 1, "multi-task: covariates of task 2, the last ones")};
  m.kinds = {ProblemKind::sequence};
  m.dtypes = {DType::f32};
  m.figures = {
      {"loss of the two-head model, GD, debiased GD, one head, ridge", "d 5, L 40, s 0.1, 50,000 draws", "-",
       "0.2430 / 0.2407 / 0.2431 / 0.4048 / 0.1146", "plots.ipynb cell 2"},
      {"loss of GD and ridge", "d 20, L 100, s 3, eta 0.5556", "-", "3.4419 / 3.4038", "plots.ipynb cell 4"},
      {"pattern metrics", "2 heads, trained", "-", "diag ratio 0.99926, variance 3.28e-6, last entry 0.99994",
       "plots.ipynb"}};
  m.notes = {
      "Inputs X, y, x_q of the estimators are read from Z and z_q where they are not given; y_q is for error "
      "curves only.",
      "f32 only: gradients are differences of nearly equal terms, and the paper works in full precision.",
      "Outputs of the pattern's estimators and scales come with pattern weights and one response; the "
      "pattern metrics of "
      "the maps with every other kind of weights (averages over no head are 0, chosen).",
      "The multi-layer variant of the repository (softmax, mask, softmax again) is not part of the module."};
  m.example.batch = 3;
  m.example.channels = 6;
  m.example.heads = 2;
  m.example.length = 40;
  return m;
}

/// Everything the parameters say.
struct Model {
  int64_t batch, length, heads, d, ny, e;
  double noise, rho;
  std::string weights;
  std::vector<double> omega, mu;
  int64_t d1, d2;
  uint64_t seed;
};

Eigen::MatrixXd scale_matrix(const Model& m) {
  const auto h = static_cast<Eigen::Index>(m.heads);
  Eigen::MatrixXd a(h, h);
  for (Eigen::Index i = 0; i < h; ++i)
    for (Eigen::Index j = 0; j < h; ++j) {
      const double w = m.omega[static_cast<size_t>(i)] * m.omega[static_cast<size_t>(j)];
      a(i, j) = w + (1 + m.noise) / static_cast<double>(m.length) * std::exp(static_cast<double>(m.d) * w);
    }
  return a;
}
Eigen::VectorXd vector_of(const std::vector<double>& v) {
  return Eigen::Map<const Eigen::VectorXd>(v.data(), static_cast<Eigen::Index>(v.size()));
}
/// mu* by the pseudo-inverse: heads of equal omega share equally.
std::vector<double> best_mu(const Model& m) {
  const Eigen::CompleteOrthogonalDecomposition<Eigen::MatrixXd> solver(scale_matrix(m));
  const Eigen::VectorXd mu = solver.solve(vector_of(m.omega));
  return {mu.data(), mu.data() + mu.size()};
}

/// The draws of one prompt: x by an autoregression, which has the covariance rho^|i - j|.
class Data {
 public:
  explicit Data(const Model& m)
      : m_(m),
        x_(stream_of("in_context_linear.x")),
        query_(stream_of("in_context_linear.x_q")),
        beta_(stream_of("in_context_linear.beta")),
        noise_(stream_of("in_context_linear.noise")) {}
  /// Row l of prompt b; l = L: the query.
  double covariate(int64_t b, int64_t l, int64_t j) const {
    const uint64_t stream = l < m_.length ? x_ : query_;
    const int64_t row = l < m_.length ? b * m_.length + l : b;
    const auto normal = [&](int64_t i) {
      return random_normal(m_.seed, stream, static_cast<uint64_t>(row * m_.d + i));
    };
    if (m_.rho == 0) return normal(j);
    double x = normal(0);
    for (int64_t i = 1; i <= j; ++i) x = m_.rho * x + std::sqrt(1 - m_.rho * m_.rho) * normal(i);
    return x;
  }
  double label(int64_t b, int64_t l, int64_t task) const {
    const bool multi = m_.ny > 1;
    const int64_t used = !multi ? m_.d : task == 0 ? m_.d1 : m_.d2;
    const int64_t first = multi && task == 1 ? m_.d - m_.d2 : 0;
    const double scale = multi ? 1 : 1 / std::sqrt(static_cast<double>(m_.d));
    double y = 0;
    for (int64_t j = first; j < first + used; ++j)
      y += scale * random_normal(m_.seed, beta_, static_cast<uint64_t>((b * m_.ny + task) * m_.d + j)) *
           covariate(b, l, j);
    // Multi-task answers have no noise; its examples' noise grows with the task.
    if (multi && l == m_.length) return y;
    const double std = std::sqrt(m_.noise * (multi ? static_cast<double>(used) : 1.0));
    return y + std * random_normal(m_.seed, noise_,
                                   static_cast<uint64_t>((b * (m_.length + 1) + l) * m_.ny + task));
  }

 private:
  const Model m_;
  uint64_t x_, query_, beta_, noise_;
};

class InContextLinearInstance final : public Instance, public InContextRegression {
 public:
  InContextLinearInstance(Context& ctx, const Problem& problem, const Params& params, Model model)
      : problem_(problem), params_(params), m_(std::move(model)), data_(std::make_shared<Data>(m_)) {
    const Model& m = m_;
    const auto f32 = DType::f32;
    const auto data = data_;
    const int64_t e = m.e, d = m.d, length = m.length;
    const auto row_value = [data, d](int64_t b, int64_t l, int64_t c) {
      return c < d ? data->covariate(b, l, c) : data->label(b, l, c - d);
    };
    Init z, query, x, y, x_q, y_q;
    for (Init* i : {&z, &query, &x, &y, &x_q, &y_q}) i->kind = Init::Kind::values;
    z.value = [=](int64_t i) { return row_value(i / (length * e), i / e % length, i % e); };
    query.value = [=](int64_t i) { return i % e < d ? data->covariate(i / e, length, i % e) : 0.0; };
    x.value = [=](int64_t i) { return data->covariate(i / (length * d), i / d % length, i % d); };
    y.value = [=](int64_t i) { return data->label(i / length, i % length, 0); };
    x_q.value = [=](int64_t i) { return data->covariate(i / d, length, i % d); };
    y_q.value = [=](int64_t i) { return data->label(i, length, 0); };
    input_specs_ = {
        {"Z", {m.batch, length, e}, f32, z, false, "examples (x_l, y_l)"},
        {"z_q", {m.batch, 1, e}, f32, query, false, "the query (x_q, 0)"},
        {"X", {m.batch, length, d}, f32, x, true, "covariates, for the estimators; else those of Z"},
        {"y", {m.batch, length}, f32, y, true, "labels, for the estimators; else those of Z"},
        {"x_q", {m.batch, d}, f32, x_q, true, "query, for the estimators; else that of z_q"},
        {"y_q", {m.batch}, f32, y_q, true, "answers, for error curves only"}};
    make_weight_specs();

    const auto output = [&](const char* name, const Shape& shape, DType type = DType::f32) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    output("y_hat", {m.batch, 1, m.ny}), output("attn", {m.batch, m.heads, length});
    output("KQ", {m.heads, e, e}), output("OV", {m.heads, e, m.ny});
    if (has_estimators()) {
      for (const char* name : {"y_softmax", "y_gd", "y_dgd", "y_onehead", "y_ridge"}) output(name, {m.batch});
      for (const char* name : {"mu_star", "grad_mu", "grad_omega"}) output(name, {m.heads});
      output("approx_loss", {1});
    } else if (m.weights != "pattern") {
      for (const char* name : {"diag_norm_ratio", "omega_h"}) output(name, {m.heads});
      output("selected_heads", {m.heads}, DType::i32);
      for (const char* name : {"avg_diag_norm_ratio", "avg_diag_variance", "avg_last_entry_square_ratio"})
        output(name, {1});
    }
  }

  const Problem& problem() const override { return problem_; }
  const Params& params() const override { return params_; }
  bool has_estimators() const override { return m_.weights == "pattern" && m_.ny == 1; }
  double drawn_target(int64_t b) const override { return data_->label(b, m_.length, 0); }
  double step() const override { return 2 * m_.omega[0] * m_.mu[0]; }
  double mu_onehead() const {
    const double d = static_cast<double>(m_.d);
    return std::sqrt(d) / (1 + (1 + m_.noise) * d * std::numbers::e / static_cast<double>(m_.length));
  }

  TensorMap outputs() const override {
    TensorMap o = outputs_;
    // Only the heads that were selected, once the weights are known.
    if (const auto it = o.find("selected_heads"); it != o.end())
      it->second = it->second.slice(0, 0, selected_);
    return o;
  }

  /// What follows from weights and parameters alone, in double: scales and gradients, or the pattern metrics.
  void prepare(Context& ctx) override {
    const auto keep = [&](const std::string& name, const std::vector<double>& v) {
      prepared_[name] = upload(ctx, DType::f32, {static_cast<int64_t>(v.size())}, v);
    };
    const auto values = [](const Eigen::VectorXd& v) {
      return std::vector<double>(v.data(), v.data() + v.size());
    };
    if (has_estimators()) {
      const double d = static_cast<double>(m_.d), length = static_cast<double>(m_.length);
      const Eigen::MatrixXd a = scale_matrix(m_);
      const Eigen::VectorXd omega = vector_of(m_.omega), mu = vector_of(m_.mu);
      const Eigen::MatrixXd smooth = (d * omega * omega.transpose()).array().exp().matrix();
      keep("mu_star", best_mu(m_));
      keep("approx_loss", {1 + m_.noise - 2 * mu.dot(omega) + mu.dot(a * mu)});
      const Eigen::VectorXd grad_mu = a * mu - omega;
      const Eigen::MatrixXd pull = d * (1 + m_.noise) / length * smooth.cwiseProduct(mu * mu.transpose());
      const Eigen::VectorXd grad_omega = -mu + mu.dot(omega) * mu + pull * omega;
      keep("grad_mu", values(grad_mu)), keep("grad_omega", values(grad_omega));
      // Gradients vanish at the optimum, and what is left there is the rounding of the terms that cancel.
      const auto cancellation = [](double terms, double rest) {
        return terms > 0 ? terms / std::max(rest, std::numeric_limits<double>::epsilon() * terms) : 1.0;
      };
      grad_mu_condition_ = cancellation((a.cwiseAbs() * mu.cwiseAbs()).norm() + omega.norm(), grad_mu.norm());
      grad_omega_condition_ = cancellation(
          (1 + std::abs(mu.dot(omega))) * mu.norm() + (pull.cwiseAbs() * omega.cwiseAbs()).norm(),
          grad_omega.norm());
      keep("omega", m_.omega), keep("mu", m_.mu);
    } else if (m_.weights != "pattern") {
      measure_pattern(ctx, keep);
    }
  }

  /// Of the gradients: the size of their terms over that of their sum.
  double condition(const std::string& output) const override {
    return output == "grad_mu" ? grad_mu_condition_ : output == "grad_omega" ? grad_omega_condition_ : 1.0;
  }

  void run(Context& ctx) override {
    const Model& m = m_;
    const auto f32 = DType::f32;
    const int64_t wide = m.heads * m.e;
    const Tensor &z = input("Z"), &z_q = input("z_q");
    const Tensor q = ctx.allocate(f32, {m.batch, 1, wide}), k = ctx.allocate(f32, {m.batch, m.length, wide}),
                 v = ctx.allocate(f32, {m.batch, m.length, wide});
    {
      const auto stage = ctx.stage("project");
      linear(ctx, z_q, weight("q_proj"), {}, q);
      linear(ctx, z, weight("k_proj"), {}, k);
      linear(ctx, z, weight("v_proj"), {}, v);
    }
    const auto by_heads = [&](const Tensor& t, int64_t rows) {
      return t.reshape({m.batch, rows, m.heads, m.e}).permute({0, 2, 1, 3});
    };
    const Tensor attn = outputs_.at("attn").reshape({m.batch, m.heads, 1, m.length});
    {
      const auto stage = ctx.stage("attend");
      GemmArgs g;
      g.a = by_heads(q, 1), g.b = by_heads(k, m.length), g.b_transposed = true;
      g.c = attn, g.alpha = static_cast<float>(1 / std::sqrt(static_cast<double>(m.e)));
      gemm(ctx, g);
      softmax(ctx, {attn, attn});
      const Tensor o = ctx.allocate(f32, {m.batch, m.heads, 1, m.e});
      GemmArgs mix;
      mix.a = attn, mix.b = by_heads(v, m.length), mix.c = o;
      gemm(ctx, mix);
      linear(ctx, o.reshape({m.batch, 1, wide}), weight("o_proj"), {}, outputs_.at("y_hat"));
    }
    {
      const auto stage = ctx.stage("maps");
      const Shape square{m.heads, m.e, m.e};
      GemmArgs g;
      g.a = weight("k_proj").reshape(square), g.a_transposed = true, g.b = weight("q_proj").reshape(square);
      g.c = outputs_.at("KQ"), g.alpha = static_cast<float>(1 / std::sqrt(static_cast<double>(m.e)));
      gemm(ctx, g);
      GemmArgs ov;
      ov.a = weight("v_proj").reshape(square), ov.a_transposed = true;
      ov.b = weight("o_proj").strided({m.heads, m.ny, m.e}, {m.e, wide, 1}), ov.b_transposed = true;
      ov.c = outputs_.at("OV");
      gemm(ctx, ov);
    }
    if (has_estimators()) estimate(ctx);
    const auto stage = ctx.stage("scales");
    for (const auto& [name, t] : prepared_)
      if (outputs_.contains(name)) cast(ctx, {t, outputs_.at(name)});
    if (outputs_.contains("selected_heads") && selected_ > 0)
      transpose_copy(ctx, {heads_, outputs_.at("selected_heads").slice(0, 0, selected_)});
  }

  ClosedForm cost() const override {
    const Model& m = m_;
    ClosedForm c;
    Cost& x = c.cost;
    const int64_t b = m.batch, l = m.length, h = m.heads, e = m.e, d = m.d;
    c.parameters = 3 * h * e * e + h * e * m.ny;
    // A product of `count` pairs of matrices; operands once, the second one as often as it is stored.
    const auto product = [&x](int64_t count, int64_t rows, int64_t columns, int64_t inner,
                              bool shared = false) {
      x.matmul += 2 * count * rows * columns * inner;
      x.bytes_read += 4 * (count * rows * inner + (shared ? 1 : count) * inner * columns);
      x.bytes_written += 4 * count * rows * columns;
    };
    const auto rows_of_softmax = [&x](int64_t rows, int64_t columns) {
      x.special += rows * columns, x.elementwise += 4 * rows * columns;
      x.bytes_read += 4 * rows * columns, x.bytes_written += 4 * rows * columns;
    };
    const auto moved = [&x](int64_t elements) {
      x.bytes_read += 4 * elements, x.bytes_written += 4 * elements;
    };
    product(1, b, h * e, e), product(1, b * l, h * e, e), product(1, b * l, h * e, e);
    product(b * h, 1, l, e), rows_of_softmax(b * h, l), product(b * h, 1, e, l);
    product(1, b, m.ny, h * e);
    product(h, e, e, e), product(h, e, m.ny, e);
    if (has_estimators()) {
      if (!has_input("y")) moved(b * l);
      product(b, 1, l, d);                             // scores
      product(b, h, l, 1), rows_of_softmax(b * h, l);  // by head
      product(b, h, 1, l), product(1, b, 1, h);        // labels, heads
      product(b, 1, 1, l);                             // gradient descent
      x.elementwise += 2 * b * l + 3 * b;              // its mean, in five steps
      x.bytes_read += 2 * 4 * b * l + (2 + 1 + 2) * 4 * b, x.bytes_written += (2 + 1 + 1 + 1) * 4 * b;
      x.elementwise += b * l, moved(b * l), rows_of_softmax(b, l), product(b, 1, 1, l);  // one head
      product(b, d, d, l), product(b, d, 1, l), product(b, 1, 1, d);                     // ridge
      x.matmul += b * (d * d * d / 3 + 2 * d * d), x.special += 2 * b * d;
      x.bytes_read += 4 * b * (d * d + d), x.bytes_written += 4 * b * d;
      moved(3 * h + 1);
    } else if (m.weights != "pattern") {
      moved(2 * h + 3 + selected_);
    }
    return c;
  }

 private:
  /// Heads whose query-key map is nearly diagonal.
  static constexpr double kDiagonal = 0.7;

  void make_weight_specs() {
    const Model& m = m_;
    const int64_t e = m.e, wide = m.heads * e;
    const auto f32 = DType::f32;
    const double bound = 1 / std::sqrt(static_cast<double>(e)),
                 out_bound = 1 / std::sqrt(static_cast<double>(wide));
    Init q = Init::uniform(-bound, bound), k = q, v = q, o = Init::uniform(-out_bound, out_bound);
    /// A stack of multiples of the identity, by head; `entries` of each diagonal.
    const auto diagonals = [e](std::vector<double> by_head, int64_t entries) {
      Init i;
      i.kind = Init::Kind::values;
      i.value = [e, by_head = std::move(by_head), entries](int64_t at) {
        const int64_t row = at / e, column = at % e;
        return row % e == column && column < entries ? by_head[static_cast<size_t>(row / e)] : 0.0;
      };
      return i;
    };
    const auto all = [&](double x) { return std::vector<double>(static_cast<size_t>(m.heads), x); };
    if (m.weights == "pattern") {
      std::vector<double> scaled = m.omega;
      for (double& w : scaled) w *= std::sqrt(static_cast<double>(e));
      q = diagonals(scaled, m.d);
      k = v = diagonals(all(1), e);
      o.kind = Init::Kind::values;
      o.value = [e, mu = m.mu](int64_t at) {
        return at % e == e - 1 ? mu[static_cast<size_t>(at / e)] : 0.0;
      };
    } else if (m.weights == "small_id") {
      q = k = v = diagonals(all(1e-6), e);
    } else if (m.weights == "small_id_qk") {
      q = k = diagonals(all(1e-4), e);
    } else if (m.weights == "oppo_small_id") {
      std::vector<double> half = all(1e-6);
      for (size_t h = half.size() / 2; h < half.size(); ++h) half[h] = -1e-6;
      q = diagonals(half, e), k = diagonals(all(1e-6), e);
    }
    weight_specs_ = {{"q_proj", {wide, e}, f32, q, false, "queries, heads stacked"},
                     {"k_proj", {wide, e}, f32, k, false, "keys, heads stacked"},
                     {"v_proj", {wide, e}, f32, v, false, "values, heads stacked"},
                     {"o_proj", {m.ny, wide}, f32, o, false, "output"}};
  }

  /// The estimators on covariates, labels and query, whether given or those of Z and z_q.
  void estimate(Context& ctx) {
    const Model& m = m_;
    const auto stage = ctx.stage("estimators");
    const auto f32 = DType::f32;
    const int64_t b = m.batch, l = m.length, d = m.d;
    const Tensor x = has_input("X") ? input("X") : input("Z").slice(2, 0, d);
    const Tensor x_q = has_input("x_q") ? input("x_q").reshape({b, 1, d}) : input("z_q").slice(2, 0, d);
    Tensor y;
    if (has_input("y")) {
      y = input("y").reshape({b, l, 1});
    } else {
      y = ctx.allocate(f32, {b, l, 1});
      transpose_copy(ctx, {input("Z").slice(2, d, d + 1), y});
    }
    const auto multiply = [&](const Tensor& u, const Tensor& w, const Tensor& c, double alpha = 1,
                              bool ut = false, bool wt = false) {
      GemmArgs g;
      g.a = u, g.b = w, g.c = c, g.alpha = static_cast<float>(alpha), g.a_transposed = ut,
      g.b_transposed = wt;
      gemm(ctx, g);
    };
    const auto out = [&](const char* name) { return outputs_.at(name).reshape({b, 1, 1}); };
    const Tensor s = ctx.allocate(f32, {b, 1, l});
    multiply(x_q, x, s, 1, false, true);

    const Tensor heads = ctx.allocate(f32, {b, m.heads, l});
    // omega_h s_l, the same omega for every prompt.
    multiply(prepared_.at("omega").strided({b, m.heads, 1}, {0, 1, 1}), s, heads);
    softmax(ctx, {heads, heads});
    const Tensor smoothed = ctx.allocate(f32, {b, m.heads, 1});
    multiply(heads, y, smoothed);
    multiply(smoothed.reshape({b, m.heads}), prepared_.at("mu").reshape({m.heads, 1}),
             outputs_.at("y_softmax").reshape({b, 1}));

    const double rate = step() / static_cast<double>(l);
    multiply(s, y, out("y_gd"), rate);
    const Tensor sum_y = ctx.allocate(f32, {b}), mean_s = ctx.allocate(f32, {b});
    reduce(ctx, {ReduceArgs::Op::sum, y.reshape({b, l}), {}, sum_y, false});
    reduce(ctx, {ReduceArgs::Op::mean, s.reshape({b, l}), {}, mean_s, false});
    pointwise(ctx, {PointwiseArgs::Op::mul, sum_y, mean_s, sum_y});
    pointwise(ctx, {PointwiseArgs::Op::affine, sum_y, {}, sum_y, static_cast<float>(-rate)});
    pointwise(ctx, {PointwiseArgs::Op::add, outputs_.at("y_gd"), sum_y, outputs_.at("y_dgd")});

    const Tensor one = ctx.allocate(f32, {b, 1, l});
    pointwise(
        ctx,
        {PointwiseArgs::Op::affine, s, {}, one, static_cast<float>(1 / std::sqrt(static_cast<double>(d)))});
    softmax(ctx, {one, one});
    multiply(one, y, out("y_onehead"), mu_onehead());

    const Tensor gram = ctx.allocate(f32, {b, d, d}), right = ctx.allocate(f32, {b, d, 1});
    multiply(x, x, gram, 1, true);
    multiply(x, y, right, 1, true);
    SolveSpdArgs solve;
    solve.a = gram, solve.b = solve.x = right.reshape({b, d});
    solve.ridge = static_cast<float>(m.noise * static_cast<double>(d));
    solve_spd(ctx, solve);
    multiply(x_q, right, out("y_ridge"));
  }

  /// Pattern metrics of the maps of the bound weights.
  template <class Keep>
  void measure_pattern(Context& ctx, const Keep& keep) {
    const Model& m = m_;
    const int64_t e = m.e, d = m.d, wide = m.heads * e;
    Context host(cpu_backend(), 1);
    const auto fetch = [&](const char* name) {
      const Tensor t = to_host(host, ctx, weight(name));
      return std::vector<double>(t.data<float>(), t.data<float>() + t.numel());
    };
    const std::vector<double> wq = fetch("q_proj"), wk = fetch("k_proj"), wv = fetch("v_proj"),
                              wo = fetch("o_proj");
    std::vector<double> ratio, omega;
    std::vector<int32_t> heads;
    double ratio_sum = 0, variance_sum = 0, last_sum = 0;
    for (int64_t h = 0; h < m.heads; ++h) {
      const auto at = [&](const std::vector<double>& w, int64_t row, int64_t column) {
        return w[static_cast<size_t>((h * e + row) * e + column)];
      };
      double diagonal = 0, all = 0, sum = 0;
      std::vector<double> entries;
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < d; ++j) {
          double x = 0;
          for (int64_t r = 0; r < e; ++r) x += at(wk, r, i) * at(wq, r, j);
          x /= std::sqrt(static_cast<double>(e));
          all += x * x;
          if (i == j) diagonal += x * x, sum += x, entries.push_back(x);
        }
      double last = 0, outputs = 0;
      for (int64_t i = 0; i < e; ++i)
        for (int64_t o = 0; o < m.ny; ++o) {
          double x = 0;
          for (int64_t r = 0; r < e; ++r) x += at(wv, r, i) * wo[static_cast<size_t>(o * wide + h * e + r)];
          outputs += x * x;
          if (i >= d) last += x * x;
        }
      const double mean = sum / static_cast<double>(d);
      double variance = 0;
      for (double x : entries) variance += (x - mean) * (x - mean) / static_cast<double>(d);
      ratio.push_back(all > 0 ? std::sqrt(diagonal / all) : 0), omega.push_back(mean);
      if (ratio.back() <= kDiagonal) continue;
      heads.push_back(static_cast<int32_t>(h));
      ratio_sum += ratio.back();
      variance_sum += mean != 0 ? variance / (mean * mean) : 0;
      last_sum += outputs > 0 ? std::sqrt(last / outputs) : 0;
    }
    selected_ = static_cast<int64_t>(heads.size());
    const double count = std::max<double>(1, static_cast<double>(selected_));
    keep("diag_norm_ratio", ratio), keep("omega_h", omega);
    keep("avg_diag_norm_ratio", {ratio_sum / count}), keep("avg_diag_variance", {variance_sum / count});
    keep("avg_last_entry_square_ratio", {last_sum / count});
    heads_ = upload(ctx, {selected_}, heads);
  }

  Problem problem_;
  Params params_;
  Model m_;
  std::shared_ptr<const Data> data_;
  TensorMap outputs_, prepared_;
  Tensor heads_;
  int64_t selected_ = 0;
  double grad_mu_condition_ = 1, grad_omega_condition_ = 1;
};

class InContextLinear final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    const auto wrong = [](const std::string& what) { throw UsageError("in_context_linear." + what); };
    if (problem.causal)
      throw Unsupported("in_context_linear: a single query sees every example; there is no causal form");
    Model m;
    m.batch = params.integer("batch"), m.length = params.integer("context_len");
    m.heads = params.integer("num_heads"), m.d = params.integer("dim_x"),
    m.ny = params.integer("num_outputs");
    m.e = m.d + m.ny;
    m.noise = params.number("noise_var"), m.rho = params.number("rho"), m.weights = params.choice("weights");
    m.d1 = params.integer("d1"), m.d2 = params.integer("d2");
    m.seed = static_cast<uint64_t>(params.integer("seed"));
    if (problem.channels && problem.channels != m.e)
      wrong("dim_x: " + std::to_string(m.d) + " covariates and " + std::to_string(m.ny) +
            " responses contradict problem.channels = " + std::to_string(problem.channels));
    if (problem.kv_length && problem.kv_length != m.length)
      throw Unsupported(
          "in_context_linear: the one query sees the prompt's own examples; kv_length has no meaning");
    if (std::abs(m.rho) >= 1)
      wrong("rho: a correlation between -1 and 1 is wanted, not " + Value(m.rho).str());
    if (m.ny > 1 && (m.d1 > m.d || m.d2 > m.d))
      wrong("d1, d2: tasks use at most the " + std::to_string(m.d) + " covariates");
    if (m.weights == "oppo_small_id" && m.heads % 2 != 0)
      wrong("weights: oppo_small_id wants an even number of heads");
    if (m.weights == "pattern" && m.ny > 1)
      throw Unsupported(
          "in_context_linear: the pattern is that of one response; multi-task weights come from a file");
    m.omega = heads_list(params, "omega", m.heads, 0.13, false);
    m.mu = heads_list(params, "mu", m.heads, 3.45, true);
    if (params.boolean("auto_mu")) m.mu = best_mu(m);
    if (m.weights == "pattern" && m.d > 128)
      throw Unsupported("in_context_linear: ridge solves systems of up to 128 covariates, not " +
                        std::to_string(m.d));
    if (m.weights == "pattern" && m.noise == 0 && m.length < m.d)
      throw Unsupported(
          "in_context_linear: without noise and with fewer examples than covariates ridge has no answer");
    return std::make_unique<InContextLinearInstance>(ctx, problem, params, std::move(m));
  }

 private:
  /// A value a head; null: +-x in turn (the last of an odd number is 0), shared among the heads of a sign.
  static std::vector<double> heads_list(const Params& params, const char* name, int64_t heads, double x,
                                        bool shared) {
    std::vector<double> v;
    if (params.is_null(name)) {
      const int64_t pairs = heads / 2;
      for (int64_t h = 0; h < heads; ++h) {
        const double size = h / 2 >= pairs ? 0 : shared ? x / static_cast<double>(pairs) : x;
        v.push_back(h % 2 == 0 ? size : -size);
      }
      return v;
    }
    for (const Value& e : params.value(name).as_list()) v.push_back(e.as_double());
    if (static_cast<int64_t>(v.size()) != heads)
      throw UsageError(std::string("in_context_linear.") + name + ": " + params.value(name).str() + " has " +
                       std::to_string(v.size()) + " entries for " + std::to_string(heads) + " heads");
    return v;
  }
};
ATTNBENCH_METHOD(InContextLinear);

}  // namespace
}  // namespace attnbench
