// The Hopper attention kernels against the device oracle (itself tested against double precision on the host)
// on seeded mixtures of what they take: several tiles a row, ragged ends, lists, every rule. Without a Hopper
// card: says why and stops.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernels/attention/attention.hpp"
#include "kernels/core/backend.hpp"
#include "tests/attention/cases.hpp"
#include "tests/catch.hpp"
#include "tests/cuda_device.hpp"

using namespace attnbench;
using namespace attnbench::attention_test;

namespace {

/// With the strides it has.
Tensor to_device(Context& gpu, const Tensor& t) {
  if (!t || t.numel() == 0) return t ? gpu.allocate(t.dtype(), t.shape()) : Tensor();
  int64_t span = 1;
  for (int axis = 0; axis < t.rank(); ++axis) span += (t.dim(axis) - 1) * t.stride(axis);
  Tensor flat = gpu.allocate(t.dtype(), {span});
  gpu.backend().copy_bytes(flat.raw(), DeviceKind::cuda, t.raw(), DeviceKind::cpu,
                           static_cast<size_t>(flat.nbytes()));
  return flat.strided(t.shape(), t.strides());
}
Tensor to_host(Context& host, Context& gpu, const Tensor& t) {
  if (!t) return {};
  Tensor here = host.allocate(t.dtype(), t.shape());
  if (t.numel() > 0)
    gpu.backend().copy_bytes(here.raw(), DeviceKind::cpu, t.raw(), DeviceKind::cuda,
                             static_cast<size_t>(t.nbytes()));
  return here;
}

Tensor random_rows(Context& host, Random& r, DType dtype, const Shape& s) {
  Tensor t = host.allocate(dtype, {s[0] * s[1] * s[2] * s[3]});
  for (int64_t i = 0; i < t.numel(); ++i) set(t, i, r.normal());
  return t;
}
/// [B, H, N, D], or [B, N, H, D] in memory seen so.
Tensor seen_as(const Tensor& flat, const Shape& s, bool heads_inside) {
  const int64_t h = s[1], n = s[2], d = s[3];
  return heads_inside ? flat.strided(s, {n * h * d, d, h * d, 1}, 0)
                      : flat.strided(s, {h * n * d, n * d, d, 1}, 0);
}

struct HopperCase {
  Sizes s;
  BlockMask mask;
  bool masked = false, heads_inside = false, sink = false, bad_values = false;
  bool lse = true, row_max = true, entropy = false;
  AttentionArgs terms;  // soft cap and bias alone
  float logit = 1;
  std::string text;
};

/// Tiles of whole 64-key halves: their masks come from tables made once.
void word_tiles(Case& c, Random& r, Sizes& s, std::string& text) {
  using Tile = std::array<int64_t, 3>;
  const std::vector<Tile> tiles[] = {{{64, 0, 0}, {128, 0, 0}, {192, 0, 0}},
                                     {{8, 8, 0}, {16, 8, 0}, {4, 16, 0}, {32, 8, 0}, {3, 64, 0}},
                                     {{4, 4, 4}, {2, 8, 8}, {2, 4, 8}, {6, 8, 8}}};
  ElementRule& rule = c.mask.rule;
  const auto& some = tiles[rule.rank - 1];
  const auto pick = [&] {
    return some[static_cast<size_t>(r.integer(0, static_cast<int64_t>(some.size()) - 1))];
  };
  rule.k_tile = pick();
  rule.q_tile = r.chance(0.5) ? rule.k_tile : pick();
  s.n = padded_tokens_of(rule, rule.q_tile), s.m = padded_tokens_of(rule, rule.k_tile);
  text += " tiles";
  for (int a = 0; a < rule.rank; ++a) {
    const auto i = static_cast<size_t>(a);
    text += " " + std::to_string(rule.q_tile[i]) + "/" + std::to_string(rule.k_tile[i]);
  }
}

HopperCase hopper_case(Context& host, uint64_t seed) {
  Random r(seed);
  HopperCase c;
  Sizes& s = c.s;
  s.dtype = r.chance(0.7) ? DType::bf16 : DType::f16;
  s.b = r.integer(1, 2), s.hkv = r.integer(1, 3), s.h = s.hkv * (r.chance(0.6) ? 1 : r.integer(2, 3));
  s.n = r.integer(64, 700), s.m = r.chance(0.4) ? s.n : r.integer(1, 900);
  if (r.chance(0.3)) s.n = 128 * r.integer(1, 5), s.m = 128 * r.integer(1, 6);
  const int64_t dims[] = {64, 64, 128, 128, 16, 40, 72, 96, 256, 200};
  s.d = dims[r.integer(0, 9)], s.e = r.chance(0.7) ? s.d : dims[r.integer(0, 9)];
  c.heads_inside = r.chance(0.4), c.sink = r.chance(0.15);
  c.text = "seed " + std::to_string(seed) + ":";
  Case scratch;
  const int kind = static_cast<int>(r.integer(0, 9));
  c.masked = kind >= 2;
  if (kind == 2 || (kind >= 7 && r.chance(0.3))) {
    random_neighbourhood(scratch, r, s, c.text);
    while (s.n < 64 || r.chance(0.3)) {  // another grid, larger
      ElementRule& rule = scratch.mask.rule;
      s.n = 1;
      for (int a = 0; a < rule.rank; ++a) {
        const auto i = static_cast<size_t>(a);
        rule.grid[i] += r.integer(1, 4), rule.window[i] += r.integer(0, 1), s.n *= rule.grid[i];
        rule.window[i] = std::min(rule.window[i], rule.grid[i] / rule.dilation[i]);
        rule.stride[i] = std::min(rule.stride[i], rule.window[i]);
      }
      s.m = s.n;
    }
    if (r.chance(0.5))
      word_tiles(scratch, r, s, c.text);
    else if (r.chance(0.4))
      random_tiles(scratch, r, s, c.text);
  }
  if (kind >= 3) random_rule(scratch, host, r, s, c.text);
  c.mask = scratch.mask;
  if (kind >= 6) {
    const int64_t blocks[] = {64, 64, 128, 192, 256};
    c.mask.block_q = blocks[r.integer(0, 4)], c.mask.block_k = blocks[r.integer(0, 4)];
    random_lists(c.mask, host, r, s);
    c.text += " lists " + std::to_string(c.mask.block_q) + "x" + std::to_string(c.mask.block_k);
  }
  if (c.masked && r.chance(0.15)) {
    std::vector<int32_t> begin, end;
    for (int64_t i = 0; i < s.n; ++i)
      begin.push_back(static_cast<int32_t>(r.integer(-3, s.m))),
          end.push_back(static_cast<int32_t>(r.integer(-3, s.m + 3)));
    c.mask.row_begin = ints(host, {1, 1, s.n}, begin), c.mask.row_end = ints(host, {1, 1, s.n}, end);
    c.text += " rows";
  }
  if (c.masked && r.chance(0.15)) {
    std::vector<int32_t> v;
    for (int64_t b = 0; b < s.b; ++b) v.push_back(static_cast<int32_t>(r.integer(0, s.m)));
    c.mask.key_length = ints(host, {s.b}, v), c.text += " length";
  }
  if (c.masked && r.chance(0.1)) {
    c.mask.key_valid = host.allocate(DType::u8, {s.b, s.m});
    for (int64_t i = 0; i < s.b * s.m; ++i) c.mask.key_valid.data<uint8_t>()[i] = r.chance(0.7) ? 3 : 0;
    c.text += " valid";
  }
  c.bad_values = c.masked && r.chance(0.15);
  if (r.chance(0.35)) random_terms(c.terms, host, r, s, c.text);
  if (r.chance(0.1)) {  // a mask of finite numbers
    c.terms.bias.dense = floats(host, {1, s.h, 1, s.m});
    const float huge = 1e30f;  // so far that double precision keeps nothing of a score beside it either
    for (int64_t i = 0; i < s.h * s.m; ++i)
      c.terms.bias.dense.data<float>()[i] = r.chance(0.4) || i % s.m < s.m / 3 ? -huge : 0.0f;
    c.terms.bias.dense = c.terms.bias.dense.strided({1, s.h, s.n, s.m}, {0, s.m, 0, 1});
    c.text += " huge";
  }
  c.entropy = r.chance(0.2);
  // Maxima that are asked for are exact; those that are not may trail behind.
  c.lse = r.chance(0.6), c.row_max = r.chance(0.3);
  if (r.chance(0.3)) c.logit = r.chance(0.5) ? 6.0f : 40.0f, c.text += " logits " + std::to_string(c.logit);
  c.text += (c.bad_values ? " nan" : "") + std::string(" B") + std::to_string(s.b) + " H" +
            std::to_string(s.h) + "/" + std::to_string(s.hkv) + " N" + std::to_string(s.n) + " M" +
            std::to_string(s.m) + " D" + std::to_string(s.d) + " E" + std::to_string(s.e) + " " +
            std::string(name(s.dtype));
  return c;
}

struct Outputs {
  Tensor o, lse, row_max, entropy;
};
Outputs run_on(Context& host, Context& gpu, const char* kernel, AttentionArgs a, const HopperCase& c) {
  setenv("ATTNBENCH_CUDA_ATTENTION", kernel, 1);
  const Sizes& s = c.s;
  const auto poisoned = [&](DType t, const Shape& shape) {
    Tensor here = host.allocate(t, shape);
    std::memset(here.raw(), 0xff, static_cast<size_t>(here.nbytes()));
    return to_device(gpu, here);
  };
  const Tensor o = poisoned(s.dtype, {s.b * s.h * s.n * s.e});
  a.o = seen_as(o, {s.b, s.h, s.n, s.e}, c.heads_inside);
  if (c.lse) a.lse = poisoned(DType::f32, {s.b, s.h, s.n});
  if (c.row_max) a.row_max = poisoned(DType::f32, {s.b, s.h, s.n});
  if (c.entropy) a.row_entropy = poisoned(DType::f32, {s.b, s.h, s.n});
  attention(gpu, a);
  gpu.backend().synchronize();
  unsetenv("ATTNBENCH_CUDA_ATTENTION");
  return {seen_as(to_host(host, gpu, o), {s.b, s.h, s.n, s.e}, c.heads_inside), to_host(host, gpu, a.lse),
          to_host(host, gpu, a.row_max), to_host(host, gpu, a.row_entropy)};
}

/// The entropy is lse - sum p s: an error of the scores counts for every nat of the widest row.
double entropy_bound(const HopperCase& c, double lse) {
  return 4e-5 * (1 + (std::isfinite(lse) ? std::fabs(lse) : 0)) *
         (2 + std::log(static_cast<double>(c.s.m) + 2));
}

bool differs(double got, double want, double bound) {
  if (std::isnan(want)) return !std::isnan(got);
  if (std::isinf(want)) return got != want;
  return !(std::fabs(got - want) <= bound);
}

std::string check_case(Context& host, Context& gpu, const HopperCase& c, uint64_t seed) {
  const Sizes& s = c.s;
  Random r(seed + 5000);
  AttentionArgs a;
  Tensor q = random_rows(host, r, s.dtype, {s.b, s.h, s.n, s.d});
  Tensor k = random_rows(host, r, s.dtype, {s.b, s.hkv, s.m, s.d});
  Tensor v = random_rows(host, r, s.dtype, {s.b, s.hkv, s.m, s.e});
  if (c.bad_values)
    for (int i = 0; i < 3; ++i)
      set(v, r.integer(0, v.numel() - 1), i == 0 ? std::nanf("") : std::numeric_limits<float>::infinity());
  const Tensor dq = to_device(gpu, q), dk = to_device(gpu, k), dv = to_device(gpu, v);
  a.q = seen_as(dq, {s.b, s.h, s.n, s.d}, c.heads_inside);
  a.k = seen_as(dk, {s.b, s.hkv, s.m, s.d}, c.heads_inside);
  a.v = seen_as(dv, {s.b, s.hkv, s.m, s.e}, c.heads_inside);
  a.scale = c.logit / std::sqrt(static_cast<float>(s.d));
  a.soft_cap = c.terms.soft_cap;
  a.bias = {to_device(gpu, c.terms.bias.dense), to_device(gpu, c.terms.bias.slope),
            to_device(gpu, c.terms.bias.relative)};
  if (c.sink) {
    Tensor sink = floats(host, {s.h});
    for (int64_t h = 0; h < s.h; ++h) sink.data<float>()[h] = 3 * r.normal();
    a.sink_logit = to_device(gpu, sink);
  }
  BlockMask mask = c.mask;
  for (BlockList* l : {&mask.full, &mask.partial, &mask.gather})
    for (Tensor* t : {&l->begin, &l->count, &l->index}) *t = to_device(gpu, *t);
  for (Tensor* t : {&mask.rule.segment_q, &mask.rule.segment_k, &mask.rule.bitmap, &mask.row_begin,
                    &mask.row_end, &mask.key_length, &mask.key_valid, &mask.q_order, &mask.k_order})
    *t = to_device(gpu, *t);
  if (c.masked) a.mask = &mask;

  Outputs got, want;
  try {
    got = run_on(host, gpu, "sm90", a, c);
  } catch (const Unsupported& e) {
    unsetenv("ATTNBENCH_CUDA_ATTENTION");
    return std::string("unsupported: ") + e.what();
  }
  want = run_on(host, gpu, "reference", a, c);
  // Weights are rounded to 16 bits before their product (relative epsilon / 2, at random: 3 of it covers the
  // tail), o once more; values are of size 1, so that sum p |v| is of size 1 at most 4 or so in a row.
  const double eps = epsilon_of(s.dtype);
  char text[200];
  for (int64_t b = 0; b < s.b; ++b)
    for (int64_t h = 0; h < s.h; ++h)
      for (int64_t i = 0; i < s.n; ++i) {
        for (int64_t e = 0; e < s.e; ++e) {
          const double g = element(got.o, {b, h, i, e}), w = element(want.o, {b, h, i, e});
          if (differs(g, w, 1.5 * eps + std::fabs(w) * eps)) {
            std::snprintf(text, sizeof text, "o[%d %d %d %d] = %.7g, oracle %.7g", static_cast<int>(b),
                          static_cast<int>(h), static_cast<int>(i), static_cast<int>(e), g, w);
            return text;
          }
        }
        const auto of = [&](const Tensor& t) { return t ? element(t, {b, h, i}) : 0.0f; };
        const double g = of(got.lse), w = of(want.lse), gm = of(got.row_max), wm = of(want.row_max);
        const double ge = of(got.entropy), we = of(want.entropy);
        if (differs(g, w, 2e-5 * (1 + std::fabs(w))) || differs(gm, wm, 2e-5 * (1 + std::fabs(wm))) ||
            differs(ge, we, entropy_bound(c, w))) {
          std::snprintf(text, sizeof text,
                        "[%d %d %d]: lse %.7g, oracle %.7g; max %.7g, oracle %.7g; entropy %.7g, oracle %.7g",
                        static_cast<int>(b), static_cast<int>(h), static_cast<int>(i), g, w, gm, wm, ge, we);
          return text;
        }
      }
  return "";
}

int64_t seeds() {
  const char* text = std::getenv("ATTNBENCH_SEEDS");
  return text ? std::atoll(text) : 400;
}

}  // namespace

TEST_CASE("mixtures of what the Hopper kernels take agree with the device oracle") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  int64_t taken = 0, first = 0, last = seeds();
  if (const char* only = std::getenv("ATTNBENCH_SEED")) first = std::atoll(only), last = first + 1;
  std::string why;
  for (int64_t seed = first; seed < last; ++seed) {
    const HopperCase c = hopper_case(host, static_cast<uint64_t>(seed));
    std::string wrong;
    try {
      wrong = check_case(host, gpu, c, static_cast<uint64_t>(seed));
    } catch (const std::exception& e) {
      wrong = e.what();
    }
    if (wrong.rfind("unsupported", 0) == 0) {
      why = wrong;
      continue;
    }
    ++taken;
    if (!wrong.empty()) FAIL_CHECK(c.text << ": " << wrong);
  }
  std::printf("Hopper kernels took %lld of %lld mixtures; last refusal: %s\n", static_cast<long long>(taken),
              static_cast<long long>(last - first), why.c_str());
  if (why.find("not a Hopper") == std::string::npos) CHECK(taken * 2 > last - first);
}
