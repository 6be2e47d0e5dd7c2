// Methods that are one operator each: what the machine makes of a copy, a product, a norm, a softmax, pooling
// or a transform alone, so that the parts of methods can be measured, verified and claimed like methods.
#include "kernels/fft/fft.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/method.hpp"

namespace attnbench {
namespace {

constexpr float kNormEps = 1e-5f;

MethodInfo describe(const char* id, const char* title, const char* summary, const char* formula,
                    const char* cost, std::vector<ProblemKind> kinds) {
  MethodInfo m;
  m.id = m.card = id;
  m.title = title;
  m.paper = "one operator of this program";
  m.family = "operator";
  m.summary = summary;
  m.formula = formula;
  m.cost = cost;
  m.kinds = std::move(kinds);
  return m;
}

/// An instance of one input `x`, one output `y` and a call between them.
class OperatorInstance : public Instance {
 public:
  TensorMap outputs() const override { return {{"y", y_}}; }

 protected:
  void shape(Context& ctx, const Shape& x, const Shape& y, DType dtype, const char* meaning) {
    input_specs_ = {{"x", x, dtype, Init::normal(), false, meaning}};
    y_ = ctx.allocate(dtype, y, MemoryClass::output);
  }
  static int64_t bytes(const Shape& s, DType t) { return s.numel() * static_cast<int64_t>(size_of(t)); }
  Tensor y_;
};

// ---- linear ----

MethodInfo describe_linear() {
  MethodInfo m = describe("linear", "Linear layer (one matrix product)",
                          "The matrix product of tokens with a weight in the [out, in] orientation of linear "
                          "layers, without bias. "
                          "The rate that every projection is bounded by.",
                          "y_ij = sum_k x_ik W_jk", "Matmul 2 B N C out; x, W read once, y written once.",
                          {ProblemKind::sequence, ProblemKind::image});
  ParamSpec out;
  out.name = "out";
  out.nullable = true;
  out.min = 1;
  out.meaning = "columns of y; null: as many as x has";
  m.params = {out};
  m.example.length = 70;
  m.example.channels = 96;
  return m;
}

class Linear final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe_linear();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params& params) const override {
    require_kind(info(), p);
    require_extent(info(), p.channels, "channels");
    require_extent(info(), p.tokens(), p.kind == ProblemKind::sequence ? "length" : "grid");
    return std::make_unique<Run>(ctx, p, params.is_null("out") ? p.channels : params.integer("out"));
  }

 private:
  class Run final : public OperatorInstance {
   public:
    Run(Context& ctx, const Problem& p, int64_t out)
        : x_{p.batch, p.tokens(), p.channels}, w_{out, p.channels}, dtype_(p.dtype) {
      shape(ctx, x_, {p.batch, p.tokens(), out}, dtype_, "tokens [B, N, C]");
      weight_specs_ = {{"weight", w_, dtype_, Init::normal(0, 0.02), false, "W [out, C]"}};
    }
    void run(Context& ctx) override { linear(ctx, input("x"), weight("weight"), {}, y_); }
    ClosedForm cost() const override {
      ClosedForm c;
      c.cost.matmul = 2 * x_[0] * x_[1] * x_[2] * w_[0];
      c.cost.bytes_read = bytes(x_, dtype_) + bytes(w_, dtype_);
      c.cost.bytes_written = y_.nbytes();
      c.parameters = w_.numel();
      return c;
    }

   private:
    Shape x_, w_;
    DType dtype_;
  };
};
ATTNBENCH_METHOD(Linear);

// ---- copy ----

class Copy final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo m = describe(
          "copy", "Copy of tokens",
          "Every value is read and written once. Interleaved with a case that is bound by "
          "memory it says what share of the copy rate that case has at the same moment, "
          "which a ceiling measured some seconds earlier can not on a shared machine.",
          "y = x", "No FLOPs; x read once, y written once.", {ProblemKind::sequence, ProblemKind::image});
      m.example.length = 70;
      m.example.channels = 96;
      return m;
    }();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params&) const override {
    require_kind(info(), p);
    require_extent(info(), p.channels, "channels");
    require_extent(info(), p.tokens(), p.kind == ProblemKind::sequence ? "length" : "grid");
    return std::make_unique<Run>(ctx, p);
  }

 private:
  class Run final : public OperatorInstance {
   public:
    Run(Context& ctx, const Problem& p) {
      const Shape x{p.batch, p.tokens(), p.channels};
      shape(ctx, x, x, p.dtype, "tokens [B, N, C]");
    }
    void run(Context& ctx) override { transpose_copy(ctx, {input("x"), y_}); }
    ClosedForm cost() const override {
      ClosedForm c;
      c.cost.bytes_read = c.cost.bytes_written = y_.nbytes();
      return c;
    }
  };
};
ATTNBENCH_METHOD(Copy);

// ---- norm ----

MethodInfo describe_norm() {
  MethodInfo m =
      describe("norm", "Normalisation of tokens",
               "Layer or root-mean-square normalisation over the channels: two passes over a row that "
               "should cost one trip to memory.",
               "layer: y = (x - mean) / sqrt(var + 1e-5) gain + offset\n"
               "rms:   y = x / sqrt(mean(x^2) + 1e-5) gain",
               "Elementwise 5 (layer) or 4 (rms) a value, special 2 a row; x read once, y written once.",
               {ProblemKind::sequence, ProblemKind::image});
  ParamSpec kind;
  kind.name = "kind";
  kind.type = ParamSpec::Type::choice;
  kind.choices = {"layer", "rms"};
  kind.default_value = "layer";
  kind.meaning = "layer: mean and variance, gain and offset; rms: mean of squares, gain";
  m.params = {kind};
  m.example.length = 70;
  m.example.channels = 96;
  return m;
}

class Norm final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe_norm();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params& params) const override {
    require_kind(info(), p);
    require_extent(info(), p.channels, "channels");
    require_extent(info(), p.tokens(), p.kind == ProblemKind::sequence ? "length" : "grid");
    return std::make_unique<Run>(ctx, p, params.choice("kind") == "layer");
  }

 private:
  class Run final : public OperatorInstance {
   public:
    Run(Context& ctx, const Problem& p, bool layer)
        : x_{p.batch, p.tokens(), p.channels}, dtype_(p.dtype), layer_(layer) {
      shape(ctx, x_, x_, dtype_, "tokens [B, N, C]");
      weight_specs_ = {{"gain", {p.channels}, dtype_, Init::uniform(0.5, 1.5), false, "[C]"}};
      if (layer)
        weight_specs_.push_back({"offset", {p.channels}, dtype_, Init::normal(0, 0.1), false, "[C]"});
    }
    void run(Context& ctx) override {
      NormArgs a;
      a.kind = layer_ ? NormArgs::Kind::layer_norm : NormArgs::Kind::rms_norm;
      a.x = input("x");
      a.y = y_;
      a.gain = weight("gain");
      if (layer_) a.offset = weight("offset");
      a.eps = kNormEps;
      normalize(ctx, a);
    }
    ClosedForm cost() const override {
      ClosedForm c;
      c.parameters = x_[2] * (layer_ ? 2 : 1);
      c.cost.elementwise = x_.numel() * (layer_ ? 5 : 4);
      c.cost.special = 2 * x_[0] * x_[1];
      c.cost.bytes_read = bytes(x_, dtype_) + c.parameters * static_cast<int64_t>(size_of(dtype_));
      c.cost.bytes_written = y_.nbytes();
      return c;
    }

   private:
    Shape x_;
    DType dtype_;
    bool layer_;
  };
};
ATTNBENCH_METHOD(Norm);

// ---- row_softmax ----

class RowSoftmax final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo m = describe(
          "row_softmax", "Softmax over the rows of stored scores",
          "The softmax of a score matrix that lies in memory, as naive attention needs it.",
          "y_ij = exp(x_ij) / sum_j exp(x_ij)      causal: j <= i + (M - N), 0 elsewhere",
          "Elementwise 4 and special 1 a score; x read once, y written once.", {ProblemKind::sequence});
      m.example.heads = 2;
      m.example.length = 70;
      return m;
    }();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params&) const override {
    require_kind(info(), p);
    require_extent(info(), p.heads, "heads");
    require_extent(info(), p.length, "length");
    return std::make_unique<Run>(ctx, p);
  }

 private:
  class Run final : public OperatorInstance {
   public:
    Run(Context& ctx, const Problem& p)
        : x_{p.batch, p.heads, p.length, p.kv_length_or_length()}, dtype_(p.dtype), causal_(p.causal) {
      shape(ctx, x_, x_, dtype_, "scores [B, H, N, M]");
    }
    void run(Context& ctx) override {
      SoftmaxArgs a;
      a.x = input("x");
      a.y = y_;
      a.causal = causal_;
      a.causal_offset = x_[3] - x_[2];
      softmax(ctx, a);
    }
    ClosedForm cost() const override {
      ClosedForm c;
      c.cost.elementwise = 4 * x_.numel();
      c.cost.special = x_.numel();
      c.cost.bytes_read = bytes(x_, dtype_);
      c.cost.bytes_written = y_.nbytes();
      return c;
    }

   private:
    Shape x_;
    DType dtype_;
    bool causal_;
  };
};
ATTNBENCH_METHOD(RowSoftmax);

// ---- avg_pool ----

class AvgPool final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo m =
          describe("avg_pool", "Average pooling of a token grid",
                   "The mean of every window of a channel-last grid, windows side by side.",
                   "y[i, j] = mean of x[w i .. w i + w - 1, w j .. w j + w - 1]",
                   "Elementwise 1 a value of x and of y; x read once, y written once.", {ProblemKind::image});
      ParamSpec window;
      window.name = "window";
      window.default_value = 2;
      window.min = 1;
      window.meaning = "w, tokens a side; divides the grid";
      m.params = {window};
      m.example.kind = ProblemKind::image;
      m.example.grid = {14, 10};
      m.example.channels = 40;
      return m;
    }();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params& params) const override {
    require_kind(info(), p);
    require_extent(info(), p.channels, "channels");
    require_extent(info(), p.tokens(), "grid");
    const int64_t w = params.integer("window");
    for (const int64_t extent : p.grid)
      if (extent % w != 0)
        throw Unsupported("avg_pool.window: " + std::to_string(w) + " does not divide the grid's " +
                          std::to_string(extent));
    return std::make_unique<Run>(ctx, p, w);
  }

 private:
  class Run final : public OperatorInstance {
   public:
    Run(Context& ctx, const Problem& p, int64_t w)
        : x_{p.batch, p.grid[0], p.grid[1], p.channels}, dtype_(p.dtype) {
      shape(ctx, x_, {p.batch, p.grid[0] / w, p.grid[1] / w, p.channels}, dtype_, "grid [B, Hg, Wg, C]");
    }
    void run(Context& ctx) override { avg_pool2d(ctx, {input("x"), y_, false}); }
    ClosedForm cost() const override {
      ClosedForm c;
      c.cost.elementwise = x_.numel() + y_.numel();
      c.cost.bytes_read = bytes(x_, dtype_);
      c.cost.bytes_written = y_.nbytes();
      return c;
    }

   private:
    Shape x_;
    DType dtype_;
  };
};
ATTNBENCH_METHOD(AvgPool);

// ---- spectrum ----

class Spectrum final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo m = describe("spectrum", "Two-dimensional Fourier transform of images",
                              "The half spectrum of real planes, nothing normalised.",
                              "y[u, v] = sum_ij x[i, j] exp(-2 pi i (u i / H + v j / W)),  v <= W / 2",
                              "Matmul class 2.5 H W log2(H W) a plane; x read once, y written once.",
                              {ProblemKind::image});
      m.dtypes = {DType::f32};
      m.example.kind = ProblemKind::image;
      m.example.batch = 2;
      m.example.size = {24, 30};
      m.example.channels = 3;
      return m;
    }();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params&) const override {
    require_kind(info(), p);
    require_extent(info(), p.channels, "channels");
    require_extent(info(), p.size.size() == 2 ? p.size[0] * p.size[1] : 0, "size");
    return std::make_unique<Run>(ctx, p);
  }

 private:
  class Run final : public OperatorInstance {
   public:
    Run(Context& ctx, const Problem& p) : x_{p.batch, p.channels, p.size[0], p.size[1]} {
      shape(ctx, x_, {x_[0], x_[1], x_[2], x_[3] / 2 + 1, 2}, DType::f32, "planes [B, C, H, W]");
    }
    void run(Context& ctx) override {
      Fft2Args a;
      a.kind = Fft2Args::Kind::real_to_half;
      a.x = input("x");
      a.y = y_;
      a.height = x_[2];
      a.width = x_[3];
      fft2(ctx, a);
    }
    ClosedForm cost() const override {
      ClosedForm c;
      c.cost.matmul = fft2_flops(Fft2Args::Kind::real_to_half, x_[0] * x_[1], x_[2], x_[3]);
      c.cost.bytes_read = bytes(x_, DType::f32);
      c.cost.bytes_written = y_.nbytes();
      return c;
    }

   private:
    Shape x_;
  };
};
ATTNBENCH_METHOD(Spectrum);

}  // namespace
}  // namespace attnbench
