"""Tasks: data, task loss and metric."""

from metaloss.tasks.base import TASKS
from metaloss.registry import import_components

import_components(__name__, __path__)

__all__ = ["TASKS"]
