#include "methods/gna_simulator.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "kernels/core/error.hpp"

namespace attnbench {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t product(const std::vector<int64_t>& v) {
  return std::accumulate(v.begin(), v.end(), int64_t{1}, [](int64_t a, int64_t b) {
    int64_t r;
    if (__builtin_mul_overflow(a, b, &r)) throw UsageError("gna: the extents' product overflows");
    return r;
  });
}

/// Tiles of one axis within one dilation group.
struct AxisTiles {
  int64_t most = 0, sum = 0, q_tiles = 0, total = 0;
};
AxisTiles axis_tiles(const GnaProblem& g, size_t a, int64_t length) {
  AxisTiles x;
  const int64_t tq = g.q_tile[a], tk = g.kv_tile[a];
  x.q_tiles = ceil_div(length, tq), x.total = ceil_div(length, tk);
  for (int64_t t = 0; t < x.q_tiles; ++t) {
    const int64_t first = t * tq, last = std::min(first + tq, length) - 1;
    const int64_t begin = gna_window(g, a, length, first).begin, end = gna_window(g, a, length, last).end;
    const int64_t visited = g.dynamic_kv ? ceil_div(end - begin, tk) : ceil_div(end, tk) - begin / tk;
    x.most = std::max(x.most, visited), x.sum += visited;
  }
  return x;
}

/// Whether axis `a` meets no key tile in part, by the published rule (the card's step 8).
bool block_sparse_axis(const GnaProblem& g, size_t a, int64_t length) {
  if (g.causal[a]) return false;
  const int64_t k = g.window[a], s = g.stride[a], tq = g.q_tile[a], tk = g.kv_tile[a];
  if (length == k) return true;
  const int64_t left = k / 2;
  const int64_t last = gna_window(g, a, length, std::min(length / s * s + s / 2, length - 1)).begin;
  const bool whole = s % tq == 0 && k % tk == 0 && (length % s == 0 || last % tk == 0);
  const bool inside = (left - s / 2) % tk == 0;
  const bool two_windows = length % tk == 0 && ceil_div(length, s) == 2 && s + s / 2 >= length - k;
  return whole && (inside || two_windows);
}

void multi_dim(const GnaProblem& g, GnaCounts& c) {
  c.visited_max = c.total = c.visited_sum = c.q_tiles = 1;
  c.block_sparse = c.block_sparse_valid = true;
  for (size_t a = 0; a < g.extents.size(); ++a) {
    AxisTiles worst;
    for (int64_t d = 0; d < std::min<int64_t>(g.dilation[a], g.extents[a]); ++d) {
      const int64_t length = gna_group_length(g, a, d);
      const AxisTiles x = axis_tiles(g, a, length);
      // The worst group: the largest share of its own tiles; the first of equals.
      if (worst.total == 0 || x.most * worst.total > worst.most * x.total) worst = x;
      c.block_sparse = c.block_sparse && block_sparse_axis(g, a, length);
    }
    const bool even = g.q_tile[a] % 2 == 0 && g.kv_tile[a] % 2 == 0;
    c.block_sparse_valid = c.block_sparse_valid && (even || g.kv_tile[a] == 1);
    c.visited_max_per_axis.push_back(worst.most);
    c.visited_max *= worst.most, c.total *= worst.total;
    c.visited_sum *= worst.sum, c.q_tiles *= worst.q_tiles;
  }
}

/// Runs of row-major tokens as tiles, on a grid without dilation.
void flat(const GnaProblem& g, const std::vector<int64_t>& extents, GnaCounts& c) {
  const size_t rank = extents.size();
  const int64_t n = product(extents), tq = g.q_tile[0], tk = g.kv_tile[0];
  c.q_tiles = ceil_div(n, tq), c.total = ceil_div(n, tk);
  std::vector<int64_t> mark(static_cast<size_t>(c.total) + 2, 0);  // the last query tile that visited, plus 1
  std::vector<int64_t> x(rank, 0);
  std::vector<GnaWindow> w(rank);
  // Calls visit(first token, end token) for every run of keys of the query at `x`.
  const auto runs = [&](auto&& visit) {
    for (size_t a = 0; a < rank; ++a) w[a] = gna_window(g, a, extents[a], x[a]);
    std::vector<int64_t> y;
    for (size_t a = 0; a + 1 < rank; ++a) y.push_back(w[a].begin);
    for (;;) {
      int64_t row = 0;
      for (size_t a = 0; a + 1 < rank; ++a) row = (row + y[a]) * extents[a + 1];
      visit(row + w[rank - 1].begin, row + w[rank - 1].end);
      size_t a = rank - 1;
      while (a-- > 0) {
        if (++y[a] < w[a].end) break;
        y[a] = w[a].begin;
      }
      if (a == SIZE_MAX) return;
    }
  };
  const auto place = [&](int64_t token) {
    for (size_t a = rank; a-- > 0; token /= extents[a]) x[a] = token % extents[a];
  };
  for (int64_t t = 0; t < c.q_tiles; ++t) {
    const int64_t end = std::min(n, (t + 1) * tq);
    int64_t origin = 0, visited = 0;
    if (g.dynamic_kv) {
      origin = n;
      for (int64_t i = t * tq; i < end; ++i) {
        place(i);
        runs([&](int64_t first, int64_t) { origin = std::min(origin, first); });
      }
    }
    for (int64_t i = t * tq; i < end; ++i) {
      place(i);
      runs([&](int64_t first, int64_t last) {
        for (int64_t k = (first - origin) / tk; k <= (last - 1 - origin) / tk; ++k) {
          int64_t& m = mark[static_cast<size_t>(k)];
          visited += m != t + 1;
          m = t + 1;
        }
      });
    }
    c.visited_max = std::max(c.visited_max, visited), c.visited_sum += visited;
  }
}

void single_dim(const GnaProblem& g, GnaCounts& c) {
  // Groups of an axis differ in length by one at most: at most two lengths an axis.
  std::vector<std::vector<int64_t>> lengths;
  for (size_t a = 0; a < g.extents.size(); ++a) {
    const int64_t longest = gna_group_length(g, a, 0), shortest = gna_group_length(g, a, g.dilation[a] - 1);
    lengths.push_back({longest});
    if (shortest != longest && shortest > 0) lengths.back().push_back(shortest);
  }
  std::vector<size_t> choice(lengths.size(), 0);
  for (;;) {
    std::vector<int64_t> extents;
    for (size_t a = 0; a < lengths.size(); ++a) extents.push_back(lengths[a][choice[a]]);
    GnaCounts one;
    flat(g, extents, one);
    if (c.total == 0 || one.visited_max * c.total > c.visited_max * one.total) c = one;
    size_t a = lengths.size();
    while (a-- > 0) {
      if (++choice[a] < lengths[a].size()) break;
      choice[a] = 0;
    }
    if (a == SIZE_MAX) return;
  }
}

}  // namespace

int64_t gna_group_length(const GnaProblem& g, size_t a, int64_t group) {
  return (g.extents[a] - group + g.dilation[a] - 1) / g.dilation[a];
}

GnaWindow gna_window(const GnaProblem& g, size_t a, int64_t length, int64_t p) {
  const int64_t k = g.window[a], s = g.stride[a];
  if (g.causal[a]) {
    const int64_t leader = std::min(p / s * s + s - 1, length - 1);
    return {std::max<int64_t>(leader - k + 1, 0), p + 1};
  }
  const int64_t leader = std::min(p / s * s + s / 2, length - 1);
  const int64_t start = std::clamp<int64_t>(leader - k / 2, 0, length - k);
  return {start, start + k};
}

void check_gna(const GnaProblem& g) {
  const size_t rank = g.extents.size();
  std::string wrong;
  const auto say = [&wrong](const std::string& text) { wrong += (wrong.empty() ? "" : "\n") + text; };
  if (rank < 1 || rank > 3)
    throw UsageError("gna: one to three extents are wanted, not " + std::to_string(rank));
  const auto sized = [&](const char* name, size_t size, size_t want) {
    if (size != want)
      say("gna: " + std::string(name) + " has " + std::to_string(size) + " entries, but " +
          std::to_string(want) + " are wanted");
    return size == want;
  };
  const size_t tiles = g.single_dim ? 1 : rank;
  bool all = sized("window", g.window.size(), rank);
  all = sized("stride", g.stride.size(), rank) && all;
  all = sized("dilation", g.dilation.size(), rank) && all;
  all = sized("causal", g.causal.size(), rank) && all;
  all = sized("q_tile", g.q_tile.size(), tiles) && all;
  all = sized("kv_tile", g.kv_tile.size(), tiles) && all;
  for (size_t a = 0; all && a < rank; ++a) {
    const std::string axis = "gna, axis " + std::to_string(a) + ": ";
    if (g.extents[a] < 1 || g.window[a] < 1 || g.dilation[a] < 1 || g.window[a] > g.extents[a] ||
        g.dilation[a] > g.extents[a] || g.window[a] * g.dilation[a] > g.extents[a])
      say(axis + "window " + std::to_string(g.window[a]) + " times dilation " +
          std::to_string(g.dilation[a]) + " must lie in 1.." + std::to_string(g.extents[a]));
    if (g.stride[a] < 1 || g.stride[a] > g.window[a])
      say(axis + "stride " + std::to_string(g.stride[a]) + " must lie in 1.." + std::to_string(g.window[a]) +
          ", the window");
  }
  for (const auto* t : {&g.q_tile, &g.kv_tile})
    for (int64_t x : *t)
      if (x < 1) say("gna: a tile holds one token or more on every axis, not " + std::to_string(x));
  if (!wrong.empty()) throw UsageError(wrong);
}

GnaCounts simulate_gna(const GnaProblem& g) {
  check_gna(g);
  GnaCounts c;
  g.single_dim ? single_dim(g, c) : multi_dim(g, c);
  c.s_sim = static_cast<double>(c.total) / static_cast<double>(c.visited_max);
  c.s_avg =
      static_cast<double>(c.total) * static_cast<double>(c.q_tiles) / static_cast<double>(c.visited_sum);
  const double window = static_cast<double>(product(g.window));
  c.s_flop = static_cast<double>(product(g.extents)) / window;
  c.wasted = static_cast<double>(c.visited_max) * static_cast<double>(product(g.kv_tile)) / window - 1;
  return c;
}

int64_t gna_executed_tiles(const GnaProblem& g) {
  int64_t tiles = 1;
  for (size_t a = 0; a < g.extents.size(); ++a) {
    int64_t axis = 0;
    for (int64_t d = 0; d < g.dilation[a]; ++d) axis += axis_tiles(g, a, gna_group_length(g, a, d)).sum;
    tiles *= axis;
  }
  return tiles;
}

double gna_end_to_end(double p, double u, double s) { return 1 / (1 - p * u + p * u / s); }

}  // namespace attnbench
