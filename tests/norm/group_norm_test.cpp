// group_norm (instance, single-group, batch by running statistics) and l2_norm against two passes in double.
#include "kernels/norm/norm.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

void run_and_check(Context& ctx, const GroupNormArgs& a) {
  const bool last = a.channels_last;
  const int64_t batch = a.x.dim(0), channels = a.x.dim(last ? -1 : 1),
                positions = a.x.numel() / (batch * channels);
  const std::vector<double> x = values(a.x);
  const auto at = [&](int64_t b, int64_t c, int64_t p) {
    return static_cast<size_t>(last ? (b * positions + p) * channels + c
                                    : (b * channels + c) * positions + p);
  };
  std::vector<double> want(x.size()), slack(x.size());
  const int64_t groups = a.mean ? channels : a.groups, per = channels / groups;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t g = 0; g < groups; ++g) {
      double mean = 0, var = 0;
      const auto n = static_cast<double>(per * positions);
      for (int64_t c = g * per; c < (g + 1) * per; ++c)
        for (int64_t p = 0; p < positions; ++p) mean += x[at(b, c, p)] / n;
      for (int64_t c = g * per; c < (g + 1) * per; ++c)
        for (int64_t p = 0; p < positions; ++p) var += (x[at(b, c, p)] - mean) * (x[at(b, c, p)] - mean) / n;
      if (a.mean) mean = get(a.mean, g), var = get(a.variance, g);
      const double scale = 1 / std::sqrt(var + static_cast<double>(a.eps));
      for (int64_t c = g * per; c < (g + 1) * per; ++c) {
        const double gain = a.gain ? get(a.gain, c) : 1, offset = a.offset ? get(a.offset, c) : 0;
        for (int64_t p = 0; p < positions; ++p) {
          const size_t i = at(b, c, p);
          want[i] = (x[i] - mean) * scale * gain + offset;
          // x scale + shift: three roundings, relative to the terms.
          slack[i] = 4 * 0x1p-24 *
                     (std::fabs(x[i] * scale * gain) + std::fabs(mean * scale * gain) + std::fabs(offset));
        }
      }
    }
  if (a.y.raw() != a.x.raw()) poison(a.y);
  group_norm(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("group_norm agrees with double: groups, layouts, ranks, running statistics, in place") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(501);
    for (bool last : {true, false})
      for (int64_t groups : {1, 3, 12, 0})  // 0: running statistics
        for (const Shape& space : {Shape{5, 7}, Shape{1}, Shape{83}, Shape{2, 3, 4}}) {
          std::vector<int64_t> dims = {3};
          if (!last) dims.push_back(12);
          dims.insert(dims.end(), space.begin(), space.end());
          if (last) dims.push_back(12);
          GroupNormArgs a;
          a.channels_last = last, a.groups = std::max<int64_t>(groups, 1);
          a.x = random(ctx, type, Shape(std::span<const int64_t>(dims)), r, -2, 3);
          if (space.rank() > 1) a.gain = random(ctx, type, {12}, r);
          if (space.rank() > 0) a.offset = random(ctx, type, {12}, r);
          if (groups == 0) {
            const DType statistics = space.rank() == 1 ? DType::f32 : type;
            a.mean = random(ctx, statistics, {12}, r), a.variance = random(ctx, statistics, {12}, r, 0.1, 2);
          }
          a.y = ctx.allocate(type, a.x.shape());
          INFO(a.x.shape().str() << " groups " << groups << (last ? " last" : " first"));
          run_and_check(ctx, a);
          a.y = a.x;
          run_and_check(ctx, a);
        }
  });
}

TEST_CASE("group statistics stay right far from zero and over many chunks") {
  Context ctx(cpu_backend(), 2);
  Random r(502);
  for (bool last : {true, false}) {
    GroupNormArgs a;
    a.channels_last = last, a.groups = 2;
    a.x = random(ctx, DType::f32, last ? Shape{2, 300, 310, 4} : Shape{2, 4, 300, 310}, r, 100, 101);
    a.y = ctx.allocate(DType::f32, a.x.shape());
    run_and_check(ctx, a);
    Context three(cpu_backend(), 3);
    GroupNormArgs b = a;
    b.y = poisoned(ctx, DType::f32, a.x.shape());
    group_norm(three, b);
    CHECK(same_bits(a.y, b.y));
  }
}

TEST_CASE("a constant group becomes its offset") {
  Context ctx(cpu_backend(), 1);
  GroupNormArgs a;
  a.x = ctx.allocate(DType::f32, {1, 6, 4});
  fill(a.x, 3.25);
  Random r(503);
  a.offset = random(ctx, DType::f32, {4}, r);
  a.y = poisoned(ctx, DType::f32, {1, 6, 4});
  group_norm(ctx, a);
  for (int64_t i = 0; i < 24; ++i) CHECK(std::fabs(get(a.y, i) - get(a.offset, i % 4)) < 4e-4);
}

TEST_CASE("group_norm charges its formula and refuses misfits") {
  Context ctx(cpu_backend(), 1);
  Random r(504);
  GroupNormArgs a;
  a.groups = 2;
  a.x = random(ctx, DType::f32, {3, 5, 4}, r);
  a.gain = random(ctx, DType::f32, {4}, r);
  a.y = ctx.allocate(DType::f32, {3, 5, 4});
  CHECK(charged(ctx, [&] { group_norm(ctx, a); }) == Cost{0, 300, 12, 4 * 64, 4 * 60});
  GroupNormArgs given = a;
  given.mean = random(ctx, DType::f32, {4}, r), given.variance = random(ctx, DType::f32, {4}, r, 0, 1);
  CHECK(charged(ctx, [&] { group_norm(ctx, given); }) == Cost{0, 120, 8, 4 * 72, 4 * 60});
  const auto refuses = [&](const std::string& word, auto change) {
    GroupNormArgs b = a;
    change(b);
    CHECK_THROWS_AS(group_norm(ctx, b), UsageError);
    CHECK_THROWS_WITH(group_norm(ctx, b), ContainsSubstring(word));
  };
  refuses("groups is 3", [](auto& b) { b.groups = 3; });
  refuses("come together", [&](auto& b) { b.mean = b.gain; });
  refuses("[5]", [&](auto& b) { b.channels_last = false; });
  refuses("eps is -1", [](auto& b) { b.eps = -1; });
}

TEST_CASE("l2_norm divides rows by their norm or eps") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(505);
    for (int64_t n : {1, 5, 16, 67, 200}) {
      NormArgs a;
      a.kind = NormArgs::Kind::l2_norm, a.eps = 1e-3f;
      a.x = random(ctx, type, {4, n}, r);
      for (int64_t i = 0; i < n; ++i) put(a.x, i, 0.0);                      // a row of zeros
      for (int64_t i = 0; i < n; ++i) put(a.x, n + i, i == 0 ? 1e-4 : 0.0);  // a norm below eps
      a.y = poisoned(ctx, type, {4, n});
      std::vector<double> want, slack;
      for (int64_t i = 0; i < 4; ++i) {
        double squares = 0;
        for (int64_t j = 0; j < n; ++j) squares += get(a.x, i * n + j) * get(a.x, i * n + j);
        const double norm = std::max(std::sqrt(squares), static_cast<double>(a.eps));
        for (int64_t j = 0; j < n; ++j) {
          want.push_back(get(a.x, i * n + j) / norm);
          slack.push_back(static_cast<double>(n + 4) * 0x1p-24 * std::fabs(want.back()));
        }
      }
      normalize(ctx, a);
      check_close(a.y, want, slack);
    }
  });
  NormArgs a;
  a.kind = NormArgs::Kind::l2_norm;
  a.x = ctx.allocate(type, {2, 4}), a.y = ctx.allocate(type, {2, 4}), a.gain = ctx.allocate(type, {4});
  CHECK_THROWS_WITH(normalize(ctx, a), ContainsSubstring("neither gain nor offset"));
}
