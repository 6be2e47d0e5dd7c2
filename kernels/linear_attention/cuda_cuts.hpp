// How the Hopper kernel cuts a head's chunks into segments. Host and device; no CUDA calls.
//
// A segment reads its k and v from memory first, to sum them, and computes afterwards. Segments of one
// length keep all multiprocessors in step: they wait for memory together and then leave it idle together.
// So the first segments of a head grow from short to whole, which spreads the beginnings of the later ones
// evenly over the time a segment takes, and the last ones shrink again, so that all end together.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define ATTNBENCH_BOTH_SIDES __host__ __device__
#else
#define ATTNBENCH_BOTH_SIDES
#endif

namespace attnbench::cuda_linear {

struct Cuts {
  int chunks = 0;    ///< of a head
  int whole = 1;     ///< chunks of a whole segment
  int ramp = 0;      ///< segments that grow, and segments that shrink; at most `whole`
  int segments = 1;  ///< of a head

  /// Of `chunks` in segments of `whole`, growing and shrinking where they have room for it.
  ATTNBENCH_BOTH_SIDES static Cuts of(int chunks, int whole, bool ramps) {
    Cuts c;
    c.chunks = chunks, c.whole = whole;
    if (ramps && chunks >= 3 * ramped(whole, whole)) c.ramp = whole;
    const int middle = chunks - 2 * c.ramped(c.ramp, whole);
    c.segments = 2 * c.ramp + (middle + whole - 1) / whole;
    return c;
  }
  /// The chunk that segment s begins with; begin(segments) is `chunks`.
  ATTNBENCH_BOTH_SIDES int begin(int s) const {
    const int left = segments - s;
    if (left <= ramp) return chunks - ramped(left, whole);
    if (s <= ramp) return ramped(s, whole);
    return ramped(ramp, whole) + (s - ramp) * whole;
  }

 private:
  /// Chunks of the first s segments of a ramp: 1, 2, 3, ... up to whole ones.
  ATTNBENCH_BOTH_SIDES static int ramped(int s, int whole) {
    return s <= whole ? s * (s + 1) / 2 : whole * (whole + 1) / 2 + (s - whole) * whole;
  }
};

}  // namespace attnbench::cuda_linear
