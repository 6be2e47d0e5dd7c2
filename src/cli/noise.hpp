// How steady this machine is: the spread of equal pieces of work. Not a speed: compare it with nothing but
// itself.
#pragma once
#include <cstdint>

namespace attnbench {

class Clock;

struct Noise {
  double spread = 0;  ///< (p95 - p5) / median of samples of about a millisecond
  double drift = 0;   ///< |median of the second half / median of the first half - 1|
  int samples = 0;

  enum class Verdict : uint8_t { quiet, moderate, noisy };
  /// With normal noise, p95 - p5 is 3.29 sigma and the 95% interval of the median of n samples reaches
  /// 1.96 * 1.2533 sigma / sqrt(n) to each side. The default precision of 1% is then met by the least number
  /// of samples (10) up to a spread of 4.2%, and by 100 samples up to 13.4%.
  static constexpr double kQuiet = 0.042, kModerate = 0.134;
  Verdict verdict() const {
    return spread <= kQuiet ? Verdict::quiet : spread <= kModerate ? Verdict::moderate : Verdict::noisy;
  }
};
const char* word(Noise::Verdict v);

/// Times the same arithmetic on every thread, again and again, for about `seconds`.
Noise measure_noise(Clock& clock, double seconds, int threads);

}  // namespace attnbench
