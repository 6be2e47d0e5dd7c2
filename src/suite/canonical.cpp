#include "suite/canonical.hpp"

namespace attnbench {

namespace {

/// Quoted, so that the text "1" and the number 1 differ and no name can imitate the syntax.
std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    out += c;
  }
  return out + "\"";
}

std::string text(const Value& v) {
  if (v.is_string()) return quoted(v.as_string());
  if (!v.is_list()) return v.str();
  std::string s;
  for (const Value& e : v.as_list()) s += (s.empty() ? "" : ", ") + text(e);
  return "[" + s + "]";
}

std::string text(const std::map<std::string, Value>& values) {
  std::string s;
  for (const auto& [k, v] : values) s += (s.empty() ? "" : ", ") + quoted(k) + ": " + text(v);
  return "{" + s + "}";
}

Value list(const std::vector<std::string>& words) {
  Value::List l;
  for (const std::string& w : words) l.emplace_back(w);
  return Value(std::move(l));
}

}  // namespace

std::string canonical_text(const Suite& s, const std::vector<std::map<std::string, Value>>& params) {
  const MeasureConfig& m = s.measure;
  std::string t = "suite: " + quoted(s.name) + "\n";
  t += "defaults: " +
       text({{"precision", m.precision},
             {"max_time_s", m.max_time_s},
             {"min_samples", m.min_samples},
             {"max_samples", m.max_samples},
             {"min_sample_s", m.min_sample_s},
             {"cache", m.cache},
             {"threads", m.threads},
             {"keep_samples", m.keep_samples}}) +
       "\n";
  t += "measure: " + text(list(s.measures)) + "\n";
  t += "analyses:\n";
  for (const std::string& a : s.analyses) {
    const auto it = s.analysis_params.find(a);
    t += "- {" + quoted(a) + ": " +
         text(it == s.analysis_params.end() ? std::map<std::string, Value>{} : it->second) + "}\n";
  }
  t += "baseline: " + quoted(s.baseline) + "\ncases:\n";
  for (size_t i = 0; i < s.cases.size(); ++i) {
    const Case& c = s.cases[i];
    t += "- {name: " + quoted(c.name) + ", base: " + quoted(c.base_name) + ", axes: " + text(c.axes) +
         ", method: " + quoted(c.method) + ", params: " + text(params[i]) +
         ", problem: " + text(problem_values(c.problem)) + ", device: " + quoted(c.device) + "}\n";
  }
  t += "claims:\n";
  for (const Claim& c : s.claims)
    t += "- {id: " + quoted(c.id) + ", of: " + quoted(c.expression) + ", published: " + c.published_text +
         ", tolerance: " + Value(c.tolerance).str() + ", compare: " + c.compare +
         ", device: " + quoted(c.device) + ", axes: " + text(c.axes) + "}\n";
  return t;
}

}  // namespace attnbench
