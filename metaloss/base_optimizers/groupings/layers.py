"""Layer-wise learning rates."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le
from torch import nn

from metaloss.base_optimizers.groupings.base import GROUPINGS, Groups
from metaloss.base_optimizers.groupings.no_decay import own_exceptions, with_optimizers_decay
from metaloss.errors import ConfigError


@GROUPINGS.register("layers")
def layers(
    model: nn.Module, decay: Annotated[float, Gt(0), Le(1)] = 0.75, decay_norms: bool = False
) -> Groups:
    """Each layer's rate is `decay` times that of the next, the head's the optimizer's own.

    By `timm.optim.param_groups_layer_decay` (Clark et al., 2020; Bao et al., 2022). Models of timm
    say themselves what their layers are.

    Args:
        decay: from a layer to the one before it.
        decay_norms: weight decay for norms and biases too, see `no_decay`.

    Raises:
        ConfigError: the model does not say what its layers are.
    """
    if not hasattr(model, "group_matcher"):
        raise ConfigError(
            f"groupings.layers: {type(model).__name__} does not say what its layers are, as models "
            "of timm do: groupings.patterns takes rates by names"
        )
    from timm.optim import param_groups_layer_decay

    groups: Groups = param_groups_layer_decay(
        model,
        weight_decay=1.0,
        no_weight_decay_list=[] if decay_norms else own_exceptions(model),
        weight_decay_exclude_1d=not decay_norms,
        layer_decay=decay,
    )
    return with_optimizers_decay(groups)
