"""What tasks on one's own data share: checks whose errors name file, place and row, and scaling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import ArgumentError, DataError, did_you_mean
from metaloss.tasks.preparation import scaling
from metaloss.tasks.preparation.scaling import Scaling

Kind = Literal["classification", "regression"]
AT_ONCE = 65_536  #: rows that are looked at together


def find(data_dir: Path, path: str, task: str) -> Path:
    """The file or folder a task names, inside `data_dir` unless the path is absolute.

    Raises:
        DataError: it is not there.
    """
    found = data_dir / Path(path).expanduser()
    if not found.exists():
        raise DataError(f"no file {found}: set tasks.{task}.path, absolute or inside --data_dir")
    return found


def require_finite(values: np.ndarray, place: str) -> None:
    """Raises DataError if a number is NaN, infinite or too large; its row is named, from 0."""
    for start in range(0, len(values), AT_ONCE):
        part = values[start : start + AT_ONCE]
        with np.errstate(over="ignore"):
            strange = ~np.isfinite(part.astype(np.float32))
        if strange.any():
            at = tuple(np.argwhere(strange)[0])
            raise DataError(f"{place}, row {start + at[0]}: {part[at]} is no finite number")


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


def numbered(words: Sequence[str], classes: Sequence[str], place: str) -> Tensor:
    """The number of each word among the classes, [n].

    Raises:
        DataError: a word is none of them; its row is named, from 0.
    """
    numbers = {name: i for i, name in enumerate(classes)}
    for row, word in enumerate(words):
        if word not in numbers:
            raise DataError(f"{place}, row {row}: no training example is of class {word}")
    return torch.tensor([numbers[word] for word in words])


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


def require_several(classes: Sequence[str] | np.ndarray, place: str) -> None:
    """Raises DataError if there is one class alone."""
    if len(classes) == 1:
        raise DataError(
            f"{place}: every example is of the class {classes[0]}: nothing can be learned from one "
            "class"
        )


def require_classes(labels: Tensor, classes: Sequence[str] | np.ndarray, place: str) -> None:
    """Raises DataError if there is one class alone, or one that no training example is of.

    Args:
        labels: of the training examples that are left when the validation examples are held out.
    """
    require_several(classes, place)
    counts = torch.bincount(labels, minlength=len(classes))
    if not counts.all():
        name = classes[int(counts.argmin())]
        raise DataError(f"{place}: no training example is of class {name}")


def scaled(labels: dict[str, Tensor], place: str) -> tuple[dict[str, Tensor], Scaling]:
    """Targets scaled to [0, 1] over the training rows, as the paper's are, and their scaling.

    Args:
        labels: of each split, [n, outputs].

    Raises:
        DataError: a column of the training targets is constant, or there are none.
    """
    train = labels["train"]
    if not len(train):
        raise DataError(f"{place}: no row is left for training")
    targets = scaling.to_range(train)
    if not targets.unit.all():
        raise DataError(f"{place}: the target is the same in every training row")
    return {split: targets.prepare(y) for split, y in labels.items()}, targets


def counted(names: Iterable[str], shown: int = 8) -> str:
    """The classes and how many examples each has, in words; of many the largest."""
    counts = Counter(names)
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(shown))
    more = f", and {len(counts) - shown:,} more" if len(counts) > shown else ""
    return f"{len(counts):,} classes: {listed}{more}"


def color(background: Sequence[int]) -> tuple[int, int, int]:
    """Red, green and blue.

    Raises:
        ArgumentError: they are no three numbers of 0..255.
    """
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ArgumentError("background", background, "red, green and blue of 0 to 255")
    red, green, blue = background
    return red, green, blue
