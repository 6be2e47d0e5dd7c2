// The double-precision references: naive, straight from the card, using no operator of kernels/.
//
// A reference gets the same (rounded) inputs and weights as the method, widened to double, and returns every
// named output of the method. It recomputes derived sizes itself: it shares no code with the method it
// checks.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/tensor.hpp"
#include "methods/params.hpp"
#include "methods/problem.hpp"

namespace attnbench {

/// A dense row-major double tensor.
struct RefTensor {
  std::vector<int64_t> shape;
  std::vector<double> data;
  RefTensor() = default;
  /// Zeros. All threads touch the pages of a large one first, which else takes longer than what follows.
  explicit RefTensor(std::vector<int64_t> s);
  int64_t dim(size_t axis) const { return shape[axis]; }
  int64_t numel() const { return static_cast<int64_t>(data.size()); }
  double& operator[](int64_t i) { return data[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return data[static_cast<size_t>(i)]; }
};
using RefMap = std::map<std::string, RefTensor>;

using ReferenceFn = RefMap (*)(const Problem&, const Params&, const RefMap& inputs, const RefMap& weights);

/// Throws Unsupported when the method has no reference.
ReferenceFn find_reference(const std::string& method_id);
bool register_reference(const std::string& method_id, ReferenceFn fn);
#define ATTNBENCH_REFERENCE(id, fn) \
  static const bool registered_reference_##id = ::attnbench::register_reference(#id, fn)

/// Some rows of a reference whose rows do not depend on one another. `rows` are indices into the outputs seen
/// as [rows, last axis]; the answer holds every named output of the method as [rows.size(), last axis]. A
/// method with further outputs (those are not rows) is compared whole or not at all.
using RowReferenceFn = RefMap (*)(const Problem&, const Params&, const RefMap& inputs, const RefMap& weights,
                                  const std::vector<int64_t>& rows);

/// Null when the method's reference cannot be taken row by row.
RowReferenceFn find_row_reference(const std::string& method_id);
bool register_row_reference(const std::string& method_id, RowReferenceFn fn);
#define ATTNBENCH_ROW_REFERENCE(id, fn) \
  static const bool registered_row_reference_##id = ::attnbench::register_row_reference(#id, fn)

/// Widening copies between host tensors and references.
RefTensor to_reference(const Tensor& t);
/// `count` values of `dtype` (a float type, i32 or u8) from element `begin` of `r` on, by all threads.
void widen_into(RefTensor& r, int64_t begin, const void* values, DType dtype, int64_t count);
RefMap to_reference(const TensorMap& m);

/// Small building blocks that several references share; each is a direct transcription of its formula.
namespace ref {
/// y [rows, out] = x [rows, in] W^T [out, in] + b.
RefTensor linear(const RefTensor& x, const RefTensor& weight, const RefTensor* bias);
/// One softmax-attention row: weights over keys j where visible(j); returns false when nothing is visible.
bool softmax_row(std::vector<double>& scores, const std::vector<char>& visible);

/// All rows of a row reference, as one tensor of `shape`: what its whole reference returns.
RefMap all_rows(RowReferenceFn fn, const Problem& problem, const Params& params, const RefMap& inputs,
                const RefMap& weights, const std::vector<int64_t>& shape);

/// Marks the keys that query i of head h of batch b sees; `visible` has a zero for every key.
using VisibleKeys = std::function<void(int64_t b, int64_t h, int64_t i, std::vector<char>& visible)>;
/// Rows of softmax attention with q [B, H, N, D], k and v [B, Hk, M, D]: o = sum_j softmax_j(scale q k_j) v_j
/// over the visible keys, zero where there is none.
RefMap attention_rows(const RefMap& inputs, double scale, const std::vector<int64_t>& rows,
                      const VisibleKeys& see);
/// The number under "scale", or 1 / sqrt(D) where it is null.
double attention_scale(const Params& params, const RefMap& inputs);
}  // namespace ref

}  // namespace attnbench
