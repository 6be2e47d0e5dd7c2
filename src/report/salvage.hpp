// What can be saved of a results file that was cut off or damaged: the cases before the damage. Whole files
// are read by results_json.hpp.
#pragma once
#include <string>

#include "measure/results.hpp"

namespace attnbench {

struct Salvage {
  RunResult run;  ///< marked interrupted; claims are gone
  /// A full sentence: what was wrong and how many cases were saved.
  std::string note;
};

/// Reads the part of `text` that is whole. Throws DataError, with the damage's place, when not even the run's
/// head is (environment and suite come before the cases), and for a whole file of something else.
Salvage salvage_results(const std::string& text, const std::string& file);

}  // namespace attnbench
