"""By gradient: meta-parameters that move along a meta-gradient."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss.base_optimizers.rates.base import Rate
from metaloss.engines.base import Draw, Engine, Hypergradient, engine_by
from metaloss.errors import MissingGradientError
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.descents.base import Descent, Group
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector


class ByGradient(MetaOptimizer):
    """A meta-optimizer that differentiates through base steps, and descends.

    What is common to learning online and offline; `step` is what a kind writes. Beside the contract
    of `MetaOptimizer` it keeps an optional one: what Python decides in its next step is known
    before, so that the step can be recorded as a CUDA graph (`branch`, `replayed`), and several of
    one build can make their steps on a stack of problems (`metaloss.meta_optimizers.stacked`).

    Args:
        meta_lr: η of φ.
        objective: split of the task loss, "valid" or "train" (a fresh batch either way).
        objective_batch_size: examples in that batch; None takes the task's batch size.
        learn: patterns of names of the loss's parameters; those that match one are learned.
        rate: the parametrisation of a base learning rate that is learned beside them; None leaves
            it to the optimizer.
        rate_meta_lr: η of its parameter; None takes `meta_lr`.
        descent: how the meta-parameters move.
        engine: how the meta-gradient is computed, by name or built.
        steps: meta-steps of the phase, where it is used as an initialisation.
    """

    def __init__(
        self,
        meta_lr: float,
        objective: Literal["valid", "train"],
        objective_batch_size: int | None,
        learn: Sequence[str],
        rate: Rate | None,
        rate_meta_lr: float | None,
        descent: Callable[..., Descent],
        engine: Engine | str,
        steps: int,
    ) -> None:
        self.meta_lr = meta_lr
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.learn = tuple(learn)
        self.rate = rate
        self.rate_meta_lr = rate_meta_lr
        self.descent = descent
        self.engine = engine_by(engine)
        self.steps = steps

    def attach(self, problem: Problem) -> None:
        self.problem = problem
        self.meta = MetaParameters(problem, self.learn, self.rate)
        self.meta_descent = MetaDescent(self.meta, self.descent, self.meta_lr, self.rate_meta_lr)

    def meta_step(self, train: Sequence[StepBatch], draw_objective: Draw) -> MetaStep:
        """A base step on each training batch, and a step of the meta-parameters through them."""
        # An engine that chooses puts its choice in its own place.
        self.engine = self.engine.chosen_for(self.problem, self.meta, train)
        found = self.engine.hypergradient(self.problem, self.meta, train, draw_objective)
        return self.meta_descent.descend(found)

    def branch(self) -> Hashable | None:
        """What Python will decide by in the next `step`; None if no CUDA graph can hold it.

        "base" is a base step alone, which draws no objective.
        """
        if self.rate is not None or not self.engine.recordable:
            return None  # a learned rate is written by Python
        return self.meta_descent.branch() if self.due() else "base"

    def replayed(self) -> None:
        """A CUDA graph has made a step: counts it."""
        if self.due():
            self.meta_descent.replayed()
        self.count()

    def due(self) -> bool:
        """Whether the next step moves the meta-parameters."""
        return True

    def count(self) -> None:  # noqa: B027 - most kinds count no steps
        """Counts a step: one of its own, or one that a CUDA graph or a stack has made for it."""

    def state_dict(self) -> dict[str, Any]:
        return {"descent": self.meta_descent.state_dict(), "engine": self.engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.meta_descent.load_state_dict(state["descent"])
        self.engine.load_state_dict(state["engine"])


class MetaDescent:
    """The meta-parameters of a problem on their way down, guarded against unusable gradients.

    Args:
        meta: the meta-parameters.
        descent: a recipe for how they move.
        meta_lr: η of φ.
        rate_meta_lr: η of a learned base learning rate's parameter; None takes that of φ.

    Raises:
        MissingGradientError: there is nothing to learn.
    """

    def __init__(
        self,
        meta: MetaParameters,
        descent: Callable[..., Descent],
        meta_lr: float,
        rate_meta_lr: float | None = None,
    ) -> None:
        groups = []
        if meta.phi:
            groups.append(Group(meta.named_phi, meta_lr))
        if meta.ratios is not None:
            groups.append(Group({"lr": meta.x}, rate_meta_lr or meta_lr))
        if not groups:
            raise MissingGradientError(
                "there is nothing to learn: the loss has no parameter that requires a gradient"
            )
        self._meta = meta
        self._names = ", ".join(name for group in groups for name in group.tensors)
        self._descent = descent(groups=groups)
        self._usable = False  # whether any gradient has been usable so far

    def descend(self, found: Hypergradient) -> MetaStep:
        """One step; skipped, and said so, where the gradient or the task loss is not finite.

        Raises:
            MissingGradientError: no meta-parameter has a gradient; or the very first gradient is
                not finite although both losses are.
        """
        gradients = [*found.phi]
        if self._meta.ratios is not None:
            gradients.append(self._meta.through_rate(found.alpha))
        given = self.given(gradients)
        device = found.task_loss.device
        norm = torch.linalg.vector_norm(torch.cat([part.to(device).flatten() for part in given]))
        both = norm + found.task_loss
        finite = both - both == 0  # neither infinite nor NaN, in fewer calls than isfinite makes
        self.move(found, gradients, finite)
        return MetaStep(found.learned_loss, found.task_loss, norm, skipped=~finite)

    def given(self, gradients: Vector) -> list[Tensor]:
        """The gradients that there are, of the shapes of the meta-parameters.

        Raises:
            MissingGradientError: there is none.
        """
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            raise MissingGradientError(
                f"no meta-parameter received a gradient ({self._names}): the base step does not "
                "depend on them, as with an output bias alone or a loss that is constant in the "
                "prediction"
            )
        return given

    def move(self, found: Hypergradient, gradients: Vector, finite: Tensor) -> None:
        """One step along gradients, if they and the task loss are finite.

        Args:
            found: what is to be told of, should there never be a usable gradient.
            gradients: of the shapes of the meta-parameters.
            finite: bool [].

        Raises:
            MissingGradientError: see `descend`.
        """
        if not self._usable:  # later, nothing here waits for the device
            self._usable = bool(finite)
            both = torch.isfinite(found.learned_loss) & torch.isfinite(found.task_loss)
            if not self._usable and bool(both):
                raise MissingGradientError(
                    f"no meta-parameter received a finite gradient ({self._names}) although both "
                    "losses are finite: look for a derivative of the loss or the model that is "
                    "infinite or NaN"
                )
        self._descent.descend(gradients, finite)
        self._meta.write_rate()

    def branch(self) -> Hashable | None:
        """Of the descent; None before the first usable gradient, and where a rate is learned."""
        if not self._usable or self._meta.ratios is not None:
            return None
        return self._descent.branch()

    def replayed(self) -> None:
        """A CUDA graph has made a step: counts it."""
        self._descent.replayed()

    def state_dict(self) -> dict[str, Any]:
        return {
            "descent": self._descent.state_dict(),
            "usable": self._usable,
            "x": float(self._meta.x),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self._usable = state["usable"]
        self._meta.x.fill_(state["x"])
        self._meta.write_rate()
