// Rectified SpaAttn: block-sparse attention over video tokens in curve order, selected from block means, and
// corrected by the same means for what was left out.
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/patterns.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_selection.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "rectified_spaattn";
  m.title = "Rectified SpaAttn";
  m.paper = "Rectified SpaAttn: Revisiting Attention Sparsity for Efficient Video Generation, 2025";
  m.arxiv = "2511.19835";
  m.family = "dynamic-sparse (block top-k / top-p, softmax, plus a correction from block means)";
  m.summary =
      "Video tokens in the order of a 3-D space-filling curve form compact blocks. Block means of queries "
      "and keys give "
      "an implicit attention map; each query block attends exactly to its best blocks, its neighbours on the "
      "curve and "
      "the text. The kept part is scaled by its true mass, and blocks whose means are trustworthy add their "
      "mean values.";
  m.formula =
      "Qp, Kp, Vp = block means;  P = softmax over visual blocks (bs tokens each) and text of scale Qp . Kp\n"
      "C_i = the first max(1 + #{cumsum <= p_keep}, int((1 - drop) NB')) columns of P_i by value, its curve "
      "neighbours,\n"
      "      and text; the first F blocks see each other\n"
      "rectifiable(i, m): |Qp_i . Kp_m| > |dq_i . Kp_m| + |Qp_i . dk_m|,  dq = mean |q - Qp|\n"
      "R_i = P_i(text) + sum of P_im over m kept or not rectifiable\n"
      "o_t = R_i softmax-attention over C_i and text + sum of P_im Vp_m over m dropped and rectifiable\n"
      "text rows: dense attention";
  m.cost =
      "Estimate D (8 NB^2 + 2 NB Tv) a head, pooling 7 N D; attention 4 D bs^2 a kept block + 4 D N Tv; text "
      "rows 4 D Tt "
      "(Nv + Tv).";
  ParamSpec grid =
      spec::param("grid", Type::list, Value(), 1, {}, "t, h, w of the tokens; null: the problem's grid");
  m.params = {
      spec::param("block_size", Type::integer, 128, 1, 256, "bs, tokens of a block"),
      spec::param("drop_rate", Type::number, 0.8, 0.0, 1.0, "share of blocks to drop"),
      spec::param("p_keep", Type::number, 0.3, 0.0, {},
                  "mass that the kept blocks must exceed; above 1: everything"),
      spec::param("text_tokens", Type::integer, 0, 0, {}, "text slots behind the video tokens"),
      spec::param("text_valid", Type::integer, Value(), 0, {}, "text tokens that are real; null: all"),
      grid,
      spec::choice("order", {"gilbert", "linear"}, "token order: the generalised Hilbert curve, or rows"),
      spec::param("neighbours", Type::boolean, true, {}, {}, "keep blocks that touch on the curve"),
      spec::param("first_frame_blocks", Type::integer, 0, 0, {},
                  "F, first blocks that always see each other"),
      spec::param("ipar", Type::boolean, true, {}, {}, "the correction; false: plain block-sparse attention"),
      spec::choice("gapr", {"test", "all", "none"}, "which dropped blocks add their mean value"),
      spec::param("warm_layers", Type::integer, 0, 0, {}, "model level: first layers that stay dense"),
      spec::param("warm_steps", Type::integer, 0, 0, {},
                  "model level: first denoising steps that stay dense"),
      scale_param()};
  m.kinds = {ProblemKind::video, ProblemKind::image, ProblemKind::sequence};
  m.figures = {
      {"end-to-end", "HunyuanVideo, 128 frames 720p, drop 0.8", "dense", "2.50x",
       "repository scripts/Inference.md"},
      {"end-to-end", "HunyuanVideo, 128 frames 720p", "dense 2430 s", "729 s, 3.33x", "README, abstract"},
      {"end-to-end", "Wan 2.1, 81 frames 720p, drop 0.75", "dense", "T2V 1.68x, I2V 1.81x",
       "scripts/Inference.md"},
      {"end-to-end", "Flux.1-dev 4096 x 4096, drop 0.9", "912 s", "570 s, 1.60x", "README"},
      {"end-to-end", "CogVideoX1.5 t2v drop 0.85 / i2v 0.75", "dense", "1.76x / 1.60x",
       "scripts/Inference.md"}};
  m.notes = {
      "q, k, v and out are in curve order; curve_order and neighbours are outputs. Inputs [B, H, Nv + Tt, "
      "D].",
      "NB' of the top-k floor is floor(Nv / bs) with a text slot and ceil(Nv / bs) without one, as the "
      "original's two "
      "forms have it. Ties: lower column (chosen).",
      "Block means divide by bs also in a short last block, whose missing rows are zeros; so do the "
      "deviations.",
      "warm_layers and warm_steps are a schedule of the model around this module and change nothing here.",
      "order linear has no neighbours. Rows of padded text queries are zeros.",
      "The estimate is f32 on the rounded inputs, whatever the problem's dtype."};
  m.example.kind = ProblemKind::video;
  m.example.batch = 2;
  m.example.heads = 2;
  m.example.grid = {5, 12, 20};
  m.example.head_dim = 16;
  return m;
}

const MethodInfo& rectified_info() {
  static const MethodInfo info = describe();
  return info;
}

using Vec = std::array<int64_t, 3>;
Vec operator+(const Vec& a, const Vec& b) { return {a[0] + b[0], a[1] + b[1], a[2] + b[2]}; }
Vec operator-(const Vec& a, const Vec& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
Vec operator-(const Vec& a) { return {-a[0], -a[1], -a[2]}; }
int64_t length_of(const Vec& a) { return std::abs(a[0] + a[1] + a[2]); }
Vec direction(const Vec& a) {
  const auto sign = [](int64_t x) { return static_cast<int64_t>((x > 0) - (x < 0)); };
  return {sign(a[0]), sign(a[1]), sign(a[2])};
}
/// Half an edge, rounded down, and made even where an odd half would break the walk.
Vec half(const Vec& a) {
  const auto floor2 = [](int64_t x) { return x >= 0 ? x / 2 : -((1 - x) / 2); };
  Vec h{floor2(a[0]), floor2(a[1]), floor2(a[2])};
  if (length_of(h) % 2 == 1 && length_of(a) > 2) h = h + direction(a);
  return h;
}

/// The generalised Hilbert curve through the box with corner p and edges a, b, c, appended as raster indices.
class Gilbert {
 public:
  Gilbert(int64_t width, int64_t height, int64_t depth) : w_(width), h_(height) {
    walk({0, 0, 0}, {width, 0, 0}, {0, height, 0}, {0, 0, depth});
  }
  std::vector<int32_t> order;

 private:
  void line(Vec p, const Vec& edge) {
    const Vec step = direction(edge);
    for (int64_t i = 0; i < length_of(edge); ++i, p = p + step)
      order.push_back(static_cast<int32_t>((p[2] * h_ + p[1]) * w_ + p[0]));
  }
  void walk(const Vec& p, const Vec& a, const Vec& b, const Vec& c) {
    const int64_t w = length_of(a), h = length_of(b), d = length_of(c);
    if (h == 1 && d == 1) return line(p, a);
    if (w == 1 && d == 1) return line(p, b);
    if (w == 1 && h == 1) return line(p, c);
    const Vec da = direction(a), db = direction(b), dc = direction(c), a2 = half(a), b2 = half(b),
              c2 = half(c);
    if (2 * w > 3 * h && 2 * w > 3 * d) {
      walk(p, a2, b, c);
      walk(p + a2, a - a2, b, c);
    } else if (3 * h > 4 * d) {
      walk(p, b2, c, a2);
      walk(p + b2, a, b - b2, c);
      walk(p + (a - da) + (b2 - db), -b2, c, -(a - a2));
    } else if (3 * d > 4 * h) {
      walk(p, c2, a2, b);
      walk(p + c2, a, b, c - c2);
      walk(p + (a - da) + (c2 - dc), -c2, -(a - a2), b);
    } else {
      walk(p, b2, c2, a2);
      walk(p + b2, c, a2, b - b2);
      walk(p + (b2 - db) + (c - dc), a, -b2, -(c - c2));
      walk(p + (a - da) + b2 + (c - dc), -c, -(a - a2), b - b2);
      walk(p + (a - da) + (b2 - db), -b2, c2, -(a - a2));
    }
  }
  int64_t w_, h_;
};

int64_t text_slots(const Params& params) { return params.integer("text_tokens"); }

class RectifiedInstance final : public BlockSelectionInstance {
 public:
  RectifiedInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, rectified_info(), problem, Layout::head_major,
                               scale_of(params, problem.head_dim), text_slots(params)),
        block_(params.integer("block_size")),
        video_(problem.tokens()),
        text_(text_slots(params)),
        valid_(params.is_null("text_valid") ? text_ : params.integer("text_valid")),
        p_keep_(params.number("p_keep")),
        correct_(params.boolean("ipar")),
        trust_(params.choice("gapr")) {
    const HeadsForm& f = form_;
    if (problem.causal) throw Unsupported("rectified_spaattn has no causal mode, and problem.causal is true");
    if (f.heads != f.kv_heads)
      throw Unsupported("rectified_spaattn has one key head for each query head, not " +
                        std::to_string(f.kv_heads) + " for " + std::to_string(f.heads));
    if (f.keys != f.queries)
      throw Unsupported("rectified_spaattn is self-attention: problem.kv_length must equal the tokens");
    if (valid_ > text_)
      throw UsageError("rectified_spaattn.text_valid: " + std::to_string(valid_) + " of " +
                       std::to_string(text_) + " text tokens");
    grid_of(problem, params);
    blocks_ = (video_ + block_ - 1) / block_;
    text_blocks_ = (valid_ + block_ - 1) / block_;
    aligned_ = video_ % block_ == 0 || valid_ == 0;
    const int64_t kept_of = text_ > 0 ? video_ / block_ : blocks_;
    least_ = static_cast<int64_t>((1.0 - params.number("drop_rate")) * static_cast<double>(kept_of));
    const int64_t first = params.integer("first_frame_blocks");
    input_specs_ = {
        spec("q", f.heads, f.queries, "queries [B, H, Nv + Tt, D], visual rows in curve order, then text"),
        spec("k", f.heads, f.queries, "keys of the same layout"),
        spec("v", f.heads, f.queries, "values of the same layout")};

    // Static plan: the curve, which blocks touch on it, and what is always kept.
    order_ = params.choice("order") == "gilbert" ? Gilbert(grid_[2], grid_[1], grid_[0]).order
                                                 : std::vector<int32_t>();
    for (int64_t i = 0; order_.empty() && i < video_; ++i) linear_.push_back(static_cast<int32_t>(i));
    touching_.assign(static_cast<size_t>(blocks_ * blocks_), 0);
    if (!order_.empty() && params.boolean("neighbours")) find_neighbours();
    columns_ = blocks_ + text_blocks_;
    always_.assign(static_cast<size_t>(blocks_ * columns_), 0);
    for (int64_t i = 0; i < blocks_; ++i)
      for (int64_t c = 0; c < columns_; ++c)
        always_[static_cast<size_t>(i * columns_ + c)] =
            c >= blocks_ || touching_[static_cast<size_t>(i * blocks_ + c)] != 0 || (i < first && c < first);

    const Shape map{f.batch, f.heads, blocks_, blocks_};
    curve_out_ = new_output(ctx, "curve_order", DType::i32, {video_});
    touching_out_ = new_output(ctx, "neighbours", DType::i32, {blocks_, blocks_});
    kept_ = new_output(ctx, "selected", DType::i32, map);
    rectifiable_ = new_output(ctx, "rectifiable", DType::i32, map);
    mass_ = new_output(ctx, "R", DType::f32, {f.batch, f.heads, blocks_});
    implicit_ = new_output(ctx, "P", DType::f32, {f.batch, f.heads, blocks_, blocks_ + (text_ > 0 ? 1 : 0)});
  }

  void prepare(Context& ctx) override {
    const HeadsForm& f = form_;
    const int64_t used = (aligned_ ? video_ : blocks_ * block_) + valid_;
    query_ = input("q").slice(2, 0, video_);
    if (aligned_) {
      key_ = input("k").slice(2, 0, used), value_ = input("v").slice(2, 0, used);
    } else {
      // Text starts a block of its own: keys and values move to where the block grid ends.
      std::vector<int32_t> from(static_cast<size_t>(used), -1);
      std::vector<uint8_t> valid(static_cast<size_t>(f.batch * used), 0);
      for (int64_t j = 0; j < used; ++j) {
        const int64_t token = j < video_ ? j : j < blocks_ * block_ ? -1 : video_ + j - blocks_ * block_;
        from[static_cast<size_t>(j)] = static_cast<int32_t>(token);
        for (int64_t b = 0; b < f.batch; ++b) valid[static_cast<size_t>(b * used + j)] = token >= 0;
      }
      spread_ = upload(ctx, {1, 1, used}, from);
      mask_.key_valid = upload(ctx, {f.batch, used}, valid);
      key_ = ctx.allocate(dtype_, {f.batch, f.heads, used, f.head_dim});
      value_ = ctx.allocate(dtype_, {f.batch, f.heads, used, f.head_dim});
    }
    lists_.n = video_, lists_.m = used, lists_.block_q = lists_.block_k = block_;
    lists_.also = upload(ctx, {blocks_, columns_}, always_);
    lists_.selected =
        text_blocks_ > 0 ? ctx.allocate(DType::i32, {f.batch, f.heads, blocks_, columns_}) : kept_;
    allocate_block_lists(ctx, lists_, f.batch, f.heads);
    const Tensor valid = mask_.key_valid;
    mask_ = block_mask_of(lists_);
    mask_.key_valid = valid;
    curve_ = upload(ctx, {video_}, order_.empty() ? linear_ : order_);
    std::vector<int32_t> near(touching_.begin(), touching_.end());
    near_ = upload(ctx, {blocks_, blocks_}, near);
    if (valid_ > 0) {
      std::vector<float> lift(static_cast<size_t>(blocks_ + valid_), 0.0f);
      std::fill(lift.begin(), lift.begin() + blocks_, std::log(static_cast<float>(block_)));
      lift_ = upload(ctx, {blocks_ + valid_}, lift);
    }
    zeros_ = upload(ctx, {f.batch * f.heads * blocks_},
                    std::vector<float>(static_cast<size_t>(f.batch * f.heads * blocks_), 0.0f));
    if (text_ > valid_)
      nowhere_ =
          upload(ctx, {1, 1, text_ - valid_}, std::vector<int32_t>(static_cast<size_t>(text_ - valid_), -1));
    const std::vector<int32_t> fixed(static_cast<size_t>(rectifiable_.numel()), trust_ == "all" ? 1 : 0);
    if (trust_ != "test") fixed_trust_ = upload(ctx, rectifiable_.shape(), fixed);
  }

  void run(Context& ctx) override {
    copy(ctx, curve_, curve_out_);
    copy(ctx, near_, touching_out_);
    if (!aligned_) {
      const auto stage = ctx.stage("spread");
      gather_tokens(ctx, {input("k"), spread_, key_});
      gather_tokens(ctx, {input("v"), spread_, value_});
    }
    estimate(ctx);
    {
      const auto stage = ctx.stage("attend");
      attention(ctx, call());
    }
    if (correct_) rectify(ctx);
    if (text_ > 0) text_rows(ctx);
    ran_ = true;
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t maps = f.batch * f.heads, element = static_cast<int64_t>(size_of(dtype_)), d = f.head_dim;
    const int64_t nb = blocks_, wide = nb + valid_, used = (aligned_ ? video_ : nb * block_) + valid_;
    ClosedForm c;
    c.data_dependent = true;
    CostSheet s;
    // Attention of the visual rows over the kept blocks.
    int64_t pairs = 0, entries = 0;
    if (ran_) {
      const Tensor host = on_host(*ctx_, lists_.selected);
      for (int64_t i = 0; i < host.numel(); ++i) {
        if (!host.data<int32_t>()[i]) continue;
        const int64_t column = i % columns_, r = i / columns_ % nb;
        pairs += (std::min(video_, (r + 1) * block_) - r * block_) *
                 (std::min(used, (column + 1) * block_) - column * block_);
        ++entries;
      }
    } else {
      pairs = maps * video_ * used;
    }
    s.c.matmul = 4 * d * pairs, s.c.elementwise = 4 * pairs, s.c.special = pairs;
    s.bytes(maps * (video_ + 2 * used) * d * element + 4 * (2 * maps * nb + entries) +
                (aligned_ ? 0 : f.batch * used),
            maps * video_ * d * element);
    if (!aligned_) s.bytes(2 * (maps * used * d * element + 4 * used), 2 * maps * used * d * element);
    // Means and deviations.
    s.pool(2 * maps * video_ * d, element, 2 * maps * nb * d);
    s.gemm(maps, nb, nb, d);
    if (valid_ > 0) {
      if (dtype_ != DType::f32) s.pool(maps * valid_ * d, element, maps * valid_ * d);
      s.c.matmul += 2 * maps * nb * valid_ * d;
      s.bytes(4 * maps * (nb * d + valid_ * d), 4 * maps * nb * valid_);
    }
    if (trust_ == "test") {
      s.work(2 * maps * (3 * video_ + nb) * d, 2 * maps * (video_ * element + nb * 4) * d,
             2 * 4 * maps * nb * d);
      s.gemm(maps, nb, nb, d);
      s.gemm(maps, nb, nb, d);
      s.work(2 * maps * nb * nb, 12 * maps * nb * nb, 4 * maps * nb * nb);
    }
    if (valid_ > 0) {
      s.work(maps * nb * wide, 4 * (maps * nb * wide + wide), 4 * maps * nb * wide);
      s.softmax(maps * nb * wide);
      s.bytes(4 * maps * nb * nb, 4 * maps * nb * nb);
      s.work(maps * nb * valid_, 4 * maps * nb * valid_, 4 * maps * nb);
    } else {
      s.softmax(maps * nb * nb);
      if (text_ > 0) s.bytes(4 * maps * nb * (nb + 1), 4 * maps * nb * (nb + 1));
    }
    const int64_t ranked = nb + (text_ > 0 && valid_ > 0 ? 1 : 0);
    int64_t bits = 0;
    while ((int64_t{1} << bits) < ranked) ++bits;
    s.work(maps * nb * ranked * (bits + 1), 4 * maps * nb * ranked, maps * nb * ranked);
    s.bytes(maps * nb * columns_ + nb * columns_, 8 * maps * nb + 4 * maps * nb * columns_);
    if (text_blocks_ > 0) s.bytes(4 * maps * nb * nb, 4 * maps * nb * nb);
    if (correct_) {
      s.pool(maps * video_ * d, element, maps * nb * d);
      if (text_ > 0) s.bytes(4 * maps * nb * nb, 4 * maps * nb * nb);
      s.bytes(12 * maps * nb * nb, 4 * maps * nb * nb);
      s.work(maps * nb * nb, 4 * maps * nb * nb, 4 * maps * nb);
      s.work(maps * nb, 4 * maps * nb, 4 * maps * nb);
      s.gemm(maps, nb, d, nb);
      s.work(2 * maps * video_ * d, maps * (video_ * d * element + 4 * nb + 4 * nb * d),
             maps * video_ * d * element);
    } else {
      s.work(maps * nb, 4 * maps * nb, 4 * maps * nb);
    }
    if (valid_ > 0) {
      const int64_t keys = video_ + valid_;
      s.c.matmul += 4 * d * maps * valid_ * keys;
      s.c.elementwise += 4 * maps * valid_ * keys;
      s.c.special += maps * valid_ * keys;
      s.bytes(maps * (valid_ + 2 * keys) * d * element, maps * valid_ * d * element);
    }
    if (text_ > valid_)
      s.bytes(maps * (text_ - valid_) * d * element + 4 * (text_ - valid_),
              maps * (text_ - valid_) * d * element);
    c.cost = s.c;
    return c;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = form_.batch, set.heads = form_.heads;
    set.queries = set.tokens = form_.queries;
    set.same_for_all_batches = form_.batch == 1;
    std::vector<int32_t> kept(static_cast<size_t>(form_.batch * form_.heads * blocks_ * blocks_), 1);
    if (ran_) {
      const Tensor host = on_host(*ctx_, kept_);
      kept.assign(host.data<int32_t>(), host.data<int32_t>() + host.numel());
    }
    set.row = [kept, heads = form_.heads, nb = blocks_, block = block_, video = video_, valid = valid_](
                  int64_t b, int64_t h, int64_t i, Intervals& out) {
      out.clear();
      const auto add = [&out](int64_t begin, int64_t end) {
        if (begin >= end) return;
        if (!out.empty() && out.back().end == begin)
          out.back().end = end;
        else
          out.push_back({begin, end});
      };
      if (i >= video + valid) return;
      for (int64_t c = 0; c < nb; ++c)
        if (i >= video || kept[static_cast<size_t>(((b * heads + h) * nb + i / block) * nb + c)])
          add(c * block, std::min(video, (c + 1) * block));
      add(video, video + valid);
    };
    return set;
  }
  /// Exact weights times R, and the share of a rectified block spread evenly over its bs tokens.
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    const int64_t tokens = form_.keys, used = key_.dim(2);
    out.assign(static_cast<size_t>((q_end - q_begin) * tokens), 0.0f);
    std::vector<float> part;
    const int64_t last = std::min(q_end, video_);
    if (q_begin < last) {
      attention_rows(ctx, call(), b, h, q_begin, last, part);
      const Tensor R = on_host(ctx, mass_), W = correct_ ? on_host(ctx, weights_) : Tensor();
      for (int64_t i = q_begin; i < last; ++i) {
        const int64_t row = (b * form_.heads + h) * blocks_ + i / block_;
        float* to = out.data() + (i - q_begin) * tokens;
        for (int64_t j = 0; j < used; ++j) {
          const int64_t token = aligned_ || j < video_ ? j
                                : j < blocks_ * block_ ? -1
                                                       : video_ + j - blocks_ * block_;
          if (token >= 0)
            to[token] = R.data<float>()[row] * part[static_cast<size_t>((i - q_begin) * used + j)];
        }
        for (int64_t j = 0; W && j < video_; ++j)
          to[j] += W.data<float>()[row * blocks_ + j / block_] / static_cast<float>(block_);
      }
    }
    const int64_t first = std::max(q_begin, video_), end = std::min(q_end, video_ + valid_);
    if (first < end) {
      attention_rows(ctx, text_call(), b, h, first - video_, end - video_, part);
      const int64_t keys = video_ + valid_;
      for (int64_t i = first; i < end; ++i)
        std::copy_n(part.begin() + (i - first) * keys, keys, out.begin() + (i - q_begin) * tokens);
    }
    return true;
  }
  std::optional<RowStats> row_stats(Context&) override { return std::nullopt; }
  /// Valid rows against all valid keys.
  std::optional<DenseEquivalent> dense_equivalent(Context& ctx) override {
    const int64_t n = form_.queries, seen = video_ + valid_;
    DenseEquivalent d;
    d.call.q = input("q"), d.call.k = input("k"), d.call.v = input("v");
    d.call.scale = scale_;
    d.output = out_;
    d.visited = visited_pairs(ctx, call()) + (valid_ > 0 ? visited_pairs(ctx, text_call()) : 0);
    if (seen < n) {
      std::vector<int32_t> end(static_cast<size_t>(n), static_cast<int32_t>(seen));
      std::fill(end.begin() + seen, end.end(), 0);
      BlockMask valid;
      valid.row_begin = upload(ctx, {1, 1, n}, std::vector<int32_t>(end.size(), 0));
      valid.row_end = upload(ctx, {1, 1, n}, end);
      d.set_mask(std::move(valid));
    }
    d.pairs.batch = form_.batch, d.pairs.heads = form_.heads;
    d.pairs.queries = d.pairs.tokens = n;
    d.pairs.row = [seen](int64_t, int64_t, int64_t i, Intervals& out) {
      out.clear();
      if (i < seen) out.push_back({0, seen});
    };
    return d;
  }
  std::optional<BlockEstimate> block_estimate(Context&) override {
    return BlockEstimate{implicit_.slice(3, 0, blocks_), block_, block_, video_, video_};
  }

 private:
  void grid_of(const Problem& problem, const Params& params) {
    std::vector<int64_t> given;
    if (!params.is_null("grid"))
      for (const Value& v : params.value("grid").as_list()) {
        if (!v.is_int()) throw UsageError("rectified_spaattn.grid: whole numbers are wanted, not " + v.str());
        given.push_back(v.as_int());
      }
    if (given.empty()) given = problem.grid;
    if (given.size() == 2) given.insert(given.begin(), 1);
    if (given.size() != 3)
      throw UsageError("rectified_spaattn.grid: three extents t, h, w are wanted, not " +
                       params.value("grid").str() + " (a sequence has no grid of its own)");
    if (given[0] * given[1] * given[2] != video_)
      throw UsageError("rectified_spaattn.grid: " + std::to_string(given[0]) + " x " +
                       std::to_string(given[1]) + " x " + std::to_string(given[2]) +
                       " are not the problem's " + std::to_string(video_) + " tokens");
    grid_ = {given[0], given[1], given[2]};
  }

  void find_neighbours() {
    std::vector<int64_t> place(static_cast<size_t>(video_));
    for (int64_t p = 0; p < video_; ++p) place[static_cast<size_t>(order_[static_cast<size_t>(p)])] = p;
    const int64_t h = grid_[1], w = grid_[2];
    for (int64_t z = 0; z < grid_[0]; ++z)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) {
          const int64_t own = place[static_cast<size_t>((z * h + y) * w + x)] / block_;
          for (int64_t k = std::max<int64_t>(z - 1, 0); k <= std::min(z + 1, grid_[0] - 1); ++k)
            for (int64_t j = std::max<int64_t>(y - 1, 0); j <= std::min(y + 1, h - 1); ++j)
              for (int64_t i = std::max<int64_t>(x - 1, 0); i <= std::min(x + 1, w - 1); ++i)
                touching_[static_cast<size_t>(own * blocks_ +
                                              place[static_cast<size_t>((k * h + j) * w + i)] / block_)] = 1;
        }
  }

  Tensor pooled(Context& ctx, const Tensor& x, int64_t block, PoolTokensArgs::Kind kind,
                const Tensor& center = {}) {
    PoolTokensArgs a;
    a.kind = kind;
    a.divisor = PoolTokensArgs::Divisor::whole;
    a.block = block;
    a.x = x, a.center = center;
    a.y = ctx.allocate(DType::f32, {x.dim(0), x.dim(1), (x.dim(2) + block - 1) / block, x.dim(3)});
    pool_tokens(ctx, a);
    return a.y;
  }
  void product(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& c) {
    GemmArgs g;
    g.a = a, g.b = b, g.c = c;
    g.b_transposed = true;
    g.alpha = scale_;
    gemm(ctx, g);
  }

  void estimate(Context& ctx) {
    using Kind = PoolTokensArgs::Kind;
    const HeadsForm& f = form_;
    const int64_t nb = blocks_;
    const Shape map{f.batch, f.heads, nb, nb};
    Tensor mean_q, mean_k, scores;
    const Tensor k = input("k").slice(2, 0, video_);
    {
      const auto stage = ctx.stage("pool");
      mean_q = pooled(ctx, query_, block_, Kind::mean);
      mean_k = pooled(ctx, k, block_, Kind::mean);
    }
    const auto stage = ctx.stage("select");
    // Visual scores and, beside them, those of every text token.
    scores = ctx.allocate(DType::f32, {f.batch, f.heads, nb, nb + valid_});
    const Tensor visual = scores.slice(3, 0, nb);
    product(ctx, mean_q, mean_k, visual);
    if (valid_ > 0) {
      const Tensor text = input("k").slice(2, video_, video_ + valid_);
      product(ctx, mean_q, dtype_ == DType::f32 ? text : pooled(ctx, text, 1, Kind::sum),
              scores.slice(3, nb, nb + valid_));
    }
    if (trust_ == "test") {
      // All three products carry the scale: the comparison does not change.
      const Tensor spread_q = pooled(ctx, query_, block_, Kind::absolute_deviation, mean_q);
      const Tensor spread_k = pooled(ctx, k, block_, Kind::absolute_deviation, mean_k);
      const Tensor error_q = ctx.allocate(DType::f32, map), error_k = ctx.allocate(DType::f32, map);
      product(ctx, spread_q, mean_k, error_q);
      product(ctx, mean_q, spread_k, error_k);
      CompareArgs c;
      c.x = visual, c.y = error_q, c.z = error_k;
      c.flag = rectifiable_;
      compare_flags(ctx, c);
    } else {
      copy(ctx, fixed_trust_, rectifiable_);
    }
    if (valid_ > 0) {
      PointwiseArgs lift;
      lift.a = lift.y = scores;
      lift.b = lift_;
      pointwise(ctx, lift);
      softmax(ctx, {scores, scores});
      transpose_copy(ctx, {visual, implicit_.slice(3, 0, nb)});
      CellSumsArgs sum;
      sum.x = scores.slice(3, nb, nb + valid_);
      sum.columns = valid_;
      sum.y = implicit_.slice(3, nb, nb + 1);
      cell_sums(ctx, sum);
    } else if (text_ > 0) {
      softmax(ctx, {scores, scores});
      transpose_copy(ctx, {scores, implicit_.slice(3, 0, nb)});
      transpose_copy(ctx, {zeros_.reshape({f.batch, f.heads, nb, 1}), implicit_.slice(3, nb, nb + 1)});
    } else {
      softmax(ctx, {scores, implicit_});
    }
    const int64_t ranked = nb + (valid_ > 0 ? 1 : 0);
    // Columns behind the visual ones are text: always kept, whatever the flags say.
    lists_.bitmap = ctx.allocate(DType::u8, {f.batch, f.heads, nb, columns_});
    TopPArgs p;
    p.x = implicit_.slice(3, 0, ranked);
    p.flag = lists_.bitmap.slice(3, 0, ranked);
    p.p = p_keep_;
    p.inclusive = true;
    p.min_keep = least_;
    top_p(ctx, p);
    build_block_lists(ctx, lists_);
    if (text_blocks_ > 0) transpose_copy(ctx, {lists_.selected.slice(3, 0, nb), kept_});
    if (!correct_) {
      PointwiseArgs one;
      one.op = PointwiseArgs::Op::affine;
      one.a = zeros_.reshape(mass_.shape());
      one.y = mass_;
      one.alpha = 0.0f, one.beta = 1.0f;
      pointwise(ctx, one);
    }
  }

  void rectify(Context& ctx) {
    const auto stage = ctx.stage("rectify");
    const HeadsForm& f = form_;
    const int64_t nb = blocks_;
    const Shape map{f.batch, f.heads, nb, nb};
    const Tensor mean_v = pooled(ctx, input("v").slice(2, 0, video_), block_, PoolTokensArgs::Kind::mean);
    Tensor visual = implicit_;
    if (text_ > 0) {
      visual = ctx.allocate(DType::f32, map);
      transpose_copy(ctx, {implicit_.slice(3, 0, nb), visual});
    }
    weights_ = ctx.allocate(DType::f32, map);
    MaskValuesArgs m;
    m.x = visual, m.y = weights_;
    m.first = kept_, m.first_set = false;
    m.second = rectifiable_;
    mask_values(ctx, m);
    // All of P sums to one: what is not rectified stays with the exact part.
    CellSumsArgs sum;
    sum.x = weights_;
    sum.columns = nb;
    sum.y = mass_.reshape({f.batch, f.heads, nb, 1});
    cell_sums(ctx, sum);
    PointwiseArgs rest;
    rest.op = PointwiseArgs::Op::affine;
    rest.a = rest.y = mass_;
    rest.alpha = -1.0f, rest.beta = 1.0f;
    pointwise(ctx, rest);
    GemmArgs g;
    g.a = weights_, g.b = mean_v;
    g.c = ctx.allocate(DType::f32, {f.batch, f.heads, nb, f.head_dim});
    gemm(ctx, g);
    const Tensor o = out_.slice(2, 0, video_);
    block_affine(ctx, {o, mass_, g.c, o, block_});
  }

  void text_rows(Context& ctx) {
    const auto stage = ctx.stage("text");
    if (valid_ > 0) attention(ctx, text_call());
    if (text_ > valid_)
      gather_tokens(ctx, {input("q"), nowhere_, out_.slice(2, video_ + valid_, video_ + text_)});
  }
  AttentionArgs text_call() const {
    AttentionArgs a;
    a.q = input("q").slice(2, video_, video_ + valid_);
    a.k = input("k").slice(2, 0, video_ + valid_), a.v = input("v").slice(2, 0, video_ + valid_);
    a.o = out_.slice(2, video_, video_ + valid_);
    a.scale = scale_;
    return a;
  }
  AttentionArgs call() const override {
    AttentionArgs a;
    a.q = query_, a.k = key_, a.v = value_;
    a.o = out_.slice(2, 0, video_);
    a.scale = scale_;
    a.mask = &mask_;
    return a;
  }

  int64_t block_, video_, text_, valid_, blocks_ = 0, text_blocks_ = 0, columns_ = 0, least_ = 0;
  double p_keep_;
  bool correct_, aligned_ = true;
  std::string trust_;
  std::array<int64_t, 3> grid_{};
  std::vector<int32_t> order_, linear_;
  std::vector<uint8_t> touching_, always_;
  Tensor curve_out_, touching_out_, kept_, rectifiable_, mass_, implicit_, curve_, near_, lift_, zeros_,
      nowhere_, spread_, fixed_trust_, weights_;
};

class RectifiedSpaAttn final : public Method {
 public:
  const MethodInfo& info() const override { return rectified_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<RectifiedInstance>(ctx, problem, params);
  }
};
ATTNBENCH_METHOD(RectifiedSpaAttn);

}  // namespace
}  // namespace attnbench
