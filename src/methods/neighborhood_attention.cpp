// Neighborhood attention: fused, and in the separate operators of its first implementations.
#include <algorithm>

#include "kernels/elementwise/cast.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/neighborhood/neighborhood.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/heads_form.hpp"
#include "methods/neighborhood.hpp"

namespace attnbench {
namespace {

const NeighborhoodDefaults& defaults() {
  static const NeighborhoodDefaults d{
      {{7}, {7, 7}, {7, 7, 7}}, {{64}, {8, 8}, {4, 4, 4}}, {{64}, {8, 8}, {4, 4, 4}}};
  return d;
}

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "neighborhood_attention";
  m.title = "Neighborhood attention: naive, GEMM and fused (FNA)";
  m.paper =
      "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level, "
      "NeurIPS 2024";
  m.arxiv = "2403.04690";
  m.family = "window (softmax)";
  m.summary =
      "Every query attends to the window of keys around it on a grid of one to three axes, shifted inward at "
      "the "
      "borders so that it always has as many keys, and by choice with gaps (dilation) or ending at the query "
      "(causal "
      "axes). Three implementations give the same result with different traffic.";
  m.formula =
      "by axis, in the query's dilation group (g = i mod dil, p = i div dil, Lg places):\n"
      "start = clamp(p - floor(k/2), 0, Lg - k), keys start .. start + k - 1;  causal axis: max(p - k + 1, "
      "0) .. p\n"
      "o = softmax over the product of the axes' keys of (scale q . k [+ bias]), times v\n"
      "bias of axis entry t: table index (start + t) - p + k - 1";
  m.cost =
      "Token-exact: 4 B H N W D, W = prod k (causal axes: the keys there are). Fused: the products of query "
      "and key "
      "tiles that hold a pair. GEMM: query tiles times their haloed key tiles, 4 B H D sum prod T prod (T + "
      "k - 1). "
      "Unfused traffic: q, k, v, o and 4 times B H N W scores.";
  m.params = neighborhood_params("7", "64, 8,8 or 4,4,4 (32, 64 or 128 tokens)",
                                 "64, 8,8 or 4,4,4 (64 or 128 tokens)");
  ParamSpec implementation;
  implementation.name = "implementation";
  implementation.type = ParamSpec::Type::choice;
  implementation.choices = {"fused", "naive", "naive_tiled", "gemm"};
  implementation.default_value = "fused";
  implementation.meaning =
      "one pass; or scores in memory, one dot product after the other (naive_tiled: of keys kept at hand), "
      "or as dense "
      "products of tiles";
  ParamSpec bias;
  bias.name = "rel_pos_bias";
  bias.type = ParamSpec::Type::boolean;
  bias.default_value = false;
  bias.meaning = "a learned table of biases by relative place, unfused forms without causal axes only";
  m.params.insert(m.params.begin() + 1, implementation);
  m.params.push_back(bias);
  m.params.push_back(scale_param());
  m.params.back().min = 0;
  m.kinds = {ProblemKind::sequence, ProblemKind::image, ProblemKind::video};
  m.figures = {{"fused over naive, forward", "FP16, 1-D / 2-D / 3-D, A100, mean over a suite", "naive",
                "+1759 / +958 / +1135 %", "Table 3"},
               {"fused over GEMM, forward", "FP16, 1-D / 2-D, A100", "GEMM", "+180 / +257 %", "Table 3"},
               {"fused over naive, forward", "FP32, 1-D / 2-D / 3-D, A100", "naive", "+978 / +564 / +712 %",
                "Table 3"},
               {"kernel", "256x256, window 80,80, H 24, D 128, H100", "cuDNN 97.4 ms",
                "16.2 ms, 6.0x (bound 10.2x)", "NATTEN docs/profiler.md"},
               {"kernel", "30x48x80, window 18,24,24, H 24, D 128, H100", "cuDNN 283.3 ms",
                "79.0 ms, 3.6x (bound 11.1x)", "NATTEN docs/profiler.md"}};
  m.notes = {"Inputs are heads-last for the fused form, heads-first for the others, as in the original.",
             "Even windows: as the fused original defines them, in every form; its unfused kernels gave "
             "wrong windows.",
             "The fused form tiles keys statically by default (as the original's later kernels do); "
             "kv_tiling: dynamic gathers "
             "the keys from the first to the last one a query tile sees, not rounded up to tiles (chosen).",
             "Scores of the unfused forms are f32 for every storage type (chosen); extra keys become further "
             "columns of them.",
             "A grouped key head serves its query heads in every form; the original's unfused kernels have "
             "no groups (chosen).",
             "The bias table starts at zero in training (chosen); here it is filled like a weight so that it "
             "can be seen."};
  m.example.kind = ProblemKind::image;
  m.example.grid = {17, 13};
  m.example.heads = 2;
  m.example.head_dim = 32;
  return m;
}

/// Scores with every neighbour in memory.
class UnfusedNeighborhood final : public NeighborhoodInstance {
 public:
  UnfusedNeighborhood(Context& ctx, const Problem& problem, NeighborhoodForm form, NeighborhoodKernel kernel,
                      bool bias)
      : NeighborhoodInstance(ctx, problem, std::move(form), true), kernel_(kernel), bias_(bias) {
    if (!bias) return;
    std::vector<int64_t> dims{form_.heads};
    for (int64_t k : form_.pattern.window) dims.push_back(2 * k - 1);
    weight_specs_ = {{"rel_pos_bias", Shape(dims), dtype_, Init::trunc_normal(0.5), false,
                      "bias by head and relative place"}};
  }

  void run(Context& ctx) override {
    const NeighborhoodForm& f = form_;
    const int64_t w = window(), columns = w + f.extra;
    Tensor q = by_heads(input("q"), f.heads), k = by_heads(input("k"), f.kv_heads),
           v = by_heads(input("v"), f.kv_heads);
    Tensor o = by_heads(o_, f.heads), extra_k, extra_v, bias;
    if (bias_) bias = weight("rel_pos_bias").reshape({f.heads, weight("rel_pos_bias").numel() / f.heads});
    if (f.extra > 0) extra_k = input("extra_k"), extra_v = input("extra_v");
    if (widens()) {
      const auto stage = ctx.stage("widen");
      for (Tensor* t : {&q, &k, &v, &extra_k, &extra_v, &bias})
        if (*t) {
          const Tensor wide = ctx.allocate(DType::f32, t->shape());
          cast(ctx, {*t, wide});
          *t = wide;
        }
      o = ctx.allocate(DType::f32, o.shape());
    }
    const Tensor all = ctx.allocate(DType::f32, {f.batch, f.heads, f.tokens, columns});
    const Tensor a = all.slice(3, 0, w);
    // The query heads of one key head stand next to each other: one product covers them all.
    const Shape grouped{f.batch, f.kv_heads, f.heads / f.kv_heads * f.tokens, f.head_dim};
    Tensor extra_scores;
    if (f.extra > 0)
      extra_scores = all.reshape({f.batch, f.kv_heads, grouped[2], columns}).slice(3, w, columns);
    {
      const auto stage = ctx.stage("scores");
      NeighborhoodScoresArgs s;
      s.q = q, s.k = k, s.a = a, s.bias = bias;
      s.rule = plain_mask_.rule, s.scale = static_cast<float>(f.scale), s.kernel = kernel_;
      neighborhood_scores(ctx, s);
    }
    if (f.extra > 0) {
      const auto stage = ctx.stage("extra");
      GemmArgs g;
      g.a = q.reshape(grouped), g.b = extra_k.permute({0, 2, 1, 3}), g.b_transposed = true;
      g.c = extra_scores, g.alpha = static_cast<float>(f.scale);
      gemm(ctx, g);
    }
    {
      const auto stage = ctx.stage("softmax");
      softmax(ctx, {all, all});
    }
    {
      const auto stage = ctx.stage("values");
      NeighborhoodValuesArgs s;
      s.a = a, s.v = v, s.o = o;
      s.rule = plain_mask_.rule, s.kernel = kernel_;
      neighborhood_values(ctx, s);
    }
    if (f.extra > 0) {
      const auto stage = ctx.stage("extra");
      GemmArgs g;
      g.a = extra_scores, g.b = extra_v.permute({0, 2, 1, 3}), g.c = o.reshape(grouped), g.accumulate = true;
      gemm(ctx, g);
    }
    if (widens()) {
      const auto stage = ctx.stage("narrow");
      cast(ctx, {o, by_heads(o_, f.heads)});
    }
  }

  ClosedForm cost() const override {
    const NeighborhoodForm& f = form_;
    const int64_t rows = f.batch * f.heads * f.tokens, w = window(), columns = w + f.extra, d = f.head_dim;
    const int64_t valid = f.batch * f.heads * window_pairs();
    const int64_t computed = kernel_ == NeighborhoodKernel::gemm ? f.batch * f.heads * tile_pairs() : valid;
    const int64_t storage = static_cast<int64_t>(size_of(dtype_)), size = widens() ? 4 : storage;
    const int64_t q = rows * d, kv = f.batch * f.kv_heads * f.tokens * d,
                  extra = f.batch * f.kv_heads * f.extra * d;
    const int64_t table = bias_ ? weight_specs_[0].shape.numel() : 0;
    ClosedForm c;
    c.parameters = table;
    Cost& x = c.cost;
    x.matmul = 4 * d * computed + 4 * d * rows * f.extra;
    x.elementwise = computed + (bias_ ? valid : 0) + 4 * rows * columns;
    x.special = rows * columns;
    x.bytes_read = size * (q + kv + table) + 4 * rows * columns + 4 * rows * w + size * kv;
    x.bytes_written = 4 * rows * w + 4 * rows * columns + size * q;
    if (f.extra > 0) {
      x.bytes_read += 4 * (q + extra) + 4 * (rows * f.extra + extra + q);
      x.bytes_written += 4 * rows * f.extra + 4 * q;
    }
    if (widens()) {
      const int64_t inputs = q + 2 * kv + 2 * extra + table;
      x.bytes_read += storage * inputs + 4 * q;
      x.bytes_written += 4 * inputs + storage * q;
    }
    return c;
  }

 private:
  int64_t window() const { return tile_tokens(form_.pattern.window); }
  /// Extra keys meet f32 scores in plain products, so everything is f32 then.
  bool widens() const { return form_.extra > 0 && dtype_ != DType::f32; }

  /// Sum over all places of an axis, product over the axes.
  template <class F>
  int64_t over_groups(F&& of_group) const {
    int64_t pairs = 1;
    for (size_t a = 0; a < form_.rank(); ++a) {
      int64_t axis = 0;
      for (int64_t g = 0; g < form_.pattern.dilation[a]; ++g)
        axis += of_group(a, gna_group_length(form_.pattern, a, g));
      pairs *= axis;
    }
    return pairs;
  }
  int64_t window_pairs() const {
    return over_groups([&](size_t a, int64_t length) {
      int64_t keys = 0;
      for (int64_t p = 0; p < length; ++p) {
        const GnaWindow k = gna_window(form_.pattern, a, length, p);
        keys += k.end - k.begin;
      }
      return keys;
    });
  }
  int64_t tile_pairs() const {
    const int64_t side = neighborhood_gemm_tile(static_cast<int>(form_.rank()), form_.pattern.window[0]);
    return over_groups([&](size_t a, int64_t length) {
      int64_t pairs = 0;
      for (int64_t first = 0; first < length; first += side) {
        const int64_t last = std::min(first + side, length) - 1;
        pairs += (last - first + 1) * (gna_window(form_.pattern, a, length, last).end -
                                       gna_window(form_.pattern, a, length, first).begin);
      }
      return pairs;
    });
  }

  NeighborhoodKernel kernel_;
  bool bias_;
};

class NeighborhoodAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    NeighborhoodForm f = neighborhood_form(info(), problem, params, defaults());
    f.scale = scale_of(params, f.head_dim);
    if (f.scale <= 0) throw UsageError("neighborhood_attention.scale: a factor above 0 is wanted");
    const std::string& form = params.choice("implementation");
    const bool bias = params.boolean("rel_pos_bias");
    const bool causal =
        std::find(f.pattern.causal.begin(), f.pattern.causal.end(), true) != f.pattern.causal.end();
    if (bias && form == "fused")
      throw Unsupported("neighborhood_attention: the fused form has no rel_pos_bias; the unfused ones have");
    if (bias && causal)
      throw Unsupported("neighborhood_attention: rel_pos_bias is defined without causal axes only");
    if (form == "fused") {
      require_tile("q_tile_shape", f.pattern.q_tile, {32, 64, 128});
      require_tile("kv_tile_shape", f.pattern.kv_tile, {64, 128});
      return std::make_unique<FusedNeighborhood>(ctx, problem, std::move(f));
    }
    const NeighborhoodKernel kernel = form == "gemm"    ? NeighborhoodKernel::gemm
                                      : form == "naive" ? NeighborhoodKernel::naive
                                                        : NeighborhoodKernel::tiled;
    refuse(ctx, problem, f, kernel, causal);
    return std::make_unique<UnfusedNeighborhood>(ctx, problem, std::move(f), kernel, bias);
  }

 private:
  void require_tile(const char* param, const std::vector<int64_t>& tile,
                    const std::vector<int64_t>& sizes) const {
    if (std::find(sizes.begin(), sizes.end(), tile_tokens(tile)) != sizes.end()) return;
    std::string all;
    for (int64_t s : sizes) all += (all.empty() ? "" : ", ") + std::to_string(s);
    throw UsageError(info().id + "." + param + ": a tile of " + std::to_string(tile_tokens(tile)) +
                     " tokens; one of " + all + " is wanted");
  }

  /// What the operators would refuse, before anything is allocated.
  void refuse(Context& ctx, const Problem& problem, const NeighborhoodForm& f, NeighborhoodKernel kernel,
              bool causal) const {
    const auto no = [](const std::string& why) {
      throw Unsupported("neighborhood_attention.implementation: " + why);
    };
    if (kernel == NeighborhoodKernel::naive) return;
    const std::string name = kernel == NeighborhoodKernel::gemm ? "gemm" : "naive_tiled";
    const std::vector<int64_t>&w = f.pattern.window, &d = f.pattern.dilation;
    const bool equal = std::all_of(w.begin(), w.end(), [&](int64_t x) { return x == w[0]; }) &&
                       std::all_of(d.begin(), d.end(), [&](int64_t x) { return x == d[0]; });
    if (causal) no(name + " has no causal axes");
    if (!equal) no(name + " wants equal windows and dilations on all axes");
    if (kernel == NeighborhoodKernel::tiled) {
      if (f.rank() != 2 || f.head_dim != 32 || w[0] % 2 == 0 || w[0] < 3 || w[0] > 13)
        no("naive_tiled is for two axes, head_dim 32 and odd windows of 3 to 13");
      return;
    }
    if (f.rank() == 3) no("gemm is for one or two axes");
    if (f.rank() == 2 && w[0] > 63)
      no("gemm takes windows up to 63 on two axes, not " + std::to_string(w[0]));
    if (ctx.device() == DeviceKind::cuda && (problem.dtype == DType::f32 || f.extra > 0))
      no("gemm runs on tensor cores in bf16 and f16; for f32 (and with extra keys) they would round to TF32");
  }
};
ATTNBENCH_METHOD(NeighborhoodAttention);

}  // namespace
}  // namespace attnbench
