"""TensorBoard's event files, written at once and read in the order of their starts.

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
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from metaloss.machine.files import writing
from metaloss.runs.tensorboard import EVENTS


class Writer(SummaryWriter):
    """A SummaryWriter without a thread.

    Args:
        folder: where its file goes, made if it is not there.
        start: events from this step on in the files that are there are to be forgotten.

    Raises:
        RunFolderError: from each method: the file cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._writer: FileWriter | None = None
        super().__init__(str(folder), purge_step=start)

    def _get_file_writer(self) -> FileWriter:
        if self._writer is None:
            self._writer = _FileWriter(Path(self.log_dir))
            self.all_writers = {self.log_dir: self._writer}  # type: ignore[assignment]
            started = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(file_version="brain.Event:2"), self.purge_step)
            self._writer.add_event(Event(session_log=started), self.purge_step)
        return self._writer


class _FileWriter(FileWriter):
    def __init__(self, folder: Path) -> None:  # not its own, which starts the thread
        self.event_writer = _EventFile(folder)


class _EventFile:
    def __init__(self, folder: Path) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{EVENTS}{_stamp(folder):010d}.{platform.node()}.{os.getpid()}"
            self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)

    def add_event(self, event: Event) -> None:
        with writing(self._path):
            self._records.write(event.SerializeToString())
            self._file.flush()

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is left was refused, and told, before
            self._file.close()


def _stamp(folder: Path) -> int:
    """The second that a new file is named by: now, but after those that are there."""
    stamps = [path.name.removeprefix(EVENTS).split(".")[0] for path in folder.glob(f"{EVENTS}*")]
    return max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
