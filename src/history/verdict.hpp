// Whether a case became slower: the statistics. Numbers in, verdicts out; no files, no runs: see gate.hpp.
//
// The error of a difference is not what one run says of itself. Medians of two runs of the same code differ
// by the spread between runs (other memory, other clocks, another hour), which is several times wider than
// the interval inside a run. So the spread is learned: from the scatter of earlier runs around their level,
// from `calibrate`, and, where a case has few of both, from the other cases of its suite. Combining them is
// the moderated t-test of Smyth (Statistical Applications in Genetics and Molecular Biology 3, 2004):
// variances with their degrees of freedom are pooled with a prior's, and the sum of the degrees goes into
// Student's t.
//
// slower   the time grew by more than the threshold beyond doubt: the 95% interval of the change lies above
// it,
//          and it stands among all cases of the suite (Benjamini and Hochberg, 1995)
// faster   the same downwards
// same     shown to be within the threshold on both sides, by two one-sided tests at 5% (Schuirmann, 1987):
// more
//          than not having been shown to differ
// unsure   everything else
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace attnbench {

enum class Verdict : uint8_t { same, faster, slower, unsure };
std::string_view name(Verdict v);

struct GateRules {
  double threshold = 0.03;  ///< smaller changes of the time are of no interest
  double false_discovery_rate = 0.05;
  /// Standard deviation between runs where nothing is known of it: what two runs of one program on a virtual
  /// machine with neighbours were seen to differ by.
  double assumed_spread = 0.02;
};

/// Standard deviation of the logarithm of a run's median, between runs of the same code.
struct Spread {
  double sigma = 0;
  double dof = 0;  ///< degrees of freedom behind it
  std::string source;
};
/// Of log medians around their mean; dof 0 for fewer than two.
Spread spread_of(const std::vector<double>& logs, std::string source);
/// Variances weighted by their degrees of freedom.
Spread pooled(const std::vector<Spread>& spreads);
/// A prior counts as much as five runs.
inline constexpr double kPriorDof = 4;

/// Where the newest values of a series stand: those after its last step. A step is a split whose sides differ
/// by more than the threshold and by five standard errors; three values make a side.
struct Level {
  size_t begin = 0;   ///< first value of the level
  double middle = 0;  ///< median
  Spread spread;
};
Level current_level(const std::vector<double>& logs, double threshold);

/// Logarithm of new time / old time, with its standard error of `dof` degrees of freedom.
struct Difference {
  double log_ratio = 0, sigma = 0, dof = 0;
  /// How often the data were looked at while they came in: errors are shared out among the looks
  /// (Bonferroni).
  int looks = 1;
  /// What a disturbance could have shifted this run by, besides all chance: added to the interval on both
  /// sides.
  double allowance = 0;
};

inline constexpr double kSuspect = 4.0 / 3.0;

/// Difference from repeated measurements of it: the mean of the middle 60%, with the standard error that
/// Tukey and McLaughlin (Sankhya A 25, 1963) give it from winsorized values. One repetition in five on either
/// side may be arbitrarily wrong; fewer than five are not trimmed. Throws UsageError for fewer than two.
Difference trimmed_difference(std::vector<double> logs);

struct Judgement {
  Verdict verdict = Verdict::unsure;
  double change = 0, low = 0, high = 0;  ///< new time / old time - 1, and its 95% interval
  double p_slower = 1, p_faster = 1;     ///< against a change of the threshold or less
  /// The interval reaches beyond kSuspect times the threshold: worth measuring again. A slowdown of that size
  /// is missed here once in forty, one of 5% more seldom, at the default threshold of 3%.
  bool suspect = false;
};
/// The verdicts of one suite together: the false discovery rate is over all of them.
std::vector<Judgement> judge(const std::vector<Difference>& cases, const GateRules& rules);
Judgement judge_alone(const Difference& d, const GateRules& rules);

/// Benjamini and Hochberg: which hypotheses to reject so that the expected share of false ones among them is
/// at most `rate`.
std::vector<bool> benjamini_hochberg(const std::vector<double>& p, double rate);

/// Standard error of the logarithm of a median from its 95% interval.
double log_error(double ci_low, double ci_high);
/// The same of the ratio of two medians from raw samples: bootstrap, 1000 resamples from fixed seeds. Throws
/// UsageError without samples.
double bootstrap_log_ratio_error(const std::vector<double>& now, const std::vector<double>& before);

/// Student's t: Pr(T > t) and the t that `tail` lies above; infinite degrees are the normal distribution.
double student_tail(double t, double dof);
double student_quantile(double tail, double dof);

}  // namespace attnbench
