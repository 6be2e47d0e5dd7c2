// FreeSwim: inward sliding-window attention beside full attention, whose cross-attention overrides the window
// path's, and the cache of that across denoising steps. Card: freeswim.
#include <algorithm>
#include <cmath>

#include "kernels/attention/neighborhood.hpp"
#include "kernels/layout/layout.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

/// Tokens of a block of the window mask: what tensor-core kernels take.
constexpr int64_t kBlock = 128;

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "freeswim";
  m.title = "FreeSwim (inward windows, cross-attention override, cache)";
  m.paper =
      "FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free Ultra-High-Resolution "
      "Video "
      "Generation, 2025";
  m.arxiv = "2511.14712";
  m.family = "window (softmax)";
  m.summary =
      "A video layer on two paths: one attends in a spatial window that is shifted inward at the borders and "
      "spans all frames, the other to everything. The text cross-attention of the full path replaces that of "
      "the window path; the cached form reuses it for cache_steps denoising steps and leaves the full path "
      "out.";
  m.formula =
      "token = (t, h, w); key (t', h', w') is visible iff h' and w' lie in windows of 2 half + 1 around h "
      "and "
      "w, shifted inward at the borders (inward: false: cut there); all frames\n"
      "scale = sqrt(ln(2 n0) / ln(n0) / D), n0 = train_tokens_per_frame (log_scale: false: 1 / sqrt(D)), for "
      "both paths\n"
      "o_0 = softmax(scale q_0 k_0^T on the window) v_0;  o_1 = softmax(scale q_1 k_1^T) v_1\n"
      "c = softmax(qc_1 kc^T / sqrt(D)) vc for both paths\n"
      "cache: conditional pass: as above where cache_steps divides the step, whose c is kept; else o_1 = o_0 "
      "and c as kept. Unconditional pass: o_1 = o_0, c from qc_0\n"
      "window_only, full_only: both paths by windows or in full, each with its own cross-attention";
  m.cost =
      "N = T Hg Wg, Wd = T min(2 dh + 1, Hg) min(2 dw + 1, Wg): window 4 H D N Wd exactly (published MACs), "
      "4 "
      "H D over the pairs of the visited blocks when run; full 4 H D N^2; cross 4 H D N S; copies of o_0 and "
      "c. Self-attention of a guided step against full attention: 1 + Wd / N without, (2 Wd / N + 1 / "
      "cache_steps) / 2 with the cache.";
  ParamSpec grid = spec::param("grid", Type::list, Value(Value::List{Value(21), Value(67), Value(120)}), 1,
                               "[T, Hg, Wg] in tokens");
  grid.from_problem = "grid";
  ParamSpec mode = spec::param("mode", Type::choice, "nocache", {}, "which paths run, and how");
  mode.choices = {"nocache", "cache", "window_only", "full_only"};
  m.params = {
      grid,
      spec::param("half_height", Type::integer, 15, 0, "dh: half extent in tokens; 480 rows / 16 / 2"),
      spec::param("half_width", Type::integer, 26, 0, "dw: half extent in tokens; 832 columns / 16 / 2"),
      spec::param("inward", Type::boolean, true, {}, "shift windows inward at the borders"),
      spec::param("train_tokens_per_frame", Type::integer, 1560, 2, "n0 of the scale; 30 x 52"),
      spec::param("log_scale", Type::boolean, true, {}, "false: 1 / sqrt(D)"),
      mode,
      spec::param("cache_steps", Type::integer, 2, 1, "steps between full passes (mode cache)"),
      spec::param("text_tokens", Type::integer, 512, 1, "S"),
      spec::param("guidance", Type::boolean, true, {}, "the unconditional pass, too (mode cache)"),
      spec::param("num_steps", Type::integer, 35, 1, "denoising steps (mode cache)")};
  m.kinds = {ProblemKind::video};
  m.figures = {
      {"cross-attention caching", "Wan2.1, high resolution", "the same method without cache",
       "over 2x faster", "README, key highlights"},
      {"memory", "1080p, 81 frames, 1.3B", "", "fits one 24 GB GPU", "README, hardware tips"},
      {"self-attention work, derived", "grid 21x67x120, half 15 x 26", "full attention with guidance",
       "1.204 without, 0.454 with the cache of 2 steps, 0.304 of 5", "closed form of the code"}};
  m.notes = {
      "Modes other than cache are one step and one pass: inputs [2, N, H, D] (the published layout); "
      "guidance "
      "and num_steps scale a pipeline, not this call.",
      "window_only and full_only keep every path's own cross-attention: full_only with log_scale false is "
      "the "
      "unmodified host layer (chosen).",
      "Only mode nocache and cache need the two paths as batch 2; the ablations take any number of paths.",
      "Queries and keys are visited in order of small spatial columns over all frames, so a block of 128 "
      "tokens is as narrow in space as can be."};
  m.example.kind = ProblemKind::video;
  m.example.batch = 2;
  m.example.grid = {1, 34, 57};  // beyond the default window on both axes
  m.example.heads = 1;
  m.example.head_dim = 16;
  return m;
}

struct Swim {
  enum class Mode : uint8_t { nocache, cache, window_only, full_only } mode;
  int64_t paths, frames, height, width, heads, head_dim, half_height, half_width, text;
  bool inward;
  double scale;
  int64_t cache_steps, steps, passes;
  int64_t tokens() const { return frames * height * width; }
  bool windows() const { return mode != Mode::full_only; }
};

/// Tokens in columns: small spatial tiles, each over all frames, about kBlock tokens a tile.
std::vector<int32_t> column_order(const Swim& s) {
  const double area = std::max(1.0, static_cast<double>(kBlock) / static_cast<double>(s.frames));
  const int64_t th = std::clamp<int64_t>(std::llround(std::sqrt(area)), 1, s.height);
  const int64_t tw = std::clamp<int64_t>(std::llround(area / static_cast<double>(th)), 1, s.width);
  std::vector<int32_t> order;
  order.reserve(static_cast<size_t>(s.tokens()));
  for (int64_t h0 = 0; h0 < s.height; h0 += th)
    for (int64_t w0 = 0; w0 < s.width; w0 += tw)
      for (int64_t t = 0; t < s.frames; ++t)
        for (int64_t h = h0; h < std::min(h0 + th, s.height); ++h)
          for (int64_t w = w0; w < std::min(w0 + tw, s.width); ++w)
            order.push_back(static_cast<int32_t>((t * s.height + h) * s.width + w));
  return order;
}

class FreeSwimInstance final : public Instance {
 public:
  FreeSwimInstance(Context& ctx, const Swim& swim, DType dtype) : s_(swim), dtype_(dtype) {
    const int64_t n = s_.tokens(), h = s_.heads, d = s_.head_dim;
    const bool cached = s_.mode == Swim::Mode::cache;
    const Shape q = cached ? Shape{s_.steps, s_.passes, s_.paths, n, h, d} : Shape{s_.paths, n, h, d};
    const Shape text = cached ? Shape{s_.passes, 1, s_.text, h, d} : Shape{1, s_.text, h, d};
    const auto add = [&](const char* name, const Shape& shape, const char* meaning) {
      input_specs_.push_back({name, shape, dtype, Init::normal(), false, meaning});
    };
    add("q", q, "self-attention queries [2, N, H, D]: window path, full path");
    add("k", q, "self-attention keys");
    add("v", q, "self-attention values");
    add("qc", q, "cross-attention queries");
    add("kc", text, "text keys [1, S, H, D]");
    add("vc", text, "text values");
    o_ = ctx.allocate(dtype, q, MemoryClass::output);
    c_ = ctx.allocate(dtype, q, MemoryClass::output);
    ElementRule& r = rule_;
    r.rank = 3;
    r.grid = {s_.frames, s_.height, s_.width};
    r.window = {s_.frames, 2 * s_.half_height + 1, 2 * s_.half_width + 1};
    for (const size_t a : {1, 2}) {
      r.cut_axis[a] = !s_.inward;
      // Shifted inward, a window as long as its axis is the whole axis.
      if (s_.inward) r.window[a] = std::min(r.window[a], r.grid[a]);
    }
  }

  void prepare(Context& ctx) override {
    if (!s_.windows()) return;
    if (ctx.device() == DeviceKind::cpu) {
      mask_ = host_mask();
      return;
    }
    const BlockMask& host = host_mask();
    mask_ = host;
    const auto move = [&ctx](Tensor& t) {
      const Tensor there = ctx.allocate(t.dtype(), t.shape());
      if (t.numel() > 0)
        ctx.backend().copy_bytes(there.raw(), there.device(), t.raw(), DeviceKind::cpu,
                                 static_cast<size_t>(t.nbytes()));
      t = there;
    };
    for (BlockList* l : {&mask_.full, &mask_.partial}) move(l->begin), move(l->count), move(l->index);
    move(mask_.q_order);
    mask_.k_order = mask_.q_order;
  }

  void run(Context& ctx) override {
    for (int64_t step = 0; step < s_.steps; ++step)
      for (int64_t pass = 0; pass < s_.passes; ++pass) run_pass(ctx, step, pass);
  }

  TensorMap outputs() const override { return {{"o", o_}, {"c", c_}}; }

  ClosedForm cost() const override {
    const Counts counts = count();
    const int64_t n = s_.tokens(), e = static_cast<int64_t>(size_of(dtype_));
    const int64_t rows = n * s_.heads * s_.head_dim * e;  // bytes of one path
    const auto attend = [&](int64_t calls, int64_t pairs, int64_t keys, int64_t mask_bytes) {
      Cost c;
      c.matmul = calls * 4 * s_.heads * s_.head_dim * pairs;
      c.elementwise = calls * 4 * s_.heads * pairs;
      c.special = calls * s_.heads * pairs;
      c.bytes_read = calls * (rows + 2 * keys * s_.heads * s_.head_dim * e + mask_bytes);
      c.bytes_written = calls * rows;
      return c;
    };
    ClosedForm f;
    if (counts.windows > 0) {
      const Visits& v = visits();
      f.cost += attend(counts.windows, v.pairs, n, v.mask_bytes);
    }
    f.cost += attend(counts.full, n * n, n, 0);
    f.cost += attend(counts.cross, n * s_.text, s_.text, 0);
    f.cost.bytes_read += counts.copies * rows;
    f.cost.bytes_written += counts.copies * rows;
    f.published_macs = 2 * s_.heads * s_.head_dim *
                       (counts.windows * window_pairs() + counts.full * n * n + counts.cross * n * s_.text);
    f.published_macs_note = "of the whole call, all steps and paths: exact pairs of the windows";
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = s_.paths;
    set.heads = s_.heads;
    set.queries = set.tokens = s_.tokens();
    set.grid = {s_.frames, s_.height, s_.width};
    set.same_for_all_heads = true;
    set.same_for_all_batches = s_.mode == Swim::Mode::window_only || s_.mode == Swim::Mode::full_only;
    set.row = [s = s_, rule = rule_](int64_t b, int64_t, int64_t i, Intervals& out) {
      if (!windowed(s, b)) {
        out = {{0, s.tokens()}};
        return;
      }
      out.clear();
      const auto x = grid_coordinates(rule, i);
      const AxisWindow h = axis_window(rule, 1, x[1]), w = axis_window(rule, 2, x[2]);
      for (int64_t t = 0; t < s.frames; ++t)
        for (int64_t y = h.first; y < h.end; ++y) {
          const int64_t line = (t * s.height + y) * s.width;
          if (!out.empty() && out.back().end == line + w.first)
            out.back().end = line + w.end;
          else
            out.push_back({line + w.first, line + w.end});
        }
    };
    return set;
  }
  int64_t keys(int64_t) const override { return s_.tokens(); }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    return attention_rows(ctx, self_call(0, 0, b, windowed(s_, b)), 0, h, q_begin, q_end, out);
  }
  std::optional<RowStats> row_stats(Context& ctx) override {
    const auto whole = [&] { return ctx.allocate(DType::f32, {s_.paths, s_.heads, s_.tokens()}); };
    RowStats all{whole(), whole(), whole()};
    for (int64_t b = 0; b < s_.paths; ++b) {
      const bool windows = windowed(s_, b);
      const RowStats one =
          attention_row_stats(ctx, self_call(0, 0, b, windows), [&](int64_t, int64_t, int64_t i) {
            if (!windows) return s_.tokens();
            const auto x = grid_coordinates(rule_, i);
            return s_.frames * axis_window(rule_, 1, x[1]).count() * axis_window(rule_, 2, x[2]).count();
          });
      copy(ctx, one.entropy, all.entropy.slice(0, b, b + 1));
      copy(ctx, one.visible_keys, all.visible_keys.slice(0, b, b + 1));
      copy(ctx, one.row_max_probability, all.row_max_probability.slice(0, b, b + 1));
    }
    return all;
  }

 private:
  struct Counts {
    int64_t windows = 0, full = 0, cross = 0, copies = 0;
  };
  struct Visits {
    int64_t pairs = 0, mask_bytes = 0;
  };

  /// Whether path b attends in windows.
  static bool windowed(const Swim& s, int64_t b) {
    return s.mode == Swim::Mode::window_only || (s.mode != Swim::Mode::full_only && b == 0);
  }
  bool refreshes(int64_t step, int64_t pass) const {
    return s_.mode == Swim::Mode::nocache || (pass == 0 && step % s_.cache_steps == 0);
  }

  /// [N, H, D] of one path.
  Tensor part(const Tensor& t, int64_t step, int64_t pass, int64_t path) const {
    return s_.mode == Swim::Mode::cache ? t.select(0, step).select(0, pass).select(0, path)
                                        : t.select(0, path);
  }
  /// [tokens, H, D] as [1, H, tokens, D].
  Tensor heads(const Tensor& t) const {
    return t.reshape({1, t.dim(0), s_.heads, s_.head_dim}).transpose(1, 2);
  }

  AttentionArgs self_call(int64_t step, int64_t pass, int64_t path, bool window) const {
    AttentionArgs a;
    a.q = heads(part(input("q"), step, pass, path));
    a.k = heads(part(input("k"), step, pass, path));
    a.v = heads(part(input("v"), step, pass, path));
    a.o = heads(part(o_, step, pass, path));
    a.scale = static_cast<float>(s_.scale);
    if (window) a.mask = &mask_;
    return a;
  }
  /// Cross-attention of path `from`, into path `into`'s place.
  AttentionArgs cross_call(int64_t step, int64_t pass, int64_t from, int64_t into) const {
    const bool cached = s_.mode == Swim::Mode::cache;
    AttentionArgs a;
    a.q = heads(part(input("qc"), step, pass, from));
    a.k = heads(cached ? input("kc").select(0, pass).select(0, 0) : input("kc").select(0, 0));
    a.v = heads(cached ? input("vc").select(0, pass).select(0, 0) : input("vc").select(0, 0));
    a.o = heads(part(c_, step, pass, into));
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s_.head_dim)));
    return a;
  }

  void run_pass(Context& ctx, int64_t step, int64_t pass) {
    if (s_.mode == Swim::Mode::window_only || s_.mode == Swim::Mode::full_only) {
      for (int64_t p = 0; p < s_.paths; ++p) {
        {
          const auto stage = ctx.stage(s_.windows() ? "window" : "full");
          attention(ctx, self_call(step, pass, p, s_.windows()));
        }
        const auto stage = ctx.stage("cross");
        attention(ctx, cross_call(step, pass, p, p));
      }
      return;
    }
    {
      const auto stage = ctx.stage("window");
      attention(ctx, self_call(step, pass, 0, true));
    }
    const Tensor o0 = part(o_, step, pass, 0), o1 = part(o_, step, pass, 1), c0 = part(c_, step, pass, 0),
                 c1 = part(c_, step, pass, 1);
    if (refreshes(step, pass)) {
      {
        const auto stage = ctx.stage("full");
        attention(ctx, self_call(step, pass, 1, false));
      }
      {
        const auto stage = ctx.stage("cross");
        attention(ctx, cross_call(step, pass, 1, 1));
      }
      const auto stage = ctx.stage("override");
      transpose_copy(ctx, {c1, c0});
      return;
    }
    if (pass > 0) {
      {
        const auto stage = ctx.stage("cross");
        attention(ctx, cross_call(step, pass, 0, 0));
      }
      const auto stage = ctx.stage("override");
      transpose_copy(ctx, {o0, o1});
      transpose_copy(ctx, {c0, c1});
      return;
    }
    const auto stage = ctx.stage("cached");
    const Tensor kept = part(c_, step - step % s_.cache_steps, pass, 1);
    transpose_copy(ctx, {o0, o1});
    transpose_copy(ctx, {kept, c0});
    transpose_copy(ctx, {kept, c1});
  }

  /// Calls of one run; mirrors run_pass.
  Counts count() const {
    Counts c;
    if (s_.mode == Swim::Mode::window_only || s_.mode == Swim::Mode::full_only) {
      (s_.windows() ? c.windows : c.full) = s_.paths;
      c.cross = s_.paths;
      return c;
    }
    for (int64_t step = 0; step < s_.steps; ++step)
      for (int64_t pass = 0; pass < s_.passes; ++pass) {
        const bool fresh = refreshes(step, pass);
        ++c.windows;
        c.full += fresh;
        c.cross += fresh || pass > 0;
        c.copies += fresh ? 1 : pass > 0 ? 2 : 3;
      }
    return c;
  }

  /// Exact pairs of one head of the window path.
  int64_t window_pairs() const {
    int64_t pairs = s_.frames * s_.frames;
    for (const int a : {1, 2}) {
      int64_t axis = 0;
      for (int64_t x = 0; x < rule_.grid[static_cast<size_t>(a)]; ++x)
        axis += axis_window(rule_, a, x).count();
      pairs *= axis;
    }
    return pairs;
  }

  const BlockMask& host_mask() const {
    if (!host_mask_) {
      host_ = std::make_unique<Context>(cpu_backend(), 1);
      const std::vector<int32_t> order = column_order(s_);
      const Tensor tokens = host_->allocate(DType::i32, {static_cast<int64_t>(order.size())});
      std::copy(order.begin(), order.end(), tokens.data<int32_t>());
      host_mask_ = make_block_mask(*host_, rule_, s_.tokens(), s_.tokens(), kBlock, kBlock, tokens, tokens);
    }
    return *host_mask_;
  }
  const Visits& visits() const {
    if (!visits_) {
      const BlockMask& m = host_mask();
      Visits v;
      for (const BlockList* l : {&m.full, &m.partial}) {
        v.mask_bytes += l->begin.nbytes() + l->count.nbytes() + l->index.nbytes();
        for (int64_t r = 0; r < l->count.dim(2); ++r) {
          const int64_t begin = l->begin.data<int32_t>()[r], count = l->count.data<int32_t>()[r];
          for (int64_t x = begin; x < begin + count; ++x)
            v.pairs += extent(r) * extent(l->index.data<int32_t>()[x]);
        }
      }
      v.mask_bytes += 2 * m.q_order.nbytes();
      visits_ = v;
    }
    return *visits_;
  }
  int64_t extent(int64_t block) const { return std::min(kBlock, s_.tokens() - block * kBlock); }

  Swim s_;
  DType dtype_;
  ElementRule rule_;
  Tensor o_, c_;
  BlockMask mask_;
  // The lists on the host: made when first asked for, as closed forms want them before prepare().
  mutable std::unique_ptr<Context> host_;
  mutable std::optional<BlockMask> host_mask_;
  mutable std::optional<Visits> visits_;
};

class FreeSwim final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("freeswim: the windows have no causal form");
    require_extent(info(), problem.heads, "heads");
    require_extent(info(), problem.head_dim, "head_dim (the method is given q, k and v)");
    if (problem.kv_heads_or_heads() != problem.heads)
      throw Unsupported("freeswim: every head has keys of its own; kv_heads " +
                        std::to_string(problem.kv_heads) + " is not heads " + std::to_string(problem.heads));
    if (problem.kv_length && problem.kv_length != problem.tokens())
      throw Unsupported("freeswim: queries and keys stand on one grid; text_tokens sets the text's length");
    std::vector<int64_t> grid;
    for (const Value& v : params.value("grid").as_list()) grid.push_back(static_cast<int64_t>(v.as_double()));
    if (grid.size() != 3)
      throw UsageError("freeswim.grid: [T, Hg, Wg] is wanted, not " + params.value("grid").str());
    static const std::vector<std::string> modes{"nocache", "cache", "window_only", "full_only"};
    Swim s{};
    s.mode =
        static_cast<Swim::Mode>(std::find(modes.begin(), modes.end(), params.choice("mode")) - modes.begin());
    s.paths = problem.batch;
    const bool two = s.mode == Swim::Mode::nocache || s.mode == Swim::Mode::cache;
    if (two && s.paths != 2)
      throw Unsupported("freeswim: mode " + params.choice("mode") +
                        " runs two paths, the window's and the full one's, as batch 2, not " +
                        std::to_string(s.paths));
    s.frames = grid[0], s.height = grid[1], s.width = grid[2];
    s.heads = problem.heads, s.head_dim = problem.head_dim;
    s.half_height = params.integer("half_height"), s.half_width = params.integer("half_width");
    s.inward = params.boolean("inward");
    // Half extents beyond the axis see all of it; cut, they cannot overflow.
    s.half_height = std::min(s.half_height, s.height), s.half_width = std::min(s.half_width, s.width);
    s.text = params.integer("text_tokens");
    const auto n0 = static_cast<double>(params.integer("train_tokens_per_frame"));
    s.scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
    if (params.boolean("log_scale")) s.scale *= std::sqrt(std::log(2 * n0) / std::log(n0));
    s.cache_steps = params.integer("cache_steps");
    const bool cached = s.mode == Swim::Mode::cache;
    s.steps = cached ? params.integer("num_steps") : 1;
    s.passes = cached && params.boolean("guidance") ? 2 : 1;
    return std::make_unique<FreeSwimInstance>(ctx, s, problem.dtype);
  }
};
ATTNBENCH_METHOD(FreeSwim);

}  // namespace
}  // namespace attnbench
