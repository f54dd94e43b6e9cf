"""Streams: examples that are read when they are drawn, ahead of the step, by worker processes.

What a batch is, its indices and how each example is augmented, is decided by the run's own random
stream before anybody reads a file. Workers only do what they are told: their number changes no bit,
and a run that is resumed needs nothing of them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metaloss.tasks.preparation.timm_transforms import TimmTransforms

AHEAD = 4  #: batches that each worker prepares before they are asked for
SAMPLE = 2000  #: examples by which a stream is normalised
AT_ONCE = 1 << 25  #: numbers in a batch of evaluation at most

#: How many processes read; "--workers" of a command line sets it, as "--threads" sets torch's.
_workers = min(4, os.cpu_count() or 1)


def set_workers(count: int) -> None:
    """How many worker processes each stream has from now on; 0: the process reads by itself."""
    global _workers
    _workers = count


class Source(ABC):
    """Examples by number; picklable.

    Attributes:
        shape: of one example.
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, number: int) -> Tensor:
        """One example, of `shape` and `dtype`, on the CPU."""


class Choice(NamedTuple):
    """What is random in a batch."""

    rows: Tensor  #: [batch], of a split's examples
    windows: Tensor | None  #: see `metaloss.tasks.preparation.images.Images.windows`
    keys: Tensor | None  #: the seed of each example's augmentation, [batch]; None: there is none


@dataclass(frozen=True, eq=False)
class Stream:
    """A split's inputs, in place of a tensor [n, ...] of them.

    Attributes:
        source: of the examples.
        rows: which of its examples the split has.
        augment: from one example and its key to an input of the same type.
    """

    source: Source
    rows: Tensor
    augment: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        return torch.Size((len(self.rows), *self.source.shape))

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        return self.source.dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.read(Choice(index, None, None))

    def subset(self, index: Tensor) -> Stream:
        """Of some of the examples."""
        return replace(self, rows=self.rows[index])

    def read(self, choice: Choice) -> Tensor:
        """A batch, [batch, ...]."""
        inputs = [self.source.read(int(number)) for number in self.rows[choice.rows]]
        if self.augment is not None and choice.keys is not None:
            inputs = [self.augment(x, int(k)) for x, k in zip(inputs, choice.keys, strict=True)]
        return torch.stack(inputs)

    def in_order(self, chunk: int, limit: int | None = None) -> Iterator[Tensor]:
        """The first examples as batches, not augmented."""
        chunk = max(1, min(chunk, AT_ONCE // max(1, self.shape[1:].numel())))
        index = torch.arange(len(self))[:limit]
        yield from _loaded(self, (Choice(part, None, None) for part in index.split(chunk)))


class Feed:
    """The batches of one split and one random stream, prepared ahead.

    Args:
        stream: what is read.
        choose: draws what is random in the next batch.
    """

    def __init__(self, stream: Stream, choose: Callable[[torch.Generator], Choice]) -> None:
        self._stream, self._choose = stream, choose
        self._coming: Iterator[tuple[Choice, Tensor]] = iter(())

    def draw(self, generator: torch.Generator) -> tuple[Choice, Tensor]:
        """The batch that the generator decides, which moves on as in any draw.

        What was prepared is thrown away where the generator is not where it was expected: at first,
        or when a run goes on from a checkpoint.
        """
        before = generator.get_state()
        choice = self._choose(generator)
        ready, inputs = next(self._coming, (None, None))
        if ready is None or not _same(ready, choice):
            follower = torch.Generator()
            follower.set_state(before)
            self._coming = _ahead(self._stream, self._choose, follower)
            ready, inputs = next(self._coming)
        assert inputs is not None
        return choice, inputs


def _ahead(
    stream: Stream, choose: Callable[[torch.Generator], Choice], generator: torch.Generator
) -> Iterator[tuple[Choice, Tensor]]:
    """The batches that a generator decides, one after another without end.

    No method of the feed, which holds it: the workers of objects in a circle are ended by Python's
    collector, which waits five seconds for each; otherwise they end at once.
    """
    waiting: list[Choice] = []

    def choices() -> Iterator[Choice]:
        while True:
            waiting.append(choose(generator))
            yield waiting[-1]

    for inputs in _loaded(stream, choices()):
        yield waiting.pop(0), inputs


def _loaded(stream: Stream, choices: Iterator[Choice]) -> Iterator[Tensor]:
    """What is read for each choice, in their order."""
    loader: DataLoader[Any] = DataLoader(
        _Batches(stream),
        batch_size=None,
        sampler=choices,  # type: ignore[arg-type]
        num_workers=_workers,
        prefetch_factor=AHEAD if _workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the global one, as dropout does
    )
    return iter(loader)


class _Batches(Dataset[Tensor]):
    """A stream as torch's loader asks it: a whole batch by its choice."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, choice: Choice) -> Tensor:
        return self._stream.read(choice)


def _same(one: Choice, other: Choice) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and a.equal(b))
        for a, b in zip(one, other, strict=True)
    )


# --- augmentation ---


@dataclass(frozen=True)
class Augmentation:
    """Transforms of torchvision.transforms.v2, and timm's, one after another.

    Attributes:
        asked: the name of each, as `transform_of` takes it, and its arguments.
    """

    asked: tuple[tuple[str, Mapping[str, Any]], ...]

    def __call__(self, example: Tensor, key: int) -> Tensor:
        """An augmented example; equal keys give equal ones, in every process."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(key)
            for transform in self._transforms:
                example = transform(example)
        return example

    def keys(self, examples: int, generator: torch.Generator) -> Tensor:
        """A key for each example of a batch."""
        return torch.randint(1 << 62, (examples,), generator=generator)

    @cached_property
    def _transforms(self) -> Sequence[Callable[[Tensor], Tensor]]:
        kinds = [(transform_of(name), arguments) for name, arguments in self.asked]
        return [kind(**arguments) for kind, arguments in kinds if kind is not None]


def transform_of(name: str) -> Callable[..., Callable[[Tensor], Tensor]] | None:
    """A class of torchvision.transforms.v2 by its name, or "timm"; None if there is none."""
    if name == "timm":
        return TimmTransforms
    from torchvision.transforms import v2

    found = getattr(v2, name, None)
    return found if isinstance(found, type) else None


def transform_names() -> list[str]:
    """What `transform_of` knows."""
    from torchvision.transforms import v2

    return ["timm", *(name for name in dir(v2) if isinstance(getattr(v2, name), type))]
