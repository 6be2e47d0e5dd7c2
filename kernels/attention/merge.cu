// merge_attention on CUDA: a warp a row.
#include "kernels/attention/merge.hpp"
#include "kernels/core/cuda_kernel.cuh"

namespace attnbench {
namespace {

struct MergeWork {
  const void *o_a, *o_b;
  void* o;
  const float *lse_a, *lse_b;
  float* lse;
  DeviceRows a, b, out, la, lb, lo;
  int64_t rows, e;
};

constexpr int kThreads = 256, kWarp = 32;

template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(MergeWork w) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp; r < w.rows;
       r += step) {
    const float la = w.lse_a[w.la.offset(r)], lb = w.lse_b[w.lb.offset(r)];
    const float top = la > lb || isnan(la) ? la : lb;
    const bool none = top == -INFINITY;
    const float ea = none ? 0.0f : expf(la - top), eb = none ? 0.0f : expf(lb - top);
    const float inverse = none ? 0.0f : 1.0f / (ea + eb);
    const float wa = ea * inverse, wb = eb * inverse;
    const T *x = static_cast<const T*>(w.o_a) + w.a.offset(r),
            *y = static_cast<const T*>(w.o_b) + w.b.offset(r);
    T* z = static_cast<T*>(w.o) + w.out.offset(r);
    for (int64_t i = lane; i < w.e; i += kWarp) {
      // What carries no weight may hold anything.
      if (none)
        z[i] = narrow<T>(0.0f);
      else if (wa == 0.0f || wb == 0.0f)
        z[i] = wa == 0.0f ? y[i] : x[i];
      else
        z[i] = narrow<T>(wa * widen(x[i]) + wb * widen(y[i]));
    }
    // lse may be one of the inputs: every lane has read them.
    __syncwarp();
    if (w.lse && lane == 0) w.lse[w.lo.offset(r)] = none ? top : top + logf(ea + eb);
  }
}

}  // namespace

void CudaBackend::merge_attention(Context& ctx, const MergeAttentionArgs& args) {
  MergeWork w{};
  w.o_a = args.o_a.raw(), w.o_b = args.o_b.raw(), w.o = args.o.raw();
  w.lse_a = args.lse_a.data<float>(), w.lse_b = args.lse_b.data<float>();
  if (args.lse) w.lse = args.lse.data<float>(), w.lo = DeviceRows(args.lse, 0);
  w.a = DeviceRows(args.o_a, 1), w.b = DeviceRows(args.o_b, 1), w.out = DeviceRows(args.o, 1);
  w.la = DeviceRows(args.lse_a, 0), w.lb = DeviceRows(args.lse_b, 0);
  w.rows = w.out.count, w.e = args.o.dim(3);
  by_float_type(args.o.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    merge_kernel<T><<<grid_for(ctx, w.rows, kThreads / kWarp), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace attnbench
