// What a softmax-attention method can tell analyses about its attention call: probability rows, row
// statistics and pair sets. Shared by methods that run the attention operator; not a second implementation of
// attention.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention/attention.hpp"
#include "methods/method.hpp"

namespace attnbench {

/// The probabilities of batch b, head h for query tokens [q_begin, q_end), recomputed in f32 from the
/// arguments of an attention call: row-major (q_end - q_begin) x M by key token, 0 where the mask hides a
/// pair. Honours everything the operator does: block lists, gather lists, rules, ranges, key padding, token
/// orders, biases, soft-cap, pages; with a sink logit a row sums to less than 1. Reads through to the host on
/// other devices. Returns true (the shape of Instance::rows).
bool attention_rows(Context& ctx, const AttentionArgs& args, int64_t b, int64_t h, int64_t q_begin,
                    int64_t q_end, std::vector<float>& out);

/// The same for many reads of one call, which stays as it is meanwhile: the mask comes to the host once, and
/// the keys of a head, widened, serve until another key head is asked for.
class AttentionRows {
 public:
  AttentionRows(Context& ctx, const AttentionArgs& args);
  ~AttentionRows();
  void read(int64_t b, int64_t h, int64_t q_begin, int64_t q_end, std::vector<float>& out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The pairs that the mask of an attention call shows, whatever their weights; no mask: all. Lists are copied
/// to the host once.
PairSet attention_pairs(Context& ctx, const AttentionArgs& args);

/// Runs the operator once more into scratch memory with entropy requested; the keys that each row sees are
/// counted from the mask (and from -inf in a dense bias), a sink logit is not a key. Rules of blocks are
/// counted key by key: a method that knows the number of keys that query i of a head sees gives it as
/// `count`.
using KeyCount = std::function<int64_t(int64_t b, int64_t h, int64_t i)>;
RowStats attention_row_stats(Context& ctx, const AttentionArgs& args, const KeyCount& count = {});

/// The dependencies that a rule describes: dense, causal, band with sinks and neighbourhoods of row-major
/// tokens in closed form, other rules key by key. `grid` is what distances are measured on; empty: a
/// sequence. The rule must be on the host.
PairSet rule_pairs(const ElementRule& rule, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                   std::vector<int64_t> grid = {});

/// Keys visible to query token i by the causal and band parts alone, sinks included: sorted, disjoint,
/// non-empty.
void band_intervals(const ElementRule& rule, int64_t i, int64_t queries, int64_t keys, Intervals& out);

/// Keys of query token i in a neighbourhood of row-major tokens, the rule's other parts apart: sorted,
/// disjoint, non-empty.
void neighborhood_intervals(const ElementRule& rule, int64_t i, Intervals& out);

/// Sum of band_intervals' lengths over all queries: the pairs of one head.
int64_t band_pair_count(const ElementRule& rule, int64_t queries, int64_t keys);

/// Keys and values enter the attention operator with the heads in axis 1: a view of [B, N, H * D] as [B, H,
/// N, D].
Tensor split_heads(const Tensor& x, int64_t heads);

/// A host tensor with the same elements: itself where it is, a contiguous copy where it is not.
Tensor on_host(Context& ctx, const Tensor& t);

}  // namespace attnbench
