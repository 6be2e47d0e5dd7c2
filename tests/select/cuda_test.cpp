// The selection operators on the GPU: the same columns, counts, lists and bits as the CPU's operators, which
// have their own test against definitions.
#include <tuple>

#include "kernels/select/chunks.hpp"
#include "kernels/select/patterns.hpp"
#include "kernels/select/select.hpp"
#include "kernels/select/tree.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// Scores with ties, both zeros, infinities and NaN.
Twin scores(Sides& s, const Shape& shape, bool wild) {
  const Tensor t = s.host.allocate(DType::f32, shape);
  each(t, [&](int64_t o) {
    const int64_t kind = s.r.integer(0, 29);
    double x = kind < 15 ? static_cast<double>(s.r.integer(-4, 4)) * 0.5 : s.r.uniform();
    if (kind == 15) x = -0.0;
    if (wild && kind == 16) x = std::numeric_limits<double>::quiet_NaN();
    if (wild && kind == 17) x = std::numeric_limits<double>::infinity();
    if (wild && kind == 18) x = -std::numeric_limits<double>::infinity();
    put(t, o, x);
  });
  return s.upload(t);
}

Twin integers(Sides& s, DType type, const Shape& shape, int64_t low, int64_t high) {
  const Tensor t = s.host.allocate(type, shape);
  each(t, [&](int64_t o) { put(t, o, static_cast<double>(s.r.integer(low, high))); });
  return s.upload(t);
}

void check_same(Sides& s, const Twin& t, const char* what) {
  if (!t) return;
  INFO(what << " " << t.host.shape().str());
  CHECK(same_bits(s.fetch(t, true), t.host_base));
}

}  // namespace

TEST_CASE("CUDA top_k chooses what the CPU chooses, at every size of row and set") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const bool largest = GENERATE(true, false);
  const auto order = GENERATE(TopKArgs::Order::value, TopKArgs::Order::index);
  Sides s(*gpu, 901);
  for (int64_t m : {1, 31, 32, 33, 100, 128, 129, 256, 257, 1000, 1024, 1025, 2048, 2049, 5000, 40000, 70000})
    for (int64_t k : {1, 2, 17, 128, 1000, 2048, 3000}) {
      if (m * k > 40000000) continue;
      const int64_t rows = m > 1000 ? 3 : 11;
      for (int variant = 0; variant < 3; ++variant) {
        const Twin x = scores(s, {2, rows, m}, variant != 1);
        Twin index = s.poisoned(DType::i32, {2, rows, k}), value = s.poisoned(DType::f32, {2, rows, k});
        const Twin flag = s.poisoned(DType::u8, {2, rows, m});
        Twin count, limit;
        if (variant > 0) count = integers(s, DType::i32, {2, rows}, -1, k + 2);
        if (variant > 0) limit = integers(s, DType::i32, {2, rows}, -1, m + 1);
        if (variant == 1) index = value = {};
        const auto args = [&](bool device) {
          const auto side = [&](const Twin& t) { return device ? t.device : t.host; };
          TopKArgs a;
          a.x = side(x), a.index = side(index), a.value = side(value), a.flag = side(flag);
          a.count = side(count), a.visible.limit = side(limit);
          a.k = k, a.largest = largest, a.order = order;
          a.visible.causal = variant == 2;
          a.visible.offset = m / 2;
          return a;
        };
        top_k(s.host, args(false));
        top_k(s.device, args(true));
        INFO("m " << m << " k " << k << " variant " << variant << " order " << static_cast<int>(order));
        check_same(s, index, "index");
        check_same(s, value, "value");
        check_same(s, flag, "flag");
      }
    }
}

TEST_CASE("CUDA top_k of one long row, arg_max and strided rows; captured as a graph") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 902);
  const Twin x = scores(s, {1, 1 << 20}, true);
  const Twin index = s.poisoned(DType::i32, {1, 777}), best = s.poisoned(DType::i32, {1});
  const auto run = [&](Context& ctx, const Tensor& from, const Tensor& to, const Tensor& one) {
    TopKArgs a;
    a.x = from, a.index = to;
    a.order = TopKArgs::Order::index;
    top_k(ctx, a);
    arg_max(ctx, from, one);
  };
  run(s.host, x.host, index.host, best.host);
  run(s.device, x.device, index.device, best.device);
  check_same(s, index, "index");
  check_same(s, best, "arg_max");
  s.check_graph([&] { run(s.device, x.device, index.device, best.device); }, {index, best});

  const Twin rows = s.padded(DType::f32, {3, 5, 300}, 3, 7),
             out = s.poisoned(DType::i32, {3, 5, 24}).view([](const Tensor&t) { return t.slice(2, 2, 22); });
  TopKArgs a;
  a.x = rows.host, a.index = out.host;
  top_k(s.host, a);
  a.x = rows.device, a.index = out.device;
  top_k(s.device, a);
  check_same(s, out, "padded rows");
}

TEST_CASE("CUDA argsort is the CPU's at sizes for a block, for segments and for the device") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const bool descending = GENERATE(true, false);
  const DType type = GENERATE(DType::f32, DType::i32);
  Sides s(*gpu, 903);
  for (int64_t m : {1, 2, 700, 1024, 1025, 4096, 4097, 4100, 30000, 70000, 300000, 530000}) {
    // Few rows are sorted together, many a block each, long ones one by one.
    const int64_t rows = m == 4100 ? 520 : m > 5000 ? 3 : 9;
    const Twin x = type == DType::f32 ? scores(s, {rows, m}, true) : integers(s, type, {rows, m}, -300, 300);
    const Twin index = s.poisoned(DType::i32, {rows, m}), value = s.poisoned(type, {rows, m});
    argsort(s.host, {x.host, index.host, value.host, descending});
    const auto run = [&] { argsort(s.device, {x.device, index.device, value.device, descending}); };
    run();
    INFO("m " << m);
    check_same(s, index, "index");
    check_same(s, value, "value");
    if (m == 700 || m == 4097 || m == 4100 || m == 70000) s.check_graph(run, {index, value});
  }
}

TEST_CASE("CUDA top_p keeps what the CPU keeps") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const int64_t lag = GENERATE(0, 1, 2);
  const bool inclusive = GENERATE(false, true), share = GENERATE(false, true);
  Sides s(*gpu, 904);
  for (int64_t m : {1, 40, 1024, 1500, 4096, 6000, 90000})
    for (double p : {0.0, 0.3, 0.9, 1.0, 1e9}) {
      const int64_t rows = m > 5000 ? 2 : 7;
      // Multiples of 2^-20: sums are exact in any order.
      const Tensor mass = s.host.allocate(DType::f32, {2, rows, m});
      each(mass, [&](int64_t o) { put(mass, o, static_cast<double>(s.r.integer(0, 1 << 12)) * 0x1p-20); });
      const Twin x = s.upload(mass);
      const Twin count = s.poisoned(DType::i32, {2, rows}), flag = s.poisoned(DType::u8, {2, rows, m});
      const Twin limit = integers(s, DType::i32, {2, rows}, -1, m + 1);
      for (int variant = 0; variant < 4; ++variant) {
        const auto args = [&](bool device) {
          const auto side = [&](const Twin& t) { return device ? t.device : t.host; };
          TopPArgs a;
          a.x = side(x), a.count = side(count), a.flag = side(flag);
          a.p = p, a.lag = lag, a.inclusive = inclusive, a.share = share;
          if (variant > 0) a.visible.limit = side(limit);
          if (variant > 1) a.min_keep = 2;
          if (variant > 2) {
            a.visible.causal = true, a.visible.offset = m - rows;
            a.forced_first = 1, a.forced_diagonal = true;
          }
          return a;
        };
        top_p(s.host, args(false));
        top_p(s.device, args(true));
        INFO("m " << m << " p " << p << " variant " << variant);
        check_same(s, count, "count");
        check_same(s, flag, "flag");
        if ((m == 1500 && variant == 3) || (m == 90000 && variant == 1))
          s.check_graph([&] { top_p(s.device, args(true)); }, {count, flag});
      }
    }
}

TEST_CASE("CUDA top_p among few distinct, negative and infinite scores") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const int64_t lag = GENERATE(0, 1, 2), min_keep = GENERATE(0, 1, 5);
  Sides s(*gpu, 921);
  for (int64_t m : {2, 33, 300, 2048, 9000, 20000})
    for (int64_t low : {-3, 0, 1})
      for (double p : {-2.0, 0.0, 7.0, 1500.0}) {
        const Tensor mass = s.host.allocate(DType::f32, {5, m});
        // Halves: sums are exact in any order, and most scores are equal to many others.
        each(mass, [&](int64_t o) { put(mass, o, static_cast<double>(s.r.integer(low, 3)) * 0.5); });
        if (low == 0) put(mass, m + 1, std::numeric_limits<double>::infinity());
        if (low == 0) put(mass, 2 * m + 1, std::numeric_limits<double>::quiet_NaN());
        const Twin x = s.upload(mass), count = s.poisoned(DType::i32, {5}),
                   flag = s.poisoned(DType::u8, {5, m});
        for (bool inclusive : {false, true}) {
          const auto run = [&](Context& ctx, const Tensor& from, const Tensor& number, const Tensor& flags) {
            TopPArgs a;
            a.x = from, a.count = number, a.flag = flags;
            a.p = p, a.lag = lag, a.min_keep = min_keep, a.inclusive = inclusive;
            top_p(ctx, a);
          };
          run(s.host, x.host, count.host, flag.host);
          run(s.device, x.device, count.device, flag.device);
          INFO("m " << m << " low " << low << " p " << p << " inclusive " << inclusive);
          check_same(s, count, "count");
          check_same(s, flag, "flag");
        }
      }
}

TEST_CASE("CUDA line_sums of a probe's map that is not stored") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const auto type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 922);
  struct Case {
    int64_t rows, n, d, heads, kv;
  };
  for (const Case& c : {Case{1, 1, 16, 1, 1},
                        {5, 9, 32, 2, 1},
                        {128, 128, 64, 2, 2},
                        {128, 1000, 128, 4, 2},
                        {100, 1029, 64, 2, 1},
                        {128, 70001, 128, 2, 1},
                        {64, 4096, 16, 6, 2},
                        {128, 2300, 80, 2, 2},
                        {200, 900, 64, 2, 1}}) {
    const auto heads_first = [](const Tensor& t) { return t.transpose(1, 2); };
    const Twin q = s.random(type, {2, c.rows, c.heads, c.d}, -3, 3).view(heads_first),
               k = s.random(type, {2, c.n, c.kv, c.d}, -3, 3).view(heads_first);
    const Twin v = s.poisoned(DType::f32, {2, c.heads, c.n}), l = s.poisoned(DType::f32, {2, c.heads, c.n});
    const auto run = [&](Context& ctx, bool device) {
      LineSumsArgs a;
      a.q = device ? q.device : q.host, a.k = device ? k.device : k.host;
      a.vertical = device ? v.device : v.host, a.slash = device ? l.device : l.host;
      a.scale = 0.1f;
      line_sums(ctx, a);
    };
    run(s.host, false);
    run(s.device, true);
    INFO("rows " << c.rows << " n " << c.n << " d " << c.d << " " << name(type));
    // Scores err by D epsilon of their terms; exponentials turn that into relative errors.
    const double bound = 16 * std::sqrt(static_cast<double>(c.d)) * epsilon_of(DType::f32);
    check_norm(s.fetch(v), values(v.host), bound);
    check_norm(s.fetch(l), values(l.host), bound);
    if (c.n == 1029) s.check_graph([&] { run(s.device, true); }, {v, l});
  }
}

TEST_CASE("CUDA cell_sums of a softmax") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 923);
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{1, 4}, {3, 4}, {64, 64}, {70, 1000}, {33, 8192}})
    for (int64_t width : {1, 4, 8, 16, 32, 300})
      for (int64_t cell_rows : {1, 8, 16})
        for (int64_t offset : {int64_t{-2}, int64_t{0}, columns - rows, columns}) {
          const Tensor scores = testing::random(s.host, DType::f32, {2, 2, rows, columns}, s.r, -20, 20);
          const Twin y = s.poisoned(
              DType::f32, {2, 2, (rows + cell_rows - 1) / cell_rows, (columns + width - 1) / width});
          CellSumsArgs a;
          a.rows = cell_rows, a.columns = width, a.softmax = true;
          a.causal = offset != columns, a.causal_offset = offset;
          const Twin x = s.upload(scores);
          a.x = x.host, a.y = y.host;
          cell_sums(s.host, a);
          a.x = x.device, a.y = y.device;
          cell_sums(s.device, a);
          INFO("rows " << rows << " columns " << columns << " cells " << cell_rows << " x " << width
                       << " offset " << offset);
          check_norm(s.fetch(y), values(y.host), 16 * epsilon_of(DType::f32));
        }
}

TEST_CASE("CUDA prefix_sum, compact_flags and compare_flags") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 905);
  for (int64_t m : {1, 5, 1023, 1024, 1025, 100000}) {
    for (bool exclusive : {false, true}) {
      const Twin whole = integers(s, DType::i32, {3, m}, -1000000, 1000000),
                 sums = s.poisoned(DType::i32, {3, m});
      prefix_sum(s.host, {whole.host, sums.host, exclusive});
      prefix_sum(s.device, {whole.device, sums.device, exclusive});
      check_same(s, sums, "integers");
      const Twin x = s.random(DType::f32, {3, m}, 0, 1), y = s.poisoned(DType::f32, {3, m});
      prefix_sum(s.host, {x.host, y.host, exclusive});
      prefix_sum(s.device, {x.device, y.device, exclusive});
      // Equal in f64 up to the order of additions; one rounding to f32 more.
      check_norm(s.fetch(y), values(y.host), 2 * epsilon_of(DType::f32));
    }
    for (int64_t most : {1, 20}) {
      const Twin flag = integers(s, DType::u8, {4, m}, 0, most);
      const Twin index = s.poisoned(DType::i32, {4, (m + 1) / 2 + 3}), count = s.poisoned(DType::i32, {4});
      compact_flags(s.host, {flag.host, index.host, count.host});
      compact_flags(s.device, {flag.device, index.device, count.device});
      check_same(s, index, "index");
      check_same(s, count, "count");
    }
    const Twin a = scores(s, {3, m}, true), b = scores(s, {3, m}, true), flag = s.poisoned(DType::u8, {3, m});
    for (auto relation : {CompareArgs::Relation::greater, CompareArgs::Relation::greater_equal,
                          CompareArgs::Relation::less, CompareArgs::Relation::less_equal})
      for (bool two : {false, true}) {
        compare_flags(s.host, {relation, a.host, two ? b.host : Tensor(), flag.host, 0.5f, {}});
        compare_flags(s.device, {relation, a.device, two ? b.device : Tensor(), flag.device, 0.5f, {}});
        check_same(s, flag, "flag");
      }
    const Twin z = scores(s, {3, m}, true), wide = s.poisoned(DType::i32, {3, m});
    compare_flags(s.host, {CompareArgs::Relation::less, a.host, b.host, wide.host, 0, z.host});
    compare_flags(s.device, {CompareArgs::Relation::less, a.device, b.device, wide.device, 0, z.device});
    check_same(s, wide, "magnitudes");
  }
}

TEST_CASE("CUDA gather_tokens and scatter_tokens") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 906);
  for (int64_t d : {1, 8, 24, 64, 65})
    for (int64_t gb : {1, 2})
      for (int64_t gh : {1, 2, 4}) {
        const int64_t n = 300, m = d == 64 ? 5000 : 171;
        const Twin index = integers(s, DType::i32, {gb, gh, m}, -1, n - 1);
        const Twin x = s.random(type, {2, 2, n, d}),
                   y = s.poisoned(type, {2, m, 4, d}).view([](const Tensor&t) { return t.transpose(1, 2); });
        gather_tokens(s.host, {x.host, index.host, y.host});
        gather_tokens(s.device, {x.device, index.device, y.device});
        check_same(s, y, "gathered");
        for (int variant = 0; variant < 4; ++variant) {
          const Twin source = s.random(type, {2, 4, m, d}), weight = s.random(DType::f32, {2, 4, m});
          const Twin to = s.random(type, {2, 4, n, d}), hits = s.poisoned(DType::i32, {2, 4, n});
          const auto args = [&](bool device) {
            const auto side = [&](const Twin& t) { return device ? t.device : t.host; };
            ScatterTokensArgs a;
            a.mode = variant == 0 ? ScatterTokensArgs::Mode::set : ScatterTokensArgs::Mode::add;
            a.x = side(source), a.index = side(index), a.y = side(to), a.hits = side(hits);
            if (variant == 2) a.weight = side(weight);
            a.keep = variant == 3;
            return a;
          };
          scatter_tokens(s.host, args(false));
          scatter_tokens(s.device, args(true));
          INFO("d " << d << " variant " << variant);
          check_same(s, hits, "hits");
          // The same order of additions; products may be fused with them.
          if (variant == 2)
            check_norm(s.fetch(to), values(to.host), 8 * epsilon_of(DType::f32) + 2 * rounding_of(type));
          else
            check_same(s, to, "scattered");
        }
      }
}

TEST_CASE("CUDA pool_tokens gives the CPU's bits") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using Kind = PoolTokensArgs::Kind;
  using Divisor = PoolTokensArgs::Divisor;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 907);
  for (Kind kind : {Kind::sum, Kind::mean, Kind::max, Kind::min, Kind::absolute_deviation})
    for (Divisor divisor : {Divisor::real, Divisor::whole, Divisor::root})
      for (int64_t d : {1, 6, 64})
        for (int64_t block : {0, 1, 7, 64}) {
          if (block == 0 && divisor == Divisor::whole) continue;
          const int64_t n = 333, blocks = block == 0 ? 4 : (n + block - 1) / block;
          const Twin x = s.random(type, {2, n, 3, d}).view([](const Tensor& t) { return t.transpose(1, 2); });
          const Twin center = s.random(DType::f32, {2, 3, blocks, d});
          Tensor edges = s.host.allocate(DType::i32, {2, 5});
          const double bounds[10] = {0, 5, 5, 100, 333, 3, 50, -1, -1, 400};
          for (int i = 0; i < 10; ++i) put(edges, i, bounds[i]);
          const Twin bound = s.upload(edges);
          for (bool wide : {false, true}) {
            const Twin y = s.poisoned(wide ? DType::f32 : type, {2, 3, blocks, d});
            const auto args = [&](bool device) {
              PoolTokensArgs a;
              a.kind = kind, a.divisor = divisor;
              a.x = device ? x.device : x.host, a.y = device ? y.device : y.host;
              a.block = block;
              if (block == 0) a.bounds = device ? bound.device : bound.host;
              if (kind == Kind::absolute_deviation) a.center = device ? center.device : center.host;
              return a;
            };
            pool_tokens(s.host, args(false));
            pool_tokens(s.device, args(true));
            INFO("kind " << static_cast<int>(kind) << " d " << d << " block " << block);
            check_same(s, y, "pooled");
          }
        }
}

TEST_CASE("CUDA build_block_lists gives the CPU's lists") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 908);
  for (int trial = 0; trial < 60; ++trial) {
    BlockListsArgs host, device;
    host.n = s.r.integer(1, 9000), host.m = trial % 2 ? host.n : s.r.integer(1, 9000);
    host.block_q = s.r.integer(3, 70), host.block_k = trial % 2 ? host.block_q : s.r.integer(3, 70);
    host.diagonal = s.r.integer(0, 1) == 1;
    host.window = s.r.integer(0, 2);
    host.first_columns = s.r.integer(0, 2);
    host.last_rows = s.r.integer(0, 2);
    host.rule.causal = s.r.integer(0, 2) > 0;
    if (trial % 3 == 0) {
      host.rule.band = true;
      host.rule.left = s.r.integer(-1, 500);
      host.rule.right = s.r.integer(-1, 500);
      host.rule.sinks = s.r.integer(0, 300);
    }
    device = host;
    const int64_t gb = s.r.integer(1, 2), gh = s.r.integer(1, 3);
    const int64_t nq = (host.n + host.block_q - 1) / host.block_q,
                  nk = (host.m + host.block_k - 1) / host.block_k;
    const auto source = [&](Tensor& a, Tensor& b, const Shape& shape, int64_t rare) {
      const Tensor t = s.host.allocate(DType::u8, shape);
      each(t, [&](int64_t o) { put(t, o, s.r.integer(0, rare) == 0 ? 1 : 0); });
      const Twin twin = s.upload(t);
      a = twin.host, b = twin.device;
    };
    source(host.bitmap, device.bitmap, {gb, gh, nq, nk}, 2);
    if (trial % 4 == 0) source(host.also, device.also, {nq, nk}, 9);
    if (trial % 4 < 2) source(host.columns, device.columns, {gb, gh, nk}, 9);
    if (trial % 4 < 3) source(host.diagonals, device.diagonals, {gb, gh, nk}, 9);
    allocate_block_lists(s.host, host, gb, gh);
    allocate_block_lists(s.device, device, gb, gh);
    std::vector<Twin> outputs;
    const auto twin = [&](Tensor& a, Tensor& b) {
      if (!a) return;
      const Twin t = s.poisoned(a.dtype(), a.shape());
      a = t.host, b = t.device;
      outputs.push_back(t);
    };
    for (auto member : {&BlockListsArgs::full, &BlockListsArgs::partial}) {
      BlockList &a = host.*member, &b = device.*member;
      twin(a.begin, b.begin), twin(a.count, b.count), twin(a.index, b.index);
    }
    host.selected = s.host.allocate(DType::i32, {gb, gh, nq, nk});
    twin(host.selected, device.selected);
    build_block_lists(s.host, host);
    build_block_lists(s.device, device);
    INFO("trial " << trial << ": " << host.n << " x " << host.m << ", blocks " << host.block_q << " x "
                  << host.block_k);
    for (const Twin& t : outputs) check_same(s, t, "list");
    if (trial < 3) s.check_graph([&] { build_block_lists(s.device, device); }, outputs);
  }
}

TEST_CASE("CUDA pattern operators equal the CPU's") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 911);
  for (const auto& [rows, n] : {std::pair<int64_t, int64_t>{1, 1}, {64, 1000}, {128, 70001}}) {
    const Twin x = s.random(DType::f32, {2, 2, rows, n}, 0, 1);
    const Twin v = s.poisoned(DType::f32, {2, 2, n}), l = s.poisoned(DType::f32, {2, 2, n});
    line_sums(s.host, {x.host, v.host, l.host});
    line_sums(s.device, {x.device, v.device, l.device});
    CHECK(same_bits(s.fetch(v), v.host));
    CHECK(same_bits(s.fetch(l), l.host));
    const Twin cells = s.poisoned(DType::f32, {2, 2, (rows + 7) / 8, (n + 4) / 5});
    for (bool causal : {false, true}) {
      cell_sums(s.host, {x.host, cells.host, 8, 5, causal});
      cell_sums(s.device, {x.device, cells.device, 8, 5, causal});
      CHECK(same_bits(s.fetch(cells), cells.host));
    }
    const Twin d = s.poisoned(DType::f32, {2, 2, rows}), below = s.poisoned(DType::i32, {2, 2, rows});
    const Twin y = s.random(DType::f32, {2, 2, rows, n}, 0, 1);
    js_distance(s.host, {x.host, y.host, d.host, below.host, 0.3});
    js_distance(s.device, {x.device, y.device, d.device, below.device, 0.3});
    check_norm(s.fetch(d), values(d.host), epsilon_of(DType::f32));
    CHECK(same_bits(s.fetch(below), below.host));
  }
  const Tensor numbers = s.host.allocate(DType::i32, {1000}), marks = s.host.allocate(DType::i32, {1000});
  for (int64_t i = 0; i < 1000; ++i) put(numbers, i, static_cast<double>(i * 37)), put(marks, i, i % 3 == 0);
  const Twin x = s.upload(numbers), flag = s.upload(marks), y = s.poisoned(DType::i32, {1000});
  count_rule(s.host, {x.host, flag.host, y.host, 1, 128, 1, 2, 200, 5});
  count_rule(s.device, {x.device, flag.device, y.device, 1, 128, 1, 2, 200, 5});
  CHECK(same_bits(s.fetch(y), y.host));
  const Twin z = s.random(DType::f32, {1000}), masked = s.poisoned(DType::f32, {1000});
  mask_values(s.host, {z.host, flag.host, {}, masked.host, false});
  mask_values(s.device, {z.device, flag.device, {}, masked.device, false});
  CHECK(same_bits(s.fetch(masked), masked.host));
  for (DType type : {DType::f32, DType::bf16, DType::f16})
    for (int64_t d : {5, 64}) {
      const Twin o = s.random(type, {2, 300, 3, d}).view([](const Tensor& t) { return t.transpose(1, 2); });
      const Twin f = s.random(DType::f32, {2, 3, 5}), add = s.random(DType::f32, {2, 3, 5, d});
      const Twin to =
          s.poisoned(type, {2, 300, 3, d}).view([](const Tensor& t) { return t.transpose(1, 2); });
      block_affine(s.host, {o.host, f.host, add.host, to.host, 64});
      block_affine(s.device, {o.device, f.device, add.device, to.device, 64});
      check_norm(s.fetch(to), values(to.host), 2 * epsilon_of(DType::f32) + 2 * rounding_of(type));
    }
}

namespace {

struct TreeCase {
  int64_t batch, heads, kv_heads, n, m, d, block_q, stride_q, block_k, stride_k, keep, window;
  bool causal;
};

/// Multiples of 1/8: dots are exact in any order, so that ties are ties on both sides. [B, H, N, D], or a
/// view of [B, N, H, D]; rows stand `before` elements behind the start of rows that are `extra` longer, NaN
/// around them. `odd`: some are infinite, and their dots with zeros NaN.
Twin coarse(Sides& s, DType type, int64_t batch, int64_t heads, int64_t n, int64_t d, bool token_major,
            int64_t before, int64_t extra, bool odd) {
  const Shape shape = token_major ? Shape{batch, n, heads, d + extra} : Shape{batch, heads, n, d + extra};
  const Tensor base = testing::poisoned(s.host, type, shape);
  const Tensor inner = base.slice(3, before, before + d);
  each(inner, [&](int64_t o) {
    double x = static_cast<double>(s.r.integer(-8, 8)) / 8;
    if (odd && s.r.integer(0, 299) == 0) x = std::copysign(std::numeric_limits<double>::infinity(), x);
    put(inner, o, x);
  });
  return s.upload(base).view([&](const Tensor& t) {
    const Tensor rows = t.slice(3, before, before + d);
    return token_major ? rows.transpose(1, 2) : rows;
  });
}

void check_tree(Sides& s, const TreeCase& c, const Twin& q, const Twin& k,
                TreeSearchArgs::Representative representative) {
  TreeSearchArgs host, device;
  host.block_q = c.block_q, host.stride_q = c.stride_q, host.block_k = c.block_k, host.stride_k = c.stride_k;
  host.keep = c.keep, host.window = c.window, host.causal = c.causal;
  host.representative = representative, host.seed = 5;
  device = host;
  const int64_t nq = (c.n + c.block_q - 1) / c.block_q, cells = (c.keep + c.block_k - 1) / c.block_k;
  const Twin selected = s.poisoned(DType::i32, {c.batch, c.heads, nq, cells}),
             count = s.poisoned(DType::i32, {c.batch, c.heads, nq});
  host.q = q.host, host.k = k.host, host.selected = selected.host, host.count = count.host;
  device.q = q.device, device.k = k.device, device.selected = selected.device, device.count = count.device;
  tree_search(s.host, host);
  tree_search(s.device, device);
  INFO("n " << c.n << " m " << c.m << " d " << c.d << " " << name(q.host.dtype()) << " representative "
            << static_cast<int>(representative));
  check_same(s, count, "count");
  check_same(s, selected, "selected");
  TokenListsArgs a, b;
  a.n = c.n, a.m = c.m, a.block_q = c.block_q, a.block_k = c.block_k, a.window = c.window, a.sinks = 5;
  a.causal = c.causal;
  b = a;
  a.selected = selected.host, a.count = count.host, b.selected = selected.device, b.count = count.device;
  const int64_t entries = cells * c.block_k + c.window + 5, lists = c.batch * c.heads * nq;
  const Twin begin = s.poisoned(DType::i32, {c.batch, c.heads, nq}),
             listed = s.poisoned(DType::i32, {c.batch, c.heads, nq}),
             index = s.poisoned(DType::i32, {lists * entries});
  a.lists = {begin.host, listed.host, index.host};
  b.lists = {begin.device, listed.device, index.device};
  token_lists(s.host, a);
  token_lists(s.device, b);
  check_same(s, begin, "begin");
  check_same(s, listed, "listed");
  check_same(s, index, "index");
  s.check_graph([&] { tree_search(s.device, device), token_lists(s.device, b); }, {selected, count, listed});

  // The same lists from the search itself.
  const Twin own_begin = s.poisoned(DType::i32, {c.batch, c.heads, nq}),
             own_listed = s.poisoned(DType::i32, {c.batch, c.heads, nq}),
             own_index = s.poisoned(DType::i32, {lists * entries});
  host.lists = {own_begin.host, own_listed.host, own_index.host}, host.sinks = 5;
  device.lists = {own_begin.device, own_listed.device, own_index.device}, device.sinks = 5;
  tree_search(s.host, host);
  tree_search(s.device, device);
  check_same(s, own_begin, "begin of the search's lists");
  check_same(s, own_listed, "count of the search's lists");
  check_same(s, own_index, "index of the search's lists");
  CHECK(same_bits(own_index.host_base, index.host_base));
}

}  // namespace

TEST_CASE("CUDA tree_search and token_lists give the CPU's blocks and lists") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using R = TreeSearchArgs::Representative;
  const R representative = GENERATE(R::first, R::center, R::last, R::random, R::oracle);
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 912);
  for (const TreeCase& c : {
           TreeCase{2, 4, 2, 300, 300, 16, 20, 3, 3, 2, 40, 30, true},
           TreeCase{2, 4, 2, 97, 1000, 24, 20, 3, 3, 2, 100, 0, false},
           TreeCase{2, 4, 2, 64, 2000, 128, 20, 3, 3, 2, 33, 7, true},
           // More query blocks than multiprocessors, rows that see less than their block's candidates.
           TreeCase{2, 8, 2, 600, 600, 128, 16, 2, 2, 1, 64, 5, true},
           // Many samples, causal inside the block; whole ranges; one cell; keys that no stride reaches.
           TreeCase{1, 1, 1, 200, 700, 40, 200, 1, 5, 1, 90, 13, true},
           TreeCase{1, 2, 1, 50, 50, 8, 16, 2, 2, 1, 100, 9, true},
           TreeCase{1, 2, 1, 30, 500, 32, 7, 7, 1, 1, 1, 0, true},
           TreeCase{1, 3, 1, 257, 513, 32, 64, 5, 7, 6, 64, 0, false},
           // Rows that are no multiple of 8, of 32, and longer than registers hold.
           TreeCase{2, 4, 1, 70, 3000, 20, 8, 8, 4, 4, 16, 10, true},
           TreeCase{1, 4, 2, 40, 800, 33, 16, 3, 2, 1, 30, 0, true},
           TreeCase{1, 2, 2, 130, 1500, 200, 64, 2, 2, 1, 130, 64, true},
           TreeCase{1, 2, 1, 100, 900, 256, 50, 1, 3, 1, 100, 20, true},
           // Decoding: clusters, short and long; the most cells.
           TreeCase{2, 4, 2, 1, 5000, 64, 20, 3, 3, 2, 512, 256, true},
           TreeCase{1, 32, 8, 1, 9000, 128, 64, 2, 2, 1, 512, 256, true},
           TreeCase{1, 2, 1, 1, 20000, 256, 1, 1, 1, 1, 2048, 0, true},
           TreeCase{1, 1, 1, 3, 3000, 64, 1, 1, 16, 1, 64, 30, true},
           // Clusters whose blocks do not have equally many cells; sinks that end in a block, and behind all.
           TreeCase{1, 5, 5, 1, 4000, 128, 1, 1, 3, 1, 393, 100, true},
           TreeCase{1, 2, 1, 1, 90, 64, 1, 1, 7, 1, 14, 88, true},
           TreeCase{1, 3, 1, 2, 60, 64, 1, 1, 2, 1, 4, 57, false},
       }) {
    const Twin q = coarse(s, type, c.batch, c.heads, c.n, c.d, false, 0, 0, false),
               k = coarse(s, type, c.batch, c.kv_heads, c.m, c.d, false, 0, 0, false);
    check_tree(s, c, q, k, representative);
  }
}

TEST_CASE("CUDA tree_search reads rows of any stride and alignment, and scores that are not finite") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using R = TreeSearchArgs::Representative;
  const R representative = GENERATE(R::first, R::center, R::last);
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 913);
  for (const TreeCase& c : {TreeCase{2, 4, 2, 130, 700, 64, 32, 2, 2, 1, 60, 20, true},
                            TreeCase{2, 4, 2, 1, 3000, 40, 64, 2, 2, 1, 128, 50, true},
                            TreeCase{2, 10, 5, 200, 400, 32, 8, 1, 4, 2, 32, 0, false}})
    for (const auto& [before, extra] : {std::pair<int64_t, int64_t>{0, 0}, {8, 8}, {1, 2}, {0, 3}})
      for (const bool odd : {false, true}) {
        const Twin q = coarse(s, type, c.batch, c.heads, c.n, c.d, true, before, extra, odd),
                   k = coarse(s, type, c.batch, c.kv_heads, c.m, c.d, true, before, extra, odd);
        INFO("before " << before << " extra " << extra << " odd " << odd);
        check_tree(s, c, q, k, representative);
      }
}

TEST_CASE("CUDA gap_ratios, pick_spaced and chunk_lists give the CPU's scores, gaps and lists") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 913);
  for (const auto& [n, w, window, reach] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{300, 4, -1, 0},
                                            {517, 3, 100, 0},
                                            {517, 3, 100, 21},
                                            {33, 1, -1, 2},
                                            {7, 4, -1, 0}}) {
    const Twin q = s.random(type, {2, n, 4, 40}), k = s.random(type, {2, n, 2, 40});
    const Twin score = s.poisoned(DType::f32, {2, n});
    // Roots of row sums near those of scores below 1: any lse will do, the same on both sides.
    const Twin lse = s.random(DType::f32, {2, 4, n}, 4, 6);
    const auto args = [&](bool device) {
      const auto side = [&](const Twin& t) { return device ? t.device : t.host; };
      GapRatiosArgs a;
      a.q = side(q).transpose(1, 2), a.k = side(k).transpose(1, 2), a.lse = side(lse), a.score = side(score);
      a.w = w, a.window = window, a.reach = reach, a.scale = 0.2f;
      return a;
    };
    gap_ratios(s.host, args(false));
    gap_ratios(s.device, args(true));
    INFO("n " << n << " w " << w << " window " << window << " reach " << reach);
    check_norm(s.fetch(score), values(score.host), 32 * epsilon_of(DType::f32));
  }

  for (int64_t m : {1, 40, 1000, 5003})
    for (int64_t spacing : {0, 1, 8, 100, 6000}) {
      const Twin x = scores(s, {3, m}, true), order = s.poisoned(DType::i32, {3, m});
      const Twin flag =
          s.poisoned(DType::u8, {3, m + 3}).view([m](const Tensor& t) { return t.slice(1, 1, m + 1); });
      ArgsortArgs sort;
      sort.x = x.host, sort.index = order.host, sort.descending = true;
      argsort(s.host, sort);
      copy(s.device, order.host, order.device);
      for (int variant = 0; variant < 3; ++variant) {
        PickSpacedArgs a;
        a.threshold = -0.6f, a.spacing = spacing;
        if (variant > 0) a.limit = m / 5;
        if (variant > 1) a.forced = m / 2, a.last = m - m / 4 - 1;
        a.score = x.host, a.order = order.host, a.flag = flag.host;
        pick_spaced(s.host, a);
        a.score = x.device, a.order = order.device, a.flag = flag.device;
        pick_spaced(s.device, a);
        INFO("m " << m << " spacing " << spacing << " variant " << variant);
        check_same(s, flag, "flag");
      }
    }

  for (const auto& [n, rows, block, window, budget, chunks] :
       {std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>{1000, 1000, 64, 0, 300, 80},
        {3000, 2900, 128, 700, 700, 900},
        {500, 1, 1, 0, 64, 20},
        {70, 70, 64, 10, 7, 5}}) {
    const int64_t blocks = (rows + block - 1) / block;
    const Tensor bounds = s.host.allocate(DType::i32, {2, chunks + 1});
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t c = 0; c <= chunks; ++c) {
        const int64_t used = chunks - b;  // the second sample has one chunk less
        put(bounds, b * (chunks + 1) + c, c > used ? -1.0 : static_cast<double>(n * c * c / (used * used)));
      }
    const Twin cuts = s.upload(bounds), x = scores(s, {2, blocks, chunks}, true);
    const Twin order = s.poisoned(DType::i32, {2, blocks, chunks});
    ArgsortArgs sort;
    sort.x = x.host, sort.index = order.host, sort.descending = true;
    argsort(s.host, sort);
    copy(s.device, order.host, order.device);
    const Twin tokens = s.poisoned(DType::i32, {2, blocks, budget}),
               begin = s.poisoned(DType::i32, {2, 1, blocks}), count = s.poisoned(DType::i32, {2, 1, blocks}),
               index = s.poisoned(DType::i32, {2 * blocks * budget});
    ChunkListsArgs a;
    a.n = n, a.first = n - std::max(rows, n * (rows > 1)), a.rows = rows, a.block_q = block,
    a.window = window;
    a.recent = 5, a.leading = 4;
    ChunkListsArgs d = a;
    a.order = order.host, a.bounds = cuts.host, a.tokens = tokens.host;
    a.lists = {begin.host, count.host, index.host};
    d.order = order.device, d.bounds = cuts.device, d.tokens = tokens.device;
    d.lists = {begin.device, count.device, index.device};
    chunk_lists(s.host, a);
    chunk_lists(s.device, d);
    INFO("n " << n << " rows " << rows);
    check_same(s, tokens, "tokens");
    check_same(s, begin, "begin");
    check_same(s, count, "count");
    check_same(s, index, "index");
    s.check_graph([&] { chunk_lists(s.device, d); }, {tokens, count});
  }
}
