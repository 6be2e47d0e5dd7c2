// CUDA attention against double precision on the host: the device oracle and the tensor-core kernels in turn,
// on the same seeded mixtures as the CPU's tests and on shapes around their tiles. Without a device: says why
// and stops.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>

#include "kernels/attention/attention.hpp"
#include "kernels/core/backend.hpp"
#include "tests/attention/cases.hpp"
#include "tests/catch.hpp"
#include "tests/cuda_device.hpp"

using namespace attnbench;
using namespace attnbench::attention_test;

namespace {

/// Makes the backend take one kernel for every call (kernels/attention/cuda.cu).
struct ForceKernel {
  explicit ForceKernel(const char* name) { setenv("ATTNBENCH_CUDA_ATTENTION", name, 1); }
  ~ForceKernel() { unsetenv("ATTNBENCH_CUDA_ATTENTION"); }
};
const char* const kKernels[] = {"reference", "sm80"};

/// The memory between a view's first and last element, gaps included.
struct Extent {
  int64_t low = 0, count = 0;  // elements; low <= 0 relative to the view's first element
  explicit Extent(const Tensor& t) {
    int64_t high = 0;
    for (int a = 0; a < t.rank(); ++a) {
      if (t.dim(a) == 0) {
        low = 0, count = 0;
        return;
      }
      const int64_t reach = (t.dim(a) - 1) * t.stride(a);
      (reach < 0 ? low : high) += reach;
    }
    count = high + 1 - low;
  }
};
char* bytes_at(const Tensor& t, int64_t element) {
  return static_cast<char*>(t.raw()) + element * static_cast<int64_t>(size_of(t.dtype()));
}

/// The same view, strides and gaps included, in device memory.
Tensor to_device(Context& gpu, const Tensor& t) {
  if (!t) return {};
  const Extent x(t);
  // 16 elements in front at most: views keep their alignment within 16 bytes.
  const auto shift =
      static_cast<int64_t>((reinterpret_cast<uintptr_t>(bytes_at(t, x.low)) & 15) / size_of(t.dtype()));
  Tensor memory = gpu.allocate(t.dtype(), {x.count + shift});
  if (x.count > 0)
    gpu.backend().copy_bytes(bytes_at(memory, shift), DeviceKind::cuda, bytes_at(t, x.low), DeviceKind::cpu,
                             static_cast<size_t>(x.count) * size_of(t.dtype()));
  return memory.strided(t.shape(), t.strides(), shift - x.low);
}
/// Every byte 0xff: NaN in every float type.
void poison(const Tensor& t) {
  const Extent x(t);
  if (t && x.count > 0)
    std::memset(bytes_at(t, x.low), 0xff, static_cast<size_t>(x.count) * size_of(t.dtype()));
}

/// A call's arguments on the device, and the way back of its outputs.
struct Mirror {
  AttentionArgs args;
  BlockMask mask;
  std::vector<std::pair<Tensor, Tensor>> outputs;  // device, host

  Mirror(Context& gpu, const AttentionArgs& a) : args(a) {
    for (Tensor* t : {&args.q, &args.k, &args.v, &args.bias.dense, &args.bias.slope, &args.bias.relative,
                      &args.relative.keys, &args.relative.values, &args.sink_logit, &args.pages.table})
      *t = to_device(gpu, *t);
    for (Tensor* t :
         {&args.o, &args.lse, &args.row_max, &args.row_entropy, &args.mass_per_key, &args.mass_per_block})
      if (*t) {
        poison(*t);
        Tensor there = to_device(gpu, *t);
        outputs.emplace_back(there, *t);
        *t = there;
      }
    if (!a.mask) return;
    mask = *a.mask;
    for (BlockList* l : {&mask.full, &mask.partial, &mask.gather})
      for (Tensor* t : {&l->begin, &l->count, &l->index}) *t = to_device(gpu, *t);
    for (Tensor* t : {&mask.rule.segment_q, &mask.rule.segment_k, &mask.rule.bitmap, &mask.row_begin,
                      &mask.row_end, &mask.key_length, &mask.key_valid, &mask.q_order, &mask.k_order})
      *t = to_device(gpu, *t);
    args.mask = &mask;
  }
  void fetch(Context& gpu) {
    for (auto& [there, here] : outputs) {
      const Extent x(here);
      if (x.count > 0)
        gpu.backend().copy_bytes(bytes_at(here, x.low), DeviceKind::cpu, bytes_at(there, x.low),
                                 DeviceKind::cuda, static_cast<size_t>(x.count) * size_of(here.dtype()));
    }
  }
};

/// Tensor-core products round p to the stored 16-bit type; the oracle and f32 do not.
double product_rounding(const char* kernel, DType t) {
  return std::string(kernel) == "reference" || t == DType::f32 ? 0 : epsilon_of(t) / 2;
}
std::string run_on(Context& gpu, const char* kernel, const AttentionArgs& a, const Expected& expected) {
  const ForceKernel force(kernel);
  try {
    Mirror m(gpu, a);
    attention(gpu, m.args);
    gpu.backend().synchronize();
    m.fetch(gpu);
    return compare(a, expected, product_rounding(kernel, a.q.dtype()));
  } catch (const std::exception& e) {
    return e.what();
  }
}
void run_all(Context& gpu, const AttentionArgs& a, const std::string& text) {
  const Expected expected = reference(a);
  for (const char* kernel : kKernels) {
    const std::string wrong = run_on(gpu, kernel, a, expected);
    if (!wrong.empty()) FAIL_CHECK(text << " on " << kernel << ": " << wrong);
  }
}

/// NaN in some rows of q, k and v: it may reach the rows that attend to them, and no others.
void sprinkle(Case& c, Random& r) {
  const int64_t count = r.integer(1, 3);
  for (int64_t i = 0; i < count; ++i) {
    // A hidden value (bias -inf) times NaN is NaN or nothing: not the contract's business.
    const int64_t which = r.integer(0, c.args.bias.dense ? 1 : 2);
    const Tensor& t = which == 0 ? c.args.q : which == 1 ? c.args.k : c.args.v;
    if (t.numel() == 0) continue;
    int64_t at = 0;
    for (int a = 0; a < 4; ++a) at += r.integer(0, t.dim(a) - 1) * t.stride(a);
    set(t, at, std::numeric_limits<float>::quiet_NaN());
  }
  c.text += " nan";
}

int64_t seeds() {
  const char* text = std::getenv("ATTNBENCH_SEEDS");
  return text ? std::atoll(text) : 400;
}

}  // namespace

TEST_CASE("random mixtures of every feature agree with double precision on the device") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  const char* only = std::getenv("ATTNBENCH_SEED");
  for (int64_t seed = only ? std::atoll(only) : 0; seed < (only ? std::atoll(only) + 1 : seeds()); ++seed) {
    Case c;
    random_case(c, host, static_cast<uint64_t>(seed));
    Random r(static_cast<uint64_t>(seed) + 1000000);
    if (r.chance(0.1)) sprinkle(c, r);
    run_all(gpu, c.args, c.text);
  }
}

TEST_CASE(
    "finite biases of any size hide keys without a trace on the device, and blocked rows take the mean") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const int64_t n : {1, 37, 130})
      for (const float huge : {1e9f, 4e9f, 1e12f, 1e30f}) {
        Case c;
        blocked_rows(c, host, dtype, n, huge);
        run_all(gpu, c.args, "bias of -" + std::to_string(huge) + ", " + std::to_string(n) + " queries");
      }
}

TEST_CASE("shapes around the tiles, head sizes around the pads, every dtype") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(7);
  int64_t turn = 0;
  for (DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (int64_t d : {8, 32, 40, 64, 96, 128, 192, 256, 264})
      for (int64_t n : {1, 63, 64, 65, 127, 129, 200}) {
        ++turn;
        // A third of the products: neighbours of each value still meet.
        if (turn % 3 != 0) continue;
        Case c;
        const int64_t e = turn % 2 == 0 ? d : std::max<int64_t>(1, d / 2 + 3);
        const int64_t group = turn % 5 == 0 ? 4 : 1, m = turn % 4 == 0 ? n : n + r.integer(0, 150);
        base_case(c, host, r, {1, group * (turn % 2 + 1), turn % 2 + 1, n, m, d, e, dtype}, turn % 4 == 1,
                  true);
        c.mask.rule.causal = turn % 2 == 0;
        if (turn % 7 == 0) c.mask.rule.band = true, c.mask.rule.left = 70, c.mask.rule.sinks = 3;
        c.args.mask = &c.mask;
        run_all(gpu, c.args,
                std::string(name(dtype)) + " D " + std::to_string(d) + " E " + std::to_string(e) + " N " +
                    std::to_string(n) + " M " + std::to_string(m));
      }
}

TEST_CASE("built lists of causal, band and neighbourhood rules in 64 and 128 token blocks on the device") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(11);
  for (DType dtype : {DType::bf16, DType::f32})
    for (int64_t block : {64, 128})
      for (int kind = 0; kind < 6; ++kind) {
        Case c;
        ElementRule rule;
        int64_t n = 300, m = 0;
        if (kind == 0) rule.causal = true;
        if (kind == 1) rule.causal = rule.band = true, rule.left = 100, rule.sinks = 5;
        if (kind == 2) n = 18 * 17, rule.rank = 2, rule.grid = {18, 17, 1}, rule.window = {5, 7, 1};
        if (kind == 3)
          n = 7 * 6 * 8, rule.rank = 3, rule.grid = {7, 6, 8}, rule.window = {3, 3, 2},
          rule.dilation = {2, 1, 3}, rule.causal_axis = {true, false, false}, rule.stride = {1, 2, 1};
        // Tile by tile, tiles as blocks, on grids that they do not divide.
        if (kind == 4)
          rule.rank = 2, rule.grid = {19, 21, 1}, rule.window = {7, 9, 1}, rule.stride = {3, 1, 1},
          rule.q_tile = {block / 8, 8, 0}, rule.k_tile = {8, block / 8, 0};
        if (kind == 5)
          rule.rank = 3, rule.grid = {6, 8, 29}, rule.window = {3, 6, 5}, rule.dilation = {1, 1, 2},
          rule.causal_axis = {true, false, false}, rule.q_tile = rule.k_tile = {4, 8, block / 32};
        if (kind >= 4) n = padded_tokens_of(rule, rule.q_tile), m = padded_tokens_of(rule, rule.k_tile);
        if (m == 0) m = n;
        base_case(c, host, r, {2, 4, 2, n, m, 64, 64, dtype}, true, true);
        c.mask = make_block_mask(host, rule, n, m, block, block);
        c.args.mask = &c.mask;
        add_masses(c, host, true, true);
        run_all(gpu, c.args, "kind " + std::to_string(kind) + " block " + std::to_string(block));
      }
}

// ---- masses by tiles
// ----------------------------------------------------------------------------------------

namespace {

/// Mask `kind` of kMasks for a case whose tensors are there; some change its keys.
constexpr int kMasks = 12;
void mask_case(Case& c, Context& host, Random& r, const Sizes& s, int kind) {
  BlockMask& m = c.mask;
  ElementRule& rule = m.rule;
  if (kind > 0) c.args.mask = &m;
  m.block_q = 48, m.block_k = 80;
  const auto some = [&](const Shape& shape, int64_t low, int64_t high) {
    std::vector<int32_t> v;
    int64_t count = 1;
    for (int64_t x : shape) count *= x;
    for (int64_t i = 0; i < count; ++i) v.push_back(static_cast<int32_t>(r.integer(low, high)));
    return ints(host, shape, v);
  };
  if (kind == 1) rule.causal = true;
  // Some rows see nothing.
  if (kind == 2) rule.causal = rule.band = true, rule.left = 37, rule.sinks = 3, rule.offset = -9;
  if (kind == 3) rule.segment_q = some({s.b, s.n}, 0, 3), rule.segment_k = some({1, s.m}, 0, 2);
  if (kind == 4) {
    rule.bitmap = host.allocate(DType::u8, {1, s.h, s.n, (s.m + 7) / 8});
    for (int64_t i = 0; i < rule.bitmap.numel(); ++i)
      rule.bitmap.data<uint8_t>()[i] = static_cast<uint8_t>(r.integer(0, 255));
  }
  if (kind == 5) {
    m.key_length = some({s.b}, 0, s.m);
    m.key_valid = host.allocate(DType::u8, {s.b, s.m});
    for (int64_t i = 0; i < s.b * s.m; ++i) m.key_valid.data<uint8_t>()[i] = r.chance(0.7) ? 1 : 0;
  }
  if (kind == 6) m.row_begin = some({s.b, 1, s.n}, -3, s.m), m.row_end = some({s.b, 1, s.n}, -3, s.m + 3);
  if (kind == 7) {
    rule.causal = true;
    m = make_block_mask(host, rule, s.n, s.m, 64, 64);
  }
  if (kind == 8) rule.causal = true, random_lists(m, host, r, s);
  if (kind == 9) random_lists(m, host, r, s), m.key_length = some({s.b}, 0, s.m);
  if (kind == 10) {
    rule.band = true, rule.left = 50, rule.right = 20;
    m.q_order = random_order(host, r, s.n), m.k_order = random_order(host, r, s.m);
  }
  if (kind == 11) {
    const int64_t size = 16, per = s.m / size;
    std::vector<int32_t> table(static_cast<size_t>(s.b * per));
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i) + 1;
    std::shuffle(table.begin(), table.end(), r.engine);
    c.args.pages = {ints(host, {s.b, per}, table), size};
    c.args.k = fresh(host, r, s.dtype, {s.b * per + 1, s.hkv, size, s.d}, true);
    c.args.v = fresh(host, r, s.dtype, {s.b * per + 1, s.hkv, size, s.e}, true);
    fill(c.args.k, [&] { return r.normal(); });
    fill(c.args.v, [&] { return r.normal(); });
    m.key_length = some({s.b}, 0, s.m);
    rule.causal = true;
  }
}
constexpr int kScores = 7;
void score_case(Case& c, Context& host, Random& r, const Sizes& s, int kind) {
  AttentionArgs& a = c.args;
  const auto heads = [&](int64_t count) {
    const Tensor t = floats(host, {count});
    for (int64_t i = 0; i < count; ++i) t.data<float>()[i] = r.normal();
    return t;
  };
  if (kind == 1) a.soft_cap = 2;
  if (kind == 2) {
    a.bias.dense = fresh(host, r, DType::f32, {1, s.h, s.n, s.m}, true);
    fill(a.bias.dense, [&] { return r.chance(0.1) ? -std::numeric_limits<float>::infinity() : r.normal(); });
  }
  if (kind == 3) a.bias.slope = heads(s.h);
  if (kind == 4) a.bias.relative = heads(2 * 30 + 1).reshape({1, 61});
  if (kind == 5) a.sink_logit = heads(s.h);
  if (kind == 6) a.scale = -a.scale;
}
/// By tiles, on the lse of the mma.sync kernel and on that of the card's fastest; what is wrong, or "".
std::string masses_by_tiles(Context& gpu, const Case& c) {
  const Expected expected = reference(c.args);
  for (const char* kernel : {"sm80", ""}) {
    const ForceKernel force("sm80");
    if (!*kernel) unsetenv("ATTNBENCH_CUDA_ATTENTION");
    Mirror m(gpu, c.args);
    // Without rows there is nothing to plan.
    const std::string plan =
        c.args.q.numel() > 0 ? gpu.backend().attention_plan(m.args) : "no rows, masses by tiles";
    if (plan.find("masses by tiles") == std::string::npos) return plan;
    attention(gpu, m.args);
    gpu.backend().synchronize();
    m.fetch(gpu);
    const std::string wrong = compare(c.args, expected, product_rounding("sm80", c.args.q.dtype()));
    if (!wrong.empty()) return plan + ": " + wrong;
  }
  return "";
}

}  // namespace

TEST_CASE("masses by tiles: masks, scores, dtypes, head sizes, ragged shapes, grouped heads") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(37);
  int64_t turn = 0;
  for (DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (int64_t d : {40, 64, 80, 128, 256})
      for (int kind = 0; kind < kMasks; ++kind) {
        ++turn;
        Sizes s;
        s.b = 1 + turn % 2, s.hkv = 1 + turn % 3 / 2, s.h = s.hkv * (turn % 5 == 0 ? 3 : 1 + turn % 2);
        s.n = turn % 7 == 0 ? 64 : r.integer(1, 140), s.m = kind == 11 ? 160 : r.integer(1, 220);
        s.d = d, s.e = turn % 4 == 0 ? d / 2 + 3 : d, s.dtype = dtype;
        Case c;
        base_case(c, host, r, s, turn % 3 == 1, turn % 2 == 0);
        mask_case(c, host, r, s, kind);
        const int scores = static_cast<int>(turn % kScores);
        score_case(c, host, r, s, scores);
        add_masses(c, host, turn % 4 != 3, turn % 4 != 1);
        // Heads outermost in memory, for once.
        if (turn % 3 == 0 && c.args.mass_per_key)
          c.args.mass_per_key = floats(host, {s.h, s.b, s.m}).permute({1, 0, 2});
        INFO("mask " << kind << " scores " << scores << " " << name(dtype) << " B" << s.b << " H" << s.h
                     << "/" << s.hkv << " N" << s.n << " M" << s.m << " D" << d);
        CHECK(masses_by_tiles(gpu, c) == "");
      }
}

TEST_CASE("masses by tiles: neighbourhoods of one to three axes, row by row and tile by tile") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Random r(seed + 5000);
    Case c;
    Sizes s;
    s.b = 1 + static_cast<int64_t>(seed % 2), s.h = 4, s.hkv = 2, s.d = s.e = 48;
    s.dtype = seed % 3 == 0 ? DType::f32 : DType::bf16;
    c.text = "seed " + std::to_string(seed);
    random_neighbourhood(c, r, s, c.text);
    if (seed % 2 == 0) random_tiles(c, r, s, c.text);
    base_case(c, host, r, s, true, true);
    c.mask.block_q = r.integer(1, 70), c.mask.block_k = r.integer(1, 70);
    c.args.mask = &c.mask;
    add_masses(c, host, true, true);
    INFO(c.text);
    CHECK(masses_by_tiles(gpu, c) == "");
  }
}

TEST_CASE("masses by tiles: long tiles of rows where there are rows enough") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(41);
  for (DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (int64_t d : {40, 64, 128, 256})
      for (int kind : {0, 1, 2, 5}) {
        Sizes s;
        // Two tiles a head, on more heads than any card has multiprocessors for.
        s.b = 2, s.hkv = 25, s.h = 50, s.n = 130 + r.integer(0, 30), s.m = r.integer(40, 110);
        s.d = s.e = d, s.dtype = dtype;
        Case c;
        base_case(c, host, r, s, false, false);
        c.args.lse = floats(host, {s.b, s.h, s.n});
        mask_case(c, host, r, s, kind);
        c.mask.block_q = 128;
        add_masses(c, host, true, kind > 0);
        {
          const ForceKernel force("sm80");
          Mirror m(gpu, c.args);
          const std::string plan = backend->attention_plan(m.args);
          CHECK(plan.find(dtype == DType::f32 && d == 256 ? "by tiles 64x" : "by tiles 128x") !=
                std::string::npos);
        }
        INFO("mask " << kind << " " << name(dtype) << " N" << s.n << " M" << s.m << " D" << d);
        CHECK(masses_by_tiles(gpu, c) == "");
      }
}

TEST_CASE("masses by tiles: single queries split their keys, empty shapes and hidden rows give 0") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(43);
  for (DType dtype : {DType::bf16, DType::f32})
    for (int64_t n : {0, 1, 5})
      for (int64_t m : {0, 1, 3000}) {
        Case c;
        base_case(c, host, r, {1, 4, 2, n, m, 64, 64, dtype}, false, true);
        add_masses(c, host, true, true);
        INFO(name(dtype) << " N" << n << " M" << m);
        CHECK(masses_by_tiles(gpu, c) == "");
      }
  for (int kind = 0; kind < 3; ++kind) {
    Case c;
    const int64_t n = 150, m = 170;
    base_case(c, host, r, {1, 2, 1, n, m, 64, 64, DType::f32}, false, true);
    c.args.mask = &c.mask;
    if (kind == 0) c.mask.key_length = ints(host, {1}, {0});
    if (kind == 1) c.mask.rule.causal = true, c.mask.rule.offset = -n;
    if (kind == 2) {
      // Every score is -inf; products alone would be finite.
      c.args.bias.dense = floats(host, {1, 1, n, m});
      std::fill_n(c.args.bias.dense.data<float>(), n * m, -std::numeric_limits<float>::infinity());
    }
    add_masses(c, host, true, true);
    INFO("hidden by " << kind);
    CHECK(masses_by_tiles(gpu, c) == "");
    for (int64_t i = 0; i < c.args.mass_per_key.numel(); ++i)
      REQUIRE(c.args.mass_per_key.data<float>()[i] == 0.0f);
  }
}

TEST_CASE("masses by tiles: chunks of several tiles agree with the device's oracle, bit for bit each time") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(47);
  for (DType dtype : {DType::bf16, DType::f32})
    for (int kind = 0; kind < 4; ++kind) {
      Case c;
      // 20 tiles of 128 rows a head, in 14 chunks on a card of 132 multiprocessors.
      const int64_t h = 160, n = 2500, m = kind == 2 ? 1700 : n, d = 64;
      base_case(c, host, r, {1, h, h / 4, n, m, d, d, dtype}, false, false);
      c.mask.rule.causal = kind == 1 || kind == 3;
      if (kind == 2) c.mask.rule.band = true, c.mask.rule.left = 300, c.mask.rule.right = 100;
      if (kind == 3) c.mask = make_block_mask(host, c.mask.rule, n, m, 128, 128);
      c.args.mask = &c.mask;
      add_masses(c, host, true, kind == 3);
      std::vector<float> masses[3], blocks[3];
      for (int which = 0; which < 3; ++which) {
        const ForceKernel force(which == 0 ? "reference" : "sm80");
        Mirror there(gpu, c.args);
        attention(gpu, there.args);
        gpu.backend().synchronize();
        there.fetch(gpu);
        const auto copy = [](const Tensor& t, std::vector<float>& to) {
          if (t) to.assign(t.data<float>(), t.data<float>() + t.numel());
        };
        copy(c.args.mass_per_key, masses[which]), copy(c.args.mass_per_block, blocks[which]);
      }
      INFO(name(dtype) << " kind " << kind);
      CHECK(masses[1] == masses[2]);
      CHECK(blocks[1] == blocks[2]);
      for (const auto* of : {masses, blocks}) {
        double away = 0, size = 0, worst = 0;
        for (size_t i = 0; i < of[0].size(); ++i) {
          const double want = of[0][i], x = of[1][i] - want;
          away += x * x, size += want * want, worst = std::max(worst, std::fabs(x) - 5e-5 * std::fabs(want));
        }
        CHECK(std::sqrt(away) <= 1e-5 * std::sqrt(size));
        CHECK(worst <= 1e-30);
      }
    }
}

TEST_CASE("masses by tiles: calls that stay on the oracle say why") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(53);
  for (int kind = 0; kind < 3; ++kind) {
    Case c;
    const Sizes s{1, 2, 2, 70, 90, kind == 0 ? 264 : 64, 64, DType::bf16};
    base_case(c, host, r, s, false, true);
    c.args.mask = &c.mask;
    if (kind == 1) random_gather(c, host, r, s);
    if (kind == 2) {
      const Tensor keys = fresh(host, r, s.dtype, {1, 1, 100, s.d}, false);
      fill(keys, [&] { return r.normal(); });
      c.args.relative.keys = keys.select(0, 0), c.args.relative.origin = 50;
    }
    add_masses(c, host, true, true);
    {
      const ForceKernel force("sm80");
      Mirror m(gpu, c.args);
      CHECK(backend->attention_plan(m.args).find("masses by the reference: ") != std::string::npos);
    }
    run_all(gpu, c.args, "masses on the oracle, kind " + std::to_string(kind));
  }
}

TEST_CASE("long rows: f32 stays within 1e-5 of double, in dense, causal and split form") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(13);
  for (int64_t n : {3, 130}) {
    Case c;
    base_case(c, host, r, {1, 4, 2, n, 3000, 64, 64, DType::f32}, false, true);
    for (int64_t split : {0, 1, 7}) {
      c.args.split_keys = split;
      const Expected expected = reference(c.args);
      for (const char* kernel : kKernels) {
        const std::string wrong = run_on(gpu, kernel, c.args, expected);
        CHECK(wrong == "");
        double error = 0, size = 0;
        for (size_t i = 0; i < expected.o.size(); ++i) {
          const double got = c.args.o.data<float>()[i];  // contiguous
          error += (got - expected.o[i]) * (got - expected.o[i]), size += expected.o[i] * expected.o[i];
        }
        INFO(kernel << " split " << split << " N " << n);
        CHECK(std::sqrt(error / size) < 1e-5);
      }
    }
  }
}

TEST_CASE("the fast kernels take what they are meant to take") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(23);
  const auto plan = [&](const Sizes& s, bool causal, bool outputs) {
    Case c;
    base_case(c, host, r, s, false, outputs);
    c.mask.rule.causal = causal;
    c.args.mask = &c.mask;
    Mirror m(gpu, c.args);
    return backend->attention_plan(m.args);
  };
  const ForceKernel force("sm80");
  CHECK(plan({1, 1, 1, 200, 200, 128, 128, DType::bf16}, true, false).find("sm80 64x64 lean") == 0);
  CHECK(plan({1, 1, 1, 200, 200, 100, 100, DType::bf16}, true, false).find("full") != std::string::npos);
  CHECK(plan({1, 1, 1, 200, 200, 64, 64, DType::f32}, true, true).find("terms") != std::string::npos);
  CHECK(plan({1, 8, 2, 1, 9000, 64, 64, DType::f16}, true, false).find("packed") != std::string::npos);
  CHECK(plan({1, 1, 1, 20, 20, 264, 264, DType::bf16}, true, false).find("reference: ") == 0);
}

TEST_CASE("single queries gather the keys of their lists: few and many entries, empty lists, grouped heads") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  const ForceKernel force("gather");
  Random r(41);
  int64_t taken = 0;
  std::string why;  // rows that are not aligned, or a card without clusters
  for (DType dtype : {DType::bf16, DType::f16})
    for (int64_t d : {64, 128})
      for (int64_t group : {1, 4})
        for (int64_t most : {1, 3, 70, 700, 2000}) {
          const Sizes s{2, 2 * group, 2, 1, 2003, d, d, dtype};
          Case c;
          base_case(c, host, r, s, r.chance(0.1), false);
          std::vector<int32_t> begin, count, index, keys(static_cast<size_t>(s.m));
          for (size_t j = 0; j < keys.size(); ++j) keys[j] = static_cast<int32_t>(j);
          for (int64_t i = 0; i < s.b * s.h; ++i) {  // the second list is empty, the third one has one entry
            std::shuffle(keys.begin(), keys.end(), r.engine);
            const int64_t take = i == 1 ? 0 : i == 2 ? 1 : r.integer((most + 1) / 2, most);
            begin.push_back(static_cast<int32_t>(index.size())), count.push_back(static_cast<int32_t>(take));
            index.insert(index.end(), keys.begin(), keys.begin() + take);
          }
          c.mask.gather = {ints(host, {s.b, s.h, 1}, begin), ints(host, {s.b, s.h, 1}, count),
                           ints(host, {static_cast<int64_t>(index.size())}, index)};
          c.args.mask = &c.mask;
          if (r.chance(0.3)) sprinkle(c, r);
          const std::string text = std::string(name(dtype)) + " D " + std::to_string(d) + " group " +
                                   std::to_string(group) + " entries " + std::to_string(most) + c.text;
          Mirror m(gpu, c.args);
          std::string plan;
          try {
            plan = backend->attention_plan(m.args);
          } catch (const Unsupported& e) {
            why = e.what();
            continue;
          }
          CHECK(plan.find("gather, ") == 0);
          ++taken;
          attention(gpu, m.args);
          gpu.backend().synchronize();
          m.fetch(gpu);
          INFO(text << ": " << plan);
          CHECK(compare(c.args, reference(c.args), 0) == "");
        }
  if (why.find("no clusters") == std::string::npos) CHECK(taken >= 30);
}

TEST_CASE("a call may ask for the mma.sync kernel, also where the card has a faster one") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(31);
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    Case c;
    base_case(c, host, r, {1, 4, 2, 300, 300, 128, 128, dtype}, false, false);
    c.mask.rule.causal = true;
    c.args.mask = &c.mask;
    c.args.kernel = AttentionKernel::mma_sync;
    const Expected expected = reference(c.args);
    Mirror m(gpu, c.args);
    CHECK(backend->attention_plan(m.args).find("sm80 ") == 0);
    attention(gpu, m.args);
    gpu.backend().synchronize();
    m.fetch(gpu);
    CHECK(compare(c.args, expected, product_rounding("sm80", dtype)) == "");
  }
  Case wide;
  base_case(wide, host, r, {1, 1, 1, 20, 20, 264, 264, DType::bf16}, false, false);
  wide.args.kernel = AttentionKernel::mma_sync;
  Mirror m(gpu, wide.args);
  CHECK_THROWS_AS(attention(gpu, m.args), Unsupported);
  CHECK_THROWS_AS(attention(host, wide.args), Unsupported);
}

TEST_CASE("a thousand rows: the fast kernels, the device's oracle and the CPU agree") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 2), gpu(*backend);
  Random r(29);
  for (DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (int64_t d : {64, 128})
      for (int kind = 0; kind < 4; ++kind) {
        Case c;
        const int64_t n = 1030, m = kind == 1 ? 1500 : n;
        // Enough tiles for the long ones of every card.
        base_case(c, host, r, {2, 16, 4, n, m, d, d, dtype}, false, false);
        c.args.lse = floats(host, {2, 16, n});
        ElementRule rule;
        rule.causal = kind >= 1;
        if (kind == 2) rule.band = true, rule.left = 200, rule.sinks = 4;
        if (kind == 3)
          c.mask = make_block_mask(host, rule, n, m, 128, 128);
        else
          c.mask.rule = rule;
        c.args.mask = &c.mask;
        std::vector<double> o[3], lse[3];
        for (int which = 0; which < 3; ++which) {
          if (which == 2) {
            poison(c.args.o), poison(c.args.lse);
            attention(host, c.args);
          } else {
            const ForceKernel force(kKernels[which]);
            Mirror there(gpu, c.args);
            attention(gpu, there.args);
            gpu.backend().synchronize();
            there.fetch(gpu);
          }
          for (int64_t i = 0; i < c.args.o.numel(); ++i)  // contiguous
            o[which].push_back(dtype == DType::f32    ? static_cast<double>(c.args.o.data<float>()[i])
                               : dtype == DType::bf16 ? static_cast<float>(c.args.o.data<bf16>()[i])
                                                      : static_cast<float>(c.args.o.data<f16>()[i]));
          for (int64_t i = 0; i < c.args.lse.numel(); ++i) lse[which].push_back(c.args.lse.data<float>()[i]);
        }
        // In norms: half an epsilon of the stored result and one of p at most, either side; f32 as the
        // operator promises.
        const double most = dtype == DType::f32 ? 1e-5 : epsilon_of(dtype);
        for (int which = 1; which < 3; ++which) {
          double away = 0, size = 0, lse_away = 0;
          for (size_t i = 0; i < o[0].size(); ++i) {
            const double x = o[which][i] - o[0][i];
            away += x * x, size += o[0][i] * o[0][i];
          }
          for (size_t i = 0; i < lse[0].size(); ++i)
            lse_away = std::max(lse_away, std::fabs(lse[which][i] - lse[0][i]));
          INFO(name(dtype) << " D " << d << " kind " << kind << ": "
                           << (which == 1 ? "sm80 against the oracle" : "CPU against the oracle"));
          CHECK(std::sqrt(away / size) <= most);
          CHECK(lse_away <= 1e-4);
        }
      }
}

TEST_CASE(
    "relative embeddings in random shapes and under random masks agree with double precision on the device") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  const char* only = std::getenv("ATTNBENCH_SEED");
  // Half as many as above: these cases are larger.
  for (int64_t seed = only ? std::atoll(only) : 0; seed < (only ? std::atoll(only) + 1 : seeds() / 2);
       ++seed) {
    Case c;
    relative_case(c, host, static_cast<uint64_t>(seed));
    run_all(gpu, c.args, c.text);
  }
}

TEST_CASE(
    "relative embeddings that are not finite reach the rows that see them, and no others, on the device") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Case c;
    Random r(seed + 5000);
    odd_embeddings(c, host, r);
    run_all(gpu, c.args, c.text);
  }
}

TEST_CASE("relative embeddings have tiles, but for what takes distances apart or is too wide") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(37);
  const ForceKernel force("sm80");
  const auto plan = [&](int64_t d, DType dtype, int which, auto&& change) {
    Case c;
    base_case(c, host, r, {1, 2, 1, 200, 200, d, d, dtype}, false, false);
    random_embeddings(c.args, host, r, {1, 2, 1, 200, 200, d, d, dtype}, which, c.text);
    c.mask.rule.causal = true;
    c.args.mask = &c.mask;
    change(c);
    Mirror m(gpu, c.args);
    return backend->attention_plan(m.args);
  };
  const auto nothing = [](Case&) {};
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    CHECK(plan(64, dtype, 0, nothing).find(dtype == DType::f32 ? "sm80 64x32 lean" : "sm80 64x64 lean") == 0);
    CHECK(plan(64, dtype, 0, nothing).find("relative") != std::string::npos);
    CHECK(plan(64, dtype, 2, nothing).find("terms, relative") != std::string::npos);
    CHECK(plan(136, dtype, 0, nothing).find("reference: rows longer than 128") == 0);
  }
  CHECK(plan(128, DType::bf16, 2, nothing).find("sm80 64x32 terms, relative") == 0);
  CHECK(plan(64, DType::f32, 0, [&](Case& c) {
          c.mask.q_order = random_order(host, r, 200);
        }).find("reference: distances") == 0);
  CHECK(plan(64, DType::f32, 0, [&](Case& c) {
          c.mask.k_order = random_order(host, r, 200);
        }).find("reference: distances") == 0);
}

TEST_CASE("relative embeddings over two thousand rows: the fast kernel and the CPU agree in norm") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 2), gpu(*backend);
  Random r(41);
  for (DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (int64_t d : {64, 128})
      for (int kind = 0; kind < 4; ++kind) {
        // Music Transformer's call; not causal and clipped (Shaw et al.); values too; blocks of keys.
        Case c;
        const int64_t n = 2050, m = kind == 1 ? 2300 : n, reach = kind == 0 ? 1024 : 400;
        base_case(c, host, r, {1, 4, 2, n, m, d, d, dtype}, false, false);
        c.args.lse = floats(host, {1, 4, n});
        const auto table = [&] {
          const Tensor t = fresh(host, r, dtype, {1, 4, kind == 1 ? 2 * reach - 1 : reach, d}, false);
          fill(t, [&] { return r.normal(); });
          return t.select(0, 0);
        };
        c.args.relative.keys = table();
        if (kind == 2) c.args.relative.values = table();
        c.args.relative.origin = reach - 1, c.args.relative.clip = kind == 1;
        ElementRule rule;
        rule.causal = kind != 1;
        if (kind == 3) rule.band = true, rule.left = 700, rule.sinks = 70;
        if (kind == 3)
          c.mask = make_block_mask(host, rule, n, m, 128, 128);
        else
          c.mask.rule = rule;
        c.args.mask = &c.mask;
        std::vector<double> o[2], lse[2];
        for (int which = 0; which < 2; ++which) {
          poison(c.args.o), poison(c.args.lse);
          if (which == 0) {
            attention(host, c.args);
          } else {
            const ForceKernel force("sm80");
            Mirror there(gpu, c.args);
            INFO(backend->attention_plan(there.args));
            attention(gpu, there.args);
            gpu.backend().synchronize();
            there.fetch(gpu);
          }
          for (int64_t h = 0; h < 4; ++h)
            for (int64_t i = 0; i < n; ++i) {
              lse[which].push_back(element(c.args.lse, {0, h, i}));
              for (int64_t x = 0; x < d; ++x) o[which].push_back(element(c.args.o, {0, h, i, x}));
            }
        }
        double away = 0, size = 0, lse_away = 0;
        for (size_t i = 0; i < o[0].size(); ++i)
          away += (o[1][i] - o[0][i]) * (o[1][i] - o[0][i]), size += o[0][i] * o[0][i];
        for (size_t i = 0; i < lse[0].size(); ++i)
          lse_away = std::max(lse_away, std::fabs(lse[1][i] - lse[0][i]));
        INFO(name(dtype) << " D " << d << " kind " << kind);
        // As for plain rows, see above.
        CHECK(std::sqrt(away / size) <= (dtype == DType::f32 ? 1e-5 : epsilon_of(dtype)));
        CHECK(lse_away <= 1e-4);
      }
}

TEST_CASE("a call is captured into a graph and replays") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(17);
  Case c;
  base_case(c, host, r, {2, 4, 2, 150, 170, 64, 64, DType::bf16}, false, true);
  ElementRule rule;
  rule.causal = true;
  c.mask = make_block_mask(host, rule, 150, 170, 64, 64);
  c.args.mask = &c.mask;
  add_masses(c, host, true, true);
  const Expected expected = reference(c.args);
  for (const char* kernel : kKernels) {
    const ForceKernel force(kernel);
    Mirror m(gpu, c.args);
    attention(gpu, m.args);  // brings the workspace into the arena
    gpu.backend().synchronize();
    std::unique_ptr<DeviceGraph> graph;
    try {
      graph = gpu.backend().capture([&] { attention(gpu, m.args); });
    } catch (const Unsupported& e) {
      std::printf("no graph: %s\n", e.what());
      continue;
    }
    Mirror fresh(gpu, c.args);  // poisons the host's copies
    for (auto& [there, here] : m.outputs)
      gpu.backend().copy_bytes(there.raw(), DeviceKind::cuda, here.raw(), DeviceKind::cpu,
                               static_cast<size_t>(here.nbytes()));
    graph->replay(1);
    gpu.backend().synchronize();
    m.fetch(gpu);
    CHECK(compare(c.args, expected, product_rounding(kernel, DType::bf16)) == "");
  }
}

TEST_CASE("the accounting pass counts device lists like host lists, and normal calls do not read them") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context host(cpu_backend(), 1), gpu(*backend);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Case c;
    random_case(c, host, seed);
    Mirror m(gpu, c.args);
    host.cost().reset(), gpu.cost().reset();
    host.cost().set_exact(true), gpu.cost().set_exact(true);
    attention(host, c.args);
    attention(gpu, m.args);
    if (!(host.cost().total() == gpu.cost().total()))
      FAIL_CHECK(c.text << ": host charged " << host.cost().total().matmul << " and the device "
                        << gpu.cost().total().matmul << " matmul FLOPs");
  }
}

TEST_CASE("more than 2^31 elements are addressed with 64-bit offsets", "[.big]") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  // q and o of [1, 65, 2^19, 64] bf16: 4.06 GiB each, 2.18e9 elements; k and v are short. Values of a few
  // rows, the last ones included, are checked against double precision.
  const int64_t h = 65, n = int64_t{1} << 19, m = 70, d = 64;
  const int64_t need = 2 * h * n * d * 2 + (int64_t{1} << 28);
  const DeviceMemory memory = backend->memory_info();
  if (memory.free > 0 && memory.free < need) {
    std::printf("GPU tests skipped: this one needs %.1f GiB of device memory, %.1f are free\n",
                static_cast<double>(need) / 0x1p30, static_cast<double>(memory.free) / 0x1p30);
    return;
  }
  Context host(cpu_backend(), 1), gpu(*backend);
  Random r(19);
  Case c;
  base_case(c, host, r, {1, h, 1, 4, m, d, d, DType::bf16}, false, false);
  AttentionArgs a = c.args;
  Tensor k = to_device(gpu, a.k), v = to_device(gpu, a.v);
  Tensor q = gpu.allocate(DType::bf16, {1, h, n, d}), o = gpu.allocate(DType::bf16, {1, h, n, d});
  // One random plane of q, repeated; o poisoned by a plane of NaN.
  std::vector<bf16> plane(static_cast<size_t>(n * d)), nan(plane.size());
  std::memset(static_cast<void*>(nan.data()), 0xff, nan.size() * sizeof(bf16));
  for (size_t i = 0; i < plane.size(); ++i) plane[i] = bf16(r.normal());
  for (int64_t i = 0; i < h; ++i) {
    const size_t bytes = plane.size() * sizeof(bf16);
    gpu.backend().copy_bytes(bytes_at(q, i * n * d), DeviceKind::cuda, plane.data(), DeviceKind::cpu, bytes);
    gpu.backend().copy_bytes(bytes_at(o, i * n * d), DeviceKind::cuda, nan.data(), DeviceKind::cpu, bytes);
  }
  for (const char* kernel : kKernels) {
    const ForceKernel force(kernel);
    AttentionArgs big = a;
    big.q = q, big.k = k, big.v = v, big.o = o;
    attention(gpu, big);
    gpu.backend().synchronize();
    for (int64_t row : {int64_t{0}, n / 2 - 2, n - 4}) {
      for (int64_t head : {int64_t{0}, int64_t{31}, h - 1}) {
        for (int64_t hh = 0; hh < h; ++hh)
          std::memcpy(bytes_at(a.q, hh * 4 * d), plane.data() + row * d,
                      static_cast<size_t>(4 * d) * sizeof(bf16));
        AttentionArgs one = a;
        one.q = a.q.slice(1, head, head + 1), one.o = a.o.slice(1, head, head + 1);
        gpu.backend().copy_bytes(one.o.raw(), DeviceKind::cpu, bytes_at(o, (head * n + row) * d),
                                 DeviceKind::cuda, static_cast<size_t>(4 * d) * sizeof(bf16));
        CHECK(compare(one, reference(one), product_rounding(kernel, DType::bf16)) == "");
      }
    }
  }
}
