// Reference of `fixing_imbalanced`: selector and modified attention row by row in double precision.
#include <algorithm>
#include <cmath>
#include <set>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

std::set<int64_t> top(const std::vector<double>& x, int64_t k) {
  std::set<int64_t> chosen;
  while (static_cast<int64_t>(chosen.size()) < k) {
    int64_t best = -1;
    for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i)
      if (!chosen.contains(i) && (best < 0 || x[static_cast<size_t>(i)] > x[static_cast<size_t>(best)]))
        best = i;
    chosen.insert(best);
  }
  return chosen;
}

RefTensor list_of(const std::set<int64_t>& s) {
  RefTensor t({static_cast<int64_t>(s.size())});
  int64_t i = 0;
  for (int64_t v : s) t[i++] = static_cast<double>(v);
  return t;
}

RefMap paint_reference(const Problem&, const Params& p, const RefMap& inputs, const RefMap&) {
  const RefTensor &a1 = inputs.at("A1"), &a2 = inputs.at("A2");
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t nv = p.integer("num_vision_tokens"), hv = a1.dim(0), side = a1.dim(1), cls = side - nv;
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), kv = k.dim(1), m = k.dim(2);
  const int64_t v0 = p.integer("image_offset");
  RefMap out;
  const auto received = [&](const RefTensor& a) {
    std::vector<double> r(static_cast<size_t>(nv), 0.0);
    for (int64_t h = 0; h < hv; ++h)
      for (int64_t j = 0; j < nv; ++j) {
        if (cls) {
          r[static_cast<size_t>(j)] += a[h * side * side + cls + j];
        } else {
          for (int64_t i = 0; i < side; ++i)
            r[static_cast<size_t>(j)] += a[(h * side + i) * side + j] / static_cast<double>(side);
        }
      }
    return r;
  };
  const auto vector_output = [&](const char* name, const std::vector<double>& x) {
    RefTensor t({nv});
    t.data = x;
    out[name] = t;
  };
  const std::vector<double> local_score = received(a1), summary_score = received(a2);
  vector_output("a_loc", local_score);
  vector_output("a_sum", summary_score);
  std::vector<double> b(static_cast<size_t>(nv), 0.0);
  const bool spatial = p.number("spatial_ratio") > 0, by_rows = p.choice("spatial_axis") == "key_rows";
  if (spatial) {
    for (int64_t h = 0; h < hv; ++h)
      for (int64_t j = 0; j < nv; ++j)
        for (int64_t i = 0; i < side; ++i) {
          const int64_t at = by_rows ? (h * side + cls + j) * side + i : (h * side + i) * side + cls + j;
          b[static_cast<size_t>(j)] += a1[at] / static_cast<double>(hv);
        }
    vector_output("b", b);
  }
  std::set<int64_t> local, summary;
  int64_t count = 0;
  const std::string& mode = p.choice("mode");
  if (mode == "pai") {
    for (int64_t j = 0; j < nv; ++j) local.insert(j);
  } else {
    std::vector<double> sorted = summary_score;
    std::sort(sorted.begin(), sorted.end());
    const auto quartile = [&](double share) {
      const double at = share * static_cast<double>(nv - 1), low = std::floor(at);
      const auto i = static_cast<size_t>(low);
      const double next = i + 1 < sorted.size() ? sorted[i + 1] : sorted[i];
      return sorted[i] + (at - low) * (next - sorted[i]);
    };
    const double q1 = quartile(0.25), q3 = quartile(0.75);
    for (double x : summary_score) count += x > q3 + p.number("iqr_factor") * (q3 - q1);
    summary = top(summary_score, count);
    local = top(local_score, static_cast<int64_t>(static_cast<double>(nv) * p.number("local_ratio")));
    out["Lc0"] = list_of(local);
    if (spatial) {
      std::vector<double> compared = b;
      if (by_rows)
        for (double& x : compared) x = std::round(x * 1e6);
      const std::set<int64_t> s =
          top(compared, static_cast<int64_t>(static_cast<double>(nv) * p.number("spatial_ratio")));
      out["Sp"] = list_of(s);
      local.insert(s.begin(), s.end());
    }
    for (int64_t j : summary) local.erase(j);
    if (!summary.empty()) out["Sm"] = list_of(summary);
  }
  out["Lc"] = list_of(local);
  RefTensor sums({1});
  sums[0] = static_cast<double>(count);
  out["n_sum"] = sums;

  RefTensor o(q.shape), last({batch, heads, m});
  std::map<std::string, RefTensor> stats;
  for (const char* name : {"visual_mass_before", "visual_mass_after", "mass_local_after",
                           "mass_summary_after", "entropy_before", "entropy_after"})
    stats[name] = RefTensor({batch, heads});
  const std::vector<char> seen(static_cast<size_t>(m), 1);
  const auto logits = [&](int64_t bi, int64_t h, int64_t i) {
    std::vector<double> z(static_cast<size_t>(m), 0.0);
    const int64_t g = h / (heads / kv);
    for (int64_t j = 0; j < m; ++j)
      for (int64_t c = 0; c < d; ++c)
        z[static_cast<size_t>(j)] += q[((bi * heads + h) * n + i) * d + c] *
                                     k[((bi * kv + g) * m + j) * d + c] / std::sqrt(static_cast<double>(d));
    return z;
  };
  const auto write_row = [&](int64_t bi, int64_t h, int64_t i, const std::vector<double>& weights) {
    const int64_t g = h / (heads / kv);
    for (int64_t j = 0; j < m; ++j)
      for (int64_t c = 0; c < d; ++c)
        o[((bi * heads + h) * n + i) * d + c] +=
            weights[static_cast<size_t>(j)] * v[((bi * kv + g) * m + j) * d + c];
  };
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t bi = 0; bi < batch; ++bi)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i + 1 < n; ++i) {
        std::vector<double> z = logits(bi, h, i);
        std::vector<char> visible(static_cast<size_t>(m), 0);
        for (int64_t j = 0; j <= i + m - n; ++j) visible[static_cast<size_t>(j)] = 1;
        ref::softmax_row(z, visible);
        write_row(bi, h, i, z);
      }
  const auto entropy = [](const std::vector<double>& row) {
    double sum = 0;
    for (double x : row) sum -= x > 0 ? x * std::log(x) : 0.0;
    return sum;
  };
  const auto mass = [&](const std::vector<double>& row, const std::set<int64_t>& keys) {
    double sum = 0;
    for (int64_t j : keys) sum += row[static_cast<size_t>(v0 + j)];
    return sum;
  };
  std::set<int64_t> image;
  for (int64_t j = 0; j < nv; ++j) image.insert(j);
  for (int64_t bi = 0; bi < batch; ++bi) {
    std::vector<std::vector<double>> before, row;
    double mean = 0;
    for (int64_t h = 0; h < heads; ++h) {
      row.push_back(logits(bi, h, n - 1));
      before.push_back(row.back());
      ref::softmax_row(before.back(), seen);
      mean += mass(before.back(), image) / static_cast<double>(heads);
    }
    for (int64_t h = 0; h < heads; ++h) {
      const auto at = static_cast<size_t>(h);
      double share = 1;
      if (p.choice("head_mode") == "visual_share")
        share = mean > 0 ? std::clamp(mass(before[at], image) / mean, 0.0, 2.0) : 0.0;
      std::vector<double> z = row[at];
      if (mode != "off") {
        for (int64_t j : local)
          z[static_cast<size_t>(v0 + j)] +=
              share * p.number("alpha") * std::fabs(z[static_cast<size_t>(v0 + j)]);
        for (int64_t j : summary)
          z[static_cast<size_t>(v0 + j)] +=
              share * p.number("beta") * std::fabs(z[static_cast<size_t>(v0 + j)]);
      }
      ref::softmax_row(z, seen);
      write_row(bi, h, n - 1, z);
      for (int64_t j = 0; j < m; ++j) last[(bi * heads + h) * m + j] = z[static_cast<size_t>(j)];
      const int64_t slot = bi * heads + h;
      stats["visual_mass_before"][slot] = mass(before[at], image);
      stats["visual_mass_after"][slot] = mass(z, image);
      stats["mass_local_after"][slot] = mass(z, local);
      stats["mass_summary_after"][slot] = mass(z, summary);
      stats["entropy_before"][slot] = entropy(before[at]);
      stats["entropy_after"][slot] = entropy(z);
    }
  }
  out["output"] = o;
  out["last_row"] = last;
  for (const auto& [name, t] : stats) out[name] = t;
  return out;
}
ATTNBENCH_REFERENCE(fixing_imbalanced, paint_reference);

}  // namespace
}  // namespace attnbench
