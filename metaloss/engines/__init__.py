"""Engines: ways to differentiate the task loss through steps of the base optimizer."""

from metaloss.engines.base import ENGINES
from metaloss.registry import import_components

import_components(__name__, __path__)

__all__ = ["ENGINES"]
