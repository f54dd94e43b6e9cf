"""Meta-optimizers: how the meta-parameters improve, offline or online."""

from metaloss.meta_optimizers.base import META_OPTIMIZERS
from metaloss.registry import import_components

import_components(__name__, __path__)

__all__ = ["META_OPTIMIZERS"]
