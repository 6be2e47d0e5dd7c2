// Reference of `critical_band_masking`: pyramids by their filters, repairs pixel by pixel, channels by
// searching ever smaller grids, in double precision.
#include <algorithm>
#include <cmath>
#include <fstream>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;

struct Image {
  int64_t h = 0, w = 0;
  Row data;
  double& at(int64_t y, int64_t x) { return data[static_cast<size_t>(y * w + x)]; }
  double at(int64_t y, int64_t x) const { return data[static_cast<size_t>(y * w + x)]; }
};

int64_t reflect(int64_t i, int64_t n) {
  if (n == 1) return 0;
  while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
  return i;
}

/// Both axes filtered, borders reflected.
Image filtered(const Image& x, const Row& taps) {
  const auto reach = static_cast<int64_t>(taps.size() / 2);
  Image rows = x, y = x;
  for (int64_t i = 0; i < x.h; ++i)
    for (int64_t j = 0; j < x.w; ++j) {
      double sum = 0;
      for (int64_t k = -reach; k <= reach; ++k)
        sum += taps[static_cast<size_t>(k + reach)] * x.at(i, reflect(j + k, x.w));
      rows.at(i, j) = sum;
    }
  for (int64_t i = 0; i < x.h; ++i)
    for (int64_t j = 0; j < x.w; ++j) {
      double sum = 0;
      for (int64_t k = -reach; k <= reach; ++k)
        sum += taps[static_cast<size_t>(k + reach)] * rows.at(reflect(i + k, x.h), j);
      y.at(i, j) = sum;
    }
  return y;
}

Image reduced(const Image& x, const Row& taps) {
  const Image f = filtered(x, taps);
  Image y{(x.h + 1) / 2, (x.w + 1) / 2, {}};
  for (int64_t i = 0; i < x.h; i += 2)
    for (int64_t j = 0; j < x.w; j += 2) y.data.push_back(f.at(i, j));
  return y;
}

Image expanded(const Image& x, int64_t h, int64_t w, const Row& taps) {
  Image y{h, w, Row(static_cast<size_t>(h * w))};
  for (int64_t i = 0; i < x.h; ++i)
    for (int64_t j = 0; j < x.w; ++j) y.at(2 * i, 2 * j) = x.at(i, j);
  return filtered(y, taps);
}

double rms(const Image& x) {
  double sum = 0;
  for (double v : x.data) sum += v * v;
  return std::sqrt(sum / static_cast<double>(x.data.size()));
}

struct Channel {
  double amplitude, center, width, misfit;
};

/// The best amplitude in [0, most] for a centre and a width.
Channel best_amplitude(const Row& t, double center, double width, double most) {
  double tg = 0, gg = 0;
  Row g;
  for (size_t f = 0; f < t.size(); ++f) {
    g.push_back(std::exp(-std::pow(static_cast<double>(f) - center, 2) / (2 * width * width)));
    tg += t[f] * g[f], gg += g[f] * g[f];
  }
  Channel c{gg > 0 ? std::clamp(tg / gg, 0.0, most) : most, center, width, 0};
  for (size_t f = 0; f < t.size(); ++f) c.misfit += std::pow(t[f] - c.amplitude * g[f], 2);
  return c;
}

/// Ever smaller grids around the best points of the last one; the first covers the bands and three more on
/// each side, widths from 0.05 to 120.
Channel fitted(const Row& t, double most) {
  constexpr int kPoints = 61;
  std::vector<Channel> best;
  const double span = static_cast<double>(t.size()) + 5;
  for (int i = 0; i < kPoints * 3; ++i)
    for (int j = 0; j < kPoints * 3; ++j)
      best.push_back(best_amplitude(t, -3 + span * i / (kPoints * 3 - 1),
                                    0.05 * std::pow(2400.0, j / (kPoints * 3.0 - 1)), most));
  const auto better = [](const Channel& a, const Channel& b) { return a.misfit < b.misfit; };
  std::partial_sort(best.begin(), best.begin() + 8, best.end(), better);
  Channel answer = best[0];
  for (int start = 0; start < 8; ++start) {
    Channel c = best[static_cast<size_t>(start)];
    double step = span / (kPoints * 3 - 1), grow = std::log(2400.0) / (kPoints * 3 - 1);
    for (int round = 0; round < 120; ++round) {
      const Channel middle = c;
      for (int i = -4; i <= 4; ++i)
        for (int j = -4; j <= 4; ++j) {
          const Channel d =
              best_amplitude(t, middle.center + step * i / 3, middle.width * std::exp(grow * j / 3), most);
          if (d.misfit < c.misfit) c = d;
        }
      // A valley along which the best point still moves is followed before the grid shrinks.
      const bool moved =
          std::abs(c.center - middle.center) > step || std::abs(std::log(c.width / middle.width)) > grow;
      if (!moved) step *= 0.7, grow *= 0.7;
    }
    if (c.misfit < answer.misfit) answer = c;
  }
  return answer;
}

RefMap masking_reference(const Problem& problem, const Params& p, const RefMap& inputs, const RefMap&) {
  const std::string stage = p.choice("stage");
  const int64_t bands = p.integer("num_bands");
  RefMap out;
  if (stage != "channel_fit") {
    const RefTensor& grey = inputs.at("I");
    const int64_t batch = grey.dim(0), side = grey.dim(1), pixels = side * side;
    Row taps;
    if (p.value("filter_taps").is_list())
      for (const Value& v : p.value("filter_taps").as_list()) taps.push_back(v.as_double());
    else
      for (double c : {1.0, 4.0, 6.0, 4.0, 1.0}) taps.push_back(c * std::sqrt(2.0) / 16);
    int64_t levels = 1;
    for (int64_t s = side; s >= 5; s /= 2) ++levels;
    RefTensor v({batch, side, side}), s = v, y = v;
    const double gap = p.number("edge_gap");
    for (int64_t b = 0; b < batch; ++b) {
      const double sigma =
          p.is_null("sigma") ? 0.16 : p.value("sigma").as_list()[static_cast<size_t>(b)].as_double();
      const int64_t band =
          p.is_null("band")
              ? b % bands
              : static_cast<int64_t>(p.value("band").as_list()[static_cast<size_t>(b)].as_double());
      double mean = 0;
      for (int64_t i = 0; i < pixels; ++i) mean += grey[b * pixels + i] / 255 / static_cast<double>(pixels);
      Image n{side, side, {}};
      for (int64_t i = 0; i < pixels; ++i) {
        v[b * pixels + i] =
            (grey[b * pixels + i] / 255 - mean) * p.number("contrast") + p.number("mean_luminance");
        n.data.push_back(inputs.at("noise")[b * pixels + i]);
      }
      std::vector<Image> g = {n};
      while (static_cast<int64_t>(g.size()) < levels) g.push_back(reduced(g.back(), taps));
      const auto band_of = [&](int64_t level) {
        Image r = g[static_cast<size_t>(level)];
        if (level + 1 < levels) {
          const Image up = expanded(g[static_cast<size_t>(level + 1)], r.h, r.w, taps);
          for (size_t i = 0; i < r.data.size(); ++i) r.data[i] -= up.data[i];
        }
        for (int64_t l = level - 1; l >= 0; --l)
          r = expanded(r, g[static_cast<size_t>(l)].h, g[static_cast<size_t>(l)].w, taps);
        return r;
      };
      const Image own = band_of(bands - 1 - band), top = band_of(0);
      const double scale = p.boolean("equalise_rms") ? rms(top) / rms(own) : 1.0;
      int64_t used = 0;
      const int64_t stream = inputs.at("redraw").dim(1);
      for (int64_t i = 0; i < pixels; ++i) {
        const int64_t at = b * pixels + i;
        s[at] = sigma * own.data[static_cast<size_t>(i)] * scale;
        y[at] = v[at] + s[at];
        if (sigma == 0 || (y[at] >= 0 && y[at] <= 1)) continue;
        const bool dark = y[at] < 0;
        const double moved = (dark ? gap : 1 - gap) - s[at];
        if (dark ? moved <= 1 : moved >= 0) {
          y[at] = moved + s[at];
          continue;
        }
        y[at] = std::clamp(v[at], 0.0, 1.0);
        while (used < stream) {
          const double drawn = v[at] + sigma * inputs.at("redraw")[b * stream + used++];
          if (drawn < 0 || drawn > 1) continue;
          y[at] = drawn;
          break;
        }
      }
    }
    out["v"] = v, out["y"] = y, out[stage == "all" ? "noise_s" : "s"] = s;
  }
  if (stage == "stimulus") return out;
  Row sds;
  for (const Value& v : p.value("noise_sds").as_list()) sds.push_back(v.as_double());
  const auto levels = static_cast<int64_t>(sds.size());
  RefTensor accuracy;
  if (stage == "all") {
    accuracy = RefTensor({levels, bands});
    if (!p.text("matrix_file").empty()) {
      std::ifstream f(p.text("matrix_file"));
      for (double& v : accuracy.data) {
        std::string word;
        f >> word;
        v = std::stod(word);
      }
    } else {
      for (int64_t l = 0; l < levels; ++l)
        for (int64_t f = 0; f < bands; ++f) {
          const double a = 4.0 * std::exp(-std::pow(static_cast<double>(f) - 4.5, 2) / (2 * 1.7 * 1.7));
          const double sigma = sds[static_cast<size_t>(l)];
          accuracy[l * bands + f] = sigma == 0 || std::log2(sds.back() / sigma) >= a - 0.5 ? 100 : 6.25;
        }
    }
    out["accuracy"] = accuracy;
  } else {
    accuracy = inputs.at("accuracy");
  }
  const int64_t rows = accuracy.numel() / (levels * bands);
  RefTensor t({rows, bands});
  std::map<std::string, RefTensor> numbers;
  for (const char* name : {"A", "mu", "s", "BW", "CF", "PNS", "degenerate"})
    numbers[name] = RefTensor({rows});
  for (int64_t r = 0; r < rows; ++r) {
    Row row;
    int64_t set = 0, last = 0;
    for (int64_t f = 0; f < bands; ++f) {
      int64_t skipped = 0;
      for (int64_t l = levels - 1;
           l > 0 && !(accuracy[(r * levels + l) * bands + f] > p.number("threshold_acc")); --l)
        ++skipped;
      t[r * bands + f] = static_cast<double>(skipped);
      row.push_back(static_cast<double>(skipped));
      if (skipped > 0) ++set, last = f;
    }
    const double most = static_cast<double>(levels - 1);
    Channel c{0, std::nan(""), std::nan(""), 0};
    if (set == bands && bands > 1 && std::equal(row.begin() + 1, row.end(), row.begin()))
      c = {row[0], static_cast<double>(bands - 1) / 2, INFINITY, 0};
    else if (set == 1)
      c = {row[static_cast<size_t>(last)], static_cast<double>(last), 0, 0};
    else if (set > 1)
      c = fitted(row, most);
    numbers["A"][r] = c.amplitude;
    numbers["mu"][r] = c.center;
    numbers["s"][r] = c.width;
    numbers["BW"][r] = 2 * std::sqrt(std::log(4.0)) * c.width;
    numbers["CF"][r] = p.number("lowest_center") * std::pow(2.0, c.center);
    numbers["PNS"][r] = std::pow(2.0, c.amplitude - most);
    numbers["degenerate"][r] = c.width > 0 && c.width <= 7 ? 0 : 1;
  }
  out["t"] = t;
  for (auto& [name, tensor] : numbers) out[name] = tensor;
  return out;
}
ATTNBENCH_REFERENCE(critical_band_masking, masking_reference);

}  // namespace
}  // namespace attnbench
