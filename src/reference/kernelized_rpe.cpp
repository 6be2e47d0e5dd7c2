// Reference of `kernelized_rpe`: every weight of every pair from its definition, in double precision.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// phi of one row of length d.
std::vector<double> features(const double* row, int64_t d, const double* w, int64_t m, const std::string& map,
                             bool normalize) {
  std::vector<double> x(row, row + d);
  double power = 0;
  for (double v : x) power += v * v;
  const double divisor =
      normalize ? std::max(std::sqrt(power), 1e-6) : std::pow(static_cast<double>(d), 0.25);
  for (double& v : x) v /= divisor;
  power = 0;
  for (double v : x) power += v * v;
  std::vector<double> dots, phi;
  for (int64_t r = 0; r < m; ++r) {
    double dot = 0;
    for (int64_t i = 0; i < d; ++i) dot += w[r * d + i] * x[static_cast<size_t>(i)];
    dots.push_back(dot);
  }
  const double root = std::sqrt(static_cast<double>(m));
  if (map == "relu")
    for (double dot : dots) phi.push_back(std::max(dot, 0.0) / root + 1e-3);
  if (map == "prf")
    for (double dot : dots) phi.push_back(std::exp(-power / 2) / root * std::exp(dot));
  if (map == "trf") {
    for (double dot : dots) phi.push_back(std::exp(power / 2) / root * std::sin(dot));
    for (double dot : dots) phi.push_back(std::exp(power / 2) / root * std::cos(dot));
  }
  return phi;
}

RefMap rpe_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                     const RefMap& weights) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v"), &w = weights.at("W");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), m = k.dim(2), e = v.dim(3),
                vectors = w.dim(1);
  const bool rpe = params.boolean("use_rpe"), causal = params.boolean("causal"),
             planar = params.choice("rpe") == "2d";
  const std::string map = params.choice("feature_map");
  const int64_t clip =
      params.is_null("max_relative_position") ? n + m : params.integer("max_relative_position");
  RefTensor o({batch, heads, n, e});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const double* matrix = &w.data[static_cast<size_t>(w.dim(0) == 1 ? 0 : h * vectors * d)];
      const auto all = [&](const RefTensor& x) {
        std::vector<std::vector<double>> phi;
        for (int64_t i = 0; i < x.dim(2); ++i)
          phi.push_back(features(&x.data[static_cast<size_t>(((b * heads + h) * x.dim(2) + i) * d)], d,
                                 matrix, vectors, map, params.boolean("normalize")));
        return phi;
      };
      const auto phi_q = all(q), phi_k = all(k);
      for (int64_t i = 0; i < n; ++i) {
        double total = 0;
        std::vector<double> sum(static_cast<size_t>(e));
        for (int64_t j = 0; j < m; ++j) {
          double a = 0;
          for (size_t r = 0; r < phi_q[0].size(); ++r)
            a += phi_q[static_cast<size_t>(i)][r] * phi_k[static_cast<size_t>(j)][r];
          if (rpe && planar) {
            const int64_t gh = problem.grid[0], gw = problem.grid[1];
            const int64_t dy = std::clamp(j / gw - i / gw, -clip, clip),
                          dx = std::clamp(j % gw - i % gw, -clip, clip);
            a *= std::exp(weights.at("b")[(h * (2 * gh - 1) + dy + gh - 1) * (2 * gw - 1) + dx + gw - 1]);
          } else if (rpe) {
            const int64_t offset = std::clamp(j - i, -clip, clip);
            a *= std::exp(weights.at("b")[h * (n + m - 1) + offset + n - 1]);
          }
          if (causal && j > i) a = 0;
          total += a;
          for (int64_t c = 0; c < e; ++c)
            sum[static_cast<size_t>(c)] += a * v[((b * heads + h) * m + j) * e + c];
        }
        for (int64_t c = 0; c < e; ++c)
          o[((b * heads + h) * n + i) * e + c] = sum[static_cast<size_t>(c)] / (total > 0 ? total : 1.0);
      }
    }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(kernelized_rpe, rpe_reference);

}  // namespace
}  // namespace attnbench
