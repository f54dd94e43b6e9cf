"""Launchers: what starts the runs of a sweep, on this machine or on many."""

from metaloss.config.registry import import_components
from metaloss.experiments.launchers.base import LAUNCHERS

import_components(__name__, __path__)

__all__ = ["LAUNCHERS"]
