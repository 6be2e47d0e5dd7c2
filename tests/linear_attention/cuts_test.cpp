// The cuts of the Hopper kernel: segments without gap or overlap, none of them empty or too long.
#include "kernels/linear_attention/cuda_cuts.hpp"
#include "tests/op_testing.hpp"

using attnbench::cuda_linear::Cuts;

TEST_CASE("segments of linear attention cover every chunk once, in order, at most `whole` at a time") {
  for (int whole : {1, 2, 3, 6, 8})
    for (int chunks = 1; chunks < 400; ++chunks)
      for (bool ramps : {false, true}) {
        const Cuts c = Cuts::of(chunks, whole, ramps);
        INFO("chunks " << chunks << " whole " << whole << " ramps " << ramps);
        REQUIRE(c.begin(0) == 0);
        REQUIRE(c.begin(c.segments) == chunks);
        for (int s = 0; s < c.segments; ++s) {
          REQUIRE(c.begin(s + 1) > c.begin(s));
          REQUIRE(c.begin(s + 1) - c.begin(s) <= whole);
        }
      }
}

TEST_CASE(
    "segments of linear attention grow and shrink only in heads that have room for whole ones between") {
  const Cuts c = Cuts::of(512, 8, true);
  CHECK(c.ramp == 8);
  for (int s = 0; s < 8; ++s) {
    CHECK(c.begin(s + 1) - c.begin(s) == s + 1);
    CHECK(c.begin(c.segments - s) - c.begin(c.segments - s - 1) == s + 1);
  }
  CHECK(c.begin(9) - c.begin(8) == 8);
  CHECK(Cuts::of(107, 8, true).ramp == 0);
  CHECK(Cuts::of(108, 8, true).ramp == 8);
  CHECK(Cuts::of(512, 8, false).segments == 64);
}
