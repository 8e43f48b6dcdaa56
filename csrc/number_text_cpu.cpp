// Numbers in text, both ways: the kernel of nextham_kernels/number_text.py, which holds the contract.
// Not parallel: one pass over the bytes of one section of a file, without the GIL, so that a caller may run sections
// in threads. A complex value of ABACUS ("(2.13519842e-07,-1.15978424e-09) ", 33 bytes) costs two std::from_chars of
// nine digits; the text is read where it lies (bytes or a memory-mapped file) and only the numbers are written.
#include <pybind11/numpy.h>

#include <charconv>
#include <cmath>
#include <complex>
#include <cstdint>
#include <string>
#include <system_error>
#include <type_traits>

namespace py = pybind11;

namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// std::from_chars takes no leading plus.
const char* skip_plus(const char* p, const char* end) {
  const bool plus = p + 1 < end && *p == '+' && (is_digit(p[1]) || p[1] == '.');
  return plus ? p + 1 : p;
}

// Whether a number that std::from_chars calls out of range is too small (then it is a zero) rather than too large:
// its first non-zero digit stands far behind the decimal point once the exponent is applied.
bool is_tiny(const char* p, const char* end) {
  std::int64_t place = 0;
  bool point = false, found = false;
  for (; p < end && (is_digit(*p) || *p == '.'); ++p) {
    if (*p == '.') {
      point = true;
      continue;
    }
    found = found || *p != '0';
    if (!point && found) ++place;
    if (point && !found) --place;
  }
  if (p < end) ++p;  // the e of the exponent
  const bool negative = p < end && *p == '-';
  if (p < end && (*p == '-' || *p == '+')) ++p;
  std::int64_t exponent = 0;
  for (; p < end && is_digit(*p); ++p) exponent = exponent < 100000000 ? 10 * exponent + (*p - '0') : exponent;
  return (negative ? place - exponent : place + exponent) < 0;
}

// Each read() takes one number at p and returns where it ends, or nullptr where there is none.

const char* read(const char* p, const char* end, double& value) {
  const char* start = skip_plus(p, end);
  const auto [stop, error] = std::from_chars(start, end, value);
  if (error == std::errc::result_out_of_range) {
    const bool negative = *start == '-';
    if (!is_tiny(start + negative, stop)) return nullptr;
    value = negative ? -0.0 : 0.0;
    return stop;
  }
  return error == std::errc() && std::isfinite(value) ? stop : nullptr;
}

template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
const char* read(const char* p, const char* end, Integer& value) {
  const char* start = p + 1 < end && *p == '+' && is_digit(p[1]) ? p + 1 : p;
  const auto [stop, error] = std::from_chars(start, end, value);
  return error == std::errc() ? stop : nullptr;
}

const char* read(const char* p, const char* end, std::complex<double>& value) {
  double re, im;
  if (p == end || *p != '(') return nullptr;
  p = read(p + 1, end, re);
  if (!p || p == end || *p != ',') return nullptr;
  p = read(p + 1, end, im);
  if (!p || p == end || *p != ')') return nullptr;
  value = {re, im};
  return p + 1;
}

// Returns (numbers [count], how many were read, offset behind the last one; or, if fewer, of the first malformed one).
template <class T>
py::tuple parse(const py::buffer& text, std::int64_t start, std::int64_t count) {
  const py::buffer_info info = text.request();
  const char* const begin = static_cast<const char*>(info.ptr);
  const std::int64_t size = info.size * info.itemsize;
  if (start < 0 || start > size) throw py::value_error("start: outside the text");
  // A number and a separator are two bytes: a count that the text cannot hold must not decide how much is allocated.
  const std::int64_t most = (size - start) / 2 + 1;
  py::array_t<T> numbers(count <= most ? count : most);
  T* out = numbers.mutable_data();
  std::int64_t n = 0;
  const char *p = begin + start, *const end = begin + size;
  {
    py::gil_scoped_release release;
    while (n < count) {
      while (p < end && is_space(*p)) ++p;
      const char* stop = p < end ? read(p, end, out[n]) : nullptr;
      if (!stop || (stop < end && !is_space(*stop))) break;
      p = stop;
      ++n;
    }
  }
  return py::make_tuple(numbers, n, p - begin);
}

// Each write() prints one number at p and returns where it ends; widest() bounds its length.

char* write(char* p, double value, int digits) {
  return std::to_chars(p, p + digits + 16, value, std::chars_format::scientific, digits).ptr;
}

template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
char* write(char* p, Integer value, int) {
  return std::to_chars(p, p + 24, value).ptr;
}

char* write(char* p, const std::complex<double>& value, int digits) {
  *p++ = '(';
  p = write(p, value.real(), digits);
  *p++ = ',';
  p = write(p, value.imag(), digits);
  *p++ = ')';
  return p;
}

template <class T>
std::int64_t widest(int digits) {
  if (std::is_integral_v<T>) return 24;
  return std::is_same_v<T, double> ? digits + 16 : 2 * (digits + 16) + 3;
}

template <class T>
py::bytes format(const py::array_t<T, py::array::c_style>& numbers, int digits, std::int64_t per_line,
                 std::int64_t first) {
  const std::int64_t n = numbers.size();
  const T* values = numbers.data();
  PyObject* text = PyBytes_FromStringAndSize(nullptr, n * (widest<T>(digits) + 2));
  if (!text) throw py::error_already_set();
  char* const begin = PyBytes_AS_STRING(text);
  char* p = begin;
  {
    py::gil_scoped_release release;
    for (std::int64_t i = 0; i < n; ++i) {
      if (per_line > 0 && first + i > 0 && (first + i) % per_line == 0) *p++ = '\n';
      *p++ = ' ';
      p = write(p, values[i], digits);
    }
  }
  if (_PyBytes_Resize(&text, p - begin) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(text);
}

template <class T>
void bind(py::module_& m, const std::string& dtype) {
  m.def(("parse_" + dtype).c_str(), &parse<T>, py::arg("text"), py::arg("start"), py::arg("count"));
  m.def(("format_" + dtype).c_str(), &format<T>, py::arg("numbers").noconvert(), py::arg("digits"), py::arg("per_line"),
        py::arg("first"));
}

}  // namespace

void bind_number_text(py::module_& m) {
  bind<double>(m, "float64");
  bind<std::complex<double>>(m, "complex128");
  bind<std::int32_t>(m, "int32");
  bind<std::int64_t>(m, "int64");
}
