// A static pattern of key blocks: which ones each block of queries visits, and which of those need the
// element rule. What methods with a fixed block list have in common; not for lists that a run chooses on the
// device.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/block_mask.hpp"
#include "methods/pair_set.hpp"

namespace attnbench {

class BlockPattern {
 public:
  BlockPattern() = default;
  /// `queries` x `keys` tokens in blocks of `block`; the last block of each may be ragged. Rows are appended.
  BlockPattern(int64_t queries, int64_t keys, int64_t block)
      : queries_(queries), keys_(keys), block_(block) {}

  /// Appends the key blocks of the next query block: ascending, unique. `partial` (none, or parallel to them)
  /// marks those that the element rule refines.
  void add_row(const std::vector<int64_t>& blocks, const std::vector<bool>& partial = {});

  int64_t query_blocks() const { return (queries_ + block_ - 1) / block_; }
  int64_t key_blocks() const { return (keys_ + block_ - 1) / block_; }
  int64_t rows() const { return static_cast<int64_t>(begin_.size()) - 1; }
  int64_t entries() const { return static_cast<int64_t>(blocks_.size()); }
  std::span<const int32_t> row(int64_t query_block) const;

  /// (query, key) pairs of the listed blocks, cut at both ends: what the attention operator charges.
  int64_t visited_pairs() const;
  /// Bytes of the lists as the operator reads them: begin and count of both kinds, one entry a block.
  int64_t list_bytes() const { return 4 * (4 * rows() + entries()); }
  /// Puts block sizes and both lists into `mask`, on the context's device.
  void upload(Context& ctx, BlockMask& mask) const;
  /// The key tokens of a query's blocks, keys at `end` and later left out (causal: its own place + 1).
  void intervals(int64_t query, int64_t end, Intervals& out) const;

 private:
  int64_t queries_ = 0, keys_ = 0, block_ = 1;
  std::vector<size_t> begin_{0};
  std::vector<int32_t> blocks_;
  std::vector<bool> partial_;
};

}  // namespace attnbench
