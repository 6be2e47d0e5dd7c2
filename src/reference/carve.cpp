// Reference of `carve`: maps, fusion, regions and complexities in double precision; the image steps in whole
// numbers, as 8-bit image libraries do them.
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <set>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Pixels = std::vector<std::vector<std::array<int64_t, 3>>>;  // [y][x][channel]

/// Attention of the last token to all keys: softmax, mean of heads, visual part. q (T, Ls, H, D), k (T, Ls,
/// M, Hkv, D).
RefTensor maps_of(const RefTensor& q, const RefTensor& k, int64_t v0, int64_t tokens) {
  const int64_t rows = q.dim(0) * q.dim(1), heads = q.dim(2), d = q.dim(3), m = k.dim(2), kv = k.dim(3);
  RefTensor out({q.dim(0), q.dim(1), tokens});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> z(static_cast<size_t>(m), 0.0);
      const int64_t g = h / (heads / kv);
      for (int64_t j = 0; j < m; ++j)
        for (int64_t c = 0; c < d; ++c)
          z[static_cast<size_t>(j)] += q[(r * heads + h) * d + c] * k[((r * m + j) * kv + g) * d + c] /
                                       std::sqrt(static_cast<double>(d));
      ref::softmax_row(z, std::vector<char>(static_cast<size_t>(m), 1));
      for (int64_t i = 0; i < tokens; ++i)
        out[r * tokens + i] += z[static_cast<size_t>(v0 + i)] / static_cast<double>(heads);
    }
  return out;
}

std::pair<int64_t, int64_t> grid(int64_t tokens, int64_t h, int64_t w) {
  const std::map<int64_t, int64_t> known{{576, 24}, {1024, 32}, {1600, 40}, {1681, 41}, {256, 16}};
  if (known.contains(tokens)) return {known.at(tokens), known.at(tokens)};
  if (tokens >= h * w) return {h, w};
  const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(tokens)) + 0.5);
  return {side, side};
}

/// Bilinear, half-pixel centres, edges clamped.
RefTensor enlarge(const std::vector<double>& g, int64_t gh, int64_t gw, int64_t h, int64_t w) {
  RefTensor s({h, w});
  const auto place = [](int64_t i, int64_t in, int64_t out) {
    const double at =
        (static_cast<double>(i) + 0.5) / static_cast<double>(out) * static_cast<double>(in) - 0.5;
    return std::min(std::max(at, 0.0), static_cast<double>(in - 1));
  };
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      const double fy = place(y, gh, h), fx = place(x, gw, w);
      const auto y0 = static_cast<int64_t>(fy), x0 = static_cast<int64_t>(fx);
      const int64_t y1 = std::min(y0 + 1, gh - 1), x1 = std::min(x0 + 1, gw - 1);
      const auto at = [&](int64_t r, int64_t c) { return g[static_cast<size_t>(r * gw + c)]; };
      const double left = at(y0, x0) + (fy - static_cast<double>(y0)) * (at(y1, x0) - at(y0, x0));
      const double right = at(y0, x1) + (fy - static_cast<double>(y0)) * (at(y1, x1) - at(y0, x1));
      s[y * w + x] = left + (fx - static_cast<double>(x0)) * (right - left);
    }
  return s;
}

constexpr std::array<std::pair<int64_t, int64_t>, 4> kNeighbours{{{-1, 0}, {1, 0}, {0, -1}, {0, 1}}};

/// Regions by spreading the smallest index over neighbours until nothing changes.
std::vector<int64_t> regions_of(const std::vector<char>& mask, int64_t h, int64_t w) {
  std::vector<int64_t> id(mask.size(), -1);
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i]) id[i] = static_cast<int64_t>(i);
  for (bool changed = true; changed;) {
    changed = false;
    const auto relax = [&](int64_t i) {
      if (id[static_cast<size_t>(i)] < 0) return;
      const int64_t y = i / w, x = i % w;
      for (const auto& [dy, dx] : kNeighbours) {
        if (y + dy < 0 || y + dy >= h || x + dx < 0 || x + dx >= w) continue;
        const int64_t other = id[static_cast<size_t>((y + dy) * w + x + dx)];
        if (other >= 0 && other < id[static_cast<size_t>(i)])
          id[static_cast<size_t>(i)] = other, changed = true;
      }
    };
    for (int64_t i = 0; i < h * w; ++i) relax(i);
    for (int64_t i = h * w - 1; i >= 0; --i) relax(i);
  }
  return id;
}

/// One row of n 8-bit samples resized to m, three-lobed Lanczos, weights in 22 bits.
std::vector<int64_t> resize_line(const std::vector<int64_t>& x, int64_t m) {
  const auto n = static_cast<int64_t>(x.size());
  if (n == m) return x;
  const auto weight = [](double t) {
    if (!(t >= -3 && t < 3)) return 0.0;
    if (t == 0) return 1.0;
    const double a = std::numbers::pi * t;
    return std::sin(a) / a * (std::sin(a / 3) / (a / 3));
  };
  const double ratio = static_cast<double>(n) / static_cast<double>(m), stretch = ratio < 1 ? 1.0 : ratio;
  std::vector<int64_t> y;
  for (int64_t i = 0; i < m; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * ratio;
    const auto begin = std::max<int64_t>(static_cast<int64_t>(centre - 3 * stretch + 0.5), 0);
    const auto end = std::min<int64_t>(static_cast<int64_t>(centre + 3 * stretch + 0.5), n);
    double total = 0;
    for (int64_t j = begin; j < end; ++j) total += weight((static_cast<double>(j) - centre + 0.5) / stretch);
    int64_t sum = 1 << 21;
    for (int64_t j = begin; j < end; ++j) {
      const double w = weight((static_cast<double>(j) - centre + 0.5) / stretch) / total * 4194304.0;
      sum += static_cast<int64_t>(w < 0 ? w - 0.5 : w + 0.5) * x[static_cast<size_t>(j)];
    }
    y.push_back(std::min<int64_t>(std::max<int64_t>(sum >> 22, 0), 255));
  }
  return y;
}

Pixels resized(const Pixels& in, int64_t h, int64_t w) {
  Pixels wide(in.size(), std::vector<std::array<int64_t, 3>>(static_cast<size_t>(w)));
  for (size_t c = 0; c < 3; ++c)
    for (size_t y = 0; y < in.size(); ++y) {
      std::vector<int64_t> line;
      for (const auto& p : in[y]) line.push_back(p[c]);
      line = resize_line(line, w);
      for (size_t x = 0; x < line.size(); ++x) wide[y][x][c] = line[x];
    }
  Pixels out(static_cast<size_t>(h), std::vector<std::array<int64_t, 3>>(static_cast<size_t>(w)));
  for (size_t c = 0; c < 3; ++c)
    for (size_t x = 0; x < static_cast<size_t>(w); ++x) {
      std::vector<int64_t> line;
      for (const auto& row : wide) line.push_back(row[x][c]);
      line = resize_line(line, h);
      for (size_t y = 0; y < line.size(); ++y) out[y][x][c] = line[y];
    }
  return out;
}

double canny_share(const Pixels& image, double low, double high) {
  const auto h = static_cast<int64_t>(image.size()), w = static_cast<int64_t>(image[0].size());
  const auto grey = [&](int64_t y, int64_t x) {
    const auto& p = image[static_cast<size_t>(std::clamp<int64_t>(y, 0, h - 1))]
                         [static_cast<size_t>(std::clamp<int64_t>(x, 0, w - 1))];
    return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 32768) / 65536;
  };
  const auto gradient = [&](int64_t y, int64_t x) {
    const int64_t gx = (grey(y - 1, x + 1) - grey(y - 1, x - 1)) + 2 * (grey(y, x + 1) - grey(y, x - 1)) +
                       (grey(y + 1, x + 1) - grey(y + 1, x - 1));
    const int64_t gy = (grey(y + 1, x - 1) - grey(y - 1, x - 1)) + 2 * (grey(y + 1, x) - grey(y - 1, x)) +
                       (grey(y + 1, x + 1) - grey(y - 1, x + 1));
    return std::pair(gx, gy);
  };
  const auto magnitude = [&](int64_t y, int64_t x) -> int64_t {
    if (y < 0 || y >= h || x < 0 || x >= w) return 0;
    const auto [gx, gy] = gradient(y, x);
    return std::abs(gx) + std::abs(gy);
  };
  std::set<std::pair<int64_t, int64_t>> weak, edges;
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      const int64_t m = magnitude(y, x);
      if (!(static_cast<double>(m) > low)) continue;
      const auto [gx, gy] = gradient(y, x);
      // The direction by sectors of 45 degrees; tan 22.5 = 13573 / 2^15 as image libraries round it.
      const double ax = std::fabs(static_cast<double>(gx)), ay = std::fabs(static_cast<double>(gy)),
                   t = 13573.0 / 32768;
      int64_t dy = 1, dx = (gx < 0) != (gy < 0) ? -1 : 1;
      if (ay < ax * t)
        dy = 0, dx = 1;
      else if (ay > ax * (t + 2))
        dy = 1, dx = 0;
      if (!(m > magnitude(y - dy, x - dx) && m >= magnitude(y + dy, x + dx))) continue;
      weak.insert({y, x});
      if (static_cast<double>(m) > high) edges.insert({y, x});
    }
  for (bool grown = true; grown;) {
    grown = false;
    for (const auto& [y, x] : weak) {
      if (edges.contains({y, x})) continue;
      for (int64_t dy = -1; dy <= 1; ++dy)
        for (int64_t dx = -1; dx <= 1; ++dx)
          if (edges.contains({y + dy, x + dx})) {
            edges.insert({y, x});
            grown = true;
          }
    }
  }
  return static_cast<double>(edges.size()) / static_cast<double>(h * w);
}

double hue_entropy(const Pixels& image, int64_t bins) {
  std::map<int64_t, double> share;
  double pixels = 0;
  for (const auto& row : image)
    for (const auto& [r, g, b] : row) {
      const int64_t most = std::max({r, g, b}), least = std::min({r, g, b});
      int64_t hue = 0;
      if (most > least) {
        const double span = static_cast<double>(most - least);
        const double degrees = most == r   ? 60 * static_cast<double>(g - b) / span
                               : most == g ? 120 + 60 * static_cast<double>(b - r) / span
                                           : 240 + 60 * static_cast<double>(r - g) / span;
        // Half up, in halves of degrees; the bias is far below the distance of other fractions from a half.
        hue = (static_cast<int64_t>(std::floor(degrees / 2 + 0.5 + 1e-9)) + 180) % 180;
      }
      share[hue * bins / 180] += 1;
      pixels += 1;
    }
  double h = 0;
  for (const auto& [bin, n] : share) h -= n / pixels * std::log(n / pixels);
  return h / std::log(static_cast<double>(bins));
}

RefTensor scalar(double v) {
  RefTensor t({1});
  t[0] = v;
  return t;
}

RefMap carve_reference(const Problem&, const Params& p, const RefMap& inputs, const RefMap&) {
  RefMap out;
  RefTensor aq, ag;
  const int64_t h = p.integer("image_h"), w = p.integer("image_w");
  if (inputs.contains("q_question")) {
    const int64_t tokens = p.integer("grid_h") * p.integer("grid_w");
    out["AQ"] = aq = maps_of(inputs.at("q_question"), inputs.at("k_question"), p.integer("v0"), tokens);
    out["AG"] = ag = maps_of(inputs.at("q_general"), inputs.at("k_general"), p.integer("v0"), tokens);
  } else {
    aq = inputs.at("AQ");
    ag = inputs.at("AG");
  }
  const int64_t ls = aq.dim(1), nv = aq.dim(2), tq = aq.dim(0), tg = ag.dim(0), steps = std::min(tq, tg);
  const auto [gh, gw] = grid(nv, p.integer("grid_h"), p.integer("grid_w"));
  const double lam = p.number("lam");
  std::vector<int64_t> layers;
  for (const Value& v : p.value("layers").as_list())
    if (v.as_int() < ls) layers.push_back(v.as_int());
  const auto contrast = [&](int64_t step_q, int64_t step_g, int64_t l, int64_t i) {
    return aq[(step_q * ls + l) * nv + i] / (ag[(step_g * ls + l) * nv + i] + lam);
  };
  const auto fused = [&](const std::string& mode) {
    std::vector<double> g(static_cast<size_t>(gh * gw), 0.0);
    for (int64_t i = 0; i < gh * gw; ++i)
      for (int64_t l : layers) {
        double& v = g[static_cast<size_t>(i)];
        if (mode == "first") v += contrast(0, 0, l, i);
        if (mode == "last") v += contrast(tq - 1, tg - 1, l, i);
        if (mode == "full")
          for (int64_t t = 0; t < steps; ++t) v += static_cast<double>(t + 1) * contrast(t, t, l, i);
      }
    return enlarge(g, gh, gw, h, w);
  };
  const RefTensor s = out["S"] = fused(p.choice("step_mode"));
  out["S_last"] = fused("last");

  std::vector<double> sorted = s.data;
  std::sort(sorted.begin(), sorted.end());
  const double at = static_cast<double>(sorted.size() - 1) * (1 - p.number("top_p"));
  double tau = 0;
  if (std::fabs(at - std::round(at)) <= 1e-9 * static_cast<double>(sorted.size())) {
    tau = sorted[static_cast<size_t>(std::round(at))];
  } else {
    const auto low = static_cast<size_t>(std::floor(at));
    tau = sorted[low] + (at - std::floor(at)) * (sorted[low + 1] - sorted[low]);
  }
  out["tau"] = scalar(tau);
  std::vector<char> mask;
  double above = 0;
  for (double v : s.data) mask.push_back(v >= tau), above += v >= tau;
  const std::vector<int64_t> id = regions_of(mask, h, w);
  struct Region {
    int64_t id;
    double sum = 0, size = 0;
  };
  std::vector<Region> regions;  // in raster order of their first pixels, which are their ids
  for (size_t i = 0; i < id.size(); ++i) {
    if (id[i] < 0) continue;
    if (id[i] == static_cast<int64_t>(i)) regions.push_back({id[i]});
    for (Region& r : regions)
      if (r.id == id[i]) r.sum += s.data[i], r.size += 1;
  }
  out["num_regions"] = scalar(static_cast<double>(regions.size()));
  const double count = static_cast<double>(regions.size());
  const std::string& score = p.choice("region_score");
  if (score == "remove_small") {
    const double least = std::floor(p.number("outlier_percent") / 100 * above);
    std::erase_if(regions, [&](const Region& r) { return r.size < least; });
  } else {
    std::stable_sort(regions.begin(), regions.end(), [&](const Region& a, const Region& b) {
      return score == "size" ? a.size > b.size : a.sum > b.sum;
    });
    const int64_t most =
        p.choice("region_rule") == "top_k"
            ? p.integer("max_regions")
            : std::max(p.integer("min_keep_regions"), static_cast<int64_t>(count * p.number("top_p")));
    if (static_cast<int64_t>(regions.size()) > most) regions.resize(static_cast<size_t>(most));
  }
  std::set<int64_t> keep;
  for (const Region& r : regions) keep.insert(r.id);
  RefTensor kept({h, w});
  int64_t x0 = w, y0 = h, x1 = 0, y1 = 0;
  for (int64_t i = 0; i < h * w; ++i) {
    kept[i] = id[static_cast<size_t>(i)] >= 0 && keep.contains(id[static_cast<size_t>(i)]);
    if (kept[i] == 0) continue;
    x0 = std::min(x0, i % w), x1 = std::max(x1, i % w + 1), y0 = std::min(y0, i / w),
    y1 = std::max(y1, i / w + 1);
  }
  if (x1 == 0) x0 = 0, y0 = 0, x1 = w, y1 = h;
  out["mask"] = kept;
  RefTensor box({4});
  box.data = {static_cast<double>(x0), static_cast<double>(y0), static_cast<double>(x1),
              static_cast<double>(y1)};
  out["bbox"] = box;
  const RefTensor& given = inputs.at("I");
  Pixels image(static_cast<size_t>(h), std::vector<std::array<int64_t, 3>>(static_cast<size_t>(w)));
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x)
      for (int64_t c = 0; c < 3; ++c)
        image[static_cast<size_t>(y)][static_cast<size_t>(x)][static_cast<size_t>(c)] =
            std::clamp<int64_t>(static_cast<int64_t>(given[(y * w + x) * 3 + c]), 0, 255);
  Pixels crop;
  for (int64_t y = y0; y < y1; ++y) {
    crop.emplace_back();
    for (int64_t x = x0; x < x1; ++x)
      crop.back().push_back(kept[y * w + x] != 0 ? image[static_cast<size_t>(y)][static_cast<size_t>(x)]
                                                 : std::array<int64_t, 3>{0, 0, 0});
  }
  const double cw = static_cast<double>(x1 - x0), ch = static_cast<double>(y1 - y0);
  const double scale = std::max(static_cast<double>(w) / cw, static_cast<double>(h) / ch);
  const Pixels refined = resized(crop, static_cast<int64_t>(ch * scale), static_cast<int64_t>(cw * scale));
  RefTensor picture({static_cast<int64_t>(refined.size()), static_cast<int64_t>(refined[0].size()), 3});
  int64_t n = 0;
  for (const auto& row : refined)
    for (const auto& pixel : row)
      for (int64_t v : pixel) picture[n++] = static_cast<double>(v);
  out["refined"] = picture;

  const auto entropies = [&](const char* name, const auto& value) {
    RefTensor e({ls});
    for (int64_t l = 0; l < ls; ++l) {
      double sum = 0;
      for (int64_t i = 0; i < nv; ++i) sum += value(l, i);
      if (!p.boolean("entropy_normalise") || !(sum > 0)) sum = 1;
      for (int64_t i = 0; i < nv; ++i) {
        const double a = value(l, i) / sum;
        if (a > 0) e[l] -= a * std::log(a);
      }
    }
    out[name] = e;
    if (name == "entropy_" + p.choice("entropy_source")) {
      double mean = 0;
      for (int64_t l : layers) mean += e[l] / static_cast<double>(layers.size());
      out["entropy"] = scalar(mean);
    }
  };
  entropies("entropy_question", [&](int64_t l, int64_t i) { return aq[((tq - 1) * ls + l) * nv + i]; });
  entropies("entropy_general", [&](int64_t l, int64_t i) { return ag[((tg - 1) * ls + l) * nv + i]; });
  entropies("entropy_contrast", [&](int64_t l, int64_t i) { return contrast(steps - 1, steps - 1, l, i); });
  out["Tc"] = scalar(canny_share(image, p.number("canny_low"), p.number("canny_high")));
  out["Cc"] = scalar(hue_entropy(image, p.integer("hue_bins")));
  return out;
}
ATTNBENCH_REFERENCE(carve, carve_reference);

}  // namespace
}  // namespace attnbench
