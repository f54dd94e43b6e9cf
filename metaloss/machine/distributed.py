"""One run in several processes: each one's share of a batch, and what they average.

Each process of torch.distributed (a "rank") holds the whole model and all meta-parameters, and a
share of every batch. Whatever is a mean over a batch (the base gradient g, the task gradient v, the
meta-gradient, both losses) is the mean over the ranks, each weighted by its examples. All ranks
make the same steps of it, and stay equal bit for bit.

In a single process all of this is the identity. `processes` begins and ends the processes of a
command line; nothing else of the package talks to torch.distributed.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metaloss.errors import InputError, LostProcessError, first_line

#: Aligned with parameters; None stands for zero.
Vector = Sequence[Tensor | None]

AVAILABLE = dist.is_available()  #: in this build of torch

Plain = TypeVar("Plain")
Given = ParamSpec("Given")


def several() -> bool:
    """Whether this process shares its batches with others."""
    return AVAILABLE and dist.is_initialized() and dist.get_world_size() > 1


def count() -> int:
    """How many processes share a batch."""
    return dist.get_world_size() if several() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if several() else 0


def share(examples: int) -> slice:
    """The rows of a batch that are this process's: equal parts, up to one example.

    Raises:
        InputError: there is not one for each process.
    """
    if not several():
        return slice(None)
    if examples < count():
        raise InputError(
            f"a batch of {examples} cannot be shared by {count()} processes: start no more "
            "processes than the smallest batch has examples"
        )
    return slice(rank() * examples // count(), (rank() + 1) * examples // count())


def mean(vector: Vector, like: Sequence[Tensor], weight: float | Tensor) -> list[Tensor | None]:
    """The mean over the examples of all ranks, of what is on each rank the mean over its own.

    A rank whose examples weigh nothing has no part in it; where all weigh nothing, each keeps what
    it has.

    One message, and the same bits on every rank. It can be differentiated once, in reverse mode:
    what arrives at a leaf is then this rank's share, and the leaf's own gradient is the `mean` of
    the shares with equal weights.

    Args:
        vector: this rank's means; None stands for zero, and is the result where it is so on all.
        like: tensors of the same shapes.
        weight: of this rank's examples, together.

    Raises:
        LostProcessError: another process has ended, or does not answer.
    """
    return mean_beside(vector, like, [], weight)[0]


def mean_beside(
    vector: Vector, like: Sequence[Tensor], numbers: Sequence[Tensor], weight: float | Tensor
) -> tuple[list[Tensor | None], list[Tensor]]:
    """`mean` of a vector, and in the same message of some tensors that are there on every rank."""
    if not several() or not (vector or numbers):
        return list(vector), list(numbers)
    here = [part is not None for part in vector]
    dense = [x.new_zeros(x.shape) if v is None else v for v, x in zip(vector, like, strict=True)]
    tensors = [*dense, *numbers]
    *means, shares = _Mean.apply(weight, *tensors, tensors[0].new_tensor(here))
    # In most models every parameter has its part, and nothing waits for the device.
    found = here if all(here) else [there > 0 for there in shares.tolist()]
    parts = zip(means[: len(here)], found, strict=True)
    return [part if kept else None for part, kept in parts], means[len(here) :]


def local(tensor: Tensor) -> Tensor:
    """This process's own part of a DTensor, in its memory and without a graph; another itself."""
    whole: Any = tensor
    return whole.detach().to_local() if hasattr(whole, "to_local") else tensor


def total(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all ranks, of tensors that are there on every one; without graph.

    Raises:
        LostProcessError: another process has ended, or does not answer.
    """
    return _sum(tensors) if several() and tensors else list(tensors)


def spread(tensors: Sequence[Tensor]) -> None:
    """Writes the first rank's values into the others' tensors of the same shapes, in place.

    Raises:
        LostProcessError: another process has ended, or does not answer.
    """
    if not several():
        return
    with torch.no_grad():
        for group in _by_kind(tensors).values():
            flat = torch.cat([tensors[i].detach().reshape(-1) for i in group])
            _together(dist.broadcast, flat.view(torch.uint8), 0)  # of any type
            for i, part in zip(group, flat.split([tensors[i].numel() for i in group]), strict=True):
                tensors[i].copy_(part.view(tensors[i].shape))


def gather(value: Plain) -> list[Plain]:
    """The values of all ranks, in their order."""
    if not several():
        return [value]
    values: list[Any] = [None] * count()
    _together(dist.all_gather_object, values, value)
    return values


def require_equal(value: Any, complaint: str) -> None:
    """Waits for all ranks, and sees to it that they agree.

    Raises:
        InputError: a rank's value is not the first one's; "process 1 <complaint> than process 0".
        LostProcessError: another process has ended, or does not answer.
    """
    first, *others = gather(value)
    for number, other in enumerate(others, start=1):
        if other != first:
            raise InputError(f"process {number} {complaint} than process 0")


def first_alone(method: Callable[Given, None]) -> Callable[Given, None]:
    """What the first of all processes alone carries out: it evaluates and writes."""

    @functools.wraps(method)
    def carry_out(*args: Given.args, **kwargs: Given.kwargs) -> None:
        if rank() == 0:
            method(*args, **kwargs)

    return carry_out


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank: what one of them is told, all do at the same step."""
    if not several():
        return flag
    flags = torch.tensor(int(flag))
    _together(dist.all_reduce, flags, dist.ReduceOp.MAX)
    return bool(flags)


class _Mean(torch.autograd.Function):
    """y = Σ_r w_r x_r / Σ_r w_r; the cotangent of x_r is that of all the y together, w_r / Σ w."""

    @staticmethod
    def forward(ctx: Any, weight: float | Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        wide = [_wide(x) for x in tensors]
        *sums, total = _sum([*wide, wide[0].new_ones(())], weight)
        counted = total != 0
        divisor = total.where(counted, 1.0)
        ctx.weight = weight / divisor
        means = (
            torch.div(y, divisor.to(y), out=torch.empty_like(x))  # in the memory format of x
            for y, x in zip(sums, tensors, strict=True)
        )
        return tuple(
            torch.where(counted.to(x.device), y, x) for y, x in zip(means, tensors, strict=True)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        sums = _sum([_wide(bar) for bar in cotangents])
        bars = zip(sums, cotangents, strict=True)
        return None, *((ctx.weight.to(y) * y).to(bar) for y, bar in bars)


def _sum(tensors: Sequence[Tensor], weight: float | Tensor = 1) -> list[Tensor]:
    """Σ_r weight_r x_r of each tensor, in one message for each device and type of numbers.

    What weighs nothing has no part in it, be it NaN.
    """
    sums = list(tensors)
    for group in _by_kind(tensors).values():
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in group])
        nothing = torch.as_tensor(weight == 0, device=flat.device)
        flat = flat.mul_(weight).masked_fill_(nothing, 0)
        _together(dist.all_reduce, flat)
        for i, part in zip(group, flat.split([tensors[i].numel() for i in group]), strict=True):
            sums[i] = part.view(tensors[i].shape)
    return sums


def _by_kind(tensors: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        kinds[tensor.device, tensor.dtype].append(i)
    return kinds


def _wide(tensor: Tensor) -> Tensor:
    """In at least single precision: sums and numbers of examples do not fit into less."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _together(collective: Callable[..., Any], *arguments: Any) -> None:
    """A call that every rank makes, in the same order.

    Raises:
        LostProcessError: another process has ended, or does not answer.
    """
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise LostProcessError(
            f"process {rank()} of {count()} has lost another one, which ended or did not answer "
            f"in time ({reason_of(error)})"
        ) from error


def reason_of(error: Exception) -> str:
    """What torch says, in one sentence and without the place in its source."""
    line = first_line(error)
    return re.sub(r"\[\S+\.cc:\d+\] ", "", line).split(". ")[0]
