"""Schedules: how base learning rates change over a training."""

from metaloss.base_optimizers.schedules.base import SCHEDULES
from metaloss.config.registry import import_components

import_components(__name__, __path__)

__all__ = ["SCHEDULES"]
