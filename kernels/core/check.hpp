// Checks of operator arguments. Every function throws UsageError with a sentence that names the operator, the
// tensor and the offending value. Used by the contract functions only, so it is out of line and not fast.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>

#include "kernels/core/context.hpp"

namespace attnbench {

struct NamedTensor {
  std::string_view name;
  const Tensor& tensor;
};

class ArgumentCheck {
 public:
  ArgumentCheck(Context& ctx, std::string_view op) : ctx_(ctx), op_(op) {}

  [[noreturn]] void fail(const std::string& why) const;
  /// Present and on the context's device.
  void present(std::initializer_list<NamedTensor> tensors) const;
  void dtype(NamedTensor t, std::initializer_list<DType> allowed) const;
  void same_dtype(NamedTensor a, NamedTensor b) const;
  void same_shape(NamedTensor a, NamedTensor b) const;
  void shape(NamedTensor t, const Shape& want) const;
  void rank(NamedTensor t, int least, int most) const;
  /// The last `axes` axes are packed row-major.
  void packed(NamedTensor t, int axes = 1) const;
  /// Rows [.., C] that are written must not share elements with what is read.
  void disjoint(NamedTensor a, NamedTensor b) const;
  /// Either exactly the same elements in the same order or no common one.
  void same_or_disjoint(NamedTensor a, NamedTensor b) const;

 private:
  Context& ctx_;
  std::string_view op_;
};

/// Whether two tensors may share an element. Exact for column slices of one buffer with equal row strides;
/// otherwise the hulls of their addresses decide.
bool may_overlap(const Tensor& a, const Tensor& b);

}  // namespace attnbench
