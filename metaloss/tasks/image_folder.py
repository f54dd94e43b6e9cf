"""One's own image files, in a folder for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, Share
from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation import image_files, own_data
from metaloss.tasks.preparation.image_data import (
    ImageReading,
    Transforms,
    augmentation,
    pictured,
    scale_of,
)
from metaloss.tasks.preparation.image_files import Decoder, Interpolation


@TASKS.register("image_folder")
class ImageFolder(Task):
    """Image files in torchvision's ImageFolder layout: `class/name.png`.

    Either `path` holds `train/`, `test/` and perhaps `valid/`, in the words that people use for
    them, each a folder of classes; or it is itself one, of which a fixed, stratified part becomes
    the test split. Images are decoded once and kept in memory, as bytes where they have 8 bits; or,
    of large folders, by worker processes as they are drawn. What is left out is told. See
    docs/own_data.md.

    Args:
        path: of the folder, inside `data_dir` unless it is absolute.
        size: pixels a side: the shorter side is resized to it, and the centre cut out; None: the
            images are all of one size and stay so.
        grayscale: one channel in place of three.
        test_fraction: share of the images for the test split where there is no `test/`.
        padding, flip: augmentation, see `metaloss.tasks.preparation.images.Images`.
        background: what is seen through transparent pixels, red, green and blue of 0..255.
        augment: transforms of torchvision.transforms.v2 for training and validation batches, by
            their names and arguments, or "timm" for those of timm.
        stream: decode images as they are drawn; None: if they would fill more than `memory`
            gigabytes.
        interpolation: how they are resized; None: bilinear.
        mean, deviation: of each channel, in [0, 1], by which pixels are scaled; None: the training
            images' own. A run with a pretrained backbone takes all of these that are None, and the
            size, from what its weights were trained on.
        class_weights: how often a class is drawn: "balanced", all alike, or by name; 1 of the
            others. None: as often as it occurs.
    """

    def __init__(
        self,
        path: str,
        size: PositiveInt | None = None,
        grayscale: bool = False,
        test_fraction: Share = 0.2,
        padding: NonNegativeInt = 0,
        flip: bool = False,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
        background: tuple[int, int, int] = (255, 255, 255),
        augment: Transforms | None = None,
        stream: bool | None = None,
        memory: PositiveFloat = 4.0,
        interpolation: Interpolation | None = None,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
        class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.path = path
        self.test_fraction = test_fraction
        decoder = Decoder(
            size, grayscale, own_data.color(background), interpolation=interpolation or "bilinear"
        )
        self.reading = ImageReading(
            "image_folder", decoder, padding, flip, augmentation(augment), stream, memory,
            scale_of(mean, deviation, grayscale), class_weights,
        )  # fmt: skip
        self.pictured = pictured(size, interpolation, mean, deviation, grayscale)

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "image_folder")
        folder = image_files.listed(path)
        return self.reading.of_classes(
            folder.splits,
            self.test_fraction,
            self.valid_fraction,
            generator,
            str(path),
            folder.notes,
        )
