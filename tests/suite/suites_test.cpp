// The suites that come with the program, and the schema of their format: neither may say what the other
// refuses.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "kernels/core/backend.hpp"
#include "methods/method.hpp"
#include "report/json_schema.hpp"
#include "report/schemas.hpp"
#include "suite/claims.hpp"
#include "suite/parse.hpp"
#include "suite/yaml.hpp"
#include "tests/catch.hpp"
#include "tests/suite/fake_methods.hpp"

using namespace attnbench;
using nlohmann::json;

namespace {

json to_json(const Value& v) {
  if (v.is_null()) return nullptr;
  if (v.is_bool()) return v.as_bool();
  if (v.is_int()) return v.as_int();
  if (v.is_double()) return v.as_double();
  return v.as_string();
}

json to_json(const yaml::Node& n) {
  if (n.is_scalar()) return to_json(n.value);
  json out = n.is_list() ? json::array() : json::object();
  for (const yaml::NodePtr& item : n.items) out.push_back(to_json(*item));
  for (const yaml::Entry& e : n.entries) out[e.key] = to_json(*e.value);
  return out;
}

std::vector<std::string> schema_errors(const yaml::NodePtr& root) {
  return validate_json(schemas().at("suite"), to_json(*root).dump());
}

std::string joined(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& l : lines) all += l + "\n";
  return all;
}

std::vector<std::filesystem::path> bundled() {
  std::vector<std::filesystem::path> files;
  for (const auto& e : std::filesystem::recursive_directory_iterator(ATTNBENCH_SOURCE_DIR "/suites"))
    if (e.path().extension() == ".yaml") files.push_back(e.path());
  std::sort(files.begin(), files.end());
  return files;
}

/// Every key that the format has, at least once.
const char* kEverything = R"(suite: everything
title: All keys
defaults: { dtype: f32, devices: [cpu], threads: 2, precision: 1%, max_time: 500 ms, min_samples: 5, max_samples: 9,
            min_sample: 0.5ms, cache: hot, keep_samples: false, seed: 3 }
problem: { kind: sequence, batch: 1, causal: true, dtype: bf16, seed: 1, heads: 4, kv_heads: 2, length: 8, kv_length: 9,
           head_dim: 16, inputs: { generator: fake_decay, scale: 2 } }
axes: { params.alpha: [0.1, { value: 0.2, when: not quick }] }
zip: [{ device: [cpu, cuda], dtype: [f32, bf16] }]
cases:
  - fake_split
  - name: plain-2.b
    method: fake_plain
    params: {}
    problem: { kind: image, batch: 2, grid: [4, 4], size: [8, 8], channels: 12, heads: 3, length: null, inputs: fake_decay }
    zip: { problem.seed: [1, 2], params.sr_ratio: [1, 2] }
    axes: { problem.kv_heads: [1, 3] }
    when: problem.grid[0] == 4
  - { name: wave, method: fake_plain, params: null, problem: { kind: signal, samples: 16, sample_rate: 1e3, inputs: null } }
baseline: wave
measure: [time, error]
analyses: [{ fake_spread: { depth: 2 } }]
claims:
  - { id: a, ratio: time(wave) / time(fake_split), published: 1.40, tolerance: 15%, compare: at_least, where: here,
      device: cuda, note: none, axes: { alpha: 0.1 }, when: not quick }
  - { id: b, value: macs(wave), published: 3, tolerance: 0 }
)";

}  // namespace

TEST_CASE("every suite of the program resolves and follows the schema") {
  const auto files = bundled();
  REQUIRE(files.size() >= 4);
  for (const auto& file : files) {
    INFO(file.string());
    CHECK(joined(schema_errors(yaml::read(file.string()))) == "");
    for (const bool quick : {false, true}) {
      SuiteOptions o;
      o.quick = quick;
      std::string error;
      try {
        const Suite s = load_suite(file.string(), o);
        CHECK_FALSE(s.cases.empty());
        CHECK_FALSE(s.title.empty());
        for (const Claim& c : s.claims) CHECK_FALSE(c.where.empty());
      } catch (const UsageError& e) {
        error = e.what();
      }
      CHECK(error == "");
    }
    SuiteOptions cuda;
    cuda.devices = {"cuda"};
    CHECK(load_suite(file.string(), cuda).cases.at(0).device == "cuda");
  }
}

TEST_CASE("no case of a suite asks for what its method cannot be given") {
  // Cases of devices that are not here too: a case of another kind than the suite's inherits no heads.
  for (const auto& file : bundled())
    for (const Case& c : load_suite(file.string()).cases) {
      INFO(file.string() << ", " << c.name);
      std::string error;
      try {
        Context ctx(cpu_backend(), 1);
        const MethodInfo& info = find_method(c.method).info();
        find_method(c.method).make(ctx, c.problem, resolve_params(info.id, info.params, c.params, c.problem));
      } catch (const Unsupported&) {
        // Of this device, or of a file that does not come with the program.
      } catch (const UsageError& e) {
        error = e.what();
      }
      CHECK(error == "");
    }
}

TEST_CASE("a suite uses every method") {
  std::set<std::string> methods;
  for (const auto& file : bundled())
    for (const Case& c : load_suite(file.string()).cases) methods.insert(c.method);
  for (const Method* m : all_methods()) {
    if (m->info().id.rfind("fake_", 0) == 0) continue;
    INFO(m->info().id);
    CHECK(methods.contains(m->info().id));
  }
}

TEST_CASE("the schema takes every key that the parser takes") {
  fake::register_all();
  const yaml::NodePtr root = yaml::parse(kEverything, "everything.yaml");
  CHECK(joined(schema_errors(root)) == "");
  std::string error;
  try {
    parse_suite(kEverything, "everything.yaml");
  } catch (const UsageError& e) {
    error = e.what();
  }
  // The axis `device` of the root meets no case that names one, dtype none that sets one.
  CHECK(error == "");
  const json properties = json::parse(schemas().at("suite"))["$defs"]["problem"]["properties"];
  std::set<std::string> keys;
  for (const ProblemKey& k : problem_keys()) keys.insert(k.key);
  std::set<std::string> described;
  for (const auto& [k, _] : properties.items()) described.insert(k);
  CHECK(keys == described);
}

TEST_CASE("schema and parser refuse the same slips") {
  fake::register_all();
  const std::string good =
      "suite: s\nproblem: { heads: 2 }\ncases: [{ method: fake_plain }]\nclaims: [{ id: a, value: "
      "macs(fake_plain), published: 1, tolerance: 0 }]\n";
  REQUIRE(schema_errors(yaml::parse(good, "f")).empty());
  REQUIRE_NOTHROW(parse_suite(good, "f"));
  const std::pair<const char*, const char*> slips[] = {
      {"suite: s", "suite: [s]"},
      {"suite: s", "suite: 'a b'"},
      {"suite: s\n", ""},
      {"suite: s", "suite: s\ntitel: x"},
      {"suite: s", "suite: s\nmeasure: [tme]"},
      {"suite: s", "suite: s\nmeasure: []"},
      {"suite: s", "suite: s\ndefaults: { precision: 2 }"},
      {"suite: s", "suite: s\ndefaults: { precision: x% }"},
      {"suite: s", "suite: s\ndefaults: { max_time: 10h }"},
      {"suite: s", "suite: s\ndefaults: { threads: 0 }"},
      {"suite: s", "suite: s\ndefaults: { devices: [gpu] }"},
      {"suite: s", "suite: s\ndefaults: { cache: warm }"},
      {"suite: s", "suite: s\ndefaults: { dtype: fp32 }"},
      {"suite: s", "suite: s\naxes: { batch: [1] }"},
      {"suite: s", "suite: s\naxes: { problem.batch: [] }"},
      {"suite: s", "suite: s\naxes: { problem.batch: [{ when: quick }] }"},
      {"suite: s", "suite: s\nanalyses: [{ fake_spread: {}, x: {} }]"},
      {"heads: 2", "heads: 0"},
      {"heads: 2", "heads: '2'"},
      {"heads: 2", "haeds: 2"},
      {"heads: 2", "kind: imge"},
      {"heads: 2", "grid: []"},
      {"heads: 2", "inputs: { scale: 1 }"},
      {"heads: 2", "inputs: { generator: fake_decay, file: x }"},
      {"method: fake_plain", "name: fake_plain"},
      {"method: fake_plain", "method: fake_plain, parms: {}"},
      {"[{ method: fake_plain }]", "[]"},
      {"value: macs(fake_plain), ", ""},
      {"value: macs(fake_plain)", "value: macs(fake_plain), ratio: '1'"},
      {"published: 1, ", ""},
      {"published: 1", "published: '1'"},
      {", tolerance: 0", ""},
      {"tolerance: 0", "tolerance: -1"},
      {"tolerance: 0", "tolerance: 0, compare: about"},
  };
  for (const auto& [from, to] : slips) {
    std::string text = good;
    text.replace(text.find(from), std::string(from).size(), to);
    INFO(text);
    CHECK_FALSE(schema_errors(yaml::parse(text, "f")).empty());
    CHECK_THROWS_AS(parse_suite(text, "f"), UsageError);
  }
}

TEST_CASE("what the papers publish about operation counts follows from the methods' closed forms") {
  // Every exact claim of the papers' suites on the CPU is about counts and needs no measurement.
  int evaluated = 0;
  for (const char* file : {"hilo", "mfm", "lightning_attention"}) {
    RunResult run;
    run.suite = load_suite(std::string(ATTNBENCH_SOURCE_DIR "/suites/papers/") + file + ".yaml");
    for (const Case& c : run.suite.cases) {
      if (c.device == "cuda") continue;  // needs one to be made, and no claim below is about it
      CaseResult r;
      r.spec = c;
      Context ctx(cpu_backend(), 1);
      const Method& method = find_method(c.method);
      const ClosedForm f =
          method.make(ctx, c.problem, resolve_params(c.method, method.info().params, c.params, c.problem))
              ->cost();
      r.formula = f.cost;
      r.published_macs = f.published_macs;
      r.parameters = f.parameters;
      run.cases.push_back(r);
    }
    for (const Claim& c : run.suite.claims) {
      const ClaimResult r = evaluate_claim(c, run);
      INFO(file << " " << c.id << ": " << r.measured << " instead of " << c.published_text << " "
                << r.reason);
      if (c.device == "cuda") {
        CHECK(r.verdict == ClaimResult::Verdict::not_evaluated);
      } else if (c.tolerance == 0) {
        CHECK(r.verdict ==
              (c.compare == "equal" ? ClaimResult::Verdict::exact : ClaimResult::Verdict::holds));
        ++evaluated;
      } else {
        CHECK(r.verdict == ClaimResult::Verdict::not_evaluated);  // times, and nothing was timed
      }
    }
  }
  CHECK(evaluated == 16);
}
