#include "report/salvage.hpp"

#include "../catch.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"
#include "sample_run.hpp"

using namespace attnbench;

namespace {
RunResult twelve() {
  RunResult run = sample_run();
  run.cases.clear();
  run.suite.cases.clear();
  for (int i = 0; i < 12; ++i) {
    // Names that look like the structure around them.
    run.cases.push_back(sample_case_result("c" + std::to_string(i) + "]},\"cases\":[{\\\""));
    run.suite.cases.push_back(run.cases.back().spec);
  }
  run.interrupted = false;
  return run;
}
}  // namespace

TEST_CASE("a whole file is read as it is") {
  const RunResult run = twelve();
  const Salvage s = salvage_results(to_json(run), "a.json");
  CHECK(s.note.empty());
  CHECK(to_json(s.run) == to_json(run));
}

TEST_CASE("a file cut at any byte gives the cases before the cut, or says that there are none") {
  const RunResult run = twelve();
  const std::string text = to_json(run);
  size_t last = 0;
  int refused = 0;
  // A prime step visits every kind of place; the ends are visited byte by byte.
  for (size_t n = 0; n < text.size() - 2; n += (n < 200 || n + 200 > text.size()) ? 1 : 37) {
    const std::string cut = text.substr(0, n);
    try {
      const Salvage s = salvage_results(cut, "cut.json");
      CHECK(s.run.interrupted);
      CHECK_FALSE(s.note.empty());
      CHECK(s.run.cases.size() >= last);
      last = s.run.cases.size();
      for (size_t i = 0; i < last; ++i)
        if (case_to_json(s.run.cases[i]) != case_to_json(run.cases[i]))
          FAIL("case " << i << " of a cut at " << n);
      CHECK(s.run.environment.machine_id == "m1");
    } catch (const DataError& e) {
      ++refused;
      CHECK(last == 0);
      CHECK(std::string(e.what()).find("cut.json") != std::string::npos);
      CHECK(std::string(e.what()).find("nothing can be saved") != std::string::npos);
    }
  }
  CHECK(last == 12);
  CHECK(refused > 0);
}

TEST_CASE("damage in the middle keeps the cases before it") {
  std::string text = to_json(twelve());
  const size_t at = text.find("\"id-c7");
  REQUIRE(at != std::string::npos);
  text[at] = '#';
  const Salvage s = salvage_results(text, "bad.json");
  CHECK(s.run.cases.size() == 7);
  CHECK(s.note.find("saved 7 of 12 cases") != std::string::npos);
}

TEST_CASE("results of schema version 1, as the first program wrote them, are read") {
  const std::string file = ATTNBENCH_SOURCE_DIR "/tests/report/golden/results_v1.json";
  const RunResult run = run_from_json(read_file(file), file);
  REQUIRE(run.cases.size() == 4);
  CHECK(run.cases[1].spec.name == "naive");
  CHECK(run.cases[1].time->raw_s.size() == static_cast<size_t>(run.cases[1].time->samples));
  CHECK(run.cases[1].ratio->baseline == "dense");
  CHECK(run.claims.size() == 2);
  // Written anew, nothing of it is lost.
  CHECK(to_json(run_from_json(to_json(run), "again")) == to_json(run));
}

TEST_CASE("something else is refused") {
  for (const char* text : {"", "{}", "[1, 2]", "{\"cases\": [1]}", "\xff\xfe", "{\"a\":\"cases\":[{}]}"})
    CHECK_THROWS_AS(salvage_results(text, "x"), DataError);
}
