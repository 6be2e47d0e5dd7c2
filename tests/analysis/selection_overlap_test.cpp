// Overlap of the selections of heads and layers: by hand, and by plain sets.
#include <set>

#include "tests/analysis/fakes.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem with_heads(int64_t heads) {
  Problem p;
  p.heads = heads;
  return p;
}

}  // namespace

TEST_CASE("selection_overlap: equal, disjoint and half shared heads, and chance") {
  FakeInstance f;
  // Four queries of eight tokens; head 0 and 1 alike, 2 shifted by half, 3 apart.
  f.pair_set = square(8, 4, [](int64_t, int64_t h, int64_t, Intervals& out) {
    out = h < 2 ? Intervals{{0, 4}} : h == 2 ? Intervals{{2, 6}} : Intervals{{6, 8}};
  });
  const AnalysisResult r = analyse("selection_overlap", f, with_heads(4));
  CHECK(r.scalars.at("heads_max") == 1);
  CHECK(r.scalars.at("heads_min") == 0);
  CHECK(r.scalars.at("heads_mean") == Approx((1 + 2.0 / 6 + 2.0 / 6) / 6));
  CHECK(r.series.at("head_nearest") == std::vector<double>{1, 1, 2.0 / 6, 0});
  // Sets of 4 of 8 share 2 by chance (of 6); 4 and 2 of 8 share 1 (of 5).
  CHECK(r.scalars.at("chance") == Approx((3 * (2.0 / 6) + 3 * (1.0 / 5)) / 6));
  CHECK_FALSE(r.scalars.contains("layers_mean"));
}

TEST_CASE("selection_overlap: layers are united over their heads, heads compared across layers") {
  FakeInstance f;
  // Two layers of two heads: {0..3}, {2..5} and {0..3}, {4..7}.
  f.pair_set = square(8, 4, [](int64_t, int64_t h, int64_t, Intervals& out) {
    const int64_t first = h == 1 ? 2 : h == 3 ? 4 : 0;
    out = {{first, first + 4}};
  });
  const AnalysisResult r = analyse("selection_overlap", f, with_heads(2));
  CHECK(r.scalars.at("layers") == 2);
  CHECK(r.scalars.at("layers_mean") == 6.0 / 8);
  CHECK(r.series.at("next_layer") == std::vector<double>{6.0 / 8});
  CHECK(r.scalars.at("heads_mean") == Approx((2.0 / 6 + 0) / 2));
  CHECK(r.scalars.at("same_head_between_layers") == Approx((1 + 2.0 / 6) / 2));
}

TEST_CASE("selection_overlap: empty selections, one head, another batch element, no pairs") {
  FakeInstance f;
  f.pair_set = square(4, 2, [](int64_t b, int64_t h, int64_t, Intervals& out) {
    out = b == 0 ? Intervals{} : Intervals{{h, h + 2}};
  });
  f.pair_set->batch = 2;
  CHECK(analyse("selection_overlap", f, with_heads(2)).scalars.at("heads_mean") == 1);  // both keep nothing
  CHECK(analyse("selection_overlap", f, with_heads(2), {{"batch", 1}}).scalars.at("heads_mean") ==
        Approx(1.0 / 3));
  CHECK_THROWS_AS(analyse("selection_overlap", f, with_heads(2), {{"batch", 2}}), UsageError);
  f.pair_set = band(4, 1, 0);
  CHECK_THROWS_AS(analyse("selection_overlap", f, with_heads(1)), Unsupported);
  f.pair_set.reset();
  CHECK_THROWS_AS(analyse("selection_overlap", f, with_heads(2)), Unsupported);
}

TEST_CASE("selection_overlap of a method, against sets") {
  Trial t = make_trial("flexprefill", heads_problem(1, 4, 2, 203, 203, 16, true),
                       {{"block_size", 16}, {"min_budget", 16}, {"budget_unit", 16}, {"gamma", 0.5}});
  t.run();
  const RefTensor selected = t.output("selected");  // [1, 4, 13, 13]
  std::vector<std::set<std::pair<int64_t, int64_t>>> heads(4);
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 203; ++i)
      for (int64_t j = 0; j <= i; ++j)
        if (selected[(h * 13 + i / 16) * 13 + j / 16] != 0) heads[static_cast<size_t>(h)].insert({i, j});
  double mean = 0, least = 1;
  for (size_t x = 0; x < 4; ++x)
    for (size_t y = x + 1; y < 4; ++y) {
      double both = 0;
      for (const auto& pair : heads[x]) both += heads[y].contains(pair);
      const double j = both / (static_cast<double>(heads[x].size() + heads[y].size()) - both);
      mean += j / 6, least = std::min(least, j);
    }
  const Analysis& a = find_analysis("selection_overlap");
  const AnalysisResult r =
      a.compute(*t.ctx, *t.instance, t.problem,
                resolve_params(a.info().id, a.info().params, {{"queries", 0}}, t.problem));
  REQUIRE(least < 0.95);
  CHECK(r.scalars.at("heads_mean") == Approx(mean));
  CHECK(r.scalars.at("heads_min") == Approx(least));
}

TEST_CASE("selection_overlap of a host model: a layer with a window inside a dense one") {
  Problem p;
  p.batch = 1, p.length = 32, p.channels = 16, p.heads = 2, p.causal = true;
  Trial t =
      make_trial("transformer", p,
                 {{"num_layers", 2}, {"vocab_size", 19}, {"attention", "dense; sliding_window window=3"}});
  t.run();
  const Analysis& a = find_analysis("selection_overlap");
  const AnalysisResult r =
      a.compute(*t.ctx, *t.instance, p, resolve_params(a.info().id, a.info().params, {{"queries", 0}}, p));
  const double window = 4 * 32 - 6, all = 32 * 33 / 2;
  CHECK(r.scalars.at("layers_mean") == Approx(window / all));
  CHECK(r.scalars.at("same_head_between_layers") == Approx(window / all));
  CHECK(r.scalars.at("heads_mean") == 1);
}
