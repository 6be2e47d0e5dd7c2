// One run as a page: everything inside, charts drawn here, readable without scripts and without a network.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "analysis/analysis.hpp"
#include "measure/build_info.hpp"
#include "report/charts.hpp"
#include "report/format.hpp"
#include "report/heads.hpp"
#include "report/page.hpp"
#include "report/rows.hpp"
#include "report/scaling.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

// Charts of rows and small multiples show this many; more would be a wall that the tables below read better.
constexpr size_t kMostRows = 40;
constexpr size_t kMostFacets = 8;

std::string figure4(double v) { return fmt::format("{:.4g}", v); }

std::string left_out(size_t all, size_t shown, const char* what) {
  return all > shown ? fmt::format("The first {} of {} {}; the table has all.", shown, all, what) : "";
}

/// Colours and marks by what the suite calls a case, the same on the whole page.
class Styles {
 public:
  explicit Styles(const RunResult& run) {
    for (const CaseResult& c : run.cases) of(base(c));
  }
  size_t of(const std::string& name) { return ids_.emplace(name, ids_.size()).first->second; }
  size_t of(const CaseResult& c) { return of(base(c)); }
  static std::string base(const CaseResult& c) {
    return c.spec.base_name.empty() ? c.spec.name : c.spec.base_name;
  }

 private:
  std::map<std::string, size_t> ids_;
};

std::string join_notes(std::initializer_list<std::string> notes) {
  std::string out;
  for (const std::string& n : notes)
    if (!n.empty()) out += (out.empty() ? "" : " ") + n;
  return out;
}

std::string time_tip(const CaseResult& c) {
  const Timing& t = *c.time;
  return fmt::format("{}\n{} [{}, {}], {} samples{}", c.spec.name, seconds_text(t.median_s),
                     seconds_text(t.ci_low_s), seconds_text(t.ci_high_s), t.samples,
                     t.converged ? "" : ", not converged");
}

// ---- speed-up
// --------------------------------------------------------------------------------------------------

std::string speedup_figure(const RunResult& run) {
  BarChart chart;
  chart.title = "Speed-up against the baseline";
  chart.axis = {.title = "times as fast as the baseline", .log = true};
  chart.origin = 1;
  size_t all = 0;
  std::set<std::string> baselines;
  for (const CaseResult& c : run.cases) {
    if (!c.ratio || c.status != CaseStatus::ok || !(c.ratio->value > 0)) continue;
    ++all;
    baselines.insert(c.ratio->baseline);
    if (chart.rows.size() == kMostRows) continue;
    const Ratio& r = *c.ratio;
    const bool faster = r.ci_low > 1, slower = r.ci_high < 1;
    const std::string text =
        fmt::format("{}x [{}, {}]", figure4(r.value), figure4(r.ci_low), figure4(r.ci_high));
    chart.rows.push_back({c.spec.name,
                          {{r.value,
                            faster   ? "good"
                            : slower ? "bad"
                                     : "plain",
                            fmt::format("{}\n{} against {}, {}", c.spec.name, text, r.baseline,
                                        r.pairs > 0 ? fmt::format("{} pairs", r.pairs) : "not interleaved")}},
                          r.ci_low,
                          r.ci_high,
                          text});
    chart.description += fmt::format("{}: {}. ", c.spec.name, text);
  }
  std::string names;
  for (const std::string& b : baselines) names += (names.empty() ? "" : ", ") + b;
  return html_figure(
      "Speed-up against " + (baselines.size() > 1 && run.suite.baseline.size() ? run.suite.baseline : names),
      chart.svg(), "",
      join_notes({"Whiskers are 95% intervals. Bars from 1 to the right are faster; grey ones "
                  "cannot be told from the baseline.",
                  left_out(all, chart.rows.size(), "cases")}));
}

// ---- time over N
// -----------------------------------------------------------------------------------------------

std::string fit_text(const ScalingSeries& s) {
  if (s.fit) return fmt::format("N^{:.2f} [{:.2f}, {:.2f}]", s.fit->exponent, s.fit->low, s.fit->high);
  return "two sizes, no fit";
}

std::string scaling_figure(const RunResult& run, Styles& styles) {
  const std::vector<ScalingSeries> all = scaling_series(run);
  if (all.empty()) return "";
  XyChart chart;
  chart.title = "Time over the size of the problem";
  chart.x = {.title = "N: tokens, pixels or samples", .log = true};
  chart.y = {.title = "median time", .log = true, .unit = AxisUnit::seconds};
  std::set<double> sizes;
  std::vector<std::pair<std::string, size_t>> legend;
  std::map<std::string, size_t> variants;  // further series of one base name differ by their mark
  for (const ScalingSeries& s : all) {
    ChartSeries series;
    const size_t variant = variants[s.base_name]++;
    series.style = styles.of(s.base_name) + 8 * variant;
    for (const CaseResult* c : s.cases) {
      const double n = static_cast<double>(size_of(c->spec.problem));
      sizes.insert(n);
      series.points.push_back({n, c->time->median_s, c->time->ci_low_s, c->time->ci_high_s,
                               fmt::format("{}\nN = {}", time_tip(*c), size_of(c->spec.problem))});
    }
    legend.emplace_back(s.name + ": " + fit_text(s), series.style);
    chart.description += s.name + " grows as " + fit_text(s) + ". ";
    if (s.fit) {
      const double a = series.points.front().x, b = series.points.back().x;
      chart.strokes.push_back({a, s.fit->at(a), b, s.fit->at(b), "", "fit"});
    }
    chart.series.push_back(std::move(series));
  }
  if (sizes.size() <= 8)
    for (double n : sizes) chart.x.ticks.emplace_back(n, fmt::format("{}", static_cast<int64_t>(n)));
  return html_figure(
      "Time over N", chart.svg(), chart_legend(legend),
      "Both axes are logarithmic. Dotted: the power law of least squares; its exponent with the 95% "
      "interval stands in the legend. Whiskers are 95% intervals of the medians.");
}

// ---- roofline
// --------------------------------------------------------------------------------------------------

/// "cpu/f32/2/gemm" in parts.
std::vector<std::string> parts_of(const std::string& key) {
  std::vector<std::string> parts(1);
  for (char c : key)
    if (c == '/')
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

bool is_number(const std::string& s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// A ceiling's key without device and threads; false where it is of another device or number of threads.
bool ceiling_of(const std::string& key, const std::string& device, const std::string& threads,
                std::string& rest) {
  std::vector<std::string> parts = parts_of(key);
  if (parts.front() != device) return false;
  rest.clear();
  for (size_t i = 1; i < parts.size(); ++i) {
    if (is_number(parts[i])) {
      if (!threads.empty() && parts[i] != threads) return false;
      continue;
    }
    rest += (rest.empty() ? "" : " ") + parts[i];
  }
  return true;
}

std::string roofline_figure(const RunResult& run, const std::string& device, Styles& styles) {
  XyChart chart;
  chart.title = "Roofline of " + device;
  chart.x = {.title = "FLOP per byte", .log = true};
  chart.y = {.title = "GFLOP/s", .log = true};
  std::map<std::string, ChartSeries> by_base;
  std::vector<std::string> order;
  std::set<std::string> dtypes;
  double x_low = INFINITY, x_high = 0;
  for (const CaseResult& c : run.cases) {
    if (!c.bound || c.status != CaseStatus::ok || c.spec.device != device) continue;
    if (!(c.bound->intensity > 0) || !(c.bound->gflops > 0)) continue;
    const std::string base = Styles::base(c);
    if (!by_base.contains(base)) order.push_back(base);
    ChartSeries& s = by_base[base];
    s.name = base, s.style = styles.of(base), s.line = false;
    s.points.push_back({c.bound->intensity, c.bound->gflops, NAN, NAN,
                        fmt::format("{}\n{} GFLOP/s at {} FLOP per byte, {:.0f}% of the {} ceiling",
                                    c.spec.name, figure4(c.bound->gflops), figure4(c.bound->intensity),
                                    c.bound->percent_of_ceiling, c.bound->bound_by)});
    dtypes.insert(std::string(name(c.spec.problem.dtype)));
    x_low = std::min(x_low, c.bound->intensity), x_high = std::max(x_high, c.bound->intensity);
  }
  if (order.empty()) return "";
  for (const std::string& base : order) chart.series.push_back(by_base[base]);

  const auto threads_at = run.environment.values.find("threads");
  const std::string threads = threads_at != run.environment.values.end() ? threads_at->second.str() : "";
  std::string note = "The results hold no ceilings for these cases.";
  double peak = 0, memory = 0;
  std::map<std::string, double> compute, bandwidth;
  for (const auto& [key, rate] : run.roofline.gflops) {
    std::string rest;
    if (!ceiling_of(key, device, threads, rest) || !(rate > 0)) continue;
    if (!dtypes.contains(rest.substr(0, rest.find(' ')))) continue;
    compute[rest] = rate;
    if (rest.find(' ') == std::string::npos) peak = std::max(peak, rate);
  }
  for (const auto& [key, rate] : run.roofline.gbytes_per_s) {
    std::string rest;
    if (!ceiling_of(key, device, threads, rest) || !(rate > 0)) continue;
    bandwidth[rest] = rate;
    if (rest.empty()) memory = rate;
  }
  if (peak > 0 && memory > 0) {
    // From where memory binds to where products do, whatever side the cases are on.
    x_low = std::min(x_low, peak / memory) / 2.5, x_high = std::max(x_high, peak / memory) * 2.5;
    chart.x.from = x_low, chart.x.to = x_high;
    chart.y.to = peak * 1.6;
    // Labels of ceilings a few percent apart would lie on one another; the dashed ones are told below.
    std::string dashed;
    const auto tell = [&dashed](const std::string& what, double rate, const char* unit) {
      dashed += fmt::format("{}{} {} {}", dashed.empty() ? "" : ", ", what, figure4(rate), unit);
    };
    for (const auto& [rest, rate] : bandwidth) {
      const bool main = rest.empty();
      chart.strokes.push_back(
          {x_low, x_low * rate, std::min(peak / rate, x_high), std::min(peak, x_high * rate),
           main ? fmt::format("memory {} GB/s", figure4(rate)) : "", main ? "roof" : "roof2"});
      if (!main) tell(rest, rate, "GB/s");
    }
    for (const auto& [rest, rate] : compute) {
      const bool main = rest.find(' ') == std::string::npos;
      chart.strokes.push_back({rate / memory, rate, x_high, rate,
                               main ? fmt::format("{} {} GFLOP/s", rest, figure4(rate)) : "",
                               main ? "roof" : "roof2", true});
      if (!main) tell(rest, rate, "GFLOP/s");
    }
    note = "Ceilings as measured on this machine" +
           (run.roofline.measured_at.empty() ? "" : " at " + run.roofline.measured_at) + "." +
           (dashed.empty() ? "" : " Dashed: " + dashed + ".");
  }
  return html_figure("Roofline: " + device, chart.svg(), chart_legend(chart), note);
}

// ---- stages
// ----------------------------------------------------------------------------------------------------

std::string stages_figure(const RunResult& run) {
  BarChart chart;
  chart.title = "Stages";
  chart.axis = {.title = "share of the stages' time", .unit = AxisUnit::share, .from = 0, .to = 1};
  std::vector<std::string> names;
  size_t all = 0;
  for (const CaseResult& c : run.cases) {
    double total = 0;
    for (const StageTime& s : c.stages) total += s.median_s;
    if (c.stages.size() < 2 || !(total > 0)) continue;
    ++all;
    if (chart.rows.size() == kMostRows) continue;
    BarChart::Row row{c.spec.name, {}, NAN, NAN, seconds_text(total)};
    for (const StageTime& s : c.stages) {
      auto it = std::find(names.begin(), names.end(), s.stage);
      if (it == names.end()) it = names.insert(names.end(), s.stage);
      const std::string tip = fmt::format("{}: {}\n{}, {:.0f}%", c.spec.name, s.stage,
                                          seconds_text(s.median_s), 100 * s.median_s / total);
      row.parts.push_back({s.median_s / total, area_class(static_cast<size_t>(it - names.begin())), tip});
      chart.description += fmt::format("{} {}: {:.0f}%. ", c.spec.name, s.stage, 100 * s.median_s / total);
    }
    chart.rows.push_back(std::move(row));
  }
  std::string keys;
  for (size_t i = 0; i < names.size(); ++i)
    keys += fmt::format(
        "<li><svg class=\"key {}\" viewBox=\"0 0 28 14\" aria-hidden=\"true\"><rect class=\"bar\" x=\"6\" "
        "y=\"1\" "
        "width=\"16\" height=\"12\"/></svg>{}</li>",
        area_class(i), html_name(names[i]));
  return html_figure("Stages", chart.svg(), keys.empty() ? "" : "<ul class=\"legend\">" + keys + "</ul>",
                     join_notes({"Timed in a pass of their own; the headline is the whole method.",
                                 left_out(all, chart.rows.size(), "cases")}));
}

// ---- analyses
// --------------------------------------------------------------------------------------------------

double scalar(const AnalysisResult& a, const char* key) {
  const auto it = a.scalars.find(key);
  return it == a.scalars.end() ? NAN : it->second;
}

std::string entropy_figure(const RunResult& run, Styles& styles) {
  BoxChart chart;
  chart.title = "Entropy of the attention rows";
  chart.axis = {.title = "nats", .from = 0};
  size_t all = 0;
  for (const CaseResult& c : run.cases)
    for (const AnalysisResult& a : c.analyses) {
      if (a.analysis != "entropy" || !std::isfinite(scalar(a, "p50_nats"))) continue;
      ++all;
      if (chart.rows.size() == kMostRows) continue;
      const double normalised = scalar(a, "mean_normalised");
      chart.rows.push_back(
          {c.spec.name, scalar(a, "p5_nats"), scalar(a, "p25_nats"), scalar(a, "p50_nats"),
           scalar(a, "p75_nats"), scalar(a, "p95_nats"), scalar(a, "mean_nats"), styles.of(c),
           std::isfinite(normalised) ? fmt::format("{:.0f}% of uniform", 100 * normalised) : ""});
      chart.description += fmt::format("{}: mean {} nats. ", c.spec.name, figure4(scalar(a, "mean_nats")));
    }
  return html_figure(
      "Entropy of the attention rows", chart.svg(), "",
      join_notes({"Line: 5th to 95th percentile of the rows; box: quartiles; stroke: median; diamond: "
                  "mean. At the right the mean share of the entropy that a row of equal weights would have.",
                  left_out(all, chart.rows.size(), "cases")}));
}

/// A curve of an analysis over its index, one chart for each set of axis values, colours by base name.
std::vector<std::string> curve_figures(const RunResult& run, Styles& styles, const std::string& analysis,
                                       const std::string& key, const std::string& caption, const ChartAxis& x,
                                       const ChartAxis& y, const std::string& note) {
  std::vector<std::pair<std::string, XyChart>> facets;
  size_t left = 0;
  for (const CaseResult& c : run.cases)
    for (const AnalysisResult& a : c.analyses) {
      const auto it = a.series.find(key);
      if (a.analysis != analysis || it == a.series.end() || it->second.empty()) continue;
      // Heads of several layers are heat maps.
      if (is_by_head(key) && head_grid(c.spec.problem, it->second.size()).layers > 1) continue;
      const std::string facet = axes_text(c.spec.axes);
      auto f = std::find_if(facets.begin(), facets.end(), [&](const auto& p) { return p.first == facet; });
      if (f == facets.end()) {
        if (facets.size() == kMostFacets) {
          ++left;
          continue;
        }
        XyChart chart;
        chart.title = caption + (facet.empty() ? "" : ", " + facet);
        chart.x = x, chart.y = y;
        chart.height = 260;
        f = facets.insert(facets.end(), {facet, chart});
      }
      ChartSeries s{.name = Styles::base(c), .style = styles.of(c), .points = {}};
      for (size_t i = 0; i < it->second.size(); ++i) {
        const double at = static_cast<double>(i + 1);
        s.points.push_back(
            {at, it->second[i], NAN, NAN,
             fmt::format("{}\n{} {}: {}", c.spec.name, x.title, i + 1, figure4(it->second[i]))});
        // Whole numbers only: layers and heads are counted.
        if (it->second.size() <= 16 && f->second.x.ticks.size() <= i)
          f->second.x.ticks.emplace_back(at, fmt::format("{}", i + 1));
      }
      f->second.series.push_back(std::move(s));
    }
  std::vector<std::string> figures;
  for (const auto& [facet, chart] : facets)
    figures.push_back(html_figure(chart.title, chart.svg(), chart_legend(chart),
                                  figures.empty()
                                      ? join_notes({note, left ? fmt::format("{} further curves are in the "
                                                                             "results file.",
                                                                             left)
                                                               : ""})
                                      : ""));
  return figures;
}

/// Calls f(case, result, values, grid) for the cases whose analysis has a series by head over several layers.
template <class F>
void each_stack(const RunResult& run, const std::string& analysis, const std::string& key, F&& f) {
  for (const CaseResult& c : run.cases)
    for (const AnalysisResult& a : c.analyses) {
      const auto it = a.series.find(key);
      if (a.analysis != analysis || it == a.series.end()) continue;
      const HeadGrid grid = head_grid(c.spec.problem, it->second.size());
      if (grid.layers > 1) f(c, it->second, grid);
    }
}

std::string further_maps(size_t left) {
  return left ? fmt::format("{} further maps are in the results file.", left) : "";
}

/// Heads by layer as a heat map, one for each case.
std::vector<std::string> head_maps(const RunResult& run, const std::string& analysis, const std::string& key,
                                   const std::string& caption, AxisUnit unit, double from, double to,
                                   const std::string& note) {
  std::vector<std::string> figures;
  std::vector<HeatMap> maps;
  size_t left = 0;
  each_stack(run, analysis, key, [&](const CaseResult& c, const std::vector<double>& values, HeadGrid grid) {
    if (maps.size() == kMostFacets) {
      ++left;
      return;
    }
    HeatMap map;
    map.title = caption + ", " + c.spec.name;
    map.x_title = "head", map.y_title = "layer";
    map.unit = unit, map.from = from, map.to = to;
    for (size_t l = 0; l < grid.layers; ++l)
      map.rows.emplace_back(values.begin() + static_cast<std::ptrdiff_t>(l * grid.heads),
                            values.begin() + static_cast<std::ptrdiff_t>((l + 1) * grid.heads));
    maps.push_back(std::move(map));
  });
  for (const HeatMap& map : maps)
    figures.push_back(
        html_figure(map.title, map.svg(), "", figures.empty() ? join_notes({note, further_maps(left)}) : ""));
  return figures;
}

/// The mean over the heads of each layer, with a band from the least to the largest, a line a case.
std::string depth_figure(const RunResult& run, Styles& styles, const std::string& analysis,
                         const std::string& key, const std::string& caption, const ChartAxis& y) {
  XyChart chart;
  chart.title = caption;
  chart.x = {.title = "layer"};
  chart.y = y;
  chart.height = 260;
  each_stack(run, analysis, key, [&](const CaseResult& c, const std::vector<double>& values, HeadGrid grid) {
    ChartSeries s{.name = c.spec.name, .style = styles.of(c), .points = {}, .band = true};
    for (size_t l = 0; l < grid.layers; ++l) {
      double sum = 0, least = INFINITY, most = -INFINITY, count = 0;
      for (size_t h = 0; h < grid.heads; ++h) {
        const double v = values[l * grid.heads + h];
        if (!std::isfinite(v)) continue;
        sum += v, count += 1, least = std::min(least, v), most = std::max(most, v);
      }
      if (count == 0) continue;
      s.points.push_back({static_cast<double>(l), sum / count, least, most,
                          fmt::format("{}\nlayer {}: {} [{}, {}]", c.spec.name, l, figure4(sum / count),
                                      figure4(least), figure4(most))});
      if (grid.layers <= 16 && chart.x.ticks.size() <= l)
        chart.x.ticks.emplace_back(static_cast<double>(l), std::to_string(l));
    }
    if (chart.series.size() < kMostFacets) chart.series.push_back(std::move(s));
  });
  // Layers that one case has and another has not have no fixed ticks.
  for (const ChartSeries& s : chart.series)
    if (s.points.size() > 16) chart.x.ticks.clear();
  return html_figure(
      caption, chart.svg(), chart_legend(chart),
      "The mean over the heads of a layer; the band is from the least to the largest of them.");
}

std::string octave_name(size_t o) {
  return o == 0 ? "below 1" : fmt::format("{:.0f} to {:.0f}", std::exp2(o - 1), std::exp2(o));
}

/// Share of the weight by octave of distance: a bar a case, and one a layer of cases with several.
std::vector<std::string> distance_figures(const RunResult& run) {
  struct Bars {
    BarChart chart;
    size_t octaves = 0;
  };
  std::vector<Bars> all(1);
  all[0].chart.title = "Distance of attention";
  const auto row = [](Bars& bars, const std::string& label, const std::vector<double>& shares) {
    BarChart::Row r{.label = label, .parts = {}, .text = ""};
    for (size_t o = 0; o < shares.size(); ++o)
      r.parts.push_back(
          {shares[o], area_class(o),
           fmt::format("{}, {} tokens: {}", label, octave_name(o), tick_text(shares[o], AxisUnit::share))});
    bars.octaves = std::max(bars.octaves, shares.size());
    bars.chart.rows.push_back(std::move(r));
  };
  for (const CaseResult& c : run.cases)
    for (const AnalysisResult& a : c.analyses) {
      const auto mass = a.series.find("mass_by_octave"), map = a.series.find("octave_map"),
                 heads = a.series.find("head_mean_distance");
      if (a.analysis != "attention_distance" || mass == a.series.end() || mass->second.empty()) continue;
      if (all[0].chart.rows.size() < kMostRows) row(all[0], c.spec.name, mass->second);
      if (map == a.series.end() || heads == a.series.end() || all.size() > kMostFacets) continue;
      const HeadGrid grid = head_grid(c.spec.problem, heads->second.size());
      const size_t octaves = mass->second.size();
      if (grid.layers < 2 || map->second.size() != grid.layers * grid.heads * octaves) continue;
      Bars bars;
      bars.chart.title = "Distance of attention by layer, " + c.spec.name;
      for (size_t l = 0; l < std::min(grid.layers, kMostRows); ++l) {
        std::vector<double> mean(octaves, 0.0);
        for (size_t h = 0; h < grid.heads; ++h)
          for (size_t o = 0; o < octaves; ++o)
            mean[o] += map->second[(l * grid.heads + h) * octaves + o] / static_cast<double>(grid.heads);
        row(bars, fmt::format("layer {}", l), mean);
      }
      all.push_back(std::move(bars));
    }
  std::vector<std::string> figures;
  for (Bars& bars : all) {
    bars.chart.axis = {.title = "share of the weight", .unit = AxisUnit::share, .from = 0, .to = 1};
    std::vector<std::pair<std::string, size_t>> names;
    for (size_t o = 0; o < bars.octaves; ++o) names.emplace_back(octave_name(o), o);
    figures.push_back(html_figure(bars.chart.title, bars.chart.svg(), chart_legend(names, false),
                                  figures.empty() ? "Distances in tokens." : ""));
  }
  return figures;
}

/// Where the sinks lie: heads down, ranges of keys across.
std::vector<std::string> sink_maps(const RunResult& run) {
  std::vector<HeatMap> maps;
  size_t left = 0;
  for (const CaseResult& c : run.cases)
    for (const AnalysisResult& a : c.analyses) {
      const auto map = a.series.find("sink_map"), heads = a.series.find("head_sinks"),
                 keys = a.series.find("key_score");
      if (a.analysis != "sinks" || map == a.series.end() || heads == a.series.end() ||
          heads->second.empty() || map->second.size() % heads->second.size() != 0)
        continue;
      if (maps.size() == kMostFacets) {
        ++left;
        continue;
      }
      const HeadGrid grid = head_grid(c.spec.problem, heads->second.size());
      const size_t count = heads->second.size(), bins = map->second.size() / count;
      HeatMap m;
      m.title = "Sinks, " + c.spec.name;
      m.x_title = "keys, by the first of their range";
      m.y_title = grid.layers > 1 ? "layer.head" : "head";
      m.from = 0;
      for (size_t h = 0; h < count; ++h) {
        m.rows.emplace_back(map->second.begin() + static_cast<std::ptrdiff_t>(h * bins),
                            map->second.begin() + static_cast<std::ptrdiff_t>((h + 1) * bins));
        if (grid.layers > 1) m.row_labels.push_back(fmt::format("{}.{}", h / grid.heads, h % grid.heads));
      }
      if (keys != a.series.end())
        for (size_t k = 0; k < bins; ++k)
          m.column_labels.push_back(std::to_string(k * keys->second.size() / bins));
      maps.push_back(std::move(m));
    }
  std::vector<std::string> figures;
  for (const HeatMap& m : maps)
    figures.push_back(html_figure(
        m.title, m.svg(), "",
        figures.empty()
            ? join_notes(
                  {"The largest mean weight that a key of the range gets from the queries that see it.",
                   further_maps(left)})
            : ""));
  return figures;
}

std::string analyses_section(const RunResult& run, Styles& styles) {
  std::vector<std::string> figures;
  figures.push_back(entropy_figure(run, styles));
  for (std::string& f :
       curve_figures(run, styles, "receptive_field", "fraction_mean", "Receptive field", {.title = "layers"},
                     {.title = "mean share of tokens reached", .unit = AxisUnit::share, .from = 0, .to = 1},
                     "What a token depends on after so many layers of the method, with residual "
                     "connections as the analysis was told."))
    figures.push_back(std::move(f));
  for (std::string& f : curve_figures(
           run, styles, "receptive_field", "covered_distance", "Distance without holes", {.title = "layers"},
           {.title = "tokens", .log = true}, "Every token up to this distance is reached from every token."))
    figures.push_back(std::move(f));
  for (std::string& f :
       curve_figures(run, styles, "attention_distance", "head_mean_distance", "Attention distance by head",
                     {.title = "head"}, {.title = "mean distance, tokens", .from = 0}, ""))
    figures.push_back(std::move(f));
  for (std::string& f : curve_figures(
           run, styles, "spectrum", "magnitude_by_radius", "Spectrum of the feature maps",
           {.title = "radius, cycles over the map"}, {.title = "mean Fourier magnitude", .log = true},
           "The constant part (radius 0) is left out."))
    figures.push_back(std::move(f));
  for (std::string& f :
       curve_figures(run, styles, "spectrum", "head_low_share", "Low frequencies by head", {.title = "head"},
                     {.title = "share of energy", .unit = AxisUnit::share, .from = 0, .to = 1},
                     "Energy inside a quarter of the shorter side."))
    figures.push_back(std::move(f));
  for (std::string& f : curve_figures(run, styles, "energy_decay", "temporal", "Decay over time",
                                      {.title = "frames apart, plus one"},
                                      {.title = "mean weight, same place", .log = true}, ""))
    figures.push_back(std::move(f));
  for (std::string& f :
       curve_figures(run, styles, "entropy", "head_mean_normalised", "Entropy by head", {.title = "head"},
                     {.title = "mean share of uniform", .unit = AxisUnit::share, .from = 0, .to = 1}, ""))
    figures.push_back(std::move(f));
  const ChartAxis share{.title = "mean share of uniform", .unit = AxisUnit::share, .from = 0, .to = 1};
  figures.push_back(depth_figure(run, styles, "entropy", "head_mean_normalised", "Entropy by depth", share));
  figures.push_back(depth_figure(run, styles, "attention_distance", "head_mean_distance", "Distance by depth",
                                 {.title = "mean distance, tokens", .from = 0}));
  for (std::string& f : distance_figures(run)) figures.push_back(std::move(f));
  const auto maps = [&](const char* analysis, const char* key, const char* caption, AxisUnit unit,
                        double from, double to, const char* note) {
    for (std::string& f : head_maps(run, analysis, key, caption, unit, from, to, note))
      figures.push_back(std::move(f));
  };
  maps("entropy", "head_mean_normalised", "Entropy of heads", AxisUnit::share, 0, 1,
       "Mean share of uniform.");
  maps("attention_distance", "head_mean_distance", "Distance of heads", AxisUnit::plain, NAN, NAN,
       "Mean distance in tokens.");
  maps("effective_support", "head_mean_keys_for_mass", "Keys that heads use", AxisUnit::plain, 0, NAN,
       "Keys for the share of the weight that the analysis was told.");
  maps("sinks", "head_first_mass", "Weight on the first keys", AxisUnit::share, 0, NAN, "");
  maps("sinks", "head_sink_mass", "Weight on sinks", AxisUnit::share, 0, NAN, "Sinks other than key 0.");
  maps("pattern_scores", "head_diagonal", "Diagonal heads", AxisUnit::share, 0, NAN, "");
  maps("pattern_scores", "head_previous", "Previous-token heads", AxisUnit::share, 0, NAN, "");
  maps("pattern_scores", "head_vertical", "Vertical heads", AxisUnit::share, 0, NAN, "");
  maps("pattern_scores", "head_induction", "Induction heads", AxisUnit::share, 0, NAN, "");
  maps("map_spectrum", "head_stable_rank", "Stable rank of maps", AxisUnit::plain, NAN, NAN, "");
  maps("map_divergence", "head_nearest_js", "Divergence from the most alike head", AxisUnit::plain, NAN, NAN,
       "Jensen-Shannon, nats.");
  for (std::string& f : sink_maps(run)) figures.push_back(std::move(f));
  std::string out = html_charts(figures);
  for (const auto& [title, table] : analysis_tables(run))
    out += "<details><summary>" + html_escaped(title) + ": table</summary>" +
           html_table(table, {.caption = title}) + "</details>\n";
  return out;
}

// ---- tables
// ----------------------------------------------------------------------------------------------------

std::string claims_section(const RunResult& run) {
  ReportTable t = claim_table(run);
  HtmlTableOptions options{.caption = "Claims: published beside measured"};
  for (const ReportTable::Row& r : t.rows) {
    std::vector<std::string> cells(r.cells.size());
    for (size_t c = 0; c < t.columns.size(); ++c)
      if (t.columns[c].title == "verdict") cells[c] = html_badge(r.cells[c], r.mood);
    options.cells.push_back(std::move(cells));
  }
  for (ReportTable::Row& r : t.rows) r.mood = ReportTable::Mood::plain;  // the badge says it
  return html_table(t, options);
}

std::string cases_section(const RunResult& run) {
  return html_table(case_table(run), {.caption = "Cases", .filter = run.cases.size() > 8});
}

std::string environment_section(const RunResult& run) {
  ReportTable t;
  t.columns = {{"key"}, {"value"}};
  t.rows.push_back({{"machine_id", run.environment.machine_id}});
  for (const auto& [key, value] : run.environment.values) t.rows.push_back({{key, value.str()}});
  t.rows.push_back({{"suite_hash", run.suite_hash}});
  t.rows.push_back({{"started_at", run.started_at}});
  t.rows.push_back({{"finished_at", run.finished_at}});
  std::string out = html_table(t, {.caption = "Environment"});
  ReportTable roofs;
  roofs.columns = {{"ceiling"}, {"rate", true}, {"unit"}};
  for (const auto& [key, rate] : run.roofline.gflops)
    roofs.rows.push_back({{key, figure4(rate), "GFLOP/s"}, ReportTable::Mood::plain, {NAN, rate, NAN}});
  for (const auto& [key, rate] : run.roofline.gbytes_per_s)
    roofs.rows.push_back(
        {{"copy " + key, figure4(rate), "GB/s"}, ReportTable::Mood::plain, {NAN, rate, NAN}});
  if (!roofs.rows.empty())
    out += "<details><summary>Measured ceilings</summary>" +
           html_table(roofs, {.caption = "Measured ceilings"}) + "</details>\n";
  if (!run.suite.resolved_text.empty()) {
    std::string text;
    for (size_t begin = 0; begin < run.suite.resolved_text.size();) {
      const size_t end = std::min(run.suite.resolved_text.find('\n', begin), run.suite.resolved_text.size());
      text += html_escaped(run.suite.resolved_text.substr(begin, end - begin)) + "\n";
      begin = end + 1;
    }
    out +=
        "<details><summary>The suite as resolved</summary><pre tabindex=\"0\">" + text + "</pre></details>\n";
  }
  return out;
}

// ---- the page
// --------------------------------------------------------------------------------------------------

std::string tile(const std::string& value, const std::string& what, const char* mood = "") {
  return fmt::format("<div class=\"tile {}\"><b>{}</b><span>{}</span></div>", mood, html_escaped(value),
                     html_escaped(what));
}

std::string tiles(const RunResult& run) {
  size_t ok = 0, bad = 0, held = 0, outside = 0, verified = 0, sampled = 0, analysed = 0;
  const CaseResult* best = nullptr;
  for (const CaseResult& c : run.cases) {
    ok += c.status == CaseStatus::ok;
    analysed += c.status == CaseStatus::unverified && !c.time && !c.verification && !c.analyses.empty();
    bad += c.status == CaseStatus::failed || c.status == CaseStatus::inconsistent;
    verified += c.verification && c.verification->passed;
    sampled += c.verification && c.verification->passed && c.verification->sampled;
    if (c.status == CaseStatus::ok && c.ratio && (!best || c.ratio->value > best->ratio->value)) best = &c;
  }
  for (const ClaimResult& c : run.claims) {
    using V = ClaimResult::Verdict;
    held += c.verdict == V::holds || c.verdict == V::exact;
    outside += c.verdict == V::outside;
  }
  // Analyses without a measurement: of `attnbench analyze`.
  if (analysed > 0 && analysed == run.cases.size())
    return "<div class=\"tiles\">" + tile(fmt::format("{}", analysed), "analysed only") + "</div>\n";
  std::string out = tile(fmt::format("{} of {}", ok, run.cases.size()), "cases measured", bad ? "bad" : "");
  out += tile(fmt::format("{}", verified),
              "verified against the reference" +
                  (sampled ? fmt::format(", {} by a sample of rows", sampled) : std::string()));
  if (bad) out += tile(fmt::format("{}", bad), "failed or inconsistent", "bad");
  if (best) out += tile(figure4(best->ratio->value) + "x", "best speed-up: " + best->spec.name);
  if (!run.claims.empty())
    out += tile(fmt::format("{} of {}", held, run.claims.size()), "claims hold",
                outside ? "warn"
                : held  ? "good"
                        : "");
  if (run.interrupted) out += tile("interrupted", "before all cases were measured", "warn");
  return "<div class=\"tiles\">" + out + "</div>\n";
}

class HtmlFormat final : public Format {
 public:
  std::string id() const override { return "html"; }
  std::string extension() const override { return ".html"; }
  std::string summary() const override { return "one page with charts, readable offline"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    Styles styles(run);
    Page page;
    page.title = (run.suite.name.empty() ? "results" : run.suite.name) + " - attnbench";
    page.headline = html_name(run.suite.title.empty() ? run.suite.name : run.suite.title);
    page.subtitle = html_name(run.suite.name) + " &middot; " + html_name(machine_line(run));
    page.body = tiles(run);
    const auto section = [&page](const char* id, const char* title, const std::string& body) {
      if (body.empty()) return;
      page.sections.emplace_back(std::string("#") + id, title);
      page.body += html_section(id, title, body);
    };
    std::vector<std::string> charts{speedup_figure(run), scaling_figure(run, styles)};
    std::set<std::string> devices;
    for (const CaseResult& c : run.cases) devices.insert(c.spec.device);
    for (const std::string& d : devices) charts.push_back(roofline_figure(run, d, styles));
    charts.push_back(stages_figure(run));
    section("charts", "Charts", html_charts(charts));
    section("cases", "Cases",
            run.cases.empty() ? "<p class=\"none\">No case was measured.</p>" : cases_section(run));
    section("claims", "Claims", run.claims.empty() ? "" : claims_section(run));
    const ReportTable stages = stage_table(run);
    if (!stages.rows.empty())
      page.body += "<section><details><summary>Stages: table</summary>" +
                   html_table(stages, {.caption = "Stages"}) + "</details></section>\n";
    section("analyses", "Analyses", analyses_section(run, styles));
    std::string notes;
    for (const std::string& note : remarks(run)) notes += "<li>" + html_name(note) + "</li>";
    section("remarks", "Remarks", notes.empty() ? "" : "<ul class=\"remarks\">" + notes + "</ul>");
    section("environment", "Environment", environment_section(run));
    page.foot =
        html_escaped(tally(run)) + "<br>Made by attnbench " + html_escaped(build_info().version) + ".";
    return html_page(page);
  }
};
ATTNBENCH_FORMAT(HtmlFormat);

}  // namespace

}  // namespace attnbench
