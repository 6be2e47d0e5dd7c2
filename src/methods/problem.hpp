// The problem: shapes and kind of input, dtype, causal, seed and input source. What a case runs its method
// on.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/dtype.hpp"
#include "methods/value.hpp"

namespace attnbench {

enum class ProblemKind : uint8_t { sequence, image, video, signal };
std::string_view name(ProblemKind k);
ProblemKind parse_problem_kind(std::string_view word);

/// Extents that a problem does not set are 0. Methods read them through their own names and refuse what they
/// need and do not find. Two forms: heads form (`heads`, `head_dim`: the method is given q, k, v) and layer
/// form (`channels`, `heads`: the method is given x).
struct Problem {
  ProblemKind kind = ProblemKind::sequence;
  int64_t batch = 1;
  bool causal = false;
  DType dtype = DType::f32;
  int64_t heads = 0, kv_heads = 0;    ///< kv_heads 0: equal to heads
  int64_t length = 0, kv_length = 0;  ///< N and M of sequences; kv_length 0: equal to length
  int64_t head_dim = 0;
  int64_t channels = 0;
  std::vector<int64_t> grid;  ///< tokens: {Hg, Wg} of images, {T, Hg, Wg} of videos
  std::vector<int64_t> size;  ///< pixels: {H, W}
  int64_t samples = 0;        ///< signal
  double sample_rate = 0;     ///< signal, Hz
  uint64_t seed = 0;          ///< inputs and weights

  /// Where float inputs come from: a generator of src/inputs with its arguments, or a file of named tensors.
  /// Arguments of a file: `layer` L reads input NAME from the tensor layers.L.NAME; `first_head` h takes
  /// heads h to h + heads of tensors that hold more (key heads of the same groups).
  struct Source {
    std::string generator;  ///< empty: each input's own default
    std::map<std::string, Value> arguments;
    std::string file;
    bool operator==(const Source&) const = default;
  } inputs;

  int64_t kv_heads_or_heads() const { return kv_heads ? kv_heads : heads; }
  int64_t kv_length_or_length() const { return kv_length ? kv_length : tokens(); }
  /// N: `length`, or the product of `grid`.
  int64_t tokens() const;
  /// One line: "image batch 64, grid 14x14, channels 768, heads 12, f32". The words of suites.
  std::string str() const;
  bool operator==(const Problem&) const = default;
};

/// The problem keys with their meaning, for validation, `describe` and --help. One list, in problem.cpp.
struct ProblemKey {
  const char* key;
  const char* type;   ///< "int", "bool", "word", "int list", "number", "map"
  const char* kinds;  ///< "all" or a list of kinds
  const char* meaning;
};
const std::vector<ProblemKey>& problem_keys();
/// Sets one key from a value; throws UsageError naming the key and what is wrong (type, range, unknown word).
/// Sizes must be >= 1 (batch too); `kv_heads`, `kv_length` may be left out.
void set_problem_key(Problem& p, const std::string& key, const Value& value);
/// The keys that are set (differ from a default Problem, plus kind, batch, causal, dtype), for results and
/// hashing.
std::map<std::string, Value> problem_values(const Problem& p);
/// Checks combinations (grid rank for its kind, heads divisible by kv_heads, …). Throws UsageError.
void check_problem(const Problem& p);

}  // namespace attnbench
