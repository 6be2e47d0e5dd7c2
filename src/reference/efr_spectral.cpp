// Reference of `efr_spectral`: transforms by their sums, filters by their difference equations, peaks by
// their rules, in double precision.
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <numbers>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Complex = std::complex<double>;
using Series = std::vector<double>;
constexpr double kPi = std::numbers::pi;

// ---- preprocessing
// --------------------------------------------------------------------------------------------

int64_t taps_of(double x) {
  const double n = std::nearbyint(x);
  return static_cast<int64_t>(n) + (std::fmod(n, 2.0) == 0.0 ? 1 : 0);
}

double bessel0(double x) {
  double term = 1, sum = 1;
  for (int k = 1; k < 200; ++k) {
    term *= (x / 2 / k) * (x / 2 / k);
    sum += term;
  }
  return sum;
}

/// firwin: ideal band between two edges in Hz, windowed, scaled to 1 at the middle of the band (0 Hz for a
/// low-pass).
Series firwin(int64_t n, double low, double high, double rate, bool kaiser, double width) {
  const double center = static_cast<double>(n - 1) / 2;
  const double a = 2.285 * static_cast<double>(n - 1) * kPi * (width / (rate / 2)) + 7.95;
  double beta = 0;
  if (a > 50)
    beta = 0.1102 * (a - 8.7);
  else if (a > 21)
    beta = 0.5842 * std::pow(a - 21, 0.4) + 0.07886 * (a - 21);
  Series h(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const double t = (static_cast<double>(i) - center) / rate;  // seconds
    const double ideal =
        t == 0 ? 2 * (high - low) / rate
               : (std::sin(2 * kPi * high * t) - std::sin(2 * kPi * low * t)) / (kPi * t) / rate;
    const double r = (static_cast<double>(i) - center) / center;
    const double window =
        kaiser ? bessel0(beta * std::sqrt(std::max(0.0, 1 - r * r))) / bessel0(beta)
               : 0.54 - 0.46 * std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(n - 1));
    h[static_cast<size_t>(i)] = ideal * window;
  }
  const double f = low == 0 ? 0 : (low + high) / 2;
  double gain = 0;
  for (int64_t i = 0; i < n; ++i)
    gain += h[static_cast<size_t>(i)] * std::cos(2 * kPi * f / rate * (static_cast<double>(i) - center));
  for (double& v : h) v /= gain;
  return h;
}

/// The difference equation from the steady state of the first value: before it, x was x_0 and y the gain
/// times x_0.
Series lfilter(const std::vector<long double>& b, const std::vector<long double>& a, const Series& x) {
  long double top = 0, bottom = 0;
  for (long double v : b) top += v;
  for (long double v : a) bottom += v;
  const long double settled = top / bottom * static_cast<long double>(x[0]);
  std::vector<long double> y(x.size());
#pragma omp parallel for if (a.size() == 1)
  for (size_t t = 0; t < x.size(); ++t) {
    long double sum = 0;
    for (size_t k = 0; k < b.size(); ++k) sum += b[k] * static_cast<long double>(t >= k ? x[t - k] : x[0]);
    if (a.size() > 1)
      for (size_t k = 1; k < a.size(); ++k) sum -= a[k] * (t >= k ? y[t - k] : settled);
    y[t] = sum / a[0];
  }
  return Series(y.begin(), y.end());
}

Series filtfilt(const std::vector<long double>& b, const std::vector<long double>& a, const Series& x,
                int64_t pad) {
  const auto n = static_cast<int64_t>(x.size());
  Series wide;
  for (int64_t i = pad; i > 0; --i) wide.push_back(2 * x[0] - x[static_cast<size_t>(i)]);
  wide.insert(wide.end(), x.begin(), x.end());
  for (int64_t i = 1; i <= pad; ++i) wide.push_back(2 * x.back() - x[static_cast<size_t>(n - 1 - i)]);
  Series y = lfilter(b, a, wide);
  std::reverse(y.begin(), y.end());
  y = lfilter(b, a, y);
  std::reverse(y.begin(), y.end());
  return Series(y.begin() + pad, y.begin() + pad + n);
}

std::vector<long double> wide(const Series& x) { return {x.begin(), x.end()}; }

/// Coefficients, highest power first, of prod (z - root).
std::vector<long double> polynomial(const std::vector<std::complex<long double>>& roots) {
  std::vector<std::complex<long double>> c = {1};
  for (const auto& r : roots) {
    c.emplace_back(0);
    for (size_t i = c.size() - 1; i > 0; --i) c[i] -= r * c[i - 1];
  }
  std::vector<long double> real;
  for (const auto& v : c) real.push_back(v.real());
  return real;
}

/// Butterworth band-pass of order 5 per edge as one transfer function.
void butterworth(double low, double high, double rate, std::vector<long double>& b,
                 std::vector<long double>& a) {
  using Wide = std::complex<long double>;
  const long double pi = std::numbers::pi_v<long double>;
  // Analogue frequencies of the bilinear transform s = (z - 1) / (z + 1).
  const long double w1 = std::tan(pi * static_cast<long double>(low / rate)),
                    w2 = std::tan(pi * static_cast<long double>(high / rate));
  std::vector<Wide> poles, zeros;
  for (int k = 0; k < 5; ++k) {
    const Wide p = std::exp(Wide(0, pi * (0.5L + (2.0L * k + 1) / 10)));
    const Wide middle = p * (w2 - w1) / 2.0L, root = std::sqrt(middle * middle - w1 * w2);
    for (const Wide& s : {middle + root, middle - root}) poles.push_back((1.0L + s) / (1.0L - s));
    zeros.emplace_back(1);
    zeros.emplace_back(-1);
  }
  a = polynomial(poles);
  b = polynomial(zeros);
  // Unit gain where the analogue frequency is sqrt(w1 w2).
  const Wide z = (1.0L + Wide(0, std::sqrt(w1 * w2))) / (1.0L - Wide(0, std::sqrt(w1 * w2)));
  Wide top = 0, bottom = 0;
  for (size_t i = 0; i < a.size(); ++i) top = top * z + b[i], bottom = bottom * z + a[i];
  const long double gain = std::abs(bottom / top);
  for (long double& v : b) v *= gain;
}

/// |analytic signal| by the definition of the transform.
Series magnitude_of_analytic(const Series& x) {
  const auto n = static_cast<int64_t>(x.size());
  std::vector<Complex> turn(x.size()), spectrum(x.size());
  for (int64_t i = 0; i < n; ++i)
    turn[static_cast<size_t>(i)] = std::polar(1.0, 2 * kPi * static_cast<double>(i) / static_cast<double>(n));
#pragma omp parallel for
  for (int64_t k = 0; k <= n / 2; ++k) {
    Complex sum = 0;
    for (int64_t j = 0; j < n; ++j)
      sum += x[static_cast<size_t>(j)] * std::conj(turn[static_cast<size_t>(j * k % n)]);
    const bool single = k == 0 || 2 * k == n;
    spectrum[static_cast<size_t>(k)] = (single ? 1.0 : 2.0) * sum;
  }
  Series y(x.size());
#pragma omp parallel for
  for (int64_t j = 0; j < n; ++j) {
    Complex sum = 0;
    for (int64_t k = 0; k <= n / 2; ++k)
      sum += spectrum[static_cast<size_t>(k)] * turn[static_cast<size_t>(j * k % n)];
    y[static_cast<size_t>(j)] = std::abs(sum) / static_cast<double>(n);
  }
  return y;
}

Series envelope(const Series& audio, double audio_rate, double rate, int64_t n, bool kaiser) {
  const Series band = firwin(taps_of(3.3 * audio_rate / 10), 1, 1000, audio_rate, kaiser, 10),
               low = firwin(taps_of(3.3 * audio_rate / 20), 0, 100, audio_rate, kaiser, 20);
  Series y = magnitude_of_analytic(filtfilt(wide(band), {1}, audio, 0));
  y = filtfilt(wide(low), {1}, y, 3 * static_cast<int64_t>(low.size()));
  const double most = *std::max_element(y.begin(), y.end());
  Series x;
  for (int64_t i = 0; i < n; ++i) {
    const double at =
        std::min(static_cast<double>(i) / rate * audio_rate, static_cast<double>(audio.size() - 1));
    const auto j = static_cast<size_t>(at);
    const double w = at - std::floor(at), next = j + 1 < y.size() ? y[j + 1] : y[j];
    x.push_back((y[j] * (1 - w) + next * w) / (most > 0 ? most : 1.0));
  }
  return x;
}

Series cleaned(const Series& y, double rate) {
  const double w = 2 * kPi * 50 / rate, gain = 1 / (1 + std::tan(w / 30 / 2));
  const Series notched = filtfilt(wide({gain, -2 * gain * std::cos(w), gain}),
                                  wide({1, -2 * gain * std::cos(w), 2 * gain - 1}), y, 9);
  std::vector<long double> b, a;
  butterworth(1, 95, rate, b, a);
  return filtfilt(b, a, notched, 33);
}

// ---- peaks
// ------------------------------------------------------------------------------------------------------

struct Peaks {
  std::vector<int64_t> index;
  Series width;
};

Peaks find(const Series& v, double height, int64_t distance) {
  const auto n = static_cast<int64_t>(v.size());
  std::vector<int64_t> candidates;
  for (int64_t i = 1; i < n - 1; ++i) {
    if (!(v[static_cast<size_t>(i - 1)] < v[static_cast<size_t>(i)])) continue;
    int64_t j = i;
    while (j < n - 1 && v[static_cast<size_t>(j + 1)] == v[static_cast<size_t>(i)]) ++j;
    if (j < n - 1 && v[static_cast<size_t>(j + 1)] < v[static_cast<size_t>(i)] &&
        v[static_cast<size_t>(i)] >= height)
      candidates.push_back((i + j) / 2);
  }
  std::vector<size_t> order(candidates.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return v[static_cast<size_t>(candidates[a])] < v[static_cast<size_t>(candidates[b])];
  });
  std::vector<char> keep(candidates.size(), 1);
  for (size_t o = order.size(); o-- > 0;) {
    if (!keep[order[o]]) continue;
    for (size_t j = 0; j < candidates.size(); ++j)
      if (j != order[o] && std::abs(candidates[j] - candidates[order[o]]) < distance) keep[j] = 0;
  }
  Peaks p;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!keep[i]) continue;
    const int64_t at = candidates[i];
    const double top = v[static_cast<size_t>(at)];
    const auto value = [&](int64_t j) { return v[static_cast<size_t>(j)]; };
    double left = top, right = top;
    for (int64_t j = at; j >= 0 && value(j) <= top; --j) left = std::min(left, value(j));
    for (int64_t j = at; j < n && value(j) <= top; ++j) right = std::min(right, value(j));
    const double level = top - 0.9 * (top - std::max(left, right));
    int64_t l = at, r = at;
    while (l > 0 && value(l) > level) --l;
    while (r < n - 1 && value(r) > level) ++r;
    double from = static_cast<double>(l), to = static_cast<double>(r);
    if (value(l) < level) from += (level - value(l)) / (value(l + 1) - value(l));
    if (value(r) < level) to -= (level - value(r)) / (value(r - 1) - value(r));
    p.index.push_back(at);
    p.width.push_back(to - from);
  }
  return p;
}

/// Lists of all rows of `curve` [B, C, F], padded to the longest.
void list_peaks(const RefTensor& curve, bool log, double fraction, bool by_deviation, int64_t distance,
                RefTensor& index, RefTensor* width) {
  const int64_t rows = curve.dim(0) * curve.dim(1), n = curve.dim(2);
  std::vector<Peaks> found;
  size_t most = 1;
  for (int64_t r = 0; r < rows; ++r) {
    Series v;
    for (int64_t i = 0; i < n; ++i) v.push_back(log ? std::log10(curve[r * n + i]) : curve[r * n + i]);
    double height = fraction * *std::max_element(v.begin(), v.end());
    if (by_deviation) {
      double mean = 0, square = 0;
      for (double x : v) mean += x / static_cast<double>(n);
      for (double x : v) square += (x - mean) * (x - mean) / static_cast<double>(n);
      height *= mean / std::sqrt(square);
    }
    found.push_back(find(v, height, distance));
    most = std::max(most, found.back().index.size());
  }
  index = RefTensor({curve.dim(0), curve.dim(1), static_cast<int64_t>(most)});
  std::fill(index.data.begin(), index.data.end(), -1.0);
  if (width) *width = index;
  for (size_t r = 0; r < found.size(); ++r)
    for (size_t i = 0; i < found[r].index.size(); ++i) {
      index.data[r * most + i] = static_cast<double>(found[r].index[i]);
      if (width) width->data[r * most + i] = found[r].width[i];
    }
}

RefMap efr_reference(const Problem& problem, const Params& p, const RefMap& inputs, const RefMap&) {
  const int64_t n = p.integer("nperseg"), hop = n - p.integer("noverlap"), nfft = p.integer("nfft"),
                samples = p.integer("samples"), ch = p.integer("channels");
  const double fs = !p.is_null("fs") ? p.number("fs") : problem.sample_rate > 0 ? problem.sample_rate : 200.0;
  RefMap out;
  RefTensor x = inputs.at("x"), y = inputs.at("y");
  const int64_t batch = y.dim(0);
  if (p.choice("preprocess") == "full") {
    RefTensor x_pre({batch, samples}), y_pre({batch, ch, samples});
    const int64_t audio = x.dim(1);
    for (int64_t b = 0; b < batch; ++b) {
      const Series e = envelope(Series(x.data.begin() + b * audio, x.data.begin() + (b + 1) * audio),
                                static_cast<double>(p.integer("audio_rate")), fs, samples,
                                p.choice("fir_window") == "kaiser");
      std::copy(e.begin(), e.end(), x_pre.data.begin() + b * samples);
    }
    for (int64_t r = 0; r < batch * ch; ++r) {
      const Series c = cleaned(Series(y.data.begin() + r * samples, y.data.begin() + (r + 1) * samples), fs);
      std::copy(c.begin(), c.end(), y_pre.data.begin() + r * samples);
    }
    x = out["x_pre"] = x_pre;
    y = out["y_pre"] = y_pre;
  }
  // Signals with their borders, zeros behind until the frames fit.
  const int64_t edge = p.choice("boundary") == "zeros" ? n / 2 : 0;
  int64_t total = samples + 2 * edge;
  while ((total - n) % hop != 0) ++total;
  const int64_t frames = (total - n) / hop + 1, bins = nfft / 2 + 1;
  Series window;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double c = std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(n));
    const std::string kind = p.choice("window");
    window.push_back(kind == "hann" ? 0.5 * (1 - c) : kind == "hamming" ? 0.54 - 0.46 * c : 1.0);
    sum += window.back();
  }
  std::vector<Complex> turns;
  for (int64_t i = 0; i < nfft; ++i)
    turns.push_back(std::polar(1.0, -2 * kPi * static_cast<double>(i) / static_cast<double>(nfft)));
  const auto spectra = [&](const double* signal) {
    std::vector<Complex> z(static_cast<size_t>(frames * bins));
    for (int64_t t = 0; t < frames; ++t)
      for (int64_t k = 0; k < bins; ++k) {
        Complex total_of = 0;
        for (int64_t i = 0; i < n; ++i) {
          const int64_t at = t * hop + i - edge;
          if (at < 0 || at >= samples) continue;
          total_of += signal[at] * window[static_cast<size_t>(i)] * turns[static_cast<size_t>(i * k % nfft)];
        }
        if (k == 0 || 2 * k == nfft) total_of = total_of.real();
        z[static_cast<size_t>(t * bins + k)] = total_of / sum;
      }
    return z;
  };
  const auto angle = [](Complex z) { return z.imag() == 0 ? (z.real() < 0 ? kPi : 0.0) : std::arg(z); };
  const int64_t pairs = ch * (ch - 1) / 2;
  RefTensor f({bins}), time({frames}), H({batch, ch, bins, frames, 2}), R({batch, ch, bins}),
      phi = R, delay = R, csd({batch, pairs, bins}), coef = csd, delay_pair = csd;
  for (int64_t k = 0; k < bins; ++k) f[k] = static_cast<double>(k) * fs / static_cast<double>(nfft);
  for (int64_t t = 0; t < frames; ++t) time[t] = static_cast<double>(t * hop) / fs;
  const double eps = p.number("eps");
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<Complex> ex = spectra(&x.data[static_cast<size_t>(b * samples)]);
    std::vector<std::vector<Complex>> ys, hs;
    for (int64_t c = 0; c < ch; ++c) {
      ys.push_back(spectra(&y.data[static_cast<size_t>((b * ch + c) * samples)]));
      hs.emplace_back(ex.size());
      for (size_t i = 0; i < ex.size(); ++i) {
        const double power = std::norm(ex[i]) + eps * eps;
        hs.back()[i] = power == 0 ? Complex(0) : ys.back()[i] * std::conj(ex[i]) / power;
      }
      for (int64_t k = 0; k < bins; ++k) {
        double size = 0, turn = 0;
        for (int64_t t = 0; t < frames; ++t) {
          const auto i = static_cast<size_t>(t * bins + k);
          Complex h = hs.back()[i];
          if (k == 0 || 2 * k == nfft) h = h.real();
          const int64_t at = (((b * ch + c) * bins + k) * frames + t) * 2;
          H[at] = h.real(), H[at + 1] = h.imag();
          size += std::abs(h);
          turn += p.choice("phase_mode") == "ratio" ? angle(h) : angle(ys.back()[i]) - angle(ex[i]);
        }
        R[(b * ch + c) * bins + k] = size / static_cast<double>(frames);
        phi[(b * ch + c) * bins + k] = turn / static_cast<double>(frames);
      }
    }
    const auto& g = p.choice("csd_source") == "response" ? ys : hs;
    int64_t pair = 0;
    for (size_t c = 0; c < g.size(); ++c)
      for (size_t d = c + 1; d < g.size(); ++d, ++pair)
        for (int64_t k = 0; k < bins; ++k) {
          Complex cross = 0;
          double pc = 0, pd = 0;
          for (int64_t t = 0; t < frames; ++t) {
            const auto i = static_cast<size_t>(t * bins + k);
            cross += g[c][i] * std::conj(g[d][i]);
            pc += std::norm(g[c][i]), pd += std::norm(g[d][i]);
          }
          const int64_t at = (b * pairs + pair) * bins + k;
          csd[at] = std::abs(cross);
          coef[at] = pc * pd == 0 ? 0 : std::abs(cross) / std::sqrt(pc * pd);
          delay_pair[at] = phi[(b * ch + static_cast<int64_t>(c)) * bins + k] -
                           phi[(b * ch + static_cast<int64_t>(d)) * bins + k];
        }
  }
  for (int64_t i = 0; i < delay.numel(); ++i)
    delay[i] = i % bins == 0 ? std::nan("") : 1000 * phi[i] / (2 * kPi * f[i % bins]);
  for (int64_t i = 0; i < delay_pair.numel(); ++i)
    delay_pair[i] = i % bins == 0 ? std::nan("") : 1000 * delay_pair[i] / (2 * kPi * f[i % bins]);
  const int64_t distance = p.integer("peak_distance");
  list_peaks(R, true, p.number("peak_height_tf"), false, distance, out["peaks_R"], &out["widths_R"]);
  list_peaks(R, true, 0.5, true, distance, out["peaks_R_default"], nullptr);
  list_peaks(csd, true, p.number("peak_height_csd"), false, distance, out["peaks_CSD"], &out["widths_CSD"]);
  list_peaks(coef, false, p.number("peak_height_csd"), false, distance, out["peaks_Coef"],
             &out["widths_Coef"]);
  const int64_t cells = p.integer("hist_bins");
  RefTensor hist({ch, cells}), edges({ch, cells + 1});
  const RefTensor& list = out["peaks_R"];
  for (int64_t c = 0; c < ch; ++c) {
    Series pool;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < list.dim(2); ++i)
        if (const double k = list[(b * ch + c) * list.dim(2) + i]; k >= 0)
          pool.push_back(k * fs / static_cast<double>(nfft));
    double low = 0, high = 1;
    if (!pool.empty())
      low = *std::min_element(pool.begin(), pool.end()), high = *std::max_element(pool.begin(), pool.end());
    if (low == high) low -= 0.5, high += 0.5;
    const auto border = [&](int64_t i) {
      return i == cells ? high : low + static_cast<double>(i) * ((high - low) / static_cast<double>(cells));
    };
    for (int64_t i = 0; i <= cells; ++i) edges[c * (cells + 1) + i] = border(i);
    for (double v : pool) {
      int64_t cell = 0;
      while (cell + 1 < cells && v >= border(cell + 1)) ++cell;
      hist[c * cells + cell] += 1;
    }
  }
  out["f"] = f, out["t"] = time, out["H"] = H, out["R"] = R, out["Phi"] = phi, out["CSD"] = csd,
  out["Coef"] = coef;
  out["Delay"] = delay, out["Delay_pair"] = delay_pair, out["hist_R"] = hist, out["hist_R_edges"] = edges;
  return out;
}
ATTNBENCH_REFERENCE(efr_spectral, efr_reference);

}  // namespace
}  // namespace attnbench
