"""Trained models: a run's model and the data it was trained on, to evaluate and predict with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaloss import config
from metaloss.backbones.base import blank
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
from metaloss.machine import processes, sealed, seeding
from metaloss.machine.files import check_output, write_json
from metaloss.runs import evaluation, predictions
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import finite_or_none
from metaloss.runs.precision import process_left_as_it_was, set_float32
from metaloss.runs.predictions import Prediction
from metaloss.runs.runner import Runner
from metaloss.tasks import TASKS
from metaloss.tasks.base import MULTI_LABEL, SPLITS, Data, Task, find_data_dir
from metaloss.tasks.preparation import kept
from metaloss.tasks.preparation.images import Images

BYTES, NUMBERS = "bytes (uint8)", "numbers"


@dataclass(frozen=True)
class TrainedModel:
    """A run's model as its checkpoint has it.

    Attributes:
        model: in eval mode.
        data: what it was trained on, on the model's device.
        plan: the components of the run.
        folder: of the run.
        seed: of the run.
        step: base steps made so far.
        steps: base steps of the whole training.
        absent: why `data` has no examples, where it has none: the run's preparation of inputs is
            kept with it, so that `predict` needs none.
    """

    model: nn.Module
    data: Data
    plan: Runner
    folder: RunFolder
    seed: int
    step: int
    steps: int
    absent: DataError | None = None

    def evaluate(self, split: str = "test", data: Data | None = None) -> dict[str, float]:
        """Means over all examples of a split, and scores: `metaloss.runs.evaluation.examine`.

        Args:
            split: "train", "valid" or "test", or "select" where the run has one; as in the run, all
                but the test split are drawn by its seed.
            data: another data set, by `other_task`; None: the run's own.

        Raises:
            InputError: there is no such split.
            DataError: the run's data are not there, or have changed since.
        """
        if data is None and self.absent is not None:
            raise self.absent
        data = self.data if data is None else data
        if split not in data.splits:
            there = [name for name in (*SPLITS, "select") if name in data.splits]
            near, known = did_you_mean(split, there), ", ".join(there)
            raise InputError(f"no split {split!r}{near} · there are: {known}")
        with process_left_as_it_was():
            set_float32(self.plan.precision)
            return evaluation.examine(self.model, data, split).numbers

    @torch.no_grad()
    def predict(self, raw: Tensor) -> Prediction:
        """The model's answer to raw inputs, prepared as its training's were.

        Args:
            raw: as the task's files hold them, `[n, *data.input_shape]`; see
                `metaloss.runs.predictions.read`.

        Raises:
            DataError: they are of another shape; bytes where the training images were numbers, or
                the other way round; or the task does not say how raw inputs are prepared.
        """
        how, device = _preparation(self.data), self.data.splits["train"][1].device
        shape, kind = list(self.data.input_shape), _kind(self.data)
        if list(raw.shape[1:]) != shape:
            raise DataError(f"inputs of shape {list(raw.shape[1:])}, but the model takes {shape}")
        # To images, bytes are other numbers than floats are: 255 times as large.
        if isinstance(how, Images) and (raw.dtype == torch.uint8) != (kind == BYTES):
            raise DataError(f"inputs are {raw.dtype}, but the run's images are {kind}")
        parts = torch.split(raw, evaluation.CHUNK)
        with process_left_as_it_was():
            set_float32(self.plan.precision)
            found = torch.cat([self.model(how.prepare(part.to(device))) for part in parts])
        if self.data.objective is MULTI_LABEL:
            return Prediction(found.sigmoid().cpu(), None)
        if self.data.objective.metric == "error_rate":
            return Prediction(found.softmax(-1).cpu(), found.argmax(-1).cpu())
        targets = self.data.targets
        return Prediction((found if targets is None else targets.undo(found)).cpu(), None)

    def other_task(
        self, bindings: Sequence[str], data_dir: str | Path | None = None
    ) -> tuple[Task, Data]:
        """Another task for the model, the inputs and targets scaled as the training's were.

        Args:
            bindings: of gin, on top of the run's, such as "tasks.arrays.path = 'other.npz'" or
                "Runner.task = @tasks.kmnist()".
            data_dir: see `Task.load`; None: $METALOSS_DATA, or ./data.

        Raises:
            ConfigError: a binding changes something besides the task, or nothing reads it.
            DataError: the data cannot be read, or is not of the model's kind.
        """
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
        plan = _build(parsed, self.seed)
        device = self.data.splits["train"][1].device
        return plan.task, _prepared_as(self.data, _load_data(plan, self.seed, device, data_dir))


def load_model(
    run: str | Path,
    device: str | torch.device = "cpu",
    data_dir: str | Path | None = None,
    *,
    average: bool = False,
) -> TrainedModel:
    """The model of a run that ended, was stopped or still goes on; changes nothing there.

    Args:
        run: its folder.
        device: where model and data go.
        data_dir: the run's, see `Task.load`; None: $METALOSS_DATA, or ./data.
        average: the running mean of its weights, where it has one (`Runner.ema`), in their place.

    Raises:
        InputError: the run has no running mean.
        RunFolderError: it is no run folder, has no checkpoint yet or a damaged one, or is still in
            its initialisation. Where the latest checkpoint alone is damaged, the model is of the
            one before, with a warning.
        DataError, ConfigError: the data cannot be read (see `TrainedModel.absent`), or a component
            is not known: a plugin is missing.
    """
    folder, device = RunFolder(Path(run)), torch.device(device)
    if not folder.config.is_file():
        raise RunFolderError(f"{run} is no run folder: there is no config.gin in it")
    if not sealed.exists(folder.checkpoint):
        raise RunFolderError(f"{run} has no checkpoint yet: its first comes at checkpoint_every")
    saved, damage = sealed.load_last(folder.checkpoint)
    if damage is not None:
        warnings.warn(f"{damage}: the model is of the one before", stacklevel=2)
    seed = folder.seed()
    if saved.get("config") != folder.config.read_text("utf-8", errors="replace"):
        raise RunFolderError(f"{folder.checkpoint} is of another configuration")
    plan = _build(config.load([folder.config]), seed)
    if average and plan.ema is None:
        raise InputError(f"{run} has no running mean of its weights: it was trained without ema")
    preparation, absent = saved.get("state", {}).get("data"), None
    try:
        data = _load_data(plan, seed, device, data_dir)
        kept.require_same(data, preparation)
        data = kept.prepared_so(data, preparation)
    except DataError as error:
        if not kept.is_enough(preparation):
            raise
        data, absent = kept.without_examples(preparation).to(device), error
    with seeding.drawing_from(seeding.stream(seed, "theta")), blank():
        model = plan.backbone(input_shape=data.input_shape, outputs=data.outputs).to(device)
    if plan.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    step = _restore(model, saved, plan, folder, average)
    steps = saved["state"].get("total", plan.steps)
    return TrainedModel(model.eval(), data, plan, folder, seed, step, steps, absent)


# --- the command ---


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
    trained = load_model(run, processes.find_device(device), data_dir)
    where = f"{run}, step {trained.step} of {trained.steps}"
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
        **trained.plan.names,
        "task": TASKS.name_of(task),
        "gin_param": list(gin_param),
        "seed": trained.seed,
        "step": trained.step,
        "steps": trained.steps,
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


def _restore(
    model: nn.Module, saved: dict[str, Any], plan: Runner, folder: RunFolder, average: bool
) -> int:
    """Gives the model the checkpoint's parameters and buffers; -> base steps made so far.

    Args:
        average: those of the running mean.
    """
    try:
        state = saved["state"]
        made, step = int(state["init_steps"]), int(state["steps"])
        best = state.get("best")  # where the run keeps it, it is the model that was tested
        source = state if best is None else best
        model.load_state_dict(_mean(source) if average else source["model"])
        step = step if best is None else int(best["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"of another version: {type(error).__name__}: {first_line(error)}"
        raise RunFolderError(sealed.damage(folder.checkpoint, reason)) from error
    if plan.initialization is not None and made < plan.initialization.steps:
        raise RunFolderError(
            f"{folder.path} is at meta-step {made} of {plan.initialization.steps} of its "
            "initialisation: no model is in training yet"
        )
    return step


def _mean(source: Mapping[str, Any]) -> dict[str, Any]:
    """The running mean in a state, under the model's own names; its model before the training."""
    if source["average"] is None:
        return dict(source["model"])
    within = "module."
    found = source["average"].items()
    return {name[len(within) :]: value for name, value in found if name.startswith(within)}


def _build(parsed: config.Config, seed: int) -> Runner:
    with seeding.drawing_from(seeding.stream(seed, "phi")):
        plan: Runner = parsed.build()
    return plan


def _load_data(plan: Runner, seed: int, device: torch.device, data_dir: str | Path | None) -> Data:
    """The data as the run of this seed splits it."""
    split = seeding.stream(seed, "split")
    return plan.load_data(find_data_dir(data_dir), seed, split).to(device)


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
    stored = data.splits["train"][0].dtype
    return BYTES if stored == torch.uint8 or isinstance(data.inputs, Images) else NUMBERS


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
