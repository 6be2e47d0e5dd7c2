// Input generators with known attention structure: what dynamic methods look for and independent normal
// values lack. They shape queries and keys; everything else (values, weights given as inputs) stays normal.
//
// Every query and key is normal noise plus features whose product raises the logit q . k / sqrt(D) of the
// wanted pairs by `strength`:
//   marks: a random direction u (entries +-1 / sqrt(D)) added to a key and to the queries that shall see it,
//   times a, a^2 / sqrt(D) = strength. Directions of different marks are orthogonal up to 1 / sqrt(D). waves:
//   pairs of channels hold cos and sin of w_f x; the product of tokens at x and y is the mean over f of
//   cos(w_f (x - y)), times strength. Cauchy frequencies make it exp(-|x - y| / reach), uniform ones a spike
//   at 0.
// Randomness is counter-based: a seed gives the same tensors everywhere. All heads of a batch element differ;
// a key head and the query heads that read it share their features.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

ParamSpec number(const char* name, double value, double min, const char* meaning) {
  ParamSpec s;
  s.name = name;
  s.type = ParamSpec::Type::number;
  s.default_value = value;
  s.min = min;
  s.meaning = meaning;
  return s;
}
ParamSpec integer(const char* name, int64_t value, double min, const char* meaning) {
  ParamSpec s;
  s.name = name;
  s.type = ParamSpec::Type::integer;
  s.default_value = value;
  s.min = min;
  s.meaning = meaning;
  return s;
}
ParamSpec strength_param(double value) {
  return number("strength", value, 0.0, "what a wanted pair's logit gains");
}

enum class Role : uint8_t { query, key, other };
Role role_of(const std::string& name) {
  if (name == "k") return Role::key;
  return name == "q" || name == "qs" || name == "q_router" ? Role::query : Role::other;
}

/// Where the tokens and heads of a [B, N, H, D] or [B, H, N, D] tensor lie.
struct Layout {
  int64_t batch = 1, heads = 1, tokens = 0, dim = 0;
  bool token_major = true;

  Layout(const Problem& p, const TensorSpec& spec) {
    if (spec.shape.rank() != 4)
      throw UsageError("inputs: structured generators fill queries and keys of heads, and '" + spec.name +
                       "' has shape " + spec.shape.str() + "; use the generator normal");
    const int64_t heads_wanted = role_of(spec.name) == Role::key ? p.kv_heads_or_heads() : p.heads;
    token_major = spec.shape[2] == heads_wanted && spec.shape[1] != heads_wanted;
    batch = spec.shape[0], dim = spec.shape[3];
    heads = spec.shape[token_major ? 2 : 1], tokens = spec.shape[token_major ? 1 : 2];
  }
  int64_t at(int64_t b, int64_t h, int64_t n) const {
    return ((token_major ? b * tokens + n : b * heads + h) * (token_major ? heads : tokens) +
            (token_major ? h : n)) *
           dim;
  }
};

/// Random draws of one kind of structure: its stream is hashed once.
struct Draws {
  uint64_t seed, stream;
  Draws(const Problem& p, const char* what)
      : seed(p.seed), stream(stream_of(std::string("structure.") + what)) {}
  uint64_t bits(uint64_t index) const { return random_bits(seed, stream, index); }
  double uniform(uint64_t index) const { return random_uniform(seed, stream, index); }
};

/// Batch elements times key heads: what shares features.
uint64_t groups_of(const Problem& p, const TensorSpec& spec) {
  return static_cast<uint64_t>(spec.shape[0] * p.kv_heads_or_heads());
}

/// The vectors that a token of a group adds to its row, one after another. Query heads of a group and
/// neighbouring rows of a token share them.
class Features {
 public:
  explicit Features(int64_t dim) : dim_(dim) {}
  void clear() { ends_.clear(), values_.clear(); }
  /// A vector of `width` channels from the first on.
  double* next(int64_t width) {
    values_.resize(values_.size() + static_cast<size_t>(width));
    ends_.push_back(values_.size());
    return values_.data() + values_.size() - width;
  }
  void add_to(double* x) const {
    size_t at = 0;
    for (const size_t end : ends_) {
      const double* v = values_.data() + at;
      for (size_t d = 0; d < end - at; ++d) x[d] += v[d];
      at = end;
    }
  }
  /// Waves at phases(f), f = 0 .. count - 1.
  template <class F>
  void waves(int64_t count, double amplitude, const F& phases) {
    double* x = next(2 * count);
    for (int64_t f = 0; f < count; ++f) {
      const double phase = phases(f);
      x[2 * f] = amplitude * std::cos(phase);
      x[2 * f + 1] = amplitude * std::sin(phase);
    }
  }
  int64_t dim() const { return dim_; }

 private:
  int64_t dim_;
  std::vector<size_t> ends_;
  std::vector<double> values_;
};

/// Directions of the marks 0 .. ids - 1 of every group; those of few marks are drawn once.
class Directions {
 public:
  Directions(const Problem& p, uint64_t groups, uint64_t ids, int64_t dim)
      : draws_(p, "direction"), ids_(ids), dim_(dim) {
    if (ids == 0 || groups * ids * static_cast<uint64_t>(dim) > kMostDrawn) return;
    for (uint64_t g = 0; g < groups; ++g)
      for (uint64_t id = 0; id < ids; ++id)
        for (int64_t d = 0; d < dim; ++d) drawn_.push_back(positive(g, id, d));
  }
  /// Adds `amplitude` times the direction of mark number `id`.
  void mark(Features& to, uint64_t group, uint64_t id, double amplitude) const {
    const double each = amplitude / std::sqrt(static_cast<double>(dim_));
    const size_t at = static_cast<size_t>(group * ids_ + id) * static_cast<size_t>(dim_);
    double* x = to.next(dim_);
    for (int64_t d = 0; d < dim_; ++d) {
      const bool up = drawn_.empty() ? positive(group, id, d) : drawn_[at + static_cast<size_t>(d)];
      x[d] = up ? each : -each;
    }
  }

 private:
  static constexpr uint64_t kMostDrawn = uint64_t{1} << 18;
  bool positive(uint64_t group, uint64_t id, int64_t d) const {
    return draws_.bits((group << 40) + (id << 20) + static_cast<uint64_t>(d)) & 1;
  }
  Draws draws_;
  uint64_t ids_;
  int64_t dim_;
  std::vector<char> drawn_;
};

double mark_amplitude(double strength, int64_t dim) {
  return std::sqrt(strength * std::sqrt(static_cast<double>(dim)));
}
/// Half of the channels carry waves.
int64_t wave_count(int64_t dim) { return dim >= 4 ? dim / 4 : dim / 2; }
double wave_amplitude(double strength, int64_t dim) {
  return mark_amplitude(strength, dim) / std::sqrt(static_cast<double>(wave_count(dim)));
}

/// Noise everywhere, then features(group, token, is_query, to) on queries and keys. Token positions of
/// queries are aligned to the keys' end.
template <class F>
void fill_rows(const Problem& p, double noise, const TensorSpec& spec, int64_t begin, int64_t count,
               double* out, const F& features) {
  const uint64_t stream = stream_of(spec.name);
  const Role role = role_of(spec.name);
  const double deviation = role == Role::other ? 1.0 : noise;
  if (role == Role::other) {
    constexpr int64_t kPiece = 4096;
    const int64_t pieces = (count + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (int64_t i = 0; i < pieces; ++i)
      random_normals(p.seed, stream, static_cast<uint64_t>(begin + i * kPiece),
                     std::min(kPiece, count - i * kPiece), out + i * kPiece);
    return;
  }
  const Layout l(p, spec);
  if (l.dim == 0) return;
  const int64_t kv_heads = p.kv_heads_or_heads(), first = begin / l.dim, rows = count / l.dim;
  const int64_t shift = role == Role::query ? p.kv_length_or_length() - p.tokens() : 0;
  const int64_t sharing = role == Role::query ? std::max<int64_t>(1, l.heads / kv_heads) : 1;
#pragma omp parallel if (rows > 64)
  {
    Features of_token(l.dim);
    int64_t last_group = -1, last_token = -1;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r, inner = l.token_major ? l.heads : l.tokens;
      const int64_t x = row % inner, rest = row / inner, outer = l.token_major ? l.tokens : l.heads;
      const int64_t b = rest / outer, y = rest % outer;
      const int64_t t = l.token_major ? y : x, h = l.token_major ? x : y;
      const int64_t group = b * kv_heads + h / sharing;
      double* values = out + r * l.dim;
      random_normals(p.seed, stream, static_cast<uint64_t>(row * l.dim), l.dim, values);
      for (int64_t d = 0; d < l.dim; ++d) values[d] = deviation * values[d];
      if (group != last_group || t != last_token) {
        of_token.clear();
        features(static_cast<uint64_t>(group), t + shift, role == Role::query, of_token);
        last_group = group, last_token = t;
      }
      of_token.add_to(values);
    }
  }
}

/// How many channels a row of a structured tensor has; what has no heads is refused when it is filled.
int64_t width_of(const TensorSpec& spec) { return spec.shape.rank() == 4 ? spec.shape[3] : 0; }
/// A table of value(group, index) for queries and keys; other tensors need none.
template <class V, class F>
std::vector<V> table(const Problem& p, const TensorSpec& spec, int64_t each, const F& value) {
  std::vector<V> t;
  if (role_of(spec.name) == Role::other || spec.shape.rank() != 4) return t;
  for (uint64_t g = 0; g < groups_of(p, spec); ++g)
    for (int64_t i = 0; i < each; ++i) t.push_back(value(g, static_cast<uint64_t>(i)));
  return t;
}
Directions directions(const Problem& p, const TensorSpec& spec, int64_t ids) {
  const bool used = role_of(spec.name) != Role::other && spec.shape.rank() == 4;
  return {p, used ? groups_of(p, spec) : 0, static_cast<uint64_t>(ids), width_of(spec)};
}

void vertical_slash(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin,
                    int64_t count, double* out) {
  const int64_t columns = params.integer("columns"), slashes = params.integer("slashes");
  const int64_t dim = width_of(spec), waves = wave_count(dim);
  const double strength = params.number("strength");
  const auto keys = static_cast<uint64_t>(std::max<int64_t>(p.kv_length_or_length(), 1));
  const Draws columns_of(p, "column"), distances_of(p, "slash"), frequencies(p, "slash frequency");
  const auto column = table<int64_t>(p, spec, columns, [&](uint64_t g, uint64_t c) {
    return static_cast<int64_t>(columns_of.bits(g * 1024 + c) % keys);
  });
  // The first diagonal is the main one; the others lie within the last quarter of the keys.
  const auto distance = table<int64_t>(p, spec, slashes, [&](uint64_t g, uint64_t s) {
    return s == 0 ? int64_t{0} : static_cast<int64_t>(distances_of.bits(g * 1024 + s) % (keys / 4 + 1));
  });
  const auto frequency = table<double>(p, spec, waves, [&](uint64_t g, uint64_t f) {
    return std::numbers::pi * frequencies.uniform(g * 4096 + f);
  });
  const Directions marks = directions(p, spec, 1);
  fill_rows(p, params.number("noise"), spec, begin, count, out,
            [&](uint64_t group, int64_t t, bool query, Features& to) {
              // All columns of a head share one mark, so every query sees all of them.
              const auto from = column.begin() + static_cast<int64_t>(group) * columns;
              if (columns > 0 && (query || std::find(from, from + columns, t) != from + columns))
                marks.mark(to, group, 0, mark_amplitude(strength, dim));
              const double* w = frequency.data() + static_cast<int64_t>(group) * waves;
              for (int64_t s = 0; s < (query ? slashes : 1) && slashes > 0; ++s) {
                const int64_t away =
                    query ? distance[group * static_cast<size_t>(slashes) + static_cast<size_t>(s)] : 0;
                to.waves(waves, wave_amplitude(strength, dim),
                         [&](int64_t f) { return w[f] * static_cast<double>(t - away); });
              }
            });
}

void local_decay(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin, int64_t count,
                 double* out) {
  const double reach = params.number("reach"), strength = params.number("strength");
  const int64_t dim = width_of(spec), waves = wave_count(dim);
  const Draws decay(p, "decay");
  const auto frequency = table<double>(p, spec, waves, [&](uint64_t g, uint64_t f) {
    return std::tan(std::numbers::pi * (decay.uniform(g * 4096 + f) - 0.5)) / reach;
  });
  fill_rows(p, params.number("noise"), spec, begin, count, out,
            [&](uint64_t group, int64_t t, bool, Features& to) {
              const double* w = frequency.data() + static_cast<int64_t>(group) * waves;
              to.waves(waves, wave_amplitude(strength, dim),
                       [&](int64_t f) { return w[f] * static_cast<double>(t); });
            });
}

void sinks(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin, int64_t count,
           double* out) {
  const int64_t first = params.integer("sinks");
  const double amplitude = mark_amplitude(params.number("strength"), width_of(spec));
  const Directions marks = directions(p, spec, 1);
  fill_rows(p, params.number("noise"), spec, begin, count, out,
            [&](uint64_t group, int64_t t, bool query, Features& to) {
              if (query || t < first) marks.mark(to, group, 0, amplitude);
            });
}

void clustered_keys(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin,
                    int64_t count, double* out) {
  const int64_t clusters = params.integer("clusters");
  const double amplitude = mark_amplitude(params.number("strength"), width_of(spec));
  const Draws cluster(p, "cluster");
  const Directions marks = directions(p, spec, clusters);
  fill_rows(
      p, params.number("noise"), spec, begin, count, out, [&](uint64_t group, int64_t t, bool, Features& to) {
        marks.mark(to, group,
                   cluster.bits((group << 40) + static_cast<uint64_t>(t)) % static_cast<uint64_t>(clusters),
                   amplitude);
      });
}

void needles(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin, int64_t count,
             double* out) {
  const int64_t planted = params.integer("needles"), asking = params.integer("queries");
  const int64_t keys = p.kv_length_or_length();
  const double amplitude = mark_amplitude(params.number("strength"), width_of(spec));
  const Draws needle(p, "needle");
  const auto place = table<int64_t>(p, spec, planted, [&](uint64_t g, uint64_t i) {
    return static_cast<int64_t>(needle.bits(g * 4096 + i) %
                                static_cast<uint64_t>(std::max<int64_t>(keys - asking, 1)));
  });
  const Directions marks = directions(p, spec, planted);
  fill_rows(p, params.number("noise"), spec, begin, count, out,
            [&](uint64_t group, int64_t t, bool query, Features& to) {
              if (query && t >= keys - asking)
                marks.mark(to, group, static_cast<uint64_t>((keys - 1 - t) % planted), amplitude);
              if (query) return;
              const int64_t* own = place.data() + static_cast<int64_t>(group) * planted;
              for (int64_t i = 0; i < planted; ++i)
                if (own[i] == t) marks.mark(to, group, static_cast<uint64_t>(i), amplitude);
            });
}

void block_topics(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin,
                  int64_t count, double* out) {
  const int64_t topics = params.integer("topics"), keys = p.kv_length_or_length();
  const int64_t length = std::max<int64_t>((keys + topics - 1) / topics, 1);
  const double amplitude = mark_amplitude(params.number("strength"), width_of(spec));
  const Directions marks = directions(p, spec, topics);
  fill_rows(p, params.number("noise"), spec, begin, count, out,
            [&](uint64_t group, int64_t t, bool, Features& to) {
              marks.mark(to, group, static_cast<uint64_t>(t / length), amplitude);
            });
}

void space_time(const Problem& p, const Params& params, const TensorSpec& spec, int64_t begin, int64_t count,
                double* out) {
  if (p.grid.size() < 2)
    throw UsageError("inputs: generator 'space_time' needs a grid; the problem is " + p.str());
  std::vector<int64_t> grid = p.grid;
  if (grid.size() == 2) grid.insert(grid.begin(), 1);
  const int64_t tokens = grid[0] * grid[1] * grid[2], dim = width_of(spec), waves = wave_count(dim);
  const double reach[3] = {params.number("reach_time"), params.number("reach_space"),
                           params.number("reach_space")};
  const double amplitude = wave_amplitude(params.number("strength"), dim);
  const Draws space(p, "space");
  const auto frequency = table<double>(p, spec, 3 * waves, [&](uint64_t g, uint64_t i) {
    return std::tan(std::numbers::pi * (space.uniform((g * 4096 + i / 3) * 3 + i % 3) - 0.5)) / reach[i % 3];
  });
  fill_rows(p, params.number("noise"), spec, begin, count, out,
            [&](uint64_t group, int64_t t, bool, Features& to) {
              if (t >= tokens) return;  // text behind a video keeps its noise
              const double place[3] = {static_cast<double>(t / grid[2] / grid[1]),
                                       static_cast<double>(t / grid[2] % grid[1]),
                                       static_cast<double>(t % grid[2])};
              const double* w = frequency.data() + static_cast<int64_t>(group) * 3 * waves;
              to.waves(waves, amplitude, [&](int64_t f) {
                double phase = 0;
                for (int64_t a = 0; a < 3; ++a) phase += w[3 * f + a] * place[a];
                return phase;
              });
            });
}

const ParamSpec kNoise =
    number("noise", 1.0, 0.0, "standard deviation of the normal noise under the structure");

const bool registered =
    register_generator(
        {"vertical_slash",
         "A few key columns that every query sees and a few diagonals, in each head: the pattern of "
         "long-context language models.",
         {integer("columns", 8, 0, "strong columns a head"),
          integer("slashes", 3, 0, "strong diagonals a head, the main one first"), strength_param(8.0),
          kNoise},
         vertical_slash}) &&
    register_generator(
        {"local_decay",
         "Logits that fall with distance as strength * exp(-|i - j| / reach).",
         {number("reach", 64.0, 1e-6, "tokens in which the gain falls by e"), strength_param(8.0), kNoise},
         local_decay}) &&
    register_generator({"sinks",
                        "The first keys attract every query.",
                        {integer("sinks", 4, 0, "keys that do"), strength_param(8.0), kNoise},
                        sinks}) &&
    register_generator(
        {"clustered_keys",
         "Every token belongs to one of a few clusters, in no order; tokens of a cluster see each other.",
         {integer("clusters", 16, 1, "clusters a head"), strength_param(8.0), kNoise},
         clustered_keys}) &&
    register_generator(
        {"needles",
         "Single keys at random places that only the last queries look for, one each in turn.",
         {integer("needles", 8, 1, "planted keys a head"),
          integer("queries", 64, 1, "last queries that look for them"), strength_param(16.0), kNoise},
         needles}) &&
    register_generator({"block_topics",
                        "Consecutive stretches of tokens that see each other: block-diagonal attention.",
                        {integer("topics", 16, 1, "stretches of equal length"), strength_param(8.0), kNoise},
                        block_topics}) &&
    register_generator(
        {"space_time",
         "Video-like: logits fall with distance along time, rows and columns of the grid, as strength * "
         "exp(-|dt| / reach_time - (|dy| + |dx|) / reach_space).",
         {number("reach_time", 2.0, 1e-6, "frames in which the gain falls by e"),
          number("reach_space", 6.0, 1e-6, "tokens of a row or column in which it does"),
          strength_param(10.0), kNoise},
         space_time});

}  // namespace

}  // namespace attnbench
