// MambAttention: blocks and shell against the reference, the card's degenerate cases and counts.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "mambattention";

Problem map(int64_t batch, int64_t frames, int64_t width, int64_t channels, int64_t heads) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.grid = {frames, width};
  p.channels = channels;
  p.heads = heads;
  return p;
}
Problem wave(int64_t batch, int64_t samples) {
  Problem p;
  p.kind = ProblemKind::signal;
  p.batch = batch;
  p.channels = 1;
  p.samples = samples;
  return p;
}

/// Gains, offsets and slopes that count.
void lively(Trial& t) {
  shake_weights(t, 0.1, [](const std::string& key) {
    return key.ends_with("bias") || key.find("norm") != std::string::npos || key.ends_with("prelu") ||
           key.ends_with("Dskip");
  });
}

void make(const Problem& p, const ParamMap& given) { make_only(kMethod, p, given); }

}  // namespace

TEST_CASE("mambattention blocks against the reference") {
  const auto check = [](const Problem& p, const ParamMap& given) {
    Trial t = make_trial(kMethod, p, given);
    lively(t);
    check_trial(t, 1);
  };
  SECTION("two blocks, batch 2") {
    check(map(2, 9, 7, 16, 4), {{"num_blocks", 2}, {"d_state", 5}, {"expand", 2}});
  }
  SECTION("own attention for each axis, wide state, no divisor") {
    check(
        map(1, 13, 6, 20, 5),
        {{"num_blocks", 1}, {"share_attention", false}, {"d_state", 17}, {"expand", 3}, {"norm_eps", 1e-3}});
  }
  SECTION("one frame, one bin, shorter than the convolution") {
    check(map(2, 1, 5, 8, 2), {{"num_blocks", 1}, {"expand", 1}});
    check(map(1, 3, 1, 8, 8), {{"num_blocks", 1}, {"d_conv", 6}});
  }
  SECTION("parts left out") {
    check(map(1, 5, 4, 8, 2), {{"num_blocks", 1}, {"use_attention", false}});
    check(map(1, 5, 4, 8, 2), {{"num_blocks", 2}, {"use_mamba", false}});
    check(map(1, 5, 4, 8, 2), {{"num_blocks", 1}, {"use_mamba", false}, {"use_attention", false}});
  }
}

TEST_CASE("mambattention full: wave to wave against the reference") {
  const ParamMap given{{"scope", "full"}, {"channels", 8}, {"heads", 2},
                       {"num_blocks", 1}, {"d_state", 4},  {"expand", 1},
                       {"n_fft", 32},     {"hop", 8},      {"win", GENERATE(32, 24)}};
  Trial t = make_trial(kMethod, wave(2, 203), given);
  lively(t);
  t.run();
  const RefMap want = t.reference();
  const TensorMap outputs = t.instance->outputs();
  REQUIRE(outputs.size() == want.size());
  for (const auto& item : outputs) {
    const Comparison c = compare(to_reference(item.second), want.at(item.first));
    INFO(item.first << ": " << c.relative_l2 << ", " << c.worst);
    // Powers of 0.3 and of 1 / 0.3, angles near the origin, and fourteen norms in a row.
    CHECK(c.relative_l2 < 2e-5);
  }
  CHECK(t.ctx->cost().total() == t.instance->cost().cost);
  CHECK(outputs.at("wave_out").shape() == Shape{2, 200});
}

TEST_CASE("mambattention full: the sign of a rounding never decides a phase") {
  // The first frame's spectrum is real. Among the 201 bins of the paper's size some are so small beside the
  // others that f32 leaves more in their imaginary parts than the snap forgives.
  Trial t = make_trial(kMethod, wave(8, 400), {{"scope", "full"}, {"channels", 8}, {"num_blocks", 1}});
  t.run();
  const RefMap want = t.reference();
  const Comparison c = compare(to_reference(t.instance->outputs().at("enc")), want.at("enc"));
  INFO(c.worst);
  CHECK(c.relative_l2 < 2e-5);
  CHECK(t.ctx->cost().total() == t.instance->cost().cost);
}

TEST_CASE("mambattention degenerate cases") {
  const Problem p = map(1, 8, 6, 16, 4);
  const ParamMap one{{"num_blocks", 1}, {"expand", 2}, {"d_state", 4}};
  Trial t = make_trial(kMethod, p, one);
  lively(t);
  const auto like = [&](ParamMap more) {
    ParamMap given = one;
    for (auto& [key, value] : more) given[key] = value;
    Trial other = make_trial(kMethod, p, given);
    TensorMap shared;
    for (const auto& [key, w] : other.instance->weights()) {
      std::string from = key;
      for (const char* axis : {"attn_t", "attn_f"})
        if (const size_t i = from.find(axis); i != std::string::npos) from.replace(i, 6, "attn");
      shared[key] = t.instance->weights().at(from);
    }
    rebind(other, {{"X", t.instance->inputs().at("X")}}, shared);
    other.run();
    return other.output("out");
  };
  SECTION("attention without output is no attention") {
    set_weights(t, {"out_proj"}, 0);
    t.run();
    CHECK(largest_difference(t.output("out"), like({{"use_attention", false}})) == 0);
  }
  SECTION("a merge of nothing is no Mamba; both: the identity") {
    set_weights(t, {"merge_"}, 0);
    t.run();
    CHECK(largest_difference(t.output("out"), like({{"use_mamba", false}})) == 0);
    set_weights(t, {"out_proj"}, 0);
    t.run();
    CHECK(largest_difference(t.output("out"), to_reference(t.instance->inputs().at("X"))) == 0);
  }
  SECTION("two attentions of equal weights are one") {
    t.run();
    CHECK(largest_difference(t.output("out"), like({{"share_attention", false}})) == 0);
  }
  SECTION("without memory both directions are the same: reversal commutes") {
    // A = -exp(80): exp(Delta A) = 0; equal weights and halves; a convolution of one tap.
    ParamMap given = one;
    given["d_conv"] = 1;
    given["use_attention"] = false;
    Trial alone = make_trial(kMethod, p, given);
    TensorMap equal;
    for (const auto& [key, w] : alone.instance->weights()) {
      std::string from = key;
      if (const size_t i = from.find("backward"); i != std::string::npos) from.replace(i, 8, "forward");
      equal[key] = alone.instance->weights().at(from);
    }
    rebind(alone, {}, equal);
    set_weights(alone, {"A_log"}, 80);
    alone.run();
    const RefTensor x = to_reference(alone.instance->inputs().at("X")), y = alone.output("out");
    RefTensor turned = x, back = y;
    for (int64_t i = 0; i < x.numel(); ++i) turned[i] = x[i / 48 * 48 + 47 - i % 48];  // both axes reversed
    rebind(alone, {{"X", host_tensor(*alone.ctx, {1, 16, 8, 6}, turned.data)}});
    alone.run();
    for (int64_t i = 0; i < x.numel(); ++i) back[i] = alone.output("out")[i / 48 * 48 + 47 - i % 48];
    CHECK(largest_difference(back, y) < 1e-5);
  }
}

TEST_CASE("mambattention has the published parameters and the card's MACs") {
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method(kMethod);
  const auto form = [&](const Problem& p, const ParamMap& given) {
    return m.make(ctx, p, params_of(kMethod, p, given))->cost();
  };
  const Problem blocks = map(1, 4, 3, 64, 8);
  const int64_t encoder = 382592, magnitude = 382287, phase = 382338;
  CHECK(form(blocks, {}).parameters == 4 * 294656);
  CHECK(form(blocks, {{"use_attention", false}}).parameters + encoder + magnitude + phase == 2258769);
  CHECK(form(blocks, {{"share_attention", false}}).parameters - form(blocks, {}).parameters == 67072);
  const ClosedForm full = form(wave(1, 1000), {{"scope", "full"}});
  CHECK(full.parameters == 2325841);
  Problem paper;
  paper.kind = ProblemKind::image;
  const ClosedForm stack = form(paper, {});
  CHECK(static_cast<double>(stack.published_macs) / 1e9 == Approx(50.6).margin(0.05));
  // Convolutions of Mamba are elementwise work here.
  CHECK(stack.cost.matmul == 2 * (stack.published_macs - 4 * 4 * int64_t{32100} * 4 * 256));
}

TEST_CASE("mambattention results do not depend on the number of threads") {
  Trial one = make_trial(kMethod, map(2, 9, 7, 16, 4), {{"num_blocks", 1}}, 1),
        two = make_trial(kMethod, map(2, 9, 7, 16, 4), {{"num_blocks", 1}}, 3);
  one.run();
  two.run();
  CHECK(one.output("out").data == two.output("out").data);
}

TEST_CASE("mambattention says what it cannot do") {
  const Problem p = map(1, 5, 4, 16, 4);
  CHECK_NOTHROW(make(p, {}));
  CHECK_THROWS_WITH(make(p, {{"scope", "full"}}), ContainsSubstring("signal"));
  CHECK_THROWS_WITH(make(wave(1, 500), {}), ContainsSubstring("map"));
  CHECK_THROWS_WITH(make(p, {{"channels", 32}}), ContainsSubstring("problem's 16"));
  CHECK_THROWS_WITH(make(map(1, 5, 4, 16, 3), {}), ContainsSubstring("does not divide"));
  CHECK_THROWS_WITH(make(p, {{"freq_bins", 30}}), ContainsSubstring("problem.grid"));
  CHECK_NOTHROW(make(p, {{"freq_bins", 9}, {"frames", 5}}));
  CHECK_THROWS_AS(make(wave(1, 500), {{"scope", "full"}, {"n_fft", 50}}), Unsupported);
  CHECK_THROWS_AS(make(wave(1, 200), {{"scope", "full"}}), Unsupported);
  CHECK_THROWS_WITH(make(wave(1, 500), {{"scope", "full"}, {"frames", 3}}), ContainsSubstring("not the 6"));
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {}), Unsupported);
}
