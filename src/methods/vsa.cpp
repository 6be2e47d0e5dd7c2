// Varied-size window attention (VSA): every window and head predicts where its keys are sampled.
#include <algorithm>
#include <cmath>

#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/resample/resample.hpp"
#include "methods/attention_rows.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

struct Varied {
  int64_t out = 0;  ///< Co
  int64_t win = 7;
  bool qkv_bias = true, table = true, cpe = true, random = true;
  double slope = 0.01;
  int64_t top = 0, left = 0;            ///< padding before the grid
  double divisor_x = 1, divisor_y = 1;  ///< window counts that offsets are divided by
};

class VsaInstance final : public LayerInstance {
 public:
  VsaInstance(Context& ctx, const LayerShape& shape, const Varied& v)
      : LayerInstance(ctx, shape), v_(v), grid_{shape.grid_h, shape.grid_w, v.win, 0}, ctx_(&ctx) {
    const int64_t c = s_.channels, co = v_.out, h = s_.heads, w = v_.win;
    input_specs_ = {
        {"x", {s_.batch, c, s_.grid_h, s_.grid_w}, s_.dtype, Init::normal(), false, "map, channels first"}};
    out_ = ctx.allocate(s_.dtype, {s_.batch, co, s_.grid_h, s_.grid_w}, MemoryClass::output);
    add_linear(weight_specs_, "qkv", 3 * co, c, v_.qkv_bias, s_.dtype, "projections, rows (q|k|v, head, d)");
    add_linear(weight_specs_, "proj", co, co, true, s_.dtype, "output projection");
    const double bound = v_.random ? 1.0 / std::sqrt(static_cast<double>(c)) : 0.0;
    for (const char* name : {"offset", "scale"}) {
      const std::string word = name;
      const Init init = v_.random ? Init::uniform(-bound, bound) : Init::constant(0.0);
      weight_specs_.push_back({word + ".weight",
                               {2 * h, c},
                               s_.dtype,
                               init,
                               false,
                               word + " regressor, rows 2 h (x) and 2 h + 1 (y) of head h"});
      weight_specs_.push_back({word + ".bias", {2 * h}, s_.dtype, init, false, "bias of " + word});
    }
    if (v_.table)
      weight_specs_.push_back({"rel_pos_bias_table",
                               {(2 * w - 1) * (2 * w - 1), h},
                               s_.dtype,
                               Init::trunc_normal(0.02),
                               false,
                               "score bias by offset, row (yq-yk+w-1)(2w-1) + (xq-xk+w-1)"});
    if (v_.cpe) {
      const double fan = 1.0 / static_cast<double>(side());
      weight_specs_.push_back({"cpe.weight",
                               {c, 1, side(), side()},
                               s_.dtype,
                               Init::uniform(-fan, fan),
                               false,
                               "depthwise position encoding"});
      weight_specs_.push_back({"cpe.bias", {c}, s_.dtype, Init::uniform(-fan, fan), false, "its bias"});
    }
  }

  void prepare(Context& ctx) override {
    const int64_t w = v_.win, nw = grid_.windows_w(), area = w * w;
    // Queries in window order; padding becomes zeros, after the projection.
    std::vector<int32_t> to_token(static_cast<size_t>(slots()), -1),
        to_slot(static_cast<size_t>(s_.tokens()));
    for (int64_t t = 0; t < s_.tokens(); ++t) {
      to_slot[static_cast<size_t>(t)] = static_cast<int32_t>(slot_of(t));
      to_token[static_cast<size_t>(slot_of(t))] = static_cast<int32_t>(t);
    }
    slot_index_ = upload(ctx, {slots()}, to_token);
    token_index_ = upload(ctx, {s_.tokens()}, to_slot);
    // Default points in positions of the given grid, and their distance from the window's centre.
    std::vector<float> centred, base;
    const double middle = static_cast<double>(w - 1) / 2;
    for (int64_t i = 0; i < area; ++i)
      for (const int64_t at : {i % w, i / w})
        centred.push_back(static_cast<float>(static_cast<double>(at) - middle));
    for (int64_t j = 0; j < grid_.windows(); ++j)
      for (int64_t i = 0; i < area; ++i) {
        base.push_back(static_cast<float>(j % nw * w + i % w - v_.left));
        base.push_back(static_cast<float>(j / nw * w + i / w - v_.top));
      }
    centred_ = upload(ctx, {1, 1, 1, area, 2}, centred);
    base_ = upload(ctx, {1, 1, grid_.windows(), area, 2}, base);
    const std::vector<float> factor{
        static_cast<float>(static_cast<double>(grid_.padded_w() - 1) / (2 * v_.divisor_x)),
        static_cast<float>(static_cast<double>(grid_.padded_h() - 1) / (2 * v_.divisor_y))};
    factor_ = upload(ctx, {2}, factor);
    if (!v_.table) return;
    const Tensor& t = weight("rel_pos_bias_table");
    std::vector<char> bytes(static_cast<size_t>(t.nbytes()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), bytes.data()));
    ctx.backend().synchronize();
    std::vector<float> table(static_cast<size_t>(t.numel()));
    convert(bytes.data(), t.dtype(), table.data(), DType::f32, t.numel());
    std::vector<float> bias;
    for (int64_t h = 0; h < s_.heads; ++h)
      for (int64_t i = 0; i < area; ++i)
        for (int64_t j = 0; j < area; ++j) {
          const int64_t dy = i / w - j / w + w - 1, dx = i % w - j % w + w - 1;
          bias.push_back(table[static_cast<size_t>((dy * (2 * w - 1) + dx) * s_.heads + h)]);
        }
    bias_ = upload(ctx, {1, s_.heads, area, area}, bias);
  }

  ClosedForm cost() const override {
    const int64_t b = s_.batch, n = s_.tokens(), c = s_.channels, co = v_.out, h = s_.heads, d = co / h;
    const int64_t windows = grid_.windows(), area = grid_.area(), np = slots(), kc = side();
    const DType t = s_.dtype, wide = DType::f32;
    const auto bytes = static_cast<int64_t>(size_of(t));
    const auto moved = [](int64_t elements, int64_t size) {
      Cost m;
      m.bytes_read = m.bytes_written = elements * size;
      return m;
    };
    const auto cast = [&](int64_t elements, bool widen) {
      Cost m;
      if (t == wide) return m;
      m.bytes_read = elements * (widen ? bytes : 4), m.bytes_written = elements * (widen ? 4 : bytes);
      return m;
    };
    const auto gathered = [&](int64_t rows) {
      Cost m;
      m.bytes_read = b * rows * co * bytes + 4 * rows;
      m.bytes_written = b * rows * co * bytes;
      return m;
    };
    ClosedForm f;
    f.cost += moved(b * n * c, bytes) + cast(b * n * c, true);
    if (v_.cpe) {
      Cost conv;
      conv.matmul = 2 * kc * kc * b * n * c;
      conv.elementwise = 2 * b * n * c;  // bias, and the residual
      conv.bytes_read = 4 * (b * n * c + (kc * kc + 1) * c) + 4 * 2 * b * n * c;
      conv.bytes_written = 4 * 2 * b * n * c;
      f.cost += conv + cast((kc * kc + 1) * c, true) + cast(b * n * c, false);
    }
    f.cost += pool_cost(b * n * c, b * n * c, b * windows * c, wide);
    Cost activation;
    activation.special = b * windows * c;
    activation.bytes_read = activation.bytes_written = 4 * b * windows * c;
    f.cost +=
        activation + linear_cost(b * windows, c, 2 * h, true, wide) * 2 + cast(2 * (2 * h * c + 2 * h), true);
    // Points: offsets scaled, (1 + scale) times the centred coordinates, two sums.
    const int64_t points = b * h * np;
    Cost grid;
    grid.elementwise = 2 * b * windows * h + 3 * 2 * points;
    grid.bytes_read = 4 * (2 * b * windows * h + 2) + 4 * (2 * b * windows * h + 2 * area) +
                      4 * (2 * points + 2 * b * windows * h) + 4 * (2 * points + 2 * np);
    grid.bytes_written = 4 * 2 * b * windows * h + 3 * 4 * 2 * points;
    f.cost += grid;
    f.cost += linear_cost(b * n, c, 3 * co, v_.qkv_bias, t) + gathered(np);
    Cost sample;
    sample.elementwise = points * (8 * d + 8);
    sample.bytes_read = b * n * co * bytes + 4 * 2 * points;
    sample.bytes_written = b * np * co * bytes;
    f.cost += sample * 2;
    f.cost += attend_cost(b * windows, h, area, area, d, t, v_.table ? h * area * area : 0);
    f.cost += gathered(n) + linear_cost(b * n, co, co, true, t) + moved(b * n * co, bytes);
    f.published_macs = 3 * n * c * co + n * co * co + 2 * np * area * co + 4 * windows * c * h + 8 * np * co +
                       (v_.cpe ? kc * kc * n * c : 0);
    f.published_macs_note =
        "projections, attention products, regressors and the position encoding, with 8 Np C for the "
        "sampling, which "
        "the ledger counts as elementwise";
    f.parameters = 3 * co * c + (v_.qkv_bias ? 3 * co : 0) + co * co + co + 4 * h * c + 4 * h +
                   (v_.table ? (2 * v_.win - 1) * (2 * v_.win - 1) * h : 0) + (v_.cpe ? kc * kc * c + c : 0);
    return f;
  }

  /// The virtual keys of a window.
  int64_t keys(int64_t) const override { return grid_.area(); }

  /// A sample moves by the rounding of its coordinate, which is relative to coordinates of up to the grid's
  /// sides while neighbouring values differ by their own size; the coordinates are f32 whatever the dtype.
  double condition(const std::string&) const override {
    const auto reach = static_cast<double>(std::max(grid_.padded_h(), grid_.padded_w()));
    return 1.0 + (s_.dtype == DType::f32 ? reach / 4 : reach * epsilon_of(DType::f32) / epsilon_of(s_.dtype));
  }

 protected:
  void forward(Context& ctx, Trace* trace) override {
    const int64_t b = s_.batch, n = s_.tokens(), c = s_.channels, co = v_.out, h = s_.heads, d = co / h;
    const int64_t windows = grid_.windows(), area = grid_.area(), np = slots();
    Tensor x = workspace(ctx, b * n, c);
    {
      auto stage = ctx.stage("layout");
      transpose_copy(ctx, {input("x").reshape({b, c, n}).transpose(1, 2), x.reshape({b, n, c})});
    }
    // The geometry is taken in f32 whatever the storage type: rounded coordinates would be a fraction of a
    // position apart.
    const auto in_f32 = [&](const Tensor& t) {
      if (t.dtype() == DType::f32) return t;
      const Tensor wide = ctx.allocate(DType::f32, t.shape());
      cast(ctx, {t, wide});
      return wide;
    };
    Tensor wide = in_f32(x);
    if (v_.cpe) {
      auto stage = ctx.stage("cpe");
      const Tensor encoded = ctx.allocate(DType::f32, {b * n, c}), sum = ctx.allocate_like(encoded);
      Conv2dArgs conv;
      conv.x = wide.reshape({b, s_.grid_h, s_.grid_w, c});
      conv.weight = in_f32(weight("cpe.weight")), conv.bias = in_f32(weight("cpe.bias"));
      conv.y = encoded.reshape({b, s_.grid_h, s_.grid_w, c});
      conv.groups = c;
      const int64_t pad = side() / 2;
      conv.pad = {pad, pad, pad, pad};
      conv2d(ctx, conv);
      PointwiseArgs add;
      add.a = wide, add.b = encoded, add.y = sum;
      pointwise(ctx, add);
      wide = sum;
      if (s_.dtype == DType::f32)
        x = sum;
      else
        cast(ctx, {sum, x});
    }
    {
      auto stage = ctx.stage("regress");
      Pool2dArgs pool;
      pool.kind = Pool2dArgs::Kind::average;  // padding counts in the mean
      const Tensor means = ctx.allocate(DType::f32, {b * windows, c});
      pool.x = wide.reshape({b, s_.grid_h, s_.grid_w, c});
      pool.y = means.reshape({b, grid_.windows_h(), grid_.windows_w(), c});
      pool.kernel = pool.stride = {v_.win, v_.win};
      pool.pad = {v_.top, grid_.padded_h() - s_.grid_h - v_.top, v_.left,
                  grid_.padded_w() - s_.grid_w - v_.left};
      pool2d(ctx, pool);
      PointwiseArgs leaky;
      leaky.op = PointwiseArgs::Op::leaky_relu, leaky.alpha = static_cast<float>(v_.slope);
      leaky.a = leaky.y = means;
      pointwise(ctx, leaky);
      const Tensor offset = ctx.allocate(DType::f32, {b * windows, 2 * h}), scale = ctx.allocate_like(offset);
      linear(ctx, means, in_f32(w("offset")), in_f32(weight("offset.bias")), offset);
      linear(ctx, means, in_f32(w("scale")), in_f32(weight("scale.bias")), scale);
      points_ = ctx.allocate(DType::f32, {b, h, windows, area, 2});
      const auto by_head = [&](const Tensor& t) {  // [B, nW, (H, 2)] as [B, H, nW, 1, 2]
        return t.strided({b, h, windows, 1, 2}, {windows * 2 * h, 2, 2 * h, 2, 1});
      };
      using Op = PointwiseArgs::Op;
      pointwise(ctx, {Op::mul, offset.reshape({b * windows * h, 2}), factor_,
                      offset.reshape({b * windows * h, 2})});
      pointwise(ctx, {Op::mul, by_head(scale), centred_, points_});
      pointwise(ctx, {Op::add, points_, by_head(offset), points_});
      pointwise(ctx, {Op::add, points_, base_, points_});
    }
    const Tensor qkv = workspace(ctx, b * n, 3 * co);
    {
      auto stage = ctx.stage("project");
      project(ctx, "qkv", x, qkv);
    }
    const Tensor q = workspace(ctx, b * np, co), k = workspace(ctx, b * np, co),
                 v = workspace(ctx, b * np, co);
    {
      auto stage = ctx.stage("partition");
      gather_rows(ctx,
                  {qkv.strided({b, n, co}, {n * 3 * co, 3 * co, 1}), slot_index_, q.reshape({b, np, co})});
    }
    {
      auto stage = ctx.stage("sample");
      const auto plane = [&](int64_t part) {  // [B, H, Hg, Wg, D]; zeros outside are the zero padding
        return qkv.strided({b, h, s_.grid_h, s_.grid_w, d}, {n * 3 * co, d, s_.grid_w * 3 * co, 3 * co, 1},
                           part * co);
      };
      const auto by_point = [&](const Tensor& t) { return t.strided({b, h, np, d}, {np * co, d, co, 1}); };
      const Tensor at = points_.reshape({b, h, np, 2});
      sample_points(ctx, {plane(1), at, by_point(k)});
      sample_points(ctx, {plane(2), at, by_point(v)});
    }
    const Tensor o = workspace(ctx, b * np, co);
    {
      auto stage = ctx.stage("attend");
      AttentionArgs a;
      a.q = heads_view(q, 0, b * windows, area, 0, h, d), a.k = heads_view(k, 0, b * windows, area, 0, h, d);
      a.v = heads_view(v, 0, b * windows, area, 0, h, d), a.o = heads_view(o, 0, b * windows, area, 0, h, d);
      a.scale = s_.scale;
      a.bias.dense = bias_;
      attend(ctx, a, trace);
    }
    const Tensor by_token = workspace(ctx, b * n, co), y = workspace(ctx, b * n, co);
    {
      auto stage = ctx.stage("partition");
      gather_rows(ctx, {o.reshape({b, np, co}), token_index_, by_token.reshape({b, n, co})});
    }
    {
      auto stage = ctx.stage("out");
      project(ctx, "proj", by_token, y);
    }
    auto stage = ctx.stage("layout");
    transpose_copy(ctx, {y.reshape({b, n, co}).transpose(1, 2), out_.reshape({b, co, n})});
  }

  Place place(int64_t b, int64_t h, int64_t i) const override {
    const int64_t slot = slot_of(i);
    return {0, b * grid_.windows() + slot / grid_.area(), h, slot % grid_.area()};
  }
  int64_t visible_keys(int64_t, int64_t) const override { return grid_.area(); }
  /// The neighbours with weight of all points of the query's window and head.
  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    std::vector<float> points(static_cast<size_t>(points_ ? points_.numel() : 0));
    if (points_) {
      copy(*ctx_, points_, Tensor::borrow(DeviceKind::cpu, DType::f32, points_.shape(), points.data()));
      ctx_->backend().synchronize();
    }
    std::vector<int32_t> window(static_cast<size_t>(s_.tokens()));
    for (int64_t t = 0; t < s_.tokens(); ++t)
      window[static_cast<size_t>(t)] = static_cast<int32_t>(slot_of(t) / grid_.area());
    return [points, window, heads = s_.heads, windows = grid_.windows(), area = grid_.area(), gh = s_.grid_h,
            gw = s_.grid_w](int64_t b, int64_t h, int64_t i, Intervals& out) {
      const float* at =
          points.data() + ((b * heads + h) * windows + window[static_cast<size_t>(i)]) * area * 2;
      std::vector<int64_t> tokens;
      for (int64_t p = 0; p < area; ++p) {
        const float x = at[2 * p], y = at[2 * p + 1];
        if (!(x > -1 && x < static_cast<float>(gw) && y > -1 && y < static_cast<float>(gh))) continue;
        const auto x0 = static_cast<int64_t>(std::floor(x)), y0 = static_cast<int64_t>(std::floor(y));
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t xk = x0 + k % 2, yk = y0 + k / 2;
          const bool weight = (k % 2 == 0 || x != std::floor(x)) && (k / 2 == 0 || y != std::floor(y));
          if (weight && xk >= 0 && xk < gw && yk >= 0 && yk < gh) tokens.push_back(yk * gw + xk);
        }
      }
      std::sort(tokens.begin(), tokens.end());
      out.clear();
      for (const int64_t t : tokens) {
        if (!out.empty() && t < out.back().end) continue;
        if (!out.empty() && t == out.back().end)
          ++out.back().end;
        else
          out.push_back({t, t + 1});
      }
    };
  }

 private:
  int64_t side() const { return 2 * (v_.win / 2) + 1; }
  int64_t slots() const { return grid_.padded_tokens(); }
  int64_t slot_of(int64_t token) const {
    const int64_t y = token / s_.grid_w + v_.top, x = token % s_.grid_w + v_.left, w = v_.win;
    return (y / w * grid_.windows_w() + x / w) * grid_.area() + y % w * w + x % w;
  }

  Varied v_;
  WindowGrid grid_;
  Context* ctx_;
  Tensor slot_index_, token_index_, centred_, base_, factor_, bias_;
  Tensor points_;  ///< of the last run: [B, H, nW, w^2, 2]
};

class Vsa final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const LayerShape shape = layer_shape(info(), problem, params);
    const auto refuse = [](const std::string& why) { throw UsageError("vsa: " + why); };
    Varied v;
    v.out = params.is_null("out_dim") ? shape.channels : params.integer("out_dim");
    if (v.out % shape.heads != 0)
      refuse("out_dim " + std::to_string(v.out) + " is not divisible by num_heads " +
             std::to_string(shape.heads));
    v.win = params.integer("window_size");
    v.qkv_bias = params.boolean("qkv_bias"), v.table = params.boolean("rel_pos_bias");
    v.cpe = params.boolean("cpe"), v.slope = params.number("leaky_slope");
    v.random = params.choice("init_regressor") == "random";
    const WindowGrid grid{shape.grid_h, shape.grid_w, v.win, 0};
    if (params.choice("pad_mode") == "center") {
      v.top = (grid.padded_h() - shape.grid_h) / 2;
      v.left = (grid.padded_w() - shape.grid_w) / 2;
    }
    const std::string& norm = params.choice("offset_norm");
    const int64_t across = norm == "padded" ? grid.windows_w() : shape.grid_w / v.win;
    const int64_t down = norm == "padded" ? grid.windows_h() : shape.grid_h / v.win;
    if (across == 0 || down == 0)
      refuse("offset_norm " + norm + " divides by the whole windows of the grid " +
             std::to_string(shape.grid_h) + " x " + std::to_string(shape.grid_w) + ", of which window_size " +
             std::to_string(v.win) + " has none");
    v.divisor_x = static_cast<double>(norm == "swapped" ? down : across);
    v.divisor_y = static_cast<double>(norm == "swapped" ? across : down);
    return std::make_unique<VsaInstance>(ctx, shape, v);
  }

 private:
  static MethodInfo describe() {
    MethodInfo i =
        layer_info("vsa", "Varied-size window attention (VSA)", "window (dynamic window geometry, softmax)");
    i.card = "vsa";
    i.paper = "VSA: Learning Varied-Size Window Attention in Vision Transformers, ECCV 2022";
    i.arxiv = "2204.08446";
    i.summary =
        "Cuts the map into w x w windows of queries. From the mean of each window, every head predicts a "
        "scale and an "
        "offset of the window in which its w^2 keys and values are sampled bilinearly; attention is then "
        "that of a "
        "window. Optionally a depthwise convolution encodes positions first.";
    i.formula =
        "cpe: x <- x + dwconv(x), kernel 2 floor(w/2) + 1\n"
        "a = leaky_relu(avg_pool_w(zero-padded x));  o = W_o a + b_o;  sc = W_s a + b_s, two of each per "
        "head\n"
        "[q k v] = qkv(x), zero-padded;  for window (jy, jx), place (iy, ix), m = (w - 1) / 2:\n"
        "px = w jx + m + (1 + sc_x)(ix - m) + o_x (Wp - 1) / (2 nw);  py alike\n"
        "k_s, v_s = bilinear samples at (px, py), zeros outside;  A = softmax(q k_s^T (C/H)^-0.5 + table)\n"
        "out = proj(crop(A v_s))";
    i.cost =
        "MACs per image, Np padded tokens, nW windows: 4 N C^2 + 2 Np w^2 C + 4 nW C H + 8 Np C (sampling) + "
        "kc^2 N C "
        "(cpe). Parameters 4 C^2 + 4 C + (2w-1)^2 H + 4 H C + 4 H + (kc^2 + 1) C.";
    ParamSpec dim = spec::integer("dim", 96, 1, "C, channels; a multiple of num_heads");
    dim.from_problem = "channels";
    ParamSpec out = spec::integer("out_dim", 0, 1, "Co, channels of the output; null: dim");
    out.default_value = Value();
    out.nullable = true;
    ParamSpec heads = spec::integer("num_heads", 3, 1, "H, heads");
    heads.from_problem = "heads";
    ParamSpec grid_h = spec::integer("grid_h", 56, 1, "Hg, rows of the map");
    grid_h.from_problem = "grid[0]";
    ParamSpec grid_w = spec::integer("grid_w", 56, 1, "Wg, columns of the map");
    grid_w.from_problem = "grid[1]";
    ParamSpec scale;
    scale.name = "qk_scale";
    scale.type = ParamSpec::Type::number;
    scale.nullable = true;
    scale.meaning = "logit scale, above 0; null: (C/H)^-0.5";
    ParamSpec slope;
    slope.name = "leaky_slope";
    slope.type = ParamSpec::Type::number;
    slope.default_value = Value(0.01);
    slope.min = 0.0;
    slope.meaning = "slope of the regressors' activation below 0";
    const auto choice = [](const char* name, std::vector<std::string> words, const char* meaning) {
      ParamSpec p;
      p.name = name;
      p.type = ParamSpec::Type::choice;
      p.default_value = Value(words.front());
      p.choices = std::move(words);
      p.meaning = meaning;
      return p;
    };
    i.params = {
        dim,
        out,
        heads,
        grid_h,
        grid_w,
        spec::integer("window_size", 7, 2, "w, side of a window"),
        spec::boolean("qkv_bias", true, "bias on the q, k and v projections"),
        scale,
        spec::boolean("rel_pos_bias", true, "adds the relative-position table to the scores"),
        spec::boolean("cpe", true, "depthwise position encoding before the layer, residual included"),
        slope,
        choice("pad_mode", {"br", "center"},
               "padding bottom and right, or split with the smaller half first"),
        choice("offset_norm", {"padded", "unpadded", "swapped"},
               "window counts that offsets are divided by; swapped: x by rows, y by columns, unpadded"),
        choice("init_regressor", {"random", "zero"}, "zero is plain window attention")};
    i.figures = {
        {"top-1", "Swin-T + VSA, ImageNet 224", "shifted windows 81.2", "82.3 (+1.1)", "abstract, README"},
        {"top-1", "ViTAEv2*-S + VSA", "82.2", "82.7", "README"},
        {"top-1", "Swin-S + VSA", "83.0", "83.6", "README"},
        {"parameters", "Mask R-CNN ViTAEv2*-S", "39 M", "39 M with VSA", "README"},
        {"box mAP", "Cascade Mask R-CNN 3x, ViTAEv2*-S + VSA", "48.0", "51.9", "README"},
        {"mIoU", "UperNet 512x1024, Swin-T + VSA", "78.9", "80.8", "README"},
        {"training images/s", "ViTAEv2-S 224, 8 x 128", "2716 of another network", "1815 = 0.67x",
         "training logs"}};
    i.notes = {
        "The geometry (means, regressors, points) is taken in f32 whatever the storage type; keys and values "
        "are "
        "sampled from rounded projections.",
        "Weights start as truncated normal of standard deviation 0.02, regressors uniform within C^-0.5 (the "
        "released "
        "code's default; init_regressor zero gives window attention).",
        "offset_norm padded (QFormer's) is the default; unpadded is the ViTAE-VSA code's, swapped its "
        "detection code's.",
        "Padded and out-of-map samples are zeros that take their share of the softmax; nothing is masked.",
        "rows() has a column per sampled key; pairs() are the tokens under the samples. No shift, no causal "
        "mode."};
    i.example = image_problem(2, 9, 10, 24, 3);
    return i;
  }
};

ATTNBENCH_METHOD(Vsa);

}  // namespace
}  // namespace attnbench
