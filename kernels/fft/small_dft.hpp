// Discrete Fourier transforms of 2 to 16 numbers held in registers, forward (exp(-i...)), in natural order.
// For any type with members x and y (re, im). Runs on the host and on the device; no memory is touched.
//
//   primes: sums s_j = v_j + v_(P-j) and differences d_j = v_j - v_(P-j), j = 1 .. (P-1)/2, give
//           X_k, X_(P-k) = v_0 + sum_j cos(2 pi jk/P) s_j  -+  i sum_j sin(2 pi jk/P) d_j
//   coprime A B: n = (B n1 + A n2) mod N and k = n mod (A, B) by the Chinese remainder theorem; no twiddles
//   other A B: n = B n1 + n2, twiddles exp(-2 pi i n2 k1 / N), k = k1 + A k2
#pragma once
#include <numeric>
#include <type_traits>
#include <utility>

// ATTNBENCH_UNROLL(unroll) stands before loops whose arrays must stay in registers; other compilers do not
// know it.
#ifdef __CUDA_ARCH__
#define ATTNBENCH_UNROLL(what) _Pragma(#what)
#else
#define ATTNBENCH_UNROLL(what)
#endif
#ifdef __CUDACC__
#define ATTNBENCH_BOTH __host__ __device__ __forceinline__
#else
#define ATTNBENCH_BOTH inline __attribute__((always_inline))
#endif

namespace attnbench {

/// The largest length that small_dft knows.
inline constexpr int kMaxRadix = 16;

namespace dft_detail {

/// cos (sine false) or sin of 2 pi k / n, k >= 0, to double precision while compiling.
constexpr double turn(long long k, long long n, bool sine) {
  k %= n;
  if (sine) {
    if (2 * k > n) return -turn(n - k, n, true);
    if (4 * k > n) k = (n - 2 * k), n = 2 * n;  // sin(pi - x); halves of a turn in units of 1 / (2 n)
    if (8 * k > n) return turn(n - 4 * k, 4 * n, false);
  } else {
    if (2 * k > n) k = n - k;
    if (4 * k > n) return -turn(n - 2 * k, 2 * n, false);
    if (8 * k > n) return turn(n - 4 * k, 4 * n, true);
  }
  const double x = 2.0 * 3.14159265358979323846 * static_cast<double>(k) / static_cast<double>(n);
  double term = sine ? x : 1.0, sum = term;
  for (int i = sine ? 2 : 1; i < 30; i += 2) {
    term *= -x * x / (i * (i + 1));
    sum += term;
  }
  return sum;
}

template <int K, int N>
inline constexpr double kCosine = turn(K, N, false);
template <int K, int N>
inline constexpr double kSine = turn(K, N, true);

template <int N, class F>
ATTNBENCH_BOTH constexpr void unrolled(const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
  (std::make_integer_sequence<int, N>{});
}

/// v exp(-2 pi i K / N).
template <int K, int N, class Z>
ATTNBENCH_BOTH Z turned(Z v) {
  using T = decltype(v.x);
  if constexpr (K % N == 0)
    return v;
  else if constexpr (2 * (K % N) == N)
    return Z{-v.x, -v.y};
  else if constexpr (4 * (K % N) == N)
    return Z{v.y, -v.x};
  else if constexpr (4 * (K % N) == 3 * N)
    return Z{-v.y, v.x};
  else if constexpr (8 * (K % N) == N) {
    constexpr T c = static_cast<T>(kCosine<1, 8>);
    return Z{c * (v.x + v.y), c * (v.y - v.x)};
  } else if constexpr (8 * (K % N) == 3 * N) {
    constexpr T c = static_cast<T>(kCosine<1, 8>);
    return Z{c * (v.y - v.x), -c * (v.x + v.y)};
  } else {
    constexpr T c = static_cast<T>(kCosine<K, N>), s = static_cast<T>(kSine<K, N>);
    return Z{c * v.x + s * v.y, c * v.y - s * v.x};
  }
}

constexpr int smallest_factor(int n) {
  for (int p = 2; p * p <= n; ++p)
    if (n % p == 0) return p;
  return n;
}
/// The inverse of a modulo n, for coprime a and n.
constexpr int inverse_of(int a, int n) {
  for (int i = 1; i < n; ++i)
    if (a * i % n == 1) return i;
  return 0;
}
/// N = A B: coprime if possible, otherwise balanced.
constexpr int split_of(int n) {
  for (int a = 2; a * a <= n; ++a)
    if (n % a == 0 && std::gcd(a, n / a) == 1) return a;
  int best = smallest_factor(n);
  for (int a = best; a * a <= n; ++a)
    if (n % a == 0) best = a;
  return best;
}

}  // namespace dft_detail

/// v <- its transform.
template <int N, class Z>
ATTNBENCH_BOTH void small_dft(Z (&v)[N]) {
  using namespace dft_detail;
  using T = decltype(v[0].x);
  if constexpr (N == 1) {
    return;
  } else if constexpr (N == 2) {
    const Z a = v[0], b = v[1];
    v[0] = Z{a.x + b.x, a.y + b.y};
    v[1] = Z{a.x - b.x, a.y - b.y};
  } else if constexpr (N == 4) {
    const Z a{v[0].x + v[2].x, v[0].y + v[2].y}, b{v[0].x - v[2].x, v[0].y - v[2].y};
    const Z c{v[1].x + v[3].x, v[1].y + v[3].y}, d{v[1].x - v[3].x, v[1].y - v[3].y};
    v[0] = Z{a.x + c.x, a.y + c.y};
    v[1] = Z{b.x + d.y, b.y - d.x};
    v[2] = Z{a.x - c.x, a.y - c.y};
    v[3] = Z{b.x - d.y, b.y + d.x};
  } else if constexpr (smallest_factor(N) == N) {
    constexpr int kHalf = (N - 1) / 2;
    Z s[kHalf], d[kHalf], zero = v[0];
    unrolled<kHalf>([&](auto i) {
      constexpr int j = decltype(i)::value;
      s[j] = Z{v[j + 1].x + v[N - 1 - j].x, v[j + 1].y + v[N - 1 - j].y};
      d[j] = Z{v[j + 1].x - v[N - 1 - j].x, v[j + 1].y - v[N - 1 - j].y};
      v[0].x += s[j].x, v[0].y += s[j].y;
    });
    unrolled<kHalf>([&](auto o) {
      constexpr int k = decltype(o)::value + 1;
      Z a = zero, b{T(0), T(0)};
      unrolled<kHalf>([&](auto i) {
        constexpr int j = decltype(i)::value;
        constexpr T c = static_cast<T>(kCosine<(j + 1) * k % N, N>),
                    w = static_cast<T>(kSine<(j + 1) * k % N, N>);
        a.x += c * s[j].x, a.y += c * s[j].y;
        if constexpr (j == 0)
          b = Z{w * d[j].x, w * d[j].y};
        else
          b.x += w * d[j].x, b.y += w * d[j].y;
      });
      v[k] = Z{a.x + b.y, a.y - b.x};
      v[N - k] = Z{a.x - b.y, a.y + b.x};
    });
  } else {
    constexpr int A = split_of(N), B = N / A;
    constexpr bool kCoprime = std::gcd(A, B) == 1;
    Z t[B][A];
    unrolled<B>([&](auto o) {
      constexpr int n2 = decltype(o)::value;
      unrolled<A>([&](auto i) {
        constexpr int n1 = decltype(i)::value;
        t[n2][n1] = v[kCoprime ? (B * n1 + A * n2) % N : B * n1 + n2];
      });
      small_dft(t[n2]);
    });
    unrolled<A>([&](auto o) {
      constexpr int k1 = decltype(o)::value;
      Z u[B];
      unrolled<B>([&](auto i) {
        constexpr int n2 = decltype(i)::value;
        u[n2] = turned < kCoprime ? 0 : n2 * k1, N > (t[n2][k1]);
      });
      small_dft(u);
      unrolled<B>([&](auto i) {
        constexpr int k2 = decltype(i)::value;
        constexpr int k =
            kCoprime ? (B * inverse_of(B, A) * k1 + A * inverse_of(A, B) * k2) % N : k1 + A * k2;
        v[k] = u[k2];
      });
    });
  }
}

}  // namespace attnbench
