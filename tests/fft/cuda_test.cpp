// fft2 and spectral_mask on the GPU against the CPU's operators.
#include "kernels/fft/fft.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = Fft2Args::Kind;

namespace {

/// Both err like log2(n) roundings in the 2-norm, each with its own twiddles.
double tolerance_of(int64_t points) { return 8 * (std::log2(static_cast<double>(points)) + 1) * 0x1p-24; }

Shape grid_shape(bool real, bool half, int64_t h, int64_t w) {
  return real ? Shape{h, w} : Shape{h, half ? w / 2 + 1 : w, 2};
}
Shape batched(std::initializer_list<int64_t> batch, const Shape& grid) {
  std::vector<int64_t> dims(batch);
  dims.insert(dims.end(), grid.begin(), grid.end());
  return Shape(std::span<const int64_t>(dims.data(), dims.size()));
}

/// A half spectrum that belongs to a real image: cuFFT and FFTW may differ on any other.
Tensor real_spectrum(Sides& s, const Shape& images, int64_t h, int64_t w) {
  const Tensor image = random(s.host, DType::f32, images, s.r);
  std::vector<int64_t> dims(images.begin(), images.end());
  dims.back() = w / 2 + 1;
  dims.push_back(2);
  const Tensor spectrum =
      s.host.allocate(DType::f32, Shape(std::span<const int64_t>(dims.data(), dims.size())));
  fft2(s.host, {Kind::real_to_half, image, spectrum, h, w, 1.0f});
  return spectrum;
}

}  // namespace

TEST_CASE("CUDA fft2 agrees with the CPU: kinds, primes, odd and single extents, scales") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Kind kind =
      GENERATE(Kind::real_to_half, Kind::half_to_real, Kind::complex_forward, Kind::complex_inverse);
  Sides s(*gpu, 901);
  const bool real_x = kind == Kind::real_to_half, real_y = kind == Kind::half_to_real,
             half = real_x || real_y;
  for (const auto& g : {Shape{16, 16}, Shape{224, 224}, Shape{7, 9}, Shape{31, 64}, Shape{1, 12},
                        Shape{12, 1}, Shape{1, 1}, Shape{45, 50}, Shape{97, 101}})
    for (float scale : {1.0f, 0.37f}) {
      const int64_t h = g[0], w = g[1];
      const Shape x_shape = batched({2, 3}, grid_shape(real_x, half, h, w));
      const Twin x = real_y ? s.upload(real_spectrum(s, {2, 3, h, w}, h, w)) : s.random(DType::f32, x_shape);
      const Twin y = s.poisoned(DType::f32, batched({2, 3}, grid_shape(real_y, half, h, w)));
      fft2(s.device, {kind, x.device, y.device, h, w, scale});
      fft2(s.host, {kind, x.host, y.host, h, w, scale});
      INFO("kind " << static_cast<int>(kind) << " grid " << g.str());
      check_norm(s.fetch(y), values(y.host), tolerance_of(h * w));
    }
}

TEST_CASE("CUDA fft2: strided batches, odd addresses, in place, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 902);
  const int64_t h = 9, w = 15;
  // Every second image of a batch; two batch axes that do not continue each other.
  const Twin all = s.random(DType::f32, {4, 6, h, w});
  const Twin out = s.poisoned(DType::f32, {4, 6, h, w / 2 + 1, 2});
  const auto every = [](const Tensor& t) { return t.slice(1, 0, 3); };
  const Twin x = all.view(every), y = out.view(every);
  fft2(s.device, {Kind::real_to_half, x.device, y.device, h, w, 0.5f});
  fft2(s.host, {Kind::real_to_half, x.host, y.host, h, w, 0.5f});
  check_norm(s.fetch(y, true), values(y.host_base), tolerance_of(h * w));
  // 4 bytes off.
  const auto shifted = [&](const Tensor& t) {
    return t.slice(0, 1, 1 + 2 * h * w).strided({2, h, w}, {h * w, w, 1});
  };
  const Twin odd = s.random(DType::f32, {2 * h * w + 1}).view(shifted);
  const Twin spectrum = s.poisoned(DType::f32, {2, h, w / 2 + 1, 2});
  fft2(s.device, {Kind::real_to_half, odd.device, spectrum.device, h, w, 1.0f});
  fft2(s.host, {Kind::real_to_half, odd.host, spectrum.host, h, w, 1.0f});
  check_norm(s.fetch(spectrum), values(spectrum.host), tolerance_of(h * w));
  const Twin back = s.poisoned(DType::f32, {2 * h * w + 1}).view(shifted);
  fft2(s.device, {Kind::half_to_real, spectrum.device, back.device, h, w, 1.0f / (h * w)});
  check_norm(s.fetch(back), values(odd.host), 2 * tolerance_of(h * w));
  const Twin z = s.random(DType::f32, {3, h, w, 2});
  fft2(s.device, {Kind::complex_forward, z.device, z.device, h, w, 2.0f});
  fft2(s.host, {Kind::complex_forward, z.host, z.host, h, w, 2.0f});
  check_norm(s.fetch(z), values(z.host), tolerance_of(h * w));
  const Twin real = s.random(DType::f32, {8, 32, 40}), to = s.poisoned(DType::f32, {8, 32, 21, 2});
  s.check_graph([&] { fft2(s.device, {Kind::real_to_half, real.device, to.device, 32, 40, 0.1f}); }, {to});
}

TEST_CASE("CUDA fft2 of planes in shared memory: sizes, batches of any count, large planes, gaps, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Kind kind =
      GENERATE(Kind::real_to_half, Kind::half_to_real, Kind::complex_forward, Kind::complex_inverse);
  Sides s(*gpu, 904);
  const bool real_x = kind == Kind::real_to_half, real_y = kind == Kind::half_to_real,
             half = real_x || real_y;
  struct Case {
    int64_t planes, h, w;
  };
  // Several planes a block with a last block that is not full, one plane a block, more planes than blocks,
  // all factors; the largest planes come often enough to fill a card.
  for (const Case& c :
       {Case{1, 24, 20}, Case{3001, 4, 6}, Case{701, 8, 8}, Case{1999, 1, 30}, Case{613, 12, 1},
        Case{577, 15, 21}, Case{131, 32, 40}, Case{67, 64, 64}, Case{5, 49, 50}, Case{300, 33, 39},
        Case{41, 112, 112}, Case{37, 128, 96}, Case{43, 1, 4096}, Case{35, 160, 162}, Case{301, 96, 112},
        Case{half ? 171 : 35, half ? 224 : 150, half ? 224 : 168}}) {
    const Shape grid{c.planes, c.h, c.w};
    // Numbers between the images stay as they are; pairs begin at multiples of 8 bytes.
    const auto strided = [&](bool real, bool poisoned) {
      Shape inner = grid_shape(real, half, c.h, c.w);
      const int64_t points = inner.numel(), apart = (points + 7) / 2 * 2;
      const auto view = [&](const Tensor& t) {
        return real ? t.strided({c.planes, inner[0], inner[1]}, {apart, inner[1], 1})
                    : t.strided({c.planes, inner[0], inner[1], 2}, {apart, 2 * inner[1], 2, 1});
      };
      const Shape all{c.planes * apart};
      return (poisoned ? s.poisoned(DType::f32, all) : s.random(DType::f32, all)).view(view);
    };
    const Twin x = real_y ? s.upload(real_spectrum(s, grid, c.h, c.w)) : strided(real_x, false);
    const Twin y = strided(real_y, true);
    const auto work = [&] { fft2(s.device, {kind, x.device, y.device, c.h, c.w, 0.37f}); };
    work();
    fft2(s.host, {kind, x.host, y.host, c.h, c.w, 0.37f});
    INFO("kind " << static_cast<int>(kind) << " " << grid.str());
    check_norm(s.fetch(y, true), values(y.host_base), tolerance_of(c.h * c.w));
    // Where a card's shared memory is too small, cuFFT takes over and may overwrite a half spectrum.
    if (!real_y || c.h * c.w <= 112 * 112) s.check_graph(work, {y});
  }
  if (half) return;
  const Twin z = s.random(DType::f32, {37, 70, 72, 2});
  fft2(s.device, {kind, z.device, z.device, 70, 72, 2.0f});
  fft2(s.host, {kind, z.host, z.host, 70, 72, 2.0f});
  check_norm(s.fetch(z), values(z.host), tolerance_of(70 * 72));
}

TEST_CASE("CUDA spectral_mask agrees with the CPU bit by bit") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 903);
  for (DType type : {DType::f32, DType::u8})
    for (const auto& g : {Shape{16, 16}, Shape{7, 9}, Shape{1, 5}, Shape{6, 1}, Shape{33, 70}}) {
      const Twin spectrum = s.random(DType::f32, {2, 3, g[0], g[1] / 2 + 1, 2});
      const Twin mask = s.random(type, {2, g[0], g[1]}, 0, 3);
      spectral_mask(s.device, {spectrum.device, mask.device, g[1]});
      spectral_mask(s.host, {spectrum.host, mask.host, g[1]});
      INFO(name(type) << " " << g.str());
      CHECK(same_bits(s.fetch(spectrum), spectrum.host));
    }
  // Channels apart from each other, and numbers off their 8-byte places.
  for (int64_t shift : {0, 1}) {
    const auto view = [&](const Tensor& t) { return t.strided({2, 2, 4, 4, 2}, {90, 43, 8, 2, 1}, shift); };
    const Twin spectrum = s.random(DType::f32, {200}).view(view), mask = s.random(DType::f32, {2, 4, 6});
    spectral_mask(s.device, {spectrum.device, mask.device, 6});
    spectral_mask(s.host, {spectrum.host, mask.host, 6});
    CHECK(same_bits(s.fetch(spectrum, true), spectrum.host_base));
  }
}
