// Host copies of generated tensors that a later case of the run may ask for again: the cases that a suite
// compares read the same queries, keys and values, and drawing gigabytes takes longer than copying them. Not
// for files, and not for tensors of the CPU, which are host memory themselves.
#pragma once
#include <cstdint>
#include <list>
#include <optional>

#include "methods/method.hpp"

namespace attnbench {

class InputCache {
 public:
  /// Holds the tensors used last, up to `most_bytes` together; 0: none.
  explicit InputCache(int64_t most_bytes) : most_bytes_(most_bytes) {}

  /// The tensor that `spec` gives on `problem`, drawn earlier; an absent tensor where there is none.
  /// `drawn_by` names the generator, empty for the spec's own Init. Valid until the next call of keep().
  Tensor find(const TensorSpec& spec, const Problem& problem, const std::string& drawn_by);
  /// Keeps a host tensor, in place of the ones used longest ago. Small tensors, and those whose Init computes
  /// its values by a function, are not kept.
  void keep(const TensorSpec& spec, const Problem& problem, const std::string& drawn_by, const Tensor& host);
  bool takes(const TensorSpec& spec) const;

 private:
  /// All that a tensor's values follow from.
  struct Entry {
    std::string name, drawn_by;
    Shape shape;
    DType dtype;
    Init::Kind kind;
    double a, b, cut;
    Problem problem;  ///< of a generator, which may read any of it; else the seed alone
    Tensor host;
    bool same(const Entry& other) const;
  };
  static Entry entry(const TensorSpec& spec, const Problem& problem, const std::string& drawn_by);

  int64_t most_bytes_, bytes_ = 0;
  std::list<Entry> entries_;  ///< the one used last first
};

}  // namespace attnbench
