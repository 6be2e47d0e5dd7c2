#include "suite/parse.hpp"

#include <algorithm>
#include <filesystem>
#include <regex>
#include <set>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"
#include "methods/method.hpp"
#include "suite/canonical.hpp"
#include "suite/claims.hpp"
#include "suite/declaration.hpp"
#include "suite/overrides.hpp"

namespace attnbench {

namespace {

using yaml::Entry;
using yaml::Node;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  size_t start = 0;
  for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1)
    lines.push_back(text.substr(start, end - start));
  lines.push_back(text.substr(start));
  return lines;
}

std::map<std::string, Value> values_of(const Settings& settings) {
  std::map<std::string, Value> values;
  for (const auto& [k, s] : settings) values[k] = s.value;
  return values;
}

/// resolve_params with each complaint put at the parameter that it names. `what` is "method" or whatever the
/// parameters belong to.
std::optional<Params> resolve(const std::string& what, const std::string& id,
                              const std::vector<ParamSpec>& specs, const Settings& given,
                              const Problem& problem, const Place& otherwise, ErrorList& errors) {
  try {
    return resolve_params(id, specs, values_of(given), problem);
  } catch (const UsageError& e) {
    for (std::string line : lines_of(e.what())) {
      Place place = otherwise;
      std::string hint;
      for (const auto& [name, setting] : given)
        if (line.rfind(id + "." + name + ":", 0) == 0 ||
            line.find("no parameter '" + name + "'") != std::string::npos) {
          place = setting.place;
          if (setting.node) hint = quoted_hint(*setting.node);
        }
      if (what != "method" && line.rfind("method '", 0) == 0) line = what + line.substr(6);
      errors.add(place, line + hint);
    }
    return std::nullopt;
  }
}

/// B x (H D or C) x tokens or pixels or samples, in bytes of the widest element: what must fit into int64 for
/// any method to be able to say what it needs.
void check_sizes(const Problem& p) {
  int64_t bytes = 8;
  const auto times = [&](int64_t n) {
    if (n > 0 && __builtin_mul_overflow(bytes, n, &bytes))
      throw UsageError("problem: the sizes of '" + p.str() +
                       "' overflow: one tensor has more than 2^63 bytes");
  };
  times(p.batch);
  int64_t width = p.channels;
  if (p.heads && p.head_dim) {
    int64_t w = 0;
    if (__builtin_mul_overflow(p.heads, p.head_dim, &w)) w = INT64_MAX;
    width = std::max(width, w);
  }
  times(width);
  int64_t extent = std::max({p.tokens(), p.kv_length, p.samples});
  int64_t pixels = p.size.empty() ? 0 : 1;
  for (int64_t s : p.size)
    if (__builtin_mul_overflow(pixels, s, &pixels)) pixels = INT64_MAX;
  times(std::max(extent, pixels));
}

std::string value_label(const Value& v) {
  if (!v.is_list()) return v.str();
  std::string s;
  for (const Value& e : v.as_list()) s += (s.empty() ? "" : "x") + value_label(e);
  return s;
}

std::string last_part(const std::string& dotted) { return dotted.substr(dotted.rfind('.') + 1); }

bool glob_match(std::string_view pattern, std::string_view text) {
  // The usual two-pointer match: on a mismatch, let the last '*' take one character more.
  size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*')
      star = p++, mark = t;
    else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]))
      ++p, ++t;
    else if (star != std::string_view::npos)
      p = star + 1, t = ++mark;
    else
      return false;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

class Resolver {
 public:
  Resolver(const SuiteDeclaration& declared, const std::string& file, const SuiteOptions& options,
           ErrorList& errors)
      : d_(declared), file_(file), options_(options), errors_(errors) {}

  Suite suite() {
    Suite s;
    s.name = d_.name;
    s.title = d_.title;
    s.file = file_;
    s.measure = d_.measure;
    if (options_.quick) {
      s.measure.precision = std::max(s.measure.precision, kQuickPrecision);
      s.measure.max_time_s = std::min(s.measure.max_time_s, kQuickMaxTimeS);
    }
    s.measures = d_.measures;
    for (const std::string& device : options_.devices)
      if (const auto& words = device_words(); std::find(words.begin(), words.end(), device) == words.end())
        errors_.add({"--device " + device, 0, 0}, "there is no such device" + suggestion(device, words));
    analyses(s);
    check_root_axes();
    for (const CaseDeclaration& c : d_.cases) expand(c, s);
    check_names(s);
    baseline(s);
    claims(s);
    if (errors_.empty()) select(s);
    return s;
  }

 private:
  void analyses(Suite& s) {
    s.analyses = d_.analyses;
    for (const std::string& id : d_.analyses) {
      const Place& place = d_.analysis_places.at(id);
      try {
        const AnalysisInfo& info = find_analysis(id).info();
        const auto given = d_.analysis_params.find(id);
        if (given == d_.analysis_params.end()) continue;
        // The problem differs from case to case; parameters that repeat it are completed there.
        if (resolve("analysis", id, info.params, given->second, Problem{}, place, errors_))
          s.analysis_params[id] = values_of(given->second);
      } catch (const UsageError& e) {
        errors_.add(place, e.what());
      }
    }
  }

  static bool has_param(const Method& m, const std::string& target) {
    for (const ParamSpec& p : m.info().params)
      if ("params." + p.name == target) return true;
    return false;
  }

  /// A suite-wide params axis concerns the cases whose method has the parameter: at least one must.
  void check_root_axes() {
    std::vector<const Method*> methods;
    std::vector<std::string> names;
    for (const CaseDeclaration& c : d_.cases)
      for (const Method* m : all_methods())
        if (m->info().id == c.method) {
          methods.push_back(m);
          for (const ParamSpec& p : m->info().params) names.push_back("params." + p.name);
        }
    if (methods.size() < d_.cases.size()) return;  // an unknown method is reported; the axis may be its own
    for (const AxisGroup& g : d_.axes)
      for (size_t i = 0; i < g.targets.size(); ++i)
        if (g.targets[i].rfind("params.", 0) == 0 &&
            std::none_of(methods.begin(), methods.end(),
                         [&](const Method* m) { return has_param(*m, g.targets[i]); }))
          errors_.add(g.places[i], "no method of the suite has the parameter of the axis '" + g.targets[i] +
                                       "'" + suggestion(g.targets[i], names));
  }

  /// The axes of one case, own ones included; contradictions are reported.
  std::vector<const AxisGroup*> groups_of(const CaseDeclaration& c, const Method& method) {
    std::vector<const AxisGroup*> groups;
    for (const AxisGroup& g : d_.axes) {
      size_t foreign = 0;
      for (const std::string& t : g.targets) foreign += t.rfind("params.", 0) == 0 && !has_param(method, t);
      if (foreign == g.targets.size()) continue;
      if (foreign > 0) {
        errors_.add(g.places[0], "the zip group sets a parameter that method '" + c.method + "' of case '" +
                                     c.name + "' does not have; give the group to the cases it fits");
        continue;
      }
      groups.push_back(&g);
    }
    for (const AxisGroup& g : c.axes) groups.push_back(&g);
    std::map<std::string, Place> seen;
    for (const AxisGroup* g : groups)
      for (size_t i = 0; i < g->targets.size(); ++i) {
        const std::string& t = g->targets[i];
        const auto [it, fresh] = seen.emplace(t, g->places[i]);
        if (!fresh && !(it->second.str() == g->places[i].str()))
          errors_.add(g->places[i], "'" + t + "' of case '" + c.name +
                                        "' is set by two axes; the other one is in line " +
                                        std::to_string(it->second.line));
        const Place* explicit_place = nullptr;
        if (t == "device" && c.devices) explicit_place = &c.devices_place;
        const Settings& own = t.rfind("params.", 0) == 0 ? c.params : c.problem;
        if (const auto e = own.find(last_part(t)); t != "device" && e != own.end())
          explicit_place = &e->second.place;
        if (explicit_place)
          errors_.add(g->places[i],
                      "the axis '" + t + "' contradicts case '" + c.name + "', which sets it" +
                          (explicit_place->line ? " in line " + std::to_string(explicit_place->line)
                                                : " by " + explicit_place->str()));
      }
    return groups;
  }

  void set_key(Problem& p, const std::string& key, const Setting& s, ErrorList& errors) {
    if (key == "inputs") return inputs(p, s, errors);
    try {
      set_problem_key(p, key, s.value);
    } catch (const UsageError& e) {
      errors.add(s.node ? s.node->place : s.place,
                 e.what() + (s.node ? quoted_hint(*s.node) : std::string()));
    }
  }

  void inputs(Problem& p, const Setting& s, ErrorList& errors) {
    const Node& n = *s.node;
    Problem::Source source;
    if (n.is_scalar() && n.value.is_string()) {
      source.generator = n.text;
    } else if (n.is_map()) {
      Settings arguments;
      Place generator_place = n.place;
      for (const Entry& e : n.entries) {
        const bool is_text = e.value->is_scalar() && e.value->value.is_string();
        if (e.key == "generator" || e.key == "file") {
          if (!is_text) {
            errors.add(e.value->place, "inputs." + e.key + ": a text is wanted, not " + e.value->describe());
            return;
          }
          (e.key == "file" ? source.file : source.generator) = e.value->text;
          if (e.key == "generator") generator_place = e.value->place;
        } else {
          arguments[e.key] = {yaml::to_value(*e.value, errors), e.value, e.key_place};
        }
      }
      if (source.generator.empty() == source.file.empty()) {
        errors.add(s.place, "inputs: a generator or a file is wanted" +
                                std::string(source.file.empty() ? "" : ", not both"));
        return;
      }
      if (!source.file.empty()) {
        for (const auto& [key, argument] : arguments)
          if (key != "layer" && key != "first_head")
            errors.add(argument.place, "inputs: a file takes layer and first_head, not " + key);
          else if (!argument.value.is_int() || argument.value.as_int() < 0)
            errors.add(argument.place, "inputs." + key + ": a whole number >= 0 is wanted");
        source.arguments = values_of(arguments);
        namespace fs = std::filesystem;
        fs::path path(source.file);
        if (path.is_relative()) path = fs::path(file_).parent_path() / path;
        source.file = path.lexically_normal().string();
        std::error_code ec;
        if (!fs::exists(path, ec))
          errors.add(n.find("file")->value->place, "inputs: there is no file '" + source.file + "'");
        p.inputs = source;
        return;
      }
      source.arguments = values_of(arguments);
      if (generator(source.generator, generator_place, errors))
        resolve("generator", source.generator, find_generator(source.generator).params, arguments, p,
                generator_place, errors);
      p.inputs = source;
      return;
    } else {
      errors.add(n.place, "inputs: a generator with its arguments or a file is wanted, not " + n.describe());
      return;
    }
    generator(source.generator, n.place, errors);
    p.inputs = source;
  }

  static bool generator(const std::string& id, const Place& place, ErrorList& errors) {
    try {
      find_generator(id);
      return true;
    } catch (const UsageError& e) {
      errors.add(place, e.what());
      return false;
    }
  }

  /// The suite's problem below the case's own: a case of another kind takes only what all kinds share, and a
  /// null unsets what the suite sets.
  Settings problem_settings(const CaseDeclaration& c) const {
    Settings s = d_.problem;
    const auto own_kind = c.problem.find("kind");
    const auto kind = s.find("kind");
    const Value sequence("sequence");
    if (own_kind != c.problem.end() &&
        !(own_kind->second.value == (kind == s.end() ? sequence : kind->second.value)))
      std::erase_if(s, [](const auto& e) {
        return e.first != "batch" && e.first != "dtype" && e.first != "seed" && e.first != "causal";
      });
    for (const auto& [k, v] : d_.defaults)
      if (!s.contains(k)) s[k] = v;
    for (const auto& [k, v] : c.problem) {
      if (v.node && v.node->is_null())
        s.erase(k);
      else
        s[k] = v;
    }
    return s;
  }

  Problem make_problem(const Settings& settings, ErrorList& errors) {
    Problem p;
    // The kind first and the inputs last: they are checked against the rest.
    if (const auto kind = settings.find("kind"); kind != settings.end())
      set_key(p, "kind", kind->second, errors);
    for (const auto& [k, s] : settings)
      if (k != "kind" && k != "inputs") set_key(p, k, s, errors);
    if (const auto in = settings.find("inputs"); in != settings.end())
      set_key(p, "inputs", in->second, errors);
    return p;
  }

  Value lookup(const std::string& name, int offset, const Problem& problem,
               const std::map<std::string, Value>& params, const std::string& method,
               const std::string& device) const {
    if (name == "quick") return Value(options_.quick);
    if (name == "device") return Value(device);
    if (name == "method") return Value(method);
    const auto problem_map = problem_values(problem);
    if (name == "dtype") return problem_map.at("dtype");
    const size_t bracket = name.find('[');
    const std::string base = name.substr(0, bracket);
    std::vector<std::string> words{"quick", "device", "method", "dtype"};
    bool known = false;
    for (const ProblemKey& k : problem_keys()) {
      words.push_back(std::string("problem.") + k.key);
      if (base == words.back()) known = true;
    }
    for (const auto& [k, value] : params) {
      words.push_back("params." + k);
      if (base == words.back()) return indexed(value, name, bracket, offset);
    }
    if (!known) {
      std::string hint = suggestion(base, words);
      if (hint.empty() && base.find('.') == std::string::npos)
        hint = "; a text stands in quotes: '" + base + "'";
      throw ExpressionError(offset, "unknown name '" + base + "'" + hint);
    }
    const auto it = problem_map.find(base.substr(8));
    if (it == problem_map.end()) throw ExpressionError(offset, "'" + base + "' is not set for this case");
    return indexed(it->second, name, bracket, offset);
  }
  static Value indexed(const Value& v, const std::string& name, size_t bracket, int offset) {
    if (bracket == std::string::npos) return v;
    if (!v.is_list()) throw ExpressionError(offset, "'" + name.substr(0, bracket) + "' is no list");
    const std::string digits = name.substr(bracket + 1, name.find(']') - bracket - 1);
    if (name.find(']') + 1 != name.size())
      throw ExpressionError(offset, "'" + name + "': lists are one level deep");
    const size_t n = v.as_list().size();
    if (digits.size() > 3 || std::stoul(digits) >= n)
      throw ExpressionError(
          offset, "'" + name + "': the list has " + std::to_string(n) + " elements, counted from 0");
    return v.as_list()[std::stoul(digits)];
  }

  /// An error inside a condition counts as true, so that the case is checked further; it has been reported.
  bool holds(const Condition& c, const NameLookup& lookup) {
    if (!c.expression) return true;
    try {
      return evaluate_condition(*c.expression, lookup);
    } catch (const ExpressionError& e) {
      errors_.add(place_inside(*c.node, e.offset()), std::string("when: ") + e.what());
      return true;
    }
  }

  void expand(const CaseDeclaration& c, Suite& s) {
    base_names_.push_back(c.name);
    const Method* method = nullptr;
    try {
      method = &find_method(c.method);
    } catch (const UsageError& e) {
      errors_.add(c.method_place, e.what());
      return;
    }
    // Names are checked whether or not `when` lets the case happen.
    std::vector<std::string> names;
    for (const ParamSpec& p : method->info().params) names.push_back(p.name);
    for (const auto& [name, setting] : c.params)
      if (std::find(names.begin(), names.end(), name) == names.end())
        errors_.add(setting.place,
                    "method '" + c.method + "' has no parameter '" + name + "'" + suggestion(name, names));
    for (const AxisGroup& g : c.axes)
      for (size_t i = 0; i < g.targets.size(); ++i)
        if (g.targets[i].rfind("params.", 0) == 0 && !has_param(*method, g.targets[i]))
          errors_.add(g.places[i], "method '" + c.method + "' has no parameter '" + g.targets[i].substr(7) +
                                       "'" + suggestion(g.targets[i].substr(7), names));

    const std::vector<const AxisGroup*> groups = groups_of(c, *method);
    size_t total = 1;
    for (const AxisGroup* g : groups)
      if (__builtin_mul_overflow(total, g->rows.size(), &total) || total > kMaxCases) {
        errors_.add(c.place, "the axes of case '" + c.name + "' multiply to more than " +
                                 std::to_string(kMaxCases) + " cases");
        return;
      }
    for (size_t index = 0; index < total; ++index) {
      // The first axis varies slowest.
      std::vector<size_t> rows(groups.size());
      size_t rest = index;
      for (size_t i = groups.size(); i-- > 0; rest /= groups[i]->rows.size())
        rows[i] = rest % groups[i]->rows.size();
      one(c, *method, groups, rows, s);
    }
  }

  void one(const CaseDeclaration& c, const Method& method, const std::vector<const AxisGroup*>& groups,
           const std::vector<size_t>& rows, Suite& s) {
    Settings problem = problem_settings(c), params = c.params;
    std::vector<std::string> devices = d_.devices;
    if (c.devices) devices = *c.devices;
    bool own_devices = c.devices.has_value();
    Case made;
    made.base_name = made.name = c.name;
    made.method = c.method;
    made.place = c.place;
    // Labels are short; two axes whose last words agree keep their full paths.
    std::multiset<std::string> shorts;
    for (const AxisGroup* g : groups)
      for (const std::string& t : g->targets) shorts.insert(last_part(t));
    for (size_t i = 0; i < groups.size(); ++i)
      for (size_t k = 0; k < groups[i]->targets.size(); ++k) {
        const std::string& target = groups[i]->targets[k];
        const Setting& value = groups[i]->rows[rows[i]].values[k];
        made.axes[target] = value.value;
        if (groups[i]->rows.size() > 1) {
          const std::string label = shorts.count(last_part(target)) > 1 ? target : last_part(target);
          made.name += "/" + label + "=" + value_label(value.value);
        }
        if (target == "device") {
          const auto& words = device_words();
          if (!value.value.is_string() ||
              std::find(words.begin(), words.end(), value.value.as_string()) == words.end()) {
            errors_.add(value.node->place, "device: cpu or cuda is wanted, not " + value.node->describe() +
                                               suggestion(value.value.str(), words));
            return;
          }
          devices = {value.value.as_string()};
          own_devices = true;
        } else if (target.rfind("params.", 0) == 0) {
          params[target.substr(7)] = value;
        } else {
          problem[target.substr(8)] = value;
        }
      }
    if (!options_.devices.empty()) {
      if (own_devices)
        std::erase_if(devices, [this](const std::string& d) {
          return std::find(options_.devices.begin(), options_.devices.end(), d) == options_.devices.end();
        });
      else
        devices = options_.devices;
    }

    // Errors of a combination that `when` excludes do not count, so they wait here for its answer.
    ErrorList errors;
    made.problem = make_problem(problem, errors);
    made.params = values_of(params);
    bool problem_ok = errors.empty();
    if (problem_ok) try {
        check_problem(made.problem);
        check_sizes(made.problem);
      } catch (const UsageError& e) {
        problem_ok = false;
        errors.add(place_of_problem(problem, c, e.what()), e.what());
      }
    std::map<std::string, Value> resolved = made.params;
    if (problem_ok)
      if (const auto r =
              resolve("method", c.method, method.info().params, params, made.problem, c.place, errors))
        resolved = r->all();
    bool wanted = false;
    for (const std::string& device : devices) {
      const NameLookup names = [&](const std::string& n, int offset) {
        return lookup(n, offset, made.problem, resolved, c.method, device);
      };
      bool all = holds(c.when, names);
      for (size_t i = 0; i < groups.size(); ++i)
        for (const Condition& condition : groups[i]->rows[rows[i]].when) all = all && holds(condition, names);
      if (!all) continue;
      wanted = true;
      if (!errors.empty()) continue;
      Case here = made;
      here.device = device;
      if (devices.size() > 1) here.name += "@" + device;
      s.cases.push_back(std::move(here));
      resolved_.push_back(resolved);
    }
    if (wanted) errors_.add_all(errors);
    if (s.cases.size() > kMaxCases) {
      errors_.add(c.place, "the suite has more than " + std::to_string(kMaxCases) + " cases");
      errors_.raise();
    }
  }

  /// check_problem names the key first ("problem.grid: …"): its place, or the case's.
  static Place place_of_problem(const Settings& problem, const CaseDeclaration& c,
                                const std::string& message) {
    for (const auto& [key, setting] : problem)
      if (message.rfind("problem." + key + ":", 0) == 0) return setting.place;
    return c.place;
  }

  void check_names(const Suite& s) {
    std::set<std::string> seen;
    for (const Case& c : s.cases)
      if (!seen.insert(c.name).second)
        errors_.add(c.place, "two cases would be called '" + c.name + "'; does an axis list a value twice?");
  }

  void baseline(Suite& s) {
    if (d_.baseline.empty()) return;
    if (std::find(base_names_.begin(), base_names_.end(), d_.baseline) == base_names_.end())
      errors_.add(d_.baseline_place,
                  "baseline: there is no case '" + d_.baseline + "'" + suggestion(d_.baseline, base_names_));
    s.baseline = d_.baseline;
  }

  bool axis_exists(const std::string& key) const {
    const auto in = [&key](const std::vector<AxisGroup>& groups) {
      for (const AxisGroup& g : groups)
        for (const std::string& t : g.targets)
          if (t == key || last_part(t) == key) return true;
      return false;
    };
    return in(d_.axes) || std::any_of(d_.cases.begin(), d_.cases.end(),
                                      [&in](const CaseDeclaration& c) { return in(c.axes); });
  }

  bool axis_has(const std::string& key, const Value& value) const {
    const auto in = [&](const std::vector<AxisGroup>& groups) {
      for (const AxisGroup& g : groups)
        for (size_t i = 0; i < g.targets.size(); ++i)
          if (g.targets[i] == key || last_part(g.targets[i]) == key)
            for (const AxisGroup::Row& row : g.rows) {
              const Value& v = row.values[i].value;
              if (v == value || (v.is_number() && value.is_number() && v.as_double() == value.as_double()))
                return true;
            }
      return false;
    };
    return in(d_.axes) || std::any_of(d_.cases.begin(), d_.cases.end(),
                                      [&in](const CaseDeclaration& c) { return in(c.axes); });
  }

  void claims(Suite& s) {
    for (const ClaimDeclaration& d : d_.claims) {
      const auto knowing = [](bool quick) -> NameLookup {
        return [quick](const std::string& n, int offset) {
          if (n == "quick") return Value(quick);
          throw ExpressionError(offset, "a claim's `when` knows only `quick`, not '" + n + "'");
        };
      };
      for (const auto& [axis, place] : d.axis_places)
        if (!axis_exists(axis))
          errors_.add(place, "the suite has no axis '" + axis + "'" + axis_suggestion(axis));
      visit(*d.expression, [&](const Expression& e) {
        const Place place = place_inside(*d.expression_node, e.offset);
        if (e.kind == Expression::Kind::name)
          errors_.add(place, "a claim takes figures of cases, as in time(" + e.word + "); '" + e.word +
                                 "' alone has no value");
        if (e.has_case) case_of_claim(s, d, e, place);
        if (e.has_case && e.word == "scalar") scalar_of_claim(s, e, place);
      });
      const bool wanted = holds(d.when, knowing(options_.quick));
      // What a quick run leaves out was published all the same: it is listed, with the reason.
      if (!wanted && !(options_.quick && holds(d.when, knowing(false)))) continue;
      s.claims.push_back(d.claim);
      if (!wanted) s.claims.back().left_out = "left out by --quick";
    }
  }

  std::string axis_suggestion(const std::string& axis) const {
    std::vector<std::string> words;
    for (const AxisGroup& g : d_.axes)
      for (const std::string& t : g.targets) words.push_back(t), words.push_back(last_part(t));
    return suggestion(axis, words);
  }

  void case_of_claim(const Suite& s, const ClaimDeclaration& d, const Expression& e, const Place& place) {
    const auto known = [&](const std::string& n) {
      return std::find(base_names_.begin(), base_names_.end(), n) != base_names_.end() ||
             std::any_of(s.cases.begin(), s.cases.end(), [&n](const Case& c) { return c.name == n; });
    };
    if (!known(e.of.name)) {
      errors_.add(place, "claim '" + d.claim.id + "': there is no case '" + e.of.name + "'" +
                             suggestion(e.of.name, base_names_));
      return;
    }
    for (const auto& [axis, value] : e.of.axes)
      if (!axis_exists(axis))
        errors_.add(place, "claim '" + d.claim.id + "': the suite has no axis '" + axis + "'" +
                               axis_suggestion(axis));
    std::map<std::string, std::vector<std::string>> meant;  // by device
    for (const Case& c : s.cases)
      if (is_meant(c, e.of, d.claim.axes)) meant[c.device].push_back(c.name);
    // A value that no axis has is a slip; a case that `when` excludes here and now is not.
    for (const auto* bound : {&e.of.axes, &d.claim.axes})
      for (const auto& [axis, value] : *bound)
        if (axis_exists(axis) && !axis_has(axis, value))
          errors_.add(place,
                      "claim '" + d.claim.id + "': the axis '" + axis + "' has no value " + value.str());
    for (const auto& [device, names] : meant)
      if (names.size() > 1)
        errors_.add(place, "claim '" + d.claim.id + "': '" + e.of.str() + "' may be '" + names[0] + "' or '" +
                               names[1] + "'; bind the axis, as in " + e.of.name +
                               "[axis=value], or by the claim's `axes`");
  }

  void scalar_of_claim(const Suite& s, const Expression& e, const Place& place) {
    const Expression& what = *e.arguments.at(0);
    const std::string text =
        what.kind == Expression::Kind::literal && what.literal.is_string() ? what.literal.as_string() : "";
    const std::string analysis = text.substr(0, text.find('.'));
    if (text.find('.') == std::string::npos)
      errors_.add(
          place,
          "scalar(case, \"analysis.figure\") wants the figure as a text with a dot, as in \"entropy.mean\"");
    else if (std::find(s.analyses.begin(), s.analyses.end(), analysis) == s.analyses.end())
      errors_.add(place, "the suite does not ask for the analysis '" + analysis + "'" +
                             suggestion(analysis, s.analyses));
  }

  /// Filters last: names, baselines and claims are checked on the whole suite.
  void select(Suite& s) {
    if (s.cases.empty()) {
      std::string devices;
      for (const std::string& d : options_.devices) devices += (devices.empty() ? "" : ", ") + d;
      throw UsageError(file_ + ": no case is left" +
                       (devices.empty()
                            ? ": `when` excludes all of them"
                            : " on " + devices + ": the cases name other devices or `when` excludes them"));
    }
    std::vector<Case> kept;
    std::vector<std::map<std::string, Value>> params;
    for (size_t i = 0; i < s.cases.size(); ++i)
      if (passes_filter(s.cases[i], options_.filter)) {
        kept.push_back(s.cases[i]);
        params.push_back(resolved_[i]);
      }
    if (kept.empty()) {
      std::string filter, near;
      std::vector<std::string> names = base_names_;
      for (const std::string& f : options_.filter) {
        filter += (filter.empty() ? "" : " ") + f;
        if (near.empty()) near = suggestion(f, names);
      }
      throw UsageError(file_ + ": the filter '" + filter + "' matches none of the " +
                       std::to_string(s.cases.size()) + " cases" + near);
    }
    s.cases = std::move(kept);
    s.resolved_text = canonical_text(s, params);
  }

  const SuiteDeclaration& d_;
  const std::string& file_;
  const SuiteOptions& options_;
  ErrorList& errors_;
  std::vector<std::string> base_names_;
  std::vector<std::map<std::string, Value>> resolved_;  ///< parameters with defaults, parallel to the cases
};

Suite resolve_tree(const yaml::NodePtr& read, const std::string& file, const SuiteOptions& options) {
  ErrorList errors;
  const yaml::NodePtr root = apply_overrides(read, options.set, errors);
  const SuiteDeclaration declared = read_declaration(*root, errors);
  Suite suite = Resolver(declared, file, options, errors).suite();
  errors.raise();
  return suite;
}

}  // namespace

Suite load_suite(const std::string& path, const SuiteOptions& options) {
  return resolve_tree(yaml::read(path), path, options);
}

Suite parse_suite(const std::string& text, const std::string& file, const SuiteOptions& options) {
  return resolve_tree(yaml::parse(text, file), file, options);
}

bool passes_filter(const Case& c, const std::vector<std::string>& filter) {
  bool any_positive = false, matched = false;
  for (const std::string& f : filter) {
    const bool negative = !f.empty() && f[0] == '-';
    const std::string pattern = negative ? f.substr(1) : f;
    bool hit = false;
    if (pattern.size() >= 2 && pattern.front() == '/' && pattern.back() == '/') {
      try {
        const std::regex r(pattern.substr(1, pattern.size() - 2));
        hit = std::regex_search(c.name, r);
      } catch (const std::regex_error& e) {
        throw UsageError("the filter '" + f + "' is not a valid regular expression");
      }
    } else {
      hit = glob_match(pattern, c.name) || glob_match(pattern, c.base_name);
    }
    if (negative && hit) return false;
    any_positive = any_positive || !negative;
    matched = matched || (!negative && hit);
  }
  return matched || !any_positive;
}

const std::vector<std::string>& measure_words() {
  static const std::vector<std::string> words{"time", "flops", "memory", "error"};
  return words;
}

}  // namespace attnbench
