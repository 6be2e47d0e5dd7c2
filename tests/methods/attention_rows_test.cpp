// Probability rows, pair sets and pair counts against definitions written out pair by pair.
#include "methods/attention_rows.hpp"

#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kQueries = 11, kKeys = 17, kDim = 5;

/// Everything an attention call needs, filled with normal values.
struct Call {
  explicit Call(DType dtype = DType::f32) : ctx(cpu_backend(), 2) {
    const auto make = [&](const char* name, const Shape& shape, DType type) {
      return make_tensor(ctx, {name, shape, type, Init::normal(), false, ""}, 7, MemoryClass::input);
    };
    args.q = make("q", {kBatch, kHeads, kQueries, kDim}, dtype);
    args.k = make("k", {kBatch, kKvHeads, kKeys, kDim}, dtype);
    args.v = args.k;
    args.o = ctx.allocate(dtype, {kBatch, kHeads, kQueries, kDim});
    args.scale = 0.7f;
  }
  Tensor ints(const Shape& shape, const std::vector<int32_t>& values) {
    Tensor t = ctx.allocate(DType::i32, shape);
    std::copy(values.begin(), values.end(), t.data<int32_t>());
    return t;
  }
  Context ctx;
  AttentionArgs args;
};

/// Compares attention_rows of every head with scores given by `score(b, h, i, j)`, -inf for hidden pairs; a
/// sink logit joins the sum.
template <class F>
void check_rows(Call& call, F&& score, double sink = -INFINITY) {
  const RefTensor q = to_reference(call.args.q), k = to_reference(call.args.k);
  const int64_t begin = 3;
  double worst = 0;
  int64_t wrong = 0;  // pairs that the set shows and the scores hide, or the other way round
  std::vector<float> rows, again;
  AttentionRows reader(call.ctx, call.args);
  const PairSet pairs = attention_pairs(call.ctx, call.args);
  Intervals row;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t h = 0; h < kHeads; ++h) {
      std::fill(rows.begin(), rows.end(), NAN);
      REQUIRE(attention_rows(call.ctx, call.args, b, h, begin, kQueries, rows));
      REQUIRE(rows.size() == static_cast<size_t>((kQueries - begin) * kKeys));
      reader.read(b, h, begin, kQueries, again);
      CHECK(again == rows);
      for (int64_t i = begin; i < kQueries; ++i) {
        std::vector<double> p(kKeys, 0.0);
        double sum = std::exp(sink);
        pairs.row(b, h, i, row);
        for (size_t k = 0; k < row.size(); ++k)
          wrong += row[k].begin >= row[k].end || (k > 0 && row[k].begin <= row[k - 1].end);
        for (int64_t j = 0; j < kKeys; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < kDim; ++c)
            dot += q[((b * kHeads + h) * kQueries + i) * kDim + c] *
                   k[((b * kKvHeads + h / 2) * kKeys + j) * kDim + c];
          p[static_cast<size_t>(j)] = std::exp(score(b, h, i, j, double(call.args.scale) * dot));
          sum += p[static_cast<size_t>(j)];
          bool in = false;
          for (const Interval& v : row) in |= j >= v.begin && j < v.end;
          // A bias of -inf takes a key's weight, not its pair.
          if (!call.args.bias.dense) wrong += in != (p[static_cast<size_t>(j)] > 0);
        }
        for (int64_t j = 0; j < kKeys; ++j) {
          const double want = sum > 0 ? p[static_cast<size_t>(j)] / sum : 0.0;
          worst =
              std::max(worst, std::abs(want - double(rows[static_cast<size_t>((i - begin) * kKeys + j)])));
        }
      }
    }
  // Scores below 8 in size carry 8 f32 roundings, which exp turns into relative errors of that size.
  CHECK(worst < 64 * 6e-8);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("attention_rows: dense, causal and band with sinks, in every storage type") {
  Call call(GENERATE(DType::f32, DType::bf16, DType::f16));
  BlockMask mask;
  SECTION("dense") {
    check_rows(call, [](auto, auto, auto, auto, double s) { return s; });
  }
  SECTION("causal, ends aligned") {
    mask.rule.causal = true;
    call.args.mask = &mask;
    check_rows(call, [](auto, auto, int64_t i, int64_t j, double s) {
      return j <= i + kKeys - kQueries ? s : -INFINITY;
    });
  }
  SECTION("causal at offset -5: the first rows see nothing") {
    mask.rule.causal = true;
    mask.rule.offset = -5;
    call.args.mask = &mask;
    check_rows(call, [](auto, auto, int64_t i, int64_t j, double s) { return j <= i - 5 ? s : -INFINITY; });
  }
  SECTION("band with sinks") {
    mask.rule.band = true;
    mask.rule.left = 2;
    mask.rule.right = 1;
    mask.rule.sinks = 3;
    call.args.mask = &mask;
    check_rows(call, [](auto, auto, int64_t i, int64_t j, double s) {
      const int64_t c = i + kKeys - kQueries;
      return (j >= c - 2 && j <= c + 1) || j < 3 ? s : -INFINITY;
    });
  }
}

TEST_CASE("attention_rows: soft-cap, biases and sinks") {
  Call call;
  SECTION("soft-cap") {
    call.args.soft_cap = 1.5f;
    check_rows(call, [](auto, auto, auto, auto, double s) { return 1.5 * std::tanh(s / 1.5); });
  }
  SECTION("a sink takes its share") {
    call.args.sink_logit = host_tensor(call.ctx, {kHeads}, {0.5, 0.5, 0.5, 0.5});
    check_rows(
        call, [](auto, auto, auto, auto, double s) { return s; }, 0.5);
  }
  SECTION("slope, relative and dense add up") {
    call.args.bias.slope = host_tensor(call.ctx, {kHeads}, {0.1, 0.2, 0.3, 0.4});
    call.args.bias.relative = host_tensor(call.ctx, {1, 5}, {1, 2, 3, 4, 5});
    std::vector<double> values;
    for (int64_t x = 0; x < kBatch * kQueries * kKeys; ++x)
      values.push_back(x % 5 == 0 ? -INFINITY : 0.25 * (x % 3));
    call.args.bias.dense = host_tensor(call.ctx, {kBatch, 1, kQueries, kKeys}, values);
    check_rows(call, [&](int64_t b, int64_t h, int64_t i, int64_t j, double s) {
      const int64_t distance = j - i - (kKeys - kQueries);
      const double relative = 3.0 + static_cast<double>(std::clamp<int64_t>(distance, -2, 2));
      return s - static_cast<double>(static_cast<float>(0.1 * double(h + 1))) * double(std::abs(distance)) +
             relative + values[static_cast<size_t>((b * kQueries + i) * kKeys + j)];
    });
  }
}

TEST_CASE("attention_rows: block lists, gather lists, ranges, padding, orders and pages") {
  Call call;
  BlockMask mask;
  mask.block_q = 4;
  mask.block_k = 6;
  call.args.mask = &mask;
  SECTION("full and partial lists: the rule refines partial blocks only") {
    // Three query blocks, lists for each kv head. Query block r of kv head g: full block (r + g) mod 3,
    // partial block (r + g + 1) mod 3.
    mask.rule.causal = true;
    mask.full = {call.ints({1, 2, 3}, {0, 1, 2, 3, 4, 5}), call.ints({1, 2, 3}, {1, 1, 1, 1, 1, 1}),
                 call.ints({6}, {0, 1, 2, 1, 2, 0})};
    mask.partial = {call.ints({1, 2, 3}, {0, 1, 2, 3, 4, 5}), call.ints({1, 2, 3}, {1, 1, 1, 1, 1, 1}),
                    call.ints({6}, {1, 2, 0, 2, 0, 1})};
    check_rows(call, [](auto, int64_t h, int64_t i, int64_t j, double s) {
      const int64_t r = i / 4, g = h / 2, block = j / 6;
      const bool seen = block == (r + g) % 3 || (block == (r + g + 1) % 3 && j <= i + kKeys - kQueries);
      return seen ? s : -INFINITY;
    });
  }
  SECTION("lists out of order, a band and row ranges") {
    mask.rule.band = true;
    mask.rule.left = 4, mask.rule.right = 2, mask.rule.sinks = 2;
    mask.full = {call.ints({1, 1, 3}, {0, 1, 2}), call.ints({1, 1, 3}, {1, 0, 1}), call.ints({3}, {2, 0, 0})};
    mask.partial = {call.ints({1, 1, 3}, {0, 2, 5}), call.ints({1, 1, 3}, {2, 3, 1}),
                    call.ints({6}, {1, 0, 2, 0, 1, 2})};
    std::vector<int32_t> begins, ends;
    for (int64_t i = 0; i < kQueries; ++i) begins.push_back(int32_t(i % 3)), ends.push_back(int32_t(i + 6));
    mask.row_begin = call.ints({1, 1, kQueries}, begins);
    mask.row_end = call.ints({1, 1, kQueries}, ends);
    check_rows(call, [](auto, auto, int64_t i, int64_t j, double s) {
      static const std::vector<std::vector<int64_t>> full{{2}, {}, {0}}, partial{{1, 0}, {2, 0, 1}, {2}};
      const auto in = [&](const std::vector<int64_t>& list) {
        return std::find(list.begin(), list.end(), j / 6) != list.end();
      };
      const int64_t c = i + kKeys - kQueries;
      const bool band = (j >= c - 4 && j <= c + 2) || j < 2;
      const bool seen =
          in(full[static_cast<size_t>(i / 4)]) || (in(partial[static_cast<size_t>(i / 4)]) && band);
      return seen && j >= i % 3 && j < i + 6 ? s : -INFINITY;
    });
  }
  SECTION("gather lists, a list for each batch") {
    mask.gather = {call.ints({2, 1, 3}, {0, 2, 3, 4, 5, 5}), call.ints({2, 1, 3}, {2, 1, 1, 1, 0, 2}),
                   call.ints({7}, {16, 3, 0, 8, 2, 9, 1})};
    check_rows(call, [](int64_t b, auto, int64_t i, int64_t j, double s) {
      static const std::vector<std::vector<int64_t>> keys{{16, 3}, {0}, {8}, {2}, {}, {9, 1}};
      const auto& row = keys[static_cast<size_t>(b * 3 + i / 4)];
      return std::find(row.begin(), row.end(), j) != row.end() ? s : -INFINITY;
    });
  }
  SECTION("row ranges, key lengths and key flags") {
    std::vector<int32_t> begins, ends;
    for (int64_t i = 0; i < kQueries; ++i) begins.push_back(int32_t(i / 2)), ends.push_back(int32_t(i + 4));
    mask.row_begin = call.ints({1, 1, kQueries}, begins);
    mask.row_end = call.ints({1, 1, kQueries}, ends);
    mask.key_length = call.ints({kBatch}, {17, 9});
    const bool flags = GENERATE(false, true);
    if (flags) {
      mask.key_valid = call.ctx.allocate(DType::u8, {kBatch, kKeys});
      for (int64_t x = 0; x < kBatch * kKeys; ++x) mask.key_valid.data<uint8_t>()[x] = x % 3 != 1;
    }
    check_rows(call, [flags](int64_t b, auto, int64_t i, int64_t j, double s) {
      const bool valid = !flags || (b * kKeys + j) % 3 != 1;
      return j >= i / 2 && j < i + 4 && j < (b ? 9 : 17) && valid ? s : -INFINITY;
    });
  }
  SECTION("orders: blocks speak of slots, rows come back by token") {
    std::vector<int32_t> q_order, k_order;
    for (int64_t s = 0; s < kQueries; ++s) q_order.push_back(int32_t(s * 3 % kQueries));
    for (int64_t s = 0; s < kKeys; ++s) k_order.push_back(int32_t(s * 5 % kKeys));
    mask.q_order = call.ints({kQueries}, q_order);
    mask.k_order = call.ints({kKeys}, k_order);
    mask.full = {call.ints({1, 1, 3}, {0, 1, 2}), call.ints({1, 1, 3}, {1, 1, 1}), call.ints({3}, {2, 0, 1})};
    check_rows(call, [&](auto, auto, int64_t i, int64_t j, double s) {
      const auto q_slot = std::find(q_order.begin(), q_order.end(), i) - q_order.begin();
      const auto k_slot = std::find(k_order.begin(), k_order.end(), j) - k_order.begin();
      static const int64_t block_of[] = {2, 0, 1};
      return k_slot / 6 == block_of[q_slot / 4] ? s : -INFINITY;
    });
  }
  SECTION("bitmap in slot order") {
    mask.rule.bitmap = call.ctx.allocate(DType::u8, {1, kHeads, kQueries, (kKeys + 7) / 8});
    for (int64_t x = 0; x < mask.rule.bitmap.numel(); ++x)
      mask.rule.bitmap.data<uint8_t>()[x] = static_cast<uint8_t>(x * 37 + 11);
    check_rows(call, [](auto, int64_t h, int64_t i, int64_t j, double s) {
      const auto byte = static_cast<uint8_t>(((h * kQueries + i) * 3 + j / 8) * 37 + 11);
      return byte >> (j % 8) & 1 ? s : -INFINITY;
    });
  }
}

TEST_CASE("attention_rows reads pages through the table") {
  Call call;
  // Keys 0..16 of batch b in pages of 5: four pages a batch, shuffled; the last three rows of the last are
  // unused.
  const int64_t page_size = 5, pages = 8;
  Tensor paged = call.ctx.allocate(DType::f32, {pages, kKvHeads, page_size, kDim});
  std::fill_n(paged.data<float>(), paged.numel(), NAN);
  const std::vector<int32_t> table{6, 1, 4, 3, 0, 7, 2, 5};
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t j = 0; j < kKeys; ++j)
      for (int64_t g = 0; g < kKvHeads; ++g)
        for (int64_t c = 0; c < kDim; ++c)
          paged
              .data<float>()[((table[size_t(b * 4 + j / 5)] * kKvHeads + g) * page_size + j % 5) * kDim + c] =
              call.args.k.data<float>()[((b * kKvHeads + g) * kKeys + j) * kDim + c];
  AttentionArgs args = call.args;
  args.k = args.v = paged;
  args.pages = {call.ints({kBatch, 4}, table), page_size};
  BlockMask mask;
  mask.key_length = call.ints({kBatch}, {17, 17});
  args.mask = &mask;
  SECTION("every key") {
    for (int64_t b = 0; b < kBatch; ++b) {
      std::vector<float> want, got;
      attention_rows(call.ctx, call.args, b, 3, 0, kQueries, want);
      attention_rows(call.ctx, args, b, 3, 0, kQueries, got);
      REQUIRE(got.size() == size_t(kQueries * 20));
      int64_t wrong = 0;
      for (int64_t i = 0; i < kQueries; ++i)
        for (int64_t j = 0; j < 20; ++j)
          wrong += got[size_t(i * 20 + j)] != (j < kKeys ? want[size_t(i * kKeys + j)] : 0.0f);
      CHECK(wrong == 0);
    }
  }
  SECTION("causal, each sequence aligned to its own length") {
    mask.rule.causal = true;
    mask.key_length = call.ints({kBatch}, {17, 13});
    for (int64_t b = 0; b < kBatch; ++b) {
      std::vector<float> rows;
      attention_rows(call.ctx, args, b, 0, 0, kQueries, rows);
      const int64_t length = b ? 13 : 17;
      int64_t wrong = 0;
      for (int64_t i = 0; i < kQueries; ++i)
        for (int64_t j = 0; j < 20; ++j)
          wrong += (rows[size_t(i * 20 + j)] > 0) != (j <= i + length - kQueries);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("pair sets and counts of rules agree with the definition") {
  const int64_t n = GENERATE(1, 9, 12), m = GENERATE(1, 9, 14);
  const int64_t left = GENERATE(-1, 0, 3), right = GENERATE(-1, 0, 2, 40), sinks = GENERATE(0, 2, 30);
  const bool causal = GENERATE(false, true), band = GENERATE(false, true);
  ElementRule rule;
  rule.causal = causal;
  rule.band = band;
  rule.left = left;
  rule.right = right;
  rule.sinks = sinks;
  const PairSet set = rule_pairs(rule, 2, 3, n, m);
  REQUIRE(set.queries == n);
  REQUIRE(set.tokens == m);
  int64_t pairs = 0, wrong = 0;
  Intervals row;
  for (int64_t i = 0; i < n; ++i) {
    set.row(0, 0, i, row);
    for (size_t s = 0; s < row.size(); ++s) {
      wrong += row[s].begin >= row[s].end;
      wrong += s > 0 && row[s].begin <= row[s - 1].end - 1;
    }
    for (int64_t j = 0; j < m; ++j) {
      const int64_t c = i + m - n;
      const bool in_band =
          !band || ((left < 0 || j >= c - left) && (right < 0 || j <= c + right)) || j < sinks;
      const bool want = in_band && (!causal || j <= c);
      bool got = false;
      for (const Interval& v : row) got |= j >= v.begin && j < v.end;
      wrong += got != want;
      pairs += want;
    }
  }
  CHECK(wrong == 0);
  CHECK(band_pair_count(rule, n, m) == pairs);
}
