#include "methods/block_pattern.hpp"

#include <algorithm>

#include "kernels/core/backend.hpp"

namespace attnbench {

void BlockPattern::add_row(const std::vector<int64_t>& blocks, const std::vector<bool>& partial) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks_.push_back(static_cast<int32_t>(blocks[i]));
    partial_.push_back(!partial.empty() && partial[i]);
  }
  if (blocks_.size() > static_cast<size_t>(INT32_MAX))
    throw UsageError("a block mask holds at most 2^31 - 1 entries; use larger blocks");
  begin_.push_back(blocks_.size());
}

std::span<const int32_t> BlockPattern::row(int64_t query_block) const {
  const auto r = static_cast<size_t>(query_block);
  return {blocks_.data() + begin_[r], begin_[r + 1] - begin_[r]};
}

int64_t BlockPattern::visited_pairs() const {
  int64_t pairs = 0;
  for (int64_t r = 0; r < rows(); ++r) {
    const int64_t height = std::min(block_, queries_ - r * block_);
    for (const int32_t c : row(r)) pairs += height * std::min(block_, keys_ - c * block_);
  }
  return pairs;
}

void BlockPattern::upload(Context& ctx, BlockMask& mask) const {
  std::vector<int32_t> index[2], begin[2], count[2];  // full, partial
  for (size_t r = 0; r + 1 < begin_.size(); ++r) {
    for (const int kind : {0, 1}) begin[kind].push_back(static_cast<int32_t>(index[kind].size()));
    for (size_t e = begin_[r]; e < begin_[r + 1]; ++e) index[partial_[e] ? 1 : 0].push_back(blocks_[e]);
    for (const int kind : {0, 1})
      count[kind].push_back(static_cast<int32_t>(index[kind].size()) - begin[kind].back());
  }
  const auto list = [&](int kind) {
    return BlockList{attnbench::upload(ctx, {1, 1, rows()}, begin[kind]),
                     attnbench::upload(ctx, {1, 1, rows()}, count[kind]),
                     attnbench::upload(ctx, {static_cast<int64_t>(index[kind].size())}, index[kind])};
  };
  mask.block_q = mask.block_k = block_;
  mask.full = list(0);
  mask.partial = list(1);
}

void BlockPattern::intervals(int64_t query, int64_t end, Intervals& out) const {
  out.clear();
  for (const int32_t c : row(query / block_)) {
    const Interval v{c * block_, std::min({(c + 1) * block_, keys_, end})};
    if (v.begin >= v.end) continue;
    if (!out.empty() && out.back().end == v.begin)
      out.back().end = v.end;
    else
      out.push_back(v);
  }
}

}  // namespace attnbench
