// Reference of `superlinear`: query by query, stripes from the farthest key to the nearest.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// The largest n with n^p <= i: floor(i^(1/p)) without trusting the last bit of a power.
int64_t stripe(int64_t i, double p, int64_t limit) {
  const double inverse = 1 / p;
  if (std::abs(inverse - std::round(inverse)) < 1e-9 && inverse < 6.5) {
    double product = 1;
    for (int64_t f = 0; f < std::llround(inverse); ++f) product *= static_cast<double>(i);
    return product > static_cast<double>(limit) ? limit + 1 : static_cast<int64_t>(product);
  }
  const double guess = std::pow(static_cast<double>(i), inverse);
  if (guess > static_cast<double>(limit) + 2) return limit + 1;
  auto n = static_cast<int64_t>(guess);
  while (std::pow(static_cast<double>(n + 1), p) <= static_cast<double>(i) * (1 + 1e-12)) ++n;
  while (n > 0 && std::pow(static_cast<double>(n), p) > static_cast<double>(i) * (1 + 1e-12)) --n;
  return n;
}

/// ceil(f L^s); a value that is an integer but for rounding is that integer.
int64_t reach(double f, double s, int64_t length) {
  double root = std::pow(static_cast<double>(length), s);
  if (std::abs(root - std::round(root)) < 1e-12 * root) root = std::round(root);
  const double x = f * root;
  if (std::abs(x - std::round(x)) < 1e-12 * x) return std::llround(x);
  return static_cast<int64_t>(std::ceil(x));
}

RefMap superlinear_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                             const RefMap& weights) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v"), &pos = inputs.at("pos");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3), kv = k.dim(1), m = k.dim(2);
  const int64_t slots = params.integer("num_spans"), a = params.integer("sw_index");
  const double p = params.number("search_power"), s = params.number("span_power"),
               fb = params.number("backward_factor"), ff = params.number("forward_factor"),
               factor = params.number("search_scale");
  RefTensor qs;
  if (params.boolean("with_projection")) {
    const RefTensor y = ref::linear(inputs.at("x"), weights.at("W_qs"), nullptr);
    qs = RefTensor({batch, heads, n, d});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < d; ++c)
            qs[((b * heads + h) * n + i) * d + c] = y[(b * n + i) * heads * d + h * d + c];
  } else {
    qs = inputs.at("qs");
  }
  const bool dense = m < params.integer("force_dense_below");
  const int64_t window = dense ? m : std::max<int64_t>(0, stripe(a + 1, p, m) - 1);
  const bool padded = inputs.contains("key_mask");
  const auto valid = [&](int64_t b, int64_t j) { return !padded || inputs.at("key_mask")[b * m + j] != 0; };
  (void)problem;

  RefTensor out({batch, heads, n, d}), anchors({batch, heads, n, slots}), start = anchors, end = anchors,
                                                                          scores = anchors;
  for (int64_t b = 0; b < batch; ++b) {
    int64_t first = 0;
    while (first < m && !valid(b, first)) ++first;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i) {
        const auto t = static_cast<int64_t>(pos[i]);
        const int64_t row = (b * heads + h) * n + i, kv_head = b * kv + h / (heads / kv);
        const auto dot = [&](const RefTensor& x, int64_t j) {
          double sum = 0;
          for (int64_t c = 0; c < d; ++c) sum += x[row * d + c] * k[(kv_head * m + j) * d + c];
          return sum;
        };
        // Slots by score; a later (nearer) candidate must be strictly larger to pass another one.
        std::vector<std::pair<double, int64_t>> best;
        int64_t count = a;
        while (!dense && stripe(count + 1, p, m) <= t + 1) ++count;
        for (int64_t x = count; x > a; --x) {
          const int64_t c = t - stripe(x, p, m) + 1;
          if (!valid(b, c)) continue;
          const double z = factor * dot(qs, c);
          auto place = best.begin();
          while (place != best.end() && place->first >= z) ++place;
          best.insert(place, {z, c});
          if (static_cast<int64_t>(best.size()) > slots) best.pop_back();
        }
        const int64_t length = t + 1 - first;
        double total = 0;
        const double most = best.empty() ? -1e9 : best.front().first;
        for (int64_t x = 0; x < slots; ++x)
          total += std::exp(
              (x < static_cast<int64_t>(best.size()) ? best[static_cast<size_t>(x)].first : -1e9) - most);
        for (int64_t x = 0; x < slots; ++x) {
          const bool there = x < static_cast<int64_t>(best.size());
          const double z = there ? best[static_cast<size_t>(x)].first : -1e9;
          const int64_t c = there ? best[static_cast<size_t>(x)].second : -1;
          int64_t from = -1, to = -1;
          if (there) {
            from = std::max(c - reach(fb, s, length), first);
            to = std::min({c + reach(ff, s, length), t, m - 1});
            if (ff > 0 && window > 0) to = std::min(to, std::max<int64_t>(t - window + 1, 0) - 1);
          }
          anchors[row * slots + x] = static_cast<double>(c);
          start[row * slots + x] = static_cast<double>(from);
          end[row * slots + x] = static_cast<double>(to);
          scores[row * slots + x] = z;
          std::vector<double> w(static_cast<size_t>(m), 0);
          std::vector<char> seen(static_cast<size_t>(m), 0);
          for (int64_t j = 0; j <= std::min(t, m - 1); ++j) {
            if (!valid(b, j) || (j <= t - window && !(there && j >= from && j <= to))) continue;
            seen[static_cast<size_t>(j)] = 1;
            w[static_cast<size_t>(j)] = dot(q, j) / std::sqrt(static_cast<double>(d));
          }
          if (!ref::softmax_row(w, seen)) continue;
          const double gate = std::exp(z - most) / total;
          for (int64_t j = 0; j < m; ++j)
            if (seen[static_cast<size_t>(j)])
              for (int64_t y = 0; y < d; ++y)
                out[row * d + y] += gate * w[static_cast<size_t>(j)] * v[(kv_head * m + j) * d + y];
        }
      }
  }
  return {{"out", out}, {"anchors", anchors}, {"span_start", start}, {"span_end", end}, {"scores", scores}};
}
ATTNBENCH_REFERENCE(superlinear, superlinear_reference);

}  // namespace
}  // namespace attnbench
