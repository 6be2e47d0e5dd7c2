// Series by head as a table of layers and heads. Analyses number the heads of a stack (the host model, maps
// of several layers) through all layers: head l H + h is head h of layer l.
#pragma once
#include <cstddef>
#include <string>

#include "methods/problem.hpp"

namespace attnbench {

struct HeadGrid {
  size_t layers = 1, heads = 0;
};

/// Series whose values belong to heads are called head_something.
inline bool is_by_head(const std::string& key) { return key.starts_with("head_"); }

/// `values` heads of a case on this problem; one layer where they are no multiple of the problem's heads.
inline HeadGrid head_grid(const Problem& problem, size_t values) {
  const auto each = static_cast<size_t>(problem.heads > 0 ? problem.heads : 0);
  if (each == 0 || values % each != 0 || values == 0) return {1, values};
  return {values / each, each};
}

}  // namespace attnbench
