// Tensors that later cases ask for again: the same values, never those of another question, and bounded
// memory.
#include "inputs/input_cache.hpp"

#include <cstring>

#include "inputs/inputs.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

constexpr int64_t kElements = int64_t{1} << 20;  // the fewest that are kept

TensorSpec spec_of(const char* name, DType dtype = DType::f32, Init init = Init::normal()) {
  return {name, {4, kElements / 4}, dtype, std::move(init), false, ""};
}

Tensor some(Context& ctx, const TensorSpec& spec, uint64_t seed) {
  return make_tensor(ctx, spec, seed, MemoryClass::input);
}

}  // namespace

TEST_CASE("what was kept comes back for the same question only") {
  Context ctx(cpu_backend(), 2);
  InputCache cache(int64_t{64} << 20);
  Problem p;
  p.length = 16;
  const TensorSpec q = spec_of("q");
  const Tensor drawn = some(ctx, q, p.seed);
  cache.keep(q, p, "", drawn);
  REQUIRE(cache.find(q, p, ""));
  CHECK(std::memcmp(cache.find(q, p, "").raw(), drawn.raw(), static_cast<size_t>(drawn.nbytes())) == 0);

  CHECK_FALSE(cache.find(spec_of("k"), p, ""));
  CHECK_FALSE(cache.find(spec_of("q", DType::bf16), p, ""));
  CHECK_FALSE(cache.find(spec_of("q", DType::f32, Init::normal(0, 2)), p, ""));
  CHECK_FALSE(cache.find(q, p, "vertical_slash"));
  Problem other = p;
  other.seed = 1;
  CHECK_FALSE(cache.find(q, other, ""));
  // An Init reads the seed alone, a generator any part of the problem.
  other = p;
  other.length = 32;
  CHECK(cache.find(q, other, ""));
  cache.keep(q, p, "vertical_slash", drawn);
  CHECK(cache.find(q, p, "vertical_slash"));
  CHECK_FALSE(cache.find(q, other, "vertical_slash"));
}

TEST_CASE("memory is bounded: the tensor used longest ago goes") {
  Context ctx(cpu_backend(), 2);
  const int64_t each = kElements * 4;
  InputCache cache(2 * each);
  const Problem p;
  for (const char* name : {"q", "k"}) cache.keep(spec_of(name), p, "", some(ctx, spec_of(name), 0));
  REQUIRE(cache.find(spec_of("q"), p, ""));
  cache.keep(spec_of("v"), p, "", some(ctx, spec_of("v"), 0));
  CHECK(cache.find(spec_of("q"), p, ""));
  CHECK_FALSE(cache.find(spec_of("k"), p, ""));
  CHECK(cache.find(spec_of("v"), p, ""));
}

TEST_CASE("small tensors, computed ones and those beyond the memory are not kept") {
  const Problem p;
  InputCache cache(kElements * 4);
  CHECK(cache.takes(spec_of("q")));
  CHECK_FALSE(cache.takes({"q", {8}, DType::f32, Init::normal(), false, ""}));
  Init computed;
  computed.kind = Init::Kind::values;
  CHECK_FALSE(cache.takes(spec_of("q", DType::f32, computed)));
  CHECK_FALSE(cache.takes(spec_of("q", DType::f64)));
  CHECK_FALSE(InputCache(0).takes(spec_of("q")));
}
