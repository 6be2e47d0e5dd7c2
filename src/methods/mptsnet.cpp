// MPTSNet: periodic segments of a series, local convolutions inside them and attention between them.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one
using Op = PointwiseArgs::Op;

constexpr float kEps = 1e-5f;
constexpr int64_t kGateTaps = 7;  ///< of the position gate

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "mptsnet";
  m.title = "MPTSNet PeriodicBlock: multiscale periodic segments";
  m.paper =
      "MPTSNet: Integrating Multiscale Periodic Local Patterns and Global Dependencies for Multivariate Time "
      "Series "
      "Classification, AAAI 2025";
  m.arxiv = "2503.05582";
  m.family = "model-block (FFT period selection + attention over period segments)";
  m.summary =
      "The strongest periods of the training data cut a series into segments; convolutions of several widths "
      "with channel and "
      "position gates work inside each segment, a transformer with a class token between them, and the "
      "periods' results are "
      "weighted by the amplitudes of their frequencies. A transformer over all points runs beside them.";
  m.formula =
      "amp[j] = (2/L) |DFT(mean)[j]|, periods round(L / j) by falling amplitude, j >= 2\n"
      "local: piece + stage(GELU(stage(piece))), stage = CBAM(mean of convolutions of width 1, 3, .., 2n - "
      "1)\n"
      "global: tokens W vec(piece), CLS in front, post-norm layers, out_j = W [u_j ; u_CLS]\n"
      "out = sum_i softmax(A)_i Y_i + point branch + X,  A_i = (2/L) |DFT(mean over d)[j_i]|";
  m.cost =
      "MACs of a block: point branch n [(L + 1)(4 d^2 + 2 d ff) + 2 (L + 1)^2 d] + 2 d^2 L; per period local "
      "Lp 72 d M (here 22 "
      "d M: the six convolutions are merged into one of width 11) + gates, global Lp d dt + n [(f + 1)(4 "
      "dt^2 + 2 dt ff) + 2 (f "
      "+ 1)^2 dt] + 2 Lp d dt.";
  m.params = {
      from_problem(spec::integer("seq_len", Value(), 6, "L"), "samples"),
      spec::integer("in_channels", Value(), 1, "Cin; null: problem.channels (model)"),
      spec::integer("num_periods", 5, 1, "k"),
      spec::list("periods", Value(), "explicit periods; null: selected from the input itself"),
      spec::integer("embed_dim", Value(), 1, "d; null: problem.channels (block), or 4 Cin within 64 .. 256"),
      spec::integer("embed_dim_t", Value(), 1, "dt; null: 4 d within 256 .. 512"),
      spec::integer("heads", 4, 1, "attention heads"),
      spec::integer("ff_dim", 256, 1, "feed-forward width"),
      spec::integer("num_layers", 1, 1, "layers of each transformer"),
      spec::integer("hidden_channels", 1024, 16, "M inside the extractor"),
      spec::integer("num_kernels", 6, 1, "widths 1, 3, .., 2n - 1"),
      spec::boolean("cls_token", true, "false: the flag variant"),
      spec::choice("segment_layout", {"strided", "contiguous"}, "strided matches the released weights"),
      spec::integer("num_blocks", 2, 1, "blocks, scope model"),
      spec::integer("num_classes", 4, 1, "scope model"),
      spec::choice("scope", {"block", "model"}, "one PeriodicBlock, or embedding, blocks and classifier")};
  m.kinds = {ProblemKind::signal};
  m.dtypes = {DType::f32};
  m.figures = {
      {"mean accuracy, 10 UEA sets", "k = 5",
       "TimesNet 73.6, ModernTCN 74.2, Crossformer 73.2, PatchTST 72.5", "75.4 %", "repository poster"},
      {"mean accuracy, 25 UEA sets", "k = 5", "TodyNet 72.6, MOS-CNN 69.9", "74.0 %", "repository poster"},
      {"EthanolConcentration", "Cin 3, 4 classes", "TimesNet 35.7", "43.3 %", "poster"},
      {"PEMS-SF", "flag variant", "TimesNet 89.6", "94.2 %", "poster"},
      {"periods shown", "activity set", "-", "4, 6, 11", "poster"},
      {"baselines beaten", "-", "-", "21", "abstract"}};
  m.notes = {
      "Periods are settled when the instance is made, from the input it will be given (file, generator or "
      "its own values); bins "
      "0 and 1 are always left out.",
      "The parallel convolutions are merged when weights are bound (exact up to rounding): 11 / 36 of their "
      "multiply-adds.",
      "Ties: equal amplitudes take the lower bin, equal distances to L / p the lower bin (chosen).",
      "f32 only: period selection and amplitude weights are exponentials of raw amplitudes."};
  m.example.kind = ProblemKind::signal;
  m.example.batch = 2;
  m.example.channels = 16;
  m.example.samples = 30;
  return m;
}

const MethodInfo& mpts_info() {
  static const MethodInfo info = describe();
  return info;
}

/// Periods of a series by falling amplitude.
std::vector<int64_t> strongest_periods(const std::vector<double>& series, int64_t most) {
  const auto n = static_cast<int64_t>(series.size());
  std::vector<std::pair<double, int64_t>> bins;
  for (int64_t j = 2; j < n / 2; ++j) {
    double re = 0, im = 0;
    for (int64_t t = 0; t < n; ++t) {
      const double angle = 2 * std::numbers::pi * static_cast<double>(j * t % n) / static_cast<double>(n);
      re += series[static_cast<size_t>(t)] * std::cos(angle);
      im -= series[static_cast<size_t>(t)] * std::sin(angle);
    }
    bins.emplace_back(-std::hypot(re, im), j);
  }
  std::sort(bins.begin(), bins.end());
  std::vector<int64_t> periods;
  for (const auto& [amplitude, j] : bins) {
    const auto p = static_cast<int64_t>(std::nearbyint(static_cast<double>(n) / static_cast<double>(j)));
    if (static_cast<int64_t>(periods.size()) < most &&
        std::find(periods.begin(), periods.end(), p) == periods.end())
      periods.push_back(p);
  }
  return periods;
}

struct Sizes {
  int64_t batch, length, in, d, dt;
  bool model;
};

class MptsInstance final : public Instance {
 public:
  MptsInstance(Context& ctx, const Problem& problem, const Params& p, const Sizes& s)
      : params_(p),
        s_(s),
        heads_(p.integer("heads")),
        ff_(p.integer("ff_dim")),
        layers_(p.integer("num_layers")),
        m_(p.integer("hidden_channels")),
        kernels_(p.integer("num_kernels")),
        cls_(p.boolean("cls_token")) {
    const Shape map{s_.batch, s_.d, s_.length};
    const TensorSpec x =
        s_.model
            ? TensorSpec{"x", {s_.batch, s_.length, s_.in}, DType::f32, Init::normal(), false, "[B, L, Cin]"}
            : TensorSpec{"X", map, DType::f32, Init::normal(), false, "[B, d, L]"};
    input_specs_ = {x};
    periods_ =
        p.is_null("periods") ? selected(problem, x) : integers("mptsnet", "periods", p.value("periods"));
    k_ = static_cast<int64_t>(periods_.size());
    if (k_ == 0)
      throw UsageError("mptsnet.periods: a series of " + std::to_string(s_.length) +
                       " points has no period to select; give some");
    for (int64_t period : periods_)
      if (period < 1 || period > s_.length)
        throw UsageError("mptsnet.periods: " + std::to_string(period) + " is not within 1 and the length " +
                         std::to_string(s_.length));
    const auto output = [&](const std::string& name, DType type, const Shape& shape) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    if (s_.model) {
      const int64_t taps = cls_ ? 3 : 1;
      spec("embed.weight", {s_.d, s_.in, taps},
           Init::normal(0, std::sqrt(2.0 / static_cast<double>(taps * s_.in))));
      for (int64_t i = 0; i < p.integer("num_blocks"); ++i) block_specs("blocks." + std::to_string(i) + ".");
      norm_specs("norm", s_.d);
      linear_specs("head", p.integer("num_classes"), s_.d * s_.length);
      output("periods", DType::i32, {k_});
      output("embedded", DType::f32, map);
      for (int64_t i = 0; i < p.integer("num_blocks"); ++i)
        output("block" + std::to_string(i), DType::f32, map);
      output("logits", DType::f32, {s_.batch, p.integer("num_classes")});
    } else {
      block_specs("");
      output("out", DType::f32, map);
      output("Gp", DType::f32, map);
      output("A", DType::f32, {s_.batch, k_});
      output("w", DType::f32, {s_.batch, k_});
    }
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    pieces_.clear();
    const int64_t reach = kernels_ - 1, l = s_.length;
    const auto zeros = [&](const Shape& shape) {
      return upload(ctx, DType::f32, shape, std::vector<double>(static_cast<size_t>(shape.numel()), 0.0));
    };
    std::vector<int64_t> bins;
    for (int64_t period : periods_) {
      Pieces c;
      c.p = period;
      c.f = (l + period - 1) / period;
      const bool strided = params_.choice("segment_layout") == "strided";
      std::vector<int64_t> padded, plain, back(static_cast<size_t>(l));
      for (int64_t j = 0; j < c.f; ++j)
        for (int64_t a = -reach; a < period + reach; ++a) {
          const bool inside = a >= 0 && a < period;
          const int64_t time = inside ? (strided ? a * c.f + j : j * period + a) : -1;
          padded.push_back(time < l ? time : -1);
          if (!inside) continue;
          plain.push_back(time < l ? time : -1);
          if (time < l) back[static_cast<size_t>(time)] = j * period + a;
        }
      c.padded = upload_index(ctx, padded);
      c.plain = upload_index(ctx, plain);
      c.back = upload_index(ctx, back);
      c.spread = upload_index(ctx, std::vector<int64_t>(static_cast<size_t>(period), 0));
      c.first = upload_index(ctx, std::vector<int64_t>(static_cast<size_t>(c.f), 0));
      const int64_t r = s_.batch * c.f;
      c.hidden = zeros({r, period + 2 * reach, m_});
      c.gate = zeros({r, period + kGateTaps - 1, 2});
      pieces_.push_back(c);
      // The bin nearest L / p among 0 .. floor(L / 2) - 1; ties to the lower.
      int64_t best = 0;
      const double target = static_cast<double>(l) / static_cast<double>(period);
      for (int64_t j = 1; j < std::max<int64_t>(l / 2, 1); ++j)
        if (std::abs(static_cast<double>(j) - target) < std::abs(static_cast<double>(best) - target))
          best = j;
      bins.push_back(best);
    }
    bins_ = upload_index(ctx, bins);
    points_ = upload_index(ctx, std::vector<int64_t>(static_cast<size_t>(l), 0));
    for (int64_t n : {s_.d, s_.dt}) {
      int64_t longest = l + 1;
      if (!positions_.contains(n))
        positions_[n] = upload(ctx, DType::f32, {longest, n}, sinusoid(longest, n));
    }
    Context host(cpu_backend(), 1);
    const auto read = [&](const std::string& name) {
      const Tensor& t = weight(name);
      const Tensor here = host.allocate(DType::f32, t.shape());
      copy(ctx, t, here);
      return here;
    };
    for (const std::string& at : prefixes()) {
      for (int64_t stage = 0; stage < 2; ++stage) {
        // Convolutions centred on each other, averaged: [out, place, in].
        const int64_t in = stage == 0 ? s_.d : m_, out = stage == 0 ? m_ : s_.d, width = 2 * kernels_ - 1;
        std::vector<double> merged(static_cast<size_t>(out * width * in)), bias(static_cast<size_t>(out));
        const std::string name = at + "extractor." + std::to_string(stage) + ".";
        for (int64_t i = 0; i < kernels_; ++i) {
          const int64_t own = 2 * i + 1;
          const Tensor w = read(name + "conv" + std::to_string(own) + ".weight"),
                       b = read(name + "conv" + std::to_string(own) + ".bias");
          for (int64_t o = 0; o < out; ++o) {
            bias[static_cast<size_t>(o)] +=
                static_cast<double>(b.data<float>()[o]) / static_cast<double>(kernels_);
            for (int64_t c = 0; c < in; ++c)
              for (int64_t a = 0; a < own; ++a)
                merged[static_cast<size_t>((o * width + kernels_ - 1 - i + a) * in + c)] +=
                    static_cast<double>(w.data<float>()[(o * in + c) * own + a]) /
                    static_cast<double>(kernels_);
          }
        }
        tables_[name + "weight"] = upload(ctx, DType::f32, {out, width * in}, merged);
        tables_[name + "bias"] = upload(ctx, DType::f32, {out}, bias);
        const Tensor gate = ctx.allocate(DType::f32, {1, kGateTaps, 2});
        transpose_copy(ctx, {weight(name + "position_gate.weight").transpose(1, 2), gate});
        tables_[name + "gate"] = gate.reshape({1, kGateTaps * 2});
      }
    }
    if (!s_.model) return;
    const int64_t taps = cls_ ? 3 : 1;
    const Tensor embed = ctx.allocate(DType::f32, {s_.d, taps, s_.in});
    transpose_copy(ctx, {weight("embed.weight").transpose(1, 2), embed});
    tables_["embed"] = embed.reshape({s_.d, taps * s_.in});
    std::vector<int64_t> circular;
    for (int64_t t = -(taps / 2); t < l + taps / 2; ++t) circular.push_back((t + l) % l);
    circular_ = upload_index(ctx, circular);
    list_ = upload(ctx, {k_}, std::vector<int32_t>(periods_.begin(), periods_.end()));
  }

  void run(Context& ctx) override {
    const int64_t b = s_.batch, l = s_.length, d = s_.d;
    const Tensor x = ctx.allocate(DType::f32, {b, l, d});
    if (!s_.model) {
      transpose_copy(ctx, {input("X").transpose(1, 2), x});
      const Tensor y = ctx.allocate(DType::f32, {b, l, d});
      block(ctx, x, "", y, outputs_.at("Gp"), outputs_.at("A"), outputs_.at("w"));
      transpose_copy(ctx, {y.transpose(1, 2), outputs_.at("out")});
      return;
    }
    {
      const auto stage = ctx.stage("embed");
      const int64_t taps = cls_ ? 3 : 1;
      const Tensor around = ctx.allocate(DType::f32, {b, l + taps - 1, s_.in});
      gather_rows(ctx, {input("x"), circular_, around});
      product(ctx, around.strided({b, l, taps * s_.in}, {(l + taps - 1) * s_.in, s_.in, 1}),
              tables_.at("embed"), x, true);
      for (int64_t i = 0; i < b; ++i)
        call(ctx, Op::add, x.select(0, i), positions_.at(d).slice(0, 0, l), x.select(0, i));
      transpose_copy(ctx, {x.transpose(1, 2), outputs_.at("embedded")});
      transpose_copy(ctx, {list_, outputs_.at("periods")});
    }
    for (int64_t i = 0; i < params_.integer("num_blocks"); ++i) {
      const Tensor y = ctx.allocate(DType::f32, {b, l, d}), a = ctx.allocate(DType::f32, {b, k_}),
                   w = ctx.allocate(DType::f32, {b, k_});
      block(ctx, x, "blocks." + std::to_string(i) + ".", y, {}, a, w);
      transpose_copy(ctx, {y.transpose(1, 2), outputs_.at("block" + std::to_string(i))});
      layer_norm(ctx, y.reshape({b * l, d}), "norm", x.reshape({b * l, d}));
    }
    const auto stage = ctx.stage("classify");
    const Tensor flat = ctx.allocate(DType::f32, {b, d, l});
    call(ctx, Op::gelu_erf, x, {}, x);
    transpose_copy(ctx, {x.transpose(1, 2), flat});
    product(ctx, flat.reshape({b, d * l}), weight("head.weight"), outputs_.at("logits"), true,
            weight("head.bias"));
  }

  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t b = s_.batch, l = s_.length, d = s_.d, map = b * l * d,
                  blocks = s_.model ? params_.integer("num_blocks") : 1;
    f.cost += block_cost(!s_.model) * blocks;
    if (s_.model) {
      const int64_t taps = cls_ ? 3 : 1, classes = params_.integer("num_classes");
      f.cost += gather_cost(b * (l + taps - 1) * s_.in, l + taps - 1) +
                product_cost(b, l, d, taps * s_.in, d * taps * s_.in) +
                pointwise_cost(l * d, l * d, false) * b + copied(map) + copied(k_);
      f.cost += (copied(map) + norm_cost(b * l, d)) * blocks;
      f.cost += pointwise_cost(map, 0, true) + copied(map) +
                product_cost(1, b, classes, d * l, classes * d * l, true);
    } else {
      f.cost += copied(map) * 2;
    }
    const int64_t n = layers_;
    int64_t macs = n * ((l + 1) * (4 * d * d + 2 * d * ff_) + 2 * (l + 1) * (l + 1) * d) + 2 * d * d * l,
            sum = 0;
    for (int64_t i = 0; i < kernels_; ++i) sum += 2 * i + 1;
    for (int64_t p : periods_) {
      const int64_t seg = (l + p - 1) / p, lp = seg * p;
      macs += lp * 2 * sum * d * m_ + 2 * seg * (2 * m_ * (m_ / 16) + 2 * d * (d / 16)) + 28 * lp;
      macs += lp * d * s_.dt +
              n * ((seg + 1) * (4 * s_.dt * s_.dt + 2 * s_.dt * ff_) + 2 * (seg + 1) * (seg + 1) * s_.dt) +
              2 * lp * d * s_.dt;
    }
    f.published_macs =
        blocks * macs + (s_.model ? 3 * s_.in * d * l + l * d * params_.integer("num_classes") : 0);
    f.published_macs_note =
        "multiply-adds of one sample with the convolutions in parallel; merged they need 11 / 36 of theirs";
    for (const TensorSpec& w : weight_specs_) f.parameters += w.shape.numel();
    return f;
  }

 private:
  struct Pieces {
    int64_t p, f;
    Tensor padded, plain, back, spread, first;  ///< index tables
    Tensor hidden, gate;                        ///< zeros around what a run writes
  };

  // ---- weights
  // ------------------------------------------------------------------------------------------------

  void spec(const std::string& name, const Shape& shape, const Init& init) {
    weight_specs_.push_back({name, shape, DType::f32, init, false, ""});
  }
  void norm_specs(const std::string& name, int64_t width) {
    spec(name + ".weight", {width}, Init::constant(1));
    spec(name + ".bias", {width}, Init::constant(0));
  }
  void linear_specs(const std::string& name, int64_t out, int64_t in) {
    const double bound = 1 / std::sqrt(static_cast<double>(in));
    spec(name + ".weight", {out, in}, Init::uniform(-bound, bound));
    spec(name + ".bias", {out}, Init::uniform(-bound, bound));
  }
  void transformer_specs(const std::string& at, int64_t width) {
    if (cls_) spec(at + "cls", {width}, Init::normal());
    for (int64_t i = 0; i < layers_; ++i) {
      const std::string l = at + "layers." + std::to_string(i) + ".";
      const double xavier = std::sqrt(6.0 / static_cast<double>(4 * width)),
                   bound = 1 / std::sqrt(static_cast<double>(width));
      spec(l + "attn.in_proj.weight", {3 * width, width}, Init::uniform(-xavier, xavier));
      spec(l + "attn.in_proj.bias", {3 * width}, Init::constant(0));
      spec(l + "attn.out_proj.weight", {width, width}, Init::uniform(-bound, bound));
      spec(l + "attn.out_proj.bias", {width}, Init::constant(0));
      norm_specs(l + "norm1", width);
      norm_specs(l + "norm2", width);
      linear_specs(l + "ff1", ff_, width);
      linear_specs(l + "ff2", width, ff_);
    }
  }
  void block_specs(const std::string& at) {
    for (int64_t stage = 0; stage < 2; ++stage) {
      const int64_t in = stage == 0 ? s_.d : m_, out = stage == 0 ? m_ : s_.d;
      const std::string name = at + "extractor." + std::to_string(stage) + ".";
      for (int64_t i = 0; i < kernels_; ++i) {
        const int64_t own = 2 * i + 1;
        spec(name + "conv" + std::to_string(own) + ".weight", {out, in, own},
             Init::normal(0, std::sqrt(2.0 / static_cast<double>(out * own))));
        spec(name + "conv" + std::to_string(own) + ".bias", {out}, Init::constant(0));
      }
      const int64_t narrow = out / 16;
      spec(name + "channel_gate.W1", {narrow, out},
           Init::normal(0, std::sqrt(2.0 / static_cast<double>(std::max<int64_t>(narrow, 1)))));
      spec(name + "channel_gate.W2", {out, narrow},
           Init::normal(0, std::sqrt(2.0 / static_cast<double>(out))));
      spec(name + "position_gate.weight", {1, 2, kGateTaps}, Init::normal(0, std::sqrt(2.0 / kGateTaps)));
    }
    transformer_specs(at + "point.", s_.d);
    if (cls_) linear_specs(at + "point.out", s_.d, 2 * s_.d);
    for (size_t i = 0; i < periods_.size(); ++i) {
      const std::string name = at + "period." + std::to_string(i) + ".";
      const int64_t flat = s_.d * periods_[i];
      linear_specs(name + "in", s_.dt, flat);
      transformer_specs(name, s_.dt);
      linear_specs(name + "out", flat, cls_ ? 2 * s_.dt : s_.dt);
    }
  }
  std::vector<std::string> prefixes() const {
    if (!s_.model) return {""};
    std::vector<std::string> p;
    for (int64_t i = 0; i < params_.integer("num_blocks"); ++i)
      p.push_back("blocks." + std::to_string(i) + ".");
    return p;
  }

  /// From the values that the input will have: a file's, a generator's or its own.
  std::vector<int64_t> selected(const Problem& problem, const TensorSpec& x) const {
    Context host(cpu_backend(), 1);
    std::vector<double> values(static_cast<size_t>(x.shape.numel()));
    if (!problem.inputs.file.empty()) {
      const TensorMap file = read_safetensors(host, problem.inputs.file).tensors;
      const auto it = file.find(x.name);
      if (it == file.end() || !(it->second.shape() == x.shape))
        throw DataError(problem.inputs.file + ": tensor '" + x.name + "' of shape " + x.shape.str() +
                        " is wanted, to select periods from");
      convert(it->second.raw(), it->second.dtype(), values.data(), DType::f64, it->second.numel());
    } else if (!problem.inputs.generator.empty()) {
      const Generator& g = find_generator(problem.inputs.generator);
      g.fill(problem, resolve_params(g.id, g.params, problem.inputs.arguments, problem), x, 0,
             x.shape.numel(), values.data());
    } else {
      const Tensor t = make_tensor(host, x, problem.seed, MemoryClass::workspace);
      convert(t.raw(), t.dtype(), values.data(), DType::f64, t.numel());
    }
    std::vector<double> series(static_cast<size_t>(s_.length));
    const int64_t last = s_.model ? s_.in : s_.length;
    for (int64_t i = 0; i < x.shape.numel(); ++i)
      series[static_cast<size_t>(s_.model ? i / last % s_.length : i % s_.length)] +=
          values[static_cast<size_t>(i)];
    return strongest_periods(series, params_.integer("num_periods"));
  }

  static std::vector<double> sinusoid(int64_t length, int64_t width) {
    std::vector<double> v;
    for (int64_t t = 0; t < length; ++t)
      for (int64_t i = 0; i < width; ++i) {
        const double angle =
            static_cast<double>(t) *
            std::exp(-static_cast<double>(i / 2 * 2) * std::log(10000.0) / static_cast<double>(width));
        v.push_back(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
      }
    return v;
  }

  // ---- pieces
  // -------------------------------------------------------------------------------------------------

  static Cost norm_cost(int64_t rows, int64_t n) {
    Cost c = moved(4 * (rows * n + 2 * n), 4 * rows * n);
    c.elementwise = 5 * rows * n;
    c.special = 2 * rows;
    return c;
  }
  static Cost reduce_cost(int64_t rows, int64_t n) {
    Cost c = moved(4 * rows * n, 4 * rows);
    c.elementwise = rows * n;
    return c;
  }
  void layer_norm(Context& ctx, const Tensor& x, const std::string& name, const Tensor& y) const {
    NormArgs a;
    a.x = x, a.y = y;
    a.gain = weight(name + ".weight"), a.offset = weight(name + ".bias");
    a.eps = kEps;
    normalize(ctx, a);
  }
  void reduced(Context& ctx, ReduceArgs::Op op, const Tensor& x, const Tensor& y) const {
    ReduceArgs a;
    a.op = op;
    a.x = x, a.y = y, a.all = false;
    reduce(ctx, a);
  }

  /// Post-norm layers on tokens [B, n, width]; with cls_ they get the class token in front. Returns [B, n (+
  /// 1), width].
  Tensor transformer(Context& ctx, const Tensor& tokens, const std::string& at) const {
    const int64_t b = tokens.dim(0), n = tokens.dim(1), width = tokens.dim(2), first = cls_ ? 1 : 0,
                  all = n + first;
    const Tensor u = ctx.allocate(DType::f32, {b, all, width});
    const Tensor& place = positions_.at(width);
    for (int64_t i = 0; i < b; ++i) {
      const Tensor own = u.select(0, i);
      if (cls_) call(ctx, Op::add, place.slice(0, 0, 1), weight(at + "cls"), own.slice(0, 0, 1));
      call(ctx, Op::add, tokens.select(0, i), place.slice(0, first, first + n), own.slice(0, first, all));
    }
    const Tensor rows = u.reshape({b * all, width}), qkv = ctx.allocate(DType::f32, {b, all, 3 * width}),
                 mixed = ctx.allocate(DType::f32, {b, all, width}),
                 hidden = ctx.allocate(DType::f32, {b * all, ff_});
    for (int64_t i = 0; i < layers_; ++i) {
      const std::string l = at + "layers." + std::to_string(i) + ".";
      product(ctx, rows, weight(l + "attn.in_proj.weight"), qkv.reshape({b * all, 3 * width}), true,
              weight(l + "attn.in_proj.bias"));
      AttentionArgs a;
      a.q = split_heads(qkv.slice(2, 0, width), heads_),
      a.k = split_heads(qkv.slice(2, width, 2 * width), heads_);
      a.v = split_heads(qkv.slice(2, 2 * width, 3 * width), heads_), a.o = split_heads(mixed, heads_);
      a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(width / heads_)));
      attention(ctx, a);
      product(ctx, mixed.reshape({b * all, width}), weight(l + "attn.out_proj.weight"), rows, true,
              weight(l + "attn.out_proj.bias"), Activation::none, true);
      layer_norm(ctx, rows, l + "norm1", rows);
      product(ctx, rows, weight(l + "ff1.weight"), hidden, true, weight(l + "ff1.bias"), Activation::relu);
      product(ctx, hidden, weight(l + "ff2.weight"), rows, true, weight(l + "ff2.bias"), Activation::none,
              true);
      layer_norm(ctx, rows, l + "norm2", rows);
    }
    return u;
  }
  Cost transformer_cost(int64_t n, int64_t width) const {
    const int64_t b = s_.batch, all = n + (cls_ ? 1 : 0), rows = b * all;
    Cost c = pointwise_cost(n * width, n * width, false) * b;
    if (cls_) c += pointwise_cost(width, width, false) * b;
    const int64_t pairs = b * heads_ * all * all;
    Cost fused = moved(12 * rows * width, 4 * rows * width);
    fused.matmul = 4 * pairs * (width / heads_);
    fused.elementwise = 4 * pairs;
    fused.special = pairs;
    return c + (product_cost(1, rows, 3 * width, width, 3 * width * width, true) + fused +
                product_cost(1, rows, width, width, width * width, true, false, true) +
                norm_cost(rows, width) * 2 + product_cost(1, rows, ff_, width, ff_ * width, true, true) +
                product_cost(1, rows, width, ff_, width * ff_, true, false, true)) *
                   layers_;
  }

  /// y_j = W [u_j ; u_CLS] + b for the tokens behind the class token; without one, W u_j + b.
  void read_out(Context& ctx, const Tensor& u, const std::string& name, const Tensor& index,
                const Tensor& y) const {
    const int64_t b = u.dim(0), all = u.dim(1), width = u.dim(2), n = y.dim(1), out = y.dim(2);
    const Tensor& w = weight(name + ".weight");
    const int64_t in = w.dim(1);
    product(ctx, u.slice(1, all - n, all), w.strided({out, width}, {in, 1}), y, true, weight(name + ".bias"));
    if (!cls_) return;
    const Tensor summary = ctx.allocate(DType::f32, {b, 1, out}),
                 everywhere = ctx.allocate(DType::f32, {b, n, out});
    product(ctx, u.slice(1, 0, 1), w.strided({out, width}, {in, 1}, width), summary, true);
    gather_rows(ctx, {summary, index, everywhere});
    call(ctx, Op::add, y, everywhere, y);
  }
  Cost read_out_cost(int64_t n, int64_t width, int64_t out) const {
    const int64_t b = s_.batch;
    Cost c = product_cost(b, n, out, width, out * width, true);
    if (cls_)
      c += product_cost(b, 1, out, width, out * width) + gather_cost(b * n * out, n) +
           pointwise_cost(b * n * out, b * n * out, false);
    return c;
  }

  /// Merged convolution of padded pieces [R, p + 2 reach, in] and both gates: y [R, p, out].
  void stage(Context& ctx, const Tensor& x, const Pieces& c, const std::string& name, const Tensor& y) const {
    const int64_t r = x.dim(0), p = c.p, in = x.dim(2), out = y.dim(2), width = 2 * kernels_ - 1,
                  narrow = out / 16;
    product(ctx, x.strided({r, p, width * in}, {x.dim(1) * in, in, 1}), tables_.at(name + "weight"), y, true,
            tables_.at(name + "bias"));
    // Channel gate: average and maximum over the piece through one small network.
    const Tensor pooled = ctx.allocate(DType::f32, {2, r, out}),
                 apart = ctx.allocate(DType::f32, {r, out, p}),
                 squeezed = ctx.allocate(DType::f32, {2 * r, narrow}),
                 gates = ctx.allocate(DType::f32, {2, r, out}),
                 spread = ctx.allocate(DType::f32, {r, p, out});
    avg_pool2d(ctx, {y.reshape({r, p, 1, out}), pooled.select(0, 0).reshape({r, 1, 1, out}), true});
    transpose_copy(ctx, {y.transpose(1, 2), apart});
    reduced(ctx, ReduceArgs::Op::max, apart.reshape({r * out, p}), pooled.select(0, 1).reshape({r * out}));
    product(ctx, pooled.reshape({2 * r, out}), weight(name + "channel_gate.W1"), squeezed, true, {},
            Activation::relu);
    product(ctx, squeezed, weight(name + "channel_gate.W2"), gates.reshape({2 * r, out}), true);
    const Tensor gate = gates.select(0, 0);
    call(ctx, Op::add, gate, gates.select(0, 1), gate);
    call(ctx, Op::sigmoid, gate, {}, gate);
    gather_rows(ctx, {gate.reshape({r, 1, out}), c.spread, spread});
    call(ctx, Op::mul, y, spread, y);
    // Position gate: mean and maximum over channels, a convolution of 7 places.
    const Tensor mean = ctx.allocate(DType::f32, {r * p}), most = ctx.allocate(DType::f32, {r * p}),
                 scale = ctx.allocate(DType::f32, {r, p, 1});
    reduced(ctx, ReduceArgs::Op::mean, y.reshape({r * p, out}), mean);
    reduced(ctx, ReduceArgs::Op::max, y.reshape({r * p, out}), most);
    const int64_t half = kGateTaps / 2;
    const Tensor inside = c.gate.slice(1, half, half + p);
    transpose_copy(ctx, {mean.reshape({r, p, 1}), inside.slice(2, 0, 1)});
    transpose_copy(ctx, {most.reshape({r, p, 1}), inside.slice(2, 1, 2)});
    product(ctx, c.gate.strided({r, p, 2 * kGateTaps}, {(p + kGateTaps - 1) * 2, 2, 1}),
            tables_.at(name + "gate"), scale, true);
    call(ctx, Op::sigmoid, scale, {}, scale);
    UnitRowsArgs a;
    a.kind = UnitRowsArgs::Kind::scale;
    a.x = a.y = y.reshape({r * p, out});
    a.gain = scale.reshape({r * p});
    unit_rows(ctx, a);
  }
  Cost stage_cost(int64_t r, int64_t p, int64_t in, int64_t out) const {
    const int64_t width = 2 * kernels_ - 1, narrow = out / 16, n = r * p * out;
    Cost pool = moved(4 * n, 4 * r * out), scaled = moved(4 * (n + r * p), 4 * n);
    pool.elementwise = r * out * (p + 1);
    scaled.elementwise = n;
    return product_cost(r, p, out, width * in, out * width * in, true) + pool + copied(n) +
           reduce_cost(r * out, p) + product_cost(1, 2 * r, narrow, out, narrow * out, false, true) +
           product_cost(1, 2 * r, out, narrow, out * narrow) + pointwise_cost(r * out, r * out, false) +
           pointwise_cost(r * out, 0, true) + gather_cost(n, p) + pointwise_cost(n, n, false) +
           reduce_cost(r * p, out) * 2 + copied(r * p) * 2 +
           product_cost(r, p, 1, 2 * kGateTaps, 2 * kGateTaps) + pointwise_cost(r * p, 0, true) + scaled;
  }

  /// x [B, L, d] -> y; point (optional) receives the point branch as [B, d, L].
  void block(Context& ctx, const Tensor& x, const std::string& at, const Tensor& y, const Tensor& point,
             const Tensor& a, const Tensor& w) const {
    const int64_t b = s_.batch, l = s_.length, d = s_.d, reach = kernels_ - 1;
    {
      const auto stage = ctx.stage("amplitudes");
      const Tensor mean = ctx.allocate(DType::f32, {b, l}),
                   spectrum = ctx.allocate(DType::f32, {b, l / 2 + 1, 2}),
                   chosen = ctx.allocate(DType::f32, {b, k_, 2});
      reduced(ctx, ReduceArgs::Op::mean, x.reshape({b * l, d}), mean.reshape({b * l}));
      fft1(ctx, {Fft1Args::Kind::real_to_half, mean, spectrum, l, 2.0f / static_cast<float>(l)});
      gather_rows(ctx, {spectrum, bins_, chosen});
      ComplexArgs size;
      size.op = ComplexArgs::Op::magnitude;
      size.a = chosen, size.y = a;
      complex_pointwise(ctx, size);
      SoftmaxArgs soft;
      soft.x = a, soft.y = w;
      softmax(ctx, soft);
    }
    {
      const auto stage = ctx.stage("points");
      const Tensor u = transformer(ctx, x, at + "point.");
      if (cls_)
        read_out(ctx, u, at + "point.out", points_, y);
      else
        transpose_copy(ctx, {u, y});
      if (point) transpose_copy(ctx, {y.transpose(1, 2), point});
    }
    call(ctx, Op::add, y, x, y);
    for (int64_t i = 0; i < k_; ++i) {
      const Pieces& c = pieces_[static_cast<size_t>(i)];
      const std::string name = at + "period." + std::to_string(i) + ".";
      const int64_t r = b * c.f, p = c.p;
      const Tensor pieces = ctx.allocate(DType::f32, {r, p, d}), local = ctx.allocate(DType::f32, {r, p, d});
      {
        const auto stage_mark = ctx.stage("local");
        const Tensor padded = ctx.allocate(DType::f32, {b, c.f * (p + 2 * reach), d}),
                     hidden = ctx.allocate(DType::f32, {r, p, m_});
        gather_rows(ctx, {x, c.padded, padded});
        gather_rows(ctx, {x, c.plain, pieces.reshape({b, c.f * p, d})});
        stage(ctx, padded.reshape({r, p + 2 * reach, d}), c, at + "extractor.0.", hidden);
        call(ctx, Op::gelu_erf, hidden, {}, hidden);
        transpose_copy(ctx, {hidden, c.hidden.slice(1, reach, reach + p)});
        stage(ctx, c.hidden, c, at + "extractor.1.", local);
        call(ctx, Op::add, pieces, local, pieces);
      }
      const auto mark = ctx.stage("global");
      const Tensor flat = ctx.allocate(DType::f32, {b, c.f, d * p}),
                   tokens = ctx.allocate(DType::f32, {b, c.f, s_.dt});
      transpose_copy(ctx, {pieces.transpose(1, 2), flat.reshape({r, d, p})});
      product(ctx, flat.reshape({r, d * p}), weight(name + "in.weight"), tokens.reshape({r, s_.dt}), true,
              weight(name + "in.bias"));
      const Tensor u = transformer(ctx, tokens, name);
      read_out(ctx, u, name + "out", c.first, flat);
      transpose_copy(ctx, {flat.reshape({r, d, p}).transpose(1, 2), local});
      const Tensor back = ctx.allocate(DType::f32, {b, l, d});
      gather_rows(ctx, {local.reshape({b, c.f * p, d}), c.back, back});
      UnitRowsArgs scale;
      scale.kind = UnitRowsArgs::Kind::scale;
      scale.x = scale.y = back.reshape({b, l * d});
      scale.gain = w.strided({b}, {k_}, i);
      unit_rows(ctx, scale);
      call(ctx, Op::add, y, back, y);
    }
  }
  Cost block_cost(bool point) const {
    const int64_t b = s_.batch, l = s_.length, d = s_.d, map = b * l * d, reach = kernels_ - 1;
    Cost transform = moved(4 * b * l, 8 * b * (l / 2 + 1)), soft = moved(4 * b * k_, 4 * b * k_);
    transform.matmul = fft1_flops(Fft1Args::Kind::real_to_half, b, l);
    soft.elementwise = 4 * b * k_;
    soft.special = b * k_;
    Cost c = reduce_cost(b * l, d) + transform + gather_cost(2 * b * k_, k_) +
             complex_pointwise_cost(ComplexArgs::Op::magnitude, b * k_) + moved(8 * b * k_, 4 * b * k_) +
             soft;
    c += transformer_cost(l, d) + (cls_ ? read_out_cost(l, d, d) : copied(map)) +
         pointwise_cost(map, map, false);
    if (point) c += copied(map);
    for (int64_t p : periods_) {
      const int64_t f = (l + p - 1) / p, r = b * f, n = r * p * d;
      c += gather_cost(r * (p + 2 * reach) * d, f * (p + 2 * reach)) + gather_cost(n, f * p) +
           stage_cost(r, p, d, m_) + pointwise_cost(r * p * m_, 0, true) + copied(r * p * m_) +
           stage_cost(r, p, m_, d) + pointwise_cost(n, n, false);
      Cost scaled = moved(4 * (map + b), 4 * map);
      scaled.elementwise = map;
      c += copied(n) * 2 + product_cost(1, r, s_.dt, d * p, s_.dt * d * p, true) +
           transformer_cost(f, s_.dt) + read_out_cost(f, s_.dt, d * p) + gather_cost(map, l) + scaled +
           pointwise_cost(map, map, false);
    }
    return c;
  }

  Params params_;
  Sizes s_;
  int64_t heads_, ff_, layers_, m_, kernels_, k_ = 0;
  bool cls_;
  std::vector<int64_t> periods_;
  TensorMap outputs_, tables_;
  std::map<int64_t, Tensor> positions_;
  std::vector<Pieces> pieces_;
  Tensor bins_, points_, circular_, list_;
};

class MptsNet final : public Method {
 public:
  const MethodInfo& info() const override { return mpts_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    const auto fail = [](const std::string& name, const std::string& why) {
      throw UsageError("mptsnet." + name + ": " + why);
    };
    if (problem.causal)
      throw Unsupported("mptsnet has no causal mode: periods and segments belong to the whole series");
    Sizes s{};
    s.batch = problem.batch;
    s.length = p.integer("seq_len");
    s.model = p.choice("scope") == "model";
    if (s.model) {
      s.in = p.is_null("in_channels") ? problem.channels : p.integer("in_channels");
      if (s.in < 1) fail("in_channels", "give it, or set problem.channels");
      if (problem.channels > 0 && problem.channels != s.in)
        fail("in_channels",
             std::to_string(s.in) + " is not problem.channels " + std::to_string(problem.channels));
      s.d = p.is_null("embed_dim") ? std::clamp<int64_t>(4 * s.in, 64, 256) : p.integer("embed_dim");
    } else {
      s.d = !p.is_null("embed_dim") ? p.integer("embed_dim")
            : problem.channels > 0
                ? problem.channels
                : std::clamp<int64_t>(4 * (p.is_null("in_channels") ? 1 : p.integer("in_channels")), 64, 256);
      if (problem.channels > 0 && problem.channels != s.d)
        fail("embed_dim",
             std::to_string(s.d) + " is not problem.channels " + std::to_string(problem.channels));
    }
    s.dt = p.is_null("embed_dim_t") ? std::clamp<int64_t>(4 * s.d, 256, 512) : p.integer("embed_dim_t");
    if (s.d < 16) fail("embed_dim", "the gates need 16 channels or more, not " + std::to_string(s.d));
    for (const auto& [name, width] :
         {std::pair<const char*, int64_t>{"embed_dim", s.d}, {"embed_dim_t", s.dt}})
      if (width % p.integer("heads") != 0)
        fail(name,
             std::to_string(width) + " is not a multiple of heads " + std::to_string(p.integer("heads")));
    return std::make_unique<MptsInstance>(ctx, problem, p, s);
  }
};
ATTNBENCH_METHOD(MptsNet);

}  // namespace
}  // namespace attnbench
