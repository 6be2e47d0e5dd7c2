// attnbench list: what there is to run.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "analysis/analysis.hpp"
#include "cli/json.hpp"
#include "cli/paths.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/inputs.hpp"
#include "suite/parse.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

/// One kind of thing that can be listed.
struct Section {
  std::string name;
  std::vector<std::string> (*ids)();
  Json (*json)();
  std::string (*table)(bool color);
};

std::string dtypes_text(const MethodInfo& info) {
  std::string s;
  for (DType t : info.dtypes) s += (s.empty() ? "" : " ") + std::string(name(t));
  return s;
}

std::string kinds_text(const MethodInfo& info) {
  std::string s;
  for (ProblemKind k : info.kinds) s += (s.empty() ? "" : " ") + std::string(name(k));
  return s;
}

std::string devices_text(const MethodInfo& info) {
  std::string s;
  for (DeviceKind d : info.backends) s += (s.empty() ? "" : " ") + std::string(name(d));
  return s;
}

std::vector<std::string> method_ids() {
  std::vector<std::string> ids;
  for (const Method* m : all_methods()) ids.push_back(m->info().id);
  return ids;
}

Json methods_json() {
  Json list = Json::array();
  for (const Method* m : all_methods()) list.push_back(to_json(m->info()));
  return list;
}

std::string methods_table(bool color) {
  using Align = TextTable::Align;
  TextTable t({{"method", Align::left},
               {"title", Align::left},
               {"family", Align::left},
               {"problems", Align::left},
               {"dtypes", Align::left},
               {"devices", Align::left}});
  for (const Method* m : all_methods()) {
    const MethodInfo& i = m->info();
    t.add({i.id, i.title, i.family, kinds_text(i), dtypes_text(i), devices_text(i)});
  }
  return t.str(color, "  ", stdout_width());
}

std::vector<std::string> generator_ids() {
  std::vector<std::string> ids;
  for (const Generator& g : all_generators()) ids.push_back(g.id);
  return ids;
}

Json generators_json() {
  Json list = Json::array();
  for (const Generator& g : all_generators())
    list.push_back({{"id", g.id}, {"summary", g.summary}, {"params", to_json(g.params)}});
  return list;
}

std::string generators_table(bool color) {
  TextTable t({{"generator", TextTable::Align::left}, {"summary", TextTable::Align::left}});
  for (const Generator& g : all_generators()) t.add({g.id, g.summary});
  return t.str(color, "  ", stdout_width());
}

std::vector<std::string> analysis_ids() {
  std::vector<std::string> ids;
  for (const Analysis* a : all_analyses()) ids.push_back(a->info().id);
  return ids;
}

Json analyses_json() {
  Json list = Json::array();
  for (const Analysis* a : all_analyses()) list.push_back(to_json(a->info()));
  return list;
}

std::string analyses_table(bool color) {
  TextTable t({{"analysis", TextTable::Align::left},
               {"title", TextTable::Align::left},
               {"unit", TextTable::Align::left},
               {"summary", TextTable::Align::left}});
  for (const Analysis* a : all_analyses()) {
    const AnalysisInfo& i = a->info();
    t.add({i.id, i.title, i.unit, i.summary});
  }
  return t.str(color, "  ", stdout_width());
}

/// A suite that comes with the program; `error` when it cannot be read (a method of it may be missing).
struct Bundled {
  std::string file, name, title, error;
  size_t cases = 0, claims = 0;
};

std::vector<Bundled> read_bundled() {
  std::vector<Bundled> out;
  for (const std::string& file : bundled_suites()) {
    Bundled b{file, "", "", "", 0, 0};
    try {
      const Suite s = load_suite(find_suite_file(file));
      b.name = s.name, b.title = s.title, b.cases = s.cases.size(), b.claims = s.claims.size();
    } catch (const Error& e) {
      b.error = e.what();
    }
    out.push_back(std::move(b));
  }
  return out;
}

Json suites_json() {
  Json list = Json::array();
  for (const Bundled& b : read_bundled()) {
    Json j{{"file", b.file}};
    if (b.error.empty())
      j["name"] = b.name, j["title"] = b.title, j["cases"] = b.cases, j["claims"] = b.claims;
    else
      j["error"] = b.error;
    list.push_back(std::move(j));
  }
  return list;
}

std::string suites_table(bool color) {
  using Align = TextTable::Align;
  TextTable t(
      {{"suite", Align::left}, {"title", Align::left}, {"cases", Align::right}, {"claims", Align::right}});
  for (const Bundled& b : read_bundled()) {
    if (b.error.empty())
      t.add({b.file, b.title, std::to_string(b.cases), std::to_string(b.claims)});
    else
      t.add({b.file, "cannot be read, see `attnbench validate " + b.file + "`", "-", "-"}, Style::yellow);
  }
  return t.str(color, "  ", stdout_width());
}

const std::vector<Section>& sections() {
  static const std::vector<Section> all{
      {"methods", method_ids, methods_json, methods_table},
      {"analyses", analysis_ids, analyses_json, analyses_table},
      {"generators", generator_ids, generators_json, generators_table},
      {"suites", bundled_suites, suites_json, suites_table},
  };
  return all;
}

struct Options {
  std::string what;
  bool names = false;
};

int list(const Options& o, const GlobalOptions& global) {
  Json all = Json::object();
  for (const Section& s : sections()) {
    if (!o.what.empty() && o.what != s.name) continue;
    if (o.names) {
      for (const std::string& id : s.ids()) print_data(id + "\n");
    } else if (global.json) {
      all[s.name] = s.json();
    } else {
      print_data(styled(s.name, Style::bold, global.color) + "\n" + s.table(global.color) + "\n");
    }
  }
  if (global.json && !o.names) print_json(all);
  return kDone;
}

const bool registered =
    register_command({.name = "list",
                      .order = 20,
                      .add =
                          [](CLI::App& sub, const GlobalOptions& global) {
                            auto o = std::make_shared<Options>();
                            std::vector<std::string> words;
                            for (const Section& s : sections()) words.push_back(s.name);
                            std::string choices;
                            for (const std::string& w : words) choices += (choices.empty() ? "" : ",") + w;
                            sub.add_option("WHAT", o->what, fmt::format("only one kind: {}", choices))
                                ->check(CLI::IsMember(words))
                                ->type_name("{" + choices + "}");
                            sub.add_flag("--names", o->names, "only the names, one a line (for scripts)");
                            sub.footer(
                                "Examples:\n"
                                "  attnbench list\n"
                                "  attnbench list methods --names\n"
                                "  attnbench list --json | jq '.methods[].id'");
                            return [o, &global] { return list(*o, global); };
                          },
                      .summary = "list methods, analyses, input generators and suites"});

}  // namespace

}  // namespace attnbench
