// Normalised kernelized attention with relative positions: random features, and sums over a Toeplitz matrix
// by FFT.
#include <algorithm>
#include <cmath>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/linear_attention/linear_attention.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"
#include "methods/signal_parts.hpp"

namespace attnbench {
namespace {

using namespace signal;  // NOLINT: parts written for methods like this one

constexpr double kNormFloor = 1e-6;
constexpr int64_t kBlockSize = 64;  ///< rows per block of linear attention: about the number of features

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "kernelized_rpe";
  m.title = "Kernelized attention with relative positional encoding (NPRF)";
  m.paper = "Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, NeurIPS 2021";
  m.arxiv = "2106.12566";
  m.family = "linear (relative-position, FFT)";
  m.summary =
      "Random features of unit-norm queries and keys approximate softmax attention; a learned bias of the "
      "distance "
      "multiplies every weight by c(j - i). The sums over keys are then products with a Toeplitz matrix, "
      "done by FFT in "
      "O(N log N).";
  m.formula =
      "q, k <- q / ||q||, k / ||k||                            (normalize; else q, k / D^(1/4))\n"
      "prf:  phi(x) = exp(-||x||^2 / 2) / sqrt(m) (exp(w_1 . x), .., exp(w_m . x))\n"
      "trf:  phi(x) = exp(||x||^2 / 2) / sqrt(m) (sin(w_r . x) .., cos(w_r . x) ..)\n"
      "relu: phi(x) = relu(W x) / sqrt(m) + 1e-3\n"
      "o_i = phi(q_i) . sum_j c(j - i) phi(k_j) v_j^T / phi(q_i) . sum_j c(j - i) phi(k_j),  c(o) = "
      "exp(b(o))\n"
      "fft: each column of sum_j c(j - i) (.)_j = irfft(rfft(circulant c) had rfft(column, padded to Lf))";
  m.cost =
      "Per head, F features, Lf points: 4 N m D (projections), 5 Lf log2 Lf F (E + 1) (transforms), 2.5 Lf "
      "log2 Lf (the "
      "kernel's), about 3 Lf F (E + 1) (products of spectra), N F E + 2 N F (E + 1) (outer products, sums). "
      "direct: 2 N M "
      "(F + E). H (2 N - 1) parameters.";
  ParamSpec features = spec::integer("num_features", 64, 1, "m, random vectors");
  ParamSpec range = spec::integer("max_relative_position", Value(), 0,
                                  "distances are clipped to this range, in each axis for 2d; null: none is");
  m.params = {features,
              spec::choice("feature_map", {"prf", "trf", "relu"}, "phi"),
              spec::boolean("normalize", true, "unit-norm q and k (NPRF); false: plain PRF"),
              spec::boolean("use_rpe", true, "false: c = 1 and no transform, plain linear attention"),
              spec::choice("rpe", {"1d", "2d"}, "Toeplitz matrix, or Toeplitz blocks of an image grid"),
              range,
              spec::boolean("orthogonal", false,
                            "rows of W orthogonal in groups of D, with norms of Gaussian vectors"),
              spec::boolean("share_features", true, "one W for all heads"),
              spec::choice("evaluation", {"fft", "direct", "recurrent"},
                           "direct: N x M matrix; recurrent: causal with c(-r) = lambda^r, or use_rpe false"),
              from_problem(spec::boolean("causal", false, "c(o) = 0 for o > 0"), "causal"),
              spec::integer("feature_chunk", 8, 1, "features in flight at a time on a device"),
              spec::integer("seed", 0, 0, "of W"),
              spec::integer("value_dim", Value(), 1, "E; null: D")};
  m.kinds = {ProblemKind::sequence, ProblemKind::image};
  m.figures = {
      {"complexity", "sequence length n", "softmax attention with RPE, O(n^2)", "O(n log n)", "abstract"},
      {"forward time", "V100, 1 head, width 64, N 1k-40k, m 2..32", "softmax attention",
       "curves only: almost linear, faster for long sequences", "Fig. 1a"},
      {"approximation error", "d 64, 1024 keys, R = 1, 2, 4, 8", "exact softmax",
       "curves only: small and falling with m at R = 1, huge at large R", "Fig. 1b"},
      {"WikiText-103 perplexity", "6 layers, N 512, m 64", "vanilla 33.0, linear 38.4, TRF 33.6", "30.6",
       "Table 2"},
      {"GLUE average", "BERT-base, N 512", "Improved FCA 84.4, SMYRF 83.0", "85.2", "Table 1"},
      {"IWSLT14 BLEU", "6+6 layers, m 16 / 24", "standard 36.0, PRF 34.0", "36.0", "Table 3"},
      {"ImageNet top-1", "DeiT-base, m 32", "DeiT 81.2, PRF 79.5, NPRF without RPE 77.7", "80.9", "Table 4"},
      {"ImageNet32 bits per dim", "6 layers, N 3072, m 32", "PRF 4.04", "3.68", "Table 6"},
      {"third-party overhead", "ViT style, 196 tokens", "the same model without RPE", "forward +15 to 20 %",
       "a re-implementation's documents"}};
  m.notes = {
      "b starts as N(0, 0.02^2) and W is shared by the heads unless share_features is false (both chosen: "
      "not in the "
      "paper).",
      "Everything between q, k, v and o is f32 whatever the storage type: a transform's error is relative to "
      "the largest "
      "c. b and W are f32.",
      "A denominator that is not positive counts as 1, in every evaluation (transforms may round below 0; "
      "trf may be "
      "negative).",
      "rpe 2d clips both axes of the offset; b is [H, 2 Hg - 1, 2 Wg - 1] whatever the clipping. There is no "
      "class token: "
      "it would lie outside of the grid.",
      "recurrent with use_rpe needs b(-r) = r ln lambda, lambda <= 1, exactly enough: prepare() checks it."};
  m.example.batch = 2;
  m.example.heads = 3;
  m.example.length = 50;
  m.example.head_dim = 16;
  return m;
}

const MethodInfo& rpe_info() {
  static const MethodInfo info = describe();
  return info;
}

/// Rows of W: Gaussian, or orthogonal in groups of D with the norms that Gaussian rows would have.
std::vector<double> random_matrix(int64_t heads, int64_t m, int64_t d, bool orthogonal, uint64_t seed) {
  const uint64_t stream = stream_of("kernelized_rpe.W"), norms = stream_of("kernelized_rpe.W.norms");
  std::vector<double> w(static_cast<size_t>(heads * m * d));
  for (size_t i = 0; i < w.size(); ++i) w[i] = random_normal(seed, stream, i);
  if (!orthogonal) return w;
  for (int64_t r = 0; r < heads * m; ++r) {
    const int64_t group = r % m / d * d + r / m * m;  // the first row of this one's group
    double* row = &w[static_cast<size_t>(r * d)];
    // Twice: one pass of Gram-Schmidt leaves what rounding lost.
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t s = group; s < r; ++s) {
        const double* other = &w[static_cast<size_t>(s * d)];
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) dot += row[i] * other[i];
        for (int64_t i = 0; i < d; ++i) row[i] -= dot * other[i];
      }
    double norm = 0;
    for (int64_t i = 0; i < d; ++i) norm += row[i] * row[i];
    for (int64_t i = 0; i < d; ++i) row[i] /= std::sqrt(norm);
  }
  for (int64_t r = 0; r < heads * m; ++r) {
    double norm = 0;
    for (int64_t i = 0; i < d; ++i) {
      const double g = random_normal(seed, norms, static_cast<uint64_t>(r * d + i));
      norm += g * g;
    }
    for (int64_t i = 0; i < d; ++i) w[static_cast<size_t>(r * d + i)] *= std::sqrt(norm);
  }
  return w;
}

class RpeInstance final : public Instance {
 public:
  RpeInstance(Context& ctx, const Problem& problem, const Params& params)
      : form_(heads_form(rpe_info(), problem)),
        dtype_(problem.dtype),
        m_(params.integer("num_features")),
        e_(params.is_null("value_dim") ? problem.head_dim : params.integer("value_dim")),
        chunk_(params.integer("feature_chunk")),
        normalize_(params.boolean("normalize")),
        rpe_(params.boolean("use_rpe")),
        planar_(params.choice("rpe") == "2d"),
        shared_(params.boolean("share_features")),
        causal_(params.boolean("causal")),
        evaluation_(params.choice("evaluation")),
        problem_grid_(problem.grid) {
    using Kind = FeatureMapArgs::Kind;
    const std::string& map = params.choice("feature_map");
    kind_ = map == "prf" ? Kind::exponential : map == "trf" ? Kind::trigonometric : Kind::relu;
    f_ = kind_ == Kind::trigonometric ? 2 * m_ : m_;
    const HeadsForm& f = form_;
    q_grid_[1] = f.queries, k_grid_[1] = f.keys;
    if (planar_) q_grid_[0] = k_grid_[0] = problem.grid[0], q_grid_[1] = k_grid_[1] = problem.grid[1];
    for (int i : {0, 1})
      fft_[i] = q_grid_[i] == 1 && k_grid_[i] == 1 ? 1 : toeplitz_length(q_grid_[i], k_grid_[i]);
    clip_ = params.is_null("max_relative_position") ? std::max(f.queries, f.keys)
                                                    : params.integer("max_relative_position");
    const auto tensor = [&](const char* name, int64_t heads, int64_t tokens, int64_t width,
                            const char* meaning) {
      input_specs_.push_back({name, {f.batch, heads, tokens, width}, dtype_, Init::normal(), false, meaning});
    };
    tensor("q", f.heads, f.queries, f.head_dim, "queries [B, H, N, D]");
    tensor("k", f.heads, f.keys, f.head_dim, "keys [B, H, M, D]");
    tensor("v", f.heads, f.keys, e_, "values [B, H, M, E]");
    if (rpe_)
      weight_specs_.push_back(
          {"b", planar_ ? Shape{f.heads, offsets(0), offsets(1)} : Shape{f.heads, offsets(1)}, DType::f32,
           Init::normal(0, 0.02), false, "bias of the offset key - query, log c"});
    Init rows;
    rows.kind = Init::Kind::values;
    const auto values = std::make_shared<std::vector<double>>(
        random_matrix(shared_ ? 1 : f.heads, m_, f.head_dim, params.boolean("orthogonal"),
                      static_cast<uint64_t>(params.integer("seed"))));
    rows.value = [values](int64_t i) { return (*values)[static_cast<size_t>(i)]; };
    weight_specs_.push_back(
        {"W", {shared_ ? 1 : f.heads, m_, f.head_dim}, DType::f32, rows, false, "random vectors, fixed"});
    o_ = ctx.allocate(dtype_, {f.batch, f.heads, f.queries, e_}, MemoryClass::output);
    phi_q_ = ctx.allocate(DType::f32, {f.batch, f.heads, f.queries, f_});
    phi_k_ = ctx.allocate(DType::f32, {f.batch, f.heads, f.keys, f_});
  }

  TensorMap outputs() const override { return {{"o", o_}}; }

  void prepare(Context& ctx) override {
    if (linear()) {
      const HeadsForm& f = form_;
      std::vector<double> decays(static_cast<size_t>(f.heads), 0.0);
      if (rpe_) decays = decays_of(on_host(ctx, weight("b")));
      log_decay_ = upload(ctx, DType::f32, {f.heads}, decays);
      // [v, 1]: the ones stay, the values come with every run.
      const std::vector<double> ones(static_cast<size_t>(f.batch * f.heads * f.keys * (e_ + 1)), 1.0);
      values_ = upload(ctx, DType::f32, {f.batch, f.heads, f.keys, e_ + 1}, ones);
      return;
    }
    if (evaluation_ == "direct") {
      const std::vector<double> ones(static_cast<size_t>(form_.batch * form_.heads * form_.keys * (e_ + 1)),
                                     1.0);
      values_ = upload(ctx, DType::f32, {form_.batch, form_.heads, form_.keys, e_ + 1}, ones);
      if (!rpe_ && causal_) {
        std::vector<double> seen;
        for (int64_t i = 0; i < form_.queries; ++i)
          for (int64_t j = 0; j < form_.keys; ++j) seen.push_back(j <= i ? 1.0 : 0.0);
        seen_ = upload(ctx, DType::f32, {form_.queries * form_.keys}, seen);
      }
    }
    if (rpe_) index_ = upload_index(ctx, evaluation_ == "fft" ? circulant_index() : matrix_index());
  }

  void run(Context& ctx) override {
    ran_ = &ctx;
    const HeadsForm& f = form_;
    Tensor v;
    {
      const auto stage = ctx.stage("features");
      features(ctx, input("q"), phi_q_);
      features(ctx, input("k"), phi_k_);
      v = widened(ctx, input("v"));
    }
    const Tensor o = wide_like(ctx, o_);
    if (linear()) {
      const auto stage = ctx.stage("attend");
      const Tensor sums = ctx.allocate(DType::f32, {f.batch, f.heads, f.queries, e_ + 1});
      transpose_copy(ctx, {v, values_.slice(3, 0, e_)});
      LinearAttentionArgs a;
      a.form = evaluation_ == "recurrent" ? LinearAttentionArgs::Form::recurrent
                                          : LinearAttentionArgs::Form::chunk;
      a.q = phi_q_, a.k = phi_k_, a.v = values_, a.o = sums;
      a.log_decay = log_decay_;
      a.block_size = kBlockSize;
      a.causal = causal_;
      linear_attention(ctx, a);
      divide_by_last(ctx, {sums, o});
    } else if (evaluation_ == "fft") {
      toeplitz(ctx, v, o);
    } else {
      direct(ctx, v, o);
    }
    if (o.raw() != o_.raw()) {
      const auto stage = ctx.stage("narrow");
      narrow(ctx, o, o_);
    }
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t heads = f.batch * f.heads, nq = heads * f.queries, nk = heads * f.keys, d = f.head_dim;
    const int64_t w =
        (shared_ ? 1 : f.batch * f.heads) * m_ * d;  // W is an operand of every batch element's heads
    ClosedForm c;
    Cost& t = c.cost;
    for (const int64_t rows : {nq, nk}) {
      if (normalize_) {
        t += moved(rows * d * static_cast<int64_t>(size_of(dtype_)), 4 * rows * d);
        t.elementwise += 3 * rows * d;
        t.special += 2 * rows;
      } else {
        t += cast_cost(dtype_, rows * d, true) + pointwise_cost(rows * d, 0, false);
      }
      t += shared_ ? product_cost(1, rows, m_, d, w) : product_cost(heads, rows / heads, m_, d, w);
      t += feature_map_cost(kind_, rows, d, m_);
      t += moved(4 * (rows * m_ + (kind_ == FeatureMapArgs::Kind::relu ? 0 : rows * d)), 4 * rows * f_);
    }
    t += cast_cost(dtype_, nk * e_, true) + cast_cost(dtype_, nq * e_, false);
    c.parameters = rpe_ ? f.heads * offsets(0) * offsets(1) : 0;
    if (linear()) {
      LinearAttentionArgs a;
      a.form = evaluation_ == "recurrent" ? LinearAttentionArgs::Form::recurrent
                                          : LinearAttentionArgs::Form::chunk;
      a.q = shape_only({f.batch, f.heads, f.queries, f_}), a.k = shape_only({f.batch, f.heads, f.keys, f_});
      a.v = shape_only({f.batch, f.heads, f.keys, e_ + 1}),
      a.o = shape_only({f.batch, f.heads, f.queries, e_ + 1});
      a.log_decay = shape_only({f.heads});
      a.block_size = kBlockSize;
      a.causal = causal_;
      t += linear_attention_cost(a) + moved(4 * nk * e_, 4 * nk * e_) + divided(nq);
      return c;
    }
    const int64_t entries = f.heads * offsets(0) * offsets(1);
    if (evaluation_ == "fft") {
      const int64_t points = fft_[0] * fft_[1], bins = fft_[0] * (fft_[1] / 2 + 1);
      t += pointwise_cost(entries, 0, true) + gather_cost(f.heads * points, points);
      t += moved(4 * f.heads * points, 8 * f.heads * bins);
      t.matmul += fft2_flops(Fft2Args::Kind::real_to_half, f.heads, fft_[0], fft_[1]);
      const int64_t lines = f_ * (e_ + 1);
      Cost a;
      a.matmul = 2 * fft2_flops(Fft2Args::Kind::real_to_half, lines, fft_[0], fft_[1]);
      a.elementwise = 6 * bins * lines + f.keys * f_ * e_ + 2 * f.queries * lines;
      a.special = f.queries * e_;
      t += a * heads;
      t += moved(4 * (nq * f_ + nk * f_ + nk * e_ + 2 * f.heads * bins), 4 * nq * e_);
      return c;
    }
    const int64_t pairs = f.queries * f.keys;
    t += product_cost(heads, f.queries, f.keys, f_, nk * f_);
    if (rpe_) {
      t += pointwise_cost(entries, 0, true) + gather_cost(f.heads * pairs, pairs);
      t += pointwise_cost(f.heads * pairs, f.heads * pairs, false) * f.batch;
    } else if (causal_) {
      t += pointwise_cost(heads * pairs, pairs, false);
    }
    t += moved(4 * nk * e_, 4 * nk * e_) + product_cost(heads, f.queries, e_ + 1, f.keys, nk * (e_ + 1)) +
         divided(nq);
    return c;
  }

  /// A circulant product errs in every token by its rounding of the norms of kernel and line, |c| |phi_k v|,
  /// also where the token's own sum is small: few keys before it, or small weights. So the quotient errs by
  /// the ratio of the two, here as root mean square over (at most 1024 of) the rows of each head.
  double condition(const std::string&) const override {
    if (!ran_ || evaluation_ != "fft" || !rpe_) return 1.0;
    const HeadsForm& f = form_;
    const Tensor phi_q = on_host(*ran_, phi_q_), phi_k = on_host(*ran_, phi_k_),
                 bias = on_host(*ran_, weight("b"));
    const Tensor v = on_host(*ran_, input("v")), o = on_host(*ran_, o_);
    const auto rms = [](const Tensor& t) {
      std::vector<double> x(static_cast<size_t>(t.numel()));
      convert(t.raw(), t.dtype(), x.data(), DType::f64, t.numel());
      double sum = 0;
      for (double e : x) sum += e * e;
      return std::sqrt(sum / static_cast<double>(x.size()));
    };
    const int64_t entries = offsets(0) * offsets(1), step = (f.queries + 1023) / 1024;
    const auto value = [](const Tensor& t, int64_t i) { return static_cast<double>(t.data<float>()[i]); };
    double sum = 0, count = 0;
    for (int64_t h = 0; h < f.batch * f.heads; ++h) {
      const float* b = bias.data<float>() + h % f.heads * entries;
      double kernel = 0;
      for (const int64_t at : circulant_index())
        if (at >= 0) kernel += std::exp(2 * static_cast<double>(b[at]));
      std::vector<double> norm(static_cast<size_t>(f_));
      for (int64_t j = 0; j < f.keys; ++j)
        for (int64_t a = 0; a < f_; ++a)
          norm[static_cast<size_t>(a)] += std::pow(value(phi_k, (h * f.keys + j) * f_ + a), 2);
      for (int64_t i = 0; i < f.queries; i += step) {
        double total = 0, all = 0;
        for (int64_t j = 0; j < f.keys; ++j) {
          const int64_t at = entry(i, j);
          if (at < 0) continue;
          double dot = 0;
          for (int64_t a = 0; a < f_; ++a)
            dot += value(phi_q, (h * f.queries + i) * f_ + a) * value(phi_k, (h * f.keys + j) * f_ + a);
          total += dot * std::exp(static_cast<double>(b[at]));
        }
        for (int64_t a = 0; a < f_; ++a)
          all += std::abs(value(phi_q, (h * f.queries + i) * f_ + a)) *
                 std::sqrt(kernel * norm[static_cast<size_t>(a)]);
        if (total > 0) sum += std::pow(all / total, 2);
        count += 1;
      }
    }
    const double size = rms(o);
    return size > 0 ? std::max(1.0, std::sqrt(sum / count) * rms(v) / size) : 1.0;
  }

  std::optional<PairSet> pairs() const override {
    ElementRule rule;
    rule.causal = causal_;
    return rule_pairs(rule, form_.batch, form_.heads, form_.queries, form_.keys, problem_grid_);
  }
  int64_t keys(int64_t) const override { return form_.keys; }

  /// The weights of the last run, from its features; positive and summing to 1 for prf and relu.
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    const Tensor q = on_host(ctx, phi_q_.select(0, b).select(0, h)),
                 k = on_host(ctx, phi_k_.select(0, b).select(0, h));
    const Tensor bias = rpe_ ? on_host(ctx, weight("b").select(0, h)) : Tensor();
    out.clear();
    std::vector<double> row(static_cast<size_t>(form_.keys));
    for (int64_t i = q_begin; i < q_end; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < form_.keys; ++j) {
        const int64_t at = entry(i, j);
        double a = 0;
        if (at >= 0) {
          for (int64_t r = 0; r < f_; ++r)
            a += static_cast<double>(q.data<float>()[i * q.stride(0) + r]) *
                 static_cast<double>(k.data<float>()[j * k.stride(0) + r]);
          if (rpe_) a *= std::exp(static_cast<double>(bias.data<float>()[at]));
        }
        row[static_cast<size_t>(j)] = a;
        sum += a;
      }
      for (double a : row) out.push_back(static_cast<float>(sum > 0 ? a / sum : 0.0));
    }
    return true;
  }

 private:
  /// Without weights of the offset the sums are prefix sums, or sums over all keys.
  bool linear() const { return evaluation_ == "recurrent" || (!rpe_ && evaluation_ == "fft"); }
  int64_t offsets(int axis) const { return q_grid_[axis] + k_grid_[axis] - 1; }
  static Tensor shape_only(const Shape& shape) {
    return Tensor::borrow(DeviceKind::cpu, DType::f32, shape, nullptr);
  }
  Cost divided(int64_t rows) const {
    Cost c = moved(4 * rows * (e_ + 1), 4 * rows * e_);
    c.special = rows * e_;
    return c;
  }

  /// The entry of b for an offset along each axis, or -1 where c is 0.
  int64_t entry_at(int64_t dy, int64_t dx) const {
    if (causal_ && !planar_ && dx > 0) return -1;
    dy = std::clamp(dy, -clip_, clip_), dx = std::clamp(dx, -clip_, clip_);
    dy = std::clamp(dy, 1 - q_grid_[0], k_grid_[0] - 1), dx = std::clamp(dx, 1 - q_grid_[1], k_grid_[1] - 1);
    return (dy + q_grid_[0] - 1) * offsets(1) + dx + q_grid_[1] - 1;
  }
  int64_t entry(int64_t i, int64_t j) const {
    if (causal_ && !rpe_) return j <= i ? 0 : -1;
    return entry_at(j / k_grid_[1] - i / q_grid_[1], j % k_grid_[1] - i % q_grid_[1]);
  }
  /// For every place of the circulant (c(-r) at r in each axis) the entry of b, -1 for the zeros between.
  std::vector<int64_t> circulant_index() const {
    std::vector<int64_t> index(static_cast<size_t>(fft_[0] * fft_[1]), -1);
    for (int64_t dy = 1 - q_grid_[0]; dy < k_grid_[0]; ++dy)
      for (int64_t dx = 1 - q_grid_[1]; dx < k_grid_[1]; ++dx)
        index[static_cast<size_t>((fft_[0] - dy) % fft_[0] * fft_[1] + (fft_[1] - dx) % fft_[1])] =
            entry_at(dy, dx);
    return index;
  }
  std::vector<int64_t> matrix_index() const {
    std::vector<int64_t> index;
    for (int64_t i = 0; i < form_.queries; ++i)
      for (int64_t j = 0; j < form_.keys; ++j) index.push_back(entry(i, j));
    return index;
  }

  /// ln lambda of every head, where b(-r) = r ln lambda.
  std::vector<double> decays_of(const Tensor& bias) const {
    std::vector<double> decays;
    const int64_t n = form_.queries, stride = offsets(1);
    for (int64_t h = 0; h < form_.heads; ++h) {
      const float* b = bias.data<float>() + h * stride;
      const auto at = [&](int64_t r) { return static_cast<double>(b[n - 1 - std::min(r, clip_)]); };
      const double rate = n > 1 ? at(1) : 0.0;
      for (int64_t r = 0; r < n; ++r) {
        // Bias values are f32: their own rounding, and that of the rate r times.
        const double slack = 0x1p-22 * (std::abs(at(r)) + static_cast<double>(r) * std::abs(rate) + 1e-30);
        if (!(rate <= 0) || !(std::abs(at(r) - static_cast<double>(r) * rate) <= slack))
          throw Unsupported(
              "kernelized_rpe.evaluation: recurrent needs c(-r) = lambda^r with lambda <= 1, and b of head " +
              std::to_string(h) + " at distance " + std::to_string(r) + " is " + std::to_string(at(r)) +
              " where " + std::to_string(static_cast<double>(r) * rate) + " would continue it");
      }
      decays.push_back(rate);
    }
    return decays;
  }

  void features(Context& ctx, const Tensor& x, const Tensor& phi) {
    const HeadsForm& f = form_;
    const Tensor rows = ctx.allocate(DType::f32, x.shape());
    if (normalize_) {
      unit_rows(ctx, {x, {}, rows, static_cast<float>(kNormFloor)});
    } else {
      call(ctx, PointwiseArgs::Op::affine, widened(ctx, x), {}, rows,
           static_cast<float>(std::pow(static_cast<double>(f.head_dim), -0.25)));
    }
    const int64_t n = x.dim(2);
    const bool twice = kind_ == FeatureMapArgs::Kind::trigonometric;
    const Tensor p = twice ? ctx.allocate(DType::f32, {f.batch, f.heads, n, m_}) : phi;
    const Tensor& w = weight("W");
    if (shared_)
      product(ctx, rows.reshape({f.batch * f.heads * n, f.head_dim}), w.select(0, 0),
              p.reshape({f.batch * f.heads * n, m_}), true);
    else
      product(ctx, rows, w.strided({f.batch, f.heads, m_, f.head_dim}, {0, m_ * f.head_dim, f.head_dim, 1}),
              p, true);
    FeatureMapArgs a;
    a.kind = kind_;
    a.x = rows, a.p = p, a.y = phi;
    feature_map(ctx, a);
  }

  /// c(o) of every offset, gathered into [H, places].
  Tensor kernel(Context& ctx, int64_t places) {
    const HeadsForm& f = form_;
    const int64_t entries = offsets(0) * offsets(1);
    const Tensor c = ctx.allocate(DType::f32, {f.heads, entries}),
                 y = ctx.allocate(DType::f32, {f.heads, places});
    call(ctx, PointwiseArgs::Op::exp, weight("b").reshape({f.heads, entries}), {}, c);
    gather_rows(ctx, {c.reshape({f.heads, entries, 1}), index_, y.reshape({f.heads, places, 1})});
    return y;
  }

  void toeplitz(Context& ctx, const Tensor& v, const Tensor& o) {
    const int64_t points = fft_[0] * fft_[1];
    const Tensor spectrum = ctx.allocate(DType::f32, {form_.heads, fft_[0], fft_[1] / 2 + 1, 2});
    {
      const auto stage = ctx.stage("kernel");
      const Tensor c = kernel(ctx, points).reshape({form_.heads, fft_[0], fft_[1]});
      fft2(ctx,
           {Fft2Args::Kind::real_to_half, c, spectrum, fft_[0], fft_[1], 1.0f / static_cast<float>(points)});
    }
    const auto stage = ctx.stage("attend");
    ToeplitzAttentionArgs a;
    a.q = phi_q_, a.k = phi_k_, a.v = v, a.spectrum = spectrum, a.o = o;
    for (int i : {0, 1}) a.q_grid[i] = q_grid_[i], a.k_grid[i] = k_grid_[i], a.fft[i] = fft_[i];
    a.chunk = chunk_;
    toeplitz_attention(ctx, a);
  }

  void direct(Context& ctx, const Tensor& v, const Tensor& o) {
    const HeadsForm& f = form_;
    const Tensor scores = ctx.allocate(DType::f32, {f.batch, f.heads, f.queries, f.keys});
    {
      const auto stage = ctx.stage("scores");
      product(ctx, phi_q_, phi_k_, scores, true);
    }
    if (rpe_) {
      const auto stage = ctx.stage("kernel");
      const Tensor c = kernel(ctx, f.queries * f.keys);
      for (int64_t b = 0; b < f.batch; ++b) {
        const Tensor rows = scores.select(0, b).reshape({f.heads, f.queries * f.keys});
        call(ctx, PointwiseArgs::Op::mul, rows, c, rows);
      }
    } else if (causal_) {
      const auto stage = ctx.stage("kernel");
      const Tensor rows = scores.reshape({f.batch * f.heads, f.queries * f.keys});
      call(ctx, PointwiseArgs::Op::mul, rows, seen_, rows);
    }
    const auto stage = ctx.stage("values");
    const Tensor sums = ctx.allocate(DType::f32, {f.batch, f.heads, f.queries, e_ + 1});
    transpose_copy(ctx, {v, values_.slice(3, 0, e_)});
    product(ctx, scores, values_, sums, false);
    divide_by_last(ctx, {sums, o});
  }

  Context* ran_ = nullptr;
  HeadsForm form_;
  DType dtype_;
  int64_t m_, e_, f_ = 0, chunk_, clip_ = 0;
  bool normalize_, rpe_, planar_, shared_, causal_;
  std::string evaluation_;
  std::vector<int64_t> problem_grid_;
  FeatureMapArgs::Kind kind_ = FeatureMapArgs::Kind::exponential;
  int64_t q_grid_[2] = {1, 0}, k_grid_[2] = {1, 0}, fft_[2] = {1, 1};
  Tensor o_, phi_q_, phi_k_, log_decay_, values_, index_, seen_;
};

class KernelizedRpe final : public Method {
 public:
  const MethodInfo& info() const override { return rpe_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    const HeadsForm f = heads_form(info(), problem);
    if (f.kv_heads != f.heads)
      throw Unsupported("kernelized_rpe has one key head for each query head, and problem.kv_heads is " +
                        std::to_string(problem.kv_heads));
    const bool causal = p.boolean("causal"), rpe = p.boolean("use_rpe");
    if (p.choice("rpe") == "2d") {
      if (problem.kind != ProblemKind::image)
        throw UsageError("kernelized_rpe.rpe: 2d needs an image problem with its grid");
      if (f.keys != f.queries)
        throw Unsupported(
            "kernelized_rpe.rpe: 2d relates a grid to itself, so problem.kv_length must not be " +
            std::to_string(f.keys));
      if (causal) throw Unsupported("kernelized_rpe.causal: 2d has no order of tokens to be causal in");
    }
    if (p.choice("evaluation") == "recurrent" && rpe && !causal)
      throw Unsupported(
          "kernelized_rpe.evaluation: recurrent with use_rpe needs causal, or later keys would count");
    if (p.choice("evaluation") == "recurrent" && rpe && p.choice("rpe") == "2d")
      throw Unsupported("kernelized_rpe.evaluation: recurrent has one axis, rpe 2d two");
    const bool linear = p.choice("evaluation") == "recurrent" || (!rpe && p.choice("evaluation") == "fft");
    if (linear && f.keys != f.queries)
      throw Unsupported(
          "kernelized_rpe: linear attention relates a sequence to itself, so problem.kv_length must be " +
          std::to_string(f.queries) + ", not " + std::to_string(f.keys) + "; evaluation direct takes both");
    return std::make_unique<RpeInstance>(ctx, problem, p);
  }
};
ATTNBENCH_METHOD(KernelizedRpe);

}  // namespace
}  // namespace attnbench
