// Opening the GPU in a test, or saying in the words that CTest knows why it is skipped. Nothing else.
#pragma once
#include <cstdio>
#include <string>

#include "kernels/core/backend.hpp"
#include "kernels/core/cuda_loader.hpp"

namespace attnbench::testing {

/// The device, or null with the reason on stdout, in the words by which CTest knows a skipped test.
inline Backend* open_device() {
  std::string why;
  Backend* backend = cuda_backend(why);
  if (!backend) std::printf("GPU tests skipped: %s\n", why.c_str());
  return backend;
}

}  // namespace attnbench::testing
