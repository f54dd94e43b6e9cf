"""One's own image files, in a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveInt, Share
from metaloss.errors import DataError, first_line
from metaloss.problem.batches import Batch
from metaloss.tasks.base import CLASSIFICATION, TASKS, Data, Task
from metaloss.tasks.preparation import own_data
from metaloss.tasks.preparation.images import Images, mean_and_deviation
from metaloss.tasks.preparation.splits import hold_out, with_validation

Files = list[tuple[Path, str]]  # with their classes


@TASKS.register("image_folder")
class ImageFolder(Task):
    """Image files in torchvision's ImageFolder layout: `class/name.png`.

    Either `path` holds `train/`, `test/` and perhaps `valid/`, each a folder of classes; or it is
    itself one, of which a fixed, stratified part becomes the test split. All images are decoded
    once and kept in memory as bytes. See docs/own_data.md.

    Args:
        path: of the folder, inside `data_dir` unless it is absolute.
        size: pixels a side: the shorter side is resized to it, and the centre cut out; None: the
            images are all of one size and stay so.
        grayscale: one channel in place of three.
        test_fraction: share of the images for the test split where there is no `test/`.
        padding, flip: augmentation, see `metaloss.tasks.preparation.images.Images`.
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
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.path = path
        self.size = size
        self.grayscale = grayscale
        self.test_fraction = test_fraction
        self.padding = padding
        self.flip = flip

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "image_folder")
        if (path / "train").is_dir():
            names = ["train", "test"] + ["valid"] * (path / "valid").is_dir()
            files = {name: _files(path / name) for name in names}
        else:
            files = {"train": _files(path)}
        classes = sorted({name for _, name in files["train"]})
        images = self._decoded([file for part in files.values() for file, _ in part])
        splits: dict[str, Batch] = {}
        for split, part in files.items():
            for file, name in part:
                if name not in classes:
                    raise DataError(f"{file}: no training image is of class {name}")
            labels = torch.tensor([classes.index(name) for _, name in part])
            splits[split], images = (images[: len(part)], labels), images[len(part) :]
        if "test" not in splits:
            splits = self._with_test(splits["train"])
        splits = with_validation(splits, self.valid_fraction, generator)
        own_data.require_all_classes(splits["train"][1], np.array(classes), str(path))
        mean, deviation = mean_and_deviation(splits["train"][0])
        preparation = Images(mean, deviation, self.padding, self.flip)
        return Data(splits, len(classes), CLASSIFICATION, preparation, classes=tuple(classes))

    def _with_test(self, every: Batch) -> dict[str, Batch]:
        """The split that is the same under every seed."""
        images, labels = every
        fixed = torch.Generator().manual_seed(0)
        kept, held = hold_out(labels, self.test_fraction, fixed)
        return {"train": (images[kept], labels[kept]), "test": (images[held], labels[held])}

    def _decoded(self, files: Sequence[Path]) -> Tensor:
        """uint8 [n, channels, height, width]."""
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            images = list(pool.map(self._decode, files))
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"{file} has {image.shape[1]}x{image.shape[2]} pixels, but {files[0]} "
                    f"{images[0].shape[1]}x{images[0].shape[2]}: set tasks.image_folder.size"
                )
        return torch.stack(images)

    def _decode(self, file: Path) -> Tensor:
        from PIL import Image
        from torchvision.transforms import functional as V

        try:
            with Image.open(file) as image:
                image = image.convert("L" if self.grayscale else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: cannot be read: {first_line(error)}") from None
        if self.size is not None:
            image = V.center_crop(V.resize(image, self.size), self.size)
        return V.pil_to_tensor(image)


def _files(folder: Path) -> Files:
    """The image files of a folder of classes, in torchvision's order."""
    from torchvision import datasets

    try:
        listed = datasets.ImageFolder(str(folder))
    except OSError as error:
        reason = first_line(error).rstrip(".")
        raise DataError(f"{folder}: no folder of classes: {reason}") from None
    return [(Path(file), listed.classes[label]) for file, label in listed.samples]
