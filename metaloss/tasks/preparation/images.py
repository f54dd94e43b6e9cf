"""Images as they are stored: normalised and augmented a batch at a time, on their own device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """How stored images [n, channels, height, width], bytes or floats, become a model's inputs.

    In torchvision's terms and order `RandomCrop(size, padding)`, `RandomHorizontalFlip()`,
    `ToTensor()`, `Normalize(mean, deviation)`, so that what is padded is black; but for a batch at
    once, with every example's own offsets and flip, on the device that holds the images.

    Attributes:
        mean, deviation: of the training pixels by channel, [channels, 1, 1]; of bytes, in [0, 1].
        padding: pixels of black around an image before a window of its size is cut out; 0: no crop.
        flip: mirror every other image, left to right.
    """

    mean: Tensor
    deviation: Tensor
    padding: int = 0
    flip: bool = False

    def prepare(self, stored: Tensor) -> Tensor:
        """Normalised float32, without augmentation: what evaluation sees."""
        pixels = stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()
        return (pixels - self.mean) / self.deviation

    def undo(self, prepared: Tensor) -> Tensor:
        """Stored images as floats, of prepared ones; of bytes, in [0, 1]."""
        return prepared * self.deviation + self.mean

    def augment(
        self,
        stored: Tensor,
        generator: torch.Generator,
        batch: int | None = None,
        taken: slice = slice(None),
    ) -> Tensor:
        """A random window and side of each stored image; equal for equal generator states.

        All (2 · padding + 1)² windows are equally likely. The generator is the CPU's, wherever the
        images are, and is left alone where there is nothing to draw. Of what is `taken` of a larger
        `batch`, each image gets what it gets in the whole one.
        """
        n, _, height, width = stored.shape
        windows = self.windows((height, width), generator, n if batch is None else batch, taken)
        return stored if windows is None else self.cut(stored, windows)

    def windows(
        self, size: tuple[int, int], generator: torch.Generator, batch: int, taken: slice
    ) -> Tensor | None:
        """The rows and columns of each image's window; None where nothing is augmented.

        Args:
            size: height and width of an image.

        Returns:
            [images, height + width], of the padded image, on the CPU.
        """
        if not self.padding and not self.flip:
            return None
        height, width = size
        offsets = torch.randint(2 * self.padding + 1, (2, batch), generator=generator)[:, taken]
        flipped = torch.rand(batch, generator=generator)[taken] < 0.5 * self.flip
        rows = offsets[0, :, None] + torch.arange(height)
        columns = offsets[1, :, None] + torch.arange(width)
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
        return torch.cat([rows, columns], 1)

    def cut(self, stored: Tensor, windows: Tensor) -> Tensor:
        """The windows of stored images, see `windows`."""
        n, channels, height, width = stored.shape
        windows = windows.to(stored.device, non_blocking=True)
        rows, columns = windows.split([height, width], 1)
        padded = F.pad(stored, [self.padding] * 4)
        return padded[
            torch.arange(n, device=stored.device)[:, None, None, None],
            torch.arange(channels, device=stored.device)[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def plain(self) -> dict[str, Any]:
        """What a run keeps, on the CPU."""
        return {
            "mean": self.mean.cpu(),
            "deviation": self.deviation.cpu(),
            "padding": self.padding,
            "flip": self.flip,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Images:
        """The preparation that `plain` described, its tensors perhaps as lists."""
        mean, deviation = (
            torch.as_tensor(plain[name], dtype=torch.float32) for name in ("mean", "deviation")
        )
        return cls(mean, deviation, plain["padding"], plain["flip"])

    def to(self, device: torch.device) -> Images:
        """The same for images on a device."""
        return replace(self, mean=self.mean.to(device), deviation=self.deviation.to(device))


def mean_and_deviation(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the pixels by channel, [channels, 1, 1]; of bytes, in [0, 1].

    In double precision, a few images at a time. The deviation of a constant channel is 1.
    """
    scale = 255 if stored.dtype == torch.uint8 else 1
    count = stored.numel() / stored.shape[1]

    def mean(function: Callable[[Tensor], Tensor]) -> Tensor:
        sums = [function(part.double() / scale).sum((0, 2, 3)) for part in stored.split(1000)]
        return torch.stack(sums).sum(0)[:, None, None] / count

    center = mean(lambda pixels: pixels)
    deviation = mean(lambda pixels: (pixels - center).square()).sqrt()
    return center.float(), deviation.where(deviation > 0, 1.0).float()


def by_channel(values: tuple[float, ...]) -> Tensor:
    """One number for each channel, shaped to meet images; [channels, 1, 1]."""
    return torch.tensor(values)[:, None, None]
