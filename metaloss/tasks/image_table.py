"""One's own image files, named in a table with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, Share
from metaloss.errors import ArgumentError, DataError
from metaloss.tasks.base import CLASSIFICATION, MULTI_LABEL, REGRESSION, TASKS, Data, Task
from metaloss.tasks.preparation import own_data
from metaloss.tasks.preparation.dialect import Dialect
from metaloss.tasks.preparation.encoding import ranks
from metaloss.tasks.preparation.image_data import (
    ImageReading,
    Transforms,
    augmentation,
    pictured,
    scale_of,
)
from metaloss.tasks.preparation.image_files import SPLIT_WORDS, Decoder, ImageFile, Interpolation
from metaloss.tasks.preparation.later import pl
from metaloss.tasks.preparation.splits import hold_out
from metaloss.tasks.preparation.tables import Rows, quoted, read


@TASKS.register("image_table")
class ImageTable(Task):
    """Image files that a CSV, Parquet or Arrow file names, a row each, with what is to be learned.

    Args:
        path: of the table, inside `data_dir` unless it is absolute.
        label: the column of classes, or of numbers in regression; of several labels at once, a
            column of words with `separator` between them, or columns of 0 and 1.
        kind: "classification", "multi_label" or "regression".
        file: the column of file names.
        folder: that the names are in, beside the table unless it is absolute.
        split: a column of split words (train, val, test, as people use them); "": there is none.
        separator: between the labels of an image.
        delimiter, encoding: of a CSV file.
        size, grayscale, background, padding, flip, augment, stream, memory: see `image_folder`.
        interpolation, mean, deviation, class_weights: see `image_folder`.
        test_fraction: share of the images for the test split where `split` names none.
    """

    def __init__(
        self,
        path: str,
        label: str | Sequence[str],
        kind: Literal["classification", "multi_label", "regression"] = "classification",
        file: str = "file",
        folder: str = "",
        split: str = "",
        separator: str = "|",
        delimiter: str = ",",
        encoding: str = "utf-8",
        size: PositiveInt | None = None,
        grayscale: bool = False,
        background: tuple[int, int, int] = (255, 255, 255),
        padding: NonNegativeInt = 0,
        flip: bool = False,
        augment: Transforms | None = None,
        stream: bool | None = None,
        memory: PositiveFloat = 4.0,
        interpolation: Interpolation | None = None,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
        class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
        test_fraction: Share = 0.2,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.labels = (label,) if isinstance(label, str) else tuple(label)
        if not self.labels or (kind == "classification" and len(self.labels) > 1):
            raise ArgumentError(
                "label", label, "one column; several only of several labels or numbers"
            )
        self.path, self.kind, self.file, self.folder = path, kind, file, folder
        self.split, self.separator, self.test_fraction = split, separator, test_fraction
        self.dialect = Dialect(("",), delimiter, encoding=encoding)
        decoder = Decoder(
            size, grayscale, own_data.color(background), interpolation=interpolation or "bilinear"
        )
        self.reading = ImageReading(
            "image_table", decoder, padding, flip, augmentation(augment), stream, memory,
            scale_of(mean, deviation, grayscale), class_weights,
        )  # fmt: skip
        self.pictured = pictured(size, interpolation, mean, deviation, grayscale)

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "image_table")
        rows = read(path, self.dialect)
        rows.require((self.file, *self.labels, *[self.split] * bool(self.split)))
        files = self._files(rows, path)
        labels, classes = self._labels(rows)
        split = self._splits(rows, labels)
        outputs = len(classes) if classes is not None else labels.shape[1]
        targets, targets_of = None, {name: labels[index] for name, index in split.items()}
        notes = [f"{path}: {len(files):,} images"]
        if classes is not None and self.kind == "classification":
            notes[0] += f", {own_data.counted(classes[i] for i in labels.tolist())}"
        elif classes is not None:
            counts = ", ".join(
                f"{name} {int(n):,}" for name, n in zip(classes, labels.sum(0), strict=True)
            )
            notes[0] += f", {len(classes)} labels: {counts}"
        objective = {"classification": CLASSIFICATION, "multi_label": MULTI_LABEL}.get(self.kind)
        if objective is None:
            targets_of, targets = own_data.scaled(targets_of, rows.place(self.labels[0]))
        data = self.reading.data(
            {name: [files[i] for i in index.tolist()] for name, index in split.items()},
            targets_of,
            outputs,
            REGRESSION if objective is None else objective,
            self.valid_fraction,
            generator,
            notes,
            targets=targets,
            classes=None if classes is None else tuple(classes),
            target_names=self.labels if objective is None else None,
        )
        if self.kind == "classification" and classes is not None:
            place = rows.place(self.labels[0])
            own_data.require_classes(data.splits["train"][1], classes, place)
        return data

    def _files(self, rows: Rows, path: Path) -> Sequence[ImageFile]:
        """The file of each row."""
        folder = path.parent / Path(self.folder).expanduser()
        names = self._words(rows, self.file)
        files = [folder / name for name in names]
        for row, file in enumerate(files):
            if not file.is_file():
                raise DataError(f"{rows.place(self.file, row)}: no file {file}")
        if len(set(files)) < len(files):
            twice = next(file for row, file in enumerate(files) if file in files[:row])
            raise DataError(f"{rows.place(self.file)}: {twice} is named twice")
        return files

    def _words(self, rows: Rows, name: str) -> list[str]:
        words = self.dialect.words(name, rows.kinds[name])
        if (found := rows.first(words.is_null())) is not None:
            raise DataError(f"{rows.place(name, found[0])}: nothing stands there")
        return rows.collect(words=words)["words"].to_list()

    def _labels(self, rows: Rows) -> tuple[Tensor, list[str] | None]:
        """Indices [n] or 0 and 1 [n, C] and the classes they are of; or numbers [n, outputs]."""
        if self.kind == "multi_label" and len(self.labels) == 1:
            name = self.labels[0]
            words = rows.collect(words=self.dialect.words(name, rows.kinds[name]).fill_null(""))[
                "words"
            ].to_list()
            sets = [{w.strip() for w in cell.split(self.separator)} - {""} for cell in words]
            classes = own_data.in_order(set().union(*sets))
            if not classes:
                raise DataError(f"{rows.place(name)}: no image has a label")
            return torch.tensor([[float(c in s) for c in classes] for s in sets]), classes
        if self.kind == "classification":
            words = self._words(rows, self.labels[0])
            classes = own_data.in_order(words)
            own_data.require_several(classes, rows.place(self.labels[0]))
            return ranks(pl.Series(words), classes).cast(pl.Int64).to_torch().clone(), classes
        numbers = [self._numbers(rows, name) for name in self.labels]
        values = torch.from_numpy(np.stack(numbers, 1))
        if self.kind == "regression":
            return values, None
        return values.float(), list(self.labels)

    def _numbers(self, rows: Rows, name: str) -> np.ndarray:
        held = rows.kinds[name]
        values, words = self.dialect.numbers(name, held), self.dialect.words(name, held)
        bad = values.is_null() | ~values.is_finite()
        what = "number"
        if self.kind == "multi_label":
            bad, what = bad | ~values.is_in([0.0, 1.0]), "0 or 1"
        if (found := rows.first(bad, words)) is not None:
            raise DataError(f"{rows.place(name, found[0])}: {quoted(found[1] or '')} is no {what}")
        return rows.collect(values=values)["values"].to_numpy()

    def _splits(self, rows: Rows, labels: Tensor) -> dict[str, Tensor]:
        """The rows of "train", "test" and perhaps "valid"."""
        fixed = torch.Generator().manual_seed(0)
        if not self.split:
            by = labels if self.kind == "classification" else labels.double()
            kept, held = hold_out(by, self.test_fraction, fixed)
            return {"train": kept, "test": held}
        words = self._words(rows, self.split)
        found: dict[str, Any] = {}
        for row, word in enumerate(words):
            if (split := SPLIT_WORDS.get(word.lower())) is None:
                known = ", ".join(SPLIT_WORDS)
                place = rows.place(self.split, row)
                raise DataError(f"{place}: {quoted(word)} is no split · known: {known}")
            found.setdefault(split, []).append(row)
        for split in ("train", "test"):
            if split not in found:
                raise DataError(f"{rows.place(self.split)}: no row is of the {split} split")
        return {split: torch.tensor(rows) for split, rows in found.items()}
