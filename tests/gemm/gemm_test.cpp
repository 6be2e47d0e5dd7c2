// gemm against a double product: dtypes, orientations, batches, strides, fused steps, errors.
#include "kernels/gemm/gemm.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

constexpr double kUnit = 0x1p-24;  // half the f32 epsilon: one rounding

double activated(Activation a, double x) {
  switch (a) {
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::none:
      break;
  }
  return x;
}

struct Expected {
  std::vector<double> values, tolerance;
};

/// Straight from the header's formula. The tolerance is K + 2 roundings of the sum of magnitudes.
Expected expected(const GemmArgs& g, const std::vector<double>& before) {
  Expected e;
  const int rank = g.a.rank();
  const int64_t m = g.c.dim(-2), n = g.c.dim(-1), k = g.a.dim(g.a_transposed ? -2 : -1);
  const double unit = g.a.dtype() == DType::f64 ? 0x1p-53 : kUnit;
  int64_t batch = 1;
  for (int i = 0; i < rank - 2; ++i) batch *= g.a.dim(i);
  for (int64_t x = 0; x < batch; ++x) {
    int64_t rest = x, a0 = 0, b0 = 0;
    for (int i = rank - 3; i >= 0; --i) {
      const int64_t at = rest % g.a.dim(i);
      rest /= g.a.dim(i);
      a0 += at * g.a.stride(i);
      if (g.b.rank() == rank) b0 += at * g.b.stride(i);
    }
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t p = 0; p < k; ++p) {
          const double av = get(g.a, a0 + (g.a_transposed ? p * g.a.stride(-2) + i : i * g.a.stride(-2) + p));
          const double bv = get(g.b, b0 + (g.b_transposed ? j * g.b.stride(-2) + p : p * g.b.stride(-2) + j));
          sum += av * bv;
          magnitude += std::fabs(av * bv);
        }
        sum *= static_cast<double>(g.alpha);
        magnitude *= std::fabs(static_cast<double>(g.alpha));
        if (g.accumulate) {
          const double c = before[e.values.size()];
          sum += c, magnitude += std::fabs(c);
        }
        if (g.bias) sum += get(g.bias, j), magnitude += std::fabs(get(g.bias, j));
        double tolerance = (static_cast<double>(k) + 4) * unit * magnitude;
        if (g.activation != Activation::none)
          tolerance = 1.2 * tolerance + (unit < kUnit ? 8 * unit : 4e-7) * (std::fabs(sum) + 1);
        e.values.push_back(activated(g.activation, sum));
        e.tolerance.push_back(tolerance + 1e-300);
      }
  }
  return e;
}

void run_and_check(Context& ctx, const GemmArgs& g) {
  if (!g.accumulate) poison(g.c);
  const Expected e = expected(g, values(g.c));
  gemm(ctx, g);
  check_close(g.c, e.values, e.tolerance);
}

}  // namespace

TEST_CASE("gemm agrees with a double product for every dtype, orientation and odd size") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(7);
    for (int round = 0; round < 60; ++round) {
      const int64_t m = r.integer(1, 70), n = r.integer(1, 70), k = r.integer(round % 7 == 0 ? 0 : 1, 90);
      GemmArgs g;
      g.a_transposed = r.integer(0, 1) == 1;
      g.b_transposed = r.integer(0, 1) == 1;
      g.accumulate = r.integer(0, 1) == 1;
      g.alpha = r.integer(0, 1) == 1 ? 1.0f : -0.75f;
      g.activation = static_cast<Activation>(r.integer(0, 3));
      g.a = randomize(
          padded(ctx, type, g.a_transposed ? Shape{k, m} : Shape{m, k}, r.integer(0, 3), r.integer(0, 5)), r);
      g.b = randomize(
          padded(ctx, type, g.b_transposed ? Shape{n, k} : Shape{k, n}, r.integer(0, 3), r.integer(0, 5)), r);
      g.c = padded(ctx, type, {m, n}, r.integer(0, 3), r.integer(0, 5));
      if (g.accumulate) randomize(g.c, r);
      if (r.integer(0, 1) == 1) g.bias = random(ctx, type, {n}, r);
      run_and_check(ctx, g);
    }
  });
}

TEST_CASE("gemm covers shapes beyond one block of its tiling") {
  Context ctx(cpu_backend(), 2);
  Random r(8);
  for (const auto& s : {Shape{300, 70, 600}, Shape{40, 1100, 520}, Shape{1, 700, 700}, Shape{700, 1, 600},
                        Shape{129, 65, 1}, Shape{257, 513, 300}, Shape{7, 530, 900}, Shape{20, 40, 9001}})
    for (int kind = 0; kind < 3; ++kind) {
      const DType type = kind == 0 ? DType::f32 : DType::bf16;
      hide_amx(kind == 2);
      GemmArgs g;
      g.b_transposed = s[0] % 2 == 0;
      g.a = random(ctx, type, {s[0], s[2]}, r);
      g.b = random(ctx, type, g.b_transposed ? Shape{s[1], s[2]} : Shape{s[2], s[1]}, r);
      g.c = ctx.allocate(type, {s[0], s[1]});
      g.bias = random(ctx, type, {s[1]}, r);
      run_and_check(ctx, g);
    }
  hide_amx(false);
}

TEST_CASE("gemm batches: shared and own B, strided heads of one buffer, broadcast and overlapping operands") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f64);
  Context ctx(cpu_backend(), 2);
  Random r(9);
  GemmArgs g;
  SECTION("own B, two batch axes") {
    g.a = random(ctx, type, {3, 5, 7, 9}, r);
    g.b = random(ctx, type, {3, 5, 9, 4}, r);
    g.c = ctx.allocate(type, {3, 5, 7, 4});
  }
  SECTION("shared B") {
    g.a = random(ctx, type, {6, 5, 8}, r);
    g.b = random(ctx, type, {11, 8}, r);
    g.b_transposed = true;
    g.c = ctx.allocate(type, {6, 5, 11});
  }
  SECTION("heads sliced from [B, N, 3, H, D]") {
    const Tensor qkv = random(ctx, type, {2, 10, 3, 4, 16}, r);
    g.a = qkv.select(2, 0).permute({0, 2, 1, 3});
    g.b = qkv.select(2, 1).permute({0, 2, 1, 3});
    g.b_transposed = true;
    g.c = ctx.allocate(type, {2, 4, 10, 10});
  }
  SECTION("Toeplitz view: rows of A overlap") {
    const Tensor line = random(ctx, type, {40}, r);
    g.a = line.strided({20, 15}, {1, 1});
    g.b = random(ctx, type, {15, 6}, r);
    g.c = ctx.allocate(type, {20, 6});
  }
  SECTION("a broadcast batch of B") {
    const Tensor b = random(ctx, type, {5, 6}, r);
    g.a = random(ctx, type, {4, 3, 5}, r);
    g.b = b.strided({4, 5, 6}, {0, 6, 1});
    g.c = ctx.allocate(type, {4, 3, 6});
  }
  SECTION("very many small products") {
    g.a = random(ctx, type, {300, 7, 5}, r);
    g.b = random(ctx, type, {300, 5, 6}, r);
    g.c = ctx.allocate(type, {300, 7, 6});
  }
  run_and_check(ctx, g);
}

TEST_CASE("a narrow result is rounded once, and padding around C stays untouched") {
  Context ctx(cpu_backend(), 1);
  // 256 terms of 1 + 2^-8: partial sums in bf16 would lose the small parts.
  GemmArgs g;
  g.a = ctx.allocate(DType::bf16, {1, 257});
  g.b = ctx.allocate(DType::bf16, {257, 1});
  fill(g.a, 1.0);
  fill(g.b, 1.0);
  put(g.b, 0, 256.0);
  const Tensor wide = poisoned(ctx, DType::bf16, {1, 3});
  g.c = wide.slice(1, 1, 2);
  gemm(ctx, g);
  CHECK(get(wide, 1) == 512.0);  // summed in bf16, 256 + 1 would stay 256
  CHECK(std::isnan(get(wide, 0)));
  CHECK(std::isnan(get(wide, 2)));
}

TEST_CASE("narrow operands whose sums stay f32 give what their f32 values give, to the bit") {
  const DType type = GENERATE(DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(21);
    for (int round = 0; round < 20; ++round) {
      const int64_t m = r.integer(1, 40), n = r.integer(1, 40), k = r.integer(round == 0 ? 0 : 1, 200);
      GemmArgs g;
      g.a_transposed = r.integer(0, 1) == 1;
      g.b_transposed = r.integer(0, 1) == 1;
      g.accumulate = r.integer(0, 1) == 1;
      g.alpha = 0.3f;
      g.activation = static_cast<Activation>(r.integer(0, 3));
      g.a = randomize(padded(ctx, type, g.a_transposed ? Shape{3, k, m} : Shape{3, m, k}, 1, 2), r);
      const Tensor b = randomize(padded(ctx, type, g.b_transposed ? Shape{n, k} : Shape{k, n}, 2, 1), r);
      // B for itself, or broadcast over the batch.
      g.b = round % 2 ? b : b.strided({3, b.dim(0), b.dim(1)}, {0, b.stride(0), 1});
      g.c = randomize(padded(ctx, DType::f32, {3, m, n}, 1, 1), r);
      GemmArgs wide = g;
      wide.a = ctx.allocate(DType::f32, g.a.shape()), wide.b = ctx.allocate(DType::f32, g.b.shape());
      wide.c = ctx.allocate(DType::f32, {3, m, n});
      const auto put_all = [](const Tensor& from, const Tensor& to) {
        const std::vector<double> v = values(from);
        for (int64_t i = 0; i < to.numel(); ++i) put(to, i, v[static_cast<size_t>(i)]);
      };
      put_all(g.a, wide.a), put_all(g.b, wide.b), put_all(g.c, wide.c);
      gemm(ctx, wide);
      run_and_check(ctx, g);
      CHECK(values(g.c) == values(wide.c));
    }
  });
}

TEST_CASE("gemm does not depend on the thread count") {
  const DType type = GENERATE(DType::f32, DType::bf16);
  if (best_isa() == Isa::base) return;  // BLAS cuts the work by threads
  Random r(10);
  Context one(cpu_backend(), 1), two(cpu_backend(), 2), five(cpu_backend(), 5);
  for (const auto& s : {Shape{1, 130, 90, 70}, Shape{20, 13, 9, 30}, Shape{3, 200, 40, 300}}) {
    GemmArgs g;
    g.a = random(one, type, {s[0], s[1], s[3]}, r);
    g.b = random(one, type, {s[3], s[2]}, r);
    g.c = poisoned(one, type, {s[0], s[1], s[2]});
    gemm(one, g);
    for (Context* ctx : {&two, &five}) {
      GemmArgs h = g;
      h.c = poisoned(one, type, g.c.shape());
      gemm(*ctx, h);
      CHECK(same_bits(g.c, h.c));
    }
  }
}

TEST_CASE("linear is x W^T + b over any leading axes, merged or strided") {
  Context ctx(cpu_backend(), 2);
  Random r(11);
  const Tensor w = random(ctx, DType::f32, {7, 10}, r), bias = random(ctx, DType::f32, {7}, r);
  const auto check = [&](const Tensor& x, const Tensor& y) {
    poison(y);
    linear(ctx, x, w, bias, y, Activation::relu);
    std::vector<double> want;
    const std::vector<double> xs = values(x);
    for (size_t row = 0; row < xs.size() / 10; ++row)
      for (int64_t j = 0; j < 7; ++j) {
        double s = get(bias, j);
        for (int64_t p = 0; p < 10; ++p) s += xs[row * 10 + static_cast<size_t>(p)] * get(w, j * 10 + p);
        want.push_back(std::max(s, 0.0));
      }
    check_close(y, want, {20 * 16 * kUnit});
  };
  check(random(ctx, DType::f32, {10}, r), ctx.allocate(DType::f32, {7}));
  check(random(ctx, DType::f32, {3, 4, 10}, r), ctx.allocate(DType::f32, {3, 4, 7}));
  check(randomize(padded(ctx, DType::f32, {3, 4, 10}, 2, 1), r), padded(ctx, DType::f32, {3, 4, 7}, 1, 2));
  check(random(ctx, DType::f32, {4, 3, 10}, r).transpose(0, 1), ctx.allocate(DType::f32, {3, 4, 7}));
  check(random(ctx, DType::f32, {3, 6, 10}, r).slice(1, 1, 4), ctx.allocate(DType::f32, {3, 3, 7}));
  check(random(ctx, DType::f32, {4, 2, 3, 10}, r).slice(1, 0, 1), ctx.allocate(DType::f32, {4, 1, 3, 7}));
}

TEST_CASE("gemm charges the header's formula, and empty extents are defined") {
  Context ctx(cpu_backend(), 2);
  Random r(12);
  GemmArgs g;
  g.a = random(ctx, DType::bf16, {3, 4, 5}, r);
  g.b = random(ctx, DType::bf16, {5, 6}, r);
  g.c = ctx.allocate(DType::bf16, {3, 4, 6});
  g.bias = random(ctx, DType::bf16, {6}, r);
  g.activation = Activation::silu;
  const Cost cost = charged(ctx, [&] { gemm(ctx, g); });
  CHECK(cost == Cost{2 * 3 * 4 * 5 * 6, 3 * 4 * 6, 3 * 4 * 6, 2 * (60 + 30 + 6), 2 * 72});
  for (const auto& s : {Shape{0, 4, 5, 6}, Shape{3, 0, 5, 6}, Shape{3, 4, 0, 6}, Shape{3, 4, 5, 0}}) {
    GemmArgs z;
    z.a = random(ctx, DType::f32, {s[0], s[1], s[2]}, r);
    z.b = random(ctx, DType::f32, {s[2], s[3]}, r);
    z.c = poisoned(ctx, DType::f32, {s[0], s[1], s[3]});
    z.bias = random(ctx, DType::f32, {s[3]}, r);
    run_and_check(ctx, z);
  }
}

TEST_CASE("gemm passes NaN and infinity on") {
  Context ctx(cpu_backend(), 1);
  const Activation act = GENERATE(Activation::none, Activation::relu, Activation::gelu_erf, Activation::silu);
  GemmArgs g;
  g.a = ctx.allocate(DType::f32, {2, 1});
  g.b = ctx.allocate(DType::f32, {1, 2});
  g.c = ctx.allocate(DType::f32, {2, 2});
  g.activation = act;
  fill(g.b, 1.0);
  put(g.a, 0, std::numeric_limits<double>::quiet_NaN());
  put(g.a, 1, std::numeric_limits<double>::infinity());
  gemm(ctx, g);
  CHECK(std::isnan(get(g.c, 0)));
  CHECK(get(g.c, 3) == std::numeric_limits<double>::infinity());
}

TEST_CASE("gemm refuses what does not fit, naming it") {
  Context ctx(cpu_backend(), 1);
  Random r(13);
  GemmArgs good;
  good.a = random(ctx, DType::f32, {2, 3, 4}, r);
  good.b = random(ctx, DType::f32, {2, 4, 5}, r);
  good.c = ctx.allocate(DType::f32, {2, 3, 5});
  REQUIRE_NOTHROW(gemm(ctx, good));
  const auto refuses = [&](const std::string& word, auto change) {
    GemmArgs g = good;
    change(g);
    CHECK_THROWS_AS(gemm(ctx, g), UsageError);
    CHECK_THROWS_WITH(gemm(ctx, g), ContainsSubstring(word));
  };
  refuses("'a' is missing", [](GemmArgs& g) { g.a = {}; });
  refuses("dtypes of 'a' (f32) and 'b' (bf16)", [&](GemmArgs& g) {
    g.b = random(ctx, DType::bf16, {2, 4, 5}, r);
  });
  refuses("has no bias", [&](GemmArgs& g) {
    g.a = random(ctx, DType::bf16, {2, 3, 4}, r), g.b = random(ctx, DType::bf16, {2, 4, 5}, r);
    g.bias = random(ctx, DType::bf16, {5}, r);
  });
  refuses("i32", [&](GemmArgs& g) { g.a = ctx.allocate(DType::i32, {2, 3, 4}); });
  refuses("inner extents differ: 4", [&](GemmArgs& g) { g.b = random(ctx, DType::f32, {2, 5, 5}, r); });
  refuses("batch axes", [&](GemmArgs& g) { g.b = random(ctx, DType::f32, {3, 4, 5}, r); });
  refuses("[3, 5]", [&](GemmArgs& g) { g.c = ctx.allocate(DType::f32, {2, 5, 3}); });
  refuses("stride", [&](GemmArgs& g) { g.a = random(ctx, DType::f32, {2, 4, 3}, r).transpose(1, 2); });
  refuses("'bias'", [&](GemmArgs& g) { g.bias = random(ctx, DType::f32, {4}, r); });
  refuses("must not overlap", [&](GemmArgs& g) {
    g.a = random(ctx, DType::f32, {2, 5, 5}, r);
    g.b = random(ctx, DType::f32, {2, 5, 5}, r);
    g.c = g.b;
  });
  refuses("overlap: their stride", [&](GemmArgs& g) { g.c = g.c.strided({2, 3, 5}, {15, 2, 1}); });
  // Column slices of one buffer interleave without sharing elements.
  const Tensor wide = random(ctx, DType::f32, {2, 3, 9}, r);
  GemmArgs slices = good;
  slices.a = wide.slice(2, 0, 4);
  slices.c = wide.slice(2, 4, 9);
  CHECK_NOTHROW(gemm(ctx, slices));
  slices.c = wide.slice(2, 3, 8);
  CHECK_THROWS_AS(gemm(ctx, slices), UsageError);
}
