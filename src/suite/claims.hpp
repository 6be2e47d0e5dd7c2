// Claims: a published figure beside the figure of this run, and the verdict.
//
// An expression is arithmetic over figures of cases (claim_functions() is the whole list) and log, min, max,
// abs. A case is named as the suite names it; where axes made several of it, one is picked by its axis
// values, `time(hilo[batch=64])`, or by the claim's `axes:`.
//
// Intervals: the ratio of two times comes from their paired samples where the run has them
// (CaseResult.ratio); everything else combines the cases' own intervals, as wide as they allow. The verdict
// is that of the point value: an interval is shown beside it and is not stretched into agreement.
#pragma once
#include <map>
#include <string>

#include "measure/results.hpp"
#include "suite/expression.hpp"
#include "suite/suite.hpp"

namespace attnbench {

/// Functions of a case and the number of their further arguments:
///   time               median, seconds               throughput    batch elements a second
///   macs               as the paper counts them, one batch element
///   flops, counted_flops, matmul_flops               closed form, by the ledger, closed form of products
///   only params             learned parameters            memory, workspace   peak bytes: all, workspace
///   error              largest relative L2 of the verification
///   gflops, percent_of_ceiling                       achieved rate and its share of what binds it
///   percent_of_gemm    achieved rate as a share of the gemm operator's large product in the case's dtype
///   stage_time         stage_time(case, "attend"): profiled median of one stage, seconds
///   stage_share        the same as a percentage of all stages of the case
///   scalar             scalar(case, "entropy.mean"): a figure of an analysis;
///   "receptive_field.last_tokens[3]":
///                      the third value of one of its curves
const CaseFunctions& claim_functions();

/// Whether `c` is what a claim means by `ref`: base or full name, and every bound axis value. The claim's own
/// `axes` bind the axes that the case has.
bool is_meant(const Case& c, const CaseRef& ref, const std::map<std::string, Value>& claim_axes);

/// The verdict:
///   exact          tolerance 0: the measured figure, rounded to the published digits, is the published one
///   holds          within published x (1 ± tolerance), or on the right side of it (at_least, at_most)
///   outside        neither
///   not_evaluated  a case is missing, was not measured, or ran on another device, or the run leaves the
///   claim
///                  out; `reason` says which
ClaimResult evaluate_claim(const Claim& claim, const RunResult& run);

/// Half of the last published digit: 298.30 -> 0.005, 64 -> 0.5, 1.2e3 -> 50.
double half_last_digit(const std::string& published);

}  // namespace attnbench
