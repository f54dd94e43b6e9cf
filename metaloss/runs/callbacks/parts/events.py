"""A TensorBoard event file, written at once and read in the order of the files' starts.

torch's own writer hands events to a thread: a full disk is told late, by a traceback, and a kill
takes along what waits. Its files are named, and so read, by a clock that may be set back.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from metaloss.machine.files import writing
from metaloss.runs.callbacks.tensorboard import EVENTS


class EventFile:
    """A new event file.

    Args:
        folder: where it goes, made if it is not there.
        start: events from this step on in the files that are there are to be forgotten.

    Raises:
        RunFolderError: from each method: the file cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{EVENTS}{_stamp(folder):010d}.{platform.node()}.{os.getpid()}"
            self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(step=start, file_version="brain.Event:2"))
        self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Summary, step: int) -> None:
        """Appends what is to be shown at a step; see the functions of torch's `summary` module."""
        self._write(Event(step=step, summary=summary))

    def close(self) -> None:
        """Ends the file."""
        with contextlib.suppress(OSError):  # what is left was refused, and told, before
            self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self._path):
            self._records.write(event.SerializeToString())
            self._file.flush()


def _stamp(folder: Path) -> int:
    """The second that a new file is named by: now, but after those that are there."""
    stamps = [path.name.removeprefix(EVENTS).split(".")[0] for path in folder.glob(f"{EVENTS}*")]
    return max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
