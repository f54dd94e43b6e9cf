"""Records: run folders read back, whole, half written or damaged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from metaloss.config import plugins
from metaloss.errors import ConfigError, RunFolderError, first_line
from metaloss.experiments import settings
from metaloss.experiments.settings import Settings
from metaloss.machine.files import read_json
from metaloss.runs.folder import ENDED, RunFolder
from metaloss.runs.metrics import Row, read_metrics, readable_rows

#: A folder with one of these is a run's.
MARKS = ("config.gin", "meta.json", "result.json", "metrics.jsonl")
#: How a run can have ended; "unfinished" is still going on, or was killed.
STATUSES = ("finished", "diverged", "stopped", "unfinished", "damaged")


@dataclass(frozen=True)
class Errors:
    """What a run's model made of each test example.

    Attributes:
        errors: the metric of each, [n].
        examples: names the examples: their number and the hash of their labels.
    """

    errors: np.ndarray
    examples: str


@dataclass(frozen=True)
class Record:
    """What one run folder says.

    Attributes:
        path: the folder.
        settings: from config.gin.
        seed: from result.json, or meta.json.
        status: one of `STATUSES`.
        test: the metric on the test split, of a finished run.
        result: result.json; empty where it is missing or damaged.
        meta: meta.json, likewise.
    """

    path: Path
    settings: Settings
    seed: int
    status: str
    test: float | None
    result: Row = field(repr=False)
    meta: Row = field(repr=False)

    @property
    def task(self) -> str:
        """The registered name of the task."""
        return self.settings.component("Runner.task")

    @property
    def backbone(self) -> str:
        """The registered name of the backbone."""
        return self.settings.component("Runner.backbone")

    @property
    def method(self) -> str:
        """The run's word for itself."""
        return self.settings.method

    @property
    def is_kept(self) -> bool:
        """Whether the folder is what `keep` leaves of a run: its config.gin and result.json."""
        return bool(self.result) and not self.meta and not RunFolder(self.path).metrics.exists()

    @property
    def title(self) -> str:
        """The run in a few words."""
        return f"{self.task} + {self.backbone}, {self.method}, seed {self.seed}"

    @property
    def metric(self) -> str | None:
        """The word for what is measured, "mse" or "error_rate"; None before any evaluation."""
        named = self.result.get("metric")
        evaluated = next((row for row in self.rows if "split" in row), {})
        return named or next((name for name in ("error_rate", "mse") if name in evaluated), None)

    @property
    def machine(self) -> str:
        """Where it ran: times of one machine compare, those of two do not."""
        if self.is_kept:
            return "machine not kept"
        device, threads = self.meta.get("device", "unknown device"), self.meta.get("threads")
        if device != "cpu":
            return str(device)
        return f"CPU of {self.meta.get('host', '?')}, {threads} thread{'s' * (threads != 1)}"

    @cached_property
    def errors(self) -> Errors | None:
        """Its errors on the test examples; None where an earlier version kept none, or damaged."""
        try:
            with np.load(RunFolder(self.path).errors) as kept:
                return Errors(kept["errors"].astype(np.float64), str(kept["examples"]))
        except (OSError, ValueError, KeyError, BadZipFile):
            return None

    @cached_property
    def metrics(self) -> tuple[list[Row], list[int]]:
        """The rows of metrics.jsonl, and the numbers of the lines that are damaged."""
        return readable_rows(RunFolder(self.path).metrics)

    @property
    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl that can be read."""
        return self.metrics[0]

    def curve(self, split: str) -> dict[int, float]:
        """The metric on a split, by the base step; only finite numbers."""
        metric = self.metric or ""
        return {
            row["step"]: float(row[metric])
            for row in self.rows
            if row.get("split") == split and _is_number(row.get(metric))
        }

    @property
    def steps(self) -> int:
        """Base steps that the metrics tell of."""
        return max((row["step"] for row in self.rows if row["phase"] == "train"), default=0)

    @property
    def progress(self) -> str:
        """How far it got, as far as metrics.jsonl tells."""
        if self.is_kept:
            return "not kept"
        if self.steps:
            whole = self.settings.values.get("Runner.steps")
            return f"at base step {self.steps}" + (f" of {whole}" if whole is not None else "")
        return "in its initialisation" if self.rows else "before its first row of metrics"


@dataclass(frozen=True)
class Reading:
    """The runs that could be read, and a line about each thing that could not."""

    runs: list[Record]
    problems: list[str]


def read(paths: Sequence[str | Path]) -> Reading:
    """Reads the runs at and below some paths; each once.

    Raises:
        RunFolderError: a path is no folder.
    """
    runs: list[Record] = []
    problems: list[str] = []
    seen = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunFolderError(f"{path} is no folder: give run folders, or folders of them")
        found, empty = find(path)
        if not found and path not in empty:
            problems.append(f"{path}: no run folder in it (none has {' or '.join(MARKS)})")
        problems += [f"{folder}: an empty folder" for folder in empty]
        for folder in found:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                run, lines = read_run(folder)
                runs += [run] if run is not None else []
                problems += [f"{folder}: {line}" for line in lines]
    return Reading(runs, problems)


def load_plugins(asked: Sequence[str], paths: Iterable[str | Path]) -> None:
    """The plugins that are asked for, and those that the runs at and below some paths remember.

    Raises:
        ConfigError: one that is asked for does not load.
    """
    runs = [RunFolder(run) for path in paths for run in find(Path(path))[0]]
    plugins.load_all(asked, remembered=[name for run in runs for name in run.plugins()])


def keep(paths: Iterable[str | Path], target: Path) -> int:
    """Copies what tables are made of, config.gin and result.json, of the runs that have ended.

    Args:
        paths: run folders, or folders that hold some.
        target: a run that lies in `path/a/b` goes to `target/a/b`; what is there is replaced.

    Returns:
        How many runs were kept.

    Raises:
        RunFolderError: two runs would be kept in one place, or it cannot be written to.
    """
    kept: set[Path] = set()
    for path in map(Path, paths):
        for folder in map(RunFolder, find(path)[0]):
            run, _ = read_run(folder.path)
            if run is None or run.status not in ENDED:
                continue
            copy = RunFolder(target / folder.path.relative_to(path))
            if copy.path in kept:
                raise RunFolderError(f"{copy.path} would be of two runs: give a folder above both")
            try:
                copy.path.mkdir(parents=True, exist_ok=True)
                copy.config.write_bytes(folder.config.read_bytes())
                copy.result.write_bytes(folder.result.read_bytes())
            except OSError as error:
                raise RunFolderError(f"{copy.path} cannot be written to: {error}") from error
            kept.add(copy.path)
    return len(kept)


def find(path: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at and below a path, and the folders with nothing in them, sorted."""
    runs, empty = [], []
    for name, folders, files in os.walk(path):
        if any(mark in files for mark in MARKS):
            runs.append(Path(name))
            folders.clear()  # what a run holds are no runs
        elif not folders and not files:
            empty.append(Path(name))
    return sorted(runs), sorted(empty)


def read_run(path: Path) -> tuple[Record | None, list[str]]:
    """One run folder, as much of it as can be read.

    Returns:
        The run, None if nothing says which run it is; and a line for each damage.
    """
    folder = RunFolder(path)
    problems: list[str] = []
    result = _object(folder.result, problems) if folder.result.is_file() else {}
    meta = _object(folder.meta, problems) if folder.meta.is_file() else {}
    seed = result.get("seed", meta.get("seed"))
    try:
        text = folder.config.read_text(encoding="utf-8")
        found = settings.read(text, folder.config.name)
    except FileNotFoundError:
        return None, [*problems, "no config.gin: it cannot be told which run this is; left out"]
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        return None, [*problems, f"config.gin cannot be read; left out: {first_line(error)}"]
    if type(seed) is not int:
        return None, [*problems, "neither result.json nor meta.json names a seed; left out"]
    status = result.get("status", "unfinished")
    if folder.result.is_file() and (status not in STATUSES or "test" not in result):
        problems += [] if problems else ["result.json lacks its status or test number"]
        status = "damaged"
    test = result.get("test") if status == "finished" else None
    if status == "finished" and not _is_number(test):
        problems.append(f"finished, but its test number is {test}: counted as diverged")
        status, test = "diverged", None
    run = Record(path, found, seed, status, test, result, meta)
    if status == "unfinished":
        problems.append(f"unfinished: no result.json, {run.progress}")
    if run.metrics[1]:
        count, first = len(run.metrics[1]), run.metrics[1][0]
        lines = "1 line is" if count == 1 else f"{count} lines are"
        problems.append(f"metrics.jsonl: {lines} damaged and skipped (the first is line {first})")
    elif status != "unfinished" and not run.rows and not run.is_kept:
        problems.append("metrics.jsonl is missing or empty: no learning curve")
    return run, problems


def read_whole(path: Path) -> Record:
    """The record of a run whose files are all there and undamaged; it may still be going on.

    Raises:
        RunFolderError: there is no run, or a file of it is missing or damaged; the message names
            the file.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise RunFolderError(f"{path} holds no run: there is no config.gin")
    for file in (folder.meta, folder.result):
        if file == folder.meta or file.is_file():
            read_json(file)
    if not folder.metrics.is_file():
        raise RunFolderError(f"{path} has no metrics.jsonl: nothing is logged so far")
    read_metrics(folder.metrics)
    record, problems = read_run(path)
    if record is None:
        raise RunFolderError(f"{path}: {problems[-1]}")
    return record


def mean_of(runs: Iterable[Record], name: str) -> float | None:
    """The mean of a number of result.json over the runs that have it."""
    values = [run.result[name] for run in runs if _is_number(run.result.get(name))]
    return sum(values) / len(values) if values else None


def _object(path: Path, problems: list[str]) -> Row:
    """A JSON object; an empty one, and a line, if it is damaged."""
    try:
        return read_json(path)
    except RunFolderError as error:
        reason = first_line(error).removeprefix(f"{path} ")
        problems.append(f"{path.name} {reason}")
        return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def names(paths: Sequence[Path]) -> dict[str, Path]:
    """Short names of run folders: what follows the folder that they have in common."""
    common = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    return {path.resolve().relative_to(common).as_posix(): path for path in paths}
