"""Groupings: parameters that are trained at other rates than others, or without weight decay."""

from metaloss.base_optimizers.groupings.base import GROUPINGS
from metaloss.config.registry import import_components

import_components(__name__, __path__)

__all__ = ["GROUPINGS"]
