#include "report/dashboard.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "history/change_points.hpp"
#include "kernels/core/error.hpp"
#include "measure/build_info.hpp"
#include "measure/case_id.hpp"
#include "report/charts.hpp"
#include "report/files.hpp"
#include "report/page.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

namespace fs = std::filesystem;
using Mood = ReportTable::Mood;

// Runs drawn one by one with their intervals; on phones fewer. Older ones are in the chart of the whole
// history, in so many bins that each is about two pixels wide.
constexpr size_t kRecent = 90, kRecentNarrow = 30, kBins = 240;
constexpr size_t kRunRows = 60;      // of the table of a case's or a suite's runs
constexpr size_t kMostChanges = 60;  // on an overview, newest first
constexpr size_t kMostSeries = 8;    // machines and branches on one page
constexpr size_t kSparkline = 40;
constexpr const char* kManifest = "attnbench-dashboard.txt";

// ---- what is known of the past
// ------------------------------------------------------------------------------

/// Readings that differ from run to run on the same machine.
bool is_volatile(const std::string& key) {
  static const std::set<std::string> own{"git_revision", "load_1min", "attnbench_version"};
  if (own.contains(key)) return true;
  for (const char* piece : {"mhz", "temperature", "power", "throttle", "free", "available", "_now"})
    if (key.find(piece) != std::string::npos) return true;
  return false;
}

/// "kernel: 6.1 -> 6.2"; empty: nothing of interest.
std::string environment_change(const HistoryRun& before, const HistoryRun& now) {
  std::string out;
  const auto tell = [&out](const std::string& key, const std::string& a, const std::string& b) {
    out += (out.empty() ? "" : "; ") + key + ": " + (a.empty() ? "(none)" : a) + " -> " +
           (b.empty() ? "(none)" : b);
  };
  for (const auto& [key, value] : now.environment) {
    const auto it = before.environment.find(key);
    const std::string& old = it == before.environment.end() ? std::string() : it->second;
    if (old != value && !is_volatile(key)) tell(key, old, value);
  }
  for (const auto& [key, value] : before.environment)
    if (!now.environment.contains(key) && !is_volatile(key)) tell(key, value, "");
  return out;
}

struct Change {
  size_t at = 0;  ///< first point of the new level
  double before = 0, after = 0;
  double ratio() const { return after / before; }
  bool slower() const { return after > before; }
};

/// One case on one machine and branch in one suite.
struct Series {
  HistorySeries info;
  std::vector<HistoryPoint> points;
  std::vector<SeriesLevel> levels;
  std::vector<Change> changes;
  /// By index of the point: what of the machine changed with that run.
  std::map<size_t, std::string> moved;

  const HistoryPoint& newest() const { return points.back(); }
};

std::string date(Time t) { return time_text(t).substr(0, 10); }
std::string short_revision(const std::string& r) { return r.size() > 12 ? cut_to(r, 12) : r; }
std::string percent(double ratio) {
  const std::string s = fmt::format("{:+.1f}%", 100 * (ratio - 1));
  return s == "+0.0%" || s == "-0.0%" ? "0.0%" : s;
}

Mood mood_of_verdict(const std::string& verdict) {
  return verdict == "slower"   ? Mood::bad
         : verdict == "faster" ? Mood::good
         : verdict == "unsure" ? Mood::warn
                               : Mood::plain;
}

int rank(Mood m) { return m == Mood::bad ? 0 : m == Mood::warn ? 1 : m == Mood::good ? 2 : 3; }
const char* tile_class(Mood m) {
  return m == Mood::bad ? "bad" : m == Mood::good ? "good" : m == Mood::warn ? "warn" : "";
}

/// What the newest run says: its verdict, or why it has no time.
std::pair<std::string, Mood> state_of(const HistoryPoint& p) {
  if (!std::isfinite(p.median_s))
    return {std::string(name(p.status)),
            p.status == CaseStatus::failed || p.status == CaseStatus::inconsistent ? Mood::bad : Mood::warn};
  return {p.verdict.empty() ? "new" : p.verdict, mood_of_verdict(p.verdict)};
}

// ---- charts
// ----------------------------------------------------------------------------------------------

std::string point_tip(const HistoryPoint& p) {
  std::string out =
      fmt::format("{} {}\n{} [{}, {}]", date(p.time), short_revision(p.revision), seconds_text(p.median_s),
                  seconds_text(p.ci_low_s), seconds_text(p.ci_high_s));
  return out + (p.verdict.empty() ? "" : "\n" + p.verdict);
}

/// Dates under runs that stand at equal distances.
std::vector<std::pair<double, std::string>> date_ticks(const std::vector<HistoryPoint>& points, size_t begin,
                                                       size_t count) {
  std::vector<std::pair<double, std::string>> ticks;
  const size_t n = points.size() - begin;
  for (size_t i = 0; i < count; ++i) {
    const size_t at = begin + (count == 1 || n == 1 ? 0 : i * (n - 1) / (count - 1));
    if (!ticks.empty() && ticks.back().first == static_cast<double>(at)) continue;
    ticks.emplace_back(static_cast<double>(at), date(points[at].time));
  }
  return ticks;
}

void add_marks(XyChart& chart, const Series& s, size_t begin) {
  for (const SeriesLevel& l : s.levels) {
    if (l.end <= begin || !std::isfinite(l.value)) continue;
    chart.strokes.push_back({static_cast<double>(std::max(l.begin, begin)) - 0.5, l.value,
                             static_cast<double>(l.end) - 0.5, l.value, "", "level"});
  }
  for (const Change& c : s.changes)
    if (c.at > begin)
      chart.rules.push_back({static_cast<double>(c.at) - 0.5, true, percent(c.ratio()),
                             fmt::format("{} {}: {} -> {}, {}", date(s.points[c.at].time),
                                         short_revision(s.points[c.at].revision), seconds_text(c.before),
                                         seconds_text(c.after), percent(c.ratio())),
                             c.slower() ? "change" : "change faster"});
  for (const auto& [at, what] : s.moved)
    if (at > begin)
      chart.rules.push_back(
          {static_cast<double>(at) - 0.5, true, "", date(s.points[at].time) + " " + what, "moved"});
}

XyChart recent_chart(const Series& s, size_t most, double width, double height) {
  const size_t begin = s.points.size() > most ? s.points.size() - most : 0;
  XyChart chart;
  chart.width = width, chart.height = height;
  chart.title = fmt::format("Time of the last {} runs", s.points.size() - begin);
  chart.y = {.title = "median time", .unit = AxisUnit::seconds};
  chart.x.ticks = date_ticks(s.points, begin, width > 600 ? 7 : 4);
  ChartSeries line{.name = "median, 95% interval of the run", .style = 0, .points = {}};
  for (size_t i = begin; i < s.points.size(); ++i) {
    const HistoryPoint& p = s.points[i];
    line.points.push_back({static_cast<double>(i), p.median_s, p.ci_low_s, p.ci_high_s,
                           std::isfinite(p.median_s) ? point_tip(p) : ""});
    if (p.verdict == "slower" || p.verdict == "faster")
      line.points.back().css = p.verdict == "slower" ? "bad" : "good";
    if (!std::isfinite(p.median_s))
      chart.rules.push_back(
          {static_cast<double>(i), true, "",
           date(p.time) + " " + short_revision(p.revision) + ": " + std::string(name(p.status)), "rule"});
  }
  chart.series.push_back(std::move(line));
  add_marks(chart, s, begin);
  return chart;
}

/// Values of a point over the whole history, in bins: median, and the least and the most as a band.
XyChart history_chart(const Series& s, const std::string& title, const ChartAxis& y,
                      double (*value)(const HistoryPoint&), double width, double height) {
  XyChart chart;
  chart.width = width, chart.height = height;
  chart.title = title;
  chart.y = y;
  chart.x.ticks = date_ticks(s.points, 0, width > 600 ? 7 : 4);
  const size_t n = s.points.size(), bins = std::min(n, kBins);
  ChartSeries line{
      .name = n > kBins ? "median of about " + std::to_string(n / bins) + " runs, and their range" : "",
      .style = 0,
      .points = {},
      .marks = n <= kRecent,
      .band = n > kBins};
  std::vector<double> values;
  for (size_t b = 0; b < bins; ++b) {
    const size_t from = b * n / bins, to = (b + 1) * n / bins;
    values.clear();
    for (size_t i = from; i < to; ++i)
      if (const double v = value(s.points[i]); std::isfinite(v)) values.push_back(v);
    ChartSeries::Point p{static_cast<double>(from + to - 1) / 2, NAN, NAN, NAN, ""};
    if (!values.empty()) {
      std::sort(values.begin(), values.end());
      p.y = values[values.size() / 2], p.low = values.front(), p.high = values.back();
    }
    line.points.push_back(p);
  }
  chart.series.push_back(std::move(line));
  return chart;
}

double time_value(const HistoryPoint& p) { return p.median_s; }
double rate_value(const HistoryPoint& p) {
  return p.flops > 0 && p.median_s > 0 ? static_cast<double>(p.flops) / p.median_s * 1e-9 : NAN;
}
double memory_value(const HistoryPoint& p) {
  return p.memory_peak > 0 ? static_cast<double>(p.memory_peak) : NAN;
}

std::string sparkline(const Series& s) {
  const size_t begin = s.points.size() > kSparkline ? s.points.size() - kSparkline : 0;
  double low = INFINITY, high = 0;
  for (size_t i = begin; i < s.points.size(); ++i)
    if (std::isfinite(s.points[i].median_s))
      low = std::min(low, s.points[i].median_s), high = std::max(high, s.points[i].median_s);
  if (!(high > 0)) return "";
  // At least 10% high: noise of a quiet case shall not look like trouble.
  const double middle = (low + high) / 2, half = std::max((high - low) / 2, 0.05 * middle);
  std::string path;
  bool pen = false;
  const double step = 126.0 / static_cast<double>(std::max<size_t>(s.points.size() - begin - 1, 1));
  for (size_t i = begin; i < s.points.size(); ++i) {
    const double v = s.points[i].median_s;
    if (!std::isfinite(v)) {
      pen = false;
      continue;
    }
    path += fmt::format("{}{:.0f} {:.1f}", pen ? "L" : "M", 2 + step * static_cast<double>(i - begin),
                        13 - 11 * (v - middle) / half);
    if (!pen && i + 1 == s.points.size()) path += "h2";  // a single run is a dot
    pen = true;
  }
  return "<svg class=\"spark\" viewBox=\"0 0 130 26\" aria-hidden=\"true\"><path d=\"" + path + "\"/></svg>";
}

std::string two_widths(const XyChart& wide, const XyChart& narrow) {
  const std::string w = wide.svg(), n = narrow.svg();
  if (w.empty()) return "";
  return "<div class=\"wide-only\">" + w + "</div><div class=\"narrow-only\">" + n + "</div>";
}

// ---- the builder
// --------------------------------------------------------------------------------------------

struct OverviewRow {
  std::string suite, case_name, machine, branch, file, spark;
  HistoryPoint newest;
  double level_ratio = NAN;  ///< newest time over its level
  int64_t points = 0;
};

struct ListedChange {
  Time time;
  std::string suite, case_name, machine, branch, revision, file, moved;
  double before, after;
};

class Builder {
 public:
  Builder(const History& history, fs::path folder, const DashboardOptions& options)
      : history_(history), folder_(std::move(folder)), options_(options) {
    for (const HistoryCase& c : history.cases()) cases_[c.id] = c;
    for (const HistorySuite& s : history.suites()) suites_.push_back(s);
  }

  DashboardSummary build() {
    for (const HistorySuite& suite : suites_) build_suite(suite);
    if (summary_.points == 0)
      throw UsageError("'" + history_.path() + "' holds no points" +
                       (options_.branch.empty() ? "" : " of branch '" + options_.branch + "'") +
                       "; `attnbench history add` puts results into it");
    write_overview();
    return summary_;
  }

  std::set<std::string> files() const { return files_; }

 private:
  void write(const std::string& file, const Page& page) {
    const std::string text = html_page(page);
    const fs::path target = folder_ / file, temporary = folder_ / (file + ".part");
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    out.close();
    // Not synced: pages can be made again from the history at any time.
    std::error_code failed;
    if (out) fs::rename(temporary, target, failed);
    if (!out || failed) {
      fs::remove(temporary, failed);
      throw Error("cannot write '" + target.string() + "'");
    }
    files_.insert(file);
    ++summary_.pages;
    summary_.bytes += static_cast<int64_t>(text.size());
  }

  std::string foot() const {
    return "History: " + html_name(fs::path(history_.path()).filename().string()) +
           ". Change points: " + html_escaped(kChangePointMethod) + ". Made by attnbench " +
           html_escaped(build_info().version) + ".";
  }

  Series load(const HistorySeries& info, const std::vector<HistoryRun>& runs,
              const std::map<int64_t, std::string>& moved) {
    Series s;
    s.info = info;
    s.points = history_.points(info.id);
    std::vector<double> medians;
    for (const HistoryPoint& p : s.points) medians.push_back(p.median_s);
    s.levels = find_levels(medians);
    for (size_t i = 1; i < s.levels.size(); ++i)
      s.changes.push_back({s.levels[i].begin, s.levels[i - 1].value, s.levels[i].value});
    for (size_t i = 0; i < s.points.size(); ++i)
      if (const auto it = moved.find(s.points[i].run); it != moved.end()) s.moved[i] = it->second;
    return s;
  }

  void build_suite(const HistorySuite& suite) {
    // What of a machine changed between neighbouring runs of a machine and branch.
    const std::vector<HistoryRun> runs = history_.runs({.suite = suite.name, .branch = options_.branch});
    std::map<int64_t, std::string> moved;
    std::map<std::pair<std::string, std::string>, const HistoryRun*> last;
    for (const HistoryRun& r : runs) {
      const HistoryRun*& before = last[{r.fingerprint, r.branch}];
      if (before)
        if (std::string what = environment_change(*before, r); !what.empty()) moved[r.id] = what;
      before = &r;
    }
    std::map<std::string, std::vector<HistorySeries>> by_case;
    for (const HistorySeries& s : history_.series({.suite = suite.name, .branch = options_.branch}))
      if (s.points > 0) by_case[s.case_id].push_back(s);
    if (by_case.empty()) return;
    ++summary_.suites;
    std::vector<OverviewRow> rows;
    std::vector<ListedChange> changes;
    for (auto& [id, all] : by_case) {
      // The longest series first: "main" before the branches of pull requests.
      std::stable_sort(all.begin(), all.end(),
                       [](const HistorySeries& a, const HistorySeries& b) { return a.points > b.points; });
      build_case(suite, id, all, runs, moved, rows, changes);
    }
    write_suite(suite, runs, moved, rows, changes);
    rows_.insert(rows_.end(), std::make_move_iterator(rows.begin()), std::make_move_iterator(rows.end()));
    changes_.insert(changes_.end(), changes.begin(), changes.end());
  }

  // ---- a case

  void build_case(const HistorySuite& suite, const std::string& id, const std::vector<HistorySeries>& all,
                  const std::vector<HistoryRun>& runs, const std::map<int64_t, std::string>& moved,
                  std::vector<OverviewRow>& rows, std::vector<ListedChange>& changes) {
    const HistoryCase& c = cases_.at(id);
    const std::string file = page_file("case", c.name, suite.name + "\n" + id);
    ++summary_.cases;
    Page page;
    page.title = c.name + " - " + suite.name + " - " + options_.title;
    page.headline = html_name(c.name);
    page.subtitle = html_name(c.method + (c.params.empty() ? "" : ": " + c.params)) + "<br>" +
                    html_name(c.problem + " on " + c.device);
    page.crumbs = "<a href=\"index.html\">" + html_escaped(options_.title) + "</a> / <a href=\"" +
                  html_escaped(page_file("suite", suite.name, suite.name)) + "\">" + html_name(suite.name) +
                  "</a>";
    size_t shown = 0;
    for (const HistorySeries& info : all) {
      Series s = load(info, runs, moved);
      if (s.points.empty()) continue;
      summary_.points += static_cast<int64_t>(s.points.size());
      summary_.changes += s.changes.size();
      OverviewRow row{suite.name,  c.name, info.fingerprint,
                      info.branch, file,   sparkline(s),
                      s.newest(),  NAN,    static_cast<int64_t>(s.points.size())};
      if (std::isfinite(s.newest().median_s) && s.levels.back().value > 0)
        row.level_ratio = s.newest().median_s / s.levels.back().value;
      rows.push_back(std::move(row));
      for (const Change& change : s.changes) {
        const auto it = s.moved.find(change.at);
        changes.push_back({s.points[change.at].time, suite.name, c.name, info.fingerprint, info.branch,
                           s.points[change.at].revision, file, it == s.moved.end() ? "" : it->second,
                           change.before, change.after});
      }
      if (shown == kMostSeries) continue;
      ++shown;
      const std::string anchor = fmt::format("series-{}", shown);
      const std::string title = "Branch " + info.branch + " on machine " + info.fingerprint;
      page.sections.emplace_back("#" + anchor,
                                 info.branch + (all.size() > 1 ? ", " + cut_to(info.fingerprint, 9) : ""));
      page.body += html_section(anchor, title, series_body(s));
    }
    if (all.size() > shown)
      page.body += fmt::format(
          "<p class=\"none\">{} further machines or branches are in the history and not drawn here.</p>\n",
          all.size() - shown);
    page.foot = "Case id " + html_name(id) + ".<br>" + foot();
    write(file, page);
  }

  std::string series_body(const Series& s) {
    const HistoryPoint& newest = s.newest();
    const auto [word, mood] = state_of(newest);
    const auto tile = [](const std::string& value, const std::string& what, Mood m) {
      return fmt::format("<div class=\"tile {}\"><b>{}</b><span>{}</span></div>", tile_class(m),
                         html_escaped(value), html_escaped(what));
    };
    std::string out = "<div class=\"tiles\">" + tile(word, "verdict of the newest run", mood);
    out += tile(std::isfinite(newest.median_s) ? seconds_text(newest.median_s) : "-",
                date(newest.time) + " at " + short_revision(newest.revision), Mood::plain);
    out += tile(fmt::format("{}", s.points.size()), "runs since " + date(s.points.front().time), Mood::plain);
    out += tile(fmt::format("{}", s.changes.size()),
                s.changes.size() == 1 ? "change of level" : "changes of level", Mood::plain);
    out += "</div>\n";

    std::vector<std::string> wide_figures, figures;
    wide_figures.push_back(html_figure(
        s.points.size() > kRecentNarrow ? "Time, newest runs" : "Time",
        two_widths(recent_chart(s, kRecent, 960, 330), recent_chart(s, kRecentNarrow, 480, 330)), "",
        "Whiskers: 95% interval of the run alone; the spread between runs is larger. Dashed: the level "
        "between changes. "
        "Red and green lines: change points. Dotted: the environment changed with that run.",
        true));
    const auto add = [&](const std::string& title, const ChartAxis& y, double (*value)(const HistoryPoint&),
                         bool marks, bool wide) {
      XyChart a = history_chart(s, title, y, value, wide ? 960 : 480, wide ? 300 : 260);
      XyChart b = history_chart(s, title, y, value, 480, 260);
      if (marks) add_marks(a, s, 0), add_marks(b, s, 0);
      (wide ? wide_figures : figures)
          .push_back(html_figure(title, wide ? two_widths(a, b) : a.svg(), "",
                                 a.series[0].name.empty() ? "" : "Line: " + a.series[0].name + ".", wide));
    };
    if (s.points.size() > kRecent)
      add("Time, whole history", {.title = "median time", .unit = AxisUnit::seconds}, time_value, true, true);
    add("Rate", {.title = "GFLOP/s"}, rate_value, false, false);
    add("Peak memory", {.title = "exact peak of the allocator", .unit = AxisUnit::bytes}, memory_value, false,
        false);
    out += html_charts(wide_figures) + html_charts(figures);

    if (!s.changes.empty()) {
      ReportTable t;
      t.columns = {{"date"},         {"revision"},    {"change", true},
                   {"before", true}, {"after", true}, {"environment"}};
      for (size_t i = s.changes.size(); i-- > 0;) {
        const Change& c = s.changes[i];
        const HistoryPoint& p = s.points[c.at];
        const auto it = s.moved.find(c.at);
        t.rows.push_back({{date(p.time), p.revision, percent(c.ratio()), seconds_text(c.before),
                           seconds_text(c.after), it == s.moved.end() ? "" : it->second},
                          c.slower() ? Mood::bad : Mood::good,
                          {NAN, NAN, c.ratio(), c.before, c.after, NAN}});
      }
      out += "<h3>Changes of level</h3>" +
             html_table(t, {.caption = "Changes of level, " + s.info.branch + " " + s.info.fingerprint});
    }
    ReportTable t;
    t.columns = {{"date"},    {"revision"},      {"time", true},   {"95% interval"},
                 {"verdict"}, {"GFLOP/s", true}, {"memory", true}, {"environment"}};
    HtmlTableOptions options{.caption = "Newest runs, " + s.info.branch + " " + s.info.fingerprint,
                             .filter = s.points.size() > 12};
    for (size_t i = s.points.size(); i-- > 0 && t.rows.size() < kRunRows;) {
      const HistoryPoint& p = s.points[i];
      const bool timed = std::isfinite(p.median_s);
      const double rate = rate_value(p);
      const auto it = s.moved.find(i);
      const auto [state, m] = state_of(p);
      t.rows.push_back(
          {{time_text(p.time), p.revision, timed ? seconds_text(p.median_s) : "",
            timed ? "[" + seconds_text(p.ci_low_s) + ", " + seconds_text(p.ci_high_s) + "]" : "", state,
            std::isfinite(rate) ? fmt::format("{:.4g}", rate) : "",
            p.memory_peak > 0 ? bytes_text(p.memory_peak) : "", it == s.moved.end() ? "" : it->second},
           Mood::plain,
           {NAN, NAN, p.median_s, p.ci_low_s, NAN, rate, static_cast<double>(p.memory_peak), NAN}});
      options.cells.push_back({"", "", "", "", html_badge(state, m), "", "", ""});
    }
    out += fmt::format("<details{}><summary>Newest {} of {} runs</summary>",
                       s.points.size() <= 12 ? " open" : "", t.rows.size(), s.points.size()) +
           html_table(t, options) + "</details>\n";
    return out;
  }

  // ---- tables of suite and overview

  std::string cases_table(std::vector<OverviewRow> rows, bool with_suite, const std::string& caption) {
    ReportTable t;
    t.columns = {{"case"},      {"verdict"},       {"time", true},  {"of level", true},
                 {"last runs"}, {"GFLOP/s", true}, {"memory", true}};
    if (with_suite) t.columns.push_back({"suite"});
    for (const char* more : {"branch", "machine", "date", "revision"}) t.columns.push_back({more});
    t.columns.push_back({"runs", true});
    HtmlTableOptions options{.caption = caption, .filter = true};
    // What needs a look comes first; the rest keeps its order.
    std::stable_sort(rows.begin(), rows.end(), [](const OverviewRow& a, const OverviewRow& b) {
      return rank(state_of(a.newest).second) < rank(state_of(b.newest).second);
    });
    for (const OverviewRow& r : rows) {
      const auto [word, mood] = state_of(r.newest);
      const double rate = rate_value(r.newest);
      ReportTable::Row row{
          {r.case_name, word, std::isfinite(r.newest.median_s) ? seconds_text(r.newest.median_s) : "",
           std::isfinite(r.level_ratio) ? percent(r.level_ratio) : "", "",
           std::isfinite(rate) ? fmt::format("{:.4g}", rate) : "",
           r.newest.memory_peak > 0 ? bytes_text(r.newest.memory_peak) : ""},
          Mood::plain,
          {NAN, NAN, r.newest.median_s, r.level_ratio, NAN, rate, static_cast<double>(r.newest.memory_peak)}};
      std::vector<std::string> html{
          "<a href=\"" + html_escaped(r.file) + "\">" + html_name(r.case_name) + "</a>",
          html_badge(word, mood),
          "",
          "",
          r.spark,
          "",
          ""};
      if (with_suite) {
        row.cells.push_back(r.suite), row.keys.push_back(NAN);
        html.push_back("<a href=\"" + html_escaped(page_file("suite", r.suite, r.suite)) + "\">" +
                       html_name(r.suite) + "</a>");
      }
      for (const std::string& cell :
           {r.branch, r.machine, date(r.newest.time), short_revision(r.newest.revision)}) {
        row.cells.push_back(cell), row.keys.push_back(NAN);
        html.emplace_back();
      }
      row.cells.push_back(std::to_string(r.points)), row.keys.push_back(static_cast<double>(r.points));
      html.emplace_back();
      t.rows.push_back(std::move(row));
      options.cells.push_back(std::move(html));
      options.kinds.push_back(word);
    }
    return html_table(t, options);
  }

  std::string changes_table(std::vector<ListedChange> changes, bool with_suite, const std::string& caption) {
    std::stable_sort(changes.begin(), changes.end(),
                     [](const ListedChange& a, const ListedChange& b) { return a.time > b.time; });
    const size_t all = changes.size();
    if (all > kMostChanges) changes.resize(kMostChanges);
    ReportTable t;
    t.columns = {{"case"}, {"change", true}, {"before", true}, {"after", true}, {"date"}, {"revision"}};
    if (with_suite) t.columns.push_back({"suite"});
    for (const char* more : {"branch", "machine", "environment"}) t.columns.push_back({more});
    HtmlTableOptions options{.caption = caption, .filter = changes.size() > 8};
    for (const ListedChange& c : changes) {
      ReportTable::Row row{{c.case_name, percent(c.after / c.before), seconds_text(c.before),
                            seconds_text(c.after), date(c.time), c.revision},
                           c.after > c.before ? Mood::bad : Mood::good,
                           {NAN, c.after / c.before, c.before, c.after, NAN, NAN}};
      if (with_suite) row.cells.push_back(c.suite);
      for (const std::string& cell : {c.branch, c.machine, c.moved}) row.cells.push_back(cell);
      t.rows.push_back(std::move(row));
      options.cells.push_back(
          {"<a href=\"" + html_escaped(c.file) + "\">" + html_name(c.case_name) + "</a>"});
    }
    if (t.rows.empty()) return "<p class=\"none\">No level changed.</p>\n";
    return html_table(t, options) +
           (all > kMostChanges
                ? fmt::format("<p class=\"none\">The newest {} of {}.</p>\n", kMostChanges, all)
                : "");
  }

  static std::string verdict_tiles(const std::vector<OverviewRow>& rows) {
    std::map<std::string, std::pair<size_t, Mood>> counts{{"slower", {0, Mood::plain}},
                                                          {"same", {0, Mood::plain}}};
    for (const OverviewRow& r : rows) {
      const auto [word, mood] = state_of(r.newest);
      ++counts[word].first;
      counts[word].second = mood;
    }
    std::vector<std::pair<std::string, std::pair<size_t, Mood>>> tiles(counts.begin(), counts.end());
    // "slower" is first even where it is 0: it is what a reader came for.
    std::stable_sort(tiles.begin(), tiles.end(), [](const auto& a, const auto& b) {
      const auto place = [](const auto& t) { return t.first == "slower" ? -1 : rank(t.second.second); };
      return place(a) < place(b);
    });
    std::string out;
    for (const auto& [word, count] : tiles)
      out += fmt::format("<div class=\"tile {}\"><b>{}</b><span>{}</span></div>", tile_class(count.second),
                         count.first, html_escaped(word));
    return "<div class=\"tiles\">" + out + "</div>\n";
  }

  void write_suite(const HistorySuite& suite, const std::vector<HistoryRun>& runs,
                   const std::map<int64_t, std::string>& moved, const std::vector<OverviewRow>& rows,
                   const std::vector<ListedChange>& changes) {
    Page page;
    page.title = suite.name + " - " + options_.title;
    page.headline = html_name(suite.title.empty() ? suite.name : suite.title);
    page.subtitle = html_name(suite.name) + fmt::format(" &middot; {} runs, {} to {}", runs.size(),
                                                        date(suite.first), date(suite.last));
    page.crumbs = "<a href=\"index.html\">" + html_escaped(options_.title) + "</a>";
    page.sections = {{"#cases", "Cases"}, {"#changes", "Changes"}, {"#runs", "Runs"}};
    page.body = verdict_tiles(rows);
    page.body += html_section("cases", "Cases", cases_table(rows, false, "Cases of " + suite.name));
    page.body +=
        html_section("changes", "Changes of level", changes_table(changes, false, "Changes of level"));
    ReportTable t;
    t.columns = {{"date"}, {"revision"}, {"branch"}, {"machine"}, {"cases", true}, {"environment"}};
    for (size_t i = runs.size(); i-- > 0 && t.rows.size() < kRunRows;) {
      const HistoryRun& r = runs[i];
      const auto it = moved.find(r.id);
      t.rows.push_back({{time_text(r.time), r.revision, r.branch, r.fingerprint, std::to_string(r.cases),
                         it == moved.end() ? "" : it->second},
                        Mood::plain,
                        {NAN, NAN, NAN, NAN, static_cast<double>(r.cases), NAN}});
    }
    page.body += html_section("runs", fmt::format("Newest {} of {} runs", t.rows.size(), runs.size()),
                              html_table(t, {.caption = "Runs", .filter = t.rows.size() > 8}));
    page.foot = foot();
    write(page_file("suite", suite.name, suite.name), page);
  }

  void write_overview() {
    Page page;
    page.title = options_.title;
    page.headline = html_name(options_.title);
    Time newest = 0;
    for (const OverviewRow& r : rows_) newest = std::max(newest, r.newest.time);
    page.subtitle = fmt::format("{} suites, {} cases, {} measured points; newest run {}", summary_.suites,
                                summary_.cases, summary_.points, time_text(newest));
    page.sections = {{"#cases", "Cases"}, {"#changes", "Changes"}, {"#suites", "Suites"}};
    page.body = verdict_tiles(rows_);
    page.body += html_section("cases", "Cases, newest run", cases_table(rows_, true, "Cases"));
    page.body +=
        html_section("changes", "Changes of level", changes_table(changes_, true, "Changes of level"));
    ReportTable t;
    t.columns = {{"suite"}, {"title"}, {"runs", true}, {"first"}, {"last"}};
    HtmlTableOptions options{.caption = "Suites"};
    for (const HistorySuite& s : suites_) {
      const std::string file = page_file("suite", s.name, s.name);
      if (!files_.contains(file)) continue;
      t.rows.push_back({{s.name, s.title, std::to_string(s.runs), date(s.first), date(s.last)},
                        Mood::plain,
                        {NAN, NAN, static_cast<double>(s.runs), NAN, NAN}});
      options.cells.push_back({"<a href=\"" + html_escaped(file) + "\">" + html_name(s.name) + "</a>"});
    }
    page.body += html_section("suites", "Suites", html_table(t, options));
    page.foot = foot();
    write("index.html", page);
  }

  const History& history_;
  fs::path folder_;
  const DashboardOptions& options_;
  std::map<std::string, HistoryCase> cases_;
  std::vector<HistorySuite> suites_;
  std::vector<OverviewRow> rows_;
  std::vector<ListedChange> changes_;
  std::set<std::string> files_;
  DashboardSummary summary_;
};

/// Pages that the manifest of an earlier dashboard names, and only names that this program gives.
std::set<std::string> earlier_pages(const fs::path& folder) {
  std::set<std::string> files;
  std::ifstream in(folder / kManifest);
  for (std::string line; std::getline(in, line);)
    if (line.ends_with(".html") && line.find('/') == std::string::npos &&
        (line.starts_with("case-") || line.starts_with("suite-")))
      files.insert(line);
  return files;
}

}  // namespace

std::string page_file(const std::string& kind, const std::string& name, const std::string& identity) {
  std::string plain;
  for (char c : name) {
    if (plain.size() == 60) break;
    const bool keep = std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.';
    if (keep)
      plain += c;
    else if (!plain.empty() && plain.back() != '_')
      plain += '_';
  }
  return kind + "-" + plain + "-" + hash_text(identity).substr(0, 10) + ".html";
}

DashboardSummary write_dashboard(const History& history, const std::string& folder,
                                 const DashboardOptions& options) {
  std::error_code failed;
  if (fs::exists(folder, failed) && !fs::is_directory(folder, failed))
    throw UsageError("'" + folder + "' is no folder");
  const bool ours = fs::exists(fs::path(folder) / kManifest, failed);
  if (!ours && !options.force && fs::exists(folder, failed) && !fs::is_empty(folder, failed))
    throw UsageError("'" + folder +
                     "' holds files and no dashboard; name another folder, or --force to write into it");
  const std::set<std::string> before = earlier_pages(folder);
  if (!fs::create_directories(folder, failed) && failed)
    throw Error("cannot make '" + folder + "': " + failed.message());
  Builder builder(history, folder, options);
  DashboardSummary summary = builder.build();
  const std::set<std::string> files = builder.files();
  for (const std::string& file : before)
    if (!files.contains(file) && fs::remove(fs::path(folder) / file, failed)) ++summary.removed;
  std::ofstream manifest(fs::path(folder) / kManifest, std::ios::trunc);
  manifest << "Pages of an attnbench dashboard; the next one removes those that it does not make again.\n";
  for (const std::string& file : files) manifest << file << "\n";
  manifest.close();
  if (!manifest) throw Error("cannot write '" + (fs::path(folder) / kManifest).string() + "'");
  return summary;
}

}  // namespace attnbench
