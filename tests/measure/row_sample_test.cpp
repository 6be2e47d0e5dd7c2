#include "measure/row_sample.hpp"

#include <algorithm>
#include <set>

#include "tests/catch.hpp"

using namespace attnbench;

namespace {
Problem heads_form(int64_t batch, int64_t heads, int64_t length, std::vector<int64_t> grid = {}) {
  Problem p;
  p.batch = batch, p.heads = heads, p.length = length, p.head_dim = 8;
  p.grid = std::move(grid);
  return p;
}
Params tiles() {
  return resolve_params(
      "test", {spec::integer("block_size", 48, 1, ""), spec::list("window_size", Value::List{20, 30}, "")},
      {}, heads_form(1, 1, 1));
}
}  // namespace

TEST_CASE("the first and the last row come first, then every batch and head before any comes thrice") {
  RowSample s({3, 5, 1000, 8}, heads_form(3, 5, 1000), tiles());
  CHECK(s.total() == 15000);
  CHECK(s.least() == 2 + 2 * 15);
  CHECK(s.next(2) == std::vector<int64_t>{0, 14999});
  std::vector<int> visits(15);
  for (const int64_t row : s.next(30)) ++visits[static_cast<size_t>(row / 1000)];
  CHECK(*std::min_element(visits.begin(), visits.end()) >= 1);
  CHECK(*std::max_element(visits.begin(), visits.end()) <= 3);
}

TEST_CASE("each head sees its ends, borders of tiles and rows between") {
  RowSample s({1, 4, 1000, 8}, heads_form(1, 4, 1000), tiles());
  std::vector<std::set<int64_t>> seen(4);
  for (const int64_t row : s.next(4 * 40)) seen[static_cast<size_t>(row / 1000)].insert(row % 1000);
  std::set<int64_t> all;
  for (const auto& positions : seen) {
    CHECK(positions.contains(0));
    CHECK(positions.contains(999));
    all.insert(positions.begin(), positions.end());
  }
  const auto at_border = [](int64_t i, int64_t period) {
    return i % period == 0 || i % period == period - 1;
  };
  CHECK(std::count_if(all.begin(), all.end(), [&](int64_t i) { return at_border(i, 48); }) >= 8);
  CHECK(std::count_if(all.begin(), all.end(), [&](int64_t i) { return at_border(i, 64); }) >= 8);
}

TEST_CASE("heads behind the tokens are told from heads before them, grids from lines") {
  // [B, y, x, H, D]: every head, both edges of each axis.
  RowSample s({2, 40, 50, 3, 8}, heads_form(2, 3, 0, {40, 50}), tiles());
  std::set<int64_t> heads, ys, xs;
  for (const int64_t row : s.next(200)) {
    heads.insert(row % 3);
    xs.insert(row / 3 % 50), ys.insert(row / 3 / 50 % 40);
  }
  CHECK(heads == std::set<int64_t>{0, 1, 2});
  CHECK(ys.contains(39));
  CHECK(xs.contains(49));
  CHECK(ys.contains(16));
}

TEST_CASE("rows are distinct, every one comes in the end, and the order is the same each time") {
  RowSample a({2, 3, 7, 8}, heads_form(2, 3, 7), tiles()), b({2, 3, 7, 8}, heads_form(2, 3, 7), tiles());
  std::vector<int64_t> rows, again;
  for (int64_t group : {1, 5, 100, 100}) {
    for (const int64_t r : a.next(group)) rows.push_back(r);
    for (const int64_t r : b.next(group)) again.push_back(r);
  }
  CHECK(rows == again);
  CHECK(std::set<int64_t>(rows.begin(), rows.end()).size() == 42);
  CHECK(rows.size() == 42);
  CHECK(a.next(1).empty());
  Problem other = heads_form(2, 3, 7);
  other.seed = 1;
  RowSample c({2, 3, 7, 8}, other, tiles());
  CHECK(c.next(42) != rows);
  // One row, and no heads at all.
  CHECK(RowSample({1, 8}, Problem{}, tiles()).next(5) == std::vector<int64_t>{0});
}
