// HiP attention: search and attention against the reference, the card's degenerate cases, decode, errors.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

ParamMap small(std::initializer_list<std::pair<const std::string, Value>> more = {}) {
  ParamMap m{{"mask_k", 12},      {"block_size_q", 8},   {"block_stride_q", 2},
             {"block_size_k", 2}, {"sliding_window", 9}, {"sink_tokens", 3}};
  for (const auto& [key, value] : more) m[key] = value;
  return m;
}

Problem heads(int64_t batch, int64_t h, int64_t hkv, int64_t n, int64_t m, int64_t d, bool causal = true,
              DType dtype = DType::f32) {
  return heads_problem(batch, h, hkv, n, m, d, causal, dtype);
}

}  // namespace

TEST_CASE("hip_attention agrees with its reference, and its formula with the ledger given the selection") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const char* representative = GENERATE("first", "center", "last", "random", "oracle");
  SECTION("prefill, sizes that divide nothing") {
    Trial t = make_trial("hip_attention", heads(2, 4, 2, 107, 107, 16, true, dtype),
                         small({{"representative", representative}, {"seed", 7}}));
    check_trial(t, 3);
  }
  SECTION("a chunk behind a cache, odd blocks and strides") {
    Trial t = make_trial("hip_attention", heads(1, 4, 1, 30, 143, 8, true, dtype),
                         small({{"representative", representative},
                                {"block_size_k", 5},
                                {"block_stride_k", 2},
                                {"block_size_q", 7},
                                {"block_stride_q", 3},
                                {"mask_k", 21},
                                {"sliding_window", 4}}));
    check_trial(t, 3);
  }
  SECTION("non-causal, no window, no sinks") {
    Trial t =
        make_trial("hip_attention", heads(1, 2, 2, 33, 90, 8, false, dtype),
                   small({{"representative", representative}, {"sliding_window", 0}, {"sink_tokens", 0}}));
    check_trial(t, 3);
  }
  SECTION("decode") {
    Trial t = make_trial("hip_attention", heads(2, 4, 2, 1, 120, 16, true, dtype),
                         small({{"representative", representative}}));
    check_trial(t, 3);
  }
}

TEST_CASE("hip_attention: a k or a window as long as the keys is dense attention; so are dense queries") {
  const ParamMap given =
      GENERATE(small({{"mask_k", 80}}), small({{"sliding_window", 80}}), small({{"dense_queries", 80}}));
  Trial t = make_trial("hip_attention", heads(1, 4, 2, 71, 80, 8), given),
        dense = make_trial("dense", heads(1, 4, 2, 71, 80, 8));
  check_trial(t, 3);
  TensorMap inputs;
  for (const auto& [key, tensor] : t.instance->inputs()) {
    RefTensor x = to_reference(tensor), y({x.dim(0), x.dim(2), x.dim(1), x.dim(3)});
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t h = 0; h < x.dim(2); ++h)
        for (int64_t d = 0; d < x.dim(3); ++d)
          y[(h * x.dim(1) + n) * x.dim(3) + d] = x[(n * x.dim(2) + h) * x.dim(3) + d];
    inputs[key] = host_tensor(*dense.ctx, {y.dim(0), y.dim(1), y.dim(2), y.dim(3)}, y.data);
  }
  rebind(dense, inputs);
  dense.run();
  const RefTensor got = t.output("out"), want = dense.output("o");
  double error = 0;
  for (int64_t n = 0; n < 71; ++n)
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t d = 0; d < 8; ++d)
        error = std::max(error, std::abs(got[(n * 4 + h) * 8 + d] - want[(h * 71 + n) * 8 + d]));
  CHECK(error < 1e-5);
}

TEST_CASE("hip_attention: an oracle over single tokens finds the best key") {
  Trial t = make_trial("hip_attention", heads(1, 2, 1, 60, 60, 8),
                       {{"mask_k", 1},
                        {"block_size_q", 1},
                        {"block_stride_q", 1},
                        {"block_size_k", 1},
                        {"sliding_window", 0},
                        {"sink_tokens", 0},
                        {"representative", "oracle"}});
  check_trial(t, 3);
  const RefTensor q = to_reference(t.instance->inputs().at("q")),
                  k = to_reference(t.instance->inputs().at("k"));
  const RefTensor selected = t.output("selected");
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 60; ++i) {
      int64_t best = 0;
      double top = -INFINITY;
      for (int64_t j = 0; j <= i; ++j) {
        double s = 0;
        for (int64_t d = 0; d < 8; ++d) s += q[(i * 2 + h) * 8 + d] * k[j * 8 + d];
        if (s > top) top = s, best = j;
      }
      CHECK(selected[h * 60 + i] == static_cast<double>(best));
    }
}

TEST_CASE("hip_attention: equal keys keep the leftmost children, and the output is a mean") {
  Trial t = make_trial("hip_attention", heads(1, 1, 1, 64, 64, 4),
                       small({{"sliding_window", 0}, {"sink_tokens", 0}}));
  rebind(t, {{"k", host_tensor(*t.ctx, {1, 64, 1, 4}, std::vector<double>(256, 0.5))}});
  check_trial(t, 3);
  const RefTensor selected = t.output("selected");
  // 32 blocks in 6 cells: after the first round the left halves of the first cells stay.
  for (int64_t i = 1; i < 6; ++i) CHECK(selected[7 * 6 + i] > selected[7 * 6 + i - 1]);
  CHECK(selected[7 * 6] == 0);
}

TEST_CASE("hip_attention rows, entropies and pairs describe the lists") {
  Trial t = make_trial("hip_attention", heads(2, 4, 2, 50, 61, 8), small());
  check_rows_and_stats(t);
}

TEST_CASE("hip_attention decode searches once for several steps, and a graph cannot hold that") {
  Trial t = make_trial("hip_attention", heads(1, 2, 1, 1, 90, 8), small({{"refresh_interval", 3}}));
  CHECK_FALSE(t.instance->capturable());
  t.run();
  const int64_t searched = t.ctx->cost().total().matmul;
  const RefTensor first = t.output("out");
  std::vector<int64_t> later;
  for (int step = 1; step < 4; ++step) {
    t.ctx->cost().reset();
    t.instance->run(*t.ctx);
    later.push_back(t.ctx->cost().total().matmul);
    // The lists of the last search serve every step until the next.
    CHECK(t.output("out").data == first.data);
  }
  CHECK(later[0] < searched);
  CHECK(later[1] == later[0]);
  CHECK(later[2] == searched);
}

TEST_CASE("hip_attention refuses contradictions, naming them") {
  const Problem p = heads(1, 2, 1, 32, 32, 8);
  CHECK_THROWS_WITH(make_trial("hip_attention", p, small({{"block_stride_q", 9}})),
                    ContainsSubstring("block_stride_q"));
  CHECK_THROWS_WITH(make_trial("hip_attention", p, small({{"mask_k", 1}})), ContainsSubstring("mask_k"));
  CHECK_THROWS_AS(make_trial("hip_attention", p, small({{"scale_up", 4}})), UsageError);
  CHECK_THROWS_AS(make_trial("hip_attention", heads(1, 2, 1, 33, 32, 8), small()), Unsupported);
}
