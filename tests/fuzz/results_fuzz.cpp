// Results files: reading, saving what is left of damaged ones, schema validation. What was read is written
// and read again, and must be the same.
#include <cstdlib>

#include "fuzz.hpp"
#include "report/json_schema.hpp"
#include "report/results_json.hpp"
#include "report/salvage.hpp"
#include "report/schemas.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace attnbench;
  const std::string text = fuzz::text_of(data, size);
  try {
    const std::string once = to_json(run_from_json(text, "fuzz.json"));
    if (to_json(run_from_json(once, "fuzz.json")) != once) std::abort();
  } catch (const DataError&) {
  }
  try {
    to_json(salvage_results(text, "fuzz.json").run);
  } catch (const DataError&) {
  }
  try {
    validate_json(schemas().at("results"), text);
  } catch (const DataError&) {
  }
  return 0;
}
