#include "methods/method.hpp"

#include <algorithm>

namespace attnbench {

namespace {

std::vector<std::unique_ptr<Method>>& storage() {
  static std::vector<std::unique_ptr<Method>> methods;
  return methods;
}

void bind_one(const char* what, const std::vector<TensorSpec>& specs, const TensorMap& given,
              TensorMap& bound) {
  bound.clear();
  std::vector<std::string> names;
  for (const TensorSpec& s : specs) {
    names.push_back(s.name);
    const auto it = given.find(s.name);
    if (it == given.end()) {
      if (s.optional) continue;
      throw DataError(std::string(what) + " '" + s.name + "' " + s.shape.str() + " is missing");
    }
    const Tensor& t = it->second;
    if (!(t.shape() == s.shape))
      throw DataError(std::string(what) + " '" + s.name + "' has shape " + t.shape().str() + ", but " +
                      s.shape.str() + " is wanted");
    if (t.dtype() != s.dtype)
      throw DataError(std::string(what) + " '" + s.name + "' has dtype " + std::string(name(t.dtype())) +
                      ", but " + std::string(name(s.dtype)) + " is wanted");
    bound[s.name] = t;
  }
  for (const auto& [key, tensor] : given) {
    if (std::find(names.begin(), names.end(), key) != names.end()) continue;
    const std::string near = nearest_word(key, names);
    throw DataError(std::string(what) + " '" + key + "' is unknown to the method" +
                    (near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
}

}  // namespace

void Instance::bind(const TensorMap& inputs, const TensorMap& weights) {
  bind_one("input", input_specs_, inputs, inputs_);
  bind_one("weight", weight_specs_, weights, weights_);
}

const std::vector<const Method*>& all_methods() {
  // Registration order depends on the linker; sorted by id it does not.
  static std::vector<const Method*> sorted;
  if (sorted.size() != storage().size()) {
    sorted.clear();
    for (const auto& m : storage()) sorted.push_back(m.get());
    std::sort(sorted.begin(), sorted.end(),
              [](const Method* a, const Method* b) { return a->info().id < b->info().id; });
  }
  return sorted;
}

const Method& find_method(const std::string& id) {
  std::vector<std::string> ids;
  for (const Method* m : all_methods()) {
    if (m->info().id == id) return *m;
    ids.push_back(m->info().id);
  }
  const std::string near = nearest_word(id, ids);
  throw UsageError("unknown method '" + id + "'" +
                   (near.empty() ? "; `attnbench list` shows all" : "; did you mean '" + near + "'?"));
}

bool register_method(std::unique_ptr<Method> m) {
  storage().push_back(std::move(m));
  return true;
}

void require_kind(const MethodInfo& info, const Problem& problem) {
  if (std::find(info.kinds.begin(), info.kinds.end(), problem.kind) == info.kinds.end()) {
    std::string kinds;
    for (ProblemKind k : info.kinds) kinds += (kinds.empty() ? "" : ", ") + std::string(name(k));
    throw Unsupported("method '" + info.id + "' takes problems of kind " + kinds + ", not " +
                      std::string(name(problem.kind)));
  }
  if (std::find(info.dtypes.begin(), info.dtypes.end(), problem.dtype) == info.dtypes.end())
    throw Unsupported("method '" + info.id + "' does not run in " + std::string(name(problem.dtype)));
}

void require_extent(const MethodInfo& info, int64_t value, const char* key) {
  if (value <= 0) throw UsageError("method '" + info.id + "' needs problem." + key);
}

}  // namespace attnbench
