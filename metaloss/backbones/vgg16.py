"""VGG-16 for small images."""

from __future__ import annotations

from torch import nn

from metaloss.backbones.base import BACKBONES, kaiming_normal, require_image


@BACKBONES.register("vgg16")
def vgg16(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """torchvision's VGG-16 with BatchNorm, its three linear layers replaced by a single one.

    Configuration D of Simonyan & Zisserman, 2015; 14,728,266 parameters for 3 channels and 10
    outputs. Kaiming-normal, no dropout, as in the authors' earlier code.
    """
    from torchvision.models.vgg import cfgs, make_layers

    require_image(input_shape, "vgg16", smallest=32)
    features = make_layers(cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(input_shape[0], 64, 3, padding=1)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs))
    kaiming_normal(model)
    return model
