// attnbench describe: all there is to know about one method, analysis, generator or suite.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/json.hpp"
#include "cli/paths.hpp"
#include "cli/program.hpp"
#include "cli/text.hpp"
#include "inputs/inputs.hpp"
#include "suite/parse.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kWidth = 100;

std::string bound(double v) {
  return v == std::floor(v) && std::fabs(v) < 1e15 ? fmt::format("{:.0f}", v) : Value(v).str();
}

std::string type_text(const ParamSpec& s) {
  static const char* const words[] = {"integer", "number", "true or false", "", "list", "text"};
  std::string out = words[static_cast<int>(s.type)];
  for (const std::string& c : s.choices) out += (out.empty() ? "" : " | ") + c;
  if (s.min && s.max)
    out += fmt::format(" {} to {}", bound(*s.min), bound(*s.max));
  else if (s.min)
    out += " >= " + bound(*s.min);
  else if (s.max)
    out += " <= " + bound(*s.max);
  if (s.nullable) out += " | null";
  return out;
}

std::string default_text(const ParamSpec& s) {
  if (!s.from_problem.empty()) return "problem." + s.from_problem;
  return s.default_value.is_null() && !s.nullable ? "-" : s.default_value.str();
}

class Page {
 public:
  explicit Page(bool color) : color_(color) {}
  void title(const std::string& id, const std::string& title) {
    out_ += styled(id, Style::bold, color_) + (title.empty() ? "" : ": " + title) + "\n";
  }
  void line(const std::string& key, const std::string& text) {
    if (text.empty()) return;
    out_ += fmt::format("  {:<10}", key) + wrap(text, kWidth - 12, std::string(12, ' ')) + "\n";
  }
  void section(const std::string& heading) { out_ += "\n" + styled(heading, Style::bold, color_) + "\n"; }
  void text(const std::string& text) { out_ += "  " + wrap(text, kWidth - 2, "  ") + "\n"; }
  /// Formulas: the layout is the author's, nothing is wrapped.
  void verbatim(const std::string& text) {
    std::string line;
    for (char c : text + "\n") {
      if (c != '\n') {
        line += c;
      } else {
        out_ += line.empty() ? "\n" : "  " + line + "\n";
        line.clear();
      }
    }
  }
  void raw(const std::string& text) { out_ += text; }
  void params(const std::vector<ParamSpec>& specs) {
    section("Parameters");
    if (specs.empty()) return text("none");
    using Align = TextTable::Align;
    TextTable t(
        {{"name", Align::left}, {"default", Align::left}, {"values", Align::left}, {"meaning", Align::left}});
    for (const ParamSpec& s : specs) t.add({s.name, default_text(s), type_text(s), s.meaning});
    out_ += t.str(color_, "  ");
  }
  bool color() const { return color_; }
  const std::string& str() const { return out_; }

 private:
  std::string out_;
  bool color_;
};

template <class T>
std::string joined(const std::vector<T>& words) {
  std::string s;
  for (const T& w : words) s += (s.empty() ? "" : ", ") + std::string(name(w));
  return s;
}

std::string method_page(const MethodInfo& info, bool color) {
  Page page(color);
  page.title(info.id, info.title);
  page.raw("\n");
  if (!info.summary.empty()) page.text(info.summary);
  page.raw("\n");
  page.line("paper", info.paper + (info.arxiv.empty() ? "" : " (arXiv:" + info.arxiv + ")"));
  page.line("family", info.family);
  page.line("problems", joined(info.kinds));
  page.line("dtypes", joined(info.dtypes));
  page.line("devices", joined(info.backends));
  page.params(info.params);
  if (!info.formula.empty()) page.section("Formulas"), page.verbatim(info.formula);
  if (!info.cost.empty()) page.section("Cost"), page.text(info.cost);
  if (!info.figures.empty()) {
    page.section("Published figures");
    using Align = TextTable::Align;
    TextTable t({{"what", Align::left},
                 {"value", Align::left},
                 {"against", Align::left},
                 {"configuration", Align::left},
                 {"where", Align::left}});
    for (const PublishedFigure& f : info.figures)
      t.add({f.what, f.value, f.baseline, f.configuration, f.where});
    page.raw(t.str(color, "  "));
  }
  if (!info.notes.empty()) page.section("Notes");
  for (const std::string& n : info.notes) page.raw("  - " + wrap(n, kWidth - 4, "    ") + "\n");
  page.section("Problem");
  std::string example_params;
  for (const auto& [key, value] : info.example_params) example_params += "; " + key + " " + value.str();
  page.text("Used by verify and analyze unless --problem changes it: " + info.example.str() + example_params +
            ".");
  TextTable keys({{"key", TextTable::Align::left},
                  {"type", TextTable::Align::left},
                  {"example", TextTable::Align::left},
                  {"meaning", TextTable::Align::left}});
  const std::map<std::string, Value> example = problem_values(info.example);
  for (const ProblemKey& k : problem_keys()) {
    // Keys of other kinds of problem would only be in the way.
    bool mine = std::string(k.kinds) == "all";
    for (ProblemKind kind : info.kinds) mine |= std::string(k.kinds).find(name(kind)) != std::string::npos;
    if (!mine) continue;
    const auto it = example.find(k.key);
    keys.add({k.key, k.type, it == example.end() ? "-" : it->second.str(), k.meaning});
  }
  page.raw(keys.str(color, "  "));
  return page.str();
}

std::string analysis_page(const AnalysisInfo& info, bool color) {
  Page page(color);
  page.title(info.id, info.title);
  page.raw("\n");
  if (!info.summary.empty()) page.text(info.summary);
  if (!info.unit.empty()) page.raw("\n"), page.line("unit", info.unit);
  page.params(info.params);
  if (!info.formula.empty()) page.section("Formulas"), page.verbatim(info.formula);
  return page.str();
}

std::string generator_page(const Generator& g, bool color) {
  Page page(color);
  page.title(g.id, "input generator");
  page.raw("\n");
  page.text(g.summary);
  page.params(g.params);
  page.section("Use");
  page.raw("  in a suite:   problem: { inputs: { generator: " + g.id +
           (g.params.empty() ? "" : ", " + g.params[0].name + ": " + g.params[0].default_value.str()) +
           " } }\n");
  page.raw("  in a command: --problem inputs=" + g.id +
           (g.params.empty() ? "" : " inputs." + g.params[0].name + "=" + g.params[0].default_value.str()) +
           "\n");
  return page.str();
}

std::string settings(const std::map<std::string, Value>& values) {
  std::string s;
  for (const auto& [key, value] : values) s += (s.empty() ? "" : ", ") + key + " " + value.str();
  return s;
}

/// Where the inputs of a problem come from, with the arguments that the suite gives.
std::string source_of(const Problem& p) {
  if (!p.inputs.file.empty()) return "file " + p.inputs.file;
  if (p.inputs.generator.empty()) return "each input's own";
  const std::string given = settings(p.inputs.arguments);
  return p.inputs.generator + (given.empty() ? "" : " (" + given + ")");
}

std::string analyses_of(const Suite& s) {
  std::string out;
  for (const std::string& id : s.analyses) {
    const auto it = s.analysis_params.find(id);
    out += (out.empty() ? "" : ", ") + id;
    if (it != s.analysis_params.end()) out += " (" + settings(it->second) + ")";
  }
  return out;
}

std::string claim_text(const Claim& c) {
  const char* relation = c.compare == "at_least" ? ">= " : c.compare == "at_most" ? "<= " : "";
  return relation + c.published_text;
}

std::string suite_page(const Suite& s, bool color) {
  using Align = TextTable::Align;
  Page page(color);
  page.title(s.name, s.title);
  page.raw("\n");
  page.line("file", s.file);
  std::string measures;
  for (const std::string& m : s.measures) measures += (measures.empty() ? "" : ", ") + m;
  page.line("measures", measures);
  page.line("analyses", analyses_of(s));
  page.line("baseline", s.baseline);
  page.section("Inputs");
  std::map<std::string, std::vector<std::string>> sources;
  for (const Case& c : s.cases) sources[source_of(c.problem)].push_back(c.name);
  for (const auto& [source, cases] : sources) {
    std::string names;
    for (const std::string& n : cases) names += (names.empty() ? "" : ", ") + n;
    page.text(source + ": " + (cases.size() == s.cases.size() ? "all cases" : names));
    for (const Generator& g : all_generators())
      if (source == g.id || source.starts_with(g.id + " (")) page.text("  " + g.summary);
  }
  page.section("Cases");
  TextTable cases({{"case", Align::left},
                   {"method", Align::left},
                   {"parameters", Align::left},
                   {"problem", Align::left}});
  for (const Case& c : s.cases) cases.add({c.name, c.method, settings(c.params), c.problem.str()});
  page.raw(cases.str(color, "  "));
  if (!s.claims.empty()) {
    page.section("Claims");
    TextTable claims({{"claim", Align::left},
                      {"figure", Align::left},
                      {"published", Align::left},
                      {"device", Align::left},
                      {"where", Align::left}});
    for (const Claim& c : s.claims) claims.add({c.id, c.expression, claim_text(c), c.device, c.where});
    page.raw(claims.str(color, "  "));
  }
  return page.str();
}

Json suite_json(const Suite& s) {
  Json cases = Json::array(), claims = Json::array();
  for (const Case& c : s.cases) {
    Json params = Json::object();
    for (const auto& [key, value] : c.params) params[key] = to_json(value);
    cases.push_back({{"name", c.name},
                     {"method", c.method},
                     {"device", c.device},
                     {"params", std::move(params)},
                     {"problem", to_json(c.problem)},
                     {"inputs", source_of(c.problem)}});
  }
  for (const Claim& c : s.claims)
    claims.push_back({{"id", c.id},
                      {"expression", c.expression},
                      {"published", claim_text(c)},
                      {"device", c.device},
                      {"where", c.where}});
  return {{"suite", s.name},           {"title", s.title},           {"file", s.file},
          {"measure", s.measures},     {"analyses", s.analyses},     {"baseline", s.baseline},
          {"cases", std::move(cases)}, {"claims", std::move(claims)}};
}

/// A word that can only be a suite: no id has a dot or a slash.
bool is_suite_word(const std::string& word) { return word.find_first_of("./") != std::string::npos; }

int describe(const std::string& id, const GlobalOptions& global) {
  std::vector<std::string> known;
  for (const Method* m : all_methods()) {
    known.push_back(m->info().id);
    if (m->info().id != id) continue;
    if (global.json)
      print_json(to_json(m->info()));
    else
      print_data(method_page(m->info(), global.color));
    return kDone;
  }
  for (const Analysis* a : all_analyses()) {
    known.push_back(a->info().id);
    if (a->info().id != id) continue;
    if (global.json)
      print_json(to_json(a->info()));
    else
      print_data(analysis_page(a->info(), global.color));
    return kDone;
  }
  for (const Generator& g : all_generators()) {
    known.push_back(g.id);
    if (g.id != id) continue;
    if (global.json)
      print_json({{"id", g.id}, {"summary", g.summary}, {"params", to_json(g.params)}});
    else
      print_data(generator_page(g, global.color));
    return kDone;
  }
  if (is_suite_word(id)) {
    const Suite suite = load_suite(find_suite_file(id));
    if (global.json)
      print_json(suite_json(suite));
    else
      print_data(suite_page(suite, global.color));
    return kDone;
  }
  const std::string near = nearest_word(id, known);
  throw UsageError("there is no method, analysis or generator '" + id + "'" +
                   (near.empty() ? "; `attnbench list` shows all" : "; did you mean '" + near + "'?"));
}

const bool registered = register_command(
    {.name = "describe",
     .order = 21,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto id = std::make_shared<std::string>();
           sub.add_option("NAME", *id, "a method, an analysis, an input generator or the file of a suite")
               ->required()
               ->type_name("DESCRIBED");
           sub.footer(
               "Examples:\n"
               "  attnbench describe hilo\n"
               "  attnbench describe papers/hilo.yaml\n"
               "  attnbench describe hilo --json");
           return [id, &global] { return describe(*id, global); };
         },
     .summary = "parameters, formulas, paper, published figures and notes of one method, analysis, generator "
                "or suite"});

}  // namespace

}  // namespace attnbench
