// The heads form: methods that are given q [B, H, N, D] and k, v [B, Hkv, M, D] and return o [B, H, N, D].
// Extents, tensor specifications and the answers to analyses that softmax methods of this form share; not for
// layers, which are given x and project it themselves.
#pragma once
#include "methods/dense_counterpart.hpp"
#include "methods/method.hpp"

namespace attnbench {

struct HeadsForm {
  int64_t batch = 0, heads = 0, kv_heads = 0, queries = 0, keys = 0, head_dim = 0;
  int64_t group() const { return heads / kv_heads; }  ///< query heads that share a key head
};
/// Reads the extents; throws UsageError naming the key that is missing.
HeadsForm heads_form(const MethodInfo& info, const Problem& problem);

/// Softmax attention in heads form: the subclass describes its call once in `args_` (and `mask_`, which args_
/// points to where it is used), so that outputs and analyses follow from it.
class HeadsInstance : public Instance, public DenseCounterpart {
 public:
  HeadsInstance(Context& ctx, const MethodInfo& info, const Problem& problem, double scale);

  TensorMap outputs() const override { return {{"o", o_}}; }
  std::optional<PairSet> pairs() const override;
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override;
  int64_t keys(int64_t) const override { return form_.keys; }
  std::optional<RowStats> row_stats(Context& ctx) override;
  /// Every pair, or with a causal rule every earlier one; whatever else the mask holds does not count.
  std::optional<DenseEquivalent> dense_equivalent(Context& ctx) override;

 protected:
  /// The call with the bound inputs.
  AttentionArgs call() const;
  /// Cost of fused softmax attention over `pairs` (query, key) pairs of each head, as the operator's header
  /// counts it, with every operand moved once.
  Cost fused_cost(int64_t pairs) const;

  HeadsForm form_;
  DType dtype_;
  float scale_;
  BlockMask mask_;
  bool masked_ = false;  ///< mask_ takes part in the call
  std::vector<int64_t> grid_;
  Tensor o_;
};

/// The parameter `scale` of these methods, and its value: null is 1 / sqrt(D).
ParamSpec scale_param();
double scale_of(const Params& params, int64_t head_dim);

}  // namespace attnbench
