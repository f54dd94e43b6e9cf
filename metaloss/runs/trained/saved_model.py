"""A model as it leaves its run: JSON and safetensors, which are data and cannot run code.

model.json                   backbone and its arguments, inputs, outputs, their preparation, classes
weights.safetensors          parameters and buffers of the model that was tested
weights.last.safetensors     those of the last step, where the run kept a better one
weights.average.safetensors  their running mean, where the run took one (`Runner.ema`, `Runner.swa`)
README.md                    the same for people
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from metaloss.backbones.base import BACKBONES, blank
from metaloss.config.arguments import parameters_of
from metaloss.config.origins import how_to_get, origin_of
from metaloss.config.registry import UnknownComponentError
from metaloss.errors import InputError, RunFolderError, did_you_mean, first_line
from metaloss.machine.circumstances import versions
from metaloss.machine.files import read_json, write_atomically, write_json, writing
from metaloss.machine.tensors import read_tensors, write_tensors
from metaloss.runs.runner import Runner
from metaloss.runs.trained import model_card
from metaloss.tasks.base import Data
from metaloss.tasks.preparation import kept

FORMAT = 1
ABOUT, CARD = "model.json", "README.md"
NEEDED = ("task", "memory_format", "precision", "total")  #: in model.json, of any kind
#: "tested": those that `result.json` is about, the best where the run kept it (`Runner.keep_best`).
#: "last": of the last step. "average": the running mean, taken when the tested ones were.
Weights = Literal["tested", "last", "average"]


@dataclass(frozen=True)
class SavedModel:
    """What the files hold.

    Attributes:
        about: the content of model.json, plain data.
        weights: parameters and buffers by name, of each kind that was read.
    """

    about: dict[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]

    @property
    def data(self) -> Data:
        """How inputs are prepared and what outputs mean; of every split no example."""
        return kept.without_examples(self.about["data"])

    def step(self, weights: Weights) -> int:
        """Base steps that were made for one kind of weights."""
        return int(self.about["weights"][weights]["step"])

    def alone(self, weights: Weights) -> SavedModel:
        """The same with one kind of weights, as those that are meant."""
        held = {**self.about["weights"][weights], "file": file_of("tested"), "kind": weights}
        about = {**self.about, "weights": {"tested": held}}
        return SavedModel(about, {"tested": self.weights[weights]})

    def build(self, weights: Weights = "tested") -> nn.Module:
        """The model, in eval mode on the CPU; draws nothing random.

        Raises:
            RunFolderError: the weights do not fit the backbone.
            UnknownComponentError: no backbone has its name: a plugin is missing.
        """
        name, data = self.about["backbone"], self.about["data"]
        if name not in BACKBONES:
            origin = how_to_get(self.about.get("origin"))
            raise UnknownComponentError(f"{BACKBONES.describe_unknown(name)}{origin}")
        sizes = {"input_shape": tuple(data["input_shape"]), "outputs": data["outputs"]}
        with torch.random.fork_rng(devices=()), blank():
            model: nn.Module = BACKBONES.build(
                name, {**_in_tuples(self.about["arguments"]), **sizes}
            )
        if self.about["memory_format"] == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        try:
            model.load_state_dict(self.weights[weights])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RunFolderError(f"the {weights} weights do not fit {name}: {reason}") from error
        return model.eval()

    def write(self, folder: Path) -> None:
        """Writes the files; model.json last, so that where it is the others are.

        Raises:
            RunFolderError: the folder cannot be written to.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for kind, tensors in self.weights.items():
            write_tensors(folder / file_of(kind), tensors)
        text = model_card.text(self.about, self.build())
        write_atomically(folder / CARD, lambda path: path.write_text(text, "utf-8"))
        write_json(folder / ABOUT, self.about)


def of_state(plan: Runner, seed: int, state: Mapping[str, Any]) -> SavedModel | None:
    """The model in what a run keeps.

    Args:
        plan, seed: of the run.
        state: see `State.standing`, or what a checkpoint has of it.

    Returns:
        None where there is an `obstacle`.
    """
    if obstacle(plan, state.get("data")) is not None:
        return None
    name = BACKBONES.name_of(plan.backbone)
    arguments = _arguments(plan)
    weights, steps = weights_of(state)
    about = {
        "format": FORMAT,
        **plan.names,
        "seed": seed,
        "arguments": arguments,
        "origin": origin_of(inspect.unwrap(BACKBONES[name]).__module__),
        "precision": plan.precision,
        "memory_format": plan.memory_format,
        "weights": {kind: {"file": file_of(kind), "step": steps[kind]} for kind in weights},
        "total": state.get("total", plan.steps),
        "data": kept.in_json(state["data"]),
        "versions": versions(),
    }
    return SavedModel(about, weights)


def obstacle(plan: Runner, data: kept.Kept | None) -> str | None:
    """Why no file can say what a run's model is; None: one can.

    Args:
        plan: of the run.
        data: what it keeps of its data, see `kept.of`; None: nothing.
    """
    name = BACKBONES.name_of(plan.backbone)
    if name not in BACKBONES:
        return f"its backbone {name} is not registered"
    if data is None:
        return "its checkpoint, of an earlier version, has no preparation of its inputs"
    if not kept.is_enough(data):
        return f"its task {plan.names['task']} has an objective of its own"
    if not _is_plain(_arguments(plan)):
        return f"an argument of its backbone {name} is more than text and numbers"
    return None


def read(folder: Path, weights: Weights = "tested") -> SavedModel:
    """The model that `SavedModel.write` wrote, with one kind of weights.

    Raises:
        InputError: there are no such weights.
        RunFolderError: a file is missing or damaged, or its format is newer.
    """
    path = folder / ABOUT
    about = read_json(path)
    found = about.get("format")
    if type(found) is not int or found < 1:
        raise RunFolderError(f"{path} is not that of a model: it has no format of one")
    if found > FORMAT:
        raise RunFolderError(
            f"{path} has format {found}, of a newer metaloss; this one reads formats up to {FORMAT}"
        )
    kinds = {"backbone": str, "arguments": dict, "weights": dict, "data": dict, "seed": int}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            raise RunFolderError(f"{path} is damaged: {name} = {about.get(name)!r}")
    require_weights(weights, about)
    saved = SavedModel(about, {weights: read_tensors(folder / file_of(weights))})
    try:
        _ = saved.data, saved.step(weights), *(about[name] for name in NEEDED)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise RunFolderError(f"{path} is damaged: {reason}") from error
    return saved


def require_weights(weights: str, about: Mapping[str, Any]) -> None:
    """Raises InputError unless a model has such weights."""
    if weights in about["weights"]:
        return
    why = {
        "last": "the tested ones are the last, since it was trained without keep_best",
        "average": "it has no running mean of its weights, since it was trained without ema or swa",
    }
    run = f"{about['task']} + {about['backbone']}, seed {about['seed']}"
    reason = why.get(weights, f"no such kind{did_you_mean(weights, get_args(Weights))}")
    known = ", ".join(about["weights"])
    raise InputError(f"{run}: no {weights} weights: {reason} · there are: {known}")


def file_of(weights: str) -> str:
    """The name of the file of one kind of weights."""
    return "weights.safetensors" if weights == "tested" else f"weights.{weights}.safetensors"


def weights_of(
    state: Mapping[str, Any],
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, int]]:
    """The weights of each kind in what a run keeps, and the base steps that they are of."""
    best, last = state.get("best"), int(state["steps"])
    source = state if best is None else best
    step = last if best is None else int(best["step"])
    weights, steps = {"tested": source["model"]}, {"tested": step}
    if best is not None:
        weights["last"], steps["last"] = state["model"], last
    if (average := source.get("average")) is not None and average["n_averaged"]:
        within = "module."  # the names that AveragedModel gives
        weights["average"] = {
            name[len(within) :]: value for name, value in average.items() if name.startswith(within)
        }
        steps["average"] = step
    return weights, steps


def _arguments(plan: Runner) -> dict[str, Any]:
    """Those of its registered backbone, but what a run supplies."""
    given = getattr(plan.backbone, "arguments", {})
    return {
        key: given.get(key, parameter.default)
        for key, parameter in parameters_of(BACKBONES[BACKBONES.name_of(plan.backbone)]).items()
        if key not in BACKBONES.supplied
    }


def _is_plain(arguments: Mapping[str, Any]) -> bool:
    """Whether JSON gives them back as they are, but for lists that are tuples."""
    try:
        return bool(_in_tuples(json.loads(json.dumps(arguments))) == _in_tuples(arguments))
    except (TypeError, ValueError):
        return False


def _in_tuples(value: Any) -> Any:
    """The value with every list as a tuple, since JSON has one kind alone."""
    if isinstance(value, Mapping):
        return {key: _in_tuples(item) for key, item in value.items()}
    return tuple(map(_in_tuples, value)) if isinstance(value, (list, tuple)) else value
