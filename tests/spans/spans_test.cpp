// Searching, packing and joining spans against plain loops in double precision.
#include "kernels/spans/spans.hpp"

#include <algorithm>
#include <numeric>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Tensor ints(Context& ctx, const Shape& shape, const std::vector<int32_t>& v) { return upload(ctx, shape, v); }

}  // namespace

TEST_CASE("search keeps the best stripe keys and their spans") {
  Context ctx(cpu_backend(), 2);
  Random r(91);
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool masked = GENERATE(true, false);
  const int64_t window = GENERATE(0, 8);
  for (const int64_t slots : {1, 3, 9}) {
    const int64_t batch = 2, heads = 6, kv = 2, n = 70, m = 131, d = 13;
    SearchSpansArgs a;
    // Queries as columns of a wider product; small integers, so that sums are exact and ties are many.
    const Tensor wide = ctx.allocate(dtype, {batch, n, heads, 2 * d});
    a.k = ctx.allocate(dtype, {batch, kv, m, d});
    for (const Tensor& t : {wide, a.k})
      for (int64_t i = 0; i < t.numel(); ++i) put(t, i, static_cast<double>(r.integer(-1, 1)));
    a.q = wide.transpose(1, 2).slice(3, d, 2 * d);
    std::vector<int32_t> place, stripes, before, after;
    for (int64_t i = 0; i < n; ++i) place.push_back(static_cast<int32_t>(m - 1 - (n - 1 - i) * 131 / 71));
    for (int64_t i = window > 0 ? 3 : 1; i * i <= m; ++i) stripes.push_back(static_cast<int32_t>(i * i));
    for (int64_t l = 0; l <= m; ++l) {
      before.push_back(static_cast<int32_t>(l / 7));
      after.push_back(static_cast<int32_t>(l / 30));
    }
    std::vector<uint8_t> valid;
    for (int64_t i = 0; i < batch * m; ++i) valid.push_back(i % m >= 20 * (i / m) && i % 11 != 3);
    a.position = ints(ctx, {n}, place);
    a.stripes = ints(ctx, {static_cast<int64_t>(stripes.size())}, stripes);
    a.before = ints(ctx, {m + 1}, before), a.after = ints(ctx, {m + 1}, after);
    if (masked) a.key_valid = upload(ctx, {batch, m}, valid), a.first = ints(ctx, {batch}, {0, 20});
    a.scale = 0.5f, a.window = window, a.apart = window > 0;
    const Shape out{batch, heads, n, slots};
    a.anchor = poisoned(ctx, DType::i32, out), a.start = poisoned(ctx, DType::i32, out);
    a.end = poisoned(ctx, DType::i32, out), a.score = poisoned(ctx, DType::f32, out);
    ctx.cost().reset();
    ctx.cost().set_exact(true);
    search_spans(ctx, a);
    int64_t wrong = 0, candidates = 0;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < n; ++i) {
          const int64_t t = place[static_cast<size_t>(i)], first = masked ? 20 * b : 0;
          std::vector<std::pair<double, int64_t>> all;
          for (const int32_t e : stripes) {
            const int64_t c = t - e + 1;
            if (c < 0) continue;
            ++candidates;
            if (masked && !valid[static_cast<size_t>(b * m + c)]) continue;
            double sum = 0;
            for (int64_t x = 0; x < d; ++x)
              sum += get(wide, ((b * n + i) * heads + h) * 2 * d + d + x) *
                     get(a.k, ((b * kv + h / 3) * m + c) * d + x);
            all.emplace_back(-0.5 * sum, c);
          }
          std::sort(all.begin(), all.end());
          for (int64_t s = 0; s < slots; ++s) {
            const int64_t at = ((b * heads + h) * n + i) * slots + s;
            const bool there = s < static_cast<int64_t>(all.size());
            const auto [z, c] = there ? all[static_cast<size_t>(s)] : std::pair<double, int64_t>{1e9, -1};
            int64_t end = std::min(t, c + after[static_cast<size_t>(std::max<int64_t>(0, t + 1 - first))]);
            if (window > 0) end = std::min(end, t - window);
            wrong += get(a.anchor, at) != static_cast<double>(c) || get(a.score, at) != -z;
            wrong += get(a.start, at) !=
                     static_cast<double>(
                         there ? std::max(first, c - before[static_cast<size_t>(t + 1 - first)]) : -1);
            wrong += get(a.end, at) != static_cast<double>(there ? end : -1);
          }
        }
    INFO("slots " << slots);
    CHECK(wrong == 0);
    CHECK(ctx.cost().total().matmul == 2 * d * candidates);
  }
}

TEST_CASE("packed spans: rows in the given order, their keys, and the blocks of these") {
  Context ctx(cpu_backend(), 2);
  Random r(92);
  for (const int64_t rows : {1, 63, 64, 130, 999}) {
    const int64_t batch = 2, heads = 3, bq = 16, bk = 32, tiles = (rows + bq - 1) / bq;
    const Shape shape{batch, heads, rows};
    PackSpansArgs a;
    a.order = ctx.allocate(DType::i32, shape), a.start = ctx.allocate(DType::i32, shape);
    a.end = ctx.allocate(DType::i32, shape);
    for (int64_t l = 0; l < batch * heads; ++l) {
      std::vector<int64_t> order(static_cast<size_t>(rows));
      std::iota(order.begin(), order.end(), int64_t{0});
      for (int64_t i = rows - 1; i > 0; --i)
        std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(r.integer(0, i))]);
      for (int64_t i = 0; i < rows; ++i) {
        put(a.order, l * rows + i, static_cast<double>(order[static_cast<size_t>(i)]));
        const int64_t start = l == 4 || r.integer(0, 3) == 0 ? -1 : r.integer(0, 500);
        put(a.start, l * rows + i, static_cast<double>(start));
        put(a.end, l * rows + i, static_cast<double>(start < 0 ? -1 : start + r.integer(0, 40)));
      }
    }
    for (Tensor* t : {&a.query, &a.row_begin, &a.row_end, &a.place}) *t = poisoned(ctx, DType::i32, shape);
    a.first_block = poisoned(ctx, DType::i32, {batch, heads, tiles});
    a.blocks = poisoned(ctx, DType::i32, {batch, heads, tiles});
    a.per_query = 3, a.block_q = bq, a.block_k = bk;
    pack_spans(ctx, a);
    int64_t wrong = 0;
    for (int64_t l = 0; l < batch * heads; ++l)
      for (int64_t t = 0; t < tiles; ++t) {
        double least = 1e9, most = 0;
        for (int64_t i = t * bq; i < std::min(rows, (t + 1) * bq); ++i) {
          const double span = get(a.order, l * rows + i);
          const int64_t at = l * rows + static_cast<int64_t>(span);
          const bool there = get(a.start, at) >= 0;
          const double begin = there ? get(a.start, at) : 0, end = there ? get(a.end, at) + 1 : 0;
          wrong += get(a.query, l * rows + i) != std::floor(span / 3);
          wrong += get(a.place, at) != static_cast<double>(i);
          wrong += get(a.row_begin, l * rows + i) != begin || get(a.row_end, l * rows + i) != end;
          if (there) least = std::min(least, begin), most = std::max(most, end);
        }
        const double first = most > 0 ? std::floor(least / 32) : 0;
        wrong += get(a.first_block, l * tiles + t) != first;
        wrong += get(a.blocks, l * tiles + t) != (most > 0 ? std::ceil(most / 32) - first : 0);
      }
    INFO("rows " << rows);
    CHECK(wrong == 0);
  }
}

TEST_CASE("merged spans are the gated mean of joined branches") {
  Context ctx(cpu_backend(), 2);
  Random r(93);
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  for (const bool with_shared : {true, false})
    for (const int64_t slots : {1, 3}) {
      const int64_t batch = 2, heads = 3, n = 41, e = 19, p = n * slots;
      MergeSpansArgs a;
      a.spans = random(ctx, dtype, {batch, heads, p, e}, r);
      a.lse = random(ctx, DType::f32, {batch, heads, p}, r, -4, 4);
      a.score = random(ctx, DType::f32, {batch, heads, n, slots}, r, -3, 3);
      a.place = ctx.allocate(DType::i32, {batch, heads, p});
      for (int64_t l = 0; l < batch * heads; ++l)
        for (int64_t i = 0; i < p; ++i) put(a.place, l * p + i, static_cast<double>((i * 7 + l) % p));
      if (p % 7 == 0) continue;
      for (int64_t i = 0; i < batch * heads * p; i += 5) {  // nothing seen: what stands there does not count
        put(a.lse, i, -INFINITY);
        for (int64_t x = 0; x < e; ++x) put(a.spans, i * e + x, std::numeric_limits<double>::quiet_NaN());
      }
      put(a.score, 0, -1e9);
      if (with_shared) {
        a.shared = random(ctx, dtype, {batch, heads, n, e}, r);
        a.shared_lse = random(ctx, DType::f32, {batch, heads, n}, r, -4, 4);
        put(a.shared_lse, 7, -INFINITY);
        for (int64_t x = 0; x < e; ++x) put(a.shared, 7 * e + x, std::numeric_limits<double>::quiet_NaN());
      }
      a.o = poisoned(ctx, dtype, {batch, heads, n, e});
      merge_spans(ctx, a);
      double worst = 0;
      for (int64_t row = 0; row < batch * heads * n; ++row) {
        double total = 0, most = -INFINITY;
        for (int64_t s = 0; s < slots; ++s) most = std::max(most, get(a.score, row * slots + s));
        for (int64_t s = 0; s < slots; ++s) total += std::exp(get(a.score, row * slots + s) - most);
        for (int64_t x = 0; x < e; ++x) {
          double want = 0;
          for (int64_t s = 0; s < slots; ++s) {
            const int64_t at =
                row / n * p + static_cast<int64_t>(get(a.place, row / n * p + row % n * slots + s));
            const double own = std::exp(get(a.lse, at)),
                         other = with_shared ? std::exp(get(a.shared_lse, row)) : 0;
            if (own + other == 0) continue;
            double value = 0;
            if (own > 0) value += own * get(a.spans, at * e + x);
            if (other > 0) value += other * get(a.shared, row * e + x);
            want += std::exp(get(a.score, row * slots + s) - most) / total * value / (own + other);
          }
          worst = std::max(worst, std::abs(get(a.o, row * e + x) - want));
        }
      }
      // Values up to 1; weights of a few exponentials and quotients, one rounding of the type.
      CHECK(worst <= 32 * 0x1p-24 * 4 + epsilon_of(dtype) / 2);
    }
}

TEST_CASE("span operators refuse what does not fit") {
  Context ctx(cpu_backend(), 1);
  SearchSpansArgs a;
  a.q = ctx.allocate(DType::f32, {1, 3, 4, 8}), a.k = ctx.allocate(DType::f32, {1, 2, 4, 8});
  CHECK_THROWS_WITH(search_spans(ctx, a), ContainsSubstring("do not go together"));
  MergeSpansArgs m;
  CHECK_THROWS_WITH(merge_spans(ctx, m), ContainsSubstring("spans"));
  PackSpansArgs p;
  p.order = ctx.allocate(DType::i32, {1, 1, 4});
  p.per_query = 0;
  CHECK_THROWS_WITH(pack_spans(ctx, p), ContainsSubstring("per_query 0"));
}
