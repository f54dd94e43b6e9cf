"""The files of a learned loss: JSON and safetensors, which are data and cannot run code.

config.json              format, representation and its arguments, link, step, where it comes from
model.safetensors        φ
trajectory.safetensors   φ at the recorded steps of a training (optional)
README.md                the same for people
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metaloss import links
from metaloss.config.origins import how_to_get, origin_of
from metaloss.config.registry import UnknownComponentError
from metaloss.errors import InputError, RunFolderError, did_you_mean, first_line
from metaloss.links import Link
from metaloss.machine.circumstances import versions
from metaloss.machine.files import read_json, write_atomically, write_json
from metaloss.machine.tensors import read_tensors, write_tensors
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.saved import card
from metaloss.representations.saved.trajectory import Trajectory, flat

#: Learned losses that ship, each a folder; what their names begin with.
ZOO, IN_ZOO = Path(__file__).parent / "zoo", "zoo:"
FORMAT = 2  #: 1 had no step, origin and versions; both are read
CONFIG, PHI, TRAJECTORY, CARD = (
    "config.json", "model.safetensors", "trajectory.safetensors", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class SavedLoss:
    """What the files hold."""

    representation: Representation
    link: Link
    step: int | None = None  #: base step that φ is of, where it is known
    trajectory: Trajectory | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  #: plain data


# --- writing ---


def write(folder: Path, saved: SavedLoss) -> None:
    """Writes a learned loss; each file whole or not at all.

    Raises:
        InputError: the link is none that can be named, or the representation's arguments or the
            provenance are not plain data.
        RunFolderError: the folder cannot be written to.
    """
    config = {
        "format": FORMAT,
        "representation": REPRESENTATIONS.name_of(saved.representation),
        "arguments": saved.representation.arguments(),
        "link": links.to_json(saved.link),
        "step": saved.step,
        "origin": origin_of(type(saved.representation).__module__),
        "versions": versions(),
        "provenance": saved.provenance,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written to: {error}") from error
    except TypeError as error:
        raise InputError(f"{folder / CONFIG}: arguments and provenance: {error}") from error
    tensors = {PHI: saved.representation.state_dict()}
    if saved.trajectory is None:
        (folder / TRAJECTORY).unlink(missing_ok=True)  # an earlier loss's
    else:
        tensors[TRAJECTORY] = {"steps": saved.trajectory.steps, "phi": saved.trajectory.phi}
    for name, content in tensors.items():
        write_tensors(folder / name, content)
    readme = card.text(config, saved.link, flat(saved.representation).numel(), saved.trajectory)
    write_atomically(folder / CARD, lambda path: path.write_text(readme, "utf-8"))


# --- reading ---


def read(folder: str | Path) -> SavedLoss:
    """The learned loss of a run folder, or of a folder that `write` wrote; draws nothing random.

    Raises:
        RunFolderError: there is none, a file is damaged or no learned loss's, or its format is
            newer.
        UnknownComponentError: no component has the representation's name: a plugin is missing.
    """
    folder = _place(Path(folder))
    path = folder / CONFIG
    config = read_json(path)
    _check(config, path)
    representation = _build(config, path)
    try:
        representation.load_state_dict(read_tensors(folder / PHI), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{folder / PHI} does not fit: {reason}") from error
    try:
        link = links.from_json(config["link"])
    except InputError as error:
        raise RunFolderError(f"{path}: {error}") from error
    step, provenance = config.get("step"), config["provenance"]
    if config["format"] == 1:
        step = provenance.get("steps")
    trajectory = None
    if (folder / TRAJECTORY).exists():
        trajectory = read_trajectory(folder)
        count = flat(representation).numel()
        if trajectory.phi.shape[1] != count:
            raise RunFolderError(
                f"{folder / TRAJECTORY} does not fit: its φ has {trajectory.phi.shape[1]} numbers, "
                f"the loss {count}"
            )
    return SavedLoss(representation, link, step, trajectory, provenance)


def read_trajectory(folder: str | Path) -> Trajectory:
    """φ over the training, of a run folder or of a folder that `write` wrote.

    Raises:
        RunFolderError: there is none, or it is damaged or no trajectory.
    """
    path = _place(Path(folder)) / TRAJECTORY
    tensors = read_tensors(path)
    steps, phi = tensors.get("steps"), tensors.get("phi")
    if (
        steps is None
        or phi is None
        or (steps.ndim, phi.ndim) != (1, 2)
        or not len(steps) == len(phi) > 0
        or bool((steps.diff() <= 0).any())
    ):
        raise RunFolderError(f"{path} holds no trajectory: steps [T], ascending, and phi [T, P]")
    return Trajectory(steps, phi)


def _place(folder: Path) -> Path:
    """The folder of the loss itself, given that, the run's or a name in the zoo."""
    if str(folder).startswith(IN_ZOO):
        name, known = str(folder).removeprefix(IN_ZOO), sorted(path.name for path in ZOO.iterdir())
        if name not in known:
            near = did_you_mean(name, known)
            raise InputError(f"no loss '{name}' in the zoo{near} · known: {', '.join(known)}")
        return ZOO / name
    for place in (folder / "loss", folder):
        if (place / CONFIG).is_file():
            return place
    run = " · it is a run that learned none, or has not exported it yet"
    raise RunFolderError(
        f"there is no learned loss in {folder}: no {CONFIG}, nor loss/{CONFIG}"
        f"{run if (folder / 'config.gin').is_file() else ''}"
    )


def _check(config: Mapping[str, Any], path: Path) -> None:
    """Whether the config is one that this version reads."""
    found = config.get("format")
    if type(found) is not int or found < 1:
        raise RunFolderError(f"{path} is not that of a learned loss: it has no format of one")
    if found > FORMAT:
        raise RunFolderError(
            f"{path} has format {found}, of a newer metaloss; this one, version "
            f"{versions().get('metaloss', 'unknown')}, reads formats up to {FORMAT}"
        )
    kinds: dict[str, Any] = {"representation": str, "arguments": dict, "provenance": dict}
    for name, kind in {**kinds, "link": (str, dict)}.items():
        if not isinstance(config.get(name), kind):
            raise RunFolderError(f"{path} is damaged: {name} = {config.get(name)!r}")
    if not isinstance(config.get("step"), (int, type(None))):
        raise RunFolderError(f"{path} is damaged: step = {config['step']!r}")


def _build(config: Mapping[str, Any], path: Path) -> Representation:
    """The representation, with parameters of no meaning yet."""
    name = config["representation"]
    component: Any = REPRESENTATIONS.get(name)
    if component is None:
        missing = REPRESENTATIONS.describe_unknown(name)
        raise UnknownComponentError(f"{path}: {missing}{how_to_get(config.get('origin'))}")
    if not inspect.isclass(component):
        raise RunFolderError(f"{path}: {name!r} is no class of losses, but a recipe for them")
    try:
        with torch.random.fork_rng(devices=()):
            representation: Representation = REPRESENTATIONS[name](**config["arguments"])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        message = f"{path}: representations.{name} refuses its arguments: {reason}"
        raise RunFolderError(message) from error
    return representation
