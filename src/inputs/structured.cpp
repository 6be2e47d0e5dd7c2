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

uint64_t bits(const Problem& p, const char* what, uint64_t index) {
  return random_bits(p.seed, stream_of(std::string("structure.") + what), index);
}
double uniform(const Problem& p, const char* what, uint64_t index) {
  return random_uniform(p.seed, stream_of(std::string("structure.") + what), index);
}

/// Adds the features of one token of one key group to its row.
struct Row {
  double* x;
  int64_t dim;
  const Problem& problem;
  uint64_t group;  ///< batch element and key head

  /// amplitude times the direction of mark number `id`.
  void mark(uint64_t id, double amplitude) const {
    const double each = amplitude / std::sqrt(static_cast<double>(dim));
    for (int64_t d = 0; d < dim; ++d) {
      const uint64_t index = (group << 40) + (id << 20) + static_cast<uint64_t>(d);
      x[d] += bits(problem, "direction", index) & 1 ? each : -each;
    }
  }
  /// Waves at phase sum_a w[f][a] * position[a].
  void waves(const std::vector<double>& phases, double amplitude) const {
    for (size_t f = 0; f < phases.size(); ++f) {
      x[2 * f] += amplitude * std::cos(phases[f]);
      x[2 * f + 1] += amplitude * std::sin(phases[f]);
    }
  }
};

double mark_amplitude(double strength, int64_t dim) {
  return std::sqrt(strength * std::sqrt(static_cast<double>(dim)));
}
/// Half of the channels carry waves.
int64_t wave_count(int64_t dim) { return dim >= 4 ? dim / 4 : dim / 2; }
double wave_amplitude(double strength, int64_t dim) {
  return mark_amplitude(strength, dim) / std::sqrt(static_cast<double>(wave_count(dim)));
}

/// Noise everywhere, then features(row, token, is_query) on queries and keys. Token positions of queries are
/// aligned to the keys' end.
template <class F>
void fill_rows(const Problem& p, double noise, const TensorSpec& spec, std::vector<double>& values,
               const F& features) {
  const uint64_t stream = stream_of(spec.name);
  const auto n = static_cast<int64_t>(values.size());
  const Role role = role_of(spec.name);
  const double deviation = role == Role::other ? 1.0 : noise;
#pragma omp parallel for schedule(static) if (n > 4096)
  for (int64_t i = 0; i < n; ++i)
    values[static_cast<size_t>(i)] = deviation * random_normal(p.seed, stream, static_cast<uint64_t>(i));
  if (role == Role::other) return;
  const Layout l(p, spec);
  const int64_t kv_heads = p.kv_heads_or_heads();
  const int64_t shift = role == Role::query ? p.kv_length_or_length() - p.tokens() : 0;
  const int64_t rows = l.batch * l.heads * l.tokens;
#pragma omp parallel for schedule(static) if (rows > 64)
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t t = r % l.tokens, h = r / l.tokens % l.heads, b = r / l.tokens / l.heads;
    const int64_t kv = role == Role::query ? h / std::max<int64_t>(1, l.heads / kv_heads) : h;
    const Row row{values.data() + l.at(b, h, t), l.dim, p, static_cast<uint64_t>(b * kv_heads + kv)};
    features(row, t + shift, role == Role::query);
  }
}

void vertical_slash(const Problem& p, const Params& params, const TensorSpec& spec,
                    std::vector<double>& values) {
  const int64_t columns = params.integer("columns"), slashes = params.integer("slashes");
  const double strength = params.number("strength");
  const auto keys = static_cast<uint64_t>(std::max<int64_t>(p.kv_length_or_length(), 1));
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool query) {
    // All columns of a head share one mark, so every query sees all of them.
    bool column = query;
    for (int64_t c = 0; c < columns && !column; ++c)
      column =
          static_cast<int64_t>(bits(p, "column", row.group * 1024 + static_cast<uint64_t>(c)) % keys) == t;
    if (column && columns > 0) row.mark(0, mark_amplitude(strength, row.dim));
    std::vector<double> phases(static_cast<size_t>(wave_count(row.dim)));
    for (int64_t s = 0; s < (query ? slashes : 1) && slashes > 0; ++s) {
      // The first diagonal is the main one; the others lie within the last quarter of the keys.
      const int64_t distance =
          !query || s == 0
              ? 0
              : static_cast<int64_t>(bits(p, "slash", row.group * 1024 + static_cast<uint64_t>(s)) %
                                     (keys / 4 + 1));
      for (size_t f = 0; f < phases.size(); ++f)
        phases[f] = std::numbers::pi * uniform(p, "slash frequency", row.group * 4096 + f) *
                    static_cast<double>(t - distance);
      row.waves(phases, wave_amplitude(strength, row.dim));
    }
  });
}

void local_decay(const Problem& p, const Params& params, const TensorSpec& spec,
                 std::vector<double>& values) {
  const double reach = params.number("reach"), strength = params.number("strength");
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool) {
    std::vector<double> phases(static_cast<size_t>(wave_count(row.dim)));
    for (size_t f = 0; f < phases.size(); ++f)
      phases[f] = std::tan(std::numbers::pi * (uniform(p, "decay", row.group * 4096 + f) - 0.5)) / reach *
                  static_cast<double>(t);
    row.waves(phases, wave_amplitude(strength, row.dim));
  });
}

void sinks(const Problem& p, const Params& params, const TensorSpec& spec, std::vector<double>& values) {
  const int64_t count = params.integer("sinks");
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool query) {
    if (query || t < count) row.mark(0, mark_amplitude(params.number("strength"), row.dim));
  });
}

void clustered_keys(const Problem& p, const Params& params, const TensorSpec& spec,
                    std::vector<double>& values) {
  const auto clusters = static_cast<uint64_t>(params.integer("clusters"));
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool) {
    row.mark(bits(p, "cluster", (row.group << 40) + static_cast<uint64_t>(t)) % clusters,
             mark_amplitude(params.number("strength"), row.dim));
  });
}

void needles(const Problem& p, const Params& params, const TensorSpec& spec, std::vector<double>& values) {
  const int64_t count = params.integer("needles"), asking = params.integer("queries");
  const int64_t keys = p.kv_length_or_length();
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool query) {
    const double amplitude = mark_amplitude(params.number("strength"), row.dim);
    if (query && t >= keys - asking) row.mark(static_cast<uint64_t>((keys - 1 - t) % count), amplitude);
    if (query) return;
    for (int64_t i = 0; i < count; ++i)
      if (static_cast<int64_t>(bits(p, "needle", row.group * 4096 + static_cast<uint64_t>(i)) %
                               static_cast<uint64_t>(std::max<int64_t>(keys - asking, 1))) == t)
        row.mark(static_cast<uint64_t>(i), amplitude);
  });
}

void block_topics(const Problem& p, const Params& params, const TensorSpec& spec,
                  std::vector<double>& values) {
  const int64_t topics = params.integer("topics"), keys = p.kv_length_or_length();
  const int64_t length = std::max<int64_t>((keys + topics - 1) / topics, 1);
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool) {
    row.mark(static_cast<uint64_t>(t / length), mark_amplitude(params.number("strength"), row.dim));
  });
}

void space_time(const Problem& p, const Params& params, const TensorSpec& spec, std::vector<double>& values) {
  if (p.grid.size() < 2)
    throw UsageError("inputs: generator 'space_time' needs a grid; the problem is " + p.str());
  std::vector<int64_t> grid = p.grid;
  if (grid.size() == 2) grid.insert(grid.begin(), 1);
  const int64_t tokens = grid[0] * grid[1] * grid[2];
  const double reach[3] = {params.number("reach_time"), params.number("reach_space"),
                           params.number("reach_space")};
  fill_rows(p, params.number("noise"), spec, values, [&](const Row& row, int64_t t, bool) {
    if (t >= tokens) return;  // text behind a video keeps its noise
    const int64_t place[3] = {t / grid[2] / grid[1], t / grid[2] % grid[1], t % grid[2]};
    std::vector<double> phases(static_cast<size_t>(wave_count(row.dim)));
    for (size_t f = 0; f < phases.size(); ++f)
      for (size_t a = 0; a < 3; ++a)
        phases[f] +=
            std::tan(std::numbers::pi * (uniform(p, "space", (row.group * 4096 + f) * 3 + a) - 0.5)) /
            reach[a] * static_cast<double>(place[a]);
    row.waves(phases, wave_amplitude(params.number("strength"), row.dim));
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
