// Pyramid levels against the matrices of their definition, the repair of out-of-range pixels by hand, channel
// fits against known channels.
#include "kernels/pyramid/pyramid.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

std::vector<double> binomial() {
  std::vector<double> h;
  for (double c : {1., 4., 6., 4., 1.}) h.push_back(std::sqrt(2.0) * c / 16);
  return h;
}

int64_t mirror(int64_t i, int64_t n) {
  while (n > 1 && (i < 0 || i >= n)) i = i < 0 ? -i : 2 * (n - 1) - i;
  return n == 1 ? 0 : i;
}

/// [to][from] of one axis.
std::vector<std::vector<double>> matrix(bool expand, int64_t fine, const std::vector<double>& h) {
  const int64_t coarse = (fine + 1) / 2, reach = static_cast<int64_t>(h.size()) / 2;
  std::vector<std::vector<double>> m(static_cast<size_t>(expand ? fine : coarse),
                                     std::vector<double>(static_cast<size_t>(expand ? coarse : fine)));
  for (int64_t i = 0; i < static_cast<int64_t>(m.size()); ++i)
    for (int64_t k = -reach; k <= reach; ++k) {
      const double w = h[static_cast<size_t>(k + reach)];
      const int64_t at = mirror((expand ? i : 2 * i) + k, fine);
      if (!expand) m[static_cast<size_t>(i)][static_cast<size_t>(at)] += w;
      if (expand && at % 2 == 0) m[static_cast<size_t>(i)][static_cast<size_t>(at / 2)] += w;
    }
  return m;
}

}  // namespace

TEST_CASE("pyramid levels are a matrix along each axis, reflected at the borders") {
  Context ctx(cpu_backend(), 2);
  Random r(511);
  for (size_t taps : {1, 3, 5, 7})
    for (const Shape& fine : {Shape{8, 8}, Shape{7, 10}, Shape{1, 5}, Shape{2, 1}, Shape{70, 131}})
      for (bool expand : {false, true})
        for (bool subtract : {false, true}) {
          std::vector<double> h;
          const Tensor filter = random(ctx, DType::f32, {static_cast<int64_t>(taps)}, r);
          for (double v : values(filter)) h.push_back(v);
          const int64_t b = 2, ch = (fine[0] + 1) / 2, cw = (fine[1] + 1) / 2;
          const Shape big{b, fine[0], fine[1]}, small{b, ch, cw};
          PyramidArgs args;
          args.expand = expand, args.taps = filter;
          args.x = random(ctx, DType::f32, expand ? small : big, r);
          args.y = poisoned(ctx, DType::f32, expand ? big : small);
          if (subtract) args.subtract_from = random(ctx, DType::f32, args.y.shape(), r);
          const Cost cost = charged(ctx, [&] { pyramid_level(ctx, args); });
          CHECK(cost.matmul ==
                pyramid_cost(expand, subtract, b, fine[0], fine[1], static_cast<int64_t>(taps)).matmul);
          const auto rows = matrix(expand, fine[0], h), columns = matrix(expand, fine[1], h);
          std::vector<double> want;
          const int64_t from_h = args.x.dim(1), from_w = args.x.dim(2);
          for (int64_t i = 0; i < b; ++i)
            for (size_t y = 0; y < rows.size(); ++y)
              for (size_t x = 0; x < columns.size(); ++x) {
                double sum = 0;
                for (int64_t p = 0; p < from_h; ++p)
                  for (int64_t q = 0; q < from_w; ++q)
                    sum += rows[y][static_cast<size_t>(p)] * columns[x][static_cast<size_t>(q)] *
                           get(args.x, (i * from_h + p) * from_w + q);
                const auto at = static_cast<int64_t>(want.size());
                want.push_back(subtract ? get(args.subtract_from, at) - sum : sum);
              }
          INFO(taps << " taps, " << fine.str() << (expand ? ", expand" : ", reduce"));
          check_close(args.y, want, {64 * 0x1p-24 * static_cast<double>(taps * taps)});
        }
}

TEST_CASE("a Laplacian pyramid is put together again exactly, and costs about 10 n") {
  Context ctx(cpu_backend(), 2);
  Random r(512);
  const Tensor taps = ctx.allocate(DType::f32, {5});
  for (int64_t i = 0; i < 5; ++i) put(taps, i, binomial()[static_cast<size_t>(i)]);
  std::vector<Tensor> levels = {random(ctx, DType::f32, {1, 50, 37}, r)};
  const std::vector<double> image = values(levels[0]);
  while (levels.back().dim(1) >= 5) {
    const Tensor& g = levels.back();
    const Tensor next = poisoned(ctx, DType::f32, {1, (g.dim(1) + 1) / 2, (g.dim(2) + 1) / 2});
    PyramidArgs reduce;
    reduce.x = g, reduce.taps = taps, reduce.y = next;
    pyramid_level(ctx, reduce);
    PyramidArgs expand;
    expand.expand = true, expand.x = next, expand.taps = taps, expand.y = expand.subtract_from = g;
    pyramid_level(ctx, expand);
    levels.push_back(next);
  }
  Tensor whole = levels.back();
  for (size_t l = levels.size() - 1; l-- > 0;) {
    const Tensor up = poisoned(ctx, DType::f32, levels[l].shape());
    PyramidArgs expand;
    expand.expand = true, expand.x = whole, expand.taps = taps, expand.y = up;
    pyramid_level(ctx, expand);
    for (int64_t i = 0; i < up.numel(); ++i) put(up, i, get(up, i) + get(levels[l], i));
    whole = up;
  }
  check_close(whole, image, {64 * 0x1p-24});
}

TEST_CASE("repair moves the image, and redraws where that fails, in the order of the pixels") {
  Context ctx(cpu_backend(), 2);
  const auto tensor = [&](const Shape& s, const std::vector<double>& v) {
    const Tensor t = ctx.allocate(DType::f32, s);
    for (size_t i = 0; i < v.size(); ++i) put(t, static_cast<int64_t>(i), v[i]);
    return t;
  };
  // Rows: plain, moved up, moved down; redrawn with the first that fits; the stream runs out; sigma 0.
  const Tensor v = tensor({2, 5}, {0.5, 0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5});
  const Tensor s = tensor({2, 5}, {0.25, -0.75, 0.75, -1.5, 1.5, 9, 9, 9, 9, 9});
  const Tensor redraw = tensor({2, 3}, {-2, 0.5, 1, 0, 0, 0});
  const Tensor sigma = tensor({2}, {0.5, 0});
  const Tensor y = poisoned(ctx, DType::f32, {2, 5});
  repair_range(ctx, {v, s, redraw, sigma, y, 0.1f});
  // Pixel 3: 0.5 - 1 is outside, 0.5 + 0.25 fits. Pixel 4: 0.25 + 0.5 fits, the last number.
  check_close(y, {0.75, 0.1, 0.9, 0.75, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5}, {1e-7});
  put(s, 0, -1.5);  // pixel 0 now takes 0.5 from the stream, 3 takes 1 and 4 finds nothing
  repair_range(ctx, {v, s, redraw, sigma, y, 0.1f});
  check_close(y, {0.75, 0.1, 0.9, 1.0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5}, {1e-7});
  CHECK_THROWS_WITH(repair_range(ctx, {v, s, redraw, sigma, y, 0.5f}), ContainsSubstring("gap"));
}

TEST_CASE("channel_fit: thresholds, published channels, vectors without a Gaussian") {
  Context ctx(cpu_backend(), 2);
  const std::vector<std::vector<int>> rows = {
      {0, 0, 0, 0, 2, 2, 0}, {0, 0, 2, 2, 3, 4, 2}, {0, 0, 1, 2, 2, 3, 1}, {0, 0, 0, 2, 3, 3, 0},
      {0, 0, 0, 0, 0, 0, 0}, {4, 4, 4, 4, 4, 4, 4}, {0, 0, 3, 0, 0, 0, 0}};
  const auto count = static_cast<int64_t>(rows.size());
  const Tensor accuracy = ctx.allocate(DType::f32, {count, 5, 7}),
               threshold = ctx.allocate(DType::i32, {count, 7}), fit = poisoned(ctx, DType::f64, {7, count});
  for (int64_t b = 0; b < count; ++b)
    for (int64_t f = 0; f < 7; ++f)
      for (int64_t l = 0; l < 5; ++l) {
        // Passing at exactly the pass mark is not passing.
        const int t = rows[static_cast<size_t>(b)][static_cast<size_t>(f)];
        put(accuracy, (b * 5 + l) * 7 + f, l < 5 - t ? 50.5 : 50);
      }
  ChannelFitArgs args;
  args.accuracy = accuracy, args.threshold = threshold, args.fit = fit;
  channel_fit(ctx, args);
  for (int64_t b = 0; b < count; ++b)
    for (int64_t f = 0; f < 7; ++f)
      CHECK(get(threshold, b * 7 + f) == rows[static_cast<size_t>(b)][static_cast<size_t>(f)]);
  const auto of = [&](int64_t b, int64_t i) { return get(fit, i * count + b); };
  // The card's human channel, and its recomputed networks.
  CHECK(of(0, 0) == Approx(4).epsilon(1e-12));
  CHECK(of(0, 1) == Approx(4.5).margin(1e-6));
  CHECK(of(0, 3) == Approx(1.0).margin(5e-3));
  CHECK(of(0, 4) == Approx(39.60).margin(5e-3));
  CHECK(of(0, 5) == 1);
  for (const auto& [b, bw, cf, pns] : {std::tuple<int64_t, double, double, double>{1, 3.99, 39.42, 0.710},
                                       {2, 3.51, 34.40, 0.386},
                                       {3, 2.29, 32.23, 0.701}}) {
    CHECK(of(b, 3) == Approx(bw).margin(5.1e-3));
    CHECK(of(b, 4) == Approx(cf).margin(5.1e-3));
    CHECK(of(b, 5) == Approx(pns).margin(5.1e-4));
  }
  for (int64_t b = 0; b < count; ++b) CHECK(of(b, 6) == (b < 4 ? 0 : 1));
  CHECK((of(4, 0) == 0 && std::isnan(of(4, 1)) && std::isnan(of(4, 3)) && of(4, 5) == 0.0625));
  CHECK((of(5, 0) == 4 && of(5, 1) == 3 && std::isinf(of(5, 2)) && of(5, 5) == 1));
  CHECK((of(6, 0) == 3 && of(6, 1) == 2 && of(6, 3) == 0 && of(6, 4) == 7 && of(6, 5) == 0.5));
}
