#include "history/confirm.hpp"

#include <fmt/format.h>

#include <algorithm>
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
  bool open = true;     ///< worth further pairs
  bool broken = false;  ///< cannot be measured again
};

/// Four pairs may agree by chance, in bursts more easily than Student's t knows. So no case's pairs are taken
/// to differ by less than its own and those of the other suspects together say, the others' as a prior.
void steady_errors(const std::vector<Suspect*>& suspects) {
  // Fewer say nothing of what is usual.
  constexpr size_t kLeast = 3;
  if (suspects.size() < kLeast) return;
  const auto of_pairs = [](const Suspect& s) {
    return s.difference.sigma * std::sqrt(static_cast<double>(s.logs.size()));
  };
  std::vector<double> usual;
  for (const Suspect* s : suspects) usual.push_back(of_pairs(*s));
  const Spread prior{median(usual), kPriorDof, ""};
  for (Suspect* s : suspects) {
    const double together = pooled({prior, {of_pairs(*s), s->difference.dof, ""}}).sigma;
    s->difference.sigma =
        std::max(s->difference.sigma, together / std::sqrt(static_cast<double>(s->logs.size())));
  }
}

}  // namespace

size_t confirm(GateReport& report, const std::vector<size_t>& rows, const PairSource& source,
               const ConfirmLimits& limits, Clock& clock,
               const std::function<void(const GateRow&, int pairs)>& progress) {
  const double end = clock.now_s() + limits.max_seconds;
  const auto time_left = [&] { return clock.now_s() < end; };
  std::vector<Suspect> suspects(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) suspects[i].row = &report.rows[rows[i]];

  for (const int wanted : limits.looks) {
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
        s.broken = true;
        s.logs.clear();
      }
    }
    // All together, as they will be judged in the end: where many became slower, each needs less to be among
    // them. Whose verdict does not hold beside later ones is open again.
    std::vector<Suspect*> looked;
    for (Suspect& s : suspects) {
      s.open = false;
      if (s.broken || s.logs.size() < 2) continue;
      s.difference = trimmed_difference(s.logs);
      s.difference.looks = static_cast<int>(limits.looks.size());
      looked.push_back(&s);
    }
    steady_errors(looked);
    std::vector<Difference> differences;
    for (const Suspect* s : looked) differences.push_back(s->difference);
    const std::vector<Judgement> judged = judge(differences, report.rules);
    for (size_t i = 0; i < looked.size(); ++i)
      looked[i]->open = judged[i].verdict != Verdict::slower && judged[i].suspect;
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
