// MPTSNet: blocks and model against the reference, the card's degenerate cases and counts.
#include <cmath>
#include <cstdio>
#include <numbers>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem series(int64_t batch, int64_t channels, int64_t length) {
  Problem p;
  p.kind = ProblemKind::signal;
  p.batch = batch;
  p.channels = channels;
  p.samples = length;
  return p;
}

Value::List list(std::initializer_list<int64_t> v) {
  Value::List l;
  for (int64_t x : v) l.emplace_back(x);
  return l;
}

ParamMap small(ParamMap more = {}) {
  ParamMap given{
      {"embed_dim_t", 8}, {"heads", 2}, {"ff_dim", 12}, {"hidden_channels", 16}, {"num_periods", 3}};
  for (auto& [key, value] : more) given[key] = value;
  return given;
}

/// Gains, offsets and slopes that count.
void lively(Trial& t) {
  shake_weights(t, 0.1, [](const std::string& key) {
    return key.ends_with("bias") || key.find("norm") != std::string::npos;
  });
}

void make(const Problem& p, const ParamMap& given) { make_only("mptsnet", p, given); }

}  // namespace

TEST_CASE("mptsnet block and model against the reference") {
  const std::string layout = GENERATE(as<std::string>{}, "strided", "contiguous");
  const bool cls = GENERATE(true, false);
  const auto check = [&](const Problem& p, ParamMap given) {
    given["segment_layout"] = layout;
    given["cls_token"] = cls;
    Trial t = make_trial("mptsnet", p, small(given));
    lively(t);
    check_trial(t, 1);
  };
  check(series(2, 16, 23), {{"periods", list({4, 7, 1, 23})}, {"num_layers", 2}});
  check(series(1, 16, 30), {{"num_kernels", 2}});
  check(series(3, 2, 22), {{"scope", "model"}, {"embed_dim", 16}, {"num_classes", 3}});
}

TEST_CASE("mptsnet degenerate cases") {
  const Problem p = series(2, 16, 24);
  SECTION("one period: weight 1; a series constant in time: equal weights") {
    Trial one = make_trial("mptsnet", p, small({{"periods", list({5})}}));
    one.run();
    for (double w : one.output("w").data) CHECK(w == 1);
    Trial t = make_trial("mptsnet", p, small({{"periods", list({4, 6, 8})}}));
    rebind(t, {{"X", host_tensor(*t.ctx, {2, 16, 24}, std::vector<double>(768, 0.5))}});
    t.run();
    for (double w : t.output("w").data) CHECK(w == Approx(1.0 / 3).epsilon(1e-5));
  }
  SECTION("periods 1 and L: both layouts are the same") {
    for (int64_t period : {int64_t{1}, int64_t{24}}) {
      Trial a = make_trial("mptsnet", p, small({{"periods", list({period})}})),
            b = make_trial("mptsnet", p,
                           small({{"periods", list({period})}, {"segment_layout", "contiguous"}}));
      a.run();
      b.run();
      CHECK(largest_difference(a.output("out"), b.output("out")) == 0);
    }
  }
  SECTION("output linears of nothing: the identity") {
    Trial t = make_trial("mptsnet", p, small({{"periods", list({5, 8})}}));
    set_weights(t, {"point.out.", "period.0.out.", "period.1.out."}, 0);
    t.run();
    CHECK(largest_difference(t.output("out"), to_reference(t.instance->inputs().at("X"))) == 0);
  }
  SECTION("a pure tone is the first period") {
    // In both, from the same file: see the input's values below through the outputs of the reference.
    for (int64_t j : {2, 7, 29}) {
      const Problem tone = series(1, 2, 60);
      Trial t = make_trial("mptsnet", tone, small({{"scope", "model"}, {"embed_dim", 16}}));
      std::vector<double> x;
      for (int64_t i = 0; i < 60; ++i)
        for (int64_t c = 0; c < 2; ++c)
          x.push_back(std::cos(2 * std::numbers::pi * static_cast<double>(i * j) / 60) +
                      0.01 * std::sin(static_cast<double>(i * i)));
      TensorMap file{{"x", host_tensor(*t.ctx, {1, 60, 2}, x)}};
      const std::string path = "mptsnet_tone.safetensors";
      write_safetensors(path, file);
      Problem given = tone;
      given.inputs.file = path;
      Trial from_file = make_trial("mptsnet", given, small({{"scope", "model"}, {"embed_dim", 16}}));
      from_file.run();
      std::remove(path.c_str());
      CHECK(from_file.output("periods")[0] == std::nearbyint(60.0 / static_cast<double>(j)));
      CHECK(from_file.reference().at("periods").data == from_file.output("periods").data);
    }
  }
}

TEST_CASE("mptsnet counts: parameters and MACs of the card's examples") {
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method("mptsnet");
  const auto form = [&](const Problem& p, const ParamMap& given) {
    return m.make(ctx, p, params_of("mptsnet", p, given))->cost();
  };
  const ParamMap given{{"scope", "model"}, {"periods", list({4, 6, 11})}};
  const ClosedForm model = form(series(1, 3, 206), given);
  CHECK(model.parameters == 14328316);
  CHECK(static_cast<double>(model.published_macs) / 1e9 == Approx(6.160).margin(6e-4));
  const ClosedForm block = form(series(1, 64, 206), {{"periods", list({4, 6, 11})}});
  CHECK(static_cast<double>(block.published_macs) / 1e9 == Approx(3.080).margin(6e-4));
  CHECK(block.parameters == 4856732 + 58304 + 2222400);
}

TEST_CASE("mptsnet results do not depend on the number of threads") {
  Trial one = make_trial("mptsnet", series(2, 16, 31), small(), 1),
        two = make_trial("mptsnet", series(2, 16, 31), small(), 3);
  one.run();
  two.run();
  CHECK(one.output("out").data == two.output("out").data);
}

TEST_CASE("mptsnet says what it cannot do") {
  CHECK_NOTHROW(make(series(1, 16, 24), small()));
  CHECK_THROWS_WITH(make(series(1, 16, 24), small({{"periods", list({25})}})),
                    ContainsSubstring("within 1 and the length 24"));
  CHECK_THROWS_WITH(make(series(1, 15, 24), small()), ContainsSubstring("16 channels"));
  CHECK_THROWS_WITH(make(series(1, 16, 24), small({{"heads", 3}})), ContainsSubstring("multiple of heads"));
  CHECK_THROWS_WITH(make(series(1, 16, 24), small({{"embed_dim", 32}})),
                    ContainsSubstring("problem.channels"));
  CHECK_THROWS_AS(make(series(1, 16, 5), small()), UsageError);
  Problem causal = series(1, 16, 24);
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, small()), Unsupported);
}
