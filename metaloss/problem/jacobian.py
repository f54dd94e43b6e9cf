"""The Jacobian of what a base step sees of M_φ, for descents that know φ's metric."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaloss.errors import InputError
from metaloss.machine import distributed
from metaloss.problem import batches
from metaloss.problem.batches import StepBatch
from metaloss.problem.problem import Problem
from metaloss.problem.slopes import MOST_AT_ONCE


class Jacobian:
    """J = ∂s/∂φ of slopes s(φ), by products with it; the matrix itself is never made.

    Args:
        slopes: with their graphs to φ; JᵀJ is the mean over them. Each is divided by the root of
            the number of its rows, so that JᵀJ is a mean over rows too.
        phi: the columns.
        weight: of this process's slopes.
    """

    def __init__(
        self, slopes: Sequence[Tensor], phi: Sequence[Tensor], weight: float | Tensor = 1
    ) -> None:
        self._phi = phi
        self._weight = weight
        self._slopes = [slope for slope in slopes if slope.requires_grad]
        self._count = len(slopes)
        # Jᵀw is linear in w, so that its derivative along v is (v ↦ Jv), for any w.
        self._w = [torch.zeros_like(slope).requires_grad_() for slope in self._slopes]
        self._back = [
            torch.autograd.grad(s, phi, w, create_graph=True, materialize_grads=True)
            for s, w in zip(self._slopes, self._w, strict=True)
        ]

    @classmethod
    def of(cls, problem: Problem, phi: Sequence[Tensor], batch: StepBatch) -> Jacobian:
        """That of the slopes ∂ℓ/∂f of M_φ, [rows, C], at the pairs of a batch and the θ of now.

        A base step knows M_φ by these alone: what of φ they do not feel moves no θ. A forward pass
        on the side, with dropout masks of its own, gives the pairs; nothing remains of it.

        Raises:
            InputError: the batch has more pairs than can be looked at together.
        """
        with torch.enable_grad():
            problem.probe(batch)
        slopes = []
        for inputs, labels in batches.parts(batch):
            with (
                torch.no_grad(),
                problem.aside(),
                problem.replaced({}, problem.surroundings.keep()),
            ):
                outputs = problem.forward(inputs)
            if outputs.numel() > MOST_AT_ONCE:
                raise InputError(
                    f"the Jacobian of the learned loss is asked for at {outputs.numel()} pairs of "
                    f"outputs and labels, and {MOST_AT_ONCE} is the most: make the batch smaller, "
                    "or take a descent that needs none, as adam"
                )
            with torch.enable_grad():
                free = outputs.detach().requires_grad_()
                rows = len(problem.link(free, labels)[0])
                (slope,) = torch.autograd.grad(
                    problem.learned_loss(free, labels), free, create_graph=True
                )
                slopes.append(slope * rows**0.5)  # each row's own has 1/rows in M_φ
        return cls(slopes, phi, problem.weight(batch))

    def times(self, v: Sequence[Tensor]) -> list[Tensor]:
        """J v, aligned with the slopes of this process; v is of the shapes of φ."""
        pairs = zip(self._back, self._w, strict=True)
        return [
            torch.autograd.grad(back, w, v, retain_graph=True, materialize_grads=True)[0]
            for back, w in pairs
        ]

    def gram(self, v: Sequence[Tensor]) -> list[Tensor]:
        """JᵀJ v, the mean over the slopes of all processes; of the shapes of φ."""
        total = [torch.zeros_like(p) for p in self._phi]
        for slope, moved in zip(self._slopes, self.times(v), strict=True):
            back = torch.autograd.grad(
                slope, self._phi, moved, retain_graph=True, materialize_grads=True
            )
            total = [t + part / self._count for t, part in zip(total, back, strict=True)]
        found = distributed.mean(total, self._phi, self._weight)
        return [t if f is None else f for t, f in zip(total, found, strict=True)]
