#include "measure/roofline.hpp"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/catch.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;
using attnbench::mock::MockProbe;

namespace {
struct Folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("attnbench-roofline-" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file() const { return (path / "sub" / "roofline.json").string(); }
};
constexpr int64_t kHuge = int64_t{4} << 30;  // more than any cache
}  // namespace

TEST_CASE("ceilings are measured once and kept") {
  Folder f;
  MockProbe probe;
  {
    Ceilings c(probe, f.file());
    CHECK(c.fma_gflops(DType::f32, 2) == 100);
    CHECK(c.fma_gflops(DType::f32, 2) == 100);
    CHECK(c.gbytes_per_s(2, "") == 10);
    CHECK(probe.fma_calls == 1);
    CHECK(probe.copy_calls == 1);
    CHECK_FALSE(c.roofline().from_cache);
  }
  Ceilings again(probe, f.file());
  CHECK(again.roofline().from_cache);
  CHECK(again.fma_gflops(DType::f32, 2) == 100);
  CHECK(again.gbytes_per_s(2, "") == 10);
  CHECK(probe.fma_calls == 1);
  CHECK(probe.copy_calls == 1);
  // Other threads are another ceiling.
  again.fma_gflops(DType::f32, 1);
  CHECK(probe.fma_calls == 2);
  CHECK(again.take_warnings().empty());
}

TEST_CASE("types without their own instructions carry the f32 ceiling") {
  MockProbe probe;
  Ceilings c(probe, "");
  CHECK(c.fma_gflops(DType::f16, 1) == 100);
  CHECK(c.fma_gflops(DType::bf16, 1) == 200);
}

TEST_CASE("a damaged cache is ignored with a warning, and replaced") {
  const std::string damage =
      GENERATE(as<std::string>{}, "", "{", "[]", "{\"format\": 99}",
               "{\"format\": 1, \"gflops\": {\"cpu/f32/2\": -5}}",
               "{\"format\":1,\"gflops\":{\"cpu/f32/2\":\"fast\"},\"gbytes_per_s\":{},\"measured_at\":\"\"}",
               "{\"format\":1,\"gflops\":{\"cpu/f32/2\":0},\"gbytes_per_s\":{},\"measured_at\":\"\"}");
  Folder f;
  std::filesystem::create_directories(f.path / "sub");
  std::ofstream(f.file()) << damage;
  MockProbe probe;
  Ceilings c(probe, f.file());
  const std::vector<std::string> warnings = c.take_warnings();
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring(f.file()) && ContainsSubstring("measured again"));
  CHECK(c.fma_gflops(DType::f32, 2) == 100);
  CHECK(probe.fma_calls == 1);
  Ceilings again(probe, f.file());
  CHECK(again.take_warnings().empty());
  CHECK(again.roofline().from_cache);
}

TEST_CASE("a place that cannot be written costs a warning, not the run") {
  Folder f;
  std::ofstream(f.path / "sub") << "a file where a folder should be";
  MockProbe probe;
  Ceilings c(probe, f.file());
  CHECK(c.fma_gflops(DType::f32, 2) == 100);
  CHECK(c.gbytes_per_s(2, "") == 10);
  const std::vector<std::string> warnings = c.take_warnings();
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("could not be kept"));
}

TEST_CASE("remeasuring never lowers a ceiling") {
  MockProbe probe;
  Ceilings c(probe, "");
  c.fma_gflops(DType::f32, 1);
  probe.fma = 80;
  c.remeasure_compute(DType::f32, 1);
  CHECK(c.fma_gflops(DType::f32, 1) == 100);
  probe.fma = 130;
  c.remeasure_compute(DType::f32, 1);
  CHECK(c.fma_gflops(DType::f32, 1) == 130);
  c.measure_all({DType::f32}, 1);
  CHECK(c.roofline().gflops.at("cpu/f32/1/gemm") == 90);
}

TEST_CASE("a result is bound by the ceiling that it is nearest to") {
  MockProbe probe;
  Ceilings c(probe, "");
  const Cost work{50'000'000'000, 0, 0, 2'000'000'000, 2'000'000'000};
  // In one second: 50 of 100 GFLOP/s, 4 of 10 GB/s.
  const BoundOutcome compute = place_under_ceilings(c, work, 1.0, DType::f32, 1, kHuge);
  CHECK(compute.inconsistent.empty());
  CHECK(compute.bound.bound_by == "compute");
  CHECK(compute.bound.percent_of_ceiling == Approx(50));
  CHECK(compute.bound.gflops == Approx(50));
  CHECK(compute.bound.gbytes_per_s == Approx(4));
  CHECK(compute.bound.intensity == Approx(12.5));
  const Cost traffic{1'000'000'000, 0, 0, 4'000'000'000, 4'000'000'000};
  const BoundOutcome memory = place_under_ceilings(c, traffic, 1.0, DType::f32, 1, kHuge);
  CHECK(memory.bound.bound_by == "memory");
  CHECK(memory.bound.percent_of_ceiling == Approx(80));
}

TEST_CASE("traffic above the memory's rate came from a cache; above every cache it is wrong") {
  MockProbe probe;
  Ceilings c(probe, "");
  const Cost traffic{0, 1000, 0, 25'000'000'000, 25'000'000'000};
  const BoundOutcome cached = place_under_ceilings(c, traffic, 1.0, DType::f32, 1, kHuge);
  CHECK(cached.inconsistent.empty());
  CHECK(cached.bound.percent_of_ceiling == Approx(50));
  const int calls = probe.copy_calls;
  const BoundOutcome wrong = place_under_ceilings(c, traffic, 0.1, DType::f32, 1, kHuge);
  CHECK_THAT(wrong.inconsistent, ContainsSubstring("500 GB/s"));
  CHECK(probe.copy_calls > calls);  // measured again before accusing
  // What fits the first cache is judged by it.
  const BoundOutcome small = place_under_ceilings(c, traffic, 1.0, DType::f32, 1, 4096);
  CHECK(small.bound.percent_of_ceiling == Approx(50));
}

TEST_CASE("no time at all is inconsistent") {
  MockProbe probe;
  Ceilings c(probe, "");
  CHECK_FALSE(place_under_ceilings(c, Cost{1, 0, 0, 1, 1}, 0.0, DType::f32, 1, 10).inconsistent.empty());
}

TEST_CASE("the cache lies where XDG says") {
  setenv("XDG_CACHE_HOME", "/tmp/xdg", 1);
  CHECK(roofline_cache_file("0123") == "/tmp/xdg/attnbench/roofline-0123.json");
  unsetenv("XDG_CACHE_HOME");
  setenv("HOME", "/home/someone", 1);
  CHECK(roofline_cache_file("0123") == "/home/someone/.cache/attnbench/roofline-0123.json");
  unsetenv("HOME");
  CHECK(roofline_cache_file("0123").empty());
}
