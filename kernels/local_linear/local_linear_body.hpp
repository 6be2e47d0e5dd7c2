// Local linear attention on a tile of queries, compiled once per instruction set; see isa.hpp.
//
// The weights of the tile are computed once and kept; an iteration is two products over the keys. Sigma is
// applied around the mean of the keys, Cov p + mu (mu.p) + ridge p with Cov p = sum_j w_j (k_j.p - kbar.p)
// k_j: nothing that the paper's expansion around the origin would cancel is ever added.
#include "kernels/gemm/tile_body.hpp"
#include "kernels/local_linear/local_linear_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

ATTNBENCH_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
void widen_rows(const T* x, int64_t x_row, int64_t rows, int64_t n, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + r * n + i, load(x + r * x_row + i));
    if (n > i) store_part(to + r * n + i, load_part(x + r * x_row + i, n - i), n - i);
  }
}
template <class T>
void narrow_rows(const float* x, int64_t rows, int64_t n, T* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; ++r) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + r * to_row + i, load(x + r * n + i));
    if (n > i) store_part(to + r * to_row + i, load_part(x + r * n + i, n - i), n - i);
  }
}

/// Calls f(i, load, store) on whole vectors and one part: load(p) and store(p, v) at element i.
template <class Body>
ATTNBENCH_INLINE void each_vector(int64_t n, const Body& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    f(
        i, [](const float* p) { return load(p); }, [](float* p, F v) { store(p, v); });
  if (const int64_t rest = n - i; rest > 0)
    f(
        i, [rest](const float* p) { return load_part(p, rest); },
        [rest](float* p, F v) { store_part(p, v, rest); });
}

ATTNBENCH_INLINE D widen(F x) { return __builtin_convertvector(x, D); }
ATTNBENCH_INLINE F narrow(D x) { return __builtin_convertvector(x, F); }
ATTNBENCH_INLINE D splat_wide(double x) { return D{} + x; }

/// Products and sum in f64: whether a row rests, and 1 - mu.rho where that is small, hang on dots.
double dot(const float* a, const float* b, int64_t n) {
  D sum{};
  each_vector(n, [&](int64_t i, auto get, auto) {
    sum += __builtin_convertvector(get(a + i), D) * __builtin_convertvector(get(b + i), D);
  });
  double s = 0;
  for (int l = 0; l < kLanes; ++l) s += sum[l];
  return s;
}

/// The parts of a thread's workspace, in local_linear_workspace()'s order; [rows, d] unless said.
struct Work {
  float* weights;   ///< [chunk][rows][kLocalKeys]
  float* products;  ///< [rows][kLocalKeys]
  float *q, *kbar, *mu, *x, *r, *z, *p, *y, *diagonal;
  float* o;        ///< [rows, e]
  float* squares;  ///< [kLocalKeys, d]
  /// [rows]
  float *shift, *ridge, *guard;
  double *rz, *limit;

  explicit Work(const LocalLinearTile& t) {
    float* at = t.work;
    const auto take = [&at](int64_t n) {
      float* p = at;
      at += n;
      return p;
    };
    // Numbers of 8 bytes first: the workspace begins at a cache line.
    rz = reinterpret_cast<double*>(take(2 * t.rows)), limit = reinterpret_cast<double*>(take(2 * t.rows));
    const int64_t chunks = (t.seen + kLocalKeys - 1) / kLocalKeys;
    weights = take(chunks * t.rows * kLocalKeys), products = take(t.rows * kLocalKeys);
    for (float** v : {&q, &kbar, &mu, &x, &r, &z, &p, &y, &diagonal}) *v = take(t.rows * t.d);
    o = take(t.rows * t.e), squares = take(kLocalKeys * t.d);
    shift = take(t.rows), ridge = take(t.rows), guard = take(t.rows);
    if (!t.jacobi) z = r;
  }
};

/// Calls f(first key, keys, weights) for every chunk.
template <class Body>
ATTNBENCH_INLINE void each_chunk(const LocalLinearTile& t, const Work& w, const Body& f) {
  for (int64_t j = 0, c = 0; j < t.seen; j += kLocalKeys, ++c)
    f(j, min_of(kLocalKeys, t.seen - j), w.weights + c * t.rows * kLocalKeys);
}

/// Softmax of the tile, zero where a row sees nothing; omega, kbar, mu and the ridge.
void weigh(const LocalLinearTile& t, const Work& w) {
  each_chunk(t, w, [&](int64_t j, int64_t keys, float* weights) {
    tile_gemm(t.rows, keys, t.d, w.q, t.d, 1, t.k_transposed + j * t.d, kLocalKeys, weights, kLocalKeys,
              0.0f);
  });
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t seen = t.causal ? t.seen - (t.rows - 1 - r) : t.seen;
    float most = -__builtin_inff();
    each_chunk(t, w, [&](int64_t j, int64_t keys, float* weights) {
      float* l = weights + r * kLocalKeys;
      const int64_t n = min_of(keys, seen - j);
      if (n <= 0) return;
      each_vector(n, [&](int64_t i, auto get, auto put) { put(l + i, get(l + i) * t.scale); });
      const float top = max_of_row(l, n);
      most = most > top ? most : top;
    });
    double omega = 0;
    each_chunk(t, w, [&](int64_t j, int64_t keys, float* weights) {
      float* l = weights + r * kLocalKeys;
      const int64_t n = seen > j ? min_of(keys, seen - j) : 0;
      F sum{};
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) {
        const F e = exp(load(l + i) - most);
        store(l + i, e);
        sum += e;
      }
      omega += static_cast<double>(sum_lanes(sum));
      for (; i < n; ++i) {
        const F e = exp(splat(l[i] - most));
        l[i] = e[0];
        omega += static_cast<double>(l[i]);
      }
      for (i = n > 0 ? n : 0; i < keys; ++i) l[i] = 0.0f;
    });
    const float inverse = static_cast<float>(1.0 / omega);
    each_chunk(t, w, [&](int64_t, int64_t keys, float* weights) {
      float* l = weights + r * kLocalKeys;
      each_vector(keys, [&](int64_t i, auto get, auto put) { put(l + i, get(l + i) * inverse); });
    });
    t.omega[r] = static_cast<float>(omega);
    w.ridge[r] = t.absolute ? t.lambda * exp(splat(-most))[0] * inverse : t.lambda;
    // What is divided by omega here is not in the paper's code: p.Sigma p is smaller by its cube, or by
    // itself where the preconditioner has divided it out of p.
    w.guard[r] = 1e-10f * inverse * (t.jacobi ? 1.0f : inverse * inverse);
  }
  each_chunk(t, w, [&](int64_t j, int64_t keys, const float* weights) {
    tile_gemm(t.rows, t.d, keys, weights, kLocalKeys, 1, t.k + j * t.k_row, t.k_row, w.kbar, t.d,
              j > 0 ? 1.0f : 0.0f);
  });
  each_vector(t.rows * t.d,
              [&](int64_t i, auto get, auto put) { put(w.mu + i, get(w.kbar + i) - get(w.q + i)); });
}

/// diagonal = sum w k^2 - kbar^2 + mu^2 + ridge.
void find_diagonal(const LocalLinearTile& t, const Work& w) {
  each_chunk(t, w, [&](int64_t j, int64_t keys, const float* weights) {
    for (int64_t s = 0; s < keys; ++s) {
      const float* k = t.k + (j + s) * t.k_row;
      each_vector(t.d, [&](int64_t i, auto get, auto put) {
        const F x = get(k + i);
        put(w.squares + s * t.d + i, x * x);
      });
    }
    tile_gemm(t.rows, t.d, keys, weights, kLocalKeys, 1, w.squares, t.d, w.diagonal, t.d,
              j > 0 ? 1.0f : 0.0f);
  });
  for (int64_t r = 0; r < t.rows; ++r)
    each_vector(t.d, [&](int64_t i, auto get, auto put) {
      const int64_t at = r * t.d + i;
      const F mean = get(w.kbar + at), apart = get(w.mu + at);
      F spread = get(w.diagonal + at) - mean * mean;
      spread = spread > F{} ? spread : F{};
      put(w.diagonal + at, spread + apart * apart + splat(w.ridge[r]));
    });
}

/// y = Cov p of the channels [c, c + block) of all rows.
void apply_covariance(const LocalLinearTile& t, const Work& w, int64_t c) {
  for (int64_t r = 0; r < t.rows; ++r)
    w.shift[r] = static_cast<float>(dot(w.p + r * t.d + c, w.kbar + r * t.d + c, t.block));
  each_chunk(t, w, [&](int64_t j, int64_t keys, const float* weights) {
    tile_gemm(t.rows, keys, t.block, w.p + c, t.d, 1, t.k_transposed + j * t.d + c * kLocalKeys, kLocalKeys,
              w.products, kLocalKeys, 0.0f);
    for (int64_t r = 0; r < t.rows; ++r) {
      float* g = w.products + r * kLocalKeys;
      const float* weight = weights + r * kLocalKeys;
      const F shift = splat(w.shift[r]);
      each_vector(keys,
                  [&](int64_t i, auto get, auto put) { put(g + i, (get(g + i) - shift) * get(weight + i)); });
    }
    tile_gemm(t.rows, t.block, keys, w.products, kLocalKeys, 1, t.k + j * t.k_row + c, t.k_row, w.y + c, t.d,
              j > 0 ? 1.0f : 0.0f);
  });
}

/// One iteration of one row from y = Cov p on. Scalars are f64: mu mu^T is most of Sigma, so that the first
/// step takes nearly all of r away, and 2^-24 of what was there is much beside the rest.
void step(const LocalLinearTile& t, const Work& w, int64_t row) {
  float *p = w.p + row * t.d, *y = w.y + row * t.d, *x = w.x + row * t.d, *r = w.r + row * t.d,
        *z = w.z + row * t.d;
  const float *mu = w.mu + row * t.d, *diagonal = w.diagonal + row * t.d;
  const double rr = t.jacobi ? dot(r, r, t.d) : w.rz[row];
  if (!(rr > w.limit[row]) || rr == __builtin_inf()) return;
  const D ridge = splat_wide(static_cast<double>(w.ridge[row]));
  for (int64_t c = 0; c < t.d; c += t.block) {
    const D along = splat_wide(dot(p + c, mu + c, t.block));
    each_vector(t.block, [&](int64_t i, auto get, auto put) {
      put(y + c + i,
          narrow(widen(get(y + c + i)) + along * widen(get(mu + c + i)) + ridge * widen(get(p + c + i))));
    });
  }
  const D alpha = splat_wide(w.rz[row] / (dot(p, y, t.d) + static_cast<double>(w.guard[row])));
  each_vector(t.d, [&](int64_t i, auto get, auto put) {
    put(x + i, narrow(widen(get(x + i)) + alpha * widen(get(p + i))));
    const F left = narrow(widen(get(r + i)) - alpha * widen(get(y + i)));
    put(r + i, left);
    if (t.jacobi) put(z + i, left / get(diagonal + i));
  });
  const double next = dot(r, z, t.d);
  const D beta = splat_wide(next / w.rz[row]);
  w.rz[row] = next;
  each_vector(t.d, [&](int64_t i, auto get, auto put) {
    put(p + i, narrow(widen(get(z + i)) + beta * widen(get(p + i))));
  });
}

void solve(const LocalLinearTile& t, const Work& w) {
  if (t.jacobi) find_diagonal(t, w);
  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t at = row * t.d;
    each_vector(t.d, [&](int64_t i, auto get, auto put) {
      const F r = get(w.mu + at + i);
      put(w.x + at + i, F{});
      put(w.r + at + i, r);
      if (t.jacobi) put(w.z + at + i, r / get(w.diagonal + at + i));
      put(w.p + at + i, get(w.z + at + i));
    });
    w.rz[row] = dot(w.r + at, w.z + at, t.d);
    const double norm = dot(w.mu + at, w.mu + at, t.d), omega = static_cast<double>(t.omega[row]),
                 least = static_cast<double>(t.atol) / (omega * omega);
    w.limit[row] = static_cast<double>(t.rtol) * (norm > least ? norm : least);
  }
  for (int64_t iteration = 0; iteration < t.iterations; ++iteration) {
    for (int64_t c = 0; c < t.d; c += t.block) apply_covariance(t, w, c);
    for (int64_t row = 0; row < t.rows; ++row) step(t, w, row);
  }
}

/// delta, r and c of every row. 1 - mu.rho - rho.r is 1 - mu.rho, as residuals of conjugate gradients are
/// orthogonal to the iterate, and it is 1 - 2 mu.rho + rho.Sigma rho, which rounding moves in second order
/// and never below the delta of the solution: where the iteration is stopped early, 1 - mu.rho alone can
/// round to nothing and the output to hundreds. c = (1 + rho.q) / delta, written so that the weights sum
/// to 1.
void finish(const LocalLinearTile& t, const Work& w) {
  for (int64_t row = 0; row < t.rows; ++row) {
    const float *x = w.x + row * t.d, *kbar = w.kbar + row * t.d;
    const double bare = 1.0 - dot(w.mu + row * t.d, x, t.d) - dot(x, w.r + row * t.d, t.d);
    const double eps = static_cast<double>(t.delta_eps) / static_cast<double>(t.omega[row]);
    const double delta = bare + (bare < 0 ? -eps : eps);
    const F inverse = splat(static_cast<float>(1.0 / delta));
    float* rho = t.rho + row * t.rho_row;
    each_vector(t.d, [&](int64_t i, auto get, auto put) { put(rho + i, get(x + i) * inverse); });
    t.delta[row] = static_cast<float>(delta);
    t.coefficient[row] = static_cast<float>(bare / delta + dot(rho, kbar, t.d));
  }
}

/// o = sum_j w_j (c - r.k_j) v_j.
void regress(const LocalLinearTile& t, const Work& w, float* o, int64_t o_row) {
  each_chunk(t, w, [&](int64_t j, int64_t keys, const float* weights) {
    tile_gemm(t.rows, keys, t.d, t.rho, t.rho_row, 1, t.k_transposed + j * t.d, kLocalKeys, w.products,
              kLocalKeys, 0.0f);
    for (int64_t r = 0; r < t.rows; ++r) {
      float* g = w.products + r * kLocalKeys;
      const float* weight = weights + r * kLocalKeys;
      const F c = splat(t.coefficient[r]);
      each_vector(keys,
                  [&](int64_t i, auto get, auto put) { put(g + i, (c - get(g + i)) * get(weight + i)); });
    }
    tile_gemm(t.rows, t.e, keys, w.products, kLocalKeys, 1, t.v + j * t.v_row, t.v_row, o, o_row,
              j > 0 ? 1.0f : 0.0f);
  });
}

}  // namespace

void local_linear_widen(DType dtype, const void* x, int64_t x_row, int64_t rows, int64_t n, float* to) {
  if (dtype == DType::f32)
    widen_rows(static_cast<const float*>(x), x_row, rows, n, to);
  else if (dtype == DType::bf16)
    widen_rows(static_cast<const bf16*>(x), x_row, rows, n, to);
  else
    widen_rows(static_cast<const f16*>(x), x_row, rows, n, to);
}

void local_linear_transpose(const float* k, int64_t k_row, int64_t rows, int64_t d, float* transposed) {
  for (int64_t s = 0; s < rows; s += kLanes)
    for (int64_t c = 0; c < d; c += kLanes) {
      const int64_t count = min_of(kLanes, rows - s), width = min_of(kLanes, d - c);
      F square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = k + (s + i) * k_row + c;
        square[i] = i >= count ? F{} : width == kLanes ? load(from) : load_part(from, width);
      }
      transpose_lanes(square);
      // kLocalKeys is a multiple of kLanes, so whole vectors are stored.
      for (int64_t i = 0; i < width; ++i) store(transposed + (c + i) * kLocalKeys + s, square[i]);
    }
}

void local_linear_tile(const LocalLinearTile& t) {
  const Work w(t);
  local_linear_widen(t.dtype, t.q, t.q_row, t.rows, t.d, w.q);
  weigh(t, w);
  solve(t, w);
  finish(t, w);
  if (t.dtype == DType::f32) {
    regress(t, w, static_cast<float*>(t.o), t.o_row);
    return;
  }
  regress(t, w, w.o, t.e);
  if (t.dtype == DType::bf16)
    narrow_rows(w.o, t.rows, t.e, static_cast<bf16*>(t.o), t.o_row);
  else
    narrow_rows(w.o, t.rows, t.e, static_cast<f16*>(t.o), t.o_row);
}

}  // namespace attnbench::ATTNBENCH_ISA
