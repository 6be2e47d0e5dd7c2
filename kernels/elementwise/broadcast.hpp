// The operands of pointwise work brought to one shape: repeated axes have stride 0, and neighbouring axes
// that every operand walks alike are one axis. Not a copy, and nothing is checked: pointwise() did that.
#pragma once
#include "kernels/elementwise/pointwise.hpp"

namespace attnbench {

/// Views of equal shape and rank >= 1. The last stride is 1, or 0 for a repeated row scalar in a and b.
struct PointwiseViews {
  Tensor a, b, y;  // b may be absent

  explicit PointwiseViews(const PointwiseArgs& args) {
    const Tensor* tensors[3] = {&args.y, &args.a, &args.b};
    const int operands = args.b ? 3 : 2;
    Shape shape = args.y.shape(), step[3];
    for (int t = 0; t < operands; ++t) step[t] = steps_of(*tensors[t], shape);
    // Collapse from the inside; axes of one element vanish.
    int64_t extent[Shape::kMaxRank] = {}, stride[3][Shape::kMaxRank] = {};
    int rank = 0;
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      const int64_t n = shape[axis];
      if (n == 1) continue;
      bool joins = rank > 0;
      for (int t = 0; t < operands && joins; ++t)
        joins = step[t][axis] == stride[t][rank - 1] * extent[rank - 1];
      if (joins) {
        extent[rank - 1] *= n;
        continue;
      }
      extent[rank] = n;
      for (int t = 0; t < operands; ++t) stride[t][rank] = step[t][axis];
      ++rank;
    }
    // Where the row had one element its neighbour need not be packed: a row of one element comes back.
    bool row = rank > 0;
    for (int t = 0; t < operands && row; ++t) row = stride[t][0] == 1 || (t > 0 && stride[t][0] == 0);
    std::array<int64_t, Shape::kMaxRank> out_extent{}, out_stride[3] = {};
    int n = 0;
    for (int axis = rank - 1; axis >= 0; --axis, ++n) {
      out_extent[static_cast<size_t>(n)] = extent[axis];
      for (int t = 0; t < operands; ++t) out_stride[t][static_cast<size_t>(n)] = stride[t][axis];
    }
    if (!row) {
      out_extent[static_cast<size_t>(n)] = 1;
      for (int t = 0; t < operands; ++t) out_stride[t][static_cast<size_t>(n)] = 1;
      ++n;
    }
    const auto view = [&](int t) {
      const auto count = static_cast<size_t>(n);
      return tensors[t]->strided(Shape(std::span<const int64_t>(out_extent.data(), count)),
                                 Shape(std::span<const int64_t>(out_stride[t].data(), count)));
    };
    y = view(0), a = view(1);
    if (operands == 3) b = view(2);
  }

 private:
  static Shape steps_of(const Tensor& t, const Shape& shape) {
    std::array<int64_t, Shape::kMaxRank> step{};
    const int missing = shape.rank() - t.rank();
    for (int axis = missing; axis < shape.rank(); ++axis)
      if (t.dim(axis - missing) == shape[axis]) step[static_cast<size_t>(axis)] = t.stride(axis - missing);
    return Shape(std::span<const int64_t>(step.data(), static_cast<size_t>(shape.rank())));
  }
};

}  // namespace attnbench
