// Where the program's own files are: suites and schemas, in the source tree or as installed.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace attnbench {

/// The folder that holds `suites/` and the schemas: <prefix>/share/attnbench of an installed program, the
/// source tree of a built one; none when neither is found.
std::optional<std::filesystem::path> data_folder();

/// The suites that come with the program, sorted, relative to data_folder() ("suites/papers/hilo.yaml").
std::vector<std::string> bundled_suites();

/// `word` when it names a file; else the bundled suite of that name ("quickstart", "papers/hilo.yaml",
/// "suites/quickstart.yaml"), so that an installed program finds its own suites from any directory. Throws
/// UsageError with the nearest name.
std::string find_suite_file(const std::string& word);

/// The text of a file; throws DataError naming it. Folders, and files above `limit` bytes, are refused.
std::string read_text_file(const std::string& path, size_t limit);

}  // namespace attnbench
