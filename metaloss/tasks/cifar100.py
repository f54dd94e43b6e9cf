"""CIFAR-100."""

from __future__ import annotations

from pathlib import Path

from metaloss.problem.batches import Batch
from metaloss.tasks import cifar10
from metaloss.tasks.base import TASKS
from metaloss.tasks.preparation import official


@TASKS.register("cifar100")
class CIFAR100(official.OfficialImages):
    """60,000 photographs [3, 32, 32] of 100 classes (Krizhevsky, 2009; paper, section 4.2)."""

    classes = 100
    mean = (0.5071, 0.4867, 0.4408)
    deviation = (0.2675, 0.2565, 0.2761)

    def read(self, data_dir: Path) -> tuple[Batch, Batch]:
        from torchvision.datasets import CIFAR100

        return cifar10.read(CIFAR100, data_dir)
