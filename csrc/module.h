// What module.cpp collects: bind_number_text, and the arithmetic kernels of every other <op>_cpu.cpp, which is compiled
// once per instruction set with NEXTHAM_ISA naming its namespace. A new op adds its line to NEXTHAM_KERNELS.
#pragma once

#include <pybind11/pybind11.h>

void bind_number_text(pybind11::module_& m);

// clang-format off
#define NEXTHAM_KERNELS(X) \
  X(attention) \
  X(bloch_sum) \
  X(blocks_irreps) \
  X(edge_linear) \
  X(edge_tensor_product) \
  X(edge_wigner) \
  X(gate) \
  X(gram) \
  X(layer_norm_silu) \
  X(norm) \
  X(radial_basis) \
  X(rotation) \
  X(spherical_harmonics) \
  X(tensor_product) \
  X(tracegrad)
// clang-format on

#define NEXTHAM_DECLARE(op) void bind_##op(pybind11::module_& m);
namespace scalar {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}
namespace avx2 {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}
namespace avx512 {
NEXTHAM_KERNELS(NEXTHAM_DECLARE)
}

#define NEXTHAM_BIND(op) bind_##op(kernels);
#define NEXTHAM_BIND_KERNELS(m, isa)                                                 \
  {                                                                                  \
    using namespace isa;                                                             \
    auto kernels = (m).def_submodule(#isa, "arithmetic kernels compiled for " #isa); \
    NEXTHAM_KERNELS(NEXTHAM_BIND)                                                    \
  }
