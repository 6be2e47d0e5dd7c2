#include "history/confirm.hpp"

#include <fmt/format.h>

#include <cmath>

#include "kernels/core/error.hpp"
#include "measure/statistics.hpp"

namespace attnbench {

namespace {

/// A suspect on its way to a verdict.
struct Suspect {
  GateRow* row = nullptr;
  std::vector<double> logs, before, now;
  Difference difference;
  bool open = true;  ///< worth further pairs
};

}  // namespace

size_t confirm(GateReport& report, const std::vector<size_t>& rows, const PairSource& source,
               const ConfirmLimits& limits, Clock& clock,
               const std::function<void(const GateRow&, int pairs)>& progress) {
  const double end = clock.now_s() + limits.max_seconds;
  const auto time_left = [&] { return clock.now_s() < end; };
  std::vector<Suspect> suspects(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) suspects[i].row = &report.rows[rows[i]];

  for (const int wanted : limits.looks)
    for (Suspect& s : suspects) {
      GateRow& row = *s.row;
      try {
        // Two pairs once begun: fewer say nothing of their error.
        while (s.open && static_cast<int>(s.logs.size()) < wanted && (time_left() || s.logs.size() == 1)) {
          if (progress) progress(row, static_cast<int>(s.logs.size()));
          const PairedTimes p = source(row);
          s.logs.push_back(p.log_ratio);
          s.before.push_back(p.before_s);
          s.now.push_back(p.now_s);
        }
      } catch (const Error& e) {
        row.note = fmt::format("not measured again: {}", e.what());
        s.open = false;
        s.logs.clear();
      }
      if (!s.open || s.logs.size() < 2) continue;
      s.difference = trimmed_difference(s.logs);
      s.difference.looks = static_cast<int>(limits.looks.size());
      const Judgement j = judge_alone(s.difference, report.rules);
      // Rejected by itself, it is rejected among any number of others that are not.
      const bool slower = j.verdict == Verdict::slower &&
                          j.p_slower <= report.rules.false_discovery_rate / static_cast<double>(rows.size());
      s.open = !slower && j.suspect;
    }

  size_t measured = 0;
  for (const Suspect& s : suspects) {
    GateRow& row = *s.row;
    if (s.logs.size() < 2) {
      if (row.note.empty())
        row.note =
            fmt::format("not measured again: the {:.0f} s for confirming were spent", limits.max_seconds);
      continue;
    }
    row.state = GateRow::State::compared;
    row.confirmed = true;
    row.difference = s.difference;
    row.pairs = static_cast<int>(s.logs.size());
    row.before_s = median(s.before);
    row.now_s = median(s.now);
    row.spread = {row.difference.sigma * std::sqrt(static_cast<double>(s.logs.size())), row.difference.dof,
                  fmt::format("{} pairs of processes", s.logs.size())};
    ++measured;
  }
  judge_confirmed(report);
  return measured;
}

}  // namespace attnbench
