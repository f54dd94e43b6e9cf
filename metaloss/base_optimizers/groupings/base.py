"""What a grouping is: a model's parameters in groups, for its optimizer.

Contract, held by `metaloss.testing.check_grouping`: `recipe(model, ...)` returns groups as
torch.optim takes them, which hold every parameter of the model once. A group may have an
`lr_scale`, the multiple of the optimizer's learning rate that it has (1 where it says none), and
settings of its own, as `weight_decay`; others are the optimizer's.
"""

from __future__ import annotations

from typing import Any

from metaloss.config.registry import Registry

Groups = list[dict[str, Any]]

GROUPINGS = Registry("groupings", supplied=("model",))
