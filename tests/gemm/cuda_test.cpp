// gemm on the GPU against the CPU's f64 product of the same rounded inputs.
#include "kernels/gemm/gemm.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

struct Product {
  Twin a, b, c, bias;
  GemmArgs options;
};

GemmArgs on_device(const Product& p) {
  GemmArgs g = p.options;
  g.a = p.a.device, g.b = p.b.device, g.c = p.c.device, g.bias = p.bias.device;
  return g;
}

/// Rounding errors of K products and additions grow like sqrt(K); a factor of four covers the tail. TF32
/// would show 2^-11 per product, a thousand times more. What cancels (bias, the old C) is part of the wanted
/// norm's order.
void run_and_check(Sides& s, const Product& p) {
  GemmArgs wide = p.options;
  wide.a = in_f64(s.host, p.a.host), wide.b = in_f64(s.host, p.b.host), wide.c = in_f64(s.host, p.c.host);
  if (p.bias) wide.bias = in_f64(s.host, p.bias.host);
  gemm(s.host, wide);
  gemm(s.device, on_device(p));
  const double k = static_cast<double>(p.a.host.dim(p.options.a_transposed ? -2 : -1));
  const DType t = p.a.host.dtype();
  const double unit = t == DType::f64 ? 0x1p-53 : 0x1p-24;
  const DType to = p.c.host.dtype();
  const double storage = to == DType::bf16 || to == DType::f16 ? rounding_of(to) : 0.0;
  check_norm(s.fetch(p.c), values(wide.c), storage + 4 * (std::sqrt(k) + 2) * unit);
  // Nothing around C was written.
  const Tensor whole = s.fetch(p.c, true);
  int64_t inside = 0, finite = 0;
  each(p.c.host, [&](int64_t) { ++inside; });
  each(whole, [&](int64_t o) { finite += std::isnan(get(whole, o)) ? 0 : 1; });
  CHECK(finite == inside);
}

}  // namespace

TEST_CASE("CUDA gemm agrees with a double product for every dtype, orientation, epilogue and odd size") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Sides s(*gpu, 101);
  for (int round = 0; round < 48; ++round) {
    const int64_t m = s.r.integer(1, 300), n = s.r.integer(1, 300), k = s.r.integer(1, 400);
    Product p;
    p.options.a_transposed = s.r.integer(0, 1) == 1;
    p.options.b_transposed = s.r.integer(0, 1) == 1;
    p.options.accumulate = s.r.integer(0, 1) == 1;
    p.options.alpha = s.r.integer(0, 1) == 1 ? 1.0f : -0.75f;
    p.options.activation = static_cast<Activation>(round % 4);
    p.a = s.padded(type, p.options.a_transposed ? Shape{k, m} : Shape{m, k}, s.r.integer(0, 3),
                   s.r.integer(0, 9));
    p.b = s.padded(type, p.options.b_transposed ? Shape{n, k} : Shape{k, n}, s.r.integer(0, 3),
                   s.r.integer(0, 9));
    const int64_t before = s.r.integer(0, 3), after = s.r.integer(0, 9);
    p.c = p.options.accumulate ? s.padded(type, {m, n}, before, after)
                               : s.padded_output(type, {m, n}, before, after);
    if (s.r.integer(0, 1) == 1) p.bias = s.padded(type, {n}, s.r.integer(0, 3), 1);
    INFO("round " << round << ": M " << m << " N " << n << " K " << k);
    run_and_check(s, p);
  }
}

TEST_CASE("CUDA gemm: aligned sizes, vectors, empty K") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Sides s(*gpu, 102);
  for (const auto& e : {Shape{512, 768, 1024}, Shape{1, 768, 768}, Shape{768, 1, 512}, Shape{1, 1, 5000},
                        Shape{640, 64, 8}, Shape{33, 17, 0}}) {
    Product p;
    p.a = s.random(type, {e[0], e[2]});
    p.b = s.random(type, {e[1], e[2]});
    p.options.b_transposed = true;
    p.bias = s.random(type, {e[1]});
    p.c = s.poisoned(type, {e[0], e[1]});
    for (Activation act : {Activation::none, Activation::gelu_erf, Activation::silu}) {
      p.options.activation = act;
      INFO(e.str());
      run_and_check(s, p);
    }
  }
}

TEST_CASE("CUDA gemm batches: shared and own B, strided heads, overlapping and broadcast operands") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16);
  Sides s(*gpu, 103);
  Product p;
  SECTION("own B, two batch axes") {
    p.a = s.random(type, {3, 5, 7, 9});
    p.b = s.random(type, {3, 5, 9, 4});
    p.c = s.poisoned(type, {3, 5, 7, 4});
  }
  SECTION("shared B, with a bias") {
    p.a = s.random(type, {6, 50, 80});
    p.b = s.random(type, {110, 80});
    p.options.b_transposed = true;
    p.bias = s.random(type, {110});
    p.c = s.poisoned(type, {6, 50, 110});
  }
  SECTION("shared B, A transposed") {
    p.a = s.random(type, {6, 80, 50});
    p.b = s.random(type, {110, 80});
    p.options.a_transposed = p.options.b_transposed = true;
    p.c = s.poisoned(type, {6, 50, 110});
  }
  SECTION("one row per batch") {
    p.a = s.random(type, {9, 1, 64});
    p.b = s.random(type, {64, 48});
    p.c = s.poisoned(type, {9, 1, 48});
  }
  SECTION("heads sliced from [B, N, 3, H, D]") {
    const Twin qkv = s.random(type, {2, 100, 3, 4, 32});
    p.a = qkv.view([](const Tensor& t) { return t.select(2, 0).permute({0, 2, 1, 3}); });
    p.b = qkv.view([](const Tensor& t) { return t.select(2, 1).permute({0, 2, 1, 3}); });
    p.options.b_transposed = true;
    p.c = s.poisoned(type, {2, 4, 100, 100});
  }
  SECTION("heads written back into [B, N, H, D]") {
    p.a = s.random(type, {2, 4, 33, 21});
    p.b = s.random(type, {2, 4, 21, 16});
    p.options.activation = Activation::silu;
    p.c = s.poisoned(type, {2, 33, 4, 16}).view([](const Tensor& t) { return t.permute({0, 2, 1, 3}); });
  }
  SECTION("Toeplitz view: rows of A overlap") {
    p.a = s.random(type, {400}).view([](const Tensor& t) { return t.strided({200, 150}, {1, 1}); });
    p.b = s.random(type, {150, 60});
    p.c = s.poisoned(type, {200, 60});
  }
  SECTION("a broadcast batch of B") {
    p.a = s.random(type, {4, 3, 5});
    p.b = s.random(type, {5, 6}).view([](const Tensor& t) { return t.strided({4, 5, 6}, {0, 6, 1}); });
    p.c = s.poisoned(type, {4, 3, 6});
  }
  SECTION("more small products than one launch takes") {
    p.a = s.random(type, {70000, 3, 4});
    p.b = s.random(type, {70000, 4, 2});
    p.c = s.poisoned(type, {70000, 3, 2});
  }
  run_and_check(s, p);
}

TEST_CASE("CUDA gemm rounds a narrow result once and passes NaN and infinity on") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 104);
  {
    // 256 + 256 ones: sums in bf16 would stay at 256.
    const Tensor ones = s.host.allocate(DType::bf16, {1, 257}),
                 column = s.host.allocate(DType::bf16, {257, 1});
    fill(ones, 1.0), fill(column, 1.0), put(column, 0, 256.0);
    GemmArgs g;
    const Twin c = s.poisoned(DType::bf16, {1, 1});
    g.a = s.upload(ones).device, g.b = s.upload(column).device, g.c = c.device;
    gemm(s.device, g);
    CHECK(get(s.fetch(c), 0) == 512.0);
  }
  for (DType type : {DType::f32, DType::bf16, DType::f64})
    for (Activation act : {Activation::none, Activation::relu, Activation::gelu_erf, Activation::silu}) {
      const Tensor a = s.host.allocate(type, {2, 1}), b = s.host.allocate(type, {1, 2});
      fill(b, 1.0);
      put(a, 0, std::numeric_limits<double>::quiet_NaN());
      put(a, 1, std::numeric_limits<double>::infinity());
      GemmArgs g;
      const Twin c = s.random(type, {2, 2});
      g.a = s.upload(a).device, g.b = s.upload(b).device, g.c = c.device;
      g.activation = act;
      gemm(s.device, g);
      const Tensor got = s.fetch(c);
      CHECK(std::isnan(get(got, 0)));
      CHECK(get(got, 3) == std::numeric_limits<double>::infinity());
    }
}

TEST_CASE("CUDA gemm is recorded in a graph and repeats its bits") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 105);
  for (DType type : {DType::f32, DType::bf16})
    for (Activation act : {Activation::none, Activation::gelu_erf}) {
      Product p;
      p.a = s.random(type, {4, 65, 2048}), p.b = s.random(type, {4, 2048, 40});
      p.bias = s.random(type, {40}), p.c = s.poisoned(type, {4, 65, 40});
      p.options.activation = act;
      s.check_graph([&] { gemm(s.device, on_device(p)); }, {p.c});
    }
}

TEST_CASE("CUDA gemm keeps f32 sums of narrow operands: exact products, nothing rounded but sums") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::bf16, DType::f16);
  Sides s(*gpu, 106);
  for (int round = 0; round < 32; ++round) {
    // Odd sizes, and those whose rows vectors may load.
    const int64_t unit = round % 2 ? 8 : 1;
    const int64_t m = unit * s.r.integer(1, 40), n = unit * s.r.integer(1, 40),
                  k = unit * s.r.integer(1, 300);
    Product p;
    p.options.b_transposed = s.r.integer(0, 1) == 1;
    p.options.alpha = s.r.integer(0, 1) == 1 ? 1.0f : -0.75f;
    p.options.accumulate = round % 3 == 0;
    p.a = s.padded(type, {3, m, k}, 0, 8);
    p.b = s.padded(type, p.options.b_transposed ? Shape{3, n, k} : Shape{3, k, n}, 0, 8);
    p.c = p.options.accumulate ? s.padded(DType::f32, {3, m, n}, 1, 3)
                               : s.padded_output(DType::f32, {3, m, n}, 1, 3);
    INFO("round " << round << ": M " << m << " N " << n << " K " << k);
    run_and_check(s, p);
  }
}
