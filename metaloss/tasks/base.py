"""What a task is: data in three disjoint splits, task loss and metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metaloss.objective import Objective
from metaloss.problem import Batch
from metaloss.registry import Registry

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Data:
    """A task's splits as tensors on one device; batches are index draws."""

    splits: dict[str, Batch]  #: "train", "valid", "test" -> (inputs [n, ...], labels [n, ...])
    outputs: int  #: C: classes, or target columns

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.splits["train"][0].shape[1:])

    def draw(self, split: str, batch_size: int, generator: torch.Generator) -> Batch:
        """A uniform draw of distinct examples; the whole split, shuffled, if it is smaller."""
        inputs, labels = self.splits[split]
        index = draw_indices(len(inputs), batch_size, generator).to(inputs.device)
        return inputs[index], labels[index]

    def to(self, device: torch.device) -> Data:
        """The same data on a device."""
        return Data(
            {name: (x.to(device), y.to(device)) for name, (x, y) in self.splits.items()},
            self.outputs,
        )


class Task(ABC):
    """Data, task loss and metric, under one name.

    Contract, held by `metaloss.testing.check_task`: splits are disjoint and not empty; equal
    generators give equal splits; inputs and labels are finite; labels fit the objective.

    Attributes:
        objective: loss, link and metric.
        batch_size: examples per batch, for training and for the task loss alike.
    """

    objective: Objective
    batch_size: int

    @abstractmethod
    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        """Reads the data and splits it, on the CPU.

        Args:
            data_dir: folder of data sets in the layout of their standard loaders.
            generator: draws what of the split depends on the seed.

        Raises:
            DataError: a file is missing (and could not be downloaded), cut short or damaged.
        """


def draw_indices(n: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """`min(n, batch_size)` distinct indices below n, uniformly; int64 on the CPU.

    A permutation where n is small. Where it is large, independent draws until they are distinct,
    which is the same distribution without the permutation's cost: at n = 100 batches at least half
    of the tries succeed.
    """
    if n < 100 * batch_size:
        return torch.randperm(n, generator=generator)[:batch_size]
    while True:
        index = torch.randint(n, (batch_size,), generator=generator)
        if len(index.unique()) == batch_size:
            return index


def hold_out(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of a kept and a held-out part; the same fraction of every class is held out.

    Args:
        labels: integer classes [n], which are stratified; floating-point labels are not.
        fraction: of the examples, held out (rounded, at least one).
    """
    groups = (
        [torch.arange(len(labels))]
        if labels.is_floating_point()
        else [torch.nonzero(labels == c).flatten() for c in labels.unique()]
    )
    kept, held = [], []
    for group in groups:
        shuffled = group[torch.randperm(len(group), generator=generator)]
        count = max(1, round(fraction * len(group)))
        held.append(shuffled[:count])
        kept.append(shuffled[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


TASKS = Registry("tasks", Task)
