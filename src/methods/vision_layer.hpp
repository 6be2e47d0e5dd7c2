// What the attention layers on image grids share: the layer's shape and parameters, window partitions as
// index tables, strided head views, cost pieces, and the analyses' view of a run. Not an operator and not a
// method: hilo, msa, sra, sra_linear, twins_gsa, window, shifted_window and twins_lsa are built from it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/attention/attention.hpp"
#include "methods/method.hpp"

namespace attnbench::vision {

/// x [B, N, C] on an Hg x Wg grid, H heads of D = C / H channels.
struct LayerShape {
  int64_t batch = 1, grid_h = 0, grid_w = 0, channels = 0, heads = 0, head_dim = 0;
  DType dtype = DType::f32;
  float scale = 1.0f;
  int64_t tokens() const { return grid_h * grid_w; }
  int64_t rows() const { return batch * tokens(); }
};
/// Reads the shape; throws UsageError / Unsupported (causal, C % H) with the reason.
LayerShape layer_shape(const MethodInfo& info, const Problem& problem, const Params& params);

/// dim, num_heads, grid_h, grid_w, then the method's own, then qkv_bias and qk_scale: the card's table.
std::vector<ParamSpec> layer_params(std::vector<ParamSpec> own = {});

/// What the eight methods of the card say alike: paper, family of sources, kinds, dtypes.
MethodInfo layer_info(const std::string& id, const std::string& title, const std::string& family);
/// An image problem in layer form, for MethodInfo::example.
Problem image_problem(int64_t batch, int64_t grid_h, int64_t grid_w, int64_t channels, int64_t heads);

/// Weight specs of `<name>.weight` [out, in] and, with `bias`, `<name>.bias` [out].
void add_linear(std::vector<TensorSpec>& specs, const std::string& name, int64_t out, int64_t in, bool bias,
                DType dtype, const std::string& meaning);

// ---- partitions ------------------------------------------------------------------------------------------

/// An Hg x Wg grid, zero-padded bottom and right to multiples of `win`, rolled by (-shift, -shift) and cut
/// into win x win windows, row-major inside and across.
struct WindowGrid {
  int64_t h = 0, w = 0, win = 1, shift = 0;
  int64_t windows_h() const { return (h + win - 1) / win; }
  int64_t windows_w() const { return (w + win - 1) / win; }
  int64_t windows() const { return windows_h() * windows_w(); }
  int64_t padded_h() const { return windows_h() * win; }
  int64_t padded_w() const { return windows_w() * win; }
  int64_t area() const { return win * win; }
  int64_t padded_tokens() const { return padded_h() * padded_w(); }
  bool padded() const { return padded_h() != h || padded_w() != w; }
  bool operator==(const WindowGrid&) const = default;
};

/// The partition of a batch of grids as index tables. A *slot* is a place in window order: windows of equal
/// mask pattern stand together over the whole batch (a *group*), so that one attention call with one bias,
/// shared by its batch, serves each group. Without a shift there is one group and slots run image by image.
class Partition {
 public:
  Partition() = default;
  Partition(const WindowGrid& grid, int64_t batch);

  struct Group {
    int64_t first_window = 0;                    ///< in slot order, over the batch
    int64_t windows = 0;                         ///< over the batch
    bool cut_rows = false, cut_columns = false;  ///< label boundary inside the window, at win - shift
  };
  struct Slot {
    int64_t window = 0;  ///< in slot order, over the batch
    int64_t row = 0;     ///< inside the window
  };

  const WindowGrid& grid() const { return grid_; }
  const std::vector<Group>& groups() const { return groups_; }
  int64_t slots() const { return batch_ * grid_.padded_tokens(); }
  /// Slots are the tokens in their order: nothing to move.
  bool identity() const { return identity_; }
  Slot slot_of(int64_t b, int64_t token) const;
  size_t group_of(int64_t window) const;
  /// Place on the padded, unrolled grid (row-major) of slot `row` of `window`.
  int64_t padded_position(int64_t window, int64_t row) const;
  /// Label of a row of a window of group g: 0 .. 3; pairs of different labels get the mask.
  int label(const Group& g, int64_t row) const;
  /// Tokens of the image that share window and label with `token`: what it may attend to, padding left out.
  std::shared_ptr<const std::vector<Intervals>> label_sets(std::vector<int32_t>& set_of_token) const;

  /// Puts both tables on the device. Called by prepare().
  void upload(Context& ctx);
  /// y [B Np, C'] in slot order from x [B N, C'] in token order (padding becomes zero rows), and back
  /// (padding dropped). Rows contiguous, row strides free.
  void to_slots(Context& ctx, const Tensor& x, const Tensor& y) const;
  void to_tokens(Context& ctx, const Tensor& x, const Tensor& y) const;

 private:
  WindowGrid grid_;
  int64_t batch_ = 1;
  bool identity_ = true;
  std::vector<Group> groups_;
  std::vector<int64_t> window_of_image_window_;      ///< [windows]: place inside its group
  std::vector<size_t> group_of_image_window_;        ///< [windows]
  std::vector<std::vector<int64_t>> image_windows_;  ///< by group
  Tensor slot_to_token_, token_to_slot_;
};

// ---- heads -----------------------------------------------------------------------------------------------

/// Part p of packed projections [batch * rows, parts * heads * D] as [batch, heads, rows, D], no copy. Rows
/// start at `first_row` of `packed`, which may have any row stride.
Tensor heads_view(const Tensor& packed, int64_t first_row, int64_t batch, int64_t rows, int64_t part,
                  int64_t heads, int64_t head_dim);

/// Every attention call of one run, kept for rows() and row_stats().
using Trace = std::vector<AttentionArgs>;
/// attention(), which also notes the call in `trace` when there is one.
void attend(Context& ctx, const AttentionArgs& args, Trace* trace);

/// The common part of the layers' instances: one output, and analyses through a traced second run.
class LayerInstance : public Instance {
 public:
  LayerInstance(Context& ctx, const LayerShape& shape);
  void run(Context& ctx) override;
  TensorMap outputs() const override { return {{"out", out_}}; }
  std::optional<PairSet> pairs() const override;
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override;
  std::optional<RowStats> row_stats(Context& ctx) override;

 protected:
  /// Where the attention row of output token i stands in the trace.
  struct Place {
    size_t call = 0;
    int64_t batch = 0, head = 0, row = 0;
    bool operator==(const Place&) const = default;
  };
  virtual void forward(Context& ctx, Trace* trace) = 0;
  virtual Place place(int64_t b, int64_t h, int64_t i) const = 0;
  /// Column of rows() that key j of that attention row fills.
  virtual int64_t key_column(int64_t, int64_t, int64_t, int64_t j) const { return j; }
  /// Keys that the row may see (pairs under the additive -100 mask do not count).
  virtual int64_t visible_keys(int64_t h, int64_t i) const = 0;
  /// Tokens that output token i of head h depends on.
  virtual std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const = 0;

  const Tensor& w(const std::string& name) const { return weight(name + ".weight"); }
  Tensor bias_of(const std::string& name) const {
    return has_weight(name + ".bias") ? weight(name + ".bias") : Tensor();
  }
  /// y = x W^T + b with the weights `<name>.*`; x [R, in], y [R, out], row strides free.
  void project(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y) const;
  /// x as [B N, C].
  Tensor tokens() const { return input("x").reshape({s_.rows(), s_.channels}); }
  Tensor out_rows() const { return out_.reshape({s_.rows(), s_.channels}); }
  Tensor workspace(Context& ctx, int64_t rows, int64_t columns) const {
    return ctx.allocate(s_.dtype, {rows, columns});
  }

  LayerShape s_;
  Tensor out_;

 private:
  const Trace& traced(Context& ctx);
  std::optional<Trace> trace_;
};

// ---- cost, as the operators charge it --------------------------------------------------------------------

/// rows x in times in x out, with or without a bias.
Cost linear_cost(int64_t rows, int64_t in, int64_t out, bool bias, DType dtype);
/// `batch` calls' worth of n queries and m keys by head; bias_elements: of the dense f32 bias, read once.
Cost attend_cost(int64_t batch, int64_t heads, int64_t n, int64_t m, int64_t head_dim, DType dtype,
                 int64_t bias_elements = 0);
Cost layer_norm_cost(int64_t rows, int64_t channels, DType dtype);
/// Average pooling of `reads` elements (overlapping cells count again), `in` and `out` elements.
Cost pool_cost(int64_t reads, int64_t in, int64_t out, DType dtype);
/// Moving rows through an index table.
Cost move_cost(int64_t rows, int64_t channels, DType dtype);

}  // namespace attnbench::vision
