"""The contract of base optimizers: their `Update` against their torch.optim object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaloss.testing.base import float64, require
from metaloss.update import TakenStep


def check_base_optimizer(recipe: Callable[..., torch.optim.Optimizer], **arguments: Any) -> None:
    """Holds a base optimizer's `Update` to its torch.optim object, cold and warm.

    The differentiable step against `step()`, the closed-form cotangent and direction against
    central differences of `step()`, and finite values where a gradient is exactly zero.

    Args:
        recipe: called with parameters.
        arguments: further arguments, `lr` among them if it has no default.
    """
    with float64():
        torch.manual_seed(0)
        start, v = torch.randn(5), torch.randn(5)
        grads = [torch.randn(5) for _ in range(4)]
        for count in range(4):  # earlier steps
            case = f"after {count} steps"
            theta, optimizer = _walk(recipe, arguments, start, grads[:count])
            theta.grad = grads[count].clone()
            taken = TakenStep(optimizer, [theta], "values")
            (again,), _ = taken.differentiable(
                taken.theta_before, [grads[count]], taken.state_before
            )
            require(torch.allclose(again, theta, rtol=1e-12), f"{case}: U is not the real step")
            (u,), (direction,) = taken.cotangent([v]), taken.direction([1.0])
            assert u is not None and direction is not None
            slope = torch.stack(
                [
                    _difference(recipe, arguments, start, grads[:count], grads[count], unit)
                    for unit in torch.eye(5)
                ]
            )  # [5, 5]: row i is ∂θ'/∂gᵢ
            require(torch.allclose(u, slope @ v, rtol=1e-5, atol=1e-9), f"{case}: ∂θ'/∂g is wrong")
            lr = optimizer.param_groups[0]["lr"]
            faster, slower = (
                _walk(recipe, arguments, start, grads[:count], grads[count], lr=lr * factor)[0]
                for factor in (1 + 1e-5, 1 - 1e-5)
            )
            require(
                torch.allclose(direction, (faster - slower) / (2e-5 * lr), rtol=1e-5, atol=1e-7),
                f"{case}: ∂θ'/∂lr is wrong",
            )
        theta, optimizer = _walk(recipe, arguments, start, [])
        theta.grad = torch.zeros(5)
        (u,) = TakenStep(optimizer, [theta], "nothing").cotangent([v])
        require(u is not None and u.isfinite().all(), "not finite where the gradient is zero")


def _walk(
    recipe: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
    start: Tensor,
    grads: list[Tensor],
    last: Tensor | None = None,
    lr: float | None = None,
) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """Real steps along `grads`, then one along `last` at another learning rate, if given."""
    theta = nn.Parameter(start.clone())
    optimizer = recipe([theta], **arguments)
    for grad in [*grads, *([] if last is None else [last])]:
        if lr is not None and grad is last:
            optimizer.param_groups[0]["lr"] = lr
        theta.grad = grad.clone()
        optimizer.step()
    return theta, optimizer


def _difference(
    recipe: Callable[..., torch.optim.Optimizer],
    arguments: dict[str, Any],
    start: Tensor,
    grads: list[Tensor],
    last: Tensor,
    unit: Tensor,
    h: float = 1e-6,
) -> Tensor:
    """∂θ'/∂g along `unit`, by a central difference of the real step."""
    ahead, behind = (
        _walk(recipe, arguments, start, grads, last + sign * h * unit)[0].detach()
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * h)
