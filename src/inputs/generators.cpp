// The registry of input generators, and the unstructured ones. Structured generators live in files of their
// own.
#include <algorithm>

#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

std::vector<Generator>& storage() {
  static std::vector<Generator> generators;
  return generators;
}

ParamSpec number(const char* name, double value, const char* meaning, std::optional<double> min = {}) {
  ParamSpec s;
  s.name = name;
  s.type = ParamSpec::Type::number;
  s.default_value = value;
  s.meaning = meaning;
  s.min = min;
  return s;
}

/// Elements that a thread takes at a time.
constexpr int64_t kPiece = 4096;

/// f(begin, count, out) on pieces, with begin counted from the tensor's first element.
template <class F>
void each(int64_t begin, int64_t count, double* out, F f) {
  const int64_t pieces = (count + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (int64_t i = 0; i < pieces; ++i)
    f(static_cast<uint64_t>(begin + i * kPiece), std::min(kPiece, count - i * kPiece), out + i * kPiece);
}

void fill_normal(const Problem& problem, const Params& params, const TensorSpec& spec, int64_t begin,
                 int64_t count, double* out) {
  const double mean = params.number("mean"), std = params.number("std");
  const uint64_t stream = stream_of(spec.name);
  each(begin, count, out, [&](uint64_t at, int64_t n, double* x) {
    random_normals(problem.seed, stream, at, n, x);
    for (int64_t i = 0; i < n; ++i) x[i] = mean + std * x[i];
  });
}

void fill_uniform(const Problem& problem, const Params& params, const TensorSpec& spec, int64_t begin,
                  int64_t count, double* out) {
  const double low = params.number("low"), high = params.number("high");
  if (!(low <= high)) throw UsageError("inputs: generator 'uniform' needs low <= high");
  const uint64_t stream = stream_of(spec.name);
  each(begin, count, out, [&](uint64_t at, int64_t n, double* x) {
    for (int64_t i = 0; i < n; ++i)
      x[i] = low + (high - low) * random_uniform(problem.seed, stream, at + static_cast<uint64_t>(i));
  });
}

void fill_constant(const Problem&, const Params& params, const TensorSpec&, int64_t, int64_t count,
                   double* out) {
  std::fill_n(out, count, params.number("value"));
}

const bool registered =
    register_generator({"normal",
                        "Independent normal values; one stream for each tensor name.",
                        {number("mean", 0.0, "mean"), number("std", 1.0, "standard deviation", 0.0)},
                        fill_normal}) &&
    register_generator({"uniform",
                        "Independent uniform values in (low, high).",
                        {number("low", 0.0, "lower end"), number("high", 1.0, "upper end")},
                        fill_uniform}) &&
    register_generator(
        {"constant", "One value everywhere.", {number("value", 0.0, "the value")}, fill_constant});

}  // namespace

const std::vector<Generator>& all_generators() {
  static const bool sorted = [] {
    std::sort(storage().begin(), storage().end(),
              [](const Generator& a, const Generator& b) { return a.id < b.id; });
    return true;
  }();
  (void)sorted;
  return storage();
}

const Generator& find_generator(const std::string& id) {
  std::vector<std::string> ids;
  for (const Generator& g : all_generators()) {
    if (g.id == id) return g;
    ids.push_back(g.id);
  }
  const std::string near = nearest_word(id, ids);
  throw UsageError(
      "unknown input generator '" + id + "'" +
      (near.empty() ? "; `attnbench list generators` shows all" : "; did you mean '" + near + "'?"));
}

bool register_generator(Generator g) {
  storage().push_back(std::move(g));
  return true;
}

}  // namespace attnbench
