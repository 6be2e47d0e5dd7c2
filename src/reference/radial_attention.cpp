// Reference of `radial_attention`: both masks token by token, blocks rounded on a canvas as the card says.
#include <cmath>
#include <cstdlib>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

int64_t bit_length(int64_t x) {
  int64_t n = 0;
  for (; x > 0; x /= 2) ++n;
  return n;
}

/// Whether the token mask of repo_block keeps positions kq of frame i and kk of frame j.
bool repo_token(const Params& p, int64_t s, int64_t i, int64_t j, int64_t kq, int64_t kk) {
  if (p.integer("sink_frames") == 1 && j == 0) return true;
  const int64_t d = std::abs(i - j);
  const double e = std::pow(2.0, static_cast<double>(bit_length(s) - bit_length(d)));
  const auto split = static_cast<double>(p.integer("split_threshold"));
  if (e < split && std::fmod(static_cast<double>(d), std::floor(split / e)) != 0) return false;
  double w = static_cast<double>(s);
  if (d > 1) w = std::max(e * p.number("decay_factor"), static_cast<double>(p.integer("block_size")));
  return static_cast<double>(std::abs(kq - kk)) <= w;
}

bool paper_token(const Params& p, int64_t s, int64_t i, int64_t j, int64_t kq, int64_t kk) {
  if (p.integer("sink_frames") == 1 && j == 0) return true;
  const int64_t d = std::abs(i - j), distance = std::abs(kq - kk);
  int64_t band = 1;
  while (2 * band <= std::max<int64_t>(d, 1)) band *= 2;
  if (band <= s) return (distance + 1) * band <= s;
  return distance == 0 && d % ((band + s - 1) / s) == 0;
}

/// Block mask [n_blocks, n_blocks], steps 4 to 6.
std::vector<char> block_mask(const Params& p, int64_t f, int64_t s, int64_t n) {
  const int64_t b = p.integer("block_size"), blocks = (n + b - 1) / b, span = (s + b - 1) / b;
  std::vector<char> kept(static_cast<size_t>(blocks * blocks), 0);
  for (int64_t i = 0; i < f; ++i)
    for (int64_t j = 0; j < f; ++j) {
      const int64_t row_offset = i * s % b, column_offset = j * s % b;
      for (int64_t u = 0; u < span; ++u)
        for (int64_t v = 0; v < span; ++v) {
          int64_t nonzero = 0, dense = 0;
          for (int64_t y = 0; y < b; ++y) {
            const int64_t kk = v * b + y - column_offset;
            int64_t rows = 0;
            for (int64_t x = 0; x < b; ++x) {
              const int64_t kq = u * b + x - row_offset;
              if (kq >= 0 && kq < s && kk >= 0 && kk < s) rows += repo_token(p, s, i, j, kq, kk);
            }
            const double density = static_cast<double>(rows) / static_cast<double>(b);
            nonzero += density > 0;
            dense += density > p.number("column_density_min");
          }
          if (static_cast<double>(dense) / (static_cast<double>(nonzero) + 1e-9) >
              p.number("block_keep_fraction"))
            kept[static_cast<size_t>((i * s / b + u) * blocks + j * s / b + v)] = 1;
        }
    }
  for (int64_t r = 0; r < blocks; ++r)
    for (int64_t c = 0; c < blocks; ++c)
      if (r >= f * s / b || c >= f * s / b) kept[static_cast<size_t>(r * blocks + c)] = 1;
  return kept;
}

RefMap radial_attention_reference(const Problem&, const Params& p, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), kv_heads = k.dim(1);
  const int64_t f = p.integer("num_frames"), s = p.integer("tokens_per_frame"), b = p.integer("block_size");
  const Value& given = p.value("scale");
  const double scale = given.is_null() ? 1.0 / std::sqrt(static_cast<double>(d)) : given.as_double();
  const bool by_token = p.choice("variant") == "paper_token";
  const int64_t side = by_token ? n : (n + b - 1) / b;
  std::vector<char> mask;
  if (by_token) {
    mask.assign(static_cast<size_t>(n * n), 0);
    for (int64_t x = 0; x < n; ++x)
      for (int64_t y = 0; y < n; ++y)
        mask[static_cast<size_t>(x * n + y)] =
            x >= f * s || y >= f * s || paper_token(p, s, x / s, y / s, x % s, y % s);
  } else {
    mask = block_mask(p, f, s, n);
  }
  const auto keeps = [&](int64_t x, int64_t y) {
    return mask[static_cast<size_t>(by_token ? x * n + y : x / b * side + y / b)] != 0;
  };
  RefTensor o({batch, heads, n, d});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t z = 0; z < batch; ++z)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = z * kv_heads + h / (heads / kv_heads);
      std::vector<double> weights(static_cast<size_t>(n));
      std::vector<char> visible(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = ((z * heads + h) * n + i) * d;
        for (int64_t j = 0; j < n; ++j) {
          visible[static_cast<size_t>(j)] = keeps(i, j);
          double dot = 0;
          if (visible[static_cast<size_t>(j)])
            for (int64_t c = 0; c < d; ++c) dot += q[at + c] * k[(kv * n + j) * d + c];
          weights[static_cast<size_t>(j)] = dot * scale;
        }
        if (!ref::softmax_row(weights, visible)) continue;
        for (int64_t j = 0; j < n; ++j)
          if (visible[static_cast<size_t>(j)])
            for (int64_t c = 0; c < d; ++c)
              o[at + c] += weights[static_cast<size_t>(j)] * v[(kv * n + j) * d + c];
      }
    }
  RefMap out{{"o", o}};
  // The method leaves the mask out where it has more than 2^20 entries.
  if (side * side <= int64_t{1} << 20) {
    RefTensor selected({side, side});
    for (size_t e = 0; e < mask.size(); ++e) selected.data[e] = mask[e];
    out["selected"] = selected;
  }
  return out;
}
ATTNBENCH_REFERENCE(radial_attention, radial_attention_reference);

}  // namespace
}  // namespace attnbench
