// Lightning Attention: the reference by hand, every variant and module against it, the card's degenerate
// cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "lightning_attention";

Problem kernel_problem(int64_t batch, int64_t heads, int64_t n, int64_t d, DType dtype = DType::f32) {
  return heads_problem(batch, heads, heads, n, n, d, true, dtype);
}

Problem mixer_problem(int64_t batch, int64_t heads, int64_t n, int64_t channels, DType dtype = DType::f32) {
  Problem p;
  p.batch = batch;
  p.heads = heads;
  p.length = n;
  p.channels = channels;
  p.causal = true;
  p.dtype = dtype;
  return p;
}

RefTensor reference_o(const Problem& p, const ParamMap& given, const RefMap& inputs,
                      const RefMap& weights = {}) {
  return find_reference(kMethod)(p, params_of(kMethod, p, given), inputs, weights).at("o");
}

void make(const Problem& p, const ParamMap& given) {
  Context ctx(cpu_backend(), 1);
  find_method(kMethod).make(ctx, p, params_of(kMethod, p, given));
}

}  // namespace

TEST_CASE("the lightning reference, by hand") {
  const Problem p = kernel_problem(1, 1, 3, 1);
  const RefMap inputs{{"q", ref_tensor({1, 1, 3, 1}, {1, 2, 3})},
                      {"k", ref_tensor({1, 1, 3, 1}, {1, 10, 100})},
                      {"v", ref_tensor({1, 1, 3, 1}, {1, 1, 2})}};
  // kv: 1, 0.5 + 10, 5.25 + 200.
  const RefTensor o = reference_o(p, {{"decay", "list"}, {"decay_values", Value::List{0.5}}}, inputs);
  CHECK(o[0] == Approx(1));
  CHECK(o[1] == Approx(21));
  CHECK(o[2] == Approx(615.75));
  Problem open = p;
  open.causal = false;
  const RefTensor all = reference_o(open, {{"decay", "none"}, {"causal", false}}, inputs);
  CHECK(all[0] == Approx(211));
  CHECK(all[2] == Approx(633));
}

TEST_CASE("lightning decay schedules, read from the reference at N = 2") {
  // With q = k = v = 1, o_1 = 1 + lambda.
  const auto lambdas = [](int64_t heads, const ParamMap& given) {
    const Problem p = kernel_problem(1, heads, 2, 1);
    RefTensor ones({1, heads, 2, 1});
    std::fill(ones.data.begin(), ones.data.end(), 1.0);
    const RefTensor o = reference_o(p, given, {{"q", ones}, {"k", ones}, {"v", ones}});
    std::vector<double> rates;
    for (int64_t h = 0; h < heads; ++h) rates.push_back(-std::log(o[2 * h + 1] - 1));
    return rates;
  };
  const auto near = [](const std::vector<double>& got, const std::vector<double>& want) {
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(want[i]).epsilon(1e-6));
  };
  near(lambdas(8, {}), {1 / 2., 1 / 4., 1 / 8., 1 / 16., 1 / 32., 1 / 64., 1 / 128., 1 / 256.});
  // Four heads' rates, then the first and third of eight.
  near(lambdas(6, {}), {1 / 4., 1 / 16., 1 / 64., 1 / 256., 1 / 2., 1 / 8.});
  near(lambdas(8, {{"decay", "tnl_paper"}}), {1, 2, 3, 4, 5, 6, 7, 8});
  near(lambdas(2, {{"decay", "tnl_paper"}, {"layer_idx", 3}, {"num_layers", 4}}), {1, 2});
  near(lambdas(2, {{"decay", "alibi_layer"}, {"layer_idx", 2}, {"num_layers", 5}}),
       {0.50001 / 16, 0.50001 / 256});
  near(lambdas(1, {{"decay", "none"}}), {0});
}

TEST_CASE("lightning kernel: every variant, decay and storage type against the reference") {
  const std::string variant = GENERATE(as<std::string>{}, "chunk", "recurrent", "quadratic", "parallel");
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("ragged length, more value channels than key channels, batch 2") {
    Trial t = make_trial(kMethod, kernel_problem(2, 3, 91, 24, dtype),
                         {{"variant", variant}, {"block_size", 16}, {"value_dim", 40}});
    check_trial(t, 2);
  }
  SECTION("strong and no decay side by side") {
    Trial t =
        make_trial(kMethod, kernel_problem(1, 3, 130, 16, dtype),
                   {{"variant", variant}, {"decay", "list"}, {"decay_values", Value::List{1.0, 0.5, 1e-30}}});
    check_trial(t, 2);
  }
  SECTION("one token: o = (q . k) v") {
    Trial t = make_trial(kMethod, kernel_problem(1, 2, 1, 8, dtype), {{"variant", variant}});
    check_trial(t, 2);
  }
  SECTION("block_size 1 and one beyond the sequence") {
    Trial t = make_trial(kMethod, kernel_problem(1, 2, 37, 8, dtype),
                         {{"variant", variant}, {"block_size", GENERATE(1, 64)}, {"decay", "alibi_layer"}});
    check_trial(t, 2);
  }
  SECTION("lrpe doubles the key width") {
    Trial t = make_trial(kMethod, kernel_problem(2, 2, 45, 8, dtype),
                         {{"variant", variant}, {"lrpe", true}, {"block_size", 16}, {"decay", "tnl_paper"}});
    check_trial(t, 5);
    CHECK(t.instance->cost().parameters == 16);
  }
  SECTION("from a state to a state, and one token of decoding") {
    Trial t = make_trial(kMethod, kernel_problem(2, 2, GENERATE(1, 45), 8, dtype),
                         {{"variant", variant}, {"state", true}, {"block_size", 16}, {"value_dim", 5}});
    check_trial(t, 2);
  }
  SECTION("not causal") {
    Problem p = kernel_problem(2, 2, 45, 8, dtype);
    p.causal = false;
    Trial t = make_trial(kMethod, p, {{"variant", variant}, {"causal", false}, {"decay", "none"}});
    check_trial(t, 2);
  }
}

TEST_CASE("lightning: tiny decay leaves the token itself, no decay is the running sum") {
  Trial t = make_trial(kMethod, kernel_problem(1, 2, 20, 4),
                       {{"decay", "list"}, {"decay_values", Value::List{1e-38, 1.0}}, {"block_size", 8}});
  // q = k = e_1: head 0 gives v, head 1 its running sum.
  std::vector<double> unit;
  for (int i = 0; i < 2 * 20 * 4; ++i) unit.push_back(i % 4 == 0);
  rebind(t,
         {{"q", host_tensor(*t.ctx, {1, 2, 20, 4}, unit)}, {"k", host_tensor(*t.ctx, {1, 2, 20, 4}, unit)}});
  t.run();
  const RefTensor o = t.output("o"), v = to_reference(t.instance->inputs().at("v"));
  double worst = 0;
  for (int64_t c = 0; c < 4; ++c) {
    double sum = 0;
    for (int64_t s = 0; s < 20; ++s) {
      worst = std::max(worst, std::abs(o[s * 4 + c] - v[s * 4 + c]));
      sum += v[(20 + s) * 4 + c];
      worst = std::max(worst, std::abs(o[(20 + s) * 4 + c] - sum));
    }
  }
  CHECK(worst < 20 * epsilon_of(DType::f32) * 8);
}

TEST_CASE("lightning: theta 0 adds nothing, W_u = 0 gives nothing") {
  const Problem p = kernel_problem(1, 2, 33, 8);
  Trial with = make_trial(kMethod, p, {{"lrpe", true}}), without = make_trial(kMethod, p);
  rebind(with, {}, {{"theta", host_tensor(*with.ctx, {2, 1, 8}, std::vector<double>(16, 0.0))}});
  with.run();
  without.run();
  CHECK(compare(with.output("o"), without.output("o")).relative_l2 < tolerance(DType::f32, 0));

  Trial gla = make_trial(kMethod, mixer_problem(1, 2, 9, 16), {{"module", "gla"}});
  rebind(gla, {}, {{"W_u", host_tensor(*gla.ctx, {16, 16}, std::vector<double>(256, 0.0))}});
  gla.run();
  for (double y : gla.output("Y").data) CHECK(y == 0);
}

TEST_CASE("lightning modules against the reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string module = GENERATE(as<std::string>{}, "gla", "layer");
  // Projections, kernel, norm, gate and output each round once; signed sums of rounded terms add some.
  const double roundings = 16;
  SECTION("norms and gates") {
    const std::string norm = GENERATE(as<std::string>{}, "srmsnorm", "layernorm", "rmsnorm", "none");
    const std::string gate = GENERATE(as<std::string>{}, "linear", "lowrank_sigmoid", "none");
    Trial t =
        make_trial(kMethod, mixer_problem(2, 3, 37, 48, dtype),
                   {{"module", module}, {"norm", norm}, {"gate", gate}, {"block_size", 16}, {"ffn_dim", 40}});
    // At the authors' init_std the mixer's output is tiny; larger weights make every term of the layer count.
    TensorMap larger;
    for (const auto& [key, w] : t.instance->weights()) {
      std::vector<double> values = to_reference(w).data;
      if (key[0] == 'W')
        for (double& v : values) v *= 8;
      if (key == "norm_bias") values[3] = 0.5;
      if (key == "norm_weight") values[5] = -2;
      larger[key] = host_tensor(*t.ctx, w.shape(), values, dtype);
    }
    rebind(t, {}, larger);
    check_trial(t, roundings);
  }
  SECTION("lrpe, one token, default ffn_dim") {
    Trial t = make_trial(kMethod, mixer_problem(1, 2, GENERATE(1, 19), 16, dtype),
                         {{"module", module}, {"lrpe", true}});
    check_trial(t, roundings);
  }
}

TEST_CASE("lightning parameter counts and the default ffn_dim") {
  Problem p = mixer_problem(1, 8, 4, 1024);
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method(kMethod);
  const auto count = [&](const ParamMap& given) {
    return m.make(ctx, p, params_of(kMethod, p, given))->cost().parameters;
  };
  CHECK(count({{"module", "gla"}}) == 5 * 1024 * 1024);
  CHECK(count({{"module", "gla"}, {"lrpe", true}}) == 5 * 1024 * 1024 + 1024);
  CHECK(count({{"module", "layer"}}) == 5 * 1024 * 1024 + 3 * 1024 * 2816);  // glu_dim 2816 at C = 1024
  CHECK(count({{"module", "gla"}, {"gate", "none"}, {"norm", "layernorm"}}) == 4 * 1024 * 1024 + 2 * 1024);
}

TEST_CASE("lightning cost is the card's formula") {
  const int64_t n = 4096, d = 128, heads = 2;
  Trial t = make_trial(kMethod, kernel_problem(1, heads, n, d));
  CHECK(t.instance->cost().cost.matmul == heads * 4 * n * d * (64 + d));
  CHECK(t.instance->cost().cost.elementwise == heads * n * 64);
  // The card's memory check: bf16 operands once.
  Trial small = make_trial(kMethod, kernel_problem(4, 32, 512, 128, DType::bf16));
  const Cost c = small.instance->cost().cost;
  CHECK(c.bytes() == 4 * (int64_t{16} << 20) + 4 * 32);
}

TEST_CASE("lightning rows are |a| / sum |a|, cut where the decay vanishes in f32") {
  const Problem p = kernel_problem(1, 2, 300, 4);
  Trial t = make_trial(kMethod, p, {{"decay", "list"}, {"decay_values", Value::List{0.9, 1e-3}}});
  t.run();
  const RefTensor q = to_reference(t.instance->inputs().at("q")),
                  k = to_reference(t.instance->inputs().at("k"));
  double worst = 0;
  for (int64_t h = 0; h < 2; ++h) {
    std::vector<float> rows;
    REQUIRE(t.instance->rows(*t.ctx, 0, h, 250, 300, rows));
    REQUIRE(rows.size() == 50 * 300);
    for (int64_t i = 250; i < 300; ++i) {
      std::vector<double> a(300, 0.0);
      double sum = 0;
      for (int64_t s = 0; s <= i; ++s) {
        double dot = 0;
        for (int64_t c = 0; c < 4; ++c) dot += q[(h * 300 + i) * 4 + c] * k[(h * 300 + s) * 4 + c];
        a[size_t(s)] = std::abs(dot) * std::pow(h ? 1e-3 : 0.9, static_cast<double>(i - s));
        sum += a[size_t(s)];
      }
      for (int64_t s = 0; s < 300; ++s)
        worst = std::max(worst, std::abs(a[size_t(s)] / sum - double(rows[size_t((i - 250) * 300 + s)])));
    }
  }
  CHECK(worst < 4 * epsilon_of(DType::f32));
  Intervals row;
  t.instance->pairs()->row(0, 1, 17, row);
  CHECK(row == Intervals{{0, 18}});
}

TEST_CASE("lightning results do not depend on the number of threads") {
  const ParamMap given{
      {"variant", GENERATE(as<std::string>{}, "chunk", "parallel", "quadratic", "recurrent")}};
  Trial one = make_trial(kMethod, kernel_problem(2, 2, 150, 16), given, 1);
  Trial two = make_trial(kMethod, kernel_problem(2, 2, 150, 16), given, 2);
  one.run();
  two.run();
  CHECK(one.output("o").data == two.output("o").data);
}

TEST_CASE("lightning says what it cannot do") {
  const Problem p = kernel_problem(1, 4, 16, 8);
  CHECK_NOTHROW(make(p, {}));
  Problem grouped = p;
  grouped.kv_heads = 2;
  CHECK_THROWS_AS(make(grouped, {}), Unsupported);
  Problem cross = p;
  cross.kv_length = 20;
  CHECK_THROWS_AS(make(cross, {}), Unsupported);
  Problem open = p;
  open.causal = false;
  CHECK_NOTHROW(make(open, {}));  // causal by definition
  CHECK_THROWS_AS(make(open, {{"causal", false}}), Unsupported);
  CHECK_THROWS_WITH(make(p, {{"causal", false}, {"decay", "none"}}), ContainsSubstring("problem.causal"));
  CHECK_THROWS_WITH(make(p, {{"decay", "list"}, {"decay_values", Value::List{0.5}}}),
                    ContainsSubstring("1 values for 4 heads"));
  CHECK_THROWS_WITH(make(p, {{"decay", "list"}, {"decay_values", Value::List{0.5, 0.5, 0.0, 0.5}}}),
                    ContainsSubstring("above 0"));
  CHECK_THROWS_AS(make(p, {{"decay", "list"}, {"decay_values", Value::List{0.5, 0.5, 1.5, 0.5}}}),
                  UsageError);
  CHECK_THROWS_AS(make(p, {{"decay_values", Value::List{0.5, 0.5, 0.5, 0.5}}}), UsageError);
  CHECK_THROWS_WITH(make(p, {{"decay", "alibi_layer"}, {"num_layers", 1}}), ContainsSubstring("at least 2"));
  CHECK_THROWS_AS(make(p, {{"layer_idx", 24}}), UsageError);
  CHECK_THROWS_WITH(make(p, {{"module", "gla"}}), ContainsSubstring("channels"));
  const Problem mixer = mixer_problem(1, 4, 16, 32);
  CHECK_THROWS_WITH(make(mixer, {}), ContainsSubstring("head_dim"));
  CHECK_THROWS_AS(make(mixer, {{"module", "gla"}, {"value_dim", 16}}), Unsupported);
  CHECK_THROWS_AS(make(mixer_problem(1, 3, 16, 32), {{"module", "layer"}}), UsageError);
}

TEST_CASE(
    "a million tokens: decays from 1 - 1e-6 to 0.5 neither overflow nor vanish, decoding or in chunks") {
  // Rows sampled and summed in double; the weights of head 0 reach back through the whole sequence.
  const bool decode = GENERATE(true, false);
  const int64_t n = decode ? 1 << 20 : 1 << 18, d = 4;
  const double lambdas[2] = {1 - 1e-6, 0.5};
  Trial t = make_trial(kMethod, kernel_problem(1, 2, n, d),
                       {{"variant", decode ? "recurrent" : "chunk"},
                        {"decay", "list"},
                        {"decay_values", Value::List{lambdas[0], lambdas[1]}}});
  t.run();
  const TensorMap in = t.instance->inputs();
  const float *q = in.at("q").data<float>(), *k = in.at("k").data<float>(), *v = in.at("v").data<float>(),
              *o = t.instance->outputs().at("o").data<float>();
  for (int64_t h = 0; h < 2; ++h) {
    double off = 0, size = 0;
    for (const int64_t row : {int64_t{0}, int64_t{1}, n / 3, n / 2 + 7, n - 2, n - 1}) {
      double want[4] = {};
      for (int64_t s = row; s >= 0; --s) {
        const double weight = std::exp(std::log(lambdas[h]) * static_cast<double>(row - s));
        if (weight < 1e-30) break;
        double dot = 0;
        for (int64_t c = 0; c < d; ++c)
          dot += static_cast<double>(q[(h * n + row) * d + c]) * static_cast<double>(k[(h * n + s) * d + c]);
        for (int64_t c = 0; c < d; ++c) want[c] += weight * dot * static_cast<double>(v[(h * n + s) * d + c]);
      }
      for (int64_t c = 0; c < d; ++c) {
        const double got = o[(h * n + row) * d + c];
        off += (got - want[c]) * (got - want[c]), size += want[c] * want[c];
      }
    }
    // f32 sums: every addition rounds the running state once; with random signs the roundings of as many
    // tokens as the decay remembers add up like a random walk of half an epsilon.
    const double remembered = std::min(static_cast<double>(n), 1 / (1 - lambdas[h]));
    INFO("head " << h << ", " << n << " tokens: relative error " << std::sqrt(off / size));
    CHECK(std::sqrt(off / size) < 2 * epsilon_of(DType::f32) * (8 + std::sqrt(remembered)));
  }
}
