"""Cells: the runs of a sweep, each with its folder and the command line that makes it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from metaloss import config
from metaloss.config import gin_files
from metaloss.config.configuration import place_of, written
from metaloss.errors import ConfigError, InputError
from metaloss.experiments import settings
from metaloss.experiments.launchers.base import Launcher
from metaloss.experiments.settings import Settings
from metaloss.experiments.sweeps.sweep import Sweep
from metaloss.meta_optimizers.parts.stacked import refuse_unstackable


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        group: the folder of its configuration, `TASK_BACKBONE/NAME-HASH`: the hash is of the
            complete configuration, so that equal runs of several sweeps are one; the name says in
            what it differs from others of its sweep, see `settings.variants`.
        seed: of the run.
        files, bindings: what makes the configuration.
        steps: base steps, and meta-steps of the initialisation before them; None where a training
            is counted in epochs, of data that are not read here.
        at_once: seeds of the configuration that one process makes.
        settings: the configuration.
    """

    group: str
    seed: int
    files: tuple[str, ...]
    bindings: tuple[str, ...]
    steps: int | None
    init_steps: int
    at_once: int = 1
    settings: Settings = field(default=Settings({}), compare=False, repr=False)

    @property
    def hash(self) -> str:
        """Of the complete configuration."""
        return self.group.rpartition("-")[2]

    @property
    def name(self) -> str:
        """The run's folder below the sweep's."""
        return f"{self.group}/seed{self.seed}"

    def arguments(self) -> list[str]:
        """The flags of `tools/train.py` that say what is run, but for the seed."""
        return [
            *(f"--gin_file={file}" for file in self.files),
            *(f"--gin_param={binding}" for binding in self.bindings),
        ]


def load(specs: Sequence[str | Path], bindings: Sequence[str] = ()) -> tuple[Launcher, list[Cell]]:
    """The runs of some specs, each once, seed by seed; and the launcher of the last spec.

    Args:
        specs: gin files with a `Sweep`, or paths inside the shipped `gin_configs`.
        bindings: such as "Sweep.seeds = 3"; they hold for every spec.

    Raises:
        ConfigError: a spec, or a configuration that it leads to, cannot be used.
    """
    found: dict[tuple[str, int], Cell] = {}
    for spec in specs:
        parsed = config.load([spec], bindings, root="Sweep")
        # The launcher may be another than the one that a spec has bindings for.
        unread = [name for name in parsed.unread if not name.startswith("launchers.")]
        if unread:
            raise ConfigError(f"{spec}: nobody reads {', '.join(unread)}")
        sweep: Sweep = parsed.build()
        for cell in cells(sweep, gin_files.find(spec).parent):
            found.setdefault((cell.hash, cell.seed), cell)
    # Seed by seed, so that a sweep that is stopped early has a bit of everything.
    return sweep.launcher, _named(sorted(found.values(), key=lambda cell: cell.seed))


def where_they_are(cells: Sequence[Cell], root: Path) -> list[Cell]:
    """The cells, each in the folder of its configuration that is there, whatever that is called.

    A name depends on what else is in a sweep, and was the method's in earlier versions; the hash
    says which configuration it is.
    """
    there = {
        (path.parent.name, path.name.rpartition("-")[2]): f"{path.parent.name}/{path.name}"
        for path in sorted(root.glob("*/*-*"), reverse=True)
    }
    return [
        cell
        if (root / cell.group).is_dir()
        else replace(cell, group=there.get((Path(cell.group).parent.name, cell.hash), cell.group))
        for cell in cells
    ]


def cells(sweep: Sweep, folder: Path = Path()) -> list[Cell]:
    """The runs of a sweep; of runs that come out the same, the first.

    A binding may concern some of the runs only; each is given those that it reads.

    Args:
        sweep: what the spec says.
        folder: of the spec, where its files are looked for first.

    Raises:
        ConfigError: a configuration cannot be used, or no run reads a binding.
    """
    choices = [
        [f"{name} = {written(value)}" for value in values]
        for name, values in sweep.parameters.items()
    ]
    found: dict[str, Cell] = {}
    unread: set[str] = {*sweep.bindings, *itertools.chain(*choices)}
    for task, method in itertools.product(sweep.tasks, sweep.methods):
        files = tuple(_beside(file, folder) for file in (*task, *method))
        for chosen in itertools.product(*choices):
            group, bindings, steps, read = _configuration(files, (*sweep.bindings, *chosen))
            unread -= {*bindings}
            at_once = sweep.seeds_at_once
            if at_once > 1 and not _can_be_stacked(files, bindings):
                at_once = 1
            for seed in sweep.seeds:
                cell = Cell(group, seed, files, bindings, *steps, at_once, read)
                found.setdefault(cell.name, cell)
    if unread:
        raise ConfigError(f"no run of the sweep reads {' or '.join(map(repr, sorted(unread)))}")
    return _named(list(found.values()))


def _beside(file: str, folder: Path) -> str:
    """A file that stands beside the spec, by its path; another as it is."""
    return str(folder / file) if (folder / file).is_file() else file


def _named(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, their groups called by what differs between them."""
    of_group = {cell.hash: cell for cell in cells}
    found = settings.variants([cell.settings for cell in of_group.values()])
    names = dict(zip(of_group, found, strict=True))
    return [
        replace(cell, group=f"{Path(cell.group).parent}/{names[cell.hash]}-{cell.hash}")
        for cell in cells
    ]


def _configuration(
    files: Sequence[str], bindings: Sequence[str]
) -> tuple[str, tuple[str, ...], tuple[int | None, int], Settings]:
    """A configuration's folder, the bindings that it reads, how many steps it takes, and itself."""
    parsed = config.load(files, bindings)
    read = [b for b in bindings if not any(u.endswith(place_of(b)) for u in parsed.unread)]
    others = [u for u in parsed.unread if not any(u.endswith(place_of(b)) for b in bindings)]
    if others:
        raise ConfigError(f"{', '.join(files)}: nobody reads {', '.join(others)}")
    found = settings.read(parsed.text, files[-1])
    task, backbone = map(found.component, ("Runner.task", "Runner.backbone"))
    digest = hashlib.sha256(parsed.text.encode()).hexdigest()[:8]
    initialization = repr(found.values["Runner.initialization"]).strip("@()")
    steps = found.values["Runner.steps"], found.values.get(f"{initialization}.steps", 0)
    return f"{task}_{backbone}/{found.method}-{digest}", tuple(read), steps, found


def _can_be_stacked(files: Sequence[str], bindings: Sequence[str]) -> bool:
    """Whether several seeds of a configuration can make their steps at once."""
    parsed = config.load(files, bindings)
    plan = parsed.build()
    by_metric = settings.read(parsed.text, files[-1]).component("Runner.schedule") == "plateau"
    if by_metric or plan.gradient_transform is not None or plan.compile_backbone:
        return False
    # Each seed's initialisation is made alone; a rate that it learns is no longer one of all.
    phases = getattr(plan.initialization, "phases", (plan.initialization,))
    if any(getattr(phase, "rate", None) is not None for phase in phases):
        return False
    try:
        if plan.adaptation is not None:
            refuse_unstackable(plan.adaptation)
    except InputError:
        return False
    return True


def choose(cells: Sequence[Cell], patterns: Sequence[str], limit: int | None) -> list[Cell]:
    """The cells whose name matches a pattern (all, if there is none), at most `limit`.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch(cell.name, pattern) for cell in cells):
            names = ", ".join(dict.fromkeys(cell.group for cell in cells))
            raise ConfigError(f"--only {pattern!r} matches no run; groups: {names}")
    matching = [c for c in cells if not patterns or any(fnmatch(c.name, p) for p in patterns)]
    return matching[:limit]
