// Patch convolution on CUDA: patches gathered by a strided copy, then one product.
#include <algorithm>

#include "kernels/conv/conv.hpp"
#include "kernels/core/cuda_backend.cuh"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

/// Patches are gathered and multiplied in blocks of whole images of about this many bytes, which bounds the
/// workspace and is thousands of rows for any usual size, so products stay efficient.
constexpr int64_t kBlockBytes = int64_t{256} << 20;

}  // namespace

void CudaBackend::patch_conv2d(Context& ctx, const PatchConv2dArgs& args) {
  const Tensor& x = args.x;
  const int64_t batch = args.y.dim(0), ho = args.y.dim(1), wo = args.y.dim(2), features = args.y.dim(3);
  const int64_t r = args.kernel, channels = args.weight.dim(1), k = channels * r * r;
  GemmArgs product;
  product.b = args.weight.reshape({features, k});
  product.b_transposed = true;
  product.bias = args.bias;
  // The charge was made by the contract function: products and copies go straight to this backend.
  if (r == 1 && args.channels_last && x.contiguous()) {
    product.a = x.reshape({batch * ho * wo, k});
    product.c = args.y.reshape({batch * ho * wo, features});
    return gemm(ctx, product);
  }
  const int64_t sb = x.stride(0), sc = x.stride(args.channels_last ? 3 : 1);
  const int64_t sh = x.stride(args.channels_last ? 1 : 2), sw = x.stride(args.channels_last ? 2 : 3);
  // Channel-last patches keep their channels together and the weight is reordered instead: patches then move
  // in runs of at least C elements.
  if (args.channels_last && k > 0) {
    const Tensor reordered = ctx.allocate(args.weight.dtype(), {features, r * r, channels});
    CudaBackend::transpose_copy(
        ctx, {args.weight.reshape({features, channels, r * r}).permute({0, 2, 1}), reordered});
    product.b = reordered.reshape({features, k});
  }
  const int64_t rows = ho * wo, image_bytes = rows * k * static_cast<int64_t>(size_of(x.dtype()));
  const int64_t images = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(image_bytes, 1), 1, batch);
  const Tensor gathered = ctx.allocate(x.dtype(), {images * rows, k});
  for (int64_t first = 0; first < batch; first += images) {
    const int64_t count = std::min(images, batch - first);
    const Tensor part = gathered.slice(0, 0, count * rows);
    if (k > 0) {
      const Tensor patches =
          args.channels_last
              ? x.strided({count, ho, wo, r, r, channels}, {sb, r * sh, r * sw, sh, sw, sc}, first * sb)
              : x.strided({count, ho, wo, channels, r, r}, {sb, r * sh, r * sw, sc, sh, sw}, first * sb);
      CudaBackend::transpose_copy(ctx, {patches, part.reshape(patches.shape())});
    }
    product.a = part;
    product.c = args.y.slice(0, first, first + count).reshape({count * rows, features});
    gemm(ctx, product);
  }
}

}  // namespace attnbench
