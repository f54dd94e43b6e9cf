"""Representations: the learned losses M_φ, and the handcrafted ones they are compared with."""

from metaloss.config.registry import import_components
from metaloss.representations.base import REPRESENTATIONS

import_components(__name__, __path__)

__all__ = ["REPRESENTATIONS"]
