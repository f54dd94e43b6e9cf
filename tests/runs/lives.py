"""Lives of runs: real processes, which end as they are told to.

They are forked from a server that has imported everything, so that one costs no start of Python.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from metaloss.machine import sealed
from tests import helpers

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["tests.runs.lives", "tests.runs.preloaded"])
OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.truncate")  # audit events


def begin(arguments: list[str], log: Path, *prepare: Callable[[], None]):
    """Starts tools/train.py with these arguments; -> the process.

    Args:
        log: where its standard output and error go.
        prepare: called in it first; picklable.
    """
    process = FORKING.Process(target=_live, args=(arguments, log, torch.get_num_threads(), prepare))
    process.start()
    return process


def lead(arguments: list[str], log: Path, *prepare: Callable[[], None]) -> tuple[int, list[str]]:
    """A life to its end; -> exit code (of a kill: minus the signal) and all lines it printed."""
    log.unlink(missing_ok=True)
    process = begin(arguments, log, *prepare)
    process.join(240)
    assert process.exitcode is not None
    return process.exitcode, log.read_text().splitlines()


def _live(
    arguments: list[str], log: Path, threads: int, prepare: tuple[Callable[[], None], ...]
) -> None:
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(threads)  # the bits of a run are those of as many
    main = helpers.tool("train").main
    for step in prepare:
        step()
    sys.exit(main(arguments))


def sketch() -> None:
    """A preparation: a run draws one small picture only, which is quick."""
    for module, name, function in helpers.SKETCHES:
        setattr(module, name, function)


def draw_all() -> None:
    """A preparation: the run draws as a long one does."""
    from metaloss.runs import run

    run.LONG = 0.0


def at(folder: Path, what: int | str, act: Callable[[], None]) -> Callable[[], None]:
    """A preparation: before one file operation below `folder`, `act` happens.

    Args:
        what: the number of the operation, from 1, or a part of its path, for the first such.
    """
    return partial(_watch, folder, what, act)


def _watch(folder: Path, what: int | str, act: Callable[[], None]) -> None:
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen, what
        if event not in OPERATIONS or not str(arguments[0]).startswith(f"{folder}/"):
            return
        seen += 1
        path = " ".join(map(str, arguments))
        if seen == what or (isinstance(what, str) and what in path):
            what = 0  # once
            act()

    sys.addaudithook(hook)


def kill() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(folder: Path, after: int) -> None:
    """A preparation: dies in the midst of writing a checkpoint, after so many parts of it."""
    write, left = sealed._Summed.write, after

    def dying(self, content: bytes) -> int:
        nonlocal left
        left -= 1
        if not left:
            write(self, content[: len(content) // 2])
            self.flush()
            kill()
        return write(self, content)

    sealed._Summed.write = dying


def count(folder: Path, into: Path) -> None:
    """A preparation: counts the file operations below `folder`, a byte each in a file."""
    file = into.open("wb", buffering=0)

    def hook(event: str, arguments: tuple) -> None:
        if event in OPERATIONS and str(arguments[0]).startswith(f"{folder}/"):
            file.write(b".")

    sys.addaudithook(hook)


def fill(disk: Path) -> None:
    """Leaves no byte on a small disk."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            try:
                if not filler.write(bytes(1 << 12)):
                    return
            except OSError:
                return


def limit() -> None:
    """No file of this process grows beyond 20 kB any more: a checkpoint cannot be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def mount(folder: Path, *options: str) -> bool:
    """Mounts a disk of 8 MB on a folder; False where this user or machine cannot."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=8M", *options)), "tmpfs", folder]
    return not subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode


def wait_to_be_killed(folder: Path) -> None:
    """Leaves a file `waits` in a folder, and does no more."""
    (folder / "waits").touch()
    signal.pause()
