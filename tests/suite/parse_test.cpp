#include "suite/parse.hpp"

#include <filesystem>
#include <fstream>

#include "tests/catch.hpp"
#include "tests/suite/fake_methods.hpp"

using namespace attnbench;

namespace {

const char* kPlain = R"(suite: plain
title: Two layers
defaults: { dtype: f32, devices: [cpu], threads: auto, precision: 1%, max_time: 10s }
problem: { kind: image, batch: 64, grid: [14, 14], channels: 768, heads: 12 }
axes: { problem.batch: [1, 64] }
cases:
  - { name: split, method: fake_split, params: { window_size: 2, alpha: 0.9 } }
  - { name: plain, method: fake_plain, params: { sr_ratio: 2 }, when: "problem.grid[0] % 7 == 0" }
baseline: plain
measure: [time, flops, memory, error]
analyses: [fake_spread]
claims:
  - { id: ratio, ratio: time(plain) / time(split), published: 1.449, where: "table T", device: cpu, tolerance: 15%, axes: { batch: 64 } }
)";

Suite parse(const std::string& text, const SuiteOptions& options = {}) {
  fake::register_all();
  return parse_suite(text, "s.yaml", options);
}

using Names = std::vector<std::string>;
Names names(const Suite& s) {
  Names n;
  for (const Case& c : s.cases) n.push_back(c.name);
  return n;
}

/// All errors of a text, a line each; empty when it is a good suite.
std::string errors(const std::string& text, const SuiteOptions& options = {}) {
  try {
    parse(text, options);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

/// A suite around one part that is to be looked at: line 4 is the first line of `part` after one case.
std::string with(const std::string& part, const std::string& cases = "cases: [fake_split]\n") {
  return "suite: s\nproblem: { kind: image, grid: [14, 14], channels: 64, heads: 2 }\n" + cases + part;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("a plain suite resolves") {
  const Suite s = parse(kPlain);
  CHECK(s.name == "plain");
  CHECK(s.title == "Two layers");
  CHECK(s.measure == MeasureConfig{});
  CHECK(names(s) == Names{"split/batch=1", "split/batch=64", "plain/batch=1", "plain/batch=64"});
  const Case& c = s.cases[1];
  CHECK(c.base_name == "split");
  CHECK(c.method == "fake_split");
  CHECK(c.device == "cpu");
  CHECK(c.problem.batch == 64);
  CHECK(c.problem.grid == std::vector<int64_t>{14, 14});
  CHECK(c.problem.channels == 768);
  CHECK(c.axes.at("problem.batch") == Value(64));
  CHECK(c.params.at("alpha") == Value(0.9));
  CHECK(c.place.str() == "s.yaml:7:13");
  CHECK(s.baseline == "plain");
  CHECK(s.measures == Names{"time", "flops", "memory", "error"});
  CHECK(s.analyses == Names{"fake_spread"});
  REQUIRE(s.claims.size() == 1);
  CHECK(s.claims[0].published_text == "1.449");
  CHECK(s.claims[0].tolerance == Approx(0.15));
  CHECK(s.claims[0].where == "table T");
}

TEST_CASE("defaults are read in their units") {
  const Suite s = parse(with(
      "defaults: { dtype: bf16, threads: 3, precision: 0.02, max_time: 500ms, min_samples: 5, max_samples: "
      "50,\n            min_sample: 2ms, cache: cold, keep_samples: true, seed: 7 }\n"));
  CHECK(s.measure.precision == 0.02);
  CHECK(s.measure.max_time_s == Approx(0.5));
  CHECK(s.measure.min_samples == 5);
  CHECK(s.measure.max_samples == 50);
  CHECK(s.measure.min_sample_s == Approx(0.002));
  CHECK(s.measure.cache == "cold");
  CHECK(s.measure.keep_samples);
  CHECK(s.measure.threads == 3);
  CHECK(s.cases[0].problem.dtype == DType::bf16);
  CHECK(s.cases[0].problem.seed == 7);
  CHECK(parse(with("defaults: { max_time: 2min }\n")).measure.max_time_s == 120);
  CHECK(parse(with("defaults: { max_time: 3 }\n")).measure.max_time_s == 3);
}
