"""Splits: examples held out for validation and test."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveInt, Share
from metaloss.errors import InputError
from metaloss.problem.batches import Batch
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, Data, Task
from metaloss.tasks.preparation import scaling
from metaloss.tasks.preparation.images import Images
from metaloss.tasks.preparation.scaling import Scaling
from metaloss.tasks.preparation.streams import Stream


def hold_out(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of a kept and a held-out part, round(fraction · n) held out, at least one.

    Args:
        labels: integer classes [n], each of which gives its share; or floating-point values, which
            are not stratified.
    """
    # Not scikit-learn's stratified split: it would hold out other examples, so that no run begun
    # before could go on to the same bits, and no published number would come out again.
    order = torch.randperm(len(labels), generator=generator)
    count = max(1, round(fraction * len(labels)))
    if labels.is_floating_point():
        first = order[:count]
    else:
        # Within its class an example's rank is a fraction in (0, 1); taking the smallest fractions
        # of all classes together takes the same share of each and exactly the right number.
        first = order[torch.from_numpy(_smallest(_fractions(labels[order].numpy()), count))]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[first] = True
    return (~held).nonzero().view(-1), held.nonzero().view(-1)


def _fractions(labels: np.ndarray) -> np.ndarray:
    """The rank of each among those of its class, (k + 1/2) / size of the class, [n]."""
    by_class = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    ranks = np.arange(len(labels)) - np.repeat(starts, sizes)
    found = np.empty(len(labels))
    found[by_class] = (ranks + 0.5) / np.repeat(sizes, sizes)
    return found


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` smallest values are, of equal ones the first; without sorting millions."""
    largest = np.partition(values, count - 1)[count - 1]
    below = np.flatnonzero(values < largest)
    return np.append(below, np.flatnonzero(values == largest)[: count - len(below)])


@dataclass(frozen=True)
class Held:
    """Which rows of a table are held out for test and validation.

    Attributes:
        test_fraction: of all rows; the same under every seed.
        valid_fraction: of the others, drawn by the seed.
        folds: the test split is one of so many equal parts, in place of `test_fraction`.
        fold: which, from 0.
    """

    test_fraction: float
    valid_fraction: float
    folds: int | None = None
    fold: int = 0

    def split(
        self,
        labels: Tensor,
        generator: torch.Generator,
        groups: np.ndarray | None = None,
        time: np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """The rows of each split.

        Args:
            labels: see `hold_out`.
            generator: draws the validation rows.
            groups: integers [n]; no group is in two splits.
            time: [n]; the latest rows are the test split, the latest of the others validation.

        Raises:
            ValueError: there are fewer rows or groups than parts.
        """
        if time is not None:
            order = torch.from_numpy(np.argsort(time, kind="stable"))
            n_test = max(1, round(self.test_fraction * len(order)))
            n_valid = max(1, round(self.valid_fraction * (len(order) - n_test)))
            ends = len(order) - n_test - n_valid, len(order) - n_test
            if ends[0] < 1:
                raise ValueError(f"{len(order)} rows are too few to split")
            return {
                "train": order[: ends[0]].sort().values,
                "valid": order[ends[0] : ends[1]].sort().values,
                "test": order[ends[1] :].sort().values,
            }
        rest, test = self._test(labels, groups)
        if len(rest) < 2:
            raise ValueError(f"{len(labels)} rows are too few to split")
        if groups is None:
            kept, held = hold_out(labels[rest], self.valid_fraction, generator)
        else:
            kept, held = _by_group(groups[rest], self.valid_fraction, generator)
        return {"train": rest[kept], "valid": rest[held], "test": test}

    def _test(self, labels: Tensor, groups: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """The rows that are left, and the test split."""
        fixed = torch.Generator().manual_seed(0)
        if self.folds is None and groups is None:
            return hold_out(labels, self.test_fraction, fixed)
        if self.folds is None:
            assert groups is not None
            return _by_group(groups, self.test_fraction, fixed)
        from sklearn import model_selection

        stratified, grouped = not labels.is_floating_point(), groups is not None
        name = f"{'Stratified' * stratified}{'Group' * grouped}KFold"
        folds = getattr(model_selection, name)(self.folds, shuffle=True, random_state=0)
        parts = folds.split(np.zeros(len(labels)), labels.numpy(), groups)
        kept, held = next(islice(parts, self.fold, None))
        return torch.from_numpy(kept), torch.from_numpy(held)


def _by_group(
    groups: np.ndarray, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of the groups that are kept, and of those that are held out."""
    from sklearn.model_selection import GroupShuffleSplit

    seed = int(torch.randint(2**31, (), generator=generator))
    drawn = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
    kept, held = next(drawn.split(groups, groups=groups))
    return torch.from_numpy(kept), torch.from_numpy(held)


def with_validation(
    splits: dict[str, Batch], fraction: float, generator: torch.Generator
) -> dict[str, Batch]:
    """The splits, of which "valid" is held out of "train" if it is not given."""
    if "valid" in splits:
        return splits
    inputs, labels = splits["train"]
    kept, held = hold_out(labels, fraction, generator)
    part = inputs.subset if isinstance(inputs, Stream) else inputs.__getitem__
    parts = {"train": (part(kept), labels[kept]), "valid": (part(held), labels[held])}
    return {**splits, **parts}


def with_selection(data: Data, fraction: float, generator: torch.Generator) -> Data:
    """The data with a fourth split, "select", held out of the validation split.

    φ is learned on "valid"; what is *chosen* (rates, recipes, when to stop) is chosen on "select",
    which neither θ nor φ is trained on.

    Args:
        data: of a task.
        fraction: of the validation examples, stratified by class.
        generator: draws which.

    Raises:
        InputError: there is a single validation example.
    """
    inputs, labels = data.splits["valid"]
    if len(labels) < 2:
        raise InputError("select_fraction: there is one validation example, and none to split off")
    kept, held = hold_out(labels, fraction, generator)
    part = inputs.subset if isinstance(inputs, Stream) else inputs.__getitem__
    parts = {name: (part(rows), labels[rows]) for name, rows in (("valid", kept), ("select", held))}
    weights = data.weights
    if weights is not None and "valid" in weights:
        weights = {**weights, "valid": weights["valid"][kept]}
    return replace(data, splits={**data.splits, **parts}, weights=weights)


class SplitTable(Task):
    """A table without an official split: a regression task whose test rows are drawn once.

    Args:
        batch_size, valid_fraction: see `Task`.
        split: which fifth of the rows is the test split, the same under every seed. There is no
            official one, and a single one decides little: take several.
        target_range: where the range is taken from that scales the target to [0, 1]. "table": all
            rows, the test's included, which the magnitudes of the paper's tables ask for; "train":
            the training rows alone.
    """

    def __init__(
        self,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
        split: NonNegativeInt = 0,
        target_range: Literal["table", "train"] = "table",
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.split = split
        self.target_range = target_range

    @abstractmethod
    def table(self, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [rows, features] and target [rows].

        Raises:
            DataError: see `Task.load`.
        """

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        """Splits the table: inputs are standardised by the training rows, see also `Task.load`."""
        from sklearn.model_selection import train_test_split

        inputs, target = self.table(data_dir)
        x, y = torch.from_numpy(inputs).double(), torch.from_numpy(target).double()[:, None]
        rest, test = (
            torch.from_numpy(rows)
            for rows in train_test_split(np.arange(len(x)), test_size=0.2, random_state=self.split)
        )
        kept, held = hold_out(y[rest], self.valid_fraction, generator)
        train, valid = rest[kept], rest[held]
        targets = scaling.to_range(y if self.target_range == "table" else y[train])
        standard = scaling.standard(x[train])
        x, y = standard.prepare(x), targets.prepare(y)
        rows = {"train": train, "valid": valid, "test": test}
        splits = {name: (x[index], y[index]) for name, index in rows.items()}
        return Data(splits, 1, REGRESSION, inputs=standard, targets=targets)


def image_classification_data(
    train: Batch,
    test: Batch,
    classes: int,
    valid_fraction: float,
    generator: torch.Generator,
    images: Images | None = None,
    inputs: Images | Scaling | None = None,
) -> Data:
    """Images with an official test split; a stratified part of the rest is held out."""
    splits = with_validation({"train": train, "test": test}, valid_fraction, generator)
    return Data(splits, classes, CLASSIFICATION, images, inputs)
