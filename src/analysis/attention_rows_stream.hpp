// Streams attention rows of an instance in bounded memory, a spread of the queries at a time. What analyses
// of weights share; not an analysis.
#pragma once
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "methods/method.hpp"

namespace attnbench {

/// Which rows to look at: every query, or `queries` of them in short runs spread evenly.
struct RowSample {
  int64_t queries = 0;  ///< 0: all
  /// Consecutive queries share what a method widens for a call.
  static constexpr int64_t kRun = 16;
  /// In flight: 16 MiB. A call widens all keys of a head, which takes as long as a few rows of it.
  static constexpr int64_t kFloats = int64_t{1} << 22;
};

/// Calls range(b, begin, end) for the runs of queries that the sample takes, batch element by batch element.
/// Returns false as soon as range does.
template <class F>
bool for_runs(int64_t batch, int64_t queries, const RowSample& sample, F&& range) {
  for (int64_t b = 0; b < batch; ++b) {
    if (sample.queries == 0 || sample.queries >= queries) {
      if (!range(b, 0, queries)) return false;
      continue;
    }
    const int64_t runs = (sample.queries + RowSample::kRun - 1) / RowSample::kRun;
    for (int64_t r = 0; r < runs; ++r) {
      const int64_t length = std::min(RowSample::kRun, sample.queries - r * RowSample::kRun);
      const int64_t begin = runs == 1 ? (queries - length) / 2 : r * (queries - length) / (runs - 1);
      if (!range(b, begin, begin + length)) return false;
    }
  }
  return true;
}

/// Calls visit(b, begin, end, rows) with the probabilities of some sampled queries [begin, end) of head h,
/// row by row of `keys`. Returns false when the method has no rows, or fewer or more columns than `keys` in
/// this head.
template <class F>
bool for_row_blocks(Context& ctx, Instance& instance, int64_t batch, int64_t h, int64_t queries, int64_t keys,
                    const RowSample& sample, F&& visit) {
  if (keys <= 0 || instance.keys(h) != keys) return false;
  std::vector<float> block;
  return for_runs(batch, queries, sample, [&](int64_t b, int64_t begin, int64_t end) {
    const int64_t step = std::max<int64_t>(1, RowSample::kFloats / keys);
    for (int64_t q = begin; q < end; q += step) {
      const int64_t last = std::min(q + step, end);
      if (!instance.rows(ctx, b, h, q, last, block)) return false;
      if (block.size() != static_cast<size_t>((last - q) * keys))
        throw Error("rows() gave " + std::to_string(block.size()) + " values for " +
                    std::to_string(last - q) + " queries of " + std::to_string(keys) + " keys");
      visit(b, q, last, static_cast<const float*>(block.data()));
    }
    return true;
  });
}

/// The same, row by row: visit(b, h, i, row).
template <class F>
bool for_rows(Context& ctx, Instance& instance, int64_t batch, int64_t h, int64_t queries, int64_t keys,
              const RowSample& sample, F&& visit) {
  return for_row_blocks(ctx, instance, batch, h, queries, keys, sample,
                        [&](int64_t b, int64_t begin, int64_t end, const float* rows) {
                          for (int64_t i = begin; i < end; ++i) visit(b, h, i, rows + (i - begin) * keys);
                        });
}

}  // namespace attnbench
