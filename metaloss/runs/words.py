"""How the numbers of a run are said to a person: to the digits that mean something."""

from __future__ import annotations

UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "days"))


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "45 s", "12 min", "3.4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    size, unit = [(size, unit) for size, unit in UNITS if seconds >= 1.5 * size][-1]
    count = seconds / size
    return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"


def number(value: float, digits: int = 3) -> str:
    """A measured number."""
    return f"{value:.{digits}g}"


def rate(value: float) -> str:
    """How many there are a second: "2.5", "1,380"."""
    return f"{value:,.0f}" if value >= 100 else number(value)


def size(count: int) -> str:
    """Bytes in the unit that suits them: "820 MiB", "1.3 GiB"."""
    mebibytes = count / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def named(name: str, learned: bool) -> str:
    """A number of metrics.jsonl as it is spoken of.

    Args:
        learned: whether there is a learned loss; the column of it is else the task loss that a
            baseline descends, or the fixed loss that stands in its place.
    """
    return "loss" if name == "learned_loss" and not learned else name.replace("_", " ")
