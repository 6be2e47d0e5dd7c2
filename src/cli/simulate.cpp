// attnbench simulate: analytical models of a method's work, exact and without running anything.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "methods/gna_simulator.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;
using Axes = std::vector<int64_t>;

// A sweep looks at one tile arithmetic for every stride of every axis; beyond this it would not end soon.
constexpr int64_t kMostStrides = 1'000'000;

struct Options {
  std::string model;
  Axes extents, window, stride, dilation, q_tile, kv_tile;
  std::vector<std::string> causal;
  std::string kv_tiling = "static", tiling = "multi_dim";
  double share = 0, steps = 1;
  bool sweep = false;
};

/// One entry for all axes, or one an axis.
template <class T>
std::vector<T> by_axis(const char* option, std::vector<T> v, size_t rank, T unset) {
  if (v.empty()) v = {unset};
  if (v.size() == 1) v.resize(rank, v[0]);
  if (v.size() != rank)
    throw UsageError(fmt::format("{}: {} entries, but the grid has {} axes", option, v.size(), rank));
  return v;
}

bool causal_word(const std::string& word) {
  if (word == "true" || word == "1") return true;
  if (word == "false" || word == "0") return false;
  throw UsageError(fmt::format("--causal: true or false is wanted for every axis, not '{}'", word));
}

GnaProblem problem_of(const Options& o) {
  GnaProblem g;
  const size_t rank = o.extents.size();
  if (rank < 1 || rank > 3) throw UsageError("--extents: one to three axes are wanted");
  g.extents = o.extents;
  g.window = by_axis<int64_t>("--window", o.window, rank, 1);
  g.stride = by_axis<int64_t>("--stride", o.stride, rank, 1);
  g.dilation = by_axis<int64_t>("--dilation", o.dilation, rank, 1);
  for (const std::string& word : by_axis<std::string>("--causal", o.causal, rank, "false"))
    g.causal.push_back(causal_word(word));
  g.dynamic_kv = o.kv_tiling == "dynamic", g.single_dim = o.tiling == "single_dim";
  // Without tiles: those of NATTEN's Hopper kernels at D = 128.
  const std::vector<Axes> tiles{{128}, {16, 8}, {4, 4, 8}};
  const Axes chosen = g.single_dim ? Axes{128} : tiles[rank - 1];
  g.q_tile = o.q_tile.empty() ? chosen : o.q_tile;
  g.kv_tile = o.kv_tile.empty() ? chosen : o.kv_tile;
  check_gna(g);
  return g;
}

std::string joined(const Axes& v) {
  std::string s;
  for (int64_t x : v) s += (s.empty() ? "" : ",") + std::to_string(x);
  return s;
}

Json counts_json(const GnaProblem& g, const GnaCounts& c, const Options& o) {
  Json j{{"extents", g.extents},
         {"window_size", g.window},
         {"stride", g.stride},
         {"dilation", g.dilation},
         {"causal", g.causal},
         {"q_tile_shape", g.q_tile},
         {"kv_tile_shape", g.kv_tile},
         {"kv_tiling", o.kv_tiling},
         {"tiling", o.tiling},
         {"visited_max", c.visited_max},
         {"total", c.total},
         {"visited_sum_over_q_tiles", c.visited_sum},
         {"num_q_tiles", c.q_tiles},
         {"S_sim", c.s_sim},
         {"S_avg", c.s_avg},
         {"S_flop", c.s_flop},
         {"sparsity", 1 - 1 / c.s_flop},
         {"wasted_share", c.wasted}};
  if (!g.single_dim) {
    j["visited_max_per_axis"] = c.visited_max_per_axis;
    j["block_sparse"] = c.block_sparse;
    j["block_sparse_rule_applies"] = c.block_sparse_valid;
  }
  if (o.share > 0) {
    j["attention_share_p"] = o.share;
    j["steps_share_u"] = o.steps;
    j["end_to_end_bound"] = gna_end_to_end(o.share, o.steps, c.s_sim);
  }
  return j;
}

std::string counts_text(const GnaProblem& g, const GnaCounts& c, const Options& o) {
  std::string s =
      fmt::format("grid {}, window {}, stride {}", joined(g.extents), joined(g.window), joined(g.stride));
  if (std::any_of(g.dilation.begin(), g.dilation.end(), [](int64_t d) { return d > 1; }))
    s += ", dilation " + joined(g.dilation);
  if (std::find(g.causal.begin(), g.causal.end(), true) != g.causal.end()) {
    s += ", causal axes";
    for (size_t a = 0; a < g.causal.size(); ++a)
      if (g.causal[a]) s += fmt::format(" {}", a);
  }
  s += fmt::format("\nquery tiles {}, key tiles {}, {} keys, {}\n\n", joined(g.q_tile), joined(g.kv_tile),
                   o.kv_tiling, o.tiling);
  using Align = TextTable::Align;
  TextTable t({{"figure", Align::left}, {"value", Align::right}, {"meaning", Align::left}});
  std::string axes = joined(c.visited_max_per_axis);
  t.add({"visited", fmt::format("{}/{}", c.visited_max, c.total),
         "key tiles of the worst query tile, of all" + (axes.empty() ? "" : "; by axis " + axes)});
  t.add({"S_sim", fmt::format("{:.2f}", c.s_sim), "all / visited by the worst: the paper's speed-up"});
  t.add({"S_avg", fmt::format("{:.2f}", c.s_avg),
         fmt::format("over the mean of {} query tiles ({} tile products)", c.q_tiles, c.visited_sum)});
  t.add({"S_flop", fmt::format("{:.2f}", c.s_flop), "pairs / pairs in windows: the bound"});
  t.add({"sparsity", fmt::format("{:.2f}%", 100 * (1 - 1 / c.s_flop)), "pairs outside windows"});
  t.add(
      {"wasted", fmt::format("{:.1f}%", 100 * c.wasted), "masked work of the worst tile over the window's"});
  if (!g.single_dim)
    t.add({"block-sparse", c.block_sparse ? "yes" : "no",
           c.block_sparse_valid ? "no tile is seen in part: no token mask"
                                : "the published rule is not right for odd tiles: mask all the same"});
  if (o.share > 0)
    t.add({"end to end", fmt::format("{:.2f}", gna_end_to_end(o.share, o.steps, c.s_sim)),
           fmt::format("bound for attention {:.4g}% of the dense run, in {:.4g}% of its steps", 100 * o.share,
                       100 * o.steps)});
  return s + t.str(false, "  ");
}

/// Every stride that no other one beats: a larger stride stays only where it visits fewer tiles than every
/// smaller one (no larger on any axis). The paper's sweep.
std::vector<std::pair<Axes, GnaCounts>> sweep(GnaProblem g) {
  int64_t strides = 1;
  for (int64_t k : g.window)
    if (__builtin_mul_overflow(strides, k, &strides) || strides > kMostStrides)
      throw UsageError(
          fmt::format("--sweep: windows {} have more than {} strides", joined(g.window), kMostStrides));
  std::vector<std::pair<Axes, GnaCounts>> kept;
  Axes s(g.window.size(), 1);
  for (;;) {
    g.stride = s;
    const GnaCounts c = simulate_gna(g);
    // In lexicographic order every smaller stride came before.
    const bool beaten = std::any_of(kept.begin(), kept.end(), [&](const auto& k) {
      for (size_t a = 0; a < s.size(); ++a)
        if (k.first[a] > s[a]) return false;
      return k.second.s_sim >= c.s_sim;
    });
    if (!beaten) kept.emplace_back(s, c);
    size_t a = s.size();
    while (a-- > 0) {
      if (++s[a] <= g.window[a]) break;
      s[a] = 1;
    }
    if (a == SIZE_MAX) break;
  }
  std::stable_sort(kept.begin(), kept.end(),
                   [](const auto& x, const auto& y) { return x.second.s_sim < y.second.s_sim; });
  return kept;
}

int simulate_gna_command(const Options& o, const GlobalOptions& global) {
  GnaProblem g = problem_of(o);
  if (!o.sweep) {
    const GnaCounts c = simulate_gna(g);
    print_data(global.json ? counts_json(g, c, o).dump(2) + "\n" : counts_text(g, c, o));
    return kDone;
  }
  if (!o.stride.empty()) throw UsageError("--sweep looks at every stride: give no --stride with it");
  const auto kept = sweep(g);
  if (global.json) {
    Json list = Json::array();
    for (const auto& [stride, c] : kept) {
      g.stride = stride;
      list.push_back(counts_json(g, c, o));
    }
    print_data(list.dump(2) + "\n");
    return kDone;
  }
  using Align = TextTable::Align;
  TextTable t({{"stride", Align::left},
               {"visited", Align::right},
               {"S_sim", Align::right},
               {"S_avg", Align::right},
               {"block-sparse", Align::left}});
  for (const auto& [stride, c] : kept)
    t.add({joined(stride), fmt::format("{}/{}", c.visited_max, c.total), fmt::format("{:.2f}", c.s_sim),
           fmt::format("{:.2f}", c.s_avg), c.block_sparse && c.block_sparse_valid ? "yes" : ""});
  print_data(t.str(global.color, "", stdout_width()));
  return kDone;
}

const bool registered = register_command(
    {.name = "simulate",
     .order = 24,
     .add = [](CLI::App& sub, const GlobalOptions& global) -> std::function<int()> {
       auto o = std::make_shared<Options>();
       CLI::App* gna = &sub;
       sub.add_option("MODEL", o->model,
                      "gna: NATTENSim, the key tiles that generalized neighbourhood attention visits")
           ->required()
           ->check(CLI::IsMember({"gna"}))
           ->type_name("{gna}");
       const auto axes = [&](const char* name, Axes& v, const char* text) {
         return gna->add_option(name, v, text)->delimiter(',')->type_name("N[,N[,N]]");
       };
       axes("--extents", o->extents, "tokens by axis")->required();
       axes("--window", o->window, "keys by axis")->required();
       axes("--stride", o->stride, "queries that share a window, by axis; default 1");
       axes("--dilation", o->dilation, "default 1");
       gna->add_option("--causal", o->causal, "true or false by axis; default false")
           ->delimiter(',')
           ->type_name("BOOL[,BOOL...]");
       axes("--q-tile", o->q_tile, "query tile; default 128, 16,8 or 4,4,8 by the number of axes");
       axes("--kv-tile", o->kv_tile, "key tile; same defaults");
       gna->add_option("--kv-tiling", o->kv_tiling, "where key tiles count from; default static")
           ->check(CLI::IsMember({"static", "dynamic"}));
       gna->add_option("--tiling", o->tiling, "tiles of the grid, or of its flat row-major order")
           ->check(CLI::IsMember({"multi_dim", "single_dim"}));
       gna->add_option("--attention-share", o->share,
                       "share of the dense run spent in self attention: adds the end-to-end bound")
           ->check(CLI::Range(0.0, 1.0));
       gna->add_option("--steps-share", o->steps, "share of the steps that use it; default 1")
           ->check(CLI::Range(0.0, 1.0));
       gna->add_flag("--sweep", o->sweep, "every stride that no smaller one equals, by speed-up");
       gna->footer(
           "Examples:\n  attnbench simulate gna --extents 30,48,80 --window 18,24,24 --stride 16,8,8 "
           "--q-tile 4,8,8 "
           "--kv-tile 2,8,8\n  attnbench simulate gna --extents 256,256 --window 80 --q-tile 16,16 --kv-tile "
           "16,8 "
           "--sweep");
       return [o, &global] { return simulate_gna_command(*o, global); };
     },
     .summary = "analytical models: tiles visited and speed-ups, without running anything"});

}  // namespace

}  // namespace attnbench
