"""Records: what a run folder says of its run, whether that has ended, goes on or was cut short."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaloss.errors import RunFolderError
from metaloss.loggers import Row, read_metrics
from metaloss.run_folder import RunFolder, read_json


@dataclass(frozen=True)
class Record:
    """One run by its files; no model, no data, no gin."""

    path: Path
    task: str
    backbone: str
    method: str
    seed: int
    status: str  #: that of result.json, or "unfinished"
    rows: list[Row]  #: of metrics.jsonl

    @property
    def steps(self) -> int:
        """Base steps that the metrics tell of."""
        return max((row["step"] for row in self.rows if row["phase"] == "train"), default=0)


def read(path: Path) -> Record:
    """The record of the run in a folder.

    Raises:
        RunFolderError: there is no run, or a file of it is missing or damaged; the message names
            the file.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise RunFolderError(f"{path} holds no run: there is no config.gin")
    meta = read_json(folder.meta)
    result = read_json(folder.result) if folder.result.is_file() else {"status": "unfinished"}
    said: dict[str, Any] = {**meta, **result}
    missing = [key for key in ("task", "backbone", "method", "seed", "status") if key not in said]
    if missing:
        raise RunFolderError(f"{folder.meta} does not say the run's {', '.join(missing)}")
    if not folder.metrics.is_file():
        raise RunFolderError(f"{path} has no metrics.jsonl: nothing is logged so far")
    rows = read_metrics(folder.metrics)
    return Record(
        path, said["task"], said["backbone"], said["method"], said["seed"], said["status"], rows
    )


def find(path: Path) -> list[Path]:
    """The run folders at or below a path, in order; the path itself if there are none."""
    return sorted(config.parent for config in path.rglob("config.gin")) or [path]


def names(paths: Sequence[Path]) -> dict[str, Path]:
    """Short names of run folders: what follows the folder that they have in common."""
    common = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    return {path.resolve().relative_to(common).as_posix(): path for path in paths}
