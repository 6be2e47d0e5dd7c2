#include "measure/slowed.hpp"

#include <fmt/format.h>

namespace attnbench {

namespace {

class Slowed final : public Executor {
 public:
  Slowed(std::unique_ptr<Executor> inner, Clock& clock, double share)
      : inner_(std::move(inner)), clock_(clock), share_(share) {}
  std::map<std::string, Value> params() override { return inner_->params(); }
  CaseEstimate estimate() override { return inner_->estimate(); }
  double open(int64_t limit) override { return inner_->open(limit); }
  Accounting account() override { return inner_->account(); }
  VerifyOutcome verify(double budget_s) override { return inner_->verify(budget_s); }
  std::vector<StageTime> profile(int runs) override { return inner_->profile(runs); }
  double run(int64_t iterations) override {
    const double took = inner_->run(iterations);
    const double begin = clock_.now_s();
    double spun = 0;
    while (spun < share_ * took) {
      const double before = spun;
      spun = clock_.now_s() - begin;
      if (spun == before && clock_.overhead_s() == 0)
        return took * (1 + share_);  // a test's clock stands still
    }
    return took + spun;
  }
  void flush_caches() override { inner_->flush_caches(); }
  double resolution_s() const override { return inner_->resolution_s(); }
  AnalysisResult analyze(const std::string& id, const std::map<std::string, Value>& arguments) override {
    return inner_->analyze(id, arguments);
  }
  std::string submission() const override { return inner_->submission(); }
  std::optional<Sustained> sustain(double loop_s, const std::function<bool()>& stop) override {
    return inner_->sustain(loop_s, stop);
  }
  std::vector<std::string> take_warnings() override {
    std::vector<std::string> w = inner_->take_warnings();
    w.push_back(fmt::format("every timed run was slowed by {:.3g}% on purpose", 100 * share_));
    return w;
  }
  void close() override { inner_->close(); }

 private:
  std::unique_ptr<Executor> inner_;
  Clock& clock_;
  double share_;
};

}  // namespace

ExecutorFactory slowed(ExecutorFactory make, double share) {
  if (!(share >= 0 && share <= 10))
    throw UsageError(fmt::format("a slowdown between 0 and 1000% is wanted, not {:g}%", 100 * share));
  return [make = std::move(make), share](const Case& c,
                                         const ExecutorSetup& setup) -> std::unique_ptr<Executor> {
    return std::make_unique<Slowed>(make(c, setup), *setup.clock, share);
  };
}

}  // namespace attnbench
