#include <algorithm>
#include <cmath>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/features/features.hpp"

namespace attnbench {
namespace {

/// Calls f(pointer type) with t's element type.
template <class F>
void by_type(DType t, const F& f) {
  if (t == DType::f32) return f(static_cast<float*>(nullptr));
  if (t == DType::bf16) return f(static_cast<bf16*>(nullptr));
  f(static_cast<f16*>(nullptr));
}

template <class T>
double power(const T* x, int64_t n) {
  // Eight sums: vector code without reordering what the compiler may not.
  double s[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) {
      const double v = static_cast<float>(x[i + l]);
      s[l] += v * v;
    }
  for (; i < n; ++i) {
    const double v = static_cast<float>(x[i]);
    s[0] += v * v;
  }
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

template <class T>
double mean_of(const T* x, int64_t n) {
  double s[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) s[l] += static_cast<double>(static_cast<float>(x[i + l]));
  for (; i < n; ++i) s[0] += static_cast<double>(static_cast<float>(x[i]));
  return (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))) / static_cast<double>(n);
}

int64_t rows_per_thread(int64_t columns) { return std::max<int64_t>(kParallelBytes / (8 * columns + 8), 1); }

}  // namespace

void CpuBackend::unit_rows(Context& ctx, const UnitRowsArgs& args) {
  const RowOffsets x_at(args.x, 1), y_at(args.y, 1);
  const RowOffsets like_at = args.like ? RowOffsets(args.like, 1) : RowOffsets();
  const RowOffsets gain_at = args.gain ? RowOffsets(args.gain, 0) : RowOffsets();
  using Kind = UnitRowsArgs::Kind;
  const int64_t n = args.x.dim(-1);
  by_type(args.x.dtype(), [&](auto* from) {
    using X = std::remove_pointer_t<decltype(from)>;
    by_type(args.y.dtype(), [&](auto* to) {
      using Y = std::remove_pointer_t<decltype(to)>;
      parallel_range(ctx.threads(), x_at.count(), rows_per_thread(n), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const X* x = static_cast<const X*>(args.x.raw()) + x_at.offset(r);
          Y* y = static_cast<Y*>(args.y.raw()) + y_at.offset(r);
          double factor = args.gain ? static_cast<double>(args.gain.data<float>()[gain_at.offset(r)]) : 1.0;
          float shift = 0.0f, added = 0.0f;
          if (args.kind == Kind::norm) {
            if (args.like)
              factor *= std::sqrt(power(static_cast<const X*>(args.like.raw()) + like_at.offset(r), n));
            factor /= std::max(std::sqrt(power(x, n)), static_cast<double>(args.floor));
          } else if (args.kind == Kind::mean) {
            shift = static_cast<float>(mean_of(x, n));
            factor *= static_cast<double>(args.alpha);
            added = args.beta;
          }
          const auto scale = static_cast<float>(factor);
          for (int64_t i = 0; i < n; ++i)
            y[i] = static_cast<Y>((static_cast<float>(x[i]) - shift) * scale + added);
        }
      });
    });
  });
}

void CpuBackend::feature_map(Context& ctx, const FeatureMapArgs& args) {
  using Kind = FeatureMapArgs::Kind;
  const RowOffsets x_at(args.x, 1), p_at(args.p, 1), y_at(args.y, 1);
  const int64_t d = args.x.dim(-1), m = args.p.dim(-1);
  const auto unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(m)));
  parallel_range(ctx.threads(), p_at.count(), rows_per_thread(8 * m), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* p = args.p.data<float>() + p_at.offset(r);
      float* y = args.y.data<float>() + y_at.offset(r);
      if (args.kind == Kind::relu) {
        for (int64_t i = 0; i < m; ++i) y[i] = (p[i] > 0.0f || p[i] != p[i] ? p[i] : 0.0f) * unit + 1e-3f;
        continue;
      }
      const double half = 0.5 * power(args.x.data<float>() + x_at.offset(r), d);
      if (args.kind == Kind::exponential) {
        for (int64_t i = 0; i < m; ++i) y[i] = std::exp(p[i] - static_cast<float>(half)) * unit;
      } else {
        const float scale = static_cast<float>(std::exp(half)) * unit;
        for (int64_t i = 0; i < m; ++i) {
          y[i] = std::sin(p[i]) * scale;
          y[m + i] = std::cos(p[i]) * scale;
        }
      }
    }
  });
}

void CpuBackend::divide_by_last(Context& ctx, const DivideByLastArgs& args) {
  const RowOffsets x_at(args.x, 1), y_at(args.y, 1);
  const int64_t e = args.y.dim(-1);
  parallel_range(ctx.threads(), x_at.count(), rows_per_thread(e), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = args.x.data<float>() + x_at.offset(r);
      float* y = args.y.data<float>() + y_at.offset(r);
      const float d = x[e] > 0.0f || x[e] != x[e] ? x[e] : 1.0f;
      for (int64_t i = 0; i < e; ++i) y[i] = x[i] / d;
    }
  });
}

}  // namespace attnbench
