// Moving mass between keys: the card's row by hand, both forms against double precision and against each
// other.
#include "kernels/attention/reweigh.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {
constexpr float kInf = std::numeric_limits<float>::infinity();
}

TEST_CASE("a row of three probabilities by hand") {
  Context ctx(cpu_backend(), 1);
  ReweighMapArgs a;
  a.p = ctx.allocate(DType::f32, {1, 1, 1, 3}), a.members = ctx.allocate(DType::i32, {1, 1, 3});
  const float p[] = {0.5f, 0.3f, 0.2f};
  std::copy(p, p + 3, a.p.data<float>());
  const int32_t member[] = {0, 1, 0};
  std::copy(member, member + 3, a.members.data<int32_t>());
  a.beta = 0.4f;
  a.y = poisoned(ctx, DType::f32, {1, 1, 1, 3});
  a.share = poisoned(ctx, DType::f32, {1, 1, 1}), a.share_after = poisoned(ctx, DType::f32, {1, 1, 1});
  reweigh_map(ctx, a);
  CHECK(a.y.data<float>()[0] == Approx(0.628571));
  CHECK(a.y.data<float>()[1] == Approx(0.12));
  CHECK(a.y.data<float>()[2] == Approx(0.251429));
  CHECK(a.share.data<float>()[0] == Approx(0.3));
  CHECK(a.share_after.data<float>()[0] == Approx(0.12));
}

TEST_CASE("both forms of reweighing agree with double precision; heads and rows that stay, stay bit by bit") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool in_place = GENERATE(false, true);
  Context ctx(cpu_backend(), 2);
  testing::Random r(3);
  const int64_t batch = 2, heads = 3, n = 21, m = 17, e = 11;
  const float beta = 0.4f;
  ReweighMapArgs map;
  map.p = random(ctx, DType::f32, {batch, heads, n, m}, r, 0.01, 1);
  map.members = ctx.allocate(DType::i32, {batch, heads, m});
  for (int64_t i = 0; i < map.members.numel(); ++i)
    map.members.data<int32_t>()[i] = r.integer(0, 3) == 0 ? 5 : 0;
  for (int64_t t = 0; t < m; ++t) map.members.data<int32_t>()[t] = 0;  // no sink: rows of the first head stay
  const Tensor values = random(ctx, dtype, {batch, heads, m, e}, r);
  map.apply = ctx.allocate(DType::f32, {batch, heads});
  for (int64_t i = 0; i < batch * heads; ++i) map.apply.data<float>()[i] = i == 2 ? 0.0f : 1.0f;
  map.beta = beta;
  const Shape rows{batch, heads, n};
  ReweighAttentionArgs a;
  a.o = ctx.allocate(dtype, {batch, heads, n, e}), a.o_s = poisoned(ctx, dtype, {batch, heads, n, e});
  a.lse = random(ctx, DType::f32, rows, r, -3, 3), a.lse_s = ctx.allocate(DType::f32, rows);
  a.apply = map.apply, a.beta = beta;
  std::vector<double> want_map, want, want_share, want_after;
  for (int64_t row = 0; row < rows.numel(); ++row) {
    const int64_t head = row / n;
    double sum = 0, s = 0;
    for (int64_t t = 0; t < m; ++t) sum += get(map.p, row * m + t);
    for (int64_t t = 0; t < m; ++t) put(map.p, row * m + t, get(map.p, row * m + t) / sum);
    // One row whose mass lies on members alone stays as it is.
    const bool all = row == 4 * n + 3;
    for (int64_t t = 0; t < m && all; ++t)
      if (!map.members.data<int32_t>()[head * m + t]) put(map.p, row * m + t, 0);
    for (int64_t t = 0; t < m; ++t)
      if (map.members.data<int32_t>()[head * m + t]) s += get(map.p, row * m + t);
    for (int64_t t = 0; t < m && all; ++t) put(map.p, row * m + t, get(map.p, row * m + t) / s);
    if (all) s = 1;
    const bool moves = head != 2 && s < 1;
    const double others = moves ? 1 + (1 - double{beta}) * s / (1 - s) : 1,
                 members = moves ? double{beta} : 1;
    want_share.push_back(s), want_after.push_back(moves ? double{beta} * s : s);
    put(a.lse_s, row, s > 0 ? get(a.lse, row) + std::log(s) : -kInf);
    for (int64_t t = 0; t < m; ++t)
      want_map.push_back(get(map.p, row * m + t) *
                         (map.members.data<int32_t>()[head * m + t] ? members : others));
    for (int64_t c = 0; c < e; ++c) {
      double o = 0, o_s = 0, y = 0;
      for (int64_t t = 0; t < m; ++t) {
        const double p = get(map.p, row * m + t), v = get(values, (head * m + t) * e + c);
        o += p * v, y += want_map[static_cast<size_t>(row * m + t)] * v;
        if (map.members.data<int32_t>()[head * m + t]) o_s += p * v / s;
      }
      put(a.o, row * e + c, o);
      if (s > 0) put(a.o_s, row * e + c, o_s);
      want.push_back(y);
    }
  }
  const std::vector<double> o = testing::values(a.o);
  a.y = in_place ? a.o : poisoned(ctx, dtype, a.o.shape());
  a.share = poisoned(ctx, DType::f32, rows), a.share_after = poisoned(ctx, DType::f32, rows);
  reweigh_attention(ctx, a);
  map.y = in_place ? map.p : poisoned(ctx, DType::f32, map.p.shape());
  map.share = poisoned(ctx, DType::f32, rows), map.share_after = poisoned(ctx, DType::f32, rows);
  reweigh_map(ctx, map);
  // o and o_s were rounded to storage; values up to 1, factors up to a few.
  check_close(a.y, want, {8 * epsilon_of(dtype) + 32 * epsilon_of(DType::f32)});
  check_close(map.y, want_map, {32 * epsilon_of(DType::f32)});
  for (const Tensor* t : {&a.share, &map.share}) check_close(*t, want_share, {16 * epsilon_of(DType::f32)});
  for (const Tensor* t : {&a.share_after, &map.share_after})
    check_close(*t, want_after, {16 * epsilon_of(DType::f32)});
  const std::vector<double> got = testing::values(a.y);
  for (int64_t row : {int64_t{0}, 2 * n, 2 * n + 5})
    for (int64_t c = 0; c < e; ++c)
      CHECK(got[static_cast<size_t>(row * e + c)] == o[static_cast<size_t>(row * e + c)]);
}

TEST_CASE("reweighing refuses what does not fit") {
  Context ctx(cpu_backend(), 1);
  testing::Random r(4);
  ReweighAttentionArgs a;
  a.o = random(ctx, DType::f32, {1, 2, 3, 4}, r), a.o_s = random(ctx, DType::f32, {1, 2, 3, 4}, r);
  a.lse = random(ctx, DType::f32, {1, 2, 3}, r), a.lse_s = random(ctx, DType::f32, {1, 2, 4}, r);
  CHECK_THROWS_WITH(reweigh_attention(ctx, a), ContainsSubstring("lse_s"));
  a.lse_s = a.lse, a.apply = random(ctx, DType::f32, {2, 2}, r);
  CHECK_THROWS_WITH(reweigh_attention(ctx, a), ContainsSubstring("apply"));
  ReweighMapArgs m;
  m.p = m.y = random(ctx, DType::f32, {1, 2, 3, 4}, r), m.members = ctx.allocate(DType::i32, {1, 2, 3});
  CHECK_THROWS_WITH(reweigh_map(ctx, m), ContainsSubstring("members"));
}
