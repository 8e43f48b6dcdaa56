// What kernels over rows [e, d] share: array arguments, and when a parallel loop over edges pays.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

// One argument of a call from Python: a view of an array, a list of such, or a number.
struct Argument {
  void* data = nullptr;
  const std::ptrdiff_t* dims = nullptr;
  std::int64_t n_dims = 0, n_numbers = 0;
  bool writeable = false;
  std::int64_t integer = 0;
  double number = 0;
  std::vector<Argument> items;
};

// Arrays arrive C-contiguous and of the right type, or the call fails: nothing is ever copied.
template <typename T>
class Array {
 public:
  explicit Array(const Argument& a) : a_(a) {}
  std::int64_t ndim() const { return a_.n_dims; }
  std::int64_t shape(std::int64_t axis) const { return a_.dims[axis]; }
  std::int64_t size() const { return a_.n_numbers; }

  const T* data() const { return static_cast<const T*>(a_.data); }
  T* mutable_data() {
    if (!a_.writeable) throw std::invalid_argument("array is not writeable");
    return static_cast<T*>(a_.data);
  }

 private:
  Argument a_;
};

template <typename T>
const T* in(const Array<T>& a) {
  return a.data();
}
template <typename T>
T* out(Array<T>& a) {
  return a.mutable_data();
}

// Below this many numbers a second thread costs more than it saves.
constexpr std::int64_t kParallelNumbers = 1 << 15;

// Says that fresh memory is about to be written as a whole. On Linux, where huge pages are to be had on request, the
// part that fills some is asked for in them, as NumPy does for its arrays: the first touch of memory in pages of 4 kB
// costs as much as the work of a product that is bound by memory.
inline void expect_writes(void* data, std::size_t n_bytes) {
#ifdef __linux__
  constexpr std::uintptr_t huge = std::uintptr_t(1) << 21;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + huge - 1) / huge * huge;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + n_bytes) / huge * huge;
  if (begin + huge < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data), static_cast<void>(n_bytes);
#endif
}
