// Entropy against rows whose entropy is known, through both of its sources, in bounded memory.
#include <cmath>
#include <limits>

#include "analysis/summary.hpp"
#include "inputs/inputs.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

// Rows hold f32 weights: an entropy of a few nats moves by some epsilons of it.
constexpr double kF32 = 16 * epsilon_of(DType::f32);

Problem sequence(int64_t batch, int64_t heads, int64_t length) {
  Problem p;
  p.batch = batch, p.heads = heads, p.length = length;
  return p;
}

}  // namespace

TEST_CASE("uniform rows have the log of their keys, one-hot rows nothing") {
  FakeInstance f;
  f.key_count = 50;
  f.row = [](int64_t, int64_t h, int64_t i, float* row) {
    const int64_t seen = h == 0 ? i + 1 : 1;  // head 0: uniform over the past; head 1: one key
    for (int64_t j = 0; j < seen; ++j) row[j] = 1.0f / static_cast<float>(seen);
  };
  const AnalysisResult r = analyse("entropy", f, sequence(2, 2, 50));
  double mean = 0;
  for (int i = 1; i <= 50; ++i) mean += std::log(i) / 50;
  CHECK(r.series.at("head_mean_nats")[0] == Approx(mean).epsilon(kF32));
  CHECK(r.series.at("head_mean_nats")[1] == 0);
  CHECK(r.series.at("head_mean_normalised")[0] == Approx(1.0).epsilon(kF32));
  CHECK(std::isnan(r.series.at("head_mean_normalised")[1]));  // ln 1 = 0 leaves nothing to normalise by
  CHECK(r.series.at("head_mean_support")[0] == Approx(25.5).epsilon(kF32));
  CHECK(r.series.at("head_mean_support")[1] == 1);
  CHECK(r.scalars.at("mean_nats") == Approx(mean / 2).epsilon(kF32));
  CHECK(r.scalars.at("max_nats") == Approx(std::log(50.0)).epsilon(kF32));
  CHECK(r.scalars.at("min_nats") == 0);
  CHECK(r.scalars.at("rows") == 200);
  CHECK(r.series.at("head_p50_nats")[0] == Approx((std::log(25.0) + std::log(26.0)) / 2).epsilon(kF32));
  CHECK(r.notes.count("mass") == 0);
}

TEST_CASE("a row of known weights, and rows that do not sum to one") {
  FakeInstance f;
  f.key_count = 3;
  double scale = 1;
  f.row = [&](int64_t, int64_t, int64_t, float* row) {
    row[0] = static_cast<float>(0.5 * scale), row[2] = static_cast<float>(0.25 * scale);
    row[1] = static_cast<float>(0.25 * scale);
  };
  const double h = 1.5 * std::log(2.0);
  CHECK(analyse("entropy", f, sequence(1, 1, 1)).scalars.at("mean_nats") == Approx(h).epsilon(kF32));
  scale = 0.5;  // the other half went to a sink
  const AnalysisResult r = analyse("entropy", f, sequence(1, 1, 4));
  CHECK(r.scalars.at("mean_nats") == Approx(h).epsilon(kF32));
  CHECK_THAT(r.notes.at("mass"), ContainsSubstring("0.5"));
}

TEST_CASE("empty, broken and negative rows") {
  FakeInstance f;
  f.key_count = 4;
  f.row = [](int64_t, int64_t, int64_t i, float* row) {
    if (i == 1) row[0] = row[1] = 0.5f;
    if (i == 2) row[3] = std::numeric_limits<float>::quiet_NaN();
  };
  const AnalysisResult r = analyse("entropy", f, sequence(1, 1, 3));
  CHECK(r.scalars.at("rows") == 1);
  CHECK(r.scalars.at("rows_empty") == 1);
  CHECK(r.scalars.at("rows_not_finite") == 1);
  CHECK(r.scalars.at("mean_nats") == Approx(std::log(2.0)).epsilon(kF32));
  f.row = [](int64_t, int64_t, int64_t i, float* row) { row[i] = i == 2 ? -0.25f : 1.0f; };
  try {
    analyse("entropy", f, sequence(1, 1, 3));
    FAIL("negative weights were taken for probabilities");
  } catch (const Unsupported& e) {
    CHECK_THAT(e.what(), ContainsSubstring("weight -0.25 of key 2 in batch 0, head 0, query 2"));
  }
  f.row = [](int64_t, int64_t, int64_t, float*) {};  // nothing is seen anywhere
  CHECK(std::isnan(analyse("entropy", f, sequence(1, 1, 3)).scalars.at("mean_nats")));
  f.short_rows = true;
  CHECK_THROWS_AS(analyse("entropy", f, sequence(1, 1, 3)), Error);
  FakeInstance none;
  CHECK_THROWS_AS(analyse("entropy", none, sequence(1, 1, 3)), Unsupported);
  none.key_count = 3;
  CHECK_THROWS_AS(analyse("entropy", none, sequence(1, 1, 3)), Unsupported);
}

TEST_CASE("rows are streamed: never more than a few megabytes of them at once, and every query is read") {
  FakeInstance f;
  const int64_t n = 3000;
  f.key_count = n;
  std::vector<int> seen(static_cast<size_t>(n), 0);
  f.row = [&](int64_t, int64_t, int64_t i, float* row) {
    ++seen[static_cast<size_t>(i)];
    row[i] = 1.0f;
  };
  const AnalysisResult r = analyse("entropy", f, sequence(1, 1, n));
  CHECK(f.most_values <= int64_t{1} << 20);
  CHECK(f.most_values < n * n);
  CHECK(std::count(seen.begin(), seen.end(), 1) == n);
  CHECK(r.scalars.at("rows") == static_cast<double>(n));
}

TEST_CASE("statistics of the pass are used where they exist, of any floating type and for every batch") {
  Context ctx(cpu_backend(), 1);
  FakeInstance f;
  const Tensor entropy = ctx.allocate(DType::f64, {2, 1, 2}), visible = ctx.allocate(DType::f32, {2, 1, 2});
  const double h[] = {std::log(2.0), 0, std::log(8.0), 5};
  const float keys[] = {2, 1, 64, 0};  // the last row sees nothing
  std::copy_n(h, 4, entropy.data<double>());
  std::copy_n(keys, 4, visible.data<float>());
  f.stats = RowStats{entropy, visible, {}};
  const AnalysisResult r = analyse("entropy", f);
  CHECK(r.scalars.at("rows") == 3);
  CHECK(r.scalars.at("rows_empty") == 1);
  CHECK(r.scalars.at("max_nats") == Approx(std::log(8.0)).epsilon(kF32));
  CHECK(r.scalars.at("mean_normalised") == Approx(0.75).epsilon(kF32));  // (1 + 3/6) / 2
  CHECK(r.scalars.at("mean_support") == Approx((2 + 1 + 8) / 3.0).epsilon(kF32));
  CHECK_THAT(r.notes.at("source"), ContainsSubstring("fused pass"));
}

TEST_CASE("32K queries of statistics take memory linear in them") {
  Context ctx(cpu_backend(), 1);
  const int64_t heads = 4, n = 32768;
  FakeInstance f;
  f.key_count = n;
  f.row = [](int64_t, int64_t, int64_t, float*) { FAIL("rows were streamed although there are statistics"); };
  RowStats s{ctx.allocate(DType::f32, {1, heads, n}), ctx.allocate(DType::f32, {1, heads, n}), {}};
  for (int64_t k = 0; k < heads * n; ++k) {
    s.visible_keys.data<float>()[k] = static_cast<float>(k % n + 1);
    s.entropy.data<float>()[k] = std::log(static_cast<float>(k % n + 1));
  }
  f.stats = s;
  const Analysis& a = find_analysis("entropy");
  const Problem p = sequence(1, heads, n);
  ctx.reset_memory_peaks();
  const AnalysisResult r = a.compute(ctx, f, p, resolve_params("entropy", a.info().params, {}, p));
  CHECK(ctx.memory().peak_total == 2 * heads * n * 4);  // the statistics themselves
  CHECK(r.scalars.at("rows") == static_cast<double>(heads * n));
  CHECK(r.scalars.at("mean_normalised") == Approx(1.0).epsilon(kF32));
  CHECK(r.scalars.at("mean_support") == Approx((n + 1) / 2.0).epsilon(kF32));
}

TEST_CASE("a real method: both sources agree, and 32K tokens take memory linear in them") {
  Problem p = sequence(1, 2, 32768);
  p.head_dim = 16;
  p.causal = true;
  const Method& method = find_method("sliding_window");
  const auto params = [&](const Problem& q) {
    return resolve_params("sliding_window", method.info().params, {{"window", 63}}, q);
  };
  const Analysis& a = find_analysis("entropy");
  const Params none = resolve_params("entropy", a.info().params, {}, p);
  {
    Context ctx(cpu_backend(), 2);
    const auto instance = method.make(ctx, p, params(p));
    fill_instance(ctx, *instance, p);
    instance->prepare(ctx);
    instance->run(ctx);
    ctx.reset_memory_peaks();
    const AnalysisResult r = a.compute(ctx, *instance, p, none);
    // q, k, v, o and a second o: 5 tensors of 4 MiB; statistics 4 of 256 KiB. A score matrix would take 4
    // GiB.
    const int64_t tensor = 2 * 32768 * 16 * 4;
    CHECK(ctx.memory().peak_total < 8 * tensor);
    CHECK(r.scalars.at("rows") == 2 * 32768);
    CHECK(r.scalars.at("max_nats") <= std::log(64.0) * (1 + kF32));
    CHECK(r.scalars.at("mean_nats") > 0.5 * std::log(64.0));  // scores of unit normals spread widely
  }
  p.length = 333;
  Context ctx(cpu_backend(), 2);
  const auto instance = method.make(ctx, p, params(p));
  fill_instance(ctx, *instance, p);
  instance->prepare(ctx);
  instance->run(ctx);
  const AnalysisResult fused = a.compute(ctx, *instance, p, none);
  FakeInstance rows;
  rows.key_count = instance->keys(0);
  rows.row = [&](int64_t b, int64_t h, int64_t i, float* row) {
    std::vector<float> one;
    REQUIRE(instance->rows(ctx, b, h, i, i + 1, one));
    std::copy(one.begin(), one.end(), row);
  };
  const AnalysisResult streamed = analyse("entropy", rows, p);
  for (const char* key :
       {"mean_nats", "p5_nats", "p50_nats", "max_nats", "mean_normalised", "mean_support"}) {
    INFO(key);
    // Each of 64 weights carries a few roundings of its exponential.
    CHECK(fused.scalars.at(key) == Approx(streamed.scalars.at(key)).epsilon(64 * epsilon_of(DType::f32)));
  }
}

TEST_CASE("percentiles are linear between neighbours") {
  std::vector<double> v{4, 1, 3, 2};
  const Summary s = summarize(v);
  CHECK(s.p50 == 2.5);
  CHECK(s.p25 == 1.75);
  CHECK(s.min == 1);
  CHECK(s.max == 4);
  std::vector<double> one{7}, none;
  CHECK(summarize(one).p95 == 7);
  CHECK(std::isnan(summarize(none).mean));
}
