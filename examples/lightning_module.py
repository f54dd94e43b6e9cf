#!/usr/bin/env python
"""A learned loss in Lightning, by manual optimization. Needs `pip install 'metaloss[lightning]'`.

    make quickstart                              # learns a loss on handwritten digits
    python examples/lightning_module.py          # trains another model with it, online
    python examples/lightning_module.py --frozen

The steps, and so θ and φ, are bit for bit those of a plain `AdaLFL` loop over the same batches.
One device: see `Problem` for why not DistributedDataParallel.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metaloss


class AdaLFLModule(lightning.LightningModule):
    """Trains a model by a learned loss that goes on learning.

    Its training batches are dicts {"train": (inputs, labels), "valid": (inputs, labels)}, as a
    `CombinedLoader` makes them.

    Args:
        model: maps inputs to logits [batch, C].
        loss: the learned loss to start from.
        lr: α of SGD.
        meta_lr: η of Adam on φ; None keeps the loss as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: metaloss.LearnedLoss,
        lr: float = 0.01,
        meta_lr: float | None = 1e-5,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.loss = loss.requires_grad_(meta_lr is not None)
        self.lr = lr
        self.meta_lr = meta_lr
        self._saved: dict[str, Any] | None = None  # of the learner, until there is one

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), self.lr, momentum=0.9, nesterov=True)

    def on_train_start(self) -> None:
        """The learner comes once the model is on its device and the optimizer has its state."""
        self.learner = metaloss.AdaLFL(
            self.model,
            self.optimizers(use_pl_optimizer=False),
            self.loss.representation,
            link=self.loss.link,
            meta_lr=self.meta_lr,
        )
        if self._saved is not None:
            self.learner.load_state_dict(self._saved)

    def training_step(self, batch: dict[str, tuple[Tensor, Tensor]], _: int) -> None:
        result = self.learner.step(batch["train"], batch["valid"])
        # Lightning counts by its own optimizer's step(), and max_steps and loggers by that.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        self.log("learned_loss", result.learned_loss, prog_bar=True)
        if result.task_loss is not None:
            self.log("task_loss", result.task_loss, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        inputs, labels = batch
        logits = self.model(inputs)
        self.log("valid_loss", F.cross_entropy(logits, labels), prog_bar=True)
        self.log("valid_error", (logits.argmax(-1) != labels).float().mean(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["learner"] = self.learner.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint["learner"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", default="runs/quickstart/adalfl", metavar="RUN")
    parser.add_argument("--frozen", action="store_true", help="the loss stays as it is")
    parser.add_argument("--epochs", type=int, default=20)
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> None:
    """Trains a small convolutional network on handwritten digits."""
    arguments = parse_arguments(command_line)
    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    digits = TensorDataset(inputs, torch.from_numpy(labels))
    train, valid = random_split(digits, [0.8, 0.2], torch.Generator().manual_seed(0))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    loss = metaloss.load_loss(arguments.loss)
    module = AdaLFLModule(model, loss, meta_lr=None if arguments.frozen else 1e-5)
    loaders = {
        "train": DataLoader(train, 64, shuffle=True, drop_last=True),
        "valid": DataLoader(valid, 64, shuffle=True, drop_last=True),
    }
    trainer = lightning.Trainer(max_epochs=arguments.epochs, devices=1, logger=False)
    trainer.fit(module, CombinedLoader(loaders, "max_size_cycle"), DataLoader(valid, 512))


if __name__ == "__main__":
    main()
