// Transforms with a line per lane and the pointwise work on spectra, compiled once per instruction set; see
// isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/fft/fft_lines.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

using Kind = Fft2Args::Kind;

// An element of a group of lines is two vectors: the real and the imaginary parts of all lanes.
constexpr int64_t kElement = 2 * kLanes;

ATTNBENCH_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- butterflies: forward, in place; (re, im) swapped gives the inverse
// ------------------------------------------

ATTNBENCH_INLINE void dft4(F& r0, F& i0, F& r1, F& i1, F& r2, F& i2, F& r3, F& i3) {
  const F s0r = r0 + r2, s0i = i0 + i2, d0r = r0 - r2, d0i = i0 - i2;
  const F s1r = r1 + r3, s1i = i1 + i3, d1r = r1 - r3, d1i = i1 - i3;
  r0 = s0r + s1r, i0 = s0i + s1i;
  r2 = s0r - s1r, i2 = s0i - s1i;
  r1 = d0r + d1i, i1 = d0i - d1r;
  r3 = d0r - d1i, i3 = d0i + d1r;
}

template <int R>
ATTNBENCH_INLINE void dft(F* r, F* i, const F* c, const F* s) {
  if constexpr (R == 2) {
    const F ar = r[0], ai = i[0];
    r[0] = ar + r[1], i[0] = ai + i[1];
    r[1] = ar - r[1], i[1] = ai - i[1];
  } else if constexpr (R == 4) {
    dft4(r[0], i[0], r[1], i[1], r[2], i[2], r[3], i[3]);
  } else if constexpr (R == 8) {
    dft4(r[0], i[0], r[2], i[2], r[4], i[4], r[6], i[6]);
    dft4(r[1], i[1], r[3], i[3], r[5], i[5], r[7], i[7]);
    const F half = splat(0.70710678f);
    const F o1r = (r[3] + i[3]) * half, o1i = (i[3] - r[3]) * half;  // times (1 - i) / sqrt 2
    const F o2r = i[5], o2i = -r[5];                                 // times -i
    const F o3r = (i[7] - r[7]) * half, o3i = -(r[7] + i[7]) * half;
    const F o0r = r[1], o0i = i[1];
    const F e1r = r[2], e1i = i[2], e2r = r[4], e2i = i[4], e3r = r[6], e3i = i[6];
    r[4] = r[0] - o0r, i[4] = i[0] - o0i;
    r[0] = r[0] + o0r, i[0] = i[0] + o0i;
    r[1] = e1r + o1r, i[1] = e1i + o1i;
    r[5] = e1r - o1r, i[5] = e1i - o1i;
    r[2] = e2r + o2r, i[2] = e2i + o2i;
    r[6] = e2r - o2r, i[6] = e2i - o2i;
    r[3] = e3r + o3r, i[3] = e3i + o3i;
    r[7] = e3r - o3r, i[7] = e3i - o3i;
  } else {
    // Odd: inputs j and R - j meet in a sum (cosines) and a difference (sines).
    constexpr int kHalf = (R - 1) / 2;
    F tr[kHalf], ti[kHalf], ur[kHalf], ui[kHalf];
    const F r0 = r[0], i0 = i[0];
#pragma GCC unroll 8
    for (int j = 1; j <= kHalf; ++j) {
      tr[j - 1] = r[j] + r[R - j], ti[j - 1] = i[j] + i[R - j];
      ur[j - 1] = r[j] - r[R - j], ui[j - 1] = i[j] - i[R - j];
      r[0] += tr[j - 1], i[0] += ti[j - 1];
    }
#pragma GCC unroll 8
    for (int k = 1; k <= kHalf; ++k) {
      F cr = r0, ci = i0, sr{}, si{};
#pragma GCC unroll 8
      for (int j = 1; j <= kHalf; ++j) {
        cr += c[j * k % R] * tr[j - 1], ci += c[j * k % R] * ti[j - 1];
        sr += s[j * k % R] * ur[j - 1], si += s[j * k % R] * ui[j - 1];
      }
      r[k] = cr + si, i[k] = ci - sr;
      r[R - k] = cr - si, i[R - k] = ci + sr;
    }
  }
}

/// y[q + s (R p + k)] = w^(p k) DFT_R(x[q + s (p + k m)])_k. `re` and `im` are the offsets of the two parts
/// in an element; `step` is the distance of the elements of x.
template <int R>
void pass(const FftStage& t, const float* x, int64_t step, float* y, int64_t re, int64_t im) {
  F c[R], s[R];
  if constexpr (R % 2 == 1)
    for (int j = 0; j < R; ++j) c[j] = splat(t.butterfly[2 * j]), s[j] = splat(t.butterfly[2 * j + 1]);
  for (int64_t p = 0; p < t.m; ++p) {
    const float* w = t.twiddles + p * (R - 1) * 2;
    for (int64_t q = 0; q < t.s; ++q) {
      F r[R], i[R];
#pragma GCC unroll 13
      for (int k = 0; k < R; ++k) {
        const float* from = x + (q + t.s * (p + k * t.m)) * step;
        r[k] = load(from + re), i[k] = load(from + im);
      }
      dft<R>(r, i, c, s);
      float* to = y + (q + t.s * R * p) * kElement;
      store(to + re, r[0]), store(to + im, i[0]);
#pragma GCC unroll 13
      for (int k = 1; k < R; ++k) {
        to += t.s * kElement;
        if (p == 0) {
          store(to + re, r[k]), store(to + im, i[k]);
        } else {
          const F wr = splat(w[2 * k - 2]), wi = splat(w[2 * k - 1]);
          store(to + re, r[k] * wr - i[k] * wi), store(to + im, r[k] * wi + i[k] * wr);
        }
      }
    }
  }
}

/// Transforms the lines at x (elements `step` apart), through `a` and `b`; returns which of them, or x, holds
/// the result, elements kElement apart (x: as given).
const float* transform(const FftLine& line, bool inverse, const float* x, int64_t step, float* a, float* b) {
  const int64_t re = inverse ? kLanes : 0, im = inverse ? 0 : kLanes;
  for (int i = 0; i < line.stages; ++i) {
    float* y = i % 2 == 0 ? a : b;
    const FftStage& t = line.stage[i];
    switch (t.radix) {
      case 2:
        pass<2>(t, x, step, y, re, im);
        break;
      case 3:
        pass<3>(t, x, step, y, re, im);
        break;
      case 4:
        pass<4>(t, x, step, y, re, im);
        break;
      case 5:
        pass<5>(t, x, step, y, re, im);
        break;
      case 7:
        pass<7>(t, x, step, y, re, im);
        break;
      case 8:
        pass<8>(t, x, step, y, re, im);
        break;
      case 11:
        pass<11>(t, x, step, y, re, im);
        break;
      default:
        pass<13>(t, x, step, y, re, im);
    }
    x = y;
    step = kElement;
  }
  return x;
}

// ---- between rows in memory and lanes
// ----------------------------------------------------------------------------

ATTNBENCH_INLINE F load_some(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : n > 0 ? load_part(p, n) : F{};
}
ATTNBENCH_INLINE void store_some(float* p, F v, int64_t n) {
  if (n >= kLanes)
    store(p, v);
  else if (n > 0)
    store_part(p, v, n);
}

/// (re, im) vectors <-> the interleaved 2 kLanes floats.
ATTNBENCH_INLINE void interleave(F& a, F& b) {
  I low, high;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    low[l] = l / 2 + (l & 1) * kLanes;
    high[l] = (l + kLanes) / 2 + (l & 1) * kLanes;
  }
  const F x = a, y = b;
  a = __builtin_shuffle(x, y, low);
  b = __builtin_shuffle(x, y, high);
}
ATTNBENCH_INLINE void separate(F& a, F& b) {
  I even, odd;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    even[l] = 2 * l;
    odd[l] = 2 * l + 1;
  }
  const F x = a, y = b;
  a = __builtin_shuffle(x, y, even);
  b = __builtin_shuffle(x, y, odd);
}

/// Columns [j, j + kLanes) of `rows` real rows become kLanes elements' parts at `to`.
void real_in(const float* x, int64_t row, int64_t rows, int64_t left, float* to) {
  F v[kLanes];
  if (rows >= kLanes && left >= kLanes) {
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) v[l] = load(x + l * row);
  } else {
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) v[l] = l < rows ? load_some(x + l * row, left) : F{};
  }
  transpose_lanes(v);
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) store(to + l * kElement, v[l]);
}

void real_out(const float* from, float scale, float* y, int64_t row, int64_t rows, int64_t left) {
  F v[kLanes];
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) v[l] = load(from + l * kElement) * scale;
  transpose_lanes(v);
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l)
    if (l < rows) store_some(y + l * row, v[l], left);
}

/// One part of kLanes elements, as computed by part(element), becomes that part of rows' blocks of the middle
/// layout.
template <class Part>
ATTNBENCH_INLINE void middle_out(const Part& part, float* to, int64_t row, int64_t rows) {
  F v[kLanes];
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) v[l] = part(l);
  transpose_lanes(v);
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l)
    if (l < rows) store(to + l * row, v[l]);
}

/// The reverse: lanes become rows.
ATTNBENCH_INLINE void middle_in(const float* from, int64_t row, int64_t rows, F* v) {
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) v[l] = l < rows ? load(from + l * row) : F{};
  transpose_lanes(v);
}

// ---- row passes
// --------------------------------------------------------------------------------------------------

/// Two sets of kLanes real rows, x1 and x2, go through one complex transform Z of x1 + i x2:
/// X1[k] = (Z[k] + conj Z[W-k]) / 2, X2[k] = (Z[k] - conj Z[W-k]) / 2i. The halves are left to the scale.
void rows_forward(const FftGrid& g, const float* x, float* middle, int64_t middle_row, int64_t first,
                  float* a, float* b, float* c) {
  const int64_t w = g.width, rows1 = least(kLanes, g.height - first), rows2 = g.height - first - kLanes;
  for (int64_t j = 0; j < w; j += kLanes) {
    real_in(x + first * w + j, w, rows1, w - j, a + j * kElement);
    real_in(x + (first + kLanes) * w + j, w, least(kLanes, rows2), w - j, a + j * kElement + kLanes);
  }
  const float* z = transform(g.row, false, a, kElement, b, c);
  for (int64_t k0 = 0; k0 < g.columns; k0 += kLanes) {
    float* to1 = middle + first * middle_row + k0 * 2;
    float* to2 = to1 + kLanes * middle_row;
    const auto at = [&](int l) __attribute__((always_inline)) { return z + least(k0 + l, w - 1) * kElement; };
    const auto mirror = [&](int l) __attribute__((always_inline)) {
      const int64_t k = k0 + l;
      return z + (k == 0 || k >= w ? 0 : w - k) * kElement;
    };
    middle_out(
        [&](int l) __attribute__((always_inline)) { return load(at(l)) + load(mirror(l)); }, to1, middle_row,
        rows1);
    middle_out(
        [&](int l) __attribute__((always_inline)) { return load(at(l) + kLanes) - load(mirror(l) + kLanes); },
        to1 + kLanes, middle_row, rows1);
    if (rows2 <= 0) continue;
    middle_out(
        [&](int l) __attribute__((always_inline)) { return load(at(l) + kLanes) + load(mirror(l) + kLanes); },
        to2, middle_row, rows2);
    middle_out(
        [&](int l) __attribute__((always_inline)) { return load(mirror(l)) - load(at(l)); }, to2 + kLanes,
        middle_row, rows2);
  }
}

/// Z[k] = X1[k] + i X2[k] and Z[W-k] = conj X1[k] + i conj X2[k]; like FFTW, the imaginary parts at k = 0 and
/// W / 2, which are 0 for spectra of real rows, are not used.
void rows_inverse(const FftGrid& g, const float* middle, int64_t middle_row, float* y, int64_t first,
                  float scale, float* a, float* b, float* c) {
  const int64_t w = g.width, rows1 = least(kLanes, g.height - first), rows2 = g.height - first - kLanes;
  for (int64_t k0 = 0; k0 < g.columns; k0 += kLanes) {
    const float* from1 = middle + first * middle_row + k0 * 2;
    const float* from2 = from1 + kLanes * middle_row;
    F r1[kLanes], i1[kLanes], r2[kLanes], i2[kLanes];
    middle_in(from1, middle_row, rows1, r1);
    middle_in(from1 + kLanes, middle_row, rows1, i1);
    middle_in(from2, middle_row, rows2, r2);
    middle_in(from2 + kLanes, middle_row, rows2, i2);
    for (int l = 0; l < kLanes && k0 + l < g.columns; ++l) {
      const int64_t k = k0 + l;
      float* to = a + k * kElement;
      if (k == 0 || 2 * k == w) {
        store(to, r1[l]), store(to + kLanes, r2[l]);
        continue;
      }
      store(to, r1[l] - i2[l]), store(to + kLanes, i1[l] + r2[l]);
      to = a + (w - k) * kElement;
      store(to, r1[l] + i2[l]), store(to + kLanes, r2[l] - i1[l]);
    }
  }
  const float* z = transform(g.row, true, a, kElement, b, c);
  for (int64_t j = 0; j < w; j += kLanes) {
    real_out(z + j * kElement, scale, y + first * w + j, w, rows1, w - j);
    if (rows2 > 0) real_out(z + j * kElement + kLanes, scale, y + (first + kLanes) * w + j, w, rows2, w - j);
  }
}

void rows_complex(const FftGrid& g, bool inverse, const float* x, float* middle, int64_t middle_row,
                  int64_t first, float* a, float* b, float* c) {
  const int64_t w = g.width, rows = least(kLanes, g.height - first);
  for (int64_t j = 0; j < w; j += kLanes) {
    F r[kLanes], i[kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) {
      const float* from = x + ((first + l) * w + j) * 2;
      r[l] = l < rows ? load_some(from, 2 * (w - j)) : F{};
      i[l] = l < rows ? load_some(from + kLanes, 2 * (w - j) - kLanes) : F{};
      separate(r[l], i[l]);
    }
    transpose_lanes(r);
    transpose_lanes(i);
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) {
      store(a + (j + l) * kElement, r[l]);
      store(a + (j + l) * kElement + kLanes, i[l]);
    }
  }
  const float* z = transform(g.row, inverse, a, kElement, b, c);
  for (int64_t k = 0; k < w; k += kLanes) {
    const auto at = [&](int l) __attribute__((always_inline)) { return z + (k + l) * kElement; };
    float* to = middle + first * middle_row + k * 2;
    middle_out(
        [&](int l) __attribute__((always_inline)) { return load(at(l)); }, to, middle_row, rows);
    middle_out(
        [&](int l) __attribute__((always_inline)) { return load(at(l) + kLanes); }, to + kLanes, middle_row,
        rows);
  }
}

/// Lines of up to `longest` elements, rounded up to whole vectors, in each of three buffers.
int64_t buffer_floats(const FftGrid& g) {
  const int64_t longest = g.width > g.height ? g.width : g.height;
  return (longest + kLanes) / kLanes * kLanes * kElement + kElement;
}

}  // namespace

int64_t fft_lanes() { return kLanes; }

void fft_rows(const FftGrid& g, Kind kind, const float* x, float* y, float* middle, int64_t middle_row,
              int64_t group, float scale, float* scratch) {
  float *a = scratch, *b = a + buffer_floats(g), *c = b + buffer_floats(g);
  if (kind == Kind::real_to_half)
    rows_forward(g, x, middle, middle_row, group * 2 * kLanes, a, b, c);
  else if (kind == Kind::half_to_real)
    rows_inverse(g, middle, middle_row, y, group * 2 * kLanes, scale, a, b, c);
  else
    rows_complex(g, kind == Kind::complex_inverse, x, middle, middle_row, group * kLanes, a, b, c);
}

void fft_columns(const FftGrid& g, Kind kind, const float* x, float* y, float* middle, int64_t middle_row,
                 int64_t block, float scale, float* scratch) {
  float *a = scratch, *b = a + buffer_floats(g);
  const int64_t row = 2 * g.columns, left = row - block * kElement;
  float* own = middle + block * kElement;
  const bool inverse = kind == Kind::half_to_real || kind == Kind::complex_inverse;
  if (kind == Kind::half_to_real) {
    float* c = b + buffer_floats(g);
    for (int64_t h = 0; h < g.height; ++h) {
      const float* from = x + h * row + block * kElement;
      F r = load_some(from, left), i = load_some(from + kLanes, left - kLanes);
      separate(r, i);
      store(a + h * kElement, r), store(a + h * kElement + kLanes, i);
    }
    const float* z = transform(g.column, inverse, a, kElement, b, c);
    for (int64_t h = 0; h < g.height; ++h) {
      store(own + h * middle_row, load(z + h * kElement));
      store(own + h * middle_row + kLanes, load(z + h * kElement + kLanes));
    }
    return;
  }
  // Real rows left a factor of 2, see rows_forward.
  const F factor = splat(kind == Kind::real_to_half ? 0.5f * scale : scale);
  const float* z = transform(g.column, inverse, own, middle_row, a, b);
  const int64_t step = g.column.stages == 0 ? middle_row : kElement;
  for (int64_t h = 0; h < g.height; ++h) {
    F r = load(z + h * step) * factor, i = load(z + h * step + kLanes) * factor;
    interleave(r, i);
    float* to = y + h * row + block * kElement;
    store_some(to, r, left);
    store_some(to + kLanes, i, left - kLanes);
  }
}

void scale_run(float* x, int64_t n, float s) {
  for (int64_t i = 0; i < n; ++i) x[i] *= s;
}

void mask_run(float* x, const float* mask, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) * load(mask + i));
  if (n > i) store_part(x + i, load_part(x + i, n - i) * load_part(mask + i, n - i), n - i);
}

}  // namespace attnbench::ATTNBENCH_ISA
