// Superlinear attention: its reference by hand, every option of the method against it, the card's degenerate
// cases, and coverage: that every key can be reached.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// Outputs against the reference: places exactly, the rest within `roundings` of its type.
void check(Trial& t, double roundings = 4) {
  t.run();
  const RefMap want = t.reference();
  const TensorMap outputs = t.instance->outputs();
  REQUIRE(want.size() == outputs.size());
  for (const auto& [name, tensor] : outputs) {
    REQUIRE(want.contains(name));
    REQUIRE(to_reference(tensor).shape == want.at(name).shape);
    const Comparison c = compare(to_reference(tensor), want.at(name));
    INFO(t.problem.str() << ", " << name << ": " << c.worst);
    CHECK(c.relative_l2 <= (is_float(tensor.dtype()) ? tolerance(tensor.dtype(), roundings) : 0));
  }
  CHECK(t.ctx->cost().total().matmul > 0);
}

Tensor host_ints(Context& ctx, const Shape& shape, const std::vector<double>& values) {
  const Tensor t = ctx.allocate(DType::i32, shape);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<int32_t>()[i] = static_cast<int32_t>(values[static_cast<size_t>(i)]);
  return t;
}

/// Places of the queries other than the last ones.
void place(Trial& t, const std::vector<double>& pos) {
  rebind(t, {{"pos", host_ints(*t.ctx, {static_cast<int64_t>(pos.size())}, pos)}});
}

RefTensor dense_of(const Trial& t) {
  Problem p = t.problem;
  Trial dense = make_trial("dense", p);
  TensorMap given;
  for (const char* name : {"q", "k", "v"}) given[name] = t.instance->inputs().at(name);
  rebind(dense, given);
  dense.run();
  return dense.output("o");
}

}  // namespace

TEST_CASE("the superlinear reference, by hand") {
  // Keys 0..4, one query at place 4: stripes 1 and 4 are keys 4 and 1.
  const Problem p = heads_problem(1, 1, 1, 1, 5, 1, true);
  const RefMap in{{"qs", ref_tensor({1, 1, 1, 1}, {1})},
                  {"q", ref_tensor({1, 1, 1, 1}, {0})},
                  {"k", ref_tensor({1, 1, 5, 1}, {9, 2, 9, 9, 3})},
                  {"v", ref_tensor({1, 1, 5, 1}, {1, 2, 4, 8, 16})},
                  {"pos", ref_tensor({1}, {4})}};
  const RefMap out = find_reference("superlinear")(
      p, params_of("superlinear", p, {{"num_spans", 3}, {"backward_factor", 0.3}}), in, {});
  CHECK(out.at("anchors").data == std::vector<double>{4, 1, -1});
  CHECK(out.at("scores").data == std::vector<double>{3, 2, -1e9});
  CHECK(out.at("span_start").data == std::vector<double>{3, 0, -1});  // ceil(0.3 sqrt(5)) = 1
  CHECK(out.at("span_end").data == std::vector<double>{4, 1, -1});
  const double g = 1 / (1 + std::exp(-1.0));
  CHECK(out.at("out")[0] == Approx(g * 12 + (1 - g) * 1.5));
  // A window of three (a = 1, e(2) = 4): keys 2..4 join every branch; the one anchor left is key 1.
  const RefMap windowed = find_reference("superlinear")(
      p, params_of("superlinear", p, {{"sw_index", 1}, {"backward_factor", 0.3}, {"forward_factor", 2.0}}),
      in, {});
  CHECK(windowed.at("anchors").data == std::vector<double>{1, -1, -1});
  CHECK(windowed.at("span_end").data == std::vector<double>{1, -1, -1});
  CHECK(windowed.at("out")[0] == Approx((1 + 2 + 4 + 8 + 16) / 5.0));
}

TEST_CASE("superlinear attention agrees with its reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("defaults, grouped heads, batch 2") {
    Trial t = make_trial("superlinear", heads_problem(2, 4, 2, 150, 150, 16, true, dtype));
    check(t);
  }
  SECTION("window, spans both ways, queries at the end") {
    const int64_t n = GENERATE(1, 67);
    Trial t =
        make_trial("superlinear", heads_problem(1, 3, 1, n, 211, 20, true, dtype),
                   {{"sw_index", GENERATE(1, 4)}, {"forward_factor", 1.0}, {"num_spans", GENERATE(1, 2, 5)}});
    check(t);
  }
  SECTION("other powers") {
    const double power = GENERATE(0.55, 0.75, 0.25, 1.0 / 3);
    Trial t = make_trial("superlinear", heads_problem(1, 2, 2, 130, 170, 9, true, dtype),
                         {{"search_power", power},
                          {"span_power", 1 - power},
                          {"sw_index", 2},
                          {"backward_factor", 1.3},
                          {"search_scale", 0.37}});
    check(t);
  }
  SECTION("padding keys, before and among the others, and scattered queries") {
    Trial t = make_trial("superlinear", heads_problem(2, 2, 1, 90, 120, 8, true, dtype),
                         {{"sw_index", GENERATE(0, 2)}, {"forward_factor", GENERATE(0.0, 1.0)}});
    std::vector<double> mask, pos;
    for (int i = 0; i < 240; ++i) mask.push_back(i < 40 || (i > 120 && i % 9 == 4) ? 0 : 1);
    for (int i = 0; i < 90; ++i) pos.push_back(i + i / 3);
    rebind(t, {{"key_mask", host_ints(*t.ctx, {2, 120}, mask)}});
    if (GENERATE(true, false)) place(t, pos);
    check(t);
  }
  SECTION("search queries by projection") {
    Problem p = heads_problem(2, 3, 1, 70, 100, 16, true, dtype);
    p.channels = GENERATE(0, 24);
    Trial t = make_trial("superlinear", p, {{"with_projection", true}, {"sw_index", 1}});
    CHECK(t.instance->cost().parameters == 48 * (p.channels ? 24 : 48));
    check(t);
  }
  SECTION("dense below") {
    Trial t = make_trial("superlinear", heads_problem(1, 2, 1, 40, 50, 8, true, dtype),
                         {{"force_dense_below", GENERATE(50, 51)}});
    check(t);
  }
}

TEST_CASE("superlinear attention's degenerate cases") {
  const double same = tolerance(DType::f32, 0);
  SECTION("1, 2: a window of everything, spans of everything, or asked for: dense attention") {
    const ParamMap given = GENERATE(ParamMap{{"sw_index", 9}}, ParamMap{{"sw_index", 200}},
                                    ParamMap{{"backward_factor", 10.0}, {"forward_factor", 10.0}},
                                    ParamMap{{"force_dense_below", 97}});
    const Problem p = heads_problem(2, 4, 2, GENERATE(96, 5), 96, 8, true);
    Trial t = make_trial("superlinear", p, given);
    t.run();
    CHECK(compare(t.output("out"), dense_of(t)).relative_l2 < same);
  }
  SECTION("4: no search query: the farthest anchors, evenly mixed") {
    Trial t = make_trial("superlinear", heads_problem(1, 1, 1, 1, 100, 8, true));
    rebind(t, {{"qs", host_tensor(*t.ctx, {1, 1, 1, 8}, std::vector<double>(8, 0))}});
    t.run();
    CHECK(t.output("anchors").data == std::vector<double>{0, 19, 36});
    CHECK(t.output("scores").data == std::vector<double>{0, 0, 0});
    CHECK(compare(t.output("out"), t.reference().at("out")).relative_l2 < same);
  }
  SECTION("5: the first query sees itself") {
    Trial t =
        make_trial("superlinear", heads_problem(1, 2, 1, 30, 30, 8, true), {{"num_spans", GENERATE(1, 4)}});
    t.run();
    const RefTensor o = t.output("out"), v = to_reference(t.instance->inputs().at("v"));
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t x = 0; x < 8; ++x) CHECK(o[h * 240 + x] == Approx(v[x]).epsilon(1e-6));
  }
  SECTION("7: tiny reach, all anchors: two keys a span") {
    Trial t = make_trial("superlinear", heads_problem(1, 1, 1, 40, 40, 8, true),
                         {{"backward_factor", 1e-3}, {"num_spans", 6}});
    t.run();
    const RefTensor c = t.output("anchors"), from = t.output("span_start"), to = t.output("span_end");
    for (int64_t i = 0; i < c.numel(); ++i) {
      CHECK(from[i] == (c[i] > 0 ? c[i] - 1 : c[i]));
      CHECK(to[i] == c[i]);
    }
  }
  SECTION("8: equal values are the output") {
    Trial t =
        make_trial("superlinear", heads_problem(1, 2, 2, 77, 77, 8, true), {{"sw_index", GENERATE(0, 2)}});
    rebind(t, {{"v", host_tensor(*t.ctx, {1, 2, 77, 8}, std::vector<double>(1232, 0.75))}});
    t.run();
    for (const double x : t.output("out").data) CHECK(x == Approx(0.75).epsilon(1e-5));
  }
  SECTION("9: queries in parts are the queries at once") {
    const ParamMap given{{"sw_index", GENERATE(0, 2)}, {"forward_factor", 1.0}};
    Trial all = make_trial("superlinear", heads_problem(1, 2, 1, 90, 90, 8, true), given);
    all.run();
    Trial part = make_trial("superlinear", heads_problem(1, 2, 1, 25, 90, 8, true), given);
    const RefTensor want = all.output("out");
    const auto rows = [&](const char* name) {
      const RefTensor t = to_reference(all.instance->inputs().at(name));
      std::vector<double> v;
      for (int64_t h = 0; h < 2; ++h)
        v.insert(v.end(), t.data.begin() + (h * 90 + 30) * 8, t.data.begin() + (h * 90 + 55) * 8);
      return host_tensor(*part.ctx, {1, 2, 25, 8}, v);
    };
    rebind(part, {{"q", rows("q")},
                  {"qs", rows("qs")},
                  {"k", all.instance->inputs().at("k")},
                  {"v", all.instance->inputs().at("v")}});
    std::vector<double> pos;
    for (int i = 30; i < 55; ++i) pos.push_back(i);
    place(part, pos);
    part.run();
    const RefTensor got = part.output("out");
    double worst = 0;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 200; ++i)
        worst = std::max(worst, std::abs(got[h * 200 + i] - want[(h * 90 + 30) * 8 + i]));
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("superlinear spans of all anchors cover every key, from factor 2 on") {
  // Every anchor is chosen, so that pairs() is what can be reached.
  const double factor = GENERATE(2.0, 1.5);
  const int64_t a = GENERATE(0, 3), n = 700;
  Trial t = make_trial("superlinear", heads_problem(1, 1, 1, n, n, 4, true),
                       {{"num_spans", 27}, {"backward_factor", factor}, {"sw_index", a}});
  t.run();
  const PairSet pairs = *t.instance->pairs();
  int64_t uncovered = 0;
  Intervals seen;
  for (int64_t i = 0; i < n; ++i) {
    pairs.row(0, 0, i, seen);
    int64_t keys = 0;
    for (const Interval& v : seen) keys += v.end - v.begin;
    uncovered += i + 1 - keys;
  }
  CHECK((uncovered == 0) == (factor == 2.0));
}

TEST_CASE("superlinear rows times values are the outputs, on the pairs") {
  Trial t = make_trial("superlinear", heads_problem(2, 4, 2, 50, 70, 8, true),
                       {{"sw_index", GENERATE(0, 2)}, {"forward_factor", GENERATE(0.0, 1.0)}});
  if (GENERATE(true, false)) {
    std::vector<double> mask;
    for (int i = 0; i < 140; ++i) mask.push_back(i < 30 || i % 7 == 2 ? 0 : 1);
    rebind(t, {{"key_mask", host_ints(*t.ctx, {2, 70}, mask)}});
  }
  t.run();
  const RefTensor o = t.output("out"), v = to_reference(t.instance->inputs().at("v"));
  const PairSet pairs = *t.instance->pairs();
  std::vector<float> rows;
  Intervals seen;
  double worst = 0;
  int64_t outside = 0;
  for (int64_t h = 0; h < 8; ++h) {
    REQUIRE(t.instance->rows(*t.ctx, h / 4, h % 4, 0, 50, rows));
    for (int64_t i = 0; i < 50; ++i) {
      std::vector<char> listed(70, 0);
      pairs.row(h / 4, h % 4, i, seen);
      for (const Interval& x : seen)
        for (int64_t j = x.begin; j < x.end; ++j) listed[static_cast<size_t>(j)] = 1;
      for (int64_t j = 0; j < 70; ++j)
        outside += (rows[static_cast<size_t>(i * 70 + j)] > 0) != (listed[static_cast<size_t>(j)] != 0);
      for (int64_t x = 0; x < 8; ++x) {
        double sum = 0;
        for (int64_t j = 0; j < 70; ++j)
          sum += static_cast<double>(rows[static_cast<size_t>(i * 70 + j)]) * v[(h / 2 * 70 + j) * 8 + x];
        worst = std::max(worst, std::abs(sum - o[(h * 50 + i) * 8 + x]));
      }
    }
  }
  CHECK(worst < 1e-5);
  CHECK(outside == 0);
}

TEST_CASE("superlinear says what it cannot do") {
  const Problem p = heads_problem(1, 2, 1, 20, 30, 8, true);
  CHECK_THROWS_AS(make_trial("superlinear", heads_problem(1, 2, 1, 20, 20, 8, false)), Unsupported);
  CHECK_THROWS_AS(make_trial("superlinear", heads_problem(1, 2, 1, 20, 19, 8, true)), Unsupported);
  CHECK_THROWS_WITH(make_trial("superlinear", p, {{"search_power", 1.0}}),
                    ContainsSubstring("between 0 and 1"));
  CHECK_THROWS_WITH(make_trial("superlinear", p, {{"backward_factor", 0.0}}), ContainsSubstring("above 0"));
  Trial t = make_trial("superlinear", p);
  std::vector<double> pos;
  for (int i = 0; i < 20; ++i) pos.push_back(i == 7 ? 6 : i);
  place(t, pos);
  CHECK_THROWS_WITH(t.instance->prepare(*t.ctx), ContainsSubstring("pos[7] = 6"));
}
