"""ResNet-18 for small images."""

from __future__ import annotations

from torch import nn

from metaloss.backbones.base import BACKBONES, kaiming_normal, require_image


@BACKBONES.register("resnet18")
def resnet18(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """torchvision's ResNet-18 with the stem for 32x32 images: 3x3, stride 1, no max pooling.

    He et al., 2016; 11,173,962 parameters for 3 channels and 10 outputs. Kaiming-normal, the linear
    layer included, as in the authors' earlier code.
    """
    from torchvision.models import resnet18 as library

    require_image(input_shape, "resnet18", smallest=8)
    model = library(num_classes=outputs)
    model.conv1 = nn.Conv2d(input_shape[0], 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    kaiming_normal(model)
    return model
