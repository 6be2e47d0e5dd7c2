// One step of few queries against keys that stream from memory, where reading is all that should cost.
// Included like cpu_kernel-inl.hpp and after it. Knows no masks and no score terms: such steps go the row
// form's general way.
//
// Scores are kept [query][key]: sums over the head dim leave their registers N at a time by a transposing
// sum, and the softmax runs with keys in the lanes: 64 keys of one query are four vectors here, where S^T
// spends 64 on them.

// How rows of K are multiplied: N elements widened to f32, or (see cpu_kernel_avx512bf16.cpp) pairs of bf16.
// Up to kShared queries share the rows they read, their sums with N / R keys filling N registers; eight at
// once make f32 wait for loads instead (measured: 36 against 38 GB/s from L2 for two rounds of four), pairs
// gain by them.
template <class T>
struct WideRows {
  using Element = T;
  static constexpr int kElements = V::N;
  static constexpr int kShared = 4;
  static V query(const DecodeStep& a, int r, int64_t i) { return V::load(a.q + r * a.d + i); }
  static V load(const T* p) { return V::load(p); }
  static V mul_add(V acc, V x, V y) { return fma(x, y, acc); }
};

template <class Rows>
inline __attribute__((always_inline)) V decode_load(const typename Rows::Element* row, int c, int64_t ahead) {
  const auto* p = row + c * Rows::kElements;
  // One request a cache line.
  if (c * Rows::kElements * static_cast<int>(sizeof *p) % 64 == 0)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead);
  return Rows::load(p);
}

// One query keeps NV vectors of Q in registers and takes row after row: the order in which memory reads
// fastest.
template <class Rows, int NV>
inline __attribute__((always_inline)) void decode_chunk(const DecodeStep& a, int r, const void* const* k,
                                                        int64_t first, V (&acc)[V::N]) {
  V x[NV];
#pragma GCC unroll 8
  for (int c = 0; c < NV; ++c) x[c] = Rows::query(a, r, first + c * Rows::kElements);
#pragma GCC unroll 16
  for (int j = 0; j < V::N; ++j) {
    const auto* row = static_cast<const typename Rows::Element*>(k[j]) + first;
#pragma GCC unroll 8
    for (int c = 0; c < NV; ++c) acc[j] = Rows::mul_add(acc[j], x[c], decode_load<Rows>(row, c, a.ahead_k));
  }
}

/// The head dims from `first` on that fill no vector.
template <class T, int R>
__attribute__((noinline)) void decode_rest(const DecodeStep& a, int r, const void* const* k, int64_t first,
                                           float* sum) {
  constexpr int K = V::N / R;
  for (int c = 0; c < R; ++c)
    for (int j = 0; j < K; ++j)
      for (int64_t i = first; i < a.d; ++i)
        sum[c * K + j] += a.q[(r + c) * a.d + i] * scalar(static_cast<const T*>(k[j]) + i);
}

/// Scores of the queries r .. r + R - 1 with N / R keys.
template <class Rows, int R>
inline void decode_scores(const DecodeStep& a, int r, const void* const* k, float* s) {
  using T = typename Rows::Element;
  constexpr int K = V::N / R, E = Rows::kElements;
  V acc[V::N];
#pragma GCC unroll 16
  for (int x = 0; x < V::N; ++x) acc[x] = V::zero();
  int64_t i = 0;
  if constexpr (R == 1 && V::kRowRegisters >= V::N + 8) {
    for (; i + 8 * E <= a.d; i += 8 * E) decode_chunk<Rows, 8>(a, r, k, i, acc);
    if (i + 4 * E <= a.d) decode_chunk<Rows, 4>(a, r, k, i, acc), i += 4 * E;
    if (i + 2 * E <= a.d) decode_chunk<Rows, 2>(a, r, k, i, acc), i += 2 * E;
    if (i + E <= a.d) decode_chunk<Rows, 1>(a, r, k, i, acc), i += E;
  } else {
    for (; i + E <= a.d; i += E) {
      V y[K];
#pragma GCC unroll 16
      for (int j = 0; j < K; ++j) y[j] = decode_load<Rows>(static_cast<const T*>(k[j]) + i, 0, a.ahead_k);
#pragma GCC unroll 8
      for (int c = 0; c < R; ++c) {
        const V x = Rows::query(a, r + c, i);
#pragma GCC unroll 16
        for (int j = 0; j < K; ++j) acc[c * K + j] = Rows::mul_add(acc[c * K + j], x, y[j]);
      }
    }
  }
  float sum[V::N];
  V::sums(acc, sum);
  if (i < a.d) decode_rest<T, R>(a, r, k, i, sum);
#pragma GCC unroll 8
  for (int c = 0; c < R; ++c) __builtin_memcpy(s + c * a.ld, sum + c * K, K * sizeof(float));
}

/// Scores of query r become weights in place; as bf16 pairs of neighbouring keys where `Pairs`. The reference
/// point moves as in softmax_group.
template <bool Pairs, class Later = V>
inline void decode_softmax(const DecodeStep& a, int r) {
  constexpr int kAtOnce = Pairs ? 2 * V::N : V::N;
  const float minus_inf = -__builtin_inff();
  float* s = a.s + r * a.ld;
  for (int j = a.keys; j % kAtOnce != 0; ++j) s[j] = minus_inf;
  V most = V::set1(minus_inf);
  for (int j = 0; j < a.keys; j += V::N) most = max(V::load(s + j), most);
  const float seen = V::largest(most) * a.to_log2, old = a.m[r];
  const float now = old + 8.0f < seen ? seen : old, safe = minus_inf < now ? now : 0.0f;
  if (a.top && a.top[r] < seen) a.top[r] = seen;
  if (old < now) {
    float alpha[V::N];
    V::store(alpha, exp2_nonpositive(V::set1(old - safe)));
    a.m[r] = now, a.l[r] *= alpha[0];
    float* o = a.o + r * a.e;
    int64_t i = 0;
    for (; i + V::N <= a.e; i += V::N) V::store(o + i, V::load(o + i) * V::set1(alpha[0]));
    for (; i < a.e; ++i) o[i] *= alpha[0];
  }
  const V c = V::set1(a.to_log2), m = V::set1(safe);
  const bool far = is_far(m);
  const auto exponential = [&](int j) {
    const V x = V::load(s + j);
    return exp2_nonpositive(far ? rounded(x * c) - m : fms(x, c, m));
  };
  V sum = V::zero();
  for (int j = 0; j < a.keys; j += kAtOnce) {
    const V x = exponential(j);
    sum = sum + x;
    if constexpr (Pairs) {
      const V y = exponential(j + V::N);
      sum = sum + y;
      V::store(s + j / 2, Later::neighbours(x, y));
    } else {
      V::store(s + j, x);
    }
  }
  float total[4];
  V::sum4(sum, V::zero(), V::zero(), V::zero(), total);
  a.l[r] += total[0];
}

template <class Rows, bool Pairs, int R, class Output>
inline void decode_queries(const DecodeStep& a, int r, const Output& output) {
  constexpr int K = V::N / R;
  float* s = a.s + r * a.ld;
  int j = 0;
  for (; j + K <= a.keys; j += K) decode_scores<Rows, R>(a, r, a.k + j, s + j);
  if (j < a.keys) {
    // The last row stands in for missing ones; what it leaves there is overwritten.
    const void* k[K];
    for (int i = 0; i < K; ++i) k[i] = a.k[min_int(j + i, a.keys - 1)];
    decode_scores<Rows, R>(a, r, k, s + j);
  }
#pragma GCC unroll 1
  for (int c = 0; c < R; ++c) decode_softmax<Pairs>(a, r + c);
  output(r);
}

/// All queries; `output(rows, r)` adds P V for as many queries as `rows` says, from r on.
template <class Rows, bool Pairs, class Output>
inline void decode_of(const DecodeStep& a, const Output& output) {
  const auto some = [&](auto rows, int r) {
    constexpr int R = decltype(rows)::value;
    decode_queries<Rows, Pairs, R>(a, r, [&](int first) { output(rows, first); });
  };
  for (int r = 0; r < a.queries;) {
    const int left = a.queries - r;
    if constexpr (Rows::kShared >= 8)
      if (left > 4) {
        some(Count<8>{}, r), r += 8;
        continue;
      }
    if (left > 2)
      some(Count<4>{}, r), r += 4;
    else if (left == 2)
      some(Count<2>{}, r), r += 2;
    else
      some(Count<1>{}, r), r += 1;
  }
}

template <class T>
inline void decode_typed(const DecodeStep& a) {
  decode_of<WideRows<T>, false>(a, [&](auto rows, int r) {
    row_output_of<T, decltype(rows)::value>(a.o + r * a.e, a.e, a.e, a.v, a.keys, a.s + r * a.ld, 1, a.ld,
                                            a.ahead_v);
  });
}

void decode(const DecodeStep& a) {
  if (a.dtype == DType::f32) return decode_typed<float>(a);
  if (a.dtype == DType::bf16) return decode_typed<bf16>(a);
  decode_typed<f16>(a);
}
