// Reference of `mptsnet`: convolutions in parallel, segments one by one, in double precision.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;  ///< tokens, or points of a piece
constexpr double kPi = std::numbers::pi;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

double amplitude(const Row& series, int64_t bin) {
  std::complex<double> sum = 0;
  const auto n = static_cast<int64_t>(series.size());
  for (int64_t t = 0; t < n; ++t)
    sum += series[static_cast<size_t>(t)] *
           std::polar(1.0, -2 * kPi * static_cast<double>(t * bin % n) / static_cast<double>(n));
  return 2 * std::abs(sum) / static_cast<double>(n);
}

struct Net {
  const RefMap& w;
  const Params& p;
  bool cls;

  const RefTensor& at(const std::string& name) const { return w.at(name); }
  Row linear(const Row& x, const std::string& name) const {
    const RefTensor& m = at(name + ".weight");
    Row y(static_cast<size_t>(m.dim(0)));
    for (size_t o = 0; o < y.size(); ++o) {
      y[o] = at(name + ".bias").data[o];
      for (size_t i = 0; i < x.size(); ++i) y[o] += m.data[o * x.size() + i] * x[i];
    }
    return y;
  }
  Row layer_norm(const Row& x, const std::string& name) const {
    double mean = 0, square = 0;
    const auto n = static_cast<double>(x.size());
    for (double v : x) mean += v / n;
    for (double v : x) square += (v - mean) * (v - mean) / n;
    Row y;
    for (size_t i = 0; i < x.size(); ++i)
      y.push_back((x[i] - mean) / std::sqrt(square + 1e-5) * at(name + ".weight").data[i] +
                  at(name + ".bias").data[i]);
    return y;
  }

  /// Class token (if any) and positions in front of the layers.
  Rows transformer(const Rows& tokens, const std::string& name) const {
    Rows u;
    if (cls) u.push_back(at(name + "cls").data);
    u.insert(u.end(), tokens.begin(), tokens.end());
    const size_t width = u[0].size(), heads = static_cast<size_t>(p.integer("heads")), d = width / heads;
    for (size_t t = 0; t < u.size(); ++t)
      for (size_t i = 0; i < width; ++i) {
        const double rate = std::pow(10000.0, -static_cast<double>(i - i % 2) / static_cast<double>(width));
        u[t][i] += i % 2 ? std::cos(static_cast<double>(t) * rate) : std::sin(static_cast<double>(t) * rate);
      }
    for (int64_t l = 0; l < p.integer("num_layers"); ++l) {
      const std::string at_layer = name + "layers." + std::to_string(l) + ".";
      Rows qkv, mixed;
      for (const Row& r : u) qkv.push_back(linear(r, at_layer + "attn.in_proj"));
      for (size_t i = 0; i < u.size(); ++i) {
        Row o(width);
        for (size_t h = 0; h < heads; ++h) {
          Row s(u.size());
          double most = -INFINITY, sum = 0;
          for (size_t j = 0; j < u.size(); ++j) {
            for (size_t c = 0; c < d; ++c)
              s[j] += qkv[i][h * d + c] * qkv[j][width + h * d + c] / std::sqrt(static_cast<double>(d));
            most = std::max(most, s[j]);
          }
          for (double& v : s) sum += v = std::exp(v - most);
          for (size_t j = 0; j < u.size(); ++j)
            for (size_t c = 0; c < d; ++c) o[h * d + c] += s[j] / sum * qkv[j][2 * width + h * d + c];
        }
        mixed.push_back(linear(o, at_layer + "attn.out_proj"));
      }
      for (size_t t = 0; t < u.size(); ++t) {
        for (size_t i = 0; i < width; ++i) u[t][i] += mixed[t][i];
        u[t] = layer_norm(u[t], at_layer + "norm1");
        Row h = linear(u[t], at_layer + "ff1");
        for (double& v : h) v = std::max(v, 0.0);
        h = linear(h, at_layer + "ff2");
        for (size_t i = 0; i < width; ++i) u[t][i] += h[i];
        u[t] = layer_norm(u[t], at_layer + "norm2");
      }
    }
    return u;
  }
  Rows read_out(const Rows& u, const std::string& name) const {
    Rows y;
    for (size_t t = cls ? 1 : 0; t < u.size(); ++t) {
      Row x = u[t];
      if (cls) x.insert(x.end(), u[0].begin(), u[0].end());
      y.push_back(linear(x, name));
    }
    return y;
  }

  /// Mean of the parallel convolutions, then both gates.
  Rows stage(const Rows& x, const std::string& name) const {
    const int64_t kernels = p.integer("num_kernels"), n = static_cast<int64_t>(x.size());
    Rows y;
    for (int64_t i = 0; i < kernels; ++i) {
      const int64_t own = 2 * i + 1;
      const RefTensor &k = at(name + "conv" + std::to_string(own) + ".weight"),
                      &b = at(name + "conv" + std::to_string(own) + ".bias");
      const int64_t out = k.dim(0), in = k.dim(1);
      if (y.empty()) y.assign(x.size(), Row(static_cast<size_t>(out)));
      for (int64_t t = 0; t < n; ++t)
        for (int64_t o = 0; o < out; ++o) {
          double sum = b[o];
          for (int64_t a = 0; a < own; ++a) {
            const int64_t from = t + a - i;
            if (from < 0 || from >= n) continue;
            for (int64_t c = 0; c < in; ++c)
              sum += k[(o * in + c) * own + a] * x[static_cast<size_t>(from)][static_cast<size_t>(c)];
          }
          y[static_cast<size_t>(t)][static_cast<size_t>(o)] += sum / static_cast<double>(kernels);
        }
    }
    const size_t out = y[0].size();
    Row mean(out), most(out, -INFINITY), gate(out);
    for (const Row& r : y)
      for (size_t c = 0; c < out; ++c)
        mean[c] += r[c] / static_cast<double>(n), most[c] = std::max(most[c], r[c]);
    const RefTensor &w1 = at(name + "channel_gate.W1"), &w2 = at(name + "channel_gate.W2");
    for (const Row& pooled : {mean, most})
      for (int64_t h = 0; h < w1.dim(0); ++h) {
        double sum = 0;
        for (size_t c = 0; c < out; ++c) sum += w1.data[static_cast<size_t>(h) * out + c] * pooled[c];
        for (size_t c = 0; c < out; ++c)
          gate[c] +=
              w2.data[c * static_cast<size_t>(w1.dim(0)) + static_cast<size_t>(h)] * std::max(sum, 0.0);
      }
    for (Row& r : y)
      for (size_t c = 0; c < out; ++c) r[c] *= sigmoid(gate[c]);
    Rows maps;
    for (const Row& r : y) {
      double sum = 0, top = -INFINITY;
      for (double v : r) sum += v / static_cast<double>(out), top = std::max(top, v);
      maps.push_back({sum, top});
    }
    for (int64_t t = 0; t < n; ++t) {
      double sum = 0;
      for (int64_t a = 0; a < 7; ++a)
        for (int64_t c = 0; c < 2; ++c) {
          const int64_t from = t + a - 3;
          if (from >= 0 && from < n)
            sum += at(name + "position_gate.weight")[c * 7 + a] *
                   maps[static_cast<size_t>(from)][static_cast<size_t>(c)];
        }
      for (double& v : y[static_cast<size_t>(t)]) v *= sigmoid(sum);
    }
    return y;
  }

  struct Result {
    Rows y, point;
    Row a, w;
  };
  /// x: points of d channels.
  Result block(const Rows& x, const std::string& name, const std::vector<int64_t>& periods) const {
    const auto length = static_cast<int64_t>(x.size()), d = static_cast<int64_t>(x[0].size());
    Result r;
    Row series;
    for (const Row& t : x) {
      double sum = 0;
      for (double v : t) sum += v / static_cast<double>(d);
      series.push_back(sum);
    }
    double most = -INFINITY, total = 0;
    for (int64_t period : periods) {
      int64_t best = 0;
      for (int64_t j = 0; j < length / 2; ++j)
        if (std::abs(static_cast<double>(j * period - length)) <
            std::abs(static_cast<double>(best * period - length)))
          best = j;
      r.a.push_back(amplitude(series, best));
      most = std::max(most, r.a.back());
    }
    for (double a : r.a) r.w.push_back(std::exp(a - most)), total += r.w.back();
    for (double& w : r.w) w /= total;
    const Rows u = transformer(x, name + "point.");
    r.point = cls ? read_out(u, name + "point.out") : u;
    r.y = r.point;
    for (int64_t t = 0; t < length; ++t)
      for (int64_t c = 0; c < d; ++c)
        r.y[static_cast<size_t>(t)][static_cast<size_t>(c)] +=
            x[static_cast<size_t>(t)][static_cast<size_t>(c)];
    for (size_t i = 0; i < periods.size(); ++i) {
      const int64_t period = periods[i], f = (length + period - 1) / period;
      const bool strided = p.choice("segment_layout") == "strided";
      const auto time = [&](int64_t j, int64_t a) { return strided ? a * f + j : j * period + a; };
      Rows tokens(static_cast<size_t>(f));
#pragma omp parallel for
      for (int64_t j = 0; j < f; ++j) {
        Rows piece;
        for (int64_t a = 0; a < period; ++a)
          piece.push_back(time(j, a) < length ? x[static_cast<size_t>(time(j, a))]
                                              : Row(static_cast<size_t>(d)));
        Rows inner = stage(piece, name + "extractor.0.");
        for (Row& row : inner)
          for (double& v : row) v = gelu(v);
        inner = stage(inner, name + "extractor.1.");
        Row flat;
        for (int64_t c = 0; c < d; ++c)
          for (int64_t a = 0; a < period; ++a)
            flat.push_back(piece[static_cast<size_t>(a)][static_cast<size_t>(c)] +
                           inner[static_cast<size_t>(a)][static_cast<size_t>(c)]);
        tokens[static_cast<size_t>(j)] = linear(flat, name + "period." + std::to_string(i) + ".in");
      }
      const Rows y = read_out(transformer(tokens, name + "period." + std::to_string(i) + "."),
                              name + "period." + std::to_string(i) + ".out");
      for (int64_t j = 0; j < f; ++j)
        for (int64_t a = 0; a < period; ++a)
          for (int64_t c = 0; c < d; ++c)
            if (time(j, a) < length)
              r.y[static_cast<size_t>(time(j, a))][static_cast<size_t>(c)] +=
                  r.w[i] * y[static_cast<size_t>(j)][static_cast<size_t>(c * period + a)];
    }
    return r;
  }
};

RefMap mpts_reference(const Problem&, const Params& p, const RefMap& inputs, const RefMap& weights) {
  const bool model = p.choice("scope") == "model";
  const Net net{weights, p, p.boolean("cls_token")};
  const RefTensor& x = inputs.at(model ? "x" : "X");
  const int64_t batch = x.dim(0), length = model ? x.dim(1) : x.dim(2),
                channels = model ? x.dim(2) : x.dim(1);
  std::vector<int64_t> periods;
  if (!p.is_null("periods")) {
    for (const Value& v : p.value("periods").as_list())
      periods.push_back(static_cast<int64_t>(v.as_double()));
  } else {
    Row series(static_cast<size_t>(length));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < length; ++t)
        for (int64_t c = 0; c < channels; ++c)
          series[static_cast<size_t>(t)] +=
              model ? x[(b * length + t) * channels + c] : x[(b * channels + c) * length + t];
    std::vector<int64_t> order;
    Row size(static_cast<size_t>(length));
    for (int64_t j = 2; j < length / 2; ++j)
      order.push_back(j), size[static_cast<size_t>(j)] = amplitude(series, j);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return size[static_cast<size_t>(a)] > size[static_cast<size_t>(b)];
    });
    for (int64_t j : order) {
      const auto period =
          static_cast<int64_t>(std::nearbyint(static_cast<double>(length) / static_cast<double>(j)));
      if (static_cast<int64_t>(periods.size()) == p.integer("num_periods")) break;
      if (std::find(periods.begin(), periods.end(), period) == periods.end()) periods.push_back(period);
    }
  }
  RefMap out;
  const auto k = static_cast<int64_t>(periods.size());
  const auto store = [&](const std::string& name, int64_t b, const Rows& rows) {  // as [B][d][L]
    const auto d = static_cast<int64_t>(rows[0].size());
    if (!out.contains(name)) out[name] = RefTensor({batch, d, length});
    for (int64_t t = 0; t < length; ++t)
      for (int64_t c = 0; c < d; ++c)
        out[name][(b * d + c) * length + t] = rows[static_cast<size_t>(t)][static_cast<size_t>(c)];
  };
  if (!model) {
    out["A"] = out["w"] = RefTensor({batch, k});
    for (int64_t b = 0; b < batch; ++b) {
      Rows rows(static_cast<size_t>(length), Row(static_cast<size_t>(channels)));
      for (int64_t t = 0; t < length; ++t)
        for (int64_t c = 0; c < channels; ++c)
          rows[static_cast<size_t>(t)][static_cast<size_t>(c)] = x[(b * channels + c) * length + t];
      const Net::Result r = net.block(rows, "", periods);
      store("out", b, r.y);
      store("Gp", b, r.point);
      for (int64_t i = 0; i < k; ++i)
        out["A"][b * k + i] = r.a[static_cast<size_t>(i)], out["w"][b * k + i] = r.w[static_cast<size_t>(i)];
    }
    return out;
  }
  out["periods"] = RefTensor({k});
  for (int64_t i = 0; i < k; ++i) out["periods"][i] = static_cast<double>(periods[static_cast<size_t>(i)]);
  const int64_t classes = p.integer("num_classes");
  out["logits"] = RefTensor({batch, classes});
  const RefTensor& embed = weights.at("embed.weight");
  const int64_t d = embed.dim(0), taps = embed.dim(2);
  for (int64_t b = 0; b < batch; ++b) {
    Rows rows;
    for (int64_t t = 0; t < length; ++t) {
      Row row;
      for (int64_t o = 0; o < d; ++o) {
        double sum = 0;
        for (int64_t a = 0; a < taps; ++a) {
          const int64_t from = (t + a - taps / 2 + length) % length;
          for (int64_t c = 0; c < channels; ++c)
            sum += embed[(o * channels + c) * taps + a] * x[(b * length + from) * channels + c];
        }
        const double rate = std::pow(10000.0, -static_cast<double>(o - o % 2) / static_cast<double>(d));
        row.push_back(sum + (o % 2 ? std::cos(static_cast<double>(t) * rate)
                                   : std::sin(static_cast<double>(t) * rate)));
      }
      rows.push_back(row);
    }
    store("embedded", b, rows);
    for (int64_t i = 0; i < p.integer("num_blocks"); ++i) {
      const Net::Result r = net.block(rows, "blocks." + std::to_string(i) + ".", periods);
      store("block" + std::to_string(i), b, r.y);
      for (int64_t t = 0; t < length; ++t)
        rows[static_cast<size_t>(t)] = net.layer_norm(r.y[static_cast<size_t>(t)], "norm");
    }
    Row flat;
    for (int64_t c = 0; c < d; ++c)
      for (int64_t t = 0; t < length; ++t)
        flat.push_back(gelu(rows[static_cast<size_t>(t)][static_cast<size_t>(c)]));
    const Row y = net.linear(flat, "head");
    for (int64_t c = 0; c < classes; ++c) out["logits"][b * classes + c] = y[static_cast<size_t>(c)];
  }
  return out;
}
ATTNBENCH_REFERENCE(mptsnet, mpts_reference);

}  // namespace
}  // namespace attnbench
