#include "report/json_schema.hpp"

#include <fmt/core.h>

#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "kernels/core/error.hpp"
#include "report/json_text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

// References may form a circle that consumes no text; a valid schema of ours nests far less.
constexpr int kMaxSchemaDepth = 200;
constexpr size_t kMaxTextDepth = 128;

const char* type_of(const Json& j) {
  switch (j.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "boolean";
    case Json::value_t::string:
      return "string";
    case Json::value_t::array:
      return "array";
    case Json::value_t::object:
      return "object";
    default:
      // The specification counts 1.0 as an integer.
      return j.is_number_integer() || std::trunc(j.get<double>()) == j.get<double>() ? "integer" : "number";
  }
}

/// The value as shown in messages.
std::string shown(const Json& j) {
  const std::string s = j.dump(-1, ' ', false, Json::error_handler_t::replace);
  return s.size() <= 60 ? s : s.substr(0, 57) + "...";
}

size_t code_points(const std::string& s) {
  size_t n = 0;
  for (char c : s) n += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return n;
}

class Validator {
 public:
  explicit Validator(const Json& root) : root_(root) {}

  std::vector<std::string> check(const Json& j) {
    violations_.clear();
    apply(root_, j, "", 0);
    return std::move(violations_);
  }

 private:
  [[noreturn]] static void broken(const std::string& what) { throw Error("the schema is broken: " + what); }

  void wrong(const std::string& at, const std::string& what) {
    violations_.push_back((at.empty() ? "the whole text" : at) + ": " + what);
  }

  /// The number of violations a subschema finds, without keeping them.
  size_t count(const Json& schema, const Json& j, const std::string& at, int depth) {
    const size_t before = violations_.size();
    apply(schema, j, at, depth);
    const size_t found = violations_.size() - before;
    violations_.resize(before);
    return found;
  }

  const Json& resolve(const std::string& ref) const {
    if (ref.empty() || ref[0] != '#') broken("$ref '" + ref + "' leads out of it");
    try {
      return root_.at(Json::json_pointer(ref.substr(1)));
    } catch (const Json::exception&) {
      broken("$ref '" + ref + "' leads nowhere");
    }
  }

  static bool is_type(const std::string& word, const Json& j) {
    static const char* const words[] = {"null", "boolean", "string", "array", "object", "integer", "number"};
    bool known = false;
    for (const char* w : words) known = known || word == w;
    if (!known) broken("unknown type '" + word + "'");
    return word == type_of(j) || (word == "number" && j.is_number());
  }

  const std::regex& regex(const std::string& pattern) {
    auto it = regexes_.find(pattern);
    if (it == regexes_.end()) try {
        it = regexes_.emplace(pattern, std::regex(pattern, std::regex::ECMAScript)).first;
      } catch (const std::regex_error&) {
        broken("'" + pattern + "' is not a regular expression");
      }
    return it->second;
  }

  bool matches(const std::string& pattern, const std::string& text) {
    // The library's matcher recurses by character; what is this long is no name or date.
    constexpr size_t kLongest = 4096;
    return text.size() <= kLongest && std::regex_search(text, regex(pattern));
  }

  void apply(const Json& schema, const Json& j, const std::string& at, int depth) {
    if (depth > kMaxSchemaDepth) broken("its references form a circle, or it nests too deeply");
    if (schema.is_boolean()) {
      if (!schema.get<bool>()) wrong(at, "nothing is allowed here");
      return;
    }
    if (!schema.is_object()) broken("a subschema is neither an object nor a boolean");
    for (auto it = schema.begin(); it != schema.end(); ++it)
      keyword(schema, it.key(), it.value(), j, at, depth + 1);
  }

  static double number(const Json& v, const std::string& key) {
    if (!v.is_number()) broken(key + " is not a number");
    return v.get<double>();
  }
  static size_t size(const Json& v, const std::string& key) {
    if (!v.is_number_unsigned()) broken(key + " is not a size");
    return v.get<size_t>();
  }

  void keyword(const Json& schema, const std::string& key, const Json& v, const Json& j,
               const std::string& at, int depth) {
    static const std::map<std::string, int> annotations{
        {"$schema", 0}, {"$id", 0},         {"$comment", 0}, {"$defs", 0},
        {"title", 0},   {"description", 0}, {"default", 0},  {"examples", 0},
        {"format", 0},  {"deprecated", 0},  {"readOnly", 0}, {"writeOnly", 0}};
    if (annotations.contains(key)) return;
    for (const char* list : {"enum", "allOf", "anyOf", "oneOf", "required", "prefixItems"})
      if (key == list && !v.is_array()) broken(key + " is not a list");
    for (const char* map : {"properties", "patternProperties"})
      if (key == map && !v.is_object()) broken(key + " is not an object");
    // Handled by the keyword they belong to.
    if (key == "then" || key == "else") return;
    if (key == "$ref") return apply(resolve(v.get<std::string>()), j, at, depth);
    if (key == "type") {
      bool any = false;
      std::string all;
      for (const Json& w : v.is_array() ? v : Json::array({v})) {
        any = any || is_type(w.get<std::string>(), j);
        all += (all.empty() ? "" : " or ") + w.get<std::string>();
      }
      if (!any) wrong(at, fmt::format("{} is wanted, not {} ({})", all, type_of(j), shown(j)));
    } else if (key == "enum") {
      bool any = false;
      std::string all;
      for (const Json& e : v) {
        any = any || e == j;
        all += (all.empty() ? "" : ", ") + shown(e);
      }
      if (!any) wrong(at, fmt::format("one of {} is wanted, not {}", all, shown(j)));
    } else if (key == "const") {
      if (j != v) wrong(at, fmt::format("{} is wanted, not {}", shown(v), shown(j)));
    } else if (key == "allOf") {
      for (const Json& s : v) apply(s, j, at, depth);
    } else if (key == "anyOf" || key == "oneOf") {
      alternatives(v, key == "oneOf", j, at, depth);
    } else if (key == "not") {
      if (count(v, j, at, depth) == 0) wrong(at, "this is what must not be");
    } else if (key == "if") {
      const char* branch = count(v, j, at, depth) == 0 ? "then" : "else";
      if (const auto it = schema.find(branch); it != schema.end()) apply(*it, j, at, depth);
    } else if (!object_keyword(schema, key, v, j, at, depth) &&
               !array_keyword(schema, key, v, j, at, depth) && !scalar_keyword(key, v, j, at)) {
      broken("keyword '" + key + "' is not known to this validator");
    }
  }

  /// When none fits, the violations of the one that comes nearest say most.
  void alternatives(const Json& schemas, bool exactly_one, const Json& j, const std::string& at, int depth) {
    size_t fitting = 0, least = SIZE_MAX;
    const Json* nearest = nullptr;
    for (const Json& s : schemas) {
      const size_t n = count(s, j, at, depth);
      fitting += n == 0;
      if (n < least) least = n, nearest = &s;
    }
    if (!nearest) broken("anyOf or oneOf without alternatives");
    if (fitting == 0) apply(*nearest, j, at, depth);
    if (exactly_one && fitting > 1) wrong(at, fmt::format("{} alternatives fit where one should", fitting));
  }

  bool object_keyword(const Json& schema, const std::string& key, const Json& v, const Json& j,
                      const std::string& at, int depth) {
    const auto below = [&](const std::string& name) { return at + "/" + pointer_step(name); };
    if (key == "properties") {
      if (!j.is_object()) return true;
      for (auto it = v.begin(); it != v.end(); ++it)
        if (const auto m = j.find(it.key()); m != j.end()) apply(it.value(), *m, below(it.key()), depth);
    } else if (key == "required") {
      for (const Json& name : v)
        if (j.is_object() && !j.contains(name.get<std::string>()))
          wrong(at, "the member '" + name.get<std::string>() + "' is missing");
    } else if (key == "patternProperties") {
      if (!j.is_object()) return true;
      for (auto it = v.begin(); it != v.end(); ++it)
        for (auto m = j.begin(); m != j.end(); ++m)
          if (matches(it.key(), m.key())) apply(it.value(), m.value(), below(m.key()), depth);
    } else if (key == "additionalProperties") {
      if (!j.is_object()) return true;
      const auto known = schema.find("properties");
      const auto patterns = schema.find("patternProperties");
      for (auto m = j.begin(); m != j.end(); ++m) {
        bool other = known == schema.end() || !known->contains(m.key());
        if (patterns != schema.end())
          for (auto p = patterns->begin(); p != patterns->end(); ++p)
            other = other && !matches(p.key(), m.key());
        if (!other) continue;
        if (v.is_boolean() && !v.get<bool>()) {
          wrong(at, "the member '" + m.key() + "' is unknown");
        } else {
          apply(v, m.value(), below(m.key()), depth);
        }
      }
    } else if (key == "propertyNames") {
      if (!j.is_object()) return true;
      for (auto m = j.begin(); m != j.end(); ++m) apply(v, Json(m.key()), below(m.key()), depth);
    } else if (key == "minProperties") {
      if (j.is_object() && j.size() < size(v, key))
        wrong(at, fmt::format("at least {} members are wanted, not {}", size(v, key), j.size()));
    } else if (key == "maxProperties") {
      if (j.is_object() && j.size() > size(v, key))
        wrong(at, fmt::format("at most {} members are wanted, not {}", size(v, key), j.size()));
    } else {
      return false;
    }
    return true;
  }

  bool array_keyword(const Json& schema, const std::string& key, const Json& v, const Json& j,
                     const std::string& at, int depth) {
    const auto below = [&](size_t i) { return at + "/" + std::to_string(i); };
    if (key == "items") {
      const auto prefix = schema.find("prefixItems");
      if (!j.is_array()) return true;
      for (size_t i = prefix == schema.end() ? 0 : prefix->size(); i < j.size(); ++i)
        apply(v, j[i], below(i), depth);
    } else if (key == "prefixItems") {
      for (size_t i = 0; j.is_array() && i < std::min(v.size(), j.size()); ++i)
        apply(v[i], j[i], below(i), depth);
    } else if (key == "minItems") {
      if (j.is_array() && j.size() < size(v, key))
        wrong(at, fmt::format("at least {} elements are wanted, not {}", size(v, key), j.size()));
    } else if (key == "maxItems") {
      if (j.is_array() && j.size() > size(v, key))
        wrong(at, fmt::format("at most {} elements are wanted, not {}", size(v, key), j.size()));
    } else if (key == "uniqueItems") {
      if (!v.is_boolean()) broken("uniqueItems is not a boolean");
      for (size_t i = 0; v.get<bool>() && j.is_array() && i < j.size(); ++i)
        for (size_t k = 0; k < i; ++k)
          if (j[i] == j[k]) wrong(below(i), fmt::format("{} is there twice", shown(j[i])));
    } else {
      return false;
    }
    return true;
  }

  bool scalar_keyword(const std::string& key, const Json& v, const Json& j, const std::string& at) {
    const auto limit = [&](const char* words, bool (*fits)(double, double)) {
      if (j.is_number() && !fits(j.get<double>(), number(v, key)))
        wrong(at, fmt::format("a number {} {} is wanted, not {}", words, shown(v), shown(j)));
    };
    if (key == "minimum") {
      limit(">=", [](double a, double b) { return a >= b; });
    } else if (key == "maximum") {
      limit("<=", [](double a, double b) { return a <= b; });
    } else if (key == "exclusiveMinimum") {
      limit(">", [](double a, double b) { return a > b; });
    } else if (key == "exclusiveMaximum") {
      limit("<", [](double a, double b) { return a < b; });
    } else if (key == "multipleOf") {
      limit("that is a multiple of", [](double a, double b) { return std::fmod(a, b) == 0; });
    } else if (key == "minLength") {
      if (j.is_string() && code_points(j.get<std::string>()) < size(v, key))
        wrong(at, fmt::format("at least {} characters are wanted, not {}", size(v, key), shown(j)));
    } else if (key == "maxLength") {
      if (j.is_string() && code_points(j.get<std::string>()) > size(v, key))
        wrong(at, fmt::format("at most {} characters are wanted, not {}", size(v, key), shown(j)));
    } else if (key == "pattern") {
      if (j.is_string() && !matches(v.get<std::string>(), j.get<std::string>()))
        wrong(at, fmt::format("{} does not match {}", shown(j), v.get<std::string>()));
    } else {
      return false;
    }
    return true;
  }

  const Json& root_;
  std::map<std::string, std::regex> regexes_;
  std::vector<std::string> violations_;
};

}  // namespace

std::vector<std::string> validate_json(std::string_view schema_text, std::string_view json_text) {
  Json schema, j;
  try {
    schema = Json::parse(schema_text);
  } catch (const Json::parse_error& e) {
    throw Error(std::string("the schema is not JSON: ") + e.what());
  }
  if (const size_t at = too_deep(json_text, kMaxTextDepth); at != std::string_view::npos)
    throw DataError("byte " + std::to_string(at) + ": brackets nest deeper than " +
                    std::to_string(kMaxTextDepth) + " levels");
  try {
    j = Json::parse(json_text);
  } catch (const Json::parse_error& e) {
    const size_t offset = e.byte ? e.byte - 1 : 0;
    throw DataError("byte " + std::to_string(offset) + " (" + line_and_column(json_text, offset) +
                    "): not JSON");
  } catch (const Json::out_of_range&) {
    throw DataError("a number is larger than any double");
  }
  try {
    return Validator(schema).check(j);
  } catch (const Json::exception& e) {
    throw Error(std::string("the schema is broken: ") + e.what());
  }
}

}  // namespace attnbench
