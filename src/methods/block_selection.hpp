// Softmax attention whose key blocks are chosen on the device in every run: the lists that a subclass fills,
// the attention call on them, and what analyses and accounting learn from the last selection. Not a selection
// rule.
//
// Tensors are token-major as in the cards of these methods: q, out [B, N, H, D], k, v [B, M, Hkv, D]; or
// head-major ([B, H, N, D]) where the card says so. Operators see them as [B, H, N, D] views.
#pragma once
#include "kernels/select/select.hpp"
#include "methods/dense_counterpart.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {

/// Pairs that the attention operator computes for a call, listed blocks counted whole; masks of any device.
int64_t visited_pairs(Context& ctx, const AttentionArgs& call);

class BlockSelectionInstance : public Instance, public DenseCounterpart {
 public:
  enum class Layout : uint8_t { token_major, head_major };

  TensorMap outputs() const override;
  std::optional<PairSet> pairs() const override;
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override;
  int64_t keys(int64_t) const override { return form_.keys; }
  std::optional<RowStats> row_stats(Context& ctx) override;
  /// Every pair that the element rule and the valid keys allow.
  std::optional<DenseEquivalent> dense_equivalent(Context& ctx) override;

 protected:
  /// `extra` tokens follow those of the problem (text behind a video).
  BlockSelectionInstance(Context& ctx, const MethodInfo& info, const Problem& problem, Layout layout,
                         double scale, int64_t extra = 0);

  /// Input specification of a tensor with `heads` heads and `tokens` tokens.
  TensorSpec spec(const char* name, int64_t heads, int64_t tokens, const char* meaning) const;
  Tensor new_output(Context& ctx, const char* name, DType dtype, const Shape& shape);
  /// [B, H, N, D], whatever the layout.
  Tensor heads_first(const Tensor& t) const { return layout_ == Layout::token_major ? t.transpose(1, 2) : t; }
  /// Lists for groups [B, H] with blocks of block_q x block_k, and the output `selected` [B, H, NQ, NK].
  void make_lists(Context& ctx, int64_t block_q, int64_t block_k);
  int64_t query_blocks() const { return (form_.queries + lists_.block_q - 1) / lists_.block_q; }
  int64_t key_blocks() const { return (form_.keys + lists_.block_k - 1) / lists_.block_k; }

  /// Attention of query_, key_ and value_ over the lists, or over everything that the rule allows while
  /// dense_.
  virtual AttentionArgs call() const;
  /// Pairs that the attention of the last run computed, visited blocks counted whole.
  virtual int64_t computed_pairs(Context& ctx) { return visited_pairs(ctx, call()); }
  /// What the attention operator charges for the last selection, by its header's rule: pairs of the listed
  /// blocks cut at N and M, and each list entry read once. Before the first run: all pairs of the rule, an
  /// upper bound.
  Cost attend_cost() const;
  /// `selected` of the last run on the host; empty before.
  std::vector<int32_t> last_selection() const;

  HeadsForm form_;
  Layout layout_;
  DType dtype_;
  float scale_;
  Tensor query_, key_, value_;  ///< [B, H or Hkv, N or M, D] views for the attention call
  Tensor out_;
  BlockListsArgs lists_;
  BlockMask mask_;
  bool dense_ = false;  ///< no lists: every pair that mask_.rule allows
  bool ran_ = false;    ///< set by run(): the lists hold a selection
  TensorMap outputs_;
  Context* ctx_;  ///< of make(): where the outputs live
};

/// Adds up what f32 selection work costs, operator by operator as their headers count; for closed forms.
struct CostSheet {
  Cost c;
  void gemm(int64_t batch, int64_t m, int64_t n, int64_t k) {
    c.matmul += 2 * batch * m * n * k;
    bytes(4 * batch * (m * k + n * k), 4 * batch * m * n);
  }
  void softmax(int64_t elements) {
    c.elementwise += 4 * elements;
    c.special += elements;
    bytes(4 * elements, 4 * elements);
  }
  /// `reads` elements of `size` bytes pooled to `writes` f32 elements.
  void pool(int64_t reads, int64_t size, int64_t writes) {
    c.elementwise += reads + writes;
    bytes(reads * size, 4 * writes);
  }
  void work(int64_t elementwise, int64_t read, int64_t written) {
    c.elementwise += elementwise;
    bytes(read, written);
  }
  void bytes(int64_t read, int64_t written) { c.bytes_read += read, c.bytes_written += written; }
};

/// `t` with a new axis of `count` equal entries before `axis`: a view with stride 0.
Tensor repeated(const Tensor& t, int axis, int64_t count);

/// Tables of rotary positions first, first + step, ... (count of them): cosine and sine f32 [count, width /
/// 2] of position * theta^(-2 i / width), angles in double.
struct RotaryTable {
  Tensor cosine, sine;
};
RotaryTable rotary_table(Context& ctx, double theta, int64_t width, int64_t first, int64_t step,
                         int64_t count);

}  // namespace attnbench
