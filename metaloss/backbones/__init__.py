"""Backbones: recipes for base models f_θ."""

from metaloss.backbones.base import BACKBONES
from metaloss.config.registry import import_components

import_components(__name__, __path__)

__all__ = ["BACKBONES"]
