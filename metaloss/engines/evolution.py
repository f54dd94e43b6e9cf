"""Evolution strategies: the gradient from losses alone, as the gradient-free control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from metaloss.config.arguments import PositiveFloat, PositiveInt
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.machine import distributed
from metaloss.problem import snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem

Noise = list[Tensor]  #: one tensor per meta-parameter; that of α, relative to α, comes last


@ENGINES.register("evolution")
class Evolution(Engine):
    """Antithetic evolution strategies (Salimans et al., 2017).

    ĝ = mean over pairs of ε (L_T(φ + σε) - L_T(φ - σε)) / 2σ, ε standard normal: an unbiased
    estimate of the gradient of L_T smoothed by noise of size σ. Every member of a pair makes the K
    base steps from the same θ, on the same batches and dropout masks. Costs 2 · pairs · K steps.

    Args:
        pairs: antithetic pairs per gradient.
        sigma: σ, in units of φ; of α it is relative.
    """

    def __init__(self, pairs: PositiveInt = 8, sigma: PositiveFloat = 0.01) -> None:
        self.pairs = pairs
        self.sigma = sigma

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
    ) -> Hypergradient:
        objective = draw_objective()
        estimate = zero(meta)
        for _ in range(self.pairs):
            noise = draw_noise(meta)
            losses = []
            for sign in (1, -1):
                with (
                    snapshot.on_trial(problem, train[0]),
                    perturbed(problem, meta, noise, sign * self.sigma),
                ):
                    for batch in train:
                        problem.plain_step(batch)
                    losses.append(snapshot.task_loss(problem, objective))
            slope = (losses[0] - losses[1]) / (2 * self.sigma * self.pairs)
            accumulate(estimate, noise, slope)
        return step_for_real(problem, meta, train, objective, estimate)


def draw_noise(meta: MetaParameters) -> Noise:
    """Standard normal numbers like the meta-parameters, by torch's global generator."""
    noise = [torch.randn(p.shape, dtype=p.dtype).to(p.device) for p in meta.phi]
    noise += [torch.randn((), dtype=torch.float64)] if meta.ratios is not None else []
    distributed.spread(noise)  # their generators are apart, as dropout masks are
    return noise


@contextmanager
def perturbed(problem: Problem, meta: MetaParameters, noise: Noise, size: float) -> Iterator[None]:
    """Within it, φ is φ + size · ε and α is α (1 + size · ε)."""
    before = [p.detach().clone() for p in meta.phi]
    rates = [group["lr"] for group in problem.optimizer.param_groups]
    with torch.no_grad():
        for parameter, direction in zip(meta.phi, noise, strict=False):
            parameter.add_(direction, alpha=size)
    if meta.ratios is not None:
        for group in problem.optimizer.param_groups:
            group["lr"] = group["lr"] * (1 + size * float(noise[-1]))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(meta.phi, before, strict=True):
                parameter.copy_(value)
        for group, rate in zip(problem.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def step_for_real(
    problem: Problem,
    meta: MetaParameters,
    train: Sequence[StepBatch],
    objective: StepBatch,
    estimate: Noise,
) -> Hypergradient:
    """Makes the base steps along the unperturbed loss, beside an estimate that is made already."""
    rate = float(problem.optimizer.param_groups[0]["lr"])
    for batch in train:
        learned_loss = problem.plain_step(batch)
    return Hypergradient(
        learned_loss,
        snapshot.task_loss(problem, objective),
        list(estimate[: len(meta.phi)]),
        None if meta.ratios is None else estimate[-1] / rate,
    )


def zero(meta: MetaParameters) -> Noise:
    """No noise, like the meta-parameters."""
    zeros = [torch.zeros_like(p) for p in meta.phi]
    return zeros + ([torch.zeros((), dtype=torch.float64)] if meta.ratios is not None else [])


def accumulate(total: Noise, noise: Noise, weight: Tensor | float) -> None:
    """total += weight · noise, in place."""
    with torch.no_grad():
        for part, direction in zip(total, noise, strict=True):
            part.add_(direction * (weight.to(part) if torch.is_tensor(weight) else weight))
