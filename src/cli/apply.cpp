// attnbench apply: a method once, on given tensors, so that anyone can check it against their own code.
#include "inputs/apply.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/arguments.hpp"
#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string method, case_file, input, weights, output, check, device = "cpu";
  std::vector<std::string> params, problem;
  double tolerance = 0;
  int threads = 0;
};

ApplyRequest request_of(const Options& o) {
  ApplyRequest r;
  if (!o.case_file.empty()) {
    if (!o.method.empty() || !o.input.empty() || !o.params.empty() || !o.problem.empty())
      throw UsageError("--case names method, parameters, problem and inputs; leave them out");
    r = read_case_file(o.case_file);
    if (!o.weights.empty()) r.weights_file = o.weights;
  } else {
    if (o.method.empty()) throw UsageError("name a method, or give --case FILE");
    r.method = o.method;
    r.params = key_values("--param", o.params);
    r.problem = problem_of_file(find_method(o.method).info(), o.input, o.problem);
    r.inputs_file = o.input;
    r.weights_file = o.weights;
    r.tolerance = r.problem.dtype == DType::bf16 ? 2e-2 : r.problem.dtype == DType::f16 ? 4e-3 : 1e-5;
  }
  if (o.tolerance > 0) r.tolerance = o.tolerance;
  return r;
}

Json report_json(const ApplyRequest& r, const TensorMap& outputs, const std::vector<ApplyCheck>& checks) {
  Json j{{"method", r.method}, {"problem", to_json(r.problem)}, {"outputs", Json::array()}};
  for (const auto& [key, t] : outputs) {
    Json shape = Json::array();
    for (int64_t d : t.shape()) shape.push_back(d);
    j["outputs"].push_back({{"name", key}, {"dtype", std::string(name(t.dtype()))}, {"shape", shape}});
  }
  if (checks.empty()) return j;
  j["checks"] = Json::array();
  for (const ApplyCheck& c : checks)
    j["checks"].push_back({{"tensor", c.tensor},
                           {"measure", c.absolute ? "max_absolute" : "relative_l2"},
                           {"error", finite(c.error)},
                           {"tolerance", c.tolerance},
                           {"passed", c.passed},
                           {"worst", c.worst}});
  return j;
}

std::string report_text(const ApplyRequest& r, const TensorMap& outputs,
                        const std::vector<ApplyCheck>& checks, bool color) {
  using Align = TextTable::Align;
  std::string out = r.method + " on " + r.problem.str() + "\n";
  if (checks.empty()) {
    TextTable t({{"output", Align::left}, {"dtype", Align::left}, {"shape", Align::left}});
    for (const auto& [key, tensor] : outputs)
      t.add({key, std::string(name(tensor.dtype())), tensor.shape().str()});
    return out + t.str(color, "  ");
  }
  TextTable t({{"output", Align::left},
               {"measure", Align::left},
               {"error", Align::right},
               {"tolerance", Align::right},
               {"verdict", Align::left},
               {"worst element", Align::left}});
  for (const ApplyCheck& c : checks)
    t.add({c.tensor, c.absolute ? "largest absolute" : "relative L2", fmt::format("{:.3g}", c.error),
           fmt::format("{:.3g}", c.tolerance), c.passed ? "ok" : "FAILED", c.passed ? "" : c.worst},
          c.passed ? Style::plain : Style::red);
  return out + t.str(color, "  ");
}

int run_apply(const Options& o, const GlobalOptions& global) {
  if (o.output.empty() && o.check.empty()) throw UsageError("give --output FILE, --check FILE, or both");
  if (!o.output.empty()) {
    const std::filesystem::path folder = std::filesystem::absolute(o.output).parent_path();
    if (!std::filesystem::is_directory(folder))
      throw UsageError("--output: there is no folder '" + folder.string() + "'");
    if (std::filesystem::is_directory(o.output))
      throw UsageError("--output: '" + o.output + "' is a folder, a file is wanted");
  }
  ApplyRequest request = request_of(o);
  if (!o.check.empty())
    for (const auto& [key, shape] : safetensors_shapes(o.check)) request.extra.push_back(key);
  const TensorMap outputs = apply(backend_of(o.device), request, o.threads);
  if (!o.output.empty())
    write_safetensors(o.output, outputs, {{"method", request.method}, {"problem", request.problem.str()}});
  const std::vector<ApplyCheck> checks =
      o.check.empty() ? std::vector<ApplyCheck>{} : check_outputs(outputs, o.check, request);
  if (global.json)
    print_json(report_json(request, outputs, checks));
  else if (!global.quiet || !checks.empty())
    print_data(report_text(request, outputs, checks, global.color));
  for (const ApplyCheck& c : checks)
    if (!c.passed) return kAnswerIsNo;
  return kDone;
}

const bool registered = register_command(
    {.name = "apply",
     .order = 32,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("METHOD", o->method, "the method; left out with --case")->type_name("METHOD");
           sub.add_option("-i,--input", o->input,
                          ".safetensors with the method's inputs by name, or .npy for its only input; left "
                          "out: generated from the problem's seed")
               ->type_name("FILE");
           sub.add_option("-w,--weights", o->weights,
                          ".safetensors with the weights by name; left out: seeded")
               ->type_name("FILE");
           sub.add_option("-p,--param", o->params,
                          "a parameter of the method, as key=value; several may follow")
               ->type_name("KEY=VALUE");
           sub.add_option("--problem", o->problem,
                          "a key of the problem, as key=value, e.g. grid=[14,14]; extents that the input's "
                          "shapes tell need not be given")
               ->type_name("KEY=VALUE");
           sub.add_option("-o,--output", o->output, "where the outputs go, .safetensors")->type_name("FILE");
           sub.add_option("--case", o->case_file,
                          "CASE.json with method, params, problem and tolerance; tensors come from "
                          "CASE.in.safetensors and CASE.w.safetensors beside it")
               ->type_name("FILE");
           sub.add_option("--check", o->check,
                          "compare with the tensors of this .safetensors; exit 1 above the tolerance")
               ->type_name("FILE");
           sub.add_option(
                  "--tolerance", o->tolerance,
                  "relative L2 for --check; default by dtype (1e-5, bf16 2e-2, f16 4e-3) or the case's")
               ->check(CLI::PositiveNumber)
               ->type_name("X");
           sub.add_option("-d,--device", o->device, "where to run; default cpu")->type_name("{cpu,cuda}");
           sub.add_option("-t,--threads", o->threads, "CPU threads; default all")
               ->check(CLI::Range(1, 4096))
               ->type_name("N");
           sub.footer(
               "Examples:\n"
               "  attnbench apply dense --input qkv.safetensors --problem causal=true --output "
               "out.safetensors\n"
               "  attnbench apply hilo -i x.safetensors -w w.safetensors -p alpha=0.5 --problem grid=[14,14] "
               "heads=12 "
               "-o out.safetensors\n"
               "  attnbench apply --case 1.json --output out.safetensors --check 1.out.safetensors");
           return [o, &global] { return run_apply(*o, global); };
         },
     .summary = "run a method once on given tensors, and compare its outputs with yours"});

}  // namespace

}  // namespace attnbench
