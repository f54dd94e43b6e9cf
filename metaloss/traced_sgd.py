"""The step of torch.optim.SGD as tensor operations, its settings in a tensor too.

Schedulers change the settings, while a recorded step stays as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from metaloss.errors import UnsupportedModelError
from metaloss.problem import Problem
from metaloss.vectors import Vector


class TracedSGD:
    """g̃ = ±g + λθ;  b' = μb + κg̃;  θ' = θ - lr·(b' or g̃ + μb' or g̃), for the θ of a problem.

    κ is 1 - dampening; in the first step it is 1, and b = 0. So θ' depends on g by a number c, and
    the cotangent of g is c times that of θ'.

    Args:
        problem: its optimizer's settings and momenta are read, and the latter written, there.
        used: whether a parameter has a gradient; SGD leaves the others alone.

    Raises:
        UnsupportedModelError: it is another optimizer.
    """

    def __init__(self, problem: Problem, used: Sequence[bool]) -> None:
        if type(problem.optimizer) is not torch.optim.SGD:
            raise UnsupportedModelError("the optimizer is not torch.optim.SGD")
        self._theta, self._used = problem.theta, used
        self._optimizer = problem.optimizer
        holders = {p: i for i, group in enumerate(self._groups) for p in group["params"]}
        self._group_of = [holders[p] for p in self._theta]
        self._settings: Any = None  # the latest, and what `tensors` made of them

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups  # other objects after load_state_dict

    def tensors(self) -> list[Tensor]:
        """The settings (lr, μ, λ, κ, c) of each group, [groups, 5], and the momenta.

        Raises:
            UnsupportedModelError: c is not the same for all parameters.
        """
        state = self._optimizer.state
        moved = [
            parameter
            for parameter, used, group in zip(self._theta, self._used, self._group_of, strict=True)
            if used and self._groups[group]["momentum"] != 0
        ]
        new = [p for p in moved if state[p].get("momentum_buffer") is None]
        settings = [_settings(group, first=bool(new)) for group in self._groups]
        dampened = any(group["dampening"] != 0 for group in self._groups)
        if len({row[-1] for row in settings}) > 1 or (dampened and 0 < len(new) < len(moved)):
            raise UnsupportedModelError(
                "θ' does not depend on the gradient by one number, the same for all parameters"
            )
        for parameter in new:
            state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        if settings != self._settings:
            # As Python's numbers, more precise than a parameter may be.
            tensor = torch.tensor(settings, dtype=torch.float64, device=self._theta[0].device)
            self._settings, self._tensor = settings, tensor
        return [self._tensor, *(state[parameter]["momentum_buffer"] for parameter in moved)]

    def step(self, theta: Sequence[Tensor], g: Vector, tensors: Sequence[Tensor]) -> list[Tensor]:
        """θ', and then the momenta after the step, aligned with what is given."""
        settings, *momenta = tensors
        left, moved, moved_momenta = iter(momenta), [], []
        for parameter, grad, place in zip(theta, g, self._group_of, strict=True):
            group = self._groups[place]
            lr, momentum, decay, taken, _ = settings[place].unbind()
            if grad is None:
                moved.append(parameter)
                continue
            grad = (-grad if group["maximize"] else grad) + decay * parameter
            if group["momentum"] != 0:
                moved_momenta.append(momentum * next(left) + taken * grad)
                along = moved_momenta[-1]
                grad = grad + momentum * along if group["nesterov"] else along
            moved.append(parameter - lr * grad)
        return [*moved, *moved_momenta]

    def scale(self, tensors: Sequence[Tensor]) -> Tensor:
        """c, shape []."""
        return tensors[0][0, -1]


def branches(optimizer: torch.optim.Optimizer) -> Hashable:
    """Of an SGD, what Python decides by in `TracedSGD.step`."""
    names = ("momentum", "nesterov", "maximize")
    return tuple(tuple(bool(group.get(name)) for name in names) for group in optimizer.param_groups)


def _settings(group: dict[str, Any], first: bool) -> list[float]:
    lr, momentum, decay = (float(group[key]) for key in ("lr", "momentum", "weight_decay"))
    taken = 1.0 if first or momentum == 0 else 1.0 - group["dampening"]
    ahead = 1.0 + momentum if group["nesterov"] else taken  # torch allows it no dampening
    return [lr, momentum, decay, taken, (lr if group["maximize"] else -lr) * ahead]
