"""Any model of timm, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from metaloss.backbones.base import BACKBONES, require_image
from metaloss.errors import ConfigError, did_you_mean


@BACKBONES.register("timm")
def timm(
    input_shape: tuple[int, ...],
    outputs: int,
    name: str,
    arguments: dict[str, Any] | None = None,
) -> nn.Module:
    """`timm.create_model(name)` without pretrained weights, sized for the task.

    `in_chans` and `num_classes` come from the task.

    Args:
        name: a timm model, such as "resnet18"; see `timm.list_models()`.
        arguments: further arguments of `timm.create_model`, such as {"img_size": 32}.
    """
    import timm as library  # 2 s, and only for who uses it

    if not library.is_model(name):
        raise ConfigError(
            f"backbones.timm.name: timm {library.__version__} has no model '{name}'"
            f"{did_you_mean(name, library.list_models())}"
        )
    require_image(input_shape, f"timm(name='{name}')", smallest=1)
    return library.create_model(
        name, in_chans=input_shape[0], num_classes=outputs, **(arguments or {})
    )
