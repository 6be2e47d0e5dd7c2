// The references of lightning_attention and mfm against what the methods' original code computed
// (tests/golden/oracles). The methods themselves are checked against the same files through `apply`.
#include <filesystem>

#include "inputs/apply.hpp"
#include "reference/compare.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("references of lightning_attention and mfm equal the original code") {
  const std::string method = GENERATE(as<std::string>{}, "lightning_attention", "mfm");
  const std::string base = GENERATE(as<std::string>{}, "1", "2");
  const std::string stem = ATTNBENCH_SOURCE_DIR "/tests/golden/oracles/" + method + "/" + base;
  INFO(stem);
  const ApplyRequest request = read_case_file(stem + ".json");
  REQUIRE(request.method == method);
  REQUIRE(request.tolerance <= 1e-5);
  const Params params =
      resolve_params(method, find_method(method).info().params, request.params, request.problem);
  Context ctx(cpu_backend(), 1);
  RefMap weights;
  if (!request.weights_file.empty())
    weights = to_reference(read_safetensors(ctx, request.weights_file).tensors);
  const RefMap out = find_reference(method)(
      request.problem, params, to_reference(read_safetensors(ctx, request.inputs_file).tensors), weights);
  RefMap want = to_reference(read_safetensors(ctx, stem + ".out.safetensors").tensors);
  if (std::filesystem::exists(stem + ".aux.safetensors"))
    want.merge(to_reference(read_safetensors(ctx, stem + ".aux.safetensors").tensors));
  for (const auto& [key, tensor] : want) {
    INFO(key);
    REQUIRE(out.contains(key));
    // Both computed in double; the file stores singles.
    const Comparison c = compare(out.at(key), tensor);
    INFO(c.worst);
    CHECK(c.relative_l2 <= epsilon_of(DType::f32));
    CHECK(c.relative_l2 > 0);  // stored as singles: an exact match would mean that nothing was compared
  }
}
