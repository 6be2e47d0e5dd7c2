// TIGER: frequency-frame interleaved separator, from multi-scale convolutions and attention with very long
// heads.
#include <algorithm>
#include <cmath>

#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/filter_design.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one
using Op = PointwiseArgs::Op;

constexpr float kGroupEps = 1e-8f, kChannelEps = 1e-5f, kSplitEps = 1.1920929e-07f;
constexpr int64_t kTaps = 5;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "tiger";
  m.title = "TIGER: frequency-frame interleaved separator (MSA + F3A)";
  m.paper =
      "TIGER: Time-frequency Interleaved Gain Extraction and Reconstruction for Efficient Speech Separation, "
      "ICLR 2025";
  m.arxiv = "2410.01469";
  m.family = "model-block";
  m.summary =
      "One weight-shared block passes over a map of bands and frames: multi-scale selective attention "
      "(strided depthwise "
      "convolutions, gated by a global summary) and full attention along bands, where all frames are one "
      "feature vector, then "
      "the same along frames. `full` splits a mixture's spectrum into bands and makes masks of the result.";
  m.formula =
      "Z <- FFI(i == 0 ? Z : PReLU(dw(Z0 + Z)));  FFI: y = x + LN(F3A_f(MSA_f(x))), out = y + "
      "LN(F3A_t(MSA_t(y)))\n"
      "MSA: p = PReLU(GN(W z)), e_i = GN(dw5(e_{i-1})) at half the length, G = f(sum_i pool(e_i)), "
      "f_i = GN(dw e_i) sigmoid(GN(dw G)) + GN(dw G), decoded from coarse to fine, + z\n"
      "F3A: W = softmax(q k^T / sqrt(E R)) over bands (frames), q, k of E R numbers: all frames (bands) at "
      "once";
  m.cost =
      "MACs of an MSA over length L: 2 L N H + 5 H sum l_i + l_last (2 H^2 + 5 H) + H (sum l_i + 2 D l_last) "
      "+ 5 H sum (l_i + "
      "2 g_i); FFI: T MSA(K) + K MSA(T) + 2 K T (2 A E N + 2 N^2) + A K T (K + T) (E + N/A). 7.205 GMAC for "
      "a second at 16 kHz "
      "with 4 passes. 821,932 parameters, whatever the number of passes.";
  m.params = {spec::integer("feature_dim", Value(), 1, "N; null: problem.channels (separator), or 128"),
              spec::integer("hidden_dim", 256, 1, "H inside MSA"),
              spec::integer("num_blocks", 4, 1, "passes of the one block"),
              spec::integer("msa_depth", 5, 2, "D scales"),
              spec::integer("att_heads", Value(), 1, "A; null: problem.heads, or 4"),
              spec::integer("att_hid_dim", 4, 1, "E per head"),
              spec::integer("num_sources", 2, 1, "S"),
              spec::integer("n_fft", 640, 16, "STFT"),
              spec::integer("hop", 160, 1, "STFT"),
              spec::integer("sample_rate", Value(), 1, "Hz; null: problem.sample_rate, or 16000"),
              spec::list("band_widths", Value(), "explicit widths of the bands in bins; null: the table"),
              spec::choice("decoder_seed", {"reference", "coarsest"},
                           "where MSA's decoder starts: f_{D-3}, or the coarsest map"),
              spec::choice("scope", {"separator", "full"}, "without or with STFT, bands and masks")};
  m.kinds = {ProblemKind::image, ProblemKind::signal};
  m.dtypes = {DType::f32};
  m.figures = {
      {"parameters", "16 kHz, S = 2", "TF-GridNet 14.43 M", "0.82 M (-94.3 %)", "efficiency table, abstract"},
      {"MACs per second", "small / large", "TF-GridNet 323.75 G", "7.65 G / 15.27 G", "efficiency table"},
      {"MACs ratio", "large / small", "-", "1.996", "efficiency table"},
      {"inference GPU time", "small / large", "TF-GridNet 94.30", "42.38 / 74.51 = 2.23x / 1.27x",
       "efficiency table"},
      {"inference CPU time", "small / large", "TF-GridNet 2019.60", "351.15 / 765.47 = 5.75x / 2.64x",
       "efficiency table"},
      {"inference GPU memory", "both", "TF-GridNet 491.73", "122.23 = 4.02x less", "efficiency table"},
      {"training GPU time", "small / large", "TF-GridNet 284.17", "160.17 / 229.23", "efficiency table"},
      {"training GPU memory", "small / large", "TF-GridNet 5432.94", "2049.46 / 3989.59", "efficiency table"},
      {"EchoSet SDRi / SI-SDRi", "small; large", "TF-GridNet 13.73 / 12.85",
       "13.15 / 12.58; 14.22 / 13.73 dB", "results table"},
      {"film-audio variant", "44.1 kHz, N 132", "BSRNN 52.8 M, 18.2 G", "1.40 M, 4.07 G MACs/s",
       "DnR table"}};
  m.notes = {"Not causal: norms and attention cover the whole utterance.",
             "Nearest resizing uses exact integers, floor(j L_in / L_out).",
             "Published MACs count norms, biases and activations too: 5.8 % above the formula's.",
             "Rates below 16 kHz drop the table's bands above half the rate (chosen).",
             "Depthwise convolutions are shifted products, counted as elementwise work.",
             "f32 only: statistics over a whole utterance with eps 1e-8 need it."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 2;
  m.example.grid = {6, 9};
  m.example.channels = 16;
  m.example.heads = 4;
  return m;
}

const MethodInfo& tiger_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Sizes {
  int64_t batch, bands, frames, n, heads, rate;
  std::vector<int64_t> widths;  ///< of the bands, in bins; empty without the shell
};

class TigerInstance final : public Instance {
 public:
  TigerInstance(Context& ctx, const Problem& problem, const Params& p, Sizes s)
      : params_(p),
        s_(std::move(s)),
        full_(p.choice("scope") == "full"),
        h_(p.integer("hidden_dim")),
        depth_(p.integer("msa_depth")),
        e_(p.integer("att_hid_dim")),
        sources_(p.integer("num_sources")),
        samples_(problem.samples) {
    const int64_t n = s_.n;
    const Shape map{s_.batch, s_.bands, n, s_.frames};
    if (full_) {
      input_specs_.push_back(
          {"wave", {s_.batch, samples_}, DType::f32, Init::normal(), false, "mixture [B, samples]"});
      for (int64_t k = 0; k < s_.bands; ++k) {
        const std::string at = "split." + std::to_string(k);
        const int64_t rows = 2 * s_.widths[static_cast<size_t>(k)];
        norm_specs(at + ".norm", rows);
        conv_specs(at + ".conv", {n, rows}, rows);
      }
      for (int64_t k = 0; k < s_.bands; ++k) {
        const std::string at = "mask." + std::to_string(k);
        spec(at + ".prelu", {1}, Init::constant(0.25));
        conv_specs(at + ".conv", {4 * sources_ * s_.widths[static_cast<size_t>(k)], n / sources_},
                   n / sources_);
      }
    } else {
      input_specs_.push_back({"Z", map, DType::f32, Init::normal(), false, "features [B, K, N, T]"});
    }
    for (const char* path : {"freq", "frame"}) path_specs(path);
    conv_specs("reentry.conv", {n}, 1);
    spec("reentry.prelu", {1}, Init::constant(0.25));
    const auto output = [&](const char* name, const Shape& shape) {
      outputs_[name] = ctx.allocate(DType::f32, shape, MemoryClass::output);
    };
    if (full_) {
      output("est", {s_.batch, sources_, samples_});
      output("Z", map);
      output("sep", map);
    } else {
      output("out", map);
      output("out_block1", map);
    }
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    // Slopes as rows of the width they meet; depthwise kernels by tap.
    for (const TensorSpec& w : weight_specs_) {
      if (w.name.ends_with("prelu")) {
        const int64_t width = slope_width(w.name);
        const Tensor row = ctx.allocate(DType::f32, {1, width, 1});
        const Tensor zeros = upload_index(ctx, std::vector<int64_t>(static_cast<size_t>(width), 0));
        gather_rows(ctx, {weight(w.name).reshape({1, 1, 1}), zeros, row});
        rows_[w.name] = row.reshape({width});
      } else if (w.shape.rank() == 2 && w.shape[0] == h_ && (w.shape[1] == kTaps || w.shape[1] == 1) &&
                 depthwise(w.name)) {
        const Tensor taps = ctx.allocate(DType::f32, {w.shape[1], h_});
        transpose_copy(ctx, {weight(w.name).transpose(0, 1), taps});
        rows_[w.name] = taps;
      }
    }
    for (int64_t length : {s_.bands, s_.frames}) {
      const std::vector<int64_t> l = lengths(length);
      for (int64_t from : l)
        for (int64_t to : l)
          if (!resize_.contains({from, to})) {
            std::vector<int64_t> index;
            for (int64_t j = 0; j < to; ++j) index.push_back(j * from / to);
            resize_[{from, to}] = upload_index(ctx, index);
          }
    }
    if (full_)
      window_ = upload(ctx, DType::f32, {params_.integer("n_fft")},
                       filter::periodic_window("hann", params_.integer("n_fft")));
  }

  void run(Context& ctx) override {
    const int64_t b = s_.batch, k = s_.bands, t = s_.frames, n = s_.n;
    const Tensor z0 = ctx.allocate(DType::f32, {b, k, t, n}), z = ctx.allocate(DType::f32, {b, k, t, n});
    Tensor bins;
    if (full_) {
      bins = split(ctx, z0);
      transpose_copy(ctx, {z0.transpose(2, 3), outputs_.at("Z")});
    } else {
      transpose_copy(ctx, {input("Z").transpose(2, 3), z0});
    }
    transpose_copy(ctx, {z0, z});
    for (int64_t i = 0; i < params_.integer("num_blocks"); ++i) {
      if (i > 0) {
        const auto stage = ctx.stage("reentry");
        const Tensor rows = z.reshape({b * k * t, n});
        call(ctx, Op::add, rows, z0.reshape({b * k * t, n}), rows);
        call(ctx, Op::mul, rows, weight("reentry.conv.weight"), rows);
        call(ctx, Op::add, rows, weight("reentry.conv.bias"), rows);
        prelu(ctx, rows, "reentry.prelu");
      }
      interleave(ctx, z);
      if (i == 0 && !full_) transpose_copy(ctx, {z.transpose(2, 3), outputs_.at("out_block1")});
    }
    transpose_copy(ctx, {z.transpose(2, 3), outputs_.at(full_ ? "sep" : "out")});
    if (full_) masks(ctx, z, bins);
  }

  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t b = s_.batch, k = s_.bands, t = s_.frames, n = s_.n, map = b * k * t * n,
                  passes = params_.integer("num_blocks");
    f.cost += copied(map) * (full_ ? 3 : 4) + block_cost() * passes;
    f.cost += (pointwise_cost(map, map, false) + pointwise_cost(map, n, false) * 2 + prelu_cost(map, n)) *
              (passes - 1);
    if (full_) f.cost += split_cost() + masks_cost();
    const int64_t heads = s_.heads, v = n / heads;
    int64_t macs =
        passes * (t * msa_macs(k) + k * msa_macs(t) + 2 * k * t * (2 * heads * e_ * n + 2 * n * n) +
                  heads * k * k * t * (e_ + v) + heads * t * t * k * (e_ + v)) +
        (passes - 1) * k * t * n;
    if (full_)
      macs += 2 * (params_.integer("n_fft") / 2 + 1) * n * t + 4 * (params_.integer("n_fft") / 2 + 1) * n * t;
    f.published_macs = macs;
    f.published_macs_note =
        "multiply-adds of convolutions and attention, without norms, biases and activations";
    for (const TensorSpec& w : weight_specs_) f.parameters += w.shape.numel();
    return f;
  }

 private:
  // ---- weights
  // ------------------------------------------------------------------------------------------------

  void spec(const std::string& name, const Shape& shape, const Init& init) {
    weight_specs_.push_back({name, shape, DType::f32, init, false, ""});
  }
  void conv_specs(const std::string& name, const Shape& kernel, int64_t fan_in, bool bias = true) {
    const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
    spec(name + ".weight", kernel, Init::uniform(-bound, bound));
    if (bias) spec(name + ".bias", {kernel[0]}, Init::uniform(-bound, bound));
  }
  void norm_specs(const std::string& name, int64_t width) {
    spec(name + ".weight", {width}, Init::constant(1));
    spec(name + ".bias", {width}, Init::constant(0));
  }
  void path_specs(const std::string& p) {
    const int64_t n = s_.n;
    conv_specs(p + ".msa.in.conv", {h_, n}, n);
    norm_specs(p + ".msa.in.norm", h_);
    spec(p + ".msa.in.prelu", {1}, Init::constant(0.25));
    for (int64_t i = 0; i < depth_; ++i) {
      const std::string at = p + ".msa.down." + std::to_string(i);
      conv_specs(at + ".conv", {h_, kTaps}, kTaps);
      norm_specs(at + ".norm", h_);
    }
    for (const char* fc : {"fc1", "fc2"}) {
      conv_specs(p + ".msa.global." + fc + ".conv", {h_, h_}, h_, false);
      norm_specs(p + ".msa.global." + fc + ".norm", h_);
    }
    conv_specs(p + ".msa.global.dw", {h_, kTaps}, kTaps);
    for (const bool fuse : {true, false})
      for (int64_t i = 0; i < (fuse ? depth_ : depth_ - 1); ++i)
        for (const char* part : {"local", "gate", "global"}) {
          const std::string at = p + (fuse ? ".msa.fuse." : ".msa.decode.") + std::to_string(i) + "." + part;
          conv_specs(at + ".conv", {h_, fuse ? 1 : kTaps}, fuse ? 1 : kTaps, false);
          norm_specs(at + ".norm", h_);
        }
    conv_specs(p + ".msa.out", {n, h_}, h_);
    for (int64_t i = 0; i < s_.heads; ++i)
      for (const char* part : {"Q", "K", "V"}) {
        const std::string at = p + ".f3a." + std::to_string(i) + "." + part;
        const int64_t width = part[0] == 'V' ? n / s_.heads : e_;
        conv_specs(at + ".conv", {width, n}, n);
        spec(at + ".prelu", {1}, Init::constant(0.25));
        norm_specs(at + ".norm", width);
      }
    conv_specs(p + ".f3a.out.conv", {n, n}, n);
    spec(p + ".f3a.out.prelu", {1}, Init::constant(0.25));
    norm_specs(p + ".f3a.out.norm", n);
    norm_specs(p + ".norm", n);
  }
  int64_t slope_width(const std::string& name) const {
    if (name.find(".msa.") != std::string::npos) return h_;
    if (name.find(".f3a.") == std::string::npos || name.find(".out.") != std::string::npos) return s_.n;
    return name.find(".V.") != std::string::npos ? s_.n / s_.heads : e_;
  }
  static bool depthwise(const std::string& name) {
    for (const char* part : {".msa.down.", ".msa.global.dw.", ".msa.fuse.", ".msa.decode."})
      if (name.find(part) != std::string::npos)
        return name.ends_with("weight") && name.find(".norm.") == std::string::npos;
    return false;
  }

  // ---- pieces
  // -------------------------------------------------------------------------------------------------

  static Cost norm_cost(int64_t rows, int64_t n, bool affine) {
    Cost c = moved(4 * (rows * n + (affine ? 2 * n : 0)), 4 * rows * n);
    c.elementwise = 5 * rows * n;
    c.special = 2 * rows;
    return c;
  }

  void prelu(Context& ctx, const Tensor& x, const std::string& name) const {
    const Tensor below = ctx.allocate(DType::f32, x.shape());
    call(ctx, Op::affine, x, {}, below, -1.0f);
    call(ctx, Op::relu, below, {}, below);
    call(ctx, Op::mul, below, rows_.at(name), below);
    call(ctx, Op::relu, x, {}, x);
    call(ctx, Op::sub, x, below, x);
  }
  static Cost prelu_cost(int64_t n, int64_t c) {
    return pointwise_cost(n, 0, false) + pointwise_cost(n, 0, true) * 2 + pointwise_cost(n, c, false) +
           pointwise_cost(n, n, false);
  }

  /// One group over all places and channels of each sequence of x [R, L, C].
  void group_norm(Context& ctx, const Tensor& x, const std::string& name, float eps) const {
    const int64_t c = x.dim(2);
    NormArgs a;
    a.x = a.y = x.reshape({x.dim(0), x.dim(1) * c});
    a.eps = eps;
    normalize(ctx, a);
    const Tensor rows = x.reshape({x.dim(0) * x.dim(1), c});
    call(ctx, Op::mul, rows, weight(name + ".weight"), rows);
    call(ctx, Op::add, rows, weight(name + ".bias"), rows);
  }
  static Cost group_cost(int64_t r, int64_t l, int64_t c) {
    return norm_cost(r, l * c, false) + pointwise_cost(r * l * c, c, false) * 2;
  }
  void channel_norm(Context& ctx, const Tensor& x, const std::string& name) const {
    NormArgs a;
    a.x = a.y = x;
    a.gain = weight(name + ".weight"), a.offset = weight(name + ".bias");
    a.eps = kChannelEps;
    normalize(ctx, a);
  }

  /// Depthwise convolution of x [R, L, H] with "same" padding: y [R, ceil(L / stride), H].
  Tensor depthwise_conv(Context& ctx, const Tensor& x, const std::string& kernel, int64_t stride,
                        const Tensor& bias) const {
    const int64_t r = x.dim(0), l = x.dim(1), to = (l + stride - 1) / stride;
    const Tensor& taps = rows_.at(kernel);
    const int64_t middle = taps.dim(0) / 2;
    const Tensor y = ctx.allocate(DType::f32, {r, to, h_}), part = ctx.allocate(DType::f32, {r, to, h_});
    const auto seen = [&](int64_t first, int64_t count) {
      return x.strided({r, count, h_}, {l * h_, stride * h_, 1}, first * h_);
    };
    call(ctx, Op::mul, seen(0, to), taps.select(0, middle), y);
    for (int64_t k = 0; k < taps.dim(0); ++k) {
      const auto [first, last] = reach(k - middle, l, to, stride);
      if (k == middle || first >= last) continue;
      const Tensor own = part.slice(1, 0, last - first), sum = y.slice(1, first, last);
      call(ctx, Op::mul, seen(first * stride + k - middle, last - first), taps.select(0, k), own);
      call(ctx, Op::add, sum, own, sum);
    }
    if (bias) call(ctx, Op::add, y, bias, y);
    return y;
  }
  /// Outputs j whose input j stride + offset exists.
  static std::pair<int64_t, int64_t> reach(int64_t offset, int64_t l, int64_t to, int64_t stride) {
    const int64_t first = offset < 0 ? (-offset + stride - 1) / stride : 0;
    const int64_t last = std::min(to, l - 1 - offset < 0 ? int64_t{0} : (l - 1 - offset) / stride + 1);
    return {first, last};
  }
  Cost depthwise_cost(int64_t r, int64_t l, int64_t taps, int64_t stride, bool bias) const {
    const int64_t to = (l + stride - 1) / stride;
    Cost c = pointwise_cost(r * to * h_, h_, false) * (bias ? 2 : 1);
    for (int64_t k = 0; k < taps; ++k) {
      const auto [first, last] = reach(k - taps / 2, l, to, stride);
      const int64_t n = r * (last - first) * h_;
      if (k != taps / 2 && first < last) c += pointwise_cost(n, h_, false) + pointwise_cost(n, n, false);
    }
    return c;
  }

  Tensor resized(Context& ctx, const Tensor& x, int64_t to) const {
    if (x.dim(1) == to) return x;
    const Tensor y = ctx.allocate(DType::f32, {x.dim(0), to, h_});
    gather_rows(ctx, {x, resize_.at({x.dim(1), to}), y});
    return y;
  }
  Cost resized_cost(int64_t r, int64_t from, int64_t to) const {
    return from == to ? Cost{} : gather_cost(r * to * h_, to);
  }

  /// SA: GN(dw local) sigmoid(GN(dw global)) + GN(dw global), the global parts at the length of the local
  /// one.
  Tensor gated(Context& ctx, const Tensor& local, const Tensor& global, const std::string& at) const {
    const auto part = [&](const Tensor& x, const char* name) {
      const Tensor y = depthwise_conv(ctx, x, at + "." + name + ".conv.weight", 1, {});
      group_norm(ctx, y, at + "." + name + ".norm", kGroupEps);
      return y;
    };
    const Tensor own = part(local, "local"), gate = part(global, "gate"), added = part(global, "global");
    call(ctx, Op::sigmoid, gate, {}, gate);
    call(ctx, Op::mul, own, resized(ctx, gate, own.dim(1)), own);
    call(ctx, Op::add, own, resized(ctx, added, own.dim(1)), own);
    return own;
  }
  Cost gated_cost(int64_t r, int64_t local, int64_t global, int64_t taps) const {
    const int64_t n = r * local * h_;
    return depthwise_cost(r, local, taps, 1, false) + group_cost(r, local, h_) +
           (depthwise_cost(r, global, taps, 1, false) + group_cost(r, global, h_)) * 2 +
           pointwise_cost(r * global * h_, 0, true) + resized_cost(r, global, local) * 2 +
           pointwise_cost(n, n, false) * 2;
  }

  std::vector<int64_t> lengths(int64_t length) const {
    std::vector<int64_t> l = {length};
    while (static_cast<int64_t>(l.size()) < depth_) l.push_back((l.back() + 1) / 2);
    return l;
  }
  /// The scale at which the decoder starts.
  int64_t seed_scale() const {
    return params_.choice("decoder_seed") == "coarsest" || depth_ == 2 ? depth_ - 1 : depth_ - 3;
  }

  /// MSA of x [R, L, N], in place.
  void msa(Context& ctx, const Tensor& x, const std::string& p) const {
    const int64_t r = x.dim(0), l = x.dim(1);
    const std::vector<int64_t> scale = lengths(l);
    const Tensor rows = x.reshape({r * l, s_.n}), wide = ctx.allocate(DType::f32, {r, l, h_});
    product(ctx, rows, weight(p + ".in.conv.weight"), wide.reshape({r * l, h_}), true,
            weight(p + ".in.conv.bias"));
    group_norm(ctx, wide, p + ".in.norm", kGroupEps);
    prelu(ctx, wide, p + ".in.prelu");
    std::vector<Tensor> e;
    const int64_t last = scale.back();
    const Tensor global = ctx.allocate(DType::f32, {r, last, h_});
    for (int64_t i = 0; i < depth_; ++i) {
      const std::string at = p + ".down." + std::to_string(i);
      e.push_back(depthwise_conv(ctx, i == 0 ? wide : e.back(), at + ".conv.weight", i == 0 ? 1 : 2,
                                 weight(at + ".conv.bias")));
      group_norm(ctx, e.back(), at + ".norm", kGroupEps);
      const Tensor pooled = i == 0 ? global : ctx.allocate(DType::f32, {r, last, h_});
      avg_pool2d(ctx, {e.back().reshape({r, scale[static_cast<size_t>(i)], 1, h_}),
                       pooled.reshape({r, last, 1, h_}), true});
      if (i > 0) call(ctx, Op::add, global, pooled, global);
    }
    const Tensor mixed = ctx.allocate(DType::f32, {r, last, h_});
    const Shape flat{r * last, h_};
    product(ctx, global.reshape(flat), weight(p + ".global.fc1.conv.weight"), mixed.reshape(flat), true);
    group_norm(ctx, mixed, p + ".global.fc1.norm", kGroupEps);
    const Tensor around =
        depthwise_conv(ctx, mixed, p + ".global.dw.weight", 1, weight(p + ".global.dw.bias"));
    call(ctx, Op::relu, around, {}, around);
    product(ctx, around.reshape(flat), weight(p + ".global.fc2.conv.weight"), global.reshape(flat), true);
    group_norm(ctx, global, p + ".global.fc2.norm", kGroupEps);
    for (int64_t i = 0; i < depth_; ++i)
      e[static_cast<size_t>(i)] =
          gated(ctx, e[static_cast<size_t>(i)], global, p + ".fuse." + std::to_string(i));
    Tensor g = e[static_cast<size_t>(seed_scale())];
    for (int64_t i = depth_ - 2; i >= 0; --i)
      g = gated(ctx, e[static_cast<size_t>(i)], g, p + ".decode." + std::to_string(i));
    product(ctx, g.reshape({r * l, h_}), weight(p + ".out.weight"), rows, true, weight(p + ".out.bias"),
            Activation::none, true);
  }
  Cost msa_cost(int64_t r, int64_t l) const {
    const std::vector<int64_t> scale = lengths(l);
    const int64_t last = scale.back(), n = s_.n;
    Cost c = product_cost(1, r * l, h_, n, h_ * n, true) + group_cost(r, l, h_) + prelu_cost(r * l * h_, h_);
    for (int64_t i = 0; i < depth_; ++i) {
      const int64_t own = scale[static_cast<size_t>(i)];
      c += depthwise_cost(r, i == 0 ? l : scale[static_cast<size_t>(i - 1)], kTaps, i == 0 ? 1 : 2, true) +
           group_cost(r, own, h_);
      int64_t read = 0;
      for (int64_t j = 0; j < last; ++j) read += ((j + 1) * own + last - 1) / last - j * own / last;
      Cost pool = moved(4 * r * own * h_, 4 * r * last * h_);
      pool.elementwise = r * h_ * (read + last);
      c += pool;
      if (i > 0) c += pointwise_cost(r * last * h_, r * last * h_, false);
    }
    c += (product_cost(1, r * last, h_, h_, h_ * h_) + group_cost(r, last, h_)) * 2 +
         depthwise_cost(r, last, kTaps, 1, true) + pointwise_cost(r * last * h_, 0, true);
    for (int64_t i = 0; i < depth_; ++i) c += gated_cost(r, scale[static_cast<size_t>(i)], last, 1);
    int64_t from = scale[static_cast<size_t>(seed_scale())];
    for (int64_t i = depth_ - 2; i >= 0; --i) {
      c += gated_cost(r, scale[static_cast<size_t>(i)], from, kTaps);
      from = scale[static_cast<size_t>(i)];
    }
    return c + product_cost(1, r * l, n, h_, n * h_, true, false, true);
  }
  int64_t msa_macs(int64_t l) const {
    const std::vector<int64_t> scale = lengths(l);
    int64_t sum = 0, decode = 0;
    for (int64_t v : scale) sum += v;
    for (int64_t i = 0; i + 1 < depth_; ++i)
      decode +=
          scale[static_cast<size_t>(i)] + 2 * (i == depth_ - 2 ? scale[static_cast<size_t>(seed_scale())]
                                                               : scale[static_cast<size_t>(i + 1)]);
    return 2 * l * s_.n * h_ + kTaps * h_ * sum + scale.back() * (2 * h_ * h_ + kTaps * h_) +
           h_ * (sum + 2 * depth_ * scale.back()) + kTaps * h_ * decode;
  }

  /// F3A of u [B, M, R, N], attending over M with all R places as features; in place.
  void attend(Context& ctx, const Tensor& u, const std::string& p) const {
    const int64_t b = s_.batch, m = u.dim(1), r = u.dim(2), n = s_.n, tokens = b * m * r, v = n / s_.heads;
    const Tensor rows = u.reshape({tokens, n}), joined = ctx.allocate(DType::f32, {tokens, n}),
                 scores = ctx.allocate(DType::f32, {b, m, m}), out = ctx.allocate(DType::f32, {tokens, n});
    const auto branch = [&](const Tensor& x, const std::string& at, const Tensor& y) {
      product(ctx, x, weight(at + ".conv.weight"), y, true, weight(at + ".conv.bias"));
      prelu(ctx, y, at + ".prelu");
      channel_norm(ctx, y, at + ".norm");
    };
    for (int64_t i = 0; i < s_.heads; ++i) {
      const std::string at = p + "." + std::to_string(i) + ".";
      const Tensor q = ctx.allocate(DType::f32, {tokens, e_}), k = ctx.allocate(DType::f32, {tokens, e_}),
                   values = ctx.allocate(DType::f32, {tokens, v}),
                   mixed = ctx.allocate(DType::f32, {tokens, v});
      branch(rows, at + "Q", q);
      branch(rows, at + "K", k);
      branch(rows, at + "V", values);
      GemmArgs dot;
      dot.a = q.reshape({b, m, r * e_}), dot.b = k.reshape({b, m, r * e_}), dot.c = scores;
      dot.b_transposed = true;
      dot.alpha = static_cast<float>(1 / std::sqrt(static_cast<double>(e_ * r)));
      gemm(ctx, dot);
      SoftmaxArgs soft;
      soft.x = soft.y = scores;
      softmax(ctx, soft);
      product(ctx, scores, values.reshape({b, m, r * v}), mixed.reshape({b, m, r * v}), false);
      transpose_copy(ctx, {mixed, joined.slice(1, i * v, (i + 1) * v)});
    }
    branch(joined, p + ".out", out);
    call(ctx, Op::add, rows, out, rows);
  }
  Cost attend_cost(int64_t m, int64_t r) const {
    const int64_t b = s_.batch, n = s_.n, tokens = b * m * r, v = n / s_.heads;
    const auto branch = [&](int64_t width) {
      return product_cost(1, tokens, width, n, width * n, true) + prelu_cost(tokens * width, width) +
             norm_cost(tokens, width, true);
    };
    Cost soft = moved(4 * b * m * m, 4 * b * m * m);
    soft.elementwise = 4 * b * m * m;
    soft.special = b * m * m;
    const Cost head = branch(e_) * 2 + branch(v) + product_cost(b, m, m, r * e_, tokens * e_) + soft +
                      product_cost(b, m, r * v, m, tokens * v) + copied(tokens * v);
    return head * s_.heads + branch(n) + pointwise_cost(tokens * n, tokens * n, false);
  }

  /// One frequency-frame interleaved pass over z [B, K, T, N], in place.
  void interleave(Context& ctx, const Tensor& z) const {
    const int64_t b = s_.batch, k = s_.bands, t = s_.frames, n = s_.n;
    const Tensor by_band = ctx.allocate(DType::f32, {b, k, t, n}),
                 by_frame = ctx.allocate(DType::f32, {b, t, k, n});
    const auto path = [&](const char* name, const Tensor& sequences, const Tensor& attended) {
      const std::string p = name;
      {
        const auto stage = ctx.stage(p + "_msa");
        msa(ctx, sequences.reshape({sequences.dim(0) * sequences.dim(1), sequences.dim(2), n}), p + ".msa");
      }
      const auto stage = ctx.stage(p + "_attention");
      transpose_copy(ctx, {sequences.transpose(1, 2), attended});
      attend(ctx, attended, p + ".f3a");
      channel_norm(ctx, attended.reshape({b * k * t, n}), p + ".norm");
    };
    const Tensor rows = z.reshape({b * k * t, n});
    transpose_copy(ctx, {z.transpose(1, 2), by_frame});
    path("freq", by_frame, by_band);  // sequences along bands; bands attend to bands
    call(ctx, Op::add, rows, by_band.reshape({b * k * t, n}), rows);
    transpose_copy(ctx, {z, by_band});
    path("frame", by_band, by_frame);
    transpose_copy(ctx, {by_frame.transpose(1, 2), by_band});
    call(ctx, Op::add, rows, by_band.reshape({b * k * t, n}), rows);
  }
  Cost block_cost() const {
    const int64_t b = s_.batch, k = s_.bands, t = s_.frames, n = s_.n, map = b * k * t * n;
    return msa_cost(b * t, k) + msa_cost(b * k, t) + attend_cost(k, t) + attend_cost(t, k) +
           norm_cost(b * k * t, n, true) * 2 + copied(map) * 5 + pointwise_cost(map, map, false) * 2;
  }

  // ---- shell
  // --------------------------------------------------------------------------------------------------

  /// Wave -> features z [B, K, T, N]; returns the mixture's spectrum [B, T, F, 2].
  Tensor split(Context& ctx, const Tensor& z) const {
    const auto stage = ctx.stage("split");
    const int64_t b = s_.batch, t = s_.frames, n_fft = params_.integer("n_fft");
    const Tensor bins = ctx.allocate(DType::f32, {b, t, n_fft / 2 + 1, 2});
    stft(ctx, {input("wave"), window_, bins, n_fft, params_.integer("hop"), n_fft / 2, 0,
               SignalBorder::reflect, 1.0f});
    int64_t first = 0;
    for (int64_t k = 0; k < s_.bands; ++k) {
      const int64_t g = s_.widths[static_cast<size_t>(k)];
      const std::string at = "split." + std::to_string(k);
      const Tensor rows = ctx.allocate(DType::f32, {b, t, 2 * g});
      // Real parts of the band, then imaginary ones.
      transpose_copy(ctx, {bins.slice(2, first, first + g).transpose(2, 3), rows.reshape({b, t, 2, g})});
      group_norm(ctx, rows, at + ".norm", kSplitEps);
      product(ctx, rows, weight(at + ".conv.weight"), z.select(1, k), true, weight(at + ".conv.bias"));
      first += g;
    }
    return bins;
  }
  Cost split_cost() const {
    const int64_t b = s_.batch, t = s_.frames, n = s_.n, n_fft = params_.integer("n_fft");
    Cost c = stft_cost(b, samples_, t, n_fft, n_fft);
    for (int64_t g : s_.widths)
      c += copied(2 * g * b * t) + group_cost(b, t, 2 * g) + product_cost(b, t, n, 2 * g, 2 * g * n, true);
    return c;
  }

  void masks(Context& ctx, const Tensor& z, const Tensor& bins) const {
    const auto stage = ctx.stage("masks");
    const int64_t b = s_.batch, t = s_.frames, n = s_.n, s = sources_, n_fft = params_.integer("n_fft"),
                  f = n_fft / 2 + 1;
    const Tensor mask = ctx.allocate(DType::f32, {b, s, t, f, 2});
    int64_t first = 0;
    for (int64_t k = 0; k < s_.bands; ++k) {
      const int64_t g = s_.widths[static_cast<size_t>(k)], half = 2 * s * g;
      const std::string at = "mask." + std::to_string(k);
      const Tensor x = ctx.allocate(DType::f32, {b, t, n}), out = ctx.allocate(DType::f32, {b, t, 2 * half}),
                   m = ctx.allocate(DType::f32, {b, t, half}), sum = ctx.allocate(DType::f32, {b, t, g});
      transpose_copy(ctx, {z.select(1, k), x});
      prelu(ctx, x.reshape({b * t, n}), at + ".prelu");
      const Tensor &kernel = weight(at + ".conv.weight"), &bias = weight(at + ".conv.bias");
      for (int64_t i = 0; i < s; ++i)
        product(ctx, x.slice(2, i * (n / s), (i + 1) * (n / s)), kernel.slice(0, i * 4 * g, (i + 1) * 4 * g),
                out.slice(2, i * 4 * g, (i + 1) * 4 * g), true, bias.slice(0, i * 4 * g, (i + 1) * 4 * g));
      call(ctx, Op::sigmoid_mul, out.slice(2, half, 2 * half), out.slice(2, 0, half), m);
      for (int64_t part = 0; part < 2; ++part) {
        const auto source = [&](int64_t i) { return m.slice(2, (part * s + i) * g, (part * s + i + 1) * g); };
        transpose_copy(ctx, {source(0), sum});
        for (int64_t i = 1; i < s; ++i) call(ctx, Op::add, sum, source(i), sum);
        // Real parts shall sum to 1, imaginary ones to 0.
        const auto share = static_cast<float>(1.0 / static_cast<double>(s));
        call(ctx, Op::affine, sum, {}, sum, share, part == 0 ? -share : 0.0f);
        for (int64_t i = 0; i < s; ++i) call(ctx, Op::sub, source(i), sum, source(i));
      }
      transpose_copy(ctx,
                     {m.reshape({b, t, 2, s, g}).permute({0, 3, 1, 4, 2}), mask.slice(3, first, first + g)});
      first += g;
    }
    ComplexArgs multiply;
    multiply.a = multiply.y = mask;
    multiply.b = bins.reshape({b, 1, t, f, 2});
    complex_pointwise(ctx, multiply);
    istft(ctx, {mask, window_, outputs_.at("est"), n_fft, params_.integer("hop"), n_fft / 2, 0, 1.0f});
  }
  Cost masks_cost() const {
    const int64_t b = s_.batch, t = s_.frames, n = s_.n, s = sources_, n_fft = params_.integer("n_fft"),
                  f = n_fft / 2 + 1, cells = b * s * t * f;
    Cost c;
    for (int64_t g : s_.widths) {
      const int64_t one = b * t * g, all = 2 * s * one;
      c += copied(b * t * n) + prelu_cost(b * t * n, n) +
           product_cost(b, t, 4 * g, n / s, 4 * g * (n / s), true) * s + pointwise_cost(all, all, true);
      c += (copied(one) + pointwise_cost(one, one, false) * (2 * s - 1) + pointwise_cost(one, 0, false)) * 2 +
           copied(all);
    }
    c += complex_pointwise_cost(ComplexArgs::Op::multiply, cells) + moved(8 * (cells + b * t * f), 8 * cells);
    return c + istft_cost(b * s, samples_, t, n_fft, n_fft);
  }

  Params params_;
  Sizes s_;
  bool full_;
  int64_t h_, depth_, e_, sources_, samples_;
  TensorMap outputs_, rows_;
  std::map<std::pair<int64_t, int64_t>, Tensor> resize_;
  Tensor window_;
};

class Tiger final : public Method {
 public:
  const MethodInfo& info() const override { return tiger_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    const auto fail = [](const std::string& name, const std::string& why) {
      throw UsageError("tiger." + name + ": " + why);
    };
    if (problem.causal)
      throw Unsupported("tiger has no causal mode: norms and attention cover the whole utterance");
    const bool full = p.choice("scope") == "full";
    if (full != (problem.kind == ProblemKind::signal))
      throw UsageError(
          std::string("tiger.scope: ") +
          (full ? "full takes a wave, so the problem is a signal"
                : "separator takes features, so the problem is an image with its grid [bands, frames]"));
    Sizes s{};
    s.batch = problem.batch;
    const auto given = [&](const char* name, int64_t own, int64_t standard) {
      if (p.is_null(name)) return own > 0 ? own : standard;
      if (own > 0 && own != p.integer(name))
        fail(name, std::to_string(p.integer(name)) + " is not the problem's " + std::to_string(own));
      return p.integer(name);
    };
    s.n = given("feature_dim", full ? 0 : problem.channels, 128);
    s.heads = given("att_heads", problem.heads, 4);
    s.rate = given("sample_rate", static_cast<int64_t>(problem.sample_rate), 16000);
    if (s.n % s.heads != 0)
      fail("att_heads", std::to_string(s.heads) + " does not divide feature_dim " + std::to_string(s.n));
    if (s.n % p.integer("num_sources") != 0)
      fail("num_sources",
           std::to_string(p.integer("num_sources")) + " does not divide feature_dim " + std::to_string(s.n));
    if (full) {
      require_extent(info(), problem.samples, "samples");
      const int64_t n_fft = p.integer("n_fft"), f = n_fft / 2 + 1;
      if (n_fft % 2 != 0) fail("n_fft", "an even length is wanted, not " + std::to_string(n_fft));
      if (p.integer("hop") > n_fft)
        fail("hop", std::to_string(p.integer("hop")) + " is beyond n_fft " + std::to_string(n_fft));
      if (problem.samples <= n_fft / 2)
        throw Unsupported("tiger: " + std::to_string(problem.samples) +
                          " samples are too few to reflect half a window of " + std::to_string(n_fft));
      s.widths = widths(p, s.rate, f);
      s.bands = static_cast<int64_t>(s.widths.size());
      s.frames = 1 + problem.samples / p.integer("hop");
    } else {
      if (problem.grid.size() != 2) throw UsageError("tiger: problem.grid [bands, frames] is missing");
      s.bands = problem.grid[0], s.frames = problem.grid[1];
    }
    return std::make_unique<TigerInstance>(ctx, problem, p, s);
  }

 private:
  static std::vector<int64_t> widths(const Params& p, int64_t rate, int64_t f) {
    std::vector<int64_t> w;
    int64_t sum = 0;
    if (!p.is_null("band_widths")) {
      w = integers("tiger", "band_widths", p.value("band_widths"));
      for (int64_t v : w) sum += v;
      if (sum != f || std::any_of(w.begin(), w.end(), [](int64_t v) { return v < 1; }))
        throw UsageError("tiger.band_widths: widths of 1 or more that sum to the " + std::to_string(f) +
                         " bins are wanted, not " + p.value("band_widths").str());
      return w;
    }
    double top = 0;
    for (const auto& [count, hertz] : {std::pair<int, double>{40, 25}, {10, 100}, {8, 250}, {8, 500}})
      for (int i = 0; i < count; ++i) {
        top += hertz;
        if (top > static_cast<double>(rate) / 2) continue;  // above half the rate
        w.push_back(static_cast<int64_t>(
            std::floor(hertz / (static_cast<double>(rate) / 2) * static_cast<double>(f))));
        sum += w.back();
        if (w.back() < 1)
          throw UsageError("tiger.n_fft: the table's bands of " + Value(hertz).str() +
                           " Hz are narrower than a bin of " + std::to_string(p.integer("n_fft")) +
                           " points at " + std::to_string(rate) + " Hz");
      }
    if (sum < f) w.push_back(f - sum);
    if (sum > f) throw UsageError("tiger.n_fft: the table's bands exceed " + std::to_string(f) + " bins");
    return w;
  }
};
ATTNBENCH_METHOD(Tiger);

}  // namespace
}  // namespace attnbench
