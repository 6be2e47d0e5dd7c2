// Every output format: the figures are there, and nothing that a suite may contain breaks the form.
#include "report/format.hpp"

#include <algorithm>
#include <sstream>

#include "report/results_json.hpp"
#include "report/text.hpp"
#include "tests/catch.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// RFC 4180, strictly: a stray quote fails the test.
std::vector<std::vector<std::string>> parse_csv(const std::string& text) {
  std::vector<std::vector<std::string>> rows(1);
  size_t i = 0;
  while (i < text.size()) {
    std::string field;
    if (text[i] == '"') {
      for (++i;; ++i) {
        REQUIRE(i < text.size());
        if (text[i] != '"') {
          field += text[i];
        } else if (i + 1 < text.size() && text[i + 1] == '"') {
          field += text[i++];
        } else {
          ++i;
          break;
        }
      }
    } else {
      while (i < text.size() && text[i] != ',' && text[i] != '\n') {
        REQUIRE(text[i] != '"');
        field += text[i++];
      }
    }
    rows.back().push_back(field);
    REQUIRE(i < text.size());
    REQUIRE((text[i] == ',' || text[i] == '\n'));
    if (text[i++] == '\n') rows.emplace_back();
  }
  rows.pop_back();
  return rows;
}

std::string cell(const std::vector<std::vector<std::string>>& rows, size_t row, const std::string& column) {
  const auto& head = rows.front();
  const auto it = std::find(head.begin(), head.end(), column);
  REQUIRE(it != head.end());
  return rows.at(row).at(static_cast<size_t>(it - head.begin()));
}

const std::string kHostile =
    "a,b \"c\" | d\nnext\x1b[31m red \x07 `x` *y* <b> & \xc2\x9b [l](u) \xe2\x80\xae end \xff";

RunResult hostile_run() {
  RunResult run = sample_run();
  run.suite.name = run.suite.title = kHostile;
  run.cases[0].spec.name = kHostile;
  run.cases[0].warnings = {kHostile};
  run.cases[2].reason = kHostile;
  run.claims[0].claim.id = run.claims[0].claim.where = kHostile;
  run.claims[0].claim.axes = {{kHostile, Value(kHostile)}};
  run.cases[0].analyses.push_back({kHostile, {{kHostile, 1}}, {}, {}});
  run.environment.values["cpu_model"] = kHostile;
  return run;
}

}  // namespace

TEST_CASE("formats are found by id and by the file's name") {
  for (const char* id : {"csv", "json", "markdown", "table"}) CHECK(find_format(id).id() == id);
  CHECK(format_of_file("out/r.json").id() == "json");
  CHECK(format_of_file("r.md").id() == "markdown");
  CHECK_THROWS_AS(format_of_file(".csv"), UsageError);
  CHECK_THROWS_AS(format_of_file("results"), UsageError);
  try {
    find_format("markdwon");
    FAIL("found a format that does not exist");
  } catch (const UsageError& e) {
    CHECK_THAT(e.what(), ContainsSubstring("did you mean 'markdown'?"));
  }
  CHECK(find_format("json").write(sample_run()) == to_json(sample_run()));
}

TEST_CASE("csv has one row a case, exact numbers and units in its names") {
  const auto rows = parse_csv(find_format("csv").write(sample_run()));
  REQUIRE(rows.size() == 4);
  for (const auto& row : rows) REQUIRE(row.size() == rows.front().size());
  CHECK(rows.front().front() == "case");
  CHECK(cell(rows, 1, "case") == "hilo");
  CHECK(cell(rows, 1, "dtype") == "bf16");
  CHECK(cell(rows, 1, "grid") == "14x14");
  CHECK(cell(rows, 1, "seed") == "18446744073709551601");
  CHECK(std::stod(cell(rows, 1, "time_median_s")) == 0.1 + 0.2);
  CHECK(cell(rows, 1, "time_samples") == "1234");
  CHECK(cell(rows, 1, "stages_s") == "select=0.01;attend=0.02");
  CHECK(cell(rows, 1, "flops_counted") == std::to_string(INT64_MAX - 97));
  CHECK(cell(rows, 1, "bytes_counted") == "7");
  CHECK(cell(rows, 1, "speedup") == "1.449");
  CHECK(cell(rows, 1, "memory_rss_peak_bytes") == "6");
  CHECK(cell(rows, 1, "verified") == "true");
  CHECK(cell(rows, 1, "analyses") == "entropy.mean_nats=2.5");
  CHECK(cell(rows, 3, "status") == "unsupported");
  CHECK(cell(rows, 3, "time_median_s").empty());
  CHECK(cell(rows, 3, "verified").empty());
  RunResult run = sample_run();
  run.cases.clear();
  CHECK(parse_csv(find_format("csv").write(run)).size() == 1);
}

TEST_CASE("csv gives back any text it was given") {
  const auto rows = parse_csv(find_format("csv").write(hostile_run()));
  REQUIRE(rows.size() == 4);
  CHECK(cell(rows, 1, "case") == kHostile);
  CHECK(cell(rows, 1, "warnings") == kHostile);
  CHECK(cell(rows, 3, "reason") == kHostile);
  CHECK(cell(rows, 2, "suite") == kHostile);
}

TEST_CASE("csv of the analyses has one value a row; heads of several layers are told apart") {
  RunResult run = sample_run();
  run.cases.resize(1);
  run.cases[0].spec.problem.heads = 2;
  run.cases[0].analyses = {
      {"entropy", {{"mean_nats", 2.5}}, {{"head_x", {1, 2, 3, NAN}}, {"curve", {0.1, 5}}}, {}}};
  const auto rows = parse_csv(find_format("analyses").write(run));
  REQUIRE(rows.size() == 8);
  CHECK(rows[0] == std::vector<std::string>{"case", "method", "device", "analysis", "quantity", "layer",
                                            "head", "index", "value"});
  CHECK(rows[1] ==
        std::vector<std::string>{"hilo", "hilo", "cpu", "entropy", "mean_nats", "", "", "", "2.5"});
  CHECK(rows[2] == std::vector<std::string>{"hilo", "hilo", "cpu", "entropy", "curve", "", "", "0", "0.1"});
  CHECK(rows[5] ==
        std::vector<std::string>{"hilo", "hilo", "cpu", "entropy", "head_x", "0", "1", "1", "2.0"});
  CHECK(rows[6] ==
        std::vector<std::string>{"hilo", "hilo", "cpu", "entropy", "head_x", "1", "0", "2", "3.0"});
  CHECK(rows[7].back() == "nan");
  // Heads that are no multiple of the problem's are one layer.
  run.cases[0].spec.problem.heads = 3;
  CHECK(cell(parse_csv(find_format("analyses").write(run)), 7, "head") == "3");
  CHECK(cell(parse_csv(find_format("analyses").write(run)), 7, "layer") == "0");
  const auto hostile = parse_csv(find_format("analyses").write(hostile_run()));
  for (const auto& row : hostile) CHECK(row.size() == 9);
  CHECK(cell(hostile, 1, "case") == kHostile);
  CHECK(format_of_file("a/b.analyses.csv").id() == "analyses");
  CHECK(format_of_file("a/b.csv").id() == "csv");
}

TEST_CASE("the terminal table shows times, ratios, claims and reasons") {
  const std::string text = find_format("table").write(sample_run());
  INFO(text);
  CHECK_THAT(text, ContainsSubstring("hilo_cpu: HiLo against others"));
  CHECK_THAT(text, ContainsSubstring("EPYC, 2 cores"));
  CHECK_THAT(text, ContainsSubstring("300 ms ±100.0%"));
  CHECK_THAT(text, ContainsSubstring("1.449x  [1.4, 1.5]"));
  CHECK_THAT(text, ContainsSubstring(">= 1.450        15%       1.5  [1.4, 1.6]    holds"));
  CHECK_THAT(text, ContainsSubstring("not evaluated"));
  CHECK_THAT(text, ContainsSubstring("sra: unsupported: method 'sra' does not run in bf16"));
  CHECK_THAT(text, ContainsSubstring("2 ok, 1 unsupported; claims: 1 holds, 1 not evaluated; interrupted"));
  CHECK_THAT(text, ContainsSubstring("compute"));
  RunResult run = sample_run();
  run.claims.resize(1);
  run.claims[0].claim.tolerance = 0;
  CHECK_THAT(find_format("table").write(run), !ContainsSubstring("exact"));  // a bound is not met exactly
  run.claims[0].claim.compare = "equal";
  CHECK_THAT(find_format("table").write(run), ContainsSubstring("exact"));
  run.cases[0].status = run.cases[1].status = CaseStatus::inconsistent;
  CHECK(find_format("table").write(run).find("compute") ==
        std::string::npos);  // impossible rates are withheld
}

TEST_CASE(
    "tables show the headline figures of known analyses, and all of unknown ones; equal remarks are joined") {
  RunResult run = sample_run();
  run.cases[0].analyses = {{"entropy", {{"mean_nats", 2.5}, {"p25_nats", 7.125}}, {}, {}},
                           {"of_the_future", {{"depth", 3}, {"width", 4}}, {}, {}}};
  const std::string text = find_format("table").write(run);
  INFO(text);
  CHECK_THAT(text,
             ContainsSubstring(
                 "Entropy of the attention rows\ncase           mean_nats\nhilo                 2.5\n"));
  CHECK(text.find("7.125") == std::string::npos);
  CHECK_THAT(text, ContainsSubstring("of_the_future\ncase  depth  width\nhilo      3      4\n"));
  CHECK_THAT(text, ContainsSubstring("\nhilo, hilo/batch=64: the clock moved\n"));
}

TEST_CASE("a verification by a sample of rows is told from a whole one, in tables, CSV and the page") {
  RunResult run = sample_run();
  CHECK_THAT(find_format("table").write(run), !ContainsSubstring("compared"));
  run.cases[0].verification->sampled = SampledRows{512, 393216};
  run.cases[0].verification->how = "sampled: 512 of 393216 rows at its own shape";
  CHECK_THAT(find_format("table").write(run),
             ContainsSubstring("compared") && ContainsSubstring("512 of 393216 rows"));
  CHECK_THAT(find_format("csv").write(run),
             ContainsSubstring("sampled: 512 of 393216 rows at its own shape"));
  CHECK_THAT(find_format("html").write(run),
             ContainsSubstring("1 by a sample of rows") && ContainsSubstring("512 of 393216 rows"));
}

TEST_CASE("the terminal table keeps to the width, and to plain text unless colour is wanted") {
  RunResult run = sample_run();
  run.cases[0].spec.name = std::string(70, 'n');
  run.cases[1].spec.name = "注意力注意力注意力注意力注意力注意力注意力注意力注意力";
  run.cases[2].reason =
      "a reason of many words that goes on and on and on until it must be broken into more lines";
  const std::string narrow = find_format("table").write(run, {false, 150});
  size_t widest = 0;
  for (const std::string& line : lines_of(narrow)) widest = std::max(widest, display_width(line));
  INFO(narrow);
  CHECK(widest <= 150);
  CHECK_THAT(narrow, ContainsSubstring("…"));
  CHECK(narrow.find('\x1b') == std::string::npos);
  CHECK_THAT(find_format("table").write(run), ContainsSubstring(std::string(70, 'n')));
  CHECK(find_format("table").write(run, {true, 0}).find('\x1b') != std::string::npos);
  // Columns line up whatever the characters' widths are.
  const std::string wide = find_format("table").write(run);
  std::vector<size_t> ends;
  for (const std::string& line : lines_of(wide))
    if (const size_t at = line.find("300 ms"); at != std::string::npos)
      ends.push_back(display_width(line.substr(0, at)));
  REQUIRE(ends.size() == 2);
  CHECK(ends[0] == ends[1]);
}

TEST_CASE("nothing of a suite reaches the terminal as a control sequence") {
  const std::string text = find_format("table").write(hostile_run());
  for (const std::string& line : lines_of(text))
    for (const char c : line) REQUIRE((static_cast<unsigned char>(c) >= 0x20 && c != 0x7f));
  CHECK(text.find("\xc2\x9b") == std::string::npos);
  CHECK(text.find("\xe2\x80\xae") == std::string::npos);
  CHECK(text.find('\xff') == std::string::npos);
  CHECK_THAT(text, ContainsSubstring("\\x1b[31m red \\x07"));
  CHECK_THAT(text, ContainsSubstring("\\u202e end \\xff"));
}

TEST_CASE("markdown tables keep their columns whatever a suite contains") {
  const std::string text = find_format("markdown").write(hostile_run());
  INFO(text);
  size_t expected = 0, rows = 0;
  for (const std::string& line : lines_of(text)) {
    if (line.empty() || line[0] != '|') {
      expected = 0;
      continue;
    }
    size_t bars = 0;
    for (size_t i = 0; i < line.size(); ++i) {
      if (line[i] == '\\') {
        ++i;
      } else if (line[i] == '|') {
        ++bars;
      }
    }
    if (expected == 0) expected = bars;
    REQUIRE(bars == expected);
    ++rows;
  }
  CHECK(rows == 5 + 6 + 4 + 4 + 3);  // cases, stages, two analyses, claims; two lines of each are its head
  CHECK(text.find("<b>") == std::string::npos);
  CHECK(text.find(" `x`") == std::string::npos);
  CHECK(text.find(" *y*") == std::string::npos);
  CHECK(text.find("[l](") == std::string::npos);
  const std::string plain = find_format("markdown").write(sample_run());
  CHECK_THAT(plain, ContainsSubstring("# hilo_cpu: HiLo against others\n"));
  CHECK_THAT(plain, ContainsSubstring(
                        "| hilo-vs-sra problem.batch=64 | &gt;= 1.450 | 15% | 1.5 | [1.4, 1.6] | holds |"));
}

TEST_CASE("a run without cases is still a report") {
  const RunResult run;
  CHECK_THAT(find_format("table").write(run), ContainsSubstring("no case was measured"));
  CHECK_THAT(find_format("markdown").write(run), ContainsSubstring("no case was measured"));
}

TEST_CASE("cut and printable text") {
  CHECK(cut_to("abcdef", 6) == "abcdef");
  CHECK(cut_to("abcdef", 4) == "abc…");
  CHECK(cut_to("注意力", 4) == "注…");
  CHECK(cut_to("abc", 0).empty());
  CHECK(display_width("é注a") == 4);
  CHECK(printable("größer 注意") == "größer 注意");
  CHECK(printable("\xc0\xaf \xed\xa0\x80") == "\\xc0\\xaf \\xed\\xa0\\x80");  // overlong form, surrogate
}
