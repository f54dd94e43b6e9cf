"""Data sets of the right format and size with made-up content, for the loaders to read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from metaloss.tasks import california, crime, mnist


def write_all(folder: Path) -> None:
    """Writes every data set that does not ship inside scikit-learn."""
    write_mnist(folder)
    write_crime(folder)
    write_california(folder)


def write_mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, (prefix, count) in mnist.FILES.items():
        random = np.random.default_rng(len(split))
        labels = random.integers(10, size=count).astype(np.uint8)
        # Dark but for a row of random pixels, at the label's place: quick to write, easy to learn.
        images = np.zeros((count, 28, 28), np.uint8)
        images[np.arange(count), labels * 2] = random.integers(256, size=(count, 28))
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            path = raw / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))


def write_crime(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for row in random.random((crime.ROWS, crime.FIELDS)).round(2):
        fields = [f"{value:.2f}" for value in row]
        fields[3] = "Sometownname"
        fields[101:123] = ["?"] * 22
        rows.append(",".join(fields))
    path = folder / "communities_and_crime" / "communities.data"
    path.parent.mkdir()
    path.write_text("\n".join(rows) + "\n")


def write_california(folder: Path) -> None:
    path = folder / "CaliforniaHousing" / "cal_housing.data"
    path.parent.mkdir()
    table = np.random.default_rng(0).random((california.ROWS, california.FIELDS)) + 1
    np.savetxt(path, table, fmt="%.4f", delimiter=",")
