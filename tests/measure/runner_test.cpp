#include "measure/runner.hpp"

#include <algorithm>
#include <new>

#include "tests/catch.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;
using namespace attnbench::mock;

namespace {
Cost flops(int64_t matmul, int64_t bytes = 1000) { return {matmul, 0, 0, bytes / 2, bytes - bytes / 2}; }
CaseEstimate needs(int64_t bytes) {
  CaseEstimate e;
  e.inputs = bytes / 2;
  e.workspace = bytes - bytes / 2;
  e.workspace_known = true;
  return e;
}
}  // namespace

TEST_CASE("a case goes through its steps in order") {
  World w;
  Suite s = make_suite({"A"});
  s.analyses = {"entropy"};
  w["A"].accounting.by_stage["attend"] = flops(10);
  w["A"].accounting.by_stage[""] = flops(1);
  w["A"].accounting.seconds = 0.02;
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  std::vector<std::string> steps;
  for (const std::string& e : w.log)
    if (steps.empty() || steps.back() != e) steps.push_back(e);
  CHECK(steps == std::vector<std::string>{"estimate A", "open A", "account A", "verify A", "profile A x2",
                                          "run A", "analyze A entropy", "close A"});
  REQUIRE(r.cases.size() == 1);
  const CaseResult& c = r.cases[0];
  CHECK(c.status == CaseStatus::ok);
  CHECK(c.time->median_s == Approx(0.02));
  CHECK(c.time->samples == 10);
  CHECK(c.time->converged);
  CHECK(c.analyses.size() == 1);
  REQUIRE(c.stages.size() == 2);
  CHECK(c.stages[0].stage == "other");
  CHECK(c.stages[1].cost == flops(10));
  CHECK(c.id.size() == 16);
  CHECK(l.started);
  CHECK(l.begun == std::vector<std::string>{"A"});
  CHECK(l.finished.size() == 1);
  CHECK_FALSE(r.interrupted);
}

TEST_CASE("a case says where the run's own seconds went") {
  World w;
  Suite s = make_suite({"A", "B"});
  s.analyses = {"entropy"};
  const auto takes = [&w](double seconds) { return [&w, seconds] { w.clock.now += seconds; }; };
  w["A"].on_open = takes(3);
  w["A"].on_verify = takes(5);
  w["A"].on_analyze = [&w](const std::string& analysis) {
    w.clock.now += 7;
    return AnalysisResult{analysis, {}, {}, {}};
  };
  w["B"].on_account = [&w] {
    w.clock.now += 2;
    throw Unsupported("B has no second half");
  };
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  const CaseResult &a = result_of(r, "A"), &b = result_of(r, "B");
  CHECK(a.elapsed_s.at("open") == Approx(3));
  CHECK(a.elapsed_s.at("verify") == Approx(5));
  CHECK(a.elapsed_s.at("analyze") == Approx(7));
  CHECK(a.elapsed_s.at("sample") >= a.time->median_s * static_cast<double>(a.time->samples));
  CHECK_FALSE(a.elapsed_s.contains("account"));  // took no time
  CHECK(b.elapsed_s == std::map<std::string, double>{{"account", b.elapsed_s.at("account")}});
  CHECK(b.elapsed_s.at("account") == Approx(2));
}

TEST_CASE("joined cases are interleaved and carry paired ratios") {
  World w;
  Suite s = make_suite({"fast", "base", "alone"}, "base");
  s.measure.keep_samples = true;
  s.cases[2].device = "other";  // not compared with the baseline
  w["fast"].seconds = [](int64_t) { return 0.020; };
  w["base"].seconds = [](int64_t) { return 0.021; };
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  const CaseResult& fast = result_of(r, "fast");
  REQUIRE(fast.ratio);
  CHECK(fast.ratio->baseline == "base");
  CHECK(fast.ratio->value == Approx(1.05));
  CHECK(fast.ratio->pairs == 10);
  CHECK_FALSE(result_of(r, "base").ratio);
  CHECK_FALSE(result_of(r, "alone").ratio);
  CHECK(fast.time->raw_s.size() == 10);
  // Three warm-up runs each, then alternating order.
  const std::vector<std::string> runs = w.entries_with("run ");
  CHECK(std::vector<std::string>(runs.begin() + 6, runs.begin() + 12) ==
        std::vector<std::string>{"run fast", "run base", "run base", "run fast", "run fast", "run base"});
}

TEST_CASE("an A/A pair reads one, and both results have ids of their own") {
  World w;
  Suite s = make_suite({"a", "b"}, "a");
  int64_t n = 0;
  // The same noise source for both, deterministic and without a pattern of two.
  const auto noise = [&n](int64_t) {
    return 0.02 * (1 + 0.01 * static_cast<double>((n++ * 7919) % 101) / 101);
  };
  w["a"].seconds = w["b"].seconds = noise;
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  const CaseResult& b = result_of(r, "b");
  REQUIRE(b.ratio);
  CHECK(b.ratio->ci_low <= 1.0);
  CHECK(b.ratio->ci_high >= 1.0);
  CHECK(b.id == result_of(r, "a").id + "-2");
}

TEST_CASE("what fails verification is not timed, and the others are") {
  World w;
  Suite s = make_suite({"bad", "good"}, "bad");
  w["bad"].verification.result = {"own shape", false, 1e-5, {{"out", 0.3}}, "out[1, 2]: 0.5 instead of 0.25"};
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  CHECK(result_of(r, "bad").status == CaseStatus::failed);
  CHECK_FALSE(result_of(r, "bad").time);
  CHECK_THAT(result_of(r, "bad").reason, ContainsSubstring("out[1, 2]: 0.5 instead of 0.25"));
  CHECK(w.entries_with("run bad").empty());
  CHECK(result_of(r, "good").status == CaseStatus::ok);
  CHECK_FALSE(result_of(r, "good").ratio);
  REQUIRE(result_of(r, "good").warnings.size() == 1);
  CHECK_THAT(result_of(r, "good").warnings[0], ContainsSubstring("no ratio: the baseline 'bad' is failed"));
}

TEST_CASE("NaN left at the own shape fails a case that was verified at a reduced one") {
  World w;
  w["A"].accounting.nan_outputs = 3;
  w["A"].verification.result.how = "reduced shape: sequence batch 1";
  Listener l;
  const RunResult r = run_suite(make_suite({"A"}), make_options(w), l);
  CHECK(r.cases[0].status == CaseStatus::failed);
  CHECK_FALSE(r.cases[0].time);
  CHECK_THAT(r.cases[0].reason, ContainsSubstring("3 elements of the outputs are NaN"));
}

TEST_CASE("NaN at the own shape is a warning where the reference has it at the reduced one too") {
  World w;
  w["A"].accounting.nan_outputs = 3;
  w["A"].verification.result.how = "reduced shape: sequence batch 1";
  w["A"].verification.nan_expected = true;
  Listener l;
  const RunResult r = run_suite(make_suite({"A"}), make_options(w), l);
  CHECK(r.cases[0].status == CaseStatus::ok);
  REQUIRE(!r.cases[0].warnings.empty());
  CHECK_THAT(r.cases[0].warnings.front(), ContainsSubstring("3 elements of the outputs are NaN"));
}

TEST_CASE("unchecked cases are measured as unverified, with the reason") {
  World w;
  w["A"].verification = {false, {"method 'A' has no double-precision reference", false, 0, {}, ""}};
  Listener l;
  RunOptions o = make_options(w);
  RunResult r = run_suite(make_suite({"A"}), o, l);
  CHECK(r.cases[0].status == CaseStatus::unverified);
  CHECK(r.cases[0].time);
  CHECK_THAT(r.cases[0].reason, ContainsSubstring("no double-precision reference"));
  o.verify = false;
  r = run_suite(make_suite({"B"}), o, l);
  CHECK(r.cases[0].status == CaseStatus::unverified);
  CHECK(w.count("verify B") == 0);
}

TEST_CASE("each failure stays with its case and has its status") {
  World w;
  Suite s = make_suite({"a", "b", "c", "d", "e", "f", "g", "ok"});
  w["a"].on_params = [] { throw UsageError("unknown method 'a'"); };
  w["b"].on_open = [] { throw Unsupported("b is not causal"); };
  w["c"].on_account = [] { throw OutOfMemory("no 9 bytes"); };
  w["d"].on_run = [](int64_t) { throw std::bad_alloc(); };
  w["e"].on_verify = [] { throw std::runtime_error("a bug"); };
  w["f"].estimate.status = CaseStatus::unsupported;
  w["f"].estimate.reason = "f wants images";
  w["g"].on_run = [](int64_t call) {
    if (call == 8) throw Error("lost the device");
  };
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  const auto is = [&](const char* name, CaseStatus status, const std::string& reason) {
    const CaseResult& c = result_of(r, name);
    CHECK(c.status == status);
    CHECK_THAT(c.reason, ContainsSubstring(reason));
  };
  is("a", CaseStatus::failed, "unknown method 'a'");
  is("b", CaseStatus::unsupported, "b is not causal");
  is("c", CaseStatus::skipped, "no 9 bytes");
  is("d", CaseStatus::skipped, "no memory left");
  is("e", CaseStatus::failed, "a bug");
  is("f", CaseStatus::unsupported, "f wants images");
  is("g", CaseStatus::failed, "lost the device");
  is("ok", CaseStatus::ok, "");
  CHECK(w.count("open f") == 0);
  CHECK(l.finished.size() == 8);
  // Everything that was opened was closed.
  CHECK(w.entries_with("open ").size() == w.entries_with("close ").size() + 1);  // b never opened
}

TEST_CASE("what does not fit is skipped before it is tried, with the estimate") {
  World w;
  Suite s = make_suite({"big", "small"});
  w["big"].estimate = needs(int64_t{3} << 30);
  w["small"].estimate = needs(1 << 20);
  RunOptions o = make_options(w);
  o.memory_limit = int64_t{1} << 30;
  Listener l;
  const RunResult r = run_suite(s, o, l);
  CHECK(result_of(r, "big").status == CaseStatus::skipped);
  CHECK_THAT(result_of(r, "big").reason,
             ContainsSubstring("needs about 3.0 GiB") && ContainsSubstring("1.0 GiB may"));
  CHECK(w.count("open big") == 0);
  CHECK(result_of(r, "small").status == CaseStatus::ok);
}

TEST_CASE("cases that cannot be alive together are measured apart and say so") {
  World w;
  Suite s = make_suite({"base", "x", "y"}, "base");
  for (const char* n : {"base", "x", "y"}) w[n].estimate = needs(600);
  RunOptions o = make_options(w);
  o.memory_limit = 1000;
  Listener l;
  const RunResult r = run_suite(s, o, l);
  CHECK(w.entries_with("open ") == std::vector<std::string>{"open base", "open x", "open y"});
  const CaseResult& x = result_of(r, "x");
  CHECK(x.status == CaseStatus::ok);
  REQUIRE(x.ratio);
  CHECK(x.ratio->pairs == 0);
  REQUIRE(x.warnings.size() == 2);
  CHECK_THAT(x.warnings[0], ContainsSubstring("measured apart"));
  CHECK_THAT(x.warnings[1], ContainsSubstring("not from interleaved samples"));
  CHECK(result_of(r, "base").warnings.empty());
}

TEST_CASE("a baseline that fits beside each case is sampled with each, and reported once") {
  World w;
  Suite s = make_suite({"base", "x", "y"}, "base");
  for (const char* n : {"base", "x", "y"}) w[n].estimate = needs(400);
  RunOptions o = make_options(w);
  o.memory_limit = 1000;
  Listener l;
  const RunResult r = run_suite(s, o, l);
  CHECK(w.entries_with("open ") == std::vector<std::string>{"open base", "open x", "open base", "open y"});
  CHECK(w.count("verify base") == 1);
  CHECK(result_of(r, "y").ratio->pairs == 10);
  CHECK(result_of(r, "y").warnings.empty());
  CHECK(result_of(r, "base").time->samples == 10);
  CHECK(l.finished.size() == 3);
}

TEST_CASE("memory that ends beside the others is tried again alone") {
  World w;
  Suite s = make_suite({"base", "x"}, "base");
  int tries = 0;
  w["x"].on_account = [&tries] {
    if (++tries == 1) throw OutOfMemory("beside the baseline");
  };
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  CHECK(result_of(r, "x").status == CaseStatus::ok);
  CHECK(result_of(r, "x").ratio->pairs == 0);
  CHECK(tries == 2);
}

TEST_CASE("resume runs what is left and nothing twice") {
  World w;
  Suite s = make_suite({"base", "x", "y", "z"}, "base");
  w["y"].verification.result.passed = false;
  // x converges at once, the others take longer.
  w["base"].seconds = w["z"].seconds = [](int64_t call) { return call % 2 ? 0.02 : 0.04; };
  Listener first;
  RunOptions o = make_options(w);
  std::atomic<bool> stop{false};
  o.stop = &stop;
  // Interrupted once two cases are final: y, which fails verification, and x.
  int final_cases = 0;
  first.on_finished = [&](const CaseResult&) { stop = ++final_cases == 2; };
  const RunResult half = run_suite(s, o, first);
  CHECK(half.interrupted);
  REQUIRE(half.cases.size() == 2);
  CHECK(result_of(half, "y").status == CaseStatus::failed);
  const std::string measured =
      half.cases[0].spec.name == "y" ? half.cases[1].spec.name : half.cases[0].spec.name;

  stop = false;
  w.log.clear();
  w["y"].verification.result.passed = true;
  o.finished = first.finished;
  Listener second;
  const RunResult whole = run_suite(s, o, second);
  CHECK_FALSE(whole.interrupted);
  CHECK(second.reused == 1);
  REQUIRE(whole.cases.size() == 4);
  for (size_t i = 0; i < 4; ++i) CHECK(whole.cases[i].spec.name == s.cases[i].name);
  CHECK(w.count("open x") == 0);
  CHECK(w.count("estimate x") == 0);
  CHECK(second.finished.size() == 3);
  // A failed case gets another chance.
  CHECK(result_of(whole, "y").status == CaseStatus::ok);
  for (const CaseResult& c : whole.cases) CHECK(c.time);
}

TEST_CASE("a finished baseline gives unpaired ratios on resume") {
  World w;
  Suite s = make_suite({"base", "x"}, "base");
  Listener l;
  RunOptions o = make_options(w);
  const RunResult whole = run_suite(s, o, l);
  o.finished = {result_of(whole, "base")};
  w.log.clear();
  const RunResult again = run_suite(s, o, l);
  CHECK(w.entries_with("run base").empty());
  CHECK(result_of(again, "x").ratio->pairs == 0);
  CHECK(result_of(again, "x").ratio->value == Approx(1.0));
  CHECK_THAT(result_of(again, "x").warnings.at(0), ContainsSubstring("not from interleaved samples"));
}

TEST_CASE("a changed measuring configuration is not resumed from") {
  World w;
  Suite s = make_suite({"A"});
  Listener l;
  RunOptions o = make_options(w);
  o.finished = run_suite(s, o, l).cases;
  s.measure.precision = 0.02;
  w.log.clear();
  run_suite(s, o, l);
  CHECK(w.count("open A") == 1);
}

TEST_CASE("an interrupt keeps what is finished and marks the run") {
  World w;
  Suite s = make_suite({"A", "B", "C"});
  std::atomic<bool> stop{false};
  w["B"].on_run = [&](int64_t call) { stop = call == 5; };
  RunOptions o = make_options(w);
  o.stop = &stop;
  Listener l;
  const RunResult r = run_suite(s, o, l);
  CHECK(r.interrupted);
  REQUIRE(r.cases.size() == 1);
  CHECK(r.cases[0].spec.name == "A");
  CHECK(w.count("open C") == 0);
  CHECK(w.log.back() == "close B");
}

TEST_CASE("an interrupt after the last case is no interruption") {
  World w;
  std::atomic<bool> stop{false};
  RunOptions o = make_options(w);
  o.stop = &stop;
  Listener l;
  l.on_finished = [&](const CaseResult&) { stop = true; };
  const RunResult r = run_suite(make_suite({"A"}), o, l);
  CHECK_FALSE(r.interrupted);
  CHECK(r.cases.size() == 1);
}

TEST_CASE("a failed analysis does not lose the timing") {
  World w;
  Suite s = make_suite({"A"});
  s.analyses = {"entropy", "receptive_field", "spectra"};
  w["A"].on_analyze = [](const std::string& id) {
    if (id == "entropy") throw Unsupported("no rows");
    if (id == "spectra") throw std::bad_alloc();
    AnalysisResult r;
    r.analysis = id;
    return r;
  };
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  const CaseResult& c = r.cases[0];
  CHECK(c.status == CaseStatus::ok);
  CHECK(c.time);
  REQUIRE(c.analyses.size() == 1);
  CHECK(c.analyses[0].analysis == "receptive_field");
  REQUIRE(c.warnings.size() == 2);
  CHECK_THAT(c.warnings[0], ContainsSubstring("analysis 'entropy': no rows"));
  CHECK_THAT(c.warnings[1], ContainsSubstring("analysis 'spectra'"));
}

TEST_CASE("rates above the machine's ceiling are inconsistent and withheld") {
  World w;
  MockProbe probe;
  RunOptions o = make_options(w);
  o.roofline = RunOptions::RooflinePolicy::cached;
  o.roofline_file = "";
  o.probe = &probe;
  // 20 ms at 100 GFLOP/s are 2e9 FLOPs.
  w["below"].accounting.counted = w["below"].accounting.form.cost = flops(1'000'000'000);
  w["at"].accounting.counted = w["at"].accounting.form.cost = flops(2'060'000'000);
  w["above"].accounting.counted = w["above"].accounting.form.cost = flops(2'200'000'000);
  Listener l;
  const RunResult r = run_suite(make_suite({"below", "at", "above"}), o, l);
  CHECK(result_of(r, "below").status == CaseStatus::ok);
  CHECK(result_of(r, "below").bound->percent_of_ceiling == Approx(50));
  CHECK(result_of(r, "below").bound->bound_by == "compute");
  CHECK(result_of(r, "at").status == CaseStatus::ok);  // 3% is measuring error
  const CaseResult& above = result_of(r, "above");
  CHECK(above.status == CaseStatus::inconsistent);
  CHECK_FALSE(above.bound);
  CHECK_THAT(above.reason, ContainsSubstring("110 GFLOP/s") && ContainsSubstring("110% of"));
  CHECK(probe.fma_calls == 2);  // once at the start, once more before accusing
  CHECK(r.roofline.gflops.at("cpu/f32/1") == 100);
  CHECK(r.roofline.gflops.at("cpu/f32/1/gemm") == 90);
}

TEST_CASE("a ceiling that was read too low is measured again instead of accusing") {
  World w;
  class Warming final : public PeakProbe {
   public:
    double fma_gflops(DType, int) override { return calls++ ? 120 : 100; }
    double gemm_gflops(DType, int) override { return 90; }
    double copy_gbytes_per_s(int, int64_t) override { return 10; }
    int calls = 0;
  } probe;
  RunOptions o = make_options(w);
  o.roofline = RunOptions::RooflinePolicy::cached;
  o.roofline_file = "";
  o.probe = &probe;
  w["A"].accounting.counted = w["A"].accounting.form.cost = flops(2'200'000'000);
  Listener l;
  const RunResult r = run_suite(make_suite({"A"}), o, l);
  CHECK(r.cases[0].status == CaseStatus::ok);
  CHECK(r.cases[0].bound->percent_of_ceiling == Approx(100 * 110.0 / 120));
}

TEST_CASE("a machine without ceilings is measured all the same") {
  World w;
  class None final : public PeakProbe {
   public:
    double fma_gflops(DType, int) override { throw Unsupported("no probe here"); }
    double gemm_gflops(DType, int) override { throw Unsupported("no probe here"); }
    double copy_gbytes_per_s(int, int64_t) override { throw Unsupported("no probe here"); }
  } probe;
  RunOptions o = make_options(w);
  o.roofline = RunOptions::RooflinePolicy::cached;
  o.roofline_file = "";
  o.probe = &probe;
  Listener l;
  const RunResult r = run_suite(make_suite({"A"}), o, l);
  CHECK(r.cases[0].status == CaseStatus::ok);
  CHECK_FALSE(r.cases[0].bound);
  REQUIRE(l.warnings.size() == 1);
  CHECK_THAT(l.warnings[0], ContainsSubstring("no probe here"));
}

TEST_CASE("counts that differ from the closed form are told, unless they depend on data") {
  World w;
  w["static"].accounting.counted = w["dynamic"].accounting.counted = flops(100);
  w["static"].accounting.form.cost = w["dynamic"].accounting.form.cost = flops(101);
  w["dynamic"].accounting.form.data_dependent = true;
  Listener l;
  const RunResult r = run_suite(make_suite({"static", "dynamic"}), make_options(w), l);
  CHECK_FALSE(result_of(r, "static").formula_matches);
  REQUIRE(result_of(r, "static").warnings.size() == 1);
  CHECK_THAT(result_of(r, "static").warnings[0], ContainsSubstring("counted 100 + 0 + 0"));
  CHECK(result_of(r, "dynamic").warnings.empty());
}

TEST_CASE("without `time` among the measures nothing is sampled") {
  World w;
  Suite s = make_suite({"A"});
  s.measures = {"flops", "memory", "error"};
  s.analyses = {"entropy"};
  Listener l;
  const RunResult r = run_suite(s, make_options(w), l);
  CHECK(w.entries_with("run ").empty());
  CHECK(r.cases[0].status == CaseStatus::ok);
  CHECK(r.cases[0].verification->passed);
  CHECK(r.cases[0].analyses.size() == 1);
}

TEST_CASE("a case that stays noisy says how far it got") {
  World w;
  w["A"].seconds = [](int64_t call) { return call % 2 ? 0.02 : 0.04; };
  Listener l;
  const RunResult r = run_suite(make_suite({"A"}), make_options(w), l);
  CHECK_FALSE(r.cases[0].time->converged);
  CHECK(r.cases[0].status == CaseStatus::ok);
  REQUIRE(r.cases[0].warnings.size() == 1);
  CHECK_THAT(r.cases[0].warnings[0],
             ContainsSubstring("not converged") && ContainsSubstring("raise max_time"));
}

TEST_CASE("claims are evaluated when all cases are final, and one that throws is not evaluated") {
  World w;
  Suite s = make_suite({"A"});
  Claim good, bad;
  good.id = "good";
  bad.id = "bad";
  s.claims = {good, bad};
  RunOptions o = make_options(w);
  o.evaluate_claim = [](const Claim& c, const RunResult& r) {
    if (c.id == "bad") throw UsageError("no such case");
    ClaimResult x;
    x.claim = c;
    x.measured = static_cast<double>(r.cases.size());
    x.verdict = ClaimResult::Verdict::holds;
    return x;
  };
  Listener l;
  const RunResult r = run_suite(s, o, l);
  REQUIRE(r.claims.size() == 2);
  CHECK(r.claims[0].measured == 1);
  CHECK(r.claims[1].verdict == ClaimResult::Verdict::not_evaluated);
  CHECK(r.claims[1].reason == "no such case");
}

TEST_CASE("options that make no sense are refused") {
  World w;
  RunOptions o = make_options(w);
  o.threads = -1;
  Listener l;
  CHECK_THROWS_AS(run_suite(make_suite({"A"}), o, l), UsageError);
}
