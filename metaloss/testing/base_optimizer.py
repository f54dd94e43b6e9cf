"""The contract of base optimizers: their `Update` against their torch.optim object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaloss.base_optimizers.base import State
from metaloss.base_optimizers.parts.taken_step import TakenStep, take_step
from metaloss.testing.base import float64, require

SIZE = 5


def check_base_optimizer(recipe: Callable[..., torch.optim.Optimizer], **arguments: Any) -> None:
    """Holds a base optimizer's `Update` to its torch.optim object, cold and warm.

    The differentiable step against `step()`; the cotangent and the direction against autograd
    through the differentiable step and against central differences of `step()`; finite derivatives
    where gradients are exactly zero.

    Args:
        recipe: called with parameters.
        arguments: further arguments, `lr` among them if it has no default.
    """
    with float64():
        torch.manual_seed(0)
        start, v = torch.randn(SIZE), torch.randn(SIZE)
        grads = [torch.randn(SIZE) for _ in range(8)]
        for count in (0, 1, 2, 7):  # earlier steps
            case = f"after {count} steps"
            theta, optimizer = _walk(recipe, arguments, start, grads[:count])
            theta.grad = grads[count].clone()
            taken = take_step(optimizer, [theta], "values")
            (again,), (state,) = taken.differentiable(
                taken.theta_before, [grads[count]], taken.state_before
            )
            require(
                torch.allclose(again, theta, rtol=1e-12, atol=1e-14)
                and _same(state, optimizer.state[theta]),
                f"{case}: U is not the real step",
            )
            u, direction = _derivatives(taken, v)
            _, (grad_bar,), _, alpha_bar = taken.pullback([grads[count]], [v], [{}], [1.0])
            slope = torch.stack(
                [
                    _difference(recipe, arguments, start, grads[:count], grads[count], unit)
                    for unit in torch.eye(SIZE)
                ]
            )  # [SIZE, SIZE]: row i is ∂θ'/∂gᵢ
            require(
                torch.allclose(u, _filled(grad_bar), rtol=1e-9, atol=1e-15)
                and torch.allclose(u, slope @ v, rtol=1e-5, atol=1e-9),
                f"{case}: ∂θ'/∂g is wrong",
            )
            lr = optimizer.param_groups[0]["lr"]
            faster, slower = (
                _walk(recipe, arguments, start, grads[:count], grads[count], lr=lr * factor)[0]
                for factor in (1 + 1e-5, 1 - 1e-5)
            )
            along = torch.tensor(0.0) if alpha_bar is None else alpha_bar
            require(
                torch.allclose(direction @ v, along, rtol=1e-9, atol=1e-15)
                and torch.allclose(direction, (faster - slower) / (2e-5 * lr), 1e-5, 1e-7),
                f"{case}: ∂θ'/∂lr is wrong",
            )
        for earlier in ([], [torch.zeros(SIZE)] * 2, grads[:2]):
            theta, optimizer = _walk(recipe, arguments, start, earlier)
            theta.grad = torch.zeros(SIZE)
            taken = take_step(optimizer, [theta], "values")
            theta_bar, grad_bars, (state_bar,), _ = taken.pullback([theta.grad], [v], [{}], [1.0])
            found = [*_derivatives(taken, v), *theta_bar, *grad_bars, *state_bar.values()]
            require(
                all(_filled(value).isfinite().all() for value in found),
                f"not finite where the gradient is zero, after {len(earlier)} steps",
            )


def _derivatives(taken: TakenStep, v: Tensor) -> tuple[Tensor, Tensor]:
    """u and ∂θ'/∂lr."""
    (u,), (direction,) = taken.cotangent([v]), taken.direction([1.0])
    return _filled(u), _filled(direction)


def _filled(value: Tensor | None) -> Tensor:
    return torch.zeros(SIZE) if value is None else value


def _same(state: State, real: State) -> bool:
    """Whether the states hold the same numbers; SGD without momentum holds none."""
    return all(
        torch.allclose(
            torch.as_tensor(value).double(), torch.as_tensor(real[key]).double(), 1e-12, 1e-14
        )
        for key, value in state.items()
        if value is not None
    )


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
