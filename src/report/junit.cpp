// JUnit XML, as the xUnit schema of Jenkins has it and GitLab, GitHub actions and IDEs read it: one test a
// case (verified and measured?) and one a claim (holds?). The figures themselves are in other formats.
#include <fmt/core.h>

#include "report/format.hpp"
#include "report/page.hpp"
#include "report/rows.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

struct Test {
  enum class Outcome : uint8_t { passed, skipped, failure, error } outcome = Outcome::passed;
  std::string name, group, type, message, output;
  double seconds = 0;
};

Test test_of(const CaseResult& c, const std::string& suite) {
  Test t{.name = c.spec.name,
         .group = suite + ".cases",
         .type = std::string(name(c.status)),
         .message = c.reason,
         .output = {}};
  // The time of one execution; a test's own length would say more of the stopping rule than of the method.
  if (c.time) t.seconds = c.time->median_s;
  using O = Test::Outcome;
  switch (c.status) {
    case CaseStatus::ok:
      break;
    case CaseStatus::skipped:
    case CaseStatus::unsupported:
    case CaseStatus::unverified:
      t.outcome = O::skipped;
      break;
    case CaseStatus::failed:
      t.outcome = c.verification && !c.verification->passed ? O::failure : O::error;
      if (t.outcome == O::failure) t.type = "verification";
      break;
    case CaseStatus::inconsistent:
      t.outcome = O::failure;
      break;
  }
  if (t.message.empty()) t.message = t.type;
  if (c.verification && !c.verification->worst.empty()) t.output = "worst element " + c.verification->worst;
  for (const std::string& w : c.warnings) t.output += (t.output.empty() ? "" : "; ") + w;
  return t;
}

Test test_of(const ClaimResult& r, const std::string& suite) {
  std::string id = r.claim.id;
  for (const auto& [key, v] : r.claim.axes) id += " " + key + "=" + v.str();
  Test t{.name = id,
         .group = suite + ".claims",
         .type = std::string(name(r.verdict)),
         .message = r.reason,
         .output = {}};
  using V = ClaimResult::Verdict;
  if (r.verdict == V::not_evaluated) {
    t.outcome = Test::Outcome::skipped;
  } else {
    const std::string published =
        r.claim.published_text.empty() ? fmt::format("{:.6g}", r.claim.published) : r.claim.published_text;
    t.message = fmt::format("measured {:.6g} [{:.6g}, {:.6g}], published {}{} (tolerance {:.3g}%)",
                            r.measured, r.ci_low, r.ci_high,
                            r.claim.compare == "at_least"  ? "at least "
                            : r.claim.compare == "at_most" ? "at most "
                                                           : "",
                            published, 100 * r.claim.tolerance);
    if (r.verdict == V::outside) t.outcome = Test::Outcome::failure;
  }
  if (!r.claim.where.empty()) t.output = r.claim.where;
  return t;
}

/// Decimal, never an exponent: the schema's type.
std::string seconds(double s) { return fmt::format("{:.9f}", s > 0 && s < 1e9 ? s : 0); }

std::string text_of(const Test& t) {
  std::string out = fmt::format("    <testcase name=\"{}\" classname=\"{}\" time=\"{}\"", xml_escaped(t.name),
                                xml_escaped(t.group), seconds(t.seconds));
  std::string inner;
  const std::string message = xml_escaped(t.message), type = xml_escaped(t.type);
  switch (t.outcome) {
    case Test::Outcome::passed:
      break;
    case Test::Outcome::skipped:
      inner = "<skipped>" + message + "</skipped>";
      break;
    case Test::Outcome::failure:
      inner = fmt::format("<failure type=\"{0}\" message=\"{1}\">{1}</failure>", type, message);
      break;
    case Test::Outcome::error:
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
  void add(const Test& t) {
    ++tests;
    failures += t.outcome == Test::Outcome::failure;
    errors += t.outcome == Test::Outcome::error;
    skipped += t.outcome == Test::Outcome::skipped;
    seconds += t.seconds;
  }
};

class JunitFormat final : public Format {
 public:
  std::string id() const override { return "junit"; }
  std::string extension() const override { return ".xml"; }
  std::string summary() const override { return "JUnit XML: verification and claims as tests"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    std::vector<std::pair<std::string, std::vector<Test>>> suites(2);
    suites[0].first = run.suite.name + ".cases";
    suites[1].first = run.suite.name + ".claims";
    for (const CaseResult& c : run.cases) suites[0].second.push_back(test_of(c, run.suite.name));
    for (const ClaimResult& c : run.claims) suites[1].second.push_back(test_of(c, run.suite.name));
    Counts all;
    std::string inner;
    for (const auto& [group, tests] : suites) {
      if (tests.empty()) continue;
      Counts own;
      std::string text;
      for (const Test& t : tests) {
        own.add(t), all.add(t);
        text += text_of(t);
      }
      inner += fmt::format(
          "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" "
          "time=\"{}\"{}>\n{}"
          "  </testsuite>\n",
          xml_escaped(group), own.tests, own.failures, own.errors, own.skipped, seconds(own.seconds),
          run.started_at.empty() ? "" : " timestamp=\"" + xml_escaped(zoneless(run.started_at)) + "\"", text);
    }
    return fmt::format(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" "
        "errors=\"{}\" time=\"{}\">\n{}</testsuites>\n",
        xml_escaped(run.suite.name), all.tests, all.failures, all.errors, seconds(all.seconds), inner);
  }
};
ATTNBENCH_FORMAT(JunitFormat);

}  // namespace

}  // namespace attnbench
