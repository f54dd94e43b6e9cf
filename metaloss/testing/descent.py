"""The contract of descents."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaloss.meta_optimizers.descents.base import Descent, Group, JacobianDescent
from metaloss.problem.jacobian import Jacobian
from metaloss.testing.base import float64, require


def check_descent(recipe: Callable[..., Descent], **arguments: Any) -> None:
    """Holds a descent to the contract in `metaloss.meta_optimizers.descents.base`.

    Args:
        recipe: called with the groups.
        arguments: of it.
    """
    with float64():
        yes, no = torch.tensor(True), torch.tensor(False)
        parameters = _parameters()
        descent = recipe(groups=_groups(parameters), **arguments)
        for _ in range(20):
            _down(descent, parameters)
        for p, start in zip(parameters, _parameters(), strict=True):
            require(p.norm() < start.norm(), "does not descend")

        before = [p.clone() for p in parameters]
        descent.descend([torch.full_like(p, torch.nan) for p in parameters], no)
        require(
            all(p.equal(b) for p, b in zip(parameters, before, strict=True)),
            "a gradient that is not finite changes a parameter",
        )

        if isinstance(descent, JacobianDescent):
            descent.descend([2 * p for p in parameters], yes, _jacobian(parameters, torch.inf))
            require(
                all(p.isfinite().all() for p in parameters),
                "a Jacobian that is not finite makes a parameter so",
            )
            for p, b in zip(parameters, before, strict=True):
                b.copy_(p)  # what it knows nothing of may have moved

        again = recipe(groups=_groups(before), **arguments)
        again.load_state_dict(copy.deepcopy(descent.state_dict()))
        for ours, theirs in ((descent, parameters), (again, before)):
            _down(ours, theirs)
        require(
            all(p.equal(b) for p, b in zip(parameters, before, strict=True)),
            "goes on otherwise after save and load",
        )


def _down(descent: Descent, parameters: list[Tensor]) -> None:
    """A step down the sum of squares."""
    gradients, yes = [2 * p.detach() for p in parameters], torch.tensor(True)
    if isinstance(descent, JacobianDescent):
        descent.descend(gradients, yes, _jacobian(parameters))
    else:
        descent.descend(gradients, yes)


def _jacobian(parameters: list[Tensor], scale: float = 1.0) -> Jacobian:
    """That of three slopes, linear in all but the rate."""
    phi = [p.detach().clone().requires_grad_() for p in parameters[:-1]]
    columns = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    return Jacobian([scale * columns @ torch.cat([p.flatten() for p in phi])], phi)


def _parameters() -> list[Tensor]:
    return [torch.tensor([3.0, -2.0]), torch.tensor([[1.0]]), torch.tensor(0.5)]


def _groups(parameters: list[Tensor]) -> list[Group]:
    *phi, x = parameters
    return [Group({f"p{i}": p for i, p in enumerate(phi)}, 0.01), Group({"lr": x}, 0.001)]
