// Radial attention over video frames: the released code's block mask and the paper's token mask.
// Card: radial_attention.
#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <tuple>

#include "methods/attention_rows.hpp"
#include "methods/block_pattern.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

/// `selected` is given up to this many entries: at 4 MiB its writing still vanishes beside the attention.
constexpr int64_t kMostSelected = int64_t{1} << 20;
/// The token mask is one bit a pair; beyond this many bytes the variant is refused.
constexpr int64_t kMostBitmap = int64_t{4} << 30;

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "radial_attention";
  m.title = "Radial attention";
  m.paper =
      "Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation, NeurIPS "
      "2025";
  m.arxiv = "2506.19852";
  m.family = "static-sparse (softmax)";
  m.summary =
      "Video tokens attend to near frames densely and to far frames in a spatial window that halves whenever "
      "the distance in frames doubles; still farther ones keep one frame in two, four, ... So each band of "
      "distances costs about the same. One static mask serves all heads.";
  m.formula =
      "token = frame * s + position; d = |i - j| frames; kq, kk positions\n"
      "repo_block: S2 = least power of two above s; E(d) = S2 / 2^bitlength(d); w(d) = s for d <= 1, else "
      "max(E(d) decay_factor, b)\n"
      "  tokens: |kq - kk| <= w(d), and none unless floor(split_threshold / E(d)) divides d where E(d) < "
      "split_threshold; all of frame 0 with the sink\n"
      "  blocks: kept iff the columns with more than column_density_min of their rows are more than "
      "block_keep_fraction of the columns with any; text rows and columns are kept\n"
      "paper_token: P = 2^floor(log2(max(d, 1))); |kq - kk| + 1 <= s / P if P <= s, else kq = kk and ceil(P "
      "/ "
      "s) divides d; all of frame 0 with the sink\n"
      "o_i = sum_j softmax_j(scale * q_i . k_j) v_j over the kept pairs";
  m.cost =
      "repo_block: matmul 4 D B H times the pairs of the kept blocks (b^2 nnz, cut at N). paper_token: the "
      "same over the visited blocks of the token mask; published MACs 2 D H times the exact pairs. At most 4 "
      "s n (log2 n - log2 s) pairs for n = f s tokens.";
  ParamSpec frames = spec::param("num_frames", Type::integer, 16, 1, "f: latent frames");
  frames.from_problem = "grid[0]";
  ParamSpec per_frame =
      spec::param("tokens_per_frame", Type::integer, 1590, 1, "s: tokens of a frame in raster order");
  per_frame.from_problem = "grid[1:]";
  ParamSpec decay = spec::param("decay_factor", Type::number, 1.0, 0, "scales the half-width only; above 0");
  ParamSpec sink = spec::param("sink_frames", Type::integer, 1, 0, "1: every query reads all of frame 0");
  sink.max = 1;
  ParamSpec variant =
      spec::param("variant", Type::choice, "repo_block", 0, "the released code's mask or Eq. 4's");
  variant.min = {};
  variant.choices = {"repo_block", "paper_token"};
  ParamSpec density = spec::param("column_density_min", Type::number, 1.0 / 3.0, 0,
                                  "a column of a block counts when a larger share of its rows is kept");
  density.max = 1.0;
  ParamSpec keep = spec::param("block_keep_fraction", Type::number, 0.6, 0,
                               "a block is kept when a larger share of its non-empty columns counts");
  keep.max = 1.0;
  m.params = {
      frames,
      per_frame,
      spec::param("block_size", Type::integer, 128, 1, "b: tokens of a block"),
      decay,
      sink,
      variant,
      spec::param("split_threshold", Type::integer, 128, 1, "widths below it leave out frames (repo_block)"),
      density,
      keep,
      spec::param("text_tokens", Type::integer, 0, 0, "trailing tokens that see and are seen by everything"),
      spec::param("dense_steps", Type::integer, 0, 0, "of a pipeline: its first denoising steps run dense"),
      spec::param("dense_layers", Type::integer, 0, 0, "of a pipeline: its first layers run dense"),
      scale_param()};
  m.kinds = {ProblemKind::sequence, ProblemKind::video};
  m.figures = {
      {"speed-up, training free", "HunyuanVideo, 117 frames, 768x1280, one H100", "dense, 1649 s, 612 PFLOPs",
       "876 s, 339 PFLOPs, 1.88x", "Table 1"},
      {"speed-up, training free", "Wan2.1-14B, 69 frames, 768x1280, one H100", "dense, 1630 s, 560 PFLOPs",
       "917 s, 323 PFLOPs, 1.77x", "Table 1"},
      {"same budget, other masks", "HunyuanVideo", "dense",
       "SVG 340 PFLOPs 1.90x; STA (FA3) 331, 2.29x; PowerAttention 339, 1.65x", "Table 1"},
      {"sparsity / inference / training", "HunyuanVideo, 253 frames, 8 H100", "dense, 797 s, 45.0 h",
       "80.8%, 339 s 2.35x, 16.2 h 2.78x", "Table 2"},
      {"sparsity / inference / training", "HunyuanVideo, 509 frames, 8 H100", "dense, 2895 s, 93.6 h",
       "88.3%, 781 s 3.71x, 21.4 h 4.37x", "Table 2"},
      {"sparsity / inference", "Mochi 1, 331 and 667 frames, 8 H100", "dense, 302 s / 992 s",
       "76.4%, 185 s 1.63x; 85.5%, 386 s 2.57x", "Table 2"},
      {"sparsity / inference / training", "Wan2.1-14B, 161 frames, one H100", "dense, 5735 s, 28.0 h",
       "73.6%, 2847 s 2.01x, 14.5 h 1.93x", "Table 2"},
      {"attention compute", "HunyuanVideo, 509 frames, 720p", "dense", "9.0x fewer FLOPs",
       "Fig. 2, Sec. 4.2"},
      {"decay fit", "HunyuanVideo maps", "exponential", "R^2 > 0.985", "Sec. 5.3"},
      {"attention mean squared error", "Wan2.1-14B", "SVG 4.4e-3, STA 1.5e-2", "3.9e-3", "Sec. 5.3"}};
  m.notes = {
      "The published sparsity is that of repo_block with the sink; Eq. 4 taken literally keeps twice the "
      "width.",
      "The released code demands whole blocks; here the last block may be ragged (chosen), and rows that "
      "keep "
      "no block give 0.",
      "dense_steps and dense_layers belong to a pipeline that replays denoising steps; one layer does not "
      "change with them.",
      "A video problem's tokens are its grid, frame by frame, and text_tokens more; of a sequence N must be "
      "num_frames * tokens_per_frame + text_tokens.",
      "The kept mask is an output, `selected`, up to 2^20 entries. paper_token is a mask of one bit a pair, "
      "which bounds its length."};
  m.example.heads = 2;
  m.example.kind = ProblemKind::video;
  m.example.grid = {9, 12, 20};
  m.example.head_dim = 32;
  return m;
}

struct Geometry {
  int64_t frames, per_frame, block, text;
  double decay;
  bool sink;
  int64_t split;
  double density, keep;
  int64_t tokens() const { return frames * per_frame + text; }
};

/// How much of a frame pair at distance d its mask keeps: |kq - kk| <= half_width; below 0: nothing.
struct FramePair {
  double half_width;
};

/// Variant repo_block, steps 1 to 3.
FramePair block_pair(const Geometry& g, int64_t i, int64_t j) {
  if (g.sink && j == 0) return {static_cast<double>(g.per_frame)};
  const int64_t d = std::abs(i - j);
  const double s2 = std::exp2(static_cast<double>(std::bit_width(static_cast<uint64_t>(g.per_frame))));
  const double e = s2 / std::exp2(static_cast<double>(std::bit_width(static_cast<uint64_t>(d))));
  if (e < static_cast<double>(g.split)) {
    // A period beyond the clip keeps distance 0 alone, whatever its size.
    const double period = std::floor(static_cast<double>(g.split) / e);
    if (std::fmod(static_cast<double>(d), period) != 0) return {-1};
  }
  return {d <= 1 ? static_cast<double>(g.per_frame) : std::max(e * g.decay, static_cast<double>(g.block))};
}

/// Variant paper_token, steps 1 to 3.
FramePair token_pair(const Geometry& g, int64_t i, int64_t j) {
  if (g.sink && j == 0) return {static_cast<double>(g.per_frame)};
  const int64_t d = std::abs(i - j), s = g.per_frame;
  const auto p = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(d, 1))));
  if (p <= s) return {static_cast<double>(s / p - 1)};
  return {d % ((p + s - 1) / s) == 0 ? 0.0 : -1.0};
}

/// Kept blocks of repo_block: rows x columns flags.
std::vector<char> kept_blocks(const Geometry& g) {
  const int64_t b = g.block, s = g.per_frame, span = (s + b - 1) / b;
  const int64_t blocks = (g.tokens() + b - 1) / b, video = g.frames * s / b;
  std::vector<char> kept(static_cast<size_t>(blocks * blocks), 0);
  // A pair of frames is the same as another with the same width and the same places inside their blocks.
  std::map<std::tuple<double, int64_t, int64_t>, std::vector<char>> known;
  for (int64_t i = 0; i < g.frames; ++i)
    for (int64_t j = 0; j < g.frames; ++j) {
      const double w = block_pair(g, i, j).half_width;
      if (w < 0) continue;
      const int64_t row_at = i * s % b, column_at = j * s % b;
      std::vector<char>& part = known[{w, row_at, column_at}];
      if (part.empty()) {
        part.assign(static_cast<size_t>(span * span), 0);
        const auto reach = static_cast<int64_t>(std::min(std::floor(w), static_cast<double>(s)));
        for (int64_t u = 0; u < span; ++u)
          for (int64_t v = 0; v < span; ++v) {
            // Query positions of the block's rows inside the frame.
            const int64_t q0 = std::max<int64_t>(0, u * b - row_at), q1 = std::min(s, (u + 1) * b - row_at);
            const int64_t k0 = std::max<int64_t>(0, v * b - column_at),
                          k1 = std::min(s, (v + 1) * b - column_at);
            int64_t some = 0, many = 0;
            for (int64_t k = k0; k < k1; ++k) {
              const int64_t rows = std::min(q1, k + reach + 1) - std::max(q0, k - reach);
              if (rows <= 0) continue;
              ++some;
              many += static_cast<double>(rows) / static_cast<double>(b) > g.density;
            }
            part[static_cast<size_t>(u * span + v)] =
                static_cast<double>(many) / (static_cast<double>(some) + 1e-9) > g.keep;
          }
      }
      const int64_t row0 = i * s / b, column0 = j * s / b;
      for (int64_t u = 0; u < span; ++u)
        for (int64_t v = 0; v < span; ++v)
          if (part[static_cast<size_t>(u * span + v)])
            kept[static_cast<size_t>((row0 + u) * blocks + column0 + v)] = 1;
    }
  for (int64_t r = 0; r < blocks; ++r)
    for (int64_t c = 0; c < blocks; ++c)
      if (r >= video || c >= video) kept[static_cast<size_t>(r * blocks + c)] = 1;
  return kept;
}

/// Tokens that query token `i` sees under paper_token.
void token_row(const Geometry& g, int64_t i, Intervals& out) {
  const int64_t s = g.per_frame, n = g.tokens(), video = g.frames * s;
  out.clear();
  const auto add = [&out](int64_t begin, int64_t end) {
    if (begin >= end) return;
    if (!out.empty() && out.back().end == begin)
      out.back().end = end;
    else
      out.push_back({begin, end});
  };
  if (i >= video) return add(0, n);
  for (int64_t j = 0; j < g.frames; ++j) {
    const double w = token_pair(g, i / s, j).half_width;
    if (w < 0) continue;
    const auto reach = static_cast<int64_t>(w);
    add(j * s + std::max<int64_t>(0, i % s - reach), j * s + std::min(s, i % s + reach + 1));
  }
  add(video, n);
}

/// The problem as the shared heads form takes it: N tokens in a row.
Problem as_sequence(const Problem& problem, int64_t tokens) {
  Problem p = problem;
  p.kind = ProblemKind::sequence;
  p.grid.clear();
  p.length = tokens;
  p.kv_length = 0;
  return p;
}

class RadialInstance final : public HeadsInstance {
 public:
  RadialInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params,
                 const Geometry& geometry, double scale)
      : HeadsInstance(ctx, info, as_sequence(problem, geometry.tokens()), scale),
        g_(geometry),
        by_token_(params.choice("variant") == "paper_token") {
    if (problem.kind == ProblemKind::video && g_.text == 0) grid_ = problem.grid;
    masked_ = true;
    g_.block = std::min(g_.block, form_.queries);
    if (by_token_)
      list_token_blocks();
    else
      list_kept_blocks(geometry);
    const int64_t side = by_token_ ? form_.queries : pattern_.query_blocks();
    if (side <= kMostSelected / side) selected_ = ctx.allocate(DType::i32, {side, side}, MemoryClass::output);
  }

  void prepare(Context& ctx) override {
    pattern_.upload(ctx, mask_);
    if (by_token_) upload_bits(ctx);
    if (!selected_) return;
    const int64_t side = selected_.dim(0);
    std::vector<int32_t> flags(static_cast<size_t>(side * side), 0);
    Intervals row;
    for (int64_t r = 0; r < side; ++r) {
      int32_t* line = flags.data() + r * side;
      if (by_token_) {
        token_row(g_, r, row);
        for (const Interval& v : row) std::fill(line + v.begin, line + v.end, 1);
      } else {
        for (const int32_t c : pattern_.row(r)) line[c] = 1;
      }
    }
    plan_ = upload(ctx, selected_.shape(), flags);
  }

  void run(Context& ctx) override {
    {
      const auto stage = ctx.stage("attend");
      attention(ctx, call());
    }
    if (!selected_) return;
    const auto stage = ctx.stage("report");
    copy(ctx, plan_, selected_);
  }

  TensorMap outputs() const override {
    TensorMap out{{"o", o_}};
    if (selected_) out["selected"] = selected_;
    return out;
  }

  ClosedForm cost() const override {
    ClosedForm c;
    c.cost = fused_cost(pattern_.visited_pairs());
    c.cost.bytes_read += pattern_.list_bytes();
    if (!by_token_) return c;
    c.cost.bytes_read += form_.queries * bit_bytes();
    c.published_macs = 2 * form_.head_dim * form_.heads * token_pairs_;
    c.published_macs_note = "exact pairs of the token mask; the engine visits whole blocks";
    return c;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = form_.batch;
    set.heads = form_.heads;
    set.same_for_all_heads = true;
    set.queries = set.tokens = form_.queries;
    set.grid = grid_;
    if (by_token_)
      set.row = [g = g_](int64_t, int64_t, int64_t i, Intervals& out) { token_row(g, i, out); };
    else
      set.row = [pattern = pattern_, n = form_.keys](int64_t, int64_t, int64_t i, Intervals& out) {
        pattern.intervals(i, n, out);
      };
    return set;
  }

 private:
  int64_t bit_bytes() const { return (form_.keys + 7) / 8; }

  void list_kept_blocks(const Geometry& geometry) {
    const std::vector<char> kept = kept_blocks(geometry);
    // A block beyond the clip is one block; the mask above still rounds by the size that was asked for.
    pattern_ = BlockPattern(form_.queries, form_.keys, g_.block);
    const int64_t blocks = pattern_.query_blocks();
    std::vector<int64_t> row;
    for (int64_t r = 0; r < blocks; ++r) {
      row.clear();
      for (int64_t c = 0; c < blocks; ++c)
        if (kept[static_cast<size_t>(r * blocks + c)]) row.push_back(c);
      pattern_.add_row(row);
    }
  }

  void list_token_blocks() {
    const int64_t n = form_.queries, b = g_.block;
    if (n * bit_bytes() > kMostBitmap)
      throw Unsupported("radial_attention: the token mask of paper_token takes " +
                        std::to_string(n * bit_bytes() >> 20) + " MiB at " + std::to_string(n) +
                        " tokens, more than " + std::to_string(kMostBitmap >> 20) + "; use repo_block");
    pattern_ = BlockPattern(n, n, b);
    const int64_t blocks = pattern_.query_blocks();
    std::vector<int64_t> inside(static_cast<size_t>(blocks)), row;
    std::vector<bool> partial;
    Intervals seen;
    for (int64_t r = 0; r < blocks; ++r) {
      std::fill(inside.begin(), inside.end(), 0);
      const int64_t first = r * b, last = std::min(n, first + b);
      for (int64_t i = first; i < last; ++i) {
        token_row(g_, i, seen);
        for (const Interval& v : seen) {
          token_pairs_ += v.end - v.begin;
          for (int64_t c = v.begin / b; c * b < v.end; ++c)
            inside[static_cast<size_t>(c)] += std::min(v.end, (c + 1) * b) - std::max(v.begin, c * b);
        }
      }
      row.clear(), partial.clear();
      for (int64_t c = 0; c < blocks; ++c) {
        const int64_t pairs = inside[static_cast<size_t>(c)];
        if (pairs == 0) continue;
        row.push_back(c);
        partial.push_back(pairs < (last - first) * (std::min(n, (c + 1) * b) - c * b));
      }
      pattern_.add_row(row, partial);
    }
  }

  void upload_bits(Context& ctx) {
    const int64_t n = form_.queries, width = bit_bytes();
    std::vector<uint8_t> bits(static_cast<size_t>(n * width), 0);
#pragma omp parallel num_threads(ctx.threads())
    {
      Intervals seen;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < n; ++i) {
        uint8_t* line = bits.data() + i * width;
        token_row(g_, i, seen);
        for (const Interval& v : seen)
          for (int64_t j = v.begin; j < v.end;) {
            if (j % 8 == 0 && j + 8 <= v.end) {
              line[j / 8] = 0xff;
              j += 8;
            } else {
              line[j / 8] = static_cast<uint8_t>(line[j / 8] | (1u << (j % 8)));
              ++j;
            }
          }
      }
    }
    mask_.rule.bitmap = upload(ctx, {1, 1, n, width}, bits);
  }

  Geometry g_;
  bool by_token_;
  BlockPattern pattern_;
  int64_t token_pairs_ = 0;
  Tensor selected_, plan_;
};

class RadialAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    if (problem.causal) throw Unsupported("radial_attention: the mask has no causal form");
    require_kind(info(), problem);
    const Geometry g{params.integer("num_frames"),        params.integer("tokens_per_frame"),
                     params.integer("block_size"),        params.integer("text_tokens"),
                     params.number("decay_factor"),       params.integer("sink_frames") == 1,
                     params.integer("split_threshold"),   params.number("column_density_min"),
                     params.number("block_keep_fraction")};
    if (!(g.decay > 0))
      throw UsageError("radial_attention.decay_factor: above 0 is wanted, not " + std::to_string(g.decay));
    if (problem.kind == ProblemKind::sequence && problem.length != g.tokens())
      throw UsageError("radial_attention: num_frames " + std::to_string(g.frames) +
                       " times tokens_per_frame " + std::to_string(g.per_frame) + " and text_tokens " +
                       std::to_string(g.text) + " make " + std::to_string(g.tokens()) +
                       " tokens, and problem.length is " + std::to_string(problem.length));
    if (problem.kv_length && problem.kv_length != g.tokens())
      throw Unsupported("radial_attention: queries and keys are the same tokens, so kv_length " +
                        std::to_string(problem.kv_length) + " cannot differ from " +
                        std::to_string(g.tokens()));
    require_extent(info(), problem.head_dim, "head_dim (the method is given q, k and v)");
    return std::make_unique<RadialInstance>(ctx, info(), problem, params, g,
                                            scale_of(params, problem.head_dim));
  }
};
ATTNBENCH_METHOD(RadialAttention);

}  // namespace
}  // namespace attnbench
