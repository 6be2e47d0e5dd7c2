// Every method, as it is, on a device whose memory the host cannot touch: same outputs, same analyses.
#include <cmath>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"
#include "measure/verify.hpp"
#include "tests/catch.hpp"
#include "tests/device/mock_device.hpp"

using namespace attnbench;

namespace {
/// An instance at its example, run once.
std::unique_ptr<Instance> run_example(Context& ctx, const Method& m) {
  const MethodInfo& info = m.info();
  auto instance =
      m.make(ctx, info.example, resolve_params(info.id, info.params, info.example_params, info.example));
  fill_instance(ctx, *instance, info.example);
  instance->prepare(ctx);
  instance->run(ctx);
  ctx.backend().synchronize();
  return instance;
}
}  // namespace

TEST_CASE("every method says that it runs on devices") {
  for (const Method* m : all_methods()) {
    INFO(m->info().id);
    const auto& b = m->info().backends;
    CHECK(std::find(b.begin(), b.end(), DeviceKind::cuda) != b.end());
  }
}

TEST_CASE("every method passes verification on the device, at all its variations") {
  mock::MockDevice device;
  for (const Method* m : all_methods()) {
    Context ctx(device);
    int passed = 0;
    for (const MethodCheck& c : verify_method(ctx, *m, m->info().example.dtype)) {
      INFO(m->info().id << ", " << c.variation << ": " << c.reason << c.outcome.result.worst);
      CHECK((c.status == CaseStatus::ok || c.status == CaseStatus::unsupported));
      passed += c.status == CaseStatus::ok;
    }
    INFO(m->info().id);
    CHECK(passed >= 1);
  }
  CHECK(device.operators > 0);
}

TEST_CASE("every analysis gives on the device what it gives on the CPU") {
  mock::MockDevice device;
  int compared = 0;
  for (const Method* m : all_methods()) {
    Context here(cpu_backend()), there(device);
    const auto a = run_example(here, *m), b = run_example(there, *m);
    for (const Analysis* analysis : all_analyses()) {
      const AnalysisInfo& info = analysis->info();
      const Params params = resolve_params(info.id, info.params, {}, m->info().example);
      INFO(m->info().id << ", " << info.id);
      AnalysisResult x, y;
      try {
        x = analysis->compute(here, *a, m->info().example, params);
      } catch (const Unsupported&) {
        CHECK_THROWS_AS(analysis->compute(there, *b, m->info().example, params), Unsupported);
        continue;
      }
      y = analysis->compute(there, *b, m->info().example, params);
      REQUIRE(x.scalars.size() == y.scalars.size());
      for (const auto& [key, value] : x.scalars) {
        INFO(key << ": " << value << " and " << y.scalars.at(key));
        // The mock runs the same code on the same values: nothing may differ.
        CHECK((value == y.scalars.at(key) || (std::isnan(value) && std::isnan(y.scalars.at(key)))));
      }
      CHECK(x.notes == y.notes);
      ++compared;
    }
  }
  CHECK(compared > 10);
}

TEST_CASE("a recorded run does what the run did, for every method that says so") {
  mock::MockDevice device;
  int recorded = 0;
  for (const Method* m : all_methods()) {
    INFO(m->info().id);
    Context ctx(device), host(cpu_backend());
    const auto instance = run_example(ctx, *m);
    if (!instance->capturable()) continue;
    ++recorded;
    std::map<std::string, Tensor> want;
    for (const auto& [key, t] : instance->outputs()) want[key] = to_host(host, ctx, t);
    const auto graph = device.capture([&] { instance->run(ctx); });
    poison(ctx, instance->outputs());
    graph->replay(2);
    for (const auto& [key, t] : instance->outputs()) {
      const Tensor got = to_host(host, ctx, t);
      CHECK(std::memcmp(got.raw(), want.at(key).raw(), static_cast<size_t>(got.nbytes())) == 0);
    }
  }
  CHECK(recorded > 10);
}

TEST_CASE("memory that runs out anywhere in a method is OutOfMemory, and enough of it still runs") {
  for (const Method* m : all_methods()) {
    INFO(m->info().id);
    int64_t peak = 0;
    {
      Context ctx(cpu_backend());
      run_example(ctx, *m);
      peak = ctx.memory().peak_total;
    }
    int refused = 0;
    for (int part = 0; part < 24; ++part) {
      Context ctx(cpu_backend());
      ctx.set_memory_limit(std::max<int64_t>(1, peak * part / 24));
      try {
        run_example(ctx, *m);
      } catch (const OutOfMemory&) {
        ++refused;
      }
      CHECK(ctx.memory().current_total == 0);
    }
    CHECK(refused == 24);
    Context ctx(cpu_backend());
    ctx.set_memory_limit(peak);
    CHECK_NOTHROW(run_example(ctx, *m));
  }
}

TEST_CASE("strided tensors come to the host packed") {
  mock::MockDevice device;
  Context ctx(device), host(cpu_backend());
  std::vector<float> values(24);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Tensor t = to_device(ctx, Tensor::borrow(DeviceKind::cpu, DType::f32, {2, 3, 4}, values.data()),
                             DType::f32, MemoryClass::input, "t");
  const Tensor h = to_host(host, ctx, t.transpose(0, 2));
  REQUIRE(h.shape() == Shape{4, 3, 2});
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 3; ++j)
      for (int64_t k = 0; k < 2; ++k) CHECK(h.data<float>()[(i * 3 + j) * 2 + k] == (k * 3 + j) * 4 + i);
}
