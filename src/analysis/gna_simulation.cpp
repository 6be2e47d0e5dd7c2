// What the analytical model of generalized neighbourhood attention says about a case: tiles visited,
// speed-ups.
#include <fmt/core.h>

#include "analysis/analysis.hpp"
#include "methods/neighborhood.hpp"

namespace attnbench {

namespace {

class GnaSimulation final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "gna_simulation";
      i.title = "Simulated speed-up of a tiled neighbourhood";
      i.summary =
          "NATTENSim: the key tiles that the worst query tile of a neighbourhood visits, against all of "
          "them, and the "
          "speed-ups that follow. Exact integers; nothing is timed.";
      i.formula =
          "visited = prod over axes of max over query tiles of the key tiles between the first and the last "
          "key seen\n"
          "S_sim = total / visited      S_avg = total / mean visited      S_flop = prod L / prod k\n"
          "end to end = 1 / (1 - p u + p u / S_sim)";
      i.unit = "tiles; ratio";
      i.headline = {"s_sim", "s_avg", "s_flop", "visited_max", "total"};
      const auto number = [](const char* name, double value, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.type = ParamSpec::Type::number;
        s.default_value = value;
        s.min = 0, s.max = 1;
        s.meaning = meaning;
        return s;
      };
      i.params = {
          number("attention_share", 0, "p, share of the dense run in self attention; 0: no end-to-end bound"),
          number("steps_share", 1, "u, share of the steps that use the neighbourhood")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context&, Instance& instance, const Problem&, const Params& params) const override {
    const auto* pattern = dynamic_cast<const NeighborhoodPattern*>(&instance);
    if (!pattern) throw Unsupported("gna_simulation: the method attends to no neighbourhood of a grid");
    const NeighborhoodForm& f = pattern->neighborhood();
    GnaProblem g = f.pattern;
    if (f.flat) g.single_dim = true, g.q_tile = {tile_tokens(g.q_tile)}, g.kv_tile = {tile_tokens(g.kv_tile)};
    const GnaCounts c = simulate_gna(g);
    AnalysisResult r;
    r.analysis = info().id;
    r.scalars["s_sim"] = c.s_sim, r.scalars["s_avg"] = c.s_avg, r.scalars["s_flop"] = c.s_flop;
    r.scalars["sparsity"] = 1 - 1 / c.s_flop;
    r.scalars["visited_max"] = static_cast<double>(c.visited_max);
    r.scalars["total"] = static_cast<double>(c.total);
    r.scalars["visited_sum"] = static_cast<double>(c.visited_sum);
    r.scalars["q_tiles"] = static_cast<double>(c.q_tiles);
    r.scalars["wasted_share"] = c.wasted;
    for (int64_t v : c.visited_max_per_axis)
      r.series["visited_max_per_axis"].push_back(static_cast<double>(v));
    if (!g.single_dim) {
      r.scalars["block_sparse"] = c.block_sparse;
      if (!c.block_sparse_valid)
        r.notes["block_sparse"] = "the published rule is right for even tiles only, and these are not";
    }
    if (const double p = params.number("attention_share"); p > 0)
      r.scalars["end_to_end"] = gna_end_to_end(p, params.number("steps_share"), c.s_sim);
    return r;
  }
};
ATTNBENCH_ANALYSIS(GnaSimulation);

}  // namespace

}  // namespace attnbench
