// Reference of `rectified_spaattn`: curve, map, selection, gain test and correction in double, straight from
// the card.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;

struct Point {
  int64_t x = 0, y = 0, z = 0;
};
Point plus(Point a, Point b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
Point times(Point a, int64_t s) { return {a.x * s, a.y * s, a.z * s}; }
Point minus(Point a, Point b) { return plus(a, times(b, -1)); }
int64_t extent(Point a) { return std::abs(a.x + a.y + a.z); }
int64_t sign(int64_t x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }
Point unit(Point a) { return {sign(a.x), sign(a.y), sign(a.z)}; }
Point halved(Point a) {
  const auto down = [](int64_t x) { return static_cast<int64_t>(std::floor(static_cast<double>(x) / 2)); };
  Point h{down(a.x), down(a.y), down(a.z)};
  if (extent(h) % 2 != 0 && extent(a) > 2) h = plus(h, unit(a));
  return h;
}

std::vector<Point> gilbert(int64_t w, int64_t h, int64_t t) {
  std::vector<Point> path;
  const std::function<void(Point, Point, Point, Point)> G = [&](Point p, Point a, Point b, Point c) {
    const int64_t la = extent(a), lb = extent(b), lc = extent(c);
    const Point* straight = lb == 1 && lc == 1   ? &a
                            : la == 1 && lc == 1 ? &b
                            : la == 1 && lb == 1 ? &c
                                                 : nullptr;
    if (straight) {
      for (int64_t i = 0; i < extent(*straight); ++i) path.push_back(plus(p, times(unit(*straight), i)));
      return;
    }
    const Point da = unit(a), db = unit(b), dc = unit(c), a2 = halved(a), b2 = halved(b), c2 = halved(c);
    const Point ra = minus(a, a2), rb = minus(b, b2), rc = minus(c, c2);
    const auto neg = [](Point v) { return times(v, -1); };
    if (2 * la > 3 * lb && 2 * la > 3 * lc) {
      G(p, a2, b, c);
      G(plus(p, a2), ra, b, c);
    } else if (3 * lb > 4 * lc) {
      G(p, b2, c, a2);
      G(plus(p, b2), a, rb, c);
      G(plus(p, plus(minus(a, da), minus(b2, db))), neg(b2), c, neg(ra));
    } else if (3 * lc > 4 * lb) {
      G(p, c2, a2, b);
      G(plus(p, c2), a, b, rc);
      G(plus(p, plus(minus(a, da), minus(c2, dc))), neg(c2), neg(ra), b);
    } else {
      G(p, b2, c2, a2);
      G(plus(p, b2), c, a2, rb);
      G(plus(p, plus(minus(b2, db), minus(c, dc))), a, neg(b2), neg(rc));
      G(plus(p, plus(plus(minus(a, da), b2), minus(c, dc))), neg(c), neg(ra), rb);
      G(plus(p, plus(minus(a, da), minus(b2, db))), neg(b2), c2, neg(ra));
    }
  };
  G({}, {w, 0, 0}, {0, h, 0}, {0, 0, t});
  return path;
}

double dot(const Row& a, const Row& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

RefMap rectified_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                           const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), L = q.dim(2), D = q.dim(3);
  const int64_t Tt = params.integer("text_tokens"),
                Tv = params.is_null("text_valid") ? Tt : params.integer("text_valid");
  const int64_t Nv = L - Tt, bs = params.integer("block_size"), NB = (Nv + bs - 1) / bs;
  std::vector<int64_t> grid = problem.grid;
  if (!params.is_null("grid")) {
    grid.clear();
    for (const Value& e : params.value("grid").as_list()) grid.push_back(e.as_int());
  }
  if (grid.size() == 2) grid.insert(grid.begin(), 1);
  const int64_t t = grid[0], h = grid[1], w = grid[2];
  const double scale =
      params.is_null("scale") ? 1.0 / std::sqrt(static_cast<double>(D)) : params.number("scale");
  const bool curved = params.choice("order") == "gilbert", correct = params.boolean("ipar");
  const std::string& gapr = params.choice("gapr");

  RefTensor curve({Nv}), neighbours({NB, NB});
  std::vector<int64_t> place(static_cast<size_t>(Nv));
  if (curved) {
    const std::vector<Point> path = gilbert(w, h, t);
    for (int64_t p = 0; p < Nv; ++p) {
      const Point e = path[static_cast<size_t>(p)];
      curve[p] = static_cast<double>((e.z * h + e.y) * w + e.x);
      place[static_cast<size_t>((e.z * h + e.y) * w + e.x)] = p;
    }
    if (params.boolean("neighbours"))
      for (int64_t a = 0; a < Nv; ++a)
        for (int64_t step = 0; step < 27; ++step) {
          const int64_t z = a / (h * w) + step / 9 - 1, y = a / w % h + step / 3 % 3 - 1,
                        x = a % w + step % 3 - 1;
          if (z < 0 || z >= t || y < 0 || y >= h || x < 0 || x >= w) continue;
          neighbours[place[static_cast<size_t>(a)] / bs * NB +
                     place[static_cast<size_t>((z * h + y) * w + x)] / bs] = 1;
        }
  } else {
    for (int64_t p = 0; p < Nv; ++p) curve[p] = static_cast<double>(p);
  }
  const int64_t floor_of = Tt > 0 ? Nv / bs : NB;
  const auto top = static_cast<int64_t>((1.0 - params.number("drop_rate")) * static_cast<double>(floor_of));
  const int64_t F = params.integer("first_frame_blocks");

  RefTensor out(q.shape), selected({batch, heads, NB, NB}), rectifiable({batch, heads, NB, NB}),
      R({batch, heads, NB}), P({batch, heads, NB, NB + (Tt > 0 ? 1 : 0)});
  const int64_t width = P.dim(3);
  for (int64_t bh = 0; bh < batch * heads; ++bh) {
    const auto token = [&](const RefTensor& x, int64_t i) {
      return Row(x.data.begin() + (bh * L + i) * D, x.data.begin() + (bh * L + i + 1) * D);
    };
    const auto mean = [&](const RefTensor& x, int64_t m) {
      Row r(static_cast<size_t>(D), 0.0);
      for (int64_t i = m * bs; i < std::min(Nv, (m + 1) * bs); ++i)
        for (int64_t d = 0; d < D; ++d)
          r[static_cast<size_t>(d)] += x[(bh * L + i) * D + d] / static_cast<double>(bs);
      return r;
    };
    const auto deviation = [&](const RefTensor& x, int64_t m, const Row& centre) {
      Row r(static_cast<size_t>(D), 0.0);
      for (int64_t i = m * bs; i < (m + 1) * bs; ++i)
        for (int64_t d = 0; d < D; ++d)
          r[static_cast<size_t>(d)] +=
              std::fabs((i < Nv ? x[(bh * L + i) * D + d] : 0.0) - centre[static_cast<size_t>(d)]) /
              static_cast<double>(bs);
      return r;
    };
    std::vector<Row> Qp, Kp, Vp, dq, dk;
    for (int64_t m = 0; m < NB; ++m) {
      Qp.push_back(mean(q, m)), Kp.push_back(mean(k, m)), Vp.push_back(mean(v, m));
      dq.push_back(deviation(q, m, Qp.back())), dk.push_back(deviation(k, m, Kp.back()));
    }
    for (int64_t i = 0; i < NB; ++i) {
      const auto I = static_cast<size_t>(i);
      Row s;
      for (int64_t m = 0; m < NB; ++m) s.push_back(scale * dot(Qp[I], Kp[static_cast<size_t>(m)]));
      for (int64_t u = 0; u < Tv; ++u) s.push_back(scale * dot(Qp[I], token(k, Nv + u)));
      ref::softmax_row(s, std::vector<char>(s.size(), 1));
      const double visual = std::accumulate(s.begin(), s.begin() + NB, 0.0),
                   text = std::accumulate(s.begin() + NB, s.end(), 0.0);
      const double weight = Tv > 0 ? static_cast<double>(bs) : 1.0, whole = weight * visual + text;
      const int64_t row = (bh * NB + i) * width;
      for (int64_t m = 0; m < NB; ++m) P[row + m] = weight * s[static_cast<size_t>(m)] / whole;
      if (Tt > 0) P[row + NB] = text / whole;

      const int64_t ranked = NB + (Tv > 0 ? 1 : 0);
      std::vector<int64_t> order(static_cast<size_t>(ranked));
      std::iota(order.begin(), order.end(), int64_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return P[row + a] > P[row + b]; });
      int64_t count = 1;
      double sum = 0;
      for (int64_t c : order) {
        sum += P[row + c];
        if (sum <= params.number("p_keep")) ++count;
      }
      const int64_t at = (bh * NB + i) * NB;
      for (int64_t r = 0; r < std::min(std::max(count, top), ranked); ++r)
        if (order[static_cast<size_t>(r)] < NB) selected[at + order[static_cast<size_t>(r)]] = 1;
      for (int64_t m = 0; m < NB; ++m) {
        const auto M = static_cast<size_t>(m);
        if (neighbours[i * NB + m] != 0 || (i < F && m < F)) selected[at + m] = 1;
        const double gain = std::fabs(dot(Qp[I], Kp[M]));
        const double error = std::fabs(dot(dq[I], Kp[M])) + std::fabs(dot(Qp[I], dk[M]));
        rectifiable[at + m] = gapr == "all" || (gapr == "test" && gain > error);
      }
      double kept = Tt > 0 ? P[row + NB] : 0.0;
      Row added(static_cast<size_t>(D), 0.0);
      for (int64_t m = 0; m < NB; ++m) {
        if (selected[at + m] != 0 || rectifiable[at + m] == 0) {
          kept += P[row + m];
          continue;
        }
        for (int64_t d = 0; d < D; ++d)
          added[static_cast<size_t>(d)] += P[row + m] * Vp[static_cast<size_t>(m)][static_cast<size_t>(d)];
      }
      R[bh * NB + i] = correct ? kept : 1.0;
      for (int64_t r = i * bs; r < std::min(Nv, (i + 1) * bs); ++r) {
        Row p(static_cast<size_t>(Nv + Tv));
        std::vector<char> visible(p.size());
        for (int64_t j = 0; j < Nv + Tv; ++j) {
          visible[static_cast<size_t>(j)] = j >= Nv || selected[at + j / bs] != 0;
          p[static_cast<size_t>(j)] = scale * dot(token(q, r), token(k, j));
        }
        ref::softmax_row(p, visible);
        for (int64_t d = 0; d < D; ++d) {
          double o = 0;
          for (int64_t j = 0; j < Nv + Tv; ++j)
            if (visible[static_cast<size_t>(j)]) o += p[static_cast<size_t>(j)] * v[(bh * L + j) * D + d];
          out[(bh * L + r) * D + d] = correct ? kept * o + added[static_cast<size_t>(d)] : o;
        }
      }
    }
    for (int64_t r = Nv; r < Nv + Tv; ++r) {
      Row p(static_cast<size_t>(Nv + Tv));
      for (int64_t j = 0; j < Nv + Tv; ++j) p[static_cast<size_t>(j)] = scale * dot(token(q, r), token(k, j));
      ref::softmax_row(p, std::vector<char>(p.size(), 1));
      for (int64_t j = 0; j < Nv + Tv; ++j)
        for (int64_t d = 0; d < D; ++d)
          out[(bh * L + r) * D + d] += p[static_cast<size_t>(j)] * v[(bh * L + j) * D + d];
    }
  }
  return {{"out", out},
          {"curve_order", curve},
          {"neighbours", neighbours},
          {"selected", selected},
          {"rectifiable", rectifiable},
          {"R", R},
          {"P", P}};
}
ATTNBENCH_REFERENCE(rectified_spaattn, rectified_reference);

}  // namespace
}  // namespace attnbench
