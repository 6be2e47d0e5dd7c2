// OAT: an encoder-decoder over the objects of a display, whose output is an attention over them. Also its
// crop CNN.
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/select/select.hpp"
#include "methods/attention_rows.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {
namespace {

constexpr float kNormEps = 1e-5f;

enum class Decode : uint8_t { teacher, greedy, sample };

struct Sizes {
  int64_t batch = 1, rows = 6, cols = 14, length = 10, steps = 10;  ///< length: decoder tokens given
  int64_t d = 512, heads = 4, ffn = 512, encoders = 4, decoders = 4, object_heads = 2, dk = 512;
  double sigma = 2.0, norm = 8.76;
  bool gaussian = true, cache = false;
  Decode decode = Decode::teacher;
  uint64_t seed = 0;
  int64_t objects() const { return rows * cols; }
  int64_t source() const { return objects() + 1; }
  int64_t classes() const { return objects() + 2; }
  int64_t half() const { return d / 2; }
  int64_t table_rows() const { return std::max({rows + 2, cols, int64_t{2}}); }
  int64_t table_width() const { return (half() + 2) / 3; }
};

/// The closed-form position table, row-major [R, p].
std::vector<double> position_table(const Sizes& s) {
  const int64_t r = s.table_rows(), p = s.table_width();
  std::vector<double> q(static_cast<size_t>(r * p), 0.0);
  if (!s.gaussian) {
    for (int64_t a = 0; a < r; ++a)
      for (int64_t i = 0; i < p; ++i) {
        const double angle = static_cast<double>(a) *
                             std::pow(10000.0, -static_cast<double>(i / 2 * 2) / static_cast<double>(p));
        q[static_cast<size_t>(a * p + i)] = i % 2 ? std::cos(angle) : std::sin(angle);
      }
    return q;
  }
  Eigen::MatrixXd k(r, r);
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < r; ++j)
      k(i, j) = std::exp(-static_cast<double>((i - j) * (i - j)) / (2 * s.sigma * s.sigma));
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(k);
  // A wide kernel's smallest eigenvalues round below 0.
  const Eigen::VectorXd roots = solver.eigenvalues().cwiseMax(0.0).cwiseSqrt();
  const Eigen::MatrixXd root = solver.eigenvectors() * roots.asDiagonal() * solver.eigenvectors().transpose();
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < r; ++j) q[static_cast<size_t>(i * p + j)] = s.norm * root(i, j);
  return q;
}

class OatInstance final : public Instance {
 public:
  OatInstance(Context& ctx, const Sizes& s, DType dtype)
      : s_(s), dtype_(dtype), type_(s.decode == Decode::teacher ? dtype : DType::f32), ctx_(&ctx) {
    const int64_t b = s_.batch, p = s_.objects(), cols = s_.cols;
    const auto target = [p](int64_t image) {
      return static_cast<int64_t>(random_bits(7, stream_of("oat.target"), static_cast<uint64_t>(image)) %
                                  static_cast<uint64_t>(p));
    };
    const auto cell = [cols](int64_t index, int64_t part, int64_t flag) {
      return static_cast<double>(part == 0 ? index / cols : part == 1 ? index % cols : flag);
    };
    const int64_t source = s_.source(), length = s_.length, rows = s_.rows;
    Init source_cells{Init::Kind::values, 0, 1, 2, [=](int64_t i) {
                        const int64_t token = i / 3 % source, image = i / 3 / source;
                        return token < p ? cell(token, i % 3, 0) : cell(target(image), i % 3, 1);
                      }};
    Init target_cells{Init::Kind::values, 0, 1, 2, [=](int64_t i) {
                        const int64_t token = i / 3 % length, image = i / 3 / length;
                        if (token == 0)
                          return static_cast<double>(i % 3 == 0 ? rows / 2 : i % 3 == 1 ? cols / 2 : 0);
                        const auto f = static_cast<int64_t>(
                            random_bits(8, stream_of("oat.fixation"), static_cast<uint64_t>(i / 3)) %
                            static_cast<uint64_t>(p));
                        return cell(f, i % 3, f == target(image));
                      }};
    input_specs_ = {
        {"V_src",
         {b, source, s_.half()},
         dtype_,
         Init::normal(),
         false,
         "descriptors of the objects, the target's last"},
        {"pos_src", {b, source, 3}, DType::i32, source_cells, false, "row, column and target flag"},
        {"V_tgt",
         {b, length, s_.half()},
         dtype_,
         Init::normal(),
         false,
         "descriptors of the start and of the fixations"},
        {"pos_tgt", {b, length, 3}, DType::i32, target_cells, false, "row, column and target flag"}};
    const auto matrix = [&](const std::string& name, int64_t out, int64_t in) {
      const double bound = std::sqrt(6.0 / static_cast<double>(in + out));  // Xavier
      weight_specs_.push_back(
          {name + ".weight", {out, in}, dtype_, Init::uniform(-bound, bound), false, "[out, in]"});
      weight_specs_.push_back({name + ".bias", {out}, dtype_, Init::constant(0), false, "its bias"});
    };
    const auto norm = [&](const std::string& name) {
      weight_specs_.push_back({name + ".weight", {s_.d}, dtype_, Init::constant(1), false, "gain"});
      weight_specs_.push_back({name + ".bias", {s_.d}, dtype_, Init::constant(0), false, "offset"});
    };
    for (int64_t l = 0; l < s_.encoders + s_.decoders; ++l) {
      const bool decoder = l >= s_.encoders;
      const std::string at = layer(decoder, decoder ? l - s_.encoders : l);
      matrix(at + "self_attn.in_proj", 3 * s_.d, s_.d), matrix(at + "self_attn.out_proj", s_.d, s_.d);
      if (decoder)
        matrix(at + "cross_attn.in_proj", 3 * s_.d, s_.d), matrix(at + "cross_attn.out_proj", s_.d, s_.d);
      matrix(at + "linear1", s_.ffn, s_.d), matrix(at + "linear2", s_.d, s_.ffn);
      norm(at + "norm1"), norm(at + "norm2");
      if (decoder) norm(at + "norm3");
    }
    for (int64_t g = 0; g < s_.object_heads; ++g)
      for (const char* side : {"E", "D"}) matrix(object(g) + side, s_.d, s_.d);
    if (s_.object_heads > 1) matrix("readout", 1, s_.object_heads);
    weight_specs_.push_back({"Q",
                             {s_.table_rows(), s_.table_width()},
                             dtype_,
                             Init::constant(0),
                             true,
                             "position table; absent: pe_kind's closed form"});
    logits_ = ctx.allocate(type_, {b, s_.decode == Decode::teacher ? length : s_.steps, s_.classes()},
                           MemoryClass::output);
    if (s_.decode != Decode::teacher) path_ = ctx.allocate(DType::i32, {b, s_.steps}, MemoryClass::output);
  }

  void prepare(Context& ctx) override {
    weights_wide_.clear();
    for (const auto& [name, t] : weights()) weights_wide_[name] = in_type(ctx, t);
    if (!has_weight("Q")) {
      if (s_.gaussian && s_.table_rows() > s_.table_width())
        throw UsageError("oat: the closed form of " + std::to_string(s_.table_rows()) +
                         " positions needs as many columns, and d_model " + std::to_string(s_.d) +
                         " leaves " + std::to_string(s_.table_width()) + "; give Q as a weight");
      weights_wide_["Q"] = upload(ctx, type_, {s_.table_rows(), s_.table_width()}, position_table(s_));
    }
    // Where every token's code comes from, and which tokens are padding.
    const std::vector<int32_t> source = download(input("pos_src")), target = download(input("pos_tgt"));
    source_index_ = code_indices(ctx, "pos_src", source, s_.batch * s_.source());
    target_index_ = code_indices(ctx, "pos_tgt", target, s_.batch * s_.length);
    source_valid_ = valid(ctx, source, s_.source());
    target_valid_ = s_.decode == Decode::teacher ? valid(ctx, target, s_.length) : Tensor();
    const int64_t tokens = s_.decode == Decode::teacher ? s_.length : s_.steps;
    std::vector<float> time;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < s_.d; ++i) {
        const double angle = static_cast<double>(t) *
                             std::pow(10000.0, -static_cast<double>(i / 2 * 2) / static_cast<double>(s_.d));
        time.push_back(static_cast<float>(i % 2 ? std::cos(angle) : std::sin(angle)));
      }
    time_ = in_type(ctx, upload(ctx, {1, tokens, s_.d}, time));
    zeros_ = upload(ctx, type_, {s_.batch, tokens, 1},
                    std::vector<double>(static_cast<size_t>(s_.batch * tokens), 0.0));
    if (s_.decode == Decode::teacher) return;
    // Position codes of every class of every image.
    std::vector<int32_t> classes;
    for (int64_t b = 0; b < s_.batch; ++b) {
      const int32_t* last = source.data() + ((b + 1) * s_.source() - 1) * 3;
      const int64_t wanted = last[0] * s_.cols + last[1];
      for (int64_t c = 0; c < s_.classes(); ++c) {
        classes.push_back(static_cast<int32_t>(c / s_.cols)),
            classes.push_back(static_cast<int32_t>(c % s_.cols));
        classes.push_back(c < s_.objects() && c == wanted ? 1 : 0);
      }
    }
    class_index_ = code_indices(ctx, "class", classes, s_.batch * s_.classes());
    if (s_.decode != Decode::sample) return;
    // The largest of logit + Gumbel noise is a sample of the softmax.
    std::vector<float> noise;
    for (int64_t i = 0; i < s_.batch * s_.steps * s_.classes(); ++i) {
      const double u =
          std::max(random_uniform(s_.seed, stream_of("oat.sample"), static_cast<uint64_t>(i)), 1e-300);
      noise.push_back(static_cast<float>(-std::log(-std::log(u))));
    }
    noise_ = upload(ctx, {s_.batch, s_.steps, s_.classes()}, noise);
  }

  void run(Context& ctx) override {
    ran_ = true;
    if (s_.decode == Decode::teacher) {
      Tensor source, target;
      {
        auto stage = ctx.stage("embed");
        source = embed(ctx, in_type(ctx, input("V_src")), source_index_, s_.source());
        target = embed(ctx, in_type(ctx, input("V_tgt")), target_index_, s_.length);
        pointwise(ctx, {PointwiseArgs::Op::add, target, time_, target});
      }
      const Tensor memory = encode(ctx, source);
      const Tensor decoded = decode(ctx, target, memory);
      read_out(ctx, decoded, object_keys(ctx, memory), logits_);
      return;
    }
    scan(ctx);
  }

  /// Greedy and sampled paths end with the longest scan of the batch; places after an END hold the padding
  /// class. Read anew at every call, since a recorded run leaves no trace on the host.
  TensorMap outputs() const override {
    if (s_.decode == Decode::teacher) return {{"logits", logits_}};
    if (!ran_) return {{"logits", logits_}, {"scanpath", path_}};
    std::vector<int32_t> path = download(path_);
    int64_t steps = 0;
    for (int64_t b = 0; b < s_.batch; ++b) {
      const auto begin = path.begin() + b * s_.steps, end = begin + s_.steps,
                 stop = std::find(begin, end, static_cast<int32_t>(s_.objects()));
      if (stop != end) std::fill(stop + 1, end, static_cast<int32_t>(s_.objects() + 1));
      steps = std::max(steps, stop == end ? s_.steps : stop - begin + 1);
    }
    copy(*ctx_, Tensor::borrow(DeviceKind::cpu, DType::i32, path_.shape(), path.data()), path_);
    ctx_->backend().synchronize();
    const auto kept = [&](const Tensor& all) {
      const Tensor part = all.slice(1, 0, steps);
      if (part.contiguous()) return part;
      const Tensor packed = ctx_->allocate(all.dtype(), part.shape(), MemoryClass::output);
      Context side(ctx_->backend(), 1);  // not a cost of the method
      transpose_copy(side, {part, packed});
      ctx_->backend().synchronize();
      return packed;
    };
    return {{"logits", kept(logits_)}, {"scanpath", kept(path_)}};
  }

  /// Of the object attention, the output: each decoder token depends on every source token.
  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = s_.batch, set.queries = logits_.dim(1), set.tokens = s_.source();
    set.row = [n = s_.source()](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, n}}; };
    return set;
  }
  /// The distribution over classes at every step: objects, END, padding.
  int64_t keys(int64_t) const override { return s_.classes(); }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    if (h != 0) return false;
    const Tensor logits = on_host(ctx, logits_);
    const auto n = static_cast<size_t>(s_.classes());
    out.resize(static_cast<size_t>(q_end - q_begin) * n);
    const char* from = static_cast<const char*>(logits.raw()) +
                       (b * logits_.dim(1) + q_begin) * s_.classes() * static_cast<int64_t>(size_of(type_));
    convert(from, type_, out.data(), DType::f32, static_cast<int64_t>(out.size()));
    for (auto row = out.begin(); row != out.end(); row += static_cast<std::ptrdiff_t>(n)) {
      const auto end = row + static_cast<std::ptrdiff_t>(n);
      const float most = *std::max_element(row, end);
      float sum = 0;
      for (auto x = row; x != end; ++x) sum += * x = std::exp(*x - most);
      for (auto x = row; x != end; ++x) *x /= sum;
    }
    return true;
  }

  /// Teacher forced: encoder_attention, self_attention and cross_attention [layers, B, h, .., ..] of a run,
  /// and position_code, the table Q.
  Tensor extra_output(Context& ctx, const std::string& name) override {
    if (name == "position_code") return w("Q");
    if (s_.decode != Decode::teacher) return {};
    const bool encoder = name == "encoder_attention", self = name == "self_attention";
    if (!encoder && !self && name != "cross_attention") return {};
    const int64_t layers = encoder ? s_.encoders : s_.decoders, n = encoder ? s_.source() : s_.length,
                  m = self ? s_.length : s_.source();
    if (layers == 0) return {};
    std::vector<float> all, one;
    watch_ = [&](const std::string& at, const AttentionArgs& a) {
      if (at.starts_with("encoder.") != encoder || at.ends_with("self_attn.") != (encoder || self)) return;
      for (int64_t b = 0; b < s_.batch; ++b)
        for (int64_t h = 0; h < s_.heads; ++h) {
          attention_rows(ctx, a, b, h, 0, n, one);
          all.insert(all.end(), one.begin(), one.end());
        }
    };
    run(ctx);
    watch_ = {};
    return upload(ctx, {layers, s_.batch, s_.heads, n, m}, all);
  }

  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t d = s_.d, ls = s_.source(), g = s_.object_heads;
    const auto mha = [d](int64_t a, int64_t b) { return 2 * a * d * d + 2 * b * d * d + 2 * a * b * d; };
    const auto heads = [&](int64_t lt) {
      return g * ((ls + lt) * d * d + ls * lt * d) + (g > 1 ? g * lt * (ls + 1) : 0);
    };
    const auto encoder = s_.encoders * (mha(ls, ls) + 2 * ls * d * s_.ffn);
    const auto decoder = [&](int64_t lt) {
      return s_.decoders * (mha(lt, lt) + mha(lt, ls) + 2 * lt * d * s_.ffn);
    };
    const int64_t layer = 4 * d * d + 4 * d, feed = 2 * d * s_.ffn + s_.ffn + d;
    f.parameters = s_.encoders * (layer + feed + 4 * d) + s_.decoders * (2 * layer + feed + 6 * d) +
                   g * 2 * (d * d + d) + (g > 1 ? g + 1 : 0);
    f.data_dependent = static_cast<bool>(source_valid_) || static_cast<bool>(target_valid_);
    f.published_macs_note = "the card's formulas: causal self-attention counts all Lt^2 pairs";
    if (s_.decode == Decode::teacher) {
      f.published_macs = encoder + decoder(s_.length) + heads(s_.length);
      f.cost = cast_cost(s_.batch * (ls + s_.length) * s_.half());
      f.cost += embed_cost(ls) + embed_cost(s_.length) + add_cost(s_.batch * s_.length * d, s_.length * d);
      f.cost += encoder_cost() + object_cost(ls) + read_cost(s_.length);
      for (int64_t l = 0; l < s_.decoders; ++l)
        f.cost += decoder_cost(s_.length, s_.length, true, s_.length * (s_.length + 1) / 2);
      return f;
    }
    f.cost = cast_cost(s_.batch * (ls + s_.length) * s_.half()) + embed_cost(s_.classes()) + embed_cost(1);
    f.cost += embed_cost(ls);
    if (s_.cache) f.cost += encoder_cost() + object_cost(ls);
    const int64_t n = s_.classes(), b = s_.batch;
    for (int64_t t = 0; t < s_.steps; ++t) {
      f.cost += add_cost(b * d, d);
      if (s_.cache) {
        f.published_macs += t == 0 ? encoder + g * ls * d * d + s_.decoders * 2 * ls * d * d : 0;
        f.published_macs +=
            s_.decoders * (4 * d * d + 2 * (t + 1) * d + 2 * d * d + 2 * ls * d + 2 * d * s_.ffn) +
            g * (d * d + ls * d) + (g > 1 ? g * (ls + 1) : 0);
        for (int64_t l = 0; l < s_.decoders; ++l) f.cost += decoder_cost(1, t + 1, t == 0, t + 1);
        f.cost += move_cost(b * d) + move_cost(b * s_.decoders * 2 * d);  // keys and values into the cache
      } else {
        f.published_macs += encoder + decoder(t + 1) + heads(t + 1);
        f.cost += encoder_cost() + object_cost(ls) + move_cost(b * ls * d) + move_cost(b * (t + 1) * d);
        for (int64_t l = 0; l < s_.decoders; ++l)
          f.cost += decoder_cost(t + 1, t + 1, true, (t + 1) * (t + 2) / 2);
      }
      f.cost += read_cost(1);
      const int64_t kept = b * (t == 0 ? s_.objects() : s_.objects() + 1);
      Cost choose;
      choose.elementwise = kept;
      choose.bytes_read = 4 * kept;
      choose.bytes_written = 4 * b;
      if (s_.decode == Decode::sample) choose += add_cost(b * n, b * n);
      if (t + 1 < s_.steps) {
        choose.bytes_read += 4 * b * d + 4 * b;
        choose.bytes_written += 4 * b * d;
      }
      f.cost += choose;
    }
    f.cost += move_cost(b * s_.steps);  // the path, step by step
    return f;
  }

 private:
  static std::string layer(bool decoder, int64_t l) {
    return (decoder ? "decoder." : "encoder.") + std::to_string(l) + ".";
  }
  static std::string object(int64_t g) { return "object." + std::to_string(g) + "."; }
  const Tensor& w(const std::string& name) const { return weights_wide_.at(name); }

  std::vector<int32_t> download(const Tensor& t) const {
    std::vector<int32_t> v(static_cast<size_t>(t.numel()));
    copy(*ctx_, t, Tensor::borrow(DeviceKind::cpu, DType::i32, t.shape(), v.data()));
    ctx_->backend().synchronize();
    return v;
  }
  Tensor in_type(Context& ctx, const Tensor& t) const {
    if (t.dtype() == type_) return t;
    const Tensor other = ctx.allocate(type_, t.shape());
    cast(ctx, {t, other});
    return other;
  }
  /// Three index tables, one for each part of a code.
  std::array<Tensor, 3> code_indices(Context& ctx, const char* what, const std::vector<int32_t>& cells,
                                     int64_t tokens) const {
    std::array<Tensor, 3> tables;
    const int64_t limit = w("Q").dim(0);
    for (size_t part = 0; part < 3; ++part) {
      std::vector<int32_t> index;
      for (int64_t i = 0; i < tokens; ++i) {
        const int32_t at = cells[static_cast<size_t>(3 * i) + part];
        if (at < 0 || at >= limit)
          throw DataError("oat: " + std::string(what) + " of token " + std::to_string(i) + " holds " +
                          std::to_string(at) + ", outside the " + std::to_string(limit) +
                          " rows of the position table");
        index.push_back(at);
      }
      tables[part] = upload(ctx, {tokens}, index);
    }
    return tables;
  }
  /// u8 [B, length]; absent where no token is padding.
  Tensor valid(Context& ctx, const std::vector<int32_t>& cells, int64_t length) const {
    std::vector<uint8_t> flags;
    bool any = false;
    for (int64_t i = 0; i < s_.batch * length; ++i) {
      const bool padding =
          cells[static_cast<size_t>(3 * i)] * s_.cols + cells[static_cast<size_t>(3 * i + 1)] ==
          s_.objects() + 1;
      flags.push_back(padding ? 0 : 1);
      any = any || padding;
    }
    if (!any) return {};
    return upload(ctx, {s_.batch, length}, flags);
  }

  // ---- the network ---------------------------------------------------------------------------------------

  /// [descriptor ; code] of every token: [B, length, d].
  Tensor embed(Context& ctx, const Tensor& v, const std::array<Tensor, 3>& index, int64_t length) const {
    const Tensor x = ctx.allocate(type_, {s_.batch, length, s_.d});
    transpose_copy(ctx, {v, x.slice(2, 0, s_.half())});
    codes(ctx, index, x.reshape({s_.batch * length, s_.d}));
    return x;
  }
  void codes(Context& ctx, const std::array<Tensor, 3>& index, const Tensor& x) const {
    const int64_t p = s_.table_width(), rows = x.dim(0);
    int64_t done = 0;
    for (size_t part = 0; part < 3 && done < s_.half(); ++part) {
      const int64_t width = std::min(p, s_.half() - done);
      const Tensor table = w("Q").strided({1, w("Q").dim(0), width}, {w("Q").numel(), p, 1});
      gather_rows(
          ctx, {table, index[part], x.strided({1, rows, width}, {rows * s_.d, s_.d, 1}, s_.half() + done)});
      done += width;
    }
  }
  Tensor dense(Context& ctx, const std::string& name, const Tensor& x, int64_t first, int64_t out,
               Activation activation = Activation::none) const {
    const Tensor y = ctx.allocate(type_, {x.dim(0), x.dim(1), out});
    linear(ctx, x, w(name + ".weight").slice(0, first, first + out),
           w(name + ".bias").slice(0, first, first + out), y, activation);
    return y;
  }
  Tensor heads(const Tensor& packed, int64_t column) const {
    const int64_t dh = s_.d / s_.heads;
    return packed.strided({s_.batch, s_.heads, packed.dim(1), dh},
                          {packed.stride(0), dh, packed.stride(1), 1}, column);
  }
  /// x <- LN(x + y), y [B, L, d].
  void add_norm(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y) const {
    pointwise(ctx, {PointwiseArgs::Op::add, x, y, x});
    NormArgs n;
    n.x = n.y = x, n.gain = w(name + ".weight"), n.offset = w(name + ".bias"), n.eps = kNormEps;
    normalize(ctx, n);
  }
  /// x <- LN(x + out_proj(attention)).
  void attend(Context& ctx, const std::string& at, const std::string& norm, const Tensor& x, const Tensor& q,
              const Tensor& k, const Tensor& v, bool causal, const Tensor& key_valid) const {
    const Tensor o = ctx.allocate(type_, x.shape());
    BlockMask mask;
    mask.rule.causal = causal;
    mask.key_valid = key_valid;
    AttentionArgs a;
    a.q = q, a.k = k, a.v = v, a.o = heads(o, 0);
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s_.d / s_.heads)));
    if (causal || key_valid) a.mask = &mask;
    attention(ctx, a);
    if (watch_) watch_(at, a);
    add_norm(ctx, norm, x, dense(ctx, at + "out_proj", o, 0, s_.d));
  }
  void feed(Context& ctx, const std::string& at, const std::string& norm, const Tensor& x) const {
    add_norm(ctx, norm, x,
             dense(ctx, at + "linear2", dense(ctx, at + "linear1", x, 0, s_.ffn, Activation::relu), 0, s_.d));
  }
  Tensor encode(Context& ctx, const Tensor& source) const {
    auto stage = ctx.stage("encode");
    for (int64_t l = 0; l < s_.encoders; ++l) {
      const std::string at = layer(false, l);
      const Tensor qkv = dense(ctx, at + "self_attn.in_proj", source, 0, 3 * s_.d);
      attend(ctx, at + "self_attn.", at + "norm1", source, heads(qkv, 0), heads(qkv, s_.d),
             heads(qkv, 2 * s_.d), false, source_valid_);
      feed(ctx, at, at + "norm2", source);
    }
    return source;
  }
  Tensor decode(Context& ctx, const Tensor& x, const Tensor& memory) const {
    auto stage = ctx.stage("decode");
    for (int64_t l = 0; l < s_.decoders; ++l) {
      const std::string at = layer(true, l);
      const Tensor qkv = dense(ctx, at + "self_attn.in_proj", x, 0, 3 * s_.d);
      attend(ctx, at + "self_attn.", at + "norm1", x, heads(qkv, 0), heads(qkv, s_.d), heads(qkv, 2 * s_.d),
             true, target_valid_);
      cross(ctx, at, x, dense(ctx, at + "cross_attn.in_proj", memory, s_.d, 2 * s_.d));
    }
    return x;
  }
  /// Cross-attention to keys and values kv [B, Ls, 2 d], and the feed-forward.
  void cross(Context& ctx, const std::string& at, const Tensor& x, const Tensor& kv) const {
    const Tensor q = dense(ctx, at + "cross_attn.in_proj", x, 0, s_.d);
    attend(ctx, at + "cross_attn.", at + "norm2", x, heads(q, 0), heads(kv, 0), heads(kv, s_.d), false,
           source_valid_);
    feed(ctx, at, at + "norm3", x);
  }
  /// E_g of the encoder's output.
  std::vector<Tensor> object_keys(Context& ctx, const Tensor& memory) const {
    auto stage = ctx.stage("objects");
    std::vector<Tensor> keys;
    for (int64_t g = 0; g < s_.object_heads; ++g)
      keys.push_back(dense(ctx, object(g) + "E", memory, 0, s_.d));
    return keys;
  }
  /// Logits of decoded tokens x [B, L, d] into y [B, L, Ls + 1].
  void read_out(Context& ctx, const Tensor& x, const std::vector<Tensor>& keys, const Tensor& y) const {
    auto stage = ctx.stage("objects");
    const int64_t b = s_.batch, length = x.dim(1), ls = s_.source(), g = s_.object_heads,
                  each = b * length * (ls + 1);
    const Tensor scores = g > 1 ? ctx.allocate(type_, {g, b, length, ls + 1})
                                : y.strided({1, b, length, ls + 1}, {0, y.stride(0), y.stride(1), 1});
    for (int64_t h = 0; h < g; ++h) {
      const Tensor own = scores.select(0, h);
      GemmArgs p;
      p.a = dense(ctx, object(h) + "D", x, 0, s_.d), p.b = keys[static_cast<size_t>(h)],
      p.b_transposed = true;
      p.c = own.slice(2, 0, ls);
      p.alpha = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s_.dk)));
      gemm(ctx, p);
      transpose_copy(ctx, {zeros_.slice(1, 0, length), own.slice(2, ls, ls + 1)});
    }
    if (g == 1) return;
    const Tensor sum = ctx.allocate(type_, {b, length, ls + 1});
    GemmArgs mix;
    mix.a = w("readout.weight"), mix.b = scores.reshape({g, each}), mix.c = sum.reshape({1, each});
    gemm(ctx, mix);
    pointwise(ctx, {PointwiseArgs::Op::add, sum, w("readout.bias").reshape({1, 1, 1}), y});
  }

  void scan(Context& ctx) {
    const int64_t b = s_.batch, d = s_.d, n = s_.classes(), steps = s_.steps;
    // What each class looks like when it comes back as a token: objects as given, END and padding as BOS.
    Tensor classes, start, clean;
    const Tensor tokens = ctx.allocate(type_, {b, steps, d});
    const Tensor source_values = in_type(ctx, input("V_src")), target_values = in_type(ctx, input("V_tgt"));
    {
      auto stage = ctx.stage("embed");
      classes = ctx.allocate(type_, {b, n, d});
      transpose_copy(ctx, {source_values.slice(1, 0, s_.objects()),
                           classes.slice(1, 0, s_.objects()).slice(2, 0, s_.half())});
      const Tensor first = target_values.slice(1, 0, 1);
      for (int64_t c : {s_.objects(), s_.objects() + 1})
        transpose_copy(ctx, {first, classes.slice(1, c, c + 1).slice(2, 0, s_.half())});
      codes(ctx, class_index_, classes.reshape({b * n, d}));
      start = ctx.allocate(type_, {b, 1, d});
      transpose_copy(ctx, {first, start.slice(2, 0, s_.half())});
      for (int64_t image = 0; image < b; ++image) {
        std::array<Tensor, 3> own;
        for (size_t part = 0; part < 3; ++part)
          own[part] = target_index_[part].slice(0, image * s_.length, image * s_.length + 1);
        codes(ctx, own, start.select(0, image));
      }
      clean = embed(ctx, source_values, source_index_, s_.source());
    }
    std::vector<Tensor> keys, self_cache, cross_cache;
    Tensor memory;
    if (s_.cache) {
      memory = encode(ctx, clean);
      keys = object_keys(ctx, memory);
      for (int64_t l = 0; l < s_.decoders; ++l) {
        self_cache.push_back(ctx.allocate(type_, {b, steps, 2 * d}));
        cross_cache.push_back({});
      }
    }
    const Tensor chosen = ctx.allocate(DType::i32, {steps, b});
    for (int64_t t = 0; t < steps; ++t) {
      const Tensor slot = tokens.slice(1, t, t + 1);
      const Tensor from = t == 0 ? start : next_;
      pointwise(ctx, {PointwiseArgs::Op::add, from, time_.slice(1, t, t + 1), slot});
      const Tensor row = logits_.slice(1, t, t + 1);
      if (s_.cache) {
        Tensor x = ctx.allocate(type_, {b, 1, d});
        transpose_copy(ctx, {slot, x});
        auto stage = ctx.stage("decode");
        for (int64_t l = 0; l < s_.decoders; ++l) {
          const std::string at = layer(true, l);
          const auto i = static_cast<size_t>(l);
          const Tensor qkv = dense(ctx, at + "self_attn.in_proj", x, 0, 3 * d);
          transpose_copy(ctx, {qkv.slice(2, d, 3 * d), self_cache[i].slice(1, t, t + 1)});
          const Tensor seen = self_cache[i].slice(1, 0, t + 1);
          attend(ctx, at + "self_attn.", at + "norm1", x, heads(qkv, 0), heads(seen, 0), heads(seen, d),
                 false, {});
          if (t == 0) cross_cache[i] = dense(ctx, at + "cross_attn.in_proj", memory, d, 2 * d);
          cross(ctx, at, x, cross_cache[i]);
        }
        read_out(ctx, x, keys, row);
      } else {
        // As the reference does, everything again: the encoder works in place, on a copy.
        const Tensor source = ctx.allocate(type_, clean.shape()), x = ctx.allocate(type_, {b, t + 1, d});
        transpose_copy(ctx, {clean, source});
        transpose_copy(ctx, {tokens.slice(1, 0, t + 1), x});
        memory = encode(ctx, source);
        decode(ctx, x, memory);
        const Tensor last = x.slice(1, t, t + 1);
        read_out(ctx, last, object_keys(ctx, memory), row);
      }
      auto stage = ctx.stage("choose");
      Tensor scores = row;
      if (s_.decode == Decode::sample) {
        scores = ctx.allocate(type_, {b, 1, n});
        pointwise(ctx, {PointwiseArgs::Op::add, row, noise_.slice(1, t, t + 1), scores});
      }
      const Tensor index = chosen.select(0, t);
      // The scan cannot end before it began, and never pads.
      arg_max(ctx, scores.select(1, 0).slice(1, 0, t == 0 ? s_.objects() : s_.objects() + 1), index);
      if (t + 1 == steps) continue;
      next_ = ctx.allocate(type_, {b, 1, d});
      gather_tokens(ctx,
                    {classes.reshape({b, 1, n, d}), index.reshape({b, 1, 1}), next_.reshape({b, 1, 1, d})});
    }
    next_ = {};
    transpose_copy(ctx, {chosen.transpose(0, 1), path_});
  }

  // ---- cost ----------------------------------------------------------------------------------------------

  int64_t bytes() const { return static_cast<int64_t>(size_of(type_)); }
  Cost linear_cost(int64_t rows, int64_t in, int64_t out, bool active = false) const {
    Cost c = vision::linear_cost(rows, in, out, true, type_);
    if (active) c.special += rows * out;
    return c;
  }
  Cost move_cost(int64_t elements) const {
    Cost c;
    c.bytes_read = c.bytes_written = elements * bytes();
    return c;
  }
  Cost add_cost(int64_t elements, int64_t other) const {
    Cost c;
    c.elementwise = elements;
    c.bytes_read = (elements + other) * bytes();
    c.bytes_written = elements * bytes();
    return c;
  }
  Cost cast_cost(int64_t elements) const {
    Cost c;
    if (type_ == dtype_) return c;
    c.bytes_read = elements * static_cast<int64_t>(size_of(dtype_));
    c.bytes_written = elements * bytes();
    return c;
  }
  Cost embed_cost(int64_t length) const {
    const int64_t tokens = s_.batch * length;
    Cost c = move_cost(tokens * s_.half());
    int64_t done = 0;
    for (int part = 0; part < 3 && done < s_.half(); ++part) {
      const int64_t width = std::min(s_.table_width(), s_.half() - done);
      c += vision::move_cost(tokens, width, type_);
      done += width;
    }
    return c;
  }
  /// x <- LN(x + ...) of `rows` rows.
  Cost add_norm_cost(int64_t rows) const {
    return add_cost(rows * s_.d, rows * s_.d) + vision::layer_norm_cost(rows, s_.d, type_);
  }
  Cost attend_cost(int64_t n, int64_t m, int64_t pairs) const {
    Cost c = vision::attend_cost(s_.batch, s_.heads, n, m, s_.d / s_.heads, type_);
    const int64_t all = s_.batch * s_.heads * pairs;
    c.matmul = 4 * (s_.d / s_.heads) * all, c.elementwise = 4 * all, c.special = all;
    return c + linear_cost(s_.batch * n, s_.d, s_.d) + add_norm_cost(s_.batch * n);
  }
  Cost feed_cost(int64_t rows) const {
    return linear_cost(rows, s_.d, s_.ffn, true) + linear_cost(rows, s_.ffn, s_.d) + add_norm_cost(rows);
  }
  Cost encoder_cost() const {
    const int64_t ls = s_.source(), rows = s_.batch * ls;
    return (linear_cost(rows, s_.d, 3 * s_.d) + attend_cost(ls, ls, ls * ls) + feed_cost(rows)) * s_.encoders;
  }
  /// One decoder layer on n new tokens that see m; `keys`: cross-attention keys are made, too.
  Cost decoder_cost(int64_t n, int64_t m, bool keys, int64_t pairs) const {
    const int64_t ls = s_.source(), rows = s_.batch * n;
    Cost c = linear_cost(rows, s_.d, 3 * s_.d) + attend_cost(n, m, pairs) + linear_cost(rows, s_.d, s_.d) +
             attend_cost(n, ls, n * ls) + feed_cost(rows);
    if (keys) c += linear_cost(s_.batch * ls, s_.d, 2 * s_.d);
    return c;
  }
  Cost object_cost(int64_t ls) const { return linear_cost(s_.batch * ls, s_.d, s_.d) * s_.object_heads; }
  Cost read_cost(int64_t length) const {
    const int64_t b = s_.batch, ls = s_.source(), g = s_.object_heads, rows = b * length,
                  each = rows * (ls + 1);
    Cost scores;
    scores.matmul = 2 * rows * ls * s_.d;
    scores.bytes_read = (rows + b * ls) * s_.d * bytes();
    scores.bytes_written = rows * ls * bytes();
    Cost c = (linear_cost(rows, s_.d, s_.d) + scores + move_cost(rows)) * g;
    if (g == 1) return c;
    Cost mix;
    mix.matmul = 2 * g * each;
    mix.bytes_read = (g + g * each) * bytes();
    mix.bytes_written = each * bytes();
    return c + mix + add_cost(each, 1);
  }

  Sizes s_;
  DType dtype_, type_;
  Context* ctx_;
  Tensor logits_, path_, source_valid_, target_valid_, time_, zeros_, noise_, next_;
  std::array<Tensor, 3> source_index_, target_index_, class_index_;
  TensorMap weights_wide_;  ///< weights in the type of the arithmetic
  std::function<void(const std::string& at, const AttentionArgs& a)> watch_;  ///< of calls, for analyses
  bool ran_ = false;
};

/// The crop CNN alone: crop [B, L, h, w, 3] to descriptors V [B, L, d / 2].
class OatCnnInstance final : public Instance {
 public:
  OatCnnInstance(Context& ctx, int64_t batch, int64_t crops, int64_t h, int64_t w, int64_t half, DType dtype)
      : images_(batch * crops), h_(h), w_(w), half_(half), dtype_(dtype) {
    // Valid convolutions and pools that drop what is left over.
    ph_ = (h - 4) / 5, pw_ = (w - 4) / 5;
    qh_ = (ph_ - 2) / 3, qw_ = (pw_ - 2) / 3;
    input_specs_ = {
        {"crop", {batch, crops, h, w, 3}, dtype, Init::uniform(0, 1), false, "object crops in [0, 1]"}};
    const auto matrix = [&](const std::string& name, const Shape& shape) {
      double in = static_cast<double>(shape.numel() / shape[0]), out = static_cast<double>(shape[0]);
      for (int axis = 2; axis < shape.rank(); ++axis) out *= static_cast<double>(shape[axis]);
      const double bound = std::sqrt(6.0 / (in + out));
      weight_specs_.push_back({name + ".weight", shape, dtype, Init::uniform(-bound, bound), false, ""});
      weight_specs_.push_back({name + ".bias", {shape[0]}, dtype, Init::constant(0), false, "its bias"});
    };
    matrix("cnn.conv1", {16, 3, 5, 5}), matrix("cnn.conv2", {32, 16, 3, 3});
    matrix("cnn.fc", {half, 32 * qh_ * qw_});
    out_ = ctx.allocate(dtype, {batch, crops, half}, MemoryClass::output);
  }
  void run(Context& ctx) override {
    const Tensor crop = input("crop").reshape({images_, h_, w_, 3});
    const Tensor first = layer(ctx, "cnn.conv1", crop, 16, 5, 5),
                 second = layer(ctx, "cnn.conv2", first, 32, 3, 3);
    // The linear layer reads channels first.
    const Tensor flat = ctx.allocate(dtype_, {images_, 32, qh_, qw_});
    transpose_copy(ctx, {second.permute({0, 3, 1, 2}), flat});
    auto stage = ctx.stage("linear");
    linear(ctx, flat.reshape({images_, 32 * qh_ * qw_}), weight("cnn.fc.weight"), weight("cnn.fc.bias"),
           out_.reshape({images_, half_}));
  }
  TensorMap outputs() const override { return {{"V", out_}}; }
  ClosedForm cost() const override {
    ClosedForm f;
    const int64_t h1 = h_ - 4, w1 = w_ - 4, h2 = ph_ - 2, w2 = pw_ - 2, flat = 32 * qh_ * qw_;
    const auto bytes = static_cast<int64_t>(size_of(dtype_));
    const auto stage = [&](int64_t in, int64_t taps, int64_t out, int64_t outputs, int64_t read,
                           int64_t pooled) {
      Cost c;
      c.matmul = 2 * images_ * outputs * taps;
      c.elementwise = images_ * outputs + images_ * read;
      c.special = images_ * outputs;
      c.bytes_read = (images_ * in + taps * out + out + 2 * images_ * outputs) * bytes;
      c.bytes_written = images_ * (2 * outputs + pooled) * bytes;
      f.cost += c;
    };
    stage(h_ * w_ * 3, 75, 16, h1 * w1 * 16, ph_ * pw_ * 25 * 16, ph_ * pw_ * 16);
    stage(ph_ * pw_ * 16, 144, 32, h2 * w2 * 32, qh_ * qw_ * 9 * 32, flat);
    Cost move;
    move.bytes_read = move.bytes_written = images_ * flat * bytes;
    f.cost += move + vision::linear_cost(images_, flat, half_, true, dtype_);
    f.published_macs = (h1 * w1 * 75 * 16 + h2 * w2 * 144 * 32 + flat * half_) * out_.dim(1);
    f.published_macs_note = "convolutions and the linear layer, of all crops";
    f.parameters = 76 * 16 + 145 * 32 + flat * half_ + half_;
    return f;
  }

 private:
  /// relu(conv(x)), then a maximum over pool x pool.
  Tensor layer(Context& ctx, const std::string& name, const Tensor& x, int64_t out, int64_t kernel,
               int64_t pool) const {
    auto stage = ctx.stage("conv");
    const int64_t h = x.dim(1) - kernel + 1, w = x.dim(2) - kernel + 1;
    Conv2dArgs c;
    c.x = x, c.weight = weight(name + ".weight"), c.bias = weight(name + ".bias");
    c.y = ctx.allocate(dtype_, {images_, h, w, out});
    conv2d(ctx, c);
    PointwiseArgs relu;
    relu.op = PointwiseArgs::Op::relu, relu.a = relu.y = c.y;
    pointwise(ctx, relu);
    Pool2dArgs p;
    p.x = c.y, p.y = ctx.allocate(dtype_, {images_, h / pool, w / pool, out});
    p.kernel = p.stride = {pool, pool};
    pool2d(ctx, p);
    return p.y;
  }

  int64_t images_, h_, w_, half_;
  DType dtype_;
  int64_t ph_ = 0, pw_ = 0, qh_ = 0, qw_ = 0;
  Tensor out_;
};

class Oat final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    const auto refuse = [](const std::string& why) { throw UsageError("oat: " + why); };
    Sizes s;
    s.batch = problem.batch;
    s.rows = params.integer("rows"), s.cols = params.integer("cols");
    if (params.boolean("with_cnn")) {
      if (problem.kind != ProblemKind::image)
        refuse("with_cnn makes descriptors of crops: problem.kind is image, size the crop's");
      if (problem.channels && problem.channels != 3)
        refuse("with_cnn reads 3 channels, not " + std::to_string(problem.channels));
      // The width of a descriptor is the network's, which an image problem does not name.
      return std::make_unique<OatCnnInstance>(ctx, s.batch, problem.length ? problem.length : s.source(),
                                              params.integer("crop_h"), params.integer("crop_w"),
                                              model_width(problem, params) / 2, problem.dtype);
    }
    if (problem.kind != ProblemKind::sequence) refuse("a scan is a sequence; images are for with_cnn");
    s.d = model_width(problem, params), s.heads = params.integer("num_heads"),
    s.ffn = params.integer("ffn_dim");
    if (problem.channels && problem.channels != s.d)
      refuse("d_model " + std::to_string(s.d) + " differs from problem.channels " +
             std::to_string(problem.channels));
    if (s.d % 2 != 0) refuse("d_model " + std::to_string(s.d) + " is odd; half of it is the descriptor");
    if (s.d % s.heads != 0)
      refuse("d_model " + std::to_string(s.d) + " is not divisible by num_heads " + std::to_string(s.heads));
    s.encoders = params.integer("enc_layers"), s.decoders = params.integer("dec_layers");
    s.object_heads = params.integer("ca_heads"), s.dk = params.integer("ca_dk");
    s.sigma = params.number("sigma"), s.norm = params.number("pe_norm");
    if (!(s.sigma > 0) || !(s.norm > 0)) refuse("sigma and pe_norm must be above 0");
    s.gaussian = params.choice("pe_kind") == "gaussian";
    s.cache = params.boolean("kv_cache");
    s.seed = static_cast<uint64_t>(params.integer("seed"));
    const std::string& decode = params.choice("decode");
    s.decode = decode == "teacher" ? Decode::teacher : decode == "greedy" ? Decode::greedy : Decode::sample;
    s.steps = params.integer("scan_len");
    s.length = s.decode != Decode::teacher ? 1 : problem.length ? problem.length : s.steps;
    if (s.decode != Decode::teacher && problem.length > 1)
      refuse("decode " + decode + " starts from BOS alone, not from " + std::to_string(problem.length) +
             " tokens");
    return std::make_unique<OatInstance>(ctx, s, problem.dtype);
  }

 private:
  /// A crop's channels are not the network's.
  static int64_t model_width(const Problem& problem, const Params& params) {
    if (!params.is_null("d_model")) return params.integer("d_model");
    return problem.kind == ProblemKind::sequence && problem.channels ? problem.channels : 512;
  }

  static MethodInfo describe() {
    MethodInfo m;
    m.id = m.card = "oat";
    m.title = "Object-level attention transformer for scanpaths (OAT)";
    m.paper = "OAT: Object-Level Attention Transformer for Gaze Scanpath Prediction, ECCV 2024";
    m.arxiv = "2407.13335";
    m.family = "model-block (encoder-decoder with an attention over input objects as its output)";
    m.summary =
        "Objects of a display, and the target once more, are tokens of an encoder; fixations are tokens of a "
        "decoder. The output of a step is the attention of its decoder token over the encoder's tokens: the "
        "next object, END for the target token, and a constant padding class. Position codes are three rows "
        "of a table of Gaussian cosines.";
    m.formula =
        "pe(a) = [Q[row] ; Q[col] ; Q[flag]] cut to d/2;  src = [V_src ; pe],  tgt = [V_tgt ; pe] + T1D[t]\n"
        "post-norm layers: x = LN(x + MHA(x)), x = LN(x + W2 relu(W1 x)); the decoder is causal and attends "
        "to src\n"
        "s_g[t, i] = (D_g dec_t) . (E_g enc_i) / sqrt(dk), and 0 for the padding class\n"
        "logits = sum_g w_g s_g + b_r (G > 1), s_1 otherwise\n"
        "Q = nu [K^(1/2), 0],  K_ij = exp(-(i - j)^2 / (2 sigma^2))\n"
        "greedy, sample: from BOS, next = argmax or a sample without padding (at first without END), until "
        "END or scan_len";
    m.cost =
        "MACs, MHA(a, b) = 2 a d^2 + 2 b d^2 + 2 a b d: Le [MHA(Ls, Ls) + 2 Ls d f] + Ld [MHA(Lt, Lt) + "
        "MHA(Lt, Ls) + 2 Lt d f] + G [(Ls + Lt) d^2 + Ls Lt d] + G Lt (Ls + 1). A scan without cache repeats "
        "all of it for Lt = 1 .. scan_len.";
    m.params = {
        spec::integer("rows", 6, 1, "rows of the display (Amazon 6 x 14, yogurt 3 x 9, wine 2 x 11)"),
        spec::integer("cols", 14, 1, "its columns"),
        spec::integer("scan_len", 10, 1, "decoder tokens, and the most steps of greedy and sample"),
        spec::integer("d_model", Value(), 2, "d, even; null: problem.channels of a sequence, or 512"),
        spec::integer("num_heads", 4, 1, "h", "heads"),
        spec::integer("ffn_dim", 512, 1, "f"),
        spec::integer("enc_layers", 4, 0, "Le"),
        spec::integer("dec_layers", 4, 0, "Ld"),
        spec::integer("ca_heads", 2, 1, "G, object-attention heads"),
        spec::integer("ca_dk", 512, 1, "dk, the divisor's square, whatever d"),
        spec::param("sigma", ParamSpec::Type::number, 2.0, "width of the position code, above 0"),
        spec::param("pe_norm", ParamSpec::Type::number, 8.76, "nu, norm of its rows, above 0"),
        spec::choice("pe_kind", {"gaussian", "sinusoid"}, "the table's closed form where Q is not given"),
        spec::boolean("with_cnn", false, "the crop CNN alone: crop to V"),
        spec::integer("crop_h", 150, 24, "rows of a crop", "size[0]"),
        spec::integer("crop_w", 93, 24, "columns of a crop", "size[1]"),
        spec::choice("decode", {"teacher", "greedy", "sample"}, "given fixations, or its own from BOS on"),
        spec::boolean("kv_cache", false, "greedy, sample: encode once and keep keys and values"),
        spec::integer("seed", 0, 0, "of samples")};
    m.kinds = {ProblemKind::sequence, ProblemKind::image};
    m.figures = {{"data shapes", "Amazon 84 objects 6 x 14; yogurt 27 = 3 x 9; wine 22 = 2 x 11", "",
                  "fixed by the repository", "src/run.py"},
                 {"position code", "sigma 2, 14 x 86", "target Gaussian",
                  "cosines 0.8825, 0.6065, 0.3247, 0.1353 at distances 1 to 4",
                  "measured from amazon_learned_random_PE.npy"},
                 {"parameters", "d 512, h 4, f 512, 4 + 4 layers, G 2, CNN", "", "18,255,843", "derived"}};
    m.notes = {
        "greedy and sample compute in f32 from rounded inputs and weights: which object is next must not "
        "depend on the rounding of a logit. Ties go to the lowest class. A sample is the largest logit plus "
        "seeded Gumbel noise.",
        "A batch runs scan_len steps without asking the device whether all have ended; outputs end with the "
        "longest scan, and a scan that ended earlier holds the padding class. Its later logits go on as if "
        "END were an object.",
        "The default table is the closed form, whose rows have the exact cosines; it needs as many columns "
        "as rows.",
        "with_cnn is a case of its own: problem kind image, L = rows * cols + 1 crops.",
        "Rows and pairs of analyses are those of the object attention: its weights are the output. The other "
        "attentions are extra outputs: encoder_attention, self_attention, cross_attention "
        "[layers, B, h, .., ..]; "
        "position_code is the table. The analysis `scanpath` reads them.",
        "Biases start as 0, matrices by Xavier's uniform rule."};
    m.example.kind = ProblemKind::sequence;
    m.example.batch = 2;
    m.example.channels = 48;
    m.example.heads = 4;
    m.example.length = 6;
    // Six positions, and a third of half of d, rounded up, is eight: the closed form fits.
    m.example_params = {{"rows", 4},       {"cols", 5},       {"ffn_dim", 96},
                        {"enc_layers", 2}, {"dec_layers", 2}, {"ca_dk", 48}};
    return m;
  }
};

ATTNBENCH_METHOD(Oat);

}  // namespace
}  // namespace attnbench
