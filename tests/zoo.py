"""A zoo of unusual models, each with inputs for it; `test_zoo` asks that each is right, or refused.

A model stands here for a way of being unlike a plain stack of layers. Add yours: a function that
gives the model and its inputs, decorated with `keep`, or with `refused` and what is said of it.
"""

from __future__ import annotations

import collections
import copy
import functools
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

ZOO: dict[str, Callable[[], tuple[Any, ...]]] = {}
REFUSED: dict[str, str] = {}  #: what is said of a model, where it is not differentiated
FEATURES, CLASSES, ROWS = 6, 3, 8


def keep(make: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    ZOO[make.__name__] = make
    return make


def refused(why: str) -> Callable[[Callable[[], tuple[Any, ...]]], Callable[[], tuple[Any, ...]]]:
    def enter(make: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
        REFUSED[make.__name__] = why
        return keep(make)

    return enter


def rows(*shape: int) -> Tensor:
    """Inputs of a shape, [ROWS, FEATURES] by default; from a seed of their own."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(shape or (ROWS, FEATURES), generator=generator, dtype=torch.float64)


def tokens(length: int = 5) -> Tensor:
    return torch.randint(7, (ROWS, length), generator=torch.Generator().manual_seed(12))


class Net(nn.Module):
    """Three layers, of whose middle a model makes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.middle(torch.tanh(self.a(x)))))

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h)


def net(cls: type[nn.Module]) -> type[nn.Module]:
    """Keeps a model of rows under the name of its class."""
    ZOO[cls.__name__] = lambda: (cls(), rows())
    return cls


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


# --- recurrent ---


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **more: Any) -> None:
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True, **more)
        self.head = nn.LazyLinear(CLASSES)
        self(torch.zeros(1, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@keep
def rnn():
    return Recurrent(nn.RNN), rows(ROWS, 5, 4)


@keep
def gru():
    return Recurrent(nn.GRU, num_layers=2, dropout=0.3), rows(ROWS, 5, 4)


@keep
def lstm():
    return Recurrent(nn.LSTM, bidirectional=True), rows(ROWS, 5, 4)


@keep
def lstm_projected():
    return Recurrent(nn.LSTM, proj_size=3), rows(ROWS, 5, 4)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h)


@keep
def gru_cell():
    return Cell(), rows(ROWS, 5, 4)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([5, 5, 4, 4, 3, 3, 2, 1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.rnn(packed)[1][-1])


@keep
def packed_sequence():
    return Packed(), rows(ROWS, 5, 4)


# --- attention ---


class Attention(nn.Module):
    def __init__(self, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.head, self.causal = nn.Linear(8, CLASSES), causal

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1]).triu(1).bool() if self.causal else None
        return self.head(self.attention(x, x, x, attn_mask=mask)[0].mean(1))


@keep
def attention():
    return Attention(), rows(ROWS, 4, 8)


@keep
def attention_with_dropout():
    return Attention(dropout=0.3), rows(ROWS, 4, 8)


@keep
def attention_masked():
    return Attention(causal=True), rows(ROWS, 4, 8)


@keep
def transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return sequence(layer, nn.Flatten(), nn.Linear(32, CLASSES)), rows(ROWS, 4, 8)


@keep
def transformer_norm_first():
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return sequence(layer, nn.Flatten(), nn.Linear(32, CLASSES)), rows(ROWS, 4, 8)


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(out.transpose(1, 2).flatten(2).mean(1))


@keep
def fused_attention():
    return FusedAttention(), rows(ROWS, 4, 8)


# --- mixtures, routing, scatter ---


@net
class MixtureOfExperts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def middle(self, h: Tensor) -> Tensor:
        weights, chosen = self.gate(h).softmax(-1).topk(2)
        out = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            rows, slot = (chosen == index).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(h[rows]) * weights[rows, slot, None])
        return out


@net
class GraphScatter(Net):
    def middle(self, h: Tensor) -> Tensor:
        source = torch.arange(len(h)).repeat_interleave(2)
        target = (source * 3 + torch.arange(len(source)) % 2) % len(h)
        messages = torch.relu(self.b(h[source]))
        return h + torch.zeros_like(h).scatter_add(0, target[:, None].expand_as(messages), messages)


@net
class ScatterMax(Net):
    def middle(self, h: Tensor) -> Tensor:
        index = (torch.arange(len(h)) % 3)[:, None].expand_as(h)
        pooled = torch.full((3, 8), -9.0).to(h).scatter_reduce(0, index, self.b(h), "amax")
        return h + pooled[index[:, 0]]


@net
class Sorted(Net):
    def middle(self, h: Tensor) -> Tensor:
        return self.b(h).sort(-1).values.cumsum(-1) / 8


@net
class Gumbel(Net):
    def middle(self, h: Tensor) -> Tensor:
        return F.gumbel_softmax(self.b(h), tau=0.7)


# --- normalisations ---


def normalised(name: str, layer: Callable[[], nn.Module], *shape: int) -> None:
    def make() -> tuple[Any, ...]:
        if not shape:
            return sequence(
                nn.Linear(FEATURES, 8), layer(), nn.Tanh(), nn.Linear(8, CLASSES)
            ), rows()
        stem = nn.Conv2d(2, 4, 3, padding=1)
        head = nn.Linear(4 * shape[-1] * shape[-2], CLASSES)
        return sequence(stem, layer(), nn.Tanh(), nn.Flatten(), head), rows(ROWS, *shape)

    ZOO[name] = make


normalised("batch_norm", lambda: nn.BatchNorm1d(8))
normalised("batch_norm_plain", lambda: nn.BatchNorm1d(8, affine=False, track_running_stats=False))
normalised("batch_norm_cumulative", lambda: nn.BatchNorm1d(8, momentum=None))
normalised("layer_norm", lambda: nn.LayerNorm(8))
normalised("rms_norm", lambda: nn.RMSNorm(8))
normalised("batch_norm_2d", lambda: nn.BatchNorm2d(4), 2, 5, 5)
normalised("group_norm", lambda: nn.GroupNorm(2, 4), 2, 5, 5)
normalised("instance_norm", lambda: nn.InstanceNorm2d(4, affine=True), 2, 5, 5)
normalised("local_response_norm", lambda: nn.LocalResponseNorm(2), 2, 5, 5)


# --- parametrizations ---


@keep
def weight_norm():
    layer = parametrizations.weight_norm(nn.Linear(FEATURES, 8))
    return sequence(layer, nn.Tanh(), nn.Linear(8, CLASSES)), rows()


@keep
def spectral_norm():
    layer = parametrizations.spectral_norm(nn.Linear(FEATURES, 8))
    return sequence(layer, nn.Tanh(), nn.Linear(8, CLASSES)), rows()


@keep
def orthogonal():
    layer = parametrizations.orthogonal(nn.Linear(FEATURES, FEATURES))
    return sequence(layer, nn.Tanh(), nn.Linear(FEATURES, CLASSES)), rows()


@keep
def spectral_norm_by_hook():
    layer = nn.utils.spectral_norm(nn.Linear(FEATURES, 8))
    return sequence(layer, nn.Tanh(), nn.Linear(8, CLASSES)), rows()


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


@keep
def symmetric():
    layer = nn.Linear(FEATURES, FEATURES)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return sequence(layer, nn.Tanh(), nn.Linear(FEATURES, CLASSES)), rows()


class LowRank(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, layer.in_features) / 4)
        self.up = nn.Parameter(torch.randn(layer.out_features, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


@keep
def lora():
    return sequence(
        LowRank(nn.Linear(FEATURES, 8)), nn.Tanh(), LowRank(nn.Linear(8, CLASSES))
    ), rows()


# --- checkpoints, in place, linear algebra, transforms ---


@net
class Checkpointed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(lambda h: self.drop(self.b(h)), h, use_reentrant=False)


@net
class NestedCheckpoint(Net):
    def middle(self, h: Tensor) -> Tensor:
        def outer(z: Tensor) -> Tensor:
            return self.b(checkpoint(self.inner, z, use_reentrant=False))

        return checkpoint(outer, h, use_reentrant=False)

    def inner(self, z: Tensor) -> Tensor:
        return torch.tanh(self.b(z))


@net
class ReentrantCheckpoint(Net):
    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(self.b, h, use_reentrant=True)


REFUSED["ReentrantCheckpoint"] = "reentrant activation checkpoints"


@net
class InPlace(Net):
    def middle(self, h: Tensor) -> Tensor:
        out = self.b(h).clone()
        out.mul_(1.5).add_(h)
        out[:, 0] = out[:, 1] * 2
        return out


@net
class Solved(Net):
    def middle(self, h: Tensor) -> Tensor:
        w = self.b.weight
        return torch.linalg.solve(w @ w.T + 2 * torch.eye(8).to(h), h.T).T


@net
class Cholesky(Net):
    def middle(self, h: Tensor) -> Tensor:
        z = self.b(h)
        factor = torch.linalg.cholesky(z.T @ z / len(z) + torch.eye(8).to(h))
        return torch.linalg.solve_triangular(factor, h.T, upper=False).T


@net
class Determinant(Net):
    def middle(self, h: Tensor) -> Tensor:
        w = self.b.weight
        return h + torch.linalg.slogdet(w @ w.T + torch.eye(8).to(h))[1] / 10


@net
class Exponential(Net):
    def middle(self, h: Tensor) -> Tensor:
        return h @ torch.linalg.matrix_exp(self.b.weight - self.b.weight.T)


@net
class Eigenvalues(Net):
    def middle(self, h: Tensor) -> Tensor:
        return h * torch.linalg.eigvalsh(self.b.weight + self.b.weight.T)


@net
class Fourier(Net):
    def middle(self, h: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(self.b.weight[0]), n=8) + self.b(
            h
        )


@net
class Einsum(Net):
    def middle(self, h: Tensor) -> Tensor:
        return torch.einsum("bi,ij,bj->b", h, self.b.weight, h)[:, None] * h


@net
class Looped(Net):  # a deep equilibrium, unrolled
    def middle(self, h: Tensor) -> Tensor:
        z = torch.zeros_like(h)
        for _ in range(5):
            z = torch.tanh(self.b(z) / 3 + h)
        return z


@net
class Vmapped(Net):
    def middle(self, h: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: self.b.weight @ row + self.b.bias)(h)


# --- estimators and functions of one's own ---


@net
class StraightThrough(Net):
    def middle(self, h: Tensor) -> Tensor:
        z = self.b(h)
        return z + (z.round() - z).detach()


@net
class InferenceMode(Net):
    def middle(self, h: Tensor) -> Tensor:
        with torch.inference_mode():
            gate = torch.sigmoid(self.b(h))
        return self.b(h) * gate.clone()


@net
class StopGradient(Net):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.b(h).abs().mean()
        return self.b(h) / scale


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


@net
class OwnFunction(Net):
    def middle(self, h: Tensor) -> Tensor:
        return Cube.apply(self.b(h))


class WrongForwardDerivative(Cube):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3.003 * ctx.saved_tensors[0] ** 2 * tangent  # a thousandth too much


@net
class WrongFunction(Net):
    def middle(self, h: Tensor) -> Tensor:
        return WrongForwardDerivative.apply(self.b(h))


class OnceDifferentiable(torch.autograd.Function):
    """As compiled extensions have it: no jvp, and a backward pass without a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


@net
class BackwardOnce(Net):
    def middle(self, h: Tensor) -> Tensor:
        return OnceDifferentiable.apply(self.b(h))


class ThroughNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(np.cos(x.detach().numpy()) * slope.detach().numpy())


class Reversible(torch.autograd.Function):
    """Runs its layer again on the way back, whose parameters have their gradients there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x + torch.tanh(layer(x))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(x + torch.tanh(ctx.layer(x)), slope)
        return x.grad, None


@net
class ReversibleBlock(Net):
    def middle(self, h: Tensor) -> Tensor:
        return Reversible.apply(h, self.b)


REFUSED["ReversibleBlock"] = "leaves a gradient in its trained parameter 'b.weight' in its backward"


@net
class BackwardInNumpy(Net):
    def middle(self, h: Tensor) -> Tensor:
        return ThroughNumpy.apply(self.b(h))


class Reversal(torch.autograd.Function):
    """As of domain-adversarial training; it has no forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


@net
class GradientReversal(Net):
    def middle(self, h: Tensor) -> Tensor:
        return Reversal.apply(self.b(h))


# --- hooks ---


@net
class HookedActivation(Net):
    def middle(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: g / (g.norm() + 1e-12))
        return self.b(h)


@net
class HookedLinearly(Net):
    def middle(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: g * 0.5)
        return self.b(h)


@net
class HookedModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_full_backward_hook(lambda module, given, taken: (given[0] * 0.3,))


@net
class HookedForward(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_hook(lambda module, given, out: out * 2)


@net
class HookedByLength(Net):  # of which autograd knows no derivative
    def middle(self, h: Tensor) -> Tensor:
        h = self.b(h)
        if h.requires_grad:
            h.register_hook(lambda slope: slope / slope.detach().norm())
        return h


REFUSED["HookedByLength"] = "'unrolled' does not work (its certificate does not hold"


@net
class ImplicitByHook(Net):  # a fixed point, whose backward pass is one too
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(h)
            for _ in range(60):
                z = torch.tanh(self.b(z) * 0.3 + h)
        z = torch.tanh(self.b(z) * 0.3 + h)
        if z.requires_grad:
            z0 = z.detach().requires_grad_()
            f0 = torch.tanh(self.b(z0) * 0.3 + h.detach())

            def solve(slope: Tensor) -> Tensor:
                found = slope
                for _ in range(60):
                    (step,) = torch.autograd.grad(f0, z0, found, retain_graph=True)
                    found = step + slope
                return found

            z.register_hook(solve)
        return z


@net
class HookedParameter(Net):
    def middle(self, h: Tensor) -> Tensor:
        if self.b.weight.requires_grad:
            self.b.weight.register_hook(lambda g: g * 2)
        return self.b(h)


REFUSED["HookedParameter"] = "has a gradient hook"


# --- gradients within the forward pass ---


@net
class Force(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 6), nn.Linear(6, 1)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            q = x + torch.tanh(self.a(x))
            energy = (q**2).sum() + self.b(q).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return self.head(force)


@net
class FastWeights(Net):  # an inner step on its own parameters
    def middle(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = (h @ self.b.weight.T - h).square().mean()
            (step,) = torch.autograd.grad(inner, self.b.weight, create_graph=True)
        return F.linear(h, self.b.weight - 0.3 * step, self.b.bias)


@net
class ForceByFunc(Net):
    def middle(self, h: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda row: torch.tanh(self.b(row)).sum()))(h)


@net
class ForwardModeInside(Net):
    def middle(self, h: Tensor) -> Tensor:
        along = torch.ones_like(h)
        return torch.func.jvp(lambda row: torch.tanh(self.b(row)), (h,), (along,))[1]


@net
class InnerOptimizer(Net):  # it reads gradients, of tensors of its own
    def middle(self, h: Tensor) -> Tensor:
        w = self.b.weight.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD([w], lr=0.1)
        with torch.enable_grad():
            for _ in range(2):
                optimizer.zero_grad()
                torch.autograd.backward((h.detach() @ w).square().mean())
                optimizer.step()
        return self.b(h) + h @ w.detach()


@net
class LeavesGradient(Net):
    def middle(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            torch.autograd.backward(torch.tanh(h.detach() @ self.b.weight).sum())
        return self.b(h)


REFUSED["LeavesGradient"] = "leaves a gradient in its trained parameter 'b.weight'"


# --- parameters elsewhere ---


@net
class Hypernetwork(Net):
    def __init__(self) -> None:
        super().__init__()
        self.hyper = nn.Linear(4, 72)
        self.register_buffer("code", torch.randn(4))

    def middle(self, h: Tensor) -> Tensor:
        made = self.hyper(self.code)
        return F.linear(h, made[:64].view(8, 8), made[64:])


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.outside.weight = self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(torch.tanh(self.inside(x).mean(1)))


@keep
def tied_weights():
    return TiedWeights(), tokens()


@net
class ThroughList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.b.weight, self.b.bias]

    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, *self.weights)


@net
class ThroughClosure(Net):
    def __init__(self) -> None:
        super().__init__()
        weight = self.b.weight
        self.apply_middle = lambda h: h @ weight.T

    def middle(self, h: Tensor) -> Tensor:
        return self.apply_middle(h)


@net
class ThroughPartialKeyword(Net):
    def __init__(self) -> None:
        super().__init__()
        self.apply_middle = functools.partial(F.linear, weight=self.b.weight)

    def middle(self, h: Tensor) -> Tensor:
        return self.apply_middle(h)


@net
class ThroughTuple(Net):
    def __init__(self) -> None:
        super().__init__()
        self.weights = (self.b.weight, self.b.bias)

    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, *self.weights)


REFUSED["ThroughTuple"] = "reads its parameter 'b.weight' past its modules"


class HalfTheTuple(ThroughTuple):
    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, *self.weights) + self.b(h)


ZOO["HalfTheTuple"] = lambda: (HalfTheTuple(), rows())
REFUSED["HalfTheTuple"] = "reads its parameter 'b.weight' past its modules"


class ThroughNumbers(Net):
    """Its optimizer's steps are seen there, and no other parameter is."""

    def __init__(self, numbers: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.double()
        self.alias = numbers(self.b.weight)

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) + 0.1 * h @ torch.as_tensor(self.alias).T


for how, numbers in {
    "data": lambda weight: weight.data,
    "numpy": lambda weight: weight.detach().numpy(),
}.items():
    ZOO[f"through_{how}"] = lambda numbers=numbers: (ThroughNumbers(numbers), rows())
    REFUSED[f"through_{how}"] = "reads the numbers of a trained parameter past its modules"


@net
class LookedUpByName(Net):
    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, self.get_parameter("b.weight"), dict(self.named_parameters())["b.bias"])


@net
class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of TorchScript
            self.b = torch.jit.script(self.b)


REFUSED["Scripted"] = "the model's part 'b' is TorchScript"


@net
class PartlyFrozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


@refused("are in the same memory")
def parameters_in_the_same_memory():
    model = Net()
    model.register_parameter("d", nn.Parameter(model.b.weight.data))
    return model.double(), rows()


@refused("are in the same memory, so that a step of one moves")
def parameters_that_overlap():
    model = Net()
    model.register_parameter("d", nn.Parameter(model.b.weight.data[2:5]))
    return model, rows()


class Interleaved(Net):
    """Two parameters of one tensor, of which each has every second number."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(8, 2)
        self.d, self.e = nn.Parameter(both[:, 0]), nn.Parameter(both[:, 1])

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * self.d + self.e


@keep
def interleaved_parameters():
    return Interleaved(), rows()


@net
class AttributeOfParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight.gain = 2.0

    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, self.b.weight * self.b.weight.gain, self.b.bias)


class Doubled(nn.Parameter):
    def twice(self) -> Tensor:
        return self * 2


@net
class OwnParameterClass(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = Doubled(self.b.weight.data)

    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, self.b.weight.twice(), self.b.bias)


@net
class ParameterAsKey(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gains = {self.b.weight: 2.0}

    def middle(self, h: Tensor) -> Tensor:
        return F.linear(h, self.b.weight * self.gains[self.b.weight], self.b.bias)


REFUSED["ParameterAsKey"] = "fails where another tensor with other numbers is in a"


class KeepsItsGraph(Net):
    kept: Tensor | float = 0.0

    def middle(self, h: Tensor) -> Tensor:
        self.kept = torch.tanh(self.b(h) + self.kept)
        return self.kept


@refused("keeps a tensor with its graph from one pass to the next")
def a_graph_that_is_kept():
    return KeepsItsGraph(), rows()


class ExponentialByFunc(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * ctx.saved_tensors[0]


@net
class OwnFunctionVmapped(Net):  # torch.func asserts where there is no forward derivative
    def middle(self, h: Tensor) -> Tensor:
        return torch.func.vmap(ExponentialByFunc.apply)(self.b(h))


# --- state that changes in the forward pass ---


@net
class Teacher(Net):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Linear(8, 8).requires_grad_(False)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            for p, q in zip(self.t.parameters(), self.b.parameters(), strict=True):
                p.mul_(0.9).add_(q, alpha=0.1)
        return self.b(h) + self.t(h)


@net
class TeacherByData(Teacher):
    def middle(self, h: Tensor) -> Tensor:
        for p, q in zip(self.t.parameters(), self.b.parameters(), strict=True):
            p.data = p.data * 0.9 + q.data * 0.1
        return self.b(h) + self.t(h)


@net
class HiddenTeacher(Net):  # in a list, so that no optimizer sees it
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(8, 8).double().requires_grad_(False)]

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.hidden[0].weight.lerp_(self.b.weight, 0.3)
        return self.b(h) + self.hidden[0](h)


@net
class TeacherFromCopy(Net):  # nothing of it moves before θ does
    def __init__(self) -> None:
        super().__init__()
        self.t = copy.deepcopy(self.b).requires_grad_(False)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            for p, q in zip(self.t.parameters(), self.b.parameters(), strict=True):
                p.lerp_(q, 0.3)
        return self.b(h) + self.t(h)


@net
class Averaged(Net):
    def __init__(self) -> None:
        super().__init__()
        self.average = AveragedModel(self.b).requires_grad_(False)

    def middle(self, h: Tensor) -> Tensor:
        self.average.update_parameters(self.b)
        return self.b(h) + self.average(h)


@net
class Counter(Net):
    calls = 0

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        return self.b(h / (1 + 0.1 * self.calls))


@net
class CounterOfTheClass(Net):
    calls = 0

    def middle(self, h: Tensor) -> Tensor:
        type(self).calls += 1
        return self.b(h / (1 + 0.1 * type(self).calls))


def counting():
    CounterOfTheClass.calls = 0
    return CounterOfTheClass(), rows()


ZOO["CounterOfTheClass"] = counting


@net
class MemoryBank(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bank = torch.zeros(4, 8, dtype=torch.float64)
        self.at = 0

    def middle(self, h: Tensor) -> Tensor:
        self.bank[self.at % 4] = h.mean(0).detach()
        self.at += 1
        return self.b(h) + self.bank.mean(0)


@net
class Queue(Net):
    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Tensor] = []

    def middle(self, h: Tensor) -> Tensor:
        self.queue.append(h.mean(0).detach())
        return self.b(h) + torch.stack(self.queue).sum(0)


@net
class LatestFirst(Net):  # what is forgotten is the oldest
    def __init__(self) -> None:
        super().__init__()
        self.kept: collections.OrderedDict[int, Tensor] = collections.OrderedDict()

    def middle(self, h: Tensor) -> Tensor:
        self.kept[len(self.kept)] = h.mean(0).detach()
        if len(self.kept) > 2:
            self.kept.popitem(last=False)
        weights = enumerate(self.kept.values(), start=1)
        return self.b(h) + sum(k * value for k, value in weights)


@net
class Codebook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 8))

    def middle(self, h: Tensor) -> Tensor:
        z = self.b(h)
        index = torch.cdist(z.detach(), self.codes).argmin(-1)
        with torch.no_grad():
            self.codes[index] = 0.9 * self.codes[index] + 0.1 * z
        return z + (self.codes[index] - z).detach()


@net
class ProjectedInForward(Net):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.b.weight.div_(1.1 * self.b.weight.norm())
        return self.b(h)


@net
class ReplacedInForward(Net):
    def middle(self, h: Tensor) -> Tensor:
        self.b.weight.data = self.b.weight.detach() * 0.99
        return self.b(h)


@net
class TakesTurnsByName(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 8)

    def middle(self, h: Tensor) -> Tensor:
        h = self.b(h)
        self.b, self.other = self.other, self.b
        return h


REFUSED["TakesTurnsByName"] = "another of its trained parameters in the place of 'b.weight'"


@net
class FreezesInForward(Net):
    def middle(self, h: Tensor) -> Tensor:
        self.b.weight.requires_grad_(False)
        return self.b(h)


@net
class WritesInputs(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1.1))


REFUSED["WritesInputs"] = "writes into its inputs"


@net
class ChangedOnLoading(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(self.rescale)

    @staticmethod
    def rescale(module: nn.Module, state: dict[str, Any], *arguments: Any) -> None:
        state["b.weight"] = 1.01 * state["b.weight"]


@net
class BuiltInForward(Net):
    def middle(self, h: Tensor) -> Tensor:
        if not hasattr(self, "more"):
            self.more = nn.Linear(8, 8).to(h)
        return self.b(h) + self.more(h)


@net
class ReadsGradient(Net):
    def middle(self, h: Tensor) -> Tensor:
        grad = self.b.weight.grad
        return self.b(h) if grad is None else self.b(h) * (1 + grad.abs().mean())


REFUSED["ReadsGradient"] = "reads a `.grad` in its forward pass"
REFUSED["ReplacedInForward"] = "changes its trained parameter 'b.weight' in its forward pass"
REFUSED["FreezesInForward"] = "freezes its trained parameter 'b.weight' in its forward pass"
REFUSED["ProjectedInForward"] = "changes its trained parameter 'b.weight' in its forward pass"


# --- random numbers ---


@net
class Dropout(Net):
    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(self.b(h), 0.4)


@net
class NumpyMask(Net):
    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * torch.as_tensor(np.random.rand(8) < 0.5)


@net
class PythonMask(Net):
    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * torch.tensor([random.random() < 0.5 for _ in range(8)])


@net
class CachedMask(Net):  # drawn once, by the first pass that asks for it
    def __init__(self) -> None:
        super().__init__()
        self.mask = functools.lru_cache(None)(lambda: torch.rand(8) + 0.5)

    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(self.b(h) * self.mask().to(h), 0.4)


@net
class LayerDrop(Net):
    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) if random.random() < 0.5 else h


@net
class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * (torch.rand(8, generator=self.generator) < 0.5)


@net
class OwnNumpyGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.draw = functools.partial(np.random.default_rng(1).random, 8)

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * torch.as_tensor(self.draw() < 0.5)


class Slots:
    """A generator in a slot: its object has no dict."""

    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = random.Random(1)


@net
class GeneratorInSlot(Net):
    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots()

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * torch.tensor([self.slots.generator.random() < 0.5 for _ in range(8)])


class Stream(Net):
    """Takes its masks from a Python generator, which nothing can turn back."""

    def __init__(self) -> None:
        super().__init__()
        draws = random.Random(1)
        self.masks = (draws.random() < 0.5 for _ in range(10_000))

    def middle(self, h: Tensor) -> Tensor:
        return self.b(h) * torch.tensor([next(self.masks) for _ in range(8)])


# --- convolutions and the rest ---


@keep
def convolutions():
    return sequence(
        nn.Conv2d(2, 4, 3, groups=2, padding="same", padding_mode="circular"), nn.PReLU(),
        nn.MaxPool2d(2), nn.ConvTranspose2d(4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(12, CLASSES),
    ), rows(ROWS, 2, 6, 6)  # fmt: skip


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.conv(x), size=3, mode="bilinear", align_corners=False)
        theta = torch.eye(2, 3).to(x)[None].expand(len(x), 2, 3) * 0.9
        grid = F.affine_grid(theta, [len(x), 4, 3, 3], align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


@keep
def resized():
    return Resized(), rows(ROWS, 2, 6, 6)


@keep
def embedding_bag():
    return sequence(nn.EmbeddingBag(7, 5), nn.Tanh(), nn.Linear(5, CLASSES)), tokens()


@keep
def embedding_with_padding():
    layers = nn.Embedding(7, 5, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(25, CLASSES)
    return sequence(*layers), tokens()


@refused("max_norm")
def embedding_renormalised():
    layers = nn.Embedding(7, 5, max_norm=1.0), nn.Flatten(), nn.Linear(25, CLASSES)
    return sequence(*layers), tokens()


@keep
def bilinear():
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(FEATURES, FEATURES, CLASSES)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x, y)

    return Bilinear(), (rows(), rows().flip(0))


@keep
def mapping_of_inputs():
    class Named(Net):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(left + right)

    return Named(), {"left": rows(), "right": rows().flip(0)}


@keep
def regression():
    return sequence(nn.Linear(FEATURES, 8), nn.SiLU(), nn.Linear(8, 1)), rows()


@keep
def eval_mode():
    model = sequence(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    return model.eval(), rows()


@keep
def lazily_built():
    model = sequence(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(CLASSES))
    model(torch.zeros(1, FEATURES))
    return model, rows()


@refused("has no shape yet")
def not_built_yet():
    return sequence(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(CLASSES)), rows()


# --- other people's ---


def timm(name: str, **more: Any) -> None:
    def make() -> tuple[Any, ...]:
        import timm

        size = 64 if name == "test_vit2" else 32
        return timm.create_model(name, num_classes=CLASSES, **more), rows(4, 3, size, size)

    ZOO[f"timm_{name}"] = make


timm("vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=12, depth=1, num_heads=2)
timm("deit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=12, depth=1, num_heads=2)
timm("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
timm("mobilenetv3_small_050")
timm("ghostnet_050")
timm("test_efficientnet")
timm("test_resnet")
timm("test_byobnet")
timm("test_nfnet")
timm("test_vit2")


def transformers(name: str, make_model: Callable[[Any], nn.Module]) -> None:
    def make() -> tuple[Any, ...]:
        import transformers

        class Logits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = make_model(transformers)

            def forward(self, input_ids: Tensor) -> Tensor:
                return self.model(input_ids).logits

        return Logits().train(), tokens()

    ZOO[f"transformers_{name}"] = make


SMALL = {
    "vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 8, "num_labels": CLASSES,
    "pad_token_id": None,
}  # fmt: skip
transformers("bert", lambda t: t.BertForSequenceClassification(t.BertConfig(**SMALL)))
transformers(
    "gpt2",
    lambda t: t.GPT2ForSequenceClassification(
        t.GPT2Config(
            vocab_size=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            n_positions=8,
            num_labels=CLASSES,
            pad_token_id=7,
            bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
    ),
)
transformers("electra", lambda t: t.ElectraForSequenceClassification(t.ElectraConfig(**SMALL)))
