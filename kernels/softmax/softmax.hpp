// Row softmax over a materialised score matrix: only the `naive` baseline needs it; everything else is fused.
//
// x, y [..., N, M], contiguous rows; y may be x. Row i of a matrix sees the keys j <= i + causal_offset when
// `causal` is set (offset = M - N aligns the ends); the others get 0. A row that sees nothing is 0
// everywhere. With clear_hidden (and y not x) the keys that a row does not see become 0 in x as well. Cost:
// special M per row (exp), elementwise 3 M per row (max, subtract, sum) + M (scale).
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct SoftmaxArgs {
  Tensor x, y;
  bool causal = false;
  int64_t causal_offset = 0;
  bool clear_hidden = false;
};
void softmax(Context& ctx, const SoftmaxArgs& args);

}  // namespace attnbench
