// Reference of `act_sinks`: the map of every head, rewritten row by row as the card says.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap act_sinks_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), n = q.dim(1), heads = q.dim(2), d = q.dim(3), m = k.dim(1),
                kv_heads = k.dim(2);
  const bool causal = params.boolean("causal");
  const double beta = params.number("beta");
  const double theta = params.choice("threshold_mode") == "absolute"
                           ? params.number("sink_threshold")
                           : params.number("alpha") / static_cast<double>(m);
  RefTensor output(q.shape), attn({batch, heads, n, m}), score({batch, heads, m}), member({batch, heads, m}),
      count({batch, heads}), before({batch, heads}), after({batch, heads});
  const auto sees = [&](int64_t i, int64_t t) { return !causal || t <= i + m - n; };
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / (heads / kv_heads), at = b * heads + h;
      for (int64_t i = 0; i < n; ++i) {
        std::vector<double> p(static_cast<size_t>(m));
        std::vector<char> visible(static_cast<size_t>(m));
        for (int64_t t = 0; t < m; ++t) {
          visible[static_cast<size_t>(t)] = sees(i, t);
          for (int64_t c = 0; c < d; ++c)
            p[static_cast<size_t>(t)] +=
                q[((b * n + i) * heads + h) * d + c] * k[((b * m + t) * kv_heads + g) * d + c];
          p[static_cast<size_t>(t)] /= std::sqrt(static_cast<double>(d));
        }
        ref::softmax_row(p, visible);
        for (int64_t t = 0; t < m; ++t)
          attn[(at * n + i) * m + t] = visible[static_cast<size_t>(t)] ? p[static_cast<size_t>(t)] : 0;
      }
      std::vector<int64_t> sinks;
      for (int64_t t = 0; t < m; ++t) {
        double sum = 0, rows = 0;
        for (int64_t i = 0; i < n; ++i)
          if (sees(i, t)) sum += attn[(at * n + i) * m + t], rows += 1;
        score[at * m + t] = sum / rows;
        if (score[at * m + t] > theta) sinks.push_back(t);
      }
      if (params.choice("drop_first") == "first_detected") {
        if (!sinks.empty()) sinks.erase(sinks.begin());
      } else if (!sinks.empty() && sinks[0] == 0) {
        sinks.erase(sinks.begin());
      }
      for (int64_t t : sinks) member[at * m + t] = 1;
      count[at] = static_cast<double>(sinks.size());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t t : sinks) before[at] += attn[(at * n + i) * m + t] / static_cast<double>(n);
    }

  // Which heads of which batch item.
  std::vector<char> chosen(static_cast<size_t>(batch * heads), 0);
  const bool layer = params.is_null("layer") || (params.integer("layer") >= params.integer("layer_first") &&
                                                 params.integer("layer") <= params.integer("layer_last"));
  if (layer && !(n == 1 && params.choice("decode") == "off")) {
    const Value& given = params.value("calibrated_heads");
    const auto share = std::llround(params.number("head_fraction") * static_cast<double>(heads));
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int64_t> take;
      if (given.is_list()) {
        for (const Value& x : given.as_list()) take.push_back(static_cast<int64_t>(x.as_double()));
      } else {
        take.resize(static_cast<size_t>(heads));
        std::iota(take.begin(), take.end(), int64_t{0});
        const auto rank = [&](int64_t h) {
          if (given.as_string() == "by_sink") return -before[b * heads + h];
          return random_uniform(static_cast<uint64_t>(params.integer("seed")),
                                stream_of("act_sinks.calibrated_heads"), static_cast<uint64_t>(h));
        };
        if (given.as_string() != "all") {
          std::stable_sort(take.begin(), take.end(), [&](int64_t x, int64_t y) { return rank(x) < rank(y); });
          take.resize(static_cast<size_t>(share));
        }
      }
      for (int64_t h : take) chosen[static_cast<size_t>(b * heads + h)] = 1;
    }
  }

  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / (heads / kv_heads), at = b * heads + h;
      for (int64_t i = 0; i < n; ++i) {
        double* row = &attn.data[static_cast<size_t>((at * n + i) * m)];
        double s = 0;
        for (int64_t t = 0; t < m; ++t) s += member[at * m + t] * row[t];
        if (chosen[static_cast<size_t>(at)] && s < 1) {
          const double freed = (1 - beta) * s;
          for (int64_t t = 0; t < m; ++t)
            row[t] = member[at * m + t] != 0 ? beta * row[t] : row[t] + freed * row[t] / (1 - s);
        }
        for (int64_t t = 0; t < m; ++t) {
          after[at] += member[at * m + t] * row[t] / static_cast<double>(n);
          for (int64_t c = 0; c < d; ++c)
            output[((b * n + i) * heads + h) * d + c] += row[t] * v[((b * m + t) * kv_heads + g) * d + c];
        }
      }
    }
  RefMap out{{"output", output},    {"column_score", score},      {"sink_mask", member},
             {"sink_count", count}, {"sink_mass_before", before}, {"sink_mass_after", after}};
  if (params.choice("form") == "unfused") out["attn"] = attn;
  return out;
}
ATTNBENCH_REFERENCE(act_sinks, act_sinks_reference);

}  // namespace
}  // namespace attnbench
