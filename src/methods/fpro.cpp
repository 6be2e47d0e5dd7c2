// FPro: a gated dynamic low-pass splits shallow features in two bands, which make prompts for decoder
// features.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/attention/attention.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/signal_parts.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one
using Op = PointwiseArgs::Op;

constexpr float kEps = 1e-5f;       ///< of layer and batch norms
constexpr float kNormEps = 1e-12f;  ///< of the unit rows of channel attention

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "fpro";
  m.title = "FPro: gated dynamic decoupler and dual frequency prompt block";
  m.paper = "Seeing the Unseen: A Frequency Prompt Guided Transformer for Image Restoration, ECCV 2024";
  m.arxiv = "2404.00288";
  m.family = "model-block";
  m.summary =
      "A 3 x 3 filter made from the image's own mean splits shallow features into a low and a high band. The "
      "high band "
      "makes keys and values for attention inside windows of a decoder feature, the low band passes a gated "
      "spectrum to "
      "one global key; both results, fused by a 1 x 1 convolution, are added to the feature. `network` is "
      "the whole "
      "encoder and decoder with channel attention.";
  m.formula =
      "taps = softmax_9(BN(f sigmoid(G f))), f = W mean(s);  low = taps * s (reflected), high = s - low\n"
      "h3 = Phi h1 GELU(dw(dw(h1))), h1 = bilinear(high);  y_h = Wo softmax(q(x) k(dw h3)^T / sqrt(C/2)) v "
      "in windows\n"
      "U = [Re; Im] rFFT2(bicubic(low)); U <- U GELU(Wg U + b); l3 = irFFT2(U Plo)\n"
      "y_l = Wo softmax(t q(x) k^T) v over the keys of pool(l3);  out = Wf [y_h; y_l] + b\n"
      "restoration block: u = x + MDTA(LN(x)), out = u + GDFN(LN(u)); MDTA attends between channels of a "
      "head";
  m.cost =
      "MACs with n = R^2: GDD 72 c0 + 72^2 + 9 c0 N_S; HPM 17 c0 n + (2 C^2 + 2 c0 C) n + 128 C n; LPM (2 "
      "c0)^2 R (R/2 + "
      "1) + 2 C^2 n + 2 C n + 2 c0 C and two transforms of 2.5 n log2 n FLOPs a channel; fuse 2 C^2 n. MDTA "
      "4 C^2 n + 27 "
      "C n + 2 (C^2 / h) n; GDFN 3 e C^2 n + 18 e C n. Network at 256: 81.88 G in convolutions, 22,287,244 "
      "parameters.";
  m.params = {
      spec::choice("scope", {"prompt_block", "gdd", "lpm", "hpm", "restoration_block", "network"},
                   "what to build"),
      spec::integer("base_dim", 48, 1, "c0, a multiple of gdd_groups"),
      spec::integer("dim", Value(), 1, "C, a multiple of prompt_heads; null: problem.channels, or 96"),
      spec::integer("resolution", Value(), 1, "R, even and a multiple of window; null: problem.grid, or 256"),
      spec::list("input_size", 256, "[Hs, Ws] of s, or one number for both (network: S)"),
      spec::integer("gdd_groups", 8, 1, "g, channel groups that share a filter"),
      spec::integer("gdd_kernel", 3, 1, "odd side of the dynamic filter"),
      spec::integer("window", 8, 1, "HPM window"),
      spec::integer("prompt_heads", 2, 1, "heads of both modulators"),
      spec::choice("lpm_mode", {"reference", "dc"},
                   "run the transform, or only its DC bin (exact for one key)"),
      spec::integer("lpm_pool", 1, 1, "the low prompt is pooled to lpm_pool^2 keys"),
      spec::list("num_blocks", Value(Value::List{2, 3, 6}), "blocks by level, network"),
      spec::integer("refinement_blocks", 2, 1, "network"),
      spec::list("heads", Value(),
                 "by level (network; null: [2, 4, 8]), or of the one block (null: problem.heads, or 2)"),
      spec::number("ffn_expansion", 3.0, 1, "e; the hidden width is floor(e C)")};
  for (ParamSpec& p : m.params)
    if (p.name == "input_size")
      p.min = 2;
    else if (p.name == "num_blocks" || p.name == "heads")
      p.min = 1;
  m.kinds = {ProblemKind::image};
  m.dtypes = {DType::f32};
  m.figures = {
      {"FLOPs", "256 x 256, 3 channels", "Restormer 174.7, DRSformer 242.9",
       "81.9 G (MACs, convolutions only) = 0.469x / 0.337x", "efficiency table"},
      {"params", "network", "Restormer 26.1 M, DRSformer 33.7 M", "22.3 M = 0.854x / 0.662x",
       "efficiency table"},
      {"params", "one shared GDD", "one per prompt block", "saves 0.02 M, +0.08 dB", "ablation"},
      {"PSNR / SSIM", "SPAD deraining", "Restormer 47.98, DRSformer 48.53", "48.99 / 0.9936", "main table"},
      {"PSNR", "AGAN raindrop", "Restormer 31.68, IDT 31.63", "31.96", "main table"},
      {"PSNR", "TIP-2018 demoire", "28.87", "29.25", "main table"},
      {"PSNR", "SPAD: without HPM / without LPM / plain dynamic convolution", "48.99",
       "48.77 / 48.89 / 48.52", "ablation"}};
  m.notes = {"Batch norm in evaluation mode (chosen).",
             "Published FLOPs are multiply-adds of convolutions alone; with everything the network takes "
             "91.19 GMAC. By that "
             "count Restormer takes 140.99 G, not the table's 174.7.",
             "With one key the softmax is 1 whatever q, k and temperature are; `dc` uses that. lpm_pool "
             "above 1 is an extension "
             "(chosen): a grid of pooled keys.",
             "lpm_mode dc folds bicubic resizing and mean into one weighted sum of the low band.",
             "Scopes gdd, hpm and lpm stop at `low` and `high`, at `y_h` and at `y_l`.",
             "A prompt's learned maps fix its resolution: other sizes have maps of that size.",
             "f32 only: spectra are gated by themselves and grow with R^4, beyond what f16 holds."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 2;
  m.example.grid = {16, 16};
  m.example.channels = 12;
  m.example_params = {{"base_dim", 8}, {"gdd_groups", 4}, {"input_size", 20}};
  return m;
}

const MethodInfo& fpro_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Sizes {
  std::string scope;
  int64_t batch = 1, c0 = 0, c = 0, r = 0, hs = 0, ws = 0;  ///< r: of the prompt block
  int64_t groups = 1, kernel = 3, window = 8, heads = 2, pool = 1;
  bool dc = false;
  std::vector<int64_t> blocks, block_heads;
  int64_t refinement = 1, grid_h = 0, grid_w = 0;  ///< grid: of the restoration block
  double expansion = 3;
  int64_t hidden(int64_t channels) const {
    return static_cast<int64_t>(static_cast<double>(channels) * expansion);
  }
};

// ---- costs of single calls
// ----------------------------------------------------------------------------------

Cost softmax_cost(int64_t n) {
  Cost c = copied(n);
  c.elementwise = 4 * n, c.special = n;
  return c;
}
Cost resize_cost(int64_t from, int64_t to, int64_t work) {
  Cost c = moved(4 * from, 4 * to);
  c.elementwise = work * to;
  return c;
}

class FproInstance final : public Instance {
 public:
  FproInstance(Context& ctx, const Sizes& s) : s_(s) {
    const auto input = [&](const char* name, const Shape& shape, const Init& init, const char* meaning) {
      input_specs_.push_back({name, shape, DType::f32, init, false, meaning});
    };
    const auto output = [&](const std::string& name, const Shape& shape) {
      outputs_[name] = ctx.allocate(DType::f32, shape, MemoryClass::output);
    };
    const int64_t b = s_.batch;
    const Shape shallow{b, s_.c0, s_.hs, s_.ws}, feature{b, s_.c, s_.r, s_.r};
    if (s_.scope == "network") {
      make_levels();
      input("x", {b, 3, s_.hs, s_.hs}, Init::uniform(0, 1), "image [B, 3, S, S]");
      conv_spec("patch_embed.proj", {s_.c0, 3, 3, 3});
      const auto level = [&](const std::string& at, const Level& l, int64_t blocks, bool attends) {
        for (int64_t i = 0; i < blocks; ++i)
          block_specs(at + "." + std::to_string(i) + ".", l.c, l.heads, attends);
      };
      for (size_t i = 0; i < 3; ++i)
        level("encoder_level" + std::to_string(i + 1), encoder_[i], s_.blocks[i], false);
      conv_spec("down1_2", {s_.c0 / 2, s_.c0, 3, 3});
      conv_spec("down2_3", {s_.c0, 2 * s_.c0, 3, 3});
      for (size_t i = 3; i-- > 0;)
        level("decoder_level" + std::to_string(i + 1), decoder_[i], s_.blocks[i], true);
      level("refinement", decoder_[0], s_.refinement, true);
      conv_spec("up3_2", {8 * s_.c0, 4 * s_.c0, 3, 3});
      conv_spec("up2_1", {4 * s_.c0, 2 * s_.c0, 3, 3});
      conv_spec("reduce_chan_level2", {2 * s_.c0, 4 * s_.c0, 1, 1});
      gdd_specs();
      for (const Prompt& p : prompts_) {
        prompt_specs(p, true, true);
        output(p.name.substr(0, p.name.size() - 1), {b, p.c, p.r, p.r});
      }
      conv_spec("output", {3, 2 * s_.c0, 3, 3});
      output("out", {b, 3, s_.hs, s_.hs});
      return;
    }
    if (s_.scope == "restoration_block") {
      const Shape x{b, s_.c, s_.grid_h, s_.grid_w};
      input("x", x, Init::normal(), "features [B, C, H, W]");
      block_specs("", s_.c, s_.block_heads[0], true);
      output("out", x);
      output("u", x);
      return;
    }
    input("s", shallow, Init::normal(), "shallow features [B, c0, Hs, Ws]");
    gdd_specs();
    output("low", shallow);
    if (s_.scope == "gdd") {
      output("high", shallow);
      return;
    }
    input("x", feature, Init::normal(), "decoder feature [B, C, R, R]");
    prompts_ = {{"", s_.c, s_.r}};
    const bool high = s_.scope != "lpm", low = s_.scope != "hpm";
    prompt_specs(prompts_[0], high, low);
    if (high) {
      output("h3", {b, s_.c0, s_.r, s_.r});
      output("y_h", feature);
    }
    if (low) output("y_l", s_.pool == 1 ? Shape{b, s_.c, 1, 1} : feature);
    if (high && low) output("out", feature);
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    tables_.clear();
    std::vector<int64_t> group;
    for (int64_t c = 0; c < s_.c0; ++c) group.push_back(c / (s_.c0 / s_.groups));
    if (s_.scope != "restoration_block") group_ = upload_index(ctx, group);
    for (const Prompt& p : prompts_) {
      if (!has_weight(p.name + "lpm.Plo")) continue;
      const Tensor& plo = weight(p.name + "lpm.Plo");
      if (s_.dc) {
        const Tensor gain = ctx.allocate(DType::f32, {s_.c0});
        transpose_copy(ctx, {plo.strided({s_.c0}, {plo.stride(1)}), gain});
        tables_[p.name + "dc"] = gain;
        tables_[p.name + "rows"] = upload(ctx, DType::f32, {1, s_.hs}, bicubic_mean(s_.hs, p.r));
        tables_[p.name + "columns"] = upload(ctx, DType::f32, {1, s_.ws}, bicubic_mean(s_.ws, p.r));
        continue;
      }
      // Columns of the half spectrum first: the inverse transform along them comes first.
      const Tensor turned = ctx.allocate(DType::f32, {1, s_.c0, p.r / 2 + 1, p.r, 2});
      transpose_copy(ctx, {plo.transpose(2, 3), turned});
      tables_[p.name + "Plo"] = turned;
      std::vector<int64_t> head;
      for (int64_t c = 0; c < p.c; ++c) head.push_back(c / (p.c / s_.heads));
      const Tensor row = ctx.allocate(DType::f32, {1, p.c, 1});
      gather_rows(
          ctx, {weight(p.name + "lpm.temperature").reshape({1, s_.heads, 1}), upload_index(ctx, head), row});
      tables_[p.name + "temperature"] = row.reshape({p.c});
    }
  }

  void run(Context& ctx) override {
    const int64_t b = s_.batch;
    if (s_.scope == "network") return network(ctx);
    if (s_.scope == "restoration_block") {
      const int64_t h = s_.grid_h, w = s_.grid_w;
      const Tensor x = tokens(ctx, input("x"));
      if (has_weight("mdta.qkv.weight")) attend_channels(ctx, "", x, h, w, s_.block_heads[0]);
      to_planes(ctx, x, outputs_.at("u"));
      feed_forward(ctx, "", x, h, w);
      to_planes(ctx, x, outputs_.at("out"));
      return;
    }
    const Tensor low = outputs_.at("low"), high = s_.scope == "gdd"   ? outputs_.at("high")
                                                  : s_.scope == "lpm" ? Tensor()
                                                                      : ctx.allocate_like(low);
    decouple(ctx, input("s"), low, high);
    if (s_.scope == "gdd") return;
    const Prompt& p = prompts_[0];
    const Tensor x = tokens(ctx, input("x"));
    Tensor y_h, y_l, out;
    if (s_.scope != "lpm") y_h = modulate_high(ctx, p, high, x, outputs_.at("h3"));
    if (y_h) to_planes(ctx, y_h, outputs_.at("y_h"));
    if (s_.scope != "hpm") y_l = modulate_low(ctx, p, low, x);
    if (y_l && (s_.dc || s_.pool > 1)) {
      if (s_.dc)
        transpose_copy(ctx, {y_l, outputs_.at("y_l").reshape({b, p.c})});
      else
        to_planes(ctx, y_l, outputs_.at("y_l"));
    } else if (y_l) {  // the same at every position
      transpose_copy(ctx, {y_l.select(1, 0), outputs_.at("y_l").reshape({b, p.c})});
    }
    if (s_.scope != "prompt_block") return;
    to_planes(ctx, fuse(ctx, p, y_h, y_l), outputs_.at("out"));
  }

  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t b = s_.batch;
    for (const TensorSpec& w : weight_specs_)
      if (!w.name.ends_with("running_mean") && !w.name.ends_with("running_var"))
        f.parameters += w.shape.numel();
    const int64_t taps = s_.groups * s_.kernel * s_.kernel,
                  filter = s_.c0 * taps + taps * taps + s_.kernel * s_.kernel * s_.c0 * s_.hs * s_.ws;
    if (s_.scope == "network") {
      f.cost = network_cost();
      f.published_macs = network_macs();
      f.published_macs_note = "multiply-adds of convolutions alone, as the published 81.9 G";
      return f;
    }
    if (s_.scope == "restoration_block") {
      const int64_t n = s_.grid_h * s_.grid_w, h = s_.block_heads[0], e = s_.hidden(s_.c);
      f.cost = attend_channels_cost(s_.c, n, h) + feed_forward_cost(s_.c, n) + copied(b * n * s_.c) * 3;
      f.published_macs =
          4 * s_.c * s_.c * n + 27 * s_.c * n + 2 * (s_.c * s_.c / h) * n + 3 * e * s_.c * n + 18 * e * n;
      f.published_macs_note = "multiply-adds of convolutions and channel attention";
      return f;
    }
    f.cost = decouple_cost(s_.scope != "lpm");
    f.published_macs = filter;
    f.published_macs_note = "multiply-adds of the decoupler";
    if (s_.scope == "gdd") return f;
    const Prompt& p = prompts_[0];
    const int64_t n = p.r * p.r, c = p.c, c0 = s_.c0, map = b * n * c, keys = s_.pool * s_.pool;
    f.cost += copied(map);
    f.published_macs = 0;
    f.published_macs_note = "multiply-adds without the decoupler and the transforms";
    if (s_.scope != "lpm") {
      f.cost += high_cost(p) + copied(map);
      f.published_macs += 17 * c0 * n + (2 * c * c + 2 * c0 * c) * n + 2 * s_.window * s_.window * c * n;
    }
    if (s_.scope != "hpm") {
      f.cost += low_cost(p) + copied(s_.pool == 1 ? b * c : map);
      f.published_macs +=
          s_.dc ? c0 * (s_.hs * s_.ws + s_.hs) + c0 * c0 + c0 * c + c * c
                : 4 * c0 * c0 * p.r * (p.r / 2 + 1) + 2 * c * c * n + 2 * c0 * c * keys + 2 * c * n * keys;
    }
    if (s_.scope != "prompt_block") return f;
    f.cost += fuse_cost(p) + copied(map);
    f.published_macs += s_.dc ? c * c * (n + 1) : 2 * c * c * n;
    return f;
  }

 private:
  /// A prompt block by the prefix of its weights, its channels and its resolution.
  struct Prompt {
    std::string name;
    int64_t c, r;
  };
  struct Level {
    int64_t c, r, heads;
  };

  void make_levels() {
    const int64_t c0 = s_.c0, s = s_.hs;
    encoder_ = {
        {c0, s, s_.block_heads[0]}, {2 * c0, s / 2, s_.block_heads[1]}, {4 * c0, s / 4, s_.block_heads[2]}};
    decoder_ = encoder_;
    decoder_[0].c = 2 * c0;  // the skip is kept beside the feature
    prompts_ = {{"prompt_d3.", 4 * c0, s / 4},
                {"prompt_d2.", 2 * c0, s / 2},
                {"prompt_d1.", 2 * c0, s},
                {"prompt_r.", 2 * c0, s}};
  }

  // ---- weights
  // ------------------------------------------------------------------------------------------------

  void spec(const std::string& name, const Shape& shape, const Init& init) {
    weight_specs_.push_back({name, shape, DType::f32, init, false, ""});
  }
  void conv_spec(const std::string& name, const Shape& shape, bool bias = false) {
    const double bound = 1 / std::sqrt(static_cast<double>(shape.numel() / shape[0]));
    spec(name + ".weight", shape, Init::uniform(-bound, bound));
    if (bias) spec(name + ".bias", {shape[0]}, Init::uniform(-bound, bound));
  }
  void norm_spec(const std::string& name, int64_t c) {
    spec(name + ".weight", {c}, Init::constant(1));
    spec(name + ".bias", {c}, Init::constant(0));
  }
  void gdd_specs() {
    const int64_t taps = s_.groups * s_.kernel * s_.kernel;
    spec("gdd.conv.weight", {taps, s_.c0, 1, 1}, Init::normal(0, std::sqrt(2.0 / static_cast<double>(taps))));
    conv_spec("gdd.gate", {taps, taps, 1, 1});
    norm_spec("gdd.bn", taps);
    spec("gdd.bn.running_mean", {taps}, Init::constant(0));
    spec("gdd.bn.running_var", {taps}, Init::constant(1));
  }
  void prompt_specs(const Prompt& p, bool high, bool low) {
    const int64_t c0 = s_.c0, c = p.c, r = p.r;
    if (high) {
      conv_spec(p.name + "hpm.dw1x3", {c0, 1, 1, 3}, true);
      conv_spec(p.name + "hpm.dw3x1", {c0, 1, 3, 1}, true);
      spec(p.name + "hpm.Phi", {1, c0, r, r}, Init::normal(0, 0.02));
      conv_spec(p.name + "hpm.kv_dw", {c0, 1, 3, 3});
      conv_spec(p.name + "hpm.q", {c, c}, true);
      conv_spec(p.name + "hpm.kv", {2 * c, c0}, true);
      conv_spec(p.name + "hpm.out", {c, c}, true);
    }
    if (low) {
      conv_spec(p.name + "lpm.gate_conv", {2 * c0, 2 * c0, 1, 1}, true);
      spec(p.name + "lpm.Plo", {1, c0, r, r / 2 + 1, 2}, Init::normal(0, 0.02));
      conv_spec(p.name + "lpm.q", {c, c, 1, 1});
      conv_spec(p.name + "lpm.kv", {2 * c, c0, 1, 1});
      conv_spec(p.name + "lpm.out", {c, c, 1, 1});
      spec(p.name + "lpm.temperature", {s_.heads, 1, 1}, Init::constant(1));
    }
    if (high && low) conv_spec(p.name + "fuse", {c, 2 * c, 1, 1}, true);
  }
  void block_specs(const std::string& at, int64_t c, int64_t heads, bool attends) {
    const int64_t e = s_.hidden(c);
    if (attends) {
      norm_spec(at + "ln1", c);
      conv_spec(at + "mdta.qkv", {3 * c, c, 1, 1});
      conv_spec(at + "mdta.qkv_dw", {3 * c, 1, 3, 3});
      spec(at + "mdta.temperature", {heads, 1, 1}, Init::constant(1));
      conv_spec(at + "mdta.out", {c, c, 1, 1});
    }
    norm_spec(at + "ln2", c);
    conv_spec(at + "gdfn.in", {2 * e, c, 1, 1});
    conv_spec(at + "gdfn.dw", {2 * e, 1, 3, 3});
    conv_spec(at + "gdfn.out", {c, e, 1, 1});
  }

  // ---- pieces
  // -------------------------------------------------------------------------------------------------

  /// The weight of a linear layer or of a 1 x 1 convolution as [out, in].
  Tensor matrix(const std::string& name) const {
    const Tensor& w = weight(name + ".weight");
    return w.reshape({w.dim(0), w.dim(1)});
  }
  Tensor bias(const std::string& name) const {
    return has_weight(name + ".bias") ? weight(name + ".bias") : Tensor();
  }
  Tensor make(Context& ctx, const Shape& shape) const { return ctx.allocate(DType::f32, shape); }
  void convolve(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y, bool channels_last,
                bool depthwise) const {
    Conv2dArgs a;
    a.x = x, a.weight = weight(name + ".weight"), a.bias = bias(name), a.y = y;
    a.channels_last = channels_last;
    a.groups = depthwise ? a.weight.dim(0) : 1;
    const int64_t up = a.weight.dim(2) / 2, left = a.weight.dim(3) / 2;
    a.pad = {up, up, left, left};
    conv2d(ctx, a);
  }
  /// [B, C, H, W] -> [B, H W, C], and back.
  Tensor tokens(Context& ctx, const Tensor& planes) const {
    const int64_t n = planes.dim(2) * planes.dim(3);
    const Tensor y = make(ctx, {planes.dim(0), n, planes.dim(1)});
    transpose_copy(ctx, {planes.reshape({planes.dim(0), planes.dim(1), n}).transpose(1, 2), y});
    return y;
  }
  static void to_planes(Context& ctx, const Tensor& x, const Tensor& planes) {
    transpose_copy(ctx, {x.transpose(1, 2), planes.reshape({x.dim(0), x.dim(2), x.dim(1)})});
  }
  static void layer_norm(Context& ctx, const Tensor& x, const Tensor& y, const Tensor& gain,
                         const Tensor& offset) {
    NormArgs a;
    a.x = x, a.y = y, a.gain = gain, a.offset = offset, a.eps = kEps;
    normalize(ctx, a);
  }

  /// Splits s into low and, where wanted, high.
  void decouple(Context& ctx, const Tensor& s, const Tensor& low, const Tensor& high) const {
    const auto stage = ctx.stage("decouple");
    const int64_t b = s_.batch, k = s_.kernel, taps = s_.groups * k * k;
    const Tensor mean = make(ctx, {b, s_.c0}), f = make(ctx, {b, taps}), gate = make(ctx, {b, taps}),
                 filter = make(ctx, {b, s_.c0, k * k});
    ReduceAxisArgs r;
    r.op = ReduceAxisArgs::Op::mean, r.x = s.reshape({b, s_.c0, s_.hs * s_.ws}), r.y = mean, r.axis = 2;
    reduce_axis(ctx, r);
    product(ctx, mean, matrix("gdd.conv"), f, true);
    product(ctx, f, matrix("gdd.gate"), gate, true);
    call(ctx, Op::sigmoid_mul, gate, f, f);
    GroupNormArgs g;
    g.x = g.y = f;
    g.gain = weight("gdd.bn.weight"), g.offset = weight("gdd.bn.bias");
    g.mean = weight("gdd.bn.running_mean"), g.variance = weight("gdd.bn.running_var"), g.eps = kEps;
    group_norm(ctx, g);
    const Tensor by_group = f.reshape({b, s_.groups, k * k});
    softmax(ctx, {by_group, by_group});
    gather_rows(ctx, {by_group, group_, filter});
    // Images have filters of their own: their channels stand side by side.
    Conv2dArgs a;
    a.x = s.reshape({1, b * s_.c0, s_.hs, s_.ws}), a.y = low.reshape({1, b * s_.c0, s_.hs, s_.ws});
    a.weight = filter.reshape({b * s_.c0, 1, k, k});
    a.channels_last = false;
    a.groups = b * s_.c0;
    a.pad = {k / 2, k / 2, k / 2, k / 2};
    a.border = Border::reflect;
    conv2d(ctx, a);
    if (high) call(ctx, Op::sub, s, low, high);
  }
  Cost decouple_cost(bool high) const {
    const int64_t b = s_.batch, k2 = s_.kernel * s_.kernel, taps = s_.groups * k2,
                  map = b * s_.c0 * s_.hs * s_.ws;
    Cost mean = moved(4 * map, 4 * b * s_.c0), norm = moved(4 * (b * taps + 4 * taps), 4 * b * taps);
    mean.elementwise = map;
    norm.elementwise = 2 * b * taps, norm.special = 2 * taps;
    Cost c = mean + product_cost(1, b, taps, s_.c0, taps * s_.c0) +
             product_cost(1, b, taps, taps, taps * taps) + pointwise_cost(b * taps, b * taps, true) + norm +
             softmax_cost(b * taps);
    c += moved(4 * (b * s_.c0 * k2 + s_.c0), 4 * b * s_.c0 * k2) + conv_cost(map, b * s_.c0 * k2, 0, map, k2);
    return high ? c + pointwise_cost(map, map, false) : c;
  }

  /// x [B, n, C] in raster order -> y_h, likewise.
  Tensor modulate_high(Context& ctx, const Prompt& p, const Tensor& high, const Tensor& x, Tensor h3) const {
    const int64_t b = s_.batch, r = p.r, n = r * r, c = p.c, c0 = s_.c0, w = s_.window, side = r / w,
                  d = c / s_.heads;
    const Shape planes{b, c0, r, r};
    {
      const auto stage = ctx.stage("high_prompt");
      Tensor h1 = high;
      if (!(high.shape() == planes)) {
        h1 = make(ctx, planes);
        resize(ctx, {ResampleArgs::Kind::bilinear, high, h1, false});
      }
      const Tensor t = make(ctx, planes), gate = make(ctx, planes);
      if (!h3) h3 = make(ctx, planes);
      convolve(ctx, p.name + "hpm.dw1x3", h1, t, false, true);
      convolve(ctx, p.name + "hpm.dw3x1", t, gate, false, true);
      call(ctx, Op::gelu_mul, gate, h1, gate);
      call(ctx, Op::mul, gate, weight(p.name + "hpm.Phi"), h3);
    }
    const auto stage = ctx.stage("high_attention");
    const Tensor keys = make(ctx, planes), key_rows = make(ctx, {b, side, side, w, w, c0}),
                 x_rows = make(ctx, {b, side, side, w, w, c}), q = make(ctx, {b * n, c}),
                 kv = make(ctx, {b * n, 2 * c}), o = make(ctx, {b * n, c}), y = make(ctx, {b, n, c});
    convolve(ctx, p.name + "hpm.kv_dw", h3, keys, false, true);
    transpose_copy(ctx, {keys.reshape({b, c0, side, w, side, w}).permute({0, 2, 4, 3, 5, 1}), key_rows});
    transpose_copy(ctx, {x.reshape({b, side, w, side, w, c}).permute({0, 1, 3, 2, 4, 5}), x_rows});
    product(ctx, x_rows.reshape({b * n, c}), matrix(p.name + "hpm.q"), q, true, bias(p.name + "hpm.q"));
    product(ctx, key_rows.reshape({b * n, c0}), matrix(p.name + "hpm.kv"), kv, true, bias(p.name + "hpm.kv"));
    const auto heads = [&](const Tensor& rows, int64_t part, int64_t parts) {
      return rows.strided({b * side * side, s_.heads, w * w, d}, {w * w * parts * c, d, parts * c, 1},
                          part * c);
    };
    AttentionArgs a;
    a.q = heads(q, 0, 1), a.k = heads(kv, 0, 2), a.v = heads(kv, 1, 2), a.o = heads(o, 0, 1);
    a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
    attention(ctx, a);
    product(ctx, o, matrix(p.name + "hpm.out"), q, true, bias(p.name + "hpm.out"));
    transpose_copy(ctx, {q.reshape({b, side, side, w, w, c}).permute({0, 1, 3, 2, 4, 5}),
                         y.reshape({b, side, w, side, w, c})});
    return y;
  }
  Cost high_cost(const Prompt& p) const {
    const int64_t b = s_.batch, n = p.r * p.r, c = p.c, c0 = s_.c0, map = b * c0 * n, rows = b * n,
                  area = s_.window * s_.window;
    Cost f;
    if (s_.hs != p.r || s_.ws != p.r) f += resize_cost(b * c0 * s_.hs * s_.ws, map, 7);
    f += conv_cost(map, 3 * c0, c0, map, 3) * 2 + pointwise_cost(map, map, true) +
         pointwise_cost(map, c0 * n, false);
    f += conv_cost(map, 9 * c0, 0, map, 9) + copied(map) + copied(rows * c) * 2;
    f += product_cost(1, rows, c, c, c * c, true) * 2 + product_cost(1, rows, 2 * c, c0, 2 * c * c0, true);
    return f + vision::attend_cost(rows / area, s_.heads, area, area, c / s_.heads, DType::f32);
  }

  /// y_l [B, n, C], or [B, C] in dc mode.
  Tensor modulate_low(Context& ctx, const Prompt& p, const Tensor& low, const Tensor& x) const {
    const int64_t b = s_.batch, r = p.r, n = r * r, c = p.c, c0 = s_.c0, bins = r / 2 + 1,
                  keys = s_.pool * s_.pool, d = c / s_.heads;
    const std::string at = p.name + "lpm.";
    if (s_.dc) {
      const auto stage = ctx.stage("low_dc");
      // mean(l1) R^2: along rows, then along columns.
      const Tensor by_row = make(ctx, {b, c0, s_.hs}), m = make(ctx, {b, c0}), gate = make(ctx, {b, c0}),
                   v = make(ctx, {b, c}), y = make(ctx, {b, c});
      product(ctx, low.reshape({b * c0 * s_.hs, s_.ws}), tables_.at(p.name + "columns"),
              by_row.reshape({b * c0 * s_.hs, 1}), true);
      product(ctx, by_row.reshape({b * c0, s_.hs}), tables_.at(p.name + "rows"), m.reshape({b * c0, 1}),
              true);
      call(ctx, Op::affine, m, {}, m, static_cast<float>(n));
      product(ctx, m, matrix(at + "gate_conv").slice(0, 0, c0).slice(1, 0, c0), gate, true,
              weight(at + "gate_conv.bias").slice(0, 0, c0));
      call(ctx, Op::gelu_mul, gate, m, gate);
      call(ctx, Op::mul, gate, tables_.at(p.name + "dc"), gate);
      call(ctx, Op::affine, gate, {}, gate, 1 / static_cast<float>(n));
      product(ctx, gate, matrix(at + "kv").slice(0, c, 2 * c), v, true);
      product(ctx, v, matrix(at + "out"), y, true);
      return y;
    }
    Tensor pooled;
    {
      const auto stage = ctx.stage("low_prompt");
      const Shape planes{b, c0, r, r};
      Tensor l1 = low;
      if (!(low.shape() == planes)) {
        l1 = make(ctx, planes);
        resize(ctx, {ResampleArgs::Kind::bicubic, low, l1, false});
      }
      const Tensor spectrum = make(ctx, {b, c0, r, bins, 2}), u = make(ctx, {b, r, bins, 2, c0}),
                   gate = make(ctx, {b, r, bins, 2, c0}), turned = make(ctx, {b, c0, bins, r, 2}),
                   l3 = make(ctx, planes);
      fft2(ctx, {Fft2Args::Kind::real_to_half, l1, spectrum, r, r, 1.0f});
      transpose_copy(ctx, {spectrum.permute({0, 2, 3, 4, 1}), u});
      const Shape rows{b * r * bins, 2 * c0};
      product(ctx, u.reshape(rows), matrix(at + "gate_conv"), gate.reshape(rows), true,
              bias(at + "gate_conv"));
      call(ctx, Op::gelu_mul, gate, u, gate);
      transpose_copy(ctx, {gate.permute({0, 4, 2, 1, 3}), turned});
      ComplexArgs multiply;
      multiply.a = multiply.y = turned;
      multiply.b = tables_.at(p.name + "Plo");
      complex_pointwise(ctx, multiply);
      // One axis at a time: the product is no real image's spectrum, and libraries disagree on such in two
      // dimensions.
      fft1(ctx, {Fft1Args::Kind::complex_inverse, turned, turned, r, 1.0f});
      transpose_copy(ctx, {turned.transpose(2, 3), spectrum});
      fft1(ctx, {Fft1Args::Kind::half_to_real, spectrum, l3, r, 1 / static_cast<float>(n)});
      const Tensor cells = make(ctx, {b, c0, s_.pool, s_.pool});
      Pool2dArgs pool;
      pool.kind = Pool2dArgs::Kind::average;
      pool.x = l3, pool.y = cells, pool.channels_last = false, pool.adaptive = true;
      pool2d(ctx, pool);
      pooled = tokens(ctx, cells);
    }
    const auto stage = ctx.stage("low_attention");
    const Tensor q = make(ctx, {b, n, c}), kv = make(ctx, {b, keys, 2 * c}), o = make(ctx, {b, n, c});
    product(ctx, x.reshape({b * n, c}), matrix(at + "q"), q.reshape({b * n, c}), true);
    product(ctx, pooled.reshape({b * keys, c0}), matrix(at + "kv"), kv.reshape({b * keys, 2 * c}), true);
    const Tensor k = kv.slice(2, 0, c);
    call(ctx, Op::mul, k, tables_.at(p.name + "temperature"), k);
    const auto heads = [&](const Tensor& t, int64_t rows, int64_t part, int64_t parts) {
      return t.strided({b, s_.heads, rows, d}, {rows * parts * c, d, parts * c, 1}, part * c);
    };
    AttentionArgs a;
    a.q = heads(q, n, 0, 1), a.k = heads(kv, keys, 0, 2), a.v = heads(kv, keys, 1, 2),
    a.o = heads(o, n, 0, 1);
    attention(ctx, a);
    product(ctx, o.reshape({b * n, c}), matrix(at + "out"), q.reshape({b * n, c}), true);
    return q;
  }
  Cost low_cost(const Prompt& p) const {
    const int64_t b = s_.batch, r = p.r, n = r * r, c = p.c, c0 = s_.c0, bins = r / 2 + 1,
                  shallow = b * c0 * s_.hs * s_.ws, lines = b * c0, keys = s_.pool * s_.pool;
    if (s_.dc)
      return product_cost(1, lines * s_.hs, 1, s_.ws, s_.ws) + product_cost(1, lines, 1, s_.hs, s_.hs) +
             pointwise_cost(lines, 0, false) * 2 + product_cost(1, b, c0, c0, c0 * c0, true) +
             pointwise_cost(lines, lines, true) + pointwise_cost(lines, c0, false) +
             product_cost(1, b, c, c0, c * c0) + product_cost(1, b, c, c, c * c);
    const int64_t map = lines * n, cells = lines * r * bins;
    Cost f;
    if (s_.hs != r || s_.ws != r) f += resize_cost(shallow, map, 32);  // 4 x 4 taps
    Cost forward = moved(4 * map, 8 * cells), columns = moved(8 * cells, 8 * cells),
         rows = moved(8 * cells, 4 * map);
    forward.matmul = fft2_flops(Fft2Args::Kind::real_to_half, lines, r, r);
    columns.matmul = fft1_flops(Fft1Args::Kind::complex_inverse, lines * bins, r);
    rows.matmul = fft1_flops(Fft1Args::Kind::half_to_real, lines * r, r);
    f += forward + columns + rows + copied(2 * cells) * 3;
    f += product_cost(1, b * r * bins, 2 * c0, 2 * c0, 4 * c0 * c0, true) +
         pointwise_cost(2 * cells, 2 * cells, true);
    f += complex_pointwise_cost(ComplexArgs::Op::multiply, cells) +
         moved(8 * (cells + c0 * r * bins), 8 * cells);
    int64_t reads = 0;
    for (int64_t i = 0; i < s_.pool; ++i) reads += ((i + 1) * r + s_.pool - 1) / s_.pool - i * r / s_.pool;
    Cost pool = moved(4 * map, 4 * lines * keys);
    pool.elementwise = lines * (reads * reads + keys);
    f += pool + copied(lines * keys);
    f += product_cost(1, b * n, c, c, c * c) * 2 + product_cost(1, b * keys, 2 * c, c0, 2 * c * c0) +
         pointwise_cost(b * keys * c, c, false);
    return f + vision::attend_cost(b, s_.heads, n, keys, c / s_.heads, DType::f32);
  }

  /// The residual [B, n, C].
  Tensor fuse(Context& ctx, const Prompt& p, const Tensor& y_h, const Tensor& y_l) const {
    const auto stage = ctx.stage("fuse");
    const int64_t b = s_.batch, n = p.r * p.r, c = p.c;
    const Tensor w = matrix(p.name + "fuse"), out = make(ctx, {b, n, c}), rows = out.reshape({b * n, c});
    const Tensor &offset = weight(p.name + "fuse.bias"), from_high = w.slice(1, 0, c),
                 from_low = w.slice(1, c, 2 * c);
    if (s_.dc) {
      const Tensor shift = make(ctx, {b, c});
      product(ctx, y_l, from_low, shift, true, offset);
      product(ctx, y_h.reshape({b * n, c}), from_high, rows, true);
      call(ctx, Op::add, out, shift.reshape({b, 1, c}), out);
    } else {
      product(ctx, y_h.reshape({b * n, c}), from_high, rows, true, offset);
      product(ctx, y_l.reshape({b * n, c}), from_low, rows, true, {}, Activation::none, true);
    }
    return out;
  }
  Cost fuse_cost(const Prompt& p) const {
    const int64_t b = s_.batch, rows = b * p.r * p.r, c = p.c;
    if (s_.dc)
      return product_cost(1, b, c, c, c * c, true) + product_cost(1, rows, c, c, c * c) +
             pointwise_cost(rows * c, b * c, false);
    return product_cost(1, rows, c, c, c * c, true) + product_cost(1, rows, c, c, c * c, false, false, true);
  }

  /// x [B, n, C] += MDTA(LN(x)).
  void attend_channels(Context& ctx, const std::string& at, const Tensor& x, int64_t h, int64_t w,
                       int64_t heads) const {
    const auto stage = ctx.stage("channel_attention");
    const int64_t b = s_.batch, n = h * w, c = x.dim(2), d = c / heads;
    const Tensor normed = make(ctx, {b, n, c}), mixed = make(ctx, {b, n, 3 * c}),
                 qkv = make(ctx, {b, n, 3 * c}), norms = make(ctx, {b, 3 * c}),
                 scores = make(ctx, {b, heads, d, d});
    layer_norm(ctx, x, normed, weight(at + "ln1.weight"), weight(at + "ln1.bias"));
    product(ctx, normed.reshape({b * n, c}), matrix(at + "mdta.qkv"), mixed.reshape({b * n, 3 * c}), true);
    convolve(ctx, at + "mdta.qkv_dw", mixed.reshape({b, h, w, 3 * c}), qkv.reshape({b, h, w, 3 * c}), true,
             true);
    ReduceAxisArgs r;
    r.op = ReduceAxisArgs::Op::norm, r.x = qkv, r.y = norms, r.axis = 1;
    reduce_axis(ctx, r);
    call(ctx, Op::clamp, norms, {}, norms, kNormEps, FLT_MAX);
    const auto part = [&](int64_t i) {
      return qkv.strided({b, heads, n, d}, {n * 3 * c, d, 3 * c, 1}, i * c);
    };
    GemmArgs g;
    g.a = part(0), g.b = part(1), g.c = scores, g.a_transposed = true;
    gemm(ctx, g);
    call(ctx, Op::div, scores, norms.strided({b, heads, d, 1}, {3 * c, d, 1, 1}), scores);
    call(ctx, Op::div, scores, norms.strided({b, heads, 1, d}, {3 * c, d, d, 1}, c), scores);
    call(ctx, Op::mul, scores, weight(at + "mdta.temperature").reshape({1, heads, 1, 1}), scores);
    softmax(ctx, {scores, scores});
    GemmArgs mix;
    mix.a = part(2), mix.b = scores, mix.b_transposed = true;
    mix.c = normed.strided({b, heads, n, d}, {n * c, d, c, 1});
    gemm(ctx, mix);
    product(ctx, normed.reshape({b * n, c}), matrix(at + "mdta.out"), x.reshape({b * n, c}), true, {},
            Activation::none, true);
  }
  Cost attend_channels_cost(int64_t c, int64_t n, int64_t heads) const {
    const int64_t b = s_.batch, rows = b * n, d = c / heads, pairs = b * heads * d * d;
    Cost norms = moved(12 * rows * c, 12 * b * c);
    norms.elementwise = 6 * rows * c, norms.special = 3 * b * c;
    Cost f = vision::layer_norm_cost(rows, c, DType::f32) + product_cost(1, rows, 3 * c, c, 3 * c * c) +
             conv_cost(3 * rows * c, 27 * c, 0, 3 * rows * c, 9) + norms +
             pointwise_cost(3 * b * c, 0, false);
    f += product_cost(b * heads, d, d, n, rows * c) + pointwise_cost(pairs, b * c, true) * 2 +
         pointwise_cost(pairs, heads, false) + softmax_cost(pairs);
    return f + product_cost(b * heads, n, d, d, pairs) +
           product_cost(1, rows, c, c, c * c, false, false, true);
  }

  /// x [B, n, C] += GDFN(LN(x)).
  void feed_forward(Context& ctx, const std::string& at, const Tensor& x, int64_t h, int64_t w) const {
    const auto stage = ctx.stage("feed_forward");
    const int64_t b = s_.batch, n = h * w, c = x.dim(2), e = s_.hidden(c);
    const Tensor normed = make(ctx, {b, n, c}), wide = make(ctx, {b, h, w, 2 * e}),
                 mixed = make(ctx, {b, h, w, 2 * e}), gated = make(ctx, {b * n, e});
    layer_norm(ctx, x, normed, weight(at + "ln2.weight"), weight(at + "ln2.bias"));
    product(ctx, normed.reshape({b * n, c}), matrix(at + "gdfn.in"), wide.reshape({b * n, 2 * e}), true);
    convolve(ctx, at + "gdfn.dw", wide, mixed, true, true);
    const Tensor rows = mixed.reshape({b * n, 2 * e});
    call(ctx, Op::gelu_mul, rows.slice(1, 0, e), rows.slice(1, e, 2 * e), gated);
    product(ctx, gated, matrix(at + "gdfn.out"), x.reshape({b * n, c}), true, {}, Activation::none, true);
  }
  Cost feed_forward_cost(int64_t c, int64_t n) const {
    const int64_t rows = s_.batch * n, e = s_.hidden(c);
    return vision::layer_norm_cost(rows, c, DType::f32) + product_cost(1, rows, 2 * e, c, 2 * e * c) +
           conv_cost(2 * rows * e, 18 * e, 0, 2 * rows * e, 9) + pointwise_cost(rows * e, rows * e, true) +
           product_cost(1, rows, c, e, c * e, false, false, true);
  }

  // ---- network
  // ------------------------------------------------------------------------------------------------

  void network(Context& ctx) const {
    const int64_t b = s_.batch, s = s_.hs, c0 = s_.c0;
    const Tensor shallow = make(ctx, {b, c0, s, s}), low = make(ctx, {b, c0, s, s}),
                 high = make(ctx, {b, c0, s, s});
    const auto blocks = [&](const std::string& at, const Level& l, int64_t count, bool attends,
                            const Tensor& x) {
      for (int64_t i = 0; i < count; ++i) {
        const std::string name = at + "." + std::to_string(i) + ".";
        if (attends) attend_channels(ctx, name, x, l.r, l.r, l.heads);
        feed_forward(ctx, name, x, l.r, l.r);
      }
    };
    {
      const auto stage = ctx.stage("embed");
      convolve(ctx, "patch_embed.proj", input("x"), shallow, false, false);
    }
    std::vector<Tensor> skip{tokens(ctx, shallow)};
    for (size_t i = 0;; ++i) {
      blocks("encoder_level" + std::to_string(i + 1), encoder_[i], s_.blocks[i], false, skip[i]);
      if (i == 2) break;
      const auto stage = ctx.stage("down");
      const int64_t c = encoder_[i].c, r = encoder_[i].r;
      const Tensor y = make(ctx, {b, r, r, c / 2}), next = make(ctx, {b, r * r / 4, 2 * c});
      convolve(ctx, i == 0 ? "down1_2" : "down2_3", skip[i].reshape({b, r, r, c}), y, true, false);
      transpose_copy(ctx, {y.reshape({b, r / 2, 2, r / 2, 2, c / 2}).permute({0, 1, 3, 5, 2, 4}),
                           next.reshape({b, r / 2, r / 2, c / 2, 2, 2})});
      skip.push_back(next);
    }
    decouple(ctx, shallow, low, high);
    Tensor x = skip[2];
    for (size_t i = 3; i-- > 0;) {
      if (i < 2) {
        const auto stage = ctx.stage("up");
        const int64_t c = decoder_[i + 1].c, r = decoder_[i + 1].r, kept = encoder_[i].c,
                      width = c / 2 + kept;
        const Tensor y = make(ctx, {b, r, r, 2 * c}), joined = make(ctx, {b, 2 * r, 2 * r, width});
        convolve(ctx, i == 1 ? "up3_2" : "up2_1", x.reshape({b, r, r, c}), y, true, false);
        transpose_copy(ctx, {y.reshape({b, r, r, c / 2, 2, 2}).permute({0, 1, 4, 2, 5, 3}),
                             joined.reshape({b, r, 2, r, 2, width}).slice(5, 0, c / 2)});
        transpose_copy(ctx, {skip[i].reshape({b, 2 * r, 2 * r, kept}), joined.slice(3, c / 2, width)});
        x = joined.reshape({b, 4 * r * r, width});
        if (i == 1) {
          const Tensor reduced = make(ctx, {b, 4 * r * r, decoder_[1].c});
          product(ctx, x.reshape({b * 4 * r * r, width}), matrix("reduce_chan_level2"),
                  reduced.reshape({b * 4 * r * r, decoder_[1].c}), true);
          x = reduced;
        }
      }
      blocks("decoder_level" + std::to_string(i + 1), decoder_[i], s_.blocks[i], true, x);
      prompt(ctx, prompts_[2 - i], low, high, x);
    }
    blocks("refinement", decoder_[0], s_.refinement, true, x);
    prompt(ctx, prompts_[3], low, high, x);
    const auto stage = ctx.stage("output");
    const Tensor y = make(ctx, {b, s, s, 3});
    convolve(ctx, "output", x.reshape({b, s, s, 2 * c0}), y, true, false);
    to_planes(ctx, y.reshape({b, s * s, 3}), outputs_.at("out"));
    call(ctx, Op::add, outputs_.at("out"), input("x"), outputs_.at("out"));
  }
  void prompt(Context& ctx, const Prompt& p, const Tensor& low, const Tensor& high, const Tensor& x) const {
    const Tensor y_h = modulate_high(ctx, p, high, x, {}), y_l = modulate_low(ctx, p, low, x),
                 out = fuse(ctx, p, y_h, y_l);
    to_planes(ctx, out, outputs_.at(p.name.substr(0, p.name.size() - 1)));
    call(ctx, Op::add, x, out, x);
  }

  Cost network_cost() const {
    const int64_t b = s_.batch, s = s_.hs, c0 = s_.c0, n = s * s;
    const auto dense = [&](int64_t pixels, int64_t in, int64_t out) {
      return conv_cost(b * pixels * in, 9 * in * out, 0, b * pixels * out, 9 * in);
    };
    Cost f = dense(n, 3, c0) + copied(b * n * c0) + decouple_cost(true);
    for (size_t i = 0; i < 3; ++i) {
      const Level &e = encoder_[i], &d = decoder_[i];
      f += feed_forward_cost(e.c, e.r * e.r) * s_.blocks[i];
      f += (attend_channels_cost(d.c, d.r * d.r, d.heads) + feed_forward_cost(d.c, d.r * d.r)) *
           (s_.blocks[i] + (i == 0 ? s_.refinement : 0));
      if (i == 2) continue;
      const int64_t pixels = e.r * e.r, below = decoder_[i + 1].c;
      f += dense(pixels, e.c, e.c / 2) + copied(b * pixels * e.c / 2);
      f += dense(pixels / 4, below, 2 * below) + copied(b * pixels * below / 2) + copied(b * pixels * e.c);
    }
    f += product_cost(1, b * n / 4, 2 * c0, 4 * c0, 8 * c0 * c0);
    for (const Prompt& p : prompts_) {
      const int64_t map = b * p.r * p.r * p.c;
      f += high_cost(p) + low_cost(p) + fuse_cost(p) + copied(map) + pointwise_cost(map, map, false);
    }
    return f + dense(n, 2 * c0, 3) + copied(3 * b * n) + pointwise_cost(3 * b * n, 3 * b * n, false);
  }
  /// Of convolutions alone, one image.
  int64_t network_macs() const {
    const int64_t c0 = s_.c0, n = s_.hs * s_.hs, taps = s_.groups * s_.kernel * s_.kernel;
    int64_t f = 27 * c0 * n + taps * c0 + taps * taps + 27 * 2 * c0 * n + n / 4 * 8 * c0 * c0;
    for (size_t i = 0; i < 3; ++i) {
      const Level &e = encoder_[i], &d = decoder_[i];
      const auto forward = [&](const Level& l) {
        return l.r * l.r * (3 * s_.hidden(l.c) * l.c + 18 * s_.hidden(l.c));
      };
      f += forward(e) * s_.blocks[i];
      f += (forward(d) + d.r * d.r * (4 * d.c * d.c + 27 * d.c)) *
           (s_.blocks[i] + (i == 0 ? s_.refinement : 0));
      if (i == 2) continue;
      const int64_t below = decoder_[i + 1].c;
      f += e.r * e.r * 9 * e.c * e.c / 2 + e.r * e.r / 4 * 18 * below * below;
    }
    for (const Prompt& p : prompts_) {
      const int64_t m = p.r * p.r, c = p.c, keys = s_.pool * s_.pool;
      f += 15 * c0 * m;
      f += s_.dc ? c0 * c0 + c0 * c + c * c + c * c * (m + 1)
                 : 4 * c0 * c0 * p.r * (p.r / 2 + 1) + 4 * c * c * m + 2 * c0 * c * keys;
    }
    return f;
  }

  /// Weights of n positions in the mean of their bicubic resizing to m (a = -0.75, edges clamped).
  static std::vector<double> bicubic_mean(int64_t n, int64_t m) {
    std::vector<double> w(static_cast<size_t>(n), 0.0);
    constexpr double a = -0.75;
    for (int64_t i = 0; i < m; ++i) {
      const double u = (static_cast<double>(i) + 0.5) * static_cast<double>(n) / static_cast<double>(m) - 0.5;
      const auto base = static_cast<int64_t>(std::floor(u));
      for (int64_t t = base - 1; t <= base + 2; ++t) {
        const double x = std::abs(u - static_cast<double>(t));
        const double k = x <= 1  ? ((a + 2) * x - (a + 3)) * x * x + 1
                         : x < 2 ? a * (((x - 5) * x + 8) * x - 4)
                                 : 0.0;
        w[static_cast<size_t>(std::clamp<int64_t>(t, 0, n - 1))] += k / static_cast<double>(m);
      }
    }
    return w;
  }

  Sizes s_;
  std::vector<Level> encoder_, decoder_;
  std::vector<Prompt> prompts_;
  TensorMap outputs_, tables_;
  Tensor group_;
};

class Fpro final : public Method {
 public:
  const MethodInfo& info() const override { return fpro_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("fpro has no causal mode: an image has no order of its pixels");
    const auto fail = [](const std::string& name, const std::string& why) {
      throw UsageError("fpro." + name + ": " + why);
    };
    Sizes s;
    s.scope = p.choice("scope");
    s.batch = problem.batch;
    s.c0 = p.integer("base_dim");
    const bool network = s.scope == "network", block = s.scope == "restoration_block";
    const auto own = [&](const char* name, int64_t given, int64_t standard) {
      if (p.is_null(name)) return given > 0 ? given : standard;
      if (given > 0 && !network && given != p.integer(name))
        fail(name, std::to_string(p.integer(name)) + " is not the problem's " + std::to_string(given));
      return p.integer(name);
    };
    if (!problem.grid.empty() && problem.grid.size() != 2)
      throw UsageError("fpro: problem.grid has two axes, [R, R]");
    s.c = own("dim", problem.channels, 96);
    if (block) {
      s.grid_h = !problem.grid.empty() ? problem.grid[0] : own("resolution", 0, 256);
      s.grid_w = !problem.grid.empty() ? problem.grid[1] : s.grid_h;
    } else {
      s.r = own("resolution", problem.grid.empty() ? 0 : problem.grid[0], 256);
    }
    const std::vector<int64_t> input = p.value("input_size").is_list()
                                           ? integers("fpro", "input_size", p.value("input_size"))
                                           : std::vector<int64_t>{p.value("input_size").as_int()};
    if (input.empty() || input.size() > 2)
      fail("input_size", "one number or [Hs, Ws] is wanted, not " + p.value("input_size").str());
    s.hs = input.front(), s.ws = input.back();
    s.groups = p.integer("gdd_groups"), s.kernel = p.integer("gdd_kernel"), s.window = p.integer("window");
    s.heads = p.integer("prompt_heads"), s.pool = p.integer("lpm_pool"), s.dc = p.choice("lpm_mode") == "dc";
    s.refinement = p.integer("refinement_blocks"), s.expansion = p.number("ffn_expansion");
    s.blocks = integers("fpro", "num_blocks", p.value("num_blocks"));
    if (!p.is_null("heads"))
      s.block_heads = integers("fpro", "heads", p.value("heads"));
    else if (block)
      s.block_heads = {problem.heads > 0 ? problem.heads : 2};
    else
      s.block_heads = {2, 4, 8};
    if (block) {
      if (s.block_heads.empty() || s.c % s.block_heads[0] != 0)
        fail("heads", p.value("heads").str() + " does not divide dim " + std::to_string(s.c));
      return std::make_unique<FproInstance>(ctx, s);
    }
    const auto divides = [&](const char* name, int64_t part, const char* of, int64_t whole) {
      if (whole % part != 0)
        fail(name, std::to_string(part) + " does not divide " + of + " " + std::to_string(whole));
    };
    divides("gdd_groups", s.groups, "base_dim", s.c0);
    if (s.kernel % 2 == 0) fail("gdd_kernel", "an odd side is wanted, not " + std::to_string(s.kernel));
    if (s.kernel / 2 >= std::min(s.hs, s.ws))
      throw Unsupported("fpro: a filter of " + std::to_string(s.kernel) + " cannot be reflected on " +
                        std::to_string(s.hs) + " x " + std::to_string(s.ws) + " pixels");
    if (s.dc && s.pool != 1)
      throw Unsupported("fpro.lpm_mode: dc is exact for one key, and lpm_pool " + std::to_string(s.pool) +
                        " makes " + std::to_string(s.pool * s.pool));
    const auto prompt = [&](int64_t c, int64_t r) {
      divides("prompt_heads", s.heads, "dim", c);
      if (c / s.heads > 512)
        throw Unsupported("fpro: prompt heads of " + std::to_string(c / s.heads) +
                          " channels are beyond 512");
      if (s.scope != "lpm") divides("window", s.window, "resolution", r);
      if (r % 2 != 0) fail("resolution", "an even number is wanted, not " + std::to_string(r));
      if (s.pool > r) fail("lpm_pool", std::to_string(s.pool) + " is beyond resolution " + std::to_string(r));
    };
    if (network) {
      if (s.hs != s.ws)
        fail("input_size", "the network takes square images, not " + p.value("input_size").str());
      for (const auto& [name, list] : {std::pair{"num_blocks", &s.blocks}, {"heads", &s.block_heads}})
        if (list->size() != 3) fail(name, "three numbers are wanted, not " + p.value(name).str());
      for (int64_t size : problem.size.empty() ? problem.grid : problem.size)
        if (size != s.hs)
          fail("input_size", std::to_string(s.hs) + " is not the problem's " + std::to_string(size));
      if (s.c0 % 2 != 0) fail("base_dim", "an even number is wanted, not " + std::to_string(s.c0));
      if (s.hs % 4 != 0) fail("input_size", "a multiple of 4 is wanted, not " + std::to_string(s.hs));
      divides("heads", s.block_heads[0], "the width", 2 * s.c0);
      divides("heads", s.block_heads[1], "the width", 2 * s.c0);
      divides("heads", s.block_heads[2], "the width", 4 * s.c0);
      for (int64_t at : {1, 2, 4}) prompt(at == 4 ? 4 * s.c0 : 2 * s.c0, s.hs / at);
    } else if (s.scope != "gdd") {
      if (!problem.grid.empty() && problem.grid[0] != problem.grid[1])
        throw UsageError("fpro: prompts are square, and problem.grid is [" + std::to_string(problem.grid[0]) +
                         ", " + std::to_string(problem.grid[1]) + "]");
      prompt(s.c, s.r);
    }
    return std::make_unique<FproInstance>(ctx, s);
  }
};
ATTNBENCH_METHOD(Fpro);

}  // namespace
}  // namespace attnbench
