"""Locks: one process at a time, until it ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from metaloss.errors import InputError, RunFolderError

#: Seconds between tries: `holder` takes a free lock for an instant, which must not refuse anybody.
LOOKS = (0.01, 0.05, 0.2, None)


class HeldError(InputError):
    """Another process holds the lock, or another part of this one."""


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Within it, nobody else holds the lock file `path`; does not wait for it.

    Not `filelock`: where a file system has no flock it falls back to a marker file, which a kill
    leaves behind; and `holder` must look without taking the lock from whoever looks beside it.

    The kernel keeps the lock (flock) and gives it up with the process, also after SIGKILL, so a
    lock is never stale. The file stays; what stands in it (process, host, time) is there to be read
    and decides nothing. On NFS, Linux locks for all hosts, unless mounted with `local_lock`.

    Args:
        path: of the lock file, in a folder that exists; made if it is not there.

    Raises:
        HeldError: somebody holds it; names the process, its host and since when.
        RunFolderError: the file cannot be written.
    """
    try:
        file = path.open("ab+", buffering=0)  # nothing is cut off before the lock is ours
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error
    with file:
        locked = _take(file, path)
        try:
            _sign(file, path)
            yield
        finally:
            if locked:  # a process that was forked meanwhile would keep it
                fcntl.flock(file, fcntl.LOCK_UN)


def holder(path: Path) -> str | None:
    """Who holds the lock file `path`, in words; None if nobody does."""
    try:
        file = path.open("rb", buffering=0)
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go as the file is closed
        except BlockingIOError:
            return _holder(file)
        except OSError:
            return None
        return None


def _take(file: FileIO, path: Path) -> bool:
    """Takes the lock; False, with a warning, where the file system has none."""
    try:
        for wait in LOOKS:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    raise
                time.sleep(wait)
    except BlockingIOError:
        raise HeldError(f"{path} is held by {_holder(file)}: one process at a time") from None
    except OSError as error:  # such as Lustre mounted without `flock`
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}): nothing keeps a second process from it",
            stacklevel=4,
        )
        return False
    return True


def _holder(file: FileIO) -> str:
    """Who holds the lock, as far as it is written."""
    file.seek(0)
    try:
        note = json.loads(file.read())
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (ValueError, TypeError, KeyError):  # it may be about to write
        return "another process"


def _sign(file: FileIO, path: Path) -> None:
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    note = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since})
    try:
        file.truncate(0)
        file.write(note.encode() + b"\n")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error
