// HiLo attention (LITv2): part of the heads attends inside s x s windows (Hi-Fi), the rest attends to
// average-pooled windows (Lo-Fi). Card: hilo.
#include <algorithm>

#include "kernels/pool/pool.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

struct Split {
  int64_t s, hi_heads, lo_heads, hi, lo;  ///< window size, heads, channels
};

class HiLoInstance final : public LayerInstance {
 public:
  HiLoInstance(Context& ctx, const LayerShape& shape, const Split& split, bool qkv_bias)
      : LayerInstance(ctx, shape),
        split_(split),
        qkv_bias_(qkv_bias),
        partition_({shape.grid_h, shape.grid_w, split.s, 0}, shape.batch) {
    const int64_t c = s_.channels, hi = split_.hi, lo = split_.lo;
    if (hi > 0) {
      add_linear(weight_specs_, "h_qkv", 3 * hi, c, qkv_bias, s_.dtype,
                 "Hi-Fi projections, rows (q|k|v, head, d)");
      add_linear(weight_specs_, "h_proj", hi, hi, true, s_.dtype, "Hi-Fi output projection");
    }
    if (lo > 0) {
      add_linear(weight_specs_, "l_q", lo, c, qkv_bias, s_.dtype, "Lo-Fi queries, rows (head, d)");
      add_linear(weight_specs_, "l_kv", 2 * lo, c, qkv_bias, s_.dtype,
                 "Lo-Fi keys and values, rows (k|v, head, d)");
      add_linear(weight_specs_, "l_proj", lo, lo, true, s_.dtype, "Lo-Fi output projection");
    }
    hi_sets_ = partition_.label_sets(hi_set_of_token_);
  }

  void prepare(Context& ctx) override { partition_.upload(ctx); }

  ClosedForm cost() const override {
    const WindowGrid& g = partition_.grid();
    const int64_t c = s_.channels, hi = split_.hi, lo = split_.lo, np = g.padded_tokens(), m = g.windows();
    const int64_t rows = s_.batch * np;
    const DType t = s_.dtype;
    ClosedForm f;
    if (hi > 0) {
      f.cost += linear_cost(rows, c, 3 * hi, qkv_bias_, t) +
                attend_cost(s_.batch * m, split_.hi_heads, g.area(), g.area(), s_.head_dim, t) +
                linear_cost(rows, hi, hi, true, t);
      f.published_macs += 3 * np * c * hi + 2 * np * g.area() * hi + np * hi * hi;
    }
    if (lo > 0) {
      f.cost += linear_cost(rows, c, lo, qkv_bias_, t) + linear_cost(s_.batch * m, c, 2 * lo, qkv_bias_, t) +
                attend_cost(s_.batch, split_.lo_heads, np, m, s_.head_dim, t) +
                linear_cost(rows, lo, lo, true, t);
      f.published_macs += np * c * lo + 2 * m * c * lo + 2 * np * m * lo + np * lo * lo;
    }
    if (pools()) f.cost += pool_cost(rows * c, rows * c, s_.batch * m * c, t);
    if (g.padded())
      f.cost += move_cost(rows, c, t) + move_cost(s_.rows(), c, t);
    else if (hi > 0 && !partition_.identity())
      f.cost += move_cost(rows, std::min(c, 3 * hi), t) + move_cost(rows, hi, t);
    f.published_macs_note = "projections and attention products of the padded grid; pooling is not counted";
    f.parameters = 3 * c * c + hi * hi + lo * lo + c + (qkv_bias_ ? 3 * c : 0);
    return f;
  }

  int64_t keys(int64_t h) const override {
    return h < split_.hi_heads ? partition_.grid().padded_tokens() : partition_.grid().windows();
  }

 protected:
  void forward(Context& ctx, Trace* trace) override {
    // Padded tokens carry the biases as q, k and v and are not masked, so padding comes before the
    // projections.
    if (partition_.grid().padded())
      forward_padded(ctx, trace);
    else
      forward_divisible(ctx, trace);
  }

  Place place(int64_t b, int64_t h, int64_t i) const override {
    const Partition::Slot slot = partition_.slot_of(b, i);
    if (h < split_.hi_heads) return {0, slot.window, h, slot.row};
    const size_t call = split_.hi > 0 ? 1 : 0;
    // With padding, Lo-Fi queries stand in slot order too: slots run image by image.
    const int64_t row = partition_.grid().padded()
                            ? slot.window % partition_.grid().windows() * partition_.grid().area() + slot.row
                            : i;
    return {call, b, h - split_.hi_heads, row};
  }
  int64_t key_column(int64_t b, int64_t h, int64_t i, int64_t j) const override {
    return h < split_.hi_heads ? partition_.padded_position(partition_.slot_of(b, i).window, j) : j;
  }
  int64_t visible_keys(int64_t h, int64_t) const override {
    return h < split_.hi_heads ? partition_.grid().area() : partition_.grid().windows();
  }
  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    return [sets = hi_sets_, set_of = hi_set_of_token_, hi_heads = split_.hi_heads, n = s_.tokens()](
               int64_t, int64_t h, int64_t i, Intervals& out) {
      if (h < hi_heads)
        out = (*sets)[static_cast<size_t>(set_of[static_cast<size_t>(i)])];
      else
        out = {{0, n}};  // every pooled key holds at least one token, and together they hold all
    };
  }

 private:
  bool pools() const { return split_.lo > 0 && split_.s > 1; }

  /// Window attention of the Hi-Fi heads: qkv and o in slot order.
  void attend_hi(Context& ctx, const Tensor& qkv, const Tensor& o, Trace* trace) const {
    const WindowGrid& g = partition_.grid();
    const int64_t windows = s_.batch * g.windows(), heads = split_.hi_heads, d = s_.head_dim;
    AttentionArgs a;
    a.q = heads_view(qkv, 0, windows, g.area(), 0, heads, d);
    a.k = heads_view(qkv, 0, windows, g.area(), 1, heads, d);
    a.v = heads_view(qkv, 0, windows, g.area(), 2, heads, d);
    a.o = heads_view(o, 0, windows, g.area(), 0, heads, d);
    a.scale = s_.scale;
    attend(ctx, a, trace);
  }

  /// Dense attention of `rows` queries an image to the M pooled keys.
  void attend_lo(Context& ctx, const Tensor& q, const Tensor& kv, const Tensor& o, int64_t rows,
                 Trace* trace) const {
    const int64_t m = partition_.grid().windows(), heads = split_.lo_heads, d = s_.head_dim;
    AttentionArgs a;
    a.q = heads_view(q, 0, s_.batch, rows, 0, heads, d);
    a.k = heads_view(kv, 0, s_.batch, m, 0, heads, d);
    a.v = heads_view(kv, 0, s_.batch, m, 1, heads, d);
    a.o = heads_view(o, 0, s_.batch, rows, 0, heads, d);
    a.scale = s_.scale;
    attend(ctx, a, trace);
  }

  void forward_divisible(Context& ctx, Trace* trace) {
    const int64_t c = s_.channels, hi = split_.hi, lo = split_.lo, rows = s_.rows();
    const Tensor x = tokens(), out = out_rows();
    if (hi > 0) {
      Tensor qkv;
      if (partition_.identity()) {
        auto stage = ctx.stage("project");
        qkv = workspace(ctx, rows, 3 * hi);
        project(ctx, "h_qkv", x, qkv);
      } else if (3 * hi < c) {
        // The partition is a row permutation, so it commutes with the projection: move the narrower rows.
        const Tensor by_token = workspace(ctx, rows, 3 * hi);
        {
          auto stage = ctx.stage("project");
          project(ctx, "h_qkv", x, by_token);
        }
        auto stage = ctx.stage("partition");
        qkv = workspace(ctx, rows, 3 * hi);
        partition_.to_slots(ctx, by_token, qkv);
      } else {
        const Tensor by_slot = workspace(ctx, rows, c);
        {
          auto stage = ctx.stage("partition");
          partition_.to_slots(ctx, x, by_slot);
        }
        auto stage = ctx.stage("project");
        qkv = workspace(ctx, rows, 3 * hi);
        project(ctx, "h_qkv", by_slot, qkv);
      }
      Tensor o = workspace(ctx, rows, hi);
      {
        auto stage = ctx.stage("attend");
        attend_hi(ctx, qkv, o, trace);
      }
      qkv = {};
      if (!partition_.identity()) {
        auto stage = ctx.stage("partition");
        const Tensor by_token = workspace(ctx, rows, hi);
        partition_.to_tokens(ctx, o, by_token);
        o = by_token;
      }
      auto stage = ctx.stage("out");
      project(ctx, "h_proj", o, out.slice(1, 0, hi));
    }
    if (lo > 0) {
      const int64_t m = partition_.grid().windows();
      Tensor pooled = x;
      if (pools()) {
        auto stage = ctx.stage("pool");
        const WindowGrid& g = partition_.grid();
        pooled = workspace(ctx, s_.batch * m, c);
        AvgPool2dArgs pool;
        pool.x = x.reshape({s_.batch, s_.grid_h, s_.grid_w, c});
        pool.y = pooled.reshape({s_.batch, g.windows_h(), g.windows_w(), c});
        avg_pool2d(ctx, pool);
      }
      lo_branch(ctx, x, pooled, out.slice(1, hi, c), trace);
    }
  }

  void forward_padded(Context& ctx, Trace* trace) {
    const int64_t c = s_.channels, hi = split_.hi, lo = split_.lo, slots = partition_.slots();
    const WindowGrid& g = partition_.grid();
    const Tensor x = workspace(ctx, slots, c), y = workspace(ctx, slots, c);
    {
      auto stage = ctx.stage("partition");
      partition_.to_slots(ctx, tokens(), x);
    }
    if (hi > 0) {
      const Tensor qkv = workspace(ctx, slots, 3 * hi), o = workspace(ctx, slots, hi);
      {
        auto stage = ctx.stage("project");
        project(ctx, "h_qkv", x, qkv);
      }
      {
        auto stage = ctx.stage("attend");
        attend_hi(ctx, qkv, o, trace);
      }
      auto stage = ctx.stage("out");
      project(ctx, "h_proj", o, y.slice(1, 0, hi));
    }
    if (lo > 0) {
      // In slot order a window is s^2 rows in a row: pooling is the mean of each.
      const Tensor pooled = workspace(ctx, s_.batch * g.windows(), c);
      {
        auto stage = ctx.stage("pool");
        AvgPool2dArgs pool;
        pool.x = x.reshape({s_.batch, g.windows(), g.area(), c});
        pool.y = pooled.reshape({s_.batch, g.windows(), 1, c});
        avg_pool2d(ctx, pool);
      }
      lo_branch(ctx, x, pooled, y.slice(1, hi, c), trace);
    }
    auto stage = ctx.stage("partition");
    partition_.to_tokens(ctx, y, out_rows());
  }

  void lo_branch(Context& ctx, const Tensor& x, const Tensor& pooled, const Tensor& out, Trace* trace) const {
    const int64_t lo = split_.lo, rows = x.dim(0);
    const Tensor q = workspace(ctx, rows, lo), kv = workspace(ctx, pooled.dim(0), 2 * lo),
                 o = workspace(ctx, rows, lo);
    {
      auto stage = ctx.stage("project");
      project(ctx, "l_q", x, q);
      project(ctx, "l_kv", pooled, kv);
    }
    {
      auto stage = ctx.stage("attend");
      attend_lo(ctx, q, kv, o, rows / s_.batch, trace);
    }
    auto stage = ctx.stage("out");
    project(ctx, "l_proj", o, out);
  }

  Split split_;
  bool qkv_bias_;
  Partition partition_;
  std::shared_ptr<const std::vector<Intervals>> hi_sets_;
  std::vector<int32_t> hi_set_of_token_;
};

class HiLo final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i = layer_info("hilo", "HiLo attention (LITv2)", "window + head-routing (softmax)");
      i.paper = "Fast Vision Transformers with HiLo Attention, NeurIPS 2022";
      i.arxiv = "2205.13213";
      i.summary =
          "Splits the heads of a vision layer by frequency. Hi-Fi heads attend inside non-overlapping s x s "
          "windows; "
          "Lo-Fi heads attend from every token to the average-pooled windows. Each group has its own "
          "projections, "
          "and nothing mixes them: the output is their concatenation.";
      i.formula =
          "Hl = floor(H alpha), Hh = H - Hl, Cl = Hl D, Ch = Hh D, D = C / H\n"
          "Hi-Fi, per s x s window: [q k v] = h_qkv(x);  o = softmax(q k^T / sqrt(D)) v;  y_h = h_proj(o)\n"
          "Lo-Fi: q = l_q(x);  [k v] = l_kv(avg_pool_s(x));  o = softmax(q k^T / sqrt(D)) v;  y_l = "
          "l_proj(o)\n"
          "out = [y_h ; y_l] by channels; sizes that s does not divide are zero-padded before the "
          "projections\n"
          "s = 1: Hl = H, no pooling, plain attention";
      i.cost =
          "MACs per image, Np padded tokens, M = Np / s^2: Hi-Fi 3 Np C Ch + 2 Np s^2 Ch + Np Ch^2; "
          "Lo-Fi Np C Cl + 2 M C Cl + 2 Np M Cl + Np Cl^2; pooling Np C additions (not counted). "
          "Parameters 3 C^2 + Ch^2 + Cl^2 + C (+ 3 C with qkv_bias).";
      ParamSpec alpha;
      alpha.name = "alpha";
      alpha.type = ParamSpec::Type::number;
      alpha.default_value = Value(0.9);
      alpha.min = 0.0;
      alpha.max = 1.0;
      alpha.meaning = "share of Lo-Fi heads; Hl = floor(H alpha)";
      i.params = layer_params(
          {spec::integer("window_size", 2, 1, "s: Hi-Fi window and Lo-Fi pooling; 1 is plain attention"),
           alpha});
      i.figures = {
          {"CPU throughput", "B 64, 14x14, C 768, H 12, f32, s 2, alpha 0.9; i9-10900X", "sra, sr_ratio 2",
           "1029 against 710 images/s = 1.449x", "HubHop/vit-attention-benchmark README; abstract: 1.4x"},
          {"CPU throughput", "the same", "window, win 7", "1029 against 631 images/s = 1.631x",
           "HubHop/vit-attention-benchmark README; abstract: 1.6x"},
          {"CPU throughput", "the same", "shifted_window, win 7, shift 3",
           "1029 against 374 images/s = 2.751x", "HubHop/vit-attention-benchmark README"},
          {"CPU throughput", "the same", "msa", "1029 against 505 images/s = 2.038x",
           "HubHop/vit-attention-benchmark README"},
          {"GPU throughput", "the same; RTX 3090", "sra / window / shifted_window / msa",
           "5104 against 4810 / 4537 / 4351 / 4403 images/s = 1.061 / 1.125 / 1.173 / 1.159x",
           "HubHop/vit-attention-benchmark README"},
          {"MACs per image", "the same", "msa / sra / window", "298.30 against 521.43 / 419.56 / 477.17 M",
           "HubHop/vit-attention-benchmark README (called FLOPs)"},
          {"parameters", "the same", "msa / sra / window", "2.20 against 2.36 / 4.72 / 2.36 M",
           "HubHop/vit-attention-benchmark README"},
          {"MACs per image", "14x14, C 384, H 12, s 2, alpha 0.5", "", "83,467,776", "ziplab/LITv2 README"},
      };
      i.notes.insert(
          i.notes.begin(),
          {"Defaults window_size 2, alpha 0.9 and qkv_bias true are the published setting; the stand-alone "
           "module's constructor has alpha 0.5 and qkv_bias false.",
           "Padded tokens carry the biases as q, k and v and are not masked (the authors' padded copies).",
           "rows() of Hi-Fi heads has a column per place of the padded grid, of Lo-Fi heads per pooled key. "
           "Heads are numbered as the output's channels: Hi-Fi first."});
      i.example = image_problem(2, 9, 7, 32, 4);
      return i;
    }();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const LayerShape shape = layer_shape(info(), problem, params);
    Split split;
    split.s = params.integer("window_size");
    // The reference code truncates the double product; 0.9 * 10 heads must not become 8 or 10 by another
    // route.
    split.lo_heads = split.s == 1
                         ? shape.heads
                         : static_cast<int64_t>(static_cast<double>(shape.heads) * params.number("alpha"));
    split.hi_heads = shape.heads - split.lo_heads;
    split.hi = split.hi_heads * shape.head_dim;
    split.lo = split.lo_heads * shape.head_dim;
    return std::make_unique<HiLoInstance>(ctx, shape, split, params.boolean("qkv_bias"));
  }
};

ATTNBENCH_METHOD(HiLo);

}  // namespace
}  // namespace attnbench
