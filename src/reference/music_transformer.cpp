// Reference of `music_transformer`: relative logits by the pad-and-reshape definition of skewing, block by
// block, in double precision.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Matrix = std::vector<std::vector<double>>;

Matrix zeros(int64_t rows, int64_t columns) {
  return Matrix(static_cast<size_t>(rows), std::vector<double>(static_cast<size_t>(columns), 0.0));
}

/// The same numbers, row after row, in rows of another length.
Matrix reshaped(const Matrix& x, int64_t columns) {
  std::vector<double> flat;
  for (const auto& row : x) flat.insert(flat.end(), row.begin(), row.end());
  Matrix y = zeros(static_cast<int64_t>(flat.size()) / columns, columns);
  for (size_t i = 0; i < flat.size(); ++i)
    y[i / static_cast<size_t>(columns)][i % static_cast<size_t>(columns)] = flat[i];
  return y;
}

/// [n, n] by distance -> [n, n] by key; what lies above the diagonal is garbage.
Matrix masked_skew(Matrix x) {
  const auto n = static_cast<int64_t>(x.size());
  for (auto& row : x) row.insert(row.begin(), 0.0);
  Matrix y = reshaped(x, n);
  y.erase(y.begin());
  return y;
}

/// [b, 2b - 1] by offset -> [b, b] by key.
Matrix unmasked_skew(Matrix x) {
  const auto b = static_cast<int64_t>(x.size());
  for (auto& row : x) row.push_back(0.0);
  x.emplace_back(static_cast<size_t>(b - 1), 0.0);
  Matrix y = reshaped(x, 2 * b - 1);
  y.resize(static_cast<size_t>(b));
  for (auto& row : y) row.erase(row.begin(), row.begin() + (b - 1));
  return y;
}

/// The last `rows` rows of a head's table; in front of it zeros, or copies of its first row.
Matrix right_aligned(const RefTensor& table, int64_t head, int64_t rows, bool clip) {
  const int64_t d = table.shape.back(), all = table.shape[table.shape.size() - 2];
  const int64_t base = table.shape.size() == 3 ? head * all * d : 0;
  Matrix y = zeros(rows, d);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t from = all - rows + i;
    if (from < 0 && !clip) continue;
    for (int64_t c = 0; c < d; ++c)
      y[static_cast<size_t>(i)][static_cast<size_t>(c)] = table[base + std::max<int64_t>(0, from) * d + c];
  }
  return y;
}

/// Rows for offsets -(n - 1) .. n - 1 of a table with offset 0 in the middle.
Matrix centred(const RefTensor& table, int64_t head, int64_t n, bool clip) {
  const int64_t d = table.shape.back(), all = table.shape[table.shape.size() - 2], middle = all / 2;
  const int64_t base = table.shape.size() == 3 ? head * all * d : 0;
  Matrix y = zeros(2 * n - 1, d);
  for (int64_t offset = 1 - n; offset < n; ++offset) {
    int64_t from = middle + offset;
    if ((from < 0 || from >= all) && !clip) continue;
    from = std::min(std::max<int64_t>(from, 0), all - 1);
    for (int64_t c = 0; c < d; ++c)
      y[static_cast<size_t>(offset + n - 1)][static_cast<size_t>(c)] = table[base + from * d + c];
  }
  return y;
}

/// One head of one sequence.
struct Head {
  const double *q, *k, *v;
  double* o;
  int64_t n, d;
  double scale;
};

/// q_i . e for the queries [begin, begin + rows) and columns [first, last) of a table.
Matrix products(const Head& h, int64_t begin, int64_t rows, const Matrix& e, size_t first, size_t last) {
  Matrix a = zeros(rows, static_cast<int64_t>(last - first));
  for (int64_t i = 0; i < rows; ++i)
    for (size_t c = first; c < last; ++c)
      // Padded queries past the end are zeros.
      for (int64_t x = 0; begin + i < h.n && x < h.d; ++x)
        a[static_cast<size_t>(i)][c - first] += h.q[(begin + i) * h.d + x] * e[c][static_cast<size_t>(x)];
  return a;
}

/// Softmax over the visible keys key_begin + j, j <= limit(i), and the weighted values; f(i, j) is the row of
/// `ev` that value j gets for query i (null: none).
template <class Limit, class Row>
void attend(const Head& h, int64_t begin, int64_t rows, int64_t key_begin, const Matrix& relative,
            Limit limit, const Matrix* ev, Row ev_row) {
  for (int64_t i = 0; i < rows && begin + i < h.n; ++i) {
    const int64_t row = begin + i, seen = std::min(limit(i) + 1, h.n - key_begin);
    std::vector<double> p(static_cast<size_t>(seen));
    for (int64_t j = 0; j < seen; ++j) {
      double s = relative[static_cast<size_t>(i)][static_cast<size_t>(j)];
      for (int64_t c = 0; c < h.d; ++c) s += h.q[row * h.d + c] * h.k[(key_begin + j) * h.d + c];
      p[static_cast<size_t>(j)] = s * h.scale;
    }
    ref::softmax_row(p, std::vector<char>(p.size(), 1));
    for (int64_t j = 0; j < seen; ++j)
      for (int64_t c = 0; c < h.d; ++c) {
        double value = h.v[(key_begin + j) * h.d + c];
        if (ev) value += (*ev)[static_cast<size_t>(ev_row(i, j))][static_cast<size_t>(c)];
        h.o[row * h.d + c] += p[static_cast<size_t>(j)] * value;
      }
  }
}

RefMap music_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v"), &er = weights.at("Er");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3);
  const Value& given = params.value("scale");
  const double scale = given.is_null() ? 1.0 / std::sqrt(static_cast<double>(d)) : given.as_double();
  const bool local = params.choice("mode") == "local", causal = params.boolean("causal");
  const bool clip = params.choice("far_distance") == "clip", values = params.boolean("relative_values");
  const bool without_in_first = local && params.boolean("t2t_block0");
  const int64_t b = params.integer("block_length");
  const RefTensor* table_v = values ? &weights.at("Ev") : nullptr;
  RefTensor o({batch, heads, n, d});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t s = 0; s < batch; ++s)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = (s * heads + head) * n * d;
      const Head h{&q.data[static_cast<size_t>(at)],
                   &k.data[static_cast<size_t>(at)],
                   &v.data[static_cast<size_t>(at)],
                   &o.data[static_cast<size_t>(at)],
                   n,
                   d,
                   scale};
      const auto causally = [](int64_t i) { return i; };
      if (!causal) {
        const Matrix e = centred(er, head, n, clip);
        const Matrix ev = values ? centred(*table_v, head, n, clip) : Matrix();
        attend(
            h, 0, n, 0, unmasked_skew(products(h, 0, n, e, 0, e.size())), [n](int64_t) { return n - 1; },
            values ? &ev : nullptr, [n](int64_t i, int64_t j) { return j - i + n - 1; });
        continue;
      }
      // The first block, or everything.
      const int64_t first = local && n >= 2 * b ? b : n;
      const Matrix e = right_aligned(er, head, first, clip);
      const Matrix ev = values ? right_aligned(*table_v, head, first, clip) : Matrix();
      attend(h, 0, first, 0, masked_skew(products(h, 0, first, e, 0, e.size())), causally,
             values && !without_in_first ? &ev : nullptr,
             [first](int64_t i, int64_t j) { return j - i + first - 1; });
      if (first == n) continue;
      const Matrix twice = right_aligned(er, head, 2 * b, clip);
      const Matrix twice_v = values ? right_aligned(*table_v, head, 2 * b, clip) : Matrix();
      const auto size = static_cast<size_t>(b);
      for (int64_t begin = b; begin < n; begin += b) {
        const Matrix own = masked_skew(products(h, begin, b, twice, size, 2 * size));
        Matrix both = unmasked_skew(products(h, begin, b, twice, 0, 2 * size - 1));
        for (size_t i = 0; i < size; ++i) both[i].insert(both[i].end(), own[i].begin(), own[i].end());
        attend(
            h, begin, b, begin - b, both, [b](int64_t i) { return b + i; }, values ? &twice_v : nullptr,
            [b](int64_t i, int64_t j) { return 2 * b - 1 - (b + i - j); });
      }
    }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(music_transformer, music_reference);

}  // namespace
}  // namespace attnbench
