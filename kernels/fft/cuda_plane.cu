// A thread block reads its planes, transforms rows and columns in shared memory and writes them: see
// plane.hpp.
#include <map>
#include <mutex>
#include <tuple>

#include "kernels/fft/cuda_plane.cuh"
#include "kernels/fft/plane.hpp"

namespace attnbench {
namespace {

using plane::Plan;

/// Asks for planes that are read soon, so that memory works while the threads calculate.
__device__ void prefetch(const float* x, int floats, int thread, int threads) {
  for (int i = 32 * thread; i < floats; i += 32 * threads)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(x + i));
}

__global__ void __launch_bounds__(plane::kMostThreads)
    plane_kernel(const __grid_constant__ Plan plan, const float* x, float* y,
                 const __grid_constant__ DeviceRows x_images, const __grid_constant__ DeviceRows y_images,
                 const uint32_t* table) {
  extern __shared__ __align__(16) plane::Complex shared[];
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  auto* words = reinterpret_cast<uint32_t*>(shared + plan.table_at());
  auto* from = reinterpret_cast<int64_t*>(words + plan.table_words());
  plane::Block b{};
  b.x = x, b.y = y;
  b.z = shared;
  b.table = shared + plan.table_at();
  b.row_slot = reinterpret_cast<const int*>(words) + 2 * plan.table_numbers;
  b.column_slot = b.row_slot + plan.height + 1;
  b.from = from, b.to = from + plan.planes;
  b.thread = thread, b.threads = threads;
  for (int i = thread; i < plan.table_words(); i += threads) words[i] = table[i];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * plan.planes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.planes; first < x_images.count;
       first += stride) {
    b.planes = static_cast<int>(min(static_cast<int64_t>(plan.planes), x_images.count - first));
    for (int p = thread; p < b.planes; p += threads) {
      from[p] = x_images.offset(first + p);
      from[plan.planes + p] = y_images.offset(first + p);
    }
    __syncthreads();
    plane::load(plan, b);
    plane::copies_done();
    __syncthreads();
    if (plan.planes == 1 && first + stride < x_images.count)
      prefetch(x + x_images.offset(first + stride), plan.from_floats, thread, threads);
    for (int s = 0; s < plan.steps; ++s) {
      plane::run_step(plan, plan.step[s], b);
      __syncthreads();
    }
    plane::store(plan, b);
    __syncthreads();
  }
}

struct Tables {
  Plan plan;
  const uint32_t* table = nullptr;  // null: not for this kernel
  int resident = 1;                 // blocks of a multiprocessor
};

/// Kept as long as the process, as cuFFT's plans are: captured graphs go on using the tables, which are a few
/// KiB each.
const Tables& tables_of(Context& ctx, Fft2Args::Kind kind, int64_t height, int64_t width, int planes,
                        int64_t most_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<Fft2Args::Kind, int64_t, int64_t, int>, Tables> all;
  std::lock_guard lock(mutex);
  const std::tuple key{kind, height, width, planes};
  if (const auto it = all.find(key); it != all.end()) return it->second;
  Tables made;
  std::vector<uint32_t> words;
  if (plane::make_plan(kind, height, width, planes, most_bytes, made.plan, &words)) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(stream_of(ctx), &capture));
    if (capture != cudaStreamCaptureStatusNone)
      throw Error(
          "fft2: a plan of a new shape cannot be made while a CUDA graph is captured; run it once before");
    void* table = nullptr;
    CUDA_CHECK(cudaMalloc(&table, words.size() * 4));
    CUDA_CHECK(cudaMemcpy(table, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
    made.table = static_cast<const uint32_t*>(table);
    CUDA_CHECK(cudaFuncSetAttribute(plane_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(most_bytes)));
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&made.resident, plane_kernel, made.plan.threads,
                                                             static_cast<size_t>(made.plan.shared_bytes())));
  }
  return all.emplace(key, made).first->second;
}

/// Whether images start at multiples of `floats` numbers of f32.
bool aligned(const Tensor& images, const DeviceRows& rows, int64_t floats) {
  if (reinterpret_cast<uintptr_t>(images.raw()) % (static_cast<uintptr_t>(floats) * 4) != 0) return false;
  for (int i = 0; i < rows.rank; ++i)
    if (rows.stride[i] % floats != 0) return false;
  return true;
}

}  // namespace

bool fft2_planes(Context& ctx, const Fft2Args& args, const Tensor& x, const Tensor& y) {
  using Kind = Fft2Args::Kind;
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const bool paired = args.width % 2 == 0;
  const DeviceRows x_images(x, 1), y_images(y, 1);
  if (!aligned(x, x_images, real_x && !paired ? 1 : 2) || !aligned(y, y_images, real_y && !paired ? 1 : 2))
    return false;
  const auto most_bytes = static_cast<int64_t>(cuda_of(ctx).properties().sharedMemPerBlockOptin);
  const int64_t columns = paired && (real_x || real_y) ? args.width / 2 : args.width;
  if (args.height > most_bytes || columns > most_bytes) return false;
  const int64_t slots = args.height * (columns | 1), images = x_images.count, sms = cuda_of(ctx).sm_count();
  // A plane keeps one multiprocessor busy for as long as its size takes; cuFFT spreads few large ones better.
  if (slots > 4096 && images * 4 < sms) return false;
  // Small planes share a block, so that its threads have work, as long as all multiprocessors have blocks.
  const auto planes =
      static_cast<int>(std::clamp<int64_t>(std::min(4096 / slots, images / (4 * sms)), 1, 512));
  const Tables& t = tables_of(ctx, args.kind, args.height, args.width, planes, most_bytes);
  if (!t.table) return false;
  Plan plan = t.plan;
  plan.scale = args.scale;
  // Blocks stay, so that each can ask for its next plane early.
  const int64_t blocks = std::min((images + planes - 1) / planes, sms * std::max(t.resident, 1));
  plane_kernel<<<static_cast<unsigned>(blocks), plan.threads, static_cast<size_t>(plan.shared_bytes()),
                 stream_of(ctx)>>>(plan, static_cast<const float*>(x.raw()), static_cast<float*>(y.raw()),
                                   x_images, y_images, t.table);
  CUDA_CHECK_LAUNCH();
  return true;
}

}  // namespace attnbench
