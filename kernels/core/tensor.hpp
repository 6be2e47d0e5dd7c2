// A strided view of typed memory on one device. Not an expression library: operators take and fill tensors.
//
// Memory comes only from Context::allocate, which counts it; a Tensor keeps its storage alive by reference
// counting, and views (slice, select, transpose, reshape) share it.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/dtype.hpp"

namespace attnbench {

enum class DeviceKind : uint8_t { cpu, cuda };
std::string_view name(DeviceKind d);

/// Up to kMaxRank extents (or strides), by value, no heap.
class Shape {
 public:
  static constexpr int kMaxRank = 8;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[index(axis)]; }
  int64_t& operator[](int axis) { return dims_[index(axis)]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }
  /// Product of the extents; throws UsageError when it does not fit int64 or an extent is negative.
  int64_t numel() const;
  std::string str() const;  ///< "[2, 48, 24]"
  bool operator==(const Shape& o) const;

 private:
  int index(int axis) const;
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

class Tensor {
 public:
  Tensor() = default;
  /// A contiguous row-major tensor over `storage` (kept alive). Use Context::allocate for fresh memory.
  Tensor(DeviceKind device, DType dtype, const Shape& shape, std::shared_ptr<void> storage);
  /// A contiguous tensor over memory that the caller keeps alive.
  static Tensor borrow(DeviceKind device, DType dtype, const Shape& shape, void* data);

  explicit operator bool() const { return data_ != nullptr || defined_; }
  DeviceKind device() const { return device_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  ///< in elements
  int rank() const { return shape_.rank(); }
  int64_t dim(int axis) const { return shape_[axis]; }  ///< negative axes count from the end
  int64_t stride(int axis) const { return strides_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t nbytes() const { return numel() * static_cast<int64_t>(size_of(dtype_)); }
  bool contiguous() const;

  void* raw() const { return data_; }
  /// Typed pointer to element (0, …, 0); throws UsageError when T is not the tensor's dtype.
  template <class T>
  T* data() const {
    require_dtype(dtype_of<T>::value);
    return static_cast<T*>(data_);
  }

  Tensor reshape(const Shape& shape) const;                  ///< contiguous tensors only; no copy
  Tensor slice(int axis, int64_t begin, int64_t end) const;  ///< keeps the axis
  Tensor select(int axis, int64_t index) const;              ///< drops the axis
  Tensor transpose(int axis_a, int axis_b) const;
  Tensor permute(std::initializer_list<int> axes) const;
  Tensor strided(const Shape& shape, const Shape& strides, int64_t offset = 0) const;

 private:
  void require_dtype(DType want) const;
  std::shared_ptr<void> storage_;
  void* data_ = nullptr;
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
  DeviceKind device_ = DeviceKind::cpu;
  bool defined_ = false;
};

/// Named tensors: a method's inputs, weights and outputs. Ordered, so that listings and hashes are stable.
using TensorMap = std::map<std::string, Tensor>;

}  // namespace attnbench
