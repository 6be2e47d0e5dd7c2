// Span operators on the GPU against the CPU's.
#include <algorithm>
#include <numeric>

#include "kernels/spans/spans.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA search_spans finds what the CPU finds") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 911);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const int64_t d : {64, 13})  // in packs of 16 bytes, and not
      for (const auto& [slots, masked] :
           std::vector<std::pair<int64_t, bool>>{{1, false}, {3, true}, {32, true}}) {
        const int64_t batch = 2, heads = 6, kv = 2, n = 333, m = 1000;
        // Small integers: sums are exact in any order, and ties are many.
        const auto whole = [&](const Shape& shape) {
          const Tensor t = s.host.allocate(dtype, shape);
          for (int64_t i = 0; i < t.numel(); ++i) put(t, i, static_cast<double>(s.r.integer(-2, 2)));
          return s.upload(t);
        };
        const Twin q = whole({batch, heads, n, d}), k = whole({batch, kv, m, d});
        std::vector<int32_t> places, steps, reach;
        for (int64_t i = 0; i < n; ++i) places.push_back(static_cast<int32_t>(m - 3 * (n - i)));
        for (int64_t i = 2; i * i <= m; ++i) steps.push_back(static_cast<int32_t>(i * i));
        for (int64_t l = 0; l <= m; ++l) reach.push_back(static_cast<int32_t>(l / 20));
        std::vector<uint8_t> valid;
        for (int64_t i = 0; i < batch * m; ++i) valid.push_back(i % m >= 70 * (i / m) && i % 13 != 5);
        const auto both = [&](const Shape& shape, const auto& v) {
          return s.upload(upload(s.host, shape, v));
        };
        const Twin position = both({n}, places), stripes = both({static_cast<int64_t>(steps.size())}, steps),
                   table = both({m + 1}, reach), flags = both({batch, m}, valid),
                   first = both({batch}, std::vector<int32_t>{0, 70});
        const Shape out{batch, heads, n, slots};
        const Twin anchor = s.poisoned(DType::i32, out), start = s.poisoned(DType::i32, out),
                   end = s.poisoned(DType::i32, out), score = s.poisoned(DType::f32, out);
        const auto run = [&](Context& ctx, auto side) {
          SearchSpansArgs a;
          a.q = side(q), a.k = side(k), a.position = side(position), a.stripes = side(stripes);
          a.before = a.after = side(table);
          if (masked) a.key_valid = side(flags), a.first = side(first);
          a.scale = 0.5f, a.window = 3, a.apart = masked;
          a.anchor = side(anchor), a.start = side(start), a.end = side(end), a.score = side(score);
          search_spans(ctx, a);
        };
        run(s.host, [](const Twin& t) { return t.host; });
        run(s.device, [](const Twin& t) { return t.device; });
        for (const Twin* t : {&anchor, &start, &end, &score})
          CHECK(same_bits(s.fetch(*t, true), t->host_base));
      }
}

TEST_CASE("CUDA pack_spans equals the CPU bit for bit") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 912);
  for (const int64_t rows : {1, 63, 64, 130, 5001}) {
    const int64_t batch = 2, heads = 3;
    const Shape shape{batch, heads, rows}, tiles{batch, heads, (rows + 63) / 64};
    const Tensor o = s.host.allocate(DType::i32, shape), b = s.host.allocate(DType::i32, shape),
                 e = s.host.allocate(DType::i32, shape);
    for (int64_t l = 0; l < batch * heads; ++l) {
      std::vector<int64_t> order(static_cast<size_t>(rows));
      std::iota(order.begin(), order.end(), int64_t{0});
      for (int64_t i = rows - 1; i > 0; --i)
        std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(s.r.integer(0, i))]);
      for (int64_t i = 0; i < rows; ++i) {
        put(o, l * rows + i, static_cast<double>(order[static_cast<size_t>(i)]));
        const int64_t begin = l == 4 || s.r.integer(0, 3) == 0 ? -1 : s.r.integer(0, 100000);
        put(b, l * rows + i, static_cast<double>(begin));
        put(e, l * rows + i, static_cast<double>(begin < 0 ? -1 : begin + s.r.integer(0, 900)));
      }
    }
    const Twin order = s.upload(o), start = s.upload(b), end = s.upload(e);
    const Twin query = s.poisoned(DType::i32, shape), row_begin = s.poisoned(DType::i32, shape),
               row_end = s.poisoned(DType::i32, shape), place = s.poisoned(DType::i32, shape),
               first = s.poisoned(DType::i32, tiles), blocks = s.poisoned(DType::i32, tiles);
    const auto run = [&](Context& ctx, auto side) {
      PackSpansArgs a;
      a.order = side(order), a.start = side(start), a.end = side(end), a.query = side(query);
      a.row_begin = side(row_begin), a.row_end = side(row_end), a.place = side(place);
      a.first_block = side(first), a.blocks = side(blocks), a.per_query = 3;
      pack_spans(ctx, a);
    };
    run(s.host, [](const Twin& t) { return t.host; });
    run(s.device, [](const Twin& t) { return t.device; });
    for (const Twin* t : {&query, &row_begin, &row_end, &place, &first, &blocks})
      CHECK(same_bits(s.fetch(*t, true), t->host_base));
  }
}

TEST_CASE("CUDA merge_spans agrees with the CPU") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 913);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const bool with_shared : {true, false})
      for (const int64_t slots : {1, 3}) {
        const int64_t batch = 2, heads = 3, n = 211, e = 40, p = n * slots;
        const Tensor lse = random(s.host, DType::f32, {batch, heads, p}, s.r, -4, 4);
        for (int64_t i = 0; i < lse.numel(); i += 5) put(lse, i, -INFINITY);
        const Tensor places = s.host.allocate(DType::i32, {batch, heads, p});
        for (int64_t i = 0; i < places.numel(); ++i) put(places, i, static_cast<double>((i * 7) % p));
        const Twin spans = s.random(dtype, {batch, heads, p, e}), sums = s.upload(lse),
                   place = s.upload(places), score = s.random(DType::f32, {batch, heads, n, slots}, -3, 3),
                   shared = s.random(dtype, {batch, heads, n, e}),
                   shared_lse = s.random(DType::f32, {batch, heads, n}, -4, 4),
                   o = s.poisoned(dtype, {batch, heads, n, e});
        const auto run = [&](Context& ctx, auto side) {
          MergeSpansArgs a;
          a.spans = side(spans), a.lse = side(sums), a.place = side(place), a.score = side(score);
          if (with_shared) a.shared = side(shared), a.shared_lse = side(shared_lse);
          a.o = side(o);
          merge_spans(ctx, a);
        };
        run(s.host, [](const Twin& t) { return t.host; });
        run(s.device, [](const Twin& t) { return t.device; });
        const Tensor got = s.fetch(o);
        double worst = 0;
        for (int64_t i = 0; i < got.numel(); ++i)
          worst = std::max(worst, std::abs(get(got, i) - get(o.host, i)));
        // Values up to 1: weights of a few exponentials on each side, one rounding of the type each.
        CHECK(worst <= 256 * 0x1p-24 + epsilon_of(dtype));
      }
}
