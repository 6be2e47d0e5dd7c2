// Analyses of head sets and head scores: overlaps by hand, shares of a score table.
#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/analysis/fakes.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

AnalysisResult analyse_trial(const char* id, Trial& t, const ParamMap& given = {}) {
  const Analysis& a = find_analysis(id);
  return a.compute(*t.ctx, *t.instance, t.problem, resolve_params(id, a.info().params, given, t.problem));
}

Value::List range(int64_t begin, int64_t end) {
  Value::List l;
  for (int64_t i = begin; i < end; ++i) l.emplace_back(i);
  return l;
}

}  // namespace

TEST_CASE("circuit_overlap: the published arithmetic, equal, disjoint and repeated lists") {
  FakeInstance f;
  Value::List a = range(0, 29), b = range(0, 25);
  for (int64_t h : {100, 101, 102}) b.emplace_back(h);
  const AnalysisResult r = analyse("circuit_overlap", f, {}, {{"circuit_a", a}, {"circuit_b", b}});
  CHECK(r.scalars.at("shared") == 25);
  CHECK(r.scalars.at("union") == 32);
  CHECK(r.scalars.at("jaccard") == 25.0 / 32);
  CHECK(r.scalars.at("of_first") == 25.0 / 29);
  CHECK(r.scalars.at("only_first") == 4);
  CHECK(r.scalars.at("only_second") == 3);
  CHECK(analyse("circuit_overlap", f, {}, {{"circuit_a", a}, {"circuit_b", a}}).scalars.at("jaccard") == 1);
  const AnalysisResult none =
      analyse("circuit_overlap", f, {}, {{"circuit_a", range(0, 3)}, {"circuit_b", range(5, 9)}});
  CHECK(none.scalars.at("jaccard") == 0);
  CHECK(none.scalars.at("union") == 7);
  CHECK(
      analyse("circuit_overlap", f, {}, {{"circuit_a", Value::List{1, 1, 2}}, {"circuit_b", Value::List{2}}})
          .scalars.at("jaccard") == 0.5);
  CHECK_THROWS_AS(analyse("circuit_overlap", f), Unsupported);
}

TEST_CASE("circuit_overlap reads a method's circuits") {
  Problem p;
  p.batch = 2;
  p.length = 7;
  p.channels = 12;
  p.heads = 3;
  p.causal = true;
  Trial t = make_trial("circuit_reuse", p,
                       {{"num_layers", 2}, {"vocab_size", 23}, {"max_len", 8}, {"top_frac", 0.5}});
  CHECK_THROWS_AS(analyse_trial("circuit_overlap", t), Unsupported);  // one task has one circuit
  const Tensor second = t.ctx->allocate(DType::i32, {2, 7});
  for (int64_t i = 0; i < 14; ++i) second.data<int32_t>()[i] = static_cast<int32_t>(i * 3 % 23);
  rebind(t, {{"corrupt_tokens_2", second}});
  t.run();
  const AnalysisResult r = analyse_trial("circuit_overlap", t);
  CHECK(static_cast<float>(r.scalars.at("jaccard")) == static_cast<float>(t.output("overlap")[0]));
  CHECK(static_cast<float>(r.scalars.at("of_first")) == static_cast<float>(t.output("overlap_of_1")[0]));
  CHECK(r.scalars.at("shared") + r.scalars.at("only_first") == 3);
}

TEST_CASE("retrieval_score: shares, classes by layer and always active heads of a score file") {
  const std::string path =
      (std::filesystem::temp_directory_path() / "attnbench_retrieval_score.json").string();
  std::ofstream(path) << R"({"0-0": [0, 0], "0-1": [0.05, 0.1], "1-0": [0.9, 0.3], "1-1": [0.1, 0.3],
                            "2-0": [0, 0], "2-1": [0.0, 0.1]})";
  Problem p;
  p.heads = 2;
  Trial t = make_trial("retrieval_heads", p, {{"num_layers", 3}, {"num_heads", 2}, {"scores_file", path}});
  t.run();
  const AnalysisResult r = analyse_trial("retrieval_score", t);
  CHECK(r.scalars.at("share_zero") == 2.0 / 6);
  CHECK(r.scalars.at("share_weak") == 2.0 / 6);
  CHECK(r.scalars.at("share_middle") == 1.0 / 6);
  CHECK(r.scalars.at("share_strong") == 1.0 / 6);
  CHECK(r.scalars.at("retrieval_heads") == 2);
  CHECK(r.scalars.at("always_active") == 3);
  CHECK(r.scalars.at("best_score") == Approx(0.6));
  CHECK(r.notes.at("best") == "head 1-0");
  CHECK(r.series.at("layer_retrieval_heads") == std::vector<double>{0, 2, 0});
  CHECK(analyse_trial("retrieval_score", t, {{"threshold", 0.05}}).scalars.at("retrieval_heads") == 4);
  std::filesystem::remove(path);
  FakeInstance f;
  CHECK_THROWS_AS(analyse("retrieval_score", f), Unsupported);
  Trial qk = make_trial("retrieval_heads", heads_problem(1, 4, 2, 3, 20, 8, true), {{"num_layers", 2}});
  qk.run();
  CHECK(analyse_trial("retrieval_score", qk).scalars.at("cache_bytes_per_token") == 2 * 2 * 2 * 8 * 4);
}
