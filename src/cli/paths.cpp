#include "cli/paths.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "kernels/core/error.hpp"
#include "methods/params.hpp"

namespace attnbench {

namespace fs = std::filesystem;

std::optional<fs::path> data_folder() {
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  if (failed) return std::nullopt;
  const fs::path installed = program.parent_path().parent_path() / "share" / "attnbench";
  if (fs::is_directory(installed / "suites", failed)) return installed;
  // A built program lies in <source>/build/<preset>/bin.
  for (fs::path p = program.parent_path(); p.has_relative_path(); p = p.parent_path())
    if (fs::exists(p / "CMakePresets.json", failed) && fs::is_directory(p / "suites", failed)) return p;
  return std::nullopt;
}

std::vector<std::string> bundled_suites() {
  std::vector<std::string> found;
  const auto data = data_folder();
  if (!data) return found;
  std::error_code failed;
  for (fs::recursive_directory_iterator it(*data / "suites", failed), end; !failed && it != end;
       it.increment(failed))
    if (it->is_regular_file() && it->path().extension() == ".yaml")
      found.push_back(it->path().lexically_relative(*data).string());
  std::sort(found.begin(), found.end());
  return found;
}

std::string find_suite_file(const std::string& word) {
  std::error_code failed;
  if (fs::exists(word, failed)) {
    if (fs::is_directory(word, failed)) throw UsageError("'" + word + "' is a folder, not a suite file");
    return word;
  }
  if (word.ends_with(".json")) throw UsageError("there is no file '" + word + "'");
  const std::vector<std::string> suites = bundled_suites();
  std::vector<std::string> names;
  for (const std::string& s : suites) {
    const std::string with = s.substr(std::strlen("suites/"));
    const std::string bare = with.substr(0, with.size() - std::strlen(".yaml"));
    if (word == s || word == with || word == bare) return (*data_folder() / s).string();
    names.insert(names.end(), {s, with, bare});
  }
  const std::string near = nearest_word(word, names);
  throw UsageError("there is no suite file '" + word + "'" +
                   (near.empty() ? "; `attnbench list suites` shows those that come with the program"
                                 : "; did you mean '" + near + "'?"));
}

std::string read_text_file(const std::string& path, size_t limit) {
  std::error_code failed;
  if (fs::is_directory(path, failed)) throw DataError("'" + path + "' is a folder, not a file");
  const std::unique_ptr<FILE, int (*)(FILE*)> f(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!f) throw DataError("cannot read '" + path + "': " + std::strerror(errno));
  std::string text;
  char buffer[1 << 16];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, f.get())) > 0;) {
    text.append(buffer, n);
    if (text.size() > limit)
      throw DataError("'" + path + "' is larger than the " + std::to_string(limit >> 20) +
                      " MiB that are read");
  }
  if (std::ferror(f.get())) throw DataError("cannot read '" + path + "': " + std::strerror(errno));
  return text;
}

}  // namespace attnbench
