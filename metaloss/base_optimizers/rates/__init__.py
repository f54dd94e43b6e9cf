"""Rates: parametrisations of a learned base learning rate."""

from metaloss.base_optimizers.rates.base import RATES
from metaloss.config.registry import import_components

import_components(__name__, __path__)

__all__ = ["RATES"]
