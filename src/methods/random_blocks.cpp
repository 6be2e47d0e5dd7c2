// Softmax attention over random key blocks: the yardstick of block-sparse kernels, not a paper's method.
// Nothing in the pattern helps or hurts a kernel, so its rate over the visited blocks is the kernel's own.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs/inputs.hpp"
#include "methods/block_pattern.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "random_blocks";
  m.title = "Random block-sparse attention";
  m.paper = "none: this project's yardstick for block-sparse kernels";
  m.family = "block-sparse (softmax)";
  m.summary =
      "Every block of queries attends to a random set of key blocks of the same size, the same for all "
      "heads. The block "
      "lists are a static plan, made in prepare().";
  m.formula =
      "blocks of T = block_size tokens; query block r may see the key blocks c = 0 .. C - 1, or c <= r when "
      "causal\n"
      "k(r) = max(1, round((1 - sparsity) * allowed blocks)); chosen: the diagonal block when causal, then "
      "those with the "
      "smallest random_bits(seed, 'random_blocks', r * C + c)\n"
      "o_i = sum_j softmax_j(scale * q_i . k_j) v_j over the chosen blocks, j <= i when causal";
  m.cost =
      "P pairs a head: sum over query blocks of rows times columns of the chosen blocks, cut at N and M. "
      "Matmul 4 P D B H, "
      "special P B H, elementwise 4 P B H.";
  m.params = {
      spec::param("block_size", ParamSpec::Type::integer, 128, 1, {}, "tokens of a block, queries and keys"),
      spec::param("sparsity", ParamSpec::Type::number, 0.9, 0.0, 1.0, "share of the allowed blocks left out"),
      spec::param("pattern_seed", ParamSpec::Type::integer, 0, 0, {},
                  "seed of the pattern, apart from the inputs'"),
      scale_param()};
  m.kinds = {ProblemKind::sequence};
  m.notes = {
      "Causal patterns need as many keys as queries.",
      "The delivered sparsity differs from the requested one by rounding; the visited pairs are counted."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 500;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

class RandomBlocksInstance final : public HeadsInstance {
 public:
  RandomBlocksInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params,
                       double scale)
      : HeadsInstance(ctx, info, problem, scale), causal_(problem.causal) {
    if (causal_ && form_.queries != form_.keys)
      throw Unsupported("random_blocks: a causal pattern needs as many keys as queries, not " +
                        std::to_string(form_.queries) + " and " + std::to_string(form_.keys));
    masked_ = true;
    mask_.block_q = mask_.block_k = params.integer("block_size");
    choose(params.number("sparsity"), static_cast<uint64_t>(params.integer("pattern_seed")));
  }

  void prepare(Context& ctx) override { pattern_.upload(ctx, mask_); }
  void run(Context& ctx) override {
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
  }

  ClosedForm cost() const override {
    ClosedForm c;
    c.cost = fused_cost(pattern_.visited_pairs());
    c.cost.bytes_read += pattern_.list_bytes();
    return c;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = form_.batch;
    set.heads = form_.heads;
    set.queries = form_.queries;
    set.tokens = form_.keys;
    set.row = [pattern = pattern_, keys = form_.keys, causal = causal_](int64_t, int64_t, int64_t i,
                                                                        Intervals& out) {
      pattern.intervals(i, causal ? i + 1 : keys, out);
    };
    return set;
  }

 private:
  void choose(double sparsity, uint64_t seed) {
    const int64_t block = mask_.block_q, rows = (form_.queries + block - 1) / block,
                  columns = (form_.keys + block - 1) / block;
    pattern_ = BlockPattern(form_.queries, form_.keys, block);
    const uint64_t stream = attnbench::stream_of("random_blocks");
    std::vector<std::pair<uint64_t, int32_t>> ranked;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t allowed = causal_ ? r + 1 : columns;
      const int64_t keep =
          std::max<int64_t>(1, std::llround((1.0 - sparsity) * static_cast<double>(allowed)));
      ranked.clear();
      for (int64_t c = 0; c < allowed; ++c)
        ranked.emplace_back(
            causal_ && c == r ? 0 : random_bits(seed, stream, static_cast<uint64_t>(r * columns + c)),
            static_cast<int32_t>(c));
      // The diagonal comes first whatever the others drew.
      if (causal_) std::swap(ranked.front(), ranked.back());
      std::partial_sort(ranked.begin() + (causal_ ? 1 : 0), ranked.begin() + keep, ranked.end());
      std::vector<int64_t> list;
      for (int64_t i = 0; i < keep; ++i) list.push_back(ranked[static_cast<size_t>(i)].second);
      std::sort(list.begin(), list.end());
      std::vector<bool> diagonal(list.size(), false);
      if (causal_) diagonal.back() = true;
      pattern_.add_row(list, diagonal);
    }
  }

  bool causal_;
  BlockPattern pattern_;
};

class RandomBlocks final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    return std::make_unique<RandomBlocksInstance>(ctx, info(), problem, params, scale_of(params, f.head_dim));
  }
};
ATTNBENCH_METHOD(RandomBlocks);

}  // namespace
}  // namespace attnbench
