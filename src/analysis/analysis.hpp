// An analysis computes a property of a case. One analysis = one file here, registered by one line in it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "measure/results.hpp"
#include "methods/method.hpp"

namespace attnbench {

struct AnalysisInfo {
  std::string id, title, summary, formula, unit;
  std::vector<ParamSpec> params;
  std::vector<std::string> headline;  ///< scalars that tables show, in this order; empty: all
};

class Analysis {
 public:
  virtual ~Analysis() = default;
  virtual const AnalysisInfo& info() const = 0;
  /// `instance` is bound and has run once on `ctx`. Throws Unsupported{why} when the method has no such
  /// property.
  virtual AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                                 const Params& params) const = 0;
};
const std::vector<const Analysis*>& all_analyses();
const Analysis& find_analysis(const std::string& id);
bool register_analysis(std::unique_ptr<Analysis> a);
#define ATTNBENCH_ANALYSIS(Class) \
  static const bool registered_analysis_##Class = ::attnbench::register_analysis(std::make_unique<Class>())

}  // namespace attnbench
