// Coverage of span searches: the card's rule by brute force, holes by hand, gates and anchors of a run.
#include <cmath>
#include <set>

#include "methods/dense_counterpart.hpp"
#include "methods/span_candidates.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

AnalysisResult coverage(Trial& t, const ParamMap& given = {}) {
  const Analysis& a = find_analysis("coverage");
  return a.compute(*t.ctx, *t.instance, t.problem,
                   resolve_params(a.info().id, a.info().params, given, t.problem));
}

struct Rule {
  double back, ahead;
  int64_t a;  ///< sw_index; p = s = 1/2
};

/// ceil(f sqrt(length)), in integers: the least x with x^2 >= f^2 length. f is a multiple of 1/2.
int64_t reach(double f, int64_t length) {
  const auto square = static_cast<int64_t>(4 * f * f) * length;
  int64_t x = 0;
  while (4 * x * x < square) ++x;
  return x;
}

struct Found {
  double uncovered = 0, open = 0, times = 0, once = 0, all = 0, first = -1;
};
/// The card's rules 1 and 4, key by key.
Found brute_force(const Rule& rule, int64_t n, int64_t m, const std::vector<bool>& valid) {
  Found f;
  const int64_t window = (rule.a + 1) * (rule.a + 1) - 1;
  const int64_t least = std::find(valid.begin(), valid.end(), true) - valid.begin();
  for (int64_t t = m - n; t < m; ++t) {
    std::vector<int64_t> in(static_cast<size_t>(m), 0);
    const int64_t length = t + 1 - least;
    for (int64_t i = rule.a + 1; i * i <= t + 1; ++i) {
      const int64_t c = t - i * i + 1;
      if (c < least || !valid[static_cast<size_t>(c)]) continue;
      int64_t end = std::min(c + reach(rule.ahead, length), t);
      if (rule.ahead > 0 && window > 0) end = std::min(end, std::max<int64_t>(t - window + 1, 0) - 1);
      for (int64_t j = std::max(c - reach(rule.back, length), least); j <= end; ++j)
        ++in[static_cast<size_t>(j)];
    }
    double missing = 0;
    for (int64_t j = 0; j <= t; ++j) {
      if (!valid[static_cast<size_t>(j)]) continue;
      const int64_t times = in[static_cast<size_t>(j)];
      f.all += 1, f.times += static_cast<double>(times), f.once += times > 0;
      missing += times == 0 && j < t - window + 1;
    }
    f.uncovered += missing, f.open += missing > 0;
    if (missing > 0 && f.first < 0) f.first = static_cast<double>(t);
  }
  return f;
}

class FakeSearch final : public FakeInstance, public DenseCounterpart, public SpanCandidates {
 public:
  FakeSearch() : ctx_(cpu_backend(), 1) {
    dense_.pairs = square(4, 1, [](int64_t, int64_t, int64_t i, Intervals& out) { out = {{0, i + 1}}; });
    pair_set = dense_.pairs;
    chosen_.anchors = ctx_.allocate(DType::i32, {1, 1, 4, 2});
    chosen_.scores = ctx_.allocate(DType::f32, {1, 1, 4, 2});
    chosen_.positions = ctx_.allocate(DType::i32, {4});
    for (int64_t i = 0; i < 8; ++i) {
      chosen_.anchors.data<int32_t>()[i] = -1;
      chosen_.scores.data<float>()[i] = -1e9f;
      chosen_.positions.data<int32_t>()[i / 2] = static_cast<int32_t>(i / 2);
    }
  }
  std::optional<DenseEquivalent> dense_equivalent(Context&) override { return dense_; }
  Candidates candidates_of(int64_t, int64_t i) const override {
    Candidates c;
    c.position = i, c.always = {i, i + 1};
    // Query 3: keys 0 and 1 twice; key 2 never.
    if (i == 3) c.anchors = {1, 1}, c.spans = {{0, 2}, {1, 2}};
    if (i == 2) c.anchors = {1}, c.spans = {{0, 2}};
    if (i == 1) c.anchors = {0}, c.spans = {{0, 1}};
    return c;
  }
  ChosenSpans chosen() const override { return chosen_; }
  ChosenSpans chosen_;

 private:
  Context ctx_;
  DenseEquivalent dense_;
};

}  // namespace

TEST_CASE("coverage by hand: one hole, candidates that overlap, gates of 1, of two and of none") {
  FakeSearch f;
  AnalysisResult r = analyse("coverage", f);
  CHECK(r.scalars.at("uncovered") == 1);
  CHECK(r.scalars.at("open_queries") == 1);
  CHECK(r.scalars.at("most_uncovered") == 1);
  CHECK(r.scalars.at("coverage") == Approx(0.9));
  CHECK(r.scalars.at("redundancy") == Approx((1 + 2 + 3) / 5.0));
  CHECK(r.notes.at("first open query") == "at position 3");
  CHECK_FALSE(r.scalars.contains("gate_entropy"));
  f.chosen_.anchors.data<int32_t>()[4] = 1, f.chosen_.scores.data<float>()[4] = 5;  // query 2: one span
  f.chosen_.anchors.data<int32_t>()[6] = 0, f.chosen_.anchors.data<int32_t>()[7] = 1;
  f.chosen_.scores.data<float>()[6] = static_cast<float>(std::log(3.0)),
  f.chosen_.scores.data<float>()[7] = 0;
  r = analyse("coverage", f);
  CHECK(r.scalars.at("gate_entropy") ==
        Approx(-(0.75 * std::log(0.75) + 0.25 * std::log(0.25)) / 2).epsilon(1e-6));
  CHECK(r.scalars.at("anchor_distance") == Approx((1 + 3 + 2) / 3.0));
  CHECK(r.series.at("anchors_by_octave") == std::vector<double>{0, 1 / 3.0, 2 / 3.0});
  FakeInstance none;
  CHECK_THROWS_AS(analyse("coverage", none), Unsupported);
}

TEST_CASE("superlinear's candidates, by the card's rule key by key") {
  const double back = GENERATE(2.0, 1.5, 0.5), ahead = GENERATE(0.0, 1.0);
  const int64_t a = GENERATE(0, 3);
  const bool padded = GENERATE(false, true);
  const int64_t n = 150, m = 170;
  Trial t = make_trial("superlinear", heads_problem(1, 2, 1, n, m, 4, true),
                       {{"backward_factor", back}, {"forward_factor", ahead}, {"sw_index", a}});
  std::vector<bool> valid(static_cast<size_t>(m), true);
  if (padded) {
    const Tensor mask = t.ctx->allocate(DType::i32, {1, m});
    for (int64_t j = 0; j < m; ++j) {
      valid[static_cast<size_t>(j)] = j >= 11 && j != 60;
      mask.data<int32_t>()[j] = valid[static_cast<size_t>(j)];
    }
    rebind(t, {{"key_mask", mask}});
  }
  t.run();
  const AnalysisResult r = coverage(t);
  const Found f = brute_force({back, ahead, a}, n, m, valid);
  INFO("back " << back << ", ahead " << ahead << ", a " << a << ", padded " << padded);
  CHECK(r.scalars.at("uncovered") == f.uncovered);
  CHECK(r.scalars.at("open_queries") == f.open);
  CHECK(r.scalars.at("coverage") == Approx(1 - f.uncovered / f.all));
  CHECK(r.scalars.at("redundancy") == Approx(f.times / f.once));
  if (back == 2.0 && !padded) CHECK(f.uncovered == 0);
  if (back == 0.5) CHECK(f.uncovered > 0);
}

TEST_CASE("superlinear's default factor leaves no key out, a smaller one does, as its card derives") {
  const auto uncovered = [](double back) {
    Trial t =
        make_trial("superlinear", heads_problem(1, 1, 1, 700, 700, 4, true), {{"backward_factor", back}});
    t.run();
    return coverage(t).scalars.at("uncovered");
  };
  CHECK(uncovered(2.0) == 0);
  CHECK(uncovered(1.5) > 0);
}

TEST_CASE("what superlinear chose: gate entropy and distance from its outputs") {
  Trial t = make_trial("superlinear", heads_problem(2, 2, 1, 60, 75, 8, true), {{"num_spans", 3}});
  t.run();
  const RefTensor anchors = t.output("anchors"), scores = t.output("scores");
  double entropy = 0, rows = 0, distance = 0, found = 0;
  for (int64_t row = 0; row < anchors.numel() / 3; ++row) {
    double sum = 0;
    std::vector<double> g;
    for (int64_t k = row * 3; k < row * 3 + 3; ++k) {
      if (anchors[k] < 0) continue;
      g.push_back(std::exp(scores[k])), sum += g.back();
      distance += static_cast<double>(row % 60 + 15) - anchors[k], found += 1;
    }
    for (const double x : g) entropy -= x / sum * std::log(x / sum);
    rows += !g.empty();
  }
  const AnalysisResult r = coverage(t);
  CHECK(r.scalars.at("gate_entropy") == Approx(entropy / rows).epsilon(1e-5));
  CHECK(r.scalars.at("anchor_distance") == Approx(distance / found));
  double share = 0;
  for (const double x : r.series.at("anchors_by_octave")) share += x;
  CHECK(share == Approx(1));
  Trial dense = make_trial("dense", heads_problem(1, 1, 1, 9, 9, 4, true));
  dense.run();
  CHECK_THROWS_AS(coverage(dense), Unsupported);
}
