// Every case of tests/golden/oracles (inputs and outputs of the methods' original code) against the method's
// reference and against the method itself, through the path of `attnbench apply --case`. A new folder is
// found by itself.
#include <algorithm>
#include <filesystem>

#include "inputs/apply.hpp"
#include "reference/compare.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
namespace fs = std::filesystem;

namespace {

/// Stems of the cases: "<id>/1.json" beside "<id>/1.out.safetensors". Other tables of a folder have their own
/// tests.
std::vector<std::string> cases() {
  std::vector<std::string> stems;
  for (const auto& entry : fs::recursive_directory_iterator(ATTNBENCH_SOURCE_DIR "/tests/golden/oracles")) {
    const std::string path = entry.path().string();
    if (entry.path().extension() != ".json") continue;
    const std::string stem = path.substr(0, path.size() - 5);
    if (fs::exists(stem + ".out.safetensors")) stems.push_back(stem);
  }
  std::sort(stems.begin(), stems.end());
  return stems;
}

}  // namespace

TEST_CASE("references and methods equal the original code") {
  const std::vector<std::string> stems = cases();
  REQUIRE(stems.size() >= 20);
  for (const std::string& stem : stems) {
    DYNAMIC_SECTION(fs::path(stem).parent_path().filename().string()
                    << ' ' << fs::path(stem).filename().string()) {
      const ApplyRequest request = read_case_file(stem + ".json");
      REQUIRE(request.method == fs::path(stem).parent_path().filename().string());
      REQUIRE(request.tolerance > 0);
      const Params params = resolve_params(request.method, find_method(request.method).info().params,
                                           request.params, request.problem);
      Context ctx(cpu_backend(), 1);
      RefMap inputs, weights;
      if (!request.inputs_file.empty())
        inputs = to_reference(read_safetensors(ctx, request.inputs_file).tensors);
      if (!request.weights_file.empty())
        weights = to_reference(read_safetensors(ctx, request.weights_file).tensors);
      const RefMap out = find_reference(request.method)(request.problem, params, inputs, weights);
      const TensorMap file = read_safetensors(ctx, stem + ".out.safetensors").tensors;
      RefMap want = to_reference(file);
      if (fs::exists(stem + ".aux.safetensors"))  // intermediates: those that the reference has, too
        for (const auto& [key, tensor] :
             to_reference(read_safetensors(ctx, stem + ".aux.safetensors").tensors))
          if (out.contains(key)) want.emplace(key, tensor);
      for (const auto& [key, tensor] : want) {
        INFO("reference, " << key);
        REQUIRE(out.contains(key));
        REQUIRE(out.at(key).shape == tensor.shape);
        const Comparison c = compare(out.at(key), tensor);
        INFO(c.worst);
        if (request.absolute_tolerance.contains(key))
          CHECK(c.max_absolute <= request.absolute_tolerance.at(key));
        else
          CHECK(c.relative_l2 <= request.tolerance);
      }
      for (const ApplyCheck& check :
           check_outputs(apply(cpu_backend(), request, 2), stem + ".out.safetensors", request)) {
        INFO("method, " << check.tensor << ": " << check.error << ", " << check.worst);
        CHECK(check.passed);
      }
    }
  }
}
