// gather_rows and transpose_copy on the GPU: bits against the CPU's operators.
#include "kernels/layout/layout.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

void check_copy(Sides& s, const Twin& x, const Twin& y) {
  transpose_copy(s.host, {x.host, y.host});
  transpose_copy(s.device, {x.device, y.device});
  INFO(name(x.host.dtype()) << " " << x.host.shape().str() << " strides " << x.host.strides().str());
  CHECK(same_bits(s.fetch(y, true), y.host_base));
}

Twin permuted(const Twin& t, std::initializer_list<int> axes) {
  return t.view([&](const Tensor& x) { return x.permute(axes); });
}

}  // namespace

TEST_CASE("CUDA gather_rows copies rows, writes zeros for -1 and NaN for what is no index") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f64, DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 601);
  for (int64_t c : {1, 3, 6, 8, 64, 100}) {
    const int64_t n = 37, m = 53;
    const Tensor index = s.host.allocate(DType::i32, {m});
    for (int64_t i = 0; i < m; ++i) put(index, i, static_cast<double>(s.r.integer(-1, n - 1)));
    put(index, 5, -1);
    const Twin at = s.upload(index);
    const Twin x = c % 2 == 0 ? s.random(type, {3, n, c}) : s.padded(type, {3, n, c}, 1, 2);
    const Twin y = c == 100 ? s.padded_output(type, {3, m, c}, 4, 4) : s.poisoned(type, {3, m, c});
    gather_rows(s.host, {x.host, at.host, y.host});
    gather_rows(s.device, {x.device, at.device, y.device});
    CHECK(same_bits(s.fetch(y, true), y.host_base));
    for (double wrong : {-2.0, 37.0, 2147483647.0, -2147483648.0}) {
      put(index, 7, wrong);
      const Twin bad = s.upload(index);
      gather_rows(s.device, {x.device, bad.device, y.device});
      const Tensor got = s.fetch(y);
      bool all_nan = true;
      each(got.select(0, 1).select(0, 7),
           [&](int64_t o) { all_nan = all_nan && std::isnan(get(got.select(0, 1).select(0, 7), o)); });
      CHECK(all_nan);
      CHECK_FALSE(std::isnan(values(got.select(0, 1).select(0, 5))[0]));
    }
  }
}

TEST_CASE("CUDA transpose_copy moves every element for every size of element and permutation") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f64, DType::f32, DType::bf16, DType::u8);
  Sides s(*gpu, 602);
  const auto source = [&](const Shape& shape) { return s.random(type, shape, 0, 200); };
  check_copy(s, source({1000003}), s.poisoned(type, {1000003}));
  check_copy(s, permuted(source({2, 3, 4, 50, 64}), {3, 0, 2, 1, 4}), s.poisoned(type, {50, 2, 4, 3, 64}));
  check_copy(s, permuted(source({2, 3, 4, 50, 7}), {3, 0, 2, 1, 4}), s.poisoned(type, {50, 2, 4, 3, 7}));
  check_copy(s, permuted(source({3, 70, 130}), {0, 2, 1}), s.poisoned(type, {3, 130, 70}));
  check_copy(s, permuted(source({65, 257}), {1, 0}), s.poisoned(type, {257, 65}));
  // Both sides in packs of 16 bytes: whole squares, parts of squares, an axis between, views on either side.
  check_copy(s, permuted(source({3, 128, 192}), {0, 2, 1}), s.poisoned(type, {3, 192, 128}));
  check_copy(s, permuted(source({2, 200, 3, 88}), {2, 3, 0, 1}), s.poisoned(type, {3, 88, 2, 200}));
  check_copy(s, permuted(source({16, 1040}), {1, 0}), s.poisoned(type, {1040, 16}));
  const auto columns = [](const Tensor& t) { return t.slice(1, 16, 96); };
  check_copy(s, permuted(source({72, 112}).view(columns), {1, 0}),
             s.poisoned(type, {80, 112}).view([](const Tensor& t) { return t.slice(1, 32, 104); }));
  check_copy(s, permuted(source({72, 112}).view([](const Tensor& t) { return t.slice(1, 17, 97); }), {1, 0}),
             s.poisoned(type, {80, 72}));
  check_copy(s, permuted(source({4, 999, 3}), {0, 2, 1}), s.poisoned(type, {4, 3, 999}));
  check_copy(s, permuted(source({5, 6, 7, 8}), {3, 2, 1, 0}), s.poisoned(type, {8, 7, 6, 5}));
  check_copy(s, permuted(source({2, 3, 2, 3, 2, 3, 2, 3}), {7, 5, 3, 1, 6, 4, 2, 0}),
             s.poisoned(type, {3, 3, 3, 3, 2, 2, 2, 2}));
  check_copy(s, permuted(source({1, 9, 1, 33}), {3, 2, 1, 0}), s.poisoned(type, {33, 1, 9, 1}));
  // y permuted, x plain; rows within rows; every second column; a broadcast; reversed order.
  check_copy(s, source({40, 50, 60}), permuted(s.poisoned(type, {60, 40, 50}), {1, 2, 0}));
  const auto inside = [](const Tensor& t) { return t.slice(1, 3, 40); };
  check_copy(s, source({30, 50}).view(inside), s.poisoned(type, {30, 60}).view(inside));
  check_copy(s, source({30, 80}).view([](const Tensor& t) {
    return t.strided({30, 40}, {80, 2}, 1);
  }),
             s.poisoned(type, {30, 40}));
  check_copy(s, source({64}).view([](const Tensor& t) {
    return t.strided({20, 64}, {0, 1});
  }),
             s.poisoned(type, {20, 64}));
  check_copy(s, source({90}).view([](const Tensor& t) { return t.strided({90}, {-1}, 89); }),
             s.poisoned(type, {90}));
  const Twin x = permuted(source({3, 70, 130}), {0, 2, 1}), y = s.poisoned(type, {3, 130, 70});
  if (is_float(type)) s.check_graph([&] { transpose_copy(s.device, {x.device, y.device}); }, {y});
}
