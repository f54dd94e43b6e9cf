"""The learned loss in motion: a GIF of its curves over the base steps."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from metaloss.analysis import loss_figures
from metaloss.analysis.curves import LossCurves

FRAMES = 40  #: at most
DURATION = 100  #: of a frame, milliseconds
HOLD = 2000  #: of the last one


def animation(curves: LossCurves, title: str = "") -> bytes:
    """A GIF that plays the steps: the curve of each in its colour, the earlier ones faint.

    Args:
        curves: the loss over the steps; of more than 40, evenly chosen ones are shown.
        title: of every frame, which adds its step.
    """
    chosen = np.unique(np.linspace(0, len(curves.steps) - 1, FRAMES).round().astype(int))
    figure = _stage(curves)
    canvas = FigureCanvasAgg(figure)
    heading = figure.suptitle(f"{title}, step {curves.steps[-1]:,}", fontsize=10)
    canvas.draw()  # lays everything out, once
    figure.set_layout_engine("none")
    heading.set_animated(True)
    canvas.draw()
    colours = loss_figures.COLOURS(curves.steps / max(1, curves.steps[-1]))
    frames = []
    for t in chosen:
        past = canvas.copy_from_bbox(figure.bbox)
        for k, axis in enumerate(figure.axes):
            values = loss_figures.aligned(curves, k)[t]
            (line,) = axis.plot(curves.grid, values, color=colours[t], lw=2.5)
            axis.draw_artist(line)
            line.remove()
        heading.set_text(f"{title}, step {curves.steps[t]:,}".removeprefix(", "))
        figure.draw_artist(heading)
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
        canvas.restore_region(past)
        for k, axis in enumerate(figure.axes):
            values = loss_figures.aligned(curves, k)[t]
            (line,) = axis.plot(curves.grid, values, color=colours[t], lw=0.8, alpha=0.35)
            axis.draw_artist(line)
            line.remove()
    return _gif(frames)


def _stage(curves: LossCurves) -> Figure:
    """Axes without curves."""
    columns = len(curves.panels)
    figure = Figure(figsize=(2.9 * columns, 2.7), dpi=90, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for k, axis in enumerate(axes):
        axis.set_ylim(*loss_figures.limits([loss_figures.aligned(curves, k)]))
        loss_figures.dress(axis, curves, k)
        axis.set_title(curves.panels[k], fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("learned loss")
    return figure


def _gif(frames: list[Image.Image]) -> bytes:
    """The frames in one palette, so that what stands still is stored once."""
    whole = Image.new("RGB", (frames[0].width, 2 * frames[0].height))
    whole.paste(frames[-1], (0, 0))
    whole.paste(frames[len(frames) // 2], (0, frames[0].height))
    palette = whole.quantize(96)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    durations = [DURATION] * len(rest) + [HOLD]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return file.getvalue()
