// FreeSwim: its reference by hand, every mode against the reference, the card's degenerate cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem video(int64_t t, int64_t h, int64_t w, int64_t heads, int64_t d, DType dtype = DType::f32,
              int64_t paths = 2) {
  Problem p;
  p.kind = ProblemKind::video;
  p.batch = paths;
  p.grid = {t, h, w};
  p.heads = heads;
  p.head_dim = d;
  p.dtype = dtype;
  return p;
}

Trial swim(const Problem& p, ParamMap given) {
  given.try_emplace("half_height", 2);
  given.try_emplace("half_width", 3);
  given.try_emplace("text_tokens", 7);
  return make_trial("freeswim", p, given);
}

/// Keys that query (h, w) of frame 0 sees in the reference: equal scores, identity values.
std::vector<int64_t> seen(int64_t height, int64_t width, int64_t query, ParamMap given) {
  const int64_t n = height * width;
  const Problem p = video(1, height, width, 1, n);
  given["text_tokens"] = 1;
  given["mode"] = "window_only";
  RefTensor zero({2, n, 1, n}), v({2, n, 1, n}), text({1, 1, 1, n});
  for (int64_t j = 0; j < n; ++j) v[j * n + j] = v[(n + j) * n + j] = 1;
  const RefTensor o = find_reference("freeswim")(
                          p, params_of("freeswim", p, given),
                          {{"q", zero}, {"k", zero}, {"v", v}, {"qc", zero}, {"kc", text}, {"vc", text}}, {})
                          .at("o");
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < n; ++j)
    if (o[query * n + j] > 0) keys.push_back(j);
  return keys;
}

/// [N, H, D] of a path (and step, pass) of an output.
std::vector<double> part(const RefTensor& t, int64_t index) {
  const size_t r = t.shape.size();
  const int64_t size = t.dim(r - 1) * t.dim(r - 2) * t.dim(r - 3);
  return {t.data.begin() + index * size, t.data.begin() + (index + 1) * size};
}

}  // namespace

TEST_CASE("the inward window, by hand") {
  const ParamMap one{{"half_height", 0}, {"half_width", 2}};
  // A row of 7: queries 0 and 6 get five keys, too.
  CHECK(seen(1, 7, 0, one) == std::vector<int64_t>{0, 1, 2, 3, 4});
  CHECK(seen(1, 7, 3, one) == std::vector<int64_t>{1, 2, 3, 4, 5});
  CHECK(seen(1, 7, 6, one) == std::vector<int64_t>{2, 3, 4, 5, 6});
  ParamMap cut = one;
  cut["inward"] = false;
  CHECK(seen(1, 7, 0, cut) == std::vector<int64_t>{0, 1, 2});
  CHECK(seen(1, 7, 5, cut) == std::vector<int64_t>{3, 4, 5, 6});
  // Shorter than the window: everything, or with cut windows what is near.
  CHECK(seen(1, 4, 0, one) == std::vector<int64_t>{0, 1, 2, 3});
  CHECK(seen(1, 4, 0, cut) == std::vector<int64_t>{0, 1, 2});
  // Both axes: query (0, 3) of 4 x 4.
  CHECK(seen(4, 4, 3, {{"half_height", 1}, {"half_width", 1}}) ==
        std::vector<int64_t>{1, 2, 3, 5, 6, 7, 9, 10, 11});
}

TEST_CASE("freeswim agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool inward = GENERATE(true, false);
  SECTION("two paths, sizes that divide nothing") {
    Trial t = swim(video(3, 11, 13, 2, 24, dtype), {{"inward", inward}});
    check_trial(t, 3);
  }
  SECTION("a window longer than its axes") {
    Trial t =
        swim(video(2, 4, 13, 1, 8, dtype), {{"inward", inward}, {"half_height", 3}, {"half_width", 40}});
    check_trial(t, 3);
  }
  SECTION("the cache over steps and passes") {
    Trial t = swim(video(2, 7, 9, 2, 8, dtype), {{"inward", inward},
                                                 {"mode", "cache"},
                                                 {"num_steps", 5},
                                                 {"cache_steps", GENERATE(1, 2, 3, 7)},
                                                 {"guidance", GENERATE(true, false)}});
    check_trial(t, 3);
  }
  SECTION("ablations, any number of paths") {
    Trial t = swim(video(2, 7, 9, 2, 8, dtype, GENERATE(1, 3)),
                   {{"inward", inward}, {"mode", GENERATE("window_only", "full_only")}});
    check_trial(t, 3);
  }
  SECTION("one token") {
    Trial t = swim(video(1, 1, 1, 1, 8, dtype), {{"inward", inward}, {"text_tokens", 1}});
    check_trial(t, 3);
  }
}

TEST_CASE("the card's counts of pairs and ratios of work") {
  // Grid 21 x 67 x 120: N 168840, Wd 34503, rho 0.2044; 4.89 times less than full.
  Context ctx(cpu_backend(), 1);
  Problem p = video(21, 67, 120, 1, 1);
  p.batch = 1;
  const Method& m = find_method("freeswim");
  const auto macs = [&](const char* mode) {
    return static_cast<double>(
        m.make(ctx, p, resolve_params("freeswim", m.info().params, {{"mode", mode}, {"text_tokens", 1}}, p))
            ->cost()
            .published_macs);
  };
  const double n = 168840, wd = 34503, text = 2 * n;
  CHECK(macs("window_only") == 2 * n * wd + text);
  CHECK(macs("full_only") == 2 * n * n + text);
  CHECK(wd / n == Approx(0.2044).epsilon(1e-3));
}

TEST_CASE("freeswim's degenerate cases") {
  const double same = tolerance(DType::f32, 0);
  SECTION("1: a window over the grid is the full path") {
    Trial t = swim(video(2, 5, 6, 2, 8), {{"half_height", 2}, {"half_width", 3}});
    TensorMap equal;
    for (const char* name : {"q", "k", "v", "qc"}) {
      const Tensor x = t.instance->inputs().at(name);
      copy(*t.ctx, x.slice(0, 0, 1), x.slice(0, 1, 2));
      equal[name] = x;
    }
    rebind(t, equal);
    t.run();
    const RefTensor o = t.output("o"), c = t.output("c");
    double worst = 0;
    for (size_t i = 0; i < part(o, 0).size(); ++i)
      worst = std::max(worst, std::abs(part(o, 0)[i] - part(o, 1)[i]));
    CHECK(worst < 1e-5);
    CHECK(part(c, 0) == part(c, 1));
  }
  SECTION("3: no extent and one frame: every site is itself") {
    Trial t = swim(video(1, 5, 7, 2, 8), {{"half_height", 0}, {"half_width", 0}});
    t.run();
    const std::vector<double> want = part(to_reference(t.instance->inputs().at("v")), 0);
    const std::vector<double> got = part(t.output("o"), 0);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
    CHECK(worst < 1e-6);
  }
  SECTION("4: inside, inward and cut windows agree; at the border they do not") {
    const Problem p = video(2, 9, 11, 1, 8);
    Trial a = swim(p, {}), b = swim(p, {{"inward", false}});
    a.run();
    b.run();
    const RefTensor x = a.output("o"), y = b.output("o");
    double inside = 0, border = 0;
    for (int64_t i = 0; i < 2 * 9 * 11; ++i) {
      const int64_t h = i / 11 % 9, w = i % 11;
      double& worst = h >= 2 && h < 7 && w >= 3 && w < 8 ? inside : border;
      for (int64_t c = 0; c < 8; ++c) worst = std::max(worst, std::abs(x[i * 8 + c] - y[i * 8 + c]));
    }
    CHECK(inside < 1e-5);
    CHECK(border > 1e-2);
  }
  SECTION("5: full_only without the scale is the unmodified layer") {
    Trial t = swim(video(2, 3, 4, 2, 8), {{"mode", "full_only"}, {"log_scale", false}});
    t.run();
    Trial dense = make_trial("dense", heads_problem(2, 2, 2, 24, 24, 8, false));
    TensorMap parts;
    for (const char* name : {"q", "k", "v"}) {
      const Tensor to = dense.ctx->allocate(DType::f32, {2, 2, 24, 8});
      copy(*dense.ctx, t.instance->inputs().at(name).transpose(1, 2), to);
      parts[name] = to;
    }
    rebind(dense, parts);
    dense.run();
    const Tensor got = t.ctx->allocate(DType::f32, {2, 2, 24, 8});
    copy(*t.ctx, t.instance->outputs().at("o").transpose(1, 2), got);
    CHECK(compare(to_reference(got), dense.output("o")).relative_l2 < same);
  }
  SECTION("6: cache_steps 1: the conditional pass is that without a cache, at every step") {
    Trial cached = swim(video(2, 4, 8, 1, 8), {{"mode", "cache"}, {"cache_steps", 1}, {"num_steps", 3}});
    cached.run();
    for (int64_t step = 0; step < 3; ++step) {
      Trial plain = swim(video(2, 4, 8, 1, 8), {});
      TensorMap parts;
      for (const char* name : {"q", "k", "v", "qc"})
        parts[name] = cached.instance->inputs().at(name).select(0, step).select(0, 0);
      for (const char* name : {"kc", "vc"}) parts[name] = cached.instance->inputs().at(name).select(0, 0);
      rebind(plain, parts);
      plain.run();
      for (const char* name : {"o", "c"})
        for (int64_t path = 0; path < 2; ++path)
          CHECK(part(cached.output(name), step * 4 + path) == part(plain.output(name), path));
    }
  }
  SECTION("7: permuting frames of k and v changes nothing") {
    Trial t = swim(video(3, 4, 9, 1, 8), {});
    t.run();
    const RefTensor before = t.output("o");
    TensorMap moved;
    for (const char* name : {"k", "v"}) {
      const Tensor x = t.instance->inputs().at(name), y = t.ctx->allocate_like(x);
      for (int64_t f = 0; f < 3; ++f)
        copy(*t.ctx, x.slice(1, f * 36, f * 36 + 36), y.slice(1, (f + 1) % 3 * 36, (f + 1) % 3 * 36 + 36));
      moved[name] = y;
    }
    rebind(t, moved);
    t.run();
    CHECK(compare(t.output("o"), before).relative_l2 < same);
  }
}

TEST_CASE("the scale of both paths") {
  // sqrt(ln 3120 / ln 1560) = 1.046076 (card).
  const Problem p = video(1, 3, 3, 1, 4);
  Trial t = swim(p, {});
  Trial plain = swim(p, {{"log_scale", false}});
  TensorMap scaled;
  const Tensor from = t.instance->inputs().at("q"), to = t.ctx->allocate_like(from);
  for (int64_t i = 0; i < from.numel(); ++i) to.data<float>()[i] = from.data<float>()[i] * 1.046076f;
  TensorMap inputs = t.instance->inputs();
  inputs["q"] = to;
  rebind(plain, inputs);
  t.run();
  plain.run();
  CHECK(compare(t.output("o"), plain.output("o")).relative_l2 < 1e-5);
}

TEST_CASE("freeswim rows, entropies and pairs describe the same weights, by path") {
  Trial t = swim(video(2, 7, 9, 2, 8), {{"inward", GENERATE(true, false)}});
  check_rows_and_stats(t);
}

TEST_CASE("freeswim says what it cannot do") {
  CHECK_THROWS_WITH(swim(video(2, 7, 9, 2, 8, DType::f32, 3), {}), ContainsSubstring("batch 2, not 3"));
  Problem causal = video(2, 7, 9, 2, 8);
  causal.causal = true;
  CHECK_THROWS_AS(swim(causal, {}), Unsupported);
  Problem shared = video(2, 7, 9, 2, 8);
  shared.kv_heads = 1;
  CHECK_THROWS_AS(swim(shared, {}), Unsupported);
  CHECK_THROWS_WITH(swim(video(2, 7, 9, 2, 8), {{"grid", Value::List{Value(2), Value(7), Value(8)}}}),
                    ContainsSubstring("grid"));
}
