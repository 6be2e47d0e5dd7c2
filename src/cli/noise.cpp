#include "cli/noise.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "measure/clock.hpp"
#include "measure/statistics.hpp"

namespace attnbench {

namespace {

/// A chain of multiply-adds that cannot be shortened: its time is clock cycles and nothing else.
double chain(int64_t steps) {
  double x = 0.5;
  for (int64_t i = 0; i < steps; ++i) x = x * 0.999999 + 1e-6;
  return x;
}

double timed(Clock& clock, int64_t steps, int threads) {
  double sink = 0;
  const double start = clock.now_s();
#pragma omp parallel for num_threads(threads) reduction(+ : sink) schedule(static, 1)
  for (int t = 0; t < threads; ++t) sink += chain(steps);
  const double seconds = clock.now_s() - start;
  // The chain converges to 1; a result that is not used would not be computed.
  return sink < 0 ? 0 : seconds;
}

}  // namespace

const char* word(Noise::Verdict v) {
  switch (v) {
    case Noise::Verdict::quiet:
      return "Quiet";
    case Noise::Verdict::moderate:
      return "Moderate";
    case Noise::Verdict::noisy:
      return "Noisy";
  }
  return "?";
}

Noise measure_noise(Clock& clock, double seconds, int threads) {
  constexpr double kSample = 1e-3;
  threads = std::max(1, threads);
  // Grow until a sample is long enough, which also wakes the threads and the clock.
  int64_t steps = 1000;
  for (double t = 0; (t = timed(clock, steps, threads)) < kSample && steps < (int64_t{1} << 40);)
    steps = t <= 0
                ? steps * 10
                : static_cast<int64_t>(static_cast<double>(steps) * std::clamp(1.1 * kSample / t, 1.1, 10.0));
  std::vector<double> samples;
  const double end = clock.now_s() + seconds;
  do samples.push_back(timed(clock, steps, threads));
  while (clock.now_s() < end && samples.size() < 1000000);
  Noise n;
  n.samples = static_cast<int>(samples.size());
  const double middle = median(samples);
  if (middle > 0) n.spread = (percentile(samples, 0.95) - percentile(samples, 0.05)) / middle;
  const auto half = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  if (samples.size() >= 2)
    n.drift = std::fabs(median({half, samples.end()}) / median({samples.begin(), half}) - 1);
  return n;
}

}  // namespace attnbench
