#include "measure/estimate.hpp"

#include "measure/environment.hpp"
#include "tests/catch.hpp"
#include "tests/measure/fakes.hpp"

using namespace attnbench;

namespace {
Problem sequence(int64_t batch, int64_t length) {
  Problem p;
  p.batch = batch;
  p.length = length;
  return p;
}
}  // namespace

TEST_CASE("a dry run knows every byte and every FLOP") {
  fake::Doubler::compute = false;
  const CaseEstimate e = estimate_problem(fake::doubler(), sequence(2, 50), {{"workspace", 1000}});
  fake::Doubler::compute = true;
  CHECK(e.status == CaseStatus::ok);
  CHECK(e.inputs == 400);
  CHECK(e.weights == 4);
  CHECK(e.outputs == 404);
  CHECK(e.workspace == 1000);
  CHECK(e.workspace_known);
  CHECK(e.total() == 1808);
  CHECK(e.formula.matmul == 200);
  CHECK(e.counted == e.formula);
  CHECK(e.published_macs == 100);
}

TEST_CASE("terabytes are estimated without memory") {
  fake::Doubler::compute = false;
  reset_rss_peak();
  const int64_t before = rss_peak();
  const CaseEstimate e = estimate_problem(fake::doubler(), sequence(1024, int64_t{1} << 29), {});
  fake::Doubler::compute = true;
  CHECK(e.status == CaseStatus::ok);
  CHECK(e.inputs == int64_t{1} << 41);
  CHECK(e.total() > int64_t{1} << 42);
  CHECK(rss_peak() - before < (int64_t{64} << 20));
}

TEST_CASE("what no address space holds is skipped, what no int64 counts has failed") {
  fake::Doubler::compute = false;
  CHECK(estimate_problem(fake::doubler(), sequence(1 << 20, int64_t{1} << 36), {}).status ==
        CaseStatus::skipped);
  const CaseEstimate e = estimate_problem(fake::doubler(), sequence(int64_t{1} << 40, int64_t{1} << 40), {});
  fake::Doubler::compute = true;
  CHECK(e.status == CaseStatus::failed);
  CHECK_FALSE(e.reason.empty());
}

TEST_CASE("refusals keep their reason and their kind") {
  Problem p = sequence(1, 8);
  p.causal = true;
  const CaseEstimate causal = estimate_problem(fake::doubler(), p, {});
  CHECK(causal.status == CaseStatus::unsupported);
  CHECK(causal.reason == "doubling is not causal");
  const CaseEstimate parameter = estimate_problem(fake::doubler(), sequence(1, 8), {{"fualt", "none"}});
  CHECK(parameter.status == CaseStatus::failed);
  CHECK_THAT(parameter.reason, ContainsSubstring("did you mean 'fault'"));
  Case c;
  c.method = "fake_dubler";
  CHECK_THROWS_AS(estimate_case(c), UsageError);
}

TEST_CASE("usable memory is a share of what is available") {
  const int64_t most = usable_memory(1.0), part = usable_memory(0.5);
  CHECK(most > 0);
  CHECK(part > 0.4 * static_cast<double>(most));
  CHECK(part < 0.6 * static_cast<double>(most));
}
