#include "reference/reference.hpp"

#include <algorithm>
#include <cmath>

namespace attnbench {

namespace {
std::map<std::string, ReferenceFn>& storage() {
  static std::map<std::string, ReferenceFn> references;
  return references;
}
}  // namespace

RefTensor::RefTensor(std::vector<int64_t> s) : shape(std::move(s)) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  data.assign(static_cast<size_t>(n), 0.0);
}

ReferenceFn find_reference(const std::string& method_id) {
  const auto it = storage().find(method_id);
  if (it == storage().end())
    throw Unsupported("method '" + method_id + "' has no double-precision reference");
  return it->second;
}

bool register_reference(const std::string& method_id, ReferenceFn fn) {
  storage()[method_id] = fn;
  return true;
}

RefTensor to_reference(const Tensor& t) {
  if (t.device() != DeviceKind::cpu || !t.contiguous())
    throw UsageError("a reference reads contiguous host tensors");
  RefTensor r(std::vector<int64_t>(t.shape().begin(), t.shape().end()));
  const int64_t n = t.numel();
  if (t.dtype() == DType::i32) {
    std::copy_n(t.data<int32_t>(), n, r.data.begin());
  } else if (t.dtype() == DType::u8) {
    std::copy_n(t.data<uint8_t>(), n, r.data.begin());
  } else {
    convert(t.raw(), t.dtype(), r.data.data(), DType::f64, n);
  }
  return r;
}

RefMap to_reference(const TensorMap& m) {
  RefMap r;
  for (const auto& [key, t] : m) r[key] = to_reference(t);
  return r;
}

namespace ref {

RefTensor linear(const RefTensor& x, const RefTensor& weight, const RefTensor* bias) {
  const int64_t in = weight.dim(1), out = weight.dim(0), rows = in ? x.numel() / in : 0;
  std::vector<int64_t> shape = x.shape;
  shape.back() = out;
  RefTensor y(shape);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < out; ++o) {
      double s = 0;
      for (int64_t i = 0; i < in; ++i) s += x[r * in + i] * weight[o * in + i];
      y[r * out + o] = s + (bias ? (*bias)[o] : 0.0);
    }
  return y;
}

bool softmax_row(std::vector<double>& scores, const std::vector<char>& visible) {
  double most = -INFINITY;
  bool any = false, nan = false;
  for (size_t j = 0; j < scores.size(); ++j)
    if (visible[j]) {
      nan |= std::isnan(scores[j]);
      most = std::max(most, scores[j]);
      any = true;
    }
  if (!any || (most == -INFINITY && !nan)) {
    std::fill(scores.begin(), scores.end(), 0.0);
    return false;
  }
  double sum = 0;
  for (size_t j = 0; j < scores.size(); ++j) {
    scores[j] = visible[j] ? std::exp(scores[j] - most) : 0.0;
    sum += scores[j];
  }
  for (double& s : scores) s /= sum;
  return true;
}

}  // namespace ref

}  // namespace attnbench
