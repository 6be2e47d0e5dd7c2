// Which calls of linear attention the Hopper kernel takes, how their rows are cut, and the launch. The kernel
// itself: cuda_sm90_kernel.cuh.
#include <algorithm>

#include "kernels/core/tensor_map.cuh"
#include "kernels/linear_attention/cuda_sm90.cuh"
#include "kernels/linear_attention/cuda_sm90_kernel.cuh"

namespace attnbench::cuda_linear {
namespace {

template <class F>
void by_kernel(const LinearAttentionArgs& args, const F& f) {
  const bool narrow = args.q.dim(3) <= 64 && args.v.dim(3) <= 64;
  if (args.q.dtype() == DType::bf16)
    narrow ? f(Type<__nv_bfloat16>{}, std::integral_constant<int, 64>{}, std::integral_constant<int, 1>{})
           : f(Type<__nv_bfloat16>{}, std::integral_constant<int, 128>{}, std::integral_constant<int, 2>{});
  else
    narrow ? f(Type<__half>{}, std::integral_constant<int, 64>{}, std::integral_constant<int, 1>{})
           : f(Type<__half>{}, std::integral_constant<int, 128>{}, std::integral_constant<int, 2>{});
}

// Heads that leave this share of the card to itself or less are not cut.
constexpr double kFilled = 0.7;
// Chunks of a segment: k and v of all that are under way (64 KiB a chunk) stay in the cache.
constexpr int64_t kSegmentChunks = 6;
// Fewer walks pass their states on more slowly than a card of 132 multiprocessors reads the rows between.
constexpr int64_t kFewestWalks = 8;

}  // namespace

bool chunk_on_hopper(Context& ctx, const LinearAttentionArgs& args) {
  const CudaBackend& backend = cuda_of(ctx);
  const int64_t n = args.q.dim(2), d = args.q.dim(3), e = args.v.dim(3);
  if (backend.compute_capability() != 90 || !args.causal || args.q.dtype() == DType::f32) return false;
  // Chunks have 128 rows whatever the block: a longer one would be charged for more than is run.
  if (n == 0 || d == 0 || e == 0 || d > 128 || args.block_size > kChunk || n > INT32_MAX / 2) return false;
  if (!packable(args.o, 16)) return false;
  HopperWork w{};
  constexpr int kBox[] = {1, 1, kChunk, 64};
  if (!make_tensor_map(w.q, args.q, kBox) || !make_tensor_map(w.k, args.k, kBox) ||
      !make_tensor_map(w.v, args.v, kBox))
    return false;
  bool runs = false;
  by_kernel(args, [&](auto type, auto width, auto groups) {
    using T = typename decltype(type)::type;
    constexpr int kD = decltype(width)::value, kGroups = decltype(groups)::value;
    using S = Shape90<kD, kGroups>;
    const int64_t columns = kGroups * kColumns, tiles_e = (e + columns - 1) / columns;
    const int64_t walks = args.q.dim(0) * args.q.dim(1) * tiles_e;
    const int64_t places = static_cast<int64_t>(backend.sm_count()) * S::kBlocksPerSm;
    const int64_t rounds = (walks + places - 1) / places;
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    int64_t whole = chunks;
    if (static_cast<double>(walks) < kFilled * static_cast<double>(rounds * places))
      whole = std::min(whole, std::clamp<int64_t>((chunks * walks + places - 1) / places, 1, kSegmentChunks));
    // One segment for each place begins at once whatever its length; ramps pay where others follow.
    w.cuts = Cuts::of(static_cast<int>(chunks), static_cast<int>(whole), whole == kSegmentChunks);
    const int64_t segments = w.cuts.segments;
    if (segments > 1 && walks < kFewestWalks * S::kBlocksPerSm) return;
    if (segments * walks >= INT32_MAX / 2) return;

    w.o = args.o.raw(), w.log_decay = args.log_decay.data<float>();
    for (int i = 0; i < 3; ++i) w.o_strides[i] = args.o.stride(i);
    for (int i = 0; i < 2; ++i) {
      if (args.state_in) w.in_strides[i] = args.state_in.stride(i);
      if (args.state_out) w.out_strides[i] = args.state_out.stride(i);
    }
    if (args.state_in) w.state_in = args.state_in.data<float>();
    if (args.state_out) w.state_out = args.state_out.data<float>();
    w.h = static_cast<int>(args.q.dim(1)), w.n = static_cast<int>(n);
    w.d = static_cast<int>(d), w.e = static_cast<int>(e);
    w.tiles_e = static_cast<int>(tiles_e), w.walks = static_cast<int>(walks);
    w.items = static_cast<int>(segments * walks);
    Tensor memory;
    if (segments > 1) {
      // Carried states behind 16 bytes of ticket.
      const int64_t words = 4 + walks * S::kState * 128 * kGroups * 2;
      memory = ctx.allocate(DType::i32, {words});
      w.next = memory.data<int32_t>();
      w.carries = reinterpret_cast<ulonglong2*>(w.next + 4);
      CUDA_CHECK(cudaMemsetAsync(w.next, 0, static_cast<size_t>(words) * 4, stream_of(ctx)));
    }
    const auto kernel = chunk_hopper<T, kD, kGroups>;
    constexpr int kBytes = static_cast<int>(sizeof(Shared<kD, kGroups>)) + 1024;
    static_assert(kBytes <= 227 * 1024 && (kBytes + 1024) * S::kBlocksPerSm <= 228 * 1024);
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    kernel<<<static_cast<unsigned>(std::min<int64_t>(w.items, places)), S::kThreads, kBytes,
             stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
    runs = true;
  });
  return runs;
}

}  // namespace attnbench::cuda_linear
