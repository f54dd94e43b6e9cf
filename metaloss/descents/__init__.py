"""Descents: how the meta-parameters move along their gradient."""

from metaloss.descents.base import DESCENTS
from metaloss.registry import import_components

import_components(__name__, __path__)

__all__ = ["DESCENTS"]
