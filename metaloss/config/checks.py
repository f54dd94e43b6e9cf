"""Checks of component arguments, for what an annotation cannot say and for callers in Python."""

from __future__ import annotations

from collections.abc import Iterable

from metaloss.errors import ConfigError, did_you_mean


def choice(value: object, name: str, known: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of the known words."""
    known = tuple(known)
    if value not in known:
        near = did_you_mean(str(value), known)
        raise ConfigError(f"{name} = {value!r} is unknown{near} · known: {', '.join(known)}")


def integer(value: object, name: str, minimum: int) -> None:
    """Raises ConfigError unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} = {value!r}: give an integer of at least {minimum}")


def integers(values: object, name: str, minimum: int) -> None:
    """Raises ConfigError unless `values` is a list or tuple of integers of at least `minimum`."""
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"{name} = {values!r}: give a list of integers")
    for value in values:
        integer(value, name, minimum)


def number(value: object, name: str, above: float = 0.0, below: float = float("inf")) -> None:
    """Raises ConfigError unless `value` is a number strictly between the bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < below:
        upper = "" if below == float("inf") else f" and below {below:g}"
        raise ConfigError(f"{name} = {value!r}: give a number above {above:g}{upper}")
