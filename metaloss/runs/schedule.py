"""A run's schedule: the base optimizer's rates as they change over the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, ReduceLROnPlateau


class Schedule:
    """Rates of an optimizer that a scheduler of torch.optim decides.

    The scheduler has a stand-in with the same rates: torch's would wrap the optimizer's own step,
    and knows nothing of a rate that is learned, nor of one optimizer for several seeds. Beside its
    rate each group gets "scheduled", its part of the rate that it began with: a learned rate is
    multiplied by that (see `MetaParameters`).

    Args:
        recipe: see `metaloss.base_optimizers.schedules`.
        optimizer: whose rates now are those that the schedule is of.
        steps: of the training.
    """

    def __init__(
        self, recipe: Callable[..., LRScheduler], optimizer: torch.optim.Optimizer, steps: int
    ) -> None:
        self._optimizer = optimizer
        self._starts = [float(group["lr"]) for group in optimizer.param_groups]
        self._stand_in = torch.optim.SGD(
            [{"params": [torch.zeros(1)], "lr": rate} for rate in self._starts], lr=0.0
        )
        self._scheduler = recipe(optimizer=self._stand_in, steps=steps)
        self._metric: float | None = None  # of the latest evaluation, until it is counted

    @property
    def by_metric(self) -> bool:
        """Whether evaluations decide, not steps."""
        return isinstance(self._scheduler, ReduceLROnPlateau)

    @property
    def seldom(self) -> bool:
        """Whether most steps have the rate of the one before."""
        return isinstance(self._scheduler, (MultiStepLR, ReduceLROnPlateau))

    def note(self, metric: float | None) -> None:
        """Takes what an evaluation has found on the validation split."""
        self._metric = metric

    def after_step(self) -> None:
        """Goes on to the next base step."""
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._stand_in.step()  # without a gradient: torch warns of schedulers that go first
            self._scheduler.step()
        elif self._metric is not None:
            self._scheduler.step(self._metric)
        self._metric = None
        self.write()

    def write(self) -> None:
        """Gives the optimizer its rates."""
        groups = zip(
            self._optimizer.param_groups, self._stand_in.param_groups, self._starts, strict=True
        )
        for group, own, start in groups:
            group["lr"] = float(own["lr"])
            group["scheduled"] = group["lr"] / start if start else 1.0

    def steer(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on it is another optimizer's, with such groups."""
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "starts": self._starts,
            "rates": copy.deepcopy([_plain(group) for group in self._stand_in.param_groups]),
            "scheduler": copy.deepcopy(self._scheduler.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._starts = list(state["starts"])
        for group, own in zip(self._stand_in.param_groups, state["rates"], strict=True):
            group.update(own)
        self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
