"""Metrics: the rows of metrics.jsonl, the source of truth of a run's numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import IO, Any

from metaloss.errors import RunFolderError
from metaloss.machine.files import writing

Row = dict[str, Any]


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """metrics.jsonl: one JSON object a line, in the order of the run.

    Args:
        path: the file; `resume` opens it.

    Raises:
        RunFolderError: from each method: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def resume(self, size: int) -> int:
        """Opens the file, to go on after its first bytes.

        Args:
            size: bytes that belong to the run so far; what a killed process wrote after its last
                checkpoint is cut off, since it will be written again.

        Returns:
            How many rows there are.

        Raises:
            RunFolderError: the file has fewer bytes, and stays as it is.
        """
        path = self._path
        there = path.stat().st_size if path.is_file() else 0
        if there < size:
            raise RunFolderError(
                f"{path} is cut short: {there} bytes of the {size} that the checkpoint counts; put "
                "it back, or remove the run folder to start the run over"
            )
        with writing(path):
            self._file = path.open("a+b")
            self._file.truncate(size)
            self._file.seek(0)
            return self._file.read().count(b"\n")

    def write(self, row: Row) -> None:
        """Appends a row."""
        assert self._file is not None
        with writing(self._path):
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()

    def sync(self) -> int:
        """Makes what was written durable; its size in bytes."""
        assert self._file is not None
        with writing(self._path):
            os.fsync(self._file.fileno())
            return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is left was refused, and told, before
                self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line that is still being written is left out.

    Raises:
        RunFolderError: the file cannot be read, or a line of it is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error
    rows, damaged = rows_of(content[: content.rfind(b"\n") + 1])
    if damaged:
        raise RunFolderError(f"{path} is damaged in line {damaged[0]}")
    return rows


def rows_of(content: bytes) -> tuple[list[Row], list[int]]:
    """The rows that the content of a metrics.jsonl holds, and the numbers of its damaged lines."""
    rows, damaged = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int and "phase" in row:
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def readable_rows(path: Path) -> tuple[list[Row], list[int]]:
    """As `rows_of`; both are empty where the file cannot be read."""
    try:
        return rows_of(path.read_bytes())
    except OSError:
        return [], []
