// Transfer statistics, peaks and histograms on the GPU against the CPU's operators.
#include "kernels/spectral_response/spectral_response.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA transfer_statistics agrees with the CPU") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1301);
  for (const bool ratio : {false, true})
    for (const bool response : {false, true})
      for (const auto& g : {Shape{1, 1, 5}, Shape{2, 9, 17}, Shape{3, 40, 65}}) {
        const int64_t channels = g[0], t = g[1], f = g[2], pairs = channels * (channels - 1) / 2;
        // Away from the negative axis, where the angle jumps with the last bit.
        const auto spectrum = [&](const Shape& shape) {
          const Tensor z = random(s.host, DType::f32, shape, s.r, 0.2, 1);
          return s.upload(z);
        };
        const Twin x = spectrum({2, t, f, 2}), y = spectrum({2, channels, t, f, 2});
        const auto out = [&](const Shape& shape) { return s.poisoned(DType::f32, shape); };
        const Twin r = out({2, channels, f}), phi = out({2, channels, f}), csd = out({2, pairs, f}),
                   coef = out({2, pairs, f}), h = out({2, channels, f, t, 2});
        TransferStatisticsArgs there, here;
        there.x = x.device, there.y = y.device, there.r = r.device, there.phi = phi.device;
        there.csd = csd.device, there.coef = coef.device, there.h = h.device;
        here.x = x.host, here.y = y.host, here.r = r.host, here.phi = phi.host;
        here.csd = csd.host, here.coef = coef.host, here.h = h.host;
        there.n_fft = here.n_fft = 2 * (f - 1), there.eps = here.eps = 0.01f;
        there.phase_ratio = here.phase_ratio = ratio, there.from_response = here.from_response = response;
        transfer_statistics(s.device, there);
        transfer_statistics(s.host, here);
        INFO("ratio " << ratio << " response " << response << " " << g.str());
        // f64 sums of f32 quotients: some roundings of each. Angles are absolute, and may cancel between x
        // and y.
        for (const Twin* w : {&r, &csd, &coef, &h}) check_norm(s.fetch(*w), values(w->host), 16 * 0x1p-24);
        const std::vector<double> got = values(s.fetch(phi)), want = values(phi.host);
        for (size_t i = 0; i < want.size(); ++i) CHECK(std::fabs(got[i] - want[i]) <= 16 * 0x1p-24);
      }
}

TEST_CASE("CUDA find_peaks and histogram agree with the CPU bit by bit") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1302);
  for (int64_t n : {3, 16, 129, 700})
    for (int64_t distance : {1, 4})
      for (bool deviation : {false, true}) {
        const Twin x = s.random(DType::f32, {2, 3, n}, 0.1, 1);
        const Twin index = s.poisoned(DType::i32, {2, 3, 12}), width = s.poisoned(DType::f32, {2, 3, 12});
        FindPeaksArgs there, here;
        there.x = x.device, there.index = index.device, there.width = width.device;
        here.x = x.host, here.index = index.host, here.width = width.host;
        there.distance = here.distance = distance, there.by_deviation = here.by_deviation = deviation;
        find_peaks(s.device, there);
        find_peaks(s.host, here);
        INFO("n " << n << " distance " << distance << " deviation " << deviation);
        CHECK(same_bits(s.fetch(index), index.host));
        check_norm(s.fetch(width), values(width.host), 2 * 0x1p-24);
        const Twin counts = s.poisoned(DType::i32, {3, 10}), edges = s.poisoned(DType::f32, {3, 11});
        HistogramArgs h_there, h_here;
        h_there.index = index.device, h_there.counts = counts.device, h_there.edges = edges.device;
        h_here.index = index.host, h_here.counts = counts.host, h_here.edges = edges.host;
        h_there.scale = h_here.scale = 0.5;
        histogram(s.device, h_there);
        histogram(s.host, h_here);
        CHECK(same_bits(s.fetch(counts), counts.host));
        CHECK(same_bits(s.fetch(edges), edges.host));
      }
}
