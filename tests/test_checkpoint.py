"""Checkpoints: whole or not at all, verified when read, never able to run code."""

import random
from pathlib import Path

import pytest
import torch

from metaloss import checkpoint
from metaloss.errors import RunFolderError

STATE = {"phi": torch.arange(500.0), "steps": 3, "samples": {0: torch.zeros(2)}, "text": "φ"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    return path


def equal(state):
    return (
        state.keys() == STATE.keys()
        and torch.equal(state["phi"], STATE["phi"])
        and torch.equal(state["samples"][0], STATE["samples"][0])
        and (state["steps"], state["text"]) == (3, "φ")
    )


def test_what_is_saved_is_loaded(path):
    assert equal(checkpoint.load(path))
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_saving_again_replaces_the_file(path):
    checkpoint.save(path, {"steps": 4})
    assert checkpoint.load(path) == {"steps": 4}


def test_a_write_that_fails_leaves_the_old_file(path):
    before = path.read_bytes()

    def write(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(RunFolderError) as caught:
        checkpoint.write_atomically(path, write)
    assert str(caught.value) == f"{path} cannot be written: disk full"
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_an_interrupted_write_leaves_the_old_file(path):
    before = path.read_bytes()

    def write(temporary):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, write)
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunFolderError) as caught:
        checkpoint.load(path)
    assert str(caught.value) == (
        f"{path} is no whole checkpoint (File is not a zip file): the run is left as it was; "
        "remove the file to start the run over"
    )


def test_a_flipped_bit_is_refused_or_harmless(path):
    """A bit of padding or of a time stamp may flip; what is loaded is then still the same."""
    content = path.read_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert equal(checkpoint.load(path))
        except RunFolderError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_a_flipped_bit_in_a_tensor_is_named(path):
    content = bytearray(path.read_bytes())
    content[content.index(STATE["phi"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match="the checksum of .*/data/0 does not match"):
        checkpoint.load(path)


def test_code_is_never_run(path):
    torch.save({"path": Path()}, path)
    with pytest.raises(RunFolderError, match="it holds more than tensors and plain data"):
        checkpoint.load(path)


def test_something_else_than_a_state_is_refused(path):
    torch.save([1], path)
    with pytest.raises(RunFolderError, match=r"no whole checkpoint \(it holds a list\)"):
        checkpoint.load(path)
