"""The TensorBoard view of a run: what metrics.jsonl says, and pictures beside it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaloss.config.gin_files import bindings_of
from metaloss.machine.files import writing
from metaloss.runs.metrics import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from metaloss.runs.events import EventFile


#: TensorBoard's group of a number that does not belong to a split or to a training step.
GROUPS = {
    **dict.fromkeys(
        (
            "task_loss",
            "gradient_norm",
            "skipped",
            "adjoint_residual",
            "base_lr",
            "effective_base_lr",
            "cosine_theta",
            "ratio_theta",
        ),
        "meta",
    ),
    **dict.fromkeys(
        ("scale", "flatness", "flat_range", "argmin", "wrong_slope", "turns", "phi_distance"),
        "loss",
    ),
}


def layout(metric: str) -> dict[str, Any]:
    """The custom-scalars tab: learning curves and the learned loss's indices side by side.

    Args:
        metric: "error_rate" or "mse".
    """
    charts = {
        metric: [f"{split}/{metric}$" for split in ("train", "valid", "select", "test")],
        "task loss": ["train/loss$", "valid/loss$"],
        "learned loss": ["train/learned_loss$"],
        "base learning rate (5.5)": ["meta/base_lr$", "meta/effective_base_lr$"],
        "residual of the meta-gradient's certificate": ["meta/adjoint_residual$"],
        "scale (5.5)": ["loss/scale$"],
        "flatness (5.6) and slope away from the target": [
            "loss/flatness$",
            "loss/flat_range$",
            "loss/wrong_slope$",
        ],
        "prediction of least loss (5.7)": ["loss/argmin$"],
        "cosine with the task loss's gradient by theta": ["meta/cosine_theta$"],
        "norm of the gradient by theta, in the task loss's": ["meta/ratio_theta$"],
        "distance of phi from its start": ["loss/phi_distance$"],
        "health: cosine with the task loss's slope": ["health/cosine$"],
        "health: size of the slope, in the task loss's": ["health/ratio$"],
        "health: task loss, and a constant's": ["health/task_loss$", "health/constant_loss$"],
    }
    return {"learning curves and indices": {k: ["Multiline", v] for k, v in charts.items()}}


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row of metrics by their tag, `group/name`; those that are null are not."""
    found = {
        _tag(name, row): value
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in ("step", "seconds")
    }
    if "learned_loss" in row:  # the clock of a training step; other rows of the step repeat it
        found["time/seconds"] = row["seconds"]
    return found


def _tag(name: str, row: Row) -> str:
    if name.startswith("health_"):
        return name.replace("_", "/", 1)
    return f"{GROUPS.get(name, row.get('split', 'train'))}/{name}"


class TensorBoard:
    """A view of the metrics: one TensorBoard run for the training, one for the initialisation.

    Tags are grouped as `train/ valid/ test/` (of a split, or of the training step), `meta/` (the
    meta-step, learning rates), `loss/` (the learned loss), `health/` (the latest probes of it) and
    `time/`.

    Args:
        folder: the run folder.

    Raises:
        RunFolderError: from each method: an event file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[str, int] = {}  # steps by phase
        self._kept: dict[str, int] = {}
        self._files: dict[str, EventFile] = {}
        self._last: dict[str, tuple[int, float]] = {}  # step and seconds by phase

    def resume(self, done: dict[str, int], kept: dict[str, int]) -> None:
        """Goes on with the files that are there, before anything is shown.

        Args:
            done: steps made by phase: a TensorBoard that runs forgets what it has seen after them.
            kept: the `sizes` that belong to the run so far; what a killed process wrote after its
                last checkpoint is cut off, since it will be written again.
        """
        self._done, self._kept = done, kept

    def scalars(self, row: Row) -> None:
        """Draws a row's numbers as `group/name`, by the row's phase and step."""
        phase, step = row["phase"], row["step"]
        for tag, value in scalars(row).items():
            self._add(phase, step, "scalar", tag, value)
        if "learned_loss" in row:
            before, then = self._last.get(phase, (step, 0.0))
            if before < step and then < row["seconds"]:
                rate = (step - before) / (row["seconds"] - then)
                self._add(phase, step, "scalar", "time/steps_per_second", rate)
            self._last[phase] = step, row["seconds"]

    def begin(self, config: str, metric: str) -> None:
        """Shows the configuration, unchanged, and lays out the custom-scalars tab."""
        self.text("config", "    " + config.replace("\n", "\n    "), 0)
        self._add("train", 0, "custom_scalars", layout(metric))

    def text(self, tag: str, text: str, step: int) -> None:
        """Shows a text."""
        self._add("train", step, "text", tag, text)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Shows a figure with a step slider."""
        content = io.BytesIO()
        figure.savefig(content, format="png")
        self.image(tag, content.getvalue(), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Shows how values are distributed, those of them that are finite."""
        finite = values[values.isfinite()]
        if finite.numel():
            self._add("train", step, "histogram", tag, finite, BINS)

    def image(self, tag: str, content: bytes, step: int) -> None:
        """Shows a PNG, or a GIF, which the images tab plays."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = Image.open(io.BytesIO(content)).size
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=content
        )
        self._file("train").add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def hparams(self, config: str, metrics: dict[str, float], step: int) -> None:
        """Fills the hparams tab with the bindings of the configuration; once, at the run's end.

        Args:
            config: the complete configuration.
            metrics: tags of scalars that the run has, with their last values.
            step: the last one.
        """
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would write the metrics' scalars a second time.
        for summary in hparams(bindings(config), metrics):
            self._file("train").add(summary, step)

    def close(self) -> None:
        """Ends the files."""
        for file in self._files.values():
            file.close()

    def _add(self, phase: str, step: int, kind: str, *content: Any) -> None:
        """Shows what the function `kind` of torch's `summary` module makes of the content."""
        from torch.utils.tensorboard import summary

        self._file(phase).add(getattr(summary, kind)(*content), step)

    def _file(self, phase: str) -> EventFile:
        if phase not in self._files:
            from metaloss.runs.events import EventFile  # TensorBoard takes half a second

            folder = self._folder if phase == "train" else self._folder / phase
            done = self._done.get(phase, 0)
            start = done + 1 if done else 0
            for path in folder.glob(f"{EVENTS}*"):
                kept = self._kept.get(str(path.relative_to(self._folder)), 0) if start else 0
                with writing(path):
                    if not kept:
                        path.unlink()
                    elif path.stat().st_size > kept:
                        os.truncate(path, kept)
            self._files[phase] = EventFile(folder, start)
        return self._files[phase]


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the event files of a run folder, by their paths in it."""
    paths = [*folder.glob(f"{EVENTS}*"), *folder.glob(f"*/{EVENTS}*")]
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def bindings(config: str) -> dict[str, bool | int | float | str]:
    """The bindings of a complete configuration; what is no number is text."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else repr(value)
        for name, value in bindings_of(config, "config.gin").items()
    }


EVENTS = "events.out.tfevents."  #: how the names of TensorBoard's event files begin
BINS = 64  #: of a histogram; TensorBoard shows half as many
