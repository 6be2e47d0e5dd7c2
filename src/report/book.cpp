#include "report/book.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "measure/build_info.hpp"
#include "report/markdown.hpp"
#include "report/page.hpp"
#include "report/rows.hpp"

namespace attnbench {

namespace {

using Mood = ReportTable::Mood;
using Verdict = ClaimResult::Verdict;

constexpr BookVerdict kVerdicts[] = {BookVerdict::exact, BookVerdict::within, BookVerdict::outside,
                                     BookVerdict::not_here};
constexpr const char* kUnexplained = "outside, and the suite gives no reason";

std::string figure(double v, size_t digits = 4) {
  return std::isfinite(v) ? fmt::format("{:.{}g}", v, digits) : "?";
}

/// Significant digits that were published, four at least: so many of the measured figure stand beside them.
size_t digits_of(const Claim& c) {
  const std::string mantissa = c.published_text.substr(0, c.published_text.find_first_of("eE"));
  const size_t first = mantissa.find_first_of("123456789");
  if (first == std::string::npos) return 4;
  const auto digits = std::count_if(mantissa.begin() + static_cast<std::ptrdiff_t>(first), mantissa.end(),
                                    [](char x) { return x >= '0' && x <= '9'; });
  return std::clamp<size_t>(static_cast<size_t>(digits), 4, 17);
}

/// What a chapter's table calls its machines: A, B, …; nothing where there is one.
std::string letter(const BookChapter& chapter, size_t m) {
  if (chapter.machines.size() < 2) return "";
  return m < 26 ? std::string(1, static_cast<char>('A' + m)) : fmt::format("machine {}", m + 1);
}

std::string environment(const RunResult& run, const char* key) {
  const auto it = run.environment.values.find(key);
  return it == run.environment.values.end() || it->second.is_null() ? "" : it->second.str();
}

/// The card where one took part, else the processor.
std::string machine_of(const RunResult& run) {
  const bool device = std::any_of(run.cases.begin(), run.cases.end(), [](const CaseResult& c) {
    return c.spec.device != "cpu" && c.status != CaseStatus::skipped;
  });
  const std::string gpu = environment(run, "gpu"), cpu = environment(run, "cpu_model");
  if (device && !gpu.empty()) return gpu;
  if (cpu.empty()) return run.environment.machine_id.empty() ? "unknown machine" : run.environment.machine_id;
  const std::string cores = environment(run, "cores");
  return cores.empty() ? cpu : cpu + ", " + cores + " cores";
}

std::string id_of(const Claim& c) {
  std::string id = c.id;
  for (const auto& [key, v] : c.axes) id += " " + key + "=" + v.str();
  return id;
}

BookClaim described(const Claim& c) {
  BookClaim b;
  b.id = id_of(c);
  const std::string side = c.compare == "at_least" ? ">= " : c.compare == "at_most" ? "<= " : "";
  b.published = side + (c.published_text.empty() ? figure(c.published) : c.published_text);
  b.tolerance = c.tolerance > 0 ? fmt::format("{:.3g}%", 100 * c.tolerance) : side.empty() ? "exact" : "";
  b.where = c.where;
  b.note = c.note;
  return b;
}

BookEntry entry_of(const ClaimResult& r) {
  BookEntry e;
  if (r.verdict == Verdict::not_evaluated) {
    e.reason = r.reason.empty() ? "not evaluated" : r.reason;
    return e;
  }
  e.verdict = r.verdict == Verdict::exact   ? BookVerdict::exact
              : r.verdict == Verdict::holds ? BookVerdict::within
                                            : BookVerdict::outside;
  const size_t digits = digits_of(r.claim);
  e.measured = figure(r.measured, digits);
  if (r.ci_low < r.ci_high)
    e.measured += fmt::format(" [{}, {}]", figure(r.ci_low, digits), figure(r.ci_high, digits));
  return e;
}

/// Title of the paper: of the method that the suite is named after, else of its first case's.
std::string paper_of(const RunResult& run) {
  const Method* found = nullptr;
  for (const Method* m : all_methods())
    if (m->info().id == run.suite.name) found = m;
  for (const CaseResult& c : run.cases)
    for (const Method* m : all_methods())
      if (!found && m->info().id == c.spec.method) found = m;
  if (!found) return "";
  const MethodInfo& i = found->info();
  return i.paper + (i.arxiv.empty() ? "" : ", arXiv " + i.arxiv);
}

void add_run(BookChapter& chapter, const RunResult& run) {
  const size_t column = chapter.machines.size();
  std::string machine = machine_of(run);
  if (std::find(chapter.machines.begin(), chapter.machines.end(), machine) != chapter.machines.end())
    machine += " (" + run.started_at + ")";
  chapter.machines.push_back(machine);
  chapter.revisions.push_back(environment(run, "git_revision"));
  // What the claims came to stands in the chapter's table.
  const std::string all = tally(run);
  chapter.tallies.push_back(all.substr(0, all.find(';')));
  const auto sampled = std::count_if(run.cases.begin(), run.cases.end(), [](const CaseResult& c) {
    return c.verification && c.verification->passed && c.verification->sampled;
  });
  chapter.sampled.push_back(sampled ? fmt::format("{} verified by a sample of rows", sampled) : "");
  const auto claim = [&](const Claim& c) -> BookClaim& {
    const std::string id = id_of(c);
    for (BookClaim& b : chapter.claims)
      if (b.id == id) return b;
    chapter.claims.push_back(described(c));
    return chapter.claims.back();
  };
  const auto put = [&](BookClaim& b, BookEntry e) {
    b.entries.resize(column, {BookVerdict::not_here, "", "not among the claims of this run"});
    if (b.entries.size() == column) b.entries.push_back(std::move(e));
  };
  for (const ClaimResult& r : run.claims) put(claim(r.claim), entry_of(r));
  for (const Claim& c : run.suite.claims) {
    BookClaim& b = claim(c);
    if (b.entries.size() <= column)
      put(b, {BookVerdict::not_here, "", run.interrupted ? "the run was interrupted" : "not evaluated"});
  }
  for (BookClaim& b : chapter.claims)
    b.entries.resize(column + 1, {BookVerdict::not_here, "", "not among the claims of this run"});
}

/// Files by their names: folders of the machine that measured say nothing to a reader of the book.
std::string without_folders(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    const size_t root = word.find('/');
    const bool path = root != std::string::npos && (root == 0 || word[root - 1] == '\'');
    out += path ? word.substr(0, root) + word.substr(word.rfind('/') + 1) : word;
    if (end < text.size()) out += ' ';
    at = end + 1;
  }
  return out;
}

/// Why no machine evaluated a claim: by machine, or once where all say the same.
std::vector<std::string> reasons_of(const BookChapter& chapter, const BookClaim& c) {
  const bool agree = std::all_of(c.entries.begin(), c.entries.end(),
                                 [&](const BookEntry& e) { return e.reason == c.entries[0].reason; });
  std::vector<std::string> reasons;
  for (size_t m = 0; m < c.entries.size(); ++m) {
    if (c.entries[m].reason.empty() || (agree && m > 0)) continue;
    const std::string who = agree ? "" : letter(chapter, m);
    reasons.push_back((who.empty() ? "" : who + ": ") + without_folders(c.entries[m].reason));
  }
  return reasons;
}

/// Why a claim is what it is: the suite's note where it was evaluated; where it was not, the reason, and the
/// note as no more than that.
std::string remark_of(const BookChapter& chapter, const BookClaim& c) {
  // That a card's claim says nothing of a CPU needs no words where the card has answered.
  if (c.verdict() != BookVerdict::not_here)
    return c.note.empty() && c.verdict() == BookVerdict::outside ? kUnexplained : c.note;
  std::string out;
  for (const std::string& reason : reasons_of(chapter, c)) out += (out.empty() ? "" : "; ") + reason;
  if (!c.note.empty()) out += "; note: " + c.note;
  return out;
}

Mood mood_of(BookVerdict v) {
  return v == BookVerdict::outside ? Mood::bad : v == BookVerdict::not_here ? Mood::warn : Mood::good;
}

/// A machine without a figure for what another has evaluated: its cell stays empty.
bool answered_elsewhere(const BookClaim& c, const BookEntry& e) {
  return e.verdict == BookVerdict::not_here && c.verdict() != BookVerdict::not_here;
}

constexpr size_t kFixed = 3;  // columns before the machines

/// `with_why`: a column of its own for it; else it is left to the caller.
ReportTable claims_of(const BookChapter& chapter, bool with_why) {
  ReportTable t;
  t.columns = {{"claim"}, {"published", true}, {"tolerance", true}};
  for (size_t m = 0; m < chapter.machines.size(); ++m) {
    const std::string who = letter(chapter, m);
    t.columns.push_back({who.empty() ? "measured" : "measured on " + who, true});
    t.columns.push_back({who.empty() ? "verdict" : "verdict on " + who});
  }
  t.columns.push_back({"where"});
  if (with_why) t.columns.push_back({"why"});
  for (const BookClaim& c : chapter.claims) {
    ReportTable::Row row;
    row.cells = {c.id, c.published, c.tolerance};
    for (const BookEntry& e : c.entries) {
      row.cells.push_back(e.measured);
      row.cells.emplace_back(answered_elsewhere(c, e) ? "" : name(e.verdict));
    }
    row.cells.push_back(c.where);
    if (with_why) row.cells.push_back(remark_of(chapter, c));
    t.rows.push_back(std::move(row));
  }
  return t;
}

ReportTable contents_of(const Book& book) {
  ReportTable t;
  t.columns = {{"system"}, {"title"}, {"claims", true}};
  for (const BookVerdict v : kVerdicts) t.columns.push_back({std::string(name(v)), true});
  t.columns.push_back({"measured on"});
  for (const BookChapter& c : book.chapters) {
    ReportTable::Row row;
    row.cells = {c.suite, c.title, fmt::format("{}", c.claims.size())};
    row.keys = {NAN, NAN, static_cast<double>(c.claims.size())};
    for (const BookVerdict v : kVerdicts) {
      row.cells.push_back(c.count(v) ? fmt::format("{}", c.count(v)) : "");
      row.keys.push_back(static_cast<double>(c.count(v)));
    }
    std::string machines;
    for (const std::string& m : c.machines) machines += (machines.empty() ? "" : "; ") + m;
    row.cells.push_back(machines);
    row.keys.push_back(NAN);
    t.rows.push_back(std::move(row));
  }
  return t;
}

std::string machines_line(const BookChapter& chapter, size_t m) {
  const std::string who = letter(chapter, m);
  const std::string& revision = chapter.revisions[m];
  return (who.empty() ? "" : who + ": ") + chapter.machines[m] +
         (revision.empty() ? "" : ", revision " + revision) + ": " + chapter.tallies[m] +
         (chapter.sampled[m].empty() ? "" : "; " + chapter.sampled[m]);
}

constexpr const char* kHowToRead =
    "A claim is exact when it equals the published digits, within tolerance when it is near enough as its "
    "suite says, outside otherwise, with the suite's note as the reason, and not reproducible here when no "
    "machine of these results could evaluate it. Outside on one machine counts as outside.";

size_t total(const Book& book, BookVerdict v) {
  size_t n = 0;
  for (const BookChapter& c : book.chapters) n += c.count(v);
  return n;
}

}  // namespace

std::string_view name(BookVerdict v) {
  switch (v) {
    case BookVerdict::exact:
      return "exact";
    case BookVerdict::within:
      return "within tolerance";
    case BookVerdict::outside:
      return "outside";
    case BookVerdict::not_here:
      return "not reproducible here";
  }
  return "";
}

BookVerdict BookClaim::verdict() const {
  const auto any = [this](BookVerdict v) {
    return std::any_of(entries.begin(), entries.end(), [v](const BookEntry& e) { return e.verdict == v; });
  };
  for (const BookVerdict v : {BookVerdict::outside, BookVerdict::within, BookVerdict::exact})
    if (any(v)) return v;
  return BookVerdict::not_here;
}

size_t BookChapter::count(BookVerdict v) const {
  return static_cast<size_t>(
      std::count_if(claims.begin(), claims.end(), [v](const BookClaim& c) { return c.verdict() == v; }));
}

Book make_book(const std::vector<RunResult>& runs) {
  Book book;
  std::set<std::string> covered;
  for (const RunResult& run : runs) {
    auto at = std::find_if(book.chapters.begin(), book.chapters.end(),
                           [&](const BookChapter& c) { return c.suite == run.suite.name; });
    if (at == book.chapters.end()) {
      BookChapter chapter;
      chapter.suite = run.suite.name, chapter.title = run.suite.title, chapter.paper = paper_of(run);
      at = book.chapters.insert(at, std::move(chapter));
    }
    add_run(*at, run);
    covered.insert(run.suite.name);
    for (const CaseResult& c : run.cases)
      for (const Method* m : all_methods())
        if (m->info().id == c.spec.method) covered.insert(m->info().card);
  }
  std::stable_sort(book.chapters.begin(), book.chapters.end(),
                   [](const BookChapter& a, const BookChapter& b) { return a.suite < b.suite; });
  for (const Method* m : all_methods()) {
    const MethodInfo& i = m->info();
    if (i.id == i.card && !i.figures.empty() && !covered.contains(i.card))
      book.missing.emplace_back(i.id, i.title);
  }
  return book;
}

std::string book_html(const Book& book) {
  Page page;
  page.title = "The book of papers - attnbench";
  page.headline = "Published beside measured";
  page.subtitle = html_escaped(fmt::format("{} systems, {} claims", book.chapters.size(), [&] {
    size_t n = 0;
    for (const BookChapter& c : book.chapters) n += c.claims.size();
    return n;
  }()));
  page.body = "<div class=\"tiles\">";
  for (const BookVerdict v : kVerdicts) {
    const char* mood = v == BookVerdict::outside ? "bad" : v == BookVerdict::not_here ? "warn" : "good";
    page.body += fmt::format("<div class=\"tile {}\"><b>{}</b><span>{}</span></div>", mood, total(book, v),
                             html_escaped(std::string(name(v))));
  }
  page.body += "</div>\n";
  page.sections.emplace_back("#contents", "Contents");
  const ReportTable contents = contents_of(book);
  HtmlTableOptions list{.caption = "Systems", .filter = book.chapters.size() > 8};
  for (size_t i = 0; i < book.chapters.size(); ++i) {
    std::vector<std::string> cells(contents.columns.size());
    cells[0] = fmt::format("<a href=\"#c{}\">{}</a>", i, html_name(book.chapters[i].suite));
    list.cells.push_back(std::move(cells));
  }
  page.body += html_section(
      "contents", "Contents",
      "<p>" + html_escaped(kHowToRead) + "</p>" +
          (book.chapters.empty() ? "<p class=\"none\">No results.</p>" : html_table(contents, list)));
  for (size_t i = 0; i < book.chapters.size(); ++i) {
    const BookChapter& c = book.chapters[i];
    std::string body = c.paper.empty() ? "" : "<p>" + html_name(c.paper) + "</p>";
    for (size_t m = 0; m < c.machines.size(); ++m) body += "<p>" + html_name(machines_line(c, m)) + "</p>";
    const ReportTable t = claims_of(c, false);
    HtmlTableOptions options{.caption = "Claims of " + c.suite};
    for (const BookClaim& claim : c.claims) {
      std::vector<std::string> cells(t.columns.size());
      for (size_t m = 0; m < claim.entries.size(); ++m)
        if (const BookEntry& e = claim.entries[m]; !answered_elsewhere(claim, e))
          cells[kFixed + 2 * m + 1] = html_badge(std::string(name(e.verdict)), mood_of(e.verdict));
      if (const std::string why = remark_of(c, claim); !why.empty())
        cells.back() = html_name(claim.where) + "<br><em>" + html_name(why) + "</em>";
      options.cells.push_back(std::move(cells));
    }
    body += c.claims.empty() ? "<p class=\"none\">Its suite claims nothing.</p>" : html_table(t, options);
    page.body +=
        html_section(fmt::format("c{}", i), c.title.empty() ? c.suite : c.suite + ": " + c.title, body);
  }
  if (!book.missing.empty()) {
    std::string items;
    for (const auto& [id, title] : book.missing) items += "<li>" + html_name(id + ": " + title) + "</li>";
    page.sections.emplace_back("#missing", "Without results");
    page.body += html_section("missing", "Without results", "<ul class=\"remarks\">" + items + "</ul>");
  }
  page.foot = "Made by attnbench " + html_escaped(build_info().version) + ".";
  return html_page(page);
}

std::string book_markdown(const Book& book) {
  std::string out = "# Published beside measured\n\n" + std::string(kHowToRead) + "\n\n";
  for (const BookVerdict v : kVerdicts) out += fmt::format("- {}: {}\n", name(v), total(book, v));
  out += "\n" + markdown_table(contents_of(book));
  for (const BookChapter& c : book.chapters) {
    out += "\n## " + markdown_escaped(c.title.empty() ? c.suite : c.suite + ": " + c.title) + "\n\n";
    if (!c.paper.empty()) out += markdown_escaped(c.paper) + "\n\n";
    for (size_t m = 0; m < c.machines.size(); ++m) out += "- " + markdown_escaped(machines_line(c, m)) + "\n";
    out += "\n" + (c.claims.empty() ? "Its suite claims nothing.\n" : markdown_table(claims_of(c, true)));
  }
  if (!book.missing.empty()) {
    out += "\n## Without results\n\n";
    for (const auto& [id, title] : book.missing) out += "- " + markdown_escaped(id + ": " + title) + "\n";
  }
  return out;
}

}  // namespace attnbench
