// The CUDA backend's answers to what measuring needs: events, graphs, cache flushing, memory, ceilings.
#include <algorithm>
#include <exception>
#include <memory>
#include <string>

#include "kernels/core/cuda_backend.cuh"
#include "kernels/core/nvml.hpp"

namespace attnbench {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;  // 8 x 256 threads fill a multiprocessor (2048) on every card since sm_80

/// 16 bytes at a time past the first-level cache (.cg), four loads in flight before the first use.
__global__ void read_kernel(const uint4* src, int64_t n, int repeats, unsigned* sink) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  unsigned sum = 0;
  for (int r = 0; r < repeats; ++r) {
    int64_t i = first;
    for (; i + 3 * step < n; i += 4 * step) {
      const uint4 a = __ldcg(src + i), b = __ldcg(src + i + step), c = __ldcg(src + i + 2 * step),
                  d = __ldcg(src + i + 3 * step);
      sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
      sum += c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += step) {
      const uint4 a = __ldcg(src + i);
      sum += a.x ^ a.y ^ a.z ^ a.w;
    }
  }
  if (sum == 0x9e3779b9u) *sink = sum;  // so that the loads are needed
}

__global__ void copy_kernel(const uint4* src, uint4* dst, int64_t n, int repeats) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int r = 0; r < repeats; ++r) {
    int64_t i = first;
    for (; i + 3 * step < n; i += 4 * step) {
      const uint4 a = __ldcg(src + i), b = __ldcg(src + i + step), c = __ldcg(src + i + 2 * step),
                  d = __ldcg(src + i + 3 * step);
      __stcg(dst + i, a);
      __stcg(dst + i + step, b);
      __stcg(dst + i + 2 * step, c);
      __stcg(dst + i + 3 * step, d);
    }
    for (; i < n; i += step) __stcg(dst + i, __ldcg(src + i));
  }
}

// 8 chains a thread and 2048 threads: 16384 multiply-adds in flight on a multiprocessor whose 128 units and
// 4 cycles of latency need 512.
constexpr int kChains = 8;
template <class T>
__global__ void multiply_add_kernel(T a, T b, int rounds, T* sink) {
  T x[kChains];
#pragma unroll
  for (int c = 0; c < kChains; ++c) x[c] = static_cast<T>(threadIdx.x + c);
  for (int i = 0; i < rounds; ++i) {
#pragma unroll
    for (int u = 0; u < 4; ++u)
#pragma unroll
      for (int c = 0; c < kChains; ++c) x[c] = fma(x[c], a, b);
  }
  T sum = 0;
#pragma unroll
  for (int c = 0; c < kChains; ++c) sum += x[c];
  if (sum == static_cast<T>(-12345.678)) *sink = sum;
}

class CudaTimer final : public DeviceTimer {
 public:
  explicit CudaTimer(cudaStream_t stream) : stream_(stream) {
    CUDA_CHECK(cudaEventCreate(&begin_));
    if (const cudaError_t status = cudaEventCreate(&end_); status != cudaSuccess) {
      cudaEventDestroy(begin_);
      CUDA_CHECK(status);
    }
  }
  ~CudaTimer() override {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void start() override { CUDA_CHECK(cudaEventRecord(begin_, stream_)); }
  void stop() override { CUDA_CHECK(cudaEventRecord(end_, stream_)); }
  double seconds() override {
    float ms = 0;
    CUDA_CHECK(cudaEventSynchronize(end_));
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
    return 1e-3 * static_cast<double>(ms);
  }
  double resolution_s() const override { return 0.5e-6; }  // as the runtime's documentation of events says

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    CUDA_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
    CUDA_CHECK(cudaGraphUpload(exec_, stream_));
  }
  ~CudaGraph() override {
    cudaStreamSynchronize(stream_);  // it may still be running
    if (exec_) cudaGraphExecDestroy(exec_);
  }
  void replay(int64_t times) override {
    for (int64_t i = 0; i < times; ++i) CUDA_CHECK(cudaGraphLaunch(exec_, stream_));
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

/// Device memory for the length of a measurement.
struct Buffer {
  explicit Buffer(size_t bytes) { CUDA_CHECK(cudaMalloc(&data, bytes)); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data = nullptr;
};

/// The shortest of `readings` timings of `work`, after one that is not counted.
template <class F>
double shortest(CudaTimer& timer, int readings, F&& work) {
  double best = 0;
  for (int i = 0; i <= readings; ++i) {
    timer.start();
    work();
    timer.stop();
    const double s = timer.seconds();
    if (i > 0 && (best == 0 || s < best)) best = s;
  }
  return best;
}

std::string version_text(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

template <class T>
double multiply_add_rate(CudaTimer& timer, cudaStream_t stream, int blocks) {
  const Buffer sink(sizeof(T));
  const auto burst = [&](int rounds) {
    // Contracting towards b / (1 - a): the values stay ordinary numbers.
    multiply_add_kernel<T>
        <<<blocks, kThreads, 0, stream>>>(T(0.999), T(0.001), rounds, static_cast<T*>(sink.data));
    CUDA_CHECK_LAUNCH();
  };
  int rounds = 1000;
  // 20 ms a burst: long against a launch, short against the time that power limits take to act.
  const double probe = shortest(timer, 1, [&] { burst(rounds); });
  rounds = static_cast<int>(std::clamp(rounds * 0.02 / std::max(probe, 1e-7), 1000.0, 1e8));
  const double s = shortest(timer, 8, [&] { burst(rounds); });
  return 2.0 * 4 * kChains * rounds * static_cast<double>(blocks) * kThreads / s;
}

}  // namespace

CudaBackend::~CudaBackend() = default;  // the process ends: the driver takes everything back

std::unique_ptr<DeviceTimer> CudaBackend::make_timer() { return std::make_unique<CudaTimer>(stream_); }

void CudaBackend::flush_cache() {
  // Reading leaves clean lines behind: after writing, the timed work would pay for writing them back. Four
  // times the cache, because the halves of a large one may hold the same line twice, and because the host
  // submits the work that comes next while this still runs.
  const size_t bytes = std::max<size_t>(size_t{64} << 20, 4 * static_cast<size_t>(properties_.l2CacheSize));
  if (!flush_buffer_) {
    void* p = nullptr;
    CUDA_CHECK(cudaMalloc(&p, bytes + 16));
    flush_buffer_ = p;
    CUDA_CHECK(cudaMemsetAsync(p, 1, bytes + 16, stream_));
  }
  read_kernel<<<sm_count() * kBlocksPerSm, kThreads, 0, stream_>>>(
      static_cast<const uint4*>(flush_buffer_), static_cast<int64_t>(bytes / 16), 1,
      reinterpret_cast<unsigned*>(static_cast<char*>(flush_buffer_) + bytes));
  CUDA_CHECK_LAUNCH();
}

std::unique_ptr<DeviceGraph> CudaBackend::capture(const std::function<void()>& work) {
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  // Thread-local: what this thread does beside the stream (allocating, waiting) is refused instead of being
  // left out of the graph unseen.
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  std::exception_ptr failure;
  std::string text;
  try {
    work();
  } catch (const std::exception& e) {
    failure = std::current_exception();
    text = e.what();
  } catch (...) {
    failure = std::current_exception();
  }
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
  cudaGetLastError();  // a failed capture leaves nothing behind
  if (ended != cudaSuccess || failure) {
    if (graph) cudaGraphDestroy(graph);
    if (ended == cudaSuccess) std::rethrow_exception(failure);
    throw Unsupported("a run cannot be recorded as a graph: " +
                      (text.empty() ? std::string(cudaGetErrorString(ended)) : text));
  }
  std::unique_ptr<DeviceGraph> recorded;
  try {
    recorded = std::make_unique<CudaGraph>(graph, stream_);
  } catch (...) {
    cudaGraphDestroy(graph);
    throw;
  }
  cudaGraphDestroy(graph);
  return recorded;
}

DeviceMemory CudaBackend::memory_info() {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

DeviceFacts CudaBackend::facts() {
  DeviceFacts f;
  f.name = properties_.name;
  f.architecture = "sm_" + std::to_string(compute_capability());
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess) f.driver = version_text(version);
  if (cudaRuntimeGetVersion(&version) == cudaSuccess) f.runtime = version_text(version);
  char address[32] = "";
  if (cudaDeviceGetPCIBusId(address, sizeof address, device_) == cudaSuccess) f.id = address;
  f.multiprocessors = properties_.multiProcessorCount;
  f.cache_bytes = properties_.l2CacheSize;
  f.memory_bytes = static_cast<int64_t>(properties_.totalGlobalMem);
  return f;
}

DeviceState CudaBackend::read_state() { return read_nvml_state(facts().id); }

double CudaBackend::measure_peak(DevicePeak what, DType dtype, int64_t bytes) {
  CudaTimer timer(stream_);
  const int blocks = sm_count() * kBlocksPerSm;
  if (what == DevicePeak::multiply_add) {
    if (dtype == DType::f32) return multiply_add_rate<float>(timer, stream_, blocks);
    if (dtype == DType::f64) return multiply_add_rate<double>(timer, stream_, blocks);
    throw Unsupported("multiply-adds outside matrix units are measured for f32 and f64, not " +
                      std::string(name(dtype)));
  }
  if (bytes < 16)
    throw UsageError("the size of the measured transfer must be 16 bytes or more, not " +
                     std::to_string(bytes));
  const int64_t n = bytes / 16;
  // A pass of a small transfer is shorter than a launch: enough passes in one launch for 1 GiB.
  const int repeats = static_cast<int>(std::clamp<int64_t>((int64_t{1} << 30) / bytes, 1, 10000));
  const double moved = 16.0 * static_cast<double>(n) * repeats;
  const Buffer source(static_cast<size_t>(16 * n + 16));
  CUDA_CHECK(cudaMemsetAsync(source.data, 1, static_cast<size_t>(16 * n + 16), stream_));
  const auto* from = static_cast<const uint4*>(source.data);
  constexpr int kReadings = 10;
  if (what == DevicePeak::read) {
    auto* sink = reinterpret_cast<unsigned*>(static_cast<char*>(source.data) + 16 * n);
    return moved / shortest(timer, kReadings, [&] {
             read_kernel<<<blocks, kThreads, 0, stream_>>>(from, n, repeats, sink);
             CUDA_CHECK_LAUNCH();
           });
  }
  const Buffer target(static_cast<size_t>(16 * n));
  double s = shortest(timer, kReadings, [&] {
    copy_kernel<<<blocks, kThreads, 0, stream_>>>(from, static_cast<uint4*>(target.data), n, repeats);
    CUDA_CHECK_LAUNCH();
  });
  if (repeats == 1)
    s = std::min(s, shortest(timer, kReadings, [&] {
                   CUDA_CHECK(cudaMemcpyAsync(target.data, from, static_cast<size_t>(16 * n),
                                              cudaMemcpyDeviceToDevice, stream_));
                 }));
  return 2 * moved / s;
}

}  // namespace attnbench
