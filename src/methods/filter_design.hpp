// Designs of the classic filters that signal methods need, in double on the host: windowed-sinc FIR, notch,
// Butterworth band-pass as second-order sections. Applying them is kernels/scan's.
#pragma once
#include <string>
#include <vector>

#include "kernels/scan/scan.hpp"

namespace attnbench::filter {

/// A periodic window of n points: hann, hamming or boxcar.
std::vector<double> periodic_window(const std::string& name, int64_t n);
/// odd(round-half-even(x)): the next odd number of taps.
int64_t odd_taps(double x);
/// Windowed sinc between `low` and `high` Hz (low 0: low-pass), unit gain at the middle of the pass band.
/// `kaiser`: the window whose attenuation belongs to this transition `width` (Hz); otherwise Hamming's.
std::vector<double> windowed_sinc(int64_t taps, double low, double high, double rate, bool kaiser,
                                  double width);
/// Second-order notch at `frequency` of quality q.
Biquad notch(double frequency, double q, double rate);
/// Butterworth band-pass, `order` per edge: `order` sections.
std::vector<Biquad> butterworth_band(int order, double low, double high, double rate);

}  // namespace attnbench::filter
