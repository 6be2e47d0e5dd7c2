// CPU attention against double precision: every feature alone, thousands of seeded mixtures, every
// instruction set this machine has.
#include "kernels/attention/attention.hpp"

#include "kernels/attention/cpu_kernel.hpp"
#include "kernels/core/backend.hpp"
#include "tests/attention/cases.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
using namespace attnbench::attention_test;
namespace cpu = attnbench::cpu_attention;

namespace {

struct ForceKernels {
  explicit ForceKernels(const cpu::Kernels* k) { cpu::force_kernels(k); }
  ~ForceKernels() { cpu::force_kernels(nullptr); }
};

double product_rounding(const AttentionArgs& a) {
  const bool pairs = a.q.dtype() == DType::bf16 && cpu::kernels().bf16_pairs && a.q.dim(3) % 2 == 0;
  return pairs ? epsilon_of(DType::bf16) / 2 : 0;
}
/// Runs and compares; "" when all is well.
std::string run(Context& ctx, const AttentionArgs& a) {
  attention(ctx, a);
  return compare(a, reference(a), product_rounding(a));
}

}  // namespace

TEST_CASE("random mixtures of every feature agree with double precision on every instruction set") {
  Context ctx(cpu_backend(), 2);
  const cpu::KernelList list = cpu::available_kernels();
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    Case c;
    random_case(c, ctx, seed);
    // The references take most of the time: one serves all tables.
    const Expected expected = reference(c.args);
    for (int i = 0; i < list.count; ++i) {
      const ForceKernels force(list.entries[i]);
      std::string wrong;
      try {
        attention(ctx, c.args);
        wrong = compare(c.args, expected, product_rounding(c.args));
      } catch (const Error& e) {
        wrong = e.what();
      }
      if (!wrong.empty()) FAIL_CHECK(c.text << " on " << list.entries[i]->name << ": " << wrong);
    }
    if (c.args.mask && !c.args.pages.table) {
      const PairCount pairs = count_pairs(c.mask, expected.batch, expected.heads, expected.n, expected.m);
      if (pairs.attended != expected.attended || pairs.visited < pairs.attended)
        FAIL_CHECK(c.text << ": counted " << pairs.attended << " attended of " << pairs.visited
                          << " visited, expected " << expected.attended);
      if (!c.mask.full && !c.mask.partial && !c.mask.gather) {
        const int64_t d = c.args.q.dim(3), e = c.args.v.dim(3);
        const int64_t per_pair =
            2 * (d + e + (c.args.relative.keys ? d : 0) + (c.args.relative.values ? e : 0));
        const int64_t charged = attention_cost(c.args).matmul / per_pair;
        if (charged != expected.attended)
          FAIL_CHECK(c.text << ": charged " << charged << " pairs, expected " << expected.attended);
      }
    }
  }
}

TEST_CASE("finite biases of any size hide keys without a trace, and blocked rows take the mean") {
  Context ctx(cpu_backend(), 1);
  const cpu::KernelList list = cpu::available_kernels();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const int64_t n : {1, 37, 130})
      for (const float huge : {1e9f, 4e9f, 1e12f, 1e30f}) {
        Case c;
        blocked_rows(c, ctx, dtype, n, huge);
        const Expected expected = reference(c.args);
        for (int i = 0; i < list.count; ++i) {
          const ForceKernels force(list.entries[i]);
          attention(ctx, c.args);
          INFO(list.entries[i]->name << " " << name(dtype) << " n " << n << " bias " << -huge);
          CHECK(compare(c.args, expected, product_rounding(c.args)) == "");
        }
      }
}

TEST_CASE("weights too small for a normal number are 0, while values and outputs keep their subnormals") {
  Context ctx(cpu_backend(), 1);
  const cpu::KernelList list = cpu::available_kernels();
  constexpr int64_t n = 33, m = 2, d = 19;
  AttentionArgs a;
  a.q = ctx.allocate(DType::f32, {1, 1, n, d});
  a.k = ctx.allocate(DType::f32, {1, 1, m, d});
  a.v = ctx.allocate(DType::f32, {1, 1, m, d});
  a.o = ctx.allocate(DType::f32, {1, 1, n, d});
  a.bias.dense = ctx.allocate(DType::f32, {1, 1, n, m});
  std::fill_n(a.q.data<float>(), n * d, 0.0f);
  std::fill_n(a.k.data<float>(), m * d, 0.0f);
  std::fill_n(a.v.data<float>(), d, 1e-41f);
  std::fill_n(a.v.data<float>() + d, d, 1e30f);  // a weight of e^-100 would be 3.8e-44, and its share 3.8e-14
  for (int64_t i = 0; i < n; ++i)
    a.bias.dense.data<float>()[2 * i] = 0, a.bias.dense.data<float>()[2 * i + 1] = -100;
  for (int i = 0; i < list.count; ++i) {
    const ForceKernels force(list.entries[i]);
    std::fill_n(a.o.data<float>(), n * d, std::numeric_limits<float>::quiet_NaN());
    attention(ctx, a);
    INFO(list.entries[i]->name);
    CHECK(std::count(a.o.data<float>(), a.o.data<float>() + n * d, 1e-41f) == n * d);
  }
}

TEST_CASE("embeddings of distances that are not finite reach the rows that see them, and no others") {
  Context ctx(cpu_backend(), 2);
  const cpu::KernelList list = cpu::available_kernels();
  int64_t checked = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Case c;
    Random r(seed + 5000);
    odd_embeddings(c, ctx, r);
    const Expected expected = reference(c.args);
    for (const double x : expected.o) checked += std::isfinite(x) ? 1 : 0;
    for (int i = 0; i < list.count; ++i) {
      const ForceKernels force(list.entries[i]);
      attention(ctx, c.args);
      const std::string wrong = compare(c.args, expected, product_rounding(c.args));
      if (!wrong.empty()) FAIL_CHECK(c.text << " on " << list.entries[i]->name << ": " << wrong);
    }
  }
  CHECK(checked > 100000);  // most rows are far from what is odd
}

TEST_CASE("lists of tiled neighbourhoods are exact, whether blocks are tiles or not") {
  Context ctx(cpu_backend(), 1);
  int64_t listed_blocks = 0, full_blocks = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random r(seed);
    Case c;
    Sizes s;
    std::string text;
    random_neighbourhood(c, r, s, text);
    do random_tiles(c, r, s, text);
    while (c.mask.rule.q_tile[0] == 0 || c.mask.rule.k_tile[0] == 0);
    const ElementRule& rule = c.mask.rule;
    int64_t block_q = 1, block_k = 1;
    for (size_t a = 0; a < static_cast<size_t>(rule.rank); ++a)
      block_q *= rule.q_tile[a], block_k *= rule.k_tile[a];
    if (seed % 4 == 0) ++block_q;  // and so blocks are no tiles
    if (seed % 4 == 1) ++block_k;
    const BlockMask mask = make_block_mask(ctx, rule, s.n, s.m, block_q, block_k);
    // A block is listed when it has a pair, and full when no pair of a real query is missing.
    for (int64_t row = 0; row * block_q < s.n; ++row)
      for (int64_t column = 0; column * block_k < s.m; ++column) {
        int64_t seen = 0, missing = 0;
        for (int64_t i = row * block_q; i < std::min(s.n, (row + 1) * block_q); ++i) {
          const auto at = place_on_grid(rule, rule.q_tile, i);
          bool real = true;
          for (size_t a = 0; a < at.size() && a < static_cast<size_t>(rule.rank); ++a)
            real &= at[a] < rule.grid[a];
          for (int64_t j = column * block_k; real && j < std::min(s.m, (column + 1) * block_k); ++j)
            ++(rule_lets(rule, 0, 0, 1, 1, i, j, i, j, s.n, s.m) ? seen : missing);
        }
        const bool full = listed(mask.full, 0, 0, 1, 1, row, column),
                   partial = listed(mask.partial, 0, 0, 1, 1, row, column);
        listed_blocks += full || partial, full_blocks += full;
        if (full != (seen > 0 && missing == 0) || partial != (seen > 0 && missing > 0))
          FAIL_CHECK("seed " << seed << ":" << text << ", block " << row << " " << column << ": full " << full
                             << ", partial " << partial << ", sees " << seen << ", misses " << missing);
      }
  }
  CHECK(full_blocks > 500);  // the sample is no empty one
  CHECK(listed_blocks > 4 * full_blocks / 3);
}

TEST_CASE("two causal heads by hand") {
  // q = 0: every score is 0, so each row is the mean of the values it sees.
  Context ctx(cpu_backend(), 1);
  Random r(1);
  Case c;
  base_case(c, ctx, r, {1, 2, 1, 3, 3, 4, 1, DType::f32}, false, true);
  fill(c.args.q, [] { return 0.0f; });
  float next = 1;
  fill(c.args.v, [&] { return next++; });
  c.mask.rule.causal = true;
  c.args.mask = &c.mask;
  attention(ctx, c.args);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(element(c.args.o, {0, h, i, 0}) == Approx(1 + i / 2.0));
      CHECK(element(c.args.lse, {0, h, i}) == Approx(std::log(i + 1.0)).margin(1e-7));
      CHECK(element(c.args.row_entropy, {0, h, i}) == Approx(std::log(i + 1.0)).margin(1e-7));
      CHECK(element(c.args.row_max, {0, h, i}) == 0.0);
    }
  CHECK(run(ctx, c.args) == "");
}
