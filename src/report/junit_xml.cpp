#include "report/junit_xml.hpp"

#include <fmt/core.h>

#include "report/page.hpp"

namespace attnbench {

namespace {

/// Decimal, never an exponent: the schema's type.
std::string seconds(double s) { return fmt::format("{:.9f}", s > 0 && s < 1e9 ? s : 0); }

std::string text_of(const JunitTest& t, const std::string& group) {
  std::string out = fmt::format("    <testcase name=\"{}\" classname=\"{}\" time=\"{}\"", xml_escaped(t.name),
                                xml_escaped(group), seconds(t.seconds));
  std::string inner;
  const std::string message = xml_escaped(t.message), type = xml_escaped(t.type);
  switch (t.outcome) {
    case JunitTest::Outcome::passed:
      break;
    case JunitTest::Outcome::skipped:
      inner = "<skipped>" + message + "</skipped>";
      break;
    case JunitTest::Outcome::failure:
      inner = fmt::format("<failure type=\"{0}\" message=\"{1}\">{1}</failure>", type, message);
      break;
    case JunitTest::Outcome::error:
      inner = fmt::format("<error type=\"{0}\" message=\"{1}\">{1}</error>", type, message);
      break;
  }
  if (!t.output.empty()) inner += "<system-out>" + xml_escaped(t.output) + "</system-out>";
  return out + (inner.empty() ? "/>\n" : ">" + inner + "</testcase>\n");
}

/// "2026-01-01T00:00:00" of "2026-01-01T00:00:00Z": the schema knows no zone.
std::string zoneless(const std::string& iso) {
  return iso.ends_with('Z') ? iso.substr(0, iso.size() - 1) : iso;
}

struct Counts {
  size_t tests = 0, failures = 0, errors = 0, skipped = 0;
  double seconds = 0;
  void add(const JunitTest& t) {
    ++tests;
    failures += t.outcome == JunitTest::Outcome::failure;
    errors += t.outcome == JunitTest::Outcome::error;
    skipped += t.outcome == JunitTest::Outcome::skipped;
    seconds += t.seconds;
  }
};

}  // namespace

std::string junit_xml(const std::string& name, const std::vector<JunitGroup>& groups,
                      const std::string& started_at) {
  Counts all;
  std::string inner;
  for (const JunitGroup& group : groups) {
    if (group.tests.empty()) continue;
    Counts own;
    std::string text;
    for (const JunitTest& t : group.tests) {
      own.add(t), all.add(t);
      text += text_of(t, group.name);
    }
    inner += fmt::format(
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" "
        "time=\"{}\"{}>\n{}"
        "  </testsuite>\n",
        xml_escaped(group.name), own.tests, own.failures, own.errors, own.skipped, seconds(own.seconds),
        started_at.empty() ? "" : " timestamp=\"" + xml_escaped(zoneless(started_at)) + "\"", text);
  }
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" "
      "errors=\"{}\" time=\"{}\">\n{}</testsuites>\n",
      xml_escaped(name), all.tests, all.failures, all.errors, seconds(all.seconds), inner);
}

}  // namespace attnbench
