"""Descents: how the meta-parameters move along their gradient."""

from metaloss.config.registry import import_components
from metaloss.meta_optimizers.descents.base import DESCENTS

import_components(__name__, __path__)

__all__ = ["DESCENTS"]
