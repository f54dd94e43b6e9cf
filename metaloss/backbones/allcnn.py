"""AllCNN-C, the all-convolutional net."""

from __future__ import annotations

from typing import Literal

from torch import nn

from metaloss.backbones.base import BACKBONES, kaiming_normal, require_image
from metaloss.config.arguments import Probability

#: Output channels, kernel, stride, padding of each convolution but the last; None is dropout.
LAYERS = (
    (96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 2, 1), None,
    (192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 2, 1), None,
    (192, 3, 1, 1), (192, 1, 1, 0),
)  # fmt: skip


@BACKBONES.register("allcnn")
def allcnn(
    input_shape: tuple[int, ...],
    outputs: int,
    dropout: Probability = 0.5,
    pooling: Literal["whole", "corner"] = "whole",
) -> nn.Module:
    """Nine convolutions with BatchNorm, strides in place of pooling (Springenberg et al., 2014).

    1,372,254 parameters for 3 channels and 10 outputs. As in the authors' earlier code: no ReLU
    before a dropout or before the average, Kaiming-normal weights.

    Args:
        dropout: probability after the third and the sixth convolution.
        pooling: "whole" averages over the whole last map, "corner" over its top-left 6x6 alone, as
            that code does.
    """
    require_image(input_shape, "allcnn", smallest=8 if pooling == "whole" else 24)
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for layer in LAYERS:
        if layer is None:
            layers[-1] = nn.Dropout(dropout)  # in the place of the ReLU
            continue
        width, kernel, stride, padding = layer
        layers += [
            nn.Conv2d(channels, width, kernel, stride, padding),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    layers += [nn.Conv2d(channels, outputs, 1), nn.BatchNorm2d(outputs)]
    corner = nn.AvgPool2d(6, stride=max(input_shape))  # beyond the map: one window
    layers += [nn.AdaptiveAvgPool2d(1) if pooling == "whole" else corner, nn.Flatten()]
    model = nn.Sequential(*layers)
    kaiming_normal(model)
    return model
