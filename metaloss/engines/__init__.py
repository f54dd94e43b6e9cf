"""Engines: ways to differentiate the task loss through steps of the base optimizer."""

from metaloss.config.registry import import_components
from metaloss.engines.base import ENGINES

import_components(__name__, __path__)

__all__ = ["ENGINES"]
