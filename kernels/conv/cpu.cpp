#include <algorithm>
#include <cstring>

#include "kernels/conv/conv.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

/// Patches as matrix rows. In the weight's own order (c, i, j) a row's writes stride by r * r elements; in
/// the order (i, j, c) (`pixels_first`, channel-last images only) a patch is r runs of memory.
template <class T>
void gather_patches(Context& ctx, const PatchConv2dArgs& args, bool pixels_first, int64_t first,
                    int64_t count, T* out) {
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
                     if (pixels_first) {
                       for (int64_t i = 0; i < r; ++i)
                         for (int64_t j = 0; j < r; ++j)
                           std::memcpy(row + (i * r + j) * channels, patch + i * sh + j * sw,
                                       static_cast<size_t>(channels) * sizeof(T));
                     } else if (args.channels_last) {
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

/// Patches are gathered and multiplied in blocks of about this many bytes, which bounds the workspace. Each
/// product packs the whole weight anew, which costs about as much as multiplying it with 100 rows, so a block
/// has many times that, and no more than are needed to make packing vanish.
constexpr int64_t kBlockBytes = int64_t{64} << 20, kLeastRows = 512, kMostRows = 4096;

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
  // The smaller of image and weight is reordered.
  const bool pixels_first = args.channels_last && patches > features;
  if (pixels_first) {
    const int64_t channels = args.weight.dim(1), taps = args.kernel * args.kernel;
    const Tensor reordered = ctx.allocate(args.weight.dtype(), {features, taps, channels});
    CpuBackend::transpose_copy(
        ctx, {args.weight.reshape({features, channels, taps}).permute({0, 2, 1}), reordered});
    product.b = reordered.reshape({features, k});
  }
  const int64_t most = std::clamp(kBlockBytes / std::max<int64_t>(k * size, 1), kLeastRows, kMostRows);
  const int64_t blocks = (patches + most - 1) / most, block = (patches + blocks - 1) / blocks;
  const Tensor gathered = ctx.allocate(args.x.dtype(), {block, k});
  for (int64_t first = 0; first < patches; first += block) {
    const int64_t count = std::min(block, patches - first);
    if (size == 8)
      gather_patches(ctx, args, pixels_first, first, count, static_cast<uint64_t*>(gathered.raw()));
    else if (size == 4)
      gather_patches(ctx, args, pixels_first, first, count, static_cast<uint32_t*>(gathered.raw()));
    else
      gather_patches(ctx, args, pixels_first, first, count, static_cast<uint16_t*>(gathered.raw()));
    product.a = gathered.slice(0, 0, count);
    product.c = y.slice(0, first, first + count);
    gemm(ctx, product);
  }
}

}  // namespace attnbench
