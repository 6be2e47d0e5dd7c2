#include "reference/reference.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace attnbench {

namespace {
std::map<std::string, ReferenceFn>& storage() {
  static std::map<std::string, ReferenceFn> references;
  return references;
}
std::map<std::string, RowReferenceFn>& row_storage() {
  static std::map<std::string, RowReferenceFn> references;
  return references;
}

/// Room for n values whose pages exist: the kernel clears one page after another for the thread that touches
/// them, so a few gigabytes filled by one thread wait seconds for it.
void reserve_pages(std::vector<double>& values, int64_t n) {
  values.reserve(static_cast<size_t>(n));
#ifdef MADV_POPULATE_WRITE
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  constexpr int64_t kFrom = int64_t{1} << 22, kPart = int64_t{64} << 20;
  if (n < kFrom) return;
  const auto begin = reinterpret_cast<uintptr_t>(values.data()),
             end = begin + static_cast<size_t>(n) * sizeof(double);
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  // Where the system does not do it, the pages come as they are touched.
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  const auto parts = (static_cast<int64_t>(last - first) + kPart - 1) / kPart;
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < parts; ++i) {
    const uintptr_t at = first + static_cast<uintptr_t>(i * kPart);
    madvise(reinterpret_cast<void*>(at), std::min<uintptr_t>(static_cast<uintptr_t>(kPart), last - at),
            MADV_POPULATE_WRITE);
  }
#endif
}
}  // namespace

RefTensor::RefTensor(std::vector<int64_t> s) : shape(std::move(s)) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  reserve_pages(data, n);
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

RowReferenceFn find_row_reference(const std::string& method_id) {
  const auto it = row_storage().find(method_id);
  return it == row_storage().end() ? nullptr : it->second;
}

bool register_row_reference(const std::string& method_id, RowReferenceFn fn) {
  row_storage()[method_id] = fn;
  return true;
}

RefTensor to_reference(const Tensor& t) {
  if (t.device() != DeviceKind::cpu || !t.contiguous())
    throw UsageError("a reference reads contiguous host tensors");
  RefTensor r(std::vector<int64_t>(t.shape().begin(), t.shape().end()));
  widen_into(r, 0, t.raw(), t.dtype(), t.numel());
  return r;
}

void widen_into(RefTensor& r, int64_t begin, const void* values, DType dtype, int64_t count) {
  constexpr int64_t kPiece = int64_t{1} << 16;
  double* to = r.data.data() + begin;
#pragma omp parallel for schedule(static) if (count > kPiece)
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t n = std::min(kPiece, count - at);
    const char* from = static_cast<const char*>(values) + at * static_cast<int64_t>(size_of(dtype));
    if (dtype == DType::i32)
      std::copy_n(reinterpret_cast<const int32_t*>(from), n, to + at);
    else if (dtype == DType::u8)
      std::copy_n(reinterpret_cast<const uint8_t*>(from), n, to + at);
    else
      convert(from, dtype, to + at, DType::f64, n);
  }
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

RefMap all_rows(RowReferenceFn fn, const Problem& problem, const Params& params, const RefMap& inputs,
                const RefMap& weights, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) count *= shape[axis];
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  RefMap all = fn(problem, params, inputs, weights, rows);
  for (auto& [key, t] : all) {
    std::vector<int64_t> full(shape.begin(), shape.end() - 1);
    full.push_back(t.shape.back());
    t.shape = std::move(full);
  }
  return all;
}

RefMap attention_rows(const RefMap& inputs, double scale, const std::vector<int64_t>& rows,
                      const VisibleKeys& see) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t heads = q.dim(1), n = q.dim(2), d = q.dim(3);
  const int64_t kv_heads = k.dim(1), m = k.dim(2), e = v.dim(3);
  const auto count = static_cast<int64_t>(rows.size());
  RefTensor o({count, e});
#pragma omp parallel
  {
    std::vector<double> p(static_cast<size_t>(m));
    std::vector<char> visible(static_cast<size_t>(m));
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = rows[static_cast<size_t>(r)];
      const int64_t i = row % n, h = row / n % heads, b = row / n / heads;
      const int64_t kv = b * kv_heads + h / (heads / kv_heads);
      std::fill(visible.begin(), visible.end(), char{0});
      see(b, h, i, visible);
      for (int64_t j = 0; j < m; ++j) {
        const auto at = static_cast<size_t>(j);
        p[at] = 0;
        if (!visible[at]) continue;
        for (int64_t c = 0; c < d; ++c) p[at] += q[row * d + c] * k[(kv * m + j) * d + c];
        p[at] *= scale;
      }
      if (!softmax_row(p, visible)) continue;
      for (int64_t j = 0; j < m; ++j)
        if (visible[static_cast<size_t>(j)])
          for (int64_t c = 0; c < e; ++c) o[r * e + c] += p[static_cast<size_t>(j)] * v[(kv * m + j) * e + c];
    }
  }
  return {{"o", std::move(o)}};
}

double attention_scale(const Params& params, const RefMap& inputs) {
  const Value& given = params.value("scale");
  return given.is_null() ? 1.0 / std::sqrt(static_cast<double>(inputs.at("q").shape.back()))
                         : given.as_double();
}

}  // namespace ref

}  // namespace attnbench
