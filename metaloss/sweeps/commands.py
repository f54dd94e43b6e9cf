"""What `tools/sweep.py` is asked for: plan, run, status, retry and report."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metaloss import plugins
from metaloss.errors import InputError
from metaloss.launchers.base import Job, Launcher
from metaloss.run_folder import RunFolder
from metaloss.sweeps.cells import Cell, choose, load
from metaloss.sweeps.standing import OPEN, STATES, Standing, State, seconds_left, standing

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

    def job(self, cell: Cell, threads: int) -> Job:
        """The command line of a cell: begins it, or goes on with it."""
        folder = RunFolder(self.root / cell.name)
        command = (
            sys.executable,
            str(self.train),
            *cell.arguments(),
            *self.flags,
            f"--output_dir={folder.path}",
            f"--threads={threads}",
            "--resume",
        )
        return Job(cell.name, command, str(folder.log.absolute()))


def carry_out(
    train: Path,
    command: str,
    spec: Sequence[str],
    output_dir: Path = Path("runs"),
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
        The exit code: 0, or 1 if a run has failed or was interrupted.

    Raises:
        InputError: something that was given cannot be used; nothing is started.
    """
    plugins.load_all(list(plugin))
    chosen = [] if launcher is None else [f"Sweep.launcher = @launchers.{launcher}()"]
    starter, cells = load(spec, [*gin_param, *chosen])
    cells = choose(cells, only, limit)
    flags = [f"--device={device}", *(f"--plugin={name}" for name in plugin)]
    flags += ["--cuda_graphs"] if cuda_graphs else []
    flags += [] if data_dir is None else [f"--data_dir={data_dir}"]
    site = Site(output_dir, train, tuple(flags))
    if command == "plan":
        print(plan(cells, starter, site))
    elif command == "status":
        print(status(cells, starter, site))
    elif command == "report":
        report(cells, site, output)
    else:
        say = partial(print, flush=True)
        return 0 if run(cells, starter, site, say, retry=command == "retry") else 1
    return 0


def plan(cells: Sequence[Cell], launcher: Launcher, site: Site) -> str:
    """Every configuration with its seeds, and the command line of the first."""
    lines = []
    for group in dict.fromkeys(cell.group for cell in cells):
        members = [cell for cell in cells if cell.group == group]
        seeds = ", ".join(str(cell.seed) for cell in members)
        job = site.job(members[0], launcher.threads)
        lines += [f"{site.root / group}: seeds {seeds}", f"    {job.line}"]
    return "\n".join([*lines, status(cells, launcher, site, open_only=True)])


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
    by_name = {cell.name: cell for cell in cells}
    todo = [cell for cell in cells if standing(cell, site.root).state in wanted]
    if not todo:
        say(f"nothing to start: {_counts([standing(cell, site.root) for cell in cells])}")

    def jobs() -> Iterator[Job]:
        for cell in todo:
            if standing(cell, site.root).state in wanted:  # else another sweeper was quicker
                yield site.job(cell, launcher.threads)

    began = time.monotonic()
    for number, (job, _) in enumerate(launcher.launch(jobs()), start=1):
        now = standing(by_name[job.name], site.root)
        left = (time.monotonic() - began) * (len(todo) - number) / number
        say(f"[{number}/{len(todo)}, {_duration(left)} left] {_line(now)}")
    ended = Counter(standing(cell, site.root).state for cell in todo)
    return not (ended["failed"] or ended["interrupted"])


def status(
    cells: Sequence[Cell], launcher: Launcher, site: Site, *, open_only: bool = False
) -> str:
    """Where every cell is, and how long it will take."""
    found = [standing(cell, site.root) for cell in cells]
    shown = [] if open_only else [_line(s) for s in sorted(found, key=_order)]
    left = seconds_left(found, launcher.parallel)
    pending = any(s.state in ("running", *OPEN) for s in found)
    last = _counts(found)
    if left and pending:
        last += f"; about {_duration(left)} left, {launcher.parallel} at a time"
    return "\n".join([*shown, last])


def report(cells: Sequence[Cell], site: Site, output: Path | None) -> None:
    """The paper's tables and curves from the runs that there are.

    Raises:
        InputError: no run has begun, or the file cannot be written.
    """
    from metaloss.analysis.publish import publish

    folders = [folder for cell in cells if (folder := site.root / cell.name).is_dir()]
    if not folders:
        raise InputError(f"no run of this sweep is in {site.root}: start it with `run`")
    publish(folders, None, output)


def _order(standing: Standing) -> tuple[int, str, int]:
    return STATES.index(standing.state), standing.cell.group, standing.cell.seed


def _line(s: Standing) -> str:
    took = f" ({_duration(s.seconds)})" if s.seconds else ""
    return f"{s.state:11} {s.cell.name}{took}{': ' * bool(s.detail)}{s.detail}"


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
