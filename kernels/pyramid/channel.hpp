// Repairing one row of pixels and fitting one channel: the same code on the CPU and, one thread a row, on a
// device. Not a contract.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define ATTNBENCH_CHANNEL_BOTH __host__ __device__
#else
#define ATTNBENCH_CHANNEL_BOTH
#endif

namespace attnbench {

/// The grid of the card: centres from 3 bands below the first to 3 above the last; widths from 0.05 in steps
/// of 5%.
inline constexpr int64_t kChannelMeans = 181, kChannelWidths = 160, kMostBands = 32;

/// Sum of squares of t - A g for the best A in [0, most]; `amplitude` receives it.
ATTNBENCH_CHANNEL_BOTH inline double channel_misfit(const double* t, int64_t n, double mu, double s,
                                                    double most, double* amplitude) {
  double tg = 0, gg = 0, tt = 0;
  for (int64_t f = 0; f < n; ++f) {
    const double u = (static_cast<double>(f) - mu) / s, g = exp(-0.5 * u * u);
    tg += t[f] * g, gg += g * g, tt += t[f] * t[f];
  }
  double a = gg > 0 ? tg / gg : most;
  a = a < 0 ? 0 : a > most ? most : a;
  *amplitude = a;
  return tt - 2 * a * tg + a * a * gg;
}

/// fit: A, mu, s, bandwidth, centre, peak noise sensitivity, degenerate; see pyramid.hpp for the vectors
/// without a Gaussian.
ATTNBENCH_CHANNEL_BOTH inline void fit_channel(const double* t, int64_t n, double most, double lowest_center,
                                               double* fit) {
  const double nan = NAN, root = sqrt(log(4.0));
  int64_t set = 0, where = 0;
  bool equal = true;
  for (int64_t f = 0; f < n; ++f) {
    if (t[f] != 0) ++set, where = f;
    equal = equal && t[f] == t[0];
  }
  double a = 0, mu = nan, s = nan;
  if (set == 0) {
  } else if (equal && n > 1) {
    a = t[0], mu = 0.5 * static_cast<double>(n - 1), s = HUGE_VAL;
  } else if (set == 1) {
    a = t[where], mu = static_cast<double>(where), s = 0;
  } else {
    double best = HUGE_VAL;
    const double low = -3, step = (static_cast<double>(n) + 5) / static_cast<double>(kChannelMeans - 1);
    for (int64_t i = 0; i < kChannelMeans; ++i) {
      double width = 0.05;
      for (int64_t j = 0; j < kChannelWidths; ++j, width *= 1.05) {
        double amplitude;
        const double m = low + static_cast<double>(i) * step,
                     e = channel_misfit(t, n, m, width, most, &amplitude);
        if (e < best) best = e, a = amplitude, mu = m, s = width;
      }
    }
    // Levenberg's steps in (A, mu, ln s). At the bound A stays there, as the best A for any (mu, s) is
    // recomputed.
    double damping = 1e-3;
    for (int iteration = 0; iteration < 500 && damping < 1e12; ++iteration) {
      double m[3][4] = {};  // normal equations and right-hand side
      for (int64_t f = 0; f < n; ++f) {
        const double u = (static_cast<double>(f) - mu) / s, g = exp(-0.5 * u * u);
        const double j[3] = {g, a * g * u / s, a * g * u * u}, r = t[f] - a * g;
        for (int p = 0; p < 3; ++p) {
          for (int q = 0; q < 3; ++q) m[p][q] += j[p] * j[q];
          m[p][3] += j[p] * r;
        }
      }
      const bool bound = a >= most && m[0][3] > 0;
      if (bound) {
        for (int q = 0; q < 4; ++q) m[0][q] = 0;
        m[1][0] = m[2][0] = 0, m[0][0] = 1;
      }
      for (int p = 0; p < 3; ++p) m[p][p] *= 1 + damping;
      for (int p = 0; p < 3; ++p) {  // positive definite up to rounding, so no pivoting
        const double pivot = m[p][p] != 0 ? m[p][p] : 1e-300;
        for (int r = p + 1; r < 3; ++r) {
          const double w = m[r][p] / pivot;
          for (int q = p; q < 4; ++q) m[r][q] -= w * m[p][q];
        }
      }
      double d[3];
      for (int p = 2; p >= 0; --p) {
        d[p] = m[p][3];
        for (int q = p + 1; q < 3; ++q) d[p] -= m[p][q] * d[q];
        d[p] /= m[p][p] != 0 ? m[p][p] : 1e-300;
      }
      const double next_mu = mu + d[1], grow = d[2] < -1 ? -1 : d[2] > 1 ? 1 : d[2], next_s = s * exp(grow);
      double amplitude;
      const double e = channel_misfit(t, n, next_mu, next_s, most, &amplitude);
      if (e <= best && next_s < 1e6) {
        const bool still = fabs(next_mu - mu) <= 1e-13 * (1 + fabs(mu)) && fabs(grow) <= 1e-13;
        best = e, a = amplitude, mu = next_mu, s = next_s;
        damping = damping > 1e-12 ? damping * 0.2 : damping;
        if (still) break;
      } else {
        damping *= 5;
      }
    }
  }
  fit[0] = a, fit[1] = mu, fit[2] = s;
  fit[3] = 2 * root * s;
  fit[4] = lowest_center * exp2(mu);
  fit[5] = exp2(a - most);
  fit[6] = s > 0 && s <= 7 ? 0 : 1;
}

/// Thresholds and fit of one row of accuracy [levels][bands]; the fit's numbers are fit_step apart.
ATTNBENCH_CHANNEL_BOTH inline void channel_of_row(const float* accuracy, int64_t levels, int64_t bands,
                                                  double pass, double lowest_center, int32_t* threshold,
                                                  double* fit, int64_t fit_step) {
  double t[kMostBands];
  for (int64_t f = 0; f < bands; ++f) {
    int64_t skipped = 0;
    while (skipped < levels - 1 &&
           !(static_cast<double>(accuracy[(levels - 1 - skipped) * bands + f]) > pass))
      ++skipped;
    threshold[f] = static_cast<int32_t>(skipped);
    t[f] = static_cast<double>(skipped);
  }
  double numbers[7];
  fit_channel(t, bands, static_cast<double>(levels - 1), lowest_center, numbers);
  for (int i = 0; i < 7; ++i) fit[i * fit_step] = numbers[i];
}

/// Where a row's pixel needs the redraw stream.
ATTNBENCH_CHANNEL_BOTH inline bool needs_redraw(float v, float s, float gap) {
  const float y = v + s;
  return y < 0.0f ? gap - s > 1.0f : y > 1.0f && (1.0f - gap) - s < 0.0f;
}
ATTNBENCH_CHANNEL_BOTH inline float moved_pixel(float v, float s, float gap) {
  const float y = v + s;
  return y < 0.0f ? (gap - s) + s : y > 1.0f ? ((1.0f - gap) - s) + s : y;
}
/// The next pixel value from the stream; `used` advances.
ATTNBENCH_CHANNEL_BOTH inline float redrawn_pixel(float v, const float* redraw, int64_t count, float sigma,
                                                  int64_t* used) {
  while (*used < count) {
    const float y = v + sigma * redraw[(*used)++];
    if (y >= 0.0f && y <= 1.0f) return y;
  }
  return v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v;
}

}  // namespace attnbench
