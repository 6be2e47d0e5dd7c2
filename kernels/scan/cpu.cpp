#include <algorithm>
#include <cstring>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/scan/scan.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/scan/scan_body.hpp"

namespace attnbench {
namespace {

/// Direct form II transposed: two values of state, in f64.
template <class T>
void filter_row(const IirArgs& args, const T* x, T* y, int64_t n) {
  constexpr size_t kMost = 16;
  double z1[kMost] = {}, z2[kMost] = {};
  const size_t count = args.sections.size();
  const int64_t step = args.reverse ? -1 : 1, begin = args.reverse ? n - 1 : 0;
  if (args.steady) {
    double level = static_cast<double>(x[begin]);
    for (size_t s = 0; s < count; ++s) {
      const Biquad& q = args.sections[s];
      const double poles = 1.0 + q.a1 + q.a2;
      const double gain = poles == 0.0 ? 0.0 : (q.b0 + q.b1 + q.b2) / poles;
      if (poles != 0.0) {
        z1[s] = (gain - q.b0) * level;
        z2[s] = (q.b2 - q.a2 * gain) * level;
      }
      level *= gain;
    }
  }
  for (int64_t i = 0, t = begin; i < n; ++i, t += step) {
    double v = static_cast<double>(x[t]);
    for (size_t s = 0; s < count; ++s) {
      const Biquad& q = args.sections[s];
      const double out = q.b0 * v + z1[s];
      z1[s] = q.b1 * v - q.a1 * out + z2[s];
      z2[s] = q.b2 * v - q.a2 * out;
      v = out;
    }
    y[t] = static_cast<T>(v);
  }
}

template <class T>
void extend_row(const ExtendArgs& args, const T* x, T* y, int64_t n) {
  using Mode = ExtendArgs::Mode;
  const auto outside = [&](int64_t mirror, int64_t end) {
    switch (args.mode) {
      case Mode::zeros:
        return T(0);
      case Mode::reflect:
        return x[mirror];
      case Mode::odd:
        return T(2) * x[end] - x[mirror];
      case Mode::edge:
        return x[end];
    }
    return T(0);
  };
  for (int64_t i = 1; i <= args.before; ++i) y[args.before - i] = outside(i, 0);
  std::memcpy(y + args.before, x, static_cast<size_t>(n) * sizeof(T));
  for (int64_t i = 1; i <= args.after; ++i) y[args.before + n - 1 + i] = outside(n - 1 - i, n - 1);
}

char* at(const Tensor& t, int64_t elements) {
  return static_cast<char*>(t.raw()) + elements * static_cast<int64_t>(size_of(t.dtype()));
}

}  // namespace

void CpuBackend::selective_scan(Context& ctx, const SelectiveScanArgs& args) {
  const auto run = ATTNBENCH_BEST(scan_rows);
  const int64_t length = args.u.dim(-2), d = args.u.dim(-1), s = args.b.dim(-1);
  const RowOffsets u(args.u, 2), delta(args.delta, 2), b(args.b, 2), c(args.c, 2), y(args.y, 2);
  const RowOffsets z = args.z ? RowOffsets(args.z, 2) : RowOffsets();
  const int64_t blocks = (d + kScanChannels - 1) / kScanChannels, cell = s * kScanChannels;
  // [block][state][channel], zeros behind the last channel.
  const Tensor table = ctx.allocate(DType::f32, {blocks, s + 2, kScanChannels});
  float* a = table.data<float>();
  std::fill(a, a + table.numel(), 0.0f);
  for (int64_t i = 0; i < d; ++i) {
    float* column = a + i / kScanChannels * (cell + 2 * kScanChannels) + i % kScanChannels;
    for (int64_t j = 0; j < s; ++j) column[j * kScanChannels] = args.a.data<float>()[i * s + j];
    if (args.skip) column[cell] = args.skip.data<float>()[i];
    if (args.bias) column[cell + kScanChannels] = args.bias.data<float>()[i];
  }
  const Tensor states = ctx.allocate(DType::f32, {ctx.threads(), std::max<int64_t>(cell, 1)});
  const int64_t first = args.reverse ? length - 1 : 0, sign = args.reverse ? -1 : 1;
  parallel_items(ctx.threads(), u.count() * blocks, [&](int64_t item) {
    const int64_t sequence = item / blocks, block = item % blocks, channel = block * kScanChannels;
    const auto start = [&](const Tensor& t, const RowOffsets& rows, int64_t column) {
      return at(t, rows.offset(sequence) + first * t.stride(-2) + column);
    };
    ScanRows w{};
    w.dtype = args.u.dtype();
    w.length = length, w.channels = std::min(kScanChannels, d - channel), w.states = s;
    w.u = start(args.u, u, channel), w.u_step = sign * args.u.stride(-2);
    w.delta = start(args.delta, delta, channel), w.delta_step = sign * args.delta.stride(-2);
    w.b = start(args.b, b, 0), w.b_step = sign * args.b.stride(-2);
    w.c = start(args.c, c, 0), w.c_step = sign * args.c.stride(-2);
    if (args.z) w.z = start(args.z, z, channel), w.z_step = sign * args.z.stride(-2);
    w.y = start(args.y, y, channel), w.y_step = sign * args.y.stride(-2);
    w.a = a + block * (cell + 2 * kScanChannels);
    w.skip = args.skip ? w.a + cell : nullptr;
    w.bias = args.bias ? w.a + cell + kScanChannels : nullptr;
    w.softplus = args.softplus;
    w.state = states.data<float>() + thread_index() * cell;
    std::fill(w.state, w.state + cell, 0.0f);
    run(w);
  });
}

void CpuBackend::iir(Context& ctx, const IirArgs& args) {
  const RowOffsets x(args.x, 1), y(args.y, 1);
  parallel_items(ctx.threads(), x.count(), [&](int64_t i) {
    if (args.x.dtype() == DType::f64)
      filter_row(args, args.x.data<double>() + x.offset(i), args.y.data<double>() + y.offset(i),
                 args.x.dim(-1));
    else
      filter_row(args, args.x.data<float>() + x.offset(i), args.y.data<float>() + y.offset(i),
                 args.x.dim(-1));
  });
}

void CpuBackend::extend(Context& ctx, const ExtendArgs& args) {
  const RowOffsets x(args.x, 1), y(args.y, 1);
  const int64_t n = args.x.dim(-1);
  parallel_range(
      ctx.threads(), x.count(), std::max<int64_t>(kParallelBytes / (16 * (n + 1)), 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (args.x.dtype() == DType::f64)
            extend_row(args, args.x.data<double>() + x.offset(i), args.y.data<double>() + y.offset(i), n);
          else
            extend_row(args, args.x.data<float>() + x.offset(i), args.y.data<float>() + y.offset(i), n);
        }
      });
}

}  // namespace attnbench
