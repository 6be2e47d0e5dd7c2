// Which familiar pattern a head's map follows: diagonal, previous token, vertical stripes, local window,
// induction.
#include <algorithm>
#include <cmath>
#include <functional>

#include "analysis/row_stream.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

/// Token ids of the first batch element, where the instance was given any for its queries and keys.
std::vector<int32_t> tokens_of(Context& ctx, const Instance& instance, int64_t n) {
  for (const char* name : {"tokens", "clean_tokens"}) {
    const auto it = instance.inputs().find(name);
    if (it == instance.inputs().end() || it->second.dtype() != DType::i32 || it->second.rank() != 2 ||
        it->second.dim(1) != n || !it->second.contiguous())
      continue;
    std::vector<int32_t> v(static_cast<size_t>(n));
    copy(ctx, it->second.select(0, 0), Tensor::borrow(DeviceKind::cpu, DType::i32, {n}, v.data()));
    ctx.backend().synchronize();
    return v;
  }
  return {};
}

class PatternScores final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "pattern_scores";
      i.title = "Diagonal, vertical, local and induction scores";
      i.summary =
          "The share of a head's weight that follows a known pattern. Induction needs token ids among the "
          "inputs: weight "
          "on the tokens that followed earlier occurrences of the query's token. First batch element.";
      i.formula =
          "diagonal = mean_i p_ii;  previous = mean_{i > 0} p_i,i-1;  local = mean_i sum_{|i - j| <= window} "
          "p_ij\n"
          "vertical = sum of the `columns` largest column means of p, less what even rows would put there\n"
          "induction = mean_i sum_{j <= i, token[j - 1] = token[i]} p_ij over queries whose token occurred "
          "before";
      i.unit = "share of mass";
      const auto integer = [](const char* name, int64_t value, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.default_value = value;
        s.min = 1;
        s.meaning = meaning;
        return s;
      };
      i.params = {integer("window", 4, "reach of local on each side"),
                  integer("columns", 2, "columns of vertical")};
      i.headline = {"mean_diagonal", "mean_vertical", "max_induction"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    if (!rows.self_attention()) throw Unsupported("pattern_scores: the keys are not the query tokens");
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t n = rows.queries(), m = rows.keys(0), offset = rows.offset(),
                  window = params.integer("window");
    const std::vector<int32_t> ids = m == n ? tokens_of(ctx, instance, n) : std::vector<int32_t>{};
    const char* const names[] = {"diagonal", "previous", "local", "vertical", "induction"};
    std::vector<double> all[5];
    for (int64_t h = 0; h < rows.heads(); ++h) {
      double diagonal = 0, previous = 0, local = 0, induction = 0, count = 0, before = 0, repeated = 0;
      std::vector<double> column(static_cast<size_t>(m), 0.0), even(static_cast<size_t>(m), 0.0);
      rows.each_row(0, h, [&](int64_t i, const float* p) {
        const int64_t at = i + offset;
        const auto seen = static_cast<double>(std::count_if(p, p + m, [](float v) { return v > 0; }));
        if (seen == 0) return;
        count += 1;
        if (at < m) diagonal += static_cast<double>(p[at]);
        if (at > 0) previous += static_cast<double>(p[at - 1]), before += 1;
        for (int64_t j = std::max<int64_t>(at - window, 0); j <= std::min(at + window, m - 1); ++j)
          local += static_cast<double>(p[j]);
        for (int64_t j = 0; j < m; ++j) {
          column[static_cast<size_t>(j)] += static_cast<double>(p[j]);
          if (p[j] > 0) even[static_cast<size_t>(j)] += 1 / seen;
        }
        if (ids.empty()) return;
        double followed = 0;
        bool occurred = false;
        for (int64_t j = 1; j <= i; ++j)
          if (ids[static_cast<size_t>(j - 1)] == ids[static_cast<size_t>(i)]) {
            occurred = true;
            followed += static_cast<double>(p[j]);
          }
        if (occurred) induction += followed, repeated += 1;
      });
      if (count == 0) continue;
      // The columns are chosen by their excess, so that causal rows' early keys do not count by themselves.
      std::vector<double> excess(column.size());
      for (size_t j = 0; j < column.size(); ++j) excess[j] = (column[j] - even[j]) / count;
      std::sort(excess.begin(), excess.end(), std::greater<>());
      double vertical = 0;
      for (int64_t k = 0; k < std::min(params.integer("columns"), m); ++k)
        vertical += std::max(excess[static_cast<size_t>(k)], 0.0);
      const double scores[] = {diagonal / count, before > 0 ? previous / before : 0.0, local / count,
                               vertical, repeated > 0 ? induction / repeated : NAN};
      for (int s = 0; s < 5; ++s) {
        if (s == 4 && (ids.empty() || repeated == 0)) continue;
        all[s].push_back(scores[s]);
        r.series[std::string("head_") + names[s]].push_back(scores[s]);
      }
    }
    for (int s = 0; s < 5; ++s) {
      if (all[s].empty()) continue;
      const Summary u = summarize(all[s]);
      r.scalars[std::string("mean_") + names[s]] = u.mean;
      r.scalars[std::string("max_") + names[s]] = u.max;
    }
    if (ids.empty()) r.notes["induction"] = "no token ids among the inputs";
    rows.note(r);
    return r;
  }
};
ATTNBENCH_ANALYSIS(PatternScores);

}  // namespace

}  // namespace attnbench
