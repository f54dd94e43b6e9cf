"""Time to target: how soon a run is as good as the baseline is at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from metaloss.experiments.groups import Group
from metaloss.experiments.records import Record
from metaloss.experiments.reports.other_tables import names
from metaloss.experiments.reports.tables import (
    DASH,
    Cell,
    Footnotes,
    Table,
    number,
    without_repeats,
)
from metaloss.runs.metrics import Row

#: What an error may be taken on, the better one first: φ is trained on the validation data.
SPLITS = ("select", "valid")


@dataclass(frozen=True)
class Target:
    """An error to reach.

    Attributes:
        split: on which it is measured.
        error: the baseline's at its last step, mean over its finished seeds.
        baseline: of several, the one with the least such error.
    """

    split: str
    error: float
    baseline: Group


def of_pair(groups: Sequence[Group]) -> Target | None:
    """The target of a task and model; None where no baseline has an evaluation.

    Args:
        groups: of one task and model.
    """
    baselines = [group for group in groups if group.method == "baseline" and group.finished]
    for split in SPLITS:
        found = [
            Target(split, mean(ends), group)
            for group in baselines
            if len(ends := _ends(group, split)) == len(group.finished)
        ]
        if found:
            return min(found, key=lambda target: target.error)
    return None


def first_as_good(run: Record, target: Target) -> Row | None:
    """The first evaluation of a run with the target's error or less; None where there is none.

    Its "step" is the base step, and its "seconds" are all that the run had spent, with its
    initialisation.
    """
    errors = run.curve(target.split)
    good = {step for step, error in errors.items() if error <= target.error}
    on_split = (row for row in run.rows if row.get("split") == target.split)
    return next((row for row in on_split if row["step"] in good), None)


def table(groups: Sequence[Group]) -> Table | None:
    """Steps and seconds to the baseline's final error; None where nothing stands beside one."""
    rows, footnotes = [], Footnotes()
    for pair in dict.fromkeys(group.pair for group in groups):
        members = [group for group in groups if group.pair == pair]
        target = of_pair(members)
        if target is None or len(members) == 1:
            continue
        for group in members:
            ended = [run for run in group.runs if run.status in ("finished", "diverged")]
            reached = [row for run in ended if (row := first_as_good(run, target))]
            if not any(run.curve(target.split) for run in ended):
                continue
            seconds = [row["seconds"] for row in reached if "seconds" in row]
            texts = (
                f"{target.split} {number(target.error)}",
                f"{len(reached)} of {len(ended)}",
                f"{mean(row['step'] for row in reached):.0f}" if reached else DASH,
                f"{mean(seconds):.3g}" if seconds else DASH,
            )
            rows.append((*names(group, groups, footnotes), *map(Cell, texts)))
    if not rows:
        return None
    return Table(
        "Time to target",
        "The target is the error that the baseline has at its last step, in the mean over its "
        "seeds; of several baselines, the best one's. Steps and seconds: until the first "
        "evaluation that is as good, in the mean over the runs that have one; seconds with the "
        "initialisation. The learned loss is trained on the split valid, and not on select.",
        ("Task", "Model", "Method", "target", "reached", "steps", "seconds"),
        without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def _ends(group: Group, split: str) -> list[float]:
    """The error of each finished run at its last evaluation on a split."""
    curves = (run.curve(split) for run in group.finished)
    return [curve[max(curve)] for curve in curves if curve]
