#include "report/format.hpp"

#include <algorithm>

#include "kernels/core/error.hpp"
#include "methods/params.hpp"

namespace attnbench {

namespace {
std::vector<std::unique_ptr<Format>>& storage() {
  static std::vector<std::unique_ptr<Format>> formats;
  return formats;
}
}  // namespace

const std::vector<const Format*>& all_formats() {
  // Registration order depends on the linker; sorted by id it does not.
  static std::vector<const Format*> sorted;
  if (sorted.size() != storage().size()) {
    sorted.clear();
    for (const auto& f : storage()) sorted.push_back(f.get());
    std::sort(sorted.begin(), sorted.end(),
              [](const Format* a, const Format* b) { return a->id() < b->id(); });
  }
  return sorted;
}

const Format& find_format(const std::string& id) {
  std::vector<std::string> ids;
  std::string all;
  for (const Format* f : all_formats()) {
    if (f->id() == id) return *f;
    ids.push_back(f->id());
    all += (all.empty() ? "" : ", ") + f->id();
  }
  const std::string near = nearest_word(id, ids);
  throw UsageError("unknown format '" + id + "'" +
                   (near.empty() ? "; valid: " + all : "; did you mean '" + near + "'?"));
}

const Format& format_of_file(const std::string& path) {
  std::string all;
  const Format* longest = nullptr;  // of several that fit: r.bmf.json is no results file
  for (const Format* f : all_formats()) {
    if (f->extension().empty()) continue;
    all += (all.empty() ? "" : ", ") + f->extension();
    if (path.size() <= f->extension().size() || !path.ends_with(f->extension())) continue;
    if (!longest || f->extension().size() > longest->extension().size()) longest = f;
  }
  if (longest) return *longest;
  throw UsageError("the name '" + path + "' tells no format; its end should be one of " + all);
}

bool register_format(std::unique_ptr<Format> f) {
  storage().push_back(std::move(f));
  return true;
}

}  // namespace attnbench
