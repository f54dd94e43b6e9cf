"""The feed-forward network of learned losses, and the derivatives of online loss learning.

The network gives one number for each pair of prediction and target. Learning it online asks for its
gradient in the prediction, and for the gradient of that one in the prediction and in the weights:
both are closed forms here. Every other derivative is autograd's.

The networks of a stack go through the same lines: their weights are [S, H_l, H_{l-1}], and what is
[batch, C] or [N] here has S in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from metaloss.representations.parts.activations import Activation


def evaluate(sigma: Activation, f: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What the network gives before its output activation, for each pair (f_i, y_i)."""
    a = torch.stack((f, y), dim=-1)  # [batch, C, 2]
    *hidden, last = weights
    for weight in hidden:
        a = sigma.value(_linear(a, weight))
    return _linear(a, last).squeeze(-1)


def _linear(a: Tensor, weight: Tensor) -> Tensor:
    """F.linear, by the weights of each network of a stack."""
    if weight.dim() == 2:
        return F.linear(a, weight)
    return (a.flatten(1, -2) @ weight.mT).unflatten(1, a.shape[1:-1])


def _pairs(values: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[N] of [batch, C]."""
    return values.ravel() if weights[0].dim() == 2 else values.flatten(1)


def apply(sigma: Activation, f: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same number, cheaper to differentiate in f, and then in f and the weights."""
    if not _is_plain_backward(f, y):
        return evaluate(sigma, f, y, weights)
    z: Tensor = _InPrediction.apply(sigma, f, y, *weights)
    if any(weight.requires_grad for weight in weights):
        z = z + _InWeights.apply(sigma, (f, y), *weights)
    return z


def _is_plain_backward(f: Tensor, y: Tensor) -> bool:
    """Whether reverse mode follows f, and neither y nor any other mode is followed."""
    return (
        torch.is_grad_enabled()
        and f.requires_grad
        and not y.requires_grad
        and not torch._C._are_functorch_transforms_active()
        and forward_ad.unpack_dual(f).tangent is None
    )


@dataclass(frozen=True)
class _Layer:
    """A hidden layer on N pairs, in the names of `Derivatives`; columns are pairs, [H_l, N]."""

    weight: Tensor  #: W_l, [H_l, H_{l-1}]
    a: Tensor  #: a_{l-1}
    slope: Tensor  #: σ'(z_l)
    kept: Tensor  #: for σ''(z_l)
    epsilon: Tensor  #: ε_l
    delta: Tensor  #: δ_l


class Derivatives:
    """The network on N pairs, and the derivatives that learning it online takes.

    With a_0 = (f, y), hidden layers z_l = W_l a_{l-1} and a_l = σ(z_l), and the value z = wᵀa_D,

        ε_D = w,   δ_l = σ'(z_l) ε_l,   ε_{l-1} = W_lᵀ δ_l,   ∂z/∂f = (ε_0)_1.

    A direction t of f moves a_0 by ȧ_0 = (t, 0), and so (Pearlmutter, 1994)

        ż_l = W_l ȧ_{l-1},   ȧ_l = σ'(z_l) ż_l,
        ε̇_D = 0,   δ̇_l = σ''(z_l) ε_l ż_l + σ'(z_l) ε̇_l,   ε̇_{l-1} = W_lᵀ δ̇_l.

    The gradients of ⟨∂z/∂f, t⟩ are Σ δ̇_l a_{l-1}ᵀ + δ_l ȧ_{l-1}ᵀ in W_l, Σ ȧ_D in w, and (ε̇_0)_1
    in f. All of it is in the activation's unit: the network of τ on a_0/unit gives z/unit, and has
    the same slope and weights.

    Args:
        sigma: σ.
        f, y: [N].
        weights: W_1 [H_1, 2], ..., W_D [H_D, H_{D-1}], and wᵀ [1, H_D].
    """

    def __init__(self, sigma: Activation, f: Tensor, y: Tensor, weights: Sequence[Tensor]) -> None:
        *hidden, last = weights
        self._sigma = sigma
        a, passed = torch.stack((f, y), dim=-2).div_(sigma.unit), []
        for weight in hidden:
            value, slope, kept = sigma.jet(weight @ a)
            passed.append((weight, a, slope, kept))
            a = value
        value = last[0] @ a if last.dim() == 2 else (last @ a).squeeze(-2)
        self.value = value.mul_(sigma.unit)  #: z, [N]

        epsilon = last.mT.expand_as(a)
        self._layers: list[_Layer] = []
        for weight, a, slope, kept in reversed(passed):
            delta = slope * epsilon
            self._layers.insert(0, _Layer(weight, a, slope, kept, epsilon, delta))
            epsilon = weight.mT @ delta
        self.slope = epsilon.select(-2, 0)  #: ∂z/∂f, [N]

    def pullback(self, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gradients of ⟨∂z/∂f, t⟩ in f, [N], and in the weights."""
        a_dot = torch.stack((t, torch.zeros_like(t)), dim=-2)
        dots = []
        for layer in self._layers:
            z_dot = layer.weight @ a_dot
            dots.append((a_dot, z_dot))
            a_dot = layer.slope * z_dot
        add_product = torch.addmm if a_dot.dim() == 2 else torch.baddbmm
        in_weights = [a_dot.sum(-1).unsqueeze(-2)]
        epsilon_dot = None
        for layer, (a_dot, z_dot) in zip(reversed(self._layers), reversed(dots), strict=True):
            delta_dot = self._sigma.second(layer.kept, layer.epsilon).mul_(z_dot)
            if epsilon_dot is not None:
                delta_dot.addcmul_(layer.slope, epsilon_dot)
            in_weights.insert(0, add_product(delta_dot @ layer.a.mT, layer.delta, a_dot.mT))
            epsilon_dot = layer.weight.mT @ delta_dot
        if epsilon_dot is None:  # without hidden layers the slope is a weight
            return torch.zeros_like(t), in_weights
        return epsilon_dot.select(-2, 0) / self._sigma.unit, in_weights


class _InPrediction(torch.autograd.Function):
    """z, with its gradient in f alone."""

    @staticmethod
    def forward(ctx: Any, sigma: Activation, f: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
        ctx.sigma, ctx.derivatives = (
            sigma,
            Derivatives(sigma, _pairs(f, weights), _pairs(y, weights), weights),
        )
        ctx.save_for_backward(f, y, *weights)
        return ctx.derivatives.value.view_as(f)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        f, y, *weights = ctx.saved_tensors
        slope = _Slope.apply(ctx.sigma, ctx.derivatives, y, g, f, *weights)
        return None, slope, None, *[None] * len(weights)


class _Slope(torch.autograd.Function):
    """g·∂z/∂f, with its gradients in g, f and the weights."""

    @staticmethod
    def forward(ctx: Any, sigma: Activation, derivatives: Derivatives, y: Tensor, g: Tensor,
                f: Tensor, *weights: Tensor) -> Tensor:  # fmt: skip
        ctx.sigma, ctx.derivatives = sigma, derivatives
        slope = derivatives.slope.view_as(f)
        ctx.save_for_backward(slope, y, g, f, *weights)
        return g * slope

    @staticmethod
    def backward(ctx: Any, t: Tensor) -> Any:
        slope, y, g, f, *weights = ctx.saved_tensors
        with without_autocast(g.device):
            if torch.is_grad_enabled():  # a third derivative may follow
                g, f, *weights = _apart(g, f, *weights)
                (slope,) = torch.autograd.grad(
                    evaluate(ctx.sigma, f, y, weights), f, g, create_graph=True
                )
                return None, None, None, *_gradients(slope, (g, f, *weights), t)
            in_f, in_weights = ctx.derivatives.pullback(_pairs(g * t, weights))
        in_g = t * slope if g.requires_grad else None
        return None, None, None, in_g, in_f.view_as(f), *in_weights


class _InWeights(torch.autograd.Function):
    """Zero, with the gradient of z in the weights: apart, as few backward passes go there."""

    @staticmethod
    def forward(ctx: Any, sigma: Activation, pairs: tuple[Tensor, Tensor],
                *weights: Tensor) -> Tensor:  # fmt: skip
        ctx.sigma, ctx.pairs = sigma, pairs
        ctx.save_for_backward(*weights)
        return torch.zeros_like(pairs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (f, y) = ctx.pairs
        with without_autocast(g.device):
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                weights = _apart(*ctx.saved_tensors)
                z = evaluate(ctx.sigma, f, y, weights)
            return None, None, *_gradients(z, weights, g, again)


def _apart(*tensors: Tensor) -> list[Tensor]:
    """The same tensors under new names, to differentiate in each with the others held constant.

    f itself depends on the weights where it comes from a step along their gradient.
    """
    return [tensor.view_as(tensor) for tensor in tensors]


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], v: Tensor, create_graph: bool = True
) -> list[Tensor | None]:
    """torch.autograd.grad, with None where an input requires no gradient."""
    required = [x for x in inputs if x.requires_grad]
    given = iter(
        torch.autograd.grad(output, required, v, create_graph=create_graph, allow_unused=True)
    )
    return [next(given) if x.requires_grad else None for x in inputs]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, operations take their inputs in the precision they have."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
