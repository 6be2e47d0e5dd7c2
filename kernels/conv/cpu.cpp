#include <cstring>

#include "kernels/conv/conv.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/gemm/gemm.hpp"

namespace attnbench {
namespace {

/// Patches as matrix rows in the weight's order (c, i, j): the image is gathered, so that the weight, often
/// the larger of the two, is used in place. The writes stride by r * r elements within one row, which fits
/// the first-level cache.
template <class T>
void gather_patches(Context& ctx, const PatchConv2dArgs& args, int64_t first, int64_t count, T* out) {
  const Tensor& x = args.x;
  const int64_t r = args.kernel, channels = args.weight.dim(1), ho = args.y.dim(1), wo = args.y.dim(2);
  const int64_t sb = x.stride(0);
  const int64_t sc = x.stride(args.channels_last ? 3 : 1), sh = x.stride(args.channels_last ? 1 : 2);
  const int64_t sw = x.stride(args.channels_last ? 2 : 3), taps = r * r, k = channels * taps;
  const T* base = static_cast<const T*>(x.raw());
  const int64_t row_bytes = 2 * k * static_cast<int64_t>(sizeof(T));
  parallel_range(ctx.threads(), count, std::max<int64_t>(kParallelBytes / row_bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t p = begin; p < end; ++p) {
                     const int64_t at = first + p, b = at / (ho * wo), oy = at / wo % ho, ox = at % wo;
                     const T* patch = base + b * sb + oy * r * sh + ox * r * sw;
                     T* row = out + p * k;
                     if (args.channels_last) {
                       for (int64_t i = 0; i < r; ++i)
                         for (int64_t j = 0; j < r; ++j) {
                           const T* pixel = patch + i * sh + j * sw;
                           T* to = row + i * r + j;
                           for (int64_t c = 0; c < channels; ++c) to[c * taps] = pixel[c];
                         }
                     } else {
                       for (int64_t c = 0; c < channels; ++c)
                         for (int64_t i = 0; i < r; ++i)
                           std::memcpy(row + (c * r + i) * r, patch + c * sc + i * sh,
                                       static_cast<size_t>(r) * sizeof(T));
                     }
                   }
                 });
}

/// Patches are gathered and multiplied in blocks of about this many bytes, which stay in the outer caches
/// between the two steps and bound the workspace.
constexpr int64_t kBlockBytes = int64_t{4} << 20;

}  // namespace

void CpuBackend::patch_conv2d(Context& ctx, const PatchConv2dArgs& args) {
  const int64_t features = args.weight.dim(0), k = args.weight.numel() / features;
  const int64_t patches = args.y.numel() / features;
  GemmArgs product;
  product.b = args.weight.reshape({features, k});
  product.b_transposed = true;
  product.bias = args.bias;
  const Tensor y = args.y.reshape({patches, features});
  // The charge was made by the contract function: the product goes straight to this backend.
  if (args.kernel == 1 && args.channels_last && args.x.contiguous()) {
    product.a = args.x.reshape({patches, k});
    product.c = y;
    return gemm(ctx, product);
  }
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int64_t block =
      std::min(patches, std::max<int64_t>(kBlockBytes / std::max<int64_t>(k * size, 1), 64));
  const Tensor gathered = ctx.allocate(args.x.dtype(), {block, k});
  for (int64_t first = 0; first < patches; first += block) {
    const int64_t count = std::min(block, patches - first);
    if (size == 8)
      gather_patches(ctx, args, first, count, static_cast<uint64_t*>(gathered.raw()));
    else if (size == 4)
      gather_patches(ctx, args, first, count, static_cast<uint32_t*>(gathered.raw()));
    else
      gather_patches(ctx, args, first, count, static_cast<uint16_t*>(gathered.raw()));
    product.a = gathered.slice(0, 0, count);
    product.c = y.slice(0, first, first + count);
    gemm(ctx, product);
  }
}

}  // namespace attnbench
