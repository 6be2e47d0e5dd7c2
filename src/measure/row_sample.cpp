#include "measure/row_sample.hpp"

#include <algorithm>
#include <numeric>

#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

// After so many draws that were taken already, most rows are: the rest is taken in order.
constexpr int kTries = 64;
constexpr int kKinds = 4;  // first, last, border, any

void collect(const Value& v, std::vector<int64_t>& periods) {
  if (v.is_list()) {
    for (const Value& e : v.as_list()) collect(e, periods);
  } else if (v.is_int()) {
    periods.push_back(v.as_int());
    periods.push_back(v.as_int() / 2);  // where a centred window stops being clamped
  }
}

}  // namespace

RowSample::RowSample(const std::vector<int64_t>& shape, const Problem& problem, const Params& params)
    : seed_(problem.seed) {
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) total_ *= shape[axis];
  extents_ = {total_};
  if (shape.size() >= 4 && problem.heads > 0) {
    const auto tokens = [&](size_t first) {
      return std::vector<int64_t>(shape.begin() + static_cast<std::ptrdiff_t>(first),
                                  shape.end() - (first == 1 ? 2 : 1));
    };
    const int64_t after = shape[shape.size() - 2];
    heads_first_ = shape[1] == problem.heads && !(shape.size() > 4 && after == problem.heads &&
                                                  std::equal(problem.grid.begin(), problem.grid.end(),
                                                             tokens(1).begin(), tokens(1).end()));
    if (heads_first_ || after == problem.heads) {
      batch_ = shape[0], heads_ = problem.heads;
      extents_ = tokens(heads_first_ ? 2 : 1);
      // One axis of tokens may be a grid in a line.
      if (extents_.size() == 1 && problem.grid.size() > 1 && problem.tokens() == extents_[0])
        extents_ = problem.grid;
    }
  }
  tokens_ = batch_ * heads_ > 0 ? total_ / (batch_ * heads_) : 0;
  periods_ = {16, 32, 64, 128, 256};
  for (const auto& [name, value] : params.all()) collect(value, periods_);
  std::sort(periods_.begin(), periods_.end());
  periods_.erase(std::unique(periods_.begin(), periods_.end()), periods_.end());
  std::erase_if(periods_, [](int64_t p) { return p < 2; });
  strata_.resize(static_cast<size_t>(batch_ * heads_));
  std::iota(strata_.begin(), strata_.end(), 0);
  shuffle();
}

int64_t RowSample::least() const { return std::min(total_, 2 + 2 * batch_ * heads_); }

std::vector<int64_t> RowSample::next(int64_t count) {
  std::vector<int64_t> rows;
  count = std::min(count, total_ - static_cast<int64_t>(taken_.size()));
  const auto missing = [&] { return static_cast<int64_t>(rows.size()) < count; };
  if (!ends_taken_ && missing()) {
    ends_taken_ = true;
    take(0, rows), take(total_ - 1, rows);
  }
  int failures = 0;
  while (missing() && failures < kTries) {
    if (visit_ == strata_.size()) {
      visit_ = 0, ++round_;
      shuffle();
    }
    // The kinds take turns over the heads of a round, and over the rounds of a head.
    const int64_t stratum = strata_[visit_++];
    int kind = static_cast<int>((stratum + round_) % kKinds);
    if (round_ >= kKinds) kind = kind < 2 ? 2 : 3;  // the ends are known by now
    const size_t before = rows.size();
    take(row_of(stratum, position(kind)), rows);
    failures = rows.size() > before ? 0 : failures + 1;
  }
  while (missing()) take(walk_++, rows);
  return rows;
}

uint64_t RowSample::random(uint64_t below) {
  return random_bits(seed_, stream_of("row_sample"), drawn_++) % below;
}

/// Fisher and Yates.
void RowSample::shuffle() {
  for (size_t i = strata_.size(); i > 1; --i) std::swap(strata_[i - 1], strata_[random(i)]);
}

int64_t RowSample::border(int64_t extent) {
  const auto fitting =
      static_cast<size_t>(std::lower_bound(periods_.begin(), periods_.end(), extent) - periods_.begin());
  if (fitting == 0) return random(2) ? extent - 1 : 0;
  const int64_t period = periods_[random(fitting)];
  const auto multiples = static_cast<uint64_t>((extent - 1) / period);
  const int64_t at = period * static_cast<int64_t>(1 + random(multiples));
  const int64_t place = random(2) ? at : at - 1;
  return random(2) ? place : extent - 1 - place;
}

std::vector<int64_t> RowSample::position(int kind) {
  std::vector<int64_t> p(extents_.size());
  if (kind == 0) return p;
  for (size_t a = 0; a < p.size(); ++a)
    p[a] = kind == 1 ? extents_[a] - 1 : static_cast<int64_t>(random(static_cast<uint64_t>(extents_[a])));
  if (kind != 2) return p;
  const uint64_t which = random(p.size() + 2);  // one of the axes, all of them, the line
  if (which <= p.size()) {
    for (size_t a = 0; a < p.size(); ++a)
      if (which == p.size() || which == a) p[a] = border(extents_[a]);
    return p;
  }
  int64_t at = border(tokens_);
  for (size_t a = p.size(); a-- > 0;) {
    p[a] = at % extents_[a];
    at /= extents_[a];
  }
  return p;
}

int64_t RowSample::row_of(int64_t stratum, const std::vector<int64_t>& position) const {
  int64_t token = 0;
  for (size_t a = 0; a < position.size(); ++a) token = token * extents_[a] + position[a];
  const int64_t b = stratum / heads_, h = stratum % heads_;
  return heads_first_ ? (b * heads_ + h) * tokens_ + token : (b * tokens_ + token) * heads_ + h;
}

void RowSample::take(int64_t row, std::vector<int64_t>& rows) {
  if (taken_.insert(row).second) rows.push_back(row);
}

}  // namespace attnbench
