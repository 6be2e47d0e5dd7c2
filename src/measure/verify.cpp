#include "measure/verify.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

#include "inputs/inputs.hpp"
#include "measure/estimate.hpp"
#include "measure/row_sample.hpp"
#include "reference/compare.hpp"

namespace attnbench {

namespace {

// References are naive double loops; this is about what one core does of them. Only the first guess uses it.
constexpr double kReferenceFlopsPerSecond = 5e8;
// The climb starts where the guess says a twentieth of the budget: the guess may be wrong by as much.
constexpr double kStartShare = 0.05;
// Inputs are drawn again this often when rounding alone decides what the reference answers.
constexpr int kDraws = 8;
// A few roundings of f32, in which methods choose whatever their storage type.
constexpr double kRoundings = 0x1p-22;
constexpr int kDisturbances = 4;
// A sampled row is allowed this many tolerances by itself: one wrong row among thousands would hardly move
// the error of all of them. Rounding errors of rows spread, but by less than this around their common
// measure.
constexpr double kRowTolerances = 4;
// Rows of a sample are computed in growing groups; their time is known between two groups only.
constexpr int64_t kFirstRows = 16;
constexpr int64_t kGrowth = 4;

Params resolve(const Method& method, const std::map<std::string, Value>& given, const Problem& problem) {
  check_problem(problem);
  return resolve_params(method.info().id, method.info().params, given, problem);
}

/// The instance alone, on memory that is promised and not there: nothing is filled, prepared or run. Null
/// where the method refuses.
class DryInstance {
 public:
  DryInstance(const Method& method, const Problem& p, const std::map<std::string, Value>& given,
              DeviceKind device)
      : backend_(device), ctx_(backend_, 0) {
    try {
      instance_ = method.make(ctx_, p, resolve(method, given, p));
    } catch (const std::exception&) {
    }
  }
  const Instance* operator->() const { return instance_.get(); }
  explicit operator bool() const { return instance_ != nullptr; }

 private:
  DryBackend backend_;
  Context ctx_;
  std::unique_ptr<Instance> instance_;
};

/// FLOPs of looking at all pairs, because references mask where methods skip.
double pair_flops(const Problem& p) {
  const double tokens = static_cast<double>(p.tokens());
  const double keys = tokens > 0 ? static_cast<double>(p.kv_length_or_length()) : 0;
  const double width = static_cast<double>(
      p.channels ? p.channels : std::max<int64_t>(p.heads, 1) * std::max<int64_t>(p.head_dim, 1));
  return 4.0 * static_cast<double>(p.batch) * tokens * keys * width;
}

/// The shapes that a case may be verified at, with about the FLOPs that its reference takes there: at least
/// those of all pairs, and at least the method's own. The closed form of a method may count a mask of
/// a hundred thousand rows, so it is asked for where the pairs alone do not tell.
class Shapes {
 public:
  Shapes(const Method& method, const std::map<std::string, Value>& given, DeviceKind device)
      : method_(method), given_(given), device_(device) {}
  void assign(std::vector<Problem> chain) {
    chain_ = std::move(chain);
    flops_.assign(chain_.size(), std::nullopt);
  }
  size_t size() const { return chain_.size(); }
  const Problem& operator[](size_t i) const { return chain_[i]; }
  double flops(size_t i) {
    if (!flops_[i]) {
      const DryInstance instance(method_, chain_[i], given_, device_);
      const double own = instance ? static_cast<double>(instance->cost().cost.flops()) : 0.0;
      flops_[i] = std::max(own, pair_flops(chain_[i]));
    }
    return *flops_[i];
  }
  bool beyond(size_t i, double limit) { return pair_flops(chain_[i]) > limit || flops(i) > limit; }

 private:
  const Method& method_;
  const std::map<std::string, Value>& given_;
  DeviceKind device_;
  std::vector<Problem> chain_;
  std::vector<std::optional<double>> flops_;
};

void halve(int64_t& v) { v /= 2; }
int64_t half_up(int64_t v) { return (v + 1) / 2; }

/// Every way to halve `p` once, the preferred first.
std::vector<Problem> halvings(const Problem& p, int64_t least_batch, int64_t least_heads) {
  std::vector<Problem> v;
  const auto add = [&](auto&& change) {
    Problem q = p;
    change(q);
    if (!(q == p)) v.push_back(q);
  };
  constexpr int64_t kLeastExtent = 4;
  // Batch and heads are rounded up: 3 to 2, so that two are left as long as that is possible.
  if (const int64_t batch = half_up(p.batch); batch < p.batch && batch >= least_batch)
    add([&](Problem& q) { q.batch = batch; });
  // Key heads shrink with query heads, each with its whole group; a single one stays.
  const int64_t group = p.kv_heads > 1 ? p.heads / p.kv_heads : 1;
  if (const int64_t heads = half_up(p.heads / group) * group; heads < p.heads && heads >= least_heads)
    add([&](Problem& q) {
      if (q.kv_heads > 1) q.kv_heads = heads / group;
      // In layer form the head width stays.
      if (q.channels && !q.head_dim) q.channels = q.channels / q.heads * heads;
      q.heads = heads;
    });
  if (p.length >= 2 * kLeastExtent)
    add([](Problem& q) {
      halve(q.length);
      if (q.kv_length >= 2) halve(q.kv_length);
    });
  const auto axes = [&](std::vector<int64_t> Problem::*list) {
    // The longest axis first keeps grids near square.
    std::vector<size_t> order((p.*list).size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return (p.*list)[a] > (p.*list)[b]; });
    for (const size_t i : order)
      if ((p.*list)[i] >= 2 * kLeastExtent) add([&](Problem& q) { halve((q.*list)[i]); });
    add([&](Problem& q) {
      for (int64_t& x : q.*list)
        if (x >= 2 * kLeastExtent) halve(x);
    });
  };
  axes(&Problem::grid);
  axes(&Problem::size);
  if (p.samples >= 2 * kLeastExtent) add([](Problem& q) { halve(q.samples); });
  if (p.kv_length >= 2 * kLeastExtent) add([](Problem& q) { halve(q.kv_length); });
  if (p.channels >= 2 * kLeastExtent && p.channels % 2 == 0) add([](Problem& q) { halve(q.channels); });
  return v;
}

/// The rows that a sample takes of an output, as one tensor [rows, last axis].
RefTensor gathered(Context& ctx, const Tensor& t, const std::vector<int64_t>& rows) {
  // Fetching a row of a device by itself takes about as long as this many bytes of the whole tensor.
  constexpr int64_t kFetch = int64_t{64} << 10;
  const int64_t width = t.shape()[t.rank() - 1], bytes = width * static_cast<int64_t>(size_of(t.dtype()));
  const auto count = static_cast<int64_t>(rows.size());
  Context host(cpu_backend(), 1);
  const bool singly = t.contiguous() && t.device() != DeviceKind::cpu && count * kFetch < t.nbytes();
  const Tensor all = singly ? host.allocate(t.dtype(), {count, width}) : to_host(host, ctx, t);
  RefTensor r({count, width});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows[static_cast<size_t>(i)];
    char* from = static_cast<char*>(all.raw()) + (singly ? i : row) * bytes;
    if (singly)
      ctx.backend().copy_bytes(from, DeviceKind::cpu, static_cast<const char*>(t.raw()) + row * bytes,
                               t.device(), static_cast<size_t>(bytes));
    widen_into(r, i * width, from, t.dtype(), width);
  }
  return r;
}

/// The first row that is off by more than `allowed`, measured against its own norm or that of all rows at
/// their mean square, whichever is larger; -1: none.
int64_t wrong_row(const RefTensor& got, const RefTensor& want, double allowed) {
  const int64_t rows = want.dim(0), width = want.dim(1);
  std::vector<double> norm(static_cast<size_t>(rows)), error(static_cast<size_t>(rows));
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    double n = 0, e = 0;
    for (int64_t c = r * width; c < (r + 1) * width; ++c) {
      // Equal infinities, and NaN where NaN is wanted, are no error; anything else of the kind has failed
      // before.
      if (!std::isfinite(want[c])) continue;
      n += want[c] * want[c];
      e += (got[c] - want[c]) * (got[c] - want[c]);
    }
    norm[static_cast<size_t>(r)] = n, error[static_cast<size_t>(r)] = e;
    sum += n;
  }
  const double typical = sum / static_cast<double>(std::max<int64_t>(rows, 1));
  for (int64_t r = 0; r < rows; ++r) {
    const auto at = static_cast<size_t>(r);
    if (!(std::sqrt(error[at]) <= allowed * std::sqrt(std::max(norm[at], typical)))) return r;
  }
  return -1;
}

RefTensor widened(Context& ctx, const Tensor& t) {
  RefTensor r(std::vector<int64_t>(t.shape().begin(), t.shape().end()));
  for_pieces(ctx, t, [&](int64_t begin, int64_t count, const char* values) {
    widen_into(r, begin, values, t.dtype(), count);
  });
  return r;
}

RefMap widen(Context& ctx, const TensorMap& m) {
  RefMap r;
  for (const auto& [key, t] : m) r[key] = widened(ctx, t);
  return r;
}

/// Every floating value moved by up to kRoundings of itself.
RefMap disturbed(const TensorMap& tensors, RefMap values, uint64_t seed) {
  uint64_t stream = 0;
  for (auto& [key, r] : values) {
    ++stream;
    if (!is_float(tensors.at(key).dtype())) continue;
    for (int64_t i = 0; i < r.numel(); ++i)
      r[i] *= 1 + kRoundings * (2 * random_uniform(seed, stream, static_cast<uint64_t>(i)) - 1);
  }
  return values;
}

/// True where the reference itself answers otherwise when its operands move by a few f32 roundings: a near
/// tie decides a selection, and no float implementation can be held to either side of it.
bool rounding_decides(Context& ctx, const Method& method, const Instance& instance, const Problem& problem,
                      const Params& params) {
  const ReferenceFn reference = find_reference(method.info().id);
  const TensorMap inputs = instance.inputs(), weights = instance.weights(), outputs = instance.outputs();
  const RefMap in = widen(ctx, inputs), w = widen(ctx, weights);
  const RefMap want = reference(problem, params, in, w);
  for (uint64_t seed = 1; seed <= kDisturbances; ++seed) {
    const RefMap got =
        reference(problem, params, disturbed(inputs, in, seed), disturbed(weights, w, seed + kDisturbances));
    for (const auto& [key, t] : outputs) {
      const auto a = got.find(key), b = want.find(key);
      if (a == got.end() || b == want.end()) continue;
      if (a->second.shape != b->second.shape) return true;
      try {
        const double moved = compare(a->second, b->second).relative_l2;
        if (moved > (is_float(t.dtype()) ? tolerance_of(problem.dtype) * instance.condition(key) : 0.0))
          return true;
      } catch (const DataError&) {
        // A NaN of the reference: a fault of its own, which the comparison has reported.
      }
    }
  }
  return false;
}

/// Compares as many output rows at the case's own shape as the budget allows, and what RowSample::least()
/// says in any case that is not refused. Unchecked, with a sentence, where the method's rows cannot be told
/// apart.
VerifyOutcome verify_rows(Context& ctx, const Method& method, const Instance& instance,
                          const Problem& problem, const Params& params, const VerifyOptions& options,
                          Clock& clock) {
  VerifyOutcome outcome;
  const RowReferenceFn reference = find_row_reference(method.info().id);
  const TensorMap outputs = instance.outputs();
  if (!reference || outputs.empty()) {
    outcome.result.how = "its reference cannot be taken row by row";
    return outcome;
  }
  const auto extents = [](const Tensor& t) {
    return std::vector<int64_t>(t.shape().begin(), t.shape().end());
  };
  const std::vector<int64_t> shape = extents(outputs.begin()->second);
  int64_t operands = 0;
  for (const TensorMap& m : {instance.inputs(), instance.weights()})
    for (const auto& [key, t] : m) operands += t.numel();
  for (const auto& [key, t] : outputs)
    if (const std::vector<int64_t> of = extents(t); !is_float(t.dtype()) || of.size() != shape.size() ||
                                                    shape.empty() || t.numel() == 0 ||
                                                    !std::equal(shape.begin(), shape.end() - 1, of.begin())) {
      outcome.result.how = "its outputs have no common rows to sample";
      return outcome;
    }
  const int64_t bytes = operands * static_cast<int64_t>(sizeof(double));
  if (const int64_t usable = usable_memory(); usable > 0 && bytes > usable) {
    outcome.result.how =
        fmt::format("its operands in double precision take {:.1f} GiB, {:.1f} GiB may be used",
                    static_cast<double>(bytes) / (1 << 30), static_cast<double>(usable) / (1 << 30));
    return outcome;
  }

  Context host(cpu_backend(), ctx.threads());
  const RefMap in = widen(ctx, instance.inputs()), w = widen(ctx, instance.weights());
  RowSample sample(shape, problem, params);
  const double begin = clock.now_s(), longest = options.refuse_budgets * options.budget_s;
  std::vector<int64_t> rows;
  RefMap want;
  double row_s = 0;
  for (int64_t group = std::min(kFirstRows, sample.least()); group > 0;) {
    const std::vector<int64_t> fresh = sample.next(group);
    if (fresh.empty()) break;
    for (auto& [key, t] : reference(problem, params, in, w, fresh)) {
      RefTensor& all = want[key];
      all.data.insert(all.data.end(), t.data.begin(), t.data.end());
      all.shape = {static_cast<int64_t>(rows.size() + fresh.size()), t.dim(1)};
    }
    rows.insert(rows.end(), fresh.begin(), fresh.end());
    const double spent = clock.now_s() - begin;
    const auto have = static_cast<int64_t>(rows.size());
    row_s = spent / static_cast<double>(have);
    // What has to be compared may take as long as any reference; what is beyond it, the budget.
    const int64_t missing = std::max<int64_t>(sample.least() - have, 0);
    const double allowed = missing ? longest : options.budget_s;
    group = std::min(kGrowth * have, sample.total() - have);
    if (row_s > 0)
      group = static_cast<int64_t>(std::min(static_cast<double>(group), (allowed - spent) / row_s));
    if (missing) group = std::min(group, missing);
  }
  const auto have = static_cast<int64_t>(rows.size());
  if (have < sample.least()) {
    outcome.result.how = fmt::format(
        "its reference takes {:.2g} s a row, and the {} rows that a sample must have do not fit into {:.0f} "
        "s",
        row_s, sample.least(), longest);
    return outcome;
  }

  Verification& v = outcome.result;
  outcome.checked = v.passed = true;
  v.tolerance = tolerance_of(problem.dtype);
  v.how = "own shape";
  if (have < sample.total()) {
    v.sampled = SampledRows{have, sample.total()};
    v.how = fmt::format("sampled: {} of {} rows at its own shape", have, sample.total());
  }
  double worst = 0;
  for (const auto& [key, t] : outputs) {
    const auto it = want.find(key);
    if (it == want.end()) {
      v.passed = false;
      v.worst = "the method gives '" + key + "', the reference does not";
      break;
    }
    const RefTensor got = gathered(ctx, t, rows);
    const auto place = [&](int64_t index) {
      const int64_t width = got.dim(1);
      return key + place_text(extents(t), rows[static_cast<size_t>(index / width)] * width + index % width) +
             ": " + Value(got[index]).str() + " instead of " + Value(it->second[index]).str();
    };
    Comparison c;
    try {
      c = compare(got, it->second);
    } catch (const DataError& e) {
      v.relative_l2[key] = std::numeric_limits<double>::infinity();
      v.passed = false;
      v.worst = key + ": " + e.what();
      continue;
    }
    if (std::any_of(it->second.data.begin(), it->second.data.end(), [](double x) { return std::isnan(x); }))
      outcome.nan_expected = true;
    const double condition = instance.condition(key), error = c.relative_l2 / condition;
    v.relative_l2[key] = error;
    if (!(error <= v.tolerance) && (v.passed || error > worst)) {
      worst = error;
      v.passed = false;
      v.worst = place(c.worst_index);
    } else if (const int64_t r = wrong_row(got, it->second, kRowTolerances * v.tolerance * condition);
               r >= 0 && v.passed) {
      v.passed = false;
      const int64_t width = got.dim(1);
      int64_t at = r * width;
      for (int64_t i = at; i < (r + 1) * width; ++i)
        if (std::fabs(got[i] - it->second[i]) > std::fabs(got[at] - it->second[at])) at = i;
      v.worst = place(at) + fmt::format(", in a row that is off by more than {:.0f} tolerances by itself",
                                        kRowTolerances);
    }
  }
  return outcome;
}

/// `small`: what was found at a reduced shape, perhaps nothing. Together with a sample at the own shape.
VerifyOutcome with_rows(VerifyOutcome small, Context& ctx, const Method& method, const Instance& instance,
                        const Problem& problem, const std::map<std::string, Value>& given,
                        const VerifyOptions& options, Clock& clock) {
  if (!find_row_reference(method.info().id) || (small.checked && !small.result.passed)) return small;
  VerifyOutcome own =
      verify_rows(ctx, method, instance, problem, resolve(method, given, problem), options, clock);
  if (!own.checked) {
    if (!small.checked) small.result.how += "; no sample of its rows either: " + own.result.how;
    return small;
  }
  own.nan_expected |= small.nan_expected;
  if (small.checked && own.result.passed) {
    own.result.how += "; whole at the " + small.result.how;
    for (const auto& [key, error] : small.result.relative_l2) {
      double& worst = own.result.relative_l2[key];
      worst = std::max(worst, error);
    }
  }
  return own;
}

}  // namespace

double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-12;
    case DType::f32:
      return 1e-5;
    case DType::bf16:
      return 2e-2;
    case DType::f16:
      return 4e-3;
    default:
      throw UsageError("the tolerance of " + std::string(name(dtype)) + " is equality");
  }
}

void poison(Context& ctx, const TensorMap& outputs) {
  constexpr int64_t kPiece = int64_t{1} << 24;
  Context host(cpu_backend(), 1);
  for (const auto& [key, t] : outputs) {
    if (!t || t.numel() == 0) continue;
    // All bits set is a NaN in every float format; 0x7f.. is near the largest integer.
    const int byte = is_float(t.dtype()) ? 0xff : 0x7f;
    const int64_t bytes = t.nbytes();
    if (!t.contiguous()) {
      const Tensor bad = host.allocate(t.dtype(), t.shape());
      std::memset(bad.raw(), byte, static_cast<size_t>(bytes));
      copy(ctx, bad, t);
      continue;
    }
    char* to = static_cast<char*>(t.raw());
    const bool here = t.device() == DeviceKind::cpu;
    Tensor bad;
    if (!here) {
      bad = host.allocate(DType::u8, {std::min(bytes, kPiece)});
      std::memset(bad.raw(), byte, static_cast<size_t>(bad.nbytes()));
    }
    for (int64_t at = 0; at < bytes; at += kPiece) {
      const auto n = static_cast<size_t>(std::min(kPiece, bytes - at));
      if (here)
        std::memset(to + at, byte, n);
      else
        ctx.backend().copy_bytes(to + at, t.device(), bad.raw(), DeviceKind::cpu, n);
    }
  }
}

int64_t count_nan(Context& ctx, const TensorMap& outputs) {
  int64_t n = 0;
  for (const auto& [key, t] : outputs) {
    if (!is_float(t.dtype())) continue;
    const auto element = static_cast<int64_t>(size_of(t.dtype()));
    for_pieces(ctx, t, [&](int64_t, int64_t count, const char* from) {
      constexpr int64_t kPiece = 1 << 12;
#pragma omp parallel for num_threads(ctx.threads()) reduction(+ : n) if (count > 8 * kPiece)
      for (int64_t begin = 0; begin < count; begin += kPiece) {
        double values[kPiece];
        const int64_t some = std::min(kPiece, count - begin);
        convert(from + begin * element, t.dtype(), values, DType::f64, some);
        n += std::count_if(values, values + some, [](double x) { return std::isnan(x); });
      }
    });
  }
  return n;
}

Verification verify_instance(Context& ctx, const Method& method, const Instance& instance,
                             const Problem& problem, const Params& params) {
  const ReferenceFn reference = find_reference(method.info().id);
  Context host(cpu_backend(), ctx.threads());
  const RefMap want =
      reference(problem, params, widen(ctx, instance.inputs()), widen(ctx, instance.weights()));
  const TensorMap outputs = instance.outputs();
  Verification v;
  v.how = "own shape";
  v.tolerance = tolerance_of(problem.dtype);
  v.passed = true;
  const auto fail = [&v](const std::string& text) {
    if (v.passed) v.worst = text;
    v.passed = false;
  };
  for (const auto& [key, r] : want)
    if (!outputs.contains(key)) fail("the reference gives '" + key + "', the method does not");
  double worst = 0;
  for (const auto& [key, t] : outputs) {
    const auto it = want.find(key);
    if (it == want.end()) {
      fail("the method gives '" + key + "', the reference does not");
      continue;
    }
    Comparison c;
    try {
      c = compare(widened(ctx, t), it->second);
    } catch (const DataError& e) {
      v.relative_l2[key] = std::numeric_limits<double>::infinity();
      fail(key + ": " + e.what());
      continue;
    }
    // In units of what the outputs' operands allow, so that one tolerance holds for all.
    const double error = is_float(t.dtype()) ? c.relative_l2 / instance.condition(key) : c.relative_l2;
    v.relative_l2[key] = error;
    const double allowed = is_float(t.dtype()) ? v.tolerance : 0.0;
    if (!(error <= allowed) && (v.passed || error > worst)) {
      worst = error;
      v.passed = false;
      v.worst = key + c.worst;
    }
  }
  if (outputs.empty()) fail("the method has no outputs");
  return v;
}

std::vector<Problem> reduced_problems(const Method& method, const Problem& problem,
                                      const std::map<std::string, Value>& given, DeviceKind device) {
  std::vector<Problem> chain{problem};
  // Two batches and two heads are the least that show a wrong stride; one of each is the last resort.
  for (const int64_t least : {2, 1}) {
    for (bool shrunk = true; shrunk;) {
      shrunk = false;
      for (const Problem& q : halvings(chain.back(), least, least)) {
        if (!DryInstance(method, q, given, device)) continue;
        chain.push_back(q);
        shrunk = true;
        break;
      }
    }
  }
  return chain;
}

VerifyOutcome verify_case(Context& ctx, const Method& method, const Instance& instance,
                          const Problem& problem, const std::map<std::string, Value>& given,
                          const VerifyOptions& options) {
  VerifyOutcome outcome;
  try {
    find_reference(method.info().id);
  } catch (const Unsupported& e) {
    outcome.result.how = e.what();
    return outcome;
  }
  SteadyClock steady;
  Clock& clock = options.clock ? *options.clock : steady;
  const double allowed = options.budget_s * kReferenceFlopsPerSecond;
  const auto sampled = [&](const VerifyOutcome& small) {
    return with_rows(small, ctx, method, instance, problem, given, options, clock);
  };

  Shapes chain(method, given, ctx.device());
  chain.assign({problem});
  // Given tensors have one shape; everything else can be made smaller.
  if (chain.beyond(0, kStartShare * allowed) && problem.inputs.file.empty())
    chain.assign(reduced_problems(method, problem, given, ctx.device()));
  size_t at = 0;
  while (at + 1 < chain.size() && chain.beyond(at, kStartShare * allowed)) ++at;
  if (chain.beyond(at, options.refuse_budgets * allowed)) {
    outcome.result.how = fmt::format(
        "not verified: the reference would need about {:.0f} s even for {}, and {:.0f} s are allowed",
        chain.flops(at) / kReferenceFlopsPerSecond, chain[at].str(),
        options.refuse_budgets * options.budget_s);
    return sampled(outcome);
  }

  VerifyOutcome smaller;
  while (true) {
    const double begin = clock.now_s();
    double took = 0;
    bool tie = false, refused = false;
    for (int draw = 0; draw < kDraws; ++draw) {
      Problem q = chain[at];
      q.seed += static_cast<uint64_t>(draw);
      if (at == 0 && draw == 0) {
        const Params params = resolve(method, given, q);
        outcome.result = verify_instance(ctx, method, instance, q, params);
        took = clock.now_s() - begin;
        tie = !outcome.result.passed && rounding_decides(ctx, method, instance, q, params);
      } else {
        Context small(ctx.backend(), ctx.threads());
        small.set_memory_limit(options.memory_limit);
        const Params params = resolve(method, given, q);
        const auto fresh = method.make(small, q, params);
        try {
          fill_instance(small, *fresh, q, options.weights_file);
          fresh->prepare(small);
        } catch (const UsageError&) {
          // Some sizes are refused only where the tensors are known; the next larger one may do.
          if (at == 0) throw;
          refused = true;
          break;
        }
        poison(small, fresh->outputs());
        fresh->run(small);
        ctx.backend().synchronize();
        outcome.result = verify_instance(small, method, *fresh, q, params);
        if (draw == 0) took = clock.now_s() - begin;
        if (at > 0) outcome.result.how = "reduced shape: " + q.str();
        // NaN matches only NaN.
        outcome.nan_expected = outcome.result.passed && count_nan(small, fresh->outputs()) > 0;
        tie = !outcome.result.passed && rounding_decides(small, method, *fresh, q, params);
      }
      if (draw > 0) outcome.result.how += fmt::format("; seed {}: rounding decides before it", q.seed);
      if (!tie || !q.inputs.file.empty()) break;
    }
    if (refused) {
      --at;
      continue;
    }
    if (tie) {
      if (smaller.checked) return sampled(smaller);
      outcome.checked = false;
      outcome.result.how = "not verified: rounding decides the reference's own answer (" +
                           outcome.result.worst + ") for these inputs";
      return outcome;
    }
    outcome.checked = true;
    if (!outcome.result.passed || at == 0) return outcome;
    smaller = outcome;
    // Halving one extent divides a reference's time by two to four; the guess is trusted between these.
    const double growth =
        std::clamp(chain.flops(at) > 0 ? chain.flops(at - 1) / chain.flops(at) : 4.0, 2.0, 4.0);
    if (took * growth > options.budget_s) return sampled(outcome);
    --at;
  }
}

std::vector<MethodCheck> verify_method(Context& ctx, const Method& method, DType dtype,
                                       const VerifyOptions& options) {
  std::vector<MethodCheck> rows;
  const MethodInfo& info = method.info();
  const auto check = [&](const std::string& variation, Problem p, bool always) {
    p.dtype = dtype;
    MethodCheck row;
    row.variation = variation;
    row.problem = p;
    std::unique_ptr<Instance> instance;
    try {
      // A context of its own: nothing of one variation is counted or kept for the next.
      Context own(ctx.backend(), ctx.threads());
      own.set_memory_limit(options.memory_limit);
      try {
        const Params params = resolve(method, info.example_params, p);
        instance = method.make(own, p, params);
      } catch (const Unsupported& e) {
        row.status = CaseStatus::unsupported;
        row.reason = e.what();
      } catch (const UsageError& e) {
        row.status = CaseStatus::unsupported;
        row.reason = e.what();
      }
      if (!instance) {
        if (always) rows.push_back(row);
        return;
      }
      fill_instance(own, *instance, p);
      instance->prepare(own);
      poison(own, instance->outputs());
      instance->run(own);
      own.backend().synchronize();
      row.outcome = verify_case(own, method, *instance, p, info.example_params, options);
      if (!row.outcome.checked) {
        row.status = CaseStatus::unverified;
        row.reason = row.outcome.result.how;
      } else if (!row.outcome.result.passed) {
        row.status = CaseStatus::failed;
        row.reason = row.outcome.result.worst;
      }
      instance.reset();
    } catch (const Unsupported& e) {
      row.status = CaseStatus::unsupported;
      row.reason = e.what();
      instance.reset();
    } catch (const std::exception& e) {
      row.status = CaseStatus::failed;
      row.reason = e.what();
      instance.reset();
    }
    rows.push_back(row);
  };
  const auto vary = [&](const std::string& variation, auto&& change) {
    Problem p = info.example;
    change(p);
    if (!(p == info.example)) check(variation, p, false);
  };

  check("example", info.example, true);
  vary("causal", [](Problem& p) { p.causal = !p.causal; });
  vary("batch of three", [](Problem& p) { p.batch = 3; });
  // Extents that no block size divides.
  vary("odd sizes", [](Problem& p) {
    if (p.length) p.length = 2 * p.length + 1;
    for (int64_t& g : p.grid) g += 1;
    for (int64_t& s : p.size) s += 1;
    if (p.samples) p.samples += 3;
  });
  vary("odd sizes, causal", [](Problem& p) {
    if (p.causal || !p.length) return;
    p.causal = true;
    p.length += 5;
  });
  vary("larger grid", [](Problem& p) {
    for (int64_t& g : p.grid) g *= 2;
    for (int64_t& s : p.size) s *= 2;
  });
  vary("one token", [](Problem& p) {
    if (p.length) p.length = 1;
  });
  vary("shared key heads", [](Problem& p) {
    if (p.head_dim && p.heads > 1) p.kv_heads = p.heads % 2 == 0 ? p.heads / 2 : 1;
  });
  vary("more keys than queries", [](Problem& p) {
    if (p.head_dim && p.length) p.kv_length = p.length + 7;
  });
  vary("more keys than queries, causal", [](Problem& p) {
    if (p.head_dim && p.length && !p.causal) p.causal = true, p.kv_length = p.length + 7;
  });
  vary("odd head width", [](Problem& p) {
    if (p.head_dim) p.head_dim += 3;
  });
  return rows;
}

}  // namespace attnbench
