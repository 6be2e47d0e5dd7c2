// Attention distance, and the refinement of feature maps by foreground and background prototypes with its
// text alignment loss. Card: astigmatism.
#include <algorithm>
#include <cmath>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/method.hpp"

namespace attnbench {
namespace {

using Op = PointwiseArgs::Op;

ParamSpec threshold(const char* name, const char* meaning) {
  ParamSpec s = spec::number(name, 0.75, -1.01, meaning);
  s.max = 1.01;
  return s;
}

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "astigmatism";
  m.title = "Attention distance and center-periphery refinement";
  m.paper = "Remedying Target-Domain Astigmatism for Cross-Domain Few-Shot Object Detection, CVPR 2026";
  m.arxiv = "2603.18541";
  m.family = "analysis (attention distance) and prototype-conditioned feature modulation";
  m.summary =
      "How far heads look on the token grid and how much of an object's attention stays on it; feature maps "
      "whose "
      "positions are drawn towards foreground and background prototypes; the alignment loss of background "
      "features with "
      "texts. The attention operator itself is unchanged.";
  m.formula =
      "d_head = (1/N) sum_ij A_ij ||p_i - p_j||;  groups: mass on background, own object, itself, other "
      "objects\n"
      "sim = cos(F[x], P_fg[c]);  w = softmax_c(sim / temperature);  M_fg = max_c sim > tau_fg;  M_bg = "
      "cos(F[x], P_bg) > "
      "tau_bg\n"
      "F_enh = M_fg (F + gamma_fg sum_c w P_fg[c]) + M_bg (F + gamma_bg P_bg)\n"
      "S = V T^T of normalised projections;  loss = ln sum_ij exp(S_ij / tau) - ln sum_i exp(S_ii / tau)";
  m.cost =
      "A: 2 H N^2 for the distance, 8 H N^2 for the groups. B: 4 N C K + about 20 N C a scale. C: 2 n (C + "
      "Ct) E + 2 n^2 "
      "E.";
  ParamSpec scales =
      spec::param("scales", ParamSpec::Type::list,
                  Value(Value::List{Value::List{100, 134}, Value::List{50, 67}, Value::List{25, 34}}),
                  "[h, w] of each feature map (chosen: 800 x 1066 pixels at strides 8, 16, 32)");
  scales.nested = true;
  scales.min = 1;
  m.params = {spec::integer("channels", 256, 1, "C", "channels"),
              spec::integer("num_classes", 20, 1, "K (chosen)"),
              scales,
              threshold("tau_fg", "foreground mask; -1.01: everything, 1.01: nothing"),
              threshold("tau_bg", "background mask"),
              spec::number("gamma_fg", 1.0, 0, "weight of the mixed foreground prototypes"),
              spec::number("gamma_bg", 0.5, 0, "weight of the background prototype"),
              spec::number("temperature", 1.0, 0, "of the softmax over classes, above 0"),
              spec::choice("unmasked", {"zero", "pass"},
                           "positions in neither mask: 0 (literal), or F (chosen extra)"),
              spec::number("tsa_temperature", 0.07, 0, "tau of the loss, above 0 (chosen)"),
              spec::integer("tsa_dim", 256, 1, "E (chosen)"),
              spec::integer("num_background_texts", 200, 1, "n, where no file gives it"),
              spec::number("lambda_bg", 1000.0, 0, "weight of the loss in training"),
              spec::choice("distance_unit", {"tokens", "pixels", "diagonal"},
                           "token steps, times patch_stride, or over the diagonal"),
              spec::integer("patch_stride", 16, 1, "pixels a token step (chosen)"),
              spec::integer("grid_h", 14, 1, "token rows of A", "grid[0]"),
              spec::integer("grid_w", 14, 1, "token columns of A", "grid[1]"),
              spec::integer("prefix_tokens", 0, 0,
                            "leading tokens of A that are no grid; dropped, rows renormalised"),
              spec::integer("support_per_class", 5, 1, "shots of the few-shot setting (1, 5, 10)")};
  m.kinds = {ProblemKind::image};
  m.figures = {{"average mAP 1/5/10-shot, six data sets", "GLIP + Swin-T", "GLIP 18.98 / 29.36 / 33.93",
                "23.81 / 33.73 / 39.17", "main table, by public notes"},
               {"ablation ArTaxOr", "+ NCM, + PPR, + TSA", "48.11", "49.95, 52.68, 54.98", "ablation table"},
               {"attention-distance reduction", "full method against pretrained",
                "plain fine-tuning 0.25 to 1.30 %", "0.47 to 1.72 %", "analysis"},
               {"background texts", "200", "", "+1.39 AP, +84 MB", "sweep"}};
  m.notes = {
      "No official code was public; thresholds, gammas and temperature are those of a public "
      "re-implementation.",
      "A2 is the mass on the own object's other patches, A3 on the patch itself (chosen); means over "
      "foreground queries, "
      "0 where there are none.",
      "Rows are renormalised only where prefix tokens are dropped.",
      "A class without a position is a zero prototype and excluded: its sim and w are 0 and it cannot raise "
      "the mask "
      "(chosen). A zero row of given prototypes means the same.",
      "Prototypes are inputs P_fg, P_bg, or means over support maps inside boxes, whose centres must lie "
      "strictly inside; "
      "then they are outputs. Boxes and the instance mask are annotations: prepare() turns them into "
      "weights.",
      "cos has eps 1e-8 on each norm. gammas are plain numbers. Everything is computed in f32 and stored "
      "once.",
      "A file may hold only some of the parts: A with instance_mask, the maps with prototypes, Vb with Tb."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 2;
  m.example.channels = 12;
  m.example.heads = 3;
  m.example.grid = {7, 9};
  return m;
}

const MethodInfo& astigmatism_info() {
  static const MethodInfo info = describe();
  return info;
}

/// Which tensors there are, and the extents that only they know.
struct Parts {
  bool attention = true, groups = true, refine = true, align = true, support = false;
  int64_t texts = 0, text_width = 0, images = 0, boxes = 0;
};

void point(Context& ctx, Op op, const Tensor& a, const Tensor& b, const Tensor& y, float alpha = 1.0f,
           float beta = 0.0f) {
  PointwiseArgs p;
  p.op = op;
  p.a = a;
  p.b = b;
  p.y = y;
  p.alpha = alpha;
  p.beta = beta;
  pointwise(ctx, p);
}

class AstigmatismInstance final : public Instance {
 public:
  struct Scale {
    int64_t h = 0, w = 0;
    int64_t positions() const { return h * w; }
  };

  AstigmatismInstance(Context& ctx, const Problem& problem, const Params& p, const Parts& parts,
                      std::vector<Scale> scales)
      : p_(p),
        parts_(parts),
        scales_(std::move(scales)),
        dtype_(problem.dtype),
        batch_(problem.batch),
        heads_(problem.heads),
        c_(p.integer("channels")),
        k_(p.integer("num_classes")),
        gh_(p.integer("grid_h")),
        gw_(p.integer("grid_w")),
        prefix_(p.integer("prefix_tokens")),
        e_(p.integer("tsa_dim")) {
    const int64_t n = gh_ * gw_, side = n + prefix_, s = static_cast<int64_t>(scales_.size());
    const auto in = [&](const std::string& name, const Shape& shape, const Init& init, const char* meaning,
                        DType t, bool optional = false) {
      input_specs_.push_back({name, shape, t, init, optional, meaning});
    };
    const auto made = [](std::function<double(int64_t)> f) {
      Init i = Init::constant(0);
      i.kind = Init::Kind::values;
      i.value = std::move(f);
      return i;
    };
    const auto out = [&](const std::string& name, const Shape& shape, DType t = DType::f32) {
      out_[name] = ctx.allocate(t, shape, MemoryClass::output);
    };
    const uint64_t seed = problem.seed;
    if (parts_.attention) {
      in("A", {heads_, side, side}, made([=](int64_t i) {
           return (0.5 + random_uniform(seed, stream_of("A"), static_cast<uint64_t>(i))) /
                  static_cast<double>(side);
         }),
         "attention of one layer [H, p + N, p + N]", dtype_);
      out("d_head", {heads_});
      out("d_layer", {1});
    }
    if (parts_.groups) {
      // Two rectangles of objects on background.
      in("instance_mask", {gh_, gw_}, made([h = gh_, w = gw_](int64_t i) {
           const int64_t y = i / w, x = i % w;
           return y >= h / 5 && y < h / 2 && x >= w / 5 && x < w / 2 ? 1.0
                  : 3 * y >= 2 * h && 3 * x >= 2 * w                 ? 2.0
                                                                     : 0.0;
         }),
         "instance of each token, 0 = background [gh, gw]", DType::i32);
      out("groups", {heads_, 4});
    }
    if (parts_.refine) {
      for (int64_t i = 0; i < s; ++i) {
        const Scale& z = scales_[static_cast<size_t>(i)];
        const std::string tag = "_" + std::to_string(i);
        // A position leans towards a class, the background, or nothing.
        in("F" + tag, {batch_, c_, z.h, z.w},
           made([=, c = c_, k = k_, stream = stream_of("F" + tag)](int64_t at) {
             const int64_t pixels = z.h * z.w, channel = at / pixels % c;
             const int64_t position = at / pixels / c * pixels + at % pixels;
             const uint64_t kind = random_bits(seed, stream + 1, static_cast<uint64_t>(position)) % 4;
             const auto cls = static_cast<int64_t>(
                 random_bits(seed, stream + 2, static_cast<uint64_t>(position)) % static_cast<uint64_t>(k));
             const double noise = random_normal(seed, stream, static_cast<uint64_t>(at));
             if (kind == 0) return noise;
             const double base =
                 kind == 1 ? random_normal(seed, stream_of("P_bg"), static_cast<uint64_t>(i * c + channel))
                           : random_normal(seed, stream_of("P_fg"),
                                           static_cast<uint64_t>((cls * s + i) * c + channel));
             return base + 0.4 * noise;
           }),
           "feature map of one scale [B, C, Hs, Ws]", dtype_);
        const Shape positions{batch_, z.h, z.w}, classes{batch_, z.h, z.w, k_};
        out_["F_enh" + tag] = ctx.allocate(dtype_, {batch_, c_, z.h, z.w}, MemoryClass::output);
        out("M_fg" + tag, positions, DType::i32);
        out("M_bg" + tag, positions, DType::i32);
        out("sim" + tag, classes);
        out("w" + tag, classes);
        if (parts_.support)
          in("support" + tag, {parts_.images, c_, z.h, z.w}, Init::normal(),
             "support maps [images, C, Hs, Ws]", dtype_);
      }
      if (parts_.support) {
        in("boxes", {parts_.boxes, 6}, Init::uniform(0, 1), "rows (image, class, x0, y0, x1, y1), 0..1",
           DType::f32);
        out("P_fg", {k_, s, c_});
        out("P_bg", {s, c_});
      } else {
        in("P_fg", {k_, s, c_}, Init::normal(), "foreground prototypes [K, S, C]", dtype_);
        in("P_bg", {s, c_}, Init::normal(), "background prototypes [S, C]", dtype_);
      }
    }
    if (parts_.align) {
      const int64_t t = parts_.texts, ct = parts_.text_width;
      in("Vb", {t, c_}, Init::normal(), "visual background features [n, C]", dtype_);
      in("Tb", {t, ct}, Init::normal(), "text features [n, Ct]", dtype_);
      const auto weight = [&](const char* name, const Shape& shape, int64_t fan_in, const char* meaning) {
        const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
        weight_specs_.push_back({name, shape, dtype_, Init::uniform(-bound, bound), false, meaning});
      };
      weight("Wv", {c_, e_}, c_, "projection of visual features [C, E]");
      weight("bv", {e_}, c_, "its bias");
      weight("Wt", {ct, e_}, ct, "projection of text features [Ct, E]");
      weight("bt", {e_}, ct, "its bias");
      out("tsa_S", {t, t});
      out("tsa_loss", {1});
    }
  }

  void prepare(Context& ctx) override {
    if (parts_.attention) prepare_distance(ctx);
    if (parts_.groups) prepare_groups(ctx);
    if (parts_.refine) prepare_prototypes(ctx);
    int64_t most = std::max({c_, gh_ * gw_, int64_t{1}});
    for (const Scale& s : scales_) most = std::max(most, s.positions());
    ones_ = upload(ctx, {most, 1}, std::vector<float>(static_cast<size_t>(most), 1.0f));
  }

  void run(Context& ctx) override {
    if (parts_.attention) {
      const auto stage = ctx.stage("distance");
      distance(ctx);
    }
    if (parts_.refine) {
      const Tensor fg = prototypes(ctx, "P_fg"), bg = prototypes(ctx, "P_bg");
      if (parts_.support) {
        const auto stage = ctx.stage("prototypes");
        pool_support(ctx, fg, bg);
      }
      const auto stage = ctx.stage("refine");
      for (size_t s = 0; s < scales_.size(); ++s) refine(ctx, s, fg, bg);
    }
    if (parts_.align) {
      const auto stage = ctx.stage("align");
      align(ctx);
    }
  }

  TensorMap outputs() const override { return out_; }
  ClosedForm cost() const override;

  std::optional<PairSet> pairs() const override {
    if (!parts_.attention) return std::nullopt;
    PairSet s;
    s.heads = heads_;
    s.queries = s.tokens = gh_ * gw_;
    s.grid = {gh_, gw_};
    s.row = [n = gh_ * gw_](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, n}}; };
    return s;
  }
  int64_t keys(int64_t) const override { return parts_.attention ? gh_ * gw_ : 0; }
  bool rows(Context& ctx, int64_t, int64_t h, int64_t begin, int64_t end, std::vector<float>& out) override {
    if (!parts_.attention) return false;
    const int64_t n = gh_ * gw_, side = n + prefix_;
    std::vector<char> raw(static_cast<size_t>(side) * size_of(dtype_));
    std::vector<float> row(static_cast<size_t>(side));
    out.clear();
    for (int64_t i = begin; i < end; ++i) {
      copy(ctx, input("A").select(0, h).select(0, prefix_ + i),
           Tensor::borrow(DeviceKind::cpu, dtype_, {side}, raw.data()));
      ctx.backend().synchronize();
      convert(raw.data(), dtype_, row.data(), DType::f32, side);
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += static_cast<double>(row[static_cast<size_t>(prefix_ + j)]);
      for (int64_t j = 0; j < n; ++j) {
        const double v = static_cast<double>(row[static_cast<size_t>(prefix_ + j)]);
        out.push_back(static_cast<float>(prefix_ > 0 ? v / sum : v));
      }
    }
    return true;
  }

 private:
  // cos divides by each norm of at least 1e-8. As x / sqrt(mean x^2 + eps) is sqrt(C) x / sqrt(|x|^2 + C
  // eps), eps = 1e-16 / C leaves norms above 1e-8 alone and a zero vector zero.
  float norm_eps(int64_t width) const { return static_cast<float>(1e-16 / static_cast<double>(width)); }

  Tensor in_f32(Context& ctx, const Tensor& t) const {
    if (t.dtype() == DType::f32) return t;
    const Tensor y = ctx.allocate(DType::f32, t.shape());
    cast(ctx, {t, y});
    return y;
  }
  template <class T>
  static std::vector<T> read(Context& ctx, const Tensor& t) {
    std::vector<T> v(static_cast<size_t>(t.numel()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), v.data()));
    ctx.backend().synchronize();
    return v;
  }
  static void sum_of(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& y) {
    ReduceArgs r;
    r.x = x;
    r.weight = weight;
    r.y = y;
    reduce(ctx, r);
  }

  // ---- A: distance
  // ------------------------------------------------------------------------------------------

  /// [N, N] distances in their unit, over N: sums are means over queries.
  void prepare_distance(Context& ctx) {
    const int64_t n = gh_ * gw_;
    const std::string& unit = p_.choice("distance_unit");
    const double diagonal = std::hypot(static_cast<double>(gh_ - 1), static_cast<double>(gw_ - 1));
    const double factor = unit == "pixels"     ? static_cast<double>(p_.integer("patch_stride"))
                          : unit == "diagonal" ? (diagonal > 0 ? 1 / diagonal : 0.0)
                                               : 1.0;
    std::vector<float> d(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        d[static_cast<size_t>(i * n + j)] = static_cast<float>(
            factor / static_cast<double>(n) *
            std::hypot(static_cast<double>(i / gw_ - j / gw_), static_cast<double>(i % gw_ - j % gw_)));
    distances_ = upload(ctx, {n, n}, d);
  }

  /// [N, N] for each group: 1 / (foreground queries) where the pair belongs to it.
  void prepare_groups(Context& ctx) {
    const std::vector<int32_t> mask = read<int32_t>(ctx, input("instance_mask"));
    const auto n = mask.size();
    const auto foreground =
        static_cast<float>(n - static_cast<size_t>(std::count(mask.begin(), mask.end(), 0)));
    const auto side = static_cast<int64_t>(n);
    for (int g = 0; g < 4; ++g) {
      std::vector<float> weight(n * n, 0.0f);
      for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < n && mask[i] != 0; ++j) {
          const int group = mask[j] == 0 ? 0 : mask[j] != mask[i] ? 3 : i == j ? 2 : 1;
          if (group == g) weight[i * n + j] = 1.0f / foreground;
        }
      groups_[g] = upload(ctx, {side, side}, weight);
    }
  }

  void distance(Context& ctx) {
    const int64_t n = gh_ * gw_;
    const Tensor all = in_f32(ctx, input("A"));
    for (int64_t h = 0; h < heads_; ++h) {
      Tensor a = all.select(0, h);
      if (prefix_ > 0) {
        const Tensor grid = a.slice(0, prefix_, prefix_ + n).slice(1, prefix_, prefix_ + n);
        const Tensor sums = ctx.allocate(DType::f32, {n, 1}), wide = ctx.allocate(DType::f32, {n, n});
        a = ctx.allocate(DType::f32, {n, n});
        GemmArgs g;
        g.a = grid;
        g.b = ones_.slice(0, 0, n);
        g.c = sums;
        gemm(ctx, g);
        g.a = sums;
        g.b = ones_.slice(0, 0, n).reshape({1, n});
        g.c = wide;
        gemm(ctx, g);
        point(ctx, Op::div, grid, wide, a);
      }
      sum_of(ctx, a, distances_, out_.at("d_head").slice(0, h, h + 1));
      if (parts_.groups)
        for (int64_t g = 0; g < 4; ++g)
          sum_of(ctx, a, groups_[g], out_.at("groups").select(0, h).slice(0, g, g + 1));
    }
    ReduceArgs r;
    r.op = ReduceArgs::Op::mean;
    r.x = out_.at("d_head");
    r.y = out_.at("d_layer");
    reduce(ctx, r);
  }

  // ---- B: refinement
  // ----------------------------------------------------------------------------------------

  /// Weights of support positions from the boxes, and which classes have a prototype at each scale.
  void prepare_prototypes(Context& ctx) {
    const auto s = static_cast<int64_t>(scales_.size());
    present_.assign(static_cast<size_t>(s), std::vector<char>(static_cast<size_t>(k_), 0));
    support_fg_.clear();
    support_bg_.clear();
    if (!parts_.support) {
      const Tensor p = input("P_fg");
      std::vector<char> raw(static_cast<size_t>(p.nbytes()));
      copy(ctx, p, Tensor::borrow(DeviceKind::cpu, dtype_, p.shape(), raw.data()));
      ctx.backend().synchronize();
      std::vector<float> v(static_cast<size_t>(p.numel()));
      convert(raw.data(), dtype_, v.data(), DType::f32, p.numel());
      for (int64_t k = 0; k < k_; ++k)
        for (int64_t i = 0; i < s; ++i)
          for (int64_t c = 0; c < c_; ++c)
            if (v[static_cast<size_t>((k * s + i) * c_ + c)] != 0)
              present_[static_cast<size_t>(i)][static_cast<size_t>(k)] = 1;
    } else {
      const std::vector<float> boxes = read<float>(ctx, input("boxes"));
      for (int64_t b = 0; b < parts_.boxes; ++b) {
        const float image = boxes[static_cast<size_t>(6 * b)], cls = boxes[static_cast<size_t>(6 * b + 1)];
        if (image < 0 || image >= static_cast<float>(parts_.images) || cls < 0 ||
            cls >= static_cast<float>(k_))
          throw DataError("input 'boxes' row " + std::to_string(b) + ": image " + std::to_string(image) +
                          " or class " + std::to_string(cls) + " does not exist");
      }
      for (int64_t i = 0; i < s; ++i) support_weights(ctx, boxes, i);
    }
    exclusion_.clear();
    for (int64_t i = 0; i < s; ++i) {
      std::vector<float> v;
      for (char there : present_[static_cast<size_t>(i)]) v.push_back(there ? 0.0f : -INFINITY);
      exclusion_.push_back(upload(ctx, {k_}, v));
    }
    columns_.clear();
    for (const Scale& z : scales_) {
      // Rows (tau, similarity): the larger one's place is the mask.
      const int64_t rows = batch_ * z.positions();
      for (const char* tau : {"tau_fg", "tau_bg"})
        columns_.push_back(
            upload(ctx, {rows, 2},
                   std::vector<float>(static_cast<size_t>(2 * rows), static_cast<float>(p_.number(tau)))));
    }
  }

  void support_weights(Context& ctx, const std::vector<float>& boxes, int64_t scale) {
    const Scale& z = scales_[static_cast<size_t>(scale)];
    const int64_t images = parts_.images, n = z.positions();
    std::vector<float> fg(static_cast<size_t>(images * k_ * n), 0.0f),
        bg(static_cast<size_t>(images * n), 1.0f);
    for (int64_t b = 0; b < parts_.boxes; ++b) {
      const float* box = boxes.data() + 6 * b;
      const auto image = static_cast<int64_t>(box[0]), cls = static_cast<int64_t>(box[1]);
      for (int64_t y = 0; y < z.h; ++y)
        for (int64_t x = 0; x < z.w; ++x) {
          const double cx = (static_cast<double>(x) + 0.5) / static_cast<double>(z.w),
                       cy = (static_cast<double>(y) + 0.5) / static_cast<double>(z.h);
          if (!(cx > static_cast<double>(box[2]) && cx < static_cast<double>(box[4]) &&
                cy > static_cast<double>(box[3]) && cy < static_cast<double>(box[5])))
            continue;
          fg[static_cast<size_t>((image * k_ + cls) * n + y * z.w + x)] = 1;
          bg[static_cast<size_t>(image * n + y * z.w + x)] = 0;
        }
    }
    const auto count = [](const std::vector<float>& w, int64_t begin, int64_t step, int64_t times,
                          int64_t n) {
      double sum = 0;
      for (int64_t t = 0; t < times; ++t)
        for (int64_t i = 0; i < n; ++i)
          sum += static_cast<double>(w[static_cast<size_t>(begin + t * step + i)]);
      return sum;
    };
    for (int64_t k = 0; k < k_; ++k) {
      const double all = count(fg, k * n, k_ * n, images, n);
      present_[static_cast<size_t>(scale)][static_cast<size_t>(k)] = all > 0;
      for (int64_t t = 0; t < images && all > 0; ++t)
        for (int64_t i = 0; i < n; ++i)
          fg[static_cast<size_t>((t * k_ + k) * n + i)] /= static_cast<float>(all);
    }
    const double outside = count(bg, 0, n, images, n);
    for (float& v : bg) v = outside > 0 ? v / static_cast<float>(outside) : 0.0f;
    support_fg_.push_back(upload(ctx, {images, k_, n}, fg));
    support_bg_.push_back(upload(ctx, {images, 1, n}, bg));
  }

  Tensor prototypes(Context& ctx, const char* name) const {
    return parts_.support ? out_.at(name) : in_f32(ctx, input(name));
  }

  /// Means of the support features of each class, and of what lies outside all boxes.
  void pool_support(Context& ctx, const Tensor& fg, const Tensor& bg) const {
    for (size_t s = 0; s < scales_.size(); ++s) {
      const int64_t n = scales_[s].positions(), i = static_cast<int64_t>(s);
      const Tensor maps = in_f32(ctx, input("support_" + std::to_string(s))).reshape({parts_.images, c_, n});
      for (int64_t t = 0; t < parts_.images; ++t) {
        GemmArgs g;
        g.b = maps.select(0, t);
        g.b_transposed = true;
        g.accumulate = t > 0;
        g.a = support_fg_[s].select(0, t);
        g.c = fg.select(1, i);
        gemm(ctx, g);
        g.a = support_bg_[s].select(0, t);
        g.c = bg.slice(0, i, i + 1);
        gemm(ctx, g);
      }
    }
  }

  Tensor unit_rows(Context& ctx, const Tensor& x) const {
    NormArgs n;
    n.kind = NormArgs::Kind::rms_norm;
    n.x = x;
    n.y = ctx.allocate(DType::f32, x.shape());
    n.eps = norm_eps(x.dim(-1));
    normalize(ctx, n);
    return n.y;
  }

  /// 1.0 where x > tau, else 0.0: the sign of a difference is exact, and 1e30 times the smallest one
  /// exceeds 1.
  static Tensor step(Context& ctx, const Tensor& x, double tau) {
    const Tensor y = ctx.allocate(DType::f32, x.shape());
    point(ctx, Op::affine, x, {}, y, 1.0f, -static_cast<float>(tau));
    point(ctx, Op::affine, y, {}, y, 1e30f);
    point(ctx, Op::clamp, y, {}, y, 0.0f, 1.0f);
    return y;
  }

  void mask_output(Context& ctx, const Tensor& similarity, const Tensor& columns,
                   const std::string& name) const {
    transpose_copy(ctx, {similarity, columns.select(1, 1)});
    arg_max(ctx, columns, out_.at(name).reshape({similarity.dim(0)}));
  }

  void refine(Context& ctx, size_t s, const Tensor& fg, const Tensor& bg) {
    const std::string tag = "_" + std::to_string(s);
    const int64_t n = scales_[s].positions(), rows = batch_ * n, i = static_cast<int64_t>(s);
    const Tensor f = in_f32(ctx, input("F" + tag)).reshape({batch_, c_, n});
    // Similarities want positions as rows.
    const Tensor turned = ctx.allocate(DType::f32, {batch_, n, c_});
    transpose_copy(ctx, {f.transpose(1, 2), turned});
    const Tensor unit = unit_rows(ctx, turned.reshape({rows, c_}));
    const Tensor classes = ctx.allocate(DType::f32, {k_, c_});
    transpose_copy(ctx, {fg.select(1, i), classes});
    const Tensor sim = out_.at("sim" + tag).reshape({rows, k_}), w = out_.at("w" + tag).reshape({rows, k_});
    GemmArgs g;
    g.a = unit;
    g.b = unit_rows(ctx, classes);
    g.b_transposed = true;
    g.c = sim;
    g.alpha = static_cast<float>(1.0 / static_cast<double>(c_));  // both rows have length sqrt(C)
    gemm(ctx, g);
    const Tensor best = ctx.allocate(DType::f32, {rows}), background = ctx.allocate(DType::f32, {rows});
    const bool any = std::count(present_[s].begin(), present_[s].end(), 1) > 0;
    if (any) {
      point(ctx, Op::add, sim, exclusion_[s], w);
      ReduceArgs r;
      r.op = ReduceArgs::Op::max;
      r.all = false;
      r.x = w;
      r.y = best;
      reduce(ctx, r);
      point(ctx, Op::affine, w, {}, w, static_cast<float>(1.0 / p_.number("temperature")));
      softmax(ctx, {w, w});
    } else {
      // No class at all: similarities are 0, below every threshold.
      point(ctx, Op::affine, sim, {}, w, 0.0f);
      point(ctx, Op::affine, sim.select(1, 0).strided({rows, 1}, {k_, 1}), {}, best.reshape({rows, 1}), 0.0f,
            -2.0f);
    }
    g.b = unit_rows(ctx, bg.slice(0, i, i + 1));
    g.c = background.reshape({rows, 1});
    gemm(ctx, g);
    mask_output(ctx, best, columns_[2 * s], "M_fg" + tag);
    mask_output(ctx, background, columns_[2 * s + 1], "M_bg" + tag);
    const Tensor mask_fg = step(ctx, best, p_.number("tau_fg")),
                 mask_bg = step(ctx, background, p_.number("tau_bg"));

    const Tensor enhanced = dtype_ == DType::f32 ? out_.at("F_enh" + tag).reshape({batch_, c_, n})
                                                 : ctx.allocate(DType::f32, {batch_, c_, n});
    const Tensor negative = ctx.allocate(DType::f32, {batch_, c_, n});
    transpose_copy(ctx, {f, enhanced});
    transpose_copy(ctx, {f, negative});
    Tensor neither;
    if (p_.choice("unmasked") == "pass") {
      // (1 - M_fg)(1 - M_bg)
      neither = ctx.allocate(DType::f32, {rows});
      const Tensor outside = ctx.allocate(DType::f32, {rows});
      point(ctx, Op::affine, mask_fg, {}, neither, -1.0f, 1.0f);
      point(ctx, Op::affine, mask_bg, {}, outside, -1.0f, 1.0f);
      point(ctx, Op::mul, neither, outside, neither);
    }
    for (int64_t b = 0; b < batch_; ++b) {
      const Tensor pos = enhanced.select(0, b), neg = negative.select(0, b);
      const auto of = [&](const Tensor& t) { return t.slice(0, b * n, (b + 1) * n); };
      GemmArgs mix;
      mix.a = classes;
      mix.a_transposed = true;
      mix.b = w.slice(0, b * n, (b + 1) * n);
      mix.b_transposed = true;
      mix.c = pos;
      mix.alpha = static_cast<float>(p_.number("gamma_fg"));
      mix.accumulate = true;
      gemm(ctx, mix);
      point(ctx, Op::mul, pos, of(mask_fg), pos);
      mix.a = bg.slice(0, i, i + 1);
      mix.b = ones_.slice(0, 0, n);
      mix.c = neg;
      mix.alpha = static_cast<float>(p_.number("gamma_bg"));
      gemm(ctx, mix);
      point(ctx, Op::mul, neg, of(mask_bg), neg);
      if (neither) {
        const Tensor kept = ctx.allocate(DType::f32, {c_, n});
        point(ctx, Op::mul, f.select(0, b), of(neither), kept);
        point(ctx, Op::add, neg, kept, neg);
      }
    }
    point(ctx, Op::add, enhanced, negative, enhanced);
    if (dtype_ != DType::f32) cast(ctx, {enhanced, out_.at("F_enh" + tag).reshape({batch_, c_, n})});
  }

  // ---- C: alignment
  // -----------------------------------------------------------------------------------------

  void align(Context& ctx) {
    const auto projected = [&](const char* x, const char* weight, const char* bias) {
      const Tensor a = in_f32(ctx, input(x)), y = ctx.allocate(DType::f32, {parts_.texts, e_});
      GemmArgs g;
      g.a = a;
      g.b = in_f32(ctx, this->weight(weight));
      g.bias = in_f32(ctx, this->weight(bias));
      g.c = y;
      gemm(ctx, g);
      return unit_rows(ctx, y);
    };
    const Tensor v = projected("Vb", "Wv", "bv"), t = projected("Tb", "Wt", "bt"), s = out_.at("tsa_S");
    GemmArgs g;
    g.a = v;
    g.b = t;
    g.b_transposed = true;
    g.c = s;
    g.alpha = static_cast<float>(1.0 / static_cast<double>(e_));
    gemm(ctx, g);
    // Log-sum-exp of all entries and of the diagonal, as one row of attention each: a query 1 and keys S.
    const int64_t n = parts_.texts;
    const auto log_sum = [&](int64_t keys, int64_t stride) {
      AttentionArgs a;
      a.q = ones_.slice(0, 0, 1).reshape({1, 1, 1, 1});
      a.k = a.v = s.strided({1, 1, keys, 1}, {keys * stride, keys * stride, stride, 1});
      a.o = ctx.allocate(DType::f32, {1, 1, 1, 1});
      a.lse = ctx.allocate(DType::f32, {1, 1, 1});
      a.scale = static_cast<float>(1.0 / p_.number("tsa_temperature"));
      attention(ctx, a);
      return a.lse.reshape({1});
    };
    point(ctx, Op::sub, log_sum(n * n, 1), log_sum(n, n + 1), out_.at("tsa_loss"));
  }

  Params p_;
  Parts parts_;
  std::vector<Scale> scales_;
  DType dtype_;
  int64_t batch_, heads_, c_, k_, gh_, gw_, prefix_, e_;
  TensorMap out_;
  Tensor distances_, groups_[4], ones_;
  std::vector<std::vector<char>> present_;  ///< [scale][class]
  std::vector<Tensor> exclusion_, columns_, support_fg_, support_bg_;
};

ClosedForm AstigmatismInstance::cost() const {
  const auto e = static_cast<int64_t>(size_of(dtype_));
  const bool half = dtype_ != DType::f32;
  const auto moved = [](int64_t count, int64_t from, int64_t to) {
    Cost c;
    c.bytes_read = count * from;
    c.bytes_written = count * to;
    return c;
  };
  const auto unary = [](int64_t count, int64_t second = 0, bool special = false) {
    Cost c;
    (special ? c.special : c.elementwise) = count;
    c.bytes_read = (count + second) * 4;
    c.bytes_written = count * 4;
    return c;
  };
  const auto product = [](int64_t m, int64_t k, int64_t n, bool bias = false, bool accumulate = false) {
    Cost c;
    c.matmul = 2 * m * k * n;
    c.elementwise = bias ? m * n : 0;
    c.bytes_read = (m * k + k * n + (bias ? n : 0) + (accumulate ? m * n : 0)) * 4;
    c.bytes_written = m * n * 4;
    return c;
  };
  const auto sum = [](int64_t count, bool weighted, int64_t results) {
    Cost c;
    c.elementwise = count * (weighted ? 2 : 1);
    c.bytes_read = count * (weighted ? 8 : 4);
    c.bytes_written = results * 4;
    return c;
  };
  const auto unit = [](int64_t rows, int64_t width) {
    Cost c;
    c.elementwise = 4 * rows * width;
    c.special = 2 * rows;
    c.bytes_read = c.bytes_written = rows * width * 4;
    return c;
  };
  ClosedForm f;
  if (parts_.attention) {
    const int64_t n = gh_ * gw_, side = n + prefix_;
    if (half) f.cost += moved(heads_ * side * side, e, 4);
    Cost head = sum(n * n, true, 1);
    if (prefix_ > 0) head += product(n, n, 1) + product(n, 1, n) + unary(n * n, n * n, true);
    if (parts_.groups) head += sum(n * n, true, 1) * 4;
    f.cost += head * heads_ + sum(heads_, false, 1);
  }
  if (parts_.refine) {
    const auto s = static_cast<int64_t>(scales_.size());
    if (half && !parts_.support) f.cost += moved(k_ * s * c_, e, 4) + moved(s * c_, e, 4);
    for (size_t i = 0; i < scales_.size(); ++i) {
      const int64_t n = scales_[i].positions(), rows = batch_ * n, all = rows * c_;
      if (parts_.support) {
        if (half) f.cost += moved(parts_.images * c_ * n, e, 4);
        for (int64_t t = 0; t < parts_.images; ++t)
          f.cost += product(k_, n, c_, false, t > 0) + product(1, n, c_, false, t > 0);
      }
      if (half) f.cost += moved(all, e, 4) + moved(all, 4, e);
      f.cost +=
          moved(all, 4, 4) + unit(rows, c_) + moved(k_ * c_, 4, 4) + unit(k_, c_) + product(rows, c_, k_);
      const bool any = present_.empty() || std::count(present_[i].begin(), present_[i].end(), 1) > 0;
      if (any) {
        Cost soft;
        soft.special = rows * k_;
        soft.elementwise = 4 * rows * k_;
        soft.bytes_read = soft.bytes_written = rows * k_ * 4;
        f.cost += unary(rows * k_, k_) + sum(rows * k_, false, rows) + unary(rows * k_) + soft;
      } else {
        f.cost += unary(rows * k_) + unary(rows);
      }
      f.cost += unit(1, c_) + product(rows, c_, 1);
      Cost mask = moved(rows, 4, 4);
      mask.elementwise += 2 * rows;
      mask.bytes_read += 2 * rows * 4;
      mask.bytes_written += rows * 4;
      f.cost += (mask + unary(rows) * 3) * 2 + moved(all, 4, 4) * 2;
      const bool pass = p_.choice("unmasked") == "pass";
      if (pass) f.cost += unary(rows) * 2 + unary(rows, rows);
      Cost one = product(c_, k_, n, false, true) + unary(c_ * n, n) + product(c_, 1, n, false, true) +
                 unary(c_ * n, n);
      if (pass) one += unary(c_ * n, n) + unary(c_ * n, c_ * n);
      f.cost += one * batch_ + unary(all, all);
    }
  }
  if (parts_.align) {
    const int64_t n = parts_.texts, ct = parts_.text_width;
    if (half) f.cost += moved(n * (c_ + ct) + (c_ + ct) * e_ + 2 * e_, e, 4);
    f.cost += product(n, c_, e_, true) + product(n, ct, e_, true) + unit(n, e_) * 2 + product(n, e_, n);
    for (const int64_t keys : {n * n, n}) {
      Cost row;
      row.matmul = 4 * keys;
      row.special = keys;
      row.elementwise = 4 * keys;
      row.bytes_read = (1 + 2 * keys) * 4;
      row.bytes_written = 2 * 4;
      f.cost += row;
    }
    f.cost += unary(1, 1);
    f.parameters = (c_ + ct + 2) * e_;
  }
  return f;
}

class Astigmatism final : public Method {
 public:
  const MethodInfo& info() const override { return astigmatism_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("astigmatism has no causal mode: feature maps have no order");
    for (const char* name : {"temperature", "tsa_temperature"})
      if (!(p.number(name) > 0))
        throw UsageError(std::string("astigmatism.") + name + ": a value above 0 is wanted");
    std::vector<AstigmatismInstance::Scale> scales;
    for (const Value& v : p.value("scales").as_list()) {
      if (!v.is_list() || v.as_list().size() != 2 || !v.as_list()[0].is_int() || !v.as_list()[1].is_int())
        throw UsageError("astigmatism.scales: [h, w] is wanted, not " + v.str());
      scales.push_back({v.as_list()[0].as_int(), v.as_list()[1].as_int()});
    }
    Parts parts;
    parts.texts = p.integer("num_background_texts");
    parts.text_width = p.integer("channels");
    if (!problem.inputs.file.empty()) {
      const auto shapes = safetensors_shapes(problem.inputs.file);
      const auto rank = [&](const char* name, int r) {
        const auto it = shapes.find(name);
        return it != shapes.end() && it->second.rank() == r ? &it->second : nullptr;
      };
      parts.attention = rank("A", 3) != nullptr;
      parts.groups = parts.attention && rank("instance_mask", 2) != nullptr;
      parts.refine = rank("F_0", 4) != nullptr;
      parts.align = rank("Vb", 2) != nullptr;
      if (const Shape* s = rank("Vb", 2)) parts.texts = (*s)[0];
      if (const Shape* s = rank("Tb", 2)) parts.text_width = (*s)[1];
      if (const Shape* s = rank("support_0", 4)) parts.support = true, parts.images = (*s)[0];
      if (const Shape* s = rank("boxes", 2)) parts.boxes = (*s)[0];
      if (!parts.attention && !parts.refine && !parts.align)
        throw DataError(problem.inputs.file + ": holds neither A nor F_0 nor Vb");
    }
    if (parts.refine && scales.empty()) throw UsageError("astigmatism.scales: no scale is given");
    if (parts.attention) require_extent(info(), problem.heads, "heads");
    return std::make_unique<AstigmatismInstance>(ctx, problem, p, parts, std::move(scales));
  }
};
ATTNBENCH_METHOD(Astigmatism);

}  // namespace
}  // namespace attnbench
