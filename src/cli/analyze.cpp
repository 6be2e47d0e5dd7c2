// attnbench analyze: properties of one method on one problem, or of attention maps from a file, without
// timing.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "analysis/analysis.hpp"
#include "analysis/attention_maps.hpp"
#include "cli/arguments.hpp"
#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/atomic_file.hpp"
#include "inputs/inputs.hpp"
#include "measure/case_id.hpp"
#include "measure/clock.hpp"
#include "measure/environment.hpp"
#include "report/files.hpp"
#include "report/format.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string method, maps, input, weights, device = "cpu";
  std::vector<std::string> analyses, params, problem, analysis_params, tensors, output;
  double row_tolerance = NAN, attended_above = NAN;
  int threads = 0;
  int64_t leading = 0;
};

/// What is analysed: an instance that has run, or maps of a file.
struct Subject {
  std::string id, name, text;  ///< name: of the case in files; text: for people
  Problem problem;
  std::map<std::string, Value> params;
  std::unique_ptr<Instance> instance;
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

Subject method_subject(Context& ctx, const Options& o) {
  const Method& method = find_method(o.method);
  Subject s;
  s.id = s.name = o.method;
  s.problem = problem_of_file(method.info(), o.input, o.problem);
  if (!o.input.empty()) s.problem.inputs = {"", {}, o.input};
  check_problem(s.problem);
  std::map<std::string, Value> given = key_values("--param", o.params);
  // The example's parameters are those of the example's shapes.
  if (o.input.empty()) given.insert(method.info().example_params.begin(), method.info().example_params.end());
  const Params params = resolve_params(method.info().id, method.info().params, given, s.problem);
  wanted_of(o, s.problem);  // refused before the method takes its time
  s.params = params.all();
  s.text = o.method + " on " + s.problem.str();
  s.instance = method.make(ctx, s.problem, params);
  fill_instance(ctx, *s.instance, s.problem, o.weights);
  s.instance->prepare(ctx);
  s.instance->run(ctx);
  ctx.backend().synchronize();
  return s;
}

Subject maps_subject(const Options& o) {
  AttentionMapsOptions options;
  for (const std::string& list : o.tensors)
    for (const std::string& word : comma_list("--tensor", list)) options.tensors.push_back(word);
  options.row_tolerance = o.row_tolerance;
  if (!std::isnan(o.attended_above)) options.attended_above = o.attended_above;
  options.leading = o.leading;
  auto maps = std::make_unique<AttentionMaps>(o.maps, options);
  Subject s;
  s.id = "attention_maps";
  s.name = std::filesystem::path(o.maps).stem().string();
  s.problem = maps->shape();
  const std::map<std::string, Value> keys = key_values("--problem", o.problem);
  if (const auto grid = keys.find("grid"); grid != keys.end()) {
    // Maps of [N, N] are a sequence until a grid says where its tokens lie.
    s.problem.length = 0;
    s.problem.kind = grid->second.is_list() && grid->second.as_list().size() == 3 ? ProblemKind::video
                                                                                  : ProblemKind::image;
  }
  attnbench::set_problem(s.problem, keys);
  maps->set_problem(s.problem);
  wanted_of(o, s.problem);
  maps->check();
  s.params["file"] = o.maps;
  s.params["layers"] = maps->layers();
  if (o.leading > 0) s.params["leading_tokens"] = o.leading;
  s.params["attended_above"] = options.attended_above;
  s.text = fmt::format("{}: {} {} of maps, {}", o.maps, maps->layers(),
                       maps->layers() == 1 ? "layer" : "layers", s.problem.str());
  s.instance = std::move(maps);
  return s;
}

void check_options(const Options& o) {
  if (o.method.empty() == o.maps.empty())
    throw UsageError(o.maps.empty()
                         ? "analyze: a METHOD or --maps FILE is wanted"
                         : "--maps: analyses of a file's maps take no method ('" + o.method + "')");
  const auto none = [&o](bool given, const char* option) {
    if (given)
      throw UsageError(std::string(option) +
                       (o.maps.empty() ? ": goes with --maps only" : ": does not go with --maps"));
  };
  if (o.maps.empty()) {
    none(!o.tensors.empty(), "--tensor");
    none(!std::isnan(o.row_tolerance), "--row-tolerance");
    none(!std::isnan(o.attended_above), "--attended-above");
    none(o.leading > 0, "--leading-tokens");
  } else {
    none(!o.params.empty(), "--param");
    none(!o.weights.empty(), "--weights");
    none(!o.input.empty(), "--input");
    none(o.device != "cpu", "--device");
  }
}

// ---- files
// ----------------------------------------------------------------------------------------------------

struct Target {
  const Format* format;
  std::string path;
};

/// By the names of the files. A .csv holds the values of the analyses, a row each: the row a case that `run`
/// writes has no place for series.
std::vector<Target> targets_of(const Options& o) {
  std::vector<Target> targets;
  for (const std::string& path : o.output) {
    const Format* format = &format_of_file(path);
    if (format->id() == "csv") format = &find_format("analyses");
    std::error_code failed;
    if (!o.maps.empty() && std::filesystem::equivalent(o.maps, path, failed))
      throw UsageError("--output: '" + path + "' is the file of maps itself");
    for (const Target& t : targets)
      if (t.path == path) throw UsageError("--output: '" + path + "' is given twice");
    require_writable(path);
    targets.push_back({format, path});
  }
  return targets;
}

/// The analyses as a run of one case, so that every format and `report` read them.
RunResult as_run(const Options& o, const Subject& subject, Backend& backend,
                 const std::vector<Wanted>& wanted, std::vector<AnalysisResult> results,
                 std::vector<std::string> warnings, const std::string& started_at) {
  RunResult run;
  run.suite.name = "analyze_" + subject.id;
  run.suite.title = subject.text;
  run.started_at = started_at;
  run.finished_at = utc_now();
  run.environment = collect_environment(o.threads, backend.device() == DeviceKind::cpu ? nullptr : &backend);
  for (const Wanted& w : wanted) {
    run.suite.analyses.push_back(w.analysis->info().id);
    run.suite.analysis_params[w.analysis->info().id] = w.params.all();
  }
  CaseResult c;
  c.spec.name = c.spec.base_name = subject.name;
  c.spec.method = subject.id;
  c.spec.params = c.params = subject.params;
  c.spec.problem = subject.problem;
  c.spec.device = o.device;
  c.id = case_id(c.spec, c.params, run.suite.measure);
  c.status = CaseStatus::unverified;
  c.reason = "Analysed only: neither verified nor timed.";
  c.analyses = std::move(results);
  c.warnings = std::move(warnings);
  run.suite.cases = {c.spec};
  run.cases = {std::move(c)};
  run.suite_hash = hash_text(run.cases[0].id);
  return run;
}

int analyze(const Options& o, const GlobalOptions& global) {
  check_options(o);
  const std::vector<Target> targets = targets_of(o);
  const std::string started_at = utc_now();
  Context ctx(backend_of(o.device), o.threads);
  Subject subject = o.maps.empty() ? method_subject(ctx, o) : maps_subject(o);
  const std::vector<Wanted> wanted = wanted_of(o, subject.problem);

  Json results = Json::array();
  std::vector<AnalysisResult> all;
  std::vector<std::string> refused;
  if (!global.json) print_data(subject.text + "\n\n");
  for (const Wanted& w : wanted) {
    const AnalysisInfo& info = w.analysis->info();
    try {
      const AnalysisResult r = w.analysis->compute(ctx, *subject.instance, subject.problem, w.params);
      if (global.json)
        results.push_back(result_json(r));
      else
        print_data(result_text(r, info, global.color));
      all.push_back(r);
    } catch (const Unsupported& e) {
      // Where all analyses were asked for, most methods have not all properties.
      if (!o.analyses.empty()) refused.push_back("analysis '" + info.id + "': " + e.what());
      if (global.json)
        results.push_back({{"analysis", info.id}, {"unsupported", e.what()}});
      else
        print_data(styled(info.id, Style::bold, global.color) + ": unsupported: " + e.what() + "\n\n");
    }
  }
  if (global.json) {
    Json p = Json::object();
    for (const auto& [key, value] : subject.params) p[key] = to_json(value);
    print_json({{"method", subject.id},
                {"params", std::move(p)},
                {"problem", to_json(subject.problem)},
                {"analyses", std::move(results)}});
  }
  const bool computed = !all.empty();
  if (!targets.empty()) {
    const RunResult run =
        as_run(o, subject, ctx.backend(), wanted, std::move(all), std::move(refused), started_at);
    for (const Target& t : targets) {
      write_file_atomically(t.path, t.format->write(run));
      note(global.quiet, "wrote " + t.path);
    }
  }
  return computed ? kDone : kSomeFailed;
}

const bool registered = register_command(
    {.name = "analyze",
     .order = 31,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("METHOD", o->method, "the method; left out with --maps")->type_name("METHOD");
           sub.add_option("-m,--maps", o->maps,
                          "attention maps instead of a method: a .safetensors file, see below")
               ->type_name("FILE");
           sub.add_option("--tensor", o->tensors,
                          "tensors of --maps, separated by commas; default all of floats")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("NAME");
           sub.add_option("--row-tolerance", o->row_tolerance,
                          "how far a row of --maps may sum from 1; default 1e-4, f16 2e-3, bf16 8e-3")
               ->check(CLI::Range(0.0, 1.0))
               ->type_name("X");
           sub.add_option("--attended-above", o->attended_above,
                          "keys of --maps with more weight than this count as attended to (density, "
                          "receptive_field, selection_overlap); default 0")
               ->check(CLI::Range(0.0, 1.0))
               ->type_name("X");
           sub.add_option("--leading-tokens", o->leading,
                          "tokens of --maps before the grid that have no place on it: 1 for [CLS], more with "
                          "registers; distances leave them out, everything else counts them; default 0")
               ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
               ->type_name("N");
           sub.add_option("-a,--analysis", o->analyses,
                          "analyses, separated by commas; default all that apply")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("ANALYSIS");
           sub.add_option(
                  "-o,--output", o->output,
                  "a file of the results too, its name tells the format: .html (page with charts), .csv "
                  "(one value a row), .json (for `report`), .md; repeatable")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("FILE");
           sub.add_option("-p,--param", o->params,
                          "a parameter of the method, as key=value; several may follow")
               ->type_name("KEY=VALUE");
           sub.add_option("--problem", o->problem,
                          "a key of the problem, as key=value; default: the method's example")
               ->type_name("KEY=VALUE");
           sub.add_option("--analysis-param", o->analysis_params,
                          "a parameter of an analysis, as analysis.key=value")
               ->type_name("KEY=VALUE");
           sub.add_option("-i,--input", o->input,
                          ".safetensors (.npy: one tensor) with the method's inputs, q, k and v or x or "
                          "tokens, which also say its shapes; left out: generated")
               ->type_name("FILE");
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
               "\n\nMaps of a file are [N, M], [H, N, M], [B, H, N, M] or [L, B, H, N, M], or such a tensor "
               "a "
               "layer, taken in\n"
               "the order of their names. Rows are probabilities: the first that is not, is named. The file "
               "is "
               "read row by\n"
               "row. `--problem causal=true` and `grid=[14,14]` say what the maps do not; I32 `tokens` [B, "
               "N] "
               "beside them\n"
               "are scored for induction."
               "\n\nExamples:\n"
               "  attnbench analyze sliding_window --analysis receptive_field --problem length=4096 -p "
               "window=128\n"
               "  attnbench analyze hilo --json\n"
               "  attnbench analyze sliding_window -a receptive_field --analysis-param "
               "'receptive_field.layers=[self, dense]'\n"
               "  attnbench analyze --maps vit.safetensors -a entropy,attention_distance --problem "
               "grid=[14,14]\n"
               "  attnbench analyze --maps vit.safetensors -a attention_distance --problem grid=[14,14] "
               "--leading-tokens 1\n"
               "  attnbench analyze --maps vit.safetensors -o heads.html -o heads.csv\n"
               "  attnbench analyze dense --input qkv.safetensors -a entropy,sinks");
           return [o, &global] { return analyze(*o, global); };
         },
     .summary = "properties of a method or of attention maps (entropy, receptive field, …) without timing"});

}  // namespace

}  // namespace attnbench
