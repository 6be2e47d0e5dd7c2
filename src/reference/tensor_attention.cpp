// Reference of `tensor_attention`: every tuple of keys in turn, with exp or with the polynomial in its place.
#include <algorithm>
#include <cmath>
#include <functional>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

struct Call {
  int64_t order, n, d;
  double scale;
  bool causal;
  std::vector<int64_t> windows;
  std::vector<const RefTensor*> k, v;
};

/// Calls visit(score, values) for all tuples that query i of head `head` sees.
template <class Visit>
void each_tuple(const Call& call, const RefTensor& q, int64_t head, int64_t i, Visit visit) {
  const auto d = static_cast<size_t>(call.d);
  const std::function<void(size_t, const std::vector<double>&, const std::vector<double>&)> descend =
      [&](size_t r, const std::vector<double>& product, const std::vector<double>& value) {
        if (r == call.k.size()) {
          double s = 0;
          for (double x : product) s += x;
          visit(call.scale * s, value);
          return;
        }
        const int64_t m = call.k[r]->dim(2), w = call.windows[r];
        std::vector<double> next(d), next_value(d);
        for (int64_t a = 0; a < m; ++a) {
          if ((call.causal || w > 0) && a > i) continue;
          if (w > 0 && a <= i - w) continue;
          for (size_t c = 0; c < d; ++c) {
            const int64_t at = (head * m + a) * call.d + static_cast<int64_t>(c);
            next[c] = product[c] * (*call.k[r])[at];
            next_value[c] = value[c] * (*call.v[r])[at];
          }
          descend(r + 1, next, next_value);
        }
      };
  std::vector<double> query(d), ones(d, 1.0);
  for (size_t c = 0; c < d; ++c) query[c] = q[(head * call.n + i) * call.d + static_cast<int64_t>(c)];
  descend(0, query, ones);
}

/// The Taylor polynomial, or Lagrange's interpolant of exp in the Chebyshev points of [-bound, bound].
double polynomial(double s, int64_t degree, bool chebyshev, double bound) {
  if (!chebyshev || bound == 0) {
    double term = 1, sum = 1;
    for (int64_t m = 1; m <= degree; ++m) sum += term *= s / static_cast<double>(m);
    return sum;
  }
  std::vector<double> x;
  for (int64_t j = 0; j <= degree; ++j)
    x.push_back(bound *
                std::cos(std::acos(-1.0) * (static_cast<double>(j) + 0.5) / static_cast<double>(degree + 1)));
  double sum = 0;
  for (size_t j = 0; j < x.size(); ++j) {
    double basis = std::exp(x[j]);
    for (size_t l = 0; l < x.size(); ++l)
      if (l != j) basis *= (s - x[l]) / (x[j] - x[l]);
    sum += basis;
  }
  return sum;
}

RefMap tensor_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor& q = inputs.at("q");
  const int64_t batch = q.dim(0), heads = q.dim(1);
  Call call;
  call.order = params.integer("order");
  call.n = q.dim(2), call.d = q.dim(3);
  call.scale = params.is_null("scale") ? 1.0 / static_cast<double>(call.d) : params.number("scale");
  call.causal = params.boolean("causal");
  call.windows.assign(static_cast<size_t>(call.order - 1), 0);
  call.windows[0] = params.integer("window1");
  if (call.order > 2) call.windows[1] = params.integer("window2");
  for (int64_t r = 1; r < call.order; ++r) {
    call.k.push_back(&inputs.at("k" + std::to_string(r)));
    call.v.push_back(&inputs.at("v" + std::to_string(r)));
  }
  const bool exact = params.choice("mode") == "exact";
  const int64_t degree = params.integer("degree");
  double bound = 0;
  if (!params.is_null("logit_bound")) {
    bound = params.number("logit_bound");
  } else {
    double most = 0;
    for (double x : q.data) most = std::max(most, std::abs(x));
    for (const RefTensor* k : call.k)
      for (double x : k->data) most = std::max(most, std::abs(x));
    bound =
        std::pow(most, static_cast<double>(call.order)) * static_cast<double>(call.d) * std::abs(call.scale);
  }
  RefTensor o(q.shape);
  for (const bool chebyshev : {!exact && params.choice("poly") == "chebyshev", false}) {
    bool positive = true;
    o = RefTensor(q.shape);
#pragma omp parallel for collapse(2) schedule(dynamic) reduction(&& : positive)
    for (int64_t head = 0; head < batch * heads; ++head)
      for (int64_t i = 0; i < call.n; ++i) {
        double most = -INFINITY, sum = 0;
        if (exact)
          each_tuple(call, q, head, i,
                     [&](double s, const std::vector<double>&) { most = std::max(most, s); });
        std::vector<double> row(static_cast<size_t>(call.d), 0.0);
        each_tuple(call, q, head, i, [&](double s, const std::vector<double>& value) {
          const double w = exact ? std::exp(s - most) : polynomial(s, degree, chebyshev, bound);
          sum += w;
          for (size_t c = 0; c < row.size(); ++c) row[c] += w * value[c];
        });
        positive = positive && sum > 0;
        for (size_t c = 0; c < row.size(); ++c)
          o[(head * call.n + i) * call.d + static_cast<int64_t>(c)] = row[c] / sum;
      }
    if (positive || !chebyshev) break;
  }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(tensor_attention, tensor_reference);

}  // namespace
}  // namespace attnbench
