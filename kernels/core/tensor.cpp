#include "kernels/core/tensor.hpp"

#include <algorithm>

namespace attnbench {

std::string_view name(DeviceKind d) { return d == DeviceKind::cpu ? "cpu" : "cuda"; }

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  if (rank_ > kMaxRank) throw UsageError("a tensor has at most 8 axes, not " + std::to_string(rank_));
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

int Shape::index(int axis) const {
  const int i = axis < 0 ? axis + rank_ : axis;
  if (i < 0 || i >= rank_)
    throw UsageError("axis " + std::to_string(axis) + " is outside a tensor of shape " + str());
  return i;
}

int64_t Shape::numel() const {
  // A zero extent makes the product 0 whatever the others are, but the others must still be valid.
  int64_t n = 1;
  bool zero = false;
  for (int64_t d : *this) {
    if (d < 0) throw UsageError("negative extent in shape " + str());
    if (d == 0) {
      zero = true;
    } else if (__builtin_mul_overflow(n, d, &n)) {
      throw UsageError("shape " + str() + " has more elements than 64-bit integers count");
    }
  }
  return zero ? 0 : n;
}

std::string Shape::str() const {
  std::string s = "[";
  for (int i = 0; i < rank_; ++i) s += (i ? ", " : "") + std::to_string(dims_[static_cast<size_t>(i)]);
  return s + "]";
}

bool Shape::operator==(const Shape& o) const {
  return rank_ == o.rank_ && std::equal(begin(), end(), o.begin());
}

namespace {
Shape row_major(const Shape& shape) {
  Shape s = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    s[i] = step;
    step *= std::max<int64_t>(shape[i], 1);
  }
  return s;
}
}  // namespace

Tensor::Tensor(DeviceKind device, DType dtype, const Shape& shape, std::shared_ptr<void> storage)
    : storage_(std::move(storage)),
      data_(storage_.get()),
      shape_(shape),
      dtype_(dtype),
      device_(device),
      defined_(true) {
  shape_.numel();  // validates
  strides_ = row_major(shape);
}

Tensor Tensor::borrow(DeviceKind device, DType dtype, const Shape& shape, void* data) {
  return Tensor(device, dtype, shape, std::shared_ptr<void>(data, [](void*) {}));
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] > 1 && strides_[i] != step) return false;
    step *= std::max<int64_t>(shape_[i], 1);
  }
  return true;
}

void Tensor::require_dtype(DType want) const {
  if (want != dtype_)
    throw UsageError("a tensor of " + std::string(name(dtype_)) + " was read as " + std::string(name(want)));
}

Tensor Tensor::reshape(const Shape& shape) const {
  if (!contiguous()) throw UsageError("reshape needs a contiguous tensor, shape " + shape_.str());
  if (shape.numel() != numel())
    throw UsageError("cannot reshape " + shape_.str() + " to " + shape.str() + ": element counts differ");
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = row_major(shape);
  return t;
}

Tensor Tensor::strided(const Shape& shape, const Shape& strides, int64_t offset) const {
  if (shape.rank() != strides.rank()) throw UsageError("strided: shape and strides differ in rank");
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = strides;
  t.data_ = static_cast<char*>(data_) + offset * static_cast<int64_t>(size_of(dtype_));
  return t;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
  if (begin < 0 || end < begin || end > dim(axis))
    throw UsageError("slice [" + std::to_string(begin) + ", " + std::to_string(end) + ") is outside axis " +
                     std::to_string(axis) + " of " + shape_.str());
  Shape shape = shape_;
  shape[axis] = end - begin;
  return strided(shape, strides_, begin * stride(axis));
}

Tensor Tensor::select(int axis, int64_t index) const {
  const Tensor one = slice(axis, index, index + 1);
  const int a = axis < 0 ? axis + rank() : axis;
  std::vector<int64_t> shape, strides;
  for (int i = 0; i < rank(); ++i) {
    if (i == a) continue;
    shape.push_back(shape_[i]);
    strides.push_back(strides_[i]);
  }
  return one.strided(Shape(shape), Shape(strides));
}

Tensor Tensor::transpose(int axis_a, int axis_b) const {
  Shape shape = shape_, strides = strides_;
  std::swap(shape[axis_a], shape[axis_b]);
  std::swap(strides[axis_a], strides[axis_b]);
  return strided(shape, strides);
}

Tensor Tensor::permute(std::initializer_list<int> axes) const {
  if (static_cast<int>(axes.size()) != rank())
    throw UsageError("permute needs one axis for each of " + shape_.str());
  Shape shape = shape_, strides = strides_;
  int i = 0;
  std::array<bool, Shape::kMaxRank> seen{};
  for (int a : axes) {
    const int j = a < 0 ? a + rank() : a;
    shape[i] = shape_[j];
    strides[i] = strides_[j];
    if (seen[static_cast<size_t>(j)]) throw UsageError("permute names an axis twice");
    seen[static_cast<size_t>(j)] = true;
    ++i;
  }
  return strided(shape, strides);
}

}  // namespace attnbench
