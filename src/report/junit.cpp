// JUnit XML of a run: one test a case (verified and measured?) and one a claim (holds?). The figures
// themselves are in other formats; verdicts against earlier runs come from `check -o FILE.xml`.
#include <fmt/core.h>

#include "report/format.hpp"
#include "report/junit_xml.hpp"
#include "report/rows.hpp"

namespace attnbench {

namespace {

JunitTest test_of(const CaseResult& c) {
  JunitTest t{.name = c.spec.name, .type = std::string(name(c.status)), .message = c.reason, .output = {}};
  // The time of one execution; a test's own length would say more of the stopping rule than of the method.
  if (c.time) t.seconds = c.time->median_s;
  using O = JunitTest::Outcome;
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

JunitTest test_of(const ClaimResult& r) {
  std::string id = r.claim.id;
  for (const auto& [key, v] : r.claim.axes) id += " " + key + "=" + v.str();
  JunitTest t{.name = id, .type = std::string(name(r.verdict)), .message = r.reason, .output = {}};
  using V = ClaimResult::Verdict;
  if (r.verdict == V::not_evaluated) {
    t.outcome = JunitTest::Outcome::skipped;
  } else {
    const std::string published =
        r.claim.published_text.empty() ? fmt::format("{:.6g}", r.claim.published) : r.claim.published_text;
    t.message = fmt::format("measured {:.6g} [{:.6g}, {:.6g}], published {}{} (tolerance {:.3g}%)",
                            r.measured, r.ci_low, r.ci_high,
                            r.claim.compare == "at_least"  ? "at least "
                            : r.claim.compare == "at_most" ? "at most "
                                                           : "",
                            published, 100 * r.claim.tolerance);
    if (r.verdict == V::outside) t.outcome = JunitTest::Outcome::failure;
  }
  if (!r.claim.where.empty()) t.output = r.claim.where;
  return t;
}

class JunitFormat final : public Format {
 public:
  std::string id() const override { return "junit"; }
  std::string extension() const override { return ".xml"; }
  std::string summary() const override { return "JUnit XML: verification and claims as tests"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    std::vector<JunitGroup> groups{{run.suite.name + ".cases", {}}, {run.suite.name + ".claims", {}}};
    for (const CaseResult& c : run.cases) groups[0].tests.push_back(test_of(c));
    for (const ClaimResult& c : run.claims) groups[1].tests.push_back(test_of(c));
    return junit_xml(run.suite.name, groups, run.started_at);
  }
};
ATTNBENCH_FORMAT(JunitFormat);

}  // namespace

}  // namespace attnbench
