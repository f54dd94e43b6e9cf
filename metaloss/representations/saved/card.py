"""The card of a learned loss: what a person who finds its folder wants to know, as Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from metaloss.links import Link
from metaloss.representations.saved.trajectory import Trajectory

CARD = """\
# A learned loss

{summary}

```python
import metaloss

loss = metaloss.load_loss("PATH OF THIS FOLDER")
loss(outputs, labels)  # as torch's losses are called; the mean over the batch, by default
```

What it makes of a model's outputs and the labels: {link}

{recorded}

| | |
|---|---|
{rows}

Files: `config.json` (the same for programs), `model.safetensors` (φ){trajectory}.
All of them are data and cannot run code.
"""


def text(
    config: Mapping[str, Any], link: Link, parameters: int, trajectory: Trajectory | None
) -> str:
    """The card.

    Args:
        config: the content of config.json.
        link: that of the loss; its docstring tells what it does.
        parameters: how many numbers φ has.
        trajectory: φ over the training, if it was recorded.
    """
    documentation = inspect.getdoc(link) or config["link"]
    rows = {
        "representation": f"`{config['representation']}`",
        **{f"`{name}`": value for name, value in config["arguments"].items()},
        "from": " ".join(str(value) for value in config["origin"].values() if value),
        **config["provenance"],
        **config["versions"],
    }
    return CARD.format(
        summary=_summary(config, parameters),
        link=documentation.splitlines()[0],
        recorded=_recorded(trajectory),
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
        trajectory="" if trajectory is None else ", `trajectory.safetensors` (φ over the training)",
    )


def _summary(config: Mapping[str, Any], parameters: int) -> str:
    step = "" if config["step"] is None else f", as it was at step {config['step']:,}"
    where = learned_on(config["provenance"])
    return (
        f"`{config['representation']}` with {parameters:,} parameters φ"
        f"{', learned on ' * bool(where)}{where}{step}."
    )


def learned_on(provenance: Mapping[str, Any]) -> str:
    """The training that a loss is from, in a few words; nothing if none are there."""
    pair = " + ".join(str(provenance[k]) for k in ("task", "backbone") if provenance.get(k))
    words = [pair, provenance.get("method")]
    seed = provenance.get("seed")
    words.append(None if seed is None else f"seed {seed}")
    return ", ".join(str(word) for word in words if word)


def _recorded(trajectory: Trajectory | None) -> str:
    if trajectory is None:
        return "It is kept at one step only."
    return (
        f"φ is recorded at {len(trajectory.steps)} steps, from {trajectory.first:,} to "
        f"{trajectory.last:,}: `loss.at(step)`, `loss.schedule()`."
    )


def _cell(value: Any) -> str:
    """A value in a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
