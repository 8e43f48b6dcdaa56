// What module.cpp collects: the arithmetic kernels of every <op>_cpu.cpp but number_text_cpu.cpp, compiled once per
// instruction set with NEXTHAM_ISA naming its namespace. A new op adds its line to NEXTHAM_KERNELS.
// Kernels are functions of arrays and numbers that return nothing; they run without Python's lock and never see
// pybind11, whose headers take longer to compile than most kernels: only module.cpp knows them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "rows.h"

// What Python has to give for a parameter.
enum class Kind {
  float32_array,
  float64_array,
  int32_array,
  int64_array,
  bool_array,
  float32_arrays,
  float64_arrays,
  int32_arrays,
  integer,
  number,
  flag
};

template <typename T>
constexpr Kind kind_of = std::is_same_v<T, bool> ? Kind::flag
                         : std::is_integral_v<T> ? Kind::integer
                                                 : Kind::number;
template <>
inline constexpr Kind kind_of<Array<float>> = Kind::float32_array;
template <>
inline constexpr Kind kind_of<Array<double>> = Kind::float64_array;
template <>
inline constexpr Kind kind_of<Array<std::int32_t>> = Kind::int32_array;
template <>
inline constexpr Kind kind_of<Array<std::int64_t>> = Kind::int64_array;
template <>
inline constexpr Kind kind_of<Array<bool>> = Kind::bool_array;
template <>
inline constexpr Kind kind_of<std::vector<Array<float>>> = Kind::float32_arrays;
template <>
inline constexpr Kind kind_of<std::vector<Array<double>>> = Kind::float64_arrays;
template <>
inline constexpr Kind kind_of<std::vector<Array<std::int32_t>>> = Kind::int32_arrays;

template <typename T>
T value_of(const Argument& a) {
  if constexpr (kind_of<T> == Kind::number) {
    return static_cast<T>(a.number);
  } else if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<T>(a.integer);
  } else if constexpr (kind_of<T> == Kind::float32_arrays || kind_of<T> == Kind::float64_arrays ||
                       kind_of<T> == Kind::int32_arrays) {
    return T(a.items.begin(), a.items.end());
  } else {
    return T(a);
  }
}

// A function of the kernels, its type forgotten.
struct Kernel {
  using Function = void (*)();
  Function function;
  void (*call)(Function, const Argument*);
  std::vector<Kind> parameters;
};

template <typename... A, std::size_t... I>
void call_kernel(void (*f)(A...), const Argument* a, std::index_sequence<I...>) {
  std::tuple<std::decay_t<A>...> values{value_of<std::decay_t<A>>(a[I])...};
  f(std::get<I>(values)...);
}

// The Python submodule of an instruction set.
class Module {
 public:
  // Functions of one name are overloads.
  template <typename... A>
  void def(const char* name, void (*f)(A...)) {
    const auto call = [](Kernel::Function g, const Argument* a) {
      call_kernel(reinterpret_cast<void (*)(A...)>(g), a, std::index_sequence_for<A...>());
    };
    add(name, {reinterpret_cast<Kernel::Function>(f), call, {kind_of<std::decay_t<A>>...}});
  }
  virtual void constant(const char* name, std::int64_t value) = 0;

 protected:
  ~Module() = default;
  virtual void add(const char* name, const Kernel& kernel) = 0;
};

// clang-format off
#define NEXTHAM_KERNELS(X) \
  X(attention) \
  X(bloch_sum) \
  X(blocks_irreps) \
  X(edge_embedding) \
  X(edge_layer) \
  X(edge_linear) \
  X(edge_tensor_product) \
  X(edge_wigner) \
  X(gate) \
  X(gram) \
  X(grid_integrals) \
  X(layer_norm_silu) \
  X(node_layer) \
  X(norm) \
  X(projector_product) \
  X(radial_basis) \
  X(rotation) \
  X(spherical_harmonics) \
  X(superposition) \
  X(tensor_product) \
  X(tracegrad) \
  X(tracegrad_backward) \
  X(two_center) \
  X(xc_potential)
// clang-format on

#define NEXTHAM_DECLARE(op) void bind_##op(Module& m);
namespace scalar {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}
namespace avx2 {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}
namespace avx512 {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}
namespace amx {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}
