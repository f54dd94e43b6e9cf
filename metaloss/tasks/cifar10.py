"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaloss.problem.batches import Batch
from metaloss.tasks.base import TASKS
from metaloss.tasks.preparation import official


@TASKS.register("cifar10")
class CIFAR10(official.OfficialImages):
    """60,000 photographs [3, 32, 32] of 10 classes (Krizhevsky, 2009; paper, section 4.2)."""

    classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    deviation = (0.2470, 0.2435, 0.2616)

    def read(self, data_dir: Path) -> tuple[Batch, Batch]:
        from torchvision.datasets import CIFAR10

        return read(CIFAR10, data_dir)


def read(dataset: Any, data_dir: Path) -> tuple[Batch, Batch]:
    """Training and test split of torchvision's CIFAR10 or CIFAR100, from `data_dir/cifar-...`.

    Raises:
        DataError: see `official.load`.
    """
    folder = data_dir / dataset.base_folder
    meta = dataset.meta["filename"], dataset.meta["md5"]
    listed = [*dataset.train_list, *dataset.test_list, meta]
    splits = official.load(
        [(folder / name, md5) for name, md5 in listed],
        lambda: dataset(str(data_dir), download=True),
        lambda: [dataset(str(data_dir), train) for train in (True, False)],
    )
    train, test = (official.as_batch(s.data.transpose(0, 3, 1, 2), s.targets) for s in splits)
    return train, test
