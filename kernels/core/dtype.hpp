// Element types and their conversions. bf16 and f16 are storage types: arithmetic happens in f32.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/core/error.hpp"

namespace attnbench {

enum class DType : uint8_t { f64, f32, bf16, f16, i32, u8 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::f64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}
constexpr bool is_float(DType t) { return t != DType::i32 && t != DType::u8; }
/// "f32", "bf16", …: the words of suites, results and --help.
std::string_view name(DType t);
/// Inverse of name(); throws UsageError with the list of valid words.
DType parse_dtype(std::string_view word);

/// bfloat16, round to nearest even, NaN kept quiet.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>((u >> 16) | 0x40u)
                                           : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

/// IEEE binary16, round to nearest even, subnormals kept.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float x);
  explicit operator float() const;
};

template <class T>
struct dtype_of;
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of<uint8_t> {
  static constexpr DType value = DType::u8;
};

/// Largest relative rounding step of one stored element (2^-mantissa bits), used to derive tolerances.
constexpr double epsilon_of(DType t) {
  switch (t) {
    case DType::f64:
      return 2.220446049250313e-16;
    case DType::f32:
      return 1.1920928955078125e-07;
    case DType::bf16:
      return 7.8125e-3;
    case DType::f16:
      return 9.765625e-4;
    default:
      return 0.0;
  }
}

/// Converts n contiguous elements between floating types (through f32, or f64 where both are wide enough).
void convert(const void* src, DType src_type, void* dst, DType dst_type, int64_t n);

}  // namespace attnbench
