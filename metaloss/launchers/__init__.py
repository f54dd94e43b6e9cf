"""Launchers: what starts the runs of a sweep, on this machine or on many."""

from metaloss.launchers.base import LAUNCHERS
from metaloss.registry import import_components

import_components(__name__, __path__)

__all__ = ["LAUNCHERS"]
