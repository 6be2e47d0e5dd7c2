// Vision layers beside their references with weights strong enough to matter: tests of the hilo card's
// methods.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "tests/methods/method_check.hpp"

namespace attnbench::testing {

inline Problem grid_problem(int64_t batch, int64_t grid_h, int64_t grid_w, int64_t channels, int64_t heads,
                            DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.grid = {grid_h, grid_w};
  p.channels = channels;
  p.heads = heads;
  p.dtype = dtype;
  p.seed = 11;
  return p;
}

/// Values by name: normal, scaled so that projections have a standard deviation of about 1.5 and logits
/// spread (the default initialisation, 0.02, leaves every softmax near uniform at test sizes and would hide
/// wrong keys).
inline RefTensor strong_values(const TensorSpec& spec, uint64_t seed = 5) {
  RefTensor t(std::vector<int64_t>(spec.shape.begin(), spec.shape.end()));
  double fan_in = 1;
  for (int axis = 1; axis < spec.shape.rank(); ++axis) fan_in *= static_cast<double>(spec.shape[axis]);
  const bool matrix = spec.shape.rank() > 1 && spec.name != "rel_pos_bias_table";
  const double std = matrix ? 1.5 / std::sqrt(fan_in) : 0.5, mean = spec.name == "norm.weight" ? 1.0 : 0.0;
  for (int64_t i = 0; i < t.numel(); ++i)
    t[i] = mean + std * random_normal(seed, stream_of(spec.name), static_cast<uint64_t>(i));
  return t;
}

inline Tensor from_reference(Context& ctx, const RefTensor& t, DType dtype) {
  return host_tensor(ctx, Shape(t.shape), t.data, dtype);
}

/// A trial with strong weights (rounded to the problem's dtype, which the reference then reads).
inline Trial strong_trial(const std::string& method, const Problem& problem, const ParamMap& params = {},
                          int threads = 2) {
  Trial t = make_trial(method, problem, params, threads);
  TensorMap weights;
  for (const TensorSpec& s : t.instance->weight_specs())
    weights[s.name] = from_reference(*t.ctx, strong_values(s), s.dtype);
  rebind(t, {}, weights);
  return t;
}

/// One layer in double by its reference and in f32 by its method, on given tensors.
struct Outputs {
  RefTensor reference, method;
};
inline Outputs run_layer(const std::string& method, const Problem& problem, const ParamMap& params,
                         const RefTensor& x, const RefMap& weights) {
  Trial t = make_trial(method, problem, params);
  TensorMap w;
  for (const auto& [key, value] : weights) w[key] = from_reference(*t.ctx, value, DType::f32);
  t.instance->bind({{"x", from_reference(*t.ctx, x, DType::f32)}}, w);
  t.run();
  // The reference takes the doubles themselves: degenerate cases are exact there.
  return {find_reference(method)(problem, t.params, {{"x", x}}, weights).at("out"), t.output("out")};
}

/// Two layers that the card calls equal: exact (to double rounding) between references, and each method
/// beside them.
inline void check_equal(const Outputs& a, const Outputs& b) {
  const Comparison exact = compare(a.reference, b.reference);
  INFO("references: " << exact.worst);
  CHECK(exact.relative_l2 <= 1e-13);
  const Comparison left = compare(a.method, a.reference), right = compare(b.method, a.reference);
  INFO("methods: " << left.worst << ", " << right.worst);
  CHECK(left.relative_l2 <= tolerance(DType::f32, 0));
  CHECK(right.relative_l2 <= tolerance(DType::f32, 0));
}

/// Strong input and weights of a method, for run_layer.
inline RefTensor strong_input(const Problem& p) {
  return strong_values({"x", {p.batch, p.tokens(), p.channels}, DType::f32, Init::normal(), false, ""}, 3);
}
inline RefMap strong_weights(const std::string& method, const Problem& problem, const ParamMap& params) {
  Trial t = make_trial(method, problem, params);
  RefMap w;
  for (const TensorSpec& s : t.instance->weight_specs()) w[s.name] = strong_values(s);
  return w;
}

/// Rows [begin, end) of the first axis.
inline RefTensor rows_of(const RefTensor& t, int64_t begin, int64_t end) {
  std::vector<int64_t> shape = t.shape;
  shape[0] = end - begin;
  RefTensor r(shape);
  const int64_t width = t.numel() / t.dim(0);
  for (int64_t i = 0; i < r.numel(); ++i) r[i] = t[begin * width + i];
  return r;
}
inline RefTensor stacked(const RefTensor& a, const RefTensor& b) {
  std::vector<int64_t> shape = a.shape;
  shape[0] += b.shape[0];
  RefTensor r(shape);
  for (int64_t i = 0; i < a.numel(); ++i) r[i] = a[i];
  for (int64_t i = 0; i < b.numel(); ++i) r[a.numel() + i] = b[i];
  return r;
}

/// How far a bf16 or f16 layer strays: roundings of the projections, of the attention output and of the
/// result, each half an epsilon; the softmax turns errors of a logit into relative errors of its weights, and
/// strong weights give logits of a few units, hence the generous count.
inline constexpr double kLayerRoundings = 8;

/// pairs(), rows() and row_stats() agree with each other: rows sum to 1, put all but e^-100 shares on visible
/// places, and their entropy is the operator's. `token_columns`: columns of head h are tokens of an unpadded
/// grid.
inline void check_analyses(Trial& t, const std::function<bool(int64_t h)>& token_columns) {
  t.run();
  const std::optional<PairSet> pairs = t.instance->pairs();
  REQUIRE(pairs);
  REQUIRE(pairs->queries == t.problem.tokens());
  REQUIRE(pairs->tokens == t.problem.tokens());
  REQUIRE(pairs->grid == t.problem.grid);
  const std::optional<RowStats> stats = t.instance->row_stats(*t.ctx);
  REQUIRE(stats);
  const int64_t n = t.problem.tokens();
  for (int64_t b = 0; b < t.problem.batch; ++b)
    for (int64_t h = 0; h < t.problem.heads; ++h) {
      std::vector<float> p;
      const int64_t begin = n / 3, columns = t.instance->keys(h);
      REQUIRE(t.instance->rows(*t.ctx, b, h, begin, n, p));
      REQUIRE(static_cast<int64_t>(p.size()) == (n - begin) * columns);
      for (int64_t i = begin; i < n; ++i) {
        INFO("batch " << b << ", head " << h << ", row " << i);
        Intervals set;
        pairs->row(b, h, i, set);
        std::vector<char> in_set(static_cast<size_t>(n), 0);
        int64_t last = -1;
        for (const Interval& s : set) {
          REQUIRE(s.begin > last);  // sorted, disjoint, not adjacent, not empty
          REQUIRE(s.end > s.begin);
          REQUIRE(s.end <= n);
          last = s.end;
          for (int64_t j = s.begin; j < s.end; ++j) in_set[static_cast<size_t>(j)] = 1;
        }
        CHECK(in_set[static_cast<size_t>(i)]);
        double sum = 0, entropy = 0, top = 0, outside = 0, heavy = 0;
        for (int64_t j = 0; j < columns; ++j) {
          const double e = p[static_cast<size_t>((i - begin) * columns + j)];
          sum += e;
          top = std::max(top, e);
          if (e > 0) entropy -= e * std::log(e);
          heavy += e > 1e-30;
          if (token_columns(h) && !in_set[static_cast<size_t>(j)]) outside += e;
        }
        const auto at = static_cast<size_t>((b * t.problem.heads + h) * n + i);
        CHECK(sum == Approx(1.0).margin(1e-5));
        CHECK(outside < 1e-30);
        CHECK(heavy <= stats->visible_keys.data<float>()[at]);
        CHECK(stats->entropy.data<float>()[at] == Approx(entropy).margin(2e-5));
        CHECK(stats->row_max_probability.data<float>()[at] == Approx(top).margin(1e-5));
      }
    }
}
inline void check_analyses(Trial& t) {
  check_analyses(t, [](int64_t) { return true; });
}

/// What every layer refuses, with the reason.
inline void check_refusals(const std::string& method) {
  Problem p = grid_problem(1, 4, 4, 8, 2);
  CHECK_THROWS_AS(make_trial(method, p, {{"no_such", 1}}), UsageError);
  CHECK_THROWS_AS(make_trial(method, p, {{"dim", 16}}), UsageError);  // contradicts the problem
  CHECK_THROWS_AS(make_trial(method, p, {{"qk_scale", 0.0}}), UsageError);
  p.causal = true;
  CHECK_THROWS_AS(make_trial(method, p), Unsupported);
  p.causal = false, p.heads = 3;
  CHECK_THROWS_AS(make_trial(method, p), UsageError);
  p.heads = 2, p.kind = ProblemKind::sequence, p.grid = {}, p.length = 16;
  CHECK_THROWS_AS(make_trial(method, p), Unsupported);
}

/// A channels-last softmax layer at the published table's setting, batch 1: its closed form only.
inline ClosedForm table_form(const std::string& method, const ParamMap& params = {}, int64_t grid = 14,
                             int64_t channels = 768) {
  Context ctx(cpu_backend(), 1);
  const Problem p = grid_problem(1, grid, grid, channels, 12);
  const Method& m = find_method(method);
  return m.make(ctx, p, resolve_params(method, m.info().params, params, p))->cost();
}

}  // namespace attnbench::testing
