"""Batches: what a training loop gives, what a model takes, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType
from typing import Any

import torch
from torch import Tensor

from metaloss.errors import InputError

#: (inputs, labels). Inputs are a tensor, a tuple or list of the model's arguments, or a mapping of
#: its arguments by name; labels are what the task loss and the link take.
Batch = tuple[Any, Any]
Adapter = Callable[[Any], Batch]  #: a data loader's batch -> (inputs, labels)
Outputs = Callable[[Any], Tensor]  #: what a model returns -> its outputs


class MicroBatches(tuple[Batch, ...]):
    """Several batches that make one step together (gradient accumulation).

    The step's loss is that of one batch of all their rows: each weighs as its rows do together,
    and one without a row that counts (labels -100) nothing. Of equal ones it is the mean of their
    losses, as in a loop of `(loss / n).backward()`. One at a time is in memory with its graph.

        learner.step(metaloss.MicroBatches([batch_1, batch_2, batch_3]), valid_batch)

    Raises:
        InputError: there is none.
    """

    def __new__(cls, batches: Iterable[Any]) -> MicroBatches:
        made = super().__new__(cls, batches)
        if not made:
            raise InputError("MicroBatches are at least one batch; there is none")
        return made


StepBatch = Batch | MicroBatches  #: what one base step is made on


def parts(batch: StepBatch) -> tuple[Batch, ...]:
    """The batches that make a step together; mostly one."""
    return tuple(batch) if isinstance(batch, MicroBatches) else (batch,)


def examples(batch: StepBatch) -> int:
    """How many examples a step's batch has: the rows of its labels, or of the first of them."""
    return sum(_rows(labels) for _, labels in parts(batch))


#: What the loss of a micro-batch is divided by in the step's: the rows of all by its own, which is
#: infinite where none of these counts; a tensor, where to know it would be to wait for a device.
#: None of a batch that makes a step alone.
Share = float | Tensor | None


def shares(weights: Sequence[float | Tensor]) -> list[Share]:
    """The share of each micro-batch, by what its rows weigh together; where none counts, equal."""
    if len(weights) == 1:
        return [None]
    total = sum(weights[1:], weights[0])
    if torch.is_tensor(total):
        return [torch.where(total == 0, len(weights), total / own) for own in weights]
    return [total / own if own else math.inf if total else len(weights) for own in weights]


def together(losses: Sequence[Tensor], shares: Sequence[Share]) -> Tensor:
    """A step's loss, of what each micro-batch has in it: NaN, and nothing, where no row counts."""
    counted = [
        loss.where(share < math.inf, 0) if torch.is_tensor(share) else loss
        for loss, share in zip(losses, shares, strict=True)
        if torch.is_tensor(share) or share != math.inf
    ]
    return sum(counted[1:], counted[0])


def _rows(labels: Any) -> int:
    if torch.is_tensor(labels):
        return len(labels) if labels.dim() else 1
    several = labels.values() if isinstance(labels, Mapping) else labels
    return _rows(next(iter(several))) if isinstance(several, Iterable) else 1


def repeat(batches: Iterable[Any] | Callable[[], Any]) -> Callable[[], Any]:
    """A function that gives the next batch, starting over when a loader is exhausted.

    Raises:
        InputError: from the function made: the loader gives no batch.
    """
    if callable(batches):
        return batches

    def endless() -> Iterator[Any]:
        given = 0
        while True:
            before = given
            for batch in batches:
                given += 1
                yield batch
            if given == before and given:
                raise InputError(
                    f"the loader is at its end (batches so far: {given}), and does not start "
                    "over, as a generator does not: give a list, a DataLoader, or a function that "
                    "gives the next batch"
                )
            if given == before:
                raise InputError("the loader gives no batch")

    if not isinstance(batches, Iterable):
        raise InputError(
            f"a loader gives batches one after the other, and this is {_kind(batches)}: give a "
            "DataLoader, a list of batches, or a function that gives the next one"
        )
    return endless().__next__


def gives_batches(batch: Any, adapter: Adapter | None) -> bool:
    """Whether it is a function that gives a batch. An object that an adapter takes is a batch."""
    functions = (FunctionType, MethodType, BuiltinFunctionType, MethodWrapperType, partial)
    return callable(batch) and (adapter is None or isinstance(batch, functions))


def adapted(batch: Any, adapter: Adapter | None) -> StepBatch:
    """A data loader's batch as (inputs, labels); those of MicroBatches each.

    Raises:
        InputError: it is no such pair.
    """
    if isinstance(batch, MicroBatches):
        return MicroBatches(_pair(part, adapter) for part in batch)
    return _pair(batch, adapter)


def _pair(batch: Any, adapter: Adapter | None) -> Batch:
    pair = batch if adapter is None else adapter(batch)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
            f"a batch is (inputs, labels), and this one is {_kind(pair)}: "
            + (
                "give `adapter`, a function from it to the two"
                if adapter is None
                else "`adapter` has to return the two"
            )
        )
    for what, part in zip(("inputs", "labels"), pair, strict=True):
        if type(part).__module__.partition(".")[0] in ("numpy", "pandas"):
            raise InputError(
                f"the {what} of this batch are a {type(part).__module__.partition('.')[0]} "
                f"{type(part).__name__}: give a tensor, as torch.as_tensor makes one"
            )
        if torch.is_tensor(part) and part.is_inference():
            raise InputError(
                f"the {what} of this batch were made under torch.inference_mode(), which autograd "
                "does not take: make them outside, or clone them there"
            )
    if pair[1] is None:
        raise InputError("the labels of this batch are None: there is nothing to learn from")
    return pair[0], pair[1]


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """model(x), model(*arguments) or model(**arguments).

    Only plain tuples and lists are arguments: a named tuple, as a PackedSequence is, is one input.
    """
    if torch.is_tensor(inputs):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if type(inputs) in (tuple, list):
        return model(*inputs)
    return model(inputs)


def outputs_of(result: Any, outputs: Outputs | None) -> Tensor:
    """The outputs in what a model returned.

    Raises:
        InputError: it is, or `outputs` made of it, no tensor.
    """
    found = result if outputs is None else outputs(result)
    if not torch.is_tensor(found):
        raise InputError(
            f"a model gives a tensor of outputs, and this one gives {_kind(found)}: give "
            "`outputs`, a function from it to the tensor"
            if outputs is None
            else f"`outputs` has to give a tensor, and it gives {_kind(found)}"
        )
    return found


def _kind(value: Any) -> str:
    """What it is, for a message: a type, and what it holds."""
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {name} of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return f"a {name} of {len(value)}"
    return f"a {name} {list(value.shape)}" if torch.is_tensor(value) else f"a {name}"
