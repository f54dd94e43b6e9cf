"""Objective: what a kind of task asks of a model: its loss, what learned losses see, its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from metaloss import links
from metaloss.links import Link
from metaloss.problem import TaskLoss


@dataclass(frozen=True)
class Objective:
    """The task loss L_T, the link to learned losses, and the metric."""

    loss: TaskLoss  #: (outputs, labels) -> scalar
    link: Link
    metric: Literal["error_rate", "mse"]
    errors: Callable[[Tensor, Tensor], Tensor]  #: (outputs, labels) -> metric per example, [batch]


def wrong(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest output is not the label's, else 0; [batch]."""
    return (outputs.argmax(-1) != labels).to(outputs.dtype)


def squared_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared error of each example, the mean over its outputs; [batch]."""
    return (outputs - labels).square().mean(-1)


CLASSIFICATION = Objective(F.cross_entropy, links.probabilities, "error_rate", wrong)
REGRESSION = Objective(F.mse_loss, links.values, "mse", squared_errors)
