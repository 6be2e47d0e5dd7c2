// Mixture-of-head attention: gates by hand, the method against its reference, the card's degenerate cases,
// what is executed given the selection.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem layer(int64_t batch, int64_t n, int64_t channels, int64_t heads, bool causal = false,
              DType dtype = DType::f32, int64_t kv_heads = 0) {
  Problem p;
  p.batch = batch;
  p.length = n;
  p.channels = channels;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.causal = causal;
  p.dtype = dtype;
  return p;
}

/// A trial with routers of standard deviation 0.5, so that gates differ.
Trial moh(const Problem& p, const ParamMap& given) {
  Trial t = make_trial("moh", p, given);
  TensorMap w;
  for (const char* name : {"Wr", "Ws", "Wa", "Wqkv", "Wo"}) {
    if (!t.instance->weights().contains(name)) continue;
    const RefTensor now = to_reference(t.instance->weights().at(name));
    std::vector<double> scaled = now.data;
    for (double& x : scaled) x *= 25;
    w[name] = host_tensor(*t.ctx, Shape(now.shape), scaled, p.dtype);
  }
  rebind(t, {}, w);
  return t;
}

/// Checks outputs and, where nothing depends on the data, the ledger; otherwise all of it but the visited
/// pairs.
void check(Trial& t) {
  t.run();
  const RefMap want = t.reference();
  for (const char* name : {"y", "gates", "selected"}) {
    const Comparison c = compare(t.output(name), want.at(name));
    INFO(t.problem.str() << ", " << name << ": " << c.worst);
    if (std::string(name) == "selected")
      CHECK(c.relative_l2 == 0);
    else
      CHECK(c.relative_l2 <= tolerance(std::string(name) == "y" ? t.problem.dtype : DType::f32, 5));
  }
  // Visited pairs, from the selection.
  const RefTensor selected = t.output("selected");
  const int64_t batch = selected.dim(0), n = selected.dim(1), heads = selected.dim(2);
  const bool causal = t.params.boolean("causal"), sparse = t.params.choice("compute") == "sparse";
  int64_t visited = 0, expected = 0, entries = 0, expected_entries = 0;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<int64_t> on;
      for (int64_t i = 0; i < n; ++i)
        if (!sparse || selected[(b * n + i) * heads + h] != 0) on.push_back(i);
      if (!sparse) {
        visited += causal ? n * (n + 1) / 2 : n * n;
        continue;
      }
      for (int64_t s = 0; s < static_cast<int64_t>(on.size()); s += 64) {
        const int64_t last =
            on[static_cast<size_t>(std::min<int64_t>(s + 64, static_cast<int64_t>(on.size())) - 1)];
        const int64_t keys = causal ? std::min(n, (last + 128) / 128 * 128) : n;
        visited += std::min<int64_t>(64, n - s) * keys;
        entries += (keys + 127) / 128;
      }
    }
  const int64_t active = sparse ? t.params.integer("shared_heads") + t.params.integer("routed_heads") : heads;
  expected = batch * active * (causal ? n * (n + 1) / 2 : n * n);
  if (sparse) expected_entries = batch * active * ((n + 63) / 64) * ((n + 127) / 128);
  const Cost counted = t.ctx->cost().total(), formula = t.instance->cost().cost;
  const int64_t d = t.params.is_null("head_dim") ? t.problem.channels / heads : t.params.integer("head_dim");
  INFO(t.problem.str() << ", sparse " << sparse);
  CHECK(counted.matmul - 4 * d * visited == formula.matmul - 4 * d * expected);
  CHECK(counted.special - visited == formula.special - expected);
  CHECK(counted.elementwise - 4 * visited == formula.elementwise - 4 * expected);
  // List entries are read as they are visited, 4 bytes each.
  CHECK(counted.bytes_read - 4 * entries == formula.bytes_read - 4 * expected_entries);
  CHECK(counted.bytes_written == formula.bytes_written);
}

/// y of plain multi-head attention with the trial's projections.
RefTensor plain(const Trial& t) {
  ParamMap given{
      {"shared_heads", t.params.integer("num_heads")}, {"routed_heads", 0}, {"gate_norm", "binary"}};
  for (const char* name : {"head_dim", "qkv_bias"}) given[name] = t.params.value(name);
  RefMap weights = to_reference(t.instance->weights());
  return find_reference("moh")(t.problem, params_of("moh", t.problem, given),
                               to_reference(t.instance->inputs()), weights)
      .at("y");
}

/// Sets weights to zero.
void clear(Trial& t, std::initializer_list<const char*> names) {
  TensorMap w;
  for (const char* name : names) {
    const Shape shape = t.instance->weights().at(name).shape();
    w[name] = host_tensor(*t.ctx, shape, std::vector<double>(static_cast<size_t>(shape.numel()), 0));
  }
  rebind(t, {}, w);
}

}  // namespace

TEST_CASE("moh gates, by hand") {
  // One channel, x = ln 2: scores are multiples of ln 2, exponentials powers of two.
  Problem p = layer(1, 1, 1, 5);
  const RefTensor x = ref_tensor({1, 1, 1}, {std::log(2.0)});
  RefMap w{{"Wqkv", RefTensor({15, 1})}, {"Wo", RefTensor({1, 5})}};
  w["Wr"] = ref_tensor({3, 1}, {0, 2, 1});  // p = 1/7, 4/7, 2/7
  w["Ws"] = ref_tensor({2, 1}, {1, 0});     // 2/3, 1/3
  w["Wa"] = ref_tensor({2, 1}, {0, 1});     // 1/3, 2/3
  const auto gates = [&](ParamMap given) {
    given["head_dim"] = 1;
    given["shared_heads"] = 2;
    given["routed_heads"] = 2;
    return find_reference("moh")(p, params_of("moh", p, given), {{"x", x}}, w).at("gates").data;
  };
  const auto near = [](const std::vector<double>& got, const std::vector<double>& want) {
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(want[i]).margin(1e-12));
  };
  near(gates({}), {2.0 / 3 * 4 / 3, 2.0 / 3 * 2 / 3, 0, 4.0 / 3 * 4 / 3, 4.0 / 3 * 2 / 3});
  near(gates({{"two_stage", false}}), {4.0 / 3, 2.0 / 3, 0, 4.0 / 3, 2.0 / 3});
  near(gates({{"gate_norm", "paper"}}), {2.0 / 9, 1.0 / 9, 0, 2.0 / 3 * 4 / 7, 2.0 / 3 * 2 / 7});
  near(gates({{"gate_norm", "binary"}}), {1, 1, 0, 1, 1});
}

TEST_CASE("moh agrees with its reference, executes what was selected") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(false, true);
  const char* compute = GENERATE("sparse", "dense_masked");
  SECTION("more than one block of queries, batch 2, wider than its channels") {
    Trial t = moh(layer(2, 150, 40, 6, causal, dtype),
                  {{"head_dim", 8}, {"shared_heads", 2}, {"routed_heads", 2}, {"compute", compute}});
    check(t);
  }
  SECTION("qnorm with grouped keys") {
    Trial t = moh(layer(2, 133, 64, 8, causal, dtype, 2), {{"shared_heads", 4},
                                                           {"routed_heads", 2},
                                                           {"router", "qnorm"},
                                                           {"qkv_bias", false},
                                                           {"compute", compute}});
    check(t);
  }
  SECTION("forms of the gates") {
    const char* norm = GENERATE("repo", "paper", "binary");
    const bool two_stage = GENERATE(true, false);
    for (const auto& [shared, keep] :
         std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 3}, {3, 2}, {6, 0}}) {
      Trial t = moh(layer(1, 30, 24, 6, causal, dtype), {{"shared_heads", shared},
                                                         {"routed_heads", keep},
                                                         {"gate_norm", norm},
                                                         {"two_stage", two_stage},
                                                         {"compute", compute}});
      check(t);
    }
  }
  SECTION("one token") {
    Trial t = moh(layer(1, 1, 16, 4, causal, dtype),
                  {{"shared_heads", 1}, {"routed_heads", 1}, {"compute", compute}});
    check(t);
  }
}

TEST_CASE("moh's degenerate cases") {
  const Problem p = layer(2, 70, 48, 6);
  const double same = tolerance(DType::f32, 0);
  SECTION("1, 2: zero routers and all heads: plain attention") {
    Trial all = moh(p, {{"shared_heads", 2}, {"routed_heads", 4}});
    clear(all, {"Wr", "Ws", "Wa"});
    all.run();
    CHECK(compare(all.output("y"), plain(all)).relative_l2 < same);
    Trial shared = moh(p, {{"shared_heads", 6}, {"routed_heads", 0}});
    clear(shared, {"Ws"});
    shared.run();
    CHECK(compare(shared.output("y"), plain(shared)).relative_l2 < same);
  }
  SECTION("3: binary gates with all heads kept") {
    Trial t = moh(p, {{"shared_heads", 1}, {"routed_heads", 5}, {"gate_norm", "binary"}});
    t.run();
    CHECK(compare(t.output("y"), plain(t)).relative_l2 < same);
  }
  SECTION("4: gates sum to a_0 Hs + a_1 Kr; without balance to the active heads") {
    Trial t = moh(p, {{"shared_heads", 2}, {"routed_heads", 3}});
    clear(t, {"Wa"});
    t.run();
    const RefTensor g = t.output("gates");
    for (int64_t r = 0; r < 140; ++r) {
      double sum = 0;
      for (int64_t h = 0; h < 6; ++h) sum += g[r * 6 + h];
      CHECK(sum == Approx(5).epsilon(1e-5));
    }
  }
  SECTION("5: one routed head: hard routing with gate 1") {
    Trial t = moh(p, {{"shared_heads", 0}, {"routed_heads", 1}});
    t.run();
    for (const double g : t.output("gates").data) CHECK((g == 0 || std::abs(g - 1) < 1e-6));
  }
  SECTION("6: sparse equals dense_masked") {
    Trial a = moh(p, {{"shared_heads", 2}, {"routed_heads", 2}});
    Trial b = moh(p, {{"shared_heads", 2}, {"routed_heads", 2}, {"compute", "dense_masked"}});
    a.run();
    b.run();
    CHECK(compare(a.output("y"), b.output("y")).relative_l2 < same);
    CHECK(compare(a.output("gates"), b.output("gates")).relative_l2 == 0);
  }
}

TEST_CASE("moh pairs and rows are those of the active heads") {
  Trial t = moh(layer(2, 70, 48, 6, GENERATE(false, true)), {{"shared_heads", 1}, {"routed_heads", 2}});
  t.run();
  const PairSet pairs = *t.instance->pairs();
  const RefTensor selected = t.output("selected");
  std::vector<float> rows;
  Intervals seen;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 6; ++h) {
      REQUIRE(t.instance->rows(*t.ctx, b, h, 0, 70, rows));
      for (int64_t i = 0; i < 70; ++i) {
        pairs.row(b, h, i, seen);
        double sum = 0;
        for (int64_t j = 0; j < 70; ++j) sum += static_cast<double>(rows[static_cast<size_t>(i * 70 + j)]);
        const bool on = selected[(b * 70 + i) * 6 + h] != 0;
        CHECK(seen.empty() == !on);
        CHECK(sum == Approx(on ? 1 : 0).margin(1e-5));
      }
    }
}

TEST_CASE("moh's parameters and refusals") {
  Trial t = moh(layer(1, 5, 48, 6), {{"shared_heads", 2}, {"routed_heads", 2}});
  // 4 C^2, biases, and the routers C (E + Hs + 2).
  CHECK(t.instance->cost().parameters == 4 * 48 * 48 + 4 * 48 + 48 * (4 + 2 + 2));
  const Problem p = layer(1, 5, 48, 6);
  CHECK_THROWS_WITH(make_trial("moh", p, {{"shared_heads", 7}}), ContainsSubstring("7 of 6"));
  CHECK_THROWS_WITH(make_trial("moh", p, {{"shared_heads", 2}, {"routed_heads", 5}}),
                    ContainsSubstring("5 of the 4"));
  CHECK_THROWS_WITH(make_trial("moh", p, {{"shared_heads", 0}, {"routed_heads", 0}}),
                    ContainsSubstring("no head"));
  CHECK_THROWS_WITH(make_trial("moh", layer(1, 5, 50, 6), {{"shared_heads", 2}, {"routed_heads", 2}}),
                    ContainsSubstring("head_dim"));
}
