"""A backbone as a plugin: two convolutions, for pictures of 8x8 pixels."""

from torch import nn

from metaloss.backbones.base import BACKBONES, require_image
from metaloss.config.arguments import PositiveInt


@BACKBONES.register("small_conv")
def small_conv(input_shape: tuple[int, ...], outputs: int, channels: PositiveInt = 12) -> nn.Module:
    """Two 3x3 convolutions, each halved by its maxima, and a linear layer.

    Args:
        channels: of the first convolution; the second has twice as many.
    """
    require_image(input_shape, "small_conv", smallest=4)
    depth, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(depth, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * channels * (height // 4) * (width // 4), outputs),
    )  # fmt: skip
