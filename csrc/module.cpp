// The extension module nextham_kernels._C: number text, and one submodule of arithmetic kernels per instruction set.
#include "module.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#if defined(NEXTHAM_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <map>
#include <memory>
#include <string>

void bind_number_text(pybind11::module_& m);

namespace {

const char* words(Kind kind) {
  switch (kind) {
    case Kind::float32_array:
      return "a C-contiguous float32 array";
    case Kind::float64_array:
      return "a C-contiguous float64 array";
    case Kind::int32_array:
      return "a C-contiguous int32 array";
    case Kind::int64_array:
      return "a C-contiguous int64 array";
    case Kind::bool_array:
      return "a C-contiguous bool array";
    case Kind::float32_arrays:
      return "a list of C-contiguous float32 arrays";
    case Kind::float64_arrays:
      return "a list of C-contiguous float64 arrays";
    case Kind::int32_arrays:
      return "a list of C-contiguous int32 arrays";
    case Kind::integer:
      return "an integer";
    case Kind::number:
      return "a number";
    case Kind::flag:
      break;
  }
  return "a bool";
}

template <typename T>
bool take_array(pybind11::handle given, Argument& a) {
  if (!pybind11::array_t<T, pybind11::array::c_style>::check_(given)) return false;
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(given);
  a.data = const_cast<void*>(array.data());
  a.dims = array.shape();
  a.n_dims = array.ndim();
  a.n_numbers = array.size();
  a.writeable = array.writeable();
  return true;
}

template <typename T>
bool take_arrays(pybind11::handle given, Argument& a) {
  if (!pybind11::isinstance<pybind11::list>(given)) return false;
  const auto list = pybind11::reinterpret_borrow<pybind11::list>(given);
  a.items.assign(list.size(), {});
  for (std::size_t i = 0; i < list.size(); ++i)
    if (!take_array<T>(list[i], a.items[i])) return false;
  return true;
}

template <typename T, typename V>
bool take_number(pybind11::handle given, V& value) {
  pybind11::detail::make_caster<T> caster;
  if (!caster.load(given, true)) return false;
  value = static_cast<V>(pybind11::detail::cast_op<T>(caster));
  return true;
}

bool take(pybind11::handle given, Kind kind, Argument& a) {
  switch (kind) {
    case Kind::float32_array:
      return take_array<float>(given, a);
    case Kind::float64_array:
      return take_array<double>(given, a);
    case Kind::int32_array:
      return take_array<std::int32_t>(given, a);
    case Kind::int64_array:
      return take_array<std::int64_t>(given, a);
    case Kind::bool_array:
      return take_array<bool>(given, a);
    case Kind::float32_arrays:
      return take_arrays<float>(given, a);
    case Kind::float64_arrays:
      return take_arrays<double>(given, a);
    case Kind::int32_arrays:
      return take_arrays<std::int32_t>(given, a);
    case Kind::integer:
      return take_number<std::int64_t>(given, a.integer);
    case Kind::number:
      return take_number<double>(given, a.number);
    case Kind::flag:
      break;
  }
  return take_number<bool>(given, a.integer);
}

std::string words(pybind11::handle given) {
  if (!pybind11::isinstance<pybind11::array>(given)) return pybind11::str(pybind11::type::handle_of(given));
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(given);
  const bool contiguous = array.flags() & pybind11::array::c_style;
  return (contiguous ? "a C-contiguous " : "a strided ") + std::string(pybind11::str(array.dtype())) + " array";
}

// Calls the first overload that takes the arguments.
void call(const std::string& name, const std::vector<Kernel>& overloads, const pybind11::args& given) {
  std::vector<Argument> arguments(given.size());
  std::size_t furthest = 0;
  const char* expected = nullptr;
  for (const Kernel& kernel : overloads) {
    const std::size_t n = kernel.parameters.size();
    if (n != given.size())
      throw pybind11::type_error(name + ": expected " + std::to_string(n) + " arguments, got " +
                                 std::to_string(given.size()));
    std::size_t i = 0;
    while (i < n && take(given[i], kernel.parameters[i], arguments[i])) ++i;
    if (i == n) {
      const pybind11::gil_scoped_release release;
      return kernel.call(kernel.function, arguments.data());
    }
    if (!expected || i > furthest) expected = words(kernel.parameters[i]), furthest = i;
  }
  throw pybind11::type_error(name + ": expected " + expected + " as argument " + std::to_string(furthest + 1) +
                             ", got " + words(given[furthest]));
}

class Submodule final : public Module {
 public:
  explicit Submodule(pybind11::module_ m) : m_(std::move(m)) {}
  void constant(const char* name, std::int64_t value) override { m_.attr(name) = value; }

 protected:
  void add(const char* name, const Kernel& kernel) override {
    auto& overloads = overloads_[name];
    if (!overloads) {
      overloads = std::make_shared<std::vector<Kernel>>();
      m_.def(name, [name, all = overloads](const pybind11::args& given) { call(name, *all, given); });
    }
    overloads->push_back(kernel);
  }

 private:
  pybind11::module_ m_;
  std::map<std::string, std::shared_ptr<std::vector<Kernel>>> overloads_;
};

}  // namespace

#if defined(NEXTHAM_X86) && defined(__linux__)
namespace {

// Whether the processor multiplies tiles of bfloat16 (CPUID leaf 7, EDX bits 22 and 24), and the system gives this
// process the registers for it (arch_prctl ARCH_REQ_XCOMP_PERM, state 18).
bool matrix_unit() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned needed = 1u << 22 | 1u << 24;
  return (d & needed) == needed && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

}  // namespace
#endif

#define NEXTHAM_BIND(op) bind_##op(kernels);
#define NEXTHAM_BIND_KERNELS(m, isa)                                                     \
  {                                                                                      \
    using namespace isa;                                                                 \
    Submodule kernels((m).def_submodule(#isa, "arithmetic kernels compiled for " #isa)); \
    NEXTHAM_KERNELS(NEXTHAM_BIND)                                                        \
  }

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
#ifdef __linux__
    if (matrix_unit()) {
      NEXTHAM_BIND_KERNELS(m, amx)
    }
#endif
  }
#endif
}
