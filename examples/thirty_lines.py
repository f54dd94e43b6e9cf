#!/usr/bin/env python
"""AdaLFL (Algorithm 2 of the paper) in plain torch, by double backward: `adalfl` is all of it.

`metaloss.AdaLFL.step` makes these steps, for any optimizer and without the double backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

Batch: TypeAlias = tuple[Tensor, Tensor]  # inputs [batch, ...], labels [batch] of C classes


def adalfl(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    phi: Iterable[Tensor],
    batches: Iterable[tuple[Batch, Batch]],
    base_lr: float,
    meta_lr: float,
) -> list[float]:
    """Trains a model by a loss, and the loss by what it does to the model; gives L_T of each step.

    Args:
        model: f_θ, inputs [batch, ...] -> outputs [batch, C].
        loss: M_φ, (probabilities, one-hot labels), both [batch, C] -> losses [batch].
        phi: its parameters.
        batches: for each step a training batch and a validation batch.
        base_lr: α, of gradient descent on θ.
        meta_lr: η, of Adam on φ.
    """
    theta = dict(model.named_parameters())
    phi = list(phi)
    adam = torch.optim.Adam(phi, lr=meta_lr)
    task_losses = []
    for (x, y), (x_valid, y_valid) in batches:
        # The base step, as a function of φ: create_graph keeps the way from φ to the gradient.
        outputs = functional_call(model, theta, x)
        target = F.one_hot(y, outputs.shape[1]).to(outputs)
        learned_loss = loss(outputs.softmax(1), target).mean()
        g = torch.autograd.grad(learned_loss, list(theta.values()), create_graph=True)
        after = {name: p - base_lr * d for (name, p), d in zip(theta.items(), g, strict=True)}

        # The meta-step: the task loss after the base step, back through it to φ.
        task_loss = F.cross_entropy(functional_call(model, after, x_valid), y_valid)
        for parameter, gradient in zip(phi, torch.autograd.grad(task_loss, phi), strict=True):
            parameter.grad = gradient
        adam.step()

        theta = {name: p.detach().requires_grad_() for name, p in after.items()}
        task_losses.append(task_loss.item())
    model.load_state_dict(theta, strict=False)  # buffers are where they were
    return task_losses


class LearnedLoss(nn.Module):
    """M_φ: one small network for all outputs, the mean over them (paper, section 3.3)."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        layers = [nn.Linear(2, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus()]
        self.network = nn.Sequential(*layers, nn.Linear(width, 1), nn.Softplus())

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.network(torch.stack([target, prediction], -1)).mean((-2, -1))


def main(steps: int = 500) -> None:
    """On handwritten digits: the task loss falls, although the model never descends it."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    draws = (torch.randperm(len(x)) for _ in range(steps))
    batches = (((x[i[:64]], y[i[:64]]), (x[i[64:128]], y[i[64:128]])) for i in draws)
    model, loss = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), LearnedLoss()
    task_losses = adalfl(model, loss, loss.parameters(), batches, base_lr=0.1, meta_lr=1e-3)
    for step in range(0, steps, steps // 10):
        print(f"step {step:3}  task loss {task_losses[step]:.3f}")


if __name__ == "__main__":
    main()
