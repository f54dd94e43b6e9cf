"""Wide residual networks for small images."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge
from torch import nn

from metaloss.backbones.base import BACKBONES, require_image
from metaloss.config.arguments import PositiveInt, Probability
from metaloss.errors import ArgumentError


@BACKBONES.register("wide_resnet")
def wide_resnet(
    input_shape: tuple[int, ...],
    outputs: int,
    depth: Annotated[int, Ge(10)] = 28,
    width: PositiveInt = 10,
    dropout: Probability = 0.0,
) -> nn.Module:
    """WRN-depth-width (Zagoruyko & Komodakis, 2016), of timm's pre-activation ResNet.

    Three stages of (depth - 4) / 6 basic blocks, and a 3x3 stem of stride 1. As in the authors'
    earlier code: convolutions from N(0, 2 / fan out), Xavier-uniform head, no dropout. Parameters
    for 3 channels: WRN-28-10 36,479,194 with 10 outputs and 36,536,884 with 100, WRN-16-8
    10,961,370 with 10.

    Args:
        depth: convolutions from stem to head along the residual branches, 6 n + 4.
        width: factor of the stages' channels 16, 32, 64.
        dropout: probability between the convolutions of each block; the paper takes none.
    """
    import timm

    require_image(input_shape, "wide_resnet", smallest=8)
    if depth % 6 != 4:
        raise ArgumentError("depth", depth, "6 n + 4, such as 16 or 28")
    model: Any = timm.create_model(
        "resnetv2_18", layers=3 * (depth // 6,), channels=(16 * width, 32 * width, 64 * width),
        stem_chs=16, num_classes=outputs,
    )  # fmt: skip
    model.stem = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
    for stage in model.stages:
        for block in stage.blocks:
            block.norm2 = nn.Sequential(block.norm2, nn.Dropout(dropout))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.xavier_uniform_(model.head.fc.weight)
    nn.init.zeros_(model.head.fc.bias)
    return model
