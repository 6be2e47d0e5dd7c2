// Frequency shifting: the hyper-parameter of a coordinate network whose untrained output has the target's
// spectrum.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <numbers>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/select.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one

constexpr double kPi = std::numbers::pi;
constexpr double kGaborScale = 10.0;  ///< s of Wire, of every layer

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "fresh";
  m.title = "FreSh: frequency shifting by matching spectra";
  m.paper = "FreSh: Frequency Shifting for Accelerated Neural Representation Learning, ICLR 2025";
  m.arxiv = "2410.05050";
  m.family = "spectral";
  m.summary =
      "Chooses a coordinate network's frequency parameter without training: untrained networks of every "
      "candidate are "
      "rendered, their amplitude spectra, summed along anti-diagonals, are compared with the target's by 1-D "
      "Wasserstein "
      "distance, and the closest candidate wins.";
  m.formula =
      "G(u, v) = sum_c |FFT2(y_c)(u, v)|;  s_j = sum of G over kept (u, v) with u + v = j, j = 1 .. m\n"
      "kept: one of every pair of conjugates\n"
      "W = sum_{k<m} |cumsum(a / sum a)_k - cumsum(b / sum b)_k|\n"
      "score_k = mean over E networks of W(target, render(candidate k));  best = argmin\n"
      "siren: sin(W (omega x) + b), hidden sin(W (30 x) + b);  fourier: [cos 2 pi B x, sin 2 pi B x], B ~ "
      "sigma N(0, 1)\n"
      "finer: sin(omega (|z| + 1) z), z = W x + b;  wire: exp(i omega z - |s z|^2), complex";
  m.cost =
      "Rendering: 2 (d_in w + L w^2 + w C) per pixel and network, with (L + 1) w sines. Spectra: C 2.5 S^2 "
      "log2 S^2 each; "
      "distance about 3 m. Selection / training of one network = K E / (2.7 steps).";
  ParamSpec candidates =
      spec::list("candidates", Value(), "values of the searched parameter; null: the paper's grid");
  ParamSpec betas = spec::list("beta_values", Value(Value::List{1.0}),
                               "siren: shapes of the first layer's Beta distribution");
  betas.min = 1e-3;
  ParamSpec target;
  target.name = "target";
  target.type = ParamSpec::Type::text;
  target.default_value = "synthetic";
  target.meaning =
      "where y comes from if no input file gives it: a power-law image, or an .npy file [C, H, W]";
  m.params = {spec::choice("model", {"siren", "fourier", "finer_omega", "finer_bias", "wire", "external"},
                           "what is rendered; external: outputs are given"),
              candidates,
              betas,
              spec::integer("spectrum_size", 64, 1, "m, at most 2 S - 2"),
              spec::integer("repeats", 10, 1, "E, networks per candidate"),
              spec::boolean("drop_dc", true, "leave out the mean"),
              spec::integer("max_side", 1024, 2,
                            "larger or oblong images are resized to a square of at most this side"),
              spec::integer("hidden_features", 256, 1, "w"),
              spec::integer("hidden_layers", 3, 1, "L"),
              spec::number("hidden_omega", Value(), 0, "factor of hidden layers; null: 30, wire 10"),
              spec::integer("in_dim", 2, 1, "coordinates"),
              from_problem(spec::integer("out_channels", 3, 1, "C"), "channels"),
              from_problem(spec::integer("height", 512, 2, "of the target"), "size[0]"),
              from_problem(spec::integer("width", 768, 2, "of the target"), "size[1]"),
              spec::integer("eval_batch", 600000, 1, "coordinates per forward"),
              target,
              spec::integer("seed", 0, 0, "of networks and synthetic target, the same for every candidate"),
              spec::integer("train_steps", 15000, 0, "of the training that selection is compared with")};
  m.kinds = {ProblemKind::image};
  m.dtypes = {DType::f32};
  m.figures = {
      {"selection + training", "Siren, 50 images, K = 20", "grid search 600 h", "31 h = 19.4x less",
       "README table 1"},
      {"selection + training", "Fourier, K = 20", "grid search 493 h", "25 h = 19.7x", "README table 1"},
      {"selection + training", "Finer bias grid, K = 31", "grid search 1018 h", "37 h = 27.5x",
       "README table 1"},
      {"selection + training", "Finer, no bias, K = 20", "grid search 625 h", "35 h = 17.9x",
       "README table 1"},
      {"overhead of selection", "Siren / Fourier / Finer / Finer no bias",
       "training only 29 / 23 / 33 / 32 h", "1.069 / 1.087 / 1.121 / 1.094", "README tables 1 and 2"},
      {"selection hours over 50 images", "same", "-", "2 / 2 / 4 / 3 h", "derived"}};
  m.notes = {
      "The default target is a sum of random waves of amplitude 1 / f (chosen); 512 x 768 is chosen (Kodak).",
      "All candidates share the random numbers of their networks, as the original resets its seed.",
      "fourier: layers.0.weight [K, E, w / 2, d_in] is B, fixed, and layers.0 has no bias; cosines come "
      "first.",
      "A spectrum that is all 0 is at distance m (chosen).",
      "Finer's last layer is a plain linear layer; Siren's has the factor of the hidden ones. Wire's width "
      "is floor(w / "
      "sqrt 2) complex numbers, s = 10 everywhere.",
      "in_dim 3 and video targets are not offered: there is no three-dimensional transform.",
      "train_steps enters derived figures only: nothing is trained here. f32 only: coordinates times 200 and "
      "more need its "
      "mantissa."};
  m.example_params = {{"candidates", Value::List{10, 60}}, {"repeats", 2}};
  m.example.kind = ProblemKind::image;
  m.example.size = {33, 33};  // the smallest with 64 anti-diagonals
  m.example.channels = 1;
  return m;
}

const MethodInfo& fresh_info() {
  static const MethodInfo info = describe();
  return info;
}

std::vector<double> candidates_of(const Params& p) {
  if (!p.is_null("candidates")) return numbers(p.value("candidates"));
  std::vector<double> v;
  const std::string& model = p.choice("model");
  if (model == "fourier")
    for (int i = 1; i <= 20; ++i) v.push_back(i);
  else if (model == "finer_bias")
    for (int i = 0; i <= 30; ++i) v.push_back(0.1 * i);
  else
    for (int i = 1; i <= 20; ++i) v.push_back(10.0 * i);
  return v;
}

/// A Gamma(a) variate from its own counters (Marsaglia and Tsang 2000; a < 1 through a + 1).
double gamma_variate(double a, uint64_t seed, uint64_t stream, uint64_t index) {
  const double shape = a < 1 ? a + 1 : a, d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  double value = d;
  for (uint64_t trial = 0; trial < 60; ++trial) {
    const double x = random_normal(seed, stream, index * 128 + 2 * trial),
                 u = random_uniform(seed, stream, index * 128 + 2 * trial + 1), v = std::pow(1 + c * x, 3);
    if (v <= 0 || std::log(u) >= 0.5 * x * x + d - d * v + d * std::log(v)) continue;
    value = d * v;
    break;
  }
  return a < 1 ? value * std::pow(random_uniform(seed, stream, index * 128 + 127), 1 / a) : value;
}

/// 2 Beta(b, b) - 1: uniform for b = 1.
double symmetric_beta(double b, uint64_t seed, uint64_t stream, uint64_t index) {
  if (b == 1) return 2 * random_uniform(seed, stream, index) - 1;
  const double x = gamma_variate(b, seed, stream, 2 * index),
               y = gamma_variate(b, seed, stream, 2 * index + 1);
  return 2 * x / (x + y) - 1;
}

/// Weights of an antialiased bilinear resize: tap k of every output point, and the input point it reads.
struct Taps {
  std::vector<std::vector<int64_t>> index;  ///< [tap][output], -1: none
  std::vector<std::vector<double>> weight;
};
Taps resize_taps(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), reach = std::max(scale, 1.0);
  Taps t;
  for (int64_t i = 0; i < to; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - reach + 0.5), 0),
                  last = std::min<int64_t>(static_cast<int64_t>(center + reach + 0.5), from);
    std::vector<double> w;
    double sum = 0;
    for (int64_t j = first; j < last; ++j) {
      w.push_back(std::max(0.0, 1 - std::abs((static_cast<double>(j) - center + 0.5) / reach)));
      sum += w.back();
    }
    for (size_t k = 0; k < w.size(); ++k) {
      if (t.index.size() <= k) {
        t.index.emplace_back(static_cast<size_t>(to), -1);
        t.weight.emplace_back(static_cast<size_t>(to), 0.0);
      }
      t.index[k][static_cast<size_t>(i)] = first + static_cast<int64_t>(k);
      t.weight[k][static_cast<size_t>(i)] = w[k] / sum;
    }
  }
  return t;
}

class FreshInstance final : public Instance {
 public:
  FreshInstance(Context& ctx, const Problem& problem, const Params& p)
      : params_(p),
        model_(p.choice("model")),
        candidates_(candidates_of(p)),
        betas_(model_ == "siren" ? numbers(p.value("beta_values")) : std::vector<double>{1.0}),
        repeats_(p.integer("repeats")),
        channels_(p.integer("out_channels")),
        height_(p.integer("height")),
        width_(p.integer("width")),
        side_(std::min({height_, width_, p.integer("max_side")})),
        m_(p.integer("spectrum_size")),
        w_(model_ == "wire"
               ? static_cast<int64_t>(static_cast<double>(p.integer("hidden_features")) / std::sqrt(2.0))
               : p.integer("hidden_features")),
        layers_(p.integer("hidden_layers")),
        hidden_omega_(p.is_null("hidden_omega") ? (model_ == "wire" ? 10.0 : 30.0)
                                                : p.number("hidden_omega")) {
    k_ = static_cast<int64_t>(candidates_.size() * betas_.size());
    external_ = model_ == "external";
    const Shape image{channels_, height_, width_}, all{k_, repeats_, channels_, height_, width_};
    const uint64_t seed = problem.seed + static_cast<uint64_t>(p.integer("seed"));
    input_specs_.push_back(
        {"y", image, DType::f32, target(p.text("target"), seed), false, "target [C, H, W] in [-1, 1]"});
    if (external_) {
      input_specs_.push_back(
          {"outputs", all, DType::f32, Init::uniform(-1, 1), false, "renders [K, E, C, H, W]"});
    } else {
      network(seed);
      outputs_["outputs"] = ctx.allocate(DType::f32, all, MemoryClass::output);
    }
    const auto output = [&](const char* name, DType type, const Shape& shape) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    output("distance", DType::f32, {k_});
    output("standard_error", DType::f32, {k_});
    output("best", DType::i32, {1});
    output("spectrum_target", DType::f32, {m_});
    output("spectrum_output", DType::f32, {k_, repeats_, m_});
    output("distance_each", DType::f32, {k_, repeats_});
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    if (resized()) {
      for (const auto& [from, taps] :
           {std::pair<int64_t, std::vector<Tap>*>{width_, &columns_}, {height_, &rows_}}) {
        if (from == side_) continue;
        const Taps t = resize_taps(from, side_);
        taps->clear();
        for (size_t k = 0; k < t.index.size(); ++k)
          taps->push_back({upload_index(ctx, t.index[k]), upload(ctx, DType::f32, {side_}, t.weight[k])});
      }
    }
    const std::vector<int64_t> index = bins();
    places_ = static_cast<int64_t>(index.size()) / m_;
    bins_ = upload_index(ctx, index);
    std::vector<double> triangle, ones(static_cast<size_t>(k_ * repeats_), 1.0);
    for (int64_t i = 0; i < m_; ++i)
      for (int64_t j = 0; j < m_; ++j)
        triangle.push_back(i <= j && j + 1 < m_ ? 1.0 : 0.0);  // the last sum is 1 - 1
    triangle_ = upload(ctx, DType::f32, {m_, m_}, triangle);
    ones_ = upload(ctx, DType::f32, {k_, repeats_}, ones);
    share_ =
        upload(ctx, DType::f32, {k_},
               std::vector<double>(static_cast<size_t>(k_), 1.0 / std::sqrt(static_cast<double>(repeats_))));
    if (external_) return;
    std::vector<double> grid;
    for (int64_t y = 0; y < height_; ++y)
      for (int64_t x = 0; x < width_; ++x) {
        grid.push_back(-1 + 2 * static_cast<double>(y) / static_cast<double>(height_ - 1));
        grid.push_back(-1 + 2 * static_cast<double>(x) / static_cast<double>(width_ - 1));
      }
    coordinates_ = upload(ctx, DType::f32, {height_ * width_, 2}, grid);
    if (model_ == "wire") complex_weights(ctx);
  }

  void run(Context& ctx) override {
    ran_ = &ctx;
    if (!external_) {
      const auto stage = ctx.stage("render");
      for (int64_t r = 0; r < k_ * repeats_; ++r) render(ctx, r);
    }
    const Tensor renders = external_ ? input("outputs") : outputs_.at("outputs");
    {
      const auto stage = ctx.stage("spectra");
      spectrum(ctx, input("y").reshape({1, channels_, height_, width_}),
               outputs_.at("spectrum_target").reshape({1, m_}));
      const Tensor images = renders.reshape({k_ * repeats_, channels_, height_, width_});
      const Tensor all = outputs_.at("spectrum_output").reshape({k_ * repeats_, m_});
      for (int64_t k = 0; k < k_; ++k)  // a candidate at a time: spectra need more memory than images
        spectrum(ctx, images.slice(0, k * repeats_, (k + 1) * repeats_),
                 all.slice(0, k * repeats_, (k + 1) * repeats_));
    }
    const auto stage = ctx.stage("distance");
    const Tensor target_sum = ctx.allocate(DType::f32, {1}), sums = ctx.allocate(DType::f32, {k_ * repeats_});
    const Tensor wanted = cumulative(ctx, outputs_.at("spectrum_target").reshape({1, m_}), target_sum);
    const Tensor got = cumulative(ctx, outputs_.at("spectrum_output").reshape({k_ * repeats_, m_}), sums);
    using Op = PointwiseArgs::Op;
    call(ctx, Op::sub, got, wanted.reshape({m_}), got);
    const Tensor negative = ctx.allocate(DType::f32, got.shape());
    call(ctx, Op::affine, got, {}, negative, -1.0f);
    call(ctx, Op::relu, negative, {}, negative);
    call(ctx, Op::relu, got, {}, got);
    call(ctx, Op::add, got, negative, got);
    const Tensor each = outputs_.at("distance_each"), flat = each.reshape({k_ * repeats_, 1});
    sum_rows(ctx, got, each.reshape({k_ * repeats_}));
    // A spectrum without any amplitude is at distance m: 0 times what was found.
    const Tensor known = ctx.allocate(DType::f32, {k_ * repeats_, 1}),
                 target_known = ctx.allocate(DType::f32, {1});
    call(ctx, Op::affine, sums.reshape({k_ * repeats_, 1}), {}, known, 1e30f);
    call(ctx, Op::clamp, known, {}, known, 0.0f, 1.0f);
    call(ctx, Op::affine, target_sum, {}, target_known, 1e30f);
    call(ctx, Op::clamp, target_known, {}, target_known, 0.0f, 1.0f);
    call(ctx, Op::mul, known, target_known, known);
    call(ctx, Op::affine, flat, {}, flat, 1.0f, -static_cast<float>(m_));
    call(ctx, Op::mul, flat, known, flat);
    call(ctx, Op::affine, flat, {}, flat, 1.0f, static_cast<float>(m_));
    ReduceArgs mean;
    mean.op = ReduceArgs::Op::mean;
    mean.x = each, mean.y = outputs_.at("distance"), mean.all = false;
    reduce(ctx, mean);
    // Population deviation / sqrt E = |d - mean| / E: rows of E ones brought to that norm hold it in every
    // place.
    const Tensor centered = ctx.allocate(DType::f32, each.shape()),
                 error = ctx.allocate(DType::f32, each.shape());
    UnitRowsArgs center;
    center.kind = UnitRowsArgs::Kind::mean;
    center.x = each, center.y = centered;
    unit_rows(ctx, center);
    UnitRowsArgs norm;
    norm.x = ones_, norm.like = centered, norm.y = error, norm.gain = share_;
    unit_rows(ctx, norm);
    transpose_copy(ctx, {error.slice(1, 0, 1), outputs_.at("standard_error").reshape({k_, 1})});
    arg_min(ctx, outputs_.at("distance").reshape({1, k_}), outputs_.at("best"));
  }

  /// A standard error is what repeats differ by: distances err by their own rounding, however little they
  /// differ.
  double condition(const std::string& name) const override {
    if (!ran_ || name != "standard_error") return 1.0;
    Context host(cpu_backend(), 1);
    const auto norm = [&](const char* output) {
      const Tensor here = host.allocate(DType::f32, outputs_.at(output).shape());
      copy(*ran_, outputs_.at(output), here);
      double sum = 0;
      for (int64_t i = 0; i < here.numel(); ++i)
        sum += static_cast<double>(here.data<float>()[i]) * static_cast<double>(here.data<float>()[i]);
      return std::sqrt(sum);
    };
    const double error = norm("standard_error") * std::sqrt(static_cast<double>(repeats_));
    return error > 0 ? std::max(1.0, norm("distance") / error) : 1.0;
  }

  ClosedForm cost() const override {
    ClosedForm c;
    Cost& t = c.cost;
    const int64_t r = k_ * repeats_, pixels = height_ * width_;
    if (!external_) {
      for (int64_t begin = 0; begin < pixels; begin += params_.integer("eval_batch"))
        t += render_cost(std::min(params_.integer("eval_batch"), pixels - begin)) * r;
      const int64_t fixed = model_ == "fourier" ? 2 * (w_ / 2) : 0;
      c.parameters = learned() - fixed;
    }
    t += spectrum_cost(1) + spectrum_cost(repeats_) * k_;
    t += cumulative_cost(1) + cumulative_cost(r);
    t += pointwise_cost(r * m_, m_, false) + pointwise_cost(r * m_, 0, false);
    // relu counts as a function.
    t += pointwise_cost(r * m_, 0, true) * 2 + pointwise_cost(r * m_, r * m_, false);
    t += reduce_cost(r, m_);
    t += pointwise_cost(r, 0, false) * 4 + pointwise_cost(1, 0, false) * 2;
    t += pointwise_cost(r, 1, false) + pointwise_cost(r, r, false);
    t += reduce_cost(k_, repeats_);
    Cost rows = moved(4 * r, 4 * r), norms = moved(4 * (2 * r + k_), 4 * r);
    rows.elementwise = 3 * r;
    norms.elementwise = 5 * r;
    norms.special = 2 * k_;
    t += rows + norms + moved(4 * k_, 4 * k_);
    Cost least = moved(4 * k_, 4);
    least.elementwise = k_;
    t += least;
    return c;
  }

 private:
  struct Tap {
    Tensor index, weight;
  };

  bool resized() const { return height_ != width_ || height_ > params_.integer("max_side"); }
  int64_t inputs_of(int64_t layer) const { return layer == 0 ? 2 : w_; }
  int64_t outputs_of(int64_t layer) const {
    return layer == layers_ + 1 ? channels_ : layer == 0 && model_ == "fourier" ? w_ / 2 : w_;
  }
  std::string name_of(int64_t layer, const char* what) const {
    return "layers." + std::to_string(layer) + "." + what;
  }
  int64_t learned() const {
    int64_t n = 0;
    for (const TensorSpec& s : weight_specs_) n += s.shape.numel() / (k_ * repeats_);
    return n;
  }

  Init target(const std::string& from, uint64_t seed) const {
    Init init;
    init.kind = Init::Kind::values;
    const int64_t channels = channels_, height = height_, width = width_;
    // Computed at the first element: most instances are made to be described. Filling asks from several
    // threads.
    struct Image {
      std::once_flag once;
      std::vector<double> values;
    };
    const auto image = std::make_shared<Image>();
    if (from != "synthetic") {
      Context host(cpu_backend(), 1);
      const Tensor t = read_npy(host, from);
      if (!(t.shape() == Shape{channels, height, width}))
        throw DataError("fresh.target: " + from + " holds " + t.shape().str() + ", not " +
                        Shape{channels, height, width}.str());
      image->values.resize(static_cast<size_t>(t.numel()));
      convert(t.raw(), t.dtype(), image->values.data(), DType::f64, t.numel());
    }
    init.value = [image, seed, channels, height, width](int64_t i) {
      std::call_once(image->once, [&] {
        std::vector<double>& values = image->values;
        if (!values.empty()) return;  // from a file
        // Waves of random direction and phase whose frequencies lie geometrically between 1 and half the
        // side: equal amplitudes per octave are amplitudes 1 / f per frequency of a plane.
        constexpr int kWaves = 48;
        const uint64_t stream = stream_of("fresh.target");
        values.resize(static_cast<size_t>(channels * height * width));
        const double most = static_cast<double>(std::min(height, width)) / 2;
        double largest = 1e-30;
        for (int64_t c = 0; c < channels; ++c)
          for (int wave = 0; wave < kWaves; ++wave) {
            const auto at = static_cast<uint64_t>(c * kWaves + wave) * 2;
            const double f = std::pow(most, static_cast<double>(wave) / kWaves);
            const double turn = 2 * kPi * random_uniform(seed, stream, at),
                         phase = 2 * kPi * random_uniform(seed, stream, at + 1);
            const double fy = f * std::sin(turn) / static_cast<double>(height),
                         fx = f * std::cos(turn) / static_cast<double>(width);
            for (int64_t y = 0; y < height; ++y)
              for (int64_t x = 0; x < width; ++x)
                values[static_cast<size_t>((c * height + y) * width + x)] +=
                    std::cos(2 * kPi * (fy * static_cast<double>(y) + fx * static_cast<double>(x)) + phase) /
                    f;
          }
        for (double v : values) largest = std::max(largest, std::abs(v));
        for (double& v : values) v /= largest;
      });
      return image->values[static_cast<size_t>(i)];
    };
    return init;
  }

  /// Weight specifications with the model's initialisation; draws depend on the repeat, not on the candidate.
  void network(uint64_t seed) {
    const double hidden = std::sqrt(6.0 / static_cast<double>(w_)) / hidden_omega_;
    for (int64_t layer = 0; layer <= layers_ + 1; ++layer) {
      const int64_t in = inputs_of(layer), out = outputs_of(layer);
      const double plain = 1 / std::sqrt(static_cast<double>(in));
      for (const char* what : {"weight", "bias"}) {
        const bool weight = what[0] == 'w';
        if (!weight && layer == 0 && model_ == "fourier") continue;
        std::vector<int64_t> dims = {k_, repeats_, out};
        if (weight) dims.push_back(in);
        const bool complex = model_ == "wire" && layer > 0;
        if (complex) dims.push_back(2);
        int64_t count = 1;
        for (size_t i = 2; i < dims.size(); ++i) count *= dims[i];
        // Width of the uniform distribution, by model and layer.
        double width = plain;
        if (weight && model_ == "siren") width = layer == 0 ? 1.0 / 2 : hidden;
        if (weight && model_.starts_with("finer")) width = layer == 0 ? 1.0 / 2 : hidden;
        Init init;
        init.kind = Init::Kind::values;
        const uint64_t stream = stream_of("fresh." + name_of(layer, what));
        const int64_t per_candidate = count * repeats_;
        const auto betas = static_cast<int64_t>(betas_.size());
        init.value = [=, this](int64_t i) {
          const int64_t k = i / per_candidate;
          const auto draw = static_cast<uint64_t>(i % per_candidate);
          const double value = candidates_[static_cast<size_t>(k / betas)],
                       beta = betas_[static_cast<size_t>(k % betas)];
          if (weight && layer == 0 && model_ == "fourier") return value * random_normal(seed, stream, draw);
          if (weight && layer == 0 && model_ == "siren")
            return width * symmetric_beta(beta, seed, stream, draw);
          double bound = width;
          if (!weight && layer == 0 && model_ == "finer_omega") bound = 0;
          if (!weight && layer == 0 && model_ == "finer_bias") bound = value;
          return bound * (2 * random_uniform(seed, stream, draw) - 1);
        };
        weight_specs_.push_back({name_of(layer, what),
                                 Shape(std::span<const int64_t>(dims.data(), dims.size())), DType::f32, init,
                                 false, weight ? "[K, E, out, in]" : "[K, E, out]"});
      }
    }
  }

  /// Wire: rows (re of all, then im of all), columns interleaved (re, im): [[wr, -wi], [wi, wr]], so that a
  /// product of rows of complex numbers gives their parts as two halves.
  void complex_weights(Context& ctx) {
    matrices_.clear();
    offsets_.clear();
    for (int64_t layer = 1; layer <= layers_ + 1; ++layer) {
      const int64_t in = inputs_of(layer), out = outputs_of(layer), r = k_ * repeats_;
      Context host(cpu_backend(), 1);
      const auto read = [&](const char* what) {
        const Tensor& t = weight(name_of(layer, what));
        const Tensor here = host.allocate(DType::f32, t.shape());
        copy(ctx, t, here);
        return here;
      };
      const Tensor w = read("weight"), b = read("bias");
      std::vector<double> matrix(static_cast<size_t>(r * 4 * out * in)),
          offset(static_cast<size_t>(r * 2 * out));
      for (int64_t n = 0; n < r; ++n)
        for (int64_t o = 0; o < out; ++o) {
          for (int64_t part = 0; part < 2; ++part)
            offset[static_cast<size_t>((n * 2 + part) * out + o)] =
                static_cast<double>(b.data<float>()[(n * out + o) * 2 + part]);
          for (int64_t i = 0; i < in; ++i) {
            const float* z = w.data<float>() + ((n * out + o) * in + i) * 2;
            double* re = &matrix[static_cast<size_t>(((n * 2 * out) + o) * 2 * in + 2 * i)];
            double* im = &matrix[static_cast<size_t>(((n * 2 * out) + out + o) * 2 * in + 2 * i)];
            re[0] = static_cast<double>(z[0]), re[1] = -static_cast<double>(z[1]);
            im[0] = static_cast<double>(z[1]), im[1] = static_cast<double>(z[0]);
          }
        }
      matrices_.push_back(upload(ctx, DType::f32, {r, 2 * out, 2 * in}, matrix));
      offsets_.push_back(upload(ctx, DType::f32, {r, 2 * out}, offset));
    }
  }

  Tensor of_network(const std::string& name, int64_t r) const {
    const Tensor& t = weight(name);
    return t.select(0, r / repeats_).select(0, r % repeats_);
  }
  void layer(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
             double alpha, Activation activation = Activation::none) const {
    GemmArgs a;
    a.a = x, a.b = w, a.c = y, a.bias = bias;
    a.b_transposed = true;
    a.alpha = static_cast<float>(alpha);
    a.activation = activation;
    gemm(ctx, a);
  }

  void render(Context& ctx, int64_t r) {
    using Op = PointwiseArgs::Op;
    const int64_t pixels = height_ * width_, chunk = params_.integer("eval_batch");
    const double value = candidates_[static_cast<size_t>(r / repeats_ / static_cast<int64_t>(betas_.size()))];
    const Tensor image = outputs_.at("outputs").reshape({k_ * repeats_, channels_, pixels}).select(0, r);
    for (int64_t begin = 0; begin < pixels; begin += chunk) {
      const int64_t end = std::min(pixels, begin + chunk), n = end - begin;
      Tensor x = coordinates_.slice(0, begin, end);
      const Tensor last = ctx.allocate(DType::f32, {n, channels_});
      const auto bias = [&](int64_t l) { return of_network(name_of(l, "bias"), r); };
      const auto weights = [&](int64_t l) { return of_network(name_of(l, "weight"), r); };
      if (model_ == "wire") {
        for (int64_t l = 0; l <= layers_; ++l) {
          const double omega = l == 0 ? value : hidden_omega_;
          const Tensor next = ctx.allocate(DType::f32, {n, w_, 2}), power = ctx.allocate(DType::f32, {n, w_});
          Tensor re, im;
          if (l == 0) {
            re = ctx.allocate(DType::f32, {n, w_});
            layer(ctx, x, weights(0), bias(0), re, 1.0);
          } else {
            const Tensor z = ctx.allocate(DType::f32, {n, 2 * w_});
            layer(ctx, x, matrices_[static_cast<size_t>(l - 1)].select(0, r),
                  offsets_[static_cast<size_t>(l - 1)].select(0, r), z, 1.0);
            re = z.slice(1, 0, w_), im = z.slice(1, w_, 2 * w_);
          }
          call(ctx, Op::mul, re, re, power);
          if (im) {
            const Tensor other = ctx.allocate(DType::f32, {n, w_});
            call(ctx, Op::mul, im, im, other);
            call(ctx, Op::add, power, other, power);
            call(ctx, Op::affine, im, {}, im, static_cast<float>(-omega));
          }
          call(ctx, Op::affine, power, {}, power, static_cast<float>(-kGaborScale * kGaborScale));
          if (im) call(ctx, Op::add, power, im, power);
          call(ctx, Op::exp, power, {}, power);
          call(ctx, Op::affine, re, {}, re, static_cast<float>(omega));
          ComplexArgs polar;
          polar.op = ComplexArgs::Op::polar;
          polar.a = power, polar.b = re, polar.y = next;
          complex_pointwise(ctx, polar);
          x = next.reshape({n, 2 * w_});
        }
        layer(ctx, x, matrices_.back().select(0, r).slice(0, 0, channels_),
              offsets_.back().select(0, r).slice(0, 0, channels_), last, 1.0);
        call(ctx, Op::affine, last, {}, last, 0.5f, 0.5f);
      } else {
        for (int64_t l = 0; l <= layers_; ++l) {
          const bool fourier = model_ == "fourier", finer = model_.starts_with("finer");
          if (fourier && l == 0) {
            const Tensor turn = ctx.allocate(DType::f32, {n, w_ / 2}),
                         next = ctx.allocate(DType::f32, {n, w_ / 2 * 2});
            layer(ctx, x, weights(0), {}, turn, 2 * kPi);
            call(ctx, Op::cos, turn, {}, next.slice(1, 0, w_ / 2));
            call(ctx, Op::sin, turn, {}, next.slice(1, w_ / 2, w_ / 2 * 2));
            x = next;
            continue;
          }
          const Tensor next = ctx.allocate(DType::f32, {n, w_});
          const double omega = l == 0 ? (model_ == "finer_bias" ? 30.0 : value) : hidden_omega_;
          if (fourier) {
            layer(ctx, x, weights(l), bias(l), next, 1.0, Activation::relu);
          } else if (finer) {
            layer(ctx, x, weights(l), bias(l), next, 1.0);
            const Tensor size = ctx.allocate(DType::f32, {n, w_}), other = ctx.allocate(DType::f32, {n, w_});
            call(ctx, Op::relu, next, {}, size);
            call(ctx, Op::affine, next, {}, other, -1.0f);
            call(ctx, Op::relu, other, {}, other);
            call(ctx, Op::add, size, other, size);
            call(ctx, Op::affine, size, {}, size, static_cast<float>(omega), static_cast<float>(omega));
            call(ctx, Op::mul, next, size, next);
            call(ctx, Op::sin, next, {}, next);
          } else {
            layer(ctx, x, weights(l), bias(l), next, omega);
            call(ctx, Op::sin, next, {}, next);
          }
          x = next;
        }
        layer(ctx, x, weights(layers_ + 1), bias(layers_ + 1), last, model_ == "siren" ? hidden_omega_ : 1.0);
      }
      transpose_copy(ctx, {last.transpose(0, 1), image.slice(1, begin, end)});
    }
  }

  Cost render_cost(int64_t n) const {
    const auto product = [&](int64_t out, int64_t in, bool bias, bool activation) {
      return product_cost(1, n, out, in, out * in, bias, activation);
    };
    const Cost scale = pointwise_cost(n * w_, 0, false), function = pointwise_cost(n * w_, 0, true),
               both = pointwise_cost(n * w_, n * w_, false);
    Cost t;
    if (model_ == "wire") {
      Cost polar = complex_pointwise_cost(ComplexArgs::Op::polar, n * w_) + moved(8 * n * w_, 8 * n * w_);
      t += product(w_, 2, true, false) + both + scale * 2 + function + polar;
      t += (product(2 * w_, 2 * w_, true, false) + both * 4 + scale * 3 + function + polar) * layers_;
      t += product(channels_, 2 * w_, true, false) + pointwise_cost(n * channels_, 0, false);
    } else if (model_ == "fourier") {
      t += product(w_ / 2, 2, false, false) + pointwise_cost(n * (w_ / 2), 0, true) * 2;
      t += product(w_, w_ / 2 * 2, true, true) * layers_ + product(channels_, w_, true, false);
    } else {
      const Cost activation = model_ == "siren" ? function : function * 3 + scale * 2 + both * 2;
      t += product(w_, 2, true, false) + activation;
      t += (product(w_, w_, true, false) + activation) * layers_ + product(channels_, w_, true, false);
    }
    return t + moved(4 * n * channels_, 4 * n * channels_);
  }

  /// Places of the half spectrum, per anti-diagonal and channel, padded with -1.
  std::vector<int64_t> bins() const {
    const int64_t s = side_, half = s / 2 + 1;
    std::vector<std::vector<int64_t>> lists(static_cast<size_t>(m_));
    const int64_t first = params_.boolean("drop_dc") ? 1 : 0;
    size_t most = 1;
    for (int64_t u = 0; u < s; ++u)
      for (int64_t v = 0; v < s; ++v) {
        const int64_t j = u + v - first;
        const bool kept = (u + v <= s - 1 || (u + v == s && u >= 1 && u <= s / 2)) &&
                          !(v == 0 && u > s / 2) && !(u == 0 && v > s / 2);
        if (!kept || j < 0 || j >= m_) continue;
        const bool mirrored = v > s / 2;
        const int64_t row = mirrored ? (s - u) % s : u, column = mirrored ? s - v : v;
        for (int64_t c = 0; c < channels_; ++c)
          lists[static_cast<size_t>(j)].push_back((c * s + row) * half + column);
        most = std::max(most, lists[static_cast<size_t>(j)].size());
      }
    std::vector<int64_t> index;
    for (auto& l : lists) {
      l.resize(most, -1);
      index.insert(index.end(), l.begin(), l.end());
    }
    return index;
  }

  void sum_rows(Context& ctx, const Tensor& x, const Tensor& y) const {
    ReduceArgs a;
    a.x = x, a.y = y, a.all = false;
    reduce(ctx, a);
  }
  static Cost reduce_cost(int64_t rows, int64_t n) {
    Cost c = moved(4 * rows * n, 4 * rows);
    c.elementwise = rows * n;
    return c;
  }

  /// images [R, C, H, W] -> y [R, m].
  void spectrum(Context& ctx, const Tensor& images, const Tensor& y) {
    using Op = PointwiseArgs::Op;
    const int64_t r = images.dim(0), planes = r * channels_, half = side_ / 2 + 1;
    Tensor x = images.reshape({planes, height_, width_});
    if (!columns_.empty()) {
      // Along rows: a gather per tap, weighted by the output column.
      const int64_t lines = planes * height_;
      const Tensor sum = ctx.allocate(DType::f32, {lines, side_}),
                   part = ctx.allocate(DType::f32, {lines, side_});
      for (size_t k = 0; k < columns_.size(); ++k) {
        const Tensor to = k == 0 ? sum : part;
        gather_rows(ctx, {x.reshape({lines, width_, 1}), columns_[k].index, to.reshape({lines, side_, 1})});
        call(ctx, Op::mul, to, columns_[k].weight, to);
        if (k > 0) call(ctx, Op::add, sum, part, sum);
      }
      x = sum.reshape({planes, height_, side_});
    }
    if (!rows_.empty()) {
      const int64_t width = x.dim(2);
      const Tensor sum = ctx.allocate(DType::f32, {planes, side_, width}),
                   part = ctx.allocate(DType::f32, {planes, side_, width});
      for (size_t k = 0; k < rows_.size(); ++k) {
        const Tensor to = k == 0 ? sum : part;
        gather_rows(ctx, {x, rows_[k].index, to});
        UnitRowsArgs scale;
        scale.kind = UnitRowsArgs::Kind::scale;
        scale.x = scale.y = to;
        scale.gain = rows_[k].weight.strided({planes, side_}, {0, 1});
        unit_rows(ctx, scale);
        if (k > 0) call(ctx, Op::add, sum, part, sum);
      }
      x = sum;
    }
    const Tensor bins = ctx.allocate(DType::f32, {planes, side_, half, 2}),
                 size = ctx.allocate(DType::f32, {planes, side_, half});
    fft2(ctx, {Fft2Args::Kind::real_to_half, x, bins, side_, side_, 1.0f});
    ComplexArgs magnitude;
    magnitude.op = ComplexArgs::Op::magnitude;
    magnitude.a = bins, magnitude.y = size;
    complex_pointwise(ctx, magnitude);
    const Tensor picked = ctx.allocate(DType::f32, {r * m_, places_});
    gather_rows(
        ctx, {size.reshape({r, channels_ * side_ * half, 1}), bins_, picked.reshape({r, m_ * places_, 1})});
    sum_rows(ctx, picked, y.reshape({r * m_}));
  }
  Cost spectrum_cost(int64_t r) const {
    const int64_t planes = r * channels_, half = side_ / 2 + 1, bins = planes * side_ * half;
    Cost t;
    const auto taps = [](int64_t from, int64_t to) {
      return static_cast<int64_t>(resize_taps(from, to).index.size());
    };
    if (resized() && width_ != side_) {
      const int64_t n = planes * height_ * side_, count = taps(width_, side_);
      t += (gather_cost(n, side_) + pointwise_cost(n, side_, false)) * count +
           pointwise_cost(n, n, false) * (count - 1);
    }
    if (resized() && height_ != side_) {
      const int64_t n = planes * side_ * side_, count = taps(height_, side_);
      Cost scaled = moved(4 * (n + planes * side_), 4 * n);
      scaled.elementwise = n;
      t += (gather_cost(n, side_) + scaled) * count + pointwise_cost(n, n, false) * (count - 1);
    }
    Cost transform = moved(4 * planes * side_ * side_, 8 * bins);
    transform.matmul = fft2_flops(Fft2Args::Kind::real_to_half, planes, side_, side_);
    t += transform + complex_pointwise_cost(ComplexArgs::Op::magnitude, bins) + moved(8 * bins, 4 * bins);
    const int64_t places = static_cast<int64_t>(this->bins().size()) / m_;
    return t + gather_cost(r * m_ * places, m_ * places) + reduce_cost(r * m_, places);
  }

  /// Partial sums of the rows divided by their sums (which go to `sums`); the last one, 1, as 0.
  Tensor cumulative(Context& ctx, const Tensor& x, const Tensor& sums) {
    const int64_t r = x.dim(0);
    const Tensor rows = ctx.allocate(DType::f32, {r, m_ + 1}), shares = ctx.allocate(DType::f32, {r, m_}),
                 y = ctx.allocate(DType::f32, {r, m_});
    sum_rows(ctx, x, sums);
    transpose_copy(ctx, {x, rows.slice(1, 0, m_)});
    transpose_copy(ctx, {sums.reshape({r, 1}), rows.slice(1, m_, m_ + 1)});
    divide_by_last(ctx, {rows, shares});
    product(ctx, shares, triangle_, y, false);
    return y;
  }
  Cost cumulative_cost(int64_t r) const {
    Cost quotient = moved(4 * r * (m_ + 1), 4 * r * m_);
    quotient.special = r * m_;
    return reduce_cost(r, m_) + moved(4 * r * (m_ + 1), 4 * r * (m_ + 1)) + quotient +
           product_cost(1, r, m_, m_, m_ * m_);
  }

  Context* ran_ = nullptr;
  Params params_;
  std::string model_;
  std::vector<double> candidates_, betas_;
  int64_t k_ = 0, repeats_, channels_, height_, width_, side_, m_, w_, layers_, places_ = 0;
  double hidden_omega_;
  bool external_ = false;
  TensorMap outputs_;
  std::vector<Tap> columns_, rows_;
  std::vector<Tensor> matrices_, offsets_;
  Tensor bins_, triangle_, ones_, share_, coordinates_;
};

class Fresh final : public Method {
 public:
  const MethodInfo& info() const override { return fresh_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("fresh has no causal mode: a spectrum belongs to the whole image");
    if (problem.batch != 1)
      throw Unsupported("fresh takes one target, so problem.batch must be 1, not " +
                        std::to_string(problem.batch));
    const std::string& model = p.choice("model");
    const std::vector<double> candidates = candidates_of(p);
    if (candidates.empty() || p.value("beta_values").as_list().empty())
      throw UsageError("fresh.candidates: at least one candidate is wanted");
    if (p.is_null("candidates") && (model == "external" || model == "wire"))
      throw UsageError("fresh.candidates: model " + model + " has no grid of its own");
    const int64_t side = std::min({p.integer("height"), p.integer("width"), p.integer("max_side")});
    if (p.integer("spectrum_size") > 2 * side - 2)
      throw UsageError("fresh.spectrum_size: " + std::to_string(p.integer("spectrum_size")) +
                       " is beyond the 2 S - 2 = " + std::to_string(2 * side - 2) +
                       " anti-diagonals of side " + std::to_string(side));
    if (p.integer("in_dim") != 2)
      throw Unsupported("fresh.in_dim: images have two coordinates; " + std::to_string(p.integer("in_dim")) +
                        " would need a three-dimensional transform");
    if (model == "fourier" && p.integer("hidden_features") % 2 != 0)
      throw UsageError("fresh.hidden_features: fourier has pairs of cosine and sine, so " +
                       std::to_string(p.integer("hidden_features")) + " is not possible");
    if (model == "wire" && p.integer("hidden_features") < 2)
      throw UsageError("fresh.hidden_features: wire needs 2 or more");
    if (model == "finer_bias")
      for (double k : candidates)
        if (k < 0) throw UsageError("fresh.candidates: a bias range of " + Value(k).str() + " is negative");
    return std::make_unique<FreshInstance>(ctx, problem, p);
  }
};
ATTNBENCH_METHOD(Fresh);

}  // namespace
}  // namespace attnbench
