"""The contract of representations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaloss import links
from metaloss.errors import first_line
from metaloss.representations.base import Representation
from metaloss.testing.base import ContractError, float64, require


def check_representation(make: Callable[..., Representation], **arguments: Any) -> None:
    """Holds a representation to the contract in `metaloss.representations.base`.

    Args:
        make: the class, or a function that builds one of some class.
        arguments: of it.
    """
    with float64():
        loss = make(**arguments).double()  # a saved one has the precision it was saved in
        loss.observe(1, 2)
        for name, value in loss.arguments().items():
            require(_is_plain(value), f"argument '{name}' is kept as {value!r}, not plain data")
        again = type(loss)(**loss.arguments())
        again.load_state_dict(loss.state_dict())
        prediction, target = _loss_inputs(batch=6, outputs=3)
        values = loss(prediction, target)
        require(values.shape == (6,), f"gives {list(values.shape)}, not one loss per example [6]")
        require(values.isfinite().all(), "is not finite on probabilities")
        require(
            values.equal(again(prediction, target)), "arguments() and state_dict lose something"
        )
        _require_finite_at_the_ends(loss)
        alone = torch.cat([loss(prediction[i : i + 1], target[i : i + 1]) for i in range(6)])
        require(torch.allclose(values, alone, rtol=1e-12), "examples of a batch see each other")
        if loss.of_pairs:
            pairs = loss.pair_losses(prediction.flatten(), target.flatten(), 3).view(6, 3)
            require(
                torch.allclose(values, pairs.sum(-1), rtol=1e-9),
                f"pairs = {loss.pairs!r}, and its value is not made of those of single pairs so",
            )
        with torch.no_grad():
            for name in again.linear_in:
                again.get_parameter(name).mul_(2)
        require(
            not loss.linear_in or torch.allclose(again(prediction, target), 2 * values, rtol=1e-12),
            f"is not linear in {', '.join(loss.linear_in)}",
        )
        prediction.requires_grad_()
        _require_twice_differentiable(lambda p: loss(p, target), prediction)
        phi = [p for p in loss.parameters() if p.requires_grad]
        if phi:
            (slope,) = torch.autograd.grad(
                loss(prediction, target).sum(), prediction, create_graph=True
            )
            require(slope.requires_grad, "no parameter can learn: its slope has no graph")
            reached = torch.autograd.grad(slope.square().sum(), phi, allow_unused=True)
            require(
                any(g is not None and g.any() for g in reached),
                "no parameter can learn: none changes ∂loss/∂prediction",
            )


def _require_finite_at_the_ends(loss: Representation) -> None:
    """On probabilities of 0 and 1, which a softmax in float32 rounds to."""
    loss = copy.deepcopy(loss).float()
    target = torch.eye(3, dtype=torch.float32)
    prediction = torch.cat([target, target.roll(1, 0)]).requires_grad_()  # right, and wrong
    values = loss(prediction, target.repeat(2, 1))
    (slope,) = torch.autograd.grad(values.sum(), prediction, create_graph=True)
    inputs = [prediction, *(p for p in loss.parameters() if p.requires_grad)]
    second: tuple[Tensor, ...] = ()
    if slope.requires_grad:
        second = torch.autograd.grad(slope.sum(), inputs, materialize_grads=True)
    for what, found in (
        ("its value", (values,)),
        ("its slope", (slope,)),
        ("a derivative of its slope", second),
    ):
        require(
            all(tensor.isfinite().all() for tensor in found),
            f"{what} is not finite on probabilities of 0 and 1 in float32",
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _loss_inputs(batch: int, outputs: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(outputs, (batch,))
    prediction, target, *_ = links.probabilities(torch.randn(batch, outputs), labels)
    return prediction, target


def _require_twice_differentiable(loss: Callable[[Tensor], Tensor], prediction: Tensor) -> None:
    try:
        torch.autograd.gradcheck(loss, prediction)
        torch.autograd.gradgradcheck(loss, prediction)
    except RuntimeError as error:
        line = first_line(error)
        raise ContractError(f"is not twice differentiable in the prediction: {line}") from error
