// Counter-based random numbers. Everything here is IEEE basic arithmetic (+ - * / sqrt) on integers and
// doubles, so the same seed gives the same bits on every platform and backend.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

struct Block {
  uint32_t x[4];
};

// Philox 4x32-10 (Salmon et al., SC 2011): ten rounds of two 32x32 multiplications.
inline Block philox(Block c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.x[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c.x[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.x[1] ^ k0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.x[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

template <int N>
inline double polynomial(const double (&c)[N], double x) {
  double y = c[N - 1];
  for (int i = N - 2; i >= 0; --i) y = y * x + c[i];
  return y;
}

/// Natural logarithm of x in (0, 1): x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m-1)/(m+1)).
/// The series is cut after s^21; |s| <= 0.1716 makes the remainder 1e-18.
double portable_log(double x) {
  int e = 0;
  double m = std::frexp(x, &e);
  if (m < 0.70710678118654752440) m *= 2.0, e -= 1;
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
  static constexpr double odd[] = {1.0,        1.0 / 3.0,  1.0 / 5.0,  1.0 / 7.0,  1.0 / 9.0, 1.0 / 11.0,
                                   1.0 / 13.0, 1.0 / 15.0, 1.0 / 17.0, 1.0 / 19.0, 1.0 / 21.0};
  const double sum = polynomial(odd, s2);
  return 2.0 * s * sum + e * 0.69314718055994530942;
}

}  // namespace

namespace {
inline uint64_t bits_at(uint64_t seed, uint64_t stream, uint64_t index) {
  const Block b = philox({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                           static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}},
                         static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return uint64_t{b.x[1]} << 32 | b.x[0];
}
}  // namespace

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) { return bits_at(seed, stream, index); }

uint64_t stream_of(const std::string& name) {
  uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  // The middle of one of 2^52 equal cells: never 0 or 1, and exactly representable.
  return (static_cast<double>(random_bits(seed, stream, index) >> 12) + 0.5) * 0x1p-52;
}

namespace {

// Wichura's algorithm AS 241 (PPND16), relative accuracy about 1e-16: one quotient of polynomials for the
// middle, which holds 85 % of all values, and two for the tails.
constexpr double kMiddle = 0.425;

inline double middle_quantile(double q) {
  static constexpr double a[] = {3.3871328727963666080e0,  1.3314166789178437745e+2, 1.9715909503065514427e+3,
                                 1.3731693765509461125e+4, 4.5921953931549871457e+4, 6.7265770927008700853e+4,
                                 3.3430575583588128105e+4, 2.5090809287301226727e+3};
  static constexpr double b[] = {1.0,
                                 4.2313330701600911252e+1,
                                 6.8718700749205790830e+2,
                                 5.3941960214247511077e+3,
                                 2.1213794301586595867e+4,
                                 3.9307895800092710610e+4,
                                 2.8729085735721942674e+4,
                                 5.2264952788528545610e+3};
  const double r = 0.180625 - q * q;
  return q * polynomial(a, r) / polynomial(b, r);
}

double tail_quantile(double p) {
  static constexpr double c[] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                 5.76949722146069140550e0,  3.64784832476320460504e0,
                                 1.27045825245236838258e0,  2.41780725177450611770e-1,
                                 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr double d[] = {1.0,
                                 2.05319162663775882187e0,
                                 1.67638483018380384940e0,
                                 6.89767334985100004550e-1,
                                 1.48103976427480074590e-1,
                                 1.51986665636164571966e-2,
                                 5.47593808499534494600e-4,
                                 1.05075007164441684324e-9};
  static constexpr double e[] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                                 1.78482653991729133580e0,  2.96560571828504891230e-1,
                                 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                 2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static constexpr double f[] = {1.0,
                                 5.99832206555887937690e-1,
                                 1.36929880922735805310e-1,
                                 1.48753612908506148525e-2,
                                 7.86869131145613259100e-4,
                                 1.84631831751005468180e-5,
                                 1.42151175831644588870e-7,
                                 2.04426310338993978564e-15};
  const double q = p - 0.5;
  double r = std::sqrt(-portable_log(q < 0 ? p : 1.0 - p));
  double x = 0;
  if (r <= 5.0) {
    r -= 1.6;
    x = polynomial(c, r) / polynomial(d, r);
  } else {
    r -= 5.0;
    x = polynomial(e, r) / polynomial(f, r);
  }
  return q < 0 ? -x : x;
}

}  // namespace

double normal_quantile(double p) {
  const double q = p - 0.5;
  return std::fabs(q) <= kMiddle ? middle_quantile(q) : tail_quantile(p);
}

double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  return normal_quantile(random_uniform(seed, stream, index));
}

void random_normals(uint64_t seed, uint64_t stream, uint64_t begin, int64_t count, double* out) {
  constexpr int64_t kPiece = 256;
  double p[kPiece];
  int32_t tails[kPiece];
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t n = std::min(kPiece, count - first);
    double* x = out + first;
    const uint64_t at = begin + static_cast<uint64_t>(first);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      // m 2^-52 + 2^-53, as random_uniform has it, without the conversion that vectors lack: both sums are
      // exact.
      const uint64_t m = bits_at(seed, stream, at + static_cast<uint64_t>(i)) >> 12;
      p[i] = std::bit_cast<double>(m | 0x3ff0000000000000u) - (1.0 - 0x1p-53);
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = middle_quantile(p[i] - 0.5);
    int64_t count_of_tails = 0;
    for (int64_t i = 0; i < n; ++i) {
      tails[count_of_tails] = static_cast<int32_t>(i);
      count_of_tails += std::fabs(p[i] - 0.5) > kMiddle;
    }
    for (int64_t k = 0; k < count_of_tails; ++k) x[tails[k]] = tail_quantile(p[tails[k]]);
  }
}

double normal_probability(double x) {
  // Bisection of the quantile: slow, but portable; needed once per truncated tensor.
  double low = 0x1p-60, high = 1.0 - 0x1p-53;
  for (int i = 0; i < 80; ++i) {
    const double mid = 0.5 * (low + high);
    (normal_quantile(mid) < x ? low : high) = mid;
  }
  return 0.5 * (low + high);
}

}  // namespace attnbench
