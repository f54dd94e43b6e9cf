"""What tasks on one's own data share: checks whose errors name file, place and row, and scaling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import DataError, did_you_mean
from metaloss.problem.batches import Batch
from metaloss.tasks.preparation import scaling
from metaloss.tasks.preparation.scaling import Scaling

Kind = Literal["classification", "regression"]


def find(data_dir: Path, path: str, task: str) -> Path:
    """The file or folder a task names, inside `data_dir` unless the path is absolute.

    Raises:
        DataError: it is not there.
    """
    found = data_dir / Path(path).expanduser()
    if not found.exists():
        raise DataError(f"no file {found}: set tasks.{task}.path, absolute or inside --data_dir")
    return found


def finite(values: np.ndarray, place: str) -> np.ndarray:
    """The values as float32.

    Raises:
        DataError: one is NaN, infinite or too large; its row is named, counted from 0.
    """
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    strange = ~np.isfinite(numbers)
    if strange.any():
        at = tuple(np.argwhere(strange)[0])
        raise DataError(f"{place}, row {at[0]}: {values[at]} is no finite number")
    return numbers


def class_indices(labels: np.ndarray, classes: np.ndarray, place: str) -> Tensor:
    """Labels as indices into the sorted classes; int64 [n].

    Raises:
        DataError: a label is none of the classes; its row is named, counted from 0.
    """
    if (labels.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise DataError(f"{place}: labels are {labels.dtype}, but the training's {classes.dtype}")
    indices = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    strange = np.flatnonzero(classes[indices] != labels)
    if len(strange):
        raise DataError(
            f"{place}, row {strange[0]}: label {labels[strange[0]]} is none of the {len(classes)} "
            f"classes, {classes[0]} to {classes[-1]}"
        )
    return torch.from_numpy(indices)


def in_order(words: Iterable[str]) -> list[str]:
    """Names of classes, each once: by their numbers if all are numbers, else by their letters."""
    names = sorted(set(words))
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return names
    return sorted(names, key=lambda name: (numbers[name], name))


def class_weights(
    asked: Literal["balanced"] | Mapping[str, float],
    labels: Tensor,
    classes: Sequence[str],
    place: str,
) -> Tensor:
    """What a row of each class weighs, [C], float64.

    Raises:
        DataError: there is no such class, or a weight is no number of at least 0.
    """
    if isinstance(asked, str):
        return 1 / torch.bincount(labels, minlength=len(classes)).double()
    weights = torch.ones(len(classes), dtype=torch.float64)
    for name, weight in asked.items():
        if str(name) not in classes:
            near, known = did_you_mean(str(name), classes), ", ".join(classes[:10])
            raise DataError(f"{place}: class_weights name no class '{name}'{near} · known: {known}")
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise DataError(f"{place}: class_weights of '{name}' is {weight!r}: at least 0")
        weights[classes.index(str(name))] = weight
    return weights


def require_classes(labels: Tensor, classes: Sequence[str] | np.ndarray, place: str) -> None:
    """Raises DataError if there is one class alone, or one that no training example is of.

    Args:
        labels: of the training examples that are left when the validation examples are held out.
    """
    if len(classes) == 1:
        raise DataError(
            f"{place}: every example is of the class {classes[0]}: nothing can be learned from one "
            "class"
        )
    counts = torch.bincount(labels, minlength=len(classes))
    if not counts.all():
        name = classes[int(counts.argmin())]
        raise DataError(f"{place}: no training example is of class {name}")


def standardised(splits: dict[str, Batch]) -> tuple[dict[str, Batch], Scaling]:
    """Tables of mean 0 and deviation 1 by column over the training rows, and their scaling."""
    standard = scaling.standard(splits["train"][0])
    return {k: (standard.prepare(x), y) for k, (x, y) in splits.items()}, standard


def scaled(splits: dict[str, Batch], place: str) -> tuple[dict[str, Batch], Scaling]:
    """Targets scaled to [0, 1] over the training rows, as the paper's are, and their scaling.

    Args:
        splits: with labels [n, outputs].

    Raises:
        DataError: a column of the training targets is constant, or there are none.
    """
    train = splits["train"][1]
    if not len(train):
        raise DataError(f"{place}: no row is left for training")
    targets = scaling.to_range(train)
    if not targets.unit.all():
        raise DataError(f"{place}: the target is the same in every training row")
    return {k: (x, targets.prepare(y)) for k, (x, y) in splits.items()}, targets
