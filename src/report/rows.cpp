#include "report/rows.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "analysis/analysis.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

using Mood = ReportTable::Mood;

/// Significant digits for people: 1.449, 298.3, 0.000123.
std::string figure(double v) {
  return std::isfinite(v) ? fmt::format("{:.4g}", v) : std::isnan(v) ? "?" : v < 0 ? "-inf" : "inf";
}

std::string interval(double low, double high) { return fmt::format("[{}, {}]", figure(low), figure(high)); }

std::string time_text(const Timing& t) {
  // Half the interval's width in percent of the median: what "±" means to a reader.
  const double share = t.median_s > 0 ? 50 * (t.ci_high_s - t.ci_low_s) / t.median_s : NAN;
  std::string s = seconds_text(t.median_s);
  if (std::isfinite(share)) s += fmt::format(" ±{:.1f}%", share);
  return s + (t.converged ? "" : " !");
}

Mood mood_of(CaseStatus s) {
  switch (s) {
    case CaseStatus::ok:
      return Mood::plain;
    case CaseStatus::skipped:
    case CaseStatus::unsupported:
    case CaseStatus::unverified:
      return Mood::warn;
    case CaseStatus::failed:
    case CaseStatus::inconsistent:
      return Mood::bad;
  }
  return Mood::plain;
}

double largest_error(const CaseResult& c) {
  double most = 0;
  if (c.verification)
    for (const auto& [key, e] : c.verification->relative_l2) most = std::isnan(e) || e > most ? e : most;
  return most;
}

std::string error_text(const CaseResult& c) {
  if (!c.verification || c.verification->relative_l2.empty()) return "";
  const double most = largest_error(c);
  return std::isnan(most) ? "nan" : fmt::format("{:.1e}", most);
}

std::string plural(size_t n, const std::string& what) {
  return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
}

}  // namespace

void ReportTable::drop_empty_columns() {
  for (size_t c = columns.size(); c-- > 0;) {
    if (std::any_of(rows.begin(), rows.end(), [c](const Row& r) { return !r.cells[c].empty(); })) continue;
    columns.erase(columns.begin() + static_cast<std::ptrdiff_t>(c));
    for (Row& r : rows) {
      r.cells.erase(r.cells.begin() + static_cast<std::ptrdiff_t>(c));
      if (c < r.keys.size()) r.keys.erase(r.keys.begin() + static_cast<std::ptrdiff_t>(c));
    }
  }
}

ReportTable case_table(const RunResult& run) {
  ReportTable t;
  t.columns = {{"case"},           {"status"},        {"time", true},  {"sustained", true},
               {"speed-up", true}, {"95% interval"},  {"GFLOP", true}, {"GFLOP/s", true},
               {"GB/s", true},     {"ceiling", true}, {"bound by"},    {"workspace", true},
               {"prepare", true},  {"rel. L2", true}, {"compared"}};
  for (const CaseResult& c : run.cases) {
    // Rates above the machine's ceiling are withheld: they cannot be true.
    const bool rates = c.bound && c.status != CaseStatus::inconsistent;
    const bool timed = c.time.has_value();
    t.rows.push_back(
        {{c.spec.name, c.status == CaseStatus::ok ? "" : std::string(name(c.status)),
          timed ? time_text(*c.time) : "",
          c.sustained && c.sustained->differs()
              ? fmt::format("{} ({:+.0f}%)", seconds_text(c.sustained->sustained_s),
                            100 * (c.sustained->sustained_s / c.sustained->burst_s - 1))
              : "",
          c.ratio ? figure(c.ratio->value) + "x" : "",
          c.ratio ? interval(c.ratio->ci_low, c.ratio->ci_high) : "",
          c.counted.flops() > 0 ? figure(static_cast<double>(c.counted.flops()) * 1e-9) : "",
          rates ? figure(c.bound->gflops) : "", rates ? figure(c.bound->gbytes_per_s) : "",
          rates ? fmt::format("{:.0f}%", c.bound->percent_of_ceiling) : "", rates ? c.bound->bound_by : "",
          c.memory ? bytes_text(c.memory->workspace_peak) : "",
          c.prepare_s && *c.prepare_s > 0 ? seconds_text(*c.prepare_s) : "", error_text(c),
          c.verification && c.verification->sampled
              ? fmt::format("{} of {} rows", c.verification->sampled->rows, c.verification->sampled->of)
              : ""},
         mood_of(c.status),
         {NAN, NAN, timed ? c.time->median_s : NAN, c.sustained ? c.sustained->sustained_s : NAN,
          c.ratio ? c.ratio->value : NAN, c.ratio ? c.ratio->ci_low : NAN,
          static_cast<double>(c.counted.flops()), rates ? c.bound->gflops : NAN,
          rates ? c.bound->gbytes_per_s : NAN, rates ? c.bound->percent_of_ceiling : NAN, NAN,
          c.memory ? static_cast<double>(c.memory->workspace_peak) : NAN, c.prepare_s ? *c.prepare_s : NAN,
          largest_error(c), NAN}});
  }
  t.drop_empty_columns();
  return t;
}

ReportTable stage_table(const RunResult& run) {
  ReportTable t;
  t.columns = {{"case"}, {"stage"}, {"time", true}, {"share", true}, {"GFLOP", true}};
  for (const CaseResult& c : run.cases) {
    if (c.stages.size() < 2) continue;
    double total = 0;
    for (const StageTime& s : c.stages) total += s.median_s;
    for (const StageTime& s : c.stages)
      t.rows.push_back({{c.spec.name, s.stage, seconds_text(s.median_s),
                         total > 0 ? fmt::format("{:.0f}%", 100 * s.median_s / total) : "",
                         s.cost.flops() > 0 ? figure(static_cast<double>(s.cost.flops()) * 1e-9) : ""},
                        Mood::plain,
                        {NAN, NAN, s.median_s, total > 0 ? s.median_s / total : NAN,
                         static_cast<double>(s.cost.flops())}});
  }
  return t;
}

std::vector<std::pair<std::string, ReportTable>> analysis_tables(const RunResult& run) {
  std::map<std::string, std::vector<std::pair<const CaseResult*, const AnalysisResult*>>> by_id;
  for (const CaseResult& c : run.cases)
    for (const AnalysisResult& a : c.analyses) by_id[a.analysis].emplace_back(&c, &a);
  std::vector<std::pair<std::string, ReportTable>> tables;
  for (const auto& [id, results] : by_id) {
    // A file may hold analyses that this program does not know: all of their figures are shown.
    std::string title = id;
    std::vector<std::string> figures;
    for (const Analysis* a : all_analyses())
      if (a->info().id == id) title = a->info().title, figures = a->info().headline;
    if (figures.empty()) {
      std::set<std::string> all;
      for (const auto& [c, a] : results)
        for (const auto& [key, v] : a->scalars) all.insert(key);
      figures.assign(all.begin(), all.end());
    }
    ReportTable t;
    t.columns = {{"case"}};
    for (const std::string& key : figures) t.columns.push_back({key, true});
    for (const auto& [c, a] : results) {
      t.rows.push_back({{c->spec.name}, Mood::plain, {NAN}});
      for (const std::string& key : figures) {
        const auto it = a->scalars.find(key);
        t.rows.back().cells.push_back(it == a->scalars.end() ? "" : figure(it->second));
        t.rows.back().keys.push_back(it == a->scalars.end() ? NAN : it->second);
      }
    }
    t.drop_empty_columns();
    tables.emplace_back(title, std::move(t));
  }
  return tables;
}

ReportTable claim_table(const RunResult& run) {
  ReportTable t;
  t.columns = {{"claim"},          {"published", true}, {"tolerance", true},
               {"measured", true}, {"95% interval"},    {"verdict"},
               {"where"}};
  for (const ClaimResult& r : run.claims) {
    using V = ClaimResult::Verdict;
    const bool known = r.verdict != V::not_evaluated;
    const std::string side = r.claim.compare == "at_least"  ? ">= "
                             : r.claim.compare == "at_most" ? "<= "
                                                            : "";
    std::string id = r.claim.id;
    for (const auto& [key, v] : r.claim.axes) id += " " + key + "=" + v.str();
    t.rows.push_back(
        {{id, side + (r.claim.published_text.empty() ? figure(r.claim.published) : r.claim.published_text),
          r.claim.tolerance > 0 ? fmt::format("{:.3g}%", 100 * r.claim.tolerance)
          : side.empty()        ? "exact"
                                : "",
          known ? figure(r.measured) : "", known && r.ci_low < r.ci_high ? interval(r.ci_low, r.ci_high) : "",
          known ? std::string(name(r.verdict)) : "not evaluated", r.claim.where},
         r.verdict == V::outside ? Mood::bad
         : known                 ? Mood::good
                                 : Mood::warn});
  }
  return t;
}

std::vector<std::string> remarks(const RunResult& run) {
  std::vector<std::pair<std::string, std::string>> all;  // remark, whose
  const auto add = [&all](const std::string& whose, const std::string& remark) {
    const auto it = std::find_if(all.begin(), all.end(), [&](const auto& r) { return r.first == remark; });
    if (it == all.end()) {
      all.emplace_back(remark, whose);
    } else {
      it->second += ", " + whose;
    }
  };
  for (const CaseResult& c : run.cases) {
    const std::string& who = c.spec.name;
    if (c.status != CaseStatus::ok || !c.reason.empty())
      add(who, std::string(name(c.status)) + (c.reason.empty() ? "" : ": " + c.reason));
    if (c.verification && !c.verification->passed && !c.verification->worst.empty())
      add(who, "worst element " + c.verification->worst);
    if (c.time && !c.time->converged && c.warnings.empty())  // the runner's own warning says more
      add(who, "! the precision that was asked for was not reached in " +
                   plural(static_cast<size_t>(std::max(c.time->samples, 0)), "sample"));
    for (const Decision& d : c.decisions)
      add(who, d.param + " is " + d.value.str() + (d.why.empty() ? "" : ": " + d.why));
    for (const std::string& w : c.warnings) add(who, w);
  }
  for (const ClaimResult& r : run.claims)
    if (!r.reason.empty()) add(r.claim.id, r.reason);
  std::vector<std::string> lines;
  for (const auto& [remark, whose] : all) lines.push_back(whose + ": " + remark);
  return lines;
}

std::string headline(const RunResult& run) {
  return run.suite.name + (run.suite.title.empty() ? "" : ": " + run.suite.title);
}

std::string machine_line(const RunResult& run) {
  std::string s;
  const auto add = [&](const char* key, const char* after) {
    const auto it = run.environment.values.find(key);
    if (it == run.environment.values.end() || it->second.is_null()) return;
    s += (s.empty() ? "" : ", ") + it->second.str() + after;
  };
  add("cpu_model", "");
  add("cores", " cores");
  add("gpu", "");
  if (!run.started_at.empty()) s += (s.empty() ? "" : ", ") + run.started_at;
  return s;
}

std::string tally(const RunResult& run) {
  std::string s;
  const auto add = [&](const std::string& piece) { s += (s.empty() ? "" : ", ") + piece; };
  for (CaseStatus status : {CaseStatus::ok, CaseStatus::skipped, CaseStatus::unsupported, CaseStatus::failed,
                            CaseStatus::unverified, CaseStatus::inconsistent}) {
    const auto n = std::count_if(run.cases.begin(), run.cases.end(),
                                 [status](const CaseResult& c) { return c.status == status; });
    if (n > 0) add(fmt::format("{} {}", n, name(status)));
  }
  if (s.empty()) s = "no case was measured";
  using V = ClaimResult::Verdict;
  std::string claims;
  for (V v : {V::holds, V::exact, V::outside, V::not_evaluated}) {
    const auto n = std::count_if(run.claims.begin(), run.claims.end(),
                                 [v](const ClaimResult& c) { return c.verdict == v; });
    if (n > 0)
      claims += fmt::format("{}{} {}", claims.empty() ? "" : ", ", n,
                            v == V::not_evaluated ? "not evaluated" : name(v));
  }
  if (!claims.empty()) s += "; claims: " + claims;
  if (run.interrupted) s += "; interrupted before all cases were measured";
  return s;
}

}  // namespace attnbench
