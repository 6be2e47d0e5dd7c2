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
