#!/usr/bin/env python
"""A plain training loop on handwritten digits, and the five lines by which it learns its loss.

python examples/own_loop.py            # with the five lines
python examples/own_loop.py --plain    # without them, by cross-entropy
"""

from __future__ import annotations

import argparse
import itertools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metaloss


def main(command_line: list[str] | None = None) -> float:
    """Trains, and gives the test accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plain", action="store_true", help="descend cross-entropy instead")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--initial_steps", type=int, help="meta-steps before training")
    arguments = parser.parse_args(command_line)

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    train, valid, test = random_split(digits, [1197, 200, 400])
    train_loader = DataLoader(train, 64, shuffle=True)
    valid_loader = DataLoader(valid, 100, shuffle=True)

    model = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs)

    if not arguments.plain:
        loss = metaloss.REPRESENTATIONS["nn"]()  # 1: the loss
        learner = metaloss.AdaLFL(model, optimizer, loss, meta_lr=1e-5)  # 2: around what is there
        learner.initialize(train_loader, valid_loader, steps=arguments.initial_steps)  # 3: offline

    for epoch in range(1, arguments.epochs + 1):
        model.train()
        for batch, valid_batch in zip(train_loader, itertools.cycle(valid_loader)):  # 4: online
            if arguments.plain:
                optimizer.zero_grad()
                F.cross_entropy(model(batch[0]), batch[1]).backward()
                optimizer.step()
            else:
                learner.step(batch, valid_batch)  # 5: instead of backward() and optimizer.step()
        scheduler.step()
        print(f"epoch {epoch:2}  test accuracy {accuracy(model, test):.3f}")
    return accuracy(model, test)


@torch.no_grad()
def accuracy(model: nn.Module, data: torch.utils.data.Dataset) -> float:
    """The share of examples that the model gets right."""
    inputs, labels = next(iter(DataLoader(data, len(data))))
    return float((model.eval()(inputs).argmax(-1) == labels).double().mean())


if __name__ == "__main__":
    main()
