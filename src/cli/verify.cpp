// attnbench verify: methods against their double-precision references.
#include "measure/verify.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/arguments.hpp"
#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/clock.hpp"
#include "measure/environment.hpp"
#include "report/device_report.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::vector<std::string> methods;
  std::string dtypes = "f32", device = "cpu", report;
  std::vector<std::string> results;
  bool all = false;
  int threads = 0;
  double budget_s = VerifyOptions{}.budget_s;
};

struct Line {
  std::string method;
  DType dtype;
  MethodCheck check;
  double worst() const {
    double w = 0;
    for (const auto& [tensor, error] : check.outcome.result.relative_l2)
      if (!(error <= w)) w = error;  // NaN wins
    return w;
  }
};

Json line_json(const Line& l) {
  const Verification& v = l.check.outcome.result;
  Json errors = Json::object();
  for (const auto& [tensor, error] : v.relative_l2) errors[tensor] = finite(error);
  return {{"method", l.method},
          {"dtype", std::string(name(l.dtype))},
          {"variation", l.check.variation},
          {"problem", to_json(l.check.problem)},
          {"status", std::string(name(l.check.status))},
          {"how", v.how},
          {"tolerance", v.tolerance},
          {"relative_l2", std::move(errors)},
          {"sampled", v.sampled ? Json{{"rows", v.sampled->rows}, {"of", v.sampled->of}} : Json(nullptr)},
          {"worst", v.worst},
          {"reason", l.check.reason}};
}

std::string table_of(const std::vector<Line>& lines, bool color) {
  using Align = TextTable::Align;
  TextTable t({{"method", Align::left},
               {"dtype", Align::left},
               {"variation", Align::left},
               {"problem", Align::left},
               {"error", Align::right},
               {"tolerance", Align::right},
               {"verdict", Align::left}});
  for (const Line& l : lines) {
    const bool ok = l.check.status == CaseStatus::ok;
    std::string verdict = ok ? "ok" : std::string(name(l.check.status));
    if (const auto& rows = l.check.outcome.result.sampled; ok && rows)
      verdict += fmt::format(" (sampled: {} of {} rows)", rows->rows, rows->of);
    if (!ok && !l.check.reason.empty()) verdict += ": " + l.check.reason;
    t.add({l.method, std::string(name(l.dtype)), l.check.variation, l.check.problem.str(),
           l.check.outcome.checked ? fmt::format("{:.2e}", l.worst()) : "-",
           l.check.outcome.checked ? fmt::format("{:.0e}", l.check.outcome.result.tolerance) : "-", verdict},
          ok                                          ? Style::plain
          : l.check.status == CaseStatus::unsupported ? Style::dim
                                                      : Style::red);
  }
  return t.str(color, "", stdout_width());
}

DeviceReport report_of(const std::vector<Line>& lines, Backend& backend, const Options& o) {
  DeviceReport r;
  r.written_at = utc_now();
  r.device = o.device;
  r.description = backend.description();
  r.environment = collect_environment(o.threads, &backend);
  for (const Line& l : lines) {
    const std::string dtype(name(l.dtype));
    if (r.lines.empty() || r.lines.back().method != l.method || r.lines.back().dtype != dtype)
      r.lines.push_back({.method = l.method, .dtype = dtype, .failures = {}, .unsupported_reason = {}});
    DeviceReport::Line& line = r.lines.back();
    const MethodCheck& c = l.check;
    if (c.outcome.checked) {
      line.tolerance = c.outcome.result.tolerance;
      if (!(l.worst() <= line.worst_relative_l2)) line.worst_relative_l2 = l.worst();
    }
    if (c.status == CaseStatus::ok) {
      ++line.passed;
    } else if (c.status == CaseStatus::unsupported) {
      ++line.unsupported;
      if (c.variation == "example") line.unsupported_reason = c.reason;
    } else {
      ++line.failed;
      line.failures.push_back(c.variation + ": " + c.reason);
    }
  }
  for (const std::string& file : o.results) r.runs.emplace_back(file, run_from_json(read_file(file), file));
  return r;
}

/// Where the report goes: a folder takes a file named after what runs the operators,
/// "nvidia_h100_80gb_hbm3.json".
std::string report_file(const std::string& given, const std::string& description) {
  std::error_code failed;
  if (given.ends_with('/')) std::filesystem::create_directories(given, failed);
  if (!std::filesystem::is_directory(given, failed)) return given;
  std::string stem;
  for (const char c : description.substr(0, description.find(','))) {
    const bool word = std::isalnum(static_cast<unsigned char>(c));
    if (word) stem += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (!word && !stem.empty() && stem.back() != '_') stem += '_';
  }
  while (!stem.empty() && stem.back() == '_') stem.pop_back();
  return (std::filesystem::path(given) / (stem + ".json")).string();
}

int verify(const Options& o, const GlobalOptions& global) {
  std::vector<const Method*> methods;
  if (o.all == !o.methods.empty()) throw UsageError("name methods, or give --all");
  for (const std::string& id : o.methods) methods.push_back(&find_method(id));
  if (o.all) methods = all_methods();
  std::vector<DType> dtypes;
  for (const std::string& word : comma_list("--dtype", o.dtypes)) dtypes.push_back(parse_dtype(word));
  if (o.report.empty() && !o.results.empty())
    throw UsageError("--results: its ratios go into a report, name one by --report FILE");
  for (const std::string& file : o.results)
    run_from_json(read_file(file), file);  // before the work, not after
  Backend& backend = backend_of(o.device);
  const std::string report = o.report.empty() ? "" : report_file(o.report, backend.description());
  if (!report.empty()) require_writable(report);

  std::vector<Line> lines;
  int passed = 0, unsupported = 0, failed = 0;
  VerifyOptions options;
  options.budget_s = o.budget_s;
  Progress progress(global.quiet, global.color);
  const size_t count = methods.size() * dtypes.size();
  size_t done = 0;
  for (const Method* m : methods)
    for (DType dtype : dtypes) {
      const std::string what = m->info().id + " " + std::string(name(dtype));
      progress.begin(done++, count, what, std::nullopt);
      Context ctx(backend, o.threads);
      size_t bad = 0;
      const std::vector<MethodCheck> checks = verify_method(ctx, *m, dtype, options);
      for (MethodCheck c : checks) {
        // What the method says it can do, it has to do: only its variations may be refused.
        const std::vector<DType>& types = m->info().dtypes;
        const std::vector<DeviceKind>& devices = m->info().backends;
        if (c.status == CaseStatus::unsupported && c.variation == "example" &&
            std::find(types.begin(), types.end(), dtype) != types.end() &&
            std::find(devices.begin(), devices.end(), backend.device()) != devices.end())
          c.status = CaseStatus::failed;
        (c.status == CaseStatus::ok            ? passed
         : c.status == CaseStatus::unsupported ? unsupported
                                               : failed) += 1;
        bad += c.status != CaseStatus::ok && c.status != CaseStatus::unsupported;
        lines.push_back({m->info().id, dtype, c});
      }
      progress.end(done, count, what, bad ? fmt::format("{} of {} failed", bad, checks.size()) : "ok", false);
    }
  progress.clear();
  if (!report.empty()) {
    write_file_atomically(report, to_json(report_of(lines, backend, o)));
    note(global.quiet, "the report is in " + report);
  }
  if (global.json) {
    Json list = Json::array();
    for (const Line& l : lines) list.push_back(line_json(l));
    print_json(
        {{"checks", std::move(list)}, {"passed", passed}, {"unsupported", unsupported}, {"failed", failed}});
  } else {
    print_data(table_of(lines, global.color) +
               fmt::format("\n{} passed, {} unsupported, {} failed\n", passed, unsupported, failed));
    for (const Line& l : lines)
      if (!l.check.outcome.result.worst.empty() && l.check.status == CaseStatus::failed)
        print_data(fmt::format("{} {} {}: {}\n", l.method, name(l.dtype), l.check.variation,
                               l.check.outcome.result.worst));
  }
  if (failed) return kAnswerIsNo;
  if (!passed)
    throw UsageError("nothing was verified: no named method runs in " + o.dtypes + " on " + o.device);
  return kDone;
}

const bool registered = register_command(
    {.name = "verify",
     .order = 30,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("METHOD", o->methods, "methods to verify")->type_name("METHOD");
           sub.add_flag("-a,--all", o->all, "every method");
           sub.add_option("--dtype", o->dtypes, "f32, bf16, f16, separated by commas; default f32")
               ->type_name("LIST");
           sub.add_option("-d,--device", o->device, "where the methods run; default cpu")
               ->type_name("{cpu,cuda}");
           sub.add_option("-t,--threads", o->threads, "CPU threads; default all")
               ->check(CLI::Range(1, 4096))
               ->type_name("N");
           sub.add_option("--verify-budget", o->budget_s,
                          "seconds for a reference: beyond it, a sample of rows or a reduced shape is "
                          "compared; default 1")
               ->check(CLI::Range(0.001, 1e6))
               ->type_name("SECONDS");
           sub.add_option(
                  "--report", o->report,
                  "writes what the device was seen to do: revision, card, driver, passed and failed by "
                  "method and dtype; a folder takes a file named after the card")
               ->type_name("FILE");
           sub.add_option("--results", o->results,
                          "results of a run, whose ratios and claims go into --report; repeat for several")
               ->type_name("FILE");
           sub.footer(
               "Examples:\n"
               "  attnbench verify hilo sra\n"
               "  attnbench verify --all --dtype f32,bf16,f16 --device cuda --report reports/gpu/\n"
               "  attnbench verify --all --dtype f32,bf16,f16\n"
               "\n"
               "Each method runs at its example and at variations of it (odd sizes, one token, batches, "
               "causal, …).\n"
               "Exit status 1 when one is above its tolerance or could not be compared.");
           return [o, &global] { return verify(*o, global); };
         },
     .summary = "check methods against their double-precision references"});

}  // namespace

}  // namespace attnbench
