"""Checkpoints: whole or not at all, verified when read, never able to run code."""

import re

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from metaloss.errors import RunFolderError
from metaloss.machine import files, sealed
from tests.helpers import differences

STATE = {"phi": torch.arange(500.0), "steps": 3, "samples": {0: torch.zeros(2)}, "text": "φ"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    sealed.save(path, STATE)
    return path


def test_what_is_saved_is_loaded(path):
    assert differences(sealed.load(path), STATE) == []
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_saving_again_keeps_the_one_before(path):
    for steps in (4, 5):
        sealed.save(path, {"steps": steps})
    before = path.with_name("checkpoint.previous.pt")
    assert (sealed.load(path), sealed.load(before)) == ({"steps": 5}, {"steps": 4})
    assert set(path.parent.iterdir()) == {path, before}
    assert torch.load(path) == {"steps": 5}  # torch reads it too


def test_the_one_before_is_read_where_the_latest_is_damaged(path):
    sealed.save(path, {"steps": 4})
    assert sealed.load_last(path) == ({"steps": 4}, None)
    path.write_bytes(b"")
    state, damage = sealed.load_last(path)
    assert differences(state, STATE) == []
    assert damage == f"{path} is no whole checkpoint (File is not a zip file)"
    path.unlink()  # as after a kill between the two moves
    state, damage = sealed.load_last(path)
    assert not differences(state, STATE) and damage is None


def test_a_damaged_one_never_replaces_the_one_before(path):
    sealed.save(path, {"steps": 4})
    path.write_bytes(path.read_bytes()[:-100])
    sealed.save(path, {"steps": 5})
    assert sealed.load(path) == {"steps": 5}
    assert differences(sealed.load(sealed.previous(path)), STATE) == []


def test_two_damaged_ones_are_both_named(path):
    sealed.save(path, {"steps": 4})
    path.write_bytes(b"")
    before = sealed.previous(path)
    before.write_bytes(before.read_bytes()[:-1])
    with pytest.raises(RunFolderError) as caught:
        sealed.load_last(path)
    assert str(caught.value) == (
        f"neither {path} (File is not a zip file) nor checkpoint.previous.pt (its checksum does "
        "not match) is a whole checkpoint: the run is left as it was; remove both to start the run "
        "over"
    )


def test_a_write_that_fails_leaves_the_old_file(path):
    before = path.read_bytes()

    def write(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(RunFolderError) as caught:
        files.write_atomically(path, write)
    assert str(caught.value) == f"{path} cannot be written: disk full"
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_an_interrupted_write_leaves_the_old_file(path):
    before = path.read_bytes()

    def write(temporary):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, write)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        (0.0, "File is not a zip file"),
        (0.3, "File is not a zip file"),
        (0.9, "File is not a zip file"),
        (0.999, "its checksum does not match"),
    ],
)
def test_a_file_cut_short_is_refused(path, share, reason):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunFolderError) as caught:
        sealed.load(path)
    assert str(caught.value) == (
        f"{path} is no whole checkpoint ({reason}): the run is left as it was; remove the file to "
        "start the run over"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint's bytes, and where to put damaged ones."""
    path = tmp_path_factory.mktemp("damaged") / "checkpoint.pt"
    sealed.save(path, STATE)
    return path.read_bytes(), path


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(data=st.data())
def test_damage_is_refused_or_harmless(written, data):
    """Any bits flipped, and then perhaps cut or made longer: never other numbers."""
    content, path = written
    damaged = bytearray(content)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=3, unique=True)):
        damaged[bit // 8] ^= 1 << bit % 8
    end = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    path.write_bytes(damaged[:end] + data.draw(st.binary(max_size=80)))
    try:
        assert differences(sealed.load(path), STATE) == []
    except RunFolderError as error:
        assert "\n" not in str(error)


def test_every_flipped_bit_of_the_values_and_of_the_checksum_is_refused(path):
    content = path.read_bytes()
    start = content.index(STATE["phi"].numpy().tobytes())
    for at in (*range(start, start + 100), *range(len(content) - 65, len(content) - 1)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError, match=r"\(its checksum does not match\)"):
            sealed.load(path)


def test_a_flipped_bit_of_the_archives_directory_is_refused(path):
    """No checksum of the archive covers it; torch 2.13 gives memory as it was for the values."""
    content = bytearray(path.read_bytes())
    entry = re.search(rb"PK\x01\x02.{42}archive/data/0", content, re.DOTALL)
    content[entry.start() + 38] ^= 0x10  # "a folder"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"whole checkpoint \(its checksum does not match\)"):
        sealed.load(path)


def test_a_file_of_torch_save_alone_is_read_by_its_own_checksums(path):
    torch.save(STATE, path)
    assert differences(sealed.load(path), STATE) == []
    content = bytearray(path.read_bytes())
    content[content.index(STATE["phi"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match="the checksum of .*/data/0 does not match"):
        sealed.load(path)


def test_something_else_than_a_state_is_refused(path):
    torch.save([1], path)
    with pytest.raises(RunFolderError, match=r"no whole checkpoint \(it holds a list\)"):
        sealed.load(path)
