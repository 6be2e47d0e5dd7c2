// Few queries against many keys: the fused step of every instruction set against double precision, at sizes
// that divide nothing, and with what must not upset it.
#include <cstring>

#include "kernels/attention/attention.hpp"
#include "kernels/attention/cpu_kernel.hpp"
#include "kernels/core/backend.hpp"
#include "tests/attention/cases.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
using namespace attnbench::attention_test;
namespace cpu = attnbench::cpu_attention;

namespace {

struct ForceKernels {
  explicit ForceKernels(const cpu::Kernels* k) { cpu::force_kernels(k); }
  ~ForceKernels() { cpu::force_kernels(nullptr); }
};

/// Calls on every table; the poisoned outputs are written anew each time.
void check_on_all(Context& ctx, Case& c) {
  const Expected expected = reference(c.args);
  const cpu::KernelList list = cpu::available_kernels();
  for (int i = 0; i < list.count; ++i) {
    const ForceKernels force(list.entries[i]);
    fill(c.args.o, [] { return std::numeric_limits<float>::quiet_NaN(); });
    attention(ctx, c.args);
    const bool pairs =
        c.args.q.dtype() == DType::bf16 && list.entries[i]->bf16_pairs && c.args.q.dim(3) % 2 == 0;
    const std::string wrong = compare(c.args, expected, pairs ? epsilon_of(DType::bf16) / 2 : 0);
    if (!wrong.empty()) FAIL_CHECK(c.text << " on " << list.entries[i]->name << ": " << wrong);
  }
}

// One tile's queries are the heads of a group; no entropy, which would send the step elsewhere.
Case decoding(Context& ctx, Random& r, const Sizes& s, bool strided, float logit = 1) {
  Case c;
  base_case(c, ctx, r, s, strided, false, logit);
  c.args.lse = floats(ctx, {s.b, s.h, s.n});
  c.args.row_max = floats(ctx, {s.b, s.h, s.n});
  c.text = "group " + std::to_string(s.h / s.hkv) + ", " + std::to_string(s.n) + " x " + std::to_string(s.m) +
           ", d " + std::to_string(s.d) + ", e " + std::to_string(s.e) + " " + std::string(name(s.dtype));
  return c;
}

}  // namespace

TEST_CASE("every number of queries and odd sizes agree with double precision") {
  Context ctx(cpu_backend(), 2);
  Random r(11);
  // Head dims around the registers' 16, 32 and 128 elements; keys around the steps of 64, and odd ones.
  const int64_t dims[] = {1, 15, 16, 17, 32, 48, 64, 80, 100, 128, 130, 192, 300, 512};
  const int64_t keys[] = {32, 33, 47, 63, 64, 65, 97, 128, 191};
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (int64_t group = 1; group <= 17; ++group)
      for (int round = 0; round < 4; ++round) {
        const int64_t hkv = r.integer(1, 2);
        const Sizes s{
            1,    hkv * group, hkv, 1, keys[r.integer(0, 8)], dims[r.integer(0, 13)], dims[r.integer(0, 13)],
            dtype};
        Case c = decoding(ctx, r, s, r.chance(0.5), r.chance(0.2) ? 30.0f : 1.0f);
        if (r.chance(0.3)) c.args.split_keys = r.integer(2, 3);
        check_on_all(ctx, c);
      }
}

TEST_CASE("the dims of real models agree with double precision in every dtype") {
  Context ctx(cpu_backend(), 2);
  Random r(12);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (int64_t d : {64, 128, 256})
      for (int64_t group : {1, 2, 3, 4, 7, 8, 16}) {
        Case c = decoding(ctx, r, {2, group, 1, 1, 300, d, d, dtype}, false);
        check_on_all(ctx, c);
      }
}

TEST_CASE("infinities and NaN in visible keys act on their own queries alone") {
  Context ctx(cpu_backend(), 1);
  Random r(13);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (int what = 0; what < 4; ++what) {
      Case c = decoding(ctx, r, {1, 6, 2, 1, 100, 64, 64, dtype}, false);
      // The second kv head stays as it is; of the first, one element of one key, or of all keys.
      fill(c.args.q, [&] { return 0.5f + static_cast<float>(r.uniform()); });
      const auto put = [&](const Tensor& t, int64_t key, float x) { set(t, key * t.stride(2) + 5, x); };
      if (what == 0) put(c.args.k, 70, nan);
      if (what == 1) put(c.args.k, 70, -inf);
      if (what == 2)
        for (int64_t j = 0; j < 100; ++j) put(c.args.k, j, -inf);
      if (what == 3) put(c.args.v, 3, inf);
      c.text += ", case " + std::to_string(what);
      if (what != 2) {
        check_on_all(ctx, c);
        continue;
      }
      // Scores of -inf alone: those rows attend to nothing.
      const cpu::KernelList list = cpu::available_kernels();
      for (int i = 0; i < list.count; ++i) {
        const ForceKernels force(list.entries[i]);
        fill(c.args.o, [&] { return nan; });
        attention(ctx, c.args);
        for (int64_t h = 0; h < 6; ++h) {
          INFO(list.entries[i]->name << ", head " << h);
          CHECK((element(c.args.lse, {0, h, 0}) == -inf) == (h < 3));
          CHECK((element(c.args.o, {0, h, 0, 7}) == 0) == (h < 3));
          CHECK(std::isfinite(element(c.args.o, {0, h, 0, 7})));
        }
      }
    }
}

TEST_CASE("large scores move the reference point without overflow") {
  Context ctx(cpu_backend(), 1);
  Random r(14);
  for (DType dtype : {DType::f32, DType::bf16}) {
    Case c = decoding(ctx, r, {1, 4, 1, 1, 640, 64, 64, dtype}, false);
    // Scores grow along the keys, up to about 1e4.
    fill(c.args.q, [] { return 8.0f; });
    int64_t at = 0;
    fill(c.args.k, [&] { return static_cast<float>(at++ / 64) / 4; });
    check_on_all(ctx, c);
  }
}

TEST_CASE("results are the same bits for any number of threads") {
  Random r(15);
  Context one(cpu_backend(), 1);
  struct Shape4 {
    int64_t b, h, hkv, n, m, d;
    bool causal;
  };
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const Shape4& s : {Shape4{1, 8, 2, 1, 9000, 64, false}, Shape4{2, 2, 2, 300, 300, 64, true},
                            Shape4{3, 6, 3, 5, 4100, 32, false}, Shape4{1, 1, 1, 700, 650, 80, true}}) {
      Case c;
      base_case(c, one, r, {s.b, s.h, s.hkv, s.n, s.m, s.d, s.d, dtype}, false, true);
      c.mask.rule.causal = s.causal;
      c.args.mask = &c.mask;
      add_masses(c, one, true, true);
      const auto bytes = [&](int threads) {
        Context ctx(cpu_backend(), threads);
        std::vector<char> all;
        for (const Tensor* t : {&c.args.o, &c.args.lse, &c.args.row_max, &c.args.row_entropy,
                                &c.args.mass_per_key, &c.args.mass_per_block})
          std::memset(t->raw(), 0xff, static_cast<size_t>(t->nbytes()));
        attention(ctx, c.args);
        for (const Tensor* t : {&c.args.o, &c.args.lse, &c.args.row_max, &c.args.row_entropy,
                                &c.args.mass_per_key, &c.args.mass_per_block})
          all.insert(all.end(), static_cast<char*>(t->raw()), static_cast<char*>(t->raw()) + t->nbytes());
        return all;
      };
      const std::vector<char> alone = bytes(1);
      for (int threads : {2, 3, 7}) CHECK(bytes(threads) == alone);
      // Without statistics steps of few queries go another way.
      c.args.row_entropy = {};
      c.args.mass_per_key = c.args.mass_per_block = {};
      const auto output = [&](int threads) {
        Context ctx(cpu_backend(), threads);
        attention(ctx, c.args);
        const auto* p = static_cast<char*>(c.args.o.raw());
        return std::vector<char>(p, p + c.args.o.nbytes());
      };
      const std::vector<char> plain = output(1);
      for (int threads : {2, 3, 7}) CHECK(output(threads) == plain);
    }
}
