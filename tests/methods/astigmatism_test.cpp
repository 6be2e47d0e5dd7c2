// Attention distance, refinement and alignment loss against the reference, and the card's reference values
// and degenerate cases.
#include <cmath>
#include <filesystem>
#include <tuple>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem grid(int64_t batch, int64_t channels, int64_t heads, int64_t h, int64_t w, DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.channels = channels;
  p.heads = heads;
  p.grid = {h, w};
  p.dtype = dtype;
  return p;
}

Value::List scales(std::vector<std::pair<int64_t, int64_t>> list) {
  Value::List v;
  for (const auto& [h, w] : list) v.push_back(Value::List{h, w});
  return v;
}

ParamMap small(ParamMap more = {}) {
  more.emplace("num_classes", 4);
  more.emplace("scales", scales({{5, 7}, {3, 4}}));
  more.emplace("num_background_texts", 6);
  more.emplace("tsa_dim", 5);
  return more;
}

/// The trial with maps of attention given by a function.
Trial with_map(const Problem& p, const ParamMap& given,
               const std::function<double(int64_t i, int64_t j)>& f) {
  Trial t = make_trial("astigmatism", p, small(given));
  const Shape shape = t.instance->inputs().at("A").shape();
  std::vector<double> a;
  for (int64_t h = 0; h < shape[0]; ++h)
    for (int64_t i = 0; i < shape[1]; ++i)
      for (int64_t j = 0; j < shape[2]; ++j) a.push_back(f(i, j));
  rebind(t, {{"A", host_tensor(*t.ctx, shape, a)}});
  t.run();
  return t;
}

}  // namespace

TEST_CASE(
    "astigmatism: dtypes, masks, units and prefixes against the reference, formula equal to the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string unit = GENERATE("tokens", "pixels", "diagonal"), unmasked = GENERATE("zero", "pass");
  for (int prefix : {0, 2}) {
    Trial t = make_trial("astigmatism", grid(2, 9, 3, 4, 5, dtype),
                         small({{"distance_unit", unit},
                                {"unmasked", unmasked},
                                {"prefix_tokens", prefix},
                                {"tau_fg", 0.6},
                                {"tau_bg", 0.4},
                                {"temperature", 0.3}}));
    check_trial(t, 2);
    double fg = 0, bg = 0;
    for (double v : t.output("M_fg_0").data) fg += v;
    for (double v : t.output("M_bg_0").data) bg += v;
    CHECK(fg > 0);
    CHECK(bg > 0);
    CHECK(fg + bg < 140);
  }
}

TEST_CASE("astigmatism: uniform attention has the card's distances, the identity none") {
  const std::vector<std::tuple<int64_t, double, double>> known{{2, 0.853553, 0.603553},
                                                               {7, 3.609465, 0.425380},
                                                               {14, 7.280764, 0.396021},
                                                               {16, 8.326075, 0.392495},
                                                               {24, 12.502999, 0.384389}};
  for (const auto& [g, tokens, diagonal] : known) {
    const auto n = static_cast<double>(g * g);
    const Trial t = with_map(grid(1, 3, 1, g, g), {}, [&](int64_t, int64_t) { return 1 / n; });
    CHECK(t.output("d_head")[0] == Approx(tokens).epsilon(1e-6));
    const Trial u = with_map(grid(1, 3, 1, g, g), {{"distance_unit", "diagonal"}},
                             [&](int64_t, int64_t) { return 1 / n; });
    CHECK(u.output("d_layer")[0] == Approx(diagonal).epsilon(2e-6));
  }
  const Problem p = grid(1, 3, 2, 4, 6);
  const Trial identity = with_map(p, {}, [](int64_t i, int64_t j) { return i == j ? 1.0 : 0.0; });
  CHECK(identity.output("d_head").data == std::vector<double>{0, 0});
  const RefTensor groups = identity.output("groups");
  CHECK(groups.data == std::vector<double>{0, 0, 1, 0, 0, 0, 1, 0});
  // All on key 8 = (1, 2): the mean distance to it.
  const Trial one = with_map(p, {{"distance_unit", "pixels"}, {"patch_stride", 8}},
                             [](int64_t, int64_t j) { return j == 8 ? 1.0 : 0.0; });
  double mean = 0;
  for (int64_t i = 0; i < 24; ++i)
    mean += std::hypot(static_cast<double>(i / 6 - 1), static_cast<double>(i % 6 - 2)) / 24;
  CHECK(one.output("d_layer")[0] == Approx(8 * mean).epsilon(1e-6));
  // Linear in the map.
  const auto a = [](int64_t i, int64_t j) { return (1 + static_cast<double>((i * 7 + j * 3) % 5)) / 72; };
  const auto b = [](int64_t i, int64_t j) { return i == 23 - j ? 1.0 : 0.0; };
  const double da = with_map(p, {}, a).output("d_layer")[0], db = with_map(p, {}, b).output("d_layer")[0],
               dm = with_map(p, {}, [&](int64_t i, int64_t j) {
                      return 0.3 * a(i, j) + 0.7 * b(i, j);
                    }).output("d_layer")[0];
  CHECK(dm == Approx(0.3 * da + 0.7 * db).epsilon(1e-6));
}

TEST_CASE("astigmatism: groups of a foreground query sum to its mass") {
  Trial t = make_trial("astigmatism", grid(1, 3, 4, 6, 8), small({{"prefix_tokens", 1}}));
  t.run();
  const RefTensor g = t.output("groups");
  for (int64_t h = 0; h < 4; ++h) {
    CHECK(g[4 * h] + g[4 * h + 1] + g[4 * h + 2] + g[4 * h + 3] == Approx(1).epsilon(1e-5));
    for (int64_t i = 0; i < 4; ++i) CHECK(g[4 * h + i] > 0);
  }
  const Tensor none = t.ctx->allocate(DType::i32, {6, 8});
  std::fill(none.data<int32_t>(), none.data<int32_t>() + 48, 0);
  rebind(t, {{"instance_mask", none}});
  check_trial(t, 2);
  for (double v : t.output("groups").data) CHECK(v == 0);
}

TEST_CASE("astigmatism: thresholds that let nothing or everything through") {
  const Problem p = grid(2, 6, 1, 2, 2);
  const auto run = [&](const ParamMap& given) {
    Trial t = make_trial("astigmatism", p, small(given));
    check_trial(t, 2);
    return t;
  };
  const Trial nothing = run({{"tau_fg", 1.01}, {"tau_bg", 1.01}}),
              pass = run({{"tau_fg", 1.01}, {"tau_bg", 1.01}, {"unmasked", "pass"}}),
              once = run({{"tau_fg", -1.01}, {"gamma_fg", 0.0}, {"tau_bg", 1.01}}),
              twice = run({{"tau_fg", -1.01}, {"tau_bg", -1.01}, {"gamma_fg", 0.0}, {"gamma_bg", 0.0}});
  const RefTensor f = to_reference(nothing.instance->inputs().at("F_0"));
  CHECK(pass.output("F_enh_0").data == f.data);
  CHECK(once.output("F_enh_0").data == f.data);
  const RefTensor zero = nothing.output("F_enh_0"), two = twice.output("F_enh_0");
  for (int64_t i = 0; i < f.numel(); ++i) {
    CHECK(zero[i] == 0);
    CHECK(two[i] == 2 * f[i]);
  }
}

TEST_CASE("astigmatism: one class, a sharp or flat softmax, prototypes as features, scaled features") {
  const Problem p = grid(1, 6, 1, 2, 2);
  const auto make = [&](const ParamMap& given) { return make_trial("astigmatism", p, small(given)); };
  Trial one = make({{"num_classes", 1}});
  check_trial(one, 2);
  for (double v : one.output("w_0").data) CHECK(v == 1);
  Trial flat = make({{"temperature", 1e6}});
  flat.run();
  for (double v : flat.output("w_1").data) CHECK(v == Approx(0.25).epsilon(1e-5));
  Trial sharp = make({{"temperature", 1e-6}});
  sharp.run();
  for (double v : sharp.output("w_1").data) CHECK((v < 1e-6 || v > 1 - 1e-6));
  Trial same = make({});
  const RefTensor fg = to_reference(same.instance->inputs().at("P_fg"));
  std::vector<double> f;
  for (int64_t c = 0; c < 6; ++c)
    for (int64_t i = 0; i < 35; ++i) f.push_back(fg[(2 * 2 + 0) * 6 + c]);
  rebind(same, {{"F_0", host_tensor(*same.ctx, {1, 6, 5, 7}, f)}});
  check_trial(same, 2);
  for (int64_t i = 0; i < 35; ++i) {
    CHECK(same.output("sim_0")[i * 4 + 2] == Approx(1).epsilon(1e-6));
    CHECK(same.output("M_fg_0")[i] == 1);
  }
  Trial base = make({}), scaled = make({});
  RefTensor g = to_reference(base.instance->inputs().at("F_0"));
  for (double& v : g.data) v *= 4;
  rebind(scaled, {{"F_0", host_tensor(*scaled.ctx, {1, 6, 5, 7}, g.data)}});
  base.run();
  scaled.run();
  for (const char* name : {"M_fg_0", "M_bg_0", "w_0"})
    CHECK(base.output(name).data == scaled.output(name).data);
}

TEST_CASE("astigmatism: a zero prototype is an excluded class, and zero features have no direction") {
  Trial t = make_trial("astigmatism", grid(1, 6, 1, 2, 2), small({{"tau_fg", -1.01}, {"tau_bg", -1.01}}));
  RefTensor fg = to_reference(t.instance->inputs().at("P_fg"));
  for (int64_t s = 0; s < 2; ++s)
    for (int64_t c = 0; c < 6; ++c) fg[(1 * 2 + s) * 6 + c] = 0;
  rebind(t, {{"P_fg", host_tensor(*t.ctx, {4, 2, 6}, fg.data)},
             {"F_1", host_tensor(*t.ctx, {1, 6, 3, 4}, std::vector<double>(72, 0.0))}});
  check_trial(t, 2);
  for (int64_t i = 0; i < 35; ++i) {
    CHECK(t.output("w_0")[i * 4 + 1] == 0);
    CHECK(t.output("sim_0")[i * 4 + 1] == 0);
  }
  for (double v : t.output("sim_1").data) CHECK(v == 0);
  // No class at all.
  rebind(t, {{"P_fg", host_tensor(*t.ctx, {4, 2, 6}, std::vector<double>(48, 0.0))}});
  check_trial(t, 2);
  for (double v : t.output("M_fg_0").data) CHECK(v == 0);
  for (double v : t.output("w_0").data) CHECK(v == 0);
}

TEST_CASE("astigmatism: alignment of one text is perfect, of equal similarities ln n") {
  Trial one = make_trial("astigmatism", grid(1, 6, 1, 2, 2), small({{"num_background_texts", 1}}));
  check_trial(one, 2);
  CHECK(one.output("tsa_loss")[0] == Approx(0).margin(1e-6));
  Trial t = make_trial("astigmatism", grid(1, 6, 1, 2, 2), small({}));
  rebind(t, {{"Vb", host_tensor(*t.ctx, {6, 6}, std::vector<double>(36, 0.5))},
             {"Tb", host_tensor(*t.ctx, {6, 6}, std::vector<double>(36, -0.2))}});
  t.run();
  CHECK(t.output("tsa_loss")[0] == Approx(std::log(6.0)).epsilon(1e-5));
}

TEST_CASE("astigmatism: prototypes from support boxes, and a file with some of the parts") {
  const std::string path =
      (std::filesystem::temp_directory_path() / "attnbench_support.safetensors").string();
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  Context host(cpu_backend(), 1);
  TensorMap file;
  const auto add = [&](const std::string& name, const Shape& shape, double phase) {
    std::vector<double> v(static_cast<size_t>(shape.numel()));
    for (size_t i = 0; i < v.size(); ++i) v[i] = std::sin(1.7 * static_cast<double>(i) + phase);
    file[name] = host_tensor(host, shape, v);
  };
  add("F_0", {2, 6, 5, 7}, 0);
  add("F_1", {2, 6, 3, 4}, 1);
  add("support_0", {2, 6, 5, 7}, 2);
  add("support_1", {2, 6, 3, 4}, 3);
  // Two boxes of class 0, one of them within the other; class 1 in both images; class 2 too small for any
  // centre.
  file["boxes"] =
      host_tensor(host, {5, 6}, {0,   0, 0.1, 0.1, 0.7, 0.6, 0, 0,   0.2, 0.2, 0.5, 0.5,  0,    1,    0.5,
                                 0.5, 1, 1,   1,   1,   0,   0, 0.4, 0.9, 1,   2,   0.51, 0.51, 0.52, 0.52});
  write_safetensors(path, file);
  Problem p = grid(2, 6, 1, 2, 2, dtype);
  p.inputs.file = path;
  Trial t = make_trial("astigmatism", p, small({{"tau_fg", 0.2}, {"tau_bg", 0.1}}));
  check_trial(t, 2);
  CHECK_FALSE(t.instance->outputs().contains("d_head"));
  CHECK_FALSE(t.instance->outputs().contains("tsa_S"));
  for (int64_t c = 0; c < 12; ++c) CHECK(t.output("P_fg")[2 * 12 + c] == 0);
  file["boxes"] = host_tensor(host, {1, 6}, {2, 0, 0, 0, 1, 1});
  write_safetensors(path, file);
  Trial bad = make_trial("astigmatism", p, small());
  CHECK_THROWS_WITH(bad.run(), ContainsSubstring("'boxes' row 0"));
  std::filesystem::remove(path);
}

TEST_CASE("astigmatism says what it cannot do") {
  const Problem p = grid(1, 6, 2, 3, 3);
  const auto make = [](const Problem& q, const ParamMap& given) {
    return make_trial("astigmatism", q, small(given));
  };
  CHECK_NOTHROW(make(p, {}));
  CHECK_THROWS_WITH(make(p, {{"scales", Value::List{3, 4}}}), ContainsSubstring("[h, w] is wanted"));
  CHECK_THROWS_WITH(make(p, {{"temperature", 0.0}}), ContainsSubstring("temperature"));
  CHECK_THROWS_AS(make(p, {{"tau_fg", 1.5}}), UsageError);
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {}), Unsupported);
}
