// The random numbers are a format: results are comparable across machines only while these values stay.
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

#include "inputs/inputs.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("Philox 4x32-10 gives the published known answers") {
  // The first two words of the generator's published test vectors: counter and key all zero, then all ones.
  REQUIRE(random_bits(0, 0, 0) == 0xe169c58d6627e8d5u);
  REQUIRE(random_bits(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}) == 0x41c83b0e408f276du);
}

TEST_CASE("normal quantiles invert the normal distribution") {
  for (const double p : {1e-12, 1e-6, 0.01, 0.074, 0.076, 0.3, 0.5, 0.7, 0.924, 0.926, 0.99, 1 - 1e-6}) {
    const double x = normal_quantile(p);
    CHECK(std::fabs(0.5 * std::erfc(-x / std::sqrt(2.0)) - p) <=
          4e-16 + 2e-15 * std::min(p, 1 - p) * (1 + x * x));
    CHECK(normal_probability(x) == Approx(p).epsilon(1e-9));
  }
  CHECK(normal_quantile(0.5) == 0.0);
}

TEST_CASE("normal numbers have the moments of the normal distribution") {
  const int n = 200000;
  double s1 = 0, s2 = 0, s4 = 0;
  for (int i = 0; i < n; ++i) {
    const double x = random_normal(7, stream_of("q"), static_cast<uint64_t>(i));
    s1 += x, s2 += x * x, s4 += x * x * x * x;
  }
  // Five standard errors of each estimate.
  CHECK(std::fabs(s1 / n) < 5 / std::sqrt(double(n)));
  CHECK(std::fabs(s2 / n - 1) < 5 * std::sqrt(2.0 / n));
  CHECK(std::fabs(s4 / n - 3) < 5 * std::sqrt(96.0 / n));
}

TEST_CASE("streams and seeds are independent") {
  CHECK(random_bits(0, stream_of("q"), 0) != random_bits(0, stream_of("k"), 0));
  CHECK(random_bits(0, stream_of("q"), 0) != random_bits(1, stream_of("q"), 0));
  CHECK(random_bits(0, stream_of("q"), 0) != random_bits(0, stream_of("q"), 1));
}

TEST_CASE("truncated normal tensors stay inside their cut and are the same for any thread count") {
  TensorSpec spec;
  spec.name = "w";
  spec.shape = Shape{257, 33};
  spec.init = Init::trunc_normal(0.02);
  Context one(cpu_backend(), 1), two(cpu_backend(), 2);
  const Tensor a = make_tensor(one, spec, 3, MemoryClass::weight),
               b = make_tensor(two, spec, 3, MemoryClass::weight);
  double most = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    REQUIRE(a.data<float>()[i] == b.data<float>()[i]);
    most = std::max(most, std::fabs(double(a.data<float>()[i])));
  }
  CHECK(most <= 0.04000001);
  CHECK(most > 0.038);
}

TEST_CASE("the value functions of every method answer several threads as they answer one") {
  Context ctx(cpu_backend(), 1);
  int functions = 0;
  for (const Method* m : all_methods()) {
    const MethodInfo& info = m->info();
    const auto make = [&] {
      return m->make(ctx, info.example,
                     resolve_params(info.id, info.params, info.example_params, info.example));
    };
    const auto alone = make();
    // Asked together, the first time and each for all: a value computed late is computed under contention.
    const auto together = make();
    const auto compare = [&](const std::vector<TensorSpec>& want, const std::vector<TensorSpec>& got) {
      for (size_t s = 0; s < want.size(); ++s) {
        if (want[s].init.kind != Init::Kind::values) continue;
        ++functions;
        const int64_t n = std::min<int64_t>(want[s].shape.numel(), 500);
        constexpr int kThreads = 8;
        std::vector<std::vector<double>> seen(kThreads, std::vector<double>(static_cast<size_t>(n)));
        std::barrier start(kThreads);
        {
          std::vector<std::jthread> threads;
          for (int t = 0; t < kThreads; ++t)
            threads.emplace_back([&, t] {
              start.arrive_and_wait();
              for (int64_t i = 0; i < n; ++i)
                seen[static_cast<size_t>(t)][static_cast<size_t>(i)] = got[s].init.value(i);
            });
        }
        INFO(info.id << " " << want[s].name);
        for (const auto& of_thread : seen) {
          bool same = true;
          for (int64_t i = 0; i < n; ++i)
            same = same && of_thread[static_cast<size_t>(i)] == want[s].init.value(i);
          CHECK(same);
        }
      }
    };
    compare(alone->input_specs(), together->input_specs());
    compare(alone->weight_specs(), together->weight_specs());
  }
  CHECK(functions > 10);
}

TEST_CASE("normal numbers by vectors are those one by one, to the bit") {
  // Begins and lengths on both sides of the pieces that vectors are made of, and beyond 32 bits of index.
  for (const uint64_t begin : {uint64_t{0}, uint64_t{3}, uint64_t{1} << 33})
    for (const int64_t count : {0, 1, 255, 256, 257, 20000}) {
      std::vector<double> x(static_cast<size_t>(count) + 1, -77.0);
      random_normals(9, stream_of("k"), begin, count, x.data());
      int64_t tails = 0;
      for (int64_t i = 0; i < count; ++i) {
        REQUIRE(x[static_cast<size_t>(i)] ==
                random_normal(9, stream_of("k"), begin + static_cast<uint64_t>(i)));
        tails += std::fabs(x[static_cast<size_t>(i)]) > 3;
      }
      CHECK(x.back() == -77.0);
      CHECK((count < 20000 || tails > 10));
    }
}
