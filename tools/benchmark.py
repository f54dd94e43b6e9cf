#!/usr/bin/env python
r"""Measures what a step of meta-learning costs, in time and peak tensor memory.

    python tools/benchmark.py --list                             # the models and the contenders
    python tools/benchmark.py --model=resnet18 --model=lenet5 --threads=2
    python tools/benchmark.py --contender=exact --contender=higher --json=FILE --markdown=FILE

    python tools/benchmark.py --outputs=10,100,1000,10000 --contender=base_step --contender=exact

The models are the twelve pairs of the paper's Table 1, and by its name alone the head of a language
model; `--outputs` takes 256-256 networks with so many outputs in their place. The contenders are
metaloss's engines and methods, `higher`, TorchOpt and plain torch, all in one run;
`..._plain_network` is the same with a learned loss that leaves its derivatives to autograd.

Exit codes: 0 measured, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print the models and the contenders, and end")
    add("--model", action="append", metavar="NAME", help="may repeat; default: all")
    add(
        "--outputs",
        metavar="N,N,...",
        help="networks with so many outputs, in place of the models unless some are named too",
    )
    add(
        "--contender",
        action="append",
        metavar="NAME",
        help="may repeat; default: all. The baseline always runs",
    )
    add(
        "--seconds",
        type=float,
        default=20.0,
        help="measured time of a model, divided among the contenders; each has a turn at least, "
        "which takes longer for large models; default: %(default)g",
    )
    add("--turns", type=int, help="how often each contender is measured, instead")
    add("--batch_size", type=int, metavar="N", help="default: one that suits the model and 2 cores")
    add("--threads", type=int, help="CPU threads; default: torch's")
    add("--device", default="cpu", help="a torch device; default: %(default)s")
    add(
        "--cpu_time",
        action="store_true",
        help="the process's CPU time in place of wall time: for a machine that others use too",
    )
    add("--json", type=Path, metavar="FILE", help="also write the rows there")
    add("--markdown", type=Path, metavar="FILE", help="also write the table there")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Measures a model at a time; the files hold all that was measured after each."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Measures; the exit code."""
    import torch

    from metaloss.errors import InputError, did_you_mean, first_line

    root = Path(__file__).parent.parent
    if not (root / "benchmarks").is_dir():
        raise InputError("benchmark: its contenders are not installed; call it in a clone")
    sys.path.insert(0, str(root))
    from benchmarks import report
    from benchmarks.contenders import CONTENDERS
    from benchmarks.measure import measure
    from benchmarks.pairs import LARGE, PAIRS, of_outputs

    def chosen(kind: str, asked: list[str] | None, known: list[str]) -> list[str]:
        for name in asked or []:
            if name not in known:
                near = did_you_mean(name, known)
                raise InputError(f"no {kind} '{name}'{near} · known: {', '.join(known)}")
        return [name for name in known if not asked or name in asked]

    if arguments.list:
        print(f"models: {', '.join(PAIRS)}\nby name alone: {', '.join(LARGE)}")
        print(f"contenders: {', '.join(CONTENDERS)}")
        return 0
    pairs = {f"outputs_{n}": of_outputs(n) for n in _outputs(arguments.outputs)}
    if arguments.model or not pairs:
        known = PAIRS | LARGE
        names = chosen("model", arguments.model or list(PAIRS), list(known))
        pairs |= {name: known[name] for name in names}
    contenders = chosen("contender", arguments.contender, list(CONTENDERS))
    if arguments.batch_size is not None and arguments.batch_size < 2:
        raise InputError(f"--batch_size={arguments.batch_size}: at least 2")
    for path in filter(None, (arguments.json, arguments.markdown)):
        if not path.resolve().parent.is_dir() or path.is_dir():
            raise InputError(f"'{path}' cannot be written: it is a folder, or in none")
    try:
        device = torch.zeros((), device=arguments.device).device
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise InputError(f"--device={arguments.device} cannot be used: {reason}") from error
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    conditions = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "time": "CPU time of the process" if arguments.cpu_time else "wall time",
    }
    print(f"{report.sentence(conditions)}\n\n{report.HEAD}", flush=True)
    rows = []
    for model, pair in pairs.items():
        found = measure(
            model,
            ["baseline", *(name for name in contenders if name != "baseline")],
            device,
            seconds=arguments.seconds,
            turns=arguments.turns,
            batch_size=arguments.batch_size,
            pair=pair,
            clock=time.process_time if arguments.cpu_time else time.perf_counter,
        )
        print(report.lines(found), flush=True)
        rows += found
        if arguments.json:
            arguments.json.write_text(report.as_json(conditions, rows))
        if arguments.markdown:
            arguments.markdown.write_text(report.as_markdown(conditions, rows))
    return 0


def _outputs(text: str | None) -> list[int]:
    """The numbers of outputs that were asked for.

    Raises:
        InputError: they are no numbers above 1.
    """
    from metaloss.errors import InputError

    words = text.split(",") if text else []
    if not all(word.strip().isdecimal() and int(word) > 1 for word in words):
        raise InputError(f"--outputs={text}: numbers above 1 with commas, as 10,1000")
    return [int(word) for word in words]


if __name__ == "__main__":
    sys.exit(main())
