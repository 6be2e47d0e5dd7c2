// Reference of `local_linear_attention`: each query's weighted ridge system formed from differences k_j - q_i
// and solved in double precision, directly or by the card's iteration.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s;
}

/// Gaussian elimination with pivoting.
Vector solve(std::vector<Vector> a, Vector b) {
  const size_t n = b.size();
  for (size_t c = 0; c < n; ++c) {
    size_t best = c;
    for (size_t r = c + 1; r < n; ++r)
      if (std::abs(a[r][c]) > std::abs(a[best][c])) best = r;
    std::swap(a[c], a[best]), std::swap(b[c], b[best]);
    for (size_t r = c + 1; r < n; ++r) {
      const double f = a[r][c] / a[c][c];
      for (size_t x = c; x < n; ++x) a[r][x] -= f * a[c][x];
      b[r] -= f * b[c];
    }
  }
  for (size_t c = n; c-- > 0;) {
    for (size_t x = c + 1; x < n; ++x) b[c] -= a[c][x] * b[x];
    b[c] /= a[c][c];
  }
  return b;
}

/// The kernel's iteration on sigma rho = mu.
Vector iterate(const std::vector<Vector>& sigma, const Vector& mu, int64_t most, double rtol, double atol,
               bool jacobi) {
  const size_t n = mu.size();
  const auto scaled = [&](const Vector& r) {
    Vector z = r;
    for (size_t i = 0; i < n && jacobi; ++i) z[i] /= sigma[i][i];
    return z;
  };
  Vector x(n, 0.0), r = mu, p = scaled(r);
  const double bound = std::max(atol, dot(mu, mu)) * rtol;
  double rz = dot(r, p);
  for (int64_t t = 0; t < most; ++t) {
    const double rr = dot(r, r);
    if (rr <= bound || !std::isfinite(rr)) break;
    Vector sp(n);
    for (size_t i = 0; i < n; ++i) sp[i] = dot(sigma[i], p);
    const double alpha = rz / (dot(p, sp) + 1e-10);
    for (size_t i = 0; i < n; ++i) x[i] += alpha * p[i], r[i] -= alpha * sp[i];
    const Vector z = scaled(r);
    const double next = dot(r, z), beta = next / rz;
    for (size_t i = 0; i < n; ++i) p[i] = z[i] + beta * p[i];
    rz = next;
  }
  return x;
}

RefMap local_linear_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), m = k.dim(2), e = v.dim(3);
  const double scale =
      params.is_null("scale") ? 1.0 / std::sqrt(static_cast<double>(d)) : params.number("scale");
  const double lambda = params.number("ridge_lambda"), eps = params.number("delta_eps");
  const bool causal = params.boolean("causal"), absolute = params.choice("ridge_scale") == "absolute";
  const std::string solver = params.choice("solver");
  const int64_t block = params.is_null("lla_block_size") ? d : params.integer("lla_block_size");
  RefTensor o({batch, heads, n, e}), omegas({batch, heads, n});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t head = 0; head < batch * heads; ++head)
    for (int64_t i = 0; i < n; ++i) {
      const int64_t seen = causal ? i + 1 + m - n : m;
      const auto size = static_cast<size_t>(d);
      Vector l(static_cast<size_t>(seen));
      double most = -INFINITY;
      for (int64_t j = 0; j < seen; ++j) {
        for (int64_t c = 0; c < d; ++c)
          l[static_cast<size_t>(j)] += scale * q[(head * n + i) * d + c] * k[(head * m + j) * d + c];
        most = std::max(most, l[static_cast<size_t>(j)]);
      }
      double omega = 0;
      Vector mu(size, 0.0);
      std::vector<Vector> z, sigma(size, Vector(size, 0.0));
      for (int64_t j = 0; j < seen; ++j) {
        double& w = l[static_cast<size_t>(j)];
        w = std::exp(w - most);
        omega += w;
        Vector apart(size);
        for (int64_t c = 0; c < d; ++c)
          apart[static_cast<size_t>(c)] = k[(head * m + j) * d + c] - q[(head * n + i) * d + c];
        for (size_t a = 0; a < size; ++a) {
          mu[a] += w * apart[a];
          for (size_t b = 0; b < size; ++b)
            if (a / static_cast<size_t>(block) == b / static_cast<size_t>(block))
              sigma[a][b] += w * apart[a] * apart[b];
        }
        z.push_back(std::move(apart));
      }
      for (size_t a = 0; a < size; ++a) sigma[a][a] += absolute ? lambda * std::exp(-most) : lambda * omega;
      const Vector rho = solver == "cholesky"
                             ? solve(sigma, mu)
                             : iterate(sigma, mu, params.integer("cg_max_iters"), params.number("cg_rtol"),
                                       params.number("cg_atol"), solver == "cg_jacobi");
      double delta = omega - dot(mu, rho);
      delta += eps * (delta < 0 ? -1.0 : 1.0);
      for (int64_t j = 0; j < seen; ++j) {
        const double s = l[static_cast<size_t>(j)] * (1 - dot(rho, z[static_cast<size_t>(j)])) / delta;
        for (int64_t c = 0; c < e; ++c) o[(head * n + i) * e + c] += s * v[(head * m + j) * e + c];
      }
      omegas[head * n + i] = omega;
    }
  return {{"o", o}, {"omega", omegas}};
}
ATTNBENCH_REFERENCE(local_linear_attention, local_linear_reference);

}  // namespace
}  // namespace attnbench
