// Tensor maps: what the copy engine of sm_90 reads a tensor's boxes by. Made on the host, passed to kernels
// by value as __grid_constant__ parameters; the copies themselves are in hopper.cuh.
#pragma once
#include <cuda.h>

#include <span>

#include "kernels/core/tensor.hpp"

namespace attnbench {

/// Whether the driver can make maps at all. It is asked at run time: the module needs no link to it.
bool tensor_maps_available();

/// A map of `t` (bf16, f16 or f32; rank 1 to 5, contiguous last axis) in boxes of `box` elements an axis, in
/// the order of t's axes. Elements outside of t are read as zero. False when the layout has no map: address
/// and strides must be multiples of 16 bytes, strides positive and below 2^40 bytes, extents below 2^32; a
/// box holds up to 256 elements an axis, and its rows no more bytes than `swizzle` has (if any).
bool make_tensor_map(CUtensorMap& map, const Tensor& t, std::span<const int> box,
                     CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B);

}  // namespace attnbench
