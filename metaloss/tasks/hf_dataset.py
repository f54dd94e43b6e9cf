"""Data sets of Hugging Face's `datasets`, of a folder or of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, Share
from metaloss.errors import ArgumentError, DataError, InputError, did_you_mean, first_line
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, TASKS, Data, Task
from metaloss.tasks.preparation import own_data, scaling
from metaloss.tasks.preparation.image_data import (
    ImageReading,
    Transforms,
    augmentation,
    pictured,
    scale_of,
)
from metaloss.tasks.preparation.image_files import (
    SPLIT_WORDS,
    Decoder,
    Interpolation,
    Labelled,
    Packed,
)
from metaloss.tasks.preparation.splits import hold_out


@dataclass(frozen=True)
class Cell(Packed):
    """An image in a row of a data set."""

    rows: Any  #: datasets.Dataset, whose images are not decoded
    column: str
    row: int
    place: str

    def read(self) -> bytes:
        held = self.rows[self.row][self.column]
        return held["bytes"] or Path(held["path"]).read_bytes()

    def __str__(self) -> str:
        return f"{self.place}, row {self.row}"


@TASKS.register("hf_dataset")
class HFDataset(Task):
    """A data set of the `datasets` library: images, or columns of numbers (extra `hf`).

    Its rows are read by number, from files that the library maps into memory, so that examples are
    drawn as from any files, and a run is the same one with any number of workers, and when it is
    resumed. Data sets that can only be read in order are not taken.

    Args:
        path: what `save_to_disk` wrote, or a folder of Parquet files, images and the like, inside
            `data_dir` unless it is absolute; or the name of a data set of the hub.
        name: which configuration of it; "": the only one, or the default.
        revision: of a data set of the hub; "": the newest.
        label: the column of classes, or of the target in regression.
        image: the column of images; "": the only one, where `features` is empty.
        features: columns of numbers, or of vectors of numbers, in place of images.
        kind: "classification" or "regression" (of `features`).
        size, grayscale, background, padding, flip, augment, stream, memory: see `image_folder`.
        interpolation, mean, deviation, class_weights: see `image_folder`.
        test_fraction: share of the rows for the test split where there is none.
    """

    def __init__(
        self,
        path: str,
        name: str = "",
        revision: str = "",
        label: str = "label",
        image: str = "",
        features: Sequence[str] = (),
        kind: Literal["classification", "regression"] = "classification",
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
        if features and image:
            raise ArgumentError("image", image, "'' beside features")
        if kind == "regression" and not features:
            raise ArgumentError("kind", kind, "'classification' without features")
        self.path, self.name, self.revision = path, name, revision
        self.label, self.image, self.features = label, image, tuple(features)
        self.kind, self.test_fraction = kind, test_fraction
        decoder = Decoder(
            size, grayscale, own_data.color(background), interpolation=interpolation or "bilinear"
        )
        self.reading = ImageReading(
            "hf_dataset", decoder, padding, flip, augmentation(augment), stream, memory,
            scale_of(mean, deviation, grayscale), class_weights,
        )  # fmt: skip
        if not features:
            self.pictured = pictured(size, interpolation, mean, deviation, grayscale)
        elif class_weights is not None:
            raise ArgumentError("class_weights", class_weights, "None with features")

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        parts, left = self._parts(data_dir)
        notes = [f"left out: {', '.join(left)}"] if left else []
        if self.features:
            return self._of_numbers(parts, notes, generator)
        from datasets import Image

        image = self._image_column(parts["train"])
        splits: dict[str, Labelled] = {}
        for split, rows in parts.items():
            coded = rows.select_columns([image]).cast_column(image, Image(decode=False))
            place = f"{self.path}, {split}, column '{image}'"
            classes = self._classes(rows, split)
            splits[split] = [(Cell(coded, image, i, place), c) for i, c in enumerate(classes)]
        return self.reading.of_classes(
            splits,
            self.test_fraction,
            self.valid_fraction,
            generator,
            self.path,
            notes,
            self._names(parts["train"]) or own_data.in_order(c for _, c in splits["train"]),
        )

    # --- what is read ---

    def _parts(self, data_dir: Path) -> tuple[Mapping[str, Any], list[str]]:
        """The data set by split, and the names of splits that are none of ours."""
        found = self._loaded(data_dir)
        if not isinstance(found, dict):
            return {"train": self._checked(found)}, []
        parts: dict[str, Any] = {}
        left = []
        for name, rows in found.items():
            split = SPLIT_WORDS.get(name.lower())
            if split is None:
                left.append(f"split '{name}' ({len(rows):,} rows)")
            elif split in parts:
                raise DataError(f"{self.path}: two of its splits are a {split} split")
            else:
                parts[split] = self._checked(rows)
        if "train" not in parts:
            raise DataError(f"{self.path}: no train split · it has: {', '.join(found)}")
        return parts, left

    def _loaded(self, data_dir: Path) -> Any:
        try:
            import datasets
        except ImportError:
            raise InputError(
                "tasks.hf_dataset needs the library datasets: pip install 'metaloss[hf]'"
            ) from None
        folder = data_dir / Path(self.path).expanduser()
        saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
        try:
            if saved:
                return datasets.load_from_disk(str(folder))
            source = str(folder) if folder.exists() else self.path
            return datasets.load_dataset(source, self.name or None, revision=self.revision or None)
        except Exception as error:  # of many libraries, one for each format and for the network
            reason = first_line(error)
            raise DataError(
                f"tasks.hf_dataset.path '{self.path}' (no folder {folder}, nor a data set of the "
                f"hub that can be had): {reason}"
                if not folder.exists()
                else f"{folder}: cannot be read: {reason}"
            ) from None

    def _checked(self, rows: Any) -> Any:
        """A split, which must have rows and the columns that are asked for."""
        if not len(rows):
            raise DataError(f"{self.path}: no rows")
        known = rows.column_names
        for name in (self.label, *[self.image] * bool(self.image), *self.features):
            if name not in known:
                near = did_you_mean(name, known)
                held = ", ".join(known)
                raise DataError(f"{self.path}: no column '{name}'{near} · it has: {held}")
        return rows

    def _image_column(self, rows: Any) -> str:
        from datasets import Image

        held = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        if self.image in held:
            return self.image
        if self.image or len(held) != 1:
            known = ", ".join(held) or "none"
            raise DataError(
                f"{self.path}: tasks.hf_dataset.image must name a column of images · it has: "
                f"{known}; of numbers, set tasks.hf_dataset.features"
            )
        return held[0]

    def _names(self, rows: Any) -> list[str] | None:
        """What the data set calls its classes, in its order; None: it does not say."""
        names = getattr(rows.features[self.label], "names", None)
        return list(names) if names else None

    def _classes(self, rows: Any, split: str) -> list[str]:
        """The class of each row."""
        held, names = rows.with_format(None)[self.label][:], self._names(rows)
        for row, value in enumerate(held):
            if value is None or (names and value < 0):
                place = f"{self.path}, {split}, column '{self.label}', row {row}"
                raise DataError(f"{place}: no label")
        return [names[v] if names else str(v) for v in held]

    # --- columns of numbers ---

    def _of_numbers(
        self, parts: Mapping[str, Any], notes: Sequence[str], generator: torch.Generator
    ) -> Data:
        place = f"{self.path}, column '{self.label}'"
        inputs = {split: self._numbers(rows, split) for split, rows in parts.items()}
        labels: dict[str, torch.Tensor]
        classes: Sequence[str] | None = None
        if self.kind == "classification":
            words = {split: self._classes(rows, split) for split, rows in parts.items()}
            classes = self._names(parts["train"]) or own_data.in_order(words["train"])
            own_data.require_several(classes, place)
            labels = {
                split: own_data.numbered(part, classes, f"{self.path}, {split}")
                for split, part in words.items()
            }
        else:
            labels = {
                split: torch.from_numpy(self._column(rows, self.label, split))
                for split, rows in parts.items()
            }
        fixed = torch.Generator().manual_seed(0)
        if "test" not in parts:
            rest, test = hold_out(labels["train"], self.test_fraction, fixed)
            inputs |= {"train": inputs["train"][rest], "test": inputs["train"][test]}
            labels |= {"train": labels["train"][rest], "test": labels["train"][test]}
        if "valid" not in parts:
            kept, held = hold_out(labels["train"], self.valid_fraction, generator)
            inputs |= {"train": inputs["train"][kept], "valid": inputs["train"][held]}
            labels |= {"train": labels["train"][kept], "valid": labels["train"][held]}
        standard = scaling.standard(inputs["train"])
        prepared = {split: standard.prepare(x) for split, x in inputs.items()}
        counts = ", ".join(f"{split} {len(x):,}" for split, x in prepared.items())
        told = (f"{self.path}: {counts} rows of {inputs['train'].shape[1]} numbers", *notes)
        if classes is not None:
            own_data.require_classes(labels["train"], classes, place)
            splits = {split: (x, labels[split]) for split, x in prepared.items()}
            return Data(splits, len(classes), CLASSIFICATION, inputs=standard, notes=told,
                        classes=tuple(classes))  # fmt: skip
        scaled, targets = own_data.scaled(labels, place)
        splits = {split: (x, scaled[split]) for split, x in prepared.items()}
        outputs = scaled["train"].shape[1]
        return Data(splits, outputs, REGRESSION, inputs=standard, targets=targets, notes=told,
                    target_names=(self.label,) if outputs == 1 else None)  # fmt: skip

    def _numbers(self, rows: Any, split: str) -> torch.Tensor:
        """The features of each row, [n, features], float64."""
        parts = [self._column(rows, name, split) for name in self.features]
        return torch.from_numpy(np.concatenate(parts, 1))

    def _column(self, rows: Any, name: str, split: str) -> np.ndarray:
        """A column of numbers or vectors, [n, numbers], float64."""
        place = f"{self.path}, {split}, column '{name}'"
        held = rows.with_format("numpy")[name][:]
        try:
            values = np.asarray(held, dtype=np.float64).reshape(len(rows), -1)
        except (TypeError, ValueError):
            raise DataError(f"{place} holds no numbers, or vectors of several lengths") from None
        own_data.require_finite(values, place)
        return values
