#include "measure/plan.hpp"

#include "tests/catch.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;
using namespace attnbench::mock;

namespace {
using Groups = std::vector<std::vector<size_t>>;

Case with_batch(const std::string& base, int64_t batch) {
  Case c = make_case(base);
  c.name = base + "/batch=" + std::to_string(batch);
  c.axes["batch"] = batch;
  return c;
}
}  // namespace

TEST_CASE("a baseline joins cases of the same axis values") {
  Suite s = make_suite({}, "sra");
  for (const int64_t batch : {1, 64})
    for (const char* base : {"hilo", "sra", "win"}) s.cases.push_back(with_batch(base, batch));
  CHECK(baseline_of(s, 0) == size_t{1});
  CHECK(baseline_of(s, 5) == size_t{4});
  CHECK_FALSE(baseline_of(s, 1));
  CHECK(comparison_groups(s) == Groups{{0, 1, 2}, {3, 4, 5}});
}

TEST_CASE("a baseline without axes serves every value; the closest match wins") {
  Suite s = make_suite({}, "dense");
  s.cases = {make_case("dense"), with_batch("hilo", 1), with_batch("hilo", 2)};
  CHECK(comparison_groups(s) == Groups{{0, 1, 2}});
  s.cases.push_back(with_batch("dense", 2));
  CHECK(baseline_of(s, 1) == size_t{0});
  CHECK(baseline_of(s, 2) == size_t{3});
}

TEST_CASE("other problems are not compared, other widths and dtypes are") {
  Suite s = make_suite({"dense", "longer", "layer", "bf16"}, "dense");
  s.cases[1].problem.length *= 2;
  s.cases[2].problem.head_dim = 0;
  s.cases[2].problem.channels = 96;
  s.cases[3].problem.dtype = DType::bf16;
  CHECK_FALSE(baseline_of(s, 1));
  CHECK(baseline_of(s, 2) == size_t{0});
  CHECK(baseline_of(s, 3) == size_t{0});
  CHECK(comparison_groups(s) == Groups{{0, 2, 3}, {1}});
}

TEST_CASE("other devices are not compared") {
  Suite s = make_suite({"dense", "hilo"}, "dense");
  s.cases[1].device = "cuda";
  CHECK_FALSE(baseline_of(s, 1));
  CHECK(comparison_groups(s) == Groups{{0}, {1}});
}

TEST_CASE("claims join the cases that they name") {
  Suite s = make_suite({"a", "b", "c", "d"});
  Claim claim;
  claim.expression = "2 * time(a) / time( c )";
  s.claims = {claim};
  CHECK(comparison_groups(s) == Groups{{0, 2}, {1}, {3}});
  claim.expression = "time(d[batch=4]) / (time(b) + scalar(a, \"entropy.mean\"))";
  s.claims.push_back(claim);
  CHECK(comparison_groups(s) == Groups{{0, 1, 2, 3}});
  s.claims = {claim};
  s.claims[0].device = "cuda";
  CHECK(comparison_groups(s) == Groups{{0}, {1}, {2}, {3}});
}

TEST_CASE("a claim with free axes joins equal values only") {
  Suite s = make_suite({});
  s.cases = {with_batch("a", 1), with_batch("a", 2), with_batch("b", 1), with_batch("b", 2)};
  Claim claim;
  claim.expression = "time(a) / time(b)";
  s.claims = {claim};
  CHECK(comparison_groups(s) == Groups{{0, 2}, {1, 3}});
  s.claims[0].axes["batch"] = int64_t{2};
  CHECK(comparison_groups(s) == Groups{{0}, {1, 3}, {2}});
}

TEST_CASE("groups are cut where memory ends, with the baseline beside every case where it fits") {
  const std::vector<int64_t> bytes{10, 40, 60, 95};
  const std::vector<Batch> all = fit_into_memory({0, 1, 2, 3}, 1, bytes, 0);
  REQUIRE(all.size() == 1);
  CHECK(all[0].members == std::vector<size_t>{0, 1, 2, 3});
  CHECK_FALSE(all[0].partner);

  const std::vector<Batch> cut = fit_into_memory({0, 1, 2, 3}, 1, bytes, 100);
  REQUIRE(cut.size() == 3);
  CHECK(cut[0].members == std::vector<size_t>{0, 1});
  CHECK_FALSE(cut[0].partner);
  CHECK(cut[1].members == std::vector<size_t>{2});
  CHECK(cut[1].partner == size_t{1});
  CHECK(cut[2].members == std::vector<size_t>{3});
  CHECK_FALSE(cut[2].partner);  // 40 + 95 do not fit: apart
}

TEST_CASE("a group without its baseline is cut just the same") {
  const std::vector<Batch> cut = fit_into_memory({0, 2}, 1, {60, 0, 60}, 100);
  REQUIRE(cut.size() == 2);
  CHECK(cut[0].members == std::vector<size_t>{0});
  CHECK(cut[1].members == std::vector<size_t>{2});
  CHECK_FALSE(cut[1].partner);
}
