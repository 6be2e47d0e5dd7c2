// Runs one method on generated inputs beside its reference, for tests: poisoned outputs, ledger, comparison.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "inputs/inputs.hpp"
#include "kernels/core/backend.hpp"
#include "methods/method.hpp"
#include "reference/compare.hpp"
#include "reference/reference.hpp"
#include "tests/catch.hpp"

namespace attnbench::testing {

using ParamMap = std::map<std::string, Value>;

/// A method instance on its own context with inputs bound.
struct Trial {
  std::unique_ptr<Context> ctx;
  Params params;
  Problem problem;
  std::string method;
  std::unique_ptr<Instance> instance;

  /// Fills every output with NaN, prepares and runs once; the ledger holds that run.
  void run() {
    instance->prepare(*ctx);
    for (const auto& [key, t] : instance->outputs()) {
      if (!is_float(t.dtype())) continue;
      const double nan = std::numeric_limits<double>::quiet_NaN();
      for (int64_t i = 0; i < t.numel(); ++i)
        convert(&nan, DType::f64, static_cast<char*>(t.raw()) + i * static_cast<int64_t>(size_of(t.dtype())),
                t.dtype(), 1);
    }
    ctx->cost().reset();
    ctx->cost().set_exact(true);
    instance->run(*ctx);
  }
  RefMap reference() const {
    return find_reference(method)(problem, params, to_reference(instance->inputs()),
                                  to_reference(instance->weights()));
  }
  RefTensor output(const std::string& name) const { return to_reference(instance->outputs().at(name)); }
};

inline Trial make_trial(const std::string& method, const Problem& problem, const ParamMap& given = {},
                        int threads = 2) {
  Trial t;
  t.method = method;
  t.problem = problem;
  check_problem(problem);
  t.ctx = std::make_unique<Context>(cpu_backend(), threads);
  const Method& m = find_method(method);
  t.params = resolve_params(method, m.info().params, given, problem);
  t.instance = m.make(*t.ctx, problem, t.params);
  fill_instance(*t.ctx, *t.instance, problem);
  return t;
}

/// A heads-form sequence problem.
inline Problem heads_problem(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t m, int64_t d,
                             bool causal, DType dtype = DType::f32) {
  Problem p;
  p.batch = batch;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.length = n;
  p.kv_length = m;
  p.head_dim = d;
  p.causal = causal;
  p.dtype = dtype;
  return p;
}

/// A reference tensor of the given values.
inline RefTensor ref_tensor(std::vector<int64_t> shape, std::vector<double> values) {
  RefTensor t(std::move(shape));
  t.data = std::move(values);
  return t;
}

/// Parameters of a method, resolved.
inline Params params_of(const std::string& method, const Problem& problem, const ParamMap& given = {}) {
  return resolve_params(method, find_method(method).info().params, given, problem);
}

/// Replaces bound tensors (shapes and dtypes checked by bind).
inline void rebind(Trial& t, const TensorMap& inputs, const TensorMap& weights = {}) {
  TensorMap i = t.instance->inputs(), w = t.instance->weights();
  for (const auto& [key, tensor] : inputs) i[key] = tensor;
  for (const auto& [key, tensor] : weights) w[key] = tensor;
  t.instance->bind(i, w);
}

/// A host tensor of the given values.
inline Tensor host_tensor(Context& ctx, const Shape& shape, const std::vector<double>& values,
                          DType dtype = DType::f32) {
  Tensor t = ctx.allocate(dtype, shape);
  convert(values.data(), DType::f64, t.raw(), dtype, t.numel());
  return t;
}

/// Weights whose names `chosen` takes leave the 0 and 1 they start from, so that gains, offsets and slopes
/// count.
template <class Chosen>
void shake_weights(Trial& t, double amount, const Chosen& chosen) {
  TensorMap changed;
  for (const auto& [key, w] : t.instance->weights()) {
    if (!chosen(key)) continue;
    std::vector<double> v = to_reference(w).data;
    for (size_t i = 0; i < v.size(); ++i)
      v[i] += amount * std::sin(1.7 * static_cast<double>(i) + static_cast<double>(key.size()));
    changed[key] = host_tensor(*t.ctx, w.shape(), v);
  }
  rebind(t, {}, changed);
}

/// Every weight whose name contains one of `parts` becomes `value`; each part must name one at least.
inline void set_weights(Trial& t, const std::vector<std::string>& parts, double value) {
  TensorMap changed;
  for (const std::string& part : parts) {
    const size_t before = changed.size();
    for (const auto& [key, w] : t.instance->weights())
      if (key.find(part) != std::string::npos)
        changed[key] =
            host_tensor(*t.ctx, w.shape(), std::vector<double>(static_cast<size_t>(w.numel()), value));
    INFO(part);
    REQUIRE(changed.size() > before);
  }
  rebind(t, {}, changed);
}

inline double largest_difference(const RefTensor& a, const RefTensor& b) {
  REQUIRE(a.shape == b.shape);
  double w = 0;
  for (int64_t i = 0; i < a.numel(); ++i) w = std::max(w, std::abs(a[i] - b[i]));
  return w;
}

/// Makes an instance for its refusals.
inline void make_only(const std::string& method, const Problem& problem, const ParamMap& given) {
  Context ctx(cpu_backend(), 1);
  find_method(method).make(ctx, problem, params_of(method, problem, given));
}

/// Relative L2 bound after `roundings` independent roundings of the storage type (half an epsilon each) on
/// top of f32 arithmetic, whose sums of a few thousand terms stay below 16 f32 epsilons relative to the norm.
inline double tolerance(DType dtype, double roundings) {
  return 16 * epsilon_of(DType::f32) + (dtype == DType::f32 ? 0.0 : roundings * epsilon_of(dtype) / 2);
}

/// Rows of head (b, h) against the statistics taken inside the operator: rows sum to 1 (0 where nothing is
/// visible), hold as many positive entries as keys are visible, and have the reported entropy.
inline void check_rows_and_stats(Trial& t) {
  t.run();
  const auto stats = t.instance->row_stats(*t.ctx);
  REQUIRE(stats.has_value());
  const Shape shape = stats->entropy.shape();
  const int64_t keys = t.instance->keys(0);
  const auto pairs = t.instance->pairs();
  REQUIRE(pairs.has_value());
  double worst = 0;
  int64_t wrong = 0;
  std::vector<float> rows;
  Intervals visible;
  for (int64_t b = 0; b < shape[0]; ++b)
    for (int64_t h = 0; h < shape[1]; ++h) {
      REQUIRE(t.instance->rows(*t.ctx, b, h, 0, shape[2], rows));
      REQUIRE(rows.size() == static_cast<size_t>(shape[2] * keys));
      for (int64_t i = 0; i < shape[2]; ++i) {
        const int64_t at = (b * shape[1] + h) * shape[2] + i;
        double sum = 0, entropy = 0, most = 0;
        int64_t seen = 0, listed = 0;
        pairs->row(b, h, i, visible);
        for (const Interval& v : visible) listed += v.end - v.begin;
        for (int64_t j = 0; j < keys; ++j) {
          const double p = rows[static_cast<size_t>(i * keys + j)];
          sum += p;
          seen += p > 0;
          most = std::max(most, p);
          if (p > 0) entropy -= p * std::log(p);
        }
        worst =
            std::max({worst, std::abs(sum - (seen ? 1.0 : 0.0)),
                      std::abs(entropy - static_cast<double>(stats->entropy.data<float>()[at])),
                      std::abs(most - static_cast<double>(stats->row_max_probability.data<float>()[at]))});
        wrong += seen != static_cast<int64_t>(stats->visible_keys.data<float>()[at]);
        wrong += seen != listed;
      }
    }
  INFO(t.method << " " << t.problem.str());
  // Entropies up to ln(keys) < 8, taken in f32 from probabilities of f32 accuracy.
  CHECK(worst < 256 * epsilon_of(DType::f32));
  CHECK(wrong == 0);
}

/// Runs, and checks every output against the reference and the ledger against the closed form. An output of
/// another type than the problem's (an f32 loss) owes its own type's accuracy, unless it `inherits` the
/// problem's roundings.
inline void check_trial(Trial& t, double roundings, bool inherits = false) {
  t.run();
  const RefMap want = t.reference();
  const TensorMap outputs = t.instance->outputs();
  REQUIRE(want.size() == outputs.size());
  for (const auto& [key, tensor] : outputs) {
    REQUIRE(want.contains(key));
    const Comparison c = compare(to_reference(tensor), want.at(key));
    INFO(t.method << " " << t.problem.str() << ", output " << key << ": " << c.worst);
    CHECK(c.relative_l2 <= tolerance(inherits ? t.problem.dtype : tensor.dtype(), roundings) *
                               (is_float(tensor.dtype()) ? t.instance->condition(key) : 0.0));
  }
  const Cost counted = t.ctx->cost().total(), formula = t.instance->cost().cost;
  INFO(t.method << " " << t.problem.str());
  CHECK(counted.matmul == formula.matmul);
  CHECK(counted.elementwise == formula.elementwise);
  CHECK(counted.special == formula.special);
  CHECK(counted.bytes_read == formula.bytes_read);
  CHECK(counted.bytes_written == formula.bytes_written);
}

}  // namespace attnbench::testing
