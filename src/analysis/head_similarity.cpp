// Which heads attend alike: cosine similarity of their maps, and clusters of similar heads.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/row_stream.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

class HeadSimilarity final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "head_similarity";
      i.title = "Similarity and clusters of heads";
      i.summary =
          "Cosine similarity of the maps of every two heads with equally many keys, on sampled queries of "
          "the first batch "
          "element, and clusters: heads joined by average linkage while their mean similarity stays above a "
          "threshold.";
      i.formula =
          "sim(a, b) = sum_ij A_ij B_ij / (|A| |B|)\n"
          "clusters: join the two with the largest mean similarity between their heads, while it is >= "
          "threshold";
      i.unit = "cosine";
      ParamSpec q;
      q.name = "queries";
      q.default_value = 32;
      q.min = 1;
      q.meaning = "queries compared, spread evenly";
      ParamSpec t;
      t.name = "threshold";
      t.type = ParamSpec::Type::number;
      t.default_value = 0.9;
      t.min = 0;
      t.max = 1;
      t.meaning = "least mean similarity within a cluster";
      i.params = {q, t};
      i.headline = {"mean_similarity", "clusters", "largest_cluster"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const auto heads = static_cast<size_t>(rows.heads());
    std::vector<std::vector<double>> maps(heads);
    for (size_t h = 0; h < heads; ++h) {
      double norm = 0;
      for (const std::vector<float>& row : rows.sample(0, static_cast<int64_t>(h), params.integer("queries")))
        for (float v : row) {
          maps[h].push_back(static_cast<double>(v));
          norm += static_cast<double>(v) * static_cast<double>(v);
        }
      for (double& v : maps[h]) v = norm > 0 ? v / std::sqrt(norm) : 0.0;
    }
    // -1: not comparable.
    std::vector<std::vector<double>> sim(heads, std::vector<double>(heads, -1.0));
    std::vector<double> pairs;
    for (size_t a = 0; a < heads; ++a)
      for (size_t b = a + 1; b < heads; ++b) {
        if (maps[a].size() != maps[b].size()) continue;
        sim[a][b] = sim[b][a] = std::inner_product(maps[a].begin(), maps[a].end(), maps[b].begin(), 0.0);
        pairs.push_back(sim[a][b]);
      }
    if (!pairs.empty()) {
      const Summary s = summarize(pairs);
      r.scalars["mean_similarity"] = s.mean;
      r.scalars["min_similarity"] = s.min;
      r.scalars["max_similarity"] = s.max;
    }
    const std::vector<std::vector<size_t>> clusters = join(sim, params.number("threshold"));
    r.series["head_cluster"].resize(heads);
    size_t largest = 0;
    for (size_t c = 0; c < clusters.size(); ++c) {
      largest = std::max(largest, clusters[c].size());
      for (size_t h : clusters[c]) r.series["head_cluster"][h] = static_cast<double>(c);
    }
    r.scalars["clusters"] = static_cast<double>(clusters.size());
    r.scalars["largest_cluster"] = static_cast<double>(largest);
    return r;
  }

 private:
  static std::vector<std::vector<size_t>> join(const std::vector<std::vector<double>>& sim,
                                               double threshold) {
    std::vector<std::vector<size_t>> clusters;
    for (size_t h = 0; h < sim.size(); ++h) clusters.push_back({h});
    while (clusters.size() > 1) {
      double best = -1;
      size_t first = 0, second = 0;
      for (size_t a = 0; a < clusters.size(); ++a)
        for (size_t b = a + 1; b < clusters.size(); ++b) {
          double sum = 0;
          bool comparable = true;
          for (size_t x : clusters[a])
            for (size_t y : clusters[b]) {
              comparable = comparable && sim[x][y] >= 0;
              sum += sim[x][y];
            }
          const double mean = sum / static_cast<double>(clusters[a].size() * clusters[b].size());
          if (comparable && mean > best) best = mean, first = a, second = b;
        }
      if (best < threshold || best < 0) break;
      clusters[first].insert(clusters[first].end(), clusters[second].begin(), clusters[second].end());
      clusters.erase(clusters.begin() + static_cast<std::ptrdiff_t>(second));
    }
    return clusters;
  }
};
ATTNBENCH_ANALYSIS(HeadSimilarity);

}  // namespace

}  // namespace attnbench
