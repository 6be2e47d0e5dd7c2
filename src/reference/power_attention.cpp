// Reference of `power_attention`: the predicate of each pattern, pair by pair.
#include <cstdlib>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// Whether a query of block bq may read block bk by the pattern alone.
bool reads(const Params& params, int64_t bq, int64_t bk) {
  const int64_t delta = std::abs(bq - bk);
  const std::string& pattern = params.choice("pattern");
  if (pattern == "power") {
    if (bk < params.integer("sink_blocks") || delta < params.integer("window_blocks")) return true;
    return delta == 0 || (params.boolean("power_blocks") && (delta & (delta - 1)) == 0);
  }
  if (pattern == "sliding_window") return delta < 9 || bk == 0;
  if (pattern == "stride_slash") return delta < 6 || bk == 0 || delta % params.integer("stride_blocks") == 0;
  if (pattern == "dilated") return delta % 2 == 0 && delta < 20;
  const int64_t x = bq ^ bk, y = bq | bk;  // longnet
  if (x < 8) return true;
  if (x < 16 && y % 2 == 0) return true;
  if (x < 32 && y % 4 == 0) return true;
  if (x < 64 && y % 8 == 0) return true;
  return x < 128 && y % 16 == 0;
}

RefMap power_attention_rows(const Problem&, const Params& params, const RefMap& inputs, const RefMap&,
                            const std::vector<int64_t>& rows) {
  const int64_t n = inputs.at("q").dim(2), m = inputs.at("k").dim(2), b = params.integer("block_size");
  const bool causal = params.boolean("causal");
  return ref::attention_rows(inputs, ref::attention_scale(params, inputs), rows,
                             [&](int64_t, int64_t, int64_t row, std::vector<char>& visible) {
                               const int64_t i = m - n + row;
                               for (int64_t j = 0; j < m; ++j)
                                 visible[static_cast<size_t>(j)] =
                                     (!causal || j <= i) && reads(params, i / b, j / b);
                             });
}

RefMap power_attention_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                                 const RefMap& weights) {
  return ref::all_rows(power_attention_rows, problem, params, inputs, weights, inputs.at("q").shape);
}
ATTNBENCH_REFERENCE(power_attention, power_attention_reference);
ATTNBENCH_ROW_REFERENCE(power_attention, power_attention_rows);

}  // namespace
}  // namespace attnbench
