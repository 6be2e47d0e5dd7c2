// The vector bodies of linear attention, as cpu.cpp sees them: one thread's work on one block of one head.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// One head, or a range of its value columns: pointers to row 0, strides in elements between rows.
struct LinearHead {
  DType dtype;
  const void *q, *k, *v;
  void* o;
  int64_t q_row, k_row, v_row, o_row;
  int64_t n, d, e;
  int64_t block;
  bool causal;
  double log_decay;
  /// 1 - lambda where lambda is above a half, else 0: rounded itself, lambda = 1 - 1e-6 would be off by 3%
  /// after a million factors.
  float loss;
  /// lambda^(2 block) .. lambda^0, highest power first: the weights of a row of scores are a contiguous
  /// piece.
  const float* weights;
  /// The carried D x E sum, rows of `state_row` floats; null where there is none yet.
  float* state;
  int64_t state_row;
  float* work;  ///< linear_workspace() floats of this thread

  __attribute__((always_inline)) float power(int64_t p) const { return weights[2 * block - p]; }
};

/// Rows of queries multiplied at a time, so that scores need 64 x block floats, not block x block.
inline constexpr int64_t kLinearRows = 64;
constexpr int64_t linear_workspace(int64_t block, int64_t d, int64_t e) {
  const int64_t line = 16;  // every part starts on its own cache line
  const auto up = [](int64_t n) { return (n + 15) / 16 * 16; };
  return up(d * (block + line)) + up(kLinearRows * d) + up(block * e) + up(kLinearRows * block) +
         up(block * e);
}

/// The block form: o of rows [first, first + rows) from the block itself and from `state`, if there is one.
ATTNBENCH_EACH_ISA(void linear_intra(const LinearHead&, int64_t first, int64_t rows))
/// o += lead lambda^(r+1) q_r state; when not causal o = q state.
ATTNBENCH_EACH_ISA(void linear_inter(const LinearHead&, int64_t first, int64_t rows, float lead))
/// state = (keep ? lambda^rows state : 0) + sum_r lambda^(rows-1-r) k_r v_r^T.
ATTNBENCH_EACH_ISA(void linear_update(const LinearHead&, int64_t first, int64_t rows, bool keep))
/// linear_intra followed by linear_update, sharing the transposed keys.
ATTNBENCH_EACH_ISA(void linear_block(const LinearHead&, int64_t first, int64_t rows, bool keep))
/// All tokens one by one: state = lambda state + k v^T, o = q state.
ATTNBENCH_EACH_ISA(void linear_recurrent(const LinearHead&))
/// Rows [first, first + rows) by the left product over all visible blocks of keys.
ATTNBENCH_EACH_ISA(void linear_quadratic(const LinearHead&, int64_t first, int64_t rows))

}  // namespace attnbench
