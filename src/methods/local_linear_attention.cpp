// Local linear attention: for each query a ridge regression of the values on the keys, weighted by softmax,
// whose value at the query is the output. FlashLLA's iteration is one operator; the direct solve is composed
// of products over tiles of queries.
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/attention/attention.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/local_linear/local_linear.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "local_linear_attention";
  m.title = "Local linear attention (LLA, FlashLLA)";
  m.paper =
      "Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time "
      "Regression, ICLR "
      "2026";
  m.arxiv = "2510.01450";
  m.family = "higher-order (softmax weights and a linear solve a query)";
  m.summary =
      "Softmax attention is local constant regression of values on keys; this is local linear regression: an "
      "affine map "
      "is fitted around each query by ridge least squares with softmax weights, and its intercept is the "
      "output. The "
      "D x D system of each query is solved by conjugate gradients whose products are sweeps over the keys, "
      "so that no "
      "system is ever formed.";
  m.formula =
      "w_ij = exp(scale q_i.k_j - max),  omega = sum_j w_ij,  z_ij = k_j - q_i\n"
      "mu = sum_j w_ij z_ij,  Sigma = sum_j w_ij z_ij z_ij^T + lambda omega I,  rho = Sigma^-1 mu\n"
      "delta = omega - mu.rho,  o_i = sum_j w_ij (1 - rho.z_ij) / delta v_j\n"
      "cg:     Sigma p = sum_j w_j (k_j.p - kbar.p) k_j + mu (mu.p) + ridge p, kbar the mean of the keys; a "
      "sweep each\n"
      "output: o = (W had (c - R K^T)) V,  R = rho / delta,  c = (1 + rho.q) / delta";
  m.cost =
      "P visible pairs, T = cg_max_iters: scores 2 P D, kbar 2 P D, each iteration 4 P D, output 2 P D + 2 P "
      "E; "
      "FlashLLA computes the weights again in each sweep: 2 P D (5 + 3 T). Jacobi adds 2 P D. cholesky works "
      "on "
      "whole tiles of row_tile queries: weights 2 P D, 2 P D^2 and D^3 / 3 a query. Memory N D, and row_tile "
      "x N "
      "for the weights of a tile.";
  ParamSpec rtol = spec::number("cg_rtol", 1e-12, 0, "on the squared residual, relative to |mu|^2"),
            atol = spec::number("cg_atol", 1e-12, 0, "least |mu|^2 that cg_rtol refers to");
  ParamSpec row_tile = spec::integer("row_tile", 64, 16, "queries whose weights are in memory at a time"),
            col_tile = spec::integer("col_tile", 64, 16, "keys at a time whose squares cholesky keeps");
  m.params = {spec::number("ridge_lambda", 10.0, 0, "lambda, above 0"),
              spec::choice("ridge_scale", {"omega", "absolute"},
                           "omega: lambda acts on normalised weights; absolute: on exp(scale q.k) itself"),
              spec::param("scale", ParamSpec::Type::number, Value(),
                          "factor of q . k; null: 1 / sqrt(D); 0: uniform weights"),
              spec::number("delta_eps", 1e-12, 0, "added to |delta|"),
              spec::choice("solver", {"cg", "cg_jacobi", "cholesky"}, "how rho is found"),
              spec::integer("cg_max_iters", 32, 0, "T; all are run, rows that have converged rest"),
              rtol,
              atol,
              row_tile,
              col_tile,
              spec::param("causal", ParamSpec::Type::boolean, true, "false: every query sees all keys"),
              spec::integer("lla_block_size", Value(), 1,
                            "Sigma is cut to diagonal blocks of so many channels; null: D"),
              spec::integer("value_dim", Value(), 1, "E of v; null: D")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"memory class", "length n, head dim d", "naive Theta(n^2 d) + Theta(n d^2)", "Theta(n d)", "abstract"},
      {"memory plot", "FlashLLA", "naive", "a figure only", "paper, Fig. 1"},
      {"kernel accuracy", "B=1, N 64..1024, D=64, lambda=10, T=32, bf16 kernel", "f32 direct solve",
       "rtol 1e-2, atol 1e-2", "repository, tests/test_lla.py"},
      {"successor (Parallax) decode", "H200, D=128, H=8, bf16, KV 4096, B=1 / 32", "FA2, FA3",
       "8.61 us vs 17.07, 11.90 / 279.96 us vs 384.90, 281.64", "Yifei-Zuo/Parallax README"}};
  m.notes = {
      "Causal by default, whatever problem.causal says; non-causal is an extension. With more keys than "
      "queries the "
      "ends are aligned: one query and all keys is the decode form.",
      "Everything is divided by omega, so that ridge and tolerances act on normalised weights; delta_eps, "
      "cg_atol and "
      "the guard 1e-10 of alpha are scaled accordingly.",
      "All arithmetic on rows is f32 for every dtype; on tensor cores operands are split into as many bf16 "
      "terms "
      "as that takes. Dots over channels are in f64.",
      "Sigma is applied around the mean of the keys and not expanded around the origin, where the terms of "
      "the "
      "paper's code cancel; the weights sum to 1 however small delta is.",
      "The CPU keeps the weights of a tile over the iterations; a device computes them again, as FlashLLA "
      "does, "
      "and is not credited for it.",
      "lambda is one number; the per-token lambda of the paper's models is a learned projection outside the "
      "operator.",
      "Rows for analyses are |s_ij| / sum_j |s_ij| (chosen: the weights are signed)."};
  m.example.batch = 2;
  m.example.heads = 2;
  m.example.length = 90;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

/// The operators that a tile of queries goes through, on f32 tensors [BH, rows, columns]; or, without a
/// context, only what they cost by their shapes: the sequence of operations exists once.
class Engine {
 public:
  using Op = PointwiseArgs::Op;
  explicit Engine(Context* ctx) : ctx_(ctx) {}
  const Cost& cost() const { return cost_; }

  std::unique_ptr<Context::StageScope> stage(const char* name) {
    return ctx_ ? std::make_unique<Context::StageScope>(*ctx_, name) : nullptr;
  }
  Tensor fresh(const Shape& shape) {
    static float nothing;
    return ctx_ ? ctx_->allocate(DType::f32, shape)
                : Tensor::borrow(DeviceKind::cpu, DType::f32, shape, &nothing);
  }
  void binary(Op op, const Tensor& a, const Tensor& b, const Tensor& y) {
    if (!ctx_) return count(y.numel(), 2, op == Op::div);
    PointwiseArgs p;
    p.op = op;
    p.a = a, p.b = b, p.y = y;
    pointwise(*ctx_, p);
  }
  void unary(Op op, const Tensor& a, const Tensor& y, float alpha = 1.0f, float beta = 0.0f) {
    if (!ctx_) return count(y.numel(), 1, op != Op::affine && op != Op::clamp);
    PointwiseArgs p;
    p.op = op;
    p.a = a, p.y = y;
    p.alpha = alpha, p.beta = beta;
    pointwise(*ctx_, p);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& y) { binary(Op::add, a, b, y); }
  void sub(const Tensor& a, const Tensor& b, const Tensor& y) { binary(Op::sub, a, b, y); }
  void mul(const Tensor& a, const Tensor& b, const Tensor& y) { binary(Op::mul, a, b, y); }
  void div(const Tensor& a, const Tensor& b, const Tensor& y) { binary(Op::div, a, b, y); }
  void affine(const Tensor& a, float alpha, float beta, const Tensor& y) {
    unary(Op::affine, a, y, alpha, beta);
  }
  /// y = a scalar of each column [BH, 1, R] in all rows of `like`.
  static Tensor across(const Tensor& scalar, const Tensor& like) {
    return scalar.strided(like.shape(), {scalar.stride(0), 0, 1});
  }
  void product(const Tensor& a, bool a_transposed, const Tensor& b, bool b_transposed, const Tensor& c,
               float alpha = 1.0f, bool accumulate = false) {
    if (!ctx_) {
      cost_.matmul += 2 * c.numel() * a.dim(a_transposed ? -2 : -1);
      cost_.bytes_read += a.nbytes() + b.nbytes() + (accumulate ? c.nbytes() : 0);
      cost_.bytes_written += c.nbytes();
      return;
    }
    GemmArgs g;
    g.a = a, g.b = b, g.c = c;
    g.a_transposed = a_transposed, g.b_transposed = b_transposed;
    g.alpha = alpha;
    g.accumulate = accumulate;
    gemm(*ctx_, g);
  }
  void soft(const Tensor& x, bool causal, int64_t offset) {
    if (!ctx_) return count(x.numel(), 1, false), count_more(4 * x.numel() - x.numel(), x.numel());
    SoftmaxArgs s;
    s.x = s.y = x;
    s.causal = causal;
    s.causal_offset = offset;
    softmax(*ctx_, s);
  }
  void move(const Tensor& from, const Tensor& to) {
    if (!ctx_) {
      cost_.bytes_read += to.nbytes(), cost_.bytes_written += to.nbytes();
      return;
    }
    transpose_copy(*ctx_, {from, to});
  }
  /// s [BH, 1, R] = sums over the rows of a had b; `ones` [at least rows].
  void dot(const Tensor& a, const Tensor& b, const Tensor& ones, const Tensor& s) {
    const Tensor each = fresh(a.shape());
    mul(a, b, each);
    product(ones.strided({a.dim(0), 1, a.dim(1)}, {0, a.dim(1), 1}), false, each, false, s);
  }

 private:
  void count(int64_t n, int64_t operands, bool special) {
    (special ? cost_.special : cost_.elementwise) += n;
    cost_.bytes_read += 4 * operands * n, cost_.bytes_written += 4 * n;
  }
  void count_more(int64_t elementwise, int64_t special) {
    cost_.elementwise += elementwise, cost_.special += special;
  }
  Context* ctx_;
  Cost cost_;
};

class LocalLinearInstance final : public Instance {
 public:
  LocalLinearInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params)
      : form_(heads_form(info, problem)),
        dtype_(problem.dtype),
        causal_(params.boolean("causal")),
        solver_(params.choice("solver")),
        iterations_(solver_ == "cholesky" ? 0 : params.integer("cg_max_iters")),
        row_tile_(params.integer("row_tile")),
        col_tile_(params.integer("col_tile")),
        lambda_(static_cast<float>(params.number("ridge_lambda"))),
        delta_eps_(static_cast<float>(params.number("delta_eps"))),
        rtol_(static_cast<float>(params.number("cg_rtol"))),
        atol_(static_cast<float>(params.number("cg_atol"))),
        absolute_(params.choice("ridge_scale") == "absolute") {
    const HeadsForm& f = form_;
    const int64_t d = f.head_dim;
    e_ = params.is_null("value_dim") ? d : params.integer("value_dim");
    scale_ = static_cast<float>(params.is_null("scale") ? 1.0 / std::sqrt(static_cast<double>(d))
                                                        : params.number("scale"));
    block_ = params.is_null("lla_block_size") ? d : params.integer("lla_block_size");
    if (!(params.number("ridge_lambda") > 0))
      throw UsageError(
          "local_linear_attention.ridge_lambda: a ridge above 0 is wanted (a first query sees one key), "
          "not " +
          params.value("ridge_lambda").str());
    if (d % block_ != 0)
      throw UsageError("local_linear_attention.lla_block_size: " + std::to_string(block_) +
                       " does not divide the head dim " + std::to_string(d));
    if (d > 512 || e_ > 512)
      throw Unsupported("local_linear_attention: D and E are at most 512, not " + std::to_string(d) +
                        " and " + std::to_string(e_));
    if (f.kv_heads != f.heads)
      throw Unsupported(
          "local_linear_attention has one key head for each query head, and problem.kv_heads is " +
          std::to_string(f.kv_heads));
    if (!causal_ && problem.causal)
      throw UsageError("local_linear_attention.causal: false contradicts problem.causal = true");
    if (causal_ && f.keys < f.queries)
      throw Unsupported("local_linear_attention: the first of " + std::to_string(f.queries) +
                        " queries sees none of " + std::to_string(f.keys) +
                        " keys, and a regression needs one");
    const Shape q{f.batch, f.heads, f.queries, d}, k{f.batch, f.heads, f.keys, d},
        v{f.batch, f.heads, f.keys, e_};
    input_specs_ = {{"q", q, dtype_, Init::normal(), false, "queries [B, H, N, D]"},
                    {"k", k, dtype_, Init::normal(), false, "keys [B, H, M, D]"},
                    {"v", v, dtype_, Init::normal(), false, "values [B, H, M, E]"}};
    o_ = ctx.allocate(dtype_, {f.batch, f.heads, f.queries, e_}, MemoryClass::output);
    omega_ = ctx.allocate(DType::f32, {f.batch, f.heads, f.queries}, MemoryClass::output);
  }

  TensorMap outputs() const override { return {{"o", o_}, {"omega", omega_}}; }

  void prepare(Context& ctx) override {
    // Kept from run to run for analyses: what FlashLLA keeps of each row.
    rho_ = ctx.allocate(DType::f32, eliminates() ? Shape{all_heads(), form_.head_dim, form_.queries}
                                                 : Shape{all_heads(), form_.queries, form_.head_dim});
    coefficient_ = ctx.allocate(DType::f32, {all_heads(), 1, form_.queries});
    delta_ = ctx.allocate(DType::f32, {all_heads(), 1, form_.queries});
    if (!eliminates()) return;
    std::vector<float> ones(static_cast<size_t>(std::max(form_.keys, form_.head_dim)), 1.0f);
    const Shape shape{static_cast<int64_t>(ones.size())};
    ones_ = ctx.allocate(DType::f32, shape);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::f32, shape, ones.data()), ones_);
  }

  void run(Context& ctx) override {
    if (!eliminates()) {
      const auto stage = ctx.stage("iterate");
      return local_linear(ctx, arguments(input("q"), input("k"), input("v"), rho_, coefficient_, delta_));
    }
    Tensor q = input("q"), k = input("k"), v = input("v"), o = o_;
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("widen");
      for (Tensor* t : {&q, &k, &v}) {
        const Tensor wide = ctx.allocate(DType::f32, t->shape());
        cast(ctx, {*t, wide});
        *t = wide;
      }
      o = ctx.allocate(DType::f32, o_.shape());
    }
    const Tensor kbar = ctx.allocate(DType::f32, q.shape()), lse = ctx.allocate(DType::f32, omega_.shape()),
                 most = ctx.allocate(DType::f32, omega_.shape());
    {
      const auto stage = ctx.stage("sweep");
      AttentionArgs a = sweep();
      a.q = q, a.k = k, a.v = k, a.o = kbar;
      a.lse = lse, a.row_max = most;
      attention(ctx, a);
    }
    const int64_t bh = all_heads(), n = form_.queries, m = form_.keys, d = form_.head_dim;
    Engine engine(&ctx);
    for (int64_t begin = 0; begin < n; begin += row_tile_) {
      const int64_t end = std::min(n, begin + row_tile_), seen = keys_of(end - 1);
      Tile t;
      t.begin = begin, t.rows = end - begin, t.keys = seen;
      t.query_rows = q.reshape({bh, n, d}).slice(1, begin, end);
      t.kbar_rows = kbar.reshape({bh, n, d}).slice(1, begin, end);
      t.k = k.reshape({bh, m, d}).slice(1, 0, seen), t.v = v.reshape({bh, m, e_}).slice(1, 0, seen);
      t.o = o.reshape({bh, n, e_}).slice(1, begin, end);
      const auto scalars = [&](const Tensor& x) { return x.reshape({bh, 1, n}).slice(2, begin, end); };
      t.lse = scalars(lse), t.most = scalars(most), t.omega = scalars(omega_);
      t.rho = rho_.slice(2, begin, end), t.coefficient = coefficient_.slice(2, begin, end),
      t.delta = delta_.slice(2, begin, end);
      attend_tile(engine, t);
    }
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("narrow");
      cast(ctx, {o, o_});
    }
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const auto bytes = static_cast<int64_t>(size_of(dtype_));
    const int64_t bh = all_heads(), d = f.head_dim;
    ClosedForm form;
    Cost& sum = form.cost;
    if (!eliminates()) {
      float nothing = 0;
      const auto shaped = [&](DType dtype, const Shape& shape) {
        return Tensor::borrow(DeviceKind::cpu, dtype, shape, &nothing);
      };
      sum = local_linear_cost(arguments(
          shaped(dtype_, {f.batch, f.heads, f.queries, d}), shaped(dtype_, {f.batch, f.heads, f.keys, d}),
          shaped(dtype_, {f.batch, f.heads, f.keys, e_}), shaped(DType::f32, {bh, f.queries, d}),
          shaped(DType::f32, {bh, 1, f.queries}), shaped(DType::f32, {bh, 1, f.queries})));
      return form;
    }
    if (dtype_ != DType::f32) {
      const int64_t in = bh * (f.queries * d + f.keys * (d + e_)), out = bh * f.queries * e_;
      sum.bytes_read += in * bytes + out * 4, sum.bytes_written += in * 4 + out * bytes;
    }
    int64_t pairs = 0;
    for (int64_t i = 0; i < f.queries; ++i) pairs += keys_of(i);
    pairs *= bh;
    sum.matmul += 4 * pairs * d, sum.elementwise += 4 * pairs, sum.special += pairs;
    sum.bytes_read += 4 * bh * (f.queries + 2 * f.keys) * d,
        sum.bytes_written += 4 * bh * f.queries * (d + 2);
    // Tiles by their shapes.
    Engine count(nullptr);
    for (int64_t begin = 0; begin < f.queries; begin += row_tile_) {
      const int64_t rows = std::min(f.queries, begin + row_tile_) - begin, seen = keys_of(begin + rows - 1);
      Tile t;
      t.begin = begin, t.rows = rows, t.keys = seen;
      t.query_rows = t.kbar_rows = count.fresh({bh, rows, d});
      t.k = count.fresh({bh, seen, d}), t.v = count.fresh({bh, seen, e_}), t.o = count.fresh({bh, rows, e_});
      t.lse = t.most = t.omega = t.coefficient = t.delta = count.fresh({bh, 1, rows});
      t.rho = count.fresh({bh, d, rows});
      attend_tile(count, t);
    }
    sum += count.cost();
    return form;
  }

  std::optional<PairSet> pairs() const override {
    ElementRule rule;
    rule.causal = causal_;
    return rule_pairs(rule, form_.batch, form_.heads, form_.queries, form_.keys);
  }
  int64_t keys(int64_t) const override { return form_.keys; }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    AttentionArgs a = sweep();
    a.q = input("q"), a.k = input("k"), a.v = input("v");
    attention_rows(ctx, a, b, h, q_begin, q_end, out);
    const int64_t d = form_.head_dim, m = form_.keys, n = form_.queries, head = b * form_.heads + h,
                  row_step = eliminates() ? 1 : d, channel_step = eliminates() ? n : 1;
    const Tensor k = on_host(ctx, input("k").select(0, b).select(0, h)),
                 rho = on_host(ctx, rho_.select(0, head)), c = on_host(ctx, coefficient_.select(0, head));
    std::vector<float> keys(static_cast<size_t>(m * d));
    convert(k.raw(), k.dtype(), keys.data(), DType::f32, m * d);
#pragma omp parallel for num_threads(ctx.threads())
    for (int64_t i = q_begin; i < q_end; ++i) {
      float* row = out.data() + (i - q_begin) * m;
      double sum = 0;
      for (int64_t j = 0; j < m; ++j) {
        if (row[j] == 0.0f) continue;
        double t = c.data<float>()[i];
        for (int64_t x = 0; x < d; ++x)
          t -= static_cast<double>(rho.data<float>()[i * row_step + x * channel_step]) *
               static_cast<double>(keys[static_cast<size_t>(j * d + x)]);
        row[j] = static_cast<float>(std::abs(static_cast<double>(row[j]) * t));
        sum += static_cast<double>(row[j]);
      }
      for (int64_t j = 0; j < m && sum > 0; ++j)
        row[j] = static_cast<float>(static_cast<double>(row[j]) / sum);
    }
    return true;
  }

  /// A weight is divided by delta, the difference of 1 and a sum near 1 where few keys are visible and lambda
  /// is small.
  double condition(const std::string& output) const override {
    if (output != "o" || !delta_ || delta_.device() != DeviceKind::cpu) return 1.0;
    double sum = 0;
    for (int64_t i = 0; i < delta_.numel(); ++i) {
      const double x = delta_.data<float>()[i];
      sum += 1 / (x * x);
    }
    return std::max(1.0, std::sqrt(sum / static_cast<double>(delta_.numel())));
  }

 private:
  /// Queries [begin, begin + rows) against the keys that the last of them sees. Vectors of rows are [BH,
  /// rows, D] as given and [BH, D, rows] where a scalar of each row has to reach all channels.
  struct Tile {
    int64_t begin = 0, rows = 0, keys = 0;
    Tensor query_rows, kbar_rows, k, v, o;
    Tensor lse, most, omega, coefficient, delta;  ///< [BH, 1, rows]
    Tensor rho;                                   ///< [BH, D, rows]
  };
  /// Everything about a tile's systems Sigma rho = mu, divided by omega.
  struct Systems {
    Tensor q, kbar, mu, ridge, x;  ///< [BH, D, rows]; ridge [BH, 1, rows]
  };

  bool eliminates() const { return solver_ == "cholesky"; }
  LocalLinearArgs arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& rho,
                            const Tensor& coefficient, const Tensor& delta) const {
    const Shape rows = omega_.shape();
    LocalLinearArgs a;
    a.q = q, a.k = k, a.v = v, a.o = o_, a.omega = omega_;
    a.rho = rho.reshape(q.shape()), a.coefficient = coefficient.reshape(rows), a.delta = delta.reshape(rows);
    a.scale = scale_, a.causal = causal_, a.lambda = lambda_, a.absolute = absolute_,
    a.delta_eps = delta_eps_;
    a.jacobi = solver_ == "cg_jacobi", a.iterations = iterations_, a.rtol = rtol_, a.atol = atol_;
    a.block = block_, a.row_tile = row_tile_;
    return a;
  }
  int64_t all_heads() const { return form_.batch * form_.heads; }
  /// Keys that query i sees.
  int64_t keys_of(int64_t i) const { return causal_ ? i + 1 + form_.keys - form_.queries : form_.keys; }
  AttentionArgs sweep() const {
    AttentionArgs a;
    a.scale = scale_;
    if (causal_) a.mask = &causal_mask();
    return a;
  }
  static const BlockMask& causal_mask() {
    static const BlockMask mask = [] {
      BlockMask m;
      m.rule.causal = true;
      return m;
    }();
    return mask;
  }
  Tensor ones(Engine& e, int64_t count) const { return ones_ ? ones_.slice(0, 0, count) : e.fresh({count}); }

  void attend_tile(Engine& e, const Tile& t) const {
    const int64_t bh = all_heads(), d = form_.head_dim;
    const Tensor weights = e.fresh({bh, t.rows, t.keys}), products = e.fresh(weights.shape());
    {
      const auto stage = e.stage("weights");
      e.product(t.query_rows, false, t.k, true, weights, scale_);
      e.soft(weights, causal_, t.begin + form_.keys - form_.queries);
    }
    Systems s;
    {
      const auto stage = e.stage("solve");
      const Shape vectors{bh, d, t.rows}, scalars{bh, 1, t.rows};
      for (Tensor* v : {&s.q, &s.kbar, &s.mu, &s.x}) *v = e.fresh(vectors);
      e.move(t.query_rows.transpose(1, 2), s.q);
      e.move(t.kbar_rows.transpose(1, 2), s.kbar);
      e.sub(s.kbar, s.q, s.mu);
      e.sub(t.lse, t.most, t.omega);
      e.unary(PointwiseArgs::Op::exp, t.omega, t.omega);
      s.ridge = e.fresh(scalars);
      if (absolute_) {
        e.affine(t.lse, -1.0f, 0.0f, s.ridge);
        e.unary(PointwiseArgs::Op::exp, s.ridge, s.ridge);
        e.affine(s.ridge, lambda_, 0.0f, s.ridge);
      } else {
        e.affine(t.omega, 0.0f, lambda_, s.ridge);
      }
    }
    eliminate(e, t, s, weights);
    {
      const auto stage = e.stage("solve");
      finish(e, t, s);
    }
    const auto stage = e.stage("output");
    // c - rho' . k_j, the first term as a product of one column with ones.
    e.product(t.coefficient, true, ones(e, t.keys).strided({bh, 1, t.keys}, {0, t.keys, 1}), false, products);
    e.product(t.rho, true, t.k, true, products, -1.0f, true);
    e.mul(products, weights, products);
    e.product(products, false, t.v, false, t.o);
  }

  /// Sigma formed and eliminated row by row, all queries of the tile at once; the same block by block of
  /// channels. Symmetric positive definite systems need no pivoting.
  void eliminate(Engine& e, const Tile& t, const Systems& s, const Tensor& weights) const {
    const int64_t bh = all_heads(), d = form_.head_dim, rows = t.rows;
    const Tensor gram = e.fresh({bh, d * d, rows});
    {
      const auto stage = e.stage("gram");
      for (int64_t j = 0; j < t.keys; j += col_tile_) {
        const int64_t end = std::min(t.keys, j + col_tile_), count = end - j;
        const Tensor k = t.k.slice(1, j, end), squares = e.fresh({bh, count, d, d});
        e.product(k.strided({bh, count, d, 1}, {k.stride(0), k.stride(1), 1, 1}), false,
                  k.strided({bh, count, 1, d}, {k.stride(0), k.stride(1), d, 1}), false, squares);
        e.product(squares.reshape({bh, count, d * d}), true, weights.slice(2, j, end), true, gram, 1.0f,
                  j > 0);
      }
    }
    const auto stage = e.stage("solve");
    for (int64_t c = 0; c < d; c += block_) {
      const int64_t b = block_;
      // This block of Sigma, [BH, b, b, rows]: G - kbar q^T - q kbar^T + q q^T = G - kbar q^T + q (q -
      // kbar)^T.
      const Tensor sigma = e.fresh({bh, b, b, rows}), term = e.fresh({bh, b, b, rows}),
                   x = e.fresh({bh, b, rows});
      const auto part = [&](const Tensor& v) { return v.slice(1, c, c + b); };
      const auto down = [&](const Tensor& v) {
        return v.strided({bh, v.dim(1), b, rows}, {v.stride(0), v.stride(1), 0, 1});
      };
      const auto along = [&](const Tensor& v) {
        return v.strided({bh, b, b, rows}, {v.stride(0), 0, v.stride(1), 1});
      };
      const Tensor g =
          gram.strided({bh, b, b, rows}, {gram.stride(0), d * rows, rows, 1}, (c * d + c) * rows);
      e.mul(down(part(s.kbar)), along(part(s.q)), term);
      e.sub(g, term, sigma);
      e.mul(down(part(s.q)), along(part(s.mu)), term);
      e.sub(sigma, term, sigma);
      const Tensor diagonal = sigma.strided({bh, b, rows}, {sigma.stride(0), (b + 1) * rows, 1});
      e.add(diagonal, Engine::across(s.ridge, diagonal), diagonal);
      e.affine(part(s.mu), 1.0f, 0.0f, x);
      const Tensor factor = e.fresh({bh, b, rows}), step = e.fresh({bh, b, rows});
      const auto cell = [&](const Tensor& v, int64_t i) { return v.slice(1, i, i + 1); };
      for (int64_t j = 0; j + 1 < b; ++j) {
        const int64_t left = b - 1 - j;
        const Tensor column = sigma.select(2, j).slice(1, j + 1, b), f = factor.slice(1, 0, left);
        e.div(column, Engine::across(cell(diagonal, j), f), f);
        const Tensor pivot = sigma.select(1, j).slice(1, j + 1, b),
                     rest = sigma.slice(1, j + 1, b).slice(2, j + 1, b);
        const Tensor update = term.slice(1, 0, left).slice(2, 0, left);
        const Shape square{bh, left, left, rows};
        e.mul(f.strided(square, {f.stride(0), f.stride(1), 0, 1}),
              pivot.strided(square, {pivot.stride(0), 0, pivot.stride(1), 1}), update);
        e.sub(rest, update, rest);
        const Tensor below = x.slice(1, j + 1, b), u = step.slice(1, 0, left);
        e.mul(f, Engine::across(cell(x, j), f), u);
        e.sub(below, u, below);
      }
      for (int64_t j = b - 1; j >= 0; --j) {
        e.div(cell(x, j), cell(diagonal, j), cell(x, j));
        if (j == 0) break;
        const Tensor above = x.slice(1, 0, j), column = sigma.select(2, j).slice(1, 0, j),
                     u = step.slice(1, 0, j);
        e.mul(column, Engine::across(cell(x, j), column), u);
        e.sub(above, u, above);
      }
      e.affine(x, 1.0f, 0.0f, part(s.x));
    }
  }

  /// delta, c and rho' of the tile.
  void finish(Engine& e, const Tile& t, const Systems& s) const {
    const Tensor all = ones(e, form_.head_dim);
    e.dot(s.mu, s.x, all, t.delta);
    e.affine(t.delta, -1.0f, 1.0f, t.delta);
    if (delta_eps_ > 0) {
      const Tensor sign = e.fresh(t.delta.shape());
      // +-1 for all but the smallest numbers; 0 counts as positive.
      e.affine(t.delta, 1e30f, 1e-8f, sign);
      e.unary(PointwiseArgs::Op::affine, sign, sign, 1e30f, 0.0f);
      e.unary(PointwiseArgs::Op::clamp, sign, sign, -1.0f, 1.0f);
      e.affine(sign, delta_eps_, 0.0f, sign);
      e.div(sign, t.omega, sign);
      e.add(t.delta, sign, t.delta);
    }
    e.dot(s.x, s.q, all, t.coefficient);
    e.affine(t.coefficient, 1.0f, 1.0f, t.coefficient);
    e.div(t.coefficient, t.delta, t.coefficient);
    e.div(s.x, Engine::across(t.delta, s.x), t.rho);
  }

  HeadsForm form_;
  DType dtype_;
  bool causal_;
  std::string solver_;
  int64_t iterations_, row_tile_, col_tile_;
  float lambda_, delta_eps_, rtol_, atol_;
  bool absolute_;
  int64_t e_ = 0, block_ = 0;
  float scale_ = 1;
  Tensor o_, omega_, rho_, coefficient_, delta_, ones_;
};

class LocalLinearAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<LocalLinearInstance>(ctx, info(), problem, params);
  }
};
ATTNBENCH_METHOD(LocalLinearAttention);

}  // namespace
}  // namespace attnbench
