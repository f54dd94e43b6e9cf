"""Vectors over θ or φ: lists of tensors aligned with the parameters; None stands for zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Vector = Sequence[Tensor | None]

PIECE = 1 << 16  #: products that are summed in their own precision


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


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ of two tensors of one shape and precision, in float64, shape []."""
    x, y = x.flatten(), y.flatten()
    if x.device.type != "cpu":
        return torch.dot(x, y).double()
    # There torch keeps but a few sums of all products, which stop growing: of 16 million numbers in
    # float32 it gives the square's first three digits.
    pieces = zip(x.split(PIECE), y.split(PIECE), strict=True)
    return torch.stack([torch.dot(a, b).double() for a, b in pieces]).sum()


def inner(v: Vector, w: Vector) -> Tensor | None:
    """⟨v, w⟩ in float64, shape []; None if nothing is left of it."""
    terms = [dot(x, y) for x, y in zip(v, w, strict=True) if x is not None and y is not None]
    return torch.stack(terms).sum() if terms else None


def _same_layout(one: Tensor, other: Tensor) -> bool:
    return one.stride() == other.stride() or (one.is_contiguous() and other.is_contiguous())
