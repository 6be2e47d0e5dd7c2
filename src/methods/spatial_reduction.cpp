#include "methods/spatial_reduction.hpp"

#include "kernels/conv/conv.hpp"
#include "kernels/core/error.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"

namespace attnbench::vision {

namespace {

// PyTorch's LayerNorm default, which PVT and Twins keep for this norm.
constexpr float kNormEps = 1e-5f;

class ReductionLayer final : public LayerInstance {
 public:
  ReductionLayer(Context& ctx, const LayerShape& shape, const ReductionOptions& options)
      : LayerInstance(ctx, shape), options_(options) {
    const int64_t c = s_.channels, r = options_.pool > 0 ? 1 : options_.ratio;
    reduced_h_ = options_.pool > 0 ? options_.pool : s_.grid_h / options_.ratio;
    reduced_w_ = options_.pool > 0 ? options_.pool : s_.grid_w / options_.ratio;
    add_linear(weight_specs_, "q", c, c, options_.qkv_bias, s_.dtype, "queries, rows (head, d)");
    add_linear(weight_specs_, "kv", 2 * c, c, options_.qkv_bias, s_.dtype,
               "keys and values, rows (k|v, head, d)");
    add_linear(weight_specs_, "proj", c, c, true, s_.dtype, "output projection");
    if (reduces()) {
      weight_specs_.push_back(
          {"sr.weight", {c, c, r, r}, s_.dtype, Init::trunc_normal(0.02), false, "reducing convolution"});
      weight_specs_.push_back({"sr.bias", {c}, s_.dtype, Init::constant(0.0), false, "bias of sr"});
      weight_specs_.push_back(
          {"norm.weight", {c}, s_.dtype, Init::constant(1.0), false, "gain of the norm after sr"});
      weight_specs_.push_back(
          {"norm.bias", {c}, s_.dtype, Init::constant(0.0), false, "offset of the norm after sr"});
    }
  }

  ClosedForm cost() const override {
    const int64_t c = s_.channels, n = s_.tokens(), m = reduced(), reduced_rows = s_.batch * m;
    const DType t = s_.dtype;
    ClosedForm f;
    f.cost = linear_cost(s_.rows(), c, c, options_.qkv_bias, t) +
             linear_cost(reduced_rows, c, 2 * c, options_.qkv_bias, t) +
             attend_cost(s_.batch, s_.heads, n, m, s_.head_dim, t) + linear_cost(s_.rows(), c, c, true, t);
    f.published_macs = 2 * n * c * c + 2 * m * c * c + 2 * n * m * c;
    f.parameters = 4 * c * c + c + (options_.qkv_bias ? 3 * c : 0);
    if (reduces()) {
      const int64_t patch = options_.pool > 0 ? 1 : options_.ratio * options_.ratio;
      f.cost += linear_cost(reduced_rows, patch * c, c, true, t) + layer_norm_cost(reduced_rows, c, t);
      f.published_macs += m * patch * c * c;
      f.parameters += patch * c * c + 3 * c;
    }
    if (options_.pool > 0) {
      f.cost += pool_cost(s_.batch * pooled_reads() * c, s_.rows() * c, reduced_rows * c, t);
      Cost gelu;
      gelu.special = reduced_rows * c;
      gelu.bytes_read = gelu.bytes_written = reduced_rows * c * static_cast<int64_t>(size_of(t));
      f.cost += gelu;
      f.published_macs_note = "2 N C^2 + 3 M C^2 + 2 N M C; pooling, norm and GELU are not counted";
    } else if (reduces()) {
      // The table's FLOP counter takes the norm as 5 operations an element.
      f.published_macs += 5 * m * c;
      f.published_macs_note =
          "2 N C^2 + M r^2 C^2 + 2 M C^2 + 2 N M C, and 5 M C for the norm as the table counts";
    } else {
      f.published_macs_note = "4 N C^2 + 2 N^2 C";
    }
    return f;
  }

  int64_t keys(int64_t) const override { return reduced(); }

 protected:
  void forward(Context& ctx, Trace* trace) override {
    const int64_t c = s_.channels, n = s_.tokens(), m = reduced(), h = s_.heads, d = s_.head_dim;
    const Tensor x = tokens();
    Tensor source = x;
    if (reduces()) {
      auto stage = ctx.stage("reduce");
      source = reduce_grid(ctx);
    }
    const Tensor q = workspace(ctx, s_.rows(), c), kv = workspace(ctx, s_.batch * m, 2 * c);
    {
      auto stage = ctx.stage("project");
      project(ctx, "kv", source, kv);
      project(ctx, "q", x, q);
    }
    source = {};
    const Tensor o = workspace(ctx, s_.rows(), c);
    {
      auto stage = ctx.stage("attend");
      AttentionArgs a;
      a.q = heads_view(q, 0, s_.batch, n, 0, h, d);
      a.k = heads_view(kv, 0, s_.batch, m, 0, h, d);
      a.v = heads_view(kv, 0, s_.batch, m, 1, h, d);
      a.o = heads_view(o, 0, s_.batch, n, 0, h, d);
      a.scale = s_.scale;
      attend(ctx, a, trace);
    }
    auto stage = ctx.stage("out");
    project(ctx, "proj", o, out_rows());
  }

  Place place(int64_t b, int64_t h, int64_t i) const override { return {0, b, h, i}; }
  int64_t visible_keys(int64_t, int64_t) const override { return reduced(); }

  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    // Adaptive cells cover every token; convolution patches leave out the remainder of both axes. A token
    // outside them still depends on itself through its query.
    const int64_t kept_h = options_.pool > 0 ? s_.grid_h : reduced_h_ * options_.ratio;
    const int64_t kept_w = options_.pool > 0 ? s_.grid_w : reduced_w_ * options_.ratio;
    Intervals base;
    for (int64_t y = 0; y < kept_h; ++y) {
      const Interval row{y * s_.grid_w, y * s_.grid_w + kept_w};
      if (!base.empty() && base.back().end == row.begin)
        base.back().end = row.end;
      else
        base.push_back(row);
    }
    return [base, kept_h, kept_w, w = s_.grid_w](int64_t, int64_t, int64_t i, Intervals& out) {
      out = base;
      if (i / w < kept_h && i % w < kept_w) return;
      auto after = out.begin();
      while (after != out.end() && after->begin <= i) ++after;
      const bool joins_left = after != out.begin() && std::prev(after)->end == i;
      const bool joins_right = after != out.end() && after->begin == i + 1;
      if (joins_left && joins_right) {
        std::prev(after)->end = after->end;
        out.erase(after);
      } else if (joins_left) {
        ++std::prev(after)->end;
      } else if (joins_right) {
        --after->begin;
      } else {
        out.insert(after, {i, i + 1});
      }
    };
  }

 private:
  bool reduces() const { return options_.pool > 0 || options_.ratio > 1; }
  int64_t reduced() const { return reduced_h_ * reduced_w_; }

  /// Tokens read by the adaptive pooling of one image: cells overlap where the grid is no multiple of the
  /// pool.
  int64_t pooled_reads() const {
    const auto covered = [p = options_.pool](int64_t extent) {
      int64_t sum = 0;
      for (int64_t i = 0; i < p; ++i) sum += ((i + 1) * extent + p - 1) / p - i * extent / p;
      return sum;
    };
    return covered(s_.grid_h) * covered(s_.grid_w);
  }

  Tensor reduce_grid(Context& ctx) const {
    const int64_t c = s_.channels, m = reduced(), rows = s_.batch * m;
    const Tensor grid = input("x").reshape({s_.batch, s_.grid_h, s_.grid_w, c});
    const Tensor y = workspace(ctx, rows, c);
    if (options_.pool > 0) {
      const Tensor pooled = workspace(ctx, rows, c);
      AvgPool2dArgs pool;
      pool.x = grid;
      pool.y = pooled.reshape({s_.batch, reduced_h_, reduced_w_, c});
      pool.adaptive = true;
      avg_pool2d(ctx, pool);
      GemmArgs conv;  // a 1x1 convolution of channel-last rows is a linear layer
      conv.a = pooled;
      conv.b = weight("sr.weight").reshape({c, c});
      conv.b_transposed = true;
      conv.c = y;
      conv.bias = weight("sr.bias");
      gemm(ctx, conv);
    } else {
      PatchConv2dArgs conv;
      conv.x = grid;
      conv.weight = weight("sr.weight");
      conv.bias = weight("sr.bias");
      conv.y = y.reshape({s_.batch, reduced_h_, reduced_w_, c});
      conv.kernel = options_.ratio;
      patch_conv2d(ctx, conv);
    }
    NormArgs norm;
    norm.x = norm.y = y;
    norm.gain = weight("norm.weight");
    norm.offset = weight("norm.bias");
    norm.eps = kNormEps;
    normalize(ctx, norm);
    if (options_.pool > 0) {
      PointwiseArgs gelu;
      gelu.op = PointwiseArgs::Op::gelu_erf;
      gelu.a = gelu.y = y;
      pointwise(ctx, gelu);
    }
    return y;
  }

  ReductionOptions options_;
  int64_t reduced_h_ = 0, reduced_w_ = 0;
};

}  // namespace

std::unique_ptr<Instance> make_reduction_layer(Context& ctx, const MethodInfo& info, const LayerShape& shape,
                                               const ReductionOptions& options) {
  if (options.pool == 0 && (shape.grid_h < options.ratio || shape.grid_w < options.ratio))
    throw Unsupported("method '" + info.id + "': an sr_ratio of " + std::to_string(options.ratio) +
                      " leaves no keys of a " + std::to_string(shape.grid_h) + " x " +
                      std::to_string(shape.grid_w) + " grid");
  return std::make_unique<ReductionLayer>(ctx, shape, options);
}

}  // namespace attnbench::vision
