// Local linear attention in double precision for the operator's tests: every query's system formed from
// differences and not divided by omega, as the paper writes it. Uses nothing of the operator.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/local_linear/local_linear.hpp"
#include "tests/op_testing.hpp"

namespace attnbench::testing {

struct LocalLinearExpected {
  std::vector<double> o, omega, rho, coefficient, delta;
  /// [B, H, N]: what an error of one unit in the weights of a row, or in rho, can become in its output:
  /// values are at most `largest`, and what is divided by delta is at most 1 + |rho| |k_j - q|.
  std::vector<double> gain;
  /// [B, H, N]: by how much o of a row moved when every product with Sigma was off as sums of f32 are, `unit`
  /// times the root of their terms. Conjugate gradients that are stopped on the way are not a stable function
  /// of their input: where the residual is about to drop, roundings of 2^-24 delay the drop and move the
  /// iterate by 2^-10 and more, whichever arithmetic has them. Converged iterates do not move.
  std::vector<double> unrest;
};

inline LocalLinearExpected local_linear_expected(const LocalLinearArgs& a, double unit = 0x1p-24) {
  using Vector = std::vector<double>;
  const int64_t n = a.q.dim(2), d = a.q.dim(3), m = a.k.dim(2), e = a.v.dim(3);
  LocalLinearExpected out;
  const auto at = [](const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t c) {
    return get(t, b * t.stride(0) + h * t.stride(1) + i * t.stride(2) + c * t.stride(3));
  };
  const auto dot = [](const Vector& x, const Vector& y) {
    double s = 0;
    for (size_t i = 0; i < x.size(); ++i) s += x[i] * y[i];
    return s;
  };
  for (int64_t b = 0; b < a.q.dim(0); ++b)
    for (int64_t h = 0; h < a.q.dim(1); ++h)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t seen = a.causal ? i + 1 + m - n : m;
        const auto size = static_cast<size_t>(d);
        Vector w(static_cast<size_t>(seen)), mu(size), q(size);
        for (int64_t c = 0; c < d; ++c) q[static_cast<size_t>(c)] = at(a.q, b, h, i, c);
        double most = -INFINITY, omega = 0;
        std::vector<Vector> z;
        for (int64_t j = 0; j < seen; ++j) {
          Vector k(size);
          for (int64_t c = 0; c < d; ++c) k[static_cast<size_t>(c)] = at(a.k, b, h, j, c);
          w[static_cast<size_t>(j)] = static_cast<double>(a.scale) * dot(q, k);
          most = std::max(most, w[static_cast<size_t>(j)]);
          for (size_t c = 0; c < size; ++c) k[c] -= q[c];
          z.push_back(std::move(k));
        }
        double reach = 0;
        for (size_t j = 0; j < z.size(); ++j) {
          w[j] = std::exp(w[j] - most);
          omega += w[j];
          for (size_t c = 0; c < size; ++c) mu[c] += w[j] * z[j][c];
          reach = std::max(reach, dot(z[j], z[j]));
        }
        const double ridge = static_cast<double>(a.lambda) * (a.absolute ? std::exp(-most) : omega);
        std::vector<Vector> sigma(size, Vector(size, 0.0));
        for (size_t x = 0; x < size; ++x) {
          for (size_t y = 0; y < size; ++y)
            if (x / static_cast<size_t>(a.block) == y / static_cast<size_t>(a.block))
              for (size_t j = 0; j < z.size(); ++j) sigma[x][y] += w[j] * z[j][x] * z[j][y];
          sigma[x][x] += ridge;
        }
        // The paper's iteration; `noise` beside every product, relative to its norm.
        const auto scaled = [&](Vector r) {
          for (size_t c = 0; c < size && a.jacobi; ++c) r[c] /= sigma[c][c];
          return r;
        };
        const auto iterate = [&](double noise, Random& random) {
          Vector x(size), r = mu, p = scaled(r);
          const double limit =
              static_cast<double>(a.rtol) * std::max(static_cast<double>(a.atol), dot(mu, mu));
          double rz = dot(r, p);
          for (int64_t t = 0; t < a.iterations; ++t) {
            if (const double rr = dot(r, r); !(rr > limit) || std::isinf(rr)) break;
            Vector y(size);
            for (size_t c = 0; c < size; ++c) y[c] = dot(sigma[c], p);
            const double step = noise * std::sqrt(dot(y, y));
            for (double& v : y) v += step * random.uniform();
            const double alpha = rz / (dot(p, y) + 1e-10);
            for (size_t c = 0; c < size; ++c) x[c] += alpha * p[c], r[c] -= alpha * y[c];
            const Vector zr = scaled(r);
            const double next = dot(r, zr), beta = next / rz;
            for (size_t c = 0; c < size; ++c) p[c] = zr[c] + beta * p[c];
            rz = next;
          }
          return x;
        };
        const auto output = [&](const Vector& rho, double delta) {
          Vector o(static_cast<size_t>(e));
          for (size_t j = 0; j < z.size(); ++j)
            for (int64_t c = 0; c < e; ++c)
              o[static_cast<size_t>(c)] +=
                  w[j] * (1 - dot(rho, z[j])) / delta * at(a.v, b, h, static_cast<int64_t>(j), c);
          return o;
        };
        const auto delta_of = [&](const Vector& rho) {
          const double bare = omega - dot(mu, rho);
          return bare + (bare < 0 ? -1 : 1) * static_cast<double>(a.delta_eps);
        };
        Random random(static_cast<uint64_t>(i) + 1);
        const Vector rho = iterate(0.0, random);
        const double delta = delta_of(rho);
        const Vector o = output(rho, delta);
        const double noise = unit * std::sqrt(static_cast<double>(seen + d));
        double unrest = 0, largest = 0;
        for (int sample = 0; sample < 4; ++sample) {
          const Vector other = iterate(noise, random), moved = output(other, delta_of(other));
          for (size_t c = 0; c < o.size(); ++c) unrest = std::max(unrest, std::fabs(moved[c] - o[c]));
        }
        for (int64_t j = 0; j < seen; ++j)
          for (int64_t c = 0; c < e; ++c) largest = std::max(largest, std::fabs(at(a.v, b, h, j, c)));
        out.o.insert(out.o.end(), o.begin(), o.end());
        out.omega.push_back(omega);
        for (double x : rho) out.rho.push_back(x * omega / delta);
        out.coefficient.push_back((1 + dot(rho, q)) * omega / delta);
        out.delta.push_back(delta / omega);
        out.gain.push_back(largest * (1 + std::sqrt(dot(rho, rho) * reach)) /
                           std::min(1.0, std::fabs(delta / omega)));
        out.unrest.push_back(unrest);
      }
  return out;
}

/// Every element of o within `units` times `unit` times its row's gain and 16 times what four samples of
/// noise moved it by, beside its own rounding.
inline void check_rows(const Tensor& o, const LocalLinearExpected& want, double units,
                       double unit = 0x1p-24) {
  std::vector<double> bound;
  for (size_t row = 0; row < want.gain.size(); ++row)
    for (int64_t c = 0; c < o.dim(-1); ++c)
      bound.push_back(units * unit * want.gain[row] + 16 * want.unrest[row]);
  check_close(o, want.o, bound);
}

}  // namespace attnbench::testing
