// Softmax attention over neighbourhoods of a grid: what `neighborhood_attention` and
// `generalized_neighborhood_attention` share. Token layouts, parameters by axis, answers to analyses and the
// fused form; not the unfused forms, which are the first one's own.
#pragma once
#include <string>
#include <vector>

#include "kernels/attention/neighborhood.hpp"
#include "methods/attention_rows.hpp"
#include "methods/gna_simulator.hpp"
#include "methods/method.hpp"

namespace attnbench {

/// A neighbourhood on the grid of a problem. The grid is `pattern.extents`.
struct NeighborhoodForm {
  int64_t batch = 0, heads = 0, kv_heads = 0, head_dim = 0, tokens = 0;
  GnaProblem pattern;
  int64_t extra = 0;  ///< keys that every query sees besides
  bool token_permute = true;
  bool flat = false;  ///< tiles are runs of row-major tokens: single-dimensional tiling
  double scale = 1;
  size_t rank() const { return pattern.extents.size(); }
  /// Every query sees every key, or on a line every earlier one: no neighbourhood is left.
  bool is_dense() const;
};

/// What null stands for, by the rank of the grid, less 1; windows are cut to the grid.
struct NeighborhoodDefaults {
  std::vector<std::vector<int64_t>> window, q_tile, kv_tile;
};
/// The parameters of both cards, with the defaults in words.
std::vector<ParamSpec> neighborhood_params(const std::string& window, const std::string& q_tile,
                                           const std::string& kv_tile);
/// Reads extents and parameters. Throws UsageError that names the parameter and the axis.
NeighborhoodForm neighborhood_form(const MethodInfo& info, const Problem& problem, const Params& params,
                                   const NeighborhoodDefaults& defaults);
/// One entry an axis: `param` as given (one entry stands for all axes), or `otherwise` where it is null.
std::vector<int64_t> axis_list(const MethodInfo& info, const Params& params, const char* param, size_t rank,
                               const std::vector<int64_t>& otherwise);
int64_t tile_tokens(const std::vector<int64_t>& tile);

/// The element rule on row-major tokens.
ElementRule neighborhood_rule(const NeighborhoodForm& form);

/// What an instance lets the analytical simulator know.
class NeighborhoodPattern {
 public:
  virtual ~NeighborhoodPattern() = default;
  virtual const NeighborhoodForm& neighborhood() const = 0;
};

/// Inputs q [B, L_1..L_n, H, D], k and v alike (with Hkv heads) and the output o; `heads_first`: [B, H,
/// L_1..L_n, D].
class NeighborhoodInstance : public Instance, public NeighborhoodPattern {
 public:
  NeighborhoodInstance(Context& ctx, const Problem& problem, NeighborhoodForm form, bool heads_first);

  TensorMap outputs() const override { return {{"o", o_}}; }
  std::optional<PairSet> pairs() const override;
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override;
  int64_t keys(int64_t) const override { return form_.tokens; }
  std::optional<RowStats> row_stats(Context& ctx) override;
  const NeighborhoodForm& neighborhood() const override { return form_; }

 protected:
  /// An input or the output as [B, heads, N, D].
  Tensor by_heads(const Tensor& t, int64_t heads) const;
  /// The call on row-major tokens by the rule alone, without extra keys.
  AttentionArgs plain_call() const;
  /// Fused attention over `pairs` pairs of each head of each batch element.
  Cost fused_cost(int64_t queries, int64_t keys, int64_t pairs, int64_t mask_bytes, bool lse) const;
  Cost extra_cost(int64_t queries) const;
  /// Extra keys attended and joined with what o and lse hold; q and o are [B, H, rows, D].
  void attend_extra(Context& ctx, const Tensor& q, const Tensor& o, const Tensor& lse);

  NeighborhoodForm form_;
  DType dtype_;
  bool heads_first_;
  BlockMask plain_mask_;
  Tensor o_;
};

/// The fused form: block lists over tiles of the grid. Queries and keys are copied into tile order and the
/// result back (stages permute, restore) with token_permute, or read through an order of tokens. With dynamic
/// key tiles each query tile gathers the keys from the first to the last one it sees.
class FusedNeighborhood final : public NeighborhoodInstance {
 public:
  FusedNeighborhood(Context& ctx, const Problem& problem, NeighborhoodForm form);

  void prepare(Context& ctx) override;
  void run(Context& ctx) override;
  ClosedForm cost() const override;

 private:
  /// The numbering of tokens in the attention call: row-major, padded tiles after each other, or row-major
  /// read through an order.
  enum class Order { row_major, tiled, listed };
  /// Keys that a query block may see: coordinates begin, begin + step, ... below end on every axis.
  struct Region {
    AxisWindow axis[3];
    int64_t rows = 0;
    int64_t keys() const { return axis[0].count() * axis[1].count() * axis[2].count(); }
  };
  /// What the attention call visits: pairs of one head, entries of its lists, query blocks.
  struct Visits {
    int64_t pairs = 0, entries = 0, blocks = 0;
  };

  bool counted() const;
  std::vector<Region> regions() const;
  std::vector<int32_t> tile_order(const AxisExtents& tile) const;
  BlockList gather_lists(Context& ctx) const;
  BlockMask block_lists(Context& ctx) const;
  Visits visits() const;
  const Tensor& key_index() const { return k_index_ ? k_index_ : q_index_; }

  Order order_ = Order::row_major;
  bool dense_, dynamic_;
  ElementRule rule_;  ///< with the call's numbering
  int64_t block_q_, block_k_;
  int64_t queries_, keys_;  ///< slots of the call
  BlockMask mask_;
  Tensor q_index_, k_index_, restore_;
  mutable std::optional<Visits> visits_;  ///< counted once where there is no formula
};

}  // namespace attnbench
