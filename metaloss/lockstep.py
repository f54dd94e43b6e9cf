"""Lockstep: the steps of one run, or of several seeds' runs at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from metaloss import saving
from metaloss.batches import Batch
from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.learner import AdaLFL
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.run import Follower, Run
from metaloss.run_folder import RunFolder
from metaloss.stack import Stack
from metaloss.stacked_data import StackedData
from metaloss.state import Phase


class Lockstep:
    """Runs of one configuration that make their steps together; of one alone, its own.

    Each has its own data, random streams, folder and end: one that diverges ends, and the others go
    on.

    Args:
        runs: of as many seeds.

    Raises:
        InputError: a component of theirs takes one seed at a time.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._states = [run.state for run in runs]
        self._stack: Stack | None = None
        self._data: StackedData | None = None
        if len(runs) > 1:
            self._data = StackedData([state.data for state in self._states])
            self._stack = Stack([state.learner for state in self._states])
            self._learner()  # refuses now what it would refuse after the folders are written
            for run in runs:
                run.label = f"seed {run.seed}"

    def restore(self, folders: Sequence[RunFolder], config: str) -> None:
        """Goes on from the folders' checkpoints, if there are any; changes no file.

        Raises:
            RunFolderError: a checkpoint is damaged or another configuration's.
            InputError: the checkpoints stand at different steps.
        """
        at = self._common(folders)
        for run, folder in zip(self._runs, folders, strict=True):
            run.restore(folder, config, at)
        if self._stack is not None:
            self._stack.join()

    def execute(self) -> list[dict[str, Any]]:
        """Carries the restored runs out; gives the content of each one's result.json."""
        skipped = torch.tensor([int(state.skipped) for state in self._states])
        if self._stack is not None:
            skipped = skipped.to(self._stack.problem.device)
            for state, count in zip(self._states, skipped, strict=True):
                state.skipped = count  # a view: all are counted at once
        steps, results = self._steps(), [dict[str, Any]() for _ in self._runs]
        with ExitStack() as opened:
            following = {i: run.follow() for i, run in enumerate(self._runs)}
            for follower in following.values():
                opened.callback(follower.close)
            asking = {i: next(follower) for i, follower in following.items()}
            while following:
                for i in [i for i, asks in asking.items() if not asks]:
                    results[i] = _result(following.pop(i))
                    del asking[i]
                if following:
                    made = next(steps)
                    if self._stack is not None and made.skipped is not None:
                        skipped += made.skipped
                        made.skipped = None
                    each = [made] if self._stack is None else made.members()
                    asking = {i: follower.send(each[i]) for i, follower in following.items()}
        return results

    def rehearse(self) -> None:
        """One step of each phase, without files, to see that they work."""
        learner, initialization = self._learner()
        if initialization is not None:
            train, objective = self._draws("init_")
            assert objective is not None
            initialization.step(train, objective)
        learner.step(*self._draws(""))

    def _learner(self) -> tuple[AdaLFL, MetaOptimizer | None]:
        """What makes the steps, and the initialisation's meta-optimizer while it is at work."""
        initializing = [at_work for state in self._states if (at_work := state.initializing)]
        if self._stack is None:
            return self._states[0].learner, next(iter(initializing), None)
        return self._stack, self._stack.together(initializing) if initializing else None

    def _steps(self) -> Iterator[MetaStep]:
        """The steps of both phases, for as long as they are asked for."""
        learner, initialization = self._learner()
        if initialization is not None:
            train, objective = self._draws("init_")
            assert objective is not None
            start = self._states[0].init_steps
            yield from learner.initializing(initialization, train, objective, self._redraw, start)
        while True:
            yield learner.step(*self._draws(""))

    def _draws(self, phase: Phase) -> tuple[Draw, Draw | None]:
        """Give the next batches of all, see `State.draws`."""
        first = self._states[0]
        if self._data is None:
            return first.draws(phase)
        train, objective = first.asked(phase)
        return partial(self._draw, *train), objective and partial(self._draw, *objective)

    def _draw(self, split: str, size: int, stream: str) -> Batch:
        assert self._data is not None
        return self._data.draw(split, size, [state.stream(stream) for state in self._states])

    def _redraw(self) -> None:
        for state in self._states:
            state.redraw_model()

    def _common(self, folders: Sequence[RunFolder]) -> saving.Position | None:
        """The latest position at which all runs have a checkpoint; None for one run's latest.

        They are saved one after another, so a process that is killed may leave some one ahead.
        """
        if self._stack is None:
            return None
        found = [saving.positions(folder) for folder in folders]
        common = set(found[0]).intersection(*found[1:])
        if not common:
            standing = ", ".join(
                f"seed {run.seed} at meta-step {at[0][0]}, step {at[0][1]}"
                for run, at in zip(self._runs, found, strict=True)
            )
            raise InputError(
                f"only runs that stand at the same step go on together ({standing}): --resume each "
                "alone, by its --seed and its own --output_dir"
            )
        return max(common)


def _result(follower: Follower[dict[str, Any]]) -> dict[str, Any]:
    """Lets a run finish."""
    try:
        next(follower)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("a run asks for no step after its last one")
