"""Representations: the learned losses M_φ, and the handcrafted ones they are compared with."""

from metaloss.representations.base import REPRESENTATIONS
from metaloss.registry import import_components

import_components(__name__, __path__)

__all__ = ["REPRESENTATIONS"]
