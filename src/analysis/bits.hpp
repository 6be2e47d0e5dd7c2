// Fixed-size bit sets in one block of memory, a row each: the relations of receptive_field. Not a general
// container.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace attnbench {

class BitMatrix {
 public:
  BitMatrix(int64_t rows, int64_t columns)
      : columns_(columns), words_((columns + 63) / 64), data_(static_cast<size_t>(rows * words_), 0) {}
  int64_t words() const { return words_; }
  uint64_t* row(int64_t r) { return data_.data() + r * words_; }
  const uint64_t* row(int64_t r) const { return data_.data() + r * words_; }
  void set_range(int64_t r, int64_t begin, int64_t end) { set_bits(row(r), begin, end); }
  int64_t bytes() const { return static_cast<int64_t>(data_.size() * sizeof(uint64_t)); }
  bool operator==(const BitMatrix&) const = default;

  static void set_bits(uint64_t* bits, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const int64_t first = begin / 64, last = (end - 1) / 64;
    const uint64_t low = ~uint64_t{0} << (begin % 64), high = ~uint64_t{0} >> (63 - (end - 1) % 64);
    if (first == last) {
      bits[first] |= low & high;
      return;
    }
    bits[first] |= low;
    for (int64_t w = first + 1; w < last; ++w) bits[w] = ~uint64_t{0};
    bits[last] |= high;
  }
  /// Set bits among [0, end).
  static int64_t count(const uint64_t* bits, int64_t end) {
    int64_t n = 0;
    for (int64_t w = 0; w < end / 64; ++w) n += std::popcount(bits[w]);
    if (end % 64) n += std::popcount(bits[end / 64] & (~uint64_t{0} >> (64 - end % 64)));
    return n;
  }
  /// First set bit of [begin, end), or end.
  static int64_t first(const uint64_t* bits, int64_t begin, int64_t end) {
    if (begin >= end) return end;
    uint64_t word = bits[begin / 64] & (~uint64_t{0} << (begin % 64));
    for (int64_t w = begin / 64;;) {
      if (word) {
        const int64_t at = w * 64 + std::countr_zero(word);
        return at < end ? at : end;
      }
      if (++w * 64 >= end) return end;
      word = bits[w];
    }
  }
  /// Last set bit of [begin, end), or begin - 1.
  static int64_t last(const uint64_t* bits, int64_t begin, int64_t end) {
    if (begin >= end) return begin - 1;
    uint64_t word = bits[(end - 1) / 64] & (~uint64_t{0} >> (63 - (end - 1) % 64));
    for (int64_t w = (end - 1) / 64;;) {
      if (word) {
        const int64_t at = w * 64 + 63 - std::countl_zero(word);
        return at >= begin ? at : begin - 1;
      }
      if (w * 64 <= begin) return begin - 1;
      word = bits[--w];
    }
  }
  /// First clear bit of [begin, end), or end.
  static int64_t first_clear(const uint64_t* bits, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const uint64_t clear = ~bits[i / 64] & (~uint64_t{0} << (i % 64));
      if (clear) return std::min(end, i / 64 * 64 + std::countr_zero(clear));
      i = (i / 64 + 1) * 64;
    }
    return end;
  }
  /// Last clear bit of [begin, end), or begin - 1.
  static int64_t last_clear(const uint64_t* bits, int64_t begin, int64_t end) {
    for (int64_t i = end - 1; i >= begin;) {
      const uint64_t clear = ~bits[i / 64] & (~uint64_t{0} >> (63 - i % 64));
      if (clear) return std::max(begin - 1, i / 64 * 64 + 63 - std::countl_zero(clear));
      i = i / 64 * 64 - 1;
    }
    return begin - 1;
  }

 private:
  int64_t columns_, words_;
  std::vector<uint64_t> data_;
};

}  // namespace attnbench
