#include "kernels/core/cuda_loader.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>

namespace attnbench {

namespace {

struct Opened {
  Backend* backend = nullptr;
  std::string why;
};

std::filesystem::path module_path() {
  if (const char* forced = std::getenv("ATTNBENCH_CUDA_MODULE")) return forced;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&cuda_backend), &info) && info.dli_fname)
    return std::filesystem::path(info.dli_fname).parent_path() / "libattnbench_cuda.so";
  return "libattnbench_cuda.so";
}

Opened open_module() {
  const std::filesystem::path path = module_path();
  std::error_code ignored;
  if (path.has_parent_path() && !std::filesystem::exists(path, ignored))
    return {nullptr, "the CUDA module " + path.string() +
                         " is not there: this build has no CUDA backend (preset `cuda`)"};
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return {nullptr, std::string("the CUDA module cannot be loaded: ") + dlerror()};
  using Entry = Backend* (*)(const char** why);
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, "attnbench_cuda_backend"));
  if (!entry) return {nullptr, path.string() + " is not attnbench's CUDA module: it has no entry point"};
  const char* why = "";
  Backend* backend = entry(&why);
  return {backend, backend ? "" : why};
}

}  // namespace

Backend* cuda_backend(std::string& why) {
  static std::once_flag once;
  static Opened opened;
  std::call_once(once, [] { opened = open_module(); });
  why = opened.why;
  return opened.backend;
}

}  // namespace attnbench
