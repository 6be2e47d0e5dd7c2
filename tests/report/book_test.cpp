// The book of papers: what becomes of claims over several machines, in HTML and Markdown.
#include "report/book.hpp"

#include "tests/catch.hpp"
#include "tests/report/markup.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;

namespace {

ClaimResult claim(const std::string& id, ClaimResult::Verdict verdict, double measured,
                  const std::string& note = "", const std::string& reason = "") {
  ClaimResult r;
  r.claim.id = id, r.claim.published = 2, r.claim.published_text = "2.00", r.claim.tolerance = 0.15;
  r.claim.where = "Table 1", r.claim.note = note;
  r.verdict = verdict, r.measured = measured, r.reason = reason;
  return r;
}

RunResult run_on(const std::string& machine, std::vector<ClaimResult> claims) {
  RunResult run = sample_run();
  run.interrupted = false;
  run.environment.values = {{"cpu_model", machine}};
  run.claims = std::move(claims);
  run.suite.claims.clear();
  for (const ClaimResult& c : run.claims) run.suite.claims.push_back(c.claim);
  return run;
}

using V = ClaimResult::Verdict;

}  // namespace

TEST_CASE("results of one suite stand side by side, each claim with what became of it") {
  const RunResult first =
      run_on("A", {claim("speed", V::outside, 1.5, "the mask is cached here"), claim("macs", V::exact, 2),
                   claim("gpu", V::not_evaluated, 0, "", "no case ran on cuda")});
  RunResult second =
      run_on("B", {claim("speed", V::holds, 1.9), claim("gpu", V::holds, 2.1), claim("extra", V::exact, 2),
                   claim("file", V::not_evaluated, 0, "", "no EEG file was given")});
  second.environment.values["git_revision"] = std::string("0123abcd-dirty");
  const Book book = make_book({first, second});
  REQUIRE(book.chapters.size() == 1);
  const BookChapter& c = book.chapters[0];
  CHECK(c.machines == std::vector<std::string>{"A", "B"});
  REQUIRE(c.claims.size() == 5);
  for (const BookClaim& b : c.claims) CHECK(b.entries.size() == 2);
  CHECK(c.claims[0].verdict() == BookVerdict::outside);
  CHECK(c.claims[0].entries[1].verdict == BookVerdict::within);
  CHECK(c.claims[1].verdict() == BookVerdict::exact);
  CHECK(c.claims[1].entries[1].reason == "not among the claims of this run");
  CHECK(c.claims[2].verdict() == BookVerdict::within);
  CHECK(c.claims[3].verdict() == BookVerdict::exact);
  CHECK(c.count(BookVerdict::exact) == 2);
  CHECK(c.count(BookVerdict::not_here) == 1);

  const std::string md = book_markdown(book);
  for (const char* text : {"the mask is cached here", "B: no EEG file was given", "measured on B",
                           "A: A: ", "B: B, revision 0123abcd-dirty: ", "2.00", "Table 1"})
    CHECK_THAT(md, ContainsSubstring(text));
  // What one machine has answered needs no excuse of the other.
  CHECK(md.find("no case ran on cuda") == std::string::npos);
  CHECK(markup::count(md, "not reproducible here |") == 1 + 2);  // a head of the summary; "file" on A and B
  const std::string html = book_html(book);
  CHECK(markup::problems(html).empty());
  for (const char* text :
       {"the mask is cached here", "within tolerance", "not reproducible here", "href=\"#c0\""})
    CHECK_THAT(html, ContainsSubstring(text));
}

TEST_CASE("a claim of one device takes the verdict of the machine that has it, in Markdown and on the page") {
  const ClaimResult cpu = claim("cpu-speed", V::holds, 1.9, "on one core");
  ClaimResult elsewhere =
      claim("cpu-speed", V::not_evaluated, 0, "on one core", "case 'a' did not run on cpu");
  for (const bool gpu_first : {true, false}) {
    std::vector<RunResult> runs{run_on("GPU", {elsewhere}), run_on("CPU", {cpu})};
    if (!gpu_first) std::swap(runs[0], runs[1]);
    const Book book = make_book(runs);
    CHECK(book.chapters[0].claims[0].verdict() == BookVerdict::within);
    CHECK(book.chapters[0].count(BookVerdict::not_here) == 0);
    const std::string md = book_markdown(book), html = book_html(book);
    CHECK(markup::count(md, "not reproducible here |") == 1);  // the head of the summary
    CHECK(md.find("did not run on cpu") == std::string::npos);
    CHECK(html.find("did not run on cpu") == std::string::npos);
    CHECK(markup::count(html, ">within tolerance</span>") == 2);  // its tile and its badge
    // The tile alone: no badge calls the claim irreproducible where the other machine has answered.
    CHECK(markup::count(html, ">not reproducible here</span>") == 1);
  }
}

TEST_CASE("the reason of what no machine evaluated comes before the note, once where machines agree") {
  const ClaimResult c = claim("m", V::not_evaluated, 0, "two forwards", "left out by --quick");
  const std::string agreed = book_markdown(make_book({run_on("A", {c}), run_on("B", {c})}));
  CHECK_THAT(agreed, ContainsSubstring("| left out by --quick; note: two forwards |"));
  const ClaimResult other = claim("m", V::not_evaluated, 0, "two forwards",
                                  "the module /home/me/x/lib/libcuda.so is not there, nor /etc/a.json: or");
  const std::string apart = book_markdown(make_book({run_on("A", {c}), run_on("B", {other})}));
  CHECK_THAT(apart, ContainsSubstring("| A: left out by --quick; B: the module libcuda.so is not there, nor "
                                      "a.json: or; note: two forwards |"));
}

TEST_CASE("what is outside without a reason says so; interrupted runs leave claims open") {
  RunResult cut = run_on("A", {claim("speed", V::holds, 2)});
  cut.claims.clear(), cut.interrupted = true;
  CHECK(make_book({cut}).chapters[0].claims[0].entries[0].reason == "the run was interrupted");
  CHECK_THAT(book_markdown(make_book({run_on("A", {claim("speed", V::outside, 1)})})),
             ContainsSubstring("outside, and the suite gives no reason"));
}

TEST_CASE("one machine twice is told apart by its start; chapters are in order; an empty book is a page") {
  RunResult later = run_on("A", {claim("speed", V::holds, 2)});
  later.started_at = "2027-01-01T00:00:00Z";
  RunResult early = later;
  early.suite.name = "abc";
  const Book book = make_book({run_on("A", {claim("speed", V::holds, 2)}), later, early});
  REQUIRE(book.chapters.size() == 2);
  CHECK(book.chapters[0].suite == "abc");
  CHECK(book.chapters[1].machines == std::vector<std::string>{"A", "A (2027-01-01T00:00:00Z)"});
  CHECK(markup::problems(book_html(Book{})).empty());
  CHECK_THAT(book_html(Book{}), ContainsSubstring("No results."));
}

TEST_CASE("nothing of a suite becomes markup in a book") {
  RunResult run = run_on("<b>A</b>", {claim("<script>x</script>", V::outside, 1, "| a \"note\" |")});
  run.suite.title = run.suite.name = "<img src=x>";
  const std::string html = book_html(make_book({run}));
  CHECK(markup::problems(html).empty());
  CHECK(markup::count(html, "<script") == 1);
  CHECK(html.find("<img") == std::string::npos);
}
