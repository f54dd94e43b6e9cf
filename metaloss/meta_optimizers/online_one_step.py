"""Online loss learning: AdaLFL (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor

from metaloss.base_optimizers.rates.base import Rate
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, check
from metaloss.engines.auto import Auto
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.engines.exact import ByIdentity
from metaloss.engines.parts.open_step import OpenStep, reopened
from metaloss.errors import ArgumentError, InputError
from metaloss.machine import clock, distributed
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaStep
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.parts.by_gradient import ByGradient
from metaloss.problem.batches import MicroBatches, StepBatch
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector


@META_OPTIMIZERS.register("online_one_step")
class OnlineOneStep(ByGradient):
    """One base step, then one meta-step through it; θ and its optimizer go on (Algorithm 2).

    Args:
        meta_lr: η of φ.
        every: base steps per meta-step; the paper takes 1 and suggests more (section 5.2).
        start: base steps before the first meta-step.
        stop: base steps after which φ stays as it is; None never freezes it.
        objective: what the task loss is taken on: a fresh batch of the split "valid" or "train"; or
            "next", the training batch of the next base step, whose pass gives both: a meta-step
            then comes with the base step after its own, and the last one does not come.
        objective_batch_size: examples in a fresh batch; None takes the task's batch size.
        learn: patterns of names of the loss's parameters; those that match one are learned.
        rate: the parametrisation of a base learning rate that is learned beside them; None leaves
            it to the optimizer.
        rate_meta_lr: η of its parameter; None takes `meta_lr`.
        descent: how the meta-parameters move: a recipe, or a registered name.
        engine: how the meta-gradient is computed, by name or built.
        certify_every: meta-steps per certificate of the meta-gradient, after the first three; 0:
            none at all.
        uncertified: what becomes of a meta-gradient whose certificate does not hold, where the
            engine was asked for by name: "raise", or "warn" and use it.
        steps: meta-steps of the phase, where it is used as an initialisation.
    """

    def __init__(
        self,
        meta_lr: PositiveFloat = 1e-5,
        every: PositiveInt = 1,
        start: NonNegativeInt = 0,
        stop: int | None = None,
        objective: Literal["valid", "train", "next"] = "valid",
        objective_batch_size: PositiveInt | None = None,
        learn: Sequence[str] = ("*",),
        rate: Rate | None = None,
        rate_meta_lr: PositiveFloat | None = None,
        descent: Callable[..., Descent] | str = Adam,
        engine: Engine | str = "auto",
        certify_every: NonNegativeInt = 50,
        uncertified: Literal["raise", "warn"] = "raise",
        steps: NonNegativeInt = 2500,
    ) -> None:
        if stop is not None:
            check("stop", stop, Annotated[int, Ge(start)])
        super().__init__(
            meta_lr, objective, objective_batch_size, learn, rate, rate_meta_lr, descent, engine,
            steps, certify_every, uncertified,
        )  # fmt: skip
        self.every = every
        self.start = start
        self.stop = stop
        if objective == "next":
            self._require_for_next()

    def attach(self, problem: Problem) -> None:
        super().attach(problem)
        self._base_steps = 0
        self._open: OpenStep | None = None  # what the next step's pass judges
        self._saved: dict[str, Any] | None = None  # the same, as it was loaded
        if self.objective == "next":
            self._refuse_for_next(problem)

    def set_out(self, problem: Problem, redraw: Callable[[], None]) -> None:
        if self.objective == "next":
            raise InputError(
                "objective = 'next' in an initialisation, which draws θ anew before each step: "
                "take 'valid' or 'train' there"
            )
        super().set_out(problem, redraw)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        follows = self._follows()
        self.count()
        self.meta.write_rate()  # it is ours alone: a scheduler's would not be what α stands for
        if self.objective == "next":
            return self._step_on(draw_train(), follows)
        if not follows:
            return MetaStep(self.engine.base_step(self.problem, draw_train()))
        return self.meta_step([draw_train()], draw_objective)

    @clock.part("meta")
    def _step_on(self, batch: StepBatch, follows: bool) -> MetaStep:
        """A base step, whose pass judges the one before; its own meta-step is left open.

        Args:
            follows: whether a meta-step is to follow it.
        """
        if isinstance(batch, MicroBatches):
            raise InputError(
                "objective = 'next' takes the task loss and M_φ of one pass, and micro-batches are "
                "passes one after another: give one batch, or take 'train'"
            )
        problem, meta = self.problem, self.meta
        if not follows and not self.due():
            return MetaStep(self.engine.base_step(problem, batch))
        self.guard.follow(problem)
        self.guard.settle(self.engine, problem, meta, [batch])
        engine = self._judging(batch)
        before = self._taken_out()
        found: list[Hypergradient] = []
        made: list[MetaStep] = []

        def judge(task_loss: Tensor, v: Vector) -> None:
            assert before is not None
            found.append(engine.close(problem, meta, before, task_loss, v))
            made.append(self.descend(found[0]))
            meta.write_rate()

        judges = None if before is None else judge
        if follows:
            certify = self.guard.due(before=0 if before is None else 1)
            self._open = engine.open(problem, meta, batch, certify, judges)
            learned_loss = self._open.made.gradient.learned_loss
        else:
            learned_loss = problem.plain_step(batch, judges)
        if not made:
            return MetaStep(learned_loss)
        self.settle_early(found[0], [batch])
        return replace(made[0], learned_loss=learned_loss)

    def _judging(self, batch: StepBatch) -> ByIdentity:
        """What takes the gradient; the choice is made here if it is not."""
        engine = self.engine
        if isinstance(engine, Auto):
            engine = engine.settled(self.problem, self.meta, [batch])
        assert isinstance(engine, ByIdentity)
        return engine

    def _taken_out(self) -> OpenStep | None:
        """The step that is open, if it can still be judged; none is any more."""
        if self._saved is not None:
            self._open, self._saved = reopened(self.problem, self._saved), None
        before, self._open = self._open, None
        return before if before is not None and before.holds(self.problem) else None

    def due(self) -> bool:
        if self.objective == "next":
            return self._open is not None or self._saved is not None
        return self._follows()

    def _follows(self) -> bool:
        """Whether a meta-step is to follow the next base step."""
        made = self._base_steps
        frozen = self.stop is not None and made >= self.stop
        return made >= self.start and not frozen and (made - self.start) % self.every == 0

    def branch(self) -> Hashable | None:
        if self.objective == "next" and (self.due() or self._follows()):
            return None  # a graph of autograd goes from one step to the next
        return super().branch()

    def meta_steps(self, base_steps: int) -> int:
        made = base_steps - 1 if self.objective == "next" else base_steps
        end = made if self.stop is None else min(made, self.stop)
        return len(range(self.start, end, self.every))

    def count(self) -> None:
        self._base_steps += 1

    def state_dict(self) -> dict[str, Any]:
        opened = self._saved if self._open is None else self._open.state_dict(self.problem)
        return {**super().state_dict(), "base_steps": self._base_steps, "open": opened}

    def __getstate__(self) -> dict[str, Any]:
        """Copied and pickled, an open step is as a checkpoint has it: without its graph."""
        state = vars(self).copy()
        if state.get("_open") is not None:
            state |= {"_open": None, "_saved": state["_open"].state_dict(self.problem)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._base_steps = state["base_steps"]
        self._open, self._saved = None, state.get("open")

    def _require_for_next(self) -> None:
        """Raises ArgumentError for what objective = 'next' does not go with."""
        if isinstance(self.engine, Auto):
            self.engine.by_identity = True
        elif not isinstance(self.engine, ByIdentity):
            raise ArgumentError(
                "engine", ENGINES.name_of(self.engine),
                "'auto', 'exact' or 'logit_difference' with objective = 'next': others judge a "
                "step before the next one is made",
            )  # fmt: skip
        if self.objective_batch_size is not None:
            raise ArgumentError(
                "objective_batch_size", self.objective_batch_size,
                "none with objective = 'next', which takes the task loss on the whole next batch",
            )  # fmt: skip

    def _refuse_for_next(self, problem: Problem) -> None:
        """Raises InputError for what objective = 'next' does not go with."""
        if distributed.several():
            raise InputError(
                "objective = 'next' in several processes: a checkpoint would have to hold the "
                "batch of each; take 'train'"
            )
        if self.meta_descent.looks:
            raise InputError(
                "objective = 'next' with a descent that takes a Jacobian before its base step, as "
                "descents.natural: take 'train', or another descent"
            )
