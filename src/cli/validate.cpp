// attnbench validate: whether files are what they claim to be, suites or results, told by their content.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/json.hpp"
#include "cli/paths.hpp"
#include "cli/program.hpp"
#include "cli/text.hpp"
#include "report/json_schema.hpp"
#include "report/results_json.hpp"
#include "report/schemas.hpp"
#include "suite/parse.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

/// Results with every raw sample of thousands of cases stay below this.
constexpr size_t kMaxResultsBytes = size_t{512} << 20;

struct Outcome {
  std::string file, kind, summary;
  std::vector<std::string> errors;
};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// A results file is one JSON object; a suite is block YAML. Names decide where the content says nothing.
bool is_results(const std::string& path) {
  if (path.ends_with(".yaml") || path.ends_with(".yml")) return false;
  std::ifstream in(path);
  const char first = (in >> std::ws) ? static_cast<char>(in.peek()) : '\0';
  return first == '{' || path.ends_with(".json");
}

void check_results(Outcome& out) {
  const std::string text = read_text_file(out.file, kMaxResultsBytes);
  for (const std::string& e : validate_json(schemas().at("results"), text))
    out.errors.push_back(out.file + ": " + e);
  if (!out.errors.empty()) return;
  const RunResult run = run_from_json(text, out.file);
  out.summary =
      fmt::format("results of {}, {} cases, {} claims", run.suite.name, run.cases.size(), run.claims.size());
}

void check_suite(Outcome& out) {
  const Suite suite = load_suite(out.file);
  out.summary =
      fmt::format("suite {}, {} cases, {} claims", suite.name, suite.cases.size(), suite.claims.size());
}

Outcome check(const std::string& word) {
  Outcome out{word, "", "", {}};
  try {
    out.file = find_suite_file(word);
    out.kind = is_results(out.file) ? "results" : "suite";
    out.kind == "results" ? check_results(out) : check_suite(out);
  } catch (const UsageError& e) {
    out.errors = lines_of(e.what());
  }
  return out;
}

int validate(const std::vector<std::string>& files, const GlobalOptions& global) {
  int code = kDone;
  Json list = Json::array();
  for (const std::string& file : files) {
    const Outcome o = check(file);
    if (!o.errors.empty()) code = kUsage;
    if (global.json) {
      list.push_back({{"file", o.file}, {"kind", o.kind}, {"valid", o.errors.empty()}, {"errors", o.errors}});
    } else if (o.errors.empty()) {
      print_data(fmt::format("{}: ok, {}\n", o.file, o.summary));
    } else {
      for (const std::string& e : o.errors) print_message(e + "\n");
      print_message(fmt::format("attnbench: {}: {} {}\n", o.file, o.errors.size(),
                                o.errors.size() == 1 ? "error" : "errors"));
    }
  }
  if (global.json) print_json({{"files", std::move(list)}});
  return code;
}

const bool registered = register_command(
    {.name = "validate",
     .order = 60,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto files = std::make_shared<std::vector<std::string>>();
           sub.add_option("FILE", *files, "suites (YAML) and results (JSON)")->required()->type_name("SUITE");
           sub.footer(
               "Examples:\n"
               "  attnbench validate suites/*.yaml results/*.json\n"
               "\n"
               "Exit status 2 when a file is wrong; every error of every file is printed.");
           return [files, &global] { return validate(*files, global); };
         },
     .summary = "check suites and results files without running anything"});

}  // namespace

}  // namespace attnbench
