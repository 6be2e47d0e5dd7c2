// Unit rows, feature maps and quotients against their definitions in double.
#include "kernels/features/features.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("unit_rows: types, strides, target norms, zero rows") {
  Context ctx(cpu_backend(), 2);
  Random r(611);
  for (DType type : {DType::f32, DType::bf16, DType::f16})
    for (bool wide : {false, true})
      for (bool liked : {false, true})
        for (int64_t n : {1, 7, 64, 1001}) {
          const Tensor x = random(ctx, type, {3, 2, n}, r).transpose(0, 1),
                       like = random(ctx, type, {2, 3, n}, r);
          for (int64_t i = 0; i < n; ++i) put(x, i, 0);  // row (0, 0)
          UnitRowsArgs args;
          args.x = x, args.y = poisoned(ctx, wide ? DType::f32 : type, {2, 3, n});
          if (liked) args.like = like;
          args.floor = 0.25f;
          const Cost cost = charged(ctx, [&] { unit_rows(ctx, args); });
          CHECK(cost.elementwise == (liked ? 5 : 3) * 6 * n);
          CHECK(cost.special == 12);
          const std::vector<double> from = values(x), target = values(like);
          std::vector<double> want;
          for (int64_t row = 0; row < 6; ++row) {
            double power = 0, other = 0;
            for (int64_t i = 0; i < n; ++i) {
              power += std::pow(from[static_cast<size_t>(row * n + i)], 2);
              other += std::pow(target[static_cast<size_t>(row * n + i)], 2);
            }
            for (int64_t i = 0; i < n; ++i)
              want.push_back(from[static_cast<size_t>(row * n + i)] / std::max(std::sqrt(power), 0.25) *
                             (liked ? std::sqrt(other) : 1));
          }
          check_close(args.y, want, {4 * 0x1p-24 * 30});
        }
  const Tensor x = random(ctx, DType::f32, {2, 3}, r);
  CHECK_THROWS_WITH(unit_rows(ctx, {x, {}, x, -1.0f}), ContainsSubstring("floor"));
  UnitRowsArgs args;
  args.kind = UnitRowsArgs::Kind::mean;
  args.x = args.y = args.like = x;
  CHECK_THROWS_WITH(unit_rows(ctx, args), ContainsSubstring("'like'"));
}

TEST_CASE("unit_rows: given means and scales, a gain for each row") {
  using Kind = UnitRowsArgs::Kind;
  Context ctx(cpu_backend(), 2);
  Random r(613);
  for (DType type : {DType::f32, DType::bf16})
    for (Kind kind : {Kind::norm, Kind::mean, Kind::scale})
      for (bool gained : {false, true})
        for (int64_t n : {1, 13, 800}) {
          UnitRowsArgs args;
          args.kind = kind;
          args.x = random(ctx, type, {2, 3, n}, r, 1, 3).transpose(0, 1);
          args.y = poisoned(ctx, DType::f32, {3, 2, n});
          if (gained) args.gain = random(ctx, DType::f32, {2, 3}, r).transpose(0, 1);
          args.alpha = 0.5f, args.beta = 0.25f;
          const Cost cost = charged(ctx, [&] { unit_rows(ctx, args); });
          CHECK(cost.elementwise == (kind == Kind::scale ? 1 : 3) * 6 * n);
          const std::vector<double> from = values(args.x),
                                    gain = gained ? values(args.gain) : std::vector<double>(6, 1.0);
          std::vector<double> want;
          for (size_t row = 0; row < 6; ++row) {
            double sum = 0, power = 0;
            for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
              const double v = from[row * static_cast<size_t>(n) + i];
              sum += v, power += v * v;
            }
            for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
              const double v = from[row * static_cast<size_t>(n) + i];
              want.push_back(kind == Kind::norm ? gain[row] * v / std::sqrt(power)
                             : kind == Kind::mean
                                 ? gain[row] * 0.5 * (v - sum / static_cast<double>(n)) + 0.25
                                 : gain[row] * v);
            }
          }
          check_close(args.y, want, {16 * 0x1p-24});
        }
}

TEST_CASE("feature maps: every kind against its formula; the mean of products is exp(x . y)") {
  using Kind = FeatureMapArgs::Kind;
  Context ctx(cpu_backend(), 2);
  Random r(612);
  for (Kind kind : {Kind::exponential, Kind::trigonometric, Kind::relu})
    for (const auto& [d, m] : {std::pair<int64_t, int64_t>{1, 1}, {8, 5}, {17, 64}}) {
      const int64_t f = kind == Kind::trigonometric ? 2 * m : m;
      const Tensor x = random(ctx, DType::f32, {4, 3, d}, r),
                   p = random(ctx, DType::f32, {4, 3, m}, r, -3, 3),
                   y = padded(ctx, DType::f32, {4, 3, f}, 1, 2);
      FeatureMapArgs args;
      args.kind = kind, args.x = x, args.p = p, args.y = y;
      Cost cost = charged(ctx, [&] { feature_map(ctx, args); });
      CHECK(cost.special == (kind == Kind::relu ? 0 : 12 * f));
      const Cost formula = feature_map_cost(kind, 12, d, m);
      CHECK(cost.elementwise == formula.elementwise);
      std::vector<double> want;
      for (int64_t row = 0; row < 12; ++row) {
        double half = 0;
        for (int64_t i = 0; i < d; ++i) half += std::pow(get(x, row * d + i), 2) / 2;
        for (int64_t i = 0; i < f; ++i) {
          const double v = get(p, row * m + i % m), root = std::sqrt(static_cast<double>(m));
          want.push_back(kind == Kind::relu ? std::max(v, 0.0) / root + 1e-3
                         : kind == Kind::exponential
                             ? std::exp(v - half) / root
                             : std::exp(half) / root * (i < m ? std::sin(v) : std::cos(v)));
        }
      }
      double most = 0;
      for (double v : want) most = std::max(most, std::abs(v));
      INFO("kind " << static_cast<int>(kind) << ", D " << d << ", m " << m);
      check_close(y, want, {16 * 0x1p-24 * most});
      if (kind != Kind::trigonometric) {
        args.y = p;
        feature_map(ctx, args);
        CHECK(same_bits(p, y));
      }
    }
}

TEST_CASE("divide_by_last: quotients, in place, denominators that are not positive") {
  Context ctx(cpu_backend(), 1);
  const Tensor x = ctx.allocate(DType::f32, {3, 3});
  const std::vector<double> v = {1, 2, 4, 3, 5, 0, 7, 8, -2};
  for (size_t i = 0; i < v.size(); ++i) put(x, static_cast<int64_t>(i), v[i]);
  const Tensor y = poisoned(ctx, DType::f32, {3, 2});
  CHECK(charged(ctx, [&] { divide_by_last(ctx, {x, y}); }) == Cost{0, 0, 6, 36, 24});
  CHECK(values(y) == std::vector<double>{0.25, 0.5, 3, 5, 7, 8});
  divide_by_last(ctx, {x, x.slice(1, 0, 2)});
  CHECK(values(x.slice(1, 0, 2)) == values(y));
}
