// Flux Attention: router, branches and decode against the reference, the card's degenerate cases, errors.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem prefill(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t d,
                DType dtype = DType::f32) {
  return heads_problem(batch, heads, kv_heads, n, n, d, true, dtype);
}

ParamMap small(std::initializer_list<std::pair<const std::string, Value>> more = {}) {
  ParamMap m{{"block_size", 16},  {"sink_size", 10},        {"local_window", 40},   {"pool_size", 9},
             {"xattn_stride", 4}, {"xattn_threshold", 0.6}, {"triangle_n_last", 21}};
  for (const auto& [key, value] : more) m[key] = value;
  return m;
}

/// A last layer that reads its input, so that logits depend on the prompt.
void make_attentive(Trial& t) {
  const int64_t d = t.problem.head_dim;
  std::vector<double> last(static_cast<size_t>(2 * d), 0.0);
  for (int64_t i = 0; i < d; ++i) last[static_cast<size_t>(i)] = i % 2 ? 60.0 : -45.0;
  rebind(t, {},
         {{"head.2.weight", host_tensor(*t.ctx, {2, d}, last)},
          {"head.2.bias", host_tensor(*t.ctx, {2}, {0.0, 0.0})}});
}

/// Decisions that differ between four batch elements: a bias halfway between the second and the third
/// difference.
void make_undecided(Trial& t) {
  make_attentive(t);
  t.run();
  const RefTensor logits = t.output("logits");
  std::vector<double> lead;
  for (int64_t b = 0; b < 4; ++b) lead.push_back(logits[2 * b] - logits[2 * b + 1]);
  std::sort(lead.begin(), lead.end());
  rebind(t, {}, {{"head.2.bias", host_tensor(*t.ctx, {2}, {-0.5 * (lead[1] + lead[2]), 0.0})}});
}

void check_outputs_agree(Trial& t, double roundings) {
  t.run();
  const RefMap want = t.reference();
  const TensorMap outputs = t.instance->outputs();
  REQUIRE(want.size() == outputs.size());
  for (const auto& [key, tensor] : outputs) {
    const Comparison c = compare(to_reference(tensor), want.at(key));
    INFO(t.problem.str() << ", output " << key << ": " << c.worst);
    // Logits are sums that nearly cancel where decisions are to differ; decisions themselves are integers.
    CHECK(c.relative_l2 <= tolerance(tensor.dtype(), roundings) * (key == "logits" ? 64 : 1));
  }
}

}  // namespace

TEST_CASE("flux_attention: every branch, decided by the router for each batch element") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const char* sparse = GENERATE("streaming", "xattn", "triangle", "local", "none");
  Trial t = make_trial("flux_attention", prefill(4, 4, 2, 131, 8, dtype), small({{"sparse_type", sparse}}));
  SECTION("as initialised: full") {
    check_outputs_agree(t, 4);
    CHECK(t.output("r").data == std::vector<double>(4, 1.0));
  }
  SECTION("decisions that differ") {
    make_undecided(t);
    check_outputs_agree(t, 4);
    const RefTensor r = t.output("r");
    CHECK(std::count(r.data.begin(), r.data.end(), 1.0) > 0);
    CHECK(std::count(r.data.begin(), r.data.end(), 0.0) > 0);
  }
  SECTION("a tie is sparse") {
    rebind(t, {}, {{"head.2.bias", host_tensor(*t.ctx, {2}, {0.0, 0.0})}});
    check_outputs_agree(t, 4);
    CHECK(t.output("r").data == std::vector<double>(4, 0.0));
  }
}

TEST_CASE("flux_attention: xattn as the full branch, beside what it goes with") {
  const char* sparse = GENERATE("streaming", "xattn", "none");
  Trial t = make_trial("flux_attention", prefill(4, 2, 1, 150, 8),
                       small({{"sparse_type", sparse}, {"full_type", "xattn"}}));
  make_undecided(t);
  check_outputs_agree(t, 3);
}

TEST_CASE("flux_attention: fixed decisions cost what the formula says, stacks add up") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  const char* sparse = GENERATE("streaming", "triangle", "local", "none");
  const char* force = GENERATE("full", "sparse", "list");
  ParamMap given = small({{"sparse_type", sparse}, {"force", force}, {"pooling", "mean"}});
  if (std::string(force) == "list") given["sparse_ratio"] = 0.5, given["num_layers"] = 5;
  Trial t = make_trial("flux_attention", prefill(2, 4, 2, 117, 8, dtype), given);
  check_trial(t, 4);
  CHECK_FALSE(t.instance->cost().data_dependent);
}

TEST_CASE("flux_attention: pooling reads what it says and nothing else") {
  const char* pooling = GENERATE("edges", "mean", "first_token");
  const int64_t edge = GENERATE(3, 20, 200);  // apart, overlapping, beyond the prompt
  Trial t = make_trial("flux_attention", prefill(2, 2, 2, 33, 8),
                       small({{"pooling", pooling}, {"pool_size", edge}}));
  make_attentive(t);
  check_outputs_agree(t, 3);
  const RefTensor before = t.output("logits");
  // A token in the middle matters to `mean`, and to edges that reach it.
  RefTensor q = to_reference(t.instance->inputs().at("q_router"));
  for (int64_t e = 0; e < 16; ++e) q[16 * 16 + e] += 5;
  rebind(t, {{"q_router", host_tensor(*t.ctx, {2, 33, 2, 8}, q.data)}});
  t.run();
  const bool reads = std::string(pooling) == "mean" || (std::string(pooling) == "edges" && edge > 16);
  CHECK((compare(t.output("logits"), before).relative_l2 > 1e-7) == reads);
}

TEST_CASE("flux_attention decode: sink blocks and the last window blocks, or everything") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  const char* force = GENERATE("full", "sparse");
  const int64_t m = GENERATE(2, 50, 161);
  Trial t =
      make_trial("flux_attention", heads_problem(2, 4, 2, 1, m, 8, true, dtype), small({{"force", force}}));
  check_trial(t, 4);
}

TEST_CASE("flux_attention: xattn thresholds at their ends") {
  const double threshold = GENERATE(0.0, 1.0);
  Trial t =
      make_trial("flux_attention", prefill(1, 2, 1, 130, 8),
                 small({{"sparse_type", "xattn"}, {"force", "sparse"}, {"xattn_threshold", threshold}}));
  check_outputs_agree(t, 3);
  const RefTensor selected = t.output("selected");
  for (int64_t i = 0; i < 9; ++i)
    for (int64_t c = 0; c < 9; ++c)
      CHECK(selected[i * 9 + c] == (c > i ? 0.0 : threshold == 1.0 || c == 0 || c == i ? 1.0 : 0.0));
}

TEST_CASE("flux_attention: later estimation chunks count block 0 and the diagonal first") {
  // Above 16384 tokens the chunk is smaller than the sequence; blocks of 256 and a stride of 256 keep it
  // quick.
  Trial t = make_trial("flux_attention", prefill(1, 1, 1, 16900, 4),
                       {{"sparse_type", "xattn"},
                        {"force", "sparse"},
                        {"block_size", 256},
                        {"xattn_stride", 256},
                        {"xattn_threshold", 0.5}});
  t.run();
  const RefTensor selected = t.output("selected");
  const int64_t nb = 67, first = 32;  // 8192 tokens
  const RefMap want = t.reference();
  CHECK(compare(selected, want.at("selected")).max_absolute == 0);
  CHECK(compare(t.output("out"), want.at("out")).relative_l2 < tolerance(DType::f32, 0));
  for (int64_t i = first; i < nb; ++i) CHECK(selected[i * nb] == 1.0);
}

TEST_CASE("flux_attention: a stream as wide as the prompt is dense attention") {
  Trial t = make_trial("flux_attention", prefill(1, 4, 2, 100, 8),
                       small({{"force", "sparse"}, {"local_window", 100}}));
  Trial dense = make_trial("flux_attention", prefill(1, 4, 2, 100, 8), small({{"force", "full"}}));
  check_trial(t, 3);
  dense.run();
  CHECK(compare(t.output("out"), dense.output("out")).relative_l2 < tolerance(DType::f32, 0));
}

TEST_CASE("flux_attention rows, entropies and pairs describe the layer") {
  const char* sparse = GENERATE("streaming", "xattn");
  Trial t = make_trial("flux_attention", prefill(2, 2, 1, 60, 8),
                       small({{"sparse_type", sparse}, {"force", "sparse"}}));
  check_rows_and_stats(t);
}

TEST_CASE("flux_attention router has the published number of parameters") {
  Trial t = make_trial("flux_attention", prefill(1, 2, 1, 8, 128), {});
  CHECK(t.instance->cost().parameters == 592002);
}

TEST_CASE("flux_attention refuses contradictions, naming them") {
  const Problem p = prefill(1, 2, 1, 64, 8);
  CHECK_THROWS_WITH(
      make_trial("flux_attention", p, {{"sparse_type", "xattn"}, {"xattn_stride", 24}, {"block_size", 64}}),
      ContainsSubstring("24 does not divide"));
  CHECK_THROWS_WITH(make_trial("flux_attention", p, {{"force", "list"}}), ContainsSubstring("sparse_ratio"));
  CHECK_THROWS_WITH(make_trial("flux_attention", p, {{"sparse_type", "triangle"}, {"triangle_n_last", 64}}),
                    ContainsSubstring("triangle_n_last"));
  CHECK_THROWS_AS(make_trial("flux_attention", p, {{"full_type", "xattn"}, {"sparse_type", "local"}}),
                  Unsupported);
  CHECK_THROWS_AS(make_trial("flux_attention", heads_problem(1, 2, 1, 1, 64, 8, true)), Unsupported);
  CHECK_THROWS_AS(make_trial("flux_attention", heads_problem(1, 2, 1, 8, 64, 8, true)), Unsupported);
}
