// Masked frequency modelling: corrupt an image by deleting frequencies, score a reconstruction on the deleted
// ones.
#include <algorithm>
#include <array>
#include <cmath>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/spectral_loss/spectral_loss.hpp"
#include "methods/attention_rows.hpp"

namespace attnbench {
namespace {

// ImageNet's channel means and standard deviations (step 4).
constexpr std::array<double, 3> kMean{0.485, 0.456, 0.406}, kStd{0.229, 0.224, 0.225};
constexpr float kLayerNormEps = 1e-6f;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "mfm";
  m.title = "Masked Frequency Modeling";
  m.paper = "Masked Frequency Modeling for Self-Supervised Visual Pre-Training, ICLR 2023";
  m.arxiv = "2206.07706";
  m.family = "spectral";
  m.summary =
      "Deletes a disc of the image's 2-D spectrum (or everything but the disc) and scores a reconstruction "
      "on the "
      "deleted frequencies only. `core` is the corruption and the loss, all that the paper adds; `full` puts "
      "a dense "
      "pre-norm ViT and a one-convolution head between them.";
  m.formula =
      "r2 = (y - floor(H/2))^2 + (x - floor(W/2))^2;  L = 1 where r2 < R1^2 or r2 >= R2^2\n"
      "M = L with probability sample_ratio (low frequencies kept), else 1 - L\n"
      "x_clamped = clamp(Re IFFT2(M * FFT2(x)), 0, 1);  x_c = (x_clamped - mean) / std\n"
      "d = |FFT2_ortho(p - t)| = sqrt(re^2 + im^2 + 1e-12),  t = (x - mean) / std\n"
      "l = w d^gamma;  w = 1, or |P - T|^alpha / max clamped to [0, 1]\n"
      "loss = sum (1 - M) l / (C sum (1 - M))    target masked;    mean of l    target normal";
  m.cost =
      "A: B C (2 transforms of 5 n log2 n / 2 + pointwise), n = H W; B: one real transform of p - t and "
      "about 8 n. "
      "full: MACs an image C p^2 d N0 + depth (12 d^2 N + 2 N^2 d) + C p^2 d N0, N0 = n / p^2, N = N0 + 1.";
  ParamSpec ratio =
      spec::number("sample_ratio", 0.5, 0, "probability of the low-pass mask (ResNet-50 of the paper: 0.3)");
  ratio.max = 1.0;
  m.params = {
      spec::integer("height", 224, 2, "H", "size[0]"),
      spec::integer("width", 224, 2, "W", "size[1]"),
      spec::integer("channels", 3, 1, "C", "channels"),
      spec::integer("mask_radius1", 16, 0, "R1: frequencies with r < R1 are the low ones"),
      spec::integer("mask_radius2", 999, 0, "R2: frequencies with r >= R2 count as low too; 999: none"),
      ratio,
      spec::choice("mask_mode", {"random", "low", "high"}, "random: drawn for each sample; low, high: fixed"),
      spec::boolean("clamp", true, "clamp the corrupted image to [0, 1]"),
      spec::number("loss_gamma", 1.0, 0, "exponent of the distance, above 0"),
      spec::boolean("with_matrix", false, "focal weight: frequencies with large errors count more"),
      spec::number("matrix_gamma", 1.0, 0, "alpha, exponent of the focal weight"),
      spec::boolean("log_matrix", false, "ln(1 + w) of the focal weight"),
      spec::boolean("batch_matrix", false,
                    "divide the focal weight by the maximum of the batch, not of each plane"),
      spec::choice("target", {"masked", "normal"},
                   "masked: average over the deleted frequencies; normal: over all"),
      spec::choice("corruption", {"mfm", "sr"}, "mfm: the frequency mask; sr: bicubic down and up again"),
      spec::integer("sr_factor", 8, 2, "factor of corruption sr; divides H and W"),
      spec::choice("scope", {"core", "full"},
                   "core: corruption and loss of a given p; full: ViT encoder and head predict p"),
      spec::integer("embed_dim", 768, 1, "d, scope full (ViT-S: 384)"),
      spec::integer("depth", 12, 1, "blocks, scope full"),
      spec::integer("num_heads", 12, 1, "heads, scope full (ViT-S: 6); divides embed_dim"),
      spec::integer("patch_size", 16, 1, "patch, scope full; divides H and W"),
      spec::integer("seed", 0, 0, "of the mask's draw")};
  m.kinds = {ProblemKind::image};
  m.figures = {
      {"top-1 accuracy", "ViT-B/16, 300 epochs pre-training, 100 fine-tuning, ImageNet-1K",
       "SR / deblur / denoise", "83.1 vs 82.4 / 81.7 / 82.7 %", "repository README, models table"},
      {"top-1 accuracy", "ResNet-50, 300 + 100 epochs", "SR / deblur / denoise",
       "78.5 vs 77.9 / 78.0 / 77.5 %", "repository README, models table"},
      {"top-1 accuracy", "ResNet-50, 300 + 300 epochs", "", "80.1 %", "repository README, models table"},
      {"top-1 accuracy", "ResNet-50 from scratch", "MFM 78.5 %", "78.1 %",
       "CoinCheung/MFM README, from the paper"},
      {"top-1 accuracy (third party)", "ResNet-50, 12 runs", "scratch 78.542 / 78.952 %", "78.621 +- 0.08 %",
       "CoinCheung/MFM README"}};
  m.notes = {
      "No latency, memory or FLOP figure was published; the spectral parts are about 0.13 % of a ViT-B/16 "
      "forward.",
      "Transforms are f32 whatever the storage type; loss and loss_map are f32.",
      "H and W may differ and may be odd: DC of the centred order is at floor(N/2) (chosen; the authors "
      "build square "
      "masks).",
      "An empty masked set gives loss 0 (chosen; the authors' code divides 0 by 0).",
      "The means and deviations of step 4 are ImageNet's three; with C other than 3 nothing is normalised "
      "(chosen).",
      "A mask M given as an input replaces the draw. It need not be symmetric about DC: the corruption uses "
      "(M(k) + M(-k)) / 2, which gives the same real part, and the loss uses M itself.",
      "The masks are static and the draw is one bit a sample, so prepare() builds them, as the authors' data "
      "loader "
      "does; M must be bound before.",
      "Of the sibling corruptions only sr is offered; deblur and denoise draw random kernels and noise, "
      "which is data "
      "augmentation. sr deletes no frequencies, so it has target normal only.",
      "corruption mfm with target normal never looks at M in the loss."};
  m.example.kind = ProblemKind::image;
  m.example.batch = 2;
  m.example.size = {56, 56};
  m.example.channels = 3;
  return m;
}

const MethodInfo& mfm_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Options {
  explicit Options(const Problem& problem, const Params& p)
      : batch(problem.batch),
        channels(p.integer("channels")),
        height(p.integer("height")),
        width(p.integer("width")),
        dtype(problem.dtype),
        clamp(p.boolean("clamp")),
        masked_target(p.choice("target") == "masked"),
        sr(p.choice("corruption") == "sr"),
        sr_factor(p.integer("sr_factor")) {}
  int64_t plane() const { return height * width; }
  int64_t elements() const { return batch * channels * plane(); }
  Shape image() const { return {batch, channels, height, width}; }
  int64_t batch, channels, height, width;
  DType dtype;
  bool clamp, masked_target, sr;
  int64_t sr_factor;
};

void call(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y,
          float alpha = 1.0f, float beta = 0.0f) {
  PointwiseArgs p;
  p.op = op;
  p.a = a;
  p.b = b;
  p.y = y;
  p.alpha = alpha;
  p.beta = beta;
  pointwise(ctx, p);
}

/// Steps 1 to 7 around a prediction that the subclass has: given (core) or made (full).
class MfmInstance : public Instance {
 public:
  MfmInstance(Context& ctx, const Problem& problem, const Params& params)
      : o_(problem, params), params_(params) {
    input_specs_ = {
        {"x", o_.image(), o_.dtype, Init::uniform(0, 1), false, "images in [0, 1], [B, C, H, W]"}};
    if (!o_.sr)
      input_specs_.push_back({"M",
                              {o_.batch, o_.height, o_.width},
                              DType::f32,
                              Init::constant(1),
                              true,
                              "mask of kept frequencies, 0/1, DC at floor(N/2); drawn when absent"});
    x_c_ = ctx.allocate(o_.dtype, o_.image(), MemoryClass::output);
    loss_ = ctx.allocate(DType::f32, {1}, MemoryClass::output);
    loss_map_ = ctx.allocate(DType::f32, o_.image(), MemoryClass::output);
  }

  void prepare(Context& ctx) override {
    if (o_.sr) return;
    std::vector<float> keep;
    if (has_input("M")) {
      const Tensor m = on_host(ctx, input("M"));
      keep.assign(m.data<float>(), m.data<float>() + m.numel());
    } else {
      keep = drawn_masks();
    }
    // The corrupted image is the real part of the inverse transform Y of Z(k) = M(k) X(k). The conjugate of Y
    // is the inverse transform of conj(Z(-k)), and X(-k) = conj(X(k)) for a real image, so conj(Z(-k)) =
    // M(-k) X(k) and Re Y = (Y + conj Y) / 2 is the inverse transform of (M(k) + M(-k)) / 2 X(k). That
    // product has the symmetry of a real image again, so half of the spectrum holds all of it, whatever M is.
    std::vector<float> even(keep.size());
    const int64_t h = o_.height, w = o_.width;
    for (int64_t b = 0; b < o_.batch; ++b)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) {
          // Centred index c is frequency c - floor(N/2); its negative stands at 2 floor(N/2) - c modulo N.
          const int64_t my = (2 * (h / 2) - y + h) % h, mx = (2 * (w / 2) - x + w) % w;
          even[static_cast<size_t>((b * h + y) * w + x)] =
              0.5f * (keep[static_cast<size_t>((b * h + y) * w + x)] +
                      keep[static_cast<size_t>((b * h + my) * w + mx)]);
        }
    // The drawn discs are symmetric: one tensor serves the corruption and the loss.
    const bool symmetric = even == keep;
    keep_ = upload(ctx, {o_.batch, h, w}, std::move(keep));
    corruption_mask_ = symmetric ? keep_ : upload(ctx, {o_.batch, h, w}, std::move(even));
  }

 protected:
  /// Steps 1 to 4: fills x_c_ and, where wanted, `clamped` (storage type). Keeps t for the loss.
  void corrupt(Context& ctx, const Tensor& clamped) {
    const auto stage = ctx.stage("corrupt");
    x_ = wide(ctx, input("x"));
    // f32 images are made in the output itself, others in f32 and then stored.
    const bool direct = o_.dtype == DType::f32;
    const Tensor y = !direct ? ctx.allocate(DType::f32, o_.image()) : clamped ? clamped : x_c_;
    if (o_.sr) {
      const Tensor small = ctx.allocate(
          DType::f32, {o_.batch, o_.channels, o_.height / o_.sr_factor, o_.width / o_.sr_factor});
      resize_bicubic(ctx, {x_, small, o_.clamp});
      resize_bicubic(ctx, {small, y, o_.clamp});
      finish_corruption(ctx, y, clamped, 0);
      return;
    }
    each_block(ctx, [&](int64_t begin, int64_t end) {
      const auto part = [&](const Tensor& t) { return t ? t.slice(0, begin, end) : t; };
      const Tensor spectrum = half_spectrum(ctx, end - begin), image = part(y);
      transform(ctx, Fft2Args::Kind::real_to_half, part(x_), spectrum, 1.0f);
      spectral_mask(ctx, {spectrum, part(corruption_mask_), o_.width});
      transform(ctx, Fft2Args::Kind::half_to_real, spectrum, image, 1.0f / static_cast<float>(o_.plane()));
      if (o_.clamp) call(ctx, PointwiseArgs::Op::clamp, image, {}, image, 0.0f, 1.0f);
      finish_corruption(ctx, image, part(clamped), begin);
    });
  }

  /// Steps 5 to 7 for the prediction p (storage type).
  void score(Context& ctx, const Tensor& p) {
    const auto stage = ctx.stage("loss");
    const Tensor prediction = wide(ctx, p), spectrum = half_spectrum(ctx, o_.batch);
    each_block(ctx, [&](int64_t begin, int64_t end) {
      const Tensor difference = ctx.allocate(DType::f32, {end - begin, o_.channels, o_.height, o_.width});
      standardise(ctx, x_.slice(0, begin, end), difference);
      call(ctx, PointwiseArgs::Op::sub, prediction.slice(0, begin, end), difference, difference);
      // The transform is linear: |P - T| needs one, of p - t.
      transform(ctx, Fft2Args::Kind::real_to_half, difference, spectrum.slice(0, begin, end),
                static_cast<float>(1.0 / std::sqrt(static_cast<double>(o_.plane()))));
    });
    spectral_loss(ctx, loss_args(spectrum));
    x_ = {};
  }

  /// Cost of corrupt() and score().
  Cost spectral_cost(bool keeps_clamped) const {
    const int64_t n = o_.elements(), planes = o_.batch * o_.channels;
    const auto stored = static_cast<int64_t>(size_of(o_.dtype));
    const int64_t half = planes * o_.height * (o_.width / 2 + 1) * 8;
    const auto fft = [&](Fft2Args::Kind kind) {
      Cost c;
      c.matmul = fft2_flops(kind, planes, o_.height, o_.width);
      c.bytes_read = kind == Fft2Args::Kind::real_to_half ? 4 * n : half;
      c.bytes_written = kind == Fft2Args::Kind::real_to_half ? half : 4 * n;
      return c;
    };
    const auto unary = [&](int64_t count) {
      Cost c;
      c.elementwise = count;
      c.bytes_read = c.bytes_written = 4 * count;
      return c;
    };
    const auto moved = [&](int64_t from, int64_t to) {
      Cost c;
      c.bytes_read = n * from;
      c.bytes_written = n * to;
      return c;
    };
    Cost c;
    // x and p are widened; x_c and, in core, x_clamped are stored.
    if (o_.dtype != DType::f32) c += moved(stored, 4) * 2 + moved(4, stored) * (keeps_clamped ? 2 : 1);
    if (o_.sr) {
      const int64_t small = n / (o_.sr_factor * o_.sr_factor), taps = 32 + (o_.clamp ? 2 : 0);
      c.elementwise += (small + n) * taps;
      c.bytes_read += 4 * (n + small);
      c.bytes_written += 4 * (small + n);
    } else {
      c += fft(Fft2Args::Kind::real_to_half) + fft(Fft2Args::Kind::half_to_real);
      c.elementwise += half / 8 * 2;
      c.bytes_read += half + 4 * o_.batch * o_.plane();
      c.bytes_written += half;
      if (o_.clamp) c += unary(n);
    }
    c += unary(n) * 2;  // x_c and t
    c += unary(n);      // p - t reads a second operand
    c.bytes_read += 4 * n;
    c += fft(Fft2Args::Kind::real_to_half);
    return c + spectral_loss_cost(loss_args(
                   Tensor::borrow(DeviceKind::cpu, DType::f32,
                                  {o_.batch, o_.channels, o_.height, o_.width / 2 + 1, 2}, nullptr)));
  }

  Options o_;
  Tensor x_c_, loss_, loss_map_;

 private:
  /// One low-pass or high-pass disc a sample.
  std::vector<float> drawn_masks() const {
    const int64_t r1 = params_.integer("mask_radius1"), r2 = params_.integer("mask_radius2");
    const std::string& mode = params_.choice("mask_mode");
    const auto seed = static_cast<uint64_t>(params_.integer("seed"));
    std::vector<float> keep;
    keep.reserve(static_cast<size_t>(o_.batch * o_.plane()));
    for (int64_t b = 0; b < o_.batch; ++b) {
      const bool low = mode == "low" ||
                       (mode == "random" && random_uniform(seed, stream_of("M"), static_cast<uint64_t>(b)) <
                                                params_.number("sample_ratio"));
      for (int64_t y = 0; y < o_.height; ++y)
        for (int64_t x = 0; x < o_.width; ++x) {
          const int64_t dy = y - o_.height / 2, dx = x - o_.width / 2, distance = dy * dy + dx * dx;
          const bool inside = distance < r1 * r1 || distance >= r2 * r2;
          keep.push_back(inside == low ? 1.0f : 0.0f);
        }
    }
    return keep;
  }

  /// Calls body(first image, last image) for blocks of images whose intermediates the CPU's caches keep from
  /// one operator to the next: whole images for every thread, as every operator cuts them, so that a thread
  /// finds in its own second-level cache (2 MiB and more on servers) what it wrote there. An image passes
  /// through three tensors of its size at a time. A GPU takes all at once: its operators want every image to
  /// be busy.
  template <class Body>
  void each_block(Context& ctx, const Body& body) const {
    constexpr int64_t kCached = int64_t{2} << 20;
    const int64_t image = std::max<int64_t>(1, 3 * 4 * o_.channels * o_.plane());
    const int64_t own = ctx.threads() * std::max<int64_t>(1, kCached / image);
    const int64_t block = ctx.device() != DeviceKind::cpu
                              ? o_.batch
                              : std::clamp<int64_t>(own, 1, std::max<int64_t>(o_.batch, 1));
    for (int64_t b = 0; b < o_.batch; b += block) body(b, std::min(o_.batch, b + block));
  }

  /// Step 4 for the images from `first` on, whose corrupted f32 form is y, and what is stored of it.
  void finish_corruption(Context& ctx, const Tensor& y, const Tensor& clamped, int64_t first) const {
    const Tensor x_c = x_c_.slice(0, first, first + y.dim(0));
    const bool direct = o_.dtype == DType::f32;
    if (clamped && !direct) cast(ctx, {y, clamped});
    standardise(ctx, y, direct ? x_c : y);
    if (!direct) cast(ctx, {y, x_c});
  }

  Tensor half_spectrum(Context& ctx, int64_t images) const {
    return ctx.allocate(DType::f32, {images, o_.channels, o_.height, o_.width / 2 + 1, 2});
  }
  void transform(Context& ctx, Fft2Args::Kind kind, const Tensor& x, const Tensor& y, float scale) const {
    fft2(ctx, {kind, x, y, o_.height, o_.width, scale});
  }
  /// x in f32: itself, or a widened copy.
  Tensor wide(Context& ctx, const Tensor& x) const {
    if (x.dtype() == DType::f32) return x;
    const Tensor y = ctx.allocate(DType::f32, x.shape());
    cast(ctx, {x, y});
    return y;
  }

  /// Step 4, y = (x - mean_c) / std_c; y may be x.
  void standardise(Context& ctx, const Tensor& x, const Tensor& y) const {
    for (int64_t c = 0; c < o_.channels; ++c) {
      const bool known = o_.channels == static_cast<int64_t>(kMean.size());
      const double mean = known ? kMean[static_cast<size_t>(c)] : 0.0,
                   std = known ? kStd[static_cast<size_t>(c)] : 1.0;
      const auto channel = [&](const Tensor& t) {
        return t.strided({t.dim(0), o_.plane()}, {o_.channels * o_.plane(), 1}, c * o_.plane());
      };
      call(ctx, PointwiseArgs::Op::affine, channel(x), {}, channel(y), static_cast<float>(1.0 / std),
           static_cast<float>(-mean / std));
    }
  }

  SpectralLossArgs loss_args(const Tensor& spectrum) const {
    SpectralLossArgs a;
    a.spectrum = spectrum;
    if (o_.masked_target)
      a.mask = keep_ ? keep_
                     : Tensor::borrow(DeviceKind::cpu, DType::f32, {o_.batch, o_.height, o_.width}, nullptr);
    a.map = loss_map_;
    a.loss = loss_;
    a.width = o_.width;
    a.gamma = static_cast<float>(params_.number("loss_gamma"));
    a.focal = params_.boolean("with_matrix");
    a.focal_log = params_.boolean("log_matrix");
    a.focal_batch_max = params_.boolean("batch_matrix");
    a.focal_gamma = static_cast<float>(params_.number("matrix_gamma"));
    return a;
  }

  Params params_;
  Tensor keep_, corruption_mask_;
  Tensor x_;  ///< the clean image in f32, from corrupt() to score()
};

class CoreInstance final : public MfmInstance {
 public:
  CoreInstance(Context& ctx, const Problem& problem, const Params& params)
      : MfmInstance(ctx, problem, params) {
    input_specs_.push_back(
        {"p", o_.image(), o_.dtype, Init::normal(), false, "prediction, in normalised units"});
    x_clamped_ = ctx.allocate(o_.dtype, o_.image(), MemoryClass::output);
  }
  void run(Context& ctx) override {
    corrupt(ctx, x_clamped_);
    score(ctx, input("p"));
  }
  TensorMap outputs() const override {
    return {{"x_c", x_c_}, {"loss", loss_}, {"loss_map", loss_map_}, {"x_clamped", x_clamped_}};
  }
  ClosedForm cost() const override {
    ClosedForm c;
    c.cost = spectral_cost(true);
    return c;
  }

 private:
  Tensor x_clamped_;
};

/// The dense ViT of the authors' repository between corruption and loss.
class FullInstance final : public MfmInstance {
 public:
  FullInstance(Context& ctx, const Problem& problem, const Params& params)
      : MfmInstance(ctx, problem, params),
        d_(params.integer("embed_dim")),
        depth_(params.integer("depth")),
        heads_(params.integer("num_heads")),
        patch_(params.integer("patch_size")),
        rows_(o_.height / patch_),
        columns_(o_.width / patch_),
        patches_(rows_ * columns_),
        n_(patches_ + 1),
        pixels_(o_.channels * patch_ * patch_) {
    const Init normal = Init::trunc_normal(0.02, 1.0);
    const auto weight_spec = [&](const std::string& name, const Shape& shape, const Init& init,
                                 const char* meaning) {
      weight_specs_.push_back({name, shape, o_.dtype, init, false, meaning});
    };
    const auto norm = [&](const std::string& name) {
      weight_spec(name + ".weight", {d_}, Init::constant(1), "gain");
      weight_spec(name + ".bias", {d_}, Init::constant(0), "offset");
    };
    weight_spec("cls_token", {1, 1, d_}, normal, "class token");
    weight_spec("pos_embed", {1, n_, d_}, normal, "learned absolute positions");
    weight_spec("patch_embed.proj.weight", {d_, o_.channels, patch_, patch_}, normal, "patch convolution");
    weight_spec("patch_embed.proj.bias", {d_}, Init::constant(0), "patch convolution");
    for (int64_t l = 0; l < depth_; ++l) {
      const std::string block = block_name(l);
      const Init scaled = Init::trunc_normal(0.02 / std::sqrt(2.0 * static_cast<double>(l + 1)), 1.0);
      norm(block + "norm1");
      weight_spec(block + "attn.qkv.weight", {3 * d_, d_}, normal, "rows q | k | v");
      weight_spec(block + "attn.q_bias", {d_}, Init::constant(0), "bias of q; k has none");
      weight_spec(block + "attn.v_bias", {d_}, Init::constant(0), "bias of v");
      weight_spec(block + "attn.proj.weight", {d_, d_}, scaled, "output projection");
      weight_spec(block + "attn.proj.bias", {d_}, Init::constant(0), "output projection");
      norm(block + "norm2");
      weight_spec(block + "mlp.fc1.weight", {4 * d_, d_}, normal, "MLP");
      weight_spec(block + "mlp.fc1.bias", {4 * d_}, Init::constant(0), "MLP");
      weight_spec(block + "mlp.fc2.weight", {d_, 4 * d_}, scaled, "MLP");
      weight_spec(block + "mlp.fc2.bias", {d_}, Init::constant(0), "MLP");
    }
    norm("norm");
    weight_spec("head.weight", {pixels_, d_, 1, 1}, normal, "1 x 1 convolution to C patch^2 channels");
    weight_spec("head.bias", {pixels_}, Init::constant(0), "1 x 1 convolution");
    p_ = ctx.allocate(o_.dtype, o_.image(), MemoryClass::output);
    features_ = ctx.allocate(o_.dtype, {o_.batch, d_, rows_, columns_}, MemoryClass::output);
  }

  TensorMap outputs() const override {
    return {{"x_c", x_c_}, {"p", p_}, {"loss", loss_}, {"loss_map", loss_map_}, {"features", features_}};
  }

  void prepare(Context& ctx) override {
    MfmInstance::prepare(ctx);
    // q bias, zeros, v bias in one vector, as one product makes q, k and v.
    const std::vector<double> zeros(static_cast<size_t>(d_), 0.0);
    std::vector<char> stored(static_cast<size_t>(d_) * size_of(o_.dtype));
    convert(zeros.data(), DType::f64, stored.data(), o_.dtype, d_);
    qkv_bias_.clear();
    for (int64_t l = 0; l < depth_; ++l) {
      const Tensor bias = ctx.allocate(o_.dtype, {3 * d_});
      copy(ctx, weight(block_name(l) + "attn.q_bias"), bias.slice(0, 0, d_));
      copy(ctx, Tensor::borrow(DeviceKind::cpu, o_.dtype, {d_}, stored.data()), bias.slice(0, d_, 2 * d_));
      copy(ctx, weight(block_name(l) + "attn.v_bias"), bias.slice(0, 2 * d_, 3 * d_));
      qkv_bias_.push_back(bias);
    }
  }

  void run(Context& ctx) override {
    corrupt(ctx, {});
    const Tensor tokens = ctx.allocate(o_.dtype, {o_.batch, n_, d_});
    encode(ctx, tokens);
    predict(ctx, tokens);
    score(ctx, p_);
  }

  ClosedForm cost() const override {
    const auto bytes = static_cast<int64_t>(size_of(o_.dtype));
    const int64_t b = o_.batch;
    const auto product = [&](int64_t rows, int64_t in, int64_t out, bool activation, bool accumulate) {
      Cost c;
      c.matmul = 2 * rows * in * out;
      c.elementwise = rows * out;
      c.special = activation ? rows * out : 0;
      c.bytes_read = (rows * in + in * out + out + (accumulate ? rows * out : 0)) * bytes;
      c.bytes_written = rows * out * bytes;
      return c;
    };
    const auto moved = [&](int64_t count) {
      Cost c;
      c.bytes_read = c.bytes_written = count * bytes;
      return c;
    };
    Cost norm;
    norm.elementwise = 5 * b * n_ * d_;
    norm.special = 2 * b * n_;
    norm.bytes_read = (b * n_ * d_ + 2 * d_) * bytes;
    norm.bytes_written = b * n_ * d_ * bytes;
    Cost attend;
    attend.matmul = 4 * b * n_ * n_ * d_;
    attend.elementwise = 4 * b * heads_ * n_ * n_;
    attend.special = b * heads_ * n_ * n_;
    attend.bytes_read = 3 * b * n_ * d_ * bytes;
    attend.bytes_written = b * n_ * d_ * bytes;

    ClosedForm f;
    f.cost = spectral_cost(false);
    f.cost += product(b * patches_, pixels_, d_, false, false);
    f.cost.elementwise += b * n_ * d_;  // positions
    f.cost.bytes_read += 2 * b * n_ * d_ * bytes;
    f.cost.bytes_written += b * n_ * d_ * bytes;
    f.cost += (norm * 2 + product(b * n_, d_, 3 * d_, false, false) + attend +
               product(b * n_, d_, d_, false, true) + product(b * n_, d_, 4 * d_, true, false) +
               product(b * n_, 4 * d_, d_, false, true)) *
              depth_;
    f.cost += norm + moved(b * patches_ * d_) + product(b * patches_, d_, pixels_, false, false) +
              moved(b * patches_ * pixels_);
    f.published_macs = 2 * pixels_ * d_ * patches_ + depth_ * (12 * d_ * d_ * n_ + 2 * n_ * n_ * d_);
    f.published_macs_note =
        "MACs of one image's forward: patches, blocks and head; the transforms are not counted";
    f.parameters = d_ + n_ * d_ + pixels_ * d_ + d_ +
                   depth_ * (4 * d_ + 3 * d_ * d_ + 2 * d_ + d_ * d_ + d_ + 8 * d_ * d_ + 5 * d_) + 2 * d_ +
                   pixels_ * d_ + pixels_;
    return f;
  }

 private:
  static std::string block_name(int64_t l) { return "blocks." + std::to_string(l) + "."; }

  void layer_norm(Context& ctx, const std::string& name, const Tensor& x, const Tensor& y) {
    NormArgs a;
    a.x = x;
    a.y = y;
    a.gain = weight(name + ".weight");
    a.offset = weight(name + ".bias");
    a.eps = kLayerNormEps;
    normalize(ctx, a);
  }

  /// y (+)= activation(x W^T + bias) over the last axis.
  void product(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
               bool accumulate = false, Activation activation = Activation::none) {
    GemmArgs a;
    a.a = x;
    a.b = w;
    a.b_transposed = true;
    a.bias = bias;
    a.c = y;
    a.accumulate = accumulate;
    a.activation = activation;
    gemm(ctx, a);
  }

  void encode(Context& ctx, const Tensor& tokens) {
    const auto stage = ctx.stage("encode");
    const Tensor patches = ctx.allocate(o_.dtype, {o_.batch, rows_, columns_, d_});
    patch_conv2d(ctx, {x_c_, weight("patch_embed.proj.weight"), weight("patch_embed.proj.bias"), patches,
                       patch_, false});
    const Tensor positions = weight("pos_embed").select(0, 0);
    for (int64_t b = 0; b < o_.batch; ++b) {
      const Tensor sample = tokens.select(0, b);
      call(ctx, PointwiseArgs::Op::add, weight("cls_token").select(0, 0), positions.slice(0, 0, 1),
           sample.slice(0, 0, 1));
      call(ctx, PointwiseArgs::Op::add, patches.select(0, b).reshape({patches_, d_}),
           positions.slice(0, 1, n_), sample.slice(0, 1, n_));
    }
    const Shape wide{o_.batch * n_, d_};
    const Tensor flat = tokens.reshape(wide);
    const Tensor normed = ctx.allocate(o_.dtype, wide), mixed = ctx.allocate(o_.dtype, wide);
    const Tensor qkv = ctx.allocate(o_.dtype, {o_.batch, n_, 3 * d_}),
                 hidden = ctx.allocate(o_.dtype, {o_.batch * n_, 4 * d_});
    for (int64_t l = 0; l < depth_; ++l) {
      const std::string block = block_name(l);
      layer_norm(ctx, block + "norm1", flat, normed);
      product(ctx, normed, weight(block + "attn.qkv.weight"), qkv_bias_[static_cast<size_t>(l)],
              qkv.reshape({o_.batch * n_, 3 * d_}));
      AttentionArgs a;
      a.q = split_heads(qkv.slice(2, 0, d_), heads_);
      a.k = split_heads(qkv.slice(2, d_, 2 * d_), heads_);
      a.v = split_heads(qkv.slice(2, 2 * d_, 3 * d_), heads_);
      a.o = split_heads(mixed.reshape({o_.batch, n_, d_}), heads_);
      a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d_ / heads_)));
      attention(ctx, a);
      product(ctx, mixed, weight(block + "attn.proj.weight"), weight(block + "attn.proj.bias"), flat, true);
      layer_norm(ctx, block + "norm2", flat, normed);
      product(ctx, normed, weight(block + "mlp.fc1.weight"), weight(block + "mlp.fc1.bias"), hidden, false,
              Activation::gelu_erf);
      product(ctx, hidden, weight(block + "mlp.fc2.weight"), weight(block + "mlp.fc2.bias"), flat, true);
    }
    layer_norm(ctx, "norm", flat, flat);
    // [B, N0, d] -> [B, d, Hp, Wp], without the class token.
    transpose_copy(ctx,
                   {tokens.slice(1, 1, n_).transpose(1, 2), features_.reshape({o_.batch, d_, patches_})});
  }

  /// The head: one product, then C patch x patch pixels of each token are put in place.
  void predict(Context& ctx, const Tensor& tokens) {
    const auto stage = ctx.stage("head");
    const Tensor out = ctx.allocate(o_.dtype, {o_.batch, patches_, pixels_});
    product(ctx, tokens.slice(1, 1, n_), weight("head.weight").reshape({pixels_, d_}), weight("head.bias"),
            out);
    const Tensor shuffled =
        out.reshape({o_.batch, rows_, columns_, o_.channels, patch_, patch_}).permute({0, 3, 1, 4, 2, 5});
    transpose_copy(ctx, {shuffled, p_.reshape({o_.batch, o_.channels, rows_, patch_, columns_, patch_})});
  }

  int64_t d_, depth_, heads_, patch_, rows_, columns_, patches_, n_, pixels_;
  std::vector<Tensor> qkv_bias_;
  Tensor p_, features_;
};

class Mfm final : public Method {
 public:
  const MethodInfo& info() const override { return mfm_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& p) const override {
    require_kind(info(), problem);
    if (problem.causal) throw Unsupported("mfm has no causal mode: a frequency belongs to the whole image");
    const int64_t height = p.integer("height"), width = p.integer("width");
    if (p.integer("mask_radius2") < p.integer("mask_radius1"))
      throw UsageError("mfm.mask_radius2: " + std::to_string(p.integer("mask_radius2")) +
                       " is below mask_radius1 " + std::to_string(p.integer("mask_radius1")));
    if (!(p.number("loss_gamma") > 0)) throw UsageError("mfm.loss_gamma: a value above 0 is wanted");
    if (p.choice("corruption") == "sr") {
      const int64_t factor = p.integer("sr_factor");
      if (p.choice("target") == "masked")
        throw Unsupported(
            "mfm.target: corruption sr deletes no frequencies, so only target normal is defined");
      if (height % factor != 0 || width % factor != 0)
        throw UsageError("mfm.sr_factor: " + std::to_string(factor) + " does not divide " +
                         std::to_string(height) + " x " + std::to_string(width));
    }
    if (p.choice("scope") == "core") return std::make_unique<CoreInstance>(ctx, problem, p);
    const int64_t patch = p.integer("patch_size"), heads = p.integer("num_heads");
    if (height % patch != 0 || width % patch != 0)
      throw UsageError("mfm.patch_size: " + std::to_string(patch) + " does not divide " +
                       std::to_string(height) + " x " + std::to_string(width));
    if (p.integer("embed_dim") % heads != 0)
      throw UsageError("mfm.num_heads: " + std::to_string(heads) + " does not divide embed_dim " +
                       std::to_string(p.integer("embed_dim")));
    return std::make_unique<FullInstance>(ctx, problem, p);
  }
};
ATTNBENCH_METHOD(Mfm);

}  // namespace
}  // namespace attnbench
