"""Numbers in text: the kernel is its reference, bit for bit, and the reference is what Python reads and prints."""

import doctest
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextham_kernels import loading, number_text
from nextham_kernels.number_text import MalformedNumber, format_numbers, parse_numbers

FLOAT, COMPLEX, INT32, INT64 = (np.dtype(t) for t in (np.float64, np.complex128, np.int32, np.int64))
DTYPES = [FLOAT, COMPLEX, INT32, INT64]

quick = settings(max_examples=300, deadline=None)
reals = st.floats(allow_nan=False, allow_infinity=False)
numbers_of = {
    FLOAT: reals,
    COMPLEX: st.builds(complex, reals, reals),
    INT32: st.integers(-(2**31), 2**31 - 1),
    INT64: st.integers(-(2**63), 2**63 - 1),
}
arrays = st.sampled_from(DTYPES).flatmap(
    lambda t: st.lists(numbers_of[t], max_size=12).map(lambda values: np.array(values, dtype=t))
)
# Text that is nearly, and often enough exactly, a list of numbers.
texts = st.lists(
    st.sampled_from([b"1", b"0", b"9", b"25", b".", b"-", b"+", b"e", b"E", b"(", b")", b",", b" ", b"\n", b"\r\n\t"])
    | st.sampled_from([b"nan", b"inf", b"x", b"_", b"\x00", b"\xff", b"1e-05", b"(1,2)", b" 12 ", b" -3.5e+2 "]),
    max_size=12,
).map(b"".join)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit, the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@quick
@given(arrays, st.sampled_from([" ", "\n", "\t \r\n"]))
def test_reference_is_the_definition_of_parsing(array, separator):
    words = [f"({v.real!r},{v.imag!r})" if array.dtype == COMPLEX else repr(v) for v in array.tolist()]
    text = separator.join(words).encode()
    parsed, n, end = number_text.parse_reference(text, 0, len(array), array.dtype)
    assert same(parsed, array) and (n, end) == (len(array), len(text))


@quick
@given(arrays, st.integers(0, 17))
def test_reference_is_the_definition_of_printing(array, digits):
    def spell(v):
        return str(v) if array.dtype.kind == "i" else f"%.{digits}e" % v

    words = [f"({spell(v.real)},{spell(v.imag)})" if array.dtype == COMPLEX else spell(v) for v in array.tolist()]
    assert number_text.format_reference(array, digits, 0, 0).decode() == "".join(" " + word for word in words)


@quick
@given(texts, st.integers(0, 5), st.integers(0, 6), st.sampled_from(DTYPES))
@example(b"1e999", 0, 1, FLOAT)
@example(b"-1e-999 2", 0, 2, FLOAT)
@example(b"0." + b"0" * 400 + b"1", 0, 1, FLOAT)
@example(b"1" + b"0" * 400, 0, 1, FLOAT)
@example(b"1" + b"0" * 400 + b"e-300", 0, 1, FLOAT)
@example(b"1" + b"0" * 400 + b"e-999", 0, 1, FLOAT)
@example(b"1e-99999999999999999999 1e99999999999999999999", 0, 2, FLOAT)
@example(b"2.4703282292062327e-324 2.4703282292062328e-324 9007199254740993", 0, 3, FLOAT)
@example(b"2147483648", 0, 1, INT32)
@example(b"-9223372036854775809", 0, 1, INT64)
@example(b"(1,2)(3,4)", 0, 2, COMPLEX)
@example(b"(+1,-.5)", 0, 1, COMPLEX)
def test_forward_parsing(text, start, count, dtype):
    start = min(start, len(text))
    kernel = getattr(loading.compiled(), f"parse_{dtype.name}")
    numbers, n, end = kernel(text, start, count)
    expected, expected_n, expected_end = number_text.parse_reference(text, start, count, dtype)
    assert (n, end) == (expected_n, expected_end)
    assert same(numbers[:n], expected)


@quick
@given(arrays, st.integers(0, 17), st.integers(0, 4), st.integers(0, 5))
def test_forward_printing(array, digits, per_line, first):
    kernel = getattr(loading.compiled(), f"format_{array.dtype.name}")
    text = kernel(array, digits, per_line, first)
    assert text == number_text.format_reference(array, digits, per_line, first)


@quick
@given(arrays)
def test_seventeen_digits_keep_every_bit(array):
    text = format_numbers(array, digits=16)
    parsed, end = parse_numbers(text, 0, len(array), array.dtype)
    assert same(parsed, array) and end == len(text)


def test_pieces_of_a_list_print_as_the_whole():
    values = np.linspace(-1, 1, 20)
    whole = format_numbers(values, 3, per_line=6)
    assert whole.count(b"\n") == 3 and not whole.endswith(b"\n")
    assert format_numbers(values[:7], 3, per_line=6) + format_numbers(values[7:], 3, per_line=6, first=7) == whole


def test_any_buffer_and_any_stride():
    import mmap

    with mmap.mmap(-1, 16) as mapped:
        mapped[:] = b" 1.5 2.5 -3    \n"
        for text in (bytes(mapped), bytearray(mapped), memoryview(bytes(mapped)), mapped):
            parsed, end = parse_numbers(text, 4, 2, np.float64)
            assert parsed.tolist() == [2.5, -3.0] and end == 11
    assert format_numbers(np.arange(6)[::2]) == b" 0 2 4"
    assert format_numbers(np.empty(0)) == b""
    assert parse_numbers(b"x", 0, 0, np.float64)[0].shape == (0,)


@pytest.mark.parametrize(
    ("text", "dtype", "offset", "index", "word"),
    [
        (b"1.5 nan", FLOAT, 4, 1, "nan"),
        (b"1.5 inf 2", FLOAT, 4, 1, "inf"),
        (b"1.5 1e400", FLOAT, 4, 1, "1e400"),
        (b"1.5 0x10", FLOAT, 4, 1, "0x10"),
        (b"1.5 1_0", FLOAT, 4, 1, "1_0"),
        (b"1.5\n", FLOAT, 4, 1, ""),
        (b"(1,2) (3, 4)", COMPLEX, 6, 1, "(3,"),
        (b"(1,2) 3", COMPLEX, 6, 1, "3"),
        (b"1 2.0", INT32, 2, 1, "2.0"),
        (b"1 2147483648", INT32, 2, 1, "2147483648"),
        (b"", INT64, 0, 0, ""),
    ],
)
def test_contract_of_malformed_numbers(text, dtype, offset, index, word):
    with pytest.raises(MalformedNumber) as caught:
        parse_numbers(text, 0, 2, dtype)
    error = caught.value
    assert (error.offset, error.index, error.word) == (offset, index, word)
    assert f"number {index + 1} at byte {offset}: expected a number, found " in str(error)


def test_contract():
    with pytest.raises(TypeError, match="dtype: expected float64, complex128, int32, int64, got float32"):
        parse_numbers(b"1", 0, 1, np.float32)
    with pytest.raises(TypeError, match="got object"):
        format_numbers(np.array([1, "a"], dtype=object))
    for start, count in ((-1, 1), (2, 1), (0, -1)):
        with pytest.raises(ValueError, match="expected a place in 1 bytes"):
            parse_numbers(b"1", start, count, np.float64)
    with pytest.raises(ValueError, match=r"expected shape \[n\], got \[2, 2\]"):
        format_numbers(np.zeros((2, 2)))
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected finite numbers, got"):
            format_numbers(np.array([0, complex(1, value)]))
    with pytest.raises(ValueError, match=r"expected 0\.\.\.17"):
        format_numbers(np.zeros(1), digits=18)


def test_a_count_beyond_the_text_costs_nothing():
    with pytest.raises(MalformedNumber) as caught:
        parse_numbers(b"1 2 3", 0, 10**15, np.float64)
    assert caught.value.index == 3 and caught.value.offset == 5


def test_the_docstrings_are_true():
    for module in (number_text, loading):
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
        assert result.attempted > 0 and result.failed == 0


def test_a_missing_build_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nextham_kernels._C", None)
    with pytest.raises(RuntimeError, match=r"run `pip install \.`"):
        loading.compiled()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("", "cpp"),
        ("reference", "reference"),
        ("fast", "ValueError: NEXTHAM_KERNELS: expected 'reference', 'triton-interpreted' or nothing, got 'fast'"),
    ],
)
def test_one_switch(mode, expected):
    program = (
        "import sys, numpy\n"
        "if sys.argv[1] == 'reference': sys.modules['nextham_kernels._C'] = None\n"
        "from nextham_kernels.number_text import parse_numbers\n"
        "from nextham_kernels.loading import loaded\n"
        "assert parse_numbers(b'1 2', 0, 2, numpy.int32)[0].tolist() == [1, 2]\n"
        "print(loaded()['number_text']['cpu'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, mode],
        env={**os.environ, "NEXTHAM_KERNELS": mode},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in run.stdout + run.stderr
