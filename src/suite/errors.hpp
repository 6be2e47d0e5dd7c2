// The errors of one suite file, collected so that all of them are reported together.
#pragma once
#include <string>
#include <vector>

#include "kernels/core/error.hpp"
#include "suite/suite.hpp"

namespace attnbench {

struct SuiteError {
  Place place;
  std::string message;
  std::string str() const { return place.str() + ": " + message; }
  bool operator==(const SuiteError& o) const { return str() == o.str(); }
};

/// Everything that is wrong with a suite, in the order of the file; what() has a line for each.
class SuiteErrors : public UsageError {
 public:
  explicit SuiteErrors(std::vector<SuiteError> errors);
  const std::vector<SuiteError>& errors() const { return errors_; }

 private:
  std::vector<SuiteError> errors_;
};

/// Collects errors; the same message at the same place (axes repeat them) is kept once.
class ErrorList {
 public:
  void add(const Place& place, const std::string& message);
  void add_all(const ErrorList& other);
  bool empty() const { return errors_.empty(); }
  /// Throws SuiteErrors when anything was added.
  void raise() const;

 private:
  std::vector<SuiteError> errors_;
};

}  // namespace attnbench
