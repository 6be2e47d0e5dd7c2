// NATTENSim as exact arithmetic: how many key tiles a tiled neighbourhood attention visits, and the speed-ups
// that follow. Integers only; no tensors, nothing runs.
//
// Source: Generalized Neighborhood Attention, arXiv 2504.16922: the analytical model of its Sec. 3, made
// exact.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attnbench {

/// One entry an axis, outermost first.
struct GnaProblem {
  std::vector<int64_t> extents, window, stride, dilation;
  std::vector<bool> causal;
  std::vector<int64_t> q_tile, kv_tile;  ///< single-dimensional tiling: one entry each, in tokens
  /// Key tiles count from the first key that the query tile sees, not from the grid's corner.
  bool dynamic_kv = false;
  /// Tiles are runs of row-major tokens.
  bool single_dim = false;
};
/// Throws UsageError: a sentence for every wrong or missing entry.
void check_gna(const GnaProblem& problem);

/// Keys [begin, end) of place p of a dilation group of `length` places on axis `a`, as places of the group.
struct GnaWindow {
  int64_t begin = 0, end = 0;
};
GnaWindow gna_window(const GnaProblem& problem, size_t a, int64_t length, int64_t p);
/// Places of dilation group g on axis `a`.
int64_t gna_group_length(const GnaProblem& problem, size_t a, int64_t g);

struct GnaCounts {
  /// The worst query tile of each axis (of its worst dilation group); empty with single-dimensional tiling.
  std::vector<int64_t> visited_max_per_axis;
  int64_t visited_max = 0;  ///< key tiles that the worst query tile visits
  int64_t total = 0;        ///< key tiles of dense attention
  int64_t visited_sum = 0;  ///< over all query tiles
  int64_t q_tiles = 0;
  double s_sim = 1;   ///< total / visited_max: the paper's simulated speed-up
  double s_avg = 1;   ///< total / mean visited tiles
  double s_flop = 1;  ///< all pairs / pairs of the windows
  /// No query tile meets a key tile that it sees in part, by the published test, which is right only for even
  /// tiles (or key tiles of 1): `block_sparse_valid`.
  bool block_sparse = false, block_sparse_valid = false;
  /// Masked share of what the worst query tile executes: visited_max * |key tile| / window - 1.
  double wasted = 0;
};
GnaCounts simulate_gna(const GnaProblem& problem);

/// Query-key tile products of one batch element and head over all dilation groups, multi-dimensional tiling:
/// what a kernel executes that skips every tile without a pair.
int64_t gna_executed_tiles(const GnaProblem& problem);

/// 1 / (1 - p u + p u / s): the speed-up of a run whose dense form spends the share p in self attention, in a
/// share u of its steps.
double gna_end_to_end(double p, double u, double s);

}  // namespace attnbench
