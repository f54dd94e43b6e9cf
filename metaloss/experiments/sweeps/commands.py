"""What `tools/sweep.py` is asked for: plan, run, status, retry, report, choose and references."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaloss import config
from metaloss.config import plugins
from metaloss.config.paths import asked_for
from metaloss.errors import InputError, RunFolderError, first_line
from metaloss.experiments.launchers.base import Job, Launcher
from metaloss.experiments.sweeps.cells import Cell, choose, load, where_they_are
from metaloss.experiments.sweeps.standing import (
    OPEN,
    STATES,
    Standing,
    State,
    last_lines,
    seconds_left,
    standing,
)
from metaloss.machine.files import check_output
from metaloss.runs import checkpoint, launch
from metaloss.runs.folder import RunFolder

if TYPE_CHECKING:
    from metaloss.experiments.reports.document import Document

Say = Callable[[str], None]


@dataclass(frozen=True)
class Site:
    """Where a sweep's runs are made, and with what.

    Attributes:
        root: their folders are below it.
        train: `tools/train.py`.
        flags: of `tools/train.py`, the same for every run: `--data_dir`, `--device`, `--plugin`,
            `--cuda_graphs`.
    """

    root: Path
    train: Path
    flags: tuple[str, ...] = ()

    def job(self, cells: Sequence[Cell], threads: int) -> Job:
        """The command line of a configuration's cells: begins them, or goes on with them."""
        first = cells[0]
        folder = RunFolder(self.root / first.name)
        command = (
            sys.executable,
            str(self.train),
            *first.arguments(),
            *(f"--seed={cell.seed}" for cell in cells),
            *self.flags,
            f"--output_dir={folder.path if len(cells) == 1 else folder.path.parent}",
            f"--threads={threads}",
            "--resume",
        )
        return Job(first.name, command, str(folder.log.absolute()))

    def together(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """The cells that one process makes: of one configuration, and of one step if begun."""
        groups: dict[tuple[str, object], list[Cell]] = defaultdict(list)
        for cell in cells:
            step = cell.seed if cell.at_once == 1 else _step(RunFolder(self.root / cell.name))
            groups[cell.group, step].append(cell)
        parts = (
            [group[i : i + group[0].at_once] for i in range(0, len(group), group[0].at_once)]
            for group in groups.values()
        )
        return sorted(itertools.chain(*parts), key=lambda part: part[0].seed)


def carry_out(
    train: Path,
    command: str,
    spec: Sequence[str],
    output_dir: str = "runs",
    launcher: str | None = None,
    gin_param: Sequence[str] = (),
    only: Sequence[str] = (),
    limit: int | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    plugin: Sequence[str] = (),
    cuda_graphs: bool = False,
    output: Path | None = None,
) -> int:
    """What `tools/sweep.py` is asked for; the arguments are its flags, `train` is `tools/train.py`.

    Returns:
        The exit code: 0, or 1 if a run has failed, or was interrupted while `run` waited for it.

    Raises:
        InputError: something that was given cannot be used; nothing is started.
    """
    plugins.load_all(list(plugin))
    root = asked_for(output_dir, "--output_dir")
    flags = [f"--device={device}", *(f"--plugin={name}" for name in plugin)]
    flags += ["--cuda_graphs"] if cuda_graphs else []
    flags += [] if data_dir is None else [f"--data_dir={data_dir}"]
    site = Site(root, train, tuple(flags))
    of = "Search" if command == "search" else "Sweep"
    chosen = [] if launcher is None else [f"{of}.launcher = @launchers.{launcher}()"]
    if command == "search":
        return search_for(spec, [*gin_param, *chosen], site)
    starter, cells = load(spec, [*gin_param, *chosen])
    cells = choose(where_they_are(cells, root), only, limit)
    if command == "plan":
        print(plan(cells, starter, site), flush=True)
        asked = {"device": device, "data_dir": data_dir, "plugin": plugin}
        for line in cost(cells, starter, site, asked):
            print(line, flush=True)
    elif command == "status":
        print(status(cells, starter, site))
        return 1 if any(standing(cell, root).state == "failed" for cell in cells) else 0
    elif command == "report":
        report(cells, site, output)
    elif command == "choose":
        choose_best(cells, site, output)
    elif command == "references":
        compare_trivially(cells, data_dir, output)
    else:
        say = partial(print, flush=True)
        return 0 if run(cells, starter, site, say, retry=command == "retry") else 1
    return 0


def search_for(specs: Sequence[str], bindings: Sequence[str], site: Site) -> int:
    """Carries a search out, or goes on with it; the exit code.

    Raises:
        InputError: the spec cannot be used, or Optuna is not installed.
    """
    from metaloss.experiments.sweeps import search

    if len(specs) > 1:
        raise InputError("a search has one SPEC")
    asked = search.load(specs[0], bindings)

    def start(cells: Sequence[Cell], seconds: float | None) -> None:
        limit = () if seconds is None else (f"--max_seconds={seconds:g}",)
        limited = replace(site, flags=(*site.flags, *limit))
        jobs = [limited.job([cell], asked.launcher.threads) for cell in cells]
        for _ in asked.launcher.launch(jobs):
            pass

    found = search.carry_out(asked, site.root, start, partial(print, flush=True))
    for line in search.lines(found):
        print(line)
    return 0 if any(one.status == "finished" for one in found) else 1


def plan(cells: Sequence[Cell], launcher: Launcher, site: Site) -> str:
    """Every configuration with its seeds, and the command line of the first."""
    lines = []
    for group in dict.fromkeys(cell.group for cell in cells):
        members = [cell for cell in cells if cell.group == group]
        seeds = ", ".join(str(cell.seed) for cell in members)
        job = site.job(members[: members[0].at_once], launcher.threads)
        lines += [f"{site.root / group}: seeds {seeds}", f"    {job.line}"]
    return "\n".join([*lines, status(cells, launcher, site, open_only=True)])


def cost(
    cells: Sequence[Cell], launcher: Launcher, site: Site, flags: Mapping[str, Any]
) -> Iterator[str]:
    """Says how long the runs that wait will take, by a dry run of each configuration.

    Args:
        cells: of the sweep.
        launcher: how many runs there are at a time, and with how many threads.
        site: where.
        flags: of `launch.train`, the same for every run.
    """
    waiting = [cell for cell in cells if standing(cell, site.root).state == "waiting"]
    seeds = Counter(cell.group for cell in waiting)
    whole, known = 0.0, 0
    for group, count in seeds.items():
        cell = next(cell for cell in waiting if cell.group == group)
        try:
            found = launch.forecast(
                gin_file=cell.files, gin_param=cell.bindings, threads=launcher.threads, **flags
            )
        except InputError as error:
            yield f"{group}: not known: {first_line(error)}"
            continue
        whole, known = whole + found.seconds * count, known + count
        yield f"{group}: {count} x {found}"
    if known:
        at_a_time = min(launcher.parallel, known)
        yield (
            f"{known} runs that wait: about {_duration(whole)} one after another, "
            f"{_duration(whole / at_a_time)} with {at_a_time} at a time"
        )


def run(
    cells: Sequence[Cell], launcher: Launcher, site: Site, say: Say, *, retry: bool = False
) -> bool:
    """Starts what is waiting or was interrupted, and waits for it; a failed run stops no other.

    Args:
        cells: of the sweep.
        launcher: what starts them.
        site: where.
        say: takes a line as each run ends.
        retry: start what has failed too.

    Returns:
        Whether nothing is failed or interrupted now.

    Raises:
        InputError: the launcher cannot be used.
    """
    wanted: tuple[State, ...] = (*OPEN, "failed") if retry else OPEN
    todo = [cell for cell in cells if standing(cell, site.root).state in wanted]
    if not todo:
        say(f"nothing to start: {_counts([standing(cell, site.root) for cell in cells])}")
    started: dict[str, list[Cell]] = {}

    def jobs() -> Iterator[Job]:
        for part in site.together(todo):
            # else another sweeper was quicker
            left = [cell for cell in part if standing(cell, site.root).state in wanted]
            if left:
                started[left[0].name] = left
                yield site.job(left, launcher.threads)

    began, done = time.monotonic(), 0
    for job, _ in launcher.launch(jobs()):
        first, *others = started[job.name]
        for other in others:  # of whose process the log is the first one's
            log = RunFolder(site.root / other.name).log
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("\n".join(last_lines(Path(job.log))) + "\n")
        for cell in (first, *others):
            done += 1
            left = (time.monotonic() - began) * (len(todo) - done) / done
            found = _line(standing(cell, site.root), launcher, site)
            say(f"[{done}/{len(todo)}, {_duration(left)} left] {found}")
    ended = Counter(standing(cell, site.root).state for cell in todo)
    return not (ended["failed"] or ended["interrupted"])


def status(
    cells: Sequence[Cell], launcher: Launcher, site: Site, *, open_only: bool = False
) -> str:
    """Where every cell is, and how long it will take."""
    found = [standing(cell, site.root) for cell in cells]
    shown = [] if open_only else [_line(s, launcher, site) for s in sorted(found, key=_order)]
    parallel = launcher.parallel * max(cell.at_once for cell in cells)
    left = seconds_left(found, parallel)
    pending = any(s.state in ("running", *OPEN) for s in found)
    last = _counts(found)
    if left and pending:
        last += f"; about {_duration(left)} left, {parallel} at a time"
    return "\n".join([*shown, last])


def report(cells: Sequence[Cell], site: Site, output: Path | None) -> None:
    """The paper's tables and curves from the runs that there are.

    Raises:
        InputError: no run has begun, or the file cannot be written.
    """
    from metaloss.experiments.reports.publish import publish

    folders = [folder for cell in cells if (folder := site.root / cell.name).is_dir()]
    if not folders:
        raise InputError(f"no run of this sweep is in {site.root}: start it with `run`")
    publish(folders, None, output)


def choose_best(cells: Sequence[Cell], site: Site, output: Path | None) -> None:
    """Of each method the configuration that is best on the split "select".

    Raises:
        InputError: no run has such a split, or the file cannot be written.
    """
    from metaloss.experiments import groups, records
    from metaloss.experiments.reports import choice

    folders = [folder for cell in cells if (folder := site.root / cell.name).is_dir()]
    reading = records.read(folders)
    for line in reading.problems:
        print(f"warning: {line}", file=sys.stderr)
    _show(choice.document(groups.group(reading.runs)[0]), output)


def compare_trivially(cells: Sequence[Cell], data_dir: str | None, output: Path | None) -> None:
    """What a constant and a linear model reach on the tasks of a sweep.

    Raises:
        DataError: the data cannot be read.
    """
    from metaloss.experiments.reports import trivial
    from metaloss.runs import references

    found: dict[str, list[references.Reference]] = {}
    for cell in cells:
        of_task = [binding for binding in cell.bindings if binding.startswith("tasks.")]
        told = (binding.partition(" = ") for binding in of_task)
        ours = (f"{name.rpartition('.')[2]} = {value}" for name, _, value in told)
        name = ", ".join([Path(cell.files[0]).stem, *ours])
        if name not in found:
            plan = config.load(cell.files, cell.bindings).build()
            found[name] = references.of_run(plan, data_dir)
    _show(trivial.document(found), output)


def _show(document: Document, output: Path | None) -> None:
    """A document in the terminal, or in a file."""
    from metaloss.experiments.reports import formats
    from metaloss.experiments.reports.output import save

    if output is None:
        print(formats.markdown(document, {}), end="")
    else:
        check_output(output, (".html", ".md", ".tex"))
        save(document, output)


def _step(folder: RunFolder) -> object:
    """Where a run's last checkpoint stands; one that cannot be read is alone with its trouble."""
    try:
        return checkpoint.positions(folder)[0]
    except RunFolderError:
        return folder.path


def _order(standing: Standing) -> tuple[int, str, int]:
    return STATES.index(standing.state), standing.cell.group, standing.cell.seed


def _line(s: Standing, launcher: Launcher, site: Site) -> str:
    """Where a cell is; of a failed one its command too, to be tried by hand."""
    took = f" ({_duration(s.seconds)})" if s.seconds else ""
    line = f"{s.state:11} {s.cell.name}{took}{': ' * bool(s.detail)}{s.detail}"
    if s.state != "failed":
        return line
    return f"{line}\n    {site.job([s.cell], launcher.threads).line}"


def _counts(found: Sequence[Standing]) -> str:
    count = Counter(s.state for s in found)
    parts = [f"{count[state]} {state}" for state in STATES if count[state]]
    return f"{len(found)} runs: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    """1:02:03, 2:03 or 3 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
