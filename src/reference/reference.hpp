// The double-precision references: naive, straight from the card, using no operator of kernels/.
//
// A reference gets the same (rounded) inputs and weights as the method, widened to double, and returns every
// named output of the method. It recomputes derived sizes itself: it shares no code with the method it
// checks.
#pragma once
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
  explicit RefTensor(std::vector<int64_t> s);  ///< zeros
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

/// Widening copies between host tensors and references.
RefTensor to_reference(const Tensor& t);
RefMap to_reference(const TensorMap& m);

/// Small building blocks that several references share; each is a direct transcription of its formula.
namespace ref {
/// y [rows, out] = x [rows, in] W^T [out, in] + b.
RefTensor linear(const RefTensor& x, const RefTensor& weight, const RefTensor* bias);
/// One softmax-attention row: weights over keys j where visible(j); returns false when nothing is visible.
bool softmax_row(std::vector<double>& scores, const std::vector<char>& visible);
}  // namespace ref

}  // namespace attnbench
