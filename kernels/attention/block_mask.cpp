#include "kernels/attention/block_mask.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/attention/neighborhood.hpp"
#include "kernels/core/backend.hpp"

namespace attnbench {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t resolved_offset(const ElementRule& r, int64_t n, int64_t m) {
  return r.offset == ElementRule::kAlignEnds ? m - n : r.offset;
}

/// Keys below `sinks` that a band leaves visible to query i: [0, end).
int64_t sink_end(const ElementRule& r, int64_t i, int64_t n, int64_t m) {
  if (!r.band || r.sinks <= 0) return 0;
  int64_t end = std::min(r.sinks, m);
  if (r.causal) end = std::min(end, std::max<int64_t>(i + resolved_offset(r, n, m) + 1, 0));
  return end;
}

/// Element (b or 0, h or 0, i) of an i32 tensor [Gb, Gh, X], Gb in {1, B}, Gh in {1, Hkv, H}.
int32_t grouped(const Tensor& t, int64_t b, int64_t h, int64_t heads, int64_t i) {
  const int64_t gb = t.dim(0) == 1 ? 0 : b, gh = h / (heads / t.dim(1));
  return t.data<int32_t>()[gb * t.stride(0) + gh * t.stride(1) + i * t.stride(2)];
}

int64_t token_of(const Tensor& order, int64_t slot) {
  return order ? order.data<int32_t>()[slot * order.stride(0)] : slot;
}

void require_cpu(const Tensor& t, const char* what) {
  if (t && t.device() != DeviceKind::cpu)
    throw UsageError(std::string(what) + " reads masks on the host, and this mask lives on another device");
}

/// The lists of one mask while they grow.
struct ListBuilder {
  std::vector<int32_t> begin, count, index;
  void open() {
    if (index.size() > static_cast<size_t>(INT32_MAX))
      throw UsageError("a block mask holds at most 2^31 - 1 entries; use larger blocks");
    begin.push_back(static_cast<int32_t>(index.size()));
  }
  void add(int64_t block) { index.push_back(static_cast<int32_t>(block)); }
  void close() { count.push_back(static_cast<int32_t>(index.size() - static_cast<size_t>(begin.back()))); }

  static Tensor upload(Context& ctx, const std::vector<int32_t>& v, const Shape& shape) {
    Tensor t = ctx.allocate(DType::i32, shape);
    if (!v.empty())
      ctx.backend().copy_bytes(t.raw(), t.device(), v.data(), DeviceKind::cpu, v.size() * sizeof(int32_t));
    return t;
  }
  BlockList finish(Context& ctx) const {
    if (index.size() > static_cast<size_t>(INT32_MAX))
      throw UsageError("a block mask holds at most 2^31 - 1 entries; use larger blocks");
    const int64_t rows = static_cast<int64_t>(count.size());
    BlockList l;
    l.begin = upload(ctx, begin, {1, 1, rows});
    l.count = upload(ctx, count, {1, 1, rows});
    l.index = upload(ctx, index, {static_cast<int64_t>(index.size())});
    return l;
  }
};

std::vector<int32_t> host_order(Context& ctx, const Tensor& order, int64_t length, const char* what) {
  std::vector<int32_t> v;
  if (!order) return v;
  if (order.rank() != 1 || order.dim(0) != length || order.dtype() != DType::i32)
    throw UsageError(std::string(what) + " must be i32 [" + std::to_string(length) + "], not " +
                     std::string(name(order.dtype())) + " " + order.shape().str());
  v.resize(static_cast<size_t>(length));
  if (order.device() == DeviceKind::cpu) {
    for (int64_t i = 0; i < length; ++i) v[static_cast<size_t>(i)] = static_cast<int32_t>(token_of(order, i));
  } else if (length > 0) {
    ctx.backend().copy_bytes(v.data(), DeviceKind::cpu, order.raw(), order.device(),
                             v.size() * sizeof(int32_t));
    ctx.backend().synchronize();
  }
  for (int32_t t : v)
    if (t < 0 || t >= length)
      throw UsageError(std::string(what) + " names token " + std::to_string(t) + ", which is outside [0, " +
                       std::to_string(length) + ")");
  return v;
}

void check_rule(const ElementRule& r, int64_t n, int64_t m) {
  if (r.rank < 0 || r.rank > 3)
    throw UsageError("a neighbourhood rule has rank 0 to 3, not " + std::to_string(r.rank));
  if (r.rank > 0) {
    for (int a = 0; a < r.rank; ++a) {
      const size_t i = static_cast<size_t>(a);
      const std::string axis = "neighbourhood axis " + std::to_string(a) + ": ";
      if (r.grid[i] < 1 || r.window[i] < 1 || r.dilation[i] < 1 || r.stride[i] < 1)
        throw UsageError(axis + "grid, window, dilation and stride must be 1 or more");
      if (r.window[i] * r.dilation[i] > r.grid[i] && !r.cut_axis[i])
        throw UsageError(axis + "window " + std::to_string(r.window[i]) + " times dilation " +
                         std::to_string(r.dilation[i]) + " exceeds the grid's " + std::to_string(r.grid[i]));
      if (r.stride[i] > r.window[i])
        throw UsageError(axis + "stride " + std::to_string(r.stride[i]) + " exceeds the window " +
                         std::to_string(r.window[i]));
      if ((r.q_tile[i] > 0) != is_tiled(r.q_tile) || (r.k_tile[i] > 0) != is_tiled(r.k_tile) ||
          r.q_tile[i] < 0 || r.k_tile[i] < 0)
        throw UsageError(axis + "tiles are 1 or more on every axis, or 0 on every axis");
    }
    if ((is_tiled(r.q_tile) || is_tiled(r.k_tile)) && (r.causal || r.band))
      throw UsageError("a neighbourhood whose tokens stand tile by tile has no causal or band part");
    const int64_t queries = padded_tokens(r, r.q_tile), keys = padded_tokens(r, r.k_tile);
    if (queries != n || keys != m)
      throw UsageError("the neighbourhood has " + std::to_string(queries) + " queries and " +
                       std::to_string(keys) + " keys, but the problem has N = " + std::to_string(n) +
                       " and M = " + std::to_string(m));
  }
  if (r.sinks < 0) throw UsageError("sinks must be 0 or more, not " + std::to_string(r.sinks));
  if (r.band && (r.left < -1 || r.right < -1))
    throw UsageError("band sides are -1 (open), 0 or more, not left " + std::to_string(r.left) + ", right " +
                     std::to_string(r.right));
}

/// Counts, for one query block, how many of its (query, key) pairs each key slot's block allows.
class BlockCounter {
 public:
  BlockCounter(const ElementRule& rule, int64_t n, int64_t m, int64_t block_k, const std::vector<int32_t>& k)
      : rule_(rule), n_(n), m_(m), block_k_(block_k), count_(static_cast<size_t>(ceil_div(m, block_k)), 0) {
    if (!k.empty()) {
      slot_of_.resize(k.size());
      for (size_t s = 0; s < k.size(); ++s) slot_of_[static_cast<size_t>(k[s])] = static_cast<int32_t>(s);
    }
  }

  /// Pairs of `queries` by key block, as (block, pairs) sorted by block; reset for the next call.
  const std::vector<std::pair<int64_t, int64_t>>& operator()(const std::vector<int64_t>& queries) {
    if (rule_.rank > 0)
      count_neighbourhood(queries);
    else
      count_ranges(queries);
    std::sort(touched_.begin(), touched_.end());
    result_.clear();
    for (int64_t c : touched_) {
      result_.emplace_back(c, count_[static_cast<size_t>(c)]);
      count_[static_cast<size_t>(c)] = 0;
    }
    touched_.clear();
    return result_;
  }

 private:
  void add(int64_t token, int64_t pairs) {
    if (pairs == 0) return;
    const int64_t slot = slot_of_.empty() ? token : slot_of_[static_cast<size_t>(token)];
    int64_t& c = count_[static_cast<size_t>(slot / block_k_)];
    if (c == 0) touched_.push_back(slot / block_k_);
    c += pairs;
  }

  /// Causal and band: a difference array over the tokens between the lowest and the highest visible key.
  void count_ranges(const std::vector<int64_t>& queries) {
    int64_t low = m_, high = 0;
    const auto grow = [&](KeyRange r) {
      if (r.begin >= r.end) return;
      low = std::min(low, r.begin), high = std::max(high, r.end);
    };
    for (int64_t i : queries) grow(band_range(rule_, i, n_, m_));
    int64_t sinks = 0;
    for (int64_t i : queries) sinks = std::max(sinks, sink_end(rule_, i, n_, m_));
    if (low < high) {
      step_.assign(static_cast<size_t>(high - low + 1), 0);
      for (int64_t i : queries) {
        const KeyRange r = band_range(rule_, i, n_, m_);
        if (r.begin >= r.end) continue;
        ++step_[static_cast<size_t>(r.begin - low)];
        --step_[static_cast<size_t>(r.end - low)];
      }
      int64_t open = 0;
      for (int64_t j = low; j < high; ++j) add(j, open += step_[static_cast<size_t>(j - low)]);
    }
    for (int64_t j = 0; j < sinks; ++j) {  // what the sinks add beyond the band
      int64_t pairs = 0;
      for (int64_t i : queries) {
        const KeyRange r = band_range(rule_, i, n_, m_);
        pairs += j < sink_end(rule_, i, n_, m_) && !(j >= r.begin && j < r.end);
      }
      add(j, pairs);
    }
  }

  /// Neighbourhoods: 64 queries at a time as bits; a key's bits are the AND of one table entry per axis, and
  /// only the keys of the bounding box of all windows are looked at.
  void count_neighbourhood(const std::vector<int64_t>& queries) {
    for (size_t q0 = 0; q0 < queries.size(); q0 += 64) {
      const size_t q1 = std::min(queries.size(), q0 + 64);
      std::array<int64_t, 3> low{0, 0, 0}, high{1, 1, 1};
      for (int a = 0; a < rule_.rank; ++a) {
        const size_t axis = static_cast<size_t>(a);
        std::vector<uint64_t>& bits = bits_[axis];
        bits.assign(static_cast<size_t>(rule_.grid[axis]), 0);
        low[axis] = rule_.grid[axis], high[axis] = 0;
        for (size_t q = q0; q < q1; ++q) {
          const AxisExtents at = grid_coordinates(rule_, queries[q], rule_.q_tile);
          if (!in_grid(rule_, at)) continue;
          const AxisWindow w = axis_window(rule_, a, at[axis]);
          for (int64_t x = w.first; x < w.end; x += w.step)
            bits[static_cast<size_t>(x)] |= uint64_t{1} << (q - q0);
          low[axis] = std::min(low[axis], w.first), high[axis] = std::max(high[axis], w.end);
        }
      }
      for (int a = rule_.rank; a < 3; ++a) bits_[static_cast<size_t>(a)].assign(1, ~uint64_t{0});
      for (int64_t x = low[0]; x < high[0]; ++x)
        for (int64_t y = low[1]; y < high[1]; ++y) {
          const uint64_t outer = bits_[0][static_cast<size_t>(x)] & bits_[1][static_cast<size_t>(y)];
          if (!outer) continue;
          for (int64_t z = low[2]; z < high[2]; ++z) {
            const uint64_t seen = outer & bits_[2][static_cast<size_t>(z)];
            if (!seen) continue;
            const int64_t token = grid_token(rule_, {x, y, z}, rule_.k_tile);
            add(token, rule_.causal || rule_.band ? both(queries, q0, seen, token) : std::popcount(seen));
          }
        }
    }
  }
  int64_t both(const std::vector<int64_t>& queries, size_t q0, uint64_t seen, int64_t j) const {
    int64_t pairs = 0;
    for (; seen; seen &= seen - 1) {
      const int64_t i = queries[q0 + static_cast<size_t>(std::countr_zero(seen))];
      const KeyRange r = band_range(rule_, i, n_, m_);
      pairs += (j >= r.begin && j < r.end) || j < sink_end(rule_, i, n_, m_);
    }
    return pairs;
  }

  const ElementRule& rule_;
  int64_t n_, m_, block_k_;
  std::vector<int64_t> count_, touched_, step_;
  std::vector<int32_t> slot_of_;
  std::array<std::vector<uint64_t>, 3> bits_;
  std::vector<std::pair<int64_t, int64_t>> result_;
};

}  // namespace

KeyRange band_range(const ElementRule& r, int64_t i, int64_t n, int64_t m) {
  KeyRange range{0, m};
  const int64_t centre = i + resolved_offset(r, n, m);
  if (r.causal) range.end = std::min(range.end, centre + 1);
  if (r.band && r.left >= 0) range.begin = std::max(range.begin, centre - r.left);
  if (r.band && r.right >= 0) range.end = std::min(range.end, centre + r.right + 1);
  if (range.begin >= range.end) return {0, 0};
  return range;
}

bool rule_allows(const ElementRule& r, int64_t b, int64_t h, int64_t i, int64_t j, int64_t n, int64_t m) {
  const KeyRange range = band_range(r, i, n, m);
  if (!(j >= range.begin && j < range.end) && !(j < sink_end(r, i, n, m))) return false;
  if (r.rank > 0) {
    const AxisExtents x = grid_coordinates(r, i, r.q_tile), y = grid_coordinates(r, j, r.k_tile);
    if (!in_grid(r, x)) return false;
    for (int a = 0; a < r.rank; ++a)
      if (!axis_window(r, a, x[static_cast<size_t>(a)]).contains(y[static_cast<size_t>(a)])) return false;
  }
  if (r.segment_q) {
    const Tensor &sq = r.segment_q, &sk = r.segment_k;
    const int32_t id_q = sq.data<int32_t>()[(sq.dim(0) == 1 ? 0 : b) * sq.stride(0) + i * sq.stride(1)];
    const int32_t id_k = sk.data<int32_t>()[(sk.dim(0) == 1 ? 0 : b) * sk.stride(0) + j * sk.stride(1)];
    if (id_q != id_k) return false;
  }
  if (r.bitmap) {
    const Tensor& t = r.bitmap;
    const uint8_t byte =
        t.data<uint8_t>()[(t.dim(0) == 1 ? 0 : b) * t.stride(0) + (t.dim(1) == 1 ? 0 : h) * t.stride(1) +
                          i * t.stride(2) + (j >> 3) * t.stride(3)];
    if (!((byte >> (j & 7)) & 1)) return false;
  }
  return true;
}

namespace {

/// The key tiles of one axis that a query tile of a dilation group sees: [first, end), of which those in
/// [full_first, full_end) are seen whole by all its queries.
struct TileRange {
  int64_t first = 0, end = 0, full_first = 0, full_end = 0;
};
/// By dilation group and query tile of axis `a`. Window ends grow with the query and the windows of
/// neighbours touch, so the first and the last query of a tile decide.
std::vector<TileRange> tile_ranges(const ElementRule& r, size_t a) {
  const int64_t d = r.dilation[a], tiles = tiles_on_axis(r, r.q_tile, a), tq = r.q_tile[a], tk = r.k_tile[a];
  std::vector<TileRange> ranges(static_cast<size_t>(d * tiles));
  for (int64_t g = 0; g < d; ++g)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t group = (r.grid[a] - g + d - 1) / d;
      const int64_t p0 = t * tq, p1 = std::min(p0 + tq, group) - 1;
      if (p0 > p1) continue;  // padding alone
      // As places in the group.
      const AxisWindow low = axis_window(r, static_cast<int>(a), p0 * d + g);
      const AxisWindow high = axis_window(r, static_cast<int>(a), p1 * d + g);
      const int64_t start0 = low.first / d, end0 = start0 + low.count();
      const int64_t start1 = high.first / d, end1 = start1 + high.count();
      TileRange& x = ranges[static_cast<size_t>(g * tiles + t)];
      x.first = start0 / tk, x.end = ceil_div(end1, tk);
      x.full_first = ceil_div(start1, tk), x.full_end = std::max(end0 / tk, x.full_first);
    }
  return ranges;
}

/// Lists of a neighbourhood whose blocks are its tiles: products of ranges of tiles.
void list_tiles(const ElementRule& r, ListBuilder& full, ListBuilder& partial) {
  std::array<std::vector<TileRange>, 3> ranges;
  AxisExtents q_tiles{1, 1, 1}, k_tiles{1, 1, 1}, groups{1, 1, 1};
  for (size_t a = 0; a < 3; ++a) {
    ranges[a] = {TileRange{0, 1, 0, 1}};
    if (a >= static_cast<size_t>(r.rank)) continue;
    ranges[a] = tile_ranges(r, a);
    q_tiles[a] = tiles_on_axis(r, r.q_tile, a), k_tiles[a] = tiles_on_axis(r, r.k_tile, a);
    groups[a] = r.dilation[a];
  }
  const int64_t k_group = k_tiles[0] * k_tiles[1] * k_tiles[2];
  AxisExtents g{}, t{};
  for (g[0] = 0; g[0] < groups[0]; ++g[0])
    for (g[1] = 0; g[1] < groups[1]; ++g[1])
      for (g[2] = 0; g[2] < groups[2]; ++g[2])
        for (t[0] = 0; t[0] < q_tiles[0]; ++t[0])
          for (t[1] = 0; t[1] < q_tiles[1]; ++t[1])
            for (t[2] = 0; t[2] < q_tiles[2]; ++t[2]) {
              std::array<TileRange, 3> x;
              for (size_t a = 0; a < 3; ++a) x[a] = ranges[a][static_cast<size_t>(g[a] * q_tiles[a] + t[a])];
              const int64_t base = ((g[0] * groups[1] + g[1]) * groups[2] + g[2]) * k_group;
              full.open(), partial.open();
              for (int64_t i = x[0].first; i < x[0].end; ++i)
                for (int64_t j = x[1].first; j < x[1].end; ++j)
                  for (int64_t k = x[2].first; k < x[2].end; ++k) {
                    const bool whole = i >= x[0].full_first && i < x[0].full_end && j >= x[1].full_first &&
                                       j < x[1].full_end && k >= x[2].full_first && k < x[2].full_end;
                    (whole ? full : partial).add(base + (i * k_tiles[1] + j) * k_tiles[2] + k);
                  }
              full.close(), partial.close();
            }
}

}  // namespace

BlockMask make_block_mask(Context& ctx, const ElementRule& rule, int64_t n, int64_t m, int64_t block_q,
                          int64_t block_k, const Tensor& q_order, const Tensor& k_order) {
  if (block_q < 1 || block_k < 1)
    throw UsageError("blocks hold one token or more, not " + std::to_string(block_q) + " x " +
                     std::to_string(block_k));
  if (rule.segment_q || rule.bitmap)
    throw UsageError(
        "make_block_mask builds causal, band and neighbourhood rules; lists of segments and "
        "bitmaps come from the caller");
  if (n < 0 || m < 0 || n > INT32_MAX || m > INT32_MAX)
    throw UsageError("N and M must lie in [0, 2^31), not " + std::to_string(n) + " and " + std::to_string(m));
  check_rule(rule, n, m);
  const std::vector<int32_t> q = host_order(ctx, q_order, n, "q_order");
  const std::vector<int32_t> k = host_order(ctx, k_order, m, "k_order");

  BlockMask mask;
  mask.block_q = block_q, mask.block_k = block_k;
  mask.rule = rule;
  mask.q_order = q_order, mask.k_order = k_order;
  ListBuilder full, partial;
  const int64_t rows = ceil_div(n, block_q), columns = ceil_div(m, block_k);
  // Without orders and neighbourhoods everything follows from the ranges of a block's first and last query,
  // as both ends of the range grow with the query.
  const bool ranges_only = rule.rank == 0 && q.empty() && k.empty();
  if ((is_tiled(rule.q_tile) || is_tiled(rule.k_tile)) && (!q.empty() || !k.empty()))
    throw UsageError("a neighbourhood whose tokens stand tile by tile takes no order besides");
  const auto tile_of = [](const AxisExtents& t, int rank) {
    int64_t tokens = 1;
    for (int a = 0; a < rank; ++a) tokens *= t[static_cast<size_t>(a)];
    return tokens;
  };
  if (rule.rank > 0 && is_tiled(rule.q_tile) && is_tiled(rule.k_tile) &&
      block_q == tile_of(rule.q_tile, rule.rank) && block_k == tile_of(rule.k_tile, rule.rank)) {
    list_tiles(rule, full, partial);
    mask.full = full.finish(ctx);
    mask.partial = partial.finish(ctx);
    return mask;
  }
  BlockCounter counter(rule, n, m, block_k, k);
  std::vector<int64_t> queries;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = r * block_q, last = std::min(n, first + block_q) - 1;
    full.open(), partial.open();
    if (ranges_only) {
      // The union of the ranges (first and last query may see nothing) and the sinks.
      KeyRange a = band_range(rule, first, n, m), z = band_range(rule, last, n, m), all{m, 0};
      if (a.begin >= a.end || z.begin >= z.end) {
        for (int64_t i = first; i <= last; ++i) {
          const KeyRange x = band_range(rule, i, n, m);
          if (x.begin < x.end) all = {std::min(all.begin, x.begin), std::max(all.end, x.end)};
        }
      } else {
        all = {a.begin, z.end};
      }
      const bool some_empty = a.begin >= a.end || z.begin >= z.end;
      const int64_t sinks_low = sink_end(rule, first, n, m), sinks_high = sink_end(rule, last, n, m);
      const int64_t sink_blocks = ceil_div(sinks_high, block_k);
      const int64_t c0 = all.begin < all.end ? all.begin / block_k : columns;
      const int64_t c1 = all.begin < all.end ? ceil_div(all.end, block_k) : columns;
      const auto classify = [&](int64_t c) {
        const int64_t k0 = c * block_k, k1 = std::min(m, k0 + block_k);
        const int64_t in_band_from = z.begin, in_band_to = a.end;  // common to all queries of the block
        // Every key is in the common band or a sink of every query.
        const bool full_block =
            (!some_empty && k0 >= in_band_from && k1 <= in_band_to) || k1 <= sinks_low ||
            (!some_empty && k1 <= in_band_to && in_band_from <= sinks_low && in_band_from < in_band_to);
        (full_block ? full : partial).add(c);
      };
      for (int64_t c = 0; c < std::min(sink_blocks, c0); ++c) classify(c);
      for (int64_t c = c0; c < c1; ++c) classify(c);
    } else {
      queries.clear();
      for (int64_t s = first; s <= last; ++s) {
        if (is_tiled(rule.q_tile) && !in_grid(rule, grid_coordinates(rule, s, rule.q_tile))) continue;
        queries.push_back(q.empty() ? s : q[static_cast<size_t>(s)]);
      }
      for (const auto& [c, pairs] : counter(queries)) {
        const int64_t keys = std::min(m, (c + 1) * block_k) - c * block_k;
        (pairs == keys * static_cast<int64_t>(queries.size()) ? full : partial).add(c);
      }
    }
    full.close(), partial.close();
  }
  mask.full = full.finish(ctx);
  mask.partial = partial.finish(ctx);
  return mask;
}

PairCount count_pairs(const BlockMask& mask, int64_t batch, int64_t heads, int64_t n, int64_t m,
                      bool with_attended) {
  for (const BlockList* l : {&mask.full, &mask.partial, &mask.gather}) {
    require_cpu(l->count, "count_pairs");
    require_cpu(l->index, "count_pairs");
  }
  for (const Tensor* t : {&mask.row_begin, &mask.key_length, &mask.key_valid, &mask.q_order, &mask.k_order,
                          &mask.rule.segment_q, &mask.rule.bitmap})
    require_cpu(*t, "count_pairs");
  const ElementRule& rule = mask.rule;
  const bool lists = mask.full || mask.partial;
  const bool refined = mask.row_begin || mask.row_end || mask.key_length || mask.key_valid;
  const int64_t rows = ceil_div(n, mask.block_q), columns = ceil_div(m, mask.block_k);

  // The bitmap speaks of slots, everything else of tokens.
  ElementRule token_rule = rule;
  token_rule.bitmap = Tensor();
  ElementRule bits;
  bits.bitmap = rule.bitmap;
  const auto ranges_allow = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
    if (mask.row_begin && j < grouped(mask.row_begin, b, h, heads, i)) return false;
    if (mask.row_end && j >= grouped(mask.row_end, b, h, heads, i)) return false;
    if (mask.key_length && j >= mask.key_length.data<int32_t>()[b * mask.key_length.stride(0)]) return false;
    if (mask.key_valid &&
        !mask.key_valid.data<uint8_t>()[b * mask.key_valid.stride(0) + j * mask.key_valid.stride(1)])
      return false;
    return true;
  };
  const auto attended_in = [&](int64_t b, int64_t h, int64_t r, int64_t k0, int64_t k1, bool with_rule) {
    int64_t pairs = 0;
    for (int64_t s = r * mask.block_q; s < std::min(n, (r + 1) * mask.block_q); ++s) {
      const int64_t i = token_of(mask.q_order, s);
      for (int64_t t = k0; t < k1; ++t) {
        const int64_t j = token_of(mask.k_order, t);
        if (with_rule && !rule_allows(token_rule, b, h, i, j, n, m)) continue;
        if (with_rule && rule.bitmap && !rule_allows(bits, b, h, s, t, n, m)) continue;
        pairs += ranges_allow(b, h, i, j);
      }
    }
    return pairs;
  };
  const auto list_row = [&](const BlockList& l, int64_t b, int64_t h, int64_t r, auto&& visit) {
    if (!l) return;
    const int32_t begin = grouped(l.begin, b, h, heads, r), count = grouped(l.count, b, h, heads, r);
    for (int32_t e = 0; e < count; ++e) visit(l.index.data<int32_t>()[(begin + e) * l.index.stride(0)]);
  };
  // Whether the answer for (0, 0) holds for every batch / head.
  const auto varies = [](const Tensor& t, int axis) { return t && t.dim(axis) > 1; };
  const bool by_batch = mask.key_length || mask.key_valid || varies(mask.full.count, 0) ||
                        varies(mask.partial.count, 0) || varies(mask.gather.count, 0) ||
                        varies(mask.row_begin, 0) || varies(mask.row_end, 0) || varies(rule.bitmap, 0) ||
                        varies(rule.segment_q, 0) || varies(rule.segment_k, 0);
  const bool by_head = varies(mask.full.count, 1) || varies(mask.partial.count, 1) ||
                       varies(mask.gather.count, 1) || varies(mask.row_begin, 1) || varies(mask.row_end, 1) ||
                       varies(rule.bitmap, 1);
  const bool static_rule = !rule.segment_q && !rule.bitmap && !refined;

  const auto count_one = [&](int64_t b, int64_t h) {
    PairCount one;
    if (mask.gather) {
      for (int64_t r = 0; r < rows; ++r)
        list_row(mask.gather, b, h, r, [&](int64_t t) {
          one.visited += std::min(n, (r + 1) * mask.block_q) - r * mask.block_q;
          if (with_attended) one.attended += attended_in(b, h, r, t, t + 1, true);
        });
      return one;
    }
    if (lists) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t queries = std::min(n, (r + 1) * mask.block_q) - r * mask.block_q;
        const auto area = [&](int64_t c) {
          return queries * (std::min(m, (c + 1) * mask.block_k) - c * mask.block_k);
        };
        const auto edges = [&](int64_t c) {
          return std::array<int64_t, 2>{c * mask.block_k, std::min(m, (c + 1) * mask.block_k)};
        };
        list_row(mask.full, b, h, r, [&](int64_t c) {
          one.visited += area(c);
          if (with_attended)
            one.attended += refined ? attended_in(b, h, r, edges(c)[0], edges(c)[1], false) : area(c);
        });
        list_row(mask.partial, b, h, r, [&](int64_t c) {
          one.visited += area(c);
          if (with_attended)
            one.attended += rule.allows_all() && !refined
                                ? area(c)
                                : attended_in(b, h, r, edges(c)[0], edges(c)[1], true);
        });
      }
      return one;
    }
    if (static_rule && rule.rank == 0) {
      for (int64_t i = 0; i < n; ++i) {
        const KeyRange x = band_range(rule, i, n, m);
        const int64_t sinks = sink_end(rule, i, n, m);
        const int64_t band = x.end - x.begin;
        one.attended += band + sinks - std::max<int64_t>(0, std::min(x.end, sinks) - x.begin);
      }
    } else if (static_rule && !rule.causal && !rule.band) {
      one.attended = 1;
      for (int a = 0; a < rule.rank; ++a) {
        int64_t axis = 0;
        for (int64_t x = 0; x < rule.grid[static_cast<size_t>(a)]; ++x)
          axis += axis_window(rule, a, x).count();
        one.attended *= axis;
      }
    } else {
      for (int64_t r = 0; r < rows; ++r) one.attended += attended_in(b, h, r, 0, m, true);
    }
    // Without lists the engine walks the blocks between the lowest and the highest visible key of a query
    // block, and those of the sinks.
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = r * mask.block_q, last = std::min(n, first + mask.block_q) - 1;
      int64_t low = m, high = 0, sinks = 0;
      for (int64_t s = first; s <= last; ++s) {
        const int64_t i = token_of(mask.q_order, s);
        const KeyRange x = band_range(rule, i, n, m);
        if (x.begin < x.end) low = std::min(low, x.begin), high = std::max(high, x.end);
        sinks = std::max(sinks, sink_end(rule, i, n, m));
      }
      if (mask.k_order && (low < high || sinks > 0)) low = 0, high = m;
      const int64_t c0 = low < high ? low / mask.block_k : columns;
      const int64_t c1 = low < high ? ceil_div(high, mask.block_k) : columns;
      const int64_t extra = std::min(ceil_div(sinks, mask.block_k), c0);
      const int64_t keys = std::max<int64_t>(0, std::min(m, c1 * mask.block_k) - c0 * mask.block_k) +
                           std::min(m, extra * mask.block_k);
      one.visited += (last - first + 1) * keys;
    }
    return one;
  };

  PairCount total;
  for (int64_t b = 0; b < (by_batch ? batch : 1); ++b)
    for (int64_t h = 0; h < (by_head ? heads : 1); ++h) {
      const PairCount one = count_one(b, h);
      const int64_t times = (by_batch ? 1 : batch) * (by_head ? 1 : heads);
      total.visited += one.visited * times, total.attended += one.attended * times;
    }
  return total;
}

}  // namespace attnbench
