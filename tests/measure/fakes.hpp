// Small real methods for tests of the measuring code: their arithmetic is trivial, their faults are chosen.
#pragma once
#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "methods/method.hpp"
#include "reference/reference.hpp"

namespace attnbench::fake {

/// out = 2 x, total = sum of x, with x [batch, length] float32. `fault`: none, wrong (one element is off),
/// lazy (the last element is never written), costly (the ledger is charged more than the formula says),
/// greedy (workspace of `workspace` bytes), nan (a NaN in the middle). Below `least` tokens prepare()
/// refuses.
class Doubler final : public Method {
 public:
  explicit Doubler(std::string id) {
    info_.id = info_.card = id;
    info_.title = "Doubler";
    info_.kinds = {ProblemKind::sequence};
    info_.dtypes = {DType::f32};
    info_.params = {
        spec::choice("fault", {"none", "wrong", "lazy", "costly", "greedy", "nan"}, "what goes wrong"),
        spec::integer("workspace", 0, 0, "bytes of workspace"),
        spec::integer("divisor", 1, 1, "of the length"), spec::integer("least", 0, 0, "tokens")};
    info_.example.length = 12;
    info_.example.batch = 2;
  }
  const MethodInfo& info() const override { return info_; }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info_, problem);
    require_extent(info_, problem.length, "length");
    if (problem.causal) throw Unsupported("doubling is not causal");
    if (problem.length % params.integer("divisor") != 0)
      throw Unsupported("length " + std::to_string(problem.length) + " is not divisible");
    return std::make_unique<Run>(ctx, problem, params);
  }

 private:
  class Run final : public Instance {
   public:
    Run(Context& ctx, const Problem& p, const Params& params)
        : fault_(params.choice("fault")), workspace_(params.integer("workspace")) {
      short_of_ = p.length < params.integer("least");
      input_specs_ = {{"x", {p.batch, p.length}, DType::f32, Init::normal(), false, ""}};
      weight_specs_ = {{"w", {1}, DType::f32, Init::constant(2), false, ""}};
      out_ = ctx.allocate(DType::f32, {p.batch, p.length}, MemoryClass::output);
      n_ = out_.numel();
      total_ = ctx.allocate(DType::f32, {1}, MemoryClass::output);
    }
    void prepare(Context&) override {
      if (short_of_) throw UsageError("fake_doubler: too few tokens");
    }
    void run(Context& ctx) override {
      Tensor scratch;
      {
        const auto scope = ctx.stage("select");
        scratch = ctx.allocate(DType::u8, {workspace_});
        ctx.cost().charge({0, n_, 0, 4 * n_, 4});
      }
      const auto scope = ctx.stage("attend");
      ctx.cost().charge({2 * n_, 0, 0, 4 * n_, 4 * n_});
      if (fault_ == "costly") ctx.cost().charge({1, 0, 0, 0, 0});
      if (!compute) return;
      const float* x = input("x").data<float>();
      const float w = weight("w").data<float>()[0];
      float* out = out_.data<float>();
      double sum = 0;
      for (int64_t i = 0; i < n_; ++i) {
        if (fault_ == "lazy" && i == n_ - 1) continue;
        out[i] = w * x[i];
        sum += x[i];
      }
      if (fault_ == "lazy") sum += x[n_ - 1];
      if (fault_ == "wrong") out[n_ / 2] += 1;
      if (fault_ == "nan") out[n_ / 2] = std::numeric_limits<float>::quiet_NaN();
      total_.data<float>()[0] = static_cast<float>(sum);
    }
    TensorMap outputs() const override { return {{"out", out_}, {"total", total_}}; }
    ClosedForm cost() const override {
      ClosedForm f;
      f.cost = {2 * n_, n_, 0, 8 * n_, 4 * n_ + 4};
      f.published_macs = n_;
      f.parameters = 1;
      return f;
    }

   private:
    std::string fault_;
    bool short_of_ = false;
    int64_t workspace_, n_ = 0;
    Tensor out_, total_;
  };
  MethodInfo info_;

 public:
  /// Off in tests of dry runs, where touching the memory would defeat the purpose.
  static inline bool compute = true;
};

inline RefMap doubler_reference(const Problem&, const Params&, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  RefTensor out(x.shape), total(std::vector<int64_t>{1});
  for (int64_t i = 0; i < x.numel(); ++i) {
    out[i] = weights.at("w")[0] * x[i];
    total[0] += x[i];
  }
  return {{"out", out}, {"total", total}};
}

inline const Method& doubler() {
  static const bool once = register_method(std::make_unique<Doubler>("fake_doubler")) &&
                           register_reference("fake_doubler", doubler_reference);
  (void)once;
  return find_method("fake_doubler");
}
/// first = whether x[0] > x[1] + gap, of x [1, 2] float32; the method's own rounding takes the other side of
/// a tie. `inverted`: it always answers wrongly.
class Chooser final : public Method {
 public:
  Chooser() {
    info_.id = info_.card = "fake_chooser";
    info_.title = "Chooser";
    info_.kinds = {ProblemKind::sequence};
    info_.dtypes = {DType::f32};
    info_.params = {spec::param("gap", ParamSpec::Type::number, 0.0, "added to x[1]"),
                    spec::boolean("inverted", false, "answers wrongly")};
    info_.example.length = 2;
  }
  const MethodInfo& info() const override { return info_; }
  std::unique_ptr<Instance> make(Context& ctx, const Problem&, const Params& params) const override {
    return std::make_unique<Run>(ctx, params);
  }

 private:
  class Run final : public Instance {
   public:
    Run(Context& ctx, const Params& params)
        : gap_(params.number("gap")), inverted_(params.boolean("inverted")) {
      input_specs_ = {{"x", {1, 2}, DType::f32, Init::normal(), false, ""}};
      first_ = ctx.allocate(DType::i32, {1}, MemoryClass::output);
    }
    void run(Context&) override {
      const float* x = input("x").data<float>();
      const double a = x[0], b = x[1] + gap_;
      first_.data<int32_t>()[0] = inverted_ ? a <= b : a >= b;
    }
    TensorMap outputs() const override { return {{"first", first_}}; }
    ClosedForm cost() const override { return {}; }

   private:
    double gap_;
    bool inverted_;
    Tensor first_;
  };
  MethodInfo info_;
};
inline RefMap chooser_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  RefTensor first(std::vector<int64_t>{1});
  first[0] = inputs.at("x")[0] > inputs.at("x")[1] + params.number("gap");
  return {{"first", first}};
}
inline const Method& chooser() {
  static const bool once =
      register_method(std::make_unique<Chooser>()) && register_reference("fake_chooser", chooser_reference);
  (void)once;
  return find_method("fake_chooser");
}
/// The doubler without a reference.
inline const Method& unchecked() {
  static const bool once = register_method(std::make_unique<Doubler>("fake_unchecked"));
  (void)once;
  return find_method("fake_unchecked");
}

/// o = 2 q with q, k, v in heads form. `fault`: none; head (one head of one batch is off); row (a position is
/// off in every head); lone_row (one row of the output alone).
class RowDoubler final : public Method {
 public:
  RowDoubler() {
    info_.id = info_.card = "fake_rows";
    info_.title = "Rows doubled";
    info_.kinds = {ProblemKind::sequence};
    info_.dtypes = {DType::f32};
    info_.params = {spec::choice("fault", {"none", "head", "row", "lone_row"}, "what goes wrong"),
                    spec::integer("at", 0, 0, "head, position or row that is off"),
                    spec::integer("block_size", 48, 1, "tokens of a tile")};
    info_.example.heads = 2, info_.example.length = 8, info_.example.head_dim = 4;
  }
  const MethodInfo& info() const override { return info_; }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params& params) const override {
    return std::make_unique<Run>(ctx, p, params);
  }

 private:
  class Run final : public Instance {
   public:
    Run(Context& ctx, const Problem& p, const Params& params)
        : fault_(params.choice("fault")),
          at_(params.integer("at")),
          heads_(p.heads),
          length_(p.length),
          width_(p.head_dim) {
      input_specs_ = {{"q", {p.batch, p.heads, p.length, p.head_dim}, DType::f32, Init::normal(), false, ""}};
      o_ = ctx.allocate(DType::f32, {p.batch, p.heads, p.length, p.head_dim}, MemoryClass::output);
    }
    void run(Context&) override {
      const float* q = input("q").data<float>();
      float* o = o_.data<float>();
      for (int64_t i = 0; i < o_.numel(); ++i) {
        const int64_t row = i / width_;
        const bool off = (fault_ == "head" && row / length_ == at_) ||
                         (fault_ == "row" && row % length_ == at_) || (fault_ == "lone_row" && row == at_);
        o[i] = (off ? -2.0F : 2.0F) * q[i];
      }
    }
    TensorMap outputs() const override { return {{"o", o_}}; }
    ClosedForm cost() const override { return {}; }

   private:
    std::string fault_;
    int64_t at_, heads_, length_, width_;
    Tensor o_;
  };
  MethodInfo info_;
};

inline RefMap rows_of_doubled(const Problem&, const Params&, const RefMap& inputs, const RefMap&,
                              const std::vector<int64_t>& rows) {
  const RefTensor& q = inputs.at("q");
  const int64_t d = q.dim(3);
  RefTensor o({static_cast<int64_t>(rows.size()), d});
  for (size_t r = 0; r < rows.size(); ++r)
    for (int64_t c = 0; c < d; ++c) o[static_cast<int64_t>(r) * d + c] = 2 * q[rows[r] * d + c];
  return {{"o", o}};
}
inline RefMap rows_doubled(const Problem& p, const Params& params, const RefMap& inputs, const RefMap& w) {
  return ref::all_rows(rows_of_doubled, p, params, inputs, w, inputs.at("q").shape);
}

inline const Method& row_doubler() {
  static const bool once = register_method(std::make_unique<RowDoubler>()) &&
                           register_reference("fake_rows", rows_doubled) &&
                           register_row_reference("fake_rows", rows_of_doubled);
  (void)once;
  return find_method("fake_rows");
}

}  // namespace attnbench::fake
