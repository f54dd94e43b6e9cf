"""Splits: examples held out for validation and test."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metaloss.problem.batches import Batch
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, Data
from metaloss.tasks.preparation import scaling
from metaloss.tasks.preparation.images import Images
from metaloss.tasks.preparation.scaling import Scaling


def hold_out(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of a kept and a held-out part, round(fraction · n) held out, at least one.

    Args:
        labels: integer classes [n], each of which gives its share; or floating-point values, which
            are not stratified.
    """
    # Not scikit-learn's stratified split: it would hold out other examples, so that no run begun
    # before could go on to the same bits, and no published number would come out again.
    order = torch.randperm(len(labels), generator=generator)
    if not labels.is_floating_point():
        # Within its class an example's rank is a fraction in (0, 1); taking the smallest fractions
        # of all classes together takes the same share of each and exactly the right number.
        ranks = torch.empty(len(labels), dtype=torch.float64)
        for c in torch.unique(labels):
            members = order[labels[order] == c]
            ranks[members] = (torch.arange(len(members)) + 0.5).double() / len(members)
        order = order[ranks[order].argsort(stable=True)]
    count = max(1, round(fraction * len(labels)))
    return order[count:].sort().values, order[:count].sort().values


def with_validation(
    splits: dict[str, Batch], fraction: float, generator: torch.Generator
) -> dict[str, Batch]:
    """The splits, of which "valid" is held out of "train" if it is not given."""
    if "valid" in splits:
        return splits
    inputs, labels = splits["train"]
    kept, held = hold_out(labels, fraction, generator)
    parts = {"train": (inputs[kept], labels[kept]), "valid": (inputs[held], labels[held])}
    return {**splits, **parts}


def regression_data(
    inputs: np.ndarray, target: np.ndarray, valid_fraction: float, generator: torch.Generator
) -> Data:
    """A table as a regression task, prepared as the authors' loaders are read to do it.

    A fixed fifth of the rows is the test split under every seed, and `valid_fraction` of the rest
    is drawn for validation. Inputs are standardised by the training rows; the target is scaled to
    [0, 1] by its range in the whole table, as the unit of the metric.

    Args:
        inputs: [rows, features].
        target: [rows].
    """
    from sklearn.model_selection import train_test_split

    x, y = torch.from_numpy(inputs).double(), torch.from_numpy(target).double()[:, None]
    targets = scaling.to_range(y)
    rest, test = (
        torch.from_numpy(rows)
        for rows in train_test_split(np.arange(len(x)), test_size=0.2, random_state=0)
    )
    kept, held = hold_out(y[rest], valid_fraction, generator)
    train, valid = rest[kept], rest[held]
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
