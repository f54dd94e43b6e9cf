"""What a trained model says of inputs, and the files that it is written to."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.machine.files import write_atomically


@dataclass(frozen=True)
class Prediction:
    """What a model says of inputs, on the CPU.

    Attributes:
        values: probabilities of the classes, or of each label, [n, C]; or values in the targets'
            own units, [n, outputs].
        kind: which of the two they are.
        classes: index of the predicted class [n], int64; None where there is no one.
        names: of the columns of `values`: classes, labels or targets; None: they have none.
        files: that the inputs are from; None: they have no file each.
    """

    values: Tensor
    kind: Literal["probabilities", "values"]
    classes: Tensor | None = None
    names: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def labels(self) -> list[str] | None:
        """The name of each predicted class, or its number where classes have no names."""
        if self.classes is None:
            return None
        return [str(i) if self.names is None else self.names[i] for i in self.classes.tolist()]


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Predictions one after the other; at least one."""
    first = parts[0]
    files = [file for part in parts for file in part.files or ()]
    return replace(
        first,
        values=torch.cat([part.values for part in parts]),
        classes=None
        if first.classes is None
        else torch.cat([part.classes for part in parts if part.classes is not None]),
        files=tuple(files) if files else None,
    )


def save(prediction: Prediction, path: Path) -> None:
    """Writes a CSV file with a row for each input, or an .npz file.

    That holds `probabilities` [n, C], `predicted` [n] and the names `classes` [C], if there are; or
    `predictions` [n, outputs] and their names `targets`; and `files` [n], if there are.

    Args:
        prediction: see `TrainedModel.predict`.
        path: ends in .csv or .npz.

    Raises:
        RunFolderError: it cannot be written.
    """
    if path.suffix == ".csv":
        text = _as_csv(prediction)
        write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))
        return
    names = "targets"
    if prediction.classes is None:
        arrays = {"predictions": prediction.values.numpy()}
    else:
        names = "classes"
        arrays = {
            "probabilities": prediction.values.numpy(),
            "predicted": prediction.classes.numpy(),
        }
    for name, words in ((names, prediction.names), ("files", prediction.files)):
        if words is not None:
            arrays[name] = np.array(words)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))


def _as_csv(prediction: Prediction) -> str:
    header, rows = _columns(prediction)
    if prediction.files is not None:
        header = ["file", *header]
        rows = [[file, *row] for file, row in zip(prediction.files, rows, strict=True)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _columns(prediction: Prediction) -> tuple[list[str], list[list[object]]]:
    """Header and rows."""
    values, labels = prediction.values.numpy(), prediction.labels
    numbered = [str(i) for i in range(values.shape[1])]
    names = numbered if prediction.names is None else list(prediction.names)
    if labels is None or prediction.classes is None:
        what = "prediction" if prediction.kind == "values" else "probability"
        one = what == "prediction" and len(names) == 1
        return [what] if one else [f"{what}_{name}" for name in names], values.tolist()
    named = [] if prediction.names is None else ["class"]
    header = ["predicted", *named, *(f"probability_{name}" for name in names)]
    found = zip(prediction.classes.tolist(), labels, values, strict=True)
    rows = [[index, *(label for _ in named), *map(str, row)] for index, label, row in found]
    return header, rows
