// Whether a sparse method kept the keys with the largest dense weights.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/analysis.hpp"
#include "analysis/dense_side.hpp"

namespace attnbench {

namespace {

class TopkRecall final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "topk_recall";
      i.title = "Largest dense weights that the selection keeps";
      i.summary =
          "The share of the k keys with the largest dense weights that the method attends to, for several k, "
          "by head "
          "and over all rows. Rows with fewer than k keys count all of theirs; of equal weights the lower "
          "index is the "
          "larger.";
      i.formula =
          "topk_recall_k = mean_i |top_k(p_i) and S_i| / min(k, |M_i|)      p, S and M as in mass_recall";
      i.unit = "share of keys";
      ParamSpec k;
      k.name = "k";
      k.type = ParamSpec::Type::list;
      k.default_value = Value(Value::List{1, 16, 64, 256});
      k.min = 1;
      k.meaning = "numbers of keys";
      i.params = {k,
                  spec::integer("queries", 1024, 0, "queries a head, in runs of 16 spread evenly; 0: all")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    DenseSide side(ctx, instance, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    std::vector<int64_t> ks;
    for (const Value& v : params.value("k").as_list()) {
      if (!v.is_int()) throw UsageError("topk_recall.k: " + v.str() + " is no number of keys");
      ks.push_back(v.as_int());
    }
    if (ks.empty()) throw UsageError("topk_recall.k: the list is empty");
    std::sort(ks.begin(), ks.end());
    const RowSample sample{params.integer("queries")};
    std::vector<double> all(ks.size(), 0.0);
    std::vector<std::vector<double>> found;  // a row's recall for each k; empty: no such row
    double rows = 0;
    for (int64_t h = 0; h < side.heads(); ++h) {
      std::vector<double> head(ks.size(), 0.0);
      double n = 0;
      found.assign(static_cast<size_t>(side.slots(sample)), {});
      side.each_row(h, sample,
                    [&](int64_t slot, const float* p, const Intervals& allowed, const Intervals& kept) {
                      found[static_cast<size_t>(slot)] = recalls_of(p, ks, side.keys(), allowed, kept);
                    });
      for (const std::vector<double>& row : found) {
        if (row.empty()) continue;
        n += 1;
        for (size_t c = 0; c < ks.size(); ++c) head[c] += row[c];
      }
      for (size_t c = 0; c < ks.size(); ++c) {
        all[c] += head[c];
        r.series["head_topk_recall_" + std::to_string(ks[c])].push_back(n > 0 ? head[c] / n : NAN);
      }
      rows += n;
    }
    for (size_t c = 0; c < ks.size(); ++c)
      r.scalars["topk_recall_" + std::to_string(ks[c])] = rows > 0 ? all[c] / rows : NAN;
    r.scalars["rows"] = rows;
    r.notes["queries"] =
        std::to_string(side.sampled(sample)) + " of " + std::to_string(side.queries()) + " a head";
    return r;
  }

 private:
  static std::vector<double> recalls_of(const float* p, const std::vector<int64_t>& ks, int64_t keys,
                                        const Intervals& allowed, const Intervals& kept) {
    if (!p) return std::vector<double>(ks.size(), 1.0);
    std::vector<int64_t> order;
    for (const Interval& v : allowed)
      for (int64_t j = v.begin; j < v.end; ++j) order.push_back(j);
    if (std::any_of(order.begin(), order.end(), [p](int64_t j) { return std::isnan(p[j]); })) return {};
    std::vector<char> in(static_cast<size_t>(keys), 0);
    for (const Interval& v : kept) std::fill(in.begin() + v.begin, in.begin() + v.end, 1);
    const auto seen = static_cast<int64_t>(order.size());
    std::partial_sort(order.begin(), order.begin() + std::min(ks.back(), seen), order.end(),
                      [p](int64_t x, int64_t y) { return p[x] != p[y] ? p[x] > p[y] : x < y; });
    std::vector<double> recalls;
    int64_t at = 0, found = 0;
    for (const int64_t given : ks) {
      const int64_t k = std::min(given, seen);
      for (; at < k; ++at) found += in[static_cast<size_t>(order[static_cast<size_t>(at)])];
      recalls.push_back(static_cast<double>(found) / static_cast<double>(k));
    }
    return recalls;
  }
};
ATTNBENCH_ANALYSIS(TopkRecall);

}  // namespace

}  // namespace attnbench
