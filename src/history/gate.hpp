// The regression gate: a run's cases beside those of earlier runs, each with a verdict, and the answer for a
// CI job. The statistics are in verdict.hpp, measuring again in confirm.hpp, the printing in cli/.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "history/history.hpp"
#include "history/verdict.hpp"
#include "measure/results.hpp"

namespace attnbench {

/// What is known of a case from before.
struct BaselineCase {
  std::string id, name;
  std::vector<HistoryPoint> points;  ///< oldest first; those without a time are passed over
  /// Where the level is that of `points` and the spread is learned from others: those.
  std::vector<HistoryPoint> spread_points;
  std::vector<double> raw_s;  ///< samples, when there is one point and they were kept
  double scatter = 0;         ///< sample_scatter of the newest point, where it is known
  std::optional<Calibration> calibration;
  bool expected = false;  ///< the newest baseline run measured it: it may not be missing now
};

struct Baseline {
  std::vector<BaselineCase> cases;
  std::string text;  ///< "12 runs of main in history.db", for people
  /// Why nothing is in it or could match, as far as the source can tell; whole sentences.
  std::vector<std::string> hints;
};

/// Of results files, oldest first; each is one earlier run.
Baseline baseline_of_runs(const std::vector<RunResult>& runs, const std::string& text);
/// Of the history, for the machine of `run`; `branch` is the baseline's ("main"). Runs of `run`'s own
/// revision and start are passed over, so that a run may be added before it is checked.
Baseline baseline_of_history(const History& history, const std::string& branch, const RunResult& run);

struct GateRow {
  enum class State : uint8_t {
    compared,
    fresh,        ///< not in the baseline
    missing,      ///< in the baseline, and not in the run
    not_measured  ///< in both, and without a time now: failed, skipped, …
  } state = State::compared;
  std::string id, name;
  double before_s = 0, now_s = 0;
  int runs = 0;  ///< baseline runs of the current level
  Spread spread;
  Difference difference;
  double lasting_allowance = 0;  ///< what is left of the difference's when the run is repeated
  Judgement judgement;
  bool unconfirmed = false;  ///< looked slower, and could not be measured again
  bool confirmed = false;    ///< the verdict is from measuring again
  Judgement first;           ///< what was judged before that
  int pairs = 0;             ///< process pairs of the confirmation
  std::string note;          ///< a full sentence
};

struct GateReport {
  std::string baseline_text;
  GateRules rules;
  std::vector<GateRow> rows;
  std::vector<std::string> notes;  ///< about the whole, full sentences

  size_t count(GateRow::State s) const;
  size_t count(Verdict v) const;  ///< among the compared
  bool empty() const { return count(GateRow::State::compared) == 0; }
};

/// How far apart the samples of a case lie, as the logarithm of p95 / p5, when that is more than jitter; 0
/// otherwise. What comes and goes for seconds can cover a whole case, whose own interval knows nothing of it
/// then, but not a whole suite: where the suite's upper decile is not 0, the largest is allowed for in every
/// verdict of a single run.
double sample_scatter(const Timing& t);

/// Runs within a quarter of an hour are one session: they share the machine's mood, however many they are.
/// Twenty-two runs of suites/trust.yaml, one after the other, stayed within 2%, but for eight in a row, which
/// another job on the machine made 5 to 150% slower. So the spread is learned between sessions. With fewer
/// than three it is not known, and is no less than assumed. A single run in which a fifth of a suite changed
/// is allowed as much, up to a factor of two, until it was repeated (with three sessions) or measured in
/// turn.
inline constexpr Time kSessionSeconds = 900;
inline constexpr size_t kLeastSessions = 3;

/// Compares every case. `baseline` may lack cases of the run and the other way round.
GateReport compare(const RunResult& run, const Baseline& baseline, const GateRules& rules);

/// Judges the compared rows again after some of their differences were replaced by confirmed ones. Only the
/// rows that were measured again can be slower or faster then, and the false discovery rate is over them:
/// their new data are independent of what made them suspects.
void judge_confirmed(GateReport& report);

/// The rows worth measuring again, the worst first.
std::vector<size_t> suspects(const GateReport& report);

enum class GateAnswer : uint8_t { pass, regression, incomplete };
/// incomplete: nothing was compared, what looked slower could not be measured again, or cases of the baseline
/// are missing or without a time (unless `allow_missing`, or `allow_empty` for a first run). unsure and
/// faster pass.
GateAnswer answer(const GateReport& report, bool allow_missing, bool allow_empty);

/// The verdict that `history add` stores: of one case against the points before it.
std::string verdict_word(const CaseResult& c, const std::vector<HistoryPoint>& before,
                         const std::optional<Calibration>& calibration, const GateRules& rules);

}  // namespace attnbench
