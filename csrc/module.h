// What module.cpp collects: one bind_<op> per <op>_cpu.cpp.
#pragma once

#include <pybind11/pybind11.h>

void bind_number_text(pybind11::module_& m);
