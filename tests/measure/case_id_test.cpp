#include "measure/case_id.hpp"

#include <set>

#include "tests/catch.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;

namespace {
Case hilo() {
  Case c;
  c.name = c.base_name = "hilo";
  c.method = "hilo";
  c.device = "cpu";
  c.problem.kind = ProblemKind::image;
  c.problem.batch = 64;
  c.problem.grid = {14, 14};
  c.problem.channels = 768;
  c.problem.heads = 12;
  return c;
}
const std::map<std::string, Value> kParams{{"window_size", 2}, {"alpha", 0.9}};
}  // namespace

TEST_CASE("ids are pinned: a change of these literals makes old results incomparable") {
  // FNV-1a test vectors of its authors.
  CHECK(fnv1a64("") == 0xcbf29ce484222325ull);
  CHECK(fnv1a64("a") == 0xaf63dc4c8601ec8cull);
  CHECK(fnv1a64("foobar") == 0x85944171f73967e8ull);
  CHECK(hash_text("foobar") == "85944171f73967e8");

  CHECK(case_id_text(hilo(), kParams, MeasureConfig{}) ==
        "attnbench-case-1\n"
        "method=hilo\n"
        "param.alpha=0.9\n"
        "param.window_size=2\n"
        "problem.batch=64\n"
        "problem.causal=false\n"
        "problem.channels=768\n"
        "problem.dtype=f32\n"
        "problem.grid=[14, 14]\n"
        "problem.heads=12\n"
        "problem.kind=image\n"
        "problem.seed=0\n"
        "device=cpu\n"
        "measure.cache=hot\n"
        "measure.max_samples=100000\n"
        "measure.max_time_s=10.0\n"
        "measure.min_sample_s=0.001\n"
        "measure.min_samples=10\n"
        "measure.precision=0.01\n"
        "measure.threads=0\n");
  CHECK(case_id(hilo(), kParams, MeasureConfig{}) == "f32a208597319e8e");
}

TEST_CASE("what is asked for changes the id, what it is called does not") {
  std::set<std::string> ids;
  const MeasureConfig config;
  const auto add = [&](const Case& c, const std::map<std::string, Value>& p, const MeasureConfig& m) {
    return ids.insert(case_id(c, p, m)).second;
  };
  CHECK(add(hilo(), kParams, config));
  Case c = hilo();
  c.name = "another";
  c.base_name = "another";
  c.axes["problem.batch"] = 64;
  c.place = {"suite.yaml", 3, 4};
  CHECK_FALSE(add(c, kParams, config));
  MeasureConfig m = config;
  m.keep_samples = true;
  CHECK_FALSE(add(hilo(), kParams, m));

  c = hilo();
  c.problem.batch = 1;
  CHECK(add(c, kParams, config));
  c = hilo();
  c.problem.dtype = DType::bf16;
  CHECK(add(c, kParams, config));
  c = hilo();
  c.device = "cuda";
  CHECK(add(c, kParams, config));
  c = hilo();
  c.problem.inputs.generator = "local_decay";
  CHECK(add(c, kParams, config));
  c.problem.inputs.arguments["scale"] = 2.0;
  CHECK(add(c, kParams, config));
  CHECK(add(hilo(), {{"window_size", 2}, {"alpha", 0.5}}, config));
  for (const auto change : std::vector<void (*)(MeasureConfig&)>{
           [](MeasureConfig& x) { x.precision = 0.02; }, [](MeasureConfig& x) { x.max_time_s = 1; },
           [](MeasureConfig& x) { x.min_samples = 11; }, [](MeasureConfig& x) { x.max_samples = 12; },
           [](MeasureConfig& x) { x.min_sample_s = 0.1; }, [](MeasureConfig& x) { x.cache = "cold"; },
           [](MeasureConfig& x) { x.threads = 2; }}) {
    m = config;
    change(m);
    CHECK(add(hilo(), kParams, m));
  }
}
