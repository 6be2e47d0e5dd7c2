// Analyses of attention maps on maps whose answers are known: even rows, one-hot rows, bands, copies.
#include <cmath>

#include "tests/analysis/fakes.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem sequence(int64_t batch, int64_t heads, int64_t n) {
  Problem p;
  p.batch = batch;
  p.heads = heads;
  p.length = n;
  return p;
}

/// `heads` maps of n queries and keys, p(h, i, j).
FakeInstance maps(int64_t n, int64_t heads, const std::function<double(int64_t h, int64_t i, int64_t j)>& p) {
  FakeInstance f;
  f.key_count = n;
  f.pair_set = square(n, heads, [n](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, n}}; });
  f.row = [=](int64_t, int64_t h, int64_t i, float* row) {
    for (int64_t j = 0; j < n; ++j) row[j] = static_cast<float>(p(h, i, j));
  };
  return f;
}

double even(int64_t, int64_t, int64_t) { return 1.0 / 20; }
double even_causal(int64_t, int64_t i, int64_t j) { return j <= i ? 1.0 / static_cast<double>(i + 1) : 0.0; }

constexpr double kF32 = 1e-6;  // sums of a few dozen f32 weights

}  // namespace

TEST_CASE("effective_support: even rows use all keys, one-hot rows one, halves two") {
  FakeInstance f = maps(20, 1, even);
  AnalysisResult r = analyse("effective_support", f, sequence(1, 1, 20));
  CHECK(r.scalars.at("mean_perplexity") == Approx(20).epsilon(kF32));
  CHECK(r.scalars.at("mean_participation") == Approx(20).epsilon(kF32));
  CHECK(r.scalars.at("mean_keys_for_mass") == 18);
  CHECK(r.scalars.at("rows") == 20);
  f = maps(20, 2, [](int64_t h, int64_t i, int64_t j) {
    return h == 0 ? double(i == j) : j < 2 ? 0.5 : 0.0;
  });
  r = analyse("effective_support", f, sequence(1, 2, 20));
  for (const char* key : {"head_mean_perplexity", "head_mean_participation", "head_mean_keys_for_mass"}) {
    CHECK(r.series.at(key)[0] == Approx(1));
    CHECK(r.series.at(key)[1] == Approx(2));
  }
  f = maps(4, 1, [](int64_t, int64_t, int64_t j) { return j == 0 ? 0.5 : j < 3 ? 0.25 : 0.0; });
  r = analyse("effective_support", f, sequence(1, 1, 4), {{"mass", 0.5}});
  CHECK(r.scalars.at("mean_keys_for_mass") == 1);
  CHECK(r.scalars.at("mean_participation") == Approx(1 / 0.375));
  CHECK(r.scalars.at("mean_perplexity") == Approx(std::exp(1.5 * std::log(2.0))));
}

TEST_CASE("sinks: a key that half the weight goes to, even causal rows, thresholds") {
  FakeInstance f = maps(20, 2, [](int64_t h, int64_t i, int64_t j) {
    if (h == 0) return even_causal(0, i, j);
    return i == 0 ? double(j == 0) : (j == 7 && i >= 7 ? 0.5 : 0.0) + (i >= 7 ? 0.5 : 1.0) * double(j == i);
  });
  const AnalysisResult r = analyse("sinks", f, sequence(1, 2, 20));
  // Key j of even causal rows: mean of 1 / (i + 1) over i >= j; threshold 5 / 20. Only key 0 may pass: H(20)
  // / 20 = 0.18.
  CHECK(r.series.at("head_sinks")[0] == 0);
  CHECK(r.series.at("head_sink_mass")[0] == 0);
  CHECK(r.series.at("head_first_mass")[0] > 0.3);
  // Head 1: keys other than 7 get their own row's 0.5 or 1; all pass 0.25.
  CHECK(r.series.at("head_sinks")[1] == 20);
  const AnalysisResult high = analyse("sinks", f, sequence(1, 2, 20), {{"threshold", 0.52}});
  CHECK(high.series.at("head_sinks")[1] == 8);  // keys 0 to 6, and key 7: (12 x 0.5 + 1) / 13
  CHECK(high.scalars.at("max_score") == 1);
  const AnalysisResult one = analyse("sinks", f, sequence(1, 2, 20), {{"first", 1}});
  CHECK(one.scalars.at("first_mass") == Approx(one.scalars.at("key0_mass")));
}

TEST_CASE("sinks: the map says where they lie, by head and range of keys") {
  // Head 0 looks at key 50 with a half, head 1 at its own place; 100 keys in 32 ranges.
  FakeInstance f = maps(100, 2, [](int64_t h, int64_t i, int64_t j) {
    return h == 0 ? (j == 50 ? 0.5 : 0.5 / 99) : double(i == j);
  });
  const AnalysisResult r = analyse("sinks", f, sequence(1, 2, 100));
  const std::vector<double>& map = r.series.at("sink_map");
  REQUIRE(map.size() == 2 * 32);
  for (int64_t k = 0; k < 32; ++k) {
    const bool holds = k * 100 / 32 <= 50 && 50 < (k + 1) * 100 / 32;
    CHECK(map[static_cast<size_t>(k)] == Approx(holds ? 0.5 : 0.5 / 99).epsilon(kF32));
    CHECK(map[static_cast<size_t>(32 + k)] == 1);
  }
  // Fewer keys than ranges: a column a key, which is the key's score.
  FakeInstance small = maps(5, 1, [](int64_t, int64_t, int64_t j) { return 0.1 * double(j); });
  const AnalysisResult s = analyse("sinks", small, sequence(2, 1, 5));
  CHECK(s.series.at("sink_map") == s.series.at("key_score"));
}

TEST_CASE("top_k_mass: shares of even and geometric rows; k beyond the keys is everything") {
  FakeInstance f = maps(20, 1, even);
  const AnalysisResult r = analyse("top_k_mass", f, sequence(1, 1, 20), {{"k", Value::List{5, 1, 100}}});
  CHECK(r.scalars.at("mass_1") == Approx(0.05).epsilon(kF32));
  CHECK(r.scalars.at("mass_5") == Approx(0.25).epsilon(kF32));
  CHECK(r.scalars.at("mass_100") == Approx(1).epsilon(kF32));
  f = maps(20, 1, [](int64_t, int64_t i, int64_t j) { return std::pow(0.5, double((j + i) % 20 + 1)); });
  const AnalysisResult g = analyse("top_k_mass", f, sequence(1, 1, 20));
  CHECK(g.scalars.at("mass_1") == Approx(0.5).epsilon(1e-5));
  CHECK(g.scalars.at("mass_4") == Approx(0.9375).epsilon(1e-5));
  CHECK_THROWS_AS(analyse("top_k_mass", f, sequence(1, 1, 20), {{"k", Value::List{}}}), UsageError);
}

TEST_CASE("map_divergence: equal heads 0, disjoint heads ln 2, distance from even attention") {
  FakeInstance f = maps(20, 3, [](int64_t h, int64_t i, int64_t j) {
    return h < 2 ? double(j == i) : double(j == (i + 1) % 20);
  });
  const AnalysisResult r = analyse("map_divergence", f, sequence(1, 3, 20));
  CHECK(r.scalars.at("pairs") == 3);
  CHECK(r.scalars.at("min_js") == Approx(0).margin(1e-12));
  CHECK(r.scalars.at("max_js") == Approx(std::log(2.0)));
  CHECK(r.scalars.at("mean_js") == Approx(std::log(2.0) * 2 / 3));
  CHECK(r.series.at("head_nearest_js")[2] == Approx(std::log(2.0)));
  CHECK(r.scalars.at("mean_kl_heads") == Approx(0).margin(1e-12));  // the pair for which it is finite
  FakeInstance g = maps(20, 2, [](int64_t h, int64_t, int64_t j) {
    return h == 0 ? 0.05 : j < 10 ? 0.08 : 0.02;
  });
  const AnalysisResult s = analyse("map_divergence", g, sequence(1, 2, 20), {{"queries", 7}});
  const double kl = 10 * 0.05 * (std::log(0.05 / 0.08) + std::log(0.05 / 0.02));
  CHECK(s.scalars.at("mean_kl_heads") == Approx(kl).epsilon(1e-5));
  CHECK(s.series.at("head_mean_kl_even")[0] == Approx(0).margin(1e-6));
  CHECK(s.series.at("head_mean_kl_even")[1] ==
        Approx(10 * (0.08 * std::log(0.08 * 20) + 0.02 * std::log(0.02 * 20))).epsilon(1e-5));
}

TEST_CASE("head_similarity: copies are one cluster, orthogonal maps are apart") {
  FakeInstance f = maps(20, 4, [](int64_t h, int64_t i, int64_t j) {
    return h == 3 ? 0.05 : double(j == (h == 1 ? (i + 3) % 20 : i));
  });
  const AnalysisResult r = analyse("head_similarity", f, sequence(1, 4, 20));
  CHECK(r.scalars.at("max_similarity") == Approx(1));
  CHECK(r.scalars.at("min_similarity") == Approx(0).margin(1e-12));
  CHECK(r.scalars.at("clusters") == 3);
  CHECK(r.scalars.at("largest_cluster") == 2);
  CHECK(r.series.at("head_cluster")[0] == r.series.at("head_cluster")[2]);
  // Even and one-hot rows: 1 / sqrt(20).
  CHECK(analyse("head_similarity", f, sequence(1, 4, 20), {{"threshold", 0.0}}).scalars.at("clusters") == 1);
  const AnalysisResult some = analyse("head_similarity", f, sequence(1, 4, 20), {{"threshold", 0.21}});
  CHECK(some.scalars.at("clusters") == 2);
}

TEST_CASE("pattern_scores: diagonals, stripes and induction by construction") {
  FakeInstance f = maps(20, 4, [](int64_t h, int64_t i, int64_t j) {
    if (h == 0) return double(i == j);
    if (h == 1) return double(j == std::max<int64_t>(i - 1, 0));
    if (h == 2) return j == 3 ? 0.6 : 0.4 / 19;
    return even_causal(0, i, j);
  });
  const AnalysisResult r = analyse("pattern_scores", f, sequence(1, 4, 20));
  CHECK(r.series.at("head_diagonal")[0] == 1);
  CHECK(r.series.at("head_previous")[1] == 1);
  CHECK(r.series.at("head_local")[1] == 1);
  // The stripe's excess over even rows, and that of the best other key, which is below even.
  CHECK(r.series.at("head_vertical")[2] == Approx(0.6 - 0.05).epsilon(1e-5));
  CHECK(r.series.at("head_vertical")[0] < 0.02);
  CHECK(r.series.at("head_vertical")[3] == Approx(0).margin(1e-6));
  CHECK(r.notes.contains("induction"));

  // A model's heads: the score is what its rows say for the tokens it was given.
  Problem p;
  p.batch = 1;
  p.heads = 2;
  p.channels = 8;
  p.length = 12;
  p.causal = true;
  Trial t = make_trial("transformer", p, {{"num_layers", 2}, {"vocab_size", 9}, {"max_len", 16}});
  const Tensor ids = t.ctx->allocate(DType::i32, {1, 12});
  const int32_t values[] = {1, 2, 3, 4, 1, 2, 3, 4, 1, 5, 6, 1};
  std::copy(values, values + 12, ids.data<int32_t>());
  rebind(t, {{"tokens", ids}});
  t.run();
  const Analysis& a = find_analysis("pattern_scores");
  const AnalysisResult m =
      a.compute(*t.ctx, *t.instance, p, resolve_params("pattern_scores", a.info().params, {}, p));
  double want = 0, repeated = 0;
  std::vector<float> row;
  for (int64_t i = 0; i < 12; ++i) {
    REQUIRE(t.instance->rows(*t.ctx, 0, 3, i, i + 1, row));
    double sum = 0;
    bool any = false;
    for (int64_t j = 1; j <= i; ++j)
      if (values[j - 1] == values[i]) any = true, sum += static_cast<double>(row[static_cast<size_t>(j)]);
    if (any) want += sum, repeated += 1;
  }
  CHECK(repeated == 6);
  REQUIRE(m.series.at("head_induction").size() == 4);
  CHECK(m.series.at("head_induction")[3] == Approx(want / repeated).epsilon(1e-6));
}

TEST_CASE("map_spectrum: even maps have rank 1, identities full rank, mixtures in between") {
  FakeInstance f = maps(20, 3, [](int64_t h, int64_t i, int64_t j) {
    if (h == 0) return 0.05;
    if (h == 1) return double(i == j);
    return j / 10 == i / 10 ? 0.1 : 0.0;  // two blocks of equal rows
  });
  const AnalysisResult r = analyse("map_spectrum", f, sequence(1, 3, 20));
  const double want[] = {1, 20, 2};
  for (size_t h = 0; h < 3; ++h) {
    INFO("head " << h);
    CHECK(r.series.at("head_stable_rank")[h] == Approx(want[h]).epsilon(1e-6));
    CHECK(r.series.at("head_rank")[h] == want[h]);
    CHECK(r.series.at("head_entropy_rank")[h] == Approx(want[h]).epsilon(1e-4));
    CHECK(r.series.at("head_energy_rank")[h] == want[h]);
  }
  CHECK(analyse("map_spectrum", f, sequence(1, 3, 20), {{"queries", 5}}).series.at("head_rank")[1] == 5);
}

TEST_CASE(
    "map analyses leave out what is no number, refuse what is no probability, and say who has no rows") {
  for (const char* id : {"effective_support", "sinks", "top_k_mass", "pattern_scores"}) {
    INFO(id);
    FakeInstance f = maps(6, 1, [](int64_t, int64_t i, int64_t j) { return i == 2 ? NAN : double(i == j); });
    CHECK(analyse(id, f, sequence(1, 1, 6)).scalars.at("rows_not_finite") == 1);
    FakeInstance negative = maps(6, 1, [](int64_t, int64_t i, int64_t j) { return i == j ? -0.25 : 0.1; });
    CHECK_THROWS_AS(analyse(id, negative, sequence(1, 1, 6)), Unsupported);
  }
  for (const char* id : {"effective_support", "sinks", "top_k_mass", "pattern_scores", "map_divergence",
                         "head_similarity", "map_spectrum"}) {
    INFO(id);
    FakeInstance none;
    CHECK_THROWS_AS(analyse(id, none, sequence(1, 1, 6)), Unsupported);
  }
  FakeInstance pooled = maps(6, 1, [](int64_t, int64_t, int64_t) { return 0.0; });
  pooled.key_count = 2;
  pooled.row = [](int64_t, int64_t, int64_t, float* row) { row[0] = row[1] = 0.5f; };
  CHECK_THROWS_AS(analyse("pattern_scores", pooled, sequence(1, 1, 6)), Unsupported);
  CHECK_NOTHROW(analyse("effective_support", pooled, sequence(1, 1, 6)));
}
