"""Small models for images of 16 by 16 and three classes, each with what makes a derivative hard."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaloss import BACKBONES


class Residual(nn.Module):
    """A BatchNorm ResNet of one block; its convolutions' biases have exactly zero gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4),
        )  # fmt: skip
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).relu().mean((2, 3)))


class StopGradient(nn.Module):
    """Divides by a scale that it computes without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(256, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        with torch.no_grad():
            scale = self.hidden(x).abs().mean()
        return self.head(self.hidden(x).tanh() / scale)


class Annealed(nn.Module):
    """Its outputs depend on a buffer that every pass in train mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(256, 5), nn.Linear(5, 3)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.temperature = self.temperature * 0.7
        return self.head((self.hidden(x.flatten(1)) / self.temperature).tanh())


class Attention(nn.Module):
    """Fused attention: torch has neither its forward nor its second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Checkpointed(nn.Module):
    """Runs a block with BatchNorm and dropout again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(256, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x.flatten(1), use_reentrant=False))


class Shared(nn.Module):
    """Holds one of its modules twice."""

    def __init__(self) -> None:
        super().__init__()
        twice = nn.Linear(256, 256)
        self.blocks = nn.Sequential(nn.Sequential(twice, nn.Tanh()), nn.Sequential(twice))
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x.flatten(1)))


def mlp() -> nn.Module:
    return BACKBONES["mlp"]((1, 16, 16), 3, hidden=(8, 8))


MODELS = {
    "mlp": mlp,
    "lenet5": lambda: BACKBONES["lenet5"]((1, 16, 16), 3),
    "resnet": Residual,
    "allcnn": lambda: BACKBONES["allcnn"]((1, 16, 16), 3),
    "dropout": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    ),
    "stop_gradient": StopGradient,
    "annealed": Annealed,
    "attention": Attention,
    "checkpointed": Checkpointed,
    "shared": Shared,
    # Smooth, for finite differences; a convolution's bias before BatchNorm among them.
    "tanh_mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.Tanh(), nn.Linear(6, 3)),
    "tanh_batchnorm": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 5, stride=3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
    ),
}
