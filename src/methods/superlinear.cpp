// Superlinear attention: every query searches a few stripes of keys and attends to spans around the best of
// them and to a window, the branches mixed by their search scores. Card: superlinear.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/elementwise/cast.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/select/select.hpp"
#include "kernels/spans/spans.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"
#include "methods/span_candidates.hpp"

namespace attnbench {
namespace {

/// Blocks of the attention calls: the least that tensor-core kernels take, as spans are short.
constexpr int64_t kBlock = 64;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "superlinear";
  m.title = "Superlinear multi-step attention (span search and span attention)";
  m.paper = "Superlinear Multi-Step Attention, 2026";
  m.arxiv = "2601.18401";
  m.family = "dynamic-sparse (learned routing to contiguous spans, causal, softmaxes mixed by a gate)";
  m.summary =
      "A search query scores about t^p keys at growing distances; around each of the best num_spans a span "
      "of "
      "about t^s keys is attended, together with a window of the newest ones. Every key can be reached: "
      "stripes are at most a span apart. Work grows as L^(1 + max(p, s)).";
  m.formula =
      "e(i) = floor(i^(1/p));  W = e(a + 1) - 1: the window of query t is t - W + 1 .. t\n"
      "anchors c_i = t - e(i) + 1 for i > a, e(i) <= t + 1;  z_i = search_scale qs_t . k_{c_i}; the "
      "num_spans "
      "largest (ties: the farther key)\n"
      "span of c, L = t + 1 - first valid key:  max(c - ceil(fb L^s), first) .. min(c + ceil(ff L^s), t), "
      "before the window\n"
      "o_k = softmax(q_t K^T / sqrt(D)) V over span k and window;  out_t = sum_k softmax(z)_k o_k";
  m.cost =
      "Search 2 D H L^(1+p) / (1+p); spans 4 D H num_spans (fb + ff) L^(1+s) / (1+s), in whole blocks of "
      "spans sorted by their start; window 4 D H L W, once.";
  ParamSpec search = spec::number("search_power", 0.5, 0, 1, "p: anchors of a query grow as t^p; in (0, 1)");
  ParamSpec span = spec::number("span_power", 0.5, 0, 1, "s: spans grow as t^s; in (0, 1)");
  m.params = {search,
              span,
              spec::integer("sw_index", 0, 0, "a: the window ends before stripe a + 1"),
              spec::integer("num_spans", 3, 1, "K"),
              spec::number("backward_factor", 2.0, 0, "fb: reach of a span before its anchor; above 0"),
              spec::number("forward_factor", 0.0, 0, "ff: reach behind it"),
              spec::number("search_scale", 1.0, 0, "multiplies search scores; above 0"),
              spec::boolean("with_projection", false, "qs = W_qs x instead of an input"),
              spec::integer("force_dense_below", 0, 0, "dense causal attention below so many keys")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"decode throughput", "30B hybrid MoE, 6 attention layers, B200, batch 1, 1M / 10M", "",
       "114 / 80 tok/s (ratio 0.70)", "abstract"},
      {"prefill throughput", "the same, 32k chunks, 1M / 10M", "", "20202 / 5576 tok/s", "model card"},
      {"crossover with FlashAttention-2", "prefill", "", "about 60k tokens", "repository README"},
      {"bucketed span kernel", "prefill", "FlexAttention", "1.3 to 1.6x", "comment in the repository"},
      {"KV cache", "released model", "", "about 6 GB per 1M tokens", "README"}};
  m.notes = {
      "Causal only: the card defines no other mode. Absent `pos`, queries are the last ones.",
      "e(i) and reaches are tables made in double precision; results within 1e-12 of an integer are that "
      "integer (exact for 1/p = 2 .. 6).",
      "with_projection takes x [B, Nq, C] and W_qs [H D, C] in place of qs, and scores in f32 whatever the "
      "dtype. C is the problem's channels, or H D.",
      "Padding keys are left out of the search, of spans and of the window. A query that sees no key gives "
      "0.",
      "force_dense_below counts kv_length; such calls have no anchors.",
      "The accumulation part (a recurrence before the projections) is outside, as in the card; more than two "
      "steps are not specified."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.head_dim = 32;
  m.example.length = 200;
  m.example.causal = true;
  return m;
}

struct Shape5 {
  int64_t batch, heads, kv_heads, n, m, dim, channels, slots;
};
struct Choices {
  double p, s, back, ahead;
  int64_t stripe;  ///< a
  float search_scale;
  bool projects, dense;
};

/// x, or the integer that it misses by rounding alone.
double snapped(double x) {
  const double r = std::round(x);
  return std::abs(x - r) <= 1e-12 * std::max(1.0, std::abs(x)) ? r : x;
}

/// floor(i^(1/p)), INT64_MAX beyond 2^62.
int64_t stripe_distance(int64_t i, double p) {
  const double inverse = 1.0 / p, whole = std::round(inverse);
  if (std::abs(inverse - whole) < 1e-9 && whole <= 6) {
    int64_t product = 1;
    for (int f = 0; f < static_cast<int>(whole); ++f)
      if (i == 0 || __builtin_mul_overflow(product, i, &product))
        return i == 0 ? 0 : std::numeric_limits<int64_t>::max();
    return product;
  }
  const double x = std::floor(snapped(std::pow(static_cast<double>(i), inverse)));
  return x < 0x1p62 ? static_cast<int64_t>(x) : std::numeric_limits<int64_t>::max();
}

/// ceil(f L^s) for L = 0 .. m; spans never exceed the sequence.
std::vector<int32_t> reaches(double f, double s, int64_t m) {
  std::vector<int32_t> table;
  for (int64_t length = 0; length <= m; ++length) {
    const double x = std::ceil(snapped(f * snapped(std::pow(static_cast<double>(length), s))));
    table.push_back(static_cast<int32_t>(std::min(x, static_cast<double>(m))));
  }
  return table;
}

class SuperlinearInstance final : public Instance, public DenseCounterpart, public SpanCandidates {
 public:
  SuperlinearInstance(Context& ctx, const Shape5& shape, const Choices& choices, DType dtype)
      : s_(shape), c_(choices), dtype_(dtype), backend_(&ctx.backend()) {
    const Shape q{s_.batch, s_.heads, s_.n, s_.dim}, kv{s_.batch, s_.kv_heads, s_.m, s_.dim};
    const auto input = [&](const char* name, const Shape& extents, const char* meaning) {
      input_specs_.push_back({name, extents, dtype, Init::normal(), false, meaning});
    };
    if (c_.projects) {
      input("x", {s_.batch, s_.n, s_.channels}, "tokens of the queries [B, Nq, C]");
      weight_specs_.push_back({"W_qs",
                               {s_.heads * s_.dim, s_.channels},
                               dtype,
                               Init::normal(0, 0.02),
                               false,
                               "search projection (out, in)"});
    } else {
      input("qs", q, "search queries [B, H, Nq, D]");
    }
    input("q", q, "queries [B, H, Nq, D]");
    input("k", kv, "keys [B, Hkv, M, D]");
    input("v", kv, "values [B, Hkv, M, D]");
    TensorSpec pos{"pos", {s_.n}, DType::i32, Init::normal(), false, "places of the queries, increasing"};
    pos.init.kind = Init::Kind::values;
    pos.init.value = [before = s_.m - s_.n](int64_t i) { return static_cast<double>(before + i); };
    input_specs_.push_back(pos);
    TensorSpec mask{"key_mask", {s_.batch, s_.m}, DType::i32, Init::constant(1), true, "0: padding key"};
    input_specs_.push_back(mask);
    const Shape slots{s_.batch, s_.heads, s_.n, s_.slots};
    out_ = ctx.allocate(dtype, q, MemoryClass::output);
    anchors_ = ctx.allocate(DType::i32, slots, MemoryClass::output);
    start_ = ctx.allocate(DType::i32, slots, MemoryClass::output);
    end_ = ctx.allocate(DType::i32, slots, MemoryClass::output);
    scores_ = ctx.allocate(DType::f32, slots, MemoryClass::output);
    // Nothing can be nearer than stripe a + 1: what the window holds.
    window_ = std::min(s_.m, std::max<int64_t>(0, stripe_distance(c_.stripe + 1, c_.p) - 1));
    if (c_.dense) window_ = s_.m;
    for (int64_t i = c_.stripe + 1; !c_.dense && stripe_distance(i, c_.p) <= s_.m; ++i)
      distances_.push_back(static_cast<int32_t>(stripe_distance(i, c_.p)));
    for (int64_t i = 0; i < s_.n; ++i) positions_.push_back(static_cast<int32_t>(s_.m - s_.n + i));
  }

  void prepare(Context& ctx) override {
    positions_ = host(input("pos"));
    for (size_t i = 0; i < positions_.size(); ++i)
      if (positions_[i] < 0 || positions_[i] >= s_.m || (i > 0 && positions_[i] <= positions_[i - 1]))
        throw DataError("superlinear: pos[" + std::to_string(i) + "] = " + std::to_string(positions_[i]) +
                        "; places of queries increase and lie in [0, " + std::to_string(s_.m) + ")");
    first_.assign(static_cast<size_t>(s_.batch), 0);
    valid_.clear();
    if (has_input("key_mask")) {
      const std::vector<int32_t> mask = host(input("key_mask"));
      for (const int32_t x : mask) valid_.push_back(x != 0);
      for (int64_t b = 0; b < s_.batch; ++b) {
        const auto row = valid_.begin() + b * s_.m;
        first_[static_cast<size_t>(b)] = static_cast<int32_t>(std::find(row, row + s_.m, uint8_t{1}) - row);
      }
      key_valid_ = upload(ctx, {s_.batch, s_.m}, valid_);
      first_key_ = upload(ctx, {s_.batch}, first_);
    }
    // A stripe that no query reaches stands for none.
    std::vector<int32_t> stripes = distances_;
    if (stripes.empty()) stripes.push_back(std::numeric_limits<int32_t>::max());
    stripes_ = upload(ctx, {static_cast<int64_t>(stripes.size())}, stripes);
    back_ = reaches(c_.back, c_.s, s_.m), ahead_ = reaches(c_.ahead, c_.s, s_.m);
    before_ = upload(ctx, {s_.m + 1}, back_);
    after_ = upload(ctx, {s_.m + 1}, ahead_);
    std::vector<int32_t> blocks;
    for (int64_t c = 0; c * kBlock < s_.m; ++c) blocks.push_back(static_cast<int32_t>(c));
    key_blocks_ = upload(ctx, {static_cast<int64_t>(blocks.size())}, blocks);
    if (window_ > 0) plan_window(ctx);
  }

  void run(Context& ctx) override {
    Tensor qs, k = input("k");
    if (c_.projects) {
      const auto stage = ctx.stage("project");
      const Tensor x = as_f32(ctx, input("x")), w = as_f32(ctx, weight("W_qs"));
      const Tensor y = ctx.allocate(DType::f32, {s_.batch * s_.n, s_.heads * s_.dim});
      linear(ctx, x.reshape({s_.batch * s_.n, s_.channels}), w, {}, y);
      qs = y.reshape({s_.batch, s_.n, s_.heads, s_.dim}).transpose(1, 2);
      k = as_f32(ctx, k);
    } else {
      qs = input("qs");
    }
    {
      const auto stage = ctx.stage("search");
      SearchSpansArgs a;
      a.q = qs, a.k = k, a.position = input("pos"), a.stripes = stripes_;
      a.before = before_, a.after = after_, a.key_valid = key_valid_, a.first = first_key_;
      a.scale = c_.search_scale, a.window = window_, a.apart = c_.ahead > 0 && window_ > 0;
      a.candidates = candidates();
      a.anchor = anchors_, a.start = start_, a.end = end_, a.score = scores_;
      search_spans(ctx, a);
    }
    Tensor shared, shared_lse;
    const bool searched = candidates() > 0;
    if (window_ > 0) {
      const auto stage = ctx.stage("window");
      shared = searched ? ctx.allocate(dtype_, out_.shape()) : out_;
      AttentionArgs a = call(input("q"), shared);
      a.mask = &window_mask_;
      if (searched) a.lse = shared_lse = ctx.allocate(DType::f32, {s_.batch, s_.heads, s_.n});
      attention(ctx, a);
    }
    if (!searched) return;  // a window of everything: one branch, whatever the gates
    const int64_t rows = s_.n * s_.slots;
    const Shape by_span{s_.batch, s_.heads, rows};
    // The spans of one query lie far apart: a block of rows over all of them would visit what is between. In
    // decoding every span is a head of its own, with its own key head and its own blocks.
    const bool apart = s_.n == 1;
    PackSpansArgs p;
    Tensor packed;
    {
      // Neighbouring rows see neighbouring keys, so that blocks of rows visit few keys that none of them
      // sees.
      const auto stage = ctx.stage("sort");
      p.start = start_.reshape(by_span), p.end = end_.reshape(by_span);
      ArgsortArgs sort;
      sort.x = p.start, sort.index = p.order = ctx.allocate(DType::i32, by_span);
      argsort(ctx, sort);
      for (Tensor* t : {&p.query, &p.row_begin, &p.row_end, &p.place}) *t = ctx.allocate(DType::i32, by_span);
      p.per_query = s_.slots, p.block_q = apart ? 1 : kBlock, p.block_k = kBlock;
      const Shape tiles{s_.batch, s_.heads, (rows + p.block_q - 1) / p.block_q};
      p.first_block = ctx.allocate(DType::i32, tiles), p.blocks = ctx.allocate(DType::i32, tiles);
      pack_spans(ctx, p);
      packed = ctx.allocate(dtype_, {s_.batch, s_.heads, rows, s_.dim});
      gather_tokens(ctx, {input("q"), p.query, packed});
    }
    MergeSpansArgs m;
    {
      const auto stage = ctx.stage("spans");
      m.spans = ctx.allocate(dtype_, packed.shape());
      m.lse = ctx.allocate(DType::f32, by_span);
      const auto as_heads = [&](const Tensor& t) {
        Shape s{s_.batch, s_.heads * rows, 1};
        if (t.rank() == 4) s = {s_.batch, s_.heads * rows, 1, s_.dim};
        return apart ? t.reshape(s) : t;
      };
      AttentionArgs a = call(as_heads(packed), as_heads(m.spans));
      BlockMask mask;
      mask.block_q = mask.block_k = kBlock;
      mask.full = {as_heads(p.first_block), as_heads(p.blocks), key_blocks_};
      mask.row_begin = as_heads(p.row_begin), mask.row_end = as_heads(p.row_end);
      mask.key_valid = key_valid_;
      a.mask = &mask;
      a.lse = as_heads(m.lse);
      attention(ctx, a);
    }
    const auto stage = ctx.stage("merge");
    m.place = p.place, m.score = scores_, m.shared = shared, m.shared_lse = shared_lse, m.o = out_;
    merge_spans(ctx, m);
  }

  TensorMap outputs() const override {
    return {{"out", out_},
            {"anchors", anchors_},
            {"span_start", start_},
            {"span_end", end_},
            {"scores", scores_}};
  }

  ClosedForm cost() const override {
    ClosedForm f;
    f.data_dependent = true;  // which blocks sorted spans share
    const std::vector<int32_t> back = reaches(c_.back, c_.s, s_.m), ahead = reaches(c_.ahead, c_.s, s_.m);
    int64_t window = 0, spans = 0;
    for (const int64_t t : positions_) {
      window += std::min(t + 1, window_);
      const auto length = static_cast<size_t>(t + 1);
      const int64_t slots = std::min<int64_t>(s_.slots, anchors_below(t));
      spans += slots * std::min<int64_t>(t + 1, back[length] + ahead[length] + 1);
    }
    const int64_t heads = s_.batch * s_.heads, e = static_cast<int64_t>(size_of(dtype_));
    Cost& x = f.cost;
    x.matmul = heads * (2 * s_.dim * candidates() + 4 * s_.dim * (window + spans));
    x.special = heads * (window + spans + 4 * s_.n * s_.slots);
    x.elementwise = heads * (candidates() + 4 * (window + spans) + s_.n * s_.slots * (2 * s_.dim + 4));
    if (c_.projects) {
      x.matmul += 2 * s_.batch * s_.n * s_.channels * s_.heads * s_.dim;
      f.parameters = s_.heads * s_.dim * s_.channels;
    }
    x.bytes_read = e * s_.dim * (2 * heads * s_.n + 2 * s_.batch * s_.kv_heads * s_.m);
    x.bytes_written = e * s_.dim * heads * s_.n + 4 * anchors_.nbytes();
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = s_.batch;
    set.heads = s_.heads;
    set.queries = s_.n;
    set.tokens = s_.m;
    set.same_for_all_batches = false;
    set.row = [start = shared_host(start_), end = shared_host(end_), s = s_, window = window_,
               positions = positions_, first = first_,
               valid = valid_](int64_t b, int64_t h, int64_t i, Intervals& out) {
      const int64_t t = positions[static_cast<size_t>(i)], least = first.empty() ? 0 : first[size_t(b)];
      Intervals all;
      const auto at = static_cast<size_t>(((b * s.heads + h) * s.n + i) * s.slots);
      for (size_t k = at; k < at + static_cast<size_t>(s.slots); ++k)
        if ((*start)[k] >= 0 && (*start)[k] <= (*end)[k]) all.push_back({(*start)[k], (*end)[k] + 1});
      const int64_t from = std::max(least, t - window + 1);
      if (from <= t) all.push_back({from, t + 1});
      std::sort(all.begin(), all.end(), [](Interval x, Interval y) { return x.begin < y.begin; });
      out.clear();
      const auto add = [&out](int64_t begin, int64_t finish) {
        if (!out.empty() && out.back().end >= begin)
          out.back().end = std::max(out.back().end, finish);
        else
          out.push_back({begin, finish});
      };
      for (const Interval& v : all) {
        if (valid.empty()) {
          add(v.begin, v.end);
          continue;
        }
        for (int64_t j = v.begin; j < v.end; ++j)
          if (valid[static_cast<size_t>(b * s.m + j)]) add(j, j + 1);
      }
    };
    return set;
  }
  int64_t keys(int64_t) const override { return s_.m; }

  /// One softmax over every valid key up to the query's place.
  std::optional<DenseEquivalent> dense_equivalent(Context& ctx) override {
    DenseEquivalent d;
    d.call = call(input("q"), {});
    d.output = out_;
    std::vector<int32_t> end;
    for (const int32_t t : positions_) end.push_back(t + 1);
    BlockMask mask;
    mask.row_begin = upload(ctx, {1, 1, s_.n}, std::vector<int32_t>(end.size(), 0));
    mask.row_end = upload(ctx, {1, 1, s_.n}, end);
    mask.key_valid = key_valid_;
    d.set_mask(std::move(mask));
    d.pairs.batch = s_.batch, d.pairs.heads = s_.heads;
    d.pairs.queries = s_.n, d.pairs.tokens = s_.m;
    d.pairs.same_for_all_batches = valid_.empty();
    d.pairs.row = [s = s_, positions = positions_, valid = valid_](int64_t b, int64_t, int64_t i,
                                                                   Intervals& out) {
      out.clear();
      const int64_t t = positions[static_cast<size_t>(i)];
      if (valid.empty()) return out.push_back({0, t + 1});
      for (int64_t j = 0; j <= t; ++j) {
        if (!valid[static_cast<size_t>(b * s.m + j)]) continue;
        if (!out.empty() && out.back().end == j)
          ++out.back().end;
        else
          out.push_back({j, j + 1});
      }
    };
    return d;
  }

  ChosenSpans chosen() const override { return {anchors_, scores_, input("pos")}; }
  Candidates candidates_of(int64_t b, int64_t i) const override {
    Candidates c;
    const int64_t t = positions_[static_cast<size_t>(i)], least = first_.empty() ? 0 : first_[size_t(b)];
    const auto there = [&](int64_t j) { return valid_.empty() || valid_[static_cast<size_t>(b * s_.m + j)]; };
    c.position = t, c.first_key = least;
    const int64_t from = std::max(least, t - window_ + 1);
    if (from <= t) c.always = {from, t + 1};
    if (least > t) return c;
    const auto length = static_cast<size_t>(t + 1 - least);
    for (const int32_t away : distances_) {
      const int64_t anchor = t + 1 - away;
      if (anchor < 0) break;
      if (!there(anchor)) continue;
      int64_t end = std::min(anchor + ahead_[length], t);
      if (c_.ahead > 0 && window_ > 0) end = std::min(end, std::max<int64_t>(t - window_ + 1, 0) - 1);
      c.anchors.push_back(anchor);
      c.spans.push_back({std::max(anchor - back_[length], least), end + 1});
    }
    return c;
  }

  /// Of the last run: the mean of the branches' rows under the gates.
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    const auto head = [&](const Tensor& t, int64_t of) { return on_host(ctx, t.select(0, b).select(0, of)); };
    const Tensor q = head(input("q"), h), k = head(input("k"), h / (s_.heads / s_.kv_heads));
    const Tensor start = head(start_, h), end = head(end_, h), scores = head(scores_, h);
    const auto widen = [&](const Tensor& t, int64_t row, std::vector<float>& to) {
      to.resize(static_cast<size_t>(s_.dim));
      convert(static_cast<const char*>(t.raw()) + row * t.stride(0) * static_cast<int64_t>(size_of(dtype_)),
              dtype_, to.data(), DType::f32, s_.dim);
    };
    const float scale = call({}, {}).scale;
    out.assign(static_cast<size_t>((q_end - q_begin) * s_.m), 0.0f);
    std::vector<float> x, y, p(static_cast<size_t>(s_.m)), all(p.size());
    for (int64_t i = q_begin; i < q_end; ++i) {
      const int64_t t = positions_[static_cast<size_t>(i)];
      widen(q, i, x);
      for (int64_t j = 0; j <= t; ++j) {
        widen(k, j, y);
        float dot = 0;
        for (size_t c = 0; c < x.size(); ++c) dot += x[c] * y[c];
        const bool there = valid_.empty() || valid_[static_cast<size_t>(b * s_.m + j)];
        all[static_cast<size_t>(j)] = there ? scale * dot : -INFINITY;
      }
      const float* z = scores.data<float>() + i * scores.stride(0);
      float most = -INFINITY, total = 0;
      for (int64_t s = 0; s < s_.slots; ++s) most = std::max(most, z[s]);
      for (int64_t s = 0; s < s_.slots; ++s) total += std::exp(z[s] - most);
      for (int64_t s = 0; s < s_.slots; ++s) {
        const int64_t from = start.data<int32_t>()[i * start.stride(0) + s],
                      to = end.data<int32_t>()[i * end.stride(0) + s];
        float top = -INFINITY, sum = 0;
        for (int64_t j = 0; j <= t; ++j) {
          const bool seen = j > t - window_ || (from >= 0 && j >= from && j <= to);
          p[static_cast<size_t>(j)] = seen ? all[static_cast<size_t>(j)] : -INFINITY;
          top = std::max(top, p[static_cast<size_t>(j)]);
        }
        if (top == -INFINITY) continue;
        for (int64_t j = 0; j <= t; ++j)
          sum += p[static_cast<size_t>(j)] = std::exp(p[static_cast<size_t>(j)] - top);
        const float gate = std::exp(z[s] - most) / total / sum;
        float* row = out.data() + (i - q_begin) * s_.m;
        for (int64_t j = 0; j <= t; ++j) row[j] += gate * p[static_cast<size_t>(j)];
      }
    }
    return true;
  }

 private:
  std::vector<int32_t> host(const Tensor& t) const {
    std::vector<int32_t> v(static_cast<size_t>(t.numel()));
    backend_->synchronize();
    if (!v.empty())
      backend_->copy_bytes(v.data(), DeviceKind::cpu, t.raw(), t.device(), v.size() * sizeof(int32_t));
    return v;
  }
  std::shared_ptr<const std::vector<int32_t>> shared_host(const Tensor& t) const {
    return std::make_shared<const std::vector<int32_t>>(host(t));
  }
  Tensor as_f32(Context& ctx, const Tensor& x) const {
    if (x.dtype() == DType::f32) return x;
    const Tensor y = ctx.allocate(DType::f32, x.shape());
    cast(ctx, {x, y});
    return y;
  }
  /// Candidates of a query at place t, padding keys included.
  int64_t anchors_below(int64_t t) const {
    return std::upper_bound(distances_.begin(), distances_.end(), t + 1) - distances_.begin();
  }
  int64_t candidates() const {
    int64_t all = 0;
    for (const int64_t t : positions_) all += anchors_below(t);
    return all;
  }
  AttentionArgs call(const Tensor& q, const Tensor& o) const {
    AttentionArgs a;
    a.q = q, a.k = input("k"), a.v = input("v"), a.o = o;
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s_.dim)));
    return a;
  }

  /// The window as a band where queries are neighbours and all keys valid; as a range of keys a row
  /// elsewhere.
  void plan_window(Context& ctx) {
    window_mask_ = {};
    window_mask_.key_valid = key_valid_;
    const int64_t n = s_.n;
    if (valid_.empty() && positions_.back() - positions_.front() == n - 1) {
      window_mask_.rule.causal = window_mask_.rule.band = true;
      window_mask_.rule.offset = positions_.front();
      window_mask_.rule.left = window_ - 1;
      return;
    }
    const int64_t groups = valid_.empty() ? 1 : s_.batch, tiles = (n + kBlock - 1) / kBlock;
    std::vector<int32_t> begin, end, from(static_cast<size_t>(groups * tiles)), count(from.size());
    for (int64_t b = 0; b < groups; ++b)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = positions_[static_cast<size_t>(i)];
        const int64_t least = std::max<int64_t>(first_[static_cast<size_t>(b)], t - window_ + 1);
        const bool some = least <= t;
        begin.push_back(some ? static_cast<int32_t>(least) : 0);
        end.push_back(some ? static_cast<int32_t>(t + 1) : 0);
        if (!some) continue;
        // Places increase, so the first row that sees a key sees the least one, and the last row the last.
        const auto tile = static_cast<size_t>(b * tiles + i / kBlock);
        if (count[tile] == 0) from[tile] = static_cast<int32_t>(least / kBlock);
        count[tile] = static_cast<int32_t>(t / kBlock + 1 - from[tile]);
      }
    window_mask_.block_q = window_mask_.block_k = kBlock;
    window_mask_.row_begin = upload(ctx, {groups, 1, n}, begin);
    window_mask_.row_end = upload(ctx, {groups, 1, n}, end);
    window_mask_.full = {upload(ctx, {groups, 1, tiles}, from), upload(ctx, {groups, 1, tiles}, count),
                         key_blocks_};
  }

  Shape5 s_;
  Choices c_;
  DType dtype_;
  Backend* backend_;
  int64_t window_ = 0;
  std::vector<int32_t> distances_, positions_, first_, back_, ahead_;
  std::vector<uint8_t> valid_;
  BlockMask window_mask_;
  Tensor out_, anchors_, start_, end_, scores_;
  Tensor key_valid_, first_key_, stripes_, before_, after_, key_blocks_;
};

class Superlinear final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    if (!problem.causal)
      throw Unsupported(
          "superlinear: anchors and spans stand before the query; a problem that is not causal has no "
          "definition");
    if (f.keys < f.queries)
      throw Unsupported("superlinear: " + std::to_string(f.queries) +
                        " causal queries need as many keys, not " + std::to_string(f.keys));
    Shape5 s{f.batch, f.heads, f.kv_heads, f.queries, f.keys, f.head_dim, 0, params.integer("num_spans")};
    s.channels = problem.channels ? problem.channels : f.heads * f.head_dim;
    const auto inside = [&](const char* name) {
      const double x = params.number(name);
      if (!(x > 0 && x < 1))
        throw UsageError(std::string("superlinear.") + name + ": " + params.value(name).str() +
                         " does not lie between 0 and 1");
      return x;
    };
    const auto positive = [&](const char* name) {
      const double x = params.number(name);
      if (!(x > 0))
        throw UsageError(std::string("superlinear.") + name + ": " + params.value(name).str() +
                         " is not above 0");
      return x;
    };
    Choices c{};
    c.p = inside("search_power"), c.s = inside("span_power");
    c.back = positive("backward_factor"), c.ahead = params.number("forward_factor");
    c.search_scale = static_cast<float>(positive("search_scale"));
    c.stripe = params.integer("sw_index");
    c.projects = params.boolean("with_projection");
    c.dense = f.keys < params.integer("force_dense_below");
    return std::make_unique<SuperlinearInstance>(ctx, s, c, problem.dtype);
  }
};
ATTNBENCH_METHOD(Superlinear);

}  // namespace
}  // namespace attnbench
