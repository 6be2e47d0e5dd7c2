// Generalized neighbourhood attention: windows that the queries of a stride group share, on tiles of the
// grid.
#include "methods/neighborhood.hpp"

namespace attnbench {
namespace {

// Tiles of NATTEN's Blackwell kernels, by rank.
const NeighborhoodDefaults& defaults() {
  static const NeighborhoodDefaults d{
      {{7}, {7, 7}, {18, 24, 24}}, {{256}, {16, 16}, {8, 4, 8}}, {{128}, {16, 8}, {4, 4, 8}}};
  return d;
}

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "generalized_neighborhood_attention";
  m.title = "Generalized neighborhood attention (GNA)";
  m.paper =
      "Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light, 2025";
  m.arxiv = "2504.16922";
  m.family = "window (softmax)";
  m.summary =
      "Attention to a window of keys around each query on a grid of one to three axes, where the queries of "
      "a stride "
      "group share the window of their leader. Stride 1 is neighborhood attention; a stride as long as the "
      "window is "
      "attention within blocks; strides between them make windows whole tiles, so that no masked work is "
      "left.";
  m.formula =
      "by axis, in the query's dilation group (g = i mod dil, p = i div dil, Lg places):\n"
      "leader ld = min(floor(p/s) s + floor(s/2), Lg - 1)      causal axis: min(floor(p/s) s + s - 1, Lg - "
      "1)\n"
      "start = clamp(ld - floor(k/2), 0, Lg - k), keys start .. start + k - 1\n"
      "causal axis: keys max(ld - k + 1, 0) .. p\n"
      "o = softmax over the product of the axes' keys of (q . k / sqrt(D)), times v";
  m.cost =
      "Token-exact: 4 B H N W D, W = prod k. Executed: 4 B H D |T_Q| |T_KV| times the tile products that "
      "hold a pair "
      "(`attnbench simulate gna` counts them); padded tiles whole. Permutation: tokens read and written once "
      "each way "
      "(8 B H N D elements with four tensors), as stages of their own.";
  m.params = neighborhood_params("7, or 18,24,24 on three axes", "256, 16,16 or 8,4,8", "128, 16,8 or 4,4,8");
  ParamSpec stride;
  stride.name = "stride";
  stride.type = ParamSpec::Type::list;
  stride.nullable = true;
  stride.min = 1;
  stride.meaning = "queries that share a window, by axis, at most the window; null: 1";
  ParamSpec tiling;
  tiling.name = "tiling";
  tiling.type = ParamSpec::Type::choice;
  tiling.choices = {"multi_dim", "single_dim"};
  tiling.default_value = "multi_dim";
  tiling.meaning = "tiles of the grid, or runs of as many row-major tokens";
  m.params.insert(m.params.begin() + 2, stride);
  m.params.push_back(tiling);
  m.kinds = {ProblemKind::sequence, ProblemKind::image, ProblemKind::video};
  m.figures = {{"S_sim", "30x48x80, window 18,24,24, stride 1", "dense tiles", "3.3x", "Fig. 3"},
               {"S_sim", "30x48x80, window 18,24,24, stride 16,8,8", "dense tiles", "11.1x", "Fig. 3"},
               {"end to end", "HunyuanVideo, window 18,24,24, stride 16,8,8, B200", "628 s", "277 s, 2.23x",
                "Tables 4-5"},
               {"kernel", "256x256, window 80,80, stride 16,16, H 24, D 128, H100", "cuDNN 97.4 ms",
                "7.9 ms, 12.3x; 10.6 ms, 9.2x with permutation", "NATTEN docs/profiler.md"},
               {"kernel", "30x48x80, window 18,24,24, stride 16,8,8, H 24, D 128, H100", "cuDNN 283.3 ms",
                "23.4 ms, 12.1x; 29.1 ms, 9.7x with permutation", "NATTEN docs/profiler.md"},
               {"kernel", "32768 tokens, window 2048, stride 256, H 1, D 128, H100", "cuDNN 787.4 us",
                "62.7 us, 12.6x", "NATTEN docs/profiler.md"}};
  m.notes = {
      "The published rule for fully block-sparse cases is not needed here: every list of tiles tells those "
      "seen whole "
      "from those seen in part, and only the latter meet the token mask.",
      "kv_tiling: dynamic executes the keys from the first to the last one a query tile sees, not rounded up "
      "to key "
      "tiles (chosen): never more than the original's tiles from their own origin.",
      "token_permute: false reads through orders of tokens without padding (chosen), whose blocks straddle "
      "tiles where "
      "these do not divide the grid.",
      "A window as long as the grid on every axis is dense attention and runs as such; so is a causal line.",
      "Extra keys have the key heads, and are joined by log-sum-exp.",
      "The window's default on one and two axes is chosen; the card has one for three axes only."};
  m.example.kind = ProblemKind::video;
  m.example.grid = {5, 9, 10};
  m.example.heads = 2;
  m.example.head_dim = 32;
  return m;
}

class GeneralizedNeighborhoodAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    NeighborhoodForm f = neighborhood_form(info(), problem, params, defaults());
    f.pattern.stride = axis_list(info(), params, "stride", f.rank(), std::vector<int64_t>(f.rank(), 1));
    f.flat = params.choice("tiling") == "single_dim";
    return std::make_unique<FusedNeighborhood>(ctx, problem, std::move(f));
  }
};
ATTNBENCH_METHOD(GeneralizedNeighborhoodAttention);

}  // namespace
}  // namespace attnbench
