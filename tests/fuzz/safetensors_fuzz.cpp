// .safetensors files.
#include "fuzz.hpp"
#include "inputs/inputs.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/core/context.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace attnbench;
  const fuzz::MemoryFile file(data, size);
  Context host(cpu_backend());
  try {
    read_safetensors(host, file.path());
  } catch (const UsageError&) {
  } catch (const OutOfMemory&) {
  }
  return 0;
}
