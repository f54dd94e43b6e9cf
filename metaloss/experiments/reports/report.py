"""The report over many runs: what was read, the paper's tables and curves, and all other runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metaloss.analysis import paper_figures
from metaloss.analysis.curves import LossCurves
from metaloss.errors import InputError
from metaloss.experiments.groups import Group, group
from metaloss.experiments.records import STATUSES, Reading, Record
from metaloss.experiments.reports import (
    choice,
    learning,
    other_tables,
    paper,
    paper_tables,
    placement,
    target,
    times,
)
from metaloss.experiments.reports.document import Block, Document, Lines, Picture, Section, Text
from metaloss.experiments.reports.paper import Paper
from metaloss.experiments.reports.placement import Filled
from metaloss.experiments.settings import brief
from metaloss.runs import pictures

EXAMPLES = 4  #: losses of the paper's Figure 5
#: Tables whose learning curves the paper shows, and their colours there.
FIGURES = {1: "Figure 3", 7: "Figure 7"}
COLOURS = {7: {"Training": "#0072B2", "Validation": "#D55E00"}}
MEASURED = {
    "train": "on as much of the training data as is held out for validation",
    "valid": "on the validation data, which the loss is learned on",
    "select": "on validation data that neither the model nor the loss is trained on",
}


@dataclass(frozen=True)
class Contents:
    """The runs of a report, sorted.

    Attributes:
        paper: the paper's numbers.
        groups: all runs, by configuration.
        filled: the paper's tables that have runs.
        rest: the groups that are in none.
        problems: a line for each thing that is wrong with a folder.
    """

    paper: Paper
    groups: list[Group]
    filled: list[Filled]
    rest: list[Group]
    problems: list[str]


def contents(reading: Reading) -> Contents:
    """Sorts the runs that were read into the paper's tables.

    Raises:
        InputError: there is no run.
    """
    if not reading.runs:
        raise InputError("no usable run in what was given")
    groups, repeated = group(reading.runs)
    known = paper.load()
    filled, rest = placement.fill(known, groups)
    return Contents(known, groups, filled, rest, [*reading.problems, *repeated])


def document(found: Contents) -> Document:
    """The report; a section that has nothing to show is left out."""
    makers = (
        _overview, _tables, _curves, _losses, _runs, _choices, _scores, _times, _problems
    )  # fmt: skip
    sections = [section for make in makers if (section := make(found)).blocks]
    return Document("metaloss: report over many runs", sections)


def _overview(found: Contents) -> Section:
    runs = [run for g in found.groups for run in g.runs]
    counts = Counter(run.status for run in runs)
    states = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    shown = {filled.table.number for filled in found.filled}
    absent = [str(table.number) for table in found.paper.tables if table.number not in shown]
    blocks: list[Block] = [
        Text(
            f"{_plural(len(runs), 'run')} of {_plural(len(found.groups), 'configuration')}: "
            f"{states}. Runs are averaged only if they differ in nothing but their seed (and in "
            "how often they were logged); means are over finished runs, and the others are "
            "counted beside them."
        ),
        Lines(tuple(_circumstances(runs))),
    ]
    if shown:
        without = f" No run belongs to Table{'s' * (len(absent) > 1)} {', '.join(absent)}."
        blocks.insert(1, Text(f"The paper: {found.paper.source}.{without * bool(absent)}"))
    return Section("What was read", blocks)


def _circumstances(runs: Sequence[Record]) -> list[str]:
    """What the runs were made with, and on; and what was assumed of them."""
    kinds: dict[str, Counter[str]] = {"code": Counter(), "torch": Counter(), "machine": Counter()}
    assumed: Counter[tuple[str, ...]] = Counter(tuple(sorted(r.settings.assumed)) for r in runs)
    told = [run for run in runs if not run.is_kept]
    for run in told:
        versions = run.meta.get("versions")
        versions = versions if isinstance(versions, dict) else {}
        commit = str(run.meta.get("git_commit") or "")
        changed = " with changes" * commit.endswith("+")
        at = f", commit {commit[:10]}{changed}" if commit else ""
        kinds["code"][f"metaloss {versions.get('metaloss', 'unknown')}{at}"] += 1
        kinds["torch"][str(versions.get("torch", "unknown"))] += 1
        kinds["machine"][run.machine] += 1
    lines = [
        f"{kind}: " + "; ".join(f"{name} ({_plural(n, 'run')})" for name, n in found.most_common())
        for kind, found in kinds.items()
        if found
    ]
    lines += [
        f"{_plural(n, 'run')} of an earlier version without {', '.join(names)}: today's default is "
        "assumed"
        for names, n in sorted(assumed.items())
        if names
    ]
    if kept := len(runs) - len(told):
        lines.append(
            f"{_plural(kept, 'run')} of which config.gin and result.json alone are kept: without "
            "learning curves, versions and machine"
        )
    return lines


def _tables(found: Contents) -> Section:
    section = Section("The paper's tables")
    for filled in found.filled:
        section.blocks.append(paper_tables.results(filled))
        if (compared := paper_tables.tests(filled)) is not None:
            section.blocks.append(compared)
        if (beside := paper_tables.beside_paper(filled)) is not None:
            section.blocks.append(beside)
        if filled.table.number == 1:
            section.blocks.append(paper_tables.run_times(filled, found.paper.hours))
    return section


def _curves(found: Contents) -> Section:
    section = Section("Learning curves")
    for filled in found.filled:
        number = filled.table.number
        for split, measured in MEASURED.items():
            panels = [
                panel
                for line in filled.lines
                if (
                    panel := learning.panel(
                        f"{line.pair.task} + {line.pair.model}\n{brief(line.difference)}".strip(),
                        {result.column.title: result.group for result in line.results},
                        split,
                    )
                )
            ]
            figure = f"{FIGURES[number]}. " if number in FIGURES and split == "train" else ""
            title = f"{figure}Learning curves of Table {number}, {learning.SPLITS[split]} error"
            caption = f"Error {measured}"
            if number == 1 and split == "select":
                caption += ", as in the paper's Figure 8 (of MNIST + LeNet-5)"
            section.blocks += _picture(
                f"table{number}-{split}", panels, title, caption, COLOURS.get(number)
            )
    return section


def _losses(found: Contents) -> Section:
    """The paper's network, where no other loss was learned: its activation, and ML³'s form."""
    section = Section("The loss network")
    by_loss = defaultdict(list)
    for one in found.groups:
        by_loss[one.settings.component("Runner.representation")].append(one)
    if by_loss.keys() - {"None"} != {"nn"}:
        return section
    networks = by_loss["nn"]
    title = "Figure 6. The smooth leaky ReLU"
    caption = "Activation of the loss network and its derivative for shifted γ and β."
    section.blocks.append(Picture("activation", paper_figures.activation(), title, caption))
    curves: dict[str, LossCurves] = {}
    reasons = []
    for run in (run for g in networks if _is_flat_form(g) for run in g.runs):
        if len(curves) == EXAMPLES:
            break
        try:
            curves[f"{run.task} + {run.backbone}, seed {run.seed}"] = pictures.loss_curves(run.path)
        except InputError as error:
            reasons.append(f"{run.path}: no learned loss to draw: {error}")
    if curves:
        drawn = paper_figures.flat_losses(list(curves.values()), list(curves))
        title = "Figure 5. Losses of ML³'s network (ReLU, Softplus output)"
        caption = f"After training; flat parts are marked. The first {len(curves)}, not chosen."
        section.blocks.append(Picture("flatness", drawn, title, caption))
    if reasons:
        section.blocks.append(Lines(tuple(reasons)))
    return section


def _is_flat_form(group: Group) -> bool:
    """Whether the loss network is of the form that the paper finds prone to flat regions."""
    form = {"representations.nn.activation": "relu", "representations.nn.output": "softplus"}
    return form.items() <= group.settings.values.items()


def _runs(found: Contents) -> Section:
    section = Section("Runs", [other_tables.results(found.groups, found.paper)])
    if (compared := other_tables.tests(found.rest, found.groups)) is not None:
        section.blocks.append(compared)
    by_pair: dict[tuple[str, str], dict[str, Group | None]] = defaultdict(dict)
    names = other_tables.called(found.rest)
    for one in found.rest:
        by_pair[one.pair][names[one]] = one
    for split, measured in MEASURED.items():
        panels = [
            panel
            for pair, labelled in by_pair.items()
            if (panel := learning.panel(" + ".join(pair), labelled, split))
        ]
        title = f"Learning curves by task and method, {learning.SPLITS[split]} error"
        section.blocks += _picture(f"other-{split}", panels, title, f"Error {measured}")
    return section


def _choices(found: Contents) -> Section:
    """Where several configurations of a method have a split to choose by."""
    tried = choice.by_method(found.groups)
    section = Section("Choices")
    if any(len(groups) > 1 for groups in tried.values()):
        section.blocks.append(choice.table(tried))
    return section


def _scores(found: Contents) -> Section:
    table = other_tables.scores(found.groups, "All runs, by more than one number")
    return Section("Scores", [] if table is None else [table])


def _times(found: Contents) -> Section:
    section = Section("Where the time went")
    if (reached := target.table(found.groups)) is not None:
        section.blocks.append(reached)
    if spent := times.spent(found.groups):
        caption = "Mean seconds of a finished run, by part."
        drawn = times.bars(spent)
        section.blocks += [times.table(spent), Picture("times", drawn, "Where it went", caption)]
    return section


def _problems(found: Contents) -> Section:
    lines = Lines(tuple(found.problems))
    return Section("Folders to look at", [lines] if found.problems else [])


def _picture(
    name: str,
    panels: Sequence[learning.Panel],
    title: str,
    measured: str,
    colours: Mapping[str, str] | None = None,
) -> list[Picture]:
    """The panels as a picture; none if there are no panels."""
    if not panels:
        return []
    caption = (
        f"{measured}, on a log scale against base steps: mean over the seeds of finished runs (n) "
        "and one sample standard deviation around it; dashed up to a cross: runs that diverged."
    )
    drawn = learning.learning_curves(panels, colours or learning.COLOURS)
    return [Picture(name, drawn, title, caption)]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
