// The comparison that decides pass or fail: norms, places, NaN and infinities.
#include "reference/compare.hpp"

#include <cmath>
#include <limits>

#include "kernels/core/error.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {
RefTensor tensor(std::vector<int64_t> shape, std::vector<double> data) {
  RefTensor t(std::move(shape));
  t.data = std::move(data);
  return t;
}
const double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
}  // namespace

TEST_CASE("relative L2 and the worst element") {
  const Comparison c = compare(tensor({2, 2}, {3, 4, 0, 1}), tensor({2, 2}, {3, 4, 0, 0}));
  CHECK(c.relative_l2 == Approx(0.2));
  CHECK(c.max_absolute == 1.0);
  CHECK(c.worst == "[1, 1]: 1.0 instead of 0.0");
  CHECK(compare(tensor({1}, {5}), tensor({1}, {5})).worst.empty());
  // Against zeros the error is absolute.
  CHECK(compare(tensor({2}, {3e-7, 4e-7}), tensor({2}, {0, 0})).relative_l2 == Approx(5e-7));
}

TEST_CASE("NaN matches only NaN, and infinities only themselves") {
  CHECK(compare(tensor({2}, {kNaN, 1}), tensor({2}, {kNaN, 1})).relative_l2 == 0);
  CHECK(compare(tensor({2}, {kInf, 1}), tensor({2}, {kInf, 1})).relative_l2 == 0);
  CHECK(std::isinf(compare(tensor({2}, {kNaN, 1}), tensor({2}, {1, 1})).relative_l2));
  CHECK(std::isinf(compare(tensor({2}, {1, 1}), tensor({2}, {1, kNaN})).relative_l2));
  const Comparison c = compare(tensor({2}, {1, -kInf}), tensor({2}, {1, kInf}));
  CHECK(std::isinf(c.relative_l2));
  CHECK(c.worst == "[1]: -.inf instead of .inf");
}

TEST_CASE("large values do not overflow, shapes must agree") {
  CHECK(compare(tensor({2}, {1e300, 1e300}), tensor({2}, {1e300, 1.1e300})).relative_l2 ==
        Approx(0.1 / std::sqrt(1 + 1.21)));
  CHECK_THROWS_AS(compare(tensor({2}, {1, 2}), tensor({1, 2}, {1, 2})), DataError);
}
