#!/usr/bin/env python
r"""Says what a learned loss does in a short formula, and how nearly the formula says it.

    python tools/distill.py runs/lenet5
    python tools/distill.py runs/lenet5 --step=0 --largest=3 --output=distilled
    python tools/distill.py runs/lenet5 --output=runs/distilled --train \
        --gin_file=gin_configs/tasks/mnist_mlp.gin --data_dir=DIR

LOSS is a run folder, or one that LearnedLoss.save_pretrained wrote. For each number of terms the
formula with the nearest slopes is found, among all choices from a library of terms.

--output DIR keeps a formula in DIR/formula as a learned loss: load_loss loads it, and gin files
name it by @representations.pretrained(). With --train a model is trained with it, with the learned
loss and with the baseline, in run folders in DIR, as tools/transfer.py does it.

Exit codes: 0 done, 2 bad input, 130 or 143 stopped by SIGINT or SIGTERM while training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("loss", type=Path, metavar="LOSS", help="run folder, or an exported loss")
    add("--step", type=int, help="of the loss's own training, to take it at; default: its end")
    add("--largest", type=int, default=5, metavar="N", help="terms of the largest formula, up to 6")
    add("--term", action="append", metavar="TERM",
        help="to choose from, in place of the library, such as 'y*log(f)'; may repeat")  # fmt: skip
    add("--classes", type=int, metavar="C",
        help="where the loss does not say them; 0 for regression")  # fmt: skip
    add("--output", type=Path, metavar="DIR", help="where a formula is kept as a learned loss")
    add("--size", type=int, metavar="N", help="terms of that formula; default: the largest's")
    add("--train", action="store_true", help="train with that formula, the loss and the baseline")
    add("--gin_file", action="append", default=[], metavar="FILE", help="the task; may repeat")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'", help="may repeat")
    add("--seed", action="append", type=int, help="may repeat; default: 0, 1 and 2")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, distills, and turns what the user got wrong into one line and exit code 2."""
    asked = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, asked)


def carry_out(asked: argparse.Namespace) -> int:
    """Distills; the exit code."""
    from metaloss.analysis import formulas
    from metaloss.errors import InputError
    from metaloss.experiments import transfer
    from metaloss.experiments.reports import formats, formula_report
    from metaloss.representations.saved.learned_loss import load_loss

    if asked.train and not (asked.output and asked.gin_file):
        raise InputError("--train needs --output DIR, and --gin_file for the task")
    plugin = transfer.load_plugins(asked.plugin, asked.loss)
    whole = load_loss(asked.loss)
    loss = whole if asked.step is None else whole.at(asked.step)
    classes = formulas.classes_of(loss, asked.classes)
    found = formulas.distill(loss.representation, classes, asked.largest, asked.term)
    chosen = None if asked.output is None else formulas.of_size(found, asked.size)
    report = formula_report.document(found, loss.summary, classes)
    print(formats.markdown(report, {}))
    if chosen is None:
        return 0
    formula_report.save(report, found, asked.output)
    distilled = chosen.as_loss(loss)
    if not asked.train:
        transfer.keep(distilled, asked.output / "formula")
        return 0
    trials = [
        transfer.Trial("frozen", "frozen", whole, step=asked.step),
        transfer.Trial("distilled", "frozen", distilled, kept="formula"),
    ]
    seeds = list(dict.fromkeys(asked.seed or [0, 1, 2]))
    plan = transfer.Plan(asked.output, asked.gin_file, asked.gin_param, trials, seeds)
    code = plan.carry_out(asked.device, asked.data_dir, plugin, asked.threads)
    if code == 0:
        print(plan.report())
    return code


if __name__ == "__main__":
    sys.exit(main())
