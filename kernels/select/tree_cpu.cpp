#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/select/tree.hpp"

namespace attnbench {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Cell {
  int64_t start, size;
};

/// The search of one query block; buffers are kept between blocks.
class Search {
 public:
  Search(const TreeSearchArgs& a) : a_(a), d_(a.q.dim(3)) {}

  void run(int64_t b, int64_t h, int64_t block, int32_t* selected, int32_t* count) {
    const int64_t n = a_.q.dim(2), m = a_.k.dim(2), cells = ceil_div(a_.keep, a_.block_k);
    const int64_t first = block * a_.block_q, rows = std::min(a_.block_q, n - first);
    const int64_t t = a_.causal ? m - n + first + rows : m;
    range_ = std::max<int64_t>(0, t - a_.window);
    const int64_t blocks = ceil_div(range_, a_.block_k);
    std::fill(selected, selected + cells, -1);
    if (range_ <= a_.keep) {
      for (int64_t i = 0; i < blocks; ++i) selected[i] = static_cast<int32_t>(i);
      *count = static_cast<int32_t>(blocks);
      return;
    }
    batch_ = b, kv_head_ = h / (a_.q.dim(1) / a_.k.dim(1));
    head_ = static_cast<uint32_t>(b * a_.q.dim(1) + h), block_ = static_cast<uint32_t>(block);
    load_queries(b, h, first, rows);
    cells_.clear();
    for (int64_t i = 0; i < cells; ++i) {
      const int64_t from = blocks * i / cells;
      cells_.push_back({from, blocks * (i + 1) / cells - from});
    }
    for (uint32_t round = 0; (cells << round) < blocks; ++round) halve(round);
    for (int64_t i = 0; i < cells; ++i)
      selected[i] = static_cast<int32_t>(cells_[static_cast<size_t>(i)].start);
    *count = static_cast<int32_t>(cells);
  }

 private:
  void load_queries(int64_t b, int64_t h, int64_t first, int64_t rows) {
    queries_.clear(), positions_.clear();
    const int64_t shift = a_.k.dim(2) - a_.q.dim(2), step = std::min(a_.stride_q, rows);
    for (int64_t r = step - 1; r < rows; r += a_.stride_q) {
      queries_.resize(queries_.size() + static_cast<size_t>(d_));
      load(a_.q, b, h, first + r, queries_.data() + queries_.size() - d_);
      positions_.push_back(shift + first + r);
    }
  }
  void load(const Tensor& t, int64_t b, int64_t h, int64_t token, float* to) const {
    const int64_t at = b * t.stride(0) + h * t.stride(1) + token * t.stride(2);
    convert(static_cast<const char*>(t.raw()) + at * static_cast<int64_t>(size_of(t.dtype())), t.dtype(), to,
            DType::f32, d_);
  }
  float block_score(int64_t r) {
    float best = -std::numeric_limits<float>::infinity();
    key_.resize(static_cast<size_t>(d_));
    for (int64_t j = r * a_.block_k + a_.stride_k - 1; j < std::min(range_, (r + 1) * a_.block_k);
         j += a_.stride_k) {
      load(a_.k, batch_, kv_head_, j, key_.data());
      for (size_t i = 0; i < positions_.size(); ++i) {
        if (a_.causal && j > positions_[i]) continue;
        const float *q = queries_.data() + i * static_cast<size_t>(d_), *k = key_.data();
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t c = 0; c < d_; ++c) s += q[c] * k[c];
        best = std::max(best, s);
      }
    }
    return best;
  }
  float score(const Cell& c, uint32_t round) {
    using R = TreeSearchArgs::Representative;
    switch (a_.representative) {
      case R::first:
        return block_score(c.start);
      case R::center:
        return block_score(c.start + c.size / 2);
      case R::last:
        return block_score(c.start + c.size - 1);
      case R::random:
        return block_score(c.start +
                           tree_hash(a_.seed, head_, block_, round, static_cast<uint32_t>(c.start)) % c.size);
      case R::oracle:
        break;
    }
    float best = -std::numeric_limits<float>::infinity();
    for (int64_t r = c.start; r < c.start + c.size; ++r) best = std::max(best, block_score(r));
    return best;
  }
  void halve(uint32_t round) {
    children_.clear(), scores_.clear(), order_.clear();
    for (const Cell& c : cells_)
      for (const Cell& child : {Cell{c.start, c.size / 2}, Cell{c.start + c.size / 2, c.size - c.size / 2}}) {
        if (child.size == 0) continue;
        order_.push_back(children_.size());
        children_.push_back(child);
        scores_.push_back(score(child, round));
      }
    // Children ascend by start, so that a stable sort leaves equal scores in that order.
    std::stable_sort(order_.begin(), order_.end(),
                     [this](size_t a, size_t b) { return scores_[a] > scores_[b]; });
    order_.resize(cells_.size());
    std::sort(order_.begin(), order_.end());
    for (size_t i = 0; i < order_.size(); ++i) cells_[i] = children_[order_[i]];
  }

  const TreeSearchArgs& a_;
  int64_t d_, range_ = 0, batch_ = 0, kv_head_ = 0;
  uint32_t head_ = 0, block_ = 0;
  std::vector<float> queries_, key_, scores_;
  std::vector<int64_t> positions_;
  std::vector<Cell> cells_, children_;
  std::vector<size_t> order_;
};

}  // namespace

void CpuBackend::tree_search(Context& ctx, const TreeSearchArgs& args) {
  const int64_t heads = args.q.dim(1), nq = args.count.dim(2), cells = args.selected.dim(3);
  std::vector<Search> search(static_cast<size_t>(ctx.threads()), Search(args));
  parallel_items(ctx.threads(), args.count.numel(), [&](int64_t item) {
    search[static_cast<size_t>(thread_index())].run(item / nq / heads, item / nq % heads, item % nq,
                                                    args.selected.data<int32_t>() + item * cells,
                                                    args.count.data<int32_t>() + item);
  });
  if (args.lists) token_lists(ctx, token_lists_of(args));
}

void CpuBackend::token_lists(Context& ctx, const TokenListsArgs& args) {
  const int64_t nq = args.count.dim(2), cells = args.selected.dim(3);
  const int64_t entries = cells * args.block_k + args.window + args.sinks;
  parallel_range(ctx.threads(), args.count.numel(), std::max<int64_t>(1, kParallelBytes / (4 * entries + 1)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin; row < end; ++row) {
                     const int64_t last = std::min(args.n, (row % nq + 1) * args.block_q);
                     const int64_t t = args.causal ? args.m - args.n + last : args.m;
                     const int64_t sinks = std::min(args.sinks, t), range = std::max(sinks, t - args.window);
                     int32_t* to = args.lists.index.data<int32_t>() + row * entries;
                     int64_t found = 0;
                     for (int64_t j = 0; j < sinks; ++j) to[found++] = static_cast<int32_t>(j);
                     for (int32_t c = 0; c < args.count.data<int32_t>()[row]; ++c) {
                       const int64_t block = args.selected.data<int32_t>()[row * cells + c];
                       for (int64_t j = std::max(sinks, block * args.block_k);
                            j < std::min(range, (block + 1) * args.block_k); ++j)
                         to[found++] = static_cast<int32_t>(j);
                     }
                     for (int64_t j = range; j < t && args.window > 0; ++j)
                       to[found++] = static_cast<int32_t>(j);
                     args.lists.begin.data<int32_t>()[row] = static_cast<int32_t>(row * entries);
                     args.lists.count.data<int32_t>()[row] = static_cast<int32_t>(found);
                   }
                 });
}

}  // namespace attnbench
