"""Learned losses outside of runs: a folder of JSON and safetensors, and a loss to call.

loss/config.json              representation, its arguments, the link, where it comes from
loss/model.safetensors        φ
loss/trajectory.safetensors   φ at the sampled steps of an adaptive loss (optional)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaloss import checkpoint, links
from metaloss.errors import RunFolderError
from metaloss.problem import Link
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.run_folder import read_json, write_json

FORMAT = 1
LINKS: dict[str, Link] = {"probabilities": links.probabilities, "values": links.values}


@dataclass
class Trajectory:
    """φ as it changed over a training: `phi[t]` is the flat parameter vector at `steps[t]`."""

    steps: Tensor  #: base steps, [T], int64
    phi: Tensor  #: [T, P]


class LearnedLoss(nn.Module):
    """A representation with its link, called as torch's losses are: `loss(outputs, labels)`.

    Args:
        representation: M_φ.
        link: how outputs and labels become prediction and target.
    """

    def __init__(self, representation: Representation, link: Link) -> None:
        super().__init__()
        self.representation = representation
        self.link = link

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of the batch, a scalar.

        Args:
            outputs: [batch, C]; logits in classification.
            labels: class indices [batch], or values [batch, C] in regression.
        """
        loss: Tensor = self.representation(*self.link(outputs, labels))
        return loss.mean()


def save_loss(
    folder: Path,
    representation: Representation,
    link: Link,
    trajectory: Trajectory | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Writes a learned loss; each file whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "representation": REPRESENTATIONS.name_of(representation),
            "arguments": representation.arguments(),
            "link": next(name for name, known in LINKS.items() if known is link),
            "provenance": provenance or {},
        },
    )
    phi = {name: value.detach().cpu() for name, value in representation.state_dict().items()}
    checkpoint.write_atomically(
        folder / "model.safetensors", lambda path: save_file(phi, str(path))
    )
    if trajectory is not None:
        tensors = {"steps": trajectory.steps, "phi": trajectory.phi}
        checkpoint.write_atomically(
            folder / "trajectory.safetensors", lambda path: save_file(tensors, str(path))
        )


def load_loss(folder: str | Path) -> LearnedLoss:
    """The learned loss of a run, or of a folder that `save_loss` wrote.

    Args:
        folder: a run folder, or its `loss`.

    Raises:
        RunFolderError: there is none, a file is damaged, or its format is newer.
        UnknownComponentError: no component has the representation's name: a plugin is missing.
    """
    folder = _loss_folder(folder)
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder}/config.json has format {config.get('format')!r}; this version reads {FORMAT}"
        )
    representation = REPRESENTATIONS[config["representation"]](**config["arguments"])
    phi = _load_tensors(folder / "model.safetensors")
    try:
        representation.load_state_dict(phi)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{folder}/model.safetensors does not fit: {reason}") from error
    return LearnedLoss(representation, LINKS[config["link"]])


def load_trajectory(folder: str | Path) -> Trajectory:
    """φ over the training, of a run or of a folder that `save_loss` wrote.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    return Trajectory(**_load_tensors(_loss_folder(folder) / "trajectory.safetensors"))


def _loss_folder(folder: str | Path) -> Path:
    """The folder of the loss itself, given that or the run's."""
    folder = Path(folder)
    return folder / "loss" if (folder / "loss" / "config.json").is_file() else folder


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path} cannot be read: {reason}") from error


def flat(representation: nn.Module) -> Tensor:
    """φ as one vector [P], a copy on the CPU."""
    values = [p.detach().flatten() for p in representation.parameters()]
    return torch.cat(values).cpu() if values else torch.zeros(0)
