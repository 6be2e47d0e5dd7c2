#include "methods/neighborhood.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/attention/merge.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {

namespace {

ParamSpec list_param(const char* name, std::string meaning, double least) {
  ParamSpec s;
  s.name = name;
  s.type = ParamSpec::Type::list;
  s.nullable = true;
  s.min = least;
  s.meaning = std::move(meaning);
  return s;
}

AxisExtents extents_of(const std::vector<int64_t>& v, int64_t beyond) {
  AxisExtents x{beyond, beyond, beyond};
  std::copy(v.begin(), v.end(), x.begin());
  return x;
}

Tensor upload_list(Context& ctx, const std::vector<int32_t>& v) {
  return upload(ctx, {static_cast<int64_t>(v.size())}, v);
}

Shape grid_shape(const NeighborhoodForm& f, int64_t heads, bool heads_first) {
  std::vector<int64_t> dims{f.batch};
  if (heads_first) dims.push_back(heads);
  dims.insert(dims.end(), f.pattern.extents.begin(), f.pattern.extents.end());
  if (!heads_first) dims.push_back(heads);
  dims.push_back(f.head_dim);
  return Shape(dims);
}

}  // namespace

bool NeighborhoodForm::is_dense() const {
  const bool causal = std::find(pattern.causal.begin(), pattern.causal.end(), true) != pattern.causal.end();
  return pattern.window == pattern.extents && (!causal || rank() == 1);
}

std::vector<ParamSpec> neighborhood_params(const std::string& window, const std::string& q_tile,
                                           const std::string& kv_tile) {
  ParamSpec rank;
  rank.name = "rank";
  rank.type = ParamSpec::Type::integer;
  rank.nullable = true;
  rank.min = 1, rank.max = 3;
  rank.meaning = "axes of the token layout; null: the problem's (sequence 1, image 2, video 3)";
  ParamSpec dilation = list_param("dilation", "step between the keys of a window, by axis; null: 1", 1);
  ParamSpec causal = list_param(
      "causal", "axes on which a window ends at its query; null: as the problem says, every axis or none", 0);
  causal.min.reset();
  causal.flags = true;
  ParamSpec extra;
  extra.name = "num_extra_kv";
  extra.type = ParamSpec::Type::integer;
  extra.default_value = 0;
  extra.min = 0;
  extra.meaning = "further keys and values (text tokens) that every query sees";
  ParamSpec permute;
  permute.name = "token_permute";
  permute.type = ParamSpec::Type::boolean;
  permute.default_value = true;
  permute.meaning =
      "fused: copy tokens into tile order before and back after (stages of their own); false: the kernel "
      "reads "
      "through an order of tokens";
  ParamSpec tiling;
  tiling.name = "kv_tiling";
  tiling.type = ParamSpec::Type::choice;
  tiling.choices = {"static", "dynamic"};
  tiling.default_value = "static";
  tiling.meaning =
      "fused: key tiles of the grid, or the keys from the first to the last that a query tile sees";
  return {rank,
          list_param("window_size", "keys of a window, by axis; null: " + window + ", cut to the grid", 1),
          dilation,
          causal,
          list_param("q_tile_shape", "fused: query tile, by axis; null: " + q_tile, 1),
          list_param("kv_tile_shape", "fused: key tile, by axis; null: " + kv_tile, 1),
          tiling,
          permute,
          extra};
}

std::vector<int64_t> axis_list(const MethodInfo& info, const Params& params, const char* param, size_t rank,
                               const std::vector<int64_t>& otherwise) {
  if (params.is_null(param)) return otherwise;
  std::vector<int64_t> v;
  for (const Value& e : params.value(param).as_list()) {
    if (!e.is_int() && !e.is_bool() && e.as_double() != std::floor(e.as_double()))
      throw UsageError(info.id + "." + param + ": whole numbers are wanted, not " + e.str());
    v.push_back(e.is_bool() ? e.as_bool() : static_cast<int64_t>(e.as_double()));
  }
  if (v.size() == 1) v.resize(rank, v[0]);
  if (v.size() != rank)
    throw UsageError(info.id + "." + param + ": " + params.value(param).str() + " has " +
                     std::to_string(v.size()) + " entries, but the grid has " + std::to_string(rank) +
                     " axes");
  return v;
}

int64_t tile_tokens(const std::vector<int64_t>& tile) {
  return std::accumulate(tile.begin(), tile.end(), int64_t{1}, std::multiplies<>());
}

NeighborhoodForm neighborhood_form(const MethodInfo& info, const Problem& problem, const Params& params,
                                   const NeighborhoodDefaults& defaults) {
  require_kind(info, problem);
  NeighborhoodForm f;
  f.batch = problem.batch, f.heads = problem.heads, f.kv_heads = problem.kv_heads_or_heads();
  f.head_dim = problem.head_dim;
  require_extent(info, f.heads, "heads");
  require_extent(info, f.head_dim, "head_dim (the method is given q, k and v)");
  const bool line = problem.kind == ProblemKind::sequence;
  require_extent(info, problem.tokens(), line ? "length" : "grid");
  if (problem.kv_length && problem.kv_length != problem.tokens())
    throw Unsupported(info.id + ": queries and keys stand on one grid; kv_length " +
                      std::to_string(problem.kv_length) + " is not the grid's " +
                      std::to_string(problem.tokens()));
  f.tokens = problem.tokens();
  GnaProblem& p = f.pattern;
  p.extents = line || problem.grid.empty() ? std::vector<int64_t>{f.tokens} : problem.grid;
  const size_t rank = p.extents.size();
  if (!params.is_null("rank") && static_cast<size_t>(params.integer("rank")) != rank)
    throw UsageError(info.id + ".rank: " + params.value("rank").str() + " contradicts the problem's " +
                     std::to_string(rank) + " axes");
  p.dilation = axis_list(info, params, "dilation", rank, std::vector<int64_t>(rank, 1));
  std::vector<int64_t> window = defaults.window[rank - 1];
  for (size_t a = 0; a < rank; ++a)
    window[a] = std::max<int64_t>(1, std::min(window[a], p.extents[a] / p.dilation[a]));
  p.window = axis_list(info, params, "window_size", rank, window);
  p.stride.assign(rank, 1);
  const auto causal = axis_list(info, params, "causal", rank, std::vector<int64_t>(rank, problem.causal));
  p.causal.assign(causal.begin(), causal.end());
  if (problem.causal && std::find(causal.begin(), causal.end(), 1) == causal.end())
    throw UsageError(info.id + ".causal: no axis is causal, which contradicts problem.causal");
  p.q_tile = axis_list(info, params, "q_tile_shape", rank, defaults.q_tile[rank - 1]);
  p.kv_tile = axis_list(info, params, "kv_tile_shape", rank, defaults.kv_tile[rank - 1]);
  p.dynamic_kv = params.choice("kv_tiling") == "dynamic";
  f.extra = params.integer("num_extra_kv");
  f.token_permute = params.boolean("token_permute");
  f.scale = 1.0 / std::sqrt(static_cast<double>(f.head_dim));
  return f;
}

ElementRule neighborhood_rule(const NeighborhoodForm& f) {
  ElementRule r;
  r.rank = static_cast<int>(f.rank());
  r.grid = extents_of(f.pattern.extents, 1), r.window = extents_of(f.pattern.window, 1);
  r.dilation = extents_of(f.pattern.dilation, 1), r.stride = extents_of(f.pattern.stride, 1);
  for (size_t a = 0; a < f.rank(); ++a) r.causal_axis[a] = f.pattern.causal[a];
  return r;
}

// ---- every form -------------------------------------------------------------------------------------------

NeighborhoodInstance::NeighborhoodInstance(Context& ctx, const Problem& problem, NeighborhoodForm form,
                                           bool heads_first)
    : form_(std::move(form)), dtype_(problem.dtype), heads_first_(heads_first) {
  const NeighborhoodForm& f = form_;
  check_gna(f.pattern);
  const Shape q = grid_shape(f, f.heads, heads_first), kv = grid_shape(f, f.kv_heads, heads_first);
  const std::string layout = heads_first ? "[B, H, L_1..L_n, D]" : "[B, L_1..L_n, H, D]";
  input_specs_ = {{"q", q, dtype_, Init::normal(), false, "queries " + layout},
                  {"k", kv, dtype_, Init::normal(), false, "keys, with Hkv heads"},
                  {"v", kv, dtype_, Init::normal(), false, "values, with Hkv heads"}};
  if (f.extra > 0) {
    const Shape extra{f.batch, f.extra, f.kv_heads, f.head_dim};
    input_specs_.push_back({"extra_k", extra, dtype_, Init::normal(), false, "further keys [B, M2, Hkv, D]"});
    input_specs_.push_back(
        {"extra_v", extra, dtype_, Init::normal(), false, "further values [B, M2, Hkv, D]"});
  }
  plain_mask_.rule = neighborhood_rule(f);
  o_ = ctx.allocate(dtype_, q, MemoryClass::output);
}

Tensor NeighborhoodInstance::by_heads(const Tensor& t, int64_t heads) const {
  const NeighborhoodForm& f = form_;
  if (heads_first_) return t.reshape({f.batch, heads, f.tokens, f.head_dim});
  return split_heads(t.reshape({f.batch, f.tokens, heads * f.head_dim}), heads);
}

AttentionArgs NeighborhoodInstance::plain_call() const {
  AttentionArgs a;
  a.q = by_heads(input("q"), form_.heads);
  a.k = by_heads(input("k"), form_.kv_heads);
  a.v = by_heads(input("v"), form_.kv_heads);
  a.o = by_heads(o_, form_.heads);
  a.scale = static_cast<float>(form_.scale);
  a.mask = &plain_mask_;
  return a;
}

std::optional<PairSet> NeighborhoodInstance::pairs() const {
  std::vector<int64_t> grid = form_.pattern.extents;
  if (grid.size() == 1) grid.clear();
  return rule_pairs(plain_mask_.rule, form_.batch, form_.heads, form_.tokens, form_.tokens, grid);
}

// Extra keys are no tokens of the grid: rows over tokens alone would not be the method's.
bool NeighborhoodInstance::rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                                std::vector<float>& out) {
  return form_.extra == 0 && attention_rows(ctx, plain_call(), b, h, q_begin, q_end, out);
}
std::optional<RowStats> NeighborhoodInstance::row_stats(Context& ctx) {
  if (form_.extra > 0) return std::nullopt;
  return attention_row_stats(ctx, plain_call());
}

Cost NeighborhoodInstance::fused_cost(int64_t queries, int64_t keys, int64_t pairs, int64_t mask_bytes,
                                      bool lse) const {
  const NeighborhoodForm& f = form_;
  const int64_t all = f.batch * f.heads * pairs, bytes = static_cast<int64_t>(size_of(dtype_));
  Cost c;
  c.matmul = all * 4 * f.head_dim;
  c.elementwise = all * 4;
  c.special = all;
  c.bytes_read = f.batch * (f.heads * queries + 2 * f.kv_heads * keys) * f.head_dim * bytes + mask_bytes;
  c.bytes_written = f.batch * f.heads * queries * (f.head_dim * bytes + (lse ? 4 : 0));
  return c;
}

Cost NeighborhoodInstance::extra_cost(int64_t queries) const {
  const NeighborhoodForm& f = form_;
  Cost c = fused_cost(queries, f.extra, queries * f.extra, 0, true);
  const int64_t rows = f.batch * f.heads * queries,
                bytes = rows * f.head_dim * static_cast<int64_t>(size_of(dtype_));
  c.special += 3 * rows;
  c.elementwise += 3 * rows * f.head_dim;
  c.bytes_read += 2 * bytes + 8 * rows;
  c.bytes_written += bytes;
  return c;
}

void NeighborhoodInstance::attend_extra(Context& ctx, const Tensor& q, const Tensor& o, const Tensor& lse) {
  const NeighborhoodForm& f = form_;
  const int64_t rows = q.dim(2);
  const Shape packed{f.batch, f.extra, f.kv_heads * f.head_dim};
  AttentionArgs a;
  a.q = q;
  a.k = split_heads(input("extra_k").reshape(packed), f.kv_heads);
  a.v = split_heads(input("extra_v").reshape(packed), f.kv_heads);
  a.o = ctx.allocate(dtype_, {f.batch, f.heads, rows, f.head_dim});
  a.lse = ctx.allocate(DType::f32, {f.batch, f.heads, rows});
  a.scale = static_cast<float>(f.scale);
  {
    const auto stage = ctx.stage("extra");
    attention(ctx, a);
  }
  const auto stage = ctx.stage("merge");
  merge_attention(ctx, {o, lse, a.o, a.lse, o, {}});
}

// ---- the fused form ---------------------------------------------------------------------------------------

FusedNeighborhood::FusedNeighborhood(Context& ctx, const Problem& problem, NeighborhoodForm form)
    : NeighborhoodInstance(ctx, problem, std::move(form), false),
      dense_(form_.is_dense()),
      dynamic_(form_.pattern.dynamic_kv),
      rule_(plain_mask_.rule),
      block_q_(tile_tokens(form_.pattern.q_tile)),
      block_k_(tile_tokens(form_.pattern.kv_tile)),
      queries_(form_.tokens),
      keys_(form_.tokens) {
  const GnaProblem& p = form_.pattern;
  // A line without dilation is its own tile order.
  const bool scattered = !form_.flat && (form_.rank() > 1 || p.dilation[0] > 1);
  if (dense_ || !scattered) return;
  order_ = form_.token_permute ? Order::tiled : Order::listed;
  if (order_ == Order::listed) return;
  rule_.q_tile = extents_of(p.q_tile, 0);
  if (!dynamic_) rule_.k_tile = extents_of(p.kv_tile, 0);
  queries_ = padded_tokens(rule_, rule_.q_tile), keys_ = padded_tokens(rule_, rule_.k_tile);
}

/// Token of every slot of the padded tiles, -1 for padding.
std::vector<int32_t> FusedNeighborhood::tile_order(const AxisExtents& tile) const {
  std::vector<int32_t> order(static_cast<size_t>(padded_tokens(rule_, tile)));
  for (size_t s = 0; s < order.size(); ++s) {
    const AxisExtents x = grid_coordinates(rule_, static_cast<int64_t>(s), tile);
    order[s] = in_grid(rule_, x) ? static_cast<int32_t>(grid_token(rule_, x, {0, 0, 0})) : -1;
  }
  return order;
}

namespace {

/// An order of tokens alone.
std::vector<int32_t> without_padding(std::vector<int32_t> order) {
  std::erase(order, -1);
  return order;
}

}  // namespace

/// The keys between the first and the last that the queries of a block see, on every axis.
std::vector<FusedNeighborhood::Region> FusedNeighborhood::regions() const {
  const AxisExtents tile = extents_of(form_.pattern.q_tile, 0);
  std::vector<int32_t> order;
  if (order_ == Order::listed) order = without_padding(tile_order(tile));
  ElementRule tokens = rule_;
  tokens.k_tile = {0, 0, 0};
  std::vector<Region> all;
  for (int64_t first = 0; first < queries_; first += block_q_) {
    Region r;
    r.rows = std::min(block_q_, queries_ - first);
    AxisExtents residue{-1, -1, -1};
    bool any = false;
    for (int a = 0; a < 3; ++a) r.axis[a] = {0, 1, 1};
    for (int64_t s = first; s < first + r.rows; ++s) {
      const AxisExtents x = order.empty()
                                ? grid_coordinates(tokens, s, tokens.q_tile)
                                : grid_coordinates(tokens, order[static_cast<size_t>(s)], {0, 0, 0});
      if (!in_grid(tokens, x)) continue;
      for (int a = 0; a < tokens.rank; ++a) {
        const auto i = static_cast<size_t>(a);
        const AxisWindow w = axis_window(tokens, a, x[i]);
        AxisWindow& into = r.axis[a];
        if (!any) {
          into = w, residue[i] = x[i] % tokens.dilation[i];
        } else {
          into.first = std::min(into.first, w.first), into.end = std::max(into.end, w.end);
          if (x[i] % tokens.dilation[i] != residue[i]) into.step = 1;
        }
      }
      any = true;
    }
    if (!any) r.axis[0] = {0, 0, 1};
    all.push_back(r);
  }
  return all;
}

BlockList FusedNeighborhood::gather_lists(Context& ctx) const {
  std::vector<int32_t> begin, count, index;
  ElementRule tokens = rule_;
  for (const Region& r : regions()) {
    if (index.size() + static_cast<size_t>(r.keys()) > static_cast<size_t>(INT32_MAX))
      throw Unsupported(
          "kv_tiling: dynamic lists more than 2^31 keys for this grid and window; use static key tiles");
    begin.push_back(static_cast<int32_t>(index.size()));
    count.push_back(static_cast<int32_t>(r.keys()));
    for (int64_t x = r.axis[0].first; x < r.axis[0].end; x += r.axis[0].step)
      for (int64_t y = r.axis[1].first; y < r.axis[1].end; y += r.axis[1].step)
        for (int64_t z = r.axis[2].first; z < r.axis[2].end; z += r.axis[2].step)
          index.push_back(static_cast<int32_t>(grid_token(tokens, {x, y, z}, {0, 0, 0})));
  }
  const Shape rows{1, 1, static_cast<int64_t>(begin.size())};
  return {upload_list(ctx, begin).reshape(rows), upload_list(ctx, count).reshape(rows),
          upload_list(ctx, index)};
}

BlockMask FusedNeighborhood::block_lists(Context& ctx) const {
  Tensor q, k;
  if (order_ == Order::listed) {
    q = upload_list(ctx, without_padding(tile_order(extents_of(form_.pattern.q_tile, 0))));
    k = upload_list(ctx, without_padding(tile_order(extents_of(form_.pattern.kv_tile, 0))));
  }
  return make_block_mask(ctx, rule_, queries_, keys_, block_q_, block_k_, q, k);
}

void FusedNeighborhood::prepare(Context& ctx) {
  if (dense_) {
    mask_.rule.causal = form_.pattern.causal[0];
  } else if (!dynamic_) {
    mask_ = block_lists(ctx);
  } else {
    mask_.rule = rule_;
    mask_.block_q = block_q_, mask_.block_k = block_k_;
    mask_.gather = gather_lists(ctx);
    if (order_ == Order::listed)
      mask_.q_order = upload_list(ctx, without_padding(tile_order(extents_of(form_.pattern.q_tile, 0))));
  }
  if (order_ != Order::tiled) return;
  const std::vector<int32_t> order = tile_order(rule_.q_tile);
  q_index_ = upload_list(ctx, order);
  if (!dynamic_ && rule_.k_tile != rule_.q_tile) k_index_ = upload_list(ctx, tile_order(rule_.k_tile));
  std::vector<int32_t> slot(static_cast<size_t>(form_.tokens));
  for (size_t s = 0; s < order.size(); ++s)
    if (order[s] >= 0) slot[static_cast<size_t>(order[s])] = static_cast<int32_t>(s);
  restore_ = upload_list(ctx, slot);
}

void FusedNeighborhood::run(Context& ctx) {
  const NeighborhoodForm& f = form_;
  const bool copied = order_ == Order::tiled;
  const auto packed = [&](const Tensor& t, int64_t heads) {
    return t.reshape({f.batch, f.tokens, heads * f.head_dim});
  };
  Tensor q = packed(input("q"), f.heads), k = packed(input("k"), f.kv_heads),
         v = packed(input("v"), f.kv_heads);
  Tensor o = packed(o_, f.heads);
  if (copied) {
    const auto stage = ctx.stage("permute");
    const auto permute = [&](Tensor& t, const Tensor& index) {
      const Tensor y = ctx.allocate(dtype_, {f.batch, index.dim(0), t.dim(2)});
      gather_rows(ctx, {t, index, y});
      t = y;
    };
    permute(q, q_index_);
    if (!dynamic_) permute(k, key_index()), permute(v, key_index());
    o = ctx.allocate(dtype_, {f.batch, queries_, f.heads * f.head_dim});
  }
  AttentionArgs a;
  a.q = split_heads(q, f.heads), a.o = split_heads(o, f.heads);
  a.k = split_heads(k, f.kv_heads), a.v = split_heads(v, f.kv_heads);
  a.scale = static_cast<float>(f.scale);
  if (!dense_ || mask_.rule.causal) a.mask = &mask_;
  if (f.extra > 0) a.lse = ctx.allocate(DType::f32, {f.batch, f.heads, queries_});
  {
    const auto stage = ctx.stage("attend");
    attention(ctx, a);
  }
  if (f.extra > 0) attend_extra(ctx, a.q, a.o, a.lse);
  if (copied) {
    const auto stage = ctx.stage("restore");
    gather_rows(ctx, {o, restore_, packed(o_, f.heads)});
  }
}

/// Blocks that are runs of row-major tokens of a grid, or of an order without padding, straddle tiles: there
/// is no formula for their number, they are counted.
bool FusedNeighborhood::counted() const {
  const bool line = form_.rank() == 1 && form_.pattern.dilation[0] == 1;
  return order_ == Order::listed || (order_ == Order::row_major && !line);
}

FusedNeighborhood::Visits FusedNeighborhood::visits() const {
  const GnaProblem& p = form_.pattern;
  Visits v;
  v.blocks = (queries_ + block_q_ - 1) / block_q_;
  if (dynamic_) {
    for (const Region& r : regions()) v.pairs += r.rows * r.keys(), v.entries += r.keys();
  } else if (order_ == Order::tiled) {
    v.entries = gna_executed_tiles(p);
    v.pairs = v.entries * block_q_ * block_k_;
  } else if (!counted()) {
    // A line: tiles are cut at its end.
    for (int64_t first = 0; first < queries_; first += block_q_) {
      const int64_t last = std::min(first + block_q_, queries_) - 1;
      const int64_t begin = gna_window(p, 0, keys_, first).begin / block_k_;
      const int64_t end = (gna_window(p, 0, keys_, last).end + block_k_ - 1) / block_k_;
      v.pairs += (last - first + 1) * (std::min(end * block_k_, keys_) - begin * block_k_);
      v.entries += end - begin;
    }
  } else {
    Context host(cpu_backend(), 1);
    const BlockMask mask = block_lists(host);
    v.pairs = count_pairs(mask, 1, 1, queries_, keys_, false).visited;
    v.entries = mask.full.index.numel() + mask.partial.index.numel();
  }
  return v;
}

ClosedForm FusedNeighborhood::cost() const {
  const NeighborhoodForm& f = form_;
  ClosedForm c;
  const int64_t n = f.tokens;
  if (dense_) {
    c.cost = fused_cost(n, n, f.pattern.causal[0] ? n * (n + 1) / 2 : n * n, 0, f.extra > 0);
  } else {
    if (!visits_) visits_ = visits();
    // begin and count of one list or of two, the entries, and orders: i32 each.
    int64_t words = (dynamic_ ? 2 : 4) * visits_->blocks + visits_->entries;
    if (order_ == Order::listed) words += (dynamic_ ? 1 : 2) * n;
    c.cost = fused_cost(queries_, keys_, visits_->pairs, 4 * words, f.extra > 0);
  }
  if (f.extra > 0) c.cost += extra_cost(queries_);
  if (order_ == Order::tiled) {
    const int64_t row = f.batch * f.head_dim * static_cast<int64_t>(size_of(dtype_));
    int64_t rows = queries_ * f.heads + n * f.heads, index = queries_ + n;
    if (!dynamic_) rows += 2 * keys_ * f.kv_heads, index += 2 * keys_;
    c.cost.bytes_read += rows * row + 4 * index;
    c.cost.bytes_written += rows * row;
  }
  return c;
}

}  // namespace attnbench
