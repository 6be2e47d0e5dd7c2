// Row gathers and axis permutations move exactly the elements they say.
#include "kernels/layout/layout.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

double any(DType type, Random& r) {
  return type == DType::u8 ? static_cast<double>(r.integer(0, 255))
                           : static_cast<double>(r.integer(-100, 100));
}

}  // namespace

TEST_CASE("gather_rows copies, repeats, drops and pads rows") {
  const DType type = GENERATE(DType::f64, DType::f32, DType::bf16, DType::u8);
  Context ctx(cpu_backend(), 2);
  Random r(81);
  for (int64_t c : {1, 3, 64, 257}) {
    const int64_t n = r.integer(1, 40), m = r.integer(1, 80);
    GatherRowsArgs a;
    Tensor wide = ctx.allocate(type, {3, n, c + 5});
    each(wide, [&](int64_t o) { put(wide, o, any(type, r)); });
    a.x = wide.slice(2, 2, 2 + c);
    a.index = ctx.allocate(DType::i32, {m});
    for (int64_t i = 0; i < m; ++i) put(a.index, i, static_cast<double>(r.integer(-1, n - 1)));
    Tensor out = ctx.allocate(type, {3, m + 2, c});
    fill(out, 77);
    a.y = out.slice(1, 1, m + 1);
    gather_rows(ctx, a);
    for (int64_t b = 0; b < 3; ++b)
      for (int64_t i = 0; i < m + 2; ++i)
        for (int64_t j = 0; j < c; ++j) {
          const double have = get(out, (b * (m + 2) + i) * c + j);
          if (i == 0 || i == m + 1) {
            REQUIRE(have == 77);
            continue;
          }
          const auto from = static_cast<int64_t>(get(a.index, i - 1));
          REQUIRE(have == (from < 0 ? 0.0 : get(wide, (b * n + from) * (c + 5) + 2 + j)));
        }
  }
}

TEST_CASE("gather_rows refuses indices outside the rows and charges bytes only") {
  Context ctx(cpu_backend(), 1);
  Random r(82);
  GatherRowsArgs a;
  a.x = random(ctx, DType::f32, {2, 4, 8}, r);
  a.index = ctx.allocate(DType::i32, {3});
  fill(a.index, 3);
  a.y = ctx.allocate(DType::f32, {2, 3, 8});
  CHECK(charged(ctx, [&] { gather_rows(ctx, a); }) == Cost{0, 0, 0, 192 + 12, 192});
  for (int bad : {4, -2}) {
    put(a.index, 1, bad);
    CHECK_THROWS_WITH(gather_rows(ctx, a), ContainsSubstring("index[1] is " + std::to_string(bad)));
  }
  put(a.index, 1, 0);
  GatherRowsArgs b = a;
  b.index = random(ctx, DType::f32, {3}, r);
  CHECK_THROWS_WITH(gather_rows(ctx, b), ContainsSubstring("i32"));
  b = a;
  b.y = a.x.slice(1, 0, 3);
  CHECK_THROWS_WITH(gather_rows(ctx, b), ContainsSubstring("overlap"));
  b.index = ctx.allocate(DType::i32, {0});
  b.y = ctx.allocate(DType::f32, {2, 0, 8});
  CHECK_NOTHROW(gather_rows(ctx, b));
}

TEST_CASE("transpose_copy moves every element for any permutation, stride and size") {
  const DType type = GENERATE(DType::f64, DType::f32, DType::f16, DType::u8);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(83);
    for (int round = 0; round < 60; ++round) {
      const int rank = static_cast<int>(r.integer(1, 4));
      Shape shape{1, 1, 1, 1};
      for (int i = 0; i < 4; ++i) shape[i] = i < rank ? r.integer(1, round % 5 == 0 ? 70 : 12) : 1;
      int order[4] = {0, 1, 2, 3};
      for (int i = 3; i > 0; --i) std::swap(order[i], order[r.integer(0, i)]);
      Tensor x = ctx.allocate(type, shape);
      each(x, [&](int64_t o) { put(x, o, any(type, r)); });
      TransposeCopyArgs a;
      a.x = x.permute({order[0], order[1], order[2], order[3]});
      if (round % 3 == 0 && a.x.dim(0) > 1) a.x = a.x.slice(0, 1, a.x.dim(0));
      a.y = ctx.allocate(type, a.x.shape());
      if (round % 4 == 1)
        a.y = ctx.allocate(type, {a.x.dim(2), a.x.dim(0), a.x.dim(3), a.x.dim(1)}).permute({1, 3, 0, 2});
      fill(a.y, 101);
      transpose_copy(ctx, a);
      REQUIRE(same_bits(a.x, a.y));
    }
  });
}

TEST_CASE("transpose_copy: large planes with threads, broadcasts, scalars, empty and wrong arguments") {
  Context ctx(cpu_backend(), 3);
  Random r(84);
  TransposeCopyArgs a;
  a.x = random(ctx, DType::f32, {2, 700, 333}, r).transpose(1, 2);
  a.y = poisoned(ctx, DType::f32, {2, 333, 700});
  CHECK(charged(ctx, [&] { transpose_copy(ctx, a); }) == Cost{0, 0, 0, a.x.nbytes(), a.x.nbytes()});
  CHECK(same_bits(a.x, a.y));
  a.x = random(ctx, DType::f32, {300000}, r);
  a.y = poisoned(ctx, DType::f32, {300000});
  transpose_copy(ctx, a);
  CHECK(same_bits(a.x, a.y));
  a.x = random(ctx, DType::f32, {50}, r).strided({40, 50}, {0, 1});
  a.y = poisoned(ctx, DType::f32, {40, 50});
  transpose_copy(ctx, a);
  CHECK(same_bits(a.x, a.y));
  a.x = random(ctx, DType::f32, {}, r);
  a.y = poisoned(ctx, DType::f32, {});
  transpose_copy(ctx, a);
  CHECK(same_bits(a.x, a.y));
  a.x = a.y = ctx.allocate(DType::f32, {3, 0});
  CHECK_NOTHROW(transpose_copy(ctx, a));
  a.x = random(ctx, DType::f32, {4, 5}, r);
  a.y = ctx.allocate(DType::f32, {5, 4});
  CHECK_THROWS_WITH(transpose_copy(ctx, a), ContainsSubstring("shapes"));
  a.y = a.x.reshape({5, 4}).transpose(0, 1);
  CHECK_THROWS_WITH(transpose_copy(ctx, a), ContainsSubstring("overlap"));
}
