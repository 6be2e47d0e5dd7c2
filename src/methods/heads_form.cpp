#include "methods/heads_form.hpp"

#include <algorithm>
#include <cmath>

#include "methods/attention_rows.hpp"

namespace attnbench {

HeadsForm heads_form(const MethodInfo& info, const Problem& problem) {
  require_kind(info, problem);
  HeadsForm f;
  f.batch = problem.batch;
  f.heads = problem.heads;
  f.kv_heads = problem.kv_heads_or_heads();
  f.queries = problem.tokens();
  f.keys = problem.kv_length_or_length();
  f.head_dim = problem.head_dim;
  require_extent(info, f.heads, "heads");
  require_extent(info, f.head_dim, "head_dim (the method is given q, k and v)");
  require_extent(info, f.queries, problem.kind == ProblemKind::sequence ? "length" : "grid");
  if (f.heads % f.kv_heads != 0)
    throw UsageError("problem.kv_heads: " + std::to_string(f.kv_heads) + " does not divide heads " +
                     std::to_string(f.heads));
  return f;
}

HeadsInstance::HeadsInstance(Context& ctx, const MethodInfo& info, const Problem& problem, double scale)
    : form_(heads_form(info, problem)),
      dtype_(problem.dtype),
      scale_(static_cast<float>(scale)),
      grid_(problem.grid) {
  const HeadsForm& f = form_;
  const Shape kv{f.batch, f.kv_heads, f.keys, f.head_dim};
  const Shape q{f.batch, f.heads, f.queries, f.head_dim};
  input_specs_ = {{"q", q, dtype_, Init::normal(), false, "queries [B, H, N, D]"},
                  {"k", kv, dtype_, Init::normal(), false, "keys [B, Hkv, M, D]"},
                  {"v", kv, dtype_, Init::normal(), false, "values [B, Hkv, M, D]"}};
  o_ = ctx.allocate(dtype_, q, MemoryClass::output);
  if (problem.causal) {
    mask_.rule.causal = true;
    masked_ = true;
  }
}

AttentionArgs HeadsInstance::call() const {
  AttentionArgs a;
  a.q = input("q");
  a.k = input("k");
  a.v = input("v");
  a.o = o_;
  a.scale = scale_;
  if (masked_) a.mask = &mask_;
  return a;
}

Cost HeadsInstance::fused_cost(int64_t pairs) const {
  const HeadsForm& f = form_;
  const int64_t all = f.batch * f.heads * pairs, bytes = static_cast<int64_t>(size_of(dtype_));
  Cost c;
  c.matmul = all * 2 * (f.head_dim + f.head_dim);
  c.elementwise = all * 4;
  c.special = all;
  c.bytes_read =
      (f.batch * f.heads * f.queries + 2 * std::min(f.batch * f.kv_heads * f.keys, all)) * f.head_dim * bytes;
  c.bytes_written = f.batch * f.heads * f.queries * f.head_dim * bytes;
  return c;
}

std::optional<PairSet> HeadsInstance::pairs() const {
  return rule_pairs(mask_.rule, form_.batch, form_.heads, form_.queries, form_.keys, grid_);
}

bool HeadsInstance::rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                         std::vector<float>& out) {
  return attention_rows(ctx, call(), b, h, q_begin, q_end, out);
}

std::optional<RowStats> HeadsInstance::row_stats(Context& ctx) { return attention_row_stats(ctx, call()); }

std::optional<DenseEquivalent> HeadsInstance::dense_equivalent(Context&) {
  DenseEquivalent d;
  d.call = call();
  d.output = d.call.o;
  d.call.o = {};
  ElementRule rule;
  rule.causal = mask_.rule.causal;
  BlockMask all;
  all.rule = rule;
  d.set_mask(std::move(all));
  d.pairs = rule_pairs(rule, form_.batch, form_.heads, form_.queries, form_.keys, grid_);
  d.visited = cost().cost.matmul / (4 * form_.head_dim);
  return d;
}

ParamSpec scale_param() {
  ParamSpec s;
  s.name = "scale";
  s.type = ParamSpec::Type::number;
  s.nullable = true;
  s.meaning = "factor of q . k before the softmax; null: 1 / sqrt(D)";
  return s;
}

double scale_of(const Params& params, int64_t head_dim) {
  return params.is_null("scale") ? 1.0 / std::sqrt(static_cast<double>(head_dim)) : params.number("scale");
}

}  // namespace attnbench
