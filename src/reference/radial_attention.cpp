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

/// Distance of positions up to which the token mask of repo_block keeps pairs of frames i and j; below 0:
/// none.
double repo_reach(const Params& p, int64_t s, int64_t i, int64_t j) {
  if (p.integer("sink_frames") == 1 && j == 0) return static_cast<double>(s);
  const int64_t d = std::abs(i - j);
  const double e = std::pow(2.0, static_cast<double>(bit_length(s) - bit_length(d)));
  const auto split = static_cast<double>(p.integer("split_threshold"));
  if (e < split && std::fmod(static_cast<double>(d), std::floor(split / e)) != 0) return -1;
  double w = static_cast<double>(s);
  if (d > 1) w = std::max(e * p.number("decay_factor"), static_cast<double>(p.integer("block_size")));
  return w;
}

bool paper_token(const Params& p, int64_t s, int64_t i, int64_t j, int64_t kq, int64_t kk) {
  if (p.integer("sink_frames") == 1 && j == 0) return true;
  const int64_t d = std::abs(i - j), distance = std::abs(kq - kk);
  int64_t band = 1;
  while (2 * band <= std::max<int64_t>(d, 1)) band *= 2;
  if (band <= s) return (distance + 1) * band <= s;
  return distance == 0 && d % ((band + s - 1) / s) == 0;
}

/// Row r of the block mask [n_blocks, n_blocks], steps 4 to 6.
std::vector<char> block_mask_row(const Params& p, int64_t f, int64_t s, int64_t n, int64_t r) {
  const int64_t b = p.integer("block_size"), blocks = (n + b - 1) / b, span = (s + b - 1) / b;
  const double least_density = p.number("column_density_min"), least_share = p.number("block_keep_fraction");
  std::vector<char> kept(static_cast<size_t>(blocks), 0);
  for (int64_t i = 0; i < f; ++i) {
    const int64_t u = r - i * s / b;
    if (u < 0 || u >= span) continue;
    for (int64_t j = 0; j < f; ++j) {
      const int64_t row_offset = i * s % b, column_offset = j * s % b;
      const double reach = repo_reach(p, s, i, j);
      for (int64_t v = 0; v < span; ++v) {
        int64_t nonzero = 0, dense = 0;
        for (int64_t y = 0; y < b; ++y) {
          const int64_t kk = v * b + y - column_offset;
          int64_t rows = 0;
          for (int64_t x = 0; x < b; ++x) {
            const int64_t kq = u * b + x - row_offset;
            if (kq >= 0 && kq < s && kk >= 0 && kk < s)
              rows += static_cast<double>(std::abs(kq - kk)) <= reach;
          }
          const double density = static_cast<double>(rows) / static_cast<double>(b);
          nonzero += density > 0;
          dense += density > least_density;
        }
        if (static_cast<double>(dense) / (static_cast<double>(nonzero) + 1e-9) > least_share)
          kept[static_cast<size_t>(j * s / b + v)] = 1;
      }
    }
  }
  for (int64_t c = 0; c < blocks; ++c)
    if (r >= f * s / b || c >= f * s / b) kept[static_cast<size_t>(c)] = 1;
  return kept;
}

/// Row x of the token mask [n, n], or row x of the block mask.
std::vector<char> mask_row(const Params& p, int64_t n, int64_t x) {
  const int64_t f = p.integer("num_frames"), s = p.integer("tokens_per_frame");
  if (p.choice("variant") != "paper_token") return block_mask_row(p, f, s, n, x);
  std::vector<char> kept(static_cast<size_t>(n));
  for (int64_t y = 0; y < n; ++y)
    kept[static_cast<size_t>(y)] = x >= f * s || y >= f * s || paper_token(p, s, x / s, y / s, x % s, y % s);
  return kept;
}

RefMap radial_attention_rows(const Problem&, const Params& p, const RefMap& inputs, const RefMap&,
                             const std::vector<int64_t>& rows) {
  const int64_t n = inputs.at("q").dim(2);
  const int64_t side = p.choice("variant") == "paper_token" ? 1 : p.integer("block_size");
  std::map<int64_t, std::vector<char>> masks;  // by block of queries, the same for every batch and head
  for (const int64_t row : rows)
    if (std::vector<char>& of = masks[row % n / side]; of.empty()) of = mask_row(p, n, row % n / side);
  return ref::attention_rows(inputs, ref::attention_scale(p, inputs), rows,
                             [&](int64_t, int64_t, int64_t i, std::vector<char>& visible) {
                               const std::vector<char>& of = masks.at(i / side);
                               for (int64_t j = 0; j < n; ++j)
                                 visible[static_cast<size_t>(j)] = of[static_cast<size_t>(j / side)];
                             });
}

RefMap radial_attention_reference(const Problem& problem, const Params& p, const RefMap& inputs,
                                  const RefMap& weights) {
  const int64_t n = inputs.at("q").dim(2), b = p.integer("block_size");
  RefMap out = ref::all_rows(radial_attention_rows, problem, p, inputs, weights, inputs.at("q").shape);
  const int64_t side = p.choice("variant") == "paper_token" ? n : (n + b - 1) / b;
  // The method leaves the mask out where it has more than 2^20 entries.
  if (side * side <= int64_t{1} << 20) {
    RefTensor selected({side, side});
    for (int64_t x = 0; x < side; ++x) {
      const std::vector<char> kept = mask_row(p, n, x);
      for (int64_t y = 0; y < side; ++y) selected[x * side + y] = kept[static_cast<size_t>(y)];
    }
    out["selected"] = selected;
  }
  return out;
}
ATTNBENCH_REFERENCE(radial_attention, radial_attention_reference);
ATTNBENCH_ROW_REFERENCE(radial_attention, radial_attention_rows);

}  // namespace
}  // namespace attnbench
