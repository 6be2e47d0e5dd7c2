// TFM-Tokenizer: every stage against the reference, the card's degenerate cases and counts.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "tfm_tokenizer";

Problem record(int64_t batch, int64_t channels, int64_t samples, double rate = 100) {
  Problem p;
  p.kind = ProblemKind::signal;
  p.batch = batch;
  p.channels = channels;
  p.samples = samples;
  p.sample_rate = rate;
  return p;
}

/// 50 bins, patches of 5: 2 groups.
ParamMap small(ParamMap more = {}) {
  ParamMap given{
      {"embed_dim", 16}, {"heads", 4}, {"codebook_size", 30}, {"freq_depth", 1}, {"time_depth", 1}};
  for (auto& [key, value] : more) given[key] = value;
  return given;
}

/// Codes as long as unit vectors, offsets that count, norms that are not 1.
void lively(Trial& t) {
  TensorMap changed;
  for (const auto& [key, w] : t.instance->weights()) {
    std::vector<double> v = to_reference(w).data;
    for (size_t i = 0; i < v.size(); ++i) {
      const double wave = std::sin(1.3 * static_cast<double>(i) + static_cast<double>(key.size()));
      if (key == "codebook" || key == "cls.token_embed")
        v[i] = 0.5 * std::sin(static_cast<double>(i * i % 977));
      else if (key.find("norm") != std::string::npos || key == "cls.class_vector")
        v[i] += 0.2 * wave;
    }
    changed[key] = host_tensor(*t.ctx, w.shape(), v);
  }
  rebind(t, {}, changed);
}

void make(const Problem& p, const ParamMap& given) { make_only(kMethod, p, given); }

}  // namespace

TEST_CASE("tfm: every stage against the reference") {
  const std::string stage = GENERATE(as<std::string>{}, "tokenize", "reconstruct", "classify");
  SECTION("two records, two layers, a tail that is dropped") {
    Trial t = make_trial(kMethod, record(2, 3, 437),
                         small({{"stage", stage}, {"freq_depth", 2}, {"dec_depth", 2}, {"cls_depth", 2}}));
    lively(t);
    // Four norms and as many layers, each a few roundings of f32.
    check_trial(t, 4);
  }
  SECTION("one frame, no layers") {
    Trial t = make_trial(kMethod, record(1, 1, 100),
                         small({{"stage", stage},
                                {"freq_depth", 0},
                                {"time_depth", 0},
                                {"dec_depth", 0},
                                {"cls_depth", 1},
                                {"n_classes", 1}}));
    lively(t);
    check_trial(t, 4);
  }
  SECTION("patches of one bin, masks of other sizes") {
    Trial t = make_trial(kMethod, record(2, 1, 90, 8),
                         {{"embed_dim", 8},
                          {"heads", 2},
                          {"codebook_size", 9},
                          {"freq_patch", 2},
                          {"stage", stage},
                          {"mask_band", 2},
                          {"freq_mask_ratio", 0.4},
                          {"time_mask_ratio", 0.7},
                          {"dec_depth", 1}});
    lively(t);
    check_trial(t, 4);
  }
}

TEST_CASE("tfm degenerate cases") {
  const Problem p = record(2, 3, 400);
  SECTION("channels are alone: permuting them permutes tokens") {
    Trial t = make_trial(kMethod, p, small());
    lively(t);
    t.run();
    const std::vector<double> x = to_reference(t.instance->inputs().at("x")).data;
    const RefTensor before = t.output("tokens"), z = t.output("z");
    std::vector<double> moved(x.size());
    for (size_t s = 0; s < 6; ++s)
      std::copy(x.begin() + static_cast<long>(s * 400), x.begin() + static_cast<long>(s * 400 + 400),
                moved.begin() + static_cast<long>((s + 1) % 6 * 400));
    rebind(t, {{"x", host_tensor(*t.ctx, {2, 3, 400}, moved)}});
    t.run();
    const int64_t frames = before.dim(2);
    for (int64_t s = 0; s < 6; ++s)
      for (int64_t i = 0; i < frames; ++i)
        CHECK(t.output("tokens")[(s + 1) % 6 * frames + i] == before[s * frames + i]);
    CHECK(z.numel() == 6 * frames * 16);
  }
  SECTION("one code: all ids 0; a code equal to e is found") {
    Trial one = make_trial(kMethod, p, small({{"codebook_size", 1}}));
    one.run();
    for (double token : one.output("tokens").data) CHECK(token == 0);
    Trial t = make_trial(kMethod, p, small());
    lively(t);
    t.run();
    const RefTensor e = t.output("e");
    std::vector<double> codes = to_reference(t.instance->weights().at("codebook")).data;
    std::copy(e.data.begin() + 5 * 16, e.data.begin() + 6 * 16, codes.begin() + 17 * 16);
    rebind(t, {}, {{"codebook", host_tensor(*t.ctx, {30, 16}, codes)}});
    t.run();
    CHECK(t.output("tokens")[5] == 17);
  }
  SECTION("masks: both parts together are S; ratios 0 leave nothing for the complement") {
    Trial t = make_trial(kMethod, p,
                         small({{"stage", "reconstruct"},
                                {"freq_mask_ratio", 0.0},
                                {"time_mask_ratio", 0.0},
                                {"dec_depth", 1}}));
    lively(t);
    t.run();
    CHECK(largest_difference(t.output("S_hat_keep"), t.output("S_hat")) == 0);
    CHECK(t.output("tokens_keep").data == t.output("tokens").data);
    // Every frame of the complement has the same (empty) spectrum: tokens depend on the signal alone.
    Trial other = make_trial(kMethod, p, small({{"stage", "reconstruct"}, {"dec_depth", 1}}));
    lively(other);
    rebind(other, {{"keep", host_tensor(*other.ctx, {50, 7}, std::vector<double>(350, 0.0))}});
    other.run();
    CHECK(other.output("tokens_keep").data == t.output("tokens_complement").data);
  }
  SECTION("W_q = W_k = 0: every token gets the mean of v, times d^-1/2") {
    Trial t = make_trial(kMethod, record(1, 1, 400), small({{"freq_depth", 0}}));
    TensorMap zero;
    for (const char* name : {"time_layers.0.attn.W_q", "time_layers.0.attn.W_k"})
      zero[name] = host_tensor(*t.ctx, {16, 16}, std::vector<double>(256, 0.0));
    zero["time_layers.0.ff.W2"] = host_tensor(*t.ctx, {16, 64}, std::vector<double>(1024, 0.0));
    zero["time_layers.0.ff.b2"] = host_tensor(*t.ctx, {16}, std::vector<double>(16, 0.0));
    rebind(t, {}, zero);
    t.run();
    Trial plain = make_trial(kMethod, record(1, 1, 400), small({{"freq_depth", 0}, {"time_depth", 0}}));
    rebind(plain, {{"x", t.instance->inputs().at("x")}});
    TensorMap shared;
    for (const auto& [key, w] : plain.instance->weights()) shared[key] = t.instance->weights().at(key);
    rebind(plain, {}, shared);
    plain.run();
    RefTensor difference = t.output("z");
    const RefTensor base = plain.output("z");
    for (int64_t i = 0; i < base.numel(); ++i) difference[i] -= base[i];
    for (int64_t i = 16; i < base.numel(); ++i)
      CHECK(difference[i] == Approx(difference[i % 16]).margin(1e-5));
  }
  SECTION("value kernel 0: the frequency half is 0") {
    Trial t = make_trial(kMethod, p, small({{"time_depth", 0}}));
    rebind(t, {},
           {{"freq_value.weight", host_tensor(*t.ctx, {4, 16, 5}, std::vector<double>(320, 0.0))},
            {"freq_value.bias", host_tensor(*t.ctx, {4}, std::vector<double>(4, 0.0))}});
    t.run();
    const RefTensor z = t.output("z");
    for (int64_t i = 0; i < z.numel(); ++i)
      if (i % 16 < 8) CHECK(z[i] == 0);
  }
}

TEST_CASE("tfm has the published parameter counts, token counts and the card's MACs") {
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method(kMethod);
  const auto form = [&](const Problem& p, const ParamMap& given) {
    return m.make(ctx, p, params_of(kMethod, p, given));
  };
  const Problem p = record(1, 16, 1000, 200);
  const auto tokenize = form(p, {});
  CHECK(tokenize->cost().parameters == 757104);
  CHECK(form(p, {{"stage", "reconstruct"}})->cost().parameters == 1166100);
  CHECK(form(p, {{"stage", "classify"}})->cost().parameters - 757104 == 724998);
  CHECK(form(p, {{"stage", "classify"}, {"n_classes", 1}})->cost().parameters - 757104 == 724673);
  CHECK(tokenize->outputs().at("tokens").shape() == Shape{1, 16, 9});
  CHECK(form(record(1, 2, 2000, 200), {})->outputs().at("tokens").dim(2) == 19);
  CHECK(form(record(1, 4, 6000, 200), {})->outputs().at("tokens").dim(2) == 59);
  CHECK(tokenize->cost().published_macs == 16 * 9 * 2841344);
  // What runs is that, and the transforms.
  const int64_t transforms = 16 * 9 * std::llround(2.5 * 200 * std::log2(200.0));
  CHECK(tokenize->cost().cost.matmul == 2 * tokenize->cost().published_macs + transforms);
  CHECK(form(p, {{"stage", "reconstruct"}})->cost().cost.matmul >
        3 * (tokenize->cost().cost.matmul - transforms) - 2 * 2 * 16 * 9 * 18944);
}

TEST_CASE("tfm results do not depend on the number of threads") {
  Trial one = make_trial(kMethod, record(2, 2, 333), small(), 1),
        two = make_trial(kMethod, record(2, 2, 333), small(), 3);
  one.run();
  two.run();
  CHECK(one.output("z").data == two.output("z").data);
  CHECK(one.output("tokens").data == two.output("tokens").data);
}

TEST_CASE("tfm says what it cannot do") {
  const Problem p = record(1, 2, 400);
  CHECK_NOTHROW(make(p, small()));
  CHECK_THROWS_WITH(make(record(1, 2, 400, 101), small()), ContainsSubstring("even"));
  CHECK_THROWS_WITH(make(p, small({{"freq_patch", 4}})), ContainsSubstring("50 bins"));
  CHECK_THROWS_WITH(make(p, small({{"embed_dim", 12}})), ContainsSubstring("multiple of 8"));
  CHECK_THROWS_WITH(make(p, small({{"heads", 3}})), ContainsSubstring("does not divide"));
  CHECK_THROWS_WITH(make(record(1, 2, 99), small()), ContainsSubstring("window"));
  CHECK_THROWS_WITH(make(p, small({{"mask_band", 3}})), ContainsSubstring("mask_band"));
  CHECK_THROWS_WITH(make(p, small({{"sample_rate", 200}})), ContainsSubstring("problem.sample_rate"));
  CHECK_THROWS_AS(make(record(1, 17, 400), small({{"stage", "classify"}})), Unsupported);
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, small()), Unsupported);
}
