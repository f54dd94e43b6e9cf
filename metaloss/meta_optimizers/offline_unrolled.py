"""Offline loss learning: ML³, and the initialisation of AdaLFL (paper, Algorithm 1)."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from metaloss.base_optimizers.rates.base import Rate
from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.engines.base import Draw, Engine
from metaloss.machine import distributed
from metaloss.meta_optimizers.base import META_OPTIMIZERS, MetaStep
from metaloss.meta_optimizers.descents.adam import Adam
from metaloss.meta_optimizers.descents.base import Descent
from metaloss.meta_optimizers.parts.by_gradient import ByGradient
from metaloss.meta_optimizers.parts.scale_search import divides, search
from metaloss.problem import snapshot
from metaloss.problem.problem import Problem

LOG = logging.getLogger("metaloss.meta_optimizers")
#: Base steps in all of the initialisation: enough on every pair tried (docs/initialisation.md).
BASE_STEPS = 1200
#: Through fewer, plain SGD's losses shrink: a larger loss does better in later steps alone.
FEWEST_INNER_STEPS = 10
#: A task loss this many times that of the θ drawn anew is one that nothing is learned from.
DIVERGED = 3.0


@META_OPTIMIZERS.register("offline_unrolled")
class OfflineUnrolled(ByGradient):
    """Meta-steps through `inner_steps` base steps, on models that go on from one to the next.

    A model trains on under the loss that it helps to learn, and is drawn anew now and then: after a
    meta-step with the probability inner_steps / horizon, and at once where its task loss is not
    finite or far above its start. So the loss is judged on early and on later steps. With
    `horizon = 1` every meta-step begins with a θ drawn anew and an empty optimizer: Algorithm 1.

    At the end the scale of the loss, or of a learned rate, may be searched by longer trainings: see
    `parts.scale_search`.

    Args:
        steps: meta-steps of the phase, S_init; None: 1200 base steps in all.
        inner_steps: base steps that are differentiated through, S_inner; each has a fresh batch.
            None: as many as the optimizer's momentum takes to build up, 1/(1 - μ) (β₁ for Adam and
            its kin), and at least 10.
        horizon: base steps from one drawing of θ to the next, in the mean (geometric).
        warm_up: base steps on the learned loss after each drawing that are not differentiated
            through. None: 1/(1 - β₁) for optimizers that divide by a gradient's size, whose first
            steps from an empty state are signs, with a derivative of almost 0; else none.
        scale_steps: base steps of each training that the search of the scale makes; 0: no search.
        meta_lr: η of φ at the start; `descent` says how it falls.
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        learn: patterns of names of the loss's parameters; those that match one are learned.
        rate: the parametrisation of a base learning rate that is learned beside them; None leaves
            it to the optimizer.
        rate_meta_lr: η of its parameter; None takes `meta_lr`.
        descent: how the meta-parameters move; None: Adam, whose η falls linearly to 0 at the end of
            the phase, but for `horizon = 1`.
        engine: how the meta-gradient is computed, by name or built.
        certify_every: meta-steps per certificate of the meta-gradient, after the first three; 0:
            none at all.
        uncertified: what becomes of a meta-gradient whose certificate does not hold, where the
            engine was asked for by name: "raise", or "warn" and use it.

    Attributes:
        diverged: models that were drawn anew since their task loss had gone too far.
        multiple: by which the search of the scale has multiplied the loss, or the rate.
        unscaled: φ before that search; None where it has not made another of it.
    """

    goes_on = False

    def __init__(
        self,
        steps: NonNegativeInt | None = None,
        inner_steps: PositiveInt | None = None,
        horizon: Annotated[float, Ge(1)] = 50.0,
        warm_up: NonNegativeInt | None = None,
        scale_steps: NonNegativeInt = 0,
        meta_lr: PositiveFloat = 1e-2,
        objective: Literal["valid", "train"] = "valid",
        objective_batch_size: PositiveInt | None = None,
        learn: Sequence[str] = ("*",),
        rate: Rate | None = None,
        rate_meta_lr: PositiveFloat | None = None,
        descent: Callable[..., Descent] | str | None = None,
        engine: Engine | str = "auto",
        certify_every: NonNegativeInt = 50,
        uncertified: Literal["raise", "warn"] = "raise",
    ) -> None:
        super().__init__(
            meta_lr, objective, objective_batch_size, learn, rate, rate_meta_lr, descent or Adam,
            engine, steps if steps is not None else BASE_STEPS // FEWEST_INNER_STEPS,
            certify_every, uncertified,
        )  # fmt: skip
        self.inner_steps = inner_steps or FEWEST_INNER_STEPS
        self.horizon = horizon
        self.warm_up = warm_up or 0
        self.scale_steps = scale_steps
        self._asked = (steps, inner_steps, warm_up, descent)

    def attach(self, problem: Problem) -> None:
        steps, inner_steps, warm_up, descent = self._asked
        memory = math.ceil(memory_of(problem.optimizer) - 1e-9)
        self.inner_steps = inner_steps or max(FEWEST_INNER_STEPS, memory)
        self.steps = steps if steps is not None else math.ceil(BASE_STEPS / self.inner_steps)
        if warm_up is None:
            self.warm_up = memory if self.horizon > 1 and divides(problem.optimizer) else 0
        if descent is None and self.steps and self.horizon > 1:
            self.descent = falling(self.steps)
        super().attach(problem)
        self.diverged = 0
        self.multiple = 1.0
        self.unscaled: list[Tensor] | None = None
        self._redraw: Callable[[], None] | None = None  # as `set_out` is given it
        self._anew = True  # whether the next meta-step begins with a θ drawn anew
        self._start = math.inf  # the task loss of the present model when it was drawn
        self._standing: dict[str, Any] | None = None  # the base level of a checkpoint

    def set_out(self, problem: Problem, redraw: Callable[[], None]) -> None:
        self._redraw = redraw
        if self._standing is not None:  # the run is resumed, and its model goes on
            snapshot.put_back(problem, self._standing)
            self._standing = None
        elif self._anew:
            super().set_out(problem, redraw)

    def step(self, draw_train: Draw, draw_objective: Draw) -> MetaStep:
        self.meta.write_rate()
        if self._anew:
            if self._goes_on:
                self._start = float(snapshot.task_loss(self.problem, draw_objective()))
            for _ in range(self.warm_up):
                self.problem.plain_step(draw_train())
        made = self.meta_step([draw_train() for _ in range(self.inner_steps)], draw_objective)
        if self._goes_on:
            assert made.task_loss is not None
            # One process draws for all, for their generators are each one's own.
            chance = distributed.rank() == 0 and bool(torch.rand(()) < self._probability)
            diverged = not float(made.task_loss) < DIVERGED * self._start  # also where it is NaN
            self.diverged += diverged
            self._anew = distributed.anywhere(chance) or diverged
        at_its_end = self.guard.meta_steps == self.steps
        if at_its_end and self.scale_steps and self._redraw is not None:
            before = [parameter.detach().clone() for parameter in self.problem.phi]
            self.multiple = search(
                self.problem, self.meta, draw_train, draw_objective, self._redraw, self.scale_steps
            )
            # A learned rate is multiplied in place of the loss, whose φ then stays as it is.
            if self.multiple != 1 and self.meta.rate is None:
                self.unscaled = before
            LOG.info("scale: %g times what the meta-steps have made it", self.multiple)
        return made

    @property
    def _probability(self) -> float:
        return self.inner_steps / self.horizon

    @property
    def _goes_on(self) -> bool:
        """Whether a model can outlive a meta-step; else nothing is drawn or asked for it."""
        return self._probability < 1

    def branch(self) -> Hashable | None:
        by_python = self.inner_steps > 1 or self._goes_on or self.scale_steps
        return None if by_python else super().branch()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "diverged": self.diverged,
            "start": self._start,
            "standing": None if self._anew else snapshot.take(self.problem),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.diverged, self._start = state["diverged"], state["start"]
        # Not before `set_out`: until then the model that stands here is θ_0, to be kept.
        self._standing = state["standing"]
        self._anew = self._standing is None


def memory_of(optimizer: torch.optim.Optimizer) -> float:
    """Base steps that an optimizer's mean of gradients takes to build up, 1/(1 - μ)."""
    decays = [0.0]
    for group in optimizer.param_groups:
        decays += [group.get("momentum", 0.0), group.get("betas", (0.0,))[0]]
    return 1 / (1 - min(max(map(float, decays)), 0.99))


def falling(steps: int) -> Callable[..., Descent]:
    """Adam whose η is 0 after so many meta-steps."""
    return functools.partial(Adam, schedule="linear", schedule_steps=steps)
