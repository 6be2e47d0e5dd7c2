// What a method is: its description, and instances of it that run on a context. Device-agnostic: a method
// calls operators only and never looks at the device.
//
// One method = one file in src/methods (this interface), one in src/reference (double precision), one test,
// one suite. Registration is one line in the file itself:  ATTNBENCH_METHOD(HiLo);
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/backend.hpp"
#include "kernels/core/context.hpp"
#include "methods/pair_set.hpp"
#include "methods/params.hpp"
#include "methods/problem.hpp"

namespace attnbench {

/// A figure that the method's paper or code published, shown by `describe`.
struct PublishedFigure {
  std::string what, configuration, baseline, value, where;
};

struct MethodInfo {
  std::string id;    ///< snake_case, the card's name: "hilo"
  std::string card;  ///< card id when one card defines several methods: "hilo" for "sra"; else equal to id
  std::string title;
  std::string paper;    ///< title, venue, year
  std::string arxiv;    ///< "2205.13213" or empty
  std::string family;   ///< the card's family: "window + head-routing (softmax)"
  std::string summary;  ///< two or three sentences
  std::string formula;  ///< plain-text maths, a line per equation
  std::string cost;     ///< the closed form in words of the card
  std::vector<ParamSpec> params;
  std::vector<ProblemKind> kinds;
  std::vector<DType> dtypes = {DType::f32, DType::bf16, DType::f16};
  std::vector<DeviceKind> backends = {DeviceKind::cpu, DeviceKind::cuda};
  std::vector<PublishedFigure> figures;
  std::vector<std::string> notes;  ///< choices made where the card says "not found"
  Problem example;                 ///< a small problem: `verify` and `describe` use it
  /// Its parameters where the defaults would take long: the others keep their defaults.
  std::map<std::string, Value> example_params;
};

/// How a tensor is filled when no file gives it.
struct Init {
  enum class Kind : uint8_t { normal, trunc_normal, uniform, constant, values };
  Kind kind = Kind::normal;
  double a = 0.0;    ///< normal, trunc_normal: mean.  uniform: low.   constant: the value
  double b = 1.0;    ///< normal, trunc_normal: standard deviation (cut at +-2 b, or +-cut).  uniform: high
  double cut = 2.0;  ///< trunc_normal: cut in standard deviations
  /// values: element by row-major index. Called from several threads at once.
  std::function<double(int64_t index)> value;
  static Init normal(double mean = 0, double std = 1) { return {Kind::normal, mean, std, 2.0, {}}; }
  static Init trunc_normal(double std, double cut = 2.0) { return {Kind::trunc_normal, 0.0, std, cut, {}}; }
  static Init uniform(double low, double high) { return {Kind::uniform, low, high, 2.0, {}}; }
  static Init constant(double v) { return {Kind::constant, v, 0.0, 2.0, {}}; }
};

struct TensorSpec {
  std::string name;
  Shape shape;
  DType dtype = DType::f32;
  Init init;
  bool optional = false;  ///< may be left unbound; generators leave it unbound too
  std::string meaning;
};

/// The card's closed form for one instance.
struct ClosedForm {
  Cost cost;  ///< must equal the ledger after run() for static methods
  int64_t published_macs =
      0;  ///< as the card's table counts them for ONE batch element; 0: the card has no count
  std::string published_macs_note;
  int64_t parameters = 0;       ///< learned parameters
  bool data_dependent = false;  ///< cost is an expectation; only the ledger is exact
};

/// Attention statistics of one pass, taken inside the operator, [B, H, N] each.
struct RowStats {
  Tensor entropy;              ///< nats
  Tensor visible_keys;         ///< f32 counts of keys each row could see
  Tensor row_max_probability;  ///< optional
};

/// A parameter that prepare() settled where it was left open: impl of `dense`, from auto to cudnn.
struct Decision {
  std::string param;
  Value value;
  std::string why;  ///< for readers: "engine 1.20 ms, cudnn 0.98 ms"
  bool operator==(const Decision&) const = default;
};

class Instance {
 public:
  virtual ~Instance() = default;

  const std::vector<TensorSpec>& input_specs() const { return input_specs_; }
  const std::vector<TensorSpec>& weight_specs() const { return weight_specs_; }
  /// Takes the tensors by name. Throws DataError on a missing, unknown or wrongly shaped one, naming it.
  void bind(const TensorMap& inputs, const TensorMap& weights);
  /// What bind() took: verification hands the same tensors to the reference. Optional ones may be absent.
  const TensorMap& inputs() const { return inputs_; }
  const TensorMap& weights() const { return weights_; }

  /// What a user could cache across calls (a static plan): masks, index tables, FFT plans. Timed as
  /// `prepare`, reported beside the headline. Called once after bind, before the first run.
  virtual void prepare(Context&) {}
  /// What prepare() settled; the same values given as parameters make an instance that does the same.
  virtual std::vector<Decision> decisions() const { return {}; }
  /// The whole method, all stages: what is timed.
  virtual void run(Context& ctx) = 0;
  /// Named outputs, allocated by the factory (MemoryClass::output); valid after run().
  virtual TensorMap outputs() const = 0;
  /// An output that no timed run computes (a training target, say), made on demand after run(); null: there
  /// is none of that name.
  virtual Tensor extra_output(Context&, const std::string& /*name*/) { return {}; }
  virtual ClosedForm cost() const = 0;

  /// Token dependencies of the last run (or of the static pattern); none: not a pairwise method.
  virtual std::optional<PairSet> pairs() const { return std::nullopt; }
  /// Effective attention rows of batch b, head h for queries [q_begin, q_end): row-major
  /// (q_end - q_begin) x keys() probabilities. False: the method has no such rows.
  virtual bool rows(Context&, int64_t /*b*/, int64_t /*h*/, int64_t /*q_begin*/, int64_t /*q_end*/,
                    std::vector<float>& /*out*/) {
    return false;
  }
  /// Number of columns of rows(): N for self-attention, pooled keys where keys are pooled (may depend on the
  /// head).
  virtual int64_t keys(int64_t /*h*/) const { return 0; }
  /// Statistics from inside the pass, memory linear in N; none: analyses stream rows() instead.
  virtual std::optional<RowStats> row_stats(Context&) { return std::nullopt; }
  /// By how much an output of the last run magnifies the rounding of what it is computed from, where it is a
  /// difference of nearly equal values: derived from the norms of the operands. Verification allows an output
  /// its tolerance times this.
  virtual double condition(const std::string& /*output*/) const { return 1.0; }
  /// True when a run records no host-side decision, so a CUDA graph can capture it.
  virtual bool capturable() const { return true; }

 protected:
  const Tensor& input(const std::string& name) const { return inputs_.at(name); }
  const Tensor& weight(const std::string& name) const { return weights_.at(name); }
  bool has_input(const std::string& name) const { return inputs_.contains(name); }
  bool has_weight(const std::string& name) const { return weights_.contains(name); }
  std::vector<TensorSpec> input_specs_, weight_specs_;
  TensorMap inputs_, weights_;
};

class Method {
 public:
  virtual ~Method() = default;
  virtual const MethodInfo& info() const = 0;
  /// Allocates outputs; throws Unsupported{why} for what the method cannot do and UsageError for problems
  /// that lack what it needs. `params` came from resolve_params(info().params).
  virtual std::unique_ptr<Instance> make(Context& ctx, const Problem& problem,
                                         const Params& params) const = 0;
};

/// The registry: every method linked into the program, by id.
const std::vector<const Method*>& all_methods();
/// Throws UsageError with the nearest id.
const Method& find_method(const std::string& id);
bool register_method(std::unique_ptr<Method> m);
#define ATTNBENCH_METHOD(Class) \
  static const bool registered_##Class = ::attnbench::register_method(std::make_unique<Class>())

/// Common checks for factories: throws Unsupported / UsageError with a full sentence.
void require_kind(const MethodInfo& info,
                  const Problem& problem);  ///< kind and dtype are among those of info
void require_extent(const MethodInfo& info, int64_t value, const char* key);  ///< > 0

}  // namespace attnbench
