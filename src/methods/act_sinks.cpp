// Attention calibration of hidden sinks: probability mass of sink tokens shared out in chosen heads, by
// rewriting the map in memory or from two fused passes.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/attention/reweigh.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/method.hpp"

namespace attnbench {
namespace {

ParamSpec repeated(const char* name, ParamSpec::Type type, const char* of, Value default_value,
                   const char* meaning) {
  ParamSpec s = spec::param(name, type, std::move(default_value), meaning);
  s.from_problem = of;
  return s;
}

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "act_sinks";
  m.title = "ACT: attention calibration of hidden sinks";
  m.paper =
      "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training "
      "through "
      "Attention Calibration, ICML 2024";
  m.arxiv = "2406.15765";
  m.family = "dense (rewritten softmax) + analysis";
  m.summary =
      "Keys that draw a large mean weight from all rows that can see them are sinks; all but the initial one "
      "are scaled "
      "down in chosen heads, and the mass they free goes to the other keys in proportion. Rows still sum to "
      "1. Fused: a "
      "dense pass with column means, a small pass over the sinks, and a combination; unfused: the map is "
      "rewritten in memory.";
  m.formula =
      "A = softmax(q k^T / sqrt(D));  c[t] = mean of A[i, t] over the rows i that can see t\n"
      "S = { t : c[t] > theta } without the initial sink;  s_i = sum over t in S of A[i, t]\n"
      "A'[i, t] = beta A[i, t] for t in S, else (1 + (1 - beta) s_i / (1 - s_i)) A[i, t]\n"
      "output = A' v = c_i o_i - (c_i - beta) sum over t in S of A[i, t] v[t]";
  m.cost =
      "Dense matrix work once, the column pass again over q and k (a second pass inside the operator, not "
      "charged), 4 N |S| D "
      "for the sinks, 4 N D to combine. Unfused: products over the whole square, and the map written, "
      "rewritten and read. "
      "|S| is at most about sqrt(2 N / theta).";
  ParamSpec threshold = spec::share("sink_threshold", 0.1, "absolute: theta");
  ParamSpec alpha = spec::param("alpha", ParamSpec::Type::number, 5.0, "relative: theta = alpha / N");
  alpha.min = 0;
  ParamSpec heads = spec::param(
      "calibrated_heads", ParamSpec::Type::list, "random_fraction",
      "query heads to calibrate: a list, all, a seeded share of them, or those with most sink mass");
  heads.choices = {"all", "random_fraction", "by_sink"};
  heads.min = 0;
  ParamSpec first =
      spec::param("layer_first", ParamSpec::Type::integer, 2, "first layer that is calibrated, from 0");
  ParamSpec last = spec::param("layer_last", ParamSpec::Type::integer, 30, "last layer that is calibrated");
  ParamSpec layer =
      spec::param("layer", ParamSpec::Type::integer, Value(), "this layer; null: one that is calibrated");
  first.min = last.min = layer.min = 0;
  layer.nullable = true;
  m.params = {
      spec::share("beta", 0.4, "factor of a sink's weight"),
      spec::choice("threshold_mode", {"absolute", "relative"}, "what theta is"),
      threshold,
      alpha,
      spec::choice("drop_first", {"first_detected", "position0"},
                   "the sink that is kept: the lowest one found, or key 0 and no other"),
      heads,
      spec::share("head_fraction", 0.2, "share of the heads of random_fraction and by_sink"),
      first,
      last,
      layer,
      spec::choice("decode", {"on", "off"}, "a single row (N = 1): calibrated by its own weights, or dense"),
      repeated("causal", ParamSpec::Type::boolean, "causal", true, "rows see keys up to their own"),
      repeated("num_heads", ParamSpec::Type::integer, "heads", 32, "H"),
      repeated("num_kv_heads", ParamSpec::Type::integer, "kv_heads", 32, "Hkv"),
      repeated("head_dim", ParamSpec::Type::integer, "head_dim", 128, "D"),
      repeated("seed", ParamSpec::Type::integer, "seed", 0, "of random_fraction"),
      spec::choice("form", {"unfused", "fused"},
                   "the map in memory, which is an output then; or two passes and a combination")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"calibrated heads", "Llama-2-7B-chat, classification", "928 candidates", "184 (19.8 %)",
       "models/augment_index.py"},
      {"average accuracy gain", "Llama-30B, several data sets", "no ACT", "up to +7.30 %", "abstract"},
      {"beta, threshold", "scripts", "-", "0.4, 0.1 (chat: 0.15)", "repository scripts"}};
  m.notes = {"Every batch item is calibrated by itself; the reference code handles one item.",
             "A row whose whole mass lies on sinks stays as it is (chosen; the reference divides by zero).",
             "relative: N is the number of keys (chosen; the card has as many queries).",
             "The share of heads is rounded to the nearest number of them (chosen). by_sink ranks by the "
             "mean mass on sinks, of "
             "each batch item by itself; ties go to the lower head.",
             "With fewer queries than keys the ends are aligned; more queries than keys are unsupported with "
             "causal rows.",
             "The offline search for heads needs a model and a task: calibrated_heads takes its result.",
             "form: fused computes no attn; apply makes it afterwards where a check asks for it."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 70;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

struct Settings {
  int64_t batch, heads, kv_heads, queries, keys, dim;
  bool causal, fused, position0;
  float beta, threshold;
  std::vector<float> apply;  ///< by head; empty: by_sink
  int64_t by_sink = 0;       ///< heads to choose by their mass
};

class ActSinksInstance final : public Instance {
 public:
  ActSinksInstance(Context& ctx, const Problem& problem, Settings settings)
      : s_(std::move(settings)), dtype_(problem.dtype) {
    const Settings& s = s_;
    const Shape q{s.batch, s.queries, s.heads, s.dim}, kv{s.batch, s.keys, s.kv_heads, s.dim};
    input_specs_ = {{"q", q, dtype_, Init::normal(), false, "queries [B, N, H, D]"},
                    {"k", kv, dtype_, Init::normal(), false, "keys [B, M, Hkv, D]"},
                    {"v", kv, dtype_, Init::normal(), false, "values [B, M, Hkv, D]"}};
    const auto output = [&](const char* name, const Shape& shape, DType type) {
      outputs_[name] = ctx.allocate(type, shape, MemoryClass::output);
    };
    output("output", q, dtype_);
    if (!s.fused) output("attn", {s.batch, s.heads, s.queries, s.keys}, DType::f32);
    output("column_score", {s.batch, s.heads, s.keys}, DType::f32);
    output("sink_mask", {s.batch, s.heads, s.keys}, DType::i32);
    output("sink_count", {s.batch, s.heads}, DType::i32);
    for (const char* name : {"sink_mass_before", "sink_mass_after"})
      output(name, {s.batch, s.heads}, DType::f32);
    mask_.rule.causal = s.causal;
  }

  TensorMap outputs() const override { return outputs_; }

  void prepare(Context& ctx) override {
    const Settings& s = s_;
    // 1 / number of rows that see a key: all, or those at or behind it. Key 0 twice, once as 0 where it never
    // counts.
    std::vector<float> share, without;
    for (int64_t t = 0; t < s.keys; ++t) {
      const int64_t blind = s.causal ? std::max<int64_t>(0, t - (s.keys - s.queries)) : 0;
      share.push_back(1.0f / static_cast<float>(s.queries - blind));
      without.push_back(t == 0 ? 0.0f : 1.0f);
    }
    row_share_ = upload(ctx, {s.keys}, share);
    if (s.position0) not_first_ = upload(ctx, {s.keys}, without);
    const int64_t most = std::max({s.keys, s.queries, s.heads});
    ones_ = upload(ctx, {most}, std::vector<float>(static_cast<size_t>(most), 1.0f));
    if (s.by_sink == 0) {
      std::vector<float> apply;
      for (int64_t b = 0; b < s.batch; ++b) apply.insert(apply.end(), s.apply.begin(), s.apply.end());
      apply_ = upload(ctx, {s.batch, s.heads}, apply);
    }
    // Lists of each batch item and head stand in one table; the first one found is skipped where it is kept.
    std::vector<int32_t> begin;
    const int64_t skip = s.position0 ? 0 : 1;
    for (int64_t i = 0; i < s.batch * s.heads; ++i) begin.push_back(static_cast<int32_t>(i * s.keys + skip));
    begin_ = upload(ctx, {s.batch, s.heads, 1}, begin);
  }

  void run(Context& ctx) override { s_.fused ? run_fused(ctx) : run_unfused(ctx); }

  ClosedForm cost() const override {
    ClosedForm c;
    c.data_dependent = s_.fused;
    const Settings& s = s_;
    const int64_t rows = s.batch * s.heads * s.queries, heads = s.batch * s.heads, listed = heads * s.keys;
    const int64_t size = static_cast<int64_t>(size_of(dtype_));
    const int64_t q = rows * s.dim, kv = s.batch * s.kv_heads * s.keys * s.dim;
    Cost& x = c.cost;
    if (s.fused) {
      // Of the sinks' pass only what does not depend on their number.
      const int64_t pairs = heads * (s.causal ? causal_pairs() : s.queries * s.keys);
      x.matmul = 4 * s.dim * pairs, x.special = pairs, x.elementwise = 4 * pairs;
      // The list's entries depend on the data, as the pairs over them do.
      x.bytes_read = 2 * size * (q + 2 * kv) + 4 * 2 * heads;
      x.bytes_written = 2 * size * q + 8 * rows + 4 * listed;
      const int64_t passes = s.by_sink > 0 ? 2 : 1;
      x.special += 2 * rows * passes, x.elementwise += 4 * q;
      x.bytes_read += 2 * size * q + (8 * rows) * passes + 4 * heads;
      x.bytes_written += size * q + 8 * rows + (passes - 1) * 4 * rows;
      x.elementwise += rows * (passes - 1);
      x.bytes_read += 4 * rows * (passes - 1), x.bytes_written += 4 * heads * (passes - 1);
    } else {
      const int64_t square = rows * s.keys;
      x.matmul = 4 * s.dim * square + 2 * square;
      x.special = square, x.elementwise = 4 * square;
      // Scores, their softmax, sums of columns, values; keys and values once for each query head.
      const int64_t wide_kv = heads * s.keys * s.dim;
      x.bytes_read = 4 * (q + wide_kv) + 4 * square + 4 * (rows + square) + 4 * (square + wide_kv);
      x.bytes_written = 4 * square + 4 * square + 4 * listed + 4 * q;
      const int64_t passes = s.by_sink > 0 ? 2 : 1;
      x.special += rows * passes, x.elementwise += 2 * square * passes;
      x.bytes_read += (4 * square + 4 * listed) * passes + 4 * heads;
      x.bytes_written += (4 * square) * passes + 8 * rows + (passes - 1) * 4 * rows;
      x.elementwise += rows * (passes - 1);
      x.bytes_read += 4 * rows * (passes - 1), x.bytes_written += 4 * heads * (passes - 1);
      if (dtype_ != DType::f32) {
        x.bytes_read += size * (q + 2 * kv) + 4 * q;
        x.bytes_written += 4 * (q + 2 * kv) + size * q;
      }
    }
    choose_cost(x);
    return c;
  }

  std::optional<PairSet> pairs() const override {
    return rule_pairs(mask_.rule, s_.batch, s_.heads, s_.queries, s_.keys);
  }
  int64_t keys(int64_t) const override { return s_.keys; }
  /// The fused form's map, for whoever asks.
  Tensor extra_output(Context& ctx, const std::string& name) override {
    if (name != "attn" || !s_.fused) return {};
    Context host(cpu_backend(), ctx.threads());
    const Tensor map = host.allocate(DType::f32, {s_.batch, s_.heads, s_.queries, s_.keys});
    std::vector<float> some;
    for (int64_t b = 0; b < s_.batch; ++b)
      for (int64_t h = 0; h < s_.heads; ++h) {
        rows(ctx, b, h, 0, s_.queries, some);
        std::copy(some.begin(), some.end(), map.data<float>() + (b * s_.heads + h) * s_.queries * s_.keys);
      }
    return to_device(ctx, map, DType::f32, MemoryClass::workspace, "attn");
  }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    // The calibrated rows, from the outputs of the last run.
    attention_rows(ctx, dense_call(), b, h, q_begin, q_end, out);
    Context host(cpu_backend(), 1);
    const Tensor members = to_host(host, ctx, outputs_.at("sink_mask")), apply = to_host(host, ctx, apply_);
    if (apply.data<float>()[b * s_.heads + h] == 0.0f) return true;
    const int32_t* member = members.data<int32_t>() + (b * s_.heads + h) * s_.keys;
    for (int64_t i = 0; i < q_end - q_begin; ++i) {
      float* row = out.data() + i * s_.keys;
      double s = 0;
      for (int64_t t = 0; t < s_.keys; ++t) s += member[t] ? static_cast<double>(row[t]) : 0.0;
      if (!(1 - s > 0)) continue;
      const double others = 1 + (1 - static_cast<double>(s_.beta)) * s / (1 - s);
      for (int64_t t = 0; t < s_.keys; ++t)
        row[t] = static_cast<float>((member[t] ? static_cast<double>(s_.beta) : others) *
                                    static_cast<double>(row[t]));
    }
    return true;
  }

 private:
  int64_t causal_pairs() const {
    return s_.queries * (s_.keys - s_.queries) + s_.queries * (s_.queries + 1) / 2;
  }
  /// A view of [B, rows, heads, D] by heads.
  static Tensor by_heads(const Tensor& t) { return t.permute({0, 2, 1, 3}); }

  AttentionArgs dense_call() const {
    AttentionArgs a;
    a.q = by_heads(input("q")), a.k = by_heads(input("k")), a.v = by_heads(input("v"));
    a.o = by_heads(outputs_.at("output"));
    a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s_.dim)));
    if (s_.causal) a.mask = &mask_;
    return a;
  }

  /// Sinks from the sums of the columns: scores, list, mask and count, each of fixed size.
  struct Sinks {
    Tensor index;  ///< [B, H, M], ascending; with the one that is kept, where that is the first one found
  };
  Sinks choose_sinks(Context& ctx, const Tensor& column_sums) {
    const Settings& s = s_;
    const auto stage = ctx.stage("select");
    const Tensor& score = outputs_.at("column_score");
    pointwise(ctx, {PointwiseArgs::Op::mul, column_sums, row_share_, score});
    Tensor candidate = score;
    if (s.position0) {
      candidate = ctx.allocate(DType::f32, score.shape());
      pointwise(ctx, {PointwiseArgs::Op::mul, score, not_first_, candidate});
    }
    const Tensor flag = ctx.allocate(DType::u8, score.shape());
    CompareArgs compare;
    compare.x = candidate, compare.flag = flag, compare.threshold = s.threshold;
    compare_flags(ctx, compare);
    Sinks found{ctx.allocate(DType::i32, score.shape())};
    const Tensor count = ctx.allocate(DType::i32, {s.batch, s.heads});
    compact_flags(ctx, {flag, found.index, count});
    // The list as 0 and 1 by key, and its length: entries behind the first one found.
    Tensor listed = found.index;
    if (!s.position0) {
      listed = ctx.allocate(DType::i32, {s.batch, s.heads, s.keys - 1});
      transpose_copy(ctx, {found.index.slice(2, 1, s.keys), listed});
    }
    ScatterTokensArgs scatter;
    scatter.index = listed;
    scatter.x = ones_.strided({s.batch, s.heads, listed.dim(2), 1}, {0, 0, 1, 1});
    scatter.y = ctx.allocate(DType::f32, {s.batch, s.heads, s.keys, 1});
    scatter.hits = outputs_.at("sink_mask");
    scatter_tokens(ctx, scatter);
    const Tensor running = ctx.allocate(DType::i32, score.shape());
    prefix_sum(ctx, {outputs_.at("sink_mask"), running});
    transpose_copy(ctx, {running.slice(2, s.keys - 1, s.keys),
                         outputs_.at("sink_count").reshape({s.batch, s.heads, 1})});
    return found;
  }
  void choose_cost(Cost& x) const {
    const Settings& s = s_;
    const int64_t heads = s.batch * s.heads, all = heads * s.keys;
    x.elementwise += all, x.bytes_read += 4 * (all + s.keys), x.bytes_written += 4 * all;  // column scores
    if (s.position0) x.elementwise += all, x.bytes_read += 4 * (all + s.keys), x.bytes_written += 4 * all;
    x.elementwise += all, x.bytes_read += 4 * all, x.bytes_written += all;  // flags
    x.bytes_read += all, x.bytes_written += 4 * all + 4 * heads;            // list
    const int64_t listed = s.position0 ? all : heads * (s.keys - 1);
    if (!s.position0) x.bytes_read += 4 * listed, x.bytes_written += 4 * listed;
    x.elementwise += listed, x.bytes_read += 8 * listed, x.bytes_written += 8 * all;  // mask
    x.elementwise += all, x.bytes_read += 4 * all, x.bytes_written += 4 * all;        // count
    x.bytes_read += 4 * heads, x.bytes_written += 4 * heads;
    // Means over rows, before and after.
    const int64_t rows = heads * s.queries;
    x.elementwise += 2 * rows, x.bytes_read += 8 * rows, x.bytes_written += 8 * heads;
    if (s.by_sink > 0) {
      x.elementwise += heads + s.batch * s.by_sink;
      x.bytes_read += 4 * heads + 8 * s.batch * s.by_sink;
      x.bytes_written += 4 * s.batch * s.by_sink + 4 * heads;
    }
  }

  /// Heads with most mass on sinks, of each batch item: 1 in apply_, else 0.
  void choose_heads(Context& ctx, const Tensor& share) {
    const Settings& s = s_;
    const Tensor mass = ctx.allocate(DType::f32, {s.batch, s.heads});
    reduce(ctx, {ReduceArgs::Op::mean, share, {}, mass, false});
    TopKArgs top;
    top.x = mass, top.index = ctx.allocate(DType::i32, {s.batch, s.by_sink}), top.k = s.by_sink;
    top_k(ctx, top);
    ScatterTokensArgs scatter;
    scatter.index = top.index.reshape({s.batch, 1, s.by_sink});
    scatter.x = ones_.strided({s.batch, 1, s.by_sink, 1}, {0, 0, 1, 1});
    apply_ = ctx.allocate(DType::f32, {s.batch, s.heads});
    scatter.y = apply_.reshape({s.batch, 1, s.heads, 1});
    scatter_tokens(ctx, scatter);
  }
  void masses(Context& ctx, const Tensor& before, const Tensor& after) {
    reduce(ctx, {ReduceArgs::Op::mean, before, {}, outputs_.at("sink_mass_before"), false});
    reduce(ctx, {ReduceArgs::Op::mean, after, {}, outputs_.at("sink_mass_after"), false});
  }

  void run_fused(Context& ctx) {
    const Settings& s = s_;
    const Shape rows{s.batch, s.heads, s.queries};
    AttentionArgs a = dense_call();
    const Tensor o = ctx.allocate(dtype_, {s.batch, s.queries, s.heads, s.dim}),
                 sums = ctx.allocate(DType::f32, {s.batch, s.heads, s.keys});
    a.o = by_heads(o);
    a.lse = ctx.allocate(DType::f32, rows), a.mass_per_key = sums;
    {
      const auto stage = ctx.stage("attend");
      attention(ctx, a);
    }
    const Sinks sinks = choose_sinks(ctx, sums);
    AttentionArgs of_sinks = dense_call();
    BlockMask mask = mask_;
    mask.block_q = s.queries, mask.block_k = 64;
    mask.gather = {begin_, outputs_.at("sink_count").reshape({s.batch, s.heads, 1}),
                   sinks.index.reshape({s.batch * s.heads * s.keys})};
    of_sinks.mask = &mask;
    const Tensor o_s = ctx.allocate(dtype_, {s.batch, s.queries, s.heads, s.dim});
    of_sinks.o = by_heads(o_s), of_sinks.lse = ctx.allocate(DType::f32, rows);
    {
      const auto stage = ctx.stage("sinks");
      attention(ctx, of_sinks);
    }
    const auto stage = ctx.stage("combine");
    ReweighAttentionArgs r;
    r.o = a.o, r.lse = a.lse, r.o_s = of_sinks.o, r.lse_s = of_sinks.lse, r.beta = s.beta;
    r.share = ctx.allocate(DType::f32, rows);
    if (s.by_sink > 0) {
      reweigh_attention(ctx, r);
      choose_heads(ctx, r.share);
    }
    r.apply = apply_;
    r.share_after = ctx.allocate(DType::f32, rows);
    r.y = by_heads(outputs_.at("output"));
    reweigh_attention(ctx, r);
    masses(ctx, r.share, r.share_after);
  }

  void run_unfused(Context& ctx) {
    const Settings& s = s_;
    const int64_t group = s.heads / s.kv_heads;
    Tensor q = input("q"), k = input("k"), v = input("v"), o = outputs_.at("output");
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("widen");
      for (Tensor* t : {&q, &k, &v}) {
        const Tensor wide = ctx.allocate(DType::f32, t->shape());
        cast(ctx, {*t, wide});
        *t = wide;
      }
      o = ctx.allocate(DType::f32, o.shape());
    }
    // [B, Hkv, group, rows, D]: keys and values once for each query head.
    const auto queries = [&](const Tensor& t) {
      return t.strided({s.batch, s.kv_heads, group, s.queries, s.dim},
                       {t.stride(0), group * s.dim, s.dim, t.stride(1), 1});
    };
    const auto shared = [&](const Tensor& t) {
      return t.strided({s.batch, s.kv_heads, group, s.keys, s.dim}, {t.stride(0), s.dim, 0, t.stride(1), 1});
    };
    const Tensor map = outputs_.at("attn");
    const Tensor scores = map.reshape({s.batch, s.kv_heads, group, s.queries, s.keys});
    {
      const auto stage = ctx.stage("scores");
      GemmArgs g;
      g.a = queries(q), g.b = shared(k), g.b_transposed = true, g.c = scores;
      g.alpha = static_cast<float>(1 / std::sqrt(static_cast<double>(s.dim)));
      gemm(ctx, g);
    }
    {
      const auto stage = ctx.stage("softmax");
      softmax(ctx, {map, map, s.causal, s.keys - s.queries});
    }
    const Tensor sums = ctx.allocate(DType::f32, {s.batch, s.heads, 1, s.keys});
    {
      const auto stage = ctx.stage("columns");
      gemm(ctx, {ones_.strided({s.batch, s.heads, 1, s.queries}, {0, 0, 0, 1}), map, sums});
    }
    choose_sinks(ctx, sums.reshape({s.batch, s.heads, s.keys}));
    {
      const auto stage = ctx.stage("rewrite");
      const Shape rows{s.batch, s.heads, s.queries};
      ReweighMapArgs r;
      r.p = map, r.members = outputs_.at("sink_mask"), r.y = map, r.beta = s.beta;
      r.share = ctx.allocate(DType::f32, rows);
      if (s.by_sink > 0) {
        // Nothing is moved yet: beta = 1 leaves every weight as it is.
        r.beta = 1;
        reweigh_map(ctx, r);
        r.beta = s.beta;
        choose_heads(ctx, r.share);
      }
      r.apply = apply_;
      r.share_after = ctx.allocate(DType::f32, rows);
      reweigh_map(ctx, r);
      masses(ctx, r.share, r.share_after);
    }
    {
      const auto stage = ctx.stage("values");
      gemm(ctx, {scores, shared(v), queries(o)});
    }
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("narrow");
      cast(ctx, {o, outputs_.at("output")});
    }
  }

  Settings s_;
  DType dtype_;
  BlockMask mask_;
  TensorMap outputs_;
  Tensor row_share_, not_first_, ones_, apply_, begin_;
};

class ActSinks final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    Settings s;
    s.batch = problem.batch, s.heads = params.integer("num_heads"), s.dim = params.integer("head_dim");
    s.kv_heads =
        problem.heads ? params.integer("num_kv_heads") : std::min(s.heads, params.integer("num_kv_heads"));
    require_extent(info(), problem.length, "length");
    s.queries = problem.length, s.keys = problem.kv_length_or_length();
    s.causal = params.boolean("causal"), s.fused = params.choice("form") == "fused";
    s.position0 = params.choice("drop_first") == "position0";
    if (s.heads < 1 || s.kv_heads < 1 || s.heads % s.kv_heads != 0)
      throw UsageError("act_sinks.num_kv_heads: " + std::to_string(s.kv_heads) + " does not divide " +
                       std::to_string(s.heads) + " heads");
    if (s.causal && s.queries > s.keys)
      throw Unsupported("act_sinks: " + std::to_string(s.queries) + " causal rows of " +
                        std::to_string(s.keys) + " keys: some would see nothing");
    s.beta = static_cast<float>(params.number("beta"));
    const bool absolute = params.choice("threshold_mode") == "absolute";
    const double theta =
        absolute ? params.number("sink_threshold") : params.number("alpha") / static_cast<double>(s.keys);
    if (!(theta > 0))
      throw UsageError("act_sinks: the threshold must lie above 0, not at " + Value(theta).str());
    s.threshold = static_cast<float>(theta);
    choose(problem, params, s);
    return std::make_unique<ActSinksInstance>(ctx, problem, std::move(s));
  }

 private:
  static void choose(const Problem& problem, const Params& params, Settings& s) {
    s.apply.assign(static_cast<size_t>(s.heads), 0.0f);
    const bool in_layers =
        params.is_null("layer") || (params.integer("layer") >= params.integer("layer_first") &&
                                    params.integer("layer") <= params.integer("layer_last"));
    const bool dense_row = s.queries == 1 && params.choice("decode") == "off";
    const Value& heads = params.value("calibrated_heads");
    if (heads.is_list())
      for (const Value& h : heads.as_list()) {
        const double at = h.as_double();
        if (at != std::floor(at) || at < 0 || at >= static_cast<double>(s.heads))
          throw UsageError("act_sinks.calibrated_heads: " + h.str() + " names none of the heads 0 to " +
                           std::to_string(s.heads - 1));
      }
    if (!in_layers || dense_row) return;
    const auto share =
        static_cast<int64_t>(std::llround(params.number("head_fraction") * static_cast<double>(s.heads)));
    if (heads.is_list()) {
      for (const Value& h : heads.as_list()) s.apply[static_cast<size_t>(h.as_double())] = 1.0f;
    } else if (heads.as_string() == "all") {
      std::fill(s.apply.begin(), s.apply.end(), 1.0f);
    } else if (heads.as_string() == "random_fraction") {
      std::vector<int64_t> order(static_cast<size_t>(s.heads));
      std::iota(order.begin(), order.end(), int64_t{0});
      const auto draw = [&](int64_t h) {
        return random_uniform(static_cast<uint64_t>(params.integer("seed")),
                              stream_of("act_sinks.calibrated_heads"), static_cast<uint64_t>(h));
      };
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return draw(a) < draw(b); });
      for (int64_t i = 0; i < share; ++i) s.apply[static_cast<size_t>(order[static_cast<size_t>(i)])] = 1.0f;
    } else {
      s.by_sink = share;  // 0 of them: none
    }
    (void)problem;
  }
};
ATTNBENCH_METHOD(ActSinks);

}  // namespace
}  // namespace attnbench
