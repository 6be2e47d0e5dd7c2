// tdpbf16ps chains; entered only where has_amx_bf16() says so.
#include <cstdint>
#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace attnbench::isa_amx {

int64_t bf16_burst(int64_t rounds, double* sink) {
#if defined(__AMX_BF16__)
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  alignas(64) float operand[16 * 16];
  for (int i = 0; i < 256; ++i) {
    const uint32_t pair = 0x3f803f80u - static_cast<uint32_t>(i) * 0x10001u;
    __builtin_memcpy(operand + i, &pair, 4);
  }
  // GCC's tile instructions do not say that they read.
  __asm__ volatile("" : : "r"(operand), "r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, operand, 64);
  _tile_loadd(5, operand, 64);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
  for (int64_t r = 0; r < rounds; ++r) {  // as a 2 x 2 block of a product: four chains, each 52 cycles long
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float sums[4][16 * 16];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_release();
  for (const auto& tile : sums) *sink += static_cast<double>(tile[0]);
  return rounds * 4 * 16 * 16 * 32 * 2;
#else
  (void)rounds, (void)sink;
  return 0;
#endif
}

}  // namespace attnbench::isa_amx
