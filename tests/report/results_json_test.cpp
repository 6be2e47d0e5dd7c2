// Results survive the trip through their file bit by bit; files that are not results are refused with the
// place.
#include "report/results_json.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/catch.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;
using Json = nlohmann::ordered_json;

namespace {

std::string message_of(const std::string& text) {
  try {
    run_from_json(text, "r.json");
  } catch (const DataError& e) {
    return e.what();
  }
  return "";
}

/// Every member of the structure must change the text: one that is forgotten by the writer shows here.
template <class F>
bool changes_text(F change) {
  RunResult run = sample_run();
  const std::string before = to_json(run);
  change(run);
  return to_json(run) != before;
}

}  // namespace

TEST_CASE("a run read back writes the same text, and its members are the ones written") {
  const RunResult run = sample_run();
  const std::string text = to_json(run);
  const RunResult back = run_from_json(text, "r.json");
  REQUIRE(to_json(back) == text);
  REQUIRE(back.cases.size() == 3);
  const CaseResult &a = run.cases[0], &b = back.cases[0];
  CHECK(b.spec.problem == a.spec.problem);
  CHECK(b.spec.problem.seed == 0xfffffffffffffff1ull);
  CHECK(b.spec.params == a.spec.params);
  CHECK(b.params == a.params);
  CHECK(b.params.at("whole").is_double());
  CHECK(b.params.at("window_size").is_int());
  CHECK(b.counted == a.counted);
  CHECK(b.stages[1].cost == a.stages[1].cost);
  CHECK(std::bit_cast<uint64_t>(b.time->median_s) == std::bit_cast<uint64_t>(a.time->median_s));
  CHECK(std::bit_cast<uint64_t>(b.time->min_s) == std::bit_cast<uint64_t>(5e-324));
  CHECK(std::bit_cast<uint64_t>(b.time->p5_s) == std::bit_cast<uint64_t>(1.7976931348623157e308));
  CHECK(std::signbit(b.time->p95_s));
  CHECK(b.time->raw_s == a.time->raw_s);
  CHECK(b.verification->relative_l2 == a.verification->relative_l2);
  CHECK(b.verification->sampled == a.verification->sampled);
  CHECK(*b.prepare_s == *a.prepare_s);
  CHECK(b.memory->rss_peak == 6);
  CHECK(b.memory->device_peak == 7);
  CHECK(b.time->submission == "graph");
  CHECK(b.sustained == a.sustained);
  CHECK(b.elapsed_s == a.elapsed_s);
  CHECK(b.decisions == a.decisions);
  CHECK_FALSE(back.cases[2].sustained.has_value());
  CHECK(b.bound->bound_by == "compute");
  CHECK(b.ratio->pairs == 40);
  CHECK(b.analyses[0].series == a.analyses[0].series);
  CHECK(b.warnings == a.warnings);
  CHECK(back.cases[2].status == CaseStatus::unsupported);
  CHECK_FALSE(back.cases[2].time.has_value());
  CHECK_FALSE(back.cases[2].prepare_s.has_value());
  CHECK(back.suite.measure == run.suite.measure);
  CHECK(back.suite.cases[1].name == "never/measured");
  CHECK(back.suite.cases[1].place.line == 12);
  CHECK(back.claims[0].verdict == ClaimResult::Verdict::holds);
  CHECK(back.claims[1].claim.axes == run.suite.claims[0].axes);
  CHECK(back.environment.values == run.environment.values);
  CHECK(back.roofline.gflops == run.roofline.gflops);
  CHECK(back.interrupted);
}

TEST_CASE("no member is left out of the file") {
  CHECK(changes_text([](RunResult& r) { r.suite_hash += "x"; }));
  CHECK(changes_text([](RunResult& r) { r.finished_at += "x"; }));
  CHECK(changes_text([](RunResult& r) { r.environment.machine_id += "x"; }));
  CHECK(changes_text([](RunResult& r) { r.roofline.from_cache = false; }));
  CHECK(changes_text([](RunResult& r) { r.roofline.gbytes_per_s["x"] = 1; }));
  CHECK(changes_text([](RunResult& r) { r.suite.resolved_text += "x"; }));
  CHECK(changes_text([](RunResult& r) { r.suite.measure.min_sample_s = 1; }));
  CHECK(changes_text([](RunResult& r) { r.suite.claims[0].note += "x"; }));
  CHECK(changes_text([](RunResult& r) { r.suite.claims[0].published_text += "0"; }));
  CHECK(changes_text([](RunResult& r) { r.suite.analysis_params["entropy"]["rows"] = 6; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].spec.place.column = 9; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].spec.problem.causal = false; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].spec.problem.inputs.file += "x"; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].verification->sampled = SampledRows{512, 393216}; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].verification->worst = "x"; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].time->iterations_per_sample = 9; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].formula_matches = false; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].formula.special = 99; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].published_macs = 1; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].parameters = 1; }));
  CHECK(changes_text([](RunResult& r) { r.cases[0].analyses[0].notes["x"] = "y"; }));
  CHECK(changes_text([](RunResult& r) { r.claims[1].reason += "x"; }));
}

TEST_CASE("what is not finite becomes null with a note and comes back as it was") {
  const double inf = std::numeric_limits<double>::infinity();
  RunResult run = sample_run();
  run.cases[0].ratio->ci_high = inf;
  run.cases[0].prepare_s = std::nan("");  // a measured NaN is not "none"
  run.cases[0].params["a/b~c"] = Value(-inf);
  run.cases[0].analyses[0].series["per_head"] = {1.0, std::nan(""), inf};
  run.claims[0].measured = std::nan("");
  run.environment.values["load"] = inf;
  const std::string text = to_json(run);
  const Json j = Json::parse(text);  // nlohmann refuses bare NaN and Infinity
  CHECK(j["cases"][0]["ratio"]["ci_high"].is_null());
  CHECK(j["cases"][0]["non_finite"]["/params/a~1b~0c"] == "-inf");
  CHECK(j["non_finite"]["/claims/0/measured"] == "nan");
  const RunResult back = run_from_json(text, "r.json");
  CHECK(back.cases[0].ratio->ci_high == inf);
  REQUIRE(back.cases[0].prepare_s.has_value());
  CHECK(std::isnan(*back.cases[0].prepare_s));
  CHECK(back.cases[0].params.at("a/b~c") == Value(-inf));
  CHECK(std::isnan(back.cases[0].analyses[0].series.at("per_head")[1]));
  CHECK(back.cases[0].analyses[0].series.at("per_head")[2] == inf);
  CHECK(back.environment.values.at("load") == Value(inf));
  CHECK(to_json(back) == text);
  const std::string line = case_to_json(run.cases[0]);
  CHECK(line.find('\n') == std::string::npos);
  CHECK(case_to_json(case_from_json(line, "x")) == line);
}

TEST_CASE("texts keep control characters, quotes and other alphabets; broken UTF-8 loses only itself") {
  RunResult run = sample_run();
  run.cases[0].reason = "a \"quoted\" \\ line\nnext\ttab \x01 größer 注意";
  run.cases[0].warnings = {"bad \xff byte"};
  const RunResult back = run_from_json(to_json(run), "r.json");
  CHECK(back.cases[0].reason == run.cases[0].reason);
  CHECK(back.cases[0].warnings[0] == "bad \xef\xbf\xbd byte");
}

TEST_CASE("unknown members are ignored, newer versions and other files are refused") {
  Json j = Json::parse(to_json(sample_run()));
  j["later"] = {{"deep", 1}};
  j["cases"][0]["later"] = Json::array({1, 2});
  CHECK(to_json(run_from_json(j.dump(), "r.json")) == to_json(sample_run()));
  j["schema_version"] = kResultsSchemaVersion + 1;
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("written by a newer attnbench"));
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("/schema_version"));
  j["schema_version"] = 0;
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("version of 1 or more"));
  CHECK_THAT(message_of("{\"benchmarks\": []}"), ContainsSubstring("not a results file"));
  CHECK_THAT(message_of("[1, 2]"), ContainsSubstring("not a results file"));
  CHECK_THAT(message_of(""), ContainsSubstring("r.json: byte 0"));
}

TEST_CASE("every truncation is refused with the place where the text ends") {
  const std::string text = to_json(sample_run());
  for (size_t n = 1; n + 2 < text.size(); n += 97) {  // without its newline the file is still complete
    const std::string message = message_of(text.substr(0, n));
    INFO(n << ": " << message);
    REQUIRE(message.find("r.json: byte " + std::to_string(n)) == 0);
    REQUIRE(message.find("ends too early") != std::string::npos);
  }
}

TEST_CASE("damaged values are named with file, byte offset, pointer and what is wrong") {
  const std::string text = Json::parse(to_json(sample_run())).dump();
  struct Row {
    const char *from, *to, *pointer, *what;
  };
  const Row rows[] = {
      {":1234,", ":\"many\",", "/cases/0/time/samples", "a whole number is wanted, not a string"},
      {":1234,", ":12.5,", "/cases/0/time/samples", "a whole number is wanted, not a fraction"},
      {":1234,", ":4294967296,", "/cases/0/time/samples", "out of range"},
      {"\"unsupported\"", "\"unsuported\"", "/cases/2/status", "did you mean 'unsupported'?"},
      {":[0.25,1e-17]", ":[0.25,true]", "/cases/0/time/raw_s/1", "a number or null is wanted"},
      {"\"interrupted\":true", "\"interrupted\":1", "/interrupted", "true or false is wanted"},
      {"\"relative_l2\":{", "\"relative_l1\":{", "/cases/0/verification", "'relative_l2' is missing"},
  };
  for (const Row& row : rows) {
    std::string t = text;
    const size_t at = t.find(row.from);
    INFO(row.from);
    REQUIRE(at != std::string::npos);
    t.replace(at, std::string(row.from).size(), row.to);
    const std::string message = message_of(t);
    INFO(message);
    CHECK(message.find("r.json: byte ") == 0);
    CHECK(message.find(row.what) != std::string::npos);
    CHECK(message.find(std::string("(") + row.pointer + ")") != std::string::npos);
    // The named byte is at (or, for a missing member or list element, just before) the damage.
    const size_t byte = std::stoul(message.substr(13));
    CHECK(byte <= at + std::string(row.to).size());
    CHECK(byte + 300 > at);
  }
  // What breaks the grammar is found by the parser, at the very byte.
  std::string t = text;
  const size_t at = t.find("\"suite_hash\"");
  t[at] = '@';
  CHECK_THAT(message_of(t), ContainsSubstring("r.json: byte " + std::to_string(at)));
  CHECK_THAT(message_of(t), ContainsSubstring("line "));
}

TEST_CASE("hostile texts are errors, not crashes") {
  const std::string deep(200000, '[');
  CHECK_THROWS_AS(run_from_json(deep, "x"), DataError);
  const std::string closed = deep + std::string(200000, ']');
  CHECK_THROWS_AS(run_from_json(closed, "x"), DataError);
  Json j = Json::parse(to_json(sample_run()));
  std::string text = j.dump();
  const std::string from = "\"word\":\"a\"";
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  const auto with = [&](size_t levels) {
    std::string t = text;
    return t.replace(at, from.size(), "\"word\":" + std::string(levels, '[') + std::string(levels, ']'));
  };
  CHECK(message_of(with(32)).empty());
  CHECK_THAT(message_of(with(40)), ContainsSubstring("nest too deeply"));
  CHECK_THAT(message_of(with(100000)), ContainsSubstring("nest deeper"));
  j["cases"][0]["non_finite"] = {{"/time/nothing", "nan"}};
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("no value of this place"));
  j["cases"][0]["non_finite"] = {{"/time/median_s", "nan"}};
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("is not null"));
  j["cases"][0]["non_finite"] = {{"/time/median_s", 3}};
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("'nan', 'inf' or '-inf'"));
  j["cases"][0].erase("non_finite");
  j["cases"][0]["params"]["window_size"] = 18446744073709551615ull;
  CHECK_THAT(message_of(j.dump()), ContainsSubstring("does not fit 64-bit"));
  CHECK_THROWS_AS(case_from_json("{}", "j:3"), DataError);
  CHECK_THROWS_AS(case_from_json("3", "j:3"), DataError);
}
