"""Draws cost_frontier.png, the picture of docs/performance.md, from the runs of a sweep.

python tools/sweep.py run paper/question_cost.gin --data_dir=DIR
python docs/images/cost_frontier.py runs
"""

from __future__ import annotations

import json
import sys
from ast import literal_eval
from collections import defaultdict
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from metaloss.experiments.sweeps.cells import load

BASELINE = [0.0127, 0.0136, 0.0155]  #: MNIST + LeNet-5 on the task loss (docs/earlier_results.md)
CHEAP = [0.0087, 0.0082, 0.0084]  #: the same by ablations/cheap.gin (docs/performance.md)
#: Cost of a compiled step with a meta-step in it, in baseline steps, by examples in the task loss;
#: a step without is one step.
META_STEP = {128: 2.33, 64: 1.94, 32: 1.75}
INITIALISATION, TRAINING = 2500, 10_000  #: steps


def main(runs: Path) -> None:
    """One curve for each number of examples in the task loss, over the cost of a training."""
    found: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in load(["paper/question_cost.gin"])[1]:
        every, examples = (literal_eval(binding.split(" = ")[1]) for binding in cell.bindings)
        result = runs / cell.name / "result.json"
        test = json.loads(result.read_text())["test"] if result.is_file() else None
        if test is not None:
            found[examples or 128][every].append(test)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.scatter([1.0] * 3, BASELINE, marker="x", color="black", label="baseline")
    for examples, by_every in sorted(found.items(), reverse=True):
        costs = [cost(every, examples) for every in by_every]
        line = axis.plot(costs, [mean(tests) for tests in by_every.values()], "-o")[0]
        line.set_label(f"task loss on {examples} examples")
        for x, (every, tests) in zip(costs, by_every.items(), strict=True):
            axis.scatter([x] * len(tests), tests, s=8, color=line.get_color(), alpha=0.6)
            if examples == 128:
                axis.annotate(f"k = {every}", (x, 0.0062 + 0.0004 * (every == 100)), fontsize=9)
    cheap = cost(100, 128, initialisation=500)
    axis.scatter([cheap] * 3, CHEAP, marker="*", color="crimson", label="ablations/cheap.gin")
    axis.set_xlabel("cost of the whole training, in baseline trainings, counted in compiled steps")
    axis.set_ylabel("test error rate")
    axis.set_title("MNIST + LeNet-5: a meta-step every k base steps", fontsize=11)
    axis.set_xlim(0.85, 3.1)
    axis.set_ylim(0.006, 0.016)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


def cost(every: int, examples: int, initialisation: int = INITIALISATION) -> float:
    """Of a training with a meta-step every so many base steps, its initialisation included."""
    step = (META_STEP[examples] + every - 1) / every
    return (initialisation * META_STEP[128] + TRAINING * step) / TRAINING


if __name__ == "__main__":
    main(Path(sys.argv[1]))
