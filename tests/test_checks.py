"""Each check gives its sentence."""

import harness
import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors


def test_shapes_bind_letters():
    sizes = check_shapes(x=(torch.zeros(4, 3), "e 3"), y=(torch.zeros(4, 2), "e c"))
    assert sizes == {"e": 4, "c": 2}


def test_shape_sentences():
    with harness.raises(ValueError, "x: expected shape [e, 3], got [4, 2]"):
        check_shapes(x=(torch.zeros(4, 2), "e 3"))
    with harness.raises(ValueError, "x: expected shape [e, 3], got [4]"):
        check_shapes(x=(torch.zeros(4), "e 3"))
    with harness.raises(ValueError, "y: expected shape [e, c] with e = 4, got [5, 2]"):
        check_shapes(x=(torch.zeros(4, 3), "e 3"), y=(torch.zeros(5, 2), "e c"))


def test_dtype_sentences():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    check_tensors(x=single, y=single, integer={"i": torch.zeros(1, dtype=torch.int64)})
    check_tensors(z=torch.zeros(1, dtype=torch.complex64), complex_=True)
    with harness.raises(TypeError, "x: expected dtype float32 or float64, got int64"):
        check_tensors(x=torch.zeros(1, dtype=torch.int64))
    with harness.raises(TypeError, "x: expected dtype complex64 or complex128, got float32"):
        check_tensors(x=single, complex_=True)
    with harness.raises(TypeError, "y: expected dtype float32 as x, got float64"):
        check_tensors(x=single, y=double)
    with harness.raises(TypeError, "i: expected dtype int64, got float32"):
        check_tensors(x=single, integer={"i": single})
    with harness.raises(TypeError, "x: expected a torch.Tensor, got list"):
        check_tensors(x=[1.0])


def test_device_sentence():
    with harness.raises(TypeError, "y: expected device cpu as x, got meta"):
        check_tensors(x=torch.zeros(1), y=torch.zeros(1, device="meta"))


def test_irreps_sentence():
    with harness.raises(ValueError, "x: expected shape [e, 4] for irreps 1x0e+1x1o, got [2, 5]"):
        check_irreps_dim("x", torch.zeros(2, 5), "1x0e+1x1o", 4)
    with harness.raises(ValueError, "..., got [2, 5]"):
        check_irreps_dim("x", torch.zeros(2, 5), "+".join(["1x0e"] * 40), 40)
