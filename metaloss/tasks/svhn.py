"""SVHN: Street View House Numbers."""

from __future__ import annotations

from pathlib import Path

from metaloss.problem.batches import Batch
from metaloss.tasks.base import TASKS
from metaloss.tasks.preparation import official


@TASKS.register("svhn")
class SVHN(official.OfficialImages):
    """99,289 digits [3, 32, 32] from house fronts (Netzer et al., 2011; paper, section 4.2).

    Without the split "extra", and mirrored as CIFAR is: as in the authors' earlier code.
    """

    classes = 10
    mean = (0.4380, 0.4440, 0.4730)
    deviation = (0.1751, 0.1771, 0.1744)

    def read(self, data_dir: Path) -> tuple[Batch, Batch]:
        from torchvision.datasets import SVHN

        names = ("train", "test")
        splits = official.load(
            [(data_dir / SVHN.split_list[name][1], SVHN.split_list[name][2]) for name in names],
            lambda: [SVHN(str(data_dir), name, download=True) for name in names],
            lambda: [SVHN(str(data_dir), name) for name in names],
        )
        train, test = (official.as_batch(split.data, split.labels) for split in splits)
        return train, test
