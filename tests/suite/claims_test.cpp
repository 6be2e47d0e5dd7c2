#include "suite/claims.hpp"

#include <cmath>

#include "tests/catch.hpp"

using namespace attnbench;
using Verdict = ClaimResult::Verdict;

namespace {

CaseResult result(const std::string& name, double median, double low, double high) {
  CaseResult r;
  r.spec.name = r.spec.base_name = name;
  r.spec.device = "cpu";
  r.spec.problem.batch = 64;
  Timing t;
  t.median_s = median;
  t.ci_low_s = low;
  t.ci_high_s = high;
  r.time = t;
  return r;
}

RunResult run() {
  RunResult r;
  CaseResult hilo = result("hilo", 0.100, 0.098, 0.102);
  hilo.published_macs = 298296320;
  hilo.parameters = 2198528;
  hilo.formula.matmul = 1000;
  hilo.formula.elementwise = 200;
  hilo.formula.special = 30;
  hilo.counted.matmul = 1001;
  hilo.memory = MemoryBytes{1, 2, 3, 400, 5000, 6};
  hilo.verification = Verification{"own shape", true, 1e-5, {{"out", 3e-7}, {"lse", 5e-7}}, ""};
  Bound b;
  b.gflops = 150;
  b.percent_of_ceiling = 70;
  hilo.bound = b;
  hilo.analyses.push_back({"entropy", {{"mean", 2.5}}, {{"curve", {4, 5, 6}}}, {}});
  hilo.stages = {{"select", 0.01, {}}, {"attend", 0.07, {}}, {"out", 0.02, {}}};
  CaseResult sra = result("sra", 0.145, 0.144, 0.147);
  sra.ratio = Ratio{"hilo", 0.69, 0.68, 0.70, 50};  // paired: not 0.100 / 0.145
  CaseResult window = result("window", 0.2, 0.19, 0.21);
  CaseResult bad = result("bad", 1, 1, 1);
  bad.status = CaseStatus::failed;
  bad.reason = "verification failed";
  bad.published_macs = 77;
  CaseResult gone = result("gone", 0, 0, 0);
  gone.status = CaseStatus::unsupported;
  gone.reason = "no causal mode";
  gone.time.reset();
  r.cases = {hilo, sra, window, bad, gone};
  r.environment.values["threads"] = 2;
  r.roofline.gflops = {{"cpu/f32/1/gemm", 110}, {"cpu/f32/2/gemm", 200}, {"cpu/f32/2", 214}};
  return r;
}

Claim claim(const std::string& expression, const std::string& published, double tolerance) {
  Claim c;
  c.id = "c";
  c.expression = expression;
  c.published = std::stod(published);
  c.published_text = published;
  c.tolerance = tolerance;
  return c;
}

ClaimResult evaluate(const std::string& expression, const std::string& published = "1",
                     double tolerance = 0.1) {
  return evaluate_claim(claim(expression, published, tolerance), run());
}

}  // namespace

TEST_CASE("half of the last published digit") {
  CHECK(half_last_digit("298.30") == Approx(0.005));
  CHECK(half_last_digit("298.3") == Approx(0.05));
  CHECK(half_last_digit("64") == Approx(0.5));
  CHECK(half_last_digit("-0.125") == Approx(0.0005));
  CHECK(half_last_digit("1.2e3") == Approx(50));
  CHECK(half_last_digit("5e-4") == Approx(5e-5));
}

TEST_CASE("every figure of a case") {
  const auto value = [](const std::string& e) {
    const ClaimResult r = evaluate(e);
    INFO(e << ": " << r.reason);
    CHECK(r.verdict != Verdict::not_evaluated);
    return r.measured;
  };
  CHECK(value("time(hilo)") == 0.1);
  CHECK(value("throughput(hilo)") == Approx(640));
  CHECK(value("macs(hilo)") == 298296320);
  CHECK(value("flops(hilo)") == 1230);
  CHECK(value("matmul_flops(hilo)") == 1000);
  CHECK(value("counted_flops(hilo)") == 1001);
  CHECK(value("params(hilo)") == 2198528);
  CHECK(value("params(window)") == 0);
  CHECK(value("memory(hilo)") == 5000);
  CHECK(value("workspace(hilo)") == 400);
  CHECK(value("error(hilo)") == 5e-7);
  CHECK(value("gflops(hilo)") == 150);
  CHECK(value("percent_of_ceiling(hilo)") == 70);
  CHECK(value("percent_of_gemm(hilo)") == Approx(100 * 150.0 / 200));
  CHECK(value("scalar(hilo, \"entropy.mean\")") == 2.5);
  CHECK(value("scalar(hilo, \"entropy.curve[1]\")") == 4);
  CHECK(value("scalar(hilo, \"entropy.curve[3]\")") == 6);
  CHECK(value("stage_time(hilo, \"attend\")") == 0.07);
  CHECK(value("stage_share(hilo, \"select\") + stage_share(hilo, \"out\")") == Approx(30));
  CHECK(evaluate("stage_time(hilo, \"rotate\")").reason ==
        "case 'hilo' has no stage 'rotate'; it has select, attend, out");
  CHECK(evaluate("stage_share(window, \"select\")").reason ==
        "case 'window' has no stage 'select', nor any other");
  CHECK(value("macs(bad)") == 77);  // a closed form needs no measurement
  CHECK(value("-log(2) * 2 + 3 - abs(-1) / 4") == Approx(3 - 2 * std::log(2) - 0.25));
  CHECK(value("min(time(hilo), 5, 2) + max(1, 2)") == Approx(2.1));
}

TEST_CASE("the share of the product's rate is that of the case's device, dtype and threads") {
  RunResult r = run();
  const auto evaluated = [&] { return evaluate_claim(claim("percent_of_gemm(hilo)", "1", 0.1), r); };
  r.environment.values["threads"] = 1;
  CHECK(evaluated().measured == Approx(100 * 150.0 / 110));
  r.cases[0].spec.problem.dtype = DType::bf16;
  CHECK(evaluated().reason == "this run has no product rate of cpu/bf16 (ceiling cpu/bf16/1/gemm)");
  r.roofline.gflops["cpu/bf16/1/gemm"] = 300;
  CHECK(evaluated().measured == Approx(50));
  // Devices have no thread count in their keys.
  r.cases[0].spec.device = "cuda";
  r.roofline.gflops["cuda/bf16/gemm"] = 600000;
  CHECK(evaluated().measured == Approx(0.025));
  r.cases[0].bound.reset();
  CHECK(evaluated().reason == "case 'hilo' has no rate");
}

TEST_CASE("exact claims are about the published digits") {
  CHECK(evaluate("macs(hilo) / 1e6", "298.30", 0).verdict == Verdict::exact);
  CHECK(evaluate("macs(hilo) / 1e6", "298.3", 0).verdict == Verdict::exact);
  CHECK(evaluate("macs(hilo) / 1e6", "298", 0).verdict == Verdict::exact);
  CHECK(evaluate("macs(hilo) / 1e6", "298.296", 0).verdict == Verdict::exact);
  CHECK(evaluate("macs(hilo) / 1e6", "298.297", 0).verdict == Verdict::outside);
  CHECK(evaluate("macs(hilo) / 1e6", "298.31", 0).verdict == Verdict::outside);
  CHECK(evaluate("macs(hilo) / 1e6", "298.29", 0).verdict == Verdict::outside);
  CHECK(evaluate("params(hilo) / 1e6", "2.20", 0).verdict == Verdict::exact);
  CHECK(evaluate("params(hilo)", "2198528", 0).verdict == Verdict::exact);
  CHECK(evaluate("params(hilo)", "2198527", 0).verdict == Verdict::outside);
  CHECK(evaluate("0.125", "0.13", 0).verdict == Verdict::exact);  // the half digit itself counts
}

TEST_CASE("tolerances and sides") {
  CHECK(evaluate("time(window) / 0.1", "2.2", 0.10).verdict == Verdict::holds);
  CHECK(evaluate("time(window) / 0.1", "2.2", 0.05).verdict == Verdict::outside);
  CHECK(evaluate("time(window) / 0.1", "1.8", 0.10).verdict == Verdict::outside);
  Claim c = claim("time(window) / 0.1", "1.8", 0.05);
  c.compare = "at_least";
  CHECK(evaluate_claim(c, run()).verdict == Verdict::holds);
  c.compare = "at_most";
  CHECK(evaluate_claim(c, run()).verdict == Verdict::outside);
  c = claim("time(window) / 0.1", "2.2", 0.05);
  c.compare = "at_most";
  CHECK(evaluate_claim(c, run()).verdict == Verdict::holds);
  c.compare = "at_least";
  CHECK(evaluate_claim(c, run()).verdict == Verdict::outside);
  c.tolerance = 0.10;
  CHECK(evaluate_claim(c, run()).verdict == Verdict::holds);
  // Tolerance 0 on one side: better than published holds, equal digits are exact.
  c = claim("time(window) / 0.1", "1.8", 0);
  c.compare = "at_least";
  CHECK(evaluate_claim(c, run()).verdict == Verdict::holds);
  CHECK(evaluate("-time(window)", "-0.2", 0.1).verdict ==
        Verdict::holds);  // negative figures have a band too
}

TEST_CASE("ratios of times use the paired samples") {
  const ClaimResult paired = evaluate("time(hilo) / time(sra)", "0.69");
  CHECK(paired.measured == 0.69);
  CHECK(paired.ci_low == 0.68);
  CHECK(paired.ci_high == 0.70);
  const ClaimResult inverse = evaluate("time(sra) / time(hilo)", "1.449", 0.15);
  CHECK(inverse.measured == Approx(1 / 0.69));
  CHECK(inverse.ci_low == Approx(1 / 0.70));
  CHECK(inverse.ci_high == Approx(1 / 0.68));
  CHECK(inverse.verdict == Verdict::holds);
  CHECK(evaluate("throughput(hilo) / throughput(sra)").measured == Approx(1 / 0.69));
  CHECK(evaluate("2 * (time(hilo) / time(sra))").measured == Approx(1.38));

  SECTION("without pairs the intervals combine, as wide as they allow") {
    const ClaimResult r = evaluate("time(window) / time(hilo)");
    CHECK(r.measured == Approx(2.0));
    CHECK(r.ci_low == Approx(0.19 / 0.102));
    CHECK(r.ci_high == Approx(0.21 / 0.098));
  }
  SECTION("throughputs at different batch sizes are no ratio of times") {
    RunResult r = run();
    r.cases[0].spec.problem.batch = 32;
    const ClaimResult c = evaluate_claim(claim("throughput(hilo) / throughput(sra)", "1", 0.1), r);
    CHECK(c.measured == Approx((32 / 0.100) / (64 / 0.145)));
  }
  SECTION("a ratio without pairs is not used") {
    RunResult r = run();
    r.cases[1].ratio->pairs = 0;
    CHECK(evaluate_claim(claim("time(sra) / time(hilo)", "1", 0.1), r).measured == Approx(1.45));
  }
}

TEST_CASE("intervals of arithmetic contain what they must") {
  const ClaimResult d = evaluate("time(hilo) - time(window)");
  CHECK(d.ci_low == Approx(0.098 - 0.21));
  CHECK(d.ci_high == Approx(0.102 - 0.19));
  const ClaimResult m = evaluate("time(hilo) * (0 - time(window))");
  CHECK(m.ci_low == Approx(-0.102 * 0.21));
  CHECK(m.ci_high == Approx(-0.098 * 0.19));
  const ClaimResult t = evaluate("throughput(window)");
  CHECK(t.ci_low == Approx(64 / 0.21));
  CHECK(t.ci_high == Approx(64 / 0.19));
}

TEST_CASE("axes pick among cases") {
  RunResult r = run();
  for (const int batch : {1, 64}) {
    CaseResult c = result("x", batch * 0.01, batch * 0.01, batch * 0.01);
    c.spec.name = "x/batch=" + std::to_string(batch);
    c.spec.axes["problem.batch"] = batch;
    r.cases.push_back(c);
  }
  const auto value = [&r](Claim c) { return evaluate_claim(c, r); };
  CHECK(value(claim("time(x[batch=64])", "1", 0.1)).measured == Approx(0.64));
  CHECK(value(claim("time(x[problem.batch=1])", "1", 0.1)).measured == Approx(0.01));
  CHECK(value(claim("time(x/batch=64)", "1", 0.1)).measured == Approx(0.64));
  CHECK(value(claim("time(x[batch=64]) / time(x[batch=1])", "1", 0.1)).measured == Approx(64));
  Claim c =
      claim("time(x) / time(hilo)", "1", 0.1);  // hilo has no such axis: the binding does not concern it
  c.axes["batch"] = 64;
  CHECK(value(c).measured == Approx(6.4));
  c.expression = "time(x[batch=1])";  // the reference's own binding goes first
  CHECK(value(c).measured == Approx(0.01));
  const ClaimResult ambiguous = value(claim("time(x)", "1", 0.1));
  CHECK(ambiguous.verdict == Verdict::not_evaluated);
  CHECK_THAT(ambiguous.reason, ContainsSubstring("may be 'x/batch=1' or 'x/batch=64'"));
  CHECK_THAT(value(claim("time(x[batch=2])", "1", 0.1)).reason, ContainsSubstring("not part of this run"));
}

TEST_CASE("devices") {
  RunResult r = run();
  CaseResult gpu = result("hilo", 0.01, 0.01, 0.01);
  gpu.spec.name = "hilo@cuda";
  gpu.spec.device = "cuda";
  r.cases.push_back(gpu);
  Claim c = claim("time(hilo)", "1", 0.1);
  CHECK(evaluate_claim(c, r).measured == 0.1);  // the first device of the run
  c.device = "cuda";
  CHECK(evaluate_claim(c, r).measured == 0.01);
  c.expression = "time(sra) / time(hilo)";
  CHECK(evaluate_claim(c, r).verdict == Verdict::not_evaluated);
  CHECK(evaluate_claim(c, r).reason == "case 'sra' did not run on cuda");
}

TEST_CASE("a claim that is left out says why, even where its cases were measured") {
  Claim c = claim("params(hilo)", "2198528", 0);
  CHECK(evaluate_claim(c, run()).verdict == Verdict::exact);
  c.left_out = "left out by --quick";
  CHECK(evaluate_claim(c, run()).verdict == Verdict::not_evaluated);
  CHECK(evaluate_claim(c, run()).reason == "left out by --quick");
}

TEST_CASE("what cannot be evaluated says why") {
  const auto reason = [](const std::string& e) {
    const ClaimResult r = evaluate(e);
    CHECK(r.verdict == Verdict::not_evaluated);
    return r.reason;
  };
  CHECK(reason("time(nobody)") == "case 'nobody' is not part of this run");
  CHECK(reason("time(hilo) / time(bad)") == "case 'bad' is failed: verification failed");
  CHECK(reason("time(gone)") == "case 'gone' is unsupported: no causal mode");
  CHECK(reason("macs(gone)") == "case 'gone' is unsupported: no causal mode");
  CHECK_THAT(reason("macs(window)"), ContainsSubstring("has no MAC count"));
  CHECK_THAT(reason("memory(window)"), ContainsSubstring("was not measured"));
  CHECK_THAT(reason("error(window)"), ContainsSubstring("no verification"));
  CHECK_THAT(reason("gflops(window)"), ContainsSubstring("has no rate"));
  CHECK_THAT(reason("scalar(hilo, \"entropy.max\")"), ContainsSubstring("has no figure 'entropy.max'"));
  CHECK_THAT(reason("scalar(window, \"entropy.mean\")"), ContainsSubstring("has no figure"));
  CHECK_THAT(reason("scalar(hilo, \"entropy.curve[4]\")"), ContainsSubstring("has the values 1 to 3"));
  CHECK_THAT(reason("scalar(hilo, \"entropy.curve\")"), ContainsSubstring("has no figure"));
  CHECK_THAT(reason("1 / (time(hilo) - 0.1)"), ContainsSubstring("division by zero"));
  CHECK_THAT(reason("log(0 - time(hilo))"), ContainsSubstring("the logarithm"));
  CHECK_THAT(reason("time(hilo) == 1"), ContainsSubstring("no meaning"));
  CHECK_THAT(reason("time("), ContainsSubstring("the name of a case"));
  RunResult r = run();
  r.cases[0].time.reset();
  CHECK(evaluate_claim(claim("time(hilo)", "1", 0.1), r).reason == "case 'hilo' was not timed");
}
