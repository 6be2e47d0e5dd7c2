// Routing attention: its reference by hand, every option of the method against it, the card's degenerate
// cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem layer(int64_t batch, int64_t n, int64_t channels, int64_t heads, bool causal = true,
              DType dtype = DType::f32) {
  Problem p;
  p.batch = batch;
  p.length = n;
  p.channels = channels;
  p.heads = heads;
  p.causal = causal;
  p.dtype = dtype;
  return p;
}
Problem core(int64_t batch, int64_t n, int64_t heads, int64_t d, bool causal, DType dtype = DType::f32) {
  return heads_problem(batch, heads, heads, n, n, d, causal, dtype);
}

ParamMap small(ParamMap more) {
  more.try_emplace("routing_heads", 2);
  more.try_emplace("num_clusters", 4);
  more.try_emplace("local_block", 8);
  more.try_emplace("local_flange", 16);
  return more;
}

/// Outputs against the reference: selections exactly, the rest within `roundings` of the dtype.
void check(Trial& t, double roundings = 8) {
  t.run();
  const RefMap want = t.reference();
  const TensorMap outputs = t.instance->outputs();
  REQUIRE(want.size() == outputs.size());
  for (const auto& [name, tensor] : outputs) {
    INFO(t.problem.str() << ", " << name);
    REQUIRE(want.contains(name));
    REQUIRE(to_reference(tensor).shape == want.at(name).shape);
    const Comparison c = compare(to_reference(tensor), want.at(name));
    INFO(c.worst);
    CHECK(c.relative_l2 <= (is_float(tensor.dtype()) ? tolerance(tensor.dtype(), roundings) : 0));
  }
  CHECK(t.ctx->cost().total().matmul == t.instance->cost().cost.matmul);
}

/// Gives optional tensors (relative tables) values.
void bind_tables(Trial& t) {
  TensorMap w;
  uint64_t seed = 11;
  for (const TensorSpec& s : t.instance->weight_specs()) {
    if (!s.optional) continue;
    std::vector<double> values;
    for (int64_t i = 0; i < s.shape.numel(); ++i)
      values.push_back(0.3 * random_normal(seed, stream_of(s.name), static_cast<uint64_t>(i)));
    w[s.name] = host_tensor(*t.ctx, s.shape, values, t.problem.dtype);
  }
  rebind(t, {}, w);
}

double difference(Trial& a, Trial& b) {
  a.run();
  b.run();
  return compare(a.output("out"), b.output("out")).relative_l2;
}

}  // namespace

TEST_CASE("the routing reference, by hand") {
  // Four tokens on a line, two clusters of two: centroids +1 and -1 take the largest and the smallest.
  const Problem p = core(1, 4, 1, 1, false);
  const RefTensor q = ref_tensor({1, 1, 4, 1}, {3, -1, 2, -2}),
                  v = ref_tensor({1, 1, 4, 1}, {10, 20, 30, 40});
  const RefMap w{{"mu", ref_tensor({1, 2, 1}, {1, -1})}};
  const ParamMap given{{"routing_heads", 1}, {"num_clusters", 2}, {"normalize", "none"},
                       {"shared_qk", true},  {"scale", 1e-12},    {"scatter_eps", 0.25}};
  const RefMap out = find_reference("routing_transformer")(p, params_of("routing_transformer", p, given),
                                                           {{"q", q}, {"v", v}}, w);
  CHECK(out.at("selected_q").data == std::vector<double>{0, 2, 1, 3});
  const double half = 1 / 1.25;
  for (int64_t i = 0; i < 4; ++i) CHECK(out.at("out")[i] == Approx(half * (i % 2 == 0 ? 20 : 30)));
  // Causal: token 0 and 1 see themselves alone.
  Problem c = p;
  c.causal = true;
  const RefMap causal = find_reference("routing_transformer")(c, params_of("routing_transformer", c, given),
                                                              {{"q", q}, {"v", v}}, w);
  CHECK(causal.at("out").data[0] == Approx(half * 10));
  CHECK(causal.at("out").data[1] == Approx(half * 20));
  CHECK(causal.at("out").data[2] == Approx(half * 20));
}

TEST_CASE("the routing layer agrees with its reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(true, false);
  SECTION("padded to whole blocks, head mix, batch 2") {
    Trial t = make_trial("routing_transformer", layer(2, 45, 32, 4, causal, dtype),
                         small({{"window", 12}, {"head_mix", true}}));
    check(t);
  }
  SECTION("keys of their own") {
    Trial t = make_trial("routing_transformer", layer(2, 45, 24, 3, causal, dtype),
                         small({{"shared_qk", false}, {"window", GENERATE(1, 9, 45)}}));
    check(t);
  }
  SECTION("strided clusters") {
    Trial t = make_trial("routing_transformer", layer(1, 40, 40, 5, causal, dtype),
                         small({{"cluster_strided_heads", 2}, {"window", 7}}));
    check(t);
  }
  SECTION("buckets") {
    Trial t = make_trial("routing_transformer", layer(2, 43, 32, 4, causal, dtype),
                         small({{"route", "lsh"}, {"num_clusters", GENERATE(1, 4, 5)}, {"window", 10}}));
    check(t);
  }
  SECTION("relative tables, shared and not") {
    Trial t = make_trial("routing_transformer", layer(1, 37, 40, 5, causal, dtype),
                         small({{"relative", true},
                                {"max_relative_position", GENERATE(3, 50)},
                                {"cluster_strided_heads", 1},
                                {"shared_qk", GENERATE(true, false)},
                                {"num_mem_kv", GENERATE(0, 3)},
                                {"mask_self", GENERATE(true, false)},
                                {"window", 9}}));
    bind_tables(t);
    check(t, 12);
  }
  SECTION("memory beside strided clusters, which have none") {
    Trial t = make_trial("routing_transformer", layer(2, 41, 40, 5, causal, dtype),
                         small({{"cluster_strided_heads", 2},
                                {"num_mem_kv", 2},
                                {"shared_qk", GENERATE(true, false)},
                                {"window", 7}}));
    check(t);
  }
  SECTION("centroids that are given, and more of them than rows to draw") {
    Trial t = make_trial("routing_transformer", layer(2, 45, 24, 3, causal, dtype),
                         small({{"kmeans_init_iters", 0}, {"window", 9}}));
    check(t);
    Trial few = make_trial("routing_transformer", layer(1, 3, 24, 3, causal, dtype),
                           small({{"num_clusters", 5}, {"window", 2}, {"shared_qk", true}}));
    check(few);
  }
  SECTION("local heads alone") {
    Trial t =
        make_trial("routing_transformer", layer(2, 50, 24, 3, causal, dtype), small({{"routing_heads", 0}}));
    check(t);
  }
  SECTION("one token") {
    Trial t = make_trial("routing_transformer", layer(1, 1, 16, 2, causal, dtype),
                         small({{"routing_heads", 1}, {"num_clusters", 1}}));
    check(t);
  }
}

TEST_CASE("the routing heads alone agree with the reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  const bool causal = GENERATE(true, false), shared = GENERATE(true, false);
  const char* normalize = GENERATE("layernorm", "l2", "none");
  const ParamMap common{{"routing_heads", 3},     {"num_clusters", 4},   {"window", 11},
                        {"normalize", normalize}, {"shared_qk", shared}, {"scale", 0.4}};
  SECTION("as they are") {
    Trial t = make_trial("routing_transformer", core(2, 40, 3, 8, causal, dtype), common);
    check(t);
  }
  SECTION("memory and masked selves") {
    ParamMap given = common;
    given["num_mem_kv"] = 2;
    given["mask_self"] = GENERATE(true, false);
    Trial t = make_trial("routing_transformer", core(1, 40, 3, 8, causal, dtype), given);
    check(t);
  }
}

TEST_CASE("the update of the centroids agrees with the reference") {
  Trial t = make_trial("routing_transformer", layer(2, 45, 32, 4),
                       small({{"window", 12},
                              {"update_means", true},
                              {"shared_qk", GENERATE(true, false)},
                              {"ema_decay", GENERATE(0.999, 0.5)}}));
  t.run();
  const RefMap want = t.reference();
  for (const char* name : {"mu_new", "ema_count_new", "ema_means_new", "aux_loss"}) {
    const Comparison c = compare(t.output(name), want.at(name));
    INFO(name << ": " << c.worst);
    CHECK(c.relative_l2 <= 1e-5);
  }
}

TEST_CASE("routing attention's degenerate cases") {
  const bool causal = GENERATE(true, false);
  const double same = tolerance(DType::f32, 0);
  const Problem p = core(1, 30, 2, 8, causal);
  const ParamMap plain{{"routing_heads", 2},
                       {"normalize", "none"},
                       {"shared_qk", false},
                       {"scatter_eps", 0},
                       {"kmeans_init_iters", 0}};
  const auto dense_of = [&](const Trial& t) {
    Trial dense = make_trial("dense", p);
    rebind(dense, t.instance->inputs());
    dense.run();
    return dense.output("o");
  };
  SECTION("1, 4: clusters of all tokens: dense attention, however many there are") {
    ParamMap given = plain;
    given["num_clusters"] = GENERATE(1, 3);
    given["window"] = 30;
    Trial t = make_trial("routing_transformer", p, given);
    t.run();
    CHECK(compare(t.output("out"), dense_of(t)).relative_l2 < same);
  }
  SECTION("5: clusters of one: values, weighted by how often they were chosen") {
    Trial t = make_trial("routing_transformer", p,
                         {{"routing_heads", 2}, {"num_clusters", 5}, {"window", 1}, {"shared_qk", true}});
    t.run();
    const RefTensor chosen = t.output("selected_q"), o = t.output("out"),
                    v = to_reference(t.instance->inputs().at("v"));
    double worst = 0;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 30; ++i) {
        double count = 0;
        for (int64_t c = 0; c < 5; ++c) count += chosen[h * 5 + c] == static_cast<double>(i);
        for (int64_t x = 0; x < 8; ++x)
          worst = std::max(
              worst, std::abs(o[(h * 30 + i) * 8 + x] - v[(h * 30 + i) * 8 + x] * count / (count + 0.01)));
      }
    CHECK(worst < 1e-5);
  }
  SECTION("6: equal tokens: the first are chosen by all") {
    Trial t = make_trial(
        "routing_transformer", p,
        {{"routing_heads", 2}, {"num_clusters", 3}, {"window", 4}, {"shared_qk", true}, {"scatter_eps", 0}});
    std::vector<double> one;
    for (int64_t i = 0; i < 60; ++i)
      for (int64_t x = 0; x < 8; ++x) one.push_back(static_cast<double>(x * x) - 3);
    rebind(t,
           {{"q", host_tensor(*t.ctx, {1, 2, 30, 8}, one)}, {"v", host_tensor(*t.ctx, {1, 2, 30, 8}, one)}});
    t.run();
    const RefTensor o = t.output("out");
    for (int64_t i = 0; i < 30; ++i)
      for (int64_t x = 0; x < 8; ++x)
        CHECK(o[i * 8 + x] == Approx(i < 4 ? static_cast<double>(x * x) - 3 : 0).margin(1e-5));
  }
  SECTION("7: equal centroids are one") {
    ParamMap given = plain;
    given["num_clusters"] = 1;
    given["window"] = 9;
    Trial one = make_trial("routing_transformer", p, given);
    given["num_clusters"] = 3;
    Trial three = make_trial("routing_transformer", p, given);
    const RefTensor mu = to_reference(one.instance->weights().at("mu"));
    std::vector<double> repeated;
    for (int64_t h = 0; h < 2; ++h)
      for (int c = 0; c < 3; ++c)
        for (int64_t x = 0; x < 8; ++x) repeated.push_back(mu[h * 8 + x]);
    rebind(three, one.instance->inputs(), {{"mu", host_tensor(*three.ctx, {2, 3, 8}, repeated)}});
    CHECK(difference(one, three) < same);
  }
}

TEST_CASE("routing centroids are found where none are given") {
  const Problem p = core(2, 6, 2, 8, false);
  const ParamMap given{{"routing_heads", 2}, {"normalize", "l2"}, {"shared_qk", true}, {"window", 1}};
  const auto with = [&](int64_t clusters, int64_t steps) {
    ParamMap m = given;
    m["num_clusters"] = clusters, m["kmeans_init_iters"] = steps;
    return m;
  };
  SECTION("as many as rows: each row is its own, and one step or ten change nothing") {
    // Of 12 unit rows in both batch elements each is nearest to itself; the 6 of one element are chosen by
    // their own centroids, and those of the other by the nearest.
    Trial one = make_trial("routing_transformer", p, with(12, 1)),
          ten = make_trial("routing_transformer", p, with(12, 10));
    check(one);
    check(ten);
    CHECK(one.output("out").data == ten.output("out").data);
    const RefTensor chosen = one.output("selected_q");
    for (int64_t bh = 0; bh < 4; ++bh) {
      std::vector<char> seen(6, 0);
      for (int64_t c = 0; c < 12; ++c) seen[static_cast<size_t>(chosen[bh * 12 + c])] = 1;
      CHECK(std::count(seen.begin(), seen.end(), 1) == 6);
    }
  }
  SECTION("two directions, far apart: a centre each, wherever the search starts") {
    ParamMap m = with(2, 10);
    m["window"] = 3, m["scatter_eps"] = 0, m["normalize"] = "none";
    Problem few = core(1, 6, 1, 4, false);
    m["routing_heads"] = 1;
    int64_t apart = 0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      few.seed = seed;
      Trial t = make_trial("routing_transformer", few, m);
      // Tokens 0, 2, 5 point along the first axis, the others against it.
      std::vector<double> q;
      for (int i : {1, -1, 1, -1, -1, 1})
        for (int e = 0; e < 4; ++e) q.push_back(e == 0 ? 10.0 * i : 0.01 * (e + i));
      rebind(t, {{"q", host_tensor(*t.ctx, {1, 1, 6, 4}, q)}});
      check(t);
      const RefTensor chosen = t.output("selected_q");
      const bool first = chosen[0] == 0;
      // Two rows of one direction may be drawn, and then both stay on its side.
      if (!std::is_permutation(chosen.data.begin(), chosen.data.end(),
                               std::vector<double>{0, 1, 2, 3, 4, 5}.begin()))
        continue;
      CHECK(std::vector<double>(chosen.data.begin() + (first ? 0 : 3),
                                chosen.data.begin() + (first ? 3 : 6)) == std::vector<double>{0, 2, 5});
      ++apart;
    }
    CHECK(apart >= 4);
  }
  SECTION("those that are given stay, whatever the number of steps") {
    Trial found = make_trial("routing_transformer", p, with(4, 10)),
          fixed = make_trial("routing_transformer", p, with(4, 0));
    rebind(found, fixed.instance->inputs(), fixed.instance->weights());
    CHECK(difference(found, fixed) == 0);
  }
}

TEST_CASE("routing pairs are the members' pairs") {
  const bool causal = GENERATE(true, false);
  Trial t = make_trial("routing_transformer", layer(2, 45, 24, 3, causal), small({{"window", 10}}));
  t.run();
  const PairSet pairs = *t.instance->pairs();
  const RefTensor q = t.output("selected_q"), k = t.output(causal ? "selected_q" : "selected_k");
  Intervals seen;
  int64_t wrong = 0;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 45; ++i) {
        std::vector<char> want(45, 0), got(45, 0);
        for (int64_t c = 0; c < 4; ++c) {
          const double* list = q.data.data() + ((b * 2 + h) * 4 + c) * 10;
          if (std::find(list, list + 10, static_cast<double>(i)) == list + 10) continue;
          const double* keys = k.data.data() + ((b * 2 + h) * 4 + c) * 10;
          for (int64_t j = 0; j < 10; ++j)
            if (keys[j] < 45 && (!causal || keys[j] <= static_cast<double>(i)))
              want[static_cast<size_t>(keys[j])] = 1;
        }
        pairs.row(b, h, i, seen);
        for (const Interval& v : seen)
          for (int64_t j = v.begin; j < v.end; ++j) got[static_cast<size_t>(j)] = 1;
        wrong += want != got;
      }
  CHECK(wrong == 0);
  pairs.row(0, 2, 20, seen);  // local: block 2 and the two before (and after)
  CHECK(seen == (causal ? Intervals{{0, 21}} : Intervals{{0, 40}}));
}

TEST_CASE("routing rows times values are the outputs") {
  const bool causal = GENERATE(true, false);
  Trial t = make_trial(
      "routing_transformer", core(2, 40, 3, 8, causal),
      {{"routing_heads", 3}, {"num_clusters", 4}, {"window", 11}, {"shared_qk", GENERATE(true, false)}});
  t.run();
  const RefTensor o = t.output("out"), v = to_reference(t.instance->inputs().at("v"));
  std::vector<float> rows;
  double worst = 0;
  for (int64_t h = 0; h < 6; ++h) {
    REQUIRE(t.instance->rows(*t.ctx, h / 3, h % 3, 0, 40, rows));
    for (int64_t i = 0; i < 40; ++i)
      for (int64_t x = 0; x < 8; ++x) {
        double sum = 0;
        for (int64_t j = 0; j < 40; ++j)
          sum += static_cast<double>(rows[static_cast<size_t>(i * 40 + j)]) * v[(h * 40 + j) * 8 + x];
        worst = std::max(worst, std::abs(sum - o[(h * 40 + i) * 8 + x]));
      }
  }
  CHECK(worst < 1e-5);
  Trial whole = make_trial("routing_transformer", layer(1, 45, 24, 3, causal), small({{"window", 10}}));
  whole.run();
  REQUIRE(whole.instance->rows(*whole.ctx, 0, 2, 0, 45, rows));  // local
  for (int64_t i = 0; i < 45; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < 45; ++j) sum += static_cast<double>(rows[static_cast<size_t>(i * 45 + j)]);
    CHECK(sum == Approx(1).epsilon(1e-5));
  }
}

TEST_CASE("routing_transformer says what it cannot do") {
  const Problem p = layer(1, 20, 24, 3);
  const auto refuse = [&](ParamMap given) {
    return make_trial("routing_transformer", p, small(std::move(given)));
  };
  CHECK_THROWS_WITH(refuse({{"local_flange", 12}}), ContainsSubstring("multiple of local_block 8"));
  CHECK_THROWS_WITH(refuse({{"routing_heads", 4}}), ContainsSubstring("3 heads"));
  CHECK_THROWS_AS(refuse({{"update_means", true}, {"route", "lsh"}}), Unsupported);
  CHECK_THROWS_WITH(make_trial("routing_transformer", core(1, 20, 3, 8, true), small({})),
                    ContainsSubstring("routing heads only"));
}
