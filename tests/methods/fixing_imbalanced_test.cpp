// Selected visual tokens and the amplified last row against the reference, and the card's degenerate cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

ParamMap small(ParamMap more = {}) {
  more.emplace("num_vision_tokens", 20);
  more.emplace("num_vision_heads", 3);
  more.emplace("image_offset", 4);
  return more;
}

Problem call(int64_t batch, int64_t heads, int64_t kv, int64_t n, int64_t m, DType dtype = DType::f32) {
  return heads_problem(batch, heads, kv, n, m, 8, true, dtype);
}

Trial trial(const Problem& p, const ParamMap& given = {}) {
  return make_trial("fixing_imbalanced", p, small(given));
}

}  // namespace

TEST_CASE(
    "fixing_imbalanced: dtypes, groups, decode and prefill against the reference, formula equal to the "
    "ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const int64_t kv = GENERATE(4, 2);
  for (const auto& [n, m] : std::vector<std::pair<int64_t, int64_t>>{{31, 31}, {1, 29}, {7, 40}}) {
    Trial t = trial(call(2, 4, kv, n, m, dtype));
    check_trial(t, 4);
  }
}

TEST_CASE("fixing_imbalanced: every mode, axis and share") {
  const std::string mode = GENERATE("paint", "pai", "off"), head_mode = GENERATE("uniform", "visual_share"),
                    axis = GENERATE("query_cols", "key_rows");
  for (double spatial : {0.0, 0.3}) {
    Trial t = trial(call(2, 4, 2, 5, 33), {{"mode", mode},
                                           {"head_mode", head_mode},
                                           {"spatial_axis", axis},
                                           {"spatial_ratio", spatial},
                                           {"iqr_factor", 0.5}});
    check_trial(t, 4);
    const TensorMap out = t.instance->outputs();
    CHECK(out.contains("Sp") == (spatial > 0 && mode != "pai"));
    CHECK(out.contains("b") == (spatial > 0));
    CHECK(out.contains("Sm") == (mode != "pai"));
    if (mode == "pai") CHECK(out.at("Lc").dim(0) == 20);
  }
}

TEST_CASE("fixing_imbalanced: rows and statistics are those of the changed row") {
  Trial t = trial(call(2, 4, 2, 9, 31));
  check_rows_and_stats(t);
  std::vector<float> row;
  t.instance->rows(*t.ctx, 1, 2, 8, 9, row);
  const RefTensor last = t.output("last_row");
  for (int64_t j = 0; j < 31; ++j)
    CHECK(static_cast<double>(row[static_cast<size_t>(j)]) == last[(1 * 4 + 2) * 31 + j]);
}

TEST_CASE("fixing_imbalanced: without effect it is dense bit for bit, and other rows always are") {
  const Problem p = call(2, 4, 2, 33, 37);
  Trial off = trial(p, {{"mode", "off"}});
  off.run();
  for (const ParamMap& given :
       std::vector<ParamMap>{{{"alpha", 0.0}, {"beta", 0.0}}, {{"local_ratio", 0.0}, {"iqr_factor", 1e6}}}) {
    Trial none = trial(p, given);
    check_trial(none, 4);
    CHECK(none.output("output").data == off.output("output").data);
    CHECK(none.output("last_row").data == off.output("last_row").data);
  }
  Trial changed = trial(p);
  changed.run();
  const RefTensor a = changed.output("output"), b = off.output("output");
  bool last_differs = false;
  for (int64_t bh = 0; bh < 8; ++bh)
    for (int64_t i = 0; i < 33; ++i)
      for (int64_t c = 0; c < 8; ++c) {
        const int64_t at = (bh * 33 + i) * 8 + c;
        if (i < 32) CHECK(a[at] == b[at]);
        last_differs = last_differs || (i == 32 && a[at] != b[at]);
      }
  CHECK(last_differs);
}

TEST_CASE("fixing_imbalanced: pai is paint with all tokens local, and equal factors on all tokens") {
  const Problem p = call(1, 4, 4, 1, 30);
  Trial pai = trial(p, {{"mode", "pai"}}), local = trial(p, {{"local_ratio", 1.0}, {"iqr_factor", 1e6}}),
        both = trial(p, {{"local_ratio", 1.0}, {"iqr_factor", 0.0}, {"beta", 0.7}});
  pai.run();
  local.run();
  both.run();
  CHECK(pai.output("output").data == local.output("output").data);
  CHECK(both.instance->outputs().contains("Sm"));
  CHECK(both.output("output").data == pai.output("output").data);
}

TEST_CASE("fixing_imbalanced: amplified logits by hand, equal values, quartiles of equal scores") {
  // One head of one channel: q = 1, so the keys are the logits. Image tokens at keys 0..3 with logits 2, -1,
  // 0.5, 0.
  Problem p = heads_problem(1, 1, 1, 1, 4, 1, true);
  Trial t = make_trial("fixing_imbalanced", p,
                       {{"num_vision_tokens", 4},
                        {"num_vision_heads", 1},
                        {"image_offset", 0},
                        {"local_ratio", 0.5},
                        {"iqr_factor", 1.5}});
  std::vector<double> a1(25, 0.0), a2(25, 0.1);
  a1[1] = 0.5, a1[2] = 0.4, a1[3] = 0.05, a1[4] = 0.05;  // the CLS row: patches 0 and 1 are local
  rebind(t, {{"q", host_tensor(*t.ctx, {1, 1, 1, 1}, {1})},
             {"k", host_tensor(*t.ctx, {1, 1, 4, 1}, {2, -1, 0.5, 0})},
             {"v", host_tensor(*t.ctx, {1, 1, 4, 1}, {1, 2, 3, 4})},
             {"A1", host_tensor(*t.ctx, {1, 5, 5}, a1)},
             {"A2", host_tensor(*t.ctx, {1, 5, 5}, a2)}});
  check_trial(t, 4);
  CHECK(t.output("Lc").data == std::vector<double>{0, 1});
  CHECK(t.output("n_sum")[0] == 0);  // equal scores: the test is strict
  CHECK_FALSE(t.instance->outputs().contains("Sm"));
  const double z[] = {3.4, -0.3, 0.5, 0};
  double sum = 0, o = 0;
  for (double x : z) sum += std::exp(x);
  for (int i = 0; i < 4; ++i) o += std::exp(z[i]) / sum * (i + 1);
  CHECK(t.output("output")[0] == Approx(o).epsilon(1e-6));
  CHECK(t.reference().at("output")[0] == Approx(o).epsilon(1e-12));
  rebind(t, {{"v", host_tensor(*t.ctx, {1, 1, 4, 1}, {7, 7, 7, 7})}});
  t.run();
  CHECK(t.output("output")[0] == Approx(7).epsilon(1e-6));
}

TEST_CASE("fixing_imbalanced says what it cannot do") {
  const auto make = [](const Problem& p, const ParamMap& given) { return trial(p, given); };
  CHECK_NOTHROW(make(call(1, 2, 2, 3, 24), {}));
  CHECK_THROWS_WITH(make(call(1, 2, 2, 3, 23), {}), ContainsSubstring("4 to 23 lie outside the 23 keys"));
  Problem open = call(1, 2, 2, 3, 24);
  open.causal = false;
  CHECK_THROWS_AS(make(open, {}), Unsupported);
  CHECK_THROWS_WITH(make(call(1, 2, 2, 25, 24), {}), ContainsSubstring("fewer than 25 queries"));
  CHECK_THROWS_WITH(make(call(1, 2, 2, 3, 24), {{"layer_first", 9}, {"layer_last", 3}}),
                    ContainsSubstring("layer_first"));
  CHECK_THROWS_AS(make(call(1, 2, 2, 3, 24), {{"alpha", 1.5}}), UsageError);
}
