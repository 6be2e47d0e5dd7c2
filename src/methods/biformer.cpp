// Bi-level routing attention (BiFormer): regions choose regions by the affinity of their means, then tokens
// attend to the tokens of the chosen regions.
#include <algorithm>
#include <cmath>

#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

enum class Downsample : uint8_t { identity, avg, max, ada_avg, ada_max };

struct Routing {
  bool all = false;     ///< topk: all, dense attention
  bool legacy = false;  ///< pads before the projection
  bool soft = false;
  int64_t qk = 0;  ///< Cqk
  int64_t topk = 0, kernel = 0;
  int64_t region_h = 1, region_w = 1, regions_h = 1, regions_w = 1;
  Downsample downsample = Downsample::identity;
  int64_t pooled_h = 1, pooled_w = 1, ratio = 1;  ///< keys of a region after pooling
  int64_t regions() const { return regions_h * regions_w; }
  int64_t area() const { return region_h * region_w; }
  int64_t region_keys() const { return pooled_h * pooled_w; }
  int64_t padded_h() const { return regions_h * region_h; }
  int64_t padded_w() const { return regions_w * region_w; }
};

class BiFormerInstance final : public LayerInstance {
 public:
  BiFormerInstance(Context& ctx, const LayerShape& shape, const Routing& routing)
      : LayerInstance(ctx, shape), r_(routing), ctx_(&ctx) {
    const Shape x{s_.batch, s_.grid_h, s_.grid_w, s_.channels};
    input_specs_ = {{"x", x, s_.dtype, Init::normal(), false, "tokens of the grid, row-major"}};
    out_ = ctx.allocate(s_.dtype, x, MemoryClass::output);
    const int64_t c = s_.channels, kernel = r_.kernel;
    add_linear(weight_specs_, "qkv", 2 * r_.qk + c, c, !r_.all, s_.dtype,
               "projections, rows q | k | v, each (head, d)");
    add_linear(weight_specs_, "wo", c, c, true, s_.dtype, "output projection");
    if (kernel > 0) {
      const double bound = 1.0 / static_cast<double>(kernel);
      weight_specs_.push_back({"lepe.weight",
                               {c, 1, kernel, kernel},
                               s_.dtype,
                               Init::uniform(-bound, bound),
                               false,
                               "depthwise convolution of the values"});
      weight_specs_.push_back({"lepe.bias", {c}, s_.dtype, Init::uniform(-bound, bound), false, "its bias"});
    }
    if (!r_.all) idx_ = ctx.allocate(DType::i32, {s_.batch, r_.regions(), r_.topk}, MemoryClass::output);
    padded_ = !r_.all && (r_.padded_h() != s_.grid_h || r_.padded_w() != s_.grid_w);
    pads_input_ = padded_ && r_.legacy;
    moves_ = !r_.all && (padded_ || (r_.regions_w > 1 && r_.area() > 1));
  }

  TensorMap outputs() const override {
    TensorMap m{{"out", out_}};
    if (!r_.all) m["idx"] = idx_;
    return m;
  }

  void prepare(Context& ctx) override {
    if (r_.all) return;
    if (pads_input_) {
      std::vector<int32_t> from(static_cast<size_t>(r_.padded_h() * r_.padded_w()), -1);
      for (int64_t t = 0; t < s_.tokens(); ++t)
        from[static_cast<size_t>(t / s_.grid_w * r_.padded_w() + t % s_.grid_w)] = static_cast<int32_t>(t);
      pad_index_ = upload(ctx, {static_cast<int64_t>(from.size())}, from);
    }
    if (moves_) {
      std::vector<int32_t> to_slot(static_cast<size_t>(s_.tokens()));
      std::vector<int32_t> to_row(static_cast<size_t>(slots()), -1);
      for (int64_t i = 0; i < slots(); ++i) {
        const int64_t y = padded_place(i) / r_.padded_w(), x = padded_place(i) % r_.padded_w();
        if (y < grid_h() && x < grid_w())
          to_row[static_cast<size_t>(i)] = static_cast<int32_t>(y * grid_w() + x);
        if (y < s_.grid_h && x < s_.grid_w)
          to_slot[static_cast<size_t>(y * s_.grid_w + x)] = static_cast<int32_t>(i);
      }
      slot_index_ = upload(ctx, {slots()}, to_row);
      token_index_ = upload(ctx, {s_.tokens()}, to_slot);
    }
    // Every region has k key regions: lists of equal length, whose entries are idx itself.
    std::vector<int32_t> begin(static_cast<size_t>(s_.batch * r_.regions()));
    for (size_t i = 0; i < begin.size(); ++i)
      begin[i] = static_cast<int32_t>(static_cast<int64_t>(i) * r_.topk);
    mask_.block_q = r_.area(), mask_.block_k = r_.region_keys();
    mask_.full.begin = upload(ctx, {s_.batch, 1, r_.regions()}, begin);
    mask_.full.count = upload(ctx, {s_.batch, 1, r_.regions()},
                              std::vector<int32_t>(begin.size(), static_cast<int32_t>(r_.topk)));
    mask_.full.index = idx_.reshape({idx_.numel()});
  }

  ClosedForm cost() const override {
    const int64_t b = s_.batch, n = s_.tokens(), c = s_.channels, qk = r_.qk, width = 2 * qk + c,
                  h = s_.heads;
    const DType t = s_.dtype;
    const auto bytes = static_cast<int64_t>(size_of(t));
    ClosedForm f;
    f.parameters =
        width * c + (r_.all ? 0 : width) + c * c + c + (r_.kernel > 0 ? (r_.kernel * r_.kernel + 1) * c : 0);
    const int64_t rows = b * grid_h() * grid_w();
    f.cost += linear_cost(rows, c, width, !r_.all, t) + linear_cost(b * n, c, c, true, t);
    if (r_.kernel > 0) {
      Cost lepe;
      lepe.matmul = 2 * r_.kernel * r_.kernel * rows * c;
      lepe.elementwise = rows * c;
      lepe.bytes_read = (rows * c + (r_.kernel * r_.kernel + 1) * c) * bytes;
      lepe.bytes_written = rows * c * bytes;
      Cost add;
      add.elementwise = b * n * c;
      add.bytes_read = 2 * b * n * c * bytes;
      add.bytes_written = b * n * c * bytes;
      f.cost += lepe + add;
    }
    f.published_macs = n * c * width + n * c * c + r_.kernel * r_.kernel * n * c;
    if (r_.all) {
      f.cost += attend_rect(b, n, n);
      f.published_macs += n * n * (qk + c);
      f.published_macs_note = "projections, dense attention products and the depthwise convolution";
      return f;
    }
    const int64_t regions = r_.regions(), area = r_.area(), keys = r_.topk * r_.region_keys();
    if (pads_input_) f.cost += gather_cost(padded_tokens(), c, bytes);
    // Routing in f32: means of x (their projection is the mean of the projections), then R x R affinities.
    if (t != DType::f32) {
      for (const int64_t m : {rows * c, 2 * qk * c, 2 * qk}) {
        Cost cast;
        cast.bytes_read = m * bytes;
        cast.bytes_written = m * 4;
        f.cost += cast;
      }
    }
    f.cost += pool_cost(rows * c, rows * c, b * regions * c, DType::f32);
    f.cost += linear_cost(b * regions, c, 2 * qk, true, DType::f32);
    Cost affinity;
    affinity.matmul = 2 * b * regions * regions * qk;
    affinity.bytes_read = 4 * 2 * b * regions * qk;
    affinity.bytes_written = 4 * b * regions * regions;
    Cost choose;
    choose.elementwise = b * regions * regions;
    choose.bytes_read = 4 * b * regions * regions;
    choose.bytes_written = 4 * b * regions * r_.topk * (r_.soft ? 2 : 1);
    f.cost += affinity + choose;
    if (moves_) f.cost += gather_cost(slots(), width, bytes) + gather_cost(n, c, bytes);
    const int64_t kv_rows = b * regions * r_.region_keys(), kv = qk + c;
    if (r_.downsample != Downsample::identity) f.cost += downsample_cost();
    if (r_.soft) {
      const int64_t entries = b * regions * r_.topk, gathered = entries * r_.region_keys() * kv;
      Cost soft;
      soft.elementwise = entries + 4 * entries + gathered;
      soft.special = entries;
      soft.bytes_read = 4 * entries * 2 + (t == DType::f32 ? 0 : 4 * entries);
      soft.bytes_written = 4 * entries * 2 + (t == DType::f32 ? 0 : bytes * entries);
      if (r_.downsample == Downsample::identity) {
        soft.bytes_read += kv_rows * kv * bytes;
        soft.bytes_written += kv_rows * kv * bytes;
      }
      soft.bytes_read += gathered * bytes + 4 * entries;  // gather
      soft.bytes_written += gathered * bytes;
      soft.bytes_read += gathered * bytes + entries * bytes;  // scale
      soft.bytes_written += gathered * bytes;
      f.cost += soft + attend_rect(b * regions, area, keys);
    } else {
      Cost attend;
      const int64_t pairs = b * h * regions * area * keys;
      attend.matmul = 2 * (qk + c) / h * pairs;
      attend.elementwise = 4 * pairs;
      attend.special = pairs;
      attend.bytes_read = (b * slots() * qk + kv_rows * kv) * bytes + 4 * b * regions * (2 + r_.topk);
      attend.bytes_written = b * slots() * c * bytes;
      f.cost += attend;
    }
    f.published_macs += regions * regions * qk + n * keys * (qk + c);
    f.published_macs_note =
        "projections, routing affinities, products over the k T keys and the depthwise convolution, of real "
        "tokens";
    return f;
  }

  int64_t keys(int64_t) const override { return r_.all ? s_.tokens() : r_.regions() * r_.region_keys(); }

 protected:
  void forward(Context& ctx, Trace* trace) override {
    const int64_t b = s_.batch, c = s_.channels, width = 2 * r_.qk + c;
    Tensor x = tokens();
    if (pads_input_) {
      auto stage = ctx.stage("pad");
      const Tensor padded = workspace(ctx, b * padded_tokens(), c);
      gather_rows(ctx, {x.reshape({b, s_.tokens(), c}), pad_index_, padded.reshape({b, padded_tokens(), c})});
      x = padded;
    }
    const int64_t rows = b * grid_h() * grid_w();
    const Tensor qkv = workspace(ctx, rows, width);
    {
      auto stage = ctx.stage("project");
      project(ctx, "qkv", x, qkv);
    }
    Tensor o;  // [B N, C] in token order
    if (r_.all) {
      auto stage = ctx.stage("attend");
      o = workspace(ctx, rows, c);
      AttentionArgs a;
      a.q = part(qkv, b, s_.tokens(), 0, r_.qk), a.k = part(qkv, b, s_.tokens(), r_.qk, r_.qk);
      a.v = part(qkv, b, s_.tokens(), 2 * r_.qk, c), a.o = part(o, b, s_.tokens(), 0, c);
      a.scale = s_.scale;
      attend(ctx, a, trace);
    } else {
      const Tensor affinity_weight = route(ctx, x);
      o = attend_regions(ctx, qkv, affinity_weight, trace);
    }
    if (r_.kernel > 0) {
      auto stage = ctx.stage("lepe");
      // The legacy network's dense stage takes the layer's input in place of the values.
      const bool of_input = r_.all && r_.legacy;
      const int64_t h = grid_h(), w = grid_w();
      Conv2dArgs conv;
      conv.x = of_input ? x.reshape({b, h, w, c})
                        : qkv.strided({b, h, w, c}, {h * w * width, w * width, width, 1}, 2 * r_.qk);
      conv.weight = weight("lepe.weight"), conv.bias = weight("lepe.bias");
      const Tensor lepe = ctx.allocate(s_.dtype, {b, h, w, c});
      conv.y = lepe;
      conv.groups = c;
      const int64_t side = r_.kernel / 2;
      conv.pad = {side, side, side, side};
      conv2d(ctx, conv);
      const Tensor sum = o.reshape({b, s_.grid_h, s_.grid_w, c});
      PointwiseArgs add;
      add.op = PointwiseArgs::Op::add;
      add.a = sum, add.b = lepe.slice(1, 0, s_.grid_h).slice(2, 0, s_.grid_w), add.y = sum;
      pointwise(ctx, add);
    }
    auto stage = ctx.stage("out");
    project(ctx, "wo", o, out_rows());
  }

  Place place(int64_t b, int64_t h, int64_t i) const override {
    if (r_.all) return {0, b, h, i};
    const int64_t slot = slot_of(i);
    if (!r_.soft) return {0, b, h, slot};
    return {0, b * r_.regions() + slot / r_.area(), h, slot % r_.area()};
  }
  int64_t key_column(int64_t b, int64_t, int64_t i, int64_t j) const override {
    if (r_.all) return j;
    int64_t slot = j;
    if (r_.soft) {
      const int64_t region = slot_of(i) / r_.area(), each = r_.region_keys();
      slot =
          chosen()[static_cast<size_t>((b * r_.regions() + region) * r_.topk + j / each)] * each + j % each;
    }
    return r_.downsample == Downsample::identity ? padded_place(slot) : slot;
  }
  int64_t visible_keys(int64_t, int64_t) const override {
    return r_.all ? s_.tokens() : r_.topk * r_.region_keys();
  }
  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    if (r_.all) return [n = s_.tokens()](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, n}}; };
    return [chosen = chosen(), r = r_, gh = s_.grid_h, gw = s_.grid_w](int64_t b, int64_t, int64_t i,
                                                                       Intervals& out) {
      const int64_t region = i / gw / r.region_h * r.regions_w + i % gw / r.region_w;
      const int32_t* list = chosen.data() + (b * r.regions() + region) * r.topk;
      std::vector<char> in(static_cast<size_t>(r.regions()), 0);
      for (int64_t k = 0; k < r.topk; ++k) in[static_cast<size_t>(list[k])] = 1;
      out.clear();
      for (int64_t y = 0; y < gh; ++y)
        for (int64_t rx = 0; rx < r.regions_w; ++rx) {
          const int64_t first = rx * r.region_w, end = std::min(gw, first + r.region_w);
          if (first >= end || !in[static_cast<size_t>(y / r.region_h * r.regions_w + rx)]) continue;
          if (!out.empty() && out.back().end == y * gw + first)
            out.back().end = y * gw + end;
          else
            out.push_back({y * gw + first, y * gw + end});
        }
    };
  }

 private:
  // The grid that is projected: padded before (legacy) or as given.
  int64_t grid_h() const { return pads_input_ ? r_.padded_h() : s_.grid_h; }
  int64_t grid_w() const { return pads_input_ ? r_.padded_w() : s_.grid_w; }
  int64_t padded_tokens() const { return r_.padded_h() * r_.padded_w(); }
  /// Places in region-major order, an image.
  int64_t slots() const { return r_.regions() * r_.area(); }
  /// Row-major place on the padded grid of a slot, and the slot of a token.
  int64_t padded_place(int64_t slot) const {
    const int64_t region = slot / r_.area(), in = slot % r_.area();
    return (region / r_.regions_w * r_.region_h + in / r_.region_w) * r_.padded_w() +
           region % r_.regions_w * r_.region_w + in % r_.region_w;
  }
  int64_t slot_of(int64_t token) const {
    const int64_t y = token / s_.grid_w, x = token % s_.grid_w;
    return (y / r_.region_h * r_.regions_w + x / r_.region_w) * r_.area() + y % r_.region_h * r_.region_w +
           x % r_.region_w;
  }
  /// idx of the last run, on the host.
  std::vector<int32_t> chosen() const {
    std::vector<int32_t> v(static_cast<size_t>(idx_.numel()));
    copy(*ctx_, idx_, Tensor::borrow(DeviceKind::cpu, DType::i32, idx_.shape(), v.data()));
    ctx_->backend().synchronize();
    return v;
  }
  /// `width` columns of packed rows from `column` on as [batch, H, rows, width / H].
  Tensor part(const Tensor& packed, int64_t batch, int64_t rows, int64_t column, int64_t width) const {
    const int64_t stride = packed.stride(0), d = width / s_.heads;
    return packed.strided({batch, s_.heads, rows, d}, {rows * stride, d, stride, 1}, column);
  }
  Cost gather_cost(int64_t rows, int64_t columns, int64_t bytes) const {
    Cost c;  // the index is one image's
    c.bytes_read = s_.batch * rows * columns * bytes + 4 * rows;
    c.bytes_written = s_.batch * rows * columns * bytes;
    return c;
  }
  /// Dense calls of n queries and m keys whose query and value widths differ.
  Cost attend_rect(int64_t batch, int64_t n, int64_t m) const {
    const auto bytes = static_cast<int64_t>(size_of(s_.dtype));
    const int64_t pairs = batch * s_.heads * n * m;
    Cost c;
    c.matmul = 2 * (r_.qk + s_.channels) / s_.heads * pairs;
    c.elementwise = 4 * pairs;
    c.special = pairs;
    c.bytes_read = batch * (n * r_.qk + m * (r_.qk + s_.channels)) * bytes;
    c.bytes_written = batch * n * s_.channels * bytes;
    return c;
  }
  Cost downsample_cost() const {
    const auto bytes = static_cast<int64_t>(size_of(s_.dtype));
    const bool average = r_.downsample == Downsample::avg || r_.downsample == Downsample::ada_avg;
    const auto reads = [&](int64_t in, int64_t out) {
      if (r_.downsample == Downsample::avg || r_.downsample == Downsample::max) return out * r_.ratio;
      int64_t n = 0;
      for (int64_t i = 0; i < out; ++i) n += ((i + 1) * in + out - 1) / out - i * in / out;
      return n;
    };
    const int64_t images = s_.batch * r_.regions(), kv = r_.qk + s_.channels;
    const int64_t out = images * r_.region_keys() * kv;
    Cost c;
    c.elementwise =
        images * kv * reads(r_.region_h, r_.pooled_h) * reads(r_.region_w, r_.pooled_w) + (average ? out : 0);
    c.bytes_read = images * r_.area() * kv * bytes;
    c.bytes_written = out * bytes;
    return c;
  }

  /// Fills idx. The affinities are taken in f32 whatever the storage type, so that rounded queries and keys
  /// do not decide near ties: the mean of a region's projections is the projection of its mean. Returns the
  /// softmax over the chosen affinities where soft routing wants it: [B R k, 1].
  Tensor route(Context& ctx, const Tensor& x) {
    auto stage = ctx.stage("route");
    const int64_t b = s_.batch, c = s_.channels, regions = r_.regions(), qk = r_.qk;
    const auto in_f32 = [&](const Tensor& t) {
      if (t.dtype() == DType::f32) return t;
      const Tensor wide = ctx.allocate(DType::f32, t.shape());
      cast(ctx, {t, wide});
      return wide;
    };
    Pool2dArgs pool;
    pool.kind = Pool2dArgs::Kind::average;
    pool.count_padding = false;  // means are of real tokens (legacy padding has become tokens)
    pool.x = in_f32(x).reshape({b, grid_h(), grid_w(), c});
    const Tensor means = ctx.allocate(DType::f32, {b * regions, c});
    pool.y = means.reshape({b, r_.regions_h, r_.regions_w, c});
    pool.kernel = pool.stride = {r_.region_h, r_.region_w};
    pool.pad = {0, r_.padded_h() - grid_h(), 0, r_.padded_w() - grid_w()};
    pool2d(ctx, pool);
    const Tensor described = ctx.allocate(DType::f32, {b * regions, 2 * qk});
    linear(ctx, means, in_f32(w("qkv").slice(0, 0, 2 * qk)), in_f32(weight("qkv.bias").slice(0, 0, 2 * qk)),
           described);
    const Tensor affinity = ctx.allocate(DType::f32, {b, regions, regions});
    GemmArgs g;
    g.a = described.strided({b, regions, qk}, {regions * 2 * qk, 2 * qk, 1});
    g.b = described.strided({b, regions, qk}, {regions * 2 * qk, 2 * qk, 1}, qk);
    g.b_transposed = true;
    g.c = affinity;
    gemm(ctx, g);
    TopKArgs top;
    top.x = affinity, top.index = idx_, top.order = TopKArgs::Order::index;
    if (!r_.soft) {
      top_k(ctx, top);
      return {};
    }
    const Tensor logits = ctx.allocate(DType::f32, {b, regions, r_.topk}), shares = ctx.allocate_like(logits);
    top.value = logits;
    top_k(ctx, top);
    PointwiseArgs scaled;
    scaled.op = PointwiseArgs::Op::affine, scaled.alpha = s_.scale, scaled.a = logits, scaled.y = logits;
    pointwise(ctx, scaled);
    softmax(ctx, {logits, shares});
    const Tensor column = shares.reshape({shares.numel(), 1});
    if (s_.dtype == DType::f32) return column;
    const Tensor narrow = ctx.allocate(s_.dtype, column.shape());
    cast(ctx, {column, narrow});
    return narrow;
  }

  Tensor attend_regions(Context& ctx, const Tensor& qkv, const Tensor& shares, Trace* trace) {
    const int64_t b = s_.batch, c = s_.channels, qk = r_.qk, width = 2 * qk + c, kv = qk + c;
    const int64_t regions = r_.regions(), area = r_.area(), each = r_.region_keys();
    Tensor by_slot = qkv;
    if (moves_) {
      auto stage = ctx.stage("partition");
      by_slot = workspace(ctx, b * slots(), width);
      gather_rows(ctx, {qkv.reshape({b, grid_h() * grid_w(), width}), slot_index_,
                        by_slot.reshape({b, slots(), width})});
    }
    Tensor packed = by_slot.slice(1, qk, width);  // rows k | v
    if (r_.downsample != Downsample::identity) {
      auto stage = ctx.stage("downsample");
      Pool2dArgs pool;
      const bool max = r_.downsample == Downsample::max || r_.downsample == Downsample::ada_max;
      pool.kind = max ? Pool2dArgs::Kind::max : Pool2dArgs::Kind::average;
      pool.adaptive = r_.downsample == Downsample::ada_avg || r_.downsample == Downsample::ada_max;
      pool.kernel = pool.stride = {r_.ratio, r_.ratio};
      pool.x = by_slot.strided({b * regions, r_.region_h, r_.region_w, kv},
                               {area * width, r_.region_w * width, width, 1}, qk);
      packed = workspace(ctx, b * regions * each, kv);
      pool.y = packed.reshape({b * regions, r_.pooled_h, r_.pooled_w, kv});
      pool2d(ctx, pool);
    }
    const Tensor o = workspace(ctx, b * slots(), c);
    AttentionArgs a;
    a.scale = s_.scale;
    if (r_.soft) {
      auto stage = ctx.stage("gather");
      if (r_.downsample == Downsample::identity) {
        const Tensor dense = workspace(ctx, b * regions * each, kv);
        transpose_copy(ctx, {packed, dense});
        packed = dense;
      }
      const Tensor gathered = workspace(ctx, b * regions * r_.topk, each * kv);
      gather_tokens(ctx, {packed.reshape({b, 1, regions, each * kv}), idx_.reshape({b, 1, regions * r_.topk}),
                          gathered.reshape({b, 1, regions * r_.topk, each * kv})});
      PointwiseArgs scaled;
      scaled.op = PointwiseArgs::Op::mul, scaled.a = gathered, scaled.b = shares, scaled.y = gathered;
      pointwise(ctx, scaled);
      const Tensor rows = gathered.reshape({b * regions * r_.topk * each, kv});
      a.q = part(by_slot, b * regions, area, 0, qk);
      a.k = part(rows, b * regions, r_.topk * each, 0, qk);
      a.v = part(rows, b * regions, r_.topk * each, qk, c);
      a.o = part(o, b * regions, area, 0, c);
    } else {
      a.q = part(by_slot, b, slots(), 0, qk);
      a.k = part(packed, b, regions * each, 0, qk);
      a.v = part(packed, b, regions * each, qk, c);
      a.o = part(o, b, slots(), 0, c);
      a.mask = &mask_;
    }
    {
      auto stage = ctx.stage("attend");
      attend(ctx, a, trace);
    }
    if (!moves_) return o;
    auto stage = ctx.stage("partition");
    const Tensor by_token = workspace(ctx, s_.rows(), c);
    gather_rows(ctx, {o.reshape({b, slots(), c}), token_index_, by_token.reshape({b, s_.tokens(), c})});
    return by_token;
  }

  Routing r_;
  Context* ctx_;
  bool padded_ = false, pads_input_ = false, moves_ = false;
  Tensor idx_, pad_index_, slot_index_, token_index_;
  BlockMask mask_;
};

class BiFormer final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    LayerShape shape = layer_shape(info(), problem, params);
    Routing r;
    const Value& topk = params.value("topk");
    r.all = topk.is_string();
    r.legacy = params.choice("variant") == "legacy";
    r.soft = params.boolean("soft_routing");
    r.kernel = params.integer("side_dwconv");
    r.qk = params.is_null("qk_dim") ? shape.channels : params.integer("qk_dim");
    const std::string& down = params.choice("kv_downsample");
    const auto refuse = [](const std::string& why) { throw UsageError("biformer: " + why); };
    if (r.kernel != 0 && r.kernel % 2 == 0)
      refuse("side_dwconv " + std::to_string(r.kernel) + " is even; the kernel is odd, or 0 for none");
    if (r.qk % shape.heads != 0)
      refuse("qk_dim " + std::to_string(r.qk) + " is not divisible by num_heads " +
             std::to_string(shape.heads));
    if (!r.legacy) {
      if (r.qk != shape.channels) refuse("qk_dim differs from dim, which variant legacy alone has");
      if (r.soft) refuse("soft_routing is of variant legacy alone");
      if (down != "identity") refuse("kv_downsample is of variant legacy alone");
    }
    // The scale is that of the whole width; of one head where attention is dense.
    if (params.is_null("qk_scale"))
      shape.scale =
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(r.all ? r.qk / shape.heads : r.qk)));
    if (r.all) {
      if (r.soft || down != "identity")
        refuse("topk all does not route: soft_routing and kv_downsample mean nothing");
      return std::make_unique<BiFormerInstance>(ctx, shape, r);
    }
    const int64_t side = params.integer("n_win");
    if (side > shape.grid_h || side > shape.grid_w)
      refuse("n_win " + std::to_string(side) + " is more than the grid " + std::to_string(shape.grid_h) +
             " x " + std::to_string(shape.grid_w) + " has rows or columns");
    if (r.legacy) {
      if (!params.boolean("auto_pad") && (shape.grid_h % side != 0 || shape.grid_w % side != 0))
        refuse("n_win " + std::to_string(side) + " does not divide the grid " + std::to_string(shape.grid_h) +
               " x " + std::to_string(shape.grid_w) + "; set auto_pad");
      r.region_h = (shape.grid_h + side - 1) / side, r.region_w = (shape.grid_w + side - 1) / side;
      r.regions_h = r.regions_w = side;
    } else {
      r.region_h = shape.grid_h / side, r.region_w = shape.grid_w / side;
      r.regions_h = (shape.grid_h + r.region_h - 1) / r.region_h;
      r.regions_w = (shape.grid_w + r.region_w - 1) / r.region_w;
    }
    r.topk = topk.as_int();
    if (r.topk > r.regions())
      refuse("topk " + std::to_string(r.topk) + " is more than the " + std::to_string(r.regions()) +
             " regions");
    r.pooled_h = r.region_h, r.pooled_w = r.region_w;
    if (down == "avg" || down == "max") {
      r.downsample = down == "avg" ? Downsample::avg : Downsample::max;
      r.ratio = params.integer("kv_ratio");
      r.pooled_h /= r.ratio, r.pooled_w /= r.ratio;
      if (r.pooled_h == 0 || r.pooled_w == 0)
        refuse("kv_ratio " + std::to_string(r.ratio) + " leaves no keys of regions of " +
               std::to_string(r.region_h) + " x " + std::to_string(r.region_w) + " tokens");
    } else if (down != "identity") {
      r.downsample = down == "ada_avg" ? Downsample::ada_avg : Downsample::ada_max;
      r.pooled_h = r.pooled_w = params.integer("kv_per_win");
    }
    return std::make_unique<BiFormerInstance>(ctx, shape, r);
  }

 private:
  static MethodInfo describe() {
    MethodInfo i = layer_info("biformer", "Bi-level routing attention (BiFormer)",
                              "dynamic-sparse (block-sparse softmax with content-dependent routing)");
    i.card = "biformer";
    i.paper = "BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023";
    i.arxiv = "2303.08810";
    i.summary =
        "Cuts the grid into S x S regions. The mean query of a region chooses the k regions whose mean keys "
        "answer it "
        "best, for all heads together; its tokens then attend to all tokens of those regions. A depthwise "
        "convolution "
        "of the values is added before the output projection.";
    i.formula =
        "[q k v] = qkv(x);  q_r, k_r = region means over all heads;  A = q_r k_r^T\n"
        "idx[r] = the k columns with the largest A[r, :], lower column first where equal\n"
        "o = softmax(scale q k_g^T) v_g per head over the tokens of regions idx[r], scale = Cqk^-0.5\n"
        "out = wo(o + lepe(v)), lepe a depthwise convolution on the whole map\n"
        "nchw: regions of floor(Hg/S) x floor(Wg/S), q, k and v zero-padded; legacy: x zero-padded to "
        "multiples of S";
    i.cost =
        "MACs per image: N C (2 Cqk + C) + N C^2 + R^2 Cqk + N k T (Cqk + C) + kd^2 N C; R regions of T "
        "tokens. Region "
        "means are additions. Parameters (2 Cqk + C)(C + 1) + C^2 + C + (kd^2 + 1) C.";
    ParamSpec dim = spec::integer("dim", 64, 1, "C, channels; a multiple of num_heads");
    dim.from_problem = "channels";
    ParamSpec heads = spec::integer("num_heads", 2, 1, "H; published models have heads of 32 channels");
    heads.from_problem = "heads";
    ParamSpec grid_h = spec::integer("grid_h", 56, 1, "Hg, rows of the token grid");
    grid_h.from_problem = "grid[0]";
    ParamSpec grid_w = spec::integer("grid_w", 56, 1, "Wg, columns of the token grid");
    grid_w.from_problem = "grid[1]";
    ParamSpec qk_dim =
        spec::integer("qk_dim", 0, 1, "Cqk, width of queries and keys; null: dim. Legacy only");
    qk_dim.default_value = Value();
    qk_dim.nullable = true;
    ParamSpec scale;
    scale.name = "qk_scale";
    scale.type = ParamSpec::Type::number;
    scale.nullable = true;
    scale.meaning = "logit scale, above 0; null: Cqk^-0.5, of one head's width with topk all";
    ParamSpec topk = spec::integer("topk", 4, 1, "k, regions that a region attends to; all: dense attention");
    topk.choices = {"all"};
    ParamSpec kernel = spec::integer("side_dwconv", 5, 0, "side of the depthwise convolution, odd; 0: none");
    kernel.max = 7.0;
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
        heads,
        qk_dim,
        scale,
        grid_h,
        grid_w,
        spec::integer("n_win", 7, 1, "S, regions a side"),
        topk,
        kernel,
        choice("variant", {"nchw", "legacy"}, "how sizes that S does not divide are padded"),
        spec::boolean("auto_pad", true, "legacy: pad, or refuse what S does not divide"),
        spec::boolean("soft_routing", false, "legacy: weigh gathered keys and values by the routing softmax"),
        choice("kv_downsample", {"identity", "avg", "max", "ada_avg", "ada_max"},
               "legacy: pool keys and values inside regions"),
        spec::integer("kv_per_win", 4, 1, "keys a side that ada_avg and ada_max leave of a region"),
        spec::integer("kv_ratio", 4, 1, "side of the windows that avg and max pool")};
    i.figures = {
        {"parameters, FLOPs (MACs)", "BiFormer-T 224", "", "13.1 M, 2.2 G; top-1 81.4", "README"},
        {"parameters, FLOPs (MACs)", "BiFormer-S 224", "", "25.5 M, 4.5 G; top-1 83.8", "README"},
        {"parameters, FLOPs (MACs)", "BiFormer-B 224", "", "56.8 M, 9.8 G; top-1 84.3", "README"},
        {"parameters, FLOPs (MACs)", "BiFormer-STL 224 (Swin-T layout)", "Swin-T 28 M, 4.5 G",
         "28.4 M, 4.6 G; top-1 82.7", "README"},
        {"keys per query", "stages 1 to 3 at 224", "dense 3136 / 784 / 196", "64 / 64 / 64", "configs"},
        {"MACs of the attention matrix", "stages 1 to 3", "dense", "49 / 12.25 / 3.06 times fewer",
         "derived: S^2 / k"}};
    i.notes = {
        "Routing is taken in f32 from the means of x, whose projections are the means of the projections: "
        "rounded "
        "queries and keys do not decide near ties. Ties go to the lower region.",
        "Padded keys of nchw (k = v = 0) are not masked and take their share of the softmax, as in the "
        "authors' code.",
        "topk all is the networks' last stage: qkv without bias, n_win ignored; lepe reads v (nchw) or x "
        "(legacy).",
        "param_routing needs a differentiable routing that the authors' code does not implement, so it is "
        "not offered.",
        "The block around the layer (position convolution, LayerNorm, MLP) is outside. No causal mode.",
        "rows() has a column per place of the padded grid, per pooled key in region order with "
        "kv_downsample. pairs() "
        "are the attention's; lepe reaches floor(kd/2) tokens beside them."};
    i.example = image_problem(2, 15, 14, 32, 2);
    return i;
  }
};

ATTNBENCH_METHOD(BiFormer);

}  // namespace
}  // namespace attnbench
