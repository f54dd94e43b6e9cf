"""Lockstep: the steps of one run, or of several seeds' runs at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaloss.engines.base import Draw
from metaloss.errors import InputError
from metaloss.learner import AdaLFL
from metaloss.machine import clock
from metaloss.machine.memory import of_run
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.in_turn import InTurn
from metaloss.problem.batches import Batch, StepBatch
from metaloss.runs import checkpoint
from metaloss.runs.forecast import Forecast, paced, typical
from metaloss.runs.run import Run
from metaloss.runs.state import MIXED, Phase, State
from metaloss.stack import Stack
from metaloss.tasks.base import Data
from metaloss.tasks.preparation.streams import Stream


class Lockstep:
    """Runs of one configuration that make their steps together; of one alone, its own.

    Each has its own data, random streams, folder and end: one that diverges ends, and the others go
    on.

    Args:
        runs: of as many seeds.
        max_seconds: after which a run that still goes on saves itself and stops, counted over all
            its resumptions; of several all stop at the same step. None: there is no limit.

    Raises:
        InputError: a component of theirs takes one seed at a time.
    """

    def __init__(self, runs: Sequence[Run], max_seconds: float | None = None) -> None:
        self._limit = math.inf if max_seconds is None else max_seconds
        self._runs = runs
        self._states = [run.state for run in runs]
        self._stack: Stack | None = None
        self._data: StackedData | None = None
        self._skipped = torch.zeros(len(runs), dtype=torch.int64)
        if len(runs) > 1:
            if any(state.freezing.steps for state in self._states):
                raise InputError(
                    "several seeds at once train the same parameters all along, and frozen_until "
                    "changes them: train them one at a time"
                )
            self._data = StackedData([state.data for state in self._states])
            if any(state.schedule and state.schedule.by_metric for state in self._states):
                raise InputError(
                    "schedules.plateau goes by each seed's own metric, and several seeds at once "
                    "have one base learning rate: train them one at a time"
                )
            if any(state.learner.problem.compiled is not None for state in self._states):
                raise InputError(
                    "several seeds at once make their passes by torch.func.vmap, and "
                    "Runner.compile_backbone compiles those of one: train them one at a time"
                )
            self._stack = Stack([state.learner for state in self._states])
            for run in runs:
                run.progress.label = f"seed {run.seed}"
                run.state.clock = self._states[0].clock  # what they do together is of no one alone

    def restore(self) -> None:
        """Goes on from the folders' checkpoints, if there are any; changes no file.

        Raises:
            RunFolderError: a checkpoint is damaged or another configuration's.
            InputError: the checkpoints stand at different steps.
        """
        at = self._common()
        for run in self._runs:
            run.restore(at)

    def execute(self) -> list[dict[str, Any]]:
        """Carries the restored runs out; gives the content of each one's result.json."""
        results: dict[int, dict[str, Any]] = {}
        with ExitStack() as opened:
            opened.enter_context(self._states[0].clock.running())
            for run in self._runs:
                opened.callback(run.close)
            going, steps = list(self._runs), self._steps()
            ended = [run for run in going if not run.begin()]
            while True:
                # A run finishes before the others' next step: what has ended, no kill undoes.
                for run in ended:
                    results[run.seed] = run.finish()
                    going.remove(run)
                if not going:
                    return [results[run.seed] for run in self._runs]
                made = next(steps)
                if any(run.seconds() >= self._limit for run in going):
                    for run in going:
                        run.stop = True
                ended = [run for run in going if not run.after_step(made[run.seed])]

    def rehearse(self) -> Forecast:
        """A few steps of each phase, without files: they work, and the run will take so long."""
        device = self._runs[0].device
        initialization = sum(_rehearsed(state, device) for state in self._states)
        if self._stack is not None:
            self._stack.join()
        self._states[0].shard()
        train, objective = self._draws("")
        learner, plan, total = self._learner, self._runs[0].plan, self._states[0].total
        made: list[MetaStep] = []
        steps = paced(lambda: made.append(learner.step(train, objective)), device)
        by_kind = {
            due: typical([s for s, own in zip(steps, made, strict=True) if own.due is due])
            for due in (True, False)
        }
        meta_steps = 0 if plan.adaptation is None else plan.adaptation.meta_steps(total)
        plain = by_kind[False]
        if meta_steps and not plain:
            plain = typical(paced(lambda: learner.problem.plain_step(train()), device))
        training = by_kind[True] * meta_steps + plain * (total - meta_steps)
        baseline = None
        if plan.representation is not None or plan.adaptation is not None:
            with learner.problem.descending_task_loss():
                each = paced(lambda: learner.problem.plain_step(train()), device)
            baseline = typical(each) * total
        evaluation = sum(run.evaluation_seconds() for run in self._runs)
        memory = of_run(device)
        return Forecast(initialization, training, evaluation, baseline, memory)

    @property
    def _learner(self) -> AdaLFL:
        """What makes the steps of the training."""
        return self._states[0].acting if self._stack is None else self._stack

    def _steps(self) -> Iterator[dict[int, MetaStep]]:
        """The steps of both phases, each as what it did by seed."""
        several = self._stack is not None
        phases = [_initialization(state, several) for state in self._states]
        # Each seed's alone: their models are drawn anew at steps of their own.
        for made in zip(*phases, strict=True):
            yield {run.seed: own for run, own in zip(self._runs, made, strict=True)}
        if self._stack is not None:
            for state in self._states:
                state.end_turns(self._states[0])
            # Not before: a stack that has a state hands it out to its members' optimizers, also
            # while each is in its own initialisation.
            self._stack.join()
            # Views of one tensor: from here on all seeds' skipped meta-steps are counted at once.
            counts = torch.tensor([int(state.skipped) for state in self._states])
            self._skipped = counts.to(self._stack.problem.device)
            for state, count in zip(self._states, self._skipped, strict=True):
                state.skipped = count
        self._states[0].shard()
        while True:
            self._follow_schedule()
            yield self._by_seed(self._learner.step(*self._draws("")))

    def _follow_schedule(self) -> None:
        """Gives the stack, whose optimizer is one of all seeds, the rates that they have alone."""
        first = self._states[0]
        if self._stack is not None and first.schedule is not None:
            groups = self._stack.problem.optimizer.param_groups
            own = first.learner.problem.optimizer.param_groups
            for group, alone in zip(groups, own, strict=True):
                group["lr"] = alone["lr"]

    def _by_seed(self, made: MetaStep) -> dict[int, MetaStep]:
        if self._stack is None:
            return {self._runs[0].seed: made}
        if made.skipped is not None:
            self._skipped += made.skipped
            made.skipped = None
        members = self._stack.members(made)
        return {run.seed: own for run, own in zip(self._runs, members, strict=True)}

    def _draws(self, phase: Phase) -> tuple[Draw, Draw | None]:
        """Give the next batches of all, see `State.draws`."""
        first = self._states[0]
        if self._data is None:
            return first.draws(phase)
        train, objective = first.asked(phase)
        return partial(self._draw_step, *train), objective and partial(self._draw, *objective)

    def _draw_step(self, *asked: Any) -> StepBatch:
        return self._runs[0].plan.one_step(partial(self._draw, *asked))

    @clock.part("data")
    def _draw(self, split: str, size: int, stream: str) -> Batch:
        assert self._data is not None
        batch = self._data.draw(split, size, [state.stream(stream) for state in self._states])
        if stream not in MIXED or self._states[0].mixing is None:
            return batch
        mixed = [
            state.mixing(own, state.stream(MIXED[stream]))
            for state, own in zip(self._states, zip(*batch, strict=True), strict=True)
            if state.mixing is not None
        ]
        inputs, labels = (torch.stack(parts) for parts in zip(*mixed, strict=True))
        return inputs, labels

    def _common(self) -> checkpoint.Position | None:
        """The latest position at which all runs have a checkpoint; None for one run's latest.

        They are saved one after another, so a process that is killed may leave some one ahead.
        """
        if self._stack is None:
            return None
        found = [checkpoint.positions(run.folder) for run in self._runs]
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


def _initialization(state: State, several: bool) -> Iterator[MetaStep]:
    """What is left of a seed's initialisation, a meta-step at a time; of several, each in turn."""
    if state.initializing is None:
        return
    train, objective = state.draws("init_")
    assert objective is not None
    phase = state.learner.initializing(
        state.initializing, train, objective, state.redraw_model, state.init_steps
    )
    while True:
        with state.turn() if several else nullcontext():
            made = next(phase, None)
        if made is None:
            return
        yield made


def _rehearsed(state: State, device: torch.device) -> float:
    """Seconds of a seed's initialisation, by a few meta-steps of each of its phases."""
    initialization = state.initializing
    if initialization is None:
        return 0.0
    train, objective = state.draws("init_")
    assert objective is not None
    seconds = 0.0
    for phase in initialization.phases if isinstance(initialization, InTurn) else [initialization]:

        def meta_step(phase: MetaOptimizer = phase) -> None:
            phase.set_out(state.learner.problem, state.redraw_model)
            phase.step(train, objective)

        if phase.steps:
            seconds += typical(paced(meta_step, device)) * phase.steps
    return seconds


class StackedData:
    """Each seed's batches are those that it draws alone, but a device gathers all by one call.

    Args:
        members: of one task; their splits become views.

    Raises:
        InputError: their splits are of other sizes.
    """

    def __init__(self, members: Sequence[Data]) -> None:
        self._members = members
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        for split in members[0].splits:
            sizes = [len(member.splits[split][1]) for member in members]
            if len(set(sizes)) > 1:
                raise InputError(
                    f"the seeds have {split} splits of other sizes ({', '.join(map(str, sizes))}): "
                    "train them one at a time"
                )
            if any(isinstance(member.splits[split][0], Stream) for member in members):
                raise InputError(
                    "several seeds at once need examples that are in memory: train them one at a "
                    "time, or set stream = False"
                )
            inputs, labels = (
                torch.cat(parts)
                for parts in zip(*(member.splits[split] for member in members), strict=True)
            )
            self._splits[split] = inputs, labels
            views = zip(inputs.split(sizes[0]), labels.split(sizes[0]), strict=True)
            for member, view in zip(members, views, strict=True):
                member.splits[split] = view
        images = [member.images for member in members if member.images is not None]
        self._images = images and replace(
            images[0],
            mean=torch.stack([each.mean for each in images])[:, None],
            deviation=torch.stack([each.deviation for each in images])[:, None],
        )

    def draw(self, split: str, batch_size: int, generators: Sequence[torch.Generator]) -> Batch:
        """Inputs [S, batch, ...] and labels [S, batch, ...], see `Data.draw`.

        Args:
            generators: of each seed.
        """
        inputs, labels = self._splits[split]
        examples = len(labels) // len(self._members)
        chosen = [
            member.choose(split, batch_size, generator)
            for member, generator in zip(self._members, generators, strict=True)
        ]
        index = torch.cat([choice.rows + i * examples for i, choice in enumerate(chosen)])
        index = index.to(inputs.device, non_blocking=True)
        inputs, labels = inputs[index], labels[index]
        windows = [choice.windows for choice in chosen if choice.windows is not None]
        if self._images and windows:
            inputs = self._images.cut(inputs, torch.cat(windows))
        seeds = (len(self._members), -1)
        inputs, labels = inputs.unflatten(0, seeds), labels.unflatten(0, seeds)
        return (self._images.prepare(inputs) if self._images else inputs), labels
