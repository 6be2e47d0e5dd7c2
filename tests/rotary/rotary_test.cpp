// Rotations against double precision, in both pairings, on strided heads and in place.
#include "kernels/rotary/rotary.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

struct Table {
  Tensor cosine, sine;
};
Table table(Context& ctx, int64_t n, int64_t pairs, Random& r) {
  Table t{ctx.allocate(DType::f32, {n, pairs}), ctx.allocate(DType::f32, {n, pairs})};
  for (int64_t i = 0; i < n * pairs; ++i) {
    const double angle = r.uniform(-4, 4);
    put(t.cosine, i, std::cos(angle));
    put(t.sine, i, std::sin(angle));
  }
  return t;
}

}  // namespace

TEST_CASE("rotary turns pairs and copies the rest, in both pairings, strided and in place") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool interleaved = GENERATE(false, true), in_place = GENERATE(false, true);
  Context ctx(cpu_backend(), 2);
  Random r(611);
  for (const auto& [d, pairs] :
       std::vector<std::pair<int64_t, int64_t>>{{8, 4}, {7, 2}, {64, 32}, {1, 0}, {2, 1}}) {
    const int64_t b = 2, h = 3, n = 5;
    // Heads inside packed projections: [B, N, H D] seen as [B, H, N, D].
    const Tensor base = random(ctx, type, {b, n, h * d}, r), out = poisoned(ctx, type, {b, h, n, d});
    const Tensor x = base.strided({b, h, n, d}, {n * h * d, d, h * d, 1});
    const std::vector<double> before = values(x);
    const Table t = table(ctx, n, pairs, r);
    RotaryArgs a{x, t.cosine, t.sine, in_place ? x : out, interleaved};
    const Cost cost = charged(ctx, [&] { rotary(ctx, a); });
    CHECK(cost.elementwise == b * h * n * pairs * 6);
    CHECK(cost.bytes_written == x.nbytes());
    std::vector<double> want = before;
    for (int64_t row = 0; row < b * h * n; ++row)
      for (int64_t i = 0; i < pairs; ++i) {
        const int64_t first = row * d + (interleaved ? 2 * i : i),
                      second = row * d + (interleaved ? 2 * i + 1 : i + pairs), at = row % n * pairs + i;
        const double c = get(t.cosine, at), s = get(t.sine, at);
        const double p = before[static_cast<size_t>(first)], q = before[static_cast<size_t>(second)];
        want[static_cast<size_t>(first)] = p * c - q * s;
        want[static_cast<size_t>(second)] = q * c + p * s;
      }
    check_close(a.y, want, {3 * epsilon_of(DType::f32)});  // two products and a sum of at most 1 each
  }
}

TEST_CASE("rotary keeps lengths, and relative positions decide the product") {
  Context ctx(cpu_backend(), 1);
  Random r(612);
  const int64_t d = 16, n = 40;
  Table t{ctx.allocate(DType::f32, {n, d / 2}), ctx.allocate(DType::f32, {n, d / 2})};
  for (int64_t p = 0; p < n; ++p)
    for (int64_t i = 0; i < d / 2; ++i) {
      const double angle = static_cast<double>(p) * std::pow(100.0, -2.0 * static_cast<double>(i) / d);
      put(t.cosine, p * d / 2 + i, std::cos(angle));
      put(t.sine, p * d / 2 + i, std::sin(angle));
    }
  const Tensor one = random(ctx, DType::f32, {2, d}, r);
  const Tensor x = ctx.allocate(DType::f32, {2, n, d}), y = poisoned(ctx, DType::f32, {2, n, d});
  for (int64_t s = 0; s < 2; ++s)
    for (int64_t p = 0; p < n; ++p)
      for (int64_t c = 0; c < d; ++c) put(x, (s * n + p) * d + c, get(one, s * d + c));
  rotary(ctx, {x, t.cosine, t.sine, y});
  const auto dot = [&](int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += get(y, i * d + c) * get(y, (n + j) * d + c);
    return sum;
  };
  for (int64_t shift : {0, 3, 17})
    for (int64_t p = 0; p + shift < n; ++p)
      CHECK(std::abs(dot(p + shift, p) - dot(shift, 0)) < 64 * epsilon_of(DType::f32) * d);
  CHECK(std::abs(dot(3, 0) - dot(0, 0)) > 1e-3);
}

TEST_CASE("rotary refuses tables that do not fit, naming them") {
  Context ctx(cpu_backend(), 1);
  Random r(613);
  const Tensor x = random(ctx, DType::f32, {2, 3, 4}, r), y = poisoned(ctx, DType::f32, {2, 3, 4});
  const Table few = table(ctx, 2, 2, r), wide = table(ctx, 3, 3, r), good = table(ctx, 3, 2, r);
  CHECK_NOTHROW(rotary(ctx, {x, good.cosine, good.sine, y}));
  REQUIRE_THROWS_WITH(rotary(ctx, {x, few.cosine, few.sine, y}),
                      ContainsSubstring("a row for each of 3 tokens"));
  REQUIRE_THROWS_WITH(rotary(ctx, {x, wide.cosine, wide.sine, y}), ContainsSubstring("3 pairs do not fit 4"));
  REQUIRE_THROWS_AS(rotary(ctx, {x, good.cosine, wide.sine, y}), UsageError);
}
