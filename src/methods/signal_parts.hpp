// What methods on signals and transforms share: parameter specifications, small tensors from the host,
// one-line calls of common operators, and closed costs of those calls. Not an operator and not a method.
#pragma once
#include <string>
#include <vector>

#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "methods/method.hpp"

namespace attnbench::signal {

// ---- parameters
// ---------------------------------------------------------------------------------------------

/// The same parameter, repeating an extent of the problem.
ParamSpec from_problem(ParamSpec spec, const char* key);
std::vector<double> numbers(const Value& list);
std::vector<int64_t> integers(const std::string& method, const std::string& name, const Value& list);

// ---- calls
// --------------------------------------------------------------------------------------------------

Tensor upload_index(Context& ctx, const std::vector<int64_t>& values);
/// x in f32: itself, or a widened copy.
Tensor widened(Context& ctx, const Tensor& x);
/// Puts f32 results where they belong: a cast, or nothing when y is where they were computed.
void narrow(Context& ctx, const Tensor& x, const Tensor& y);
/// y itself when it is f32, else f32 memory of its shape.
Tensor wide_like(Context& ctx, const Tensor& y);
void call(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y,
          float alpha = 1.0f, float beta = 0.0f);
/// c = a b^T (b as [out, in]) or a b.
void product(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& c, bool b_transposed,
             const Tensor& bias = {}, Activation activation = Activation::none, bool accumulate = false);

// ---- costs of those calls, elements in f32 unless a width is given
// -------------------------------------------

Cost moved(int64_t read, int64_t written);  ///< bytes
Cost copied(int64_t n);                     ///< n elements read and written
/// A convolution to y outputs of `taps` multiply-adds each, from x inputs, w weights and `bias` biases.
Cost conv_cost(int64_t x, int64_t w, int64_t bias, int64_t y, int64_t taps);
/// Widening or narrowing n elements between f32 and `dtype`; nothing for f32.
Cost cast_cost(DType dtype, int64_t n, bool widen);
/// `batch` products [m, k] x [k, n]; b is shared by `b_shared` of them.
Cost product_cost(int64_t batch, int64_t m, int64_t n, int64_t k, int64_t b_elements, bool bias = false,
                  bool activation = false, bool accumulate = false);
Cost pointwise_cost(int64_t n, int64_t b_elements, bool special);
Cost gather_cost(int64_t elements, int64_t indices);  ///< gather_rows of f32

}  // namespace attnbench::signal
