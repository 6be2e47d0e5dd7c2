// The search for peaks in one curve, the same code on the CPU and, one thread a row, on a device. Not a
// contract.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define ATTNBENCH_BOTH __host__ __device__
#else
#define ATTNBENCH_BOTH
#endif

namespace attnbench {

struct PeakRow {
  const float* x;
  int64_t n;
  int32_t* index;
  float* width;  ///< or null
  int64_t most;
  bool log10, by_deviation;
  double fraction;
  int64_t distance;
  int32_t* found;  ///< n / 2 + 1 entries of workspace
  uint8_t* kept;   ///< as many
};

ATTNBENCH_BOTH inline double peak_value(const PeakRow& w, int64_t i) {
  const double v = static_cast<double>(w.x[i]);
  return w.log10 ? ::log10(v) : v;
}

ATTNBENCH_BOTH inline void find_peaks_of_row(const PeakRow& w) {
  const int64_t n = w.n;
  double top = -HUGE_VAL, sum = 0, square = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = peak_value(w, i);
    top = v > top ? v : top;
    sum += v;
  }
  double height = w.fraction * top;
  if (w.by_deviation) {
    const double mean = sum / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) square += (peak_value(w, i) - mean) * (peak_value(w, i) - mean);
    height *= mean / sqrt(square / static_cast<double>(n));
  }
  int64_t count = 0;
  for (int64_t i = 1; i + 1 < n; ++i) {
    const double v = peak_value(w, i);
    if (!(peak_value(w, i - 1) < v)) continue;
    int64_t end = i;
    while (end + 1 < n && peak_value(w, end + 1) == v) ++end;
    if (end + 1 < n && peak_value(w, end + 1) < v && v >= height) {
      w.found[count] = static_cast<int32_t>((i + end) / 2);
      w.kept[count++] = 1;
    }
    i = end;
  }
  // From the highest down: 1 is undecided, 2 kept, 0 dropped. Rows have few peaks, so no sorting.
  for (;;) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i)
      if (w.kept[i] == 1 && (best < 0 || peak_value(w, w.found[i]) >= peak_value(w, w.found[best]))) best = i;
    if (best < 0) break;
    w.kept[best] = 2;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t gap =
          w.found[i] < w.found[best] ? w.found[best] - w.found[i] : w.found[i] - w.found[best];
      if (w.kept[i] == 1 && gap < w.distance) w.kept[i] = 0;
    }
  }
  int64_t out = 0;
  for (int64_t p = 0; p < count && out < w.most; ++p) {
    if (w.kept[p] != 2) continue;
    const int64_t at = w.found[p];
    w.index[out] = static_cast<int32_t>(at);
    if (w.width) {
      const double v = peak_value(w, at);
      double low_left = v, low_right = v;
      for (int64_t i = at; i >= 0 && peak_value(w, i) <= v; --i)
        low_left = peak_value(w, i) < low_left ? peak_value(w, i) : low_left;
      for (int64_t i = at; i < n && peak_value(w, i) <= v; ++i)
        low_right = peak_value(w, i) < low_right ? peak_value(w, i) : low_right;
      const double base = low_left > low_right ? low_left : low_right, level = v - 0.9 * (v - base);
      int64_t i = at;
      while (i > 0 && level < peak_value(w, i)) --i;
      double left = static_cast<double>(i);
      if (peak_value(w, i) < level)
        left += (level - peak_value(w, i)) / (peak_value(w, i + 1) - peak_value(w, i));
      i = at;
      while (i + 1 < n && level < peak_value(w, i)) ++i;
      double right = static_cast<double>(i);
      if (peak_value(w, i) < level)
        right -= (level - peak_value(w, i)) / (peak_value(w, i - 1) - peak_value(w, i));
      w.width[out] = static_cast<float>(right - left);
    }
    ++out;
  }
  for (; out < w.most; ++out) {
    w.index[out] = -1;
    if (w.width) w.width[out] = -1.0f;
  }
}

struct HistogramRow {
  const int32_t* index;
  int64_t batch, step, most;  ///< entries [b * step + k], k < most
  int32_t* counts;
  float* edges;
  int64_t bins;
  double scale;
};

ATTNBENCH_BOTH inline void histogram_of_row(const HistogramRow& w) {
  double low = HUGE_VAL, high = -HUGE_VAL;
  for (int64_t b = 0; b < w.batch; ++b)
    for (int64_t k = 0; k < w.most; ++k) {
      const int32_t i = w.index[b * w.step + k];
      if (i < 0) continue;
      const double v = static_cast<double>(i) * w.scale;
      low = v < low ? v : low, high = v > high ? v : high;
    }
  const bool none = low > high;
  if (none) low = 0.0, high = 1.0;
  if (low == high) low -= 0.5, high += 0.5;
  for (int64_t j = 0; j < w.bins; ++j) w.counts[j] = 0;
  const double step = (high - low) / static_cast<double>(w.bins);
  for (int64_t j = 0; j <= w.bins; ++j)
    w.edges[j] = static_cast<float>(j == w.bins ? high : low + static_cast<double>(j) * step);
  if (none) return;
  for (int64_t b = 0; b < w.batch; ++b)
    for (int64_t k = 0; k < w.most; ++k) {
      const int32_t i = w.index[b * w.step + k];
      if (i < 0) continue;
      const double v = static_cast<double>(i) * w.scale;
      int64_t j = static_cast<int64_t>((v - low) / (high - low) * static_cast<double>(w.bins));
      if (j == w.bins) --j;
      // The quotient may have rounded across an edge.
      if (v < low + static_cast<double>(j) * step && j > 0)
        --j;
      else if (j + 1 < w.bins && v >= low + static_cast<double>(j + 1) * step)
        ++j;
      ++w.counts[j];
    }
}

}  // namespace attnbench
