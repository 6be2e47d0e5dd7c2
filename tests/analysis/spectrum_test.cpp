// Spectra of maps whose transforms are known.
#include <cmath>
#include <numbers>

#include "analysis/analysis.hpp"
#include "kernels/core/backend.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

/// One output, filled by (sample, channel, y, x).
class MapInstance final : public Instance {
 public:
  TensorMap tensors;
  void run(Context&) override {}
  TensorMap outputs() const override { return tensors; }
  ClosedForm cost() const override { return {}; }
};

Problem grid(std::vector<int64_t> g, int64_t heads) {
  Problem p;
  p.kind = g.size() == 3 ? ProblemKind::video : ProblemKind::image;
  p.grid = std::move(g);
  p.heads = heads;
  return p;
}

AnalysisResult spectrum(Context& ctx, MapInstance& m, const Problem& p,
                        const std::map<std::string, Value>& given = {}) {
  const Analysis& a = find_analysis("spectrum");
  return a.compute(ctx, m, p, resolve_params("spectrum", a.info().params, given, p));
}

template <class F>
Tensor tokens_of(Context& ctx, int64_t b, int64_t h, int64_t w, int64_t c, F&& f) {
  Tensor t = ctx.allocate(DType::f32, {b, h * w, c});
  for (int64_t i = 0; i < b; ++i)
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x)
        for (int64_t k = 0; k < c; ++k)
          t.data<float>()[((i * h + y) * w + x) * c + k] = static_cast<float>(f(i, k, y, x));
  return t;
}

double wave(int64_t u, int64_t y, int64_t h) {
  return std::cos(2 * std::numbers::pi * static_cast<double>(u * y) / static_cast<double>(h));
}

}  // namespace

TEST_CASE("a wave stands at its radius; heads of low and high waves are told apart") {
  Context ctx(cpu_backend(), 2);
  MapInstance m;
  const int64_t h = 12, w = 16;
  // Head 0: (u, v) = (0, 2); head 1: (3, 4), radius 5.
  m.tensors["out"] = tokens_of(ctx, 2, h, w, 4, [&](int64_t, int64_t c, int64_t y, int64_t x) {
    return c < 2 ? wave(2, x, w) : wave(3, y, h) * wave(4, x, w);
  });
  const AnalysisResult r = spectrum(ctx, m, grid({h, w}, 2));
  CHECK(r.series.at("head_low_share")[0] == Approx(1));
  CHECK(r.series.at("head_low_share")[1] == Approx(0).margin(1e-12));
  // Energies: a plane wave has H W squared over 2, a product of two over 4.
  CHECK(r.scalars.at("low_share") == Approx(2.0 / 3));
  CHECK(r.scalars.at("mean_radius") == Approx(2 * 2.0 / 3 + 5 / 3.0));
  CHECK(r.scalars.at("dc_share") == Approx(0).margin(1e-12));
  const std::vector<double>& magnitude = r.series.at("magnitude_by_radius");
  REQUIRE(magnitude.size() == 10);  // corners: sqrt(6^2 + 8^2)
  for (size_t k = 1; k <= 10; ++k)
    if (k != 2 && k != 5) CHECK(magnitude[k - 1] == Approx(0).margin(1e-5));
  // Radius 2, rounded from 1.5 to 2.5: (0, 2), (1, 2), (2, 0), (2, 1) and their signs: 12 places, two of them
  // with H W / 2, in half of the maps.
  CHECK(magnitude[1] == Approx(2.0 * 96 / 12 / 2));
}

TEST_CASE("a constant map is its mean; noise fills the plane evenly") {
  Context ctx(cpu_backend(), 2);
  MapInstance m;
  m.tensors["out"] = tokens_of(ctx, 1, 7, 5, 2, [](int64_t, int64_t, int64_t, int64_t) { return 3; });
  const AnalysisResult r = spectrum(ctx, m, grid({7, 5}, 1));
  CHECK(r.scalars.at("dc_share") == Approx(1));
  CHECK(r.scalars.at("dc_magnitude") == Approx(3 * 35));
  CHECK(r.scalars.at("low_share") == Approx(1));
  // One point has the same magnitude everywhere: low_share is the share of places, those up to 1.25 of 35.
  m.tensors["out"] = tokens_of(
      ctx, 1, 7, 5, 2, [](int64_t, int64_t, int64_t y, int64_t x) { return y == 4 && x == 1 ? 2 : 0; });
  const AnalysisResult point = spectrum(ctx, m, grid({7, 5}, 1));
  CHECK(point.scalars.at("low_share") == Approx(5.0 / 35));
  for (const double x : point.series.at("magnitude_by_radius")) CHECK(x == Approx(2));
}

TEST_CASE("layouts: heads, channels first, frames of a video") {
  Context ctx(cpu_backend(), 1);
  const int64_t h = 8, w = 6;
  MapInstance tokens, heads, planes, video;
  const auto f = [&](int64_t s, int64_t c, int64_t y, int64_t x) {
    return std::sin(static_cast<double>(s * 13 + c * 7 + y * y + 3 * x));
  };
  tokens.tensors["out"] = tokens_of(ctx, 3, h, w, 4, f);
  Tensor o = ctx.allocate(DType::f32, {3, 2, h * w, 2}), p = ctx.allocate(DType::f32, {3, 4, h, w}),
         v = ctx.allocate(DType::f32, {1, 3 * h * w, 4});
  for (int64_t s = 0; s < 3; ++s)
    for (int64_t c = 0; c < 4; ++c)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) {
          const auto value = static_cast<float>(f(s, c, y, x));
          o.data<float>()[((s * 2 + c / 2) * h * w + y * w + x) * 2 + c % 2] = value;
          p.data<float>()[((s * 4 + c) * h + y) * w + x] = value;
          v.data<float>()[((s * h + y) * w + x) * 4 + c] = value;
        }
  heads.tensors["o"] = o;
  planes.tensors["y"] = p;
  video.tensors["out"] = v;
  const AnalysisResult want = spectrum(ctx, tokens, grid({h, w}, 2));
  Problem pixels;
  pixels.kind = ProblemKind::image;
  pixels.size = {h, w};
  pixels.heads = 2;
  for (const AnalysisResult& r : {spectrum(ctx, heads, grid({h, w}, 2)), spectrum(ctx, planes, pixels),
                                  spectrum(ctx, video, grid({3, h, w}, 2))}) {
    CHECK(r.scalars.at("low_share") == Approx(want.scalars.at("low_share")));
    CHECK(r.series.at("head_low_share") == want.series.at("head_low_share"));
    CHECK(r.scalars.at("maps") == 12);
  }
  CHECK(spectrum(ctx, tokens, grid({h, w}, 2), {{"maps", 4}}).scalars.at("maps") == 4);
  CHECK_THROWS_AS(spectrum(ctx, tokens, grid({h, w + 1}, 2)), Unsupported);
  tokens.tensors["out"].data<float>()[5] = NAN;
  CHECK_THROWS_AS(spectrum(ctx, tokens, grid({h, w}, 2)), Unsupported);
}
