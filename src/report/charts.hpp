// Charts as SVG text, drawn here so that pages need no script, no library and no network. Not a plotting
// library: what the pages of this program show, nothing more.
//
// Colours and marks are CSS classes of report/page.cpp (s0, s1, …), so one drawing serves light and dark; a
// series differs from the next by colour and by mark, for readers who do not see the colour. All texts are
// escaped here. Sizes are in units of the view box; pages scale it to their width.
#pragma once
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace attnbench {

enum class AxisUnit : uint8_t { plain, seconds, bytes, share };

struct ChartAxis {
  std::string title;
  bool log = false;
  AxisUnit unit = AxisUnit::plain;
  /// Limits that must be shown; NaN: the data's own.
  double from = NAN, to = NAN;
  /// Where set, these instead of round numbers: place and text.
  std::vector<std::pair<double, std::string>> ticks = {};
};

/// Points that belong together. NaN in y breaks the line.
struct ChartSeries {
  struct Point {
    double x = 0, y = 0;
    double low = NAN, high = NAN;  ///< interval, drawn as a whisker or, with `band`, as an area
    std::string tip;               ///< shown when pointed at
    std::string css = {};          ///< class of its mark instead of the series'
  };
  std::string name;  ///< in the legend; empty: not there
  size_t style = 0;
  std::vector<Point> points;
  bool line = true, marks = true, band = false;
};

/// A straight line from one place to another, with its label at the first (`label_at_end`: second) end.
struct ChartStroke {
  double x0 = 0, y0 = 0, x1 = 0, y1 = 0;
  std::string label;
  std::string css = "roof";  ///< class: roof, roof2, fit, level
  bool label_at_end = false;
};

/// A line across the whole chart.
struct ChartRule {
  double at = 0;
  bool vertical = true;
  std::string label, tip;
  std::string css = "rule";  ///< class: rule, change, moved
};

struct XyChart {
  std::string title, description;  ///< for those who hear the page
  ChartAxis x, y;
  std::vector<ChartSeries> series;
  std::vector<ChartStroke> strokes;
  std::vector<ChartRule> rules;
  double width = 480, height = 330;

  /// Without finite points, an empty string.
  std::string svg() const;
};

/// Horizontal bars, one row a label; several parts a row are stacked.
struct BarChart {
  struct Part {
    double value = 0;
    std::string css;  ///< class: area_class(), good, bad, plain
    std::string tip;
  };
  struct Row {
    std::string label;
    std::vector<Part> parts;
    double low = NAN, high = NAN;  ///< whisker
    std::string text;              ///< right of the label
  };
  std::string title, description;
  ChartAxis axis;
  double origin = 0;  ///< where bars begin; 1 of ratios on a log axis
  std::vector<Row> rows;
  double width = 480;
  std::string svg() const;
};

/// Five-number rows: a line from p5 to p95, a box from p25 to p75, the median and the mean.
struct BoxChart {
  struct Row {
    std::string label;
    double p5 = 0, p25 = 0, p50 = 0, p75 = 0, p95 = 0, mean = NAN;
    size_t style = 0;
    std::string text;
  };
  std::string title, description;
  ChartAxis axis;
  std::vector<Row> rows;
  double width = 480;
  std::string svg() const;
};

/// A matrix as coloured cells, the first row on top, with a key of the colours' ends. NaN is an empty cell.
struct HeatMap {
  std::string title, description;
  std::string x_title, y_title;
  std::vector<std::vector<double>> rows;  ///< equally many columns each
  /// By row and by column, shown where there is room; empty: their numbers from 0.
  std::vector<std::string> row_labels = {}, column_labels = {};
  AxisUnit unit = AxisUnit::plain;
  double from = NAN, to = NAN;  ///< values of the palest and of the full colour; NaN: the data's own
  double width = 480;
  static constexpr size_t kMostCells = 8192;  ///< more are no picture
  /// Without a finite cell, or with too many, an empty string.
  std::string svg() const;
};

/// The class of a style: "s3".
std::string series_class(size_t style);
/// The same for areas, which have no marks: where colours repeat, they are paler.
std::string area_class(size_t style);
/// A list of names with their marks, as HTML; empty of no entries.
std::string chart_legend(const std::vector<std::pair<std::string, size_t>>& entries, bool line = true);
/// The legend of a chart's own series.
std::string chart_legend(const XyChart& chart);

/// Ticks of [low, high], about `count`; log: decades, with 2 and 5 between them where there are few.
std::vector<double> round_ticks(double low, double high, bool log, int count);
/// Round numbers of the unit that tick_text() shows: bytes step in powers of two.
std::vector<double> round_ticks(double low, double high, bool log, int count, AxisUnit unit);
std::string tick_text(double v, AxisUnit unit);

}  // namespace attnbench
