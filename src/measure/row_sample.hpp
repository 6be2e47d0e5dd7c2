// Which output rows a sampled verification compares, and in which order: any beginning of the order is spread
// over batches, heads and positions, with the places first where kernels go wrong.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "methods/params.hpp"
#include "methods/problem.hpp"

namespace attnbench {

/// Draws distinct rows of an output seen as [rows, last axis]. The first and the last row come first. Then
/// rounds over every batch and head in a seeded order, each visit taking one position in turn: the first, the
/// last, one at a border, any. A border is a multiple of a power of two from 16 to 256, of an integer
/// parameter (block, tile, window, stride) or of half of one, or the position before it, counted from either
/// end, along one axis of the grid, along all, or along the tokens in a line. The same arguments give the
/// same order on every machine.
class RowSample {
 public:
  /// `shape`: of the output; [B, H, N.., D] or [B, N.., H, D], told apart by the heads of `problem`. Other
  /// shapes count as one head.
  RowSample(const std::vector<int64_t>& shape, const Problem& problem, const Params& params);

  int64_t total() const { return total_; }
  /// First, last, and each batch and head twice (or all rows, where there are fewer): what a sample must
  /// have.
  int64_t least() const;
  /// Up to `count` further rows; empty when all have been drawn.
  std::vector<int64_t> next(int64_t count);

 private:
  uint64_t random(uint64_t below);
  std::vector<int64_t> position(int kind);
  int64_t border(int64_t extent);
  int64_t row_of(int64_t stratum, const std::vector<int64_t>& position) const;
  void take(int64_t row, std::vector<int64_t>& rows);
  void shuffle();

  int64_t total_ = 1, batch_ = 1, heads_ = 1, tokens_ = 1;
  bool heads_first_ = true;
  std::vector<int64_t> extents_;  ///< of the positions
  std::vector<int64_t> periods_;
  std::vector<int64_t> strata_;  ///< batch x head, in the order of this round
  size_t visit_ = 0;             ///< within the round
  int round_ = 0;
  uint64_t seed_ = 0, drawn_ = 0;
  bool ends_taken_ = false;
  std::set<int64_t> taken_;
  int64_t walk_ = 0;  ///< where drawing gave up, rows are taken in order
};

}  // namespace attnbench
