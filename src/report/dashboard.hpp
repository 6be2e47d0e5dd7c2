// The history as static pages: an overview, a page a suite and a page a case. Pages are for people; whether a
// run passes is decided by history/gate.hpp.
#pragma once
#include <cstdint>
#include <string>

#include "history/history.hpp"

namespace attnbench {

struct DashboardOptions {
  std::string title = "attnbench";
  std::string branch = {};  ///< empty: every branch
  /// A folder that holds files but no earlier dashboard is refused, unless `force`.
  bool force = false;
};

struct DashboardSummary {
  size_t pages = 0, suites = 0, cases = 0;
  int64_t points = 0, bytes = 0;
  size_t changes = 0;  ///< change points
  size_t removed = 0;  ///< pages of an earlier dashboard whose cases are gone
};

/// Writes index.html, suite-*.html and case-*.html into `folder`, which is made where it is missing. Every
/// page is replaced whole, the overview last; pages of an earlier dashboard that are no longer made are
/// removed. Throws UsageError for a history without points and for a folder of somebody else.
DashboardSummary write_dashboard(const History& history, const std::string& folder,
                                 const DashboardOptions& options);

/// A file's name for a text: "case-hilo_batch_64-1a2b3c4d.html"; the hash keeps names apart that look alike.
std::string page_file(const std::string& kind, const std::string& name, const std::string& identity);

}  // namespace attnbench
