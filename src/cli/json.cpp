#include "cli/json.hpp"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/text.hpp"

namespace attnbench {

using Json = nlohmann::ordered_json;

Json finite(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json to_json(const Value& v) {
  if (v.is_null()) return nullptr;
  if (v.is_bool()) return v.as_bool();
  if (v.is_int()) return v.as_int();
  if (v.is_double()) return finite(v.as_double());
  if (v.is_string()) return v.as_string();
  Json list = Json::array();
  for (const Value& e : v.as_list()) list.push_back(to_json(e));
  return list;
}

Json to_json(const std::map<std::string, Value>& values) {
  Json j = Json::object();
  for (const auto& [key, value] : values) j[key] = to_json(value);
  return j;
}

Json to_json(const Problem& p) {
  Json j = Json::object();
  for (const auto& [key, value] : problem_values(p)) j[key] = to_json(value);
  return j;
}

namespace {

const char* word(ParamSpec::Type t) {
  switch (t) {
    case ParamSpec::Type::integer:
      return "integer";
    case ParamSpec::Type::number:
      return "number";
    case ParamSpec::Type::boolean:
      return "boolean";
    case ParamSpec::Type::choice:
      return "choice";
    case ParamSpec::Type::list:
      return "list";
    case ParamSpec::Type::text:
      return "text";
  }
  return "?";
}

template <class Words>
Json names(const Words& words) {
  Json list = Json::array();
  for (const auto& w : words) list.push_back(std::string(name(w)));
  return list;
}

}  // namespace

Json to_json(const std::vector<ParamSpec>& specs) {
  Json list = Json::array();
  for (const ParamSpec& s : specs) {
    Json p{{"name", s.name}, {"type", word(s.type)}, {"default", to_json(s.default_value)}};
    if (s.min) p["min"] = finite(*s.min);
    if (s.max) p["max"] = finite(*s.max);
    if (!s.choices.empty()) p["choices"] = s.choices;
    if (s.nullable) p["nullable"] = true;
    if (!s.from_problem.empty()) p["from_problem"] = s.from_problem;
    p["meaning"] = s.meaning;
    list.push_back(std::move(p));
  }
  return list;
}

Json to_json(const MethodInfo& info) {
  Json figures = Json::array();
  for (const PublishedFigure& f : info.figures)
    figures.push_back({{"what", f.what},
                       {"configuration", f.configuration},
                       {"baseline", f.baseline},
                       {"value", f.value},
                       {"where", f.where}});
  return Json{{"id", info.id},
              {"title", info.title},
              {"card", info.card},
              {"family", info.family},
              {"paper", info.paper},
              {"arxiv", info.arxiv.empty() ? Json(nullptr) : Json(info.arxiv)},
              {"summary", info.summary},
              {"formula", info.formula},
              {"cost", info.cost},
              {"params", to_json(info.params)},
              {"kinds", names(info.kinds)},
              {"dtypes", names(info.dtypes)},
              {"backends", names(info.backends)},
              {"figures", std::move(figures)},
              {"notes", info.notes},
              {"example", to_json(info.example)},
              {"example_params", to_json(info.example_params)}};
}

Json to_json(const AnalysisInfo& info) {
  return Json{{"id", info.id},           {"title", info.title}, {"summary", info.summary},
              {"formula", info.formula}, {"unit", info.unit},   {"params", to_json(info.params)}};
}

void print_json(const Json& j) {
  // Text from files (paths, titles) may be no UTF-8: replaced, not thrown at the user.
  print_data(j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace attnbench
