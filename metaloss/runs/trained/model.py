"""Trained models: a run's model and the data it was trained on, to evaluate and predict with."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaloss import config
from metaloss.backbones.base import BACKBONES, blank
from metaloss.config import plugins
from metaloss.config.gin_files import bindings_of
from metaloss.errors import (
    ConfigError,
    DataError,
    InputError,
    RunFolderError,
    did_you_mean,
    first_line,
)
from metaloss.machine import processes, sealed
from metaloss.machine.files import check_output, write_json
from metaloss.runs import evaluation
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import finite_or_none
from metaloss.runs.precision import process_left_as_it_was, set_float32
from metaloss.runs.runner import Runner, built
from metaloss.runs.trained import calibration, inputs, predictions, saved_model
from metaloss.runs.trained.answers import Answer
from metaloss.runs.trained.inputs import Inputs
from metaloss.runs.trained.predictions import Prediction
from metaloss.runs.trained.saved_model import SavedModel, Weights
from metaloss.tasks import TASKS
from metaloss.tasks.base import CLASSIFICATION, MULTI_LABEL, SPLITS, Data, Task, find_data_dir
from metaloss.tasks.preparation import kept
from metaloss.tasks.preparation.images import Images

BYTES, NUMBERS = "bytes (uint8)", "numbers"
BATCH = 256  #: inputs that are predicted for at once


@dataclass(frozen=True)
class TrainedModel:
    """A model that has left its run, or as the run's checkpoint has it.

    Attributes:
        model: in eval mode.
        about: how inputs are prepared and what outputs mean, on the model's device; of every split
            no example, unless only the data themselves can say it.
        folder: that it is from.
        seed: of the run.
        step: base steps that were made for these weights.
        steps: base steps of the whole training.
        precision: of the run.
        data_dir: see `Task.load`.
        saved: what files can say of it, with these weights alone; None: nothing.
        temperature: that outputs are divided by, see `calibrated`.
    """

    model: nn.Module
    about: Data
    folder: RunFolder
    seed: int
    step: int
    steps: int
    precision: str
    data_dir: str | Path | None = None
    saved: SavedModel | None = None
    temperature: float = 1.0

    @cached_property
    def plan(self) -> Runner:
        """The components of the run.

        Raises:
            RunFolderError: the folder is of a model alone.
            ConfigError: a component is not known: a plugin is missing.
        """
        if not self.folder.config.is_file():
            raise RunFolderError(
                f"{self.folder.path} has no config.gin, which names the data: it predicts, but it "
                "can be evaluated in its run's own folder only"
            )
        plugins.load_of_run(self.folder.plugins())
        return built(config.load([self.folder.config]), self.seed)

    @cached_property
    def data(self) -> Data:
        """What it was trained on, on the model's device; read when it is asked for first.

        Raises:
            DataError: the run's data are not there, or have changed since.
        """
        if len(self.about.splits["train"][1]):
            return self.about
        data = _load_data(self.plan, self.seed, self._device, self.data_dir)
        then = None if self.saved is None else self.saved.about["data"]
        kept.require_same(data, then)
        return kept.prepared_so(data, then)

    def calibrated(self) -> TrainedModel:
        """The same with probabilities that are as high as they are right, see `calibration`.

        A run that has finished knows its temperature; of others it is fitted to the validation
        data.

        Raises:
            InputError: the outputs are of no classes that exclude each other, or no temperature
                suits.
            DataError: it is to be fitted, and the run's data are not there.
        """
        if self.about.objective is not CLASSIFICATION:
            raise InputError(
                "calibrated: a temperature is of classes that exclude each other, and the run's "
                "outputs are none"
            )
        held = {} if self.saved is None else self.saved.about["weights"]["tested"]
        if "temperature" in held:
            found = held["temperature"]
        else:
            with process_left_as_it_was():
                set_float32(self.precision)
                found = calibration.temperature(self.model, self.data)
        if found is None:
            raise InputError(
                f"calibrated: no temperature from {calibration.LOWEST:g} to "
                f"{calibration.HIGHEST:g} suits the validation data; a model that is right on all "
                "of them has none"
            )
        return replace(self, temperature=found)

    @property
    def outputs(self) -> nn.Module:
        """The model, its outputs divided by the temperature if there is one."""
        if self.temperature == 1:
            return self.model
        return calibration.Tempered(self.model, self.temperature).eval()

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.about.splits["train"][1].device
        return device

    def evaluate(self, split: str = "test", data: Data | None = None) -> dict[str, float]:
        """Means over all examples of a split, and scores: `metaloss.runs.evaluation.examine`.

        Args:
            split: "train", "valid" or "test", or "select" where the run has one; as in the run, all
                but the test split are drawn by its seed.
            data: another data set, by `other_task`; None: the run's own.

        Raises:
            InputError: there is no such split.
            DataError: see `data`.
        """
        data = self.data if data is None else data
        if split not in data.splits:
            there = [name for name in (*SPLITS, "select") if name in data.splits]
            near, known = did_you_mean(split, there), ", ".join(there)
            raise InputError(f"no split {split!r}{near} · there are: {known}")
        with process_left_as_it_was():
            set_float32(self.precision)
            return evaluation.examine(self.outputs, data, split).numbers

    def predict(self, what: Any, batch: int = BATCH, key: str | None = None) -> Prediction:
        """The model's answer to what a person has, prepared as its training's inputs were.

        Args:
            what: files, pictures, rows or arrays, see `metaloss.runs.trained.inputs.batches`.
            batch: how many at once; the answer does not depend on it but for rounding.
            key: of the array in an .npz file.

        Raises:
            DataError: it cannot be read, or is not what the model takes, which is said; or the task
                does not say how raw inputs are prepared.
        """
        parts = list(self.stream(what, batch, key))
        if not parts:
            raise DataError("there is nothing to predict for")
        return predictions.joined(parts)

    def stream(self, what: Any, batch: int = BATCH, key: str | None = None) -> Iterator[Prediction]:
        """The same a batch at a time: of an iterator without end, the next answers as they come.

        Args:
            what, batch, key: see `predict`.

        Raises:
            DataError: see `predict`.
        """
        for given in inputs.batches(what, self.about, batch, key):
            yield self._answer(given)

    @torch.no_grad()
    def _answer(self, given: Inputs) -> Prediction:
        about, kind = self.about, _kind(self.about)
        answer = Answer(self.outputs, about)
        # To images, bytes are other numbers than floats are: 255 times as large.
        if isinstance(about.preparation, Images) and (given.raw.dtype == torch.uint8) != (
            kind == BYTES
        ):
            raise DataError(f"inputs are {given.raw.dtype}, but the run's images are {kind}")
        with process_left_as_it_was():
            set_float32(self.precision)
            said = answer(given.raw.to(self._device)).cpu()
        if answer.kind == "values":
            return Prediction(said, "values", None, about.target_names, given.files)
        likely = None if about.objective is MULTI_LABEL else said.argmax(-1)
        return Prediction(said, "probabilities", likely, about.classes, given.files)

    def write(self, folder: Path) -> None:
        """Leaves the model in a folder as a finished run does, with these weights alone.

        Raises:
            InputError: no file can say what the model is.
            RunFolderError: the folder cannot be written to.
        """
        if self.saved is None:
            why = saved_model.obstacle(self.plan, kept.of(self.about))
            raise InputError(f"no file can say what the model of {self.folder.path} is: {why}")
        self.saved.write(folder)

    def other_task(
        self, bindings: Sequence[str], data_dir: str | Path | None = None
    ) -> tuple[Task, Data]:
        """Another task for the model, the inputs and targets scaled as the training's were.

        Args:
            bindings: of gin, on top of the run's, such as "tasks.arrays.path = 'other.npz'" or
                "Runner.task = @tasks.kmnist()".
            data_dir: see `Task.load`; None: that of the model's own data.

        Raises:
            ConfigError: a binding changes something besides the task, or nothing reads it.
            DataError: the data cannot be read, or is not of the model's kind.
        """
        _ = self.plan  # which says what is missing, if it is
        parsed = config.load([self.folder.config], bindings)
        unread = [binding for binding in parsed.unread if "--gin_param" in binding]  # not the run's
        if unread:
            raise ConfigError(f"nobody reads: {', '.join(unread)}")
        own = config.load([self.folder.config])
        here, there = (bindings_of(text, "config.gin") for text in (own.text, parsed.text))
        for name in sorted({*here, *there}):
            same = name in here and name in there and here[name] == there[name]
            if not (same or name == "Runner.task" or "tasks." in name):
                raise ConfigError(f"{name} belongs to the trained model: only its task can change")
        plan = built(parsed, self.seed)
        folder = self.data_dir if data_dir is None else data_dir
        return plan.task, _prepared_as(
            self.about, _load_data(plan, self.seed, self._device, folder)
        )


def load_model(
    run: str | Path,
    device: str | torch.device = "cpu",
    data_dir: str | Path | None = None,
    *,
    weights: Weights = "tested",
    calibrated: bool = False,
) -> TrainedModel:
    """The model of a run that ended, was stopped or still goes on; changes nothing there.

    Of a run that has finished `model.json` and the weights beside it are read, and nothing else: no
    data, no gin file, and no plugin but one that the backbone is from. Of others it is the
    checkpoint's. Plugins that it needs are loaded: those that are installed, and those that the run
    remembers.

    Args:
        run: its folder, or one with the files of `metaloss.runs.trained.saved_model` alone.
        device: where model and data go.
        data_dir: of `evaluate`, see `Task.load`; None: the one that the run began with, if it is
            still there, else $METALOSS_DATA, or ./data.
        weights: "tested", those that `result.json` is about (the best where the run kept it, else
            the last); "last"; or "average", their running mean (`Runner.ema` or `swa`).
        calibrated: divide its outputs by a temperature, see `TrainedModel.calibrated`.

    Raises:
        InputError: the run has no such weights, or no temperature.
        RunFolderError: it is no run folder, has no checkpoint yet or a damaged file, or is still in
            its initialisation. Where the latest checkpoint alone is damaged, the model is of the
            one before, with a warning.
        DataError, ConfigError: a component is not known: a plugin is missing; or, of a run that
            kept no preparation of its inputs, the data cannot be read.
    """
    folder, device = RunFolder(Path(run)), torch.device(device)
    data_dir = folder.data_dir() if data_dir is None else data_dir
    if folder.model.is_file():
        saved = saved_model.read(folder.path, weights)
        found = _of_files(saved, folder, device, data_dir, weights)
    else:
        found = _of_checkpoint(folder, device, data_dir, weights)
    return found.calibrated() if calibrated else found


def _of_files(
    saved: SavedModel,
    folder: RunFolder,
    device: torch.device,
    data_dir: str | Path | None,
    weights: Weights,
) -> TrainedModel:
    about = saved.about
    if about["backbone"] not in BACKBONES:
        plugins.load_of_run(folder.plugins())
    return TrainedModel(
        saved.build(weights).to(device),
        saved.data.to(device),
        folder,
        about["seed"],
        saved.step(weights),
        about["total"],
        about["precision"],
        data_dir,
        saved.alone(weights),
    )


def _of_checkpoint(
    folder: RunFolder, device: torch.device, data_dir: str | Path | None, weights: Weights
) -> TrainedModel:
    """Of a run that has not finished, or whose model no file can tell of."""
    if not folder.config.is_file():
        raise RunFolderError(
            f"{folder.path} is no run folder: there is no config.gin in it, nor model.json"
        )
    if not sealed.exists(folder.checkpoint):
        raise RunFolderError(
            f"{folder.path} has no checkpoint yet: its first comes at checkpoint_every"
        )
    checkpoint, damage = sealed.load_last(folder.checkpoint)
    if damage is not None:
        warnings.warn(f"{damage}: the model is of the one before", stacklevel=3)
    if checkpoint.get("config") != folder.config.read_text("utf-8", errors="replace"):
        raise RunFolderError(f"{folder.checkpoint} is of another configuration")
    seed = folder.seed()
    plugins.load_of_run(folder.plugins())
    plan = built(config.load([folder.config]), seed)
    try:
        state = checkpoint["state"]
        found, steps = saved_model.weights_of(state)
        made, total = int(state["init_steps"]), state.get("total", plan.steps)
        saved = saved_model.of_state(plan, seed, state)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"of another version: {type(error).__name__}: {first_line(error)}"
        raise RunFolderError(sealed.damage(folder.checkpoint, reason)) from error
    if plan.initialization is not None and made < plan.initialization.steps:
        raise RunFolderError(
            f"{folder.path} is at meta-step {made} of {plan.initialization.steps} of its "
            "initialisation: no model is in training yet"
        )
    saved_model.require_weights(weights, {**plan.names, "seed": seed, "weights": found})
    if saved is not None:
        return _of_files(saved, folder, device, data_dir, weights)
    data = _load_data(plan, seed, device, data_dir)
    kept.require_same(data, state.get("data"))
    with torch.random.fork_rng(devices=()), blank():
        model = plan.backbone(input_shape=data.input_shape, outputs=data.outputs)
    if plan.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    try:
        model.load_state_dict(found[weights])
    except RuntimeError as error:
        reason = f"of another version: {first_line(error)}"
        raise RunFolderError(sealed.damage(folder.checkpoint, reason)) from error
    model = model.eval().to(device)
    # An earlier version kept no preparation of the inputs, which the data have told now.
    saved = saved_model.of_state(plan, seed, {**state, "data": kept.of(data)})
    alone = saved and saved.alone(weights)
    stands = steps[weights], total, plan.precision, data_dir, alone
    return TrainedModel(model, data, folder, seed, *stands)


# --- the command ---


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within it warnings become lines of standard error, as a command's are; also a decorator."""

    def tell(message: Warning | str, *where: Any, **more: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = tell
        yield


@warnings_as_lines()
def evaluate(
    run: Path,
    split: str | None = None,
    gin_param: Sequence[str] = (),
    predict: Path | None = None,
    key: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    weights: Weights = "tested",
    calibrated: bool = False,
    device: str = "auto",
    data_dir: str | None = None,
    plugin: Sequence[str] = (),
    threads: int | None = None,
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
    plugins.load_all(plugin, remembered=RunFolder(run).plugins())
    processes.set_threads(threads)
    where = processes.find_device(device)
    trained = load_model(run, where, data_dir, weights=weights, calibrated=calibrated)
    said = f"{run}, step {trained.step} of {trained.steps}"
    if calibrated:
        said += f", temperature {trained.temperature:.4g}"
    if predict is not None and output is not None:
        found = trained.predict(predict, key=key)
        predictions.save(found, output)
        return f"{said}: {len(found)} predictions in {output}"
    numbers = _evaluation(trained, "test" if split is None else split, gin_param, data_dir)
    if output is not None:
        content = {name: finite_or_none(value) for name, value in numbers.items()}
        write_json(output, {"run": str(run), **content})
    rest = [f"{name} {numbers[name]:.6g}" for name in ("loss", "rmse", "mae") if name in numbers]
    return (
        f"{said}: {numbers['task']}, {numbers['split']} {numbers['metric']} {numbers['value']} "
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
        **trained.plan.names,
        "task": TASKS.name_of(task),
        "gin_param": list(gin_param),
        "seed": trained.seed,
        "step": trained.step,
        "steps": trained.steps,
        **({} if trained.temperature == 1 else {"temperature": trained.temperature}),
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
    check_output(output, endings)
    for path in kept:
        if output.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--output {output}: {path} stays as it is; write elsewhere")
    if output.exists() and not overwrite:
        raise InputError(f"--output {output} is there already: --overwrite replaces it")


# --- from a run folder ---


def _load_data(plan: Runner, seed: int, device: torch.device, data_dir: str | Path | None) -> Data:
    """The data as the run of this seed splits it."""
    return plan.load_data(find_data_dir(data_dir), seed).to(device)


# --- another data set ---


def _prepared_as(own: Data, other: Data) -> Data:
    """Another data set with the inputs and targets scaled as the model's own are.

    Each task scales by its own training examples: a model would meet other numbers for the same
    example.

    Raises:
        DataError: shapes, kind, classes or columns differ, or a task does not say how it scales.
    """
    for what, here, there in (
        ("inputs", list(own.input_shape), list(other.input_shape)),
        ("outputs", own.outputs, other.outputs),
        ("metric", own.objective.metric, other.objective.metric),
        ("raw inputs", _kind(own), _kind(other)),
    ):
        if here != there:
            raise DataError(f"the model's {what}: {here}, but the other data set's: {there}")
    _require_same_names("classes", own.classes, other.classes)
    features = [None if d.encoding is None else d.encoding.features for d in (own, other)]
    _require_same_names("inputs", *features)
    how = _preparation(own)
    _preparation(other)
    if other.images is not None and isinstance(how, Images):
        inputs, images = {split: x for split, (x, _) in other.splits.items()}, how
    else:
        inputs, images = {split: how.prepare(other.raw(split)) for split in other.splits}, None
    labels = {split: y for split, (_, y) in other.splits.items()}
    if own.objective.metric == "mse":
        if other.targets is not None:
            labels = {split: other.targets.undo(y) for split, y in labels.items()}
        if own.targets is not None:
            labels = {split: own.targets.prepare(y) for split, y in labels.items()}
        labels = {split: y.float() for split, y in labels.items()}
    splits = {split: (inputs[split], labels[split]) for split in other.splits}
    return replace(own, splits=splits, images=images, inputs=None if images else how)


def _kind(data: Data) -> str:
    """What a task's raw inputs are: bytes of images, or numbers."""
    return BYTES if inputs.takes_bytes(data) else NUMBERS


def _require_same_names(
    what: str, own: tuple[str, ...] | None, other: tuple[str, ...] | None
) -> None:
    if own is None or other is None:
        return
    for here, there in zip(own, other, strict=True):
        if here != there:
            raise DataError(
                f"the model's {what} have '{here}' where the other data set's '{there}'"
            )


def _preparation(data: Data) -> Any:
    if data.preparation is None:
        raise DataError(
            "the run's task does not say how raw inputs become the model's: Data.inputs"
        )
    return data.preparation
