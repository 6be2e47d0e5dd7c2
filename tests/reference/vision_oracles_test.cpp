// The references and methods of the hilo card against what the original code computed (tests/golden/oracles).
// Methods run through the path of `attnbench apply --case`.
#include <filesystem>

#include "inputs/apply.hpp"
#include "reference/compare.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("references and methods of the hilo card equal the original code") {
  const std::string method = GENERATE(as<std::string>{}, "hilo", "msa", "sra", "sra_linear", "window",
                                      "shifted_window", "twins_lsa", "twins_gsa");
  const std::string base = GENERATE(as<std::string>{}, "1", "2");
  const std::string stem = ATTNBENCH_SOURCE_DIR "/tests/golden/oracles/" + method + "/" + base;
  INFO(stem);
  const ApplyRequest request = read_case_file(stem + ".json");
  REQUIRE(request.method == method);
  REQUIRE(request.tolerance <= 1e-5);
  const Params params =
      resolve_params(method, find_method(method).info().params, request.params, request.problem);
  Context ctx(cpu_backend(), 1);
  const RefMap out = find_reference(method)(
      request.problem, params, to_reference(read_safetensors(ctx, request.inputs_file).tensors),
      to_reference(read_safetensors(ctx, request.weights_file).tensors));
  const RefMap want = to_reference(read_safetensors(ctx, stem + ".out.safetensors").tensors);
  REQUIRE(want.size() == out.size());
  // Both computed in double; the file stores singles.
  const Comparison c = compare(out.at("out"), want.at("out"));
  INFO(c.worst);
  CHECK(c.relative_l2 <= epsilon_of(DType::f32));
  CHECK(c.relative_l2 > 0);  // stored as singles: an exact match would mean that nothing was compared
  for (const ApplyCheck& check :
       check_outputs(apply(cpu_backend(), request, 2), stem + ".out.safetensors", request)) {
    INFO("method: " << check.error << ", " << check.worst);
    CHECK(check.passed);
  }
}
