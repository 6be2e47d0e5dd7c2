#include "suite/claims.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

namespace attnbench {

namespace {

/// A figure with the interval in which it lies; exact figures have an interval of no width.
struct Figure {
  double value = 0, low = 0, high = 0;
  static Figure exactly(double v) { return {v, v, v}; }
};

/// Why a claim cannot be evaluated.
struct NotEvaluated {
  std::string reason;
};

std::string last_part(const std::string& dotted) { return dotted.substr(dotted.rfind('.') + 1); }

bool same_value(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.as_double() == b.as_double();
  return a == b;
}

const Value* axis_of(const Case& c, const std::string& key) {
  for (const auto& [axis, value] : c.axes)
    if (axis == key || last_part(axis) == key) return &value;
  return nullptr;
}

Figure hull(double value, std::initializer_list<double> corners) {
  return {value, std::min(corners), std::max(corners)};
}

class Evaluator {
 public:
  Evaluator(const Claim& claim, const RunResult& run) : claim_(claim), run_(run) {}

  Figure figure(const Expression& e) {
    switch (e.kind) {
      case Expression::Kind::literal:
        if (!e.literal.is_number()) throw NotEvaluated{"'" + e.literal.str() + "' is no number"};
        return Figure::exactly(e.literal.as_double());
      case Expression::Kind::name:
        throw NotEvaluated{"'" + e.word + "' has no value in a claim"};
      case Expression::Kind::call:
        return e.has_case ? of_case(e) : function(e);
      case Expression::Kind::unary: {
        if (e.word != "-") throw NotEvaluated{"'" + e.word + "' has no meaning in a claim"};
        const Figure f = figure(*e.arguments[0]);
        return {-f.value, -f.high, -f.low};
      }
      case Expression::Kind::binary:
        return binary(e);
    }
    return {};
  }

 private:
  Figure binary(const Expression& e) {
    if (e.word == "/")
      if (const auto ratio = paired_ratio(*e.arguments[0], *e.arguments[1])) return *ratio;
    const Figure a = figure(*e.arguments[0]), b = figure(*e.arguments[1]);
    if (e.word == "+") return {a.value + b.value, a.low + b.low, a.high + b.high};
    if (e.word == "-") return {a.value - b.value, a.low - b.high, a.high - b.low};
    if (e.word == "*")
      return hull(a.value * b.value, {a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
    if (e.word == "/") {
      if (b.low <= 0 && b.high >= 0) throw NotEvaluated{"division by zero in '" + claim_.expression + "'"};
      return hull(a.value / b.value, {a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high});
    }
    throw NotEvaluated{"'" + e.word + "' has no meaning in a claim"};
  }

  Figure function(const Expression& e) {
    std::vector<Figure> a;
    for (const ExpressionPtr& p : e.arguments) a.push_back(figure(*p));
    if (e.word == "log") {
      if (!(a[0].low > 0)) throw NotEvaluated{"the logarithm of a figure that may be 0"};
      return {std::log(a[0].value), std::log(a[0].low), std::log(a[0].high)};
    }
    if (e.word == "abs") {
      const double low =
          a[0].low <= 0 && a[0].high >= 0 ? 0 : std::min(std::fabs(a[0].low), std::fabs(a[0].high));
      return {std::fabs(a[0].value), low, std::max(std::fabs(a[0].low), std::fabs(a[0].high))};
    }
    Figure best = a[0];
    for (const Figure& f : a) {
      const auto pick = [&e](double x, double y) {
        return e.word == "min" ? std::min(x, y) : std::max(x, y);
      };
      best = {pick(best.value, f.value), pick(best.low, f.low), pick(best.high, f.high)};
    }
    return best;
  }

  /// The case that is meant, on the claim's device, or on the first device of the run that has it.
  const CaseResult& find(const CaseRef& ref) {
    const CaseResult* found = nullptr;
    bool elsewhere = false;
    for (const CaseResult& r : run_.cases) {
      if (!is_meant(r.spec, ref, claim_.axes)) continue;
      if (!claim_.device.empty() && r.spec.device != claim_.device) {
        elsewhere = true;
        continue;
      }
      if (found && found->spec.device == r.spec.device)
        throw NotEvaluated{"'" + ref.str() + "' may be '" + found->spec.name + "' or '" + r.spec.name + "'"};
      // All cases of one claim come from one device.
      if (!found && (device_.empty() || device_ == r.spec.device)) found = &r;
    }
    if (found) {
      device_ = found->spec.device;
      return *found;
    }
    if (elsewhere) throw NotEvaluated{"case '" + ref.str() + "' did not run on " + claim_.device};
    throw NotEvaluated{"case '" + ref.str() + "' is not part of this run"};
  }

  static const CaseResult& measured(const CaseResult& r) {
    if (r.status == CaseStatus::ok) return r;
    throw NotEvaluated{"case '" + r.spec.name + "' is " + std::string(name(r.status)) +
                       (r.reason.empty() ? "" : ": " + r.reason)};
  }
  static const Timing& timing(const CaseResult& r) {
    if (!measured(r).time) throw NotEvaluated{"case '" + r.spec.name + "' was not timed"};
    if (!(r.time->median_s > 0) || !(r.time->ci_low_s > 0))
      throw NotEvaluated{"case '" + r.spec.name + "' has no time above 0"};
    return *r.time;
  }
  /// Closed forms are known for cases that were not measured too; 0 stands for "not known".
  static Figure known(const CaseResult& r, int64_t v, const char* what) {
    if (v > 0) return Figure::exactly(static_cast<double>(v));
    measured(r);
    throw NotEvaluated{"case '" + r.spec.name + "' has no " + what};
  }

  Figure of_case(const Expression& e) {
    const CaseResult& r = find(e.of);
    const std::string& f = e.word;
    if (f == "time") {
      const Timing& t = timing(r);
      return {t.median_s, t.ci_low_s, t.ci_high_s};
    }
    if (f == "throughput") {
      const Timing& t = timing(r);
      const double batch = static_cast<double>(r.spec.problem.batch);
      return {batch / t.median_s, batch / t.ci_high_s, batch / t.ci_low_s};
    }
    if (f == "macs") return known(r, r.published_macs, "MAC count as its paper counts");
    if (f == "flops") return known(r, r.formula.flops(), "closed form of its FLOPs");
    if (f == "matmul_flops") return known(r, r.formula.matmul, "matrix products in its closed form");
    if (f == "counted_flops") return known(measured(r), r.counted.flops(), "counted FLOPs");
    if (f == "params") {
      if (r.parameters > 0 || r.status == CaseStatus::ok)
        return Figure::exactly(static_cast<double>(r.parameters));
      return known(r, 0, "parameter count");
    }
    if (f == "memory" || f == "workspace") {
      if (!measured(r).memory)
        throw NotEvaluated{"the memory of case '" + r.spec.name + "' was not measured"};
      return Figure::exactly(
          static_cast<double>(f == "memory" ? r.memory->total_peak : r.memory->workspace_peak));
    }
    if (f == "error") {
      if (!measured(r).verification || r.verification->relative_l2.empty())
        throw NotEvaluated{"case '" + r.spec.name + "' has no verification with an error"};
      double worst = 0;
      for (const auto& [_, error] : r.verification->relative_l2) worst = std::max(worst, error);
      return Figure::exactly(worst);
    }
    if (f == "gflops" || f == "percent_of_ceiling") {
      if (!measured(r).bound) throw NotEvaluated{"case '" + r.spec.name + "' has no rate"};
      return Figure::exactly(f == "gflops" ? r.bound->gflops : r.bound->percent_of_ceiling);
    }
    if (f == "percent_of_gemm") {
      if (!measured(r).bound) throw NotEvaluated{"case '" + r.spec.name + "' has no rate"};
      return Figure::exactly(100 * r.bound->gflops / product_rate(r));
    }
    if (f == "stage_time" || f == "stage_share")
      return stage(r, e.arguments.at(0)->literal, f == "stage_share");
    return scalar(r, e.arguments.at(0)->literal);
  }

  /// Profiled medians: of one stage, or its percentage of what all stages take together.
  static Figure stage(const CaseResult& r, const Value& what, bool share) {
    if (!what.is_string()) throw NotEvaluated{"stages are named by a text such as \"attend\""};
    double all = 0, own = -1;
    std::string names;
    for (const StageTime& s : measured(r).stages) {
      all += s.median_s;
      if (s.stage == what.as_string()) own = s.median_s;
      names += (names.empty() ? "" : ", ") + s.stage;
    }
    if (own < 0)
      throw NotEvaluated{"case '" + r.spec.name + "' has no stage '" + what.as_string() + "'" +
                         (names.empty() ? ", nor any other" : "; it has " + names)};
    if (!(all > 0)) throw NotEvaluated{"the stages of case '" + r.spec.name + "' took no time"};
    return Figure::exactly(share ? 100 * own / all : own);
  }

  /// What the gemm operator's large product reached in the case's dtype on its device.
  double product_rate(const CaseResult& r) const {
    const std::string type = r.spec.device + "/" + std::string(name(r.spec.problem.dtype));
    // Ceilings of the CPU are kept by thread count; devices have none.
    const auto threads = run_.environment.values.find("threads");
    std::vector<std::string> keys{type + "/gemm"};
    if (threads != run_.environment.values.end())
      keys.insert(keys.begin(), type + "/" + threads->second.str() + "/gemm");
    for (const std::string& key : keys)
      if (const auto it = run_.roofline.gflops.find(key); it != run_.roofline.gflops.end() && it->second > 0)
        return it->second;
    throw NotEvaluated{"this run has no product rate of " + type + " (ceiling " + keys.front() + ")"};
  }

  static Figure scalar(const CaseResult& r, const Value& what) {
    if (!what.is_string()) throw NotEvaluated{"scalar() wants a text such as \"entropy.mean\""};
    const std::string& text = what.as_string();
    const size_t dot = text.find('.');
    for (const AnalysisResult& a : measured(r).analyses) {
      if (a.analysis != text.substr(0, dot) || dot == std::string::npos) continue;
      const std::string key = text.substr(dot + 1);
      const auto it = a.scalars.find(key);
      if (it != a.scalars.end()) return Figure::exactly(it->second);
      // "curve[3]": the third value of a curve.
      const size_t bracket = key.find('[');
      const auto curve = a.series.find(key.substr(0, bracket));
      if (bracket == std::string::npos || curve == a.series.end()) continue;
      const long at = std::strtol(key.c_str() + bracket + 1, nullptr, 10);
      if (at < 1 || static_cast<size_t>(at) > curve->second.size())
        throw NotEvaluated{"'" + text + "' of case '" + r.spec.name + "' has the values 1 to " +
                           std::to_string(curve->second.size())};
      return Figure::exactly(curve->second[static_cast<size_t>(at) - 1]);
    }
    throw NotEvaluated{"case '" + r.spec.name + "' has no figure '" + text + "'"};
  }

  /// time(a) / time(b), or the throughputs the other way round at one batch size, from paired samples.
  std::optional<Figure> paired_ratio(const Expression& above, const Expression& below) {
    if (!above.has_case || !below.has_case || above.word != below.word) return std::nullopt;
    const bool throughput = above.word == "throughput";
    if (!throughput && above.word != "time") return std::nullopt;
    const CaseResult &x = find(above.of), &y = find(below.of);
    if (throughput && x.spec.problem.batch != y.spec.problem.batch) return std::nullopt;
    timing(x), timing(y);  // refuses cases that were not measured
    const CaseResult &numerator = throughput ? y : x, &denominator = throughput ? x : y;
    // CaseResult.ratio is the baseline's time over the case's own.
    if (is_baseline_of(numerator, denominator)) {
      const Ratio& r = *denominator.ratio;
      return Figure{r.value, r.ci_low, r.ci_high};
    }
    if (is_baseline_of(denominator, numerator)) {
      const Ratio& r = *numerator.ratio;
      return Figure{1 / r.value, 1 / r.ci_high, 1 / r.ci_low};
    }
    return std::nullopt;
  }
  static bool is_baseline_of(const CaseResult& baseline, const CaseResult& r) {
    if (&baseline == &r || !r.ratio || r.ratio->pairs <= 0 || !(r.ratio->ci_low > 0)) return false;
    if (r.ratio->baseline == baseline.spec.name) return true;
    // Named by its base name, the baseline is the case with the same axis values on the same device.
    return r.ratio->baseline == baseline.spec.base_name && baseline.spec.device == r.spec.device &&
           baseline.spec.axes == r.spec.axes;
  }

  const Claim& claim_;
  const RunResult& run_;
  std::string device_;
};

ClaimResult::Verdict verdict(const Claim& c, double measured) {
  using V = ClaimResult::Verdict;
  // The slack of a few ulps: the half digit itself is no binary fraction.
  const double half = half_last_digit(c.published_text) + 4 * 2.22e-16 * std::fabs(c.published);
  const bool digits_agree = std::fabs(measured - c.published) <= half;
  if (c.tolerance == 0 && digits_agree) return V::exact;
  const double band = c.tolerance == 0 ? half : c.tolerance * std::fabs(c.published);
  const bool above = measured >= c.published - band, below = measured <= c.published + band;
  const bool holds = c.compare == "at_least" ? above : c.compare == "at_most" ? below : above && below;
  return holds ? V::holds : V::outside;
}

}  // namespace

const CaseFunctions& claim_functions() {
  static const CaseFunctions f{
      {"time", 0},          {"throughput", 0},      {"macs", 0},       {"flops", 0},
      {"counted_flops", 0}, {"matmul_flops", 0},    {"params", 0},     {"memory", 0},
      {"workspace", 0},     {"error", 0},           {"gflops", 0},     {"percent_of_ceiling", 0},
      {"scalar", 1},        {"percent_of_gemm", 0}, {"stage_time", 1}, {"stage_share", 1}};
  return f;
}

bool is_meant(const Case& c, const CaseRef& ref, const std::map<std::string, Value>& claim_axes) {
  if (c.base_name != ref.name && c.name != ref.name) return false;
  for (const auto& [key, value] : ref.axes) {
    const Value* v = axis_of(c, key);
    if (!v || !same_value(*v, value)) return false;
  }
  // What the reference binds itself goes before the claim's axes.
  for (const auto& [key, value] : claim_axes) {
    const Value* v = axis_of(c, key);
    const bool bound = std::any_of(ref.axes.begin(), ref.axes.end(),
                                   [&](const auto& own) { return axis_of(c, own.first) == v; });
    if (v && !bound && c.name != ref.name && !same_value(*v, value)) return false;
  }
  return true;
}

double half_last_digit(const std::string& published) {
  const size_t e = published.find_first_of("eE");
  const std::string mantissa = published.substr(0, e);
  const size_t dot = mantissa.find('.');
  double exponent = dot == std::string::npos ? 0 : -static_cast<double>(mantissa.size() - dot - 1);
  if (e != std::string::npos) exponent += std::strtod(published.c_str() + e + 1, nullptr);
  return 0.5 * std::pow(10.0, exponent);
}

ClaimResult evaluate_claim(const Claim& claim, const RunResult& run) {
  ClaimResult result;
  result.claim = claim;
  if (!claim.left_out.empty()) {
    result.reason = claim.left_out;
    return result;
  }
  try {
    const ExpressionPtr e = parse_expression(claim.expression, claim_functions());
    const Figure f = Evaluator(claim, run).figure(*e);
    if (!std::isfinite(f.value) || !std::isfinite(f.low) || !std::isfinite(f.high))
      throw NotEvaluated{"'" + claim.expression + "' gives no finite figure"};
    result.measured = f.value;
    result.ci_low = f.low;
    result.ci_high = f.high;
    result.verdict = verdict(claim, f.value);
  } catch (const NotEvaluated& n) {
    result.reason = n.reason;
  } catch (const ExpressionError& e) {
    result.reason = e.what();
  }
  return result;
}

}  // namespace attnbench
