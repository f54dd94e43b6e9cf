"""AllCNN-C, the all-convolutional net."""

from __future__ import annotations

from torch import nn

from metaloss.backbones.base import BACKBONES, require_image

#: Output channels, kernel, stride, padding of each convolution but the last; None is dropout.
LAYERS = (
    (96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 2, 1), None,
    (192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 2, 1), None,
    (192, 3, 1, 1), (192, 1, 1, 0),
)  # fmt: skip


@BACKBONES.register("allcnn")
def allcnn(input_shape: tuple[int, ...], outputs: int, dropout: float = 0.5) -> nn.Module:
    """Nine convolutions with BatchNorm, strides in place of pooling (Springenberg et al., 2014).

    1,372,254 parameters for 3 channels and 10 outputs. As the authors' code has it: no ReLU before
    a dropout, Kaiming-normal weights. Unlike it, the average is taken over the whole last map, not
    its top-left 6x6 corner.

    Args:
        dropout: probability after the third and the sixth convolution.
    """
    require_image(input_shape, "allcnn", smallest=8)
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
    layers += [nn.Conv2d(channels, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model
