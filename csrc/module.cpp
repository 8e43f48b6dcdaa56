// The extension module nextham_kernels._C: every <op>_cpu.cpp binds its own functions.
#include "module.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of nextham_kernels; the contracts are in the Python modules of the same names.";
  bind_number_text(m);
}
