#include "analysis/analysis.hpp"

#include <algorithm>

#include "methods/params.hpp"

namespace attnbench {

namespace {

std::vector<std::unique_ptr<Analysis>>& storage() {
  static std::vector<std::unique_ptr<Analysis>> analyses;
  return analyses;
}

}  // namespace

const std::vector<const Analysis*>& all_analyses() {
  // Registration order depends on the linker; sorted by id it does not.
  static std::vector<const Analysis*> sorted;
  if (sorted.size() != storage().size()) {
    sorted.clear();
    for (const auto& a : storage()) sorted.push_back(a.get());
    std::sort(sorted.begin(), sorted.end(),
              [](const Analysis* a, const Analysis* b) { return a->info().id < b->info().id; });
  }
  return sorted;
}

const Analysis& find_analysis(const std::string& id) {
  std::vector<std::string> ids;
  for (const Analysis* a : all_analyses()) {
    if (a->info().id == id) return *a;
    ids.push_back(a->info().id);
  }
  const std::string near = nearest_word(id, ids);
  throw UsageError("unknown analysis '" + id + "'" +
                   (near.empty() ? "; `attnbench list` shows all" : "; did you mean '" + near + "'?"));
}

bool register_analysis(std::unique_ptr<Analysis> a) {
  storage().push_back(std::move(a));
  return true;
}

}  // namespace attnbench
