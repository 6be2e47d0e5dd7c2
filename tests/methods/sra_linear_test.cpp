// sra_linear: reference, closed form, adaptive cells, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("sra_linear equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, pool] = GENERATE(table<int64_t, int64_t, int>({
      {14, 7, 7},  // divides
      {9, 12, 7},  // overlapping cells
      {3, 2, 7},   // fewer tokens than cells: cells repeat
      {5, 5, 3},
      {4, 5, 1},
      {1, 1, 2},
  }));
  Trial t =
      strong_trial("sra_linear", grid_problem(GENERATE(1, 3), h, w, 15, 3, dtype), {{"pool_size", pool}});
  INFO(h << " x " << w << ", pool " << pool);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("sra_linear counts as its card counts") {
  const ClosedForm f = table_form("sra_linear");
  const int64_t n = 196, c = 768, m = 49;
  CHECK(f.published_macs == 2 * n * c * c + 3 * m * c * c + 2 * n * m * c);
  CHECK(f.cost.matmul == 2 * f.published_macs);
  CHECK(f.parameters == 4 * c * c + c + 3 * c + c * c + c + 2 * c);
  CHECK(table_form("sra_linear", {}, 28).cost.special > 0);
  const Trial t = make_trial("sra_linear", grid_problem(1, 3, 3, 8, 2));
  CHECK(t.instance->keys(0) == 49);  // also on grids below the pool
}

TEST_CASE("a pool of the grid's size with an identity convolution keys on GELU(LayerNorm(x))") {
  const int64_t c = 8;
  const Problem p = grid_problem(2, 3, 3, c, 2);
  const RefTensor x = strong_input(p);
  const ParamMap params{{"pool_size", 3}};
  RefMap w = strong_weights("sra_linear", p, params);
  RefTensor identity({c, c, 1, 1});
  for (int64_t i = 0; i < c; ++i) identity[i * c + i] = 1;
  w["sr.weight"] = identity;
  w["sr.bias"] = RefTensor({c});
  const Outputs o = run_layer("sra_linear", p, params, x, w);
  // By hand: LayerNorm and GELU of the tokens, then dense attention of one query.
  RefTensor keys({18, c});
  for (int64_t r = 0; r < 18; ++r) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c; ++i) mean += x[r * c + i] / 8;
    for (int64_t i = 0; i < c; ++i) variance += std::pow(x[r * c + i] - mean, 2) / 8;
    for (int64_t i = 0; i < c; ++i) {
      const double y =
          (x[r * c + i] - mean) / std::sqrt(variance + 1e-5) * w.at("norm.weight")[i] + w.at("norm.bias")[i];
      keys[r * c + i] = y * std::erfc(-y / std::sqrt(2.0)) / 2;
    }
  }
  const RefTensor kv = ref::linear(keys, w.at("kv.weight"), &w.at("kv.bias"));
  const RefTensor q = ref::linear(x, w.at("q.weight"), &w.at("q.bias"));
  const int64_t row = 13;  // of the second image
  RefTensor mixed({1, c});
  for (int64_t h = 0; h < 2; ++h) {
    double sum = 0;
    for (int64_t j = 9; j < 18; ++j) {
      double s = 0;
      for (int64_t d = 0; d < 4; ++d) s += q[row * c + h * 4 + d] * kv[j * 2 * c + h * 4 + d] / 2;
      sum += std::exp(s);
      for (int64_t d = 0; d < 4; ++d) mixed[h * 4 + d] += std::exp(s) * kv[j * 2 * c + c + h * 4 + d];
    }
    for (int64_t d = 0; d < 4; ++d) mixed[h * 4 + d] /= sum;
  }
  const RefTensor y = ref::linear(mixed, w.at("proj.weight"), &w.at("proj.bias"));
  for (int64_t i = 0; i < c; ++i) {
    CHECK(o.reference[row * c + i] == Approx(y[i]).epsilon(1e-12));
    CHECK(o.method[row * c + i] == Approx(y[i]).margin(2e-5));
  }
}

TEST_CASE("sra_linear's rows, pairs and statistics agree") {
  Trial t = strong_trial("sra_linear", grid_problem(2, 4, 5, 12, 3), {{"pool_size", 3}});
  check_analyses(t, [](int64_t) { return false; });
  Intervals set;
  t.instance->pairs()->row(0, 0, 0, set);
  CHECK(set == Intervals{{0, 20}});
}

TEST_CASE("sra_linear refuses what it cannot do") {
  check_refusals("sra_linear");
  CHECK_THROWS_AS(make_trial("sra_linear", grid_problem(1, 8, 8, 8, 2), {{"sr_ratio", 2}}), UsageError);
  CHECK_THROWS_AS(make_trial("sra_linear", grid_problem(1, 8, 8, 8, 2), {{"pool_size", 0}}), UsageError);
}
