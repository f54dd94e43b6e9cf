"""Standings: where each cell of a sweep is, as its folder tells; nothing else is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metaloss.errors import RunFolderError
from metaloss.experiments.launchers.parts.process import END
from metaloss.experiments.sweeps.cells import Cell
from metaloss.machine import lock
from metaloss.machine.files import read_json
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import readable_rows

State = Literal["finished", "diverged", "running", "failed", "interrupted", "waiting"]
STATES: tuple[State, ...] = ("finished", "diverged", "running", "failed", "interrupted", "waiting")
#: What `run` has still to do.
OPEN: tuple[State, ...] = ("interrupted", "waiting")
#: Exit codes of a run that was stopped and saved; it goes on when it is started again.
STOPPED = (130, 143)


@dataclass(frozen=True)
class Standing:
    """Where a cell is.

    Attributes:
        state: "interrupted" was stopped or killed and goes on at the next `run`; "failed" ended by
            itself with an error, and waits for `retry`.
        seconds: that the run took, or has taken so far.
        expected: seconds that it will have taken, judged by how far it is; None: not known.
        detail: the test number, the progress, or what the log ends with.
    """

    cell: Cell
    state: State
    seconds: float = 0.0
    expected: float | None = None
    detail: str = ""


def standing(cell: Cell, root: Path) -> Standing:
    """Where a cell is."""
    folder = RunFolder(root / cell.name)
    holder = lock.holder(folder.lock)
    if holder is None:
        result = _result(folder)
        if result.get("status") in ("finished", "diverged"):
            seconds, test = float(result.get("seconds") or 0.0), result.get("test")
            found = "" if test is None else f"{result.get('metric')} {test:.4g}"
            return Standing(cell, result["status"], seconds, seconds, found)
    seconds, expected, progress = _progress(cell, folder)
    if holder is not None:
        return Standing(cell, "running", seconds, expected, f"{progress}, {holder}")
    lines = last_lines(folder.log)
    code = lines[-1].removeprefix(END) if lines and lines[-1].startswith(END) else ""
    if code.isdecimal() and int(code) not in (0, *STOPPED):
        return Standing(cell, "failed", seconds, expected, f"{_reason(lines)} (exit code {code})")
    if folder.config.is_file() or code:
        why = f", killed by signal {code[1:]}" if code.startswith("-") else ""
        return Standing(cell, "interrupted", seconds, expected, f"{progress}{why}")
    return Standing(cell, "waiting")


def _reason(lines: Sequence[str]) -> str:
    """Why a run failed, by the end of its log: what it called an error, else its last word."""
    said = [line for line in lines[:-1] if not line.startswith("--- ")]  # a command
    named = [line for line in said if line.startswith("error: ")]
    return (named or said or ["it said nothing"])[-1].removeprefix("error: ")


def last_lines(log: Path, count: int = 12) -> list[str]:
    """The last lines of a log; none, if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def seconds_left(standings: Sequence[Standing], parallel: int) -> float | None:
    """Wall-clock seconds until all is done, `parallel` at a time; None while nothing is known.

    A run that has not begun is taken to need as long as others of its configuration, else as long
    as the mean of all others.
    """
    by_group: dict[str, list[float]] = defaultdict(list)
    for s in standings:
        if s.expected is not None:
            by_group[s.cell.group].append(s.expected)
    known = [_mean(values) for values in by_group.values()]
    if not known:
        return None
    left = 0.0
    for s in standings:
        if s.state in ("running", *OPEN):
            expected = s.expected or _mean(by_group.get(s.cell.group, known))
            left += max(0.0, expected - s.seconds)
    return left / parallel


def _result(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_json(folder.result) if folder.result.is_file() else {}
    except RunFolderError:
        return {}


def _progress(cell: Cell, folder: RunFolder) -> tuple[float, float | None, str]:
    """Seconds so far, seconds in all if they can be told, and the progress in words."""
    rows = [row for row in readable_rows(folder.metrics)[0] if "seconds" in row]
    if not rows:
        return 0.0, None, "at its start"
    seconds = float(rows[-1]["seconds"])
    phase, step = rows[-1].get("phase"), rows[-1]["step"]
    if phase != "train":
        return seconds, None, f"initialisation {step}/{cell.init_steps}"
    if not step:
        return seconds, None, "step 0" if cell.steps is None else f"step 0/{cell.steps}"
    before = max((float(r["seconds"]) for r in rows if r.get("phase") != "train"), default=0.0)
    if cell.steps is None:
        return seconds, None, f"step {step}"
    expected = before + (seconds - before) * cell.steps / step
    return seconds, expected, f"step {step}/{cell.steps}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
