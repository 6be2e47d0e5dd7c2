// Gap ratios, spaced choices and chunk lists against their definitions, written out element by element.
#include "kernels/select/chunks.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>

#include "kernels/select/select.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Tensor integers(Context& ctx, const Shape& shape, const std::vector<int64_t>& v) {
  const Tensor t = ctx.allocate(DType::i32, shape);
  REQUIRE(t.numel() == static_cast<int64_t>(v.size()));
  for (size_t i = 0; i < v.size(); ++i) put(t, static_cast<int64_t>(i), static_cast<double>(v[i]));
  return t;
}

}  // namespace

TEST_CASE("gap_ratios sums the map on both sides of a gap, over the rows behind its window") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), GENERATE(1, 3));
  Random r(61);
  for (const auto& [n, w, window, reach] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{150, 4, -1, 0},
                                            {90, 1, -1, 0},
                                            {131, 3, 17, 0},
                                            {140, 2, -1, 4},
                                            {140, 3, 60, 21},
                                            {15, 4, -1, 0},
                                            {1, 2, -1, 0}}) {
    const int64_t b = 2, h = 4, kv = 2, d = 9;
    GapRatiosArgs a;
    a.w = w, a.window = window, a.reach = reach, a.scale = 0.7f;
    a.q = random(ctx, type, {b, n, h, d}, r).transpose(1, 2);
    a.k = random(ctx, type, {b, n, kv, d}, r).transpose(1, 2);
    a.lse = ctx.allocate(DType::f32, {b, h, n});
    a.score = poisoned(ctx, DType::f32, {b, n});
    std::vector<double> map(static_cast<size_t>(b * n * n)), want;
    for (int64_t i = 0; i < b; ++i)
      for (int64_t head = 0; head < h; ++head)
        for (int64_t row = 0; row < n; ++row) {
          std::vector<double> e(static_cast<size_t>(n));
          double sum = 0;
          for (int64_t j = window < 0 ? 0 : std::max<int64_t>(0, row - window); j <= row; ++j) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c)
              s += get(a.q, i * a.q.stride(0) + head * a.q.stride(1) + row * a.q.stride(2) + c) *
                   get(a.k, i * a.k.stride(0) + head / 2 * a.k.stride(1) + j * a.k.stride(2) + c);
            sum += e[static_cast<size_t>(j)] = std::exp(static_cast<double>(0.7f) * s);
          }
          put(a.lse, (i * h + head) * n + row, std::log(sum));
          for (int64_t j = 0; j <= row; ++j)
            map[static_cast<size_t>((i * n + row) * n + j)] += e[static_cast<size_t>(j)] / sum / h;
        }
    for (int64_t i = 0; i < b; ++i)
      for (int64_t t = 0; t < n; ++t) {
        double past = 0, future = 0;
        if (t < 2 * w - 1 || t >= n - 2 * w) {
          want.push_back(0);
          continue;
        }
        for (int64_t row = t + w; row < (reach ? std::min(n, t + w + reach) : n); ++row)
          for (int64_t c = 0; c < w; ++c) {
            past += map[static_cast<size_t>((i * n + row) * n + t - c)];
            future += map[static_cast<size_t>((i * n + row) * n + t + 1 + c)];
          }
        want.push_back((std::max(past, future) + 1e-6) / (std::min(past, future) + 1e-6));
      }
    const int64_t seen =
        window < 0 || window >= n ? n * (n + 1) / 2 : n * (window + 1) - window * (window + 1) / 2;
    const Cost cost = charged(ctx, [&] { gap_ratios(ctx, a); });
    CHECK(cost.matmul == b * h * seen * 2 * d);
    CHECK(cost.special == b * h * seen);
    INFO("n " << n << " w " << w << " window " << window << " reach " << reach);
    // Rounding of lse (below 8) and of the dots, in each term of both sums.
    for (int64_t i = 0; i < b * n; ++i)
      CHECK(std::abs(get(a.score, i) - want[static_cast<size_t>(i)]) <=
            32 * epsilon_of(DType::f32) * want[static_cast<size_t>(i)]);
  }
}

TEST_CASE("gap_ratios by hand: rows that look at one side only") {
  Context ctx(cpu_backend(), 1);
  // lse far below the scores of key 1, and far above all the others: only column 1 has mass, 1 a row.
  const int64_t n = 8;
  GapRatiosArgs a;
  a.w = 1;
  a.q = ctx.allocate(DType::f32, {1, 1, n, 1}), a.k = ctx.allocate(DType::f32, {1, 1, n, 1});
  a.lse = ctx.allocate(DType::f32, {1, 1, n}), a.score = poisoned(ctx, DType::f32, {1, n});
  for (int64_t i = 0; i < n; ++i) put(a.q, i, 1), put(a.k, i, i == 1 ? 100 : 0), put(a.lse, i, 100);
  gap_ratios(ctx, a);
  // Gap 1: column 1 in rows 2 .. 7 against nothing; gaps 2 .. 5 see nothing; ends have no window.
  CHECK(values(a.score)[1] == Approx((6 + 1e-6) / 1e-6));
  for (int64_t t : {2, 3, 4, 5}) CHECK(get(a.score, t) == 1);
  for (int64_t t : {0, 6, 7}) CHECK(get(a.score, t) == 0);
}

TEST_CASE("pick_spaced keeps the best that keep their distance") {
  Context ctx(cpu_backend(), GENERATE(1, 3));
  Random r(62);
  for (int64_t m : {1, 5, 33, 500})
    for (int64_t spacing : {0, 1, 8, 1000})
      for (int variant = 0; variant < 4; ++variant) {
        PickSpacedArgs a;
        a.score = ctx.allocate(DType::f32, {3, m}), a.order = ctx.allocate(DType::i32, {3, m});
        a.flag = padded(ctx, DType::u8, {3, m}, 1, 2);
        each(a.score, [&](int64_t o) {
          put(a.score, o, r.integer(0, 20) == 0 ? std::nan("") : static_cast<double>(r.integer(-6, 6)));
        });
        ArgsortArgs sort;
        sort.x = a.score, sort.index = a.order, sort.descending = true;
        argsort(ctx, sort);
        a.threshold = variant == 3 ? 100.0f : -2.0f;
        a.spacing = spacing;
        if (variant > 0) a.limit = variant == 1 ? 0 : m / 3;
        if (variant > 1) a.forced = m / 2, a.last = m - m / 4 - 1;
        const Cost cost = charged(ctx, [&] { pick_spaced(ctx, a); });
        CHECK(cost.elementwise == 3 * m);
        std::vector<double> want(static_cast<size_t>(3 * m));
        for (int64_t row = 0; row < 3; ++row) {
          // By definition: the best open column, again and again.
          std::set<int64_t> chosen;
          if (a.forced >= 0) chosen.insert(a.forced);
          while (true) {
            int64_t best = -1;
            for (int64_t t = 0; t < m; ++t) {
              const double x = get(a.score, row * m + t);
              bool open = x > static_cast<double>(a.threshold) && t <= a.last;
              for (int64_t c : chosen) open = open && std::abs(c - t) > spacing;
              if (open && (best < 0 || x > get(a.score, row * m + best))) best = t;
            }
            if (best < 0) break;
            chosen.insert(best);
            if (static_cast<int64_t>(chosen.size()) >= a.limit) break;
          }
          for (int64_t c : chosen) want[static_cast<size_t>(row * m + c)] = 1;
        }
        INFO("m " << m << " spacing " << spacing << " variant " << variant);
        CHECK(values(a.flag) == want);
      }
}

TEST_CASE("pick_spaced by hand: the cap is looked at after a choice") {
  Context ctx(cpu_backend(), 1);
  PickSpacedArgs a;
  a.score = ctx.allocate(DType::f32, {6});
  const double score[6] = {3, 5, 4, 0, 9, 1};
  for (int i = 0; i < 6; ++i) put(a.score, i, score[i]);
  a.order = integers(ctx, {6}, {4, 1, 2, 0, 5, 3});
  a.flag = ctx.allocate(DType::u8, {6});
  a.threshold = 0.5f, a.spacing = 1, a.limit = 1;
  pick_spaced(ctx, a);
  CHECK(values(a.flag) == std::vector<double>{0, 0, 0, 0, 1, 0});
  a.forced = 0, a.last = 3;
  pick_spaced(ctx, a);  // 4 lies behind, 1 too near; 2 follows although the cap is reached
  CHECK(values(a.flag) == std::vector<double>{1, 0, 1, 0, 0, 0});
}

TEST_CASE("chunk_lists fills the budget with whole chunks, newest and leading keys") {
  Context ctx(cpu_backend(), GENERATE(1, 3));
  Random r(63);
  for (const auto& [n, first, rows, block, window, k] :
       {std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>{100, 0, 100, 16, 0, 30},
        {100, 0, 77, 16, 0, 100},
        {211, 0, 200, 32, 50, 50},
        {90, 89, 1, 1, 0, 20},
        {90, 89, 1, 1, 25, 20},
        {70, 0, 70, 64, 10, 7},
        {1, 0, 1, 8, 0, 1}})
    for (const auto& [recent, leading] :
         {std::pair<int64_t, int64_t>{0, 0}, {5, 0}, {0, 9}, {4, 3}, {1000, 0}, {0, 1000}}) {
      const int64_t batch = 2, blocks = (rows + block - 1) / block, chunks = 12;
      std::vector<int64_t> bounds, order;
      for (int64_t b = 0; b < batch; ++b) {
        std::set<int64_t> cuts{0, n};
        for (int64_t c = 0; c < chunks - 2 - b; ++c) cuts.insert(r.integer(0, n));
        bounds.insert(bounds.end(), cuts.begin(), cuts.end());
        bounds.resize(static_cast<size_t>((b + 1) * (chunks + 1)), -1);
      }
      for (int64_t row = 0; row < batch * blocks; ++row) {
        std::vector<int64_t> o(static_cast<size_t>(chunks));
        std::iota(o.begin(), o.end(), 0);
        for (size_t i = o.size(); i-- > 1;)
          std::swap(o[i], o[static_cast<size_t>(r.integer(0, static_cast<int64_t>(i)))]);
        order.insert(order.end(), o.begin(), o.end());
      }
      ChunkListsArgs a;
      a.order = integers(ctx, {batch, blocks, chunks}, order);
      a.bounds = integers(ctx, {batch, chunks + 1}, bounds);
      a.tokens = ctx.allocate(DType::i32, {batch, blocks, k});
      a.lists = {ctx.allocate(DType::i32, {batch, 1, blocks}), ctx.allocate(DType::i32, {batch, 1, blocks}),
                 ctx.allocate(DType::i32, {batch * blocks * k})};
      for (const Tensor* t : {&a.tokens, &a.lists.begin, &a.lists.count, &a.lists.index}) fill(*t, -77);
      a.n = n, a.first = first, a.rows = rows, a.block_q = block, a.window = window;
      a.recent = recent, a.leading = leading;
      chunk_lists(ctx, a);
      INFO("n " << n << " rows " << rows << " window " << window << " k " << k << " recent " << recent
                << " leading " << leading);
      for (int64_t row = 0; row < batch * blocks; ++row) {
        const int64_t m = row % blocks, b = row / blocks, start = first + m * block, end = start + block;
        std::vector<int64_t> allowed, want;
        for (int64_t j = 0; j < n; ++j)
          if (j < end && (window == 0 || j >= end - window)) allowed.push_back(j);
        for (int64_t i = 0; i < std::min(recent, k) && !allowed.empty(); ++i)
          want.push_back(allowed.back()), allowed.pop_back();
        for (int64_t c = 0; c < chunks; ++c) {
          const int64_t at = b * (chunks + 1) + order[static_cast<size_t>(row * chunks + c)];
          for (int64_t j : allowed)
            if (j >= bounds[static_cast<size_t>(at)] && j < bounds[static_cast<size_t>(at + 1)] &&
                static_cast<int64_t>(want.size()) < k)
              want.push_back(j);
        }
        want.resize(static_cast<size_t>(k), n - 1);
        std::sort(want.begin(), want.end());
        for (int64_t i = 0; i < std::min(leading, k); ++i)
          want[static_cast<size_t>(i)] =
              std::min((window ? std::max<int64_t>(0, start - window) : 0) + i, std::min(end, n) - 1);
        std::set<int64_t> listed;
        for (int64_t j : want)
          if (j < std::min(end, first + rows)) listed.insert(j);
        std::vector<int64_t> tokens, index;
        for (int64_t i = 0; i < k; ++i) tokens.push_back(a.tokens.data<int32_t>()[row * k + i]);
        CHECK(a.lists.begin.data<int32_t>()[row] == row * k);
        for (int64_t i = 0; i < a.lists.count.data<int32_t>()[row]; ++i)
          index.push_back(a.lists.index.data<int32_t>()[row * k + i]);
        CHECK(tokens == want);
        CHECK(index == std::vector<int64_t>(listed.begin(), listed.end()));
      }
    }
}

TEST_CASE("chunk operators refuse what contradicts itself") {
  Context ctx(cpu_backend(), 1);
  GapRatiosArgs g;
  g.q = ctx.allocate(DType::f32, {1, 3, 8, 4}), g.k = ctx.allocate(DType::f32, {1, 2, 8, 4});
  g.lse = ctx.allocate(DType::f32, {1, 3, 8}), g.score = ctx.allocate(DType::f32, {1, 8});
  CHECK_THROWS_WITH(gap_ratios(ctx, g), ContainsSubstring("no multiple"));
  g.k = ctx.allocate(DType::f32, {1, 3, 8, 4});
  g.reach = 3, g.w = 2;
  CHECK_THROWS_WITH(gap_ratios(ctx, g), ContainsSubstring("reach is 3"));
  PickSpacedArgs p;
  p.score = ctx.allocate(DType::f32, {8}), p.order = ctx.allocate(DType::i32, {8});
  p.flag = ctx.allocate(DType::u8, {8});
  p.forced = 8;
  CHECK_THROWS_WITH(pick_spaced(ctx, p), ContainsSubstring("forced column 8"));
  p.forced = -1, p.spacing = -1;
  CHECK_THROWS_WITH(pick_spaced(ctx, p), ContainsSubstring("spacing is -1"));
  ChunkListsArgs l;
  l.order = ctx.allocate(DType::i32, {1, 2, 3}), l.bounds = ctx.allocate(DType::i32, {1, 4});
  l.tokens = ctx.allocate(DType::i32, {1, 2, 5});
  l.lists = {ctx.allocate(DType::i32, {1, 1, 2}), ctx.allocate(DType::i32, {1, 1, 2}),
             ctx.allocate(DType::i32, {10})};
  l.n = 16, l.rows = 16, l.block_q = 4;
  CHECK_THROWS_WITH(chunk_lists(ctx, l), ContainsSubstring("2 query blocks for 16 rows"));
  l.block_q = 8, l.window = 4;
  CHECK_THROWS_WITH(chunk_lists(ctx, l), ContainsSubstring("5 tokens a block"));
}
