"""No weight decay on norms and biases."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metaloss.base_optimizers.groupings.base import GROUPINGS, Groups


@GROUPINGS.register("no_decay")
def no_decay(model: nn.Module, names: Sequence[str] = ()) -> Groups:
    """Weight decay for weights alone, by `timm.optim.param_groups_weight_decay`.

    None of it for what has one dimension, as biases and the scales of norms, for what the model
    names itself (timm's `no_weight_decay`, as position embeddings), and for `names`.

    Args:
        names: patterns of further parameters without weight decay.
    """
    from timm.optim import param_groups_weight_decay

    groups: Groups = param_groups_weight_decay(
        model, weight_decay=1.0, no_weight_decay_list=[*own_exceptions(model), *names]
    )
    return with_optimizers_decay(groups)


def own_exceptions(model: nn.Module) -> list[str]:
    """Names of the parameters that a model of timm excepts from weight decay."""
    found = getattr(model, "no_weight_decay", None)
    return sorted(found()) if callable(found) else []


def with_optimizers_decay(groups: Groups) -> Groups:
    """Groups of timm, whose weight decay is 0 or not, with the optimizer's where it is not."""
    for group in groups:
        if group["weight_decay"]:
            del group["weight_decay"]
    return groups
