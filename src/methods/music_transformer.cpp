// Music Transformer's relative attention: a logit q_i . e_{j-i} beside q_i . k_j, over all earlier tokens or
// over blocks, by skewing, by the gathered N x N x D tensor it replaced, or fused.
#include <algorithm>
#include <cmath>

#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "music_transformer";
  m.title = "Music Transformer relative attention";
  m.paper = "Music Transformer: Generating Music with Long-Term Structure, ICLR 2019";
  m.arxiv = "1809.04281";
  m.family = "relative-position";
  m.summary =
      "Softmax attention whose logits also hold the product of the query with a learned embedding of the "
      "distance. Skewing finds those products in the rows of one matrix product, where the earlier form "
      "gathered an embedding for each pair: N D instead of N^2 D numbers. Local attention sees the own block "
      "and the one before.";
  m.formula =
      "o_i = sum_j softmax_j(scale * (q_i . k_j + q_i . e_{i-j})) (v_j + f_{i-j})     f: relative_values\n"
      "e_r = Er[R - 1 - r] for distance r < R; beyond: 0 (far_distance zero) or Er[0] (clip)\n"
      "skew:   A = Q E^T,  S[i, j] = A[i, j - i + N - 1]: a view of A with rows one shorter\n"
      "gather: Rel[i, j, :] = e_{i-j} in memory, S[i, j] = q_i . Rel[i, j]\n"
      "fused:  the terms of each tile inside the attention operator\n"
      "local:  query i of block t = floor(i / block_length) sees keys from (t - 1) block_length to i";
  m.cost =
      "Per head and C x K panel of queries and keys: 6 C K D matmul FLOPs (8 with relative_values): 6 N^2 D "
      "in all with query_rows 0, 6 D b^2 (2 ceil(N/b) - 1) local. fused: 6 D (8 D) for each visible pair, 3 "
      "N (N + 1) D global. Parameters H R D. Relative tensors a head: skew N D + query_rows N, gather N^2 D "
      "+ N^2, fused R D.";
  ParamSpec scale = scale_param();
  scale.meaning = "factor of both terms of a logit; null: 1 / sqrt(D)";
  m.params = {
      spec::choice("mode", {"global", "local"}, "all earlier tokens, or the own and the previous block"),
      spec::integer("max_relative_position", Value(), 1, "R, rows of the table; null: N / 2, at least 1"),
      spec::integer("block_length", 512, 1, "b of mode local"),
      spec::param("heads_share_relative_embedding", ParamSpec::Type::boolean, false,
                  "one table for all heads"),
      spec::param("relative_values", ParamSpec::Type::boolean, false,
                  "values get an embedding Ev of the distance, too"),
      spec::choice("far_distance", {"zero", "clip"}, "distances >= R: no term, or that of distance R - 1"),
      spec::param("t2t_block0", ParamSpec::Type::boolean, true,
                  "mode local with relative_values: true leaves them out of block 0, as tensor2tensor does"),
      spec::choice("impl", {"skew", "gather", "fused"}, "how the relative logits come about"),
      scale,
      spec::param("causal", ParamSpec::Type::boolean, true,
                  "false (mode global): a table of 2R - 1 rows, both sides"),
      spec::integer(
          "query_rows", 256, 0,
          "impl skew, mode global: queries whose logits are in memory at a time; 0: all, as the paper")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"relative memory per layer", "N=2048, hidden 512, 8 heads, f32", "gather", "8.5 GB -> 4.2 MB (2048 x)",
       "paper, Sec. 1.1"},
      {"relative memory per head", "N=2048, D=64", "gather", "1.1 GB -> 0.52 MB", "paper, Sec. 1.1, Table 1"},
      {"maximum training length, 16 GB GPU", "D=64", "gather: 650", "3500", "paper, Table 1 (via a summary)"},
      {"speed", "N=650", "gather", "6 x", "paper, Table 1 (via a summary)"},
      {"Piano-e-Competition NLL", "crops of 2048", "Transformer 1.861, LSTM 1.969",
       "1.835 global, 1.840 local (b=512)", "paper, Table 3 (via a summary)"},
      {"JSB Chorales NLL", "length 1024", "Transformer 0.417", "0.357; 0.335 with pitch and time",
       "paper, Table 2 (via a summary)"},
      {"melody-conditioned NLL", "seq2seq", "2.066", "1.786", "paper (via a summary)"}};
  m.notes = {
      "Causal by definition in mode local, and by default in mode global, whatever problem.causal says.",
      "The module is the attention with its table; projections and the feed-forward layers of the preset are "
      "not part of it.",
      "The relative attention over pitch and time of the paper's JSB model depends on the data and cannot be "
      "skewed: not offered.",
      "Er has R rows (non-causal 2R - 1), row R - 1 is distance 0. Shaw's distances 0 .. m are R = m + 1 "
      "with "
      "far_distance clip.",
      "impl skew and gather keep logits in f32 for every dtype; bf16 and f16 operands are widened first. The "
      "skewed matrix is read through a view with shorter rows, so that nothing is padded or copied.",
      "The fused form runs on the CPU so far; on CUDA skew, which is linear in memory too, is the form to "
      "take.",
      "query_rows is ours: with it the skewing form is linear in memory and computes only panels that hold a "
      "visible pair."};
  m.example.batch = 2;
  m.example.heads = 2;
  m.example.length = 75;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

class MusicInstance final : public HeadsInstance {
 public:
  MusicInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params,
                double scale)
      : HeadsInstance(ctx, info, problem, scale),
        causal_(params.boolean("causal")),
        shared_(params.boolean("heads_share_relative_embedding")),
        clip_(params.choice("far_distance") == "clip"),
        values_(params.boolean("relative_values")),
        impl_(params.choice("impl")),
        n_(form_.queries),
        reach_(params.is_null("max_relative_position") ? std::max<int64_t>(1, n_ / 2)
                                                       : params.integer("max_relative_position")) {
    const bool local = params.choice("mode") == "local";
    if (form_.kv_heads != form_.heads)
      throw Unsupported("music_transformer has one key head for each query head, and problem.kv_heads is " +
                        std::to_string(form_.kv_heads));
    if (form_.keys != n_)
      throw Unsupported(
          "music_transformer relates the tokens of one sequence, so problem.kv_length must equal length " +
          std::to_string(n_) + ", not " + std::to_string(form_.keys));
    if (!causal_ && problem.causal)
      throw UsageError("music_transformer.causal: false contradicts problem.causal = true");
    if (!causal_ && local)
      throw UsageError(
          "music_transformer.causal: mode local looks back only, so causal must be true, not false");
    if (reach_ > (int64_t{1} << 29))
      throw UsageError("music_transformer.max_relative_position: " + std::to_string(reach_) +
                       " rows are beyond what distances are counted in (2^29)");
    mask_.rule.causal = causal_;
    masked_ = causal_;
    // Too short for two whole blocks: one block of everything.
    block_ = local && n_ / 2 >= params.integer("block_length") ? params.integer("block_length") : 0;
    bare_ = values_ && local && params.boolean("t2t_block0") ? (block_ ? block_ : n_) : 0;

    const int64_t rows = causal_ ? reach_ : 2 * reach_ - 1, d = form_.head_dim;
    const Shape table = shared_ ? Shape{rows, d} : Shape{form_.heads, rows, d};
    const Init init = Init::normal(0, 1.0 / std::sqrt(static_cast<double>(d)));
    weight_specs_ = {
        {"Er", table, dtype_, init, false, "key embeddings of the distance, distance 0 in row R - 1"}};
    if (values_)
      weight_specs_.push_back(
          {"Ev", table, dtype_, init, false, "value embeddings of the distance, rows as Er"});

    // Panels: runs of queries against the keys they may see.
    const int64_t at_once = block_                                            ? block_
                            : impl_ == "skew" && params.integer("query_rows") ? params.integer("query_rows")
                                                                              : n_;
    for (int64_t begin = 0; begin < n_; begin += at_once) {
      const int64_t end = std::min(n_, begin + at_once);
      panels_.push_back({begin, end, block_ ? std::max<int64_t>(0, begin - block_) : 0, causal_ ? end : n_});
    }
  }

  void prepare(Context& ctx) override {
    if (block_) {
      std::vector<int32_t> begin, end;
      for (int64_t i = 0; i < n_; ++i) {
        begin.push_back(static_cast<int32_t>(std::max<int64_t>(0, i / block_ - 1) * block_));
        end.push_back(static_cast<int32_t>(i + 1));
      }
      mask_.row_begin = indices(ctx, begin).reshape({1, 1, n_});
      mask_.row_end = indices(ctx, end).reshape({1, 1, n_});
    }
    if (impl_ == "skew") {
      std::vector<int32_t> rows;
      for (int64_t away = -span(); away <= (causal_ ? 0 : span()); ++away) rows.push_back(row_of(away));
      used_rows_ = indices(ctx, rows);
      int64_t most = 0;
      for (const Panel& p : panels_) most = std::max(most, p.rows());
      if (values_) nothing_ = indices(ctx, std::vector<int32_t>(static_cast<size_t>(heads() * most), -1));
    }
    if (impl_ == "gather") {
      pair_rows_.clear();
      for (const Panel& p : panels_) {
        // Distances depend on where keys start relative to the queries, and so repeat from block to block.
        const Panel* same = nullptr;
        for (const Panel& other : panels_)
          if (&other < &p && other.rows() == p.rows() && other.keys() == p.keys() &&
              other.q_begin - other.k_begin == p.q_begin - p.k_begin)
            same = &other;
        if (same) {
          pair_rows_.push_back(pair_rows_[static_cast<size_t>(same - panels_.data())]);
          continue;
        }
        std::vector<int32_t> rows;
        for (int64_t i = p.q_begin; i < p.q_end; ++i)
          for (int64_t j = p.k_begin; j < p.k_end; ++j) rows.push_back(causal_ && j > i ? -1 : row_of(j - i));
        pair_rows_.push_back(indices(ctx, rows));
      }
    }
  }

  void run(Context& ctx) override {
    if (impl_ == "fused") {
      const auto stage = ctx.stage("attend");
      for (const Part& part : parts()) attention(ctx, call_for(part));
      return;
    }
    Tensor q = input("q"), k = input("k"), v = input("v"), o = o_, er = table("Er"),
           ev = values_ ? table("Ev") : Tensor();
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("widen");
      for (Tensor* t : {&q, &k, &v, &er, &ev}) {
        if (!*t) continue;
        const Tensor wide = ctx.allocate(DType::f32, t->shape());
        cast(ctx, {*t, wide});
        *t = wide;
      }
      o = ctx.allocate(DType::f32, o_.shape());
    }
    if (impl_ == "skew") {
      const auto stage = ctx.stage("table");
      for (Tensor* t : {&er, &ev}) {
        if (!*t || (t == &ev && bare_ == n_)) continue;
        const Tensor used = ctx.allocate(DType::f32, {t->dim(0), used_rows_.dim(0), t->dim(2)});
        gather_rows(ctx, {*t, used_rows_, used});
        *t = used;
      }
    }
    for (size_t i = 0; i < panels_.size(); ++i) attend_panel(ctx, i, q, k, v, er, ev, o);
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("narrow");
      cast(ctx, {o, o_});
    }
  }

  ClosedForm cost() const override {
    ClosedForm f;
    f.parameters = weight_specs_[0].shape.numel() * (values_ ? 2 : 1);
    const auto bytes = static_cast<int64_t>(size_of(dtype_));
    const int64_t d = form_.head_dim, table_numel = weight_specs_[0].shape.numel();
    if (impl_ == "fused") {
      for (const Part& part : parts()) {
        const int64_t rows = part.end - part.begin, pairs = heads() * visible_pairs(part);
        Cost c;
        c.matmul = pairs * (part.values ? 8 : 6) * d;
        c.elementwise = 4 * pairs;
        c.special = pairs;
        c.bytes_read =
            heads() * (rows + 2 * part.keys) * d * bytes + table_numel * (part.values ? 2 : 1) * bytes;
        if (block_) c.bytes_read += 2 * 4 * rows;
        c.bytes_written = heads() * rows * d * bytes;
        f.cost += c;
      }
      return f;
    }
    const auto moved = [](int64_t read, int64_t written) {
      Cost c;
      c.bytes_read = read, c.bytes_written = written;
      return c;
    };
    const auto product = [&](int64_t flops, int64_t read, int64_t written) {
      Cost c = moved(4 * read, 4 * written);
      c.matmul = flops;
      return c;
    };
    const int64_t tensor = heads() * n_ * d;
    if (dtype_ != DType::f32) {
      const int64_t all = 3 * tensor + table_numel * (values_ ? 2 : 1);
      f.cost += moved(all * bytes, all * 4) + moved(tensor * 4, tensor * bytes);
    }
    const int64_t tables = shared_ ? 1 : form_.heads;
    if (impl_ == "skew") {
      const int64_t rows = span() + 1 + (causal_ ? 0 : span());
      f.cost +=
          moved(4 * (tables * rows * d + rows), 4 * tables * rows * d) * (values_ && bare_ < n_ ? 2 : 1);
    }
    for (const Panel& p : panels_) {
      const int64_t rows = heads() * p.rows(), pairs = rows * p.keys(), keys = heads() * p.keys();
      const bool with_values = values_ && p.q_begin >= bare_;
      f.cost += product(2 * pairs * d, (rows + keys) * d, pairs);
      f.cost += product(2 * pairs * d, pairs + keys * d, rows * d);
      Cost row_work;
      row_work.elementwise = 5 * pairs;  // the sum of the terms and the softmax
      row_work.special = pairs;
      row_work.bytes_read = 3 * 4 * pairs;
      row_work.bytes_written = 2 * 4 * pairs;
      f.cost += row_work;
      if (impl_ == "gather") {
        const int64_t gathered = p.rows() * p.keys();
        const Cost gather = moved(4 * (tables * gathered * d + gathered), 4 * tables * gathered * d);
        f.cost += gather + product(2 * pairs * d, rows * d + form_.heads * gathered * d, pairs);
        if (with_values)
          f.cost += gather + product(2 * pairs * d, pairs + form_.heads * gathered * d + rows * d, rows * d);
        continue;
      }
      const int64_t distances = p.distances(causal_), products = rows * distances;
      const int64_t table_part = (shared_ ? 1 : heads()) * distances * d;
      f.cost += product(2 * products * d, rows * d + table_part, products);
      if (!with_values) continue;
      const int64_t spread = rows * (p.keys() + p.rows() - 1);
      f.cost += moved(4 * (spread + rows), 4 * spread) + moved(4 * pairs, 4 * pairs);
      f.cost += product(2 * products * d, products + table_part + rows * d, rows * d);
    }
    return f;
  }

  std::optional<PairSet> pairs() const override {
    if (!block_) return HeadsInstance::pairs();
    PairSet set;
    set.batch = form_.batch, set.heads = form_.heads;
    set.queries = set.tokens = n_;
    set.row = [block = block_](int64_t, int64_t, int64_t i, Intervals& out) {
      out = {{std::max<int64_t>(0, i / block - 1) * block, i + 1}};
    };
    return set;
  }
  // Embeddings of values change what is summed, not the weights.
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    return attention_rows(ctx, call_for(whole()), b, h, q_begin, q_end, out);
  }
  // Scores hold terms of relative positions.
  std::optional<DenseEquivalent> dense_equivalent(Context&) override { return std::nullopt; }
  std::optional<RowStats> row_stats(Context& ctx) override {
    return attention_row_stats(ctx, call_for(whole()));
  }

 private:
  /// Queries [q_begin, q_end) against keys [k_begin, k_end).
  struct Panel {
    int64_t q_begin, q_end, k_begin, k_end;
    int64_t rows() const { return q_end - q_begin; }
    int64_t keys() const { return k_end - k_begin; }
    /// Distances that some pair has, from the farthest key before the last query on.
    int64_t distances(bool causal) const { return causal ? q_end - k_begin : keys() + rows() - 1; }
  };
  /// Queries of one call of the operator, against keys [0, keys).
  struct Part {
    int64_t begin, end, keys;
    bool values;
  };

  int64_t heads() const { return form_.batch * form_.heads; }
  /// Farthest distance between two tokens that may see each other.
  int64_t span() const { return std::min(n_, block_ ? 2 * block_ : n_) - 1; }
  /// Row of the tables for key offset `away` = j - i, or -1: no term.
  int32_t row_of(int64_t away) const {
    const int64_t rows = causal_ ? reach_ : 2 * reach_ - 1, row = reach_ - 1 + away;
    if (row >= 0 && row < rows) return static_cast<int32_t>(row);
    return static_cast<int32_t>(!clip_ ? -1 : row < 0 ? 0 : rows - 1);
  }
  Tensor table(const char* name) const {
    const Tensor t = weight(name);
    return shared_ ? t.reshape({1, t.dim(0), t.dim(1)}) : t;
  }
  static Tensor indices(Context& ctx, std::vector<int32_t> values) {
    const Shape shape{static_cast<int64_t>(values.size())};
    const Tensor t = ctx.allocate(DType::i32, shape);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::i32, shape, values.data()), t);
    return t;
  }

  Part whole() const { return {0, n_, n_, false}; }
  std::vector<Part> parts() const {
    if (bare_ == 0) return {{0, n_, n_, values_}};
    if (bare_ == n_) return {whole()};
    return {{0, bare_, bare_, false}, {bare_, n_, n_, true}};
  }
  AttentionArgs call_for(const Part& part) {
    AttentionArgs a = call();
    a.relative.keys = table("Er");
    if (part.values) a.relative.values = table("Ev");
    a.relative.origin = reach_ - 1;
    a.relative.clip = clip_;
    if (part.begin == 0 && part.end == n_) return a;
    a.q = a.q.slice(2, part.begin, part.end), a.o = a.o.slice(2, part.begin, part.end);
    a.k = a.k.slice(2, 0, part.keys), a.v = a.v.slice(2, 0, part.keys);
    BlockMask& mask = part.begin == 0 ? first_mask_ : rest_mask_;
    mask = mask_;
    mask.row_begin = mask_.row_begin.slice(2, part.begin, part.end);
    mask.row_end = mask_.row_end.slice(2, part.begin, part.end);
    a.mask = &mask;
    return a;
  }
  int64_t visible_pairs(const Part& part) const {
    if (!causal_) return n_ * n_;
    int64_t pairs = 0;
    for (int64_t begin = part.begin; begin < part.end; begin += block_ ? block_ : n_) {
      const int64_t rows = std::min(block_ ? block_ : n_, part.end - begin);
      pairs += rows * (rows + 1) / 2 + (block_ && begin > 0 ? rows * block_ : 0);
    }
    return pairs;
  }

  /// Tables [1 or H, T, D], rows [begin, begin + count) of them, as the second operand of a product a head.
  Tensor table_rows(const Tensor& t, int64_t begin, int64_t count) const {
    const Tensor part = t.slice(1, begin, begin + count);
    if (shared_) return part.select(0, 0);
    return part.strided({form_.batch, form_.heads, count, part.dim(2)},
                        {0, part.stride(0), part.stride(1), 1});
  }

  void attend_panel(Context& ctx, size_t index, const Tensor& q_all, const Tensor& k_all, const Tensor& v_all,
                    const Tensor& er, const Tensor& ev, const Tensor& o_all) {
    const Panel& p = panels_[index];
    const int64_t batch = form_.batch, heads = form_.heads, rows = p.rows(), keys = p.keys(),
                  distances = p.distances(causal_);
    const Tensor q = q_all.slice(2, p.q_begin, p.q_end), o = o_all.slice(2, p.q_begin, p.q_end);
    const Tensor k = k_all.slice(2, p.k_begin, p.k_end), v = v_all.slice(2, p.k_begin, p.k_end);
    const bool with_values = values_ && p.q_begin >= bare_;
    const Tensor logits = ctx.allocate(DType::f32, {batch, heads, rows, keys});
    {
      const auto stage = ctx.stage("scores");
      multiply(ctx, q, k, logits, true, scale_);
    }
    // First table row, for the last query and the first key.
    const int64_t first = span() + p.k_begin - (p.q_end - 1);
    Tensor relative;
    if (impl_ == "skew") {
      Tensor products = ctx.allocate(DType::f32, {batch, heads, rows, distances});
      {
        const auto stage = ctx.stage("relative");
        multiply(ctx, q, table_rows(er, first, distances), products, true, scale_);
      }
      // Entry (r, j) lies at column j - r + rows - 1: rows shorter by one, from column rows - 1 on. Where a
      // key is in the future, that is the next row's.
      relative = skewed(products, rows, keys, distances);
    } else {
      const Tensor pairs = gathered(ctx, index, er);
      const auto stage = ctx.stage("relative");
      relative = ctx.allocate(DType::f32, {batch, heads, rows, keys});
      multiply(ctx, q.permute({1, 2, 0, 3}), pairs, relative.permute({1, 2, 0, 3}), true, scale_);
    }
    {
      const auto stage = ctx.stage("skew");
      PointwiseArgs a;
      a.op = PointwiseArgs::Op::add;
      a.a = a.y = logits;
      a.b = relative;
      pointwise(ctx, a);
    }
    {
      const auto stage = ctx.stage("softmax");
      SoftmaxArgs a;
      a.x = a.y = logits;
      a.causal = causal_;
      a.causal_offset = p.q_begin - p.k_begin;
      softmax(ctx, a);
    }
    {
      const auto stage = ctx.stage("values");
      multiply(ctx, logits, v, o, false, 1.0f);
    }
    if (!with_values) return;
    if (impl_ == "gather") {
      const Tensor pairs = gathered(ctx, index, ev);
      const auto stage = ctx.stage("relative_values");
      multiply(ctx, logits.permute({1, 2, 0, 3}), pairs, o.permute({1, 2, 0, 3}), false, 1.0f, true);
      return;
    }
    // The way back: weights in rows by distance, zero where no key is. Room for distances in the future keeps
    // the rows of the view apart; their weights are 0 and the product leaves them out.
    const auto stage = ctx.stage("relative_values");
    const int64_t width = keys + rows - 1, lines = batch * heads * rows;
    const Tensor spread = ctx.allocate(DType::f32, {batch, heads, rows, width});
    gather_rows(ctx, {ctx.allocate(DType::f32, {1, 1, width}), nothing_.slice(0, 0, lines),
                      spread.reshape({1, lines, width})});
    transpose_copy(ctx, {logits, skewed(spread, rows, keys, width)});
    multiply(ctx, spread.slice(3, 0, distances), table_rows(ev, first, distances), o, false, 1.0f, true);
  }

  static Tensor skewed(const Tensor& t, int64_t rows, int64_t keys, int64_t width) {
    return t.strided({t.dim(0), t.dim(1), rows, keys},
                     {t.stride(0), t.stride(1), rows > 1 ? width - 1 : keys, 1}, rows - 1);
  }
  /// The table's row for each pair: [H, rows, keys, D].
  Tensor gathered(Context& ctx, size_t index, const Tensor& table) {
    const auto stage = ctx.stage("gather");
    const Panel& p = panels_[index];
    const int64_t rows = p.rows(), keys = p.keys(), d = form_.head_dim;
    const Tensor y = ctx.allocate(DType::f32, {table.dim(0), rows * keys, d});
    gather_rows(ctx, {table, pair_rows_[index], y});
    return y.strided({form_.heads, rows, keys, d}, {shared_ ? 0 : y.stride(0), keys * d, d, 1});
  }
  static void multiply(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& c, bool transposed,
                       float alpha, bool accumulate = false) {
    GemmArgs g;
    g.a = a, g.b = b, g.c = c;
    g.b_transposed = transposed;
    g.alpha = alpha;
    g.accumulate = accumulate;
    gemm(ctx, g);
  }

  bool causal_, shared_, clip_, values_;
  std::string impl_;
  int64_t n_, reach_;
  int64_t block_ = 0;  ///< of local attention; 0: one block of everything
  int64_t bare_ = 0;   ///< first queries whose values have no embeddings
  std::vector<Panel> panels_;
  BlockMask first_mask_, rest_mask_;
  Tensor used_rows_, nothing_;
  std::vector<Tensor> pair_rows_;
};

class MusicTransformer final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    return std::make_unique<MusicInstance>(ctx, info(), problem, params, scale_of(params, f.head_dim));
  }
};
ATTNBENCH_METHOD(MusicTransformer);

}  // namespace
}  // namespace attnbench
