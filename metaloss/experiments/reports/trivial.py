"""The table of trivial references: what a constant and a linear model reach on some tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metaloss.experiments.reports.document import Document, Section
from metaloss.experiments.reports.tables import Cell, Table, number, without_repeats
from metaloss.experiments.statistics import summarize
from metaloss.runs.references import Reference


def document(found: Mapping[str, Sequence[Reference]]) -> Document:
    """The references of each task, by a name for its rows."""
    rows = []
    for name, references in found.items():
        for reference in references:
            over = summarize(list(reference.errors))
            error = (over.deviation or 0.0) / over.n**0.5
            texts = (reference.name, number(over.mean), number(error), str(over.n))
            rows.append((Cell(name, "name"), *map(Cell, texts)))
    table = Table(
        "Trivial references",
        "Test error of models that are fitted to the training split. The standard error is that of "
        "the mean over the test examples.",
        ("Task", "Model", "test", "standard error", "test examples"),
        without_repeats(rows, 1),
        1,
    )
    return Document("References", [Section("A constant and a linear model", [table])])
