"""MNIST."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import DataError, first_line
from metaloss.problem.batches import Batch
from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation.images import Images, by_channel
from metaloss.tasks.preparation.splits import image_classification_data

FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


@TASKS.register("mnist")
class MNIST(Task):
    """70,000 handwritten digits [1, 28, 28], normalised (LeCun et al., 1998; paper, section 4.2).

    The official test split; a stratified 10 % of the training images is drawn for validation.
    """

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        pixels = Images(by_channel((0.1307,)), by_channel((0.3081,)))
        train, test = read(data_dir, "MNIST", pixels)
        return image_classification_data(
            train, test, 10, self.valid_fraction, generator, inputs=pixels
        )


def read(data_dir: Path, dataset: str, pixels: Images) -> tuple[Batch, Batch]:
    """Normalised images [n, 1, 28, 28] and labels [n] of the official training and test splits.

    Args:
        data_dir: see `Task.load`.
        dataset: torchvision's name of MNIST or of a data set made like it.
        pixels: how they are normalised.
    """
    folder = data_dir / dataset / "raw"
    _download_if_missing(data_dir, dataset, folder)
    train, test = (_read_split(folder, split, pixels) for split in ("train", "test"))
    return train, test


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """An IDX file of bytes, gzipped or not, without writing beside it; uint8 of `shape`.

    Raises:
        DataError: it is damaged, cut short or of another shape.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    header = np.array([0x0800 + len(shape), *shape], dtype=">i4").tobytes()
    size = int(np.prod(shape))
    if content[: len(header)] != header or len(content) != len(header) + size:
        raise DataError(
            f"{path}: not {size} bytes of shape {list(shape)}: the file is cut short or another's"
        )
    return torch.frombuffer(bytearray(content[len(header) :]), dtype=torch.uint8).view(shape)


def _read_split(folder: Path, split: str, pixels: Images) -> Batch:
    prefix, count = FILES[split]
    images = read_idx(_path(folder, f"{prefix}-images-idx3-ubyte"), (count, 28, 28))
    labels = read_idx(_path(folder, f"{prefix}-labels-idx1-ubyte"), (count,))
    return pixels.prepare(images[:, None]), labels.long()


def _path(folder: Path, name: str) -> Path:
    """The plain file if it is there, else the gzipped one."""
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _download_if_missing(data_dir: Path, dataset: str, folder: Path) -> None:
    """Lets torchvision download what is not there."""
    names = [f"{p}-{k}-ubyte" for p, _ in FILES.values() for k in ("images-idx3", "labels-idx1")]
    missing = [path for name in names if not (path := _path(folder, name)).is_file()]
    if not missing:
        return
    from torchvision import datasets

    try:
        getattr(datasets, dataset)(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        reason = first_line(error).rstrip(":")
        raise DataError(
            f"no file {missing[0]}, and torchvision's download failed ({reason}): put {dataset}'s "
            f"four *-ubyte.gz files into {folder}, or set --data_dir"
        ) from None
