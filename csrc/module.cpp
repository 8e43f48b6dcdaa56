// The extension module nextham_kernels._C: number text, and one submodule of arithmetic kernels per instruction set.
#include "module.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of nextham_kernels; the contracts are in the Python modules of the same names.";
  bind_number_text(m);
  NEXTHAM_BIND_KERNELS(m, scalar)
#ifdef NEXTHAM_X86
  // Submodules come slowest first; a processor without an instruction set does not get its submodule.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    NEXTHAM_BIND_KERNELS(m, avx2)
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")) {
    NEXTHAM_BIND_KERNELS(m, avx512)
  }
#endif
}
