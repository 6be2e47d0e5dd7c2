// The four forms of linear attention on the GPU against the recurrence in double precision on the host.
#include <algorithm>

#include "kernels/linear_attention/linear_attention.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Form = LinearAttentionArgs::Form;

namespace {

struct Case {
  Twin q, k, v, o, log_decay, state_in, state_out;
  LinearAttentionArgs options;
};

LinearAttentionArgs on_device(const Case& c) {
  LinearAttentionArgs a = c.options;
  a.q = c.q.device, a.k = c.k.device, a.v = c.v.device, a.o = c.o.device, a.log_decay = c.log_decay.device;
  a.state_in = c.state_in.device, a.state_out = c.state_out.device;
  return a;
}

double at(const Tensor& t, int64_t i, int64_t j, int64_t k, int64_t l) {
  return get(t, i * t.stride(0) + j * t.stride(1) + k * t.stride(2) + l);
}

/// Whether 16-bit operands meet on the tensor cores; otherwise everything is f32 until the end.
bool rounds_operands(const Case& c) {
  return c.q.host.dtype() != DType::f32 && c.options.form != Form::recurrent &&
         (c.options.causal || c.options.form != Form::quadratic) && c.q.host.dim(3) % 8 == 0 &&
         c.v.host.dim(3) % 8 == 0 && c.q.host.dim(3) <= 256;
}

/// Token by token in double; `scale` is the same recurrence over magnitudes, which bounds the rounding.
void run_and_check(Sides& s, const Case& c) {
  const int64_t b = c.q.host.dim(0), h = c.q.host.dim(1), n = c.q.host.dim(2), d = c.q.host.dim(3),
                e = c.v.host.dim(3);
  std::vector<double> o(static_cast<size_t>(b * h * n * e)), scale(o.size()), end, end_scale;
  size_t out = 0;
  for (int64_t i = 0; i < b; ++i)
    for (int64_t j = 0; j < h; ++j) {
      std::vector<double> sum(static_cast<size_t>(d * e)), magnitude(sum.size());
      const double lambda = std::exp(get(c.log_decay.host, j));
      for (int64_t x = 0; x < d * e && c.state_in; ++x) {
        sum[static_cast<size_t>(x)] = at(c.state_in.host, i, j, x / e, x % e);
        magnitude[static_cast<size_t>(x)] = std::fabs(sum[static_cast<size_t>(x)]);
      }
      const auto row = [&](const Tensor& of, int64_t t) {
        std::vector<double> r;
        for (int64_t x = 0; x < of.dim(3); ++x) r.push_back(at(of, i, j, t, x));
        return r;
      };
      const auto push = [&](int64_t t) {
        const std::vector<double> k = row(c.k.host, t), v = row(c.v.host, t);
        for (int64_t x = 0; x < d; ++x)
          for (int64_t y = 0; y < e; ++y) {
            const double kv = k[static_cast<size_t>(x)] * v[static_cast<size_t>(y)];
            double& m = magnitude[static_cast<size_t>(x * e + y)];
            double& z = sum[static_cast<size_t>(x * e + y)];
            z = lambda * z + kv, m = lambda * m + std::fabs(kv);
          }
      };
      if (!c.options.causal)
        for (int64_t t = 0; t < n; ++t) push(t);
      for (int64_t t = 0; t < n; ++t) {
        if (c.options.causal) push(t);
        const std::vector<double> q_row = row(c.q.host, t);
        for (int64_t x = 0; x < d; ++x) {
          const double q = q_row[static_cast<size_t>(x)];
          for (int64_t y = 0; y < e; ++y) {
            const size_t to = out + static_cast<size_t>(y);
            o[to] += q * sum[static_cast<size_t>(x * e + y)];
            scale[to] += std::fabs(q) * magnitude[static_cast<size_t>(x * e + y)];
          }
        }
        out += static_cast<size_t>(e);
      }
      end.insert(end.end(), sum.begin(), sum.end());
      end_scale.insert(end_scale.end(), magnitude.begin(), magnitude.end());
    }
  linear_attention(s.device, on_device(c));
  const double terms = static_cast<double>(n + d + 8);
  // Operands are rounded once: scores; weighed keys; and the state, made of weighed keys. Independent errors
  // add up to 0.7 units in the norm, which few elements can double. f16 keeps 2^-39 of a tile's largest.
  const double unit = rounds_operands(c) ? rounding_of(c.q.host.dtype()) : 0.0;
  const auto bound = [&](std::vector<double>& x, double units) {
    const double most = x.empty() ? 0.0 : *std::max_element(x.begin(), x.end());
    for (double& y : x) y = (terms * 0x1p-24 + units) * y + units * 0x1p-24 * most + 1e-30;
  };
  bound(scale, 2.05 * unit), bound(end_scale, 1.05 * unit);
  check_close(s.fetch(c.o), o, scale);
  if (c.state_out) check_close(s.fetch(c.state_out), end, end_scale);
  if (unit > 0.0) check_norm(s.fetch(c.o), o, 2 * unit);
}

Case make(Sides& s, DType type, const Shape& bhn, int64_t d, int64_t e,
          const std::vector<double>& log_decay) {
  Case c;
  c.q = s.random(type, {bhn[0], bhn[1], bhn[2], d});
  c.k = s.random(type, {bhn[0], bhn[1], bhn[2], d});
  c.v = s.random(type, {bhn[0], bhn[1], bhn[2], e});
  c.o = s.poisoned(type, {bhn[0], bhn[1], bhn[2], e});
  const Tensor l = s.host.allocate(DType::f32, {bhn[1]});
  for (int64_t i = 0; i < bhn[1]; ++i) put(l, i, log_decay[static_cast<size_t>(i) % log_decay.size()]);
  c.log_decay = s.upload(l);
  return c;
}

}  // namespace

TEST_CASE("CUDA: every form equals the recurrence, for ragged lengths, wide values and carried states") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 1001);
  for (int round = 0; round < 16; ++round) {
    const Shape bhn{s.r.integer(1, 2), s.r.integer(1, 3), s.r.integer(1, 330)};
    Case c = make(s, type, bhn, s.r.integer(1, 80), s.r.integer(1, 140), {-0.5, 0.0, -0.01});
    const int64_t d = c.q.host.dim(3), e = c.v.host.dim(3);
    c.options.form = form;
    c.options.block_size = round % 4 == 0 ? 64 : s.r.integer(1, 200);
    if (round % 2 == 0) c.state_in = s.random(DType::f32, {bhn[0], bhn[1], d, e});
    if (round % 3 == 0) c.state_out = s.poisoned(DType::f32, {bhn[0], bhn[1], d, e});
    INFO("round " << round << " N " << bhn[2] << " D " << d << " E " << e << " block "
                  << c.options.block_size);
    run_and_check(s, c);
  }
}

TEST_CASE("CUDA linear attention: large heads, and states too large for registers") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Sides s(*gpu, 1002);
  for (int64_t d : {64, 65, 128, 256, 257, 300}) {
    Case c = make(s, DType::bf16, {1, 2, 90}, d, 33, {-0.02, 0.0});
    c.options.form = form;
    c.state_in = s.random(DType::f32, {1, 2, d, 33});
    c.state_out = s.poisoned(DType::f32, {1, 2, d, 33});
    INFO("D " << d);
    run_and_check(s, c);
    c.state_out = {};
    s.poison_device(c.o);
    run_and_check(s, c);
  }
}

TEST_CASE("CUDA linear attention on tensor cores: head sizes, ragged blocks, carried states, cut sequences") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::quadratic);
  const DType type = GENERATE(DType::bf16, DType::f16);
  Sides s(*gpu, 1007);
  for (int round = 0; round < 24; ++round) {
    // Lengths beyond 2048 with few heads are cut into segments of 1024 rows and more.
    const bool lengthy = round % 8 == 7;
    const Shape bhn{s.r.integer(1, 2), s.r.integer(1, 3),
                    lengthy ? s.r.integer(2048, 3500) : s.r.integer(1, 420)};
    const int64_t widest = lengthy ? 10 : 32;
    Case c = make(s, type, bhn, 8 * s.r.integer(1, widest), 8 * s.r.integer(1, widest), {-0.5, 0.0, -0.01});
    const int64_t d = c.q.host.dim(3), e = c.v.host.dim(3);
    c.options.form = form;
    c.options.block_size = round % 3 == 0   ? 64
                           : round % 3 == 1 ? 64 * s.r.integer(1, 4)
                                            : s.r.integer(1, 200);
    // A state of 256 KiB per block and head: not a state per row.
    if (form == Form::parallel) c.options.block_size = std::max<int64_t>(c.options.block_size, 16);
    if (round % 2 == 0 || lengthy) c.state_in = s.random(DType::f32, {bhn[0], bhn[1], d, e});
    if (round % 4 < 2 || lengthy) c.state_out = s.poisoned(DType::f32, {bhn[0], bhn[1], d, e});
    INFO("round " << round << " N " << bhn[2] << " D " << d << " E " << e << " block "
                  << c.options.block_size);
    run_and_check(s, c);
  }
}

TEST_CASE("CUDA linear attention in chunks: many heads, cut or not, every decay, views of packed heads") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::bf16, DType::f16);
  Sides s(*gpu, 1009);
  const double never = -std::numeric_limits<double>::infinity();
  struct Setting {
    Shape bhn;
    int64_t d, e, block;
    std::vector<double> log_decay;
    bool in, out;
  };
  // Up to eight heads' walks, a card's worth of them, and numbers between, of one row and of chunks that end
  // a row early or late. Decays: none, slow, fast, and such that nothing of the row before is left.
  const std::vector<Setting> settings = {
      {{1, 8, 1300}, 128, 128, 128, {0.0, -0.001, -0.5, -8.0}, true, true},
      {{2, 8, 1025}, 64, 64, 64, {-0.004, -0.06}, true, true},
      {{2, 9, 511}, 120, 72, 100, {-0.02, never, -1e-6}, false, true},
      {{1, 16, 129}, 72, 128, 128, {0.0}, false, false},
      {{3, 5, 1}, 128, 128, 128, {-0.1, 0.0}, true, true},
      {{2, 16, 1}, 8, 8, 1, {-0.1, 0.0}, false, true},
      {{1, 5, 640}, 128, 200, 128, {-0.01, -0.3}, true, true},  // values in two tiles
      {{1, 16, 700}, 40, 56, 32, {-0.01, -0.3}, true, false},
      {{4, 33, 130}, 104, 88, 128, {-0.05, 0.0, -2.0}, true, true},
      {{2, 140, 260}, 48, 64, 64, {-0.05, 0.0}, true, true}};
  for (const Setting& x : settings) {
    Case c = make(s, type, x.bhn, x.d, x.e, x.log_decay);
    c.options.form = Form::chunk, c.options.block_size = x.block;
    if (x.in) c.state_in = s.random(DType::f32, {x.bhn[0], x.bhn[1], x.d, x.e});
    if (x.out) c.state_out = s.poisoned(DType::f32, {x.bhn[0], x.bhn[1], x.d, x.e});
    INFO("heads " << x.bhn.str() << " D " << x.d << " E " << x.e << " block " << x.block);
    run_and_check(s, c);
  }

  // q, k, v and o side by side in one tensor: rows far apart, and NaN around the outputs stays.
  const Twin qkv = s.random(type, {2, 600, 3, 8, 64});
  const auto heads = [&](int i) {
    return qkv.view([=](const Tensor& t) { return t.select(2, i).transpose(1, 2); });
  };
  Case packed = make(s, type, {2, 8, 600}, 64, 64, {-0.1, -0.002});
  packed.options.form = Form::chunk, packed.options.block_size = 64;
  packed.q = heads(0), packed.k = heads(1), packed.v = heads(2);
  packed.o =
      s.padded_output(type, {2, 600, 8, 64}, 8, 16).view([](const Tensor& t) { return t.transpose(1, 2); });
  run_and_check(s, packed);
  const std::vector<double> whole = values(s.fetch(packed.o, true));
  for (size_t i = 0; i < whole.size(); ++i)
    if (i % 88 < 8 || i % 88 >= 72) REQUIRE(std::isnan(whole[i]));

  // A cut sequence in place: the state that comes in is overwritten by the one that goes out.
  Case c = make(s, type, {1, 8, 900}, 128, 96, {-0.01, 0.0, -0.3});
  c.options.form = Form::chunk, c.options.block_size = 128;
  c.state_in = s.random(DType::f32, {1, 8, 128, 96});
  c.state_out = s.poisoned(DType::f32, {1, 8, 128, 96});
  s.check_graph([&] { linear_attention(s.device, on_device(c)); }, {c.o, c.state_out});
  const Tensor want_o = s.fetch(c.o), want_state = s.fetch(c.state_out);
  LinearAttentionArgs in_place = on_device(c);
  in_place.state_out = in_place.state_in;
  s.poison_device(c.o);
  linear_attention(s.device, in_place);
  CHECK(same_bits(s.fetch(c.o), want_o));
  CHECK(same_bits(s.fetch(c.state_in), want_state));
}

TEST_CASE("CUDA linear attention on tensor cores: f16 sums beyond f16's range, and scores below it") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::quadratic);
  Sides s(*gpu, 1008);
  const auto fill_range = [&](const Twin& t, double most) {
    randomize(t.host, s.r, -most, most);
    copy(s.device, t.host, t.device);
  };
  const auto run = [&](double q, double k, double v, double k_late) {
    Case c = make(s, DType::f16, {1, 2, 700}, 64, 72, {0.0, -0.02});
    fill_range(c.q, q), fill_range(c.k, k), fill_range(c.v, v);
    randomize(c.k.host.slice(2, 300, 500), s.r, -k_late, k_late);
    copy(s.device, c.k.host, c.k.device);
    c.options.form = form, c.options.block_size = 128;
    INFO("q " << q << " k " << k << " v " << v << " later k " << k_late);
    run_and_check(s, c);
  };
  run(1e-3, 300, 300, 300);    // states of 10^6
  run(300, 300, 1e-3, 300);    // scores of 10^5
  run(2e-3, 2e-3, 2e4, 2e-3);  // scores of 10^-5
  run(1e-3, 300, 300, 0.0);    // tiles without a score, under a large state
}

TEST_CASE("CUDA: without causality every query sees the whole sum") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  const DType type = GENERATE(DType::f32, DType::bf16);
  const auto width = GENERATE(std::pair<int64_t, int64_t>{17, 33}, std::pair<int64_t, int64_t>{24, 40});
  Sides s(*gpu, 1003);
  for (int64_t n : {1, 101, 5000}) {
    const auto [d, e] = width;
    Case c = make(s, type, {1, 2, n}, d, e, {0.0});
    c.options.form = form, c.options.block_size = 24, c.options.causal = false;
    run_and_check(s, c);
    c.state_in = s.random(DType::f32, {1, 2, d, e});
    c.state_out = s.poisoned(DType::f32, {1, 2, d, e});
    run_and_check(s, c);
  }
}

TEST_CASE("CUDA: strong decay over long ranges neither overflows nor leaves noise; bad decays give NaN") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Sides s(*gpu, 1004);
  Case c =
      make(s, DType::f32, {1, 4, 700}, 8, 8, {-8.0, -100.0, -std::numeric_limits<double>::infinity(), -1e-6});
  c.options.form = form;
  for (int64_t block : {128, 700, 64, 5}) {
    c.options.block_size = block;
    run_and_check(s, c);
  }
  for (bool causal : {true, false}) {
    const std::vector<double> decays =
        causal ? std::vector<double>{0.5, std::numeric_limits<double>::quiet_NaN(), -0.5}
               : std::vector<double>{-0.5, std::numeric_limits<double>::quiet_NaN(), 0.0};
    for (DType type : {DType::f32, DType::bf16, DType::f16}) {
      Case bad = make(s, type, {1, 3, 70}, 8, 8, decays);
      bad.options.form = form, bad.options.causal = causal;
      bad.state_out = s.poisoned(DType::f32, {1, 3, 8, 8});
      linear_attention(s.device, on_device(bad));
      for (const Tensor& t : {s.fetch(bad.o), s.fetch(bad.state_out)}) {
        const std::vector<double> got = values(t);
        const size_t each_head = got.size() / 3;
        for (size_t i = 0; i < got.size(); ++i) REQUIRE(std::isnan(got[i]) == (i < 2 * each_head));
      }
    }
  }
}

TEST_CASE("CUDA: a sequence may be cut and continued from its state, in place; heads may be views") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Sides s(*gpu, 1005);
  const Twin qkv = s.random(DType::f32, {2, 150, 3, 4, 16});
  const auto heads = [&](int i) {
    return qkv.view([=](const Tensor& t) { return t.select(2, i).transpose(1, 2); });
  };
  Case whole = make(s, DType::f32, {2, 4, 150}, 16, 16, {-0.1, -0.02});
  whole.options.form = form, whole.options.block_size = 32;
  whole.q = heads(0), whole.k = heads(1), whole.v = heads(2);
  whole.o = s.poisoned(DType::f32, {2, 150, 4, 16}).view([](const Tensor& t) { return t.transpose(1, 2); });
  run_and_check(s, whole);
  const Tensor want = s.fetch(whole.o);
  s.poison_device(whole.o);
  const Tensor zero = s.host.allocate(DType::f32, {2, 4, 16, 16});
  fill(zero, 0.0);
  const Twin state = s.upload(zero);
  for (const auto& [begin, end] : {std::pair{0, 1}, std::pair{1, 47}, std::pair{47, 150}}) {
    LinearAttentionArgs part = on_device(whole);
    for (Tensor* t : {&part.q, &part.k, &part.v, &part.o}) *t = t->slice(2, begin, end);
    part.state_in = part.state_out = state.device;
    linear_attention(s.device, part);
  }
  check_norm(s.fetch(whole.o), values(want), 166 * 0x1p-23);
}

TEST_CASE("CUDA linear attention: no tokens, no heads, no width; graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const Form form = GENERATE(Form::chunk, Form::parallel, Form::recurrent, Form::quadratic);
  Sides s(*gpu, 1006);
  for (const auto& shape : {Shape{1, 2, 0}, Shape{0, 2, 5}}) {
    Case none = make(s, DType::f32, shape, 3, 4, {-0.1});
    none.options.form = form;
    none.state_in = s.random(DType::f32, {shape[0], shape[1], 3, 4});
    none.state_out = s.poisoned(DType::f32, {shape[0], shape[1], 3, 4});
    linear_attention(s.device, on_device(none));
    CHECK(same_bits(s.fetch(none.state_out), none.state_in.host));
    none.state_in = {};
    s.poison_device(none.state_out);
    linear_attention(s.device, on_device(none));
    for (double x : values(s.fetch(none.state_out))) CHECK(x == 0.0);
  }
  Case flat = make(s, DType::f32, {1, 2, 70}, 0, 5, {-0.1});
  flat.options.form = form;
  run_and_check(s, flat);
  Case c = make(s, DType::bf16, {2, 2, 200}, 32, 40, {-0.1, -0.02});
  c.options.form = form;
  c.state_out = s.poisoned(DType::f32, {2, 2, 32, 40});
  s.check_graph([&] { linear_attention(s.device, on_device(c)); }, {c.o, c.state_out});
}
