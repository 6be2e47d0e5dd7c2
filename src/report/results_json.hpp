// Results as JSON text and back; reports/schema/results.schema.json describes the same text. No file is
// opened here: see atomic_file.hpp and journal.hpp.
//
// What is not finite is written as null. Its true value stands in the member `non_finite` of the case (or of
// the root), a map from JSON Pointer to "nan", "inf" or "-inf", so that reading gives back exactly what was
// written.
#pragma once
#include <string>

#include "measure/results.hpp"

namespace attnbench {

/// The results file: a few lines a case, readable in a diff; ends with a newline.
std::string to_json(const RunResult& run);
/// Reads files of this and every older schema version; members it does not know are ignored. Throws DataError
/// naming `file`, the byte offset, the JSON Pointer and what is wrong.
RunResult run_from_json(const std::string& text, const std::string& file);

/// One case as one line, without the newline: what the journal holds.
std::string case_to_json(const CaseResult& c);
CaseResult case_from_json(const std::string& text, const std::string& file);

}  // namespace attnbench
