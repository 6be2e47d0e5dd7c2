// Spatial frequencies of a method's feature maps: the mean 2-D Fourier magnitude by radius, as Fig. 5 of
// HiLo.
//
// Maps are transformed in double precision by rows and columns with a table of roots; an analysis of a few
// thousand maps of token grids needs no faster transform.
#include <fmt/core.h>

#include <cmath>
#include <complex>
#include <numbers>

#include "analysis/analysis.hpp"

namespace attnbench {

namespace {

/// A tensor as maps of height x width: value(map, y, x), maps in order of (sample, channel).
struct Maps {
  std::vector<float> values;  ///< in the tensor's own order
  int64_t samples = 0, channels = 0, height = 0, width = 0;
  int64_t sample_step = 0, channel_step = 0, y_step = 0, x_step = 0;
  int64_t inner = 1, inner_step = 0;  ///< channels = outer * inner, inner ones inner_step apart
  double at(int64_t s, int64_t c, int64_t y, int64_t x) const {
    return static_cast<double>(values[static_cast<size_t>(s * sample_step + c / inner * channel_step +
                                                          c % inner * inner_step + y * y_step + x * x_step)]);
  }
};

std::vector<float> host_values(Context& ctx, const Tensor& t) {
  std::vector<char> raw(static_cast<size_t>(t.nbytes()));
  const Tensor host = Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), raw.data());
  copy(ctx, t, host);
  ctx.backend().synchronize();
  std::vector<float> values(static_cast<size_t>(t.numel()));
  convert(raw.data(), t.dtype(), values.data(), DType::f32, t.numel());
  return values;
}

/// Reads [B, N, C], [B, H, N, D] or [B, C, H, W] as maps; frames of a video are samples.
Maps maps_of(Context& ctx, const std::string& name, const Tensor& t, const Problem& p) {
  Maps m;
  const Shape s = t.shape();
  const std::vector<int64_t>& g = p.grid;
  const int64_t frames = g.size() == 3 ? g[0] : 1;
  const int64_t h = g.size() >= 2 ? g[g.size() - 2] : 0, w = g.size() >= 2 ? g.back() : 0, n = frames * h * w;
  if (n > 0 && s.rank() == 3 && s[1] == n) {
    m.samples = s[0] * frames, m.channels = s[2], m.height = h, m.width = w;
    m.sample_step = h * w * s[2], m.channel_step = 1, m.y_step = w * s[2], m.x_step = s[2];
  } else if (n > 0 && s.rank() == 4 && s[2] == n && frames == 1) {
    m.samples = s[0], m.channels = s[1] * s[3], m.height = h, m.width = w;
    m.sample_step = s[1] * n * s[3], m.channel_step = n * s[3], m.inner = s[3], m.inner_step = 1;
    m.y_step = w * s[3], m.x_step = s[3];
  } else if (s.rank() == 4 && ((p.size.size() == 2 && s[2] == p.size[0] && s[3] == p.size[1]) ||
                               (n > 0 && frames == 1 && s[2] == h && s[3] == w))) {
    m.samples = s[0], m.channels = s[1], m.height = s[2], m.width = s[3];
    m.sample_step = s[1] * s[2] * s[3], m.channel_step = s[2] * s[3], m.y_step = s[3], m.x_step = 1;
  } else {
    throw Unsupported("spectrum: '" + name + "' " + s.str() +
                      " is no stack of maps on the problem's grid ([B, N, C], [B, H, N, D] or [B, C, H, W])");
  }
  m.values = host_values(ctx, t);
  return m;
}

std::vector<std::complex<double>> roots(int64_t n) {
  std::vector<std::complex<double>> r;
  for (int64_t k = 0; k < n; ++k)
    r.push_back(std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(k) / static_cast<double>(n)));
  return r;
}

/// Signed frequency of index k of n: 0 .. n / 2, then the negative ones.
int64_t frequency(int64_t k, int64_t n) { return k <= n / 2 ? k : k - n; }

class Spectrum final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "spectrum";
      i.title = "Spatial frequencies of the feature maps";
      i.summary =
          "The mean magnitude of the 2-D Fourier transform of a method's maps by radius (whole numbers of "
          "cycles over the map), and the share of the energy inside a quarter of the shorter side, over all "
          "channels and by head: high-frequency heads keep less of it.";
      i.formula =
          "F_c(u, v) = sum_{y, x} f_c(y, x) exp(-2 pi i (u y / H + v x / W)),  u, v signed\n"
          "magnitude(k) = mean over maps and (u, v) with round(sqrt(u^2 + v^2)) = k of |F_c(u, v)|\n"
          "low_share = sum of |F|^2 over sqrt(u^2 + v^2) <= min(H, W) / 4, over sum of |F|^2";
      i.unit = "magnitude; share of energy";
      i.headline = {"low_share", "high_share", "dc_share", "mean_radius"};
      ParamSpec tensor;
      tensor.name = "tensor";
      tensor.type = ParamSpec::Type::choice;
      tensor.default_value = "output";
      tensor.choices = {"output", "input"};
      tensor.meaning = "whose maps: the method's output, or its first input for comparison";
      ParamSpec maps;
      maps.name = "maps";
      maps.type = ParamSpec::Type::integer;
      maps.default_value = 4096;
      maps.min = 1;
      maps.meaning = "at most so many maps, spread evenly over samples; every channel at least once";
      i.params = {tensor, maps};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    const TensorMap tensors = params.choice("tensor") == "output" ? instance.outputs() : instance.inputs();
    std::string name;
    for (const char* known : {"out", "o", "y", "x"})
      if (name.empty() && tensors.contains(known)) name = known;
    for (const auto& [key, t] : tensors)
      if (name.empty() && is_float(t.dtype())) name = key;
    if (name.empty()) throw Unsupported("spectrum: there is no tensor of maps");
    const Maps m = maps_of(ctx, name, tensors.at(name), problem);
    if (m.samples < 1 || m.channels < 1) throw Unsupported("spectrum: there are no maps");
    AnalysisResult r;
    r.analysis = info().id;

    const int64_t samples = std::clamp<int64_t>(params.integer("maps") / m.channels, 1, m.samples),
                  used = samples * m.channels;
    const int64_t h = m.height, w = m.width;
    const auto wh = roots(h), ww = roots(w);
    const double limit = static_cast<double>(std::min(h, w)) / 4;
    const auto bins = static_cast<size_t>(std::llround(std::hypot(h / 2, w / 2))) + 1;
    std::vector<double> by_bin(static_cast<size_t>(m.channels) * bins, 0),
        low(static_cast<size_t>(m.channels), 0), total(low), dc(low), radius(low);
    int64_t bad = 0;
#pragma omp parallel num_threads(ctx.threads()) reduction(+ : bad)
    {
      std::vector<std::complex<double>> rows(static_cast<size_t>(h * w));
#pragma omp for schedule(static)
      for (int64_t c = 0; c < m.channels; ++c)
        for (int64_t pick = 0; pick < samples; ++pick) {
          const int64_t s = pick * m.samples / samples;
          for (int64_t y = 0; y < h; ++y)
            for (int64_t v = 0; v < w; ++v) {
              std::complex<double> sum = 0;
              for (int64_t x = 0; x < w; ++x) sum += m.at(s, c, y, x) * ww[static_cast<size_t>(v * x % w)];
              rows[static_cast<size_t>(y * w + v)] = sum;
            }
          for (int64_t u = 0; u < h; ++u)
            for (int64_t v = 0; v < w; ++v) {
              std::complex<double> f = 0;
              for (int64_t y = 0; y < h; ++y)
                f += rows[static_cast<size_t>(y * w + v)] * wh[static_cast<size_t>(u * y % h)];
              const double at = std::hypot(frequency(u, h), frequency(v, w)), energy = std::norm(f);
              if (!std::isfinite(energy)) {
                ++bad;
                continue;
              }
              const auto k = static_cast<size_t>(c);
              by_bin[k * bins + static_cast<size_t>(std::llround(at))] += std::abs(f);
              total[k] += energy;
              radius[k] += energy * at;
              if (at <= limit) low[k] += energy;
              if (u == 0 && v == 0) dc[k] += energy;
            }
        }
    }
    if (bad > 0) throw Unsupported(fmt::format("spectrum: '{}' holds values that are not finite", name));

    std::vector<double> places(bins, 0);
    for (int64_t u = 0; u < h; ++u)
      for (int64_t v = 0; v < w; ++v)
        places[static_cast<size_t>(std::llround(std::hypot(frequency(u, h), frequency(v, w))))] += 1;
    double all = 0, all_low = 0, all_dc = 0, all_radius = 0;
    std::vector<double> magnitude(bins, 0);
    for (size_t c = 0; c < total.size(); ++c) {
      all += total[c], all_low += low[c], all_dc += dc[c], all_radius += radius[c];
      for (size_t k = 0; k < bins; ++k) magnitude[k] += by_bin[c * bins + k];
    }
    for (size_t k = 0; k < bins; ++k)
      if (places[k] > 0) magnitude[k] /= places[k] * static_cast<double>(used);
    r.scalars["dc_magnitude"] = magnitude[0];
    r.series["magnitude_by_radius"].assign(magnitude.begin() + 1, magnitude.end());
    const auto share = [](double part, double whole) { return whole > 0 ? part / whole : 0; };
    r.scalars["low_share"] = share(all_low, all);
    r.scalars["high_share"] = all > 0 ? 1 - share(all_low, all) : 0;
    r.scalars["dc_share"] = share(all_dc, all);
    r.scalars["mean_radius"] = share(all_radius, all);
    r.scalars["maps"] = static_cast<double>(used);
    // Channels of a layer are its heads side by side.
    const int64_t heads = problem.heads;
    if (heads > 0 && m.channels % heads == 0) {
      const int64_t width = m.channels / heads;
      for (int64_t head = 0; head < heads; ++head) {
        double part = 0, whole = 0;
        for (int64_t c = head * width; c < (head + 1) * width; ++c)
          part += low[static_cast<size_t>(c)], whole += total[static_cast<size_t>(c)];
        r.series["head_low_share"].push_back(share(part, whole));
      }
    }
    r.notes["tensor"] =
        fmt::format("{}, {} maps of {} x {}; element k of magnitude_by_radius is radius k", name, used, h, w);
    return r;
  }
};
ATTNBENCH_ANALYSIS(Spectrum);

}  // namespace

}  // namespace attnbench
