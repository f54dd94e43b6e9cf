"""What happens to the base gradient between the backward pass and the optimizer: clipping.

A transform is a function of the gradients alone, `list of tensors -> list of tensors`, one for each
parameter that has a gradient, in the optimizer's order. Its transposed derivative comes from
autograd, so the meta-gradient passes through it exactly: for clipping by norm, where it is active,
u becomes c (u - g ⟨g, u⟩ / ‖g‖²) with c = max_norm / ‖g‖, and for clipping by value u is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaloss.errors import InputError
from metaloss.problem.vectors import Vector, gradient

GradientTransform = Callable[[list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class ClipNorm:
    """`torch.nn.utils.clip_grad_norm_` over the optimizer's parameters, bit for bit.

    Args:
        max_norm: of all gradients as one vector.
        norm_type: the p of the norm; inf takes the largest element.
    """

    max_norm: float
    norm_type: float = 2.0

    def __call__(self, grads: list[Tensor]) -> list[Tensor]:
        norms = torch._foreach_norm(grads, self.norm_type)  # as clip_grad_norm_ has them
        norm = torch.linalg.vector_norm(
            torch.stack([part.to(grads[0].device) for part in norms]), self.norm_type
        )
        factor = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
        return [grad * factor.to(grad.device) for grad in grads]


@dataclass(frozen=True)
class ClipValue:
    """`torch.nn.utils.clip_grad_value_` over the optimizer's parameters, bit for bit.

    Args:
        clip_value: the largest size of an element.
    """

    clip_value: float

    def __call__(self, grads: list[Tensor]) -> list[Tensor]:
        return [grad.clamp(-self.clip_value, self.clip_value) for grad in grads]


def transform(function: GradientTransform, grads: Vector) -> list[Tensor | None]:
    """The gradients after the transform, with its graph; None stays None.

    Raises:
        InputError: the function does not give one gradient of the same shape for each.
    """
    places = [i for i, grad in enumerate(grads) if grad is not None]
    given = [grad for grad in grads if grad is not None]
    try:
        made = list(function(list(given)) or ()) if given else []
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
        raise InputError(
            "a gradient_transform gives new tensors, and this one writes into those that it gets"
        ) from error
    if [tuple(g.shape) for g in made] != [tuple(g.shape) for g in given]:
        raise InputError(
            "a gradient_transform gives one tensor for each that it gets, of the same shape: from "
            f"{_shapes(given)} this one makes {_shapes(made) or 'nothing'}"
        )
    after: list[Tensor | None] = [None] * len(grads)
    for place, grad in zip(places, made, strict=True):
        after[place] = grad
    return after


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


class Transformed:
    """One application of a transform to a base gradient, and the way back through it.

    Args:
        function: the transform.
        grads: g, aligned with θ; None stands for zero.
    """

    def __init__(self, function: GradientTransform, grads: Vector) -> None:
        self._before = [None if g is None else g.detach().requires_grad_() for g in grads]
        with torch.enable_grad():
            self._after = transform(function, self._before)

    def values(self) -> list[Tensor | None]:
        """The gradients to step along: copies, which the optimizer may change in place."""
        return [None if g is None else g.detach().clone() for g in self._after]

    def cotangent(self, u: Vector) -> list[Tensor | None]:
        """The transposed derivative, applied to a cotangent of the transformed gradients; once."""
        places = [i for i, g in enumerate(self._before) if g is not None]
        leaves = [g for g in self._before if g is not None]
        before: list[Tensor | None] = [None] * len(self._before)
        bars = gradient(self._after, leaves, u)
        for place, bar in zip(places, bars, strict=True):
            before[place] = bar
        return before
