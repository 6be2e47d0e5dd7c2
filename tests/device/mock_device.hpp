// A device without hardware: its memory is host memory that traps whoever touches it outside an operator or a
// copy, its clock is told what work takes, and it records graphs. So "never looks at the device's memory" and
// the measuring of devices are tested where there is no GPU.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/attention.hpp"
#include "kernels/attention/merge.hpp"
#include "kernels/attention/reweigh.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/linear_attention/linear_attention.hpp"
#include "kernels/local_linear/local_linear.hpp"
#include "kernels/neighborhood/neighborhood.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/pyramid/pyramid.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/rotary/rotary.hpp"
#include "kernels/routing/routing.hpp"
#include "kernels/scan/scan.hpp"
#include "kernels/select/chunks.hpp"
#include "kernels/select/patterns.hpp"
#include "kernels/select/select.hpp"
#include "kernels/select/tree.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/solve/solve.hpp"
#include "kernels/spans/spans.hpp"
#include "kernels/spectral_loss/spectral_loss.hpp"
#include "kernels/spectral_response/spectral_response.hpp"

namespace attnbench::mock {

class MockDevice final : public Backend {
 public:
  MockDevice() = default;
  ~MockDevice() override {
    if (!region_) return;
    open_memory().region = nullptr;
    munmap(region_, kRegion);
  }
  // ---- what a test sets and sees ----
  int64_t total_bytes = int64_t{4} << 30;
  double now_s = 0;
  /// Seconds that one operator takes, by the device's clock when it begins.
  std::function<double(double now_s)> operator_s = [](double) { return 1e-3; };
  DeviceState state;
  int flushes = 0, operators = 0, replays = 0;
  bool has_library = false;  ///< library_attention does what attention does; otherwise it is unsupported
  std::string running;       ///< the operator that operator_s is asked about

  DeviceKind device() const override { return DeviceKind::cuda; }
  std::string description() const override { return "mock device"; }

  void* allocate_bytes(size_t bytes) override {
    const int64_t size = static_cast<int64_t>(rounded(bytes));
    if (used_ + size > total_bytes)
      throw OutOfMemory("the mock device has no " + std::to_string(bytes) + " bytes left");
    if (!region_) {
      void* r = mmap(nullptr, kRegion, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (r == MAP_FAILED) throw OutOfMemory("mmap gives nothing");
      region_ = next_ = static_cast<char*>(r);
      open_memory().begin(region_);
    }
    if (next_ + rounded(bytes) > region_ + kRegion)
      throw OutOfMemory("the mock device's addresses are used up");
    char* p = std::exchange(next_, next_ + rounded(bytes));
    used_ += size;
    blocks_[p] = rounded(bytes);
    return p;
  }
  // Allocating is allowed within a recording here and not on a real device: the recorded arguments keep their
  // tensors, so the arena lacks blocks that it would have there.
  void free_bytes(void* p, size_t) noexcept override {
    const auto it = blocks_.find(p);
    if (it == blocks_.end()) std::abort();  // not ours, or freed twice
    used_ -= static_cast<int64_t>(it->second);
    madvise(p, it->second, MADV_DONTNEED);
    blocks_.erase(it);
  }
  void copy_bytes(void* dst, DeviceKind to, const void* src, DeviceKind from, size_t bytes) override {
    // Saying "host" for device memory, or the reverse, is what a real device crashes on.
    if (owns(dst) != (to == DeviceKind::cuda) || owns(src) != (from == DeviceKind::cuda))
      throw UsageError("copy_bytes: an address does not belong to the device that was named");
    if (recording_ && (to == DeviceKind::cpu || from == DeviceKind::cpu))
      spoil("a copy between host and device waits within a recording");
    if (bytes == 0) return;
    Work move = [=] { std::memcpy(dst, src, bytes); };
    if (recording_)
      recorded_.emplace_back(std::move(move), false);
    else
      execute(move, false);
  }
  void synchronize() override {
    if (recording_) spoil("the host waits within a recording");
  }

  std::unique_ptr<DeviceTimer> make_timer() override { return std::make_unique<Timer>(*this); }
  void flush_cache() override { ++flushes; }
  DeviceMemory memory_info() override { return {total_bytes - used_, total_bytes}; }
  DeviceFacts facts() override {
    return {"Mock 9000", "13.0", "12.8", "0000:01:00.0", "sm_90", 10, int64_t{1} << 20, total_bytes};
  }
  DeviceState read_state() override { return state; }
  double measure_peak(DevicePeak what, DType dtype, int64_t bytes) override {
    if (what == DevicePeak::multiply_add && dtype != DType::f32) throw Unsupported("f32 only");
    const bool cached = 2 * bytes <= facts().cache_bytes;
    return what == DevicePeak::multiply_add ? 1e12 : what == DevicePeak::read ? 2.2e12 : cached ? 8e12 : 2e12;
  }

  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override {
    recording_ = true;
    spoiled_.clear();
    recorded_.clear();
    std::exception_ptr failure;
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
    recording_ = false;
    if (!spoiled_.empty()) throw Unsupported("a run cannot be recorded as a graph: " + spoiled_);
    if (failure) std::rethrow_exception(failure);
    return std::make_unique<Graph>(*this, std::exchange(recorded_, {}));
  }

#define X(op, Args)                                                                    \
  void op(Context& ctx, const Args& args) override {                                   \
    if (depth_ > 0) return cpu_backend().op(ctx, args); /* part of another operator */ \
    submit(                                                                            \
        [this, &ctx, own = Args(args), kept = keep(args)]() mutable {                  \
          point_at(own, kept);                                                         \
          running = #op;                                                               \
          if (by_library(ctx, own, #op)) return;                                       \
          if (!too_long(own)) cpu_backend().op(ctx, own);                              \
        },                                                                             \
        true);                                                                         \
  }
  ATTNBENCH_OPERATORS(X)
#undef X

 private:
  using Work = std::function<void()>;

  class Timer final : public DeviceTimer {
   public:
    explicit Timer(MockDevice& d) : device_(d) {}
    void start() override { begin_ = device_.now_s; }
    void stop() override { end_ = device_.now_s; }
    double seconds() override { return end_ - begin_; }
    double resolution_s() const override { return 1e-7; }

   private:
    MockDevice& device_;
    double begin_ = 0, end_ = 0;
  };

  class Graph final : public DeviceGraph {
   public:
    Graph(MockDevice& d, std::vector<std::pair<Work, bool>> work) : device_(d), work_(std::move(work)) {}
    void replay(int64_t times) override {
      for (int64_t i = 0; i < times; ++i) {
        ++device_.replays;
        for (auto& [work, timed] : work_) device_.execute(work, timed);
      }
    }

   private:
    MockDevice& device_;
    std::vector<std::pair<Work, bool>> work_;
  };

  // Arguments outlive the call in a recording, and so must the mask that they point to.
  // Products of the size that ceilings are measured with are timed, not computed.
  template <class Args>
  static bool too_long(const Args&) {
    return false;
  }
  static bool too_long(const GemmArgs& g) { return g.c.numel() >= int64_t{1} << 24; }

  template <class Args>
  bool by_library(Context&, const Args&, const char*) const {
    return false;
  }
  bool by_library(Context& ctx, const AttentionArgs& a, const char* op) const {
    if (std::string(op) != "library_attention" || !has_library) return false;
    cpu_backend().attention(ctx, a);
    return true;
  }
  template <class Args>
  static int keep(const Args&) {
    return 0;
  }
  static std::shared_ptr<BlockMask> keep(const AttentionArgs& a) {
    return a.mask ? std::make_shared<BlockMask>(*a.mask) : nullptr;
  }
  template <class Args>
  static void point_at(Args&, int) {}
  static void point_at(AttentionArgs& a, const std::shared_ptr<BlockMask>& mask) { a.mask = mask.get(); }

  [[noreturn]] void spoil(const std::string& why) {
    spoiled_ = why;
    throw Error(why);
  }
  void submit(Work work, bool timed) {
    if (recording_)
      recorded_.emplace_back(std::move(work), timed);
    else
      execute(work, timed);
  }
  void execute(Work& work, bool timed) {
    struct Open {
      MockDevice& d;
      explicit Open(MockDevice& device) : d(device) { ++d.depth_, open_memory().allowed = true; }
      ~Open() {
        if (--d.depth_ == 0) open_memory().shut();
      }
    } open(*this);
    work();
    if (!timed) return;
    ++operators;
    now_s += operator_s(now_s);
  }
  bool owns(const void* p) const {
    auto it = blocks_.upper_bound(const_cast<void*>(p));
    if (it == blocks_.begin()) return false;
    --it;
    return static_cast<const char*>(p) < static_cast<const char*>(it->first) + it->second;
  }
  static size_t rounded(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }

  /// What an operator touches is opened when it touches it, piece by piece, and shut when it is done: opening
  /// all of a network's thousand tensors for each operator takes minutes. One device at a time.
  struct OpenMemory {
    static constexpr uintptr_t kPiece = uintptr_t{1} << 18;
    static constexpr int kMost = 1 << 16;
    std::atomic<char*> region{nullptr};
    std::atomic<bool> allowed{false};
    std::atomic<int> count{0};
    std::array<uintptr_t, kMost> pieces{};
    struct sigaction before {};

    void begin(char* r) {
      if (region.load()) throw Error("one mock device at a time");
      region = r;
      struct sigaction handler {};
      handler.sa_sigaction = &touched;
      handler.sa_flags = SA_SIGINFO;
      struct sigaction was {};
      sigaction(SIGSEGV, &handler, &was);
      if (!(was.sa_flags & SA_SIGINFO) || was.sa_sigaction != &touched) before = was;
    }
    /// Calls mprotect and atomics alone, as a signal handler must.
    static void touched(int, siginfo_t* info, void*) {
      OpenMemory& m = open_memory();
      const auto at = reinterpret_cast<uintptr_t>(info->si_addr),
                 r = reinterpret_cast<uintptr_t>(m.region.load());
      if (m.allowed && r && at >= r && at - r < kRegion) {
        const uintptr_t piece = r + (at - r) / kPiece * kPiece;
        const int slot = m.count++;
        if (slot < kMost && mprotect(reinterpret_cast<void*>(piece), kPiece, PROT_READ | PROT_WRITE) == 0) {
          m.pieces[static_cast<size_t>(slot)] = piece;
          return;
        }
      }
      sigaction(SIGSEGV, &m.before, nullptr);  // the access is made again, and is what it would have been
    }
    void shut() {
      allowed = false;
      for (int i = 0; i < count; ++i)
        mprotect(reinterpret_cast<void*>(pieces[static_cast<size_t>(i)]), kPiece, PROT_NONE);
      count = 0;
    }
  };
  static OpenMemory& open_memory() {
    static OpenMemory m;
    return m;
  }

  /// All blocks lie in one range of addresses, each at its own for good. What was freed reads as 0 inside an
  /// operator.
  static constexpr size_t kRegion = size_t{1} << 40;
  char *region_ = nullptr, *next_ = nullptr;
  std::map<void*, size_t> blocks_;
  int64_t used_ = 0;
  int depth_ = 0;
  bool recording_ = false;
  std::string spoiled_;
  std::vector<std::pair<Work, bool>> recorded_;
};

}  // namespace attnbench::mock
