#include "methods/vision_layer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/error.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "methods/attention_rows.hpp"

namespace attnbench::vision {

// ---- shape and parameters --------------------------------------------------------------------------------

LayerShape layer_shape(const MethodInfo& info, const Problem& problem, const Params& params) {
  require_kind(info, problem);
  if (problem.causal)
    throw Unsupported("method '" + info.id +
                      "' attends in both directions of an image grid: it has no causal mode");
  if (problem.grid.size() > 2)
    throw UsageError("method '" + info.id + "' needs problem.grid with two axes, [Hg, Wg]");
  if (problem.kv_heads && problem.kv_heads != problem.heads)
    throw Unsupported("method '" + info.id + "' projects keys for every head: kv_heads must equal heads");
  LayerShape s;
  s.batch = problem.batch;
  s.grid_h = params.integer("grid_h");
  s.grid_w = params.integer("grid_w");
  s.channels = params.integer("dim");
  s.heads = params.integer("num_heads");
  s.dtype = problem.dtype;
  if (s.channels % s.heads != 0)
    throw UsageError("method '" + info.id + "': dim " + std::to_string(s.channels) +
                     " is not divisible by num_heads " + std::to_string(s.heads));
  s.head_dim = s.channels / s.heads;
  if (problem.head_dim && problem.head_dim != s.head_dim)
    throw UsageError("method '" + info.id + "': problem.head_dim " + std::to_string(problem.head_dim) +
                     " differs from dim / num_heads = " + std::to_string(s.head_dim));
  const double scale = params.is_null("qk_scale") ? 1.0 / std::sqrt(static_cast<double>(s.head_dim))
                                                  : params.number("qk_scale");
  if (!(scale > 0)) throw UsageError("method '" + info.id + "': qk_scale must be above 0");
  s.scale = static_cast<float>(scale);
  (void)Shape({s.batch, s.grid_h, s.grid_w, s.channels}).numel();  // refuses what int64 cannot count
  return s;
}

std::vector<ParamSpec> layer_params(std::vector<ParamSpec> own) {
  const auto repeated = [](const char* name, int64_t value, const char* from, const char* meaning) {
    ParamSpec p = spec::integer(name, value, 1, meaning);
    p.from_problem = from;
    return p;
  };
  std::vector<ParamSpec> all{repeated("dim", 768, "channels", "C, channels; a multiple of num_heads"),
                             repeated("num_heads", 12, "heads", "H, heads"),
                             repeated("grid_h", 14, "grid[0]", "Hg, rows of the token grid"),
                             repeated("grid_w", 14, "grid[1]", "Wg, columns of the token grid")};
  for (ParamSpec& p : own) all.push_back(std::move(p));
  all.push_back(spec::boolean("qkv_bias", true, "bias on the q, k and v projections"));
  ParamSpec scale;
  scale.name = "qk_scale";
  scale.type = ParamSpec::Type::number;
  scale.nullable = true;
  scale.meaning = "logit scale, above 0; null: D^-0.5";
  all.push_back(std::move(scale));
  return all;
}

MethodInfo layer_info(const std::string& id, const std::string& title, const std::string& family) {
  MethodInfo info;
  info.id = id;
  info.card = "hilo";
  info.title = title;
  info.family = family;
  info.kinds = {ProblemKind::image};
  info.notes = {
      "Weights start as truncated normal of standard deviation 0.02, biases as 0, norms as gain 1 and "
      "offset 0 (the LITv2 network's initialisation; the stand-alone modules leave their framework's).",
      "The layer ends with its output projection: LayerNorm before it, residuals and feed-forward are "
      "outside. No dropout, no causal mode."};
  return info;
}

Problem image_problem(int64_t batch, int64_t grid_h, int64_t grid_w, int64_t channels, int64_t heads) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.grid = {grid_h, grid_w};
  p.channels = channels;
  p.heads = heads;
  return p;
}

void add_linear(std::vector<TensorSpec>& specs, const std::string& name, int64_t out, int64_t in, bool bias,
                DType dtype, const std::string& meaning) {
  specs.push_back({name + ".weight", {out, in}, dtype, Init::trunc_normal(0.02), false, meaning});
  if (bias) specs.push_back({name + ".bias", {out}, dtype, Init::constant(0.0), false, "bias of " + name});
}

// ---- partitions ------------------------------------------------------------------------------------------

Partition::Partition(const WindowGrid& grid, int64_t batch) : grid_(grid), batch_(batch) {
  if (Shape({batch, grid.padded_tokens()}).numel() > std::numeric_limits<int32_t>::max())
    throw Unsupported("a batch of " + std::to_string(batch) + " grids of " +
                      std::to_string(grid.padded_tokens()) +
                      " padded tokens has more rows than the 32-bit index tables of its windows hold");
  const int64_t nh = grid.windows_h(), nw = grid.windows_w();
  window_of_image_window_.resize(static_cast<size_t>(nh * nw));
  group_of_image_window_.resize(static_cast<size_t>(nh * nw));
  // Only the last row and the last column of windows hold a label boundary: at most four kinds of mask.
  int64_t first = 0;
  for (const bool cut_rows : {false, true})
    for (const bool cut_columns : {false, true}) {
      std::vector<int64_t> members;
      for (int64_t wy = 0; wy < nh; ++wy)
        for (int64_t wx = 0; wx < nw; ++wx)
          if ((grid.shift > 0 && wy == nh - 1) == cut_rows && (grid.shift > 0 && wx == nw - 1) == cut_columns)
            members.push_back(wy * nw + wx);
      if (members.empty()) continue;
      for (size_t m = 0; m < members.size(); ++m) {
        window_of_image_window_[static_cast<size_t>(members[m])] = static_cast<int64_t>(m);
        group_of_image_window_[static_cast<size_t>(members[m])] = groups_.size();
      }
      const int64_t count = batch * static_cast<int64_t>(members.size());
      groups_.push_back({first, count, cut_rows, cut_columns});
      image_windows_.push_back(std::move(members));
      first += count;
    }
  // One window across keeps row-major tokens in row-major slots.
  identity_ = !grid.padded() && grid.shift == 0 && nw == 1;
  // 1 x 1 windows are the tokens themselves.
  identity_ = identity_ || (grid.win == 1 && grid.shift == 0);
}

size_t Partition::group_of(int64_t window) const {
  size_t g = 0;
  while (window >= groups_[g].first_window + groups_[g].windows) ++g;
  return g;
}

Partition::Slot Partition::slot_of(int64_t b, int64_t token) const {
  const int64_t y = (token / grid_.w + grid_.padded_h() - grid_.shift) % grid_.padded_h();
  const int64_t x = (token % grid_.w + grid_.padded_w() - grid_.shift) % grid_.padded_w();
  const auto window = static_cast<size_t>(y / grid_.win * grid_.windows_w() + x / grid_.win);
  const size_t g = group_of_image_window_[window];
  const auto per_image = static_cast<int64_t>(image_windows_[g].size());
  return {groups_[g].first_window + b * per_image + window_of_image_window_[window],
          y % grid_.win * grid_.win + x % grid_.win};
}

int64_t Partition::padded_position(int64_t window, int64_t row) const {
  const size_t g = group_of(window);
  const auto per_image = static_cast<int64_t>(image_windows_[g].size());
  const int64_t w = image_windows_[g][static_cast<size_t>((window - groups_[g].first_window) % per_image)];
  const int64_t y = w / grid_.windows_w() * grid_.win + row / grid_.win;
  const int64_t x = w % grid_.windows_w() * grid_.win + row % grid_.win;
  return (y + grid_.shift) % grid_.padded_h() * grid_.padded_w() + (x + grid_.shift) % grid_.padded_w();
}

int Partition::label(const Group& g, int64_t row) const {
  const int64_t boundary = grid_.win - grid_.shift;
  const int below = g.cut_rows && row / grid_.win >= boundary;
  const int right = g.cut_columns && row % grid_.win >= boundary;
  return 2 * below + right;
}

std::shared_ptr<const std::vector<Intervals>> Partition::label_sets(
    std::vector<int32_t>& set_of_token) const {
  const int64_t tokens = grid_.h * grid_.w;
  auto sets = std::make_shared<std::vector<Intervals>>(static_cast<size_t>(grid_.windows() * 4));
  set_of_token.resize(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {  // ascending, so intervals come out sorted
    const Slot slot = slot_of(0, t);
    const size_t g = group_of(slot.window);
    const auto per_image = static_cast<int64_t>(image_windows_[g].size());
    const int64_t w =
        image_windows_[g][static_cast<size_t>((slot.window - groups_[g].first_window) % per_image)];
    const int64_t id = w * 4 + label(groups_[g], slot.row);
    set_of_token[static_cast<size_t>(t)] = static_cast<int32_t>(id);
    Intervals& set = (*sets)[static_cast<size_t>(id)];
    if (!set.empty() && set.back().end == t)
      ++set.back().end;
    else
      set.push_back({t, t + 1});
  }
  return sets;
}

void Partition::upload(Context& ctx) {
  if (identity_) return;
  const int64_t tokens = grid_.h * grid_.w;
  std::vector<int32_t> to_token(static_cast<size_t>(slots()), -1);
  std::vector<int32_t> to_slot(static_cast<size_t>(batch_ * tokens));
  for (int64_t b = 0; b < batch_; ++b)
    for (int64_t t = 0; t < tokens; ++t) {
      const Slot slot = slot_of(b, t);
      const int64_t at = slot.window * grid_.area() + slot.row;
      to_token[static_cast<size_t>(at)] = static_cast<int32_t>(b * tokens + t);
      to_slot[static_cast<size_t>(b * tokens + t)] = static_cast<int32_t>(at);
    }
  slot_to_token_ = attnbench::upload(ctx, {slots()}, to_token);
  token_to_slot_ = attnbench::upload(ctx, {batch_ * tokens}, to_slot);
}

namespace {
/// [R, C] with any row stride as [1, R, C].
Tensor one_batch(const Tensor& t) {
  return t.strided({1, t.dim(0), t.dim(1)}, {t.dim(0) * t.stride(0), t.stride(0), t.stride(1)});
}
}  // namespace

void Partition::to_slots(Context& ctx, const Tensor& x, const Tensor& y) const {
  gather_rows(ctx, {one_batch(x), slot_to_token_, one_batch(y)});
}

void Partition::to_tokens(Context& ctx, const Tensor& x, const Tensor& y) const {
  gather_rows(ctx, {one_batch(x), token_to_slot_, one_batch(y)});
}

// ---- heads -----------------------------------------------------------------------------------------------

Tensor heads_view(const Tensor& packed, int64_t first_row, int64_t batch, int64_t rows, int64_t part,
                  int64_t heads, int64_t head_dim) {
  const int64_t stride = packed.stride(0);
  return packed.strided({batch, heads, rows, head_dim}, {rows * stride, head_dim, stride, 1},
                        first_row * stride + part * heads * head_dim);
}

void attend(Context& ctx, const AttentionArgs& args, Trace* trace) {
  attention(ctx, args);
  if (trace) trace->push_back(args);
}

// ---- instances -------------------------------------------------------------------------------------------

LayerInstance::LayerInstance(Context& ctx, const LayerShape& shape) : s_(shape) {
  const Shape x{s_.batch, s_.tokens(), s_.channels};
  input_specs_ = {{"x", x, s_.dtype, Init::normal(), false, "tokens of the grid, row-major"}};
  out_ = ctx.allocate(s_.dtype, x, MemoryClass::output);
}

void LayerInstance::run(Context& ctx) {
  trace_.reset();
  forward(ctx, nullptr);
}

const Trace& LayerInstance::traced(Context& ctx) {
  if (!trace_) {
    Trace trace;
    forward(ctx, &trace);
    trace_ = std::move(trace);
  }
  return *trace_;
}

std::optional<PairSet> LayerInstance::pairs() const {
  PairSet p;
  p.batch = s_.batch;
  p.heads = s_.heads;
  p.queries = p.tokens = s_.tokens();
  p.grid = {s_.grid_h, s_.grid_w};
  p.row = dependencies();
  return p;
}

bool LayerInstance::rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                         std::vector<float>& out) {
  const Trace& trace = traced(ctx);
  const int64_t columns = keys(h);
  out.assign(static_cast<size_t>((q_end - q_begin) * columns), 0.0f);
  std::vector<float> p;
  for (int64_t i = q_begin; i < q_end;) {
    // Queries whose rows follow each other in one call (of one image, or of one line of a window) share keys.
    const Place at = place(b, h, i);
    int64_t run = 1;
    while (i + run < q_end && place(b, h, i + run) == Place{at.call, at.batch, at.head, at.row + run}) ++run;
    const AttentionArgs& call = trace.at(at.call);
    attention_rows(ctx, call, at.batch, at.head, at.row, at.row + run, p);
    const int64_t m = call.k.dim(2);
    for (int64_t r = 0; r < run; ++r)
      for (int64_t j = 0; j < m; ++j)
        out[static_cast<size_t>((i + r - q_begin) * columns + key_column(b, h, i + r, j))] =
            p[static_cast<size_t>(r * m + j)];
    i += run;
  }
  return true;
}

std::optional<RowStats> LayerInstance::row_stats(Context& ctx) {
  struct Host {
    std::vector<float> entropy, top;
  };
  std::vector<Host> host;
  const Trace& trace = traced(ctx);
  const auto download = [&ctx](const Tensor& t) {
    std::vector<float> v(static_cast<size_t>(t.numel()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, DType::f32, t.shape(), v.data()));
    ctx.backend().synchronize();
    return v;
  };
  for (const AttentionArgs& call : trace) {
    const RowStats s = attention_row_stats(ctx, call);
    host.push_back({download(s.entropy), download(s.row_max_probability)});
  }
  const Shape shape{s_.batch, s_.heads, s_.tokens()};
  std::vector<float> entropy(static_cast<size_t>(shape.numel())), visible(entropy.size()),
      top(entropy.size());
  size_t at = 0;
  for (int64_t b = 0; b < s_.batch; ++b)
    for (int64_t h = 0; h < s_.heads; ++h)
      for (int64_t i = 0; i < s_.tokens(); ++i, ++at) {
        const Place p = place(b, h, i);
        const Tensor& q = trace.at(p.call).q;
        const auto from = static_cast<size_t>((p.batch * q.dim(1) + p.head) * q.dim(2) + p.row);
        entropy[at] = host[p.call].entropy[from];
        top[at] = host[p.call].top[from];
        visible[at] = static_cast<float>(visible_keys(h, i));
      }
  return RowStats{upload(ctx, shape, entropy), upload(ctx, shape, visible), upload(ctx, shape, top)};
}

void LayerInstance::project(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y) const {
  GemmArgs g;
  g.a = x;
  g.b = w(name);
  g.b_transposed = true;
  g.c = y;
  g.bias = bias_of(name);
  gemm(ctx, g);
}

// ---- cost ------------------------------------------------------------------------------------------------

Cost linear_cost(int64_t rows, int64_t in, int64_t out, bool bias, DType dtype) {
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  Cost c;
  c.matmul = 2 * rows * in * out;
  c.elementwise = bias ? rows * out : 0;
  c.bytes_read = (rows * in + in * out + (bias ? out : 0)) * bytes;
  c.bytes_written = rows * out * bytes;
  return c;
}

Cost attend_cost(int64_t batch, int64_t heads, int64_t n, int64_t m, int64_t head_dim, DType dtype,
                 int64_t bias_elements) {
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  const int64_t pairs = batch * heads * n * m, width = batch * heads * head_dim;
  Cost c;
  c.matmul = 4 * head_dim * pairs;
  c.elementwise = 4 * pairs;
  c.special = pairs;
  c.bytes_read = (n + 2 * m) * width * bytes + bias_elements * static_cast<int64_t>(sizeof(float));
  c.bytes_written = n * width * bytes;
  return c;
}

Cost layer_norm_cost(int64_t rows, int64_t channels, DType dtype) {
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  Cost c;
  c.elementwise = 5 * channels * rows;
  c.special = 2 * rows;
  c.bytes_read = (rows + 2) * channels * bytes;
  c.bytes_written = rows * channels * bytes;
  return c;
}

Cost pool_cost(int64_t reads, int64_t in, int64_t out, DType dtype) {
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  Cost c;
  c.elementwise = reads + out;
  c.bytes_read = in * bytes;
  c.bytes_written = out * bytes;
  return c;
}

Cost move_cost(int64_t rows, int64_t channels, DType dtype) {
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  Cost c;
  c.bytes_read = rows * channels * bytes + rows * static_cast<int64_t>(sizeof(int32_t));
  c.bytes_written = rows * channels * bytes;
  return c;
}

}  // namespace attnbench::vision
