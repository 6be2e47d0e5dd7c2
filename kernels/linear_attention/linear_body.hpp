// Linear attention on tiles, compiled once per instruction set; see isa.hpp.
#include "kernels/gemm/tile_body.hpp"
#include "kernels/linear_attention/linear_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

ATTNBENCH_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

/// A row-major f32 view of rows: the tensor itself or its widened copy.
struct Rows {
  const float* data;
  int64_t stride;
};

template <class T>
void widen_row(const T* x, float* y, int64_t n, float scale) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) * scale);
  if (n > i) store_part(y + i, load_part(x + i, n - i) * scale, n - i);
}
template <class T>
void narrow_row(const float* x, T* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  if (n > i) store_part(y + i, load_part(x + i, n - i), n - i);
}

template <class T>
Rows rows_of(const void* base, int64_t stride, int64_t first, int64_t rows, int64_t n, float* copy) {
  const T* x = static_cast<const T*>(base) + first * stride;
  if constexpr (sizeof(T) == 4) {
    return {reinterpret_cast<const float*>(x), stride};
  } else {
    for (int64_t r = 0; r < rows; ++r) widen_row(x + r * stride, copy + r * n, n, 1.0f);
    return {copy, n};
  }
}

/// The parts of a thread's workspace, in linear_workspace()'s order.
struct Work {
  float *keys, *queries, *values, *scores, *sums;
  int64_t keys_row;

  explicit Work(const LinearHead& h) {
    const auto up = [](int64_t n) { return (n + 15) / 16 * 16; };
    keys = h.work;
    keys_row = h.block + 16;  // a power-of-two row would map a column of the transpose to few cache sets
    queries = keys + up(h.d * keys_row);
    values = queries + up(kLinearRows * h.d);
    scores = values + up(h.block * h.e);
    sums = scores + up(kLinearRows * h.block);
  }
};

/// keys[d][s] = K[first + s][d].
template <class T>
void transpose_keys(const LinearHead& h, const Work& w, int64_t first, int64_t rows) {
  const T* k = static_cast<const T*>(h.k) + first * h.k_row;
  for (int64_t s0 = 0; s0 < rows; s0 += kLanes) {
    const int64_t count = min_of(kLanes, rows - s0);
    for (int64_t d0 = 0; d0 < h.d; d0 += kLanes) {
      const int64_t width = min_of(kLanes, h.d - d0);
      const T* from = k + s0 * h.k_row + d0;
      F square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i >= count)
          square[i] = F{};
        else if (width == kLanes)
          square[i] = load(from + i * h.k_row);
        else
          square[i] = load_part(from + i * h.k_row, width);
      }
      transpose_lanes(square);
      // Rows of keys have kLanes floats to spare, so whole vectors are stored.
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i >= width) break;
        store(w.keys + (d0 + i) * w.keys_row + s0, square[i]);
      }
    }
  }
}

/// o rows from `sums` when storage is narrower than f32.
template <class T>
void store_rows(const LinearHead& h, const float* sums, int64_t first, int64_t rows) {
  if constexpr (sizeof(T) != 4)
    for (int64_t r = 0; r < rows; ++r)
      narrow_row(sums + r * h.e, static_cast<T*>(h.o) + (first + r) * h.o_row, h.e);
}

/// Where rows from `first` on are summed: o itself for f32, else `sums`.
template <class T>
ATTNBENCH_INLINE float* target(const LinearHead& h, float* sums, int64_t first, int64_t& stride) {
  if constexpr (sizeof(T) == 4) {
    stride = h.o_row;
    return static_cast<float*>(h.o) + first * h.o_row;
  } else {
    stride = h.e;
    return sums;
  }
}

/// queries[r] = scale lambda^(power + r) q[first + r].
template <class T>
void weigh_queries(const LinearHead& h, const Work& w, int64_t first, int64_t rows, int64_t power,
                   float scale) {
  for (int64_t r = 0; r < rows; ++r)
    widen_row(static_cast<const T*>(h.q) + (first + r) * h.q_row, w.queries + r * h.d, h.d,
              h.causal ? scale * h.power(power + r) : scale);
}

template <class T>
void intra(const LinearHead& h, const Work& w, int64_t first, int64_t rows) {
  transpose_keys<T>(h, w, first, rows);
  const Rows v = rows_of<T>(h.v, h.v_row, first, rows, h.e, w.values);
  for (int64_t r0 = 0; r0 < rows; r0 += kLinearRows) {
    const int64_t count = min_of(kLinearRows, rows - r0);
    const Rows q = rows_of<T>(h.q, h.q_row, first + r0, count, h.d, w.queries);
    tile_gemm(count, rows, h.d, q.data, q.stride, 1, w.keys, w.keys_row, w.scores, h.block, 0.0f);
    for (int64_t r = 0; r < count; ++r) {
      float* s = w.scores + r * h.block;
      const int64_t seen = r0 + r + 1;
      const float* weight = h.weights + 2 * h.block - (seen - 1);  // lambda^(seen-1-s) at s
      for (int64_t i = 0; i < seen; ++i) s[i] *= weight[i];
      for (int64_t i = seen; i < rows; ++i) s[i] = 0.0f;
    }
    int64_t stride = 0;
    float* o = target<T>(h, w.sums, first + r0, stride);
    tile_gemm(count, h.e, rows, w.scores, h.block, 1, v.data, v.stride, o, stride, 0.0f);
    if (h.state) {
      weigh_queries<T>(h, w, first + r0, count, r0 + 1, 1.0f);
      tile_gemm(count, h.e, h.d, w.queries, h.d, 1, h.state, h.state_row, o, stride, 1.0f);
    }
    store_rows<T>(h, w.sums, first + r0, count);
  }
}

template <class T>
void inter(const LinearHead& h, int64_t first, int64_t rows, float lead) {
  const Work w(h);
  for (int64_t r0 = 0; r0 < rows; r0 += kLinearRows) {
    const int64_t count = min_of(kLinearRows, rows - r0);
    int64_t stride = 0;
    float* o = target<T>(h, w.sums, first + r0, stride);
    if constexpr (sizeof(T) != 4)
      if (h.causal)
        for (int64_t r = 0; r < count; ++r)
          widen_row(static_cast<const T*>(h.o) + (first + r0 + r) * h.o_row, o + r * h.e, h.e, 1.0f);
    weigh_queries<T>(h, w, first + r0, count, r0 + 1, lead);
    tile_gemm(count, h.e, h.d, w.queries, h.d, 1, h.state, h.state_row, o, stride, h.causal ? 1.0f : 0.0f);
    store_rows<T>(h, w.sums, first + r0, count);
  }
}

/// The keys are transposed in `w` already; their weights are multiplied in here.
template <class T>
void update(const LinearHead& h, const Work& w, int64_t first, int64_t rows, bool keep) {
  if (h.log_decay != 0.0) {
    const float* weight = h.weights + 2 * h.block - (rows - 1);  // lambda^(rows-1-s) at s
    for (int64_t d = 0; d < h.d; ++d)
      for (int64_t s = 0; s < rows; ++s) w.keys[d * w.keys_row + s] *= weight[s];
  }
  const Rows v = rows_of<T>(h.v, h.v_row, first, rows, h.e, w.values);
  tile_gemm(h.d, h.e, rows, w.keys, w.keys_row, 1, v.data, v.stride, h.state, h.state_row,
            keep ? h.power(rows) : 0.0f);
}

template <class T>
void quadratic(const LinearHead& h, int64_t first, int64_t rows) {
  const Work w(h);
  int64_t stride = 0;
  float* o = target<T>(h, w.sums, first, stride);
  const int64_t last = h.causal ? first + rows : h.n;
  for (int64_t c0 = 0; c0 < last; c0 += h.block) {
    const int64_t columns = min_of(h.block, h.n - c0);
    const bool diagonal = h.causal && c0 == first;
    transpose_keys<T>(h, w, c0, columns);
    const Rows v = rows_of<T>(h.v, h.v_row, c0, columns, h.e, w.values);
    // lambda^(t - s) = lambda^(gap - block) lambda^(block + r - s): no exponent is negative.
    const double gap = static_cast<double>(first - c0 - h.block);
    const float lead = diagonal || gap == 0.0 ? 1.0f : static_cast<float>(__builtin_exp(gap * h.log_decay));
    for (int64_t r0 = 0; r0 < rows; r0 += kLinearRows) {
      const int64_t count = min_of(kLinearRows, rows - r0);
      const Rows q = rows_of<T>(h.q, h.q_row, first + r0, count, h.d, w.queries);
      tile_gemm(count, columns, h.d, q.data, q.stride, 1, w.keys, w.keys_row, w.scores, h.block, 0.0f);
      for (int64_t r = 0; r < count && h.causal; ++r) {
        float* s = w.scores + r * h.block;
        const int64_t power = diagonal ? r0 + r : h.block + r0 + r, seen = diagonal ? power + 1 : columns;
        const float* weight = h.weights + 2 * h.block - power;  // lambda^(power-s) at s
        for (int64_t i = 0; i < seen; ++i) s[i] *= weight[i] * lead;
        for (int64_t i = seen; i < columns; ++i) s[i] = 0.0f;
      }
      tile_gemm(count, h.e, columns, w.scores, h.block, 1, v.data, v.stride, o + r0 * stride, stride,
                c0 == 0 ? 0.0f : 1.0f);
    }
  }
  if (h.state) {
    const float lead = h.causal && first > 0
                           ? static_cast<float>(__builtin_exp(static_cast<double>(first) * h.log_decay))
                           : 1.0f;
    for (int64_t r0 = 0; r0 < rows; r0 += kLinearRows) {
      const int64_t count = min_of(kLinearRows, rows - r0);
      weigh_queries<T>(h, w, first + r0, count, r0 + 1, lead);
      tile_gemm(count, h.e, h.d, w.queries, h.d, 1, h.state, h.state_row, o + r0 * stride, stride, 1.0f);
    }
  }
  store_rows<T>(h, w.sums, first, rows);
}

/// Columns of the state are taken 4 vectors at a time: at D = 128 that piece is 32 KiB and stays in the first
/// cache level over all tokens.
template <class T, bool kPart, bool kNear>
void recurrent_columns(const LinearHead& h, int64_t column, int64_t part) {
  constexpr int kVectors = kPart ? 1 : 4;
  const F decay = splat(kNear ? h.loss : h.power(1));
  float q[kLanes], k[kLanes];
  for (int64_t t = 0; t < h.n; ++t) {
    const T* qt = static_cast<const T*>(h.q) + t * h.q_row;
    const T* kt = static_cast<const T*>(h.k) + t * h.k_row;
    const T* vt = static_cast<const T*>(h.v) + t * h.v_row + column;
    T* ot = static_cast<T*>(h.o) + t * h.o_row + column;
    F v[kVectors], o[kVectors] = {};
    for (int i = 0; i < kVectors; ++i) v[i] = kPart ? load_part(vt, part) : load(vt + i * kLanes);
    for (int64_t d0 = 0; d0 < h.d; d0 += kLanes) {
      const int64_t width = min_of(kLanes, h.d - d0);
      store(q, width == kLanes ? load(qt + d0) : load_part(qt + d0, width));
      store(k, width == kLanes ? load(kt + d0) : load_part(kt + d0, width));
      for (int64_t d = 0; d < width; ++d) {
        float* s = h.state + (d0 + d) * h.state_row + column;
        for (int i = 0; i < kVectors; ++i) {
          const F old = kPart ? load_part(s, part) : load(s + i * kLanes), more = splat(k[d]) * v[i];
          const F next = kNear ? old + (more - old * decay) : old * decay + more;
          if (kPart)
            store_part(s, next, part);
          else
            store(s + i * kLanes, next);
          o[i] += splat(q[d]) * next;
        }
      }
    }
    for (int i = 0; i < kVectors; ++i) {
      if (kPart)
        store_part(ot, o[i], part);
      else
        store(ot + i * kLanes, o[i]);
    }
  }
}

template <class T, bool kNear>
void recurrent_near(const LinearHead& h) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= h.e; c += 4 * kLanes) recurrent_columns<T, false, kNear>(h, c, 0);
  for (; c < h.e; c += kLanes) recurrent_columns<T, true, kNear>(h, c, min_of(h.e - c, kLanes));
}
template <class T>
void recurrent(const LinearHead& h) {
  h.loss > 0 ? recurrent_near<T, true>(h) : recurrent_near<T, false>(h);
}

}  // namespace

#define ATTNBENCH_BY_DTYPE(call)         \
  do {                                   \
    if (h.dtype == DType::f32) {         \
      using T = float;                   \
      call;                              \
    } else if (h.dtype == DType::bf16) { \
      using T = bf16;                    \
      call;                              \
    } else {                             \
      using T = f16;                     \
      call;                              \
    }                                    \
  } while (false)

void linear_intra(const LinearHead& h, int64_t first, int64_t rows) {
  const Work w(h);
  ATTNBENCH_BY_DTYPE(intra<T>(h, w, first, rows));
}
void linear_inter(const LinearHead& h, int64_t first, int64_t rows, float lead) {
  ATTNBENCH_BY_DTYPE(inter<T>(h, first, rows, lead));
}
void linear_update(const LinearHead& h, int64_t first, int64_t rows, bool keep) {
  const Work w(h);
  ATTNBENCH_BY_DTYPE(transpose_keys<T>(h, w, first, rows));
  ATTNBENCH_BY_DTYPE(update<T>(h, w, first, rows, keep));
}
void linear_block(const LinearHead& h, int64_t first, int64_t rows, bool keep) {
  const Work w(h);
  LinearHead seen = h;
  if (!keep) seen.state = nullptr;
  ATTNBENCH_BY_DTYPE(intra<T>(seen, w, first, rows));
  ATTNBENCH_BY_DTYPE(update<T>(h, w, first, rows, keep));
}
void linear_recurrent(const LinearHead& h) { ATTNBENCH_BY_DTYPE(recurrent<T>(h)); }
void linear_quadratic(const LinearHead& h, int64_t first, int64_t rows) {
  ATTNBENCH_BY_DTYPE(quadratic<T>(h, first, rows));
}

}  // namespace attnbench::ATTNBENCH_ISA
