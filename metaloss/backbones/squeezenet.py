"""SqueezeNet for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaloss.backbones.base import BACKBONES, require_image, xavier_uniform

#: Output channels, squeezed channels and bypass of each fire module; None is a max pooling.
LAYERS = (
    (128, 16, False), (128, 16, True), (256, 32, False), None,
    (256, 32, True), (384, 48, False), (384, 48, True), (512, 64, False), None,
    (512, 64, False),
)  # fmt: skip


@BACKBONES.register("squeezenet")
def squeezenet(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Eight fire modules with BatchNorm, some with a bypass (Iandola et al., 2016).

    734,986 parameters for 3 channels and 10 outputs. As in the authors' earlier code: a 3x3 stem of
    stride 1, BatchNorm after every convolution but the last, no dropout, Xavier-uniform.
    torchvision's has neither BatchNorm nor bypasses.
    """
    require_image(input_shape, "squeezenet", smallest=8)
    channels = 96
    layers: list[nn.Module] = [_convolution(input_shape[0], channels, 3), nn.MaxPool2d(2)]
    for layer in LAYERS:
        if layer is None:
            layers.append(nn.MaxPool2d(2))
            continue
        width, squeezed, bypass = layer
        layers.append(Fire(channels, squeezed, width, bypass))
        channels = width
    layers += [nn.Conv2d(channels, outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers)
    xavier_uniform(model)
    return model


class Fire(nn.Module):
    """1x1 down to few channels, then 1x1 and 3x3 side by side up to half the width each.

    Args:
        channels: of the input.
        squeezed: channels in between.
        width: channels of the output.
        bypass: adds the input to the output; they have equally many channels then.
    """

    def __init__(self, channels: int, squeezed: int, width: int, bypass: bool) -> None:
        super().__init__()
        self.squeeze = _convolution(channels, squeezed, 1)
        self.expand1x1 = _convolution(squeezed, width // 2, 1)
        self.expand3x3 = _convolution(squeezed, width // 2, 3)
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        expanded = torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1)
        return expanded + x if self.bypass else expanded


def _convolution(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()
    )
