// softmax against double, with causal rows, empty rows, infinities and NaN.
#include "kernels/softmax/softmax.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

void run_and_check(Context& ctx, const SoftmaxArgs& a) {
  const std::vector<double> x = values(a.x);
  const int64_t n = a.x.dim(-1), queries = a.causal ? a.x.dim(-2) : 1;
  std::vector<double> want(x.size(), 0.0), slack(x.size());
  for (size_t row = 0; row < x.size() / static_cast<size_t>(n); ++row) {
    const int64_t i = static_cast<int64_t>(row) % queries;
    const int64_t seen = a.causal ? std::clamp<int64_t>(i + a.causal_offset + 1, 0, n) : n;
    const double* v = x.data() + row * static_cast<size_t>(n);
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = 0; j < seen; ++j) top = std::max(top, v[j]);
    for (int64_t j = 0; j < seen; ++j) sum += std::exp(v[j] - top);
    for (int64_t j = 0; j < seen; ++j) {
      const size_t at = row * static_cast<size_t>(n) + static_cast<size_t>(j);
      want[at] = std::isinf(top) ? 0 : std::exp(v[j] - top) / sum;
      // The difference x - top is rounded at its size, which exp turns into a relative error.
      slack[at] = want[at] * 0x1p-24 * (std::fabs(v[j]) + std::fabs(top) + 16) + 1e-38;
    }
  }
  if (a.y.raw() != a.x.raw()) poison(a.y);
  softmax(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("softmax agrees with double for every dtype, width, mask and layout") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(61);
    for (int64_t n : {1, 3, 16, 31, 64, 130})
      for (int64_t offset : {int64_t{-3}, int64_t{0}, n - 5, int64_t{1} << 62}) {
        for (bool causal : {false, true}) {
          SoftmaxArgs a;
          a.causal = causal;
          a.causal_offset = offset;
          a.x = random(ctx, type, {2, 5, n}, r, -20, 20);
          a.y = ctx.allocate(type, {2, 5, n});
          run_and_check(ctx, a);
          a.y = a.x;
          run_and_check(ctx, a);
          a.x = randomize(padded(ctx, type, {2, 5, n}, 3, 1), r, -5, 5);
          a.y = padded(ctx, type, {2, 5, n}, 0, 2);
          run_and_check(ctx, a);
        }
      }
  });
}

TEST_CASE("rows that see nothing are 0; huge scores do not overflow; NaN stays in its row") {
  Context ctx(cpu_backend(), 1);
  const double inf = std::numeric_limits<double>::infinity();
  each_isa([&] {
    SoftmaxArgs a;
    a.x = ctx.allocate(DType::f32, {4, 20});
    a.y = poisoned(ctx, DType::f32, {4, 20});
    fill(a.x, 1e30);
    for (int64_t j = 0; j < 20; ++j) put(a.x, 20 + j, -inf);
    put(a.x, 45, std::numeric_limits<double>::quiet_NaN());
    put(a.x, 60, -inf);
    softmax(ctx, a);
    for (int64_t j = 0; j < 20; ++j) {
      CHECK(get(a.y, j) == Approx(0.05));
      CHECK(get(a.y, 20 + j) == 0.0);
      CHECK(std::isnan(get(a.y, 40 + j)));
      CHECK(get(a.y, 60 + j) == (j == 0 ? Approx(0.0) : Approx(1.0 / 19)));
    }
    a.causal = true;
    a.causal_offset = -2;
    fill(a.x, 1.0);
    softmax(ctx, a);
    for (int64_t j = 0; j < 40; ++j) CHECK(get(a.y, j) == 0.0);
  });
}

TEST_CASE("softmax charges its formula, ignores the thread count, refuses misfits") {
  Random r(62);
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  SoftmaxArgs a;
  a.causal = true;
  a.x = random(one, DType::f32, {3, 200, 300}, r, -9, 9);
  a.y = poisoned(one, DType::f32, {3, 200, 300});
  CHECK(charged(one, [&] { softmax(one, a); }) == Cost{0, 4 * 180000, 180000, 720000, 720000});
  SoftmaxArgs b = a;
  b.y = poisoned(one, DType::f32, {3, 200, 300});
  softmax(three, b);
  CHECK(same_bits(a.y, b.y));
  b.y = one.allocate(DType::f32, {3, 300, 200});
  CHECK_THROWS_WITH(softmax(one, b), ContainsSubstring("shapes of 'x'"));
  b = a;
  b.x = b.x.reshape({180000});
  b.y = b.y.reshape({180000});
  CHECK_THROWS_WITH(softmax(one, b), ContainsSubstring("axes"));
  b.x = b.y = one.allocate(DType::f32, {0, 4});
  CHECK_NOTHROW(softmax(one, b));
}

TEST_CASE("softmax clears what rows do not see in its input when told to") {
  Context ctx(cpu_backend(), 1);
  SoftmaxArgs a;
  a.x = ctx.allocate(DType::f32, {2, 3});
  a.y = poisoned(ctx, DType::f32, {2, 3});
  for (int i = 0; i < 6; ++i) put(a.x, i, i + 1);
  a.causal = a.clear_hidden = true;
  softmax(ctx, a);
  CHECK(values(a.x) == std::vector<double>{1, 0, 0, 4, 5, 0});
  CHECK(values(a.y)[0] == 1.0);
  a.y = a.x;
  CHECK_THROWS_WITH(softmax(ctx, a), ContainsSubstring("clear_hidden"));
}
