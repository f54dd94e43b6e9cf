#!/usr/bin/env python
"""Draws docs/images/loop.svg: what happens in one step of AdaLFL.

python docs/images/loop.py
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

BASE, META, INK = "#2563a8", "#b4541a", "#1f2430"
WIDTH, HEIGHT = 820, 292

STYLE = (
    "<style>text{font-family:Helvetica,Arial,sans-serif;font-size:14px;text-anchor:middle}"
    ".small{font-size:12px}.bold{font-weight:bold}</style>"
)


def arrow_head(name: str, colour: str) -> str:
    """The end of an arrow, to be named by `line`."""
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
    )


def text(x: float, y: float, words: str, colour: str = INK, kind: str = "") -> str:
    """A line of words, its middle at x."""
    return f'<text x="{x}" y="{y}" fill="{colour}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, title: str, below: str, colour: str) -> str:
    """A box with two lines of words."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="56" rx="8" fill="white" '
        f'stroke="{colour}" stroke-width="2"/>'
        + text(x + width / 2, y + 24, title, INK, "bold")
        + text(x + width / 2, y + 43, below, INK, "small")
    )


def line(points: str, level: str) -> str:
    """An arrow along an SVG path, of the base level or of the meta level."""
    colour = {"base": BASE, "meta": META}[level]
    dashes = ' stroke-dasharray="6 4"' if level == "meta" else ""
    return (
        f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashes} '
        f'marker-end="url(#{level})"/>'
    )


def loop() -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="One step: the model descends the learned loss on a training batch; the task '
        'loss of the stepped model on a validation batch improves the learned loss.">',
        STYLE,
        f"<defs>{arrow_head('base', BASE)}{arrow_head('meta', META)}</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 26, "1. base step: an ordinary training step, on the learned loss", BASE),
        box(20, 56, 130, "training batch", "inputs, labels", BASE),
        box(200, 56, 120, "model θ", "outputs", BASE),
        box(370, 56, 140, "learned loss φ", "a small network", META),
        box(565, 56, 235, "your torch.optim optimizer", "θ becomes θ'", BASE),
        line("M150 84H196", "base"),
        line("M320 84H366", "base"),
        line("M510 84H561", "base"),
        box(565, 176, 235, "model θ'", "outputs", BASE),
        line("M682 112V172", "base"),
        box(370, 176, 140, "task loss", "e.g. cross-entropy", META),
        box(200, 176, 120, "validation", "batch", META),
        line("M565 204H514", "meta"),
        line("M320 204H366", "meta"),
        line("M440 176V116", "meta"),
        text(352, 152, "gradient for φ", META, "small"),
        text(WIDTH / 2, 270, "2. meta-step: would another loss have made a better step?", META),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(loop(), encoding="utf-8")
