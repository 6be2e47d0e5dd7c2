#include "methods/window_layer.hpp"

#include <algorithm>

#include "kernels/core/error.hpp"

namespace attnbench::vision {

namespace {

// What Swin adds to the score of a pair from different regions; e^-100 is far below f32's resolution of 1,
// but the term is finite, so a row of nothing but such pairs still attends to them.
constexpr float kCrossRegion = -100.0f;

class WindowLayer final : public LayerInstance {
 public:
  WindowLayer(Context& ctx, const LayerShape& shape, const WindowLayerOptions& options)
      : LayerInstance(ctx, shape),
        options_(options),
        partition_({shape.grid_h, shape.grid_w, options.win, options.shift}, shape.batch) {
    const int64_t c = s_.channels, side = 2 * options_.win - 1;
    add_linear(weight_specs_, "qkv", 3 * c, c, options_.qkv_bias, s_.dtype,
               "projections, rows (q|k|v, head, d)");
    add_linear(weight_specs_, "proj", c, c, true, s_.dtype, "output projection");
    if (options_.rel_pos_bias)
      weight_specs_.push_back({"rel_pos_bias_table",
                               {side * side, s_.heads},
                               s_.dtype,
                               Init::trunc_normal(0.02),
                               false,
                               "score bias by offset, row (yq-yk+win-1)(2 win-1) + (xq-xk+win-1)"});
    sets_ = partition_.label_sets(set_of_token_);
  }

  void prepare(Context& ctx) override {
    partition_.upload(ctx);
    if (!options_.rebuild_mask) build_biases(ctx);
  }
  bool capturable() const override { return !options_.rebuild_mask; }

  ClosedForm cost() const override {
    const WindowGrid& g = partition_.grid();
    const int64_t c = s_.channels, np = g.padded_tokens(), area = g.area(), slots = partition_.slots();
    const int64_t kept = options_.crop_before_proj ? s_.tokens() : np;  // per image, in the output projection
    const DType t = s_.dtype;
    ClosedForm f;
    f.cost = linear_cost(slots, c, 3 * c, options_.qkv_bias, t) + linear_cost(s_.batch * kept, c, c, true, t);
    for (const Partition::Group& group : partition_.groups()) {
      const int64_t bias = options_.rel_pos_bias                 ? s_.heads * area * area
                           : group.cut_rows || group.cut_columns ? area * area
                                                                 : 0;
      f.cost += attend_cost(group.windows, s_.heads, area, area, s_.head_dim, t, bias);
    }
    if (!partition_.identity()) f.cost += move_cost(slots, c, t) + move_cost(s_.rows(), c, t);
    f.published_macs = 3 * np * c * c + 2 * np * area * c + kept * c * c;
    f.published_macs_note =
        options_.crop_before_proj ? "3 Np C^2 + 2 Np w^2 C + N C^2" : "4 Np C^2 + 2 Np w^2 C";
    f.parameters = 4 * c * c + c + (options_.qkv_bias ? 3 * c : 0);
    if (options_.rel_pos_bias) f.parameters += (2 * g.win - 1) * (2 * g.win - 1) * s_.heads;
    return f;
  }

  int64_t keys(int64_t) const override { return partition_.grid().padded_tokens(); }

 protected:
  void forward(Context& ctx, Trace* trace) override {
    const int64_t c = s_.channels, slots = partition_.slots();
    if (options_.rebuild_mask) {
      auto stage = ctx.stage("mask");
      build_biases(ctx);
    }
    Tensor x = tokens();
    if (!partition_.identity()) {
      auto stage = ctx.stage("partition");
      const Tensor by_slot = workspace(ctx, slots, c);
      partition_.to_slots(ctx, x, by_slot);
      x = by_slot;
    }
    Tensor qkv = workspace(ctx, slots, 3 * c);
    {
      auto stage = ctx.stage("project");
      project(ctx, "qkv", x, qkv);
    }
    x = {};  // gives the slot copy back before the next buffer is taken
    Tensor o = workspace(ctx, slots, c);
    {
      auto stage = ctx.stage("attend");
      for (size_t g = 0; g < partition_.groups().size(); ++g) attend_group(ctx, g, qkv, o, trace);
    }
    qkv = {};
    // Without padding the projection commutes with the way back, so it writes straight into the output.
    const bool project_last = !partition_.grid().padded() || options_.crop_before_proj;
    if (project_last && !partition_.identity()) {
      auto stage = ctx.stage("partition");
      const Tensor by_token = workspace(ctx, s_.rows(), c);
      partition_.to_tokens(ctx, o, by_token);
      o = by_token;
    }
    if (project_last) {
      auto stage = ctx.stage("out");
      project(ctx, "proj", o, out_rows());
      return;
    }
    const Tensor y = workspace(ctx, slots, c);
    {
      auto stage = ctx.stage("out");
      project(ctx, "proj", o, y);
    }
    auto stage = ctx.stage("partition");
    partition_.to_tokens(ctx, y, out_rows());
  }

  Place place(int64_t b, int64_t h, int64_t i) const override {
    const Partition::Slot slot = partition_.slot_of(b, i);
    const size_t g = partition_.group_of(slot.window);
    return {g, slot.window - partition_.groups()[g].first_window, h, slot.row};
  }
  int64_t key_column(int64_t b, int64_t, int64_t i, int64_t j) const override {
    return partition_.padded_position(partition_.slot_of(b, i).window, j);
  }
  int64_t visible_keys(int64_t, int64_t i) const override {
    const Partition::Slot slot = partition_.slot_of(0, i);
    const Partition::Group& g = partition_.groups()[partition_.group_of(slot.window)];
    const int label = partition_.label(g, slot.row);
    int64_t n = 0;
    for (int64_t j = 0; j < partition_.grid().area(); ++j) n += partition_.label(g, j) == label;
    return n;
  }
  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    return [sets = sets_, set_of = set_of_token_](int64_t, int64_t, int64_t i, Intervals& out) {
      out = (*sets)[static_cast<size_t>(set_of[static_cast<size_t>(i)])];
    };
  }

 private:
  void attend_group(Context& ctx, size_t index, const Tensor& qkv, const Tensor& o, Trace* trace) const {
    const Partition::Group& g = partition_.groups()[index];
    const int64_t area = partition_.grid().area(), h = s_.heads, d = s_.head_dim,
                  first = g.first_window * area;
    AttentionArgs a;
    a.q = heads_view(qkv, first, g.windows, area, 0, h, d);
    a.k = heads_view(qkv, first, g.windows, area, 1, h, d);
    a.v = heads_view(qkv, first, g.windows, area, 2, h, d);
    a.o = heads_view(o, first, g.windows, area, 0, h, d);
    a.scale = s_.scale;
    a.bias.dense = biases_[index];
    attend(ctx, a, trace);
  }

  /// One additive term per group, [1, 1 or H, w^2, w^2], none where neither mask nor table adds anything.
  void build_biases(Context& ctx) {
    const int64_t win = partition_.grid().win, area = win * win, side = 2 * win - 1;
    const int64_t heads = options_.rel_pos_bias ? s_.heads : 1;
    std::vector<float> table;
    if (options_.rel_pos_bias) {
      const Tensor& t = weight("rel_pos_bias_table");
      std::vector<char> bytes(static_cast<size_t>(t.nbytes()));
      copy(ctx, t, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), bytes.data()));
      ctx.backend().synchronize();
      table.resize(static_cast<size_t>(t.numel()));
      convert(bytes.data(), t.dtype(), table.data(), DType::f32, t.numel());
    }
    biases_.clear();
    std::vector<float> values(static_cast<size_t>(heads * area * area));
    for (const Partition::Group& g : partition_.groups()) {
      if (!options_.rel_pos_bias && !g.cut_rows && !g.cut_columns) {
        biases_.emplace_back();
        continue;
      }
      auto at = values.begin();
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < area; ++i)
          for (int64_t j = 0; j < area; ++j) {
            float v = 0.0f;
            if (options_.rel_pos_bias) {
              const int64_t dy = i / win - j / win + win - 1, dx = i % win - j % win + win - 1;
              v = table[static_cast<size_t>((dy * side + dx) * s_.heads + h)];
            }
            if (partition_.label(g, i) != partition_.label(g, j)) v += kCrossRegion;
            *at++ = v;
          }
      biases_.push_back(upload(ctx, {1, heads, area, area}, values));
    }
  }

  WindowLayerOptions options_;
  Partition partition_;
  std::vector<Tensor> biases_;  ///< by group
  std::shared_ptr<const std::vector<Intervals>> sets_;
  std::vector<int32_t> set_of_token_;
};

}  // namespace

std::vector<ParamSpec> window_params(int64_t default_shift) {
  return {spec::integer("win", 7, 1, "w: side of a window"),
          spec::integer("shift", default_shift, 0, "cyclic shift t, below win; 0: none"),
          spec::boolean("rel_pos_bias", false, "adds the relative-position table to the scores"),
          spec::boolean("clamp_window", true,
                        "min(Hg, Wg) <= win: the window becomes min(Hg, Wg) and the shift 0 (Swin's rule)"),
          spec::boolean("rebuild_mask", false, "rebuild the shift mask in every call, not once in prepare")};
}

WindowLayerOptions window_options(const MethodInfo& info, const LayerShape& shape, const Params& params) {
  WindowLayerOptions o;
  o.win = params.integer("win");
  o.shift = params.integer("shift");
  if (o.shift >= o.win)
    throw UsageError(info.id + ".shift: below win = " + std::to_string(o.win) + " is wanted, not " +
                     std::to_string(o.shift));
  const int64_t side = std::min(shape.grid_h, shape.grid_w);
  if (params.boolean("clamp_window") && side <= o.win) o.win = side, o.shift = 0;
  o.qkv_bias = params.boolean("qkv_bias");
  o.rel_pos_bias = params.boolean("rel_pos_bias");
  o.rebuild_mask = params.boolean("rebuild_mask");
  return o;
}

std::unique_ptr<Instance> make_window_layer(Context& ctx, const LayerShape& shape,
                                            const WindowLayerOptions& options) {
  return std::make_unique<WindowLayer>(ctx, shape, options);
}

}  // namespace attnbench::vision
