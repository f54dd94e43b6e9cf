"""Callbacks: who is told how a run goes, for trackers of experiments and for one's own ends."""

from metaloss.config.registry import import_components
from metaloss.runs.callbacks.base import CALLBACKS

import_components(__name__, __path__)

__all__ = ["CALLBACKS"]
