"""Official image data sets with augmentation, through torchvision's loaders and their md5 sums."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metaloss.config.arguments import NonNegativeInt, PositiveInt, Share
from metaloss.errors import DataError, first_line
from metaloss.problem.batches import Batch
from metaloss.tasks.base import Data, Task
from metaloss.tasks.preparation.images import Images, by_channel
from metaloss.tasks.preparation.splits import image_classification_data

Files = list[tuple[Path, str]]  # with their md5 sums


class OfficialImages(Task):
    """A data set of colour images with an official test split, augmented as in the paper.

    A stratified part of the training images is drawn for validation. Training and validation
    batches are augmented, so that the meta-objective is the training's; evaluation is not.

    Attributes:
        padding: pixels of black around an image before a window of its size is cut; 0: no crop.
        flip: mirror every other image, left to right.
        classes: their number.
        mean, deviation: of the training pixels in [0, 1], by channel.
    """

    classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    deviation: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
        padding: NonNegativeInt = 4,
        flip: bool = True,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.padding = padding
        self.flip = flip

    @abstractmethod
    def read(self, data_dir: Path) -> tuple[Batch, Batch]:
        """Training and test images, uint8 [n, 3, height, width], with labels [n], int64."""

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        train, test = self.read(data_dir)
        images = Images(by_channel(self.mean), by_channel(self.deviation), self.padding, self.flip)
        return image_classification_data(
            train, test, self.classes, self.valid_fraction, generator, images
        )


def load(files: Files, download: Callable[[], Any], read: Callable[[], Any]) -> Any:
    """What `read` gives, downloaded before if a file is missing. A file that is there stays as is.

    Args:
        files: all that is needed.
        download: torchvision's loader that fetches, checks and unpacks them.
        read: torchvision's loader of what is there, which refuses it if an md5 sum is wrong.

    Raises:
        DataError: a file is missing and could not be downloaded, or is cut short or damaged.
    """
    missing = [path for path, _ in files if not path.is_file()]
    if missing:
        _refuse_damaged(files)  # a download would write over it
    try:
        if missing:
            download()
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"no file {missing[0]}, and torchvision's download failed ({_reason(error)}): put it "
            "there, or set --data_dir"
        ) from None
    try:
        return read()
    except (OSError, RuntimeError) as error:
        _refuse_damaged(files)
        raise DataError(f"{files[0][0].parent}: cannot be read: {_reason(error)}") from None


def as_batch(images: np.ndarray, labels: Any) -> Batch:
    """uint8 [n, channels, height, width] and int64 [n], from any memory order."""
    return torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels).long()


def _refuse_damaged(files: Files) -> None:
    from torchvision.datasets.utils import calculate_md5

    for path, md5 in files:
        if not path.is_file():
            continue
        try:
            found = calculate_md5(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {_reason(error)}") from None
        if found != md5:
            raise DataError(
                f"{path}: its md5 is {found}, not {md5}: the file is cut short, damaged or "
                "another's; delete it, and it is downloaded again"
            )


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(":")
