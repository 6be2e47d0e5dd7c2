#include "analysis/dense_side.hpp"

#include <algorithm>

namespace attnbench {

DenseSide::DenseSide(Context& ctx, Instance& instance, std::string analysis)
    : ctx_(ctx), analysis_(std::move(analysis)) {
  auto* counterpart = dynamic_cast<DenseCounterpart*>(&instance);
  std::optional<DenseEquivalent> dense = counterpart ? counterpart->dense_equivalent(ctx) : std::nullopt;
  if (!dense) throw Unsupported(analysis_ + ": the method stands for no dense softmax attention");
  std::optional<PairSet> chosen = instance.pairs();
  if (!chosen) throw Unsupported(analysis_ + ": the method has no pairs of tokens");
  dense_ = std::move(*dense), chosen_ = std::move(*chosen);
  if (chosen_.heads != heads() || chosen_.queries != queries() || chosen_.tokens != keys())
    throw Unsupported(analysis_ + ": the method's pairs are not those of its dense attention's tokens");
}

void DenseSide::rows(int64_t b, int64_t h, int64_t begin, int64_t end, std::vector<float>& out) {
  if (!rows_) rows_ = std::make_unique<AttentionRows>(ctx_, dense_.call);
  rows_->read(b, h, begin, end, out);
}

void DenseSide::each_row(int64_t h, const RowSample& sample, const Visit& f) {
  std::vector<float> block;
  std::vector<Intervals> allowed, kept;
  const int64_t m = keys();
  int64_t slot = 0;
  for_runs(batch(), queries(), sample, [&](int64_t b, int64_t begin, int64_t end) {
    const int64_t step = std::max<int64_t>(1, kFloats / m);
    for (int64_t q = begin; q < end; q += step) {
      const int64_t last = std::min(q + step, end);
      allowed.resize(static_cast<size_t>(last - q)), kept.resize(allowed.size());
      bool all = true;
#pragma omp parallel for num_threads(ctx_.threads()) schedule(dynamic) reduction(&& : all)
      for (int64_t i = q; i < last; ++i) {
        const auto at = static_cast<size_t>(i - q);
        Intervals chosen;
        dense_.pairs.row(b, h, i, allowed[at]);
        chosen_.row(b, h, i, chosen);
        kept[at] = common(allowed[at], chosen);
        all = all && kept[at] == allowed[at];
      }
      if (!all) rows(b, h, q, last, block);
#pragma omp parallel for num_threads(ctx_.threads()) schedule(dynamic)
      for (int64_t i = q; i < last; ++i) {
        const auto at = static_cast<size_t>(i - q);
        if (allowed[at].empty()) continue;
        f(slot + i - q, all ? nullptr : block.data() + (i - q) * m, allowed[at], kept[at]);
      }
      slot += last - q;
    }
    return true;
  });
}

Intervals common(const Intervals& a, const Intervals& b) {
  Intervals out;
  for (size_t x = 0, y = 0; x < a.size() && y < b.size();) {
    const int64_t begin = std::max(a[x].begin, b[y].begin), end = std::min(a[x].end, b[y].end);
    if (begin < end) out.push_back({begin, end});
    (a[x].end < b[y].end ? x : y) += 1;
  }
  return out;
}

void unite(Intervals& v) {
  std::sort(v.begin(), v.end(), [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  Intervals out;
  for (const Interval& x : v) {
    if (x.begin >= x.end) continue;
    if (!out.empty() && out.back().end >= x.begin)
      out.back().end = std::max(out.back().end, x.end);
    else
      out.push_back(x);
  }
  v = std::move(out);
}

}  // namespace attnbench
