// What the operators' GPU tests share: opening the device or skipping, the same tensors on both sides, views
// included, and comparison by norm. No expected values: they come from the CPU's operators.
#pragma once
#include <cstdio>
#include <functional>
#include <memory>

#include "kernels/elementwise/cast.hpp"
#include "tests/cuda_device.hpp"
#include "tests/op_testing.hpp"

namespace attnbench::testing {

/// A tensor on the host and its copy on the device. Views are made on both; what surrounds a view is kept, so
/// that comparisons see writes outside of it.
struct Twin {
  Tensor host, device;
  Tensor host_base, device_base;

  explicit operator bool() const { return static_cast<bool>(host); }
  template <class View>
  Twin view(const View& f) const {
    return {f(host), f(device), host_base, device_base};
  }
};

class Sides {
 public:
  Sides(Backend& device_backend, uint64_t seed) : host(cpu_backend(), 2), device(device_backend), r(seed) {}

  Twin upload(const Tensor& contiguous) {
    const Tensor there = device.allocate(contiguous.dtype(), contiguous.shape());
    copy(device, contiguous, there);
    return {contiguous, there, contiguous, there};
  }
  Twin random(DType type, const Shape& shape, double low = -1, double high = 1) {
    return upload(testing::random(host, type, shape, r, low, high));
  }
  /// NaN, or 0xa5 bytes in integers.
  Twin poisoned(DType type, const Shape& shape) {
    const Tensor t = host.allocate(type, shape);
    fill(t, is_float(type) ? std::numeric_limits<double>::quiet_NaN() : 0xa5);
    return upload(t);
  }
  /// Rows inside wider rows: random inside, NaN around.
  Twin padded(DType type, Shape shape, int64_t before, int64_t after, double low = -1, double high = 1) {
    const int64_t columns = shape[-1];
    shape[-1] = before + columns + after;
    const Tensor base = testing::poisoned(host, type, shape);
    randomize(base.slice(-1, before, before + columns), r, low, high);
    return upload(base).view([&](const Tensor& t) { return t.slice(-1, before, before + columns); });
  }
  /// The same for outputs: NaN everywhere.
  Twin padded_output(DType type, Shape shape, int64_t before, int64_t after) {
    const int64_t columns = shape[-1];
    shape[-1] = before + columns + after;
    return poisoned(type, shape).view([&](const Tensor& t) { return t.slice(-1, before, before + columns); });
  }
  /// What the device holds now, as a host view of the same layout; `whole`: with its surroundings.
  Tensor fetch(const Twin& t, bool whole = false) {
    const Tensor here = host.allocate(t.device_base.dtype(), t.device_base.shape());
    copy(device, t.device_base, here);
    if (whole) return here;
    const auto offset =
        (static_cast<const char*>(t.device.raw()) - static_cast<const char*>(t.device_base.raw())) /
        static_cast<int64_t>(size_of(here.dtype()));
    return here.strided(t.device.shape(), t.device.strides(), offset);
  }
  /// Poisons the device's side again.
  void poison_device(const Twin& t) {
    const Tensor nan = testing::poisoned(host, t.device_base.dtype(), t.device_base.shape());
    copy(device, nan, t.device_base);
  }
  /// Runs `work` on the device, records it as a graph, poisons `outputs`, replays and compares bit by bit:
  /// whether an operator can be captured, and repeats its results.
  void check_graph(const std::function<void()>& work, const std::vector<Twin>& outputs) {
    for (const Twin& t : outputs) poison_device(t);
    work();
    std::vector<Tensor> first;
    for (const Twin& t : outputs) first.push_back(fetch(t));
    const std::unique_ptr<DeviceGraph> graph = device.backend().capture(work);
    for (const Twin& t : outputs) poison_device(t);
    graph->replay(2);
    device.backend().synchronize();
    for (size_t i = 0; i < outputs.size(); ++i) CHECK(same_bits(first[i], fetch(outputs[i])));
  }

  Context host, device;
  Random r;
};

/// |got - want| <= relative |want| in the 2-norm, NaN exactly where NaN is wanted, and no single element off
/// by more than the whole norm allows.
inline void check_norm(const Tensor& got, const std::vector<double>& want, double relative) {
  const std::vector<double> have = values(got);
  REQUIRE(have.size() == want.size());
  double error = 0, norm = 0, worst = 0;
  size_t where = 0;
  for (size_t i = 0; i < have.size(); ++i) {
    if (std::isnan(want[i]) != std::isnan(have[i])) {
      INFO("element " << i << " of " << got.shape().str() << ": got " << have[i] << ", want " << want[i]);
      REQUIRE(std::isnan(want[i]) == std::isnan(have[i]));
    }
    if (std::isnan(want[i]) || have[i] == want[i]) {
      if (std::isfinite(want[i])) norm += want[i] * want[i];
      continue;
    }
    const double e = std::fabs(have[i] - want[i]);
    error += e * e, norm += want[i] * want[i];
    if (!(e <= worst)) worst = e, where = i;
  }
  INFO("relative error " << std::sqrt(error / norm) << ", allowed " << relative << "; worst element " << where
                         << " of " << got.shape().str() << " (" << name(got.dtype()) << ")"
                         << (have.empty() ? ""
                                          : ": got " + std::to_string(have[where]) + ", want " +
                                                std::to_string(want[where])));
  REQUIRE(error <= relative * relative * norm);
}

/// A host tensor in f64, contiguous.
inline Tensor in_f64(Context& ctx, const Tensor& t) {
  const Tensor wide = ctx.allocate(DType::f64, t.shape());
  int64_t i = 0;
  each(t, [&](int64_t o) { wide.data<double>()[i++] = get(t, o); });
  return wide;
}

/// One rounding to storage at most, in the 2-norm.
inline double rounding_of(DType t) { return 0.5 * epsilon_of(t); }

}  // namespace attnbench::testing
