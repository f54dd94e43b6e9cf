"""Shards: a model of `torch.distributed.fsdp.fully_shard`, a part of which is in each process.

The base optimizer is elementwise, and so are the derivatives of its step: vectors over θ are lists
of this process's own parts, and an inner product is a sum over the processes. The model's passes
alone need whole parameters. In the base pass and in that of the task loss FSDP gathers them, a
module at a time, and scatters the gradients. The forward-mode pass is made with FSDP's hooks too:
when a module's parameters are there, its tangents are gathered likewise and put beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from metaloss.errors import InputError, UnsupportedModelError
from metaloss.machine import distributed
from metaloss.machine.distributed import local
from metaloss.problem.gradient_transform import ClipNorm, ClipValue, GradientTransform

Vector = Sequence[Tensor | None]

#: Parameters that are gathered together: the module of each, its name there, its place in θ if any.
Owned = list[tuple[nn.Module, str, int | None]]


def shards_of(
    model: nn.Module, theta: Sequence[nn.Parameter], names: Sequence[str]
) -> Shards | None:
    """What is to be known of a sharded model; None of another.

    Raises:
        InputError: a trained parameter is not sharded, or not as `fully_shard` does it by default.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return None
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        raise InputError(
            "the model has parameters in parts (DTensor), but is none of fully_shard itself: apply "
            "torch.distributed.fsdp.fully_shard to its modules, and to the model last; tensor "
            "parallelism is not followed"
        )
    for name, parameter in zip(names, theta, strict=True):
        if not is_sharded(parameter):
            raise InputError(
                f"the model's parameter '{name}' is whole in each process and others are sharded: "
                "leave it to fully_shard, or freeze it"
            )
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        if (
            len(placements) != 1
            or not placements[0].is_shard()
            or (mesh.size() != distributed.count())
        ):
            raise InputError(
                f"the model's parameter '{name}' is placed {placements} on a mesh of "
                f"{tuple(mesh.shape)}: fully_shard over one mesh of all processes is followed, and "
                "neither replicas of shards (HSDP) nor tensor parallelism"
            )
    return Shards(model, theta)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a process's part of a tensor."""
    return hasattr(tensor, "device_mesh")


class Shards:
    """The passes of a model of `fully_shard`.

    Args:
        model: it.
        theta: its trained parameters, which are sharded.
    """

    def __init__(self, model: nn.Module, theta: Sequence[nn.Parameter]) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._theta = list(theta)
        self._units: list[Any] = [m for m in model.modules() if isinstance(m, FSDPModule)]
        self.gathered()
        self._all = list(model.parameters())  # parts; between passes the model has others at times
        units = set(self._units)
        place = {id(parameter): k for k, parameter in enumerate(theta)}
        self._owned: list[tuple[Any, Owned]] = [
            (
                unit,
                [
                    (module, name, place.get(id(parameter)))
                    for module in _own_modules(unit, units)
                    for name, parameter in module._parameters.items()
                    if parameter is not None and is_sharded(parameter)
                ],
            )
            for unit in self._units
        ]

    def gathered(self) -> None:
        """Gives whole parameters up that a forward pass without a backward pass has left."""
        for unit in self._units:
            unit.reshard()

    def part(self, k: int, value: Tensor) -> Tensor:
        """A process's own numbers as a part of a tensor like θ's k-th."""
        from torch.distributed.tensor import DTensor

        whole: Any = self._theta[k]
        return DTensor.from_local(
            value, whole.device_mesh, whole.placements, run_check=False,
            shape=whole.shape, stride=whole.stride(),
        )  # fmt: skip

    def backward(self, ends: Tensor, along: Tensor, weight: float | Tensor) -> list[Tensor | None]:
        """The gradient by θ of what is a mean over the examples of all processes; own parts.

        Args:
            ends: of the model's pass over this process's examples, with its graph.
            along: their cotangent, of a mean over these.
            weight: of these, together.
        """
        if distributed.several():
            # FSDP takes the mean over the processes, which may have more examples or fewer.
            own = torch.as_tensor(weight, device=ends.device, dtype=torch.float64)
            (whole,) = distributed.total([own])
            along = along * (own * distributed.count() / whole.where(whole != 0, 1.0)).to(along)
        kept = [parameter.grad for parameter in self._all]
        for parameter in self._all:
            parameter.grad = None
        torch.autograd.backward(ends, along)
        found = [None if p.grad is None else local(p.grad) for p in self._theta]
        for parameter, grad in zip(self._all, kept, strict=True):
            parameter.grad = grad
        return found

    @contextmanager
    def at(self, values: Sequence[Tensor], tangents: Vector | None = None) -> Iterator[None]:
        """Within it, the model's parameters are others, and so are they along which it is taken.

        Args:
            values: own parts, aligned with θ.
            tangents: likewise; where there are some, it is within a level of `forward_ad`, and no
                parameter has a graph.

        Raises:
            UnsupportedModelError: the passes are in another precision, or on another device.
        """
        parts = [local(parameter) for parameter in self._theta]
        after = [part.clone() for part in parts]
        hooks = []
        try:
            for part, value in zip(parts, values, strict=True):
                part.copy_(value)
            if tangents is not None:
                hooks = [
                    unit.register_forward_pre_hook(self._duals(owned, tangents))
                    for unit, owned in self._owned
                ]
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for part, value in zip(parts, after, strict=True):
                part.copy_(value)

    def _duals(self, owned: Owned, tangents: Vector) -> Callable[..., None]:
        """A hook for when the parameters of a module have been gathered."""

        def put(module: nn.Module, args: Any) -> None:
            for inside, name, k in owned:
                whole = inside._parameters[name]
                assert whole is not None
                value: Tensor = whole.detach()
                direction = None if k is None else tangents[k]
                if k is not None and direction is not None:
                    gathered = self.part(k, direction).full_tensor()  # type: ignore[attr-defined]
                    if gathered.dtype != value.dtype or gathered.device != value.device:
                        raise UnsupportedModelError(
                            f"fully_shard makes the passes in {value.dtype} on {value.device}, "
                            f"and θ is {gathered.dtype} on {gathered.device}: leave out "
                            "MixedPrecisionPolicy (give autocast in its place) and offloading"
                        )
                    value = forward_ad.make_dual(value, gathered)
                inside._parameters[name] = value  # type: ignore[assignment]

        return put

    def transform(self, function: GradientTransform) -> GradientTransform:
        """A transform of whole gradients as one of their parts.

        Raises:
            InputError: it is one of its own, which would take a part for the whole.
        """
        if isinstance(function, ClipValue):
            return function
        if isinstance(function, ClipNorm) and function.norm_type == 2:
            return _ClipNorm(function.max_norm)
        raise InputError(
            f"a gradient_transform {function!r} would see parts of gradients on a model of "
            "fully_shard: metaloss.ClipNorm (of the Euclidean norm) and ClipValue know of them"
        )


class _ClipNorm:
    """`ClipNorm` by the norm of all parts."""

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def __call__(self, grads: list[Tensor]) -> list[Tensor]:
        square = torch.stack([grad.square().sum() for grad in grads]).sum()
        (mean,) = distributed.mean([square], [square], 1)
        assert mean is not None
        norm = (distributed.count() * mean).clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
        factor = torch.clamp(self._max_norm / (norm + 1e-6), max=1.0)
        return [grad * factor for grad in grads]


def _own_modules(unit: nn.Module, others: Collection[nn.Module]) -> Iterator[nn.Module]:
    """A module of fully_shard and those within it that are gathered with it."""
    yield unit
    for child in unit.children():
        if child not in others:
            yield from _own_modules(child, others)
