"""Two runs side by side: what they were made with, how they learned, which loss they learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaloss.analysis import indices, loss_figures
from metaloss.analysis.curves import LossCurves
from metaloss.errors import InputError, RunFolderError
from metaloss.experiments import records, statistics
from metaloss.experiments.records import Record
from metaloss.experiments.reports import learning, tables
from metaloss.experiments.reports.document import Block, Document, Lines, Picture, Section, Text
from metaloss.experiments.reports.tables import DASH, GIB, Cell, Table
from metaloss.experiments.settings import NOT_SET
from metaloss.runs import pictures

NAMES = ("A", "B")
MOMENTS = 8  #: rows of the learning curves' table
EVALUATED = ("train", "valid")

Pair = tuple[Record, Record]


def read(first: Path, second: Path) -> tuple[Pair, list[str]]:
    """Two run folders.

    Returns:
        The runs, and a line for each thing that is wrong with a folder.

    Raises:
        RunFolderError: a folder holds no run that can be read.
    """
    found, problems = [], []
    for path in (first, second):
        if not path.is_dir():
            raise RunFolderError(f"{path} is no folder: give a run folder")
        run, lines = records.read_run(path)
        if run is None:
            raise RunFolderError(f"{path}: {'; '.join(lines)}")
        found.append(run)
        problems += [f"{path}: {line}" for line in lines]
    return (found[0], found[1]), problems


def document(pair: Pair, problems: list[str]) -> Document:
    """The comparison; a section that has nothing to show is left out."""
    sections = [
        Section("Results", [_results(pair)]),
        Section("Configuration", [_configuration(pair)]),
        Section("Learning curves", _learning_curves(pair)),
        Section("Learned losses", _losses(pair)),
        Section("Folders to look at", [Lines(tuple(problems))] if problems else []),
    ]
    title = " and ".join(f"{name}: {run.title}" for name, run in zip(NAMES, pair, strict=True))
    return Document(title, [section for section in sections if section.blocks])


def _results(pair: Pair) -> Table:
    facts: list[Mapping[str, Any]] = [_facts(run) for run in pair]
    made: list[Mapping[str, Any]] = [_circumstances(run) for run in pair]
    names = dict.fromkeys([*facts[0], *facts[1]])
    rows = [(name, *(fact.get(name, DASH) for fact in facts)) for name in names]
    rows += [
        (name, *(str(one.get(name, DASH)) for one in made))
        for name in dict.fromkeys([*made[0], *made[1]])
        if made[0].get(name) != made[1].get(name)
    ]
    tests = [run.test for run in pair]
    notes = []
    if None not in tests and pair[0].metric == pair[1].metric:
        difference = tests[0] - tests[1]  # type: ignore[operator]
        seeds = "the same seed" if pair[0].seed == pair[1].seed else "different seeds"
        notes.append(
            f"A - B of the test error: {tables.signed(difference)}; one run each, {seeds}."
        )
        notes += _over_examples(pair)
    return _table("What came of them", "", ("", *NAMES), rows, notes)


def _over_examples(pair: Pair) -> list[str]:
    """What the test examples say of the difference of these two models."""
    first, second = (run.errors for run in pair)
    if first is None or second is None or first.examples != second.examples:
        return []
    difference, error = statistics.over_examples(first.errors, second.errors)
    note = (
        f"Over {len(first.errors)} test examples: {tables.signed(difference)}, standard error "
        f"{tables.number(error)}. It is about these two models, and says nothing about other seeds."
    )
    if pair[0].metric == "error_rate" and {*np.unique(first.errors)} <= {0.0, 1.0}:
        ours, theirs, p = statistics.mcnemar(first.errors, second.errors)
        note += f" A alone is wrong on {ours}, B alone on {theirs}: McNemar's p is "
        note += f"{tables.p_value(p)}."
    return [note]


def _facts(run: Record) -> dict[str, str]:
    memory = run.result.get("peak_memory_bytes")
    seconds = run.result.get("seconds")
    return {
        "folder": str(run.path),
        "seed": str(run.seed),
        "status": run.status,
        f"test {(run.metric or 'error').replace('_', ' ')}": DASH
        if run.test is None
        else tables.number(run.test),
        "progress": run.progress,
        "skipped meta-steps": str(run.result.get("skipped_meta_steps", DASH)),
        "seconds": DASH if seconds is None else f"{seconds:.3g}",
        **{
            f"seconds of {part}": f"{spent:.3g}"
            for part, spent in (run.result.get("seconds_by_part") or {}).items()
        },
        "peak memory": DASH if memory is None else f"{memory / GIB:.2f} GiB",
        "machine": run.machine,
    }


def _circumstances(run: Record) -> dict[str, Any]:
    """What else may explain a difference: code, versions, time."""
    versions = run.meta.get("versions")
    named = {name: run.meta.get(name) for name in ("git_commit", "started", "python")}
    return {**named, **(versions if isinstance(versions, dict) else {})}


def _label(name: str, run: Record) -> str:
    return f"{name}: {run.settings.method}, seed {run.seed}"


def _configuration(pair: Pair) -> Block:
    mine, other = (run.settings for run in pair)
    rows = [
        (name, repr(value), repr(other.values.get(name, NOT_SET)))
        for name, value in mine.difference(other, ignored=frozenset())
    ]
    if not rows:
        return Text("The configurations are the same.")
    same = len(mine.values.keys() | other.values.keys()) - len(rows)
    title = "What the configurations differ in"
    return _table(title, f"{same} other parameters are the same.", ("", *NAMES), rows)


def _learning_curves(pair: Pair) -> list[Block]:
    curves = {
        (name, split): curve
        for name, run in zip(NAMES, pair, strict=True)
        for split in EVALUATED
        if (curve := run.curve(split))
    }
    if not curves:
        return [Text("Neither run has been evaluated yet.")]
    panels: dict[str, list[learning.MeanCurve]] = {}
    for (name, split), curve in curves.items():
        run = pair[NAMES.index(name)]
        steps, values = np.array(list(curve)), np.array(list(curve.values()))
        drawn = learning.MeanCurve(_label(name, run), steps, values, values, values)
        label = learning.error_label(split, run.metric or "error")
        panels.setdefault(label, []).append(drawn)
    figure = learning.learning_curves(
        [learning.Panel("", label, tuple(drawn)) for label, drawn in panels.items()], {}
    )
    title, caption = "Learning curves", "Error against base steps, on a log scale."
    head = ("base step", *(f"{name} {learning.SPLITS[split]}" for name, split in curves))
    rows = [
        (f"{step:,}", *(_at(curve, step) for curve in curves.values()))
        for step in _moments(sorted(set().union(*curves.values())))
    ]
    return [
        Picture("learning-curves", figure, title, caption),
        _table("Error during training", "", head, rows),
    ]


def _at(curve: Mapping[int, float], step: int) -> str:
    return tables.number(curve[step]) if step in curve else DASH


def _moments(steps: list[int]) -> list[int]:
    """A few of the steps, at equal distances, the first and the last among them."""
    chosen = np.linspace(0, len(steps) - 1, min(MOMENTS, len(steps)))
    return [steps[round(i)] for i in chosen]


def _losses(pair: Pair) -> list[Block]:
    curves: dict[str, LossCurves] = {}
    lines = []
    for name, run in zip(NAMES, pair, strict=True):
        if not pictures.has_loss(run.path):
            lines.append(f"{name} learned no loss.")
            continue
        try:
            curves[name] = pictures.loss_curves(run.path)
        except InputError as error:
            lines.append(f"{name}: its learned loss cannot be drawn: {error}")
    blocks: list[Block] = [Lines(tuple(lines))] if lines else []
    for names in _drawn_together(curves):
        labels = [_label(name, pair[NAMES.index(name)]) for name in names]
        figure = loss_figures.loss_curves([curves[name] for name in names], labels)
        title, caption = f"Learned loss of {' and '.join(names)}", "Coloured by the base step."
        blocks.append(Picture(f"losses-{'-'.join(names)}", figure, title, caption))
    if curves:
        found = {name: indices.of_curves(c) for name, c in curves.items()}
        keys = dict.fromkeys(key for numbers in found.values() for key in numbers)
        rows = [
            (indices.MEANINGS[key], *(_index(numbers.get(key)) for numbers in found.values()))
            for key in keys
        ]
        blocks.append(_table("Shape of the loss at the last step", "", ("", *found), rows))
    return blocks


def _drawn_together(curves: Mapping[str, LossCurves]) -> list[tuple[str, ...]]:
    """Both in one figure, where they have the same panels."""
    if len({c.panels for c in curves.values()}) == 1:
        return [tuple(curves)]
    return [(name,) for name in curves]


def _index(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


def _table(
    title: str,
    caption: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    notes: list[str] | None = None,
) -> Table:
    cells = [(Cell(row[0], "name"), *map(Cell, row[1:])) for row in rows]
    return Table(title, caption, head, cells, 1, notes or [])
