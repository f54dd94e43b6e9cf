"""Launch: from the words of a command line to a finished run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from metaloss import config
from metaloss.config import plugins
from metaloss.config.gin_files import CONFIG_DIR
from metaloss.config.paths import asked_for
from metaloss.errors import ConfigError, InputError
from metaloss.machine import distributed, processes
from metaloss.machine.circumstances import describe
from metaloss.runs import words
from metaloss.runs.folder import RunFolder, found_there, plugins_there
from metaloss.runs.forecast import Forecast
from metaloss.runs.introduction import introduction, layers
from metaloss.runs.lockstep import Lockstep
from metaloss.runs.precision import process_left_as_it_was, set_float32
from metaloss.runs.progress import speaking
from metaloss.runs.run import Run
from metaloss.runs.runner import Runner, built
from metaloss.tasks.base import find_data_dir
from metaloss.tasks.preparation import streams

EXIT_CODES = {"finished": 0, "diverged": 3}


@dataclass(frozen=True)
class Flags:
    """What `tools/train.py` is asked for: its flags, by their names.

    Without gin files and bindings, `resume` goes on with what is in `output_dir` by what that says
    of itself; `seed` is then the run's own, and 0 otherwise. Several seeds make their steps in
    lockstep, each in a folder of its own: `output_dir`/seedN.

    Raises:
        InputError: fewer workers than none, or no time at all.
    """

    gin_file: Sequence[str] = ()
    gin_param: Sequence[str] = ()
    seed: int | Sequence[int] | None = None
    device: str = "auto"
    data_dir: str | None = None
    output_dir: str | None = None
    resume: bool = False
    plugin: Sequence[str] = ()
    strict: bool = False
    dry_run: bool = False
    threads: int | None = None
    cuda_graphs: bool = False
    sharded: bool = False
    workers: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise InputError(f"--workers {self.workers}: at least 0")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise InputError(f"--max_seconds {self.max_seconds:g}: more than 0")


@dataclass(frozen=True)
class Planned:
    """A run that is asked for, before anything is read or written."""

    seed: int
    runner: Runner
    folder: RunFolder


@process_left_as_it_was()
def forecast(**flags: Any) -> Forecast:
    """How long a run will take, by a few steps of each phase; it leaves no files.

    Args:
        flags: see `Flags`.

    Raises:
        InputError: something that was given cannot be used.
    """
    asked = Flags(**flags)
    processes.set_threads(asked.threads)
    device = processes.find_device(processes.own_device(asked.device))
    text, planned = plan(asked)
    data = find_data_dir(asked.data_dir)
    set_float32(planned[0].runner.precision)  # the same of all seeds
    how = (asked.cuda_graphs, asked.sharded)
    runs = [Run(p.runner, p.seed, device, data, p.folder, text, *how) for p in planned]
    return Lockstep(runs, asked.max_seconds).rehearse()


@process_left_as_it_was()
def train(**flags: Any) -> int:
    """One run, or those of several seeds at once, as `tools/train.py` is asked for them.

    Args:
        flags: see `Flags`.

    Returns:
        The exit code.

    Raises:
        InputError: something that was given cannot be used; nothing is lost or overwritten.
    """
    asked = Flags(**flags)
    processes.set_threads(asked.threads)
    if asked.workers is not None:
        streams.set_workers(asked.workers)
    device = processes.find_device(processes.own_device(asked.device))
    text, planned = plan(asked)
    ends = [None if asked.dry_run else _ended(p, text, asked) for p in planned]
    codes = [_say_ended(p.folder, end) for p, end in zip(planned, ends, strict=True) if end]
    left = [p for p, end in zip(planned, ends, strict=True) if not end]
    if not left:
        return max(codes)
    remembered = left[0].folder.data_dir() if asked.resume else None
    data = find_data_dir(remembered if asked.data_dir is None else asked.data_dir)
    set_float32(planned[0].runner.precision)  # the same of all seeds
    how = (asked.cuda_graphs, asked.sharded)
    runs = [Run(p.runner, p.seed, device, data, p.folder, text, *how) for p in left]
    lockstep = Lockstep(runs, asked.max_seconds)
    distributed.require_equal((text, [p.seed for p in planned]), "is asked for another run")
    if asked.dry_run:
        _print_dry_run(lockstep, runs[0])
        return 0
    with speaking():
        return max([*codes, *carry_out(lockstep, runs, asked, data)])


def plan(asked: Flags) -> tuple[str, list[Planned]]:
    """The complete configuration, and the run of each seed.

    Raises:
        InputError: a flag or the configuration cannot be used.
    """
    files, seeds = asked.gin_file, asked.seed
    seeds = [seeds] if isinstance(seeds, int) else list(seeds or ())
    root = None if asked.output_dir is None else asked_for(asked.output_dir, "--output_dir")
    remembered = plugins_there(root) if asked.resume and root is not None else []
    plugins.load_all(asked.plugin, remembered=remembered)
    if asked.resume and root is not None and not files and not asked.gin_param:
        files, seeds = found_there(root, seeds)
    seeds = seeds or [0]
    parsed, first = completed(files, asked.gin_param, seeds[0])
    # A method that a later file replaces is a shipped one's business, and nobody's slip.
    unread = [binding for binding in parsed.unread if f"{CONFIG_DIR / 'methods'}/" not in binding]
    if unread:
        message = f"nobody reads: {', '.join(unread)}"
        if asked.strict:
            raise ConfigError(message)
        print(f"warning: {message}", file=sys.stderr)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seed {max(seeds, key=seeds.count)} is given twice")
    runners = [first, *(built(parsed, seed) for seed in seeds[1:])]
    folders = _folders(root, runners[0], seeds)
    return parsed.text, list(map(Planned, seeds, runners, folders))


def completed(
    files: Sequence[str], bindings: Sequence[str], seed: int
) -> tuple[config.Config, Runner]:
    """The configuration, and a seed's run by it.

    Pictures are a pretrained backbone's own where nothing else is said.

    Raises:
        ConfigError: see `config.load`.
    """
    parsed = config.load(files, bindings)
    runner = built(parsed, seed)
    own = runner.own_pictures()
    if own:
        parsed = config.load(files, [*bindings, *own])
        runner = built(parsed, seed)
    return parsed, runner


@contextmanager
def hold(runs: Sequence[Run], asked: Flags) -> Iterator[dict[str, Any] | None]:
    """Makes the runs' folders; within it no other process may write there.

    Gives the result of a run alone that another process has ended just now. Of several processes
    the first alone holds and looks, as it alone writes.

    Raises:
        InputError: another process is at work in a folder, or has ended one run of several.
    """
    end = None
    with ExitStack() as held:
        for run in runs:
            if distributed.rank() == 0:
                held.enter_context(run.folder.held())
                end = _ended(run, run.config, asked)
            end = distributed.gather(end)[0]
            if end is not None and len(runs) > 1:
                raise InputError(
                    f"{run.folder.path}: this run has ended just now; --resume the others"
                )
        yield end


def carry_out(lockstep: Lockstep, runs: Sequence[Run], asked: Flags, data_dir: Path) -> list[int]:
    """Carries the lockstep's runs out in their folders; their exit codes."""
    with hold(runs, asked) as end:
        if end is not None:
            return [_say_ended(runs[0].folder, end)]
        lockstep.restore()
        together = {"seeds_at_once": [run.seed for run in runs]} if len(runs) > 1 else {}
        for run in runs:
            if distributed.rank() == 0:
                meta = {**run.plan.names, **describe(run.seed, run.device), **together}
                meta |= {"plugins": [plugins.lasting(name) for name in asked.plugin]}
                meta |= {"data_dir": str(data_dir.resolve())}
                run.folder.begin(run.config, meta)
        _introduce(runs)
        with _stopping_on_signals(runs) as received:
            results = lockstep.execute()
            distributed.gather(None)  # a process that leaves earlier may take the others with it
    for run, result in zip(runs, results, strict=True):
        print(f"{run.folder.path}: {_summary(result)}")
    stopped = 128 + (received[0] if received else signal.SIGTERM)
    return [EXIT_CODES.get(result["status"], stopped) for result in results]


def check_data(
    gin_file: Sequence[str] = (),
    gin_param: Sequence[str] = (),
    seed: int = 0,
    data_dir: str | None = None,
    plugin: Sequence[str] = (),
    threads: int | None = None,
) -> list[str]:
    """What `tools/data.py` says of a run's data; the arguments are its flags.

    Returns:
        Lines to read: how the files were read, and what looks wrong with them.

    Raises:
        InputError: something that was given cannot be used.
    """
    from metaloss.tasks.preparation import findings

    plugins.load_all(plugin)
    processes.set_threads(threads)
    # A task alone is no run: what else one needs is of the smallest that is shipped.
    _, runner = completed(["tasks/digits_mlp.gin", *gin_file], gin_param, seed)
    data = runner.task.load(find_data_dir(data_dir), runner.stream(seed, "split"))
    return [*data.notes, *findings.found(data)]


def _folders(root: Path | None, runner: Runner, seeds: Sequence[int]) -> list[RunFolder]:
    """Each seed's run folder; that of one seed alone is the one that was given, if one was."""
    if root is not None and len(seeds) == 1:
        return [RunFolder(root)]
    root = root or Path("runs", "{task}_{backbone}/{method}".format(**runner.names))
    return [RunFolder(root / f"seed{seed}") for seed in seeds]


def _ended(run: Planned | Run, text: str, asked: Flags) -> dict[str, Any] | None:
    """The result of a run that needs nothing more; an error where its folder is not for it."""
    return run.folder.check(text, run.seed, resume=asked.resume)


def _say_ended(folder: RunFolder, ended: dict[str, Any]) -> int:
    """The exit code of a run that needs nothing more."""
    print(f"{folder.path}: this run has ended already; {_summary(ended)}")
    return EXIT_CODES[ended["status"]]


def _summary(result: dict[str, Any]) -> str:
    what = "{status}, {task} + {backbone}, {method}: ".format(**result)
    if result["test"] is not None:
        what += f"test {result['metric']} {words.number(float(result['test']), 4)} "
    before = f" and {result['init_steps']} meta-steps before" * (not result["steps"])
    return (
        f"{what}after {result['steps']} steps{before}, {words.duration(float(result['seconds']))}"
    )


@distributed.first_alone
def _introduce(runs: Sequence[Run]) -> None:
    """Says what the runs are made of, and where they go."""
    first = runs[0]
    lines = introduction(first.plan, first.state, first.device)
    for line in [*lines, *(f"folder: {run.folder.path}" for run in runs)]:
        first.progress.say(line)


def _print_dry_run(lockstep: Lockstep, run: Run) -> None:
    """Makes a few steps of each phase on runs that leave no files; what it says is a gin file."""
    forecast = lockstep.rehearse()
    if distributed.rank() > 0:
        return
    print(run.config)
    introduced = introduction(run.plan, run.state, run.device)
    told = [*introduced, "parameters:", *layers(run.state.model)]
    for line in [*told, "a step of each phase works", forecast]:
        print(f"# {line}")


@contextmanager
def _stopping_on_signals(runs: Sequence[Run]) -> Iterator[list[int]]:
    """Within it, SIGTERM and SIGINT let the runs finish their step, save themselves and stop.

    A second signal acts as it does without us. Gives the list of signals that came.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for run in runs:
            run.stop = True
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
