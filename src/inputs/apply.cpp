#include "inputs/apply.hpp"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "reference/compare.hpp"

namespace attnbench {

namespace {

using nlohmann::json;

Value to_value(const json& j, const std::string& where) {
  if (j.is_null()) return Value();
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_unsigned() &&
      j.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    throw DataError(where + ": " + j.dump() + " does not fit 64 bits");
  if (j.is_number_integer()) return j.get<int64_t>();
  if (j.is_number()) return j.get<double>();
  if (j.is_string()) return j.get<std::string>();
  if (j.is_array()) {
    Value::List list;
    for (const json& e : j) list.push_back(to_value(e, where));
    return list;
  }
  throw DataError(where + ": an object is not a value");
}

/// JSON writers print 1.0 as 1 and some print 1 as 1.0: whole doubles are ints where a parameter wants ints.
void match_types(std::map<std::string, Value>& params, const std::vector<ParamSpec>& specs) {
  for (const ParamSpec& s : specs) {
    const auto it = params.find(s.name);
    if (it == params.end() || s.type != ParamSpec::Type::integer || !it->second.is_double()) continue;
    const double d = it->second.as_double();
    if (d == std::floor(d) && std::fabs(d) < 9e15) it->second = static_cast<int64_t>(d);
  }
}

void set_if_unset(int64_t& extent, int64_t value) {
  if (extent == 0) extent = value;
}

}  // namespace

ApplyRequest read_case_file(const std::string& path) {
  std::ifstream f(path);
  if (!f) throw DataError(path + ": cannot be opened");
  json j;
  try {
    j = json::parse(f);
  } catch (const json::exception& e) {
    throw DataError(path + ": not valid JSON: " + e.what());
  }
  if (!j.is_object()) throw DataError(path + ": a case is a JSON object");
  ApplyRequest r;
  try {
    r.method = j.at("method").get<std::string>();
    // Named, because a range-for does not keep alive what a temporary's items() points into.
    const json params = j.value("params", json::object());
    const json absolute = j.value("absolute_tolerance", json::object());
    for (const auto& [key, value] : params.items()) r.params[key] = to_value(value, path + ": params." + key);
    for (const auto& [key, value] : j.at("problem").items()) {
      try {
        set_problem_key(r.problem, key, to_value(value, path + ": problem." + key));
      } catch (const UsageError& e) {
        throw DataError(path + ": " + e.what());
      }
    }
    r.tolerance = j.value("tolerance", 1e-5);
    for (const auto& [key, value] : absolute.items()) r.absolute_tolerance[key] = value.get<double>();
  } catch (const json::exception& e) {
    throw DataError(path + ": " + e.what());
  }
  const std::filesystem::path base = std::filesystem::path(path).replace_extension();
  r.inputs_file = base.string() + ".in.safetensors";
  const std::string weights = base.string() + ".w.safetensors";
  if (std::filesystem::exists(weights)) r.weights_file = weights;
  return r;
}

void infer_problem(Problem& p, const TensorMap& inputs) {
  const auto has = [&inputs](const char* key, int rank) {
    const auto it = inputs.find(key);
    return it != inputs.end() && it->second.rank() == rank ? &it->second : nullptr;
  };
  if (const Tensor* q = has("q", 4)) {
    p.batch = q->dim(0);
    set_if_unset(p.heads, q->dim(1));
    if (p.grid.empty()) set_if_unset(p.length, q->dim(2));
    set_if_unset(p.head_dim, q->dim(3));
    if (const Tensor* k = has("k", 4)) {
      set_if_unset(p.kv_heads, k->dim(1));
      if (p.grid.empty()) set_if_unset(p.kv_length, k->dim(2));
    }
    return;
  }
  for (const char* key : {"x", "X"}) {
    if (const Tensor* x = has(key, 3)) {
      p.batch = x->dim(0);
      set_if_unset(p.channels, x->dim(2));
      if (p.grid.empty()) set_if_unset(p.length, x->dim(1));
    } else if (const Tensor* y = has(key, 4)) {
      p.batch = y->dim(0);
      set_if_unset(p.channels, y->dim(1));
      if (p.size.empty() && p.kind == ProblemKind::image) p.size = {y->dim(2), y->dim(3)};
    }
  }
}

TensorMap apply(Backend& backend, const ApplyRequest& request, int threads) {
  const Method& method = find_method(request.method);
  Problem problem = request.problem;
  if (!request.inputs_file.empty()) problem.inputs = {"", {}, request.inputs_file};
  check_problem(problem);
  std::map<std::string, Value> given = request.params;
  match_types(given, method.info().params);
  const Params params = resolve_params(method.info().id, method.info().params, given, problem);
  Context ctx(backend, threads);
  Context host(cpu_backend(), threads);
  TensorMap out;
  {
    const auto instance = method.make(ctx, problem, params);
    fill_instance(ctx, *instance, problem, request.weights_file);
    instance->prepare(ctx);
    instance->run(ctx);
    backend.synchronize();
    for (const auto& [key, t] : instance->outputs()) out[key] = to_host(host, ctx, t);
    for (const std::string& key : request.extra)
      if (!out.contains(key))
        if (const Tensor t = instance->extra_output(ctx, key)) out[key] = to_host(host, ctx, t);
  }
  return out;
}

std::vector<ApplyCheck> check_outputs(const TensorMap& outputs, const std::string& file,
                                      const ApplyRequest& request) {
  Context host(cpu_backend());
  const TensorFile want = read_safetensors(host, file);
  std::vector<std::string> names;
  for (const auto& [key, t] : outputs) names.push_back(key);
  std::vector<ApplyCheck> checks;
  for (const auto& [key, t] : want.tensors) {
    const auto it = outputs.find(key);
    if (it == outputs.end()) {
      const std::string near = nearest_word(key, names);
      throw DataError(file + ": method '" + request.method + "' has no output '" + key + "'" +
                      (near.empty() ? "" : "; did you mean '" + near + "'?"));
    }
    ApplyCheck c;
    c.tensor = key;
    Comparison found;
    try {
      found = compare(to_reference(it->second), to_reference(t));
    } catch (const DataError& e) {
      throw DataError(file + ": tensor '" + key + "': the method gives " + e.what());
    }
    const auto absolute = request.absolute_tolerance.find(key);
    if (!is_float(t.dtype())) {
      c.absolute = true;
      c.error = found.max_absolute;
      c.tolerance = absolute == request.absolute_tolerance.end() ? 0.0 : absolute->second;
    } else if (absolute != request.absolute_tolerance.end()) {
      c.absolute = true;
      c.error = found.max_absolute;
      c.tolerance = absolute->second;
    } else {
      c.error = found.relative_l2;
      c.tolerance = request.tolerance;
    }
    c.passed = c.error <= c.tolerance;
    c.worst = found.worst;
    checks.push_back(c);
  }
  if (checks.empty()) throw DataError(file + ": holds no tensor to check");
  return checks;
}

}  // namespace attnbench
