"""The TensorBoard view of a run: what metrics.jsonl says, and pictures beside it."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaloss.machine.files import writing
from metaloss.runs.callbacks.base import CALLBACKS, Callback, Look, Start
from metaloss.runs.callbacks.parts.numbers import bindings, scalars
from metaloss.runs.folder import RunFolder
from metaloss.runs.metrics import Row

if TYPE_CHECKING:
    from metaloss.runs.callbacks.parts.events import EventFile


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


@CALLBACKS.register("tensorboard")
class TensorBoard(Callback):
    """Event files in the run folder: a TensorBoard run of the training, one of the initialisation.

    Tags are grouped as `train/ valid/ test/` (of a split, or of the training step), `meta/` (the
    meta-step, learning rates), `loss/` (the learned loss), `health/` (the latest probes of it) and
    `time/`.

    Raises:
        RunFolderError: from each method: an event file cannot be written.
    """

    def __init__(self) -> None:
        self._start: Start | None = None
        self._kept: Mapping[str, int] = {}  # the `sizes` that belong to the run so far
        self._files: dict[str, EventFile] = {}
        self._last: dict[str, tuple[int, float]] = {}  # step and seconds by phase

    def begin(self, start: Start, state: Mapping[str, Any]) -> None:
        """Shows the configuration, unchanged, and lays out the custom-scalars tab.

        Of a run that goes on, a TensorBoard that is open forgets what it has seen after the steps
        made, and what a killed process wrote after its last checkpoint is cut off: it will be
        written again.
        """
        self._start, self._kept = start, state
        if start.fresh:
            self._text("config", "    " + start.config.replace("\n", "\n    "), 0)
            self._add("train", 0, "custom_scalars", layout(start.metric))

    def after_step(self, row: Row) -> None:
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

    def after_evaluation(self, row: Row) -> None:
        self.after_step(row)

    def after_look(self, look: Look) -> None:
        """Shows texts, histograms of what is finite, and pictures with a step slider."""
        for tag, text in look.texts.items():
            self._text(tag, text, look.step)
        for tag, values in look.values.items():
            finite = values[values.isfinite()]
            if finite.numel():
                self._add("train", look.step, "histogram", tag, finite, BINS)
        for tag, content in look.images.items():
            self._image(tag, content, look.step)

    def state_dict(self) -> dict[str, Any]:
        assert self._start is not None
        return sizes(self._start.folder)

    def end(self, result: Mapping[str, Any]) -> None:
        """Pictures of the loss that were drawn, and the hparams tab: the configuration's bindings.

        The images tab plays a GIF.
        """
        from torch.utils.tensorboard.summary import hparams

        assert self._start is not None
        figures = RunFolder(self._start.folder).figures
        for tag, name in (("loss/curves", "loss.png"), ("loss/animation", "loss.gif")):
            if (figures / name).is_file():
                self._image(tag, (figures / name).read_bytes(), result["steps"])
        test = {} if result["test"] is None else {f"test/{result['metric']}": result["test"]}
        # SummaryWriter.add_hparams would write the metrics' scalars a second time.
        for summary in hparams(bindings(self._start.config), test):
            self._file("train").add(summary, result["steps"])

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _text(self, tag: str, text: str, step: int) -> None:
        self._add("train", step, "text", tag, text)

    def _image(self, tag: str, content: bytes, step: int) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = Image.open(io.BytesIO(content)).size
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=content
        )
        self._file("train").add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _add(self, phase: str, step: int, kind: str, *content: Any) -> None:
        """Shows what the function `kind` of torch's `summary` module makes of the content."""
        from torch.utils.tensorboard import summary

        self._file(phase).add(getattr(summary, kind)(*content), step)

    def _file(self, phase: str) -> EventFile:
        if phase not in self._files:
            from metaloss.runs.callbacks.parts.events import (
                EventFile,  # TensorBoard takes half a second
            )

            assert self._start is not None
            root = self._start.folder
            folder = root if phase == "train" else root / phase
            done = self._start.done.get(phase, 0)
            start = done + 1 if done else 0
            for path in folder.glob(f"{EVENTS}*"):
                kept = self._kept.get(str(path.relative_to(root)), 0) if start else 0
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


EVENTS = "events.out.tfevents."  #: how the names of TensorBoard's event files begin
BINS = 64  #: of a histogram; TensorBoard shows half as many
