"""The pictures of a run: drawn from its folder alone, without the model or the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metaloss import links
from metaloss.analysis import curves, figures
from metaloss.export import LearnedLoss, Trajectory, load_loss, load_trajectory
from metaloss.run_folder import RunFolder


def draw(path: Path, result: dict[str, Any]) -> list[Path]:
    """Draws `figures/learning_curve.png` and, where a loss was learned, `figures/loss.png`.

    Args:
        path: the run folder.
        result: the content of its result.json.

    Returns:
        The files, whole.

    Raises:
        RunFolderError: the folder's loss cannot be read.
    """
    folder = RunFolder(path)
    folder.figures.mkdir(exist_ok=True)
    title = "{task} + {backbone}, {method}, seed {seed}".format(**result)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    drawn = {"learning_curve.png": figures.learning_curve(rows, str(result["metric"]), title)}
    if (folder.loss / "config.json").is_file():
        drawn["loss.png"] = loss_figure(load_loss(path), load_trajectory(path), title)
    for name, figure in drawn.items():
        figure.savefig(folder.figures / name, dpi=120)
    return [folder.figures / name for name in drawn]


def loss_figure(loss: LearnedLoss, trajectory: Trajectory, title: str) -> Figure:
    """The learned loss over its training, as `figures.loss_curves` draws it."""
    classification = loss.link is links.probabilities
    return figures.loss_curves(
        curves.sample(loss.representation, trajectory, classification), title
    )
