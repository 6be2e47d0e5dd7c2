#include "kernels/core/dtype.hpp"

#include <cstring>
#include <string>

namespace attnbench {
namespace {

template <class S, class D>
void convert_run(const void* src, void* dst, int64_t n) {
  const S* s = static_cast<const S*>(src);
  D* d = static_cast<D*>(dst);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<S, double> && std::is_same_v<D, float>) {
      d[i] = static_cast<float>(s[i]);
    } else if constexpr (std::is_same_v<D, double>) {
      d[i] = static_cast<double>(static_cast<float>(s[i]));
    } else {
      d[i] = static_cast<D>(static_cast<float>(s[i]));
    }
  }
}

template <class S>
void convert_from(const void* src, void* dst, DType dst_type, int64_t n) {
  switch (dst_type) {
    case DType::f64:
      return convert_run<S, double>(src, dst, n);
    case DType::f32:
      return convert_run<S, float>(src, dst, n);
    case DType::bf16:
      return convert_run<S, bf16>(src, dst, n);
    case DType::f16:
      return convert_run<S, f16>(src, dst, n);
    default:
      throw UsageError("convert: the destination type must be a floating type");
  }
}

}  // namespace

std::string_view name(DType t) {
  switch (t) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

DType parse_dtype(std::string_view word) {
  for (DType t : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8})
    if (word == name(t)) return t;
  throw UsageError("unknown dtype '" + std::string(word) + "'; valid: f64, f32, bf16, f16, i32, u8");
}

f16::f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) {
    bits = static_cast<uint16_t>(sign | 0x7e00u);
  } else if (a >= 0x47800000u) {  // >= 65536: infinity (65520..65536 round up below)
    bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (a < 0x38800000u) {  // subnormal or zero: align the mantissa to 2^-24 by one float addition
    const float aligned = std::bit_cast<float>(a) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  } else {
    const uint32_t odd = (a >> 13) & 1u;
    bits = static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + odd) >> 13));
  }
}

f16::operator float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t em = bits & 0x7fffu;
  if (em >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((em & 0x3ffu) << 13));
  if (em < 0x400u) {
    const float v = static_cast<float>(em) * 5.9604644775390625e-08f;  // 2^-24
    return sign ? -v : v;
  }
  return std::bit_cast<float>(sign | ((em << 13) + 0x38000000u));
}

void convert(const void* src, DType src_type, void* dst, DType dst_type, int64_t n) {
  if (n <= 0) return;
  if (src_type == dst_type) {
    std::memcpy(dst, src, static_cast<size_t>(n) * size_of(src_type));
    return;
  }
  switch (src_type) {
    case DType::f64:
      // f64 -> f64 is the memcpy above; narrower targets round once from double through f32.
      return convert_from<double>(src, dst, dst_type, n);
    case DType::f32:
      return convert_from<float>(src, dst, dst_type, n);
    case DType::bf16:
      return convert_from<bf16>(src, dst, dst_type, n);
    case DType::f16:
      return convert_from<f16>(src, dst, dst_type, n);
    default:
      throw UsageError("convert: the source type must be a floating type");
  }
}

}  // namespace attnbench
