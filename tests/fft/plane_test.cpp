// The device's transform of planes in shared memory, run on the host thread by thread, against
// double-precision sums; and the small transforms that it is made of.
#include "kernels/fft/plane.hpp"

#include <complex>
#include <numbers>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = Fft2Args::Kind;

namespace {

using Value = std::complex<double>;

struct Wide {
  double x, y;
};

/// One axis of a grid by the definition; sign -1: forward.
std::vector<Value> transformed(const std::vector<Value>& v, int64_t h, int64_t w, int sign) {
  std::vector<Value> rows(v.size()), out(v.size());
  const auto root = [&](int64_t k, int64_t n) {
    return std::polar(1.0, sign * 2 * std::numbers::pi * static_cast<double>(k % n) / static_cast<double>(n));
  };
  for (int64_t r = 0; r < h; ++r)
    for (int64_t k = 0; k < w; ++k)
      for (int64_t c = 0; c < w; ++c)
        rows[static_cast<size_t>(r * w + k)] += v[static_cast<size_t>(r * w + c)] * root(k * c, w);
  for (int64_t k = 0; k < h; ++k)
    for (int64_t r = 0; r < h; ++r)
      for (int64_t c = 0; c < w; ++c)
        out[static_cast<size_t>(k * w + c)] += rows[static_cast<size_t>(r * w + c)] * root(k * r, h);
  return out;
}

/// Every function of the body for every thread, as barriers order them.
void run_block(const plane::Plan& plan, const std::vector<uint32_t>& table, const float* x, float* y,
               const std::vector<int64_t>& from, const std::vector<int64_t>& to, int threads) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<plane::Complex> shared(static_cast<size_t>(plan.shared_bytes()) / 8 + 1, {nan, nan});
  std::vector<plane::Complex> numbers(static_cast<size_t>(plan.table_numbers) + 1);
  std::memcpy(numbers.data(), table.data(), static_cast<size_t>(plan.table_numbers) * 8);
  std::vector<int> slots(static_cast<size_t>(plan.table_slots));
  std::memcpy(slots.data(), table.data() + 2 * plan.table_numbers, slots.size() * 4);
  plane::Block b{};
  b.x = x, b.y = y, b.z = shared.data(), b.table = numbers.data();
  b.row_slot = slots.data(), b.column_slot = slots.data() + plan.height + 1;
  b.from = from.data(), b.to = to.data(), b.planes = static_cast<int>(from.size()), b.threads = threads;
  const auto all = [&](const auto& work) {
    for (b.thread = 0; b.thread < threads; ++b.thread) work();
  };
  all([&] { plane::load(plan, b); });
  for (int s = 0; s < plan.steps; ++s) all([&] { plane::run_step(plan, plan.step[s], b); });
  all([&] { plane::store(plan, b); });
  for (size_t i = static_cast<size_t>(plan.planes * plan.plane_slots); i < shared.size(); ++i)
    CHECK(std::isnan(shared[i].x));  // nothing is written behind the planes
}

template <int N>
void check_small(Random& r) {
  Wide v[N], u[N];
  plane::Complex f[N];
  for (int i = 0; i < N; ++i) {
    v[i] = u[i] = {r.uniform(), r.uniform()};
    f[i] = {static_cast<float>(v[i].x), static_cast<float>(v[i].y)};
  }
  small_dft(u);
  small_dft(f);
  INFO("N " << N);
  double error = 0, norm = 0;
  for (int k = 0; k < N; ++k) {
    Value want = 0;
    for (int n = 0; n < N; ++n)
      want += Value(v[n].x, v[n].y) * std::polar(1.0, -2 * std::numbers::pi * (k * n % N) / N);
    CHECK(std::abs(Value(u[k].x, u[k].y) - want) <= 1e-14 * N);
    error += std::norm(Value(f[k].x, f[k].y) - want), norm += std::norm(want);
  }
  CHECK(std::sqrt(error / norm) <= 2 * (std::log2(N) + 1) * 0x1p-24);
}

}  // namespace

TEST_CASE("small transforms of 1 to 16 numbers follow the definition in double and in single precision") {
  Random r(11);
  [&]<int... I>(std::integer_sequence<int, I...>) { (check_small<I + 1>(r), ...); }
  (std::make_integer_sequence<int, kMaxRadix>{});
}

TEST_CASE("plane quotients are exact and radices multiply to the length") {
  for (int n : {1, 2, 3, 5, 7, 57, 112, 113, 224, 1023, 4096, 29000})
    for (int i : {0, 1, n - 1, n, n + 1, 2 * n - 1, 2 * n, 28999, 29000, 57600 / 2})
      if (static_cast<int64_t>(i) * n < (int64_t{1} << 31)) CHECK(plane::Quotient(n).of(i) == i / n);
  std::vector<int> radices;
  for (int n = 1; n <= 4096; ++n) {
    int left = n;
    for (int p : {2, 3, 5, 7, 11, 13})
      while (left % p == 0) left /= p;
    const bool known = plane::radices_of(n, radices);
    if (left != 1) {
      CHECK(!known);
      continue;
    }
    if (!known) continue;  // more than four steps
    int product = 1;
    for (int r : radices) product *= r;
    CHECK(product == n);
    CHECK((n > 256 || radices.size() <= 3));
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int k = 0; k < n; ++k) seen[static_cast<size_t>(plane::slot_of(k, n, radices))] = true;
    CHECK(std::find(seen.begin(), seen.end(), false) == seen.end());
  }
  REQUIRE(plane::radices_of(112, radices));
  CHECK(radices == std::vector<int>{16, 7});
}

TEST_CASE("a block's transform of planes follows the definition: kinds, sizes, several planes, any threads") {
  const Kind kind =
      GENERATE(Kind::real_to_half, Kind::half_to_real, Kind::complex_forward, Kind::complex_inverse);
  const bool real_x = kind == Kind::real_to_half, real_y = kind == Kind::half_to_real,
             real = real_x || real_y;
  Random r(12);
  struct Case {
    int64_t h, w;
    int planes, used, threads;  // threads 0: as the plan says
  };
  for (const Case& c :
       {Case{1, 1, 1, 1, 32},   Case{1, 2, 3, 3, 32},    Case{2, 1, 2, 2, 32},    Case{1, 12, 4, 3, 32},
        Case{12, 1, 2, 2, 64},  Case{16, 16, 5, 4, 64},  Case{7, 9, 3, 3, 40},    Case{9, 15, 1, 1, 96},
        Case{8, 14, 2, 2, 0},   Case{15, 26, 2, 1, 160}, Case{45, 50, 1, 1, 256}, Case{32, 40, 2, 2, 96},
        Case{11, 22, 1, 1, 32}, Case{64, 96, 1, 1, 256}, Case{33, 63, 1, 1, 64},  Case{1, 2048, 1, 1, 128},
        Case{300, 2, 1, 1, 64}, Case{112, 112, 1, 1, 0}, Case{128, 66, 1, 1, 0},  Case{6, 4, 40, 33, 0}}) {
    INFO("kind " << static_cast<int>(kind) << " grid " << c.h << " x " << c.w << " planes " << c.used
                 << " of " << c.planes);
    plane::Plan plan;
    std::vector<uint32_t> table;
    REQUIRE(plane::make_plan(kind, c.h, c.w, c.planes, 232448, plan, &table));
    CHECK(plan.threads % 32 == 0);
    if (c.threads > 0) plane::set_threads(plan, c.threads);
    plan.scale = 0.37f;
    const int64_t half = c.w / 2 + 1, n = c.h * c.w, gap = 6;
    const int64_t nx = real_y ? 2 * c.h * half
                       : real ? n
                              : 2 * n,
                  ny = real_x ? 2 * c.h * half
                       : real ? n
                              : 2 * n;
    // Images `gap` apart, the last first; 8-byte places.
    const int64_t dx = (nx + gap + 1) / 2 * 2, dy = (ny + gap + 1) / 2 * 2;
    std::vector<plane::Complex> x_store(static_cast<size_t>(dx * c.used) / 2);
    std::vector<plane::Complex> y_store(static_cast<size_t>(dy * c.used) / 2,
                                        {std::numeric_limits<float>::quiet_NaN(), -1.0f});
    auto* x = reinterpret_cast<float*>(x_store.data());
    auto* y = reinterpret_cast<float*>(y_store.data());
    for (int64_t i = 0; i < dx * c.used; ++i) x[i] = static_cast<float>(r.uniform());
    const std::vector<plane::Complex> before = y_store;
    std::vector<int64_t> from, to;
    for (int p = 0; p < c.used; ++p) from.push_back((c.used - 1 - p) * dx), to.push_back(p * dy);
    run_block(plan, table, x, y, from, to, plan.threads);
    for (int p = 0; p < c.used; ++p) {
      const float *in = x + from[static_cast<size_t>(p)], *out = y + to[static_cast<size_t>(p)];
      std::vector<Value> grid(static_cast<size_t>(n));
      if (real_x) {
        for (int64_t i = 0; i < n; ++i) grid[static_cast<size_t>(i)] = in[i];
      } else if (!real_y) {
        for (int64_t i = 0; i < n; ++i) grid[static_cast<size_t>(i)] = {in[2 * i], in[2 * i + 1]};
      } else {
        // Columns are transformed first, then rows of which only what a real row has is taken.
        const auto at = [&](int64_t row, int64_t k) {
          const auto* v = in + 2 * (row * half + k);
          return Value(v[0], v[1]);
        };
        for (int64_t row = 0; row < c.h; ++row)
          for (int64_t k = 0; k < c.w; ++k) {
            const int64_t other = (c.h - row) % c.h;
            Value v = k < half ? at(row, k) : std::conj(at(other, c.w - k));
            if (k == 0 || 2 * k == c.w) v = 0.5 * (v + std::conj(at(other, k)));
            grid[static_cast<size_t>(row * c.w + k)] = v;
          }
      }
      const bool forward = kind == Kind::real_to_half || kind == Kind::complex_forward;
      const std::vector<Value> want = transformed(grid, c.h, c.w, forward ? -1 : 1);
      double error = 0, norm = 0;
      const auto compare = [&](Value got, Value expected) {
        error += std::norm(got - expected * static_cast<double>(plan.scale));
        norm += std::norm(expected * static_cast<double>(plan.scale));
      };
      if (real_x)
        for (int64_t row = 0; row < c.h; ++row)
          for (int64_t k = 0; k < half; ++k) {
            const float* v = out + 2 * (row * half + k);
            compare({v[0], v[1]}, want[static_cast<size_t>(row * c.w + k)]);
          }
      else
        for (int64_t i = 0; i < n; ++i)
          compare(real_y ? Value(out[i]) : Value(out[2 * i], out[2 * i + 1]), want[static_cast<size_t>(i)]);
      INFO("plane " << p << " relative error " << std::sqrt(error / norm));
      CHECK(error <= std::pow(2 * (std::log2(static_cast<double>(n)) + 1) * 0x1p-24, 2) * norm);
      // What lies between the images is as it was.
      for (int64_t i = ny; i < dy; ++i)
        CHECK(std::memcmp(out + i,
                          reinterpret_cast<const float*>(before.data()) + to[static_cast<size_t>(p)] + i,
                          4) == 0);
    }
  }
}

TEST_CASE("planes that do not fit or have other factors are refused") {
  plane::Plan plan;
  CHECK(plane::make_plan(Kind::real_to_half, 224, 224, 1, 232448, plan));
  CHECK(!plane::make_plan(Kind::real_to_half, 224, 224, 1, 166912, plan));
  CHECK(!plane::make_plan(Kind::real_to_half, 256, 256, 1, 232448, plan));
  CHECK(!plane::make_plan(Kind::complex_forward, 17, 16, 1, 232448, plan));
  CHECK(!plane::make_plan(Kind::complex_forward, 16, 97, 1, 232448, plan));
  CHECK(plane::make_plan(Kind::real_to_half, 160, 160, 2, 232448, plan));
  CHECK(!plane::make_plan(Kind::real_to_half, 160, 160, 3, 232448, plan));
}
