"""What a task is: data in three disjoint splits, task loss and metric."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metaloss import links
from metaloss.config.arguments import PositiveInt, Share
from metaloss.config.paths import asked_for
from metaloss.config.registry import Registry
from metaloss.links import Link, TaskLoss
from metaloss.machine import distributed
from metaloss.problem.batches import Batch
from metaloss.tasks.preparation.encoding import Encoding
from metaloss.tasks.preparation.image_files import Decoder
from metaloss.tasks.preparation.images import Images
from metaloss.tasks.preparation.scaling import Scaling
from metaloss.tasks.preparation.streams import Choice, Feed, Stream

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Data:
    """A task's splits as tensors on one device, and what they are for; batches are index draws."""

    #: "train", "valid", "test" -> (inputs [n, ...], labels [n, ...]); inputs may be a `Stream`.
    splits: dict[str, Batch]
    outputs: int  #: C: classes, or target columns
    objective: Objective  #: task loss, link and metric
    images: Images | None = None  #: how stored images become inputs; None: what is stored is input
    inputs: Images | Scaling | None = None  #: how raw inputs became what is stored, if they did
    encoding: Encoding | None = None  #: how the columns of a table became raw inputs
    decoder: Decoder | None = None  #: how image files became what is stored
    targets: Scaling | None = None  #: of values, by column; None: they are in their own unit
    classes: tuple[str, ...] | None = None  #: their names, where they have some
    target_names: tuple[str, ...] | None = None  #: of the columns in regression, likewise
    weights: dict[str, Tensor] | None = None  #: how often each example is drawn, by split, [n]
    notes: tuple[str, ...] = ()  #: what a person should know of how the files were read
    #: What earlier versions, whose runs kept no preparation, read otherwise; None: nothing.
    read_otherwise: str | None = None
    feeds: dict[Any, Feed] = field(default_factory=dict, compare=False, repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.splits["train"][0].shape[1:])

    @property
    def unit(self) -> Tensor | None:
        """What 1 of each target column is in the target's own unit, [outputs]."""
        return None if self.targets is None else self.targets.unit

    @property
    def preparation(self) -> Images | Scaling | None:
        """How raw inputs become the model's; None: the task does not say."""
        return self.inputs if self.images is None else self.images

    def raw(self, split: str, limit: int | None = None) -> Tensor:
        """The first `limit` inputs of a split (None: all) before the preparation.

        Returns:
            `[n, *input_shape]`; what were bytes, and is stored as numbers, in [0, 1].
        """
        stored = self.splits[split][0]
        if isinstance(stored, Stream):
            stored = stored[torch.arange(len(stored))[:limit]]
        stored = stored[:limit]
        return stored if self.inputs is None else self.inputs.undo(stored)

    def draw(
        self, split: str, batch_size: int, generator: torch.Generator, whole: bool = False
    ) -> Batch:
        """A uniform draw of distinct examples; the whole split, shuffled, if it is smaller.

        Images are augmented, in the validation split too: the meta-objective is the training's. Of
        several processes each draws the whole batch's indices and augmentation, and takes its share
        of the examples; or it takes all, where the batch is needed `whole`.

        Raises:
            InputError: the batch has fewer examples than there are processes.
        """
        inputs, labels = self.splits[split]
        if isinstance(inputs, Stream):
            choice, inputs = self._feed(split, batch_size, generator, whole).draw(generator)
            inputs = inputs.to(labels.device, non_blocking=True)
            index = choice.rows.to(labels.device, non_blocking=True)
        else:
            choice = self.choose(split, batch_size, generator, whole)
            index = choice.rows.to(labels.device, non_blocking=True)
            inputs = inputs[index]
        if self.images is not None:
            if choice.windows is not None:
                inputs = self.images.cut(inputs, choice.windows)
            inputs = self.images.prepare(inputs)
        return inputs, labels[index]

    def choose(
        self, split: str, batch_size: int, generator: torch.Generator, whole: bool = False
    ) -> Choice:
        """What is random in a `draw`, on the CPU.

        Raises:
            InputError: see `draw`.
        """
        inputs, _ = self.splits[split]
        if self.weights is None:
            index = draw_indices(len(inputs), batch_size, generator)
        else:
            index = draw_weighted(self.weights[split], batch_size, generator)
        batch, taken = len(index), distributed.share(len(index))
        if whole:
            taken = slice(None)
        keys = None
        if isinstance(inputs, Stream) and inputs.augment is not None:
            keys = inputs.augment.keys(batch, generator)[taken]
        windows = None
        if self.images is not None:
            height, width = inputs.shape[2:]
            windows = self.images.windows((height, width), generator, batch, taken)
        return Choice(index[taken], windows, keys)

    def _feed(self, split: str, batch_size: int, generator: torch.Generator, whole: bool) -> Feed:
        """What reads the batches of one random stream ahead."""
        key = split, batch_size, id(generator)
        if key not in self.feeds:
            # Of data without feeds: these would hold, and be held by, what they are chosen from.
            chosen_from = replace(self, feeds={})
            choose = partial(chosen_from.choose, split, batch_size, whole=whole)
            self.feeds[key] = Feed(self.splits[split][0], choose)
        return self.feeds[key]

    def close(self) -> None:
        """Ends the processes that read ahead; a later draw starts others."""
        self.feeds.clear()

    def in_order(self, split: str, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """The first `limit` examples of a split (None: all) as batches, without augmentation."""
        inputs, labels = self.splits[split]
        labels = labels[:limit]
        if isinstance(inputs, Stream):
            parts = inputs.in_order(chunk, limit)
        else:
            parts = iter(torch.split(inputs[:limit], chunk))
        for x in parts:
            y, labels = labels[: len(x)], labels[len(x) :]
            x = x.to(y.device, non_blocking=True)
            yield (x if self.images is None else self.images.prepare(x)), y

    def to(self, device: torch.device) -> Data:
        """The same data on a device."""
        splits = {
            name: (x if isinstance(x, Stream) else x.to(device), y.to(device))
            for name, (x, y) in self.splits.items()
        }
        images = None if self.images is None else self.images.to(device)
        inputs = None if self.inputs is None else self.inputs.to(device)
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, splits=splits, images=images, inputs=inputs, targets=targets, feeds={})


class Task(ABC):
    """Data, task loss and metric, under one name.

    Contract, held by `metaloss.testing.check_task`: splits are disjoint and not empty; equal
    generators give equal splits; inputs and labels are finite; labels fit the objective.

    Attributes:
        batch_size: examples per batch, for training and for the task loss alike.
        valid_fraction: share of the training data held out for validation.
        pictured: of a task of pictures, what it was asked for of their size and scale by parameters
            of these names, None where that may be a pretrained backbone's.
    """

    pictured: Mapping[str, Any] = {}

    def __init__(self, batch_size: PositiveInt = 128, valid_fraction: Share = 0.1) -> None:
        self.batch_size = batch_size
        self.valid_fraction = valid_fraction

    @abstractmethod
    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        """Reads the data and splits it, on the CPU.

        Args:
            data_dir: folder of data sets in the layout of their standard loaders.
            generator: draws what of the split depends on the seed.

        Raises:
            DataError: a file is missing (and could not be downloaded), cut short or damaged.
        """


def find_data_dir(given: str | Path | None = None) -> Path:
    """The folder of data sets: as given, else $METALOSS_DATA, else ./data.

    Raises:
        InputError: an empty path was given.
    """
    if given is None:
        return asked_for(os.environ.get("METALOSS_DATA") or "data", "$METALOSS_DATA")
    return asked_for(given, "--data_dir")


def draw_indices(n: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """k = min(n, batch_size) distinct indices below n, uniformly; [k], int64, on the CPU.

    A permutation where n is small. Where it is large, independent draws until they are distinct,
    which is the same distribution without the permutation's cost: at n = 100 batches at least half
    of the tries succeed.
    """
    if n < 100 * batch_size:
        return torch.randperm(n, generator=generator)[:batch_size]
    while True:
        index = torch.randint(n, (batch_size,), generator=generator)
        if len(torch.unique(index)) == batch_size:
            return index


def draw_weighted(weights: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Indices, each drawn in proportion to its weight and put back; [k], as `draw_indices`.

    Args:
        weights: of each example [n], on the CPU, of at least 0.
    """
    ends = weights.double().cumsum(0)
    drawn = torch.rand(min(len(weights), batch_size), generator=generator, dtype=torch.float64)
    return torch.searchsorted(ends, drawn * ends[-1], right=True).clamp(max=len(weights) - 1)


TASKS = Registry("tasks", Task)


@dataclass(frozen=True)
class Objective:
    """The task loss L_T, the link to learned losses, and the metric."""

    loss: TaskLoss  #: (outputs, labels) -> scalar
    link: Link
    metric: Literal["error_rate", "mse"]
    errors: Callable[[Tensor, Tensor], Tensor]  #: (outputs, labels) -> metric per example, [batch]


def wrong(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest output is not the label's, else 0; [batch]."""
    return (outputs.argmax(-1) != labels).to(outputs.dtype)


def wrong_labels(outputs: Tensor, labels: Tensor) -> Tensor:
    """Share of the labels that the sign of their output misses; [batch]."""
    return ((outputs > 0) != (labels > 0.5)).to(outputs.dtype).mean(-1)


def squared_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared error of each example, the mean over its outputs; [batch]."""
    return (outputs - labels).square().mean(-1)


CLASSIFICATION = Objective(F.cross_entropy, links.probabilities, "error_rate", wrong)


REGRESSION = Objective(F.mse_loss, links.values, "mse", squared_errors)


MULTI_LABEL = Objective(
    F.binary_cross_entropy_with_logits, links.multi_label, "error_rate", wrong_labels
)


#: By their names, under which runs keep them.
OBJECTIVES = {
    "classification": CLASSIFICATION,
    "regression": REGRESSION,
    "multi_label": MULTI_LABEL,
}
