// An executor that spins for a share of every timed run: a slowdown of known size, by which a gate proves
// that it sees one. Never in a measurement that nobody asked to be slowed; its results carry a warning.
#pragma once
#include "measure/executor.hpp"

namespace attnbench {

/// `share`: 0.05 makes every run take 5% longer.
ExecutorFactory slowed(ExecutorFactory make, double share);

}  // namespace attnbench
