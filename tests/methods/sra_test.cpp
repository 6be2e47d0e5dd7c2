// sra: reference, closed form, degenerate cases, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("sra equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, ratio] = GENERATE(table<int64_t, int64_t, int>({
      {8, 6, 2},
      {9, 7, 2},  // a row and a column are dropped
      {7, 11, 4},
      {5, 5, 5},  // one key
      {5, 3, 1},  // no reduction
      {1, 1, 1},
  }));
  Trial t = strong_trial("sra", grid_problem(GENERATE(1, 3), h, w, 15, 3, dtype), {{"sr_ratio", ratio}});
  CHECK(t.instance->weights().contains("sr.weight") == (ratio > 1));
  CHECK(t.instance->weights().contains("norm.bias") == (ratio > 1));
  INFO(h << " x " << w << ", ratio " << ratio);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("sra counts as its card counts") {
  const ClosedForm f = table_form("sra");
  CHECK(f.published_macs == 419'371'008 + 188'160);  // the norm as 5 M C; published: 419.56 M
  CHECK(f.cost.matmul == 2 * int64_t{419'371'008});
  CHECK(f.parameters == 4'723'968);  // published: 4.72 M
  const ClosedForm plain = table_form("sra", {{"sr_ratio", 1}});
  CHECK(plain.published_macs == table_form("msa").published_macs);
  CHECK(plain.parameters == table_form("msa").parameters);
}

TEST_CASE("degenerate 5: ratio 1 is msa") {
  const Problem p = grid_problem(2, 5, 3, 12, 3);
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("sra", p, {{"sr_ratio", 1}});
  check_equal(run_layer("sra", p, {{"sr_ratio", 1}}, x, w),
              run_layer("msa", p, {}, x,
                        {{"qkv.weight", stacked(w.at("q.weight"), w.at("kv.weight"))},
                         {"qkv.bias", stacked(w.at("q.bias"), w.at("kv.bias"))},
                         {"proj.weight", w.at("proj.weight")},
                         {"proj.bias", w.at("proj.bias")}}));
}

TEST_CASE("degenerate 5: an averaging convolution is hilo's Lo-Fi, up to the norm") {
  // The norm cannot be switched off, so its effect is undone: with x of pooled mean 0 and variance 1 - eps
  // over the channels, LayerNorm with gain 1 and offset 0 is the identity.
  const int64_t c = 12;
  const Problem p = grid_problem(2, 4, 6, c, 3);
  RefTensor x = strong_input(p);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t y = 0; y < 4; y += 2)
      for (int64_t z = 0; z < 6; z += 2) {
        const auto at = [&](int64_t k, int64_t i) -> double& {
          return x[((b * 4 + y + k / 2) * 6 + z + k % 2) * c + i];
        };
        double mean = 0, variance = 0;
        std::vector<double> pooled(c);
        for (int64_t i = 0; i < c; ++i) {
          for (int64_t k = 0; k < 4; ++k) pooled[static_cast<size_t>(i)] += at(k, i) / 4;
          mean += pooled[static_cast<size_t>(i)] / static_cast<double>(c);
        }
        for (double v : pooled) variance += (v - mean) * (v - mean) / static_cast<double>(c);
        const double factor = std::sqrt((1 - 1e-5) / variance);
        for (int64_t k = 0; k < 4; ++k)
          for (int64_t i = 0; i < c; ++i) at(k, i) = (at(k, i) - mean) * factor;
      }
  const ParamMap hilo{{"window_size", 2}, {"alpha", 1.0}}, sra{{"sr_ratio", 2}};
  const RefMap h = strong_weights("hilo", p, hilo);
  RefTensor average({c, c, 2, 2}), ones({c});
  for (int64_t i = 0; i < c; ++i) {
    for (int64_t k = 0; k < 4; ++k) average[(i * c + i) * 4 + k] = 0.25;
    ones[i] = 1;
  }
  check_equal(run_layer("hilo", p, hilo, x, h), run_layer("sra", p, sra, x,
                                                          {{"q.weight", h.at("l_q.weight")},
                                                           {"q.bias", h.at("l_q.bias")},
                                                           {"kv.weight", h.at("l_kv.weight")},
                                                           {"kv.bias", h.at("l_kv.bias")},
                                                           {"proj.weight", h.at("l_proj.weight")},
                                                           {"proj.bias", h.at("l_proj.bias")},
                                                           {"sr.weight", average},
                                                           {"sr.bias", RefTensor({c})},
                                                           {"norm.weight", ones},
                                                           {"norm.bias", RefTensor({c})}}));
}

TEST_CASE("sra drops left-over rows and columns from the keys") {
  const Problem p = grid_problem(1, 5, 7, 12, 3);
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("sra", p, {{"sr_ratio", 2}});
  const Outputs before = run_layer("sra", p, {{"sr_ratio", 2}}, x, w);
  RefTensor changed = x;
  for (int64_t c = 0; c < 12; ++c) changed[(2 * 7 + 6) * 12 + c] += 1.0;  // (2, 6): the column beyond 3 x 2
  const Outputs after = run_layer("sra", p, {{"sr_ratio", 2}}, changed, w);
  for (int64_t i = 0; i < 35; ++i)
    for (int64_t c = 0; c < 12; ++c) {
      const int64_t at = i * 12 + c;
      CHECK((before.reference[at] == after.reference[at]) == (i != 2 * 7 + 6));
      CHECK((before.method[at] == after.method[at]) == (i != 2 * 7 + 6));
    }
}

TEST_CASE("sra's rows, pairs and statistics agree") {
  Trial t = strong_trial("sra", grid_problem(2, 5, 7, 12, 3));
  check_analyses(t, [](int64_t) { return false; });
  CHECK(t.instance->keys(0) == 6);
}

TEST_CASE("sra's dependencies: the convolved tokens and the token itself") {
  Intervals set;
  const Trial odd = make_trial("sra", grid_problem(1, 3, 5, 4, 1));
  const PairSet p = *odd.instance->pairs();  // kept: rows 0..1, columns 0..3
  p.row(0, 0, 0, set);
  CHECK(set == Intervals{{0, 4}, {5, 9}});
  p.row(0, 0, 4, set);  // between the two rows: joins both
  CHECK(set == Intervals{{0, 9}});
  p.row(0, 0, 9, set);
  CHECK(set == Intervals{{0, 4}, {5, 10}});
  p.row(0, 0, 10, set);
  CHECK(set == Intervals{{0, 4}, {5, 9}, {10, 11}});
  p.row(0, 0, 14, set);
  CHECK(set == Intervals{{0, 4}, {5, 9}, {14, 15}});
  const Trial even = make_trial("sra", grid_problem(1, 4, 6, 4, 1));
  even.instance->pairs()->row(0, 0, 7, set);
  CHECK(set == Intervals{{0, 24}});
}

TEST_CASE("sra refuses what it cannot do") {
  check_refusals("sra");
  CHECK_THROWS_AS(make_trial("sra", grid_problem(1, 3, 8, 8, 2), {{"sr_ratio", 4}}), Unsupported);
  CHECK_THROWS_AS(make_trial("sra", grid_problem(1, 8, 8, 8, 2), {{"pool_size", 7}}), UsageError);
}
