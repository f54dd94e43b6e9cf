"""Base optimizers: recipes for torch.optim objects, each with its certified `Update`."""

from metaloss.base_optimizers.base import BASE_OPTIMIZERS
from metaloss.config.registry import import_components

import_components(__name__, __path__)

__all__ = ["BASE_OPTIMIZERS"]
