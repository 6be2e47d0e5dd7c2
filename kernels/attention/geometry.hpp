// Sizes of one attention call, read once from its arguments. Shared by validation, cost and the backends.
#pragma once
#include "kernels/attention/attention.hpp"

namespace attnbench {

struct AttentionSizes {
  int64_t batch = 0, heads = 0, kv_heads = 0;
  int64_t n = 0;
  int64_t m = 0;  ///< keys; with pages: the most a table row can name
  int64_t d = 0, e = 0;
  int64_t block_q = 64, block_k = 64;
};
AttentionSizes attention_sizes(const AttentionArgs& args);
/// Throws UsageError with the argument's name and what is wrong. Does not read device memory.
void check_attention(const AttentionArgs& args);
/// True when the pairs follow from shapes and rules alone: their count needs no data.
bool pairs_are_static(const AttentionArgs& args);

}  // namespace attnbench
