#include "report/charts.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "report/page.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

constexpr size_t kColors = 8;  // of page.cpp
constexpr size_t kMarks = 5;
// Texts are 13 units, and 15 where a phone shows 480 units on 358 pixels; 0.56 of it is the mean width of a
// character in the sans-serif faces that browsers choose.
constexpr double kCharacter = 0.56 * 15;

/// A coordinate: tenths of a unit are finer than any screen shows.
std::string num(double v) {
  std::string s = fmt::format("{:.1f}", v);
  if (s.ends_with(".0")) s.resize(s.size() - 2);
  return s == "-0" ? "0" : s;
}

double text_width(const std::string& s) { return kCharacter * static_cast<double>(display_width(s)); }

std::string cut_to_units(const std::string& s, double units) {
  return cut_to(s, static_cast<size_t>(std::max(units / kCharacter, 1.0)));
}

std::string text_at(double x, double y, const std::string& text, const char* css,
                    const char* anchor = "start", const std::string& more = {}) {
  return fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\"{}>{}</text>", css, num(x),
                     num(y), anchor, more, html_escaped(text));
}

std::string tip_of(const std::string& text) {
  if (text.empty()) return "";
  std::string out;  // line breaks of a tip are ours and stay
  size_t begin = 0;
  for (;;) {
    const size_t end = text.find('\n', begin);
    out += html_escaped(text.substr(begin, end - begin));
    if (end == std::string::npos) break;
    out += "\n";
    begin = end + 1;
  }
  return "<title>" + out + "</title>";
}

/// Marks differ where colours repeat, and already between neighbours of the same lightness.
std::string mark_path(size_t style, double x, double y, double r) {
  const auto p = [&](double dx, double dy) { return num(x + dx * r) + " " + num(y + dy * r); };
  switch ((style + style / kColors) % kMarks) {
    case 0:
      return fmt::format("M{}a{} {} 0 1 0 {} 0a{} {} 0 1 0 {} 0z", p(-1, 0), num(r), num(r), num(2 * r),
                         num(r), num(r), num(-2 * r));
    case 1:
      return "M" + p(-0.9, -0.9) + "L" + p(0.9, -0.9) + "L" + p(0.9, 0.9) + "L" + p(-0.9, 0.9) + "z";
    case 2:
      return "M" + p(0, -1.2) + "L" + p(1.15, 0.9) + "L" + p(-1.15, 0.9) + "z";
    case 3:
      return "M" + p(0, -1.3) + "L" + p(1.3, 0) + "L" + p(0, 1.3) + "L" + p(-1.3, 0) + "z";
    default:
      return "M" + p(0, 1.2) + "L" + p(1.15, -0.9) + "L" + p(-1.15, -0.9) + "z";
  }
}

/// Data to view box along one axis.
struct Scale {
  double low = 0, high = 1, begin = 0, end = 1;
  bool log = false;
  double place(double v) const {
    const double a = log ? std::log10(low) : low, b = log ? std::log10(high) : high;
    return begin + ((log ? std::log10(v) : v) - a) / (b - a) * (end - begin);
  }
  bool shows(double v) const { return std::isfinite(v) && (!log || v > 0); }
};

struct Limits {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  bool log = false;
  void add(double v) {
    if (!std::isfinite(v) || (log && v <= 0)) return;
    low = std::min(low, v), high = std::max(high, v);
  }
  bool empty() const { return !(low <= high); }
  /// Room around the data, so that no mark sits on the frame.
  void widen(double share) {
    if (log) {
      const double f = std::max(std::pow(high / low, share), 1.15);
      low /= f, high *= f;
    } else {
      double room = (high - low) * share;
      if (room <= 0) room = std::abs(high) > 0 ? std::abs(high) * 0.1 : 1;
      low -= room, high += room;
    }
  }
};

std::string open_svg(const std::string& title, const std::string& description, double width, double height,
                     const char* css) {
  return fmt::format(
      "<svg class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"><title>{}</title>", css,
      num(width), num(height), html_escaped(title + (description.empty() ? "" : ". " + description)),
      html_escaped(title));
}

/// Drops labels that would touch the one before.
class LabelRow {
 public:
  bool fits(double middle, double width) {
    if (middle - width / 2 < end_) return false;
    end_ = middle + width / 2 + 6;
    return true;
  }

 private:
  double end_ = -1e9;
};

std::vector<std::pair<double, std::string>> ticks_of(const ChartAxis& axis, double low, double high,
                                                     int count) {
  std::vector<std::pair<double, std::string>> out;
  if (!axis.ticks.empty()) {
    for (const auto& t : axis.ticks)
      if (t.first >= low && t.first <= high) out.push_back(t);
    return out;
  }
  for (double v : round_ticks(low, high, axis.log, count, axis.unit))
    out.emplace_back(v, tick_text(v, axis.unit));
  return out;
}

}  // namespace

std::string series_class(size_t style) { return fmt::format("s{}", style % kColors); }

std::string area_class(size_t style) {
  return series_class(style) + (style < kColors ? "" : style < 2 * kColors ? " pale" : " paler");
}

std::vector<double> round_ticks(double low, double high, bool log, int count) {
  std::vector<double> out;
  if (!std::isfinite(low) || !std::isfinite(high) || !(low < high) || (log && low <= 0)) return out;
  if (log) {
    const double decades = std::log10(high / low);
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    const int step = std::max(1, static_cast<int>(std::ceil(decades / count)));
    for (int e = first; e <= last; ++e) {
      for (double m : {1.0, 2.0, 5.0}) {
        const bool wanted = m == 1 ? (e % step == 0 || decades < 2) : decades * 2 < count;
        const double v = m * std::pow(10.0, e);
        if (wanted && v >= low && v <= high) out.push_back(v);
      }
    }
    if (out.size() >= 2) return out;
    out.clear();  // less than a decade: round numbers of a linear axis serve
  }
  const double raw = (high - low) / std::max(count, 1);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double m = raw / power;
  const double step = power * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
  // Counted in steps, so that sums of steps do not drift; zero is plain.
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + step * 1e-9 && out.size() < 64; ++k)
    out.push_back(k == 0 ? 0 : k * step);
  return out;
}

std::vector<double> round_ticks(double low, double high, bool log, int count, AxisUnit unit) {
  if (unit != AxisUnit::bytes || log || !(low < high)) return round_ticks(low, high, log, count);
  const double step = std::exp2(std::ceil(std::log2((high - low) / std::max(count, 1))));
  std::vector<double> out;
  for (double k = std::ceil(low / step); k * step <= high && out.size() < 64; ++k) out.push_back(k * step);
  return out;
}

std::string tick_text(double v, AxisUnit unit) {
  const auto scaled = [v](std::initializer_list<std::pair<double, const char*>> units) {
    for (const auto& [factor, name] : units)
      if (std::abs(v) >= factor * (1 - 1e-9)) return fmt::format("{:.4g}{}", v / factor, name);
    const auto& [factor, name] = *(units.end() - 1);
    return v == 0 ? std::string("0") : fmt::format("{:.4g}{}", v / factor, name);
  };
  switch (unit) {
    case AxisUnit::seconds:
      return scaled({{1, " s"}, {1e-3, " ms"}, {1e-6, " us"}, {1e-9, " ns"}});
    case AxisUnit::bytes:
      return scaled({{1099511627776.0, " TiB"},
                     {1073741824.0, " GiB"},
                     {1048576.0, " MiB"},
                     {1024.0, " KiB"},
                     {1, " B"}});
    case AxisUnit::share:
      return fmt::format("{:.4g}%", 100 * v);
    case AxisUnit::plain:
      break;
  }
  if (v != 0 && std::abs(v) < 1e-3) return fmt::format("{:.3g}", v);
  return scaled({{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e4, " k"}, {1, ""}});
}

std::string chart_legend(const std::vector<std::pair<std::string, size_t>>& entries, bool line) {
  std::string out;
  for (const auto& [name, style] : entries) {
    if (name.empty()) continue;
    out += fmt::format(
        "<li><svg class=\"key {}\" viewBox=\"0 0 28 14\" aria-hidden=\"true\">{}<path class=\"mark\" "
        "d=\"{}\"/></svg>{}</li>",
        series_class(style), line ? "<path class=\"line\" d=\"M0 7H28\"/>" : "", mark_path(style, 14, 7, 4.5),
        html_name(name));
  }
  return out.empty() ? "" : "<ul class=\"legend\">" + out + "</ul>";
}

std::string chart_legend(const XyChart& chart) {
  std::vector<std::pair<std::string, size_t>> entries;
  bool line = false;
  for (const ChartSeries& s : chart.series) {
    entries.emplace_back(s.name, s.style);
    line = line || s.line;
  }
  return chart_legend(entries, line);
}

std::string XyChart::svg() const {
  Limits lx, ly;
  lx.log = x.log, ly.log = y.log;
  for (const ChartSeries& s : series)
    for (const ChartSeries::Point& p : s.points) {
      if ((x.log && !(p.x > 0)) || (y.log && !(p.y > 0)) || !std::isfinite(p.x) || !std::isfinite(p.y))
        continue;
      lx.add(p.x);
      ly.add(p.y), ly.add(p.low), ly.add(p.high);
    }
  if (lx.empty() || ly.empty()) return "";
  lx.add(x.from), lx.add(x.to), ly.add(y.from), ly.add(y.to);
  const Limits data_x = lx, data_y = ly;
  lx.widen(0.04), ly.widen(0.06);
  // A limit that was asked for is the frame itself when the data keep inside.
  if (std::isfinite(x.from) && x.from <= data_x.low) lx.low = x.from;
  if (std::isfinite(x.to) && x.to >= data_x.high) lx.high = x.to;
  if (std::isfinite(y.from) && y.from <= data_y.low) ly.low = y.from;
  if (std::isfinite(y.to) && y.to >= data_y.high) ly.high = y.to;

  const int y_count = static_cast<int>(height / 55), x_count = static_cast<int>(width / 80);
  const auto y_ticks = ticks_of(y, ly.low, ly.high, y_count);
  double left = 20;
  for (const auto& [v, text] : y_ticks) left = std::max(left, text_width(text) + 12);
  const bool labelled_rules = std::any_of(rules.begin(), rules.end(),
                                          [](const ChartRule& r) { return r.vertical && !r.label.empty(); });
  const double top = 26 + (labelled_rules ? 16 : 0), right = width - 12,
               bottom = height - (x.title.empty() ? 26 : 42);
  const Scale sx{lx.low, lx.high, left, right, x.log}, sy{ly.low, ly.high, bottom, top, y.log};

  std::string out = open_svg(title, description, width, height, "chart");
  out += text_at(2, 14, y.title, "axis-title");
  out += text_at((left + right) / 2, height - 6, x.title, "axis-title", "middle");
  for (const auto& [v, text] : y_ticks) {
    const double at = sy.place(v);
    out += fmt::format("<path class=\"grid\" d=\"M{} {}H{}\"/>", num(left), num(at), num(right));
    out += text_at(left - 6, at + 4, text, "tick", "end");
  }
  LabelRow row;
  for (const auto& [v, text] : ticks_of(x, lx.low, lx.high, x_count)) {
    const double at = sx.place(v), w = text_width(text);
    out += fmt::format("<path class=\"grid\" d=\"M{} {}V{}\"/>", num(at), num(top), num(bottom));
    // The outermost labels move inwards rather than out of the picture.
    const double middle = std::clamp(at, w / 2 + 1, std::max(width - w / 2 - 1, w / 2 + 1));
    if (row.fits(middle, w)) out += text_at(middle, bottom + 17, text, "tick", "middle");
  }
  out +=
      fmt::format("<path class=\"frame\" d=\"M{} {}V{}H{}\"/>", num(left), num(top), num(bottom), num(right));

  for (const ChartStroke& s : strokes) {
    if (!sx.shows(s.x0) || !sx.shows(s.x1) || !sy.shows(s.y0) || !sy.shows(s.y1)) continue;
    // Cut to the frame in the chart's own coordinates, where every stroke is straight.
    double ax = sx.place(s.x0), ay = sy.place(s.y0), bx = sx.place(s.x1), by = sy.place(s.y1);
    double t0 = 0, t1 = 1;
    const auto clip = [&](double from, double to, double low, double high) {
      const double d = to - from;
      if (d == 0) {
        if (from < low || from > high) t1 = -1;
        return;
      }
      const double a = (low - from) / d, b = (high - from) / d;
      t0 = std::max(t0, std::min(a, b)), t1 = std::min(t1, std::max(a, b));
    };
    clip(ax, bx, left, right), clip(ay, by, top, bottom);
    if (t0 >= t1) continue;
    const double cx = ax + t0 * (bx - ax), cy = ay + t0 * (by - ay);
    const double dx = ax + t1 * (bx - ax), dy = ay + t1 * (by - ay);
    out += fmt::format("<path class=\"{}\" d=\"M{} {}L{} {}\"/>", s.css, num(cx), num(cy), num(dx), num(dy));
    if (s.label.empty()) continue;
    const double angle = std::atan2(dy - cy, dx - cx) * 180 / M_PI;
    const double tx = s.label_at_end ? dx - 4 : cx + 6, ty = s.label_at_end ? dy : cy;
    out += text_at(tx, ty - 5, s.label, "note", s.label_at_end ? "end" : "start",
                   std::abs(angle) < 0.5
                       ? ""
                       : fmt::format(" transform=\"rotate({} {} {})\"", num(angle), num(tx), num(ty)));
  }
  LabelRow rule_row;
  for (const ChartRule& r : rules) {
    const Scale& scale = r.vertical ? sx : sy;
    if (!scale.shows(r.at)) continue;
    const double at = scale.place(r.at);
    if (at < std::min(scale.begin, scale.end) - 0.1 || at > std::max(scale.begin, scale.end) + 0.1) continue;
    out += fmt::format("<g class=\"{}\">{}", r.css, tip_of(r.tip.empty() ? r.label : r.tip));
    if (r.vertical) {
      out += fmt::format("<path d=\"M{} {}V{}\"/>", num(at), num(top), num(bottom));
      const std::string label = cut_to_units(r.label, 130);
      const double w = text_width(label);
      const double middle = std::clamp(at, left + w / 2, std::max(right - w / 2, left + w / 2));
      if (!label.empty() && rule_row.fits(middle, w))
        out += text_at(middle, top - 5, label, "note", "middle");
    } else {
      out += fmt::format("<path d=\"M{} {}H{}\"/>", num(left), num(at), num(right));
      if (!r.label.empty()) out += text_at(right - 4, at - 5, r.label, "note", "end");
    }
    out += "</g>";
  }
  for (const ChartSeries& s : series) {
    out += fmt::format("<g class=\"{}\">", series_class(s.style));
    if (s.band) {
      std::string upper, lower;
      for (const ChartSeries::Point& p : s.points) {
        if (!sx.shows(p.x) || !sy.shows(p.low) || !sy.shows(p.high)) continue;
        upper += (upper.empty() ? "M" : "L") + num(sx.place(p.x)) + " " + num(sy.place(p.high));
        lower = "L" + num(sx.place(p.x)) + " " + num(sy.place(p.low)) + lower;
      }
      if (!upper.empty()) out += "<path class=\"band\" d=\"" + upper + lower + "z\"/>";
    }
    if (s.line) {
      std::string path;
      bool pen_down = false;
      for (const ChartSeries::Point& p : s.points) {
        if (!sx.shows(p.x) || !sy.shows(p.y)) {
          pen_down = false;
          continue;
        }
        path += (pen_down ? "L" : "M") + num(sx.place(p.x)) + " " + num(sy.place(p.y));
        pen_down = true;
      }
      if (!path.empty()) out += "<path class=\"line\" d=\"" + path + "\"/>";
    }
    if (s.marks) {
      for (const ChartSeries::Point& p : s.points) {
        if (!sx.shows(p.x) || !sy.shows(p.y)) continue;
        const double px = sx.place(p.x), py = sy.place(p.y);
        out += (p.css.empty() ? "<g>" : "<g class=\"" + p.css + "\">") + tip_of(p.tip);
        if (!s.band && sy.shows(p.low) && sy.shows(p.high) && p.high > p.low)
          out += fmt::format("<path class=\"whisker\" d=\"M{} {}V{}M{} {}h6M{} {}h6\"/>", num(px),
                             num(sy.place(p.low)), num(sy.place(p.high)), num(px - 3), num(sy.place(p.low)),
                             num(px - 3), num(sy.place(p.high)));
        out += "<path class=\"mark\" d=\"" + mark_path(s.style, px, py, 3.6) + "\"/></g>";
      }
    }
    out += "</g>";
  }
  return out + "</svg>";
}

namespace {

// A row: its label above its bar, so that long names need no room beside it.
constexpr double kRow = 38, kBar = 14, kRowsTop = 6, kRowsFoot = 42;

/// Frame of charts made of rows: grid, ticks, title; returns the scale.
Scale row_frame(const ChartAxis& axis, Limits limits, double width, double height, std::string& out) {
  const Limits data = limits;
  limits.widen(0.03);
  if (std::isfinite(axis.from) && axis.from <= data.low) limits.low = axis.from;
  if (std::isfinite(axis.to) && axis.to >= data.high) limits.high = axis.to;
  const Scale scale{limits.low, limits.high, 8, width - 14, axis.log};
  const double bottom = height - kRowsFoot;
  LabelRow row;
  for (const auto& [v, text] : ticks_of(axis, limits.low, limits.high, 5)) {
    const double at = scale.place(v), w = text_width(text);
    out += fmt::format("<path class=\"grid\" d=\"M{} {}V{}\"/>", num(at), num(kRowsTop), num(bottom));
    const double middle = std::clamp(at, w / 2 + 1, width - w / 2 - 1);
    if (row.fits(middle, w)) out += text_at(middle, bottom + 17, text, "tick", "middle");
  }
  out += text_at(width / 2, height - 6, axis.title, "axis-title", "middle");
  return scale;
}

std::string row_label(double width, double y, const std::string& label, const std::string& text) {
  const double room = width - 24 - text_width(text);
  return text_at(8, y, cut_to_units(label, room), "row-label") +
         text_at(width - 14, y, text, "row-value", "end");
}

}  // namespace

std::string BarChart::svg() const {
  Limits limits;
  limits.log = axis.log;
  limits.add(origin), limits.add(axis.from), limits.add(axis.to);
  bool any = false;
  for (const Row& r : rows) {
    double sum = axis.log ? 0 : origin;
    for (const Part& p : r.parts) {
      sum += p.value;
      any = any || std::isfinite(p.value);
    }
    limits.add(sum);
    // A whisker far longer than its bar would press all bars together; it is cut at the frame.
    if (std::isfinite(sum) && sum > 0)
      limits.add(std::min(r.high, 2 * sum)), limits.add(std::max(r.low, sum / 2));
  }
  if (!any || limits.empty()) return "";
  const double height = kRowsTop + kRow * static_cast<double>(rows.size()) + kRowsFoot;
  std::string out = open_svg(title, description, width, height, "chart");
  const Scale scale = row_frame(axis, limits, width, height, out);
  const auto place = [&](double v) {
    return std::clamp(scale.shows(v) ? scale.place(v) : scale.begin, scale.begin, scale.end);
  };
  if (origin != 0)
    out += fmt::format("<g class=\"rule\"><path d=\"M{} {}V{}\"/></g>", num(place(origin)), num(kRowsTop),
                       num(height - kRowsFoot));
  double y = kRowsTop;
  for (const Row& r : rows) {
    out += row_label(width, y + 14, r.label, r.text);
    double sum = axis.log ? 0 : origin;
    double from = place(origin);
    for (const Part& p : r.parts) {
      if (!std::isfinite(p.value)) continue;
      sum += p.value;
      const double to = place(sum);
      out += fmt::format("<g>{}<rect class=\"bar {}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></g>",
                         tip_of(p.tip), p.css, num(std::min(from, to)), num(y + 19),
                         num(std::max(std::abs(to - from), 1.0)), num(kBar));
      from = to;
    }
    if (std::isfinite(r.low) && std::isfinite(r.high) && r.high > r.low) {
      const double a = place(r.low), b = place(r.high), middle = y + 19 + kBar / 2;
      out += fmt::format("<path class=\"whisker\" d=\"M{} {}H{}M{} {}v8M{} {}v8\"/>", num(a), num(middle),
                         num(b), num(a), num(middle - 4), num(b), num(middle - 4));
    }
    y += kRow;
  }
  return out + "</svg>";
}

std::string HeatMap::svg() const {
  constexpr size_t kMostTips = 2048;  // a tip is longer than its cell
  const size_t n = rows.size(), m = n ? rows.front().size() : 0;
  if (m == 0 || n > kMostCells / m) return "";
  Limits limits;
  for (const auto& row : rows)
    for (double v : row) limits.add(v);
  if (limits.empty()) return "";
  const double low = std::isfinite(from) ? from : limits.low, high = std::isfinite(to) ? to : limits.high;
  const auto label = [](const std::vector<std::string>& names, size_t i) {
    return i < names.size() ? names[i] : std::to_string(i);
  };
  double left = 20;
  for (size_t i = 0; i < n; ++i) left = std::max(left, text_width(label(row_labels, i)) + 12);
  left = std::min(left, width / 3);
  const double top = 26, right = width - 12, cell_width = (right - left) / static_cast<double>(m);
  // Squares, as far as many rows stay a picture and few are no stripes.
  const double cell_height = std::clamp(cell_width, std::min(6.0, 900.0 / static_cast<double>(n)),
                                        std::clamp(480.0 / static_cast<double>(n), 6.0, 28.0));
  const double bottom = top + cell_height * static_cast<double>(n);
  const double height = bottom + (x_title.empty() ? 26 : 42);

  std::string out = open_svg(title, description, width, height, "chart");
  out += text_at(2, 14, y_title, "axis-title");
  // The key: palest to full colour between its two values.
  const std::string high_text = tick_text(high, unit), low_text = tick_text(low, unit);
  const double key_end = right - text_width(high_text) - 4;
  for (int k = 0; k < 8; ++k)
    out += fmt::format(
        "<rect class=\"heat\" fill-opacity=\"{:.2f}\" x=\"{}\" y=\"5\" width=\"9\" height=\"10\"/>",
        0.04 + 0.96 * k / 7, num(key_end - 9 * (8 - k)));
  out += text_at(key_end + 4, 14, high_text, "tick") + text_at(key_end - 76, 14, low_text, "tick", "end");

  double last = -1e9;
  for (size_t i = 0; i < n; ++i) {
    const double y = top + cell_height * static_cast<double>(i), middle = y + cell_height / 2;
    if (middle - last >= 15) {
      out += text_at(left - 6, middle + 4, cut_to_units(label(row_labels, i), left - 8), "tick", "end");
      last = middle;
    }
    for (size_t j = 0; j < m && j < rows[i].size(); ++j) {
      const double v = rows[i][j];
      const bool there = std::isfinite(v);
      const double share = high > low ? std::clamp((v - low) / (high - low), 0.0, 1.0) : 1.0;
      const std::string tip =
          n * m > kMostTips
              ? ""
              : tip_of(fmt::format("{} {}, {} {}: {}", y_title, label(row_labels, i), x_title,
                                   label(column_labels, j), there ? tick_text(v, unit) : "none"));
      // A step of a hundredth is finer than eyes tell.
      out += fmt::format(
          "<rect class=\"heat{}\" fill-opacity=\"{:.2f}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"",
          there ? "" : " none", there ? 0.04 + 0.96 * share : 0.0,
          num(left + cell_width * static_cast<double>(j)), num(y), num(cell_width), num(cell_height));
      out += tip.empty() ? "/>" : ">" + tip + "</rect>";
    }
  }
  LabelRow row;
  for (size_t j = 0; j < m; ++j) {
    const std::string text = label(column_labels, j);
    const double w = text_width(text), at = left + cell_width * (static_cast<double>(j) + 0.5);
    const double middle = std::clamp(at, w / 2 + 1, std::max(width - w / 2 - 1, w / 2 + 1));
    if (row.fits(middle, w)) out += text_at(middle, bottom + 17, text, "tick", "middle");
  }
  out += text_at((left + right) / 2, height - 6, x_title, "axis-title", "middle");
  return out + fmt::format("<path class=\"frame\" d=\"M{} {}V{}H{}V{}z\"/></svg>", num(left), num(top),
                           num(bottom), num(right), num(top));
}

std::string BoxChart::svg() const {
  Limits limits;
  limits.log = axis.log;
  limits.add(axis.from), limits.add(axis.to);
  bool any = false;
  for (const Row& r : rows)
    for (double v : {r.p5, r.p95, r.p50, r.mean}) {
      limits.add(v);
      any = any || std::isfinite(v);
    }
  if (!any || limits.empty()) return "";
  const double height = kRowsTop + kRow * static_cast<double>(rows.size()) + kRowsFoot;
  std::string out = open_svg(title, description, width, height, "chart");
  const Scale scale = row_frame(axis, limits, width, height, out);
  double y = kRowsTop;
  for (const Row& r : rows) {
    out += row_label(width, y + 14, r.label, r.text);
    const double middle = y + 19 + kBar / 2;
    out += "<g class=\"" + series_class(r.style) + "\">";
    if (scale.shows(r.p5) && scale.shows(r.p95))
      out += fmt::format("<path class=\"line\" d=\"M{} {}H{}\"/>", num(scale.place(r.p5)), num(middle),
                         num(scale.place(r.p95)));
    if (scale.shows(r.p25) && scale.shows(r.p75))
      out += fmt::format("<rect class=\"box\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                         num(scale.place(r.p25)), num(y + 19),
                         num(std::max(scale.place(r.p75) - scale.place(r.p25), 1.0)), num(kBar));
    if (scale.shows(r.p50))
      out += fmt::format("<path class=\"median\" d=\"M{} {}v{}\"/>", num(scale.place(r.p50)), num(y + 18),
                         num(kBar + 2));
    if (scale.shows(r.mean))
      out += "<path class=\"mark\" d=\"" + mark_path(3, scale.place(r.mean), middle, 3.6) + "\"/>";
    out += "</g>";
    y += kRow;
  }
  return out + "</svg>";
}

}  // namespace attnbench
