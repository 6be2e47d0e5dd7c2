// Compares a result with what it should be: relative L2, worst element and its place. NaN matches only NaN.
#pragma once
#include <string>

#include "reference/reference.hpp"

namespace attnbench {

struct Comparison {
  double relative_l2 = 0;   ///< ||got - want|| / ||want||; ||got - want|| where want is all zeros
  double max_absolute = 0;  ///< largest |got - want|
  /// "[3, 17, 5]: 0.12 instead of 0.34" for the element with the largest |got - want|, or the first place
  /// where only one side is NaN or infinite (relative_l2 and max_absolute are infinite then). Empty when
  /// nothing differs.
  std::string worst;
  int64_t worst_index = -1;  ///< row-major index of that element; -1: nothing differs
};
/// Throws DataError when the shapes differ. Equal infinities count as equal.
Comparison compare(const RefTensor& got, const RefTensor& want);

/// "[3, 17, 5]": element `index` of a row-major tensor.
std::string place_text(const std::vector<int64_t>& shape, int64_t index);

}  // namespace attnbench
