#include "kernels/core/check.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace attnbench {
namespace {

struct Hull {
  intptr_t begin = 0, end = 0;
};

Hull hull(const Tensor& t) {
  const auto base = reinterpret_cast<intptr_t>(t.raw());
  const auto size = static_cast<intptr_t>(size_of(t.dtype()));
  intptr_t low = 0, high = 0;
  for (int i = 0; i < t.rank(); ++i) {
    const intptr_t span = static_cast<intptr_t>((t.dim(i) - 1) * t.stride(i));
    (span < 0 ? low : high) += span;
  }
  return {base + low * size, base + (high + 1) * size};
}

/// The row stride in bytes if all outer strides are non-negative multiples of it and the last axis is packed.
int64_t common_row_stride(const Tensor& t) {
  const auto size = static_cast<int64_t>(size_of(t.dtype()));
  if (t.rank() < 1 || (t.dim(-1) > 1 && t.stride(-1) != 1)) return 0;
  int64_t row = 0;
  for (int i = t.rank() - 2; i >= 0; --i) {
    if (t.dim(i) == 1) continue;
    if (t.stride(i) < 0) return 0;
    if (t.stride(i) == 0) continue;
    row = row == 0 ? t.stride(i) : row;
    if (t.stride(i) % row != 0) return 0;
  }
  return row * size;
}

bool same_elements(const Tensor& a, const Tensor& b) {
  if (a.raw() != b.raw() || a.dtype() != b.dtype() || !(a.shape() == b.shape())) return false;
  for (int i = 0; i < a.rank(); ++i)
    if (a.dim(i) > 1 && a.stride(i) != b.stride(i)) return false;
  return true;
}

std::string quoted(std::string_view s) { return "'" + std::string(s) + "'"; }

}  // namespace

bool may_overlap(const Tensor& a, const Tensor& b) {
  if (!a || !b || a.numel() == 0 || b.numel() == 0 || a.device() != b.device()) return false;
  const Hull x = hull(a), y = hull(b);
  if (x.end <= y.begin || y.end <= x.begin) return false;
  const int64_t row = common_row_stride(a);
  if (row == 0 || row != common_row_stride(b)) return true;
  // Both live in rows of `row` bytes: they are disjoint if their column ranges are, modulo the row.
  const int64_t width_a = a.dim(-1) * static_cast<int64_t>(size_of(a.dtype()));
  const int64_t width_b = b.dim(-1) * static_cast<int64_t>(size_of(b.dtype()));
  int64_t gap = (reinterpret_cast<intptr_t>(b.raw()) - reinterpret_cast<intptr_t>(a.raw())) % row;
  if (gap < 0) gap += row;
  return gap < width_a || gap + width_b > row;
}

void ArgumentCheck::fail(const std::string& why) const { throw UsageError(std::string(op_) + ": " + why); }

void ArgumentCheck::present(std::initializer_list<NamedTensor> tensors) const {
  for (const NamedTensor& t : tensors) {
    if (!t.tensor) fail("the tensor " + quoted(t.name) + " is missing");
    if (t.tensor.device() != ctx_.device())
      fail("the tensor " + quoted(t.name) + " is on " + std::string(name(t.tensor.device())) +
           " but the context runs on " + std::string(name(ctx_.device())));
  }
}

void ArgumentCheck::dtype(NamedTensor t, std::initializer_list<DType> allowed) const {
  if (std::find(allowed.begin(), allowed.end(), t.tensor.dtype()) != allowed.end()) return;
  std::string words;
  for (DType d : allowed) words += (words.empty() ? "" : ", ") + std::string(name(d));
  fail("the tensor " + quoted(t.name) + " is " + std::string(name(t.tensor.dtype())) + "; it must be " +
       words);
}

void ArgumentCheck::same_dtype(NamedTensor a, NamedTensor b) const {
  if (a.tensor.dtype() != b.tensor.dtype())
    fail("the dtypes of " + quoted(a.name) + " (" + std::string(name(a.tensor.dtype())) + ") and " +
         quoted(b.name) + " (" + std::string(name(b.tensor.dtype())) + ") differ");
}

void ArgumentCheck::same_shape(NamedTensor a, NamedTensor b) const {
  if (!(a.tensor.shape() == b.tensor.shape()))
    fail("the shapes of " + quoted(a.name) + " " + a.tensor.shape().str() + " and " + quoted(b.name) + " " +
         b.tensor.shape().str() + " differ");
}

void ArgumentCheck::shape(NamedTensor t, const Shape& want) const {
  if (!(t.tensor.shape() == want))
    fail("the tensor " + quoted(t.name) + " has shape " + t.tensor.shape().str() + " but must have " +
         want.str());
}

void ArgumentCheck::rank(NamedTensor t, int least, int most) const {
  const int r = t.tensor.rank();
  if (r < least || r > most)
    fail("the tensor " + quoted(t.name) + " of shape " + t.tensor.shape().str() + " has " +
         std::to_string(r) + " axes; it must have " +
         (least == most ? std::to_string(least) : std::to_string(least) + " to " + std::to_string(most)));
}

void ArgumentCheck::packed(NamedTensor t, int axes) const {
  if (t.tensor.numel() == 0) return;
  int64_t step = 1;
  for (int i = 1; i <= axes && i <= t.tensor.rank(); ++i) {
    if (t.tensor.dim(-i) > 1 && t.tensor.stride(-i) != step)
      fail("axis " + std::to_string(t.tensor.rank() - i) + " of " + quoted(t.name) + " " +
           t.tensor.shape().str() + " has stride " + std::to_string(t.tensor.stride(-i)) + " but must have " +
           std::to_string(step));
    step *= t.tensor.dim(-i);
  }
}

void ArgumentCheck::disjoint(NamedTensor a, NamedTensor b) const {
  if (may_overlap(a.tensor, b.tensor)) fail(quoted(a.name) + " and " + quoted(b.name) + " must not overlap");
}

void ArgumentCheck::same_or_disjoint(NamedTensor a, NamedTensor b) const {
  if (!same_elements(a.tensor, b.tensor) && may_overlap(a.tensor, b.tensor))
    fail(quoted(a.name) + " and " + quoted(b.name) + " overlap without being the same elements");
}

}  // namespace attnbench
