// pool2d against windows walked in double, adaptive cells and padding included.
#include "kernels/pool/pool.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

using Kind = Pool2dArgs::Kind;

void run_and_check(Context& ctx, const Pool2dArgs& a) {
  const bool last = a.channels_last, max = a.kind == Kind::max;
  const int row = last ? 1 : 2, column = last ? 2 : 3, channel = last ? 3 : 1;
  const int64_t in[2] = {a.x.dim(row), a.x.dim(column)}, out[2] = {a.y.dim(row), a.y.dim(column)};
  const auto window = [&](int axis, int64_t i, int64_t& begin, int64_t& end, double& counted) {
    const auto s = static_cast<size_t>(axis);
    if (a.adaptive) {
      begin = i * in[axis] / out[axis];
      end = static_cast<int64_t>(
          std::ceil(static_cast<double>((i + 1) * in[axis]) / static_cast<double>(out[axis]) - 1e-9));
    } else {
      begin = i * a.stride[s] - a.pad[2 * s], end = begin + a.kernel[s];
    }
    const int64_t all = end - begin;
    begin = std::max<int64_t>(begin, 0), end = std::min(end, in[axis]);
    counted = static_cast<double>(a.count_padding ? all : end - begin);
  };
  std::vector<double> want, slack;
  each(a.y, [&](int64_t) { want.push_back(0); });
  slack = want;
  size_t n = 0;
  for (int64_t b = 0; b < a.y.dim(0); ++b)
    for (int64_t i1 = 0; i1 < a.y.dim(1); ++i1)
      for (int64_t i2 = 0; i2 < a.y.dim(2); ++i2)
        for (int64_t i3 = 0; i3 < a.y.dim(3); ++i3, ++n) {
          const int64_t c = last ? i3 : i1, oy = last ? i1 : i2, ox = last ? i2 : i3;
          int64_t h0, h1, w0, w1;
          double ch, cw;
          window(0, oy, h0, h1, ch);
          window(1, ox, w0, w1, cw);
          double sum = max ? -std::numeric_limits<double>::infinity() : 0, size = 0;
          for (int64_t h = h0; h < h1; ++h)
            for (int64_t w = w0; w < w1; ++w) {
              const double v = get(a.x, b * a.x.stride(0) + c * a.x.stride(channel) + h * a.x.stride(row) +
                                            w * a.x.stride(column));
              size += std::fabs(v);
              if (!max)
                sum += v;
              else if (std::isnan(v) || std::isnan(sum))
                sum = std::isnan(v) ? v : sum;
              else
                sum = std::max(sum, v);
            }
          want[n] = max ? sum : sum / (ch * cw);
          slack[n] = max ? 0 : size / (ch * cw) * static_cast<double>((h1 - h0) * (w1 - w0) + 2) * 0x1p-24;
        }
  poison(a.y);
  pool2d(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("pool2d agrees with its windows: kinds, layouts, padding, adaptive cells, views") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(401);
    for (Kind kind : {Kind::max, Kind::average})
      for (bool last : {true, false})
        for (int64_t c : {1, 5, 16, 70})
          for (int how = 0; how < 5; ++how) {
            Pool2dArgs a;
            a.kind = kind, a.channels_last = last;
            int64_t h = 9, w = 11, ho = 0, wo = 0;
            if (how == 0) a.kernel = {3, 3}, a.stride = {2, 2}, a.pad = {1, 1, 1, 1}, ho = 5, wo = 6;
            if (how == 1) a.kernel = {2, 5}, a.stride = {2, 5}, ho = 4, wo = 2;  // left-over positions
            if (how == 2) a.kernel = {3, 2}, a.pad = {0, 2, 1, 0}, a.count_padding = false, ho = 9, wo = 11;
            if (how == 3) a.adaptive = true, ho = 4, wo = 7;
            if (how == 4) a.adaptive = true, h = 3, w = 2, ho = 7, wo = 1;
            const Shape in = last ? Shape{2, h, w, c} : Shape{2, c, h, w};
            const Shape out = last ? Shape{2, ho, wo, c} : Shape{2, c, ho, wo};
            a.x = how == 2 ? randomize(padded(ctx, type, in, 1, 2), r) : random(ctx, type, in, r);
            if (kind == Kind::max && how == 0) put(a.x, 5, std::numeric_limits<double>::quiet_NaN());
            a.y = how == 2 ? padded(ctx, type, out, 0, 3) : ctx.allocate(type, out);
            INFO("way " << how << " " << in.str());
            run_and_check(ctx, a);
          }
  });
}

TEST_CASE("pool2d charges what windows read and refuses misfits") {
  Context ctx(cpu_backend(), 1);
  Random r(402);
  Pool2dArgs a;
  a.kind = Kind::average;
  a.kernel = {3, 3}, a.stride = {2, 2}, a.pad = {1, 1, 1, 1};
  a.x = random(ctx, DType::f32, {2, 5, 5, 3}, r);
  a.y = ctx.allocate(DType::f32, {2, 3, 3, 3});
  // Along an axis: 2 + 3 + 2 positions.
  CHECK(charged(ctx, [&] { pool2d(ctx, a); }) == Cost{0, 2 * 3 * 49 + 54, 0, 4 * 150, 4 * 54});
  const auto refuses = [&](const std::string& word, auto change) {
    Pool2dArgs b = a;
    change(b);
    CHECK_THROWS_AS(pool2d(ctx, b), UsageError);
    CHECK_THROWS_WITH(pool2d(ctx, b), ContainsSubstring(word));
  };
  refuses("windows of 2 give", [](auto& b) { b.kernel = {3, 2}, b.pad = {1, 1, 1, 1}, b.stride = {2, 1}; });
  refuses("lies in the padding", [&](auto& b) {
    b.kernel = {1, 3};
    b.y = ctx.allocate(DType::f32, {2, 4, 3, 3});
  });
  refuses("positive extents", [](auto& b) { b.stride[1] = 0; });
  refuses("differ in batch or channels", [&](auto& b) { b.y = ctx.allocate(DType::f32, {2, 3, 3, 4}); });
}
