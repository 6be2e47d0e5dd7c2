// A results structure with every member set to something of its own, for the tests of every output.
#pragma once
#include <cmath>

#include "measure/results.hpp"

namespace attnbench {

inline Case sample_case(const std::string& name) {
  Case c;
  c.name = name;
  c.base_name = "hilo";
  c.axes = {{"problem.batch", 64}};
  c.method = "hilo";
  c.params = {{"alpha", 0.9}, {"window_size", 2}, {"grid", Value::List{1, 2.0, Value::List{true, Value()}}}};
  c.problem.kind = ProblemKind::image;
  c.problem.batch = 64;
  c.problem.causal = true;
  c.problem.dtype = DType::bf16;
  c.problem.heads = 12;
  c.problem.kv_heads = 6;
  c.problem.head_dim = 64;
  c.problem.kv_length = 99;
  c.problem.channels = 768;
  c.problem.grid = {14, 14};
  c.problem.size = {224, 225};
  c.problem.samples = 5;
  c.problem.sample_rate = 44100.5;
  c.problem.seed = 0xfffffffffffffff1ull;  // above what int64 holds
  c.problem.inputs.generator = "local_decay";
  c.problem.inputs.arguments = {{"rate", 0.1}, {"word", "x"}};
  c.problem.inputs.file = "in.safetensors";
  c.device = "cpu";
  c.place = {"suites/a.yaml", 12, 5};
  return c;
}

inline CaseResult sample_case_result(const std::string& name) {
  CaseResult r;
  r.spec = sample_case(name);
  r.id = "id-" + name;
  r.params = {{"alpha", 0.9}, {"whole", 1.0}, {"window_size", 2}, {"none", Value()}, {"word", "a"}};
  r.verification = Verification{"own shape", true, 2e-2, {{"out", 1.0 / 3.0}}, ""};
  // The last digits must survive: 0.1 + 0.2, the smallest subnormal, the largest double, a negative zero.
  Timing t{0.1 + 0.2, 0.1,  0.7, 5e-324, 1.7976931348623157e308, -0.0, 1e-9,
           2.5,       1234, 8,   true,   {0.25, 1e-17}, "graph"};
  r.time = t;
  r.sustained = Sustained{0.5, 0.625, 1.25, {{"sm_clock_last_mhz", 1755}, {"throttle", "power cap"}}};
  r.decisions = {{"impl", "cudnn", "engine 1.2 ms, cudnn 1.1 ms"}};
  r.prepare_s = 0.125;
  r.elapsed_s = {{"open", 1.5}, {"verify", 0.25}};
  r.stages = {{"select", 0.01, {1, 2, 3, 4, 5}}, {"attend", 0.02, {6, 7, 8, 9, 10}}};
  r.counted = {INT64_MAX - 100, 1, 2, 3, 4};
  r.formula = {9, 8, 7, 6, 5};
  r.formula_matches = true;
  r.published_macs = 298303488;
  r.parameters = 77;
  r.memory = MemoryBytes{1, 2, 3, 4, 5, 6, 7};
  r.bound = Bound{150.5, 20.25, 7.5, "compute", 64.5};
  r.ratio = Ratio{"sra", 1.449, 1.4, 1.5, 40};
  r.analyses = {{"entropy", {{"mean_nats", 2.5}}, {{"per_head", {1.0, 2.0}}}, {{"source", "row_stats"}}}};
  r.warnings = {"the clock moved"};
  return r;
}

inline RunResult sample_run() {
  RunResult run;
  run.suite.name = "hilo_cpu";
  run.suite.title = "HiLo against others";
  run.suite.file = "suites/a.yaml";
  run.suite.measure = {0.02, 5.0, 11, 500, 0.002, "cold", 2, true};
  run.suite.measures = {"time", "flops"};
  run.suite.analyses = {"entropy"};
  run.suite.analysis_params = {{"entropy", {{"rows", 5}}}};
  run.suite.baseline = "sra";
  run.suite.cases = {sample_case("hilo"), sample_case("never/measured")};
  Claim claim;
  claim.id = "hilo-vs-sra";
  claim.expression = "time(sra) / time(hilo)";
  claim.published = 1.45;
  claim.published_text = "1.450";
  claim.tolerance = 0.15;
  claim.compare = "at_least";
  claim.where = "Table 1";
  claim.device = "cpu";
  claim.note = "a note";
  claim.left_out = "left out by --quick";
  claim.place = {"a.yaml", 3, 1};
  claim.axes = {{"problem.batch", 64}};
  run.suite.claims = {claim};
  run.suite.resolved_text = "suite: hilo_cpu\n";
  run.suite_hash = "abc";
  run.environment.machine_id = "m1";
  run.environment.values = {{"cpu_model", "EPYC"}, {"cores", 2}, {"load", 0.5}, {"aslr", true}};
  run.roofline = {{{"cpu/f32/2", 233.0}}, {{"cpu/2", 22.6}}, "2026-01-01T00:00:00Z", true};
  run.started_at = "2026-01-01T00:00:00Z";
  run.finished_at = "2026-01-01T00:01:00Z";
  run.cases = {sample_case_result("hilo"), sample_case_result("hilo/batch=64")};
  CaseResult no;
  no.spec = sample_case("sra");
  no.id = "id-sra";
  no.status = CaseStatus::unsupported;
  no.reason = "method 'sra' does not run in bf16";
  run.cases.push_back(no);
  ClaimResult held{claim, ClaimResult::Verdict::holds, 1.5, 1.4, 1.6, ""};
  ClaimResult unknown{claim, ClaimResult::Verdict::not_evaluated, 0, 0, 0, "case 'sra' was not measured"};
  run.claims = {held, unknown};
  run.interrupted = true;
  return run;
}

}  // namespace attnbench
