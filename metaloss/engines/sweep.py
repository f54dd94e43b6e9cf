"""Several base steps, gone back through one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss.base_optimizers.taken_step import KeepState
from metaloss.engines.base import ENGINES, Rollout, RolloutEngine
from metaloss.machine import distributed, seeding
from metaloss.problem.base_step import BaseStep
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector, add, gradient


@ENGINES.register("sweep")
class Sweep(RolloutEngine):
    """A reverse sweep that re-runs one base step at a time: exact, activation memory flat in K.

    Needs double backward of every operator of the model, through one step.
    """

    exact = True
    elementwise = True

    def roll_out(
        self, problem: Problem, meta: MetaParameters, batches: Sequence[StepBatch]
    ) -> Rollout:
        return SweepRollout(problem, meta, batches)


class SweepRollout(Rollout):
    """K base steps; keeps θ_k, the batch and (unless U is linear) the optimizer's state of each."""

    def __init__(
        self, problem: Problem, meta: MetaParameters, batches: Sequence[StepBatch]
    ) -> None:
        self._problem = problem
        self._meta = meta
        keep: KeepState = "derivative" if meta.ratios is None else "values"
        self._steps = [problem.base_step(batch, keep=keep) for batch in batches]
        self.learned_loss = self._steps[-1].gradient.learned_loss

    def pullback(self, v: Vector) -> tuple[list[Tensor | None], Tensor | None]:
        phi_bar: list[Tensor | None] = [None] * len(self._meta.phi)
        alpha_bar: Tensor | None = None
        state_bar: list[dict[str, Tensor]] = [{} for _ in self._problem.theta]
        while self._steps:
            v, state_bar, phi_share, alpha_share = self._back(self._steps.pop(), v, state_bar)
            phi_bar = add(phi_bar, phi_share)
            (alpha_bar,) = add([alpha_bar], [alpha_share])
        return phi_bar, alpha_bar

    def _back(
        self, step: BaseStep, v: Vector, state_bar: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor | None], list[dict[str, Tensor]], list[Tensor | None], Tensor | None]:
        """From the cotangents of θ_{k+1}, s_{k+1} to those of θ_k, s_k, and the shares of φ, α."""
        problem = self._problem
        theta = [value.requires_grad_() for value in step.taken.theta_before]
        named = dict(zip(problem.theta_names, theta, strict=True))
        along, grad_bar = step.along, None
        total: list[Tensor | None] = [None] * (len(theta) + len(self._meta.phi))
        for part in step.gradient.passes:
            inputs, labels = part.batch
            with (
                sdpa_kernel(SDPBackend.MATH),  # fused attention has no second derivative
                seeding.replaying(part.random_state, problem.device),
                problem.replaced(named, part.buffers),
            ):
                loss = problem.learned_loss(problem.forward(inputs), labels) / part.share
                grads = torch.autograd.grad(
                    loss, theta, torch.ones_like(loss), create_graph=True, allow_unused=True
                )
                if grad_bar is None:
                    theta_bar, grad_bar, state_bar, alpha_bar = step.taken.pullback(
                        along or grads, v, state_bar, self._meta.ratios
                    )
                    if step.gradient.transformed is not None:
                        grad_bar = step.gradient.transformed.cotangent(grad_bar)
                total = add(total, gradient(grads, [*theta, *self._meta.phi], grad_bar))
            del loss, grads  # before the next micro-batch's graph grows
        through = distributed.mean(total, [*theta, *self._meta.phi], step.gradient.examples)
        direct, phi_share = through[: len(theta)], through[len(theta) :]
        return add(theta_bar, direct), state_bar, phi_share, alpha_bar
