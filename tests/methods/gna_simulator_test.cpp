// The analytical simulator: the exact tables of the original's masks, windows by hand, brute force over
// pairs, the published rule for block-sparse cases and its counter-examples.
#include "methods/gna_simulator.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "kernels/core/error.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
using nlohmann::json;

namespace {

GnaProblem line(int64_t length, int64_t window, int64_t stride, int64_t q_tile = 1, int64_t kv_tile = 1) {
  return {{length}, {window}, {stride}, {1}, {false}, {q_tile}, {kv_tile}, false, false};
}
std::vector<int64_t> starts(int64_t length, int64_t window, int64_t stride) {
  std::vector<int64_t> s;
  for (int64_t p = 0; p < length; ++p)
    s.push_back(gna_window(line(length, window, stride), 0, length, p).begin);
  return s;
}

/// Key tiles visited by the worst query tile, their sum and all, pair by pair on an undilated grid.
struct Brute {
  int64_t most = 0, sum = 0, total = 0;
  bool in_part = false;  ///< some visited tile product has a pair that is not seen
};
Brute brute(const GnaProblem& g) {
  const size_t rank = g.extents.size();
  int64_t n = 1;
  for (int64_t x : g.extents) n *= x;
  const auto place = [&](int64_t token) {
    std::vector<int64_t> x(rank);
    for (size_t a = rank; a-- > 0; token /= g.extents[a]) x[a] = token % g.extents[a];
    return x;
  };
  const auto tile_of = [&](int64_t token, const std::vector<int64_t>& tile) {
    if (g.single_dim) return token / tile[0];
    const std::vector<int64_t> x = place(token);
    int64_t t = 0;
    for (size_t a = 0; a < rank; ++a) t = t * ((g.extents[a] + tile[a] - 1) / tile[a]) + x[a] / tile[a];
    return t;
  };
  std::map<std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>> seen;  // tiles -> pairs seen, pairs
  std::set<int64_t> all;
  for (int64_t i = 0; i < n; ++i) {
    const auto x = place(i);
    for (int64_t j = 0; j < n; ++j) {
      const auto y = place(j);
      bool sees = true;
      for (size_t a = 0; a < rank; ++a) {
        const GnaWindow w = gna_window(g, a, g.extents[a], x[a]);
        sees = sees && y[a] >= w.begin && y[a] < w.end;
      }
      auto& entry = seen[{tile_of(i, g.q_tile), tile_of(j, g.kv_tile)}];
      entry.first += sees, ++entry.second;
      all.insert(tile_of(j, g.kv_tile));
    }
  }
  Brute b;
  b.total = static_cast<int64_t>(all.size());
  std::map<int64_t, int64_t> by_query;
  for (const auto& [tiles, pairs] : seen) {
    by_query[tiles.first] += pairs.first > 0;
    b.in_part |= pairs.first > 0 && pairs.first < pairs.second;
  }
  for (const auto& [tile, count] : by_query) b.most = std::max(b.most, count), b.sum += count;
  return b;
}

}  // namespace

TEST_CASE("windows of the card by hand") {
  using V = std::vector<int64_t>;
  CHECK(starts(8, 3, 1) == V{0, 0, 1, 2, 3, 4, 5, 5});
  CHECK(starts(8, 4, 1) == V{0, 0, 0, 1, 2, 3, 4, 4});
  CHECK(starts(8, 4, 2) == V{0, 0, 1, 1, 3, 3, 4, 4});
  CHECK(starts(8, 4, 4) == V{0, 0, 0, 0, 4, 4, 4, 4});
  CHECK(starts(12, 6, 4) == V{0, 0, 0, 0, 3, 3, 3, 3, 6, 6, 6, 6});
  CHECK(starts(10, 4, 4) == V{0, 0, 0, 0, 4, 4, 4, 4, 6, 6});
  GnaProblem causal = line(8, 4, 2);
  causal.causal = {true};
  const V begin{0, 0, 0, 0, 2, 2, 4, 4};
  for (int64_t p = 0; p < 8; ++p) {
    const GnaWindow w = gna_window(causal, 0, 8, p);
    CHECK(w.begin == begin[static_cast<size_t>(p)]);
    CHECK(w.end == p + 1);
  }
}

TEST_CASE("every window has k keys and its query, for all small lines") {
  for (int64_t length = 1; length <= 24; ++length)
    for (int64_t k = 1; k <= length; ++k)
      for (int64_t s = 1; s <= k; ++s)
        for (int64_t p = 0; p < length; ++p) {
          const GnaWindow w = gna_window(line(length, k, s), 0, length, p);
          const bool right =
              w.end - w.begin == k && w.begin >= 0 && w.end <= length && p >= w.begin && p < w.end;
          if (!right) FAIL_CHECK("L " << length << " k " << k << " s " << s << " p " << p);
        }
}

TEST_CASE("the simulator equals the table of the original masks, entry by entry") {
  std::ifstream f(ATTNBENCH_SOURCE_DIR
                  "/tests/golden/oracles/generalized_neighborhood_attention/simulator.json");
  const json table = json::parse(f);
  REQUIRE(table.at("cases").size() >= 20);
  for (const json& c : table.at("cases")) {
    GnaProblem g;
    for (const auto& [key, field] : {std::pair{"extents", &g.extents},
                                     {"window_size", &g.window},
                                     {"stride", &g.stride},
                                     {"dilation", &g.dilation},
                                     {"q_tile_shape", &g.q_tile},
                                     {"kv_tile_shape", &g.kv_tile}})
      *field = c.at(key).get<std::vector<int64_t>>();
    g.causal = c.at("causal").get<std::vector<bool>>();
    g.dynamic_kv = c.at("kv_tiling") == "dynamic", g.single_dim = c.at("tiling") == "single_dim";
    const GnaCounts r = simulate_gna(g);
    INFO(c.dump());
    if (!c.at("visited_max_per_axis").is_null())
      CHECK(r.visited_max_per_axis == c.at("visited_max_per_axis").get<std::vector<int64_t>>());
    CHECK(r.visited_max == c.at("visited_max").get<int64_t>());
    CHECK(r.total == c.at("total").get<int64_t>());
    CHECK(r.visited_sum == c.at("visited_sum_over_q_tiles").get<int64_t>());
    CHECK(r.q_tiles == c.at("num_q_tiles").get<int64_t>());
    CHECK(r.s_sim == Approx(c.at("S_sim").get<double>()).epsilon(1e-12));
    CHECK(r.s_flop == Approx(c.at("S_flop").get<double>()).epsilon(1e-12));
    if (c.contains("end_to_end_bound"))
      CHECK(gna_end_to_end(c.at("attention_share_p").get<double>(), 1, r.s_sim) ==
            Approx(c.at("end_to_end_bound").get<double>()).epsilon(1e-12));
  }
}

TEST_CASE("the rest of the card's table: Cosmos, FLUX, lines") {
  const auto visited = [](std::vector<int64_t> extents, std::vector<int64_t> window,
                          std::vector<int64_t> stride, std::vector<int64_t> q, std::vector<int64_t> kv) {
    const size_t rank = extents.size();
    const GnaCounts c = simulate_gna({extents, window, stride, std::vector<int64_t>(rank, 1),
                                      std::vector<bool>(rank, false), q, kv, false, false});
    return std::pair{c.visited_max, c.total};
  };
  using P = std::pair<int64_t, int64_t>;
  const std::vector<int64_t> cosmos{16, 44, 80}, cq{8, 4, 8}, ck{4, 4, 8};
  CHECK(visited(cosmos, {16, 24, 16}, {1, 1, 1}, cq, ck) == P{84, 440});
  CHECK(visited(cosmos, {16, 24, 16}, {1, 8, 1}, cq, ck) == P{72, 440});
  CHECK(visited(cosmos, {16, 24, 16}, {1, 1, 16}, cq, ck) == P{56, 440});
  CHECK(visited(cosmos, {16, 24, 16}, {1, 8, 16}, cq, ck) == P{48, 440});
  CHECK(visited(cosmos, {16, 32, 48}, {1, 1, 1}, cq, ck) == P{252, 440});
  CHECK(visited(cosmos, {16, 32, 48}, {1, 8, 1}, cq, ck) == P{224, 440});
  CHECK(visited(cosmos, {16, 32, 48}, {1, 1, 16}, cq, ck) == P{216, 440});
  CHECK(visited(cosmos, {16, 32, 48}, {1, 8, 16}, cq, ck) == P{192, 440});
  CHECK(visited({256, 256}, {80, 80}, {1, 1}, {16, 16}, {16, 8}) == P{84, 512});
  CHECK(visited({256, 256}, {80, 80}, {16, 1}, {16, 16}, {16, 8}) == P{60, 512});
  CHECK(visited({256, 256}, {80, 80}, {16, 16}, {16, 16}, {16, 8}) == P{50, 512});
  CHECK(visited({30, 48, 80}, {18, 24, 24}, {1, 1, 1}, {2, 8, 8}, {2, 8, 8}) == P{250, 900});
  CHECK(visited({30, 48, 80}, {18, 24, 24}, {16, 8, 8}, {2, 8, 8}, {2, 8, 8}) == P{81, 900});
  CHECK(visited({32768}, {2048}, {1}, {128}, {128}) == P{17, 256});
  CHECK(visited({32768}, {2048}, {256}, {128}, {128}) == P{16, 256});
  CHECK(visited({32768}, {2048}, {2048}, {128}, {128}) == P{16, 256});
}

TEST_CASE("the simulator equals brute force over pairs, and the block-sparse rule tells no lies") {
  std::mt19937_64 r(5);
  const auto integer = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(r() % static_cast<uint64_t>(high - low + 1));
  };
  int64_t sparse = 0;
  for (int trial = 0; trial < 400; ++trial) {
    GnaProblem g;
    const int64_t rank = integer(1, 3);
    const bool even = integer(0, 1) == 1;
    for (int64_t a = 0; a < rank; ++a) {
      g.extents.push_back(integer(1, rank == 1 ? 40 : rank == 2 ? 12 : 6));
      g.window.push_back(integer(1, g.extents.back()));
      g.stride.push_back(integer(1, g.window.back()));
      g.dilation.push_back(1);
      g.causal.push_back(integer(0, 4) == 0);
      const int64_t most = rank == 1 ? 8 : 4;
      g.q_tile.push_back(even ? 2 * integer(1, most / 2) : integer(1, most));
      g.kv_tile.push_back(even ? 2 * integer(1, most / 2) : integer(1, most));
    }
    if (integer(0, 3) == 0) g.single_dim = true, g.q_tile = {integer(1, 20)}, g.kv_tile = {integer(1, 20)};
    const GnaCounts c = simulate_gna(g);
    const Brute b = brute(g);
    const bool same = c.visited_max == b.most && c.visited_sum == b.sum && c.total == b.total;
    if (!same)
      FAIL_CHECK("trial " << trial << ": " << c.visited_max << " " << c.visited_sum << " " << c.total
                          << ", brute force " << b.most << " " << b.sum << " " << b.total);
    if (!g.single_dim && c.block_sparse && c.block_sparse_valid) {
      ++sparse;
      if (b.in_part) FAIL_CHECK("trial " << trial << ": called block-sparse, but some tile is seen in part");
    }
    if (!g.single_dim) CHECK(gna_executed_tiles(g) == b.sum);
  }
  CHECK(sparse > 10);
  // The card's counter-examples: the rule holds, and tiles are seen in part all the same.
  for (const GnaProblem& g : {line(5, 4, 1, 1, 2), line(4, 3, 2, 2, 3)}) {
    CHECK(simulate_gna(g).block_sparse);
    CHECK_FALSE(simulate_gna(g).block_sparse_valid);
    CHECK(brute(g).in_part);
  }
}

TEST_CASE("dynamic key tiles never visit more, and dilation simulates its worst group") {
  for (int64_t k = 1; k <= 20; ++k)
    for (int64_t s = 1; s <= k; ++s) {
      GnaProblem g = line(41, k, s, 8, 4);
      const GnaCounts fixed = simulate_gna(g);
      g.dynamic_kv = true;
      const GnaCounts moving = simulate_gna(g);
      if (moving.visited_max > fixed.visited_max || moving.visited_sum > fixed.visited_sum)
        FAIL_CHECK("window " << k << " stride " << s);
    }
  // 41 tokens in groups of 14, 14 and 13 places.
  GnaProblem g = line(41, 5, 1, 4, 4);
  g.dilation = {3};
  const GnaCounts c = simulate_gna(g), one = simulate_gna(line(14, 5, 1, 4, 4));
  CHECK(c.visited_max == one.visited_max);
  CHECK(c.total == one.total);
  CHECK(gna_executed_tiles(g) == 2 * one.visited_sum + simulate_gna(line(13, 5, 1, 4, 4)).visited_sum);
}

TEST_CASE("the simulator refuses what is no neighbourhood") {
  GnaProblem g = line(8, 4, 2, 2, 2);
  g.window = {9};
  CHECK_THROWS_WITH(simulate_gna(g), ContainsSubstring("window 9") && ContainsSubstring("1..8"));
  g = line(8, 4, 5, 2, 2);
  CHECK_THROWS_WITH(simulate_gna(g), ContainsSubstring("stride 5"));
  g = line(8, 4, 2, 0, 2);
  CHECK_THROWS_WITH(simulate_gna(g), ContainsSubstring("tile"));
  g = line(8, 4, 2, 2, 2);
  g.stride = {1, 1};
  CHECK_THROWS_WITH(simulate_gna(g), ContainsSubstring("stride has 2 entries"));
  g.extents = {};
  CHECK_THROWS_AS(simulate_gna(g), UsageError);
}
