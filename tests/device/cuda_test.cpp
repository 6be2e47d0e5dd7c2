// The real device, through the program's own machinery: every method verified, recorded, timed and told
// about; what the mock device promises in measure_test.cpp and methods_test.cpp. Without a device: says why
// and stops.
#include <cstdio>
#include <cstring>

#include "inputs/inputs.hpp"
#include "measure/executor.hpp"
#include "measure/roofline.hpp"
#include "measure/runner.hpp"
#include "measure/verify.hpp"
#include "tests/catch.hpp"
#include "tests/cuda_device.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;

namespace {

Case case_of(const char* method, DType dtype = DType::f32) {
  Case c;
  c.name = c.base_name = method;
  c.method = method;
  c.device = "cuda";
  c.problem = find_method(method).info().example;
  c.problem.dtype = dtype;
  return c;
}

}  // namespace

TEST_CASE("every method passes verification on the GPU, at all its variations and in every type") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  for (const Method* m : all_methods())
    for (const DType dtype : m->info().dtypes) {
      Context ctx(*backend);
      int passed = 0;
      for (const MethodCheck& c : verify_method(ctx, *m, dtype)) {
        INFO(m->info().id << " " << name(dtype) << ", " << c.variation << ", " << c.problem.str() << ": "
                          << c.reason << c.outcome.result.worst);
        CHECK((c.status == CaseStatus::ok || c.status == CaseStatus::unsupported));
        passed += c.status == CaseStatus::ok;
      }
      INFO(m->info().id << " " << name(dtype));
      CHECK(passed >= 1);
    }
}

TEST_CASE("a graph of a run on the GPU does what the run did, for every method that says so") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  for (const Method* m : all_methods()) {
    INFO(m->info().id);
    Context ctx(*backend), host(cpu_backend());
    const Problem& p = m->info().example;
    const auto instance =
        m->make(ctx, p, resolve_params(m->info().id, m->info().params, m->info().example_params, p));
    fill_instance(ctx, *instance, p);
    instance->prepare(ctx);
    instance->run(ctx);
    if (!instance->capturable()) continue;
    // As when measuring: a method may keep a tensor of its last run, so the second run is the first that
    // allocates nothing.
    instance->run(ctx);
    std::map<std::string, Tensor> want;
    for (const auto& [key, t] : instance->outputs()) want[key] = to_host(host, ctx, t);
    std::unique_ptr<DeviceGraph> graph;
    try {
      graph = backend->capture([&] { instance->run(ctx); });
    } catch (const std::exception& e) {
      FAIL_CHECK(e.what());
      continue;
    }
    poison(ctx, instance->outputs());
    graph->replay(2);
    backend->synchronize();
    for (const auto& [key, t] : instance->outputs()) {
      const Tensor got = to_host(host, ctx, t);
      INFO(key);
      // The same kernels on the same values: what differs here would differ from run to run.
      CHECK(std::memcmp(got.raw(), want.at(key).raw(), static_cast<size_t>(got.nbytes())) == 0);
    }
  }
}

TEST_CASE("a suite on the GPU: graphs, cold caches, long loops, memory, ceilings; too large is skipped") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Suite s;
  s.name = "device";
  s.resolved_text = "suite: device";
  s.measure.max_time_s = 0.3;
  s.measures = {"time", "flops", "memory", "error"};
  s.cases = {case_of("dense", DType::bf16), case_of("naive", DType::bf16), case_of("linear")};
  s.cases[0].problem.length = s.cases[1].problem.length = 1000;
  // More than any card has: skipped by its estimate.
  s.cases[2].name = s.cases[2].base_name = "large";
  s.cases[2].problem.length = int64_t{1} << 31;
  s.baseline = "naive";
  RunOptions o;
  o.roofline_file = "";
  mock::Listener l;
  const RunResult r = run_suite(s, o, l);
  for (const std::string& w : l.warnings) UNSCOPED_INFO(w);
  const CaseResult& large = mock::result_of(r, "large");
  INFO(large.reason);
  CHECK(large.status == CaseStatus::skipped);
  CHECK_THAT(large.reason, ContainsSubstring("may be used"));
  for (const char* which : {"dense", "naive"}) {
    const CaseResult& c = mock::result_of(r, which);
    INFO(which << ": " << c.reason);
    for (const std::string& w : c.warnings) UNSCOPED_INFO(w);
    CHECK(c.status == CaseStatus::ok);
    REQUIRE(c.time);
    CHECK(c.time->submission == "graph");
    CHECK(c.time->median_s > 1e-6);
    CHECK(c.time->median_s < 0.1);
    CHECK(c.formula_matches);
    REQUIRE(c.memory);
    CHECK(c.memory->device_peak >= 0);
    CHECK(c.memory->total_peak > 0);
    REQUIRE(c.sustained);
    CHECK(c.sustained->loop_s >= 0.5);
    CHECK(c.sustained->sustained_s > 0);
    CHECK((c.sustained->state.contains("throttle") || c.sustained->state.contains("why")));
    REQUIRE(c.bound);
    CHECK(c.bound->percent_of_ceiling > 0);
    CHECK(c.bound->percent_of_ceiling <= 105);
  }
  REQUIRE(mock::result_of(r, "dense").ratio);
  CHECK(mock::result_of(r, "dense").ratio->pairs >= 10);
}

TEST_CASE("memory that runs out within a case gives it back, and the next one runs") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  const int64_t before = backend->memory_info().free;
  {
    Context ctx(*backend);
    std::vector<Tensor> all;
    bool refused = false;
    for (int i = 0; i < 4096 && !refused; ++i) {
      try {
        all.push_back(ctx.allocate(DType::u8, {int64_t{1} << 30}));
      } catch (const OutOfMemory&) {
        refused = true;
      }
    }
    CHECK(refused);
    // The refusal is not sticky.
    all.pop_back();
    CHECK_NOTHROW(all.push_back(ctx.allocate(DType::u8, {1 << 20})));
    CHECK_NOTHROW(backend->synchronize());
  }
  CHECK(backend->memory_info().free >= before - (int64_t{64} << 20));
  Context ctx(*backend);
  for (const MethodCheck& c : verify_method(ctx, find_method("dense"), DType::f32)) {
    INFO(c.variation << ": " << c.reason);
    CHECK((c.status == CaseStatus::ok || c.status == CaseStatus::unsupported));
  }
}

TEST_CASE("the card's ceilings are those of a card, and its sensors answer") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  const auto probe = device_peak_probe(*backend);
  const int64_t large = probe->memory_copy_bytes();
  const double copy = probe->copy_gbytes_per_s(0, large), read = probe->read_gbytes_per_s(0, large);
  const double fma = probe->fma_gflops(DType::f32, 0), product = probe->gemm_gflops(DType::bf16, 0);
  std::printf("copy %.0f GB/s, read %.0f GB/s, f32 %.0f GFLOP/s, bf16 product %.0f GFLOP/s\n", copy, read,
              fma, product);
  // Every card since sm_80 that these kernels are built for: 200 GB/s to 10 TB/s.
  CHECK(copy > 200);
  CHECK(copy < 10000);
  CHECK(read > 0.8 * copy);
  CHECK(product > fma);
  const int64_t cache = probe->level_capacity("l2", 0);
  if (cache > 0) CHECK(probe->copy_gbytes_per_s(0, cache / 4) > copy);
  const DeviceState state = backend->read_state();
  std::printf("%s\n", state.why.empty() ? "sensors read" : state.why.c_str());
  if (state.why.empty()) {
    REQUIRE(state.sm_clock_mhz);
    CHECK(*state.sm_clock_mhz > 100);
    CHECK(*state.sm_clock_mhz < 5000);
  }
}

TEST_CASE("cold samples are slower than hot ones where the data fits the cache") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  SteadyClock clock;
  // 8 MiB of norm: in cache after the first run.
  Case c = case_of("norm");
  c.problem.length = 2048, c.problem.channels = 512;
  const auto e = make_executor(c, {&clock, 1, "", backend});
  e->open(0);
  e->account();
  const auto best = [&](bool cold) {
    double s = 1;
    for (int i = 0; i < 30; ++i) {
      if (cold) e->flush_caches();
      s = std::min(s, e->run(1));
    }
    return s;
  };
  best(false);
  // Somebody else on the card can spoil a comparison, not five of them.
  bool colder = false;
  for (int attempt = 0; attempt < 5 && !colder; ++attempt) {
    const double hot = best(false), cold = best(true);
    std::printf("norm of 8 MiB: hot %.2f us, cold %.2f us\n", 1e6 * hot, 1e6 * cold);
    colder = cold > hot;
  }
  CHECK(colder);
  e->close();
}
