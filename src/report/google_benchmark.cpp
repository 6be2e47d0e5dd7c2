// The JSON of Google Benchmark, so that its compare.py and what reads its files take ours. Times are in
// nanoseconds: compare.py prints whole numbers. Every entry has run_type "iteration": with kept samples one a
// sample, which is what its U test wants, else one a case with the median. Cases without a time are left out,
// as readers would take their zeros for times, and named in the context.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "report/exchange.hpp"
#include "report/format.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

Json environment_value(const RunResult& run, const char* key) {
  const auto it = run.environment.values.find(key);
  if (it == run.environment.values.end()) return nullptr;
  if (it->second.is_int()) return it->second.as_int();
  if (it->second.is_double() && std::isfinite(it->second.as_double())) return it->second.as_double();
  return printable(it->second.str());
}

Json caches_of(const RunResult& run) {
  Json list = Json::array();
  for (const auto& [key, type, level] : {std::tuple{"cache_l1d_bytes", "Data", 1},
                                         {"cache_l2_bytes", "Unified", 2},
                                         {"cache_l3_bytes", "Unified", 3}}) {
    const Json size = environment_value(run, key);
    if (size.is_number_integer())
      list.push_back({{"type", type}, {"level", level}, {"size", size}, {"num_sharing", 0}});
  }
  return list;
}

Json context_of(const RunResult& run) {
  Json c{{"date", printable(run.started_at)},
         {"host_name", printable(run.environment.machine_id)},
         {"executable", "attnbench"}};
  const Json cores = environment_value(run, "cpus_online");
  c["num_cpus"] = cores.is_number_integer() ? cores : Json(0);
  const Json mhz = environment_value(run, "cpu_mhz_max");
  c["mhz_per_cpu"] = mhz.is_number() ? mhz : Json(0);
  c["cpu_scaling_enabled"] = false;
  c["caches"] = caches_of(run);
  const Json load = environment_value(run, "load_1min");
  c["load_avg"] = load.is_number() ? Json::array({load}) : Json::array();
  c["library_build_type"] = "release";
  c["json_schema_version"] = 1;
  // Custom strings, as the tool has them from --benchmark_context.
  c["suite"] = printable(run.suite.name);
  c["suite_hash"] = printable(run.suite_hash);
  c["machine_id"] = printable(run.environment.machine_id);
  for (const char* key : {"cpu_model", "gpu", "git_revision", "attnbench_version"})
    if (const Json v = environment_value(run, key); v.is_string()) c[key] = v;
  if (const std::string missing = untimed_cases(run); !missing.empty())
    c["not_measured"] = printable(missing);
  return c;
}

class GoogleBenchmarkFormat final : public Format {
 public:
  std::string id() const override { return "gbench"; }
  std::string extension() const override { return ".gbench.json"; }
  std::string summary() const override { return "Google Benchmark's JSON, for its compare.py"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    Json benchmarks = Json::array();
    int64_t family = 0;
    for (const CaseResult* c : timed_cases(run)) {
      const Timing& t = *c->time;
      std::vector<double> samples;
      for (double s : t.raw_s)
        if (s > 0 && s <= 1e3 * t.median_s) samples.push_back(s);  // not what is no time at all
      if (samples.empty()) samples = {t.median_s};
      const Json threads = environment_value(run, "threads");
      for (size_t i = 0; i < samples.size(); ++i) {
        Json b{{"name", printable(c->spec.name)},
               {"family_index", family},
               {"per_family_instance_index", 0},
               {"run_name", printable(c->spec.name)},
               {"run_type", "iteration"},
               {"repetitions", samples.size()},
               {"repetition_index", i},
               {"threads", threads.is_number_integer() ? threads : Json(1)},
               {"iterations", std::max<int64_t>(t.iterations_per_sample, 1)},
               {"real_time", samples[i] * 1e9},
               // Processor time is not measured; on all threads it would be no comparable figure anyway.
               {"cpu_time", samples[i] * 1e9},
               {"time_unit", "ns"}};
        if (c->counted.flops() > 0) b["FLOPS"] = flops_per_second(*c, samples[i]);
        if (c->counted.bytes() > 0)
          b["bytes_per_second"] = static_cast<double>(c->counted.bytes()) / samples[i];
        if (c->memory) b["max_bytes_used"] = c->memory->total_peak;
        for (const char* key : {"FLOPS", "bytes_per_second"})
          if (b.contains(key) && !std::isfinite(b[key].get<double>())) b.erase(key);
        b["label"] = printable(c->spec.method + ", " + c->spec.problem.str() + ", " + c->spec.device);
        benchmarks.push_back(std::move(b));
      }
      ++family;
    }
    return json_text({{"context", context_of(run)}, {"benchmarks", std::move(benchmarks)}});
  }
};
ATTNBENCH_FORMAT(GoogleBenchmarkFormat);

}  // namespace

}  // namespace attnbench
