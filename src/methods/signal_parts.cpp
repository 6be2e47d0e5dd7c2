#include "methods/signal_parts.hpp"

#include <cmath>

#include "kernels/elementwise/cast.hpp"

namespace attnbench::signal {
ParamSpec from_problem(ParamSpec s, const char* key) {
  s.from_problem = key;
  s.nullable = false;
  return s;
}

std::vector<double> numbers(const Value& list) {
  std::vector<double> v;
  for (const Value& e : list.as_list()) v.push_back(e.as_double());
  return v;
}

std::vector<int64_t> integers(const std::string& method, const std::string& name, const Value& list) {
  std::vector<int64_t> v;
  for (const Value& e : list.as_list()) {
    const double x = e.as_double();
    if (x != std::floor(x)) throw UsageError(method + "." + name + ": integers are wanted, not " + e.str());
    v.push_back(static_cast<int64_t>(x));
  }
  return v;
}

Tensor upload_index(Context& ctx, const std::vector<int64_t>& values) {
  std::vector<int32_t> narrow;
  for (int64_t v : values) {
    if (v > INT32_MAX) throw Unsupported("an index table of " + std::to_string(v) + " rows is beyond i32");
    narrow.push_back(static_cast<int32_t>(v));
  }
  const Shape shape{static_cast<int64_t>(values.size())};
  const Tensor t = ctx.allocate(DType::i32, shape);
  if (!narrow.empty()) copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::i32, shape, narrow.data()), t);
  return t;
}

Tensor widened(Context& ctx, const Tensor& x) {
  if (x.dtype() == DType::f32) return x;
  const Tensor y = ctx.allocate(DType::f32, x.shape());
  cast(ctx, {x, y});
  return y;
}

Tensor wide_like(Context& ctx, const Tensor& y) {
  return y.dtype() == DType::f32 ? y : ctx.allocate(DType::f32, y.shape());
}

void narrow(Context& ctx, const Tensor& x, const Tensor& y) {
  if (x.raw() != y.raw()) cast(ctx, {x, y});
}

void call(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y, float alpha,
          float beta) {
  PointwiseArgs args;
  args.op = op;
  args.a = a, args.b = b, args.y = y;
  args.alpha = alpha, args.beta = beta;
  pointwise(ctx, args);
}

void product(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& c, bool b_transposed,
             const Tensor& bias, Activation activation, bool accumulate) {
  GemmArgs args;
  args.a = a, args.b = b, args.c = c;
  args.b_transposed = b_transposed;
  args.bias = bias;
  args.activation = activation;
  args.accumulate = accumulate;
  gemm(ctx, args);
}

Cost moved(int64_t read, int64_t written) {
  Cost c;
  c.bytes_read = read, c.bytes_written = written;
  return c;
}
Cost copied(int64_t n) { return moved(4 * n, 4 * n); }
Cost conv_cost(int64_t x, int64_t w, int64_t bias, int64_t y, int64_t taps) {
  Cost c = moved(4 * (x + w + bias), 4 * y);
  c.matmul = 2 * y * taps;
  c.elementwise = bias > 0 ? y : 0;
  return c;
}

Cost cast_cost(DType dtype, int64_t n, bool widen) {
  if (dtype == DType::f32) return {};
  const int64_t narrow = n * static_cast<int64_t>(size_of(dtype));
  return widen ? moved(narrow, 4 * n) : moved(4 * n, narrow);
}

Cost product_cost(int64_t batch, int64_t m, int64_t n, int64_t k, int64_t b_elements, bool bias,
                  bool activation, bool accumulate) {
  const int64_t outputs = batch * m * n;
  Cost c = moved(4 * (batch * m * k + b_elements + (bias ? n : 0) + (accumulate ? outputs : 0)), 4 * outputs);
  c.matmul = 2 * outputs * k;
  c.elementwise = bias ? outputs : 0;
  c.special = activation ? outputs : 0;
  return c;
}

Cost pointwise_cost(int64_t n, int64_t b_elements, bool special) {
  Cost c = moved(4 * (n + b_elements), 4 * n);
  (special ? c.special : c.elementwise) = n;
  return c;
}

Cost gather_cost(int64_t elements, int64_t indices) { return moved(4 * (elements + indices), 4 * elements); }

}  // namespace attnbench::signal
