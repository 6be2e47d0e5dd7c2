// Reference of `astigmatism`: distances, refinement and alignment loss, position by position in double
// precision.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

double norm_of(const std::vector<double>& x) {
  double s = 0;
  for (double v : x) s += v * v;
  return std::max(std::sqrt(s), 1e-8);
}

double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  double s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s / (norm_of(a) * norm_of(b));
}

void attention_part(const Params& p, const RefMap& inputs, RefMap& out) {
  const RefTensor& a = inputs.at("A");
  const int64_t heads = a.dim(0), side = a.dim(1), gh = p.integer("grid_h"), gw = p.integer("grid_w"),
                n = gh * gw, prefix = side - n;
  const RefTensor* mask = inputs.contains("instance_mask") ? &inputs.at("instance_mask") : nullptr;
  RefTensor d({heads}), layer({1}), groups({heads, 4});
  const std::string& unit = p.choice("distance_unit");
  const double diagonal = std::sqrt(static_cast<double>((gh - 1) * (gh - 1) + (gw - 1) * (gw - 1)));
  for (int64_t h = 0; h < heads; ++h) {
    double foreground = 0;
    for (int64_t i = 0; i < n; ++i) {
      double mass = 0, reach = 0, share[4] = {};
      for (int64_t j = 0; j < n; ++j) {
        const double weight = a[(h * side + prefix + i) * side + prefix + j];
        const auto dy = static_cast<double>(i / gw - j / gw), dx = static_cast<double>(i % gw - j % gw);
        mass += weight;
        reach += weight * std::sqrt(dy * dy + dx * dx);
        if (mask) share[(*mask)[j] == 0 ? 0 : (*mask)[j] != (*mask)[i] ? 3 : i == j ? 2 : 1] += weight;
      }
      const double scale = prefix > 0 ? 1 / mass : 1.0;
      d[h] += reach * scale / static_cast<double>(n);
      if (!mask || (*mask)[i] == 0) continue;
      foreground += 1;
      for (int64_t g = 0; g < 4; ++g) groups[h * 4 + g] += share[g] * scale;
    }
    if (foreground > 0)
      for (int64_t g = 0; g < 4; ++g) groups[h * 4 + g] /= foreground;
    if (unit == "pixels") d[h] *= static_cast<double>(p.integer("patch_stride"));
    if (unit == "diagonal") d[h] = diagonal > 0 ? d[h] / diagonal : 0.0;
    layer[0] += d[h] / static_cast<double>(heads);
  }
  out["d_head"] = d;
  out["d_layer"] = layer;
  if (mask) out["groups"] = groups;
}

void refine_part(const Params& p, const RefMap& inputs, RefMap& out) {
  const int64_t k = p.integer("num_classes"), c = p.integer("channels");
  const Value::List& scales = p.value("scales").as_list();
  const auto s = static_cast<int64_t>(scales.size());
  RefTensor fg({k, s, c}), bg({s, c});
  std::vector<std::vector<char>> present(static_cast<size_t>(s),
                                         std::vector<char>(static_cast<size_t>(k), 0));
  const bool support = inputs.contains("support_0");
  for (int64_t i = 0; i < s; ++i) {
    const int64_t h = scales[static_cast<size_t>(i)].as_list()[0].as_int(),
                  w = scales[static_cast<size_t>(i)].as_list()[1].as_int();
    if (!support) {
      for (int64_t m = 0; m < k; ++m)
        for (int64_t e = 0; e < c; ++e) {
          fg[(m * s + i) * c + e] = inputs.at("P_fg")[(m * s + i) * c + e];
          if (fg[(m * s + i) * c + e] != 0) present[static_cast<size_t>(i)][static_cast<size_t>(m)] = 1;
        }
      for (int64_t e = 0; e < c; ++e) bg[i * c + e] = inputs.at("P_bg")[i * c + e];
      continue;
    }
    const RefTensor &maps = inputs.at("support_" + std::to_string(i)), &boxes = inputs.at("boxes");
    const auto inside = [&](int64_t image, int64_t cls, int64_t y, int64_t x) {
      const double cx = (static_cast<double>(x) + 0.5) / static_cast<double>(w),
                   cy = (static_cast<double>(y) + 0.5) / static_cast<double>(h);
      for (int64_t b = 0; b < boxes.dim(0); ++b) {
        const double* r = boxes.data.data() + 6 * b;
        if (static_cast<int64_t>(r[0]) == image && (cls < 0 || static_cast<int64_t>(r[1]) == cls) &&
            cx > r[2] && cx < r[4] && cy > r[3] && cy < r[5])
          return true;
      }
      return false;
    };
    for (int64_t m = -1; m < k; ++m) {
      double count = 0;
      std::vector<double> sum(static_cast<size_t>(c), 0.0);
      for (int64_t image = 0; image < maps.dim(0); ++image)
        for (int64_t y = 0; y < h; ++y)
          for (int64_t x = 0; x < w; ++x) {
            if (inside(image, m, y, x) != (m >= 0)) continue;  // -1: outside every box
            count += 1;
            for (int64_t e = 0; e < c; ++e)
              sum[static_cast<size_t>(e)] += maps[((image * c + e) * h + y) * w + x];
          }
      for (int64_t e = 0; e < c && count > 0; ++e)
        (m < 0 ? bg[i * c + e] : fg[(m * s + i) * c + e]) = sum[static_cast<size_t>(e)] / count;
      if (m >= 0) present[static_cast<size_t>(i)][static_cast<size_t>(m)] = count > 0;
    }
  }
  if (support) {
    out["P_fg"] = fg;
    out["P_bg"] = bg;
  }
  for (int64_t i = 0; i < s; ++i) {
    const std::string tag = "_" + std::to_string(i);
    const RefTensor& f = inputs.at("F" + tag);
    const int64_t batch = f.dim(0), h = f.dim(2), w = f.dim(3), n = h * w;
    RefTensor enhanced(f.shape), m_fg({batch, h, w}), m_bg({batch, h, w}), sim({batch, h, w, k}),
        mix({batch, h, w, k});
    std::vector<std::vector<double>> classes;
    for (int64_t m = 0; m < k; ++m)
      classes.emplace_back(fg.data.begin() + (m * s + i) * c, fg.data.begin() + (m * s + i + 1) * c);
    const std::vector<double> back(bg.data.begin() + i * c, bg.data.begin() + (i + 1) * c);
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < batch * n; ++at) {
      const int64_t b = at / n, x = at % n;
      std::vector<double> v;
      for (int64_t e = 0; e < c; ++e) v.push_back(f[(b * c + e) * n + x]);
      double best = -INFINITY, total = 0;
      for (int64_t m = 0; m < k; ++m) {
        if (!present[static_cast<size_t>(i)][static_cast<size_t>(m)]) continue;
        sim[at * k + m] = cosine(v, classes[static_cast<size_t>(m)]);
        best = std::max(best, sim[at * k + m]);
      }
      for (int64_t m = 0; m < k; ++m) {
        if (!present[static_cast<size_t>(i)][static_cast<size_t>(m)]) continue;
        mix[at * k + m] = std::exp((sim[at * k + m] - best) / p.number("temperature"));
        total += mix[at * k + m];
      }
      for (int64_t m = 0; m < k && total > 0; ++m) mix[at * k + m] /= total;
      m_fg[at] = best > p.number("tau_fg");
      m_bg[at] = cosine(v, back) > p.number("tau_bg");
      for (int64_t e = 0; e < c; ++e) {
        const double value = v[static_cast<size_t>(e)];
        double prototype = 0;
        for (int64_t m = 0; m < k; ++m)
          prototype += mix[at * k + m] * classes[static_cast<size_t>(m)][static_cast<size_t>(e)];
        double sum = m_fg[at] * (value + p.number("gamma_fg") * prototype) +
                     m_bg[at] * (value + p.number("gamma_bg") * back[static_cast<size_t>(e)]);
        if (p.choice("unmasked") == "pass" && m_fg[at] == 0 && m_bg[at] == 0) sum = value;
        enhanced[(b * c + e) * n + x] = sum;
      }
    }
    out["F_enh" + tag] = enhanced;
    out["M_fg" + tag] = m_fg;
    out["M_bg" + tag] = m_bg;
    out["sim" + tag] = sim;
    out["w" + tag] = mix;
  }
}

void align_part(const Params& p, const RefMap& inputs, const RefMap& weights, RefMap& out) {
  const auto rows = [&](const char* x, const char* w, const char* b) {
    const RefTensor &in = inputs.at(x), &m = weights.at(w), &bias = weights.at(b);
    std::vector<std::vector<double>> all;
    for (int64_t i = 0; i < in.dim(0); ++i) {
      std::vector<double> y(bias.data);
      for (int64_t c = 0; c < in.dim(1); ++c)
        for (int64_t e = 0; e < m.dim(1); ++e)
          y[static_cast<size_t>(e)] += in[i * in.dim(1) + c] * m[c * m.dim(1) + e];
      const double length = norm_of(y);
      for (double& v : y) v /= length;
      all.push_back(y);
    }
    return all;
  };
  const auto v = rows("Vb", "Wv", "bv"), t = rows("Tb", "Wt", "bt");
  const auto n = static_cast<int64_t>(v.size());
  const double tau = p.number("tsa_temperature");
  RefTensor s({n, n}), loss({1});
  double most = -INFINITY;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      for (size_t e = 0; e < v[0].size(); ++e)
        s[i * n + j] += v[static_cast<size_t>(i)][e] * t[static_cast<size_t>(j)][e];
      most = std::max(most, s[i * n + j] / tau);
    }
  double all = 0, diagonal = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const double e = std::exp(s[i * n + j] / tau - most);
      all += e;
      if (i == j) diagonal += e;
    }
  loss[0] = std::log(all) - std::log(diagonal);
  out["tsa_S"] = s;
  out["tsa_loss"] = loss;
}

RefMap astigmatism_reference(const Problem&, const Params& params, const RefMap& inputs,
                             const RefMap& weights) {
  RefMap out;
  if (inputs.contains("A")) attention_part(params, inputs, out);
  if (inputs.contains("F_0")) refine_part(params, inputs, out);
  if (inputs.contains("Vb")) align_part(params, inputs, weights, out);
  return out;
}
ATTNBENCH_REFERENCE(astigmatism, astigmatism_reference);

}  // namespace
}  // namespace attnbench
