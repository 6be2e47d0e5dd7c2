// Masked frequency modelling: the reference by hand, core and full against it, the card's degenerate cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem image(int64_t batch, int64_t channels, int64_t h, int64_t w, DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.channels = channels;
  p.size = {h, w};
  p.dtype = dtype;
  return p;
}

RefMap reference(const Problem& p, const ParamMap& given, const RefMap& inputs) {
  return find_reference("mfm")(p, params_of("mfm", p, given), inputs, {});
}

void make(const Problem& p, const ParamMap& given) {
  Context ctx(cpu_backend(), 1);
  find_method("mfm").make(ctx, p, params_of("mfm", p, given));
}

/// Largest |a - b|.
double distance(const RefTensor& a, const RefTensor& b) {
  REQUIRE(a.shape == b.shape);
  double worst = 0;
  for (int64_t i = 0; i < a.numel(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

/// An f32 transform and its inverse of values up to 1, over up to 2^13 points: 26 butterfly levels of one
/// rounding each, doubled for the sums inside them.
constexpr double kTransform = 64 * 6e-8;

}  // namespace

TEST_CASE("the mfm reference, by hand on 2 x 2 pixels") {
  // Spectrum of [[a, b], [c, d]]: a+b+c+d, a-b+c-d, a+b-c-d, a-b-c+d; DC in centred order at (1, 1).
  const Problem p = image(1, 1, 2, 2);
  RefMap inputs{{"x", ref_tensor({1, 1, 2, 2}, {0.1, 0.2, 0.4, 0.9})},
                {"p", ref_tensor({1, 1, 2, 2}, {1.1, 0.2, 0.4, 0.9})}};
  SECTION("R1 = 1 keeps DC alone: the mean; the loss sees the other three frequencies") {
    const RefMap out = reference(p, {{"mask_radius1", 1}, {"mask_mode", "low"}}, inputs);
    for (double v : out.at("x_clamped").data) CHECK(v == Approx(0.4));
    for (double v : out.at("x_c").data) CHECK(v == Approx(0.4));  // one channel: not normalised
    // p - x = (1, 0, 0, 0): every frequency has magnitude 1 / sqrt(4).
    for (double v : out.at("loss_map").data) CHECK(v == Approx(0.5));
    CHECK(out.at("loss")[0] == Approx(0.5));
  }
  SECTION("high-pass removes the mean; the clamp cuts the negative half") {
    const RefMap out = reference(p, {{"mask_radius1", 1}, {"mask_mode", "high"}}, inputs);
    const std::vector<double> want{0, 0, 0, 0.5};
    for (int64_t i = 0; i < 4; ++i) CHECK(std::abs(out.at("x_clamped")[i] - want[size_t(i)]) < 1e-12);
    const RefMap open = reference(p, {{"mask_radius1", 1}, {"mask_mode", "high"}, {"clamp", false}}, inputs);
    CHECK(open.at("x_clamped")[0] == Approx(-0.3));
  }
  SECTION("a given mask that keeps DC and the frequency of the columns") {
    // Centred rows are -1, 0; so are columns. Kept: (ky, kx) = (0, 0) and (0, -1).
    inputs["M"] = ref_tensor({1, 2, 2}, {0, 0, 1, 1});
    const RefMap out = reference(p, {}, inputs);
    const std::vector<double> want{0.25, 0.55, 0.25, 0.55};  // column means
    for (int64_t i = 0; i < 4; ++i) CHECK(out.at("x_clamped")[i] == Approx(want[size_t(i)]));
  }
  SECTION("three channels are normalised") {
    const Problem rgb = image(1, 3, 1 + 1, 2);
    const RefMap in{{"x", ref_tensor({1, 3, 2, 2}, std::vector<double>(12, 0.5))},
                    {"p", ref_tensor({1, 3, 2, 2}, std::vector<double>(12, 0.0))}};
    const RefMap out = reference(rgb, {{"mask_radius1", 5}, {"mask_mode", "low"}}, in);
    CHECK(out.at("x_c")[0] == Approx((0.5 - 0.485) / 0.229));
    CHECK(out.at("x_c")[4] == Approx((0.5 - 0.456) / 0.224));
    CHECK(out.at("x_c")[8] == Approx((0.5 - 0.406) / 0.225));
  }
}

TEST_CASE("mfm core agrees with the reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("odd, even and unequal sizes; both masks") {
    const auto [h, w] = GENERATE(table<int64_t, int64_t>({{28, 28}, {15, 22}, {21, 35}, {2, 9}, {32, 2}}));
    Trial t = make_trial("mfm", image(3, 3, h, w, dtype),
                         {{"mask_radius1", 4},
                          {"mask_radius2", GENERATE(6, 999)},
                          {"mask_mode", GENERATE("random", "low", "high")},
                          {"seed", 3}});
    check_trial(t, 1);
  }
  SECTION("weights, exponents and targets") {
    Trial t = make_trial("mfm", image(2, 3, 20, 18, dtype),
                         {{"mask_radius1", 5},
                          {"with_matrix", GENERATE(false, true)},
                          {"log_matrix", GENERATE(false, true)},
                          {"batch_matrix", GENERATE(false, true)},
                          {"matrix_gamma", GENERATE(1.0, 0.5)},
                          {"loss_gamma", GENERATE(1.0, 2.0)},
                          {"target", GENERATE("masked", "normal")}});
    check_trial(t, 1);
  }
  SECTION("one channel and five: not normalised, not clamped") {
    Trial t =
        make_trial("mfm", image(1, GENERATE(1, 5), 16, 24, dtype), {{"mask_radius1", 3}, {"clamp", false}});
    check_trial(t, 1);
  }
  SECTION("super-resolution corruption") {
    Trial t = make_trial("mfm", image(2, 3, 24, 16, dtype),
                         {{"corruption", "sr"},
                          {"sr_factor", GENERATE(2, 8)},
                          {"target", "normal"},
                          {"clamp", GENERATE(false, true)}});
    check_trial(t, 1);
  }
  SECTION("a given mask without any symmetry, not even 0/1") {
    const auto [h, w] = GENERATE(table<int64_t, int64_t>({{12, 16}, {9, 15}}));
    Trial t = make_trial("mfm", image(2, 3, h, w, dtype));
    std::vector<double> mask;
    for (int64_t i = 0; i < 2 * h * w; ++i) mask.push_back(i % 7 == 3 ? 0.25 : (i * i + i / 5) % 2);
    rebind(t, {{"M", host_tensor(*t.ctx, {2, h, w}, mask)}});
    check_trial(t, 1);
  }
}

TEST_CASE("mfm: the degenerate discs") {
  const auto [h, w] = GENERATE(table<int64_t, int64_t>({{24, 24}, {15, 20}}));
  const Problem p = image(2, 3, h, w);
  const auto run = [&](ParamMap given) {
    Trial t = make_trial("mfm", p, given);
    t.run();
    return t;
  };
  const RefTensor x = to_reference(run({}).instance->inputs().at("x"));
  SECTION("a disc around everything keeps the image, and nothing is masked") {
    const Trial t = run({{"mask_radius1", 40}, {"mask_mode", "low"}});
    CHECK(distance(t.output("x_clamped"), x) < kTransform);
    CHECK(t.output("loss")[0] == 0);
  }
  SECTION("R1 = 0: low-pass is black, high-pass is the image") {
    const RefTensor black = run({{"mask_radius1", 0}, {"mask_mode", "low"}}).output("x_clamped");
    for (double v : black.data) CHECK(v == 0);
    CHECK(distance(run({{"mask_radius1", 0}, {"mask_mode", "high"}}).output("x_clamped"), x) < kTransform);
  }
  SECTION("R1 = 1: low-pass is the mean, high-pass the rest") {
    const RefTensor low =
        run({{"mask_radius1", 1}, {"mask_mode", "low"}, {"clamp", false}}).output("x_clamped");
    const RefTensor high =
        run({{"mask_radius1", 1}, {"mask_mode", "high"}, {"clamp", false}}).output("x_clamped");
    RefTensor mean(x.shape), rest(x.shape);
    for (int64_t plane = 0; plane < 6; ++plane) {
      double sum = 0;
      for (int64_t i = 0; i < h * w; ++i) sum += x[plane * h * w + i];
      for (int64_t i = 0; i < h * w; ++i) {
        mean[plane * h * w + i] = sum / static_cast<double>(h * w);
        rest[plane * h * w + i] = x[plane * h * w + i] - mean[plane * h * w + i];
      }
    }
    CHECK(distance(low, mean) < kTransform);
    CHECK(distance(high, rest) < kTransform);
  }
  SECTION("without the clamp, low plus high is the image") {
    RefTensor sum = run({{"mask_radius1", 5}, {"mask_mode", "low"}, {"clamp", false}}).output("x_clamped");
    const RefTensor high =
        run({{"mask_radius1", 5}, {"mask_mode", "high"}, {"clamp", false}}).output("x_clamped");
    for (int64_t i = 0; i < sum.numel(); ++i) sum[i] += high[i];
    CHECK(distance(sum, x) < 2 * kTransform);
  }
  SECTION("sample_ratio 0 and 1 are mask_mode high and low") {
    CHECK(run({{"sample_ratio", 0.0}, {"seed", 5}}).output("x_c").data ==
          run({{"mask_mode", "high"}}).output("x_c").data);
    CHECK(run({{"sample_ratio", 1.0}, {"seed", 6}}).output("x_c").data ==
          run({{"mask_mode", "low"}}).output("x_c").data);
  }
}

TEST_CASE("mfm: constant images, perfect predictions, Parseval") {
  const Problem p = image(2, 3, 18, 25);
  SECTION("a constant image has no high frequencies") {
    const std::string mode = GENERATE("low", "high");
    Trial t = make_trial("mfm", p, {{"mask_mode", mode}, {"mask_radius1", 2}});
    const std::vector<double> half(static_cast<size_t>(2 * 3 * 18 * 25), 0.5);
    rebind(t, {{"x", host_tensor(*t.ctx, {2, 3, 18, 25}, half)}});
    t.run();
    for (double v : t.output("x_clamped").data) CHECK(std::abs(v - (mode == "low" ? 0.5 : 0.0)) < kTransform);
  }
  SECTION("p = t gives 1e-6 for both targets") {
    Trial t = make_trial("mfm", p, {{"target", GENERATE("masked", "normal")}, {"mask_radius1", 4}});
    const double mean[] = {0.485, 0.456, 0.406}, std[] = {0.229, 0.224, 0.225};
    RefTensor perfect = to_reference(t.instance->inputs().at("x"));
    for (int64_t i = 0; i < perfect.numel(); ++i)
      perfect[i] = (perfect[i] - mean[i / 450 % 3]) / std[i / 450 % 3];
    rebind(t, {{"p", host_tensor(*t.ctx, {2, 3, 18, 25}, perfect.data)}});
    t.run();
    // Values up to 2.3 carry 1.2e-7 of rounding each, which an orthonormal transform keeps in norm: up to
    // 4e-7 a frequency beside the 1e-6.
    CHECK(t.output("loss")[0] >= 0.999e-6);
    CHECK(t.output("loss")[0] < 1.2e-6);
  }
  SECTION("gamma 2 over all frequencies is the mean square error") {
    Trial t = make_trial("mfm", p, {{"target", "normal"}, {"loss_gamma", 2.0}});
    t.run();
    const double mean[] = {0.485, 0.456, 0.406}, std[] = {0.229, 0.224, 0.225};
    const RefTensor x = to_reference(t.instance->inputs().at("x")),
                    y = to_reference(t.instance->inputs().at("p"));
    double sum = 0;
    for (int64_t i = 0; i < x.numel(); ++i) {
      const double d = y[i] - (x[i] - mean[i / 450 % 3]) / std[i / 450 % 3];
      sum += d * d;
    }
    CHECK(t.output("loss")[0] == Approx(sum / static_cast<double>(x.numel()) + 1e-12).epsilon(1e-5));
  }
}

TEST_CASE("mfm masks have the card's sizes at 224 x 224") {
  // Read through the loss: with p = 0 and t = 0 the map is 1e-6 everywhere, so the number of masked terms
  // cannot be seen there; read it through the corruption of a point, whose spectrum is flat: its centre pixel
  // keeps the share.
  const auto [r1, kept] =
      GENERATE(table<int64_t, int64_t>({{8, 193}, {16, 793}, {24, 1789}, {32, 3205}, {64, 12849}}));
  Trial t = make_trial("mfm", image(1, 1, 224, 224),
                       {{"mask_radius1", r1}, {"mask_mode", "low"}, {"clamp", false}});
  std::vector<double> point(224 * 224, 0.0);
  point[100 * 224 + 57] = 1.0;
  rebind(t, {{"x", host_tensor(*t.ctx, {1, 1, 224, 224}, point)}});
  t.run();
  CHECK(std::abs(t.output("x_clamped")[100 * 224 + 57] * 224 * 224 - static_cast<double>(kept)) < 0.5);
}

TEST_CASE("mfm random masks: both kinds appear, the seed decides") {
  const Problem p = image(64, 1, 2, 2);
  const auto lows = [&](int64_t seed, double ratio) {
    Trial t = make_trial("mfm", p,
                         {{"seed", seed}, {"mask_radius1", 1}, {"clamp", false}, {"sample_ratio", ratio}});
    t.run();
    const RefTensor y = t.output("x_clamped");
    std::vector<bool> low;
    for (int64_t b = 0; b < 64; ++b)
      low.push_back(std::abs(y[4 * b] - y[4 * b + 1]) < 1e-6);  // flat: DC alone
    return low;
  };
  const std::vector<bool> first = lows(0, 0.3);
  const auto count = std::count(first.begin(), first.end(), true);
  CHECK(count > 6);  // 19.2 expected, standard deviation 3.7
  CHECK(count < 33);
  CHECK(lows(0, 0.3) == first);
  CHECK(lows(1, 0.3) != first);
}

TEST_CASE("mfm full: encoder, head and loss against the reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const ParamMap given{{"scope", "full"},         {"embed_dim", 24},
                       {"depth", GENERATE(1, 3)}, {"num_heads", 3},
                       {"patch_size", 4},         {"mask_radius1", 3},
                       {"mask_mode", "low"},      {"target", GENERATE("masked", "normal")}};
  Trial t = make_trial("mfm", image(2, GENERATE(3, 1), 12, 20, dtype), given);
  // At init_std 0.02 biases are 0 and the blocks barely matter: make every weight count.
  TensorMap larger;
  for (const auto& [key, w] : t.instance->weights()) {
    std::vector<double> values = to_reference(w).data;
    const bool norm = key.find("norm") != std::string::npos;
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = values[i] * (norm ? 1.0 : 10.0) +
                  0.1 * std::sin(static_cast<double>(i) + static_cast<double>(key.size()));
    larger[key] = host_tensor(*t.ctx, w.shape(), values, dtype);
  }
  rebind(t, {}, larger);
  // The residual stream is rounded twice a block, on top of the roundings inside the blocks.
  check_trial(t, 8, true);
}

TEST_CASE("mfm full has the card's MACs and head parameters") {
  Context ctx(cpu_backend(), 1);
  const Problem p = image(1, 3, 224, 224);
  const Method& m = find_method("mfm");
  const auto form = [&](const ParamMap& given) { return m.make(ctx, p, params_of("mfm", p, given))->cost(); };
  const ClosedForm base = form({{"scope", "full"}});
  CHECK(static_cast<double>(base.published_macs) / 1e9 == Approx(17.679).epsilon(5e-5));
  const ClosedForm small = form({{"scope", "full"}, {"embed_dim", 384}, {"num_heads", 6}});
  CHECK(static_cast<double>(small.published_macs) / 1e9 == Approx(4.656).epsilon(2e-4));
  // ViT-B without its classifier (85,798,656), less the 12 x 768 k biases, plus the head.
  CHECK(base.parameters == 85798656 - 12 * 768 + 590592);
  CHECK(base.cost.matmul > 2 * base.published_macs);
  // 224 x 224: 5 n log2 n = 3.917 M a channel; three real transforms of three channels.
  const double transforms = static_cast<double>(form({}).cost.matmul);
  CHECK(transforms == Approx(3 * 3 * 3.917e6 / 2).epsilon(1e-3));
}

TEST_CASE("mfm results do not depend on the number of threads") {
  const Problem p = image(2, 3, 30, 20);
  Trial one = make_trial("mfm", p, {{"with_matrix", true}}, 1),
        two = make_trial("mfm", p, {{"with_matrix", true}}, 2);
  one.run();
  two.run();
  for (const char* name : {"x_c", "x_clamped", "loss", "loss_map"})
    CHECK(one.output(name).data == two.output(name).data);
}

TEST_CASE("mfm says what it cannot do") {
  const Problem p = image(1, 3, 24, 32);
  CHECK_NOTHROW(make(p, {}));
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {}), Unsupported);
  Problem sequence = p;
  sequence.kind = ProblemKind::sequence;
  sequence.size.clear();
  CHECK_THROWS_AS(make(sequence, {}), Unsupported);
  CHECK_THROWS_AS(make(p, {{"corruption", "sr"}}), Unsupported);
  CHECK_THROWS_WITH(make(p, {{"corruption", "sr"}, {"target", "normal"}, {"sr_factor", 5}}),
                    ContainsSubstring("sr_factor"));
  CHECK_THROWS_WITH(make(p, {{"mask_radius1", 9}, {"mask_radius2", 8}}), ContainsSubstring("mask_radius2"));
  CHECK_THROWS_WITH(make(p, {{"loss_gamma", 0.0}}), ContainsSubstring("loss_gamma"));
  CHECK_THROWS_WITH(make(p, {{"height", 30}}), ContainsSubstring("size[0]"));
  CHECK_THROWS_WITH(make(p, {{"scope", "full"}}), ContainsSubstring("patch_size"));
  CHECK_THROWS_WITH(make(p, {{"scope", "full"}, {"patch_size", 8}, {"num_heads", 7}}),
                    ContainsSubstring("num_heads"));
  CHECK_THROWS_AS(make(p, {{"sample_ratio", 1.5}}), UsageError);
}
