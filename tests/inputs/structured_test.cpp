// The structured input generators: the pairs they promise gain what they promise.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

constexpr int64_t kDim = 64, kTokens = 128, kHeads = 4, kKeyHeads = 2;

/// q . k / sqrt(D) of head h without noise, [kTokens, kTokens].
struct Logits {
  RefTensor q, k;
  double at(int64_t h, int64_t i, int64_t j) const {
    double s = 0;
    for (int64_t d = 0; d < kDim; ++d)
      s += q[(h * kTokens + i) * kDim + d] * k[(h / 2 * kTokens + j) * kDim + d];
    return s / std::sqrt(static_cast<double>(kDim));
  }
};

Problem problem_of(const std::string& generator, std::map<std::string, Value> arguments) {
  Problem p = heads_problem(1, kHeads, kKeyHeads, kTokens, kTokens, kDim, true);
  p.seed = 5;
  arguments.emplace("noise", 0.0);
  p.inputs = {generator, std::move(arguments), ""};
  return p;
}
Logits logits_of(const std::string& generator, std::map<std::string, Value> arguments,
                 std::vector<int64_t> grid = {}) {
  Problem p = problem_of(generator, std::move(arguments));
  if (!grid.empty()) p.kind = ProblemKind::video, p.grid = std::move(grid), p.length = p.kv_length = 0;
  Trial t = make_trial("dense", p);
  return {to_reference(t.instance->inputs().at("q")), to_reference(t.instance->inputs().at("k"))};
}

/// Products of different directions have deviation strength / sqrt(D); ten of them are never seen.
double slack(double strength) { return 6 * strength / std::sqrt(static_cast<double>(kDim)); }

}  // namespace

TEST_CASE("sinks: the first keys gain the strength from every query, the others nothing") {
  const Logits l = logits_of("sinks", {{"sinks", 3}, {"strength", 5.0}});
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t i = 0; i < kTokens; i += 17)
      for (int64_t j = 0; j < kTokens; ++j) CHECK(std::abs(l.at(h, i, j) - (j < 3 ? 5.0 : 0.0)) < 1e-5);
}

TEST_CASE("block_topics: tokens of a stretch gain the strength, others about nothing") {
  const Logits l = logits_of("block_topics", {{"topics", 8}, {"strength", 8.0}});
  for (int64_t i = 0; i < kTokens; i += 5)
    for (int64_t j = 0; j < kTokens; ++j) {
      if (i / 16 == j / 16)
        CHECK(std::abs(l.at(1, i, j) - 8.0) < 1e-4);
      else
        CHECK(std::abs(l.at(1, i, j)) < slack(8.0));
    }
}

TEST_CASE("clustered_keys: every token belongs to one cluster, in no order") {
  const Logits l = logits_of("clustered_keys", {{"clusters", 4}, {"strength", 8.0}});
  int64_t together = 0, neighbours = 0;
  for (int64_t i = 0; i < kTokens; ++i)
    for (int64_t j = 0; j < kTokens; ++j) {
      const double x = l.at(0, i, j);
      CHECK((std::abs(x - 8.0) < 1e-4 || std::abs(x) < slack(8.0)));
      together += x > 7;
      neighbours += x > 7 && j == i + 1;
      CHECK((i != j || x > 7));
    }
  CHECK(together > kTokens * kTokens / 8);  // a quarter is expected
  CHECK(together < kTokens * kTokens / 2);
  CHECK(neighbours < kTokens / 2);
}

TEST_CASE("needles: the last queries find theirs, one after the other; the others find none") {
  const Logits l = logits_of("needles", {{"needles", 2}, {"queries", 8}, {"strength", 16.0}});
  std::vector<int64_t> found;
  for (int64_t i = 0; i < kTokens; ++i) {
    int64_t best = 0;
    for (int64_t j = 0; j < kTokens; ++j)
      if (l.at(2, i, j) > l.at(2, i, best)) best = j;
    if (i < kTokens - 8) {
      CHECK(std::abs(l.at(2, i, best)) < 1e-9);
      continue;
    }
    CHECK(l.at(2, i, best) > 16.0 - slack(16.0));
    CHECK(best < kTokens - 8);
    found.push_back(best);
  }
  for (size_t r = 2; r < found.size(); ++r) CHECK(found[r] == found[r - 2]);
}

TEST_CASE("vertical_slash: a few columns for every query, the main diagonal, and one further") {
  const Logits l = logits_of("vertical_slash", {{"columns", 3}, {"slashes", 0}, {"strength", 8.0}});
  for (int64_t h = 0; h < kHeads; ++h) {
    int64_t columns = 0;
    for (int64_t j = 0; j < kTokens; ++j) {
      columns += l.at(h, 100, j) > 4;
      CHECK((l.at(h, 3, j) > 4) == (l.at(h, 100, j) > 4));
    }
    CHECK(columns >= 1);
    CHECK(columns <= 3);
  }
  const Logits s = logits_of("vertical_slash", {{"columns", 0}, {"slashes", 2}, {"strength", 8.0}});
  // Every diagonal has one value: products of waves depend on the distance alone.
  double second = 0;
  for (int64_t distance = 0; distance < 100; ++distance) {
    CHECK(std::abs(s.at(0, 110, 110 - distance) - s.at(0, 101, 101 - distance)) < 1e-3);
    if (distance > 0) second = std::max(second, s.at(0, 110, 110 - distance));
  }
  CHECK(s.at(0, 110, 110) > 4);
  CHECK(second > 4);
}

TEST_CASE(
    "local_decay and space_time fall with distance as their formulas say, on average over frequencies") {
  double one = 0, far = 0;
  const Logits l = logits_of("local_decay", {{"reach", 8.0}, {"strength", 10.0}});
  for (int64_t h = 0; h < kHeads; ++h) {
    CHECK(std::abs(l.at(h, 50, 50) - 10.0) < 1e-4);
    one += l.at(h, 58, 50) / kHeads;
    far += l.at(h, 120, 20) / kHeads;
  }
  // Two key heads of 16 frequencies each: means of 32 cosines, deviation at most 10 / sqrt(64).
  CHECK(std::abs(one - 10.0 / std::exp(1.0)) < 4 * 10.0 / 8);
  CHECK(std::abs(far) < 4 * 10.0 / 8);
  const Logits v = logits_of("space_time", {{"reach_time", 1.0}, {"reach_space", 2.0}}, {4, 4, 8});
  for (int64_t h = 0; h < kHeads; ++h) CHECK(std::abs(v.at(h, 77, 77) - 10.0) < 1e-4);
}

TEST_CASE("structured inputs are the same in both layouts, and values stay normal") {
  Problem p = problem_of("vertical_slash", {});
  p.inputs.arguments["noise"] = 0.0;
  Trial head_major = make_trial("dense", p), token_major = make_trial("flexprefill", p);
  const RefTensor a = to_reference(head_major.instance->inputs().at("q"));
  const RefTensor b = to_reference(token_major.instance->inputs().at("q"));
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t i = 0; i < kTokens; ++i)
      for (int64_t d = 0; d < kDim; d += 9)
        REQUIRE(a[(h * kTokens + i) * kDim + d] == b[(i * kHeads + h) * kDim + d]);
  const RefTensor v = to_reference(head_major.instance->inputs().at("v"));
  double square = 0;
  for (double x : v.data) square += x * x;
  CHECK(std::abs(square / static_cast<double>(v.numel()) - 1.0) < 0.1);
}

TEST_CASE("structured generators refuse what has no heads or no grid") {
  Problem p = problem_of("space_time", {});
  CHECK_THROWS_WITH(make_trial("dense", p), ContainsSubstring("needs a grid"));
}

TEST_CASE("how a tensor is cut into pieces changes no value of any generator") {
  for (const Generator& g : all_generators()) {
    Problem p = problem_of(g.id, {});
    if (g.id == "space_time") p.kind = ProblemKind::video, p.grid = {2, 8, 8}, p.length = p.kv_length = 0;
    const Params params = resolve_params(g.id, g.params, {}, p);
    for (const char* name : {"q", "k", "v"}) {
      const int64_t heads = std::string(name) == "q" ? kHeads : kKeyHeads;
      for (const bool token_major : {false, true}) {
        TensorSpec spec;
        spec.name = name;
        spec.shape = token_major ? Shape{1, kTokens, heads, kDim} : Shape{1, heads, kTokens, kDim};
        const int64_t n = spec.shape.numel();
        std::vector<double> whole(static_cast<size_t>(n)), pieces(whole.size());
        g.fill(p, params, spec, 0, n, whole.data());
        for (int64_t begin = 0, rows = 1; begin < n; begin += rows * kDim, rows = rows % 7 + 2)
          g.fill(p, params, spec, begin, std::min(rows * kDim, n - begin), pieces.data() + begin);
        INFO(g.id << " " << name);
        CHECK(whole == pieces);
      }
    }
  }
}
