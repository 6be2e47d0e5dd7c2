// A causal method as a regressor at test time: how well it predicts the next value of synthetic streams, as
// bias and variance. Runs the case's method on data of its own and puts the case's inputs back.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

ParamSpec param(const char* name, ParamSpec::Type type, Value default_value, double least,
                const char* meaning) {
  ParamSpec s;
  s.name = name;
  s.type = type;
  s.default_value = std::move(default_value);
  s.min = least;
  s.meaning = meaning;
  return s;
}

/// Streams of [B, H, N]: keys, what their values are without noise, and the places of the segments.
struct Streams {
  int64_t streams, n, d, e, segment;
  std::vector<double> keys, values;  // [streams, n + 1, d or e]: the last token is only predicted
};

Streams make_streams(int64_t count, int64_t n, int64_t d, int64_t e, int64_t segment, double spread,
                     uint64_t seed) {
  Streams s{count, n, d, e, segment, {}, {}};
  const uint64_t centre = stream_of("centre"), around = stream_of("key"), map = stream_of("map");
  const int64_t tokens = n + 1, segments = (tokens + segment - 1) / segment;
  std::vector<double> key(static_cast<size_t>(d));
  for (int64_t h = 0; h < count; ++h)
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t part = h * segments + t / segment;
      double square = 0;
      for (int64_t c = 0; c < d; ++c) {
        double& x = key[static_cast<size_t>(c)];
        x = random_normal(seed, centre, static_cast<uint64_t>(part * d + c)) +
            spread * random_normal(seed, around, static_cast<uint64_t>((h * tokens + t) * d + c));
        square += x * x;
      }
      // Norm sqrt(D): the softmax kernel of the inner product is then one of the distance.
      const double scale = std::sqrt(static_cast<double>(d) / std::max(square, 1e-30));
      for (double& x : key) s.keys.push_back(x *= scale);
      for (int64_t o = 0; o < e; ++o) {
        double y = random_normal(seed, map, static_cast<uint64_t>((part * e + o) * (d + 1) + d));
        for (int64_t c = 0; c < d; ++c)
          y += random_normal(seed, map, static_cast<uint64_t>((part * e + o) * (d + 1) + c)) *
               key[static_cast<size_t>(c)] / std::sqrt(static_cast<double>(d));
        s.values.push_back(y);
      }
    }
  return s;
}

class TestTimeRegression final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "test_time_regression";
      i.title = "Test-time regression";
      i.summary =
          "Query i is the next key; the output is taken as the prediction of the next value from the pairs "
          "up to i. "
          "Streams are made of segments: keys around a centre, values an affine map of the key that belongs "
          "to the "
          "segment, with noise. Repeats with other noise tell bias from variance.";
      i.formula =
          "k_t = sqrt(D) normalised(centre_s + spread * normal),  v_t = A_s k_t / sqrt(D) + c_s + noise * "
          "normal,  q_t = "
          "k_{t+1}\n"
          "mse = mean |o_t - (A_s k_{t+1} / sqrt(D) + c_s)|^2 / E = bias2 + variance\n"
          "mse_rescaled: with the one factor of all outputs that makes it least";
      i.unit = "of the values squared";
      i.headline = {"mse", "bias2", "variance", "mse_rescaled"};
      i.params = {
          param("segment", ParamSpec::Type::integer, 64, 1, "tokens of one map"),
          param("noise", ParamSpec::Type::number, 0.1, 0, "standard deviation of the noise of values"),
          param("spread", ParamSpec::Type::number, 0.7, 0,
                "of keys around their centre, before they are normalised"),
          param("repeats", ParamSpec::Type::integer, 4, 2, "draws of the noise")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    const TensorMap inputs = instance.inputs(), weights = instance.weights();
    const auto at = [&](const char* name) {
      const auto it = inputs.find(name);
      return it != inputs.end() && it->second.rank() == 4 ? &it->second : nullptr;
    };
    const Tensor *q = at("q"), *k = at("k"), *v = at("v");
    if (!q || !k || !v || inputs.size() != 3 || !instance.outputs().contains("o"))
      throw Unsupported("test_time_regression: a method is wanted that is given q, k and v and gives o");
    if (!(q->shape() == k->shape()) || v->dim(1) != q->dim(1) || v->dim(2) != q->dim(2))
      throw Unsupported("test_time_regression: queries and keys must be the same tokens and heads, not " +
                        q->shape().str() + " and " + k->shape().str());
    const int64_t count = q->dim(0) * q->dim(1), n = q->dim(2), d = q->dim(3), e = v->dim(3);
    const int64_t segment = params.integer("segment"), repeats = params.integer("repeats");
    const double noise = params.number("noise");
    const Streams s = make_streams(count, n, d, e, segment, params.number("spread"), problem.seed);
    const auto upload = [&](const Tensor& like, const auto& value) {
      std::vector<double> x(static_cast<size_t>(like.numel()));
      for (size_t i = 0; i < x.size(); ++i) x[i] = value(static_cast<int64_t>(i));
      Context host(cpu_backend(), 1);
      const Tensor t = host.allocate(DType::f64, like.shape());
      std::copy(x.begin(), x.end(), t.data<double>());
      return to_device(ctx, t, like.dtype(), MemoryClass::input, "a stream");
    };
    // Row t of n tokens in rows of n + 1.
    const auto token = [&](int64_t i, int64_t width, int64_t shift) {
      const int64_t h = i / width / n, t = i / width % n;
      return static_cast<size_t>((h * (n + 1) + t + shift) * width + i % width);
    };
    const Tensor keys = upload(*k, [&](int64_t i) { return s.keys[token(i, d, 0)]; });
    const Tensor queries = upload(*q, [&](int64_t i) { return s.keys[token(i, d, 1)]; });

    const auto total = static_cast<size_t>(count * n * e);
    std::vector<double> sum(total, 0.0), squares(total, 0.0);
    double against = 0, size = 0, truth_size = 0;
    const uint64_t stream = stream_of("noise");
    for (int64_t r = 0; r < repeats; ++r) {
      const Tensor values = upload(*v, [&](int64_t i) {
        return s.values[token(i, e, 0)] + noise * random_normal(problem.seed + static_cast<uint64_t>(r),
                                                                stream, static_cast<uint64_t>(i));
      });
      instance.bind({{"q", queries}, {"k", keys}, {"v", values}}, weights);
      instance.prepare(ctx);
      instance.run(ctx);
      Context host(cpu_backend(), 1);
      const Tensor o = to_host(host, ctx, instance.outputs().at("o"));
      std::vector<double> got(total);
      convert(o.raw(), o.dtype(), got.data(), DType::f64, o.numel());
      for (size_t i = 0; i < total; ++i) {
        const double want = s.values[token(static_cast<int64_t>(i), e, 1)];
        sum[i] += got[i], squares[i] += got[i] * got[i];
        against += got[i] * want, size += got[i] * got[i], truth_size += want * want;
      }
    }
    instance.bind(inputs, weights);
    instance.prepare(ctx);
    instance.run(ctx);

    AnalysisResult result;
    result.analysis = info().id;
    const auto draws = static_cast<double>(repeats), all = static_cast<double>(total);
    double mse = 0, bias = 0, variance = 0;
    std::vector<double> by_position(static_cast<size_t>(std::min(segment, n)), 0.0),
        rows(by_position.size(), 0.0);
    for (size_t i = 0; i < total; ++i) {
      const double want = s.values[token(static_cast<int64_t>(i), e, 1)], mean = sum[i] / draws;
      const double spread = std::max(0.0, (squares[i] / draws - mean * mean) * draws / (draws - 1));
      // The mean of few draws has a share of the variance in it.
      const double error = (mean - want) * (mean - want) + spread * (draws - 1) / draws;
      mse += error / all, variance += spread / all,
          bias += ((mean - want) * (mean - want) - spread / draws) / all;
      // Place of the predicted token in its segment.
      const auto place = static_cast<size_t>((static_cast<int64_t>(i) / e % n + 1) % segment);
      if (place < by_position.size()) by_position[place] += error, rows[place] += 1;
    }
    for (size_t p = 0; p < by_position.size(); ++p) by_position[p] /= std::max(1.0, rows[p]);
    result.scalars["mse"] = mse;
    result.scalars["bias2"] = bias;
    result.scalars["variance"] = variance;
    result.scalars["mse_rescaled"] = (truth_size - (size > 0 ? against * against / size : 0)) / (all * draws);
    result.scalars["values_square"] = truth_size / (all * draws);
    result.series["mse_by_position"] = by_position;
    result.notes["streams"] = fmt::format("{} streams of {} tokens, segments of {}, {} draws of the noise",
                                          count, n, segment, repeats);
    if (!problem.causal)
      result.notes["causal"] = "problem.causal is not set: a method that is not causal sees the future";
    return result;
  }
};
ATTNBENCH_ANALYSIS(TestTimeRegression);

}  // namespace

}  // namespace attnbench
