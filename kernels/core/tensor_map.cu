// Tensor maps by the driver's encoder.
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "kernels/core/tensor_map.cuh"

namespace attnbench {
namespace {

constexpr int kMaxMapRank = 5;

PFN_cuTensorMapEncodeTiled_v12000 map_encoder() {
  static const auto encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
      entry = nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return encoder;
}

bool element_type(DType t, CUtensorMapDataType& type) {
  switch (t) {
    case DType::bf16:
      return type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, true;
    case DType::f16:
      return type = CU_TENSOR_MAP_DATA_TYPE_FLOAT16, true;
    case DType::f32:
      return type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32, true;
    default:
      return false;
  }
}

}  // namespace

bool tensor_maps_available() { return map_encoder() != nullptr; }

bool make_tensor_map(CUtensorMap& map, const Tensor& t, std::span<const int> box,
                     CUtensorMapSwizzle swizzle) {
  const int rank = t.rank();
  CUtensorMapDataType type{};
  if (rank < 1 || rank > kMaxMapRank || static_cast<int>(box.size()) != rank) return false;
  if (!tensor_maps_available() || !element_type(t.dtype(), type)) return false;
  if (reinterpret_cast<uintptr_t>(t.raw()) % 16 != 0) return false;
  // The driver counts axes from the innermost one, whose stride it takes to be one element.
  cuuint64_t sizes[kMaxMapRank], strides[kMaxMapRank];
  cuuint32_t boxes[kMaxMapRank], steps[kMaxMapRank];
  for (int axis = rank - 1, i = 0; axis >= 0; --axis, ++i) {
    const int64_t size = t.dim(axis), step = t.stride(axis) * static_cast<int64_t>(size_of(t.dtype()));
    if (size > UINT32_MAX) return false;
    sizes[i] = static_cast<cuuint64_t>(size);
    boxes[i] = static_cast<cuuint32_t>(box[static_cast<size_t>(axis)]), steps[i] = 1;
    if (i == 0) {
      if (size > 1 && t.stride(axis) != 1) return false;
      continue;
    }
    // An axis of one is never stepped along; maps want a stride all the same.
    strides[i - 1] = size == 1 ? 16 : static_cast<cuuint64_t>(step);
    if (size > 1 && (step <= 0 || step % 16 != 0 || step >= int64_t{1} << 40)) return false;
  }
  return map_encoder()(&map, type, static_cast<cuuint32_t>(rank), t.raw(), sizes, strides, boxes, steps,
                       CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace attnbench
