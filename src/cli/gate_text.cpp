#include "cli/gate_text.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/json.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

std::string change_text(double change) { return fmt::format("{:+.2f}%", 100 * change); }

std::string how_text(const GateRow& r) {
  if (r.confirmed) return fmt::format("{} pairs", r.pairs);
  return fmt::format("{} {}", r.runs, r.runs == 1 ? "run" : "runs");
}

std::vector<std::string> cells(const GateRow& r) {
  if (r.state != GateRow::State::compared)
    return {r.name,
            r.before_s > 0 ? seconds_text(r.before_s) : "",
            r.now_s > 0 ? seconds_text(r.now_s) : "",
            "",
            "",
            std::string(name(r.state)),
            "",
            ""};
  return {r.name,
          seconds_text(r.before_s),
          seconds_text(r.now_s),
          change_text(r.judgement.change),
          fmt::format("[{}, {}]", change_text(r.judgement.low), change_text(r.judgement.high)),
          std::string(name(r.judgement.verdict)) + (r.confirmed ? " (confirmed)" : ""),
          how_text(r),
          fmt::format("{:.2g}%", 100 * r.spread.sigma)};
}

Style style_of(const GateRow& r) {
  if (r.state == GateRow::State::fresh) return Style::dim;
  if (r.state != GateRow::State::compared) return Style::red;
  switch (r.judgement.verdict) {
    case Verdict::slower:
      return Style::red;
    case Verdict::faster:
      return Style::green;
    case Verdict::unsure:
      return Style::yellow;
    case Verdict::same:
      break;
  }
  return Style::plain;
}

/// No character of a suite's text acts as markup or ends a cell.
std::string escaped(const std::string& raw) {
  std::string out;
  for (const char c : printable(raw)) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else {
      if (std::string_view("\\`*_|~[]").find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
  }
  return out;
}

Json json_of(const Judgement& j) {
  return {{"verdict", std::string(name(j.verdict))},
          {"change", finite(j.change)},
          {"low", finite(j.low)},
          {"high", finite(j.high)},
          {"p_slower", finite(j.p_slower)},
          {"p_faster", finite(j.p_faster)}};
}

}  // namespace

std::string_view name(GateAnswer a) {
  return a == GateAnswer::pass ? "pass" : a == GateAnswer::regression ? "regression" : "incomplete";
}

std::string_view name(GateRow::State s) {
  switch (s) {
    case GateRow::State::compared:
      return "compared";
    case GateRow::State::fresh:
      return "new";
    case GateRow::State::missing:
      return "missing";
    case GateRow::State::not_measured:
      return "not measured";
  }
  return "?";
}

std::string gate_tally(const GateReport& r) {
  std::string out;
  const auto add = [&out](size_t n, std::string_view word) {
    if (n) out += fmt::format("{}{} {}", out.empty() ? "" : ", ", n, word);
  };
  for (const Verdict v : {Verdict::slower, Verdict::faster, Verdict::same, Verdict::unsure})
    add(r.count(v), name(v));
  for (const auto s : {GateRow::State::fresh, GateRow::State::missing, GateRow::State::not_measured})
    add(r.count(s), name(s));
  double sum = 0;
  for (const GateRow& row : r.rows)
    if (row.state == GateRow::State::compared) sum += row.difference.log_ratio;
  const size_t n = r.count(GateRow::State::compared);
  if (n == 0) return (out.empty() ? "" : out + "; ") + "nothing was compared";
  return out + fmt::format("; geometric mean of the changes {}",
                           change_text(std::expm1(sum / static_cast<double>(n))));
}

std::string gate_table(const GateReport& r, bool color, size_t width) {
  using Align = TextTable::Align;
  TextTable t({{"case", Align::left},
               {"before", Align::right},
               {"now", Align::right},
               {"change", Align::right},
               {"95% interval", Align::left},
               {"verdict", Align::left},
               {"against", Align::right},
               {"spread", Align::right}});
  for (const GateRow& row : r.rows) {
    std::vector<std::string> c = cells(row);
    c[0] = printable(c[0]);
    t.add(std::move(c), style_of(row));
  }
  std::string out;
  if (!r.baseline_text.empty()) out += printable("against " + r.baseline_text) + "\n";
  if (!t.empty()) out += t.str(color, "", width);
  for (const GateRow& row : r.rows)
    if (!row.note.empty()) out += printable(row.name + ": " + row.note) + "\n";
  for (const std::string& note : r.notes) out += printable(note) + "\n";
  return out + gate_tally(r) + "\n";
}

std::string gate_markdown(const GateReport& r, GateAnswer a) {
  std::string out = fmt::format("### attnbench: {}\n\n{}\n\n", name(a), escaped(gate_tally(r)));
  std::string rows, same;
  for (const GateRow& row : r.rows) {
    std::string line = "|";
    for (const std::string& cell : cells(row)) line += " " + escaped(cell) + " |";
    const bool plain = row.state == GateRow::State::compared &&
                       (row.judgement.verdict == Verdict::same || row.judgement.verdict == Verdict::unsure);
    (plain ? same : rows) += line + "\n";
  }
  const std::string head =
      "| case | before | now | change | 95% interval | verdict | against | spread |\n"
      "| --- | ---: | ---: | ---: | --- | --- | ---: | ---: |\n";
  if (!rows.empty()) out += head + rows + "\n";
  if (!same.empty())
    out += "<details><summary>same and unsure</summary>\n\n" + head + same + "\n</details>\n\n";
  for (const GateRow& row : r.rows)
    if (!row.note.empty()) out += "- " + escaped(row.name + ": " + row.note) + "\n";
  for (const std::string& note : r.notes) out += "- " + escaped(note) + "\n";
  return out + fmt::format("\nAgainst {}; threshold {:.3g}%, false discovery rate {:.3g}%.\n",
                           escaped(r.baseline_text), 100 * r.rules.threshold,
                           100 * r.rules.false_discovery_rate);
}

JunitGroup gate_junit(const std::string& suite, const GateReport& r, GateAnswer a, bool allow_missing) {
  using O = JunitTest::Outcome;
  JunitGroup group{suite + ".regressions", {}};
  for (const GateRow& row : r.rows) {
    JunitTest t{.outcome = O::passed, .name = row.name, .type = {}, .message = row.note, .output = {}};
    t.seconds = row.now_s;
    if (row.state == GateRow::State::compared) {
      const Judgement& j = row.judgement;
      t.type = row.unconfirmed ? "unconfirmed" : std::string(name(j.verdict));
      const std::string figures = fmt::format(
          "{}{}: {} [{}, {}], {} before, {} now, against {}, threshold {:.3g}%", name(j.verdict),
          row.confirmed ? " (confirmed)" : "", change_text(j.change), change_text(j.low), change_text(j.high),
          seconds_text(row.before_s), seconds_text(row.now_s), how_text(row), 100 * r.rules.threshold);
      if (j.verdict == Verdict::slower)
        t.outcome = O::failure, t.message = figures;
      else if (row.unconfirmed)
        t.outcome = O::error;
      t.output = figures;
    } else {
      t.type = std::string(name(row.state));
      const bool fails = row.state != GateRow::State::fresh && !allow_missing;
      t.outcome = fails ? O::error : O::skipped;
      if (t.message.empty()) t.message = "nothing to compare with yet";
    }
    group.tests.push_back(std::move(t));
  }
  if (r.empty() && a != GateAnswer::pass) {
    JunitTest t{.outcome = O::error,
                .name = "the gate",
                .type = "empty",
                .message = "nothing was compared",
                .output = {}};
    for (const std::string& note : r.notes) t.output += (t.output.empty() ? "" : "; ") + note;
    group.tests.push_back(std::move(t));
  }
  return group;
}

Json gate_json(const GateReport& r) {
  Json cases = Json::array();
  for (const GateRow& row : r.rows) {
    Json j{{"id", row.id}, {"name", row.name}, {"state", std::string(name(row.state))}};
    if (row.before_s > 0) j["before_s"] = finite(row.before_s);
    if (row.now_s > 0) j["now_s"] = finite(row.now_s);
    if (row.state == GateRow::State::compared) {
      j.update(json_of(row.judgement));
      j["spread"] = finite(row.spread.sigma);
      j["spread_source"] = row.spread.source;
      j["baseline_runs"] = row.runs;
      j["confirmed"] = row.confirmed;
      if (row.confirmed) {
        j["pairs"] = row.pairs;
        j["first"] = json_of(row.first);
      }
    }
    if (!row.note.empty()) j["note"] = row.note;
    cases.push_back(std::move(j));
  }
  return {{"baseline", r.baseline_text},
          {"threshold", r.rules.threshold},
          {"false_discovery_rate", r.rules.false_discovery_rate},
          {"slower", r.count(Verdict::slower)},
          {"faster", r.count(Verdict::faster)},
          {"same", r.count(Verdict::same)},
          {"unsure", r.count(Verdict::unsure)},
          {"missing", r.count(GateRow::State::missing) + r.count(GateRow::State::not_measured)},
          {"notes", r.notes},
          {"cases", std::move(cases)}};
}

}  // namespace attnbench
