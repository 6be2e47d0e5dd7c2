// The dense softmax attention that a sparse method stands for, on the same inputs: what analyses hold a
// selection against. Not a baseline that is timed; that is the method `dense`.
#pragma once
#include <memory>
#include <optional>

#include "kernels/attention/attention.hpp"
#include "methods/pair_set.hpp"

namespace attnbench {

struct DenseEquivalent {
  /// q, k, v, scale and score terms as the method attends with them, over every pair that the problem allows;
  /// `o` is absent.
  AttentionArgs call;
  std::shared_ptr<const BlockMask> mask;  ///< what call.mask points to; null: every pair
  PairSet pairs;                          ///< the pairs of the call; tokens as in the method's own pairs()
  /// What the method gave for the call's `o` in the last run, [B, H, N, E]; absent where it gives no output
  /// of this form (heads mixed by a projection).
  Tensor output;
  /// Pairs that the last run's attention computed, visited blocks counted whole, over batch and heads; 0: not
  /// known.
  int64_t visited = 0;
  void set_mask(BlockMask m) {
    mask = std::make_shared<const BlockMask>(std::move(m));
    call.mask = mask.get();
  }
};

/// A map that a method estimates before it selects: the share of a block of queries' weight that lies on each
/// block of keys, as far as the method knows.
struct BlockEstimate {
  /// f32 [B, H, NQ, NK]; a row sums to 1 over the blocks it may attend to, or to anything above 0 (analyses
  /// divide by the sum).
  Tensor map;
  int64_t block_q = 1, block_k = 1;
  int64_t queries = 0,
          keys = 0;  ///< tokens that the map speaks of, the first ones; the last blocks are cut there
};

/// What instances of sparse methods with a dense counterpart implement beside Instance.
class DenseCounterpart {
 public:
  virtual ~DenseCounterpart() = default;
  /// After run(). None: this configuration has no dense counterpart of one softmax a row. The tensors share
  /// memory with the instance.
  virtual std::optional<DenseEquivalent> dense_equivalent(Context& ctx) = 0;
  /// The map that the last run selected by; none: the method selects by no such map.
  virtual std::optional<BlockEstimate> block_estimate(Context&) { return std::nullopt; }
};

}  // namespace attnbench
