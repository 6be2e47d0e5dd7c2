#include "history/gate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "measure/statistics.hpp"

namespace attnbench {

namespace {

// Fewer cases say little of how a suite scatters.
constexpr size_t kLeastCasesForScatter = 5;
// A level of so many runs tells its own spread well enough to speak for others.
constexpr double kLeastDofForPrior = 3;
// On a virtual machine with ordinary neighbours p95 lies 5 to 25% above p5 (suites/ci.yaml); from 35% on
// something came and went.
constexpr double kJitter = 0.3;
// A neighbour that takes its share of every core leaves half: what a whole suite changed by beyond a factor
// of two is not the machine's mood.
// A run alone does not tell a disturbed minute from slower code where so many of its cases changed at once.
constexpr double kShareAtOnce = 0.2;
// A neighbour that takes its share of every core leaves half: what cases changed by beyond a factor of two is
// not the machine's mood.
constexpr double kMostDrift = 0.6931471805599453;

struct Known {
  std::vector<double> logs;  ///< of the current level: a value per session, or per run where they are few
  double own_error = 0;      ///< typical error inside one of those runs
  double middle = 0;
  Spread history;
  size_t sessions = 0, runs = 0;  ///< of the current level
  bool drift_known() const { return sessions >= kLeastSessions; }
};

Known known_of(const std::vector<HistoryPoint>& points, double threshold) {
  struct Session {
    Time begin = 0;
    std::vector<double> logs, errors;
  };
  std::vector<Session> sessions;
  for (const HistoryPoint& p : points)
    if (p.status == CaseStatus::ok && p.median_s > 0) {
      if (sessions.empty() || p.time >= sessions.back().begin + kSessionSeconds)
        sessions.push_back({p.time, {}, {}});
      sessions.back().logs.push_back(std::log(p.median_s));
      sessions.back().errors.push_back(log_error(p.ci_low_s, p.ci_high_s));
    }
  Known k;
  std::vector<double> logs, errors;
  std::vector<size_t> session_of, runs;  // of each value
  const bool many = sessions.size() >= kLeastSessions;
  for (size_t i = 0; i < sessions.size(); ++i) {
    const Session& s = sessions[i];
    if (many) {
      logs.push_back(median(s.logs));
      errors.push_back(median(s.errors));
      session_of.push_back(i);
      runs.push_back(s.logs.size());
    } else {
      logs.insert(logs.end(), s.logs.begin(), s.logs.end());
      errors.insert(errors.end(), s.errors.begin(), s.errors.end());
      session_of.insert(session_of.end(), s.logs.size(), i);
      runs.insert(runs.end(), s.logs.size(), 1);
    }
  }
  if (logs.empty()) return k;
  const Level level = current_level(logs, threshold);
  const auto begin = static_cast<std::ptrdiff_t>(level.begin);
  k.logs.assign(logs.begin() + begin, logs.end());
  k.own_error = median({errors.begin() + begin, errors.end()});
  k.middle = level.middle;
  k.history = level.spread;
  k.sessions = sessions.size() - session_of[level.begin];
  k.runs = std::accumulate(runs.begin() + begin, runs.end(), size_t{0});
  if (many && k.runs > k.sessions) {
    // Medians of whole sessions scatter less than the single run that will stand beside them: what its runs
    // differ by inside a session is added, less what is left of it in a median of so many.
    double within = 0, dof = 0;
    for (size_t i = session_of[level.begin]; i < sessions.size(); ++i) {
      const Spread s = spread_of(sessions[i].logs, "");
      within += s.dof * s.sigma * s.sigma, dof += s.dof;
    }
    const double share = 1 - static_cast<double>(k.sessions) / static_cast<double>(k.runs);
    k.history.sigma = std::sqrt(k.history.sigma * k.history.sigma + share * within / dof);
    k.history.source = fmt::format("{} earlier sessions", k.sessions);
  }
  return k;
}

/// What came and went while a suite ran. Something did when the upper decile over its cases says so,
/// whichever they are; as much as the largest says, or a factor of two: most cases see it in few of their
/// samples.
double unsettled(const std::vector<double>& scatters) {
  if (scatters.empty() || percentile(scatters, 0.9) <= 0) return 0;
  return std::max(*std::max_element(scatters.begin(), scatters.end()), kMostDrift);
}

Spread calibrated(const std::optional<Calibration>& c) {
  if (!c || c->runs < 2) return {};
  return {c->sigma, static_cast<double>(c->runs - 1), fmt::format("calibration of {} runs", c->runs)};
}

/// The spread of a case, from what is known of it. A calibration is runs of one session: it can show that
/// runs differ by more than was thought, never that sessions differ by less.
Spread spread_of_case(const Spread& prior, const Known& k, const std::optional<Calibration>& c,
                      const Spread& assumed) {
  Spread s = pooled({prior, k.history});
  if (const Spread runs = calibrated(c); runs.sigma > s.sigma) s = pooled({s, runs});
  if (k.drift_known()) return s;
  if (s.sigma < assumed.sigma) s = assumed;
  s.dof = std::min(s.dof, kPriorDof);
  return s;
}

/// The difference of one run from a level, with every error in it.
Difference difference_of(double now_log, double own_error, const Known& before, const Spread& spread) {
  const double n = static_cast<double>(before.logs.size());
  // Var(median of n) = pi / (2 n) of one for normal values, and no less than 1 / n.
  const double level = n <= 2 ? 1 / n : std::acos(-1.0) / (2 * n);
  // Scatter of this case's own medians contains what a run does not know of itself, another spread does not.
  const bool contained = before.history.dof > 0 && before.drift_known();
  const auto of_run = [&](double own) {
    const double between = spread.sigma * spread.sigma;
    return contained ? std::max(between, own * own) : between + own * own;
  };
  return {now_log - before.middle, std::sqrt(of_run(own_error) + level * of_run(before.own_error)),
          spread.dof, 1};
}

}  // namespace

double sample_scatter(const Timing& t) {
  if (!(t.p5_s > 0) || !(t.p95_s > t.p5_s)) return 0;
  const double s = std::log(t.p95_s / t.p5_s);
  return s > kJitter ? s : 0;
}

Baseline baseline_of_runs(const std::vector<RunResult>& runs, const std::string& text) {
  Baseline b;
  b.text = text;
  std::map<std::string, size_t> at;
  for (size_t r = 0; r < runs.size(); ++r)
    for (const CaseResult& c : runs[r].cases) {
      const auto [it, is_new] = at.emplace(c.id, b.cases.size());
      if (is_new) b.cases.push_back({c.id, c.spec.name, {}, {}, {}, 0, std::nullopt, false});
      BaselineCase& known = b.cases[it->second];
      known.name = c.spec.name;
      HistoryPoint p;
      p.time = runs[r].started_at.empty() ? static_cast<Time>(r) : parse_time(runs[r].started_at);
      p.status = c.status;
      if (c.time) {
        p.median_s = c.time->median_s, p.ci_low_s = c.time->ci_low_s, p.ci_high_s = c.time->ci_high_s;
        if (runs.size() == 1) known.raw_s = c.time->raw_s;
        known.scatter = sample_scatter(*c.time);
      }
      known.points.push_back(p);
      known.expected = r + 1 == runs.size() && c.status == CaseStatus::ok && c.time;
    }
  return b;
}

Baseline baseline_of_history(const History& history, const std::string& branch, const RunResult& run) {
  Baseline b;
  const std::string& machine = run.environment.machine_id;
  const Time own = run.started_at.empty() ? 0 : parse_time(run.started_at);
  const auto earlier = [&](const std::vector<HistoryPoint>& points) {
    std::vector<HistoryPoint> kept;
    for (const HistoryPoint& p : points)
      if (p.time < own) kept.push_back(p);
    return kept;
  };
  // What the newest earlier run of the suite measured has to be measured now.
  std::set<std::string> expected;
  HistoryQuery q;
  q.suite = run.suite.name, q.fingerprint = machine, q.branch = branch, q.until = own - 1;
  const std::vector<HistoryRun> newest = history.runs(q, 1);
  std::map<std::string, std::string> names;
  for (const HistoryCase& c : history.cases(run.suite.name)) names[c.id] = c.name;
  size_t most = 0;
  const auto take = [&](const std::string& id, const std::string& name) {
    BaselineCase c{id,
                   name,
                   earlier(history.points_of_case(id, machine, branch, kPointsForVerdict, own)),
                   {},
                   {},
                   0,
                   history.calibration(id, machine),
                   false};
    c.expected = !newest.empty() && !c.points.empty() && c.points.back().run == newest.back().id &&
                 c.points.back().status == CaseStatus::ok;
    most = std::max(most, c.points.size());
    if (!c.points.empty()) b.cases.push_back(std::move(c));
  };
  for (const auto& [id, name] : names) take(id, name);
  for (const CaseResult& c : run.cases)
    if (!names.contains(c.id)) take(c.id, c.spec.name);  // known from another suite
  b.text = fmt::format("up to {} runs of {} in {}", most, branch, history.path());
  if (b.cases.empty()) {
    const std::vector<HistoryRun> any = history.runs(HistoryQuery{.suite = run.suite.name});
    std::set<std::string> machines, branches;
    for (const HistoryRun& r : any) {
      if (r.branch == branch) machines.insert(r.fingerprint);
      if (r.fingerprint == machine) branches.insert(r.branch);
    }
    const auto listed = [](const std::set<std::string>& words) {
      std::string s;
      for (const std::string& w : words) s += (s.empty() ? "" : ", ") + w;
      return s;
    };
    if (any.empty())
      b.hints.push_back(fmt::format("the history has no run of suite '{}'", run.suite.name));
    else if (!branches.empty())
      b.hints.push_back(
          fmt::format("the history has no earlier run of branch '{}' on this machine, but of: {}", branch,
                      listed(branches)));
    else if (!machines.empty())
      b.hints.push_back(
          fmt::format("the history has no run of this machine ({}), but of: {}; times of different "
                      "machines are not compared, --baseline-binary measures both programs here",
                      machine, listed(machines)));
  }
  return b;
}

size_t GateReport::count(GateRow::State s) const {
  return static_cast<size_t>(
      std::count_if(rows.begin(), rows.end(), [s](const GateRow& r) { return r.state == s; }));
}
size_t GateReport::count(Verdict v) const {
  return static_cast<size_t>(std::count_if(rows.begin(), rows.end(), [v](const GateRow& r) {
    return r.state == GateRow::State::compared && r.judgement.verdict == v;
  }));
}

GateReport compare(const RunResult& run, const Baseline& baseline, const GateRules& rules) {
  GateReport report;
  report.rules = rules;
  report.baseline_text = baseline.text;
  std::map<std::string, const BaselineCase*> before;
  for (const BaselineCase& b : baseline.cases) before[b.id] = &b;
  std::map<std::string, const BaselineCase*> by_name;
  for (const BaselineCase& b : baseline.cases) by_name[b.name] = &b;

  std::vector<Known> known;
  std::set<std::string> seen;
  for (const CaseResult& c : run.cases) {
    GateRow row;
    row.id = c.id, row.name = c.spec.name;
    seen.insert(c.id);
    const auto it = before.find(c.id);
    Known k = it == before.end() ? Known{} : known_of(it->second->points, rules.threshold);
    if (!k.logs.empty() && !it->second->spread_points.empty()) {
      const Known other = known_of(it->second->spread_points, rules.threshold);
      k.history = other.history, k.sessions = other.sessions;
    }
    const bool timed = c.status == CaseStatus::ok && c.time && c.time->median_s > 0;
    if (timed) row.now_s = c.time->median_s;
    if (k.logs.empty()) {
      row.state = GateRow::State::fresh;
      if (const auto other = by_name.find(c.spec.name); other != by_name.end() && other->second->id != c.id)
        row.note =
            "the baseline's case of this name has other parameters, another problem or other settings of the "
            "measurement: they are not compared";
    } else if (!timed) {
      row.state = GateRow::State::not_measured;
      row.note = fmt::format("{}: {}", name(c.status), c.reason.empty() ? "no time was measured" : c.reason);
    } else {
      row.before_s = std::exp(k.middle);
      row.runs = static_cast<int>(k.runs);
    }
    report.rows.push_back(std::move(row));
    known.push_back(std::move(k));
  }
  for (const BaselineCase& b : baseline.cases)
    if (b.expected && !seen.contains(b.id)) {
      GateRow row;
      row.state = GateRow::State::missing;
      row.id = b.id, row.name = b.name;
      row.note = "the newest run of the baseline has this case, this run has not";
      for (const GateRow& r : report.rows)
        if (r.name == b.name && r.state == GateRow::State::fresh)
          row.note =
              "the run has a case of this name with another id: parameters, problem or settings of the "
              "measurement changed";
      report.rows.push_back(std::move(row));
    }

  // The prior of the spread: what the suite's cases with a history show; else how the suite as a whole
  // scatters around its common change; else the assumption. Never less than assumed when it is a guess.
  std::vector<double> variances, ratios;
  for (size_t i = 0; i < known.size(); ++i) {
    if (known[i].history.dof >= kLeastDofForPrior && known[i].drift_known())
      variances.push_back(known[i].history.sigma * known[i].history.sigma);
    if (report.rows[i].state == GateRow::State::compared)
      ratios.push_back(std::log(report.rows[i].now_s) - known[i].middle);
  }
  double scatter = 0, together = 0;
  if (ratios.size() >= kLeastCasesForScatter) {
    scatter = 1.4826 * median_absolute_deviation(ratios) / std::sqrt(2.0);
    std::vector<double> sizes;
    for (const double r : ratios) sizes.push_back(std::abs(r));
    const double moved = percentile(sizes, 1 - kShareAtOnce);
    if (moved > std::log1p(rules.threshold)) together = std::min(moved, kMostDrift);
  }
  const Spread assumed = scatter > rules.assumed_spread
                             ? Spread{scatter, kPriorDof, "the scatter of this suite"}
                             : Spread{rules.assumed_spread, kPriorDof,
                                      fmt::format("assumed {:.3g}%", 100 * rules.assumed_spread)};
  const Spread prior = variances.size() >= kLeastDofForPrior
                           ? Spread{std::sqrt(median(variances)), kPriorDof, "the suite's other cases"}
                           : assumed;

  std::vector<double> scatters, scatters_before;
  for (size_t i = 0; i < known.size(); ++i)
    if (report.rows[i].state == GateRow::State::compared) {
      scatters.push_back(sample_scatter(*run.cases[i].time));
      scatters_before.push_back(before.at(run.cases[i].id)->scatter);
    }
  const double now_unsettled = unsettled(scatters), before_unsettled = unsettled(scatters_before);
  if (now_unsettled > 0 || before_unsettled > 0)
    report.notes.push_back(
        fmt::format("the machine was unsettled while the {} was measured: samples of its cases differ by "
                    "{:.0f}%, so single "
                    "runs say little; --confirm takes turns",
                    now_unsettled >= before_unsettled ? "run" : "baseline",
                    100 * std::expm1(std::max(now_unsettled, before_unsettled))));

  std::vector<Difference> differences;
  bool shifted = false, sessions_known = true;
  for (size_t i = 0; i < known.size(); ++i) {
    GateRow& row = report.rows[i];
    if (row.state != GateRow::State::compared) continue;
    const CaseResult& c = run.cases[i];
    const BaselineCase& b = *before.at(c.id);
    row.spread = spread_of_case(prior, known[i], b.calibration, assumed);
    shifted = together > 0;
    sessions_known = sessions_known && known[i].drift_known();
    const double own = log_error(c.time->ci_low_s, c.time->ci_high_s);
    Difference d = difference_of(std::log(row.now_s), own, known[i], row.spread);
    if (!c.time->raw_s.empty() && !b.raw_s.empty()) {
      // Both runs kept their samples: the error inside them is that of the ratio itself.
      const double inside = bootstrap_log_ratio_error(c.time->raw_s, b.raw_s);
      d.sigma = std::max(d.sigma, inside);
    }
    d.allowance = std::max({now_unsettled, before_unsettled, together});
    row.lasting_allowance = known[i].drift_known() ? std::max(now_unsettled, before_unsettled) : d.allowance;
    row.difference = d;
    differences.push_back(d);
  }
  if (shifted)
    report.notes.push_back(fmt::format(
        "many cases changed at once, by {:+.1f}% in the middle: a single run does not tell whether "
        "machine or program did; {}",
        100 * std::expm1(median(ratios)),
        sessions_known ? "--confirm does"
                       : fmt::format("--confirm --baseline-binary does, or a history of {} sessions "
                                     "and --confirm",
                                     kLeastSessions)));
  const std::vector<Judgement> judged = judge(differences, rules);
  size_t next = 0;
  for (GateRow& row : report.rows)
    if (row.state == GateRow::State::compared) row.judgement = row.first = judged[next++];
  if (report.empty()) report.notes = baseline.hints;
  return report;
}

std::vector<size_t> suspects(const GateReport& report) {
  std::vector<size_t> out;
  for (size_t i = 0; i < report.rows.size(); ++i)
    if (report.rows[i].state == GateRow::State::compared && report.rows[i].judgement.suspect)
      out.push_back(i);
  std::stable_sort(out.begin(), out.end(), [&](size_t a, size_t b) {
    return report.rows[a].judgement.p_slower < report.rows[b].judgement.p_slower;
  });
  return out;
}

void judge_confirmed(GateReport& report) {
  std::vector<Difference> again;
  std::vector<GateRow*> rows;
  for (GateRow& row : report.rows)
    if (row.confirmed) again.push_back(row.difference), rows.push_back(&row);
  const std::vector<Judgement> judged = judge(again, report.rules);
  for (size_t i = 0; i < rows.size(); ++i) rows[i]->judgement = judged[i];
  for (GateRow& row : report.rows)
    if (row.state == GateRow::State::compared && !row.confirmed && row.judgement.verdict == Verdict::slower) {
      row.judgement.verdict = Verdict::unsure;
      row.unconfirmed = true;
      if (row.note.empty()) row.note = "looked slower and could not be measured again";
    }
}

GateAnswer answer(const GateReport& report, bool allow_missing, bool allow_empty) {
  if (report.count(Verdict::slower) > 0) return GateAnswer::regression;
  for (const GateRow& row : report.rows)
    if (row.unconfirmed) return GateAnswer::incomplete;
  const bool missing = report.count(GateRow::State::missing) + report.count(GateRow::State::not_measured) > 0;
  if (missing && !allow_missing) return GateAnswer::incomplete;
  if (report.empty() && !allow_empty) return GateAnswer::incomplete;
  return GateAnswer::pass;
}

std::string verdict_word(const CaseResult& c, const std::vector<HistoryPoint>& before,
                         const std::optional<Calibration>& calibration, const GateRules& rules) {
  const Known k = known_of(before, rules.threshold);
  if (k.logs.empty() || !c.time || !(c.time->median_s > 0)) return "";
  const Spread assumed{rules.assumed_spread, kPriorDof, "assumed"};
  const Difference d =
      difference_of(std::log(c.time->median_s), log_error(c.time->ci_low_s, c.time->ci_high_s), k,
                    spread_of_case(assumed, k, calibration, assumed));
  const Verdict v = judge_alone(d, rules).verdict;
  // A case alone cannot tell a change of the machine from one of the program.
  const bool change = v == Verdict::slower || v == Verdict::faster;
  return std::string(name(change && !k.drift_known() ? Verdict::unsure : v));
}

}  // namespace attnbench
