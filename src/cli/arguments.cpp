#include "cli/arguments.hpp"

#include <fmt/core.h>

#include <algorithm>

#include "inputs/apply.hpp"
#include "inputs/inputs.hpp"
#include "kernels/core/cuda_loader.hpp"
#include "kernels/core/error.hpp"
#include "methods/params.hpp"
#include "suite/yaml.hpp"

namespace attnbench {

namespace {

std::string trimmed(const std::string& s) {
  const size_t begin = s.find_first_not_of(' ');
  return begin == std::string::npos ? "" : s.substr(begin, s.find_last_not_of(' ') - begin + 1);
}

Value typed(const std::string& text, const std::string& place) {
  const std::string s = trimmed(text);
  if (!s.empty() && s.front() == '[') {
    if (s.back() != ']') throw UsageError(place + ": the list '" + s + "' is not closed by ']'");
    Value::List list;
    const std::string inner = s.substr(1, s.size() - 2);
    for (size_t begin = 0, depth = 0, i = 0; i <= inner.size(); ++i) {
      if (i < inner.size() && inner[i] == '[') ++depth;
      if (i < inner.size() && inner[i] == ']' && depth) --depth;
      if (i < inner.size() && (inner[i] != ',' || depth)) continue;
      const std::string element = trimmed(inner.substr(begin, i - begin));
      begin = i + 1;
      if (element.empty() && i == inner.size() && list.empty()) break;
      if (element.empty()) throw UsageError(place + ": the list '" + s + "' has an empty element");
      list.push_back(typed(element, place));
    }
    return list;
  }
  if (s.size() >= 2 && (s.front() == '"' || s.front() == '\'') && s.back() == s.front())
    return s.substr(1, s.size() - 2);
  std::string problem;
  const Value value = yaml::typed(s, problem);
  if (!problem.empty()) throw UsageError(place + ": " + problem);
  return value;
}

}  // namespace

std::map<std::string, Value> key_values(const std::string& option, const std::vector<std::string>& words) {
  std::map<std::string, Value> out;
  for (const std::string& w : words) {
    const size_t at = w.find('=');
    if (at == std::string::npos || at == 0)
      throw UsageError(option + ": '" + w + "' is not of the form key=value");
    const std::string key = w.substr(0, at);
    if (!out.emplace(key, typed(w.substr(at + 1), option + " " + key)).second)
      throw UsageError(option + ": '" + key + "' is given twice");
  }
  return out;
}

void set_problem(Problem& problem, const std::map<std::string, Value>& keys) {
  for (const auto& [key, value] : keys) {
    if (key == "inputs" || key == "inputs.generator") {
      problem.inputs.generator = value.str();
    } else if (key == "inputs.file") {
      problem.inputs.file = value.str();
    } else if (key.starts_with("inputs.")) {
      problem.inputs.arguments[key.substr(7)] = value;
    } else {
      set_problem_key(problem, key, value);
    }
  }
  for (const auto& [key, value] : problem.inputs.arguments)
    if (!problem.inputs.file.empty() && key != "layer" && key != "first_head")
      throw UsageError("problem.inputs." + key + ": a file takes layer and first_head");
  if (!problem.inputs.arguments.empty() && problem.inputs.generator.empty() && problem.inputs.file.empty())
    throw UsageError("problem.inputs: arguments are given, but no generator (inputs=NAME)");
}

std::vector<std::string> comma_list(const std::string& option, const std::string& text) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    words.push_back(trimmed(text.substr(begin, end - begin)));
    if (words.back().empty()) throw UsageError(option + ": '" + text + "' has an empty word");
    begin = end + 1;
  }
  return words;
}

Problem problem_of_file(const MethodInfo& info, const std::string& file,
                        const std::vector<std::string>& words) {
  const std::map<std::string, Value> keys = key_values("--problem", words);
  Problem p;
  if (file.empty()) {
    p = info.example;
    set_problem(p, keys);
    return p;
  }
  p.kind = info.example.kind;
  set_problem(p, keys);
  Context host(cpu_backend(), 1);
  TensorMap tensors;
  if (file.ends_with(".npy"))
    tensors["x"] = read_npy(host, file);
  else
    tensors = read_safetensors(host, file).tensors;
  const int64_t batch = p.batch;
  infer_problem(p, tensors);
  if (keys.contains("batch") && batch != p.batch)
    throw UsageError(
        fmt::format("--problem batch={} contradicts {}, whose tensors have batch {}", batch, file, p.batch));
  if (!keys.contains("dtype"))
    for (const auto& [name, t] : tensors)
      if (is_float(t.dtype()) && t.dtype() != DType::f64) {
        p.dtype = t.dtype();
        break;
      }
  return p;
}

Backend& backend_of(const std::string& device) {
  if (device == "cpu") return cpu_backend();
  if (device != "cuda") {
    const std::string near = nearest_word(device, {"cpu", "cuda"});
    throw UsageError("unknown device '" + device + "'" +
                     (near.empty() ? "; valid: cpu, cuda" : "; did you mean '" + near + "'?"));
  }
  std::string why;
  Backend* backend = cuda_backend(why);
  if (!backend) throw Unsupported("the device cuda is not usable here: " + why);
  return *backend;
}

}  // namespace attnbench
