// The shape of JUnit XML, as the xUnit schema of Jenkins has it. What the tests in it say is for the caller.
#pragma once
#include <map>
#include <regex>
#include <set>
#include <string>

#include "tests/catch.hpp"
#include "tests/report/markup.hpp"

/// Names and attributes of the xUnit schema; order and counts are checked by the caller.
inline void require_junit(const std::string& text) {
  const auto problems = markup::problems(text, true);
  INFO((problems.empty() ? text : problems.front() + "\n" + text));
  REQUIRE(problems.empty());
  REQUIRE(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites "));
  static const std::map<std::string, std::set<std::string>> allowed{
      {"testsuites", {"name", "tests", "failures", "errors", "time"}},
      {"testsuite", {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}},
      {"testcase", {"name", "classname", "time"}},
      {"failure", {"type", "message"}},
      {"error", {"type", "message"}},
      {"skipped", {}},
      {"system-out", {}}};
  const std::regex tag("<([a-z-]+)((?: [a-z]+=\"[^\"]*\")*)/?>"), attribute(" ([a-z]+)=\"([^\"]*)\"");
  size_t tags = 0;
  for (std::sregex_iterator it(text.begin(), text.end(), tag), end; it != end; ++it, ++tags) {
    const auto element = allowed.find((*it)[1]);
    REQUIRE(element != allowed.end());
    const std::string attributes = (*it)[2];
    for (std::sregex_iterator a(attributes.begin(), attributes.end(), attribute); a != end; ++a) {
      REQUIRE(element->second.contains((*a)[1]));
      if ((*a)[1] == "time") REQUIRE(std::regex_match((*a)[2].str(), std::regex("[0-9]+[.][0-9]+")));
    }
  }
  REQUIRE(tags > 0);
}
