#include "history/change_points.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace attnbench {

namespace {

/// a m^2 + b m + c for a level m in [low, high]; the last change of the split behind it was at `change`.
struct Piece {
  double low, high, a, b, c;
  size_t change;
  double at(double m) const { return (a * m + b) * m + c; }
};

void append(std::vector<Piece>& pieces, const Piece& p) {
  if (!(p.low < p.high)) return;
  if (!pieces.empty()) {
    Piece& last = pieces.back();
    if (last.change == p.change && last.a == p.a && last.b == p.b && last.c == p.c) {
      last.high = p.high;
      return;
    }
  }
  pieces.push_back(p);
}

/// The smaller of a piece and a constant, whose last change is at `change`.
void append_minimum(std::vector<Piece>& out, const Piece& p, double constant, size_t change) {
  const Piece flat{p.low, p.high, 0, 0, constant, change};
  const auto part = [](Piece q, double low, double high) {
    q.low = std::max(q.low, low), q.high = std::min(q.high, high);
    return q;
  };
  if (p.a == 0) {  // pieces without curvature are constants: the loss has no linear part alone
    append(out, p.c <= constant ? p : flat);
    return;
  }
  const double root = p.b * p.b - 4 * p.a * (p.c - constant);
  if (root <= 0) {  // the parabola opens upwards and stays above
    append(out, flat);
    return;
  }
  const double s = std::sqrt(root), r0 = (-p.b - s) / (2 * p.a), r1 = (-p.b + s) / (2 * p.a);
  append(out, part(flat, p.low, r0));
  append(out, part(p, r0, r1));
  append(out, part(flat, r1, p.high));
}

/// Adds the loss of one value.
void append_loss(std::vector<Piece>& out, const Piece& p, double y, double k) {
  const auto outside = [&](double low, double high) {
    Piece q = p;
    q.low = std::max(p.low, low), q.high = std::min(p.high, high), q.c += k * k;
    append(out, q);
  };
  outside(-std::numeric_limits<double>::infinity(), y - k);
  Piece q = p;
  q.low = std::max(p.low, y - k), q.high = std::min(p.high, y + k);
  q.a += 1, q.b -= 2 * y, q.c += y * y;
  append(out, q);
  outside(y + k, std::numeric_limits<double>::infinity());
}

double median_of(std::vector<double> v) {
  if (v.empty()) return 0;
  const auto middle = v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  if (v.size() % 2) return *middle;
  return (*middle + *std::max_element(v.begin(), middle)) / 2;
}

}  // namespace

std::vector<size_t> robust_fpop(const std::vector<double>& values, double penalty, double k) {
  const size_t n = values.size();
  if (n == 0) return {};
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  // Around zero, so that squares keep their digits; a little wider than the values, so that there is a
  // domain.
  const double shift = (*least + *most) / 2, half = (*most - *least) / 2 + std::max(k, 1e-9) * 1e-3;
  std::vector<Piece> now{{-half, half, 0, 0, 0, 0}}, next;
  std::vector<size_t> change(n + 1, 0);
  double best = 0;
  for (size_t t = 0; t < n; ++t) {
    if (t > 0) {
      next.clear();
      for (const Piece& p : now) append_minimum(next, p, best + penalty, t);
      now.swap(next);
    }
    next.clear();
    for (const Piece& p : now) append_loss(next, p, values[t] - shift, k);
    now.swap(next);
    best = std::numeric_limits<double>::infinity();
    for (const Piece& p : now) {
      const double m = p.a > 0 ? std::clamp(-p.b / (2 * p.a), p.low, p.high) : p.low;
      if (const double v = p.at(m); v < best) best = v, change[t + 1] = p.change;
    }
  }
  std::vector<size_t> begins;
  for (size_t end = n; end > 0; end = begins.back()) begins.push_back(change[end]);
  std::reverse(begins.begin(), begins.end());
  return begins;
}

double noise_of(const std::vector<double>& values) {
  double most = 0;
  for (size_t distance : {1, 2, 3, 5, 8}) {
    if (values.size() < distance + 8) break;
    std::vector<double> d;
    for (size_t i = distance; i < values.size(); ++i)
      d.push_back(std::fabs(values[i] - values[i - distance]));
    // The median of |N(0, 2 sigma^2)| is 0.6745 sqrt(2) sigma.
    most = std::max(most, median_of(std::move(d)) / (0.674489750196082 * std::sqrt(2.0)));
  }
  return most;
}

std::vector<SeriesLevel> find_levels(const std::vector<double>& values, const ChangePointRules& rules) {
  std::vector<double> logs;
  std::vector<size_t> at;  // of each log in `values`
  for (size_t i = 0; i < values.size(); ++i)
    if (std::isfinite(values[i]) && values[i] > 0) logs.push_back(std::log(values[i])), at.push_back(i);
  if (logs.empty())
    return values.empty() ? std::vector<SeriesLevel>{} : std::vector<SeriesLevel>{{0, values.size(), NAN}};

  // No noise at all (a series of exact counts) would make the last digit a change.
  const double least = std::log1p(rules.least_change);
  const double sigma = std::max(noise_of(logs), least / 10);
  const double n = static_cast<double>(logs.size());
  std::vector<size_t> begins =
      robust_fpop(logs, rules.penalty * sigma * sigma * std::log(std::max(n, 3.0)), 3 * sigma);

  struct Part {
    size_t begin, end;
    double level;
  };
  std::vector<Part> parts;
  const auto level = [&logs](size_t begin, size_t end) {
    return median_of(
        {logs.begin() + static_cast<std::ptrdiff_t>(begin), logs.begin() + static_cast<std::ptrdiff_t>(end)});
  };
  for (size_t i = 0; i < begins.size(); ++i) {
    const size_t end = i + 1 < begins.size() ? begins[i + 1] : logs.size();
    parts.push_back({begins[i], end, level(begins[i], end)});
  }
  const auto join = [&](size_t i) {  // with the next
    parts[i].end = parts[i + 1].end;
    parts[i].level = level(parts[i].begin, parts[i].end);
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  };
  // What is too short goes to the neighbour that it resembles more, the shortest first; then steps too small
  // to matter are taken out, the smallest first.
  while (parts.size() > 1) {
    size_t shortest = 0;
    for (size_t i = 1; i < parts.size(); ++i)
      if (parts[i].end - parts[i].begin < parts[shortest].end - parts[shortest].begin) shortest = i;
    if (parts[shortest].end - parts[shortest].begin >= rules.least_length) break;
    const bool left = shortest > 0 && (shortest + 1 == parts.size() ||
                                       std::fabs(parts[shortest].level - parts[shortest - 1].level) <=
                                           std::fabs(parts[shortest].level - parts[shortest + 1].level));
    join(left ? shortest - 1 : shortest);
  }
  while (parts.size() > 1) {
    size_t smallest = 0;
    const auto step = [&parts](size_t i) { return std::fabs(parts[i + 1].level - parts[i].level); };
    for (size_t i = 1; i + 1 < parts.size(); ++i)
      if (step(i) < step(smallest)) smallest = i;
    if (step(smallest) >= least) break;
    join(smallest);
  }
  std::vector<SeriesLevel> levels;
  for (const Part& p : parts) levels.push_back({at[p.begin], 0, std::exp(p.level)});
  levels.front().begin = 0;
  for (size_t i = 0; i < levels.size(); ++i)
    levels[i].end = i + 1 < levels.size() ? levels[i + 1].begin : values.size();
  return levels;
}

}  // namespace attnbench
