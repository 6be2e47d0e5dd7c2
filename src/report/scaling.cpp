#include "report/scaling.hpp"

#include <algorithm>
#include <cmath>
#include <set>

namespace attnbench {

namespace {

/// Two-sided 95% quantile of Student's t with `dof` degrees of freedom, by bisection on the distribution
/// function, integrated by Simpson's rule: no table to mistype.
double student_95(int dof) {
  const double v = dof;
  const double scale = std::exp(std::lgamma((v + 1) / 2) - std::lgamma(v / 2)) / std::sqrt(v * M_PI);
  const auto mass = [&](double t) {  // of [0, t]
    constexpr int kSteps = 2000;
    const double h = t / kSteps;
    double sum = 0;
    for (int i = 0; i <= kSteps; ++i) {
      const double x = i * h;
      const double weight = i == 0 || i == kSteps ? 1 : i % 2 ? 4 : 2;
      sum += weight * std::pow(1 + x * x / v, -(v + 1) / 2);
    }
    return scale * sum * h / 3;
  };
  double low = 1, high = 13;  // 12.7 at one degree
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (mass(middle) < 0.475 ? low : high) = middle;
  }
  return (low + high) / 2;
}

bool is_size_axis(const std::string& key) {
  static const std::set<std::string> sizes{"length", "kv_length", "grid", "size", "samples"};
  return sizes.contains(key.substr(key.rfind('.') + 1));
}

}  // namespace

double PowerFit::at(double n) const { return factor * std::pow(n, exponent); }

std::optional<PowerFit> fit_power(const std::vector<double>& n, const std::vector<double>& time) {
  std::vector<double> x, y;
  for (size_t i = 0; i < n.size() && i < time.size(); ++i) {
    if (!(n[i] > 0) || !(time[i] > 0) || !std::isfinite(n[i]) || !std::isfinite(time[i])) continue;
    x.push_back(std::log(n[i]));
    y.push_back(std::log(time[i]));
  }
  if (std::set<double>(x.begin(), x.end()).size() < 3) return std::nullopt;
  const double count = static_cast<double>(x.size());
  double mx = 0, my = 0;
  for (size_t i = 0; i < x.size(); ++i) mx += x[i] / count, my += y[i] / count;
  double sxx = 0, sxy = 0;
  for (size_t i = 0; i < x.size(); ++i) sxx += (x[i] - mx) * (x[i] - mx), sxy += (x[i] - mx) * (y[i] - my);
  PowerFit fit;
  fit.exponent = sxy / sxx;
  fit.factor = std::exp(my - fit.exponent * mx);
  double rest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = y[i] - my - fit.exponent * (x[i] - mx);
    rest += e * e;
  }
  const int dof = static_cast<int>(x.size()) - 2;
  const double half = student_95(dof) * std::sqrt(rest / dof / sxx);
  fit.low = fit.exponent - half, fit.high = fit.exponent + half;
  return fit;
}

int64_t size_of(const Problem& p) {
  if (!p.size.empty()) {
    int64_t pixels = 1;
    for (int64_t s : p.size) pixels *= s;
    return pixels;
  }
  if (p.samples) return p.samples;
  const int64_t n = p.tokens();
  return n <= 1 && p.kv_length ? p.kv_length : n;
}

std::string axes_text(const std::map<std::string, Value>& axes, bool with_size) {
  std::string out;
  for (const auto& [key, value] : axes)
    if (with_size || !is_size_axis(key))
      out += (out.empty() ? "" : " ") + key.substr(key.rfind('.') + 1) + "=" + value.str();
  return out;
}

std::vector<ScalingSeries> scaling_series(const RunResult& run) {
  std::vector<ScalingSeries> all;
  bool devices_differ = false;
  for (const CaseResult& c : run.cases) devices_differ |= c.spec.device != run.cases.front().spec.device;
  for (const CaseResult& c : run.cases) {
    if (!c.time || c.status != CaseStatus::ok || !(c.time->median_s > 0) || size_of(c.spec.problem) <= 0)
      continue;
    const std::string axes = axes_text(c.spec.axes, false);
    const std::string base = c.spec.base_name.empty() ? c.spec.name : c.spec.base_name;
    const std::string name =
        base + (axes.empty() ? "" : " " + axes) + (devices_differ ? " on " + c.spec.device : "");
    auto it = std::find_if(all.begin(), all.end(), [&](const ScalingSeries& s) { return s.name == name; });
    if (it == all.end()) it = all.insert(all.end(), {name, base, {}, {}});
    it->cases.push_back(&c);
  }
  std::erase_if(all, [](const ScalingSeries& s) {
    return std::all_of(s.cases.begin(), s.cases.end(), [&](const CaseResult* c) {
      return size_of(c->spec.problem) == size_of(s.cases.front()->spec.problem);
    });
  });
  for (ScalingSeries& s : all) {
    std::stable_sort(s.cases.begin(), s.cases.end(), [](const CaseResult* a, const CaseResult* b) {
      return size_of(a->spec.problem) < size_of(b->spec.problem);
    });
    std::vector<double> n, time;
    for (const CaseResult* c : s.cases) {
      n.push_back(static_cast<double>(size_of(c->spec.problem)));
      time.push_back(c->time->median_s);
    }
    s.fit = fit_power(n, time);
  }
  return all;
}

}  // namespace attnbench
