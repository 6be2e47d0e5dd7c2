#include "measure/results.hpp"

#include "methods/params.hpp"

namespace attnbench {

std::string_view name(CaseStatus s) {
  switch (s) {
    case CaseStatus::ok:
      return "ok";
    case CaseStatus::skipped:
      return "skipped";
    case CaseStatus::unsupported:
      return "unsupported";
    case CaseStatus::failed:
      return "failed";
    case CaseStatus::unverified:
      return "unverified";
    case CaseStatus::inconsistent:
      return "inconsistent";
  }
  return "?";
}

CaseStatus parse_case_status(std::string_view word) {
  std::vector<std::string> words;
  for (CaseStatus s : {CaseStatus::ok, CaseStatus::skipped, CaseStatus::unsupported, CaseStatus::failed,
                       CaseStatus::unverified, CaseStatus::inconsistent}) {
    if (word == name(s)) return s;
    words.emplace_back(name(s));
  }
  const std::string near = nearest_word(std::string(word), words);
  throw UsageError("unknown case status '" + std::string(word) + "'" +
                   (near.empty() ? "; valid: ok, skipped, unsupported, failed, unverified, inconsistent"
                                 : "; did you mean '" + near + "'?"));
}

std::string_view name(ClaimResult::Verdict v) {
  switch (v) {
    case ClaimResult::Verdict::holds:
      return "holds";
    case ClaimResult::Verdict::exact:
      return "exact";
    case ClaimResult::Verdict::outside:
      return "outside";
    case ClaimResult::Verdict::not_evaluated:
      return "not_evaluated";
  }
  return "?";
}

}  // namespace attnbench
