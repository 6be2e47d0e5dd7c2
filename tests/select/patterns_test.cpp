// Line and cell sums, distances, count rules, masks and block corrections against their definitions.
#include "kernels/select/patterns.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("line_sums: columns and diagonals of every map") {
  Context ctx(cpu_backend(), GENERATE(1, 3));
  Random r(31);
  for (const auto& [rows, n] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 7}, {4, 4}, {5, 9}, {8, 3}, {16, 2500}}) {
    LineSumsArgs a;
    a.x = randomize(padded(ctx, DType::f32, {2, 3, rows, n}, 1, 2), r, 0, 1);
    a.vertical = poisoned(ctx, DType::f32, {2, 3, n});
    a.slash = poisoned(ctx, DType::f32, {2, 3, n});
    line_sums(ctx, a);
    const std::vector<double> x = values(a.x);
    std::vector<double> vertical, slash;
    for (int64_t map = 0; map < 6; ++map)
      for (int64_t j = 0; j < n; ++j) {
        double down = 0, along = 0;
        for (int64_t i = 0; i < rows; ++i) {
          down += x[static_cast<size_t>((map * rows + i) * n + j)];
          const int64_t c = j - (rows - 1) + i;
          if (c >= 0) along += x[static_cast<size_t>((map * rows + i) * n + c)];
        }
        vertical.push_back(down / static_cast<double>(rows));
        slash.push_back(along / static_cast<double>(rows));
      }
    check_close(a.vertical, vertical, {1e-12});
    check_close(a.slash, slash, {1e-12});
  }
}

TEST_CASE("line_sums by hand: the last entry is the main diagonal") {
  Context ctx(cpu_backend(), 1);
  LineSumsArgs a;
  a.x = ctx.allocate(DType::f32, {2, 3});
  const double x[6] = {1, 2, 4, 8, 16, 32};
  for (int i = 0; i < 6; ++i) put(a.x, i, x[i]);
  a.vertical = ctx.allocate(DType::f32, {3});
  a.slash = ctx.allocate(DType::f32, {3});
  line_sums(ctx, a);
  CHECK(values(a.vertical) == std::vector<double>{4.5, 9, 18});
  CHECK(values(a.slash) == std::vector<double>{4, (1 + 16) / 2.0, (2 + 32) / 2.0});
}

TEST_CASE("cell_sums adds cells, short ones at the ends, and skips those above the diagonal") {
  Context ctx(cpu_backend(), 2);
  Random r(32);
  for (bool causal : {false, true})
    for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {2, 3}, {8, 8}, {100, 4}}) {
      CellSumsArgs a;
      a.rows = rows, a.columns = columns, a.causal_cells = causal;
      const int64_t R = 21, C = 19, down = (R + rows - 1) / rows, across = (C + columns - 1) / columns;
      a.x = random(ctx, DType::f32, {3, R, C}, r);
      a.y = padded(ctx, DType::f32, {3, down, across}, 2, 1);
      cell_sums(ctx, a);
      const std::vector<double> x = values(a.x);
      std::vector<double> want;
      for (int64_t map = 0; map < 3; ++map)
        for (int64_t i = 0; i < down; ++i)
          for (int64_t c = 0; c < across; ++c) {
            double sum = 0;
            for (int64_t e = 0; e < R * C; ++e)
              if (e / C / rows == i && e % C / columns == c) sum += x[static_cast<size_t>(map * R * C + e)];
            want.push_back(causal && c > i ? 0.0 : sum);
          }
      check_close(a.y, want, {1e-12});
    }
}

TEST_CASE("line_sums of queries and keys are those of their causal softmax") {
  Context ctx(cpu_backend(), GENERATE(1, 2));
  const auto type = GENERATE(DType::f32, DType::bf16);
  Random r(33);
  for (const auto& [rows, n] : {std::pair<int64_t, int64_t>{1, 1}, {3, 3}, {4, 17}, {16, 150}}) {
    const int64_t d = 8;
    LineSumsArgs a;
    // Token-major, two query heads for each of the two key heads.
    a.q = random(ctx, type, {2, rows, 4, d}, r).transpose(1, 2);
    a.k = random(ctx, type, {2, n, 2, d}, r).transpose(1, 2);
    a.scale = 0.7f;
    a.vertical = poisoned(ctx, DType::f32, {2, 4, n});
    a.slash = poisoned(ctx, DType::f32, {2, 4, n});
    line_sums(ctx, a);
    const std::vector<double> q = values(a.q), k = values(a.k);
    std::vector<double> vertical(static_cast<size_t>(8 * n)), slash(static_cast<size_t>(8 * n));
    for (int64_t map = 0; map < 8; ++map)
      for (int64_t i = 0; i < rows; ++i) {
        std::vector<double> p(static_cast<size_t>(n - rows + i + 1));
        double sum = 0;
        for (size_t j = 0; j < p.size(); ++j) {
          double dot = 0;
          for (int64_t c = 0; c < d; ++c)
            dot += q[static_cast<size_t>((map * rows + i) * d + c)] *
                   k[static_cast<size_t>((map / 2 * n + static_cast<int64_t>(j)) * d + c)];
          sum += p[j] = std::exp(static_cast<double>(a.scale) * dot);
        }
        for (size_t j = 0; j < p.size(); ++j) {
          const auto column = static_cast<size_t>(map * n) + j;
          vertical[column] += p[j] / sum / static_cast<double>(rows);
          slash[column + static_cast<size_t>(rows - 1 - i)] += p[j] / sum / static_cast<double>(rows);
        }
      }
    check_close(a.vertical, vertical, {1e-6});
    check_close(a.slash, slash, {1e-6});
  }
  LineSumsArgs wrong;
  wrong.q = ctx.allocate(DType::f32, {1, 1, 4, 8}), wrong.k = ctx.allocate(DType::f32, {1, 1, 3, 8});
  wrong.vertical = wrong.slash = ctx.allocate(DType::f32, {1, 1, 3});
  CHECK_THROWS_WITH(line_sums(ctx, wrong), ContainsSubstring("'q' has 4 rows, more than the 3 of 'k'"));
}

TEST_CASE("cell_sums of a softmax are the shares of each row, added up") {
  Context ctx(cpu_backend(), 2);
  Random r(34);
  CellSumsArgs a;
  const int64_t R = 10, C = 13;
  a.x = random(ctx, DType::f32, {2, R, C}, r);
  a.y = poisoned(ctx, DType::f32, {2, 4, 3});
  a.rows = 3, a.columns = 5, a.softmax = a.causal = true, a.causal_offset = 1;
  const std::vector<double> x = values(a.x);
  std::vector<double> want(24, 0.0);
  for (int64_t map = 0; map < 2; ++map)
    for (int64_t i = 0; i < R; ++i) {
      const double* row = x.data() + (map * R + i) * C;
      const int64_t seen = std::min(C, i + 2);
      double sum = 0;
      for (int64_t j = 0; j < seen; ++j) sum += std::exp(row[j]);
      for (int64_t j = 0; j < seen; ++j)
        want[static_cast<size_t>((map * 4 + i / 3) * 3 + j / 5)] += std::exp(row[j]) / sum;
    }
  cell_sums(ctx, a);
  check_close(a.y, want, {1e-6});
  a.softmax = false;
  CHECK_THROWS_WITH(cell_sums(ctx, a), ContainsSubstring("causal is set without softmax"));
}

TEST_CASE("js_distance: zero for equal rows, root of ln 2 for disjoint ones, and a threshold") {
  Context ctx(cpu_backend(), 2);
  DistanceArgs d;
  d.a = ctx.allocate(DType::f32, {3, 4});
  d.b = ctx.allocate(DType::f32, {3, 4});
  d.distance = poisoned(ctx, DType::f32, {3});
  d.below = ctx.allocate(DType::i32, {3});
  const double a[12] = {0.25, 0.25, 0.5, 0, 1, 0, 0, 0, 0.5, 0.5, 0, 0};
  const double b[12] = {0.25, 0.25, 0.5, 0, 0, 0.5, 0.5, 0, 0.25, 0.75, 0, 0};
  for (int i = 0; i < 12; ++i) put(d.a, i, a[i]), put(d.b, i, b[i]);
  d.threshold = 0.5;
  js_distance(ctx, d);
  const double third = std::sqrt(0.5 * (0.5 * std::log(0.5 / 0.375) + 0.5 * std::log(0.5 / 0.625) +
                                        0.25 * std::log(0.25 / 0.375) + 0.75 * std::log(0.75 / 0.625)));
  check_close(d.distance, {0.0, std::sqrt(std::log(2.0)), third}, {1e-9});
  CHECK(values(d.below) == std::vector<double>{1, 0, 1});
}

TEST_CASE("count_rule divides, clamps and gives way to flags; mask_values asks two flags") {
  Context ctx(cpu_backend(), 1);
  CountRuleArgs c;
  c.x = ctx.allocate(DType::i32, {5});
  c.flag = ctx.allocate(DType::i32, {5});
  c.y = ctx.allocate(DType::i32, {5});
  const double x[5] = {0, 126, 127, 100000, 300};
  for (int i = 0; i < 5; ++i) put(c.x, i, x[i]), put(c.flag, i, i == 4);
  c.before = 1, c.divisor = 128, c.after = 1, c.low = 1, c.high = 7, c.when_set = 3;
  count_rule(ctx, c);
  CHECK(values(c.y) == std::vector<double>{1, 1, 2, 7, 3});
  c.divisor = 0;
  CHECK_THROWS_WITH(count_rule(ctx, c), ContainsSubstring("divisor is 0"));

  MaskValuesArgs m;
  m.x = ctx.allocate(DType::f32, {4});
  m.first = ctx.allocate(DType::i32, {4});
  m.second = ctx.allocate(DType::u8, {4});
  m.y = poisoned(ctx, DType::f32, {4});
  for (int i = 0; i < 4; ++i) put(m.x, i, i + 1), put(m.first, i, i / 2), put(m.second, i, i % 2);
  mask_values(ctx, m);
  CHECK(values(m.y) == std::vector<double>{0, 0, 0, 4});
  m.first_set = false;
  mask_values(ctx, m);
  CHECK(values(m.y) == std::vector<double>{0, 2, 0, 0});
  m.second = {};
  mask_values(ctx, m);
  CHECK(values(m.y) == std::vector<double>{1, 2, 0, 0});
}

TEST_CASE("block_affine scales and shifts blocks of tokens, in place too") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  Random r(33);
  BlockAffineArgs a;
  a.block = 4;
  a.x = random(ctx, type, {2, 11, 3, 5}, r).transpose(1, 2);
  a.factor = random(ctx, DType::f32, {2, 3, 3}, r);
  a.add = random(ctx, DType::f32, {2, 3, 3, 5}, r);
  a.y = a.x;
  std::vector<double> want;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t t = 0; t < 11; ++t)
        for (int64_t c = 0; c < 5; ++c)
          want.push_back(values(a.factor)[static_cast<size_t>((b * 3 + h) * 3 + t / 4)] *
                             values(a.x.select(0, b).select(0, h).select(0, t))[static_cast<size_t>(c)] +
                         values(a.add)[static_cast<size_t>(((b * 3 + h) * 3 + t / 4) * 5 + c)]);
  block_affine(ctx, a);
  check_close(a.y, want, {3e-7});
}
