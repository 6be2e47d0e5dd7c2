// fsatfusion: reference, closed form, the card's degenerate cases.
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem map_problem(int64_t batch, int64_t h, int64_t w, int64_t channels, DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch, p.grid = {h, w}, p.channels = channels, p.dtype = dtype;
  p.seed = 31;
  return p;
}

Tensor same(Context& ctx, const Tensor& like, double value) {
  return host_tensor(ctx, like.shape(), std::vector<double>(static_cast<size_t>(like.numel()), value),
                     like.dtype());
}

/// Weights whose every part shows: gates away from one half, norms with statistics of their own.
Trial strong(const Problem& p, const ParamMap& params, int threads = 2) {
  Trial t = make_trial("fsatfusion", p, params, threads);
  TensorMap weights;
  for (const TensorSpec& s : t.instance->weight_specs()) {
    const bool matrix = s.shape.rank() > 1, positive = s.name.ends_with("running_var");
    const bool gain = !matrix && s.name.ends_with(".weight");
    std::vector<double> v;
    for (int64_t i = 0; i < s.shape.numel(); ++i) {
      const double r = random_normal(6, stream_of(s.name), static_cast<uint64_t>(i));
      double fan_in = 1;
      for (int axis = 1; axis < s.shape.rank(); ++axis) fan_in *= static_cast<double>(s.shape[axis]);
      v.push_back(positive ? 0.5 + std::fabs(r)
                           : (gain ? 1.0 : 0.0) + (matrix ? 1.2 / std::sqrt(fan_in) : 0.3) * r);
    }
    weights[s.name] = host_tensor(*t.ctx, s.shape, v, s.dtype);
  }
  rebind(t, {}, weights);
  return t;
}

constexpr double kRoundings = 16;

}  // namespace

TEST_CASE("fsatfusion equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  struct Case {
    int64_t h, w, channels;
    ParamMap params;
  };
  const auto [h, w, channels, params] = GENERATE(
      Case{9, 13, 16, {{"dct_size", 14}}},
      Case{8, 8, 16, {{"dct_size", 8}, {"token_layout", "channels_last"}, {"depth", 2}}},
      Case{7, 10, 16, {{"dct_size", 7}, {"window_size", 3}, {"depth", 3}, {"share_fsam", false}}},
      Case{8,
           12,
           32,
           {{"dim", 32},
            {"num_freq", 32},
            {"dct_size", 21},
            {"window_size", 4},
            {"depth", 2},
            {"token_layout", "channels_last"}}},
      Case{7,
           7,
           8,
           {{"dim", 8},
            {"num_heads", 4},
            {"num_freq", 2},
            {"reduction", 3},
            {"dct_size", 9},
            {"attn_scope", "global"},
            {"mlp_ratio", 1.5},
            {"broadcast", 0.25}}},
      Case{9, 8, 16, {{"scope", "fsam"}, {"dct_size", 10}}},
      Case{9, 8, 16, {{"scope", "itm"}, {"window_size", 2}}},
      Case{9, 8, 16, {{"scope", "itm"}, {"broadcast", 0.0}}},
      Case{10, 9, 2, {{"scope", "network"}, {"dct_size", 8}}},
      Case{8,
           7,
           3,
           {{"scope", "network"}, {"dct_size", 7}, {"in_channels", 3}, {"out_channels", 2}, {"depth", 1}}});
  for (int64_t batch : {1, 2}) {
    Trial t = strong(map_problem(batch, h, w, channels, dtype), params);
    check_trial(t, kRoundings);
  }
}

TEST_CASE("degenerate 1: windows of one token do not see queries, keys or the bias table") {
  Trial t = strong(map_problem(2, 7, 9, 16), {{"dct_size", 7}});
  t.run();
  const std::vector<double> before = t.output("out").data;
  RefTensor weight = to_reference(t.instance->weights().at("blocks.0.attn.qkv.weight"));
  for (int64_t i = 0; i < 32 * 16; ++i) weight[i] += 1;
  rebind(
      t, {},
      {{"blocks.0.attn.qkv.weight", host_tensor(*t.ctx, {48, 16}, weight.data)},
       {"blocks.0.attn.bias_table", same(*t.ctx, t.instance->weights().at("blocks.0.attn.bias_table"), 3)}});
  t.run();
  CHECK(t.output("out").data == before);
  CHECK(compare(t.output("out"), t.reference().at("out")).relative_l2 <= tolerance(DType::f32, 0));
}

TEST_CASE("degenerate 2 and 7: a broadcast of 1 adds one vector; equal tokens do not notice it") {
  Trial t = strong(map_problem(1, 7, 8, 16),
                   {{"scope", "itm"}, {"broadcast", 1.0}, {"token_layout", "channels_last"}});
  // Without attention's part and with an identity ahead, out - x is the MLP's share.
  rebind(
      t, {},
      {{"blocks.0.attn.proj.weight", same(*t.ctx, t.instance->weights().at("blocks.0.attn.proj.weight"), 0)},
       {"blocks.0.attn.proj.bias", same(*t.ctx, t.instance->weights().at("blocks.0.attn.proj.bias"), 0)}});
  t.run();
  const RefTensor x = to_reference(t.instance->inputs().at("x")), y = t.output("out");
  for (int64_t i = 0; i < y.numel(); ++i)
    CHECK(y[i] - x[i] == Approx(y[i / 56 * 56] - x[i / 56 * 56]).margin(2e-6));
  std::vector<double> constant(16 * 56);
  for (size_t i = 0; i < constant.size(); ++i) constant[i] = static_cast<double>(i / 56) * 0.1 - 0.6;
  RefTensor all[2];
  for (const double share : {0.0, 0.7}) {
    Trial s = strong(map_problem(1, 7, 8, 16),
                     {{"scope", "itm"}, {"broadcast", share}, {"token_layout", "channels_last"}});
    rebind(s, {{"x", host_tensor(*s.ctx, {1, 16, 7, 8}, constant)}});
    s.run();
    all[share > 0] = s.output("out");
  }
  CHECK(compare(all[0], all[1]).relative_l2 <= 1e-6);
}

TEST_CASE("degenerate 3 and 4: the lowest frequency is the mean; constant maps have no other") {
  Trial t = strong(map_problem(2, 8, 8, 16), {{"scope", "fsam"}, {"dct_size", 8}, {"num_freq", 1}});
  t.run();
  const RefTensor x = to_reference(t.instance->inputs().at("x")), z = t.output("z");
  for (int64_t i = 0; i < 32; ++i) {
    double mean = 0;
    for (int64_t p = 0; p < 64; ++p) mean += x[i * 64 + p] / 64;
    CHECK(z[i] == Approx(8 * mean).margin(1e-5));
  }
  Trial flat = strong(map_problem(1, 14, 14, 16), {{"scope", "fsam"}, {"dct_size", 14}});
  std::vector<double> constant(16 * 196);
  for (size_t i = 0; i < constant.size(); ++i) constant[i] = static_cast<double>(i / 196) - 7.5;
  rebind(flat, {{"x", host_tensor(*flat.ctx, {1, 16, 14, 14}, constant)}});
  flat.run();
  CHECK(flat.output("z")[0] == Approx(14 * -7.5).epsilon(1e-6));
  for (int64_t c = 1; c < 16; ++c) CHECK(flat.output("z")[c] == Approx(0).margin(1e-3));
}

TEST_CASE("degenerate 5: gates of zero weights are one half") {
  Trial t = strong(map_problem(2, 9, 7, 16), {{"dct_size", 7}});
  TensorMap zero;
  for (const char* name : {"fsam.W1.weight", "fsam.conv7.weight"})
    zero[name] = same(*t.ctx, t.instance->weights().at(name), 0);
  rebind(t, {}, zero);
  t.run();
  for (double g : t.output("g").data) CHECK(g == 0.5);
  for (double q : t.output("q").data) CHECK(q == 0.5);
  const RefTensor u = t.output("u"), out = t.output("out");
  const RefMap w = to_reference(t.instance->weights());
  for (int64_t i = 0; i < u.numel(); ++i) {
    const int64_t c = i / 63 % 16;
    const double want = (1.25 * u[i] - w.at("block_bn.running_mean")[c]) /
                            std::sqrt(w.at("block_bn.running_var")[c] + 1e-5) * w.at("block_bn.weight")[c] +
                        w.at("block_bn.bias")[c];
    CHECK(out[i] == Approx(std::max(want, 0.0)).margin(2e-5));
  }
}

TEST_CASE("degenerate 6 and 8: one window without bias is global; one pixel has one layout") {
  const Problem p = map_problem(1, 7, 7, 16);
  Trial global = strong(p, {{"scope", "itm"}, {"attn_scope", "global"}, {"window_size", 7}});
  Trial window = strong(p, {{"scope", "itm"}, {"window_size", 7}});
  for (Trial* t : {&global, &window})
    rebind(*t, {},
           {{"blocks.0.attn.bias_table",
             same(*t->ctx, t->instance->weights().at("blocks.0.attn.bias_table"), 0)}});
  global.run(), window.run();
  CHECK(compare(global.output("out"), window.output("out")).relative_l2 <= 1e-6);
  // Tokens that are planes of one value each: C = 1.
  const ParamMap one{{"dim", 1}, {"num_heads", 1}, {"num_freq", 1}, {"reduction", 1}, {"dct_size", 7}};
  ParamMap last = one;
  last["token_layout"] = "channels_last";
  Trial a = strong(map_problem(1, 7, 9, 1), one), b = strong(map_problem(1, 7, 9, 1), last);
  a.run(), b.run();
  CHECK(a.output("out").data == b.output("out").data);
}

TEST_CASE("what analyses see of the attention agrees with what the operator counted") {
  for (const ParamMap& params :
       {ParamMap{{"scope", "itm"}}, ParamMap{{"scope", "itm"}, {"attn_scope", "global"}},
        ParamMap{{"window_size", 3}, {"dct_size", 7}, {"token_layout", "channels_last"}},
        ParamMap{{"scope", "network"}, {"window_size", 3}, {"dct_size", 7}}}) {
    const bool network = params.contains("scope") && params.at("scope").as_string() == "network";
    Trial t = strong(map_problem(2, 9, 12, network ? 2 : 16), params);
    check_rows_and_stats(t);
  }
  // Own windows only: place (4, 5) of a 9 x 12 grid sees rows 3 to 5, columns 3 to 5.
  Trial t = strong(map_problem(1, 9, 12, 16), {{"scope", "itm"}, {"window_size", 3}});
  Intervals seen;
  t.instance->pairs()->row(0, 1, 4 * 12 + 5, seen);
  CHECK(seen == Intervals{{39, 42}, {51, 54}, {63, 66}});
  // Windows of 4 over 9 x 12: padded places have columns, and rows still sum to 1.
  Trial padded = strong(map_problem(1, 9, 12, 16), {{"scope", "itm"}, {"window_size", 4}});
  padded.run();
  CHECK(padded.instance->keys(0) == 12 * 12);
  std::vector<float> rows;
  REQUIRE(padded.instance->rows(*padded.ctx, 0, 2, 100, 108, rows));
  for (int64_t i = 0; i < 8; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < 144; ++j) sum += static_cast<double>(rows[static_cast<size_t>(i * 144 + j)]);
    CHECK(sum == Approx(1).margin(1e-5));
  }
  Trial gates = strong(map_problem(1, 9, 12, 16), {{"scope", "fsam"}, {"dct_size", 7}});
  CHECK_FALSE(gates.instance->pairs().has_value());
}

TEST_CASE("fsatfusion counts as its card counts") {
  Context ctx(cpu_backend(), 1);
  const auto form = [&](const Problem& p, const ParamMap& params) {
    return find_method("fsatfusion").make(ctx, p, params_of("fsatfusion", p, params))->cost();
  };
  const ClosedForm itm = form(map_problem(1, 224, 224, 16), {{"scope", "itm"}});
  const ClosedForm fsam = form(map_problem(1, 224, 224, 16), {{"scope", "fsam"}});
  const ClosedForm network = form(map_problem(1, 224, 224, 2), {{"scope", "network"}});
  CHECK(static_cast<double>(itm.published_macs) / 1e6 == Approx(155.75).margin(0.005));
  CHECK(static_cast<double>(fsam.published_macs) / 1e6 == Approx(5.72).margin(0.005));
  CHECK(static_cast<double>(network.published_macs) / 1e6 == Approx(453.8).margin(0.05));
  CHECK(itm.parameters == 3288);
  CHECK(fsam.parameters == 130);
  CHECK(network.parameters == 9411);
}

TEST_CASE("fsatfusion refuses what does not fit, naming it") {
  const auto refuses = [](const Problem& p, const ParamMap& params, const std::string& word) {
    CHECK_THROWS_AS(make_trial("fsatfusion", p, params), UsageError);
    CHECK_THROWS_WITH(make_trial("fsatfusion", p, params), ContainsSubstring(word));
  };
  const Problem p = map_problem(1, 8, 9, 16);
  refuses(p, {{"height", 9}}, "height 9 differs from the problem's 8");
  refuses(p, {{"num_freq", 3}}, "num_freq 3");
  refuses(p, {{"num_freq", 32}}, "not a multiple of num_freq 32");
  refuses(p, {{"num_heads", 5}}, "not divisible by num_heads 5");
  refuses(p, {{"reduction", 17}}, "reduction 17 is more");
  refuses(p, {{"scope", "network"}}, "differs from the 2 of scope network");
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make_trial("fsatfusion", causal), Unsupported);
}
