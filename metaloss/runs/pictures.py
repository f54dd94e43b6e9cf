"""The pictures of a run: drawn from its folder alone, without the model or the data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metaloss import links
from metaloss.analysis import animation, curves, index_figures, loss_figures, paper_figures
from metaloss.analysis.curves import LossCurves
from metaloss.errors import RunFolderError
from metaloss.machine.files import read_json, write_atomically, writing
from metaloss.representations.saved.learned_loss import load_loss
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import Row, read_metrics

DPI = 110

#: What a run of less than a minute draws: the others together take longer than such a run may.
OF_SHORT_RUNS = ("learning_curve.png", "loss.png")


def draw(
    path: Path,
    title: str,
    names: Collection[str] | None = None,
    result: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Draws what the folder has the data for, into its `figures/`.

    learning_curve.png; of a classifier that was tested, reliability.png; and where a loss was
    learned: loss.png, loss_heat_map.png, loss_ribbon.png, loss_known.png, loss.gif (these from the
    trajectory) and indices.png.

    Args:
        path: the run folder; its run need not have ended.
        title: of the run.
        names: the files that are wanted; None: all.
        result: the content of result.json, of a run that is about to write it.

    Returns:
        The files.

    Raises:
        RunFolderError: a file of the folder cannot be read.
    """
    folder = RunFolder(path)
    rows = read_metrics(folder.metrics)
    metric = next((m for m in ("error_rate", "mse") if any(m in row for row in rows)), "error_rate")
    drawings: dict[str, Callable[[], Figure | bytes]] = {
        "learning_curve.png": lambda: index_figures.learning_curve(rows, metric, title)
    }
    if result is None:
        result = read_json(folder.result) if folder.result.is_file() else {}
    if bins := result.get("reliability"):
        drawings["reliability.png"] = lambda: index_figures.reliability(bins, title)
    if any("scale" in row for row in rows):
        drawings["indices.png"] = lambda: index_figures.index_panels(rows, title)
    if has_loss(path):
        sampled = loss_curves(path)
        drawings["loss.png"] = lambda: loss_figures.loss_curves([sampled], title=title)
        drawings["loss_known.png"] = lambda: loss_figures.against_known(sampled, title)
        if len(sampled.steps) > 1:
            drawings["loss_heat_map.png"] = lambda: loss_figures.heat_map(sampled, title)
            drawings["loss_ribbon.png"] = lambda: loss_figures.ribbon(sampled, title)
            drawings["loss.gif"] = lambda: animation.animation(sampled, title)
    wanted = drawings if names is None else names
    return _save(folder.figures, {n: draw() for n, draw in drawings.items() if n in wanted})


def draw_together(runs: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draws runs side by side: losses.png, flatness.png and learning_rates.png.

    Args:
        runs: run folders by the name they get in the figures.
        folder: where the files go.

    Returns:
        The files; the first two only of the runs that learned a loss.

    Raises:
        RunFolderError: a file cannot be read, or losses of classification and of regression, or of
            different numbers of classes, are asked for side by side.
    """
    rows: dict[str, Sequence[Row]] = {
        name: read_metrics(RunFolder(path).metrics) for name, path in runs.items()
    }
    drawn: dict[str, Figure | bytes] = {
        "learning_rates.png": index_figures.learning_rates(rows),
    }
    losses = {name: loss_curves(path) for name, path in runs.items() if has_loss(path)}
    if losses:
        names, sampled = list(losses), list(losses.values())
        other = next((n for n, c in losses.items() if c.panels != sampled[0].panels), None)
        if other is not None:
            raise RunFolderError(
                f"{runs[other]} has panels {', '.join(losses[other].panels)}, and "
                f"{runs[names[0]]} {', '.join(sampled[0].panels)}: they have no figure in common"
            )
        drawn["losses.png"] = loss_figures.loss_curves(sampled, names)
        drawn["flatness.png"] = paper_figures.flat_losses(sampled, names)
    return _save(folder, drawn)


def title(said: Mapping[str, Any]) -> str:
    """A run in a line, by its result.json or meta.json."""
    return "{task} + {backbone}, {method}, seed {seed}".format(**said)


def has_loss(path: Path) -> bool:
    """Whether a run folder holds a learned loss."""
    return (RunFolder(path).loss / "config.json").is_file()


def loss_curves(path: Path) -> LossCurves:
    """The curves of a run folder's learned loss over its training.

    Raises:
        RunFolderError: a file cannot be read, or does not say the number of classes.
        UnknownComponentError: a plugin is missing.
    """
    loss = load_loss(path)
    if loss.trajectory is None:
        file = RunFolder(path).loss / "trajectory.safetensors"
        raise RunFolderError(f"{file} cannot be read: there is none")
    classes = None
    if loss.link is links.probabilities:
        classes = loss.provenance.get("classes")
        if not isinstance(classes, int):
            config = RunFolder(path).loss / "config.json"
            raise RunFolderError(f"{config} does not say the number of classes")
    return curves.sample(loss.representation, loss.trajectory, classes)


def _save(folder: Path, drawn: Mapping[str, Figure | bytes]) -> list[Path]:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        write_atomically(folder / name, partial(_write, picture))
    return [folder / name for name in drawn]


def _write(picture: Figure | bytes, path: Path) -> None:
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.savefig(path, dpi=DPI, format="png")
