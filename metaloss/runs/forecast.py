"""Forecast: how long a run will take, and how much memory, by a few steps of each phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from metaloss.machine import distributed
from metaloss.runs import words

BUDGET = 1.0  #: seconds for the steps of a kind; one is made in any case
STEPS = 12  #: of a kind at most, fewer than lie between two probes of the learned loss


@dataclass(frozen=True)
class Forecast:
    """Seconds that the phases of a run will take, and its memory so far.

    Attributes:
        initialization, training, evaluation: seconds of each, the whole phase.
        baseline: seconds of the same training on the task loss; None: that is what it is.
        memory: bytes.
    """

    initialization: float
    training: float
    evaluation: float
    baseline: float | None
    memory: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.initialization + self.training + self.evaluation

    def __str__(self) -> str:
        parts = {
            "initialization": self.initialization,
            "training": self.training,
            "evaluations": self.evaluation,
        }
        whole = self.seconds
        told = " + ".join(f"{name} {words.duration(s)}" for name, s in parts.items() if s)
        beside = ""
        if self.baseline is not None:
            baseline = self.baseline + self.evaluation
            times = whole / max(baseline, 1e-9)
            beside = f", {times:.2g} times the baseline's {words.duration(baseline)}"
        return (
            f"expected: {words.duration(whole)} ({told}){beside}; "
            f"{words.size(self.memory)} of memory"
        )


def paced(step: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of a few steps; the first ones take longer than those that follow."""
    seconds: list[float] = []
    # Of several processes all make as many, whosever clock is the slowest.
    while len(seconds) < STEPS and not distributed.anywhere(sum(seconds) >= BUDGET):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def typical(seconds: list[float]) -> float:
    """What a step takes when it is no first one; 0 where there was none."""
    return sorted(seconds)[len(seconds) // 3] if seconds else 0.0
