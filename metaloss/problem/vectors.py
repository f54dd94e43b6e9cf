"""Vectors over θ or φ: lists of tensors aligned with the parameters; None stands for zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Vector = Sequence[Tensor | None]


def gradient(
    outputs: Vector, inputs: Sequence[Tensor], v: Vector, retain_graph: bool = False
) -> list[Tensor | None]:
    """torch.autograd.grad that leaves out what has no graph or no cotangent."""
    pairs = [
        (output, bar)
        for output, bar in zip(outputs, v, strict=True)
        if output is not None and bar is not None and output.requires_grad
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    ends, bars = zip(*pairs, strict=True)
    return list(
        torch.autograd.grad(ends, inputs, bars, retain_graph=retain_graph, allow_unused=True)
    )


def add(a: Vector, b: Vector) -> list[Tensor | None]:
    """a + b, where None stands for zero."""
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def copy(v: Vector) -> list[Tensor | None]:
    """The same numbers in memory of their own."""
    return [None if x is None else x.clone() for x in v]


def laid_out(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
    """A gradient in its parameter's memory layout, as torch's fused steps take it for granted."""
    if grad is None or grad.is_sparse or _same_layout(grad, parameter):
        return grad
    return torch.empty_like(parameter).copy_(grad)


def inner(v: Vector, w: Vector) -> Tensor | None:
    """⟨v, w⟩ in float64, shape []; None if nothing is left of it."""
    terms = [
        torch.dot(x.flatten(), y.flatten()).double()
        for x, y in zip(v, w, strict=True)
        if x is not None and y is not None
    ]
    return torch.stack(terms).sum() if terms else None


def _same_layout(one: Tensor, other: Tensor) -> bool:
    return one.stride() == other.stride() or (one.is_contiguous() and other.is_contiguous())
