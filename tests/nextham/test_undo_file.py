"""A process that is killed at any moment of a step leaves what was there before the step."""

import errno
import os
import signal
import warnings

import numpy as np
import pytest

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.io.errors import FileError
from nextham.io.hdf5 import read_blocks_h5
from nextham.io.hdf5_pieces import PieceWriter
from nextham.io.undo_file import UndoFile
from nextham.structure import Structure

CALLS = ("write", "pwrite", "ftruncate")
"""What changes files, `unlink` and `replace` apart."""


def killed_at(call, run):
    """Runs something in a process of its own that is killed in the middle of one of its writes.

    Returns:
        Whether it came so far; else it came to its end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of others: the child waits for none
        child = os.fork()
    if not child:
        try:
            left = [call]

            def dying(name, function):
                def wrapped(file, *arguments):
                    if not left[0]:
                        if name != "ftruncate":  # half of it is written
                            data = memoryview(arguments[0])
                            function(file, data[: len(data) // 2], *arguments[1:])
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    return function(file, *arguments)

                return wrapped

            for name in CALLS:
                setattr(os, name, dying(name, getattr(os, name)))
            run()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def change(path):
    """Writes over, behind, far behind and cuts off, again and again."""
    file, rng = UndoFile(path), np.random.default_rng(1)
    with file.step():
        for at, n in rng.integers(0, 3000, (12, 2)):
            file.seek(int(at))
            file.write(rng.bytes(int(n)))
        file.truncate(400)
        file.seek(300)
        file.write(b"x" * 1000)
    file.close()


def test_killed_in_a_step(tmp_path):
    path, before = tmp_path / "a", np.random.default_rng(0).bytes(2000)
    path.write_bytes(before)
    change(path)
    after = path.read_bytes()
    assert len(after) == 1300 and list(tmp_path.iterdir()) == [path]
    call = 0
    while True:
        path.write_bytes(before)
        if not killed_at(call, lambda: change(path)):
            break
        UndoFile(path).close()
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
        call += 1
    assert call > 20 and path.read_bytes() == after


def test_an_exception_takes_the_step_back(tmp_path):
    file = UndoFile(tmp_path / "a")
    with file.step():
        file.write(b"one two")
    with pytest.raises(KeyboardInterrupt), file.step():
        file.seek(4)
        file.write(b"three")
        raise KeyboardInterrupt
    file.seek(0)
    assert file.read() == b"one two" and list(tmp_path.iterdir()) == [tmp_path / "a"]
    with pytest.raises(ValueError, match="the file is changed inside a step alone"):
        file.write(b"x")
    file.close()
    (tmp_path / "b.undo").write_bytes((2).to_bytes(8, "little") + bytes(8))  # its file was removed
    other = UndoFile(tmp_path / "b")
    assert other.size == 0 and not (tmp_path / "b.undo").exists()
    with pytest.raises(BlockingIOError):
        UndoFile(tmp_path / "b")
    other.close()


BASIS = Basis({14: (0, 0, 1, 1, 2), 1: (0, 1)})


def pieces():
    """Matrices whose planes go over several chunks of the file."""
    rng = np.random.default_rng(0)
    structure = Structure(np.eye(3) * 9, rng.random((30, 3)) * 9, [14] * 20 + [1] * 10)
    graph = neighbour_graph(structure, 5.0)
    graph = graph.select(graph.src < graph.dst)
    for some in np.array_split(np.arange(graph.n_edges), 4):
        part = Blocks.zeros(graph.select(some), BASIS, 4, np.complex128)
        part.data[:] = rng.standard_normal(len(part.data)) + 1j * rng.standard_normal(len(part.data))
        yield structure, {"H0": part, "S": Blocks(part.graph, BASIS, part.channel(0).data.real.copy(), 1)}


def write(path, made, key="key"):
    with PieceWriter(path, made[0][0], BASIS, key) as writer:
        for _, matrices in made[writer.n_pieces :]:
            writer.append(matrices)
        writer.finish()


def test_killed_while_a_piece_is_written(tmp_path):
    made, path, whole = list(pieces()), tmp_path / "h.h5", tmp_path / "whole.h5"
    write(whole, made)
    expected = whole.read_bytes()
    whole.unlink()
    call = 0
    while killed_at(call, lambda: write(path, made)):
        # Killed twice in the same file, then written to its end.
        killed_at(call // 2, lambda: write(path, made))
        write(path, made)
        assert path.read_bytes() == expected and list(tmp_path.iterdir()) == [path]
        path.unlink()
        call += 31
    assert call > 200


def test_a_full_disk(tmp_path, monkeypatch):
    """HDF5 cannot bear an exception where it writes: afterwards it is in order, and so is the file."""
    made, path, whole = list(pieces()), tmp_path / "h.h5", tmp_path / "whole.h5"
    write(whole, made)
    for room in (3, 40, 150):
        left, pwrite = [room], os.pwrite

        def full(file, data, at, left=left, pwrite=pwrite):
            left[0] -= 1
            if left[0] < 0 and at + len(data) > os.fstat(file).st_size:
                raise OSError(errno.ENOSPC, "No space left on device")
            return pwrite(file, data, at)

        with (
            monkeypatch.context() as patch,
            pytest.raises(FileError, match=r"h\.h5: cannot be written .*No space left"),
        ):
            patch.setattr(os, "pwrite", full)
            write(path, made)
        assert left[0] < 0 and {file.name for file in tmp_path.iterdir()} == {"whole.h5", "h.h5.part"}
        write(path, made)
        assert path.read_bytes() == whole.read_bytes()
        path.unlink()


@pytest.fixture
def listens_to_ctrl_c():
    """Where a shell started the tests in the background, Ctrl-C is ignored."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_ctrl_c_while_a_piece_is_written(tmp_path, monkeypatch):
    made, path, whole = list(pieces()), tmp_path / "h.h5", tmp_path / "whole.h5"
    write(whole, made)
    calls, pwrite = [], os.pwrite

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 150:
            signal.raise_signal(signal.SIGINT)
        return pwrite(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "pwrite", interrupted)
        write(path, made)
    assert len(calls) >= 150 and {file.name for file in tmp_path.iterdir()} == {"whole.h5", "h.h5.part"}
    with PieceWriter(path, made[0][0], BASIS, "key") as writer:
        assert 0 < writer.n_pieces < len(made)
    write(path, made)
    assert path.read_bytes() == whole.read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_runs_do_not_write_one_file(tmp_path):
    made = list(pieces())
    with PieceWriter(tmp_path / "h.h5", made[0][0], BASIS, "key") as writer:
        writer.append(made[0][1])
        with pytest.raises(FileError, match=r"h\.h5\.part: is being written by another run"):
            write(tmp_path / "h.h5", made)
    write(tmp_path / "h.h5", made)
    assert list(read_blocks_h5(tmp_path / "h.h5")) == ["H0", "S"]
