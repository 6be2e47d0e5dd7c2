// Copies of whole buffers at the memory's rate: what the copy ceiling measures and what large operators'
// copies do.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace attnbench {

/// From the size of a last-level cache on, in bytes of the whole copy, non-temporal stores spare the
/// ownership reads of lines that nobody will find in a cache anyway.
inline constexpr int64_t kStreamFrom = int64_t{16} << 20;

/// memcpy past the caches; any alignment, no overlap.
inline void stream_copy(char* to, const char* from, int64_t bytes) {
#if defined(__x86_64__)
  int64_t i = std::min<int64_t>(bytes, static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) & 63));
  std::memcpy(to, from, static_cast<size_t>(i));
  for (; i + 64 <= bytes; i += 64)
    for (int v = 0; v < 64; v += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + v),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i + v)));
  _mm_sfence();
  std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

}  // namespace attnbench
