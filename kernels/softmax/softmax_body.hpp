// Row softmax over vectors, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/softmax/softmax_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

ATTNBENCH_INLINE F with_rest(F v, int64_t rest, float fill) {
  for (int l = 0; l < kLanes; ++l)
    if (l >= rest) v[l] = fill;
  return v;
}

template <class T>
void row(const T* x, T* y, int64_t visible, int64_t n) {
  const int64_t whole = visible / kLanes * kLanes, rest = visible - whole;
  const float top = max_of_row(x, visible);
  // A row of -infinity sees nothing: its exponentials would be exp(-inf + inf).
  const bool nothing = visible == 0 || top == -__builtin_inff();
  if (nothing) {
    std::memset(static_cast<void*>(y), 0, static_cast<size_t>(n) * sizeof(T));
    return;
  }
  const F shift = splat(top);
  // Storage of two bytes would lose the exponentials' precision between the passes, so they are computed
  // again.
  constexpr bool keep = sizeof(T) == 4;
  F s[2] = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const F e = exp(load(x + i) - shift);
    if constexpr (keep) store(y + i, e);
    s[i / kLanes & 1] += e;
  }
  if (rest > 0) {
    const F e = with_rest(exp(load_part(x + whole, rest) - shift), rest, 0.0f);
    if constexpr (keep) store_part(y + whole, e, rest);
    s[0] += e;
  }
  const F scale = splat(1.0f / sum_lanes(s[0] + s[1]));
  for (int64_t i = 0; i < whole; i += kLanes) {
    if constexpr (keep)
      store(y + i, load(y + i) * scale);
    else
      store(y + i, exp(load(x + i) - shift) * scale);
  }
  if (rest > 0) {
    if constexpr (keep)
      store_part(y + whole, load_part(y + whole, rest) * scale, rest);
    else
      store_part(y + whole, exp(load_part(x + whole, rest) - shift) * scale, rest);
  }
  std::memset(static_cast<void*>(y + visible), 0, static_cast<size_t>(n - visible) * sizeof(T));
}

}  // namespace

void softmax_row(DType t, const void* x, void* y, int64_t visible, int64_t n) {
  if (t == DType::f32) return row(static_cast<const float*>(x), static_cast<float*>(y), visible, n);
  if (t == DType::bf16) return row(static_cast<const bf16*>(x), static_cast<bf16*>(y), visible, n);
  return row(static_cast<const f16*>(x), static_cast<f16*>(y), visible, n);
}

}  // namespace attnbench::ATTNBENCH_ISA
