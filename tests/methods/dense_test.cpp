// Dense and naive attention: their reference by hand, both methods against it, what they refuse.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("the dense reference, by hand") {
  // Scores 0 and ln 3: weights 1/4 and 3/4.
  const std::string method = GENERATE("dense", "naive");
  const RefMap inputs{{"q", ref_tensor({1, 2, 2, 1}, {1, 1, 2, 0})},
                      {"k", ref_tensor({1, 1, 2, 1}, {0, std::log(3.0)})},
                      {"v", ref_tensor({1, 1, 2, 1}, {1, 5})}};
  Problem p = heads_problem(1, 2, 1, 2, 2, 1, false);
  SECTION("every pair, both heads on the one key head") {
    const RefTensor o = find_reference(method)(p, params_of(method, p), inputs, {}).at("o");
    CHECK(o[0] == Approx(4));
    CHECK(o[1] == Approx(4));
    CHECK(o[2] == Approx(0.1 * 1 + 0.9 * 5));  // weights 1 : 9
    CHECK(o[3] == Approx(3));
  }
  SECTION("causal") {
    p.causal = true;
    const RefTensor o = find_reference(method)(p, params_of(method, p), inputs, {}).at("o");
    CHECK(o[0] == Approx(1));
    CHECK(o[1] == Approx(4));
  }
  SECTION("a given scale") {
    const RefTensor o = find_reference(method)(p, params_of(method, p, {{"scale", 2.0}}), inputs, {}).at("o");
    CHECK(o[0] == Approx(0.1 * 1 + 0.9 * 5));
  }
  SECTION("more queries than keys: the first sees nothing when causal") {
    Problem tall = heads_problem(1, 1, 1, 3, 2, 1, true);
    const RefMap in{{"q", ref_tensor({1, 1, 3, 1}, {1, 1, 1})}, {"k", inputs.at("k")}, {"v", inputs.at("v")}};
    const RefTensor o = find_reference(method)(tall, params_of(method, tall), in, {}).at("o");
    CHECK(o[0] == 0);
    CHECK(o[1] == Approx(1));
    CHECK(o[2] == Approx(4));
  }
}

TEST_CASE("dense and naive agree with their reference, and their formula with the ledger") {
  const std::string method = GENERATE("dense", "naive");
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(false, true);
  // dense may round the probabilities once before the second product.
  const double roundings = method == "dense" ? 3 : 1;
  SECTION("sizes that divide nothing, grouped heads, batch 2") {
    Trial t = make_trial(method, heads_problem(2, 6, 2, 133, 133, 40, causal, dtype));
    check_trial(t, roundings);
  }
  SECTION("more keys than queries") {
    Trial t = make_trial(method, heads_problem(1, 2, 1, 5, 71, 16, causal, dtype));
    check_trial(t, roundings);
  }
  SECTION("more queries than keys") {
    Trial t = make_trial(method, heads_problem(1, 2, 2, 71, 5, 16, causal, dtype));
    check_trial(t, roundings);
  }
  SECTION("one query, one key, one channel") {
    Trial t = make_trial(method, heads_problem(1, 1, 1, 1, 1, 1, causal, dtype));
    check_trial(t, roundings);
  }
  SECTION("a given scale, over the tokens of an image") {
    Problem p = heads_problem(1, 2, 2, 0, 0, 24, causal, dtype);
    p.kind = ProblemKind::image;
    p.grid = {5, 7};
    Trial t = make_trial(method, p, {{"scale", 0.3}});
    check_trial(t, roundings);
    CHECK(t.instance->pairs()->grid == std::vector<int64_t>{5, 7});
  }
}

TEST_CASE("dense counts the causal half, naive computes all of it") {
  const Problem p = heads_problem(1, 1, 1, 100, 100, 8, true);
  Trial dense = make_trial("dense", p), naive = make_trial("naive", p);
  CHECK(dense.instance->cost().cost.matmul == 4 * 8 * 100 * 101 / 2);
  CHECK(naive.instance->cost().cost.matmul == 4 * 8 * 100 * 100);
}

TEST_CASE("naive stores N x M scores, dense does not") {
  const Problem p = heads_problem(1, 2, 2, 500, 500, 8, false);
  Trial dense = make_trial("dense", p), naive = make_trial("naive", p);
  dense.run();
  naive.run();
  CHECK(naive.ctx->memory().peak_of(MemoryClass::workspace) >= 4 * 2 * 500 * 500);
  CHECK(dense.ctx->memory().peak_of(MemoryClass::workspace) < 4 * 2 * 500 * 500);
}

TEST_CASE("dense rows, entropies and pairs describe the same weights") {
  const std::string method = GENERATE("dense", "naive");
  Trial t = make_trial(
      method, heads_problem(2, 4, 2, 37, 50, 16, GENERATE(false, true), GENERATE(DType::f32, DType::bf16)));
  check_rows_and_stats(t);
}

TEST_CASE("dense results do not depend on the number of threads") {
  const Problem p = heads_problem(2, 3, 3, 90, 90, 32, true);
  Trial one = make_trial("dense", p, {}, 1), two = make_trial("dense", p, {}, 2);
  one.run();
  two.run();
  CHECK(one.output("o").data == two.output("o").data);
}

TEST_CASE("dense and naive say what they cannot do") {
  Context ctx(cpu_backend(), 1);
  const Problem p = heads_problem(1, 2, 2, 8, 8, 4, false);
  const auto make = [&](const std::string& method, const Problem& problem, const ParamMap& given = {}) {
    find_method(method).make(ctx, problem, params_of(method, problem, given));
  };
  CHECK_THROWS_AS(make("dense", p, {{"impl", "cudnn"}}), Unsupported);
  CHECK_THROWS_WITH(make("dense", p, {{"impl", "cudnn"}}), ContainsSubstring("CUDA"));
  CHECK_THROWS_AS(make("dense", p, {{"impl", "fa2"}}), Unsupported);
  CHECK_THROWS_WITH(make("dense", p, {{"impl", "fa2"}}), ContainsSubstring("mma.sync"));
  CHECK_NOTHROW(make("dense", p, {{"impl", "engine"}}));
  CHECK_THROWS_AS(make("dense", p, {{"impl", "cuddn"}}), UsageError);
  Problem layer = p;
  layer.head_dim = 0;
  layer.channels = 8;
  CHECK_THROWS_WITH(make("naive", layer), ContainsSubstring("head_dim"));
  Problem signal = p;
  signal.kind = ProblemKind::signal;
  CHECK_THROWS_AS(make("dense", signal), Unsupported);
  Problem f64 = p;
  f64.dtype = DType::f64;
  CHECK_THROWS_AS(make("naive", f64), Unsupported);
  Problem no_length = p;
  no_length.length = 0;
  CHECK_THROWS_WITH(make("dense", no_length), ContainsSubstring("length"));
}
