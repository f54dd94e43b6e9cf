"""Precision: the kinds of arithmetic of a run, and what the lower one does to the meta-gradient."""

from __future__ import annotations

from typing import Literal

import torch

from metaloss.engines.exact import Exact
from metaloss.errors import ConfigError
from metaloss.problem import snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem

#: "float32" is IEEE single precision throughout; "tf32", on a GPU, has TF32 in convolutions and
#: matrix products; "bf16" the backbone's passes under autocast in bfloat16, and losses, cotangents
#: and φ in float32.
Precision = Literal["float32", "tf32", "bf16"]


def set_float32(precision: str) -> None:
    """Lets a GPU use TF32 in float32 arithmetic, or not; for the whole process."""
    name = "ieee" if precision == "float32" else "tf32"
    torch.backends.cuda.matmul.fp32_precision = name
    torch.backends.cudnn.conv.fp32_precision = name  # type: ignore[attr-defined]


def cosine(problem: Problem, train: StepBatch, objective: StepBatch) -> float:
    """Between ∇_φ L_T of a step as the problem makes it and in float32; nothing of them remains.

    Raises:
        ConfigError: one of them is zero, or not finite.
    """
    own, gradients = problem.autocast, []
    for autocast in (own, None):
        problem.autocast = autocast
        with snapshot.on_trial(problem, train):
            found = Exact().hypergradient(
                problem, MetaParameters(problem), [train], lambda: objective
            )
        given = [g.flatten().double() for g in found.phi if g is not None]
        gradients.append(torch.cat(given) if given else torch.zeros(1))
    problem.autocast = own
    norms = [float(gradient.norm()) for gradient in gradients]
    if not all(0 < norm < float("inf") for norm in norms):
        raise ConfigError(
            f"in lower precision the first meta-gradient has the norm {norms[0]:g}, in float32 "
            f"{norms[1]:g}: take Runner.precision = 'float32'"
        )
    return float(gradients[0] @ gradients[1]) / (norms[0] * norms[1])
