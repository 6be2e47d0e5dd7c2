// PAINT: visual tokens that two vision maps name get their logits amplified in the last query row.
// Card: fixing_imbalanced.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "fixing_imbalanced";
  m.title = "Selective emphasis of visual tokens in the last query row (PAINT)";
  m.paper =
      "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model, 2025 "
      "(v3: PAINT: Paying Attention to INformed Tokens)";
  m.arxiv = "2501.12206";
  m.family = "dense (causal softmax with key-dependent amplification on the last query row)";
  m.summary =
      "Two attention maps of the vision encoder name local and summary tokens of the image. In the last "
      "query row of a "
      "causal call their logits are pushed up by a share of their magnitude; all other rows stay dense.";
  m.formula =
      "a_loc[j] = sum_h A1[h, CLS, j];  a_sum[j] = sum_h A2[h, CLS, j];  b[j] = mean_h sum_i A1[h, i, j]\n"
      "Sm = patches with a_sum > Q3 + f (Q3 - Q1);  Lc0, Sp = the int(Nv ratio) largest a_loc, b\n"
      "Lc = (Lc0 or Sp) minus Sm\n"
      "row N - 1: z[v0 + j] += alpha |z| for j in Lc, beta |z| for j in Sm;  o = softmax(z) v";
  m.cost =
      "dense causal 4 D per pair and head, once more 3 x 2 D M a head for the last row (its logits, and the "
      "row before "
      "and after the change), 10 M pointwise a head; selector 2 Hv Nv adds a map (Hv (Nv + 1)^2 with "
      "spatial_ratio).";
  ParamSpec iqr = spec::param("iqr_factor", ParamSpec::Type::number, 1.5, "f, step 2");
  iqr.min = 0;
  ParamSpec gamma = spec::param("guidance_gamma", ParamSpec::Type::number, Value(),
                                "logit guidance of the published runs (1.1), outside the module");
  gamma.nullable = true;
  gamma.min = 1;
  m.params = {
      spec::share("alpha", 0.7, "local factor (published 0.1 to 0.9)"),
      spec::share("beta", 0.4, "summary factor"),
      spec::share("local_ratio", 0.25, "share of Nv in Lc0"),
      spec::share("spatial_ratio", 0.0, "share of Nv in Sp (0.05 for the spatial variant)"),
      spec::choice(
          "spatial_axis", {"query_cols", "key_rows"},
          "query_cols: attention a patch receives; key_rows: what the released code sums, 1 for every patch"),
      iqr,
      spec::integer("layer_first", 2, 0, "first language layer modified, of the host model"),
      spec::integer("layer_last", 31, 0, "last one, inclusive"),
      spec::param("vis_layer_local", ParamSpec::Type::integer, 0, "vision layer of A1, of the host model"),
      spec::param("vis_layer_summary", ParamSpec::Type::integer, -2, "vision layer of A2, of the host model"),
      spec::integer("num_vision_tokens", 576, 4, "Nv (24 x 24)"),
      spec::integer("num_vision_heads", 16, 1, "Hv (CLIP-L)"),
      spec::integer("image_offset", 35, 0, "v0: key of the first image token"),
      spec::integer("num_heads", 32, 1, "H (LLaVA-1.5-7B)", "heads"),
      spec::integer("num_kv_heads", 32, 1, "Hkv", "kv_heads"),
      spec::integer("head_dim", 128, 1, "D", "head_dim"),
      spec::choice("mode", {"paint", "pai", "off"},
                   "pai: every image token is local, none is summary; off: dense"),
      spec::choice(
          "head_mode", {"uniform", "visual_share"},
          "visual_share: factors times the head's mass on the image over the mean of heads, cut to [0, 2] "
          "(chosen)"),
      gamma};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"CHAIR_S / CHAIR_I / F1", "LLaVA-1.5, alpha 0.7, beta 0.4, 25 %",
       "46.2 / 13.8 / 75.9 (PAI 24.6 / 6.8 / 74.7)", "17.6 / 4.0 / 71.8", "table 1"},
      {"CHAIR_S / CHAIR_I / F1", "the same with 5 % spatial", "46.2 / 13.8 / 75.9", "15.4 / 4.8 / 69.8",
       "tables 1, 5"},
      {"CHAIR_S", "alpha 0.1 0.3 0.4 0.5 0.7 0.8 0.9 (beta 0.3)", "46.2", "47.4 47.2 48.2 49.4 18.0 4.6 1.0",
       "table 2"},
      {"CHAIR_S", "beta 0.1 0.2 0.3 0.4 (alpha 0.7)", "46.2", "20.2 18.2 18.0 17.6", "table 3"},
      {"CHAIR_S", "local ratio 0.1 0.15 0.2 0.25 0.3", "46.2", "44.0 38.2 29.6 17.6 12.8", "table 4"},
      {"headline reduction", "CHAIR_S", "", "up to 62.3 % (the tables give 61.9 and 66.7)", "abstract"}};
  m.notes = {
      "n_sum is the count itself: the released int(Nv (n_sum / Nv)) can lose one to rounding (chosen).",
      "Ties of a top-k: lower index (chosen). key_rows compares sums rounded to 1e-6: they are 1 but for "
      "rounding.",
      "A map of Nv rows has no CLS row: its column mean stands in (chosen).",
      "The sets are chosen on the host from three reduced rows of Nv numbers: they have to be named, and "
      "their sizes are "
      "data. Every image of a batch shares them, as A1 and A2 are one image's.",
      "The change is an additive bias on one row of the fused operator; the other rows come from one dense "
      "call and are "
      "the same bits for any setting. Without effect (off, both factors 0, both sets empty) the dense call "
      "is all.",
      "pai: no summary set is sought, so n_sum is 0 and Lc0 is not given. Sm is absent when empty.",
      "layer_first, layer_last, vis_layer_* and guidance_gamma belong to the host model and change nothing "
      "here."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 630;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

const MethodInfo& paint_info() {
  static const MethodInfo info = describe();
  return info;
}

void call_pointwise(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y,
                    float alpha = 1.0f, float beta = 0.0f) {
  PointwiseArgs p;
  p.op = op;
  p.a = a;
  p.b = b;
  p.y = y;
  p.alpha = alpha;
  p.beta = beta;
  pointwise(ctx, p);
}

class PaintInstance final : public HeadsInstance {
 public:
  PaintInstance(Context& ctx, const Problem& problem, const Params& p, int64_t map_tokens)
      : HeadsInstance(ctx, paint_info(), problem, 1.0 / std::sqrt(static_cast<double>(problem.head_dim))),
        nv_(p.integer("num_vision_tokens")),
        hv_(p.integer("num_vision_heads")),
        v0_(p.integer("image_offset")),
        map_(map_tokens),
        alpha_(p.number("alpha")),
        beta_(p.number("beta")),
        local_(static_cast<int64_t>(static_cast<double>(nv_) * p.number("local_ratio"))),
        spatial_(static_cast<int64_t>(static_cast<double>(nv_) * p.number("spatial_ratio"))),
        wants_spatial_(p.number("spatial_ratio") > 0),
        key_rows_(p.choice("spatial_axis") == "key_rows"),
        iqr_(p.number("iqr_factor")),
        mode_(p.choice("mode")),
        visual_share_(p.choice("head_mode") == "visual_share") {
    // Positive, with a few columns far above the others, as vision maps have them.
    const auto map = [&](const char* name, const char* meaning) {
      TensorSpec s{name, {hv_, map_, map_}, dtype_, Init::normal(), false, meaning};
      s.init.kind = Init::Kind::values;
      s.init.value = [seed = problem.seed, stream = stream_of(name), n = map_](int64_t i) {
        const double column = random_uniform(seed, stream + 1, static_cast<uint64_t>(i % n));
        return (random_uniform(seed, stream, static_cast<uint64_t>(i)) + 4 * std::pow(column, 24)) /
               static_cast<double>(n);
      };
      input_specs_.push_back(s);
    };
    map("A1", "first vision layer's attention [Hv, Nv + 1, Nv + 1], row 0 CLS");
    map("A2", "second-to-last vision layer's attention [Hv, Nv + 1, Nv + 1]");
    const Shape heads{form_.batch, form_.heads};
    for (const char* name : {"visual_mass_before", "visual_mass_after", "mass_local_after",
                             "mass_summary_after", "entropy_before", "entropy_after"})
      out_[name] = ctx.allocate(DType::f32, heads, MemoryClass::output);
    out_["output"] = o_;
    out_["last_row"] = ctx.allocate(DType::f32, {form_.batch, form_.heads, form_.keys}, MemoryClass::output);
    out_["n_sum"] = ctx.allocate(DType::i32, {1}, MemoryClass::output);
    for (const char* name : {"a_loc", "a_sum"})
      out_[name] = ctx.allocate(DType::f32, {nv_}, MemoryClass::output);
    if (wants_spatial_) out_["b"] = ctx.allocate(DType::f32, {nv_}, MemoryClass::output);
    changed_ = may_change();
  }

  void prepare(Context& ctx) override {
    ones_ = upload(ctx, {std::max(hv_ * map_, map_), 1},
                   std::vector<float>(static_cast<size_t>(std::max(hv_ * map_, map_)), 1.0f));
    std::vector<float> visual(static_cast<size_t>(form_.keys), 0.0f);
    std::fill(visual.begin() + v0_, visual.begin() + v0_ + nv_, 1.0f);
    visual_ = upload(ctx, {form_.keys, 1}, visual);
  }

  void run(Context& ctx) override {
    {
      const auto stage = ctx.stage("select");
      select(ctx);
    }
    const int64_t n = form_.queries;
    AttentionArgs all = call();
    if (n > 1 || !changed_) {
      const auto stage = ctx.stage("attend");
      attention(ctx, all);
    }
    const auto stage = ctx.stage("last_row");
    last_row(ctx, all);
  }

  TensorMap outputs() const override { return out_; }
  bool capturable() const override { return false; }  // the sets are chosen on the host

  ClosedForm cost() const override {
    const int64_t e = static_cast<int64_t>(size_of(dtype_)), b = form_.batch, h = form_.heads, m = form_.keys,
                  d = form_.head_dim, n = form_.queries, bh = b * h;
    const auto product = [](int64_t rows, int64_t inner, int64_t columns, int64_t b_elements) {
      Cost c;
      c.matmul = 2 * rows * inner * columns;
      c.bytes_read = (rows * inner + b_elements) * 4;
      c.bytes_written = rows * columns * 4;
      return c;
    };
    const auto moved = [](int64_t count, int64_t from, int64_t to) {
      Cost c;
      c.bytes_read = count * from;
      c.bytes_written = count * to;
      return c;
    };
    const auto unary = [](int64_t count, int64_t second, bool special) {
      Cost c;
      (special ? c.special : c.elementwise) = count;
      c.bytes_read = (count + second) * 4;
      c.bytes_written = count * 4;
      return c;
    };
    ClosedForm f;
    // Selector: CLS rows (or all rows) of both maps, summed; b from the whole first map.
    const bool cls = map_ > nv_;
    const int64_t rows = cls ? hv_ : hv_ * nv_, whole = hv_ * map_ * map_;
    Cost map = product(1, rows, nv_, rows * nv_);
    if (cls) map += moved(rows * nv_, e, e);
    if (e != 4) map += moved(rows * nv_, e, 4);
    f.cost += map * 2;
    if (wants_spatial_) {
      if (e != 4) f.cost += moved(whole, e, 4);
      if (key_rows_)
        f.cost += product(hv_ * map_, map_, 1, map_) + product(1, hv_, nv_, hv_ * nv_);
      else
        f.cost += product(1, hv_ * map_, nv_, hv_ * map_ * nv_);
    }
    const int64_t offset = m - n, pairs = n * offset + n * (n + 1) / 2;
    if (n > 1 || !changed_) f.cost += fused_cost(pairs);
    // The last row: logits in f32, probabilities, masses, entropies.
    const int64_t kv = b * form_.kv_heads * m * d, q = bh * d;
    if (e != 4) f.cost += moved(q, e, e) + moved(q, e, 4) + moved(kv, e, 4);
    if (e == 4) f.cost += moved(q, 4, 4);
    f.cost += product(bh, d, m, kv);
    Cost softmax;
    softmax.special = bh * m;
    softmax.elementwise = 4 * bh * m;
    softmax.bytes_read = softmax.bytes_written = bh * m * 4;
    Cost attend;
    attend.matmul = 4 * d * bh * m;
    attend.special = bh * m;
    attend.elementwise = 4 * bh * m;
    attend.bytes_read = (q + 2 * kv) * e;
    attend.bytes_written = q * e + bh * 4;
    const Cost mass = product(bh, m, 1, m);
    f.cost += softmax + mass + attend;
    if (!changed_) {
      f.cost += moved(bh * m, 4, 4) + moved(bh, 4, 4) * 2 + mass * 2;
      return f;
    }
    f.cost += unary(bh * m, 0, true) + unary(bh * m, 0, false) + unary(bh * m, bh * m, false);
    f.cost += visual_share_ ? product(bh, 1, m, m) + unary(bh * m, bh * m, false) : unary(bh * m, m, false);
    attend.bytes_read += bh * m * 4;
    f.cost += unary(bh * m, bh * m, false) + softmax + mass * 3 + attend;
    return f;
  }

  bool rows(Context& ctx, int64_t b, int64_t h, int64_t begin, int64_t end,
            std::vector<float>& out) override {
    attention_rows(ctx, call(), b, h, begin, end, out);
    if (end != form_.queries || begin == end) return true;
    const Tensor row = out_.at("last_row").select(0, b).select(0, h);
    copy(ctx, row,
         Tensor::borrow(DeviceKind::cpu, DType::f32, {form_.keys},
                        out.data() + (end - 1 - begin) * form_.keys));
    ctx.backend().synchronize();
    return true;
  }
  // Weights are moved after the softmax.
  std::optional<DenseEquivalent> dense_equivalent(Context&) override { return std::nullopt; }
  std::optional<RowStats> row_stats(Context& ctx) override {
    RowStats s = attention_row_stats(ctx, call());
    const int64_t last = form_.queries - 1;
    transpose_copy(ctx, {out_.at("entropy_after"), s.entropy.select(2, last)});
    if (s.row_max_probability) {
      ReduceArgs r;
      r.op = ReduceArgs::Op::max;
      r.all = false;
      r.x = out_.at("last_row");
      r.y = ctx.allocate(DType::f32, {form_.batch, form_.heads});
      reduce(ctx, r);
      transpose_copy(ctx, {r.y, s.row_max_probability.select(2, last)});
    }
    return s;
  }

 private:
  /// Whether any setting of the sets could change the row.
  bool may_change() const { return mode_ != "off" && (alpha_ > 0 || (beta_ > 0 && mode_ == "paint")); }

  Tensor in_f32(Context& ctx, const Tensor& t) const {
    if (dtype_ == DType::f32) return t;
    const Tensor y = ctx.allocate(DType::f32, t.shape());
    cast(ctx, {t, y});
    return y;
  }

  /// y [Nv] = scale * sum over the rows of x [R, Nv] f32.
  void sum_rows(Context& ctx, const Tensor& x, const Tensor& y, double scale) const {
    GemmArgs g;
    g.a = ones_.slice(0, 0, x.dim(0)).reshape({1, x.dim(0)});
    g.b = x;
    g.c = y.reshape({1, nv_});
    g.alpha = static_cast<float>(scale);
    gemm(ctx, g);
  }

  void select(Context& ctx) {
    const bool cls = map_ > nv_;
    const auto received = [&](const char* map, const char* name) {
      const Tensor a = input(map);
      Tensor rows;
      if (cls) {
        rows = ctx.allocate(dtype_, {hv_, nv_});
        transpose_copy(ctx, {a.select(1, 0).slice(1, map_ - nv_, map_), rows});
      } else {
        rows = a.reshape({hv_ * nv_, nv_});
      }
      sum_rows(ctx, in_f32(ctx, rows), out_.at(name), cls ? 1.0 : 1.0 / static_cast<double>(nv_));
    };
    received("A1", "a_loc");
    received("A2", "a_sum");
    if (wants_spatial_) {
      const Tensor a = in_f32(ctx, input("A1"));
      const double mean = 1.0 / static_cast<double>(hv_);
      if (key_rows_) {
        const Tensor sums = ctx.allocate(DType::f32, {hv_, map_});
        GemmArgs g;
        g.a = a.reshape({hv_ * map_, map_});
        g.b = ones_.slice(0, 0, map_);
        g.c = sums.reshape({hv_ * map_, 1});
        gemm(ctx, g);
        sum_rows(ctx, sums.slice(1, map_ - nv_, map_), out_.at("b"), mean);
      } else {
        sum_rows(ctx, a.reshape({hv_ * map_, map_}).slice(1, map_ - nv_, map_), out_.at("b"), mean);
      }
    }
    ctx.backend().synchronize();
    choose(ctx);
  }

  std::vector<double> read(Context& ctx, const char* name) const {
    const Tensor& t = out_.at(name);
    std::vector<float> v(static_cast<size_t>(t.numel()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, DType::f32, t.shape(), v.data()));
    return {v.begin(), v.end()};
  }

  /// The k largest, ties by lower index, as flags.
  static std::vector<char> largest(const std::vector<double>& x, int64_t k) {
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
    std::vector<char> flags(x.size(), 0);
    for (int64_t i = 0; i < k; ++i) flags[order[static_cast<size_t>(i)]] = 1;
    return flags;
  }

  void set_output(Context& ctx, const std::string& name, const std::vector<char>& flags) {
    std::vector<int32_t> list;
    for (size_t i = 0; i < flags.size(); ++i)
      if (flags[i]) list.push_back(static_cast<int32_t>(i));
    const Shape shape{static_cast<int64_t>(list.size())};
    const Tensor t = ctx.allocate(DType::i32, shape, MemoryClass::output);
    if (!list.empty()) copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::i32, shape, list.data()), t);
    out_[name] = t;
  }

  /// Steps 2 to 5: the sets, and each key's class as factors on the device.
  void choose(Context& ctx) {
    for (const char* name : {"Sm", "Lc0", "Sp"}) out_.erase(name);
    const auto n = static_cast<size_t>(nv_);
    std::vector<char> local(n, 0), summary(n, 0);
    int32_t count = 0;
    if (mode_ == "pai") {
      std::fill(local.begin(), local.end(), 1);
    } else {
      const std::vector<double> sum = read(ctx, "a_sum");
      std::vector<double> sorted = sum;
      std::sort(sorted.begin(), sorted.end());
      const auto quartile = [&](double q) {
        const double at = q * static_cast<double>(n - 1);
        const auto below = static_cast<size_t>(at);
        const size_t above = std::min(below + 1, n - 1);
        return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
      };
      const double q1 = quartile(0.25), q3 = quartile(0.75), limit = q3 + iqr_ * (q3 - q1);
      for (double v : sum) count += v > limit;
      summary = largest(sum, count);
      local = largest(read(ctx, "a_loc"), local_);
      set_output(ctx, "Lc0", local);
      if (wants_spatial_) {
        std::vector<double> b = read(ctx, "b");
        if (key_rows_)
          for (double& v : b) v = std::round(v * 1e6);
        const std::vector<char> spatial = largest(b, spatial_);
        set_output(ctx, "Sp", spatial);
        for (size_t i = 0; i < n; ++i) local[i] = local[i] || spatial[i];
      }
      for (size_t i = 0; i < n; ++i) local[i] = local[i] && !summary[i];
      if (count > 0) set_output(ctx, "Sm", summary);
    }
    set_output(ctx, "Lc", local);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::i32, {1}, &count), out_.at("n_sum"));
    const auto m = static_cast<size_t>(form_.keys);
    std::vector<float> factor(m, 0.0f), is_local(m, 0.0f), is_summary(m, 0.0f);
    bool any = false;
    for (size_t i = 0; i < n; ++i) {
      const size_t key = static_cast<size_t>(v0_) + i;
      is_local[key] = local[i] ? 1.0f : 0.0f;
      is_summary[key] = summary[i] ? 1.0f : 0.0f;
      factor[key] = static_cast<float>(local[i] ? alpha_ : summary[i] ? beta_ : 0.0);
      any = any || factor[key] > 0;
    }
    changed_ = may_change() && any;
    factor_ = upload(ctx, {form_.keys}, factor);
    local_keys_ = upload(ctx, {form_.keys, 1}, is_local);
    summary_keys_ = upload(ctx, {form_.keys, 1}, is_summary);
  }

  /// y [B, H] = mass of the probabilities [B, H, M] on the keys of an indicator [M, 1].
  void mass(Context& ctx, const Tensor& p, const Tensor& keys, const Tensor& y) const {
    GemmArgs g;
    g.a = p.reshape({form_.batch * form_.heads, form_.keys});
    g.b = keys;
    g.c = y.reshape({form_.batch * form_.heads, 1});
    gemm(ctx, g);
  }

  void last_row(Context& ctx, const AttentionArgs& all) {
    const HeadsForm& f = form_;
    const Shape row{f.batch, f.heads, 1, f.keys}, heads{f.batch, f.heads, 1};
    const Tensor q = ctx.allocate(dtype_, {f.batch, f.heads, 1, f.head_dim});
    transpose_copy(ctx, {all.q.slice(2, f.queries - 1, f.queries), q});
    // The logits, of groups of heads that share a key head.
    const Tensor z = ctx.allocate(DType::f32, row);
    {
      const Tensor wide = in_f32(ctx, q), k = in_f32(ctx, all.k);
      GemmArgs g;
      g.a = wide.reshape({f.batch, f.kv_heads, f.group(), f.head_dim});
      g.b = k;
      g.b_transposed = true;
      g.c = z.reshape({f.batch, f.kv_heads, f.group(), f.keys});
      g.alpha = scale_;
      gemm(ctx, g);
    }
    const Tensor before = ctx.allocate(DType::f32, row), after = out_.at("last_row");
    softmax(ctx, {z, before});
    mass(ctx, before, visual_, out_.at("visual_mass_before"));
    AttentionArgs one;
    one.q = q;
    one.k = all.k;
    one.v = all.v;
    one.scale = scale_;
    one.o = ctx.allocate(dtype_, q.shape());
    one.row_entropy = out_.at("entropy_before").reshape(heads);
    attention(ctx, one);
    if (!changed_) {
      transpose_copy(ctx, {before.reshape(after.shape()), after});
      transpose_copy(ctx, {out_.at("visual_mass_before"), out_.at("visual_mass_after")});
      transpose_copy(ctx, {out_.at("entropy_before"), out_.at("entropy_after")});
      mass(ctx, after, local_keys_, out_.at("mass_local_after"));
      mass(ctx, after, summary_keys_, out_.at("mass_summary_after"));
      return;
    }
    // bias = factor |z|, |z| = 2 relu(z) - z.
    const Tensor bias = ctx.allocate(DType::f32, row);
    call_pointwise(ctx, PointwiseArgs::Op::relu, z, {}, bias);
    call_pointwise(ctx, PointwiseArgs::Op::affine, bias, {}, bias, 2.0f);
    call_pointwise(ctx, PointwiseArgs::Op::sub, bias, z, bias);
    if (visual_share_) {
      const Tensor factors = ctx.allocate(DType::f32, row);
      GemmArgs g;
      g.a = sensitivity(ctx);
      g.b = factor_.reshape({1, f.keys});
      g.c = factors.reshape({f.batch * f.heads, f.keys});
      gemm(ctx, g);
      call_pointwise(ctx, PointwiseArgs::Op::mul, bias, factors, bias);
    } else {
      call_pointwise(ctx, PointwiseArgs::Op::mul, bias, factor_, bias);
    }
    call_pointwise(ctx, PointwiseArgs::Op::add, z, bias, z);
    softmax(ctx, {z, after.reshape(row)});
    mass(ctx, after, visual_, out_.at("visual_mass_after"));
    mass(ctx, after, local_keys_, out_.at("mass_local_after"));
    mass(ctx, after, summary_keys_, out_.at("mass_summary_after"));
    one.o = all.o.slice(2, f.queries - 1, f.queries);
    one.bias.dense = bias;
    one.row_entropy = out_.at("entropy_after").reshape(heads);
    attention(ctx, one);
  }

  /// [B H, 1]: a head's mass on the image over the mean of the heads, cut to [0, 2].
  Tensor sensitivity(Context& ctx) const {
    ctx.backend().synchronize();
    const std::vector<double> share = read(ctx, "visual_mass_before");
    std::vector<float> s(share.size());
    const auto heads = static_cast<size_t>(form_.heads);
    for (size_t b = 0; b < share.size(); b += heads) {
      double mean = 0;
      for (size_t h = 0; h < heads; ++h) mean += share[b + h] / static_cast<double>(heads);
      for (size_t h = 0; h < heads; ++h)
        s[b + h] = static_cast<float>(mean > 0 ? std::min(share[b + h] / mean, 2.0) : 0.0);
    }
    return upload(ctx, {static_cast<int64_t>(s.size()), 1}, s);
  }

  int64_t nv_, hv_, v0_, map_;
  double alpha_, beta_;
  int64_t local_, spatial_;
  bool wants_spatial_, key_rows_;
  double iqr_;
  std::string mode_;
  bool visual_share_, changed_ = true;
  TensorMap out_;
  Tensor ones_, visual_, factor_, local_keys_, summary_keys_;
};

class FixingImbalanced final : public Method {
 public:
  const MethodInfo& info() const override { return paint_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    const HeadsForm f = heads_form(info(), problem);
    if (!problem.causal)
      throw Unsupported("fixing_imbalanced: a language model's attention is causal; set problem.causal");
    if (f.keys < f.queries)
      throw UsageError("problem.kv_length: " + std::to_string(f.keys) + " keys are fewer than " +
                       std::to_string(f.queries) + " queries, and query i sees keys up to i + M - N");
    const int64_t nv = p.integer("num_vision_tokens"), v0 = p.integer("image_offset");
    if (v0 + nv > f.keys)
      throw UsageError("fixing_imbalanced.image_offset: image tokens " + std::to_string(v0) + " to " +
                       std::to_string(v0 + nv - 1) + " lie outside the " + std::to_string(f.keys) + " keys");
    if (p.integer("layer_first") > p.integer("layer_last"))
      throw UsageError("fixing_imbalanced.layer_first: " + std::to_string(p.integer("layer_first")) +
                       " is behind layer_last " + std::to_string(p.integer("layer_last")));
    // A vision encoder without CLS has maps of Nv rows.
    int64_t map = nv + 1;
    if (!problem.inputs.file.empty()) {
      const auto shapes = safetensors_shapes(problem.inputs.file);
      if (const auto it = shapes.find("A1");
          it != shapes.end() && it->second.rank() == 3 && it->second[1] == nv)
        map = nv;
    }
    return std::make_unique<PaintInstance>(ctx, problem, p, map);
  }
};
ATTNBENCH_METHOD(FixingImbalanced);

}  // namespace
}  // namespace attnbench
