"""Transfer: learned losses train other models or tasks, beside the baseline, for several seeds.

Each training is an ordinary run, in FOLDER/METHOD/seedN, of a task file and one of
`gin_configs/transfer`. Its loss is kept in FOLDER first, so that a run stays what it is when the
place that the loss came from changes. Runs that are there are kept; those that were stopped go on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaloss import config
from metaloss.config import plugins
from metaloss.config.paths import asked_for
from metaloss.errors import InputError, RunFolderError, did_you_mean
from metaloss.experiments import settings
from metaloss.machine.files import read_json, write_json
from metaloss.machine.tensors import digest
from metaloss.representations.base import REPRESENTATIONS
from metaloss.representations.saved.folder import CONFIG
from metaloss.representations.saved.learned_loss import LearnedLoss, load_loss
from metaloss.runs import launch
from metaloss.runs.folder import RunFolder

#: Ways to train with a learned loss, and what they do with it.
MODES = {
    "frozen": "left as it is",
    "schedule": "replayed as it changed",
    "adapt": "learning goes on",
}
BASELINE = "baseline"


@dataclass(frozen=True)
class Trial:
    """One way to train with a learned loss.

    Attributes:
        method: names its runs.
        mode: "frozen" leaves the loss as it is, "schedule" replays how it changed, stretched to the
            new training, and "adapt" goes on learning it online.
        loss: what it trains with.
        kept: the loss's folder within the plan's.
        step: base step that the loss is taken at; None as it ended.
    """

    method: str
    mode: str
    loss: LearnedLoss
    kept: str = "loss"
    step: int | None = None

    def __str__(self) -> str:
        loss = self.loss if self.step is None else self.loss.at(self.step)
        return f"{loss.summary}; {MODES[self.mode]}"

    def check(self) -> None:
        """Raises InputError where the mode is unknown, or the loss does not have what it takes."""
        if self.mode not in MODES:
            near, known = did_you_mean(self.mode, MODES), ", ".join(MODES)
            raise InputError(f"no mode {self.mode!r}{near} · there are: {known}")
        if self.mode == "schedule":
            self.loss.schedule()
            if self.step is not None:
                raise InputError("--step: a schedule goes through all recorded steps")
        if self.step is not None:
            self.loss.at(self.step)

    def bindings(self, folder: Path, steps: int) -> list[str]:
        """What its runs bind, for a training of so many steps."""
        bound = [f"LOSS = {str(folder / self.kept)!r}", f"Runner.method = {self.method!r}"]
        if self.step is not None:
            bound.append(f"representations.pretrained.step = {self.step}")
        recorded = self.loss.trajectory
        if self.mode == "schedule" and recorded is not None and recorded.last != steps:
            bound.append(f"meta_optimizers.replay.over = {steps}")
        return bound


@dataclass(frozen=True)
class Plan:
    """Trials on one task, and the baseline.

    Attributes:
        folder: where all of it goes.
        gin_file, gin_param: task, backbone and numbers, of all runs.
        trials: what is compared with the baseline.
        seeds: of each method.
    """

    folder: Path
    gin_file: Sequence[str]
    gin_param: Sequence[str]
    trials: Sequence[Trial]
    seeds: Sequence[int]

    @property
    def methods(self) -> list[str]:
        """The baseline and the trials."""
        return [BASELINE, *(trial.method for trial in self.trials)]

    def run(self, method: str, seed: int) -> RunFolder:
        """The folder of one training."""
        return RunFolder(self.folder / method / f"seed{seed}")

    def carry_out(
        self,
        device: str = "auto",
        data_dir: str | None = None,
        plugin: Sequence[str] = (),
        threads: int | None = None,
    ) -> int:
        """All runs that are not there yet; the arguments are those of `launch.train`.

        Returns:
            0, or the exit code of a run that was stopped; the others wait for the next call. Runs
            that diverged are results too.

        Raises:
            InputError: something that was given cannot be used, or the folder keeps another loss or
                other runs.
        """
        for trial in self.trials:
            trial.check()
        plugins.load_all(list(plugin))
        baseline = [*self.gin_file, "methods/baseline.gin"]
        text = config.load(baseline, self.gin_param).text
        steps = settings.read(text, "the gin files").values["Runner.steps"]
        if steps is None:
            raise InputError("Runner.epochs: a transfer counts base steps, give Runner.steps")
        runs = {BASELINE: (baseline, [*self.gin_param])}
        for trial in self.trials:
            keep(trial.loss, self.folder / trial.kept)
            files = [*self.gin_file, f"transfer/{trial.mode}.gin"]
            runs[trial.method] = files, [*trial.bindings(self.folder, steps), *self.gin_param]
        for seed in self.seeds:
            for method, (files, bindings) in runs.items():
                code = launch.train(
                    gin_file=files,
                    gin_param=bindings,
                    seed=seed,
                    device=device,
                    data_dir=data_dir,
                    output_dir=str(self.run(method, seed).path),
                    resume=True,
                    plugin=plugin,
                    threads=threads,
                )
                if code not in launch.EXIT_CODES.values():
                    return code
        return 0

    def results(self) -> dict[str, dict[int, dict[str, Any]]]:
        """The runs' result.json, by method and seed.

        Raises:
            RunFolderError: a run has none.
        """
        return {
            method: {seed: read_json(self.run(method, seed).result) for seed in self.seeds}
            for method in self.methods
        }

    def report(self) -> str:
        """The table of all runs, as Markdown; also written to transfer.md and transfer.json.

        Raises:
            RunFolderError: a run has no result, or the folder cannot be written to.
        """
        from metaloss.experiments.reports import (  # matplotlib takes a while
            formats,
            output,
            transfer_table,
        )

        results, losses = self.results(), {trial.method: str(trial) for trial in self.trials}
        text = formats.markdown(transfer_table.document(results, losses), {})
        output.save_text(text, self.folder / "transfer.md")
        write_json(self.folder / "transfer.json", transfer_table.summary(results, losses))
        return text


def load_plugins(asked: Sequence[str], loss: Path) -> list[str]:
    """Loads the plugins that are asked for, and those that a loss's run remembers; all of them.

    Args:
        asked: as given to `--plugin`.
        loss: the folder of the run, or of an exported loss, which remembers none.

    Raises:
        ConfigError: one does not load.
    """
    every = [*asked, *plugins.besides(asked, RunFolder(loss).plugins())]
    plugins.load_all(every)
    return every


def keep(loss: LearnedLoss, folder: Path) -> None:
    """Writes the loss into a folder, or sees that it is the one there.

    Raises:
        RunFolderError: another loss is there, of which runs may be.
    """
    if not (folder / CONFIG).is_file():
        loss.save_pretrained(folder)
        return
    if _identity(load_loss(folder)) != _identity(loss):
        raise RunFolderError(
            f"{folder} keeps another loss, which the runs beside it are of: give another "
            "--output_dir"
        )


def _identity(loss: LearnedLoss) -> tuple[str, str, str]:
    """Equal for losses that train alike."""
    recorded = loss.trajectory
    changes = {} if recorded is None else {"/steps": recorded.steps, "/phi": recorded.phi}
    return (
        REPRESENTATIONS.name_of(loss.representation),
        json.dumps(loss.representation.arguments()),  # to which a tuple is a list
        digest({**loss.representation.state_dict(), **changes}),
    )


# --- the command ---


def command(
    loss: Path,
    gin_file: Sequence[str],
    gin_param: Sequence[str],
    mode: Sequence[str] | None,
    step: int | None,
    seed: Sequence[int] | None,
    output_dir: str,
    device: str,
    data_dir: str | None,
    plugin: Sequence[str],
    threads: int | None,
) -> int:
    """What `tools/transfer.py` is asked; the arguments are its flags. Gives the exit code.

    Raises:
        InputError: something that was given cannot be used.
    """
    plugin = load_plugins(plugin, loss)
    learned = load_loss(loss)
    trials = [Trial(name, name, learned, step=step) for name in dict.fromkeys(mode or ["frozen"])]
    folder, seeds = asked_for(output_dir, "--output_dir"), list(dict.fromkeys(seed or [0, 1, 2]))
    plan = Plan(folder, gin_file, gin_param, trials, seeds)
    code = plan.carry_out(device, data_dir, plugin, threads)
    if code == 0:
        print(plan.report())
    return code
