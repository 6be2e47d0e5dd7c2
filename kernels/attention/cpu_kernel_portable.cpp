// CPU attention kernels in plain C++ (GCC and Clang vector extensions), and the choice among all tables.
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/attention/cpu_kernel.hpp"
#include "kernels/core/error.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench::cpu_attention {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

// What every V offers: N lanes, the register blocks that suit the register file, and the operations below.
struct V {
  static constexpr int N = 4;
  static constexpr int kVectors = 2;
  static constexpr int block_rows(int vectors) { return vectors == 2 ? 6 : 10; }
  static constexpr int row_keys(int queries) { return queries <= 1 ? 8 : 4; }
  static constexpr int row_vectors(int queries) { return queries <= 2 ? 4 : 2; }
  static constexpr int kRowRegisters = 16;

  Float4 v;
  static V zero() { return {Float4{0, 0, 0, 0}}; }
  static V set1(float x) { return {Float4{x, x, x, x}}; }
  static V load(const float* p) {
    V x;
    __builtin_memcpy(&x.v, p, sizeof x.v);
    return x;
  }
  template <class T>
  static V load(const T* p) {
    return {Float4{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                   static_cast<float>(p[3])}};
  }
  static void store(float* p, V x) { __builtin_memcpy(p, &x.v, sizeof x.v); }
  template <class T>
  static void store(T* p, V x) {
    for (int i = 0; i < N; ++i) p[i] = T(x.v[i]);
  }
  static Float4 choose(Int4 c, Float4 x, Float4 y) {
    return reinterpret_cast<Float4>((c & reinterpret_cast<Int4>(x)) | (~c & reinterpret_cast<Int4>(y)));
  }
  // Largest whole number not above x, for x in [-160, 200]; NaN gives anything.
  static Int4 floor_int(Float4 x) {
    const Float4 low = set1(-160.0f).v, high = set1(200.0f).v;
    // Comparisons with NaN fail, so NaN takes the bound and the conversion stays defined.
    const Float4 y = choose(x > low, choose(x < high, x, high), low);
    const Int4 t = __builtin_convertvector(y, Int4);
    return t + (__builtin_convertvector(t, Float4) > y);
  }
  static V fraction(V x) {
    const Float4 low = set1(-160.0f).v;
    const Float4 y = choose(x.v < low, low, x.v);  // keeps NaN
    return {y - __builtin_convertvector(floor_int(y), Float4)};
  }
  static V scale(V p, V x) {
    const Int4 n = floor_int(x.v), half = n >> 1, rest = n - half;
    return {p.v * reinterpret_cast<Float4>((half + 127) << 23) *
            reinterpret_cast<Float4>((rest + 127) << 23)};
  }
  static V keep(uint64_t bits, V x, V y) {
    const int b = static_cast<int>(bits & 15);
    const Int4 lane{1, 2, 4, 8};
    return {choose((Int4{b, b, b, b} & lane) == lane, x.v, y.v)};
  }
  static bool any_less(V a, V b) {
    const Int4 c = a.v < b.v;
    return (c[0] | c[1] | c[2] | c[3]) != 0;
  }
  static uint64_t in_range(int32_t x, const int32_t* low, const int32_t* high, int lanes) {
    uint64_t bits = 0;
    for (int l = 0; l < lanes; ++l) bits |= static_cast<uint64_t>(low[l] <= x && x < high[l]) << l;
    return bits;
  }
  static void sum4(V a, V b, V c, V d, float* out) {
    const V* x[4] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; ++i) out[i] = (x[i]->v[0] + x[i]->v[2]) + (x[i]->v[1] + x[i]->v[3]);
  }
  static void sums(const V (&x)[4], float* out) { sum4(x[0], x[1], x[2], x[3], out); }
  static float largest(V x) {
    float most = x.v[0];
    for (int i = 1; i < N; ++i) most = x.v[i] > most ? x.v[i] : most;
    return most;
  }
  static void transpose(V (&x)[4]) {
    for (int i = 0; i < 4; ++i)
      for (int j = i + 1; j < 4; ++j) {
        const float t = x[i].v[j];
        x[i].v[j] = x[j].v[i];
        x[j].v[i] = t;
      }
  }
};
inline V operator+(V a, V b) { return {a.v + b.v}; }
inline V operator-(V a, V b) { return {a.v - b.v}; }
inline V operator*(V a, V b) { return {a.v * b.v}; }
inline V operator/(V a, V b) { return {a.v / b.v}; }
inline V fma(V a, V b, V c) { return {a.v * b.v + c.v}; }
/// x, rounded here: the compiler does not fuse what made it with what comes next.
inline V rounded(V x) {
  __asm__("" : "+m"(x.v));
  return x;
}
inline V fms(V a, V b, V c) { return {a.v * b.v - c.v}; }
// b where a is NaN.
inline V max(V a, V b) { return {V::choose(a.v > b.v, a.v, b.v)}; }
inline V abs(V a) {
  return {reinterpret_cast<Float4>(reinterpret_cast<Int4>(a.v) &
                                   Int4{INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX})};
}
inline V copysign(V size, V sign) {
  const Int4 top{INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
  return {reinterpret_cast<Float4>(reinterpret_cast<Int4>(size.v) | (reinterpret_cast<Int4>(sign.v) & top))};
}
inline V select_less(V a, V b, V x, V y) { return {V::choose(a.v < b.v, x.v, y.v)}; }

// clang-format off
#include "kernels/attention/cpu_kernel-inl.hpp"
#include "kernels/attention/cpu_decode-inl.hpp"
// clang-format on

const Kernels* forced = nullptr;

}  // namespace

const Kernels& portable_kernels() {
  static constexpr Kernels table{"portable",      false,      nullptr,        nullptr,    pack_columns,
                                 nullptr,         scores,     nullptr,        accumulate, nullptr,
                                 nullptr,         row_scores, row_accumulate, decode,     nullptr,
                                 score_terms,     softmax,    nullptr,        mass,       rescale,
                                 unpack_columns,  widen,      range_bits,     finite,     gather_diagonals,
                                 spread_diagonals};
  return table;
}

KernelList available_kernels() {
  KernelList list{};
  list.entries[list.count++] = &portable_kernels();
#if defined(__x86_64__)
  if (best_isa() >= Isa::avx2) list.entries[list.count++] = &avx2_kernels();
  if (best_isa() >= Isa::avx512) list.entries[list.count++] = &avx512_kernels();
  if (has_avx512_bf16()) list.entries[list.count++] = &avx512bf16_kernels();
  if (has_amx_bf16()) list.entries[list.count++] = &amx_kernels();
#endif
  return list;
}

const Kernels& kernels() {
  if (forced) return *forced;
  static const Kernels* const chosen = [] {
    const KernelList list = available_kernels();
    const char* wanted = std::getenv("ATTNBENCH_CPU_ISA");
    if (!wanted || !*wanted) return list.entries[list.count - 1];
    std::string known;
    for (int i = 0; i < list.count; ++i) {
      if (std::strcmp(list.entries[i]->name, wanted) == 0) return list.entries[i];
      known += std::string(i ? ", " : "") + list.entries[i]->name;
    }
    throw UsageError("ATTNBENCH_CPU_ISA names '" + std::string(wanted) + "'; this machine runs: " + known);
  }();
  return *chosen;
}

void force_kernels(const Kernels* k) { forced = k; }

}  // namespace attnbench::cpu_attention
