// FSATFusion: a block of token mixing (window attention and an MLP with context broadcast) and of frequency
// and spatial gates, and the fusion network around two of them.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/attention/attention.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {
namespace {

constexpr float kEps = 1e-5f;            // of every norm
constexpr float kCrossRegion = -100.0f;  // Swin's shift mask

/// Frequency pairs of the channels, first along the height, in units of floor(K / 7).
constexpr int kPairs[32][2] = {{0, 0}, {0, 1}, {6, 0}, {0, 5}, {0, 2}, {1, 0}, {1, 2}, {4, 0},
                               {5, 0}, {1, 6}, {3, 0}, {0, 4}, {0, 6}, {0, 3}, {3, 5}, {2, 2},
                               {4, 6}, {6, 3}, {3, 3}, {5, 3}, {5, 5}, {2, 1}, {6, 1}, {5, 2},
                               {5, 4}, {3, 2}, {3, 1}, {4, 1}, {2, 3}, {2, 0}, {6, 5}, {1, 3}};

enum class Scope : uint8_t { block, fsam, itm, network };

struct Fsat {
  Scope scope = Scope::block;
  int64_t batch = 1, c = 16, heads = 8, window = 1, hidden = 64, depth = 1, k = 224, frequencies = 16,
          squeezed = 1;
  int64_t h = 224, w = 224, in = 2, out = 1;
  double broadcast = 0.5;
  bool shared = true, channels_last = false, global = false;
  DType dtype = DType::f32;
  int64_t pixels() const { return h * w; }
  bool pools() const { return h != k || w != k; }
  bool attends() const { return global || window > 1; }  ///< one key: its value, whatever the scores
};

using Op = PointwiseArgs::Op;

/// Analyses see the attention of the first block, token by token as its layout has them.
class FsatInstance final : public vision::LayerInstance {
 public:
  FsatInstance(Context& ctx, const Fsat& f)
      : LayerInstance(ctx, {f.batch, f.h, f.w, f.c, f.heads, f.c / f.heads, f.dtype}), f_(f) {
    const int64_t c = f_.c;
    input_specs_ = {{"x",
                     {f_.batch, f_.scope == Scope::network ? f_.in : c, f_.h, f_.w},
                     f_.dtype,
                     f_.scope == Scope::network ? Init::uniform(0, 1) : Init::normal(),
                     false,
                     "maps, channels first"}};
    if (f_.scope == Scope::network) {
      conv_spec("front.conv1", c, f_.in, 3, true), conv_spec("front.conv2", c, c, 3, true);
      norm_spec("front.bn", true);
    }
    for (int64_t i = 0; i < f_.depth && f_.scope != Scope::fsam; ++i) {
      const std::string at = "blocks." + std::to_string(i) + ".";
      norm_spec(at + "ln1", false), norm_spec(at + "ln2", false);
      linear_spec(at + "attn.qkv", 3 * c, c, true), linear_spec(at + "attn.proj", c, c, true);
      linear_spec(at + "mlp.fc1", f_.hidden, c, true), linear_spec(at + "mlp.fc2", c, f_.hidden, true);
      const int64_t side = 2 * f_.window - 1;
      weight_specs_.push_back({at + "attn.bias_table",
                               {side * side, f_.heads},
                               f_.dtype,
                               Init::trunc_normal(0.02),
                               false,
                               "score bias by offset; without effect on windows of one token"});
    }
    if (f_.scope != Scope::itm)
      for (int64_t i = 0; i < (f_.shared ? 1 : f_.depth); ++i) {
        linear_spec(gates(i) + "W1", f_.squeezed, c, false),
            linear_spec(gates(i) + "W2", c, f_.squeezed, false);
        conv_spec(gates(i) + "conv7", 1, 2, 7, false);
        if (f_.scope != Scope::fsam) norm_spec(block_norm(i), true);
      }
    if (f_.scope == Scope::network) conv_spec("head", f_.out, c, 1, true);
    const auto output = [&](const std::string& name, const Shape& shape) {
      outputs_[name] = ctx.allocate(f_.dtype, shape, MemoryClass::output);
    };
    const Shape map{f_.batch, c, f_.h, f_.w};
    output("out", f_.scope == Scope::network ? Shape{f_.batch, f_.out, f_.h, f_.w} : map);
    out_ = outputs_.at("out");
    if (f_.scope == Scope::network) output("enc", map);
    if (f_.scope != Scope::itm)
      for (int64_t i = 0; i < f_.depth; ++i) {
        if (f_.scope != Scope::fsam) output(named("u", i), map);
        output(named("g", i), {f_.batch, c});
        if (f_.scope == Scope::network) continue;
        output(named("z", i), {f_.batch, c});
        output(named("q", i), {f_.batch, 1, f_.h, f_.w});
      }
    if (f_.scope != Scope::fsam && f_.window > 1 && !f_.global)
      for (int64_t i = 0; i < std::min<int64_t>(f_.depth, 2); ++i)
        partitions_.emplace_back(vision::WindowGrid{f_.h, f_.w, f_.window, i % 2 ? f_.window / 2 : 0},
                                 f_.batch);
    if (!partitions_.empty()) sets_ = partitions_[0].label_sets(set_of_token_);
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    for (vision::Partition& p : partitions_) p.upload(ctx);
    biases_.clear();
    for (int64_t i = 0; i < f_.depth && !partitions_.empty(); ++i) biases_.push_back(window_biases(ctx, i));
    if (f_.scope == Scope::itm) return;
    // D_c(i, j) of every channel.
    std::vector<float> basis;
    const auto b = [k = f_.k](int64_t f, int64_t i) {
      const double n = static_cast<double>(k);
      return std::cos(std::numbers::pi * static_cast<double>(f) * (static_cast<double>(i) + 0.5) / n) /
             std::sqrt(n) * (f > 0 ? std::sqrt(2.0) : 1.0);
    };
    const int64_t unit = f_.k / 7, each = f_.c / f_.frequencies;
    for (int64_t c = 0; c < f_.c; ++c) {
      const int* pair = kPairs[c / each];
      for (int64_t i = 0; i < f_.k; ++i)
        for (int64_t j = 0; j < f_.k; ++j)
          basis.push_back(static_cast<float>(b(pair[0] * unit, i) * b(pair[1] * unit, j)));
    }
    basis_ = upload(ctx, {f_.c, 1, f_.k * f_.k}, basis);
  }

  std::optional<PairSet> pairs() const override {
    if (f_.scope == Scope::fsam) return std::nullopt;
    return LayerInstance::pairs();
  }
  int64_t keys(int64_t) const override {
    return f_.scope == Scope::fsam ? 0
           : partitions_.empty()   ? f_.pixels()
                                   : partitions_[0].grid().padded_tokens();
  }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    if (f_.scope == Scope::fsam) return false;
    if (f_.attends()) return LayerInstance::rows(ctx, b, h, q_begin, q_end, out);
    out.assign(static_cast<size_t>((q_end - q_begin) * f_.pixels()), 0.0f);
    for (int64_t i = q_begin; i < q_end; ++i)
      out[static_cast<size_t>((i - q_begin) * f_.pixels() + i)] = 1.0f;
    return true;
  }
  std::optional<RowStats> row_stats(Context& ctx) override {
    if (f_.scope == Scope::fsam) return std::nullopt;
    if (f_.attends()) return LayerInstance::row_stats(ctx);
    const Shape shape{f_.batch, f_.heads, f_.pixels()};
    const std::vector<float> one(static_cast<size_t>(shape.numel()), 1.0f), zero(one.size(), 0.0f);
    return RowStats{upload(ctx, shape, zero), upload(ctx, shape, one), upload(ctx, shape, one)};
  }

  ClosedForm cost() const override {
    ClosedForm form;
    const int64_t b = f_.batch, c = f_.c, n = f_.pixels(), all = b * n * c, rows = b * n;
    const auto bytes = static_cast<int64_t>(size_of(f_.dtype));
    const bool wide = f_.dtype == DType::f32;
    const auto simple = [&](int64_t elements, int64_t other, int64_t special = 0) {
      Cost k;
      (special ? k.special : k.elementwise) = elements;
      k.bytes_read = (elements + other) * bytes, k.bytes_written = elements * bytes;
      return k;
    };
    const auto move = [](int64_t elements, int64_t size) {
      Cost k;
      k.bytes_read = k.bytes_written = elements * size;
      return k;
    };
    const auto cast = [&](int64_t elements, bool widen) {
      Cost k;
      if (wide) return k;
      k.bytes_read = elements * (widen ? bytes : 4), k.bytes_written = elements * (widen ? 4 : bytes);
      return k;
    };
    const auto conv_cost = [&](int64_t in, int64_t out, int64_t side, bool bias) {
      Cost k;
      k.matmul = 2 * rows * in * out * side * side;
      k.elementwise = bias ? rows * out : 0;
      k.bytes_read = (rows * in + in * out * side * side + (bias ? out : 0)) * bytes;
      k.bytes_written = rows * out * bytes;
      return k;
    };
    Cost norm;
    norm.elementwise = 2 * all, norm.special = 2 * c;
    norm.bytes_read = (all + 4 * c) * bytes, norm.bytes_written = all * bytes;

    Cost itm;
    if (f_.channels_last) itm += move(all, bytes) * 2;
    itm += vision::layer_norm_cost(rows, c, f_.dtype) * 2;
    if (!f_.attends()) itm += vision::linear_cost(rows, c, c, true, f_.dtype) * 2;
    if (f_.global)
      itm += vision::linear_cost(rows, c, 3 * c, true, f_.dtype) +
             vision::attend_cost(b, f_.heads, n, n, c / f_.heads, f_.dtype) +
             vision::linear_cost(rows, c, c, true, f_.dtype);
    itm += vision::linear_cost(rows, c, f_.hidden, true, f_.dtype) +
           vision::linear_cost(rows, f_.hidden, c, true, f_.dtype);
    itm.special += rows * f_.hidden;  // the activation
    itm += simple(all, all) * 2;      // residuals
    Cost mean;
    mean.elementwise = all;
    mean.bytes_read = all * bytes, mean.bytes_written = b * c * bytes;
    if (f_.broadcast > 0) itm += mean + simple(all, 0) + simple(b * c, 0) + simple(all, b * c);
    if (f_.scope != Scope::fsam)
      for (int64_t i = 0; i < f_.depth; ++i) {
        form.cost += itm;
        if (partitions_.empty()) continue;
        const vision::Partition& p = partitions_[static_cast<size_t>(i % 2)];
        const int64_t slots = p.slots(), area = p.grid().area();
        if (!p.identity())
          form.cost += vision::move_cost(slots, c, f_.dtype) + vision::move_cost(rows, c, f_.dtype);
        form.cost += vision::linear_cost(slots, c, 3 * c, true, f_.dtype) +
                     vision::linear_cost(rows, c, c, true, f_.dtype);
        for (const vision::Partition::Group& g : p.groups())
          form.cost += vision::attend_cost(g.windows, f_.heads, area, area, c / f_.heads, f_.dtype,
                                           f_.heads * area * area);
      }
    Cost gate = cast(all, true) + cast(2 * c * f_.squeezed, true);
    if (f_.pools()) {
      const auto reads = [](int64_t in, int64_t out) {
        int64_t r = 0;
        for (int64_t i = 0; i < out; ++i) r += ((i + 1) * in + out - 1) / out - i * in / out;
        return r;
      };
      gate += vision::pool_cost(b * c * reads(f_.h, f_.k) * reads(f_.w, f_.k), all, b * c * f_.k * f_.k,
                                DType::f32);
    }
    Cost dct;
    dct.matmul = 2 * b * c * f_.k * f_.k;
    dct.bytes_read = 4 * (b + 1) * c * f_.k * f_.k, dct.bytes_written = 4 * b * c;
    gate += dct + move(b * c, 4) + cast(b * c, false) * (f_.scope == Scope::network ? 1 : 2);
    Cost squeeze = vision::linear_cost(b, c, f_.squeezed, false, DType::f32) +
                   vision::linear_cost(b, f_.squeezed, c, false, DType::f32);
    squeeze.special += b * f_.squeezed + b * c;
    squeeze.bytes_read += 4 * b * c, squeeze.bytes_written += 4 * b * c;
    gate += squeeze;
    if (wide) gate += move(b * c, 4) * (f_.scope == Scope::network ? 1 : 2);
    Cost planes;
    planes.elementwise = 4 * all;
    planes.special = rows;
    planes.bytes_read = 2 * all * bytes, planes.bytes_written = 2 * rows * bytes;
    gate += simple(all, b * c) + planes + move(2 * rows, bytes) + conv_cost(2, 1, 7, false) +
            simple(rows, 0, 1) + simple(all, rows);
    if (f_.scope != Scope::itm) form.cost += gate * f_.depth;
    if (f_.scope == Scope::block || f_.scope == Scope::network)
      form.cost += (simple(all, all) + norm + simple(all, 0, 1)) * f_.depth;
    if (f_.scope == Scope::network)
      form.cost += conv_cost(f_.in, c, 3, true) + conv_cost(c, c, 3, true) + norm + simple(all, 0, 1) * 2 +
                   conv_cost(c, f_.out, 1, true) + simple(rows * f_.out, 0, 1);

    const int64_t keys = f_.global ? n : f_.window * f_.window;
    const int64_t mixing = (4 * c * c + 2 * keys * c + 2 * f_.hidden * c) * n;
    const int64_t gating = f_.k * f_.k * c + 2 * c * f_.squeezed + 98 * n;
    if (f_.scope != Scope::fsam) form.published_macs += mixing * f_.depth;
    if (f_.scope != Scope::itm) form.published_macs += gating * f_.depth;
    if (f_.scope == Scope::network) form.published_macs += (9 * f_.in * c + 9 * c * c + c * f_.out) * n;
    form.published_macs_note =
        "the card's formulas, with the projections of queries and keys that windows of one token leave out";
    const int64_t side = 2 * f_.window - 1;
    if (f_.scope != Scope::fsam)
      form.parameters +=
          f_.depth * (4 * c + side * side * f_.heads + 4 * c * c + 4 * c + 2 * f_.hidden * c + f_.hidden + c);
    const int64_t sets = f_.shared ? 1 : f_.depth;
    if (f_.scope != Scope::itm)
      form.parameters += sets * (2 * c * f_.squeezed + 98 + (f_.scope == Scope::fsam ? 0 : 2 * c));
    if (f_.scope == Scope::network)
      form.parameters += 9 * f_.in * c + c + 9 * c * c + c + 2 * c + c * f_.out + f_.out;
    return form;
  }

 protected:
  void forward(Context& ctx, vision::Trace* trace) override {
    Tensor x = input("x");
    if (f_.scope == Scope::network) {
      auto stage = ctx.stage("front");
      const Tensor a = map(ctx), b = map(ctx);
      conv(ctx, "front.conv1", x, a, 1);
      pointwise(ctx, {Op::relu, a, {}, a});
      conv(ctx, "front.conv2", a, b, 1);
      batch_norm(ctx, "front.bn", b, b);
      pointwise(ctx, {Op::relu, b, {}, outputs_.at("enc")});
      x = outputs_.at("enc");
    }
    for (int64_t i = 0; i < f_.depth; ++i) {
      const bool last = i + 1 == f_.depth && f_.scope != Scope::network;
      const Tensor to = last ? outputs_.at("out") : map(ctx);
      if (f_.scope == Scope::fsam) {
        gate(ctx, i, x, to);
      } else {
        const Tensor u = f_.scope == Scope::itm ? to : outputs_.at(named("u", i));
        mix(ctx, i, x, u, i == 0 ? trace : nullptr);
        if (f_.scope != Scope::itm) {
          const Tensor gated = map(ctx);
          gate(ctx, i, u, gated);
          auto stage = ctx.stage("norm");
          pointwise(ctx, {Op::add, u, gated, gated});
          batch_norm(ctx, block_norm(i), gated, gated);
          pointwise(ctx, {Op::relu, gated, {}, to});
        }
      }
      x = to;
    }
    if (f_.scope != Scope::network) return;
    auto stage = ctx.stage("head");
    conv(ctx, "head", x, outputs_.at("out"), 0);
    pointwise(ctx, {Op::tanh, outputs_.at("out"), {}, outputs_.at("out")});
  }

  Place place(int64_t b, int64_t h, int64_t i) const override {
    if (partitions_.empty()) return {0, b, h, i};
    const vision::Partition::Slot slot = partitions_[0].slot_of(b, i);
    const size_t g = partitions_[0].group_of(slot.window);
    return {g, slot.window - partitions_[0].groups()[g].first_window, h, slot.row};
  }
  int64_t key_column(int64_t b, int64_t, int64_t i, int64_t j) const override {
    return partitions_.empty() ? j : partitions_[0].padded_position(partitions_[0].slot_of(b, i).window, j);
  }
  int64_t visible_keys(int64_t, int64_t) const override {
    return partitions_.empty() ? f_.pixels() : partitions_[0].grid().area();
  }
  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    if (!f_.attends()) return [](int64_t, int64_t, int64_t i, Intervals& out) { out = {{i, i + 1}}; };
    if (f_.global) return [n = f_.pixels()](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, n}}; };
    return [sets = sets_, set_of = set_of_token_](int64_t, int64_t, int64_t i, Intervals& out) {
      out = (*sets)[static_cast<size_t>(set_of[static_cast<size_t>(i)])];
    };
  }

 private:
  /// Names of one block's tensors are plain; those of several, and of the network's, are numbered.
  std::string named(const std::string& name, int64_t i) const {
    return f_.depth == 1 && f_.scope != Scope::network ? name : name + std::to_string(i);
  }
  std::string gates(int64_t i) const {
    return f_.shared ? "fsam." : "blocks." + std::to_string(i) + ".fsam.";
  }
  std::string block_norm(int64_t i) const {
    return f_.shared ? "block_bn" : "blocks." + std::to_string(i) + ".block_bn";
  }

  void linear_spec(const std::string& name, int64_t out, int64_t in, bool bias) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(in));
    weight_specs_.push_back(
        {name + ".weight", {out, in}, f_.dtype, Init::uniform(-bound, bound), false, "[out, in]"});
    if (bias)
      weight_specs_.push_back(
          {name + ".bias", {out}, f_.dtype, Init::uniform(-bound, bound), false, "its bias"});
  }
  void conv_spec(const std::string& name, int64_t out, int64_t in, int64_t side, bool bias) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(in * side * side));
    weight_specs_.push_back(
        {name + ".weight", {out, in, side, side}, f_.dtype, Init::uniform(-bound, bound), false, ""});
    if (bias)
      weight_specs_.push_back(
          {name + ".bias", {out}, f_.dtype, Init::uniform(-bound, bound), false, "its bias"});
  }
  void norm_spec(const std::string& name, bool running) {
    weight_specs_.push_back({name + ".weight", {f_.c}, f_.dtype, Init::constant(1), false, "gain"});
    weight_specs_.push_back({name + ".bias", {f_.c}, f_.dtype, Init::constant(0), false, "offset"});
    if (!running) return;
    weight_specs_.push_back(
        {name + ".running_mean", {f_.c}, f_.dtype, Init::constant(0), false, "not learned"});
    weight_specs_.push_back(
        {name + ".running_var", {f_.c}, f_.dtype, Init::constant(1), false, "not learned"});
  }

  Tensor map(Context& ctx) const { return ctx.allocate(f_.dtype, {f_.batch, f_.c, f_.h, f_.w}); }
  Tensor in_f32(Context& ctx, const Tensor& t) const {
    if (t.dtype() == DType::f32) return t;
    const Tensor wide = ctx.allocate(DType::f32, t.shape());
    cast(ctx, {t, wide});
    return wide;
  }
  void conv(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y, int64_t pad) const {
    Conv2dArgs a;
    a.x = x, a.y = y, a.weight = weight(name + ".weight");
    if (has_weight(name + ".bias")) a.bias = weight(name + ".bias");
    a.channels_last = false;
    a.pad = {pad, pad, pad, pad};
    conv2d(ctx, a);
  }
  void batch_norm(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y) const {
    GroupNormArgs a;
    a.x = x, a.y = y, a.channels_last = false, a.eps = kEps;
    a.gain = weight(name + ".weight"), a.offset = weight(name + ".bias");
    a.mean = weight(name + ".running_mean"), a.variance = weight(name + ".running_var");
    group_norm(ctx, a);
  }
  Tensor dense(Context& ctx, const std::string& name, const Tensor& x, int64_t first, int64_t out,
               Activation activation = Activation::none) const {
    const Tensor y = ctx.allocate(f_.dtype, {x.dim(0), out});
    linear(ctx, x, weight(name + ".weight").slice(0, first, first + out),
           weight(name + ".bias").slice(0, first, first + out), y, activation);
    return y;
  }
  Tensor layer_norm(Context& ctx, const std::string& name, const Tensor& x) const {
    const Tensor y = ctx.allocate_like(x);
    NormArgs a;
    a.x = x, a.y = y, a.gain = weight(name + ".weight"), a.offset = weight(name + ".bias"), a.eps = kEps;
    normalize(ctx, a);
    return y;
  }

  /// Steps 1 to 3: x to u, both [B, C, H, W].
  void mix(Context& ctx, int64_t i, const Tensor& x, const Tensor& u, vision::Trace* trace) const {
    const int64_t b = f_.batch, c = f_.c, n = f_.pixels(), rows = b * n;
    const std::string at = "blocks." + std::to_string(i) + ".";
    Tensor token = x.reshape({rows, c});  // the code's view: 16 neighbours of a plane are a token
    if (f_.channels_last) {
      auto stage = ctx.stage("layout");
      token = ctx.allocate(f_.dtype, {rows, c});
      transpose_copy(ctx, {x.reshape({b, c, n}).transpose(1, 2), token.reshape({b, n, c})});
    }
    const Tensor sum = ctx.allocate(f_.dtype, {rows, c});
    {
      auto stage = ctx.stage("attend");
      const Tensor o = attention_of(ctx, i, layer_norm(ctx, at + "ln1", token), trace);
      pointwise(ctx, {Op::add, token, o, sum});
    }
    auto stage = ctx.stage("mlp");
    const Tensor m = dense(
        ctx, at + "mlp.fc2",
        dense(ctx, at + "mlp.fc1", layer_norm(ctx, at + "ln2", sum), 0, f_.hidden, Activation::gelu_erf), 0,
        c);
    if (f_.broadcast > 0) {
      auto part = ctx.stage("broadcast");
      const Tensor mean = ctx.allocate(f_.dtype, {b, 1, c});
      reduce_axis(ctx, {ReduceAxisArgs::Op::mean, m.reshape({b, n, c}), mean, 1});
      const auto share = static_cast<float>(f_.broadcast);
      pointwise(ctx, {Op::affine, m, {}, m, 1.0f - share});
      pointwise(ctx, {Op::affine, mean, {}, mean, share});
      pointwise(ctx, {Op::add, m.reshape({b, n, c}), mean, m.reshape({b, n, c})});
    }
    if (!f_.channels_last) {
      pointwise(ctx, {Op::add, sum, m, u.reshape({rows, c})});
      return;
    }
    pointwise(ctx, {Op::add, sum, m, sum});
    transpose_copy(ctx, {sum.reshape({b, n, c}).transpose(1, 2), u.reshape({b, c, n})});
  }

  /// proj of the attention of tokens a [B HW, C].
  Tensor attention_of(Context& ctx, int64_t i, const Tensor& a, vision::Trace* trace) const {
    const int64_t b = f_.batch, c = f_.c, n = f_.pixels(), d = c / f_.heads;
    const std::string at = "blocks." + std::to_string(i) + ".attn.";
    if (!f_.attends()) return dense(ctx, at + "proj", dense(ctx, at + "qkv", a, 2 * c, c), 0, c);
    AttentionArgs args;
    args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
    const auto call = [&](const Tensor& qkv, const Tensor& o, int64_t first, int64_t batch, int64_t rows) {
      args.q = vision::heads_view(qkv, first, batch, rows, 0, f_.heads, d);
      args.k = vision::heads_view(qkv, first, batch, rows, 1, f_.heads, d);
      args.v = vision::heads_view(qkv, first, batch, rows, 2, f_.heads, d);
      args.o = vision::heads_view(o, first, batch, rows, 0, f_.heads, d);
      vision::attend(ctx, args, trace);
    };
    if (f_.global) {
      const Tensor o = ctx.allocate(f_.dtype, {b * n, c});
      call(dense(ctx, at + "qkv", a, 0, 3 * c), o, 0, b, n);
      return dense(ctx, at + "proj", o, 0, c);
    }
    // Padding comes after the norm, so that padded tokens carry the biases, as Swin's do.
    const vision::Partition& p = partitions_[static_cast<size_t>(i % 2)];
    Tensor slots = a;
    if (!p.identity()) {
      slots = ctx.allocate(f_.dtype, {p.slots(), c});
      p.to_slots(ctx, a, slots);
    }
    const Tensor qkv = dense(ctx, at + "qkv", slots, 0, 3 * c);
    Tensor o = ctx.allocate(f_.dtype, {p.slots(), c});
    for (size_t g = 0; g < p.groups().size(); ++g) {
      args.bias.dense = biases_[static_cast<size_t>(i)][g];
      call(qkv, o, p.groups()[g].first_window * p.grid().area(), p.groups()[g].windows, p.grid().area());
    }
    if (!p.identity()) {
      const Tensor tokens = ctx.allocate(f_.dtype, {b * n, c});
      p.to_tokens(ctx, o, tokens);
      o = tokens;
    }
    return dense(ctx, at + "proj", o, 0, c);
  }

  std::vector<Tensor> window_biases(Context& ctx, int64_t i) const {
    const vision::Partition& p = partitions_[static_cast<size_t>(i % 2)];
    const Tensor& t = weight("blocks." + std::to_string(i) + ".attn.bias_table");
    std::vector<char> bytes(static_cast<size_t>(t.nbytes()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), bytes.data()));
    ctx.backend().synchronize();
    std::vector<float> table(static_cast<size_t>(t.numel()));
    convert(bytes.data(), t.dtype(), table.data(), DType::f32, t.numel());
    const int64_t w = f_.window, area = w * w;
    std::vector<Tensor> biases;
    for (const vision::Partition::Group& g : p.groups()) {
      std::vector<float> v;
      for (int64_t h = 0; h < f_.heads; ++h)
        for (int64_t q = 0; q < area; ++q)
          for (int64_t k = 0; k < area; ++k) {
            const int64_t row = (q / w - k / w + w - 1) * (2 * w - 1) + q % w - k % w + w - 1;
            v.push_back(table[static_cast<size_t>(row * f_.heads + h)] +
                        (p.label(g, q) != p.label(g, k) ? kCrossRegion : 0.0f));
          }
      biases.push_back(upload(ctx, {1, f_.heads, area, area}, v));
    }
    return biases;
  }

  /// Steps 4 to 7: f = u g q into y.
  void gate(Context& ctx, int64_t i, const Tensor& u, const Tensor& y) const {
    const int64_t b = f_.batch, c = f_.c, k = f_.k;
    auto stage = ctx.stage("gate");
    // The frequencies are taken in f32: their sums over the map cancel.
    Tensor p = in_f32(ctx, u);
    if (f_.pools()) {
      Pool2dArgs pool;
      pool.kind = Pool2dArgs::Kind::average, pool.adaptive = true, pool.channels_last = false;
      pool.x = p, pool.y = ctx.allocate(DType::f32, {b, c, k, k});
      pool2d(ctx, pool);
      p = pool.y;
    }
    const Tensor by_channel = ctx.allocate(DType::f32, {c, b, 1}), z = ctx.allocate(DType::f32, {b, c});
    GemmArgs dot;
    dot.a = p.strided({c, b, k * k}, {k * k, c * k * k, 1}), dot.b = basis_, dot.b_transposed = true,
    dot.c = by_channel;
    gemm(ctx, dot);
    transpose_copy(ctx, {by_channel.reshape({c, b}).transpose(0, 1), z});
    const Tensor squeezed = ctx.allocate(DType::f32, {b, f_.squeezed}), g = ctx.allocate_like(z);
    linear(ctx, z, in_f32(ctx, weight(gates(i) + "W1.weight")), {}, squeezed, Activation::relu);
    linear(ctx, squeezed, in_f32(ctx, weight(gates(i) + "W2.weight")), {}, g);
    pointwise(ctx, {Op::sigmoid, g, {}, g});
    const Tensor own = outputs_.at(named("g", i));
    cast(ctx, {g, own});
    if (f_.scope != Scope::network) cast(ctx, {z, outputs_.at(named("z", i))});
    const Tensor scaled = map(ctx);
    pointwise(ctx, {Op::mul, u, own.reshape({b, c, 1, 1}), scaled});
    const Tensor planes = ctx.allocate(f_.dtype, {b, 2, f_.h, f_.w}),
                 plane = ctx.allocate(f_.dtype, {b, 1, f_.h, f_.w});
    for (int64_t which = 0; which < 2; ++which) {
      reduce_axis(ctx,
                  {which == 0 ? ReduceAxisArgs::Op::max : ReduceAxisArgs::Op::deviation, scaled, plane, 1});
      transpose_copy(ctx, {plane, planes.slice(1, which, which + 1)});
    }
    const Tensor q = f_.scope == Scope::network ? plane : outputs_.at(named("q", i));
    conv(ctx, gates(i) + "conv7", planes, q, 3);
    pointwise(ctx, {Op::sigmoid, q, {}, q});
    pointwise(ctx, {Op::mul, scaled, q, y});
  }

  Fsat f_;
  TensorMap outputs_;
  std::vector<vision::Partition> partitions_;           ///< of even and of odd blocks
  std::shared_ptr<const std::vector<Intervals>> sets_;  ///< tokens that share a window of the first block
  std::vector<int32_t> set_of_token_;
  std::vector<std::vector<Tensor>> biases_;  ///< by block and group
  Tensor basis_;
};

class FsatFusion final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("fsatfusion: maps have no causal mode");
    const auto refuse = [](const std::string& why) { throw UsageError("fsatfusion: " + why); };
    Fsat f;
    const std::string& scope = params.choice("scope");
    f.scope = scope == "block"  ? Scope::block
              : scope == "fsam" ? Scope::fsam
              : scope == "itm"  ? Scope::itm
                                : Scope::network;
    f.batch = problem.batch, f.dtype = problem.dtype;
    f.c = params.integer("dim"), f.heads = params.integer("num_heads"),
    f.window = params.integer("window_size");
    f.k = params.integer("dct_size"), f.frequencies = params.value("num_freq").as_int();
    f.in = params.integer("in_channels"), f.out = params.integer("out_channels");
    f.depth = params.is_null("depth") ? (f.scope == Scope::network ? 2 : 1) : params.integer("depth");
    if (f.depth > 1 && (f.scope == Scope::fsam || f.scope == Scope::itm))
      f.depth = 1;  // they are of one block
    const std::vector<int64_t>& extent = problem.grid.empty() ? problem.size : problem.grid;
    for (size_t axis = 0; axis < 2; ++axis) {
      const char* name = axis == 0 ? "height" : "width";
      int64_t& side = axis == 0 ? f.h : f.w;
      const int64_t from = extent.size() == 2 ? extent[axis] : 0;
      side = !params.is_null(name) ? params.integer(name) : from ? from : 224;
      if (from && from != side)
        refuse(std::string(name) + " " + std::to_string(side) + " differs from the problem's " +
               std::to_string(from));
    }
    const int64_t channels = f.scope == Scope::network ? f.in : f.c;
    if (problem.channels && problem.channels != channels)
      refuse("problem.channels " + std::to_string(problem.channels) + " differs from the " +
             std::to_string(channels) + " of scope " + scope);
    if (problem.heads && problem.heads != f.heads)
      refuse("num_heads " + std::to_string(f.heads) + " differs from problem.heads " +
             std::to_string(problem.heads));
    if (f.c % f.heads != 0)
      refuse("dim " + std::to_string(f.c) + " is not divisible by num_heads " + std::to_string(f.heads));
    if (f.frequencies != 1 && f.frequencies != 2 && f.frequencies != 4 && f.frequencies != 8 &&
        f.frequencies != 16 && f.frequencies != 32)
      refuse("num_freq " + std::to_string(f.frequencies) + " is none of 1, 2, 4, 8, 16, 32");
    if (f.scope != Scope::itm && f.c % f.frequencies != 0)
      refuse("dim " + std::to_string(f.c) + " is not a multiple of num_freq " +
             std::to_string(f.frequencies));
    const int64_t reduction = params.integer("reduction");
    if (reduction > f.c)
      refuse("reduction " + std::to_string(reduction) + " is more than dim " + std::to_string(f.c));
    f.squeezed = f.c / reduction;
    f.hidden = static_cast<int64_t>(params.number("mlp_ratio") * static_cast<double>(f.c));
    if (f.hidden < 1) refuse("mlp_ratio " + params.value("mlp_ratio").str() + " leaves no hidden channels");
    f.broadcast = params.number("broadcast");
    f.shared = params.boolean("share_fsam");
    f.channels_last = params.choice("token_layout") == "channels_last";
    f.global = params.choice("attn_scope") == "global";
    return std::make_unique<FsatInstance>(ctx, f);
  }

 private:
  static MethodInfo describe() {
    MethodInfo m;
    m.id = m.card = "fsatfusion";
    m.title = "Frequency-spatial attention Transformer (FSATFusion)";
    m.paper =
        "FSATFusion: Frequency-Spatial Attention Transformer for Infrared and Visible Image Fusion, 2025";
    m.arxiv = "2506.10366";
    m.family = "model-block";
    m.summary =
        "A block mixes tokens by window attention and an MLP that blends in the mean of all tokens, then "
        "gates channels by one frequency of the cosine transform each and positions by a convolution of the "
        "channels' maximum and deviation. The network fuses an infrared and a visible plane by two such "
        "blocks.";
    m.formula =
        "t1 = t + proj(attention(LN(t)));  m = MLP(LN(t1));  m <- (1 - s) m + s mean(m);  u = t1 + m\n"
        "z_c = sum over K x K of adaptive_pool(u_c) D_c;  g = sigmoid(W2 relu(W1 z));  x1 = u g\\n"
        "q = sigmoid(conv7x7[max_c x1 ; std_c x1]);  out = relu(BN(u + x1 q))\\n"
        "network: relu(conv3), relu(BN(conv3)), blocks, tanh(conv1)";
    m.cost =
        "MACs: ITM (4 C^2 + 2 w^2 C + 2 r C^2) n, FSAM K^2 C + 2 C^2 / 16 + 98 n, network (9 Cin C + 9 C^2 + "
        "C Cout) n. With w = 1 the projections of queries and keys are not run.";
    m.params = {
        spec::choice("scope", {"block", "fsam", "itm", "network"}, "what to build"),
        spec::integer("dim", 16, 1, "C, channels"),
        spec::integer("num_heads", 8, 1, "h"),
        spec::integer("window_size", 1, 1, "w; 1 leaves every token to itself"),
        spec::number("mlp_ratio", 4.0, 0.0, "hidden channels of the MLP over C, above 0"),
        spec::integer("depth", Value(), 1, "consecutive blocks; null: 1, 2 of the network"),
        spec::integer("dct_size", 224, 7, "K, side of the transformed map"),
        spec::integer("num_freq", 16, 1, "frequencies: 1, 2, 4, 8, 16 or 32; channels share them in runs"),
        spec::integer("reduction", 16, 1, "squeeze ratio of the channel gate"),
        spec::share("broadcast", 0.5, "share of the mean token in the MLP's output"),
        spec::boolean("share_fsam", true, "one set of gates and one batch norm for all blocks"),
        spec::choice("token_layout", {"reference", "channels_last"},
                     "tokens of the plane buffer as it lies, or of positions"),
        spec::choice("attn_scope", {"window", "global"}, "windows, or all tokens without position bias"),
        spec::integer("height", Value(), 7, "H; null: the problem's, or 224"),
        spec::integer("width", Value(), 7, "W; null: the problem's, or 224"),
        spec::integer("in_channels", 2, 1, "planes that the network reads"),
        spec::integer("out_channels", 1, 1, "planes that it writes")};
    m.kinds = {ProblemKind::image};
    m.figures = {{"MI", "TNO, 41 pairs", "SwinFusion 2.3510", "3.9801", "fig/Quantitative_TNO"},
                 {"Qabf", "TNO", "SwinFusion 0.5201", "0.5812", "fig/Quantitative_TNO"},
                 {"VIF", "TNO", "SwinFusion 0.7626", "0.9033", "fig/Quantitative_TNO"},
                 {"claim", "ITM against a plain Transformer", "", "no extra compute", "journal abstract"}};
    m.notes = {
        "Windows of one token: the softmax of one key is 1, so only values are projected; the card's count "
        "keeps queries and keys.",
        "Sizes that the window does not divide are zero-padded after the norm, bottom and right; odd blocks "
        "shift by floor(w / 2).",
        "scope fsam gives x1 q of steps 4 to 7, scope itm the mixed tokens; both are of one block.",
        "Without share_fsam a block's gates are blocks.i.fsam and its norm blocks.i.block_bn.",
        "pairs(), rows() and their statistics are of the first block's attention, by token. With padded "
        "windows a "
        "row has a column per place of the padded grid.",
        "Frequencies are taken in f32 from the rounded map. Running statistics are bound as weights."};
    m.example.kind = ProblemKind::image;
    m.example.batch = 2;
    m.example.grid = {20, 13};
    m.example.channels = 16;
    m.example.heads = 8;
    return m;
  }
};

ATTNBENCH_METHOD(FsatFusion);

}  // namespace
}  // namespace attnbench
