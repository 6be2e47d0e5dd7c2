// Which cases are measured together. Cases that a baseline or a claim compares take their samples in turn,
// as far as memory lets them be alive at once. Measures nothing.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "suite/suite.hpp"

namespace attnbench {

/// Whether a ratio of the times of two problems says anything about methods: same kind, batch, tokens, pixels
/// and samples. Heads, widths and dtypes may differ, as layers and precisions are compared too.
bool comparable(const Problem& a, const Problem& b);

/// The index of the case that `suite.cases[i]` is compared with: base name `suite.baseline`, same device, a
/// comparable problem, and no axis with another value (the one that shares most axes when several fit). None
/// for the baseline itself.
std::optional<size_t> baseline_of(const Suite& suite, size_t i);

/// Sets of case indices joined directly or through others, each in suite order, sets ordered by their first.
std::vector<std::vector<size_t>> comparison_groups(const Suite& suite);

/// Cases that are alive together. `partner`: the baseline, when it belongs to an earlier batch and is only
/// here so that its samples pair with these; its result stays as it is.
struct Batch {
  std::vector<size_t> members;
  std::optional<size_t> partner;
};
/// Cuts a group so that no batch needs more than `limit` bytes (0: no limit); `bytes[i]` is what case i
/// needs. Where a baseline fits beside its case it comes along; where not, the case is measured apart.
std::vector<Batch> fit_into_memory(const std::vector<size_t>& group, std::optional<size_t> baseline,
                                   const std::vector<int64_t>& bytes, int64_t limit);

}  // namespace attnbench
