// FICGen: layout attention with frequency tokens, and a fusion of its branches in space and spectrum.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numbers>

#include "kernels/attention/attention.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/signal_parts.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one
using Op = PointwiseArgs::Op;

constexpr float kEps = 1e-5f, kFusionEps = 1e-6f, kNormEps = 1e-12f, kGateEps = 1e-8f;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "ficgen";
  m.title = "FICGen: visual-frequency enhanced attention and adaptive spatial-frequency aggregation";
  m.paper =
      "FICGen: Frequency-Inspired Contextual Disentanglement for Layout-driven Degraded Image Generation, "
      "ICCV 2025";
  m.arxiv = "2509.01107";
  m.family = "model-block";
  m.summary =
      "In place of one text cross-attention: every instance attends to its phrase, its high-frequency tokens "
      "and its box, "
      "the background to low-frequency tokens, all tokens to those of shared regions; the branches are then "
      "weighted per "
      "position and channel by convolutional gates, self-attention and attention between the spectra of "
      "channels.";
  m.formula =
      "f_n = (base_n + Attn_fg(LN z, [e_n; qhi_n; box_n])) m_n;  f_0 = (base_0 + Attn_bg(LN z, [e_0; qlo])) "
      "s\n"
      "f_L = Attn(z, z) where sum_p G_p(i) G_p(j) > 0\n"
      "u = conv1([f; G]);  scale = CBAM(u) + pw(dw([SAM(n); FAM(n)])), n = LN(u);  out = sum_p "
      "softmax_p(scale) f_p\n"
      "FAM: F = FFT2(n), A = softmax(Re t F^ F^T) + i softmax(Im t F^ F^T), [|IFFT(A F)|; |IFFT2(F gate(Re "
      "F))|]\n"
      "proto: out = g sigmoid(conv f) a, g = Re IFFT2(M FFT2 f), a = sqrt(ca(mean Re)^2 + ca(mean Im)^2 + "
      "1e-8)";
  m.cost =
      "MACs, n = H W, P = N + 3: VFE N (2 C^2 n + 2 X C Lf + 2 n Lf C) + 2 C^2 n + 2 X C Lb + 2 n Lb C + 4 "
      "C^2 n + 2 n^2 C; "
      "ASFA P [(C + 1) C n + 4 C^2 n + 2 n^2 C + 8 n C^2 / heads + C^2 n / 8 + 2 C^2 n + (18 C + 2 C^2) n + "
      "C^2 / 4 + 98 "
      "n]. At C = 1280, 16 x 16, N = 6: 8.02 + 39.79 G. 32,965,034 parameters a block.";
  m.params = {
      spec::choice("component", {"block", "proto", "resampler", "vfe", "asfa"}, "what to build"),
      spec::integer("grid_h", Value(), 1, "H; null: problem.grid, or 16"),
      spec::integer("grid_w", Value(), 1, "W; null: problem.grid, or 16"),
      spec::integer("dim", Value(), 16, "C, a multiple of heads and of 16; null: problem.channels, or 1280"),
      spec::integer("context_dim", 768, 1, "X (SD 1.5; 1024 for SD 2.1)"),
      spec::integer("heads", Value(), 1, "heads of VFE, SAM and FAM; null: problem.heads, or 8"),
      spec::integer("num_instances", 6, 0, "N"),
      spec::integer("hf_queries", 16, 1, "Qh, also of the resampler"),
      spec::integer("lf_queries", 8, 0, "Ql"),
      spec::number("freq_threshold", 0.35, 0, 0.5,
                   "half width of the box mask as a share of the side, above 0"),
      spec::boolean("high_pass", true, "proto: keep what is outside the box"),
      spec::boolean("roll_all_axes", true,
                    "proto: shifts roll batch and channels too, as the reference's; false: the grid only"),
      spec::integer("proto_channels", Value(), 16, "c, a multiple of 16; null: problem.channels, or 128"),
      spec::integer("proto_grid", Value(), 2, "h = w of proto; null: problem.grid, or 32"),
      spec::integer("resampler_dim", 1280, 1, "width of the resampler, a multiple of dim_head"),
      spec::integer("depth", 4, 1, "layers of the resampler"),
      spec::integer("dim_head", 64, 1, "of the resampler"),
      spec::integer("ff_mult", 4, 1, "of the resampler"),
      spec::integer("feat_dim", 1024, 1, "of the resampler"),
      spec::integer("feat_tokens", 256, 1, "of the resampler"),
      spec::integer("fourier_freqs", 8, 1, "of the box embedding, powers of 100"),
      spec::integer("box_hidden", 512, 1, "hidden width of the box network"),
      spec::integer("image_h", 512, 8, "height of the instance masks, a multiple of 8 grid_h"),
      spec::integer("image_w", 512, 8, "width of the instance masks, a multiple of 8 grid_w"),
      spec::choice("fam_ifft", {"reference", "spatial"},
                   "FAM's inverse transform over (channel in head, flattened space), or over (H, W)"),
      spec::list("boxes", "tiles", "quadrilaterals [x1..x4, y1..y4] of generated inputs, or N tiles")};
  for (ParamSpec& p : m.params)
    if (p.name == "boxes") p.choices = {"tiles"}, p.nested = true, p.min = 0, p.max = 1;
  m.kinds = {ProblemKind::image};
  m.dtypes = {DType::f32};
  m.figures = {{"mAP / FID", "ExDARK, SD 1.5, 512 x 512", "CC-Diff 35.1 / 44.26, MIGC 32.4 / 45.76",
                "42.5 / 42.40", "main table"},
               {"mAP / FID", "RUOD", "CC-Diff 29.7 / 25.21", "37.0 / 25.10", "main table"},
               {"mAP / FID", "DIOR-H", "CC-Diff 23.6 / 30.88", "27.6 / 31.25", "main table"},
               {"YOLO mAP", "DIOR-H", "AeroGen 29.8, CC-Diff 26.4", "31.2", "main table"},
               {"mAP, Deformable-DETR", "ExDARK / RUOD", "CC-Diff 31.3 / 29.7", "38.5 / 37.1", "main table"}};
  m.notes = {"No latency, FLOP or parameter figure was published: counts are derived.",
             "The null phase is dropped before the softmax and touches no other phase: it is not computed "
             "(published MACs count "
             "it).",
             "n is real, so F F^T without conjugate is real: softmax(Im A) is 1 / (C / heads), and Re A is "
             "the product of n with "
             "its mirror image. Queries of the instance branch are the same for all instances and made once.",
             "proto: means of the masked spectrum are inner products of f with the mask's transform; a mask "
             "that is not symmetric "
             "about DC is split in its even part (g, mean Re) and its odd part (mean Im).",
             "A problem of batch B > 1 has every input and output with a leading axis B (chosen; the "
             "reference has 1).",
             "num_instances 6 and the tiles of generated layouts are chosen. Without instances their inputs "
             "are left out.",
             "Batch norm in evaluation mode. lf_queries 0 leaves the background its phrase alone.",
             "f32 only: spectra are sums over the grid and the reference takes them in f32."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 1;
  m.example.grid = {6, 4};
  m.example.channels = 32;
  m.example.heads = 4;
  m.example_params = {{"context_dim", 12}, {"num_instances", 3}, {"hf_queries", 3}, {"lf_queries", 2},
                      {"box_hidden", 16},  {"image_h", 96},      {"image_w", 96}};
  return m;
}

const MethodInfo& ficgen_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Sizes {
  std::string component;
  int64_t batch, h, w, c, x, heads, instances, qh, ql, freqs, hidden, ih, iw;
  int64_t n() const { return h * w; }
  int64_t phases() const { return instances + 2; }
};

/// A reduction of n elements to m, `each` operations an element, `roots` of them.
Cost reduce_cost(int64_t n, int64_t m, int64_t each = 1, int64_t roots = 0) {
  Cost c = moved(4 * n, 4 * m);
  c.elementwise = each * n, c.special = roots;
  return c;
}
Cost plain_norm_cost(int64_t rows, int64_t c) {  // without gain and offset
  Cost f = copied(rows * c);
  f.elementwise = 5 * rows * c, f.special = 2 * rows;
  return f;
}

void reduced(Context& ctx, ReduceAxisArgs::Op op, const Tensor& x, const Tensor& y, int axis) {
  ReduceAxisArgs a;
  a.op = op, a.x = x, a.y = y, a.axis = axis;
  reduce_axis(ctx, a);
}

/// What the three kinds of instances share: weights by name and calls with them.
class Parts : public Instance {
 public:
  TensorMap outputs() const override { return outputs_; }

 protected:
  void spec(const std::string& name, const Shape& shape, const Init& init) {
    weight_specs_.push_back({name, shape, DType::f32, init, false, ""});
  }
  void linear_spec(const std::string& name, const Shape& shape, bool bias) {
    const double bound = 1 / std::sqrt(static_cast<double>(shape.numel() / shape[0]));
    spec(name + ".weight", shape, Init::uniform(-bound, bound));
    if (bias) spec(name + ".bias", {shape[0]}, Init::uniform(-bound, bound));
  }
  void norm_spec(const std::string& name, int64_t c) {
    spec(name + ".weight", {c}, Init::constant(1));
    spec(name + ".bias", {c}, Init::constant(0));
  }
  void input_spec(const std::string& name, const Shape& shape, const Init& init, const char* meaning) {
    input_specs_.push_back({name, shape, DType::f32, init, false, meaning});
  }
  void output(Context& ctx, const std::string& name, const Shape& shape) {
    outputs_[name] = ctx.allocate(DType::f32, shape, MemoryClass::output);
  }
  static Tensor make(Context& ctx, const Shape& shape) { return ctx.allocate(DType::f32, shape); }
  Tensor matrix(const std::string& name) const {
    const Tensor& w = weight(name + ".weight");
    return w.rank() == 2 ? w : w.reshape({w.dim(0), w.dim(1)});
  }
  Tensor bias(const std::string& name) const {
    return has_weight(name + ".bias") ? weight(name + ".bias") : Tensor();
  }
  /// y = act(x W^T + b) over rows.
  void project(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y,
               Activation activation = Activation::none, bool accumulate = false) const {
    product(ctx, x, matrix(name), y, true, bias(name), activation, accumulate);
  }
  void layer_norm(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y) const {
    NormArgs a;
    a.x = x, a.y = y, a.gain = weight(name + ".weight"), a.offset = weight(name + ".bias"), a.eps = kEps;
    normalize(ctx, a);
  }
  int64_t parameters() const {
    int64_t n = 0;
    for (const TensorSpec& w : weight_specs_)
      if (!w.name.ends_with("running_mean") && !w.name.ends_with("running_var")) n += w.shape.numel();
    return n;
  }
  TensorMap outputs_;
};

/// Part `part` of rows [batch * n, parts * C] as [batch, heads, n, D]; `shared` repeats one batch.
Tensor heads_of(const Tensor& rows, int64_t batch, int64_t n, int64_t heads, int64_t d, int64_t part,
                int64_t parts, bool shared = false) {
  const int64_t c = heads * d;
  return rows.strided({batch, heads, n, d}, {shared ? 0 : n * parts * c, d, parts * c, 1}, part * c);
}
float scale_of(int64_t d) { return static_cast<float>(1 / std::sqrt(static_cast<double>(d))); }

// ---- block, vfe, asfa
// ----------------------------------------------------------------------------------------

class BlockInstance final : public Parts {
 public:
  BlockInstance(Context& ctx, const Sizes& s, const Params& p)
      : s_(s),
        d_(s.c / s.heads),
        vfe_(s.component != "asfa"),
        asfa_(s.component != "vfe"),
        spatial_(p.choice("fam_ifft") == "spatial") {
    const int64_t n = s_.n(), c = s_.c, x = s_.x, i = s_.instances;
    if (vfe_) {
      input_spec("z", lead({n, c}), Init::normal(), "latent tokens [HW, C]");
      input_spec("base", lead({1 + i, n, c}), Init::normal(), "cross-attention by phrase [1 + N, HW, C]");
      input_spec("e", lead({1 + i, 1, x}), Init::normal(), "phrase embeddings [1 + N, 1, X]");
      if (s_.ql > 0)
        input_spec("qlo", lead({1, s_.ql, x}), Init::normal(), "low-frequency tokens [1, Ql, X]");
      if (i > 0) {
        const std::vector<double> boxes = layout(p.value("boxes"), i);
        input_spec("qhi", lead({i, s_.qh, x}), Init::normal(), "high-frequency tokens [N, Qh, X]");
        Init corners;
        corners.kind = Init::Kind::values;
        corners.value = [boxes](int64_t at) { return boxes[static_cast<size_t>(at) % boxes.size()]; };
        input_spec("box", lead({i, 8}), corners, "quadrilaterals [N, 8]");
        Init inside;
        inside.kind = Init::Kind::values;
        const int64_t h = s_.ih, w = s_.iw;
        inside.value = [boxes, h, w, i](int64_t at) {
          return contains(&boxes[static_cast<size_t>(at / (h * w) % i * 8)],
                          (static_cast<double>(at % w) + 0.5) / static_cast<double>(w),
                          (static_cast<double>(at / w % h) + 0.5) / static_cast<double>(h))
                     ? 1.0
                     : 0.0;
        };
        input_spec("instance_masks", lead({i, h, w}), inside, "0/1 masks [N, image_h, image_w]");
      }
      vfe_specs();
      if (i > 0) output(ctx, "box_token", lead({i, 1, x}));
      output(ctx, "G", lead({1 + i, s_.h, s_.w}));
      output(ctx, "phases", lead({i + 2, n, c}));
    } else {
      input_spec("phases", lead({i + 2, n, c}), Init::normal(), "branches [N + 2, HW, C]");
      input_spec("G", lead({1 + i, s_.h, s_.w}), Init::uniform(0, 1), "masks [N + 1, H, W]");
    }
    if (!asfa_) return;
    asfa_specs();
    output(ctx, "scale", lead({i + 2, n, c}));
    output(ctx, "out", lead({n, c}));
  }

  void prepare(Context& ctx) override {
    const int64_t n = s_.n();
    ones_ = upload(ctx, DType::f32, {n}, std::vector<double>(static_cast<size_t>(n), 1.0));
    if (vfe_ && s_.instances > 0) {
      std::vector<double> f;
      for (int64_t k = 0; k < s_.freqs; ++k)
        f.push_back(std::pow(100.0, static_cast<double>(k) / static_cast<double>(s_.freqs)));
      frequencies_ = upload(ctx, DType::f32, {1, s_.freqs, 1}, f);
    }
    if (!asfa_) return;
    std::vector<int64_t> mirror;
    for (int64_t y = 0; y < s_.h; ++y)
      for (int64_t x = 0; x < s_.w; ++x) mirror.push_back((s_.h - y) % s_.h * s_.w + (s_.w - x) % s_.w);
    mirror_ = upload_index(ctx, mirror);
    if (spatial_) return;
    const int64_t all = s_.phases() * s_.c * n;
    zeros_ = upload(ctx, DType::f32, {all}, std::vector<double>(static_cast<size_t>(all), 0.0));
    turn_ = upload(ctx, DType::f32, {1, 1, 1, 2}, std::vector<double>{0.0, 1.0});
  }

  void run(Context& ctx) override {
    for (int64_t b = 0; b < s_.batch; ++b) {
      const int64_t n = s_.n();
      const Tensor masks = make(ctx, {s_.phases(), n});
      transpose_copy(ctx, {ones_, masks.select(0, s_.instances + 1)});
      Tensor phases;
      if (vfe_) {
        phases = of(outputs_.at("phases"), b);
        branches(ctx, b, masks, phases);
      } else {
        phases = of(input("phases"), b);
        transpose_copy(
            ctx, {of(input("G"), b).reshape({1 + s_.instances, n}), masks.slice(0, 0, 1 + s_.instances)});
      }
      if (asfa_) aggregate(ctx, masks, phases, of(outputs_.at("scale"), b), of(outputs_.at("out"), b));
    }
  }

  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t n = s_.n(), c = s_.c, x = s_.x, i = s_.instances, lf = s_.qh + 2, lb = s_.ql + 1;
    f.parameters = parameters();
    f.cost = copied(n);
    if (vfe_) {
      f.cost += branches_cost();
      f.published_macs += i * (2 * c * c * n + 2 * x * c * lf + 2 * n * lf * c) + 2 * c * c * n +
                          2 * x * c * lb + 2 * n * lb * c + 4 * c * c * n + 2 * n * n * c;
    } else {
      f.cost += copied((1 + i) * n);
    }
    if (asfa_) {
      f.cost += aggregate_cost();
      f.published_macs += (i + 3) * ((c + 1) * c * n + 4 * c * c * n + 2 * n * n * c +
                                     8 * n * c * c / s_.heads + 2 * c * (c / 16) * n + 2 * c * c * n +
                                     (18 * c + 2 * c * c) * n + 4 * c * (c / 16) + 98 * n);
    }
    f.cost = f.cost * s_.batch;
    f.published_macs_note = "multiply-adds without transforms, the null phase counted";
    return f;
  }

 private:
  Shape lead(const Shape& shape) const {
    if (s_.batch == 1) return shape;
    std::vector<int64_t> dims{s_.batch};
    dims.insert(dims.end(), shape.begin(), shape.end());
    return Shape(std::span<const int64_t>(dims));
  }
  Tensor of(const Tensor& t, int64_t b) const { return s_.batch == 1 ? t : t.select(0, b); }

  /// N quadrilaterals: those given, or cells of the smallest square grid that holds them.
  static std::vector<double> layout(const Value& boxes, int64_t count) {
    std::vector<double> v;
    if (boxes.is_list()) {
      for (const Value& box : boxes.as_list())
        for (const Value& corner : box.as_list()) v.push_back(corner.as_double());
      return v;
    }
    int64_t side = 1;
    while (side * side < count) ++side;
    for (int64_t i = 0; i < count; ++i) {
      const auto at = [&](int64_t k) { return static_cast<double>(k) / static_cast<double>(side); };
      const double left = at(i % side), right = at(i % side + 1), top = at(i / side),
                   bottom = at(i / side + 1);
      for (double corner : {left, right, right, left, top, top, bottom, bottom}) v.push_back(corner);
    }
    return v;
  }
  /// By crossings of a ray to the right.
  static bool contains(const double* box, double x, double y) {
    bool in = false;
    for (int i = 0, j = 3; i < 4; j = i++) {
      const double xi = box[i], yi = box[4 + i], xj = box[j], yj = box[4 + j];
      if ((yi > y) != (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) in = !in;
    }
    return in;
  }

  void vfe_specs() {
    const int64_t c = s_.c, x = s_.x;
    const auto attention = [&](const std::string& at, int64_t keys) {
      linear_spec(at + ".q", {c, c}, false);
      linear_spec(at + ".k", {c, keys}, false);
      linear_spec(at + ".v", {c, keys}, false);
      linear_spec(at + ".out", {c, c}, true);
    };
    attention("vfe.fg", x);
    attention("vfe.bg", x);
    attention("vfe.layout", c);
    norm_spec("vfe.fg.ln", c);
    norm_spec("vfe.bg.ln", c);
    linear_spec("box.fc1", {s_.hidden, 16 * s_.freqs}, true);
    linear_spec("box.fc2", {s_.hidden, s_.hidden}, true);
    linear_spec("box.fc3", {x, s_.hidden}, true);
  }
  void asfa_specs() {
    const int64_t c = s_.c, r = c / 16;
    linear_spec("asfa.conv1", {c, c + 1, 1, 1}, true);
    linear_spec("asfa.cbam.fc1", {r, c}, true);
    linear_spec("asfa.cbam.fc2", {c, r}, true);
    linear_spec("asfa.cbam.conv7", {1, 2, 7, 7}, false);
    linear_spec("asfa.sam.qkv", {3 * c, c}, true);
    linear_spec("asfa.sam.out", {c, c}, true);
    spec("asfa.fam.temperature", {s_.heads, 1, 1}, Init::constant(1));
    linear_spec("asfa.fam.gate1", {r, c, 1, 1}, true);
    norm_spec("asfa.fam.bn", r);
    spec("asfa.fam.bn.running_mean", {r}, Init::constant(0));
    spec("asfa.fam.bn.running_var", {r}, Init::constant(1));
    linear_spec("asfa.fam.gate2", {c, r, 1, 1}, true);
    linear_spec("asfa.fam.out", {c, 2 * c, 1, 1}, true);
    linear_spec("asfa.gate_dw", {2 * c, 1, 3, 3}, true);
    linear_spec("asfa.gate_pw", {c, 2 * c, 1, 1}, true);
  }

  // ---- VFE

  void branches(Context& ctx, int64_t b, const Tensor& masks, const Tensor& phases) const {
    const int64_t n = s_.n(), c = s_.c, x = s_.x, i = s_.instances;
    const Tensor z = of(input("z"), b), base = of(input("base"), b), e = of(input("e"), b);
    Tensor coherence;
    {
      const auto stage = ctx.stage("masks");
      if (i > 0) {
        const Tensor instances = of(input("instance_masks"), b),
                     image = instances.reshape({i, 1, s_.ih, s_.iw}), rest = make(ctx, {1, 1, s_.ih, s_.iw}),
                     eighth = make(ctx, {1 + i, 1, s_.ih / 8, s_.iw / 8});
        reduced(ctx, ReduceAxisArgs::Op::max, instances, rest.reshape({s_.ih, s_.iw}), 0);
        call(ctx, Op::affine, rest, {}, rest, -1.0f, 1.0f);
        resize(ctx, {ResampleArgs::Kind::bilinear, rest, eighth.slice(0, 0, 1), false});
        resize(ctx, {ResampleArgs::Kind::bilinear, image, eighth.slice(0, 1, 1 + i), false});
        resize(ctx, {ResampleArgs::Kind::bilinear, eighth,
                     masks.slice(0, 0, 1 + i).reshape({1 + i, 1, s_.h, s_.w}), false});
        coherence = make(ctx, {i, 1, s_.h, s_.w});
        Pool2dArgs pool;
        pool.kind = Pool2dArgs::Kind::average;
        pool.x = image, pool.y = coherence, pool.channels_last = false;
        pool.kernel = pool.stride = {s_.ih / s_.h, s_.iw / s_.w};
        pool2d(ctx, pool);
      } else {
        transpose_copy(ctx, {ones_, masks.select(0, 0)});
      }
      transpose_copy(ctx, {masks.slice(0, 0, 1 + i), of(outputs_.at("G"), b).reshape({1 + i, n})});
    }
    if (i > 0) {
      const auto stage = ctx.stage("instances");
      const Tensor token = of(outputs_.at("box_token"), b).reshape({i, x}),
                   context = make(ctx, {i, s_.qh + 2, x});
      embed_boxes(ctx, of(input("box"), b), token);
      transpose_copy(ctx, {e.slice(0, 1, 1 + i), context.slice(1, 0, 1)});
      transpose_copy(ctx, {of(input("qhi"), b), context.slice(1, 1, s_.qh + 1)});
      transpose_copy(ctx, {token.reshape({i, 1, x}), context.slice(1, s_.qh + 1, s_.qh + 2)});
      const Tensor y = phases.slice(0, 1, 1 + i);
      cross(ctx, "vfe.fg", z, context, y);
      call(ctx, Op::add, y, base.slice(0, 1, 1 + i), y);
      call(ctx, Op::mul, y, coherence.reshape({i, n, 1}), y);
    }
    {
      const auto stage = ctx.stage("background");
      const Tensor context = make(ctx, {1, s_.ql + 1, x}), y = phases.slice(0, 0, 1);
      transpose_copy(ctx, {e.slice(0, 0, 1), context.slice(1, 0, 1)});
      if (s_.ql > 0) transpose_copy(ctx, {of(input("qlo"), b), context.slice(1, 1, s_.ql + 1)});
      cross(ctx, "vfe.bg", z, context, y);
      call(ctx, Op::add, y, base.slice(0, 0, 1), y);
      call(ctx, Op::mul, y, masks.slice(0, 0, 1).reshape({1, n, 1}), y);
    }
    const auto stage = ctx.stage("layout");
    const Tensor shared = make(ctx, {n, n}), q = make(ctx, {n, c}), k = make(ctx, {n, c}),
                 v = make(ctx, {n, c}), o = make(ctx, {n, c});
    GemmArgs g;
    g.a = masks.slice(0, 0, 1 + i), g.b = g.a, g.c = shared, g.a_transposed = true;
    gemm(ctx, g);
    // 1 where anything is shared (resized masks are multiples of powers of two far above 1e-20), else 0: the
    // logarithm is the bias, 0 or -inf. Every token shares with itself, as s + sum G >= 1.
    call(ctx, Op::affine, shared, {}, shared, 1e20f);
    call(ctx, Op::clamp, shared, {}, shared, 0.0f, 1.0f);
    call(ctx, Op::log, shared, {}, shared);
    project(ctx, "vfe.layout.q", z, q);
    project(ctx, "vfe.layout.k", z, k);
    project(ctx, "vfe.layout.v", z, v);
    AttentionArgs a;
    a.q = heads_of(q, 1, n, s_.heads, d_, 0, 1), a.k = heads_of(k, 1, n, s_.heads, d_, 0, 1);
    a.v = heads_of(v, 1, n, s_.heads, d_, 0, 1), a.o = heads_of(o, 1, n, s_.heads, d_, 0, 1);
    a.scale = scale_of(d_);
    a.bias.dense = shared.reshape({1, 1, n, n});
    attention(ctx, a);
    project(ctx, "vfe.layout.out", o, phases.select(0, 1 + i));
  }
  Cost branches_cost() const {
    const int64_t n = s_.n(), c = s_.c, x = s_.x, i = s_.instances, h = s_.heads, image = s_.ih * s_.iw;
    Cost f = copied((1 + i) * n);
    const auto resized = [](int64_t from, int64_t to) {
      Cost r = moved(4 * from, 4 * to);
      r.elementwise = 7 * to;
      return r;
    };
    if (i > 0) {
      Cost pool = moved(4 * i * image, 4 * i * n);
      pool.elementwise = i * (image + n);
      f += reduce_cost(i * image, image) + pointwise_cost(image, 0, false) + resized(image, image / 64) +
           resized(i * image, i * image / 64) + resized((1 + i) * image / 64, (1 + i) * n) + pool;
      const int64_t features = i * 8 * s_.freqs;
      Cost angles = moved(4 * (8 * i + s_.freqs), 4 * features);
      angles.elementwise = features;
      f += angles + pointwise_cost(features, 0, true) * 2 +
           product_cost(1, i, s_.hidden, 16 * s_.freqs, 16 * s_.freqs * s_.hidden, true, true) +
           product_cost(1, i, s_.hidden, s_.hidden, s_.hidden * s_.hidden, true, true) +
           product_cost(1, i, x, s_.hidden, x * s_.hidden, true);
      f += copied(i * x) * 2 + copied(i * s_.qh * x) + cross_cost(i, s_.qh + 2) +
           pointwise_cost(i * n * c, i * n * c, false) + pointwise_cost(i * n * c, i * n, false);
    } else {
      f += copied(n);
    }
    f += copied(x) + (s_.ql > 0 ? copied(s_.ql * x) : Cost()) + cross_cost(1, s_.ql + 1) +
         pointwise_cost(n * c, n * c, false) + pointwise_cost(n * c, n, false);
    return f + product_cost(1, n, n, 1 + i, (1 + i) * n) + pointwise_cost(n * n, 0, false) * 2 +
           pointwise_cost(n * n, 0, true) + product_cost(1, n, c, c, c * c) * 3 +
           product_cost(1, n, c, c, c * c, true) + vision::attend_cost(1, h, n, n, d_, DType::f32, n * n);
  }

  void embed_boxes(Context& ctx, const Tensor& box, const Tensor& token) const {
    const int64_t i = s_.instances, f = s_.freqs;
    const Tensor angle = make(ctx, {i, f, 8}), features = make(ctx, {i, f, 2, 8}),
                 a = make(ctx, {i, s_.hidden}), b = make(ctx, {i, s_.hidden});
    call(ctx, Op::mul, box.reshape({i, 1, 8}), frequencies_, angle);
    call(ctx, Op::sin, angle, {}, features.select(2, 0));
    call(ctx, Op::cos, angle, {}, features.select(2, 1));
    project(ctx, "box.fc1", features.reshape({i, 16 * f}), a, Activation::silu);
    project(ctx, "box.fc2", a, b, Activation::silu);
    project(ctx, "box.fc3", b, token);
  }

  /// y [m, n, C] of m contexts [m, L, X]; the queries are shared.
  void cross(Context& ctx, const std::string& at, const Tensor& z, const Tensor& context,
             const Tensor& y) const {
    const int64_t n = s_.n(), c = s_.c, m = context.dim(0), l = context.dim(1);
    const Tensor normed = make(ctx, {n, c}), q = make(ctx, {n, c}), k = make(ctx, {m * l, c}),
                 v = make(ctx, {m * l, c}), o = make(ctx, {m * n, c}), rows = context.reshape({m * l, s_.x});
    layer_norm(ctx, at + ".ln", z, normed);
    project(ctx, at + ".q", normed, q);
    project(ctx, at + ".k", rows, k);
    project(ctx, at + ".v", rows, v);
    AttentionArgs a;
    a.q = heads_of(q, m, n, s_.heads, d_, 0, 1, true), a.k = heads_of(k, m, l, s_.heads, d_, 0, 1);
    a.v = heads_of(v, m, l, s_.heads, d_, 0, 1), a.o = heads_of(o, m, n, s_.heads, d_, 0, 1);
    a.scale = scale_of(d_);
    attention(ctx, a);
    project(ctx, at + ".out", o, y.reshape({m * n, c}));
  }
  Cost cross_cost(int64_t m, int64_t l) const {
    const int64_t n = s_.n(), c = s_.c;
    return vision::layer_norm_cost(n, c, DType::f32) + product_cost(1, n, c, c, c * c) +
           product_cost(1, m * l, c, s_.x, c * s_.x) * 2 +
           vision::attend_cost(m, s_.heads, n, l, d_, DType::f32) + product_cost(1, m * n, c, c, c * c, true);
  }

  // ---- ASFA

  void aggregate(Context& ctx, const Tensor& masks, const Tensor& phases, const Tensor& scale,
                 const Tensor& out) const {
    const int64_t n = s_.n(), c = s_.c, p = s_.phases();
    const Shape maps{p, n, c}, rows{p * n, c};
    const Tensor u = make(ctx, maps);
    {
      const auto stage = ctx.stage("embed");
      const Tensor w = matrix("asfa.conv1");
      product(ctx, phases.reshape(rows), w.slice(1, 0, c), u.reshape(rows), true, bias("asfa.conv1"));
      product(ctx, masks.reshape({p * n, 1}), w.slice(1, c, c + 1), u.reshape(rows), true, {},
              Activation::none, true);
    }
    convolutional_gates(ctx, u, scale);
    const Tensor normed = make(ctx, maps), both = make(ctx, {p, s_.h, s_.w, 2 * c}),
                 mixed = make(ctx, both.shape()), joined = both.reshape({p * n, 2 * c});
    NormArgs norm;
    norm.x = u, norm.y = normed, norm.eps = kFusionEps;
    normalize(ctx, norm);
    {
      const auto stage = ctx.stage("self_attention");
      const Tensor qkv = make(ctx, {p * n, 3 * c}), o = make(ctx, rows);
      project(ctx, "asfa.sam.qkv", normed.reshape(rows), qkv);
      AttentionArgs a;
      a.q = heads_of(qkv, p, n, s_.heads, d_, 0, 3), a.k = heads_of(qkv, p, n, s_.heads, d_, 1, 3);
      a.v = heads_of(qkv, p, n, s_.heads, d_, 2, 3), a.o = heads_of(o, p, n, s_.heads, d_, 0, 1);
      a.scale = scale_of(d_);
      attention(ctx, a);
      project(ctx, "asfa.sam.out", o, joined.slice(1, 0, c));
    }
    spectral_attention(ctx, normed, joined.slice(1, c, 2 * c));
    const auto stage = ctx.stage("fuse");
    Conv2dArgs a;
    a.x = both, a.weight = weight("asfa.gate_dw.weight"), a.bias = bias("asfa.gate_dw"), a.y = mixed;
    a.groups = 2 * c;
    a.pad = {1, 1, 1, 1};
    conv2d(ctx, a);
    project(ctx, "asfa.gate_pw", mixed.reshape({p * n, 2 * c}), scale.reshape(rows), Activation::none, true);
    const Tensor line = make(ctx, {1, n, c});
    reduced(ctx, ReduceAxisArgs::Op::max, scale, line, 0);
    call(ctx, Op::sub, scale, line, scale);
    call(ctx, Op::exp, scale, {}, scale);
    reduced(ctx, ReduceAxisArgs::Op::sum, scale, line, 0);
    call(ctx, Op::div, scale, line, scale);
    call(ctx, Op::mul, scale, phases, u);
    reduced(ctx, ReduceAxisArgs::Op::sum, u, out, 0);
  }
  Cost aggregate_cost() const {
    const int64_t n = s_.n(), c = s_.c, p = s_.phases(), rows = p * n, map = rows * c;
    Cost f = product_cost(1, rows, c, c, c * c, true) + product_cost(1, rows, c, 1, c, false, false, true);
    f += gates_cost() + plain_norm_cost(rows, c);
    f += product_cost(1, rows, 3 * c, c, 3 * c * c, true) +
         vision::attend_cost(p, s_.heads, n, n, d_, DType::f32) + product_cost(1, rows, c, c, c * c, true);
    f += spectral_cost() + conv_cost(2 * map, 18 * c, 2 * c, 2 * map, 9) +
         product_cost(1, rows, c, 2 * c, 2 * c * c, true, false, true);
    return f + reduce_cost(map, n * c) * 3 + pointwise_cost(map, n * c, false) +
           pointwise_cost(map, 0, true) + pointwise_cost(map, n * c, true) + pointwise_cost(map, map, false);
  }

  /// CBAM: channels by their means and maxima, then positions.
  void convolutional_gates(Context& ctx, const Tensor& u, const Tensor& y) const {
    const auto stage = ctx.stage("gates");
    const int64_t n = s_.n(), c = s_.c, p = s_.phases();
    const Tensor pooled = make(ctx, {2, p, c}), hidden = make(ctx, {2 * p, c / 16}),
                 gate = make(ctx, {2, p, c}), planes = make(ctx, {2, p, s_.h, s_.w}),
                 place = make(ctx, {p, 1, s_.h, s_.w});
    reduced(ctx, ReduceAxisArgs::Op::mean, u, pooled.select(0, 0), 1);
    reduced(ctx, ReduceAxisArgs::Op::max, u, pooled.select(0, 1), 1);
    project(ctx, "asfa.cbam.fc1", pooled.reshape({2 * p, c}), hidden, Activation::relu);
    project(ctx, "asfa.cbam.fc2", hidden, gate.reshape({2 * p, c}));
    call(ctx, Op::add, gate.select(0, 0), gate.select(0, 1), gate.select(0, 0));
    call(ctx, Op::sigmoid_mul, gate.select(0, 0).reshape({p, 1, c}), u, y);
    reduced(ctx, ReduceAxisArgs::Op::max, y, planes.select(0, 0).reshape({p, n}), 2);
    reduced(ctx, ReduceAxisArgs::Op::mean, y, planes.select(0, 1).reshape({p, n}), 2);
    Conv2dArgs a;
    a.x = planes.transpose(0, 1), a.weight = weight("asfa.cbam.conv7.weight"), a.y = place;
    a.channels_last = false;
    a.pad = {3, 3, 3, 3};
    conv2d(ctx, a);
    call(ctx, Op::sigmoid, place, {}, place);
    call(ctx, Op::mul, y, place.reshape({p, n, 1}), y);
  }
  Cost gates_cost() const {
    const int64_t n = s_.n(), c = s_.c, p = s_.phases(), map = p * n * c;
    Cost gated = moved(4 * (p * c + map), 4 * map);
    gated.special = map;
    return reduce_cost(map, p * c) * 2 + product_cost(1, 2 * p, c / 16, c, c * (c / 16), true, true) +
           product_cost(1, 2 * p, c, c / 16, c * (c / 16), true) + pointwise_cost(p * c, p * c, false) +
           gated + reduce_cost(map, p * n) * 2 + conv_cost(2 * p * n, 98, 0, p * n, 98) +
           pointwise_cost(p * n, 0, true) + pointwise_cost(map, p * n, false);
  }

  /// FAM of n [P, HW, C] -> y [P HW, C] (row stride free).
  void spectral_attention(Context& ctx, const Tensor& x, const Tensor& y) const {
    const auto stage = ctx.stage("spectral_attention");
    const int64_t n = s_.n(), c = s_.c, p = s_.phases(), h = s_.heads, d = d_, wb = s_.w / 2 + 1, r = c / 16;
    const Tensor parts = make(ctx, {p, n, 2 * c}), planes = make(ctx, {p, c, s_.h, s_.w});
    transpose_copy(ctx, {x.transpose(1, 2), planes.reshape({p, c, n})});
    {  // The correlation of channels with mirrored ones, by the channels' norms.
      const Tensor mirrored = make(ctx, {p, n, c}), norms = make(ctx, {p, c}), a = make(ctx, {p, h, d, d});
      gather_rows(ctx, {x, mirror_, mirrored});
      reduced(ctx, ReduceAxisArgs::Op::norm, x, norms, 1);
      call(ctx, Op::clamp, norms, {}, norms, kNormEps / std::sqrt(static_cast<float>(n)), FLT_MAX);
      GemmArgs g;
      g.a = heads_of(x, p, n, h, d, 0, 1), g.b = heads_of(mirrored, p, n, h, d, 0, 1), g.c = a,
      g.a_transposed = true;
      gemm(ctx, g);
      call(ctx, Op::div, a, norms.reshape({p, h, d, 1}), a);
      call(ctx, Op::div, a, norms.reshape({p, h, 1, d}), a);
      call(ctx, Op::mul, a, weight("asfa.fam.temperature").reshape({1, h, 1, 1}), a);
      softmax(ctx, {a, a});
      if (spatial_) {
        // |(A_re + i / d) n|: rows of A_re, and the mean of the head.
        const Tensor re = make(ctx, {p, n, c}), mean = make(ctx, {p * n * h, 1});
        GemmArgs mix;
        mix.a = heads_of(x, p, n, h, d, 0, 1), mix.b = a, mix.b_transposed = true,
        mix.c = heads_of(re, p, n, h, d, 0, 1);
        gemm(ctx, mix);
        const Tensor rows = re.reshape({p * n * h, d});
        reduced(ctx, ReduceAxisArgs::Op::mean, x.reshape({p * n * h, d}), mean, 1);
        call(ctx, Op::square, rows, {}, rows);
        call(ctx, Op::square, mean, {}, mean);
        call(ctx, Op::add, rows, mean, rows);
        call(ctx, Op::sqrt, re, {}, parts.slice(2, 0, c));
      } else {
        const Tensor spectrum = make(ctx, {p, c, s_.h, s_.w, 2}), mixed = make(ctx, {p, h, d, 2 * n}),
                     mean = make(ctx, {p, h, 1, 2 * n}), size = make(ctx, {p, c, n});
        transpose_copy(ctx, {planes, spectrum.select(4, 0)});
        transpose_copy(ctx, {zeros_.reshape(planes.shape()), spectrum.select(4, 1)});
        fft2(ctx, {Fft2Args::Kind::complex_forward, spectrum, spectrum, s_.h, s_.w, 1.0f});
        const Tensor f = spectrum.reshape({p, h, d, 2 * n});
        product(ctx, a, f, mixed, false);
        reduced(ctx, ReduceAxisArgs::Op::mean, f.reshape({p * h, d, 2 * n}), mean.reshape({p * h, 1, 2 * n}),
                1);
        ComplexArgs turn;
        turn.a = turn.y = mean.reshape({p, h, n, 2});
        turn.b = turn_;
        complex_pointwise(ctx, turn);
        call(ctx, Op::add, mixed, mean, mixed);
        const Tensor z = mixed.reshape({p * h, d, n, 2});
        fft2(ctx, {Fft2Args::Kind::complex_inverse, z, z, d, n, 1 / static_cast<float>(d * n)});
        ComplexArgs magnitude;
        magnitude.op = ComplexArgs::Op::magnitude;
        magnitude.a = mixed.reshape({p, c, n, 2}), magnitude.y = size;
        complex_pointwise(ctx, magnitude);
        transpose_copy(ctx, {size.transpose(1, 2), parts.slice(2, 0, c)});
      }
    }
    {  // A gate that is even in frequency: half of the spectrum holds all of it.
      const Tensor half = make(ctx, {p, c, s_.h, wb, 2}), re = make(ctx, {p, s_.h, wb, c}),
                   squeezed = make(ctx, {p * s_.h * wb, r}), gates = make(ctx, half.shape());
      const Shape rows{p * s_.h * wb, c};
      fft2(ctx, {Fft2Args::Kind::real_to_half, planes, half, s_.h, s_.w, 1.0f});
      transpose_copy(ctx, {half.select(4, 0).permute({0, 2, 3, 1}), re});
      project(ctx, "asfa.fam.gate1", re.reshape(rows), squeezed);
      GroupNormArgs bn;
      bn.x = bn.y = squeezed;
      bn.gain = weight("asfa.fam.bn.weight"), bn.offset = weight("asfa.fam.bn.bias");
      bn.mean = weight("asfa.fam.bn.running_mean"), bn.variance = weight("asfa.fam.bn.running_var"),
      bn.eps = kEps;
      group_norm(ctx, bn);
      call(ctx, Op::relu, squeezed, {}, squeezed);
      project(ctx, "asfa.fam.gate2", squeezed, re.reshape(rows));
      call(ctx, Op::sigmoid, re, {}, re);
      transpose_copy(ctx, {re.strided({p, c, s_.h, wb, 2}, {s_.h * wb * c, 1, wb * c, c, 0}), gates});
      call(ctx, Op::mul, half, gates, half);
      fft2(ctx, {Fft2Args::Kind::half_to_real, half, planes, s_.h, s_.w, 1 / static_cast<float>(n)});
      call(ctx, Op::abs, planes, {}, planes);
      transpose_copy(ctx, {planes.reshape({p, c, n}).transpose(1, 2), parts.slice(2, c, 2 * c)});
    }
    project(ctx, "asfa.fam.out", parts.reshape({p * n, 2 * c}), y);
  }
  Cost spectral_cost() const {
    const int64_t n = s_.n(), c = s_.c, p = s_.phases(), h = s_.heads, d = d_, r = c / 16, lines = p * c,
                  map = lines * n, cells = lines * s_.h * (s_.w / 2 + 1), spots = p * s_.h * (s_.w / 2 + 1),
                  pairs = p * h * d * d;
    Cost soft = copied(pairs), norm = moved(4 * (spots * r + 4 * r), 4 * spots * r);
    soft.elementwise = 4 * pairs, soft.special = pairs;
    norm.elementwise = 2 * spots * r, norm.special = 2 * r;
    Cost f = copied(map) + moved(4 * (map + n), 4 * map) + reduce_cost(map, lines, 2, lines) +
             pointwise_cost(lines, 0, false) + product_cost(p * h, d, d, n, map) +
             pointwise_cost(pairs, lines, true) * 2 + pointwise_cost(pairs, h, false) + soft;
    if (spatial_) {
      f += product_cost(p * h, n, d, d, pairs) + reduce_cost(map, p * n * h) + pointwise_cost(map, 0, false) +
           pointwise_cost(p * n * h, 0, false) + pointwise_cost(map, p * n * h, false) +
           pointwise_cost(map, 0, true);
    } else {
      Cost forward = copied(2 * map), inverse = copied(2 * map), magnitude = moved(8 * map, 4 * map);
      forward.matmul = fft2_flops(Fft2Args::Kind::complex_forward, lines, s_.h, s_.w);
      inverse.matmul = fft2_flops(Fft2Args::Kind::complex_inverse, p * h, d, n);
      magnitude += complex_pointwise_cost(ComplexArgs::Op::magnitude, map);
      f += copied(map) * 3 + forward + inverse + magnitude + product_cost(p * h, d, 2 * n, d, 2 * map) +
           reduce_cost(2 * map, 2 * p * h * n) +
           complex_pointwise_cost(ComplexArgs::Op::multiply, p * h * n) +
           moved(8 * (p * h * n + 1), 8 * p * h * n) + pointwise_cost(2 * map, 2 * p * h * n, false);
    }
    Cost forward = moved(4 * map, 8 * cells), back = moved(8 * cells, 4 * map);
    forward.matmul = fft2_flops(Fft2Args::Kind::real_to_half, lines, s_.h, s_.w);
    back.matmul = fft2_flops(Fft2Args::Kind::half_to_real, lines, s_.h, s_.w);
    f += forward + copied(cells) + product_cost(1, spots, r, c, r * c, true) + norm +
         pointwise_cost(spots * r, 0, true) + product_cost(1, spots, c, r, r * c, true) +
         pointwise_cost(cells, 0, true) + copied(2 * cells) + pointwise_cost(2 * cells, 2 * cells, false) +
         back + pointwise_cost(map, 0, false) + copied(map);
    return f + product_cost(1, p * n, c, 2 * c, 2 * c * c, true);
  }

  Sizes s_;
  int64_t d_;
  bool vfe_, asfa_, spatial_;
  Tensor ones_, zeros_, turn_, frequencies_, mirror_;
};

// ---- proto
// ---------------------------------------------------------------------------------------------------

class ProtoInstance final : public Parts {
 public:
  ProtoInstance(Context& ctx, int64_t batch, int64_t c, int64_t h, int64_t w, const Params& p)
      : batch_(batch),
        c_(c),
        h_(h),
        w_(w),
        share_(p.number("freq_threshold")),
        high_(p.boolean("high_pass")),
        roll_(p.boolean("roll_all_axes")) {
    const Shape map{batch, c, h, w};
    input_spec("f", map, Init::normal(), "features [B, c, h, w]");
    linear_spec("w_s", {1, c, 3, 3}, true);
    const auto uniform = [](int64_t fan) {
      const double bound = 1 / std::sqrt(static_cast<double>(fan));
      return Init::uniform(-bound, bound);
    };
    spec("W1", {c / 16, c}, uniform(c));
    spec("b1", {c / 16}, uniform(c));
    spec("W2", {c, c / 16}, uniform(c / 16));
    spec("b2", {c}, uniform(c / 16));
    output(ctx, "g", map);
    output(ctx, "a", {batch, c});
    output(ctx, "out", map);
  }

  void prepare(Context& ctx) override {
    const std::vector<double> rows = kept(h_), columns = kept(w_);
    const auto keep = [&](int64_t y, int64_t x) {
      const double inside = rows[static_cast<size_t>(y)] * columns[static_cast<size_t>(x)];
      return high_ ? 1 - inside : inside;
    };
    std::vector<double> even, kernel;
    for (int64_t y = 0; y < h_; ++y)
      for (int64_t x = 0; x < w_; ++x)
        even.push_back(0.5 * (keep(y, x) + keep((2 * (h_ / 2) - y + h_) % h_, (2 * (w_ / 2) - x + w_) % w_)));
    std::vector<double> all;
    for (int64_t b = 0; b < batch_; ++b) all.insert(all.end(), even.begin(), even.end());
    mask_ = upload(ctx, DType::f32, {batch_, h_, w_}, all);
    // sum_k M(k) F(k) / (h w) = sum_x f(x) K(x), K the product of the axes' transforms.
    const auto ky = transform(rows), kx = transform(columns);
    const auto cells = static_cast<double>(h_ * w_);
    for (int part = 0; part < 2; ++part)
      for (int64_t y = 0; y < h_; ++y)
        for (int64_t x = 0; x < w_; ++x) {
          const auto& [yr, yi] = ky[static_cast<size_t>(y)];
          const auto& [xr, xi] = kx[static_cast<size_t>(x)];
          const double box = (part == 0 ? yr * xr - yi * xi : yr * xi + yi * xr) / cells;
          kernel.push_back(high_ ? (part == 0 && y == 0 && x == 0 ? 1.0 : 0.0) - box : box);
        }
    kernel_ = upload(ctx, DType::f32, {2, h_ * w_}, kernel);
    std::vector<int64_t> source;
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t k = 0; k < c_; ++k)
        source.push_back((b - batch_ / 2 + batch_) % batch_ * c_ + (k - c_ / 2 + c_) % c_);
    if (roll_) source_ = upload_index(ctx, source);
  }

  void run(Context& ctx) override {
    const int64_t n = h_ * w_, lines = batch_ * c_;
    const Tensor &f = input("f"), &g = outputs_.at("g"), &out = outputs_.at("out"), &a = outputs_.at("a");
    {
      const auto stage = ctx.stage("filter");
      const Tensor spectrum = make(ctx, {batch_, c_, h_, w_ / 2 + 1, 2});
      fft2(ctx, {Fft2Args::Kind::real_to_half, f, spectrum, h_, w_, 1.0f});
      spectral_mask(ctx, {spectrum, mask_, w_});
      fft2(ctx, {Fft2Args::Kind::half_to_real, spectrum, g, h_, w_, 1 / static_cast<float>(n)});
    }
    {
      const auto stage = ctx.stage("channel_gate");
      const Tensor means = make(ctx, {2, lines}), hidden = make(ctx, {2 * batch_, c_ / 16}),
                   gate = make(ctx, {2, lines});
      product(ctx, kernel_, f.reshape({lines, n}), means, true);
      Tensor from = means;
      if (roll_) {
        from = make(ctx, {2, lines});
        gather_rows(ctx, {means.reshape({2, lines, 1}), source_, from.reshape({2, lines, 1})});
      }
      product(ctx, from.reshape({2 * batch_, c_}), weight("W1"), hidden, true, weight("b1"),
              Activation::relu);
      product(ctx, hidden, weight("W2"), gate.reshape({2 * batch_, c_}), true, weight("b2"));
      call(ctx, Op::sigmoid, gate, {}, gate);
      call(ctx, Op::square, gate, {}, gate);
      call(ctx, Op::add, gate.select(0, 0), gate.select(0, 1), a.reshape({lines}));
      call(ctx, Op::affine, a, {}, a, 1.0f, kGateEps);
      call(ctx, Op::sqrt, a, {}, a);
    }
    const auto stage = ctx.stage("space_gate");
    const Tensor place = make(ctx, {batch_, 1, h_, w_});
    Conv2dArgs conv;
    conv.x = f, conv.weight = weight("w_s.weight"), conv.bias = weight("w_s.bias"), conv.y = place;
    conv.channels_last = false;
    conv.pad = {1, 1, 1, 1};
    conv2d(ctx, conv);
    call(ctx, Op::sigmoid, place, {}, place);
    call(ctx, Op::mul, g, place, out);
    call(ctx, Op::mul, out, a.reshape({batch_, c_, 1, 1}), out);
  }

  ClosedForm cost() const override {
    ClosedForm f;
    f.parameters = parameters();
    const int64_t n = h_ * w_, lines = batch_ * c_, map = lines * n, cells = lines * h_ * (w_ / 2 + 1);
    Cost forward = moved(4 * map, 8 * cells), back = moved(8 * cells, 4 * map),
         mask = moved(8 * cells + 4 * batch_ * n, 8 * cells);
    forward.matmul = fft2_flops(Fft2Args::Kind::real_to_half, lines, h_, w_);
    back.matmul = fft2_flops(Fft2Args::Kind::half_to_real, lines, h_, w_);
    mask.elementwise = 2 * cells;
    f.cost = forward + mask + back + product_cost(1, 2, lines, n, map);
    if (roll_) f.cost += moved(4 * (2 * lines + lines), 8 * lines);
    f.cost += product_cost(1, 2 * batch_, c_ / 16, c_, c_ * (c_ / 16), true, true) +
              product_cost(1, 2 * batch_, c_, c_ / 16, c_ * (c_ / 16), true) +
              pointwise_cost(2 * lines, 0, true) + pointwise_cost(2 * lines, 0, false) +
              pointwise_cost(lines, lines, false) + pointwise_cost(lines, 0, false) +
              pointwise_cost(lines, 0, true);
    f.cost += conv_cost(map, 9 * c_, 1, batch_ * n, 9 * c_) + pointwise_cost(batch_ * n, 0, true) +
              pointwise_cost(map, batch_ * n, false) + pointwise_cost(map, lines, false);
    return f;
  }

 private:
  /// The box along one axis in centred order: round half to even at both ends.
  std::vector<double> kept(int64_t n) const {
    const double side = static_cast<double>(n);
    const double first = std::nearbyint(side / 2 - share_ * side),
                 last = std::nearbyint(side / 2 + share_ * side);
    std::vector<double> m;
    for (int64_t i = 0; i < n; ++i)
      m.push_back(static_cast<double>(i) >= first && static_cast<double>(i) < last ? 1.0 : 0.0);
    return m;
  }
  /// sum over kept frequencies of exp(-2 pi i k x / n).
  static std::vector<std::pair<double, double>> transform(const std::vector<double>& kept) {
    const auto n = static_cast<int64_t>(kept.size());
    std::vector<std::pair<double, double>> t(kept.size());
    for (int64_t x = 0; x < n; ++x)
      for (int64_t i = 0; i < n; ++i) {
        if (kept[static_cast<size_t>(i)] == 0) continue;
        const double turn =
            -2 * std::numbers::pi * static_cast<double>((i - n / 2) * x % n) / static_cast<double>(n);
        t[static_cast<size_t>(x)].first += std::cos(turn);
        t[static_cast<size_t>(x)].second += std::sin(turn);
      }
    return t;
  }

  int64_t batch_, c_, h_, w_;
  double share_;
  bool high_, roll_;
  Tensor mask_, kernel_, source_;
};

// ---- resampler
// -----------------------------------------------------------------------------------------------

class ResamplerInstance final : public Parts {
 public:
  ResamplerInstance(Context& ctx, int64_t batch, const Params& p)
      : batch_(batch),
        q_(p.integer("hf_queries")),
        r_(p.integer("resampler_dim")),
        x_(p.integer("context_dim")),
        t_(p.integer("feat_tokens")),
        f_(p.integer("feat_dim")),
        layers_(p.integer("depth")),
        d_(p.integer("dim_head")),
        ff_(p.integer("ff_mult") * r_) {
    input_spec("features", {batch, t_, f_}, Init::normal(), "[B, feat_tokens, feat_dim]");
    spec("queries", {1, q_, r_}, Init::normal(0, 1 / std::sqrt(static_cast<double>(r_))));
    linear_spec("proj_in", {r_, f_}, true);
    for (int64_t i = 0; i < layers_; ++i) {
      const std::string at = "layers." + std::to_string(i) + ".";
      norm_spec(at + "attn.ln_features", r_);
      norm_spec(at + "attn.ln_latents", r_);
      linear_spec(at + "attn.q", {r_, r_}, false);
      linear_spec(at + "attn.kv", {2 * r_, r_}, false);
      linear_spec(at + "attn.out", {r_, r_}, false);
      norm_spec(at + "mlp.ln", r_);
      linear_spec(at + "mlp.fc1", {ff_, r_}, false);
      linear_spec(at + "mlp.fc2", {r_, ff_}, false);
    }
    linear_spec("proj_out", {x_, r_}, true);
    norm_spec("norm_out", x_);
    output(ctx, "out", {batch, q_, x_});
  }

  void run(Context& ctx) override {
    const int64_t rows = batch_ * q_, m = t_ + q_, heads = r_ / d_;
    const Tensor x = make(ctx, {batch_, t_, r_}), latents = make(ctx, {batch_, q_, r_}),
                 keys = make(ctx, {batch_, m, r_}), normed = make(ctx, {batch_, q_, r_}),
                 q = make(ctx, {rows, r_}), kv = make(ctx, {batch_ * m, 2 * r_}), o = make(ctx, {rows, r_}),
                 hidden = make(ctx, {rows, ff_}), out = make(ctx, {rows, x_}),
                 flat = latents.reshape({rows, r_});
    {
      const auto stage = ctx.stage("embed");
      project(ctx, "proj_in", input("features").reshape({batch_ * t_, f_}), x.reshape({batch_ * t_, r_}));
      transpose_copy(ctx, {weight("queries").strided({batch_, q_, r_}, {0, r_, 1}), latents});
    }
    for (int64_t i = 0; i < layers_; ++i) {
      const std::string at = "layers." + std::to_string(i) + ".";
      {
        const auto stage = ctx.stage("attention");
        const Tensor features = make(ctx, {batch_, t_, r_});
        layer_norm(ctx, at + "attn.ln_features", x, features);
        layer_norm(ctx, at + "attn.ln_latents", latents, normed);
        transpose_copy(ctx, {features, keys.slice(1, 0, t_)});
        transpose_copy(ctx, {normed, keys.slice(1, t_, m)});
        project(ctx, at + "attn.q", normed.reshape({rows, r_}), q);
        project(ctx, at + "attn.kv", keys.reshape({batch_ * m, r_}), kv);
        AttentionArgs a;
        a.q = heads_of(q, batch_, q_, heads, d_, 0, 1), a.k = heads_of(kv, batch_, m, heads, d_, 0, 2);
        a.v = heads_of(kv, batch_, m, heads, d_, 1, 2), a.o = heads_of(o, batch_, q_, heads, d_, 0, 1);
        a.scale = scale_of(d_);
        attention(ctx, a);
        project(ctx, at + "attn.out", o, flat, Activation::none, true);
      }
      const auto stage = ctx.stage("mlp");
      layer_norm(ctx, at + "mlp.ln", latents, normed);
      project(ctx, at + "mlp.fc1", normed.reshape({rows, r_}), hidden, Activation::gelu_erf);
      project(ctx, at + "mlp.fc2", hidden, flat, Activation::none, true);
    }
    const auto stage = ctx.stage("output");
    project(ctx, "proj_out", flat, out);
    layer_norm(ctx, "norm_out", out, outputs_.at("out").reshape({rows, x_}));
  }

  ClosedForm cost() const override {
    ClosedForm f;
    f.parameters = parameters();
    const int64_t rows = batch_ * q_, m = t_ + q_, tokens = batch_ * t_;
    f.cost = product_cost(1, tokens, r_, f_, r_ * f_, true) + copied(rows * r_);
    f.cost += (vision::layer_norm_cost(tokens, r_, DType::f32) +
               vision::layer_norm_cost(rows, r_, DType::f32) * 2 + copied(tokens * r_) + copied(rows * r_) +
               product_cost(1, rows, r_, r_, r_ * r_) + product_cost(1, batch_ * m, 2 * r_, r_, 2 * r_ * r_) +
               vision::attend_cost(batch_, r_ / d_, q_, m, d_, DType::f32) +
               product_cost(1, rows, r_, r_, r_ * r_, false, false, true) +
               product_cost(1, rows, ff_, r_, ff_ * r_, false, true) +
               product_cost(1, rows, r_, ff_, ff_ * r_, false, false, true)) *
              layers_;
    f.cost += product_cost(1, rows, x_, r_, x_ * r_, true) + vision::layer_norm_cost(rows, x_, DType::f32);
    f.published_macs = t_ * f_ * r_ +
                       layers_ * (2 * q_ * r_ * r_ + 2 * m * r_ * r_ + 2 * q_ * m * r_ + 2 * q_ * r_ * ff_) +
                       q_ * r_ * x_;
    f.published_macs_note = "multiply-adds of one set of features";
    return f;
  }

 private:
  int64_t batch_, q_, r_, x_, t_, f_, layers_, d_, ff_;
};

class Ficgen final : public Method {
 public:
  const MethodInfo& info() const override { return ficgen_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("ficgen has no causal mode: tokens are those of an image");
    const auto fail = [](const std::string& name, const std::string& why) {
      throw UsageError("ficgen." + name + ": " + why);
    };
    const auto own = [&](const char* name, int64_t given, int64_t standard) {
      if (p.is_null(name)) return given > 0 ? given : standard;
      if (given > 0 && given != p.integer(name))
        fail(name, std::to_string(p.integer(name)) + " is not the problem's " + std::to_string(given));
      return p.integer(name);
    };
    const auto divides = [&](const char* name, int64_t part, const char* of, int64_t whole) {
      if (whole % part != 0)
        fail(name, std::to_string(whole) + " is no multiple of " + of + std::to_string(part));
    };
    if (!problem.grid.empty() && problem.grid.size() != 2)
      throw UsageError("ficgen: problem.grid has two axes, [H, W]");
    const int64_t gh = problem.grid.empty() ? 0 : problem.grid[0],
                  gw = problem.grid.empty() ? 0 : problem.grid[1];
    if (p.choice("component") == "resampler") {
      divides("resampler_dim", p.integer("dim_head"), "dim_head ", p.integer("resampler_dim"));
      if (p.integer("dim_head") > 512)
        throw Unsupported("ficgen: heads of " + std::to_string(p.integer("dim_head")) +
                          " channels are beyond 512");
      return std::make_unique<ResamplerInstance>(ctx, problem.batch, p);
    }
    if (p.choice("component") == "proto") {
      const int64_t c = own("proto_channels", problem.channels, 128);
      divides("proto_channels", 16, "", c);
      if (!(p.number("freq_threshold") > 0)) fail("freq_threshold", "a share above 0 is wanted");
      const int64_t h = own("proto_grid", gh, 32), w = gw > 0 ? gw : h;
      return std::make_unique<ProtoInstance>(ctx, problem.batch, c, h, w, p);
    }
    Sizes s;
    s.component = p.choice("component");
    s.batch = problem.batch;
    s.h = own("grid_h", gh, 16), s.w = own("grid_w", gw, 16);
    s.c = own("dim", problem.channels, 1280);
    s.heads = own("heads", problem.heads, 8);
    s.x = p.integer("context_dim");
    s.instances = p.integer("num_instances");
    s.qh = p.integer("hf_queries"), s.ql = p.integer("lf_queries");
    s.freqs = p.integer("fourier_freqs"), s.hidden = p.integer("box_hidden");
    s.ih = p.integer("image_h"), s.iw = p.integer("image_w");
    divides("dim", s.heads, "heads ", s.c);
    divides("dim", 16, "", s.c);
    if (s.c / s.heads > 512)
      throw Unsupported("ficgen: heads of " + std::to_string(s.c / s.heads) + " channels are beyond 512");
    if (s.component != "asfa" && s.instances > 0) {
      divides("image_h", 8 * s.h, "8 grid_h = ", s.ih);
      divides("image_w", 8 * s.w, "8 grid_w = ", s.iw);
      if (const Value& boxes = p.value("boxes"); boxes.is_list()) {
        if (static_cast<int64_t>(boxes.as_list().size()) != s.instances)
          fail("boxes", std::to_string(boxes.as_list().size()) + " are given for num_instances " +
                            std::to_string(s.instances));
        for (const Value& box : boxes.as_list())
          if (!box.is_list() || box.as_list().size() != 8)
            fail("boxes", "eight numbers x1..x4, y1..y4 are wanted, not " + box.str());
      }
    }
    return std::make_unique<BlockInstance>(ctx, s, p);
  }
};
ATTNBENCH_METHOD(Ficgen);

}  // namespace
}  // namespace attnbench
