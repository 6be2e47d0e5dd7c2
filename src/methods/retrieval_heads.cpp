// Retrieval heads: which heads copy the needle's tokens while it is recited, and what happens when they are
// masked. Card: retrieval_heads.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/select.hpp"
#include "methods/attention_rows.hpp"

namespace attnbench {
namespace {

constexpr const char* kDecode = "decode attention rows";

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "retrieval_heads";
  m.title = "Retrieval heads: detection, masking and statistics";
  m.paper = "Retrieval Head Mechanistically Explains Long-Context Factuality, ICLR 2025";
  m.arxiv = "2404.15574";
  m.family = "analysis (head scoring during decode, head ablation on dense causal attention)";
  m.summary =
      "A head retrieves where the key it weighs most, while a token of the needle is produced, holds that "
      "very token in "
      "the needle. Scores every head of every layer from attention rows (`rows`) or from queries and cached "
      "keys (`qk`), "
      "and masks chosen heads in decode steps.";
  m.formula =
      "j = arg max_j a[t, l, h][j] over the M0 + t keys;  copies at t iff s <= j < e and p[j] == w[t]\n"
      "reference: score = copying steps / n;  paper: needle positions copied at least once / n\n"
      "an instance counts iff its clipped unigram recall of the needle exceeds success_recall\n"
      "masked uniform: row 1 / M over the visible keys, o = mean of v;  zero_output: o = 0";
  m.cost =
      "qk: dense 4 L H P D with P = T M0 + T (T - 1) / 2 pairs a head; the logits again for the arg-max, 2 L "
      "H T M D and "
      "L H T M comparisons; 4 P D a masked head. rows: I T L H M comparisons. Key-value cache 2 L Hkv D "
      "bytes M.";
  ParamSpec kv = spec::integer("num_kv_heads", 32, 1, "Hkv", "kv_heads");
  ParamSpec match =
      spec::number("needle_match", 0.9, 0, 1, "share of the needle's distinct ids a window must exceed");
  m.params = {
      spec::integer("num_layers", 32, 1, "L (Llama-2-7B)"),
      spec::integer("num_heads", 32, 1, "H", "heads"),
      kv,
      spec::integer("head_dim", 128, 1, "D", "head_dim"),
      spec::choice("score_mode", {"reference", "paper"},
                   "which score the mean, the classes and the order use"),
      spec::integer("topk", 1, 1, "keys of the largest weight that may copy, one hit a step"),
      spec::number("threshold", 0.1, 0, 1, "mean score from which a head is a retrieval head"),
      spec::number("success_recall", 0.5, 0, 1, "recall an answer must exceed to count"),
      spec::integer("len_min", 1000, 1, "detection: shortest prompt"),
      spec::integer("len_max", 50000, 1, "detection: longest prompt"),
      spec::integer("len_steps", 20, 1, "detection: lengths, evenly spaced"),
      spec::integer("depth_steps", 10, 1, "detection: depths, 0 to 100 %"),
      spec::integer("needles", 3, 1, "detection: needles"),
      spec::integer("max_new_tokens", 50, 1, "detection: tokens decoded at most"),
      spec::integer("context_buffer", 200, 0, "detection: tokens left for the question"),
      match,
      spec::choice("mask_mode", {"uniform", "zero_output"},
                   "which masked output `masked` is; both are given"),
      spec::param("mask_topk", ParamSpec::Type::integer, 0,
                  "heads masked where no block_list is given: best by score, or below 0 random ones"),
      spec::param(
          "mask_prefill", ParamSpec::Type::boolean, false,
          "mask in the prefill too; the causal uniform row is the same there, and rows of a prefill are "
          "given as q"),
      spec::integer("random_exclude_top", 100, 0, "random heads are drawn from outside the so many best"),
      spec::integer("seed", 0, 0, "of the random heads"),
      spec::param(
          "scores_file", ParamSpec::Type::text, "",
          "statistics of a JSON file {\"layer-head\": [score of each instance, ..]} instead of tensors")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"heads with score >= 0.1", "llama-2-7b-80k, 586 instances", "1024 heads", "33 (3.22 %)",
                "released score file"},
               {"always active heads", "llama-2-7b-80k", "", "12", "section 3.2"},
               {"heads at 0 / (0, 0.1) / [0.1, 0.5) / >= 0.5", "llama-2-7b-80k", "",
                "70.2 / 26.6 / 2.6 / 0.6 %", "figure 3"},
               {"heads at 0 / (0, 0.1) / [0.1, 0.5) / >= 0.5", "Yi-6B-200K", "", "49.4 / 45.4 / 4.5 / 0.7 %",
                "released score file; the paper prints 50.7 / 43.7 / 4.9 / 0.8"},
               {"correlation of scores", "Llama-2-7B vs 80K, Qwen vs Chat, Mistral vs Mixtral",
                "across families < 0.05", "0.84, 0.87, 0.91", "section 3.3"},
               {"extractive QA F1", "Mistral-7B-Instruct-v0.2, mask 50 / 100 top heads",
                "56.7; random 55.7 / 55.4", "47.5 / 32.3", "section 4.2"},
               {"GSM8K with CoT", "mask 100", "45.1; random 21.3", "2.0", "figure 10"},
               {"KV cache", "Llama-2-7B, 100K tokens", "", "> 50 GB", "section 5"}};
  m.notes = {
      "problem.head_dim chooses the entry: with it `qk` (q [T, L, H, D], k, v [L, M, Hkv, D], one instance), "
      "without it "
      "`rows` (rows [I, T, L, H, M], I = batch). length is T, kv_length M = M0 + T - 1.",
      "Ties of the arg-max and of the order: lower index (chosen). The order is by the mean rounded to 1e-9.",
      "paper: within a step the best-ranked key that satisfies the test; each needle position once (chosen "
      "reading).",
      "A window that runs past the prompt is shorter than n while e stays s + n; keys behind the prompt "
      "never copy.",
      "The arg-max takes the logits, in f32 from the stored q and k: softmax does not change their order.",
      "Recall is of ids, without stemming. Text, tokenizer and the 600 prompts of the detection are the "
      "user's.",
      "Random heads are drawn from outside the best, as meant; the released code compares tuples with lists "
      "and never "
      "excludes any.",
      "Generated rows: even noise, and every seventh head has its largest weight on the matching needle "
      "token with "
      "probability 0.8."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.head_dim = 16;
  m.example.length = 6;
  m.example.kv_length = 37;
  m.example.causal = true;
  return m;
}

const MethodInfo& retrieval_info() {
  static const MethodInfo info = describe();
  return info;
}

// ---- scores, on the host: a few numbers a head
// -------------------------------------------------------------

struct Range {
  int64_t begin = -1, end = -1;
};

/// First window of n ids that holds more than `match` of the needle's distinct ids.
Range find_needle(const int32_t* p, int64_t length, const int32_t* needle, int64_t n, double match) {
  const std::set<int32_t> wanted(needle, needle + n);
  for (int64_t i = 0; i < length; ++i) {
    const std::set<int32_t> window(p + i, p + std::min(i + n, length));
    int64_t found = 0;
    for (int32_t id : wanted) found += window.contains(id);
    if (static_cast<double>(found) / static_cast<double>(wanted.size()) > match) return {i, i + n};
  }
  return {};
}

double unigram_recall(const int32_t* w, int64_t t, const int32_t* needle, int64_t n) {
  std::map<int32_t, int64_t> have;
  for (int64_t i = 0; i < t; ++i) ++have[w[i]];
  int64_t hits = 0;
  for (int64_t i = 0; i < n; ++i) hits += have[needle[i]]-- > 0;
  return static_cast<double>(hits) / static_cast<double>(n);
}

/// Mean over counted instances, share with a score above 0, classes and order; `scores` [instances][heads].
struct Statistics {
  std::vector<double> mean, frequency;
  std::vector<int64_t> order;
};
Statistics statistics_of(const std::vector<std::vector<double>>& scores, size_t heads) {
  Statistics s;
  s.mean.assign(heads, 0.0);
  s.frequency.assign(heads, 0.0);
  for (const std::vector<double>& one : scores)
    for (size_t h = 0; h < heads; ++h) s.mean[h] += one[h], s.frequency[h] += one[h] > 0;
  const double count = scores.empty() ? 1.0 : static_cast<double>(scores.size());
  for (size_t h = 0; h < heads; ++h) s.mean[h] /= count, s.frequency[h] /= count;
  s.order.resize(heads);
  std::iota(s.order.begin(), s.order.end(), int64_t{0});
  const auto rounded = [&](int64_t h) { return std::round(s.mean[static_cast<size_t>(h)] * 1e9); };
  std::stable_sort(s.order.begin(), s.order.end(),
                   [&](int64_t a, int64_t b) { return rounded(a) > rounded(b); });
  return s;
}

class RetrievalInstance : public Instance {
 public:
  RetrievalInstance(const Problem& problem, const Params& params)
      : layers_(params.integer("num_layers")),
        heads_(params.integer("num_heads")),
        topk_(params.integer("topk")),
        paper_(params.choice("score_mode") == "paper"),
        threshold_(params.number("threshold")),
        success_(params.number("success_recall")),
        match_(params.number("needle_match")),
        dtype_(problem.dtype),
        seed_(problem.seed) {}
  TensorMap outputs() const override { return out_; }
  bool capturable() const override { return false; }  // scores are counted on the host

 protected:
  int64_t all_heads() const { return layers_ * heads_; }
  void output(Context& ctx, const std::string& name, const Shape& shape, DType dtype = DType::f32) {
    out_[name] = ctx.allocate(dtype, shape, MemoryClass::output);
  }
  template <class T>
  void write(Context& ctx, const std::string& name, std::vector<T> v) {
    const Tensor& t = out_.at(name);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), v.data()), t);
  }
  static std::vector<int32_t> read(Context& ctx, const Tensor& t) {
    std::vector<int32_t> v(static_cast<size_t>(t.numel()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, DType::i32, t.shape(), v.data()));
    return v;
  }
  void statistics_outputs(Context& ctx) {
    output(ctx, "mean_score", {layers_, heads_});
    output(ctx, "activation_frequency", {layers_, heads_});
    output(ctx, "retrieval_heads", {layers_, heads_}, DType::i32);
    output(ctx, "top_k_order", {all_heads(), 2}, DType::i32);
  }
  void write_statistics(Context& ctx, const Statistics& chosen, const std::vector<double>& mean) {
    write<float>(ctx, "mean_score", {mean.begin(), mean.end()});
    write<float>(ctx, "activation_frequency", {chosen.frequency.begin(), chosen.frequency.end()});
    std::vector<int32_t> classes, order;
    for (double v : chosen.mean) classes.push_back(v >= threshold_);
    for (int64_t h : chosen.order) {
      order.push_back(static_cast<int32_t>(h / heads_));
      order.push_back(static_cast<int32_t>(h % heads_));
    }
    write(ctx, "retrieval_heads", std::move(classes));
    write(ctx, "top_k_order", std::move(order));
  }

  struct Scores {
    std::vector<double> reference, paper;
  };
  /// `selected` [T][heads][topk] of one instance.
  Scores score(const int32_t* selected, int64_t steps, const int32_t* p, int64_t length, const int32_t* w,
               const Range& needle) const {
    const auto heads = static_cast<size_t>(all_heads());
    Scores s{std::vector<double>(heads, 0.0), std::vector<double>(heads, 0.0)};
    if (needle.begin < 0) return s;
    const int64_t n = needle.end - needle.begin;
    for (size_t h = 0; h < heads; ++h) {
      std::set<int32_t> positions;
      int64_t copies = 0;
      for (int64_t t = 0; t < steps; ++t)
        for (int64_t r = 0; r < topk_; ++r) {
          const int32_t j = selected[(t * static_cast<int64_t>(heads) + static_cast<int64_t>(h)) * topk_ + r];
          if (j < needle.begin || j >= needle.end || j >= length || p[j] != w[t]) continue;
          ++copies;
          positions.insert(j);
          break;
        }
      s.reference[h] = static_cast<double>(copies) / static_cast<double>(n);
      s.paper[h] = static_cast<double>(positions.size()) / static_cast<double>(n);
    }
    return s;
  }

  /// Ids of a prompt with the needle in its middle; `at` -1: the whole list of inputs is made by these.
  void id_specs(int64_t instances, int64_t prompt, int64_t steps, int64_t needle, bool with_instances) {
    const auto id = [seed = seed_](const char* what, int64_t i) {
      return static_cast<double>(random_bits(seed, stream_of(what), static_cast<uint64_t>(i)) % 32000);
    };
    const int64_t begin = std::max<int64_t>((prompt - needle) / 2, 0);
    const auto spec = [&](const char* name, int64_t length, std::function<double(int64_t)> value,
                          const char* meaning) {
      TensorSpec s{name,       with_instances ? Shape{instances, length} : Shape{length},
                   DType::i32, Init::normal(),
                   false,      meaning};
      s.init.kind = Init::Kind::values;
      s.init.value = std::move(value);
      input_specs_.push_back(s);
    };
    spec(
        "p", prompt,
        [=](int64_t i) {
          const int64_t row = i / prompt, at = i % prompt - begin;
          return at >= 0 && at < needle ? id("needle", row * needle + at) : id("prompt", i);
        },
        "prompt ids");
    spec(
        "w", steps,
        [=](int64_t i) {
          const int64_t row = i / steps, at = i % steps;
          return id("needle", row * needle + at % needle);
        },
        "generated ids");
    spec(
        "needle_ids", needle, [=](int64_t i) { return id("needle", i); }, "needle ids");
  }

  int64_t layers_, heads_, topk_;
  bool paper_;
  double threshold_, success_, match_;
  DType dtype_;
  uint64_t seed_;
  TensorMap out_;
};

// ---- rows -------------------------------------------------------------------------------------------------

class RowsInstance final : public RetrievalInstance {
 public:
  RowsInstance(Context& ctx, const Problem& problem, const Params& params, int64_t needle)
      : RetrievalInstance(problem, params),
        instances_(problem.batch),
        steps_(problem.length),
        keys_(problem.kv_length_or_length()),
        prompt_(keys_ - steps_ + 1),
        needle_(needle) {
    TensorSpec rows{"rows", {instances_, steps_, layers_, heads_, keys_}, dtype_, Init::normal(), false,
                    kDecode};
    rows.init.kind = Init::Kind::values;
    rows.init.value = [=, this, seed = seed_, layers = layers_, heads = heads_, steps = steps_, keys = keys_,
                       prompt = prompt_, n = needle_](int64_t i) {
      const int64_t j = i % keys, head = i / keys % (layers * heads), t = i / keys / (layers * heads) % steps;
      if (j >= prompt + t) return 0.0;
      const double noise = random_uniform(seed, stream_of("rows"), static_cast<uint64_t>(i));
      const bool match = head % 7 == 0 && j == std::max<int64_t>((prompt - n) / 2, 0) + t % n;
      return match && random_uniform(seed, stream_of("copies"), static_cast<uint64_t>(i)) < 0.8 ? 1 + noise
                                                                                                : noise;
    };
    input_specs_.push_back(rows);
    id_specs(instances_, prompt_, steps_, needle_, true);
    const Shape scores{instances_, layers_, heads_};
    output(ctx, "needle_range", {instances_, 2}, DType::i32);
    output(ctx, "score_reference", scores);
    output(ctx, "score_paper", scores);
    output(ctx, "selected", {instances_, steps_, layers_, heads_, topk_}, DType::i32);
    output(ctx, "recall", {instances_});
    output(ctx, "counted", {instances_}, DType::i32);
    statistics_outputs(ctx);
    output(ctx, "mean_score_paper", {layers_, heads_});
  }

  void prepare(Context& ctx) override {
    std::vector<int32_t> limit(static_cast<size_t>(instances_ * steps_ * all_heads()));
    for (size_t i = 0; i < limit.size(); ++i)
      limit[i] = static_cast<int32_t>(prompt_ + static_cast<int64_t>(i) / all_heads() % steps_);
    limit_ = ctx.allocate(DType::i32, {instances_, steps_, layers_, heads_});
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::i32, limit_.shape(), limit.data()), limit_);
  }

  void run(Context& ctx) override {
    {
      const auto stage = ctx.stage("select");
      TopKArgs top;
      top.x = input("rows");
      if (dtype_ != DType::f32) {
        top.x = ctx.allocate(DType::f32, input("rows").shape());
        cast(ctx, {input("rows"), top.x});
      }
      top.index = out_.at("selected");
      top.visible.limit = limit_;
      top_k(ctx, top);
    }
    const auto stage = ctx.stage("score");
    ctx.backend().synchronize();
    const std::vector<int32_t> selected = read(ctx, out_.at("selected")), p = read(ctx, input("p")),
                               w = read(ctx, input("w")), needle = read(ctx, input("needle_ids"));
    std::vector<int32_t> ranges, counted;
    std::vector<float> reference, paper, recalls;
    std::vector<std::vector<double>> counted_reference, counted_paper;
    for (int64_t i = 0; i < instances_; ++i) {
      const int32_t *prompt = p.data() + i * prompt_, *emitted = w.data() + i * steps_,
                    *ids = needle.data() + i * needle_;
      const Range range = find_needle(prompt, prompt_, ids, needle_, match_);
      ranges.push_back(static_cast<int32_t>(range.begin));
      ranges.push_back(static_cast<int32_t>(range.end));
      const Scores s =
          score(selected.data() + i * steps_ * all_heads() * topk_, steps_, prompt, prompt_, emitted, range);
      reference.insert(reference.end(), s.reference.begin(), s.reference.end());
      paper.insert(paper.end(), s.paper.begin(), s.paper.end());
      const double recall = unigram_recall(emitted, steps_, ids, needle_);
      recalls.push_back(static_cast<float>(recall));
      counted.push_back(recall > success_);
      if (!counted.back()) continue;
      counted_reference.push_back(s.reference);
      counted_paper.push_back(s.paper);
    }
    const auto heads = static_cast<size_t>(all_heads());
    const Statistics by_reference = statistics_of(counted_reference, heads),
                     by_paper = statistics_of(counted_paper, heads);
    write(ctx, "needle_range", std::move(ranges));
    write(ctx, "score_reference", std::move(reference));
    write(ctx, "score_paper", std::move(paper));
    write(ctx, "recall", std::move(recalls));
    write(ctx, "counted", std::move(counted));
    write<float>(ctx, "mean_score_paper", {by_paper.mean.begin(), by_paper.mean.end()});
    write_statistics(ctx, paper_ ? by_paper : by_reference, by_reference.mean);
  }

  ClosedForm cost() const override {
    const int64_t rows = instances_ * steps_ * all_heads();
    ClosedForm f;
    f.cost.elementwise = rows * keys_;
    f.cost.bytes_read = rows * keys_ * 4 + rows * 4;
    f.cost.bytes_written = rows * topk_ * 4;
    if (dtype_ != DType::f32) {
      f.cost.bytes_read += rows * keys_ * static_cast<int64_t>(size_of(dtype_));
      f.cost.bytes_written += rows * keys_ * 4;
    }
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet s;
    s.batch = instances_;
    s.heads = all_heads();
    s.queries = steps_;
    s.tokens = keys_;
    s.row = [prompt = prompt_](int64_t, int64_t, int64_t i, Intervals& out) { out = {{0, prompt + i}}; };
    return s;
  }
  int64_t keys(int64_t) const override { return keys_; }
  /// Instance b's rows of head h of all layers, as given (padding 0).
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t begin, int64_t end,
            std::vector<float>& out) override {
    out.clear();
    const Tensor given = input("rows");
    std::vector<char> raw(static_cast<size_t>(keys_) * size_of(dtype_));
    std::vector<float> row(static_cast<size_t>(keys_));
    for (int64_t i = begin; i < end; ++i) {
      const Tensor one = given.select(0, b).select(0, i).select(0, h / heads_).select(0, h % heads_);
      copy(ctx, one, Tensor::borrow(DeviceKind::cpu, dtype_, {keys_}, raw.data()));
      convert(raw.data(), dtype_, row.data(), DType::f32, keys_);
      std::fill(row.begin() + prompt_ + i, row.end(), 0.0f);
      out.insert(out.end(), row.begin(), row.end());
    }
    return true;
  }

 private:
  int64_t instances_, steps_, keys_, prompt_, needle_;
  Tensor limit_;
};

// ---- qk ---------------------------------------------------------------------------------------------------

class QkInstance final : public RetrievalInstance {
 public:
  QkInstance(Context& ctx, const Problem& problem, const Params& params, int64_t needle, int64_t listed)
      : RetrievalInstance(problem, params),
        steps_(problem.length),
        keys_(problem.kv_length_or_length()),
        prompt_(keys_ - steps_ + 1),
        needle_(needle),
        kv_heads_(params.integer("num_kv_heads")),
        d_(params.integer("head_dim")),
        mask_topk_(params.integer("mask_topk")),
        exclude_(params.integer("random_exclude_top")),
        mask_seed_(static_cast<uint64_t>(params.integer("seed"))),
        zero_(params.choice("mask_mode") == "zero_output"),
        listed_(listed) {
    const Shape q{steps_, layers_, heads_, d_}, kv{layers_, keys_, kv_heads_, d_};
    input_specs_ = {{"q", q, dtype_, Init::normal(), false, "queries of the decode steps [T, L, H, D]"},
                    {"k", kv, dtype_, Init::normal(), false, "cached keys [L, M0 + T - 1, Hkv, D]"},
                    {"v", kv, dtype_, Init::normal(), false, "cached values [L, M0 + T - 1, Hkv, D]"}};
    id_specs(1, prompt_, steps_, needle_, false);
    input_specs_.push_back({"block_list", {listed_, 2}, DType::i32, {}, true, "masked heads (layer, head)"});
    output(ctx, "needle_range", {2}, DType::i32);
    output(ctx, "score_reference", {layers_, heads_});
    output(ctx, "score_paper", {layers_, heads_});
    output(ctx, "selected",
           topk_ == 1 ? Shape{steps_, layers_, heads_} : Shape{steps_, layers_, heads_, topk_}, DType::i32);
    for (const char* name : {"dense", "masked", "masked_zero"}) output(ctx, name, q, dtype_);
    mask_.rule.causal = true;
  }

  void prepare(Context& ctx) override {
    const auto zeros = [&](const Shape& shape) {
      const Tensor t = ctx.allocate(dtype_, shape);
      std::vector<char> bytes(static_cast<size_t>(t.nbytes()), 0);
      copy(ctx, Tensor::borrow(DeviceKind::cpu, dtype_, shape, bytes.data()), t);
      return t;
    };
    zero_rows_ = zeros({1, 1, steps_, d_});
    blocked_.clear();
    if (!has_input("block_list")) return;
    const std::vector<int32_t> list = read(ctx, input("block_list"));
    for (size_t i = 0; i < list.size(); i += 2) {
      if (list[i] < 0 || list[i] >= layers_ || list[i + 1] < 0 || list[i + 1] >= heads_)
        throw DataError("input 'block_list' row " + std::to_string(i / 2) + ": (" + std::to_string(list[i]) +
                        ", " + std::to_string(list[i + 1]) + ") is no head of " + std::to_string(layers_) +
                        " layers with " + std::to_string(heads_) + " heads");
      const int64_t head = list[i] * heads_ + list[i + 1];
      if (std::find(blocked_.begin(), blocked_.end(), head) == blocked_.end()) blocked_.push_back(head);
    }
  }

  void run(Context& ctx) override {
    {
      const auto stage = ctx.stage("attend");
      attention(ctx, call());
    }
    {
      const auto stage = ctx.stage("select");
      select(ctx);
    }
    {
      const auto stage = ctx.stage("score");
      ctx.backend().synchronize();
      const std::vector<int32_t> selected = read(ctx, out_.at("selected")), p = read(ctx, input("p")),
                                 w = read(ctx, input("w")), needle = read(ctx, input("needle_ids"));
      const Range range = find_needle(p.data(), prompt_, needle.data(), needle_, match_);
      write<int32_t>(ctx, "needle_range",
                     {static_cast<int32_t>(range.begin), static_cast<int32_t>(range.end)});
      const Scores s = score(selected.data(), steps_, p.data(), prompt_, w.data(), range);
      write<float>(ctx, "score_reference", {s.reference.begin(), s.reference.end()});
      write<float>(ctx, "score_paper", {s.paper.begin(), s.paper.end()});
      if (!has_input("block_list")) blocked_ = chosen_heads(paper_ ? s.paper : s.reference);
    }
    const auto stage = ctx.stage("mask");
    transpose_copy(ctx, {out_.at("dense"), out_.at("masked")});
    transpose_copy(ctx, {out_.at("dense"), out_.at("masked_zero")});
    for (int64_t head : blocked_) {
      const int64_t l = head / heads_, h = head % heads_, group = heads_ / kv_heads_;
      const auto of_head = [&](const Tensor& t) {
        // [T, D] rows of the head, as the operator wants them.
        const Tensor rows = t.select(1, l).select(1, h);
        return rows.strided({1, 1, steps_, d_},
                            {rows.stride(0) * steps_, rows.stride(0) * steps_, rows.stride(0), 1});
      };
      const auto of_keys = [&](const Tensor& t) {
        const Tensor rows = t.select(0, l).select(1, h / group);
        return rows.strided({1, 1, keys_, d_},
                            {rows.stride(0) * keys_, rows.stride(0) * keys_, rows.stride(0), 1});
      };
      transpose_copy(ctx, {zero_rows_, of_head(out_.at("masked_zero"))});
      if (zero_) {
        transpose_copy(ctx, {zero_rows_, of_head(out_.at("masked"))});
        continue;
      }
      // A query of zeros weighs all keys alike.
      AttentionArgs a;
      a.q = zero_rows_;
      a.k = of_keys(input("k"));
      a.v = of_keys(input("v"));
      a.o = of_head(out_.at("masked"));
      a.scale = 1;
      a.mask = &mask_;
      attention(ctx, a);
    }
  }

  ClosedForm cost() const override {
    const auto e = static_cast<int64_t>(size_of(dtype_));
    const int64_t all = all_heads(), q = steps_ * all * d_, kv = layers_ * keys_ * kv_heads_ * d_;
    const int64_t pairs = steps_ * prompt_ + steps_ * (steps_ - 1) / 2;
    const auto attend = [&](int64_t heads, int64_t keys) {
      Cost c;
      c.matmul = 4 * d_ * pairs * heads;
      c.special = pairs * heads;
      c.elementwise = 4 * pairs * heads;
      c.bytes_read = (steps_ * heads * d_ + 2 * keys) * e;
      c.bytes_written = steps_ * heads * d_ * e;
      return c;
    };
    const auto moved = [&](int64_t count, int64_t bytes) {
      Cost c;
      c.bytes_read = c.bytes_written = count * bytes;
      return c;
    };
    ClosedForm f;
    f.cost = attend(all, kv);
    if (dtype_ != DType::f32) {
      f.cost.bytes_read += (q + kv) * e;
      f.cost.bytes_written += (q + kv) * 4;
    }
    const int64_t scores = all * steps_ * keys_;
    f.cost.matmul += 2 * scores * d_;
    f.cost.elementwise += scores;
    // Keys are read for each query head, as the product is given them.
    f.cost.bytes_read += (q + all * keys_ * d_ + scores) * 4;
    f.cost.bytes_written += (scores + all * steps_ * topk_) * 4;
    f.cost += moved(all * steps_ * topk_, 4) + moved(q, e) * 2;
    // Random heads are drawn from what the exclusion leaves.
    const int64_t pool = mask_topk_ < 0 ? std::max<int64_t>(all - exclude_, 0) : all;
    const auto masked = has_input("block_list") ? static_cast<int64_t>(blocked_.size())
                                                : std::min(std::abs(mask_topk_), pool);
    f.cost += (moved(steps_ * d_, e) + (zero_ ? moved(steps_ * d_, e) : attend(1, keys_ * d_))) * masked;
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet s;
    s.heads = all_heads();
    s.queries = steps_;
    s.tokens = keys_;
    s.row = [prompt = prompt_](int64_t, int64_t, int64_t i, Intervals& out) { out = {{0, prompt + i}}; };
    return s;
  }
  int64_t keys(int64_t) const override { return keys_; }
  bool rows(Context& ctx, int64_t, int64_t h, int64_t begin, int64_t end, std::vector<float>& out) override {
    return attention_rows(ctx, call(), h / heads_, h % heads_, begin, end, out);
  }
  std::optional<RowStats> row_stats(Context& ctx) override {
    RowStats s = attention_row_stats(ctx, call());
    for (Tensor* t : {&s.entropy, &s.visible_keys, &s.row_max_probability})
      if (*t) *t = t->reshape({1, all_heads(), steps_});
    return s;
  }

 private:
  /// Layers are the batch: q [L, H, T, D], k and v [L, Hkv, M, D]. The last query sees all keys.
  AttentionArgs call() const {
    AttentionArgs a;
    a.q = input("q").permute({1, 2, 0, 3});
    a.k = input("k").permute({0, 2, 1, 3});
    a.v = input("v").permute({0, 2, 1, 3});
    a.o = out_.at("dense").permute({1, 2, 0, 3});
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d_)));
    a.mask = &mask_;
    return a;
  }

  void select(Context& ctx) const {
    const auto wide = [&](const Tensor& t) {
      if (dtype_ == DType::f32) return t;
      const Tensor y = ctx.allocate(DType::f32, t.shape());
      cast(ctx, {t, y});
      return y;
    };
    const Tensor q = wide(input("q")), k = wide(input("k"));
    const Tensor logits = ctx.allocate(DType::f32, {heads_, steps_, keys_});
    const Tensor best = ctx.allocate(DType::i32, {layers_, heads_, steps_, topk_});
    const int64_t group = heads_ / kv_heads_;
    for (int64_t l = 0; l < layers_; ++l) {
      const Tensor ql = q.select(1, l), kl = k.select(0, l);  // [T, H, D], [M, Hkv, D]
      GemmArgs g;
      g.a = ql.strided({kv_heads_, group, steps_, d_}, {group * ql.stride(1), ql.stride(1), ql.stride(0), 1});
      g.b = kl.strided({kv_heads_, group, keys_, d_}, {kl.stride(1), 0, kl.stride(0), 1});
      g.b_transposed = true;
      g.c = logits.reshape({kv_heads_, group, steps_, keys_});
      gemm(ctx, g);
      TopKArgs top;
      top.x = logits;
      top.index = best.select(0, l);
      top.visible.causal = true;
      top.visible.offset = keys_ - steps_;
      top_k(ctx, top);
    }
    transpose_copy(
        ctx, {best.permute({2, 0, 1, 3}), out_.at("selected").reshape({steps_, layers_, heads_, topk_})});
  }

  /// The best heads, or random ones from outside the best.
  std::vector<int64_t> chosen_heads(const std::vector<double>& score) const {
    std::vector<int64_t> order = statistics_of({score}, score.size()).order;
    const int64_t want = std::min(std::abs(mask_topk_), all_heads());
    if (mask_topk_ < 0) {
      order.erase(order.begin(), order.begin() + std::min<int64_t>(exclude_, all_heads()));
      std::vector<std::pair<uint64_t, int64_t>> keyed;
      for (int64_t h : order)
        keyed.emplace_back(random_bits(mask_seed_, stream_of("random heads"), static_cast<uint64_t>(h)), h);
      std::sort(keyed.begin(), keyed.end());
      order.clear();
      for (const auto& [key, h] : keyed) order.push_back(h);
    }
    order.resize(static_cast<size_t>(std::min<int64_t>(want, static_cast<int64_t>(order.size()))));
    return order;
  }

  int64_t steps_, keys_, prompt_, needle_, kv_heads_, d_, mask_topk_, exclude_;
  uint64_t mask_seed_;
  bool zero_;
  int64_t listed_;
  BlockMask mask_;
  Tensor zero_rows_;
  std::vector<int64_t> blocked_;
};

// ---- a score file -----------------------------------------------------------------------------------------

class FileInstance final : public RetrievalInstance {
 public:
  FileInstance(Context& ctx, const Problem& problem, const Params& params)
      : RetrievalInstance(problem, params), path_(params.text("scores_file")) {
    statistics_outputs(ctx);
  }
  void run(Context& ctx) override {
    const auto stage = ctx.stage("score");
    const Statistics s = statistics_of(scores(), static_cast<size_t>(all_heads()));
    write_statistics(ctx, s, s.mean);
  }
  ClosedForm cost() const override { return {}; }

 private:
  /// [instances][heads].
  std::vector<std::vector<double>> scores() const {
    std::ifstream f(path_);
    if (!f) throw DataError(path_ + ": cannot be opened");
    nlohmann::json j;
    try {
      j = nlohmann::json::parse(f);
    } catch (const nlohmann::json::exception& e) {
      throw DataError(path_ + ": not valid JSON: " + e.what());
    }
    if (!j.is_object() || j.empty())
      throw DataError(path_ + ": an object of \"layer-head\": [scores] is wanted");
    std::vector<std::vector<double>> all;
    std::set<int64_t> seen;
    for (const auto& [key, list] : j.items()) {
      int layer = -1, head = -1, read = 0;
      if (std::sscanf(key.c_str(), "%d-%d%n", &layer, &head, &read) != 2 ||
          static_cast<size_t>(read) != key.size() || layer < 0 || layer >= layers_ || head < 0 ||
          head >= heads_)
        throw DataError(path_ + ": '" + key + "' is no head of " + std::to_string(layers_) + " layers with " +
                        std::to_string(heads_) + " heads");
      if (!list.is_array()) throw DataError(path_ + ": '" + key + "' is not a list of scores");
      if (all.empty()) all.resize(list.size(), std::vector<double>(static_cast<size_t>(all_heads()), 0.0));
      if (list.size() != all.size())
        throw DataError(path_ + ": '" + key + "' has " + std::to_string(list.size()) +
                        " scores, others have " + std::to_string(all.size()));
      const int64_t at = layer * heads_ + head;
      seen.insert(at);
      for (size_t i = 0; i < list.size(); ++i) {
        if (!list[i].is_number()) throw DataError(path_ + ": '" + key + "' holds " + list[i].dump());
        all[i][static_cast<size_t>(at)] = list[i].get<double>();
      }
    }
    if (static_cast<int64_t>(seen.size()) != all_heads())
      throw DataError(path_ + ": " + std::to_string(seen.size()) + " of " + std::to_string(all_heads()) +
                      " heads have scores");
    return all;
  }
  std::string path_;
};

class RetrievalHeads final : public Method {
 public:
  const MethodInfo& info() const override { return retrieval_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    const std::string& file = params.text("scores_file");
    if (!file.empty()) {
      if (!std::ifstream(file))
        throw Unsupported(
            "retrieval_heads.scores_file: '" + file +
            "' is not here; the released files are head_score/*.json of nightdessert/Retrieval_Head");
      return std::make_unique<FileInstance>(ctx, problem, params);
    }
    require_extent(info(), problem.heads, "heads");
    require_extent(info(), problem.length, "length (T, the decode steps)");
    const int64_t steps = problem.length, keys = problem.kv_length_or_length();
    if (keys < steps)
      throw UsageError("problem.kv_length: " + std::to_string(keys) + " keys are fewer than " +
                       std::to_string(steps) + " steps; M = M0 + T - 1 with a prompt of M0 >= 1");
    if (!problem.causal)
      throw Unsupported("retrieval_heads: a decode step sees what came before it; set problem.causal");
    if (params.integer("topk") > keys)
      throw UsageError("retrieval_heads.topk: " + std::to_string(params.integer("topk")) + " exceeds the " +
                       std::to_string(keys) + " keys");
    const int64_t all = params.integer("num_layers") * params.integer("num_heads");
    if (std::abs(params.integer("mask_topk")) > all)
      throw UsageError("retrieval_heads.mask_topk: " + std::to_string(params.integer("mask_topk")) +
                       " exceeds " + std::to_string(all) + " heads");
    // Ids come in lists of any length: theirs when a file has them.
    const int64_t prompt = keys - steps + 1;
    int64_t needle = std::min(steps, prompt), listed = 1;
    if (!problem.inputs.file.empty()) {
      const auto shapes = safetensors_shapes(problem.inputs.file);
      if (const auto it = shapes.find("needle_ids"); it != shapes.end() && it->second.rank() > 0)
        needle = it->second[-1];
      if (const auto it = shapes.find("block_list"); it != shapes.end() && it->second.rank() == 2)
        listed = it->second[0];
    }
    if (needle < 1) throw DataError(problem.inputs.file + ": input 'needle_ids' is empty");
    if (problem.head_dim == 0) return std::make_unique<RowsInstance>(ctx, problem, params, needle);
    if (problem.batch != 1)
      throw Unsupported("retrieval_heads: the entry qk takes one instance; problem.batch is " +
                        std::to_string(problem.batch));
    return std::make_unique<QkInstance>(ctx, problem, params, needle, listed);
  }
};
ATTNBENCH_METHOD(RetrievalHeads);

}  // namespace
}  // namespace attnbench
