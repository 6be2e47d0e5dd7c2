#include "suite/declaration.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "methods/params.hpp"
#include "suite/claims.hpp"
#include "suite/parse.hpp"

namespace attnbench {

namespace {

using yaml::Entry;
using yaml::Node;
using yaml::NodePtr;

std::string listed(const std::vector<std::string>& words) {
  std::string s;
  for (const std::string& w : words) s += (s.empty() ? "" : ", ") + w;
  return s;
}

/// Names go into expressions, file names and reports, so they hold no spaces, brackets or slashes.
bool is_name(const std::string& s) {
  return !s.empty() && s[0] != '-' && s[0] != '.' && std::all_of(s.begin(), s.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-' || c == '.';
  });
}

class Reader {
 public:
  explicit Reader(ErrorList& errors) : errors_(errors) {}

  SuiteDeclaration read(const Node& root) {
    SuiteDeclaration s;
    s.measures = measure_words();
    if (!root.is_map()) {
      errors_.add(root.place, "a suite is a map with the keys suite, cases, …, not " + root.describe());
      return s;
    }
    check_keys(root, "of a suite",
               {"suite", "title", "defaults", "problem", "axes", "zip", "cases", "baseline", "measure",
                "analyses", "claims"});
    if (const Entry* e = want(root, "suite", "a suite needs a name"))
      s.name = name(*e->value, "the suite's name");
    if (const Entry* e = root.find("title")) s.title = text(*e->value, "title");
    if (const Entry* e = root.find("defaults")) defaults(*e, s);
    if (const Entry* e = root.find("problem")) s.problem = problem(*e->value);
    axes(root, s.axes);
    if (const Entry* e = want(root, "cases", "a suite needs cases")) cases(*e->value, s.cases);
    if (const Entry* e = root.find("baseline")) {
      s.baseline = text(*e->value, "baseline");
      s.baseline_place = e->value->place;
    }
    if (const Entry* e = root.find("measure")) s.measures = words(*e->value, "measure", measure_words());
    if (const Entry* e = root.find("analyses")) analyses(*e->value, s);
    if (const Entry* e = root.find("claims")) claims(*e->value, s.claims);
    return s;
  }

 private:
  void fail(const Node& n, const std::string& message) { errors_.add(n.place, message + quoted_hint(n)); }

  void check_keys(const Node& map, const std::string& of, const std::vector<std::string>& keys) {
    for (const Entry& e : map.entries)
      if (std::find(keys.begin(), keys.end(), e.key) == keys.end())
        errors_.add(e.key_place, "unknown key '" + e.key + "' " + of + suggestion(e.key, keys));
  }

  const Entry* want(const Node& map, const std::string& key, const std::string& message) {
    const Entry* e = map.find(key);
    if (!e) errors_.add(map.place, message + ": `" + key + ": …` is missing");
    return e;
  }

  bool is_map(const Node& n, const std::string& what) {
    if (!n.is_map()) fail(n, what + ": a map is wanted, not " + n.describe());
    return n.is_map();
  }
  bool is_list(const Node& n, const std::string& what) {
    if (!n.is_list()) fail(n, what + ": a list is wanted, not " + n.describe());
    return n.is_list();
  }

  std::string text(const Node& n, const std::string& what) {
    if (n.is_scalar() && n.value.is_string()) return n.value.as_string();
    fail(n, what + ": a text is wanted, not " + n.describe());
    return {};
  }
  std::string name(const Node& n, const std::string& what) {
    // 3 and true are fine as names; only their letters count.
    if (n.is_scalar() && is_name(n.text)) return n.text;
    fail(n, what + ": a name of letters, digits, '_', '-' and '.' is wanted, not " + n.describe());
    return {};
  }
  bool boolean(const Node& n, const std::string& what, bool otherwise) {
    if (n.is_scalar() && n.value.is_bool()) return n.value.as_bool();
    fail(n, what + ": true or false is wanted, not " + n.describe());
    return otherwise;
  }
  int whole(const Node& n, const std::string& what, int least, int most, int otherwise) {
    if (n.is_scalar() && n.value.is_int() && n.value.as_int() >= least && n.value.as_int() <= most)
      return static_cast<int>(n.value.as_int());
    fail(n, what + ": a whole number between " + std::to_string(least) + " and " + std::to_string(most) +
                " is wanted, not " + n.describe());
    return otherwise;
  }
  std::string word(const Node& n, const std::string& what, const std::vector<std::string>& valid) {
    if (n.is_scalar() && std::find(valid.begin(), valid.end(), n.text) != valid.end()) return n.text;
    fail(n, what + ": one of " + listed(valid) + " is wanted, not " + n.describe() +
                (n.is_scalar() ? suggestion(n.text, valid) : ""));
    return {};
  }
  /// A list of words, or one word; every word once.
  std::vector<std::string> words(const Node& n, const std::string& what,
                                 const std::vector<std::string>& valid) {
    std::vector<std::string> out;
    const auto add = [&](const Node& item) {
      const std::string w = word(item, what, valid);
      if (w.empty()) return;
      if (std::find(out.begin(), out.end(), w) != out.end())
        fail(item, what + ": '" + w + "' stands twice");
      else
        out.push_back(w);
    };
    if (n.is_list()) {
      for (const NodePtr& item : n.items) add(*item);
      if (n.items.empty()) fail(n, what + ": the list is empty; one of " + listed(valid) + " is wanted");
    } else {
      add(n);
    }
    return out;
  }

  /// 0.01 or 1%.
  std::optional<double> share(const Node& n) {
    if (n.is_scalar() && n.value.is_number()) return n.value.as_double();
    if (n.is_scalar() && n.text.size() > 1 && n.text.back() == '%') {
      std::string error;
      const Value v = yaml::typed(n.text.substr(0, n.text.size() - 1), error);
      if (error.empty() && v.is_number()) return v.as_double() / 100;
    }
    return std::nullopt;
  }
  /// Seconds: 10, 10s, 500ms, 50us, 2min.
  double duration(const Node& n, const std::string& what, double otherwise) {
    static const std::vector<std::pair<std::string, double>> units{
        {"min", 60}, {"ms", 1e-3}, {"us", 1e-6}, {"s", 1}};
    double seconds = NAN;
    if (n.is_scalar() && n.value.is_number()) seconds = n.value.as_double();
    if (n.is_scalar() && n.value.is_string())
      for (const auto& [unit, scale] : units) {
        if (n.text.size() <= unit.size() || !n.text.ends_with(unit)) continue;
        std::string error, number = n.text.substr(0, n.text.size() - unit.size());
        while (!number.empty() && number.back() == ' ') number.pop_back();
        const Value v = yaml::typed(number, error);
        if (error.empty() && v.is_number()) seconds = v.as_double() * scale;
        break;
      }
    if (seconds > 0 && seconds <= 86400) return seconds;  // a day a case is longer than anybody waits
    fail(n, what + ": a duration above 0 such as 10s, 500ms or 2min is wanted, not " + n.describe());
    return otherwise;
  }

  Condition condition(const Node& n, const NodePtr& node) {
    if (n.is_scalar() && n.value.is_bool()) {
      auto e = std::make_shared<Expression>();
      e->literal = n.value;
      return {e, node};
    }
    if (!n.is_scalar() || !n.value.is_string()) {
      fail(n, "when: an expression such as 'problem.batch > 1' is wanted, not " + n.describe());
      return {};
    }
    try {
      return {parse_expression(n.text), node};
    } catch (const ExpressionError& e) {
      errors_.add(place_inside(n, e.offset()), std::string("when: ") + e.what());
      return {};
    }
  }

  void defaults(const Entry& entry, SuiteDeclaration& s) {
    const Node& n = *entry.value;
    if (!is_map(n, "defaults")) return;
    check_keys(n, "of defaults",
               {"dtype", "device", "devices", "threads", "precision", "max_time", "min_samples",
                "max_samples", "min_sample", "cache", "keep_samples", "seed"});
    MeasureConfig& m = s.measure;
    for (const Entry& e : n.entries) {
      const Node& v = *e.value;
      if (e.key == "dtype" || e.key == "seed")
        s.defaults[e.key] = {yaml::to_value(v, errors_), e.value, e.key_place};
      if (e.key == "device" || e.key == "devices") {
        if (e.key == "device" && n.find("devices"))
          errors_.add(e.key_place, "give `device` or `devices`, not both");
        s.devices = words(v, e.key, device_words());
      }
      if (e.key == "threads") {
        if (v.is_scalar() && v.text == "auto")
          m.threads = 0;
        else if (v.is_scalar() && v.value.is_string())
          fail(v, "threads: auto or a whole number is wanted, not " + v.describe());
        else
          m.threads = whole(v, "threads", 1, 4096, 0);
      }
      if (e.key == "precision") {
        const auto p = share(v);
        if (p && *p > 0 && *p < 1)
          m.precision = *p;
        else
          fail(v, "precision: a share between 0 and 1 such as 1% or 0.01 is wanted, not " + v.describe());
      }
      if (e.key == "max_time") m.max_time_s = duration(v, e.key, m.max_time_s);
      if (e.key == "min_sample") m.min_sample_s = duration(v, e.key, m.min_sample_s);
      if (e.key == "min_samples") m.min_samples = whole(v, e.key, 1, 1000000, m.min_samples);
      if (e.key == "max_samples") m.max_samples = whole(v, e.key, 1, 10000000, m.max_samples);
      if (e.key == "cache")
        if (const std::string w = word(v, e.key, {"auto", "hot", "cold"}); !w.empty()) m.cache = w;
      if (e.key == "keep_samples") m.keep_samples = boolean(v, e.key, m.keep_samples);
    }
    if (m.min_samples > m.max_samples)
      errors_.add(entry.key_place, "defaults: min_samples " + std::to_string(m.min_samples) +
                                       " is more than max_samples " + std::to_string(m.max_samples));
  }

  static std::vector<std::string> problem_words() {
    std::vector<std::string> words;
    for (const ProblemKey& k : problem_keys()) words.emplace_back(k.key);
    return words;
  }

  Settings problem(const Node& n) {
    Settings s;
    if (!is_map(n, "problem")) return s;
    check_keys(n, "of problem", problem_words());
    for (const Entry& e : n.entries) {
      if (e.key == "inputs")
        s[e.key] = {Value(), e.value, e.key_place};
      else if (known_problem_key(e.key))
        s[e.key] = {yaml::to_value(*e.value, errors_), e.value, e.key_place};
    }
    return s;
  }
  static bool known_problem_key(const std::string& key) {
    const auto words = problem_words();
    return std::find(words.begin(), words.end(), key) != words.end();
  }

  /// "dtype" and "problem.dtype" are the same axis; empty: unknown, and reported.
  std::string axis_target(const Entry& e) {
    if (e.key == "device") return e.key;
    if (e.key == "dtype") return "problem.dtype";
    if (e.key.rfind("params.", 0) == 0 && e.key.size() > 7) return e.key;
    std::vector<std::string> valid{"device", "dtype"};
    for (const std::string& k : problem_words())
      if (k != "inputs") valid.push_back("problem." + k);
    if (std::find(valid.begin(), valid.end(), e.key) != valid.end()) return e.key;
    std::string hint = suggestion(e.key, valid);
    if (known_problem_key(e.key) && e.key != "inputs") hint = "; did you mean 'problem." + e.key + "'?";
    if (hint.empty()) hint = "; an axis sets problem.KEY, params.NAME, device or dtype";
    errors_.add(e.key_place, "unknown axis '" + e.key + "'" + hint);
    return {};
  }

  /// One value of an axis: plain, or { value: …, when: … }.
  void axis_value(const NodePtr& node, const Place& place, AxisGroup::Row& row) {
    NodePtr value = node;
    if (node->is_map()) {
      check_keys(*node, "of an axis value", {"value", "when"});
      const Entry* v = want(*node, "value", "an axis value written as a map needs its value");
      if (!v) return;
      value = v->value;
      if (const Entry* w = node->find("when"))
        if (Condition c = condition(*w->value, w->value); c.expression) row.when.push_back(c);
    }
    row.values.push_back({yaml::to_value(*value, errors_), value, place});
  }

  void axis_group(const Node& map, const std::string& what, bool zipped, std::vector<AxisGroup>& out) {
    if (!is_map(map, what)) return;
    AxisGroup zip;
    size_t length = 0;
    const Entry* first = nullptr;
    for (const Entry& e : map.entries) {
      const std::string target = axis_target(e);
      if (target.empty() || !is_list(*e.value, what + "." + e.key)) continue;
      if (e.value->items.empty()) {
        fail(*e.value, what + "." + e.key + ": the list of values is empty");
        continue;
      }
      if (!zipped) {
        AxisGroup g{{target}, {e.key}, {e.key_place}, {}};
        for (const NodePtr& item : e.value->items) {
          AxisGroup::Row row;
          axis_value(item, e.key_place, row);
          if (!row.values.empty()) g.rows.push_back(std::move(row));
        }
        if (!g.rows.empty()) out.push_back(std::move(g));
        continue;
      }
      if (!first) first = &e, length = e.value->items.size(), zip.rows.resize(length);
      if (e.value->items.size() != length) {
        errors_.add(e.key_place, what + "." + e.key + ": " + std::to_string(e.value->items.size()) +
                                     " values beside the " + std::to_string(length) + " of '" + first->key +
                                     "'; zipped lists are equally long");
        continue;
      }
      std::vector<AxisGroup::Row> rows = zip.rows;
      bool good = true;
      for (size_t i = 0; i < length; ++i) {
        const size_t before = rows[i].values.size();
        axis_value(e.value->items[i], e.key_place, rows[i]);
        good = good && rows[i].values.size() == before + 1;
      }
      if (!good) continue;
      zip.rows = std::move(rows);
      zip.targets.push_back(target);
      zip.labels.push_back(e.key);
      zip.places.push_back(e.key_place);
    }
    if (zipped && !zip.targets.empty()) out.push_back(std::move(zip));
  }

  void axes(const Node& map, std::vector<AxisGroup>& out) {
    if (const Entry* e = map.find("axes")) axis_group(*e->value, "axes", false, out);
    if (const Entry* e = map.find("zip")) {
      if (e->value->is_list())
        for (const NodePtr& group : e->value->items) axis_group(*group, "zip", true, out);
      else
        axis_group(*e->value, "zip", true, out);
    }
    std::map<std::string, Place> seen;
    for (const AxisGroup& g : out)
      for (size_t i = 0; i < g.targets.size(); ++i) {
        const auto [it, fresh] = seen.emplace(g.targets[i], g.places[i]);
        if (!fresh)
          errors_.add(g.places[i], "'" + g.labels[i] + "' is set by two axes; the other one is in line " +
                                       std::to_string(it->second.line));
      }
  }

  void cases(const Node& n, std::vector<CaseDeclaration>& out) {
    if (!is_list(n, "cases")) return;
    if (n.items.empty()) fail(n, "cases: the list is empty");
    std::map<std::string, Place> names;
    for (const NodePtr& item : n.items) {
      CaseDeclaration c;
      c.place = item->place;
      if (item->is_scalar()) {
        c.method = c.name = name(*item, "a case");
        c.method_place = item->place;
      } else if (is_map(*item, "a case")) {
        read_case(*item, c);
      }
      if (c.name.empty() || c.method.empty()) continue;
      const auto [it, fresh] = names.emplace(c.name, c.place);
      if (!fresh)
        errors_.add(c.place, "duplicate case name '" + c.name + "'; the other case is in line " +
                                 std::to_string(it->second.line));
      else
        out.push_back(std::move(c));
    }
  }

  void read_case(const Node& n, CaseDeclaration& c) {
    check_keys(n, "of a case",
               {"name", "method", "params", "problem", "axes", "zip", "when", "device", "devices", "dtype"});
    if (const Entry* e = want(n, "method", "a case needs a method")) {
      c.method = name(*e->value, "method");
      c.method_place = e->value->place;
      c.name = c.method;
    }
    if (const Entry* e = n.find("name")) {
      c.name = name(*e->value, "the case's name");
      c.place = e->value->place;
    }
    if (const Entry* e = n.find("params"); e && !e->value->is_null() && is_map(*e->value, "params"))
      for (const Entry& p : e->value->entries)
        c.params[p.key] = {yaml::to_value(*p.value, errors_), p.value, p.key_place};
    if (const Entry* e = n.find("problem")) c.problem = problem(*e->value);
    if (const Entry* e = n.find("dtype")) {
      if (c.problem.contains("dtype")) errors_.add(e->key_place, "dtype: the case's problem sets it too");
      c.problem["dtype"] = {yaml::to_value(*e->value, errors_), e->value, e->key_place};
    }
    for (const char* key : {"device", "devices"})
      if (const Entry* e = n.find(key)) {
        if (c.devices) errors_.add(e->key_place, "give `device` or `devices`, not both");
        c.devices = words(*e->value, key, device_words());
        c.devices_place = e->key_place;
      }
    axes(n, c.axes);
    if (const Entry* e = n.find("when")) c.when = condition(*e->value, e->value);
  }

  void analyses(const Node& n, SuiteDeclaration& s) {
    if (!is_list(n, "analyses")) return;
    const auto add = [&](const std::string& id, const Place& place) {
      if (!s.analysis_places.emplace(id, place).second)
        errors_.add(place, "analyses: '" + id + "' stands twice");
      else
        s.analyses.push_back(id);
    };
    for (const NodePtr& item : n.items) {
      if (item->is_scalar()) {
        if (const std::string id = name(*item, "an analysis"); !id.empty()) add(id, item->place);
      } else if (item->is_map() && item->entries.size() == 1) {
        const Entry& e = item->entries[0];
        add(e.key, e.key_place);
        if (e.value->is_null() || !is_map(*e.value, "analyses." + e.key)) continue;
        for (const Entry& p : e.value->entries)
          s.analysis_params[e.key][p.key] = {yaml::to_value(*p.value, errors_), p.value, p.key_place};
      } else {
        fail(*item, "an analysis is a name, or a map of one name to its parameters, not " + item->describe());
      }
    }
  }

  void claims(const Node& n, std::vector<ClaimDeclaration>& out) {
    if (!is_list(n, "claims")) return;
    std::map<std::string, Place> ids;
    for (const NodePtr& item : n.items) {
      if (!is_map(*item, "a claim")) continue;
      ClaimDeclaration d;
      if (!read_claim(*item, d)) continue;
      const auto [it, fresh] = ids.emplace(d.claim.id, d.claim.place);
      if (!fresh)
        errors_.add(d.claim.place, "duplicate claim id '" + d.claim.id + "'; the other claim is in line " +
                                       std::to_string(it->second.line));
      out.push_back(std::move(d));
    }
  }

  bool read_claim(const Node& n, ClaimDeclaration& d) {
    check_keys(n, "of a claim",
               {"id", "ratio", "value", "published", "tolerance", "compare", "where", "device", "note",
                "axes", "when"});
    Claim& c = d.claim;
    c.place = n.place;
    if (const Entry* e = want(n, "id", "a claim needs an id")) {
      c.id = name(*e->value, "the claim's id");
      c.place = e->value->place;
    }
    const Entry *ratio = n.find("ratio"), *value = n.find("value");
    if (ratio && value) errors_.add(value->key_place, "a claim has `ratio` or `value`, not both");
    const Entry* of = ratio ? ratio : value;
    if (!of) {
      errors_.add(n.place,
                  "a claim needs what it is about: `ratio: time(a) / time(b)` or `value: …` is missing");
    } else {
      c.expression = text(*of->value, of->key);
      d.expression_node = of->value;
      if (!c.expression.empty()) try {
          d.expression = parse_expression(c.expression, claim_functions());
        } catch (const ExpressionError& e) {
          errors_.add(place_inside(*of->value, e.offset()), of->key + ": " + e.what());
        }
    }
    if (const Entry* e = want(n, "published", "a claim needs the published figure")) {
      if (e->value->is_scalar() && e->value->value.is_number()) {
        c.published = e->value->value.as_double();
        c.published_text = e->value->text;
      } else {
        fail(*e->value, "published: a number is wanted, not " + e->value->describe());
      }
    }
    if (const Entry* e =
            want(n, "tolerance", "a claim says how near is near enough; 0: to the published digits")) {
      const auto t = share(*e->value);
      if (t && *t >= 0 && *t <= 10)
        c.tolerance = *t;
      else
        fail(*e->value,
             "tolerance: a share such as 15% or 0.15, or 0, is wanted, not " + e->value->describe());
    }
    if (const Entry* e = n.find("compare"))
      if (const std::string w = word(*e->value, "compare", {"equal", "at_least", "at_most"}); !w.empty())
        c.compare = w;
    if (const Entry* e = n.find("where")) c.where = text(*e->value, "where");
    if (const Entry* e = n.find("note")) c.note = text(*e->value, "note");
    if (const Entry* e = n.find("device")) c.device = word(*e->value, "device", device_words());
    if (const Entry* e = n.find("axes"); e && is_map(*e->value, "axes"))
      for (const Entry& a : e->value->entries) {
        c.axes[a.key] = yaml::to_value(*a.value, errors_);
        d.axis_places[a.key] = a.key_place;
      }
    if (const Entry* e = n.find("when")) d.when = condition(*e->value, e->value);
    return !c.id.empty() && d.expression;
  }

  ErrorList& errors_;
};

}  // namespace

Place place_inside(const Node& node, int offset) {
  if (node.text_column == 0) return node.place;
  return {node.place.file, node.place.line, node.text_column + offset};
}

const std::vector<std::string>& device_words() {
  static const std::vector<std::string> words{"cpu", "cuda"};
  return words;
}

std::string suggestion(const std::string& word, const std::vector<std::string>& words) {
  const std::string near = nearest_word(word, words);
  return near.empty() ? "" : "; did you mean '" + near + "'?";
}

std::string quoted_hint(const Node& node) {
  if (!node.is_scalar() || !node.quoted) return {};
  std::string error;
  const Value v = yaml::typed(node.text, error);
  if (!error.empty() || !(v.is_number() || v.is_bool())) return {};
  return " (" + v.str() + " in quotes is a text: leave the quotes out)";
}

SuiteDeclaration read_declaration(const Node& root, ErrorList& errors) { return Reader(errors).read(root); }

}  // namespace attnbench
