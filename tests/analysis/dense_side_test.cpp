// What a selection keeps of dense attention: by hand on given maps, and of real methods against
// double-precision maps made from their inputs.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "methods/dense_counterpart.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

constexpr double kF32 = 1e-6;  // weights of a few dozen keys, taken in f32

AnalysisResult analyse_trial(const char* id, Trial& t, const ParamMap& given = {}) {
  const Analysis& a = find_analysis(id);
  return a.compute(*t.ctx, *t.instance, t.problem, resolve_params(id, a.info().params, given, t.problem));
}

/// Queries are unit vectors and keys the logarithms of weights, so that row i of the dense map is w[i].
class FakeSparse final : public FakeInstance, public DenseCounterpart {
 public:
  FakeSparse(const std::vector<std::vector<double>>& w, RowFunction kept) : w_(w), ctx_(cpu_backend(), 1) {
    const auto n = static_cast<int64_t>(w.size()), m = static_cast<int64_t>(w[0].size());
    std::vector<double> q, k;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < n; ++d) q.push_back(i == d);
    for (int64_t j = 0; j < m; ++j)
      for (int64_t d = 0; d < n; ++d)
        k.push_back(std::log(w[static_cast<size_t>(d)][static_cast<size_t>(j)]));
    dense_.call.q = host_tensor(ctx_, {1, 1, n, n}, q);
    dense_.call.k = host_tensor(ctx_, {1, 1, m, n}, k);
    dense_.call.scale = 1;
    dense_.pairs.queries = n, dense_.pairs.tokens = m;
    dense_.pairs.row = [m](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, m}}; };
    pair_set = dense_.pairs;
    pair_set->row = std::move(kept);
  }
  std::optional<DenseEquivalent> dense_equivalent(Context&) override { return dense_; }
  /// Value of key j and the method's output for query i, one column each.
  void values(const std::vector<double>& v, const std::vector<double>& o) {
    dense_.call.v = host_tensor(ctx_, {1, 1, static_cast<int64_t>(v.size()), 1}, v);
    dense_.output = host_tensor(ctx_, {1, 1, static_cast<int64_t>(o.size()), 1}, o);
  }
  DenseEquivalent dense_;

 private:
  std::vector<std::vector<double>> w_;
  Context ctx_;
};

const std::vector<std::vector<double>> kMap{{0.4, 0.3, 0.2, 0.1}, {0.1, 0.1, 0.1, 0.7}};
void first_and_last(int64_t, int64_t, int64_t i, Intervals& out) {
  out = i == 0 ? Intervals{{1, 3}} : Intervals{{0, 1}, {3, 4}};
}

/// Dense weights and outputs in double precision, straight from inputs of one layout; with them everything
/// that analyses say, by plain loops over sets.
struct Dense {
  int64_t batch, heads, n, m, d;
  std::vector<double> p, o;
  double& at(int64_t b, int64_t h, int64_t i, int64_t j) {
    return p[static_cast<size_t>(((b * heads + h) * n + i) * m + j)];
  }
};

using Visible = std::function<bool(int64_t b, int64_t i, int64_t j)>;

Dense dense_of(const Trial& t, bool token_major, double scale, const Visible& visible) {
  const RefTensor q = to_reference(t.instance->inputs().at("q")),
                  k = to_reference(t.instance->inputs().at("k")),
                  v = to_reference(t.instance->inputs().at("v"));
  const size_t token = token_major ? 1 : 2, head = token_major ? 2 : 1;
  Dense s{q.dim(0), q.dim(head), q.dim(token), k.dim(token), q.dim(3), {}, {}};
  const int64_t group = s.heads / k.dim(head);
  const auto value = [&](const RefTensor& x, int64_t b, int64_t h, int64_t i, int64_t c) {
    return token_major ? x[((b * x.dim(1) + i) * x.dim(2) + h) * s.d + c]
                       : x[((b * x.dim(1) + h) * x.dim(2) + i) * s.d + c];
  };
  s.p.resize(static_cast<size_t>(s.batch * s.heads * s.n * s.m));
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.n; ++i) {
        double total = 0;
        for (int64_t j = 0; j < s.m; ++j) {
          if (!visible(b, i, j)) continue;
          double dot = 0;
          for (int64_t c = 0; c < s.d; ++c) dot += value(q, b, h, i, c) * value(k, b, h / group, j, c);
          total += s.at(b, h, i, j) = std::exp(scale * dot);
        }
        std::vector<double> o(static_cast<size_t>(s.d), 0.0);
        for (int64_t j = 0; j < s.m; ++j) {
          if (total > 0) s.at(b, h, i, j) /= total;
          for (int64_t c = 0; c < s.d; ++c)
            o[static_cast<size_t>(c)] += s.at(b, h, i, j) * value(v, b, h / group, j, c);
        }
        s.o.insert(s.o.end(), o.begin(), o.end());
      }
  return s;
}

/// The method's output in the order of Dense::o.
std::vector<double> by_heads(const RefTensor& out, bool token_major) {
  if (!token_major) return out.data;
  std::vector<double> r;
  for (int64_t b = 0; b < out.dim(0); ++b)
    for (int64_t h = 0; h < out.dim(2); ++h)
      for (int64_t i = 0; i < out.dim(1); ++i)
        for (int64_t c = 0; c < out.dim(3); ++c)
          r.push_back(out[((b * out.dim(1) + i) * out.dim(2) + h) * out.dim(3) + c]);
  return r;
}

/// mass_recall, topk_recall, delivered_sparsity and output_error of a trial that has run, all rows.
void check_against(Trial& t, Dense& dense, const std::vector<double>& output, const Visible& visible,
                   bool expect_loss = true) {
  const PairSet pairs = *t.instance->pairs();
  std::vector<double> recall, best, share, top8, row_error, cosine, head_recall;
  double kept = 0, allowed = 0, error = 0, norm = 0, worst = 0;
  for (int64_t h = 0; h < dense.heads; ++h) {
    double of_head = 0, in_head = 0;
    for (int64_t b = 0; b < dense.batch; ++b)
      for (int64_t i = 0; i < dense.n; ++i) {
        Intervals row;
        pairs.row(b, h, i, row);
        std::set<int64_t> s, m;
        for (int64_t j = 0; j < dense.m; ++j)
          if (visible(b, i, j)) m.insert(j);
        for (const Interval& v : row)
          for (int64_t j = v.begin; j < v.end; ++j)
            if (m.contains(j)) s.insert(j);
        if (m.empty()) continue;
        kept += static_cast<double>(s.size()), allowed += static_cast<double>(m.size());
        std::vector<int64_t> order(m.begin(), m.end());
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t x, int64_t y) { return dense.at(b, h, i, x) > dense.at(b, h, i, y); });
        double mass = 0, most = 0, found = 0;
        for (const int64_t j : s) mass += dense.at(b, h, i, j);
        for (size_t r = 0; r < s.size(); ++r) most += dense.at(b, h, i, order[r]);
        const size_t k = std::min<size_t>(8, order.size());
        for (size_t r = 0; r < k; ++r) found += s.contains(order[r]);
        recall.push_back(mass), best.push_back(most);
        share.push_back(static_cast<double>(s.size()) / static_cast<double>(m.size()));
        top8.push_back(found / static_cast<double>(k));
        of_head += mass, in_head += 1;
        double e = 0, w = 0, g = 0, dot = 0;
        for (int64_t c = 0; c < dense.d; ++c) {
          const auto at = static_cast<size_t>(((b * dense.heads + h) * dense.n + i) * dense.d + c);
          e += std::pow(output[at] - dense.o[at], 2), w += dense.o[at] * dense.o[at];
          g += output[at] * output[at], dot += output[at] * dense.o[at];
          worst = std::max(worst, std::abs(output[at] - dense.o[at]));
        }
        error += e, norm += w;
        row_error.push_back(std::sqrt(e / w));
        if (g > 0) cosine.push_back(dot / std::sqrt(w * g));  // a row without keys gives zeros
      }
    head_recall.push_back(of_head / in_head);
  }
  const auto mean = [](const std::vector<double>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
  };
  INFO(t.method << " " << t.problem.str());
  if (expect_loss) REQUIRE(mean(recall) < 0.99);

  const AnalysisResult mass = analyse_trial("mass_recall", t, {{"queries", 0}});
  CHECK(mass.scalars.at("rows") == static_cast<double>(recall.size()));
  CHECK(mass.scalars.at("mass_recall") == Approx(mean(recall)).epsilon(kF32));
  CHECK(mass.scalars.at("best") == Approx(mean(best)).epsilon(kF32));
  CHECK(mass.scalars.at("kept") == Approx(mean(share)).epsilon(kF32));
  CHECK(mass.scalars.at("min") == Approx(*std::min_element(recall.begin(), recall.end())).margin(kF32));
  if (expect_loss)
    CHECK(mass.scalars.at("gain") ==
          Approx((mean(recall) - mean(share)) / (mean(best) - mean(share))).margin(100 * kF32));
  for (size_t h = 0; h < head_recall.size(); ++h)
    CHECK(mass.series.at("head_mass_recall")[h] == Approx(head_recall[h]).epsilon(kF32));

  const AnalysisResult top = analyse_trial("topk_recall", t, {{"queries", 0}, {"k", Value::List{8}}});
  CHECK(top.scalars.at("topk_recall_8") == Approx(mean(top8)).epsilon(kF32));

  const AnalysisResult sparsity = analyse_trial("delivered_sparsity", t);
  CHECK(sparsity.scalars.at("dense_pairs") == allowed);
  CHECK(sparsity.scalars.at("pairs") == kept);
  CHECK(sparsity.scalars.at("sparsity") == Approx(1 - kept / allowed));

  const AnalysisResult out = analyse_trial("output_error", t);
  CHECK(out.scalars.at("relative_l2") ==
        Approx(std::sqrt(error / norm)).margin(4 * tolerance(DType::f32, 0)));
  CHECK(out.scalars.at("max_abs") == Approx(worst).margin(4 * tolerance(DType::f32, 0)));
  CHECK(out.scalars.at("mean_row") == Approx(mean(row_error)).margin(16 * tolerance(DType::f32, 0)));
  CHECK(out.scalars.at("cosine") == Approx(mean(cosine)).margin(4 * tolerance(DType::f32, 0)));
  if (expect_loss) CHECK(out.scalars.at("relative_l2") > 0.01);
}

Visible causal(int64_t before = 0) {
  return [before](int64_t, int64_t i, int64_t j) { return j <= i + before; };
}

Problem prefill(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t d, int64_t m = 0) {
  return heads_problem(batch, heads, kv_heads, n, m ? m : n, d, true);
}

double root(int64_t d) { return 1 / std::sqrt(static_cast<double>(d)); }

}  // namespace

TEST_CASE("mass_recall, topk_recall and sparsity by hand") {
  FakeSparse f(kMap, first_and_last);
  AnalysisResult r = analyse("mass_recall", f);
  CHECK(r.scalars.at("mass_recall") == Approx(0.65).epsilon(kF32));  // 0.5 and 0.8
  CHECK(r.scalars.at("best") == Approx(0.75).epsilon(kF32));         // 0.7 and 0.8
  CHECK(r.scalars.at("kept") == 0.5);
  CHECK(r.scalars.at("gain") == Approx(0.6).epsilon(1e-5));
  CHECK(r.scalars.at("min") == Approx(0.5).epsilon(kF32));
  r = analyse("topk_recall", f, {}, {{"k", Value::List{2, 1, 9}}});
  CHECK(r.scalars.at("topk_recall_1") == 0.5);
  CHECK(r.scalars.at("topk_recall_2") == 0.75);  // one of {0, 1}; both of {3, 0}: of equal weights the lower
  CHECK(r.scalars.at("topk_recall_9") == 0.5);
  CHECK_THROWS_AS(analyse("topk_recall", f, {}, {{"k", Value::List{}}}), UsageError);
  r = analyse("delivered_sparsity", f);
  CHECK(r.scalars.at("sparsity") == 0.5);
  CHECK_FALSE(r.scalars.contains("visited_sparsity"));
  f.dense_.visited = 6;
  r = analyse("delivered_sparsity", f);
  CHECK(r.scalars.at("visited_sparsity") == 0.25);
  CHECK(r.scalars.at("used_share") == Approx(4.0 / 6));
  CHECK(r.scalars.at("bound") == Approx(8.0 / 6));
}

TEST_CASE("everything kept: nothing lost, and nothing to gain") {
  FakeSparse f(kMap, [](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, 4}}; });
  const AnalysisResult r = analyse("mass_recall", f);
  CHECK(r.scalars.at("mass_recall") == 1);
  CHECK_FALSE(r.scalars.contains("gain"));
  CHECK(analyse("topk_recall", f).scalars.at("topk_recall_1") == 1);
  CHECK(analyse("delivered_sparsity", f).scalars.at("sparsity") == 0);
}

TEST_CASE("an empty row keeps nothing; pairs outside of the dense attention do not count") {
  FakeSparse f(kMap, [](int64_t, int64_t, int64_t i, Intervals& out) {
    out = i == 0 ? Intervals{} : Intervals{{2, 4}};
  });
  f.dense_.pairs.row = [](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, 3}}; };
  const AnalysisResult r = analyse("mass_recall", f);
  CHECK(r.scalars.at("mass_recall") == Approx(0.5 / 3).epsilon(kF32));
  CHECK(r.scalars.at("kept") == Approx(0.5 / 3));
  CHECK(analyse("delivered_sparsity", f).scalars.at("sparsity") == Approx(5.0 / 6));
}

TEST_CASE("output_error by hand") {
  FakeSparse f(kMap, first_and_last);
  CHECK_THROWS_AS(analyse("output_error", f), Unsupported);
  f.values({1, 2, 3, 4}, {2.5, -3.4});  // dense: 2 and 3.4
  const AnalysisResult r = analyse("output_error", f);
  CHECK(r.scalars.at("relative_l2") == Approx(std::sqrt((0.25 + 46.24) / (4 + 11.56))));
  CHECK(r.scalars.at("max_row") == Approx(2));
  CHECK(r.scalars.at("mean_row") == Approx(1.125));
  CHECK(r.scalars.at("cosine") == Approx(0).margin(kF32));
  CHECK(r.scalars.at("max_abs") == Approx(6.8));
}

TEST_CASE("methods without a dense counterpart are refused") {
  FakeInstance f;
  for (const char* id : {"mass_recall", "topk_recall", "delivered_sparsity", "output_error"})
    CHECK_THROWS_AS(analyse(id, f), Unsupported);
  FakeSparse g(kMap, first_and_last);
  g.pair_set->tokens = 3;
  CHECK_THROWS_AS(analyse("mass_recall", g), Unsupported);
}

TEST_CASE("static masks against double-precision maps") {
  SECTION("a window with sinks") {
    Trial t = make_trial("sliding_window", prefill(2, 4, 2, 40, 8), {{"window", 6}, {"sinks", 2}});
    t.run();
    const auto matmul = static_cast<double>(t.ctx->cost().total().matmul);
    Dense d = dense_of(t, false, root(8), causal());
    check_against(t, d, t.output("o").data, causal());
    const AnalysisResult r = analyse_trial("delivered_sparsity", t);
    CHECK(r.scalars.at("visited_pairs") == matmul / (4 * 8));
  }
  SECTION("random blocks, future keys of diagonal blocks computed in vain") {
    Trial t = make_trial("random_blocks", prefill(1, 2, 2, 50, 8), {{"block_size", 8}, {"sparsity", 0.6}});
    t.run();
    const auto matmul = static_cast<double>(t.ctx->cost().total().matmul);
    Dense d = dense_of(t, false, root(8), causal());
    check_against(t, d, t.output("o").data, causal());
    const AnalysisResult r = analyse_trial("delivered_sparsity", t);
    CHECK(r.scalars.at("used_share") < 1);
    CHECK(r.scalars.at("visited_pairs") == matmul / (4 * 8));
  }
  SECTION("power blocks behind a cache") {
    Trial t = make_trial("power_attention", prefill(1, 2, 1, 37, 8, 90),
                         {{"block_size", 4}, {"window_blocks", 2}, {"sink_blocks", 1}});
    t.run();
    Dense d = dense_of(t, false, root(8), causal(53));
    check_against(t, d, t.output("o").data, causal(53));
  }
}

TEST_CASE("selections against double-precision maps") {
  SECTION("flexprefill") {
    Trial t = make_trial("flexprefill", prefill(2, 4, 2, 203, 16),
                         {{"block_size", 16}, {"min_budget", 16}, {"budget_unit", 16}, {"gamma", 0.5}});
    t.run();
    Dense d = dense_of(t, true, root(16), causal());
    check_against(t, d, by_heads(t.output("out"), true), causal());
    // Blocks of 16 x 16, the last ones 11 wide.
    double visited = 0;
    const RefTensor selected = t.output("selected");
    const int64_t blocks = selected.dim(3);
    for (int64_t i = 0; i < selected.numel(); ++i)
      if (selected[i] != 0)
        visited += static_cast<double>(std::min<int64_t>(16, 203 - i / blocks % blocks * 16) *
                                       std::min<int64_t>(16, 203 - i % blocks * 16));
    CHECK(analyse_trial("delivered_sparsity", t).scalars.at("visited_pairs") == visited);
  }
  SECTION("flexprefill, interleaved heads") {
    Trial t = make_trial("flexprefill", prefill(1, 4, 2, 120, 8),
                         {{"block_size", 16},
                          {"min_budget", 16},
                          {"budget_unit", 16},
                          {"gamma", 0.5},
                          {"gqa_interleave", true},
                          {"softmax_scale", 0.4}});
    t.run();
    // Head h reads key head h mod 2: the same as one key head a head, in that order.
    RefTensor k = to_reference(t.instance->inputs().at("k")), v = to_reference(t.instance->inputs().at("v"));
    Trial wide = make_trial("dense", prefill(1, 4, 4, 120, 8));
    const auto spread = [&](const RefTensor& x) {
      std::vector<double> y;
      for (int64_t h = 0; h < 4; ++h)
        for (int64_t i = 0; i < 120; ++i)
          for (int64_t c = 0; c < 8; ++c) y.push_back(x[(i * 2 + h % 2) * 8 + c]);
      return host_tensor(*wide.ctx, {1, 4, 120, 8}, y);
    };
    rebind(wide, {{"q", host_tensor(*wide.ctx, {1, 4, 120, 8},
                                    by_heads(to_reference(t.instance->inputs().at("q")), true))},
                  {"k", spread(k)},
                  {"v", spread(v)}});
    Dense d = dense_of(wide, false, 0.4, causal());
    check_against(t, d, by_heads(t.output("out"), true), causal());
  }
  SECTION("hip, a chunk behind a cache, the first queries dense") {
    Trial t = make_trial("hip_attention", prefill(2, 4, 2, 40, 8, 100),
                         {{"mask_k", 16},
                          {"block_size_q", 8},
                          {"block_stride_q", 2},
                          {"block_size_k", 4},
                          {"block_stride_k", 2},
                          {"sliding_window", 8},
                          {"sink_tokens", 2},
                          {"dense_queries", 5}});
    t.run();
    Dense d = dense_of(t, true, root(8), causal(60));
    check_against(t, d, by_heads(t.output("out"), true), causal(60));
  }
  SECTION("dhsa, local layer with a dense tail") {
    Trial t = make_trial("dhsa", prefill(1, 4, 2, 90, 8),
                         {{"boundary_mode", "fixed"},
                          {"chunk_size", 7},
                          {"block_size", 8},
                          {"budget", 24},
                          {"global_tokens", 3},
                          {"local_tokens", 6},
                          {"instruction_tokens", 11}});
    t.run();
    Dense d = dense_of(t, true, root(8), causal());
    check_against(t, d, by_heads(t.output("out"), true), causal());
  }
  SECTION("dhsa, second version") {
    Trial t = make_trial("dhsa", prefill(2, 4, 2, 150, 8),
                         {{"variant", "v2_topk"}, {"density", 0.2}, {"block_size", 16}});
    t.run();
    Dense d = dense_of(t, true, root(8), causal());
    check_against(t, d, by_heads(t.output("out"), true), causal());
  }
  SECTION("flux, streaming and xattn") {
    const char* sparse = GENERATE("local", "xattn", "triangle");
    Trial t = make_trial("flux_attention", prefill(2, 4, 2, 117, 8),
                         {{"block_size", 16},
                          {"sink_size", 10},
                          {"local_window", 40},
                          {"pool_size", 9},
                          {"xattn_stride", 4},
                          {"xattn_threshold", 0.6},
                          {"triangle_n_last", 21},
                          {"force", "sparse"},
                          {"sparse_type", sparse}});
    t.run();
    Dense d = dense_of(t, true, root(8), causal());
    check_against(t, d, by_heads(t.output("out"), true), causal());
  }
  SECTION("rectified, text behind the video, not all of it valid") {
    Problem p;
    p.kind = ProblemKind::video;
    p.batch = 2, p.heads = 2, p.head_dim = 8, p.grid = {2, 6, 8};
    Trial t = make_trial("rectified_spaattn", p,
                         {{"block_size", 16}, {"text_tokens", 7}, {"text_valid", 5}, {"drop_rate", 0.6}});
    t.run();
    const Visible valid = [](int64_t, int64_t i, int64_t j) { return i < 101 && j < 101; };
    Dense d = dense_of(t, false, root(8), valid);
    check_against(t, d, t.output("out").data, valid);
  }
  SECTION("superlinear, padding keys") {
    Trial t = make_trial("superlinear", prefill(2, 4, 2, 60, 8, 75), {{"sw_index", 1}, {"num_spans", 2}});
    const Tensor mask = t.ctx->allocate(DType::i32, {2, 75});
    for (int64_t i = 0; i < 150; ++i) mask.data<int32_t>()[i] = i >= 9 && i != 40 && i != 131;
    rebind(t, {{"key_mask", mask}});
    t.run();
    const Visible visible = [&](int64_t b, int64_t i, int64_t j) {
      return j <= i + 15 && mask.data<int32_t>()[b * 75 + j] != 0;
    };
    Dense d = dense_of(t, false, root(8), visible);
    check_against(t, d, t.output("out").data, visible);
  }
}

TEST_CASE("seer_attention: rotated queries and keys, against its reference with every block selected") {
  const Problem p = prefill(1, 4, 2, 133, 16);
  Trial t = make_trial(
      "seer_attention", p,
      {{"block_size", 16}, {"gate_hidden", 16}, {"sparsity_method", "nz_ratio"}, {"nz_ratio", 0.3}});
  t.run();
  const RefTensor dense =
      find_reference("seer_attention")(
          p, params_of("seer_attention", p, {{"threshold", -1.0}, {"block_size", 133}, {"gate_hidden", 2}}),
          to_reference(t.instance->inputs()), {{"Wk", RefTensor({2, 48, 2})}, {"Wq", RefTensor({4, 16, 2})}})
          .at("out");
  const double expected = compare(t.output("out"), dense).relative_l2;
  REQUIRE(expected > 0.05);
  CHECK(analyse_trial("output_error", t).scalars.at("relative_l2") ==
        Approx(expected).margin(4 * tolerance(DType::f32, 0)));
  CHECK(analyse_trial("mass_recall", t).scalars.at("mass_recall") < 0.9);
}

TEST_CASE("routing_transformer: one cluster that holds everything is its dense counterpart") {
  Problem p;
  p.batch = 2, p.length = 40, p.channels = 24, p.heads = 3, p.causal = true;
  Trial t = make_trial(
      "routing_transformer", p,
      {{"routing_heads", 2}, {"num_clusters", 1}, {"window", 40}, {"local_block", 40}, {"local_flange", 40}});
  t.run();
  const AnalysisResult mass = analyse_trial("mass_recall", t, {{"queries", 0}});
  CHECK(mass.scalars.at("mass_recall") == Approx(1));
  CHECK(mass.scalars.at("kept") == 1);
  // Rows of the method are those of the dense side: what the recall of another clustering is taken from.
  const auto dense = dynamic_cast<DenseCounterpart&>(*t.instance).dense_equivalent(*t.ctx);
  REQUIRE(dense.has_value());
  std::vector<float> own;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 3; ++h) {
      REQUIRE(t.instance->rows(*t.ctx, b, h, 0, 40, own));
      const RefTensor q = to_reference(dense->call.q), k = to_reference(dense->call.k);
      double worst = 0;
      for (int64_t i = 0; i < 40; ++i) {
        std::vector<double> e;
        for (int64_t j = 0; j <= i; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < 8; ++c)
            dot += q[((b * 3 + h) * 40 + i) * 8 + c] * k[((b * 3 + h) * 40 + j) * 8 + c];
          e.push_back(std::exp(dot * static_cast<double>(dense->call.scale)));
        }
        const double sum = std::accumulate(e.begin(), e.end(), 0.0);
        // Routed rows are divided by their number of clusters plus scatter_eps.
        const double rows = h < 2 ? 1.01 : 1;
        for (int64_t j = 0; j <= i; ++j)
          worst = std::max(worst, std::abs(e[static_cast<size_t>(j)] / sum -
                                           rows * static_cast<double>(own[static_cast<size_t>(i * 40 + j)])));
      }
      CHECK(worst < 16 * kF32);
    }
  Trial memory = make_trial("routing_transformer", p, {{"routing_heads", 3}, {"num_mem_kv", 2}});
  memory.run();
  CHECK_THROWS_AS(analyse_trial("mass_recall", memory), Unsupported);
}
