// What work costs, in FLOPs by class and bytes, and the ledger in which operators charge what they executed.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace attnbench {

/// One multiply-add is 2 matmul FLOPs. FFTs are charged to `matmul` as 5 n log2 n (complex) by convention.
/// Bytes are the unavoidable reads and writes of the operator's operands, each counted once.
struct Cost {
  int64_t matmul = 0;       ///< multiply-adds of products, convolutions and transforms, times 2
  int64_t elementwise = 0;  ///< adds, multiplies, comparisons of pointwise work, norms, pooling
  int64_t special = 0;      ///< exp, log, sqrt, division, erf, sin, cos: one each
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;

  int64_t flops() const { return matmul + elementwise + special; }
  int64_t bytes() const { return bytes_read + bytes_written; }
  Cost& operator+=(const Cost& o) {
    matmul += o.matmul, elementwise += o.elementwise, special += o.special;
    bytes_read += o.bytes_read, bytes_written += o.bytes_written;
    return *this;
  }
  friend Cost operator+(Cost a, const Cost& b) { return a += b; }
  friend Cost operator*(Cost a, int64_t n) {
    a.matmul *= n, a.elementwise *= n, a.special *= n, a.bytes_read *= n, a.bytes_written *= n;
    return a;
  }
  bool operator==(const Cost&) const = default;
};

/// Sums charges in total and by stage. Charging is a handful of additions, so it stays on in timed passes;
/// data-dependent operators read their counts back only while `exact()` is set (the accounting pass).
class CostLedger {
 public:
  void charge(const Cost& c) {
    total_ += c;
    if (exact_) by_stage_[stage_] += c;
  }
  const Cost& total() const { return total_; }
  const std::map<std::string, Cost>& by_stage() const { return by_stage_; }
  void reset() {
    total_ = {};
    by_stage_.clear();
  }
  bool exact() const { return exact_; }
  void set_exact(bool on) { exact_ = on; }
  void set_stage(std::string_view s) { stage_ = s; }

 private:
  Cost total_;
  std::map<std::string, Cost> by_stage_;
  std::string stage_;
  bool exact_ = false;
};

}  // namespace attnbench
