"""Where the time of runs went: a table and bars of `seconds_by_part`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from metaloss.experiments.groups import Group
from metaloss.experiments.reports.learning import PALETTE
from metaloss.experiments.reports.other_tables import names
from metaloss.experiments.reports.tables import DASH, Cell, Footnotes, Table, without_repeats
from metaloss.machine.clock import PARTS

Spent = Mapping[Group, Mapping[str, float]]  #: mean seconds of a group's runs, by part


def spent(groups: Sequence[Group]) -> Spent:
    """The groups whose finished runs say it; those of an earlier version do not."""
    found = {}
    for group in groups:
        said = [run.result.get("seconds_by_part") or {} for run in group.finished]
        if said and all(said):
            sums = {part: sum(one.get(part, 0.0) for one in said) for part in PARTS}
            found[group] = {part: seconds / len(said) for part, seconds in sums.items() if seconds}
    return found


def table(found: Spent) -> Table:
    """Seconds of a finished run by part, a row a group."""
    shown = [part for part in PARTS if any(part in parts for parts in found.values())]
    rows, footnotes = [], Footnotes()
    for group, parts in found.items():
        seconds = [parts.get(part) for part in shown]
        texts = (DASH if s is None else f"{s:.3g}" for s in (*seconds, sum(parts.values())))
        rows.append((*names(group, list(found), footnotes), *map(Cell, texts)))
    return Table(
        "Seconds of a run, by part",
        "Means over the finished runs. Initialization: everything in that phase. Base: the base "
        "steps of the training; meta: what a meta-step takes beside its base step. Runs of the "
        "engine `compiled` make both at once, and their steps stand under meta.",
        ("Task", "Model", "Method", *shown, "in all"),
        without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def bars(found: Spent) -> Figure:
    """A bar a group, in the colours of its parts."""
    figure = Figure(figsize=(8, 1.6 + 0.35 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    footnotes = Footnotes()
    labels = [
        " + ".join(cell.text for cell in names(group, list(found), footnotes)) for group in found
    ]
    left = [0.0] * len(found)
    for part, colour in zip(PARTS, (*PALETTE, "0.7"), strict=True):
        widths = [parts.get(part, 0.0) for parts in found.values()]
        if any(widths):
            axes.barh(range(len(found)), widths, left=left, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(found)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    figure.legend(fontsize="small", ncols=4, loc="outside lower center")
    return figure
