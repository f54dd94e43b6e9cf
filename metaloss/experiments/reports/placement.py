"""Placement: which groups of runs stand in which cell of the paper's tables.

A group belongs to a column by what makes the column: task, base model, learned loss, the two
meta-optimizers and the column's own bindings. Other settings may differ from those of the shipped
gin files; such groups get a line of their own that says so, and are never averaged with others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from metaloss.experiments.groups import Group, compared_by_seed
from metaloss.experiments.reports.paper import (
    STRUCTURE,
    Column,
    Pair,
    Paper,
    PaperTable,
    Value,
    settings_of,
)
from metaloss.experiments.settings import METHOD, WATCHING, Difference, component_of, describe
from metaloss.experiments.statistics import Comparison, corrected

IGNORED = WATCHING | {METHOD}


@dataclass(frozen=True)
class Result:
    """A cell: our runs, and the paper's number where the settings are those of its column."""

    column: Column
    group: Group | None
    paper: Value | None = None
    comparison: Comparison | None = None  #: the focus's runs less these


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        pair: task and base model.
        difference: in what its runs differ from the shipped gin files.
        results: one a column.
    """

    pair: Pair
    difference: Difference
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Filled:
    """A table of the paper with our runs in it."""

    table: PaperTable
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class _Home:
    """The cell that a group is nearest to."""

    table: int
    pair: Pair
    difference: Difference


def fill(paper: Paper, groups: Sequence[Group]) -> tuple[list[Filled], list[Group]]:
    """Puts groups into the paper's tables.

    Returns:
        The tables that have runs of their own, every row of them; and the groups that belong to
        none.
    """
    index = _Index(paper, [group for group in groups if not group.settings.own_loop])
    homes = {g: None if g.settings.own_loop else index.home(g) for g in groups}
    filled = []
    for table in paper.tables:
        own = [home for home in homes.values() if home is not None and home.table == table.number]
        pairs = [pair for pair in paper.pairs if pair.name in table.values]
        if own:
            lines = [line for pair in pairs for line in _lines(table, pair, own, index)]
            filled.append(Filled(table, tuple(_compared(lines, table.focus))))
    return filled, [group for group in groups if homes[group] is None]


class _Index:
    """The groups that could stand in each cell, by what differs."""

    def __init__(self, paper: Paper, groups: Sequence[Group]) -> None:
        self._paper = paper
        self._cells: dict[tuple[Pair, Column], dict[Difference, Group]] = defaultdict(dict)
        self._differences: dict[tuple[Pair, Column, Group], Difference] = {}
        columns = {column for table in paper.tables for column in table.columns}
        for pair in paper.pairs:
            for column in columns:
                for group in groups:
                    self._enter(pair, column, group)

    def at(self, pair: Pair, column: Column, difference: Difference) -> Group | None:
        """The group of a cell that differs in just this."""
        return self._cells[pair, column].get(difference)

    def home(self, group: Group) -> _Home | None:
        """The cell whose configuration is nearest, in the first table that has it; None if none."""
        candidates = [
            _Home(table.number, pair, self._differences[pair, column, group])
            for table in self._paper.tables
            for pair in self._paper.pairs
            for column in table.columns
            if pair.name in table.values and (pair, column, group) in self._differences
        ]
        return min(candidates, key=lambda home: (len(home.difference), home.table), default=None)

    def _enter(self, pair: Pair, column: Column, group: Group) -> None:
        shipped = settings_of(pair, column)
        if shipped is None:
            return
        decisive = ["Runner.task", "Runner.backbone", *STRUCTURE, *column.chosen]
        decisive += [] if column.bindings else [METHOD]  # else the bindings tell, not the word
        ours, theirs = group.settings.values, shipped.values
        if any(ours.get(name) != theirs.get(name) for name in decisive):
            return
        difference = group.settings.difference(shipped, IGNORED)
        if difference in self._cells[pair, column]:
            difference += ((METHOD, group.method),)
        self._cells[pair, column][difference] = group
        self._differences[pair, column, group] = difference


def _lines(table: PaperTable, pair: Pair, homes: Sequence[_Home], index: _Index) -> list[Line]:
    """The rows of one pair: the shipped configuration's first, then one for each difference."""
    differences = {home.difference for home in homes if home.pair == pair} | {()}
    lines = []
    for difference in sorted(differences, key=lambda d: (len(d), describe(d))):
        lines.append(
            Line(
                pair,
                difference,
                tuple(
                    Result(
                        column,
                        index.at(pair, column, _applicable(difference, table, pair, column)),
                        None if difference else value,
                    )
                    for column, value in zip(table.columns, table.values[pair.name], strict=True)
                ),
            )
        )
    return lines


def _applicable(
    difference: Difference, table: PaperTable, pair: Pair, column: Column
) -> Difference:
    """The part of a row's difference that a column can have.

    The baseline has no learned loss: beside an AdaLFL with another loss network it stays as it is.
    """
    elsewhere = set().union(*(_components(pair, other) for other in table.columns))
    lacking = elsewhere - _components(pair, column)
    return tuple(item for item in difference if component_of(item[0]) not in lacking)


def _components(pair: Pair, column: Column) -> set[str]:
    shipped = settings_of(pair, column)
    return {component_of(name) for name in shipped.values} if shipped else set()


def _compared(lines: Sequence[Line], focus: int) -> list[Line]:
    """The lines with the focus compared with every other column; no two groups twice."""
    seen: set[tuple[Group, Group]] = set()
    out = []
    for line in lines:
        first = line.results[focus].group
        compared: dict[int, Comparison] = {}
        for i, result in enumerate(line.results):
            if first is None or result.group in (None, first) or (first, result.group) in seen:
                continue
            assert result.group is not None
            seen.add((first, result.group))
            comparison = compared_by_seed(first, result.group)
            if comparison is not None:
                compared[i] = comparison
        final = dict(zip(compared, corrected(list(compared.values())), strict=True))
        results = (replace(r, comparison=final.get(i)) for i, r in enumerate(line.results))
        out.append(replace(line, results=tuple(results)))
    return out
