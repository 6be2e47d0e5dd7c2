// Splits index ranges over the context's threads. Results must not depend on the split: bodies write disjoint
// outputs or fill slots that are combined in index order.
#pragma once
#include <algorithm>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace attnbench {

/// Bytes of traffic below which a second thread costs more than it brings: waking a sleeping OpenMP team
/// takes about 5 us, in which one core streams about 64 KiB.
inline constexpr int64_t kParallelBytes = int64_t{1} << 17;

namespace detail {
inline int& worker() {
  static thread_local int index = 0;
  return index;
}
struct WorkerScope {
  explicit WorkerScope(int index) { worker() = index; }
  ~WorkerScope() { worker() = 0; }
};
}  // namespace detail

/// Inside a body below: the number of the thread that runs it, less than the team's size, for workspaces cut
/// per thread. 0 elsewhere, also when the caller is itself part of a parallel region.
inline int thread_index() { return detail::worker(); }

/// Calls body(begin, end) on contiguous parts of [0, n), one per thread, none smaller than `grain`. Part
/// borders are multiples of `align`. The body must not throw.
template <class Body>
void parallel_range(int threads, int64_t n, int64_t grain, const Body& body, int64_t align = 1) {
  if (n <= 0) return;
  int64_t parts = std::min<int64_t>(threads, n / std::max<int64_t>(grain, 1));
#if defined(_OPENMP)
  if (parts > 1 && !omp_in_parallel()) {
    const int64_t step = ((n + parts - 1) / parts + align - 1) / align * align;
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static, 1)
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = std::min(n, p * step), end = std::min(n, begin + step);
      const detail::WorkerScope scope(omp_get_thread_num());
      if (begin < end) body(begin, end);
    }
    return;
  }
#endif
  body(int64_t{0}, n);
}

/// Calls body(i) for every i of [0, n) in dynamic order, for uneven items. The body must not throw.
template <class Body>
void parallel_items(int threads, int64_t n, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1 && n > 1 && !omp_in_parallel()) {
#pragma omp parallel for num_threads(static_cast <int>(std::min <int64_t>(threads, n))) schedule(dynamic, 1)
    for (int64_t i = 0; i < n; ++i) {
      const detail::WorkerScope scope(omp_get_thread_num());
      body(i);
    }
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace attnbench
