// TFM-Tokenizer: one token per half second of one channel, from its spectrum and its signal.
#include <algorithm>
#include <cmath>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/filter_design.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one

constexpr float kEps = 1e-5f;           ///< of group and layer norms
constexpr float kLengthFloor = 1e-12f;  ///< of the unit vectors
constexpr int64_t kMostChannels = 16;   ///< rows of the channel embedding
constexpr int64_t kClassHeads = 8;      ///< of the downstream encoder, whatever `heads` says

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "tfm_tokenizer";
  m.title = "TFM-Tokenizer: single-channel time-frequency motif tokenizer";
  m.paper = "Tokenizing Single-Channel EEG with Time-Frequency Motif Learning, ICLR 2026";
  m.arxiv = "2502.16060";
  m.family = "model-block (spectral front end + linear attention + vector quantiser)";
  m.summary =
      "Every channel alone: the magnitude spectrum of each second, patch by patch through linear attention, "
      "and the raw "
      "signal of that second through convolutions make a vector per half second; linear attention over the "
      "record and the "
      "nearest of K codebook rows turn it into a token. `reconstruct` decodes the spectrum from tokens, "
      "`classify` reads "
      "them with a downstream encoder.";
  m.formula =
      "S = |STFT(x)|, Hann of 1 s, hop 0.5 s, bins 0 .. fs/2 - 1\n"
      "frequency: patches of w bins -> (linear, GELU, group norm) x 3 -> layers over patches -> "
      "sigmoid(gate) value\n"
      "time: conv fs / (fs/2) -> GELU, GN -> 1x1, GELU, GN -> 1x1, GELU, GN\n"
      "z = layers over frames of [frequency, time];  e = z / |z|;  token = argmin_k |e - c_k|^2\n"
      "layer: u += Wo (softmax_d(q) d^-1/2 (softmax_n(k)^T v));  u += W2 GELU(W1 LN u)";
  m.cost =
      "MACs per frame: frequency P (w E + 2 E^2) + freq_depth P (12 E^2 + 2 E d) + w E^2; time fs E + 1.5 "
      "E^2; layers "
      "time_depth (12 E^2 + 2 E d); search K E: 2,841,344 for the defaults. Decoder dec_depth (12 E^2 + 2 E "
      "d) + E^2 + E F. "
      "Parameters: 757,104 to tokenize, 1,166,100 with the decoder; downstream 724,998 with 6 classes.";
  const auto ratio = [](const char* name) {
    ParamSpec s = spec::number(name, 0.5, 0, "share that is masked, reconstruct only");
    s.max = 0.999999;
    return s;
  };
  m.params = {spec::integer("sample_rate", Value(), 2, "Hz, even; null: problem.sample_rate, or 200"),
              spec::integer("embed_dim", 64, 4, "E"),
              spec::integer("heads", 8, 1, "of linear attention; the downstream encoder has 8"),
              spec::integer("codebook_size", 8192, 1, "K"),
              spec::integer("freq_patch", 5, 1, "w, bins per patch"),
              spec::integer("freq_depth", 2, 0, "layers over patches"),
              spec::integer("time_depth", 2, 0, "layers over frames"),
              spec::integer("dec_depth", 8, 0, "decoder layers"),
              from_problem(spec::integer("channels", 16, 1, "Ch"), "channels"),
              from_problem(spec::integer("samples", 1000, 1, "points per channel"), "samples"),
              ratio("freq_mask_ratio"),
              ratio("time_mask_ratio"),
              spec::integer("mask_band", 5, 1, "bins per masked band"),
              spec::integer("cls_depth", 4, 1, "classify only"),
              spec::integer("n_classes", 6, 1, "classify only"),
              spec::choice("stage", {"tokenize", "reconstruct", "classify"}, "what to run")};
  m.kinds = {ProblemKind::signal};
  m.dtypes = {DType::f32};
  m.figures = {
      {"Cohen's kappa gain", "four EEG sets", "strong baselines", "up to 17 %", "abstract, v3"},
      {"ear-EEG sleep staging gain", "EESM23", "baselines", "14 %", "abstract"},
      {"tokenizer parameters", "depths 2, 2, 8; E 64; K 8192", "-", "1,166,100",
       "counted from the repository"},
      {"downstream parameters", "64 x 4, 6 classes", "-", "724,998", "counted from the repository"},
      {"tokens per channel", "5 s / 10 s / 30 s at 200 Hz", "-", "9 / 19 / 59", "from the STFT settings"}};
  m.notes = {
      "Equal distances: the lowest code (chosen). Distances leave out |e|^2 = 1, the same for all codes.",
      "No linear attention mask and no positions in the tokenizer; the downstream encoder's positions are "
      "sines of base "
      "10000 over frames.",
      "Masked bands and frames are drawn from the problem's seed where no `keep` is given; the same for the "
      "whole batch.",
      "Training's losses are given as numbers (mean squared error of both passes); the codebook's update is "
      "not run.",
      "f32 only: a token is the least of thousands of nearly equal distances, which narrower storage would "
      "reorder."};
  m.example.kind = ProblemKind::signal;
  m.example.batch = 2;
  m.example.channels = 2;
  m.example.samples = 700;
  m.example.sample_rate = 200;
  return m;
}

const MethodInfo& tfm_info() {
  static const MethodInfo info = describe();
  return info;
}

class TfmInstance final : public Instance {
 public:
  TfmInstance(Context& ctx, const Problem& problem, const Params& p, int64_t rate)
      : params_(p),
        stage_(p.choice("stage")),
        batch_(problem.batch),
        ch_(p.integer("channels")),
        samples_(p.integer("samples")),
        fs_(rate),
        e_(p.integer("embed_dim")),
        heads_(p.integer("heads")),
        codes_(p.integer("codebook_size")),
        w_(p.integer("freq_patch")),
        f_(rate / 2),
        signals_(batch_ * ch_),
        frames_(1 + (samples_ - rate) / (rate / 2)),
        rows_(signals_ * frames_),
        patches_(f_ / w_),
        groups_(f_ / (w_ * w_)),
        gated_(e_ / (2 * groups_)),
        classes_(p.integer("n_classes")),
        seed_(problem.seed) {
    input_specs_.push_back(
        {"x", {batch_, ch_, samples_}, DType::f32, Init::normal(), false, "signals [B, Ch, samples]"});
    if (stage_ == "reconstruct")
      input_specs_.push_back({"keep",
                              {f_, frames_},
                              DType::f32,
                              Init::constant(1),
                              true,
                              "1 where the spectrum is kept [F, Tn]"});
    const auto embed = [&](const std::string& name, int64_t out, int64_t in, int64_t kernel) {
      uniform(name + ".weight", {out, in, kernel}, in * kernel);
      uniform(name + ".bias", {out}, in * kernel);
      std::string norm = name;
      norm.replace(norm.rfind("conv"), 4, "norm");
      gains(norm, out);
    };
    embed("freq_embed.conv1", e_, 1, w_);
    embed("freq_embed.conv2", e_, e_, 1);
    embed("freq_embed.conv3", e_, e_, 1);
    embed("time_embed.conv1", e_, 1, fs_);
    embed("time_embed.conv2", e_, e_, 1);
    embed("time_embed.conv3", e_ / 2, e_, 1);
    for (const char* name : {"freq_value", "freq_gate"}) {
      uniform(std::string(name) + ".weight", {gated_, e_, w_}, e_ * w_);
      uniform(std::string(name) + ".bias", {gated_}, e_ * w_);
    }
    layer_specs("freq_layers", p.integer("freq_depth"));
    layer_specs("time_layers", p.integer("time_depth"));
    const double step = 1.0 / static_cast<double>(codes_);
    weight_specs_.push_back(
        {"codebook", {codes_, e_}, DType::f32, Init::uniform(-step, step), false, "codes"});
    if (stage_ == "reconstruct") {
      layer_specs("dec_layers", p.integer("dec_depth"));
      uniform("dec_head.linear1.weight", {e_, e_}, e_);
      uniform("dec_head.linear1.bias", {e_}, e_);
      uniform("dec_head.linear2.weight", {f_, e_}, e_);
      uniform("dec_head.linear2.bias", {f_}, e_);
    }
    if (stage_ == "classify") {
      weight_specs_.push_back({"cls.token_embed",
                               {codes_ + 1, e_},
                               DType::f32,
                               Init::uniform(-step, step),
                               false,
                               "codebook rows, then the mask id's"});
      weight_specs_.push_back(
          {"cls.channel_embed", {kMostChannels, e_}, DType::f32, Init::normal(), false, "channels"});
      weight_specs_.push_back({"cls.class_vector", {e_}, DType::f32, Init::constant(0), false, "prepended"});
      layer_specs("cls_layers", p.integer("cls_depth"));
      uniform("cls_head.weight", {classes_, e_}, e_);
      uniform("cls_head.bias", {classes_}, e_);
    }
    const auto output = [&](const std::string& name, DType type, const Shape& shape) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    output("tokens", DType::i32, {batch_, ch_, frames_});
    output("S", DType::f32, {signals_, f_, frames_});
    for (const char* name : {"z", "e", "quantized"}) output(name, DType::f32, {signals_, frames_, e_});
    if (stage_ == "reconstruct") {
      output("S_hat", DType::f32, {signals_, f_, frames_});
      for (const char* pass : {"keep", "complement"}) {
        output(std::string("S_hat_") + pass, DType::f32, {signals_, f_, frames_});
        output(std::string("tokens_") + pass, DType::i32, {batch_, ch_, frames_});
        output(std::string("loss_recon_") + pass, DType::f32, {1});
      }
    }
    if (stage_ == "classify") {
      output("logits", DType::f32, {batch_, classes_});
      output("token_logits", DType::f32, {batch_, ch_ * frames_, classes_});
    }
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    window_ = upload(ctx, DType::f32, {fs_}, filter::periodic_window("hann", fs_));
    // Kernels of the gated pair as [out, patch x channel], the order of tokens in memory.
    for (auto& [to, name] :
         {std::pair<Tensor*, const char*>{&value_, "freq_value.weight"}, {&gate_, "freq_gate.weight"}}) {
      *to = ctx.allocate(DType::f32, {gated_, w_, e_});
      transpose_copy(ctx, {weight(name).transpose(1, 2), *to});
    }
    if (stage_ == "reconstruct") {
      keep_ = ctx.allocate(DType::f32, {frames_, f_});
      complement_ = ctx.allocate(DType::f32, {frames_, f_});
      std::vector<double> kept = mask();
      if (has_input("keep")) {
        Context host(cpu_backend(), 1);
        const Tensor given = host.allocate(DType::f32, {f_, frames_});
        copy(ctx, input("keep"), given);
        for (int64_t b = 0; b < f_; ++b)
          for (int64_t t = 0; t < frames_; ++t)
            kept[static_cast<size_t>(t * f_ + b)] = static_cast<double>(given.data<float>()[b * frames_ + t]);
      }
      std::vector<double> rest;
      for (double k : kept) rest.push_back(1 - k);
      keep_ = upload(ctx, DType::f32, {frames_ * f_}, kept);
      complement_ = upload(ctx, DType::f32, {frames_ * f_}, rest);
    }
    if (stage_ == "classify") {
      std::vector<double> positions;
      std::vector<int64_t> channel;
      for (int64_t c = 0; c < ch_; ++c)
        for (int64_t t = 0; t < frames_; ++t) {
          channel.push_back(c);
          for (int64_t i = 0; i < e_; ++i) {
            const double angle =
                static_cast<double>(t) *
                std::exp(-static_cast<double>(i / 2 * 2) / static_cast<double>(e_) * std::log(10000.0));
            positions.push_back(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
          }
        }
      positions_ = upload(ctx, DType::f32, {ch_ * frames_, e_}, positions);
      channel_index_ = upload_index(ctx, channel);
    }
  }

  void run(Context& ctx) override {
    const Tensor bins = ctx.allocate(DType::f32, {signals_, frames_, f_ + 1, 2}),
                 size = ctx.allocate(DType::f32, {signals_, frames_, f_ + 1}),
                 s = ctx.allocate(DType::f32, {rows_, f_});
    {
      const auto stage = ctx.stage("spectrum");
      stft(ctx, {input("x").reshape({signals_, samples_}), window_, bins, fs_, fs_ / 2, 0, 0,
                 SignalBorder::none, 1.0f});
      ComplexArgs magnitude;
      magnitude.op = ComplexArgs::Op::magnitude;
      magnitude.a = bins, magnitude.y = size;
      complex_pointwise(ctx, magnitude);
      const Tensor kept = size.slice(2, 0, f_);
      transpose_copy(ctx, {kept, s.reshape({signals_, frames_, f_})});
      transpose_copy(ctx, {kept.transpose(1, 2), outputs_.at("S")});
    }
    const Tensor time = ctx.allocate(DType::f32, {rows_, e_ / 2});
    {
      const auto stage = ctx.stage("time");
      signal_path(ctx, time);
    }
    encode(ctx, s, time, outputs_.at("z"), outputs_.at("e"), outputs_.at("tokens"), outputs_.at("quantized"));
    if (stage_ == "reconstruct") {
      decode(ctx, outputs_.at("quantized"), outputs_.at("S_hat"));
      for (const auto& [name, kept] :
           {std::pair<std::string, Tensor>{"keep", keep_}, {"complement", complement_}}) {
        const Tensor masked = ctx.allocate(DType::f32, {signals_, frames_ * f_});
        call(ctx, PointwiseArgs::Op::mul, s.reshape({signals_, frames_ * f_}), kept, masked);
        const Shape shape{signals_, frames_, e_};
        const Tensor z = ctx.allocate(DType::f32, shape), e = ctx.allocate(DType::f32, shape),
                     quantized = ctx.allocate(DType::f32, shape);
        encode(ctx, masked.reshape({rows_, f_}), time, z, e, outputs_.at("tokens_" + name), quantized);
        const Tensor& back = outputs_.at("S_hat_" + name);
        decode(ctx, quantized, back);
        const auto stage = ctx.stage("loss");
        const Tensor difference = ctx.allocate(DType::f32, back.shape());
        call(ctx, PointwiseArgs::Op::sub, back, outputs_.at("S"), difference);
        ReduceArgs square;
        square.x = square.weight = difference;
        square.y = outputs_.at("loss_recon_" + name);
        reduce(ctx, square);
        const Tensor& loss = outputs_.at("loss_recon_" + name);
        call(ctx, PointwiseArgs::Op::affine, loss, {}, loss, 1.0f / static_cast<float>(back.numel()));
      }
    }
    if (stage_ == "classify") classify(ctx);
  }

  ClosedForm cost() const override {
    ClosedForm c;
    Cost& t = c.cost;
    const int64_t spectrum = rows_ * (f_ + 1);
    t += stft_cost(signals_, samples_, frames_, fs_, fs_);
    t += complex_pointwise_cost(ComplexArgs::Op::magnitude, spectrum) + moved(8 * spectrum, 4 * spectrum);
    t += copied(rows_ * f_) * 2;
    t += linear_cost(rows_, e_, fs_, true) + group_cost(rows_, e_, signals_) +
         linear_cost(rows_, e_, e_, true) + group_cost(rows_, e_, signals_) +
         linear_cost(rows_, e_ / 2, e_, true) + group_cost(rows_, e_ / 2, signals_);
    const int64_t decoders = stage_ == "reconstruct" ? 3 : 0;
    t += encode_cost() * (stage_ == "reconstruct" ? 3 : 1);
    const int64_t n = rows_ * f_;
    if (decoders > 0) {
      t += decode_cost() * decoders;
      Cost square = moved(8 * n, 4);
      square.elementwise = 2 * n;
      t += (pointwise_cost(n, frames_ * f_, false) + pointwise_cost(n, n, false) + square +
            pointwise_cost(1, 0, false)) *
           2;
    }
    if (stage_ == "classify") {
      const int64_t tokens = ch_ * frames_, u = batch_ * (tokens + 1);
      t += gather_cost(tokens * e_, tokens) + pointwise_cost(tokens * e_, tokens * e_, false);
      t += gather_cost(rows_ * e_, rows_) + pointwise_cost(tokens * e_, tokens * e_, false) * batch_;
      t += copied(e_) * batch_;
      t += layer_cost(u, tokens + 1, kClassHeads) * params_.integer("cls_depth");
      t += linear_cost(batch_, classes_, e_, false) +
           linear_cost(batch_ * tokens, classes_, e_, false, batch_);
    }
    const int64_t d = e_ / heads_, layer = 12 * e_ * e_ + 2 * e_ * d;
    c.published_macs =
        ch_ * frames_ *
        (patches_ * (w_ * e_ + 2 * e_ * e_) + params_.integer("freq_depth") * patches_ * layer +
         w_ * e_ * e_ + fs_ * e_ + 3 * e_ * e_ / 2 + params_.integer("time_depth") * layer + codes_ * e_);
    c.published_macs_note =
        "of one record's channels through the tokenizer, without decoder and downstream encoder";
    for (const TensorSpec& s : weight_specs_) c.parameters += s.shape.numel();
    return c;
  }

 private:
  void uniform(const std::string& name, const Shape& shape, int64_t fan_in) {
    const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
    weight_specs_.push_back(
        {name, shape, DType::f32, Init::uniform(-bound, bound), false, "uniform +-1/sqrt(fan in)"});
  }
  void gains(const std::string& name, int64_t width) {
    weight_specs_.push_back({name + ".weight", {width}, DType::f32, Init::constant(1), false, "gain"});
    weight_specs_.push_back({name + ".bias", {width}, DType::f32, Init::constant(0), false, "offset"});
  }
  void layer_specs(const std::string& name, int64_t depth) {
    for (int64_t i = 0; i < depth; ++i) {
      const std::string at = name + "." + std::to_string(i) + ".";
      gains(at + "attn_norm", e_);
      gains(at + "ff_norm", e_);
      for (const char* w : {"attn.W_q", "attn.W_k", "attn.W_v", "attn.W_o"}) uniform(at + w, {e_, e_}, e_);
      uniform(at + "attn.b_o", {e_}, e_);
      uniform(at + "ff.W1", {4 * e_, e_}, e_);
      uniform(at + "ff.b1", {4 * e_}, e_);
      uniform(at + "ff.W2", {e_, 4 * e_}, 4 * e_);
      uniform(at + "ff.b2", {e_}, 4 * e_);
    }
  }

  /// 1 where both the band and the frame are kept, [Tn][F].
  std::vector<double> mask() const {
    const int64_t band = params_.integer("mask_band"), bands = f_ / band;
    const auto chosen = [&](int64_t count, double ratio, const char* name) {
      std::vector<int64_t> order;
      for (int64_t i = 0; i < count; ++i) order.push_back(i);
      const uint64_t stream = stream_of(std::string("tfm_tokenizer.") + name);
      for (int64_t i = count - 1; i > 0; --i)  // Fisher and Yates
        std::swap(order[static_cast<size_t>(i)],
                  order[static_cast<size_t>(random_bits(seed_, stream, static_cast<uint64_t>(i)) %
                                            static_cast<uint64_t>(i + 1))]);
      std::vector<char> masked(static_cast<size_t>(count), 0);
      const auto most = static_cast<int64_t>(std::floor(static_cast<double>(count) * ratio));
      for (int64_t i = 0; i < most; ++i) masked[static_cast<size_t>(order[static_cast<size_t>(i)])] = 1;
      return masked;
    };
    const std::vector<char> bins = chosen(bands, params_.number("freq_mask_ratio"), "bands"),
                            times = chosen(frames_, params_.number("time_mask_ratio"), "frames");
    std::vector<double> kept;
    for (int64_t t = 0; t < frames_; ++t)
      for (int64_t b = 0; b < f_; ++b)
        kept.push_back(bins[static_cast<size_t>(b / band)] || times[static_cast<size_t>(t)] ? 0.0 : 1.0);
    return kept;
  }

  /// x [.., C] in `records` of equal length: groups of `width` channels over a whole record, then gain and
  /// offset.
  void group_norm(Context& ctx, const Tensor& x, int64_t records, const std::string& name) const {
    const int64_t c = x.dim(-1), length = x.numel() / c / records, width = c / (e_ / 4);
    const Shape apart{records, length, c / width, width};
    const Tensor grouped = ctx.allocate(DType::f32, {records, c / width, length, width});
    const Tensor view = x.reshape(apart).transpose(1, 2);
    transpose_copy(ctx, {view, grouped});
    NormArgs norm;
    norm.x = norm.y = grouped.reshape({records * (c / width), length * width});
    norm.eps = kEps;
    normalize(ctx, norm);
    transpose_copy(ctx, {grouped, view});
    const Tensor rows = x.reshape({x.numel() / c, c});
    call(ctx, PointwiseArgs::Op::mul, rows, weight(name + ".weight"), rows);
    call(ctx, PointwiseArgs::Op::add, rows, weight(name + ".bias"), rows);
  }
  Cost group_cost(int64_t rows, int64_t c, int64_t records) const {
    const int64_t n = rows * c;
    Cost norm = moved(4 * n, 4 * n);
    norm.elementwise = 5 * n;
    norm.special = 2 * records * (e_ / 4);
    return copied(n) * 2 + norm + pointwise_cost(n, c, false) * 2;
  }
  static Cost linear_cost(int64_t rows, int64_t out, int64_t in, bool gelu, int64_t batch = 1) {
    return product_cost(batch, rows / batch, out, in, out * in, true, gelu);
  }

  /// Conv of kernel 1 (or its own kernel, rows being the patches) with GELU, then group norm.
  void embed(Context& ctx, const Tensor& x, const std::string& conv, const std::string& norm, const Tensor& y,
             int64_t records) const {
    const Tensor& w = weight(conv + ".weight");
    product(ctx, x, w.reshape({w.dim(0), w.numel() / w.dim(0)}), y, true, weight(conv + ".bias"),
            Activation::gelu_erf);
    group_norm(ctx, y, records, norm);
  }

  void signal_path(Context& ctx, const Tensor& y) const {
    const Tensor x = input("x").strided({signals_, frames_, fs_}, {samples_, fs_ / 2, 1});
    const Tensor a = ctx.allocate(DType::f32, {signals_, frames_, e_}),
                 b = ctx.allocate(DType::f32, {rows_, e_});
    embed(ctx, x, "time_embed.conv1", "time_embed.norm1", a, signals_);
    embed(ctx, a.reshape({rows_, e_}), "time_embed.conv2", "time_embed.norm2", b, signals_);
    embed(ctx, b, "time_embed.conv3", "time_embed.norm3", y, signals_);
  }

  /// s [rows, F] and the signal's half -> z, e, tokens, quantised vectors.
  void encode(Context& ctx, const Tensor& s, const Tensor& time, const Tensor& z, const Tensor& e,
              const Tensor& tokens, const Tensor& quantized) {
    const Tensor rows = z.reshape({rows_, e_});
    {
      const auto stage = ctx.stage("frequency");
      const int64_t n = rows_ * patches_;
      const Tensor a = ctx.allocate(DType::f32, {n, e_}), b = ctx.allocate(DType::f32, {n, e_});
      embed(ctx, s.reshape({n, w_}), "freq_embed.conv1", "freq_embed.norm1", a, rows_);
      embed(ctx, a, "freq_embed.conv2", "freq_embed.norm2", b, rows_);
      embed(ctx, b, "freq_embed.conv3", "freq_embed.norm3", a, rows_);
      layers(ctx, "freq_layers", params_.integer("freq_depth"), a.reshape({rows_, patches_, e_}), heads_);
      const Shape gated{rows_ * groups_, gated_};
      const Tensor value = ctx.allocate(DType::f32, gated), gate = ctx.allocate(DType::f32, gated);
      const Tensor wide = a.reshape({rows_ * groups_, w_ * e_});
      product(ctx, wide, value_.reshape({gated_, w_ * e_}), value, true, weight("freq_value.bias"));
      product(ctx, wide, gate_.reshape({gated_, w_ * e_}), gate, true, weight("freq_gate.bias"));
      call(ctx, PointwiseArgs::Op::sigmoid_mul, gate, value, value);
      // Channel-major: [group, channel] of a frame becomes [channel, group].
      transpose_copy(ctx, {value.reshape({rows_, groups_, gated_}).transpose(1, 2),
                           rows.strided({rows_, gated_, groups_}, {e_, groups_, 1})});
      transpose_copy(ctx, {time, rows.slice(1, e_ / 2, e_)});
    }
    {
      const auto stage = ctx.stage("frames");
      layers(ctx, "time_layers", params_.integer("time_depth"), z, heads_);
    }
    const auto stage = ctx.stage("quantize");
    unit_rows(ctx, {rows, {}, e.reshape({rows_, e_}), kLengthFloor});
    const Tensor& codes = weight("codebook");
    const Tensor power = ctx.allocate(DType::f32, {codes_}),
                 distance = ctx.allocate(DType::f32, {rows_, codes_});
    ReduceArgs square;
    square.x = square.weight = codes;
    square.y = power;
    square.all = false;
    reduce(ctx, square);
    GemmArgs nearest;
    nearest.a = e.reshape({rows_, e_}), nearest.b = codes, nearest.c = distance, nearest.bias = power;
    nearest.b_transposed = true;
    nearest.alpha = -2.0f;
    gemm(ctx, nearest);
    arg_min(ctx, distance, tokens.reshape({rows_}));
    gather_rows(ctx,
                {codes.reshape({1, codes_, e_}), tokens.reshape({rows_}), quantized.reshape({1, rows_, e_})});
  }
  Cost encode_cost() const {
    const int64_t n = rows_ * patches_, half = rows_ * e_ / 2;
    Cost t = linear_cost(n, e_, w_, true) + linear_cost(n, e_, e_, true) * 2 + group_cost(n, e_, rows_) * 3;
    t += layer_cost(n, patches_, heads_) * params_.integer("freq_depth");
    t += linear_cost(rows_ * groups_, gated_, w_ * e_, false) * 2 + pointwise_cost(half, half, true) +
         copied(half) * 2;
    t += layer_cost(rows_, frames_, heads_) * params_.integer("time_depth");
    Cost unit = moved(4 * rows_ * e_, 4 * rows_ * e_), power = moved(8 * codes_ * e_, 4 * codes_),
         least = moved(4 * rows_ * codes_, 4 * rows_);
    unit.elementwise = 3 * rows_ * e_;
    unit.special = 2 * rows_;
    power.elementwise = 2 * codes_ * e_;
    least.elementwise = rows_ * codes_;
    return t + unit + power + linear_cost(rows_, codes_, e_, false) + least + gather_cost(rows_ * e_, rows_);
  }

  /// Pre-norm layers with linear attention on u [N, n, E], in place.
  void layers(Context& ctx, const std::string& name, int64_t depth, const Tensor& u, int64_t heads) const {
    const int64_t batch = u.dim(0), n = u.dim(1), all = batch * n, d = e_ / heads;
    const Tensor rows = u.reshape({all, e_});
    const Shape wide{all, e_};
    const Tensor normed = ctx.allocate(DType::f32, wide), q = ctx.allocate(DType::f32, wide),
                 k = ctx.allocate(DType::f32, {batch, e_, n}), v = ctx.allocate(DType::f32, wide),
                 context = ctx.allocate(DType::f32, {batch, heads, d, d}),
                 mixed = ctx.allocate(DType::f32, wide), hidden = ctx.allocate(DType::f32, {all, 4 * e_});
    for (int64_t i = 0; i < depth; ++i) {
      const std::string at = name + "." + std::to_string(i) + ".";
      const auto norm = [&](const std::string& which) {
        NormArgs a;
        a.x = rows, a.y = normed;
        a.gain = weight(at + which + ".weight"), a.offset = weight(at + which + ".bias");
        a.eps = kEps;
        normalize(ctx, a);
      };
      norm("attn_norm");
      product(ctx, normed, weight(at + "attn.W_q"), q, true);
      product(ctx, normed, weight(at + "attn.W_v"), v, true);
      // Keys come transposed, so that their softmax over the sequence runs along rows.
      product(ctx, weight(at + "attn.W_k").strided({batch, e_, e_}, {0, e_, 1}),
              normed.reshape({batch, n, e_}), k, true);
      const Tensor q_rows = q.reshape({all * heads, d}), k_rows = k.reshape({batch * e_, n});
      SoftmaxArgs soft;
      soft.x = soft.y = q_rows;
      softmax(ctx, soft);
      soft.x = soft.y = k_rows;
      softmax(ctx, soft);
      const auto split = [&](const Tensor& t) { return t.reshape({batch, n, heads, d}).transpose(1, 2); };
      product(ctx, k.reshape({batch, heads, d, n}), split(v), context, false);
      GemmArgs read;
      read.a = split(q), read.b = context, read.c = split(mixed);
      read.alpha = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
      gemm(ctx, read);
      product(ctx, mixed, weight(at + "attn.W_o"), rows, true, weight(at + "attn.b_o"), Activation::none,
              true);
      norm("ff_norm");
      product(ctx, normed, weight(at + "ff.W1"), hidden, true, weight(at + "ff.b1"), Activation::gelu_erf);
      product(ctx, hidden, weight(at + "ff.W2"), rows, true, weight(at + "ff.b2"), Activation::none, true);
    }
  }
  /// `all` tokens in sequences of n.
  Cost layer_cost(int64_t all, int64_t n, int64_t heads) const {
    const int64_t batch = all / n, d = e_ / heads, x = all * e_;
    Cost norm = moved(4 * (x + 2 * e_), 4 * x), soft = moved(4 * x, 4 * x);
    norm.elementwise = 5 * x;
    norm.special = 2 * all;
    soft.elementwise = 4 * x;
    soft.special = x;
    return norm * 2 + product_cost(1, all, e_, e_, e_ * e_) * 2 + product_cost(batch, e_, n, e_, x) +
           soft * 2 + product_cost(batch * heads, d, d, n, x) +
           product_cost(batch * heads, n, d, d, batch * heads * d * d) +
           product_cost(1, all, e_, e_, e_ * e_, true, false, true) +
           product_cost(1, all, 4 * e_, e_, 4 * e_ * e_, true, true) +
           product_cost(1, all, e_, 4 * e_, 4 * e_ * e_, true, false, true);
  }

  void decode(Context& ctx, const Tensor& quantized, const Tensor& y) const {
    const auto stage = ctx.stage("decode");
    using Op = PointwiseArgs::Op;
    const Tensor u = ctx.allocate(DType::f32, quantized.shape()), h = ctx.allocate(DType::f32, {rows_, e_}),
                 wide = ctx.allocate(DType::f32, {rows_, f_});
    transpose_copy(ctx, {quantized, u});
    layers(ctx, "dec_layers", params_.integer("dec_depth"), u, heads_);
    product(ctx, u.reshape({rows_, e_}), weight("dec_head.linear1.weight"), h, true,
            weight("dec_head.linear1.bias"));
    // tanh x = 2 sigmoid(2 x) - 1
    call(ctx, Op::affine, h, {}, h, 2.0f);
    call(ctx, Op::sigmoid, h, {}, h);
    call(ctx, Op::affine, h, {}, h, 2.0f, -1.0f);
    product(ctx, h, weight("dec_head.linear2.weight"), wide, true, weight("dec_head.linear2.bias"));
    transpose_copy(ctx, {wide.reshape({signals_, frames_, f_}).transpose(1, 2), y});
  }
  Cost decode_cost() const {
    const int64_t x = rows_ * e_;
    return copied(x) + layer_cost(rows_, frames_, heads_) * params_.integer("dec_depth") +
           linear_cost(rows_, e_, e_, false) + pointwise_cost(x, 0, false) * 2 + pointwise_cost(x, 0, true) +
           linear_cost(rows_, f_, e_, false) + copied(rows_ * f_);
  }

  void classify(Context& ctx) const {
    const auto stage = ctx.stage("classify");
    const int64_t tokens = ch_ * frames_;
    const Tensor u = ctx.allocate(DType::f32, {batch_, tokens + 1, e_}),
                 place = ctx.allocate(DType::f32, {1, tokens, e_}),
                 rows = ctx.allocate(DType::f32, {batch_, tokens, e_});
    gather_rows(ctx, {weight("cls.channel_embed").reshape({1, kMostChannels, e_}), channel_index_, place});
    call(ctx, PointwiseArgs::Op::add, place.reshape({tokens, e_}), positions_, place.reshape({tokens, e_}));
    gather_rows(ctx, {weight("cls.token_embed").reshape({1, codes_ + 1, e_}),
                      outputs_.at("tokens").reshape({rows_}), rows.reshape({1, rows_, e_})});
    for (int64_t b = 0; b < batch_; ++b) {
      const Tensor own = u.select(0, b);
      transpose_copy(ctx, {weight("cls.class_vector").reshape({1, e_}), own.slice(0, 0, 1)});
      call(ctx, PointwiseArgs::Op::add, rows.select(0, b), place.reshape({tokens, e_}),
           own.slice(0, 1, tokens + 1));
    }
    layers(ctx, "cls_layers", params_.integer("cls_depth"), u, kClassHeads);
    product(ctx, u.strided({batch_, e_}, {(tokens + 1) * e_, 1}), weight("cls_head.weight"),
            outputs_.at("logits"), true, weight("cls_head.bias"));
    product(ctx, u.slice(1, 1, tokens + 1), weight("cls_head.weight"), outputs_.at("token_logits"), true,
            weight("cls_head.bias"));
  }

  Params params_;
  std::string stage_;
  int64_t batch_, ch_, samples_, fs_, e_, heads_, codes_, w_, f_, signals_, frames_, rows_, patches_, groups_,
      gated_, classes_;
  uint64_t seed_;
  TensorMap outputs_;
  Tensor window_, value_, gate_, keep_, complement_, positions_, channel_index_;
};

class TfmTokenizer final : public Method {
 public:
  const MethodInfo& info() const override { return tfm_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    const auto fail = [](const std::string& name, const std::string& why) {
      throw UsageError("tfm_tokenizer." + name + ": " + why);
    };
    if (problem.causal)
      throw Unsupported("tfm_tokenizer has no causal mode: its keys are normalised over the whole record");
    double rate = !p.is_null("sample_rate") ? static_cast<double>(p.integer("sample_rate"))
                  : problem.sample_rate > 0 ? problem.sample_rate
                                            : 200.0;
    if (!p.is_null("sample_rate") && problem.sample_rate > 0 && problem.sample_rate != rate)
      fail("sample_rate",
           p.value("sample_rate").str() + " is not problem.sample_rate " + Value(problem.sample_rate).str());
    const auto fs = static_cast<int64_t>(rate);
    if (static_cast<double>(fs) != rate || fs % 2 != 0)
      fail("sample_rate", "an even number of Hz is wanted, not " + Value(rate).str());
    const int64_t f = fs / 2, w = p.integer("freq_patch"), e = p.integer("embed_dim");
    if (f % (w * w) != 0)
      fail("freq_patch", std::to_string(w) + " squared does not divide the " + std::to_string(f) +
                             " bins of " + std::to_string(fs) + " Hz");
    if (e % 8 != 0 || e % (2 * (f / (w * w))) != 0)
      fail("embed_dim",
           std::to_string(e) + " is not a multiple of 8 and of " + std::to_string(2 * (f / (w * w))));
    if (e % p.integer("heads") != 0)
      fail("heads", std::to_string(p.integer("heads")) + " does not divide embed_dim " + std::to_string(e));
    if (p.integer("samples") < fs)
      fail("samples", std::to_string(p.integer("samples")) + " points are less than the window of " +
                          std::to_string(fs));
    if (f % p.integer("mask_band") != 0)
      fail("mask_band",
           std::to_string(p.integer("mask_band")) + " does not divide the " + std::to_string(f) + " bins");
    if (p.choice("stage") == "classify" && p.integer("channels") > kMostChannels)
      throw Unsupported("tfm_tokenizer.channels: the downstream encoder embeds 16 channels, not " +
                        std::to_string(p.integer("channels")));
    return std::make_unique<TfmInstance>(ctx, problem, p, fs);
  }
};
ATTNBENCH_METHOD(TfmTokenizer);

}  // namespace
}  // namespace attnbench
