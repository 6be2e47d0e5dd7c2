// Attention maps of a .safetensors file as an instance that analyses read like a method's rows. Nothing is
// computed here, and no map is ever held whole: rows are read from the file as they are asked for.
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "inputs/inputs.hpp"
#include "methods/method.hpp"

namespace attnbench {

struct AttentionMapsOptions {
  /// Tensors to read, a layer (or a stack of layers) each, in this order; empty: every tensor of floats, in
  /// the order of their names, numbers in them by value.
  std::vector<std::string> tensors = {};
  /// How far a row's sum may be from 1; NaN: by the tensor's type, row_tolerance().
  double row_tolerance = NAN;
  /// A key counts as attended to where its weight is above this (pairs: density, receptive field, overlap of
  /// selections).
  double attended_above = 0;
  /// Tokens before the grid's first, queries and keys alike, that have no place on it: 1 for [CLS].
  int64_t leading = 0;
};

/// How far rows of probabilities stored in this type may sum from 1: f64 and f32 1e-4, f16 2e-3, bf16 8e-3.
/// Rounding every weight to a type of precision eps moves the sum by eps / 2 at most (bf16 0.4%, f16 0.05%);
/// f16 also loses weights below 6e-8, of which a long row has many.
double row_tolerance(DType t);

/// Layout of a tensor, from the right: [N, M], [H, N, M], [B, H, N, M] or [L, B, H, N, M], where axes that
/// are missing are 1. Layers, of one tensor or of many, must agree in all of B, H, N and M. Heads of the
/// instance are those of all layers: head l H + h is head h of layer l.
class AttentionMaps final : public Instance {
 public:
  /// Reads the header only. Throws DataError naming file and tensor: no maps, unknown tensor, rank, empty
  /// axis, shapes that differ, a type that is not floating.
  AttentionMaps(const std::string& path, const AttentionMapsOptions& options);

  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  /// What the shapes say: a sequence of N queries and M keys, B, H a layer; dtype of the file.
  const Problem& shape() const { return shape_; }
  /// Tensor (and layer in it, where it holds several) that layer l comes from.
  std::string layer_name(int64_t l) const;

  /// Sets what the file does not say: causal, and the grid of the tokens. The extents must be the file's.
  /// Throws UsageError.
  void set_problem(const Problem& problem);
  /// Reads every row once. Throws DataError naming tensor, layer, batch element, head, query and key of the
  /// first weight that is NaN, infinite, negative or (causal) of a later key, and of the first row that does
  /// not sum to 1.
  void check();

  void run(Context&) override {}
  TensorMap outputs() const override { return {}; }
  ClosedForm cost() const override { return {}; }
  std::optional<PairSet> pairs() const override;
  bool rows(Context&, int64_t b, int64_t h, int64_t q_begin, int64_t q_end, std::vector<float>& out) override;
  int64_t keys(int64_t) const override { return m_; }

 private:
  struct Layer {
    size_t entry;
    int64_t index, of;  ///< layer within the tensor
  };
  void read_rows(int64_t b, int64_t h, int64_t q_begin, int64_t q_end, float* out) const;
  void read_tokens();
  std::string place(int64_t b, int64_t h, int64_t i) const;

  std::shared_ptr<SafetensorsFile> file_;
  AttentionMapsOptions options_;
  std::vector<Layer> layers_;
  int64_t batch_ = 0, heads_ = 0, n_ = 0, m_ = 0;
  Problem shape_, problem_;
  std::vector<int32_t> tokens_;  ///< [B, N] of a tensor `tokens`; empty: none
};

}  // namespace attnbench
