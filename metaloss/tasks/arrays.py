"""One's own arrays, from an .npz file or a folder of .npy files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, Share
from metaloss.errors import ArgumentError, DataError, did_you_mean, first_line
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, TASKS, Data, Task
from metaloss.tasks.preparation import own_data, scaling
from metaloss.tasks.preparation.images import Images, by_channel, mean_and_deviation
from metaloss.tasks.preparation.scaling import Scaling
from metaloss.tasks.preparation.splits import with_validation
from metaloss.tasks.preparation.streams import SAMPLE, Source, Stream

CHANNELS = (1, 3, 4)  # a dimension of such a size can be that of the channels
VALIDATION = ("x_valid", "y_valid")


@TASKS.register("arrays")
class Arrays(Task):
    """Images or tables in NumPy's formats: `x_train`, `y_train`, `x_test`, `y_test`.

    Inputs are a table [n, features], or images [n, height, width], [n, height, width, channels] or
    [n, channels, height, width]; bytes (uint8) are pixels of 0..255. Labels are classes [n], 0, 1,
    2, ... or words, or targets [n] or [n, outputs]. See docs/own_data.md.

    Args:
        path: of an .npz file, or of a folder of .npy files of these names, inside `data_dir` unless
            it is absolute.
        kind: "classification" or "regression"; None: by the type of `y_train`, regression if it
            holds floating-point numbers.
        valid_keys: names of the arrays for validation. None: `x_valid` and `y_valid` if they are
            there, else `valid_fraction` of the training examples is drawn.
        channels: where images have their channels, "first" or "last"; None: where the size is 1, 3
            or 4.
        standardize: inputs by the training examples' mean and deviation (of each channel, or
            column), regression targets to [0, 1] by their range; False: both as they are.
        padding, flip: augmentation of images, see `metaloss.tasks.preparation.images.Images`.
        stream: leave the inputs of .npy files on the disk, and read them as they are drawn; None:
            if they are larger than `memory` gigabytes.
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
        stream: bool | None = None,
        memory: PositiveFloat = 4.0,
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
        self.stream = stream
        self.memory = memory

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "arrays")
        with opened(path) as archive:
            keys = self._keys(archive.files, path)
            arrays = {key: archive[key] for pair in keys.values() for key in pair}
        for x, y in keys.values():
            if arrays[x].shape[:1] != arrays[y].shape[:1] or not arrays[x].size:
                shapes = f"{x} is {list(arrays[x].shape)}, but {y} {list(arrays[y].shape)}"
                raise DataError(f"{path}: {shapes}: give as many rows, and not none")
        for x, _ in keys.values():
            _require_inputs(arrays, x, path)
        layout = self._layout(arrays["x_train"].shape, f"{path}: x_train")
        inputs = {x: _view(arrays[x], layout) for x, _ in keys.values()}
        size = sum(array.nbytes for array in inputs.values())
        streamed = size > self.memory * 1e9 if self.stream is None else self.stream
        if streamed and not path.is_dir():
            raise DataError(
                f"{path}: an .npz file of {size / 1e9:.1f} GB cannot be read by rows: save its "
                "arrays as .npy files in a folder, or set tasks.arrays.stream = False"
            )
        labels, classes = self._labels({y: arrays[y] for _, y in keys.values()}, path)
        numbers = {
            split: (torch.arange(len(inputs[x])), labels[y]) for split, (x, y) in keys.items()
        }
        drawn = with_validation(numbers, self.valid_fraction, generator)
        files = {split: keys.get(split, keys["train"])[0] for split in drawn}
        splits = {split: y for split, (_, y) in drawn.items()}
        targets, names = None, None
        if classes is not None:
            own_data.require_classes(splits["train"], classes, f"{path}: y_train")
            objective, outputs = CLASSIFICATION, len(classes)
            names = tuple(classes.tolist()) if classes.dtype.kind == "U" else None
        else:
            objective, outputs = REGRESSION, splits["train"].shape[1]
            if self.standardize:
                splits, targets = own_data.scaled(splits, f"{path}: y_train")
            splits = {split: y.float() for split, y in splits.items()}
        rows = {split: index.numpy() for split, (index, _) in drawn.items()}
        is_images = inputs["x_train"].ndim == 4
        preparation: Scaling | None = None
        if not is_images:
            preparation = scaling.by(1.0)
            if self.standardize:
                preparation = scaling.standard_of(inputs["x_train"], rows["train"])
        stored: dict[str, Any] = {}
        for split, index in rows.items():
            key = files[split]
            if streamed:
                source = ArraySource(path / f"{key}.npy", layout, preparation)
                stored[split] = Stream(source, torch.from_numpy(index))
            else:
                stored[split] = _stored(inputs[key][index], preparation)
        images = self._images(stored["train"]) if is_images else None
        note = f"{path}: {size / 1e9:.1f} GB of inputs stay on the disk, to be read as drawn"
        return Data(
            {split: (stored[split], y) for split, y in splits.items()},
            outputs,
            objective,
            images,
            preparation,
            targets=targets,
            classes=names,
            notes=(note,) if streamed else (),
            read_otherwise=_changed(inputs["x_train"], rows["train"], preparation),
        )

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

    def _layout(self, shape: tuple[int, ...], place: str) -> str:
        """Of inputs of such a shape, see `_view`."""
        if len(shape) < 4:
            return "gray" if len(shape) == 3 else "table"
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

    def _images(self, train: Tensor | Stream) -> Images:
        """The preparation of images, by the training images; of a stream, by some of them."""
        mean, deviation = by_channel((0.0,)), by_channel((1.0,))
        if self.standardize:
            if isinstance(train, Stream):
                train = train[torch.arange(0, len(train), max(1, len(train) // SAMPLE))]
            mean, deviation = mean_and_deviation(train)
        return Images(mean, deviation, self.padding, self.flip)


class ArraySource(Source):
    """Rows of an .npy file, which stay on the disk.

    Args:
        path: of the file.
        layout: see `_view`.
        preparation: of tables; None: images stay as they are stored.
    """

    def __init__(self, path: Path, layout: str, preparation: Scaling | None) -> None:
        self._path, self._layout, self._preparation = path, layout, preparation
        first = self._array[:0]
        self.shape, self.dtype = first.shape[1:], _stored(first, preparation).dtype

    def __len__(self) -> int:
        return len(self._array)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which each process opens by itself."""
        return {name: value for name, value in vars(self).items() if name != "_array"}

    def read(self, number: int) -> Tensor:
        return _stored(self._array[number : number + 1], self._preparation)[0]

    @cached_property
    def _array(self) -> np.ndarray:
        return _view(np.load(self._path, mmap_mode="r", allow_pickle=False), self._layout)


def _require_inputs(arrays: dict[str, np.ndarray], key: str, path: Path) -> None:
    """Raises DataError unless an array is of numbers, as the training's, and finite."""
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
    if not is_bytes:
        own_data.require_finite(x, place)


def _view(x: np.ndarray, layout: str) -> np.ndarray:
    """A table as it is; "gray" images, or channels "first" or "last", channels first."""
    if layout == "gray":
        return x[:, None]
    return x.transpose(0, 3, 1, 2) if layout == "last" else x


def _stored(x: np.ndarray, preparation: Scaling | None) -> Tensor:
    """Rows as `Data` holds them: images as bytes or float32, tables prepared."""
    if preparation is not None:
        return preparation.prepare(torch.from_numpy(x.astype(np.float64)))
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return torch.from_numpy(np.require(x, requirements=("C", "W")))  # a copy of what is on the disk


def _changed(train: np.ndarray, rows: np.ndarray, preparation: Scaling | None) -> str | None:
    """What earlier versions, which rounded to single precision first, saw otherwise."""
    if preparation is None or train.dtype.itemsize < 4 or not len(preparation.unit) > 1:
        return None
    mean, unit = preparation.zero.numpy(), preparation.unit.numpy()
    lost = np.abs(mean) * np.finfo(np.float32).eps > 1e-4 * unit
    if not lost.any():
        return None
    return f"column {int(np.flatnonzero(lost)[0])} of its x_train was rounded before it was centred"


class NpyFolder:
    """The .npy files of a folder by their names without ending, which stay on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files = sorted(file.stem for file in path.glob("*.npy"))

    def __getitem__(self, key: str) -> Any:
        return np.load(self._path / f"{key}.npy", mmap_mode="r", allow_pickle=False)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An .npz archive, or a folder of .npy files; what cannot be read of it is a DataError."""
    try:
        if path.is_dir():
            yield NpyFolder(path)
            return
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
    """Numbers [n] or [n, outputs], as the training's are; float64 [n, outputs]."""
    if y.shape[1:] != outputs:
        raise DataError(f"{place}: rows of shape {list(y.shape[1:])}, but y_train {list(outputs)}")
    if y.dtype.kind not in "buif" or y.ndim not in (1, 2):
        raise DataError(f"{place} is {y.dtype} {list(y.shape)}: give numbers [n] or [n, outputs]")
    own_data.require_finite(y, place)
    return torch.from_numpy(y.reshape(len(y), -1).astype(np.float64))


def _class_labels(y: np.ndarray, place: str) -> np.ndarray:
    """Integers or words [n], from those, [n, 1], or floating-point numbers that are whole."""
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: cannot be read: {error}") from None
    if labels.ndim != 1 or labels.dtype.kind not in "buifU":
        raise DataError(f"{place} is {y.dtype} {list(y.shape)}: give one integer or word a row")
    if labels.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))
        if len(broken):
            raise DataError(f"{place}, row {broken[0]}: {labels[broken[0]]} is no class")
    if labels.dtype.kind == "u" and labels.size and labels.max() >= 1 << 63:
        raise DataError(
            f"{place}: label {labels.max()} in {len(labels)} rows: classes are 0, 1, ..."
        )
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _classes(labels: np.ndarray, place: str) -> np.ndarray:
    """The words that occur, or 0, 1, 2, ... to the largest label."""
    if labels.dtype.kind == "U":
        return np.unique(labels)
    if not len(labels) or labels.max() >= len(labels):
        largest = f"label {labels.max()}" if len(labels) else "no label"
        raise DataError(f"{place}: {largest} in {len(labels)} rows: classes are 0, 1, 2, ...")
    return np.arange(max(labels.max() + 1, 1))
