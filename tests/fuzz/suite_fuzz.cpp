// Suite files: YAML, expressions, claims. Nothing is run.
#include "fuzz.hpp"
#include "suite/parse.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    attnbench::parse_suite(attnbench::fuzz::text_of(data, size), "fuzz.yaml");
  } catch (const attnbench::UsageError&) {
  }
  return 0;
}
