"""One's own arrays, from an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveInt, Share
from metaloss.errors import ArgumentError, DataError, did_you_mean, first_line
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, TASKS, Data, Task
from metaloss.tasks.preparation import own_data, scaling
from metaloss.tasks.preparation.images import Images, by_channel, mean_and_deviation
from metaloss.tasks.preparation.splits import with_validation

CHANNELS = (1, 3, 4)  # a dimension of such a size can be that of the channels
VALIDATION = ("x_valid", "y_valid")


@TASKS.register("arrays")
class Arrays(Task):
    """Images or tables in NumPy's .npz format: `x_train`, `y_train`, `x_test`, `y_test`.

    Inputs are a table [n, features], or images [n, height, width], [n, height, width, channels] or
    [n, channels, height, width]; bytes (uint8) are pixels of 0..255. Labels are classes [n], 0, 1,
    2, ... or words, or targets [n] or [n, outputs]. See docs/own_data.md.

    Args:
        path: of the file, inside `data_dir` unless it is absolute.
        kind: "classification" or "regression"; None: by the type of `y_train`, regression if it
            holds floating-point numbers.
        valid_keys: names of the arrays for validation. None: `x_valid` and `y_valid` if they are
            there, else `valid_fraction` of the training examples is drawn.
        channels: where images have their channels, "first" or "last"; None: where the size is 1, 3
            or 4.
        standardize: inputs by the training examples' mean and deviation (of each channel, or
            column), regression targets to [0, 1] by their range; False: both as they are.
        padding, flip: augmentation of images, see `metaloss.tasks.preparation.images.Images`.
    """

    def __init__(
        self,
        path: str,
        kind: own_data.Kind | None = None,
        valid_keys: Sequence[str] | None = None,
        channels: Literal["first", "last"] | None = None,
        standardize: bool = True,
        padding: NonNegativeInt = 0,
        flip: bool = False,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        if valid_keys is not None and len(valid_keys) != 2:
            raise ArgumentError("valid_keys", valid_keys, "two names, of x and y")
        self.path = path
        self.kind = kind
        self.valid_keys = valid_keys
        self.channels = channels
        self.standardize = standardize
        self.padding = padding
        self.flip = flip

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "arrays")
        with opened(path) as archive:
            keys = self._keys(archive.files, path)
            arrays = {key: archive[key] for pair in keys.values() for key in pair}
        for x, y in keys.values():
            if arrays[x].shape[:1] != arrays[y].shape[:1] or not arrays[x].size:
                shapes = f"{x} is {list(arrays[x].shape)}, but {y} {list(arrays[y].shape)}"
                raise DataError(f"{path}: {shapes}: give as many rows, and not none")
        inputs = {x: self._inputs(arrays, x, path) for x, _ in keys.values()}
        labels, classes = self._labels({y: arrays[y] for _, y in keys.values()}, path)
        splits = {split: (inputs[x], labels[y]) for split, (x, y) in keys.items()}
        splits = with_validation(splits, self.valid_fraction, generator)
        targets, names = None, None
        if classes is not None:
            own_data.require_all_classes(splits["train"][1], classes, f"{path}: y_train")
            objective, outputs = CLASSIFICATION, len(classes)
            names = tuple(classes.tolist()) if classes.dtype.kind == "U" else None
        else:
            objective, outputs = REGRESSION, splits["train"][1].shape[1]
            if self.standardize:
                splits, targets = own_data.scaled(splits, f"{path}: y_train")
        images, standard = None, None
        if inputs["x_train"].ndim == 4:
            images = self._images(splits["train"][0])
        elif self.standardize:
            splits, standard = own_data.standardised(splits)
        else:
            standard = scaling.by(1.0)
        return Data(splits, outputs, objective, images, standard, targets=targets, classes=names)

    def _keys(self, present: Sequence[str], path: Path) -> dict[str, tuple[str, str]]:
        """Names of inputs and labels by split."""
        keys = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
        if self.valid_keys is not None or set(VALIDATION) & set(present):
            x, y = self.valid_keys or VALIDATION
            keys["valid"] = x, y
        for key in (key for pair in keys.values() for key in pair):
            if key not in present:
                near, known = did_you_mean(key, present), ", ".join(present)
                raise DataError(f"{path}: no array {key}{near} · it holds: {known or 'none'}")
        return keys

    def _inputs(self, arrays: dict[str, np.ndarray], key: str, path: Path) -> Tensor:
        """A table [n, features], float32, or images [n, channels, height, width]."""
        x, train = arrays[key], arrays["x_train"]
        place, is_bytes = f"{path}: {key}", x.dtype == np.uint8
        if x.shape[1:] != train.shape[1:] or is_bytes != (train.dtype == np.uint8):
            raise DataError(
                f"{place} is {x.dtype} {list(x.shape)}, but x_train {train.dtype} "
                f"{list(train.shape)}: only the first dimension may differ"
            )
        if x.dtype.kind not in "buif" or x.ndim not in (2, 3, 4):
            raise DataError(
                f"{place} is {x.dtype} {list(x.shape)}: give numbers [n, features], or images "
                "[n, height, width], [n, height, width, channels] or [n, channels, height, width]"
            )
        if not is_bytes or x.ndim == 2:
            x = own_data.finite(x, place)
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4 and self._channels_of(x.shape, place) == "last":
            x = x.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(x))

    def _channels_of(self, shape: tuple[int, ...], place: str) -> str:
        """Where images of such a shape have their channels."""
        if self.channels is not None:
            return self.channels
        first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
        if first == last:
            raise DataError(
                f"{place} is {list(shape)}, which does not tell its channels: set "
                "tasks.arrays.channels = 'first' or 'last'"
            )
        return "first" if first else "last"

    def _labels(
        self, arrays: dict[str, np.ndarray], path: Path
    ) -> tuple[dict[str, Tensor], np.ndarray | None]:
        """Indices [n] and the classes they are of; or targets [n, outputs] and None."""
        by_type = "regression" if arrays["y_train"].dtype.kind == "f" else "classification"
        kind, places = self.kind or by_type, {key: f"{path}: {key}" for key in arrays}
        if kind == "regression":
            outputs = arrays["y_train"].shape[1:]
            return {key: _targets(y, outputs, places[key]) for key, y in arrays.items()}, None
        labels = {key: _class_labels(y, places[key]) for key, y in arrays.items()}
        classes = _classes(labels["y_train"], places["y_train"])
        return {
            key: own_data.class_indices(y, classes, places[key]) for key, y in labels.items()
        }, classes

    def _images(self, train: Tensor) -> Images:
        """The preparation of images, by the training images."""
        mean, deviation = by_channel((0.0,)), by_channel((1.0,))
        if self.standardize:
            mean, deviation = mean_and_deviation(train)
        return Images(mean, deviation, self.padding, self.flip)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An .npz archive; what cannot be read of it is a DataError."""
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path} is no .npz archive, or is cut short")
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None


def _targets(y: np.ndarray, outputs: tuple[int, ...], place: str) -> Tensor:
    """Numbers [n] or [n, outputs], as the training's are; float32 [n, outputs]."""
    if y.shape[1:] != outputs:
        raise DataError(f"{place}: rows of shape {list(y.shape[1:])}, but y_train {list(outputs)}")
    if y.dtype.kind not in "buif" or y.ndim not in (1, 2):
        raise DataError(f"{place} is {y.dtype} {list(y.shape)}: give numbers [n] or [n, outputs]")
    return torch.from_numpy(own_data.finite(y.reshape(len(y), -1), place))


def _class_labels(y: np.ndarray, place: str) -> np.ndarray:
    """Integers or words [n], from those, [n, 1], or floating-point numbers that are whole."""
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if labels.ndim != 1 or labels.dtype.kind not in "buifU":
        raise DataError(f"{place} is {y.dtype} {list(y.shape)}: give one integer or word a row")
    if labels.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))
        if len(broken):
            raise DataError(f"{place}, row {broken[0]}: {labels[broken[0]]} is no class")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _classes(labels: np.ndarray, place: str) -> np.ndarray:
    """The words that occur, or 0, 1, 2, ... to the largest label."""
    if labels.dtype.kind == "U":
        return np.unique(labels)
    if not len(labels) or labels.max() >= len(labels):
        largest = f"label {labels.max()}" if len(labels) else "no label"
        raise DataError(f"{place}: {largest} in {len(labels)} rows: classes are 0, 1, 2, ...")
    return np.arange(max(labels.max() + 1, 1))
