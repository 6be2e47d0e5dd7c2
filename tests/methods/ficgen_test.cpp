// FICGen: every component and option against the reference, the card's degenerate cases and its counts.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "ficgen";

Problem image(int64_t batch, int64_t h, int64_t w, int64_t channels, int64_t heads) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  if (h > 0) p.grid = {h, w};
  p.channels = channels;
  p.heads = heads;
  return p;
}

/// Three instances on 5 x 6 tokens of 32 channels, masks of 40 x 96 pixels.
ParamMap small(ParamMap more = {}) {
  more.insert({{"context_dim", 12},
               {"num_instances", 3},
               {"hf_queries", 3},
               {"lf_queries", 2},
               {"box_hidden", 16},
               {"image_h", 40},
               {"image_w", 96}});
  return more;
}
Problem tokens(int64_t batch = 1) { return image(batch, 5, 6, 32, 4); }

void shake(Trial& t) {
  shake_weights(t, 0.3, [](const std::string& key) {
    return key.find(".ln") != std::string::npos || key.find("bn.") != std::string::npos ||
           key.find("norm_out") != std::string::npos || key.find("temperature") != std::string::npos;
  });
}

void bind_input(Trial& t, const std::string& name, const std::vector<double>& values) {
  rebind(t, {{name, host_tensor(*t.ctx, t.instance->inputs().at(name).shape(), values)}});
}

double worst(const RefTensor& a, double want) {
  double w = 0;
  for (double v : a.data) w = std::max(w, std::abs(v - want));
  return w;
}

}  // namespace

TEST_CASE("the ficgen reference, by hand on a constant map") {
  // The only frequency is DC, which the low-pass keeps: g = f. Without weights both gates are 1/2.
  const Problem p = image(1, 4, 4, 16, 0);
  const Params params = params_of(kMethod, p, {{"component", "proto"}, {"high_pass", false}});
  const auto filled = [](std::vector<int64_t> shape, double v) {
    RefTensor t(std::move(shape));
    std::fill(t.data.begin(), t.data.end(), v);
    return t;
  };
  RefMap w{{"w_s.weight", filled({1, 16, 3, 3}, 0)},
           {"w_s.bias", filled({1}, 0)},
           {"W1", filled({1, 16}, 0.5)},
           {"b1", filled({1}, 0)},
           {"W2", filled({16, 1}, 1)},
           {"b2", filled({16}, 0)}};
  const RefMap out = find_reference(kMethod)(p, params, {{"f", filled({1, 16, 4, 4}, 0.25)}}, w);
  CHECK(worst(out.at("g"), 0.25) < 1e-12);
  // mean Re = 16 * 0.25 / 16 a channel: W1 gives 2; mean Im = 0.
  const double a = std::sqrt(std::pow(1 / (1 + std::exp(-2.0)), 2) + 0.25 + 1e-8);
  CHECK(worst(out.at("a"), a) < 1e-12);
  CHECK(worst(out.at("out"), 0.25 * 0.5 * a) < 1e-12);
}

TEST_CASE("ficgen: every option of the block against the reference") {
  const int option = GENERATE(range(0, 10));
  const Value corners = Value::List{Value::List{0.1, 0.8, 0.9, 0.2, 0.0, 0.3, 0.9, 0.6},
                                    Value::List{0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 1.0},
                                    Value::List{0.0, 0.4, 0.4, 0.0, 0.0, 0.0, 0.4, 0.4}};
  const std::vector<ParamMap> given = {{},
                                       {{"fam_ifft", "spatial"}},
                                       {{"boxes", corners}},
                                       {{"num_instances", 0}},
                                       {{"num_instances", 1}, {"fourier_freqs", 3}},
                                       {{"lf_queries", 0}},
                                       {{"component", "vfe"}},
                                       {{"component", "asfa"}},
                                       {{"component", "asfa"}, {"fam_ifft", "spatial"}, {"num_instances", 0}},
                                       {{"boxes", corners}, {"fam_ifft", "spatial"}}};
  Trial t = make_trial(kMethod, tokens(option % 3 == 2 ? 2 : 1), small(given[static_cast<size_t>(option)]));
  shake(t);
  INFO("option " << option);
  check_trial(t, 1);
}

TEST_CASE("ficgen blocks on grids that transform differently") {
  const auto [h, w, heads] =
      GENERATE(table<int, int, int>({{1, 1, 1}, {1, 7, 2}, {4, 3, 16}, {8, 8, 8}, {12, 11, 2}}));
  Trial t = make_trial(kMethod, image(1, h, w, 16, heads), small({{"image_h", 8 * h}, {"image_w", 16 * w}}));
  shake(t);
  check_trial(t, 1);
}

TEST_CASE("ficgen prototypes against the reference") {
  const auto [batch, h, w, high, roll] = GENERATE(table<int, int, int, bool, bool>(
      {{1, 8, 8, true, true}, {3, 10, 10, false, true}, {2, 7, 9, true, false}, {3, 5, 6, false, false}}));
  Trial t = make_trial(kMethod, image(batch, h, w, 48, 0),
                       {{"component", "proto"}, {"high_pass", high}, {"roll_all_axes", roll}});
  check_trial(t, 1);
}

TEST_CASE("ficgen resamplers against the reference") {
  Trial t = make_trial(kMethod, image(2, 0, 0, 0, 0),
                       {{"component", "resampler"},
                        {"resampler_dim", 24},
                        {"dim_head", 8},
                        {"depth", 2},
                        {"feat_dim", 10},
                        {"feat_tokens", 7},
                        {"hf_queries", 5},
                        {"context_dim", 9}});
  shake(t);
  check_trial(t, 1);
}

TEST_CASE("ficgen has the derived counts") {
  Context ctx(cpu_backend(), 1);
  const Problem p = image(1, 0, 0, 0, 0);
  const auto form = [&](const ParamMap& given) {
    return find_method(kMethod).make(ctx, p, params_of(kMethod, p, given))->cost();
  };
  CHECK(form({}).parameters == 32965034);
  CHECK(form({{"component", "asfa"}}).parameters == 15194026);
  const auto giga = [&](const ParamMap& given) {
    return static_cast<double>(form(given).published_macs) / 1e9;
  };
  CHECK(giga({{"component", "vfe"}}) == Approx(8.02).margin(0.005));
  CHECK(giga({{"component", "asfa"}}) == Approx(39.79).margin(0.01));
  CHECK(giga({{"component", "asfa"}, {"num_instances", 1}}) == Approx(17.7).margin(0.05));
  CHECK(giga({{"component", "asfa"}, {"num_instances", 20}}) == Approx(101.7).margin(0.05));
  CHECK(static_cast<double>(form({{"component", "resampler"}}).parameters) / 1e6 ==
        Approx(80.99).margin(0.005));
  CHECK(static_cast<double>(form({{"component", "resampler"}, {"hf_queries", 8}}).parameters) / 1e6 ==
        Approx(80.98).margin(0.005));
}

TEST_CASE("ficgen degenerate cases") {
  SECTION("low-pass and high-pass make up f; a threshold of one half keeps everything") {
    RefTensor sum;
    for (const bool high : {false, true}) {
      Trial t = make_trial(kMethod, image(2, 9, 10, 16, 0), {{"component", "proto"}, {"high_pass", high}});
      t.run();
      const RefTensor g = t.output("g");
      if (high) {
        for (int64_t i = 0; i < g.numel(); ++i) sum[i] += g[i];
        CHECK(largest_difference(sum, to_reference(t.instance->inputs().at("f"))) < 1e-5);
      }
      sum = g;
      Trial all = make_trial(kMethod, image(2, 9, 10, 16, 0),
                             {{"component", "proto"}, {"high_pass", high}, {"freq_threshold", 0.5}});
      all.run();
      if (high) {
        CHECK(worst(all.output("g"), 0) < 1e-5);
      } else {
        // 9 rows from round(0) to round(9): all of them.
        CHECK(largest_difference(all.output("g"), to_reference(all.instance->inputs().at("f"))) < 1e-5);
      }
    }
  }
  SECTION("masks: everywhere is dense layout attention, disjoint ones keep regions apart") {
    Trial t = make_trial(kMethod, tokens(), small({{"component", "vfe"}, {"num_instances", 1}}));
    const auto layout = [&] {
      t.run();
      RefTensor last({5 * 6, 32});
      const RefTensor phases = t.output("phases");
      std::copy(phases.data.end() - last.numel(), phases.data.end(), last.data.begin());
      return last;
    };
    bind_input(t, "instance_masks", std::vector<double>(40 * 96, 1.0));
    const RefTensor all = layout();
    bind_input(t, "instance_masks", std::vector<double>(40 * 96, 0.0));
    CHECK(largest_difference(all, layout()) == 0);  // then s is everywhere
    CHECK(worst(t.output("G"), 0) == 1);
    // The left half: tokens there do not see the right ones, whose values may change.
    std::vector<double> half(40 * 96);
    for (size_t i = 0; i < half.size(); ++i) half[i] = i % 96 < 48 ? 1.0 : 0.0;
    bind_input(t, "instance_masks", half);
    const RefTensor before = layout();
    CHECK(largest_difference(all, before) > 1e-4);
    std::vector<double> z = to_reference(t.instance->inputs().at("z")).data;
    for (size_t i = 0; i < z.size(); ++i)
      if (i / 32 % 6 >= 3) z[i] = -z[i];
    bind_input(t, "z", z);
    const RefTensor after = layout();
    double left = 0, right = 0;
    for (int64_t i = 0; i < after.numel(); ++i)
      (i / 32 % 6 < 3 ? left : right) =
          std::max(i / 32 % 6 < 3 ? left : right, std::abs(after[i] - before[i]));
    CHECK(left == 0);
    CHECK(right > 1e-4);
  }
  SECTION("no gate and no embedding: the mean of the phases") {
    Trial t = make_trial(kMethod, tokens(), small({{"component", "asfa"}}));
    set_weights(t, {"asfa.conv1.", "asfa.gate_pw."}, 0);
    t.run();
    CHECK(worst(t.output("scale"), 0.2) < 1e-6);
    const RefTensor phases = to_reference(t.instance->inputs().at("phases")), out = t.output("out");
    for (int64_t i = 0; i < out.numel(); i += 97) {
      double mean = 0;
      for (int64_t p = 0; p < 5; ++p) mean += phases[p * out.numel() + i] / 5;
      CHECK(out[i] == Approx(mean).margin(1e-6));
    }
  }
  SECTION("an empty mask: a phase of zeros that still takes weight") {
    Trial t = make_trial(kMethod, tokens(), small());
    std::vector<double> masks = to_reference(t.instance->inputs().at("instance_masks")).data;
    std::fill(masks.begin(), masks.begin() + 40 * 96, 0.0);
    bind_input(t, "instance_masks", masks);
    t.run();
    const RefTensor phases = t.output("phases"), scale = t.output("scale");
    const int64_t one = 5 * 6 * 32;
    double most = 0, least = 1;
    for (int64_t i = one; i < 2 * one; ++i)
      most = std::max(most, std::abs(phases[i])), least = std::min(least, scale[i]);
    CHECK(most == 0);
    CHECK(least > 0);
  }
  SECTION("one context key: out(v) everywhere, whatever the queries") {
    Trial t =
        make_trial(kMethod, tokens(), small({{"component", "vfe"}, {"lf_queries", 0}, {"num_instances", 0}}));
    t.run();
    const RefTensor before = t.output("phases"), base = to_reference(t.instance->inputs().at("base"));
    set_weights(t, {"vfe.bg.q.weight"}, 0.3);
    t.run();
    CHECK(largest_difference(before, t.output("phases")) == 0);
    for (int64_t i = 32; i < 30 * 32; ++i)
      CHECK(std::abs((before[i] - base[i]) - (before[i % 32] - base[i % 32])) < 1e-5);
  }
  SECTION("no temperature: A = (1 + i) / d, so out1 is sqrt 2 times the mean row of the head") {
    Trial t = make_trial(kMethod, tokens(), small({{"component", "asfa"}, {"fam_ifft", "spatial"}}));
    set_weights(t, {"asfa.fam.temperature"}, 0);
    check_trial(t, 1);
    Trial u = make_trial(kMethod, tokens(), small({{"component", "asfa"}}));
    set_weights(u, {"asfa.fam.temperature"}, 0);
    check_trial(u, 1);
  }
}

TEST_CASE("ficgen says what it cannot do") {
  CHECK_NOTHROW(make_only(kMethod, tokens(), small()));
  CHECK_THROWS_WITH(make_only(kMethod, tokens(), small({{"dim", 48}})),
                    ContainsSubstring("not the problem's 32"));
  CHECK_THROWS_WITH(make_only(kMethod, tokens(), small({{"grid_h", 4}})), ContainsSubstring("grid_h"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 5, 6, 24, 4), small()), ContainsSubstring("dim"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 5, 6, 32, 5), small()), ContainsSubstring("heads 5"));
  CHECK_THROWS_WITH(make_only(kMethod, tokens(), small({{"image_h", 48}})), ContainsSubstring("image_h"));
  CHECK_THROWS_WITH(make_only(kMethod, tokens(), small({{"boxes", Value(Value::List{Value::List{0, 1}})}})),
                    ContainsSubstring("boxes"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 8, 8, 24, 0), {{"component", "proto"}}),
                    ContainsSubstring("proto_channels"));
  CHECK_THROWS_WITH(
      make_only(kMethod, image(1, 8, 8, 32, 0), {{"component", "proto"}, {"freq_threshold", 0.0}}),
      ContainsSubstring("freq_threshold"));
  CHECK_THROWS_WITH(make_only(kMethod, image(1, 0, 0, 0, 0), {{"component", "resampler"}, {"dim_head", 7}}),
                    ContainsSubstring("resampler_dim"));
  Problem causal = tokens();
  causal.causal = true;
  CHECK_THROWS_AS(make_only(kMethod, causal, small()), Unsupported);
}

TEST_CASE("ficgen prototypes without the reference's roll equal the original's on its own channels") {
  const std::string stem = ATTNBENCH_SOURCE_DIR "/tests/golden/oracles/ficgen/2";
  Trial t = make_trial(kMethod, image(2, 10, 10, 32, 0),
                       {{"component", "proto"}, {"high_pass", false}, {"roll_all_axes", false}});
  rebind(t, read_safetensors(*t.ctx, stem + ".in.safetensors").tensors,
         read_safetensors(*t.ctx, stem + ".w.safetensors").tensors);
  t.run();
  const RefMap want = to_reference(read_safetensors(*t.ctx, stem + ".aux.safetensors").tensors);
  CHECK(compare(t.output("out"), want.at("out_unrolled")).relative_l2 < 1e-5);
  CHECK(compare(t.output("g"), want.at("g")).relative_l2 < 1e-5);
}
