"""Launch: from the words of a command line to a finished run, and to what its model does."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from metaloss import config
from metaloss.backbones import BACKBONES
from metaloss.config import plugins
from metaloss.config.paths import asked_for
from metaloss.errors import ConfigError, InputError
from metaloss.machine import distributed, processes, seeding
from metaloss.machine.circumstances import describe
from metaloss.machine.files import write_json
from metaloss.runs import predictions
from metaloss.runs.folder import RunFolder, found_there
from metaloss.runs.lockstep import Lockstep
from metaloss.runs.metrics import finite_or_none
from metaloss.runs.precision import process_left_as_it_was
from metaloss.runs.run import Run
from metaloss.runs.runner import Runner
from metaloss.runs.trained import TrainedModel, load_model
from metaloss.tasks import TASKS
from metaloss.tasks.base import find_data_dir

EXIT_CODES = {"finished": 0, "diverged": 3}


@process_left_as_it_was()
def train(
    gin_file: Sequence[str] = (),
    gin_param: Sequence[str] = (),
    seed: int | Sequence[int] | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    output_dir: str | None = None,
    resume: bool = False,
    plugin: Sequence[str] = (),
    strict: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    cuda_graphs: bool = False,
) -> int:
    """One run, or those of several seeds at once, as `tools/train.py` is asked for them.

    The arguments are its flags. Without gin files and bindings, `resume` goes on with what is in
    `output_dir` by what that says of itself; `seed` is then the run's own, and 0 otherwise.

    Args:
        seed: several make their steps in lockstep, each in a folder of its own: `output_dir`/seedN.

    Returns:
        The exit code.

    Raises:
        InputError: something that was given cannot be used; nothing is lost or overwritten.
    """
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads}: at least 1")
        torch.set_num_threads(threads)
    place = find_device(processes.own_device(device))
    plugins.load_all(list(plugin))
    root = None if output_dir is None else asked_for(output_dir, "--output_dir")
    seeds = [seed] if isinstance(seed, int) else list(seed or ())
    if resume and root is not None and not gin_file and not gin_param:
        gin_file, seeds = found_there(root, seeds)
    parsed = config.load(gin_file, gin_param)
    if parsed.unread:
        message = f"nobody reads: {', '.join(parsed.unread)}"
        if strict:
            raise ConfigError(message)
        print(f"warning: {message}", file=sys.stderr)
    seeds = seeds or [0]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seed {max(seeds, key=seeds.count)} is given twice")
    plans: list[Runner] = []
    for each in seeds:
        with seeding.drawing_from(seeding.stream(each, "phi")):
            plans.append(parsed.build())
    folders = _folders(root, plans[0], seeds)
    asked = list(zip(folders, seeds, plans, strict=True))
    ended = [
        None if dry_run else folder.check(parsed.text, each, resume=resume)
        for folder, each, _ in asked
    ]
    codes = [_say_ended(folder, end) for folder, end in zip(folders, ended, strict=True) if end]
    left = [one for one, end in zip(asked, ended, strict=True) if end is None]
    if not left:
        return max(codes)
    where = find_data_dir(data_dir)
    runs = [
        Run(plan, each, place, where, folder, parsed.text, cuda_graphs)
        for folder, each, plan in left
    ]
    folders = [run.folder for run in runs]
    lockstep = Lockstep(runs)
    distributed.require_equal((parsed.text, seeds), "is asked for another run")
    if dry_run:
        _print_dry_run(lockstep, runs[0], parsed.text)
        return 0
    first = distributed.rank() == 0
    with ExitStack() as held:
        for run, folder in zip(runs, folders, strict=True):
            if first:
                held.enter_context(folder.held())
            # Another may have come first; only the first process looks, as it alone writes.
            end = folder.check(parsed.text, run.seed, resume=resume) if first else None
            end = distributed.gather(end)[0]
            if end is not None and len(runs) > 1:
                raise InputError(f"{folder.path}: this run has ended just now; --resume the others")
            if end is not None:
                return _say_ended(folder, end)
        lockstep.restore()
        together = {"seeds_at_once": [run.seed for run in runs]} if len(runs) > 1 else {}
        for run, folder in zip(runs, folders, strict=True):
            if first:
                meta = {**_names(run.plan), **describe(run.seed, place), **together}
                folder.begin(parsed.text, meta)
        with _stopping_on_signals(runs) as received:
            results = lockstep.execute()
            distributed.gather(None)  # a process that leaves earlier may take the others with it
    for folder, result in zip(folders, results, strict=True):
        print(f"{folder.path}: {_summary(result)}")
    stopped = 128 + (received[0] if received else signal.SIGTERM)
    return max([*codes, *(EXIT_CODES.get(result["status"], stopped) for result in results)])


def evaluate(
    run: Path,
    split: str | None = None,
    gin_param: Sequence[str] = (),
    predict: Path | None = None,
    key: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    data_dir: str | None = None,
    plugin: Sequence[str] = (),
) -> str:
    """What `tools/evaluate.py` is asked of a run's model; the arguments are its flags.

    Returns:
        A line to read.

    Raises:
        InputError: something that was given cannot be used; nothing is written.
    """
    if predict is None and key is not None:
        raise InputError("--key is of the arrays in --predict FILE")
    if predict is not None and (split or gin_param):
        raise InputError("--predict is of one's own inputs: leave out --split and --gin_param")
    if predict is not None and output is None:
        raise InputError("--predict needs --output FILE, .npz or .csv")
    if output is not None:
        kept = [run] if predict is None else [run, predict]
        _check_output(output, (".json",) if predict is None else (".npz", ".csv"), kept, overwrite)
    plugins.load_all(list(plugin))
    trained = load_model(run, find_device(device), data_dir)
    where = f"{run}, step {trained.step} of {trained.plan.steps}"
    if predict is not None and output is not None:
        found = trained.predict(predictions.read(predict, trained.data, key))
        predictions.save(found, trained.data.classes, output)
        return f"{where}: {len(found.values)} predictions in {output}"
    numbers = _evaluation(trained, "test" if split is None else split, gin_param, data_dir)
    if output is not None:
        content = {name: finite_or_none(value) for name, value in numbers.items()}
        write_json(output, {"run": str(run), **content})
    rest = [f"{name} {numbers[name]:.6g}" for name in ("loss", "rmse", "mae") if name in numbers]
    return (
        f"{where}: {numbers['task']}, {numbers['split']} {numbers['metric']} {numbers['value']} "
        f"({numbers['n']} examples, {', '.join(rest)})"
    )


def _evaluation(
    trained: TrainedModel, split: str, gin_param: Sequence[str], data_dir: str | None
) -> dict[str, Any]:
    """A model on a split, of another task where `gin_param` says so; for JSON."""
    task, data = trained.plan.task, trained.data
    if gin_param:
        task, data = trained.other_task(gin_param, data_dir)
    numbers = trained.evaluate(split, data)
    metric = data.objective.metric
    return {
        **_names(trained.plan),
        "task": TASKS.name_of(task),
        "gin_param": list(gin_param),
        "seed": trained.seed,
        "step": trained.step,
        "steps": trained.plan.steps,
        "split": split,
        "n": len(data.splits[split][1]),
        "metric": metric,
        "value": numbers.pop(metric),
        **numbers,
    }


def _check_output(
    output: Path, endings: Sequence[str], kept: Sequence[Path], overwrite: bool
) -> None:
    """Whether a file may be written: before the work, not after it."""
    from metaloss.machine.files import check_output

    check_output(output, endings)
    for path in kept:
        if output.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--output {output}: {path} stays as it is; write elsewhere")
    if output.exists() and not overwrite:
        raise InputError(f"--output {output} is there already: --overwrite replaces it")


def find_device(name: str) -> torch.device:
    """The device by its name; "auto" is a GPU if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name!r}: give auto, cpu, cuda, or cuda:1 for the second GPU")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _names(plan: Runner) -> dict[str, str]:
    """What tables and figures call the run, while there is no result.json."""
    task, backbone = TASKS.name_of(plan.task), BACKBONES.name_of(plan.backbone)
    return {"task": task, "backbone": backbone, "method": plan.method}


def _folders(root: Path | None, plan: Runner, seeds: Sequence[int]) -> list[RunFolder]:
    """Each seed's run folder; that of one seed alone is the one that was given, if one was."""
    if root is not None and len(seeds) == 1:
        return [RunFolder(root)]
    root = root or Path("runs", "{task}_{backbone}".format(**_names(plan)), plan.method)
    return [RunFolder(root / f"seed{seed}") for seed in seeds]


def _say_ended(folder: RunFolder, ended: dict[str, Any]) -> int:
    """The exit code of a run that needs nothing more."""
    print(f"{folder.path}: this run has ended already; {_summary(ended)}")
    return EXIT_CODES[ended["status"]]


def _summary(result: dict[str, object]) -> str:
    return (
        f"{result['status']}, {result['task']} + {result['backbone']}, {result['method']}: "
        f"test {result['metric']} {result['test']} after {result['steps']} steps, "
        f"{result['seconds']} s"
    )


def _print_dry_run(lockstep: Lockstep, run: Run, text: str) -> None:
    """Makes one step of each phase on runs that leave no files, and says what each is made of."""
    theta = sum(p.numel() for p in run.state.learner.problem.theta)
    phi = sum(p.numel() for p in run.state.learner.problem.phi)
    lockstep.rehearse()
    print(text)
    print(f"# {theta:,} base parameters, {phi:,} loss parameters; one step of each phase works")
    print("# " + ", ".join(f"{name} {len(x):,}" for name, (x, _) in run.state.data.splits.items()))


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
