#include "suite/errors.hpp"

#include <algorithm>
#include <tuple>

namespace attnbench {

namespace {

std::string joined(const std::vector<SuiteError>& errors) {
  std::string all;
  for (const SuiteError& e : errors) all += (all.empty() ? "" : "\n") + e.str();
  return all;
}

}  // namespace

SuiteErrors::SuiteErrors(std::vector<SuiteError> errors)
    : UsageError(joined(errors)), errors_(std::move(errors)) {}

void ErrorList::add(const Place& place, const std::string& message) {
  const SuiteError e{place, message};
  if (std::find(errors_.begin(), errors_.end(), e) == errors_.end()) errors_.push_back(e);
}

void ErrorList::add_all(const ErrorList& other) {
  for (const SuiteError& e : other.errors_) add(e.place, e.message);
}

void ErrorList::raise() const {
  if (errors_.empty()) return;
  std::vector<SuiteError> sorted = errors_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const SuiteError& a, const SuiteError& b) {
    return std::tie(a.place.line, a.place.column) < std::tie(b.place.line, b.place.column);
  });
  throw SuiteErrors(sorted);
}

}  // namespace attnbench
