// Attention distance and energy decay against rows whose answers are known.
#include <cmath>

#include "tests/analysis/fakes.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

FakeInstance rows_of(const PairSet& pairs, std::function<void(int64_t, int64_t, int64_t, float*)> row) {
  FakeInstance f;
  f.pair_set = pairs;
  f.key_count = pairs.tokens;
  f.row = std::move(row);
  return f;
}

}  // namespace

TEST_CASE("distances along a sequence, by head, weighted by attention") {
  // Head 0: the token 3 before, where there is one, else the own; head 1: half on the own, half on token 0.
  FakeInstance f = rows_of(square(10, 2,
                                  [](int64_t, int64_t, int64_t, Intervals& out) {
                                    out = {{0, 10}};
                                  }),
                           [](int64_t, int64_t h, int64_t i, float* row) {
                             if (h == 0) {
                               row[i >= 3 ? i - 3 : i] = 1;
                             } else {
                               row[i] += 0.5f;
                               row[0] += 0.5f;
                             }
                           });
  const AnalysisResult r = analyse("attention_distance", f);
  CHECK(r.series.at("head_mean_distance")[0] == Approx(2.1));
  CHECK(r.series.at("head_mean_distance")[1] == Approx(2.25));  // (0 + 1 + ... + 9) / 2 / 10
  CHECK(r.scalars.at("mean_distance") == Approx(2.175));
  CHECK(r.scalars.at("max_distance") == Approx(4.5));
  CHECK(r.scalars.at("rows") == 20);
  // A uniform row is (N^2 - 1) / (3 N) = 3.3 away on average.
  CHECK(r.scalars.at("relative_distance") == Approx(2.175 / 3.3));
  // Distance 0: three rows of head 0; of head 1 one row and half of nine. 3 of head 0: octave [2, 4).
  const std::vector<double>& o = r.series.at("mass_by_octave");
  REQUIRE(o.size() == 5);
  CHECK(o[0] == Approx((3 + 1 + 4.5) / 20));
  CHECK(o[1] == Approx(0.5 / 20));
  CHECK(o[2] == Approx((7 + 1.0) / 20));
  CHECK(o[3] == Approx(2.0 / 20));
  CHECK(o[4] == Approx(1.0 / 20));
  const std::vector<double>& map = r.series.at("octave_map");
  const std::vector<double> want{0.3, 0, 0.7, 0, 0, 0.55, 0.05, 0.1, 0.2, 0.1};
  REQUIRE(map.size() == want.size());
  for (size_t k = 0; k < want.size(); ++k) CHECK(map[k] == Approx(want[k]).margin(1e-12));
}

TEST_CASE("distances on a grid are Euclidean; a last query of a cache stands at the last key") {
  PairSet p = square(12, 1, [](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, 12}}; });
  p.grid = {3, 4};
  FakeInstance f = rows_of(p, [](int64_t, int64_t, int64_t, float* row) { row[11] = 1; });
  CHECK(analyse("attention_distance", f).scalars.at("max_distance") == Approx(std::sqrt(13.0)));

  PairSet decode = p;
  decode.grid = {};
  decode.queries = 1;
  FakeInstance g = rows_of(decode, [](int64_t, int64_t, int64_t, float* row) { row[4] = 1; });
  CHECK(analyse("attention_distance", g).scalars.at("mean_distance") == 7);
}

TEST_CASE("rows that are empty, not finite, sampled or pooled") {
  const PairSet p = square(100, 1, [](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, 100}}; });
  FakeInstance f = rows_of(p, [](int64_t, int64_t, int64_t i, float* row) {
    if (i == 0) return;
    row[0] = i == 1 ? NAN : 0.25f;  // a sink takes the rest
  });
  const AnalysisResult r = analyse("attention_distance", f);
  CHECK(r.scalars.at("rows") == 98);
  CHECK(r.scalars.at("mean_distance") == Approx((2 + 99) / 2.0));
  CHECK(r.notes.count("rows_empty") == 1);
  CHECK(r.notes.count("rows_not_finite") == 1);
  FakeInstance g = rows_of(p, [](int64_t, int64_t, int64_t i, float* row) { row[i] = 1; });
  const AnalysisResult some = analyse("attention_distance", g, {}, {{"queries", 40}});
  CHECK(some.scalars.at("rows") == 40);
  CHECK(some.notes.count("queries") == 1);
  g.key_count = 50;  // pooled
  CHECK_THROWS_AS(analyse("attention_distance", g), Unsupported);
  g.key_count = 100;
  g.short_rows = true;
  CHECK_THROWS_AS(analyse("attention_distance", g), Error);
  FakeInstance none;
  CHECK_THROWS_AS(analyse("attention_distance", none), Unsupported);
}

TEST_CASE("the sample reaches from the first to the last query") {
  const PairSet p = square(1000, 1, [](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, 1000}}; });
  std::vector<int64_t> seen;
  FakeInstance f = rows_of(p, [&seen](int64_t, int64_t, int64_t i, float* row) {
    seen.push_back(i);
    row[i] = 1;
  });
  analyse("attention_distance", f, {}, {{"queries", 100}});
  REQUIRE(seen.size() == 100);
  CHECK(seen.front() == 0);
  CHECK(seen.back() >= 990);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
}

TEST_CASE("the decay of weights that fall exponentially is found exactly") {
  const int64_t frames = 6, s = 20;
  PairSet p = square(frames * s, 2, [=](int64_t, int64_t, int64_t, Intervals& out) {
    out = {{0, frames * s}};
  });
  p.grid = {frames, 4, 5};
  FakeInstance f = rows_of(p, [=](int64_t, int64_t h, int64_t i, float* row) {
    for (int64_t j = 0; j < frames * s; ++j) {
      const double t = static_cast<double>(std::abs(i / s - j / s)),
                   x = static_cast<double>(std::abs(i % s - j % s));
      row[j] = static_cast<float>(0.3 * std::exp(-(h == 0 ? 0.9 : 0.2) * t - 0.25 * x));
    }
  });
  const AnalysisResult r = analyse("energy_decay", f);
  CHECK(r.series.at("head_temporal_rate")[0] == Approx(0.9).epsilon(1e-5));
  CHECK(r.series.at("head_temporal_rate")[1] == Approx(0.2).epsilon(1e-5));
  CHECK(r.scalars.at("spatial_rate") == Approx(0.25).epsilon(1e-5));
  CHECK(r.scalars.at("spatial_r2") == Approx(1).epsilon(1e-6));
  CHECK(r.scalars.at("spatial_level") == Approx(std::log(0.3)).epsilon(1e-5));
  CHECK(r.scalars.at("temporal_r2") < 1);  // the mean of two exponentials is none
  p.grid = {frames, s};
  FakeInstance flat = rows_of(p, [](int64_t, int64_t, int64_t, float*) {});
  CHECK_THROWS_AS(analyse("energy_decay", flat), Unsupported);
}
