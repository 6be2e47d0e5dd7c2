// oat: reference, closed form, the card's degenerate cases; scans with and without their cache; the crop CNN.
#include "analysis/analysis.hpp"
#include "measure/verify.hpp"
#include "tests/device/mock_device.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem scan_problem(int64_t batch, int64_t d, int64_t heads, int64_t length, DType dtype = DType::f32) {
  Problem p;
  p.batch = batch, p.channels = d, p.heads = heads, p.length = length, p.dtype = dtype;
  p.seed = 21;
  return p;
}

ParamMap small(ParamMap more = {}) {
  ParamMap m{{"rows", 2},       {"cols", 3},       {"d_model", 24}, {"ffn_dim", 20},
             {"enc_layers", 2}, {"dec_layers", 2}, {"ca_dk", 24}};
  for (const auto& [key, value] : more) m[key] = value;
  return m;
}

/// Weights and biases large enough that every one of them shows.
Trial strong(const Problem& p, const ParamMap& params, int threads = 2) {
  Trial t = make_trial("oat", p, params, threads);
  TensorMap weights;
  for (const TensorSpec& s : t.instance->weight_specs()) {
    if (s.optional) continue;
    std::vector<double> v;
    const bool matrix = s.shape.rank() > 1,
               gain = s.name.find("norm") != std::string::npos && s.name.ends_with(".weight");
    for (int64_t i = 0; i < s.shape.numel(); ++i)
      v.push_back((gain ? 1.0 : 0.0) + (matrix ? 1.2 / std::sqrt(static_cast<double>(s.shape[-1])) : 0.3) *
                                           random_normal(9, stream_of(s.name), static_cast<uint64_t>(i)));
    weights[s.name] = host_tensor(*t.ctx, s.shape, v, s.dtype);
  }
  rebind(t, {}, weights);
  return t;
}

Tensor cells(Context& ctx, const Shape& shape, const std::vector<int32_t>& v) {
  const Tensor t = ctx.allocate(DType::i32, shape);
  std::copy(v.begin(), v.end(), t.data<int32_t>());
  return t;
}

/// Post-norm layers renew the norm; logits are products of two of their outputs.
constexpr double kRoundings = 24;

}  // namespace

TEST_CASE("oat equals its reference and its closed form, teacher forced") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [batch, length, more] = GENERATE(table<int64_t, int64_t, ParamMap>({
      {2, 6, {}},
      {1, 1, {{"ca_heads", 1}}},
      {3, 4, {{"ca_heads", 3}, {"enc_layers", 0}, {"dec_layers", 1}}},
      {2, 5, {{"enc_layers", 1}, {"dec_layers", 0}, {"ca_heads", 1}, {"sigma", 1.5}}},
      {1, 3, {{"pe_kind", "sinusoid"}, {"rows", 1}, {"cols", 1}}},
  }));
  Trial t = strong(scan_problem(batch, 24, 4, length, dtype), small(more));
  check_trial(t, kRoundings);
}

TEST_CASE("greedy and sampled scans equal the reference's, with and without cache, in every dtype") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string decode = GENERATE("greedy", "sample");
  const bool cache = GENERATE(false, true);
  for (int seed : {1, 2, 3}) {
    Problem p = scan_problem(3, 24, 2, 1, dtype);
    p.seed = static_cast<uint64_t>(seed);
    Trial t = strong(p, small({{"decode", decode}, {"kv_cache", cache}, {"scan_len", 7}, {"seed", seed}}));
    check_trial(t, 1);
  }
}

namespace {

AnalysisResult analysed(const char* id, Trial& t) {
  const Analysis& a = find_analysis(id);
  return a.compute(*t.ctx, *t.instance, t.problem, resolve_params(id, a.info().params, {}, t.problem));
}

}  // namespace

TEST_CASE("oat's rows are the distributions over classes; its pairs are all") {
  Trial t = strong(scan_problem(2, 24, 4, 5), small());
  t.run();
  const RefTensor logits = t.output("logits");
  std::vector<float> rows;
  for (int64_t b = 0; b < 2; ++b) {
    REQUIRE(t.instance->rows(*t.ctx, b, 0, 1, 5, rows));
    REQUIRE(rows.size() == 4 * 8);
    for (int64_t i = 0; i < 4; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < 8; ++c) sum += std::exp(logits[(b * 5 + i + 1) * 8 + c]);
      for (int64_t c = 0; c < 8; ++c)
        CHECK(static_cast<double>(rows[static_cast<size_t>(i * 8 + c)]) ==
              Approx(std::exp(logits[(b * 5 + i + 1) * 8 + c]) / sum).epsilon(1e-5));
    }
  }
  CHECK(analysed("density", t).scalars.at("density") == 1);
  CHECK(analysed("entropy", t).scalars.at("rows") == 10);
}

TEST_CASE("scanpath: uniform attention has the entropy of its classes; codes are Gaussian") {
  Trial t = strong(scan_problem(2, 24, 4, 5), small());
  // No keys anywhere: every softmax is over equal scores.
  TensorMap none;
  for (const auto& [name, w] : t.instance->weights())
    if (name.find("in_proj") != std::string::npos || name.starts_with("object."))
      none[name] = host_tensor(*t.ctx, w.shape(), std::vector<double>(static_cast<size_t>(w.numel()), 0.0));
  rebind(t, {}, none);
  t.run();
  const AnalysisResult r = analysed("scanpath", t);
  CHECK(r.scalars.at("object_entropy") == Approx(std::log(8.0)));
  CHECK(r.scalars.at("object_entropy_share") == Approx(1));
  for (const char* name : {"encoder_attention_entropy", "cross_attention_entropy"}) {
    REQUIRE(r.series.at(name).size() == 2);
    for (const double h : r.series.at(name)) CHECK(h == Approx(std::log(7.0)));
  }
  double causal = 0;  // step t sees t + 1 tokens
  for (int i = 1; i <= 5; ++i) causal += std::log(static_cast<double>(i)) / 5;
  for (const double h : r.series.at("self_attention_entropy")) CHECK(h == Approx(causal));
  CHECK(r.scalars.at("code_error") < 1e-6);
  CHECK(r.scalars.at("code_norm_max") == Approx(8.76));
  CHECK(r.series.at("code_cosine")[0] == Approx(0.8825).margin(1e-4));
  // Objects of a 2 x 3 display with an eighth of the weight each, from a fixation at row 1, column 1 (BOS).
  const double first = (std::sqrt(2.0) + 1 + std::sqrt(2.0) + 1 + 0 + 1) / 8;
  CHECK(r.series.at("distance")[0] == Approx(first));
  // Of a scan the last fixation is the model's own.
  Trial scan = strong(scan_problem(2, 24, 4, 1), small({{"decode", "greedy"}, {"scan_len", 4}}));
  scan.run();
  CHECK_FALSE(analysed("scanpath", scan).scalars.contains("distance"));
  Trial other = make_trial("dense", heads_problem(1, 2, 2, 8, 8, 4, false));
  other.run();
  CHECK_THROWS_AS(analysed("scanpath", other), Unsupported);
}

TEST_CASE("a scan stops at END, which its first step cannot choose; ties go to the lowest object") {
  // Without layers, E the identity and D one channel of the flag's code: the target token alone has a logit.
  Trial t = strong(
      scan_problem(2, 24, 2, 1),
      small({{"decode", "greedy"}, {"scan_len", 6}, {"ca_heads", 1}, {"enc_layers", 0}, {"dec_layers", 0}}));
  std::vector<double> table(16, 0.0), unit(24 * 24, 0.0), none(24 * 24, 0.0), channel(24, 0.0);
  table[4] = 50.0;  // row 1, the code of a set flag
  for (size_t i = 0; i < 24; ++i) unit[i * 25] = 1.0;
  channel[12 + 2 * 4] = GENERATE(1.0, -1.0);
  rebind(t, {},
         {{"Q", host_tensor(*t.ctx, {4, 4}, table)},
          {"object.0.E.weight", host_tensor(*t.ctx, {24, 24}, unit)},
          {"object.0.E.bias", host_tensor(*t.ctx, {24}, std::vector<double>(24, 0.0))},
          {"object.0.D.weight", host_tensor(*t.ctx, {24, 24}, none)},
          {"object.0.D.bias", host_tensor(*t.ctx, {24}, channel)}});
  t.run();
  const RefMap want = t.reference();
  const RefTensor path = t.output("scanpath");
  CHECK(want.at("scanpath").data == path.data);
  CHECK(want.at("logits").shape == t.output("logits").shape);
  if (channel[20] > 0) {
    CHECK(path.shape == std::vector<int64_t>{2, 2});
    CHECK(path.data == std::vector<double>{0, 6, 0, 6});
  } else {  // END is the worst: object 0 until the steps are used up
    CHECK(path.shape == std::vector<int64_t>{2, 6});
    CHECK(path.data == std::vector<double>(12, 0.0));
  }
}

TEST_CASE("a recorded scan gives its outputs anew, whatever was read before it") {
  // Seeds whose scans end early, and one that does not, by image.
  const int seed = GENERATE(1, 2, 3);
  const bool cache = GENERATE(false, true);
  Problem p = scan_problem(3, 24, 2, 1);
  p.seed = static_cast<uint64_t>(seed);
  mock::MockDevice device;
  Context ctx(device), host(cpu_backend());
  const Method& m = find_method("oat");
  const auto instance = m.make(ctx, p,
                               params_of("oat", p,
                                         small({{"decode", "sample"},
                                                {"kv_cache", cache},
                                                {"scan_len", 7},
                                                {"seed", seed},
                                                {"rows", 1},
                                                {"cols", 2},
                                                {"pe_kind", "sinusoid"}})));
  fill_instance(ctx, *instance, p);
  instance->prepare(ctx);
  instance->run(ctx);
  std::map<std::string, RefTensor> want;
  for (const auto& [key, t] : instance->outputs()) want[key] = to_reference(to_host(host, ctx, t));
  const auto graph = device.capture([&] { instance->run(ctx); });
  poison(ctx, instance->outputs());
  graph->replay(2);
  for (const auto& [key, t] : instance->outputs()) {
    INFO(key);
    const RefTensor got = to_reference(to_host(host, ctx, t));
    CHECK(got.shape == want.at(key).shape);
    CHECK(got.data == want.at(key).data);
  }
}

TEST_CASE("padding is masked as keys, its logits and rows are still there") {
  Trial t = strong(scan_problem(2, 24, 2, 4), small());
  // 2 x 3 grid: padding is index 7 = (2, 1). Image 0 lacks objects 4 and 5; its last fixation is padding.
  std::vector<int32_t> source, target;
  for (int b = 0; b < 2; ++b) {
    for (int i = 0; i < 6; ++i) {
      const bool padded = b == 0 && i >= 4;
      source.insert(source.end(), {padded ? 2 : i / 3, padded ? 1 : i % 3, 0});
    }
    source.insert(source.end(), {0, 2, 1});
    target.insert(target.end(), {1, 1, 0, 0, 2, 1, 1, 0, 0});
    target.insert(target.end(), {b == 0 ? 2 : 0, 1, 0});
  }
  rebind(t, {{"pos_src", cells(*t.ctx, {2, 7, 3}, source)}, {"pos_tgt", cells(*t.ctx, {2, 4, 3}, target)}});
  t.run();
  const Comparison c = compare(t.output("logits"), t.reference().at("logits"));
  INFO(c.worst);
  CHECK(c.relative_l2 <= tolerance(DType::f32, 0));
  // Another descriptor of a padded object changes its own columns only.
  const RefTensor before = t.output("logits");
  Tensor v = t.instance->inputs().at("V_src");
  v.data<float>()[5 * 12] += 3.0f;
  t.instance->run(*t.ctx);
  const RefTensor after = t.output("logits");
  double own = 0;
  for (int64_t i = 0; i < after.numel(); ++i) {
    if (i < 4 * 8 && i % 8 == 5)
      own += std::fabs(after[i] - before[i]);
    else
      CHECK(after[i] == before[i]);
  }
  CHECK(own > 1e-3);
}

TEST_CASE("degenerate 1: without object projections every logit is the readout's bias") {
  Trial t = strong(scan_problem(1, 24, 2, 3), small());
  TensorMap zero;
  for (const char* name : {"object.0.D.weight", "object.0.D.bias", "object.0.E.weight", "object.0.E.bias",
                           "object.1.D.weight", "object.1.D.bias", "object.1.E.weight", "object.1.E.bias"}) {
    const Shape shape = t.instance->weights().at(name).shape();
    zero[name] = host_tensor(*t.ctx, shape, std::vector<double>(static_cast<size_t>(shape.numel()), 0.0));
  }
  rebind(t, {}, zero);
  t.run();
  const double bias = to_reference(t.instance->weights().at("readout.bias"))[0];
  for (double v : t.output("logits").data) CHECK(v == bias);
}

TEST_CASE("degenerate 2: one object head is the first of two whose readout ignores the second") {
  Trial two = strong(scan_problem(2, 24, 2, 4), small());
  rebind(two, {},
         {{"readout.weight", host_tensor(*two.ctx, {1, 2}, {1, 0})},
          {"readout.bias", host_tensor(*two.ctx, {1}, {0})}});
  Trial one = strong(scan_problem(2, 24, 2, 4), small({{"ca_heads", 1}}));
  two.run(), one.run();
  CHECK(compare(one.output("logits"), two.output("logits")).relative_l2 <= 1e-6);
  const RefTensor y = one.output("logits");
  for (int64_t i = 7; i < y.numel(); i += 8) CHECK(y[i] == 0.0);
}

TEST_CASE(
    "degenerate 3 to 5: permuted objects permute logits, equal objects are equal, no step sees the next") {
  Trial t = strong(scan_problem(1, 24, 2, 4), small());
  t.run();
  const RefTensor before = t.output("logits");
  RefTensor v = to_reference(t.instance->inputs().at("V_src")), moved = v;
  std::vector<int32_t> source;
  const int order[7] = {3, 0, 5, 1, 4, 2, 6};
  const Tensor pos = t.instance->inputs().at("pos_src");
  for (int i = 0; i < 7; ++i) {
    for (int64_t c = 0; c < 12; ++c) moved[i * 12 + c] = v[order[i] * 12 + c];
    for (int k = 0; k < 3; ++k) source.push_back(pos.data<int32_t>()[order[i] * 3 + k]);
  }
  const TensorMap original = t.instance->inputs();
  rebind(t, {{"V_src", host_tensor(*t.ctx, {1, 7, 12}, moved.data)},
             {"pos_src", cells(*t.ctx, {1, 7, 3}, source)}});
  t.run();
  const RefTensor after = t.output("logits");
  for (int64_t s = 0; s < 4; ++s) {
    for (int64_t i = 0; i < 6; ++i) CHECK(after[s * 8 + i] == Approx(before[s * 8 + order[i]]).margin(2e-5));
    for (int64_t i = 6; i < 8; ++i) CHECK(after[s * 8 + i] == Approx(before[s * 8 + i]).margin(2e-5));
  }
  // Objects 0 and 1 in the same cell with the same descriptor.
  for (int64_t c = 0; c < 12; ++c) moved[12 + c] = moved[c];
  for (int k = 0; k < 3; ++k) source[static_cast<size_t>(3 + k)] = source[static_cast<size_t>(k)];
  rebind(t, {{"V_src", host_tensor(*t.ctx, {1, 7, 12}, moved.data)},
             {"pos_src", cells(*t.ctx, {1, 7, 3}, source)}});
  t.run();
  for (int64_t s = 0; s < 4; ++s) CHECK(t.output("logits")[s * 8] == t.output("logits")[s * 8 + 1]);
  // A later fixation.
  rebind(t, original);
  RefTensor tgt = to_reference(t.instance->inputs().at("V_tgt"));
  for (int64_t c = 0; c < 12; ++c) tgt[2 * 12 + c] += 1;
  rebind(t, {{"V_tgt", host_tensor(*t.ctx, {1, 4, 12}, tgt.data)}});
  t.run();
  for (int64_t i = 0; i < 16; ++i) CHECK(t.output("logits")[i] == before[i]);
  CHECK(compare(t.output("logits"), before).relative_l2 > 1e-3);
}

TEST_CASE("degenerate 5: teacher-forced logits of its own scan equal the scan's, with and without cache") {
  const ParamMap greedy =
      small({{"decode", "greedy"}, {"scan_len", 5}, {"rows", 3}, {"cols", 2}, {"d_model", 32}});
  Trial t = strong(scan_problem(1, 32, 2, 1), greedy);
  t.run();
  ParamMap with_cache = greedy;
  with_cache["kv_cache"] = true;
  Trial cached = strong(scan_problem(1, 32, 2, 1), with_cache);
  cached.run();
  CHECK(t.output("scanpath").data == cached.output("scanpath").data);
  CHECK(compare(t.output("logits"), cached.output("logits")).relative_l2 <= 1e-5);
  const RefTensor path = t.output("scanpath"), v = to_reference(t.instance->inputs().at("V_src"));
  const int64_t steps = path.dim(1);
  RefTensor tgt({1, steps, 16});
  std::vector<int32_t> pos{1, 1, 0};
  const RefTensor bos = to_reference(t.instance->inputs().at("V_tgt"));
  const Tensor cell = t.instance->inputs().at("pos_src");
  const int64_t target = cell.data<int32_t>()[18] * 2 + cell.data<int32_t>()[19];
  for (int64_t c = 0; c < 16; ++c) tgt[c] = bos[c];
  for (int64_t s = 1; s < steps; ++s) {
    const auto f = static_cast<int64_t>(path[s - 1]);
    for (int64_t c = 0; c < 16; ++c) tgt[s * 16 + c] = v[f * 16 + c];
    pos.insert(pos.end(), {static_cast<int32_t>(f / 2), static_cast<int32_t>(f % 2), f == target ? 1 : 0});
  }
  ParamMap teacher = greedy;
  teacher["decode"] = "teacher";
  Trial forced = strong(scan_problem(1, 32, 2, steps), teacher);
  rebind(forced, {{"V_src", t.instance->inputs().at("V_src")},
                  {"pos_src", cell},
                  {"V_tgt", host_tensor(*forced.ctx, {1, steps, 16}, tgt.data)},
                  {"pos_tgt", cells(*forced.ctx, {1, steps, 3}, pos)}});
  forced.run();
  CHECK(compare(forced.output("logits"), t.output("logits")).relative_l2 <= 1e-5);
}

TEST_CASE("degenerate 8: the closed-form table has the Gaussian's cosines") {
  // Le = Ld = 0 and unit object projections: logits are products of embeddings, whose halves are codes.
  Trial t = strong(scan_problem(1, 96, 2, 1), small({{"d_model", 96},
                                                     {"enc_layers", 0},
                                                     {"dec_layers", 0},
                                                     {"ca_heads", 1},
                                                     {"ca_dk", 1},
                                                     {"cols", 6}}));
  std::vector<double> unit(96 * 96, 0.0);
  for (size_t i = 48; i < 96; ++i) unit[i * 97] = 1.0;
  RefTensor bias({96});
  TensorMap w;
  for (const char* side : {"object.0.D", "object.0.E"}) {
    w[std::string(side) + ".weight"] = host_tensor(*t.ctx, {96, 96}, unit);
    // The decoder's token carries T1D[0] = (0, 1, 0, 1, ...): taken off again.
    for (int64_t i = 0; i < 96; ++i)
      bias[i] = std::string(side) == "object.0.D" && i >= 48 && i % 2 ? -1.0 : 0.0;
    w[std::string(side) + ".bias"] = host_tensor(*t.ctx, {96}, bias.data);
  }
  rebind(t, {{"pos_tgt", cells(*t.ctx, {1, 1, 3}, {0, 0, 0})}}, w);
  t.run();
  const double sigma2 = 2 * 2.0 * 2.0, norm = 8.76 * 8.76;
  for (int64_t i = 0; i < 12; ++i) {
    const auto row = static_cast<double>(i / 6), column = static_cast<double>(i % 6);
    const double want = norm * (std::exp(-row * row / sigma2) + std::exp(-column * column / sigma2) + 1);
    CHECK(t.output("logits")[i] == Approx(want).epsilon(1e-4));
  }
}

TEST_CASE("the crop CNN equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = 2, p.channels = 3, p.dtype = dtype;
  p.size = {31, 44};
  Trial t = make_trial("oat", p, {{"with_cnn", true}, {"rows", 1}, {"cols", 2}, {"d_model", 20}});
  REQUIRE(t.instance->inputs().at("crop").shape() == Shape{2, 3, 31, 44, 3});
  check_trial(t, 8);
}

TEST_CASE("oat counts as its card counts") {
  Context ctx(cpu_backend(), 1);
  const auto form = [&](int64_t rows, int64_t cols) {
    const Problem p = scan_problem(1, 512, 4, 10);
    const ParamMap params{{"rows", rows}, {"cols", cols}};
    return find_method("oat").make(ctx, p, params_of("oat", p, params))->cost();
  };
  // Encoder, decoder and object attention in M: the card's table.
  CHECK(static_cast<double>(form(6, 14).published_macs) / 1e6 == Approx(564.4 + 266.0 + 50.7).margin(0.15));
  CHECK(static_cast<double>(form(3, 9).published_macs) / 1e6 == Approx(179.4 + 144.2 + 20.2).margin(0.15));
  CHECK(static_cast<double>(form(2, 11).published_macs) / 1e6 == Approx(146.9 + 133.5 + 17.5).margin(0.15));
  CHECK(form(6, 14).parameters == 6'311'936 + 10'518'528 + 1'050'627);
  Problem p;
  p.kind = ProblemKind::image;
  p.size = {150, 93};
  const ClosedForm cnn =
      find_method("oat")
          .make(ctx, p, params_of("oat", p, {{"with_cnn", true}, {"rows", 1}, {"cols", 1}}))
          ->cost();
  CHECK(cnn.parameters == 374'752);
  CHECK(cnn.published_macs == 2 * (146 * 89 * 75 * 16 + 27 * 15 * 144 * 32 + 1440 * 256));
}

TEST_CASE("oat refuses what does not fit, naming it") {
  const auto refuses = [](const Problem& p, const ParamMap& params, const std::string& word) {
    CHECK_THROWS_AS(make_trial("oat", p, params), UsageError);
    CHECK_THROWS_WITH(make_trial("oat", p, params), ContainsSubstring(word));
  };
  const Problem p = scan_problem(1, 24, 4, 3);
  refuses(p, small({{"d_model", 32}}), "differs from problem.channels 24");
  refuses(scan_problem(1, 25, 5, 3), small({{"d_model", 25}}), "odd");
  refuses(scan_problem(1, 24, 0, 3), small({{"num_heads", 5}}), "not divisible by num_heads 5");
  refuses(p, small({{"decode", "greedy"}}), "starts from BOS alone");
  refuses(p, small({{"with_cnn", true}}), "problem.kind is image");
  // A table with fewer columns than rows cannot have the cosines.
  Trial wide = make_trial("oat", scan_problem(1, 24, 4, 2), small({{"cols", 9}}));
  CHECK_THROWS_WITH(wide.instance->prepare(*wide.ctx), ContainsSubstring("give Q"));
  Trial t = make_trial("oat", scan_problem(1, 24, 4, 1), small());
  rebind(t, {{"pos_tgt", cells(*t.ctx, {1, 1, 3}, {0, 4, 0})}});
  CHECK_THROWS_WITH(t.instance->prepare(*t.ctx), ContainsSubstring("pos_tgt of token 0 holds 4"));
}
