// Change points: the exact optimum beside an exhaustive search, known series, and noise that must find none.
#include "history/change_points.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "../catch.hpp"

using namespace attnbench;

namespace {

/// The least biweight loss of values [begin, end) over all levels. Between two of the places where a value
/// enters or leaves the window of k, the loss is a parabola: its minimum is the mean of what is inside.
double least_loss(const std::vector<double>& v, size_t begin, size_t end, double k) {
  std::vector<double> places;
  for (size_t i = begin; i < end; ++i) places.insert(places.end(), {v[i] - k, v[i] + k, v[i]});
  std::sort(places.begin(), places.end());
  const auto loss = [&](double m) {
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += std::min((v[i] - m) * (v[i] - m), k * k);
    return sum;
  };
  double best = std::numeric_limits<double>::infinity();
  for (size_t p = 0; p < places.size(); ++p) {
    best = std::min(best, loss(places[p]));
    if (p + 1 == places.size()) break;
    const double middle = (places[p] + places[p + 1]) / 2;
    double sum = 0, n = 0;
    for (size_t i = begin; i < end; ++i)
      if (std::fabs(v[i] - middle) < k) sum += v[i], ++n;
    if (n > 0) best = std::min(best, loss(sum / n));
  }
  return best;
}

double loss_of(const std::vector<double>& v, const std::vector<size_t>& begins, double penalty, double k) {
  double sum = -penalty;
  for (size_t i = 0; i < begins.size(); ++i)
    sum += penalty + least_loss(v, begins[i], i + 1 < begins.size() ? begins[i + 1] : v.size(), k);
  return sum;
}

/// Optimal partitioning over every split, in quadratic time.
double optimum(const std::vector<double>& v, double penalty, double k) {
  std::vector<double> best(v.size() + 1, std::numeric_limits<double>::infinity());
  best[0] = -penalty;
  for (size_t end = 1; end <= v.size(); ++end)
    for (size_t begin = 0; begin < end; ++begin)
      best[end] = std::min(best[end], best[begin] + penalty + least_loss(v, begin, end, k));
  return best.back();
}

/// Times around levels, with disturbed runs (never faster) now and then.
std::vector<double> times(std::mt19937& random, const std::vector<std::pair<size_t, double>>& levels,
                          double sigma, double disturbed = 0.05) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<double> out;
  for (const auto& [n, level] : levels)
    for (size_t i = 0; i < n; ++i)
      out.push_back(level * std::exp(sigma * normal(random)) *
                    (uniform(random) < disturbed ? 1.2 + uniform(random) : 1.0));
  return out;
}

}  // namespace

TEST_CASE("the split is the optimum of its loss") {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (int round = 0; round < 300; ++round) {
    std::vector<double> v;
    double level = 0;
    for (int i = 0, n = 1 + round % 30; i < n; ++i) {
      if (random() % 6 == 0) level = 4 * normal(random);
      v.push_back(level + normal(random) + (random() % 9 == 0 ? 20.0 : 0.0));
    }
    const double penalty = round % 3 == 0 ? 0.5 : round % 3 == 1 ? 6 : 30;
    const double k = round % 2 ? 3 : 1e6;  // 1e6: the plain squares of PELT
    const auto begins = robust_fpop(v, penalty, k);
    REQUIRE(!begins.empty());
    REQUIRE(begins.front() == 0);
    REQUIRE(std::is_sorted(begins.begin(), begins.end()));
    const double wanted = optimum(v, penalty, k);
    // Levels enter as squares around the middle of the values: rounding of their size times the count.
    const double tolerance = 1e-9 * (1 + std::fabs(wanted)) + 1e-12 * 1e4 * static_cast<double>(v.size());
    REQUIRE(loss_of(v, begins, penalty, k) == Approx(wanted).margin(tolerance));
  }
}

TEST_CASE("steps of known series are found where they are") {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const auto v = times(random, {{60, 1.0}, {80, 1.1}, {50, 0.9}}, 0.01);
    const auto levels = find_levels(v);
    REQUIRE(levels.size() == 3);
    CHECK(std::abs(int(levels[1].begin) - 60) <= 2);
    CHECK(std::abs(int(levels[2].begin) - 140) <= 2);
    CHECK(levels[0].value == Approx(1).epsilon(0.01));
    CHECK(levels[1].value == Approx(1.1).epsilon(0.01));
    CHECK(levels[2].value == Approx(0.9).epsilon(0.01));
    CHECK(levels[0].end == levels[1].begin);
    CHECK(levels[2].end == v.size());
  }
}

TEST_CASE("a step of 5% under 1% of noise is found within ten runs") {
  std::mt19937 random(11);
  int found = 0;
  for (int round = 0; round < 200; ++round)
    found += find_levels(times(random, {{90, 1.0}, {10, 1.05}}, 0.01)).size() == 2;
  CHECK(found >= 190);
}

TEST_CASE("noise, disturbed runs and slow wander are no changes") {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  int flagged = 0;
  for (int round = 0; round < 300; ++round)
    flagged += find_levels(times(random, {{200, 1e-3}}, round % 2 ? 0.002 : 0.03, 0.08)).size() > 1;
  CHECK(flagged <= 3);
  // Neighbours alike: an autoregressive hour-to-hour wander of 1%.
  flagged = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<double> v;
    double x = 0;
    for (int i = 0; i < 200; ++i) {
      x = 0.6 * x + 0.8 * normal(random);
      v.push_back(std::exp(0.01 * x));
    }
    flagged += find_levels(v).size() > 1;
  }
  CHECK(flagged <= 20);
}

TEST_CASE("short series, gaps and constants") {
  CHECK(find_levels({}).empty());
  REQUIRE(find_levels({NAN, NAN}).size() == 1);
  CHECK(std::isnan(find_levels({NAN, NAN})[0].value));
  REQUIRE(find_levels({2}).size() == 1);
  CHECK(find_levels({2})[0].value == Approx(2));
  CHECK(find_levels(std::vector<double>(100, 1e-3)).size() == 1);
  // Two runs are not yet a level; a third makes one.
  std::vector<double> v(30, 1.0);
  v.insert(v.end(), {2, 2});
  CHECK(find_levels(v).size() == 1);
  v.push_back(2);
  REQUIRE(find_levels(v).size() == 2);
  CHECK(find_levels(v)[1].begin == 30);
  // Exact counts: a step of 1% is below the rule, 3% is not.
  v.assign(20, 100);
  v.insert(v.end(), 20, 101);
  CHECK(find_levels(v).size() == 1);
  v.insert(v.end(), 20, 104);
  REQUIRE(find_levels(v).size() == 2);
  CHECK(find_levels(v)[1].begin == 40);
  // Failed runs (NaN, 0) belong to the level around them.
  v[10] = NAN, v[45] = 0, v[39] = NAN;
  REQUIRE(find_levels(v).size() == 2);
  CHECK(find_levels(v)[1].begin == 40);
  CHECK(find_levels(v)[1].end == 60);
}

TEST_CASE("ten years of daily runs take milliseconds") {
  std::mt19937 random(5);
  std::vector<std::pair<size_t, double>> levels;
  for (int i = 0; i < 10; ++i) levels.emplace_back(365, i % 2 ? 1.08 : 1.0);
  const auto v = times(random, levels, 0.015);
  CHECK(find_levels(v).size() == 10);
}
