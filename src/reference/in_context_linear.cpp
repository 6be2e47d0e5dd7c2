// Reference of `in_context_linear`: the layer, its maps, the estimators, the scale rules and the pattern
// metrics, each formula written out in double.
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

std::vector<double> numbers(const Params& params, const char* name, int64_t heads, double x, bool shared) {
  std::vector<double> v;
  if (params.is_null(name)) {
    const int64_t pairs = heads / 2;
    for (int64_t h = 0; h < heads; ++h) {
      double size = h < 2 * pairs ? x : 0;
      if (shared && pairs > 0) size /= static_cast<double>(pairs);
      v.push_back(h % 2 ? -size : size);
    }
  } else {
    for (const Value& e : params.value(name).as_list()) v.push_back(e.as_double());
  }
  return v;
}

std::vector<double> softmax(std::vector<double> s) {
  ref::softmax_row(s, std::vector<char>(s.size(), 1));
  return s;
}

/// x with a x = b by elimination with row exchanges.
std::vector<double> solve(std::vector<std::vector<double>> a, std::vector<double> b) {
  const size_t n = b.size();
  for (size_t c = 0; c < n; ++c) {
    size_t best = c;
    for (size_t r = c + 1; r < n; ++r)
      if (std::fabs(a[r][c]) > std::fabs(a[best][c])) best = r;
    std::swap(a[c], a[best]), std::swap(b[c], b[best]);
    for (size_t r = c + 1; r < n; ++r) {
      const double f = a[r][c] / a[c][c];
      for (size_t k = c; k < n; ++k) a[r][k] -= f * a[c][k];
      b[r] -= f * b[c];
    }
  }
  for (size_t r = n; r-- > 0;) {
    for (size_t k = r + 1; k < n; ++k) b[r] -= a[r][k] * b[k];
    b[r] /= a[r][r];
  }
  return b;
}

/// mu* with heads of equal omega sharing what one head of theirs would take: the least-norm solution.
std::vector<double> best_mu(const std::vector<double>& omega, double c, double d) {
  std::vector<double> distinct, share(omega.size());
  std::vector<size_t> group(omega.size());
  std::vector<double> members;
  for (size_t h = 0; h < omega.size(); ++h) {
    size_t g = 0;
    while (g < distinct.size() && distinct[g] != omega[h]) ++g;
    if (g == distinct.size()) distinct.push_back(omega[h]), members.push_back(0);
    group[h] = g, members[g] += 1;
  }
  std::vector<std::vector<double>> a(distinct.size(), std::vector<double>(distinct.size()));
  for (size_t i = 0; i < distinct.size(); ++i)
    for (size_t j = 0; j < distinct.size(); ++j) {
      const double w = distinct[i] * distinct[j];
      a[i][j] = w + c * std::exp(d * w);
    }
  const std::vector<double> mu = solve(a, distinct);
  for (size_t h = 0; h < omega.size(); ++h) share[h] = mu[group[h]] / members[group[h]];
  return share;
}

RefTensor vector(const std::vector<double>& v) {
  RefTensor t({static_cast<int64_t>(v.size())});
  t.data = v;
  return t;
}

RefMap in_context_reference(const Problem&, const Params& params, const RefMap& inputs,
                            const RefMap& weights) {
  const RefTensor &z = inputs.at("Z"), &z_q = inputs.at("z_q");
  const RefTensor &wq = weights.at("q_proj"), &wk = weights.at("k_proj"), &wv = weights.at("v_proj"),
                  &wo = weights.at("o_proj");
  const int64_t batch = z.dim(0), length = z.dim(1), e = z.dim(2), wide = wq.dim(0), heads = wide / e,
                ny = wo.dim(0);
  const int64_t d = params.integer("dim_x");
  RefTensor y_hat({batch, 1, ny}), attn({batch, heads, length}), kq({heads, e, e}), ov({heads, e, ny});
  const auto project = [e](const RefTensor& w, int64_t row, const double* x) {
    double s = 0;
    for (int64_t c = 0; c < e; ++c) s += w[row * e + c] * x[c];
    return s;
  };
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> s(static_cast<size_t>(length));
      for (int64_t l = 0; l < length; ++l) {
        for (int64_t r = h * e; r < (h + 1) * e; ++r)
          s[static_cast<size_t>(l)] += project(wq, r, &z_q.data[static_cast<size_t>(b * e)]) *
                                       project(wk, r, &z.data[static_cast<size_t>((b * length + l) * e)]);
        s[static_cast<size_t>(l)] /= std::sqrt(static_cast<double>(e));
      }
      s = softmax(s);
      for (int64_t l = 0; l < length; ++l) attn[(b * heads + h) * length + l] = s[static_cast<size_t>(l)];
      for (int64_t r = h * e; r < (h + 1) * e; ++r) {
        double o = 0;
        for (int64_t l = 0; l < length; ++l)
          o += s[static_cast<size_t>(l)] * project(wv, r, &z.data[static_cast<size_t>((b * length + l) * e)]);
        for (int64_t k = 0; k < ny; ++k) y_hat[b * ny + k] += wo[k * wide + r] * o;
      }
    }
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < e; ++i) {
      for (int64_t j = 0; j < e; ++j)
        for (int64_t r = h * e; r < (h + 1) * e; ++r)
          kq[(h * e + i) * e + j] += wk[r * e + i] * wq[r * e + j] / std::sqrt(static_cast<double>(e));
      for (int64_t k = 0; k < ny; ++k)
        for (int64_t r = h * e; r < (h + 1) * e; ++r)
          ov[(h * e + i) * ny + k] += wv[r * e + i] * wo[k * wide + r];
    }
  RefMap out{{"y_hat", y_hat}, {"attn", attn}, {"KQ", kq}, {"OV", ov}};

  if (params.choice("weights") != "pattern") {
    std::vector<double> ratio, omega, chosen, averages(3, 0.0);
    for (int64_t h = 0; h < heads; ++h) {
      double diagonal = 0, all = 0, sum = 0, squares = 0, last = 0, norm = 0;
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < d; ++j) {
          const double x = kq[(h * e + i) * e + j];
          all += x * x;
          if (i == j) diagonal += x * x, sum += x;
        }
      const double mean = sum / static_cast<double>(d);
      for (int64_t i = 0; i < d; ++i) squares += std::pow(kq[(h * e + i) * e + i] - mean, 2);
      for (int64_t i = 0; i < e * ny; ++i) {
        norm += std::pow(ov[h * e * ny + i], 2);
        if (i / ny >= d) last += std::pow(ov[h * e * ny + i], 2);
      }
      ratio.push_back(all > 0 ? std::sqrt(diagonal) / std::sqrt(all) : 0);
      omega.push_back(mean);
      if (!(ratio.back() > 0.7)) continue;
      chosen.push_back(static_cast<double>(h));
      averages[0] += ratio.back();
      averages[1] += mean != 0 ? squares / static_cast<double>(d) / (mean * mean) : 0;
      averages[2] += norm > 0 ? std::sqrt(last) / std::sqrt(norm) : 0;
    }
    for (double& x : averages) x /= chosen.empty() ? 1.0 : static_cast<double>(chosen.size());
    out["diag_norm_ratio"] = vector(ratio), out["omega_h"] = vector(omega);
    out["selected_heads"] = vector(chosen);
    out["avg_diag_norm_ratio"] = vector({averages[0]}), out["avg_diag_variance"] = vector({averages[1]});
    out["avg_last_entry_square_ratio"] = vector({averages[2]});
    return out;
  }
  if (ny != 1) return out;

  const double s = params.number("noise_var"), dd = static_cast<double>(d), ll = static_cast<double>(length);
  const double c = (1 + s) / ll;
  const std::vector<double> omega = numbers(params, "omega", heads, 0.13, false);
  std::vector<double> mu = numbers(params, "mu", heads, 3.45, true);
  const std::vector<double> star = best_mu(omega, c, dd);
  if (params.boolean("auto_mu")) mu = star;
  const auto covariate = [&](int64_t b, int64_t l, int64_t j) {
    return inputs.contains("X") ? inputs.at("X")[(b * length + l) * d + j] : z[(b * length + l) * e + j];
  };
  const auto label = [&](int64_t b, int64_t l) {
    return inputs.contains("y") ? inputs.at("y")[b * length + l] : z[(b * length + l) * e + d];
  };
  const auto query = [&](int64_t b, int64_t j) {
    return inputs.contains("x_q") ? inputs.at("x_q")[b * d + j] : z_q[b * e + j];
  };
  RefTensor y_softmax({batch}), y_gd({batch}), y_dgd({batch}), y_onehead({batch}), y_ridge({batch});
  const double eta = 2 * omega[0] * mu[0], mu1 = std::sqrt(dd) / (1 + (1 + s) * dd * std::exp(1.0) / ll);
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<double> score(static_cast<size_t>(length));
    for (int64_t l = 0; l < length; ++l)
      for (int64_t j = 0; j < d; ++j) score[static_cast<size_t>(l)] += covariate(b, l, j) * query(b, j);
    const auto smooth = [&](double factor) {
      std::vector<double> t = score;
      for (double& x : t) x *= factor;
      t = softmax(t);
      double y = 0;
      for (int64_t l = 0; l < length; ++l) y += t[static_cast<size_t>(l)] * label(b, l);
      return y;
    };
    for (int64_t h = 0; h < heads; ++h)
      y_softmax[b] += mu[static_cast<size_t>(h)] * smooth(omega[static_cast<size_t>(h)]);
    y_onehead[b] = mu1 * smooth(1 / std::sqrt(dd));
    double mean = 0;
    for (double x : score) mean += x / ll;
    for (int64_t l = 0; l < length; ++l) {
      y_gd[b] += eta / ll * label(b, l) * score[static_cast<size_t>(l)];
      y_dgd[b] += eta / ll * label(b, l) * (score[static_cast<size_t>(l)] - mean);  // (x_l - mean x) . x_q
    }
    std::vector<std::vector<double>> gram(static_cast<size_t>(d),
                                          std::vector<double>(static_cast<size_t>(d)));
    std::vector<double> right(static_cast<size_t>(d));
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j)
        for (int64_t l = 0; l < length; ++l)
          gram[static_cast<size_t>(i)][static_cast<size_t>(j)] += covariate(b, l, i) * covariate(b, l, j);
      gram[static_cast<size_t>(i)][static_cast<size_t>(i)] += s * dd;
      for (int64_t l = 0; l < length; ++l) right[static_cast<size_t>(i)] += covariate(b, l, i) * label(b, l);
    }
    const std::vector<double> beta = solve(gram, right);
    for (int64_t i = 0; i < d; ++i) y_ridge[b] += beta[static_cast<size_t>(i)] * query(b, i);
  }
  double loss = 1 + s, dot = 0;
  std::vector<double> grad_mu, grad_omega;
  for (size_t h = 0; h < omega.size(); ++h) dot += mu[h] * omega[h];
  for (size_t h = 0; h < omega.size(); ++h) {
    double am = 0, smooth = 0;
    for (size_t g = 0; g < omega.size(); ++g) {
      const double w = omega[h] * omega[g];
      am += (w + c * std::exp(dd * w)) * mu[g];
      smooth += std::exp(dd * w) * mu[h] * mu[g] * omega[g];
    }
    loss += mu[h] * am - 2 * mu[h] * omega[h];
    grad_mu.push_back(am - omega[h]);
    grad_omega.push_back(-mu[h] + dot * mu[h] + dd * c * smooth);
  }
  out["y_softmax"] = y_softmax, out["y_gd"] = y_gd, out["y_dgd"] = y_dgd, out["y_onehead"] = y_onehead;
  out["y_ridge"] = y_ridge;
  out["mu_star"] = vector(star), out["approx_loss"] = vector({loss});
  out["grad_mu"] = vector(grad_mu), out["grad_omega"] = vector(grad_omega);
  return out;
}
ATTNBENCH_REFERENCE(in_context_linear, in_context_reference);

}  // namespace
}  // namespace attnbench
