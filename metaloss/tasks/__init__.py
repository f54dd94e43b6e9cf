"""Tasks: data, task loss and metric."""

from metaloss.config.registry import import_components
from metaloss.tasks.base import TASKS

import_components(__name__, __path__)

__all__ = ["TASKS"]
