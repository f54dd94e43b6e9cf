"""What a backbone is: a recipe for a base model f_θ, called with the sizes only the task knows.

Contract, held by `metaloss.testing.check_backbone`: `recipe(input_shape, outputs, ...)` returns an
ordinary nn.Module that maps inputs `[batch, *input_shape]` to outputs [batch, outputs] (logits in
classification), drawn from torch's global generator; it is double-precision clean and supports one
forward-mode pass. Sizes it cannot serve raise ConfigError. What a person should know of how it was
made, it may say in the attribute `notes`, a tuple of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from metaloss.config.registry import Registry
from metaloss.errors import ConfigError

BACKBONES = Registry("backbones", supplied=("input_shape", "outputs"))

#: Called with a recipe's own arguments: `size`, `mean`, `deviation` and `interpolation` of the
#: pictures that its weights were trained on, or nothing where it has no such weights.
Pictured = Callable[..., Mapping[str, Any]]


class Pictures(dict[str, Pictured]):
    """How the pictures of pretrained backbones were made, by the backbone's name."""

    def of(self, name: str) -> Callable[[Pictured], Pictured]:
        """A decorator that enters the answer for one backbone."""

        def enter(answer: Pictured) -> Pictured:
            self[name] = answer
            return answer

        return enter


PICTURES = Pictures()

_blank: ContextVar[bool] = ContextVar("blank", default=False)


@contextmanager
def blank() -> Iterator[None]:
    """Within it recipes read no pretrained weights: all values come from elsewhere afterwards."""
    before = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(before)


def without_weights() -> bool:
    """Whether a recipe should leave pretrained weights unread, see `blank`."""
    return _blank.get()


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
