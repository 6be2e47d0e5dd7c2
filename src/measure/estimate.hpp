// What a case will need, found without its memory and without its arithmetic: a dry run on a backend whose
// tensors are address space only and whose operators do nothing.
#pragma once
#include <string>

#include "kernels/core/backend.hpp"
#include "measure/results.hpp"
#include "methods/method.hpp"

namespace attnbench {

struct CaseEstimate {
  Cost formula;  ///< the card's closed form
  Cost counted;  ///< by the ledger of the dry run; equal to zero when there was none
  int64_t published_macs = 0, parameters = 0;
  int64_t inputs = 0, weights = 0, outputs = 0, workspace = 0;  ///< bytes; workspace: the peak
  bool workspace_known = false;                                 ///< false: the dry run was not possible
  bool data_dependent = false;
  /// ok, or why the case cannot be: unsupported (the method says no), failed (the problem or a parameter
  /// makes no sense) or skipped (no machine has that much address space).
  CaseStatus status = CaseStatus::ok;
  std::string reason;

  int64_t total() const { return inputs + weights + outputs + workspace; }
};

/// Operators validate, charge the ledger and stop there; memory is reserved, and only what somebody writes
/// exists. Used to ask for sizes, never for values.
class DryBackend final : public Backend {
 public:
  /// Stands in for a backend of kind `device`: methods may choose by it.
  explicit DryBackend(DeviceKind device = DeviceKind::cpu) : device_(device) {}
  DeviceKind device() const override { return device_; }
  std::string description() const override { return "dry run"; }
  void* allocate_bytes(size_t bytes) override;
  void free_bytes(void* p, size_t bytes) noexcept override;
  void copy_bytes(void* dst, DeviceKind, const void* src, DeviceKind, size_t bytes) override;
  void synchronize() override {}

#define X(op, Args) \
  void op(Context&, const Args&) override {}
  ATTNBENCH_OPERATORS(X)
#undef X

 private:
  DeviceKind device_;
};

/// Never throws for what the method refuses (`status` and `reason` say it); throws UsageError for an unknown
/// method.
CaseEstimate estimate_case(const Case& c);
CaseEstimate estimate_problem(const Method& method, const Problem& problem,
                              const std::map<std::string, Value>& given_params,
                              DeviceKind device = DeviceKind::cpu);

/// Bytes this process may take before the system would swap: `share` of MemAvailable, and never more than the
/// control group's limit leaves. 0 when unknown.
int64_t usable_memory(double share = 0.8);
/// The same of a device: a share of what is free on it now. The rest is for libraries' workspaces.
int64_t usable_memory(Backend& device, double share = 0.9);

}  // namespace attnbench
