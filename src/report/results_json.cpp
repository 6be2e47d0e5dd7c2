#include "report/results_json.hpp"

#include <cmath>
#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "report/json_text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "attnbench-results";
// Lists in parameters nest a level or two; deeper is a broken or hostile file, and reading recurses.
constexpr int kMaxListDepth = 32;
// The structure itself takes ten levels.
constexpr size_t kMaxDepth = kMaxListDepth + 32;

// ---- what each structure is called in the file: one function for both directions
// -------------------------------
//
// a(name, member): always there. a.rare(name, member): left out when it has its default value.
// a.derived(name, value): written for readers without arithmetic, never read.

template <class A>
void fields(A& a, Place& p) {
  a("file", p.file), a("line", p.line), a("column", p.column);
}

template <class A>
void fields(A& a, MeasureConfig& m) {
  a("precision", m.precision), a("max_time_s", m.max_time_s), a("min_samples", m.min_samples);
  a("max_samples", m.max_samples), a("min_sample_s", m.min_sample_s), a("cache", m.cache);
  a("threads", m.threads), a("keep_samples", m.keep_samples);
}

template <class A>
void fields(A& a, Problem::Source& s) {
  a.rare("generator", s.generator), a.rare("arguments", s.arguments), a.rare("file", s.file);
}

template <class A>
void fields(A& a, Problem& p) {
  a("kind", p.kind), a("batch", p.batch), a("causal", p.causal), a("dtype", p.dtype), a("seed", p.seed);
  a.rare("heads", p.heads), a.rare("kv_heads", p.kv_heads), a.rare("length", p.length);
  a.rare("kv_length", p.kv_length), a.rare("head_dim", p.head_dim), a.rare("channels", p.channels);
  a.rare("grid", p.grid), a.rare("size", p.size), a.rare("samples", p.samples);
  a.rare("sample_rate", p.sample_rate), a.rare("inputs", p.inputs);
}

template <class A>
void fields(A& a, Case& c) {
  a("name", c.name), a("base_name", c.base_name), a("method", c.method), a("device", c.device);
  a("axes", c.axes), a("params", c.params), a("problem", c.problem), a("place", c.place);
}

template <class A>
void fields(A& a, Claim& c) {
  a("id", c.id), a("expression", c.expression), a("published", c.published),
      a("published_text", c.published_text), a("tolerance", c.tolerance);
  a("compare", c.compare), a("where", c.where), a("device", c.device), a("note", c.note), a("axes", c.axes);
  a("place", c.place), a.rare("left_out", c.left_out);
}

template <class A>
void fields(A& a, Timing& t) {
  a("median_s", t.median_s), a("ci_low_s", t.ci_low_s), a("ci_high_s", t.ci_high_s), a("min_s", t.min_s);
  a("p5_s", t.p5_s), a("p95_s", t.p95_s), a("mad_s", t.mad_s), a("mean_s", t.mean_s);
  a("samples", t.samples), a("iterations_per_sample", t.iterations_per_sample), a("converged", t.converged);
  a.rare("raw_s", t.raw_s), a.rare("submission", t.submission);
}

template <class A>
void fields(A& a, Sustained& s) {
  a("burst_s", s.burst_s), a("sustained_s", s.sustained_s), a("loop_s", s.loop_s), a("state", s.state);
}

template <class A>
void fields(A& a, SampledRows& s) {
  a("rows", s.rows), a("of", s.of);
}

template <class A>
void fields(A& a, Verification& v) {
  a("how", v.how), a("passed", v.passed), a("tolerance", v.tolerance), a("relative_l2", v.relative_l2);
  a("worst", v.worst);
  a.rare("sampled", v.sampled);
}

template <class A>
void fields(A& a, Ratio& r) {
  a("baseline", r.baseline), a("value", r.value), a("ci_low", r.ci_low), a("ci_high", r.ci_high);
  a("pairs", r.pairs);
}

template <class A>
void fields(A& a, MemoryBytes& m) {
  a("inputs", m.inputs), a("weights", m.weights), a("outputs", m.outputs);
  a("workspace_peak", m.workspace_peak), a("total_peak", m.total_peak), a("rss_peak", m.rss_peak);
  a.rare("device_peak", m.device_peak);
}

template <class A>
void fields(A& a, Bound& b) {
  a("gflops", b.gflops), a("gbytes_per_s", b.gbytes_per_s), a("intensity", b.intensity);
  a("bound_by", b.bound_by), a("percent_of_ceiling", b.percent_of_ceiling);
}

template <class A>
void fields(A& a, Cost& c) {
  a("matmul", c.matmul), a("elementwise", c.elementwise), a("special", c.special);
  a("bytes_read", c.bytes_read), a("bytes_written", c.bytes_written);
  a.derived("flops", c.flops()), a.derived("bytes", c.bytes());
}

template <class A>
void fields(A& a, StageTime& s) {
  a("stage", s.stage), a("median_s", s.median_s), a("cost", s.cost);
}

template <class A>
void fields(A& a, AnalysisResult& r) {
  a("analysis", r.analysis), a("scalars", r.scalars), a("series", r.series), a("notes", r.notes);
}

template <class A>
void fields(A& a, Decision& d) {
  a("param", d.param), a("value", d.value), a("why", d.why);
}

template <class A>
void fields(A& a, CaseResult& c) {
  a("id", c.id), a("status", c.status), a("reason", c.reason), a("case", c.spec), a("params", c.params);
  a("verification", c.verification), a("time", c.time), a("prepare_s", c.prepare_s), a("stages", c.stages);
  a("counted", c.counted), a("formula", c.formula), a("formula_matches", c.formula_matches);
  a("published_macs", c.published_macs), a("parameters", c.parameters), a("memory", c.memory);
  a("bound", c.bound), a("ratio", c.ratio), a("analyses", c.analyses), a("warnings", c.warnings);
  a.rare("sustained", c.sustained), a.rare("decisions", c.decisions);
  a.rare("elapsed_s", c.elapsed_s);
}

template <class A>
void fields(A& a, ClaimResult& c) {
  a("claim", c.claim), a("verdict", c.verdict), a("measured", c.measured), a("ci_low", c.ci_low);
  a("ci_high", c.ci_high), a("reason", c.reason);
}

template <class A>
void fields(A& a, Environment& e) {
  a("machine_id", e.machine_id), a("values", e.values);
}

template <class A>
void fields(A& a, Roofline& r) {
  a("gflops", r.gflops), a("gbytes_per_s", r.gbytes_per_s), a("measured_at", r.measured_at);
  a("from_cache", r.from_cache);
}

template <class A>
void fields(A& a, Suite& s) {
  a("name", s.name), a("title", s.title), a("file", s.file), a("measure", s.measure);
  a("measures", s.measures), a("analyses", s.analyses), a("analysis_params", s.analysis_params),
      a("baseline", s.baseline), a("cases", s.cases);
  a("claims", s.claims), a("resolved_text", s.resolved_text);
}

template <class A>
void fields(A& a, RunResult& r) {
  a("started_at", r.started_at), a("finished_at", r.finished_at), a("interrupted", r.interrupted);
  a("suite_hash", r.suite_hash), a("environment", r.environment), a("roofline", r.roofline);
  a("suite", r.suite), a("cases", r.cases), a("claims", r.claims);
}

ClaimResult::Verdict parse_verdict(std::string_view word) {
  using V = ClaimResult::Verdict;
  for (V v : {V::holds, V::exact, V::outside, V::not_evaluated})
    if (word == name(v)) return v;
  throw UsageError("unknown verdict '" + std::string(word) +
                   "'; valid: holds, exact, outside, not_evaluated");
}
void parse(std::string_view word, ProblemKind& out) { out = parse_problem_kind(word); }
void parse(std::string_view word, DType& out) { out = parse_dtype(word); }
void parse(std::string_view word, CaseStatus& out) { out = parse_case_status(word); }
void parse(std::string_view word, ClaimResult::Verdict& out) { out = parse_verdict(word); }

// ---- writing
// ---------------------------------------------------------------------------------------------------

Json json_of(const Value& v) {
  if (v.is_null()) return nullptr;
  if (v.is_bool()) return v.as_bool();
  if (v.is_int()) return v.as_int();
  if (v.is_double()) return v.as_double();
  if (v.is_string()) return v.as_string();
  Json list = Json::array();
  for (const Value& e : v.as_list()) list.push_back(json_of(e));
  return list;
}

class Writer {
 public:
  template <class T>
  void operator()(const char* key, T& member) {
    object_[key] = value(member);
  }
  template <class T>
  void rare(const char* key, T& member) {
    if (!(member == T{})) object_[key] = value(member);
  }
  void derived(const char* key, int64_t v) { object_[key] = v; }
  Json take() { return std::move(object_); }

  template <class T>
  static Json value(T& v) {
    if constexpr (std::is_enum_v<T>) {
      return std::string(name(v));
    } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
      return v;
    } else if constexpr (std::is_same_v<T, Value>) {
      return json_of(v);
    } else {
      Writer w;
      fields(w, v);
      return w.take();
    }
  }
  template <class T>
  static Json value(std::vector<T>& v) {
    Json list = Json::array();
    for (T& e : v) list.push_back(value(e));
    return list;
  }
  template <class T>
  static Json value(std::map<std::string, T>& m) {
    Json object = Json::object();
    for (auto& [key, e] : m) object[key] = value(e);
    return object;
  }
  template <class T>
  static Json value(std::optional<T>& v) {
    return v ? value(*v) : Json(nullptr);
  }

 private:
  Json object_ = Json::object();
};

const char* non_finite_word(double d) { return std::isnan(d) ? "nan" : d < 0 ? "-inf" : "inf"; }

/// Replaces what JSON has no text for by null and notes where it was.
void take_out_non_finite(Json& j, const std::string& pointer, Json& notes) {
  if (j.is_number_float() && !std::isfinite(j.get<double>())) {
    notes[pointer] = non_finite_word(j.get<double>());
    j = nullptr;
  } else if (j.is_object()) {
    for (auto it = j.begin(); it != j.end(); ++it)
      take_out_non_finite(it.value(), pointer + "/" + pointer_step(it.key()), notes);
  } else if (j.is_array()) {
    for (size_t i = 0; i < j.size(); ++i) take_out_non_finite(j[i], pointer + "/" + std::to_string(i), notes);
  }
}

Json with_notes(Json j) {
  Json notes = Json::object();
  take_out_non_finite(j, "", notes);
  if (!notes.empty()) j["non_finite"] = std::move(notes);
  return j;
}

/// Texts that are not UTF-8 (a file name, say) keep their valid part rather than losing the whole file.
std::string line_of(const Json& j) { return j.dump(-1, ' ', false, Json::error_handler_t::replace); }

/// Indented, but whatever fits one line, and every list of plain values, stays on one.
void print(const Json& j, size_t indent, std::string& out) {
  constexpr size_t kColumns = 110;
  std::string line = line_of(j);
  bool plain = !j.is_object();
  if (j.is_array())
    for (const Json& e : j) plain = plain && e.is_primitive();
  if (plain || indent + line.size() <= kColumns) {
    out += line;
    return;
  }
  const std::string margin(indent + 1, ' ');
  out += j.is_object() ? "{" : "[";
  bool first = true;
  for (auto it = j.begin(); it != j.end(); ++it) {
    out += first ? "\n" : ",\n";
    out += margin;
    if (j.is_object()) out += line_of(Json(it.key())) + ": ";
    print(it.value(), indent + 1, out);
    first = false;
  }
  out += "\n" + std::string(indent, ' ') + (j.is_object() ? "}" : "]");
}

// ---- reading
// ---------------------------------------------------------------------------------------------------

/// Thrown inside this file only: what is wrong at which pointer; the outermost caller adds file and offset.
struct Wrong {
  std::string pointer, what;
};

const char* kind_of(const Json& j) {
  if (j.is_number_float()) return "a fraction";
  if (j.is_number()) return "a whole number";
  if (j.is_null()) return "null";
  if (j.is_boolean()) return "true or false";
  if (j.is_string()) return "a string";
  return j.is_array() ? "a list" : "an object";
}

[[noreturn]] void wanted(const char* what, const Json& j, const std::string& at) {
  throw Wrong{at, std::string(what) + " is wanted, not " + kind_of(j)};
}

Value value_of(const Json& j, const std::string& at, int depth) {
  if (j.is_null()) return {};
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_unsigned() && j.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
    throw Wrong{at, j.dump() + " does not fit 64-bit integers"};
  if (j.is_number_integer()) return j.get<int64_t>();
  if (j.is_number_float()) return j.get<double>();
  if (j.is_string()) return j.get<std::string>();
  if (!j.is_array()) wanted("a plain value or a list", j, at);
  if (depth >= kMaxListDepth) throw Wrong{at, "lists nest too deeply"};
  Value::List list;
  for (size_t i = 0; i < j.size(); ++i)
    list.push_back(value_of(j[i], at + "/" + std::to_string(i), depth + 1));
  return list;
}

class Reader {
 public:
  Reader(const Json& object, std::string pointer) : object_(object), at_(std::move(pointer)) {
    if (!object.is_object()) wanted("an object", object, at_);
  }
  template <class T>
  void operator()(const char* key, T& member) {
    const auto it = object_.find(key);
    if (it == object_.end()) throw Wrong{at_, std::string("the member '") + key + "' is missing"};
    value(*it, at_ + "/" + key, member);
  }
  template <class T>
  void rare(const char* key, T& member) {
    const auto it = object_.find(key);
    if (it != object_.end()) value(*it, at_ + "/" + key, member);
  }
  void derived(const char*, int64_t) {}

 private:
  template <class T>
  static void value(const Json& j, const std::string& at, T& out) {
    if constexpr (std::is_enum_v<T>) {
      if (!j.is_string()) wanted("a word", j, at);
      try {
        parse(j.get<std::string>(), out);
      } catch (const UsageError& e) {
        throw Wrong{at, e.what()};
      }
    } else if constexpr (std::is_same_v<T, bool>) {
      if (!j.is_boolean()) wanted("true or false", j, at);
      out = j.get<bool>();
    } else if constexpr (std::is_integral_v<T>) {
      if (!j.is_number_integer()) wanted("a whole number", j, at);
      const bool fits =
          j.is_number_unsigned() ? std::in_range<T>(j.get<uint64_t>()) : std::in_range<T>(j.get<int64_t>());
      if (!fits) throw Wrong{at, j.dump() + " is out of range"};
      out = j.get<T>();
    } else if constexpr (std::is_same_v<T, double>) {
      if (!j.is_number() && !j.is_null()) wanted("a number or null", j, at);
      out = j.is_null() ? std::numeric_limits<double>::quiet_NaN() : j.get<double>();
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!j.is_string()) wanted("a string", j, at);
      out = j.get<std::string>();
    } else if constexpr (std::is_same_v<T, Value>) {
      out = value_of(j, at, 0);
    } else {
      Reader r(j, at);
      fields(r, out);
    }
  }
  template <class T>
  static void value(const Json& j, const std::string& at, std::vector<T>& out) {
    if (!j.is_array()) wanted("a list", j, at);
    out.resize(j.size());
    for (size_t i = 0; i < j.size(); ++i) value(j[i], at + "/" + std::to_string(i), out[i]);
  }
  template <class T>
  static void value(const Json& j, const std::string& at, std::map<std::string, T>& out) {
    if (!j.is_object()) wanted("an object", j, at);
    out.clear();
    for (auto it = j.begin(); it != j.end(); ++it)
      value(it.value(), at + "/" + pointer_step(it.key()), out[it.key()]);
  }
  template <class T>
  static void value(const Json& j, const std::string& at, std::optional<T>& out) {
    out.reset();
    if (!j.is_null()) value(j, at, out.emplace());
  }
  const Json& object_;
  std::string at_;
};

/// An optional number whose null stands for a noted NaN must not read as "none": notes come first.
void put_back_non_finite(Json& j, const std::string& at) {
  const auto it = j.find("non_finite");
  if (it == j.end()) return;
  const std::string here = at + "/non_finite";
  if (!it->is_object()) wanted("an object", *it, here);
  const Json& notes = *it;  // the targets are elsewhere: strings are no null
  for (auto note = notes.begin(); note != notes.end(); ++note) {
    const std::string place = here + "/" + pointer_step(note.key());
    const std::string word = note.value().is_string() ? note.value().get<std::string>() : "";
    double d = 0;
    if (word == "nan") {
      d = std::numeric_limits<double>::quiet_NaN();
    } else if (word == "inf" || word == "-inf") {
      d = word == "inf" ? INFINITY : -INFINITY;
    } else {
      throw Wrong{place, "'nan', 'inf' or '-inf' is wanted"};
    }
    try {
      Json& target = j.at(Json::json_pointer(note.key()));
      if (!target.is_null()) throw Wrong{place, "the value it describes is not null"};
      target = d;
    } catch (const Json::exception&) {
      throw Wrong{place, "there is no value of this place"};
    }
  }
}

Json parse_text(const std::string& text, const std::string& file) {
  if (const size_t at = too_deep(text, kMaxDepth); at != std::string::npos)
    throw DataError(file + ": byte " + std::to_string(at) + " (" + line_and_column(text, at) +
                    "): brackets nest deeper than any results file");
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& e) {
    // nlohmann counts bytes from 1 and names itself; keep its reason only.
    const size_t offset = e.byte > 0 ? e.byte - 1 : 0;
    std::string why = e.what();
    if (const size_t at = why.find(": ", why.find("parse error")); at != std::string::npos)
      why = why.substr(at + 2);
    const bool cut = offset >= text.size();
    throw DataError(file + ": byte " + std::to_string(offset) + " (" + line_and_column(text, offset) +
                    "): " + (cut ? "the text ends too early (a truncated file?): " : "not JSON: ") + why);
  } catch (const Json::out_of_range&) {
    throw DataError(file + ": a number is larger than any double");
  }
}

template <class F>
auto located(const std::string& text, const std::string& file, F&& read) {
  try {
    return read();
  } catch (const Wrong& w) {
    throw DataError(file + ": byte " + std::to_string(json_offset(text, w.pointer)) + " (" +
                    (w.pointer.empty() ? "the whole text" : w.pointer) + "): " + w.what);
  }
}

}  // namespace

std::string to_json(const RunResult& run) {
  RunResult r = run;  // the field functions serve reading too and take members by reference
  std::vector<CaseResult> cases;
  cases.swap(r.cases);
  Json root = Json::object();
  root["format"] = kFormat;
  root["schema_version"] = kResultsSchemaVersion;
  root.update(Writer::value(r));
  root = with_notes(std::move(root));
  Json& list = root["cases"];
  for (CaseResult& c : cases) list.push_back(with_notes(Writer::value(c)));
  std::string out;
  print(root, 0, out);
  return out + "\n";
}

RunResult run_from_json(const std::string& text, const std::string& file) {
  Json root = parse_text(text, file);
  return located(text, file, [&] {
    if (!root.is_object() || !root.contains("schema_version") || root.value("format", Json()) != kFormat)
      throw Wrong{"", std::string("this is not a results file: no \"format\": \"") + kFormat +
                          "\" with a \"schema_version\""};
    const Json& v = root["schema_version"];
    if (!v.is_number_integer() || v.get<int64_t>() < 1)
      throw Wrong{"/schema_version", "a version of 1 or more is wanted, not " + v.dump()};
    if (v.get<int64_t>() > kResultsSchemaVersion)
      throw Wrong{"/schema_version", "this file has schema version " + v.dump() +
                                         ", written by a newer attnbench; this program reads up to version " +
                                         std::to_string(kResultsSchemaVersion)};
    put_back_non_finite(root, "");
    if (const auto cases = root.find("cases"); cases != root.end() && cases->is_array())
      for (size_t i = 0; i < cases->size(); ++i)
        if ((*cases)[i].is_object()) put_back_non_finite((*cases)[i], "/cases/" + std::to_string(i));
    RunResult run;
    Reader reader(root, "");
    fields(reader, run);
    return run;
  });
}

std::string case_to_json(const CaseResult& c) {
  CaseResult copy = c;
  return line_of(with_notes(Writer::value(copy)));
}

CaseResult case_from_json(const std::string& text, const std::string& file) {
  Json root = parse_text(text, file);
  return located(text, file, [&] {
    if (root.is_object()) put_back_non_finite(root, "");
    CaseResult c;
    Reader reader(root, "");
    fields(reader, c);
    return c;
  });
}

}  // namespace attnbench
