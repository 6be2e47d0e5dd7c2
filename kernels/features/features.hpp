// Row-wise pieces of kernelized attention: unit rows, random feature maps, and the quotient of weighted sums.
// Products with the random matrices are gemm's.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Rows brought to a given norm, mean or scale over the last axis:
///   norm    y = gain x ||like|| / max(||x||, floor); without `like` the target norm is 1
///   mean    y = gain alpha (x - mean of x) + beta
///   scale   y = gain x
/// x, like [..., C] of one dtype (f32, bf16, f16), y of that dtype or f32; gain f32 [...], one number a row,
/// or none (1). Packed rows, other strides free; y may be x. Sums in f64. Cost per row: norm elementwise 3 C
/// (2 C more with like) and special 2; mean elementwise 3 C; scale elementwise C.
struct UnitRowsArgs {
  enum class Kind : uint8_t { norm, mean, scale };
  Tensor x, like, y;
  float floor = 0.0f;
  Kind kind = Kind::norm;
  Tensor gain{};
  float alpha = 1.0f, beta = 0.0f;
};
void unit_rows(Context& ctx, const UnitRowsArgs& args);

/// Features of rows x [..., D] from their projections p [..., m] = x W^T; y [..., F]; f32, packed rows.
///   exponential    F = m:  exp(p - ||x||^2 / 2) / sqrt(m)                  (positive random features)
///   trigonometric  F = 2m: exp(||x||^2 / 2) / sqrt(m) (sin p, then cos p)
///   relu           F = m:  relu(p) / sqrt(m) + 1e-3
/// y may be p where F = m. Cost per row: elementwise 2 D (not for relu) + 2 F; special F (not for relu).
struct FeatureMapArgs {
  enum class Kind : uint8_t { exponential, trigonometric, relu };
  Kind kind = Kind::exponential;
  Tensor x, p, y;
};
void feature_map(Context& ctx, const FeatureMapArgs& args);
/// What feature_map charges for `rows` rows, without bytes.
Cost feature_map_cost(FeatureMapArgs::Kind kind, int64_t rows, int64_t d, int64_t m);

/// y [..., E] = x [..., 0 .. E-1] / x [..., E]: weighted sums over their weights' sum, where one that is not
/// positive counts as 1. f32, packed rows; y may lie in x's rows. Cost: special E per row.
struct DivideByLastArgs {
  Tensor x, y;
};
void divide_by_last(Context& ctx, const DivideByLastArgs& args);

}  // namespace attnbench
