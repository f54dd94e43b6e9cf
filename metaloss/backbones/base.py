"""What a backbone is: a recipe for a base model f_θ, called with the sizes only the task knows.

Contract, held by `metaloss.testing.check_backbone`: `recipe(input_shape, outputs, ...)` returns an
ordinary nn.Module that maps inputs `[batch, *input_shape]` to outputs [batch, outputs] (logits in
classification), drawn from torch's global generator; it is double-precision clean and supports one
forward-mode pass. Sizes it cannot serve raise ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metaloss.config.registry import Registry
from metaloss.errors import ConfigError

BACKBONES = Registry("backbones", supplied=("input_shape", "outputs"))


def xavier_uniform(model: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, in convolutions and linear layers."""
    _draw(model, nn.init.xavier_uniform_)


def kaiming_normal(model: nn.Module) -> None:
    """Kaiming-normal weights (fan in, gain √2) and zero biases, likewise."""
    _draw(model, nn.init.kaiming_normal_)


def _draw(model: nn.Module, initialize: Callable[[Tensor], object]) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            initialize(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def require_image(input_shape: tuple[int, ...], backbone: str, smallest: int) -> None:
    """Refuses a task for a backbone of images.

    Raises:
        ConfigError: the inputs are no images of at least `smallest` pixels a side.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ConfigError(
            f"backbones.{backbone} takes images [channels, height, width] of at least "
            f"{smallest}x{smallest}; this task's inputs have shape {list(input_shape)}"
        )
