"""Several base steps, gone back through one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaloss.engines.base import ENGINES, Certificate, CertifiedEngine, Draw, Hypergradient
from metaloss.engines.parts.certificate import repeat_residual, tolerance
from metaloss.machine import distributed
from metaloss.problem.base_step import BaseStep, Keep
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refusing_single_backward
from metaloss.problem.vectors import Vector, add, gradient


@ENGINES.register("sweep")
class Sweep(CertifiedEngine):
    """A reverse sweep that re-runs one base step at a time: exact, activation memory flat in K.

    Needs double backward of every operator of the model, through one step.
    """

    exact = True
    elementwise = True

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        # Of each step θ_k, the batch, and of the optimizer's state what its derivatives take.
        keep = Keep(gradient=certify, state="derivative" if meta.ratios is None else "values")
        steps = [problem.base_step(batch, keep) for batch in train]
        learned_loss = steps[-1].gradient.learned_loss
        task_loss, v = problem.task_gradient(draw_objective())
        phi_bar: list[Tensor | None] = [None] * len(meta.phi)
        alpha_bar: Tensor | None = None
        state_bar: list[dict[str, Tensor]] = [{} for _ in problem.theta]
        residuals: list[Tensor] = []
        while steps:  # popped: a step's memory is free before the next one is run again
            v, state_bar, phi_share, alpha_share = _back(
                problem, meta, steps.pop(), v, state_bar, residuals
            )
            phi_bar = add(phi_bar, phi_share)
            (alpha_bar,) = add([alpha_bar], [alpha_share])
        certificate = None
        if certify:
            residual = torch.stack(residuals).amax(0)
            certificate = Certificate(residual, tolerance(problem))
        return Hypergradient(learned_loss, task_loss, phi_bar, alpha_bar, certificate)


def _back(
    problem: Problem,
    meta: MetaParameters,
    step: BaseStep,
    v: Vector,
    state_bar: list[dict[str, Tensor]],
    residuals: list[Tensor],
) -> tuple[list[Tensor | None], list[dict[str, Tensor]], list[Tensor | None], Tensor | None]:
    """From the cotangents of θ_{k+1}, s_{k+1} to those of θ_k, s_k, and the shares of φ, α.

    What certifies it comes to `residuals`, if g was kept for it: that the step which is run again
    has the gradient of the one that was made.
    """
    again: list[Tensor | None] = [None] * len(problem.theta)
    theta = [value.requires_grad_() for value in step.taken.theta_before]
    named = dict(zip(problem.theta_names, theta, strict=True))
    along, grad_bar = step.along, None
    total: list[Tensor | None] = [None] * (len(theta) + len(meta.phi))
    for part in step.gradient.passes:
        inputs, labels = part.batch
        with (
            sdpa_kernel(SDPBackend.MATH),  # fused attention has no second derivative
            problem.again(named, part),
        ):
            loss = problem.learned_loss(problem.forward(inputs), labels) / part.share
            ones = torch.ones_like(loss)
            with refusing_single_backward():
                grads = torch.autograd.grad(loss, theta, ones, create_graph=True, allow_unused=True)
            if step.gradient.g:
                again = add(again, [g if g is None else g.detach() for g in grads])
            if grad_bar is None:
                theta_bar, grad_bar, state_bar, alpha_bar = step.taken.pullback(
                    along or grads, v, state_bar, meta.ratios
                )
                if step.gradient.transformed is not None:
                    grad_bar = step.gradient.transformed.cotangent(grad_bar)
            with refusing_single_backward():
                bars = gradient(grads, [*theta, *meta.phi], grad_bar)
            total = add(total, bars)
        del loss, grads  # before the next micro-batch's graph grows
    if step.gradient.g:
        residuals.append(repeat_residual(problem, step.gradient, again))
    through = distributed.mean(total, [*theta, *meta.phi], step.gradient.examples)
    direct, phi_share = through[: len(theta)], through[len(theta) :]
    return add(theta_bar, direct), state_bar, phi_share, alpha_bar
