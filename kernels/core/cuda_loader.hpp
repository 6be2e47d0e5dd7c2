// Opens the CUDA backend's module at run time, so that the program starts and works where there is no driver.
#pragma once
#include <string>

#include "kernels/core/backend.hpp"

namespace attnbench {

/// The CUDA backend on the first device, or null with the reason in `why`: module not built, no driver, no
/// device, device too old. Opened once; the module lies beside the kernels library (or where
/// ATTNBENCH_CUDA_MODULE points).
Backend* cuda_backend(std::string& why);

}  // namespace attnbench
