// The body of every CPU kernel table. Included once by each cpu_kernel_<target>.cpp inside an unnamed
// namespace, after that file has defined its vector type V (see cpu_kernel_portable.cpp for what V offers).
// Not a normal header: it must see no standard containers, whose inline code could leak one target's
// instructions into another's symbols.

// Base-2 exponential of x <= 0 (or slightly above): 2^floor(x) * (1 + f q(f)), f = x - floor(x). q is the
// degree-4 minimax fit of relative error 9.4e-8 on [0, 1] (Remez; the constant 1 is kept exact, so that 2^0
// is 1). V::exp2_scale applies the power of two, subnormals and zero included.
inline V exp2_nonpositive(V x) {
  const V f = V::fraction(x);
  V q = V::set1(0.00186713005f);
  q = fma(q, f, V::set1(0.00901703071f));
  q = fma(q, f, V::set1(0.0557999127f));
  q = fma(q, f, V::set1(0.240164444f));
  q = fma(q, f, V::set1(0.693151295f));
  q = fma(q, f, V::set1(1.0f));
  return V::scale(q, x);
}

// tanh: odd minimax polynomial below 0.625 (relative error 4e-9 before rounding), 1 - 2 / (e^2x + 1) above.
inline V tanh(V x) {
  const V a = abs(x);
  const V z = x * x;
  V r = V::set1(-0.00571704516f);
  r = fma(r, z, V::set1(0.020650588f));
  r = fma(r, z, V::set1(-0.0537434965f));
  r = fma(r, z, V::set1(0.133314908f));
  r = fma(r, z, V::set1(-0.333332837f));
  const V small = fma(r * z, x, x);
  // e^-2a, so that large arguments end in 1 - 0.
  const V g = exp2_nonpositive(a * V::set1(-2.885390081777927f));
  const V one = V::set1(1.0f);
  const V large = copysign((one - g) / (one + g), x);
  return select_less(a, V::set1(0.625f), small, large);
}

// Single elements. bf16's own conversions are inline functions of another header, which must not be emitted
// here for this target.
inline float scalar(const float* p) {
  float x;  // copied: pairs of 16-bit elements travel as floats and may lie on any even address
  __builtin_memcpy(&x, p, 4);
  return x;
}
inline float scalar(const bf16* p) {
  const uint32_t u = static_cast<uint32_t>(p->bits) << 16;
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}
inline float scalar(const f16* p) { return static_cast<float>(*p); }
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  p->bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline void put(f16* p, float x) { *p = f16(x); }

/// A number of rows or vectors as a type, for generic lambdas.
template <int N>
struct Count {
  static constexpr int value = N;
};
inline int min_int(int a, int b) { return a < b ? a : b; }
inline int64_t min_int(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- products, lane form
// -------------------------------------------------------------------------------------------- Units are 32
// bits: one f32, or a pair of bf16. `Op::mul_add` is all that differs.
struct F32Op {
  static V mul_add(V acc, V a, V b) { return fma(a, b, acc); }
};

inline float load_unit(const void* p, int64_t i) {
  float x;
  __builtin_memcpy(&x, static_cast<const char*>(p) + i * 4, 4);
  return x;
}

// NR keys x NV vectors of queries in registers. 6 x 4 of 32 AVX-512 registers: 24 sums, 4 of Q, a broadcast;
// per unit 24 multiply-adds for 10 loads.
template <class Op, int NR, int NV, bool Add>
inline __attribute__((always_inline)) void score_block(const float* q, int lanes, int64_t units,
                                                       const void* const* k, int64_t first, float* s) {
  const char* row[NR];
#pragma GCC unroll 16
  for (int r = 0; r < NR; ++r) row[r] = static_cast<const char*>(k[r]) + first * 4;
  V acc[NR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < NR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[r][v] = Add ? V::load(s + r * lanes + v * V::N) : V::zero();
      // Unrolled, so that a block has few enough rounds for its end to be predicted.
#pragma GCC unroll 4
  for (int64_t i = 0; i < units; ++i) {
    V x[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) x[v] = V::load(q + i * lanes + v * V::N);
#pragma GCC unroll 16
    for (int r = 0; r < NR; ++r) {
      const V y = V::set1(load_unit(row[r], i));
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[r][v] = Op::mul_add(acc[r][v], y, x[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < NR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) V::store(s + r * lanes + v * V::N, acc[r][v]);
}

// The widest register block for NV vectors of queries; see V::block_rows.
template <class Op, int NV, bool Add>
inline void score_columns(const float* q, int lanes, int64_t units, const void* const* k, int keys,
                          int64_t first, float* s) {
  constexpr int NR = V::block_rows(NV);
  int j = 0;
  for (; j + NR <= keys; j += NR)
    score_block<Op, NR, NV, Add>(q, lanes, units, k + j, first, s + int64_t{j} * lanes);
  if constexpr (NR > 8)
    for (; j + 8 <= keys; j += 8)
      score_block<Op, 8, NV, Add>(q, lanes, units, k + j, first, s + int64_t{j} * lanes);
  if constexpr (NR > 4)
    for (; j + 4 <= keys; j += 4)
      score_block<Op, 4, NV, Add>(q, lanes, units, k + j, first, s + int64_t{j} * lanes);
  for (; j + 2 <= keys; j += 2)
    score_block<Op, 2, NV, Add>(q, lanes, units, k + j, first, s + int64_t{j} * lanes);
  for (; j < keys; ++j) score_block<Op, 1, NV, Add>(q, lanes, units, k + j, first, s + int64_t{j} * lanes);
}

template <class Op, bool Add>
inline void score_part(const float* q, int lanes, int width, int64_t units, const void* const* k, int keys,
                       int64_t first, float* s) {
  int v = width / V::N;
  if constexpr (V::kVectors >= 4)
    for (; v >= 4; v -= 4, q += 4 * V::N, s += 4 * V::N)
      score_columns<Op, 4, Add>(q, lanes, units, k, keys, first, s);
  if constexpr (V::kVectors >= 3)
    for (; v >= 3; v -= 3, q += 3 * V::N, s += 3 * V::N)
      score_columns<Op, 3, Add>(q, lanes, units, k, keys, first, s);
  for (; v >= 2; v -= 2, q += 2 * V::N, s += 2 * V::N)
    score_columns<Op, 2, Add>(q, lanes, units, k, keys, first, s);
  for (; v >= 1; --v, q += V::N, s += V::N) score_columns<Op, 1, Add>(q, lanes, units, k, keys, first, s);
}

// Q^T of 128 units x 64 lanes is 32 KiB: what L1 holds beside the rows of K that stream through. Longer head
// dims go in parts that add up in S^T.
template <class Op>
inline void scores_of(const float* q, int lanes, int width, int64_t units, const void* const* k, int keys,
                      float* s) {
  constexpr int64_t kPart = 128;
  score_part<Op, false>(q, lanes, width, min_int(units, kPart), k, keys, 0, s);
  for (int64_t i = kPart; i < units; i += kPart)
    score_part<Op, true>(q + i * lanes, lanes, width, min_int(units - i, kPart), k, keys, i, s);
}

// NR head dims x NV vectors of queries.
template <class Op, int NR, int NV, class Row>
inline __attribute__((always_inline)) void output_block(float* o, int lanes, int64_t first, Row row,
                                                        int units, const float* p) {
  V acc[NR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < NR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[r][v] = V::load(o + (first + r) * lanes + v * V::N);
#pragma GCC unroll 4
  for (int j = 0; j < units; ++j) {
    const char* y = row(j) + first * 4;
    V x[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) x[v] = V::load(p + int64_t{j} * lanes + v * V::N);
#pragma GCC unroll 16
    for (int r = 0; r < NR; ++r) {
      const V b = V::set1(load_unit(y, r));
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[r][v] = Op::mul_add(acc[r][v], b, x[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < NR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) V::store(o + (first + r) * lanes + v * V::N, acc[r][v]);
}

template <class Op, int NV, class Row>
inline void output_columns(float* o, int lanes, int64_t e, Row row, int units, const float* p) {
  constexpr int NR = V::block_rows(NV);
  int64_t i = 0;
  for (; i + NR <= e; i += NR) output_block<Op, NR, NV>(o, lanes, i, row, units, p);
  if constexpr (NR > 8)
    for (; i + 8 <= e; i += 8) output_block<Op, 8, NV>(o, lanes, i, row, units, p);
  if constexpr (NR > 4)
    for (; i + 4 <= e; i += 4) output_block<Op, 4, NV>(o, lanes, i, row, units, p);
  for (; i + 2 <= e; i += 2) output_block<Op, 2, NV>(o, lanes, i, row, units, p);
  for (; i < e; ++i) output_block<Op, 1, NV>(o, lanes, i, row, units, p);
}

template <class Op, class Row>
inline void output_of(float* o, int lanes, int width, int64_t e, Row row, int units, const float* p) {
  int v = width / V::N;
  if constexpr (V::kVectors >= 4)
    for (; v >= 4; v -= 4, o += 4 * V::N, p += 4 * V::N) output_columns<Op, 4>(o, lanes, e, row, units, p);
  if constexpr (V::kVectors >= 3)
    for (; v >= 3; v -= 3, o += 3 * V::N, p += 3 * V::N) output_columns<Op, 3>(o, lanes, e, row, units, p);
  for (; v >= 2; v -= 2, o += 2 * V::N, p += 2 * V::N) output_columns<Op, 2>(o, lanes, e, row, units, p);
  for (; v >= 1; --v, o += V::N, p += V::N) output_columns<Op, 1>(o, lanes, e, row, units, p);
}

void scores(const float* q, int lanes, int width, int64_t d, const void* const* k, int keys, float* s) {
  scores_of<F32Op>(q, lanes, width, d, k, keys, s);
}
void accumulate(float* o, int lanes, int width, int64_t e, const void* const* v, int keys, const float* p) {
  output_of<F32Op>(
      o, lanes, width, e, [v](int j) { return static_cast<const char*>(v[j]); }, keys, p);
}

// ---- products, row form
// ---------------------------------------------------------------------------------------------

template <class T, int R, int K>
inline void row_score_block(const float* q, int64_t ldq, int64_t d, const void* const* k, float* s, int lanes,
                            int64_t ahead) {
  const T* row[K];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) row[j] = static_cast<const T*>(k[j]);
  V acc[R][K];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) acc[r][j] = V::zero();
  int64_t i = 0;
  for (; i + V::N <= d; i += V::N) {
    V x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = V::load(q + r * ldq + i);
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) {
      const V y = V::load(row[j] + i);
      if (ahead) __builtin_prefetch(reinterpret_cast<const char*>(row[j] + i) + ahead);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][j] = fma(x[r], y, acc[r][j]);
    }
  }
  if constexpr (R == 4) {
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) V::sum4(acc[0][j], acc[1][j], acc[2][j], acc[3][j], s + j * lanes);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float sum[4];
      if constexpr (K % 4 == 0) {
#pragma GCC unroll 2
        for (int j = 0; j < K; j += 4) {
          V::sum4(acc[r][j], acc[r][j + 1], acc[r][j + 2], acc[r][j + 3], sum);
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c) s[(j + c) * lanes + r] = sum[c];
        }
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) {
          V::sum4(acc[r][j], V::zero(), V::zero(), V::zero(), sum);
          s[j * lanes + r] = sum[0];
        }
      }
    }
  }
  for (; i < d; ++i)
    for (int j = 0; j < K; ++j)
      for (int r = 0; r < R; ++r) s[j * lanes + r] += q[r * ldq + i] * scalar(row[j] + i);
}

template <class T, int R>
inline void row_scores_of(const float* q, int64_t ldq, int64_t d, const void* const* k, int keys, float* s,
                          int lanes, int64_t ahead) {
  constexpr int K = V::row_keys(R);
  int j = 0;
  for (; j + K <= keys; j += K)
    row_score_block<T, R, K>(q, ldq, d, k + j, s + int64_t{j} * lanes, lanes, ahead);
  if constexpr (K > 4)
    for (; j + 4 <= keys; j += 4)
      row_score_block<T, R, 4>(q, ldq, d, k + j, s + int64_t{j} * lanes, lanes, ahead);
  for (; j < keys; ++j) row_score_block<T, R, 1>(q, ldq, d, k + j, s + int64_t{j} * lanes, lanes, ahead);
}

/// The weight of key j for query r is p[j * by_key + r * by_query].
template <class T, int R, int NV>
inline void row_output_block(float* o, int64_t ldo, int64_t first, const void* const* v, int keys,
                             const float* p, int by_key, int by_query, int64_t ahead) {
  V acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < NV; ++c) acc[r][c] = V::load(o + r * ldo + first + c * V::N);
  for (int j = 0; j < keys; ++j) {
    const T* y = static_cast<const T*>(v[j]) + first;
    V x[NV];
#pragma GCC unroll 8
    for (int c = 0; c < NV; ++c) {
      x[c] = V::load(y + c * V::N);
      if (ahead) __builtin_prefetch(reinterpret_cast<const char*>(y + c * V::N) + ahead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V w = V::set1(p[j * by_key + r * by_query]);
#pragma GCC unroll 8
      for (int c = 0; c < NV; ++c) acc[r][c] = fma(w, x[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < NV; ++c) V::store(o + r * ldo + first + c * V::N, acc[r][c]);
}

template <class T, int R>
inline void row_output_of(float* o, int64_t ldo, int64_t e, const void* const* v, int keys, const float* p,
                          int by_key, int by_query, int64_t ahead) {
  int64_t i = 0;
  const auto columns = [&](auto vectors) __attribute__((always_inline)) {
    constexpr int NV = decltype(vectors)::value;
    for (; i + NV * V::N <= e; i += NV * V::N)
      row_output_block<T, R, NV>(o, ldo, i, v, keys, p, by_key, by_query, ahead);
  };
  if constexpr (V::row_vectors(R) >= 8) columns(Count<8>{});
  if constexpr (V::row_vectors(R) >= 4) columns(Count<4>{});
  if constexpr (V::row_vectors(R) >= 2) columns(Count<2>{});
  columns(Count<1>{});
  for (; i < e; ++i)
    for (int r = 0; r < R; ++r) {
      float sum = o[r * ldo + i];
      for (int j = 0; j < keys; ++j)
        sum += p[j * by_key + r * by_query] * scalar(static_cast<const T*>(v[j]) + i);
      o[r * ldo + i] = sum;
    }
}

template <class T>
inline void row_scores_typed(const float* q, int64_t ldq, int queries, int64_t d, const void* const* k,
                             int keys, float* s, int lanes, int64_t ahead) {
  for (; queries >= 4; queries -= 4, q += 4 * ldq, s += 4)
    row_scores_of<T, 4>(q, ldq, d, k, keys, s, lanes, ahead);
  if (queries == 1) row_scores_of<T, 1>(q, ldq, d, k, keys, s, lanes, ahead);
  if (queries == 2) row_scores_of<T, 2>(q, ldq, d, k, keys, s, lanes, ahead);
  if (queries == 3) row_scores_of<T, 3>(q, ldq, d, k, keys, s, lanes, ahead);
}
template <class T>
inline void row_accumulate_typed(float* o, int64_t ldo, int queries, int64_t e, const void* const* v,
                                 int keys, const float* p, int lanes, int64_t ahead) {
  for (; queries >= 4; queries -= 4, o += 4 * ldo, p += 4)
    row_output_of<T, 4>(o, ldo, e, v, keys, p, lanes, 1, ahead);
  if (queries == 1) row_output_of<T, 1>(o, ldo, e, v, keys, p, lanes, 1, ahead);
  if (queries == 2) row_output_of<T, 2>(o, ldo, e, v, keys, p, lanes, 1, ahead);
  if (queries == 3) row_output_of<T, 3>(o, ldo, e, v, keys, p, lanes, 1, ahead);
}
void row_scores(DType t, const float* q, int64_t ldq, int queries, int64_t d, const void* const* k, int keys,
                float* s, int lanes, int64_t ahead) {
  if (t == DType::f32) return row_scores_typed<float>(q, ldq, queries, d, k, keys, s, lanes, ahead);
  if (t == DType::bf16) return row_scores_typed<bf16>(q, ldq, queries, d, k, keys, s, lanes, ahead);
  row_scores_typed<f16>(q, ldq, queries, d, k, keys, s, lanes, ahead);
}
void row_accumulate(DType t, float* o, int64_t ldo, int queries, int64_t e, const void* const* v, int keys,
                    const float* p, int lanes, int64_t ahead) {
  if (t == DType::f32) return row_accumulate_typed<float>(o, ldo, queries, e, v, keys, p, lanes, ahead);
  if (t == DType::bf16) return row_accumulate_typed<bf16>(o, ldo, queries, e, v, keys, p, lanes, ahead);
  row_accumulate_typed<f16>(o, ldo, queries, e, v, keys, p, lanes, ahead);
}

// ---- softmax
// --------------------------------------------------------------------------------------------------------
void score_terms(const ScoreTerms& a) {
  const V scale = V::set1(a.scale);
  const V cap = V::set1(a.cap), to_cap = V::set1(a.cap > 0 ? a.scale / a.cap : 0.0f);
  for (int j = 0; j < a.keys; ++j)
    for (int l = 0; l < a.lanes; l += V::N) {
      float* p = a.s + int64_t{j} * a.lanes + l;
      V x = V::load(p);
      x = a.cap > 0 ? tanh(x * to_cap) * cap : x * scale;
      if (a.slope) x = x - V::load(a.slope + l) * abs(V::load(a.position + l) - V::set1(a.key[j]));
      if (a.add) x = x + V::load(a.add + int64_t{j} * a.lanes + l);
      V::store(p, x);
    }
}

// The rounding of a reference point m is at most half a unit in its last place, and cancels from the weights
// while 2^unit is finite. Beyond 2^20 (a mask of finite but huge numbers) the products are rounded before m
// is taken off, as m itself was: the largest is then exactly 0 and none is above.
inline bool is_far(V m) { return V::any_less(V::set1(0x1p20f), abs(m)); }

// Groups of NG vectors of lanes: enough independent exponentials to fill the pipes, few enough registers.
// `Later` is V, named so that only targets with pairs need V::pair.
template <int NG, bool Pairs, bool Entropy, class Later = V>
inline void softmax_group(SoftmaxStep& a, int first) {
  const V minus_inf = V::set1(-__builtin_inff());
  const V c = V::set1(a.to_log2);
  V mx[NG];
#pragma GCC unroll 4
  for (int g = 0; g < NG; ++g) mx[g] = minus_inf;
  if (a.mask) {
    for (int j = 0; j < a.keys; ++j)
#pragma GCC unroll 4
      for (int g = 0; g < NG; ++g) {
        float* p = a.s + int64_t{j} * a.lanes + first + g * V::N;
        const V x = V::keep(a.mask[j] >> (first + g * V::N), V::load(p), minus_inf);
        V::store(p, x);
        mx[g] = max(x, mx[g]);
      }
  } else {
    for (int j = 0; j < a.keys; ++j)
#pragma GCC unroll 4
      for (int g = 0; g < NG; ++g) mx[g] = max(V::load(a.s + int64_t{j} * a.lanes + first + g * V::N), mx[g]);
  }
  V m[NG], sum[NG], ent[NG], alpha[NG];
#pragma GCC unroll 4
  for (int g = 0; g < NG; ++g) {
    const int l = first + g * V::N;
    const V old = V::load(a.m + l), seen = mx[g] * c;
    // The reference point moves only when the maximum has grown by more than 2^8: weights stay below 2^8,
    // which costs f32 sums nothing, and most steps leave earlier outputs as they are.
    const V now = select_less(old + V::set1(8.0f), seen, seen, old);
    if (a.top) V::store(a.top + l, max(seen, V::load(a.top + l)));
    // A lane that has seen nothing keeps m = -inf; 0 stands in for it so that -inf - m stays -inf.
    const V safe = select_less(minus_inf, now, now, V::zero());
    alpha[g] = exp2_nonpositive(old - safe);
    V::store(a.m + l, now);
    if (V::any_less(old, now)) a.moved = true;
    if constexpr (Entropy) {  // log2(p) is counted from the new maximum on
      const V t = V::load(a.t + l), sum_l = V::load(a.l + l);
      const V shift = select_less(minus_inf, old, old - safe, V::zero());
      V::store(a.t + l, fma(sum_l, shift, t) * alpha[g]);
      ent[g] = V::zero();
    }
    V::store(a.alpha + l, alpha[g]);
    m[g] = safe;
    sum[g] = V::zero();
  }
  const auto exponential = [&]<bool Far>(int j, int g) {
    const V s = V::load(a.s + int64_t{j} * a.lanes + first + g * V::N);
    const V x = Far ? rounded(s * c) - m[g] : fms(s, c, m[g]);
    const V p = exp2_nonpositive(x);
    sum[g] = sum[g] + p;
    // 0 * -inf is a hidden pair's contribution: none.
    if constexpr (Entropy) ent[g] = ent[g] + select_less(V::zero(), p, p * x, p);
    return p;
  };
  const auto weigh = [&]<bool Far>() {
    if constexpr (Pairs) {
      for (int j = 0; j < a.keys; j += 2)
#pragma GCC unroll 4
        for (int g = 0; g < NG; ++g) {
          const V lo = exponential.template operator()<Far>(j, g);
          const V hi = j + 1 < a.keys ? exponential.template operator()<Far>(j + 1, g) : V::zero();
          V::store(a.s + int64_t{j / 2} * a.lanes + first + g * V::N, Later::pair(lo, hi));
        }
    } else {
      for (int j = 0; j < a.keys; ++j)
#pragma GCC unroll 4
        for (int g = 0; g < NG; ++g)
          V::store(a.s + int64_t{j} * a.lanes + first + g * V::N, exponential.template operator()<Far>(j, g));
    }
  };
  bool far = false;
  for (int g = 0; g < NG; ++g) far = far || is_far(m[g]);
  if (__builtin_expect(far, 0))
    weigh.template operator()<true>();
  else
    weigh.template operator()<false>();
#pragma GCC unroll 4
  for (int g = 0; g < NG; ++g) {
    const int l = first + g * V::N;
    V::store(a.l + l, fma(V::load(a.l + l), alpha[g], sum[g]));
    if constexpr (Entropy) V::store(a.t + l, V::load(a.t + l) + ent[g]);
  }
}

template <bool Pairs, bool Entropy>
inline void softmax_of(SoftmaxStep& a) {
  a.moved = false;
  // With pairs, row j / 2 is written while row j is read: groups must go one after the other over all keys,
  // and they do, as each group owns its lanes.
  int l = 0;
  if constexpr (V::kVectors >= 4)
    for (; l + 4 * V::N <= a.lanes; l += 4 * V::N) softmax_group<4, Pairs, Entropy>(a, l);
  for (; l + 2 * V::N <= a.lanes; l += 2 * V::N) softmax_group<2, Pairs, Entropy>(a, l);
  for (; l < a.lanes; l += V::N) softmax_group<1, Pairs, Entropy>(a, l);
}

void softmax(SoftmaxStep& a) { a.t ? softmax_of<false, true>(a) : softmax_of<false, false>(a); }

void mass(const SoftmaxStep& a, const float* weight, float* sums) {
  const V minus_inf = V::set1(-__builtin_inff());
  const V c = V::set1(a.to_log2);
  bool far = false;
  for (int l = 0; l < a.lanes; l += V::N) far = far || is_far(V::load(a.m + l));
  for (int j = 0; j < a.keys; ++j) {
    V sum = V::zero();
    for (int l = 0; l < a.lanes; l += V::N) {
      V x = V::load(a.s + int64_t{j} * a.lanes + l);
      if (a.mask) x = V::keep(a.mask[j] >> l, x, minus_inf);
      const V m = V::load(a.m + l);
      const V p = exp2_nonpositive(far ? rounded(x * c) - m : fms(x, c, m)) * V::load(weight + l);
      // Unused lanes have weight 0 but may hold anything; m = -inf marks lanes that see nothing.
      sum = sum + select_less(minus_inf, m, p, V::zero());
    }
    float total[4];
    V::sum4(sum, V::zero(), V::zero(), V::zero(), total);
    sums[j] = total[0];
  }
}

void rescale(float* o, int64_t e, int lanes, const float* alpha) {
  for (int l = 0; l < lanes; l += V::N) {
    const V a = V::load(alpha + l);
    for (int64_t i = 0; i < e; ++i) V::store(o + i * lanes + l, V::load(o + i * lanes + l) * a);
  }
}

// ---- moving data
// ----------------------------------------------------------------------------------------------------
template <class T>
inline void pack_columns_typed(const void* const* rows, int n, int64_t d, int lanes, float* out) {
  int l = 0;
  for (; l + V::N <= lanes; l += V::N) {
    const int used = min_int(n - l, V::N);
    int64_t i = 0;
    for (; i + V::N <= d; i += V::N) {
      V x[V::N];
#pragma GCC unroll 16
      for (int r = 0; r < V::N; ++r)
        x[r] = r < used ? V::load(static_cast<const T*>(rows[l + r]) + i) : V::zero();
      V::transpose(x);
#pragma GCC unroll 16
      for (int r = 0; r < V::N; ++r) V::store(out + (i + r) * lanes + l, x[r]);
    }
    for (; i < d; ++i)
      for (int r = 0; r < V::N; ++r)
        out[i * lanes + l + r] = r < used ? scalar(static_cast<const T*>(rows[l + r]) + i) : 0.0f;
  }
}
void pack_columns(DType t, const void* const* rows, int n, int64_t d, int lanes, float* out) {
  if (t == DType::f32) return pack_columns_typed<float>(rows, n, d, lanes, out);
  if (t == DType::bf16) return pack_columns_typed<bf16>(rows, n, d, lanes, out);
  pack_columns_typed<f16>(rows, n, d, lanes, out);
}

template <class T>
inline void unpack_columns_typed(const float* o, int lanes, int n, int64_t e, const float* weight,
                                 void* const* rows) {
  for (int l = 0; l < n; l += V::N) {
    const int used = min_int(n - l, V::N);
    const V w = V::load(weight + l);
    int64_t i = 0;
    for (; i + V::N <= e; i += V::N) {
      V x[V::N];
#pragma GCC unroll 16
      for (int r = 0; r < V::N; ++r) x[r] = V::load(o + (i + r) * lanes + l) * w;
      V::transpose(x);
#pragma GCC unroll 16
      for (int r = 0; r < V::N; ++r)
        if (r < used) V::store(static_cast<T*>(rows[l + r]) + i, x[r]);
    }
    for (; i < e; ++i)
      for (int r = 0; r < used; ++r)
        put(static_cast<T*>(rows[l + r]) + i, o[i * lanes + l + r] * weight[l + r]);
  }
}
void unpack_columns(DType t, const float* o, int lanes, int n, int64_t e, const float* weight,
                    void* const* rows) {
  if (t == DType::f32) return unpack_columns_typed<float>(o, lanes, n, e, weight, rows);
  if (t == DType::bf16) return unpack_columns_typed<bf16>(o, lanes, n, e, weight, rows);
  unpack_columns_typed<f16>(o, lanes, n, e, weight, rows);
}

template <class T>
inline void widen_typed(const void* const* rows, int n, int64_t d, float* out, int64_t ld) {
  for (int j = 0; j < n; ++j) {
    const T* row = static_cast<const T*>(rows[j]);
    int64_t i = 0;
    for (; i + V::N <= d; i += V::N) V::store(out + j * ld + i, V::load(row + i));
    for (; i < d; ++i) out[j * ld + i] = scalar(row + i);
  }
}
void widen(DType t, const void* const* rows, int n, int64_t d, float* out, int64_t ld) {
  if (t == DType::f32) return widen_typed<float>(rows, n, d, out, ld);
  if (t == DType::bf16) return widen_typed<bf16>(rows, n, d, out, ld);
  widen_typed<f16>(rows, n, d, out, ld);
}

void range_bits(const int32_t* x, int keys, const int32_t* low, const int32_t* high, int lanes,
                uint64_t* bits) {
  for (int j = 0; j < keys; ++j) bits[j] = V::in_range(x[j], low, high, lanes);
}

bool finite(DType t, const void* const* rows, int n, int64_t d) {
  // All exponent bits set means inf or NaN; the loops are plain so that the compiler vectorises them.
  uint32_t bad = 0;
  for (int j = 0; j < n; ++j) {
    if (t == DType::f32) {
      const float* p = static_cast<const float*>(rows[j]);
      for (int64_t i = 0; i < d; ++i) {
        uint32_t u;
        __builtin_memcpy(&u, p + i, 4);
        bad |= (u & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
      }
    } else {
      const uint32_t exponent = t == DType::bf16 ? 0x7f80u : 0x7c00u;
      const uint16_t* p = static_cast<const uint16_t*>(rows[j]);
      for (int64_t i = 0; i < d; ++i) bad |= (p[i] & exponent) == exponent ? 1u : 0u;
    }
  }
  return bad == 0;
}

// ---- relative embeddings
// --------------------------------------------------------------------------------------------
// A vector of lanes wants lane i from row N - 1 - i further on than lane N - 1: rows move by the bits of that
// number, one blend a row and bit. 2 N - 1 rows become N (or N become 2 N - 1): for N = 16, 75 blends for 256
// elements.
template <int Bit>
constexpr uint64_t lanes_moved() {
  uint64_t bits = 0;
  for (int i = 0; i < V::N; ++i)
    if ((V::N - 1 - i) & Bit) bits |= uint64_t{1} << i;
  return bits;
}
template <int Bit>
inline __attribute__((always_inline)) void align_rows(V* x, int rows) {
#pragma GCC unroll 32
  for (int r = 0; r < rows; ++r) x[r] = V::keep(lanes_moved<Bit>(), x[r + Bit], x[r]);
}
template <int Bit>
inline __attribute__((always_inline)) void shear_rows(V* x, int rows) {
#pragma GCC unroll 32
  for (int r = rows - 1; r >= 0; --r) {
    const V from = r >= Bit ? x[r - Bit] : V::zero();
    x[r] = V::keep(lanes_moved<Bit>(), from, x[r]);
  }
}
void gather_diagonals(const float* g, int lanes, int keys, float* s) {
  constexpr int N = V::N;
  for (int l = 0; l < lanes; l += N)
    for (int j = 0; j < keys; j += N) {
      const float* from = g + int64_t{j + lanes - l - N} * lanes + l;
      V x[2 * N - 1];
#pragma GCC unroll 32
      for (int r = 0; r < 2 * N - 1; ++r) x[r] = V::load(from + r * lanes);
      if constexpr (N > 8) align_rows<8>(x, 2 * N - 1 - 8);
      if constexpr (N > 4) align_rows<4>(x, N + 3);
      align_rows<2>(x, N + 1);
      align_rows<1>(x, N);
      float* to = s + int64_t{j} * lanes + l;
      const int used = min_int(N, keys - j);
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r)
        if (r < used) V::store(to + r * lanes, V::load(to + r * lanes) + x[r]);
    }
}
void spread_diagonals(const float* p, int lanes, int keys, float* g) {
  constexpr int N = V::N;
  const int distances = lanes + keys - 1;
  for (int i = 0; i < distances * lanes; i += N) V::store(g + i, V::zero());
  for (int l = 0; l < lanes; l += N)
    for (int j = 0; j < keys; j += N) {
      const float* from = p + int64_t{j} * lanes + l;
      const int used = min_int(N, keys - j);
      V x[2 * N - 1];
#pragma GCC unroll 32
      for (int r = 0; r < 2 * N - 1; ++r) x[r] = r < N && r < used ? V::load(from + r * lanes) : V::zero();
      shear_rows<1>(x, N + 1);
      shear_rows<2>(x, N + 3);
      if constexpr (N > 4) shear_rows<4>(x, N + 7 < 2 * N - 1 ? N + 7 : 2 * N - 1);
      if constexpr (N > 8) shear_rows<8>(x, 2 * N - 1);
      float* to = g + int64_t{j + lanes - l - N} * lanes + l;
      const int rows = min_int(2 * N - 1, distances - (j + lanes - l - N));
#pragma GCC unroll 32
      for (int r = 0; r < 2 * N - 1; ++r)
        if (r < rows) V::store(to + r * lanes, V::load(to + r * lanes) + x[r]);
    }
}
