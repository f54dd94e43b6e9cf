"""Any model of timm, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaloss.backbones.base import BACKBONES, require_image
from metaloss.errors import ArgumentError, ConfigError, did_you_mean, first_line


@BACKBONES.register("timm")
def timm(
    input_shape: tuple[int, ...],
    outputs: int,
    name: str,
    arguments: dict[str, Any] | None = None,
) -> nn.Module:
    """`timm.create_model(name)` without pretrained weights, sized for the task.

    `in_chans` and `num_classes` come from the task. Many models are made for larger images than the
    task's: attention often needs its image size among the arguments, and a convolutional net may
    shrink small images to nothing.

    Args:
        name: a timm model, such as "resnet18"; see `timm.list_models()`.
        arguments: further arguments of `timm.create_model`, such as {"img_size": 32}.
    """
    import timm as library  # 2 s, and only for who uses it

    if not library.is_model(name):
        near = did_you_mean(name, library.list_models())
        raise ArgumentError("name", name, f"a model of timm {library.__version__}{near}")
    require_image(input_shape, f"timm(name='{name}')", smallest=1)
    try:
        model = library.create_model(
            name, in_chans=input_shape[0], num_classes=outputs, **(arguments or {})
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # each model has its own
        raise ArgumentError("arguments", arguments, f"what {name} takes ({error})") from error
    _try(model, input_shape, outputs, name)
    return model


def _try(model: nn.Module, input_shape: tuple[int, ...], outputs: int, name: str) -> None:
    """Raises ConfigError unless the model maps such inputs to so many outputs."""
    try:
        with torch.no_grad():
            found = model.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"backbones.timm: '{name}' cannot take inputs of shape {list(input_shape)} ({reason}): "
            f"backbones.timm.arguments may help, such as {{'img_size': {input_shape[-1]}}}"
        ) from error
    finally:
        model.train()
    if not isinstance(found, Tensor) or found.shape != (1, outputs):
        raise ConfigError(f"backbones.timm: '{name}' does not give [batch, {outputs}] outputs")
