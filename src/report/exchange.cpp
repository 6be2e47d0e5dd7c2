#include "report/exchange.hpp"

#include <nlohmann/json.hpp>

namespace attnbench {

namespace {

// 30,000 years: what is longer is no measurement, and nanoseconds of it would overflow.
constexpr double kMostSeconds = 1e12;

bool is_time(double s) { return s > 0 && s < kMostSeconds; }

bool has_time(const CaseResult& c) {
  if (c.status != CaseStatus::ok || !c.time) return false;
  const Timing& t = *c.time;
return is_time(t.median_s) && is_time(t.ci_low_s) && is_time(t.ci_high_s);
}

}  // namespace

std::vector<const CaseResult*> timed_cases(const RunResult& run) {
  std::vector<const CaseResult*> out;
  for (const CaseResult& c : run.cases)
    if (has_time(c)) out.push_back(&c);
  return out;
}

std::string untimed_cases(const RunResult& run) {
  std::string out;
  for (const CaseResult& c : run.cases)
    if (!has_time(c))
      out += (out.empty() ? "" : ", ") + c.spec.name + " (" + std::string(name(c.status)) + ")";
  return out;
}

double flops_per_second(const CaseResult& c, double seconds) {
  return seconds > 0 ? static_cast<double>(c.counted.flops()) / seconds : 0;
}

std::string json_text(const nlohmann::ordered_json& j) {
  return j.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace attnbench
