// Reference of `circuit_reuse`: a decoder stack in double precision that is run in full for every patch.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <set>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Matrix = std::vector<double>;  // row-major, extents by context

struct Stack {
  int64_t layers, heads, d, c, vocab, n;
  bool mlp;
  const RefMap& w;

  const double* at(int64_t l, const char* name) const {
    return w.at("blocks." + std::to_string(l) + "." + name).data.data();
  }
};

Matrix layer_norm(const Stack& s, const Matrix& x, const double* gain, const double* offset) {
  Matrix y(x.size());
  const auto c = static_cast<size_t>(s.c);
  for (size_t r = 0; r < x.size(); r += c) {
    double mean = 0, var = 0;
    for (size_t i = 0; i < c; ++i) mean += x[r + i];
    mean /= static_cast<double>(c);
    for (size_t i = 0; i < c; ++i) var += (x[r + i] - mean) * (x[r + i] - mean);
    var /= static_cast<double>(c);
    for (size_t i = 0; i < c; ++i) y[r + i] = (x[r + i] - mean) / std::sqrt(var + 1e-5) * gain[i] + offset[i];
  }
  return y;
}

/// Everything of one run of one prompt: [layer][head] -> [N, D], [layer] -> [N, C].
struct Run {
  std::vector<std::vector<Matrix>> q, k, v, z;
  std::vector<Matrix> mlp, post;
  Matrix finished;  ///< normalised last row [C]
  double last_deviation = 0;
};

/// What a run may change: each is called on the fresh activation before it is used.
struct Changes {
  std::function<void(char which, int64_t l, int64_t h, Matrix&)> head;  // q, k, v, z
  std::function<void(int64_t l, Matrix&)> mlp, post;
  std::function<void(int64_t l, int64_t h, int64_t i, std::vector<double>&)> pattern;  // row i of P
};

Run run(const Stack& s, const std::vector<int64_t>& tokens, const Changes& change) {
  Run r;
  const int64_t n = s.n, c = s.c, d = s.d;
  Matrix x(static_cast<size_t>(n * c));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < c; ++k)
      x[static_cast<size_t>(i * c + k)] =
          s.w.at("embed.W_E")[tokens[static_cast<size_t>(i)] * c + k] + s.w.at("pos_embed.W_pos")[i * c + k];
  for (int64_t l = 0; l < s.layers; ++l) {
    const Matrix in = layer_norm(s, x, s.at(l, "ln1.w"), s.at(l, "ln1.b"));
    r.q.emplace_back(), r.k.emplace_back(), r.v.emplace_back(), r.z.emplace_back();
    const double *out = s.at(l, "attn.W_O"), *out_bias = s.at(l, "attn.b_O");
    Matrix sum = x;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < c; ++k) sum[static_cast<size_t>(i * c + k)] += out_bias[k];
    for (int64_t h = 0; h < s.heads; ++h) {
      const auto head = [&](const char* weight, const char* bias, char which) {
        const double *m = s.at(l, weight) + h * c * d, *b = s.at(l, bias) + h * d;
        Matrix y(static_cast<size_t>(n * d));
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < d; ++j) {
            double t = b[j];
            for (int64_t k = 0; k < c; ++k) t += in[static_cast<size_t>(i * c + k)] * m[k * d + j];
            y[static_cast<size_t>(i * d + j)] = t;
          }
        if (change.head) change.head(which, l, h, y);
        return y;
      };
      Matrix q = head("attn.W_Q", "attn.b_Q", 'q'), k = head("attn.W_K", "attn.b_K", 'k'),
             v = head("attn.W_V", "attn.b_V", 'v'), z(static_cast<size_t>(n * d), 0.0);
      for (int64_t i = 0; i < n; ++i) {
        std::vector<double> p(static_cast<size_t>(n), 0.0);
        std::vector<char> visible(static_cast<size_t>(n), 0);
        for (int64_t j = 0; j <= i; ++j) {
          visible[static_cast<size_t>(j)] = 1;
          for (int64_t e = 0; e < d; ++e)
            p[static_cast<size_t>(j)] +=
                q[static_cast<size_t>(i * d + e)] * k[static_cast<size_t>(j * d + e)];
          p[static_cast<size_t>(j)] /= std::sqrt(static_cast<double>(d));
        }
        ref::softmax_row(p, visible);
        if (change.pattern) change.pattern(l, h, i, p);
        for (int64_t j = 0; j < n; ++j)
          for (int64_t e = 0; e < d; ++e)
            z[static_cast<size_t>(i * d + e)] +=
                p[static_cast<size_t>(j)] * v[static_cast<size_t>(j * d + e)];
      }
      if (change.head) change.head('z', l, h, z);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t e = 0; e < d; ++e)
          for (int64_t o = 0; o < c; ++o)
            sum[static_cast<size_t>(i * c + o)] +=
                z[static_cast<size_t>(i * d + e)] * out[(h * d + e) * c + o];
      r.q[static_cast<size_t>(l)].push_back(q);
      r.k[static_cast<size_t>(l)].push_back(k);
      r.v[static_cast<size_t>(l)].push_back(v);
      r.z[static_cast<size_t>(l)].push_back(z);
    }
    x = sum;
    r.mlp.emplace_back();
    if (s.mlp) {
      const Matrix mid = layer_norm(s, x, s.at(l, "ln2.w"), s.at(l, "ln2.b"));
      const int64_t f = 4 * c;
      const double *in_w = s.at(l, "mlp.W_in"), *in_b = s.at(l, "mlp.b_in"), *out_w = s.at(l, "mlp.W_out"),
                   *out_b = s.at(l, "mlp.b_out");
      Matrix y(static_cast<size_t>(n * c));
      for (int64_t i = 0; i < n; ++i) {
        std::vector<double> hidden(in_b, in_b + f);
        for (int64_t k = 0; k < c; ++k)
          for (int64_t j = 0; j < f; ++j)
            hidden[static_cast<size_t>(j)] += mid[static_cast<size_t>(i * c + k)] * in_w[k * f + j];
        for (int64_t o = 0; o < c; ++o) y[static_cast<size_t>(i * c + o)] = out_b[o];
        for (int64_t j = 0; j < f; ++j) {
          const double a = hidden[static_cast<size_t>(j)];
          const double g =
              0.5 * a * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (a + 0.044715 * a * a * a)));
          for (int64_t o = 0; o < c; ++o) y[static_cast<size_t>(i * c + o)] += g * out_w[j * c + o];
        }
      }
      if (change.mlp) change.mlp(l, y);
      for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
      r.mlp.back() = y;
    }
    if (change.post) change.post(l, x);
    r.post.push_back(x);
  }
  const Matrix last(x.end() - static_cast<std::ptrdiff_t>(c), x.end());
  r.finished = layer_norm(s, last, s.w.at("ln_final.w").data.data(), s.w.at("ln_final.b").data.data());
  double mean = 0, var = 0;
  for (double v : last) mean += v / static_cast<double>(c);
  for (double v : last) var += (v - mean) * (v - mean) / static_cast<double>(c);
  r.last_deviation = std::sqrt(var + 1e-5);
  return r;
}

double logit(const Stack& s, const Run& r, int64_t token) {
  double sum = s.w.at("unembed.b_U")[token];
  for (int64_t k = 0; k < s.c; ++k)
    sum += r.finished[static_cast<size_t>(k)] * s.w.at("unembed.W_U")[k * s.vocab + token];
  return sum;
}

using HeadSet = std::set<std::pair<int64_t, int64_t>>;

HeadSet head_set(const Value& v) {
  HeadSet s;
  for (const Value& e : v.as_list()) s.insert({e.as_list()[0].as_int(), e.as_list()[1].as_int()});
  return s;
}

std::vector<double> average_ranks(const std::vector<double>& x) {
  std::vector<double> r;
  for (double a : x) {
    double below = 0, equal = 0;
    for (double b : x) below += b < a, equal += b == a;
    r.push_back(below + 0.5 * (equal + 1));
  }
  return r;
}

/// Correlation of ranks, whose mean is (n + 1) / 2 whatever the ties; 0 where one side has no spread.
double rank_correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const double mean = 0.5 * (static_cast<double>(x.size()) + 1);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mean) * (y[i] - mean);
    xx += (x[i] - mean) * (x[i] - mean);
    yy += (y[i] - mean) * (y[i] - mean);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0.0;
}

RefMap circuit_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor &clean = inputs.at("clean_tokens"), &answers = inputs.at("answer_ids");
  const int64_t batch = clean.dim(0), n = clean.dim(1);
  const int64_t heads = params.integer("num_heads"), d = params.integer("head_dim");
  const Stack s{params.integer("num_layers"), heads,  d, heads * d, params.integer("vocab_size"), n,
                params.boolean("use_mlp"),    weights};
  const int64_t given = params.integer("position"), pos = given < 0 ? n + given : given;
  const bool to_logits = params.value("receivers").is_string(), freeze = params.boolean("freeze_mlps");
  const HeadSet receivers = to_logits ? HeadSet{} : head_set(params.value("receivers"));
  const char component = params.choice("component")[0];
  const auto row = [](const Matrix& m, int64_t i, int64_t width) {
    return Matrix(m.begin() + static_cast<std::ptrdiff_t>(i * width),
                  m.begin() + static_cast<std::ptrdiff_t>((i + 1) * width));
  };
  const auto set_row = [](Matrix& m, int64_t i, const Matrix& values) {
    std::copy(values.begin(), values.end(), m.begin() + i * static_cast<int64_t>(values.size()));
  };
  const auto tokens_of = [&](const RefTensor& t, int64_t b) {
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int64_t>(t[b * n + i]));
    return ids;
  };
  const auto difference = [&](const Run& r, int64_t b) {
    return logit(s, r, static_cast<int64_t>(answers[2 * b])) -
           logit(s, r, static_cast<int64_t>(answers[2 * b + 1]));
  };
  const auto last_logits = [&](const std::vector<Run>& runs) {
    RefTensor t({batch, s.vocab});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t v = 0; v < s.vocab; ++v) t[b * s.vocab + v] = logit(s, runs[static_cast<size_t>(b)], v);
    return t;
  };
  const auto run_all = [&](const RefTensor& t, const Changes& change) {
    std::vector<Run> runs(static_cast<size_t>(batch));
    for (int64_t b = 0; b < batch; ++b) runs[static_cast<size_t>(b)] = run(s, tokens_of(t, b), change);
    return runs;
  };
  const auto scalar = [](double v) {
    RefTensor t({1});
    t[0] = v;
    return t;
  };

  RefMap out;
  const std::vector<Run> base = run_all(clean, {});
  double ld_clean = 0;
  for (int64_t b = 0; b < batch; ++b)
    ld_clean += difference(base[static_cast<size_t>(b)], b) / static_cast<double>(batch);
  out["LD_clean"] = scalar(ld_clean);
  out["logits_clean_last"] = last_logits(base);
  RefTensor z({s.layers, batch, heads, d}), resid({batch, s.c});
  for (int64_t b = 0; b < batch; ++b) {
    const Run& r = base[static_cast<size_t>(b)];
    for (int64_t l = 0; l < s.layers; ++l)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t e = 0; e < d; ++e)
          z[((l * batch + b) * heads + h) * d + e] =
              r.z[static_cast<size_t>(l)][static_cast<size_t>(h)][static_cast<size_t>((n - 1) * d + e)];
    for (int64_t k = 0; k < s.c; ++k)
      resid[b * s.c + k] = r.post.back()[static_cast<size_t>((n - 1) * s.c + k)];
  }
  out["z_clean_last"] = z;
  out["resid_final_last"] = resid;

  int64_t lowest = s.layers - 1;
  if (!to_logits && params.boolean("truncate_to_receiver")) lowest = receivers.begin()->first;
  std::vector<std::vector<double>> scores;
  for (const char* suffix : {"", "_2"}) {
    const auto it = inputs.find(std::string("corrupt_tokens") + suffix);
    if (it == inputs.end()) continue;
    const std::vector<Run> corrupt = run_all(it->second, {});
    double ld_corrupt = 0;
    for (int64_t b = 0; b < batch; ++b)
      ld_corrupt += difference(corrupt[static_cast<size_t>(b)], b) / static_cast<double>(batch);
    out[std::string("LD_corrupt") + suffix] = scalar(ld_corrupt);
    if (!*suffix) out["logits_corrupt_last"] = last_logits(corrupt);
    RefTensor score({s.layers, heads});
#pragma omp parallel for schedule(dynamic)
    for (int64_t sender = 0; sender < s.layers * heads; ++sender) {
      const int64_t sl = sender / heads, sh = sender % heads;
      if (sl > lowest || receivers.contains({sl, sh})) continue;
      double patched = 0;
      for (int64_t b = 0; b < batch; ++b) {
        const Run &c = base[static_cast<size_t>(b)], &k = corrupt[static_cast<size_t>(b)];
        std::map<std::pair<int64_t, int64_t>, Matrix> recorded;
        Changes first;
        first.head = [&](char which, int64_t l, int64_t h, Matrix& m) {
          if (which == component && receivers.contains({l, h})) recorded[{l, h}] = row(m, pos, d);
          if (which != 'z') return;
          const Run& from = l == sl && h == sh ? k : c;
          set_row(m, pos, row(from.z[static_cast<size_t>(l)][static_cast<size_t>(h)], pos, d));
        };
        if (freeze)
          first.mlp = [&](int64_t l, Matrix& m) {
            set_row(m, pos, row(c.mlp[static_cast<size_t>(l)], pos, s.c));
          };
        first.post = [&](int64_t l, Matrix& m) {
          if (to_logits && l == s.layers - 1) recorded[{l, -1}] = row(m, pos, s.c);
        };
        run(s, tokens_of(clean, b), first);
        Changes second;
        second.head = [&](char which, int64_t l, int64_t h, Matrix& m) {
          if (which == component && receivers.contains({l, h})) set_row(m, pos, recorded.at({l, h}));
        };
        second.post = [&](int64_t l, Matrix& m) {
          if (to_logits && l == s.layers - 1) set_row(m, pos, recorded.at({l, -1}));
        };
        patched += difference(run(s, tokens_of(clean, b), second), b) / static_cast<double>(batch);
      }
      score[sender] = ld_corrupt == ld_clean ? 0.0 : (patched - ld_clean) / (ld_corrupt - ld_clean);
    }
    out[std::string("score") + suffix] = score;
    scores.push_back(score.data);
  }
  if (scores.size() == 2) {
    const int64_t all = s.layers * heads;
    const auto keep =
        static_cast<int64_t>(std::ceil(params.number("top_frac") * static_cast<double>(all) - 1e-9));
    std::vector<std::set<int64_t>> circuits;
    for (const std::vector<double>& score : scores) {
      std::set<int64_t> chosen;
      while (static_cast<int64_t>(chosen.size()) < std::max<int64_t>(keep, 1)) {
        int64_t best = -1;
        for (int64_t i = 0; i < all; ++i)
          if (!chosen.contains(i) && (best < 0 || std::fabs(score[static_cast<size_t>(i)]) >
                                                      std::fabs(score[static_cast<size_t>(best)])))
            best = i;
        chosen.insert(best);
      }
      RefTensor pairs({static_cast<int64_t>(chosen.size()), 2});
      int64_t at = 0;
      for (int64_t i : chosen)
        pairs[at++] = static_cast<double>(i / heads), pairs[at++] = static_cast<double>(i % heads);
      out[circuits.empty() ? "circuit_1" : "circuit_2"] = pairs;
      circuits.push_back(chosen);
    }
    double shared = 0;
    for (int64_t i : circuits[0]) shared += circuits[1].contains(i);
    const auto a = static_cast<double>(circuits[0].size()), b = static_cast<double>(circuits[1].size());
    out["overlap"] = scalar(shared / (a + b - shared));
    out["overlap_of_1"] = scalar(shared / a);
    out["spearman"] = scalar(rank_correlation(average_ranks(scores[0]), average_ranks(scores[1])));
  }

  const HeadSet silent = head_set(params.value("ablate_heads"));
  const Value::List& sources = params.value("override_sources").as_list();
  const auto intervene = [&](const char* name, bool override_rows, bool ablate) {
    Changes change;
    if (ablate)
      change.head = [&](char which, int64_t l, int64_t h, Matrix& m) {
        if (which == 'v' && silent.contains({l, h})) std::fill(m.begin(), m.end(), 0.0);
      };
    const HeadSet moved = override_rows ? head_set(params.value("override_heads")) : HeadSet{};
    change.pattern = [&, moved](int64_t l, int64_t h, int64_t i, std::vector<double>& p) {
      if (i != n - 1 || !moved.contains({l, h})) return;
      std::fill(p.begin(), p.end(), 0.0);
      for (const Value& j : sources)
        p[static_cast<size_t>(j.as_int())] = 1.0 / static_cast<double>(sources.size());
    };
    out[name] = last_logits(run_all(clean, change));
  };
  if (!sources.empty()) intervene("logits_override_last", true, false);
  if (!silent.empty()) intervene("logits_value_ablation_last", false, true);
  if (!sources.empty() && !silent.empty()) intervene("logits_override_and_ablation_last", true, true);

  RefTensor dla({s.layers, heads, batch, 2}), folded({s.layers, heads, batch, 2});
  const RefTensor &gain = weights.at("ln_final.w"), &u = weights.at("unembed.W_U");
  std::vector<double> mean_u(static_cast<size_t>(s.c), 0.0);
  for (int64_t k = 0; k < s.c; ++k)
    for (int64_t v = 0; v < s.vocab; ++v)
      mean_u[static_cast<size_t>(k)] += u[k * s.vocab + v] / static_cast<double>(s.vocab);
  for (int64_t l = 0; l < s.layers; ++l)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t b = 0; b < batch; ++b)
        for (int without = 0; without < 2; ++without) {
          Matrix head =
              row(base[static_cast<size_t>(b)].z[static_cast<size_t>(l)][static_cast<size_t>(h)], n - 1, d);
          if (without)
            for (int64_t e = 0; e < d; ++e) {
              double bias = s.at(l, "attn.b_V")[h * d + e];
              for (int64_t k = 0; k < s.c; ++k)
                bias += s.at(l, "ln1.b")[k] * s.at(l, "attn.W_V")[(h * s.c + k) * d + e];
              head[static_cast<size_t>(e)] -= bias;
            }
          Matrix y(static_cast<size_t>(s.c), 0.0);
          double mean = 0;
          for (int64_t k = 0; k < s.c; ++k) {
            for (int64_t e = 0; e < d; ++e)
              y[static_cast<size_t>(k)] +=
                  head[static_cast<size_t>(e)] * s.at(l, "attn.W_O")[(h * d + e) * s.c + k];
            mean += y[static_cast<size_t>(k)] / static_cast<double>(s.c);
          }
          for (int64_t t = 0; t < 2; ++t) {
            const auto token = static_cast<int64_t>(answers[2 * b + t]);
            double sum = 0;
            for (int64_t k = 0; k < s.c; ++k)
              sum += (y[static_cast<size_t>(k)] - mean) / base[static_cast<size_t>(b)].last_deviation *
                     gain[k] * (u[k * s.vocab + token] - mean_u[static_cast<size_t>(k)]);
            (without ? folded : dla)[((l * heads + h) * batch + b) * 2 + t] = sum;
          }
        }
  out["dla"] = dla;
  out["dla_folded"] = folded;
  return out;
}
ATTNBENCH_REFERENCE(circuit_reuse, circuit_reference);

}  // namespace
}  // namespace attnbench
