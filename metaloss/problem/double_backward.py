"""Double backward made cheaper: convolutions whose second derivatives are quick kernels too.

A convolution is bilinear in its input and its weight. So are its two derivatives, and the second
ones are the same kernels once more, with cotangents in the places of what they are cotangents of.
Torch writes the second derivatives out as convolutions over the batch in place of channels, which
no kernel was made for: on a CPU they take more than half of a double backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

#: Over how many dimensions, and whether it is a transposed one.
CONVOLUTIONS = {
    F.conv1d: (1, False),
    F.conv2d: (2, False),
    F.conv3d: (3, False),
    F.conv_transpose1d: (1, True),
    F.conv_transpose2d: (2, True),
    F.conv_transpose3d: (3, True),
}
#: stride, padding, dilation, transposed, output padding, groups
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]


class DoubleBackward(TorchFunctionMode):
    """Within it, convolutions have second derivatives by quick kernels; else all is torch's own.

    Outputs and gradients have torch's bits, for the kernels are the same.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in CONVOLUTIONS and not torch._C._are_functorch_transforms_active():
            output = _convolution(*CONVOLUTIONS[func], *args, **(kwargs or {}))
            if output is not None:
                return output
        return func(*args, **(kwargs or {}))


def _convolution(
    dimensions: int,
    transposed: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    *more: Any,
    **named: Any,
) -> Tensor | None:
    """F.conv1d and its kin; None where torch does more than to call its kernel."""
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    given = dict(zip(names, more, strict=False)) | named
    plain = (
        input.dim() == dimensions + 2  # else there is no batch
        and input.numel() > 0
        and input.dtype == weight.dtype  # else torch has a message
        and not isinstance(padding, str)  # "same" may pad unevenly
        and not torch.is_autocast_enabled(input.device.type)
        and (bias is None or bias.dtype == weight.dtype)
        and torch.is_grad_enabled()
        and forward_ad._current_level < 0  # there is no rule for tangents
    )
    if not plain:
        return None

    def each(value: int | tuple[int, ...]) -> list[int]:
        sizes = [value] if isinstance(value, int) else list(value)
        return sizes * dimensions if len(sizes) == 1 else sizes

    geometry = (
        each(stride), each(padding), each(given.get("dilation", 1)), transposed,  # type: ignore[arg-type]
        each(given.get("output_padding", 0)), given.get("groups", 1),
    )  # fmt: skip
    output: Tensor = Convolution.apply(input, weight, bias, geometry)
    return output


class Convolution(torch.autograd.Function):
    """A convolution, output = input * weight + bias."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.bias = None if bias is None else [bias.numel()]
        ctx.geometry = geometry
        return _forward(input, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        found = ConvolutionBackward.apply(cotangent, input, weight, ctx.bias, wanted, ctx.geometry)
        return (*found, None)


class ConvolutionBackward(torch.autograd.Function):
    """The cotangents of input, weight and bias, of a convolution's output's cotangent."""

    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: list[int] | None,
        wanted: tuple[bool, bool, bool],
        geometry: Geometry,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(cotangent, input, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _backward(cotangent, input, weight, bias, wanted, geometry)

    @staticmethod
    def backward(
        ctx: Any, along_input: Tensor | None, along_weight: Tensor | None, along_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Written in operators that torch can differentiate again, should a model ask for more."""
        cotangent, input, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_cotangent = of_input = of_weight = None
        if wanted[0]:
            # The convolution of (input, weight, bias) along all three.
            parts = []
            if along_input is not None:
                parts.append(_forward(along_input, weight, along_bias, ctx.geometry))
            if along_weight is not None:
                left = along_bias if along_input is None else None
                parts.append(_forward(input, along_weight, left, ctx.geometry))
            if not parts and along_bias is not None:
                shape = [1, -1] + [1] * (cotangent.dim() - 2)
                parts.append(along_bias.view(shape).expand_as(cotangent))
            of_cotangent = sum(parts[1:], parts[0]) if parts else None
        if wanted[1] and along_weight is not None:
            only = (True, False, False)
            of_input = _backward(cotangent, input, along_weight, None, only, ctx.geometry)[0]
        if wanted[2] and along_input is not None:
            only = (False, True, False)
            of_weight = _backward(cotangent, along_input, weight, None, only, ctx.geometry)[1]
        return of_cotangent, of_input, of_weight, None, None, None


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    output: Tensor = torch.ops.aten.convolution(input, weight, bias, *geometry)
    return output


def _backward(
    cotangent: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: list[int] | None,
    wanted: tuple[bool, bool, bool],
    geometry: Geometry,
) -> tuple[Tensor | None, ...]:
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        cotangent, input, weight, bias, *geometry, list(wanted)
    )
    return found
