#include "analysis/row_stream.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "analysis/attention_rows_stream.hpp"

namespace attnbench {

RowStream::RowStream(Context& ctx, Instance& instance, const Problem& problem, std::string analysis)
    : ctx_(ctx), instance_(instance), analysis_(std::move(analysis)) {
  const std::optional<PairSet> pairs = instance.pairs();
  batch_ = pairs ? pairs->batch : problem.batch;
  heads_ = pairs ? pairs->heads : std::max<int64_t>(problem.heads, 1);
  queries_ = pairs ? pairs->queries : problem.tokens();
  tokens_ = pairs ? pairs->tokens : queries_;
  std::vector<float> probe;
  if (queries_ < 1 || keys(0) <= 0 || !instance_.rows(ctx_, 0, 0, 0, 1, probe))
    throw Unsupported(analysis_ + ": the method has no attention rows");
}

bool RowStream::self_attention() const {
  if (tokens_ < queries_) return false;
  for (int64_t h = 0; h < heads_; ++h)
    if (keys(h) != tokens_) return false;
  return true;
}

void RowStream::check(const float* p, int64_t b, int64_t h, int64_t i) const {
  const int64_t m = keys(h);
  for (int64_t j = 0; j < m; ++j)
    if (p[j] < 0)
      throw Unsupported(
          fmt::format("{}: the rows are no probabilities: weight {} of key {} in batch {}, head {}, query {}",
                      analysis_, p[j], j, b, h, i));
}

void RowStream::each_row(int64_t b, int64_t h, const std::function<void(int64_t, const float*)>& f) {
  const int64_t m = keys(h), step = std::clamp<int64_t>(RowSample::kFloats / m, 1, queries_);
  std::vector<float> block;
  for (int64_t q = 0; q < queries_; q += step) {
    const int64_t end = std::min(q + step, queries_);
    if (!instance_.rows(ctx_, b, h, q, end, block))
      throw Unsupported(analysis_ + ": the method has no attention rows");
    if (static_cast<int64_t>(block.size()) != (end - q) * m)
      throw Error(fmt::format("{}: rows() gave {} values for {} queries of {} keys", analysis_, block.size(),
                              end - q, m));
    for (int64_t i = q; i < end; ++i) {
      const float* p = block.data() + (i - q) * m;
      check(p, b, h, i);
      if (std::all_of(p, p + m, [](float x) { return std::isfinite(x); }))
        f(i, p);
      else
        ++not_finite_;
    }
  }
}

std::vector<std::vector<float>> RowStream::sample(int64_t b, int64_t h, int64_t count) {
  std::vector<std::vector<float>> all;
  std::vector<float> row;
  const int64_t n = sampled(count);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t q = (2 * i + 1) * queries_ / (2 * n);  // the middle of each of n equal parts
    if (!instance_.rows(ctx_, b, h, q, q + 1, row) || static_cast<int64_t>(row.size()) != keys(h))
      throw Unsupported(analysis_ + ": the method has no attention rows");
    check(row.data(), b, h, q);
    all.push_back(row);
  }
  return all;
}

void RowStream::note(AnalysisResult& r) const {
  if (not_finite_ == 0) return;
  r.scalars["rows_not_finite"] = static_cast<double>(not_finite_);
  r.notes["rows_not_finite"] = fmt::format("{} rows are NaN or infinite and are left out", not_finite_);
}

}  // namespace attnbench
