// What operator tests share: seeded tensors, reading as double, comparison, error texts. No expected values:
// every test computes its own in double precision.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/core/backend.hpp"
#include "kernels/core/isa.hpp"
#include "tests/catch.hpp"

namespace attnbench::testing {

/// A small counter-based generator: the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform(double low = -1.0, double high = 1.0) {
    return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
  }
  int64_t integer(int64_t low, int64_t high) {  // inclusive
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }

 private:
  uint64_t state_;
};

inline double get(const Tensor& t, int64_t offset) {
  switch (t.dtype()) {
    case DType::f64:
      return t.data<double>()[offset];
    case DType::f32:
      return static_cast<double>(t.data<float>()[offset]);
    case DType::bf16:
      return static_cast<double>(static_cast<float>(t.data<bf16>()[offset]));
    case DType::f16:
      return static_cast<double>(static_cast<float>(t.data<f16>()[offset]));
    case DType::i32:
      return t.data<int32_t>()[offset];
    case DType::u8:
      return t.data<uint8_t>()[offset];
  }
  return 0;
}
inline void put(const Tensor& t, int64_t offset, double x) {
  switch (t.dtype()) {
    case DType::f64:
      t.data<double>()[offset] = x;
      break;
    case DType::f32:
      t.data<float>()[offset] = static_cast<float>(x);
      break;
    case DType::bf16:
      t.data<bf16>()[offset] = bf16(static_cast<float>(x));
      break;
    case DType::f16:
      t.data<f16>()[offset] = f16(static_cast<float>(x));
      break;
    case DType::i32:
      t.data<int32_t>()[offset] = static_cast<int32_t>(x);
      break;
    case DType::u8:
      t.data<uint8_t>()[offset] = static_cast<uint8_t>(x);
      break;
  }
}

/// Calls f(offset) for every element in row-major order of the view.
template <class F>
void each(const Tensor& t, const F& f, int axis = 0, int64_t offset = 0) {
  if (axis == t.rank()) {
    f(offset);
    return;
  }
  for (int64_t i = 0; i < t.dim(axis); ++i) each(t, f, axis + 1, offset + i * t.stride(axis));
}

inline std::vector<double> values(const Tensor& t) {
  std::vector<double> v;
  each(t, [&](int64_t o) { v.push_back(get(t, o)); });
  return v;
}
inline void fill(const Tensor& t, double x) {
  each(t, [&](int64_t o) { put(t, o, x); });
}
inline void poison(const Tensor& t) { fill(t, std::numeric_limits<double>::quiet_NaN()); }
inline Tensor random(Context& ctx, DType type, const Shape& shape, Random& r, double low = -1,
                     double high = 1) {
  const Tensor t = ctx.allocate(type, shape);
  each(t, [&](int64_t o) { put(t, o, r.uniform(low, high)); });
  return t;
}
inline Tensor poisoned(Context& ctx, DType type, const Shape& shape) {
  const Tensor t = ctx.allocate(type, shape);
  poison(t);
  return t;
}
/// A view of `shape` whose rows lie inside wider rows of a poisoned buffer.
inline Tensor padded(Context& ctx, DType type, Shape shape, int64_t before, int64_t after) {
  const int64_t columns = shape[-1];
  shape[-1] = before + columns + after;
  return poisoned(ctx, type, shape).slice(-1, before, before + columns);
}
inline Tensor randomize(const Tensor& t, Random& r, double low = -1, double high = 1) {
  each(t, [&](int64_t o) { put(t, o, r.uniform(low, high)); });
  return t;
}

/// Largest |got - want| - tolerance[i] must be negative; NaN only where NaN is wanted. `absolute` is the
/// error allowed before storage, per element or one for all; the storage rounding of the wanted value is
/// added.
inline void check_close(const Tensor& got, const std::vector<double>& want,
                        const std::vector<double>& absolute) {
  const std::vector<double> have = values(got);
  REQUIRE(have.size() == want.size());
  for (size_t i = 0; i < have.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(have[i])) continue;
    if (have[i] == want[i]) continue;  // infinities
    double tolerance = absolute.size() == 1 ? absolute[0] : absolute[i];
    if (got.dtype() != DType::f64) {
      tolerance += 0.5 * epsilon_of(got.dtype()) * (std::fabs(want[i]) + tolerance);
      if (got.dtype() == DType::f16) tolerance += 0x1p-25;  // half a subnormal step
    }
    if (!(std::fabs(have[i] - want[i]) <= tolerance)) {
      INFO("element " << i << " of " << got.shape().str() << " (" << name(got.dtype()) << "): got " << have[i]
                      << ", want " << want[i] << ", tolerance " << tolerance);
      REQUIRE(std::fabs(have[i] - want[i]) <= tolerance);
    }
  }
}

/// The ledger's growth over one call.
template <class Call>
Cost charged(Context& ctx, const Call& call) {
  ctx.cost().reset();
  call();
  return ctx.cost().total();
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = values(a), y = values(b);
  if (x.size() != y.size()) return false;
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] != y[i] && !(std::isnan(x[i]) && std::isnan(y[i]))) return false;
  return true;
}

/// Runs a test body with each instruction set that this machine has; AVX-512 without AMX as well.
template <class Body>
void each_isa(const Body& body) {
  const Isa widest = best_isa();
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (isa > widest) continue;
    limit_isa(isa);
    INFO("instruction set " << static_cast<int>(isa));
    body();
  }
  limit_isa(Isa::avx512);
  if (!has_amx_bf16()) return;
  hide_amx(true);
  INFO("AMX hidden");
  body();
  hide_amx(false);
}

}  // namespace attnbench::testing
