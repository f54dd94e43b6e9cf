"""Locks: one holder, named to whoever comes second, and none after its death."""

import errno
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys

import pytest

from metaloss.errors import InputError, RunFolderError
from metaloss.machine import lock
from tests.helpers import ROOT

HOLD = """
import sys, time
from pathlib import Path
from metaloss.machine import lock
with lock.holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(path):
    with lock.holding(path):
        pass


def test_the_second_process_is_told_who_holds_it_until_that_is_killed(path, holder):
    since = json.loads(path.read_text())["since"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", since)
    for _ in range(2):  # having been refused changes nothing
        with pytest.raises(lock.HeldError) as caught:
            take(path)
        assert str(caught.value) == (
            f"{path} is held by process {holder.pid} on {platform.node()} since {since}: one "
            "process at a time"
        )
    assert isinstance(caught.value, InputError)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads(path.read_text())["pid"] == holder.pid  # a note, and no more than that
    with lock.holding(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_one_process_cannot_hold_it_twice(path):
    with lock.holding(path), pytest.raises(lock.HeldError, match=f"by process {os.getpid()} on"):
        take(path)
    take(path)


def test_it_is_given_up_after_an_error(path):
    with pytest.raises(KeyError), lock.holding(path):
        raise KeyError
    take(path)


def test_a_forked_child_does_not_keep_it(path):
    end, ours = os.pipe()
    with lock.holding(path):
        child = os.fork()
        if not child:
            os.close(ours)
            os.read(end, 1)
            os._exit(0)
    take(path)
    os.close(ours)
    os.close(end)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("note", ["", "{", "[]", "{}"])
def test_an_unreadable_note_still_refuses(path, note):
    with lock.holding(path):
        path.write_text(note)
        with pytest.raises(lock.HeldError) as caught:
            take(path)
    assert str(caught.value) == f"{path} is held by another process: one process at a time"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "file" / "lock"
    path.parent.write_text("")
    with pytest.raises(RunFolderError) as caught:
        take(path)
    assert str(caught.value) == f"{path} cannot be written: [Errno 20] Not a directory: '{path}'"
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(RunFolderError) as caught:
        take(full)
    assert str(caught.value).startswith(f"{full} cannot be written: [Errno ")


def test_a_file_system_without_locks_warns_and_goes_on(path, monkeypatch):
    def unsupported(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning) as caught, lock.holding(path):
        pass
    assert str(caught[0].message) == (
        f"{path} cannot be locked (Function not implemented): nothing keeps a second process from "
        "it"
    )
    assert caught[0].filename == __file__
