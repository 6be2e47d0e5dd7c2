// Reach against closed forms, and against a plain boolean matrix power on random patterns.
#include <chrono>
#include <cmath>
#include <random>
#include <set>

#include "analysis/bits.hpp"
#include "inputs/inputs.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

AnalysisResult reach(const PairSet& pairs, const std::map<std::string, Value>& given = {},
                     bool causal = false) {
  FakeInstance f;
  f.pair_set = pairs;
  Problem p;
  p.causal = causal;
  return analyse("receptive_field", f, p, given);
}

/// Window of `side` on each side of each axis, cut at the border, one interval a line.
PairSet neighbourhood(int64_t height, int64_t width, int64_t side) {
  PairSet p = square(height * width, 1, [=](int64_t, int64_t, int64_t i, Intervals& out) {
    out.clear();
    const int64_t y = i / width, x = i % width;
    for (int64_t v = std::max<int64_t>(0, y - side); v <= std::min(height - 1, y + side); ++v)
      out.push_back({v * width + std::max<int64_t>(0, x - side), v * width + std::min(width, x + side + 1)});
  });
  p.grid = {height, width};
  return p;
}

using Relation = std::vector<std::vector<bool>>;

/// The oracle: S_d by the definition, token by token.
/// `pairs` with several layers: layer d is that of its heads, in turn.
std::vector<Relation> plain_reach(const PairSet& pairs, int64_t depth, bool residual) {
  const auto n = static_cast<size_t>(pairs.tokens);
  const int64_t each = pairs.heads / pairs.layers;
  std::vector<Relation> layers(static_cast<size_t>(pairs.layers), Relation(n, std::vector<bool>(n, false)));
  Intervals row;
  for (int64_t h = 0; h < pairs.heads; ++h)
    for (size_t i = 0; i < n; ++i) {
      Relation& a = layers[static_cast<size_t>(h / each)];
      pairs.row(0, h, static_cast<int64_t>(i), row);
      for (const Interval& v : row)
        for (int64_t j = v.begin; j < v.end; ++j) a[i][static_cast<size_t>(j)] = true;
      if (residual) a[i][i] = true;
    }
  std::vector<Relation> all{layers[0]};
  for (int64_t d = 2; d <= depth; ++d) {
    const Relation& a = layers[static_cast<size_t>((d - 1) % pairs.layers)];
    Relation next(n, std::vector<bool>(n, false));
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j)
        if (a[i][j])
          for (size_t k = 0; k < n; ++k)
            if (all.back()[j][k]) next[i][k] = true;
    all.push_back(next);
  }
  return all;
}

}  // namespace

TEST_CASE("a sliding window grows by its width at each layer") {
  const int64_t n = 101, w = 7;
  for (const int64_t heads : {1, 3}) {
    const AnalysisResult r = reach(band(n, w, w, heads), {{"depth", 20}});
    REQUIRE(r.series.at("fraction_max").size() == 20);
    for (int64_t d = 1; d <= 20; ++d) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i)
        sum += static_cast<double>(std::min(n - 1, i + d * w) - std::max<int64_t>(0, i - d * w) + 1);
      const auto k = static_cast<size_t>(d - 1);
      INFO("depth " << d);
      CHECK(r.series.at("fraction_mean")[k] == Approx(sum / static_cast<double>(n * n)).epsilon(1e-12));
      CHECK(r.series.at("fraction_max")[k] ==
            static_cast<double>(std::min(n, 2 * d * w + 1)) / static_cast<double>(n));
      CHECK(r.series.at("fraction_min")[k] ==
            static_cast<double>(std::min(n, d * w + 1)) / static_cast<double>(n));
      CHECK(r.series.at("max_distance")[k] == static_cast<double>(std::min(n - 1, d * w)));
    }
    CHECK(r.scalars.at("complete_at_depth") == 15);  // ceil(100 / 7)
  }
}

TEST_CASE("a causal window reaches back by its width, and is complete when it reaches the start") {
  const int64_t n = 64, w = 9;
  const AnalysisResult r = reach(band(n, w, 0), {{"depth", 8}}, true);
  for (int64_t d = 1; d <= 8; ++d) {
    const auto k = static_cast<size_t>(d - 1);
    CHECK(r.series.at("max_distance")[k] == static_cast<double>(std::min(n - 1, d * w)));
    CHECK(r.series.at("fraction_max")[k] ==
          static_cast<double>(std::min(n, d * w + 1)) / static_cast<double>(n));
    CHECK(r.series.at("fraction_of_earlier_min")[k] ==
          static_cast<double>(std::min(n, d * w + 1)) / static_cast<double>(n));
    CHECK(r.series.at("fraction_min")[k] == 1.0 / static_cast<double>(n));  // the first token sees itself
  }
  CHECK(r.scalars.at("complete_at_depth") == 7);  // 7 * 9 = 63
  CHECK(r.scalars.at("fraction_of_earlier_mean") == 1);
  CHECK(r.scalars.at("fraction_mean") == Approx((n + 1) / (2.0 * n)));
}

TEST_CASE("covered distance: windows grow by their width, powers of two double, holes stop it") {
  const int64_t n = 200;
  const AnalysisResult window = reach(band(n, 6, 6), {{"depth", 5}});
  const AnalysisResult sides = reach(band(n, 6, 2), {{"depth", 5}});
  const AnalysisResult causal = reach(band(n, 6, 0), {{"depth", 5}}, true);
  const auto powers = [n](int64_t, int64_t, int64_t i, Intervals& out) {
    out.clear();
    for (int64_t p = 1; p <= i; p *= 2) out.push_back({i - p, i - p + 1});
    std::reverse(out.begin(), out.end());
    out.push_back({i, i + 1});
  };
  const AnalysisResult power = reach(square(n, 1, powers), {{"depth", 5}}, true);
  const AnalysisResult dilated = reach(square(n, 1,
                                              [](int64_t, int64_t, int64_t i, Intervals& out) {
                                                out.clear();
                                                if (i >= 2) out.push_back({i - 2, i - 1});
                                                out.push_back({i, i + 1});
                                              }),
                                       {{"depth", 5}}, true);
  for (int64_t d = 1; d <= 5; ++d) {
    const auto k = static_cast<size_t>(d - 1);
    CHECK(window.series.at("covered_distance")[k] == static_cast<double>(6 * d));
    CHECK(sides.series.at("covered_distance")[k] == static_cast<double>(2 * d));
    CHECK(causal.series.at("covered_distance")[k] == static_cast<double>(6 * d));
    CHECK(power.series.at("covered_distance")[k] == static_cast<double>((2 << d) - 2));
    CHECK(dilated.series.at("covered_distance")[k] == 0);
    CHECK(causal.series.at("last_tokens")[k] == static_cast<double>(6 * d + 1));
    CHECK(dilated.series.at("last_tokens")[k] == static_cast<double>(d + 1));
  }
  CHECK(reach(band(64, 63, 63)).scalars.at("covered_distance") == 63);
  // By blocks, and by sampled queries.
  const AnalysisResult blocks = reach(square(64, 1,
                                             [](int64_t, int64_t, int64_t i, Intervals& out) {
                                               out = {{std::max<int64_t>(0, i / 4 - 2) * 4, i / 4 * 4 + 4}};
                                             }),
                                      {{"depth", 3}, {"block_size", 4}}, true);
  CHECK(blocks.series.at("covered_distance") == std::vector<double>{8, 16, 24});
  CHECK(blocks.series.at("last_tokens") == std::vector<double>{12, 20, 28});
  const AnalysisResult sampled = reach(band(n, 6, 0), {{"depth", 5}, {"queries", n}}, true);
  CHECK(sampled.series.at("covered_distance") == causal.series.at("covered_distance"));
  CHECK(sampled.series.at("last_tokens") == causal.series.at("last_tokens"));
}

TEST_CASE("dense attention is complete at depth 1") {
  for (const int64_t n : {1, 2, 63, 64, 65, 130}) {
    const AnalysisResult r = reach(band(n, n, n));
    INFO(n);
    CHECK(r.scalars.at("complete_at_depth") == 1);
    CHECK(r.series.at("fraction_min")[0] == 1);
    CHECK(r.scalars.at("max_distance") == static_cast<double>(n - 1));
  }
  const AnalysisResult causal = reach(band(130, 130, 0), {}, true);
  CHECK(causal.scalars.at("complete_at_depth") == 1);
}

TEST_CASE("a partition into windows never grows; shifting every second head makes it grow") {
  const int64_t n = 60, w = 8;  // the last window has 4 tokens
  const auto windows = [=](int64_t shift, int64_t i) {
    const int64_t begin = (i + shift) / w * w - shift;
    return Interval{std::max<int64_t>(0, begin), std::min(n, begin + w)};
  };
  const AnalysisResult r =
      reach(square(n, 1, [=](int64_t, int64_t, int64_t i, Intervals& out) { out = {windows(0, i)}; }),
            {{"depth", 50}});
  for (size_t d = 0; d < 50; ++d) {
    REQUIRE(r.series.at("fraction_max")[d] == static_cast<double>(w) / n);
    REQUIRE(r.series.at("fraction_min")[d] == 4.0 / n);
    REQUIRE(r.series.at("max_distance")[d] == w - 1);
  }
  CHECK(r.scalars.at("complete_at_depth") == 0);
  CHECK_THAT(r.notes.at("complete_at_depth"), ContainsSubstring("not complete within 50"));
  const AnalysisResult shifted = reach(
      square(n, 2, [=](int64_t, int64_t h, int64_t i, Intervals& out) { out = {windows(h * w / 2, i)}; }),
      {{"depth", 50}});
  CHECK(shifted.scalars.at("complete_at_depth") > 1);
}

TEST_CASE("on a grid reach grows in both axes: Chebyshev and Euclidean distance") {
  const int64_t height = 20, width = 33, side = 2;
  const AnalysisResult r = reach(neighbourhood(height, width, side), {{"depth", 16}});
  for (int64_t d = 1; d <= 16; ++d) {
    const auto k = static_cast<size_t>(d - 1);
    const int64_t y = std::min(height - 1, d * side), x = std::min(width - 1, d * side);
    INFO("depth " << d);
    CHECK(r.series.at("max_distance_chebyshev")[k] == static_cast<double>(std::max(x, y)));
    CHECK(r.series.at("max_distance_euclidean")[k] == Approx(std::hypot(x, y)).epsilon(1e-14));
    const double reached =
        static_cast<double>(std::min(height, 2 * d * side + 1) * std::min(width, 2 * d * side + 1));
    if (2 * d * side + 1 <= height)  // a query in the middle meets no border
      CHECK(r.series.at("fraction_max")[k] == reached / static_cast<double>(height * width));
  }
  CHECK(r.scalars.at("complete_at_depth") == 16);
  // Three axes: one voxel each way.
  PairSet video = square(3 * 4 * 5, 1, [](int64_t, int64_t, int64_t i, Intervals& out) {
    out.clear();
    const int64_t t = i / 20, y = i / 5 % 4, x = i % 5;
    for (int64_t a = std::max<int64_t>(0, t - 1); a <= std::min<int64_t>(2, t + 1); ++a)
      for (int64_t b = std::max<int64_t>(0, y - 1); b <= std::min<int64_t>(3, y + 1); ++b)
        out.push_back(
            {a * 20 + b * 5 + std::max<int64_t>(0, x - 1), a * 20 + b * 5 + std::min<int64_t>(5, x + 2)});
  });
  video.grid = {3, 4, 5};
  const AnalysisResult v = reach(video);
  CHECK(v.series.at("max_distance_euclidean")[0] == Approx(std::sqrt(3.0)));
  CHECK(v.series.at("max_distance_chebyshev")[1] == 2);
  CHECK(v.scalars.at("complete_at_depth") == 4);
}

TEST_CASE("without the residual connection a token may lose itself") {
  const int64_t n = 16;  // a ring: each token sees its two neighbours only
  const PairSet ring = square(n, 1, [=](int64_t, int64_t, int64_t i, Intervals& out) {
    const int64_t a = (i + n - 1) % n, b = (i + 1) % n;
    out = {{std::min(a, b), std::min(a, b) + 1}, {std::max(a, b), std::max(a, b) + 1}};
  });
  for (const int64_t queries : {0, 16}) {
    const AnalysisResult with = reach(ring, {{"depth", 10}, {"queries", queries}});
    const AnalysisResult without = reach(ring, {{"depth", 10}, {"queries", queries}, {"residual", false}});
    for (int64_t d = 1; d <= 10; ++d) {
      const auto k = static_cast<size_t>(d - 1);
      INFO("depth " << d << ", queries " << queries);
      CHECK(with.series.at("fraction_mean")[k] == static_cast<double>(std::min(n, 2 * d + 1)) / n);
      CHECK(without.series.at("fraction_mean")[k] == static_cast<double>(std::min(n / 2, d + 1)) / n);
    }
    CHECK(with.scalars.at("complete_at_depth") == 8);
    CHECK(without.scalars.at("complete_at_depth") == 0);
  }
}

TEST_CASE("random patterns agree with the definition, whole and sampled") {
  std::mt19937 random(5);
  for (int trial = 0; trial < 12; ++trial) {
    const int64_t n = std::vector<int64_t>{1, 5, 63, 64, 65, 129}[static_cast<size_t>(trial % 6)];
    const int64_t heads = 1 + trial % 3;
    std::vector<Intervals> rows(static_cast<size_t>(n * heads));
    for (Intervals& row : rows) {
      int64_t at = static_cast<int64_t>(random() % 40);
      while (at < n) {  // some rows stay empty
        const int64_t end = std::min(n, at + 1 + static_cast<int64_t>(random() % 3));
        row.push_back({at, end});
        at = end + 1 + static_cast<int64_t>(random() % 60);
      }
    }
    const PairSet pairs = square(n, heads, [&](int64_t, int64_t h, int64_t i, Intervals& out) {
      out = rows[static_cast<size_t>(h * n + i)];
    });
    const bool residual = trial % 2 == 0;
    const std::vector<Relation> truth = plain_reach(pairs, 4, residual);
    for (const int64_t queries : {int64_t{0}, n}) {
      const AnalysisResult r = reach(pairs, {{"residual", residual}, {"queries", queries}});
      for (size_t d = 0; d < 4; ++d) {
        double sum = 0, distance = 0, least = INFINITY;
        for (int64_t i = 0; i < n; ++i) {
          double mine = 0;
          for (int64_t j = 0; j < n; ++j)
            if (truth[d][static_cast<size_t>(i)][static_cast<size_t>(j)]) {
              ++mine;
              distance = std::max(distance, static_cast<double>(std::abs(i - j)));
            }
          sum += mine;
          least = std::min(least, mine);
        }
        INFO("n " << n << ", depth " << d + 1 << ", queries " << queries);
        CHECK(r.series.at("fraction_mean")[d] == Approx(sum / static_cast<double>(n * n)).epsilon(1e-12));
        CHECK(r.series.at("fraction_min")[d] == Approx(least / static_cast<double>(n)).epsilon(1e-12));
        CHECK(r.series.at("max_distance")[d] == distance);
      }
    }
  }
}

TEST_CASE("blocks never report less than tokens, and exactly as much for patterns of whole blocks") {
  for (const bool causal : {false, true}) {
    const PairSet odd = band(1003, 13, causal ? 0 : 13);
    const AnalysisResult exact = reach(odd, {}, causal);
    const AnalysisResult blocks = reach(odd, {{"max_exact", 100}}, causal);
    CHECK(exact.scalars.at("block_size") == 1);
    CHECK(blocks.scalars.at("block_size") == 16);
    CHECK_THAT(blocks.notes.at("method"), ContainsSubstring("upper bounds"));
    for (size_t d = 0; d < 4; ++d) {
      CHECK(blocks.series.at("fraction_mean")[d] >= exact.series.at("fraction_mean")[d]);
      CHECK(blocks.series.at("fraction_mean")[d] <=
            exact.series.at("fraction_mean")[d] + 2.0 * 16 * 2 * (d + 1) / 1003);
      CHECK(blocks.series.at("max_distance")[d] >= exact.series.at("max_distance")[d]);
    }
  }
  // Blocks of 8 see themselves and both neighbours; the last block is short.
  const int64_t n = 205;
  const PairSet whole = square(n, 1, [=](int64_t, int64_t, int64_t i, Intervals& out) {
    out = {{std::max<int64_t>(0, i / 8 - 1) * 8, std::min(n, (i / 8 + 2) * 8)}};
  });
  const AnalysisResult exact = reach(whole), blocks = reach(whole, {{"block_size", 8}});
  for (const char* key : {"fraction_mean", "fraction_min", "fraction_max", "max_distance"})
    for (size_t d = 0; d < 4; ++d) {
      INFO(key << " at depth " << d + 1);
      CHECK(blocks.series.at(key)[d] == Approx(exact.series.at(key)[d]).epsilon(1e-12));
    }
  // On a grid the boxes of blocks bound the distances.
  const AnalysisResult fine = reach(neighbourhood(30, 30, 2)),
                       coarse = reach(neighbourhood(30, 30, 2), {{"block_size", 7}});
  for (size_t d = 0; d < 4; ++d) {
    CHECK(coarse.series.at("max_distance_euclidean")[d] >= fine.series.at("max_distance_euclidean")[d]);
    CHECK(coarse.series.at("max_distance_chebyshev")[d] >= fine.series.at("max_distance_chebyshev")[d]);
    CHECK(coarse.series.at("fraction_mean")[d] >= fine.series.at("fraction_mean")[d]);
  }
}

TEST_CASE("a million tokens: blocks for all queries, exact for sampled ones") {
  const int64_t n = 1'000'000;
  // Whole blocks of 256: a block sees itself and the one before.
  const PairSet whole = square(n, 1, [=](int64_t, int64_t, int64_t i, Intervals& out) {
    out = {{std::max<int64_t>(0, i / 256 - 1) * 256, std::min(n, (i / 256 + 1) * 256)}};
  });
  const AnalysisResult r = reach(whole, {}, true);
  CHECK(r.scalars.at("block_size") == 256);
  for (int64_t d = 1; d <= 4; ++d)
    CHECK(r.series.at("max_distance")[static_cast<size_t>(d - 1)] == static_cast<double>((d + 1) * 256 - 1));

  const int64_t w = 100;
  const AnalysisResult s = reach(band(n, w, w, 2), {{"queries", 32}, {"seed", 3}});
  CHECK(s.scalars.at("sampled_queries") == 32);
  for (int64_t d = 1; d <= 4; ++d) {
    const auto k = static_cast<size_t>(d - 1);
    CHECK(s.series.at("max_distance")[k] == static_cast<double>(d * w));
    CHECK(s.series.at("fraction_max")[k] == static_cast<double>(2 * d * w + 1) / static_cast<double>(n));
  }
  // Causal and dense: every sampled query already has all of its past.
  const AnalysisResult c = reach(band(n, n, 0), {{"queries", 8}}, true);
  CHECK(c.scalars.at("complete_at_depth") == 1);
}

TEST_CASE("queries that are not the tokens do not stack; odd inputs are answered or refused") {
  PairSet cross = band(50, 3, 3);
  cross.queries = 20;
  const AnalysisResult r = reach(cross);
  CHECK(r.series.at("fraction_mean").size() == 1);
  CHECK(r.series.at("fraction_max")[0] == 7.0 / 50);
  CHECK_THAT(r.notes.at("depth"), ContainsSubstring("do not stack"));
  const AnalysisResult empty = reach(
      square(5, 1, [](int64_t, int64_t, int64_t, Intervals& out) { out.clear(); }), {{"residual", false}});
  CHECK(empty.scalars.at("fraction_max") == 0);
  CHECK(empty.scalars.at("max_distance") == 0);
  CHECK(empty.scalars.at("complete_at_depth") == 0);
  PairSet dynamic = square(4, 1, [](int64_t b, int64_t, int64_t i, Intervals& out) {
    out = b == 1 ? Intervals{{0, 4}} : Intervals{{i, i + 1}};
  });
  dynamic.batch = 2;
  dynamic.same_for_all_batches = false;
  CHECK(reach(dynamic).scalars.at("complete_at_depth") == 0);
  CHECK(reach(dynamic, {{"batch", 1}}).scalars.at("complete_at_depth") == 1);
  CHECK_THROWS_AS(reach(dynamic, {{"batch", 2}}), UsageError);
  CHECK_THROWS_AS(reach(band(1'000'000, 1, 1), {{"block_size", 4}}), UsageError);
  CHECK_THROWS_AS(reach(band(9, 1, 1), {{"depth", 0}}), UsageError);
  FakeInstance none;
  CHECK_THROWS_AS(analyse("receptive_field", none), Unsupported);
}

TEST_CASE("bit ranges, counts and searches at word borders") {
  for (const int64_t n : {1, 63, 64, 65, 200})
    for (const int64_t begin : {int64_t{0}, n / 3, n - 1})
      for (int64_t end = begin; end <= n; ++end) {
        BitMatrix m(1, n);
        m.set_range(0, begin, end);
        for (const int64_t cut : {int64_t{0}, n / 2, n}) {
          const int64_t low = std::min(begin, cut), high = std::min(end, cut);
          REQUIRE(BitMatrix::count(m.row(0), cut) == high - low);
        }
        REQUIRE(BitMatrix::first(m.row(0), 0, n) == (begin < end ? begin : n));
        REQUIRE(BitMatrix::last(m.row(0), 0, n) == (begin < end ? end - 1 : -1));
        REQUIRE(BitMatrix::first(m.row(0), end, n) == n);
        REQUIRE(BitMatrix::last(m.row(0), 0, begin) == -1);
      }
}

TEST_CASE("layers that differ: every way agrees with the product of their relations") {
  std::mt19937 random(11);
  for (int trial = 0; trial < 6; ++trial) {
    const int64_t n = 30 + trial, layers = 2 + trial % 3, heads = 2 * layers;
    // Sparse enough that layers matter: one to three keys a row.
    std::vector<std::vector<Intervals>> rows(static_cast<size_t>(heads),
                                             std::vector<Intervals>(static_cast<size_t>(n)));
    for (auto& head : rows)
      for (Intervals& row : head) {
        std::set<int64_t> keys;
        for (unsigned k = 0; k < 1 + random() % 3; ++k)
          keys.insert(static_cast<int64_t>(random() % static_cast<unsigned>(n)));
        for (const int64_t j : keys) row.push_back({j, j + 1});
      }
    PairSet pairs = square(n, heads, [rows](int64_t, int64_t h, int64_t i, Intervals& out) {
      out = rows[static_cast<size_t>(h)][static_cast<size_t>(i)];
    });
    pairs.layers = layers;
    for (const bool residual : {true, false}) {
      const int64_t depth = layers + 2;
      const std::vector<Relation> want = plain_reach(pairs, depth, residual);
      const AnalysisResult all = reach(pairs, {{"depth", depth}, {"residual", residual}});
      const AnalysisResult some = reach(pairs, {{"depth", depth}, {"residual", residual}, {"queries", n}});
      CHECK(all.scalars.at("layers") == static_cast<double>(layers));
      for (int64_t d = 1; d <= depth; ++d) {
        const auto k = static_cast<size_t>(d - 1);
        double sum = 0, least = 1;
        for (const auto& row : want[k]) {
          const double f =
              static_cast<double>(std::count(row.begin(), row.end(), true)) / static_cast<double>(n);
          sum += f / static_cast<double>(n);
          least = std::min(least, f);
        }
        INFO("trial " << trial << ", residual " << residual << ", depth " << d);
        CHECK(all.series.at("fraction_mean")[k] == Approx(sum).epsilon(1e-12));
        CHECK(some.series.at("fraction_mean")[k] == Approx(sum).epsilon(1e-12));
        CHECK(all.series.at("fraction_min")[k] == Approx(least).epsilon(1e-12));
        CHECK(some.series.at("fraction_min")[k] == Approx(least).epsilon(1e-12));
        CHECK(all.series.at("last_tokens")[k] == some.series.at("last_tokens")[k]);
        CHECK(all.series.at("max_distance")[k] == some.series.at("max_distance")[k]);
      }
      // As deep as there are layers, when no depth is given.
      CHECK(reach(pairs, {{"residual", residual}}).series.at("fraction_mean").size() ==
            static_cast<size_t>(layers));
    }
  }
}

TEST_CASE("a list of layers: each its own method on the problem of the case") {
  Problem p;
  p.heads = 2, p.head_dim = 8, p.length = 64, p.causal = true;
  const auto run = [&](Value::List layers, std::map<std::string, Value> given = {}) {
    FakeInstance self;
    self.pair_set = band(64, 1, 0);
    given["layers"] = std::move(layers);
    return analyse("receptive_field", self, p, given);
  };
  // Windows add up, whatever their order; a dense layer completes.
  const AnalysisResult r = run({"sliding_window window=3", "sliding_window window=7", "self", "dense"});
  CHECK(r.series.at("covered_distance") == std::vector<double>{3, 10, 11, 63});
  CHECK(r.series.at("last_tokens") == std::vector<double>{4, 11, 12, 64});
  CHECK(r.scalars.at("complete_at_depth") == 4);
  CHECK(r.scalars.at("layers") == 4);
  CHECK(r.notes.at("layers") == "1 sliding_window window=3; 2 sliding_window window=7; 3 self; 4 dense");
  // By sampled queries, deeper than the list.
  const AnalysisResult deep = run({"sliding_window window=3", "self"}, {{"depth", 5}, {"queries", 64}});
  CHECK(deep.series.at("covered_distance") == std::vector<double>{3, 4, 7, 8, 11});
  // One layer is a stack of equal ones.
  CHECK(run({"sliding_window window=3"}).series.at("covered_distance") == std::vector<double>{3, 6, 9, 12});
  // Without a residual connection order matters: the last layer looks at what the first one made there.
  CHECK(run({"dense", "sliding_window window=0"}, {{"residual", false}}).scalars.at("complete_at_depth") ==
        1);

  const auto refused = [&](Value::List layers, const std::string& message) {
    try {
      run(layers);
      FAIL("nothing was refused");
    } catch (const Error& e) {
      CHECK_THAT(e.what(), ContainsSubstring(message));
    }
  };
  refused({"dense", "sliding_windw window=3"}, "receptive_field.layers[1]: ");
  refused({"dense", "sliding_windw window=3"}, "did you mean 'sliding_window'?");
  refused({"sliding_window windw=3"}, "did you mean 'window'?");
  refused({"dense; dense"}, "one method is wanted");
  refused({"hilo"}, "receptive_field.layers[0]: ");
  refused({3}, "a list of texts is wanted");

  // Parameters that are lists, on the grid of an image.
  Problem image;
  image.kind = ProblemKind::image;
  image.grid = {8, 8}, image.heads = 2, image.head_dim = 8;
  FakeInstance self;
  self.pair_set = square(64, 1, [](int64_t, int64_t, int64_t i, Intervals& out) { out = {{i, i + 1}}; });
  const AnalysisResult g = analyse("receptive_field", self, image,
                                   {{"layers", Value::List{"neighborhood_attention window_size=[3,3]", "self",
                                                           "neighborhood_attention window_size=[5,5]"}}});
  CHECK(g.series.at("max_distance_chebyshev")[0] == g.series.at("max_distance_chebyshev")[1]);
  CHECK(g.series.at("max_distance_chebyshev")[2] > g.series.at("max_distance_chebyshev")[1]);
}

TEST_CASE("layers of a host model are composed, not united") {
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method("transformer");
  Problem p = m.info().example;
  p.length = 64, p.causal = true;
  const Params params =
      resolve_params("transformer", m.info().params,
                     {{"num_layers", 3},
                      {"vocab_size", 64},
                      {"attention", "sliding_window window=3; sliding_window window=7; dense"}},
                     p);
  const auto instance = m.make(ctx, p, params);
  fill_instance(ctx, *instance, p);
  instance->prepare(ctx);
  instance->run(ctx);
  const Analysis& a = find_analysis("receptive_field");
  const AnalysisResult r =
      a.compute(ctx, *instance, p, resolve_params("receptive_field", a.info().params, {}, p));
  CHECK(r.series.at("covered_distance") == std::vector<double>{3, 10, 63});
  CHECK(r.scalars.at("complete_at_depth") == 3);
}
