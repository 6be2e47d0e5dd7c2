// Reference of `freeswim`: the mask by the card's extensions, paths and steps one after the other.
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

struct Extents {
  int64_t frames, height, width, heads, dim, text;
  int64_t tokens() const { return frames * height * width; }
};

/// One axis of step 2.
bool visible_on_axis(int64_t x, int64_t y, int64_t length, int64_t half, bool inward) {
  const int64_t high = inward ? std::max<int64_t>(half - x, 0) : 0;
  const int64_t low = inward ? std::max<int64_t>(half + x - length + 1, 0) : 0;
  return y >= x - half - low && y <= x + half + high;
}

/// softmax(scale q k^T) v of [rows, H, D] against [keys, H, D], starting at these elements.
template <class Sees>
void attend(const RefTensor& q, int64_t q_at, const RefTensor& k, int64_t k_at, const RefTensor& v,
            RefTensor& o, int64_t rows, int64_t keys, const Extents& e, double scale, Sees sees) {
  const int64_t step = e.heads * e.dim;
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t h = 0; h < e.heads; ++h)
    for (int64_t i = 0; i < rows; ++i) {
      std::vector<double> p(static_cast<size_t>(keys));
      std::vector<char> visible(static_cast<size_t>(keys));
      const int64_t row = q_at + i * step + h * e.dim;
      for (int64_t j = 0; j < keys; ++j) {
        visible[static_cast<size_t>(j)] = sees(i, j);
        double dot = 0;
        if (visible[static_cast<size_t>(j)])
          for (int64_t c = 0; c < e.dim; ++c) dot += q[row + c] * k[k_at + j * step + h * e.dim + c];
        p[static_cast<size_t>(j)] = dot * scale;
      }
      for (int64_t c = 0; c < e.dim; ++c) o[row + c] = 0;
      if (!ref::softmax_row(p, visible)) continue;
      for (int64_t j = 0; j < keys; ++j)
        if (visible[static_cast<size_t>(j)])
          for (int64_t c = 0; c < e.dim; ++c)
            o[row + c] += p[static_cast<size_t>(j)] * v[k_at + j * step + h * e.dim + c];
    }
}

void copy_block(RefTensor& t, int64_t from, int64_t to, int64_t count) {
  for (int64_t x = 0; x < count; ++x) t[to + x] = t[from + x];
}

RefMap freeswim_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v"), &qc = inputs.at("qc");
  const RefTensor &kc = inputs.at("kc"), &vc = inputs.at("vc");
  const auto& grid = params.value("grid").as_list();
  const size_t rank = q.shape.size();
  const Extents e{static_cast<int64_t>(grid[0].as_double()),
                  static_cast<int64_t>(grid[1].as_double()),
                  static_cast<int64_t>(grid[2].as_double()),
                  q.dim(rank - 2),
                  q.dim(rank - 1),
                  kc.dim(kc.shape.size() - 3)};
  const int64_t n = e.tokens(), block = n * e.heads * e.dim, text = e.text * e.heads * e.dim;
  const std::string& mode = params.choice("mode");
  const bool inward = params.boolean("inward");
  const int64_t dh = params.integer("half_height"), dw = params.integer("half_width");
  const auto n0 = static_cast<double>(params.integer("train_tokens_per_frame"));
  const double plain = 1 / std::sqrt(static_cast<double>(e.dim));
  const double scale = params.boolean("log_scale")
                           ? std::sqrt(std::log(2 * n0) / std::log(n0) / static_cast<double>(e.dim))
                           : plain;
  const auto window = [&](int64_t i, int64_t j) {
    return visible_on_axis(i / e.width % e.height, j / e.width % e.height, e.height, dh, inward) &&
           visible_on_axis(i % e.width, j % e.width, e.width, dw, inward);
  };
  const auto all = [](int64_t, int64_t) { return true; };

  RefTensor o(q.shape), c(q.shape);
  const bool cached = mode == "cache";
  const int64_t paths = cached ? 2 : q.dim(0), steps = cached ? q.dim(0) : 1, passes = cached ? q.dim(1) : 1;
  if (mode == "window_only" || mode == "full_only") {
    for (int64_t p = 0; p < paths; ++p) {
      if (mode == "window_only")
        attend(q, p * block, k, p * block, v, o, n, n, e, scale, window);
      else
        attend(q, p * block, k, p * block, v, o, n, n, e, scale, all);
      attend(qc, p * block, kc, 0, vc, c, n, e.text, e, plain, all);
    }
    return {{"o", o}, {"c", c}};
  }
  std::vector<double> stored;
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t path0 = (step * passes + pass) * 2 * block, path1 = path0 + block;
      attend(q, path0, k, path0, v, o, n, n, e, scale, window);
      const bool conditional = pass == 0;
      if (!cached || (conditional && step % params.integer("cache_steps") == 0)) {
        attend(q, path1, k, path1, v, o, n, n, e, scale, all);
        attend(qc, path1, kc, pass * text, vc, c, n, e.text, e, plain, all);
        copy_block(c, path1, path0, block);
        stored.assign(c.data.begin() + path1, c.data.begin() + path1 + block);
        continue;
      }
      copy_block(o, path0, path1, block);
      if (conditional) {
        for (int64_t x = 0; x < block; ++x) c[path0 + x] = c[path1 + x] = stored[static_cast<size_t>(x)];
      } else {
        attend(qc, path0, kc, pass * text, vc, c, n, e.text, e, plain, all);
        copy_block(c, path0, path1, block);
      }
    }
  return {{"o", o}, {"c", c}};
}
ATTNBENCH_REFERENCE(freeswim, freeswim_reference);

}  // namespace
}  // namespace attnbench
