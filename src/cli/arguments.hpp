// Command-line words as typed values: key=value pairs, problems, devices. Not the options themselves: those
// are with each command.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/core/backend.hpp"
#include "methods/method.hpp"
#include "methods/problem.hpp"
#include "methods/value.hpp"

namespace attnbench {

/// Splits "key=value" words and types the values as suites do ("3", "0.5", "true", "[14, 14]", text). Throws
/// UsageError naming `option` and the word: no '=', an empty key, a key given twice.
std::map<std::string, Value> key_values(const std::string& option, const std::vector<std::string>& words);

/// Sets problem keys; `inputs=NAME`, `inputs.file=PATH` and `inputs.ARGUMENT=VALUE` choose the inputs.
void set_problem(Problem& problem, const std::map<std::string, Value>& keys);

/// The problem of the tensors in `file` (.safetensors, or .npy for one): what the words of --problem say, and
/// the rest from their shapes and type. No file: the method's example, changed by the words. Does not choose
/// the file as the inputs.
Problem problem_of_file(const MethodInfo& info, const std::string& file,
                        const std::vector<std::string>& words);

/// "f32,bf16" -> words; empty words are refused.
std::vector<std::string> comma_list(const std::string& option, const std::string& text);

/// The backend of "cpu" or "cuda". Throws UsageError for other words and Unsupported with the reason when the
/// device is not usable here.
Backend& backend_of(const std::string& device);

}  // namespace attnbench
