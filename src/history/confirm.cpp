#include "history/confirm.hpp"

#include <fmt/format.h>

#include <cmath>

#include "kernels/core/error.hpp"
#include "measure/statistics.hpp"

namespace attnbench {

size_t confirm(GateReport& report, const std::vector<size_t>& rows, const PairSource& source,
               const ConfirmLimits& limits, Clock& clock,
               const std::function<void(const GateRow&, int pairs)>& progress) {
  const double end = clock.now_s() + limits.max_seconds;
  size_t measured = 0;
  for (const size_t i : rows) {
    GateRow& row = report.rows[i];
    if (clock.now_s() >= end) {
      row.note =
          fmt::format("not measured again: the {:.0f} s for confirming were spent", limits.max_seconds);
      continue;
    }
    std::vector<double> logs, before, now;
    Difference d;
    int look = 0;
    try {
      for (const int wanted : limits.looks) {
        while (static_cast<int>(logs.size()) < wanted && (logs.size() < 2 || clock.now_s() < end)) {
          if (progress) progress(row, static_cast<int>(logs.size()));
          const PairedTimes p = source(row);
          logs.push_back(p.log_ratio);
          before.push_back(p.before_s);
          now.push_back(p.now_s);
        }
        ++look;
        const Spread s = spread_of(logs, "");
        double mean = 0;
        for (const double x : logs) mean += x / static_cast<double>(logs.size());
        d = {mean, s.sigma / std::sqrt(static_cast<double>(logs.size())), s.dof,
             static_cast<int>(limits.looks.size())};
        const Judgement j = judge_alone(d, report.rules);
        // Rejected by itself, it is rejected among any number of others that are not.
        const bool slower =
            j.p_slower <= report.rules.false_discovery_rate / static_cast<double>(rows.size());
        if ((slower && j.verdict == Verdict::slower) || !j.suspect || clock.now_s() >= end) break;
      }
    } catch (const Error& e) {
      row.note = fmt::format("not measured again: {}", e.what());
      continue;
    }
    row.state = GateRow::State::compared;
    row.difference = d;
    row.confirmed = true;
    row.pairs = static_cast<int>(logs.size());
    row.before_s = median(before);
    row.now_s = median(now);
    row.spread = {d.sigma * std::sqrt(static_cast<double>(logs.size())), d.dof,
                  fmt::format("{} pairs of processes", logs.size())};
    ++measured;
  }
  judge_confirmed(report);
  return measured;
}

}  // namespace attnbench
