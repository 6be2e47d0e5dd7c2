// TIGER: separator and shell against the reference, the card's degenerate cases and counts.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem features(int64_t batch, int64_t bands, int64_t frames, int64_t n, int64_t heads) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.grid = {bands, frames};
  p.channels = n;
  p.heads = heads;
  return p;
}
Problem wave(int64_t batch, int64_t samples, double rate = 16000) {
  Problem p;
  p.kind = ProblemKind::signal;
  p.batch = batch;
  p.channels = 1;
  p.samples = samples;
  p.sample_rate = rate;
  return p;
}

/// Gains, offsets and slopes that count.
void lively(Trial& t) {
  shake_weights(t, 0.2, [](const std::string& key) {
    return key.find("norm") != std::string::npos || key.ends_with("prelu");
  });
}

void make(const Problem& p, const ParamMap& given) { make_only("tiger", p, given); }

}  // namespace

TEST_CASE("tiger separator against the reference") {
  const auto check = [](const Problem& p, const ParamMap& given) {
    Trial t = make_trial("tiger", p, given);
    lively(t);
    // Dozens of norms in a row, each a division by the deviation of what came before.
    check_trial(t, 1, false);
  };
  SECTION("two passes, three scales") {
    check(features(2, 7, 9, 16, 4),
          {{"hidden_dim", 12}, {"num_blocks", 2}, {"msa_depth", 3}, {"att_hid_dim", 3}});
  }
  SECTION("five scales over short axes, the coarsest seed") {
    check(features(1, 5, 21, 8, 2), {{"hidden_dim", 6}, {"num_blocks", 1}, {"decoder_seed", "coarsest"}});
  }
  SECTION("two scales; one head") {
    check(features(1, 12, 4, 6, 1),
          {{"hidden_dim", 5}, {"num_blocks", 1}, {"msa_depth", 2}, {"att_hid_dim", 1}});
  }
}

TEST_CASE("tiger full: mixture to sources against the reference") {
  // 64 points: 33 bins in bands of the given widths.
  const ParamMap given{{"scope", "full"},
                       {"feature_dim", 8},
                       {"att_heads", 2},
                       {"hidden_dim", 6},
                       {"num_blocks", 2},
                       {"msa_depth", 2},
                       {"att_hid_dim", 2},
                       {"n_fft", 64},
                       {"hop", 16},
                       {"num_sources", GENERATE(2, 4)},
                       {"band_widths", Value::List{1, 2, 4, 8, 18}}};
  Trial t = make_trial("tiger", wave(2, 170), given);
  lively(t);
  t.run();
  const RefMap want = t.reference();
  const TensorMap outputs = t.instance->outputs();
  REQUIRE(outputs.size() == want.size());
  for (const auto& item : outputs) {
    const Comparison c = compare(to_reference(item.second), want.at(item.first));
    INFO(item.first << ": " << c.relative_l2 << ", " << c.worst);
    CHECK(c.relative_l2 < 1e-5);
  }
  CHECK(t.ctx->cost().total() == t.instance->cost().cost);
  // Masks sum to one, so the sources sum to the mixture.
  const RefTensor est = t.output("est"), mixture = to_reference(t.instance->inputs().at("wave"));
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t i = 0; i < 170; ++i) {
      double sum = 0;
      for (int64_t s = 0; s < est.dim(1); ++s) sum += est[(b * est.dim(1) + s) * 170 + i];
      CHECK(sum == Approx(mixture[b * 170 + i]).margin(1e-4));
    }
}

TEST_CASE("tiger degenerate cases") {
  const Problem p = features(2, 5, 6, 8, 2);
  const ParamMap given{{"hidden_dim", 6}, {"num_blocks", 1}, {"msa_depth", 3}, {"att_hid_dim", 2}};
  SECTION("no output of MSA and norms of nothing: the identity") {
    Trial t = make_trial("tiger", p, given);
    set_weights(t, {"msa.out.", "f3a.out.norm", "freq.norm", "frame.norm"}, 0);
    t.run();
    CHECK(largest_difference(t.output("out"), to_reference(t.instance->inputs().at("Z"))) == 0);
  }
  SECTION("two passes are two blocks and the re-entry by hand") {
    ParamMap two = given;
    two["num_blocks"] = 2;
    Trial t = make_trial("tiger", p, two);
    lively(t);
    t.run();
    const RefTensor once = t.output("out_block1"), z0 = to_reference(t.instance->inputs().at("Z"));
    Trial again = make_trial("tiger", p, given);
    TensorMap shared;
    for (const auto& [key, w] : again.instance->weights()) shared[key] = t.instance->weights().at(key);
    const RefTensor scale = to_reference(shared.at("reentry.conv.weight")),
                    bias = to_reference(shared.at("reentry.conv.bias"));
    const double slope = to_reference(shared.at("reentry.prelu"))[0];
    std::vector<double> entry;
    for (int64_t i = 0; i < once.numel(); ++i) {
      const int64_t c = i / 6 % 8;
      const double v = (z0[i] + once[i]) * scale[c] + bias[c];
      entry.push_back(v < 0 ? slope * v : v);
    }
    rebind(again, {{"Z", host_tensor(*again.ctx, {2, 5, 8, 6}, entry)}}, shared);
    again.run();
    CHECK(compare(again.output("out"), t.output("out")).relative_l2 < 1e-5);
  }
  SECTION("samples of a batch are alone") {
    Trial t = make_trial("tiger", p, given), one = make_trial("tiger", features(1, 5, 6, 8, 2), given);
    lively(t);
    t.run();
    const std::vector<double> z = to_reference(t.instance->inputs().at("Z")).data;
    rebind(one, {{"Z", host_tensor(*one.ctx, {1, 5, 8, 6}, std::vector<double>(z.begin() + 240, z.end()))}},
           t.instance->weights());
    one.run();
    for (int64_t i = 0; i < 240; ++i)
      CHECK(one.output("out")[i] == Approx(t.output("out")[240 + i]).margin(1e-5));
  }
  SECTION("two scales: both seeds are the same; three: they differ") {
    for (int64_t depth : {2, 3}) {
      ParamMap a = given, b = given;
      a["msa_depth"] = b["msa_depth"] = depth;
      b["decoder_seed"] = "coarsest";
      Trial x = make_trial("tiger", p, a), y = make_trial("tiger", p, b);
      rebind(y, {{"Z", x.instance->inputs().at("Z")}}, x.instance->weights());
      x.run();
      y.run();
      CHECK((largest_difference(x.output("out"), y.output("out")) == 0) == (depth == 2));
    }
  }
}

TEST_CASE("tiger has the published parameters and the card's MACs") {
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method("tiger");
  const auto form = [&](const Problem& p, const ParamMap& given) {
    return m.make(ctx, p, params_of("tiger", p, given))->cost();
  };
  CHECK(form(wave(1, 16000), {{"scope", "full"}}).parameters == 821932);
  CHECK(form(wave(1, 16000), {{"scope", "full"}, {"num_blocks", 8}}).parameters == 821932);
  CHECK(form(features(1, 67, 101, 128, 4), {}).parameters == 562909);
  CHECK(static_cast<double>(form(features(1, 67, 101, 128, 4), {{"num_blocks", 1}}).published_macs) / 1e9 ==
        Approx(1.795).margin(6e-4));
  CHECK(static_cast<double>(form(wave(1, 16000), {{"scope", "full"}}).published_macs) / 1e9 ==
        Approx(7.205).margin(6e-4));
  CHECK(static_cast<double>(form(wave(1, 16000), {{"scope", "full"}, {"num_blocks", 8}}).published_macs) /
            1e9 ==
        Approx(14.387).margin(1e-3));
  CHECK(static_cast<double>(form(wave(1, 96000), {{"scope", "full"}}).published_macs) / 1e9 ==
        Approx(54.3).margin(0.05));
}

TEST_CASE("tiger results do not depend on the number of threads") {
  const ParamMap given{{"hidden_dim", 6}, {"num_blocks", 1}, {"msa_depth", 3}};
  Trial one = make_trial("tiger", features(2, 5, 6, 8, 2), given, 1),
        two = make_trial("tiger", features(2, 5, 6, 8, 2), given, 3);
  one.run();
  two.run();
  CHECK(one.output("out").data == two.output("out").data);
}

TEST_CASE("tiger says what it cannot do") {
  const Problem p = features(1, 5, 6, 8, 2);
  CHECK_NOTHROW(make(p, {}));
  CHECK_THROWS_WITH(make(p, {{"scope", "full"}}), ContainsSubstring("signal"));
  CHECK_THROWS_WITH(make(features(1, 5, 6, 8, 3), {}), ContainsSubstring("att_heads"));
  CHECK_THROWS_WITH(make(p, {{"num_sources", 3}}), ContainsSubstring("num_sources"));
  CHECK_THROWS_WITH(make(p, {{"feature_dim", 16}}), ContainsSubstring("problem's 8"));
  CHECK_THROWS_WITH(make(wave(1, 4000), {{"scope", "full"}, {"n_fft", 512}}),
                    ContainsSubstring("narrower than a bin"));
  CHECK_THROWS_WITH(make(wave(1, 4000), {{"scope", "full"}, {"band_widths", Value::List{300, 20}}}),
                    ContainsSubstring("321 bins"));
  CHECK_THROWS_AS(make(wave(1, 300), {{"scope", "full"}}), Unsupported);
  CHECK_NOTHROW(make(wave(1, 4000, 8000), {{"scope", "full"}}));
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {}), Unsupported);
}
