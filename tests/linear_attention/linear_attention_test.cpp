// The four forms of linear attention against the recurrence in double precision.
#include "kernels/linear_attention/linear_attention.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Form = LinearAttentionArgs::Form;

namespace {

struct Expected {
  std::vector<double> o, state, o_scale;
};

/// Token by token in double; o_scale is the same recurrence over magnitudes, which bounds the rounding.
Expected expected(const LinearAttentionArgs& a) {
  Expected e;
  const int64_t b = a.q.dim(0), h = a.q.dim(1), n = a.q.dim(2), d = a.q.dim(3), ev = a.v.dim(3);
  const auto at = [](const Tensor& t, int64_t i, int64_t j, int64_t k, int64_t l) {
    return get(t, i * t.stride(0) + j * t.stride(1) + k * t.stride(2) + l);
  };
  for (int64_t i = 0; i < b; ++i)
    for (int64_t j = 0; j < h; ++j) {
      std::vector<double> s(static_cast<size_t>(d * ev)), m(s.size());
      const double lambda = std::exp(get(a.log_decay, j));
      for (int64_t x = 0; x < d * ev && a.state_in; ++x) {
        s[static_cast<size_t>(x)] = at(a.state_in, i, j, x / ev, x % ev);
        m[static_cast<size_t>(x)] = std::fabs(s[static_cast<size_t>(x)]);
      }
      const auto push = [&](int64_t t) {
        for (int64_t x = 0; x < d; ++x)
          for (int64_t y = 0; y < ev; ++y) {
            const double kv = at(a.k, i, j, t, x) * at(a.v, i, j, t, y);
            const auto c = static_cast<size_t>(x * ev + y);
            s[c] = lambda * s[c] + kv;
            m[c] = lambda * m[c] + std::fabs(kv);
          }
      };
      if (!a.causal)
        for (int64_t t = 0; t < n; ++t) push(t);
      for (int64_t t = 0; t < n; ++t) {
        if (a.causal) push(t);
        for (int64_t y = 0; y < ev; ++y) {
          double o = 0, scale = 0;
          for (int64_t x = 0; x < d; ++x) {
            const double q = at(a.q, i, j, t, x);
            o += q * s[static_cast<size_t>(x * ev + y)];
            scale += std::fabs(q) * m[static_cast<size_t>(x * ev + y)];
          }
          e.o.push_back(o);
          e.o_scale.push_back(scale);
        }
      }
      e.state.insert(e.state.end(), s.begin(), s.end());
    }
  return e;
}

LinearAttentionArgs make(Context& ctx, DType type, const Shape& bhn, int64_t d, int64_t e, Random& r,
                         std::vector<double> log_decay) {
  LinearAttentionArgs a;
  a.q = random(ctx, type, {bhn[0], bhn[1], bhn[2], d}, r);
  a.k = random(ctx, type, {bhn[0], bhn[1], bhn[2], d}, r);
  a.v = random(ctx, type, {bhn[0], bhn[1], bhn[2], e}, r);
  a.o = poisoned(ctx, type, {bhn[0], bhn[1], bhn[2], e});
  a.log_decay = ctx.allocate(DType::f32, {bhn[1]});
  for (int64_t i = 0; i < bhn[1]; ++i)
    put(a.log_decay, i, log_decay[static_cast<size_t>(i) % log_decay.size()]);
  return a;
}

/// Sums of n d terms, each rounded, the weights themselves to two roundings; `parallel` rounds o in storage
/// in between, which the storage epsilon of the scale covers.
void run_and_check(Context& ctx, const LinearAttentionArgs& a) {
  const Expected e = expected(a);
  poison(a.o);
  if (a.state_out && a.state_out.raw() != a.state_in.raw()) poison(a.state_out);
  linear_attention(ctx, a);
  const double n = static_cast<double>(a.q.dim(2) + a.q.dim(3) + 8);
  std::vector<double> tolerance;
  for (double s : e.o_scale) {
    double t = n * 0x1p-24 * s + 1e-30;
    if (a.form == Form::parallel && a.q.dtype() != DType::f32) t += 0.5 * epsilon_of(a.q.dtype()) * s;
    tolerance.push_back(t);
  }
  check_close(a.o, e.o, tolerance);
  if (a.state_out) {
    double largest = 0;
    for (double s : e.state) largest = std::max(largest, std::fabs(s));
    check_close(a.state_out, e.state, {n * 0x1p-24 * (largest + static_cast<double>(a.q.dim(2)))});
  }
}

}  // namespace

TEST_CASE("every form equals the recurrence, for ragged lengths, wide values and carried states") {
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(21);
    for (int round = 0; round < 12; ++round) {
      const Shape bhn{r.integer(1, 2), r.integer(1, 3), r.integer(1, 150)};
      LinearAttentionArgs a = make(ctx, type, bhn, r.integer(1, 40), r.integer(1, 75), r, {-0.5, 0.0, -0.01});
      a.form = form;
      a.block_size = r.integer(1, 80);
      if (round % 2 == 0) a.state_in = random(ctx, DType::f32, {bhn[0], bhn[1], a.q.dim(3), a.v.dim(3)}, r);
      if (round % 3 == 0) a.state_out = ctx.allocate(DType::f32, {bhn[0], bhn[1], a.q.dim(3), a.v.dim(3)});
      INFO("round " << round << " N " << bhn[2] << " block " << a.block_size);
      run_and_check(ctx, a);
    }
  });
}

TEST_CASE("without causality every query sees the whole sum") {
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  const DType type = GENERATE(DType::f32, DType::bf16);
  Context ctx(cpu_backend(), 2);
  Random r(22);
  LinearAttentionArgs a = make(ctx, type, {2, 2, 101}, 17, 33, r, {0.0});
  a.form = form;
  a.block_size = 24;
  a.causal = false;
  run_and_check(ctx, a);
  a.state_in = random(ctx, DType::f32, {2, 2, 17, 33}, r);
  a.state_out = ctx.allocate(DType::f32, {2, 2, 17, 33});
  run_and_check(ctx, a);
  put(a.log_decay, 1, -0.1);
  CHECK_THROWS_AS(linear_attention(ctx, a), UsageError);
}

TEST_CASE("strong decay over long ranges neither overflows nor leaves subnormal noise") {
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Context ctx(cpu_backend(), 2);
  Random r(23);
  LinearAttentionArgs a = make(ctx, DType::f32, {1, 4, 700}, 8, 8, r,
                               {-8.0, -100.0, -std::numeric_limits<double>::infinity(), -1e-6});
  a.form = form;
  a.block_size = 128;  // lambda^-128 would be e^1024
  run_and_check(ctx, a);
  a.block_size = 700;
  run_and_check(ctx, a);
}

TEST_CASE("a sequence may be cut and continued from its state, in place") {
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Context ctx(cpu_backend(), 2);
  Random r(24);
  LinearAttentionArgs whole = make(ctx, DType::f32, {2, 3, 100}, 16, 20, r, {-0.1, -0.02});
  whole.form = form;
  whole.block_size = 32;
  linear_attention(ctx, whole);
  LinearAttentionArgs part = whole;
  part.o = poisoned(ctx, DType::f32, whole.o.shape());
  const Tensor o = part.o;
  const Tensor state = ctx.allocate(DType::f32, {2, 3, 16, 20});
  fill(state, 0.0);
  for (const auto& [begin, end] : {std::pair{0, 1}, std::pair{1, 47}, std::pair{47, 100}}) {
    part.q = whole.q.slice(2, begin, end);
    part.k = whole.k.slice(2, begin, end);
    part.v = whole.v.slice(2, begin, end);
    part.o = o.slice(2, begin, end);
    part.state_in = state;
    part.state_out = state;
    linear_attention(ctx, part);
  }
  check_close(o, values(whole.o), {116 * 16 * 0x1p-24 * 12});
}

TEST_CASE("strided heads of one buffer, and no tokens at all") {
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Context ctx(cpu_backend(), 2);
  Random r(25);
  const Tensor qkv = random(ctx, DType::f32, {2, 50, 3, 4, 16}, r);
  LinearAttentionArgs a;
  a.q = qkv.select(2, 0).transpose(1, 2);
  a.k = qkv.select(2, 1).transpose(1, 2);
  a.v = qkv.select(2, 2).transpose(1, 2);
  a.o = ctx.allocate(DType::f32, {2, 50, 4, 16}).transpose(1, 2);
  a.log_decay = ctx.allocate(DType::f32, {4});
  fill(a.log_decay, -0.05);
  a.form = form;
  run_and_check(ctx, a);
  for (const auto& s : {Shape{1, 2, 0}, Shape{0, 2, 5}}) {
    LinearAttentionArgs none = make(ctx, DType::f32, s, 3, 4, r, {-0.1});
    none.form = form;
    none.state_in = random(ctx, DType::f32, {s[0], s[1], 3, 4}, r);
    none.state_out = poisoned(ctx, DType::f32, {s[0], s[1], 3, 4});
    linear_attention(ctx, none);
    CHECK(same_bits(none.state_in, none.state_out));
    none.state_in = {};
    poison(none.state_out);
    linear_attention(ctx, none);
    for (double x : values(none.state_out)) CHECK(x == 0.0);
  }
}

TEST_CASE("linear attention does not depend on the thread count") {
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  const DType type = GENERATE(DType::f32, DType::bf16);
  Random r(26);
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  for (const auto& s : {Shape{1, 1, 130}, Shape{2, 3, 65}}) {
    LinearAttentionArgs a = make(one, type, s, 24, 150, r, {-0.03});
    a.form = form;
    linear_attention(one, a);
    LinearAttentionArgs b = a;
    b.o = poisoned(one, type, a.o.shape());
    linear_attention(three, b);
    CHECK(same_bits(a.o, b.o));
  }
}

TEST_CASE("linear attention charges its formula") {
  Context ctx(cpu_backend(), 1);
  Random r(27);
  LinearAttentionArgs a = make(ctx, DType::bf16, {2, 3, 50}, 8, 12, r, {-0.1});
  a.block_size = 16;
  const int64_t heads = 6, n = 50, d = 8, e = 12, block = 16;
  const int64_t read = 2 * heads * n * (2 * d + e) + 4 * 3, written = 2 * heads * n * e;
  for (Form form : {Form::chunk, Form::parallel, Form::recurrent, Form::quadratic}) {
    a.form = form;
    const Cost cost = charged(ctx, [&] { linear_attention(ctx, a); });
    CHECK(cost == linear_attention_cost(a));
    CHECK(cost.bytes_read == read);
    CHECK(cost.bytes_written == written);
    if (form == Form::chunk || form == Form::parallel) {
      CHECK(cost.matmul == heads * n * (2 * block * d + 2 * block * e + 4 * d * e));
      CHECK(cost.elementwise == heads * n * block);
    } else if (form == Form::recurrent) {
      CHECK(cost.matmul == heads * 4 * n * d * e);
      CHECK(cost.elementwise == heads * n * d * e);
    } else {
      int64_t pairs = 0;  // the tiles at and below the diagonal, the last row of tiles 2 high
      for (int64_t i = 0; i < n; i += block)
        for (int64_t j = 0; j <= i; j += block) pairs += std::min(block, n - i) * std::min(block, n - j);
      CHECK(cost.matmul == heads * 2 * pairs * (d + e));
    }
  }
}

TEST_CASE("linear attention refuses what does not fit") {
  Context ctx(cpu_backend(), 1);
  Random r(28);
  const LinearAttentionArgs good = make(ctx, DType::f32, {1, 2, 9}, 4, 6, r, {-0.1});
  const auto refuses = [&](const std::string& word, auto change) {
    LinearAttentionArgs a = good;
    change(a);
    CHECK_THROWS_AS(linear_attention(ctx, a), UsageError);
    CHECK_THROWS_WITH(linear_attention(ctx, a), ContainsSubstring(word));
  };
  refuses("block size is 0", [](auto& a) { a.block_size = 0; });
  refuses("'k'", [&](auto& a) { a.k = random(ctx, DType::f32, {1, 2, 8, 4}, r); });
  refuses("'v'", [&](auto& a) { a.v = random(ctx, DType::f32, {1, 2, 8, 6}, r); });
  refuses("log_decay[1] is 0.5", [&](auto& a) {
    a.log_decay = ctx.allocate(DType::f32, {2});
    put(a.log_decay, 0, -1);
    put(a.log_decay, 1, 0.5);
  });
  refuses("log_decay[0] is", [&](auto& a) { a.log_decay = poisoned(ctx, DType::f32, {2}); });
  refuses("'state_in'", [&](auto& a) { a.state_in = ctx.allocate(DType::f32, {1, 2, 6, 4}); });
  refuses("must not overlap", [&](auto& a) { a.v = a.o; });
}
