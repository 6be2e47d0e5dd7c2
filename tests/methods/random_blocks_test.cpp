// Random block-sparse attention: against its reference, dense and diagonal limits, counts by hand.
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("random_blocks agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(false, true);
  Trial t = make_trial("random_blocks", heads_problem(2, 6, 2, 203, 203, 24, causal, dtype),
                       {{"block_size", 16}, {"sparsity", 0.6}, {"pattern_seed", 5}});
  check_trial(t, 3);
}

TEST_CASE("random_blocks with more keys than queries") {
  Trial t = make_trial("random_blocks", heads_problem(1, 2, 2, 37, 150, 16, false),
                       {{"block_size", 32}, {"sparsity", 0.5}});
  check_trial(t, 3);
  CHECK_THROWS_AS(make_trial("random_blocks", heads_problem(1, 2, 2, 37, 150, 16, true), {}), Unsupported);
}

TEST_CASE("nothing left out is dense attention; everything left out keeps one block a row") {
  Trial all = make_trial("random_blocks", heads_problem(1, 2, 2, 100, 100, 16, true),
                         {{"block_size", 32}, {"sparsity", 0.0}});
  Trial dense = make_trial("dense", heads_problem(1, 2, 2, 100, 100, 16, true));
  all.run();
  dense.run();
  CHECK(compare(all.output("o"), dense.output("o")).relative_l2 < 1e-5);

  // Blocks of 32, 32, 32 and 4 tokens: the diagonal alone is 3 * 32^2 + 4^2 pairs.
  Trial one = make_trial("random_blocks", heads_problem(1, 1, 1, 100, 100, 16, true),
                         {{"block_size", 32}, {"sparsity", 1.0}});
  CHECK(one.instance->cost().cost.special == 3 * 1024 + 16);
  Intervals row;
  one.instance->pairs()->row(0, 0, 40, row);
  CHECK(row == Intervals{{32, 41}});
}

TEST_CASE("the delivered sparsity is the requested one, and patterns follow their own seed") {
  const auto special = [](int64_t seed, double sparsity) {
    return make_trial("random_blocks", heads_problem(1, 1, 1, 2048, 2048, 16, false),
                      {{"block_size", 64}, {"sparsity", sparsity}, {"pattern_seed", seed}})
        .instance->cost()
        .cost.special;
  };
  CHECK(special(0, 0.9) == 32 * 3 * 64 * 64);  // round(3.2) of 32 blocks
  const auto row = [](int64_t seed) {
    Intervals r;
    make_trial("random_blocks", heads_problem(1, 1, 1, 2048, 2048, 16, false),
               {{"block_size", 64}, {"sparsity", 0.9}, {"pattern_seed", seed}})
        .instance->pairs()
        ->row(0, 0, 0, r);
    return r;
  };
  CHECK(row(0) == row(0));
  CHECK(row(0) != row(1));
}
