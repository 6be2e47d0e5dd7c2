// Output formats of results. One format = one file here, registered by one line in it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

/// How a format for people is shown; formats for machines ignore it.
struct FormatOptions {
  bool color = false;
  size_t width = 0;  ///< columns of the terminal; 0: any
};

class Format {
 public:
  virtual ~Format() = default;
  virtual std::string id() const = 0;         ///< "csv"
  virtual std::string extension() const = 0;  ///< ".csv"; empty: never chosen by a file's name
  virtual std::string summary() const = 0;    ///< one line for --help
  /// The whole text, ending with a line break. Everything that comes from suites is escaped for the format.
  virtual std::string write(const RunResult& run, const FormatOptions& options = {}) const = 0;
};

/// Every format linked into the program, by id.
const std::vector<const Format*>& all_formats();
/// Throws UsageError with the nearest id.
const Format& find_format(const std::string& id);
/// By the end of the file's name; throws UsageError with the known ones.
const Format& format_of_file(const std::string& path);
bool register_format(std::unique_ptr<Format> f);
#define ATTNBENCH_FORMAT(Class) \
  static const bool registered_format_##Class = ::attnbench::register_format(std::make_unique<Class>())

}  // namespace attnbench
