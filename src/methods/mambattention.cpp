// MambAttention: attention shared by the time and the frequency axis, and bidirectional Mamba along each.
#include <algorithm>
#include <cmath>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/scan/scan.hpp"
#include "methods/filter_design.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one
using Op = PointwiseArgs::Op;

constexpr float kEps = 1e-5f;  ///< of layer and instance norms
constexpr int64_t kDense = 4;  ///< layers of a dense block, dilated by 1, 2, 4, 8 frames
constexpr int64_t kReach = 8;  ///< the largest dilation: rows of zeros before and behind
constexpr float kPhaseSnap =
    1e-6f;  ///< imaginary parts this far below the magnitude are rounding (card, step 6)

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "mambattention";
  m.title = "MambAttention time-frequency block";
  m.paper =
      "MambAttention: Mamba with Multi-Head Attention for Generalizable Single-Channel Speech Enhancement, "
      "2025";
  m.arxiv = "2507.00966";
  m.family = "model-block";
  m.summary =
      "A stack of blocks on a time-frequency map: softmax attention along time, bidirectional Mamba along "
      "time, the same "
      "attention (shared weights) along frequency, bidirectional Mamba along frequency. `full` puts the "
      "speech enhancer's "
      "encoder and decoders around it, from wave to wave.";
  m.formula =
      "x1 = x + MHA(LN x) along time;  x2 = x1 + Merge_t [Dir_f(x1), flip Dir_b(flip x1)]\n"
      "x3 = x2 + MHA(LN x2) along frequency, the same weights;  x4 = x3 + Merge_f [...]\n"
      "Dir(x) = x + Mamba(RMSNorm x);  Mamba: [a, z] = W_in u, a <- SiLU(causal conv a), [dt, B, C] = W_x "
      "a,\n"
      "  Delta = softplus(W_dt dt + b_dt), h_t = exp(Delta A) h_{t-1} + Delta B a, y = C h + D a, out = "
      "W_out(y SiLU(z))";
  m.cost =
      "MACs per token: a Mamba unit 2 C Di + d_conv Di + Di (r + 2 S) + r Di + Di C and a scan of 3 Di S; a "
      "block 2 (2 unit "
      "+ 2 C^2) + 8 C^2 and four scans; attention F' 2 T^2 C + T 2 F'^2 C. 50.6 GMAC for 4 blocks at 321 x "
      "100, 99.2 GMAC "
      "with the shell. 2,325,841 parameters with it.";
  ParamSpec compress = spec::number("compress", 0.3, 0, "power of the magnitudes, shell only");
  compress.max = 1.0;
  m.params = {spec::integer("channels", Value(), 1, "C; null: problem.channels (blocks), or 64"),
              spec::integer("heads", Value(), 1, "attention heads; null: problem.heads, or 8"),
              spec::integer("num_blocks", 4, 1, "R"),
              spec::integer("d_state", 16, 1, "S"),
              spec::integer("d_conv", 4, 1, "width of the causal convolution"),
              spec::integer("expand", 4, 1, "Di = expand C"),
              spec::number("norm_eps", 1e-5, 0, "of the RMS norms"),
              spec::boolean("share_attention", true, "one attention for both axes, or two"),
              spec::boolean("use_attention", true, "false: plain bidirectional Mamba"),
              spec::boolean("use_mamba", true, "false: axial attention only"),
              spec::integer("frames", Value(), 1, "T of blocks; null: problem.grid[0], or 321"),
              spec::integer("freq_bins", Value(), 3,
                            "F before the encoder's stride of 2; null: from the grid or n_fft"),
              spec::integer("n_fft", 400, 4, "shell only"),
              spec::integer("hop", 100, 1, "shell only"),
              spec::integer("win", 400, 1, "shell only"),
              compress,
              spec::number("mask_beta", 2.0, 0, "largest value of the mask"),
              spec::choice("scope", {"blocks", "full"}, "without or with the shell")};
  m.kinds = {ProblemKind::image, ProblemKind::signal};
  m.dtypes = {DType::f32};
  m.figures = {
      {"parameters", "R 4, C 64", "xLSTM 2.20, LSTM 2.34, Mamba 2.25, Conformer 2.05 M", "2.33 M", "Table I"},
      {"parameter ratio", "same", "Mamba 2.25 M", "1.036x", "from Table I"},
      {"in-domain PESQ, SI-SDR", "VB-DemandEx", "Mamba 3.002, 16.593", "3.026, 16.684", "Table I"},
      {"DNS 2020 PESQ, ESTOI, SI-SDR", "same", "Conformer 2.666, 0.875, 13.665", "2.919, 0.911, 15.169",
       "Table I"},
      {"DNS 2020 PESQ, SI-SDR", "same", "Mamba 2.281, 9.298", "2.919, 15.169", "Table I"},
      {"EARS-WHAM_v2 PESQ, SI-SDR", "same", "Conformer 1.915, 7.365", "2.090, 8.154", "Table I"}};
  m.notes = {"Not causal: attention along time and the backward scan see the whole record.",
             "The phase that the encoder reads takes imaginary parts up to 1e-6 of the magnitude for "
             "rounding: 0 or +pi.",
             "Convolutions of the shell are products of shifted views, one per tap; the causal ones of Mamba "
             "are counted as "
             "elementwise work.",
             "f32 only: the authors keep scans and norms in f32, and the decoders take phases."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 2;
  m.example.grid = {9, 7};
  m.example.channels = 16;
  m.example.heads = 4;
  return m;
}

const MethodInfo& mamba_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Sizes {
  int64_t batch, frames, bins, width, c, heads;  ///< bins: F, width: F'
};

class MambaInstance final : public Instance {
 public:
  MambaInstance(Context& ctx, const Problem& problem, const Params& p, const Sizes& s)
      : params_(p),
        n_(s),
        full_(p.choice("scope") == "full"),
        shared_(p.boolean("share_attention")),
        attend_(p.boolean("use_attention")),
        mamba_(p.boolean("use_mamba")),
        blocks_(p.integer("num_blocks")),
        di_(p.integer("expand") * s.c),
        s_(p.integer("d_state")),
        r_((s.c + 15) / 16),
        samples_(problem.samples),
        seed_(problem.seed) {
    const int64_t c = n_.c;
    if (full_) {
      input_specs_.push_back(
          {"wave", {n_.batch, samples_}, DType::f32, Init::normal(0, 0.1), false, "[B, samples]"});
      conv_specs("encoder.in", {c, 2, 1, 1}, c, true);
      dense_specs("encoder.dense");
      conv_specs("encoder.down", {c, c, 1, 3}, c, true);
    } else {
      input_specs_.push_back(
          {"X", {n_.batch, c, n_.frames, n_.width}, DType::f32, Init::normal(), false, "[B, C, T, F']"});
    }
    for (int64_t i = 0; i < blocks_; ++i) block_specs("blocks." + std::to_string(i) + ".");
    if (full_) {
      dense_specs("mag.dense");
      uniform("mag.up.weight", {c, c, 1, 3}, 3 * c);
      uniform("mag.up.bias", {c}, 3 * c);
      conv_specs("mag.proj", {1, c, 1, 1}, 1, true);
      uniform("mag.out.weight", {1, 1, 1, 1}, 1);
      uniform("mag.out.bias", {1}, 1);
      spec("mag.slope", {n_.bins}, Init::constant(1));
      dense_specs("phase.dense");
      conv_specs("phase.up", {c, c, 1, 3}, c, true);
      for (const char* name : {"phase.r", "phase.i"}) {
        uniform(std::string(name) + ".weight", {1, c, 1, 1}, c);
        uniform(std::string(name) + ".bias", {1}, c);
      }
    }
    const auto output = [&](const char* name, const Shape& shape) {
      outputs_[name] = ctx.allocate(DType::f32, shape, MemoryClass::output);
    };
    const Shape map{n_.batch, c, n_.frames, n_.width};
    if (full_) {
      output("wave_out", {n_.batch, params_.integer("hop") * (n_.frames - 1)});
      output("mag_in", {n_.batch, n_.bins, n_.frames});
      output("mag", {n_.batch, n_.bins, n_.frames});
      output("com", {n_.batch, n_.bins, n_.frames, 2});
      output("enc", map);
      output("blocks_out", map);
    } else {
      output("out", map);
      output("out_block0", map);
    }
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    if (!full_) return;
    const int64_t c = n_.c, win = params_.integer("win");
    window_ = upload(ctx, DType::f32, {win}, filter::periodic_window("hann", win));
    const auto zeros = [&](const Shape& shape) {
      return upload(ctx, DType::f32, shape, std::vector<double>(static_cast<size_t>(shape.numel()), 0.0));
    };
    encoder_map_ = zeros({n_.batch, n_.frames + 2 * kReach, n_.bins + 2, kDense * c});
    decoder_map_ = zeros({n_.batch, n_.frames + 2 * kReach, n_.width + 2, kDense * c});
    wider_ = zeros({n_.batch, n_.frames, n_.width + 1, c});
    ones_ = upload(ctx, DType::f32, {n_.batch, samples_},
                   std::vector<double>(static_cast<size_t>(n_.batch * samples_), 1.0));
    length_ =
        upload(ctx, DType::f32, {n_.batch},
               std::vector<double>(static_cast<size_t>(n_.batch), std::sqrt(static_cast<double>(samples_))));
    // Kernels by tap: [kt][kf][out][in]; transposed ones [kf][in][out].
    for (const char* name : {"encoder.dense", "mag.dense", "phase.dense"})
      for (int64_t i = 0; i < kDense; ++i) {
        const std::string at = std::string(name) + "." + std::to_string(i) + ".conv.weight";
        kernels_[at] = arranged(ctx, weight(at).permute({2, 3, 0, 1}));
      }
    kernels_["encoder.down"] = arranged(ctx, weight("encoder.down.conv.weight").permute({0, 3, 1, 2}));
    kernels_["mag.up"] = arranged(ctx, weight("mag.up.weight").permute({3, 2, 0, 1}));
    kernels_["phase.up"] = arranged(ctx, weight("phase.up.conv.weight").permute({3, 2, 0, 1}));
    const Tensor both = ctx.allocate(DType::f32, {2, c}), bias = ctx.allocate(DType::f32, {2});
    for (int64_t i = 0; i < 2; ++i) {
      const std::string name = i == 0 ? "phase.r" : "phase.i";
      copy(ctx, weight(name + ".weight").reshape({1, c}), both.slice(0, i, i + 1));
      copy(ctx, weight(name + ".bias"), bias.slice(0, i, i + 1));
    }
    kernels_["phase"] = both;
    kernels_["phase.bias"] = bias;
  }

  void run(Context& ctx) override {
    const int64_t b = n_.batch, t = n_.frames, w = n_.width, c = n_.c;
    const Tensor u = ctx.allocate(DType::f32, {b, t, w, c});
    Tensor magnitude;
    if (full_)
      magnitude = encode(ctx, u);
    else
      transpose_copy(ctx, {input("X").permute({0, 2, 3, 1}), u});
    for (int64_t i = 0; i < blocks_; ++i) {
      block(ctx, u, "blocks." + std::to_string(i) + ".");
      if (i == 0 && !full_) channels_first(ctx, u, outputs_.at("out_block0"));
    }
    channels_first(ctx, u, outputs_.at(full_ ? "blocks_out" : "out"));
    if (full_) decode(ctx, u, magnitude);
  }

  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t tokens = n_.batch * n_.frames * n_.width, c = n_.c;
    f.cost += block_cost() * blocks_;
    f.cost += copied(tokens * c) * (full_ ? 1 : 3);
    if (full_) f.cost += encode_cost() + decode_cost();
    const int64_t unit =
        2 * c * di_ + params_.integer("d_conv") * di_ + di_ * (r_ + 2 * s_) + r_ * di_ + di_ * c;
    const int64_t places = n_.frames * n_.width;
    int64_t macs = 0;
    if (mamba_) macs += places * (2 * (2 * unit + 2 * c * c) + 4 * 3 * di_ * s_);
    if (attend_) macs += places * 8 * c * c + 2 * places * (n_.frames + n_.width) * c;
    f.published_macs = blocks_ * macs;
    f.published_macs_note = "of the block stack on one map; the shell is not counted";
    for (const TensorSpec& s : weight_specs_) f.parameters += s.shape.numel();
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet p;
    p.batch = n_.batch;
    p.heads = n_.heads;
    p.queries = p.tokens = n_.frames * n_.width;
    p.grid = {n_.frames, n_.width};
    const int64_t frames = n_.frames, width = n_.width;
    // One block connects everything: columns, then rows, by attention or by the scans of both directions.
    const bool identity = !mamba_ && !attend_;
    p.row = [=](int64_t, int64_t, int64_t i, Intervals& out) {
      out = identity ? Intervals{{i, i + 1}} : Intervals{{0, frames * width}};
    };
    return p;
  }

 private:
  // ---- weights
  // ------------------------------------------------------------------------------------------------

  void spec(const std::string& name, const Shape& shape, const Init& init) {
    weight_specs_.push_back({name, shape, DType::f32, init, false, ""});
  }
  void uniform(const std::string& name, const Shape& shape, int64_t fan_in) {
    const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
    spec(name, shape, Init::uniform(-bound, bound));
  }
  void conv_specs(const std::string& name, const Shape& kernel, int64_t out, bool with_prelu) {
    const int64_t fan = kernel.numel() / kernel[0];
    uniform(name + ".conv.weight", kernel, fan);
    uniform(name + ".conv.bias", {out}, fan);
    spec(name + ".norm.weight", {out}, Init::constant(1));
    spec(name + ".norm.bias", {out}, Init::constant(0));
    if (with_prelu) spec(name + ".prelu", {out}, Init::constant(0.25));
  }
  void dense_specs(const std::string& name) {
    for (int64_t j = 0; j < kDense; ++j)
      conv_specs(name + "." + std::to_string(j), {n_.c, (j + 1) * n_.c, 3, 3}, n_.c, true);
  }
  void block_specs(const std::string& at) {
    const int64_t c = n_.c;
    if (attend_)
      for (const char* name : {"attn", "attn_t", "attn_f"}) {
        if (shared_ != (std::string(name) == "attn")) continue;
        const std::string a = at + name + ".";
        const double xavier = std::sqrt(6.0 / static_cast<double>(4 * c)),
                     bound = 1 / std::sqrt(static_cast<double>(c));
        spec(a + "norm.weight", {c}, Init::constant(1));
        spec(a + "norm.bias", {c}, Init::constant(0));
        spec(a + "in_proj.weight", {3 * c, c}, Init::uniform(-xavier, xavier));
        spec(a + "in_proj.bias", {3 * c}, Init::constant(0));
        spec(a + "out_proj.weight", {c, c}, Init::uniform(-bound, bound));
        spec(a + "out_proj.bias", {c}, Init::constant(0));
      }
    if (!mamba_) return;
    for (const char* axis : {"time", "freq"}) {
      for (const char* direction : {"forward", "backward"}) {
        const std::string u = at + axis + "." + direction + ".";
        spec(u + "norm.gain", {c}, Init::constant(1));
        uniform(u + "W_in", {2 * di_, c}, c);
        uniform(u + "conv.weight", {di_, params_.integer("d_conv")}, params_.integer("d_conv"));
        uniform(u + "conv.bias", {di_}, params_.integer("d_conv"));
        uniform(u + "W_x", {r_ + 2 * s_, di_}, di_);
        const double bound = 1 / std::sqrt(static_cast<double>(r_));
        spec(u + "W_dt", {di_, r_}, Init::uniform(-bound, bound));
        Init steps, rates;
        steps.kind = rates.kind = Init::Kind::values;
        const uint64_t stream = stream_of("mambattention." + u + "b_dt");
        steps.value = [stream, seed = seed_](int64_t i) {
          const double low = std::log(1e-3), high = std::log(1e-1);
          const double dt = std::max(
              std::exp(low + (high - low) * random_uniform(seed, stream, static_cast<uint64_t>(i))), 1e-4);
          return dt + std::log(-std::expm1(-dt));  // inverse softplus
        };
        const int64_t states = s_;
        rates.value = [states](int64_t i) { return std::log(static_cast<double>(i % states + 1)); };
        spec(u + "b_dt", {di_}, steps);
        spec(u + "A_log", {di_, s_}, rates);
        spec(u + "Dskip", {di_}, Init::constant(1));
        uniform(u + "W_out", {c, di_}, di_);
      }
      const std::string merge = at + "merge_" + axis;
      uniform(merge + ".weight", {2 * c, c, 1}, c);
      uniform(merge + ".bias", {c}, c);
    }
  }
  static Tensor arranged(Context& ctx, const Tensor& view) {
    const Tensor t = ctx.allocate(view.dtype(), view.shape());
    transpose_copy(ctx, {view, t});
    return t;
  }

  // ---- blocks
  // -------------------------------------------------------------------------------------------------

  static Tensor shaped(const Shape& s) { return Tensor::borrow(DeviceKind::cpu, DType::f32, s, nullptr); }
  void channels_first(Context& ctx, const Tensor& u, const Tensor& y) const {
    transpose_copy(ctx, {u.permute({0, 3, 1, 2}), y});
  }

  void block(Context& ctx, const Tensor& u, const std::string& at) const {
    for (const bool time : {true, false}) {
      if (attend_) {
        const auto stage = ctx.stage(time ? "attend_time" : "attend_freq");
        attend(ctx, u, at + (shared_ ? "attn." : time ? "attn_t." : "attn_f."), time);
      }
      if (!mamba_) continue;
      const auto stage = ctx.stage(time ? "mamba_time" : "mamba_freq");
      const Tensor halves = ctx.allocate(DType::f32, {n_.batch, n_.frames, n_.width, 2 * n_.c});
      const std::string axis = time ? "time" : "freq";
      direction(ctx, u, at + axis + ".forward.", time, false, halves.slice(3, 0, n_.c));
      direction(ctx, u, at + axis + ".backward.", time, true, halves.slice(3, n_.c, 2 * n_.c));
      const int64_t tokens = n_.batch * n_.frames * n_.width;
      product(ctx, halves.reshape({tokens, 2 * n_.c}),
              weight(at + "merge_" + axis + ".weight").reshape({2 * n_.c, n_.c}), u.reshape({tokens, n_.c}),
              false, weight(at + "merge_" + axis + ".bias"), Activation::none, true);
    }
  }
  Cost block_cost() const {
    const int64_t tokens = n_.batch * n_.frames * n_.width, c = n_.c;
    Cost t;
    for (const bool time : {true, false}) {
      const int64_t length = time ? n_.frames : n_.width, sequences = tokens / length;
      if (attend_) {
        Cost norm = moved(4 * (tokens * c + 2 * c), 4 * tokens * c);
        norm.elementwise = 5 * tokens * c;
        norm.special = 2 * tokens;
        const int64_t pairs = sequences * n_.heads * length * length;
        Cost fused = moved(12 * tokens * c, 4 * tokens * c);
        fused.matmul = 4 * pairs * (c / n_.heads);
        fused.elementwise = 4 * pairs;
        fused.special = pairs;
        t += norm + product_cost(1, tokens, 3 * c, c, 3 * c * c, true) + fused +
             product_cost(1, tokens, c, c, c * c, true, false, true);
      }
      if (!mamba_) continue;
      Cost norm = moved(4 * (tokens * c + c), 4 * tokens * c);
      norm.elementwise = 4 * tokens * c;
      norm.special = 2 * tokens;
      Cost unit = norm + product_cost(1, tokens, 2 * di_, c, 2 * di_ * c);
      for (int64_t s = 0; s < params_.integer("d_conv") && s < length; ++s) {
        const int64_t n = tokens / length * (length - s) * di_;
        unit += pointwise_cost(n, di_, false);
        if (s > 0) unit += pointwise_cost(n, n, false);
      }
      unit += pointwise_cost(tokens * di_, di_, false) + pointwise_cost(tokens * di_, 0, true);
      unit += copied(params_.integer("d_conv") * di_);
      unit += product_cost(1, tokens, r_ + 2 * s_, di_, (r_ + 2 * s_) * di_) +
              product_cost(1, tokens, di_, r_, di_ * r_);
      unit += pointwise_cost(di_ * s_, 0, true) + pointwise_cost(di_ * s_, 0, false);
      const Shape rows{tokens, di_}, states{tokens, s_};
      SelectiveScanArgs a;
      a.u = a.delta = a.z = a.y = shaped(rows), a.b = a.c = shaped(states), a.a = shaped({di_, s_});
      a.skip = a.bias = shaped({di_});
      a.softplus = true;
      unit += selective_scan_cost(a) + copied(tokens * c) +
              product_cost(1, tokens, c, di_, c * di_, false, false, true);
      t += unit * 2 + product_cost(1, tokens, c, 2 * c, 2 * c * c, true, false, true);
    }
    return t;
  }

  void attend(Context& ctx, const Tensor& u, const std::string& at, bool time) const {
    const int64_t b = n_.batch, t = n_.frames, w = n_.width, c = n_.c, tokens = b * t * w, d = c / n_.heads;
    const Tensor rows = u.reshape({tokens, c}), normed = ctx.allocate(DType::f32, {tokens, c}),
                 qkv = ctx.allocate(DType::f32, {tokens, 3 * c}),
                 mixed = ctx.allocate(DType::f32, {tokens, c});
    NormArgs norm;
    norm.x = rows, norm.y = normed;
    norm.gain = weight(at + "norm.weight"), norm.offset = weight(at + "norm.bias");
    norm.eps = kEps;
    normalize(ctx, norm);
    product(ctx, normed, weight(at + "in_proj.weight"), qkv, true, weight(at + "in_proj.bias"));
    // Sequences along frequency are the batch [B T]; those along time have two strides, so a call per sample.
    for (int64_t sample = 0; sample < (time ? b : 1); ++sample) {
      const auto heads = [&](const Tensor& x, int64_t part) {
        const int64_t row = x.dim(1);
        return time ? x.strided({w, n_.heads, t, d}, {row, d, w * row, 1}, sample * t * w * row + part * c)
                    : x.strided({b * t, n_.heads, w, d}, {w * row, d, row, 1}, part * c);
      };
      AttentionArgs a;
      a.q = heads(qkv, 0), a.k = heads(qkv, 1), a.v = heads(qkv, 2), a.o = heads(mixed, 0);
      a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
      attention(ctx, a);
    }
    product(ctx, mixed, weight(at + "out_proj.weight"), rows, true, weight(at + "out_proj.bias"),
            Activation::none, true);
  }

  /// y = x + Mamba(RMSNorm x) along one axis; backwards, sequences are read and written from their ends.
  void direction(Context& ctx, const Tensor& x, const std::string& at, bool time, bool backward,
                 const Tensor& y) const {
    const int64_t b = n_.batch, t = n_.frames, w = n_.width, c = n_.c, tokens = b * t * w,
                  length = time ? t : w;
    const int axis = time ? 1 : 2;
    const Tensor normed = ctx.allocate(DType::f32, {tokens, c}),
                 az = ctx.allocate(DType::f32, {b, t, w, 2 * di_}),
                 a = ctx.allocate(DType::f32, {b, t, w, di_});
    NormArgs norm;
    norm.kind = NormArgs::Kind::rms_norm;
    norm.x = x.reshape({tokens, c}), norm.y = normed;
    norm.gain = weight(at + "norm.gain");
    norm.eps = static_cast<float>(params_.number("norm_eps"));
    normalize(ctx, norm);
    product(ctx, normed, weight(at + "W_in"), az.reshape({tokens, 2 * di_}), true);
    const Tensor raw = az.slice(3, 0, di_), z = az.slice(3, di_, 2 * di_);
    // Tap k of width K reads K - 1 - k places before (behind, backwards); places outside are zeros.
    const int64_t taps = params_.integer("d_conv");
    const Tensor kernel = ctx.allocate(DType::f32, {taps, di_}),
                 part = ctx.allocate(DType::f32, {b, t, w, di_});
    transpose_copy(ctx, {weight(at + "conv.weight").transpose(0, 1), kernel});
    for (int64_t s = 0; s < taps && s < length; ++s) {
      const Tensor tap = kernel.select(0, taps - 1 - s);
      const auto early = [&](const Tensor& v) { return v.slice(axis, 0, length - s); };
      const auto late = [&](const Tensor& v) { return v.slice(axis, s, length); };
      const Tensor from = backward ? late(raw) : early(raw), to = backward ? early(a) : late(a);
      if (s == 0) {
        call(ctx, Op::mul, from, tap, to);
        continue;
      }
      call(ctx, Op::mul, from, tap, early(part));
      call(ctx, Op::add, to, early(part), to);
    }
    call(ctx, Op::add, a, weight(at + "conv.bias"), a);
    call(ctx, Op::silu, a, {}, a);
    const Tensor flat = a.reshape({tokens, di_});
    const Tensor mixed = ctx.allocate(DType::f32, {b, t, w, r_ + 2 * s_}),
                 delta = ctx.allocate(DType::f32, {b, t, w, di_}),
                 rates = ctx.allocate(DType::f32, {di_, s_});
    product(ctx, flat, weight(at + "W_x"), mixed.reshape({tokens, r_ + 2 * s_}), true);
    product(ctx, mixed.reshape({tokens, r_ + 2 * s_}).slice(1, 0, r_), weight(at + "W_dt"),
            delta.reshape({tokens, di_}), true);
    call(ctx, Op::exp, weight(at + "A_log"), {}, rates);
    call(ctx, Op::affine, rates, {}, rates, -1.0f);
    const auto along = [&](const Tensor& v) { return time ? v.transpose(1, 2) : v; };
    SelectiveScanArgs scan;
    scan.u = along(a), scan.delta = along(delta), scan.z = along(z);
    scan.b = along(mixed.slice(3, r_, r_ + s_)), scan.c = along(mixed.slice(3, r_ + s_, r_ + 2 * s_));
    scan.a = rates, scan.skip = weight(at + "Dskip"), scan.bias = weight(at + "b_dt");
    scan.softplus = true;
    scan.reverse = backward;
    scan.y = along(delta);
    selective_scan(ctx, scan);
    transpose_copy(ctx, {x, y});
    product(ctx, delta.reshape({tokens, di_}), weight(at + "W_out"), y.strided({tokens, c}, {2 * c, 1}), true,
            {}, Activation::none, true);
  }

  // ---- shell
  // --------------------------------------------------------------------------------------------------

  void instance_norm(Context& ctx, const Tensor& x, const std::string& name) const {
    const int64_t b = n_.batch, c = x.dim(-1), places = x.numel() / b / c;
    const Tensor apart = ctx.allocate(DType::f32, {b, c, places}),
                 view = x.reshape({b, places, c}).transpose(1, 2);
    transpose_copy(ctx, {view, apart});
    NormArgs norm;
    norm.x = norm.y = apart.reshape({b * c, places});
    norm.eps = kEps;
    normalize(ctx, norm);
    transpose_copy(ctx, {apart, view});
    const Tensor rows = x.reshape({b * places, c});
    call(ctx, Op::mul, rows, weight(name + ".weight"), rows);
    call(ctx, Op::add, rows, weight(name + ".bias"), rows);
  }
  void prelu(Context& ctx, const Tensor& x, const std::string& name) const {
    const Tensor rows = x.reshape({x.numel() / x.dim(-1), x.dim(-1)}),
                 below = ctx.allocate(DType::f32, rows.shape());
    call(ctx, Op::affine, rows, {}, below, -1.0f);
    call(ctx, Op::relu, below, {}, below);
    call(ctx, Op::mul, below, weight(name), below);
    call(ctx, Op::relu, rows, {}, rows);
    call(ctx, Op::sub, rows, below, rows);
  }
  void norm_prelu(Context& ctx, const Tensor& x, const std::string& name) const {
    instance_norm(ctx, x, name + ".norm");
    prelu(ctx, x, name + ".prelu");
  }
  Cost norm_prelu_cost(int64_t places, int64_t c) const {
    const int64_t n = n_.batch * places * c;
    Cost norm = moved(4 * n, 4 * n);
    norm.elementwise = 5 * n;
    norm.special = 2 * n_.batch * c;
    return copied(n) * 2 + norm + pointwise_cost(n, c, false) * 3 + pointwise_cost(n, 0, false) +
           pointwise_cost(n, 0, true) * 2 + pointwise_cost(n, n, false);
  }

  /// x, y [B, T, F, C]; `map` holds zeros around places that the layers' maps are put into, the newest first.
  void dense(Context& ctx, const Tensor& x, const Tensor& map, const std::string& name) const {
    const int64_t t = n_.frames, f = x.dim(2), c = n_.c;
    const auto slot = [&](int64_t i) {
      return map.slice(1, kReach, kReach + t).slice(2, 1, 1 + f).slice(3, i * c, (i + 1) * c);
    };
    transpose_copy(ctx, {x, slot(kDense - 1)});
    for (int64_t j = 0; j < kDense; ++j) {
      const std::string at = name + "." + std::to_string(j);
      const Tensor& kernel = kernels_.at(at + ".conv.weight");
      const int64_t dilation = int64_t{1} << j;
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t from = kReach + (tap / 3 - 1) * dilation, column = tap % 3;
        const Tensor seen = map.slice(1, from, from + t)
                                .slice(2, column, column + f)
                                .slice(3, (kDense - 1 - j) * c, kDense * c);
        product(ctx, seen, kernel.select(0, tap / 3).select(0, column), x, true,
                tap == 0 ? weight(at + ".conv.bias") : Tensor(), Activation::none, tap > 0);
      }
      norm_prelu(ctx, x, at);
      if (j + 1 < kDense) transpose_copy(ctx, {x, slot(kDense - 2 - j)});
    }
  }
  Cost dense_cost(int64_t f) const {
    const int64_t places = n_.frames * f, c = n_.c, rows = n_.batch * places;
    Cost t = copied(rows * c) * kDense;
    for (int64_t j = 0; j < kDense; ++j) {
      const int64_t in = (j + 1) * c;
      t += product_cost(n_.batch * n_.frames, f, c, in, c * in, true) +
           product_cost(n_.batch * n_.frames, f, c, in, c * in, false, false, true) * 8 +
           norm_prelu_cost(places, c);
    }
    return t;
  }

  /// The reflected border makes the first frame its own mirror image about its centre: its spectrum is real,
  /// and what stands in its imaginary parts is rounding. In bins far below the frame's mean that is more than
  /// the snap forgives, and its sign would decide between +pi and -pi.
  bool first_frame_is_real() const {
    return params_.integer("n_fft") % 2 == 0 && params_.integer("win") % 2 == 0;
  }

  /// Wave -> encoded map u; returns the compressed magnitudes [B, T, F].
  Tensor encode(Context& ctx, const Tensor& u) const {
    const int64_t b = n_.batch, t = n_.frames, f = n_.bins, w = n_.width, c = n_.c,
                  n_fft = params_.integer("n_fft");
    const Tensor magnitude = ctx.allocate(DType::f32, {b, t, f});
    const Tensor map = ctx.allocate(DType::f32, {b, t, f, c});
    {
      const auto stage = ctx.stage("stft");
      const Tensor wave = ctx.allocate(DType::f32, {b, samples_}),
                   bins = ctx.allocate(DType::f32, {b, t, f, 2}), phase = ctx.allocate(DType::f32, {b, t, f}),
                   stacked = ctx.allocate(DType::f32, {b, t, f, 2});
      UnitRowsArgs level;
      level.x = input("wave"), level.y = wave, level.gain = length_;
      level.floor = 1e-30f;
      unit_rows(ctx, level);
      const int64_t win = params_.integer("win");
      stft(ctx, {wave, window_, bins, n_fft, params_.integer("hop"), n_fft / 2, (n_fft - win) / 2,
                 SignalBorder::reflect, 1.0f});
      ComplexArgs parts;
      parts.op = ComplexArgs::Op::magnitude;
      parts.a = bins, parts.y = magnitude;
      parts.power = static_cast<float>(params_.number("compress"));
      complex_pointwise(ctx, parts);
      if (first_frame_is_real()) {
        PointwiseArgs drop;
        drop.op = PointwiseArgs::Op::affine, drop.alpha = 0.0f;
        drop.a = drop.y = bins.strided({b, f, 1}, {t * f * 2, 2, 1}, 1);
        pointwise(ctx, drop);
      }
      parts.op = ComplexArgs::Op::angle;
      parts.y = phase, parts.power = 1.0f, parts.snap = kPhaseSnap;
      complex_pointwise(ctx, parts);
      transpose_copy(ctx, {magnitude.transpose(1, 2), outputs_.at("mag_in")});
      transpose_copy(ctx, {magnitude.reshape({b, t, f, 1}), stacked.slice(3, 0, 1)});
      transpose_copy(ctx, {phase.reshape({b, t, f, 1}), stacked.slice(3, 1, 2)});
      product(ctx, stacked.reshape({b * t * f, 2}), weight("encoder.in.conv.weight").reshape({c, 2}),
              map.reshape({b * t * f, c}), true, weight("encoder.in.conv.bias"));
    }
    const auto stage = ctx.stage("encode");
    norm_prelu(ctx, map, "encoder.in");
    dense(ctx, map, encoder_map_, "encoder.dense");
    product(ctx, map.strided({b * t, w, 3 * c}, {f * c, 2 * c, 1}),
            kernels_.at("encoder.down").reshape({c, 3 * c}), u.reshape({b * t, w, c}), true,
            weight("encoder.down.conv.bias"));
    norm_prelu(ctx, u, "encoder.down");
    channels_first(ctx, u, outputs_.at("enc"));
    return magnitude;
  }
  Cost encode_cost() const {
    const int64_t b = n_.batch, t = n_.frames, f = n_.bins, w = n_.width, c = n_.c, cells = b * t * f;
    Cost level = moved(4 * (b * samples_ + b), 4 * b * samples_);
    level.elementwise = 3 * b * samples_;
    level.special = 2 * b;
    Cost size = complex_pointwise_cost(ComplexArgs::Op::magnitude, cells) + moved(8 * cells, 4 * cells);
    if (params_.number("compress") != 1.0) size.special += cells;
    if (first_frame_is_real()) size += pointwise_cost(b * f, 0, false);
    return level + stft_cost(b, samples_, t, params_.integer("n_fft"), params_.integer("win")) + size +
           complex_pointwise_cost(ComplexArgs::Op::angle, cells) + moved(8 * cells, 4 * cells) +
           copied(cells) * 3 + product_cost(1, cells, c, 2, 2 * c, true) + norm_prelu_cost(t * f, c) +
           dense_cost(f) + product_cost(b * t, w, c, 3 * c, 3 * c * c, true) + norm_prelu_cost(t * w, c) +
           copied(b * t * w * c);
  }

  /// Transposed convolution by two bins: even places see taps 0 and 2, odd ones tap 1.
  Tensor upsampled(Context& ctx, const Tensor& x, const std::string& kernel, const Tensor& bias) const {
    const int64_t b = n_.batch, t = n_.frames, f = n_.bins, w = n_.width, c = n_.c;
    const Tensor y = ctx.allocate(DType::f32, {b, t, f, c});
    transpose_copy(ctx, {x, wider_.slice(2, 0, w)});
    const Tensor& taps = kernels_.at(kernel);
    const auto places = [&](int64_t first, int64_t count) {
      return y.strided({b * t, count, c}, {f * c, 2 * c, 1}, first * c);
    };
    const auto tap = [&](int64_t k) { return taps.select(0, k).reshape({c, c}); };
    product(ctx, wider_.reshape({b * t, w + 1, c}), tap(0), places(0, w + 1), false, bias);
    product(ctx, x.reshape({b * t, w, c}), tap(1), places(1, w), false, bias);
    product(ctx, x.reshape({b * t, w, c}), tap(2), places(2, w), false, {}, Activation::none, true);
    return y;
  }
  Cost upsampled_cost() const {
    const int64_t rows = n_.batch * n_.frames, w = n_.width, c = n_.c;
    return copied(rows * w * c) + product_cost(rows, w + 1, c, c, c * c, true) +
           product_cost(rows, w, c, c, c * c, true) + product_cost(rows, w, c, c, c * c, false, false, true);
  }

  void decode(Context& ctx, const Tensor& u, const Tensor& magnitude) const {
    const int64_t b = n_.batch, t = n_.frames, f = n_.bins, w = n_.width, c = n_.c, cells = b * t * f,
                  n_fft = params_.integer("n_fft");
    const Tensor map = ctx.allocate(DType::f32, {b, t, w, c}), mask = ctx.allocate(DType::f32, {cells, 1}),
                 one = ctx.allocate(DType::f32, {cells, 1}), parts = ctx.allocate(DType::f32, {b, t, f, 2}),
                 phase = ctx.allocate(DType::f32, {b, t, f});
    {
      const auto stage = ctx.stage("magnitude");
      transpose_copy(ctx, {u, map});
      dense(ctx, map, decoder_map_, "mag.dense");
      const Tensor wide = upsampled(ctx, map, "mag.up", weight("mag.up.bias"));
      product(ctx, wide.reshape({cells, c}), weight("mag.proj.conv.weight").reshape({1, c}), one, true,
              weight("mag.proj.conv.bias"));
      norm_prelu(ctx, one, "mag.proj");
      product(ctx, one, weight("mag.out.weight").reshape({1, 1}), mask, true, weight("mag.out.bias"));
      const Tensor rows = mask.reshape({b * t, f});
      call(ctx, Op::mul, rows, weight("mag.slope"), rows);
      call(ctx, Op::sigmoid, rows, {}, rows);
      call(ctx, Op::affine, rows, {}, rows, static_cast<float>(params_.number("mask_beta")));
      call(ctx, Op::mul, rows, magnitude.reshape({b * t, f}), rows);
      transpose_copy(ctx, {mask.reshape({b, t, f}).transpose(1, 2), outputs_.at("mag")});
    }
    {
      const auto stage = ctx.stage("phase");
      transpose_copy(ctx, {u, map});
      dense(ctx, map, decoder_map_, "phase.dense");
      const Tensor wide = upsampled(ctx, map, "phase.up", weight("phase.up.conv.bias"));
      norm_prelu(ctx, wide, "phase.up");
      product(ctx, wide.reshape({cells, c}), kernels_.at("phase"), parts.reshape({cells, 2}), true,
              kernels_.at("phase.bias"));
      ComplexArgs angle;
      angle.op = ComplexArgs::Op::angle;
      angle.a = parts, angle.y = phase;
      complex_pointwise(ctx, angle);
    }
    const auto stage = ctx.stage("istft");
    ComplexArgs polar;
    polar.op = ComplexArgs::Op::polar;
    polar.a = mask.reshape({b, t, f}), polar.b = phase, polar.y = parts;
    complex_pointwise(ctx, polar);
    transpose_copy(ctx, {parts.permute({0, 2, 1, 3}), outputs_.at("com")});
    polar.power = static_cast<float>(1 / params_.number("compress"));
    complex_pointwise(ctx, polar);
    const int64_t win = params_.integer("win"), length = params_.integer("hop") * (t - 1);
    const Tensor wave = ctx.allocate(DType::f32, {b, length}),
                 level = ctx.allocate(DType::f32, {b, samples_});
    if (length == 0) return;
    istft(ctx, {parts, window_, wave, n_fft, params_.integer("hop"), n_fft / 2, (n_fft - win) / 2, 1.0f});
    // |wave| / sqrt(samples), in every place of a row of ones.
    UnitRowsArgs norm;
    norm.x = ones_, norm.like = input("wave"), norm.y = level;
    unit_rows(ctx, norm);
    UnitRowsArgs scale;
    scale.kind = UnitRowsArgs::Kind::scale;
    scale.x = wave, scale.y = outputs_.at("wave_out");
    scale.gain = level.strided({b}, {samples_});
    unit_rows(ctx, scale);
  }
  Cost decode_cost() const {
    const int64_t b = n_.batch, t = n_.frames, f = n_.bins, w = n_.width, c = n_.c, cells = b * t * f,
                  length = params_.integer("hop") * (t - 1);
    Cost s = (copied(b * t * w * c) + dense_cost(w) + upsampled_cost()) * 2;
    s += product_cost(1, cells, 1, c, c, true) + norm_prelu_cost(t * f, 1) +
         product_cost(1, cells, 1, 1, 1, true) + pointwise_cost(cells, f, false) +
         pointwise_cost(cells, 0, true) + pointwise_cost(cells, 0, false) +
         pointwise_cost(cells, cells, false) + copied(cells);
    s += norm_prelu_cost(t * f, c) + product_cost(1, cells, 2, c, 2 * c, true) +
         complex_pointwise_cost(ComplexArgs::Op::angle, cells) + moved(8 * cells, 4 * cells);
    s += (complex_pointwise_cost(ComplexArgs::Op::polar, cells) + moved(8 * cells, 8 * cells)) * 2 +
         copied(2 * cells);
    if (params_.number("compress") != 1.0) s.special += cells;
    if (length == 0) return s;
    s += istft_cost(b, length, t, params_.integer("n_fft"), params_.integer("win"));
    Cost level = moved(8 * b * samples_, 4 * b * samples_),
         scaled = moved(4 * (b * length + b), 4 * b * length);
    level.elementwise = 5 * b * samples_;
    level.special = 2 * b;
    scaled.elementwise = b * length;
    return s + level + scaled;
  }

  Params params_;
  Sizes n_;
  bool full_, shared_, attend_, mamba_;
  int64_t blocks_, di_, s_, r_, samples_;
  uint64_t seed_;
  TensorMap outputs_, kernels_;
  Tensor window_, encoder_map_, decoder_map_, wider_, ones_, length_;
};

class MambAttention final : public Method {
 public:
  const MethodInfo& info() const override { return mamba_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    const auto fail = [](const std::string& name, const std::string& why) {
      throw UsageError("mambattention." + name + ": " + why);
    };
    if (problem.causal)
      throw Unsupported(
          "mambattention has no causal mode: attention along time and the backward scan see the whole "
          "record");
    const bool full = p.choice("scope") == "full";
    if (full != (problem.kind == ProblemKind::signal))
      throw UsageError(std::string("mambattention.scope: ") +
                       (full ? "full takes a wave, so the problem is a signal"
                             : "blocks take a map, so the problem is an image with its grid"));
    Sizes s{};
    s.batch = problem.batch;
    const auto given = [&](const char* name, int64_t own, int64_t standard) {
      if (p.is_null(name)) return own > 0 ? own : standard;
      if (own > 0 && own != p.integer(name))
        fail(name, std::to_string(p.integer(name)) + " is not the problem's " + std::to_string(own));
      return p.integer(name);
    };
    s.c = given("channels", full ? 0 : problem.channels, 64);
    s.heads = given("heads", problem.heads, 8);
    if (s.c % s.heads != 0)
      fail("heads", std::to_string(s.heads) + " does not divide channels " + std::to_string(s.c));
    if (full) {
      require_extent(info(), problem.samples, "samples");
      const int64_t n_fft = p.integer("n_fft");
      if (n_fft % 4 != 0)
        throw Unsupported("mambattention.n_fft: " + std::to_string(n_fft) +
                          " gives an even number of bins, which the transposed convolution cannot give back; "
                          "a multiple of 4 is "
                          "needed");
      if (p.integer("win") > n_fft)
        fail("win", std::to_string(p.integer("win")) + " is longer than n_fft " + std::to_string(n_fft));
      if (problem.samples <= n_fft / 2)
        throw Unsupported("mambattention: " + std::to_string(problem.samples) +
                          " samples are too few to reflect half a window of " + std::to_string(n_fft));
      s.frames = 1 + problem.samples / p.integer("hop");
      s.bins = n_fft / 2 + 1;
      if (!p.is_null("frames") && p.integer("frames") != s.frames)
        fail("frames", std::to_string(p.integer("frames")) + " is not the " + std::to_string(s.frames) +
                           " of these samples");
      if (!p.is_null("freq_bins") && p.integer("freq_bins") != s.bins)
        fail("freq_bins",
             std::to_string(p.integer("freq_bins")) + " is not the " + std::to_string(s.bins) + " of n_fft");
      if (s.bins < 3) fail("n_fft", "at least 3 bins are needed");
      s.width = (s.bins - 3) / 2 + 1;
    } else {
      const bool grid = problem.grid.size() == 2;
      s.frames = given("frames", grid ? problem.grid[0] : 0, 321);
      const int64_t own = p.is_null("freq_bins") ? 0 : (p.integer("freq_bins") - 3) / 2 + 1;
      if (grid && own > 0 && own != problem.grid[1])
        fail("freq_bins", std::to_string(p.integer("freq_bins")) + " bins leave " + std::to_string(own) +
                              " after the stride of 2, and problem.grid has " +
                              std::to_string(problem.grid[1]));
      s.width = grid ? problem.grid[1] : own > 0 ? own : 100;
    }
    if (!(p.number("norm_eps") > 0)) fail("norm_eps", "a value above 0 is wanted");
    if (!(p.number("compress") > 0)) fail("compress", "a value above 0 is wanted");
    return std::make_unique<MambaInstance>(ctx, problem, p, s);
  }
};
ATTNBENCH_METHOD(MambAttention);

}  // namespace
}  // namespace attnbench
