// attnbench analyze: properties of one method on one problem, without timing it.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "analysis/analysis.hpp"
#include "cli/arguments.hpp"
#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string method, weights, device = "cpu";
  std::vector<std::string> analyses, params, problem, analysis_params;
  int threads = 0;
};

/// An analysis with its resolved parameters.
struct Wanted {
  const Analysis* analysis;
  Params params;
};

/// "entropy.rows=64" words by analysis.
std::map<std::string, std::map<std::string, Value>> by_analysis(const std::vector<std::string>& words) {
  std::map<std::string, std::map<std::string, Value>> out;
  for (const auto& [path, value] : key_values("--analysis-param", words)) {
    const size_t dot = path.find('.');
    if (dot == std::string::npos)
      throw UsageError("--analysis-param: '" + path + "' is not of the form analysis.key=value");
    out[path.substr(0, dot)][path.substr(dot + 1)] = value;
  }
  return out;
}

std::vector<Wanted> wanted_of(const Options& o, const Problem& problem) {
  std::vector<const Analysis*> chosen;
  for (const std::string& list : o.analyses)
    for (const std::string& id : comma_list("--analysis", list)) chosen.push_back(&find_analysis(id));
  if (chosen.empty()) chosen = all_analyses();
  auto params = by_analysis(o.analysis_params);
  std::vector<Wanted> wanted;
  for (const Analysis* a : chosen) {
    wanted.push_back({a, resolve_params(a->info().id, a->info().params, params[a->info().id], problem)});
    params.erase(a->info().id);
  }
  if (!params.empty())
    throw UsageError("--analysis-param: the analysis '" + params.begin()->first + "' is not asked for");
  return wanted;
}

Json result_json(const AnalysisResult& r) {
  Json scalars = Json::object(), series = Json::object();
  for (const auto& [key, value] : r.scalars) scalars[key] = finite(value);
  for (const auto& [key, values] : r.series) {
    Json list = Json::array();
    for (double v : values) list.push_back(finite(v));
    series[key] = std::move(list);
  }
  return {{"analysis", r.analysis},
          {"scalars", std::move(scalars)},
          {"series", std::move(series)},
          {"notes", r.notes}};
}

std::string number(double v) { return std::isfinite(v) ? fmt::format("{:.6g}", v) : Value(v).str(); }

std::string result_text(const AnalysisResult& r, const AnalysisInfo& info, bool color) {
  constexpr size_t kShown = 12;  // of a curve: enough to see its shape; --json has all of it
  TextTable t({{"quantity", TextTable::Align::left}, {"value", TextTable::Align::left}});
  for (const auto& [key, value] : r.scalars) t.add({key, number(value)});
  for (const auto& [key, values] : r.series) {
    std::string text;
    for (size_t i = 0; i < std::min(values.size(), kShown); ++i) text += (i ? " " : "") + number(values[i]);
    if (values.size() > kShown) text += fmt::format(" ... ({} values)", values.size());
    t.add({key, text});
  }
  for (const auto& [key, text] : r.notes) t.add({key, text});
  return styled(info.id, Style::bold, color) + (info.title.empty() ? "" : ": " + info.title) + "\n" +
         t.str(color, "  ", stdout_width()) + "\n";
}

int analyze(const Options& o, const GlobalOptions& global) {
  const Method& method = find_method(o.method);
  Problem problem = method.info().example;
  set_problem(problem, key_values("--problem", o.problem));
  check_problem(problem);
  std::map<std::string, Value> given = key_values("--param", o.params);
  given.insert(method.info().example_params.begin(), method.info().example_params.end());
  const Params params = resolve_params(method.info().id, method.info().params, given, problem);
  const std::vector<Wanted> wanted = wanted_of(o, problem);
  Backend& backend = backend_of(o.device);

  Context ctx(backend, o.threads);
  const std::unique_ptr<Instance> instance = method.make(ctx, problem, params);
  fill_instance(ctx, *instance, problem, o.weights);
  instance->prepare(ctx);
  instance->run(ctx);
  backend.synchronize();

  Json results = Json::array();
  int computed = 0;
  if (!global.json) print_data(o.method + " on " + problem.str() + "\n\n");
  for (const Wanted& w : wanted) {
    const AnalysisInfo& info = w.analysis->info();
    try {
      const AnalysisResult r = w.analysis->compute(ctx, *instance, problem, w.params);
      ++computed;
      if (global.json)
        results.push_back(result_json(r));
      else
        print_data(result_text(r, info, global.color));
    } catch (const Unsupported& e) {
      if (global.json)
        results.push_back({{"analysis", info.id}, {"unsupported", e.what()}});
      else
        print_data(styled(info.id, Style::bold, global.color) + ": unsupported: " + e.what() + "\n\n");
    }
  }
  if (global.json) {
    Json p = Json::object();
    for (const auto& [key, value] : params.all()) p[key] = to_json(value);
    print_json({{"method", o.method},
                {"params", std::move(p)},
                {"problem", to_json(problem)},
                {"analyses", std::move(results)}});
  }
  return computed ? kDone : kSomeFailed;
}

const bool registered = register_command(
    {.name = "analyze",
     .order = 31,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("METHOD", o->method, "the method")->required()->type_name("METHOD");
           sub.add_option("-a,--analysis", o->analyses,
                          "analyses, separated by commas; default all that apply")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("ANALYSIS");
           sub.add_option("-p,--param", o->params,
                          "a parameter of the method, as key=value; several may follow")
               ->type_name("KEY=VALUE");
           sub.add_option("--problem", o->problem,
                          "a key of the problem, as key=value; default: the method's example")
               ->type_name("KEY=VALUE");
           sub.add_option("--analysis-param", o->analysis_params,
                          "a parameter of an analysis, as analysis.key=value")
               ->type_name("KEY=VALUE");
           sub.add_option("-w,--weights", o->weights, ".safetensors with the weights; left out: seeded")
               ->type_name("FILE");
           sub.add_option("-d,--device", o->device, "where to run; default cpu")->type_name("{cpu,cuda}");
           sub.add_option("-t,--threads", o->threads, "CPU threads; default all")
               ->check(CLI::Range(1, 4096))
               ->type_name("N");
           std::string ids;
           for (const Analysis* a : all_analyses()) ids += (ids.empty() ? "" : ", ") + a->info().id;
           sub.footer(
               "Analyses (`attnbench describe ANALYSIS` gives formula and unit):\n  " + wrap(ids, 98, "  ") +
               "\n\nExamples:\n"
               "  attnbench analyze sliding_window --analysis receptive_field --problem length=4096 -p "
               "window=128\n"
               "  attnbench analyze hilo --json");
           return [o, &global] { return analyze(*o, global); };
         },
     .summary = "compute properties of one method (entropy, receptive field, …) without timing"});

}  // namespace

}  // namespace attnbench
