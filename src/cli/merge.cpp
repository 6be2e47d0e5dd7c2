// attnbench merge: the parts of a sharded run as one results file; also what is left of a damaged one.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/case_id.hpp"
#include "measure/shard.hpp"
#include "report/files.hpp"
#include "report/format.hpp"
#include "report/results_json.hpp"
#include "report/salvage.hpp"
#include "suite/claims.hpp"

namespace attnbench {

namespace {

struct Options {
  std::vector<std::string> files;
  std::string output;
  bool partial = false, salvage = false, force = false;
};

int merge(const Options& o, const GlobalOptions& global) {
  if (!o.output.empty()) {
    require_writable(o.output);
    std::error_code failed;
    if (std::filesystem::exists(o.output, failed) && !o.force)
      throw UsageError("'" + o.output + "' exists; --force replaces it");
  }
  std::vector<RunResult> parts;
  for (const std::string& file : o.files) {
    const std::string text = read_file(file);
    if (o.salvage) {
      Salvage s = salvage_results(text, file);
      if (!s.note.empty()) note(global.quiet, s.note);
      parts.push_back(std::move(s.run));
    } else {
      parts.push_back(run_from_json(text, file));
    }
  }
  RunResult run = merge_shards(std::move(parts), o.partial);
  run.suite_hash = hash_text(run.suite.resolved_text);
  for (const Claim& claim : run.suite.claims) run.claims.push_back(evaluate_claim(claim, run));
  const std::string text = to_json(run);
  if (!o.output.empty()) write_file_atomically(o.output, text);
  print_data(global.json ? text
                         : find_format("table").write(run, {.color = global.color, .width = stdout_width()}));
  for (const ClaimResult& c : run.claims)
    if (c.verdict == ClaimResult::Verdict::outside) return kAnswerIsNo;
  return kDone;
}

const bool registered = register_command(
    {.name = "merge",
     .order = 58,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("RESULTS", o->files, "results of the parts, in any order")
               ->required()
               ->type_name("FILE");
           sub.add_option("-o,--output", o->output, "results file to write")->type_name("FILE");
           sub.add_flag("--partial", o->partial, "merge although parts are missing");
           sub.add_flag("--salvage", o->salvage, "save the whole cases of damaged or cut files");
           sub.add_flag("--force", o->force, "replace an existing file");
           sub.footer(
               "Examples:\n"
               "  attnbench run ci --shard 1/2 -o 1.json     on one machine\n"
               "  attnbench run ci --shard 2/2 -o 2.json     on another of the same kind\n"
               "  attnbench merge 1.json 2.json -o all.json\n"
               "  attnbench merge cut.json --salvage -o rest.json\n"
               "\n"
               "Claims are evaluated over all parts: exit status 1 when one is outside.");
           return [o, &global] { return merge(*o, global); };
         },
     .summary = "join the results of shards; save what is left of a damaged file"});

}  // namespace

}  // namespace attnbench
