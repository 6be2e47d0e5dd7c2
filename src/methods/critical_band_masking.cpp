// Critical-band masking: images with noise of one octave band, and the spatial-frequency channel of an
// accuracy matrix.
#include <algorithm>
#include <cmath>
#include <fstream>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/features/features.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/pyramid/pyramid.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one

constexpr double kAmplitude = 4.0, kCenter = 4.5,
                 kWidth = 1.7;     ///< of the synthetic observer (chosen, card step 12)
constexpr int64_t kRedraws = 256;  ///< normals per sample when no file gives them; few pixels need any

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "critical_band_masking";
  m.title = "Critical-band masking: narrow-band noise and spatial-frequency channels";
  m.paper = "Spatial-frequency channels, shape bias, and adversarial robustness, NeurIPS 2023";
  m.arxiv = "2309.13190";
  m.family = "analysis";
  m.summary =
      "Measures which spatial frequencies a classifier depends on: noise of one octave band, cut from a "
      "Laplacian "
      "pyramid, is added to low-contrast images; where accuracy falls below a mark, over noise level and "
      "band, gives "
      "thresholds, and a Gaussian over the bands gives bandwidth, centre and sensitivity of the channel.";
  m.formula =
      "v = contrast (I / 255 - mean) + mean_luminance;  n = sigma N(0, 1)\n"
      "g_0 = n, g_{l+1} = reduce(g_l);  level l = g_l - expand(g_{l+1}), the last g_l\n"
      "r_f = expand^l(level num_bands - 1 - f);  s = r_f rms(r_top) / rms(r_f);  y = v + s, brought back "
      "into [0, 1]\n"
      "t_f = noise levels skipped from the highest before accuracy > threshold_acc\n"
      "A, mu, s = argmin sum_f (t_f - A exp(-(f - mu)^2 / (2 s^2)))^2\n"
      "BW = 2 sqrt(ln 4) s octaves, CF = lowest_center 2^mu, PNS = 2^(A - levels)";
  m.cost =
      "Pyramid: 5 taps along both axes, 3.75 n MACs for the first reduce and as much for its expand, a "
      "quarter per level "
      "beyond; each sample runs to its own level and back. About 10 n pointwise. Fit: 181 x 160 x bands "
      "exponentials. No "
      "parameters.";
  ParamSpec sds = spec::list("noise_sds", Value(Value::List{0.0, 0.02, 0.04, 0.08, 0.16}),
                             "noise levels, ascending, 0 first");
  sds.min = 0.0;
  ParamSpec sigma = spec::list("sigma", Value(), "noise SD of each sample; null: 0.16");
  sigma.min = 0.0;
  ParamSpec band = spec::list("band", Value(), "band of each sample; null: its index mod num_bands");
  band.min = 0.0;
  ParamSpec taps = spec::list("filter_taps", "binomial-5", "pyramid kernel, odd number of taps");
  taps.choices = {"binomial-5"};
  ParamSpec contrast = spec::number("contrast", 0.2, 0, "of the image");
  contrast.max = 1.0;
  ParamSpec luminance = spec::number("mean_luminance", 0.449, 0, "of the image");
  luminance.max = 1.0;
  ParamSpec gap = spec::number("edge_gap", 0.1, 0, "where moved pixels land from black and white");
  gap.max = 0.4999999;
  ParamSpec pass = spec::number("threshold_acc", 50.0, 0, "percent that must be exceeded");
  pass.max = 100.0;
  ParamSpec file;
  file.name = "matrix_file";
  file.type = ParamSpec::Type::text;
  file.default_value = "";
  file.meaning = "accuracy matrix, levels x bands numbers in percent; skips images and observer";
  m.params = {
      spec::choice("stage", {"all", "stimulus", "channel_fit"},
                   "stimulus: images; channel_fit: thresholds and fit"),
      from_problem(spec::integer("image_size", 224, 10, "S"), "size[0]"),
      sds,
      spec::integer("num_bands", 7, 1, "octave bands, at most as many as the pyramid has levels"),
      sigma,
      band,
      contrast,
      luminance,
      gap,
      taps,
      spec::boolean("equalise_rms", true, "every band gets the RMS of the finest"),
      pass,
      spec::number("lowest_center", 1.75, 0, "centre of band 0, cycles per image"),
      spec::integer("trials_per_cell", 30, 1, "of a real observer; the synthetic one answers exactly"),
      file,
      spec::choice("observer", {"synthetic", "callback", "file"}, "who fills the accuracy matrix"),
      spec::integer("seed", 0, 0, "of the noise")};
  m.kinds = {ProblemKind::image};
  m.dtypes = {DType::f32};
  m.figures = {
      {"human channel, pooled", "14 observers, thresholds (0,0,0,0,2,2,0)", "-",
       "A 4.00, mu 4.50, s 0.42: BW 1.00 octave, CF 39.60 c/img, PNS 1.00",
       "analysis/human_analysis notebook"},
      {"human channel, per observer", "mean (SD) over 14", "-",
       "BW 1.43 (0.54), CF 39.13 (2.98), PNS 0.80 (0.28)", "analysis/human_analysis notebook"},
      {"network / human bandwidth", "76 networks", "human", "2-4 times", "abstract"},
      {"variance explained, shape bias", "BW, CF, PNS", "-", "53 % (51 % in the other version)", "abstract"},
      {"variance explained, robustness", "adversarially trained networks", "-",
       "74 % (66 % in the other version)", "abstract"},
      {"ResNet-50 (recomputed)", "thresholds (0,0,2,2,3,4,2)", "human 1.43", "BW 3.99, CF 39.42, PNS 0.710",
       "data/network_data"},
      {"ViT-B/16 (recomputed)", "thresholds (0,0,1,2,2,3,1)", "-", "BW 3.51, CF 34.40, PNS 0.386",
       "data/network_data"},
      {"EfficientNet-L2 noisy student (recomputed)", "thresholds (0,0,0,2,3,3,0)", "-",
       "BW 2.29, CF 32.23, PNS 0.701", "data/network_data"},
      {"adversarial L2 ResNet-50 (recomputed)", "eps 0 / 0.05 / 0.25 / 1", "eps 0",
       "BW 4.81 / 4.22 / 6.43 / 15.96", "data/network_data"}};
  m.notes = {
      "sigma, band and the synthetic observer's defaults (A0 4, mu0 4.5, s0 1.7) are chosen; so are ties, "
      "|s| and the flag "
      "`degenerate` (1) for s > 7.",
      "Thresholds that determine no Gaussian: all equal: s infinite, mu in the middle; one other than 0: s = "
      "0 at its band; "
      "all 0: A = 0, the rest NaN (chosen).",
      "When the redraw stream is used up, a pixel that needs it keeps v (chosen).",
      "stage all measures images and fit in one run; its noise before repair is the output `noise_s`, "
      "because `s` is the "
      "fit's. Its matrix is the synthetic observer's or the file's: a callback needs a network in the same "
      "process.",
      "f32 only: noise and images come in f32, and a fit is not a matter of storage."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 3;
  m.example.size = {160, 160};  // the least power of two times 5 with seven levels
  m.example.channels = 1;
  return m;
}

const MethodInfo& masking_info() {
  static const MethodInfo info = describe();
  return info;
}

/// Accuracy of the synthetic observer, [levels][bands] in percent.
std::vector<double> synthetic_accuracy(const std::vector<double>& sds, int64_t bands) {
  std::vector<double> a;
  for (double sigma : sds)
    for (int64_t f = 0; f < bands; ++f) {
      const double u = (static_cast<double>(f) - kCenter) / kWidth,
                   need = kAmplitude * std::exp(-0.5 * u * u);
      a.push_back(sigma == 0 || std::log2(sds.back() / sigma) >= need - 0.5 ? 100.0 : 6.25);
    }
  return a;
}

std::vector<double> read_matrix(const std::string& path, size_t count) {
  std::ifstream f(path);
  if (!f) throw DataError("critical_band_masking.matrix_file: " + path + " cannot be opened");
  std::vector<double> v;
  for (std::string word; f >> word;) {
    std::replace(word.begin(), word.end(), ',', ' ');
    size_t used = 0;
    try {
      v.push_back(std::stod(word, &used));
    } catch (const std::exception&) {
      throw DataError("critical_band_masking.matrix_file: " + path + ": '" + word + "' is no number");
    }
  }
  if (v.size() != count)
    throw DataError("critical_band_masking.matrix_file: " + path + " holds " + std::to_string(v.size()) +
                    " numbers; levels x bands are " + std::to_string(count));
  return v;
}

class MaskingInstance final : public Instance {
 public:
  MaskingInstance(Context& ctx, const Problem& problem, const Params& p)
      : params_(p),
        batch_(problem.batch),
        size_(p.integer("image_size")),
        bands_(p.integer("num_bands")),
        sds_(numbers(p.value("noise_sds"))),
        images_(p.choice("stage") != "channel_fit"),
        fit_(p.choice("stage") != "stimulus") {
    const auto levels = static_cast<int64_t>(sds_.size());
    const auto output = [&](const char* name, DType type, const Shape& shape) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    if (images_) {
      int64_t redraws = kRedraws;
      if (!problem.inputs.file.empty()) {
        const auto shapes = safetensors_shapes(problem.inputs.file);
        if (const auto r = shapes.find("redraw"); r != shapes.end() && r->second.rank() == 2)
          redraws = r->second[1];
      }
      const Shape image{batch_, size_, size_};
      // Seeds of the noise follow the parameter, beside the problem's.
      const auto normal = [&](const char* name) {
        Init init;
        init.kind = Init::Kind::values;
        const uint64_t seed = problem.seed + static_cast<uint64_t>(p.integer("seed")),
                       stream = stream_of(std::string("critical_band_masking.") + name);
        init.value = [seed, stream](int64_t i) {
          return random_normal(seed, stream, static_cast<uint64_t>(i));
        };
        return init;
      };
      input_specs_.push_back(
          {"I", image, DType::f32, Init::uniform(0, 255), false, "grey images [B, S, S], 0..255"});
      input_specs_.push_back({"noise", image, DType::f32, normal("noise"), false, "unit normals [B, S, S]"});
      input_specs_.push_back({"redraw",
                              {batch_, redraws},
                              DType::f32,
                              normal("redraw"),
                              false,
                              "unit normals for pixels drawn again"});
      for (const char* name : {"y", "v", fit_ ? "noise_s" : "s"}) output(name, DType::f32, image);
      sigma_ = p.is_null("sigma") ? std::vector<double>(static_cast<size_t>(batch_), 0.16)
                                  : numbers(p.value("sigma"));
      if (p.is_null("band"))
        for (int64_t b = 0; b < batch_; ++b) band_.push_back(b % bands_);
      else
        band_ = integers("critical_band_masking", "band", p.value("band"));
      taps_ = p.value("filter_taps").is_list() ? numbers(p.value("filter_taps"))
                                               : std::vector<double>{1, 4, 6, 4, 1};
      if (!p.value("filter_taps").is_list())
        for (double& t : taps_) t *= std::sqrt(2.0) / 16;
      plan();
    }
    if (fit_) {
      rows_ = images_ ? 1 : batch_;
      if (images_ || p.choice("observer") == "synthetic" || !p.text("matrix_file").empty())
        matrix_ = !p.text("matrix_file").empty()
                      ? read_matrix(p.text("matrix_file"), static_cast<size_t>(levels * bands_))
                      : synthetic_accuracy(sds_, bands_);
      if (!images_) {
        Init init;
        init.kind = Init::Kind::values;
        const auto values = std::make_shared<std::vector<double>>(
            matrix_.empty() ? synthetic_accuracy(sds_, bands_) : matrix_);
        init.value = [values](int64_t i) { return (*values)[static_cast<size_t>(i) % values->size()]; };
        input_specs_.push_back({"accuracy",
                                {batch_, levels, bands_},
                                DType::f32,
                                init,
                                false,
                                "percent correct [B, levels, bands], sigma 0 first"});
      } else {
        output("accuracy", DType::f32, {levels, bands_});
      }
      output("t", DType::i32, {rows_, bands_});
      for (const char* name : kNumbers) output(name, DType::f32, {rows_});
    }
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    if (images_) {
      filter_ = upload(ctx, DType::f32, {static_cast<int64_t>(taps_.size())}, taps_);
      sigmas_ = upload(ctx, DType::f32, {batch_}, sigma_);
      std::vector<double> sorted;
      std::vector<int64_t> back(order_.size());
      for (size_t i = 0; i < order_.size(); ++i) {
        sorted.push_back(sigma_[static_cast<size_t>(order_[i])]);
        back[static_cast<size_t>(order_[i])] = static_cast<int64_t>(i);
      }
      sorted_sigmas_ = upload(ctx, DType::f32, {batch_}, sorted);
      order_index_ = upload_index(ctx, order_);
      back_index_ = upload_index(ctx, back);
    }
    if (fit_ && images_)
      matrix_tensor_ = upload(ctx, DType::f32, {static_cast<int64_t>(sds_.size()), bands_}, matrix_);
  }

  void run(Context& ctx) override {
    if (images_) stimulus(ctx);
    if (!fit_) return;
    const auto stage = ctx.stage("fit");
    Tensor accuracy;
    if (images_) {
      transpose_copy(ctx, {matrix_tensor_, outputs_.at("accuracy")});
      accuracy = outputs_.at("accuracy").reshape({1, static_cast<int64_t>(sds_.size()), bands_});
    } else {
      accuracy = input("accuracy");
    }
    ChannelFitArgs a;
    a.accuracy = accuracy, a.threshold = outputs_.at("t");
    a.fit = ctx.allocate(DType::f64, {static_cast<int64_t>(std::size(kNumbers)), rows_});
    a.pass = params_.number("threshold_acc"), a.lowest_center = params_.number("lowest_center");
    channel_fit(ctx, a);
    for (size_t i = 0; i < std::size(kNumbers); ++i)
      cast(ctx, {a.fit.select(0, static_cast<int64_t>(i)), outputs_.at(kNumbers[i])});
  }

  ClosedForm cost() const override {
    ClosedForm c;
    Cost& t = c.cost;
    const auto levels = static_cast<int64_t>(sds_.size());
    if (images_) {
      const int64_t pixels = size_ * size_, all = batch_ * pixels, taps = static_cast<int64_t>(taps_.size());
      Cost row = moved(4 * all, 4 * all);
      row.elementwise = 3 * all;
      t += row;                                       // v
      t += (moved(4 * (all + batch_), 4 * all)) * 2;  // into the order of bands and back
      const auto level = [&](bool expand, bool subtract, int64_t images, int64_t l) {
        const int64_t a = sides_[static_cast<size_t>(l)], b = (a + 1) / 2;
        Cost s = pyramid_cost(expand, subtract, images, a, a, taps);
        s.bytes_read = 4 * (images * (expand ? b * b : a * a) + taps + (subtract ? images * a * a : 0));
        s.bytes_written = 4 * images * (expand ? a * a : b * b);
        return s;
      };
      if (bands_ > 1 || sides_.size() > 1) t += level(false, false, batch_, 0) + level(true, true, batch_, 0);
      for (const Group& g : groups_) {
        if (g.level == 0) continue;
        for (int64_t l = 1; l < g.level; ++l) t += level(false, false, g.count, l);
        if (g.level < top_level())
          t += level(false, false, g.count, g.level) + level(true, true, g.count, g.level);
        for (int64_t l = g.level - 1; l >= 0; --l) t += level(true, false, g.count, l);
      }
      Cost scaled = moved(4 * (params_.boolean("equalise_rms") ? 2 : 1) * all + 4 * batch_, 4 * all);
      scaled.elementwise = (params_.boolean("equalise_rms") ? 5 : 1) * all;
      scaled.special = params_.boolean("equalise_rms") ? 2 * batch_ : 0;
      t += scaled;
      Cost repaired = moved(4 * (2 * all + batch_ + batch_ * input_specs_[2].shape[1]), 4 * all);
      repaired.elementwise = 3 * all;
      t += repaired;
    }
    if (fit_) {
      if (images_) t += moved(4 * levels * bands_, 4 * levels * bands_);
      const auto count = static_cast<int64_t>(std::size(kNumbers));
      Cost fitted = moved(4 * rows_ * levels * bands_, 4 * rows_ * bands_ + 8 * count * rows_);
      fitted.special = rows_ * 181 * 160 * bands_;
      t += fitted + moved(8 * rows_, 4 * rows_) * count;
    }
    return c;
  }

 private:
  static constexpr const char* kNumbers[] = {"A", "mu", "s", "BW", "CF", "PNS", "degenerate"};
  struct Group {
    int64_t level, begin, count;  ///< samples begin .. in the order of levels
  };

  int64_t top_level() const { return static_cast<int64_t>(sides_.size()) - 1; }

  /// Sides of the levels, and samples in the order of their level.
  void plan() {
    sides_ = {size_};
    int64_t side = size_;
    while (side >= 5) sides_.push_back((sides_.back() + 1) / 2), side /= 2;
    for (int64_t b = 0; b < batch_; ++b) order_.push_back(b);
    const auto level = [&](int64_t b) { return bands_ - 1 - band_[static_cast<size_t>(b)]; };
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return level(a) < level(b); });
    for (int64_t i = 0; i < batch_; ++i) {
      const int64_t l = level(order_[static_cast<size_t>(i)]);
      if (groups_.empty() || groups_.back().level != l) groups_.push_back({l, i, 0});
      ++groups_.back().count;
    }
  }

  Tensor level_of(Context& ctx, int64_t images, int64_t l) const {
    const int64_t side = sides_[static_cast<size_t>(l)];
    return ctx.allocate(DType::f32, {images, side, side});
  }
  void step(Context& ctx, bool expand, const Tensor& x, const Tensor& y, const Tensor& minuend = {}) const {
    PyramidArgs a;
    a.expand = expand;
    a.x = x, a.y = y, a.taps = filter_, a.subtract_from = minuend;
    pyramid_level(ctx, a);
  }

  void stimulus(Context& ctx) {
    const int64_t pixels = size_ * size_;
    const Shape rows{batch_, pixels};
    const Tensor v = outputs_.at("v").reshape(rows), s = outputs_.at(fit_ ? "noise_s" : "s").reshape(rows);
    {
      const auto stage = ctx.stage("image");
      UnitRowsArgs a;
      a.kind = UnitRowsArgs::Kind::mean;
      a.x = input("I").reshape(rows), a.y = v;
      a.alpha = static_cast<float>(params_.number("contrast") / 255.0);
      a.beta = static_cast<float>(params_.number("mean_luminance"));
      unit_rows(ctx, a);
    }
    {
      const auto stage = ctx.stage("noise");
      const Shape images{batch_, size_, size_};
      const Tensor g0 = ctx.allocate(DType::f32, images), top = ctx.allocate(DType::f32, images),
                   band = ctx.allocate(DType::f32, images), scaled = ctx.allocate(DType::f32, images);
      const auto samples = [&](const Tensor& t) { return t.reshape({1, batch_, pixels}); };
      gather_rows(ctx, {samples(input("noise")), order_index_, samples(g0)});
      Tensor g1;
      if (sides_.size() > 1) {
        g1 = level_of(ctx, batch_, 1);
        step(ctx, false, g0, g1);
        step(ctx, true, g1, top, g0);
      }
      for (const Group& g : groups_) {
        const auto part = [&](const Tensor& t) { return t.slice(0, g.begin, g.begin + g.count); };
        if (g.level == 0) continue;  // it is the finest band itself
        Tensor coarse = part(g1);
        for (int64_t l = 1; l < g.level; ++l) {
          const Tensor next = level_of(ctx, g.count, l + 1);
          step(ctx, false, coarse, next);
          coarse = next;
        }
        if (g.level < top_level()) {
          const Tensor below = level_of(ctx, g.count, g.level + 1), level = level_of(ctx, g.count, g.level);
          step(ctx, false, coarse, below);
          step(ctx, true, below, level, coarse);
          coarse = level;
        }
        for (int64_t l = g.level - 1; l >= 0; --l) {
          const Tensor finer = l == 0 ? part(band) : level_of(ctx, g.count, l);
          step(ctx, true, coarse, finer);
          coarse = finer;
        }
      }
      // A pyramid of one level is its own residual.
      const Tensor finest = sides_.size() > 1 ? top : g0;
      for (const Group& g : groups_) {
        const auto part = [&](const Tensor& t) {
          return t.reshape(rows).slice(0, g.begin, g.begin + g.count);
        };
        UnitRowsArgs a;
        a.kind = params_.boolean("equalise_rms") ? UnitRowsArgs::Kind::norm : UnitRowsArgs::Kind::scale;
        a.x = part(g.level == 0 ? finest : band), a.y = part(scaled);
        if (a.kind == UnitRowsArgs::Kind::norm) a.like = part(finest);
        a.gain = sorted_sigmas_.slice(0, g.begin, g.begin + g.count);
        a.floor = 1e-30f;
        unit_rows(ctx, a);
      }
      gather_rows(ctx, {samples(scaled), back_index_, s.reshape({1, batch_, pixels})});
    }
    const auto stage = ctx.stage("repair");
    repair_range(ctx, {v, s, input("redraw"), sigmas_, outputs_.at("y").reshape(rows),
                       static_cast<float>(params_.number("edge_gap"))});
  }

  Params params_;
  int64_t batch_, size_, bands_, rows_ = 0;
  std::vector<double> sds_, sigma_, taps_, matrix_;
  bool images_, fit_;
  std::vector<int64_t> band_, sides_, order_;
  std::vector<Group> groups_;
  TensorMap outputs_;
  Tensor filter_, sigmas_, sorted_sigmas_, order_index_, back_index_, matrix_tensor_;
};

class CriticalBandMasking final : public Method {
 public:
  const MethodInfo& info() const override { return masking_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    const std::string stage = p.choice("stage");
    const int64_t bands = p.integer("num_bands"), size = p.integer("image_size");
    if (problem.causal) throw Unsupported("critical_band_masking has no causal mode: it looks at images");
    if (p.choice("observer") == "callback")
      throw Unsupported(
          "critical_band_masking.observer: callback needs a classifier in the same process; give its "
          "accuracies as a file");
    if (stage == "all" && p.choice("observer") == "file" && p.text("matrix_file").empty())
      throw UsageError("critical_band_masking.matrix_file: observer file needs one");
    const std::vector<double> sds = numbers(p.value("noise_sds"));
    if (sds.size() < 2 || sds[0] != 0 || !std::is_sorted(sds.begin(), sds.end()))
      throw UsageError(
          "critical_band_masking.noise_sds: two levels or more are wanted, ascending from 0, not " +
          p.value("noise_sds").str());
    if (bands > 32)
      throw Unsupported("critical_band_masking.num_bands: fits of up to 32 bands are possible, not " +
                        std::to_string(bands));
    if (!(p.number("lowest_center") > 0))
      throw UsageError("critical_band_masking.lowest_center: above 0 is wanted");
    if (stage != "channel_fit") {
      if (problem.size.size() == 2 && problem.size[0] != problem.size[1])
        throw Unsupported("critical_band_masking takes square images, not " +
                          std::to_string(problem.size[0]) + " x " + std::to_string(problem.size[1]));
      int64_t levels = 1;
      for (int64_t side = size; side >= 5; side /= 2) ++levels;
      if (bands > levels)
        throw UsageError("critical_band_masking.num_bands: " + std::to_string(bands) +
                         " bands, and the pyramid of " + std::to_string(size) + " pixels has " +
                         std::to_string(levels) + " levels");
      for (const char* key : {"sigma", "band"})
        if (!p.is_null(key) && static_cast<int64_t>(p.value(key).as_list().size()) != problem.batch)
          throw UsageError(std::string("critical_band_masking.") + key + ": " +
                           std::to_string(p.value(key).as_list().size()) + " values for a batch of " +
                           std::to_string(problem.batch));
      if (!p.is_null("band"))
        for (int64_t b : integers("critical_band_masking", "band", p.value("band")))
          if (b >= bands)
            throw UsageError("critical_band_masking.band: " + std::to_string(b) + " is not below num_bands " +
                             std::to_string(bands));
      if (p.value("filter_taps").is_list() && p.value("filter_taps").as_list().size() % 2 == 0)
        throw UsageError("critical_band_masking.filter_taps: an odd number is wanted, not " +
                         std::to_string(p.value("filter_taps").as_list().size()));
      if (!(p.number("contrast") > 0)) throw UsageError("critical_band_masking.contrast: above 0 is wanted");
    }
    return std::make_unique<MaskingInstance>(ctx, problem, p);
  }
};
ATTNBENCH_METHOD(CriticalBandMasking);

}  // namespace
}  // namespace attnbench
