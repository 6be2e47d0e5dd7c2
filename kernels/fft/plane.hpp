// A two-dimensional transform of planes that a thread block holds in shared memory: its plan, made on the
// host, and its body, which the host can run, too (thread by thread), so that indices are tested without a
// device. No kernel and no launch: see cuda_plane.cu.
//
// A plane is a grid of H x C complex slots, rows `pitch` slots apart. pitch is odd: lanes that walk down a
// column meet 16 different pairs of banks, as lanes along a row do. Real planes of even width W are taken as
// C = W / 2 complex numbers z[r][c] = x[r][2c] + i x[r][2c+1], which is how they lie in memory; others have
// C = W.
//
// Each axis is transformed in place by mixed radices, decimation in frequency: of a block of L = R M numbers,
//   a[n2 + M k1] <- exp(-2 pi i n2 k1 / L) sum_n1 exp(-2 pi i n1 k1 / R) a[n2 + M n1],   n2 < M,
// then each of the R blocks of M likewise; frequency k1 + R k' ends in block k1. Nothing is moved between the
// steps, so lines may go to any thread and only a barrier separates steps; what is stored is looked up by
// `slot`. Inverse transforms are forward ones read at the negative frequencies.
//
// With w = exp(-2 pi i k / W), and rows -r meaning H - r, the half spectrum X follows from Z = DFT(z) by
//   E = (Z[r][k] + conj Z[-r][-k]) / 2,  O = (Z[r][k] - conj Z[-r][-k]) / 2i,
//   X[r][k] = E + w O,  X[-r][W/2-k] = conj(E - w O),   0 <= k <= W/4,
// and back by E = X[r][k] + conj X[-r][W/2-k], O = (X[r][k] - conj X[-r][W/2-k]) conj w, Z = E + i O.
// A half spectrum that no real plane has is taken as the one of its real part, as FFTW does.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/fft/fft.hpp"
#include "kernels/fft/small_dft.hpp"

namespace attnbench::plane {

struct alignas(8) Complex {
  float x, y;
};

/// floor(i / n) by a product, for 0 <= i, 1 <= n with i n < 2^31: m = ceil(2^31 / n) is too large by less
/// than 1, which adds less than i / 2^31 < 1 / n to the quotient.
struct Quotient {
  uint32_t n = 1, multiplier = 0x80000000u;
  Quotient() = default;
  explicit Quotient(int by)
      : n(static_cast<uint32_t>(by)), multiplier(static_cast<uint32_t>(((uint64_t{1} << 31) + n - 1) / n)) {}
  ATTNBENCH_BOTH int of(int i) const {
    const uint32_t twice = 2 * static_cast<uint32_t>(i);
#ifdef __CUDA_ARCH__
    return static_cast<int>(__umulhi(twice, multiplier));
#else
    return static_cast<int>((static_cast<uint64_t>(twice) * multiplier) >> 32);
#endif
  }
};

/// One radix of one axis for all lines of the block's planes. Work is numbered with the line fastest.
struct Step {
  int radix = 1;
  int items = 0;       ///< radix-point transforms: lines times L / radix of all blocks
  int apart = 0;       ///< slots between the numbers of one transform, M times the axis's stride
  int between = 0;     ///< slots between blocks of L
  int stride = 0;      ///< slots between neighbours of the axis (n2)
  int line_apart = 0;  ///< slots between lines of a plane
  int twiddles = -1;   ///< where [n2][k1] starts in the table; -1: none, as M = 1
  int lines_count = 1, inner_count = 1, plane_lines = 1;
  Quotient lines, inner, per_plane;
};

constexpr int kMaxSteps = 8;
/// A multiprocessor's registers feed 512 threads of up to 128.
constexpr int kLeastThreads = 256, kMostThreads = 512;

/// How threads share the rows that come or go: `lanes` neighbours along a row, then `rows`, then `planes`.
struct Shares {
  int lanes = 1, shift = 0, rows = 1, planes = 1;
  Quotient by_rows;
};

/// How the block's numbers come and go.
enum class Form : uint8_t {
  numbers,   ///< H x C complex numbers, or real planes of even width
  half,      ///< half spectra of planes of even width
  real_odd,  ///< real planes of odd width, one number a slot
  half_odd,  ///< half spectra of odd width
};

struct Plan {
  Form from = Form::numbers, to = Form::numbers;
  int height = 1, columns = 1, width = 1;  ///< H, C, W of the full grid
  int half = 0;                            ///< numbers of a row of a half spectrum
  int pitch = 1, plane_slots = 1;
  int planes = 1;  ///< a block takes so many
  int threads = 32;
  int from_floats = 0;  ///< of one plane of x
  int steps = 0;
  Step step[kMaxSteps];
  Shares loading, storing;
  /// The table: complex numbers for the steps and w^k (k <= W/4), then 32-bit slots of rows (times the pitch)
  /// and of columns, each with the first again behind the last.
  int merge_twiddles = 0, table_numbers = 0, table_slots = 0;
  float scale = 1.0f;

  /// Shared memory holds the planes, the table and where each plane comes from and goes to, in this order.
  ATTNBENCH_BOTH int table_at() const {
    return (planes * plane_slots + 1) / 2 * 2;
  }  ///< in numbers: 16 bytes
  ATTNBENCH_BOTH int table_words() const { return 2 * table_numbers + (table_slots + 1) / 2 * 2; }
  ATTNBENCH_BOTH int shared_bytes() const { return table_at() * 8 + table_words() * 4 + planes * 16; }
};

/// Radices of n in the order of the steps, empty for n = 1; false if n has other factors. As few steps as
/// possible; an odd last radix, where there is one, spreads neighbouring frequencies over all banks.
inline bool radices_of(int n, std::vector<int>& best) {
  best.clear();
  if (n == 1) return true;
  std::vector<int> now;
  const auto cost = [](const std::vector<int>& v) {
    int sum = 0;
    for (int r : v) sum += r;
    return static_cast<int>(v.size()) * 10000 + (v.back() % 2 == 0 ? 1000 : 0) + sum;
  };
  const auto search = [&](const auto& self, int left) -> void {
    if (left == 1) {
      if (best.empty() || cost(now) < cost(best)) best = now;
      return;
    }
    if (now.size() >= kMaxSteps / 2) return;
    for (int r = kMaxRadix; r >= 2; --r)
      if (left % r == 0) {
        now.push_back(r);
        self(self, left / r);
        now.pop_back();
      }
  };
  search(search, n);
  return !best.empty();
}

/// Where frequency k lies after the steps of `radices`.
inline int slot_of(int k, int n, const std::vector<int>& radices) {
  int at = 0;
  for (int r : radices) {
    n /= r;
    at += k % r * n;
    k /= r;
  }
  return at;
}

inline Complex unit_root(int64_t k, int64_t n) {
  const double c = dft_detail::turn(k, n, false), s = dft_detail::turn(k, n, true);
  return {static_cast<float>(c), static_cast<float>(-s)};
}

inline Shares shares_of(int items, int height, int planes, int threads) {
  Shares s;
  while (s.lanes < 32 && s.lanes < items) s.lanes *= 2, ++s.shift;
  const int groups = threads / s.lanes;
  s.rows = std::min(height, groups);
  s.planes = std::min(planes, groups / s.rows);
  s.by_rows = Quotient(s.rows);
  return s;
}

/// Threads of a block, full warps from `least` to `most`: those that the steps' items divide best, a
/// transform's work taken as its radix. More of them where that changes nothing.
inline int threads_of(const Plan& plan, int least, int most) {
  int64_t best = 0;
  int chosen = least;
  for (int threads = least; threads <= most; threads += 32) {
    int64_t work = 0;
    for (int s = 0; s < plan.steps; ++s) {
      const int64_t rounds = (plan.step[s].items + threads - 1) / threads;
      work += rounds * threads * plan.step[s].radix;
    }
    if (best == 0 || work <= best) best = work, chosen = threads;
  }
  return chosen;
}

inline void set_threads(Plan& plan, int threads) {
  plan.threads = threads;
  const auto items = [&](Form f) {
    return f == Form::half ? plan.columns / 2 + 1 : f == Form::half_odd ? plan.half : plan.columns;
  };
  plan.loading = shares_of(plan.from == Form::half_odd ? plan.columns : items(plan.from), plan.height,
                           plan.planes, threads);
  plan.storing = shares_of(items(plan.to), plan.height, plan.planes, threads);
}

/// Fills plan and table (as 4-byte words) for blocks of `planes` planes; false where a size has a prime
/// factor above 13 or the shared memory is too small.
inline bool make_plan(Fft2Args::Kind kind, int64_t height, int64_t width, int planes, int64_t most_bytes,
                      Plan& plan, std::vector<uint32_t>* table = nullptr) {
  using Kind = Fft2Args::Kind;
  const bool real = kind == Kind::real_to_half || kind == Kind::half_to_real;
  const bool inverse = kind == Kind::half_to_real || kind == Kind::complex_inverse;
  const bool paired = real && width % 2 == 0;
  const int64_t columns = paired ? width / 2 : width;
  if (planes < 1 || height < 1 || width < 1 || height * (columns | 1) * planes * 8 > most_bytes) return false;
  std::vector<int> radices[2];
  if (!radices_of(static_cast<int>(columns), radices[0]) || !radices_of(static_cast<int>(height), radices[1]))
    return false;
  plan = {};
  const Form real_form = paired ? Form::numbers : Form::real_odd,
             half_form = paired ? Form::half : Form::half_odd;
  if (kind == Kind::real_to_half) plan.from = real_form, plan.to = half_form;
  if (kind == Kind::half_to_real) plan.from = half_form, plan.to = real_form;
  const int h = plan.height = static_cast<int>(height), c = plan.columns = static_cast<int>(columns);
  plan.width = static_cast<int>(width), plan.half = plan.width / 2 + 1;
  plan.pitch = c | 1, plan.plane_slots = h * plan.pitch, plan.planes = planes;
  std::vector<Complex> numbers;
  for (int axis : {0, 1}) {
    const int n = axis == 0 ? c : h, stride = axis == 0 ? 1 : plan.pitch, lines = axis == 0 ? h : c;
    int length = n;
    for (int r : radices[axis]) {
      Step& s = plan.step[plan.steps++];
      const int inner = length / r;
      s.radix = r;
      s.apart = inner * stride, s.between = length * stride, s.stride = stride;
      s.line_apart = axis == 0 ? plan.pitch : 1;
      s.plane_lines = lines, s.lines_count = planes * lines, s.inner_count = inner;
      s.lines = Quotient(s.lines_count), s.inner = Quotient(inner), s.per_plane = Quotient(lines);
      s.items = s.lines_count * (n / r);
      if (inner > 1) {
        if (numbers.size() % 2 != 0) numbers.push_back({});  // two are read at a time
        s.twiddles = static_cast<int>(numbers.size());
        for (int n2 = 0; n2 < inner; ++n2)
          for (int k1 = 0; k1 < r; ++k1)
            numbers.push_back(unit_root(static_cast<int64_t>(n2) * k1 % length, length));
      }
      length = inner;
    }
  }
  plan.merge_twiddles = static_cast<int>(numbers.size());
  if (paired)
    for (int k = 0; k <= c / 2; ++k) numbers.push_back(unit_root(k, width));
  plan.table_numbers = static_cast<int>(numbers.size());
  plan.table_slots = h + c + 2;
  const auto full = static_cast<int>(height * width);
  plan.from_floats = kind == Kind::half_to_real ? 2 * h * plan.half : real ? full : 2 * full;
  set_threads(plan, threads_of(plan, kLeastThreads, kMostThreads));
  if (plan.shared_bytes() > most_bytes) return false;
  if (table) {
    table->assign(static_cast<size_t>(plan.table_words()), 0);
    std::memcpy(table->data(), numbers.data(), numbers.size() * sizeof(Complex));
    uint32_t* slot = table->data() + 2 * numbers.size();
    const auto place = [&](int k, int n, int axis) {
      return static_cast<uint32_t>(slot_of(inverse ? (n - k) % n : k % n, n, radices[axis]));
    };
    for (int r = 0; r <= h; ++r) *slot++ = place(r, h, 1) * static_cast<uint32_t>(plan.pitch);
    for (int k = 0; k <= c; ++k) *slot++ = place(k, c, 0);
  }
  return true;
}

// ---- the body: every function is called by all threads, with a barrier between them
// ------------------------

/// What one block works on. Memory of plane p starts `from[p]`, `to[p]` floats after x and y.
struct Block {
  const float* x;
  float* y;
  Complex* z;            ///< planes x H x pitch
  const Complex* table;  ///< twiddles
  const int* row_slot;
  const int* column_slot;
  const int64_t *from, *to;
  int planes;  ///< of this block: the last one has fewer
  int thread, threads;
};

ATTNBENCH_BOTH Complex read(const float* p) { return *reinterpret_cast<const Complex*>(p); }
ATTNBENCH_BOTH void write(float* p, float x, float y) { *reinterpret_cast<Complex*>(p) = Complex{x, y}; }

/// Two neighbours of the table by one access.
ATTNBENCH_BOTH void read_two(const Complex* t, Complex& a, Complex& b) {
#ifdef __CUDA_ARCH__
  const float4 v = *reinterpret_cast<const float4*>(t);
  a = Complex{v.x, v.y}, b = Complex{v.z, v.w};
#else
  a = t[0], b = t[1];
#endif
}
ATTNBENCH_BOTH Complex product(Complex a, Complex w) {
  return Complex{a.x * w.x - a.y * w.y, a.x * w.y + a.y * w.x};
}

/// Eight bytes to shared memory without passing through registers; complete after copies_done().
ATTNBENCH_BOTH void copy_number(Complex* to, const float* from) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from)
      : "memory");
#else
  *to = read(from);
#endif
}
ATTNBENCH_BOTH void copies_done() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/// f(plane, first item of a row, first row, number of rows) for this thread's share of the planes.
template <class F>
ATTNBENCH_BOTH void each_plane(const Plan& plan, const Shares& s, const Block& b, const F& f) {
  const int line = b.thread >> s.shift, group = s.by_rows.of(line), r0 = line - group * s.rows;
  if (group >= s.planes) return;
  const int count = s.by_rows.of(plan.height - r0 + s.rows - 1);
  for (int p = group; p < b.planes; p += s.planes) f(p, b.thread & (s.lanes - 1), r0, count);
}

ATTNBENCH_BOTH void load_numbers(const Plan& plan, const Block& b) {
  const Shares& s = plan.loading;
  each_plane(plan, s, b, [&](int p, int k0, int r0, int count) {
    for (int k = k0; k < plan.columns; k += s.lanes) {
      const float* from = b.x + b.from[p] + 2 * (r0 * plan.columns + k);
      Complex* to = b.z + p * plan.plane_slots + r0 * plan.pitch + k;
      ATTNBENCH_UNROLL(unroll 4)
      for (int n = count; n > 0; --n) {
        copy_number(to, from);
        from += 2 * s.rows * plan.columns, to += s.rows * plan.pitch;
      }
    }
  });
}

ATTNBENCH_BOTH void load_real_odd(const Plan& plan, const Block& b) {
  const Shares& s = plan.loading;
  each_plane(plan, s, b, [&](int p, int k0, int r0, int count) {
    for (int k = k0; k < plan.columns; k += s.lanes) {
      const float* from = b.x + b.from[p] + k;
      Complex* to = b.z + p * plan.plane_slots + k;
      ATTNBENCH_UNROLL(unroll 4)
      for (int r = r0; r < plan.height; r += s.rows)
        to[r * plan.pitch] = Complex{from[r * plan.columns], 0.0f};
    }
  });
}

/// a and conj b of E and O, for a = X[r][k] and b = X[-r][W/2-k]; `mirror` is row -r. For k = 0 both are
/// those of the real part.
struct Pair {
  Complex a, b;
};
ATTNBENCH_BOTH Pair half_pair(const Plan& plan, const float* row, const float* mirror, int k) {
  const Complex a = read(row + 2 * k), b = read(mirror + 2 * (plan.columns - k));
  if (k != 0) return {a, {b.x, -b.y}};
  const Complex c = read(mirror), d = read(row + 2 * plan.columns);
  return {{0.5f * (a.x + c.x), 0.5f * (a.y - c.y)}, {0.5f * (d.x + b.x), 0.5f * (d.y - b.y)}};
}

ATTNBENCH_BOTH void load_half(const Plan& plan, const Block& b) {
  constexpr int kRows = 8;  // Numbers under way are in registers: eight rows of two.
  const Shares& s = plan.loading;
  each_plane(plan, s, b, [&](int p, int k0, int r0, int count) {
    const float* image = b.x + b.from[p];
    Complex* z = b.z + p * plan.plane_slots;
    for (int k = k0; k <= plan.columns / 2; k += s.lanes) {
      const Complex w = b.table[plan.merge_twiddles + k];
      const bool both = k != 0 && 2 * k != plan.columns;
      for (int n = 0; n < count; n += kRows) {
        Pair v[kRows];
        ATTNBENCH_UNROLL(unroll)
        for (int j = 0; j < kRows; ++j) {
          const int r = r0 + (n + j) * s.rows, other = r == 0 ? 0 : plan.height - r;
          if (n + j < count)
            v[j] = half_pair(plan, image + 2 * r * plan.half, image + 2 * other * plan.half, k);
        }
        ATTNBENCH_UNROLL(unroll)
        for (int j = 0; j < kRows; ++j) {
          const int r = r0 + (n + j) * s.rows, other = r == 0 ? 0 : plan.height - r;
          if (n + j >= count) break;
          const Complex e{v[j].a.x + v[j].b.x, v[j].a.y + v[j].b.y},
              d{v[j].a.x - v[j].b.x, v[j].a.y - v[j].b.y};
          const Complex o = product(d, Complex{w.x, -w.y});
          z[r * plan.pitch + k] = Complex{e.x - o.y, e.y + o.x};
          if (both) z[other * plan.pitch + plan.columns - k] = Complex{e.x + o.y, o.x - e.y};
        }
      }
    }
  });
}

ATTNBENCH_BOTH void load_half_odd(const Plan& plan, const Block& b) {
  const Shares& s = plan.loading;
  each_plane(plan, s, b, [&](int p, int k0, int r0, int count) {
    const float* image = b.x + b.from[p];
    Complex* z = b.z + p * plan.plane_slots;
    for (int k = k0; k < plan.columns; k += s.lanes) {
      const bool mirrored = k >= plan.half;
      ATTNBENCH_UNROLL(unroll 4)
      for (int r = r0; r < plan.height; r += s.rows) {
        const int other = r == 0 ? 0 : plan.height - r;
        Complex v = read(image + 2 * (mirrored ? other * plan.half + plan.columns - k : r * plan.half + k));
        if (mirrored) v.y = -v.y;
        if (k == 0) {
          const Complex c = read(image + 2 * other * plan.half);
          v = Complex{0.5f * (v.x + c.x), 0.5f * (v.y - c.y)};
        }
        z[r * plan.pitch + k] = v;
      }
    }
  });
}

/// Loads all numbers of this thread's share; on a device they are there after copies_done() and a barrier.
ATTNBENCH_BOTH void load(const Plan& plan, const Block& b) {
  switch (plan.from) {
    case Form::numbers:
      return load_numbers(plan, b);
    case Form::half:
      return load_half(plan, b);
    case Form::real_odd:
      return load_real_odd(plan, b);
    case Form::half_odd:
      return load_half_odd(plan, b);
  }
}

template <int R>
ATTNBENCH_BOTH void step_of(const Plan& plan, const Step& s, const Block& b) {
  for (int i = b.thread; i < s.items; i += b.threads) {
    const int group = s.lines.of(i), line = i - group * s.lines_count;
    const int p = s.per_plane.of(line), q = s.inner.of(group), n2 = group - q * s.inner_count;
    Complex* z = b.z + p * plan.plane_slots + (line - p * s.plane_lines) * s.line_apart + q * s.between +
                 n2 * s.stride;
    Complex v[R];
    ATTNBENCH_UNROLL(unroll)
    for (int j = 0; j < R; ++j) v[j] = z[j * s.apart];
    small_dft(v);
    if (s.twiddles >= 0) {
      const Complex* t = b.table + s.twiddles + n2 * R;
      if constexpr (R % 2 == 0) {
        ATTNBENCH_UNROLL(unroll)
        for (int j = 0; j < R; j += 2) {
          Complex w0, w1;
          read_two(t + j, w0, w1);
          if (j > 0) v[j] = product(v[j], w0);
          v[j + 1] = product(v[j + 1], w1);
        }
      } else {
        ATTNBENCH_UNROLL(unroll)
        for (int j = 1; j < R; ++j) v[j] = product(v[j], t[j]);
      }
    }
    ATTNBENCH_UNROLL(unroll)
    for (int j = 0; j < R; ++j) z[j * s.apart] = v[j];
  }
}

ATTNBENCH_BOTH void run_step(const Plan& plan, const Step& s, const Block& b) {
  switch (s.radix) {
    case 2:
      return step_of<2>(plan, s, b);
    case 3:
      return step_of<3>(plan, s, b);
    case 4:
      return step_of<4>(plan, s, b);
    case 5:
      return step_of<5>(plan, s, b);
    case 6:
      return step_of<6>(plan, s, b);
    case 7:
      return step_of<7>(plan, s, b);
    case 8:
      return step_of<8>(plan, s, b);
    case 9:
      return step_of<9>(plan, s, b);
    case 10:
      return step_of<10>(plan, s, b);
    case 11:
      return step_of<11>(plan, s, b);
    case 12:
      return step_of<12>(plan, s, b);
    case 13:
      return step_of<13>(plan, s, b);
    case 14:
      return step_of<14>(plan, s, b);
    case 15:
      return step_of<15>(plan, s, b);
    case 16:
      return step_of<16>(plan, s, b);
  }
}

/// f(row's memory, item, its number) for this thread's share of `count` items a row; rows lie `apart` floats
/// from each other.
template <class F>
ATTNBENCH_BOTH void each_stored(const Plan& plan, const Block& b, int items, int apart, const F& f) {
  const Shares& s = plan.storing;
  each_plane(plan, s, b, [&](int p, int k0, int r0, int count) {
    for (int k = k0; k < items; k += s.lanes) {
      const Complex* z = b.z + p * plan.plane_slots + b.column_slot[k];
      const int* slot = b.row_slot + r0;
      float* row = b.y + b.to[p] + r0 * apart;
      ATTNBENCH_UNROLL(unroll 4)
      for (int n = count; n > 0; --n) {
        f(row, k, z[*slot]);
        slot += s.rows, row += s.rows * apart;
      }
    }
  });
}

ATTNBENCH_BOTH void store_numbers(const Plan& plan, const Block& b) {
  each_stored(plan, b, plan.columns, 2 * plan.columns,
              [&](float* row, int k, Complex v) { write(row + 2 * k, v.x * plan.scale, v.y * plan.scale); });
}

ATTNBENCH_BOTH void store_real_odd(const Plan& plan, const Block& b) {
  each_stored(plan, b, plan.columns, plan.columns,
              [&](float* row, int k, Complex v) { row[k] = v.x * plan.scale; });
}

ATTNBENCH_BOTH void store_half_odd(const Plan& plan, const Block& b) {
  each_stored(plan, b, plan.half, 2 * plan.half,
              [&](float* row, int k, Complex v) { write(row + 2 * k, v.x * plan.scale, v.y * plan.scale); });
}

ATTNBENCH_BOTH void store_half(const Plan& plan, const Block& b) {
  const Shares& s = plan.storing;
  const float scale = 0.5f * plan.scale;
  each_plane(plan, s, b, [&](int p, int k0, int r0, int count) {
    float* image = b.y + b.to[p];
    for (int k = k0; k <= plan.columns / 2; k += s.lanes) {
      const Complex* z = b.z + p * plan.plane_slots;
      const Complex *direct = z + b.column_slot[k], *mirror = z + b.column_slot[plan.columns - k];
      const Complex w1 = b.table[plan.merge_twiddles + k], w{w1.x * scale, w1.y * scale};
      const int *slot = b.row_slot + r0, *other = b.row_slot + (plan.height - r0);
      float* to = image + 2 * (r0 * plan.half + k);
      float* back = image + 2 * ((plan.height - r0) * plan.half + plan.columns - k);
      // Row 0 mirrors itself.
      float* at = r0 == 0 ? image + 2 * (plan.columns - k) : back;
      ATTNBENCH_UNROLL(unroll 4)
      for (int n = count; n > 0; --n) {
        const Complex u = direct[*slot], v = mirror[*other];
        const Complex e{u.x + v.x, u.y - v.y}, t = product(Complex{u.y + v.y, v.x - u.x}, w);
        write(to, e.x * scale + t.x, e.y * scale + t.y);
        // For k = W/4 this is what row -r writes itself: w = -i changes no bit, so both are the same.
        write(at, e.x * scale - t.x, t.y - e.y * scale);
        slot += s.rows, other -= s.rows, to += 2 * s.rows * plan.half;
        at = back -= 2 * s.rows * plan.half;
      }
    }
  });
}

ATTNBENCH_BOTH void store(const Plan& plan, const Block& b) {
  switch (plan.to) {
    case Form::numbers:
      return store_numbers(plan, b);
    case Form::half:
      return store_half(plan, b);
    case Form::real_odd:
      return store_real_odd(plan, b);
    case Form::half_odd:
      return store_half_odd(plan, b);
  }
}

}  // namespace attnbench::plane
