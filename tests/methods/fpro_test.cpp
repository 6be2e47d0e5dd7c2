// FPro: every scope and option against the reference, the card's degenerate cases and its counts.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "fpro";

Problem image(int64_t batch, int64_t r, int64_t channels, int64_t width = 0) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  if (r > 0) p.grid = {r, width > 0 ? width : r};
  p.channels = channels;
  return p;
}

/// A small prompt block: R = 16, C = 12, c0 = 8 with 4 groups, s of 20 x 20.
ParamMap small(ParamMap more = {}) {
  more.insert({{"base_dim", 8}, {"gdd_groups", 4}, {"input_size", 20}});
  return more;
}

/// Gains, offsets and statistics of norms and temperatures leave 0 and 1.
void shake(Trial& t) {
  shake_weights(t, 0.3, [](const std::string& key) {
    return key.find("bn.") != std::string::npos || key.find("ln") != std::string::npos ||
           key.find("temperature") != std::string::npos;
  });
}

double spread(const RefTensor& y) {  // of every plane
  const int64_t n = y.dim(2) * y.dim(3);
  double w = 0;
  for (int64_t i = 0; i < y.numel(); ++i) w = std::max(w, std::abs(y[i] - y[i / n * n]));
  return w;
}

RefTensor constant(std::vector<int64_t> shape, double value) {
  RefTensor t(std::move(shape));
  std::fill(t.data.begin(), t.data.end(), value);
  return t;
}

}  // namespace

TEST_CASE("the fpro reference, by hand on a decoupler of one group") {
  const Problem p = image(1, 0, 0);
  const Params params = params_of(
      kMethod, p,
      {{"scope", "gdd"}, {"base_dim", 1}, {"gdd_groups", 1}, {"input_size", Value(Value::List{2, 3})}});
  RefMap w;
  w["gdd.conv.weight"] = constant({9, 1, 1, 1}, 0);
  w["gdd.conv.weight"][4] = 2;  // the centre only
  w["gdd.gate.weight"] = constant({9, 9, 1, 1}, 0);
  for (const char* name : {"weight", "running_var"}) w[std::string("gdd.bn.") + name] = constant({9}, 1);
  for (const char* name : {"bias", "running_mean"}) w[std::string("gdd.bn.") + name] = constant({9}, 0);
  // Mean 2: f = 4 at the centre, halved by the gate: taps e^2 : 1 (up to the norm's eps).
  const RefMap out =
      find_reference(kMethod)(p, params, {{"s", ref_tensor({1, 1, 2, 3}, {1, 2, 3, 0, 4, 2})}}, w);
  const double centre = std::exp(2 / std::sqrt(1 + 1e-5)), sum = centre + 8;
  // Around (0, 0): rows 0 and 1 mirrored (1, 0, 1), columns (1, 0, 1).
  CHECK(out.at("low")[0] == Approx((centre * 1 + 2 * 2 + 2 * 0 + 4 * 4) / sum));
  CHECK(out.at("low")[4] == Approx((centre * 4 + 2 * (1 + 2 + 3) + 0 + 2) / sum));
  CHECK(out.at("high")[4] == Approx(4 - out.at("low")[4]));
}

TEST_CASE("fpro: every option of the prompt block against the reference") {
  const int option = GENERATE(range(0, 11));
  const std::vector<ParamMap> given = {{},
                                       {{"lpm_mode", "dc"}},
                                       {{"lpm_pool", 3}},
                                       {{"input_size", 16}},
                                       {{"input_size", Value(Value::List{9, 33})}},
                                       {{"input_size", Value(Value::List{9, 33})}, {"lpm_mode", "dc"}},
                                       {{"gdd_groups", 1}, {"gdd_kernel", 5}, {"window", 4}},
                                       {{"prompt_heads", 3}, {"window", 16}},
                                       {{"scope", "gdd"}},
                                       {{"scope", "lpm"}, {"lpm_pool", 16}},
                                       {{"scope", "hpm"}, {"window", 2}}};
  Trial t = make_trial(kMethod, image(option % 2 + 1, 16, 12), small(given[static_cast<size_t>(option)]));
  shake(t);
  INFO("option " << option);
  check_trial(t, 1);
}

TEST_CASE("fpro restoration blocks against the reference") {
  const auto [h, w, c, heads] =
      GENERATE(table<int, int, int, int>({{7, 5, 12, 3}, {1, 1, 6, 1}, {4, 9, 10, 10}}));
  Trial t = make_trial(kMethod, image(2, h, c, w),
                       {{"scope", "restoration_block"},
                        {"heads", Value(Value::List{heads})},
                        {"ffn_expansion", c == 10 ? 2.66 : 3.0}});
  shake(t);
  check_trial(t, 1);
  CHECK(t.instance->cost().parameters == 4 * c + 3 * c * c + 27 * c + heads + c * c +
                                             3 * c * int(c * (c == 10 ? 2.66 : 3.0)) +
                                             18 * int(c * (c == 10 ? 2.66 : 3.0)));
}

TEST_CASE("fpro networks against the reference") {
  const std::string mode = GENERATE(as<std::string>{}, "reference", "dc");
  Trial t = make_trial(kMethod, image(2, 0, 0),
                       {{"scope", "network"},
                        {"base_dim", 8},
                        {"gdd_groups", 4},
                        {"input_size", 16},
                        {"window", 4},
                        {"num_blocks", Value(Value::List{1, 2, 1})},
                        {"refinement_blocks", 1},
                        {"lpm_mode", mode}});
  shake(t);
  check_trial(t, 1);
}

TEST_CASE("fpro's network has the published counts") {
  Context ctx(cpu_backend(), 1);
  const Problem p = image(1, 0, 0);
  const auto made = find_method(kMethod).make(ctx, p, params_of(kMethod, p, {{"scope", "network"}}));
  const ClosedForm f = made->cost();
  CHECK(f.parameters == 22287244);
  CHECK(static_cast<double>(f.published_macs) / 1e9 == Approx(81.88).margin(0.005));
  int64_t maps = 0, prompts = 0;
  for (const TensorSpec& w : made->weight_specs()) {
    if (w.name.ends_with("Phi") || w.name.ends_with("Plo")) maps += w.shape.numel();
    if ((w.name.starts_with("gdd.") && w.name.find("running") == std::string::npos) ||
        w.name.starts_with("prompt_"))
      prompts += w.shape.numel();
  }
  CHECK(static_cast<double>(maps) / 1e6 == Approx(14.62).margin(0.005));
  CHECK(static_cast<double>(prompts) / 1e6 == Approx(15.15).margin(0.005));
  // One prompt block: 5.40 GMAC, of which the low half is 1.52.
  const auto one = find_method(kMethod).make(ctx, p, params_of(kMethod, p)),
             low = find_method(kMethod).make(ctx, p, params_of(kMethod, p, {{"scope", "lpm"}}));
  CHECK(static_cast<double>(one->cost().published_macs) / 1e9 == Approx(5.40).margin(0.005));
  CHECK(static_cast<double>(low->cost().published_macs) / 1e9 == Approx(1.52).margin(0.005));
}

TEST_CASE("fpro degenerate cases") {
  const Problem p = image(2, 16, 12);
  SECTION("dc equals the transform; queries and temperature have no say") {
    Trial full = make_trial(kMethod, p, small()), dc = make_trial(kMethod, p, small({{"lpm_mode", "dc"}}));
    full.run();
    dc.run();
    CHECK(largest_difference(full.output("out"), dc.output("out")) < 1e-6);
    CHECK(largest_difference(full.output("y_l"), dc.output("y_l")) < 1e-6);
    const RefTensor before = full.output("y_l");
    set_weights(full, {"lpm.q.weight", "lpm.temperature"}, 0.7);
    full.run();
    CHECK(largest_difference(before, full.output("y_l")) == 0);
    Trial wide = make_trial(kMethod, p, small({{"lpm_pool", 2}}));
    wide.run();
    CHECK(spread(wide.output("y_l")) > 1e-9);  // several keys: positions differ
  }
  SECTION("no filter weights: a box mean; high of a constant is 0") {
    Trial t = make_trial(kMethod, p, small({{"scope", "gdd"}}));
    set_weights(t, {"gdd.conv.weight"}, 0);
    t.run();
    const RefTensor s = to_reference(t.instance->inputs().at("s")), low = t.output("low");
    double box = 0;
    for (int64_t y = 4; y < 7; ++y)
      for (int64_t x = 10; x < 13; ++x) box += s[y * 20 + x] / 9;
    CHECK(low[5 * 20 + 11] == Approx(box).epsilon(1e-5));
    rebind(t, {{"s", host_tensor(*t.ctx, {2, 8, 20, 20}, std::vector<double>(2 * 8 * 400, 1.5))}});
    t.run();
    CHECK(largest_difference(t.output("high"), constant({2, 8, 20, 20}, 0)) < 1e-6);
  }
  SECTION("high + low = s") {
    Trial t = make_trial(kMethod, p, small({{"scope", "gdd"}}));
    t.run();
    RefTensor sum = t.output("low");
    const RefTensor high = t.output("high");
    for (int64_t i = 0; i < sum.numel(); ++i) sum[i] += high[i];
    CHECK(largest_difference(sum, to_reference(t.instance->inputs().at("s"))) < 1e-6);
  }
  SECTION("no Phi: y_h = Wo b_v + b_o everywhere") {
    Trial t = make_trial(kMethod, p, small({{"scope", "hpm"}}));
    set_weights(t, {"hpm.Phi"}, 0);
    t.run();
    const RefTensor y = t.output("y_h"), wo = to_reference(t.instance->weights().at("hpm.out.weight")),
                    bo = to_reference(t.instance->weights().at("hpm.out.bias")),
                    kv = to_reference(t.instance->weights().at("hpm.kv.bias"));
    CHECK(spread(y) < 1e-6);
    for (int64_t c = 0; c < 12; ++c) {
      double want = bo[c];
      for (int64_t e = 0; e < 12; ++e) want += wo[c * 12 + e] * kv[12 + e];
      CHECK(y[c * 256] == Approx(want).margin(1e-6));
    }
  }
  SECTION("channel attention of one channel a head passes v") {
    Trial t = make_trial(kMethod, image(1, 4, 6),
                         {{"scope", "restoration_block"}, {"heads", Value(Value::List{6})}});
    t.run();
    const RefTensor before = t.output("u");
    set_weights(t, {"mdta.temperature"}, 5);
    t.run();
    CHECK(largest_difference(before, t.output("u")) == 0);
  }
  SECTION("no Plo: y_l = 0; no low half in the fusion: the high half alone") {
    Trial t = make_trial(kMethod, p, small());
    t.run();
    const RefTensor fused = t.output("out");
    set_weights(t, {"lpm.Plo"}, 0);
    t.run();
    CHECK(largest_difference(t.output("y_l"), constant({2, 12, 1, 1}, 0)) == 0);
    const RefTensor alone = t.output("out");
    CHECK(largest_difference(fused, alone) > 0);
    Trial u = make_trial(kMethod, p, small());
    RefTensor fuse = to_reference(u.instance->weights().at("fuse.weight"));
    for (int64_t i = 0; i < fuse.numel(); ++i)
      if (i % 24 >= 12) fuse[i] = 0;
    rebind(u, {}, {{"fuse.weight", host_tensor(*u.ctx, {12, 24, 1, 1}, fuse.data)}});
    u.run();
    CHECK(largest_difference(u.output("out"), alone) < 1e-6);
  }
}

TEST_CASE("fpro says what it cannot do") {
  const Problem p = image(1, 16, 12);
  CHECK_NOTHROW(make_only(kMethod, p, small()));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"gdd_groups", 3}})), ContainsSubstring("gdd_groups"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"gdd_kernel", 4}})), ContainsSubstring("odd"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"window", 5}})), ContainsSubstring("window"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"dim", 10}})), ContainsSubstring("not the problem's 12"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"prompt_heads", 5}})), ContainsSubstring("prompt_heads"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"lpm_pool", 17}})), ContainsSubstring("lpm_pool"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 15, 12), small({{"window", 5}})), ContainsSubstring("even"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 16, 12, 8), small()), ContainsSubstring("square"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"input_size", Value(Value::List{1, 2, 3})}})),
                    ContainsSubstring("input_size"));
  CHECK_THROWS_WITH(make_only(kMethod, p, small({{"input_size", 1}})), ContainsSubstring("input_size"));
  CHECK_THROWS_AS(make_only(kMethod, p, small({{"lpm_mode", "dc"}, {"lpm_pool", 2}})), Unsupported);
  CHECK_THROWS_AS(make_only(kMethod, p, small({{"gdd_kernel", 5}, {"input_size", 2}})), Unsupported);
  CHECK_THROWS_WITH(make_only(kMethod, p, {{"scope", "restoration_block"}, {"heads", Value(Value::List{5})}}),
                    ContainsSubstring("heads"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 0, 0), {{"scope", "network"}, {"input_size", 100}}),
                    ContainsSubstring("window"));
  CHECK_THROWS_WITH(
      make_only(kMethod, image(1, 0, 0), {{"scope", "network"}, {"num_blocks", Value(Value::List{2})}}),
      ContainsSubstring("num_blocks"));
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make_only(kMethod, causal, small()), Unsupported);
}
