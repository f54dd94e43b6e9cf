"""Sweep: what a grid of runs is made of; gin builds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaloss.config.arguments import NonNegativeInt, PositiveInt
from metaloss.config.registry import root
from metaloss.errors import ArgumentError
from metaloss.experiments.launchers.base import Launcher
from metaloss.experiments.launchers.local import Local


@root
class Sweep:
    """Every task with every method, every combination of parameters and every seed.

    Args:
        tasks: gin files; a list in their place is files that go together, later ones win.
        methods: gin files likewise; they follow the task's.
        seeds: how many, from 0 on; or a list of them.
        bindings: gin bindings that every run gets, after its files.
        parameters: values by name, such as `{'base_optimizers.sgd.lr': [0.1, 0.01]}`; every
            combination is a run.
        launcher: what starts the runs, and how many at a time.
        seeds_at_once: of one configuration, in one process; for small models on a GPU. What takes
            one seed at a time goes on to.

    Raises:
        ConfigError: there is nothing to run, or a seed is none.
    """

    def __init__(
        self,
        tasks: Sequence[str | Sequence[str]],
        methods: Sequence[str | Sequence[str]],
        seeds: PositiveInt | Sequence[NonNegativeInt] = 10,
        bindings: Sequence[str] = (),
        parameters: Mapping[str, Sequence[Any]] | None = None,
        launcher: Launcher | None = None,
        seeds_at_once: PositiveInt = 1,
    ) -> None:
        if isinstance(seeds, int):
            seeds = range(seeds)
        if not seeds:
            raise ArgumentError("seeds", seeds, "at least one")
        for name, values in (parameters or {}).items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ArgumentError("parameters", parameters, f"a list of values for {name!r}")
        self.tasks = [_together(files) for files in tasks]
        self.methods = [_together(files) for files in methods]
        self.seeds = tuple(dict.fromkeys(seeds))
        self.bindings = tuple(bindings)
        self.parameters = {name: tuple(values) for name, values in (parameters or {}).items()}
        self.launcher = launcher or Local()
        self.seeds_at_once = seeds_at_once


def _together(files: str | Sequence[str]) -> tuple[str, ...]:
    return (files,) if isinstance(files, str) else tuple(files)
