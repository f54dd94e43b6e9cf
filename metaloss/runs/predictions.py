"""Predictions from files to files: raw inputs in, what a trained model says of them out."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import DataError, did_you_mean
from metaloss.machine.files import write_atomically
from metaloss.tasks.arrays import opened
from metaloss.tasks.base import Data
from metaloss.tasks.preparation import own_data

TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class Prediction:
    """What a model says of inputs, on the CPU."""

    values: Tensor  #: class probabilities [n, C], or values in the target's own unit [n, outputs]
    classes: Tensor | None  #: index of the predicted class [n], int64; None in regression


def read(path: Path, data: Data, key: str | None = None) -> Tensor:
    """Raw inputs for a model, [n, *data.input_shape].

    Args:
        path: of a CSV or Parquet file, if the model is of the task `table`, with its columns; else
            of an .npz file with numbers [n, features], or images [n, height, width], [n, height,
            width, channels] or [n, channels, height, width], not scaled.
        data: the model's own.
        key: of the array; None: "x", the only one, or "x_test".

    Raises:
        DataError: the file is damaged, or holds no such array, or what the model cannot take.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    if data.encoding is not None:
        if path.suffix == ".npz":
            raise DataError(f"{path}: the run's rows are a table's: give a CSV or Parquet file")
        return data.encoding.read(path)
    if path.suffix in TABLES:
        raise DataError(f"{path}: the run's inputs are arrays: give an .npz file")
    with opened(path) as archive:
        key = _key(archive.files, key, path)
        raw = archive[key]
    return _shaped(raw, data, f"{path}: {key}")


def save(prediction: Prediction, classes: tuple[str, ...] | None, path: Path) -> None:
    """Writes a CSV file with a row for each input, or an .npz file.

    That holds `probabilities` [n, C], `predicted` [n] and the names `classes` [C], if there are; or
    `predictions` [n, outputs].

    Args:
        prediction: see `TrainedModel.predict`.
        classes: their names, where they have some.
        path: ends in .csv or .npz.

    Raises:
        RunFolderError: it cannot be written.
    """
    if path.suffix == ".csv":
        text = _as_csv(prediction, classes)
        write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))
        return
    if prediction.classes is None:
        arrays = {"predictions": prediction.values.numpy()}
    else:
        arrays = {
            "probabilities": prediction.values.numpy(),
            "predicted": prediction.classes.numpy(),
        }
        if classes is not None:
            arrays["classes"] = np.array(classes)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))


def _as_csv(prediction: Prediction, classes: tuple[str, ...] | None) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    values = prediction.values.numpy()
    columns = range(values.shape[1])
    if prediction.classes is None:
        one = values.shape[1] == 1
        writer.writerow(["prediction"] if one else [f"prediction_{i}" for i in columns])
        writer.writerows(values.tolist())
        return out.getvalue()
    names = [str(i) for i in columns] if classes is None else classes
    named = [] if classes is None else ["class"]
    writer.writerow(["predicted", *named, *(f"probability_{name}" for name in names)])
    for index, row in zip(prediction.classes.tolist(), values, strict=True):
        writer.writerow([index, *(names[index] for _ in named), *map(str, row)])
    return out.getvalue()


def _key(present: list[str], asked: str | None, path: Path) -> str:
    """Which array to read."""
    if asked is None:
        usual = [key for key in ("x", *present[: len(present) == 1], "x_test") if key in present]
        if usual:
            return usual[0]
        asked = "x"
    if asked not in present:
        near, known = did_you_mean(asked, present), ", ".join(present)
        raise DataError(f"{path}: no array {asked}{near} · it holds: {known or 'none'}; see --key")
    return asked


def _shaped(raw: np.ndarray, data: Data, place: str) -> Tensor:
    """An array as the task stores its raw inputs."""
    shape = data.input_shape
    layouts = [shape]
    if len(shape) == 3:
        channels, height, width = shape
        layouts += [(height, width, channels)] + [(height, width)] * (channels == 1)
    if not raw.size or raw.shape[1:] not in layouts:
        known = " or ".join(str(["n", *layout]).replace("'", "") for layout in layouts)
        raise DataError(f"{place} is {raw.dtype} {list(raw.shape)}, but the model takes {known}")
    if raw.dtype.kind not in "buif":
        raise DataError(f"{place} is {raw.dtype}: give numbers")
    if raw.dtype != np.uint8:
        raw = own_data.finite(raw, place)
    if raw.shape[1:] != shape:
        raw = raw[:, None] if raw.ndim == 3 else raw.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(raw))
