#!/usr/bin/env python
r"""Certifies meta-gradients against double backward and the real optimizer's steps, in float64.

    python tools/check_gradients.py                  # the built-in components; 20 minutes
    python tools/check_gradients.py --backbone=mlp   # some of them, in seconds
    python tools/check_gradients.py --gin_file=gin_configs/tasks/digits_mlp.gin \
        --gin_file=gin_configs/methods/adalfl.gin --plugin=my_loss.py \
        --gin_param='Runner.representation = @representations.my_loss()'
    python tools/check_gradients.py --model=my_models:make   # a function that gives a model of
                                                             # one's own, and inputs for it

Prints a line a certificate; of a model, whether its meta-gradient is right, refused, or wrong.
Exit codes: 0 all hold, 1 one does not, 2 bad input.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from metaloss.testing.certification.certify import Certificate


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; before any slow import, so that --help is quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="MODULE:FUNCTION", help="may repeat")
    add("--gin_file", action="append", default=[], metavar="FILE", help="a run to certify")
    add("--gin_param", action="append", default=[], metavar="'NAME = VALUE'", help="may repeat")
    add("--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may repeat")
    add("--data_dir", metavar="DIR", help="data sets; default: $METALOSS_DATA, or ./data")
    add("--seed", type=int, default=0, help="of a run's φ, θ and batches; default: %(default)s")
    add("--examples", type=int, default=8, metavar="N", help="in a run's batches; default: 8")
    add("--engine", action="append", default=[], help="only this; may repeat")
    add("--optimizer", action="append", default=[], help="of the built-ins only this; may repeat")
    add("--loss", action="append", default=[], help="of the built-ins only this; may repeat")
    add("--backbone", action="append", default=[], help="of the built-ins only this; may repeat")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    return parser.parse_args(arguments)


def main(command_line: list[str] | None = None) -> int:
    """Parses, certifies, and turns what the user got wrong into one line and exit code 2."""
    arguments = parse_arguments(command_line)

    from metaloss.errors import answered

    return answered(carry_out, arguments)


def carry_out(arguments: argparse.Namespace) -> int:
    """Certifies; the exit code."""
    from metaloss.testing.certification import report

    done: list[Certificate] = []
    if arguments.model:
        return check_models(arguments.model, arguments.engine or ["auto"])
    for certificate in find(arguments):
        if not done:
            print(report.HEADER)
        done.append(certificate)
        print(report.line(certificate), flush=True)
    missed = [certificate for certificate in done if not certificate.holds]
    print(f"{len(done) - len(missed)} of {len(done)} certificates hold")
    if arguments.markdown:
        arguments.markdown.write_text(report.document(done))
    return 1 if missed else 0


def check_models(names: Sequence[str], engines: Sequence[str]) -> int:
    """Prints a verdict on each model with each engine -> the exit code.

    Raises:
        InputError: there is no such function, or it gives no model with inputs.
    """
    from metaloss.engines import ENGINES
    from metaloss.errors import InputError, did_you_mean
    from metaloss.testing.certification.model import check_model

    holds = True
    for name in names:
        module_name, _, function = name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(module_name.removesuffix(".py").replace("/", "."))
        except ImportError as error:
            raise InputError(f"--model={name}: {error}") from error
        finally:
            sys.path.pop(0)
        make = getattr(module, function, None)
        if not callable(make):
            near = did_you_mean(function, vars(module))
            raise InputError(f"--model={name}: {module_name} has no function '{function}'{near}")
        for engine in engines:
            ENGINES[engine]
            verdict = check_model(make, engine)
            holds &= verdict.holds
            print(f"{name}: {verdict}", flush=True)
    return 0 if holds else 1


def find(arguments: argparse.Namespace) -> Iterator[Certificate]:
    """The certificates that are asked for.

    Raises:
        InputError: an unknown word, or a gin file or plugin that cannot be used.
    """
    from metaloss import config
    from metaloss.config import plugins
    from metaloss.engines import ENGINES
    from metaloss.errors import InputError, did_you_mean
    from metaloss.machine import seeding
    from metaloss.tasks.base import find_data_dir
    from metaloss.testing.certification import certify, grid

    plugins.load_all(arguments.plugin)
    for engine in arguments.engine:
        ENGINES[engine]
    if arguments.gin_file:
        with seeding.drawing_from(seeding.stream(arguments.seed, "phi")):
            plan = config.load(arguments.gin_file, arguments.gin_param).build()
        folder = find_data_dir(arguments.data_dir)
        case = certify.planned_case(plan, folder, arguments.seed, arguments.examples)
        for engine in arguments.engine or ("exact", "sweep"):
            for warm in (0, 2):
                yield certify.certify(case, engine, warm, 3 if engine == "sweep" else 1)
        return
    for words, known, flag in (
        (arguments.optimizer, grid.OPTIMIZERS, "--optimizer"),
        (arguments.loss, grid.LOSSES, "--loss"),
        (arguments.backbone, grid.MODELS, "--backbone"),
    ):
        for word in words:
            if word not in known:
                near = did_you_mean(word, known)
                raise InputError(f"{flag} = {word!r} is unknown{near} · known: {', '.join(known)}")
    yield from grid.certificates(
        arguments.engine, arguments.optimizer, arguments.loss, arguments.backbone
    )


if __name__ == "__main__":
    sys.exit(main())
