// Density against counted patterns.
#include "tests/analysis/fakes.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("density of known patterns, by head") {
  FakeInstance f;
  f.pair_set = square(10, 2, [](int64_t, int64_t h, int64_t i, Intervals& out) {
    out = h == 0 ? Intervals{{0, i + 1}} : Intervals{{0, 2}, {5, 6}};  // causal; three fixed tokens
  });
  const AnalysisResult r = analyse("density", f);
  CHECK(r.series.at("head_density")[0] == Approx(0.55));
  CHECK(r.series.at("head_density")[1] == Approx(0.3));
  CHECK(r.scalars.at("density") == Approx(0.425));
  CHECK(r.scalars.at("pairs") == 85);
  CHECK(r.scalars.at("mean_tokens_per_query") == Approx(4.25));
  CHECK(r.scalars.at("min_tokens_per_query") == 1);
  CHECK(r.scalars.at("max_tokens_per_query") == 10);
}

TEST_CASE("batches of a dynamic pattern are averaged; M != N; nothing seen; no pairs") {
  FakeInstance f;
  PairSet p = square(4, 1, [](int64_t b, int64_t, int64_t, Intervals& out) {
    out = b == 0 ? Intervals{} : Intervals{{0, 8}};
  });
  p.batch = 2;
  p.tokens = 8;
  p.same_for_all_batches = false;
  f.pair_set = p;
  CHECK(analyse("density", f).scalars.at("density") == Approx(0.5));
  f.pair_set->same_for_all_batches = true;  // then batch 0 speaks for all
  CHECK(analyse("density", f).scalars.at("density") == 0);
  CHECK(analyse("density", f).scalars.at("min_tokens_per_query") == 0);
  f.pair_set = band(1, 0, 0);
  CHECK(analyse("density", f).scalars.at("density") == 1);
  f.pair_set.reset();
  CHECK_THROWS_AS(analyse("density", f), Unsupported);
}

TEST_CASE("heads that see the same are counted once") {
  FakeInstance f;
  int64_t asked = 0;
  f.pair_set = square(10, 3, [&asked](int64_t, int64_t, int64_t i, Intervals& out) {
    out = {{0, i + 1}};
    ++asked;
  });
  const AnalysisResult each = analyse("density", f);
  CHECK(asked == 30);
  f.pair_set->same_for_all_heads = true;
  const AnalysisResult once = analyse("density", f);
  CHECK(asked == 40);
  CHECK(once.scalars == each.scalars);
  CHECK(once.series == each.series);
}

TEST_CASE("every analysis says what it computes") {
  for (const char* id : {"density", "entropy", "receptive_field"}) {
    const AnalysisInfo& info = find_analysis(id).info();
    CHECK(info.id == id);
    CHECK_FALSE(info.formula.empty());
    CHECK_FALSE(info.unit.empty());
    CHECK_FALSE(info.summary.empty());
  }
}
