// Where the rows (or inner blocks) of a strided tensor start. Not an iterator over elements.
#pragma once
#include <cstdint>

#include "kernels/core/tensor.hpp"

namespace attnbench {

/// Element offsets of all positions of the outer axes, i.e. all but the last `inner` ones, in row-major
/// order. Axes that continue each other are merged, so most tensors need one multiplication.
class RowOffsets {
 public:
  RowOffsets() = default;
  RowOffsets(const Tensor& t, int inner) {
    for (int i = 0; i < t.rank() - inner; ++i) {
      const int64_t extent = t.dim(i), stride = t.stride(i);
      count_ *= extent;
      if (extent == 1) continue;
      if (rank_ > 0 && stride_[rank_ - 1] == stride * extent) {
        extent_[rank_ - 1] *= extent;
        stride_[rank_ - 1] = stride;
      } else {
        extent_[rank_] = extent;
        stride_[rank_++] = stride;
      }
    }
  }
  int64_t count() const { return count_; }
  /// Whether offset(i) == i * stride().
  bool uniform() const { return rank_ <= 1; }
  int64_t stride() const { return rank_ == 0 ? 0 : stride_[0]; }
  int64_t offset(int64_t i) const {
    if (rank_ <= 1) return rank_ == 0 ? 0 : i * stride_[0];
    int64_t at = 0;
    for (int r = rank_ - 1; r > 0; --r) {
      at += i % extent_[r] * stride_[r];
      i /= extent_[r];
    }
    return at + i * stride_[0];
  }

 private:
  int64_t count_ = 1;
  int64_t extent_[Shape::kMaxRank] = {}, stride_[Shape::kMaxRank] = {};
  int rank_ = 0;
};

}  // namespace attnbench
