"""Forward mode made cheaper: tangents from fewer kernels, primals from the base pass.

Two torch function modes. `KeepPrimals` is active during the base pass, `ForwardMode` during the
forward-mode pass over the same batch. A rule of the latter replaces one call on dual tensors by the
same primal and the same tangent at less cost; everything else is torch's own.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

with warnings.catch_warnings():
    # forward_ad imports this on first use, and torch then warns of its own torch.jit.script in it.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp  # noqa: F401

#: func(input, weight, bias=None, ...), bilinear in input and weight: where the arithmetic is.
BILINEAR = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}


#: Max pooling, and over how many dimensions: a slow search, whose result tells its tangent too.
MAX_POOLING = {
    F.max_pool1d: 1,
    F.max_pool2d: 2,
    F.max_pool3d: 3,
    F.adaptive_max_pool1d: 1,
    F.adaptive_max_pool2d: 2,
    F.adaptive_max_pool3d: 3,
}


#: Gradients that a model takes itself, within its forward pass.
DIFFERENTIATING = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}
#: What reads a tensor's `.grad`.
READING = {Tensor.grad.__get__}  # type: ignore[union-attr]


class Watch(TorchFunctionMode):
    """Within it, what a model does to the graph of its own forward pass is seen.

    Args:
        trained: those whose `.grad` is not the model's to read.

    Attributes:
        differentiates: whether it took a gradient.
        hooked: whether it registered a hook on a tensor.
        reads_gradients: whether it read the `.grad` of one of them.
        called: the functions of torch that it called.
    """

    def __init__(self, trained: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._trained = {id(tensor) for tensor in trained}
        self.differentiates = False
        self.hooked = False
        self.reads_gradients = False
        self.called: set[Any] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.see(func, args)
        return func(*args, **(kwargs or {}))

    def see(self, func: Any, args: Any) -> None:
        """Notes a call."""
        if not torch.compiler.is_compiling():  # as torch.cond does, which would look into the set
            self.called.add(func)
        self.differentiates |= func in DIFFERENTIATING
        self.hooked |= func is Tensor.register_hook
        self.reads_gradients |= func in READING and id(args[0]) in self._trained


class KeepPrimals(Watch):
    """Within it, what is expensive to compute again is kept, in the order of the calls.

    Nothing is kept inside torch.func's transforms, whose tensors do not outlive them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[tuple[Any, tuple[int, ...], tuple[Tensor, ...], int]] = deque()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.see(func, args)
        if torch._C._are_functorch_transforms_active():
            return func(*args, **(kwargs or {}))
        if func in MAX_POOLING:
            output, indices = func(*args, **{**(kwargs or {}), "return_indices": True})
            self._keep(func, args, kwargs, output, indices)
        elif func is F.batch_norm:
            output, *statistics = batch_norm_and_statistics(*args, **(kwargs or {}))
            self._keep(func, args, kwargs, *statistics)
        elif func is F.dropout and is_one_kernel(*args, **(kwargs or {})):
            output, mask = dropout_and_mask(*args, **(kwargs or {}))
            self._keep(func, args, kwargs, mask)
        else:
            output = func(*args, **(kwargs or {}))
            if func in BILINEAR:
                self._keep(func, args, kwargs, output)
        return output

    def _keep(self, func: Any, args: Any, kwargs: dict[str, Any] | None, *tensors: Tensor) -> None:
        # With the version: what comes next, as ReLU(inplace=True), may write into the output.
        kept = tuple(tensor.detach() for tensor in tensors)
        # Of inference mode's tensors there is none: these are computed again.
        version = -1 if tensors[0].is_inference() else tensors[0]._version
        self._kept.append((func, _shape(args, kwargs), kept, version))

    def next(
        self, func: Any, args: Any, kwargs: dict[str, Any] | None
    ) -> tuple[Tensor, ...] | None:
        """What was kept of the next call, and is no longer; None if it was changed since.

        Where the next call was another one, the pass is not the one that was kept, and nothing more
        is given of it.

        The output, for a convolution or linear layer; the output and where in its plane each
        maximum was, for max pooling; the statistics, for BatchNorm; the mask, for dropout.
        """
        if not self._kept:
            return None
        known, shape, primals, version = self._kept.popleft()
        if known is not func or shape != _shape(args, kwargs):
            self._kept.clear()
            return None
        return primals if version >= 0 and primals[0]._version == version else None


def _shape(args: Any, kwargs: dict[str, Any] | None) -> tuple[int, ...]:
    """That of a call's input, as far as it has one."""
    tensor = args[0] if args else (kwargs or {})["input"]
    return (tensor.dim(),) if tensor.is_nested else tuple(tensor.shape)


class ForwardMode(TorchFunctionMode):
    """Within it, dual tensors pass through the operations that have one by their rule.

    Args:
        primals: of the same pass over the same batch, without tangents.
    """

    def __init__(self, primals: KeepPrimals) -> None:
        super().__init__()
        self._primals = primals
        # The rules' primals have no graph, and the model takes gradients or asks for one.
        self._by_torch = primals.differentiates or primals.hooked

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._by_torch:
            return self._plain(func, args, kwargs or {})
        inside = torch._C._are_functorch_transforms_active()  # where no dual can be looked into
        drops = func is F.dropout and is_one_kernel(*args, **(kwargs or {}))
        kept = func in BILINEAR or func in MAX_POOLING or func is F.batch_norm or drops
        kept = kept and not inside
        # Taken even where no rule uses it below: what is kept is known by the order of calls alone.
        primals = self._primals.next(func, args, kwargs) if kept else None
        if not torch.is_grad_enabled():
            # What the model computes without gradient is a constant to the base gradient, and so
            # it must be here; forward mode by itself does not ask for the grad mode.
            with forward_ad._set_fwd_grad_enabled(False):
                return func(*args, **(kwargs or {}))
        if inside:
            return RULES.get(func, func)(*args, **(kwargs or {}))
        if func in BILINEAR:
            return bilinear(func, primals, *args, **(kwargs or {}))
        if func is F.batch_norm:
            return batch_norm(primals, *args, **(kwargs or {}))
        if drops and primals is not None:
            return dropout(primals, *args, **(kwargs or {}))
        if func in MAX_POOLING and primals is not None:
            return max_pooling(MAX_POOLING[func], primals, *args)
        return RULES.get(func, func)(*args, **(kwargs or {}))

    def _plain(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Torch's own rules, and those without which it has none."""
        if not torch.is_grad_enabled():
            with forward_ad._set_fwd_grad_enabled(False):
                return func(*args, **kwargs)
        return RULES.get(func, func)(*args, **kwargs)


def bilinear(
    func: Callable[..., Tensor],
    primals: tuple[Tensor, ...] | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """A convolution or linear layer whose primal output is known: two products instead of three."""
    x, x_dot = forward_ad.unpack_dual(input)
    w, w_dot = forward_ad.unpack_dual(weight)
    b, b_dot = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    if x_dot is None and w_dot is None:
        return func(input, weight, bias, *args, **kwargs)
    output = func(x, w, b, *args, **kwargs) if primals is None else primals[0]
    tangent = None if x_dot is None else func(x_dot, w, b_dot, *args, **kwargs)
    if w_dot is not None and tangent is not None:
        tangent.add_(func(x, w_dot, None, *args, **kwargs))
    elif w_dot is not None:
        tangent = func(x, w_dot, b_dot, *args, **kwargs)
    return forward_ad.make_dual(output, tangent)


def max_pooling(dimensions: int, primals: tuple[Tensor, ...], input: Tensor, *args: Any) -> Tensor:
    """Max pooling whose maxima are known: the tangent of each is that of the input it was."""
    output, indices = primals
    x_dot = forward_ad.unpack_dual(input).tangent
    if x_dot is None:
        return output
    places = indices.flatten(-dimensions)
    tangent = x_dot.flatten(-dimensions).gather(-1, places).view_as(output)
    return forward_ad.make_dual(output, tangent)


def batch_norm_and_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """F.batch_norm, and the batch's mean and inverse deviation; outside of training, anything."""
    if training:
        F._verify_batch_size(input.size())  # type: ignore[attr-defined]
    return torch._batch_norm_impl_index(
        input, weight, bias, running_mean, running_var, training, momentum, eps,
        torch.backends.cudnn.enabled,
    )[:3]  # fmt: skip


def batch_norm(
    statistics: tuple[Tensor, ...] | None,
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
    the input's tangent gives the output's tangent. With the statistics known, the output and what
    the tangent of gain adds are the quick pass that is otherwise for evaluation.
    """
    x, x_dot = forward_ad.unpack_dual(input)
    mixed = weight is not None and weight.dtype != x.dtype  # under autocast
    if not training or x_dot is None or mixed:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    gain, gain_dot = (None, None) if weight is None else forward_ad.unpack_dual(weight)
    shift, shift_dot = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    if statistics is None:
        statistics = torch.native_batch_norm(x, None, None, None, None, True, momentum, eps)[1:]
    mean, inverse_deviation = statistics
    normalised = partial(F.batch_norm, x, mean, inverse_deviation.pow(-2) - eps, eps=eps)
    tangent = torch.ops.aten.native_batch_norm_backward(
        x_dot, x, gain, None, None, mean, inverse_deviation, True, eps, [True, False, False]
    )[0]
    if gain_dot is not None:
        tangent.add_(normalised(gain_dot))
    if shift_dot is not None:
        tangent.add_(shift_dot.view([1, -1] + [1] * (x.dim() - 2)))
    return forward_ad.make_dual(normalised(gain, shift), tangent)


def is_one_kernel(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> bool:
    """Whether F.dropout is `torch.native_dropout`, which gives its mask, to the bit."""
    return input.is_cuda and training and 0 < p < 1 and input.numel() > 0


def dropout_and_mask(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, ...]:
    """F.dropout, and which elements it kept; never in place."""
    return torch.native_dropout(input, p, training)


def dropout(
    mask: tuple[Tensor, ...],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """F.dropout by a mask that was drawn: nothing is drawn again, as no CUDA graph could."""
    x, x_dot = forward_ad.unpack_dual(input)
    by = (*mask, 1 / (1 - p))
    output = torch.ops.aten.native_dropout_backward(x, *by)  # it is linear, and its own transpose
    if x_dot is None:
        return output
    return forward_ad.make_dual(output, torch.ops.aten.native_dropout_backward(x_dot, *by))


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """F.embedding, whose padding row has no gradient, and so no tangent either."""
    look_up = partial(F.embedding, input, weight, padding_idx, *args, **kwargs)
    if padding_idx is None:
        return look_up()
    with forward_ad._set_fwd_grad_enabled(False):
        constant = look_up()
    padding = input == padding_idx % weight.shape[0]
    return torch.where(padding.unsqueeze(-1), constant, look_up())


def lstm(*args: Any) -> Any:
    """An LSTM written out: oneDNN's kernel has no forward derivative."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags sets, and warns of, more
    try:
        return torch.lstm(*args)
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def attention(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Attention written out: the fused kernels have no forward derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return func(*args, **kwargs)


ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.embedding: embedding,
    torch.lstm: lstm,
    **{func: partial(attention, func) for func in ATTENTION},
}
