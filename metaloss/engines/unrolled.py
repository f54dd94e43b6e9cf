"""The reference: plain double backward through all steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss.base_optimizers.base import State
from metaloss.engines.base import ENGINES, Rollout, RolloutEngine
from metaloss.machine import distributed
from metaloss.problem import replicas
from metaloss.problem.batches import StepBatch, examples
from metaloss.problem.gradient_transform import transform
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refusing_reentrant_checkpoints
from metaloss.problem.vectors import Vector, add, copy, gradient


@ENGINES.register("unrolled")
class Unrolled(RolloutEngine):
    """θ_K as one differentiable function of φ and α, by autograd alone; memory grows with K.

    So it does with the number of micro-batches. The way for losses that look at θ itself. Not for
    several steps of a model with activation checkpoints: torch would run a step's checkpoint again
    with the parameters of a later one.
    """

    exact = True
    elementwise = True

    def roll_out(
        self, problem: Problem, meta: MetaParameters, batches: Sequence[StepBatch]
    ) -> Rollout:
        return UnrolledRollout(problem, meta, batches)


class UnrolledRollout(Rollout):
    """K base steps and the graph through them."""

    def __init__(
        self, problem: Problem, meta: MetaParameters, batches: Sequence[StepBatch]
    ) -> None:
        self._meta = meta
        self._theta: list[Tensor] = [p.detach().clone().requires_grad_() for p in problem.theta]
        self._alpha: Tensor | None = None
        if meta.ratios is not None:
            lr = float(problem.optimizer.param_groups[0]["lr"])
            self._alpha = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
        state: list[State] | None = None
        for batch in batches:
            named = dict(zip(problem.theta_names, self._theta, strict=True))
            grads: list[Tensor | None] = [None] * len(self._theta)
            losses: list[Tensor] = []
            with (
                refusing_reentrant_checkpoints(),
                sdpa_kernel(SDPBackend.MATH),
                problem.replaced(named, {}),
            ):
                for loss in problem.shares(batch):
                    parts = torch.autograd.grad(
                        loss,
                        self._theta,
                        torch.ones_like(loss),
                        create_graph=True,
                        allow_unused=True,
                    )
                    grads = add(grads, parts)
                    losses.append(loss.detach())
            grads, self.learned_loss = replicas.mean_step(
                problem.model, self._theta, grads, sum(losses[1:], losses[0]), examples(batch)
            )
            if problem.gradient_transform is not None:
                grads = transform(problem.gradient_transform, grads)
            # Copies: torch's foreach kernel of Nesterov's SGD changes its gradients in place.
            along = copy([None if grad is None else grad.detach() for grad in grads])
            taken = problem.take_step(along, keep="values")
            state = taken.state_before if state is None else state
            self._theta, state = taken.differentiable(
                self._theta, grads, state, self._alpha, meta.ratios
            )

    def pullback(self, v: Vector) -> tuple[list[Tensor | None], Tensor | None]:
        inputs = [*self._meta.phi, *([] if self._alpha is None else [self._alpha])]
        bars = distributed.mean(gradient(self._theta, inputs, v), inputs, examples=1)
        return bars[: len(self._meta.phi)], None if self._alpha is None else bars[-1]
