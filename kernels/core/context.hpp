// Where a method runs: backend, threads, memory, cost ledger and stage marks. One Context serves one thread
// of control; operators parallelise inside.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/cost.hpp"
#include "kernels/core/tensor.hpp"

namespace attnbench {

class Backend;

/// What memory is for; peaks are reported apart.
enum class MemoryClass : uint8_t { input, weight, output, workspace };
inline constexpr int kMemoryClasses = 4;

struct MemoryUse {
  int64_t current[kMemoryClasses] = {};
  int64_t peak[kMemoryClasses] = {};
  int64_t current_total = 0;
  int64_t peak_total = 0;
  int64_t peak_of(MemoryClass c) const { return peak[static_cast<int>(c)]; }
};

/// Receives stage boundaries in a profile pass; the measuring code implements it with its own clock.
class StageSink {
 public:
  virtual ~StageSink() = default;
  virtual void enter(std::string_view stage) = 0;
  virtual void leave(std::string_view stage) = 0;
};

class Context {
 public:
  /// `threads` = 0 takes every core this process may use.
  explicit Context(Backend& backend, int threads = 0);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Backend& backend() { return *backend_; }
  DeviceKind device() const;
  int threads() const { return threads_; }

  /// Uninitialised memory, 64-byte aligned at least. Throws UsageError (sizes that overflow) or OutOfMemory.
  /// Freed blocks go back to an arena by size, so a second run of the same method allocates nothing.
  Tensor allocate(DType dtype, const Shape& shape, MemoryClass use = MemoryClass::workspace);
  Tensor allocate_like(const Tensor& t, MemoryClass use = MemoryClass::workspace) {
    return allocate(t.dtype(), t.shape(), use);
  }
  const MemoryUse& memory() const;
  void reset_memory_peaks();
  /// Refuses allocations that would bring the current total above `bytes` (0: no limit).
  void set_memory_limit(int64_t bytes);
  /// Gives cached blocks back to the system.
  void release_cache();

  CostLedger& cost() { return cost_; }

  class StageScope {
   public:
    StageScope(Context& ctx, std::string_view stage);
    ~StageScope();
    StageScope(const StageScope&) = delete;
    StageScope& operator=(const StageScope&) = delete;

   private:
    Context& ctx_;
    std::string stage_, outer_;
  };
  /// `auto scope = ctx.stage("select");` marks a named part of a method. Free when nobody profiles.
  [[nodiscard]] StageScope stage(std::string_view name) { return StageScope(*this, name); }
  void set_stage_sink(StageSink* sink) { sink_ = sink; }

 private:
  struct Arena;
  Backend* backend_;
  int threads_;
  std::shared_ptr<Arena> arena_;
  CostLedger cost_;
  StageSink* sink_ = nullptr;
  std::string current_stage_;
};

/// Copies between devices or within one; shapes and dtypes must be equal, strides may differ on the CPU.
void copy(Context& ctx, const Tensor& src, const Tensor& dst);

/// Host values, row-major, as a tensor in the context's memory: tables that prepare() makes. Throws
/// UsageError when their number is not the shape's. Doubles are rounded to `dtype` once.
Tensor upload(Context& ctx, const Shape& shape, const std::vector<float>& values);
Tensor upload(Context& ctx, const Shape& shape, const std::vector<int32_t>& values);
Tensor upload(Context& ctx, const Shape& shape, const std::vector<uint8_t>& values);
Tensor upload(Context& ctx, DType dtype, const Shape& shape, const std::vector<double>& values);

}  // namespace attnbench
