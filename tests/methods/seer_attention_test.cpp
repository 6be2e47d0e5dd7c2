// SeerAttention: the reference by the card's degenerate cases, the method against it, gate, ground truth,
// errors.
#include <cmath>

#include "inputs/apply.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem prefill(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t d,
                DType dtype = DType::f32) {
  return heads_problem(batch, heads, kv_heads, n, n, d, true, dtype);
}

Value::List words(std::initializer_list<const char*> list) {
  Value::List l;
  for (const char* w : list) l.push_back(w);
  return l;
}

/// Dense causal attention on rotated queries and keys: what everything selected must give.
RefTensor dense_output(const Trial& t) {
  Problem p = t.problem;
  return find_reference("seer_attention")(
             p,
             params_of("seer_attention", p,
                       {{"threshold", -1.0}, {"block_size", p.length}, {"gate_hidden", 2}}),
             to_reference(t.instance->inputs()),
             {{"Wk", RefTensor({p.kv_heads_or_heads(), 3 * p.head_dim, 2})},
              {"Wq", RefTensor({p.heads, p.head_dim, 2})}})
      .at("out");
}

}  // namespace

TEST_CASE("seer_attention agrees with its reference, and its formula with the ledger given the selection") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("threshold, single form, sizes that divide nothing") {
    Trial t = make_trial(
        "seer_attention", prefill(2, 4, 2, 133, 16, dtype),
        {{"block_size", 16}, {"gate_hidden", 16}, {"threshold", 0.12}, {"last_block_dense", false}});
    check_trial(t, 6);
  }
  SECTION("ratio, double form, other pools") {
    Trial t = make_trial("seer_attention", prefill(1, 6, 2, 190, 24, dtype),
                         {{"block_size", 20},
                          {"gate_hidden", 10},
                          {"q_pool", words({"avg", "max"})},
                          {"k_pool", words({"min", "avg"})},
                          {"sparsity_method", "nz_ratio"},
                          {"nz_ratio", 0.3}});
    check_trial(t, 6);
  }
  SECTION("top-k, forced double form, no rotation of the gate") {
    Trial t = make_trial("seer_attention", prefill(1, 2, 2, 97, 8, dtype),
                         {{"block_size", 8},
                          {"gate_hidden", 8},
                          {"force_double", true},
                          {"gate_rope", false},
                          {"sparsity_method", "topk"},
                          {"topk_blocks", 3},
                          {"last_block_dense", false},
                          {"force_diagonal", false}});
    check_trial(t, 6);
  }
  SECTION("non-causal") {
    Problem p = prefill(1, 4, 1, 75, 8, dtype);
    p.causal = false;
    Trial t = make_trial("seer_attention", p,
                         {{"causal", false},
                          {"block_size", 16},
                          {"gate_hidden", 8},
                          {"sparsity_method", "topk"},
                          {"topk_blocks", 2},
                          {"last_block_dense", false}});
    check_trial(t, 6);
  }
  SECTION("one query decodes densely") {
    Trial t =
        make_trial("seer_attention", heads_problem(2, 4, 2, 1, 57, 16, true, dtype), {{"block_size", 16}});
    check_trial(t, 6);
    CHECK(t.instance->outputs().size() == 1);
    CHECK_FALSE(t.instance->cost().data_dependent);
  }
}

TEST_CASE("seer_attention: rules that keep everything are dense attention") {
  const ParamMap given =
      GENERATE(ParamMap{{"sparsity_method", "nz_ratio"}, {"nz_ratio", 1.0}}, ParamMap{{"threshold", -1.0}},
               ParamMap{{"block_size", 500}, {"threshold", 0.5}});
  ParamMap all = given;
  all.emplace("block_size", 16);
  all["gate_hidden"] = 16;
  Trial t = make_trial("seer_attention", prefill(1, 4, 2, 121, 16), all);
  check_trial(t, 3);
  CHECK(compare(t.output("out"), dense_output(t)).relative_l2 < tolerance(DType::f32, 0));
}

TEST_CASE("seer_attention: a threshold of one keeps the diagonal alone; the last rows can be dense") {
  const bool last = GENERATE(false, true);
  Trial t =
      make_trial("seer_attention", prefill(1, 2, 1, 100, 8),
                 {{"threshold", 1.0}, {"block_size", 16}, {"gate_hidden", 8}, {"last_block_dense", last}});
  check_trial(t, 3);
  const RefTensor selected = t.output("selected");
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 7; ++i)
      for (int64_t c = 0; c < 7; ++c)
        CHECK(selected[(h * 7 + i) * 7 + c] == (c == i || (last && i >= 5 && c <= i) ? 1.0 : 0.0));
}

TEST_CASE("seer_attention: a zero gate is uniform, and its ties go left") {
  Trial t = make_trial("seer_attention", prefill(1, 2, 1, 160, 16),
                       {{"block_size", 16},
                        {"gate_hidden", 16},
                        {"sparsity_method", "nz_ratio"},
                        {"nz_ratio", 0.4},
                        {"last_block_dense", false},
                        {"force_diagonal", false}});
  rebind(t, {}, {{"Wk", host_tensor(*t.ctx, {2, 48, 16}, std::vector<double>(2 * 48 * 16, 0.0))}});
  check_trial(t, 3);
  const RefTensor gate = t.output("gate"), selected = t.output("selected");
  const int64_t best = 2;  // trunc((1 - sqrt(0.6)) 10)
  for (int64_t i = 0; i < 10; ++i)
    for (int64_t c = 0; c < 10; ++c) {
      CHECK(std::abs(gate[i * 10 + c] - (c <= i ? 1.0 / static_cast<double>(i + 1) : 0.0)) < 1e-6);
      CHECK(selected[i * 10 + c] == (c < best && c <= i ? 1.0 : 0.0));
    }
}

TEST_CASE(
    "seer_attention: blocks of one token with an identity gate rank by the dense scores; the truth is the "
    "gate") {
  const int64_t n = 24, d = 8;
  Trial t = make_trial("seer_attention", prefill(1, 2, 2, n, d),
                       {{"block_size", 1},
                        {"gate_hidden", d},
                        {"k_pool", words({"avg"})},
                        {"threshold", 0.0},
                        {"last_block_dense", false}});
  std::vector<double> identity(static_cast<size_t>(2 * d * d), 0.0);
  for (int64_t i = 0; i < 2 * d; ++i) identity[static_cast<size_t>((i / d * d + i % d) * d + i % d)] = 1.0;
  rebind(t, {}, {{"Wk", host_tensor(*t.ctx, {2, d, d}, identity)}});
  check_trial(t, 3);
  // Every row of probabilities sums to one, so the truth needs no rescaling.
  const RefTensor gate = t.output("gate"),
                  truth = to_reference(t.instance->extra_output(*t.ctx, "ground_truth"));
  CHECK(compare(truth, gate).relative_l2 < tolerance(DType::f32, 0) * 4);
  std::vector<float> rows;
  REQUIRE(t.instance->rows(*t.ctx, 0, 1, 0, n, rows));
  for (int64_t i = 0; i < n * n; ++i)
    CHECK(std::abs(static_cast<double>(rows[static_cast<size_t>(i)]) - gate[n * n + i]) < 1e-5);
  CHECK_FALSE(t.instance->extra_output(*t.ctx, "nothing"));
}

TEST_CASE("seer_attention ground truth by hand: block maxima over their sum") {
  // One channel pair of zeros: all scores equal, so row r spreads 1 / (r + 1) over what it sees.
  Trial t = make_trial("seer_attention", prefill(1, 1, 1, 6, 2),
                       {{"block_size", 2}, {"gate_hidden", 2}, {"threshold", 0.0}});
  const Tensor zero = host_tensor(*t.ctx, {1, 6, 1, 2}, std::vector<double>(12, 0.0));
  rebind(t, {{"q", zero}, {"k", zero}});
  t.run();
  const RefTensor truth = to_reference(t.instance->extra_output(*t.ctx, "ground_truth"));
  // The block's first row is the largest: 1, then 1/3 for both blocks, then 1/5 for three; own blocks
  // included.
  const std::vector<double> want{1, 0, 0, 0.5, 0.5, 0, 1.0 / 3, 1.0 / 3, 1.0 / 3};
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(truth.data[i] - want[i]) < 1e-6);
}

TEST_CASE("apply makes outputs on demand that a run does not") {
  ApplyRequest request;
  request.method = "seer_attention";
  request.problem = prefill(1, 2, 1, 50, 8);
  request.params = {{"block_size", 16}, {"gate_hidden", 8}};
  CHECK_FALSE(apply(cpu_backend(), request, 1).contains("ground_truth"));
  request.extra = {"out", "ground_truth", "no such output"};
  const TensorMap outputs = apply(cpu_backend(), request, 1);
  CHECK_FALSE(outputs.contains("no such output"));
  REQUIRE(outputs.contains("ground_truth"));
  const RefTensor truth = to_reference(outputs.at("ground_truth"));
  REQUIRE(truth.shape == std::vector<int64_t>{1, 2, 4, 4});
  for (int64_t row = 0; row < 8; ++row) {
    double sum = 0;
    for (int64_t c = 0; c < 4; ++c) {
      sum += truth[row * 4 + c];
      if (c > row % 4) CHECK(truth[row * 4 + c] == 0.0);
    }
    CHECK(std::abs(sum - 1.0) < 1e-6);
  }
}

TEST_CASE("seer_attention rows, entropies and pairs describe the selected blocks") {
  Trial t = make_trial("seer_attention", prefill(2, 4, 2, 50, 8),
                       {{"block_size", 8},
                        {"gate_hidden", 8},
                        {"sparsity_method", "topk"},
                        {"topk_blocks", 2},
                        {"last_block_dense", false}});
  check_rows_and_stats(t);
}

TEST_CASE("seer_attention parameters count as the released gate files do") {
  Trial t = make_trial("seer_attention", prefill(1, 32, 8, 64, 128), {});
  CHECK(t.instance->cost().parameters * 32 * 2 == 100663296);  // 101 MB for Llama-3.1-8B's 32 layers
}

TEST_CASE("seer_attention refuses contradictions, naming them") {
  const Problem p = prefill(1, 2, 1, 64, 8);
  CHECK_THROWS_WITH(make_trial("seer_attention", p, {{"gate_hidden", 7}}), ContainsSubstring("7"));
  CHECK_THROWS_WITH(make_trial("seer_attention", p, {{"sparsity_method", "topk"}}),
                    ContainsSubstring("topk_blocks"));
  CHECK_THROWS_WITH(make_trial("seer_attention", p, {{"k_pool", words({"avg", "sum"})}}),
                    ContainsSubstring("sum"));
  CHECK_THROWS_WITH(make_trial("seer_attention", p, {{"k_pool", words({"avg", "avg"})}}),
                    ContainsSubstring("repetition"));
  CHECK_THROWS_WITH(make_trial("seer_attention", p, {{"nz_ratio", 0.0}, {"sparsity_method", "nz_ratio"}}),
                    ContainsSubstring("above 0"));
  CHECK_THROWS_WITH(make_trial("seer_attention", p, {{"causal", false}}), ContainsSubstring("contradicts"));
  CHECK_THROWS_AS(make_trial("seer_attention", heads_problem(1, 2, 1, 8, 16, 8, true)), Unsupported);
}
