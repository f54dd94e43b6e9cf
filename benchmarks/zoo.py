#!/usr/bin/env python
r"""Puts a learned loss into the zoo that ships: its folder, curve, formula and transfer numbers.

    python benchmarks/zoo.py runs/digits --transfer=runs/transfer/digits

RUN is named by its folder, and so is the loss. What was learned is kept at its end alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaloss.analysis import formulas
from metaloss.machine.files import read_json
from metaloss.representations.parts import expressions
from metaloss.representations.saved.folder import CARD, ZOO
from metaloss.representations.saved.learned_loss import LearnedLoss, load_loss

#: What is kept of where a loss comes from.
KEPT = (
    *("task", "backbone", "method", "seed", "steps", "init_steps", "metric", "test", "classes"),
    *("health", "seconds", "config_sha256", "git_commit"),
)
SIZE = 3  #: terms of the formula

MORE = """
## Its curve

![The learned loss over its training](curve.png)

## Its formula

Nearest in slope among all of {size} terms (`metaloss distill`); R² of the slopes {closeness}:

    M(f, y) = {formula}

## On another model

`metaloss transfer`: {task} + {backbone} for {steps} steps, seeds {seeds}; test {metric}, mean of
the seeds, and the baseline with the same learning rate, which was not tuned for either.

| | {metric} | each seed |
|---|---|---|
{rows}

A lower error than the baseline's may be a larger step alone: this loss's slope is not that of the
task loss (docs/should_i.md).
"""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--transfer", type=Path, required=True, metavar="DIR")
    asked = parser.parse_args()
    run = load_loss(asked.run)
    provenance = {name: run.provenance[name] for name in KEPT if name in run.provenance}
    loss = LearnedLoss(run.representation, run.link, step=run.step, provenance=provenance)
    folder = ZOO / asked.run.name
    loss.save_pretrained(folder)
    shutil.copy(asked.run / "figures" / "loss.png", folder / "curve.png")
    told = (folder / CARD).read_text("utf-8").replace("PATH OF THIS FOLDER", f"zoo:{folder.name}")
    told += MORE.format(size=SIZE, **formula(loss), **transferred(asked.transfer))
    (folder / CARD).write_text(told, "utf-8")
    print(folder)


def formula(loss: LearnedLoss) -> dict[str, str]:
    """The formula of so many terms, and how close its slopes are."""
    found = formulas.distill(loss.representation, formulas.classes_of(loss), SIZE)[-1]
    near = ", ".join(f"{one.slope_r2:.3f} ({one.panel})" for one in found.closeness)
    return {"formula": expressions.as_text(found.terms, found.coefficients), "closeness": near}


def transferred(folder: Path) -> Mapping[str, Any]:
    """The runs that `metaloss transfer` made, in words."""
    results = {
        method: [read_json(path) for path in sorted((folder / method).glob("seed*/result.json"))]
        for method in ("baseline", "frozen")
    }
    first = results["baseline"][0]
    rows = [
        f"| {method} | {_mean(found)} | {', '.join(_number(one['test']) for one in found)} |"
        for method, found in results.items()
    ]
    return {
        **{name: first[name] for name in ("task", "backbone", "steps", "metric")},
        "seeds": ", ".join(str(one["seed"]) for one in results["baseline"]),
        "rows": "\n".join(rows),
    }


def _mean(found: list[dict[str, Any]]) -> str:
    """Of the runs that have a number; how many diverged."""
    tests = [one["test"] for one in found if one["test"] is not None]
    lost = len(found) - len(tests)
    told = f" ({lost} of {len(found)} diverged)" * bool(lost)
    return (_number(sum(tests) / len(tests)) if tests else "–") + told


def _number(test: float | None) -> str:
    return "diverged" if test is None else f"{test:.4f}"


if __name__ == "__main__":
    sys.exit(main())
