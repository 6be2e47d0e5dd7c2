#include "methods/block_selection.hpp"

#include <algorithm>
#include <cmath>

#include "methods/attention_rows.hpp"

namespace attnbench {

BlockSelectionInstance::BlockSelectionInstance(Context& ctx, const MethodInfo& info, const Problem& problem,
                                               Layout layout, double scale, int64_t extra)
    : form_(heads_form(info, problem)),
      layout_(layout),
      dtype_(problem.dtype),
      scale_(static_cast<float>(scale)),
      ctx_(&ctx) {
  form_.queries += extra, form_.keys += extra;
  const TensorSpec q = spec("q", form_.heads, form_.queries, "");
  out_ = new_output(ctx, "out", dtype_, q.shape);
}

TensorSpec BlockSelectionInstance::spec(const char* name, int64_t heads, int64_t tokens,
                                        const char* meaning) const {
  const Shape shape = layout_ == Layout::token_major ? Shape{form_.batch, tokens, heads, form_.head_dim}
                                                     : Shape{form_.batch, heads, tokens, form_.head_dim};
  return {name, shape, dtype_, Init::normal(), false, meaning};
}

Tensor BlockSelectionInstance::new_output(Context& ctx, const char* name, DType dtype, const Shape& shape) {
  const Tensor t = ctx.allocate(dtype, shape, MemoryClass::output);
  outputs_[name] = t;
  return t;
}

void BlockSelectionInstance::make_lists(Context& ctx, int64_t block_q, int64_t block_k) {
  lists_.n = form_.queries, lists_.m = form_.keys;
  lists_.block_q = block_q, lists_.block_k = block_k;
  lists_.selected =
      new_output(ctx, "selected", DType::i32, {form_.batch, form_.heads, query_blocks(), key_blocks()});
}

TensorMap BlockSelectionInstance::outputs() const { return outputs_; }

AttentionArgs BlockSelectionInstance::call() const {
  AttentionArgs a;
  a.q = query_, a.k = key_, a.v = value_;
  a.o = heads_first(out_);
  a.scale = scale_;
  a.mask = &mask_;
  return a;
}

std::vector<int32_t> BlockSelectionInstance::last_selection() const {
  if (!ran_ || dense_ || !lists_.selected) return {};
  const Tensor host = on_host(*ctx_, lists_.selected);
  return {host.data<int32_t>(), host.data<int32_t>() + host.numel()};
}

Cost BlockSelectionInstance::attend_cost() const {
  const int64_t groups = form_.batch * form_.heads, element = static_cast<int64_t>(size_of(dtype_));
  int64_t pairs = 0, entries = 0;
  const std::vector<int32_t> chosen = last_selection();
  if (chosen.empty()) {
    pairs = groups * band_pair_count(mask_.rule, form_.queries, form_.keys);
  } else {
    const int64_t nq = query_blocks(), nk = key_blocks();
    for (size_t i = 0; i < chosen.size(); ++i) {
      if (!chosen[i]) continue;
      const int64_t r = static_cast<int64_t>(i) / nk % nq, c = static_cast<int64_t>(i) % nk;
      pairs += (std::min(form_.queries, (r + 1) * lists_.block_q) - r * lists_.block_q) *
               (std::min(form_.keys, (c + 1) * lists_.block_k) - c * lists_.block_k);
      ++entries;
    }
  }
  Cost c;
  c.matmul = pairs * 4 * form_.head_dim;
  c.elementwise = pairs * 4;
  c.special = pairs;
  c.bytes_read = (groups * form_.queries + 2 * std::min(form_.batch * form_.kv_heads * form_.keys, pairs)) *
                 form_.head_dim * element;
  if (!chosen.empty()) c.bytes_read += 4 * (entries + (lists_.partial ? 4 : 2) * groups * query_blocks());
  c.bytes_written = groups * form_.queries * form_.head_dim * element;
  return c;
}

std::optional<PairSet> BlockSelectionInstance::pairs() const {
  if (!ran_ || dense_) return rule_pairs(mask_.rule, form_.batch, form_.heads, form_.queries, form_.keys);
  PairSet set;
  set.batch = form_.batch, set.heads = form_.heads;
  set.queries = form_.queries, set.tokens = form_.keys;
  set.same_for_all_batches = form_.batch == 1;
  set.row = [chosen = last_selection(), rule = mask_.rule, form = form_, nq = query_blocks(),
             nk = key_blocks(), block_q = lists_.block_q,
             block_k = lists_.block_k](int64_t b, int64_t h, int64_t i, Intervals& out) {
    Intervals band;
    band_intervals(rule, i, form.queries, form.keys, band);
    const int32_t* row = chosen.data() + ((b * form.heads + h) * nq + i / block_q) * nk;
    out.clear();
    for (const Interval& v : band)
      for (int64_t c = v.begin / block_k; c < nk && c * block_k < v.end; ++c) {
        if (!row[c]) continue;
        const int64_t begin = std::max(v.begin, c * block_k);
        const int64_t end = std::min({v.end, (c + 1) * block_k, form.keys});
        if (begin >= end) continue;
        if (!out.empty() && out.back().end == begin)
          out.back().end = end;
        else
          out.push_back({begin, end});
      }
  };
  return set;
}

bool BlockSelectionInstance::rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                                  std::vector<float>& out) {
  return attention_rows(ctx, call(), b, h, q_begin, q_end, out);
}

std::optional<RowStats> BlockSelectionInstance::row_stats(Context& ctx) {
  return attention_row_stats(ctx, call());
}

int64_t visited_pairs(Context& ctx, const AttentionArgs& call) {
  const int64_t batch = call.q.dim(0), heads = call.q.dim(1), n = call.q.dim(2), m = call.k.dim(2);
  if (!call.mask) return batch * heads * n * m;
  BlockMask mask = *call.mask;
  if (!mask.full && !mask.partial && !mask.gather) return batch * heads * band_pair_count(mask.rule, n, m);
  for (BlockList* l : {&mask.full, &mask.partial, &mask.gather})
    l->begin = on_host(ctx, l->begin), l->count = on_host(ctx, l->count), l->index = on_host(ctx, l->index);
  for (Tensor* t : {&mask.row_begin, &mask.row_end, &mask.key_length, &mask.key_valid, &mask.q_order,
                    &mask.k_order, &mask.rule.segment_q, &mask.rule.segment_k, &mask.rule.bitmap})
    *t = on_host(ctx, *t);
  return count_pairs(mask, batch, heads, n, m, false).visited;
}

std::optional<DenseEquivalent> BlockSelectionInstance::dense_equivalent(Context& ctx) {
  DenseEquivalent d;
  d.call = BlockSelectionInstance::call();
  d.output = d.call.o;
  d.call.o = {};
  BlockMask all;
  all.rule = mask_.rule;
  d.set_mask(std::move(all));
  d.pairs = rule_pairs(mask_.rule, form_.batch, form_.heads, form_.queries, form_.keys);
  d.visited = computed_pairs(ctx);
  return d;
}

Tensor repeated(const Tensor& t, int axis, int64_t count) {
  std::vector<int64_t> shape, strides;
  for (int i = 0; i < t.rank(); ++i) {
    if (i == axis) shape.push_back(count), strides.push_back(0);
    shape.push_back(t.dim(i)), strides.push_back(t.stride(i));
  }
  return t.strided(Shape(shape), Shape(strides));
}

RotaryTable rotary_table(Context& ctx, double theta, int64_t width, int64_t first, int64_t step,
                         int64_t count) {
  const int64_t pairs = width / 2;
  std::vector<float> cosine(static_cast<size_t>(count * pairs)), sine(cosine.size());
  // In double: positions of 10^5 times a rate near 1 have lost their phase in f32.
  for (int64_t i = 0; i < pairs; ++i) {
    const double rate = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
    for (int64_t n = 0; n < count; ++n) {
      const double angle = static_cast<double>(first + n * step) * rate;
      cosine[static_cast<size_t>(n * pairs + i)] = static_cast<float>(std::cos(angle));
      sine[static_cast<size_t>(n * pairs + i)] = static_cast<float>(std::sin(angle));
    }
  }
  return {upload(ctx, {count, pairs}, cosine), upload(ctx, {count, pairs}, sine)};
}

}  // namespace attnbench
