"""Links: how a model's outputs and the labels become the (prediction, target) that a loss sees.

A link maps `(outputs [batch, C], labels)` to two tensors [batch, C] and is twice differentiable in
the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaloss.errors import InputError


def probabilities(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classification: softmax probabilities and one-hot targets (paper, section 5.7).

    Args:
        outputs: logits, [batch, C].
        labels: class indices, [batch], integer.
    """
    one_hot = torch.zeros_like(outputs).scatter_(-1, labels.unsqueeze(-1), 1.0)
    return outputs.softmax(-1), one_hot


def values(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Regression: the outputs and the labels as they are, both [batch, C].

    Raises:
        InputError: their shapes differ; broadcasting would compare every output with every label.
    """
    if outputs.shape != labels.shape:
        raise InputError(
            f"the model gives outputs {list(outputs.shape)} for labels {list(labels.shape)}: "
            "regression needs equal shapes"
        )
    return outputs, labels


def by_labels(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`values` for floating-point labels, `probabilities` for integer labels.

    Args:
        outputs: [batch, C].
        labels: class indices [batch], or values [batch, C].

    Raises:
        InputError: values of another shape than the outputs'.
    """
    return (values if torch.is_floating_point(labels) else probabilities)(outputs, labels)
