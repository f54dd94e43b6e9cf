"""The rows of a benchmark as a markdown table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measure import Row

COLUMNS = ("model", "batch", "contender", "ms / step", "x baseline", "peak MiB", "turns")
HEAD = "| " + " | ".join(COLUMNS) + " |\n|" + len(COLUMNS) * "---|"


def lines(rows: Sequence[Row]) -> str:
    """The rows as lines of a markdown table with the head `HEAD`."""
    return "\n".join(
        "| " + " | ".join((row.model, str(row.batch_size), row.contender, *_numbers(row))) + " |"
        for row in rows
    )


def _numbers(row: Row) -> tuple[str, ...]:
    if row.milliseconds is None or row.ratio is None:
        return row.note, "", "", ""
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}"
    return f"{row.milliseconds:.2f}", f"{row.ratio:.2f}", peak, str(row.turns)


def as_markdown(conditions: dict[str, Any], rows: Sequence[Row]) -> str:
    """A document: the conditions, and the table."""
    return f"{sentence(conditions)}\n\n{HEAD}\n{lines(rows)}\n"


def as_json(conditions: dict[str, Any], rows: Sequence[Row]) -> str:
    """{"conditions": {...}, "rows": [{...}, ...]}."""
    found = {"conditions": conditions, "rows": [asdict(row) for row in rows]}
    return json.dumps(found, indent=2) + "\n"


def sentence(conditions: dict[str, Any]) -> str:
    """The conditions in one line."""
    return ", ".join(f"{name} {value}" for name, value in conditions.items())
