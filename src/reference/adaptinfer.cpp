// Reference of `adaptinfer`: the attention map, its blocks and the sums as the card writes them.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap adaptinfer_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                            const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), group = heads / k.dim(1);
  const int64_t P = params.integer("prompt_tokens"), V = params.integer("vision_tokens"),
                T = params.integer("text_tokens");
  const std::string& scorer = params.choice("scorer");
  const bool weighted = scorer == "t2t_weighted";

  // How many stay.
  const std::map<std::string, int64_t> budget{{"128", 290}, {"64", 133}, {"48", 80}, {"32", 40}};
  const Value first = params.is_null("keep") ? Value(budget.at(params.choice("budget")))
                                             : params.value("keep").as_list().at(0);
  int64_t keep =
      first.is_int() ? first.as_int() : static_cast<int64_t>(first.as_double() * static_cast<double>(V));
  if (!first.is_int() && weighted) keep = std::max<int64_t>(1, keep);
  keep = std::min(keep, params.boolean("allow_full") ? V : V - 1);

  RefTensor scores({batch, V}), kept({batch, keep}), tokens({batch, P + keep + T});
  std::vector<std::vector<double>> raters(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    // A[h][i][j] for the text's rows i.
    std::vector<std::vector<std::vector<double>>> a(
        static_cast<size_t>(heads), std::vector<std::vector<double>>(
                                        static_cast<size_t>(T), std::vector<double>(static_cast<size_t>(n))));
#pragma omp parallel for schedule(dynamic)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < T; ++i) {
        std::vector<double>& row = a[static_cast<size_t>(h)][static_cast<size_t>(i)];
        std::vector<char> visible(static_cast<size_t>(n));
        for (int64_t j = 0; j < n; ++j) {
          visible[static_cast<size_t>(j)] = !problem.causal || j <= P + V + i;
          double dot = 0;
          for (int64_t c = 0; c < d; ++c)
            dot += q[((b * heads + h) * n + P + V + i) * d + c] *
                   k[((b * heads / group + h / group) * n + j) * d + c];
          row[static_cast<size_t>(j)] = dot / std::sqrt(static_cast<double>(d));
        }
        ref::softmax_row(row, visible);
        for (int64_t j = 0; j < n; ++j)
          if (!visible[static_cast<size_t>(j)]) row[static_cast<size_t>(j)] = 0;
      }
    const auto at = [&](int64_t h, int64_t i, int64_t j) {
      return a[static_cast<size_t>(h)][static_cast<size_t>(i)][static_cast<size_t>(j)];
    };
    if (weighted) {
      const auto s = [&](int64_t h, int64_t i, int64_t j) {
        const double m = at(h, i, P + V + j);
        return i == j ? m : m + at(h, j, P + V + i);
      };
      double mean = 0;
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < T; ++i)
          for (int64_t j = 0; j < T; ++j) mean += s(h, i, j);
      mean /= static_cast<double>(heads * T * T);
      const double lb = params.number("lb");
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = 0; j < T; ++j) {
          double w = 0;
          for (int64_t i = 0; i < T; ++i) w += lb * s(h, i, j) + (1 - lb) * mean;
          for (int64_t v = 0; v < V; ++v) scores[b * V + v] += w * at(h, j, P + v);
        }
    } else if (scorer == "uniform") {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> mean(static_cast<size_t>(V), 0);
        double sum = 0;
        for (int64_t v = 0; v < V; ++v) {
          for (int64_t i = 0; i < T; ++i) mean[static_cast<size_t>(v)] += at(h, i, P + v);
          sum += mean[static_cast<size_t>(v)] /= static_cast<double>(T);
        }
        for (int64_t v = 0; v < V; ++v) scores[b * V + v] += mean[static_cast<size_t>(v)] / sum;
      }
    } else {
      const RefTensor& e = inputs.at("embeddings");
      const int64_t c = e.dim(2);
      std::vector<double> mean(static_cast<size_t>(T), 0);
      for (int64_t v = 0; v < V; ++v) {
        std::vector<double> row(static_cast<size_t>(T));
        for (int64_t j = 0; j < T; ++j)
          for (int64_t i = 0; i < c; ++i)
            row[static_cast<size_t>(j)] += e[(b * n + P + v) * c + i] * e[(b * n + P + V + j) * c + i];
        ref::softmax_row(row, std::vector<char>(static_cast<size_t>(T), 1));
        for (int64_t j = 0; j < T; ++j) mean[static_cast<size_t>(j)] += row[static_cast<size_t>(j)];
      }
      double average = 0;
      for (double& x : mean) average += (x /= static_cast<double>(V)) / static_cast<double>(T);
      std::vector<double>& chosen = raters[static_cast<size_t>(b)];
      for (int64_t j = 0; j < T; ++j)
        if (mean[static_cast<size_t>(j)] > average) chosen.push_back(static_cast<double>(j));
      for (const double r : chosen)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t v = 0; v < V; ++v)
            scores[b * V + v] += at(h, static_cast<int64_t>(r), P + v) /
                                 static_cast<double>(heads * static_cast<int64_t>(chosen.size()));
    }
    std::vector<int64_t> order;
    for (int64_t v = 0; v < V; ++v) order.push_back(v);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t x, int64_t y) { return scores[b * V + x] > scores[b * V + y]; });
    order.resize(static_cast<size_t>(keep));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < keep; ++i)
      kept[b * keep + i] = static_cast<double>(order[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < P + keep + T; ++i)
      tokens[b * (P + keep + T) + i] =
          static_cast<double>(i < P          ? i
                              : i < P + keep ? P + order[static_cast<size_t>(i - P)]
                                             : i - keep + V);
  }
  RefMap out{{"scores", scores}, {"kept", kept}, {"kept_tokens", tokens}};
  if (scorer == "selected_text") {
    const int64_t width = batch > 1 ? T : static_cast<int64_t>(raters[0].size());
    RefTensor r(batch > 1 ? std::vector<int64_t>{batch, T} : std::vector<int64_t>{width});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < width; ++i) {
        const auto& list = raters[static_cast<size_t>(b)];
        r[b * width + i] = i < static_cast<int64_t>(list.size()) ? list[static_cast<size_t>(i)] : -1;
      }
    out["raters"] = r;
  }
  return out;
}
ATTNBENCH_REFERENCE(adaptinfer, adaptinfer_reference);

}  // namespace
}  // namespace attnbench
