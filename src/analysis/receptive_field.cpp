// How far information travels through stacked layers, of one method or of different ones.
//
// Layers are boolean relations between tokens: R_1 = A_1 (heads united), R_d = A_d o R_{d-1}; equal layers
// have the same A. Three ways, chosen by size:
//   all queries, exact    bit matrices over tokens, up to `max_exact` tokens
//   all queries, blocks   the same over blocks of tokens: a block reaches another when any of its tokens
//   does, so reach is
//                         over-approximated, but never for patterns made of whole blocks
//   sampled, exact        `queries` > 0: breadth-first over intervals from single tokens, any length, linear
//   memory
// Work of the first two is nnz(A) * nodes / 64 word operations a layer: at most 1 G for 4096 nodes.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "analysis/analysis.hpp"
#include "analysis/bits.hpp"
#include "inputs/inputs.hpp"
#include "methods/transformer.hpp"

namespace attnbench {

namespace {

// Two bit matrices of this many nodes take 256 MiB.
constexpr int64_t kMostNodes = 32768;
// United rows of sampled mode are kept up to this many intervals (256 MiB), then asked for again at each
// visit.
constexpr size_t kMostLinks = size_t{32} << 20;

/// What one query reaches at one depth.
struct Reach {
  int64_t tokens = 0, possible = 0, reached_possible = 0;
  int64_t covered = INT64_MAX;       ///< every token up to this distance is reached; the ends set no limit
  double distance = 0;               ///< along the sequence
  double chebyshev = 0, euclid = 0;  ///< on the grid
};

/// Over queries, at one depth.
struct Level {
  double sum = 0, sum_possible = 0, weight = 0, least = INFINITY, most = 0;
  double least_possible = INFINITY;
  double distance = 0, chebyshev = 0, euclid = 0;
  int64_t covered = INT64_MAX;
  int64_t last_tokens = -1;  ///< of the last query; -1: it was not among those that were followed
  bool complete = true;

  void add(const Reach& r, int64_t all, int64_t weight_of_query) {
    const double f = static_cast<double>(r.tokens) / static_cast<double>(all);
    const double p =
        r.possible ? static_cast<double>(r.reached_possible) / static_cast<double>(r.possible) : 1;
    const double w = static_cast<double>(weight_of_query);
    sum += w * f, sum_possible += w * p, weight += w;
    least = std::min(least, f), most = std::max(most, f), least_possible = std::min(least_possible, p);
    distance = std::max(distance, r.distance);
    covered = std::min(covered, r.covered);
    chebyshev = std::max(chebyshev, r.chebyshev), euclid = std::max(euclid, r.euclid);
    complete = complete && r.reached_possible == r.possible;
  }
};

/// Tokens as points: places on the grid, or along the sequence.
class Geometry {
 public:
  Geometry(const PairSet& pairs, bool causal)
      : tokens_(pairs.tokens), leading_(pairs.leading), causal_(causal) {
    int64_t product = 1;
    for (int64_t g : pairs.grid) product *= g;
    if (!pairs.grid.empty() && product == pairs.tokens) grid_ = pairs.grid;
  }
  bool has_grid() const { return !grid_.empty(); }
  int64_t tokens() const { return tokens_; }
  int64_t leading() const { return leading_; }

  /// Tokens that query i could ever see.
  int64_t possible(int64_t i) const { return causal_ ? std::min(i + 1, tokens_) : tokens_; }

  /// Of single tokens: exact.
  Reach of_tokens(const uint64_t* bits, int64_t i) const {
    Reach r;
    r.tokens = BitMatrix::count(bits, tokens_);
    r.possible = possible(i);
    r.reached_possible = BitMatrix::count(bits, r.possible);
    const int64_t before = BitMatrix::last_clear(bits, 0, std::min(i, tokens_));
    if (before >= 0) r.covered = i - before - 1;
    if (!causal_) {
      const int64_t after = BitMatrix::first_clear(bits, i, tokens_);
      if (after < tokens_) r.covered = std::min(r.covered, std::max<int64_t>(0, after - i - 1));
    }
    if (r.tokens == 0) return r;
    const int64_t first = BitMatrix::first(bits, 0, tokens_), last = BitMatrix::last(bits, 0, tokens_);
    r.distance = static_cast<double>(std::max(std::abs(i - first), std::abs(last - i)));
    if (!has_grid()) return r;
    // On a line of the last axis the farthest reached token is the first or the last one.
    const int64_t width = grid_.back();
    const Point at = point(i);
    double squared = 0;
    for (int64_t line = first / width * width; line <= last; line += width) {
      const int64_t a = BitMatrix::first(bits, line, line + width);
      if (a == line + width) continue;
      for (const int64_t j : {a, BitMatrix::last(bits, line, line + width)}) {
        const Point there = point(j);
        double d2 = 0;
        for (size_t k = 0; k < grid_.size(); ++k) {
          const auto d = static_cast<double>(std::abs(at[k] - there[k]));
          r.chebyshev = std::max(r.chebyshev, d);
          d2 += d * d;
        }
        squared = std::max(squared, d2);
      }
    }
    r.euclid = std::sqrt(squared);
    return r;
  }

  /// Of blocks of `size` tokens: distances between their far ends, bounding boxes on the grid; upper bounds.
  Reach of_blocks(const uint64_t* bits, int64_t block, int64_t size) const {
    const int64_t nodes = (tokens_ + size - 1) / size;
    const auto tokens_in = [&](int64_t end) {  // of the set bits among the first `end` blocks
      const int64_t n = BitMatrix::count(bits, end) * size;
      const bool has_last = end == nodes && BitMatrix::first(bits, nodes - 1, nodes) == nodes - 1;
      return n - (has_last ? nodes * size - tokens_ : 0);
    };
    Reach r;
    r.tokens = tokens_in(nodes);
    const int64_t begin = block * size, end = std::min(begin + size, tokens_);
    const int64_t visible_blocks = causal_ ? block + 1 : nodes;
    r.possible = causal_ ? end : tokens_;
    r.reached_possible = tokens_in(visible_blocks);
    // Of the block's first token backwards, of its last one forwards.
    const int64_t before = BitMatrix::last_clear(bits, 0, std::min(block, nodes));
    if (before >= 0) r.covered = begin - (before + 1) * size;
    if (!causal_) {
      const int64_t after = BitMatrix::first_clear(bits, block, nodes);
      if (after < nodes) r.covered = std::min(r.covered, std::max<int64_t>(0, after * size - end));
    }
    if (r.tokens == 0) return r;
    const int64_t first = BitMatrix::first(bits, 0, nodes), last = BitMatrix::last(bits, 0, nodes);
    r.distance = static_cast<double>(std::max(std::abs(end - 1 - first * size),
                                              std::abs(std::min((last + 1) * size, tokens_) - 1 - begin)));
    if (!has_grid()) return r;
    const Box here = box(begin, end);
    double squared = 0;
    for (int64_t j = first; j <= last; j = BitMatrix::first(bits, j + 1, nodes)) {
      const Box there = box(j * size, std::min((j + 1) * size, tokens_));
      double d2 = 0;
      for (size_t k = 0; k < grid_.size(); ++k) {
        const auto d =
            static_cast<double>(std::max(here.high[k] - there.low[k], there.high[k] - here.low[k]));
        r.chebyshev = std::max(r.chebyshev, d);
        d2 += d * d;
      }
      squared = std::max(squared, d2);
    }
    r.euclid = std::sqrt(squared);
    return r;
  }

 private:
  static constexpr size_t kMaxAxes = Shape::kMaxRank;
  using Point = std::array<int64_t, kMaxAxes>;
  struct Box {
    Point low, high;
  };
  Point point(int64_t i) const {
    Point p{};
    for (size_t k = grid_.size(); k-- > 0;) {
      p[k] = i % grid_[k];
      i /= grid_[k];
    }
    return p;
  }
  /// Smallest box around the tokens [begin, end): axes after the first that differs are taken whole.
  Box box(int64_t begin, int64_t end) const {
    Box b{point(begin), point(end - 1)};
    bool apart = false;
    for (size_t k = 0; k < grid_.size(); ++k) {
      if (apart) b.low[k] = 0, b.high[k] = grid_[k] - 1;
      apart = apart || b.low[k] != b.high[k];
    }
    return b;
  }

  int64_t tokens_, leading_;
  bool causal_;
  std::vector<int64_t> grid_;
};

/// `into` |= `from`; true when every one of the `columns` bits is set.
bool unite(uint64_t* into, const uint64_t* from, int64_t columns) {
  const int64_t whole = columns / 64;
  uint64_t all = ~uint64_t{0};
  for (int64_t w = 0; w < whole; ++w) {
    into[w] |= from[w];
    all &= into[w];
  }
  if (columns % 64) {
    into[whole] |= from[whole];
    all &= into[whole] | (~uint64_t{0} << (columns % 64));
  }
  return all == ~uint64_t{0};
}

/// Layers from the input up; deeper stacks repeat them in turn.
using Stack = std::vector<PairSet>;
const PairSet& layer_at(const Stack& stack, int64_t d) {
  return stack[static_cast<size_t>(d - 1) % stack.size()];
}

/// One layer's relation between blocks of `size` tokens.
void relate(const PairSet& pairs, int64_t batch, int64_t size, bool residual, BitMatrix& layer) {
  Intervals row;
  for (int64_t h = 0; h < pairs.heads; ++h)
    for (int64_t i = 0; i < pairs.queries; ++i) {
      pairs.row(batch, h, i, row);
      for (const Interval& v : row) layer.set_range(i / size, v.begin / size, (v.end - 1) / size + 1);
    }
  const int64_t sources = (pairs.queries + size - 1) / size;
  if (residual)
    for (int64_t i = 0; i < sources; ++i) layer.set_range(i, i, i + 1);
}

/// All queries over blocks of `size` tokens (1: exact).
std::vector<Level> by_matrices(Context& ctx, const Stack& stack, const Geometry& geometry, int64_t batch,
                               int64_t size, int64_t depth, bool residual) {
  const PairSet& pairs = stack.front();
  const int64_t sources = (pairs.queries + size - 1) / size, nodes = (pairs.tokens + size - 1) / size;
  BitMatrix layer(sources, nodes);
  relate(pairs, batch, size, residual, layer);

  std::vector<Level> levels;
  BitMatrix reached = layer, next(sources, nodes);
  for (int64_t d = 1; d <= depth; ++d) {
    if (d > 1) {
      if (stack.size() > 1) {  // made anew, so that a deep stack takes no more memory
        layer = BitMatrix(sources, nodes);
        relate(layer_at(stack, d), batch, size, residual, layer);
      }
#pragma omp parallel for schedule(dynamic, 16) num_threads(ctx.threads())
      for (int64_t i = 0; i < sources; ++i) {
        uint64_t* into = next.row(i);
        std::fill(into, into + next.words(), 0);
        const uint64_t* neighbours = layer.row(i);
        for (int64_t j = BitMatrix::first(neighbours, 0, nodes); j < nodes;
             j = BitMatrix::first(neighbours, j + 1, nodes))
          if (unite(into, reached.row(j), nodes)) break;
      }
      if (stack.size() == 1 && next == reached) {  // nothing moves any more
        levels.resize(static_cast<size_t>(depth), levels.back());
        break;
      }
      std::swap(reached, next);
    }
    std::vector<Reach> reach(static_cast<size_t>(sources));
#pragma omp parallel for schedule(dynamic, 16) num_threads(ctx.threads())
    for (int64_t i = 0; i < sources; ++i)
      reach[static_cast<size_t>(i)] =
          size == 1 ? geometry.of_tokens(reached.row(i), i) : geometry.of_blocks(reached.row(i), i, size);
    Level level;
    for (int64_t i = 0; i < sources; ++i)
      level.add(reach[static_cast<size_t>(i)], pairs.tokens, std::min(size, pairs.queries - i * size));
    level.last_tokens = reach.back().tokens;
    levels.push_back(level);
  }
  return levels;
}

/// Rows of all heads united, kept while they are few.
class Links {
 public:
  Links(const PairSet& pairs, int64_t batch, size_t most) : pairs_(pairs), batch_(batch) {
    begins_.push_back(0);
    for (int64_t i = 0; i < pairs.queries; ++i) {
      read(i);
      if (kept_.size() + row_.size() > most) {
        kept_ = {}, begins_ = {};
        return;
      }
      kept_.insert(kept_.end(), row_.begin(), row_.end());
      begins_.push_back(kept_.size());
    }
  }
  template <class F>
  void for_each(int64_t i, F&& f) {
    if (begins_.empty()) {
      read(i);
      for (const Interval& v : row_) f(v);
    } else {
      for (size_t k = begins_[static_cast<size_t>(i)]; k < begins_[static_cast<size_t>(i) + 1]; ++k)
        f(kept_[k]);
    }
  }

 private:
  void read(int64_t i) {
    row_.clear();
    for (int64_t h = 0; h < pairs_.heads; ++h) {
      pairs_.row(batch_, h, i, one_);
      row_.insert(row_.end(), one_.begin(), one_.end());
    }
    if (pairs_.heads < 2 || row_.empty()) return;
    std::sort(row_.begin(), row_.end(),
              [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
    size_t last = 0;
    for (size_t k = 1; k < row_.size(); ++k) {
      if (row_[k].begin <= row_[last].end) {
        row_[last].end = std::max(row_[last].end, row_[k].end);
      } else {
        row_[++last] = row_[k];
      }
    }
    row_.resize(last + 1);
  }

  const PairSet& pairs_;
  int64_t batch_;
  Intervals row_, one_, kept_;
  std::vector<size_t> begins_;
};

/// The set of reached tokens of one source; adding an interval costs its new tokens only.
class Spread {
 public:
  explicit Spread(int64_t tokens)
      : bits_(static_cast<size_t>((tokens + 63) / 64)), free_(static_cast<size_t>(tokens) + 1) {
    clear();
  }
  void clear() {
    std::fill(bits_.begin(), bits_.end(), 0);
    std::iota(free_.begin(), free_.end(), int64_t{0});
  }
  const uint64_t* bits() const { return bits_.data(); }
  void add(const Interval& v, std::vector<int64_t>& added) {
    for (int64_t j = next_free(v.begin); j < v.end; j = next_free(j + 1)) {
      bits_[static_cast<size_t>(j / 64)] |= uint64_t{1} << (j % 64);
      free_[static_cast<size_t>(j)] = j + 1;
      added.push_back(j);
    }
  }

 private:
  /// First token >= j that is not in the set; paths are halved on the way.
  int64_t next_free(int64_t j) {
    while (free_[static_cast<size_t>(j)] != j) {
      int64_t& step = free_[static_cast<size_t>(j)];
      step = free_[static_cast<size_t>(step)];
      j = step;
    }
    return j;
  }
  std::vector<uint64_t> bits_;
  std::vector<int64_t> free_;
};

/// Exact reach of single queries through different layers: from the top one down, for each depth anew.
std::vector<Level> by_sources_of_stack(const Stack& stack, const Geometry& geometry, int64_t batch,
                                       const std::vector<int64_t>& sources, int64_t depth, bool residual) {
  std::vector<std::unique_ptr<Links>> links;
  for (const PairSet& pairs : stack)
    links.push_back(std::make_unique<Links>(pairs, batch, kMostLinks / stack.size()));
  const PairSet& pairs = stack.front();
  Spread spread(pairs.tokens);
  std::vector<Level> levels(static_cast<size_t>(depth));
  std::vector<int64_t> from, added;
  for (const int64_t source : sources)
    for (int64_t d = 1; d <= depth; ++d) {
      from.assign(1, source);
      for (int64_t k = d; k >= 1; --k) {
        Links& layer = *links[static_cast<size_t>(k - 1) % links.size()];
        spread.clear();
        added.clear();
        for (const int64_t i : from) {
          if (residual) spread.add({i, i + 1}, added);
          layer.for_each(i, [&](const Interval& v) { spread.add(v, added); });
        }
        std::swap(from, added);
      }
      const Reach r = geometry.of_tokens(spread.bits(), source);
      Level& level = levels[static_cast<size_t>(d - 1)];
      level.add(r, pairs.tokens, 1);
      if (source == pairs.queries - 1) level.last_tokens = r.tokens;
    }
  return levels;
}

/// Exact reach of single queries through equal layers.
std::vector<Level> by_sources(const PairSet& pairs, const Geometry& geometry, int64_t batch,
                              const std::vector<int64_t>& sources, int64_t depth, bool residual) {
  Links links(pairs, batch, kMostLinks);
  Spread spread(pairs.tokens);
  std::vector<Level> levels(static_cast<size_t>(depth));
  std::vector<int64_t> from, added;
  for (const int64_t source : sources) {
    spread.clear();
    from.assign(1, source);
    if (residual) {
      added.clear();
      spread.add({source, source + 1}, added);
    }
    for (Level& level : levels) {
      // With the residual nothing is ever lost, so only what the last layer added leads to new tokens.
      if (!residual) spread.clear();
      added.clear();
      for (const int64_t i : from) links.for_each(i, [&](const Interval& v) { spread.add(v, added); });
      std::swap(from, added);
      const Reach r = geometry.of_tokens(spread.bits(), source);
      level.add(r, pairs.tokens, 1);
      if (source == pairs.queries - 1) level.last_tokens = r.tokens;
    }
  }
  return levels;
}

std::vector<int64_t> sample(int64_t n, int64_t count, uint64_t seed) {
  std::vector<int64_t> all;
  if (count >= n) {
    all.resize(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), int64_t{0});
    return all;
  }
  std::set<int64_t> chosen;
  const uint64_t stream = stream_of("receptive_field");
  for (uint64_t k = 0; static_cast<int64_t>(chosen.size()) < count; ++k)
    chosen.insert(
        std::min(static_cast<int64_t>(random_uniform(seed, stream, k) * static_cast<double>(n)), n - 1));
  return {chosen.begin(), chosen.end()};
}

class ReceptiveField final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "receptive_field";
      i.title = "Receptive field of stacked layers";
      i.summary =
          "Which share of the tokens an output token depends on after d layers, how far the farthest of them "
          "is, and at which depth every token depends on every other (on every earlier one when causal). "
          "Layers are equal, or differ: by the list `layers`, or those of the host model and of attention "
          "maps.";
      i.formula =
          "A_d(i) = union over heads of the tokens that output token i of layer d depends on; with a "
          "residual "
          "connection i itself too\n"
          "S_1 = A_1;  S_d(i) = union over j in A_d(i) of S_{d-1}(j)      layer 1 is the first, at the "
          "input\n"
          "fraction_d = mean over i of |S_d(i)| / N;  distance_d = max over i and j in S_d(i) of |i - j|\n"
          "covered_d = greatest L such that every i reaches every token up to L before it (and, when not "
          "causal, after it) that exists;  last_tokens_d = |S_d(N - 1)|";
      i.unit = "share of tokens; tokens";
      i.headline = {"depth",        "fraction_mean",    "fraction_min",
                    "max_distance", "covered_distance", "complete_at_depth"};
      const auto integer = [](const char* name, int64_t value, double min, double max, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.type = ParamSpec::Type::integer;
        s.default_value = value;
        s.min = min, s.max = max;
        s.meaning = meaning;
        return s;
      };
      ParamSpec residual;
      residual.name = "residual";
      residual.type = ParamSpec::Type::boolean;
      residual.default_value = true;
      residual.meaning = "layers have a residual connection: a token always depends on itself";
      ParamSpec depth =
          integer("depth", 4, 1, 1024,
                  "layers; null: as many as differ, else 4; more than those repeat them in turn");
      depth.default_value = Value();
      depth.nullable = true;
      ParamSpec layers = spec::list("layers", Value(Value::List{}),
                                    "methods of the layers from the first on, with their parameters: "
                                    "[\"sliding_window window=64\", dense]; `self`: the case's own; empty: "
                                    "all layers are the case's");
      layers.of_texts = true;
      i.params = {
          depth,
          layers,
          integer("max_exact", 4096, 1, kMostNodes,
                  "nodes of the relation: above this many tokens, blocks of tokens take their place"),
          integer("block_size", 0, 0, 1e9,
                  "tokens a block; 0: 1 up to max_exact tokens, then the least power of two that does"),
          integer("queries", 0, 0, 1e6,
                  "0: all queries; else the exact reach of this many random ones, at any length"),
          integer("seed", 0, 0, 9e15, "of the sampled queries"),
          integer("batch", 0, 0, 1e9, "batch element, where patterns differ between them"),
          residual};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    AnalysisResult r;
    r.analysis = info().id;
    std::vector<std::unique_ptr<Instance>> made;  // what the pairs of `layers` read from
    const Stack stack = stack_of(ctx, instance, problem, params.value("layers").as_list(), made, r);
    const PairSet& pairs = stack.front();
    if (pairs.queries < 1 || pairs.tokens < 1) throw Unsupported("receptive_field: there are no tokens");

    const int64_t batch = params.integer("batch");
    if (batch >= pairs.batch)
      throw UsageError(
          fmt::format("receptive_field.batch: {} is beyond the {} of the problem", batch, pairs.batch));
    if (std::any_of(stack.begin(), stack.end(), [](const PairSet& l) { return !l.same_for_all_batches; }))
      r.notes["batch"] =
          fmt::format("of batch element {}; patterns differ between the {}", batch, pairs.batch);

    // Layers stack only where the output tokens are the input tokens of the next layer.
    const bool stacks = pairs.queries == pairs.tokens;
    const int64_t layers = static_cast<int64_t>(stack.size());
    const int64_t depth = !stacks                    ? 1
                          : !params.is_null("depth") ? params.integer("depth")
                          : layers > 1               ? layers
                                                     : 4;
    const bool residual = stacks && params.boolean("residual");
    if (!stacks)
      r.notes["depth"] =
          fmt::format("{} queries of {} tokens do not stack: depth 1 only", pairs.queries, pairs.tokens);

    const bool causal = problem.causal && stacks;
    const Geometry geometry(pairs, causal);
    if (layers > 1) r.scalars["layers"] = static_cast<double>(layers);
    const int64_t queries = params.integer("queries");
    int64_t size = 1;
    std::vector<Level> levels;
    if (queries > 0) {
      const std::vector<int64_t> sources =
          sample(pairs.queries, queries, static_cast<uint64_t>(params.integer("seed")));
      levels = layers > 1 ? by_sources_of_stack(stack, geometry, batch, sources, depth, residual)
                          : by_sources(pairs, geometry, batch, sources, depth, residual);
      r.scalars["sampled_queries"] = static_cast<double>(sources.size());
      r.notes["method"] = fmt::format("exact, of {} of {} queries", sources.size(), pairs.queries);
    } else {
      size = params.integer("block_size");
      const int64_t longest = std::max(pairs.tokens, pairs.queries);
      if (size == 0)
        for (size = 1; (longest + size - 1) / size > params.integer("max_exact");) size *= 2;
      if ((longest + size - 1) / size > kMostNodes)
        throw UsageError(fmt::format("receptive_field.block_size: {} makes more than {} blocks of {} tokens",
                                     size, kMostNodes, longest));
      levels = by_matrices(ctx, stack, geometry, batch, size, depth, residual);
      r.notes["method"] =
          size == 1 ? "exact, all queries"
                    : fmt::format(
                          "blocks of {} tokens: reach and distances are upper bounds, exact reach for "
                          "patterns of whole blocks; `queries` gives the exact reach of some",
                          size);
    }
    report(levels, geometry, causal, residual, r);
    r.scalars["tokens"] = static_cast<double>(pairs.tokens);
    r.scalars["block_size"] = static_cast<double>(size);
    return r;
  }

 private:
  /// The layers: those of the list, those of an instance that is a stack itself, else the instance alone.
  static Stack stack_of(Context& ctx, Instance& instance, const Problem& problem, const Value::List& list,
                        std::vector<std::unique_ptr<Instance>>& made, AnalysisResult& r) {
    const auto own = [&instance]() {
      const std::optional<PairSet> found = instance.pairs();
      if (!found) throw Unsupported("receptive_field: the method has no pairs of tokens");
      return *found;
    };
    if (list.empty()) {
      PairSet all = own();
      if (all.layers < 2 || all.heads % all.layers != 0) return {all};
      Stack stack;
      const int64_t heads = all.heads / all.layers;
      for (int64_t l = 0; l < all.layers; ++l) {
        PairSet one = all;
        one.heads = heads;
        one.layers = 1;
        one.row = [row = all.row, first = l * heads](int64_t b, int64_t h, int64_t i, Intervals& out) {
          row(b, first + h, i, out);
        };
        stack.push_back(std::move(one));
      }
      r.notes["layers"] = fmt::format("{} of the case's own", all.layers);
      return stack;
    }
    Stack stack;
    std::map<std::string, PairSet> known;  // layers that are written alike are one
    for (size_t l = 0; l < list.size(); ++l) {
      const std::string& text = list[l].as_string();
      const std::string where = fmt::format("receptive_field.layers[{}]: ", l);
      auto at = known.find(text);
      if (at == known.end()) {
        try {
          at = known.emplace(text, text == "self" ? own() : pairs_of(ctx, problem, text, made)).first;
        } catch (const Unsupported& e) {
          throw Unsupported(where + e.what());
        } catch (const UsageError& e) {
          throw UsageError(where + e.what());
        }
      }
      const PairSet& one = at->second;
      if (one.layers > 1) throw Unsupported(where + "'" + text + "' is a stack of layers itself");
      if (one.queries != one.tokens)
        throw Unsupported(
            fmt::format("{}{} queries of {} tokens do not stack", where, one.queries, one.tokens));
      if (!stack.empty() && one.tokens != stack.front().tokens)
        throw Unsupported(fmt::format("{}'{}' has {} tokens, the first layer {}", where, text, one.tokens,
                                      stack.front().tokens));
      if (!stack.empty()) stack.front().batch = std::min(stack.front().batch, one.batch);
      stack.push_back(one);
      r.notes["layers"] += fmt::format("{}{} {}", l ? "; " : "", l + 1, text);
    }
    // Distances are measured on the grid that any of them knows.
    for (const PairSet& one : stack)
      if (stack.front().grid.empty()) stack.front().grid = one.grid;
    return stack;
  }

  /// The pairs of another method on the case's problem, with seeded inputs and weights of its own.
  static PairSet pairs_of(Context& ctx, const Problem& problem, const std::string& text,
                          std::vector<std::unique_ptr<Instance>>& made) {
    const std::vector<LayerAttention> one = parse_layer_attention(text);
    if (one.size() != 1) throw UsageError("one method is wanted, not '" + text + "'");
    const Method& method = find_method(one[0].method);
    const Params params = resolve_params(one[0].method, method.info().params, one[0].params, problem);
    made.push_back(method.make(ctx, problem, params));
    fill_instance(ctx, *made.back(), problem);
    made.back()->prepare(ctx);
    made.back()->run(ctx);
    ctx.backend().synchronize();
    const std::optional<PairSet> found = made.back()->pairs();
    if (!found) throw Unsupported("'" + one[0].method + "' has no pairs of tokens");
    return *found;
  }

  static void report(const std::vector<Level>& levels, const Geometry& geometry, bool causal, bool residual,
                     AnalysisResult& r) {
    const auto put = [&r](const std::string& key, double v) {
      r.series[key].push_back(v);
      r.scalars[key] = v;  // of the deepest layer in the end
    };
    int64_t complete_at = 0, d = 0;
    for (const Level& l : levels) {
      ++d;
      put("fraction_mean", l.sum / l.weight);
      put("fraction_min", l.least);
      put("fraction_max", l.most);
      if (causal) {
        put("fraction_of_earlier_mean", l.sum_possible / l.weight);
        put("fraction_of_earlier_min", l.least_possible);
      }
      put("max_distance", l.distance);
      put("covered_distance", static_cast<double>(std::min(l.covered, geometry.tokens() - 1)));
      if (l.last_tokens >= 0) put("last_tokens", static_cast<double>(l.last_tokens));
      if (geometry.has_grid()) {
        put("max_distance_chebyshev", l.chebyshev);
        put("max_distance_euclidean", l.euclid);
      }
      if (l.complete && complete_at == 0) complete_at = d;
    }
    if (geometry.leading() > 0)
      r.notes["distance"] = fmt::format(
          "along the sequence, over all tokens: the first {} have no place on the grid", geometry.leading());
    r.scalars["depth"] = static_cast<double>(d);
    r.scalars["complete_at_depth"] = static_cast<double>(complete_at);
    if (complete_at == 0) r.notes["complete_at_depth"] = fmt::format("0: not complete within {} layers", d);
    r.notes["residual"] =
        residual ? "a token depends on itself (residual connection)" : "no residual connection";
  }
};
ATTNBENCH_ANALYSIS(ReceptiveField);

}  // namespace

}  // namespace attnbench
