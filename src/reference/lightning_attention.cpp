// Reference of `lightning_attention`: the recurrence token by token in double precision, and the modules
// around it.
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// The authors' recursive rule for ALiBi rates.
std::vector<double> rates_of(int64_t heads) {
  if ((heads & (heads - 1)) == 0) {
    const double start = std::pow(2.0, -8.0 / static_cast<double>(heads));
    std::vector<double> rates;
    for (int64_t h = 0; h < heads; ++h) rates.push_back(start * std::pow(start, static_cast<double>(h)));
    return rates;
  }
  int64_t below = 1;
  while (below * 2 < heads) below *= 2;
  std::vector<double> rates = rates_of(below);
  const std::vector<double> finer = rates_of(2 * below);
  for (size_t i = 0; rates.size() < static_cast<size_t>(heads); i += 2) rates.push_back(finer[i]);
  return rates;
}

std::vector<double> lambdas(const Params& params, int64_t heads) {
  const std::string decay = params.choice("decay");
  const auto l = static_cast<double>(params.integer("layer_idx")),
             layers = static_cast<double>(params.integer("num_layers"));
  std::vector<double> lambda;
  for (int64_t h = 0; h < heads; ++h) {
    const auto at = static_cast<size_t>(h);
    if (decay == "none") lambda.push_back(1.0);
    if (decay == "list") lambda.push_back(params.value("decay_values").as_list()[at].as_double());
    if (decay == "alibi") lambda.push_back(std::exp(-rates_of(heads)[at]));
    if (decay == "alibi_layer")
      lambda.push_back(std::exp(-rates_of(heads)[at] * (1.0 - l / (layers - 1.0) + 1e-5)));
    if (decay == "tnl_paper")
      lambda.push_back(
          std::exp(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads) * (1.0 - l / layers)));
  }
  return lambda;
}

/// [B, H, N, D] -> [B, H, N, 2 D] by theta [H, 1, D].
RefTensor rotate(const RefTensor& x, const RefTensor& theta) {
  const int64_t d = x.dim(3), n = x.dim(2), heads = x.dim(1);
  RefTensor y({x.dim(0), heads, n, 2 * d});
  for (int64_t r = 0; r < x.dim(0) * heads * n; ++r) {
    const int64_t h = r / n % heads, t = r % n;
    for (int64_t c = 0; c < d; ++c) {
      const double angle = theta[h * d + c] * static_cast<double>(t);
      y[r * 2 * d + c] = x[r * d + c] * std::cos(angle);
      y[r * 2 * d + d + c] = x[r * d + c] * std::sin(angle);
    }
  }
  return y;
}

RefTensor kernel(const RefTensor& q, const RefTensor& k, const RefTensor& v,
                 const std::vector<double>& lambda, bool causal, RefTensor* state = nullptr) {
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), e = v.dim(3);
  RefTensor o({batch, heads, n, e});
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      RefTensor kv({d, e});
      const int64_t row = (b * heads + h) * n, head = (b * heads + h) * d * e;
      for (int64_t i = 0; state && i < d * e; ++i) kv[i] = (*state)[head + i];
      const auto absorb = [&](int64_t t) {
        for (int64_t i = 0; i < d; ++i)
          for (int64_t j = 0; j < e; ++j)
            kv[i * e + j] =
                lambda[static_cast<size_t>(h)] * kv[i * e + j] + k[(row + t) * d + i] * v[(row + t) * e + j];
      };
      if (!causal)
        for (int64_t t = 0; t < n; ++t) absorb(t);
      for (int64_t t = 0; t < n; ++t) {
        if (causal) absorb(t);
        for (int64_t i = 0; i < d; ++i)
          for (int64_t j = 0; j < e; ++j) o[(row + t) * e + j] += q[(row + t) * d + i] * kv[i * e + j];
      }
      for (int64_t i = 0; state && i < d * e; ++i) (*state)[head + i] = kv[i];
    }
  return o;
}

/// y = x w with w stored [in, out].
RefTensor times(const RefTensor& x, const RefTensor& w) {
  const int64_t in = w.dim(0), out = w.dim(1), rows = x.numel() / in;
  std::vector<int64_t> shape = x.shape;
  shape.back() = out;
  RefTensor y(shape);
#pragma omp parallel for
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < in; ++i)
      for (int64_t o = 0; o < out; ++o) y[r * out + o] += x[r * in + i] * w[i * out + o];
  return y;
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

RefTensor silu(RefTensor x) {
  for (double& v : x.data) v *= sigmoid(v);
  return x;
}

/// [B, N, C] <-> [B, H, N, D].
RefTensor split(const RefTensor& x, int64_t heads) {
  const int64_t batch = x.dim(0), n = x.dim(1), c = x.dim(2), d = c / heads;
  RefTensor y({batch, heads, n, d});
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int64_t channel = i % c, t = i / c % n, b = i / c / n;
    y[((b * heads + channel / d) * n + t) * d + channel % d] = x[i];
  }
  return y;
}

RefTensor merge(const RefTensor& y) {
  const int64_t batch = y.dim(0), heads = y.dim(1), n = y.dim(2), d = y.dim(3);
  RefTensor x({batch, n, heads * d});
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int64_t channel = i % (heads * d), t = i / (heads * d) % n, b = i / (heads * d) / n;
    x[i] = y[((b * heads + channel / d) * n + t) * d + channel % d];
  }
  return x;
}

/// Root-mean-square norm over the last axis, or layer norm where `centred`.
RefTensor normed(const RefTensor& x, bool centred, double eps, const RefTensor* gain,
                 const RefTensor* offset) {
  const int64_t c = x.shape.back();
  RefTensor y(x.shape);
  for (int64_t r = 0; r < x.numel() / c; ++r) {
    double mean = 0, square = 0;
    if (centred)
      for (int64_t i = 0; i < c; ++i) mean += x[r * c + i] / static_cast<double>(c);
    for (int64_t i = 0; i < c; ++i)
      square += (x[r * c + i] - mean) * (x[r * c + i] - mean) / static_cast<double>(c);
    for (int64_t i = 0; i < c; ++i)
      y[r * c + i] = (x[r * c + i] - mean) / std::sqrt(square + eps) * (gain ? (*gain)[i] : 1.0) +
                     (offset ? (*offset)[i] : 0.0);
  }
  return y;
}

RefTensor mixer(const Params& params, const RefTensor& x, const RefMap& w,
                const std::vector<double>& lambda) {
  const std::string norm = params.choice("norm"), gate = params.choice("gate");
  const auto heads = static_cast<int64_t>(lambda.size());
  RefTensor q = split(silu(times(x, w.at("W_q"))), heads), k = split(silu(times(x, w.at("W_k"))), heads);
  RefTensor v = times(x, w.at("W_v"));
  if (gate == "lowrank_sigmoid") v = silu(v);
  if (params.boolean("lrpe")) {
    q = rotate(q, w.at("theta"));
    k = rotate(k, w.at("theta"));
  }
  RefTensor a = merge(kernel(q, k, split(v, heads), lambda, params.boolean("causal")));
  if (norm == "srmsnorm") a = normed(a, false, 1e-6, nullptr, nullptr);
  if (norm == "rmsnorm") a = normed(a, false, 1e-6, &w.at("norm_weight"), nullptr);
  if (norm == "layernorm") a = normed(a, true, 1e-5, &w.at("norm_weight"), &w.at("norm_bias"));
  if (gate == "linear") {
    const RefTensor u = times(x, w.at("W_u"));
    for (int64_t i = 0; i < a.numel(); ++i) a[i] *= u[i];
  } else if (gate == "lowrank_sigmoid") {
    const RefTensor u = times(times(x, w.at("W_g1")), w.at("W_g2"));
    for (int64_t i = 0; i < a.numel(); ++i) a[i] *= sigmoid(u[i]);
  }
  return times(a, w.at("W_o"));
}

RefMap lightning_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                           const RefMap& w) {
  const std::string module = params.choice("module");
  const std::vector<double> lambda = lambdas(params, problem.heads);
  if (module == "kernel") {
    RefTensor q = inputs.at("q"), k = inputs.at("k");
    if (params.boolean("lrpe")) {
      q = rotate(q, w.at("theta"));
      k = rotate(k, w.at("theta"));
    }
    if (params.boolean("state")) {
      RefTensor kv = inputs.at("kv_in");
      const RefTensor o = kernel(q, k, inputs.at("v"), lambda, true, &kv);
      return {{"o", o}, {"kv_out", kv}};
    }
    return {{"o", kernel(q, k, inputs.at("v"), lambda, params.boolean("causal"))}};
  }
  const RefTensor& x = inputs.at("X");
  if (module == "gla") return {{"Y", mixer(params, x, w, lambda)}};
  RefTensor y = mixer(params, normed(x, false, 1e-6, nullptr, nullptr), w, lambda);
  for (int64_t i = 0; i < y.numel(); ++i) y[i] += x[i];
  const RefTensor s = normed(y, false, 1e-6, nullptr, nullptr);
  RefTensor wide = times(s, w.at("W_1"));
  const RefTensor other = times(s, w.at("W_2"));
  for (int64_t i = 0; i < wide.numel(); ++i) wide[i] *= other[i];
  const RefTensor ffn = times(wide, w.at("W_3"));
  for (int64_t i = 0; i < y.numel(); ++i) y[i] += ffn[i];
  return {{"Y", y}};
}
ATTNBENCH_REFERENCE(lightning_attention, lightning_reference);

}  // namespace
}  // namespace attnbench
