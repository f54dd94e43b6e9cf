#!/usr/bin/env python
r"""Writes the model of a run as one file that runs without metaloss, checked against the model.

    python tools/export.py runs/lenet5 --format=onnx --output=lenet5.onnx
    python tools/export.py runs/lenet5 --format=torch_export --output=lenet5.pt2
    python tools/export.py runs/lenet5 --format=safetensors --output=lenet5 --weights=average

The preparation of the inputs is in the file, and so is what makes probabilities, or values in the
targets' own units, of the outputs. Of a table a file of Python beside it makes its inputs of raw
rows. It is compared with the model on validation data; where it differs by more than 1e-4 it is not
written. Learned losses leave their run by themselves, in its loss/ folder: docs/exported_losses.md.

Exit codes: 0 done, 2 bad input.
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
    add("run", type=Path, metavar="RUN", help="run folder; the run may still go on")
    add("--format", required=True, choices=["onnx", "torch_export", "safetensors"],
        help="a graph for onnxruntime, one for torch, or a folder for metaloss")  # fmt: skip
    add("--output", type=Path, required=True, metavar="PATH",
        help="file that ends in .onnx or .pt2; of safetensors a folder")  # fmt: skip
    add("--overwrite", action="store_true", help="write --output even if it is there")
    add("--weights", default="tested", choices=["tested", "last", "average"],
        help="those of the result (default), of the last step, or their running mean")  # fmt: skip
    add("--calibrated", action="store_true",
        help="divide outputs by the temperature that suits the validation data")  # fmt: skip
    add("--data_dir", metavar="DIR", help="data sets; default: where the run had them")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, exports, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Exports; the exit code."""
    from metaloss.runs.trained import exporting

    print(exporting.command(**vars(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
