// CARVE: contrast of the attention of two probing passes over the image tokens, ending in a mask and a crop
// of the image, with entropies of the maps and complexities of the image. Card: carve.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/method.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "carve";
  m.title = "CARVE: contrastive attention refinement of an image";
  m.paper = "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning, 2025";
  m.arxiv = "2509.06461";
  m.family =
      "analysis (attention entropy, contrast of two maps, image mask and crop; no attention output changes)";
  m.summary =
      "Divides the attention that a question pays to the image tokens by that of a general instruction, sums "
      "it over "
      "steps and layers, and keeps the best regions of the enlarged map: a mask, its box and the enlarged "
      "crop. Beside "
      "it: entropy of the maps by layer, and texture and colour complexity of the image.";
  m.formula =
      "Ahat[t, l] = AQ[t, l] / (AG[t, l] + lambda)\n"
      "S = sum_t w_t sum_l resize(Ahat[t, l]),  first: t = 1; last: each pass's last step; full: w_t = t\n"
      "mask = S >= percentile(1 - p); regions of 4 neighbours, ranked; crop of their box, enlarged (Lanczos, "
      "8 bit)\n"
      "H(a) = - sum a ln a of a normalised map;  Cc = - sum rho_b ln rho_b / ln B;  Tc = Canny edge pixels / "
      "pixels";
  m.cost =
      "qk: 2 H M D + 5 H M a row and pass. Contrast 2 Ls T Nv, fuse 2 Ls T Nv, upsampling 3 an element and "
      "axis. On the "
      "host afterwards: sort, components, crop, Canny and histogram, O(pixels log pixels), not charged.";
  ParamSpec layers =
      spec::param("layers", ParamSpec::Type::list, Value(Value::List{20, 21, 22, 23, 24, 25}),
                  "layers fused, indices of the maps' layer axis; those beyond it are skipped");
  layers.min = 0;
  ParamSpec top = spec::param("top_p", ParamSpec::Type::number, 0.2, "share of pixels kept, above 0");
  top.min = 0;
  top.max = 1;
  ParamSpec stop =
      spec::param("early_stop_layer", ParamSpec::Type::integer, Value(),
                  "layer at which the probing passes stop, for the cost model; null: the last of layers");
  stop.nullable = true;
  stop.min = 0;
  m.params = {
      layers,
      spec::choice("step_mode", {"full", "first", "last"}, "steps fused"),
      spec::number("lam", 1e-8, 0, "lambda, above 0"),
      top,
      spec::choice("region_rule", {"max_rule", "top_k"},
                   "max_rule: max(min_keep_regions, regions p); top_k: max_regions"),
      spec::integer("max_regions", 3, 1, "K of top_k"),
      spec::integer("min_keep_regions", 3, 1, "of max_rule"),
      spec::choice("region_score", {"attention_sum", "size", "remove_small"},
                   "remove_small: drop regions below outlier_percent of the mask, no ranking"),
      spec::number("outlier_percent", 0.1, 0, "remove_small only"),
      spec::integer("max_new_tokens", 32, 1, "T: generated steps"),
      spec::integer("grid_h", 16, 2, "token rows"),
      spec::integer("grid_w", 16, 2, "token columns"),
      spec::integer("image_h", 448, 2, "Him", "size[0]"),
      spec::integer("image_w", 448, 2, "Wim", "size[1]"),
      spec::integer("v0", 0, 0, "first visual key, qk only"),
      spec::integer("hue_bins", 180, 2, "B"),
      spec::number("canny_low", 100, 0, "edges continue from here"),
      spec::number("canny_high", 200, 0, "edges begin here"),
      spec::choice("entropy_source", {"question", "general", "contrast"}, "maps of the overall entropy"),
      spec::param("entropy_normalise", ParamSpec::Type::boolean, true, "divide a map by its sum first"),
      stop};
  m.kinds = {ProblemKind::image};
  m.figures = {
      {"GPU time per sample", "TextVQA, RTX A6000, LLaVA-1.5-7B", "plain model 0.17 s", "1.34 s (7.9x)",
       "table 3"},
      {"early-stop saving", "25 of 28 layers", "3 full passes", "7.3 %", "appendix C.7"},
      {"cached general map", "many questions an image", "3 full passes", "1.59x", "appendix C.7"},
      {"extra memory", "5 layers, 10 steps, 1024 tokens", "", "about 200 KB", "appendix C.7"},
      {"V* accuracy", "LLaVA-1.5-7B, [20, 25], last / full", "38.7", "66.5", "tables 1, 2"},
      {"TextVQA accuracy", "Qwen2.5-VL-7B, first / last / full", "75.0", "80.7 / 81.9 / 81.7", "table 1"}};
  m.notes = {
      "problem.head_dim chooses the entry: with it `qk` (queries and keys, problem.length keys), without it "
      "`maps`. Files "
      "decide by their tensors, and bring their own steps, layers and tokens.",
      "A map of 576, 1024, 1600, 1681 or 256 tokens is 24, 32, 40, 41 or 16 square, else grid_h x grid_w "
      "with further "
      "tokens cut off, else square, else an error (chosen).",
      "The grid is summed first and enlarged once, bilinear, half-pixel centres, a + w (b - a). Where (n - "
      "1)(1 - p) is "
      "whole, the threshold is a pixel's value.",
      "Lanczos in 8 bit as the common image library does it: both passes rounded, coefficients of 22 bits.",
      "Canny: grey (19595 R + 38470 G + 7471 B + 32768) >> 16, Sobel, |gx| + |gy|, border replicated, maxima "
      "> first and "
      ">= second neighbour, none beyond the image, no blur (chosen). Hue in half degrees, half rounded up, "
      "grey in bin 0.",
      "Threshold, components, crop and complexities run on the host: the crop's size is data, and the next "
      "thing that "
      "happens to it is an image processor. They are timed as stages.",
      "lambda and K of the published tables were not found. The combined 1.24x at hit rate 0.3 does not "
      "follow from the "
      "paper's formula, which gives 1.19x."};
  m.example.kind = ProblemKind::image;
  m.example.size = {45, 52};
  m.example.channels = 3;
  return m;
}

const MethodInfo& carve_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Extents {
  int64_t question_steps = 0, general_steps = 0, layers = 0, tokens = 0;
  int64_t heads = 0, kv_heads = 0, keys = 0, head_dim = 0;  ///< qk
  bool qk() const { return head_dim > 0; }
};

struct Grid {
  int64_t h = 0, w = 0;
};

Grid grid_of(int64_t tokens, int64_t h, int64_t w) {
  for (const int64_t side : {24, 32, 40, 41, 16})
    if (tokens == side * side) return {side, side};
  if (tokens >= h * w) return {h, w};
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(tokens))));
  if (side >= 2 && side * side == tokens) return {side, side};
  throw UsageError("carve: " + std::to_string(tokens) + " tokens are no grid: not " + std::to_string(h) +
                   " x " + std::to_string(w) + " and not square");
}

// ---- the image, on the host
// ---------------------------------------------------------------------------------

struct Image {
  int64_t h = 0, w = 0;
  std::vector<int32_t> rgb;  ///< [h, w, 3], 0..255
  int32_t at(int64_t y, int64_t x, int64_t c) const { return rgb[static_cast<size_t>((y * w + x) * 3 + c)]; }
};

/// 4-connected components of a mask, labelled 1, 2, .. in raster order of their first pixels; returns their
/// number.
int64_t label(const std::vector<char>& mask, int64_t h, int64_t w, std::vector<int32_t>& labels) {
  labels.assign(mask.size(), 0);
  int32_t count = 0;
  std::vector<int64_t> open;
  for (int64_t start = 0; start < h * w; ++start) {
    if (!mask[static_cast<size_t>(start)] || labels[static_cast<size_t>(start)]) continue;
    labels[static_cast<size_t>(start)] = ++count;
    open.push_back(start);
    while (!open.empty()) {
      const int64_t at = open.back(), y = at / w, x = at % w;
      open.pop_back();
      const auto visit = [&](int64_t to) {
        if (!mask[static_cast<size_t>(to)] || labels[static_cast<size_t>(to)]) return;
        labels[static_cast<size_t>(to)] = count;
        open.push_back(to);
      };
      if (y > 0) visit(at - w);
      if (y + 1 < h) visit(at + w);
      if (x > 0) visit(at - 1);
      if (x + 1 < w) visit(at + 1);
    }
  }
  return count;
}

/// The linear-interpolation percentile of share q of sorted values; a value itself where the position is
/// whole.
double percentile(const std::vector<float>& sorted, double q) {
  const double at = static_cast<double>(sorted.size() - 1) * q, whole = std::round(at);
  if (std::fabs(at - whole) <= 1e-9 * static_cast<double>(sorted.size()))
    return static_cast<double>(sorted[static_cast<size_t>(whole)]);
  const auto below = static_cast<size_t>(at);
  const double a = static_cast<double>(sorted[below]), b = static_cast<double>(sorted[below + 1]);
  return a + (at - static_cast<double>(below)) * (b - a);
}

/// One axis of an 8-bit Lanczos (3 lobes) resize: taps of 22-bit fixed point for every output.
struct Taps {
  std::vector<int64_t> first;
  std::vector<std::vector<int64_t>> weight;
};
constexpr int kTapBits = 22;

Taps lanczos(int64_t in, int64_t out) {
  const auto kernel = [](double x) {
    const auto sinc = [](double v) { return v == 0 ? 1.0 : std::sin(v * M_PI) / (v * M_PI); };
    return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0.0;
  };
  const double scale = static_cast<double>(in) / static_cast<double>(out), wide = std::max(scale, 1.0);
  Taps t;
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const int64_t begin = std::max<int64_t>(static_cast<int64_t>(centre - 3 * wide + 0.5), 0),
                  end = std::min<int64_t>(static_cast<int64_t>(centre + 3 * wide + 0.5), in);
    std::vector<double> w;
    double sum = 0;
    for (int64_t j = begin; j < end; ++j) {
      w.push_back(kernel((static_cast<double>(j) - centre + 0.5) / wide));
      sum += w.back();
    }
    t.first.push_back(begin);
    t.weight.emplace_back();
    for (double v : w) {
      const double fixed = v / sum * (1 << kTapBits);
      t.weight.back().push_back(static_cast<int64_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return t;
}

/// Resizes one axis: 1 columns, 0 rows.
Image resize_axis(const Image& x, int axis, int64_t extent) {
  const int64_t in = axis ? x.w : x.h;
  if (in == extent) return x;
  const Taps taps = lanczos(in, extent);
  Image y;
  y.h = axis ? x.h : extent;
  y.w = axis ? extent : x.w;
  y.rgb.resize(static_cast<size_t>(y.h * y.w * 3));
  for (int64_t r = 0; r < y.h; ++r)
    for (int64_t c = 0; c < y.w; ++c) {
      const auto i = static_cast<size_t>(axis ? c : r);
      for (int64_t k = 0; k < 3; ++k) {
        int64_t sum = int64_t{1} << (kTapBits - 1);
        for (size_t j = 0; j < taps.weight[i].size(); ++j) {
          const int64_t at = taps.first[i] + static_cast<int64_t>(j);
          sum += taps.weight[i][j] * (axis ? x.at(r, at, k) : x.at(at, c, k));
        }
        y.rgb[static_cast<size_t>((r * y.w + c) * 3 + k)] =
            static_cast<int32_t>(std::clamp<int64_t>(sum >> kTapBits, 0, 255));
      }
    }
  return y;
}

/// Share of Canny edge pixels.
double texture(const Image& image, double low, double high) {
  const int64_t h = image.h, w = image.w;
  std::vector<int32_t> grey(static_cast<size_t>(h * w)), gx(grey.size()), gy(grey.size()), size(grey.size());
  const auto index = [w](int64_t y, int64_t x) { return static_cast<size_t>(y * w + x); };
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x)
      grey[index(y, x)] =
          (19595 * image.at(y, x, 0) + 38470 * image.at(y, x, 1) + 7471 * image.at(y, x, 2) + 32768) >> 16;
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      const auto g = [&](int64_t dy, int64_t dx) {
        return grey[index(std::clamp<int64_t>(y + dy, 0, h - 1), std::clamp<int64_t>(x + dx, 0, w - 1))];
      };
      const size_t at = index(y, x);
      gx[at] = g(-1, 1) + 2 * g(0, 1) + g(1, 1) - g(-1, -1) - 2 * g(0, -1) - g(1, -1);
      gy[at] = g(1, -1) + 2 * g(1, 0) + g(1, 1) - g(-1, -1) - 2 * g(-1, 0) - g(-1, 1);
      size[at] = std::abs(gx[at]) + std::abs(gy[at]);
    }
  // tan 22.5 degrees in 15 bits; tan 67.5 is that plus 2.
  constexpr int64_t kTan = 13573;
  std::vector<char> edge(grey.size(), 0);  // 1: may continue an edge, 2: edge
  std::vector<size_t> open;
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      const size_t at = index(y, x);
      if (!(size[at] > low)) continue;
      const auto m = [&](int64_t dy, int64_t dx) {
        return y + dy < 0 || y + dy >= h || x + dx < 0 || x + dx >= w ? 0 : size[index(y + dy, x + dx)];
      };
      const int64_t ax = std::abs(int64_t{gx[at]}), ay = std::abs(int64_t{gy[at]}) << 15;
      bool peak;
      if (ay < ax * kTan) {
        peak = size[at] > m(0, -1) && size[at] >= m(0, 1);
      } else if (ay > ax * kTan + (ax << 16)) {
        peak = size[at] > m(-1, 0) && size[at] >= m(1, 0);
      } else {
        const int64_t s = (gx[at] < 0) != (gy[at] < 0) ? -1 : 1;
        peak = size[at] > m(-1, -s) && size[at] >= m(1, s);
      }
      if (!peak) continue;
      edge[at] = size[at] > high ? 2 : 1;
      if (edge[at] == 2) open.push_back(at);
    }
  int64_t count = static_cast<int64_t>(open.size());
  while (!open.empty()) {
    const auto y = static_cast<int64_t>(open.back()) / w, x = static_cast<int64_t>(open.back()) % w;
    open.pop_back();
    for (int64_t dy = -1; dy <= 1; ++dy)
      for (int64_t dx = -1; dx <= 1; ++dx) {
        if (y + dy < 0 || y + dy >= h || x + dx < 0 || x + dx >= w) continue;
        const size_t to = index(y + dy, x + dx);
        if (edge[to] != 1) continue;
        edge[to] = 2;
        ++count;
        open.push_back(to);
      }
  }
  return static_cast<double>(count) / static_cast<double>(h * w);
}

/// Entropy of the hue histogram over ln(bins).
double colour(const Image& image, int64_t bins) {
  std::vector<int64_t> histogram(static_cast<size_t>(bins), 0);
  const int64_t pixels = image.h * image.w;
  for (int64_t i = 0; i < pixels; ++i) {
    const int32_t *p = image.rgb.data() + 3 * i, r = p[0], g = p[1], b = p[2];
    const int64_t most = std::max({r, g, b}), range = most - std::min({r, g, b});
    int64_t hue = 0;  // half degrees, half up
    if (range > 0) {
      const int64_t base = most == r   ? 0
                           : most == g ? 60
                                       : 120,
                    part = most == r   ? g - b
                           : most == g ? b - r
                                       : r - g;
      const int64_t up = 60 * part + range;  // (30 part / range + 1/2) in units of 1 / (2 range)
      hue = base + (up >= 0 ? up / (2 * range) : -((-up + 2 * range - 1) / (2 * range)));
      hue = (hue + 180) % 180;
    }
    ++histogram[static_cast<size_t>(hue * bins / 180)];
  }
  double sum = 0;
  for (int64_t n : histogram) {
    const double share = static_cast<double>(n) / static_cast<double>(pixels);
    if (n > 0) sum -= share * std::log(share);
  }
  return sum / std::log(static_cast<double>(bins));
}

double entropy_of(const float* a, int64_t n, bool normalise) {
  double sum = 0, h = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]);
  if (!normalise || !(sum > 0)) sum = 1;
  for (int64_t i = 0; i < n; ++i) {
    const double p = static_cast<double>(a[i]) / sum;
    if (p > 0) h -= p * std::log(p);
  }
  return h;
}

// ---- instance
// -----------------------------------------------------------------------------------------------

void binary(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y) {
  PointwiseArgs p;
  p.op = op;
  p.a = a;
  p.b = b;
  p.y = y;
  pointwise(ctx, p);
}

class CarveInstance final : public Instance {
 public:
  CarveInstance(Context& ctx, const Problem& problem, const Params& p, const Extents& e)
      : e_(e),
        p_(p),
        dtype_(problem.dtype),
        h_(p.integer("image_h")),
        w_(p.integer("image_w")),
        grid_(grid_of(e.tokens, p.integer("grid_h"), p.integer("grid_w"))),
        steps_(std::min(e.question_steps, e.general_steps)) {
    for (const Value& v : p.value("layers").as_list())
      if (v.as_int() < e_.layers) layers_.push_back(v.as_int());
    if (layers_.empty())
      throw UsageError("carve.layers: none of " + p.value("layers").str() + " is among the " +
                       std::to_string(e_.layers) + " layers of the maps");
    if (e_.qk()) {
      const auto add = [&](const char* name, const Shape& shape, const char* meaning) {
        input_specs_.push_back({name, shape, dtype_, Init::normal(), false, meaning});
      };
      add("q_question", {e_.question_steps, e_.layers, e_.heads, e_.head_dim},
          "last-token queries of the question");
      add("k_question", {e_.question_steps, e_.layers, e_.keys, e_.kv_heads, e_.head_dim}, "their keys");
      add("q_general", {e_.general_steps, e_.layers, e_.heads, e_.head_dim},
          "last-token queries of the instruction");
      add("k_general", {e_.general_steps, e_.layers, e_.keys, e_.kv_heads, e_.head_dim}, "their keys");
    } else {
      map_spec("AQ", e_.question_steps, problem.seed,
               "question pass: attention to the image tokens [Tq, Ls, Nv]");
      map_spec("AG", e_.general_steps, problem.seed, "general instruction [Tg, Ls, Nv]");
    }
    TensorSpec image{"I", {h_, w_, 3}, DType::i32, Init::normal(), false, "image [Him, Wim, 3], 0..255"};
    image.init.kind = Init::Kind::values;
    image.init.value = [seed = problem.seed, w = w_](int64_t i) {
      // Flat patches of 8 x 8 pixels with some noise.
      const int64_t pixel = i / 3, patch = pixel / w / 8 * 4096 + pixel % w / 8;
      return std::floor(
          230 * random_uniform(seed, stream_of("patch"), static_cast<uint64_t>(patch * 3 + i % 3)) +
          25 * random_uniform(seed, stream_of("pixel"), static_cast<uint64_t>(i)));
    };
    input_specs_.push_back(image);
    const auto out = [&](const std::string& name, const Shape& shape, DType t = DType::f32) {
      out_[name] = ctx.allocate(t, shape, MemoryClass::output);
    };
    out("S", {h_, w_});
    out("S_last", {h_, w_});
    out("tau", {1});
    out("mask", {h_, w_}, DType::i32);
    out("bbox", {4}, DType::i32);
    out("num_regions", {1}, DType::i32);
    for (const char* name : {"entropy_question", "entropy_general", "entropy_contrast"})
      out(name, {e_.layers});
    for (const char* name : {"entropy", "Cc", "Tc"}) out(name, {1});
    if (e_.qk()) {
      out("AQ", {e_.question_steps, e_.layers, e_.tokens});
      out("AG", {e_.general_steps, e_.layers, e_.tokens});
    }
  }

  void prepare(Context& ctx) override {
    std::vector<float> full(static_cast<size_t>(steps_ * e_.layers), 0.0f),
        last(static_cast<size_t>(e_.layers), 0.0f);
    const bool first = p_.choice("step_mode") == "first";
    for (int64_t t = 0; t < steps_; ++t)
      for (int64_t l : layers_)
        full[static_cast<size_t>(t * e_.layers + l)] +=
            first ? (t == 0 ? 1.0f : 0.0f) : static_cast<float>(t + 1);
    for (int64_t l : layers_) last[static_cast<size_t>(l)] += 1.0f;
    weights_ = upload(ctx, {1, steps_ * e_.layers}, full);
    last_weights_ = upload(ctx, {1, e_.layers}, last);
    rows_ = axis(ctx, grid_.h, h_, grid_.w);
    columns_ = axis(ctx, grid_.w, w_, h_);
    if (e_.qk())
      mean_ = upload(ctx, {e_.heads, 1},
                     std::vector<float>(static_cast<size_t>(e_.heads),
                                        static_cast<float>(1.0 / static_cast<double>(e_.heads))));
  }

  void run(Context& ctx) override {
    Tensor question, general;
    if (e_.qk()) {
      const auto stage = ctx.stage("rows");
      question = out_.at("AQ");
      general = out_.at("AG");
      attention_rows(ctx, "q_question", "k_question", question);
      attention_rows(ctx, "q_general", "k_general", general);
    } else {
      question = in_f32(ctx, input("AQ"));
      general = in_f32(ctx, input("AG"));
    }
    Tensor contrast, last;
    {
      const auto stage = ctx.stage("contrast");
      contrast = divide(ctx, question.slice(0, 0, steps_), general.slice(0, 0, steps_));
      last = divide(ctx, question.slice(0, e_.question_steps - 1, e_.question_steps),
                    general.slice(0, e_.general_steps - 1, e_.general_steps));
    }
    {
      const auto stage = ctx.stage("fuse");
      const bool use_last = p_.choice("step_mode") == "last";
      fuse(ctx, last_weights_, last, out_.at("S_last"));
      if (use_last)
        transpose_copy(ctx, {out_.at("S_last"), out_.at("S")});
      else
        fuse(ctx, weights_, contrast, out_.at("S"));
    }
    ctx.backend().synchronize();
    const Image image = read_image(ctx);
    {
      const auto stage = ctx.stage("regions");
      regions(ctx, image);
    }
    const auto stage = ctx.stage("complexity");
    entropies(ctx, question, general, contrast);
    write<float>(ctx, "Tc",
                 {static_cast<float>(texture(image, p_.number("canny_low"), p_.number("canny_high")))});
    write<float>(ctx, "Cc", {static_cast<float>(colour(image, p_.integer("hue_bins")))});
  }

  TensorMap outputs() const override { return out_; }
  bool capturable() const override { return false; }  // the crop's size is data

  ClosedForm cost() const override {
    const auto e = static_cast<int64_t>(size_of(dtype_));
    const int64_t ls = e_.layers, nv = e_.tokens, maps = (e_.question_steps + e_.general_steps) * ls;
    const auto product = [](int64_t batch, int64_t m, int64_t k, int64_t n, int64_t b) {
      Cost c;
      c.matmul = 2 * batch * m * k * n;
      c.bytes_read = (batch * m * k + b) * 4;
      c.bytes_written = batch * m * n * 4;
      return c;
    };
    const auto moved = [](int64_t count, int64_t from, int64_t to) {
      Cost c;
      c.bytes_read = count * from;
      c.bytes_written = count * to;
      return c;
    };
    const auto point = [](int64_t count, bool two, bool special) {
      Cost c;
      (special ? c.special : c.elementwise) = count;
      c.bytes_read = count * (two ? 8 : 4);
      c.bytes_written = count * 4;
      return c;
    };
    ClosedForm f;
    f.data_dependent = false;
    if (e_.qk()) {
      const int64_t rows = maps * e_.heads, keys = maps * e_.keys * e_.kv_heads * e_.head_dim;
      if (dtype_ != DType::f32) f.cost += moved(rows * e_.head_dim, e, 4) + moved(keys, e, 4);
      f.cost += product(rows, 1, e_.head_dim, e_.keys, keys);
      Cost soft;
      soft.special = rows * e_.keys;
      soft.elementwise = 4 * rows * e_.keys;
      soft.bytes_read = soft.bytes_written = rows * e_.keys * 4;
      f.cost += soft + product(maps, nv, e_.heads, 1, 0);
      f.cost.bytes_read += 2 * e_.heads * 4;  // the means, once a pass
    } else if (dtype_ != DType::f32) {
      f.cost += moved(maps * nv, e, 4);
    }
    // Contrast: lambda added, divided; all steps and the last.
    const auto contrast = [&](int64_t n) { return point(n, false, false) + point(n, true, true); };
    f.cost += contrast(steps_ * ls * nv) + contrast(ls * nv);
    const auto upsample = [&] {
      const int64_t a = h_ * grid_.w, b = w_ * h_;
      Cost c = moved(a, 4, 4) * 2 + point(a, true, false) * 3 + moved(a, 4, 4);
      c.bytes_read += 2 * h_ * 4;
      c += moved(b, 4, 4) * 2 + point(b, true, false) * 3 + moved(b, 4, 4);
      c.bytes_read += 2 * w_ * 4;
      return c;
    };
    f.cost += product(1, 1, ls, nv, ls * nv) + upsample();
    if (p_.choice("step_mode") == "last")
      f.cost += moved(h_ * w_, 4, 4);
    else
      f.cost += product(1, 1, steps_ * ls, nv, steps_ * ls * nv) + upsample();
    return f;
  }

 private:
  void map_spec(const char* name, int64_t steps, uint64_t seed, const char* meaning) {
    TensorSpec s{name, {steps, e_.layers, e_.tokens}, dtype_, Init::normal(), false, meaning};
    s.init.kind = Init::Kind::values;
    // A row of positive weights with a sum near 1; the question looks at two spots of the grid more.
    s.init.value = [seed, stream = stream_of(name), n = e_.tokens, focus = name[1] == 'Q',
                    g = grid_](int64_t i) {
      const double noise = 0.5 + random_uniform(seed, stream, static_cast<uint64_t>(i));
      const double y = static_cast<double>(i % n / g.w), x = static_cast<double>(i % n % g.w);
      const auto spot = [&](double cy, double cx) {
        const double dy = y - cy * static_cast<double>(g.h), dx = x - cx * static_cast<double>(g.w);
        return std::exp(-0.5 * (dy * dy + dx * dx));
      };
      return noise * (1 + (focus ? 6 * spot(0.3, 0.4) + 4 * spot(0.75, 0.7) : 0.0)) / static_cast<double>(n);
    };
    input_specs_.push_back(s);
  }

  Tensor in_f32(Context& ctx, const Tensor& t) const {
    if (t.dtype() == DType::f32) return t;
    const Tensor y = ctx.allocate(DType::f32, t.shape());
    cast(ctx, {t, y});
    return y;
  }

  /// Step 1: softmax over all keys of each head, mean over heads, the visual part.
  void attention_rows(Context& ctx, const char* queries, const char* keys, const Tensor& maps) const {
    const Tensor q = in_f32(ctx, input(queries)), k = in_f32(ctx, input(keys));
    const int64_t rows = q.dim(0) * q.dim(1), d = e_.head_dim, group = e_.heads / e_.kv_heads;
    const Tensor p = ctx.allocate(DType::f32, {rows, e_.heads, e_.keys});
    GemmArgs g;
    g.a = q.reshape({rows, e_.kv_heads, group, d});
    g.b = k.reshape({rows, e_.keys, e_.kv_heads, d}).transpose(1, 2);
    g.b_transposed = true;
    g.c = p.reshape({rows, e_.kv_heads, group, e_.keys});
    g.alpha = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
    gemm(ctx, g);
    softmax(ctx, {p, p});
    GemmArgs mean;
    const int64_t v0 = p_.integer("v0");
    mean.a = p.slice(2, v0, v0 + e_.tokens);
    mean.a_transposed = true;
    mean.b = mean_;
    mean.c = maps.reshape({rows, e_.tokens, 1});
    gemm(ctx, mean);
  }

  /// a / (b + lambda).
  Tensor divide(Context& ctx, const Tensor& a, const Tensor& b) const {
    const Tensor y = ctx.allocate(DType::f32, a.shape());
    PointwiseArgs shift;
    shift.op = PointwiseArgs::Op::affine;
    shift.a = b;
    shift.y = y;
    shift.beta = static_cast<float>(p_.number("lam"));
    pointwise(ctx, shift);
    binary(ctx, PointwiseArgs::Op::div, a, y, y);
    return y;
  }

  /// Where the outputs of one axis lie between its inputs: lower and upper index, and the weight of the upper
  /// one for each of `width` elements of a row.
  struct Axis {
    Tensor lower, upper, weight;
  };
  static Axis axis(Context& ctx, int64_t in, int64_t out, int64_t width) {
    std::vector<int32_t> lower, upper;
    std::vector<float> weight;
    for (int64_t i = 0; i < out; ++i) {
      const double at =
          (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
      const double clamped = std::clamp(at, 0.0, static_cast<double>(in - 1));
      const auto low = std::min(static_cast<int64_t>(clamped), in - 1);
      lower.push_back(static_cast<int32_t>(low));
      upper.push_back(static_cast<int32_t>(std::min(low + 1, in - 1)));
      weight.insert(weight.end(), static_cast<size_t>(width),
                    static_cast<float>(clamped - static_cast<double>(low)));
    }
    return {upload(ctx, {out}, lower), upload(ctx, {out}, upper), upload(ctx, {out, width}, weight)};
  }

  /// y [out, width] = a + w (b - a), a and b rows of x [in, width].
  static Tensor interpolate(Context& ctx, const Tensor& x, const Axis& axis) {
    const int64_t out = axis.lower.dim(0), width = x.dim(1);
    const Tensor a = ctx.allocate(DType::f32, {out, width}), b = ctx.allocate(DType::f32, {out, width});
    gather_rows(ctx, {x.reshape({1, x.dim(0), width}), axis.lower, a.reshape({1, out, width})});
    gather_rows(ctx, {x.reshape({1, x.dim(0), width}), axis.upper, b.reshape({1, out, width})});
    binary(ctx, PointwiseArgs::Op::sub, b, a, b);
    binary(ctx, PointwiseArgs::Op::mul, b, axis.weight, b);
    binary(ctx, PointwiseArgs::Op::add, b, a, b);
    return b;
  }

  /// s = enlarged weighted sum of maps; weights [1, R], maps [.., Nv] of R rows.
  void fuse(Context& ctx, const Tensor& weights, const Tensor& maps, const Tensor& s) const {
    const Tensor sum = ctx.allocate(DType::f32, {1, e_.tokens});
    GemmArgs g;
    g.a = weights;
    g.b = maps.reshape({weights.dim(1), e_.tokens});
    g.c = sum;
    gemm(ctx, g);
    const Tensor grid = sum.slice(1, 0, grid_.h * grid_.w).reshape({grid_.h, grid_.w});
    const Tensor tall = interpolate(ctx, grid, rows_);  // [Him, gw]
    const Tensor turned = ctx.allocate(DType::f32, {grid_.w, h_});
    transpose_copy(ctx, {tall.transpose(0, 1), turned});
    transpose_copy(ctx, {interpolate(ctx, turned, columns_).transpose(0, 1), s});
  }

  template <class T>
  std::vector<T> read(Context& ctx, const Tensor& t) const {
    std::vector<T> v(static_cast<size_t>(t.numel()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), v.data()));
    return v;
  }
  template <class T>
  void write(Context& ctx, const std::string& name, std::vector<T> v) {
    const Tensor& t = out_.at(name);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), v.data()), t);
  }

  Image read_image(Context& ctx) const {
    Image image{h_, w_, read<int32_t>(ctx, input("I"))};
    for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = std::clamp(image.rgb[i], 0, 255);
    return image;
  }

  /// Steps 5 to 7.
  void regions(Context& ctx, const Image& image) {
    const std::vector<float> s = read<float>(ctx, out_.at("S"));
    std::vector<float> sorted = s;
    std::sort(sorted.begin(), sorted.end());
    const double tau = percentile(sorted, 1 - p_.number("top_p"));
    std::vector<char> mask(s.size());
    int64_t above = 0;
    for (size_t i = 0; i < s.size(); ++i) above += mask[i] = static_cast<double>(s[i]) >= tau;
    std::vector<int32_t> labels;
    const int64_t count = label(mask, h_, w_, labels);
    const std::vector<char> keep = kept(s, labels, count, above);
    std::vector<int32_t> out(s.size());
    int64_t x0 = w_, y0 = h_, x1 = 0, y1 = 0;
    for (int64_t y = 0; y < h_; ++y)
      for (int64_t x = 0; x < w_; ++x) {
        const auto at = static_cast<size_t>(y * w_ + x);
        out[at] = keep[static_cast<size_t>(labels[at])];
        if (!out[at]) continue;
        x0 = std::min(x0, x), x1 = std::max(x1, x + 1), y0 = std::min(y0, y), y1 = std::max(y1, y + 1);
      }
    if (x1 == 0) x0 = y0 = 0, x1 = w_, y1 = h_;
    Image crop{y1 - y0, x1 - x0, {}};
    for (int64_t y = y0; y < y1; ++y)
      for (int64_t x = x0; x < x1; ++x)
        for (int64_t c = 0; c < 3; ++c)
          crop.rgb.push_back(out[static_cast<size_t>(y * w_ + x)] ? image.at(y, x, c) : 0);
    const double scale = std::max(static_cast<double>(w_) / static_cast<double>(crop.w),
                                  static_cast<double>(h_) / static_cast<double>(crop.h));
    const auto width = static_cast<int64_t>(static_cast<double>(crop.w) * scale),
               height = static_cast<int64_t>(static_cast<double>(crop.h) * scale);
    const Image refined = resize_axis(resize_axis(crop, 1, width), 0, height);
    out_["refined"] = ctx.allocate(DType::i32, {refined.h, refined.w, 3}, MemoryClass::output);
    write(ctx, "refined", refined.rgb);
    write(ctx, "mask", std::move(out));
    write<float>(ctx, "tau", {static_cast<float>(tau)});
    write<int32_t>(ctx, "num_regions", {static_cast<int32_t>(count)});
    write<int32_t>(ctx, "bbox",
                   {static_cast<int32_t>(x0), static_cast<int32_t>(y0), static_cast<int32_t>(x1),
                    static_cast<int32_t>(y1)});
  }

  /// Flags of the labels that stay; label 0 does not.
  std::vector<char> kept(const std::vector<float>& s, const std::vector<int32_t>& labels, int64_t count,
                         int64_t above) const {
    std::vector<double> sum(static_cast<size_t>(count) + 1, 0.0), size(sum.size(), 0.0);
    for (size_t i = 0; i < s.size(); ++i) {
      sum[static_cast<size_t>(labels[i])] += static_cast<double>(s[i]);
      size[static_cast<size_t>(labels[i])] += 1;
    }
    std::vector<char> keep(sum.size(), 0);
    const std::string& score = p_.choice("region_score");
    if (score == "remove_small") {
      const auto least =
          static_cast<int64_t>(p_.number("outlier_percent") / 100 * static_cast<double>(above));
      for (size_t r = 1; r < keep.size(); ++r) keep[r] = size[r] >= static_cast<double>(least);
      return keep;
    }
    const std::vector<double>& by = score == "size" ? size : sum;
    std::vector<size_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), size_t{1});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return by[a] > by[b]; });
    const int64_t most =
        p_.choice("region_rule") == "top_k"
            ? p_.integer("max_regions")
            : std::max(p_.integer("min_keep_regions"),
                       static_cast<int64_t>(static_cast<double>(count) * p_.number("top_p")));
    for (size_t i = 0; i < order.size() && static_cast<int64_t>(i) < most; ++i) keep[order[i]] = 1;
    return keep;
  }

  void entropies(Context& ctx, const Tensor& question, const Tensor& general, const Tensor& contrast) {
    const bool normalise = p_.boolean("entropy_normalise");
    const auto by_layer = [&](const char* name, const Tensor& maps, int64_t step) {
      const std::vector<float> a = read<float>(ctx, maps.select(0, step));
      std::vector<float> h;
      for (int64_t l = 0; l < e_.layers; ++l)
        h.push_back(static_cast<float>(entropy_of(a.data() + l * e_.tokens, e_.tokens, normalise)));
      if (std::string(name) == "entropy_" + p_.choice("entropy_source")) {
        double mean = 0;
        for (int64_t l : layers_)
          mean += static_cast<double>(h[static_cast<size_t>(l)]) / static_cast<double>(layers_.size());
        write<float>(ctx, "entropy", {static_cast<float>(mean)});
      }
      write(ctx, name, std::move(h));
    };
    by_layer("entropy_question", question, e_.question_steps - 1);
    by_layer("entropy_general", general, e_.general_steps - 1);
    by_layer("entropy_contrast", contrast, steps_ - 1);
  }

  Extents e_;
  Params p_;
  DType dtype_;
  int64_t h_, w_;
  Grid grid_;
  int64_t steps_;
  std::vector<int64_t> layers_;
  TensorMap out_;
  Tensor weights_, last_weights_, mean_;
  Axis rows_, columns_;
};

class Carve final : public Method {
 public:
  const MethodInfo& info() const override { return carve_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("carve has no causal mode: its rows are those of last queries");
    if (problem.size.size() != 2) throw UsageError("method 'carve' needs problem.size");
    if (problem.batch != 1)
      throw Unsupported("carve refines one image; problem.batch is " + std::to_string(problem.batch));
    if (problem.channels && problem.channels != 3)
      throw Unsupported("carve: hues want three channels, not " + std::to_string(problem.channels));
    if (!(p.number("lam") > 0)) throw UsageError("carve.lam: a value above 0 is wanted");
    if (!(p.number("top_p") > 0)) throw UsageError("carve.top_p: a share above 0 is wanted");
    if (p.number("canny_low") > p.number("canny_high"))
      throw UsageError("carve.canny_low: " + Value(p.number("canny_low")).str() + " is above canny_high " +
                       Value(p.number("canny_high")).str());
    int64_t most = 0;
    for (const Value& v : p.value("layers").as_list()) {
      if (!v.is_int()) throw UsageError("carve.layers: " + v.str() + " is no layer");
      most = std::max(most, v.as_int());
    }
    const int64_t gh = p.integer("grid_h"), gw = p.integer("grid_w");
    if (gh > p.integer("image_h") || gw > p.integer("image_w"))
      throw UsageError("carve.grid_h: a grid of " + std::to_string(gh) + " x " + std::to_string(gw) +
                       " tokens is larger than the image");
    Extents e;
    e.question_steps = e.general_steps = p.integer("max_new_tokens");
    e.layers = most + 1;
    e.tokens = gh * gw;
    e.head_dim = problem.head_dim;
    e.heads = problem.heads;
    e.kv_heads = problem.kv_heads_or_heads();
    e.keys = std::max(problem.kv_length ? problem.kv_length : problem.length, p.integer("v0") + e.tokens);
    if (!problem.inputs.file.empty()) read_extents(problem.inputs.file, e);
    if (e.tokens <= 1) throw DataError("carve: the maps have " + std::to_string(e.tokens) + " image tokens");
    if (e.qk()) {
      require_extent(info(), e.heads, "heads");
      if (e.heads % e.kv_heads != 0)
        throw UsageError("carve: " + std::to_string(e.kv_heads) + " key heads do not divide " +
                         std::to_string(e.heads));
      if (p.integer("v0") + e.tokens > e.keys)
        throw UsageError("carve.v0: image tokens " + std::to_string(p.integer("v0")) + " to " +
                         std::to_string(p.integer("v0") + e.tokens - 1) + " lie outside the " +
                         std::to_string(e.keys) + " keys");
    }
    return std::make_unique<CarveInstance>(ctx, problem, p, e);
  }

 private:
  static void read_extents(const std::string& file, Extents& e) {
    const auto shapes = safetensors_shapes(file);
    const auto shape = [&](const char* name, int rank) {
      const auto it = shapes.find(name);
      return it != shapes.end() && it->second.rank() == rank ? &it->second : nullptr;
    };
    if (const Shape* q = shape("q_question", 4)) {
      e.question_steps = (*q)[0], e.layers = (*q)[1], e.heads = (*q)[2], e.head_dim = (*q)[3];
      if (const Shape* k = shape("k_question", 5)) e.keys = (*k)[2], e.kv_heads = (*k)[3];
      if (const Shape* g = shape("q_general", 4)) e.general_steps = (*g)[0];
      return;
    }
    if (const Shape* a = shape("AQ", 3)) {
      e.question_steps = (*a)[0], e.layers = (*a)[1], e.tokens = (*a)[2];
      e.head_dim = 0;
    }
    if (const Shape* a = shape("AG", 3)) e.general_steps = (*a)[0];
  }
};
ATTNBENCH_METHOD(Carve);

}  // namespace
}  // namespace attnbench
