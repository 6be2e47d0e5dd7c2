// cuDNN's attention against double precision on the host and against the engine on the device, and what is
// refused, with the reason. Without a device or without the library: says why and stops.
#include <cstdio>
#include <cstring>
#include <memory>

#include "inputs/inputs.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/core/cuda_loader.hpp"
#include "methods/method.hpp"
#include "tests/attention/cases.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
using namespace attnbench::attention_test;

namespace {

/// Host tensors of a call, and the same on the device. tokens_first: memory is [B, N, H, D], as layers have
/// it after their projections; the views stay [B, H, N, D].
struct Trial {
  AttentionArgs host, device;
  BlockMask mask;

  struct Sizes {
    int64_t b, h, hkv, n, m, d, e;
    DType dtype;
    bool causal, tokens_first;
    std::string text() const {
      return std::string(name(dtype)) + " B " + std::to_string(b) + " H " + std::to_string(h) + "/" +
             std::to_string(hkv) + " N " + std::to_string(n) + " M " + std::to_string(m) + " D " +
             std::to_string(d) + " E " + std::to_string(e) + (causal ? " causal" : "") +
             (tokens_first ? " BNHD" : "");
    }
  };

  Trial(Context& cpu, Context& gpu, const Sizes& s, uint64_t seed) {
    Random r(seed);
    const auto pair = [&](Tensor& here, Tensor& there, Shape shape, bool poisoned) {
      if (s.tokens_first) std::swap(shape[1], shape[2]);
      Tensor memory = cpu.allocate(s.dtype, shape);
      if (poisoned)
        std::memset(memory.raw(), 0xff, static_cast<size_t>(memory.nbytes()));
      else
        fill(memory, [&] { return r.normal(); });
      Tensor other = gpu.allocate(s.dtype, shape);
      copy(gpu, memory, other);
      here = s.tokens_first ? memory.transpose(1, 2) : memory;
      there = s.tokens_first ? other.transpose(1, 2) : other;
    };
    pair(host.q, device.q, {s.b, s.h, s.n, s.d}, false);
    pair(host.k, device.k, {s.b, s.hkv, s.m, s.d}, false);
    pair(host.v, device.v, {s.b, s.hkv, s.m, s.e}, false);
    pair(host.o, device.o, {s.b, s.h, s.n, s.e}, true);
    tokens_first_ = s.tokens_first;
    host.scale = device.scale = 1.0f / std::sqrt(static_cast<float>(s.d));
    if (!s.causal) return;
    mask.rule.causal = true;
    host.mask = device.mask = &mask;
  }
  Trial(const Trial&) = delete;

  void fetch(Context& gpu) { copy(gpu, packed(device.o), packed(host.o)); }
  void poison(Context& gpu) {
    const Tensor memory = packed(host.o);
    std::memset(memory.raw(), 0xff, static_cast<size_t>(memory.nbytes()));
    copy(gpu, memory, packed(device.o));
  }

 private:
  Tensor packed(const Tensor& t) const { return tokens_first_ ? t.transpose(1, 2) : t; }
  bool tokens_first_ = false;
};

/// The device, when it is there and has the library; otherwise says what is missing.
Backend* device() {
  std::string why;
  Backend* backend = cuda_backend(why);
  if (backend) {
    Context cpu(cpu_backend(), 1), gpu(*backend);
    Trial t(cpu, gpu, {1, 1, 1, 64, 64, 64, 64, DType::bf16, false, false}, 1);
    try {
      library_attention(gpu, t.device);
      return backend;
    } catch (const Unsupported& e) {
      why = e.what();
      // Anything else that is refused at this shape is a mistake of ours, not an absence.
      const bool absent = why.find("cannot be opened") != std::string::npos ||
                          why.find("headers were not found") != std::string::npos;
      INFO(why);
      REQUIRE(absent);
    }
  }
  std::printf("GPU tests skipped: %s\n", why.c_str());
  return nullptr;
}

double relative_l2(const Tensor& got, const Tensor& want) {
  double difference = 0, norm = 0;
  for (int64_t a = 0; a < got.dim(0); ++a)
    for (int64_t b = 0; b < got.dim(1); ++b)
      for (int64_t c = 0; c < got.dim(2); ++c)
        for (int64_t d = 0; d < got.dim(3); ++d) {
          const double x = element(got, {a, b, c, d}), y = element(want, {a, b, c, d});
          difference += (x - y) * (x - y), norm += y * y;
        }
  return std::sqrt(difference / norm);
}

}  // namespace

TEST_CASE("cuDNN's attention agrees with double precision") {
  Backend* backend = device();
  if (!backend) return;
  Context cpu(cpu_backend(), 1), gpu(*backend);
  uint64_t seed = 100;
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const int64_t d : {64, 128})
      for (const bool causal : {false, true})
        for (const Trial::Sizes& s : {
                 Trial::Sizes{1, 1, 1, 64, 64, d, d, dtype, causal, false},
                 Trial::Sizes{2, 4, 4, 200, 200, d, d, dtype, causal, false},   // divides nothing
                 Trial::Sizes{2, 4, 2, 130, 130, d, d, dtype, causal, true},    // shared key heads, BNHD
                 Trial::Sizes{1, 6, 1, 65, 65, d, d, dtype, causal, false},     // one key head
                 Trial::Sizes{2, 2, 2, 100, 333, d, d, dtype, causal, false},   // more keys than queries
                 Trial::Sizes{3, 2, 1, 1, 257, d, d, dtype, causal, false},     // one query
                 Trial::Sizes{1, 2, 2, 150, 150, d, 64, dtype, causal, false},  // narrower values
             }) {
          INFO(s.text());
          Trial t(cpu, gpu, s, ++seed);
          const Expected expected = reference(t.host);
          try {
            library_attention(gpu, t.device);
            gpu.backend().synchronize();
          } catch (const Unsupported& e) {
            // The square shapes are what a baseline is for: those must run. The rest may be beyond a version.
            const bool plain = s.n == s.m && s.d == s.e;
            if (plain) FAIL_CHECK(e.what());
            if (!plain) std::printf("%s: %s\n", s.text().c_str(), e.what());
            continue;
          }
          t.fetch(gpu);
          const std::string wrong = compare(t.host, expected, epsilon_of(dtype) / 2);
          if (!wrong.empty()) FAIL_CHECK(wrong);
        }
}

TEST_CASE("cuDNN's attention agrees with the engine at lengths that no reference on the host reaches") {
  Backend* backend = device();
  if (!backend) return;
  Context cpu(cpu_backend(), 1), gpu(*backend);
  for (const bool causal : {false, true}) {
    const Trial::Sizes s{2, 4, 2, 4096, 4096, 128, 128, DType::bf16, causal, false};
    INFO(s.text());
    Trial t(cpu, gpu, s, 7 + causal);
    library_attention(gpu, t.device);
    t.fetch(gpu);
    Tensor library = cpu.allocate(s.dtype, t.host.o.shape());
    copy(cpu, t.host.o, library);
    t.poison(gpu);
    attention(gpu, t.device);
    t.fetch(gpu);
    // Both round p and o: two results of the same tolerance (2e-2 each to the truth) are this near at most.
    CHECK(relative_l2(library, t.host.o) <= 2e-2);
  }
}

TEST_CASE("a recorded call of cuDNN does what the call did, at new values too") {
  Backend* backend = device();
  if (!backend) return;
  Context cpu(cpu_backend(), 1), gpu(*backend);
  const Trial::Sizes s{1, 4, 4, 300, 300, 64, 64, DType::f16, true, false};
  Trial t(cpu, gpu, s, 11), other(cpu, gpu, s, 12);
  library_attention(gpu, t.device);
  const auto graph = gpu.backend().capture([&] { library_attention(gpu, t.device); });
  for (const auto& [from, to] :
       {std::pair(&other.host.q, &t.host.q), {&other.host.k, &t.host.k}, {&other.host.v, &t.host.v}})
    copy(cpu, *from, *to);
  for (const auto& [from, to] :
       {std::pair(&t.host.q, &t.device.q), {&t.host.k, &t.device.k}, {&t.host.v, &t.device.v}})
    copy(gpu, *from, *to);
  t.poison(gpu);
  graph->replay(2);
  gpu.backend().synchronize();
  t.fetch(gpu);
  const std::string wrong = compare(t.host, reference(t.host), epsilon_of(s.dtype) / 2);
  if (!wrong.empty()) FAIL_CHECK(wrong);
}

TEST_CASE("what cuDNN is not used for is refused with the reason") {
  Backend* backend = device();
  if (!backend) return;
  Context cpu(cpu_backend(), 1), gpu(*backend);
  const auto refuses = [&](const Trial::Sizes& s, const char* word, auto&& change) {
    Trial t(cpu, gpu, s, 5);
    change(t);
    INFO(word);
    CHECK_THROWS_AS(library_attention(gpu, t.device), Unsupported);
    CHECK_THROWS_WITH(library_attention(gpu, t.device), ContainsSubstring(word));
  };
  const Trial::Sizes plain{1, 2, 2, 32, 32, 64, 64, DType::bf16, true, false};
  const auto nothing = [](Trial&) {};
  Trial::Sizes s = plain;
  s.dtype = DType::f32;
  refuses(s, "f32", nothing);
  s = plain, s.d = s.e = 20;
  refuses(s, "20", nothing);
  s = plain, s.n = 40;
  refuses(s, "40", nothing);
  refuses(plain, "score rules", [](Trial& t) { t.device.soft_cap = 30; });
  refuses(plain, "o alone", [&](Trial& t) { t.device.lse = gpu.allocate(DType::f32, {1, 2, 32}); });
  refuses(plain, "other masks", [](Trial& t) { t.mask.rule.band = true, t.mask.rule.left = 3; });
  refuses(plain, "aligned ends", [](Trial& t) { t.mask.rule.offset = 2; });
}

TEST_CASE("dense by cuDNN, by the engine's kernels and by whichever is faster is the same attention") {
  Backend* backend = device();
  if (!backend) return;
  Context cpu(cpu_backend(), 1), gpu(*backend);
  const Method& dense = find_method("dense");
  Problem p;
  p.dtype = DType::bf16;
  p.heads = 4, p.kv_heads = 2, p.length = 700, p.head_dim = 128, p.causal = true;
  std::map<std::string, Tensor> found;
  for (const char* impl : {"cudnn", "engine", "auto", "fa2"}) {
    Context own(*backend);
    const auto instance =
        dense.make(own, p, resolve_params("dense", dense.info().params, {{"impl", impl}}, p));
    fill_instance(own, *instance, p);
    instance->prepare(own);
    instance->run(own);
    own.backend().synchronize();
    found[impl] = to_host(cpu, own, instance->outputs().at("o"));
    if (std::string(impl) == "auto") {
      REQUIRE(instance->decisions().size() == 1);
      const Decision d = instance->decisions()[0];
      std::printf("auto: %s, %s\n", d.value.str().c_str(), d.why.c_str());
      CHECK((d.value.str() == "cudnn" || d.value.str() == "engine"));
      CHECK_THAT(d.why, ContainsSubstring("ms"));
    } else {
      CHECK(instance->decisions().empty());
    }
  }
  CHECK(relative_l2(found["cudnn"], found["engine"]) <= 2e-2);
  CHECK(relative_l2(found["auto"], found["engine"]) <= 2e-2);
  CHECK(relative_l2(found["fa2"], found["engine"]) <= 2e-2);
}
