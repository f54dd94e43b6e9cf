"""Forward mode made cheaper: fused tangents for operations whose torch rule is composed of many.

A torch function mode, active during the forward-mode pass alone. A rule replaces one call on dual
tensors by the same primal and the same tangent from fewer kernels; everything else is torch's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

with warnings.catch_warnings():
    # forward_ad imports this on first use, and torch 2.14 and later then warn of their own
    # torch.jit.script in it.
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp  # noqa: F401


class FusedTangents(TorchFunctionMode):
    """Within it, the operations of `RULES` compute their tangents by their fused rule."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return RULES.get(func, func)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm; with batch statistics, its tangent takes one call of the backward kernel.

    Normalising has a symmetric Jacobian, (I - 11ᵀ/n - x̂x̂ᵀ/n)/σ, so the backward kernel applied to
    the input's tangent gives the output's tangent.
    """
    x, x_dot = forward_ad.unpack_dual(input)
    if not training or x_dot is None:
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    gain, gain_dot = (None, None) if weight is None else forward_ad.unpack_dual(weight)
    shift, shift_dot = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    normal, mean, inverse_deviation = torch.native_batch_norm(
        x, None, None, None, None, True, momentum, eps
    )
    tangent = torch.ops.aten.native_batch_norm_backward(
        x_dot, x, gain, None, None, mean, inverse_deviation, True, eps, [True, False, False]
    )[0]
    axes = [1, -1] + [1] * (x.dim() - 2)
    if gain_dot is not None:
        tangent.addcmul_(normal, gain_dot.view(axes))
    if shift_dot is not None:
        tangent.add_(shift_dot.view(axes))
    if gain is not None:
        normal.mul_(gain.view(axes))
    if shift is not None:
        normal.add_(shift.view(axes))
    return forward_ad.make_dual(normal, tangent)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {F.batch_norm: batch_norm}
