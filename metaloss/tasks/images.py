"""Images kept as bytes: normalised and augmented a batch at a time, on their own device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """How stored images, uint8 [n, channels, height, width], become a model's inputs.

    In torchvision's terms and order `RandomCrop(size, padding)`, `RandomHorizontalFlip()`,
    `ToTensor()`, `Normalize(mean, deviation)`, so that what is padded is black; but for a batch at
    once, with every example's own offsets and flip, on the device that holds the images.

    Attributes:
        mean, deviation: of the training pixels in [0, 1], by channel; [channels, 1, 1].
        padding: pixels of black around an image before a window of its size is cut out; 0: no crop.
        flip: mirror every other image, left to right.
    """

    mean: Tensor
    deviation: Tensor
    padding: int = 0
    flip: bool = False

    def prepare(self, stored: Tensor) -> Tensor:
        """Normalised float32, without augmentation: what evaluation sees."""
        return (stored.float() / 255 - self.mean) / self.deviation

    def augment(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """A random window and side of each image, still uint8; equal for equal generator states.

        All (2 · padding + 1)² windows are equally likely. The generator is the CPU's, wherever the
        images are, and is left alone where there is nothing to draw.
        """
        if not self.padding and not self.flip:
            return stored
        n, channels, height, width = stored.shape
        offsets = torch.randint(2 * self.padding + 1, (2, n), generator=generator)
        flipped = torch.rand(n, generator=generator) < 0.5 * self.flip
        rows = offsets[0, :, None] + torch.arange(height)
        columns = offsets[1, :, None] + torch.arange(width)
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
        rows, columns = torch.cat([rows, columns], 1).to(stored.device).split([height, width], 1)
        padded = F.pad(stored, [self.padding] * 4)
        return padded[
            torch.arange(n, device=stored.device)[:, None, None, None],
            torch.arange(channels, device=stored.device)[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def to(self, device: torch.device) -> Images:
        """The same for images on a device."""
        return replace(self, mean=self.mean.to(device), deviation=self.deviation.to(device))


def by_channel(values: tuple[float, ...]) -> Tensor:
    """One number for each channel, shaped to meet images; [channels, 1, 1]."""
    return torch.tensor(values)[:, None, None]
