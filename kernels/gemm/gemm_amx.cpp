// bf16 products on AMX's tile unit: 32 x 32 sums in four tiles, 32 steps of k an instruction. Entered only
// where has_amx_bf16(). As vdpbf16ps it takes subnormal inputs and sums as 0.
#define ATTNBENCH_ISA isa_amx
#include "kernels/core/simd.hpp"
#include "kernels/gemm/gemm_rows.hpp"

namespace attnbench {
namespace isa_amx {
#if defined(__AMX_BF16__)
namespace {

constexpr int64_t kRows = 32;
constexpr int64_t kPanel = 32;
constexpr int64_t kStep = 32;  // of k, as a tile's row holds
constexpr int64_t kFinish = 8 * kPanel;
// Steps of k at a time: a panel of B and a row tile of A of 32 x 512 bf16 are 32 KiB each. Without the cut
// both stream from the second cache level, which delivers half of what the tiles take.
constexpr int64_t kDepth = 512;

ATTNBENCH_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ATTNBENCH_INLINE int64_t padded(int64_t k) { return (k + kStep - 1) / kStep * kStep; }

/// What was written to `p` is in memory: GCC's tile instructions do not say that they read.
ATTNBENCH_INLINE void settle(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

/// Every tile 16 rows of 64 bytes, for as long as this lives.
class Tiles {
 public:
  ATTNBENCH_INLINE Tiles() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    settle(&config);
    _tile_loadconfig(&config);
  }
  ATTNBENCH_INLINE ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

/// Rows of A as [step of k][kRows][32], zeros beyond the last row and the end of k.
void pack_a(const bf16* a, int64_t lda, int64_t rows, int64_t k, char* out) {
  for (int64_t p = 0; p < k; p += kStep)
    for (int64_t r = 0; r < kRows; ++r, out += 64) {
      const int64_t n = r < rows ? least(kStep, k - p) : 0;
      const auto some = n == kStep ? ~__mmask32{0} : static_cast<__mmask32>((uint64_t{1} << n) - 1);
      _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(some, a + r * lda + p));
    }
}

/// C[32 x 32] (+)= A B over `steps` of 32 in k; b holds 16 rows of 32 pairs a step.
void tile(int64_t steps, const char* a, const float* b, float* c, int64_t ldc, bool add) {
  const int64_t c_step = ldc * 4;
  settle(a), settle(b), settle(c);
  if (add) {
    _tile_loadd(0, c, c_step);
    _tile_loadd(1, c + 16, c_step);
    _tile_loadd(2, c + 16 * ldc, c_step);
    _tile_loadd(3, c + 16 * ldc + 16, c_step);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t p = 0; p < steps; ++p, a += kRows * 64, b += 16 * kPanel) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, kPanel * 4);
    _tile_loadd(7, b + 16, kPanel * 4);
    _tile_loadd(5, a + 16 * 64, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_step);
  _tile_stored(1, c + 16, c_step);
  _tile_stored(2, c + 16 * ldc, c_step);
  _tile_stored(3, c + 16 * ldc + 16, c_step);
}

}  // namespace

bool gemm_suits(const GemmProduct& g) {
  // A panel's room is k rows of 32 floats; its pairs, padded, take at most that from k = 16 on.
  return !g.ta && g.k >= kStep / 2;
}

GemmTile gemm_tile() { return {kRows, kPanel}; }

void gemm_pack_b(const GemmProduct& g, int64_t first, int64_t last, float* out) {
  isa_avx512bf16::gemm_pack_b(g, first, last, out);
  const int64_t from = (g.k + 1) / 2 * kPanel, to = padded(g.k) / 2 * kPanel;
  for (int64_t j = first; j < last; j += kPanel, out += kPanel * g.k)
    for (int64_t i = from; i < to; i += kLanes) store(out + i, F{});
}

int64_t gemm_workspace(int64_t rows, int64_t k) {
  return (rows + kRows - 1) / kRows * kRows * (padded(k) / 2 + kFinish);
}

void gemm_block(const GemmProduct& g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const float* panels,
                float* work) {
  const Tiles state;
  const bf16* a = static_cast<const bf16*>(g.a);
  const int64_t m = i1 - i0, tiles = (m + kRows - 1) / kRows, depth = padded(g.k),
                tile_floats = kRows * depth / 2;
  float* sums = work + tiles * tile_floats;
  for (int64_t t = 0; t < tiles; ++t)
    pack_a(a + (i0 + t * kRows) * g.lda, g.lda, m - t * kRows, g.k,
           reinterpret_cast<char*>(work + t * tile_floats));
  for (int64_t j = j0; j < j1; j += kFinish) {
    const int64_t width = least(kFinish, j1 - j);
    if (g.accumulate)
      for (int64_t r = 0; r < m; ++r) {
        const bf16* from = static_cast<const bf16*>(g.c) + (i0 + r) * g.ldc + j;
        for (int64_t q = 0; q < width; q += kLanes) {
          const int64_t rest = least(kLanes, width - q);
          store(sums + r * kFinish + q, rest == kLanes ? load(from + q) : load_part(from + q, rest));
        }
      }
    for (int64_t p = 0; p < depth; p += kDepth)
      for (int64_t q = 0; q < width; q += kPanel)
        for (int64_t t = 0; t < tiles; ++t)
          tile(least(kDepth, depth - p) / kStep,
               reinterpret_cast<const char*>(work + t * tile_floats + p / 2 * kRows),
               panels + (j - j0 + q) * g.k + p / 2 * kPanel, sums + t * kRows * kFinish + q, kFinish,
               g.accumulate || p > 0);
    for (int64_t r = 0; r < m; ++r)
      isa_avx512::gemm_finish_row(DType::bf16, sums + r * kFinish,
                                  g.bias ? static_cast<const bf16*>(g.bias) + j : nullptr, g.activation,
                                  static_cast<bf16*>(g.c) + (i0 + r) * g.ldc + j, width);
  }
}
#else
bool gemm_suits(const GemmProduct&) { return false; }
GemmTile gemm_tile() { return {1, 1}; }
void gemm_pack_b(const GemmProduct&, int64_t, int64_t, float*) {}
int64_t gemm_workspace(int64_t, int64_t) { return 0; }
void gemm_block(const GemmProduct&, int64_t, int64_t, int64_t, int64_t, const float*, float*) {}
#endif
}  // namespace isa_amx
}  // namespace attnbench
