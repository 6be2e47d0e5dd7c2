// The selection operators against their definitions, spelled out element by element.
#include "kernels/select/select.hpp"

#include <algorithm>
#include <optional>

#include "kernels/select/geometry.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

/// Scores with many ties, both zeros and, on request, what is not finite.
Tensor scores(Context& ctx, const Shape& shape, Random& r, bool wild) {
  const Tensor t = ctx.allocate(DType::f32, shape);
  each(t, [&](int64_t o) {
    const int64_t kind = r.integer(0, 29);
    double x = kind < 20 ? static_cast<double>(r.integer(-4, 4)) * 0.5 : r.uniform();
    if (kind == 20) x = -0.0;
    if (wild && kind == 21) x = kNaN;
    if (wild && kind == 22) x = kInf;
    if (wild && kind == 23) x = -kInf;
    put(t, o, x);
  });
  return t;
}

Tensor counts(Context& ctx, const Shape& shape, Random& r, int64_t low, int64_t high) {
  const Tensor t = ctx.allocate(DType::i32, shape);
  each(t, [&](int64_t o) { put(t, o, static_cast<double>(r.integer(low, high))); });
  return t;
}

/// Whether a stands before b when the largest comes first.
bool above(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && !std::isnan(b);
  return a > b;
}

/// Columns of v[0, seen) in the order of the header, by counting who stands before whom.
std::vector<int64_t> ranked(const std::vector<double>& v, int64_t seen, bool largest) {
  std::vector<int64_t> order(static_cast<size_t>(seen));
  for (int64_t j = 0; j < seen; ++j) {
    size_t before = 0;
    for (int64_t i = 0; i < seen; ++i) {
      const double a = v[static_cast<size_t>(i)], b = v[static_cast<size_t>(j)];
      const bool first = largest ? above(a, b) : above(b, a), second = largest ? above(b, a) : above(a, b);
      before += first || (!second && i < j);
    }
    order[before] = j;
  }
  return order;
}

int64_t seen_of(const Visible& v, int64_t row, int64_t rows, int64_t m) {
  int64_t seen = m;
  if (v.causal) seen = std::min(seen, row % rows + v.offset + 1);
  if (v.limit) seen = std::min(seen, static_cast<int64_t>(values(v.limit)[static_cast<size_t>(row)]));
  return std::max<int64_t>(seen, 0);
}

std::vector<double> row_of(const std::vector<double>& all, int64_t row, int64_t m) {
  return {all.begin() + row * m, all.begin() + (row + 1) * m};
}

void check_top_k(Context& ctx, TopKArgs a) {
  const std::vector<double> x = values(a.x);
  const int64_t m = a.x.dim(-1), rows = a.x.rank() > 1 ? a.x.dim(-2) : 1;
  const int64_t count = m == 0 ? 0 : static_cast<int64_t>(x.size()) / m;
  if (a.index) fill(a.index, 77);
  if (a.value) poison(a.value);
  if (a.flag) fill(a.flag, 77);
  top_k(ctx, a);
  const int64_t k = a.index ? a.index.dim(-1) : a.k;
  for (int64_t row = 0; row < count; ++row) {
    const std::vector<double> v = row_of(x, row, m);
    const int64_t seen = seen_of(a.visible, row, rows, m);
    std::vector<int64_t> best = ranked(v, seen, a.largest);
    int64_t want = std::min(k, seen);
    if (a.count)
      want = std::min<int64_t>(
          want, std::max<int64_t>(0, static_cast<int64_t>(values(a.count)[static_cast<size_t>(row)])));
    best.resize(static_cast<size_t>(want));
    if (a.order == TopKArgs::Order::index) std::sort(best.begin(), best.end());
    if (a.index) {
      const std::vector<double> got = row_of(values(a.index), row, k);
      for (int64_t i = 0; i < k; ++i) {
        INFO("row " << row << " slot " << i);
        REQUIRE(got[static_cast<size_t>(i)] ==
                (i < want ? static_cast<double>(best[static_cast<size_t>(i)]) : -1.0));
      }
    }
    if (a.value) {
      const std::vector<double> got = row_of(values(a.value), row, k);
      for (int64_t i = 0; i < k; ++i) {
        const double expected = i < want    ? v[static_cast<size_t>(best[static_cast<size_t>(i)])]
                                : a.largest ? -kInf
                                            : kInf;
        const double g = got[static_cast<size_t>(i)];
        REQUIRE((g == expected || (std::isnan(g) && std::isnan(expected))));
      }
    }
    if (a.flag) {
      std::vector<double> expected(static_cast<size_t>(m), 0.0);
      for (int64_t j : best) expected[static_cast<size_t>(j)] = 1.0;
      REQUIRE(row_of(values(a.flag), row, m) == expected);
    }
  }
}

}  // namespace

TEST_CASE("top_k chooses by value, then column, within what each row sees and wants") {
  const bool largest = GENERATE(true, false);
  const auto order = GENERATE(TopKArgs::Order::value, TopKArgs::Order::index);
  const int threads = GENERATE(1, 3);
  Context ctx(cpu_backend(), threads);
  Random r(11);
  for (int64_t m : {1, 2, 7, 64, 133})
    for (int64_t k : {1, 2, 5, 64, 140}) {
      TopKArgs a;
      a.largest = largest;
      a.order = order;
      a.x = scores(ctx, {2, 5, m}, r, m != 64);
      a.index = ctx.allocate(DType::i32, {2, 5, k});
      a.value = ctx.allocate(DType::f32, {2, 5, k});
      a.flag = ctx.allocate(DType::u8, {2, 5, m});
      check_top_k(ctx, a);
      a.count = counts(ctx, {2, 5}, r, -1, k + 2);
      check_top_k(ctx, a);
      a.visible.limit = counts(ctx, {2, 5}, r, -2, m + 3);
      check_top_k(ctx, a);
      a.visible.causal = true;
      a.visible.offset = r.integer(-2, m);
      check_top_k(ctx, a);
      a.index = a.value = {};
      a.k = k;
      check_top_k(ctx, a);
    }
}

TEST_CASE("top_k takes rows of any stride and leaves what lies between them alone") {
  Context ctx(cpu_backend(), 2);
  Random r(12);
  TopKArgs a;
  a.x = padded(ctx, DType::f32, {3, 4, 20}, 2, 5);
  randomize(a.x, r);
  a.index = padded(ctx, DType::i32, {3, 4, 6}, 1, 1);
  a.count = counts(ctx, {4, 3}, r, 0, 6).transpose(0, 1);
  check_top_k(ctx, a);
  const Tensor edge = a.index.strided({3, 4}, {a.index.stride(0), a.index.stride(1)}, -1);
  const double untouched = values(padded(ctx, DType::i32, {1, 1}, 1, 1).strided({1}, {1}, -1))[0];
  for (double v : values(edge)) CHECK(v == untouched);
}

TEST_CASE("arg_max and arg_min take the first of equals; NaN is the largest") {
  Context ctx(cpu_backend(), 1);
  const Tensor x = ctx.allocate(DType::f32, {4, 4}), index = ctx.allocate(DType::i32, {4});
  const double rows[4][4] = {
      {1, 3, 3, 2}, {-0.0, 0.0, -1, -1}, {kNaN, 5, kNaN, -kInf}, {kNaN, kNaN, kNaN, kNaN}};
  for (int i = 0; i < 16; ++i) put(x, i, rows[i / 4][i % 4]);
  arg_max(ctx, x, index);
  CHECK(values(index) == std::vector<double>{1, 0, 0, 0});
  arg_min(ctx, x, index);
  CHECK(values(index) == std::vector<double>{0, 2, 3, 0});
  const Tensor none = ctx.allocate(DType::f32, {2, 0}), at = ctx.allocate(DType::i32, {2});
  arg_max(ctx, none, at);
  CHECK(values(at) == std::vector<double>{-1, -1});
}

TEST_CASE("argsort is stable in both directions, for floats and integers") {
  const bool descending = GENERATE(true, false);
  Context ctx(cpu_backend(), 2);
  Random r(13);
  for (int64_t m : {1, 3, 100, 257}) {
    ArgsortArgs a;
    a.descending = descending;
    a.x = scores(ctx, {3, m}, r, true);
    a.index = ctx.allocate(DType::i32, {3, m});
    a.value = poisoned(ctx, DType::f32, {3, m});
    argsort(ctx, a);
    for (int64_t row = 0; row < 3; ++row) {
      const std::vector<double> v = row_of(values(a.x), row, m), got = row_of(values(a.index), row, m);
      const std::vector<int64_t> want = ranked(v, m, descending);
      CHECK(std::equal(got.begin(), got.end(), want.begin(),
                       [](double g, int64_t w) { return g == static_cast<double>(w); }));
    }
    a.x = counts(ctx, {3, m}, r, -5, 5);
    put(a.x, 0, -2147483648.0);
    put(a.x, m - 1, 2147483647.0);
    a.value = ctx.allocate(DType::i32, {3, m});
    argsort(ctx, a);
    for (int64_t row = 0; row < 3; ++row) {
      const std::vector<double> v = row_of(values(a.x), row, m), got = row_of(values(a.index), row, m);
      const std::vector<int64_t> want = ranked(v, m, descending);
      CHECK(std::equal(got.begin(), got.end(), want.begin(),
                       [](double g, int64_t w) { return g == static_cast<double>(w); }));
      const std::vector<double> sorted = row_of(values(a.value), row, m);
      for (size_t i = 0; i < sorted.size(); ++i) CHECK(sorted[i] == v[static_cast<size_t>(want[i])]);
    }
  }
}

namespace {

void check_top_p(Context& ctx, TopPArgs a) {
  const std::vector<double> x = values(a.x);
  const int64_t m = a.x.dim(-1), rows = a.x.rank() > 1 ? a.x.dim(-2) : 1;
  if (a.count) fill(a.count, 77);
  if (a.flag) fill(a.flag, 77);
  top_p(ctx, a);
  for (int64_t row = 0; row < static_cast<int64_t>(x.size()) / m; ++row) {
    const std::vector<double> v = row_of(x, row, m);
    const int64_t seen = seen_of(a.visible, row, rows, m);
    std::vector<double> expected(static_cast<size_t>(m), 0.0);
    double total = 0;
    std::vector<double> sums{0.0};  // S_0, S_1, ...
    for (int64_t j = 0; j < seen; ++j) total += v[static_cast<size_t>(j)];
    std::vector<int64_t> others;
    for (int64_t j : ranked(v, seen, true))
      if (j < a.forced_first || (a.forced_diagonal && j == row % rows + a.visible.offset))
        sums[0] += v[static_cast<size_t>(j)], expected[static_cast<size_t>(j)] = 1;
      else
        others.push_back(j);
    for (int64_t j : others) sums.push_back(sums.back() + v[static_cast<size_t>(j)]);
    const double reach = a.share ? a.p * total : a.p;
    for (int64_t r = 1; r <= static_cast<int64_t>(others.size()); ++r) {
      const bool fits = r >= a.lag && (a.inclusive ? sums[static_cast<size_t>(r - a.lag)] <= reach
                                                   : sums[static_cast<size_t>(r - a.lag)] < reach);
      if (!(r <= a.min_keep || r < a.lag || fits)) break;
      expected[static_cast<size_t>(others[static_cast<size_t>(r - 1)])] = 1;
    }
    INFO("row " << row);
    if (a.flag) REQUIRE(row_of(values(a.flag), row, m) == expected);
    if (a.count)
      REQUIRE(values(a.count)[static_cast<size_t>(row)] ==
              static_cast<double>(std::count(expected.begin(), expected.end(), 1.0)));
  }
}

/// Multiples of 1/64: their sums are exact in any order, so that "reaches exactly" is decided, too.
Tensor masses(Context& ctx, const Shape& shape, Random& r) {
  const Tensor t = ctx.allocate(DType::f32, shape);
  each(t, [&](int64_t o) { put(t, o, static_cast<double>(r.integer(0, 12)) / 64); });
  return t;
}

}  // namespace

TEST_CASE("top_p keeps what its rule says, forced columns first") {
  const int64_t lag = GENERATE(0, 1, 2);
  const bool inclusive = GENERATE(false, true), share = GENERATE(false, true);
  Context ctx(cpu_backend(), 2);
  Random r(14);
  for (int64_t m : {1, 2, 9, 40, 130})
    for (double p : {0.0, 0.25, 0.5, 1.0, 2.0}) {
      TopPArgs a;
      a.x = masses(ctx, {2, 7, m}, r);
      a.count = ctx.allocate(DType::i32, {2, 7});
      a.flag = ctx.allocate(DType::u8, {2, 7, m});
      a.p = p;
      a.lag = lag, a.inclusive = inclusive, a.share = share;
      check_top_p(ctx, a);
      a.min_keep = 3;
      check_top_p(ctx, a);
      a.visible.causal = true;
      a.visible.offset = r.integer(-1, 5);
      a.forced_diagonal = true;
      a.forced_first = 1;
      check_top_p(ctx, a);
      a.min_keep = 0;
      a.visible.limit = counts(ctx, {2, 7}, r, -1, m);
      a.flag = {};
      check_top_p(ctx, a);
    }
}

TEST_CASE("top_p by hand: the smallest prefix that reaches the share") {
  Context ctx(cpu_backend(), 1);
  TopPArgs a;
  a.x = ctx.allocate(DType::f32, {1, 4});
  a.count = ctx.allocate(DType::i32, {1});
  a.flag = ctx.allocate(DType::u8, {1, 4});
  const double x[4] = {0.125, 0.5, 0.25, 0.125};
  for (int i = 0; i < 4; ++i) put(a.x, i, x[i]);
  a.p = 0.75;  // reached exactly by two
  top_p(ctx, a);
  CHECK(values(a.flag) == std::vector<double>{0, 1, 1, 0});
  a.p = 0.76;  // the tie goes to the lower column
  top_p(ctx, a);
  CHECK(values(a.flag) == std::vector<double>{1, 1, 1, 0});
  a.inclusive = true;
  a.p = 0.75;  // 1 + what stays within
  top_p(ctx, a);
  CHECK(values(a.count)[0] == 3);
  a.lag = 0;
  top_p(ctx, a);
  CHECK(values(a.count)[0] == 2);
}

TEST_CASE("prefix_sum, inclusive and exclusive, in place, f32 rounded once") {
  Context ctx(cpu_backend(), 2);
  Random r(15);
  for (int64_t m : {1, 5, 1000, 4099}) {
    PrefixSumArgs a;
    a.exclusive = GENERATE(false, true);
    a.x = random(ctx, DType::f32, {3, m}, r);
    a.y = poisoned(ctx, DType::f32, {3, m});
    const std::vector<double> x = values(a.x);
    prefix_sum(ctx, a);
    std::vector<double> want;
    for (int64_t row = 0; row < 3; ++row) {
      double sum = 0;
      for (int64_t j = 0; j < m; ++j) {
        if (a.exclusive) want.push_back(sum);
        sum += x[static_cast<size_t>(row * m + j)];
        if (!a.exclusive) want.push_back(sum);
      }
    }
    check_close(a.y, want, {1e-12});
    a.y = a.x;
    prefix_sum(ctx, a);
    check_close(a.y, want, {1e-12});
    a.x = counts(ctx, {2, m}, r, -1000000, 1000000);
    a.y = ctx.allocate(DType::i32, {2, m});
    prefix_sum(ctx, a);
    const std::vector<double> in = values(a.x), out = values(a.y);
    for (size_t i = 0; i < in.size(); ++i) {
      const bool first = i % static_cast<size_t>(m) == 0;
      if (a.exclusive)
        REQUIRE(out[i] == (first ? 0.0 : out[i - 1] + in[i - 1]));
      else
        REQUIRE(out[i] == (first ? 0.0 : out[i - 1]) + in[i]);
    }
  }
}

TEST_CASE("compact_flags lists flags in order and counts those without room") {
  Context ctx(cpu_backend(), 2);
  CompactArgs a;
  a.flag = ctx.allocate(DType::u8, {4, 6});
  const double flags[4][6] = {
      {0, 1, 0, 255, 0, 1}, {0, 0, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 2}};
  for (int i = 0; i < 24; ++i) put(a.flag, i, flags[i / 6][i % 6]);
  a.index = ctx.allocate(DType::i32, {4, 4});
  a.count = ctx.allocate(DType::i32, {4});
  compact_flags(ctx, a);
  CHECK(values(a.index) == std::vector<double>{1, 3, 5, -1, -1, -1, -1, -1, 0, 1, 2, 3, 5, -1, -1, -1});
  CHECK(values(a.count) == std::vector<double>{3, 0, 6, 1});
}

TEST_CASE("compare_flags: all relations, NaN is false") {
  using Relation = CompareArgs::Relation;
  Context ctx(cpu_backend(), 2);
  CompareArgs a;
  a.x = ctx.allocate(DType::f32, {4});
  a.y = ctx.allocate(DType::f32, {4});
  a.flag = ctx.allocate(DType::u8, {4});
  const double x[4] = {1, 2, 3, kNaN}, y[4] = {2, 2, 2, 2};
  for (int i = 0; i < 4; ++i) put(a.x, i, x[i]), put(a.y, i, y[i]);
  const std::vector<std::pair<Relation, std::vector<double>>> table = {
      {Relation::greater, {0, 0, 1, 0}},
      {Relation::greater_equal, {0, 1, 1, 0}},
      {Relation::less, {1, 0, 0, 0}},
      {Relation::less_equal, {1, 1, 0, 0}}};
  for (const auto& [relation, want] : table) {
    CompareArgs b = a;
    b.relation = relation;
    fill(b.flag, 9);
    compare_flags(ctx, b);
    CHECK(values(b.flag) == want);
    b.y = {};
    b.threshold = 2;
    b.flag = ctx.allocate(DType::i32, {4});
    fill(b.flag, 9);
    compare_flags(ctx, b);
    CHECK(values(b.flag) == want);
    // |x| against |y| + |z| with signs that must not matter.
    b.x = ctx.allocate(DType::f32, {4});
    b.y = ctx.allocate(DType::f32, {4});
    b.z = ctx.allocate(DType::f32, {4});
    for (int i = 0; i < 4; ++i)
      put(b.x, i, i % 2 ? -x[i] : x[i]), put(b.y, i, i < 2 ? -1.5 : 1.5), put(b.z, i, i % 2 ? 0.5 : -0.5);
    fill(b.flag, 9);
    compare_flags(ctx, b);
    CHECK(values(b.flag) == want);
  }
}

TEST_CASE("gather_tokens reads by batch and head, shared lists and grouped heads included") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::i32, DType::u8);
  Context ctx(cpu_backend(), 2);
  Random r(16);
  const int64_t n = 13, entries = 9, d = 5;
  for (int64_t gb : {1, 2})
    for (int64_t gh : {1, 2, 4})
      for (int64_t hx : {1, 2, 4}) {
        const Tensor index = counts(ctx, {gb, gh, entries}, r, -1, n - 1);
        const Tensor x = randomize(padded(ctx, type, {2, hx, n, d}, 1, 2), r, 0, 100);
        const Tensor y = poisoned(ctx, type, {2, entries, 4, d}).transpose(1, 2);
        gather_tokens(ctx, {x, index, y});
        for (int64_t b = 0; b < 2; ++b)
          for (int64_t h = 0; h < 4; ++h)
            for (int64_t i = 0; i < entries; ++i) {
              const auto from = static_cast<int64_t>(
                  values(index.select(0, gb == 1 ? 0 : b).select(0, h / (4 / gh)))[static_cast<size_t>(i)]);
              const std::vector<double> got = values(y.select(0, b).select(0, h).select(0, i));
              const std::vector<double> want =
                  from < 0 ? std::vector<double>(static_cast<size_t>(d), 0.0)
                           : values(x.select(0, b).select(0, h / (4 / hx)).select(0, from));
              REQUIRE(got == want);
            }
      }
  const Tensor wrong = counts(ctx, {1, 1, 3}, r, n, n);
  CHECK_THROWS_WITH(
      gather_tokens(ctx, {random(ctx, type, {1, 1, n, d}, r, 0, 1), wrong, ctx.allocate(type, {1, 1, 3, d})}),
      ContainsSubstring("is 13, outside [-1, 13)"));
}

TEST_CASE("scatter_tokens sets the last and adds all, in order, and counts") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool add = GENERATE(false, true), keep = GENERATE(false, true);
  Context ctx(cpu_backend(), GENERATE(1, 3));
  Random r(17);
  const int64_t n = 11, m = 17, d = 6;
  for (int64_t gb : {1, 2})
    for (int64_t gh : {1, 3}) {
      ScatterTokensArgs a;
      a.mode = add ? ScatterTokensArgs::Mode::add : ScatterTokensArgs::Mode::set;
      a.keep = keep;
      a.x = random(ctx, type, {2, 3, m, d}, r);
      a.index = counts(ctx, {gb, gh, m}, r, -2, n);  // -2, -1 and n are no tokens
      if (add && gh == 3) a.weight = random(ctx, DType::f32, {2, 3, m}, r);
      a.y = random(ctx, type, {2, n, 3, d}, r).transpose(1, 2);
      if (!keep) poison(a.y);
      a.hits = ctx.allocate(DType::i32, {2, 3, n});
      std::vector<double> want, slack, hits;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t h = 0; h < 3; ++h)
          for (int64_t t = 0; t < n; ++t) {
            const std::vector<double> index =
                values(a.index.select(0, gb == 1 ? 0 : b).select(0, gh == 1 ? 0 : h));
            double found = 0;
            for (double v : index) found += v == static_cast<double>(t);
            hits.push_back(found);
            for (int64_t c = 0; c < d; ++c) {
              const Tensor own = a.y.select(0, b).select(0, h).select(0, t);
              double sum = keep ? values(own)[static_cast<size_t>(c)] : 0.0, size = std::fabs(sum);
              for (int64_t i = 0; i < m; ++i) {
                if (index[static_cast<size_t>(i)] != static_cast<double>(t)) continue;
                double x = values(a.x.select(0, b).select(0, h).select(0, i))[static_cast<size_t>(c)];
                if (a.weight) x *= values(a.weight.select(0, b).select(0, h))[static_cast<size_t>(i)];
                sum = add ? sum + x : x;
                size += std::fabs(x);
              }
              want.push_back(sum);
              slack.push_back(add ? size * static_cast<double>(m + 2) * 0x1p-24 : 0.0);
            }
          }
      fill(a.hits, 99);
      scatter_tokens(ctx, a);
      check_close(a.y, want, slack);
      CHECK(values(a.hits) == hits);
    }
}

TEST_CASE("pool_tokens: every kind and divisor, short and empty blocks") {
  using Kind = PoolTokensArgs::Kind;
  using Divisor = PoolTokensArgs::Divisor;
  const Kind kind = GENERATE(Kind::sum, Kind::mean, Kind::max, Kind::min, Kind::absolute_deviation);
  const Divisor divisor = GENERATE(Divisor::real, Divisor::whole, Divisor::root);
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool bounded = GENERATE(false, true);
  if (bounded && divisor == Divisor::whole) return;
  Context ctx(cpu_backend(), 2);
  Random r(18);
  const int64_t n = 23, d = 7;
  for (int64_t block : {1, 5, 8, 40}) {
    PoolTokensArgs a;
    a.kind = kind;
    a.divisor = divisor;
    a.x = random(ctx, type, {2, n, 3, d}, r).transpose(1, 2);
    const int64_t blocks = bounded ? 5 : (n + block - 1) / block;
    std::vector<double> bounds{0, 4, 4, 23, -1, -1, 2, 3, 9, 30, 31, 40};
    if (bounded) {
      a.bounds = ctx.allocate(DType::i32, {2, 6});
      for (int64_t i = 0; i < 12; ++i) put(a.bounds, i, bounds[static_cast<size_t>(i)]);
    } else {
      a.block = block;
    }
    a.y = poisoned(ctx, GENERATE(true, false) ? DType::f32 : type, {2, 3, blocks, d});
    if (kind == Kind::absolute_deviation) a.center = random(ctx, DType::f32, {2, 3, blocks, d}, r);
    pool_tokens(ctx, a);
    std::vector<double> want, slack;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 3; ++h)
        for (int64_t s = 0; s < blocks; ++s)
          for (int64_t c = 0; c < d; ++c) {
            std::vector<double> tokens;
            for (int64_t t = 0; t < n; ++t) {
              bool inside = t / block == s;
              if (bounded) {
                const double from = bounds[static_cast<size_t>(b * 6 + s)],
                             to = bounds[static_cast<size_t>(b * 6 + s + 1)];
                inside =
                    from >= 0 && to >= 0 && static_cast<double>(t) >= from && static_cast<double>(t) < to;
              }
              if (inside)
                tokens.push_back(values(a.x.select(0, b).select(0, h).select(0, t))[static_cast<size_t>(c)]);
            }
            const double center =
                a.center ? values(a.center.select(0, b).select(0, h).select(0, s))[static_cast<size_t>(c)]
                         : 0;
            double result = 0, size = 0;
            const auto real = static_cast<double>(tokens.size());
            for (double x : tokens) size += std::fabs(x - center);
            if (!tokens.empty()) {
              if (kind == Kind::max) result = *std::max_element(tokens.begin(), tokens.end());
              if (kind == Kind::min) result = *std::min_element(tokens.begin(), tokens.end());
              if (kind == Kind::sum || kind == Kind::mean)
                for (double x : tokens) result += x;
              if (kind == Kind::absolute_deviation) {
                result = size;
                if (divisor == Divisor::whole)
                  result += (static_cast<double>(block) - real) * std::fabs(center);
                size += result;
              }
              if (kind == Kind::mean || kind == Kind::absolute_deviation)
                result /= divisor == Divisor::real   ? real
                          : divisor == Divisor::root ? std::sqrt(real)
                                                     : static_cast<double>(block);
            }
            want.push_back(result);
            slack.push_back((size + std::fabs(result)) * 40 * 0x1p-24);
          }
    check_close(a.y, want, slack);
  }
}

namespace {

/// Fills lists and compares them with the rule asked pair by pair.
void check_lists(Context& ctx, BlockListsArgs a, int64_t gb, int64_t gh) {
  allocate_block_lists(ctx, a, gb, gh);
  const int64_t nq = (a.n + a.block_q - 1) / a.block_q, nk = (a.m + a.block_k - 1) / a.block_k;
  a.selected = ctx.allocate(DType::i32, {gb, gh, nq, nk});
  for (const BlockList* l : {&a.full, &a.partial})
    for (const Tensor* t : {&l->begin, &l->count, &l->index})
      if (*t) fill(*t, -77);
  build_block_lists(ctx, a);
  const auto flag = [](const Tensor& t, int64_t at) { return t && t.data<uint8_t>()[at] != 0; };
  const int64_t offset = a.rule.offset == ElementRule::kAlignEnds ? a.m - a.n : a.rule.offset;
  for (int64_t g = 0; g < gb * gh; ++g)
    for (int64_t r = 0; r < nq; ++r) {
      const int64_t q1 = std::min(a.n, (r + 1) * a.block_q);
      const int64_t key = std::min(q1 - 1 + offset, a.m - 1), diagonal = key < 0 ? -1 : key / a.block_k;
      std::vector<int32_t> full, partial;
      for (int64_t c = 0; c < nk; ++c) {
        const bool chosen = flag(a.bitmap, (g * nq + r) * nk + c) || flag(a.also, r * nk + c) ||
                            flag(a.columns, g * nk + c) ||
                            (r >= c && r - c < nk && flag(a.diagonals, g * nk + r - c)) ||
                            c < a.first_columns || r >= nq - a.last_rows || (a.diagonal && c == diagonal) ||
                            (c > diagonal - a.window && c <= diagonal);
        int64_t allowed = 0, pairs = 0;
        for (int64_t i = r * a.block_q; i < q1; ++i)
          for (int64_t j = c * a.block_k; j < std::min(a.m, (c + 1) * a.block_k); ++j)
            ++pairs, allowed += rule_allows(a.rule, 0, 0, i, j, a.n, a.m);
        const bool listed = chosen && allowed > 0;
        if (listed) (allowed == pairs ? full : partial).push_back(static_cast<int32_t>(c));
        INFO("group " << g << " row " << r << " column " << c);
        REQUIRE(a.selected.data<int32_t>()[(g * nq + r) * nk + c] == (listed ? 1 : 0));
      }
      const auto listed = [&](const BlockList& l) {
        std::vector<int32_t> v;
        if (!l) return v;
        const int32_t begin = l.begin.data<int32_t>()[g * nq + r],
                      count = l.count.data<int32_t>()[g * nq + r];
        REQUIRE((begin >= 0 && count >= 0 && begin + count <= l.index.dim(0)));
        v.assign(l.index.data<int32_t>() + begin, l.index.data<int32_t>() + begin + count);
        return v;
      };
      INFO("group " << g << " row " << r);
      REQUIRE(listed(a.full) == full);
      REQUIRE(listed(a.partial) == partial);
    }
}

}  // namespace

TEST_CASE("build_block_lists unites its sources, cuts by the rule and knows full from partial") {
  Context ctx(cpu_backend(), GENERATE(1, 3));
  Random r(19);
  for (int trial = 0; trial < 120; ++trial) {
    BlockListsArgs a;
    a.n = r.integer(1, 40), a.m = r.integer(1, 40);
    a.block_q = r.integer(1, 9), a.block_k = r.integer(1, 9);
    if (trial % 3 == 0) a.m = a.n, a.block_k = a.block_q;
    const int64_t gb = r.integer(1, 2), gh = r.integer(1, 3);
    const int64_t nq = (a.n + a.block_q - 1) / a.block_q, nk = (a.m + a.block_k - 1) / a.block_k;
    const auto bits = [&](const Shape& shape, int64_t one_in) {
      const Tensor t = ctx.allocate(DType::u8, shape);
      each(t, [&](int64_t o) { put(t, o, r.integer(0, one_in) == 0 ? 1 : 0); });
      return t;
    };
    if (r.integer(0, 2)) a.bitmap = bits({gb, gh, nq, nk}, 1);
    if (r.integer(0, 2) == 0) a.also = bits({nq, nk}, 4);
    if (r.integer(0, 2) == 0) a.columns = bits({gb, gh, nk}, 4);
    if (r.integer(0, 2) == 0) a.diagonals = bits({gb, gh, nk}, 4);
    a.diagonal = r.integer(0, 1) == 1;
    a.window = r.integer(0, 2);
    a.first_columns = r.integer(0, 2);
    a.last_rows = r.integer(0, 2);
    a.rule.causal = r.integer(0, 2) > 0;
    if (r.integer(0, 2) == 0) {
      a.rule.band = true;
      a.rule.left = r.integer(-1, 20);
      a.rule.right = r.integer(-1, 20);
      a.rule.sinks = r.integer(0, 12);
    }
    if (r.integer(0, 2) == 0) a.rule.offset = r.integer(-20, 20);
    check_lists(ctx, a, gb, gh);
  }
}

TEST_CASE("a list that is too short is refused, and the mask carries the rule") {
  Context ctx(cpu_backend(), 1);
  BlockListsArgs a;
  a.n = a.m = 64;
  a.block_q = a.block_k = 8;
  a.rule.causal = true;
  a.first_columns = 4;
  allocate_block_lists(ctx, a, 1, 2, 3);
  CHECK(a.full.index.dim(0) == 2 * 8 * 3);
  CHECK_THROWS_WITH(build_block_lists(ctx, a), ContainsSubstring("more than its 3 full"));
  a.first_columns = 3;
  build_block_lists(ctx, a);
  const BlockMask mask = block_mask_of(a);
  CHECK(mask.rule.causal);
  // Rows 0 to 7 list min(r + 1, 3) blocks, the diagonal ones partially.
  CHECK(count_pairs(mask, 1, 2, 64, 64).visited == 2 * 64 * (1 + 2 + 3 * 6));
  CHECK(count_pairs(mask, 1, 2, 64, 64).attended == 2 * (64 * (0 + 1 + 2 + 3 * 5) + 3 * 36));
}

TEST_CASE("selection operators charge what their headers say") {
  Context ctx(cpu_backend(), 1);
  Random r(20);
  TopKArgs k;
  k.x = random(ctx, DType::f32, {3, 100}, r);
  k.index = ctx.allocate(DType::i32, {3, 7});
  Cost c = charged(ctx, [&] { top_k(ctx, k); });
  CHECK(c.elementwise == 300);
  CHECK(c.bytes_read == 1200);
  CHECK(c.bytes_written == 84);
  TopPArgs p;
  p.x = k.x;
  p.count = ctx.allocate(DType::i32, {3});
  c = charged(ctx, [&] { top_p(ctx, p); });
  CHECK(c.elementwise == 300 * 8);
  PoolTokensArgs t;
  t.x = random(ctx, DType::bf16, {1, 2, 10, 4}, r);
  t.y = ctx.allocate(DType::f32, {1, 2, 4, 4});
  t.block = 3;
  c = charged(ctx, [&] { pool_tokens(ctx, t); });
  CHECK(c.elementwise == 80 + 32);
  CHECK(c.bytes_read == 160);
  CHECK(c.bytes_written == 128);
}

TEST_CASE("selection operators refuse what makes no sense, naming it") {
  Context ctx(cpu_backend(), 1);
  Random r(21);
  TopKArgs k;
  k.x = random(ctx, DType::f32, {3, 10}, r);
  CHECK_THROWS_WITH(top_k(ctx, k), ContainsSubstring("index and flag"));
  k.index = ctx.allocate(DType::i32, {2, 7});
  CHECK_THROWS_WITH(top_k(ctx, k), ContainsSubstring("[2, 7]"));
  k.index = ctx.allocate(DType::i32, {3, 7});
  k.count = ctx.allocate(DType::i32, {4});
  CHECK_THROWS_WITH(top_k(ctx, k), ContainsSubstring("'count'"));
  TopPArgs p;
  p.x = k.x;
  p.count = ctx.allocate(DType::i32, {3});
  p.lag = 3;
  CHECK_THROWS_WITH(top_p(ctx, p), ContainsSubstring("lag is 3"));
  PoolTokensArgs t;
  t.x = random(ctx, DType::f32, {1, 1, 8, 2}, r);
  t.y = ctx.allocate(DType::f32, {1, 1, 2, 2});
  CHECK_THROWS_WITH(pool_tokens(ctx, t), ContainsSubstring("block is 0"));
  t.block = 3;
  CHECK_THROWS_WITH(pool_tokens(ctx, t), ContainsSubstring("'y'"));
  BlockListsArgs a;
  a.n = a.m = 8;
  a.rule.rank = 1;
  allocate_block_lists(ctx, a, 1, 1);
  CHECK_THROWS_WITH(build_block_lists(ctx, a), ContainsSubstring("causal and band"));
  a.block_q = 0;
  CHECK_THROWS_WITH(allocate_block_lists(ctx, a, 1, 1), ContainsSubstring("0 x 64"));
}
