// Reference of biformer: the card's steps on explicit lists of tokens.
#include <algorithm>
#include <numeric>

#include "reference/vision_reference.hpp"

namespace attnbench {

namespace {

using namespace vision_ref;

/// The depthwise convolution of channels [column, column + C) of rows on an h x w map, zeros outside.
RefTensor lepe_of(const RefTensor& rows, int64_t column, int64_t c, int64_t batch, int64_t h, int64_t w,
                  const RefTensor& weight, const RefTensor& bias) {
  const int64_t k = weight.dim(2);
  const Rows v{rows, column};
  RefTensor y({batch, h * w, c});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < h; ++i)
      for (int64_t j = 0; j < w; ++j)
        for (int64_t ch = 0; ch < c; ++ch) {
          double sum = bias[ch];
          for (int64_t p = 0; p < k; ++p)
            for (int64_t q = 0; q < k; ++q) {
              const int64_t r = i + p - k / 2, s = j + q - k / 2;
              if (r < 0 || r >= h || s < 0 || s >= w) continue;
              sum += weight[(ch * k + p) * k + q] * v.at((b * h + r) * w + s)[ch];
            }
          y[((b * h + i) * w + j) * c + ch] = sum;
        }
  return y;
}

RefMap biformer(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& given = inputs.at("x");
  const int64_t batch = given.dim(0), hg = params.integer("grid_h"), wg = params.integer("grid_w");
  const int64_t c = params.integer("dim"), heads = params.integer("num_heads");
  const int64_t cqk = params.is_null("qk_dim") ? c : params.integer("qk_dim"), d = c / heads,
                dqk = cqk / heads;
  const bool all = params.value("topk").is_string(), legacy = params.choice("variant") == "legacy";
  double scale = 1 / std::sqrt(static_cast<double>(all ? dqk : cqk));
  if (!params.is_null("qk_scale")) scale = params.number("qk_scale");
  RefTensor x = given;
  x.shape = {batch, hg * wg, c};

  // The regions, and the map on which the projection runs.
  int64_t rh = 1, rw = 1, nh = hg, nw = wg, h = hg, w = wg;
  if (!all) {
    const int64_t side = params.integer("n_win");
    if (legacy) {
      nh = nw = side;
      rh = (hg + side - 1) / side, rw = (wg + side - 1) / side;
      h = nh * rh, w = nw * rw;
      x = pad_grid(x, hg, wg, h, w);
    } else {
      rh = hg / side, rw = wg / side;
      nh = (hg + rh - 1) / rh, nw = (wg + rw - 1) / rw;
    }
  }
  const RefTensor qkv = linear(weights, "qkv", x);
  RefMap out;
  RefTensor o({batch, h * w, c});
  if (all) {
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int64_t> keys(static_cast<size_t>(h * w));
      std::iota(keys.begin(), keys.end(), b * h * w);
      for (int64_t i = 0; i < h * w; ++i)
        for (int64_t head = 0; head < heads; ++head) {
          std::vector<double> scores;
          for (const int64_t j : keys) {
            double s = 0;
            for (int64_t e = 0; e < dqk; ++e)
              s += Rows{qkv, head * dqk}.at(b * h * w + i)[e] * Rows{qkv, cqk + head * dqk}.at(j)[e];
            scores.push_back(s * scale);
          }
          ref::softmax_row(scores, std::vector<char>(scores.size(), 1));
          for (int64_t e = 0; e < d; ++e)
            for (size_t j = 0; j < keys.size(); ++j)
              o[(b * h * w + i) * c + head * d + e] +=
                  scores[j] * Rows{qkv, 2 * cqk + head * d}.at(keys[j])[e];
        }
    }
  } else {
    const int64_t regions = nh * nw, topk = params.value("topk").as_int();
    const std::string down = params.choice("kv_downsample");
    const bool soft = params.boolean("soft_routing");
    int64_t ph = rh, pw = rw;
    if (down == "avg" || down == "max")
      ph = rh / params.integer("kv_ratio"), pw = rw / params.integer("kv_ratio");
    if (down == "ada_avg" || down == "ada_max") ph = pw = params.integer("kv_per_win");
    RefTensor idx({batch, regions, topk});
    for (int64_t b = 0; b < batch; ++b) {
      // q, k or v channel `ch` of a place of the padded map; zero where nchw padded after the projection.
      const auto value = [&](int64_t y, int64_t z, int64_t ch) {
        return y < h && z < w ? qkv[((b * h + y) * w + z) * (2 * cqk + c) + ch] : 0.0;
      };
      RefTensor mean({regions, 2 * cqk});
      for (int64_t r = 0; r < regions; ++r) {
        int64_t real = 0;
        for (int64_t y = r / nw * rh; y < std::min(h, (r / nw + 1) * rh); ++y)
          for (int64_t z = r % nw * rw; z < std::min(w, (r % nw + 1) * rw); ++z, ++real)
            for (int64_t ch = 0; ch < 2 * cqk; ++ch) mean[r * 2 * cqk + ch] += value(y, z, ch);
        for (int64_t ch = 0; ch < 2 * cqk; ++ch) mean[r * 2 * cqk + ch] /= static_cast<double>(real);
      }
      // Keys and values of every region: [regions][keys][cqk + c].
      const int64_t each = ph * pw, kv = cqk + c;
      RefTensor store({regions, each, kv});
      for (int64_t r = 0; r < regions; ++r)
        for (int64_t p = 0; p < ph; ++p)
          for (int64_t q = 0; q < pw; ++q) {
            int64_t y0 = p, y1 = p + 1, z0 = q, z1 = q + 1;
            if (down == "avg" || down == "max") {
              const int64_t ratio = params.integer("kv_ratio");
              y0 = p * ratio, y1 = y0 + ratio, z0 = q * ratio, z1 = z0 + ratio;
            } else if (down != "identity") {
              y0 = p * rh / ph, y1 = ((p + 1) * rh + ph - 1) / ph;
              z0 = q * rw / pw, z1 = ((q + 1) * rw + pw - 1) / pw;
            }
            for (int64_t ch = 0; ch < kv; ++ch) {
              const bool max = down == "max" || down == "ada_max";
              double total = max ? -INFINITY : 0;
              for (int64_t y = y0; y < y1; ++y)
                for (int64_t z = z0; z < z1; ++z) {
                  const double v = value(r / nw * rh + y, r % nw * rw + z, cqk + ch);
                  total = max ? std::max(total, v) : total + v;
                }
              if (!max) total /= static_cast<double>((y1 - y0) * (z1 - z0));
              store[(r * each + p * pw + q) * kv + ch] = total;
            }
          }
      for (int64_t r = 0; r < regions; ++r) {
        std::vector<double> affinity(static_cast<size_t>(regions), 0.0);
        for (int64_t s = 0; s < regions; ++s)
          for (int64_t ch = 0; ch < cqk; ++ch)
            affinity[static_cast<size_t>(s)] += mean[r * 2 * cqk + ch] * mean[s * 2 * cqk + cqk + ch];
        std::vector<int64_t> order(static_cast<size_t>(regions));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t e) {
          return affinity[static_cast<size_t>(a)] > affinity[static_cast<size_t>(e)];
        });
        order.resize(static_cast<size_t>(topk));
        std::sort(order.begin(), order.end());
        std::vector<double> share;
        for (int64_t k = 0; k < topk; ++k) {
          idx[(b * regions + r) * topk + k] = static_cast<double>(order[static_cast<size_t>(k)]);
          share.push_back(affinity[static_cast<size_t>(order[static_cast<size_t>(k)])] * scale);
        }
        ref::softmax_row(share, std::vector<char>(share.size(), 1));
        if (!soft) std::fill(share.begin(), share.end(), 1.0);
        for (int64_t y = r / nw * rh; y < std::min(h, (r / nw + 1) * rh); ++y)
          for (int64_t z = r % nw * rw; z < std::min(w, (r % nw + 1) * rw); ++z)
            for (int64_t head = 0; head < heads; ++head) {
              std::vector<double> scores;
              for (int64_t k = 0; k < topk; ++k)
                for (int64_t j = 0; j < each; ++j) {
                  double s = 0;
                  for (int64_t e = 0; e < dqk; ++e)
                    s += value(y, z, head * dqk + e) *
                         store[(order[static_cast<size_t>(k)] * each + j) * kv + head * dqk + e];
                  scores.push_back(s * share[static_cast<size_t>(k)] * scale);
                }
              ref::softmax_row(scores, std::vector<char>(scores.size(), 1));
              for (int64_t e = 0; e < d; ++e) {
                double sum = 0;
                for (int64_t k = 0; k < topk; ++k)
                  for (int64_t j = 0; j < each; ++j)
                    sum += scores[static_cast<size_t>(k * each + j)] * share[static_cast<size_t>(k)] *
                           store[(order[static_cast<size_t>(k)] * each + j) * kv + cqk + head * d + e];
                o[((b * h + y) * w + z) * c + head * d + e] = sum;
              }
            }
      }
    }
    out["idx"] = idx;
  }
  if (params.integer("side_dwconv") > 0) {
    const bool of_input = all && legacy;
    const RefTensor lepe = lepe_of(of_input ? x : qkv, of_input ? 0 : 2 * cqk, c, batch, h, w,
                                   weights.at("lepe.weight"), weights.at("lepe.bias"));
    for (int64_t i = 0; i < o.numel(); ++i) o[i] += lepe[i];
  }
  RefTensor y = linear(weights, "wo", crop_grid(o, hg, wg, h, w));
  y.shape = {batch, hg, wg, c};
  out["out"] = y;
  return out;
}

ATTNBENCH_REFERENCE(biformer, biformer);

}  // namespace
}  // namespace attnbench
