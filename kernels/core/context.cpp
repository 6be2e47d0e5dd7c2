#include "kernels/core/context.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels/core/backend.hpp"

namespace attnbench {

/// Freed blocks by size. Shared with the deleters of live tensors, which may outlive the Context.
struct Context::Arena {
  explicit Arena(Backend& b) : backend(b) {}
  ~Arena() { release(); }

  void release() {
    for (auto& [bytes, blocks] : free_blocks)
      for (void* p : blocks) backend.free_bytes(p, bytes);
    free_blocks.clear();
    cached = 0;
  }

  Backend& backend;
  std::mutex mutex;
  std::map<size_t, std::vector<void*>> free_blocks;
  MemoryUse use;
  int64_t cached = 0;
  int64_t limit = 0;
};

namespace {
// Blocks are rounded to 1/8 of their power of two (at least 256 B), so slightly different requests share
// blocks and at most 12.5% is wasted; the counters report the bytes asked for, not the rounded ones.
size_t rounded(size_t bytes) {
  size_t step = 256;
  while (step * 8 < bytes) step *= 2;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}
}  // namespace

Context::Context(Backend& backend, int threads)
    : backend_(&backend), threads_(threads), arena_(std::make_shared<Arena>(backend)) {
  if (threads_ < 0)
    throw UsageError("the thread count must be 0 (all) or more, not " + std::to_string(threads));
#if defined(_OPENMP)
  if (threads_ == 0) threads_ = omp_get_num_procs();
#else
  if (threads_ == 0) threads_ = 1;
#endif
}

Context::~Context() = default;

DeviceKind Context::device() const { return backend_->device(); }

Tensor Context::allocate(DType dtype, const Shape& shape, MemoryClass use) {
  int64_t bytes = 0;
  if (__builtin_mul_overflow(shape.numel(), static_cast<int64_t>(size_of(dtype)), &bytes))
    throw UsageError("a " + std::string(name(dtype)) + " tensor of shape " + shape.str() +
                     " has more bytes than 64-bit integers count");
  const size_t block = rounded(static_cast<size_t>(bytes));
  Arena& a = *arena_;
  void* p = nullptr;
  {
    std::lock_guard lock(a.mutex);
    if (a.limit > 0 && a.use.current_total + bytes > a.limit)
      throw OutOfMemory("allocating " + std::to_string(bytes) + " bytes would exceed the limit of " +
                        std::to_string(a.limit) + " bytes (" + std::to_string(a.use.current_total) +
                        " in use)");
    auto it = a.free_blocks.find(block);
    if (it != a.free_blocks.end() && !it->second.empty()) {
      p = it->second.back();
      it->second.pop_back();
      a.cached -= static_cast<int64_t>(block);
    }
  }
  if (!p) {
    try {
      p = backend_->allocate_bytes(block);
    } catch (const OutOfMemory&) {
      release_cache();
      p = backend_->allocate_bytes(block);
    }
  }
  const int c = static_cast<int>(use);
  {
    std::lock_guard lock(a.mutex);
    a.use.current[c] += bytes;
    a.use.current_total += bytes;
    a.use.peak[c] = std::max(a.use.peak[c], a.use.current[c]);
    a.use.peak_total = std::max(a.use.peak_total, a.use.current_total);
  }
  auto arena = arena_;
  std::shared_ptr<void> storage(p, [arena, block, bytes, c](void* q) {
    std::lock_guard lock(arena->mutex);
    arena->use.current[c] -= bytes;
    arena->use.current_total -= bytes;
    arena->free_blocks[block].push_back(q);
    arena->cached += static_cast<int64_t>(block);
  });
  return Tensor(device(), dtype, shape, std::move(storage));
}

const MemoryUse& Context::memory() const { return arena_->use; }

void Context::reset_memory_peaks() {
  std::lock_guard lock(arena_->mutex);
  MemoryUse& u = arena_->use;
  std::copy(std::begin(u.current), std::end(u.current), std::begin(u.peak));
  u.peak_total = u.current_total;
}

void Context::set_memory_limit(int64_t bytes) { arena_->limit = bytes; }

void Context::release_cache() {
  std::lock_guard lock(arena_->mutex);
  arena_->release();
}

Context::StageScope::StageScope(Context& ctx, std::string_view stage)
    : ctx_(ctx), stage_(stage), outer_(ctx.current_stage_) {
  ctx_.current_stage_ = stage_;
  ctx_.cost_.set_stage(stage_);
  if (ctx_.sink_) ctx_.sink_->enter(stage_);
}

Context::StageScope::~StageScope() {
  if (ctx_.sink_) ctx_.sink_->leave(stage_);
  ctx_.current_stage_ = outer_;
  ctx_.cost_.set_stage(outer_);
}

namespace {
void copy_strided(const char* src, char* dst, size_t element, const Tensor& s, const Tensor& d, int axis) {
  if (axis == s.rank()) {
    std::copy(src, src + element, dst);
    return;
  }
  for (int64_t i = 0; i < s.dim(axis); ++i)
    copy_strided(src + i * s.stride(axis) * static_cast<int64_t>(element),
                 dst + i * d.stride(axis) * static_cast<int64_t>(element), element, s, d, axis + 1);
}
}  // namespace

void copy(Context& ctx, const Tensor& src, const Tensor& dst) {
  if (!(src.shape() == dst.shape()) || src.dtype() != dst.dtype())
    throw UsageError("copy: shapes or dtypes differ, " + src.shape().str() + " to " + dst.shape().str());
  if (src.numel() == 0) return;
  if (src.contiguous() && dst.contiguous()) {
    ctx.backend().copy_bytes(dst.raw(), dst.device(), src.raw(), src.device(),
                             static_cast<size_t>(src.nbytes()));
    return;
  }
  if (src.device() != DeviceKind::cpu || dst.device() != DeviceKind::cpu)
    throw UsageError("copy: strided tensors are copied on the CPU only");
  copy_strided(static_cast<const char*>(src.raw()), static_cast<char*>(dst.raw()), size_of(src.dtype()), src,
               dst, 0);
}

namespace {
Tensor upload_bytes(Context& ctx, DType dtype, const Shape& shape, const void* values, size_t count) {
  const Tensor t = ctx.allocate(dtype, shape);
  if (static_cast<size_t>(t.numel()) != count)
    throw UsageError("upload: " + std::to_string(count) + " values for a tensor of shape " + shape.str());
  if (count > 0)
    ctx.backend().copy_bytes(t.raw(), t.device(), values, DeviceKind::cpu, count * size_of(dtype));
  return t;
}
}  // namespace

Tensor upload(Context& ctx, const Shape& shape, const std::vector<float>& values) {
  return upload_bytes(ctx, DType::f32, shape, values.data(), values.size());
}
Tensor upload(Context& ctx, const Shape& shape, const std::vector<int32_t>& values) {
  return upload_bytes(ctx, DType::i32, shape, values.data(), values.size());
}
Tensor upload(Context& ctx, const Shape& shape, const std::vector<uint8_t>& values) {
  return upload_bytes(ctx, DType::u8, shape, values.data(), values.size());
}
Tensor upload(Context& ctx, DType dtype, const Shape& shape, const std::vector<double>& values) {
  std::vector<char> bytes(values.size() * size_of(dtype));
  convert(values.data(), DType::f64, bytes.data(), dtype, static_cast<int64_t>(values.size()));
  return upload_bytes(ctx, dtype, shape, bytes.data(), values.size());
}

}  // namespace attnbench
