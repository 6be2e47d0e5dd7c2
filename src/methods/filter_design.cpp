#include "methods/filter_design.hpp"

#include <cmath>
#include <complex>
#include <numbers>

namespace attnbench::filter {

constexpr double kPi = std::numbers::pi;

std::vector<double> periodic_window(const std::string& name, int64_t n) {
  std::vector<double> w(static_cast<size_t>(n), 1.0);
  const double a = name == "hann" ? 0.5 : name == "hamming" ? 0.54 : 1.0;
  for (int64_t i = 0; i < n; ++i)
    w[static_cast<size_t>(i)] =
        a - (1.0 - a) * std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(n));
  return w;
}

int64_t odd_taps(double x) {
  const auto n = static_cast<int64_t>(std::nearbyint(x));
  return n % 2 == 0 ? n + 1 : n;
}

std::vector<double> windowed_sinc(int64_t taps, double low, double high, double rate, bool kaiser,
                                  double width) {
  const double nyquist = rate / 2, left = low / nyquist, right = high / nyquist;
  const double middle = 0.5 * static_cast<double>(taps - 1);
  // Kaiser's formula for the attenuation of a transition, and for beta from the attenuation.
  const double attenuation = 2.285 * static_cast<double>(taps - 1) * kPi * (width / nyquist) + 7.95;
  const double beta = attenuation > 50 ? 0.1102 * (attenuation - 8.7)
                      : attenuation > 21
                          ? 0.5842 * std::pow(attenuation - 21, 0.4) + 0.07886 * (attenuation - 21)
                          : 0.0;
  const auto sinc = [](double x) { return x == 0 ? 1.0 : std::sin(kPi * x) / (kPi * x); };
  std::vector<double> h;
  double gain = 0;
  const double center = low == 0 ? 0.0 : 0.5 * (left + right);
  for (int64_t i = 0; i < taps; ++i) {
    const double m = static_cast<double>(i) - middle;
    double w = 1.0;
    if (kaiser) {
      const double u = middle > 0 ? m / middle : 0.0;
      w = std::cyl_bessel_i(0.0, beta * std::sqrt(std::max(0.0, 1.0 - u * u))) / std::cyl_bessel_i(0.0, beta);
    } else if (taps > 1) {
      w = 0.54 - 0.46 * std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(taps - 1));
    }
    h.push_back((right * sinc(right * m) - left * sinc(left * m)) * w);
    gain += h.back() * std::cos(kPi * m * center);
  }
  for (double& v : h) v /= gain;
  return h;
}

Biquad notch(double frequency, double q, double rate) {
  const double w = 2 * kPi * frequency / rate, gain = 1.0 / (1.0 + std::tan(w / q / 2));
  return {gain, -2 * gain * std::cos(w), gain, -2 * gain * std::cos(w), 2 * gain - 1};
}

std::vector<Biquad> butterworth_band(int order, double low, double high, double rate) {
  using Complex = std::complex<double>;
  // Analogue prototype, its band-pass (s -> (s^2 + w0^2) / (s bw)) at pre-warped edges, bilinear transform
  // with T = 2: z = (2 + s/2 ...) written out below for fs = 2, so edges are 4 tan(pi f / rate).
  const double w1 = 4 * std::tan(kPi * low / rate), w2 = 4 * std::tan(kPi * high / rate), bw = w2 - w1,
               w0 = std::sqrt(w1 * w2);
  std::vector<Biquad> sections;
  Complex gain = std::pow(bw, order);
  std::vector<Complex> poles;
  for (int k = 0; k < order; ++k) {
    const double angle = kPi * (2.0 * k + 1 + order) / (2.0 * order);
    const Complex p = std::polar(1.0, angle) * (bw / 2), root = std::sqrt(p * p - w0 * w0);
    for (const Complex& s : {p + root, p - root}) {
      gain /= 4.0 - s;
      poles.push_back((4.0 + s) / (4.0 - s));
    }
  }
  // Zeros of the band-pass at s = 0 (z = 1), `order` of them, give the factor 4^order; those at infinity z =
  // -1.
  gain *= std::pow(4.0, order);
  std::vector<double> real;
  for (const Complex& p : poles) {
    if (std::abs(p.imag()) < 1e-12)
      real.push_back(p.real());
    else if (p.imag() > 0)
      sections.push_back({1, 0, -1, -2 * p.real(), std::norm(p)});
  }
  for (size_t i = 0; i + 1 < real.size(); i += 2)
    sections.push_back({1, 0, -1, -(real[i] + real[i + 1]), real[i] * real[i + 1]});
  sections[0].b0 *= gain.real(), sections[0].b2 *= gain.real();
  return sections;
}

}  // namespace attnbench::filter
