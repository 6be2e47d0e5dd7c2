// What analyses need of an `in_context_linear` instance: its problem, its parameters and the true answers of
// its prompts. Not the model itself.
#pragma once
#include "methods/params.hpp"
#include "methods/problem.hpp"

namespace attnbench {

class InContextRegression {
 public:
  virtual ~InContextRegression() = default;
  virtual const Problem& problem() const = 0;
  virtual const Params& params() const = 0;
  /// The estimators are there: pattern weights and one response.
  virtual bool has_estimators() const = 0;
  /// The answer of prompt b, noise included, as the generator draws it.
  virtual double drawn_target(int64_t b) const = 0;
  /// eta = 2 omega_1 mu_1: the step of the gradient descent that a pair of heads stands for.
  virtual double step() const = 0;
};

}  // namespace attnbench
