// Correct first: compares a method's outputs with its double-precision reference before anything is timed.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "measure/clock.hpp"
#include "measure/results.hpp"
#include "methods/method.hpp"

namespace attnbench {

/// Relative L2 error allowed against the reference on the same rounded inputs: f32 1e-5, bf16 2e-2, f16 4e-3,
/// f64 1e-12.
double tolerance_of(DType dtype);

/// Fills every element of every output with NaN (integers: with a huge value), so that what a
/// method forgets to write cannot pass for a result.
void poison(Context& ctx, const TensorMap& outputs);

/// Elements that are NaN, over all outputs.
int64_t count_nan(Context& ctx, const TensorMap& outputs);

struct VerifyOptions {
  /// A reference that would take longer than this is taken for a sample of rows, or run on a reduced shape.
  double budget_s = 1.0;
  /// Beyond this many budgets even the smallest shape, or the smallest sample, is refused: the case stays
  /// unverified.
  double refuse_budgets = 20;
  Clock* clock = nullptr;  ///< null: the steady clock
  int64_t memory_limit = 0;
  std::string weights_file;
};

/// What verification found. `checked` is false when nothing could be compared; `result.how` then says why.
struct VerifyOutcome {
  bool checked = false;
  Verification result;
  /// The reference has NaN too where it was compared: what is NaN elsewhere may be meant.
  bool nan_expected = false;
};

/// Compares the outputs of an instance that has run on `ctx` with its reference, integers exactly.
Verification verify_instance(Context& ctx, const Method& method, const Instance& instance,
                             const Problem& problem, const Params& params);

/// Verifies a case at its own shape (`instance` has run there) when the reference is quick enough. Otherwise
/// at the largest reduced shape that is: halving batch and heads down to two of each, then lengths, grids,
/// sizes and channels, then batch and heads to one (odd counts rounded up), wherever the method accepts it.
/// Where the reference can be taken row by row, a seeded sample of rows is then compared at the own shape as
/// well: as many as take another budget, spread by RowSample; no row of it may be off by more than four
/// tolerances by itself. References are timed as
/// the shapes grow, so no model of their cost is trusted for long. Every shape on the way is compared too.
/// Where the outputs differ and the reference itself answers otherwise once its operands move by a few f32
/// roundings (a near tie decides a selection), the next seed's inputs are compared instead; a case with no
/// such seed among eight, or with given inputs, stays unverified.
VerifyOutcome verify_case(Context& ctx, const Method& method, const Instance& instance,
                          const Problem& problem, const std::map<std::string, Value>& given,
                          const VerifyOptions& options = {});

/// The shapes from `problem` down to the smallest, each one halving from the one before.
std::vector<Problem> reduced_problems(const Method& method, const Problem& problem,
                                      const std::map<std::string, Value>& given,
                                      DeviceKind device = DeviceKind::cpu);

/// One line of `attnbench verify`.
struct MethodCheck {
  std::string variation;  ///< "example", "causal", "odd sizes", …
  Problem problem;
  VerifyOutcome outcome;
  CaseStatus status = CaseStatus::ok;  ///< ok, unsupported, unverified or failed
  std::string reason;
};
/// Verifies a method at its example and at every variation of it that the method accepts: causal, odd sizes,
/// one token, batch of three, fewer key heads, more keys than queries. A variation that the method refuses
/// is left out; the example itself is always in the list.
std::vector<MethodCheck> verify_method(Context& ctx, const Method& method, DType dtype,
                                       const VerifyOptions& options = {});

}  // namespace attnbench
