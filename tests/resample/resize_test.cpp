// resize and sample_points against the filters' definitions in double.
#include <numbers>

#include "kernels/resample/resample.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = ResampleArgs::Kind;

namespace {

double filter(Kind kind, bool antialias, double t) {
  t = std::fabs(t);
  if (kind == Kind::bilinear) return std::max(0.0, 1 - t);
  if (kind == Kind::bicubic) {
    const double a = antialias ? -0.5 : -0.75;
    if (t <= 1) return (a + 2) * t * t * t - (a + 3) * t * t + 1;
    return t < 2 ? a * (t * t * t - 5 * t * t + 8 * t - 4) : 0;
  }
  if (t >= 3) return 0;
  if (t == 0) return 1;
  const double p = std::numbers::pi * t;
  return std::sin(p) / p * std::sin(p / 3) / (p / 3);
}

/// weights[i][p]: share of input p in output i of one axis.
std::vector<std::vector<double>> matrix(const ResampleArgs& a, int64_t in, int64_t out) {
  std::vector<std::vector<double>> m(static_cast<size_t>(out),
                                     std::vector<double>(static_cast<size_t>(in), 0.0));
  for (int64_t i = 0; i < out; ++i) {
    std::vector<double>& row = m[static_cast<size_t>(i)];
    if (a.kind == Kind::nearest) {
      row[static_cast<size_t>(i * in / out)] = 1;
      continue;
    }
    const double ratio = static_cast<double>(in) / static_cast<double>(out);
    double u = (static_cast<double>(i) + 0.5) * ratio - 0.5;
    if (a.align_corners) u = out == 1 ? 0 : static_cast<double>(i * (in - 1)) / static_cast<double>(out - 1);
    const double stretch = a.antialias ? std::max(ratio, 1.0) : 1.0;
    double sum = 0;
    for (int64_t p = -40 * in; p < 41 * in; ++p) {
      const double w = filter(a.kind, a.antialias, (static_cast<double>(p) - u) / stretch);
      if (a.antialias && (p < 0 || p >= in)) continue;
      row[static_cast<size_t>(std::min(std::max<int64_t>(p, 0), in - 1))] += w;
      sum += w;
    }
    if (a.antialias)
      for (double& w : row) w /= sum;
  }
  return m;
}

void run_and_check(Context& ctx, const ResampleArgs& a) {
  const bool last = a.channels_last;
  const int row = last ? 1 : 2, column = last ? 2 : 3, channel = last ? 3 : 1;
  const auto v = matrix(a, a.x.dim(row), a.y.dim(row)), h = matrix(a, a.x.dim(column), a.y.dim(column));
  std::vector<double> want, slack;
  for (int64_t b = 0; b < a.y.dim(0); ++b)
    for (int64_t i1 = 0; i1 < a.y.dim(1); ++i1)
      for (int64_t i2 = 0; i2 < a.y.dim(2); ++i2)
        for (int64_t i3 = 0; i3 < a.y.dim(3); ++i3) {
          const int64_t c = last ? i3 : i1, oy = last ? i1 : i2, ox = last ? i2 : i3;
          double sum = 0, size = 0;
          for (int64_t y = 0; y < a.x.dim(row); ++y)
            for (int64_t x = 0; x < a.x.dim(column); ++x) {
              const double w = v[static_cast<size_t>(oy)][static_cast<size_t>(y)] *
                               h[static_cast<size_t>(ox)][static_cast<size_t>(x)];
              if (w == 0) continue;
              const double t = w * get(a.x, b * a.x.stride(0) + c * a.x.stride(channel) +
                                                y * a.x.stride(row) + x * a.x.stride(column));
              sum += t, size += std::fabs(t);
            }
          want.push_back(sum);
          // Roundings of weights and sums; lerp's t (b - a) may be as large as both. Edge taps that cancel in
          // double do not in f32, so the size of one input is added.
          slack.push_back(a.kind == Kind::nearest ? 0 : (size + 4) * 40 * 0x1p-24);
        }
  poison(a.y);
  resize(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("resize agrees with its filters: kinds, ratios, layouts, corners, antialias") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  Random r(701);
  struct Way {
    Kind kind;
    bool antialias, corners;
  };
  for (const Way& way :
       {Way{Kind::nearest, false, false}, Way{Kind::bilinear, false, false}, Way{Kind::bilinear, false, true},
        Way{Kind::bilinear, true, false}, Way{Kind::bicubic, false, false}, Way{Kind::bicubic, true, false},
        Way{Kind::bicubic, false, true}, Way{Kind::lanczos, true, false}})
    for (bool last : {true, false})
      for (const Shape& s : {Shape{5, 7, 10, 14}, Shape{9, 8, 4, 3}, Shape{1, 1, 3, 2}, Shape{6, 5, 6, 5},
                             Shape{13, 4, 1, 9}, Shape{7, 9, 11, 2}}) {
        ResampleArgs a;
        a.kind = way.kind, a.antialias = way.antialias, a.align_corners = way.corners, a.channels_last = last;
        a.x = random(ctx, type, last ? Shape{2, s[0], s[1], 3} : Shape{2, 3, s[0], s[1]}, r);
        a.y = ctx.allocate(type, last ? Shape{2, s[2], s[3], 3} : Shape{2, 3, s[2], s[3]});
        INFO("kind " << static_cast<int>(way.kind) << (way.antialias ? " antialiased " : " ") << s.str());
        run_and_check(ctx, a);
      }
}

TEST_CASE("resize agrees with resize_bicubic, and keeps constants under bilinear exactly") {
  Context ctx(cpu_backend(), 2);
  Random r(702);
  const Tensor x = random(ctx, DType::f32, {2, 3, 8, 10}, r);
  const Tensor y = poisoned(ctx, DType::f32, {2, 3, 16, 5}), z = poisoned(ctx, DType::f32, {2, 3, 16, 5});
  resize_bicubic(ctx, {x, y, false});
  ResampleArgs a;
  a.kind = Kind::bicubic, a.channels_last = false, a.x = x, a.y = z;
  resize(ctx, a);
  check_close(z, values(y), {32 * 0x1p-24});
  a.kind = Kind::bilinear;
  a.x = ctx.allocate(DType::f32, {1, 1, 5, 3}), a.y = poisoned(ctx, DType::f32, {1, 1, 17, 31});
  fill(a.x, 0.1);
  resize(ctx, a);
  for (double v : values(a.y)) CHECK(v == static_cast<double>(0.1f));
}

TEST_CASE("resize charges its taps and refuses misfits") {
  Context ctx(cpu_backend(), 1);
  ResampleArgs a;
  a.x = ctx.allocate(DType::f32, {2, 8, 6, 3}), a.y = ctx.allocate(DType::f32, {2, 4, 12, 3});
  fill(a.x, 1.0);
  const int64_t n = 2 * 4 * 12 * 3;
  CHECK(charged(ctx, [&] { resize(ctx, a); }) == Cost{0, 7 * n, 0, 4 * 288, 4 * n});
  a.antialias = true;
  CHECK(charged(ctx, [&] { resize(ctx, a); }).elementwise == 2 * n * 4 * 2);
  a.align_corners = true;
  CHECK_THROWS_WITH(resize(ctx, a), ContainsSubstring("exclude each other"));
  a.align_corners = a.antialias = false;
  a.kind = Kind::lanczos;
  CHECK_THROWS_WITH(resize(ctx, a), ContainsSubstring("set antialias"));
  a.kind = Kind::bilinear;
  a.y = ctx.allocate(DType::f32, {2, 4, 12, 4});
  CHECK_THROWS_WITH(resize(ctx, a), ContainsSubstring("differ in batch or channels"));
}

TEST_CASE("sample_points blends four neighbours, zeros or edges outside") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  Random r(703);
  const double inf = std::numeric_limits<double>::infinity();
  for (bool clamp : {false, true})
    for (int64_t gx : {1, 3})
      for (int64_t d : {1, 7, 32}) {
        SamplePointsArgs a;
        a.clamp = clamp;
        // Heads inside wider tokens: [B, H, W, G, D] seen as [B, G, H, W, D].
        a.x = randomize(padded(ctx, type, {2, 5, 6, gx, d}, 3, 1), r).permute({0, 3, 1, 2, 4});
        a.points = random(ctx, DType::f32, {2, 3, 40, 2}, r, -3, 8);
        for (int64_t i = 0; i < 12; ++i) put(a.points, i, static_cast<double>(i % 5));  // on the grid
        put(a.points, 12, inf), put(a.points, 15, -inf), put(a.points, 16, 1e30), put(a.points, 18, -1.0);
        put(a.points, 21, std::numeric_limits<double>::quiet_NaN());
        a.y = padded(ctx, type, {2, 3, 40, d}, 0, 2);
        std::vector<double> want;
        for (int64_t b = 0; b < 2; ++b)
          for (int64_t g = 0; g < 3; ++g)
            for (int64_t p = 0; p < 40; ++p) {
              double u = get(a.points, ((b * 3 + g) * 40 + p) * 2),
                     v = get(a.points, ((b * 3 + g) * 40 + p) * 2 + 1);
              if (clamp && !std::isnan(u + v))
                u = std::min(std::max(u, 0.0), 5.0), v = std::min(std::max(v, 0.0), 4.0);
              for (int64_t c = 0; c < d; ++c) {
                double sum = std::isnan(u) || std::isnan(v) ? u + v : 0.0;
                for (int64_t y = 0; y < 5; ++y)
                  for (int64_t x = 0; x < 6; ++x) {
                    const double w = std::max(0.0, 1 - std::fabs(u - static_cast<double>(x))) *
                                     std::max(0.0, 1 - std::fabs(v - static_cast<double>(y)));
                    if (w > 0)
                      sum += w * get(a.x, b * a.x.stride(0) + (gx == 1 ? 0 : g) * a.x.stride(1) +
                                              y * a.x.stride(2) + x * a.x.stride(3) + c);
                  }
                want.push_back(sum);
              }
            }
        poison(a.y);
        sample_points(ctx, a);
        check_close(a.y, want, {16 * 0x1p-24});
      }
}

TEST_CASE("sample_points charges its taps and refuses misfits") {
  Context ctx(cpu_backend(), 1);
  Random r(704);
  SamplePointsArgs a;
  a.x = random(ctx, DType::f32, {2, 1, 3, 4, 8}, r);
  a.points = random(ctx, DType::f32, {2, 5, 6, 2}, r);
  a.y = ctx.allocate(DType::f32, {2, 5, 6, 8});
  CHECK(charged(ctx, [&] { sample_points(ctx, a); }) == Cost{0, 60 * 72, 0, 4 * (192 + 120), 4 * 480});
  SamplePointsArgs b = a;
  b.x = random(ctx, DType::f32, {2, 2, 3, 4, 8}, r);
  CHECK_THROWS_WITH(sample_points(ctx, b), ContainsSubstring("neither one group nor the 5"));
  b = a;
  b.y = ctx.allocate(DType::f32, {2, 5, 6, 4});
  CHECK_THROWS_WITH(sample_points(ctx, b), ContainsSubstring("[2, 5, 6, 8]"));
}
