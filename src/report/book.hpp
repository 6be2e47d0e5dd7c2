// The book of all papers: results of many suites, and of several machines a suite, as one page. Published
// figures beside measured ones, with what became of each claim on each machine and why.
#pragma once
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

/// What became of a claim, on one machine or on all: on all, `outside` on one outweighs the rest, and a claim
/// is `not_here` only where no machine evaluated it.
enum class BookVerdict : uint8_t { exact, within, outside, not_here };
/// "exact", "within tolerance", "outside", "not reproducible here".
std::string_view name(BookVerdict v);

struct BookEntry {
  BookVerdict verdict = BookVerdict::not_here;
  std::string measured;  ///< "1.337 [1.334, 1.349]"; empty: not evaluated
  std::string reason;    ///< why it was not evaluated
};

struct BookClaim {
  std::string id, published, tolerance, where;
  std::string note;                ///< of the suite: the reason for what is outside
  std::vector<BookEntry> entries;  ///< by machine of the chapter
  BookVerdict verdict() const;
};

/// One system: a suite with all results of it.
struct BookChapter {
  std::string suite, title, paper;
  std::vector<std::string> machines;   ///< one a results file, told apart by the start where the same
  std::vector<std::string> revisions;  ///< by machine: git revision that ran; may be empty
  std::vector<std::string> tallies;    ///< by machine: "6 ok, 1 unsupported"
  std::vector<std::string> sampled;    ///< by machine: cases that a sample of rows verified; may be empty
  std::vector<BookClaim> claims;
  size_t count(BookVerdict v) const;
};

struct Book {
  std::vector<BookChapter> chapters;  ///< by suite name
  /// Methods with published figures of which no results were given: id and title.
  std::vector<std::pair<std::string, std::string>> missing;
};

Book make_book(const std::vector<RunResult>& runs);
/// One page that needs nothing else.
std::string book_html(const Book& book);
std::string book_markdown(const Book& book);

}  // namespace attnbench
