// Reference of oat: one image at a time, row by row, everything recomputed at every step of a scan.
#include <cmath>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {

namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

struct Net {
  const Params& params;
  const RefMap& weights;
  int64_t rows, cols, d, heads, objects;
  RefTensor table;  // [R, p]

  Row affine(const std::string& name, const Row& x, int64_t first, int64_t count) const {
    const RefTensor &m = weights.at(name + ".weight"), &b = weights.at(name + ".bias");
    Row y;
    for (int64_t o = first; o < first + count; ++o) {
      double s = b[o];
      for (size_t i = 0; i < x.size(); ++i) s += m[o * m.dim(1) + static_cast<int64_t>(i)] * x[i];
      y.push_back(s);
    }
    return y;
  }
  Row normed(const std::string& name, const Row& x, const Row& y) const {
    Row z(x.size());
    double mean = 0, variance = 0;
    for (size_t i = 0; i < x.size(); ++i) z[i] = x[i] + y[i], mean += z[i] / static_cast<double>(x.size());
    for (double v : z) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
    for (size_t i = 0; i < x.size(); ++i)
      z[i] =
          (z[i] - mean) / std::sqrt(variance + 1e-5) * weights.at(name + ".weight")[static_cast<int64_t>(i)] +
          weights.at(name + ".bias")[static_cast<int64_t>(i)];
    return z;
  }
  /// x_i <- LN(x_i + out(attention of x_i over the visible rows of y)).
  Rows attended(const std::string& at, const std::string& norm, const Rows& x, const Rows& y, bool causal,
                const std::vector<char>& valid) const {
    Rows k, v, result;
    for (const Row& r : y)
      k.push_back(affine(at + "in_proj", r, d, d)), v.push_back(affine(at + "in_proj", r, 2 * d, d));
    const int64_t dh = d / heads;
    for (size_t i = 0; i < x.size(); ++i) {
      const Row q = affine(at + "in_proj", x[i], 0, d);
      Row o(static_cast<size_t>(d), 0.0);
      for (int64_t h = 0; h < heads; ++h) {
        Row s;
        std::vector<char> visible;
        for (size_t j = 0; j < y.size(); ++j) {
          double dot = 0;
          for (int64_t e = h * dh; e < (h + 1) * dh; ++e)
            dot += q[static_cast<size_t>(e)] * k[j][static_cast<size_t>(e)];
          s.push_back(dot / std::sqrt(static_cast<double>(dh)));
          visible.push_back(valid[j] && (!causal || j <= i));
        }
        ref::softmax_row(s, visible);
        for (size_t j = 0; j < y.size(); ++j)
          for (int64_t e = h * dh; e < (h + 1) * dh; ++e)
            o[static_cast<size_t>(e)] += s[j] * v[j][static_cast<size_t>(e)];
      }
      result.push_back(normed(norm, x[i], affine(at + "out_proj", o, 0, d)));
    }
    return result;
  }
  Rows fed(const std::string& at, const std::string& norm, const Rows& x) const {
    Rows y;
    for (const Row& r : x) {
      Row hidden = affine(at + "linear1", r, 0, params.integer("ffn_dim"));
      for (double& v : hidden) v = std::max(v, 0.0);
      y.push_back(normed(norm, r, affine(at + "linear2", hidden, 0, d)));
    }
    return y;
  }
  Row embedded(const Row& descriptor, int64_t row, int64_t col, int64_t flag) const {
    Row x = descriptor;
    for (const int64_t a : {row, col, flag})
      for (int64_t i = 0; i < table.dim(1) && static_cast<int64_t>(x.size()) < d; ++i)
        x.push_back(table[a * table.dim(1) + i]);
    return x;
  }
  Rows encoded(Rows x, const std::vector<char>& valid) const {
    for (int64_t l = 0; l < params.integer("enc_layers"); ++l) {
      const std::string at = "encoder." + std::to_string(l) + ".";
      x = fed(at, at + "norm2", attended(at + "self_attn.", at + "norm1", x, x, false, valid));
    }
    return x;
  }
  /// Logits of every decoder token; tgt without its time code.
  Rows logits(Rows tgt, const std::vector<char>& tgt_valid, const Rows& memory,
              const std::vector<char>& valid) const {
    for (size_t t = 0; t < tgt.size(); ++t)
      for (int64_t i = 0; i < d; ++i) {
        const double angle = static_cast<double>(t) /
                             std::pow(10000.0, static_cast<double>(i - i % 2) / static_cast<double>(d));
        tgt[t][static_cast<size_t>(i)] += i % 2 ? std::cos(angle) : std::sin(angle);
      }
    for (int64_t l = 0; l < params.integer("dec_layers"); ++l) {
      const std::string at = "decoder." + std::to_string(l) + ".";
      tgt = attended(at + "self_attn.", at + "norm1", tgt, tgt, true, tgt_valid);
      tgt = attended(at + "cross_attn.", at + "norm2", tgt, memory, false, valid);
      tgt = fed(at, at + "norm3", tgt);
    }
    const int64_t g = params.integer("ca_heads");
    Rows out(tgt.size(), Row(memory.size() + 1, g > 1 ? weights.at("readout.bias")[0] : 0.0));
    for (int64_t h = 0; h < g; ++h) {
      const std::string at = "object." + std::to_string(h) + ".";
      const double share = g > 1 ? weights.at("readout.weight")[h] : 1.0;
      Rows e;
      for (const Row& m : memory) e.push_back(affine(at + "E", m, 0, d));
      for (size_t t = 0; t < tgt.size(); ++t) {
        const Row q = affine(at + "D", tgt[t], 0, d);
        for (size_t i = 0; i < memory.size(); ++i) {
          double dot = 0;
          for (size_t c = 0; c < q.size(); ++c) dot += q[c] * e[i][c];
          out[t][i] += share * dot / std::sqrt(static_cast<double>(params.integer("ca_dk")));
        }
      }
    }
    return out;
  }
};

/// The symmetric square root of K by Jacobi rotations, times nu, in the first columns.
RefTensor closed_table(const Params& params, int64_t r, int64_t p) {
  RefTensor q({r, p});
  if (params.choice("pe_kind") == "sinusoid") {
    for (int64_t a = 0; a < r; ++a)
      for (int64_t i = 0; i < p; ++i) {
        const double angle = static_cast<double>(a) /
                             std::pow(10000.0, static_cast<double>(i - i % 2) / static_cast<double>(p));
        q[a * p + i] = i % 2 ? std::cos(angle) : std::sin(angle);
      }
    return q;
  }
  const auto n = static_cast<size_t>(r);
  const double sigma = params.number("sigma");
  Rows k(n, Row(n)), v(n, Row(n, 0.0));
  for (size_t i = 0; i < n; ++i) {
    v[i][i] = 1;
    for (size_t j = 0; j < n; ++j) {
      const double away = static_cast<double>(i) - static_cast<double>(j);
      k[i][j] = std::exp(-away * away / (2 * sigma * sigma));
    }
  }
  for (int sweep = 0; sweep < 60; ++sweep)
    for (size_t a = 0; a < n; ++a)
      for (size_t b = a + 1; b < n; ++b) {
        if (std::fabs(k[a][b]) < 1e-300) continue;
        const double theta = 0.5 * std::atan2(2 * k[a][b], k[b][b] - k[a][a]), c = std::cos(theta),
                     s = std::sin(theta);
        for (size_t i = 0; i < n; ++i) {
          const double x = k[i][a], y = k[i][b];
          k[i][a] = c * x - s * y, k[i][b] = s * x + c * y;
        }
        for (size_t i = 0; i < n; ++i) {
          const double x = k[a][i], y = k[b][i], vx = v[i][a], vy = v[i][b];
          k[a][i] = c * x - s * y, k[b][i] = s * x + c * y;
          v[i][a] = c * vx - s * vy, v[i][b] = s * vx + c * vy;
        }
      }
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (size_t e = 0; e < n; ++e) sum += v[i][e] * std::sqrt(std::max(k[e][e], 0.0)) * v[j][e];
      q[static_cast<int64_t>(i) * p + static_cast<int64_t>(j)] = params.number("pe_norm") * sum;
    }
  return q;
}

RefMap cnn(const RefMap& inputs, const RefMap& weights) {
  const RefTensor& crop = inputs.at("crop");
  const int64_t images = crop.dim(0) * crop.dim(1), half = weights.at("cnn.fc.weight").dim(0);
  const auto layer = [&](const std::string& name, const RefTensor& x, int64_t k,
                         int64_t pool) {  // x [n, h, w, c]
    const RefTensor &m = weights.at(name + ".weight"), &bias = weights.at(name + ".bias");
    const int64_t h = (x.dim(1) - k + 1) / pool, w = (x.dim(2) - k + 1) / pool, c = x.dim(3), out = m.dim(0);
    RefTensor y({x.dim(0), h, w, out});
    for (int64_t i = 0; i < y.numel(); ++i) {
      const int64_t o = i % out, z = i / out % w, r = i / out / w % h, image = i / out / w / h;
      double best = 0;  // after the relu no value is below 0
      for (int64_t pr = r * pool; pr < (r + 1) * pool; ++pr)
        for (int64_t pz = z * pool; pz < (z + 1) * pool; ++pz) {
          double sum = bias[o];
          for (int64_t ch = 0; ch < c; ++ch)
            for (int64_t p = 0; p < k; ++p)
              for (int64_t q = 0; q < k; ++q)
                sum += m[((o * c + ch) * k + p) * k + q] *
                       x[((image * x.dim(1) + pr + p) * x.dim(2) + pz + q) * c + ch];
          best = std::max(best, sum);
        }
      y[i] = best;
    }
    return y;
  };
  RefTensor x = crop;
  x.shape = {images, crop.dim(2), crop.dim(3), crop.dim(4)};
  const RefTensor y = layer("cnn.conv2", layer("cnn.conv1", x, 5, 5), 3, 3);
  RefTensor flat({images, 32 * y.dim(1) * y.dim(2)});
  for (int64_t i = 0; i < images; ++i)
    for (int64_t c = 0; c < 32; ++c)
      for (int64_t p = 0; p < y.dim(1) * y.dim(2); ++p)
        flat[i * flat.dim(1) + c * y.dim(1) * y.dim(2) + p] = y[(i * y.dim(1) * y.dim(2) + p) * 32 + c];
  RefTensor v = ref::linear(flat, weights.at("cnn.fc.weight"), &weights.at("cnn.fc.bias"));
  v.shape = {crop.dim(0), crop.dim(1), half};
  return {{"V", v}};
}

RefMap oat(const Problem& problem, const Params& params, const RefMap& inputs, const RefMap& weights) {
  if (params.boolean("with_cnn")) return cnn(inputs, weights);
  Net net{params,
          weights,
          params.integer("rows"),
          params.integer("cols"),
          params.is_null("d_model") ? (problem.channels ? problem.channels : 512) : params.integer("d_model"),
          params.integer("num_heads"),
          params.integer("rows") * params.integer("cols"),
          {}};
  net.table = weights.contains("Q")
                  ? weights.at("Q")
                  : closed_table(params, std::max({net.rows + 2, net.cols, int64_t{2}}), (net.d / 2 + 2) / 3);
  const RefTensor &v_src = inputs.at("V_src"), &pos_src = inputs.at("pos_src"), &v_tgt = inputs.at("V_tgt"),
                  &pos_tgt = inputs.at("pos_tgt");
  const int64_t batch = v_src.dim(0), source = v_src.dim(1), given = v_tgt.dim(1), half = net.d / 2,
                classes = net.objects + 2;
  const auto descriptor = [&](const RefTensor& v, int64_t b, int64_t i) {
    return Row(v.data.begin() + (b * v.dim(1) + i) * half, v.data.begin() + (b * v.dim(1) + i + 1) * half);
  };
  const auto part = [](const RefTensor& p, int64_t b, int64_t i, int64_t k) {
    return static_cast<int64_t>(p[(b * p.dim(1) + i) * 3 + k]);
  };
  const auto real = [&](const RefTensor& p, int64_t b, int64_t i) {
    return static_cast<char>(part(p, b, i, 0) * net.cols + part(p, b, i, 1) != net.objects + 1);
  };
  const bool teacher = params.choice("decode") == "teacher";
  const int64_t steps = teacher ? given : params.integer("scan_len");
  RefTensor out({batch, steps, classes}), path({batch, steps});
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    Rows src;
    std::vector<char> valid;
    for (int64_t i = 0; i < source; ++i) {
      src.push_back(net.embedded(descriptor(v_src, b, i), part(pos_src, b, i, 0), part(pos_src, b, i, 1),
                                 part(pos_src, b, i, 2)));
      valid.push_back(real(pos_src, b, i));
    }
    const Rows memory = net.encoded(src, valid);
    Rows tgt;
    std::vector<char> tgt_valid;
    for (int64_t i = 0; i < given; ++i) {
      tgt.push_back(net.embedded(descriptor(v_tgt, b, i), part(pos_tgt, b, i, 0), part(pos_tgt, b, i, 1),
                                 part(pos_tgt, b, i, 2)));
      tgt_valid.push_back(teacher ? real(pos_tgt, b, i) : 1);
    }
    if (teacher) {
      const Rows y = net.logits(tgt, tgt_valid, memory, valid);
      for (int64_t t = 0; t < given; ++t)
        for (int64_t c = 0; c < classes; ++c)
          out[(b * steps + t) * classes + c] = y[static_cast<size_t>(t)][static_cast<size_t>(c)];
      continue;
    }
    const int64_t target = part(pos_src, b, source - 1, 0) * net.cols + part(pos_src, b, source - 1, 1);
    bool ended = false;
    int64_t length = steps;
    for (int64_t t = 0; t < steps; ++t) {
      const Row y = net.logits(tgt, tgt_valid, memory, valid).back();
      int64_t best = 0;
      double top = -INFINITY;
      for (int64_t c = 0; c < classes; ++c) {
        out[(b * steps + t) * classes + c] = y[static_cast<size_t>(c)];
        if (c > net.objects || (t == 0 && c == net.objects)) continue;
        double score = y[static_cast<size_t>(c)];
        if (params.choice("decode") == "sample") {
          const auto i = static_cast<uint64_t>((b * steps + t) * classes + c);
          score -= std::log(-std::log(std::max(
              random_uniform(static_cast<uint64_t>(params.integer("seed")), stream_of("oat.sample"), i),
              1e-300)));
        }
        if (score > top) top = score, best = c;
      }
      path[b * steps + t] = static_cast<double>(ended ? net.objects + 1 : best);
      if (best == net.objects && !ended) ended = true, length = t + 1;
      const Row v = best < net.objects ? descriptor(v_src, b, best) : descriptor(v_tgt, b, 0);
      tgt.push_back(net.embedded(v, best / net.cols, best % net.cols, best == target && best < net.objects));
      tgt_valid.push_back(1);
    }
    longest = std::max(longest, length);
  }
  if (teacher) return {{"logits", out}};
  RefTensor kept({batch, longest, classes}), scan({batch, longest});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < longest; ++t) {
      scan[b * longest + t] = path[b * steps + t];
      for (int64_t c = 0; c < classes; ++c)
        kept[(b * longest + t) * classes + c] = out[(b * steps + t) * classes + c];
    }
  return {{"logits", kept}, {"scanpath", scan}};
}

ATTNBENCH_REFERENCE(oat, oat);

}  // namespace
}  // namespace attnbench
