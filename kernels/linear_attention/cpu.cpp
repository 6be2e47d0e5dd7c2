#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/linear_attention/linear_attention.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/linear_attention/linear_body.hpp"

namespace attnbench {
namespace {

using Form = LinearAttentionArgs::Form;

/// Value columns that one piece of work owns. Heads alone are the best cut, as every cut of the columns
/// computes the scores again; with fewer heads than threads the columns are cut in multiples of 32, two
/// AVX-512 vectors.
int64_t column_range(int64_t heads, int64_t e, int threads) {
  constexpr int64_t kStep = 32;
  const int64_t ranges = heads > 0 ? (threads + heads - 1) / heads : 1;
  if (ranges <= 1 || e <= kStep) return e;
  return std::max(kStep, ((e + ranges - 1) / ranges + kStep - 1) / kStep * kStep);
}

class Run {
 public:
  Run(Context& ctx, const LinearAttentionArgs& args) : ctx_(ctx), args_(args) {
    n_ = args.q.dim(2), d_ = args.q.dim(3), e_ = args.v.dim(3);
    heads_ = args.q.dim(0) * args.q.dim(1);
    block_ = std::clamp<int64_t>(args.block_size, 1, std::max<int64_t>(n_, 1));
    blocks_ = (n_ + block_ - 1) / block_;
    range_ = column_range(heads_, e_, ctx.threads());
    const int64_t h = args.q.dim(1), powers = 2 * block_ + 1;
    weights_.resize(static_cast<size_t>(h * powers));
    for (int64_t i = 0; i < h; ++i) {
      const double log_decay = static_cast<double>(args.log_decay.data<float>()[i]);
      for (int64_t p = 0; p < powers; ++p)  // lambda^0 = 1 also for lambda = 0, whose logarithm is -infinity
        weights_[static_cast<size_t>(i * powers + 2 * block_ - p)] =
            p == 0 ? 1.0f : static_cast<float>(std::exp(static_cast<double>(p) * log_decay));
    }
    // The vector loops read whole rows; a little more than the bare size keeps the per-thread parts apart.
    work_floats_ = linear_workspace(block_, d_, e_) + 64;
    work_ = ctx.allocate(DType::f32, {ctx.threads(), work_floats_});
  }

  void run() {
    switch (args_.form) {
      case Form::chunk:
        return args_.causal ? chunk() : total();
      case Form::parallel:
        return args_.causal ? parallel() : total();
      case Form::recurrent:
        return args_.causal ? recurrent() : total();
      case Form::quadratic:
        return quadratic();
    }
  }

 private:
  LinearHead head(int64_t bh, int64_t column, int64_t columns) const {
    const int64_t b = bh / args_.q.dim(1), i = bh % args_.q.dim(1);
    const auto at = [&](const Tensor& t, int64_t offset) {
      return static_cast<char*>(t.raw()) +
             (b * t.stride(0) + i * t.stride(1) + offset) * static_cast<int64_t>(size_of(t.dtype()));
    };
    LinearHead w{};
    w.dtype = args_.q.dtype();
    w.q = at(args_.q, 0), w.k = at(args_.k, 0), w.v = at(args_.v, column), w.o = at(args_.o, column);
    w.q_row = args_.q.stride(2), w.k_row = args_.k.stride(2);
    w.v_row = args_.v.stride(2), w.o_row = args_.o.stride(2);
    w.n = n_, w.d = d_, w.e = columns, w.block = block_;
    w.causal = args_.causal;
    w.log_decay = static_cast<double>(args_.log_decay.data<float>()[i]);
    w.loss = w.log_decay > -0.69 ? static_cast<float>(-std::expm1(w.log_decay)) : 0.0f;
    w.weights = weights_.data() + i * (2 * block_ + 1);
    w.work = work_.data<float>() + thread_index() * work_floats_;
    return w;
  }
  const float* given(int64_t bh) const { return state_at(args_.state_in, bh); }
  static float* state_at(const Tensor& t, int64_t bh) {
    if (!t) return nullptr;
    return t.data<float>() + bh / t.dim(1) * t.stride(0) + bh % t.dim(1) * t.stride(1);
  }

  /// body(head, whether its state is initialised, head number, first column) for every head and range of
  /// value columns.
  template <class Body>
  void each_range(bool zero, const Body& body) {
    const int64_t ranges = range_ > 0 ? (e_ + range_ - 1) / range_ : 0;
    Tensor own;
    if (!args_.state_out) own = ctx_.allocate(DType::f32, {ctx_.threads(), d_, e_});
    parallel_items(ctx_.threads(), heads_ * ranges, [&](int64_t item) {
      const int64_t bh = item / ranges, column = item % ranges * range_;
      LinearHead w = head(bh, column, std::min(range_, e_ - column));
      w.state_row = e_;
      w.state =
          (args_.state_out ? state_at(args_.state_out, bh) : own.data<float>() + thread_index() * d_ * e_) +
          column;
      const float* start = given(bh);
      if (start || zero)
        for (int64_t i = 0; i < d_; ++i) {
          if (!start)
            std::memset(w.state + i * e_, 0, static_cast<size_t>(w.e) * sizeof(float));
          else if (start + column != w.state)
            std::memcpy(w.state + i * e_, start + column + i * e_, static_cast<size_t>(w.e) * sizeof(float));
        }
      body(w, start != nullptr || zero, bh, column);
    });
  }

  int64_t rows(int64_t block) const { return std::min(block_, n_ - block * block_); }

  void chunk() {
    const auto step = ATTNBENCH_BEST(linear_block);
    each_range(n_ == 0, [&](const LinearHead& w, bool started, int64_t, int64_t) {
      for (int64_t t = 0; t < blocks_; ++t) step(w, t * block_, rows(t), started || t > 0);
    });
  }

  void recurrent() {
    const auto steps = ATTNBENCH_BEST(linear_recurrent);
    each_range(true, [&](const LinearHead& w, bool, int64_t, int64_t) { steps(w); });
  }

  /// Without causality every query sees the whole sum.
  void total() {
    const auto add = ATTNBENCH_BEST(linear_update);
    const auto apply = ATTNBENCH_BEST(linear_inter);
    each_range(n_ == 0, [&](const LinearHead& w, bool started, int64_t, int64_t) {
      for (int64_t t = 0; t < blocks_; ++t) add(w, t * block_, rows(t), started || t > 0);
      for (int64_t t = 0; t < blocks_; ++t) apply(w, t * block_, rows(t), 1.0f);
    });
  }

  void quadratic() {
    const auto tile = ATTNBENCH_BEST(linear_quadratic);
    // Later row blocks see more keys, so they are handed out first.
    parallel_items(ctx_.threads(), heads_ * blocks_, [&](int64_t item) {
      const int64_t bh = item % heads_, t = blocks_ - 1 - item / heads_;
      LinearHead w = head(bh, 0, e_);
      w.state = const_cast<float*>(given(bh));  // read only
      w.state_row = e_;
      tile(w, t * block_, rows(t));
    });
    if (!args_.state_out) return;
    const auto add = ATTNBENCH_BEST(linear_update);
    each_range(n_ == 0, [&](const LinearHead& w, bool started, int64_t, int64_t) {
      for (int64_t t = 0; t < blocks_; ++t) add(w, t * block_, rows(t), started || t > 0);
    });
  }

  void parallel() {
    const auto intra = ATTNBENCH_BEST(linear_intra);
    const auto add = ATTNBENCH_BEST(linear_update);
    const auto inter = ATTNBENCH_BEST(linear_inter);
    const Tensor sums = ctx_.allocate(DType::f32, {heads_, blocks_, d_, e_});
    float* base = sums.data<float>();
    const int64_t size = d_ * e_;
    // All blocks at once: their own products and their own sums.
    parallel_items(ctx_.threads(), heads_ * blocks_, [&](int64_t item) {
      const int64_t bh = item / blocks_, t = item % blocks_;
      LinearHead w = head(bh, 0, e_);
      intra(w, t * block_, rows(t));
      w.state = base + item * size;
      w.state_row = e_;
      add(w, t * block_, rows(t), false);
    });
    // The decayed exclusive scan over the blocks turns every sum into what its block inherits.
    each_range(true, [&](const LinearHead& w, bool, int64_t bh, int64_t column) {
      for (int64_t t = 0; t < blocks_; ++t) {
        const float decay = w.power(rows(t));
        float* sum = base + (bh * blocks_ + t) * size + column;
        for (int64_t i = 0; i < d_; ++i)
          for (int64_t j = 0; j < w.e; ++j) {
            const float own = sum[i * e_ + j];
            float& carried = w.state[i * e_ + j];
            sum[i * e_ + j] = carried;
            carried = decay * carried + own;
          }
      }
    });
    parallel_items(ctx_.threads(), heads_ * blocks_, [&](int64_t item) {
      const int64_t bh = item / blocks_, t = item % blocks_;
      if (t == 0 && !args_.state_in) return;
      LinearHead w = head(bh, 0, e_);
      w.state = base + item * size;
      w.state_row = e_;
      inter(w, t * block_, rows(t), 1.0f);
    });
  }

  Context& ctx_;
  const LinearAttentionArgs& args_;
  int64_t n_, d_, e_, heads_, block_, blocks_, range_, work_floats_;
  std::vector<float> weights_;
  Tensor work_;
};

}  // namespace

void CpuBackend::linear_attention(Context& ctx, const LinearAttentionArgs& args) { Run(ctx, args).run(); }

}  // namespace attnbench
