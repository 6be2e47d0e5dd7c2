// Transfer statistics against their definition in double; peaks and histograms by hand and against a brute
// search.
#include "kernels/spectral_response/spectral_response.hpp"

#include <algorithm>
#include <complex>
#include <numbers>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Complex = std::complex<double>;

TEST_CASE("transfer statistics: every option against the definition") {
  Context ctx(cpu_backend(), 2);
  Random r(411);
  for (const auto& [b, ch, t, n_fft] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{1, 1, 1, 1},
                                        {2, 3, 9, 7},
                                        {1, 4, 241, 80},
                                        {2, 2, 3, 2}})
    for (int option = 0; option < 16; ++option) {
      const int64_t f = n_fft / 2 + 1, pairs = ch * (ch - 1) / 2;
      TransferStatisticsArgs args;
      args.x = random(ctx, DType::f32, {b, t, f, 2}, r),
      args.y = random(ctx, DType::f32, {b, ch, t, f, 2}, r);
      // A cell without excitation, and real bins with rounding in their imaginary parts.
      put(args.x, 0, 0), put(args.x, 1, 0);
      args.r = poisoned(ctx, DType::f32, {b, ch, f}), args.phi = poisoned(ctx, DType::f32, {b, ch, f});
      args.csd = poisoned(ctx, DType::f32, {b, pairs, f}),
      args.coef = poisoned(ctx, DType::f32, {b, pairs, f});
      args.n_fft = n_fft;
      args.phase_ratio = option & 1, args.from_response = option & 2, args.f32_sums = option & 4;
      if (option & 8) args.h = poisoned(ctx, DType::f32, {b, ch, f, t, 2});
      args.eps = (option & 8) ? 0.5f : 0.0f;
      const Cost cost = charged(ctx, [&] { transfer_statistics(ctx, args); });
      CHECK(cost == transfer_statistics_cost(args));
      std::vector<double> R, phi, csd, coef, H, slack_csd, slack_r;
      const std::vector<double> x = values(args.x), y = values(args.y);
      const auto angle = [&](Complex z, int64_t k) {
        const bool real = k == 0 || (n_fft % 2 == 0 && k == n_fft / 2);
        return real ? (z.real() < 0 ? std::numbers::pi : 0.0) : std::arg(z);
      };
      const auto cell_x = [&](int64_t i, int64_t j, int64_t k) {
        const auto at = static_cast<size_t>(((i * t + j) * f + k) * 2);
        return Complex(x[at], x[at + 1]);
      };
      const auto cell_y = [&](int64_t i, int64_t c, int64_t j, int64_t k) {
        const auto at = static_cast<size_t>((((i * ch + c) * t + j) * f + k) * 2);
        return Complex(y[at], y[at + 1]);
      };
      const double eps = static_cast<double>(args.eps);
      const auto transfer = [&](int64_t i, int64_t c, int64_t j, int64_t k) {
        const Complex e = cell_x(i, j, k);
        const double power = std::norm(e) + eps * eps;
        return power == 0 ? Complex(0) : cell_y(i, c, j, k) * std::conj(e) / power;
      };
      for (int64_t i = 0; i < b; ++i)
        for (int64_t c = 0; c < ch; ++c)
          for (int64_t k = 0; k < f; ++k) {
            double magnitude = 0, phase = 0;
            for (int64_t j = 0; j < t; ++j) {
              const Complex h = transfer(i, c, j, k);
              magnitude += std::abs(h);
              phase +=
                  args.phase_ratio ? angle(h, k) : angle(cell_y(i, c, j, k), k) - angle(cell_x(i, j, k), k);
              H.push_back(h.real());
              H.push_back(h.imag());
            }
            R.push_back(magnitude / static_cast<double>(t));
            slack_r.push_back(4e-6 * (1 + R.back()));
            phi.push_back(phase / static_cast<double>(t));
          }
      for (int64_t i = 0; i < b; ++i)
        for (int64_t c = 0; c < ch; ++c)
          for (int64_t d = c + 1; d < ch; ++d)
            for (int64_t k = 0; k < f; ++k) {
              Complex sum = 0;
              double pc = 0, pd = 0;
              for (int64_t j = 0; j < t; ++j) {
                const Complex p = args.from_response ? cell_y(i, c, j, k) : transfer(i, c, j, k),
                              q = args.from_response ? cell_y(i, d, j, k) : transfer(i, d, j, k);
                sum += p * std::conj(q);
                pc += std::norm(p), pd += std::norm(q);
              }
              csd.push_back(std::abs(sum));
              // f32 sums of up to 241 terms: their roundings relative to the sum of sizes.
              slack_csd.push_back(4e-6 * (1 + std::sqrt(pc * pd)) * (args.f32_sums ? 20 : 1));
              coef.push_back(pc * pd == 0 ? 0 : std::abs(sum) / std::sqrt(pc * pd));
            }
      INFO("Ch " << ch << ", T " << t << ", n_fft " << n_fft << ", option " << option);
      check_close(args.r, R, slack_r);
      check_close(args.phi, phi, {2e-5});
      check_close(args.csd, csd, slack_csd);
      check_close(args.coef, coef, {args.f32_sums ? 1e-4 : 4e-6});
      if (args.h) check_close(args.h, H, {1e-5});
    }
  TransferStatisticsArgs args;
  args.x = random(ctx, DType::f32, {1, 2, 3, 2}, r), args.y = random(ctx, DType::f32, {1, 1, 2, 3, 2}, r);
  args.r = args.phi = ctx.allocate(DType::f32, {1, 1, 3});
  args.csd = args.coef = ctx.allocate(DType::f32, {1, 0, 3});
  args.n_fft = 8;
  CHECK_THROWS_WITH(transfer_statistics(ctx, args), ContainsSubstring("8 points"));
}

namespace {

struct Found {
  std::vector<double> index, width;
};
Found peaks(Context& ctx, const std::vector<double>& x, FindPeaksArgs args, int64_t room = 8) {
  args.x = ctx.allocate(DType::f32, {1, static_cast<int64_t>(x.size())});
  for (size_t i = 0; i < x.size(); ++i) put(args.x, static_cast<int64_t>(i), x[i]);
  args.index = ctx.allocate(DType::i32, {1, room});
  args.width = poisoned(ctx, DType::f32, {1, room});
  find_peaks(ctx, args);
  Found f{values(args.index), values(args.width)};
  while (!f.index.empty() && f.index.back() == -1) {
    CHECK(f.width.back() == -1);
    f.index.pop_back(), f.width.pop_back();
  }
  return f;
}

}  // namespace

TEST_CASE("find_peaks: plateaus, ends, height rules, distance, widths, by hand") {
  Context ctx(cpu_backend(), 1);
  FindPeaksArgs args;
  args.fraction = 0.1;
  using V = std::vector<double>;
  CHECK(peaks(ctx, {1, 2, 3, 4}, args).index == V{});
  CHECK(peaks(ctx, {4, 1, 1, 5}, args).index == V{});
  CHECK(peaks(ctx, {0, 3, 3, 3, 3, 0, 1, 0}, args).index == V{2, 6});  // flat top 1..4: floor of 2.5
  CHECK(peaks(ctx, {0, 3, 3, 4, 3, 3}, args).index == V{3});           // a step up is no peak
  CHECK(peaks(ctx, {0, 3, 3}, args).index == V{});                     // a plateau at the end neither
  args.fraction = 0.5;
  CHECK(peaks(ctx, {0, 4, 0, 2, 0, 1.9, 0}, args).index == V{1, 3});
  args.distance = 3;
  // 4 drops its neighbours at 2; 3 is far enough away.
  CHECK(peaks(ctx, {0, 3.5, 0, 4, 0, 3, 0, 3.5, 0}, args).index == V{3, 7});
  args.distance = 2;
  args.fraction = 0.1;
  CHECK(peaks(ctx, {0, 2, 0, 2, 0}, args).index == V{1, 3});
  args.distance = 3;
  CHECK(peaks(ctx, {0, 2, 0, 2, 0}, args).index == V{3});  // equal heights: the later is visited first
  CHECK(peaks(ctx, {0, 2, 0, 0, 2, 0, 0, 2, 0}, args, 2).index == V{1, 4});  // room for two
  args = {};
  args.fraction = 0.1;
  // Peak 4 over bases 0 and 1: prominence 3, level 4 - 2.7 = 1.3; left crossing 1 + 0.65, right 3 + 0.9.
  const Found f = peaks(ctx, {0, 0, 2, 4, 1, 9}, args);
  REQUIRE(f.index == V{3});
  CHECK(f.width[0] == Approx((3 + 0.9) - (1 + 0.65)));
  args.log10 = true;
  const Found logs = peaks(ctx, {1, 1, 100, 10000, 10, 1e9}, args);
  REQUIRE(logs.index == V{3});
  CHECK(logs.width[0] == Approx((3 + 0.9) - (1 + 0.65)));
  args.log10 = false;
  // Values 0 1 0 3 0 1 0: mean 5/7, variance 11/7 - 25/49 = 52/49, so the height is 0.5 * 3 * 5 / sqrt(52)
  // = 1.04.
  args.by_deviation = true;
  args.fraction = 0.5;
  CHECK(peaks(ctx, {0, 1, 0, 3, 0, 1, 0}, args).index == V{3});
  args.fraction = 0.48;
  CHECK(peaks(ctx, {0, 1, 0, 3, 0, 1, 0}, args).index == V{1, 3, 5});
  args.distance = 0;
  CHECK_THROWS_WITH(peaks(ctx, {1}, args), ContainsSubstring("distance is 0"));
}

TEST_CASE("find_peaks keeps its rules on random rows") {
  Context ctx(cpu_backend(), 2);
  Random r(412);
  const Tensor x = random(ctx, DType::f32, {20, 101}, r, 1, 2), index = ctx.allocate(DType::i32, {20, 51});
  FindPeaksArgs args;
  args.x = x, args.index = index, args.distance = 10, args.fraction = 0.6;
  const Cost cost = charged(ctx, [&] { find_peaks(ctx, args); });
  CHECK(cost.elementwise == 4 * 2020);
  int64_t total = 0;
  for (int64_t row = 0; row < 20; ++row) {
    const auto v = [&](int64_t i) { return get(x, row * 101 + i); };
    double top = 0;
    for (int64_t i = 0; i < 101; ++i) top = std::max(top, v(i));
    int64_t last = -100;
    std::vector<int64_t> kept;
    for (int64_t k = 0; k < 51; ++k) {
      const auto i = static_cast<int64_t>(get(index, row * 51 + k));
      if (i < 0) continue;
      CHECK((i > 0 && i < 100));
      CHECK((v(i) > v(i - 1) && v(i) > v(i + 1) && v(i) >= 0.6 * top));
      CHECK(i - last >= 10);
      last = i;
      kept.push_back(i);
      ++total;
    }
    // What was dropped has a higher kept one near.
    for (int64_t i = 1; i < 100; ++i) {
      if (!(v(i) > v(i - 1) && v(i) > v(i + 1) && v(i) >= 0.6 * top)) continue;
      CHECK(std::any_of(kept.begin(), kept.end(),
                        [&](int64_t k) { return std::abs(k - i) < 10 && v(k) >= v(i); }));
    }
  }
  CHECK(total > 60);
}

TEST_CASE("histogram pools the batch, closes the last bin, survives one value and none") {
  Context ctx(cpu_backend(), 1);
  const Tensor index = ctx.allocate(DType::i32, {2, 3, 3});
  const std::vector<double> given = {0, 5, -1, 7, -1, -1, -1, -1, -1, 10, 9, 2, 7, -1, -1, -1, -1, -1};
  for (size_t i = 0; i < given.size(); ++i) put(index, static_cast<int64_t>(i), given[i]);
  const Tensor counts = ctx.allocate(DType::i32, {3, 5}), edges = poisoned(ctx, DType::f32, {3, 6});
  HistogramArgs args;
  args.index = index, args.counts = counts, args.edges = edges, args.scale = 0.5;
  histogram(ctx, args);
  // 0 2.5 | 5 4.5 1 over bins of 1: 0 1 2 3 4 5.
  CHECK(values(counts) == std::vector<double>{1, 1, 1, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0});
  check_close(edges, {0, 1, 2, 3, 4, 5, 3, 3.2, 3.4, 3.6, 3.8, 4, 0, 0.2, 0.4, 0.6, 0.8, 1}, {1e-6});
}
