// linear, norm, row_softmax, avg_pool, spectrum: references, closed forms, and references against
// hand-computed values.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {
Problem tokens(int64_t batch, int64_t n, int64_t c, DType dtype) {
  Problem p;
  p.batch = batch;
  p.length = n;
  p.channels = c;
  p.dtype = dtype;
  return p;
}
Problem image(int64_t batch, std::vector<int64_t> grid, std::vector<int64_t> size, int64_t c, DType dtype) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.grid = std::move(grid);
  p.size = std::move(size);
  p.channels = c;
  p.dtype = dtype;
  return p;
}
RefMap reference_of(const std::string& method, const Problem& p, const ParamMap& params, const RefMap& inputs,
                    const RefMap& weights = {}) {
  return find_reference(method)(p, params_of(method, p, params), inputs, weights);
}
}  // namespace

TEST_CASE("methods of one operator equal their references and their closed forms") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  for (const auto& [batch, n, c] : {std::array<int64_t, 3>{1, 1, 1}, {2, 33, 70}, {3, 7, 129}}) {
    INFO(batch << " x " << n << " x " << c);
    Trial copied = make_trial("copy", tokens(batch, n, c, dtype));
    check_trial(copied, 1);
    for (const Value& out : {Value(), Value(1), Value(45)}) {
      Trial t = make_trial("linear", tokens(batch, n, c, dtype), {{"out", out}});
      check_trial(t, 1);
    }
    for (const char* kind : {"layer", "rms"}) {
      if (c == 1)
        continue;  // one channel: layer normalisation leaves 0, and there is no norm to compare with
      Trial t = make_trial("norm", tokens(batch, n, c, dtype), {{"kind", kind}});
      check_trial(t, 1);
    }
    for (const bool causal : {false, true}) {
      Problem p = heads_problem(batch, 2, 2, n, n + 5, 0, causal, dtype);
      Trial t = make_trial("row_softmax", p);
      check_trial(t, 1);
    }
  }
  for (const int window : {1, 2, 3}) {
    Trial t = make_trial("avg_pool", image(2, {6, 12}, {}, 19, dtype), {{"window", window}});
    check_trial(t, 1);
  }
  if (dtype != DType::f32) return;
  for (const auto& size : {std::vector<int64_t>{1, 1}, {8, 8}, {7, 10}, {12, 5}, {1, 9}}) {
    Trial t = make_trial("spectrum", image(2, {}, size, 3, dtype));
    check_trial(t, 1);
  }
}

TEST_CASE("references of one operator at values computed by hand") {
  const Problem t = tokens(1, 2, 2, DType::f32);
  const RefTensor x = ref_tensor({1, 2, 2}, {1, 3, 2, -2});
  const RefTensor w = ref_tensor({3, 2}, {1, 0, 0, 1, 2, -1});
  CHECK(reference_of("linear", t, {{"out", 3}}, {{"x", x}}, {{"weight", w}}).at("y").data ==
        std::vector<double>{1, 3, -1, 2, -2, 6});
  const RefMap gains{{"gain", ref_tensor({2}, {1, 2})}, {"offset", ref_tensor({2}, {0, 10})}};
  const RefTensor layer = reference_of("norm", t, {}, {{"x", x}}, gains).at("y");
  CHECK(layer[0] == Approx(-1 / std::sqrt(1 + 1e-5)));
  CHECK(layer[1] == Approx(2 / std::sqrt(1 + 1e-5) + 10));
  const RefTensor rms = reference_of("norm", t, {{"kind", "rms"}}, {{"x", x}}, gains).at("y");
  CHECK(rms[2] == Approx(2 / std::sqrt(4 + 1e-5)));
  CHECK(rms[3] == Approx(-4 / std::sqrt(4 + 1e-5)));

  Problem s = heads_problem(1, 1, 1, 2, 2, 0, true);
  const RefTensor p =
      reference_of("row_softmax", s, {}, {{"x", ref_tensor({1, 1, 2, 2}, {5, 9, 0, std::log(3.0)})}}).at("y");
  CHECK(p[0] == 1);
  CHECK(p[1] == 0);
  CHECK(p[2] == Approx(0.25));
  CHECK(p[3] == Approx(0.75));

  const Problem g = image(1, {2, 4}, {}, 1, DType::f32);
  CHECK(reference_of("avg_pool", g, {}, {{"x", ref_tensor({1, 2, 4, 1}, {1, 2, 3, 4, 5, 6, 7, 8})}})
            .at("y")
            .data == std::vector<double>{3.5, 5.5});

  // A single frequency has a single coefficient.
  const Problem f = image(1, {}, {1, 4}, 1, DType::f32);
  const RefTensor y =
      reference_of("spectrum", f, {}, {{"x", ref_tensor({1, 1, 1, 4}, {1, 0, -1, 0})}}).at("y");
  const std::vector<double> want{0, 0, 2, 0, 0, 0};
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(y.data[i] - want[i]) < 1e-12);
}

TEST_CASE("methods of one operator say what they cannot do") {
  Context ctx(cpu_backend(), 1);
  const auto make = [&](const char* method, const Problem& p, const ParamMap& given = {}) {
    find_method(method).make(ctx, p, params_of(method, p, given));
  };
  CHECK_THROWS_AS(make("avg_pool", image(1, {6, 9}, {}, 4, DType::f32), {{"window", 4}}), Unsupported);
  CHECK_THROWS_AS(make("spectrum", image(1, {}, {8, 8}, 3, DType::bf16)), Unsupported);
  CHECK_THROWS_AS(make("linear", tokens(1, 4, 0, DType::f32)), UsageError);
  CHECK_THROWS_AS(make("norm", heads_problem(1, 1, 1, 4, 4, 8, false)), UsageError);
}
