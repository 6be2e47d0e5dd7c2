#include "report/page.hpp"

#include <fmt/core.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <set>

#include "report/page_assets.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

/// FIPS 180-4. The constants are the first 32 bits of the fractional parts of cube and square roots of
/// primes.
std::array<uint8_t, 32> sha256(const std::string& text) {
  static const std::array<uint32_t, 64> k = [] {
    std::array<uint32_t, 64> out{};
    size_t n = 0;
    for (int p = 2; n < out.size(); ++p) {
      bool prime = true;
      for (int d = 2; d * d <= p; ++d) prime = prime && p % d != 0;
      // 64 binary digits of a long double hold the 3 before and the 32 after the point.
      if (prime)
        out[n++] = static_cast<uint32_t>(std::fmod(std::cbrt(static_cast<long double>(p)), 1.0L) * 0x1p32L);
    }
    return out;
  }();
  std::array<uint32_t, 8> h{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::string data = text + '\x80';
  while (data.size() % 64 != 56) data += '\0';
  const uint64_t bits = uint64_t{8} * text.size();
  for (int i = 7; i >= 0; --i) data += static_cast<char>(bits >> (8 * i));
  for (size_t at = 0; at < data.size(); at += 64) {
    std::array<uint32_t, 64> w{};
    for (size_t i = 0; i < 16; ++i)
      for (size_t b = 0; b < 4; ++b) w[i] = w[i] << 8 | static_cast<uint8_t>(data[at + 4 * i + b]);
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) + w[i - 7] +
             (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
    }
    std::array<uint32_t, 8> v = h;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t e = v[4], a = v[0];
      const uint32_t t1 = v[7] + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                          ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
      const uint32_t t2 =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
      v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
    }
    for (size_t i = 0; i < 8; ++i) h[i] += v[i];
  }
  std::array<uint8_t, 32> out{};
  for (size_t i = 0; i < 32; ++i) out[i] = static_cast<uint8_t>(h[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

const char* mood_word(ReportTable::Mood mood) {
  switch (mood) {
    case ReportTable::Mood::good:
      return "good";
    case ReportTable::Mood::warn:
      return "warn";
    case ReportTable::Mood::bad:
      return "bad";
    case ReportTable::Mood::plain:
      break;
  }
  return "plain";
}

// Longer texts may wrap inside their cell.
constexpr size_t kLongCell = 60;

}  // namespace

std::string sha256_base64(const std::string& text) {
  static const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto hash = sha256(text);
  std::string out;
  for (size_t i = 0; i < hash.size(); i += 3) {
    uint32_t three = 0;
    for (size_t b = 0; b < 3; ++b) three = three << 8 | (i + b < hash.size() ? hash[i + b] : 0u);
    for (size_t d = 0; d < 4; ++d) out += i + d <= hash.size() ? digits[three >> (18 - 6 * d) & 63] : '=';
  }
  return out;
}

std::string html_escaped(const std::string& text) {
  std::string out;
  for (char c : printable(text)) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string xml_escaped(const std::string& text) {
  std::string out;
  const std::string s = html_escaped(text);
  for (size_t i = 0; i < s.size(); ++i) {
    const bool outside =
        s.compare(i, 2, "\xef\xbf") == 0 && i + 2 < s.size() && (s[i + 2] == '\xbe' || s[i + 2] == '\xbf');
    if (outside) {
      out += s[i + 2] == '\xbe' ? "\\ufffe" : "\\uffff";
      i += 2;
    } else {
      out += s[i];
    }
  }
  return out;
}

std::string html_name(const std::string& text) { return "<bdi>" + html_escaped(text) + "</bdi>"; }

std::string html_badge(const std::string& word, ReportTable::Mood mood) {
  return fmt::format("<span class=\"badge {}\">{}</span>", mood_word(mood), html_escaped(word));
}

std::string html_page(const Page& page) {
  static const std::string script(page_script());
  static const std::string policy =
      "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
      "script-src 'sha256-" +
      sha256_base64(script) + "'";
  std::string nav;
  for (const auto& [target, text] : page.sections)
    nav += fmt::format("<a href=\"{}\">{}</a>", html_escaped(target), html_escaped(text));
  std::string out =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"" +
      policy +
      "\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<link rel=\"icon\" href=\"data:,\"><title>" +
      html_escaped(page.title) + "</title>\n<style>" + std::string(page_style()) + "</style>\n<script>" +
      script +
      "</script></head>\n<body><a class=\"skip\" href=\"#content\">Skip to the content</a><div "
      "class=\"page\">\n";
  out += "<header>";
  if (!page.crumbs.empty()) out += "<div class=\"crumbs\">" + page.crumbs + "</div>";
  out += "<h1>" + page.headline + "</h1>";
  if (!page.subtitle.empty()) out += "<p class=\"subtitle\">" + page.subtitle + "</p>";
  out += "</header>\n<nav class=\"bar\" aria-label=\"Sections\">" + nav +
         "<button type=\"button\" class=\"theme\" id=\"theme\" hidden>Dark or light</button></nav>\n";
  out += "<main id=\"content\">\n" + page.body + "</main>\n<footer>" + page.foot + "</footer>\n";
  return out + "</div></body></html>\n";
}

std::string html_section(const std::string& id, const std::string& title, const std::string& body) {
  return fmt::format(
      "<section id=\"{0}\" aria-labelledby=\"{0}-head\"><h2 id=\"{0}-head\">{1}</h2>\n{2}</section>\n",
      html_escaped(id), html_escaped(title), body);
}

std::string html_figure(const std::string& caption, const std::string& svg, const std::string& legend,
                        const std::string& note, bool wide) {
  if (svg.empty()) return "";
  std::string out = std::string("<figure") + (wide ? " class=\"wide\"" : "") + "><figcaption>" +
                    html_escaped(caption) + "</figcaption>" + svg + legend;
  if (!note.empty()) out += "<p>" + html_escaped(note) + "</p>";
  return out + "</figure>\n";
}

std::string html_charts(const std::vector<std::string>& figures) {
  std::string all;
  for (const std::string& f : figures) all += f;
  return all.empty() ? "" : "<div class=\"charts\">\n" + all + "</div>\n";
}

std::string html_table(const ReportTable& t, const HtmlTableOptions& options) {
  std::string out;
  const std::string id = "t-" + sha256_base64(options.caption).substr(0, 8);
  if (options.filter) {
    std::string choice;
    for (const std::string& kind : std::set<std::string>(options.kinds.begin(), options.kinds.end()))
      choice += fmt::format("<option value=\"{0}\">{0}</option>", html_escaped(kind));
    if (!choice.empty())
      choice = "<select aria-label=\"Rows to show\"><option value=\"\">all</option>" + choice + "</select>";
    out += fmt::format(
        "<div class=\"tools\" data-for=\"{}\"><input type=\"search\" placeholder=\"Filter rows ( / )\" "
        "aria-label=\"Filter rows of {}\">{}<span data-count=\"\" aria-live=\"polite\"></span></div>\n",
        html_escaped(id), html_escaped(options.caption), choice);
  }
  out += fmt::format(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table class=\"sortable\" "
      "id=\"{}\"><thead><tr>",
      html_escaped(options.caption), html_escaped(id));
  for (const ReportTable::Column& c : t.columns)
    out += fmt::format("<th scope=\"col\"{}>{}</th>", c.right ? " class=\"r\"" : "", html_escaped(c.title));
  out += "</tr></thead>\n<tbody>\n";
  for (size_t r = 0; r < t.rows.size(); ++r) {
    const ReportTable::Row& row = t.rows[r];
    out += "<tr";
    if (row.mood != ReportTable::Mood::plain) out += fmt::format(" class=\"m-{}\"", mood_word(row.mood));
    if (r < options.kinds.size()) out += " data-kind=\"" + html_escaped(options.kinds[r]) + "\"";
    out += ">";
    for (size_t c = 0; c < row.cells.size(); ++c) {
      const std::string& cell = row.cells[c];
      std::string attributes;
      if (t.columns[c].right)
        attributes += " class=\"r\"";
      else if (c > 0 && display_width(cell) > kLongCell)
        attributes += " class=\"long\"";
      if (c < row.keys.size() && std::isfinite(row.keys[c]) && !cell.empty())
        attributes += fmt::format(" data-v=\"{}\"", row.keys[c]);
      else if (c < row.keys.size() && t.columns[c].right)
        attributes += " data-v=\"\"";
      const bool own =
          r < options.cells.size() && c < options.cells[r].size() && !options.cells[r][c].empty();
      const std::string text = own ? options.cells[r][c] : cell.empty() ? "" : html_name(cell);
      out += c == 0 ? fmt::format("<th scope=\"row\"{}>{}</th>", attributes, text)
                    : fmt::format("<td{}>{}</td>", attributes, text);
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

}  // namespace attnbench
