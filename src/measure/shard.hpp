// Parts of a suite that several machines or jobs measure at the same time, and their results as one again.
#pragma once
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

struct Shard {
  int index = 1, count = 1;  ///< 1-based
};
/// "2/5". Throws UsageError.
Shard parse_shard(const std::string& text);

/// Seconds that a case will take, roughly: enough to balance parts, not to promise an end.
double estimated_seconds(const Case& c, const MeasureConfig& measure);

/// The suite with the cases of one part only; cases that take their samples in turn stay together. The same
/// on every machine: the costliest group goes to the part with the least, ties to the first. Claims stay,
/// merging evaluates them; `resolved_text` says which part it is.
Suite shard_of(Suite suite, Shard shard);

/// Joins the results of all parts in the order of the suite. Throws UsageError when they are of different
/// suites or machines, or a part is there twice, or (unless `partial`) one is missing. Claims are left to the
/// caller.
RunResult merge_shards(std::vector<RunResult> parts, bool partial);

}  // namespace attnbench
