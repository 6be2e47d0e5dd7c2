// Calibration of attention sinks: the reference by hand, both forms against it and against each other, the
// card's degenerate cases, closed forms.
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const char* const kMethod = "act_sinks";

Value numbers(std::vector<double> v) {
  Value::List l;
  for (double x : v) l.emplace_back(x);
  return l;
}

/// Scales some keys so that they draw weight: random inputs alone have no later sinks.
void make_sinks(Trial& t, std::vector<int64_t> tokens, double factor) {
  RefTensor k = to_reference(t.instance->inputs().at("k")), q = to_reference(t.instance->inputs().at("q"));
  const int64_t m = k.dim(1), heads = k.dim(2), d = k.dim(3);
  for (int64_t b = 0; b < k.dim(0); ++b)
    for (int64_t x : tokens)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t c = 0; c < d; ++c) k[((b * m + x) * heads + h) * d + c] = c == 0 ? factor : 0;
  for (int64_t i = 0; i < q.numel() / d; ++i) q[i * d] = 1.5;  // every query points along the sinks
  rebind(t, {{"k", host_tensor(*t.ctx, t.instance->inputs().at("k").shape(), k.data, t.problem.dtype)},
             {"q", host_tensor(*t.ctx, t.instance->inputs().at("q").shape(), q.data, t.problem.dtype)}});
}

/// Outputs against the reference within `roundings` of the storage type; integers exactly.
void check_outputs(Trial& t, double roundings) {
  t.run();
  const RefMap want = t.reference();
  REQUIRE(want.size() == t.instance->outputs().size());
  for (const auto& [key, tensor] : t.instance->outputs()) {
    const Comparison c = compare(t.output(key), want.at(key));
    INFO(t.method << " " << t.problem.str() << ", output " << key << ": " << c.worst);
    if (tensor.dtype() == DType::i32)
      CHECK(c.max_absolute == 0);
    else
      CHECK(c.relative_l2 <= tolerance(tensor.dtype(), roundings));
  }
}
double total(const RefTensor& t) {
  double s = 0;
  for (double x : t.data) s += x;
  return s;
}

}  // namespace

TEST_CASE("the reference of calibrated sinks, by hand") {
  // Scores ln 5, ln 3, ln 2 for every row, no causal mask: each row is (0.5, 0.3, 0.2), and so are the
  // columns' means.
  Problem p = heads_problem(1, 1, 1, 3, 3, 1, false);
  const auto run = [&](ParamMap params) {
    params["calibrated_heads"] = "all";
    const RefTensor q = ref_tensor({1, 3, 1, 1}, {1, 1, 1});
    const RefTensor k = ref_tensor({1, 3, 1, 1}, {std::log(5), std::log(3), std::log(2)});
    const RefTensor v = ref_tensor({1, 3, 1, 1}, {1, 10, 100});
    return find_reference(kMethod)(p, params_of(kMethod, p, params), {{"q", q}, {"k", k}, {"v", v}}, {});
  };
  // Keys 0 and 1 lie above 0.25; the first one is kept.
  const RefMap r = run({{"sink_threshold", 0.25}});
  CHECK(r.at("sink_mask").data == std::vector<double>{0, 1, 0});
  CHECK(r.at("sink_count")[0] == 1);
  for (int64_t i = 0; i < 3; ++i) {
    CHECK(r.at("attn")[i * 3] == Approx(0.628571));
    CHECK(r.at("attn")[i * 3 + 1] == Approx(0.12));
    CHECK(r.at("attn")[i * 3 + 2] == Approx(0.251429));
    CHECK(r.at("output")[i] == Approx(0.628571 + 1.2 + 25.1429));
  }
  CHECK(r.at("sink_mass_before")[0] == Approx(0.3));
  CHECK(r.at("sink_mass_after")[0] == Approx(0.12));
  // Only key 1 and 2 without key 0: position0 removes key 0 and nothing else.
  CHECK(run({{"sink_threshold", 0.15}, {"drop_first", "position0"}}).at("sink_mask").data ==
        std::vector<double>{0, 1, 1});
  CHECK(run({{"sink_threshold", 0.15}}).at("sink_mask").data == std::vector<double>{0, 1, 1});
  // relative: 0.75 / 3 = 0.25.
  CHECK(run({{"threshold_mode", "relative"}, {"alpha", 0.75}}).at("sink_mask").data ==
        std::vector<double>{0, 1, 0});
  // Strictly above.
  CHECK(run({{"sink_threshold", 1.0}}).at("sink_count")[0] == 0);
}

TEST_CASE("causal columns are means over the rows that can see them") {
  Problem p = heads_problem(1, 1, 1, 3, 3, 1, true);
  const RefTensor q = ref_tensor({1, 3, 1, 1}, {0, 0, 0}), k = q, v = ref_tensor({1, 3, 1, 1}, {1, 2, 3});
  const RefMap r = find_reference(kMethod)(p, params_of(kMethod, p), {{"q", q}, {"k", k}, {"v", v}}, {});
  CHECK(r.at("column_score")[0] == Approx((1 + 0.5 + 1.0 / 3) / 3));
  CHECK(r.at("column_score")[1] == Approx((0.5 + 1.0 / 3) / 2));
  CHECK(r.at("column_score")[2] == Approx(1.0 / 3));
}

TEST_CASE("act_sinks agrees with its reference in both forms") {
  const std::string form = GENERATE("unfused", "fused");
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(true, false);
  SECTION("chosen heads, grouped keys, batch 2, sinks at odd places") {
    const std::string drop = GENERATE("first_detected", "position0");
    Trial t = make_trial(kMethod, heads_problem(2, 6, 2, 53, 53, 12, causal, dtype),
                         {{"calibrated_heads", numbers({0, 2, 5})},
                          {"form", form},
                          {"drop_first", drop},
                          {"sink_threshold", 0.15}});
    make_sinks(t, {0, 7, 30}, 9);
    check_outputs(t, 4);
    CHECK(total(t.output("sink_count")) > 6);
  }
  SECTION("heads by their sink mass, by a seeded share, all") {
    const std::string heads = GENERATE("by_sink", "random_fraction", "all");
    Trial t = make_trial(kMethod, heads_problem(2, 5, 5, 40, 40, 8, causal, dtype),
                         {{"calibrated_heads", heads}, {"head_fraction", 0.4}, {"form", form}});
    t.params =
        params_of(kMethod, t.problem, {{"calibrated_heads", heads}, {"head_fraction", 0.4}, {"form", form}});
    make_sinks(t, {3, 11}, 8);
    check_outputs(t, 4);
  }
  SECTION("more keys than queries, and a decoding row") {
    const int64_t queries = GENERATE(1, 9);
    const std::string decode = GENERATE("on", "off");
    Trial t = make_trial(kMethod, heads_problem(2, 4, 2, queries, 31, 8, causal, dtype),
                         {{"calibrated_heads", "all"}, {"form", form}, {"decode", decode}});
    make_sinks(t, {2, 20}, 8);
    check_outputs(t, 4);
  }
  SECTION("one token") {
    Trial t = make_trial(kMethod, heads_problem(1, 2, 1, 1, 1, 8, causal, dtype),
                         {{"calibrated_heads", "all"}, {"form", form}});
    check_outputs(t, 4);
    CHECK(compare(t.output("output"), RefTensor(t.reference().at("output"))).relative_l2 <=
          epsilon_of(dtype));
  }
}

TEST_CASE("the fused form equals the unfused one") {
  const ParamMap params{{"calibrated_heads", "all"}, {"sink_threshold", 0.12}};
  ParamMap fused = params;
  fused["form"] = "fused";
  const Problem p = heads_problem(2, 4, 2, 77, 77, 16, true);
  Trial a = make_trial(kMethod, p, params), b = make_trial(kMethod, p, fused);
  make_sinks(a, {5, 40}, 8), make_sinks(b, {5, 40}, 8);
  a.run(), b.run();
  for (const auto& [key, t] : b.instance->outputs()) {
    INFO(key);
    CHECK(compare(b.output(key), a.output(key)).relative_l2 < 4e-6);
  }
  CHECK(compare(to_reference(b.instance->extra_output(*b.ctx, "attn")), a.output("attn")).relative_l2 < 4e-6);
  CHECK_FALSE(b.instance->extra_output(*b.ctx, "nothing"));
  CHECK(total(a.output("sink_count")) >= 8);
}

TEST_CASE("degenerate calibrations are dense attention") {
  const Problem p = heads_problem(1, 4, 2, 60, 60, 16, true);
  const auto run = [&](ParamMap params) {
    params["form"] = "fused";
    Trial t = make_trial(kMethod, p, params);
    make_sinks(t, {5, 40}, 8);
    t.run();
    return t.output("output");
  };
  const RefTensor dense = run({{"calibrated_heads", numbers({})}});
  CHECK(run({{"calibrated_heads", "all"}, {"beta", 1.0}}).data == dense.data);
  CHECK(run({{"calibrated_heads", "all"}, {"sink_threshold", 1.0}}).data == dense.data);
  CHECK(run({{"calibrated_heads", "all"}, {"layer", 1}}).data == dense.data);
  CHECK(run({{"calibrated_heads", "all"}, {"layer", 31}}).data == dense.data);
  const RefTensor some = run({{"calibrated_heads", numbers({2})}});
  CHECK(some.data != dense.data);
  for (int64_t i = 0; i < 60; ++i)
    for (int64_t h : {0, 1, 3})
      for (int64_t c = 0; c < 16; ++c) CHECK(some[(i * 4 + h) * 16 + c] == dense[(i * 4 + h) * 16 + c]);
  // Row 0 of a causal map sees key 0 alone.
  const RefTensor all = run({{"calibrated_heads", "all"}});
  for (int64_t c = 0; c < 64; ++c) CHECK(all[c] == dense[c]);
  // Relative: 0.1 N over N is 0.1.
  CHECK(run({{"calibrated_heads", "all"}, {"threshold_mode", "relative"}, {"alpha", 6.0}}).data == all.data);
}

TEST_CASE("beta = 0 removes the sinks: attention without their keys; constant values stay") {
  const Problem p = heads_problem(1, 2, 2, 33, 33, 8, false);
  Trial t = make_trial(kMethod, p, {{"calibrated_heads", "all"}, {"beta", 0.0}, {"form", "fused"}});
  make_sinks(t, {4, 9, 21}, 7);
  t.run();
  const RefTensor q = to_reference(t.instance->inputs().at("q")),
                  k = to_reference(t.instance->inputs().at("k")),
                  v = to_reference(t.instance->inputs().at("v")), mask = t.output("sink_mask"),
                  o = t.output("output");
  REQUIRE(total(mask) >= 4);
  double worst = 0;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 33; ++i) {
      std::vector<double> s(33);
      std::vector<char> visible(33);
      for (int64_t j = 0; j < 33; ++j) {
        for (int64_t c = 0; c < 8; ++c)
          s[static_cast<size_t>(j)] += q[(i * 2 + h) * 8 + c] * k[(j * 2 + h) * 8 + c] / std::sqrt(8.0);
        visible[static_cast<size_t>(j)] = mask[h * 33 + j] == 0;
      }
      ref::softmax_row(s, visible);
      for (int64_t c = 0; c < 8; ++c) {
        double want = 0;
        for (int64_t j = 0; j < 33; ++j)
          if (visible[static_cast<size_t>(j)]) want += s[static_cast<size_t>(j)] * v[(j * 2 + h) * 8 + c];
        worst = std::max(worst, std::abs(want - o[(i * 2 + h) * 8 + c]));
      }
    }
  // Taking the sinks' share out of the whole cancels: their mass is most of a row's.
  CHECK(worst < 1e-4);
  Trial constant = make_trial(kMethod, p, {{"calibrated_heads", "all"}, {"form", "fused"}});
  make_sinks(constant, {4, 9, 21}, 7);
  rebind(constant, {{"v", host_tensor(*constant.ctx, {1, 33, 2, 8}, std::vector<double>(33 * 16, 0.5))}});
  constant.run();
  const RefTensor same = constant.output("output");
  for (double x : same.data) CHECK(x == Approx(0.5).epsilon(1e-5));
}

TEST_CASE("closed forms: the unfused one is exact, the fused one given the sinks") {
  const bool causal = GENERATE(true, false);
  const std::string drop = GENERATE("first_detected", "position0"), heads = GENERATE("all", "by_sink");
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  for (const char* form : {"unfused", "fused"}) {
    Trial t = make_trial(
        kMethod, heads_problem(2, 4, 2, 45, 45, 12, causal, dtype),
        {{"calibrated_heads", heads}, {"head_fraction", 0.5}, {"drop_first", drop}, {"form", form}});
    make_sinks(t, {6, 17}, 8);
    t.run();
    Cost want = t.instance->cost().cost;
    if (std::string(form) == "fused") {
      const auto sinks = static_cast<int64_t>(total(t.output("sink_count"))), pairs = sinks * 45;
      REQUIRE(pairs > 0);
      want.bytes_read += 4 * sinks;
      want.matmul += 4 * 12 * pairs, want.special += pairs, want.elementwise += 4 * pairs;
    }
    const Cost counted = t.ctx->cost().total();
    INFO(form << " causal " << causal << " " << drop << " " << heads);
    CHECK(counted.matmul == want.matmul);
    CHECK(counted.special == want.special);
    CHECK(counted.elementwise == want.elementwise);
    CHECK(counted.bytes_read == want.bytes_read);
    CHECK(counted.bytes_written == want.bytes_written);
  }
}

TEST_CASE("rows of calibrated heads are the map that the unfused form writes") {
  Trial t =
      make_trial(kMethod, heads_problem(2, 4, 2, 30, 30, 8, true), {{"calibrated_heads", numbers({1, 2})}});
  make_sinks(t, {6, 17}, 8);
  t.run();
  const RefTensor map = t.output("attn");
  std::vector<float> rows;
  double worst = 0;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 4; ++h) {
      REQUIRE(t.instance->rows(*t.ctx, b, h, 3, 30, rows));
      for (int64_t i = 0; i < 27; ++i)
        for (int64_t j = 0; j < 30; ++j)
          worst = std::max(worst, std::abs(static_cast<double>(rows[static_cast<size_t>(i * 30 + j)]) -
                                           map[((b * 4 + h) * 30 + i + 3) * 30 + j]));
    }
  CHECK(worst < 1e-6);
}

TEST_CASE("act_sinks says what it cannot do") {
  const auto make = [](Problem p, ParamMap params) { return make_trial(kMethod, p, params); };
  CHECK_THROWS_WITH(make(heads_problem(1, 4, 2, 8, 8, 4, true), {{"calibrated_heads", numbers({4})}}),
                    ContainsSubstring("heads 0 to 3"));
  CHECK_THROWS_WITH(make(heads_problem(1, 4, 2, 8, 8, 4, true), {{"sink_threshold", 0.0}}),
                    ContainsSubstring("threshold"));
  CHECK_THROWS_AS(make(heads_problem(1, 4, 2, 9, 8, 4, true), {}), Unsupported);
  CHECK_THROWS_WITH(make(heads_problem(1, 4, 2, 8, 8, 4, true), {{"causal", false}}),
                    ContainsSubstring("causal"));
}
