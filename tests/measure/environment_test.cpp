#include "measure/environment.hpp"

#include <dlfcn.h>

#include <vector>

#include "measure/build_info.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("the fingerprint names processor, memory, build and threads") {
  const Environment e = collect_environment(0);
  for (const char* key : {"cpu_backend", "cpus_allowed", "memory_bytes", "architecture", "kernel", "compiler",
                          "git_revision", "attnbench_version", "openmp", "threads"})
    CHECK(e.values.contains(key));
  // Libraries are named when they are loaded.
  CHECK(e.values.contains("openblas_core") == (dlsym(RTLD_DEFAULT, "openblas_get_corename") != nullptr));
  CHECK(e.values.contains("fftw") == (dlsym(RTLD_DEFAULT, "fftwf_version") != nullptr));
  CHECK(e.values.at("compiler").as_string() == build_info().compiler);
  CHECK(e.values.at("threads").as_int() >= 1);
  CHECK(collect_environment(3).values.at("threads").as_int() == 3);
  CHECK(e.machine_id == collect_environment(1).machine_id);
  CHECK(cache_bytes(1) >= 8 * 1024);
}

TEST_CASE("the machine's id hears of hardware only") {
  Environment e = collect_environment(0);
  for (const char* key : {"load_1min", "kernel", "os", "governor", "turbo", "compiler", "git_revision",
                          "openblas", "threads", "memory_bytes", "env_OMP_NUM_THREADS"}) {
    e.values[key] = "changed";
    CHECK(machine_id(e.values) == e.machine_id);
  }
  for (const char* key : {"cpu_model", "cores", "cpus_allowed", "cache_l3_bytes", "memory_gib", "gpu"}) {
    auto v = e.values;
    v[key] = "changed";
    CHECK(machine_id(v) != e.machine_id);
  }
}

TEST_CASE("the peak of the resident set grows with what is touched") {
  const int64_t before = rss_peak();
  REQUIRE(before > 0);
  std::vector<char> block(size_t{96} << 20, 1);
  volatile char last = block.back();
  (void)last;
  CHECK(rss_peak() >= before + (int64_t{64} << 20));
}

TEST_CASE("missing files and keys count as zero") {
  CHECK(proc_kib("/proc/self/status", "NoSuchKey") == 0);
  CHECK(proc_kib("/nonexistent", "VmHWM") == 0);
  CHECK(proc_kib("/proc/meminfo", "MemTotal") > 0);
}
