"""Embeddings whose gradient is not the derivative of what they give out.

`padding_idx` leaves a row without gradient, `scale_grad_by_freq` divides gradients by counts, and
`max_norm` changes the weight within the forward pass. The first is followed in forward mode (see
forward_mode.py) and by double backward; the others are followed by neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from metaloss.errors import UnsupportedModelError

Embedding = nn.Embedding | nn.EmbeddingBag


def refuse_untrue_gradients(model: nn.Module, theta: Iterable[nn.Parameter]) -> None:
    """Raises UnsupportedModelError for an embedding that no engine differentiates as it trains."""
    for embedding in _trained(model, theta):
        for argument in ("max_norm", "scale_grad_by_freq"):
            if getattr(embedding, argument):
                raise UnsupportedModelError(
                    f"the model has {embedding}, whose {argument} makes its gradient another than "
                    "its derivative: leave it out, or freeze its weight"
                )


def refuse_tied_padding(model: nn.Module, theta: Iterable[nn.Parameter]) -> None:
    """Raises UnsupportedModelError for a padding row that another layer's gradient moves."""
    held = [p for module in model.modules() for p in module.parameters(recurse=False)]
    for embedding in _trained(model, theta):
        tied = sum(parameter is embedding.weight for parameter in held) > 1
        if embedding.padding_idx is not None and tied:
            raise UnsupportedModelError(
                f"the model has {embedding}, whose weight another layer has too: its padding row "
                "moves, but not by its own gradient, which a difference of outputs does not see"
            )


def _trained(model: nn.Module, theta: Iterable[nn.Parameter]) -> Iterator[Embedding]:
    trained = set(theta)
    for module in model.modules():
        if isinstance(module, Embedding) and module.weight in trained:
            yield module
