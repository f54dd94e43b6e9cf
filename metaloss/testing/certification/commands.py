"""What `tools/check_gradients.py` is asked for: the built-in components, a run, or a model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from metaloss import config
from metaloss.config import plugins
from metaloss.engines import ENGINES
from metaloss.errors import InputError, did_you_mean
from metaloss.machine import processes, seeding
from metaloss.tasks.base import find_data_dir
from metaloss.testing.certification import certify, grid, report
from metaloss.testing.certification.model import check_model


def carry_out(
    model: Sequence[str] = (),
    gin_file: Sequence[str] = (),
    gin_param: Sequence[str] = (),
    plugin: Sequence[str] = (),
    data_dir: str | None = None,
    seed: int = 0,
    examples: int = 8,
    engine: Sequence[str] = (),
    optimizer: Sequence[str] = (),
    loss: Sequence[str] = (),
    backbone: Sequence[str] = (),
    markdown: Path | None = None,
    threads: int | None = None,
) -> int:
    """Prints a line a certificate; the arguments are the tool's flags.

    Returns:
        The exit code: 0, or 1 if a certificate does not hold.

    Raises:
        InputError: an unknown word, or a gin file, plugin or model that cannot be used.
    """
    plugins.load_all(plugin)
    processes.set_threads(threads)
    for name in engine:
        ENGINES[name]
    if model:
        return check_models(model, engine or ["auto"])
    if gin_file:
        found = of_run(gin_file, gin_param, data_dir, seed, examples, engine)
    else:
        found = of_grid(engine, optimizer, loss, backbone)
    done: list[certify.Certificate] = []
    for certificate in found:
        if not done:
            print(report.HEADER)
        done.append(certificate)
        print(report.line(certificate), flush=True)
    missed = [certificate for certificate in done if not certificate.holds]
    print(f"{len(done) - len(missed)} of {len(done)} certificates hold")
    if markdown:
        markdown.write_text(report.document(done))
    return 1 if missed else 0


def check_models(names: Sequence[str], engines: Sequence[str]) -> int:
    """Prints a verdict on each model with each engine; the exit code.

    Args:
        names: MODULE:FUNCTION, of functions that give a model with inputs.
        engines: their names.

    Raises:
        InputError: there is no such function, or it gives no model with inputs.
    """
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
            verdict = check_model(make, engine)
            holds &= verdict.holds
            print(f"{name}: {verdict}", flush=True)
    return 0 if holds else 1


def of_run(
    files: Sequence[str],
    bindings: Sequence[str],
    data_dir: str | None,
    seed: int,
    examples: int,
    engines: Sequence[str],
) -> Iterator[certify.Certificate]:
    """Certificates of what gin files ask for, each engine cold and warm.

    Raises:
        InputError: the configuration or the data cannot be used.
    """
    with seeding.drawing_from(seeding.stream(seed, "phi")):
        plan = config.load(files, bindings).build()
    case = certify.planned_case(plan, find_data_dir(data_dir), seed, examples)
    for engine in engines or ("exact", "sweep"):
        for warm in (0, 2):
            yield certify.certify(case, engine, warm, 3 if engine == "sweep" else 1)


def of_grid(
    engines: Sequence[str], optimizers: Sequence[str], losses: Sequence[str], models: Sequence[str]
) -> Iterator[certify.Certificate]:
    """Certificates of the built-in components, all or those that are named.

    Raises:
        InputError: an unknown word.
    """
    for words, known, flag in (
        (optimizers, grid.OPTIMIZERS, "--optimizer"),
        (losses, grid.LOSSES, "--loss"),
        (models, grid.MODELS, "--backbone"),
    ):
        for word in words:
            if word not in known:
                near = did_you_mean(word, known)
                raise InputError(f"{flag} = {word!r} is unknown{near} · known: {', '.join(known)}")
    return grid.certificates(engines, optimizers, losses, models)
