// reweigh_attention and reweigh_map on CUDA: a warp a row.
#include "kernels/attention/reweigh.hpp"
#include "kernels/core/cuda_kernel.cuh"

namespace attnbench {
namespace {

constexpr int kThreads = 256, kWarp = 32, kRows = kThreads / kWarp;

struct Factors {
  float members, others, after;
};
__device__ inline Factors factors_of(float s, float beta, bool apply) {
  if (!apply || !(1.0f - s > 0.0f)) return {1.0f, 1.0f, s};
  return {beta, 1.0f + (1.0f - beta) * s / (1.0f - s), beta * s};
}

struct Work {
  const void *o = nullptr, *o_s = nullptr;
  void* y = nullptr;
  const float *lse = nullptr, *lse_s = nullptr, *apply = nullptr;
  float *share = nullptr, *share_after = nullptr;
  DeviceRows o_rows, s_rows, y_rows;
  // The map's.
  const float* p = nullptr;
  const int* members = nullptr;
  float* to = nullptr;
  int64_t rows = 0, n = 1, width = 0;
  float beta = 1;
};

template <class T>
__global__ void __launch_bounds__(kThreads) attention_kernel(Work w) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp; r < w.rows;
       r += static_cast<int64_t>(gridDim.x) * kRows) {
    const float s = expf(w.lse_s[r] - w.lse[r]);
    const Factors f = factors_of(s, w.beta, !w.apply || w.apply[divide(r, w.n)] != 0.0f);
    if (lane == 0) {
      if (w.share) w.share[r] = s;
      if (w.share_after) w.share_after[r] = f.after;
    }
    if (!w.y) continue;
    const T* all = static_cast<const T*>(w.o) + w.o_rows.offset(r);
    const T* some = static_cast<const T*>(w.o_s) + w.s_rows.offset(r);
    T* to = static_cast<T*>(w.y) + w.y_rows.offset(r);
    const float take = (f.others - f.members) * s;
    for (int64_t i = lane; i < w.width; i += kWarp)  // nothing moves: the row as it is, bit by bit
      to[i] = take == 0.0f ? all[i] : narrow<T>(f.others * widen(all[i]) - take * widen(some[i]));
  }
}

__global__ void __launch_bounds__(kThreads) map_kernel(Work w) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp; r < w.rows;
       r += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t head = divide(r, w.n);
    const float* p = w.p + r * w.width;
    const int* member = w.members + head * w.width;
    double sum = 0;
    for (int64_t j = lane; j < w.width; j += kWarp)
      if (member[j]) sum += static_cast<double>(p[j]);
    for (int i = kWarp / 2; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    const float s = static_cast<float>(sum);
    const Factors f = factors_of(s, w.beta, !w.apply || w.apply[head] != 0.0f);
    if (lane == 0) {
      if (w.share) w.share[r] = s;
      if (w.share_after) w.share_after[r] = f.after;
    }
    for (int64_t j = lane; j < w.width; j += kWarp)
      w.to[r * w.width + j] = p[j] * (member[j] ? f.members : f.others);
  }
}

Work shares_of(const Tensor& apply, const Tensor& share, const Tensor& after, float beta) {
  Work w;
  if (apply) w.apply = apply.data<float>();
  if (share) w.share = share.data<float>();
  if (after) w.share_after = after.data<float>();
  w.beta = beta;
  return w;
}

}  // namespace

void CudaBackend::reweigh_attention(Context& ctx, const ReweighAttentionArgs& args) {
  Work w = shares_of(args.apply, args.share, args.share_after, args.beta);
  w.o = args.o.raw(), w.o_s = args.o_s.raw();
  w.lse = args.lse.data<float>(), w.lse_s = args.lse_s.data<float>();
  w.o_rows = DeviceRows(args.o, 1), w.s_rows = DeviceRows(args.o_s, 1);
  if (args.y) w.y = args.y.raw(), w.y_rows = DeviceRows(args.y, 1);
  w.rows = w.o_rows.count, w.n = args.o.dim(2), w.width = args.o.dim(3);
  by_float_type(args.o.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    attention_kernel<T><<<grid_for(ctx, w.rows, kRows), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::reweigh_map(Context& ctx, const ReweighMapArgs& args) {
  Work w = shares_of(args.apply, args.share, args.share_after, args.beta);
  w.p = args.p.data<float>(), w.members = args.members.data<int32_t>(), w.to = args.y.data<float>();
  w.n = args.p.dim(2), w.width = args.p.dim(3), w.rows = args.p.dim(0) * args.p.dim(1) * w.n;
  map_kernel<<<grid_for(ctx, w.rows, kRows), kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
