// What kernels over rows [e, d] share: array arguments, and a parallel loop over edges.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

// Arrays arrive C-contiguous and of the right type: the op's Python side has checked them, and nothing is ever copied.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

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
