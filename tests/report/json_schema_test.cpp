// The validator against the specification's words, and the results schema against what the program writes.
#include "report/json_schema.hpp"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/core/error.hpp"
#include "report/results_json.hpp"
#include "report/schemas.hpp"
#include "tests/catch.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;
using Json = nlohmann::ordered_json;

namespace {
bool valid(const std::string& schema, const std::string& text) { return validate_json(schema, text).empty(); }
}  // namespace

TEST_CASE("every keyword accepts what it should and refuses what it should") {
  struct Row {
    const char *schema, *good, *bad;
  };
  const Row rows[] = {
      {R"({"type": "integer"})", "3.0", "3.5"},
      {R"({"type": "number"})", "3", "\"3\""},
      {R"({"type": ["null", "boolean"]})", "null", "0"},
      {R"({"type": "object"})", "{}", "[]"},
      {R"({"enum": ["a", 1]})", "1.0", "\"b\""},
      {R"({"const": {"a": [1]}})", R"({"a": [1]})", R"({"a": [2]})"},
      {R"({"required": ["a"]})", R"({"a": null})", R"({"b": 1})"},
      {R"({"required": ["a"]})", "3", R"({})"},  // says nothing about other types
      {R"({"properties": {"a/b": {"type": "string"}}})", R"({"a/b": "x", "c": 1})", R"({"a/b": 1})"},
      {R"({"properties": {"a": true}, "additionalProperties": false})", R"({"a": 1})", R"({"a": 1, "b": 2})"},
      {R"({"additionalProperties": {"type": "string"}})", R"({"a": "x"})", R"({"a": 1})"},
      {R"({"patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": false})",
       R"({"x_a": 1})", R"({"x_a": "1"})"},
      {R"({"patternProperties": {"^x_": true}, "additionalProperties": false})", R"({"x_a": 1})",
       R"({"y": 1})"},
      {R"({"propertyNames": {"maxLength": 2}})", R"({"ab": 1})", R"({"abc": 1})"},
      {R"({"minProperties": 1})", R"({"a": 1})", "{}"},
      {R"({"maxProperties": 1})", R"({"a": 1})", R"({"a": 1, "b": 1})"},
      {R"({"items": {"type": "integer"}})", "[1, 2]", "[1, \"2\"]"},
      {R"({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}})", "[\"a\", 1]",
       "[\"a\", \"b\"]"},
      {R"({"prefixItems": [{"type": "string"}]})", "[]", "[1]"},
      {R"({"minItems": 2})", "[1, 2]", "[1]"},
      {R"({"maxItems": 1})", "[1]", "[1, 2]"},
      {R"({"uniqueItems": true})", "[1, 2, [1]]", "[1, 2, 1.0]"},
      {R"({"minimum": 2})", "2", "1.9"},
      {R"({"maximum": 2})", "2", "2.1"},
      {R"({"exclusiveMinimum": 2})", "2.1", "2"},
      {R"({"exclusiveMaximum": 2})", "1.9", "2"},
      {R"({"multipleOf": 3})", "9", "10"},
      {R"({"minLength": 2})", "\"ää\"", "\"ä\""},  // characters, not bytes
      {R"({"maxLength": 1})", "\"ä\"", "\"ab\""},
      {R"({"pattern": "b+"})", "\"abc\"", "\"ac\""},
      {R"({"anyOf": [{"type": "string"}, {"minimum": 5}]})", "7", "3"},
      {R"({"oneOf": [{"minimum": 0}, {"maximum": 0}]})", "1", "0"},
      {R"({"allOf": [{"minimum": 0}, {"maximum": 9}]})", "5", "10"},
      {R"({"not": {"type": "null"}})", "1", "null"},
      {R"({"if": {"minimum": 10}, "then": {"multipleOf": 10}, "else": {"maximum": 5}})", "20", "11"},
      {R"({"if": {"minimum": 10}, "then": {"multipleOf": 10}, "else": {"maximum": 5}})", "5", "6"},
      {R"({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}})", "null", "1"},
      {R"({"properties": {"next": {"$ref": "#"}, "v": {"type": "integer"}}})",
       R"({"next": {"next": {"v": 1}}})", R"({"next": {"next": {"v": ""}}})"},
      {"true", "1", ""},
      {"false", "", "1"},
  };
  for (const Row& row : rows) {
    INFO(row.schema << " good " << row.good << " bad " << row.bad);
    if (*row.good) CHECK(valid(row.schema, row.good));
    if (*row.bad) CHECK_FALSE(valid(row.schema, row.bad));
  }
}

TEST_CASE("violations name the place and what is wanted") {
  const auto all = validate_json(
      R"({"properties": {"cases": {"items": {"properties": {"id": true, "status": {"enum": ["ok", "failed"]}},
          "required": ["id"], "additionalProperties": false}}}})",
      R"({"cases": [{"id": 1, "status": "ok"}, {"status": "okay", "x": 1}]})");
  REQUIRE(all.size() == 3);
  CHECK(all[0] == "/cases/1/status: one of \"ok\", \"failed\" is wanted, not \"okay\"");
  CHECK(all[1] == "/cases/1: the member 'id' is missing");
  CHECK(all[2] == "/cases/1: the member 'x' is unknown");
  // Of alternatives that all fail, the nearest one speaks.
  const auto nearest = validate_json(
      R"({"anyOf": [{"type": "null"}, {"required": ["a"], "properties": {"b": {"type": "string"}}}]})",
      R"({"a": 1, "b": 2})");
  REQUIRE(nearest.size() == 1);
}

TEST_CASE("schemas that cannot be kept are errors, never silence") {
  CHECK_THROWS_AS(valid(R"({"minimun": 3})", "1"), Error);
  CHECK_THROWS_AS(valid(R"({"type": "int"})", "1"), Error);
  CHECK_THROWS_AS(valid(R"({"$ref": "#/$defs/none"})", "1"), Error);
  CHECK_THROWS_AS(valid(R"({"$ref": "http://example.org/x"})", "1"), Error);
  CHECK_THROWS_AS(valid(R"({"$ref": "#"})", "1"), Error);  // a circle
  CHECK_THROWS_AS(valid(R"({"pattern": "("})", "\"a\""), Error);
  CHECK_THROWS_AS(valid(R"({"minimum": "3"})", "1"), Error);
  CHECK_THROWS_AS(valid(R"({"required": "a"})", "{}"), Error);
  CHECK_THROWS_AS(valid(R"({"properties": ["a"]})", "{}"), Error);
  CHECK_THROWS_AS(valid("{", "1"), Error);
  CHECK_THROWS_AS(valid("true", "{\"a\": tru}"), DataError);
  CHECK_THROWS_AS(valid("true", std::string(100000, '[')), DataError);
}

TEST_CASE("what the program writes is valid, and strictly so") {
  REQUIRE(schemas().contains("results"));
  const std::string_view schema = schemas().at("results");
  const auto violations = [&](const Json& j) { return validate_json(schema, j.dump()); };
  RunResult run = sample_run();
  for (const std::string& v : validate_json(schema, to_json(run))) FAIL_CHECK(v);
  for (const std::string& v : validate_json(schema, to_json(RunResult{}))) FAIL_CHECK(v);
  run.cases[0].time->median_s = NAN;
  run.cases[0].time->raw_s[0] = INFINITY;
  run.environment.values["x"] = NAN;
  for (const std::string& v : validate_json(schema, to_json(run))) FAIL_CHECK(v);

  const Json good = Json::parse(to_json(sample_run()));
  // No member of any object may be lacking, and none may be added, but for the few that are optional.
  const std::vector<std::string> optional{
      "raw_s", "heads",      "kv_heads",  "length",      "kv_length", "head_dim",  "channels",
      "grid",  "size",       "samples",   "sample_rate", "inputs",    "generator", "arguments",
      "file",  "submission", "sustained", "device_peak", "decisions", "elapsed_s", "left_out"};
  size_t removed = 0;
  const std::function<void(const Json&, const std::string&)> visit = [&](const Json& j,
                                                                         const std::string& at) {
    if (j.is_array() && !j.empty()) visit(j[0], at + "/0");
    if (!j.is_object()) return;
    const std::string last = at.substr(at.rfind('/') + 1);
    // Maps from names that the schema cannot know.
    for (const char* map : {"axes", "params", "analysis_params", "values", "gflops", "gbytes_per_s",
                            "relative_l2", "scalars", "series", "notes", "arguments", "state", "elapsed_s"})
      if (last == map) return;
    Json more = good;
    more[Json::json_pointer(at)]["unexpected"] = 1;
    INFO(at);
    CHECK(violations(more).size() == 1);
    for (auto it = j.begin(); it != j.end(); ++it) {
      const bool may_lack =
          std::find(optional.begin(), optional.end(), it.key()) != optional.end() &&
          (last == "problem" || last == "inputs" || last == "time" || last == "memory" ||
           at.starts_with("/cases/") || last == "claim" || at.starts_with("/suite/claims/"));
      Json less = good;
      less[Json::json_pointer(at)].erase(it.key());
      INFO(it.key());
      if (!may_lack) {
        CHECK_FALSE(violations(less).empty());
        ++removed;
      }
      Json odd = good;
      odd[Json::json_pointer(at)][it.key()] = Json::array({Json::object({{"odd", Json::object()}})});
      CHECK_FALSE(violations(odd).empty());
      visit(it.value(), at + "/" + it.key());
    }
  };
  visit(good, "");
  CHECK(removed > 100);
  Json silent = good;
  silent["cases"][2]["reason"] = "";
  CHECK_FALSE(violations(silent).empty());
}

TEST_CASE("every embedded schema is one this validator knows") {
  for (const auto& [name, text] : schemas()) {
    INFO(name);
    CHECK_NOTHROW(validate_json(text, "{}"));
    CHECK(Json::parse(text)["$schema"] == "https://json-schema.org/draft/2020-12/schema");
  }
}
