// Reads a suite file and resolves it into cases and claims; nothing is run and no memory is allocated here.
//
// Everything that can be known to be wrong is reported at once: SuiteErrors carries each error with its
// place.
#pragma once
#include <string>
#include <vector>

#include "suite/errors.hpp"
#include "suite/suite.hpp"

namespace attnbench {

struct SuiteOptions {
  /// "path=value", applied to the file before it is checked: problem.batch=1, defaults.precision=5%,
  /// cases.hilo.params.alpha=0.5, claims.ID.tolerance=20%, params.alpha=0.5 (every case whose method has it).
  /// A value for a key that an axis sets replaces that axis.
  std::vector<std::string> set;
  /// Globs ("hilo*") or regular expressions ("/hilo|sra/") on the full or the base name of a case; a leading
  /// '-' excludes. A case is kept when any positive pattern matches (or there is none) and no negative one
  /// does.
  std::vector<std::string> filter;
  /// Replaces the suite's devices; cases that name their own keep those of them that are listed here.
  std::vector<std::string> devices;
  /// A fast look: precision 5% at best, at most 1 s a case; `quick` is true in `when`.
  bool quick = false;
};

inline constexpr double kQuickPrecision = 0.05;
inline constexpr double kQuickMaxTimeS = 1.0;
/// Axes multiply; a suite that unfolds into more cases is a mistake.
inline constexpr size_t kMaxCases = 10000;

/// Throws SuiteErrors for what is wrong in the file, DataError when it cannot be read at all.
Suite load_suite(const std::string& path, const SuiteOptions& options = {});
/// The same from text; `file` is what places show and where relative input files are looked for.
Suite parse_suite(const std::string& text, const std::string& file, const SuiteOptions& options = {});

/// Whether a case passes the filters. Throws UsageError for a malformed regular expression.
bool passes_filter(const Case& c, const std::vector<std::string>& filter);

/// The measures a suite may ask for; the default is all.
const std::vector<std::string>& measure_words();

}  // namespace attnbench
