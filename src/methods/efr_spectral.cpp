// Time-averaged spectral response and cross-spectral density of envelope following responses.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/scan/scan.hpp"
#include "kernels/spectral_response/spectral_response.hpp"
#include "methods/filter_design.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "efr_spectral";
  m.title = "Spectral response and cross-spectral density of envelope following responses";
  m.paper =
      "Frequency-Specific Neural Response and Cross-Correlation Analysis of Envelope Following Responses to "
      "Native "
      "Speech and Music Using Multichannel EEG Signals: A Case Study, 2025";
  m.arxiv = "2507.05635";
  m.family = "spectral";
  m.summary =
      "One excitation x and Ch responses y: their short-time spectra give transfer functions H(f, t) per "
      "cell, whose "
      "averages over time are the spectral response, the phase delay and the coherence of every channel "
      "pair; their "
      "peaks are the method's result.";
  m.formula =
      "H_c = Y_c / X;  R_c = mean_t |H_c|;  Phi_c = mean_t (arg Y_c - arg X);  Delay = 1000 Phi / (2 pi f)\n"
      "CSD_cd = |sum_t H_c conj H_d|;  Coef_cd = CSD_cd / sqrt(sum_t |H_c|^2 sum_t |H_d|^2)\n"
      "peaks of log10 R, log10 CSD and Coef; histogram of pooled peak frequencies\n"
      "full: x = linear(lowpass(|hilbert(bandpass audio)|)), y = butterworth(notch y), all of zero phase";
  m.cost =
      "STFT B (Ch + 1) Tn (n + 2.5 n log2 n), n = nfft; cells B Fb Tn (22 Ch + 8 Pr) and Ch + 1 angles each. "
      "About 8.2 "
      "MFLOP for the defaults. No parameters.";
  m.params = {
      spec::number("fs", Value(), 0, "sample rate, Hz; null: problem.sample_rate, or 200"),
      from_problem(spec::integer("samples", 24000, 1, "N (with preprocess full: of the EEG)"), "samples"),
      from_problem(spec::integer("channels", 4, 1, "Ch, responses"), "channels"),
      spec::integer("nperseg", 200, 2, "window length"),
      spec::integer("noverlap", 100, 0, "points that neighbouring windows share"),
      spec::integer("nfft", 200, 2, "transform length"),
      spec::choice("window", {"hann", "hamming", "boxcar"}, "periodic"),
      spec::choice("boundary", {"zeros", "none"}, "n/2 zeros on both sides of the signal, or none"),
      spec::number("eps", 0.0, 0, "regulariser of the division: Y conj X / (|X|^2 + eps^2)"),
      spec::choice("phase_mode", {"difference", "ratio"}, "arg Y - arg X, not wrapped; or arg H"),
      spec::choice("csd_source", {"transfer", "response"}, "H, or Y (plain coherence)"),
      spec::number("peak_height_tf", 0.5, 0, "fraction of the maximum of log10 R"),
      spec::number("peak_height_csd", 0.4, 0, "fraction of the maximum of log10 CSD and of Coef"),
      spec::integer("peak_distance", 10, 1, "bins between peaks"),
      spec::integer("hist_bins", 50, 1, "of the pooled histogram"),
      spec::choice("preprocess", {"none", "full"},
                   "full: x is audio, filtered to its envelope; y is filtered"),
      spec::choice("fir_window", {"kaiser", "hamming"},
                   "kaiser reproduces the published numbers, hamming the stated intent"),
      spec::integer("audio_rate", 22050, 1, "Hz, preprocess full"),
      spec::choice("accumulate", {"f64", "f32"}, "type of the sums over time")};
  for (ParamSpec& p : m.params)
    if (p.name.starts_with("peak_height")) p.max = 1.0;
  m.kinds = {ProblemKind::signal};
  m.dtypes = {DType::f32};
  m.figures = {
      {"FIR taps", "fs_a 22,050; widths 10 and 20 Hz", "-", "7277 and 3639", "notebook log"},
      {"dominant response bands", "13 subjects, native song", "-", "8-11, 53-56, 78-81 Hz", "abstract"},
      {"common CSD bands, all pairs", "same", "-", "10-13, 27-29, 62-64 Hz", "abstract"},
      {"mean and s.d. of abs(H)", "subject 4; Cz, P4, F8, T7", "-",
       "202.63/716.27, 226.50/995.80, 201.81/797.62, 382.82/1776.15", "notebook output"},
      {"R peaks found", "13 subjects; Cz, P4, F8, T7", "-", "90, 89, 90, 88",
       "counted from the notebook's lists"},
      {"subjects with an R peak in 8-11 Hz", "Cz, P4, F8, T7", "of 13", "11, 11, 10, 9", "counted"},
      {"subjects with a CSD peak in 10-13 Hz", "six pairs", "of 13", "11, 10, 12, 12, 12, 12", "counted"},
      {"fullest R histogram bin", "Cz; P4; F8 and T7", "-", "8.46-10.28; 9.44-11.3; 9.36-11.2 Hz", "counted"},
      {"example R peaks", "first subject, Cz", "-", "10, 22, 32, 46, 61, 76, 88 Hz", "notebook output"}};
  m.notes = {"A cell with X = 0 has H = 0; 0 / 0 in Coef is 0; the tail is padded as SciPy's stft pads it.",
             "Pair delays are scaled by each bin's frequency (the notebook's loop leaves them at 3 Hz).",
             "Peaks of equal height: the later is visited first. Peak lists hold ceil(Fb / peak_distance) + "
             "1 places, the most "
             "that can be found, those of the default rule as many.",
             "hist_R_edges of a channel without a peak are 0 .. 1.",
             "f32 only: recordings are given in f32 and mean |H| spans three decades.",
             "preprocess full: x has round(samples / fs audio_rate) points, the audio of the same time. "
             "Filters of the audio run "
             "through f32 transforms, those of the EEG in f64; the Butterworth band-pass is applied as "
             "second-order sections."};
  m.example.kind = ProblemKind::signal;
  m.example.batch = 2;
  m.example.channels = 3;
  m.example.samples = 1500;
  m.example.sample_rate = 200;
  return m;
}

const MethodInfo& efr_info() {
  static const MethodInfo info = describe();
  return info;
}

class EfrInstance final : public Instance {
 public:
  EfrInstance(Context& ctx, const Problem& problem, const Params& p)
      : params_(p),
        batch_(problem.batch),
        ch_(p.integer("channels")),
        n_(p.integer("samples")),
        nfft_(p.integer("nfft")),
        width_(p.integer("nperseg")),
        hop_(p.integer("nperseg") - p.integer("noverlap")),
        fs_(!p.is_null("fs")          ? p.number("fs")
            : problem.sample_rate > 0 ? problem.sample_rate
                                      : 200.0),
        full_(p.choice("preprocess") == "full") {
    pad_ = p.choice("boundary") == "zeros" ? width_ / 2 : 0;
    const int64_t length = n_ + 2 * pad_ - width_;
    if (length < 0)
      throw UsageError("efr_spectral.samples: " + std::to_string(n_) + " points are fewer than a window of " +
                       std::to_string(width_));
    frames_ = (length + hop_ - 1) / hop_ + 1;  // SciPy's end padding: the frames that cover everything
    bins_ = nfft_ / 2 + 1;
    pairs_ = ch_ * (ch_ - 1) / 2;
    room_ = (bins_ + p.integer("peak_distance") - 1) / p.integer("peak_distance") + 1;
    audio_ = full_
                 ? std::llround(static_cast<double>(n_) / fs_ * static_cast<double>(p.integer("audio_rate")))
                 : n_;
    if (full_ && !problem.inputs.file.empty()) {  // audio of any length may be given
      const auto shapes = safetensors_shapes(problem.inputs.file);
      if (const auto x = shapes.find("x"); x != shapes.end() && x->second.rank() == 2) audio_ = x->second[1];
    }
    input_specs_ = {{"x", {batch_, audio_}, DType::f32, Init::normal(), false, "excitation [B, N]"},
                    {"y", {batch_, ch_, n_}, DType::f32, Init::normal(), false, "responses [B, Ch, N]"}};
    const auto output = [&](const char* name, DType type, const Shape& shape) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    output("f", DType::f32, {bins_});
    output("t", DType::f32, {frames_});
    output("H", DType::f32, {batch_, ch_, bins_, frames_, 2});
    for (const char* name : {"R", "Phi", "Delay"}) output(name, DType::f32, {batch_, ch_, bins_});
    for (const char* name : {"CSD", "Coef", "Delay_pair"}) output(name, DType::f32, {batch_, pairs_, bins_});
    for (const char* name : {"peaks_R", "peaks_R_default"}) output(name, DType::i32, {batch_, ch_, room_});
    for (const char* name : {"peaks_CSD", "peaks_Coef"}) output(name, DType::i32, {batch_, pairs_, room_});
    output("widths_R", DType::f32, {batch_, ch_, room_});
    for (const char* name : {"widths_CSD", "widths_Coef"}) output(name, DType::f32, {batch_, pairs_, room_});
    output("hist_R", DType::i32, {ch_, p.integer("hist_bins")});
    output("hist_R_edges", DType::f32, {ch_, p.integer("hist_bins") + 1});
    if (full_) {
      output("x_pre", DType::f32, {batch_, n_});
      output("y_pre", DType::f32, {batch_, ch_, n_});
    }
  }

  /// The peak lists are as long as the longest that was found, at least 1: known after a run only.
  TensorMap outputs() const override {
    if (!ran_) return outputs_;
    TensorMap out = outputs_;
    for (const auto& [index, width] : {std::pair<const char*, const char*>{"peaks_R", "widths_R"},
                                       {"peaks_R_default", nullptr},
                                       {"peaks_CSD", "widths_CSD"},
                                       {"peaks_Coef", "widths_Coef"}}) {
      const Tensor here = on_host(outputs_.at(index));
      int64_t most = 1;
      for (int64_t i = 0; i < here.numel(); ++i)
        if (here.data<int32_t>()[i] >= 0) most = std::max(most, i % room_ + 1);
      for (const char* name : {index, width}) {
        if (!name) continue;
        // Through the host: what is read here is no part of a run's cost.
        const Tensor list = on_host(outputs_.at(name));
        Context host(cpu_backend(), 1);
        const Tensor cut = host.allocate(list.dtype(), {list.dim(0), list.dim(1), most});
        const int64_t rows = list.dim(0) * list.dim(1), bytes = static_cast<int64_t>(size_of(list.dtype()));
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(static_cast<char*>(cut.raw()) + r * most * bytes,
                      static_cast<const char*>(list.raw()) + r * room_ * bytes,
                      static_cast<size_t>(most * bytes));
        const Tensor compact = ran_->allocate(list.dtype(), cut.shape(), MemoryClass::output);
        copy(*ran_, cut, compact);
        out[name] = compact;
      }
    }
    return out;
  }

  void prepare(Context& ctx) override {
    std::vector<double> f, t, scale;
    const double step = fs_ / static_cast<double>(nfft_);
    for (int64_t j = 0; j < bins_; ++j) {
      f.push_back(static_cast<double>(j) * step);
      scale.push_back(j == 0 ? std::nan("") : 1000.0 / (2 * std::numbers::pi * f.back()));
    }
    for (int64_t m = 0; m < frames_; ++m) t.push_back(static_cast<double>(m * hop_) / fs_);
    frequencies_ = upload(ctx, DType::f32, {bins_}, f);
    times_ = upload(ctx, DType::f32, {frames_}, t);
    delay_scale_ = upload(ctx, DType::f32, {bins_}, scale);
    const std::vector<double> window = filter::periodic_window(params_.choice("window"), width_);
    window_ = upload(ctx, DType::f32, {width_}, window);
    window_sum_ = 0;
    for (double w : window) window_sum_ += w;
    std::vector<int64_t> first, second;
    for (int64_t c = 0; c < ch_; ++c)
      for (int64_t d = c + 1; d < ch_; ++d) first.push_back(c), second.push_back(d);
    first_ = upload_index(ctx, first);
    second_ = upload_index(ctx, second);
    if (!full_) return;
    const auto rate = static_cast<double>(params_.integer("audio_rate"));
    const bool kaiser = params_.choice("fir_window") == "kaiser";
    const auto taps = [&](double low, double high, double width) {
      const int64_t n = filter::odd_taps(3.3 * rate / width);
      return upload(ctx, DType::f32, {n}, filter::windowed_sinc(n, low, high, rate, kaiser, width));
    };
    band_ = taps(1, 1000, 10);
    low_ = taps(0, 100, 20);
    // Linear interpolation: the neighbours of every EEG time and the later one's weight; the ends stay.
    std::vector<int64_t> before, after;
    std::vector<double> weight, rest;
    for (int64_t i = 0; i < n_; ++i) {
      const double at = std::min(static_cast<double>(i) / fs_ * rate, static_cast<double>(audio_ - 1));
      before.push_back(static_cast<int64_t>(at));
      after.push_back(std::min(before.back() + 1, audio_ - 1));
      weight.push_back(at - std::floor(at));
      rest.push_back(1.0 - weight.back());
    }
    before_ = upload_index(ctx, before);
    after_ = upload_index(ctx, after);
    after_weight_ = upload(ctx, DType::f32, {n_}, weight);
    before_weight_ = upload(ctx, DType::f32, {n_}, rest);
  }

  void run(Context& ctx) override {
    ran_ = &ctx;
    Tensor x = input("x"), y = input("y");
    if (full_) {
      const auto stage = ctx.stage("preprocess");
      envelope(ctx, x, outputs_.at("x_pre"));
      clean(ctx, y, outputs_.at("y_pre"));
      x = outputs_.at("x_pre"), y = outputs_.at("y_pre");
    }
    spectrum_x_ = {};  // so that the arena gives the same memory again
    spectrum_x_ = ctx.allocate(DType::f32, {batch_, frames_, bins_, 2});
    const Tensor spectrum_x = spectrum_x_,
                 spectrum_y = ctx.allocate(DType::f32, {batch_, ch_, frames_, bins_, 2});
    {
      const auto stage = ctx.stage("stft");
      const auto scale = static_cast<float>(1.0 / window_sum_);
      stft(ctx, {x, window_, spectrum_x, nfft_, hop_, pad_, 0, SignalBorder::zeros, scale, true});
      stft(ctx, {y, window_, spectrum_y, nfft_, hop_, pad_, 0, SignalBorder::zeros, scale, true});
      transpose_copy(ctx, {frequencies_, outputs_.at("f")});
      transpose_copy(ctx, {times_, outputs_.at("t")});
    }
    {
      const auto stage = ctx.stage("average");
      transfer_statistics(ctx, statistics(spectrum_x, spectrum_y));
      const Tensor &phi = outputs_.at("Phi"), &pair = outputs_.at("Delay_pair");
      call(ctx, PointwiseArgs::Op::mul, phi, delay_scale_, outputs_.at("Delay"));
      if (pairs_ > 0) {
        const Tensor other = ctx.allocate(DType::f32, pair.shape());
        gather_rows(ctx, {phi, first_, pair});
        gather_rows(ctx, {phi, second_, other});
        call(ctx, PointwiseArgs::Op::sub, pair, other, pair);
        call(ctx, PointwiseArgs::Op::mul, pair, delay_scale_, pair);
      }
    }
    const auto stage = ctx.stage("peaks");
    const double transfer = params_.number("peak_height_tf"), density = params_.number("peak_height_csd");
    peaks(ctx, "R", "peaks_R", "widths_R", true, transfer, false);
    peaks(ctx, "R", "peaks_R_default", nullptr, true, 0.5, true);
    peaks(ctx, "CSD", "peaks_CSD", "widths_CSD", true, density, false);
    peaks(ctx, "Coef", "peaks_Coef", "widths_Coef", false, density, false);
    HistogramArgs h;
    h.index = outputs_.at("peaks_R"), h.counts = outputs_.at("hist_R"), h.edges = outputs_.at("hist_R_edges");
    h.scale = fs_ / static_cast<double>(nfft_);
    histogram(ctx, h);
  }

  /// A spectrum errs by the rounding of the window and of filtered signals over the whole frame, s, so a
  /// quotient by a small X errs by s / |X| of itself; the quotients that count are those the outputs are made
  /// of, weighted with |H|^2. Products of two H count twice.
  double condition(const std::string&) const override {
    if (!ran_) return 1.0;
    const Tensor x = on_host(spectrum_x_), h = on_host(outputs_.at("H"));
    const auto value = [](const Tensor& t, int64_t i) { return static_cast<double>(t.data<float>()[i]); };
    double weighted = 0, total = 0;
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t t = 0; t < frames_; ++t) {
        const int64_t row = (b * frames_ + t) * bins_ * 2;
        double power = 0;
        for (int64_t k = 0; k < 2 * bins_; ++k) power += value(x, row + k) * value(x, row + k);
        for (int64_t k = 0; k < bins_; ++k) {
          const double own = std::pow(value(x, row + 2 * k), 2) + std::pow(value(x, row + 2 * k + 1), 2);
          if (own == 0) continue;
          for (int64_t c = 0; c < ch_; ++c) {
            const int64_t at = (((b * ch_ + c) * bins_ + k) * frames_ + t) * 2;
            const double size = std::pow(value(h, at), 2) + std::pow(value(h, at + 1), 2);
            weighted += size * power / static_cast<double>(bins_) / own;
            total += size;
          }
        }
      }
    return total > 0 ? std::max(1.0, 2 * std::sqrt(weighted / total)) : 1.0;
  }

  ClosedForm cost() const override {
    const int64_t b = batch_, cells = b * ch_ * bins_, both = b * pairs_ * bins_;
    ClosedForm c;
    Cost& t = c.cost;
    if (full_) {
      const int64_t band = filter::odd_taps(3.3 * static_cast<double>(params_.integer("audio_rate")) / 10),
                    low = filter::odd_taps(3.3 * static_cast<double>(params_.integer("audio_rate")) / 20);
      t += zero_phase_cost(audio_, band, 0) + analytic_signal_cost(b, audio_);
      t += complex_pointwise_cost(ComplexArgs::Op::magnitude, b * audio_) +
           moved(8 * b * audio_, 4 * b * audio_);
      t += zero_phase_cost(audio_, low, 3 * low);
      // The largest value, its place behind the row, the row, the quotients.
      Cost most = moved(4 * b * audio_, 4 * b);
      most.elementwise = b * audio_;
      Cost quotient = moved(4 * b * (audio_ + 1), 4 * b * audio_);
      quotient.special = b * audio_;
      t += most + moved(4 * b, 4 * b) + moved(4 * b * audio_, 4 * b * audio_) * 2 + quotient;
      t += gather_cost(b * n_, n_) * 2 + pointwise_cost(b * n_, n_, false) * 2 +
           pointwise_cost(b * n_, b * n_, false);
      const int64_t rows = b * ch_;
      t += moved(4 * rows * n_, 8 * rows * n_) + moved(8 * rows * n_, 4 * rows * n_);
      for (const auto& [sections, pad] : {std::pair<int64_t, int64_t>{1, 9}, {5, 33}}) {
        const int64_t wide = rows * (n_ + 2 * pad);
        Cost extended = moved(8 * rows * n_, 8 * wide), filtered = moved(8 * wide, 8 * wide);
        extended.elementwise = 2 * (wide - rows * n_);
        filtered.matmul = 10 * wide * sections;
        t += extended + filtered * 2 + moved(8 * rows * n_, 8 * rows * n_);
      }
    }
    t += stft_cost(b, n_, frames_, nfft_, width_) + stft_cost(b * ch_, n_, frames_, nfft_, width_);
    t += moved(4 * (bins_ + frames_), 4 * (bins_ + frames_));
    const auto shaped = [](const Shape& s) {
      return Tensor::borrow(DeviceKind::cpu, DType::f32, s, nullptr);
    };
    t += transfer_statistics_cost(
        statistics(shaped({b, frames_, bins_, 2}), shaped({b, ch_, frames_, bins_, 2})));
    t += pointwise_cost(cells, bins_, false);
    if (pairs_ > 0)
      t += gather_cost(both, pairs_) * 2 + pointwise_cost(both, both, false) +
           pointwise_cost(both, bins_, false);
    const auto search = [&](int64_t points, int64_t rows, bool log, bool width) {
      Cost s = moved(4 * points, (width ? 8 : 4) * rows * room_);
      s.elementwise = 4 * points;
      s.special = log ? points : 0;
      return s;
    };
    t += search(cells, b * ch_, true, true) + search(cells, b * ch_, true, false) +
         search(both, b * pairs_, true, true) + search(both, b * pairs_, false, true);
    const int64_t hist = params_.integer("hist_bins");
    Cost pooled = moved(4 * b * ch_ * room_, 4 * ch_ * (2 * hist + 1));
    pooled.elementwise = 2 * b * ch_ * room_;
    t += pooled;
    return c;
  }

 private:
  Tensor on_host(const Tensor& t) const {
    Context host(cpu_backend(), 1);
    const Tensor here = host.allocate(t.dtype(), t.shape());
    copy(*ran_, t, here);
    return here;
  }

  TransferStatisticsArgs statistics(const Tensor& x, const Tensor& y) const {
    TransferStatisticsArgs a;
    a.x = x, a.y = y;
    a.r = outputs_.at("R"), a.phi = outputs_.at("Phi"), a.csd = outputs_.at("CSD"),
    a.coef = outputs_.at("Coef");
    a.h = outputs_.at("H");
    a.n_fft = nfft_;
    a.eps = static_cast<float>(params_.number("eps"));
    a.phase_ratio = params_.choice("phase_mode") == "ratio";
    a.from_response = params_.choice("csd_source") == "response";
    a.f32_sums = params_.choice("accumulate") == "f32";
    return a;
  }

  void peaks(Context& ctx, const char* curve, const char* index, const char* width, bool log, double fraction,
             bool by_deviation) {
    FindPeaksArgs a;
    a.x = outputs_.at(curve), a.index = outputs_.at(index);
    if (width) a.width = outputs_.at(width);
    a.log10 = log;
    a.fraction = fraction;
    a.by_deviation = by_deviation;
    a.distance = params_.integer("peak_distance");
    find_peaks(ctx, a);
  }

  /// Forwards and backwards, each from the steady state of its first value, `pad` odd values on both sides:
  /// what went before the first value is that value, so taps - 1 of it stand for the filter's initial state.
  Tensor zero_phase(Context& ctx, const Tensor& x, const Tensor& taps, int64_t pad) {
    using Mode = ExtendArgs::Mode;
    const int64_t n = x.dim(1), wide = n + 2 * pad, before = taps.dim(0) - 1;
    Tensor odd = x;
    if (pad > 0) {
      odd = ctx.allocate(DType::f32, {batch_, wide});
      extend(ctx, {Mode::odd, x, odd, pad, pad});
    }
    const Tensor steady = ctx.allocate(DType::f32, {batch_, wide + before});
    extend(ctx, {Mode::edge, odd, steady, before, 0});
    fir(ctx, {steady, taps, steady, false});
    const Tensor back = ctx.allocate(DType::f32, {batch_, wide + before});
    extend(ctx, {Mode::edge, steady.slice(1, before, before + wide), back, 0, before});
    fir(ctx, {back, taps, back, true});
    return back.slice(1, pad, pad + n);
  }
  Cost zero_phase_cost(int64_t n, int64_t taps, int64_t pad) const {
    const int64_t wide = n + 2 * pad, all = wide + taps - 1, length = fir_length(all, taps),
                  bins = length / 2 + 1;
    Cost t;
    if (pad > 0) {
      t += moved(4 * batch_ * n, 4 * batch_ * wide);
      t.elementwise += 2 * batch_ * 2 * pad;
    }
    Cost once = moved(4 * batch_ * wide, 4 * batch_ * all) + moved(4 * taps, 8 * bins) +
                moved(4 * batch_ * all, 8 * batch_ * bins) +
                moved(8 * (batch_ + 1) * bins, 8 * batch_ * bins) +
                moved(8 * batch_ * bins, 4 * batch_ * all);
    once.matmul = fft1_flops(Fft1Args::Kind::real_to_half, 1 + 2 * batch_, length);
    once += complex_pointwise_cost(ComplexArgs::Op::multiply, batch_ * bins);
    return t + once * 2;
  }

  /// Step A: band-pass, magnitude of the analytic signal, low-pass, unit maximum, EEG times.
  void envelope(Context& ctx, const Tensor& audio, const Tensor& y) {
    const Tensor band = zero_phase(ctx, audio, band_, 0),
                 analytic = ctx.allocate(DType::f32, {batch_, audio_, 2}),
                 size = ctx.allocate(DType::f32, {batch_, audio_});
    analytic_signal(ctx, band, analytic);
    ComplexArgs magnitude;
    magnitude.op = ComplexArgs::Op::magnitude;
    magnitude.a = analytic, magnitude.y = size;
    complex_pointwise(ctx, magnitude);
    const Tensor smooth = zero_phase(ctx, size, low_, 3 * low_.dim(0));
    const Tensor rows = ctx.allocate(DType::f32, {batch_, audio_ + 1}),
                 packed = ctx.allocate(DType::f32, {batch_, audio_}),
                 most = ctx.allocate(DType::f32, {batch_});
    transpose_copy(ctx, {smooth, packed});
    ReduceArgs top;
    top.op = ReduceArgs::Op::max;
    top.x = packed, top.y = most, top.all = false;
    reduce(ctx, top);
    transpose_copy(ctx, {packed, rows.slice(1, 0, audio_)});
    transpose_copy(ctx, {most.reshape({batch_, 1}), rows.slice(1, audio_, audio_ + 1)});
    divide_by_last(ctx, {rows, packed});
    const Tensor later = ctx.allocate(DType::f32, {batch_, n_});
    gather_rows(ctx, {packed.reshape({batch_, audio_, 1}), before_, y.reshape({batch_, n_, 1})});
    gather_rows(ctx, {packed.reshape({batch_, audio_, 1}), after_, later.reshape({batch_, n_, 1})});
    call(ctx, PointwiseArgs::Op::mul, y, before_weight_, y);
    call(ctx, PointwiseArgs::Op::mul, later, after_weight_, later);
    call(ctx, PointwiseArgs::Op::add, y, later, y);
  }

  /// Step B: notch and band-pass, in f64.
  void clean(Context& ctx, const Tensor& x, const Tensor& y) {
    Tensor wide = ctx.allocate(DType::f64, x.shape());
    cast(ctx, {x, wide});
    const auto apply = [&](const std::vector<Biquad>& sections, int64_t pad) {
      const Tensor odd = ctx.allocate(DType::f64, {batch_, ch_, n_ + 2 * pad});
      extend(ctx, {ExtendArgs::Mode::odd, wide, odd, pad, pad});
      iir(ctx, {odd, odd, sections, true, false});
      iir(ctx, {odd, odd, sections, true, true});
      transpose_copy(ctx, {odd.slice(2, pad, pad + n_), wide});
    };
    apply({filter::notch(50, 30, fs_)}, 9);
    apply(filter::butterworth_band(5, 1, 95, fs_), 33);
    cast(ctx, {wide, y});
  }

  Params params_;
  int64_t batch_, ch_, n_, nfft_, width_, hop_, pad_ = 0, frames_ = 0, bins_ = 0, pairs_ = 0, room_ = 0,
                                                audio_ = 0;
  double fs_, window_sum_ = 1;
  bool full_;
  Context* ran_ = nullptr;  ///< where the last run's outputs are
  TensorMap outputs_;
  Tensor spectrum_x_;  ///< of the last run
  Tensor frequencies_, times_, delay_scale_, window_, first_, second_;
  Tensor band_, low_, before_, after_, before_weight_, after_weight_;
};

class EfrSpectral final : public Method {
 public:
  const MethodInfo& info() const override { return efr_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal)
      throw Unsupported("efr_spectral has no causal mode: it averages over the whole record");
    if (p.integer("noverlap") >= p.integer("nperseg"))
      throw UsageError("efr_spectral.noverlap: " + std::to_string(p.integer("noverlap")) +
                       " is not below nperseg " + std::to_string(p.integer("nperseg")));
    if (p.integer("nfft") < p.integer("nperseg"))
      throw UsageError("efr_spectral.nfft: " + std::to_string(p.integer("nfft")) + " is below nperseg " +
                       std::to_string(p.integer("nperseg")));
    const double fs = !p.is_null("fs")          ? p.number("fs")
                      : problem.sample_rate > 0 ? problem.sample_rate
                                                : 200.0;
    if (!(fs > 0)) throw UsageError("efr_spectral.fs: a rate above 0 is wanted");
    if (!p.is_null("fs") && problem.sample_rate > 0 && problem.sample_rate != fs)
      throw UsageError("efr_spectral.fs: " + p.value("fs").str() + " is not problem.sample_rate " +
                       Value(problem.sample_rate).str());
    for (const char* key : {"peak_height_tf", "peak_height_csd"})
      if (!(p.number(key) > 0))
        throw UsageError(std::string("efr_spectral.") + key + ": a fraction above 0 is wanted");
    if (p.choice("preprocess") == "full") {
      if (fs <= 190)
        throw Unsupported(
            "efr_spectral.fs: the band-pass of preprocess full ends at 95 Hz, so more than 190 Hz are "
            "needed, not " +
            Value(fs).str());
      if (p.integer("audio_rate") <= 2000)
        throw Unsupported(
            "efr_spectral.audio_rate: the band-pass ends at 1000 Hz, so more than 2000 Hz are needed, not " +
            std::to_string(p.integer("audio_rate")));
      const auto rate = static_cast<double>(p.integer("audio_rate"));
      const double audio = static_cast<double>(p.integer("samples")) / fs * rate;
      if (audio <= static_cast<double>(3 * filter::odd_taps(3.3 * rate / 20)) + 1)
        throw Unsupported("efr_spectral.samples: " + std::to_string(p.integer("samples")) +
                          " points are shorter than the low-pass filter's extension of half a second");
      if (p.integer("samples") <= 33)
        throw Unsupported(
            "efr_spectral.samples: preprocess full extends records by 33 points, so more are needed than " +
            std::to_string(p.integer("samples")));
    }
    return std::make_unique<EfrInstance>(ctx, problem, p);
  }
};
ATTNBENCH_METHOD(EfrSpectral);

}  // namespace
}  // namespace attnbench
