#!/usr/bin/env python
"""A learned loss in a timm training script.

    make quickstart                        # learns a loss on handwritten digits
    python examples/timm_train.py          # trains a timm model with it, online
    python examples/timm_train.py --frozen

Model, optimizer and schedule are timm's. A frozen loss stands where timm's own train.py has its
`train_loss_fn`; there too it takes one line, `train_loss_fn = metaloss.load_loss(RUN)`, and labels
that are integers (no mixup, whose labels are shares of classes).
"""

from __future__ import annotations

import argparse
import itertools

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import metaloss


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    train_loss_fn: nn.Module,
) -> None:
    """As in timm's train.py."""
    model.train()
    for inputs, target in loader:
        loss = train_loss_fn(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_one_epoch_online(
    learner: metaloss.AdaLFL, loader: DataLoader, valid_loader: DataLoader
) -> None:
    """The same, and the loss goes on learning."""
    learner.problem.model.train()
    for batch, valid_batch in zip(loader, itertools.cycle(valid_loader)):
        learner.step(batch, valid_batch)


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Cross-entropy and error rate."""
    model.eval()
    found = [(model(inputs), target) for inputs, target in loader]
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    error = (logits.argmax(-1) != labels).float().mean()
    return F.cross_entropy(logits, labels).item(), error.item()


def loaders(batch_size: int, size: int) -> tuple[DataLoader, DataLoader]:
    """Handwritten digits, enlarged to size x size: training and validation."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    digits = TensorDataset(F.interpolate(inputs, size), torch.from_numpy(labels))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    train, valid = Subset(digits, order[360:]), Subset(digits, order[:360])
    generator = torch.Generator().manual_seed(0)
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=True, generator=generator),
        DataLoader(valid, batch_size),
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; the words are those of timm's train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--loss", default="runs/quickstart/adalfl", metavar="RUN")
    add("--frozen", action="store_true", help="the loss stays as it is")
    add("--model", default="resnet10t", help="of timm")
    add("--opt", default="sgd", help="of timm, with a step that metaloss knows")
    add("--lr", type=float, default=0.01)
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=64)
    add("--img-size", type=int, default=32)
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> list[tuple[float, float]]:
    """Trains; -> cross-entropy and error rate on validation data before, and after each epoch."""
    arguments = parse_arguments(command_line)
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, num_classes=10, in_chans=1)
    optimizer = create_optimizer_v2(model, opt=arguments.opt, lr=arguments.lr, weight_decay=5e-4)
    scheduler, epochs = create_scheduler_v2(
        optimizer, num_epochs=arguments.epochs, warmup_epochs=1, warmup_lr=arguments.lr / 10
    )
    loss = metaloss.load_loss(arguments.loss)
    if not arguments.frozen:
        representation = loss.requires_grad_().representation
        learner = metaloss.AdaLFL(model, optimizer, representation, link=loss.link)
    train, valid = loaders(arguments.batch_size, arguments.img_size)
    history = [validate(model, valid)]
    for epoch in range(epochs):
        scheduler.step(epoch)
        if arguments.frozen:
            train_one_epoch(model, train, optimizer, train_loss_fn=loss)
        else:
            train_one_epoch_online(learner, train, valid)
        history.append(validate(model, valid))
        print("epoch {}: cross-entropy {:.3f}, error {:.3f}".format(epoch, *history[-1]))
    return history


if __name__ == "__main__":
    main()
