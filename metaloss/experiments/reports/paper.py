"""The paper's tables: their numbers, and the configuration behind each of their cells.

The numbers and the columns are data, in `paper.json`; what a cell was made with is what the shipped
gin files say: a task file, a method file, and the column's own bindings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from metaloss import config
from metaloss.config.gin_files import bindings_of
from metaloss.errors import ConfigError
from metaloss.experiments import settings
from metaloss.experiments.settings import Settings

#: What makes a run one of its column, beside the column's own bindings.
STRUCTURE = ("Runner.representation", "Runner.initialization", "Runner.adaptation")


PAIR = ("Runner.task", "Runner.backbone")


@dataclass(frozen=True)
class Value:
    """A number of the paper: mean and standard deviation over 10 seeds."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        method: the method file.
        bindings: what makes it a column, beside the method file, as gin statements.
    """

    title: str
    method: str
    bindings: tuple[str, ...] = ()

    @cached_property
    def chosen(self) -> frozenset[str]:
        """The parameters that its bindings set."""
        return frozenset(bindings_of("\n".join(self.bindings), self.title))


@dataclass(frozen=True)
class Pair:
    """A task and a base model of the paper."""

    file: str  #: of the task, in gin_configs
    task: str
    model: str

    @property
    def name(self) -> str:
        """The file's stem, as "mnist_lenet5"."""
        return Path(self.file).stem


@dataclass(frozen=True)
class PaperTable:
    """A table of test errors.

    Attributes:
        number: in the paper.
        title: ours.
        caption: what its numbers are.
        columns: its columns.
        focus: the column that others are compared with.
        values: a row of numbers for each pair, None where the paper has a dash.
    """

    number: int
    title: str
    caption: str
    columns: tuple[Column, ...]
    focus: int
    values: Mapping[str, tuple[Value | None, ...]]


@dataclass(frozen=True)
class Paper:
    """All numbers of the paper's tables.

    Attributes:
        source: where they are from.
        pairs: the rows of Table 1.
        tables: 1 and 3-7.
        hours: Table 2: run times of the columns of Table 1, by pair.
    """

    source: str
    pairs: tuple[Pair, ...]
    tables: tuple[PaperTable, ...]
    hours: Mapping[str, tuple[float, ...]]

    def number_of(self, settings: Settings) -> Value | None:
        """The number in Table 1 of a run's task, base model and method, whatever else it sets."""
        (table,) = (table for table in self.tables if table.number == 1)
        for pair in self.pairs:
            for column, value in zip(table.columns, table.values[pair.name], strict=True):
                shipped = settings_of(pair, column)
                if (
                    shipped is not None
                    and column.method.removesuffix("_letter")
                    == settings.method.removesuffix("_letter")
                    and all(shipped.component(n) == settings.component(n) for n in PAIR)
                ):
                    return value
        return None


@cache
def load() -> Paper:
    """Reads the numbers."""
    content = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
    return Paper(
        content["source"],
        tuple(Pair(pair["file"], *pair["titles"]) for pair in content["pairs"]),
        tuple(
            PaperTable(
                table["number"],
                table["title"],
                table["caption"],
                tuple(
                    Column(**{**column, "bindings": tuple(column.get("bindings", ()))})
                    for column in table["columns"]
                ),
                table["focus"],
                {
                    pair: tuple(Value(*value) if value else None for value in row)
                    for pair, row in table["values"].items()
                },
            )
            for table in content["tables"]
        ),
        {pair: tuple(hours) for pair, hours in content["hours"].items()},
    )


@cache
def settings_of(pair: Pair, column: Column) -> Settings | None:
    """What the shipped gin files give for a cell; None if this version has no such file or part."""
    try:
        text = config.load([pair.file, f"methods/{column.method}.gin"], column.bindings).text
    except ConfigError:
        return None
    return settings.read(text, column.title)
