"""stored_tensors: what torch.save wrote, read by the shorter way, and whatever else left to torch."""

from collections import OrderedDict

import pytest
import torch

from nextham.io.torch_file import StoredTensor, stored_tensors


def read(value):
    """The content with its tensors read."""
    if isinstance(value, StoredTensor):
        return value.read()
    return {k: read(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_equals_torch(tmp_path, dtype):
    base = torch.arange(24).to(dtype).reshape(4, 6)
    state = {"whole": base, "rows": base[1:3], "number": base[0, 0], "none": base[:0], "flat": base.reshape(-1)[5:7]}
    torch.save({"epoch": 3, "name": "x", "state_dict": OrderedDict(state)}, tmp_path / "file")
    content = read(stored_tensors(tmp_path / "file"))
    assert content["epoch"] == 3 and content["name"] == "x"
    for name, expected in torch.load(tmp_path / "file", weights_only=True)["state_dict"].items():
        found = content["state_dict"][name]
        assert found.dtype == dtype and torch.equal(found, expected), name
        assert found.shape == expected.shape


class Trap:
    """What a pickle could run."""

    def __reduce__(self):
        return (open, ("trap", "w"))


@pytest.mark.parametrize(
    "content",
    [Trap(), torch.nn.Linear(1, 1), {"x": torch.ones(2, 3).T}, torch.ones(2, dtype=torch.float16), torch.float32],
    ids=["code", "module", "transposed", "half", "dtype"],
)
def test_left_to_torch(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "file")
    assert stored_tensors(tmp_path / "file") is None
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_no_archive(tmp_path, legacy):
    if legacy:
        torch.save({"x": torch.ones(2)}, tmp_path / "file", _use_new_zipfile_serialization=False)
    else:
        (tmp_path / "file").write_bytes(b"nothing of the kind")
    assert stored_tensors(tmp_path / "file") is None
