"""Search: the numbers of a run, looked for by Optuna on the launchers of sweeps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from metaloss import config
from metaloss.config.arguments import PositiveFloat, PositiveInt
from metaloss.config.registry import root
from metaloss.errors import ArgumentError, ConfigError, InputError
from metaloss.experiments.launchers.base import Launcher
from metaloss.experiments.launchers.local import Local
from metaloss.experiments.records import Record, read_run
from metaloss.experiments.sweeps.cells import Cell, where_they_are
from metaloss.experiments.sweeps.cells import cells as cells_of
from metaloss.experiments.sweeps.sweep import Sweep

FACTOR = 3  #: what a rung has of the seconds of the one before, and keeps one in so many of
JOURNAL = "search.db"  #: in the folder of the runs: all trials, in SQLite
Say = Callable[[str], None]
Start = Callable[[Sequence[Cell], float | None], None]  #: carries runs out, for so many seconds


@root
class Search:
    """Numbers to look for: those of the space at which a run is best by its validation data.

    Args:
        files: gin files of the run, later ones win.
        space: where each parameter is looked for: `(low, high)`, integers between integers;
            `(low, high, 'log')`, by its logarithm; or a list of values.
        trials: how many are tried.
        seconds: of runs; once all have taken more together, no other trial begins. None: no limit.
        first_seconds: the time of each run until it is first judged. A run goes on for three times
            as long, nine times and so on, if it is then among the best third of those that were
            judged there; else it ends. None: every run is carried out whole.
        split: what is judged by: "valid", which a learned loss is trained on, or "select", beside
            `Runner.select_fraction`.
        bindings: gin bindings that every run gets, after its files.
        seed: of the runs, and of what is tried.
        launcher: what starts the runs, and how many at a time.

    Raises:
        ArgumentError: the space is empty, or a part of it is none.
    """

    def __init__(
        self,
        files: Sequence[str],
        space: Mapping[str, Sequence[Any]],
        trials: PositiveInt = 20,
        seconds: PositiveFloat | None = None,
        first_seconds: PositiveFloat | None = None,
        split: str = "valid",
        bindings: Sequence[str] = (),
        seed: int = 0,
        launcher: Launcher | None = None,
    ) -> None:
        for name, place in space.items():
            if not _is_place(place):
                asked = f"(low, high), (low, high, 'log') or a list of values for {name!r}"
                raise ArgumentError("space", place, asked)
        if not space:
            raise ArgumentError("space", space, "at least one parameter")
        if split not in ("valid", "select"):
            raise ArgumentError("split", split, "'valid' or 'select'")
        self.files = tuple(files)
        self.space = dict(space)
        self.trials = trials
        self.seconds = seconds
        self.first_seconds = first_seconds
        self.split = split
        self.bindings = tuple(bindings)
        self.seed = seed
        self.launcher = launcher or Local()


@dataclass(frozen=True)
class Tried:
    """What became of a trial: its bindings, its run, and whether it was carried out whole."""

    bindings: tuple[str, ...]
    value: float | None
    seconds: float
    status: str


def load(spec: str | Path, bindings: Sequence[str] = ()) -> Search:
    """The search of a spec.

    Raises:
        ConfigError: the spec cannot be used.
    """
    parsed = config.load([spec], bindings, root="Search")
    unread = [name for name in parsed.unread if not name.startswith("launchers.")]
    if unread:
        raise ConfigError(f"{spec}: nobody reads {', '.join(unread)}")
    search: Search = parsed.build()
    return search


def carry_out(search: Search, folder: Path, start: Start, say: Say) -> list[Tried]:
    """Tries what Optuna asks for, as many runs at a time as the launcher has; gives all trials.

    What was tried is in `folder`, so that the same call goes on after a kill: a run that had begun
    goes on with its checkpoint.

    Args:
        folder: of the runs.
        start: carries runs out, all of them at a time.
        say: takes a line as each trial ends.

    Raises:
        InputError: Optuna is not installed, or a run cannot be judged.
    """
    optuna = _optuna()
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / JOURNAL}",
        study_name="search",
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR),
    )
    # Another process goes on with other draws than those that it was begun with.
    study.sampler = optuna.samplers.TPESampler(seed=search.seed + len(study.trials))
    for trial in study.trials:  # of a process that was killed: the same once more, from its run
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    while wanted := _wanted(search, study, optuna):
        asked = [study.ask() for _ in range(wanted)]
        alive = [(trial, _cell(search, trial, folder)) for trial in asked]
        for limit in _limits(search.first_seconds):
            start([cell for _, cell in alive], limit)
            alive = [
                (trial, cell)
                for trial, cell in alive
                if _goes_on(search, study, optuna, trial, cell, folder, limit, say)
            ]
            if not alive:
                break
    return tried(study)


def tried(study: Any) -> list[Tried]:
    """The trials of a study that have ended, the best first."""
    found = [
        Tried(
            tuple(trial.user_attrs["bindings"]),
            trial.user_attrs["value"],
            trial.user_attrs["seconds"],
            trial.user_attrs["status"],
        )
        for trial in study.trials
        if "status" in trial.user_attrs
    ]
    whole = [one for one in found if one.status == "finished" and one.value is not None]
    others = [one for one in found if one not in whole]
    return [*sorted(whole, key=lambda one: one.value or 0.0), *others]


def lines(found: Sequence[Tried]) -> Iterator[str]:
    """What was tried, to be read: all of it counted, and the best as gin."""
    for one in found:
        value = "-" if one.value is None else f"{one.value:.4g}"
        yield f"{value:>8}  {one.status:9} {one.seconds:7.0f} s  {', '.join(one.bindings)}"
    whole = [one for one in found if one.status == "finished"]
    seconds = sum(one.seconds for one in found)
    yield f"# {len(found)} trials, {len(whole)} of them whole; {seconds:.0f} s of runs in all"
    if whole:
        yield "# the best of them:"
        yield from whole[0].bindings


def _wanted(search: Search, study: Any, optuna: ModuleType) -> int:
    """How many trials begin now."""
    ended = [t for t in study.trials if "status" in t.user_attrs]
    spent = sum(t.user_attrs["seconds"] for t in ended)
    if search.seconds is not None and spent >= search.seconds:
        return 0
    return max(0, min(search.launcher.parallel, search.trials - len(ended)))


def _limits(first: float | None) -> Iterator[float | None]:
    """Seconds that a run may have taken when it is judged; it has ended when it is not stopped."""
    while first is not None:
        yield first
        first *= FACTOR
    yield None


def _cell(search: Search, trial: Any, folder: Path) -> Cell:
    """The run of a trial."""
    chosen = [
        f"{name} = {_suggested(trial, name, place)!r}" for name, place in search.space.items()
    ]
    trial.set_user_attr("bindings", chosen)
    sweep = Sweep([search.files], [()], [search.seed], (*search.bindings, *chosen))
    return where_they_are(cells_of(sweep), folder)[0]


def _suggested(trial: Any, name: str, place: Sequence[Any]) -> Any:
    if isinstance(place, list):
        return trial.suggest_categorical(name, place)
    low, high, *how = place
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=bool(how))
    # Three digits: what is told and written is what was run.
    return float(f"{trial.suggest_float(name, low, high, log=bool(how)):.3g}")


def _goes_on(
    search: Search,
    study: Any,
    optuna: ModuleType,
    trial: Any,
    cell: Cell,
    folder: Path,
    limit: float | None,
    say: Say,
) -> bool:
    """Judges a run by where it stands, and says whether it is to go on."""
    record, _ = read_run(folder / cell.name)
    value = None if record is None else _value(record, search.split)
    status = "failed" if record is None else record.status
    if record is not None and status == "finished" and value is None:
        raise InputError(
            f"{record.path} has no evaluation on {search.split!r}: lower Runner.evaluate_every"
            + " or set Runner.select_fraction" * (search.split == "select")
        )
    if status == "stopped" and value is not None and limit is not None:
        assert search.first_seconds is not None
        trial.report(value, round(limit / search.first_seconds))
    if status == "stopped" and not (value is not None and trial.should_prune()):
        return True
    states = optuna.trial.TrialState
    trial.set_user_attr("value", value)
    trial.set_user_attr("seconds", 0.0 if record is None else _seconds(record))
    trial.set_user_attr("status", {"stopped": "pruned"}.get(status, status))
    if status == "finished":
        study.tell(trial, value)
    else:
        study.tell(trial, state=states.PRUNED if status == "stopped" else states.FAIL)
    ended = [one for one in study.trials if "status" in one.user_attrs]
    told = next(lines([one for one in tried(study) if one.bindings == _bindings(trial)]))
    say(f"[{len(ended)}/{search.trials}] {told.strip()}")
    return False


def _bindings(trial: Any) -> tuple[str, ...]:
    return tuple(trial.user_attrs["bindings"])


def _value(record: Record, split: str) -> float | None:
    """The metric at the latest evaluation; None before there is one."""
    found = record.curve(split)
    return found[max(found)] if found else None


def _seconds(record: Record) -> float:
    return float(record.result.get("seconds") or 0.0)


def _is_place(place: Any) -> bool:
    if isinstance(place, list):
        return bool(place)
    if not isinstance(place, tuple) or len(place) not in (2, 3) or place[2:] not in ((), ("log",)):
        return False
    low, high = place[:2]
    numbers = all(isinstance(end, (int, float)) for end in (low, high))
    return numbers and low < high and (len(place) == 2 or low > 0)


def _optuna() -> ModuleType:
    """Optuna, quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise InputError("a search needs optuna: install metaloss[search]") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
