"""Meta-optimizers: how the meta-parameters improve, offline or online."""

from metaloss.config.registry import import_components
from metaloss.meta_optimizers.base import META_OPTIMIZERS

import_components(__name__, __path__)

__all__ = ["META_OPTIMIZERS"]
