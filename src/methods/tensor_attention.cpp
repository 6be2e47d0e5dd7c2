// Tensor attention: softmax over tuples of keys whose score is a product of three or more vectors, exactly by
// fused attention of pseudo-queries, or near-linear by a polynomial in place of the exponential.
#include <algorithm>
#include <cmath>
#include <limits>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

// Pseudo-queries (or scores, or running sums) in memory at a time: 4 Mi elements are 16 MiB of f32, enough
// work for any operator and little beside the inputs of a case that takes this long.
constexpr int64_t kElementsAtOnce = int64_t{1} << 22;
// Features beyond this many would not fit their own index tables.
constexpr int64_t kMostFeatures = int64_t{1} << 26;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "tensor_attention";
  m.title = "Tensor attention (Kronecker, order 3 and above)";
  m.paper =
      "How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker "
      "Computation, "
      "ICLR 2024";
  m.arxiv = "2310.04064";
  m.family = "higher-order";
  m.summary =
      "Each query attends to all pairs (tuples) of keys: the score is the sum over channels of q k1 k2, the "
      "value "
      "v1 had v2. `exact` runs fused softmax attention of the pseudo-queries q had k1 and joins their "
      "results by "
      "log-sum-exp; `poly` replaces exp by a polynomial whose monomials factorise, so that time is linear in "
      "N for "
      "bounded entries.";
  m.formula =
      "s_i(a, b) = scale * sum_c q_ic k1_ac k2_bc\n"
      "o_i = sum_{a,b} exp(s_i(a, b)) (v1_a had v2_b) / sum_{a,b} exp(s_i(a, b))\n"
      "exact: (ot, LSE)_(i,a) = attention(q_i had k1_a, k2, v2);  o_i = sum_a softmax_a(LSE_(i,a)) (v1_a had "
      "ot_(i,a))\n"
      "poly:  P(s) = sum_m c_m s^m = sum_alpha w_alpha q^alpha k1^alpha k2^alpha,  |alpha| <= g\n"
      "       o = U1 [(U2^T V1) had (U3^T V2)] / U1 [(U2^T 1) had (U3^T 1)],  U1 = w q^alpha, U2 = k1^alpha, "
      "U3 = "
      "k2^alpha\n"
      "causal: a <= i and b <= i;  windows: i - w < a <= i";
  m.cost =
      "Per head, order p: exact 4 N^p D + 2 N^(p-1) D matmul FLOPs and N^p exponentials; poly 2 p N Rk (D + "
      "1) with "
      "Rk = C(D + g, g) features, 3 N Rk multiplications for them at p = 3. Relative error of P at most "
      "e^(2S) "
      "S^(g+1) / (g+1)! for |s| <= S.";
  ParamSpec degree = spec::integer("degree", 4, 0,
                                   "g of the polynomial, even: an even Taylor polynomial of exp is positive");
  degree.max = 64;
  ParamSpec logit_bound =
      spec::param("logit_bound", ParamSpec::Type::number, Value(),
                  "S of poly chebyshev; null: measured, the largest entry^p * D * |scale|");
  logit_bound.min = 0;
  ParamSpec scale = spec::param("scale", ParamSpec::Type::number, Value(),
                                "factor of a score; null: 1 / D; 1 is the formula of the abstract");
  ParamSpec head_dim = spec::integer("head_dim", 8, 1, "D");
  head_dim.from_problem = "head_dim";
  ParamSpec entry_bound =
      spec::param("entry_bound", ParamSpec::Type::number, 0.5,
                  "Bd: generated queries and keys are uniform within it; given ones are taken as they are");
  entry_bound.min = 0;
  ParamSpec order = spec::integer("order", 3, 2, "p: a query meets p - 1 keys");
  order.max = 6;
  ParamSpec lengths =
      spec::param("kv_lengths", ParamSpec::Type::list, Value(),
                  "tokens of k1, k2, ...; null: those of the given file, or problem.kv_length each");
  lengths.min = 1;
  m.params = {
      spec::choice("mode", {"exact", "poly", "poly_direct"},
                   "softmax; the low-rank form; the same polynomial tuple by tuple (to test with)"),
      degree,
      spec::choice("poly", {"taylor", "chebyshev"},
                   "coefficients c_m: 1 / m!, or the interpolant of exp on [-S, S]"),
      logit_bound,
      scale,
      order,
      head_dim,
      entry_bound,
      spec::param("causal", ParamSpec::Type::boolean, false, "keys of a tuple stand at or before the query"),
      spec::integer("window1", 0, 0, "exact only: tokens of k1 from the query's own back; 0: all"),
      spec::integer("window2", 0, 0, "exact only: tokens of k2 from the query's own back; 0: all"),
      spec::integer("feature_chunk", 256, 1, "features in memory at once, but for those of lower degree"),
      lengths};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"upper bound", "largest entry o((log n)^(1/3))", "exact, cubic in n",
                "n^(1+o(1)) time for an entrywise approximation", "abstract"},
               {"lower bound", "largest entry Omega((log n)^(1/3))", "-",
                "no n^(3-Omega(1)) algorithm under SETH", "abstract"},
               {"order trade-off", "order-k tensors", "-",
                "the higher the order, the smaller the admissible entries", "abstract"}};
  m.notes = {
      "The paper has no experiments; its abstract writes no scale, and 1 / D is chosen (the convention of "
      "the authors' "
      "matrix paper).",
      "causal and windows are not in the paper; a window implies the causal side of its own key. Positions "
      "are plain "
      "indices, also where key lengths differ.",
      "The default problem draws queries and keys within entry_bound, without which no low degree is near "
      "exp.",
      "Chebyshev coefficients may give a normaliser of 0 or less; then the run is repeated with Taylor's "
      "(chosen), which "
      "takes a look at the normalisers on the host.",
      "Features are in graded lexicographic order, each one product of a feature of one degree less and a "
      "coordinate.",
      "exact keeps pseudo-queries in the problem's dtype and joins their results in f32; poly and "
      "poly_direct compute "
      "in f32.",
      "For order above 3, exact builds the products of all keys but the last: N^(p-2) rows.",
      "Rows for analyses are the marginals over the first key of a tuple (orders 2 and 3)."};
  m.example.batch = 2;
  m.example.heads = 2;
  m.example.length = 26;
  m.example.head_dim = 6;
  return m;
}

/// Monomials of degree at most g in D variables: graded, then lexicographic.
struct Features {
  std::vector<int32_t> parent,
      coordinate;                         ///< feature = parent feature * x[coordinate]; 0, 0 for the constant
  std::vector<double> inverse_factorial;  ///< 1 / (alpha_1! .. alpha_D!)
  std::vector<int> degree;
  std::vector<int64_t> begin;  ///< first feature of each degree, and the end
  int64_t count() const { return static_cast<int64_t>(parent.size()); }

  Features(int64_t d, int64_t g) {
    parent = {0}, coordinate = {0}, inverse_factorial = {1}, degree = {0}, begin = {0, 1};
    std::vector<int> power{0};  // of the last coordinate
    for (int64_t m = 1; m <= g; ++m) {
      const int64_t from = begin[static_cast<size_t>(m - 1)], to = begin[static_cast<size_t>(m)];
      for (int64_t f = from; f < to; ++f) {
        const auto at = static_cast<size_t>(f);
        const int64_t last = m == 1 ? 0 : coordinate[at];
        for (int64_t c = last; c < d; ++c) {
          const int p = m > 1 && c == last ? power[at] + 1 : 1;
          parent.push_back(static_cast<int32_t>(f));
          coordinate.push_back(static_cast<int32_t>(c));
          power.push_back(p);
          inverse_factorial.push_back(inverse_factorial[at] / p);
          degree.push_back(static_cast<int>(m));
        }
      }
      begin.push_back(count());
    }
  }
};

/// C(d + g, g), or kMostFeatures + 1 where that is less.
int64_t feature_count(int64_t d, int64_t g) {
  int64_t n = 1;
  for (int64_t i = 1; i <= g; ++i) {
    if (n > kMostFeatures * i / (d + i) + i) return kMostFeatures + 1;
    n = n * (d + i) / i;
  }
  return std::min(n, kMostFeatures + 1);
}

/// c_m of sum_m c_m s^m: Taylor's, or those of the interpolant of exp in the g + 1 Chebyshev points of [-S,
/// S].
std::vector<double> coefficients(int64_t g, bool chebyshev, double bound) {
  const auto n = static_cast<size_t>(g) + 1;
  std::vector<double> c(n, 0.0);
  if (!chebyshev || bound == 0) {
    double factorial = 1;
    for (size_t m = 0; m < n; ++m) {
      if (m > 0) factorial *= static_cast<double>(m);
      c[m] = 1 / factorial;
    }
    return c;
  }
  // Coefficients of T_k, then T_k in powers of x = s / S by its recurrence.
  const double pi = 3.14159265358979323846;
  std::vector<double> before(n, 0.0), now(n, 0.0), next(n, 0.0);
  for (size_t k = 0; k < n; ++k) {
    double a = 0;
    for (size_t j = 0; j < n; ++j) {
      const double angle = pi * (static_cast<double>(j) + 0.5) / static_cast<double>(n);
      a += std::exp(bound * std::cos(angle)) * std::cos(static_cast<double>(k) * angle);
    }
    a *= (k == 0 ? 1.0 : 2.0) / static_cast<double>(n);
    if (k == 0) {
      now.assign(n, 0.0), now[0] = 1;
    } else {
      for (size_t i = 0; i < n; ++i)
        next[i] = (k == 1 ? 1.0 : 2.0) * (i > 0 ? now[i - 1] : 0.0) - (k == 1 ? 0.0 : before[i]);
      before = now, now = next;
    }
    for (size_t i = 0; i < n; ++i) c[i] += a * now[i];
  }
  double power = 1;
  for (size_t m = 0; m < n; ++m, power *= bound) c[m] /= power;
  return c;
}

class TensorInstance final : public Instance {
 public:
  TensorInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params)
      : mode_(params.choice("mode")),
        order_(params.integer("order")),
        degree_(params.integer("degree")),
        chebyshev_(params.choice("poly") == "chebyshev"),
        bound_(params.is_null("logit_bound") ? -1 : params.number("logit_bound")),
        causal_(params.boolean("causal")),
        chunk_(params.integer("feature_chunk")),
        dtype_(problem.dtype) {
    const HeadsForm f = heads_form(info, problem);
    batch_ = f.batch, heads_ = f.heads, n_ = f.queries, d_ = f.head_dim;
    scale_ = params.is_null("scale") ? 1.0 / static_cast<double>(d_) : params.number("scale");
    if (f.kv_heads != f.heads)
      throw Unsupported(
          "tensor_attention has one head of every key for each query head, and problem.kv_heads is " +
          std::to_string(f.kv_heads));
    if (d_ > 512) throw Unsupported("tensor_attention.head_dim: at most 512, not " + std::to_string(d_));
    if (problem.causal && !causal_)
      throw UsageError("tensor_attention.causal: false contradicts problem.causal = true");
    if (degree_ % 2 != 0)
      throw UsageError("tensor_attention.degree: " + std::to_string(degree_) +
                       " is odd; an odd polynomial has normalisers of 0 and below, an even degree is wanted");
    windows_.assign(static_cast<size_t>(order_ - 1), 0);
    windows_[0] = params.integer("window1");
    if (order_ > 2) windows_[1] = params.integer("window2");
    if (order_ == 2 && params.integer("window2") > 0)
      throw UsageError("tensor_attention.window2: order 2 has no second key");
    if (mode_ != "exact" && (windows_[0] > 0 || (order_ > 2 && windows_[1] > 0)))
      throw Unsupported("tensor_attention.window1, window2: only mode exact restricts tuples to windows");

    read_lengths(problem, params, f.keys);
    for (int64_t r = 0; r < order_ - 1; ++r)
      if (window(r) > 0 && n_ - window(r) >= length(r))
        throw Unsupported("tensor_attention: with a window of " + std::to_string(window(r)) +
                          " the last query of " + std::to_string(n_) + " sees none of the " +
                          std::to_string(length(r)) + " tokens of k" + std::to_string(r + 1));
    if (mode_ == "poly" && causal_)
      for (int64_t m : lengths_)
        if (m != n_)
          throw Unsupported(
              "tensor_attention: mode poly with causal keeps running sums in step with the queries, so "
              "all keys must have " +
              std::to_string(n_) + " tokens, not " + std::to_string(m));
    if (mode_ == "poly") {
      if (feature_count(d_, degree_) > kMostFeatures)
        throw Unsupported("tensor_attention: D = " + std::to_string(d_) + " and degree " +
                          std::to_string(degree_) + " have C(D + g, g) > 2^26 features");
      features_ = std::make_unique<Features>(d_, degree_);
    }

    const double most = params.number("entry_bound");
    const Init entries = Init::uniform(-most, most);
    input_specs_ = {{"q", {batch_, heads_, n_, d_}, dtype_, entries, false, "queries [B, H, N, D]"}};
    for (int64_t r = 0; r < order_ - 1; ++r) {
      const Shape shape{batch_, heads_, length(r), d_};
      const std::string place = std::to_string(r + 1);
      input_specs_.push_back({"k" + place, shape, dtype_, entries, false, "keys " + place + " of a tuple"});
      input_specs_.push_back(
          {"v" + place, shape, dtype_, Init::normal(), false, "values " + place + " of a tuple"});
    }
    o_ = ctx.allocate(dtype_, {batch_, heads_, n_, d_}, MemoryClass::output);
    tuples_ = 1;
    for (int64_t r = 0; r + 2 < order_; ++r) {
      if (tuples_ > (int64_t{1} << 40) / length(r))
        throw Unsupported("tensor_attention: the products of all keys but the last have more than 2^40 rows");
      tuples_ *= length(r);
    }
    if (mode_ != "poly") {
      const int64_t row = tuples_ * (mode_ == "exact" ? d_ : keys()) * batch_ * heads_;
      const int64_t at_once = std::clamp<int64_t>(kElementsAtOnce / std::max<int64_t>(1, row), 1, n_);
      for (int64_t begin = 0; begin < n_; begin += at_once)
        chunks_.push_back(chunk(begin, std::min(n_, begin + at_once)));
    }
  }

  TensorMap outputs() const override { return {{"o", o_}}; }

  void prepare(Context& ctx) override {
    if (mode_ == "exact" && limited()) {
      for (Chunk& c : chunks_) {
        std::vector<int32_t> begin, end;
        for (int64_t i = c.begin; i < c.end; ++i)
          for (int64_t t = c.tuple_begin; t < c.tuple_end; ++t) {
            const Interval keys = sees(i, t) ? range(order_ - 2, i) : Interval{0, 0};
            begin.push_back(static_cast<int32_t>(keys.begin));
            end.push_back(static_cast<int32_t>(keys.end));
          }
        const Shape rows{1, 1, static_cast<int64_t>(begin.size())};
        c.mask.row_begin = indices(ctx, begin).reshape(rows),
        c.mask.row_end = indices(ctx, end).reshape(rows);
      }
    }
    if (mode_ == "poly_direct" && causal_)
      for (Chunk& c : chunks_) {
        std::vector<int32_t> tuples, keys;
        for (int64_t i = c.begin; i < c.end; ++i) {
          for (int64_t t = 0; t < tuples_; ++t) tuples.push_back(sees(i, t) ? static_cast<int32_t>(t) : -1);
          for (int64_t j = 0; j < this->keys(); ++j)
            keys.push_back(j < range(order_ - 2, i).end ? static_cast<int32_t>(j) : -1);
        }
        c.tuple_rows = indices(ctx, tuples), c.key_rows = indices(ctx, keys);
      }
    if (mode_ == "exact") return;
    double bound = bound_;
    if (chebyshev_ && bound < 0) {
      double most = 0;
      for (const auto& [name, t] : inputs_)
        if (name[0] != 'v') most = std::max(most, largest(ctx, t));
      bound = std::pow(most, static_cast<double>(order_)) * static_cast<double>(d_) * std::abs(scale_);
    }
    taylor_ = coefficients(degree_, false, 0);
    chosen_ = chebyshev_ ? coefficients(degree_, true, bound) : taylor_;
    int64_t longest = n_;
    for (int64_t m : lengths_) longest = std::max(longest, m);
    ones_ = filled(ctx, {std::max(longest, tuples_)},
                   std::vector<double>(static_cast<size_t>(std::max(longest, tuples_)), 1.0));
    if (mode_ != "poly") return;
    const Features& f = *features_;
    std::vector<int32_t> parents = f.parent;  // within their degree
    for (size_t i = 1; i < parents.size(); ++i) parents[i] -= static_cast<int32_t>(first_of(f.degree[i] - 1));
    parents_ = indices(ctx, parents), coordinates_ = indices(ctx, f.coordinate);
    weights_of_[0] = feature_weights(ctx, chosen_);
    if (chebyshev_) weights_of_[1] = feature_weights(ctx, taylor_);
  }

  void run(Context& ctx) override {
    if (mode_ == "exact") return run_exact(ctx);
    // Normalised once; where Chebyshev's polynomial fails, again with Taylor's.
    for (const bool last : {false, true}) {
      const Tensor sums = mode_ == "poly" ? run_poly(ctx, last) : run_direct(ctx, last ? taylor_ : chosen_);
      if (chebyshev_ && !last && smallest(ctx, sums.slice(1, d_, d_ + 1)) <= 0) continue;
      finish(ctx, sums);
      return;
    }
  }
  bool capturable() const override { return mode_ == "exact" || !chebyshev_; }

  ClosedForm cost() const override {
    ClosedForm f;
    f.cost =
        mode_ == "exact" ? exact_cost() : (mode_ == "poly" ? poly_cost() : direct_cost()) + finish_cost();
    // A second pass with Taylor's coefficients depends on the data.
    f.data_dependent = mode_ != "exact" && chebyshev_;
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = batch_, set.heads = heads_;
    set.queries = n_;
    set.tokens = *std::max_element(lengths_.begin(), lengths_.end());
    set.row = [this](int64_t, int64_t, int64_t i, Intervals& out) {
      Intervals all;
      for (int64_t r = 0; r < order_ - 1; ++r) all.push_back(range(r, i));
      std::sort(all.begin(), all.end(),
                [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
      out.clear();
      for (const Interval& v : all)
        if (!out.empty() && v.begin <= out.back().end)
          out.back().end = std::max(out.back().end, v.end);
        else
          out.push_back(v);
    };
    return set;
  }
  int64_t keys(int64_t) const override { return length(0); }
  /// p_i(a): the weight of all tuples whose first key is a.
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    if (order_ > 3) return false;
    const auto head = [&](const std::string& name) {
      const Tensor t = on_host(ctx, input(name).select(0, b).select(0, h));
      std::vector<double> x(static_cast<size_t>(t.numel()));
      convert(t.raw(), t.dtype(), x.data(), DType::f64, t.numel());
      return x;
    };
    const std::vector<double> q = head("q"), k1 = head("k1"),
                              k2 = order_ == 3 ? head("k2") : std::vector<double>();
    const auto d = static_cast<size_t>(d_);
    out.assign(static_cast<size_t>((q_end - q_begin) * length(0)), 0.0f);
#pragma omp parallel for schedule(dynamic) num_threads(ctx.threads())
    for (int64_t i = q_begin; i < q_end; ++i) {
      const Interval first = range(0, i), second = order_ == 3 ? range(1, i) : Interval{0, 1};
      std::vector<double> scores, product(d);
      for (int64_t a = first.begin; a < first.end; ++a) {
        for (size_t c = 0; c < d; ++c)
          product[c] = q[static_cast<size_t>(i) * d + c] * k1[static_cast<size_t>(a) * d + c] * scale_;
        for (int64_t e = second.begin; e < second.end; ++e) {
          double s = 0;
          for (size_t c = 0; c < d; ++c)
            s += product[c] * (order_ == 3 ? k2[static_cast<size_t>(e) * d + c] : 1.0);
          scores.push_back(s);
        }
      }
      if (scores.empty()) continue;
      const double most = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& s : scores) {
        if (mode_ == "exact") {
          s = std::exp(s - most);
        } else {
          double p = 0;
          for (size_t m = chosen_.size(); m-- > 0;) p = p * s + chosen_[m];
          s = p;
        }
        sum += s;
      }
      size_t at = 0;
      for (int64_t a = first.begin; a < first.end; ++a) {
        double share = 0;
        for (int64_t e = second.begin; e < second.end; ++e) share += scores[at++];
        out[static_cast<size_t>((i - q_begin) * length(0) + a)] = static_cast<float>(share / sum);
      }
    }
    return true;
  }

 private:
  /// Queries that are worked on together, against tuples of all keys but the last.
  struct Chunk {
    int64_t begin, end, tuple_begin, tuple_end;
    int64_t queries() const { return end - begin; }
    int64_t tuples() const { return tuple_end - tuple_begin; }
    BlockMask mask;
    Tensor tuple_rows, key_rows;
  };

  // ---- extents and visibility
  int64_t length(int64_t r) const { return lengths_[static_cast<size_t>(r)]; }
  int64_t window(int64_t r) const { return windows_[static_cast<size_t>(r)]; }
  int64_t keys() const { return lengths_.back(); }
  int64_t all_heads() const { return batch_ * heads_; }
  std::string last_key() const { return std::to_string(order_ - 1); }
  bool limited() const {
    return causal_ || std::any_of(windows_.begin(), windows_.end(), [](int64_t w) { return w > 0; });
  }
  /// Tokens of key r that query i sees.
  Interval range(int64_t r, int64_t i) const {
    const int64_t m = length(r), w = window(r);
    return {w > 0 ? std::min(m, std::max<int64_t>(0, i - w + 1)) : 0,
            causal_ || w > 0 ? std::min(m, i + 1) : m};
  }
  /// Whether query i sees every key of tuple t (all keys but the last; the last of them runs fastest).
  bool sees(int64_t i, int64_t t) const {
    for (int64_t r = order_ - 3; r >= 0; --r) {
      const Interval v = range(r, i);
      if (t % length(r) < v.begin || t % length(r) >= v.end) return false;
      t /= length(r);
    }
    return true;
  }
  Chunk chunk(int64_t begin, int64_t end) const {
    Chunk c{begin, end, 0, tuples_, {}, {}, {}};
    if (order_ == 3 && mode_ == "exact")
      c.tuple_begin = range(0, begin).begin, c.tuple_end = range(0, end - 1).end;
    return c;
  }
  void read_lengths(const Problem& problem, const Params& params, int64_t keys) {
    lengths_.assign(static_cast<size_t>(order_ - 1), keys);
    if (!params.is_null("kv_lengths")) {
      const Value::List& given = params.value("kv_lengths").as_list();
      if (given.size() != lengths_.size())
        throw UsageError("tensor_attention.kv_lengths: " + std::to_string(given.size()) + " lengths for " +
                         std::to_string(lengths_.size()) + " keys of order " + std::to_string(order_));
      for (size_t r = 0; r < given.size(); ++r) {
        if (!given[r].is_int())
          throw UsageError("tensor_attention.kv_lengths: whole numbers are wanted, not " + given[r].str());
        lengths_[r] = given[r].as_int();
      }
      return;
    }
    const std::string& file = problem.inputs.file;
    if (file.size() < 12 || file.substr(file.size() - 12) != ".safetensors") return;
    const auto shapes = safetensors_shapes(file);
    for (size_t r = 0; r < lengths_.size(); ++r)
      if (const auto it = shapes.find("k" + std::to_string(r + 1));
          it != shapes.end() && it->second.rank() == 4)
        lengths_[r] = it->second[2];
  }

  // ---- small pieces
  static Tensor indices(Context& ctx, std::vector<int32_t> values) {
    const Shape shape{static_cast<int64_t>(values.size())};
    const Tensor t = ctx.allocate(DType::i32, shape);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::i32, shape, values.data()), t);
    return t;
  }
  static Tensor filled(Context& ctx, const Shape& shape, const std::vector<double>& values) {
    std::vector<float> narrow(values.begin(), values.end());
    const Tensor t = ctx.allocate(DType::f32, shape);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::f32, shape, narrow.data()), t);
    return t;
  }
  /// w_alpha for each column of the moments.
  Tensor feature_weights(Context& ctx, const std::vector<double>& c) const {
    const Features& f = *features_;
    const auto columns = static_cast<size_t>(causal_ ? 1 : d_ + 1);
    std::vector<double> w(static_cast<size_t>(f.count()) * columns);
    double factorial[65] = {1};
    for (int m = 1; m <= 64; ++m) factorial[m] = factorial[m - 1] * m;
    for (size_t i = 0; i < static_cast<size_t>(f.count()); ++i) {
      const int m = f.degree[i];
      const double value =
          c[static_cast<size_t>(m)] * factorial[m] * std::pow(scale_, m) * f.inverse_factorial[i];
      std::fill_n(w.begin() + static_cast<int64_t>(i * columns), columns, value);
    }
    return filled(ctx, {f.count(), static_cast<int64_t>(columns)}, w);
  }
  static double largest(Context& ctx, const Tensor& x) {
    const Tensor t = on_host(ctx, x);
    std::vector<double> values(static_cast<size_t>(t.numel()));
    convert(t.raw(), t.dtype(), values.data(), DType::f64, t.numel());
    double most = 0;
    for (double v : values) most = std::max(most, std::abs(v));
    return most;
  }
  static double smallest(Context& ctx, const Tensor& x) {
    const Tensor t = on_host(ctx, x);
    double least = std::numeric_limits<double>::infinity();
    for (int64_t a = 0; a < t.dim(0); ++a)
      for (int64_t i = 0; i < t.dim(2); ++i)
        least = std::min(least, static_cast<double>(t.data<float>()[a * t.stride(0) + i * t.stride(2)]));
    return least;
  }
  static void binary(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y) {
    PointwiseArgs p;
    p.op = op;
    p.a = a, p.b = b, p.y = y;
    pointwise(ctx, p);
  }
  static void affine(Context& ctx, const Tensor& x, float alpha, float beta, const Tensor& y) {
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine;
    p.a = x, p.y = y;
    p.alpha = alpha, p.beta = beta;
    pointwise(ctx, p);
  }
  static void product(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& c, bool a_transposed,
                      bool b_transposed, float alpha = 1.0f, bool accumulate = false) {
    GemmArgs g;
    g.a = a, g.b = b, g.c = c;
    g.a_transposed = a_transposed, g.b_transposed = b_transposed;
    g.alpha = alpha;
    g.accumulate = accumulate;
    gemm(ctx, g);
  }
  /// x [B, H, X, D] and y [B, H, Y, D] -> all products of a row of each, [B, H, X * Y, D].
  static Tensor outer(Context& ctx, const Tensor& x, const Tensor& y) {
    const int64_t b = x.dim(0), h = x.dim(1), rows = x.dim(2), columns = y.dim(2), d = x.dim(3);
    const Tensor z = ctx.allocate(x.dtype(), {b, h, rows, columns, d});
    binary(ctx, PointwiseArgs::Op::mul, x.strided(z.shape(), {x.stride(0), x.stride(1), x.stride(2), 0, 1}),
           y.strided(z.shape(), {y.stride(0), y.stride(1), 0, y.stride(2), 1}), z);
    return z.reshape({b, h, rows * columns, d});
  }
  static Cost outer_cost(int64_t rows, int64_t d, int64_t bytes) { return binary_cost(rows * d, bytes); }
  static Cost binary_cost(int64_t elements, int64_t bytes, bool special = false) {
    Cost c;
    (special ? c.special : c.elementwise) = elements;
    c.bytes_read = 2 * elements * bytes, c.bytes_written = elements * bytes;
    return c;
  }
  static Cost product_cost(int64_t flops, int64_t read, int64_t written) {
    Cost c;
    c.matmul = flops;
    c.bytes_read = 4 * read, c.bytes_written = 4 * written;
    return c;
  }
  static Cost moved(int64_t read, int64_t written) {
    Cost c;
    c.bytes_read = read, c.bytes_written = written;
    return c;
  }
  /// Products over all keys but the last, [B, H, tuples, D]; `letter` k or v. Order 2 has none.
  Tensor tuple_products(Context& ctx, const char* letter, DType dtype) {
    Tensor all;
    for (int64_t r = 0; r + 2 < order_; ++r) {
      const Tensor next = as(ctx, input(letter + std::to_string(r + 1)), dtype);
      all = all ? outer(ctx, all, next) : next;
    }
    return all;
  }
  Cost tuple_cost(int64_t bytes, bool widened) const {
    Cost c;
    int64_t rows = 1;
    for (int64_t r = 0; r + 2 < order_; ++r) {
      rows *= length(r);
      if (widened) c += widen_cost(length(r));
      if (r > 0) c += outer_cost(all_heads() * rows, d_, bytes);
    }
    return c;
  }
  static Tensor as(Context& ctx, const Tensor& t, DType dtype) {
    if (t.dtype() == dtype) return t;
    const Tensor wide = ctx.allocate(dtype, t.shape());
    cast(ctx, {t, wide});
    return wide;
  }
  Cost widen_cost(int64_t rows) const {
    const int64_t elements = all_heads() * rows * d_;
    return dtype_ == DType::f32 ? Cost()
                                : moved(elements * static_cast<int64_t>(size_of(dtype_)), elements * 4);
  }

  // ---- exact
  void run_exact(Context& ctx) {
    const std::string last = last_key();
    AttentionArgs a;
    a.k = input("k" + last), a.v = input("v" + last);
    a.scale = static_cast<float>(scale_);
    Tensor keys, values, o = o_;
    if (order_ > 2) {
      const auto stage = ctx.stage("tuples");
      keys = tuple_products(ctx, "k", dtype_), values = tuple_products(ctx, "v", DType::f32);
      if (dtype_ != DType::f32) o = ctx.allocate(DType::f32, o_.shape());
    }
    for (const Chunk& c : chunks_) {
      const int64_t queries = c.queries(), tuples = c.tuples();
      const Tensor q = input("q").slice(2, c.begin, c.end), out = o.slice(2, c.begin, c.end);
      a.mask = limited() ? &c.mask : nullptr;
      if (order_ == 2) {
        const auto stage = ctx.stage("attend");
        a.q = q, a.o = out;
        attention(ctx, a);
        continue;
      }
      {
        const auto stage = ctx.stage("pseudo_queries");
        a.q = outer(ctx, q, keys.slice(2, c.tuple_begin, c.tuple_end));
      }
      {
        const auto stage = ctx.stage("attend");
        a.o = ctx.allocate(dtype_, a.q.shape());
        a.lse = ctx.allocate(DType::f32, {batch_, heads_, queries * tuples});
        attention(ctx, a);
      }
      const auto stage = ctx.stage("join");
      const Tensor weights = a.lse.reshape({batch_, heads_, queries, 1, tuples});
      SoftmaxArgs s;
      s.x = s.y = weights;
      softmax(ctx, s);
      const Tensor each = as(ctx, a.o, DType::f32).reshape({batch_, heads_, queries, tuples, d_});
      const Tensor v = values.slice(2, c.tuple_begin, c.tuple_end);
      binary(ctx, PointwiseArgs::Op::mul, each,
             v.strided(each.shape(), {v.stride(0), v.stride(1), 0, v.stride(2), 1}), each);
      product(
          ctx, weights, each,
          out.strided({batch_, heads_, queries, 1, d_}, {out.stride(0), out.stride(1), out.stride(2), d_, 1}),
          false, false);
    }
    if (order_ > 2 && dtype_ != DType::f32) {
      const auto stage = ctx.stage("narrow");
      cast(ctx, {o, o_});
    }
  }
  Cost exact_cost() const {
    const auto bytes = static_cast<int64_t>(size_of(dtype_));
    Cost sum;
    if (order_ > 2) {
      sum += tuple_cost(bytes, false) + tuple_cost(4, true);
      if (dtype_ != DType::f32) sum += moved(all_heads() * n_ * d_ * 4, all_heads() * n_ * d_ * bytes);
    }
    for (const Chunk& c : chunks_) {
      const int64_t rows = c.queries() * c.tuples(), all = all_heads() * rows;
      int64_t seen = 0;
      for (int64_t i = c.begin; i < c.end; ++i) {
        int64_t tuples = 1;
        for (int64_t r = 0; r < order_ - 1; ++r) tuples *= range(r, i).end - range(r, i).begin;
        seen += tuples;
      }
      seen *= all_heads();
      Cost attend;
      attend.matmul = 4 * d_ * seen;
      attend.elementwise = 4 * seen;
      attend.special = seen;
      attend.bytes_read = (all + 2 * all_heads() * keys()) * d_ * bytes + (limited() ? 8 * rows : 0);
      attend.bytes_written = all * d_ * bytes;
      sum += attend;
      if (order_ == 2) continue;
      sum += outer_cost(all, d_, bytes) + moved(0, 4 * all) + widen_cost(rows) + binary_cost(all * d_, 4);
      Cost soft;
      soft.elementwise = 4 * all;
      soft.special = all;
      soft.bytes_read = soft.bytes_written = 4 * all;
      sum += soft + product_cost(2 * all * d_, all + all * d_, all_heads() * c.queries() * d_);
    }
    return sum;
  }

  // ---- polynomial, by features
  /// Runs of features of one degree.
  template <class Visit>
  void each_chunk(Visit visit) const {
    const int64_t most =
        causal_ ? std::clamp<int64_t>(kElementsAtOnce / (all_heads() * (d_ + 1) * n_), 1, chunk_) : chunk_;
    for (int64_t g = 0; g <= degree_; ++g)
      for (int64_t f = first_of(g); f < first_of(g + 1); f += most)
        visit(g, f, std::min(first_of(g + 1), f + most));
  }
  int64_t first_of(int64_t g) const { return features_->begin[static_cast<size_t>(g)]; }
  /// All features but those of the highest degree, by degree: [BH, count, M]. Those of degree 1 are the
  /// coordinates.
  using Monomials = std::vector<Tensor>;
  Monomials monomials(Context& ctx, const Tensor& x) {
    const int64_t bh = all_heads(), m = x.dim(2);
    Monomials u;
    u.push_back(ctx.allocate(DType::f32, {bh, 1, m}));
    transpose_copy(ctx, {ones_.strided({bh, 1, m}, {0, 0, 1}), u[0]});
    u.push_back(ctx.allocate(DType::f32, {bh, d_, m}));
    transpose_copy(ctx, {as(ctx, x, DType::f32).reshape({bh, m, d_}).transpose(1, 2), u[1]});
    for (int64_t g = 2; g < degree_; ++g) u.push_back(multiplied(ctx, u, g, first_of(g), first_of(g + 1)));
    return u;
  }
  /// Features [from, to) of degree g: those of one degree less times a coordinate.
  Tensor multiplied(Context& ctx, const Monomials& u, int64_t g, int64_t from, int64_t to) {
    const Shape shape{all_heads(), to - from, u[0].dim(2)};
    const Tensor y = ctx.allocate(DType::f32, shape), last = ctx.allocate(DType::f32, shape);
    gather_rows(ctx, {u[static_cast<size_t>(g - 1)], parents_.slice(0, from, to), y});
    gather_rows(ctx, {u[1], coordinates_.slice(0, from, to), last});
    binary(ctx, PointwiseArgs::Op::mul, y, last, y);
    return y;
  }
  Tensor features(Context& ctx, const Monomials& u, int64_t g, int64_t from, int64_t to) {
    if (g >= static_cast<int64_t>(u.size())) return multiplied(ctx, u, g, from, to);
    return u[static_cast<size_t>(g)].slice(1, from - first_of(g), to - first_of(g));
  }
  static Cost multiply_cost(int64_t bh, int64_t features, int64_t m) {
    const int64_t elements = bh * features * m;
    return moved(8 * elements + 8 * features, 8 * elements) + binary_cost(elements, 4);
  }
  /// Values with a column of ones, [BH, M, D + 1]; `across`: [BH, D + 1, M].
  Tensor with_ones(Context& ctx, const Tensor& v, bool across) {
    const int64_t bh = all_heads(), m = v.dim(2);
    const Tensor from = as(ctx, v, DType::f32).reshape({bh, m, d_});
    const Tensor y = ctx.allocate(DType::f32, across ? Shape{bh, d_ + 1, m} : Shape{bh, m, d_ + 1});
    const Tensor to = across ? y.transpose(1, 2) : y;
    transpose_copy(ctx, {from, to.slice(2, 0, d_)});
    transpose_copy(ctx, {ones_.strided({bh, m, 1}, {0, 1, 1}), to.slice(2, d_, d_ + 1)});
    return y;
  }
  Cost with_ones_cost(int64_t m) const {
    const int64_t elements = all_heads() * m * (d_ + 1);
    return widen_cost(m) + moved(4 * elements, 4 * elements);
  }

  /// Numerators and, in row D, normalisers: [BH, D + 1, N].
  Tensor run_poly(Context& ctx, bool taylor) {
    const int64_t bh = all_heads(), columns = d_ + 1;
    Monomials uq;
    std::vector<Monomials> uk;
    std::vector<Tensor> values;
    {
      const auto stage = ctx.stage("features");
      uq = monomials(ctx, input("q"));
      for (int64_t r = 1; r < order_; ++r) {
        uk.push_back(monomials(ctx, input("k" + std::to_string(r))));
        values.push_back(with_ones(ctx, input("v" + std::to_string(r)), causal_));
      }
    }
    const Tensor sums = ctx.allocate(DType::f32, {bh, columns, n_});
    const Tensor weights = weights_of_[taylor ? 1 : 0];
    each_chunk([&](int64_t g, int64_t from, int64_t to) {
      const int64_t count = to - from;
      std::vector<Tensor> key_features;
      Tensor query_features;
      {
        const auto stage = ctx.stage("features");
        for (const Monomials& u : uk) key_features.push_back(features(ctx, u, g, from, to));
        query_features = features(ctx, uq, g, from, to);
      }
      Tensor joint;
      const Shape shape = causal_ ? Shape{bh, count, columns, n_} : Shape{bh, count, columns};
      for (size_t r = 0; r < uk.size(); ++r) {
        const auto stage = ctx.stage("moments");
        const Tensor moments = ctx.allocate(DType::f32, shape), &u = key_features[r], &v = values[r];
        if (causal_) {
          binary(ctx, PointwiseArgs::Op::mul, u.strided(shape, {u.stride(0), u.stride(1), 0, 1}),
                 v.strided(shape, {v.stride(0), 0, v.stride(1), 1}), moments);
          PrefixSumArgs p;
          p.x = p.y = moments;
          prefix_sum(ctx, p);
        } else {
          product(ctx, u, v, moments, false, false);
        }
        if (joint)
          binary(ctx, PointwiseArgs::Op::mul, joint, moments, joint);
        else
          joint = moments;
      }
      const auto stage = ctx.stage("combine");
      const Tensor w = weights.slice(0, from, to);
      if (causal_) {
        binary(ctx, PointwiseArgs::Op::mul, joint,
               query_features.strided(shape, {query_features.stride(0), query_features.stride(1), 0, 1}),
               joint);
        product(ctx, w.strided({bh, 1, count}, {0, count, 1}), joint.reshape({bh, count, columns * n_}),
                sums.reshape({bh, 1, columns * n_}), false, false, 1.0f, from > 0);
      } else {
        binary(ctx, PointwiseArgs::Op::mul, joint, w.strided(shape, {0, columns, 1}), joint);
        product(ctx, joint, query_features, sums, true, false, 1.0f, from > 0);
      }
    });
    return sums;
  }
  Cost poly_cost() const {
    const int64_t bh = all_heads(), columns = d_ + 1;
    Cost sum;
    const auto monomials_cost = [&](int64_t m) {
      Cost c = widen_cost(m) + moved(4 * bh * m * (d_ + 1), 4 * bh * m * (d_ + 1));
      for (int64_t g = 2; g < degree_; ++g) c += multiply_cost(bh, first_of(g + 1) - first_of(g), m);
      return c;
    };
    sum += monomials_cost(n_);
    for (int64_t m : lengths_) sum += monomials_cost(m) + with_ones_cost(m);
    each_chunk([&](int64_t g, int64_t from, int64_t to) {
      const int64_t count = to - from, joint = bh * count * columns * (causal_ ? n_ : 1);
      if (g > 1 && g >= degree_) {
        sum += multiply_cost(bh, count, n_);
        for (int64_t m : lengths_) sum += multiply_cost(bh, count, m);
      }
      for (int64_t m : lengths_) {
        if (causal_) {
          Cost prefix;
          prefix.elementwise = joint;
          prefix.bytes_read = prefix.bytes_written = 4 * joint;
          sum += binary_cost(joint, 4) + prefix;
        } else {
          sum += product_cost(2 * joint * m, bh * (count + columns) * m, joint);
        }
      }
      sum += binary_cost(joint, 4) * (order_ - 1);
      const int64_t out = bh * columns * n_, again = from > 0 ? out : 0;
      sum += causal_ ? product_cost(2 * out * count, bh * count + joint + again, out)
                     : product_cost(2 * out * count, joint + bh * count * n_ + again, out);
    });
    return sum;
  }

  // ---- polynomial, tuple by tuple
  Tensor run_direct(Context& ctx, const std::vector<double>& c) {
    const int64_t bh = all_heads(), columns = d_ + 1, m = keys();
    const std::string last = last_key();
    const Tensor k = as(ctx, input("k" + last), DType::f32),
                 values = with_ones(ctx, input("v" + last), false);
    const Tensor q = as(ctx, input("q"), DType::f32);
    Tensor tuple_keys, tuple_values;
    if (order_ > 2) {
      tuple_keys = tuple_products(ctx, "k", DType::f32);
      tuple_values = with_ones(ctx, tuple_products(ctx, "v", DType::f32), false);
    }
    const Tensor sums = ctx.allocate(DType::f32, {bh, n_, columns});
    for (const Chunk& chunk : chunks_) {
      const int64_t queries = chunk.queries(), rows = queries * tuples_;
      const Tensor part = q.slice(2, chunk.begin, chunk.end);
      const Tensor pseudo = order_ > 2 ? outer(ctx, part, tuple_keys) : part;
      const Tensor s = ctx.allocate(DType::f32, {batch_, heads_, rows, m}),
                   p = ctx.allocate(DType::f32, s.shape());
      {
        const auto stage = ctx.stage("scores");
        product(ctx, pseudo, k, s, false, true, static_cast<float>(scale_));
      }
      {
        const auto stage = ctx.stage("polynomial");
        affine(ctx, s, 0.0f, static_cast<float>(c.back()), p);
        for (size_t g = c.size() - 1; g-- > 0;) {
          binary(ctx, PointwiseArgs::Op::mul, p, s, p);
          affine(ctx, p, 1.0f, static_cast<float>(c[g]), p);
        }
      }
      const auto stage = ctx.stage("values");
      const Tensor weights = p.reshape({bh, queries, tuples_, m});
      const Tensor each = ctx.allocate(DType::f32, {bh, queries, tuples_, columns});
      const Tensor v = masked(ctx, values, chunk.key_rows, queries);
      product(ctx, weights, v, each, false, false);
      if (order_ > 2)
        binary(ctx, PointwiseArgs::Op::mul, each, masked(ctx, tuple_values, chunk.tuple_rows, queries), each);
      const Tensor out = sums.slice(1, chunk.begin, chunk.end);
      product(ctx, ones_.strided({bh, queries, 1, tuples_}, {0, 0, tuples_, 1}), each,
              out.strided({bh, queries, 1, columns}, {out.stride(0), columns, columns, 1}), false, false);
    }
    const Tensor across = ctx.allocate(DType::f32, {bh, columns, n_});
    transpose_copy(ctx, {sums.transpose(1, 2), across});
    return across;
  }
  /// Rows [BH, X, C] once a query, [BH, Q, X, C]; with `index` the rows a query does not see are zeros.
  Tensor masked(Context& ctx, const Tensor& t, const Tensor& index, int64_t queries) {
    const int64_t bh = t.dim(0), rows = t.dim(1), columns = t.dim(2);
    if (!causal_) return t.strided({bh, queries, rows, columns}, {t.stride(0), 0, columns, 1});
    const Tensor y = ctx.allocate(DType::f32, {bh, queries * rows, columns});
    gather_rows(ctx, {t, index, y});
    return y.reshape({bh, queries, rows, columns});
  }
  Cost direct_cost() const {
    const int64_t bh = all_heads(), columns = d_ + 1, m = keys();
    Cost sum = widen_cost(m) + widen_cost(n_) + with_ones_cost(m) +
               moved(4 * bh * columns * n_, 4 * bh * columns * n_);
    if (order_ > 2) {
      sum += tuple_cost(4, true) * 2;
      const int64_t elements = bh * tuples_ * columns;
      sum += moved(4 * elements, 4 * elements);
    }
    for (const Chunk& c : chunks_) {
      const int64_t rows = bh * c.queries() * tuples_, scores = rows * m;
      if (order_ > 2) sum += outer_cost(rows, d_, 4);
      sum += product_cost(2 * scores * d_, rows * d_ + bh * m * d_, scores);
      Cost affine;
      affine.elementwise = scores;
      affine.bytes_read = affine.bytes_written = 4 * scores;
      sum += affine * (degree_ + 1) + binary_cost(scores, 4) * degree_;
      const auto masked_cost = [&](int64_t x) {
        const int64_t elements = bh * c.queries() * x * columns;
        return causal_ ? moved(4 * elements + 4 * c.queries() * x, 4 * elements) : Cost();
      };
      sum += masked_cost(m) +
             product_cost(2 * scores * columns, scores + bh * c.queries() * m * columns, rows * columns);
      if (order_ > 2) sum += masked_cost(tuples_) + binary_cost(rows * columns, 4);
      sum += product_cost(2 * rows * columns, rows + rows * columns, bh * c.queries() * columns);
    }
    return sum;
  }

  /// o = numerators / normalisers.
  void finish(Context& ctx, const Tensor& sums) {
    const auto stage = ctx.stage("divide");
    const int64_t bh = all_heads();
    const Tensor quotient = ctx.allocate(DType::f32, {bh, d_, n_});
    binary(ctx, PointwiseArgs::Op::div, sums.slice(1, 0, d_),
           sums.slice(1, d_, d_ + 1).strided({bh, d_, n_}, {sums.stride(0), 0, 1}), quotient);
    const Tensor o = dtype_ == DType::f32 ? o_ : ctx.allocate(DType::f32, o_.shape());
    transpose_copy(ctx, {quotient.transpose(1, 2), o.reshape({bh, n_, d_})});
    if (dtype_ != DType::f32) cast(ctx, {o, o_});
  }
  Cost finish_cost() const {
    const int64_t elements = all_heads() * n_ * d_;
    Cost c = binary_cost(elements, 4, true) + moved(4 * elements, 4 * elements);
    if (dtype_ != DType::f32) c += moved(4 * elements, elements * static_cast<int64_t>(size_of(dtype_)));
    return c;
  }

  std::string mode_;
  int64_t order_, degree_;
  bool chebyshev_;
  double bound_;
  bool causal_;
  int64_t chunk_;
  DType dtype_;
  int64_t batch_ = 0, heads_ = 0, n_ = 0, d_ = 0;
  double scale_ = 1;
  std::vector<int64_t> windows_, lengths_;
  int64_t tuples_ = 1;
  std::vector<Chunk> chunks_;
  std::unique_ptr<Features> features_;
  std::vector<double> taylor_, chosen_;
  Tensor ones_, parents_, coordinates_, weights_of_[2];
  Tensor o_;
};

class TensorAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<TensorInstance>(ctx, info(), problem, params);
  }
};
ATTNBENCH_METHOD(TensorAttention);

}  // namespace
}  // namespace attnbench
