#include "history/gate.hpp"

#include <cmath>

#include "../catch.hpp"
#include "../cli/drive.hpp"
#include "../measure/mocks.hpp"
#include "history/confirm.hpp"
#include "inputs/inputs.hpp"
#include "sample_history.hpp"

using namespace attnbench;
using State = GateRow::State;

namespace {

const GateRow& row_of(const GateReport& r, const std::string& name) {
  for (const GateRow& row : r.rows)
    if (row.name == name) return row;
  throw Error("no row '" + name + "'");
}

constexpr Time day(int n) { return Time{86400} * n; }

/// A history of `runs` runs of three cases that scatter by half a percent.
void fill(History& h, int runs, const std::string& machine = "m1") {
  AddOptions o;
  o.branch = "main";
  for (int i = 0; i < runs; ++i) {
    const auto at = [&](double t, uint64_t stream) {
      return t * std::exp(0.005 * random_normal(1, stream, static_cast<uint64_t>(i)));
    };
    h.add(sample_history_run(day(1000 + i), {{"a", at(0.01, 1)}, {"b", at(0.02, 2)}, {"c", at(0.5, 3)}}, "r1",
                             machine),
          o);
  }
}

}  // namespace

TEST_CASE("a run is judged against the history of its machine and branch") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 12);
  const RunResult run =
      sample_history_run(day(9000), {{"a", 0.0101}, {"b", 0.024}, {"c", 0.4}, {"d", 1}}, "r2");
  const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
  CHECK(row_of(r, "a").judgement.verdict == Verdict::same);
  CHECK(row_of(r, "b").judgement.verdict == Verdict::slower);
  CHECK(row_of(r, "b").judgement.change == Approx(0.2).margin(0.01));
  CHECK(row_of(r, "b").runs == 12);
  CHECK(row_of(r, "b").spread.sigma == Approx(0.005).epsilon(0.5));
  CHECK(row_of(r, "c").judgement.verdict == Verdict::faster);
  CHECK(row_of(r, "d").state == State::fresh);
  CHECK(answer(r, false, false) == GateAnswer::regression);
  CHECK(suspects(r) == std::vector<size_t>{1});
}

TEST_CASE("a run that was added before it is checked is not compared with itself") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 5);
  const RunResult run = sample_history_run(day(9000), {{"a", 0.02}, {"b", 0.02}, {"c", 0.5}}, "r2");
  AddOptions o;
  o.branch = "main";
  h.add(run, o);
  const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
  CHECK(row_of(r, "a").runs == 5);
  CHECK(row_of(r, "a").judgement.verdict == Verdict::slower);
}

TEST_CASE("one lucky run before does not make the next one slow") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 10);
  AddOptions o;
  o.branch = "main";
  h.add(sample_history_run(day(2000), {{"a", 0.0092}, {"b", 0.02}, {"c", 0.5}}), o);
  const RunResult run = sample_history_run(day(9000), {{"a", 0.01}, {"b", 0.02}, {"c", 0.5}}, "r2");
  const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
  CHECK(row_of(r, "a").judgement.verdict != Verdict::slower);
  CHECK(std::abs(row_of(r, "a").judgement.change) < 0.01);
}

TEST_CASE("after an accepted change the new level is the baseline") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 10);
  AddOptions o;
  o.branch = "main";
  for (int i = 0; i < 6; ++i)
    h.add(sample_history_run(day(2000 + i),
                             {{"a", 0.008 * std::exp(0.004 * random_normal(1, 9, static_cast<uint64_t>(i)))},
                              {"b", 0.02},
                              {"c", 0.5}}),
          o);
  const RunResult run = sample_history_run(day(9000), {{"a", 0.01}, {"b", 0.02}, {"c", 0.5}}, "r2");
  const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
  CHECK(row_of(r, "a").runs == 6);
  CHECK(row_of(r, "a").judgement.verdict == Verdict::slower);  // back at the old time
}

TEST_CASE("a gate that compared nothing, or misses cases, does not pass and says why") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 5);
  SECTION("another machine") {
    const RunResult run = sample_history_run(day(9000), {{"a", 0.01}}, "r2", "m9");
    const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
    CHECK(answer(r, false, false) == GateAnswer::incomplete);
    CHECK(answer(r, false, true) == GateAnswer::pass);
    REQUIRE(r.notes.size() == 1);
    CHECK(r.notes[0].find("m1") != std::string::npos);
  }
  SECTION("another branch") {
    const RunResult run = sample_history_run(day(9000), {{"a", 0.01}}, "r2");
    const GateReport r = compare(run, baseline_of_history(h, "trunk", run), GateRules{});
    CHECK(answer(r, false, false) == GateAnswer::incomplete);
    REQUIRE(r.notes.size() == 1);
    CHECK(r.notes[0].find("main") != std::string::npos);
  }
  SECTION("a missing case") {
    const RunResult run = sample_history_run(day(9000), {{"a", 0.01}, {"b", 0.02}}, "r2");
    const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
    CHECK(row_of(r, "c").state == State::missing);
    CHECK(answer(r, false, false) == GateAnswer::incomplete);
    CHECK(answer(r, true, false) == GateAnswer::pass);
  }
  SECTION("a case without a time") {
    RunResult run = sample_history_run(day(9000), {{"a", 0.01}, {"b", 0.02}, {"c", 0.5}}, "r2");
    run.cases[2].time.reset();
    run.cases[2].status = CaseStatus::skipped;
    run.cases[2].reason = "the case needs 9 TiB";
    const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
    CHECK(row_of(r, "c").state == State::not_measured);
    CHECK(row_of(r, "c").note.find("9 TiB") != std::string::npos);
    CHECK(answer(r, false, false) == GateAnswer::incomplete);
  }
  SECTION("a case under its name with other settings") {
    RunResult run = sample_history_run(day(9000), {{"a", 0.01}, {"b", 0.02}, {"c", 0.5}}, "r2");
    run.cases[2].id = "other";
    const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
    size_t told = 0;
    for (const GateRow& row : r.rows) told += row.name == "c" && !row.note.empty();
    CHECK(told == 2);
    CHECK(answer(r, false, false) == GateAnswer::incomplete);
  }
}

TEST_CASE("unsure never fails the gate, and a regression goes before missing cases") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 12);
  const RunResult unsure = sample_history_run(day(9000), {{"a", 0.0103}, {"b", 0.02}, {"c", 0.5}}, "r2");
  const GateReport r = compare(unsure, baseline_of_history(h, "main", unsure), GateRules{});
  CHECK(row_of(r, "a").judgement.verdict == Verdict::unsure);
  CHECK(answer(r, false, false) == GateAnswer::pass);
  const RunResult both = sample_history_run(day(9000), {{"a", 0.02}}, "r2");
  CHECK(answer(compare(both, baseline_of_history(h, "main", both), GateRules{}), false, false) ==
        GateAnswer::regression);
}

TEST_CASE("many runs of one session do not make the machine's mood known, three sessions do") {
  // Eight cases, 12 runs that agree within 0.3%; then everything is slower by 5 to 20%, as beside another
  // job.
  const auto verdicts = [](Time step) {
    const drive::TempFolder folder;
    History h(folder / "h.db", History::Mode::create);
    AddOptions o;
    o.branch = "main";
    for (int i = 0; i < 12; ++i) {
      std::vector<SampleCase> cases;
      for (int c = 0; c < 8; ++c)
        cases.push_back(
            {"c" + std::to_string(c),
             0.01 * std::exp(0.003 * random_normal(5, static_cast<uint64_t>(c), static_cast<uint64_t>(i)))});
      h.add(sample_history_run(day(100) + step * i, cases), o);
    }
    std::vector<SampleCase> cases;
    for (int c = 0; c < 8; ++c) cases.push_back({"c" + std::to_string(c), 0.01 * (1.05 + 0.02 * c)});
    const RunResult run = sample_history_run(day(100) + step * 12, cases, "r2");
    return compare(run, baseline_of_history(h, "main", run), GateRules{});
  };
  const GateReport minutes = verdicts(10), days = verdicts(86400);
  CHECK(minutes.count(Verdict::slower) == 0);
  CHECK(suspects(minutes).size() == 8);
  CHECK(minutes.rows[0].runs == 12);
  REQUIRE(minutes.notes.size() == 1);
  CHECK(minutes.notes[0].find("sessions") != std::string::npos);
  // With sessions known, repeating the run is enough to tell.
  CHECK(days.count(Verdict::slower) == 0);
  CHECK(suspects(days).size() == 8);
  REQUIRE(days.notes.size() == 1);
  CHECK_FALSE(days.notes[0].find("sessions") != std::string::npos);
  GateReport repeated = days, still = minutes;
  for (GateReport* r : {&repeated, &still}) {
    for (GateRow& row : r->rows) row.difference.allowance = row.lasting_allowance, row.confirmed = true;
    judge_confirmed(*r);
  }
  CHECK(repeated.count(Verdict::slower) >= 7);  // the least of them is 5% slower
  CHECK(still.count(Verdict::slower) == 0);
}

TEST_CASE("a calibrated spread goes into the verdict") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 4);
  const RunResult run = sample_history_run(day(9000), {{"a", 0.0112}, {"b", 0.02}, {"c", 0.5}}, "r2");
  const auto verdict = [&] {
    return row_of(compare(run, baseline_of_history(h, "main", run), GateRules{}), "a").judgement.verdict;
  };
  h.set_calibration("id-a", "m1", {0.004, 20, 1, "r1"});
  CHECK(verdict() == Verdict::slower);
  h.set_calibration("id-a", "m1", {0.15, 20, 1, "r1"});
  CHECK(verdict() == Verdict::unsure);
}

TEST_CASE("a calibration is one session: it widens a spread and never narrows it") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  AddOptions o;
  o.branch = "main";
  const std::vector<SampleCase> same{{"a", 0.01}, {"b", 0.02}, {"c", 0.5}};
  const RunResult run = sample_history_run(day(9000), {{"a", 0.0106}, {"b", 0.02}, {"c", 0.5}}, "r2");
  const auto row = [&] {
    return row_of(compare(run, baseline_of_history(h, "main", run), GateRules{}), "a");
  };
  h.add(sample_history_run(day(1000), same), o);
  h.set_calibration("id-a", "m1", {0.0005, 50, 1, "r1"});
  CHECK(row().judgement.verdict == Verdict::unsure);  // 6% in another session
  CHECK(row().spread.sigma == Approx(0.02));
  // Sessions that differ by 3% stay so beside fifty runs of one of them.
  for (int i = 1; i < 8; ++i)
    h.add(sample_history_run(day(1000 + i), {{"a", 0.01 * (i % 2 ? 1.03 : 0.97)}, {"b", 0.02}, {"c", 0.5}}),
          o);
  const double learned = row().spread.sigma;
  CHECK(learned > 0.02);
  h.set_calibration("id-a", "m1", {0.1, 50, 1, "r1"});
  CHECK(row().spread.sigma > 0.08);
}

TEST_CASE("medians of sessions do not hide what single runs differ by") {
  // Ten sessions of five runs whose medians agree, while runs differ by 4%.
  const auto spread = [](double within) {
    const drive::TempFolder folder;
    History h(folder / "h.db", History::Mode::create);
    AddOptions o;
    o.branch = "main";
    for (int s = 0; s < 10; ++s)
      for (int i = -2; i <= 2; ++i)
        h.add(sample_history_run(day(1000 + s) + 60 * i,
                                 {{"a", 0.01 * (1 + within * i)}, {"b", 0.02}, {"c", 0.5}}),
              o);
    const RunResult run = sample_history_run(day(9000), {{"a", 0.01}, {"b", 0.02}, {"c", 0.5}}, "r2");
    const GateReport r = compare(run, baseline_of_history(h, "main", run), GateRules{});
    CHECK(row_of(r, "a").runs == 50);
    return row_of(r, "a").spread.sigma;
  };
  // Runs at -4, -2, 0, 2 and 4%: their standard deviation is 3.16%, of which a fifth is in the median. The
  // prior, as much as five runs that do not differ, takes (9 / 13) of the variance.
  CHECK(spread(0.02) == Approx(0.0316 * std::sqrt(0.8 * 9 / 13)).epsilon(0.05));
  CHECK(spread(0) < 0.001);
}

TEST_CASE("two files and a history: the level is the file's, the spread is learned from the history") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 12);
  const RunResult before = sample_history_run(day(9000), {{"a", 0.02}, {"b", 0.04}, {"c", 1}}),
                  after = sample_history_run(day(9001), {{"a", 0.02}, {"b", 0.043}, {"c", 1}}, "r2");
  Baseline b = baseline_of_runs({before}, "old.json");
  CHECK(row_of(compare(after, b, GateRules{}), "b").judgement.verdict == Verdict::unsure);
  for (BaselineCase& c : b.cases) c.spread_points = h.points_of_case(c.id, "m1", "main");
  const GateReport r = compare(after, b, GateRules{});
  CHECK(row_of(r, "b").judgement.verdict == Verdict::slower);  // 7.5% where runs scatter by half a percent
  CHECK(row_of(r, "b").judgement.change == Approx(0.075));
  CHECK(row_of(r, "a").judgement.verdict == Verdict::same);
}

TEST_CASE("two files: without a history the spread is assumed, and a noisy suite widens it") {
  const auto report = [](const std::vector<double>& changes) {
    std::vector<SampleCase> before, after;
    for (size_t i = 0; i < changes.size(); ++i) {
      before.push_back({"c" + std::to_string(i), 0.01});
      after.push_back({"c" + std::to_string(i), 0.01 * (1 + changes[i])});
    }
    return compare(sample_history_run(2, after),
                   baseline_of_runs({sample_history_run(1, before)}, "old.json"), GateRules{});
  };
  // 16% in a suite that stands still is beyond what two runs differ by; 5% is not.
  CHECK(report({0, 0.16, 0, 0.001, -0.001, 0}).rows[1].judgement.verdict == Verdict::slower);
  CHECK(report({0, 0.05, 0, 0.001, -0.001, 0}).rows[1].judgement.verdict == Verdict::unsure);
  // Where every case wanders, so may this one.
  CHECK(report({0.08, 0.12, -0.09, 0.1, -0.07, 0.05}).rows[1].judgement.verdict == Verdict::unsure);
  // A whole suite that became slower may be a slower machine: two files cannot tell.
  const GateReport all = report({0.15, 0.15, 0.151, 0.15, 0.149, 0.15});
  CHECK(all.count(Verdict::unsure) == 6);
  CHECK(suspects(all).size() == 6);
  REQUIRE(all.notes.size() == 1);
  CHECK(all.notes[0].find("by +15.0% in the middle") != std::string::npos);
  // No mood of a machine makes all of a suite four times slower.
  CHECK(report({3, 3, 3, 3.01, 2.99, 3}).count(Verdict::slower) == 6);
  // What stands out of it does so still.
  CHECK(report({0.05, 0.05, 0.051, 0.9, 0.049, 0.05}).rows[3].judgement.verdict == Verdict::slower);
}

TEST_CASE("a wide interval inside one run makes its verdict unsure") {
  const RunResult before = sample_history_run(1, {{"a", 0.01, 0.001}});
  const RunResult sure = sample_history_run(2, {{"a", 0.0125, 0.001}}),
                  wide = sample_history_run(2, {{"a", 0.0125, 0.3}});
  CHECK(compare(sure, baseline_of_runs({before}, ""), GateRules{}).rows[0].judgement.verdict ==
        Verdict::slower);
  CHECK(compare(wide, baseline_of_runs({before}, ""), GateRules{}).rows[0].judgement.verdict ==
        Verdict::unsure);
}

TEST_CASE("bursts in the samples of a suite are allowed for in all its verdicts") {
  std::vector<SampleCase> cases;
  for (int i = 0; i < 8; ++i) cases.push_back({"c" + std::to_string(i), 0.01});
  const RunResult before = sample_history_run(1, cases);
  cases[3].median_s = 0.02;
  RunResult after = sample_history_run(2, cases);
  const auto report = [&] { return compare(after, baseline_of_runs({before}, ""), GateRules{}); };
  CHECK(report().rows[3].judgement.verdict == Verdict::slower);
  // Three of eight cases saw twice their time now and then; the fourth may have seen nothing else.
  for (size_t i = 0; i < 3; ++i) after.cases[i].time->p5_s = 0.01, after.cases[i].time->p95_s = 0.02;
  CHECK(report().rows[3].judgement.verdict == Verdict::unsure);
  CHECK(report().rows[3].judgement.suspect);
  CHECK(report().rows[5].judgement.verdict == Verdict::unsure);
  REQUIRE(report().notes.size() == 1);
  CHECK(report().notes[0].find("unsettled") != std::string::npos);
}

TEST_CASE("confirming: slower only what stays slower in pairs; pairs end as soon as it is clear") {
  const RunResult before =
      sample_history_run(1, {{"real", 0.01}, {"noise", 0.01}, {"fine", 0.01}, {"broken", 0.01}});
  const RunResult after =
      sample_history_run(2, {{"real", 0.0125}, {"noise", 0.0125}, {"fine", 0.0085}, {"broken", 0.0125}});
  GateReport r = compare(after, baseline_of_runs({before}, "old"), GateRules{});
  REQUIRE(answer(r, false, false) == GateAnswer::regression);
  const std::vector<size_t> rows = suspects(r);
  CHECK(rows.size() == 3);  // not the faster one
  mock::MockClock clock;
  std::map<std::string, int> calls;
  const PairSource source = [&](const GateRow& row) {
    clock.now += 2;
    const int n = calls[row.name]++;
    if (row.name == "broken") throw Error("the old program has no such case.");
    const double x = (row.name == "real" ? 0.05 : 0.0) +
                     0.003 * random_normal(3, row.name == "real", static_cast<uint64_t>(n));
    return PairedTimes{0.01, 0.01 * std::exp(x), x};
  };
  CHECK(confirm(r, rows, source, ConfirmLimits{}, clock) == 2);
  CHECK(row_of(r, "real").judgement.verdict == Verdict::slower);
  CHECK(row_of(r, "real").confirmed);
  CHECK(row_of(r, "real").first.verdict == Verdict::slower);
  CHECK(row_of(r, "noise").judgement.verdict == Verdict::same);
  CHECK(row_of(r, "broken").judgement.verdict == Verdict::unsure);
  CHECK(row_of(r, "broken").note.find("no such case") != std::string::npos);
  CHECK(row_of(r, "fine").judgement.verdict == Verdict::faster);
  CHECK(calls["fine"] == 0);
  CHECK(calls["noise"] == 4);
  CHECK(answer(r, false, false) == GateAnswer::regression);
}

TEST_CASE("confirming ends when its time is spent, and what could not be confirmed is unsure") {
  const RunResult before = sample_history_run(1, {{"a", 0.01}, {"b", 0.01}});
  const RunResult after = sample_history_run(2, {{"a", 0.013}, {"b", 0.0125}});
  GateReport r = compare(after, baseline_of_runs({before}, "old"), GateRules{});
  REQUIRE(r.count(Verdict::slower) == 2);
  mock::MockClock clock;
  ConfirmLimits limits;
  limits.max_seconds = 5;
  const PairSource source = [&](const GateRow&) {
    clock.now += 2;
    return PairedTimes{0.01, 0.013, std::log(1.3) + 0.0001 * clock.now};
  };
  CHECK(confirm(r, suspects(r), source, limits, clock) == 1);
  CHECK(row_of(r, "a").pairs == 3);
  CHECK(row_of(r, "b").judgement.verdict == Verdict::unsure);
  CHECK(row_of(r, "b").note.find("spent") != std::string::npos);
}

TEST_CASE("a gate whose suspects cannot be measured again does not pass") {
  const RunResult before = sample_history_run(1, {{"a", 0.01}}), after = sample_history_run(2, {{"a", 0.02}});
  GateReport r = compare(after, baseline_of_runs({before}, "old"), GateRules{});
  mock::MockClock clock;
  confirm(
      r, suspects(r), [](const GateRow&) -> PairedTimes { throw Error("the old program is gone."); },
      ConfirmLimits{}, clock);
  CHECK(r.rows[0].judgement.verdict == Verdict::unsure);
  CHECK(r.rows[0].unconfirmed);
  CHECK(answer(r, true, true) == GateAnswer::incomplete);
}

TEST_CASE("what is slower beyond doubt is a suspect, however narrow its interval") {
  const Judgement j = judge_alone({std::log1p(0.035), 0.0005, 100, 1}, GateRules{});
  CHECK(j.verdict == Verdict::slower);
  CHECK(j.high < 0.04);
  CHECK(j.suspect);
}

TEST_CASE("cases without history are compared by pairs alone") {
  const RunResult after = sample_history_run(2, {{"a", 0.013}});
  GateReport r = compare(after, Baseline{}, GateRules{});
  REQUIRE(r.rows[0].state == State::fresh);
  mock::MockClock clock;
  int n = 0;
  confirm(
      r, {0},
      [&](const GateRow&) {
        return PairedTimes{0.01, 0.0131, std::log(1.31) + 0.002 * (n++ % 2)};
      },
      ConfirmLimits{}, clock);
  CHECK(r.rows[0].state == State::compared);
  CHECK(r.rows[0].judgement.verdict == Verdict::slower);
  CHECK(r.rows[0].before_s == 0.01);
}

TEST_CASE("the stored verdict is that of the case against the points before it") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  fill(h, 12);
  const auto points = h.points_of_case("id-a", "m1", "main");
  CHECK(verdict_word(sample_point({"a", 0.02}), points, std::nullopt, GateRules{}) == "slower");
  CHECK(verdict_word(sample_point({"a", 0.01}), points, std::nullopt, GateRules{}) == "same");
  CHECK(verdict_word(sample_point({"a", 0.01}), {}, std::nullopt, GateRules{}).empty());
}
