// The vector bodies of gemm, as cpu.cpp sees them: packing, blocks of C, and what follows a product.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"
#include "kernels/gemm/gemm.hpp"

namespace attnbench {

/// One product; pointers and row strides (in elements) are those of the stored orientation.
struct GemmProduct {
  DType dtype;
  int64_t m, n, k;
  const void *a, *b, *bias;
  void* c;
  int64_t lda, ldb, ldc;
  bool ta, tb;
  float alpha;
  bool accumulate;
  Activation activation;
};

/// Rows and columns of C that one call of the inner loop produces.
struct GemmTile {
  int64_t rows, columns;
};
ATTNBENCH_EACH_ISA(GemmTile gemm_tile())

/// Widens columns [first, last) of B into panels of gemm_tile().columns columns, each k rows long, padded
/// with zeros; `first` is a multiple of the panel width. `out` is the place of the first of these panels.
ATTNBENCH_EACH_ISA(void gemm_pack_b(const GemmProduct&, int64_t first, int64_t last, float* out))

/// Floats of workspace for gemm_block with these extents.
ATTNBENCH_EACH_ISA(int64_t gemm_workspace(int64_t rows, int64_t k))

/// C[i0..i1, j0..j1) complete with bias and activation, from panels of B that begin at column j0.
ATTNBENCH_EACH_ISA(void gemm_block(const GemmProduct&, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                                   const float* panels, float* work))

/// The same packing and blocks for bf16 by vdpbf16ps, where has_avx512_bf16(): panels hold pairs of steps of
/// k in the first half of their room. alpha must be 1.
namespace isa_avx512bf16 {
GemmTile gemm_tile();
void gemm_pack_b(const GemmProduct&, int64_t first, int64_t last, float* out);
int64_t gemm_workspace(int64_t rows, int64_t k);
void gemm_block(const GemmProduct&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const float* panels,
                float* work);
}  // namespace isa_avx512bf16

/// And by AMX's tiles, where has_amx_bf16(), for the products that gemm_suits() names.
namespace isa_amx {
bool gemm_suits(const GemmProduct&);
GemmTile gemm_tile();
void gemm_pack_b(const GemmProduct&, int64_t first, int64_t last, float* out);
int64_t gemm_workspace(int64_t rows, int64_t k);
void gemm_block(const GemmProduct&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const float* panels,
                float* work);
}  // namespace isa_amx

/// Products of few rows with a transposed B, columns [j0, j1), without packing: every element of C is a dot
/// product of two contiguous rows, so B streams through once.
inline constexpr int64_t kDotRows = 8;
ATTNBENCH_EACH_ISA(void gemm_dot(const GemmProduct&, int64_t j0, int64_t j1))

/// y = act(x + bias) for n elements; y is f32 (in place allowed) or a narrower type. bias may be null.
ATTNBENCH_EACH_ISA(void gemm_finish_row(DType, const float* x, const void* bias, Activation, void* y,
                                        int64_t n))

}  // namespace attnbench
