#include "measure/estimate.hpp"

#include <sys/mman.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "measure/environment.hpp"

namespace attnbench {

void* DryBackend::allocate_bytes(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw OutOfMemory("the address space has no " + std::to_string(bytes) + " bytes in one piece");
  return p;
}

void DryBackend::free_bytes(void* p, size_t bytes) noexcept { munmap(p, bytes); }

void DryBackend::copy_bytes(void* dst, DeviceKind, const void* src, DeviceKind, size_t bytes) {
  std::memcpy(dst, src, bytes);
}

CaseEstimate estimate_problem(const Method& method, const Problem& problem,
                              const std::map<std::string, Value>& given, DeviceKind device) {
  CaseEstimate e;
  DryBackend backend(device);
  Context ctx(backend, 0);
  std::unique_ptr<Instance> instance;
  try {
    check_problem(problem);
    instance =
        method.make(ctx, problem, resolve_params(method.info().id, method.info().params, given, problem));
  } catch (const Unsupported& no) {
    e.status = CaseStatus::unsupported;
    e.reason = no.what();
  } catch (const OutOfMemory& no) {
    e.status = CaseStatus::skipped;
    e.reason = no.what();
  } catch (const std::exception& no) {
    e.status = CaseStatus::failed;
    e.reason = no.what();
  }
  if (e.status != CaseStatus::ok) return e;
  e.outputs = ctx.memory().peak_of(MemoryClass::output);
  const ClosedForm form = instance->cost();
  e.formula = form.cost;
  e.published_macs = form.published_macs;
  e.parameters = form.parameters;
  e.data_dependent = form.data_dependent;
  try {
    const auto bytes = [](const std::vector<TensorSpec>& specs) {
      int64_t sum = 0;
      for (const TensorSpec& s : specs) {
        int64_t bytes = 0;
        if (!s.optional &&
            (__builtin_mul_overflow(s.shape.numel(), static_cast<int64_t>(size_of(s.dtype)), &bytes) ||
             __builtin_add_overflow(sum, bytes, &sum)))
          throw UsageError("tensor '" + s.name + "' " + s.shape.str() +
                           " has more bytes than 64-bit integers count");
      }
      return sum;
    };
    e.inputs = bytes(instance->input_specs());
    e.weights = bytes(instance->weight_specs());
    e.workspace = ctx.memory().peak_of(MemoryClass::workspace);
    // What a data-dependent method allocates follows from values that do not exist here.
    if (form.data_dependent) return e;
    TensorMap inputs, weights;
    for (const TensorSpec& s : instance->input_specs())
      if (!s.optional) inputs[s.name] = ctx.allocate(s.dtype, s.shape, MemoryClass::input);
    for (const TensorSpec& s : instance->weight_specs())
      if (!s.optional) weights[s.name] = ctx.allocate(s.dtype, s.shape, MemoryClass::weight);
    instance->bind(inputs, weights);
    instance->prepare(ctx);
    ctx.cost().reset();
    ctx.cost().set_exact(true);
    instance->run(ctx);
    e.counted = ctx.cost().total();
    e.workspace = ctx.memory().peak_of(MemoryClass::workspace);
    e.workspace_known = true;
  } catch (const std::exception&) {
    // The real run will tell; what is known up to here stands.
  }
  return e;
}

CaseEstimate estimate_case(const Case& c) {
  return estimate_problem(find_method(c.method), c.problem, c.params,
                          c.device == name(DeviceKind::cuda) ? DeviceKind::cuda : DeviceKind::cpu);
}

int64_t usable_memory(double share) {
  int64_t available = proc_kib("/proc/meminfo", "MemAvailable") * 1024;
  // A container's limit binds before the machine's memory does (control groups, version 2).
  std::ifstream max_file("/sys/fs/cgroup/memory.max"), now_file("/sys/fs/cgroup/memory.current");
  int64_t max = 0, now = 0;
  if (max_file >> max && now_file >> now && max > now)
    available = available > 0 ? std::min(available, max - now) : max - now;
  return static_cast<int64_t>(share * static_cast<double>(available));
}

int64_t usable_memory(Backend& device, double share) {
  if (device.device() == DeviceKind::cpu) return usable_memory();
  return static_cast<int64_t>(share * static_cast<double>(device.memory_info().free));
}

}  // namespace attnbench
